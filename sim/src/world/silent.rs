//! A node that loses state and does not know (5.9): once in a run, in some runs.
//!
//! Its device falls back to what it held some time ago, and the node starts as if nothing were. The protocol does not
//! promise that nobody counts such a node: it promises that a leader which the node has reported more to finds it,
//! and counts it no more until the node has been told. So nobody else reaches the node before that: the leader that
//! may find it does, if it is sure to find whatever is lost of its volume; if it dies, or takes a next round, or time is
//! over, the node finds out by itself, as in runs without this.
//!
//! The checkers take the node for lost from the fall-back on. When faults stop, the leader that found it goes on, if it
//! is still there, and has to have everything whole before anybody attaches the volume anew.

use super::{Event, World};
use crate::check::Violation;
use crate::check::doubted::Doubted;
use crate::coverage::Cover;
use crate::store::Image;
use trefoil_core::node::ConnId;
use trefoil_core::record::Durable;
use trefoil_core::{NodeId, VolumeId};

/// When faults have stopped, a leader that has found a loss must have everything whole within this time (µs).
const HEALED_WITHIN: u64 = 60_000_000;
/// How long the node is down (µs).
const DOWN: (u64, u64) = (200, 50_000);

/// What there is of it in a run.
#[derive(Debug, Default)]
pub struct Silent {
    /// The node that does not know, and the leader that alone reaches it.
    hidden: Option<(usize, usize)>,
    /// The leader that has found it.
    found: Option<Doubted>,
    /// The node that was told, and the last connection that it had then: it has closed all of them.
    closed: Option<(usize, ConnId)>,
    /// The volume that its leader has to make whole when faults have stopped.
    heals: Option<VolumeId>,
}

impl Silent {
    /// This leader may find a node's loss, or has.
    pub fn is_at(&self, li: usize) -> bool {
        self.hidden.is_some_and(|(_, leader)| leader == li)
    }

    /// The node has closed this connection when it was told.
    pub fn has_closed(&self, ni: usize, conn: ConnId) -> bool {
        self.closed.is_some_and(|(node, last)| node == ni && conn <= last)
    }

    /// What this leader has found.
    pub fn finder(&mut self, li: usize) -> Option<&mut Doubted> {
        self.found.as_mut().filter(|found| found.leader == li)
    }
}

impl World {
    /// The node's device falls back, if there is a leader that would find it; else some other time.
    pub(super) fn lose_unnoticed(&mut self, ni: usize, snapshot: (Durable, Image)) {
        let node = NodeId(ni as u32);
        let would = |l: &super::LeaderHost| {
            let newest = l.generation == self.monitor.generation_of(l.volume);
            let machine =
                l.machine.as_ref().filter(|_| newest && !l.releasing && !l.paused && l.conns[ni] != 0);
            machine.is_some_and(|machine| machine.would_find_loss(node))
        };
        let Some(li) = self.leaders.iter().position(would) else {
            // Or that of another node, some other time: this one may have no copies at all.
            self.snapshot = Some((ni, snapshot)).filter(|_| self.rng.one_in(2));
            return;
        };
        self.coverage.count(Cover::LostState);
        self.coverage.count(Cover::SilentLoss);
        self.crash_node(ni);
        self.nodes[ni].store.fall_back(snapshot);
        self.nodes[ni].store.unaware = true;
        self.given[ni] = self.nodes[ni].store.state.clone();
        self.lost_state[ni] = true;
        self.silent.hidden = Some((ni, li));
        if self.trace.wanted() {
            self.say(None, format!("node.{ni} loses state and does not know; leader {li} may find it"));
        }
        let at = self.now + self.rng.between(DOWN.0, DOWN.1);
        self.queue.push(at, Event::NodeStarts { ni });
        let within = self.plan.silent.as_ref().map_or(0, |plan| plan.found_within);
        self.queue.push(at + within, Event::LossKnown);
    }

    /// Nobody else reaches the node.
    pub(super) fn is_hidden(&self, li: usize, ni: usize) -> bool {
        self.silent.hidden.is_some_and(|(node, leader)| node == ni && leader != li)
    }

    /// The node starts, and nobody tells it. (Where there is an order for it, it is told before it answers anybody.)
    pub(super) fn stays_silent(&mut self, ni: usize) -> bool {
        let hidden = self.silent.hidden.is_some_and(|(node, _)| node == ni);
        if hidden && self.silent.found.is_some() {
            self.coverage.count(Cover::LossOrdered);
            self.silent.hidden = None;
            return false;
        }
        hidden
    }

    /// The leader has done something: if it would not find the loss any more, the node knows.
    pub(super) fn may_still_find(&mut self, li: usize) {
        let Some((ni, _)) = self.silent.hidden.filter(|_| self.silent.found.is_none()) else { return };
        let machine = self.leaders[li].machine.as_ref();
        if !machine.is_some_and(|machine| machine.would_find_loss(NodeId(ni as u32))) {
            self.queue.push(self.now, Event::LossKnown);
        }
    }

    /// The leader has found it.
    pub(super) fn loss_found(&mut self, li: usize, node: NodeId) {
        let Some((ni, leader)) = self.silent.hidden else { return };
        if self.silent.found.is_some() || leader != li || ni != node.0 as usize {
            return;
        }
        self.silent.found = Some(Doubted::new(li, node));
        let Some(plan) = &self.plan.silent else { return };
        let at = self.now + self.rng.magnitude(plan.order_takes.0, plan.order_takes.1);
        self.queue.push(at, Event::LossOrdered { ni, life: self.nodes[ni].life });
    }

    /// The monitors' order has come to the node: what its daemon does.
    pub(super) fn loss_ordered(&mut self, ni: usize) {
        if self.silent.hidden.take().is_none() {
            return;
        }
        self.coverage.count(Cover::LossOrdered);
        if self.trace.wanted() {
            self.say(None, format!("node.{ni} is told that it has lost state"));
        }
        self.state_lost(ni);
        // All of them, those too that their leader has given up: what it had sent may still arrive.
        let life = self.nodes[ni].life;
        self.silent.closed = Some((ni, self.net.conns.len() as ConnId));
        for at in 0..self.net.conns.len() {
            let (conn, it) = (at as ConnId + 1, &self.net.conns[at]);
            if it.node == ni && it.life == life && !it.node_told {
                self.node_end_gone(conn);
                self.leader_is_gone(ni, conn);
            }
        }
    }

    /// Nobody has found it: the node stops, and knows when it starts again.
    pub(super) fn loss_known(&mut self) {
        let Some((ni, _)) = self.silent.hidden.filter(|_| self.silent.found.is_none()) else { return };
        self.silent.hidden = None;
        self.nodes[ni].store.unaware = false;
        self.crash_node(ni);
        let at = self.now + self.rng.between(DOWN.0, DOWN.1);
        self.queue.push(at, Event::NodeStarts { ni });
    }

    /// Faults stop: the leader that has found a loss, if it is still the one that leads.
    pub(super) fn finder_lives_on(&mut self) -> Option<usize> {
        let li = self.silent.found.as_ref()?.leader;
        let host = &self.leaders[li];
        let leads = host.machine.is_some() && !host.releasing && !host.healer && host.attached && host.renews;
        let newest = host.generation == self.monitor.generation_of(host.volume);
        self.silent.heals = (leads && newest).then_some(host.volume);
        self.silent.heals.map(|_| li)
    }

    /// The volume's leader has found a loss and is not through with it: nobody attaches the volume anew.
    pub(super) fn finder_heals(&mut self, volume: VolumeId) -> bool {
        if self.silent.heals != Some(volume) {
            return false;
        }
        let Some(li) = self.silent.found.as_ref().map(|found| found.leader) else { return false };
        let host = &self.leaders[li];
        let newest = host.generation == self.monitor.generation_of(volume);
        // A grant that was under way when faults stopped has replaced it.
        let whole = host.machine.as_ref().filter(|_| newest).map(|machine| machine.all_whole());
        if whole == Some(false) {
            if self.now > self.calm.since + HEALED_WITHIN {
                let what = format!("leader {li} has found that a node lost data, and does not bring it back");
                self.note(Err(Violation::of("5.9", (volume, 0), what)));
            }
            return true;
        }
        if whole == Some(true) {
            self.coverage.count(Cover::HealedByFinder);
            self.calm.since = self.now;
        }
        self.silent.heals = None;
        self.leaders[li].renews = false;
        false
    }
}
