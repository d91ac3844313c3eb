//! What goes wrong with monitors, and what an administrator does about it.
//!
//! A monitor may lose its directory; the administrator then removes it and adds the new one, which learns first and
//! votes when it is level. One at a time: a second one only when the first has been replaced. All of them may be
//! lost as well; then the cluster begins again with one monitor and a backup of the map, and the others are added.

use super::World;
use super::net::{MONITOR, host_end, monitor_end};
use super::replicas::MonitorEvent;
use crate::check::Violation;
use crate::coverage::Cover;
use crate::plan::{Bug, Fault};
use crate::raft::{Base, Disk, Members};
use std::rc::Rc;
use trefoil_core::NodeId;
use trefoil_core::map::reign::ReignId;
use trefoil_core::map::restore::settle;
use trefoil_core::map::{ClusterMap, Command, LayoutReport};

impl World {
    /// A fault of monitors.
    pub(super) fn monitor_fault(&mut self, kind: Fault, lasts: u64) {
        let count = self.monitors();
        if count == 0 || self.too_much_for_monitors() {
            return;
        }
        // Half of the time the one that matters most.
        let leader = self.replicas.as_ref().and_then(|it| it.leader());
        let any = self.rng.index(count);
        let mi = leader.filter(|_| self.rng.one_in(2)).unwrap_or(any);
        match kind {
            Fault::MonitorCrash => {
                self.crash_monitor(mi);
                self.push_monitor(self.now + lasts, MonitorEvent::Starts { mi });
            }
            Fault::MonitorPause => {
                let Some(replicas) = &mut self.replicas else { return };
                let replica = &mut replicas.all[mi];
                if replica.process.is_some() && !replica.paused {
                    replica.paused = true;
                    let life = replica.life;
                    self.coverage.count(Cover::MonitorPauses);
                    self.push_monitor(self.now + lasts, MonitorEvent::Resumes { mi, life });
                }
            }
            Fault::MonitorPartition => self.cut_monitor(mi, lasts),
            Fault::MonitorElects if self.replicas.as_ref().is_some_and(|it| !it.all[any].paused) => {
                self.monitor_elects(any);
            }
            Fault::MonitorReplaced => self.replace_monitor(mi, lasts),
            Fault::MonitorsRestored => self.restore_monitors(lasts),
            _ => {}
        }
    }

    /// Nearly all faults strike monitors that have found a leader since the last one: where they come quicker than
    /// elections, there would be nothing to disturb.
    fn too_much_for_monitors(&mut self) -> bool {
        let Some(replicas) = &self.replicas else { return true };
        let reigns =
            replicas.all.iter().any(|it| it.process.as_ref().is_some_and(|it| it.reigning.is_some()));
        !reigns && self.rng.below(8) > 0
    }

    /// The power of all monitors is gone.
    pub(super) fn all_monitors_crash(&mut self) {
        if self.too_much_for_monitors() {
            return;
        }
        for mi in 0..self.monitors() {
            self.crash_monitor(mi);
            let lasts = self.rng.magnitude(self.plan.fault_lasts.0, self.plan.fault_lasts.1);
            self.push_monitor(self.now + lasts, MonitorEvent::Starts { mi });
        }
    }

    /// A monitor and the others do not hear each other, or only one of them the other; sometimes that goes for
    /// front ends, too.
    fn cut_monitor(&mut self, mi: usize, lasts: u64) {
        self.coverage.count(Cover::MonitorPartitions);
        // As long as a lease needs to run out, in half of them.
        let longer = if self.rng.one_in(2) { 2 * (self.plan.lease + self.plan.margin) } else { 0 };
        let until = self.now + lasts + longer;
        let (from, to) = [(true, true), (true, false), (false, true)][self.rng.index(3)];
        let hosts = if self.rng.one_in(3) { self.plan.hosts } else { 0 };
        let ends = (0..self.monitors()).map(monitor_end).chain((0..hosts).map(host_end));
        for end in ends.filter(|end| *end != MONITOR + mi) {
            for (a, b, cut) in [(MONITOR + mi, end, from), (end, MONITOR + mi, to)] {
                if cut {
                    self.net.shut[a][b] = self.net.shut[a][b].max(until);
                }
            }
        }
    }

    /// A monitor loses its directory, if no other one has since the last was replaced.
    fn replace_monitor(&mut self, mi: usize, lasts: u64) {
        let empties = self.plan.bug == Some(Bug::EmptyMonitorVotes);
        let Some(replicas) = &self.replicas else { return };
        let Some(leader) = replicas.leader() else { return };
        let whole = replicas.all.iter().all(|it| self.votes_at(leader, it.dir));
        if replicas.all.len() < 3 || !whole {
            return;
        }
        self.coverage.count(Cover::MonitorsReplaced);
        if self.trace.wanted() {
            self.say(None, format!("monitor {mi} loses its directory"));
        }
        self.crash_monitor(mi);
        let Some(replicas) = &mut self.replicas else { return };
        let mut dir = replicas.new_dir(mi);
        let mut members = Members::default();
        if empties {
            dir = replicas.all[mi].dir;
            members.voters = replicas.all.iter().map(|it| it.dir).collect();
        }
        let base = empty(members);
        let replica = &mut replicas.all[mi];
        (replica.dir, replica.disk) = (dir, Some(Disk::new(dir, base)));
        self.push_monitor(self.now + lasts, MonitorEvent::Starts { mi });
    }

    /// By what the leader has committed, a directory is that of a voter.
    fn votes_at(&self, leader: usize, dir: u64) -> bool {
        let process = self.replicas.as_ref().and_then(|it| it.all[leader].process.as_ref());
        process.is_some_and(|it| it.raft.may_change_members() && it.raft.members().voters.contains(&dir))
    }

    /// The administrator brings the members to what there is, one step at a time.
    pub(super) fn administrator(&mut self) {
        let Some(replicas) = &self.replicas else { return };
        let Some(leader) = replicas.leader() else { return };
        let Some(process) = replicas.all[leader].process.as_ref().filter(|it| it.raft.may_change_members())
        else {
            return;
        };
        let mut members = Members::clone(process.raft.members());
        let there: Vec<u64> = replicas.all.iter().map(|it| it.dir).collect();
        if let Some(gone) = members.voters.iter().position(|dir| !there.contains(dir)) {
            members.voters.remove(gone);
        } else if let Some(gone) = members.learners.iter().position(|dir| !there.contains(dir)) {
            members.learners.remove(gone);
        } else if let Some(new) = there.iter().find(|dir| !members.all().any(|it| it == **dir)) {
            members.learners.push(*new);
        } else if let Some(level) = members.learners.iter().position(|dir| process.raft.is_level(*dir)) {
            let dir = members.learners.remove(level);
            members.voters.push(dir);
        } else {
            return;
        }
        self.write_members(leader, members);
    }

    /// A backup is taken; or, some time later and once in a run, all monitors are lost, and it is restored.
    fn restore_monitors(&mut self, lasts: u64) {
        let Some(replicas) = &mut self.replicas else { return };
        let Some(backup) = replicas.backup.take() else {
            if !replicas.restored {
                // Of any monitor that runs: its map may lag. Of one that is still empty there is none to be had.
                let running = replicas.all.iter().filter_map(|it| it.process.as_ref());
                replicas.backup = running.map(|it| &it.map).find(|map| map.version > 0).cloned();
            }
            return;
        };
        let mut map = backup;
        if !map.restored(&super::monitor::holder(u64::MAX, false)) {
            return;
        }
        replicas.restored = true;
        self.coverage.count(Cover::Restored);
        // Nothing moves in such a run, so what nodes say agrees with the map at once; of the new epochs they are
        // not told.
        let said = |(ni, node): (usize, &super::NodeHost)| {
            let pgs = node.store.state.pgs.iter().map(|(pg, state)| (*pg, state.epoch, None));
            (NodeId(ni as u32), LayoutReport { lost: false, pgs: pgs.collect() })
        };
        let reports = self.nodes.iter().enumerate().map(said).collect();
        let adopted = settle(&map, &reports).map_err(|why| format!("{why:?}")).and_then(|configs| {
            let adopt = Command::AdoptLayout { configs, last: true };
            map.apply(&adopt).map_err(|error| error.to_string())
        });
        if let Err(why) = adopted {
            return self
                .note(Err(Violation::plain("6.5", format!("the restored layout is not settled: {why}"))));
        }
        if self.trace.wanted() {
            self.say(None, format!("all monitors are lost; a backup is restored: version {}", map.version));
        }
        let count = self.monitors();
        for mi in 0..count {
            self.crash_monitor(mi);
        }
        let first = self.rng.index(count);
        let Some(replicas) = &mut self.replicas else { return };
        let dir = replicas.new_dir(first);
        let members = Rc::new(Members { voters: vec![dir], learners: Vec::new() });
        let written_in = ReignId { term: 1, monitor: dir };
        let base = Rc::new(Base { index: 1, written_in, members, map });
        replicas.agreed.restored(&base);
        for mi in 0..count {
            let (dir, base) = match mi == first {
                true => (dir, base.clone()),
                false => (replicas.new_dir(mi), empty(Members::default())),
            };
            let mut disk = Disk::new(dir, base);
            if mi == first {
                disk.ballot = written_in;
            }
            let replica = &mut replicas.all[mi];
            (replica.dir, replica.disk) = (dir, Some(disk));
        }
        for volume in self.plan.volume_ids() {
            let Some(replicas) = &self.replicas else { return };
            let held = replicas.agreed.map().volumes.get(&volume).map_or(0, |it| it.generation.0);
            self.monitor.granted(volume, held);
        }
        for mi in 0..count {
            let later = self.rng.below(lasts);
            self.push_monitor(self.now + later, MonitorEvent::Starts { mi });
        }
    }

    /// Faults have stopped: every monitor runs.
    pub(super) fn monitors_recover(&mut self) {
        for mi in 0..self.monitors() {
            let Some(replicas) = &self.replicas else { return };
            let life = replicas.all[mi].life;
            self.push_monitor(self.now, MonitorEvent::Resumes { mi, life });
            self.push_monitor(self.now, MonitorEvent::Starts { mi });
        }
        self.movers_begin(false);
    }

    /// Long after faults have stopped: who is not where the others are.
    pub(super) fn monitors_are_not_level(&self) -> Option<String> {
        let replicas = self.replicas.as_ref()?;
        let Some(leader) = replicas.leader() else { return Some("no monitor leads".to_string()) };
        let last = replicas.agreed.last();
        replicas.all.iter().enumerate().find_map(|(mi, it)| {
            let applied = it.process.as_ref().map_or(0, |process| process.applied);
            let votes = self.votes_at(leader, it.dir);
            let level = applied == last && votes;
            (!level).then(|| {
                format!("faults stopped long ago, and monitor {mi} is at {applied} of {last}, voter: {votes}")
            })
        })
    }

    /// What is wrong with monitors, for people.
    pub(super) fn monitors_now(&self) -> Vec<String> {
        let Some(replicas) = &self.replicas else { return Vec::new() };
        let state = |(mi, it): (usize, &super::replicas::Replica)| match &it.process {
            None => Some(format!("monitor {mi} down")),
            Some(_) if it.paused => Some(format!("monitor {mi} paused")),
            Some(process) => {
                let reign = process.reigning.as_ref().map(|it| it.reign.id());
                let (raft, members) = (&process.raft, process.raft.members());
                Some(format!(
                    "monitor {mi} ({}) is at {} of {}, committed {}, {members:?}, reigns: {reign:?}",
                    it.dir,
                    process.applied,
                    raft.disk.last(),
                    raft.commit(),
                ))
            }
        };
        replicas.all.iter().enumerate().filter_map(state).collect()
    }
}

/// What is in an empty directory. (Index 0 is in nobody's log: it is sent the map.)
fn empty(members: Members) -> Rc<Base> {
    let (written_in, members) = (ReignId::default(), Rc::new(members));
    Rc::new(Base { index: 0, written_in, members, map: ClusterMap::new() })
}
