//! The task of one connection.
//!
//! ```text
//!   read all that has arrived ─► parse all ─► submit one batch ─► encode all that has finished
//!        ▲                                                                  │
//!        └── sleep until bytes, answers, room or a deadline ◄── one writev ─┘
//! ```
//!
//! # A dead connection
//!
//! A client that gives a connection up sends its writes again on another one. What it had sent on the
//! old one may still be in that socket's buffer, in our receive buffer or queued behind us, and must
//! not be carried out after the newer writes. Therefore:
//! - all that has arrived is read before any of it is submitted; if that ends in the end of the stream
//!   without the client's goodbye (DISC), nothing of it is submitted;
//! - while a connection is not read from (back-pressure), it is looked at every [`BLOCKED_TICK`], and
//!   a peer that has closed ends it with all its unread requests;
//! - a TCP peer's end can be hidden behind data that does not fit into our socket. After it was not
//!   read from for [`BLOCKED_LONG`], which is less than any client's timeout, a connection is therefore
//!   tried first: the replies are sent, and only a [`BLOCKED_TICK`] later the next request is looked
//!   at. A peer that is gone has answered the replies with a reset by then. (A reset that takes longer
//!   is the case that is left.)
//! - whatever ends the task, the disk is told by a guard.

use super::Shared;
use crate::disk::{Completion, Completions, Disk, DiskRequest, ExportInfo, OpenError};
use crate::proto::{Close, Event, Lookup, Session};
use bytes::BytesMut;
use std::future::{Future, pending, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep};
use trefoil_transport::Stream;

/// Receive buffer during the handshake.
const HANDSHAKE_BUFFER_BYTES: usize = 4 << 10;
/// Receive buffer during transmission. Payloads are slices of it; it is replaced when it is used up,
/// and its memory comes back when the last request that has a slice of it is done.
const RECEIVE_BUFFER_BYTES: usize = 512 << 10;
/// A receive buffer with less room than this is replaced before the next read.
const RECEIVE_ROOM_MIN: usize = 16 << 10;
/// Bytes that are read before they are parsed.
const READ_AT_ONCE_BYTES: usize = 1 << 20;
/// Bytes that are taken in while an export is being opened, only to see the client hang up.
const LOOKUP_READ_AHEAD_BYTES: usize = 64 << 10;
/// Segments in one vectored write.
const WRITE_SEGMENTS: usize = 64;
/// How often a connection that is not read from is looked at.
const BLOCKED_TICK: Duration = Duration::from_millis(100);
/// After this long the peer may have given up.
const BLOCKED_LONG: Duration = Duration::from_secs(1);

/// Why the task ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Closed(Close),
    #[error("the client closed the connection")]
    HungUp,
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("the server is being stopped")]
    Stopped,
    #[error("{0}")]
    Io(io::Error),
}

/// Tells the disk and the counters that the connection is gone, whatever ended it.
struct Guard {
    shared: Rc<Shared>,
    completions: Rc<Completions>,
    disk: Option<Rc<dyn Disk>>,
    held: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.completions.close();
        if let Some(disk) = self.disk.take() {
            disk.client_gone(self.completions.conn());
        }
        let held = self.held;
        self.shared.count(|c| {
            c.connections -= 1;
            c.bytes_held -= held;
        });
        self.shared.ended.notify_waiters();
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Deadline {
    /// The handshake must be over.
    Handshake,
    /// What is under way must be over: the server is being stopped, or the disk is gone.
    Drain,
}

struct Connection {
    guard: Guard,
    stream: Stream,
    session: Session,
    buf: BytesMut,
    batch: Vec<DiskRequest>,
    done: Vec<Completion>,
    /// The end of the stream or an error has been met.
    hung_up: bool,
    /// Nothing can be sent any more, and only requests under way are waited for.
    mute: bool,
    closing: Option<Close>,
    stop: Pin<Box<dyn Future<Output = ()>>>,
    deadline: Option<(Instant, Deadline)>,
    timer: Pin<Box<Sleep>>,
    /// When it was last read from, if that is not now.
    blocked_since: Option<Instant>,
    /// After a long block: when the next request may be looked at.
    resume_at: Option<Instant>,
    /// It is not that time yet.
    on_trial: bool,
    /// When it is looked at again while it is not read from.
    tick: Option<Instant>,
}

/// Serves one client until it is gone.
pub(super) async fn serve(shared: Rc<Shared>, stream: Stream, peer: String) {
    let conn = shared.next_conn();
    let started = Instant::now();
    let completions = Completions::new(conn);
    let mut stop = shared.stop.clone();
    let mut connection = Connection {
        guard: Guard { shared: shared.clone(), completions, disk: None, held: 0 },
        stream,
        session: Session::new(shared.config.limits.clone()),
        buf: BytesMut::with_capacity(HANDSHAKE_BUFFER_BYTES),
        batch: Vec::new(),
        done: Vec::new(),
        hung_up: false,
        mute: false,
        closing: None,
        stop: Box::pin(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        }),
        deadline: Some((started + shared.config.handshake_timeout, Deadline::Handshake)),
        timer: Box::pin(tokio::time::sleep_until(started)),
        blocked_since: None,
        resume_at: None,
        on_trial: false,
        tick: None,
    };
    let end = connection.run().await;
    match end {
        End::Closed(Close::Protocol(_) | Close::NoExport) | End::HandshakeTimeout => {
            shared.count(|c| c.protocol_errors += 1);
            if let Some(more) = shared.log.pass() {
                tracing::info!(conn = conn.0, peer, held_back = more, "NBD client cut off: {end}");
            }
        }
        // Clients that just go away are normal: libnbd and fio do so.
        _ => tracing::debug!(conn = conn.0, peer, "NBD connection ended: {end}"),
    }
}

impl Connection {
    async fn run(&mut self) -> End {
        loop {
            match poll_fn(|cx| Poll::Ready(self.may_resume(cx))).await {
                Ok(may_resume) => self.on_trial = !may_resume,
                Err(end) => return end,
            }
            if !self.on_trial
                && let Err(end) = self.parse().await
            {
                return end;
            }
            self.submit();
            self.collect();
            self.account();
            if let Some(end) = self.ended() {
                return end;
            }
            if let Err(end) = poll_fn(|cx| self.poll(cx)).await {
                return end;
            }
        }
    }

    /// False while a connection that was blocked for long is on trial; the end if its peer is gone.
    fn may_resume(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let Some(since) = self.blocked_since else { return Ok(true) };
        if self.closing.is_none() && self.stream.peer_closed(cx) {
            return Err(End::HungUp);
        }
        let now = Instant::now();
        if now - since < BLOCKED_LONG {
            return Ok(true);
        }
        match self.resume_at {
            Some(at) if at <= now => self.resume_at = None,
            Some(_) => return Ok(false),
            None => {
                self.resume_at = Some(now + BLOCKED_TICK);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Parses all that is there. Requests go to the batch.
    async fn parse(&mut self) -> Result<(), End> {
        while !self.is_draining()
            && let Some(event) = self.session.feed(&mut self.buf)
        {
            match event {
                Event::Request(token, op) => {
                    let reply_to = self.guard.completions.clone();
                    self.batch.push(DiskRequest { token, reply_to, op });
                }
                Event::List => {
                    let names = self.guard.shared.exports.list();
                    self.session.answer_list(&names);
                }
                Event::Lookup(kind, name) => {
                    let result = self.look_up(kind, &name).await?;
                    self.closing = self.session.answer_lookup(result);
                }
                Event::Close(why) => self.closing = Some(why),
            }
        }
        if self.session.in_transmission() && matches!(self.deadline, Some((_, Deadline::Handshake))) {
            self.deadline = None;
        }
        Ok(())
    }

    /// Asks the exports; gives up when the client does or the server is stopped. The time that it takes
    /// is not the client's.
    async fn look_up(&mut self, kind: Lookup, name: &str) -> Result<Result<ExportInfo, OpenError>, End> {
        let exports = self.guard.shared.exports.clone();
        let (stream, buf) = (&mut self.stream, &mut self.buf);
        let hung_up = async {
            while buf.len() < LOOKUP_READ_AHEAD_BYTES {
                if !matches!(stream.read_buf(buf).await, Ok(1..)) {
                    return;
                }
            }
            pending().await
        };
        let answer = async {
            match kind {
                Lookup::Describe => exports.describe(name).await.map(|info| (info, None)),
                Lookup::Open => {
                    let disk = exports.open(name).await?;
                    Ok((disk.info(), Some(disk)))
                }
            }
        };
        let started = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            () = hung_up => return Err(End::HungUp),
            () = &mut self.stop => return Err(End::Stopped),
        };
        if let Some((at, _)) = &mut self.deadline {
            *at += started.elapsed();
        }
        Ok(answer.map(|(info, disk)| {
            if disk.is_some() {
                self.guard.disk = disk;
            }
            info
        }))
    }

    /// Hands the batch to the disk, unless the client is gone without a goodbye.
    fn submit(&mut self) {
        if self.hung_up && self.closing != Some(Close::Goodbye) {
            self.batch.clear();
        }
        if let Some(disk) = &self.guard.disk
            && !self.batch.is_empty()
        {
            self.blocked_since = None;
            disk.submit(&mut self.batch);
        }
        debug_assert!(self.batch.is_empty());
    }

    /// Encodes what has finished.
    fn collect(&mut self) {
        self.guard.completions.take(&mut self.done);
        if !self.done.is_empty() && self.resume_at.is_some() {
            // These replies are what the peer is tried with.
            self.resume_at = Some(Instant::now() + BLOCKED_TICK);
        }
        for completion in self.done.drain(..) {
            if let Some(close) = self.session.complete(completion) {
                self.closing = Some(close);
            }
        }
        if self.closing == Some(Close::DiskGone) {
            self.drain();
        }
        if self.mute {
            let waiting = self.session.outbox().len();
            self.session.outbox().sent(waiting as usize);
        }
    }

    /// No more is read; what is under way has a while to finish.
    fn drain(&mut self) {
        if !self.is_draining() {
            let at = Instant::now() + self.guard.shared.config.stop_drain;
            self.deadline = Some((at, Deadline::Drain));
        }
    }

    fn is_draining(&self) -> bool {
        matches!(self.deadline, Some((_, Deadline::Drain)))
    }

    /// Counts what this connection holds.
    fn account(&mut self) {
        let held = self.session.bytes_held() + self.buf.len() as u64;
        let before = std::mem::replace(&mut self.guard.held, held);
        self.guard.shared.count(|c| c.bytes_held = c.bytes_held - before + held);
    }

    fn ended(&mut self) -> Option<End> {
        let idle = self.session.requests_pending() == 0 && self.session.outbox().is_empty();
        match self.closing {
            Some(why) if self.session.is_finished() => Some(End::Closed(why)),
            Some(Close::Goodbye | Close::DiskGone) => None,
            // Nothing more is done for such a client, whatever it has under way.
            Some(why) => Some(End::Closed(why)),
            None if self.hung_up => Some(End::HungUp),
            None => (self.is_draining() && idle).then_some(End::Stopped),
        }
    }

    /// True while it may read: the session wants bytes, and the server has room.
    fn may_read(&self) -> bool {
        let shared = &self.guard.shared;
        // A request that has half arrived is let in whole when it is all that its connection has: else
        // connections that each hold half a request could wait for one another for ever.
        let alone = self.session.requests_pending() == 0 && self.session.bytes_held() == 0;
        let room = alone
            || self.guard.held <= shared.config.connection_share_bytes
            || shared.counters.get().bytes_held <= shared.config.bytes_max;
        self.session.wants_bytes() && room && !self.is_draining() && !self.hung_up && !self.on_trial
    }

    /// Sends, receives and waits; ready when there is something to parse, to encode or to end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let sent = match self.poll_write(cx) {
            Poll::Ready(Err(_)) if self.closing == Some(Close::Goodbye) => {
                // It said goodbye and does not listen: its requests are carried out all the same.
                self.mute = true;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Io(error))),
            Poll::Ready(Ok(sent)) => sent,
            Poll::Pending => false,
        };
        let reading = self.may_read();
        match reading {
            true => self.blocked_since = None,
            false => _ = self.blocked_since.get_or_insert_with(Instant::now),
        }
        // What has been sent made room, or ended what was to be ended.
        let mut progress = sent && !reading;
        if reading {
            match self.poll_read(cx) {
                Poll::Ready(Ok(())) => progress = true,
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "an NBD client's connection broke");
                    self.hung_up = true;
                    progress = true;
                }
                Poll::Pending => {}
            }
        }
        if self.guard.completions.poll_take(cx, &mut self.done).is_ready() {
            progress = true;
        }
        if !self.is_draining() && self.stop.as_mut().poll(cx).is_ready() {
            self.drain();
            progress = true;
        }
        if progress {
            return Poll::Ready(Ok(()));
        }
        self.poll_timer(cx, reading)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, reading: bool) -> Poll<Result<(), End>> {
        let tick = match reading {
            true => None,
            false => Some(*self.tick.get_or_insert_with(|| Instant::now() + BLOCKED_TICK)),
        };
        let deadline = self.deadline.map(|(at, _)| at);
        let Some(at) = deadline.into_iter().chain(tick).min() else {
            return Poll::Pending;
        };
        if self.timer.deadline() != at {
            self.timer.as_mut().reset(at);
        }
        ready!(self.timer.as_mut().poll(cx));
        self.tick = None;
        Poll::Ready(self.overdue(cx).map_or(Ok(()), Err))
    }

    /// What a deadline or a tick shows: the end, if it is one.
    fn overdue(&mut self, cx: &mut Context<'_>) -> Option<End> {
        match self.deadline {
            Some((at, Deadline::Handshake)) if Instant::now() >= at => Some(End::HandshakeTimeout),
            Some((at, Deadline::Drain)) if Instant::now() >= at => Some(End::Stopped),
            _ if self.may_read() || self.closing.is_some() => None,
            _ => self.stream.peer_closed(cx).then_some(End::HungUp),
        }
    }

    /// Sends until all is sent (true if anything was) or the socket is full.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut any = false;
        while !self.session.outbox().is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SEGMENTS];
            let filled = self.session.outbox().fill(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => self.session.outbox().sent(sent),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if any => return Poll::Ready(Ok(true)),
                Poll::Pending => return Poll::Pending,
            }
            any = true;
        }
        Poll::Ready(Ok(any))
    }

    /// Reads all that has arrived, within [`READ_AT_ONCE_BYTES`]; ready when that is anything.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.buf.len();
        loop {
            self.make_room(self.buf.len() - before);
            match pin!(self.stream.read_buf(&mut self.buf)).poll(cx) {
                Poll::Ready(Ok(0)) => self.hung_up = true,
                // A large read may have stopped short of the end of a stream that nobody waits for.
                Poll::Ready(Ok(_)) if self.buf.len() < READ_AT_ONCE_BYTES => continue,
                Poll::Ready(Ok(_)) if self.stream.peer_closed(cx) => continue,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.buf.len() == before => return Poll::Pending,
                Poll::Pending => {}
            }
            return Poll::Ready(Ok(()));
        }
    }

    /// Room for what is missing of the current request, `arrived` bytes after it was looked at, in one
    /// piece: a payload is copied at most once, and only the part of it that came with earlier requests.
    fn make_room(&mut self, arrived: usize) {
        let room = self.buf.capacity() - self.buf.len();
        let missing = self.session.bytes_missing().saturating_sub(arrived).max(1);
        let usual = match self.session.in_transmission() {
            true => RECEIVE_BUFFER_BYTES,
            false => HANDSHAKE_BUFFER_BYTES,
        };
        // From its beginning again where nothing of it is in use: a client that only reads touches a page of it,
        // not all.
        if self.buf.is_empty() && missing <= usual && self.buf.try_reclaim(usual) {
            return;
        }
        if room < missing || room < RECEIVE_ROOM_MIN.min(usual / 4) {
            self.buf.reserve(missing.max(usual));
        }
    }
}
