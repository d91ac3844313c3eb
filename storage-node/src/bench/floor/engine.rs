//! The event loops that are compared: one thread, its sockets and its device, four ways to wait for them.
//!
//! A turn ([`Engine::turn`]) gives the kernel everything that has been queued, waits until there is something,
//! and says what. All four do the same work for the same calls, so that what differs is the waiting alone.
//!
//! On a ring the sends' completions must not wake anybody, or each turn that sends would be followed by one
//! that finds nothing: what is sent is small and the socket takes it at once, so the wait is for one completion
//! more than there are sends. Where a socket is full after all, that one may never come: the send then ends with
//! a part, and the peer says nothing before it has the rest. So a wait that counts on sends is over after
//! [`SEND_WAIT`] in any case, and the next turn sends the rest.
//!
//! Memory: what an operation of the ring uses stays in `conns` and `disk` until its completion was seen.
//! Dropping the engine shuts the sockets down and waits for all of them.

use super::conn::{Conn, Frame, PIECES_MAX};
use super::{Counters, DEPTH_MAX, EventLoop};
use crate::device::buffer::{Buf, Pool};
use crate::device::file::RawDevice;
use crate::device::wake::Waker;
use bytes::Bytes;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Shutdown, shutdown};
use slab::Slab;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Entries of the submission queue.
const ENTRIES: u32 = 256;
/// Entries of the completion queue: all that can be under way.
const COMPLETIONS: u32 = 4 * DEPTH_MAX as u32;
/// How long [`EventLoop::Poll`] looks before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// How long [`EventLoop::Batch`] waits for more than one completion.
const GATHER_US: u32 = 20;
/// How long a wait that counts on sends may last, until it is looked what has become of them.
const SEND_WAIT: Duration = Duration::from_millis(10);
/// Requests under way from which on it does.
const GATHER_FROM: usize = 4;
/// Completions that it waits for at most.
const GATHER_MAX: usize = 16;
/// A send of up to so many bytes is expected to end at once.
const INLINE_SEND_MAX: usize = 64 << 10;
/// Sockets that one wait by epoll tells of.
const READY_MAX: usize = 64;
/// The eventfd's number in epoll; connections have theirs from 0 on.
const DEVICE: u64 = u64::MAX;
/// `linux/io_uring.h`: do not try before the socket is readable.
const POLL_FIRST: u16 = 1;
/// How long a dropped engine waits for what the kernel still has, before it leaks the memory.
const DRAIN_WAIT: Duration = Duration::from_secs(5);
/// How often it looks whether that is over.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// What a turn brings.
pub enum Event {
    /// A frame from a connection.
    Frame(usize, Frame),
    /// A read of the device has ended well.
    Read(u32, Buf),
    /// A write of the device has.
    Written(u32),
    /// The peer of a connection has gone; and why, unless it has just ended.
    Closed(usize, Option<io::Error>),
}

/// Of an entry's `user_data`, above the number of the connection or of the operation.
mod tag {
    pub const RECEIVE: u64 = 0;
    pub const SEND: u64 = 1 << 32;
    pub const DEVICE: u64 = 2 << 32;
    pub const MASK: u64 = 3 << 32;
}

/// What is with the kernel for a connection.
struct Line {
    conn: Conn,
    open: bool,
    receiving: bool,
    /// The last receive has left something in the socket.
    more: bool,
    /// What is being sent, and what describes it to the kernel.
    sending: Vec<Bytes>,
    pieces: Vec<libc::iovec>,
    message: Box<libc::msghdr>,
}

struct DeviceOp {
    id: u32,
    len: usize,
    read: Option<Buf>,
    write: Vec<Bytes>,
    pieces: Vec<libc::iovec>,
}

/// See the module.
pub struct Engine {
    how: EventLoop,
    ring: IoUring,
    /// Of [`EventLoop::Epoll`]. The waker stays as long as the ring rings it.
    epoll: Option<(Epoll, Waker)>,
    lines: Vec<Line>,
    device: Option<RawDevice>,
    ops: Slab<DeviceOp>,
    /// Operations that the ring has.
    under_way: usize,
    /// Entries that were put into the ring since the last turn.
    queued: bool,
    /// Longest wait of a turn.
    wait_max: Option<Duration>,
    pool: Pool,
    counters: Counters,
}

impl Engine {
    /// Without connections yet.
    ///
    /// # Errors
    ///
    /// The kernel has no io_uring for us, or not what this event loop needs.
    pub fn new(how: EventLoop, device: Option<RawDevice>) -> io::Result<Engine> {
        let mut builder = IoUring::builder();
        builder.setup_submit_all().setup_coop_taskrun().setup_cqsize(COMPLETIONS);
        let (ring, epoll) = if how == EventLoop::Epoll {
            let ring = builder.build(ENTRIES)?;
            let (epoll, waker) = (Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, Waker::new()?);
            epoll.add(&waker, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, DEVICE))?;
            ring.submitter().register_eventfd(waker.as_raw_fd())?;
            (ring, Some((epoll, waker)))
        } else {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            (builder.build(ENTRIES)?, None)
        };
        if how == EventLoop::Batch && !ring.params().is_feature_min_timeout() {
            let what = "this kernel cannot wait for several completions for a while (6.12 can)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let (pool, counters) = (Pool::new(u64::MAX, 64 << 20, None), Counters::default());
        let (lines, ops, wait_max) = (Vec::new(), Slab::new(), None);
        Ok(Engine {
            how,
            ring,
            epoll,
            lines,
            device,
            ops,
            under_way: 0,
            queued: false,
            wait_max,
            pool,
            counters,
        })
    }

    /// A turn comes back after so long also with nothing, for a caller that has a clock to look at. (The kernel
    /// sets a timer for it before each sleep; so only the process that measures does it.)
    pub fn wait_at_most(&mut self, wait: Duration) {
        self.wait_max = Some(wait);
    }

    /// Serves a connected, non-blocking stream socket; its number.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub fn add(&mut self, socket: OwnedFd) -> io::Result<usize> {
        if let Some((epoll, _)) = &self.epoll {
            let flags =
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            epoll.add(&socket, EpollEvent::new(flags, self.lines.len() as u64))?;
        }
        self.lines.push(Line {
            conn: Conn::new(socket),
            open: true,
            receiving: false,
            more: true,
            sending: Vec::with_capacity(PIECES_MAX),
            pieces: Vec::with_capacity(PIECES_MAX),
            message: empty_message(),
        });
        Ok(self.lines.len() - 1)
    }

    /// Aligned memory.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn buffer(&self, len: usize) -> io::Result<Buf> {
        self.pool.get(len).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// What it has counted. The processor time is not its business.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Queues bytes for a connection. Whoever calls it bounds them, by the requests that may be under way.
    pub fn send(&mut self, to: usize, bytes: Bytes) {
        if let Some(line) = self.lines.get_mut(to).filter(|line| line.open) {
            line.conn.out.push_back(bytes);
        }
    }

    /// Sends what is queued for a line without waiting for the next turn, as far as the socket takes it. For
    /// an engine on epoll.
    ///
    /// # Errors
    ///
    /// The line cannot be written to.
    pub fn send_now(&mut self, to: usize) -> io::Result<()> {
        self.write_out(to)
    }

    /// Queues a frame for a connection.
    pub fn forward(&mut self, to: usize, frame: &Frame) {
        self.send(to, frame.bytes.clone());
        if let Some(large) = &frame.large {
            self.send(to, large.clone());
        }
    }

    /// Queues a read of the device into `buf`.
    ///
    /// # Errors
    ///
    /// There is no device, or the kernel takes nothing more.
    pub fn read(&mut self, id: u32, offset: u64, buf: Buf) -> io::Result<()> {
        let op = DeviceOp { id, len: buf.len(), read: Some(buf), write: Vec::new(), pieces: Vec::new() };
        self.start(offset, op)
    }

    /// Queues a durable write of aligned memory.
    ///
    /// # Errors
    ///
    /// There is no device, or the kernel takes nothing more.
    pub fn write(&mut self, id: u32, offset: u64, write: Vec<Bytes>) -> io::Result<()> {
        let pieces = write.iter().map(piece).collect();
        let len = write.iter().map(Bytes::len).sum();
        self.start(offset, DeviceOp { id, len, read: None, write, pieces })
    }

    fn start(&mut self, offset: u64, op: DeviceOp) -> io::Result<()> {
        let device = self.device.as_ref().ok_or_else(|| io::Error::other("there is no device"))?;
        let fd = types::Fd(device.file.as_raw_fd());
        let key = self.ops.insert(op);
        let op = &mut self.ops[key];
        let entry = match &mut op.read {
            Some(buf) => opcode::Read::new(fd, buf.as_mut_ptr(), op.len as u32).offset(offset).build(),
            None => opcode::Writev::new(fd, op.pieces.as_ptr(), op.pieces.len() as u32)
                .offset(offset)
                .rw_flags(libc::RWF_DSYNC)
                .build(),
        };
        self.counters.device_ops += 1;
        self.push(entry.user_data(tag::DEVICE | key as u64))
    }

    /// Puts an entry into the ring. What it refers to stays where it is until its completion was seen.
    #[allow(unsafe_code)]
    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: each caller keeps the entry's memory in `lines` or `ops` until `reap` has taken its
        // completion: the heap regions of buffers, of vectors that are not touched, and of the boxed message.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.counters.syscalls += 1;
            self.ring.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        self.under_way += 1;
        self.queued = true;
        Ok(())
    }

    /// Gives the kernel what is queued and waits. `requests`: how many the process is at work on. It may come
    /// back without an event.
    ///
    /// # Errors
    ///
    /// The kernel, a device operation that failed or was short, or a peer that sends nonsense.
    pub fn turn(&mut self, requests: usize, events: &mut Vec<Event>) -> io::Result<()> {
        match self.how {
            EventLoop::Epoll => self.turn_epoll(events)?,
            _ => self.turn_ring(requests, events)?,
        }
        self.counters.turns += u64::from(!events.is_empty());
        Ok(())
    }

    fn turn_epoll(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        for at in 0..self.lines.len() {
            self.write_out(at)?;
        }
        if std::mem::take(&mut self.queued) {
            self.counters.syscalls += 1;
            self.ring.submit()?;
        }
        let Some((epoll, _)) = &self.epoll else {
            return Ok(());
        };
        let mut ready = [EpollEvent::empty(); READY_MAX];
        self.counters.syscalls += 1;
        let wait = self.wait_max.map_or(Ok(EpollTimeout::NONE), EpollTimeout::try_from);
        let n = match epoll.wait(&mut ready, wait.unwrap_or(EpollTimeout::MAX)) {
            Err(nix::errno::Errno::EINTR) => 0,
            n => n?,
        };
        for event in &ready[..n] {
            match event.data() {
                DEVICE => self.reap(events).map(drop)?,
                at => {
                    let gone = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                    if event.events().intersects(gone | EpollFlags::EPOLLIN) {
                        self.read_in(at as usize, event.events().intersects(gone), events)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Until the socket takes no more: then epoll says when it does again.
    fn write_out(&mut self, at: usize) -> io::Result<()> {
        let conn = &mut self.lines[at].conn;
        while !conn.out.is_empty() {
            let pieces: Vec<IoSlice> = conn.out.iter().take(PIECES_MAX).map(|b| IoSlice::new(b)).collect();
            self.counters.syscalls += 1;
            match nix::sys::uio::writev(&conn.socket, &pieces) {
                Ok(n) => conn.sent(n),
                Err(nix::errno::Errno::EAGAIN) => break,
                // Reading says that it has gone.
                Err(nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET) => conn.out.clear(),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Until a read is short, which means that the socket is empty; or the end was seen, where it is known to
    /// have come.
    fn read_in(&mut self, at: usize, to_end: bool, events: &mut Vec<Event>) -> io::Result<()> {
        loop {
            let line = &mut self.lines[at];
            if !line.open {
                return Ok(());
            }
            let (room, len, _) = line.conn.room();
            self.counters.syscalls += 1;
            // SAFETY: `room` is `len` bytes that are the connection's own and not looked at meanwhile.
            #[allow(unsafe_code)]
            let n = unsafe { libc::recv(line.conn.socket.as_raw_fd(), room.cast(), len, 0) };
            let Ok(n) = usize::try_from(n) else {
                match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => {
                        self.closed(at, Some(e), events);
                        return Ok(());
                    }
                }
            };
            if n == 0 {
                self.closed(at, None, events);
                return Ok(());
            }
            self.arrived(at, n, events)?;
            if n < len && !to_end {
                return Ok(());
            }
        }
    }

    fn closed(&mut self, at: usize, why: Option<io::Error>, events: &mut Vec<Event>) {
        let line = &mut self.lines[at];
        if std::mem::replace(&mut line.open, false) {
            line.conn.out.clear();
            // A peer that ends before it has read everything resets its connection.
            let ended = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            events.push(Event::Closed(at, why.filter(|why| !ended.contains(&why.kind()))));
        }
    }

    fn arrived(&mut self, at: usize, n: usize, events: &mut Vec<Event>) -> io::Result<()> {
        let conn = &mut self.lines[at].conn;
        // SAFETY: the kernel says that it has written `n` bytes to the room that it was given.
        #[allow(unsafe_code)]
        unsafe {
            conn.received(n);
        }
        while let Some(frame) = conn.next(&self.pool)? {
            events.push(Event::Frame(at, frame));
        }
        Ok(())
    }

    fn turn_ring(&mut self, requests: usize, events: &mut Vec<Event>) -> io::Result<()> {
        let mut sends = 0;
        for at in 0..self.lines.len() {
            sends += usize::from(self.queue_send(at)?);
            self.queue_receive(at)?;
        }
        match self.how {
            EventLoop::Poll => return self.look(events),
            EventLoop::Batch if requests >= GATHER_FROM => {
                let wanted = sends + (requests / 2).min(GATHER_MAX);
                // Without a limit the kernel would come back after the moment although nothing has come.
                let limit = types::Timespec::from(self.send_wait());
                let args = types::SubmitArgs::new().min_wait_usec(GATHER_US).timespec(&limit);
                let entered = self.ring.submitter().submit_with_args(wanted, &args);
                self.entered(entered)?;
            }
            _ if sends > 0 => self.enter(sends + 1, Some(self.send_wait()))?,
            _ => self.enter(1, self.wait_max)?,
        }
        self.reap(events).map(drop)
    }

    fn send_wait(&self) -> Duration {
        self.wait_max.map_or(SEND_WAIT, |wait| wait.min(SEND_WAIT))
    }

    fn enter(&mut self, wanted: usize, wait: Option<Duration>) -> io::Result<()> {
        let entered = match wait {
            Some(wait) if wanted > 0 => self
                .ring
                .submitter()
                .submit_with_args(wanted, &types::SubmitArgs::new().timespec(&types::Timespec::from(wait))),
            _ => self.ring.submit_and_wait(wanted),
        };
        self.entered(entered)
    }

    fn entered(&mut self, result: io::Result<usize>) -> io::Result<()> {
        self.counters.syscalls += 1;
        self.queued = false;
        match result {
            // It is tried again in the next turn, after the completions have been taken.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME)
                ) =>
            {
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }

    /// Looks until something comes or [`SPIN`] is over, and then sleeps.
    fn look(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        if self.queued {
            self.enter(0, None)?;
        }
        let until = Instant::now() + SPIN;
        loop {
            // Also one without an event: the rest of a frame is to be received, or more to be sent.
            if self.reap(events)? > 0 {
                return Ok(());
            }
            // The kernel has something that it finishes only when it is entered.
            let (work, lost) = {
                let queue = self.ring.submission();
                (queue.taskrun(), queue.cq_overflow())
            };
            if work || lost {
                self.enter(0, None)?;
            } else if Instant::now() < until {
                self.counters.syscalls += 1;
                std::thread::yield_now();
            } else {
                self.enter(1, self.wait_max)?;
                return self.reap(events).map(drop);
            }
        }
    }

    /// True if one was queued that is expected to end at once.
    fn queue_send(&mut self, at: usize) -> io::Result<bool> {
        let line = &mut self.lines[at];
        if line.conn.out.is_empty() || !line.sending.is_empty() {
            return Ok(false);
        }
        let n = line.conn.out.len().min(PIECES_MAX);
        line.sending.extend(line.conn.out.drain(..n));
        line.pieces.clear();
        line.pieces.extend(line.sending.iter().map(piece));
        let bytes: usize = line.sending.iter().map(Bytes::len).sum();
        let (fd, flags) = (types::Fd(line.conn.socket.as_raw_fd()), libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
        let entry = match &line.sending[..] {
            [one] => opcode::Send::new(fd, one.as_ptr(), one.len() as u32).flags(flags).build(),
            _ => {
                line.message.msg_iov = line.pieces.as_mut_ptr();
                line.message.msg_iovlen = line.pieces.len() as _;
                opcode::SendMsg::new(fd, &*line.message).flags(flags as u32).build()
            }
        };
        self.push(entry.user_data(tag::SEND | at as u64))?;
        Ok(bytes <= INLINE_SEND_MAX)
    }

    fn queue_receive(&mut self, at: usize) -> io::Result<()> {
        let line = &mut self.lines[at];
        if !line.open || line.receiving {
            return Ok(());
        }
        let (room, len, whole) = line.conn.room();
        let flags = if whole { libc::MSG_WAITALL } else { 0 };
        // An empty socket is not tried in vain.
        let first = if line.more { 0 } else { POLL_FIRST };
        let fd = types::Fd(line.conn.socket.as_raw_fd());
        let entry = opcode::Recv::new(fd, room, len as u32).flags(flags).ioprio(first).build();
        line.receiving = true;
        self.push(entry.user_data(tag::RECEIVE | at as u64))
    }

    /// Takes all completions; how many there were.
    fn reap(&mut self, events: &mut Vec<Event>) -> io::Result<usize> {
        for taken in 0.. {
            let next = self.ring.completion().next();
            let Some(completion) = next else {
                return Ok(taken);
            };
            self.under_way -= 1;
            let key = (completion.user_data() & !tag::MASK) as usize;
            let result = usize::try_from(completion.result())
                .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
            match completion.user_data() & tag::MASK {
                tag::RECEIVE => self.received(key, result, completion.flags(), events)?,
                tag::SEND => self.sent(key, result, events),
                _ => self.device_ended(key, result, events)?,
            }
        }
        Ok(usize::MAX)
    }

    fn received(
        &mut self,
        at: usize,
        result: io::Result<usize>,
        flags: u32,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let line = &mut self.lines[at];
        line.receiving = false;
        line.more = cqueue::sock_nonempty(flags);
        match result {
            Ok(n) if n > 0 => self.arrived(at, n, events),
            Err(e) if for_now(&e) => Ok(()),
            result => {
                self.closed(at, result.err(), events);
                Ok(())
            }
        }
    }

    /// What was not sent is sent again. Also with MSG_WAITALL a send can be short: one that had to wait for room
    /// often goes to a worker of the kernel in the end, and that gives up when it is interrupted.
    fn sent(&mut self, at: usize, result: io::Result<usize>, events: &mut Vec<Event>) {
        let line = &mut self.lines[at];
        let sent = match result {
            Ok(n) => n,
            Err(e) if for_now(&e) => 0,
            Err(e) => {
                line.sending.clear();
                self.closed(at, Some(e), events);
                return;
            }
        };
        let wanted: usize = line.sending.iter().map(Bytes::len).sum();
        let mut rest = wanted.saturating_sub(sent);
        while let Some(bytes) = line.sending.pop() {
            let n = rest.min(bytes.len());
            if n > 0 && line.open {
                line.conn.out.push_front(bytes.slice(bytes.len() - n..));
            }
            rest -= n;
        }
    }

    fn device_ended(
        &mut self,
        key: usize,
        result: io::Result<usize>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let Some(op) = self.ops.try_remove(key) else {
            return Ok(());
        };
        if result? != op.len {
            return Err(io::Error::other("the device has done a part only"));
        }
        events.push(match op.read {
            Some(buf) => Event::Read(op.id, buf),
            None => Event::Written(op.id),
        });
        drop(op.write);
        Ok(())
    }
}

impl Drop for Engine {
    /// The kernel may still use our buffers: waits until it does not.
    fn drop(&mut self) {
        for line in &self.lines {
            // Ends what is under way there. An error means that it has ended.
            let _ = shutdown(line.conn.socket.as_fd().as_raw_fd(), Shutdown::Both);
        }
        let mut events = Vec::new();
        let (begun, look) = (Instant::now(), types::Timespec::from(DRAIN_LOOK));
        while self.under_way > 0 {
            let over = |e: &io::Error| !matches!(e.raw_os_error(), Some(libc::EINTR | libc::ETIME));
            let waited = self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&look));
            if begun.elapsed() > DRAIN_WAIT || waited.is_err_and(|e| over(&e)) {
                tracing::error!("io_uring cannot be drained: leaking its buffers");
                std::mem::forget((std::mem::take(&mut self.lines), std::mem::take(&mut self.ops)));
                return;
            }
            // What fails now fails for everybody.
            let _ = self.reap(&mut events);
            events.clear();
        }
    }
}

/// It has not failed: it is to be tried again.
fn for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn piece(bytes: &Bytes) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr() as *mut libc::c_void, iov_len: bytes.len() }
}

#[allow(unsafe_code)]
fn empty_message() -> Box<libc::msghdr> {
    // SAFETY: numbers and pointers, for which zero is a value: no name, no pieces, no control data.
    Box::new(unsafe { std::mem::zeroed() })
}

#[cfg(test)]
mod tests;
