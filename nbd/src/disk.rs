//! The interface between the NBD server and what is behind it, at byte granularity.
//!
//! A connection hands requests to a [`Disk`] in batches and gets answers through its
//! [`Completions`], in any order. Nothing here knows a socket or the wire: errors become NBD error
//! numbers only where a reply is encoded. Everything lives on one thread, hence `Rc`; no borrow of a
//! `RefCell` in here outlives a call.
//!
//! # Contract of a disk
//!
//! - `submit` never blocks and never panics for a request; every request is answered exactly once,
//!   unless its connection is gone.
//! - A write, zero or trim that is answered [`DiskReply::Done`] is durable. `Flush` therefore has
//!   nothing to wait for but what was *answered* before it, which is durable already.
//! - After [`Disk::client_gone`] no request of that connection starts any more. What was under way may
//!   finish. A client that lost its connection sends its writes again on another one, and what it
//!   writes after that must not be overwritten by a late first copy.

use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Names a connection within a server, never used twice.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(pub u64);

/// What a client is told of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name, as in the list.
    pub name: String,
    /// For people; may be empty. Cut to 4096 bytes on the wire.
    pub description: String,
    /// Size in bytes; any value, not only whole blocks.
    pub size_bytes: u64,
    /// True where writes are answered with "not permitted".
    pub read_only: bool,
}

/// Why an export cannot be opened. The text goes to the client: what, and what to do, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no such export.
    #[error("{0}")]
    Unknown(String),
    /// It exists, and this client may not have it now.
    #[error("{0}")]
    Refused(String),
    /// This server is being stopped.
    #[error("the server is being stopped")]
    ShuttingDown,
}

/// A future on the server's one thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// The exports of a server.
pub trait Exports {
    /// The names, for a client that asks for the list. At most [`EXPORTS_LISTED_MAX`] are sent.
    fn list(&self) -> Vec<String>;
    /// Describes an export without attaching it: a client that only looks must not take a volume from
    /// the front end that has it. The empty name is the default export.
    fn describe(&self, name: &str) -> LocalFuture<Result<ExportInfo, OpenError>>;
    /// Opens an export for I/O. May take long; the future is dropped when the client goes away.
    fn open(&self, name: &str) -> LocalFuture<Result<Rc<dyn Disk>, OpenError>>;
    /// Where the export is opened, if not here: with another thread's exports. The connection is handed over there.
    fn elsewhere(&self, _name: &str) -> Option<Elsewhere> {
        None
    }
    /// Before a connection that was handed over here is gone on with: waits, within a limit, until these exports know
    /// as much as those which handed it over ([`Elsewhere::known`]).
    fn catch_up(&self, _known: u64) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }
}

/// Where an export is opened.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The shard, from 0.
    pub shard: usize,
    /// What was known when that was found out: the layout of the map.
    pub known: u64,
}

/// Exports that are sent in one list; further ones are left out.
pub const EXPORTS_LISTED_MAX: usize = 4096;

/// An opened export.
pub trait Disk {
    /// Its size and kind. Stays the same while a connection is open.
    fn info(&self) -> ExportInfo;
    /// Takes the whole batch and leaves it empty. Offsets and lengths are within the disk and lengths
    /// are not 0: the server has checked.
    fn submit(&self, batch: &mut Vec<DiskRequest>);
    /// The connection is gone: its requests that are not under way must not start.
    fn client_gone(&self, conn: ConnId);
}

/// One request of a connection.
#[derive(Debug)]
pub struct DiskRequest {
    /// Comes back with the answer.
    pub token: u64,
    /// Where the answer goes; also names the connection.
    pub reply_to: Rc<Completions>,
    /// What to do.
    pub op: DiskOp,
}

/// What to do. Offsets and lengths in bytes, of any alignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Give the bytes: [`DiskReply::Data`] that covers exactly this range.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most the server's payload limit.
        len: u32,
    },
    /// Put the bytes there.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes, a slice of the connection's receive buffer.
        data: Bytes,
        /// Durable before the answer. Every write is, so it changes nothing today.
        fua: bool,
    },
    /// Make it read as zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes; may be far more than a payload.
        len: u32,
        /// Store zeros rather than make holes.
        no_hole: bool,
        /// As for a write.
        fua: bool,
    },
    /// The bytes are not needed any more. May be rounded inwards.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes; may be far more than a payload.
        len: u32,
        /// As for a write.
        fua: bool,
    },
    /// Everything answered so far is durable when this is answered.
    Flush,
    /// The client will soon read this. A hint.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Say what is a hole: [`DiskReply::Extents`] from `offset` on; may cover less than was asked, at
    /// least one byte, never more.
    Status {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
}

/// The answer to a request that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskReply {
    /// Done, and durable if it changed anything.
    Done,
    /// The bytes of a read.
    Data(Chunks),
    /// Consecutive extents of a status.
    Extents(Vec<Extent>),
}

/// A run of bytes of one kind.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, not 0.
    pub len: u32,
    /// True: never written or trimmed, reads as zeros. False: allocated.
    pub hole: bool,
}

/// Part of the answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// These bytes.
    Data(Bytes),
    /// This many zeros.
    Hole(u32),
}

impl Chunk {
    /// Bytes that it stands for. (No reply is larger than a payload, which fits in 32 bits.)
    pub fn len(&self) -> u64 {
        match self {
            Chunk::Data(data) => data.len() as u64,
            Chunk::Hole(len) => u64::from(*len),
        }
    }
    /// True where it stands for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Consecutive chunks. One chunk, which is the common case, needs no allocation. Neighbouring holes
/// become one; empty chunks vanish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    first: Option<Chunk>,
    rest: Vec<Chunk>,
}

impl Chunks {
    /// No chunks.
    pub fn new() -> Chunks {
        Chunks::default()
    }
    /// Appends one.
    pub fn push(&mut self, chunk: Chunk) {
        if chunk.is_empty() {
            return;
        }
        let last = self.rest.last_mut().or(self.first.as_mut());
        if let (Some(Chunk::Hole(have)), Chunk::Hole(more)) = (last, &chunk)
            && let Some(sum) = have.checked_add(*more)
        {
            *have = sum;
            return;
        }
        match self.first {
            None => self.first = Some(chunk),
            Some(_) => self.rest.push(chunk),
        }
    }
    /// Appends all of `other`.
    pub fn append(&mut self, other: Chunks) {
        other.into_iter().for_each(|chunk| self.push(chunk));
    }
    /// The chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.first.iter().chain(self.rest.iter())
    }
    /// Bytes of all of them.
    pub fn total_bytes(&self) -> u64 {
        self.iter().map(Chunk::len).sum()
    }
}

impl From<Chunk> for Chunks {
    fn from(chunk: Chunk) -> Chunks {
        let mut chunks = Chunks::new();
        chunks.push(chunk);
        chunks
    }
}

impl IntoIterator for Chunks {
    type Item = Chunk;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Chunk>, std::vec::IntoIter<Chunk>>;
    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.rest)
    }
}

/// Why a request failed. Becomes an NBD error number where the reply is encoded.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No good copy of the bytes.
    #[error("no good copy of a block: see the health report of the cluster")]
    Io,
    /// The volume's I/O timeout has passed. A write may still take effect.
    #[error("the I/O timeout of the volume has passed: too few storage nodes answer")]
    TimedOut,
    /// The storage nodes have no room.
    #[error("no space left on the storage nodes")]
    NoSpace,
    /// Writing to a read-only export.
    #[error("the export is read-only")]
    ReadOnly,
    /// The request makes no sense.
    #[error("the request is malformed")]
    Invalid,
    /// The disk is gone (taken over, detached, being stopped): the connection is closed without an
    /// answer, so that the client connects again rather than report an I/O error to its file system.
    #[error("the volume is not served here any more")]
    Gone,
}

/// One finished request.
pub type Completion = (u64, Result<DiskReply, DiskError>);

/// The queue of answers of one connection: many pushes, one wake-up.
///
/// Holds at most as many as the connection has requests under way.
#[derive(Debug)]
pub struct Completions {
    conn: ConnId,
    done: RefCell<Vec<Completion>>,
    waker: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

impl Completions {
    /// An empty queue for a connection.
    pub fn new(conn: ConnId) -> Rc<Completions> {
        Rc::new(Completions {
            conn,
            done: RefCell::default(),
            waker: RefCell::default(),
            closed: Cell::new(false),
        })
    }
    /// The connection that it belongs to.
    pub fn conn(&self) -> ConnId {
        self.conn
    }
    /// Adds an answer and wakes the connection if it sleeps. Dropped if the connection is gone.
    pub fn push(&self, token: u64, result: Result<DiskReply, DiskError>) {
        if self.closed.get() {
            return;
        }
        self.done.borrow_mut().push((token, result));
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
    /// The connection is gone: answers are dropped from now on.
    pub fn close(&self) {
        self.closed.set(true);
        self.done.borrow_mut().clear();
        self.waker.borrow_mut().take();
    }
    /// True after [`Completions::close`].
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }
    /// Moves all answers to `into`; pending, with the waker kept, where there are none.
    pub fn poll_take(&self, cx: &mut Context<'_>, into: &mut Vec<Completion>) -> Poll<()> {
        if self.take(into) {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
    /// Moves all answers to `into`; false where there are none.
    pub fn take(&self, into: &mut Vec<Completion>) -> bool {
        let mut done = self.done.borrow_mut();
        if done.is_empty() {
            return false;
        }
        into.append(&mut done);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_holes_become_one_and_empty_chunks_vanish() {
        let mut chunks = Chunks::new();
        for chunk in [Chunk::Hole(3), Chunk::Hole(4), Chunk::Data(Bytes::new()), Chunk::Hole(1)] {
            chunks.push(chunk);
        }
        chunks.push(Chunk::Data(Bytes::from_static(b"x")));
        assert_eq!(chunks.total_bytes(), 9);
        assert_eq!(chunks.iter().count(), 2);
    }

    #[test]
    fn answers_to_a_closed_connection_are_dropped() {
        let completions = Completions::new(ConnId(1));
        completions.push(1, Ok(DiskReply::Done));
        completions.close();
        completions.push(2, Ok(DiskReply::Done));
        assert!(!completions.take(&mut Vec::new()));
    }
}
