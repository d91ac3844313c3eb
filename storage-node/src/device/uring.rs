//! The device on io_uring: one ring, one thread, woken through an eventfd.
//!
//! Completions make the eventfd readable; `submit` is one `io_uring_enter` for everything that was
//! queued, and none when nothing was. `COOP_TASKRUN` keeps the kernel from interrupting the thread;
//! `DEFER_TASKRUN` is not used, because with it nothing completes while the thread sleeps in epoll.
//!
//! Memory: each operation's buffers and iovecs live in a slot of `slots` until its completion has
//! been seen. Dropping the device waits for all of them.

use super::buffer::Buf;
use super::file::RawDevice;
use super::info::DeviceInfo;
use super::latency::{DeviceStats, Kind, Meter, stalled};
use super::prepare::{Job, Preparer};
use super::wake::Waker;
use super::{Completion, Device, Op, PART_BYTES, Prepare};
use bytes::Bytes;
use io_uring::{IoUring, opcode, types};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of the submission queue; as many operations are under way at once, the rest waits here.
const DEPTH: u32 = 256;

struct Slot {
    id: u64,
    offset: u64,
    read: Option<Buf>,
    write: Vec<Bytes>,
    /// Of the part of `write` that is under way.
    iovecs: Vec<libc::iovec>,
    len: usize,
    step: Step,
    begun: Instant,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A read, or a write that is durable when it ends.
    Whole,
    /// A gentle write: the part that begins here is written.
    Part(usize),
    /// A gentle write: all parts are written, and being flushed.
    Flush,
}

impl Slot {
    /// Bytes that the entry under way is to transfer.
    fn wants(&self) -> usize {
        match self.step {
            Step::Whole => self.len,
            Step::Part(at) => PART_BYTES.min(self.len - at),
            Step::Flush => 0,
        }
    }

    /// Where the entry under way begins.
    fn at(&self) -> u64 {
        match self.step {
            Step::Part(at) => self.offset + at as u64,
            Step::Whole | Step::Flush => self.offset,
        }
    }

    /// An entry has ended well. True: another one is to follow.
    fn goes_on(&mut self) -> bool {
        let Step::Part(at) = self.step else { return false };
        let next = at + self.wants();
        if next < self.len {
            self.step = Step::Part(next);
            super::iovecs_of(&self.write, next..next + self.wants(), &mut self.iovecs);
        } else {
            self.step = Step::Flush;
        }
        true
    }
}

/// See the module.
pub struct UringDevice {
    ring: IoUring,
    raw: Arc<RawDevice>,
    preparer: Preparer,
    waker: Waker,
    slots: Slab<Slot>,
    waiting: VecDeque<usize>,
    /// Entries given to the kernel or in the submission queue, less those that have ended.
    started: usize,
    /// There may be entries in the submission queue.
    unsubmitted: bool,
    meter: Meter,
}

impl UringDevice {
    /// Makes a ring and tries it with a no-op: io_uring may be compiled in and still be refused.
    pub fn probe(waker: &Waker) -> io::Result<IoUring> {
        let mut ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_submit_all()
            .build(DEPTH)
            .or_else(|_| IoUring::new(DEPTH))?;
        let nop = opcode::Nop::new().build();
        // SAFETY: a no-op refers to no memory.
        #[allow(unsafe_code)]
        unsafe {
            ring.submission().push(&nop).map_err(|_| io::Error::other("submission queue full"))?;
        }
        ring.submit_and_wait(1)?;
        if ring.completion().next().is_none() {
            return Err(io::Error::other("a no-op did not complete"));
        }
        ring.submitter().register_eventfd(waker.as_raw_fd())?;
        Ok(ring)
    }

    /// A device on a ring that [`UringDevice::probe`] has made with the same waker.
    pub fn new(ring: IoUring, raw: RawDevice, waker: Waker) -> UringDevice {
        let raw = Arc::new(raw);
        UringDevice {
            ring,
            preparer: Preparer::new(raw.clone(), waker.clone()),
            raw,
            waker,
            slots: Slab::new(),
            waiting: VecDeque::new(),
            started: 0,
            unsubmitted: false,
            meter: Meter::new(Instant::now()),
        }
    }

    /// Moves waiting operations into the submission queue.
    fn push(&mut self) {
        while self.started < DEPTH as usize {
            let Some(&key) = self.waiting.front() else {
                return;
            };
            let Some(slot) = self.slots.get_mut(key) else {
                self.waiting.pop_front();
                continue;
            };
            let fd = types::Fd(self.raw.file.as_raw_fd());
            let entry = match &mut slot.read {
                Some(buf) => {
                    opcode::Read::new(fd, buf.as_mut_ptr(), slot.len as u32).offset(slot.offset).build()
                }
                None => match slot.step {
                    // All of the device's cache: a flag on the last part would flush no other one where the
                    // device can write through.
                    Step::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
                    Step::Part(_) => opcode::Writev::new(fd, slot.iovecs.as_ptr(), slot.iovecs.len() as u32)
                        .offset(slot.at())
                        .build(),
                    Step::Whole => opcode::Writev::new(fd, slot.iovecs.as_ptr(), slot.iovecs.len() as u32)
                        .offset(slot.offset)
                        .rw_flags(libc::RWF_DSYNC)
                        .build(),
                },
            }
            .user_data(key as u64);
            // SAFETY: the buffer (a heap region that does not move) and the iovecs (a Vec that is not
            // touched) stay in `slots` until this entry's completion has been taken.
            #[allow(unsafe_code)]
            let pushed = unsafe { self.ring.submission().push(&entry).is_ok() };
            if !pushed {
                return;
            }
            self.waiting.pop_front();
            self.started += 1;
            self.unsubmitted = true;
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut completion = self.ring.completion();
        completion.sync();
        if completion.is_empty() {
            return;
        }
        let now = Instant::now();
        for cqe in completion {
            let key = cqe.user_data() as usize;
            let Some(slot) = self.slots.get_mut(key) else {
                continue;
            };
            self.started -= 1;
            let got = usize::try_from(cqe.result()).map_err(|_| io::Error::from_raw_os_error(-cqe.result()));
            if got.as_ref().is_ok_and(|got| *got == slot.wants()) && slot.goes_on() {
                self.waiting.push_back(key);
                continue;
            }
            let slot = self.slots.remove(key);
            let (what, kind) =
                if slot.read.is_some() { ("read", Kind::Read) } else { ("write", Kind::Write) };
            let result = self.raw.ended(what, slot.at(), slot.wants(), got);
            let took = now.saturating_duration_since(slot.begun);
            self.meter.ended(now, kind, took, slot.len as u64, result.is_ok());
            out.push(Completion { id: slot.id, result, buf: slot.read });
        }
    }

    /// Gives the kernel what is in the submission queue. It may take fewer than there are: it is asked
    /// again as long as it takes any; and when it takes none (out of memory for the moment, completions
    /// to be fetched first) the waker is rung, so that [`Device::completions`], which calls this, is
    /// called even if nothing else ever ends.
    fn enter(&mut self) -> io::Result<()> {
        while self.unsubmitted {
            match self.ring.submit() {
                Ok(taken) => {
                    let left = {
                        let mut queue = self.ring.submission();
                        queue.sync();
                        queue.len()
                    };
                    self.unsubmitted = left > 0;
                    if left > 0 && taken == 0 {
                        self.waker.ring();
                        return Ok(());
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    self.waker.ring();
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn begun(&self) -> impl Iterator<Item = Instant> {
        self.slots.iter().map(|(_, slot)| slot.begun)
    }
}

impl Device for UringDevice {
    fn size(&self) -> u64 {
        self.raw.size
    }
    fn name(&self) -> &str {
        &self.raw.name
    }
    fn start(&mut self, id: u64, op: Op) {
        let begun = Instant::now();
        let slot = match op {
            Op::Read { offset, buf } => {
                let len = buf.len();
                let (write, iovecs) = (Vec::new(), Vec::new());
                Slot { id, offset, len, begun, read: Some(buf), write, iovecs, step: Step::Whole }
            }
            Op::Write { offset, bufs, gently } => {
                let len: usize = bufs.iter().map(Bytes::len).sum();
                let step = if gently && len > PART_BYTES { Step::Part(0) } else { Step::Whole };
                let mut slot =
                    Slot { id, offset, len, begun, read: None, write: bufs, iovecs: Vec::new(), step };
                super::iovecs_of(&slot.write, 0..slot.wants(), &mut slot.iovecs);
                slot
            }
            Op::Discard { offset, len } => {
                return self.preparer.start(Job { id, what: Prepare::Discard, offset, len });
            }
            Op::Zero { offset, len } => {
                return self.preparer.start(Job { id, what: Prepare::Zero, offset, len });
            }
        };
        debug_assert!(slot.write.len() <= super::WRITE_BUFS_MAX);
        let key = self.slots.insert(slot);
        self.waiting.push_back(key);
    }
    fn submit(&mut self) -> io::Result<()> {
        self.push();
        self.enter()
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        self.reap(out);
        self.preparer.completions(out, &mut self.meter);
        // What did not fit before fits now.
        self.push();
        if let Err(error) = self.enter() {
            // `submit` will meet it too, and says so.
            tracing::error!(device = %self.raw.name, %error, "io_uring takes no more operations");
        }
    }
    fn in_flight(&self) -> usize {
        self.slots.len() + self.preparer.in_flight()
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.raw.read_now(offset, buf)
    }
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.raw.write_now(offset, data)
    }
    fn waker(&self) -> &Waker {
        &self.waker
    }
    fn prepare(&self) -> Prepare {
        self.raw.prepare()
    }
    fn info(&self) -> Option<&DeviceInfo> {
        Some(&self.raw.info)
    }
    fn stats(&self) -> DeviceStats {
        self.meter.stats(Instant::now(), self.begun())
    }
    fn stalled(&self) -> Option<Duration> {
        stalled(Instant::now(), self.begun())
    }
}

impl Drop for UringDevice {
    /// The kernel may still write into our buffers: waits until it does not.
    fn drop(&mut self) {
        let mut out = Vec::new();
        self.waiting.clear();
        while self.started > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "io_uring cannot be drained: leaking its buffers");
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
            self.reap(&mut out);
            out.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::buffer::Pool;

    fn device(ring: impl FnOnce(&Waker) -> IoUring) -> (tempfile::NamedTempFile, UringDevice) {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(4 << 20).expect("extended");
        let raw = RawDevice::open(file.path(), false).expect("opens");
        let waker = Waker::new().expect("eventfd");
        let ring = ring(&waker);
        (file, UringDevice::new(ring, raw, waker))
    }

    /// Without SUBMIT_ALL the kernel stops at an entry that it refuses: the ones behind it stay in the
    /// queue, and nothing but us brings them to its attention.
    #[test]
    fn what_the_kernel_has_left_in_the_queue_is_given_again_without_another_operation() {
        let (_file, mut device) = device(|waker| {
            let ring = IoUring::new(DEPTH).expect("a ring");
            ring.submitter().register_eventfd(waker.as_raw_fd()).expect("registered");
            ring
        });
        let bad = opcode::Writev::new(types::Fd(-1), std::ptr::null(), u32::MAX).build().user_data(u64::MAX);
        // SAFETY: the entry is refused before the kernel looks at memory.
        #[allow(unsafe_code)]
        unsafe {
            device.ring.submission().push(&bad).expect("room");
        }
        let pool = Pool::new(1 << 20, 0, None);
        for id in 0..3 {
            let buf = pool.get(4096).expect("room");
            device.start(id, Op::Read { offset: id * 4096, buf });
        }
        device.submit().expect("submitted");
        assert_eq!(device.ring.submission().len(), 0, "the kernel has all of them");
        let mut out = Vec::new();
        while out.len() < 3 {
            device.completions(&mut out);
        }
        assert!(out.iter().all(|c| c.result.is_ok()));
        assert_eq!(device.in_flight(), 0);
    }

    #[test]
    fn more_than_fits_into_the_ring_ends_without_another_submit() {
        let (_file, mut device) = device(|waker| UringDevice::probe(waker).expect("io_uring"));
        let pool = Pool::new(u64::MAX, 0, None);
        let all = u64::from(DEPTH) * 2 + 10;
        for id in 0..all {
            let buf = pool.get(4096).expect("room");
            device.start(id, Op::Read { offset: id % 1024 * 4096, buf });
        }
        device.submit().expect("submitted");
        assert_eq!(device.stats().in_flight as u64, all);
        let mut out = Vec::new();
        while (out.len() as u64) < all {
            device.completions(&mut out);
        }
        let stats = device.stats();
        assert_eq!((stats.reads.ended, stats.reads.bytes, stats.in_flight), (all, all * 4096, 0));
    }
}
