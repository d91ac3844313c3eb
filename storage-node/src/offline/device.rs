//! A file or block device opened for reading only, with a lock that a running storage node's excludes.
//!
//! What a tool that must not write is given instead of the store's own device: here the kernel refuses
//! every write, whatever the code above does.

use crate::device::buffer::Buf;
use crate::device::wake::Waker;
use crate::device::{Completion, Device, Op};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long to wait for the lock of a process that may just have been killed: its last write ends
/// before its lock does.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Reads that are under way at once: what keeps a fast device busy, and lets a slow one choose its order.
const READERS_MAX: usize = 16;

/// A device that can read several places at once.
pub trait ReadMany: Device {
    /// Reads each `(offset, buffer)`, in any order; the outcomes in the order of the places.
    fn read_many(&self, places: Vec<(u64, &mut [u8])>) -> Vec<io::Result<()>> {
        places.into_iter().map(|(offset, buf)| self.read_now(offset, buf)).collect()
    }
}

impl ReadMany for crate::device::sim::SimDevice {}

/// Why a device could not be opened for reading.
#[derive(Debug, thiserror::Error)]
pub enum ReadOnlyError {
    /// The system refused.
    #[error("cannot open {path} for reading: {source}")]
    Open {
        /// The path.
        path: String,
        /// The system's word.
        source: io::Error,
    },
    /// Its storage node runs.
    #[error("{path} is in use: stop the storage node first")]
    InUse {
        /// The path.
        path: String,
    },
    /// Neither a regular file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    Kind {
        /// The path.
        path: String,
    },
}

/// An open device that cannot be written.
pub struct ReadOnlyDevice {
    file: Flock<File>,
    size: u64,
    name: String,
    waker: Waker,
    ended: Vec<Completion>,
}

impl ReadOnlyDevice {
    /// Opens `path` with a shared lock: tools can read side by side, a storage node cannot start
    /// meanwhile.
    pub fn open(path: &Path) -> Result<ReadOnlyDevice, ReadOnlyError> {
        let name = path.display().to_string();
        let refused = |source| ReadOnlyError::Open { path: name.clone(), source };
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
        // Looked at before it is opened: opening a FIFO would wait for a writer.
        let kind = std::fs::metadata(path).map_err(refused)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ReadOnlyError::Kind { path: name });
        }
        let file = match open(libc::O_DIRECT | libc::O_CLOEXEC) {
            // No direct I/O on this file system.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(libc::O_CLOEXEC).map_err(refused)?,
            other => other.map_err(refused)?,
        };
        let file = lock(file).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => ReadOnlyError::InUse { path: name.clone() },
            other => refused(other.into()),
        })?;
        // The end of a block device is where a seek to its end goes.
        let end =
            nix::unistd::lseek(&*file, 0, nix::unistd::Whence::SeekEnd).map_err(|e| refused(e.into()))?;
        let size = u64::try_from(end).unwrap_or(0);
        let waker = Waker::new().map_err(refused)?;
        Ok(ReadOnlyDevice { file, size, name, waker, ended: Vec::new() })
    }
}

fn lock(mut file: File) -> Result<Flock<File>, Errno> {
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK)) if start.elapsed() < LOCK_WAIT_MAX => file = back,
            Err((_, errno)) => return Err(errno),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the device is open for reading only")
}

impl Device for ReadOnlyDevice {
    fn size(&self) -> u64 {
        self.size
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn start(&mut self, id: u64, op: Op) {
        let (result, buf): (io::Result<()>, Option<Buf>) = match op {
            Op::Read { offset, mut buf } => (self.read_now(offset, &mut buf), Some(buf)),
            Op::Write { .. } | Op::Discard { .. } | Op::Zero { .. } => (Err(read_only()), None),
        };
        self.ended.push(Completion { id, result, buf });
        self.waker.ring();
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.ended);
    }
    fn in_flight(&self) -> usize {
        self.ended.len()
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_now(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(read_only())
    }
    fn waker(&self) -> &Waker {
        &self.waker
    }
}

impl ReadMany for ReadOnlyDevice {
    fn read_many(&self, places: Vec<(u64, &mut [u8])>) -> Vec<io::Result<()>> {
        let readers = places.len().min(READERS_MAX);
        let mut outcomes: Vec<io::Result<()>> = places.iter().map(|_| Ok(())).collect();
        let jobs = Mutex::new(places.into_iter().zip(&mut outcomes));
        let read = || {
            loop {
                let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(((offset, buf), outcome)) = job else { break };
                *outcome = self.file.read_exact_at(buf, offset);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..readers {
                // Where a thread cannot be had, the others do its share.
                if std::thread::Builder::new().spawn_scoped(scope, read).is_err() {
                    break;
                }
            }
            read();
        });
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_and_does_not_write() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("device");
        std::fs::write(&path, vec![7u8; 8192]).expect("written");
        let mut device = ReadOnlyDevice::open(&path).expect("opens");
        let mut other = ReadOnlyDevice::open(&path).expect("two may read");
        assert_eq!(device.size(), 8192);
        let pool = crate::device::buffer::Pool::new(u64::MAX, 0, None);
        let mut buf = pool.get(4096).expect("memory");
        device.read_now(4096, &mut buf).expect("reads");
        assert!(buf.iter().all(|b| *b == 7));
        assert!(device.write_now(0, &buf).is_err());
        let mut bufs: Vec<_> = (0..40).map(|_| pool.get(4096).expect("memory")).collect();
        let places = (0u64..).zip(&mut bufs).map(|(n, buf)| (n % 3 * 4096, &mut buf[..])).collect();
        let outcomes: Vec<bool> = device.read_many(places).iter().map(Result::is_ok).collect();
        assert_eq!(outcomes, (0..40).map(|n| n % 3 < 2).collect::<Vec<_>>());
        other.start(3, Op::Write { offset: 0, bufs: vec![buf.freeze()], gently: false });
        let mut ended = Vec::new();
        other.completions(&mut ended);
        assert!(matches!(&ended[..], [Completion { id: 3, result: Err(_), .. }]));
        assert!(matches!(ReadOnlyDevice::open(dir.path()), Err(ReadOnlyError::Kind { .. })));
        let gone = dir.path().join("gone");
        assert!(matches!(ReadOnlyDevice::open(&gone), Err(ReadOnlyError::Open { .. })));
    }
}
