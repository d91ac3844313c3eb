//! What goes wrong. Every fault ends by itself after a time, and all of them end with the first phase.
//!
//! What is not done to a cluster is as much a part of it: a block goes bad on one copy at a time, since
//! nothing could answer for it otherwise; and a device that has said "durable" keeps its word, unless
//! the fault is that it does not ([`Fault::LostState`]; see also `silent`).

use super::net::{ENDS, MONITOR, host_end};
use super::nodes::ROOMY;
use super::{Event, World};
use crate::coverage::Cover;
use crate::plan::{FAULTS, Fault, NODES_MAX, SLOW_NODE};
use trefoil_core::node::ConnId;
use trefoil_core::{GroupId, ObjectId, Time, VolumeId};

impl World {
    /// What is wrong right now, for people.
    pub fn wrong_now(&self) -> String {
        let mut wrong = Vec::new();
        for (ni, node) in self.nodes.iter().enumerate() {
            let states = [
                (node.machine.is_none(), "down"),
                (node.paused, "paused"),
                (node.slow > 1, "slow"),
                (node.slow_net > 1, "behind a slow network"),
                (node.capacity < ROOMY, "short of room"),
                (self.lost_state[ni], "had lost state"),
                (!node.store.now.bad.is_empty(), "has bad blocks"),
            ];
            wrong.extend(states.iter().filter(|s| s.0).map(|s| format!("node.{ni} {}", s.1)));
        }
        for (li, leader) in self.leaders.iter().enumerate().filter(|(_, l)| l.machine.is_some()) {
            let state = if leader.paused { "paused" } else { "alive" };
            wrong
                .push(format!("leader {li} (generation {} of {}) {state}", leader.generation, leader.volume));
        }
        let name = |end: usize| match end {
            MONITOR if self.plan.monitors.is_none() => "monitor".to_string(),
            end if end >= MONITOR => format!("monitor {}", end - MONITOR),
            end if end >= NODES_MAX => format!("host {}", end - NODES_MAX),
            end => format!("node.{end}"),
        };
        for (a, row) in self.net.shut.iter().enumerate() {
            let to: Vec<String> = (0..ENDS)
                .filter(|b| row[*b] > self.now && self.exists(a) && self.exists(*b))
                .map(name)
                .collect();
            if !to.is_empty() {
                wrong.push(format!("{} ⇥ {}", name(a), to.join(" ")));
            }
        }
        if self.monitor.down_until > self.now {
            wrong.push("monitor down".to_string());
        }
        wrong.extend(self.monitors_now());
        wrong.join(", ")
    }

    fn exists(&self, end: usize) -> bool {
        let monitors = self.plan.monitors.as_ref().map_or(1, |monitors| monitors.count);
        (MONITOR..MONITOR + monitors).contains(&end)
            || end < self.plan.nodes
            || (end >= NODES_MAX && end - NODES_MAX < self.plan.hosts)
    }

    /// One fault, and the next one's time.
    pub(super) fn fault(&mut self) {
        if !self.faulty {
            return;
        }
        let next = self.now + self.rng.between(self.plan.fault_every.0, self.plan.fault_every.1);
        self.queue.push(next, Event::Fault);
        if self.plan.stall_limit.is_some() && !self.all_is_well() {
            return;
        }
        if self.is_lied_to() {
            return;
        }
        let Some(kind) = self.rng.weighted(&self.plan.faults) else { return };
        let lasts = self.rng.magnitude(self.plan.fault_lasts.0, self.plan.fault_lasts.1);
        if self.trace.wanted() {
            self.say(None, format!("fault: {:?} for {lasts} µs", FAULTS[kind]));
        }
        self.trace.mix(kind as u64);
        let ni = self.rng.index(self.plan.nodes);
        match FAULTS[kind] {
            Fault::NodeCrash => {
                self.crash_node(ni);
                self.queue.push(self.now + lasts, Event::NodeStarts { ni });
            }
            Fault::AllNodesCrash => {
                self.coverage.count(Cover::PowerCuts);
                for ni in 0..self.plan.nodes {
                    self.crash_node(ni);
                    let lasts = self.rng.magnitude(self.plan.fault_lasts.0, self.plan.fault_lasts.1);
                    self.queue.push(self.now + lasts, Event::NodeStarts { ni });
                }
            }
            Fault::NodePause => {
                let node = &mut self.nodes[ni];
                if node.machine.is_some() && !node.paused {
                    self.coverage.count(Cover::NodePauses);
                    node.paused = true;
                    let life = node.life;
                    self.queue.push(self.now + lasts, Event::NodeResumes { ni, life });
                }
            }
            Fault::SlowDisk => {
                self.nodes[ni].slow = self.rng.between(2, 30);
                self.queue.push(self.now + lasts, Event::SpeedRecovers { ni });
            }
            Fault::SlowNode => {
                self.coverage.count(Cover::SlowNodes);
                let which = self.rng.below(3);
                self.nodes[ni].slow = if which == 1 { 1 } else { SLOW_NODE };
                self.nodes[ni].slow_net = if which == 0 { 1 } else { SLOW_NODE };
                self.queue.push(self.now + lasts, Event::SpeedRecovers { ni });
            }
            Fault::NoRoom => {
                let struck = ni;
                // One node, or all of them: the cluster is full.
                let all = self.plan.stall_limit.is_none() && self.rng.one_in(3);
                for ni in 0..self.plan.nodes {
                    if (all || ni == struck) && self.nodes[ni].capacity == ROOMY {
                        self.nodes[ni].capacity = self.nodes[ni].store.now.live + self.rng.below(8);
                        self.nodes[ni].nearly = self.rng.below(6).saturating_sub(2);
                        self.rooms_shut += 1;
                        self.queue.push(self.now + lasts, Event::RoomAgain { ni });
                    }
                }
            }
            Fault::LeaderDies => {
                if let Some(li) = self.some_leader() {
                    self.coverage.count(Cover::LeaderDeaths);
                    self.kill_leader(li);
                }
            }
            Fault::LeaderPause => {
                if let Some(li) = self.some_leader()
                    && !self.leaders[li].paused
                {
                    self.coverage.count(Cover::LeaderPauses);
                    self.leaders[li].paused = true;
                    self.queue.push(self.now + lasts, Event::LeaderResumes { li });
                }
            }
            Fault::ConnectionBreaks => {
                if let Some(li) = self.some_leader() {
                    let id = self.leaders[li].conns[ni];
                    if id != 0 {
                        self.break_conn(id);
                    }
                }
            }
            Fault::PeerConnectionBreaks => {
                let other = self.rng.index(self.plan.nodes);
                if other != ni {
                    self.break_link(ni, other);
                }
            }
            Fault::Partition => self.partition(lasts),
            Fault::Isolated => self.isolate(lasts),
            Fault::OneWay => {
                let (a, b) = (self.some_end(), self.some_end());
                if a != b {
                    self.coverage.count(Cover::Partitions);
                    let until = self.now + lasts;
                    self.net.shut[a][b] = self.net.shut[a][b].max(until);
                }
            }
            Fault::MonitorDown => {
                self.coverage.count(Cover::MonitorDown);
                if self.replicas.is_some() {
                    return self.all_monitors_crash();
                }
                self.monitor.down_until = self.monitor.down_until.max(self.now + lasts);
            }
            Fault::RenewalsLost => {
                if let Some(li) = self.some_leader() {
                    self.leaders[li].renews = false;
                    self.queue.push(self.now + lasts, Event::RenewsAgain { li });
                }
            }
            Fault::BadBlock => self.rot(ni),
            Fault::Takeover => {
                if let Some(li) = self.some_leader() {
                    let volume = self.leaders[li].volume;
                    self.monitor.volume(volume).wanted = true;
                    if self.rng.one_in(2) {
                        self.leaders[li].renews = false;
                    } else if !self.leaders[li].paused {
                        self.release_leader(li);
                    }
                }
            }
            Fault::Release => {
                if let Some(li) = self.some_leader()
                    && !self.leaders[li].paused
                {
                    self.release_leader(li);
                }
            }
            Fault::LostState => self.lose_state(lasts),
            Fault::CutOff => self.cut_off(lasts),
            kind => self.monitor_fault(kind, lasts),
        }
    }

    /// Nothing is wrong with any node; every leader says, and does not only believe, that all of its copies
    /// are in line and all of its connections stand; and no node has anything to make up for.
    fn all_is_well(&self) -> bool {
        let well = |n: &super::NodeHost| {
            let quick = n.slow == 1 && n.slow_net == 1 && n.slow_until < self.now;
            n.machine.is_some() && !n.paused && quick && n.capacity == ROOMY
        };
        let stands = |id: &ConnId| *id == 0 || !self.net.conns[*id as usize - 1].broken;
        let lag = 4 * (2 * self.plan.delay.1 + 2 * self.plan.flush.1);
        let serves = |l: &super::LeaderHost| {
            l.machine.as_ref().is_none_or(|m| {
                let now = Time(l.clock.local(self.now));
                m.all_in_line()
                    && m.nodes(now).all(|node| node.backlog_age < lag)
                    && l.conns.iter().all(stands)
            })
        };
        self.nodes.iter().all(well) && self.leaders.iter().all(serves)
    }

    /// One node, once in a run: its device falls back to what it held some time ago. Any one node may be
    /// lost for good; two may not.
    fn lose_state(&mut self, lasts: u64) {
        match self.snapshot.take() {
            None if !self.lost_state.contains(&true) => {
                let ni = self.rng.index(self.plan.nodes);
                self.snapshot = Some((ni, self.nodes[ni].store.snapshot()));
            }
            None => {}
            Some((ni, snapshot)) if self.plan.silent.is_some() => self.lose_unnoticed(ni, snapshot),
            Some((ni, snapshot)) => {
                self.coverage.count(Cover::LostState);
                self.crash_node(ni);
                self.nodes[ni].store.fall_back(snapshot);
                self.given[ni] = self.nodes[ni].store.state.clone();
                self.lost_state[ni] = true;
                if self.trace.wanted() {
                    self.say(None, format!("node.{ni} loses state"));
                }
                self.queue.push(self.now + lasts, Event::NodeStarts { ni });
            }
        }
    }

    pub(super) fn some_leader(&mut self) -> Option<usize> {
        let alive = |l: &super::LeaderHost| l.machine.is_some();
        let count = self.leaders.iter().filter(|l| alive(l)).count();
        let nth = self.rng.index(count);
        (0..self.leaders.len()).filter(|li| alive(&self.leaders[*li])).nth(nth)
    }

    fn some_end(&mut self) -> usize {
        let monitors = self.plan.monitors.as_ref().map_or(1, |monitors| monitors.count);
        match self.rng.index(self.plan.nodes + self.plan.hosts + monitors) {
            n if n < self.plan.nodes => n,
            n if n < self.plan.nodes + self.plan.hosts => host_end(n - self.plan.nodes),
            n => super::net::monitor_end(n - self.plan.nodes - self.plan.hosts),
        }
    }

    /// Two sides that cannot hear each other; some connections across break, others wait.
    fn partition(&mut self, lasts: u64) {
        self.coverage.count(Cover::Partitions);
        let sides = self.rng.bits();
        let until = self.now + lasts;
        let side = |end: usize| sides >> end & 1;
        for a in 0..ENDS {
            for b in 0..ENDS {
                if side(a) != side(b) {
                    self.net.shut[a][b] = self.net.shut[a][b].max(until);
                }
            }
        }
        if self.rng.one_in(2) {
            return;
        }
        for li in 0..self.leaders.len() {
            for ni in 0..self.plan.nodes {
                let id = self.leaders[li].conns[ni];
                if id != 0 && side(ni) != side(host_end(self.leaders[li].host)) && self.rng.one_in(2) {
                    self.break_conn(id);
                }
            }
        }
        for a in 0..NODES_MAX.min(self.plan.nodes) {
            for b in 0..a {
                if side(a) != side(b) && self.rng.one_in(2) {
                    self.break_link(a, b);
                }
            }
        }
    }

    /// A front end and one node hear only each other, for longer than the lease lasts; somebody else takes
    /// the volume over meanwhile. What the node still has is old by then.
    fn isolate(&mut self, lasts: u64) {
        let Some(li) = self.some_leader().filter(|li| !self.leaders[*li].healer) else { return };
        self.coverage.count(Cover::Isolated);
        let (volume, host) = (self.leaders[li].volume, host_end(self.leaders[li].host));
        let node = self.rng.index(self.plan.nodes);
        let until = self.now + self.plan.lease + self.plan.margin + lasts;
        for end in (0..ENDS).filter(|end| *end != host && *end != node) {
            for inside in [host, node] {
                for (a, b) in [(inside, end), (end, inside)] {
                    self.net.shut[a][b] = self.net.shut[a][b].max(until);
                }
            }
        }
        self.monitor.volume(volume).wanted = true;
    }

    /// A block of a node's copy goes bad, if no other copy of it is.
    fn rot(&mut self, ni: usize) {
        let volume = VolumeId(self.rng.between(1, self.plan.volumes as u64));
        let index = self.rng.index(self.plan.objects) as u32;
        let block = self.plan.first_block + self.rng.index(self.plan.blocks) as u32;
        let (pg, config) = self.plan.pg(volume, index);
        let object = ObjectId { group: GroupId { volume, pg }, index };
        let member = config.takes_part(trefoil_core::NodeId(ni as u32));
        if member
            && !self.nodes.iter().any(|n| n.store.now.bad.contains(&(n.store.find(object), block)))
            && self.nodes[ni].store.rot_where_it_is(object, block)
        {
            self.coverage.count(Cover::Rot);
            self.rot_so_far += 1;
            if self.trace.wanted() {
                self.say(
                    Some((volume, Some(index))),
                    format!("block {block} of {object} goes bad on node.{ni}"),
                );
            }
        }
    }
}
