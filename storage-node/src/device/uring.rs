//! The device on io_uring: one ring, one thread, woken through an eventfd.
//!
//! Completions make the eventfd readable; `submit` is one `io_uring_enter` for everything that was
//! queued, and none when nothing was. `COOP_TASKRUN` keeps the kernel from interrupting the thread;
//! `DEFER_TASKRUN` is not used, because with it nothing completes while the thread sleeps in epoll.
//!
//! Memory: each operation's buffers and iovecs live in a slot of `slots` until its completion has
//! been seen. Dropping the device waits for all of them.

use super::buffer::Buf;
use super::file::{RawDevice, ended, whole};
use super::prepare::{Job, Preparer};
use super::wake::Waker;
use super::{Completion, Device, Op, Prepare};
use bytes::Bytes;
use io_uring::{IoUring, opcode, types};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Entries of the submission queue; as many operations are under way at once, the rest waits here.
const DEPTH: u32 = 256;

struct Slot {
    id: u64,
    offset: u64,
    read: Option<Buf>,
    write: Vec<Bytes>,
    iovecs: Vec<libc::iovec>,
    len: usize,
}

/// See the module.
pub struct UringDevice {
    ring: IoUring,
    raw: Arc<RawDevice>,
    preparer: Preparer,
    waker: Waker,
    slots: Slab<Slot>,
    waiting: VecDeque<usize>,
    started: usize,
    unsubmitted: bool,
}

impl UringDevice {
    /// Makes a ring and tries it with a no-op: io_uring may be compiled in and still be refused.
    pub fn probe(waker: &Waker) -> io::Result<IoUring> {
        let mut ring =
            IoUring::builder().setup_coop_taskrun().build(DEPTH).or_else(|_| IoUring::new(DEPTH))?;
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
                None => opcode::Writev::new(fd, slot.iovecs.as_ptr(), slot.iovecs.len() as u32)
                    .offset(slot.offset)
                    .rw_flags(libc::RWF_DSYNC)
                    .build(),
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
        for cqe in completion {
            let key = cqe.user_data() as usize;
            let Some(slot) = self.slots.try_remove(key) else {
                continue;
            };
            self.started -= 1;
            let result = match cqe.result() {
                n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
                n => whole(n as usize, slot.len),
            };
            out.push(ended(slot.id, result, slot.read));
        }
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
        let slot = match op {
            Op::Read { offset, buf } => {
                Slot { id, offset, len: buf.len(), read: Some(buf), write: Vec::new(), iovecs: Vec::new() }
            }
            Op::Write { offset, bufs } => Slot {
                id,
                offset,
                len: bufs.iter().map(Bytes::len).sum(),
                read: None,
                iovecs: bufs
                    .iter()
                    .map(|b| libc::iovec { iov_base: b.as_ptr() as *mut libc::c_void, iov_len: b.len() })
                    .collect(),
                write: bufs,
            },
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
        if !self.unsubmitted {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(_) => {
                self.unsubmitted = false;
                Ok(())
            }
            // Out of resources for the moment, or interrupted: tried again at the next call, which
            // the ring of the eventfd brings about.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR)) => {
                self.waker.ring();
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        self.reap(out);
        self.preparer.completions(out);
        self.push();
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
