//! Repairs and the budget: who is put off, who waits, and whose turn it is.
//!
//! A copy under repair owes its leader every write that comes meanwhile, and a node that owes for too long counts
//! as a laggard. So repairs do not pile up here: what the budget cannot begin soon is put off and its leader told
//! ([`FromNode::Gap`]), which then orders fewer at once. Those that are taken on get their pieces in the order in
//! which they began, so that each is as short as can be; and what others ask of this node is served in the order
//! in which it was asked. Repairs that a client waits for go first everywhere and wait for nothing; one that is
//! under way becomes such a one when its leader orders it again.

use super::budget::{PIECE_COST, Way};
use super::repair::Phase;
use super::{ConnId, Node, Output, ReadMode, ReadResult, Reading};
use crate::checksum::HOLE;
use crate::ids::*;
use crate::limits::{FETCH_WAIT_MAX, NODE_FETCHES_MAX, NODE_REPAIRS_AHEAD_US};
use crate::message::{FETCH_URGENT, FromNode, PeerMsg};

/// Completed repairs that are remembered: more than end while a leader's word is on its way.
const DONE_MAX: usize = 64;

/// Bytes of the budget that a piece takes at most.
pub(super) fn cost(blocks: BlockRange) -> u64 {
    u64::from(blocks.count) * BLOCK_SIZE as u64 + PIECE_COST
}

/// A Fetch that waits.
#[derive(Debug)]
pub(super) struct Asked {
    pub node: NodeId,
    pub object: ObjectId,
    pub ballot: Ballot,
    pub request: u64,
    pub min: u64,
    pub blocks: BlockRange,
    pub have: Box<[u64]>,
    pub since: Time,
}

impl Asked {
    /// Not now.
    pub fn refuse<P>(self, out: &mut Vec<Output<P>>) {
        let Asked { node, object, ballot, request, .. } = self;
        out.push(Output::ToPeer { node, msg: PeerMsg::NotYet { object, ballot, request } });
    }
}

/// A repair that was completed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub object: ObjectId,
    pub ballot: Ballot,
    pub upto: u64,
}

impl<P: Clone> Node<P> {
    /// The budget has room for another repair that no client waits for.
    pub(super) fn takes_on(&self, object_blocks: u32) -> bool {
        let each = u64::from(object_blocks) * BLOCK_SIZE as u64;
        self.background == 0
            || (self.background as u64).saturating_mul(each) < self.budget.in_time(NODE_REPAIRS_AHEAD_US)
    }

    /// The leader orders it again later.
    pub(super) fn put_off(
        &mut self,
        conn: ConnId,
        object: ObjectId,
        ballot: Ballot,
        out: &mut Vec<Output<P>>,
    ) {
        self.budget.put_off();
        self.counters.repairs_put_off += 1;
        self.tell_not_repaired(conn, object, ballot, out);
    }

    /// A client has come to wait for a repair that is under way, or was completed while its leader said so.
    /// False: it is neither.
    pub(super) fn hurry(
        &mut self,
        conn: ConnId,
        object: ObjectId,
        ballot: Ballot,
        (from, upto, object_blocks): (NodeId, u64, u32),
        out: &mut Vec<Output<P>>,
    ) -> bool {
        if self.done.contains(&Done { object, ballot, upto })
            && !self.repairs.contains_key(&object)
            && !self.damaged.contains(&object)
            && let Some(state) = self.group(object.group)
            && !state.behind.contains_key(&object.index)
            // A repair of what scrub has found in doubt is a new one, at the same head.
            && state.marks(object.index).is_empty()
        {
            // Its Have is on the way; held until what it says is durable, like that one.
            let seq = state.objects.get(&object.index).map_or(0, |head| head.seq);
            self.hold_leader(conn, FromNode::Have { object, ballot, seq, full: self.full }, out);
            return true;
        }
        let Some(repair) = self.repairs.get_mut(&object) else { return false };
        let same = (repair.conn, repair.ballot, repair.from) == (conn, ballot, from)
            && (repair.upto, repair.object_blocks) == (upto, object_blocks);
        if !same {
            return false;
        }
        if std::mem::replace(&mut repair.urgent, true) {
            return true;
        }
        self.background -= 1;
        match repair.phase {
            Phase::Queued => {
                self.repair_queue.retain(|queued| *queued != object);
                self.repair_queue.push_front(object);
                self.start_repairs(out);
            }
            Phase::Paced => {
                self.paced.retain(|paced| paced.1 != object);
                self.fetch_next(object, out);
            }
            // Perhaps it waits at its source. The answer to what was asked before is not waited for.
            Phase::Fetching { .. } => self.fetch_next(object, out),
            Phase::Table { .. } | Phase::Again | Phase::Catching => {}
        }
        true
    }

    /// Remembers it for a while.
    pub(super) fn note_done(&mut self, done: Done) {
        if self.done.len() >= DONE_MAX {
            self.done.pop_front();
        }
        self.done.push_back(done);
    }

    /// Serves a Fetch now, or when it is its turn.
    pub(super) fn serve_in_turn(&mut self, asked: Asked, out: &mut Vec<Output<P>>) {
        // One repair of an object at a time, and one piece of it: an older one was given up.
        self.asked.retain(|other| (other.node, other.object) != (asked.node, asked.object));
        let cost = cost(asked.blocks);
        if asked.request & FETCH_URGENT != 0 {
            self.budget.take_at_once(self.now, Way::Out, cost);
            self.serve(asked, out);
        } else if self.asked.is_empty() && self.budget.take(self.now, Way::Out, cost) {
            self.serve(asked, out);
        } else if self.asked.len() < NODE_FETCHES_MAX {
            self.counters.fetches_waited += 1;
            self.asked.push_back(asked);
        } else {
            asked.refuse(out);
        }
    }

    fn serve(&mut self, asked: Asked, out: &mut Vec<Output<P>>) {
        let Some(head) = self.fetchable(asked.object, asked.ballot, asked.min) else {
            self.budget.give_back(Way::Out, cost(asked.blocks));
            return asked.refuse(out);
        };
        let Asked { node, object, ballot, request, blocks, have, .. } = asked;
        let (after, doubts) = (self.given, self.doubts_of(object));
        let mode = ReadMode::Differing(have.clone());
        let what = Reading::Fetch { node, object, ballot, request, head, blocks, doubts, after, have };
        self.read(what, object, blocks, mode, out);
    }

    /// A piece was read: what it did not need of the budget goes back.
    pub(super) fn paid_for(&mut self, blocks: BlockRange, have: &[u64], found: &ReadResult<P>) {
        let differs = have.iter().zip(&found.checksums).filter(|(have, sum)| have != sum && **sum != HOLE);
        let spent = differs.count() as u64 * BLOCK_SIZE as u64 + PIECE_COST;
        self.budget.give_back(Way::Out, cost(blocks).saturating_sub(spent));
    }

    /// Looks whether the budget has something for those who wait.
    pub(super) fn take_turns(&mut self, out: &mut Vec<Output<P>>) {
        while let Some(asked) = self.asked.front() {
            let late = self.now.since(asked.since) > FETCH_WAIT_MAX;
            if !late && !self.budget.take(self.now, Way::Out, cost(asked.blocks)) {
                break;
            }
            let Some(asked) = self.asked.pop_front() else { break };
            match late {
                true => asked.refuse(out),
                false => self.serve(asked, out),
            }
        }
        // Each goes on, or is put back in its place and is the last that is looked at.
        while let Some((begun, object)) = self.paced.first().copied() {
            self.paced.remove(0);
            self.fetch_next(object, out);
            if self.paced.first().is_some_and(|first| *first == (begun, object)) {
                break;
            }
        }
    }
}
