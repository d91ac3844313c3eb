//! From a client's bytes to a leader's blocks and back, sans I/O.
//!
//! ```text
//!  DiskRequest ──► submit ──► pieces ──► take_ops ──► the leader (ClientOp)
//!  Completions ◄── answer ◄── joined ◄── complete ◄── the leader (OpDone)
//! ```
//!
//! A request is cut into pieces that stay inside one object and carry at most
//! [`trefoil_core::limits::OP_BLOCKS_MAX`] blocks of data. Whole blocks pass through as slices of the
//! client's buffer; a block of which only a part is written is read, patched and written (`edges`).
//! Checksums are computed here, once, and verified here on reads: a block that does not match is an
//! I/O error and never data.
//!
//! # What the leader must do
//!
//! Operations on one object take effect in the order in which they are given to it: a read waits for
//! the writes given before it that overlap it, and of two writes the later one wins. `PROTOCOL` 5.6
//! and 6.1 say so.
//!
//! # Order
//!
//! A client may not count on any order of requests that are under way together, and gets none.

mod edges;
mod geometry;
mod meter;
mod pieces;
mod requests;
#[cfg(test)]
mod tests;

use crate::disk::{ConnId, DiskError, DiskOp, DiskReply, DiskRequest};
use bytes::Bytes;
use edges::Edges;
use geometry::{BLOCK, Geometry};
use meter::Asked;
pub use meter::{Class, Meter, Requests};
use pieces::Piece;
use requests::{Kind, Parts, Request, RequestKey};
use slab::Slab;
use std::collections::VecDeque;
use trefoil_core::Time;
use trefoil_core::client::{ClientOp, OpDone, OpError, OpId, OpKind};
use trefoil_core::ids::{ObjectIndex, VolumeId};

/// Operations that one layer has under way at a leader, well below what a leader takes
/// ([`trefoil_core::limits::LEADER_OPS_MAX`]). Further pieces wait in their requests.
pub const OPS_MAX: usize = 4096;
/// Pieces of one request under way: enough for the largest payload, and a request to zero a whole disk
/// does not crowd out the others.
pub const REQUEST_OPS_MAX: u32 = 64;
/// Requests of all connections to one volume. The server's limits are below it; beyond it a request is
/// answered with an I/O error.
pub const REQUESTS_MAX: usize = 128 << 10;
/// Objects that one block status looks at; the answer is cut short there, as the protocol allows.
pub const STATUS_OBJECTS_MAX: u64 = 64;

/// A volume's size is impossible.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "impossible volume: {size_bytes} bytes in objects of {object_size}; an object is a power of two \
     from 64 KiB to 8 MiB, and there are at most 2^32 of them"
)]
pub struct BadGeometry {
    size_bytes: u64,
    object_size: u64,
}

/// What has happened, for metrics.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks that were read and did not match their checksum. Nodes verify first, so anything but 0
    /// is a fault of memory, of a wire or of this program.
    pub checksum_mismatches: u64,
    /// Answers of the leader that do not fit what was asked.
    pub malformed_answers: u64,
    /// Blocks that were read because only a part of them was to be written.
    pub edge_reads: u64,
    /// Writes that joined such a block while it was being read.
    pub edge_merges: u64,
}

/// The layer of one volume. See the module.
#[derive(Debug)]
pub struct BlockLayer {
    geometry: Geometry,
    requests: Slab<Request>,
    /// Requests that wait for room among the operations, in order.
    waiting: VecDeque<RequestKey>,
    pieces: Slab<(u64, Piece)>,
    edges: Edges,
    ops: Vec<ClientOp<Bytes>>,
    generation: u64,
    counters: Counters,
    meter: Meter,
    now: Time,
}

/// Bits of an operation's id that are its slot; the rest makes it unique.
const SLOT_BITS: u32 = 24;

impl BlockLayer {
    /// The layer of a volume that has just been attached.
    pub fn new(volume: VolumeId, size_bytes: u64, object_size: u64) -> Result<BlockLayer, BadGeometry> {
        let geometry = Geometry { volume, size_bytes, object_size };
        if !geometry.is_possible() {
            return Err(BadGeometry { size_bytes, object_size });
        }
        Ok(BlockLayer {
            geometry,
            requests: Slab::new(),
            waiting: VecDeque::new(),
            pieces: Slab::new(),
            edges: Edges::default(),
            ops: Vec::new(),
            generation: 0,
            counters: Counters::default(),
            meter: Meter::default(),
            now: Time(0),
        })
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
    /// What clients have asked so far, and how long it took.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
    /// What the time is from here on, for [`BlockLayer::meter`]; for nothing else.
    pub fn set_now(&mut self, now: Time) {
        self.now = now;
    }
    /// Requests that are not answered.
    pub fn requests_pending(&self) -> usize {
        self.requests.len()
    }
    /// Operations under way at the leader, with those that [`BlockLayer::take_ops`] will give.
    pub fn ops_pending(&self) -> usize {
        self.pieces.len()
    }

    /// Takes a batch of requests and leaves it empty. Operations for the leader, answers to what needs
    /// none.
    pub fn submit(&mut self, batch: &mut Vec<DiskRequest>) {
        for request in batch.drain(..) {
            self.admit(request);
        }
    }

    /// Moves the operations that are to be given to the leader, in this order, to `into`.
    pub fn take_ops(&mut self, into: &mut Vec<ClientOp<Bytes>>) {
        into.append(&mut self.ops);
    }

    /// The leader's answer to an operation. One that is not under way is ignored: it belongs to a
    /// volume that was given up.
    pub fn complete(&mut self, done: OpDone<Bytes>) {
        let slot = (done.id.0 & ((1 << SLOT_BITS) - 1)) as usize;
        if self.pieces.get(slot).is_none_or(|(generation, _)| *generation != done.id.0 >> SLOT_BITS) {
            return;
        }
        let (_, piece) = self.pieces.remove(slot);
        self.finish_piece(piece, done.result);
        while self.pieces.len() < OPS_MAX
            && let Some(key) = self.waiting.pop_front()
        {
            if let Some(request) = self.requests.get_mut(key.0) {
                request.queued = false;
                self.advance(key, true);
            }
        }
    }

    /// The connection is gone: none of its pieces that are not at the leader start any more.
    pub fn client_gone(&mut self, conn: ConnId) {
        let is_of = |request: &Request| request.reply_to.conn() == conn;
        for (_, request) in self.requests.iter_mut().filter(|(_, r)| is_of(r)) {
            request.error = Some(DiskError::Gone);
        }
        let requests = &mut self.requests;
        for key in self.edges.drop_patches(|key| requests.get(key.0).is_some_and(is_of)) {
            requests[key.0].pending -= 1;
        }
        self.waiting.retain(|key| !requests.get(key.0).is_some_and(is_of));
        self.requests.retain(|_, request| !(is_of(request) && request.is_finished()));
    }

    /// The leader is gone. Every request is answered with `error`, and answers of the leader that come
    /// later are ignored.
    pub fn fail_all(&mut self, error: DiskError) {
        self.ops.clear();
        self.pieces.clear();
        self.edges.clear();
        self.waiting.clear();
        for mut request in self.requests.drain() {
            request.error = Some(error);
            request.answer(&mut self.meter, self.now);
        }
    }

    fn admit(&mut self, DiskRequest { token, reply_to, op }: DiskRequest) {
        let size = self.geometry.size_bytes;
        let range = |offset: u64, len: u64| {
            let end = offset.checked_add(len).filter(|end| *end <= size && len > 0)?;
            Some((offset, end))
        };
        let (class, range, kind) = match op {
            // Every write that was answered is durable, and there is no cache to fill.
            DiskOp::Flush => {
                self.meter.answered(Class::Flush, 0, 0, true);
                return reply_to.push(token, Ok(DiskReply::Done));
            }
            DiskOp::Cache { .. } => return reply_to.push(token, Ok(DiskReply::Done)),
            DiskOp::Read { offset, len } => {
                (Class::Read, range(offset, len.into()), Kind::Read(Parts::default()))
            }
            DiskOp::Write { offset, data, .. } => {
                (Class::Write, range(offset, data.len() as u64), Kind::Write { data, start: offset })
            }
            DiskOp::Zero { offset, len, no_hole, .. } => {
                let range = range(offset, len.into());
                let range = range.map(|(from, to)| (from, self.geometry.round_up_at_end(to)));
                (Class::Zero, range, Kind::Zero { no_hole })
            }
            DiskOp::Trim { offset, len, .. } => {
                let inner = range(offset, len.into()).map(|(from, to)| {
                    let to = self.geometry.round_up_at_end(to);
                    (from.next_multiple_of(BLOCK), to - to % BLOCK)
                });
                if inner.is_some_and(|(from, to)| from >= to) {
                    self.meter.answered(Class::Trim, 0, 0, true);
                    return reply_to.push(token, Ok(DiskReply::Done));
                }
                (Class::Trim, inner, Kind::Zero { no_hole: false })
            }
            DiskOp::Status { offset, len } => {
                let most = offset.saturating_add(STATUS_OBJECTS_MAX * self.geometry.object_size);
                let range = range(offset, len.into()).map(|(from, to)| (from, to.min(most)));
                (Class::Status, range, Kind::Status(Parts::default()))
            }
        };
        let Some((cursor, end)) = range else {
            self.meter.answered(class, 0, 0, false);
            return reply_to.push(token, Err(DiskError::Invalid));
        };
        if self.requests.len() >= REQUESTS_MAX {
            self.meter.answered(class, 0, 0, false);
            return reply_to.push(token, Err(DiskError::Io));
        }
        let asked = Asked { class, bytes: end - cursor, at: self.now };
        let request =
            Request { token, reply_to, kind, cursor, end, pending: 0, error: None, queued: false, asked };
        let key = RequestKey(self.requests.insert(request));
        self.advance(key, false);
    }

    fn wait(&mut self, key: RequestKey) {
        self.requests[key.0].queued = true;
        self.waiting.push_back(key);
    }

    /// Issues pieces of a request as far as there is room, if it is its turn or nobody waits; answers
    /// it when it is finished.
    fn advance(&mut self, key: RequestKey, its_turn: bool) {
        loop {
            let request = &self.requests[key.0];
            if request.is_finished() {
                return self.requests.remove(key.0).answer(&mut self.meter, self.now);
            }
            if request.is_issued() || request.pending >= REQUEST_OPS_MAX || request.queued {
                return;
            }
            if self.pieces.len() >= OPS_MAX || !(its_turn || self.waiting.is_empty()) {
                return self.wait(key);
            }
            self.issue(key);
        }
    }

    fn give(&mut self, object: ObjectIndex, kind: OpKind<Bytes>, piece: Piece) {
        self.generation = (self.generation + 1) & (u64::MAX >> SLOT_BITS);
        let slot = self.pieces.insert((self.generation, piece));
        let id = OpId(self.generation << SLOT_BITS | slot as u64);
        self.ops.push(ClientOp { id, object, kind });
    }
}

/// What a leader's error means to a client.
fn disk_error(error: OpError) -> DiskError {
    match error {
        OpError::Bad | OpError::Refused => DiskError::Io,
        OpError::NoSpace => DiskError::NoSpace,
        OpError::TimedOut => DiskError::TimedOut,
        OpError::Deposed | OpError::Closing => DiskError::Gone,
    }
}
