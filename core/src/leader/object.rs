//! An object as its leader sees it: what was decided, what was issued, who has it.

use crate::client::{ClientOp, OpId};
use crate::ids::*;
use crate::message::WriteOp;
use crate::placement::SLOTS_MAX;
use std::collections::VecDeque;

/// Queues that are not in use, to be used again: at most [`SPARE_MAX`], of at most [`SPARE_ENTRIES_MAX`]
/// entries each.
pub(super) type Spare<P> = Vec<VecDeque<Entry<P>>>;

/// Queues that a group keeps: as many objects with writes under way as are common in one group.
const SPARE_MAX: usize = 8;
/// Longer queues are given back to the allocator.
const SPARE_ENTRIES_MAX: usize = 32;

/// What the leader knows of one node's copy, in the present ballot.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum CopyState {
    /// The node has not answered yet.
    #[default]
    Unknown,
    /// In line (5.3): gets every write. Whole once its node has settled.
    InLine,
    /// Not in line: gets nothing until a Repair is sent.
    Except,
    /// A Repair was sent: gets every write behind `upto`.
    Repairing {
        /// The last number issued when the Repair was sent.
        upto: u64,
    },
}

/// One node's copy.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Copy {
    pub state: CopyState,
    /// The greatest number that the node has reported durable in this ballot. Stays true when its
    /// connection breaks.
    pub have: u64,
    /// Its node has refused a write or a repair of it for want of room, and it has not been whole since.
    pub no_room: bool,
}

/// A write that was issued.
#[derive(Debug)]
pub(super) struct Entry<P> {
    pub seq: u64,
    pub blocks: BlockRange,
    /// Kept until it is acknowledged: a node that comes back may need it.
    pub op: Option<WriteOp<P>>,
    /// The client's operation; `None` once it has been answered.
    pub id: Option<OpId>,
    /// Nodes (by slot) that it was sent to and that have not answered.
    pub pending: u8,
    /// On a majority.
    pub acked: bool,
    /// A node has refused this very write for want of room.
    pub refused: bool,
    /// What it takes of a node's backlog.
    pub bytes: u64,
    /// When it was sent last.
    pub sent: Time,
}

/// An object's state under one ballot.
#[derive(Debug)]
pub(super) struct Object<P> {
    /// The head of the greatest vote (5.2); decided once per ballot.
    pub base: Head,
    /// False where the votes did not suffice, because nodes have lost theirs (N8): it waits for the next
    /// round.
    pub decided: bool,
    /// A quorum holds it whole, or did in this ballot (5.5).
    pub open: bool,
    /// The last so many writes up to `acked` are not answered: they wait for more than a majority
    /// ([`super::in_sync`]). Each is an entry, so that they fit.
    pub held: u32,
    /// The last number issued.
    pub issued: u64,
    /// Everything up to this number is on a majority: so it is true, and without more ado acknowledged.
    pub acked: u64,
    /// By slot.
    pub copies: [Copy; SLOTS_MAX],
    /// Writes issued and not answered by every node that they were sent to, in order and without a gap in
    /// their numbers: those that are acknowledged, and of interest only for nodes that lag, come first.
    pub entries: VecDeque<Entry<P>>,
    /// Operations that cannot start yet, in order.
    pub waiting: VecDeque<ClientOp<P>>,
}

impl<P> Object<P> {
    pub fn new(base: Head, decided: bool) -> Object<P> {
        Object {
            base,
            decided,
            open: false,
            held: 0,
            issued: base.seq,
            acked: base.seq,
            copies: [Copy::default(); SLOTS_MAX],
            entries: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// True where nothing was ever written, as far as a quorum knows, and nothing is under way.
    pub fn untouched(&self) -> bool {
        self.decided && self.base == Head::ZERO && self.issued == 0
    }

    /// Where the first entry with a number above this one is. Behind a node that lags there may be thousands
    /// of entries: nothing that is done for each operation looks at all of them.
    pub fn first_above(&self, seq: u64) -> usize {
        let front = self.entries.front().map_or(0, |entry| entry.seq);
        (seq.saturating_add(1).saturating_sub(front) as usize).min(self.entries.len())
    }

    /// Everything up to this number has been answered.
    pub fn answered(&self) -> u64 {
        self.acked - u64::from(self.held)
    }

    /// True if a write that overlaps these blocks is in flight.
    pub fn write_in_flight(&self, blocks: BlockRange) -> bool {
        let open = self.entries.range(self.first_above(self.acked)..);
        open.into_iter().any(|entry| !entry.acked && entry.blocks.overlaps(blocks))
    }

    /// True if an operation that waits, and must come first, overlaps this one.
    pub fn waits_behind(&self, blocks: BlockRange, is_write: bool) -> bool {
        self.waiting.iter().any(|op| (is_write || op.kind.is_write()) && op.kind.blocks().overlaps(blocks))
    }

    /// The slots, as bits, whose nodes have refused the object for want of room.
    pub fn without_room(&self) -> u8 {
        let bit = |(i, copy): (usize, &Copy)| u8::from(copy.no_room) << i;
        self.copies.iter().enumerate().map(bit).sum()
    }

    /// 5.3: is a copy that reports this head in line?
    pub fn in_line(&self, ballot: Ballot, head: Head) -> bool {
        self.decided
            && ((head == self.base && self.acked <= self.base.seq)
                || (head.ballot == ballot && head.seq >= self.acked))
    }

    /// Lets go of the first entries, as far as nothing is awaited for them, of nodes or for clients.
    pub fn drop_finished(&mut self) {
        while self.entries.front().is_some_and(|e| e.acked && e.pending == 0 && e.id.is_none()) {
            self.entries.pop_front();
        }
    }

    /// Gives up what an object at rest does not need. A volume may have millions of objects, of which
    /// few have writes under way: each that was ever written would otherwise keep a queue, half a KiB.
    pub fn rest(&mut self, spare: &mut Spare<P>) {
        let queue = std::mem::take(&mut self.entries);
        if spare.len() < SPARE_MAX && (1..=SPARE_ENTRIES_MAX).contains(&queue.capacity()) {
            spare.push(queue);
        }
        // Few objects ever have one.
        self.waiting = VecDeque::new();
    }

    /// Nothing under way and nothing waiting.
    pub fn at_rest(&self) -> bool {
        self.entries.is_empty() && self.waiting.is_empty()
    }
}
