//! Nodes that fall behind: cut loose, held out for a time, and brought back by repair.
//!
//! A write waits for two nodes of three (in some pools for an answer from all that keep up, see [`super::in_sync`]), so
//! that the third may lag; what it owes is kept for it, within
//! limits: by bytes and operations ([`NODE_BACKLOG_BYTES_MAX`](crate::limits::NODE_BACKLOG_BYTES_MAX),
//! [`NODE_BACKLOG_OPS_MAX`](crate::limits::NODE_BACKLOG_OPS_MAX)) and by time
//! ([`super::Options::lag_max`]). Beyond them it is cut loose: its connection is given up with all that is
//! queued for it, and the leader goes on with the others. Back again it has missed some writes, like any
//! node that was away (5.7), and pulls what differs.
//!
//! A node that is slow and not dead would come back, fall behind and be cut loose again without end, and
//! each return is work for all three. So it is held out: for a time that doubles with each cut, and begins
//! anew after the node has kept up for [`STEADY`]. While it is held out it is connected and gets nothing.
//!
//! Redundancy comes first in none of this, and last in nothing: a node that a quorum needs is not cut loose
//! for lagging, and not held out. A quorum is one of nodes that are in time: where two of three were slow one
//! behind the other, the one that has recovered is taken back at once, and not when its time is over. Where
//! only some groups need it, its copies in the others are left behind, object by object, so that its queue
//! stays within bounds: what is left are writes that clients wait for.

use super::group::{Group, Link};
use super::object::CopyState;
use super::write::REPAIR_RETRY;
use super::{Leader, NodeList, Output, Shared};
use crate::ids::*;

/// After so long without being cut loose a node counts as steady, and is held out for the shortest time
/// again (µs).
pub(super) const STEADY: u64 = 120_000_000;
/// A node that owes answers and has said nothing for so long gets no orders for repairs (µs).
pub(super) const QUIET: u64 = 100_000;
/// A node that is this late is not counted on when it is asked whether another one can be done without (µs). Less
/// than [`QUIET`], and silence is not the only measure: one that does everything 100 times slower than it should
/// says something now and then.
const LATE: u64 = 50_000;
/// A backlog older than this is that of a node that lags, not of one that was busy (µs).
const OLD: u64 = 1_000_000;
/// A laggard that cannot be done without is not looked at again for this long (µs).
const SPARED_FOR: u64 = 100_000;

impl Shared {
    /// A write is sent to a node. True if the node is too far behind, and spared.
    pub fn owes(&mut self, now: Time, node: NodeId, bytes: u64) -> bool {
        let peer = self.peer(node);
        peer.owes(now, bytes);
        if !peer.is_too_far_behind() {
            return false;
        }
        let spared = now < peer.spared_until;
        if !spared {
            self.laggard(node, "it is too far behind with writes");
        }
        spared
    }

    /// As [`Shared::laggard`], of one that is not spared.
    pub fn laggard_now(&mut self, now: Time, node: NodeId, why: &'static str) {
        if now >= self.peer(node).spared_until {
            self.laggard(node, why);
        }
    }

    fn laggard(&mut self, node: NodeId, why: &'static str) {
        if !self.laggards.iter().any(|(n, _)| *n == node) {
            self.laggards.push((node, why));
        }
    }

    /// The node may be counted on: nothing that it owes is as late as `late` (µs), and reads are not kept from
    /// it.
    fn is_prompt(&self, now: Time, node: NodeId, late: u64) -> bool {
        self.is_up(node)
            && self
                .peers
                .get(&node)
                .is_none_or(|peer| !peer.slow && !peer.is_silent(now, late) && peer.backlog_age(now) < late)
    }

    /// A node's connection is gone. If a lot was queued for it, it is likely that somebody else cut it loose:
    /// the transport has a limit for all volumes together.
    pub fn hold_if_behind(&mut self, now: Time, node: NodeId) {
        let peer = self.peer(node);
        if peer.up && peer.backlog_age(now) > OLD && peer.is_far_behind() {
            self.hold(now, node);
        }
    }

    /// The node was cut loose: when it is back it is left alone for a time.
    pub fn hold(&mut self, now: Time, node: NodeId) {
        let (least, most) = self.options.hold;
        self.counters.cut_loose += 1;
        let peer = self.peer(node);
        let steady = peer.hold == 0 || now.since(peer.up_since) >= STEADY;
        peer.hold = if steady { least } else { peer.hold.saturating_mul(2).min(most) };
        peer.held_until = now.after(peer.hold);
        peer.cuts += 1;
    }
}

impl<P: Clone + Default> Group<P> {
    /// Every object has a quorum of whole copies without this node, at nodes that may be counted on.
    fn can_spare(&self, shared: &Shared, now: Time, node: NodeId) -> bool {
        let Some(i) = self.slot_of(node).filter(|i| self.slots[*i].live()) else { return true };
        // Where all are slow, one that is ten times slower still is a laggard.
        let age = shared.peers.get(&node).map_or(0, |peer| peer.backlog_age(now));
        let late = if age > shared.options.lag_max { LATE.max(shared.options.lag_max / 10) } else { LATE };
        let serves = |j: usize, link: Link| j != i && link == Link::Settled;
        self.quorum(|j, slot| serves(j, slot.link) && shared.is_prompt(now, slot.node, late))
            && self.behind.keys().all(|(_, slot)| *slot == i)
            && self.closed.is_empty()
    }

    /// Without this node there is no quorum of nodes that may be counted on: clients wait, if not for ever.
    fn needs(&self, shared: &Shared, now: Time, node: NodeId) -> bool {
        self.config.takes_part(node) && !self.quorum(|_, slot| self.may_count_on(shared, now, slot.node))
    }

    fn may_count_on(&self, shared: &Shared, now: Time, node: NodeId) -> bool {
        shared.is_prompt(now, node, LATE) && !self.is_doubted(shared, node)
    }

    /// Which slots have nodes that may be counted on, and whether some have not.
    pub fn prompt_slots(&self, shared: &Shared, now: Time) -> (u8, bool) {
        let all = (1u8 << self.slots.len()) - 1; // at most SLOTS_MAX, which is less than 8
        let prompt = |(i, slot): (usize, &super::group::Slot)| {
            if self.may_count_on(shared, now, slot.node) { 1 << i } else { 0 }
        };
        let prompt = self.slots.iter().enumerate().map(prompt).fold(0, |all: u8, one| all | one);
        (prompt, prompt != all)
    }

    /// An object that clients wait for has no quorum of whole copies in these slots.
    pub fn waits_beside(&self, prompt: u8, index: ObjectIndex) -> bool {
        let Some(object) = self.objects.get(&index) else { return false };
        !self.quorum(|i, _| prompt & 1 << i != 0 && object.copies[i].state == CopyState::InLine)
    }

    /// Leaves an object's copies behind at nodes that are too far behind and needed elsewhere, where the
    /// others are a quorum of whole copies. Says to whom the write goes.
    pub fn leave_behind_if_spared(
        &mut self,
        shared: &mut Shared,
        now: Time,
        index: ObjectIndex,
        too_far: u8,
        to: NodeList,
        out: &mut Vec<Output<P>>,
    ) -> NodeList {
        let Some(object) = self.objects.get(&index) else { return to };
        let whole = |i: usize| object.copies[i].state == CopyState::InLine && too_far & 1 << i == 0;
        if !self.quorum(|i, slot| slot.link == Link::Settled && whole(i)) {
            return to;
        }
        let mut left = NodeList::default();
        let nodes: Vec<(usize, NodeId)> =
            self.slots.iter().enumerate().map(|(i, slot)| (i, slot.node)).collect();
        for (i, node) in nodes {
            if too_far & 1 << i != 0 {
                self.leave_behind(shared, now, i, index, now.after(REPAIR_RETRY), out);
            } else if to.as_slice().contains(&node) {
                left.push(node);
            }
        }
        left
    }
}

impl<P: Clone + Default> Leader<P> {
    /// Gives up the connections to nodes that have fallen behind, if they can be done without.
    pub(super) fn cut_laggards(&mut self, now: Time) {
        while let Some((node, why)) = self.shared.laggards.pop() {
            if self.groups.iter().flatten().all(|group| group.can_spare(&self.shared, now, node)) {
                self.shared.reset(node, why);
            } else {
                self.shared.peer(node).spared_until = now.after(SPARED_FOR);
            }
        }
    }

    /// Nodes whose backlog is too old.
    pub(super) fn find_laggards(&mut self, now: Time) {
        let limit = self.shared.options.lag_max;
        let Shared { peers, laggards, .. } = &mut self.shared;
        for (node, peer) in peers.iter() {
            if peer.up
                && peer.backlog_age(now) > limit
                && now >= peer.spared_until
                && laggards.iter().all(|(n, _)| n != node)
            {
                laggards.push((*node, "its writes are too late"));
            }
        }
    }

    /// Speaks again to nodes that were held out for long enough, or are needed.
    pub(super) fn release_held(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        let held = |peer: &super::Peer| peer.connected && !peer.up;
        if !self.shared.peers.values().any(held) {
            return;
        }
        let held: Vec<(NodeId, Time)> = self
            .shared
            .peers
            .iter()
            .filter(|(_, p)| held(p))
            .map(|(node, p)| (*node, p.held_until))
            .collect();
        for (node, until) in held {
            if now >= until
                || !self.attached
                || self.groups.iter().flatten().any(|group| group.needs(&self.shared, now, node))
            {
                self.speak_to(now, node, out);
            }
        }
    }
}
