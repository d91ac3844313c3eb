//! Pools whose answers wait for all copies in line, and those that are set to one kind and the other while the run goes
//! on. Leaders hear of it each in its own time.

use super::{Event, World};
use crate::check::i3_one_content::Issue;
use crate::coverage::Cover;
use crate::payload::Blocks;
use trefoil_core::NodeId;
use trefoil_core::leader::Input;
use trefoil_core::map::Ack;
use trefoil_core::message::{FromNode, ToNode};
use trefoil_core::placement::PgConfig;

/// How long the map takes to a leader, at most (µs).
const NEWS_MAX: u64 = 100_000;

impl World {
    pub(super) fn start_acks(&mut self) {
        if self.plan.all_in_sync {
            self.ack = Ack::AllInSync;
        }
        if let Some(every) = self.plan.ack_changes {
            self.queue.push(every.1, Event::AckChange);
        }
    }

    /// The pool is set to the other kind.
    pub(super) fn ack_changes(&mut self) {
        let Some(every) = self.plan.ack_changes.filter(|_| self.faulty) else { return };
        self.coverage.count(Cover::AckChanges);
        self.ack = match self.ack {
            Ack::Majority => Ack::AllInSync,
            Ack::AllInSync => Ack::Majority,
        };
        if self.trace.wanted() {
            self.say(None, format!("the pool is set to {}", self.ack));
        }
        for li in 0..self.leaders.len() {
            let at = self.now + self.rng.below(NEWS_MAX);
            self.queue.push(at, Event::LeaderAck { li });
        }
        let at = self.now + self.rng.between(every.0, every.1);
        self.queue.push(at, Event::AckChange);
    }

    /// A leader hears of it: what the newest map says.
    pub(super) fn tell_ack(&mut self, li: usize) {
        let ack = self.ack;
        let now = self.leaders[li].clock.local(self.now);
        if std::mem::replace(&mut self.leaders[li].ack, ack) != ack {
            self.leaders[li].ack_since = now + 1;
        }
        self.leader_input(li, Input::Ack { ack });
    }

    pub(super) fn leader_tells(&mut self, li: usize, node: NodeId, msg: &ToNode<Blocks>) {
        if let Some(finder) = self.silent.finder(li) {
            let checked = finder.says(li, node, msg);
            self.note(checked);
        }
        if self.plan.all_in_sync {
            let now = self.leaders[li].clock.local(self.now);
            self.in_sync.said(li, node, msg, now);
        }
    }

    pub(super) fn leader_hears(&mut self, li: usize, node: NodeId, msg: &FromNode<Blocks>) {
        if let Some(finder) = self.silent.finder(li) {
            finder.hears(node, msg);
        }
        if self.plan.all_in_sync {
            let now = self.leaders[li].clock.local(self.now);
            self.in_sync.heard(li, node, msg, now, self.plan.lag_max);
        }
    }

    /// A write is acknowledged.
    pub(super) fn all_in_sync(&mut self, li: usize, slot: usize, config: &PgConfig, issue: Issue) {
        let now = self.leaders[li].clock.local(self.now);
        // Without a lease: what has come in line while the Confirm was under way was not waited for.
        if self.leaders[li].ack == Ack::AllInSync && now < self.leaders[li].lease_until {
            let since = self.leaders[li].ack_since;
            let checked = self.in_sync.acknowledged(li, slot, config, issue, since, now, self.plan.lag_max);
            self.note(checked);
        }
    }
}
