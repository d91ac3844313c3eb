//! 6.1: which node a read goes to, and how a node that is avoided is found to be quick again.
//!
//! A read goes where it is expected to wait least: `(reads under way there + 1) * what half of its reads took
//! lately`. Nodes that are about as quick as the quickest count as equals, or small differences would send
//! everything to one node: among equals the one with the least to do is taken, then they take turns by
//! object, so that each node's caches hold other ones. A node that was late (see [`super::hedge`]), or owes
//! answers and says nothing, comes after all others.
//!
//! An avoided node gets no reads to be judged by, so it is probed: behind a client's read of an object that
//! it holds, the first block is asked of it as well, and the answer is timed and dropped. Probes are one at a
//! time and rare (see [`super::peer`]): for clients they cost nothing, for the node hardly anything.

use super::group::{Group, Link, Slot};
use super::object::CopyState;
use super::{NodeList, Output, Shared};
use crate::ids::*;
use crate::message::ToNode;
use crate::placement::SLOTS_MAX;

/// A node whose reads take up to so many times as long as those of the quickest is as good as that.
const ALIKE: u64 = 2;

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

/// A node that may serve a read.
#[derive(Copy, Clone, Default)]
struct Fit {
    slot: usize,
    wrong: Wrong,
    wants_probe: bool,
    reads: u64,
    p50: Option<u32>,
    turn: usize,
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
        let mut found = [Fit::default(); SLOTS_MAX];
        let mut count = 0;
        for ((i, slot), fit) in self.slots.iter().enumerate().filter(fits).zip(&mut found) {
            fit.slot = i;
            fit.turn = (index as usize + i) % self.slots.len();
            if let Some(peer) = shared.peers.get(&slot.node) {
                let silent = peer.is_silent(now, silence);
                fit.wrong = match peer.slow {
                    _ if silent => Wrong::Silent,
                    true => Wrong::Slow,
                    false => Wrong::Nothing,
                };
                fit.wants_probe = peer.wants_probe(now) && !silent;
                fit.reads = peer.reads as u64;
                fit.p50 = peer.read_latency.p50();
            }
            count += 1;
        }
        let found = &found[..count];
        let quickest = found
            .iter()
            .filter(|fit| fit.wrong == Wrong::Nothing)
            .filter_map(|fit| fit.p50)
            .min()
            .unwrap_or(1);
        let quickest = u64::from(quickest).max(1);
        let takes = |fit: &Fit| match fit.p50.map(u64::from) {
            Some(us) if us > ALIKE * quickest => us,
            _ => quickest,
        };
        let expected = |fit: &&Fit| (fit.wrong, (fit.reads + 1) * takes(fit), fit.reads, fit.turn);
        let best = found.iter().min_by_key(expected)?;
        let avoided = |fit: &&Fit| {
            fit.slot != best.slot && fit.wants_probe && (fit.wrong == Wrong::Slow || takes(fit) > quickest)
        };
        let avoided = found.iter().find(avoided).map(|fit| fit.slot);
        Some(Choice { slot: best.slot, wrong: best.wrong, avoided })
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
