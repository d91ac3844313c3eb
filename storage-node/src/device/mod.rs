//! The device below the store: asynchronous reads and durable writes of aligned ranges.
//!
//! The store's logic knows nothing but the [`Device`] trait, so that the same code runs on io_uring
//! ([`uring`]), on a small pool of threads where io_uring is refused ([`blocking`]), and on a
//! simulated device that loses power after any operation ([`sim`]).
//!
//! Buffers are handed over with the operation and come back with its completion: whoever started an
//! operation cannot touch or free its memory meanwhile.

pub mod blocking;
pub mod buffer;
mod engine;
pub mod error;
pub mod faulty;
pub mod file;
pub mod image;
pub mod info;
pub mod latency;
mod prepare;
pub mod signature;
pub mod sim;
pub mod uring;
pub mod wake;

use buffer::Buf;
use bytes::Bytes;
use info::DeviceInfo;
use latency::DeviceStats;
use std::io;
use std::ops::Range;
use std::time::Duration;
use wake::Waker;

/// An operation. Offsets and lengths are multiples of 4096.
pub enum Op {
    /// Fills `buf` from `offset`.
    Read {
        /// Bytes from the start of the device.
        offset: u64,
        /// Where the bytes go.
        buf: Buf,
    },
    /// Writes the buffers one behind the other; durable when it completes.
    Write {
        /// Bytes from the start of the device.
        offset: u64,
        /// At most [`WRITE_BUFS_MAX`], each aligned.
        bufs: Vec<Bytes>,
        /// Nobody waits for it, and others wait for the device: it goes there in parts of [`PART_BYTES`], one
        /// after the other, and is flushed behind the last one. A device that has been given megabytes at
        /// once lets everything else wait behind them.
        gently: bool,
    },
    /// Tells the device that the range's content is not needed: afterwards it reads as anything. On a
    /// regular file nothing happens: its space stays allocated.
    Discard {
        /// Bytes from the start of the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Overwrites the range with zeros, durably, so that a file's extents are allocated *and* written:
    /// later writes there change no metadata of the file system.
    Zero {
        /// Bytes from the start of the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// What is worth doing to a segment before it is used.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Prepare {
    /// Nothing.
    Nothing,
    /// [`Op::Zero`], once, ahead of the first use of a range that has never been written.
    Zero,
    /// [`Op::Discard`], each time that a range is freed.
    Discard,
}

/// [`Op::Discard`] and [`Op::Zero`] that may wait at once; beyond it they are refused.
pub const PREPARE_QUEUE_MAX: usize = 64;

/// Bytes of a part of a gentle [`Op::Write`], and of what is zeroed at once: a device of 500 MB/s has it in half a
/// millisecond.
pub const PART_BYTES: usize = 256 << 10;

/// Buffers in one write (the kernel's limit is 1024).
pub const WRITE_BUFS_MAX: usize = 512;

/// An operation that has ended.
pub struct Completion {
    /// The number that [`Device::start`] was given.
    pub id: u64,
    /// Done as a whole, or not trusted at all: a short transfer is an error.
    pub result: io::Result<()>,
    /// The buffer of a read.
    pub buf: Option<Buf>,
}

/// What the kernel is told of these bytes of `bufs`, which lie one behind the other.
fn iovecs_of(bufs: &[Bytes], bytes: Range<usize>, iovecs: &mut Vec<libc::iovec>) {
    iovecs.clear();
    iovecs.reserve(bufs.len());
    let mut before = 0;
    for buf in bufs {
        let from = bytes.start.clamp(before, before + buf.len()) - before;
        let to = bytes.end.clamp(before, before + buf.len()) - before;
        if from < to {
            let part = &buf[from..to];
            iovecs.push(libc::iovec { iov_base: part.as_ptr() as *mut libc::c_void, iov_len: part.len() });
        }
        before += buf.len();
    }
}

/// What the store needs of a device. All methods are called from one thread.
pub trait Device {
    /// Bytes.
    fn size(&self) -> u64;
    /// What to call it in messages.
    fn name(&self) -> &str;
    /// Queues an operation. Nothing needs to happen before [`Device::submit`]. Operations may be
    /// carried out in any order. [`Op::Discard`] and [`Op::Zero`] run in the background, one at a time,
    /// and are never ordered with others: whoever starts one sees to it that nothing else touches the
    /// range until it has ended. They are advice: where one fails (also because [`PREPARE_QUEUE_MAX`]
    /// are waiting: `WouldBlock`) the range holds anything and may be used all the same.
    fn start(&mut self, id: u64, op: Op);
    /// Starts what has been queued and fits, with at most one system call.
    fn submit(&mut self) -> io::Result<()>;
    /// Appends the operations that have ended since the last call.
    fn completions(&mut self, out: &mut Vec<Completion>);
    /// Operations that have been started and not been given back by `completions`.
    fn in_flight(&self) -> usize;
    /// Reads at once; for opening. `buf` is aligned.
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes durably at once; for formatting and opening. `data` is aligned.
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Rung when there are completions.
    fn waker(&self) -> &Waker;
    /// What is worth doing to a segment before it is used.
    fn prepare(&self) -> Prepare {
        Prepare::Nothing
    }
    /// What the kernel knows of it; `None` of one that is simulated.
    fn info(&self) -> Option<&DeviceInfo> {
        None
    }
    /// How it is doing. Costs a look at each operation that is under way: for once a second.
    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }
    /// How long the oldest read or write has been under way, where that is [`latency::STALLED`] or longer.
    fn stalled(&self) -> Option<Duration> {
        None
    }
}
