//! Nodes that have lost what they had reported as durable, and do not know it (5.9).
//!
//! The leader that finds it counts nothing more of the node, in none of its groups, and takes the next round where it
//! has counted anything; it says [`Output::LostData`], and its daemon sees to it that the node is told. Meanwhile the
//! node is asked on, now and then, each group for itself. What it answers counts for nothing, until it says that the
//! group is lost: then it is a node without a vote like any other (N8), and its copies are repaired.
//!
//! Why only when it says so itself: what a Settle excepts at a node that does not know of its loss keeps its line, and
//! with it a vote (N2). The next leader, who has found nothing, would count a copy that lacks what was acknowledged.
//!
//! A node says `lost` of a group until it is settled there, and then no more. So each group keeps for itself which
//! loss the node's word was about, over epochs and splits. A node that loses its state once more before it is settled
//! may have lost the mark that it spoke of, too: an answer that is neither `lost` nor of a line that came behind its
//! word is not believed.

use super::choose::Answer;
use super::group::{Group, Link, Phase};
use super::{Leader, Output, Shared};
use crate::ids::*;
use std::collections::BTreeSet;

/// Pause before a node is asked again that does not know of its loss: the first one (µs), and how often it doubles.
/// A node that takes note closes its connections, and is asked at once when it is back; this is for one that does not.
const ASK_AGAIN: u64 = 100_000;
const DOUBLED_MAX: u8 = 6;

/// What a node has said of a loss that its leader had found.
#[derive(Copy, Clone, Debug)]
pub(super) struct Word {
    /// The loss that it was about, by [`super::peer::Peer::doubts`].
    doubts: u32,
    /// The ballot that it answered with `lost`: what is settled in this one or later was settled as lost.
    ballot: Ballot,
}

impl Shared {
    /// A node has less than it had reported: it is not counted from here on.
    pub fn found_lost<P>(&mut self, node: NodeId, out: &mut Vec<Output<P>>) {
        self.any_doubts = true;
        let peer = self.peer(node);
        peer.doubts = peer.doubts.saturating_add(1);
        // Of the fence, too, nobody knows whether it is still there.
        peer.fenced = false;
        self.doubted.push(node);
        self.say_lost(node, out);
        self.reset(node, "it has lost what it had reported as durable");
    }

    /// Once for each connection: what the node was told in an earlier life it may have lost, too.
    fn say_lost<P>(&mut self, node: NodeId, out: &mut Vec<Output<P>>) {
        if !std::mem::replace(&mut self.peer(node).loss_said, true) {
            out.push(Output::LostData { node });
        }
    }
}

impl<P: Clone + Default> Group<P> {
    /// The node was found to have lost data, and has not said so of this group since: it is not counted.
    pub fn is_doubted(&self, shared: &Shared, node: NodeId) -> bool {
        if !shared.any_doubts {
            return false;
        }
        let doubts = shared.peers.get(&node).map_or(0, |peer| peer.doubts);
        doubts > 0 && self.words.get(&node).is_none_or(|word| word.doubts < doubts)
    }

    /// Whether a node's answer to an Open counts. If not, it is asked again some time later.
    pub fn believes(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        answer: &Answer,
        out: &mut Vec<Output<P>>,
    ) -> bool {
        let node = self.slots[i].node;
        let doubts = shared.peer(node).doubts;
        if doubts == 0 {
            return true;
        }
        let word = self.words.get(&node).filter(|word| word.doubts == doubts);
        if answer.lost {
            shared.counters.distrust_lifted += u64::from(word.is_none());
            self.words.insert(node, Word { doubts, ballot: self.ballot });
            return true;
        }
        if word.is_some_and(|word| word.ballot <= answer.settled) {
            return true;
        }
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::doubted_node_counts() {
            return true;
        }
        self.words.remove(&node);
        let slot = &mut self.slots[i];
        slot.link = Link::Refused(now.after(ASK_AGAIN << slot.not_believed));
        slot.not_believed = (slot.not_believed + 1).min(DOUBLED_MAX);
        shared.say_lost(node, out);
        false
    }

    /// There is a later epoch. A node may have left in between and be back (N7, M5): it has no line then, and nothing
    /// that it could have lost.
    pub fn words_of_before(&mut self) {
        self.words.values_mut().for_each(|word| word.ballot = Ballot::ZERO);
    }

    /// What the node has reported in this ballot, votes included, it may not have any more.
    fn count_no_more(&mut self, shared: &mut Shared, now: Time, node: NodeId, out: &mut Vec<Output<P>>) {
        let counted = self.slot_of(node).is_some_and(|i| self.slots[i].answered);
        if counted && self.phase != Phase::Closed {
            self.next_round(shared, now, out);
        }
    }
}

impl<P: Clone + Default> Leader<P> {
    /// Nodes were found to have lost data, and their connections are given up.
    pub(super) fn count_no_more(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        while let Some(node) = self.shared.doubted.pop() {
            for group in self.groups.iter_mut().flatten() {
                group.count_no_more(&mut self.shared, now, node, out);
            }
        }
    }

    /// Whatever the node has lost of what it has reported is found when its connection is made anew: it has settled in
    /// the present ballot of every group in which it takes part, and takes part in some. For the simulator.
    pub fn would_find_loss(&self, node: NodeId) -> bool {
        let slots = self.groups.iter().flatten().filter_map(|group| Some((group, group.slot_of(node)?)));
        let mut slots = slots.peekable();
        slots.peek().is_some()
            && slots.all(|(group, i)| group.phase == Phase::Decided && group.slots[i].settled)
    }

    /// Nodes that some group does not count.
    pub(super) fn doubted_nodes(&self) -> BTreeSet<NodeId> {
        let mut doubted = BTreeSet::new();
        if self.shared.any_doubts {
            for group in self.groups.iter().flatten() {
                let nodes = group.slots.iter().map(|slot| slot.node);
                doubted.extend(nodes.filter(|node| group.is_doubted(&self.shared, *node)));
            }
        }
        doubted
    }
}
