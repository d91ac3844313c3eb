//! Full nodes: what is still written, who is told "no space", and that nothing gets stuck.
//!
//! A full node takes what adds no blocks and refuses the rest (N3, N4); a refusal leaves the copy behind.
//! Three things follow for a leader:
//!
//! - A write that a quorum refuses costs a next round. A client that tries again and again must not cost
//!   one each time: while no quorum of nodes has room, the blocks of a write are looked at first
//!   ([`Group::probe`]), and one that would add some is refused without being sent. Now and then one is
//!   sent all the same, to find out ([`Shared::tries`]).
//! - A copy may have taken what the others refuse. Were its vote to decide the next round, they could not
//!   be repaired, and the object would not open before there is room. So that round is decided by those
//!   who refused, if they are a quorum ([`Group::note_no_room`]): any quorum's votes will do, and these hold
//!   everything that was acknowledged and nothing that they have no room for.
//! - A repair that is refused is ordered again later, one at a time.
//!
//! What it may not do: give up what was acknowledged to make room.

use super::group::{Group, Link, Phase};
use super::object::{CopyState, Entry};
use super::{Output, Peer, Shared};
use crate::client::{ClientOp, OpError};
use crate::ids::*;

/// How long a node that has said that it is full counts as full (µs). Then one write finds out; the time
/// is doubled with each such trial, up to the second. A trial that fails costs a next round of its group.
const FULL_FOR: u64 = 1_000_000;
const FULL_FOR_MAX: u64 = 16_000_000;
/// Between repairs that are ordered of a node which has refused the last one for want of room (µs).
const REPAIR_PACE: u64 = 100_000;
/// Pause before a copy that was refused for want of room is repaired again (µs); the second one where its
/// object cannot open.
const REPAIR_RETRY_FULL: u64 = 10_000_000;
const OPEN_RETRY_FULL: u64 = 1_000_000;
/// Pause between next rounds of a group because an object cannot open for want of room (µs).
const ROUND_PAUSE_FULL: u64 = 10_000_000;

/// How long a decision waits for the votes of nodes that have refused something for want of room (µs).
const REFUSERS_WAIT: u64 = 500_000;

impl Peer {
    /// A repair is ordered of it: none directly behind it, if it has refused the last one.
    pub(super) fn pace_repairs(&mut self, now: Time) {
        if self.repair_after != Time(0) {
            self.repair_after = now.after(REPAIR_PACE);
        }
    }
}

impl Shared {
    /// A node has refused a write for want of room.
    fn refused_for_room(&mut self, now: Time, node: NodeId) {
        let peer = self.peer(node);
        peer.full_for = peer.full_for.max(FULL_FOR);
        peer.full_until = peer.full_until.max(now.after(peer.full_for));
    }

    /// A node has refused a repair for want of room.
    fn refused_repair(&mut self, now: Time, node: NodeId) {
        self.peer(node).repair_after = now.after(REPAIR_PACE);
    }

    /// A node has taken a write, and says whether it will soon be full.
    pub(super) fn took(&mut self, now: Time, node: NodeId, full: bool) {
        let peer = self.peer(node);
        if full {
            peer.full_until = peer.full_until.max(now.after(FULL_FOR));
        } else {
            (peer.full_for, peer.full_until) = (0, Time(0));
        }
    }

    /// The node is not known to be full.
    fn has_room(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_none_or(|peer| peer.full_until == Time(0))
    }

    /// It was heard to be full so long ago that a write may find out whether it still is.
    fn may_be_tried(&self, now: Time, node: NodeId) -> bool {
        self.peers.get(&node).is_none_or(|peer| peer.full_until <= now)
    }

    /// A write finds out: no other does for a while.
    fn tries(&mut self, now: Time, node: NodeId) {
        let peer = self.peer(node);
        if peer.full_until != Time(0) {
            peer.full_for = (peer.full_for * 2).clamp(FULL_FOR, FULL_FOR_MAX);
            peer.full_until = now.after(peer.full_for);
        }
    }
}

impl<P: Clone + Default> Group<P> {
    /// False where so many nodes have said that they are full that no quorum has room for new blocks. A
    /// write is then sent only if its blocks are there already, and a full node takes it; one that adds
    /// blocks is refused here. Sent all the same it would cost a next round, of everybody's objects. Once in
    /// a while one is sent, to find out.
    pub fn may_add(&self, shared: &mut Shared, now: Time) -> bool {
        if self.quorum(|_, slot| shared.has_room(slot.node)) {
            return true;
        }
        let tries = self.quorum(|_, slot| shared.may_be_tried(now, slot.node));
        if tries {
            self.slots.iter().for_each(|slot| shared.tries(now, slot.node));
        }
        tries
    }

    /// Looks at the blocks of a write, whether they are there already; gives it back if it has to wait.
    /// The answer is a hint, so that no lease is asked for: what may be written is the nodes' to say.
    pub fn probe(
        &mut self,
        shared: &mut Shared,
        now: Time,
        op: ClientOp<P>,
        out: &mut Vec<Output<P>>,
    ) -> Option<ClientOp<P>> {
        let object = self.objects.get(&op.object)?;
        if object.write_in_flight(op.kind.blocks()) {
            return Some(op);
        }
        let Some(i) = self.pick(shared, now, op.object, 0) else { return Some(op) };
        self.counters.probes += 1;
        let (index, blocks) = (op.object, op.kind.blocks());
        let id = self.new_read(shared, now, op, i, out);
        self.probing.insert((index, id), blocks);
        None
    }

    /// The blocks of a write that overlaps are being looked at. A write that was issued in an older ballot
    /// and is issued again may be in the object already: one that came behind it and went before it now
    /// would be undone.
    pub fn waits_for_probe(&self, index: ObjectIndex, blocks: BlockRange) -> bool {
        !self.probing.is_empty()
            && self.probing.range((index, 0)..=(index, u64::MAX)).any(|(_, it)| it.overlaps(blocks))
    }

    /// What a probe has found: holes, or that everything is there, or that it is not known.
    pub fn probed(&mut self, shared: &mut Shared, now: Time, id: u64, holes: bool, out: &mut Vec<Output<P>>) {
        let Some(read) = self.reads.remove(&id) else { return };
        let index = read.op.object;
        self.probing.remove(&(index, id));
        self.unsend(shared, &read);
        if holes {
            shared.done(read.op.id, Err(OpError::NoSpace), out);
        } else {
            self.issue_write(shared, now, read.op, out);
        }
        self.run_if_waiting(shared, now, index, out);
    }

    /// The node has no room for the blocks that a write, or the repair of its copy, would add.
    pub fn no_space(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        (index, seq): (ObjectIndex, u64),
        out: &mut Vec<Output<P>>,
    ) {
        let node = self.slots[i].node;
        let Some(object) = self.objects.get_mut(&index) else { return };
        match object.copies[i].state {
            CopyState::Except | CopyState::Unknown => return,
            CopyState::InLine => {
                shared.refused_for_room(now, node);
                if let Some(entry) = object.entries.iter_mut().find(|entry| entry.seq == seq) {
                    entry.refused = true;
                }
            }
            CopyState::Repairing { .. } => shared.refused_repair(now, node),
        }
        object.copies[i].no_room = true;
        let retry = if object.open { REPAIR_RETRY_FULL } else { OPEN_RETRY_FULL };
        self.leave_behind(shared, now, i, index, now.after(retry), out);
        self.refuse_hopeless(shared, now, index, out);
        self.round_if_stuck(shared, now, out);
        self.order_repairs(shared, now, out);
    }

    /// Writes that no quorum can take. Those that a node has refused themselves are: their clients are told
    /// at once. The next round, decided by those who have refused (5.2), settles that the object does not
    /// have them, so that no read waits for them for ever; writes that were only behind them are issued
    /// again.
    fn refuse_hopeless(
        &mut self,
        shared: &mut Shared,
        now: Time,
        index: ObjectIndex,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(object) = self.objects.get(&index) else { return };
        let hopeless = |entry: &Entry<P>| {
            !entry.acked
                && !self.quorum(|i, _| !object.copies[i].no_room || object.copies[i].have >= entry.seq)
        };
        let Some(first) = object.entries.iter().find(|e| hopeless(e)).map(|entry| entry.seq) else { return };
        let Some(object) = self.objects.get_mut(&index) else { return };
        for entry in object.entries.iter_mut().filter(|entry| entry.seq >= first && entry.refused) {
            if let Some(id) = entry.id.take() {
                shared.done(id, Err(OpError::NoSpace), out);
            }
        }
        self.next_round(shared, now, out);
    }

    /// Objects that no quorum could take for want of room: 5.2 begins with those who could not. Their votes
    /// are as good as any quorum's, and they do not give a write to the object that they would refuse.
    pub fn note_no_room(&mut self) {
        if self.phase != Phase::Decided {
            return; // still the ones of the last decision, which has not been made
        }
        self.no_room.clear();
        for (index, object) in &self.objects {
            let mask = object.without_room();
            if mask != 0 && self.quorum(|i, _| mask & 1 << i != 0) {
                self.no_room.insert(*index, mask);
            }
        }
    }

    /// Votes of nodes that refused something in the last ballot are still to come: what is decided without
    /// them they may refuse again. Not for ever: one that hangs must not hold up the group.
    pub fn waits_for_refusers(&self, now: Time) -> bool {
        let wanted = self.no_room.values().fold(0, |all, mask| all | mask);
        now.since(self.round_began) < REFUSERS_WAIT
            && self.slots.iter().enumerate().any(|(i, s)| s.link == Link::Opening && wanted & 1 << i != 0)
    }

    /// An object cannot open because no quorum has room for what it holds by this ballot's decision, and
    /// another decision is due.
    pub fn round_for_room(&mut self, now: Time) -> bool {
        let full = |index: &ObjectIndex| {
            let mask = self.objects.get(index).map_or(0, |object| object.without_room());
            mask != 0 && self.quorum(|i, _| mask & 1 << i != 0)
        };
        let due = now >= self.full_round_after && self.closed.iter().any(full);
        if due {
            self.full_round_after = now.after(ROUND_PAUSE_FULL);
        }
        due
    }
}
