//! A look at a volume through its front end, before it is overwritten: how large it is, and whether it holds data.
//!
//! As little of an NBD client as that takes (`doc/proto.md` of the NBD project): it asks for `base:allocation` and
//! reads no data. Everything that comes back is bounded.

use super::uri::{At, Uri};
use anyhow::{Context, bail, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use trefoil_nbd::proto::wire::{self, CONTEXT_ALLOCATION, chunk, cmd, info, opt, rep};

/// How long a front end may take for one answer. A volume whose last holder died is attached after a lease.
const PATIENCE: Duration = Duration::from_secs(60);
/// Asked for at once.
const STATUS_BYTES: u64 = 1 << 30;
/// Longest answer that is read.
const ANSWER_MAX: u32 = 16 << 20;
/// Answers to one question.
const ANSWERS_MAX: usize = 1 << 16;

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its size in bytes.
    pub size: u64,
    /// What is in the part that was asked about.
    pub data: Data,
}

/// Whether something would be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing: it reads as zeros.
    None,
    /// There is data, first here.
    At(u64),
    /// The server does not say.
    Unknown,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Asks about the first `bytes` of a volume.
///
/// # Errors
///
/// Nobody listens there, or it has no such volume, or does not speak NBD.
pub fn look(uri: &Uri, bytes: u64) -> anyhow::Result<Volume> {
    let stream = connect(&uri.at).with_context(|| format!("cannot reach the front end of {uri}"))?;
    Client { stream }.look(&uri.export, bytes).with_context(|| format!("cannot ask about {uri}"))
}

fn connect(at: &At) -> anyhow::Result<Box<dyn Stream>> {
    Ok(match at {
        At::Tcp(host, port) => {
            let stream = TcpStream::connect((host.trim_matches(['[', ']']), *port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        At::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Box::new(stream)
        }
    })
}

struct Client {
    stream: Box<dyn Stream>,
}

/// One reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Client {
    fn look(&mut self, export: &str, bytes: u64) -> anyhow::Result<Volume> {
        ensure!(self.u64()? == wire::MAGIC_GREETING, "it does not speak NBD");
        ensure!(self.u64()? == wire::MAGIC_OPTION, "it speaks an NBD of before 2012");
        let flags = self.u16()?;
        let wanted = flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        self.stream.write_all(&u32::from(wanted).to_be_bytes())?;

        self.option(opt::STRUCTURED_REPLY, &[])?;
        let structured = self.reply(opt::STRUCTURED_REPLY)?.kind == rep::ACK;
        let knows = structured && self.wants_allocation(export)?;

        let name = [&(export.len() as u32).to_be_bytes(), export.as_bytes(), &[0, 0]].concat();
        self.option(opt::GO, &name)?;
        let mut size = None;
        for _ in 0..ANSWERS_MAX {
            let reply = self.reply(opt::GO)?;
            match reply.kind {
                rep::INFO if reply.data.len() >= 12 && reply.data[..2] == info::EXPORT.to_be_bytes() => {
                    size = Some(number(&reply.data[2..10]));
                }
                rep::INFO => {}
                rep::ACK => break,
                _ => bail!("it refuses: {}", said(&reply.data)),
            }
        }
        let size = size.context("it does not say how large the volume is")?;
        let data = match knows {
            true => self.first_data(bytes.min(size))?,
            false => Data::Unknown,
        };
        self.request(cmd::DISC, 0, 0)?;
        Ok(Volume { size, data })
    }

    fn wants_allocation(&mut self, export: &str) -> anyhow::Result<bool> {
        let (one, length) = (1u32.to_be_bytes(), (CONTEXT_ALLOCATION.len() as u32).to_be_bytes());
        let name = [&(export.len() as u32).to_be_bytes(), export.as_bytes()].concat();
        self.option(
            opt::SET_META_CONTEXT,
            &[&name, &one[..], &length, CONTEXT_ALLOCATION.as_bytes()].concat(),
        )?;
        let mut agreed = false;
        for _ in 0..ANSWERS_MAX {
            let reply = self.reply(opt::SET_META_CONTEXT)?;
            match reply.kind {
                rep::META_CONTEXT => agreed = true,
                rep::ACK => return Ok(agreed),
                // No such volume, perhaps: GO says it better.
                _ => return Ok(false),
            }
        }
        bail!("it does not stop answering")
    }

    /// Where the first extent begins that does not read as zeros.
    fn first_data(&mut self, bytes: u64) -> anyhow::Result<Data> {
        let mut at = 0;
        while at < bytes {
            let len = (bytes - at).min(STATUS_BYTES);
            self.request(cmd::BLOCK_STATUS, at, len as u32)?;
            let begun = at;
            loop {
                let (flags, kind, payload) = self.chunk()?;
                ensure!(kind & (1 << 15) == 0, "it fails: {}", said(payload.get(6..).unwrap_or_default()));
                let extents = payload.get(4..).filter(|_| kind == chunk::BLOCK_STATUS).unwrap_or_default();
                for extent in extents.chunks_exact(8) {
                    if number(&extent[4..]) & u64::from(wire::STATE_ZERO) == 0 {
                        return Ok(Data::At(at));
                    }
                    at += number(&extent[..4]);
                }
                if flags & chunk::FLAG_DONE != 0 {
                    break;
                }
            }
            ensure!(at > begun, "it says nothing about the bytes from {begun}");
        }
        Ok(Data::None)
    }

    fn option(&mut self, option: u32, data: &[u8]) -> anyhow::Result<()> {
        let header = [wire::MAGIC_OPTION.to_be_bytes().as_slice(), &option.to_be_bytes()].concat();
        let len = (data.len() as u32).to_be_bytes();
        Ok(self.stream.write_all(&[&header, &len[..], data].concat())?)
    }

    fn reply(&mut self, option: u32) -> anyhow::Result<Reply> {
        let (magic, to, kind) = (self.u64()?, self.u32()?, self.u32()?);
        ensure!(magic == wire::MAGIC_OPTION_REPLY && to == option, "it answers something else");
        let data = self.payload()?;
        Ok(Reply { kind, data })
    }

    fn request(&mut self, command: u16, offset: u64, len: u32) -> anyhow::Result<()> {
        let mut request = wire::MAGIC_REQUEST.to_be_bytes().to_vec();
        request.extend([[0, 0], command.to_be_bytes()].concat());
        request.extend(offset.to_be_bytes()); // A cookie as good as any.
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        Ok(self.stream.write_all(&request)?)
    }

    fn chunk(&mut self) -> anyhow::Result<(u16, u16, Vec<u8>)> {
        let magic = self.u32()?;
        ensure!(magic == wire::MAGIC_STRUCTURED_REPLY, "it answers something else");
        let (flags, kind, _cookie) = (self.u16()?, self.u16()?, self.u64()?);
        Ok((flags, kind, self.payload()?))
    }

    fn payload(&mut self) -> anyhow::Result<Vec<u8>> {
        let len = self.u32()?;
        ensure!(len <= ANSWER_MAX, "its answer of {len} bytes is too long");
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    fn u16(&mut self) -> anyhow::Result<u16> {
        let mut bytes = [0; 2];
        self.stream.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

/// Big-endian, of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// A server's words.
fn said(data: &[u8]) -> String {
    match data.is_empty() {
        true => "it gives no reason".to_owned(),
        false => crate::output::printable(&String::from_utf8_lossy(data)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A server that sends `greeting` and then nothing.
    fn told_by(greeting: &'static [u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting).unwrap();
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let told = look(&Uri { at: At::Unix(path), export: "d".into() }, 4096).unwrap_err();
        server.join().unwrap();
        format!("{told:#}")
    }

    #[test]
    fn strangers_are_told_apart_from_front_ends() {
        assert!(told_by(b"HTTP/1.1 400 Bad Request\r\n\r\n").contains("does not speak NBD"));
        assert!(told_by(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53").contains("before 2012"));
        assert!(told_by(b"NBDMAGICIHAVEOPT\x00\x03").contains("cannot ask about nbd+unix:///d"));
        assert!(told_by(b"NBDMAGICIHAVEOPT\x00\x03GET / HTTP/1.1 and more").contains("something else"));
        let long = b"NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x08\x00\x00\x00\x01\xff\xff\xff\xff";
        assert!(told_by(long).contains("too long"));
        let nobody = look(&Uri { at: At::Unix("/nonexistent/s".into()), export: "d".into() }, 1).unwrap_err();
        assert!(format!("{nobody:#}").contains("cannot reach the front end"));
    }
}
