//! Ordering repairs: which copy pulls from which, how many at once, clients' objects first.

use super::group::{Group, Link, Phase};
use super::laggard::QUIET;
use super::object::CopyState;
use super::{Output, Shared};
use crate::ids::*;
use crate::limits::LEADER_REPAIRS_MAX;
use crate::message::ToNode;
use std::cmp::Reverse;
use std::ops::Bound;

/// Copies that are looked at in one go: what is left is looked at when a repair ends, or at the next tick.
const LOOK_AT_MAX: usize = 256;

/// Instead of a time in `behind`: a repair was ordered and has not ended; and one that a client waits for.
const ORDERED: Time = Time(u64::MAX - 1);
const ORDERED_URGENT: Time = Time(u64::MAX);

impl<P: Clone + Default> Group<P> {
    /// Orders repairs of copies that are not in line, as far as the limits allow.
    pub fn order_repairs(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if self.phase != Phase::Decided {
            return;
        }
        self.replace_outvoted(shared, now, out);
        if self.behind.is_empty() {
            return;
        }
        // A client's operation waits for these: they come first, and may exceed the limit by as many. The same
        // where the copies that it waits for are at a node that is late.
        let (prompt, some_late) = self.prompt_slots(shared, now);
        let urgent: Vec<(ObjectIndex, usize)> = self
            .busy
            .iter()
            .filter(|index| self.closed.contains(index) || some_late && self.waits_beside(prompt, **index))
            .flat_map(|index| self.behind.range((*index, 0)..=(*index, usize::MAX)))
            .filter(|(_, at)| **at <= now)
            .map(|(key, _)| *key)
            .collect();
        for (index, i) in urgent {
            self.order_repair(shared, index, i, true, out);
        }
        // A client has come to wait for one that is under way.
        let hurried: Vec<(ObjectIndex, usize)> = self
            .busy
            .iter()
            .filter(|index| self.closed.contains(index))
            .flat_map(|index| self.behind.range((*index, 0)..=(*index, usize::MAX)))
            .filter(|(_, at)| **at == ORDERED)
            .map(|(key, _)| *key)
            .collect();
        for (index, i) in hurried {
            self.hurry_repair(shared, index, i, out);
        }
        let mut open: usize = shared.peers.values().map(|peer| peer.repairs).sum();
        // Goes on behind the last one: where a full node refuses some, the others have their turn too.
        let cursor = self.repair_cursor;
        let behind = self.behind.range((Bound::Excluded(cursor), Bound::Unbounded));
        let due: Vec<(ObjectIndex, usize)> = behind
            .chain(self.behind.range(..=cursor))
            .filter(|(_, at)| **at <= now)
            .map(|(key, _)| *key)
            .take(LOOK_AT_MAX)
            .collect();
        for (index, i) in due {
            let peer = shared.peer(self.slots[i].node);
            // Else it would only get the writes that its copy needs from then on.
            let keeps_up = !peer.is_far_behind() && !peer.is_silent(now, QUIET);
            if keeps_up && open < LEADER_REPAIRS_MAX && peer.takes_repairs(now) {
                open += 1;
                peer.pace_repairs(now);
                self.repair_cursor = (index, i);
                self.order_repair(shared, index, i, false, out);
            }
        }
    }

    fn order_repair(
        &mut self,
        shared: &mut Shared,
        index: ObjectIndex,
        i: usize,
        urgent: bool,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(object) = self.objects.get(&index) else { return };
        if !object.decided || object.copies[i].state != CopyState::Except || !self.slots[i].live() {
            return;
        }
        let upto = object.issued;
        if !self.send_repair(shared, index, i, urgent, out) {
            return;
        }
        if let Some(object) = self.objects.get_mut(&index) {
            object.copies[i].state = CopyState::Repairing { upto };
        }
        // Not due again until it has ended: the node says Have, Gap or NoSpace, or its connection breaks.
        self.behind.insert((index, i), if urgent { ORDERED_URGENT } else { ORDERED });
        self.counters.repairs += 1;
        shared.peer(self.slots[i].node).repairs += 1;
    }

    /// The same order again, for a client that waits: the node goes on where it is, without waiting for its
    /// budget.
    fn hurry_repair(&mut self, shared: &Shared, index: ObjectIndex, i: usize, out: &mut Vec<Output<P>>) {
        let Some(object) = self.objects.get(&index) else { return };
        // Else it would be another order, and its answer might be taken for that of the first.
        let same = object.copies[i].state == CopyState::Repairing { upto: object.issued };
        if same && self.slots[i].live() && self.send_repair(shared, index, i, true, out) {
            self.behind.insert((index, i), ORDERED_URGENT);
        }
    }

    /// False: there is no source.
    fn send_repair(
        &self,
        shared: &Shared,
        index: ObjectIndex,
        i: usize,
        urgent: bool,
        out: &mut Vec<Output<P>>,
    ) -> bool {
        let Some(object) = self.objects.get(&index) else { return false };
        // N5: a source has settled, and its copy is whole.
        let source = |(s, slot): &(usize, &super::group::Slot)| {
            *s != i
                && slot.link == Link::Settled
                && slot.settled
                && object.copies[*s].state == CopyState::InLine
        };
        let load = |node: NodeId| shared.peers.get(&node).map_or((0, 0), |peer| (peer.repairs, peer.reads));
        let slow = |node: NodeId| shared.peers.get(&node).is_some_and(|peer| peer.slow);
        let Some(from) = self
            .slots
            .iter()
            .enumerate()
            .filter(source)
            .max_by_key(|(s, slot)| {
                // What is in doubt there would be, here.
                let key = (index, *s);
                let sure = (!self.outvoted.contains_key(&key), !self.disputed.contains_key(&key));
                (sure, !slow(slot.node), object.copies[*s].have, Reverse(load(slot.node)))
            })
            .map(|(_, slot)| slot.node)
        else {
            return false;
        };
        let msg = ToNode::Repair {
            object: ObjectId { group: self.id, index },
            ballot: self.ballot,
            from,
            upto: object.issued,
            object_blocks: shared.spec.object_blocks,
            urgent,
        };
        out.push(Output::Send { to: super::NodeList::one(self.slots[i].node), msg });
        true
    }
}
