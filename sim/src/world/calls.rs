//! Front ends that are cut off from the monitors alone, and nodes that say whom they hear (section 8).

use super::net::{MONITOR, host_end, monitor_end};
use super::replicas::MonitorEvent;
use super::{Event, World};
use crate::coverage::Cover;
use crate::plan::Plan;
use trefoil_core::map::heard::{Callers, Kept};
use trefoil_core::map::lease::NotNow;
use trefoil_core::map::reign::{NoGrant, Reign, ReignId};
use trefoil_core::map::{ClusterMap, HolderKind};
use trefoil_core::{NodeId, Time, VolumeId};

/// In runs without words: all nodes have just said that they hear nobody.
pub(super) fn all_nodes_said_nobody(plan: &Plan, reign: &mut Reign, map: &ClusterMap, now: Time) {
    if plan.calls.is_none() {
        for ni in 0..plan.nodes as u32 {
            reign.node_hears(map, NodeId(ni), &Callers::default(), now);
        }
    }
}

/// The generation of the front end that holds the volume.
pub(super) fn held_by_front_end(map: &ClusterMap, volume: VolumeId) -> Option<u64> {
    let it = map.volumes.get(&volume)?;
    let held = it.holder.as_ref().is_some_and(|holder| holder.kind == HolderKind::FrontEnd);
    held.then_some(it.generation.0)
}

impl World {
    /// Nodes speak, in the runs where they do.
    pub(super) fn start_calls(&mut self) {
        let Some(beat) = self.plan.calls.as_ref().map(|calls| calls.beat) else { return };
        for ni in 0..self.plan.nodes {
            let first = self.rng.below(beat);
            self.queue.push(first, Event::Beat { ni });
        }
    }

    /// A node tells the monitors whom it hears: each of them, whichever leads.
    pub(super) fn beat(&mut self, ni: usize) {
        let Some(plan) = self.plan.calls.clone() else { return };
        self.queue.push(self.now + plan.beat, Event::Beat { ni });
        let node = &mut self.nodes[ni];
        let now = Time(node.clock.local(self.now));
        let Some(machine) = node.machine.as_mut().filter(|_| !node.paused) else { return };
        let callers = machine.callers(now, plan.fresh);
        for mi in 0..self.monitors().max(1) {
            if self.lease_message_lost() {
                continue;
            }
            let callers = callers.clone();
            if self.replicas.is_some() {
                let at = self.arrival(ni, monitor_end(mi));
                self.push_monitor(at, MonitorEvent::Word { mi, ni, callers });
            } else {
                let at = self.arrival(ni, MONITOR);
                self.queue.push(at, Event::Word { ni, callers });
            }
        }
    }

    /// A monitor that leads has been told whom a node hears.
    pub(super) fn was_told(&mut self, (mi, reign): (usize, ReignId), ni: usize, callers: &Callers) {
        if !callers.leaders.is_empty() {
            self.coverage.count(Cover::LeadersHeard);
        }
        self.kept.told((mi, reign), NodeId(ni as u32), callers, self.now);
    }

    /// A monitor gives a healer a volume which it thinks that a front end of that generation holds, or nobody.
    pub(super) fn given_to_healer(&mut self, by: (usize, ReignId), volume: VolumeId, held: Option<u64>) {
        let (Some(plan), Some(generation)) = (&self.plan.calls, held) else { return };
        // Its clock may be fast.
        let believed = plan.believed * (1_000_000 - self.plan.drift_ppm) / 1_000_000;
        let checked = self.kept.given(by, (volume, generation), self.now, believed);
        self.note(checked);
    }

    /// A healer does not get a volume.
    pub(super) fn not_given(&mut self, why: &NoGrant) {
        match why {
            NoGrant::NotNow(NotNow::Kept(Kept::HeardBy(_))) => self.coverage.count(Cover::HeldBack),
            NoGrant::NotNow(NotNow::Kept(Kept::Unknown)) => self.coverage.count(Cover::NotKnown),
            NoGrant::NotNow(_) | NoGrant::OtherReign => {}
        }
    }

    /// A front end does not reach the monitors for longer than its lease lasts; everything else it does.
    pub(super) fn cut_off(&mut self, lasts: u64) {
        let Some(li) = self.some_leader().filter(|li| !self.leaders[*li].healer) else { return };
        self.coverage.count(Cover::CutOff);
        let host = host_end(self.leaders[li].host);
        let until = self.now + self.plan.lease + self.plan.margin + lasts;
        for monitor in (0..self.monitors().max(1)).map(monitor_end) {
            for (a, b) in [(host, monitor), (monitor, host)] {
                self.net.shut[a][b] = self.net.shut[a][b].max(until);
            }
        }
    }
}
