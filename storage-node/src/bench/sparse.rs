//! A device of any size on a sparse file, on which blocks of one pattern take no space.
//!
//! It lets a store of a terabyte run through all of its metadata (headers, table pages, snapshots, roots)
//! on a machine that has not got a terabyte: what the load writes as data is [`PATTERN`], a hole in
//! the file, and is read back from there. The store sees a device that keeps everything.
//!
//! Operations go through the page cache and have ended when they are started: what is measured on it is
//! what the store itself costs. Reads of the start-up ([`Device::read_now`]) go to the disk. It is not
//! durable: for measurements only.

use crate::device::file::{OpenDeviceError, RawDevice};
use crate::device::wake::Waker;
use crate::device::{Completion, Device, Op, Prepare};
use bytes::Bytes;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use trefoil_core::BLOCK_SIZE;

/// The content of a block that takes no space.
pub const PATTERN: [u8; BLOCK_SIZE] = [0xa7; BLOCK_SIZE];
static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// See the module.
pub struct SparseDevice {
    /// Holds the lock.
    raw: RawDevice,
    cached: File,
    done: Vec<Completion>,
    waker: Waker,
}

impl SparseDevice {
    /// On a file that has been formatted.
    pub fn open(path: &Path) -> Result<SparseDevice, OpenDeviceError> {
        let refused = |source| OpenDeviceError::Open { path: path.display().to_string(), source };
        let raw = RawDevice::open(path, false)?;
        let cached = File::options().read(true).write(true).open(path).map_err(refused)?;
        Ok(SparseDevice { raw, cached, done: Vec::new(), waker: Waker::new().map_err(refused)? })
    }

    /// Brings everything to the disk and out of the page cache, so that the next start has to read it.
    pub fn forget_cache(&self) -> io::Result<()> {
        self.cached.sync_all()?;
        Ok(posix_fadvise(&self.cached, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.cached.read_exact_at(buf, offset)?;
        restore(buf);
        Ok(())
    }

    /// Writes what is not the pattern. Where the pattern goes there is a hole: the log is written from the
    /// start of a segment to its end, and a segment that was used before has been discarded. A block of
    /// zeros, which would look like one, changes places with the pattern.
    fn write(&self, mut offset: u64, bufs: &[Bytes]) -> io::Result<()> {
        for buf in bufs {
            let mut from = 0;
            for at in (0..=buf.len()).step_by(BLOCK_SIZE) {
                let block = buf.get(at..at + BLOCK_SIZE);
                let zeros = block.is_some_and(|block| block == ZEROS);
                if zeros || block.is_none_or(|block| block == PATTERN) {
                    if from < at {
                        self.cached.write_all_at(&buf[from..at], offset + from as u64)?;
                    }
                    if zeros {
                        self.cached.write_all_at(&PATTERN, offset + at as u64)?;
                    }
                    from = at + BLOCK_SIZE;
                }
            }
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let beyond = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let (offset, len) = (offset.try_into().map_err(beyond)?, len.try_into().map_err(beyond)?);
        Ok(fallocate(&self.cached, flags, offset, len)?)
    }
}

/// Undoes the change of places.
fn restore(buf: &mut [u8]) {
    for block in buf.chunks_exact_mut(BLOCK_SIZE) {
        if block == ZEROS {
            block.copy_from_slice(&PATTERN);
        } else if block == PATTERN {
            block.copy_from_slice(&ZEROS);
        }
    }
}

impl Device for SparseDevice {
    fn size(&self) -> u64 {
        self.raw.size
    }
    fn name(&self) -> &str {
        &self.raw.name
    }
    fn start(&mut self, id: u64, op: Op) {
        let (result, buf) = match op {
            Op::Read { offset, mut buf } => (self.read(offset, &mut buf), Some(buf)),
            Op::Write { offset, bufs, .. } => (self.write(offset, &bufs), None),
            Op::Discard { offset, len } | Op::Zero { offset, len } => (self.discard(offset, len), None),
        };
        if self.done.is_empty() {
            self.waker.ring();
        }
        self.done.push(Completion { id, result, buf });
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }
    fn in_flight(&self) -> usize {
        self.done.len()
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.raw.read_now(offset, buf)?;
        restore(buf);
        Ok(())
    }
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(offset, &[Bytes::copy_from_slice(data)])
    }
    fn waker(&self) -> &Waker {
        &self.waker
    }
    fn prepare(&self) -> Prepare {
        Prepare::Discard
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::buffer::Pool;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_pattern_takes_no_space_and_everything_is_read_back() {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(64 << 20).expect("extended");
        let mut device = SparseDevice::open(file.path()).expect("opens");
        let own: Vec<u8> = (0..BLOCK_SIZE).map(|n| n as u8).collect();
        let kinds: [&[u8]; 3] = [&own, &PATTERN, &ZEROS];
        // Every order of four blocks, in two buffers.
        let all: Vec<&[u8]> = (0..81).flat_map(|n| [1, 3, 9, 27].map(|power| kinds[n / power % 3])).collect();
        let bytes = all.concat();
        let bufs = vec![
            Bytes::copy_from_slice(&bytes[..BLOCK_SIZE * 5]),
            Bytes::copy_from_slice(&bytes[BLOCK_SIZE * 5..]),
        ];
        device.start(7, Op::Write { offset: 1 << 20, bufs, gently: false });
        let pool = Pool::new(u64::MAX, 0, None);
        let buf = pool.get(bytes.len()).expect("memory");
        device.start(8, Op::Read { offset: 1 << 20, buf });
        device.forget_cache().expect("synced");
        let mut again = pool.get(bytes.len()).expect("memory");
        device.read_now(1 << 20, &mut again).expect("read");
        assert!(again[..] == bytes);

        let mut out = Vec::new();
        device.completions(&mut out);
        assert!(out.iter().all(|c| c.result.is_ok()) && out[0].id == 7 && device.in_flight() == 0);
        assert!(out[1].buf.as_ref().expect("a read")[..] == bytes);
        let used = file.as_file().metadata().expect("metadata").blocks() * 512;
        assert!(used <= 220 * BLOCK_SIZE as u64, "two thirds of 324 blocks: {used}");

        device.start(9, Op::Discard { offset: 1 << 20, len: 2 << 20 });
        device.read_now(1 << 20, &mut again).expect("read");
        assert!(again.chunks(BLOCK_SIZE).all(|block| block == PATTERN));
    }
}
