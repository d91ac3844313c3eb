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
//!   is the case that is left.) So is one that is not read from for however short a time while a request
//!   of it is under way for that long: a client gives up when one of them takes too long.
//! - whatever ends the task, the disk is told by a guard.
//!
//! # Another shard's export
//!
//! The task then ends, and another one goes on with the connection there (see `handover`).

use super::Shared;
use super::handover::{HOPS_MAX, Moving, Place};
use super::share::Slot;
use crate::disk::{Completion, Completions, Disk, DiskRequest, Elsewhere, ExportInfo, OpenError};
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
/// A request counts as one that takes long after this time or up to twice that.
const WAITS_LONG: Duration = Duration::from_millis(450);

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
    #[error("its export is another shard's")]
    Elsewhere(Box<Away>),
}

/// Where a connection goes on.
#[derive(Debug)]
struct Away {
    lookup: (Lookup, String),
    known: u64,
    place: Place,
}

/// What came of a look-up.
enum Looked {
    Here(Result<(ExportInfo, Option<Rc<dyn Disk>>), OpenError>),
    Elsewhere { known: u64, place: Place },
}

/// Tells the disk and the counters that the connection is gone, whatever ended it.
struct Guard {
    shared: Rc<Shared>,
    completions: Rc<Completions>,
    disk: Option<Rc<dyn Disk>>,
    held: u64,
    /// None once it was handed over.
    slot: Option<Slot>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.completions.close();
        if let Some(disk) = self.disk.take() {
            disk.client_gone(self.completions.conn());
        }
        self.shared.hold(self.held, 0);
        self.shared.count(|c| c.connections -= 1);
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
    /// The number of the last request that had come at some time: [`WAITS_LONG`] ago or less, or longer ago while
    /// one up to it is under way.
    mark: (Instant, u64),
    /// When it is looked at again while it is not read from.
    tick: Option<Instant>,
    /// How often the look-up that is under way was passed on.
    hops: u32,
}

/// Serves one client until it is gone, or goes on elsewhere.
pub(super) async fn serve(shared: Rc<Shared>, stream: Stream, peer: String, slot: Slot) {
    let mut connection = Connection::new(&shared, stream, slot);
    let end = connection.run().await;
    finish(&shared, connection, end, peer);
}

/// Goes on with a client that another shard has begun to serve.
pub(super) async fn take_over(shared: Rc<Shared>, moving: Moving) {
    let guard = Guard::new(&shared, moving.slot);
    let stream = match moving.stream.bind() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, peer = moving.peer, "an NBD connection cannot be taken over from another shard");
            return;
        }
    };
    let mut connection = Connection::with(guard, stream, moving.session, moving.unparsed);
    connection.hung_up = moving.hung_up;
    connection.hops = moving.hops;
    connection.blocked_since = moving.blocked_since;
    connection.deadline = moving.deadline.map(|at| (at + moving.left.elapsed(), Deadline::Handshake));
    let (kind, name) = moving.lookup;
    let end = match connection.go_on(kind, name, moving.known).await {
        Ok(()) => connection.run().await,
        Err(end) => end,
    };
    finish(&shared, connection, end, moving.peer);
}

/// The last of a task.
fn finish(shared: &Rc<Shared>, connection: Connection, end: End, peer: String) {
    let conn = connection.guard.completions.conn();
    match end {
        End::Elsewhere(away) => connection.hand_over(*away, peer),
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

/// A place in another shard's queue, for a look-up that was passed on `hops` times.
async fn place_at(shared: &Shared, to: Elsewhere, hops: u32) -> Looked {
    if hops >= HOPS_MAX {
        let why = "the volume changes while it is looked up: try again";
        return Looked::Here(Err(OpenError::Refused(why.into())));
    }
    let place = match shared.doors.get(to.shard) {
        Some(door) => door.clone().reserve_owned().await.ok(),
        None => None,
    };
    match place {
        Some(place) => Looked::Elsewhere { known: to.known, place },
        // That shard is being stopped, and so is this one.
        None => Looked::Here(Err(OpenError::ShuttingDown)),
    }
}

impl Guard {
    /// The connection is counted already.
    fn new(shared: &Rc<Shared>, slot: Slot) -> Guard {
        let completions = Completions::new(shared.next_conn());
        Guard { shared: shared.clone(), completions, disk: None, held: 0, slot: Some(slot) }
    }
}

impl Connection {
    fn new(shared: &Rc<Shared>, stream: Stream, slot: Slot) -> Connection {
        let session = Session::new(shared.config.limits.clone());
        let buf = BytesMut::with_capacity(HANDSHAKE_BUFFER_BYTES);
        let mut connection = Connection::with(Guard::new(shared, slot), stream, session, buf);
        connection.deadline = Some((Instant::now() + shared.config.handshake_timeout, Deadline::Handshake));
        connection
    }

    fn with(guard: Guard, stream: Stream, session: Session, buf: BytesMut) -> Connection {
        let mut stop = guard.shared.stop.clone();
        Connection {
            guard,
            stream,
            session,
            buf,
            batch: Vec::new(),
            done: Vec::new(),
            hung_up: false,
            mute: false,
            closing: None,
            stop: Box::pin(async move {
                let _ = stop.wait_for(|stop| *stop).await;
            }),
            deadline: None,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            blocked_since: None,
            resume_at: None,
            on_trial: false,
            mark: (Instant::now(), 0),
            tick: None,
            hops: 0,
        }
    }

    /// To the shard that has a place for it. Nothing of it stays here.
    fn hand_over(mut self, away: Away, peer: String) {
        debug_assert!(self.session.requests_pending() == 0 && self.batch.is_empty());
        let Some(slot) = self.guard.slot.take() else { return };
        let stream = match self.stream.loosen() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, peer, "an NBD connection cannot be handed over to another shard");
                return;
            }
        };
        self.guard.shared.count(|c| c.handed_over += 1);
        away.place.send(Moving {
            stream,
            session: self.session,
            unparsed: self.buf,
            hung_up: self.hung_up,
            lookup: away.lookup,
            known: away.known,
            hops: self.hops + 1,
            deadline: self.deadline.map(|(at, _)| at),
            left: Instant::now(),
            blocked_since: self.blocked_since,
            peer,
            slot,
        });
    }

    /// The look-up that another shard has passed on.
    async fn go_on(&mut self, kind: Lookup, name: String, known: u64) -> Result<(), End> {
        self.account();
        let result = self.look_up(kind, name, known).await?;
        self.closing = self.session.answer_lookup(result);
        Ok(())
    }

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
        let long = now - since >= BLOCKED_LONG || self.waits_long(now);
        // What has begun is brought to its end: the replies that made room are not on their way yet.
        if !long && self.resume_at.is_none() {
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

    /// True where a request is under way for [`WAITS_LONG`] or longer, and always where one is for [`BLOCKED_LONG`]. To
    /// be asked now and then while requests come.
    fn waits_long(&mut self, now: Instant) -> bool {
        let (at, last) = self.mark;
        if now - at < WAITS_LONG {
            return false;
        }
        let waits = self.session.oldest_pending().is_some_and(|oldest| oldest <= last);
        if !waits {
            self.mark = (now, self.session.last_request());
        }
        waits
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
                    let result = self.look_up(kind, name, 0).await?;
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

    /// Asks the exports, when they know at least as much as `known` says; gives up when the client does or the server
    /// is stopped. The time that it takes is not the client's. [`End::Elsewhere`]: they are another shard's.
    async fn look_up(
        &mut self,
        kind: Lookup,
        name: String,
        known: u64,
    ) -> Result<Result<ExportInfo, OpenError>, End> {
        let shared = self.guard.shared.clone();
        let (stream, buf, hops) = (&mut self.stream, &mut self.buf, self.hops);
        let hung_up = async {
            while buf.len() < LOOKUP_READ_AHEAD_BYTES {
                if !matches!(stream.read_buf(buf).await, Ok(1..)) {
                    return;
                }
            }
            pending().await
        };
        let answer = async {
            if known > 0 {
                shared.exports.catch_up(known).await;
            }
            if kind == Lookup::Describe {
                return Looked::Here(shared.exports.describe(&name).await.map(|info| (info, None)));
            }
            match shared.exports.elsewhere(&name) {
                Some(elsewhere) => place_at(&shared, elsewhere, hops).await,
                None => {
                    let disk = shared.exports.open(&name).await;
                    Looked::Here(disk.map(|disk| (disk.info(), Some(disk))))
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
        let answer = match answer {
            Looked::Here(answer) => answer,
            Looked::Elsewhere { known, place } => {
                return Err(End::Elsewhere(Box::new(Away { lookup: (kind, name), known, place })));
            }
        };
        self.hops = 0;
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
            // Only for the mark to be up to date when it is wanted.
            self.waits_long(Instant::now());
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
        self.guard.shared.hold(before, held);
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
        let room = alone || self.guard.held <= shared.config.connection_share_bytes || shared.has_room();
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
