//! Ordering repairs: which copy pulls from which, how many at once, clients' objects first.

use super::group::{Group, Link, Phase};
use super::laggard::QUIET;
use super::object::CopyState;
use super::{Output, Shared};
use crate::ids::*;
use crate::limits::LEADER_REPAIRS_PER_NODE;
use crate::message::ToNode;
use std::cmp::Reverse;
use std::ops::Bound;

/// Copies that are looked at in one go: what is left is looked at when a repair ends, or at the next tick.
const LOOK_AT_MAX: usize = 256;

impl<P: Clone + Default> Group<P> {
    /// Orders repairs of copies that are not in line, as far as the limits allow.
    pub fn order_repairs(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if self.phase != Phase::Decided {
            return;
        }
        self.replace_outvoted(shared, now);
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
            if keeps_up && peer.repairs < LEADER_REPAIRS_PER_NODE && peer.repair_after <= now {
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
            return;
        };
        let node = self.slots[i].node;
        let upto = object.issued;
        let msg = ToNode::Repair {
            object: ObjectId { group: self.id, index },
            ballot: self.ballot,
            from,
            upto,
            object_blocks: shared.spec.object_blocks,
            urgent,
        };
        if let Some(object) = self.objects.get_mut(&index) {
            object.copies[i].state = CopyState::Repairing { upto };
        }
        // Not due again until it has ended: the node says Have, Gap or NoSpace, or its connection breaks.
        self.behind.insert((index, i), Time(u64::MAX));
        self.counters.repairs += 1;
        shared.peer(node).repairs += 1;
        out.push(Output::Send { to: super::NodeList::one(node), msg });
    }
}
