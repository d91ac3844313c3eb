//! The device of a running store: io_uring where the kernel allows it, threads where not.

use super::blocking::BlockingDevice;
use super::file::RawDevice;
use super::info::DeviceInfo;
use super::latency::DeviceStats;
use super::uring::UringDevice;
use super::wake::Waker;
use super::{Completion, Device, Op, Prepare};
use std::io;
use std::time::Duration;

/// The device of a running store: io_uring where the kernel allows it, threads where not.
pub enum FileDevice {
    /// io_uring.
    Uring(Box<UringDevice>),
    /// The fallback.
    Blocking(Box<BlockingDevice>),
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
            return Ok(FileDevice::Blocking(Box::new(BlockingDevice::new(raw, waker)?)));
        }
        match UringDevice::probe(&waker) {
            Ok(ring) => Ok(FileDevice::Uring(Box::new(UringDevice::new(ring, raw, waker)))),
            Err(error) => {
                tracing::warn!(
                    device = %raw.name, %error,
                    "io_uring is refused here (seccomp, kernel.io_uring_disabled or an old kernel): \
                     falling back to pread and pwrite on a few threads, which costs more CPU"
                );
                Ok(FileDevice::Blocking(Box::new(BlockingDevice::new(raw, waker)?)))
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
    fn info(&self) -> Option<&DeviceInfo> {
        both!(self, d => d.info())
    }
    fn stats(&self) -> DeviceStats {
        both!(self, d => d.stats())
    }
    fn stalled(&self) -> Option<Duration> {
        both!(self, d => d.stalled())
    }
}
