//! A small NBD client for the crash tests: pipelined requests with cookies, and one reader thread.
//!
//! Why not libnbd: the tests must know to the byte what was acknowledged at the moment at which
//! a server died, with many requests in flight, and must be able to send what a well-behaved client
//! never sends. It speaks fixed newstyle with `NBD_OPT_GO` and simple replies only, which the
//! specification obliges every server to serve. It never retries and never reconnects by itself:
//! a connection that ends is an event that the test wants to see.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// "NBDMAGIC", the first eight bytes of every server.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", before the flags and before every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The option that asks for an export and begins transmission.
pub const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

/// Force unit access: durable before it is answered.
pub const FLAG_FUA: u16 = 1;
/// `NBD_CMD_READ`.
pub const CMD_READ: u16 = 0;
/// `NBD_CMD_WRITE`.
pub const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
/// `NBD_CMD_FLUSH`.
pub const CMD_FLUSH: u16 = 3;
/// `NBD_CMD_TRIM`.
pub const CMD_TRIM: u16 = 4;
/// `NBD_CMD_WRITE_ZEROES`.
pub const CMD_WRITE_ZEROES: u16 = 6;

/// NBD's number for "no space left".
pub const ENOSPC: u32 = 28;
/// NBD's number for "invalid argument".
pub const EINVAL: u32 = 22;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A unix socket's path.
    Unix(PathBuf),
    /// `address:port`.
    Tcp(String),
}

impl Endpoint {
    /// A bare connection, before any NBD is spoken on it.
    pub fn open(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
}

/// A connected socket of either family.
#[derive(Debug)]
pub enum Stream {
    /// A unix socket.
    Unix(UnixStream),
    /// A TCP connection.
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// How long a read may wait; `None` for ever.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(limit),
            Self::Tcp(stream) => stream.set_read_timeout(limit),
        }
    }

    fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(limit),
            Self::Tcp(stream) => stream.set_write_timeout(limit),
        }
    }

    fn shutdown(&self) {
        // It may be closed already: either way nothing more comes.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What became of one request.
#[derive(Debug)]
pub struct Completion {
    /// The cookie that [`Client::submit`] gave.
    pub cookie: u64,
    /// NBD's error number; 0 for success.
    pub error: u32,
    /// What was read; empty for every other command.
    pub data: Vec<u8>,
    /// When the answer had come.
    pub at: Instant,
}

/// Lengths of the reads in flight, by cookie (0 for commands without data).
type Pending = Arc<Mutex<HashMap<u64, usize>>>;

/// One connection in transmission.
#[derive(Debug)]
pub struct Client {
    writer: Mutex<Stream>,
    pending: Pending,
    completions: Mutex<Receiver<Completion>>,
    next_cookie: AtomicU64,
    reader: Option<JoinHandle<()>>,
    /// Bytes of the export.
    pub size: u64,
    /// The export's transmission flags.
    pub flags: u16,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn read_array<const N: usize>(stream: &mut Stream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The greeting and the client's flags: afterwards options may be sent.
pub fn greet(stream: &mut Stream) -> io::Result<()> {
    if u64::from_be_bytes(read_array(stream)?) != NBD_MAGIC
        || u64::from_be_bytes(read_array(stream)?) != OPTION_MAGIC
    {
        return Err(invalid("the server does not greet as newstyle NBD"));
    }
    let flags = u16::from_be_bytes(read_array(stream)?);
    if flags & 3 != 3 {
        return Err(invalid(format!("the server lacks fixed newstyle or NO_ZEROES: flags {flags:#x}")));
    }
    stream.write_all(&3u32.to_be_bytes())
}

/// The bytes of one option.
pub fn option_bytes(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + payload.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload of `NBD_OPT_GO` for an export, with no information asked for.
pub fn go_payload(export: &str) -> Vec<u8> {
    let mut payload = Vec::with_capacity(6 + export.len());
    payload.extend_from_slice(&(export.len() as u32).to_be_bytes());
    payload.extend_from_slice(export.as_bytes());
    payload.extend_from_slice(&0u16.to_be_bytes());
    payload
}

/// `NBD_OPT_GO`: the export's size and flags.
pub fn go(stream: &mut Stream, export: &str) -> io::Result<(u64, u16)> {
    stream.write_all(&option_bytes(OPT_GO, &go_payload(export)))?;
    let mut found = None;
    loop {
        if u64::from_be_bytes(read_array(stream)?) != OPTION_REPLY_MAGIC {
            return Err(invalid("an option's reply has a wrong magic"));
        }
        let _option = u32::from_be_bytes(read_array(stream)?);
        let kind = u32::from_be_bytes(read_array(stream)?);
        let length = u32::from_be_bytes(read_array(stream)?);
        if length > 1 << 16 {
            return Err(invalid(format!("an option's reply of {length} bytes")));
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        match kind {
            REP_ACK => {
                return found.ok_or_else(|| invalid("GO was acknowledged without NBD_INFO_EXPORT"));
            }
            REP_INFO if payload.len() == 12 && payload[..2] == INFO_EXPORT.to_be_bytes() => {
                let size = u64::from_be_bytes(payload[2..10].try_into().map_err(|_| invalid("size"))?);
                let flags = u16::from_be_bytes([payload[10], payload[11]]);
                found = Some((size, flags));
            }
            REP_INFO => {}
            error => {
                return Err(io::Error::other(format!(
                    "GO was refused with {error:#x}: {}",
                    String::from_utf8_lossy(&payload)
                )));
            }
        }
    }
}

/// The bytes of a request's header.
pub fn request_header(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut header = [0; 28];
    header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&flags.to_be_bytes());
    header[6..8].copy_from_slice(&command.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..].copy_from_slice(&length.to_be_bytes());
    header
}

fn read_replies(mut stream: Stream, pending: &Pending, completions: &Sender<Completion>) -> io::Result<()> {
    loop {
        if u32::from_be_bytes(read_array(&mut stream)?) != SIMPLE_REPLY_MAGIC {
            return Err(invalid("a reply has a wrong magic"));
        }
        let error = u32::from_be_bytes(read_array(&mut stream)?);
        let cookie = u64::from_be_bytes(read_array(&mut stream)?);
        let Some(length) = lock(pending).remove(&cookie) else {
            return Err(invalid(format!("a reply to cookie {cookie}, which is not in flight")));
        };
        let mut data = vec![0; if error == 0 { length } else { 0 }];
        stream.read_exact(&mut data)?;
        let completion = Completion { cookie, error, data, at: Instant::now() };
        if completions.send(completion).is_err() {
            return Ok(());
        }
    }
}

impl Client {
    /// Connects and enters transmission for `export`.
    pub fn connect(endpoint: &Endpoint, export: &str) -> io::Result<Self> {
        let mut stream = endpoint.open()?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        greet(&mut stream)?;
        let (size, flags) = go(&mut stream, export)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(CALL_LIMIT))?;

        let pending = Pending::default();
        let (sender, receiver) = channel();
        let reader = {
            let (stream, pending) = (stream.try_clone()?, Arc::clone(&pending));
            std::thread::spawn(move || {
                if let Err(error) = read_replies(stream, &pending, &sender)
                    && error.kind() == io::ErrorKind::InvalidData
                {
                    eprintln!("nbd client: {error}");
                }
            })
        };
        Ok(Self {
            writer: Mutex::new(stream),
            pending,
            completions: Mutex::new(receiver),
            next_cookie: AtomicU64::new(1),
            reader: Some(reader),
            size,
            flags,
        })
    }

    /// Sends a request and does not wait. `data` is a write's payload and empty otherwise.
    pub fn submit(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: usize,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie.fetch_add(1, Ordering::Relaxed);
        let expected = if command == CMD_READ { length } else { 0 };
        lock(&self.pending).insert(cookie, expected);
        let mut bytes = Vec::with_capacity(28 + data.len());
        bytes.extend_from_slice(&request_header(flags, command, cookie, offset, length as u32));
        bytes.extend_from_slice(data);
        lock(&self.writer).write_all(&bytes)?;
        Ok(cookie)
    }

    /// The next answer, whichever request it is to. `ConnectionReset` when the connection has ended
    /// and everything that came before its end has been taken, `TimedOut` when nothing came in time.
    pub fn next(&self, limit: Duration) -> io::Result<Completion> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        lock(&self.completions).recv_timeout(limit).map_err(|error| match error {
            Timeout => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")),
            Disconnected => io::Error::new(io::ErrorKind::ConnectionReset, "the server has gone"),
        })
    }

    /// One request at a time: sends and waits. An NBD error becomes an `Other` with its number.
    fn call(&self, command: u16, flags: u16, offset: u64, length: usize, data: &[u8]) -> io::Result<Vec<u8>> {
        let cookie = self.submit(command, flags, offset, length, data)?;
        let completion = self.next(CALL_LIMIT)?;
        if completion.cookie != cookie {
            return Err(invalid(format!("answer to {} instead of {cookie}", completion.cookie)));
        }
        if completion.error != 0 {
            return Err(io::Error::other(format!(
                "NBD error {} for command {command} at {offset}, {length} bytes",
                completion.error
            )));
        }
        Ok(completion.data)
    }

    /// Reads and waits. Only while nothing else is in flight, as all the calls that wait.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.call(CMD_READ, 0, offset, length, &[])
    }

    /// Writes and waits.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(CMD_WRITE, 0, offset, data.len(), data).map(drop)
    }

    /// Flushes and waits.
    pub fn flush(&self) -> io::Result<()> {
        self.call(CMD_FLUSH, 0, 0, 0, &[]).map(drop)
    }

    /// Discards and waits.
    pub fn trim(&self, offset: u64, length: usize) -> io::Result<()> {
        self.call(CMD_TRIM, 0, offset, length, &[]).map(drop)
    }

    /// Writes zeroes and waits.
    pub fn write_zeroes(&self, offset: u64, length: usize) -> io::Result<()> {
        self.call(CMD_WRITE_ZEROES, 0, offset, length, &[]).map(drop)
    }
}

/// How long a single call may take before the test fails: far above any stall that is allowed.
const CALL_LIMIT: Duration = Duration::from_secs(60);

impl Drop for Client {
    fn drop(&mut self) {
        let mut stream = lock(&self.writer);
        // A goodbye, if the server is still there to hear it: a stopped one must not hold us up.
        let _ = stream.set_write_timeout(Some(Duration::from_millis(10)));
        let _ = stream.write_all(&request_header(0, CMD_DISC, 0, 0, 0));
        stream.shutdown();
        drop(stream);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
