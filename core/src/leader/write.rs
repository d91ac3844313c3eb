//! 5.6: numbering writes, sending them, counting who has them.

use super::group::{Group, Phase};
use super::object::{CopyState, Entry, Object};
use super::{NodeList, Output, Shared};
use crate::client::{ClientOp, OpError, OpKind, OpOutput};
use crate::ids::*;
use crate::message::{ToNode, WriteOp};
use std::collections::VecDeque;

/// Pause before a copy that refused a write, or whose repair failed, is repaired again (µs).
pub(super) const REPAIR_RETRY: u64 = 100_000;
/// What a write without data takes of a node's backlog.
const ENTRY_BYTES: u64 = 64;

impl<P: Clone + Default> Group<P> {
    /// Takes a client's operation, or one that is issued again in a new round.
    pub fn submit(&mut self, shared: &mut Shared, now: Time, op: ClientOp<P>, out: &mut Vec<Output<P>>) {
        match self.phase {
            Phase::Decided => {}
            Phase::Opening => return self.waiting.push_back(op),
            Phase::Closed => {
                self.waiting.push_back(op);
                return self.next_round(shared, now, out);
            }
        }
        let index = op.object;
        if !self.objects.contains_key(&index) {
            let fresh = self.fresh_object();
            self.objects.insert(index, fresh);
            self.closed.insert(index);
            self.advance(shared, now, index, out);
        }
        let Some(object) = self.objects.get_mut(&index) else { return };
        if !object.open || object.waits_behind(op.kind.blocks(), op.kind.is_write()) {
            let first = !object.open && object.waiting.is_empty();
            object.waiting.push_back(op);
            self.busy.insert(index);
            if first {
                self.order_repairs(shared, now, out); // this object's first
            }
            return;
        }
        if let Some(op) = self.start(shared, now, op, out)
            && let Some(object) = self.objects.get_mut(&index)
        {
            object.waiting.push_back(op);
            self.busy.insert(index);
        }
    }

    /// Starts an operation on an open object; gives it back if it has to wait.
    fn start(
        &mut self,
        shared: &mut Shared,
        now: Time,
        op: ClientOp<P>,
        out: &mut Vec<Output<P>>,
    ) -> Option<ClientOp<P>> {
        if op.kind.is_write() {
            self.start_write(shared, now, op, out)
        } else {
            self.start_read(shared, now, op, out)
        }
    }

    fn start_write(
        &mut self,
        shared: &mut Shared,
        now: Time,
        op: ClientOp<P>,
        out: &mut Vec<Output<P>>,
    ) -> Option<ClientOp<P>> {
        if self.waits_for_probe(op.object, op.kind.blocks()) {
            return Some(op);
        }
        let object = self.objects.get(&op.object)?;
        if matches!(op.kind, OpKind::Zero { .. }) && object.untouched() && shared.lease_holds(now) {
            // Nothing was ever written, as a quorum has said, and under the lease nobody else can have
            // written since: the holes are there already, and durable.
            shared.done(op.id, Ok(OpOutput::Written), out);
            return None;
        }
        if matches!(op.kind, OpKind::Write { .. }) && !self.may_add(shared, now) {
            if object.untouched() && shared.lease_holds(now) {
                shared.done(op.id, Err(OpError::NoSpace), out);
                return None;
            }
            return self.probe(shared, now, op, out);
        }
        self.issue_write(shared, now, op, out);
        None
    }

    /// Numbers a write and sends it to everyone whose copy is live.
    pub fn issue_write(&mut self, shared: &mut Shared, now: Time, op: ClientOp<P>, out: &mut Vec<Output<P>>) {
        let ClientOp { id, object: index, kind } = op;
        let write = match kind {
            OpKind::Write { blocks, checksums, data } => WriteOp::Data { blocks, checksums, data },
            OpKind::Zero { blocks } => WriteOp::Zero { blocks },
            OpKind::Read { .. } | OpKind::Status { .. } => return,
        };
        let (group, ballot) = (self.id, self.ballot);
        let Some(object) = self.objects.get_mut(&index) else { return };
        object.issued += 1;
        let seq = object.issued;
        let bytes = (u64::from(write.data_blocks()) * BLOCK_SIZE as u64).max(ENTRY_BYTES);
        let blocks = write.blocks();
        if !self.disputed.is_empty() {
            self.dispute_ends(index, blocks);
        }
        let Some(object) = self.objects.get_mut(&index) else { return };
        let mut entry = Entry {
            seq,
            blocks,
            op: Some(write.clone()),
            id: Some(id),
            pending: 0,
            acked: false,
            refused: false,
            bytes,
            sent: now,
        };
        let mut to = NodeList::default();
        let mut too_far_behind = 0u8;
        for (i, slot) in self.slots.iter().enumerate() {
            let gets = slot.live()
                && matches!(object.copies[i].state, CopyState::InLine | CopyState::Repairing { .. });
            if gets {
                to.push(slot.node);
                entry.pending |= 1 << i;
                if shared.owes(now, slot.node, bytes) {
                    too_far_behind |= 1 << i;
                }
            }
        }
        if object.entries.capacity() == 0 {
            object.entries = self.spare.pop().unwrap_or_default();
        }
        object.entries.push_back(entry);
        self.busy.insert(index);
        if too_far_behind != 0 {
            to = self.leave_behind_if_spared(shared, now, index, too_far_behind, to, out);
        }
        if !to.is_empty() {
            let object = ObjectId { group, index };
            let snap = shared.spec.snap;
            out.push(Output::Send { to, msg: ToNode::Write { object, ballot, seq, snap, op: write } });
        }
    }

    /// The writes in flight that a node's copies in line lack, behind its Settle.
    pub fn send_missing(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        let node = self.slots[i].node;
        for index in &self.busy {
            let Some(object) = self.objects.get_mut(index) else { continue };
            let copy = object.copies[i];
            if copy.state != CopyState::InLine {
                continue;
            }
            let missing = object.first_above(copy.have);
            for entry in object.entries.range_mut(missing..) {
                let Some(op) = entry.op.clone() else { continue };
                if entry.pending & 1 << i == 0 {
                    entry.pending |= 1 << i;
                    entry.sent = now;
                    shared.owes(now, node, entry.bytes);
                }
                let object = ObjectId { group: self.id, index: *index };
                let (ballot, seq, snap) = (self.ballot, entry.seq, shared.spec.snap);
                let msg = ToNode::Write { object, ballot, seq, snap, op };
                out.push(Output::Send { to: NodeList::one(node), msg });
            }
        }
    }

    /// A node has reported everything up to `seq` as durable.
    pub fn have(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        index: ObjectIndex,
        seq: u64,
        out: &mut Vec<Output<P>>,
    ) {
        let node = self.slots[i].node;
        if !self.slots[i].live() {
            return;
        }
        let Some(object) = self.objects.get_mut(&index) else { return };
        let copy = &mut object.copies[i];
        if seq > object.issued {
            return shared.reset(node, "it reports a write that was never issued");
        }
        let mut repaired = false;
        match copy.state {
            CopyState::InLine => {}
            CopyState::Repairing { upto } if seq >= upto => {
                copy.state = CopyState::InLine;
                repaired = true;
            }
            // Late, of before the copy was left behind. It says nothing about the writes since.
            _ => return,
        }
        // What it had reported before is not awaited any more: only what is new is looked at. In a copy
        // that was behind anything may be.
        let before = if repaired { 0 } else { copy.have };
        let levels = seq >= object.acked && (repaired || before < object.acked);
        copy.have = copy.have.max(seq);
        copy.no_room &= !repaired;
        let (from, to) = (object.first_above(before), object.first_above(seq));
        if from < to {
            shared.answered(now, node, i, object.entries.range_mut(from..to));
        }
        if repaired {
            self.behind.remove(&(index, i));
            let peer = shared.peer(node);
            peer.repair_done();
        }
        self.advance(shared, now, index, out);
        if levels {
            // Reads may have found no copy that is level.
            self.run_if_waiting(shared, now, index, out);
        }
        if repaired {
            self.order_repairs(shared, now, out);
        }
    }

    /// Looks at an object after a report: does it open, which writes are acknowledged, what may start?
    pub fn advance(&mut self, shared: &mut Shared, now: Time, index: ObjectIndex, out: &mut Vec<Output<P>>) {
        let Some(object) = self.objects.get(&index) else { return };
        if !object.decided {
            return;
        }
        // Whole (section 1): settled in this ballot, not behind, and so at or past the base.
        let whole = |copies: &Object<P>, i: usize, settled: bool| {
            settled && copies.copies[i].state == CopyState::InLine
        };
        let opens = !object.open && self.quorum(|i, slot| whole(object, i, slot.settled));
        let before = object.acked;
        let mut acked = before;
        if object.open || opens {
            for entry in object.entries.range(object.first_above(acked)..) {
                if !self.has_quorum(object, entry.seq) {
                    break;
                }
                acked = entry.seq;
            }
        }
        let Some(object) = self.objects.get_mut(&index) else { return };
        if opens {
            object.open = true;
            self.closed.remove(&index);
        }
        let moved = acked > before || opens;
        let object = if shared.waits_for_all() {
            self.acked_in_sync(shared, now, index, acked, out);
            let Some(object) = self.objects.get_mut(&index) else { return };
            object
        } else {
            object.acked = acked;
            let lease = shared.lease_holds(now);
            let newly = object.first_above(before)..object.first_above(acked);
            for entry in object.entries.range_mut(newly) {
                entry.acked = true;
                entry.op = None;
                match entry.id.take() {
                    // Durable: a quorum has reported it, each after its own device had.
                    Some(id) if lease => shared.done(id, Ok(OpOutput::Written), out),
                    Some(id) => self.acks_next.push(id),
                    None => {}
                }
            }
            object
        };
        object.drop_finished();
        if object.at_rest() {
            object.rest(&mut self.spare);
            self.busy.remove(&index);
        } else if moved && !object.waiting.is_empty() {
            self.run_waiting(shared, now, index, out);
        }
        self.confirm_acks(shared, now, out);
    }

    /// "Everything up to `seq`" is reported by a quorum, from copies that are whole. What a node has
    /// reported stays true when its copy is left behind later.
    fn has_quorum(&self, object: &Object<P>, seq: u64) -> bool {
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::ack_at_one_copy() {
            return self
                .slots
                .iter()
                .enumerate()
                .any(|(i, slot)| slot.settled && object.copies[i].have >= seq);
        }
        self.quorum(|i, slot| slot.settled && object.copies[i].have >= seq)
    }

    /// [`Group::run_waiting`], if there is anything.
    pub fn run_if_waiting(
        &mut self,
        shared: &mut Shared,
        now: Time,
        index: ObjectIndex,
        out: &mut Vec<Output<P>>,
    ) {
        if self.objects.get(&index).is_some_and(|object| object.open && !object.waiting.is_empty()) {
            self.run_waiting(shared, now, index, out);
        }
    }

    /// Starts what can be started of an object's waiting operations, in their order; one that still has
    /// to wait holds back those behind it which overlap.
    pub fn run_waiting(
        &mut self,
        shared: &mut Shared,
        now: Time,
        index: ObjectIndex,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(object) = self.objects.get_mut(&index).filter(|object| object.open) else { return };
        let waiting = std::mem::take(&mut object.waiting);
        for op in waiting {
            let Some(object) = self.objects.get_mut(&index) else { return };
            let back = if object.waits_behind(op.kind.blocks(), op.kind.is_write()) {
                Some(op)
            } else {
                self.start(shared, now, op, out)
            };
            if let (Some(op), Some(object)) = (back, self.objects.get_mut(&index)) {
                object.waiting.push_back(op);
            }
        }
        match self.objects.get(&index) {
            Some(object) if object.at_rest() => self.busy.remove(&index),
            _ => self.busy.insert(index),
        };
    }

    /// The copy does not follow.
    pub fn gap(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        index: ObjectIndex,
        repair: bool,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(object) = self.objects.get(&index) else { return };
        match object.copies[i].state {
            CopyState::Repairing { .. } if repair => {}
            // Also the end of a repair: the Have of a write that was under way when it was ordered may have been taken
            // for the repair's, and what was kept on top is gone.
            CopyState::InLine => {}
            _ => return, // late: the copy is being repaired since
        }
        self.leave_behind(shared, now, i, index, now.after(REPAIR_RETRY), out);
        if repair {
            shared.peer(self.slots[i].node).repair_came_back(now);
        }
        self.order_repairs(shared, now, out);
    }

    /// The node's copy gets nothing more until a Repair is sent.
    pub fn leave_behind(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        index: ObjectIndex,
        retry: Time,
        out: &mut Vec<Output<P>>,
    ) {
        let node = self.slots[i].node;
        let Some(object) = self.objects.get_mut(&index) else { return };
        if matches!(object.copies[i].state, CopyState::Repairing { .. }) {
            let peer = shared.peer(node);
            peer.repairs = peer.repairs.saturating_sub(1);
        }
        object.copies[i].state = CopyState::Except;
        self.counters.left_behind += 1;
        self.behind.insert((index, i), retry);
        forget_pending(shared, now, node, i, &mut object.entries);
        self.answer_freed(shared, now, index, out);
    }
}

impl Shared {
    /// A node has reported writes as durable.
    fn answered<'a, P: 'a>(
        &mut self,
        now: Time,
        node: NodeId,
        slot: usize,
        entries: impl Iterator<Item = &'a mut Entry<P>>,
    ) {
        let peer = self.peer(node);
        for entry in entries.filter(|entry| entry.pending & 1 << slot != 0) {
            entry.pending &= !(1 << slot);
            peer.owes_less(now, entry.bytes);
            peer.write_latency.record(now, now.since(entry.sent));
        }
    }
}

/// Nothing is awaited of this node any more.
pub(super) fn forget_pending<P>(
    shared: &mut Shared,
    now: Time,
    node: NodeId,
    slot: usize,
    entries: &mut VecDeque<Entry<P>>,
) {
    for entry in entries.iter_mut().filter(|entry| entry.pending & 1 << slot != 0) {
        entry.pending &= !(1 << slot);
        shared.peer(node).owes_less(now, entry.bytes);
    }
}

/// The operation of a write that has to be issued again in a new round; `None` if it was acknowledged,
/// or its client has been answered.
pub(super) fn reissue<P>(index: ObjectIndex, entry: Entry<P>) -> Option<ClientOp<P>> {
    let id = entry.id.filter(|_| !entry.acked)?;
    let kind = match entry.op? {
        WriteOp::Data { blocks, checksums, data } => OpKind::Write { blocks, checksums, data },
        WriteOp::Zero { blocks } => OpKind::Zero { blocks },
    };
    Some(ClientOp { id, object: index, kind })
}
