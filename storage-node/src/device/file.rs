//! A file or block device opened for direct I/O, locked against a second process.
//!
//! Two locks: an advisory one on the file (`flock`), which readers share and a store has alone; and for a
//! block device also the kernel's own claim (`O_EXCL`), which no mount, no swap and no other device that is
//! made of it can have at the same time, also where a container has a device node of its own.

use super::Prepare;
use super::buffer::Pool;
use super::error::DeviceError;
use super::info::{self, DevNumber, DeviceInfo, DeviceKind};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use super::engine::{Engine, FileDevice};

/// How long to wait for the locks of a process that may just have been killed: the kernel closes the ring
/// of a killed process, and with it the file, only when the last write of that process has ended. (Were it
/// not so, that write could land after we have read the end of the log.)
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
/// Between two tries.
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// Largest logical block that can be used: the store's own.
const LOGICAL_BLOCK_MAX: u32 = 4096;
/// `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = nix::request_code_none!(0x12, 119) as libc::Ioctl;

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
    /// What is known of it.
    pub info: DeviceInfo,
    read_only: bool,
    name_shared: Arc<str>,
    /// Until a discard has been refused as unknown, or they have been found slow.
    can_discard: AtomicBool,
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
    /// The kernel has given the block device to something else.
    #[error("{path} is in use ({by}): a store needs a device of its own. Nothing was written")]
    Held {
        /// The path.
        path: String,
        /// By what, as far as it can be seen.
        by: String,
    },
    /// Neither a regular file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    Kind {
        /// The path.
        path: String,
    },
    /// Its sectors are too large.
    #[error(
        "{path} has logical blocks of {logical} bytes: a store can use a device with at most \
         {LOGICAL_BLOCK_MAX}. Some disks can be formatted to smaller ones (`nvme format --lbaf`)"
    )]
    LogicalBlock {
        /// The path.
        path: String,
        /// Bytes.
        logical: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Write { create: bool },
    Read,
}

impl RawDevice {
    /// Opens `path` for reading and writing and takes the exclusive lock. `create`: a regular file is
    /// made if there is none.
    pub fn open(path: &Path, create: bool) -> Result<RawDevice, OpenDeviceError> {
        RawDevice::open_as(path, Access::Write { create })
    }

    /// Opens `path` for reading, for tools on a stopped store: any number of them at once, none while a
    /// store runs on it, and no store while they do. ([`OpenDeviceError::Locked`] says so.)
    pub fn open_read_only(path: &Path) -> Result<RawDevice, OpenDeviceError> {
        RawDevice::open_as(path, Access::Read)
    }

    fn open_as(path: &Path, access: Access) -> Result<RawDevice, OpenDeviceError> {
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        let name = path.display().to_string();
        let refused = |source| OpenDeviceError::Open { path: path.display().to_string(), source };
        // Looked at first: opening a pipe would wait, and O_EXCL means something else for a file.
        let block = match std::fs::metadata(path) {
            Ok(meta) if !usable(meta.file_type()) => return Err(OpenDeviceError::Kind { path: name }),
            Ok(meta) => meta.file_type().is_block_device(),
            Err(e) if e.kind() == io::ErrorKind::NotFound && access == (Access::Write { create: true }) => {
                false
            }
            Err(e) => return Err(refused(e)),
        };
        if block && access == Access::Read {
            // The claim is only looked at: two readers could not both keep it.
            drop(claim(path, access, deadline)?);
        }
        let (file, direct) = if block && access != Access::Read {
            (claim(path, access, deadline)?, true)
        } else {
            open_direct(path, access).map_err(refused)?
        };
        let meta = file.metadata().map_err(refused)?;
        if !usable(meta.file_type()) || meta.file_type().is_block_device() != block {
            // Replaced since it was looked at.
            return Err(OpenDeviceError::Kind { path: name });
        }
        let how = match access {
            Access::Write { .. } => FlockArg::LockExclusiveNonblock,
            Access::Read => FlockArg::LockSharedNonblock,
        };
        let file = lock(file, how, deadline).map_err(|errno| {
            if errno == Errno::EWOULDBLOCK {
                OpenDeviceError::Locked { path: name.clone() }
            } else {
                refused(errno.into())
            }
        })?;
        let size = current_size(&file).map_err(refused)?;
        let info = DeviceInfo::read(path, &file, direct, size).map_err(refused)?;
        if let Some(logical) = info.logical_block.filter(|bytes| *bytes > LOGICAL_BLOCK_MAX) {
            return Err(OpenDeviceError::LogicalBlock { path: name, logical });
        }
        Ok(RawDevice {
            file,
            size,
            direct,
            name_shared: name.as_str().into(),
            name,
            read_only: access == Access::Read,
            can_discard: AtomicBool::new(info.discard_granularity > 0),
            info,
        })
    }

    /// True for a block device, false for a regular file.
    pub fn is_block(&self) -> bool {
        self.info.kind == DeviceKind::Block
    }

    /// Reads at once.
    pub fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len() as u64;
        self.file.read_exact_at(buf, offset).map_err(|e| self.located("read", offset, len, e))
    }

    /// Reads up to `buf.len()` bytes: fewer at the end of the device.
    pub(super) fn read_some(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len() as u64;
        self.file.read_at(buf, offset).map_err(|e| self.located("read", offset, len, e))
    }

    /// Writes and makes durable at once.
    pub fn write_now(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)?;
        self.sync()
    }

    /// Writes; durable after [`RawDevice::sync`].
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let written = self.file.write_all_at(data, offset);
        written.map_err(|e| self.located("write", offset, data.len() as u64, e))
    }

    /// Makes what has been written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| self.located("flush", 0, self.size, e))
    }

    /// What is worth doing to a segment before it is used.
    pub fn prepare(&self) -> Prepare {
        match self.info.kind {
            _ if self.read_only => Prepare::Nothing,
            // Without direct I/O there is a page cache to write to, or memory only.
            DeviceKind::File if self.direct => Prepare::Zero,
            DeviceKind::File => Prepare::Nothing,
            DeviceKind::Block if self.can_discard.load(Ordering::Relaxed) => Prepare::Discard,
            DeviceKind::Block => Prepare::Nothing,
        }
    }

    /// Tells a block device that a range's content is not needed. Does nothing to a regular file, whose
    /// space stays allocated.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.is_block() || len == 0 {
            return Ok(());
        }
        let range = [offset, len];
        // SAFETY: the call reads two numbers from `range`, which outlives it.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, &range) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            self.no_more_discards("it does not know them after all");
        }
        Err(self.located("discard", offset, len, error))
    }

    /// From now on [`RawDevice::prepare`] asks for no discards.
    pub(super) fn no_more_discards(&self, why: &str) {
        if self.can_discard.swap(false, Ordering::Relaxed) {
            tracing::warn!(device = %self.name, why, "freed segments are not discarded any more");
        }
    }

    /// An error with its place.
    pub(super) fn located(&self, what: &'static str, offset: u64, len: u64, error: io::Error) -> io::Error {
        let shrunk = current_size(&self.file).ok().filter(|now| *now < self.size && offset + len > *now);
        DeviceError::wrap(&self.name_shared, what, offset, len, shrunk, error)
    }

    /// What a transfer of `want` bytes came to, which the system says moved `got`: a short one is an error.
    pub(super) fn ended(
        &self,
        what: &'static str,
        offset: u64,
        want: usize,
        got: io::Result<usize>,
    ) -> io::Result<()> {
        let error = match got {
            Ok(got) if got == want => return Ok(()),
            Ok(got) => short(what, got, want),
            Err(error) => error,
        };
        Err(self.located(what, offset, want as u64, error))
    }
}

/// The end of a file or block device is where a seek to its end goes. (Nothing here uses the position.)
fn current_size(file: &File) -> io::Result<u64> {
    let end = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekEnd)?;
    u64::try_from(end).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A short write is how a file system says that it is full, and a short read that the file has ended.
fn short(what: &str, got: usize, want: usize) -> io::Error {
    let why = if what == "write" { "no space below the file?" } else { "the end of the device" };
    io::Error::other(format!("only {got} of {want} bytes were transferred ({why})"))
}

fn usable(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

fn open_with(path: &Path, access: Access, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600).custom_flags(flags | libc::O_CLOEXEC);
    if let Access::Write { create } = access {
        options.write(true).create(create).truncate(false);
    }
    options.open(path)
}

/// With direct I/O where the file system has it, and has it for blocks of 4 KiB.
fn open_direct(path: &Path, access: Access) -> io::Result<(File, bool)> {
    let refused = |e: &io::Error| e.raw_os_error() == Some(libc::EINVAL);
    match open_with(path, access, libc::O_DIRECT) {
        Err(e) if refused(&e) => Ok((open_with(path, access, 0)?, false)),
        Err(e) => Err(e),
        Ok(file) => {
            // Some file systems open, and refuse I/O that is not aligned to more than that.
            let mut block = Pool::new(u64::MAX, 0, None).get(LOGICAL_BLOCK_MAX as usize);
            let tried = block.as_mut().map(|buf| file.read_at(buf, 0));
            if matches!(tried, Some(Err(e)) if refused(&e)) {
                return Ok((open_with(path, access, 0)?, false));
            }
            Ok((file, true))
        }
    }
}

/// Opens a block device with the kernel's claim on it.
fn claim(path: &Path, access: Access, deadline: Instant) -> Result<File, OpenDeviceError> {
    let name = || path.display().to_string();
    // A device node that is not there is not made.
    let access = if access == Access::Read { access } else { Access::Write { create: false } };
    loop {
        let error = match open_with(path, access, libc::O_DIRECT | libc::O_EXCL) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(OpenDeviceError::Open { path: name(), source: error });
        }
        let by = std::fs::metadata(path).ok().and_then(|m| info::holder(DevNumber(m.rdev())));
        if let Some(by) = by {
            return Err(OpenDeviceError::Held { path: name(), by });
        }
        if Instant::now() >= deadline {
            // A store has the file's lock too; anything else does not.
            let probe =
                open_with(path, Access::Read, 0).map(|f| Flock::lock(f, FlockArg::LockSharedNonblock));
            if matches!(probe, Ok(Err((_, Errno::EWOULDBLOCK)))) {
                return Err(OpenDeviceError::Locked { path: name() });
            }
            let by = "another program or container has claimed it, or its disk; see `lsblk`, `dmsetup ls`, \
                      `cat /proc/mdstat`";
            return Err(OpenDeviceError::Held { path: name(), by: by.to_owned() });
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

fn lock(mut file: File, how: FlockArg, deadline: Instant) -> Result<Flock<File>, Errno> {
    loop {
        match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
            Err((_, errno)) => return Err(errno),
        }
        std::thread::sleep(LOCK_RETRY);
    }
}
