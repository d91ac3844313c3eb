//! `ack = all-in-sync` (5.6): a write is answered when a majority has it *and* every copy that counts.
//!
//! A majority decides what is true, in these pools as in all others: what is read, repaired, settled and found by
//! the next leader is what a majority has. The option only holds back answers to clients. So nothing that reads or
//! later writes wait for is later by it, and what is read may be a write whose client has no answer yet: then it is
//! on a majority, and never gone again.
//!
//! **Who counts** for an answer: a member (not a learner) that is spoken to in the present ballot, and whose copy is
//! in line (5.3). A copy that was listed as behind, is under repair, has left a Gap, or was refused for want of room
//! does not count; nor does any copy of a node that is away, cut loose or held out, or has lost data and not said so
//! itself ([`super::lost`]). A copy that comes back in line
//! counts from then on, for what is not answered yet too. Answers of one object are in the order of its writes.
//!
//! **How long** an answer is held back: until the copy that lacks the write does not count any more. That is at once
//! where its connection breaks, [`super::Options::node_timeout`] where its node says nothing, and
//! [`super::Options::lag_max`] where it says something now and then: a write that old makes its node a laggard
//! ([`super::laggard`]), or, where another group needs the node, its copy is left behind alone. Each to a tick. A
//! copy is never left behind where that would leave fewer whole copies than a majority at connected nodes; then
//! clients wait for that node anyway.
//!
//! **A next round** (5.8) begins with nobody in line. What a majority had by then is answered when every connected
//! member has answered the Open: a node has the writes behind it that were sent before.
//!
//! What it may not do: change what counts as durable, send anything, or answer what no majority has.

use super::group::{Group, Link, Phase, Slot};
use super::object::{CopyState, Object};
use super::{Leader, Output, Shared};
use crate::client::OpOutput;
use crate::ids::*;
use crate::map::Ack;

impl Shared {
    /// Answers wait for more than a majority.
    pub fn waits_for_all(&self) -> bool {
        self.options.ack == Ack::AllInSync
    }
}

/// Writes that were durable on a majority when their ballot ended, and whose copies were not all heard of.
#[derive(Debug, Default)]
pub(super) struct Owed {
    pub ids: Vec<crate::client::OpId>,
    /// Since when the first of them waits.
    since: Time,
}

impl Owed {
    /// At most the operations of clients ([`crate::limits::LEADER_OPS_MAX`]).
    pub fn push(&mut self, now: Time, id: crate::client::OpId) {
        if self.ids.is_empty() {
            self.since = now;
        }
        self.ids.push(id);
    }
}

impl<P: Clone + Default> Group<P> {
    /// The slots, as bits, whose copies count for an answer and do not have a write.
    fn lacking(&self, object: &Object<P>, seq: u64) -> u8 {
        let lacks = |i: usize| object.copies[i].state == CopyState::InLine && object.copies[i].have < seq;
        let slots = self.slots.iter().enumerate();
        slots.filter(|(i, slot)| slot.member && slot.live() && lacks(*i)).map(|(i, _)| 1u8 << i).sum()
    }

    /// The number up to which writes may be answered.
    fn answerable(&self, shared: &Shared, object: &Object<P>) -> u64 {
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::all_in_sync_forgotten() {
            return object.acked;
        }
        if !shared.waits_for_all() {
            return object.acked;
        }
        let counts = |i: usize| object.copies[i].state == CopyState::InLine;
        let slots = self.slots.iter().enumerate();
        let have =
            slots.filter(|(i, s)| s.member && s.live() && counts(*i)).map(|(i, _)| object.copies[i].have);
        have.fold(object.acked, u64::min)
    }

    /// A majority has an object's writes up to `acked`: the rest of [`Group::advance`]. Kept out of it, which is hot in
    /// all pools.
    #[inline(never)]
    pub fn acked_in_sync(
        &mut self,
        shared: &mut Shared,
        now: Time,
        index: ObjectIndex,
        acked: u64,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(object) = self.objects.get_mut(&index) else { return };
        let before = std::mem::replace(&mut object.acked, acked);
        let newly = object.first_above(before)..object.first_above(acked);
        for entry in object.entries.range_mut(newly) {
            entry.acked = true;
            entry.op = None;
        }
        object.held += (acked - before) as u32;
        self.answer_in_sync(shared, now, index, before, out);
    }

    /// Answers what may be answered of an object's writes that a majority has. `before`: what it had before this
    /// input; the answers to these had to wait.
    fn answer_in_sync(
        &mut self,
        shared: &mut Shared,
        now: Time,
        index: ObjectIndex,
        before: u64,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(object) = self.objects.get(&index) else { return };
        let upto = self.answerable(shared, object).max(object.answered());
        let Some(object) = self.objects.get_mut(&index) else { return };
        self.counters.answers_held += upto.min(before).saturating_sub(object.answered());
        let (from, to) = (object.first_above(object.answered()), object.first_above(upto));
        object.held = (object.acked - upto) as u32;
        let lease = shared.lease_holds(now);
        for entry in object.entries.range_mut(from..to) {
            match entry.id.take() {
                // Durable: a quorum has reported it, and so has every copy that counts, each after its own device had.
                Some(id) if lease => shared.done(id, Ok(OpOutput::Written), out),
                Some(id) => self.acks_next.push(id),
                None => {}
            }
        }
    }

    /// Fewer copies of an object count, or it is another option: answers may be due.
    #[inline(never)]
    pub fn answer_freed(
        &mut self,
        shared: &mut Shared,
        now: Time,
        index: ObjectIndex,
        out: &mut Vec<Output<P>>,
    ) {
        self.answer_in_sync(shared, now, index, u64::MAX, out);
        let Some(object) = self.objects.get_mut(&index) else { return };
        object.drop_finished();
        if object.at_rest() {
            object.rest(&mut self.spare);
            self.busy.remove(&index);
        }
        self.confirm_acks(shared, now, out);
    }

    /// [`Group::answer_freed`] of all objects: a node's copies do not count any more, or it is another option.
    pub fn answer_all_freed(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        let busy: Vec<ObjectIndex> = self.busy.iter().copied().collect();
        for index in busy {
            self.answer_freed(shared, now, index, out);
        }
        self.pay_owed(shared, now, out);
    }

    /// Answers what the last round has left over, once every connected member has said where it is in this one: or
    /// it has taken for longer than any answer is held back.
    pub fn pay_owed(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if self.owed.ids.is_empty() {
            return;
        }
        let to_come = |link: Link| matches!(link, Link::Opening | Link::Opened);
        let holds = |s: &Slot| s.member && to_come(s.link) && !self.is_doubted(shared, s.node);
        let all = self.phase == Phase::Decided && !self.slots.iter().any(holds);
        if all || !shared.waits_for_all() || now.since(self.owed.since) > shared.options.lag_max {
            // Durable: a quorum had reported them in an earlier ballot of this generation, and whoever decides since finds
            // them.
            self.acks_next.append(&mut self.owed.ids);
            self.confirm_acks(shared, now, out);
        }
    }

    /// Copies that have made a write wait for longer than a laggard may: their nodes are laggards. Where one cannot be
    /// done without elsewhere, its copies of such objects are left behind, if these can do without them.
    fn find_late_copies(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        let limit = shared.options.lag_max;
        let mut late: Vec<(ObjectIndex, u8)> = Vec::new();
        for index in &self.busy {
            let Some(object) = self.objects.get(index) else { continue };
            let Some(entry) = object.entries.get(object.first_above(object.answered())) else { continue };
            if entry.acked && now.since(entry.sent) > limit {
                late.push((*index, self.lacking(object, entry.seq)));
            }
        }
        for (index, slots) in late {
            for i in (0..self.slots.len()).filter(|i| slots & 1 << i != 0) {
                shared.laggard_now(
                    now,
                    self.slots[i].node,
                    "clients' writes wait for it, and it is too late",
                );
            }
            let Some(object) = self.objects.get(&index) else { continue };
            let whole = |i: usize| object.copies[i].state == CopyState::InLine && slots & 1 << i == 0;
            if !self.quorum(|i, slot| slot.link == Link::Settled && whole(i)) {
                continue;
            }
            self.counters.answers_late += 1;
            let retry = now.after(shared.options.hold.0);
            for i in (0..self.slots.len()).filter(|i| slots & 1 << i != 0) {
                self.leave_behind(shared, now, i, index, retry, out);
            }
        }
        self.pay_owed(shared, now, out);
    }
}

impl<P: Clone + Default> Leader<P> {
    /// The pool's writes are answered so from now on, those under way too.
    pub(super) fn set_ack(&mut self, now: Time, ack: Ack, out: &mut Vec<Output<P>>) {
        if std::mem::replace(&mut self.shared.options.ack, ack) == ack {
            return;
        }
        for group in self.groups.iter_mut().flatten() {
            group.answer_all_freed(&mut self.shared, now, out);
        }
    }

    /// See [`Group::find_late_copies`]; with each regular tick.
    pub(super) fn find_late_copies(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        if !self.shared.waits_for_all() {
            return;
        }
        for group in self.groups.iter_mut().flatten() {
            group.find_late_copies(&mut self.shared, now, out);
        }
    }
}
