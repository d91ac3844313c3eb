//! What is asked of several monitors, and what comes of it.
//!
//! Whoever asks sends to the monitor that answered last, and to another one when that does not answer any more; now
//! and then to any. A process that has heard nothing asks again, as the same process; an answer to an earlier
//! request of it counts no more.

use super::calls::{all_nodes_said_nobody, held_by_front_end};
use super::monitor::holder;
use super::moves::new_mover;
use super::net::{HOSTS_MAX, host_end, monitor_end};
use super::replicas::{MonitorEvent, monitor_of};
use super::{Event, World};
use crate::check::Violation;
use crate::check::agreement::Committed;
use crate::coverage::Cover;
use crate::plan::{Bug, POOL, VOLUMES_MAX};
use std::rc::Rc;
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::mover::Action;
use trefoil_core::map::reign::{Confirmed, Fate, Outcome, Proposal};
use trefoil_core::map::{ClusterMap, Command, Grant, HolderKind, Reply};
use trefoil_core::message::GroupList;
use trefoil_core::placement::PgConfig;
use trefoil_core::{Generation, NodeId, PgId, VolumeId};

/// A process that asks, and its how manyth request that is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The process.
    pub boot: u64,
    /// The request. Answers to earlier ones do not count.
    pub number: u64,
}

/// What is asked.
#[allow(missing_docs)]
pub enum Request {
    /// A generation.
    Ask { volume: VolumeId, healer: bool, host: usize, asked: u64, asker: Asker },
    /// A lease, again.
    Renewal { volume: VolumeId, generation: u64, li: usize, sent: u64 },
    /// A front end or healer lets go.
    Release { volume: VolumeId, generation: u64, clean: bool },
    /// An administrator wants something.
    Wish(Command),
}

/// Who waits for an entry of the log.
#[allow(missing_docs)]
pub enum Waits {
    Grant { grant: Grant, healer: bool, host: usize, asked: u64, asker: Asker },
    Release { volume: VolumeId, generation: u64 },
    Mover,
    Nobody,
}

/// What the world knows of those who ask.
#[derive(Debug, Default)]
pub struct Askers {
    /// The monitor that each host asks.
    monitor: [usize; HOSTS_MAX],
    /// What each host has asked in a row without an answer.
    unanswered: [u32; HOSTS_MAX],
    /// The process on each host that wants each volume, whether it is a healer, and when it asked.
    asking: [[Option<(Asker, bool, u64)>; HOSTS_MAX]; VOLUMES_MAX],
    /// The last front end on each host.
    front_end: [u64; HOSTS_MAX],
}

impl World {
    /// Somebody on a host asks the monitors something.
    pub(super) fn request(&mut self, host: usize, request: Request) {
        if self.lease_message_lost() {
            return;
        }
        let count = self.monitors();
        let Some(replicas) = &mut self.replicas else { return };
        let astray = replicas.plan.astray_percent;
        let leader = replicas.leader();
        let askers = &mut replicas.askers;
        askers.unanswered[host] += 1;
        if askers.unanswered[host] > 2 {
            askers.unanswered[host] = 0;
            let any = self.rng.index(count);
            askers.monitor[host] = if self.rng.one_in(2) { any } else { leader.unwrap_or(any) };
        }
        let mi = if self.rng.percent(astray) { self.rng.index(count) } else { askers.monitor[host] };
        let at = self.arrival(host_end(host), monitor_end(mi));
        self.push_monitor(at, MonitorEvent::Request { mi, request });
    }

    /// Somebody wants to lead a volume.
    pub(super) fn ask_monitors(&mut self, volume: VolumeId, healer: bool, host: usize) {
        let (again, same) = (self.rng.one_in(2), self.rng.one_in(3));
        let Some(replicas) = &mut self.replicas else { return };
        let v = volume.0 as usize - 1;
        // It waits for an answer for as long as one may take; then it may have died, too.
        let plan = &replicas.plan;
        let patience = plan.election.1 + plan.write.1 + plan.apply.1;
        if replicas.askers.asking[v][host].is_some_and(|it| self.now < it.2 + patience) {
            return;
        }
        let asking = replicas.askers.asking[v][host].filter(|it| it.1 == healer && again);
        let asker = match asking {
            Some((asker, ..)) => Asker { number: asker.number + 1, ..asker },
            None => {
                self.monitor.boots += 1;
                // A healer may be of the process that has a front end.
                let front_end = replicas.askers.front_end[host];
                let boot = if healer && same && front_end > 0 { front_end } else { self.monitor.boots };
                // Numbers go on: an answer to another process does not count either.
                Asker { boot, number: self.monitor.boots << 20 }
            }
        };
        if asking.is_some() {
            self.coverage.count(Cover::AskedAgain);
        }
        replicas.askers.asking[v][host] = Some((asker, healer, self.now));
        let request = Request::Ask { volume, healer, host, asked: self.now, asker };
        self.request(host, request);
    }

    /// A grant has come. False if the process that asked does not wait for this answer any more.
    pub(super) fn answer_counts(&mut self, volume: VolumeId, host: usize, asker: Asker) -> bool {
        let Some(replicas) = &mut self.replicas else { return true };
        replicas.askers.unanswered[host] = 0;
        let asking = &mut replicas.askers.asking[volume.0 as usize - 1][host];
        let counts = asking.is_some_and(|it| it.0 == asker);
        if counts {
            *asking = None;
        }
        counts
    }

    /// The leader that was started last is that process, with a lease from when it asked.
    pub(super) fn is_process(&mut self, boot: u64, asked: u64) {
        let Some(li) = self.leaders.len().checked_sub(1) else { return };
        let host = &mut self.leaders[li];
        host.boot = boot;
        let until = host.clock.local(asked) + self.plan.lease;
        let (healer, number) = (host.healer, host.host);
        if let Some(replicas) = self.replicas.as_mut().filter(|_| !healer) {
            replicas.askers.front_end[number] = boot;
        }
        self.believes(li, until);
    }

    /// A leader has released, and says so, once: if nobody hears it, its lease runs out.
    pub(super) fn release_to_monitors(&mut self, li: usize, clean: bool) {
        let host = &self.leaders[li];
        let (volume, generation, from) = (host.volume, host.generation, host.host);
        self.request(from, Request::Release { volume, generation, clean });
    }

    /// An administrator wants something.
    pub(super) fn wish(&mut self, command: Command) {
        self.request(0, Request::Wish(command));
    }

    /// A request has come to a monitor.
    pub(super) fn requested(&mut self, mi: usize, request: Request) {
        let careless = self.plan.bug == Some(Bug::RenewWithoutConfirm);
        let Some(replicas) = &mut self.replicas else { return };
        let Some(process) = &replicas.all[mi].process else { return };
        let Some(reigning) = &process.reigning else {
            // It says who leads, as far as it knows.
            let host = match &request {
                Request::Ask { host, .. } => *host,
                Request::Renewal { li, .. } => self.leaders[*li].host,
                _ => return,
            };
            if let Some(leader) = process.raft.leader {
                replicas.askers.monitor[host] = monitor_of(leader);
            }
            return;
        };
        match request {
            Request::Renewal { .. } if careless => {
                let sure = Confirmed::by_majority(reigning.reign.id());
                self.serve(mi, request, sure);
            }
            Request::Ask { .. } | Request::Renewal { .. } => self.confirm(mi, Some(request)),
            Request::Release { volume, generation, clean } => {
                let volumes = vec![(volume, Generation(generation), clean)];
                let proposal = reigning.reign.proposal(Command::Release { volumes }, 0);
                self.write_later(mi, proposal, Waits::Release { volume, generation });
            }
            Request::Wish(command) => {
                let proposal = reigning.reign.proposal(command, 0);
                self.write_later(mi, proposal, Waits::Nobody);
            }
        }
    }

    /// A majority has said that this monitor leads: leases are judged.
    pub(super) fn serve(&mut self, mi: usize, request: Request, sure: Confirmed) {
        let now = self.monitor_time(mi);
        let Some(replicas) = &mut self.replicas else { return };
        let Some(process) = &mut replicas.all[mi].process else { return };
        let Some(reigning) = &mut process.reigning else { return };
        match request {
            Request::Ask { volume, healer, host, asked, asker } => {
                let who = holder(asker.boot, healer);
                let reign = &mut reigning.reign;
                replicas.askers.unanswered[host] = 0;
                if healer {
                    all_nodes_said_nobody(&self.plan, reign, &process.map, now);
                }
                let asked_for = reign.ask(sure, &process.map, volume, &who, Generation(0), now);
                let grant = match asked_for {
                    Ok(grant) => grant,
                    Err(why) => return self.not_given(&why),
                };
                let (id, held) = (reign.id(), held_by_front_end(&process.map, volume).filter(|_| healer));
                let command = Command::GrantGenerations { grants: vec![grant.clone()], holder: who };
                let proposal = reign.proposal(command, 0);
                self.given_to_healer((mi, id), volume, held);
                self.write_later(mi, proposal, Waits::Grant { grant, healer, host, asked, asker });
            }
            Request::Renewal { volume, generation, li, sent } => {
                let (boot, host) = (self.leaders[li].boot, self.leaders[li].host);
                let (who, lease) = (holder(boot, false), self.plan.lease);
                let (map, reign) = (&process.map, &mut reigning.reign);
                let renewal = reign.renew(sure, map, &who, volume, Generation(generation), now);
                if renewal.is_ok() {
                    replicas.askers.unanswered[host] = 0;
                }
                match renewal {
                    Ok(Renewal::Renewed { release_please }) => {
                        if self.lease_message_lost() {
                            return;
                        }
                        let at = self.arrival(monitor_end(mi), host_end(host));
                        self.queue.push(at, Event::Renewed { li, until: sent + lease });
                        let asks = release_please && !self.leaders[li].releasing && self.rng.one_in(2);
                        if asks && self.faulty {
                            self.queue.push(at, Event::ReleaseLeader { li });
                        }
                    }
                    Ok(Renewal::Lost) => {
                        let agreed = replicas.agreed.map().volumes.get(&volume);
                        let held = agreed.is_some_and(|it| {
                            let same = it.holder.as_ref().is_some_and(|holder| holder.is(&who));
                            same && it.generation == Generation(generation)
                        });
                        if held {
                            let what = format!(
                                "monitor {mi} tells the holder of generation {generation} of {volume} that it is \
                                 over, and it is the newest"
                            );
                            self.note(Err(Violation::plain("6.2", what)));
                        }
                    }
                    Ok(Renewal::Undecided) => self.coverage.count(Cover::Undecided),
                    Err(_) => {}
                }
            }
            Request::Release { .. } | Request::Wish(_) => {}
        }
    }

    /// What was decided is written a little later.
    fn write_later(&mut self, mi: usize, proposal: Proposal, waits: Waits) {
        let Some(replicas) = &self.replicas else { return };
        let (span, life) = (replicas.plan.write, replicas.all[mi].life);
        let at = self.now + self.rng.between(span.0, span.1);
        let proposal = Rc::new(proposal);
        self.push_monitor(at, MonitorEvent::Write { mi, life, proposal, waits });
    }

    /// What was decided is written, in whatever reign that is now.
    pub(super) fn write(&mut self, mi: usize, proposal: Rc<Proposal>, waits: Waits) {
        let written = self.write_entry(mi, proposal.clone());
        let now = self.monitor_time(mi);
        let Some(replicas) = &mut self.replicas else { return };
        let Some(process) = &mut replicas.all[mi].process else { return };
        match (written, waits) {
            (_, Waits::Nobody) => {}
            (Some((number, index)), waits) => _ = process.pending.insert(index, (number, waits)),
            (None, Waits::Grant { grant, .. }) => {
                if let Some(it) = process.reigning.as_mut().filter(|it| it.reign.id() == proposal.reign) {
                    it.reign.settle(&[grant], Fate::Never, &process.map, now);
                }
            }
            (None, Waits::Mover) => {
                if let Some(it) = &mut process.reigning {
                    it.moving = it.moving.saturating_sub(1);
                }
            }
            (None, Waits::Release { .. }) => {}
        }
    }

    /// A monitor has applied what it was asked for.
    pub(super) fn answer(&mut self, mi: usize, waits: Waits, proposal: &Proposal, outcome: &Outcome) {
        let now = self.monitor_time(mi);
        let Some(replicas) = &mut self.replicas else { return };
        let Some(process) = &mut replicas.all[mi].process else { return };
        let reigning = process.reigning.as_mut().filter(|it| it.reign.id() == proposal.reign);
        let map = &process.map;
        match waits {
            Waits::Nobody => {}
            Waits::Mover => {
                if let Some(it) = reigning {
                    it.moving = it.moving.saturating_sub(1);
                }
            }
            Waits::Release { volume, generation } => {
                if let Some(it) = reigning {
                    it.reign.released(map, volume, Generation(generation));
                }
            }
            Waits::Grant { grant, healer, host, asked, asker } => {
                let fate = match outcome {
                    Outcome::Done(Ok(Reply::Granted(results))) => Fate::Applied(results),
                    _ => Fate::Never,
                };
                let generation = match &fate {
                    Fate::Applied([Ok(generation)]) => Some(generation.0),
                    _ => None,
                };
                let pgs = self.plan.moves.is_some().then(|| configs_of(map, self.plan.pgs.len()));
                let volume = grant.volume;
                if let Some(it) = reigning {
                    it.reign.settle(&[grant], fate, map, now);
                }
                let Some(generation) = generation else { return };
                let checked = replicas.agreed.told(volume, generation, asker.number);
                self.note(checked);
                if self.trace.wanted() {
                    let text =
                        format!("monitor {mi} tells host {host} of generation {generation} of {volume}");
                    self.say(Some((volume, None)), text);
                }
                if self.lease_message_lost() {
                    return;
                }
                let at = self.arrival(monitor_end(mi), host_end(host));
                // With the grant comes the map as this monitor has it.
                let pgs = pgs.unwrap_or_else(|| self.plan.pgs.clone()).into();
                self.queue.push(at, Event::Granted { volume, generation, healer, host, asked, asker, pgs });
            }
        }
    }

    /// The monitors have agreed on a command, as the first of them knows.
    pub(super) fn committed(&mut self, it: Committed) {
        self.coverage.count(Cover::Committed);
        let Committed { proposal, outcome, before } = it;
        if self.trace.wanted() {
            self.say(None, format!("committed: {proposal:?}: {outcome:?}"));
        }
        let Outcome::Done(result) = outcome else { return };
        match (&proposal.command, &result) {
            (Command::GrantGenerations { grants, .. }, Ok(Reply::Granted(results))) => {
                for (grant, result) in grants.iter().zip(results) {
                    let Ok(generation) = result else {
                        self.coverage.count(Cover::StaleGrants);
                        continue;
                    };
                    let held = before.volumes.get(&grant.volume).and_then(|it| it.holder.as_ref());
                    if held.is_some_and(|holder| holder.kind == HolderKind::FrontEnd) {
                        self.coverage.count(Cover::LeasesExpired);
                    }
                    self.monitor.granted(grant.volume, generation.0);
                }
            }
            (Command::Release { volumes }, Ok(_)) => {
                for (volume, generation, clean) in volumes.clone() {
                    let held =
                        |it: &trefoil_core::map::Volume| it.generation == generation && it.holder.is_some();
                    if before.volumes.get(&volume).is_some_and(|it| held(it)) {
                        self.monitor.volume(volume).needs_healing = !clean;
                    }
                    self.calm_released(volume, generation.0);
                }
            }
            _ => {}
        }
        let Some(map) = self.replicas.as_ref().map(|it| it.agreed.map().clone()) else { return };
        self.committed_move(&proposal.command, result, map);
    }

    /// What a mover wants.
    pub(super) fn mover_acts(&mut self, mi: usize, action: Action) {
        match action {
            Action::List { node, request } => {
                let ni = node.0 as usize;
                let (at, life) = (self.arrival(monitor_end(mi), ni), self.nodes[ni].life);
                self.queue.push(at, Event::List { ni, life, by: mi, request });
            }
            Action::Open(group) => self.volume_differs(group),
            Action::Propose(command) => {
                let Some(replicas) = &mut self.replicas else { return };
                let Some(process) = &mut replicas.all[mi].process else { return };
                let Some(reigning) = &mut process.reigning else { return };
                reigning.moving += 1;
                let proposal = reigning.reign.proposal(command, 0);
                self.write_later(mi, proposal, Waits::Mover);
            }
        }
    }

    /// A node's answer has come to the monitor that asked, or to who runs there now.
    pub(super) fn listed_to(&mut self, ni: usize, mi: usize, list: GroupList) {
        let Some(replicas) = &mut self.replicas else { return };
        let replica = &mut replicas.all[mi];
        let Some(process) = replica.process.as_mut().filter(|_| !replica.paused) else { return };
        let Some(reigning) = &mut process.reigning else { return };
        self.coverage.count(Cover::Lists);
        reigning.mover.listed(&process.map, NodeId(ni as u32), list);
    }

    /// The placement groups as whoever is asked for them knows: any monitor, and its map may lag.
    pub(super) fn some_map(&mut self) -> Vec<PgConfig> {
        let Some(replicas) = &self.replicas else { return self.plan.pgs.clone() };
        let running = replicas.all.iter().filter_map(|it| it.process.as_ref());
        let running: Vec<_> = running.collect();
        let process = running.get(self.rng.index(running.len()));
        process.map_or_else(|| self.plan.pgs.clone(), |it| configs_of(&it.map, self.plan.pgs.len()))
    }

    /// Nothing new moves, for now; or again.
    pub(super) fn movers_begin(&mut self, crush: bool) {
        let Some(replicas) = &mut self.replicas else { return };
        let processes = replicas.all.iter_mut().filter_map(|it| it.process.as_mut());
        for reigning in processes.filter_map(|it| it.reigning.as_mut()) {
            reigning.mover = new_mover(crush);
        }
    }
}

fn configs_of(map: &ClusterMap, count: usize) -> Vec<PgConfig> {
    let config = |pg| map.members(PgId { pool: POOL, pg }).map(|it| it.config());
    (0..count as u32).filter_map(config).collect()
}
