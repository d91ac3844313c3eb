//! 6.1: which node a read goes to, and how a node that is avoided is found to be quick again.
//!
//! A read goes where it is expected to wait least: `(reads under way there + 1) * what half of its reads took
//! lately`. Nodes that are about as quick as the quickest count as equals, or small differences would send
//! everything to one node: among equals the one with the least to do is taken, then they take turns by
//! object, so that each node's caches hold other ones. A node that was late (see [`super::hedge`]), or owes
//! answers and says nothing, comes after all others.
//!
//! An avoided node gets no reads to be judged by, so it is probed: behind a client's read of an object that
//! it holds, the first block is asked of it as well, and the answer is timed and dropped. Where clients read
//! nothing that it holds, a tick asks it for a block. Probes are one at a time and rare (see [`super::peer`]):
//! for clients they cost nothing, for the node hardly anything.

use super::group::{Group, Link, Slot};
use super::object::CopyState;
use super::{Leader, NodeList, Output, Shared};
use crate::ids::*;
use crate::message::ToNode;
use crate::placement::SLOTS_MAX;

/// A node whose reads take up to so many times as long as those of the quickest is as good as that.
const ALIKE: u64 = 2;

/// Nodes that were late and are probed in one tick; the others have their turn in later ones.
const UNREAD_PER_TICK: usize = 8;
/// Objects of a group that are looked at for one that such a node holds.
const UNREAD_OBJECTS: usize = 16;

/// What is wrong with a node that reads could go to. Who answers slowly is better than who does not.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wrong {
    #[default]
    Nothing,
    /// It was late.
    Slow,
    /// It owes answers, and has said nothing for long.
    Silent,
}

/// Where a read goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The slot of the node.
    pub slot: usize,
    /// What is wrong with the node: there was no better one.
    pub wrong: Wrong,
    /// The slot of a node that is avoided, and to be probed now.
    pub avoided: Option<usize>,
}

/// A node that may serve a read. Small: some are made for each read.
#[derive(Copy, Clone, Default)]
struct Fit {
    reads: u32,
    /// 0: not known.
    p50: u32,
    slot: u8,
    turn: u8,
    wrong: Wrong,
}

impl<P: Clone + Default> Group<P> {
    /// 6.1: a node that is connected and settled, holds the object whole, and has reported everything that
    /// was acknowledged; of these the best. `not`: slots that will not do.
    pub fn choose(&self, shared: &Shared, now: Time, index: ObjectIndex, not: u8) -> Option<Choice> {
        let object = self.objects.get(&index)?;
        let fits = |(i, slot): &(usize, &Slot)| {
            slot.link == Link::Settled
                && slot.settled
                && object.copies[*i].state == CopyState::InLine
                && object.copies[*i].have >= object.acked
                && not & 1 << i == 0
        };
        let silence = shared.options.hedge_after.1;
        let slots = self.slots.len();
        let mut turn = index as usize % slots.max(1);
        let mut found = [Fit::default(); SLOTS_MAX];
        let (mut count, mut quickest) = (0, u32::MAX);
        for (i, slot) in self.slots.iter().enumerate() {
            if fits(&(i, slot)) && count < SLOTS_MAX {
                let fit = &mut found[count];
                (fit.slot, fit.turn) = (i as u8, turn as u8);
                if let Some(peer) = shared.peers.get(&slot.node) {
                    fit.reads = peer.reads as u32;
                    fit.p50 = peer.read_latency.p50().unwrap_or(0);
                    if peer.is_silent(now, silence) {
                        fit.wrong = Wrong::Silent;
                    } else if peer.slow {
                        fit.wrong = Wrong::Slow;
                    } else if fit.p50 > 0 {
                        quickest = quickest.min(fit.p50);
                    }
                }
                count += 1;
            }
            turn = if turn + 1 == slots { 0 } else { turn + 1 };
        }
        let quickest = if quickest == u32::MAX { 1 } else { u64::from(quickest) };
        let takes = |fit: &Fit| match u64::from(fit.p50) {
            us if us > ALIKE * quickest => us,
            _ => quickest,
        };
        let found = &found[..count];
        let expected = |fit: &Fit| (fit.wrong, (u64::from(fit.reads) + 1) * takes(fit), fit.reads, fit.turn);
        let (mut best, mut least) = (found.first()?, expected(found.first()?));
        let mut any_avoided = best.wrong == Wrong::Slow || takes(best) > quickest;
        for fit in &found[1..] {
            any_avoided |= fit.wrong == Wrong::Slow || takes(fit) > quickest;
            let this = expected(fit);
            if this < least {
                (best, least) = (fit, this);
            }
        }
        let to_probe = |fit: &&Fit| {
            let avoided = fit.wrong == Wrong::Slow || (fit.wrong == Wrong::Nothing && takes(fit) > quickest);
            let peer = shared.peers.get(&self.slots[usize::from(fit.slot)].node);
            avoided && fit.slot != best.slot && peer.is_some_and(|peer| peer.wants_probe(now))
        };
        let avoided = if any_avoided { found.iter().find(to_probe) } else { None };
        let avoided = avoided.map(|fit| usize::from(fit.slot));
        Some(Choice { slot: usize::from(best.slot), wrong: best.wrong, avoided })
    }

    /// [`Group::choose`], for those who do not probe.
    pub fn pick(&self, shared: &Shared, now: Time, index: ObjectIndex, not: u8) -> Option<usize> {
        self.choose(shared, now, index, not).map(|choice| choice.slot)
    }

    /// Asks an avoided node for one block, to see how long it takes. Its answer is no read's.
    pub fn send_probe(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        index: ObjectIndex,
        block: u32,
        out: &mut Vec<Output<P>>,
    ) {
        let id = shared.next_id;
        shared.next_id += 1;
        self.counters.latency_probes += 1;
        let node = self.slots[i].node;
        let peer = shared.peer(node);
        peer.probe = Some((id, now));
        peer.asked.get_or_insert(now);
        let object = ObjectId { group: self.id, index };
        let blocks = BlockRange::new(block, 1);
        let msg = ToNode::Read { object, ballot: self.ballot, id, blocks, data: true };
        out.push(Output::Send { to: NodeList::one(node), msg });
    }
}

impl<P: Clone + Default> Leader<P> {
    /// Probes nodes that were late, and that no read of a client leads to: they would be avoided, and reported, for
    /// ever.
    pub(super) fn probe_unread(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        let peers = self.shared.peers.iter();
        let wanting = peers.filter(|(_, peer)| peer.up && peer.slow && peer.wants_probe(now));
        let mut wanting: Vec<NodeId> = wanting.map(|(node, _)| *node).take(UNREAD_PER_TICK).collect();
        for group in self.groups.iter_mut().flatten() {
            if wanting.is_empty() {
                return;
            }
            for i in 0..group.slots.len() {
                let at = wanting.iter().position(|node| *node == group.slots[i].node);
                if let Some(at) = at
                    && let Some((index, block)) = group.held_by(i)
                {
                    group.send_probe(&mut self.shared, now, i, index, block, out);
                    wanting.swap_remove(at);
                }
            }
        }
    }
}

impl<P: Clone + Default> Group<P> {
    /// A block, of an object that was written, that the node in this slot can be asked for.
    fn held_by(&self, i: usize) -> Option<(ObjectIndex, u32)> {
        self.slots.get(i).filter(|slot| slot.link == Link::Settled && slot.settled)?;
        let holds = |object: &super::object::Object<P>| {
            let copy = object.copies[i];
            object.open && copy.state == CopyState::InLine && copy.have >= object.acked && !object.untouched()
        };
        let (index, object) = self.objects.iter().take(UNREAD_OBJECTS).find(|(_, object)| holds(object))?;
        Some((*index, object.entries.back().map_or(0, |entry| entry.blocks.first)))
    }
}
