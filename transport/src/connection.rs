//! One connection after its handshake: a reader that hands over batches, a queue that never waits.
//!
//! **Reading.** [`Reader::read_batch`] makes one `read` into a large buffer and cuts out every frame
//! that has come. Frames share that buffer; it goes back into a small pool and is used again when all
//! of its frames are dropped, from its beginning. A large payload is read into aligned memory of its own.
//! [`Reader::ready`] and [`Reader::try_batch`] are its two halves, for a caller that has something to decide
//! in between.
//!
//! **Writing.** [`Sender::push`] encodes a header and a message into an arena and keeps the payload as
//! it is; nothing is written. [`Sender::flush`] hands all of it to the kernel with as few `writev` as
//! possible. What the socket does not take is written by the connection's writer task once it is
//! writable; pushes meanwhile join the same queue, so order is kept. The queue is counted, and a peer
//! that lets it fill is cut off: waiting for one slow peer is what Trefoil must never do.
//!
//! A connection ends when its `Reader` is dropped, when the peer closes it, or on the first error.
//! From then on pushes fail and `read_batch` says why.

use crate::aligned::Aligned;
use crate::stream::Stream;
use bytes::{Buf, Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use trefoil_core::limits::{NODE_BACKLOG_BYTES_MAX, NODE_BACKLOG_OPS_MAX};
use trefoil_core::wire::frame::{self, Decoder, Frame, FrameError, Head};

/// Bytes queued for one peer, where [`Options`] does not say otherwise.
pub const QUEUE_BYTES_MAX: usize = NODE_BACKLOG_BYTES_MAX as usize;
/// Frames queued for one peer, where [`Options`] does not say otherwise.
pub const QUEUE_FRAMES_MAX: usize = NODE_BACKLOG_OPS_MAX;

/// Bytes that one `read` may bring.
const READ_BUFFER: usize = 256 << 10;
/// When less room than this is left behind what has come, the next buffer is taken.
const READ_ROOM_MIN: usize = 16 << 10;
/// Buffers that were made for a larger frame than an operation's (1 MiB) are not used again.
const READ_BUFFER_KEPT: usize = 2 << 20;
/// Read buffers that wait for their frames to be dropped, per connection. More are left to the
/// allocator.
const READ_POOL: usize = 8;
/// A payload of at least so many bytes is read into aligned memory of its own, which a device can be given
/// as it is.
const LARGE_PAYLOAD: usize = 32 << 10;
/// Behind a large payload the next frame is likely large, too: so much is read of it until that is known.
/// The head of a frame of 1 MiB fits.
const LARGE_HEAD: usize = 4 << 10;
/// Bytes of the arena that headers and messages are encoded into.
const ARENA: usize = 64 << 10;
/// A run of small frames is closed at this length, so that what the kernel has taken can be freed.
const ARENA_RUN_MAX: usize = 32 << 10;
/// Slices in one `writev`. The kernel's limit (IOV_MAX) is 1024; setting up fewer is cheaper, and
/// [`Sender::flush`] goes on when all of them were taken.
const IOVECS: usize = 256;

/// A peer that has not acknowledged what we sent for this long is gone (TCP_USER_TIMEOUT). I/O does
/// not wait for it: a majority goes on meanwhile.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

/// Who is at the other end, for people.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Its address.
    Tcp(SocketAddr),
    /// A process of this host, at the other end of a unix socket; none if the kernel does not say which.
    Local(Option<i32>),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Local(Some(pid)) => write!(f, "process {pid} of this host"),
            Peer::Local(None) => f.write_str("a process of this host"),
        }
    }
}

/// Limits of a connection.
#[derive(Copy, Clone, Debug)]
pub struct Options {
    /// Bytes (headers, messages, payloads) that may wait for the peer.
    pub queue_bytes_max: usize,
    /// Frames that may wait for the peer.
    pub queue_frames_max: usize,
    /// A daemon of this host is reached through its unix socket ([`crate::connect`] only).
    pub local: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { queue_bytes_max: QUEUE_BYTES_MAX, queue_frames_max: QUEUE_FRAMES_MAX, local: true }
    }
}

/// Why a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The other side closed it, between two frames or in the middle of one.
    #[error("closed by the peer")]
    Peer,
    /// This side closed it.
    #[error("closed on this side: {0}")]
    Local(&'static str),
    /// The peer did not take what was queued for it.
    #[error("the peer fell behind: {bytes} bytes in {frames} frames were waiting for it")]
    Laggard {
        /// Bytes that were waiting.
        bytes: usize,
        /// Frames that were waiting.
        frames: usize,
    },
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(io::ErrorKind),
    /// The peer sent something that is no frame.
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
}

/// Why nothing more can be read: why the connection is closed.
pub type ReadError = CloseReason;

/// Why a frame was not queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection was closed before.
    #[error("not sent: {0}")]
    Closed(CloseReason),
    /// The queue is full. The connection is closed from now on.
    #[error("not sent, connection closed: the peer fell behind by {bytes} bytes in {frames} frames")]
    Laggard {
        /// Bytes that were waiting.
        bytes: usize,
        /// Frames that were waiting.
        frames: usize,
    },
    /// The frame is over the limit; the connection goes on without it.
    #[error("not sent: {0}")]
    TooLong(FrameError),
}

/// What waits to be written. Bytes that a part shares with others stay allocated until it is written,
/// so `bytes` bounds the memory only up to the sharers; those are bounded where they come from.
struct Queue {
    parts: VecDeque<Part>,
    /// Bytes of the first part that the kernel has taken.
    taken: usize,
    bytes: usize,
    frames: usize,
    /// Headers and messages that are not in `parts` yet: a run of whole frames without payload, so that
    /// many small frames are one slice.
    arena: BytesMut,
    arena_frames: usize,
    /// Payload pieces of the frame being pushed; kept for its memory.
    scratch: Vec<Bytes>,
    closed: Option<CloseReason>,
}

struct Part {
    bytes: Bytes,
    /// Frames that end with this part.
    frames: usize,
}

struct Inner {
    stream: Stream,
    peer: Peer,
    options: Options,
    queue: RefCell<Queue>,
    /// Something is left for the writer task, or the connection is closed.
    wake: Notify,
    /// The queue has become empty, or the connection is closed.
    drained: Notify,
}

/// The sending side; clones share one queue. Closed with the [`Reader`].
#[derive(Clone)]
pub struct Sender {
    inner: Rc<Inner>,
}

/// The receiving side. Dropping it closes the connection.
pub struct Reader {
    inner: Rc<Inner>,
    decoder: Decoder,
    buffer: BytesMut,
    /// Bytes that `buffer` had when it was taken.
    capacity: usize,
    /// Empty handles to buffers whose frames may still be in use.
    pool: VecDeque<BytesMut>,
    /// A frame whose large payload has begun to come.
    large: Option<(Head, Aligned)>,
    /// The last frame was a large one.
    after_large: bool,
    /// Nothing has been read yet, and the handshake may have read too much.
    left_over: bool,
}

/// Sets what every connection needs and starts its writer task; `buffer` is what the handshake has
/// read too much. Must be called within a `LocalSet`.
pub(crate) fn split(stream: Stream, peer: Peer, options: Options, buffer: BytesMut) -> (Reader, Sender) {
    let inner = Rc::new(Inner {
        stream,
        peer,
        options,
        queue: RefCell::new(Queue {
            parts: VecDeque::new(),
            taken: 0,
            bytes: 0,
            frames: 0,
            arena: BytesMut::new(),
            arena_frames: 0,
            scratch: Vec::new(),
            closed: None,
        }),
        wake: Notify::new(),
        drained: Notify::new(),
    });
    tokio::task::spawn_local(write_rest(inner.clone()));
    let reader = Reader {
        inner: inner.clone(),
        decoder: Decoder::new(),
        capacity: buffer.capacity(),
        buffer,
        pool: VecDeque::new(),
        large: None,
        after_large: false,
        left_over: true,
    };
    (reader, Sender { inner })
}

/// Small messages must not wait for others (NODELAY); a peer that vanished must be noticed.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// The writer task: what [`Sender::flush`] could not hand over.
async fn write_rest(inner: Rc<Inner>) {
    loop {
        inner.wake.notified().await;
        loop {
            {
                let queue = inner.queue.borrow();
                if queue.closed.is_some() {
                    return;
                }
                if queue.bytes == 0 {
                    break;
                }
            }
            if let Err(error) = inner.stream.writable().await {
                inner.close(CloseReason::Socket(error.kind()));
                return;
            }
            inner.write_some();
        }
    }
}

impl Inner {
    fn close(&self, reason: CloseReason) {
        let mut queue = self.queue.borrow_mut();
        if queue.closed.is_some() {
            return;
        }
        queue.closed = Some(reason);
        // What waits is of no use any more; give its memory back now, not when the last handle goes.
        queue.parts.clear();
        queue.arena = BytesMut::new();
        queue.bytes = 0;
        queue.frames = 0;
        drop(queue);
        // Fails only where the peer was faster.
        let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Both);
        self.wake.notify_one();
        self.drained.notify_waiters();
    }

    /// Writes until the queue is empty (true) or the socket takes no more.
    fn write_some(&self) -> bool {
        let result = self.queue.borrow_mut().write(&self.stream);
        match result {
            Ok(true) => {
                self.drained.notify_waiters();
                true
            }
            Ok(false) => false,
            Err(error) => {
                self.close(CloseReason::Socket(error.kind()));
                true
            }
        }
    }
}

impl Queue {
    fn close_run(&mut self) {
        if !self.arena.is_empty() {
            let bytes = self.arena.split().freeze();
            let frames = std::mem::take(&mut self.arena_frames);
            self.parts.push_back(Part { bytes, frames });
        }
    }

    fn write(&mut self, stream: &Stream) -> io::Result<bool> {
        self.close_run();
        while self.bytes > 0 {
            let mut slices = [IoSlice::new(&[]); IOVECS];
            let mut count = 0;
            let mut offered = 0;
            for (slice, part) in slices.iter_mut().zip(&self.parts) {
                let skip = if count == 0 { self.taken } else { 0 };
                *slice = IoSlice::new(&part.bytes[skip..]);
                offered += slice.len();
                count += 1;
            }
            let taken = match stream.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            self.advance(taken);
            if taken < offered {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn advance(&mut self, taken: usize) {
        self.bytes -= taken;
        self.taken += taken;
        while let Some(part) = self.parts.front()
            && self.taken >= part.bytes.len()
        {
            self.taken -= part.bytes.len();
            self.frames -= part.frames;
            self.parts.pop_front();
        }
    }
}

impl Sender {
    /// Queues a frame whose message `meta` appends to the buffer that it is given (and must leave what
    /// is in it alone), with at most one piece of payload. Nothing is written before [`Sender::flush`].
    pub fn push(
        &self,
        kind: u16,
        meta: impl FnOnce(&mut BytesMut),
        payload: Option<Bytes>,
    ) -> Result<(), SendError> {
        self.push_parts(kind, meta, payload)
    }

    /// As [`Sender::push`], with the message as bytes.
    pub fn push_slice(&self, kind: u16, meta: &[u8], payload: Option<Bytes>) -> Result<(), SendError> {
        self.push_parts(kind, |arena| arena.extend_from_slice(meta), payload)
    }

    /// As [`Sender::push`], with a payload of several pieces that follow each other on the wire. Empty
    /// pieces are left out.
    pub fn push_parts(
        &self,
        kind: u16,
        meta: impl FnOnce(&mut BytesMut),
        payload: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), SendError> {
        let mut queue = self.inner.queue.borrow_mut();
        if let Some(reason) = &queue.closed {
            return Err(SendError::Closed(reason.clone()));
        }
        let Queue { arena, scratch, .. } = &mut *queue;
        scratch.extend(payload.into_iter().filter(|piece| !piece.is_empty()));
        let payload_len = scratch.iter().map(Bytes::len).sum::<usize>();
        if arena.is_empty() && arena.capacity() < ARENA_RUN_MAX {
            arena.reserve(ARENA);
        }
        let start = frame::begin(arena);
        meta(arena);
        if let Err(error) = frame::finish(arena, start, kind, payload_len) {
            scratch.clear();
            return Err(SendError::TooLong(error));
        }
        let len = arena.len() - start + payload_len;
        let (bytes, frames) = (queue.bytes + len, queue.frames + 1);
        let options = &self.inner.options;
        if bytes > options.queue_bytes_max || frames > options.queue_frames_max {
            queue.scratch.clear();
            drop(queue);
            self.inner.close(CloseReason::Laggard { bytes, frames });
            return Err(SendError::Laggard { bytes, frames });
        }
        queue.bytes = bytes;
        queue.frames = frames;
        let Queue { parts, arena, arena_frames, scratch, .. } = &mut *queue;
        if scratch.is_empty() {
            *arena_frames += 1;
            if arena.len() >= ARENA_RUN_MAX {
                queue.close_run();
            }
            return Ok(());
        }
        // The run so far, with the head of this frame, ends the frames before it; this frame ends with
        // its last piece.
        let frames = std::mem::take(arena_frames);
        let bytes = arena.split().freeze();
        parts.push_back(Part { bytes, frames });
        parts.extend(scratch.drain(..).map(|bytes| Part { bytes, frames: 0 }));
        if let Some(last) = parts.back_mut() {
            last.frames += 1;
        }
        Ok(())
    }

    /// Hands everything queued to the kernel, as far as it takes it without waiting; the writer task
    /// does the rest. Errors show in the next push and at the reader.
    pub fn flush(&self) {
        {
            let queue = self.inner.queue.borrow();
            // With bytes before these still waiting for the socket, the writer task is at work.
            if queue.bytes == 0 || queue.closed.is_some() {
                return;
            }
        }
        if !self.inner.write_some() {
            self.inner.wake.notify_one();
        }
    }

    /// Queues bytes that are no frame: for tests of what the other side makes of them.
    #[doc(hidden)]
    pub fn push_raw_for_tests(&self, bytes: Bytes) {
        let mut queue = self.inner.queue.borrow_mut();
        queue.close_run();
        queue.bytes += bytes.len();
        queue.parts.push_back(Part { bytes, frames: 0 });
    }

    /// Bytes that wait, flushed or not.
    pub fn queued_bytes(&self) -> usize {
        self.inner.queue.borrow().bytes
    }

    /// Frames that wait, flushed or not; one that is partly written counts.
    pub fn queued_frames(&self) -> usize {
        self.inner.queue.borrow().frames
    }

    /// Why the connection is closed, if it is.
    pub fn closed(&self) -> Option<CloseReason> {
        self.inner.queue.borrow().closed.clone()
    }

    /// Closes at once; what is queued is dropped. The reader's next batch is the error.
    pub fn close(&self, why: &'static str) {
        self.inner.close(CloseReason::Local(why));
    }

    /// Flushes, and waits until the kernel has everything or the connection is closed.
    pub async fn drained(&self) {
        self.flush();
        loop {
            let drained = self.inner.drained.notified();
            {
                let queue = self.inner.queue.borrow();
                if queue.bytes == 0 || queue.closed.is_some() {
                    return;
                }
            }
            drained.await;
        }
    }

    /// The other side's address.
    pub fn peer(&self) -> Peer {
        self.inner.peer
    }
}

impl Reader {
    /// Waits until something has come, makes one `read`, and appends every frame that is whole to
    /// `frames`: at least one. Cancel safe: nothing that was read is lost.
    ///
    /// Errors: the connection is closed, and no frame was appended. Frames that came before the error
    /// were handed over by earlier calls.
    pub async fn read_batch(&mut self, frames: &mut Vec<Frame>) -> Result<(), ReadError> {
        let before = frames.len();
        while frames.len() == before {
            self.ready().await?;
            self.try_batch(frames)?;
        }
        Ok(())
    }

    /// Waits until [`Reader::try_batch`] may find something. Cancel safe. Errors: as
    /// [`Reader::read_batch`].
    pub async fn ready(&mut self) -> Result<(), ReadError> {
        if self.left_over || self.inner.queue.borrow().closed.is_some() {
            return Ok(());
        }
        match self.inner.stream.readable().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(CloseReason::Socket(error.kind()))),
        }
    }

    /// Reads what has come, as [`Reader::read_batch`] does, and appends every frame that is whole to
    /// `frames`; there may be none. Makes one `read`, or two where the first brings the head of a large
    /// frame. Never waits: for a caller that chooses, after [`Reader::ready`], when it reads.
    ///
    /// Errors: as [`Reader::read_batch`].
    pub fn try_batch(&mut self, frames: &mut Vec<Frame>) -> Result<(), ReadError> {
        let before = frames.len();
        loop {
            let begun = self.large.is_some();
            // What the handshake has left is looked at before anything is read.
            if !std::mem::take(&mut self.left_over) {
                if let Some(reason) = self.inner.queue.borrow().closed.clone() {
                    return Err(reason);
                }
                match self.read() {
                    Ok(0) => return Err(self.fail(CloseReason::Peer)),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(self.fail(CloseReason::Socket(error.kind()))),
                }
            }
            if let Err(error) = self.decode(frames) {
                let error = self.fail(error.into());
                // The frames before the bad one count; the next call fails.
                self.buffer.clear();
                return if frames.len() > before { Ok(()) } else { Err(error) };
            }
            if frames.len() > before || begun || self.large.is_none() {
                return Ok(());
            }
        }
    }

    /// Every frame that is whole.
    fn decode(&mut self, frames: &mut Vec<Frame>) -> Result<(), FrameError> {
        if let Some((head, payload)) = self.large.take_if(|(_, payload)| payload.is_full()) {
            frames.push(Frame { kind: head.kind, meta: head.meta, payload: payload.freeze() });
            self.after_large = true;
        }
        while self.large.is_none() {
            if let Some(frame) = self.decoder.decode(&mut self.buffer)? {
                self.after_large = frame.payload.len() >= LARGE_PAYLOAD;
                frames.push(frame);
                continue;
            }
            let Some(head) = self.decoder.take_head(&mut self.buffer, LARGE_PAYLOAD)? else { break };
            let mut payload = Aligned::new(head.payload_len);
            let here = self.buffer.len().min(head.payload_len);
            payload.rest()[..here].copy_from_slice(&self.buffer[..here]);
            payload.advance(here);
            self.buffer.advance(here);
            self.large = Some((head, payload));
        }
        Ok(())
    }

    /// One read, to where the next bytes belong.
    fn read(&mut self) -> io::Result<usize> {
        if let Some((_, payload)) = &mut self.large {
            let read = self.inner.stream.read_into(payload.rest())?;
            payload.advance(read);
            return Ok(read);
        }
        self.make_room();
        let max = if self.after_large { LARGE_HEAD } else { usize::MAX };
        self.inner.stream.read_some(&mut self.buffer, max)
    }

    /// The other side's address.
    pub fn peer(&self) -> Peer {
        self.inner.peer
    }

    /// Closes, unless it is closed already, and says why it is.
    fn fail(&mut self, reason: CloseReason) -> ReadError {
        self.inner.close(reason.clone());
        self.inner.queue.borrow().closed.clone().unwrap_or(reason)
    }

    /// Room for the frame that has begun to come, or for a good number of small ones.
    fn make_room(&mut self) {
        let wanted = self.decoder.wanted().saturating_sub(self.buffer.len());
        let wanted = wanted.max(READ_ROOM_MIN);
        // From its beginning again where all of its frames are gone: that part is in the processor's cache, and
        // what lies behind it is not touched.
        let fits = (wanted..=READ_BUFFER_KEPT).contains(&self.capacity);
        if fits && self.buffer.is_empty() && self.buffer.try_reclaim(self.capacity) {
            return;
        }
        // Costs nothing where there is room; else uses the buffer again if all of its frames are gone.
        if self.buffer.try_reclaim(wanted) {
            return;
        }
        let capacity = READ_BUFFER.max(self.buffer.len() + wanted);
        let reusable = match self.pool.front_mut() {
            Some(oldest) => oldest.try_reclaim(capacity),
            None => false,
        };
        let fresh = reusable.then(|| self.pool.pop_front()).flatten();
        let mut fresh = fresh.unwrap_or_else(|| BytesMut::with_capacity(capacity));
        fresh.extend_from_slice(&self.buffer);
        let mut old = std::mem::replace(&mut self.buffer, fresh);
        // An outsize buffer is not kept: it would stay for good with every connection.
        let keep = self.capacity <= READ_BUFFER_KEPT;
        self.capacity = capacity;
        if keep {
            if self.pool.len() == READ_POOL {
                self.pool.pop_front();
            }
            old.clear();
            self.pool.push_back(old);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.inner.close(CloseReason::Local("the reader is gone"));
    }
}
