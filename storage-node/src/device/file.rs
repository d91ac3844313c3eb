//! A file or block device opened for direct I/O, locked against a second process.

use super::buffer::Buf;
use super::uring::UringDevice;
use super::wake::Waker;
use super::{Completion, Device, Op, Prepare, blocking::BlockingDevice};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait for the lock of a process that may just have been killed.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// An open, locked device.
pub struct RawDevice {
    /// The descriptor, with O_DIRECT where the file system has it.
    pub file: Flock<File>,
    /// Bytes.
    pub size: u64,
    /// False where the file system refused O_DIRECT (tmpfs): the page cache is in between.
    pub direct: bool,
    /// The path, for messages.
    pub name: String,
    /// A block device, not a regular file.
    pub is_block: bool,
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDeviceError {
    /// The system refused.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The path.
        path: String,
        /// The system's word.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("{path} is in use by another process (it holds the lock): stop that one first")]
    Locked {
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

impl RawDevice {
    /// Opens `path` for reading and writing and takes the exclusive lock. `create`: a regular file is
    /// made if there is none.
    pub fn open(path: &Path, create: bool) -> Result<RawDevice, OpenDeviceError> {
        let name = path.display().to_string();
        let refused = |source| OpenDeviceError::Open { path: path.display().to_string(), source };
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(create)
                .truncate(false)
                .mode(0o600)
                .custom_flags(flags)
                .open(path)
        };
        let (file, direct) = match open(libc::O_DIRECT | libc::O_CLOEXEC) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                (open(libc::O_CLOEXEC).map_err(refused)?, false)
            }
            other => (other.map_err(refused)?, true),
        };
        let meta = file.metadata().map_err(refused)?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenDeviceError::Kind { path: name });
        }
        let file = lock(file).map_err(|errno| {
            if errno == Errno::EWOULDBLOCK {
                OpenDeviceError::Locked { path: name.clone() }
            } else {
                refused(errno.into())
            }
        })?;
        let size = if kind.is_file() {
            meta.len()
        } else {
            // The end of a block device is where a seek to its end goes.
            nix::unistd::lseek(&*file, 0, nix::unistd::Whence::SeekEnd).map_err(|e| refused(e.into()))? as u64
        };
        Ok(RawDevice { file, size, direct, name, is_block: kind.is_block_device() })
    }

    /// Reads at once.
    pub fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Writes; durable with the next sync.
    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// What is worth doing to a segment before it is used.
    pub fn prepare(&self) -> Prepare {
        if self.is_block { Prepare::Discard } else { Prepare::Zero }
    }

    /// Tells a block device that a range's content is not needed. Does nothing to a regular file.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.is_block {
            return Ok(());
        }
        let range = [offset, len];
        // SAFETY: the call reads two numbers from `range`, which outlives it.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, &range) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Writes and makes durable at once.
    pub fn write_now(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)?;
        self.file.sync_data()
    }
}

/// Takes the lock, waiting a little: the kernel closes the ring of a killed process, and with it the
/// file, only when the last write of that process has ended. (Were it not so, that write could land
/// after we have read the end of the log.)
fn lock(mut file: File) -> Result<Flock<File>, Errno> {
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK)) if start.elapsed() < LOCK_WAIT_MAX => file = back,
            Err((_, errno)) => return Err(errno),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The device of a running store: io_uring where the kernel allows it, threads where not.
pub enum FileDevice {
    /// io_uring.
    Uring(Box<UringDevice>),
    /// The fallback.
    Blocking(BlockingDevice),
}

/// Whether to use io_uring.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring if it works, else threads, and a line in the log that says so.
    #[default]
    Auto,
    /// Threads only.
    Blocking,
}

impl FileDevice {
    /// Puts an engine on the device.
    pub fn new(raw: RawDevice, engine: Engine) -> io::Result<FileDevice> {
        let waker = Waker::new()?;
        if engine == Engine::Blocking {
            return Ok(FileDevice::Blocking(BlockingDevice::new(raw, waker)?));
        }
        match UringDevice::probe(&waker) {
            Ok(ring) => Ok(FileDevice::Uring(Box::new(UringDevice::new(ring, raw, waker)))),
            Err(error) => {
                tracing::warn!(
                    device = %raw.name, %error,
                    "io_uring is refused here (seccomp, kernel.io_uring_disabled or an old kernel): \
                     falling back to pread and pwrite on a few threads, which costs more CPU"
                );
                Ok(FileDevice::Blocking(BlockingDevice::new(raw, waker)?))
            }
        }
    }

    /// True on io_uring.
    pub fn is_uring(&self) -> bool {
        matches!(self, FileDevice::Uring(_))
    }
}

macro_rules! both {
    ($self:ident, $d:ident => $e:expr) => {
        match $self {
            FileDevice::Uring($d) => $e,
            FileDevice::Blocking($d) => $e,
        }
    };
}

impl Device for FileDevice {
    fn size(&self) -> u64 {
        both!(self, d => d.size())
    }
    fn name(&self) -> &str {
        both!(self, d => d.name())
    }
    fn start(&mut self, id: u64, op: Op) {
        both!(self, d => d.start(id, op))
    }
    fn submit(&mut self) -> io::Result<()> {
        both!(self, d => d.submit())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        both!(self, d => d.completions(out))
    }
    fn in_flight(&self) -> usize {
        both!(self, d => d.in_flight())
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        both!(self, d => d.read_now(offset, buf))
    }
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        both!(self, d => d.write_now(offset, data))
    }
    fn waker(&self) -> &Waker {
        both!(self, d => d.waker())
    }
    fn prepare(&self) -> Prepare {
        both!(self, d => d.prepare())
    }
}

/// The result of a read with its buffer, as both engines hand it back.
pub(super) fn ended(id: u64, result: io::Result<()>, buf: Option<Buf>) -> Completion {
    Completion { id, result, buf }
}

/// A transfer of `got` of `want` bytes: short ones are errors, and say so.
pub(super) fn whole(got: usize, want: usize) -> io::Result<()> {
    if got == want {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "short transfer: {got} of {want} bytes (end of device, or no space below the file?)"
        )))
    }
}
