//! Several monitors: processes that crash, stand still and lag, with consensus between them.
//!
//! Each has a directory (what its Raft keeps), a map that it makes of committed entries by `core`'s `apply`, and,
//! while it believes that it leads, a reign ([`trefoil_core::map::reign`]) and a mover. What this file does is what
//! a daemon's shell does: it hands messages over, asks a majority before a lease is judged, writes what was decided,
//! applies what is committed, late. A reign begins and ends when the monitor looks, which is later than when it
//! was elected or deposed; so a monitor may believe in a reign that is long over.

use super::monitor::lease_config;
use super::moves::new_mover;
use super::net::monitor_end;
use super::requests::{Request, Waits};
use super::{Clock, Event, World};
use crate::check::agreement::Agreement;
use crate::coverage::Cover;
use crate::plan::{Bug, MONITORS_MAX, MonitorsPlan};
use crate::raft::{Base, DirId, Disk, Entry, Members, Msg, Out, Payload, Raft};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use trefoil_core::map::heard::Callers;
use trefoil_core::map::mover::Mover;
use trefoil_core::map::reign::{Confirmed, Proposal, Reign, ReignId};
use trefoil_core::map::{ClusterMap, Command};
use trefoil_core::{NodeId, Time};

/// Between two looks of the administrator at the monitors (µs).
const ADMINISTRATOR: u64 = 20_000;
/// The least time between signs of life when all is well (µs): there is nothing to be found any more.
const CALM_BEAT: u64 = 300_000;

/// Something that happens to monitors. `mi`: a monitor's number; `life`: of its process.
#[allow(missing_docs)]
pub enum MonitorEvent {
    Says { from: DirId, to: DirId, msg: Msg },
    Tick { mi: usize, life: u32 },
    Apply { mi: usize, life: u32 },
    Write { mi: usize, life: u32, proposal: Rc<Proposal>, waits: Waits },
    Request { mi: usize, request: Request },
    Word { mi: usize, ni: usize, callers: Callers },
    Starts { mi: usize },
    Resumes { mi: usize, life: u32 },
    Administrator,
}

/// What a monitor is, for as long as it believes that it leads.
pub struct Reigning {
    /// The rules.
    pub reign: Reign,
    /// Moves.
    pub mover: Mover,
    /// What it has proposed and not seen applied: it waits for that before it goes on.
    pub moving: usize,
}

/// A process.
pub struct Process {
    /// Its Raft.
    pub raft: Raft,
    /// What it has made of the log.
    pub map: ClusterMap,
    /// How far.
    pub applied: u64,
    applying: bool,
    /// How far its log was looked at.
    checked: u64,
    /// It believes that it leads.
    pub reigning: Option<Reigning>,
    /// A reign that is to begin when the round is answered, and the map has come that far.
    beginning: Option<(ReignId, u64, u64)>,
    /// What waits for a majority: the round, and how far the map must have come.
    pub waiting: Vec<(u64, u64, Request)>,
    /// What waits for an entry of the log: that command, at that index.
    pub pending: BTreeMap<u64, (u64, Waits)>,
    /// When it wants to lead, unless it hears of a leader.
    deadline: u64,
}

/// A monitor.
pub struct Replica {
    /// Its directory, while it does not run.
    pub disk: Option<Disk>,
    /// Its directory's name.
    pub dir: DirId,
    /// Its process, while it runs.
    pub process: Option<Process>,
    /// Counts its starts.
    pub life: u32,
    /// It stands still; what happens to it waits.
    pub paused: bool,
    deferred: VecDeque<MonitorEvent>,
    clock: Clock,
}

/// All of them.
pub struct Replicas {
    /// What the seed decided.
    pub plan: MonitorsPlan,
    /// By number.
    pub all: Vec<Replica>,
    /// What they have agreed on.
    pub agreed: Agreement,
    /// What the world knows of those who ask.
    pub askers: super::requests::Askers,
    /// Directories so far.
    pub dirs: u64,
    /// A backup of the map.
    pub backup: Option<ClusterMap>,
    /// It was restored, once in a run.
    pub restored: bool,
    commands: u64,
    out: Out,
}

/// The monitor whose directory that is.
pub fn monitor_of(dir: DirId) -> usize {
    (dir % 8) as usize
}

impl Replicas {
    /// The name of a new directory.
    pub fn new_dir(&mut self, mi: usize) -> DirId {
        self.dirs += 1;
        self.dirs * 8 + mi as u64
    }

    /// The monitor that leads, as far as anybody could know.
    pub fn leader(&self) -> Option<usize> {
        let reign = |mi: &usize| self.all[*mi].process.as_ref().and_then(|it| it.raft.leads());
        (0..self.all.len()).filter(|mi| reign(mi).is_some()).max_by_key(reign)
    }
}

impl World {
    /// The monitors of the run, if it has several.
    pub(super) fn start_monitors(&mut self, map: ClusterMap) {
        let Some(plan) = self.plan.monitors.clone() else { return };
        debug_assert!(plan.count <= MONITORS_MAX);
        let dirs: Vec<DirId> = (0..plan.count as u64).map(|mi| 8 + mi).collect();
        let members = Rc::new(Members { voters: dirs.clone(), learners: Vec::new() });
        // Behind index 0, so that whoever comes later is sent the map.
        let base = Rc::new(Base { index: 1, written_in: ReignId::default(), members, map });
        let agreed = Agreement::new(&base);
        let mut all = Vec::new();
        for dir in dirs {
            let clock = World::new_clock(&mut self.rng, &self.plan);
            let disk = Some(Disk::new(dir, base.clone()));
            let deferred = VecDeque::new();
            all.push(Replica { disk, dir, process: None, life: 0, paused: false, deferred, clock });
        }
        self.replicas = Some(Box::new(Replicas {
            plan,
            all,
            agreed,
            askers: Default::default(),
            dirs: 1,
            backup: None,
            restored: false,
            commands: 0,
            out: Vec::new(),
        }));
        for mi in 0..self.monitors() {
            self.start_monitor(mi);
        }
        self.queue.push(ADMINISTRATOR, Event::Monitors(Box::new(MonitorEvent::Administrator)));
    }

    /// How many there are.
    pub(super) fn monitors(&self) -> usize {
        self.replicas.as_ref().map_or(0, |it| it.all.len())
    }

    pub(super) fn push_monitor(&mut self, at: u64, event: MonitorEvent) {
        self.queue.push(at, Event::Monitors(Box::new(event)));
    }

    fn process(&mut self, mi: usize) -> Option<&mut Process> {
        self.replicas.as_mut()?.all.get_mut(mi)?.process.as_mut()
    }

    /// A monitor's clock.
    pub(super) fn monitor_time(&self, mi: usize) -> Time {
        Time(self.replicas.as_ref().map_or(0, |it| it.all[mi].clock.local(self.now)))
    }

    pub(super) fn start_monitor(&mut self, mi: usize) {
        let Some(replicas) = &mut self.replicas else { return };
        let replica = &mut replicas.all[mi];
        let Some(disk) = replica.disk.take() else { return };
        replica.life += 1;
        let (life, base) = (replica.life, disk.base.clone());
        replica.process = Some(Process {
            raft: Raft::new(disk),
            map: base.map.clone(),
            applied: base.index,
            applying: false,
            checked: base.index,
            reigning: None,
            beginning: None,
            waiting: Vec::new(),
            pending: BTreeMap::new(),
            deadline: 0,
        });
        let patience = self.patience();
        if let Some(process) = self.process(mi) {
            process.deadline = patience;
        }
        if self.trace.wanted() {
            self.say(None, format!("monitor {mi} starts (life {life})"));
        }
        self.push_monitor(self.now, MonitorEvent::Tick { mi, life });
    }

    pub(super) fn crash_monitor(&mut self, mi: usize) {
        let Some(replicas) = &mut self.replicas else { return };
        let replica = &mut replicas.all[mi];
        let Some(process) = replica.process.take() else { return };
        replica.disk = Some(process.raft.disk);
        replica.paused = false;
        replica.deferred.clear();
        self.coverage.count(Cover::MonitorCrashes);
        if self.trace.wanted() {
            self.say(None, format!("monitor {mi} crashes"));
        }
    }

    /// Until when somebody waits for a leader.
    fn patience(&mut self) -> u64 {
        let Some(plan) = self.replicas.as_ref().map(|it| it.plan.clone()) else { return 0 };
        let span = self.rng.between(plan.election.0, plan.election.1);
        self.now + if self.faulty { span } else { span.max(CALM_BEAT * self.rng.between(4, 12)) }
    }

    /// Something happens to a monitor.
    pub(super) fn monitor_event(&mut self, event: MonitorEvent) {
        let Some(replicas) = &mut self.replicas else { return };
        let mi = match &event {
            MonitorEvent::Says { to, .. } => monitor_of(*to),
            MonitorEvent::Tick { mi, .. }
            | MonitorEvent::Apply { mi, .. }
            | MonitorEvent::Write { mi, .. }
            | MonitorEvent::Request { mi, .. }
            | MonitorEvent::Word { mi, .. } => *mi,
            MonitorEvent::Starts { mi } => return self.start_monitor(*mi),
            MonitorEvent::Resumes { mi, life } => return self.monitor_resumes(*mi, *life),
            MonitorEvent::Administrator => {
                self.push_monitor(self.now + ADMINISTRATOR, MonitorEvent::Administrator);
                return self.administrator();
            }
        };
        let replica = &mut replicas.all[mi];
        if replica.paused {
            return replica.deferred.push_back(event);
        }
        let Some(process) = &mut replica.process else { return };
        let lives = |life: u32| replica.life == life;
        match event {
            MonitorEvent::Says { from, to, msg } if to == replica.dir => {
                let mut out = std::mem::take(&mut replicas.out);
                if matches!(msg, Msg::Snapshot { .. }) {
                    self.coverage.count(Cover::Snapshots);
                }
                let last = process.raft.disk.last();
                process.raft.handle(from, msg, &mut out);
                let lost = last.saturating_sub(process.raft.disk.last());
                self.coverage.add(Cover::EntriesLost, lost);
                self.send_all(mi, out);
                self.look(mi);
            }
            MonitorEvent::Tick { life, .. } if lives(life) => self.monitor_tick(mi, life),
            MonitorEvent::Apply { life, .. } if lives(life) => {
                process.applying = false;
                self.apply_some(mi);
                self.look(mi);
            }
            MonitorEvent::Write { life, proposal, waits, .. } if lives(life) => {
                self.write(mi, proposal, waits);
                self.look(mi);
            }
            MonitorEvent::Word { ni, callers, .. } => {
                let now = Time(replica.clock.local(self.now));
                if let Some(reigning) = &mut process.reigning {
                    reigning.reign.node_hears(&process.map, NodeId(ni as u32), &callers, now);
                    let reign = reigning.reign.id();
                    self.was_told((mi, reign), ni, &callers);
                }
            }
            MonitorEvent::Request { request, .. } => {
                self.requested(mi, request);
                self.look(mi);
            }
            _ => {}
        }
    }

    fn monitor_resumes(&mut self, mi: usize, life: u32) {
        let Some(replicas) = &mut self.replicas else { return };
        let replica = &mut replicas.all[mi];
        if replica.life != life || !replica.paused {
            return;
        }
        replica.paused = false;
        for event in std::mem::take(&mut replica.deferred) {
            self.monitor_event(event);
        }
    }

    /// Sends what a Raft has said, when it is durable; and keeps the buffer.
    fn send_all(&mut self, mi: usize, mut out: Out) {
        let Some((plan, from)) = self.replicas.as_ref().map(|it| (it.plan.clone(), it.all[mi].dir)) else {
            return;
        };
        for (to, msg) in out.drain(..) {
            let (a, b) = (monitor_end(mi), monitor_end(monitor_of(to)));
            let shut = self.net.shut[a][b] > self.now;
            let lost = (shut && self.rng.below(4) > 0) || self.rng.percent(plan.lost_percent);
            if self.faulty && lost {
                continue;
            }
            let flush = self.rng.between(plan.flush.0, plan.flush.1);
            let at = self.arrival(a, b) + flush;
            self.push_monitor(at, MonitorEvent::Says { from, to, msg });
        }
        if let Some(replicas) = &mut self.replicas {
            replicas.out = out;
        }
    }

    /// What a monitor does when it looks at the time.
    fn monitor_tick(&mut self, mi: usize, life: u32) {
        let Some(replicas) = &mut self.replicas else { return };
        let beat = if self.faulty { replicas.plan.beat } else { replicas.plan.beat.max(CALM_BEAT) };
        // No two of them look at the same moment again and again.
        let next = self.now + beat - self.rng.below(beat / 4);
        self.push_monitor(next, MonitorEvent::Tick { mi, life });
        let now = self.now;
        let Some(process) = self.process(mi) else { return };
        let leads = process.raft.leads();
        // Only here does it notice: what it decides until then, it decides in a reign that is over.
        if process.reigning.as_ref().is_some_and(|it| Some(it.reign.id()) != leads) {
            process.reigning = None;
        }
        let heard = std::mem::take(&mut process.raft.heard);
        if leads.is_some() {
            process.raft.resend();
            self.confirm(mi, None);
        } else if heard {
            let patience = self.patience();
            if let Some(process) = self.process(mi) {
                process.deadline = patience;
            }
        } else if process.deadline <= now {
            self.monitor_elects(mi);
        }
        self.look(mi);
    }

    /// A monitor wants to lead.
    pub(super) fn monitor_elects(&mut self, mi: usize) {
        let patience = self.patience();
        let Some(replicas) = &mut self.replicas else { return };
        let mut out = std::mem::take(&mut replicas.out);
        if let Some(process) = &mut replicas.all[mi].process {
            process.deadline = patience;
            process.raft.elect(&mut out);
        }
        self.send_all(mi, out);
        self.look(mi);
    }

    /// Asks a majority whether this one leads: for a request, or for a reign that is to begin.
    pub(super) fn confirm(&mut self, mi: usize, request: Option<Request>) {
        let early = self.plan.bug == Some(Bug::ReignBeforeOwnEntry);
        let Some(replicas) = &mut self.replicas else { return };
        let mut out = std::mem::take(&mut replicas.out);
        if let Some(process) = &mut replicas.all[mi].process
            && let Some(leads) = process.raft.leads()
            && let Some(round) = process.raft.beat(&mut out)
        {
            let (round, index) = if early { (0, 0) } else { (round, process.raft.read_index()) };
            match request {
                Some(request) => process.waiting.push((round, index, request)),
                None if process.reigning.is_none() && process.beginning.is_none_or(|it| it.0 != leads) => {
                    process.beginning = Some((leads, round, index));
                }
                None => {}
            }
        }
        self.send_all(mi, out);
    }

    /// Writes an entry, if this one leads. Its number and index.
    pub(super) fn write_entry(&mut self, mi: usize, proposal: Rc<Proposal>) -> Option<(u64, u64)> {
        let replicas = self.replicas.as_mut()?;
        replicas.commands += 1;
        let number = replicas.commands;
        let mut out = std::mem::take(&mut replicas.out);
        let process = replicas.all[mi].process.as_mut()?;
        if process.raft.leads().is_some_and(|leads| leads != proposal.reign) {
            self.coverage.count(Cover::Superseded);
        }
        let index = process.raft.write(Payload::Command(number, proposal), &mut out);
        self.send_all(mi, out);
        Some((number, index?))
    }

    /// The administrator changes the members.
    pub(super) fn write_members(&mut self, mi: usize, members: Members) {
        let Some(replicas) = &mut self.replicas else { return };
        if self.trace.wanted() {
            let text = format!("the administrator has monitor {mi} change the members: {members:?}");
            self.trace.line(self.steps, self.now, None, text);
        }
        let mut out = std::mem::take(&mut replicas.out);
        if let Some(process) = &mut replicas.all[mi].process {
            process.raft.write(Payload::Members(Rc::new(members)), &mut out);
        }
        self.send_all(mi, out);
        self.look(mi);
    }

    /// Something has changed at a monitor: what is committed, what a majority has said.
    pub(super) fn look(&mut self, mi: usize) {
        self.committed_at(mi);
        if self.violation.is_none() {
            self.reign_begins(mi);
            self.serve_confirmed(mi);
        }
    }

    /// True if what waits for a round and an index need not wait any more.
    fn is_sure(&self, process: &Process, round: u64, index: u64) -> bool {
        let early = self.plan.bug == Some(Bug::ReignBeforeOwnEntry);
        let sure = process.raft.confirmed().or(early.then_some(0));
        sure.is_some_and(|sure| sure >= round) && process.applied >= index
    }

    fn reign_begins(&mut self, mi: usize) {
        let Some(replicas) = &self.replicas else { return };
        let Some(process) = &replicas.all[mi].process else { return };
        let Some((id, round, index)) = process.beginning else { return };
        if process.raft.leads() == Some(id) && !self.is_sure(process, round, index) {
            return;
        }
        let begins = process.raft.leads() == Some(id);
        let others = replicas.all.iter().filter_map(|it| it.process.as_ref()?.reigning.as_ref());
        let other = others.count() > usize::from(process.reigning.is_some());
        let (config, now) = (lease_config(&self.plan), self.monitor_time(mi));
        let waits = self.moves.as_ref().is_some_and(|moves| moves.split_wanted);
        let crush = self.faulty && !waits && self.plan.moves.as_ref().is_some_and(|moves| moves.crush);
        let Some(process) = self.process(mi) else { return };
        process.beginning = None;
        if !begins {
            return;
        }
        let reign = Reign::begin(Confirmed::by_majority(id), config, &process.map, now);
        process.reigning = Some(Reigning { reign, mover: new_mover(crush), moving: 0 });
        self.coverage.count(Cover::Reigns);
        if other {
            self.coverage.count(Cover::TwoLeaders);
        }
        if self.trace.wanted() {
            self.say(None, format!("monitor {mi} begins to reign: {id:?}"));
        }
    }

    fn serve_confirmed(&mut self, mi: usize) {
        let Some(replicas) = &mut self.replicas else { return };
        let Some(process) = &mut replicas.all[mi].process else { return };
        if process.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut process.waiting);
        // Who does not lead any more has no answer.
        let Some(reign) = process.raft.leads() else { return };
        let Some(process) = self.replicas.as_ref().and_then(|it| it.all[mi].process.as_ref()) else { return };
        let ready: Vec<Request> =
            waiting.extract_if(.., |it| self.is_sure(process, it.0, it.1)).map(|it| it.2).collect();
        if let Some(process) = self.process(mi) {
            process.waiting = waiting;
        }
        for request in ready {
            self.serve(mi, request, Confirmed::by_majority(reign));
        }
    }

    /// Looks at what a monitor now holds for committed.
    fn committed_at(&mut self, mi: usize) {
        loop {
            let Some(replicas) = &mut self.replicas else { return };
            let Some(process) = &mut replicas.all[mi].process else { return };
            let base = process.raft.disk.base.clone();
            if process.applied < base.index {
                // It was sent what the beginning of the log has made; what waited there is not heard of again.
                (process.map, process.applied) = (base.map.clone(), base.index);
                process.pending = process.pending.split_off(&(base.index + 1));
                let checked = replicas.agreed.applied(base.index, &base.map);
                process.checked = process.checked.max(base.index);
                self.note(checked);
                continue;
            }
            if process.checked >= process.raft.commit() {
                break;
            }
            process.checked += 1;
            let index = process.checked;
            let Some(entry) = process.raft.disk.entry(index).cloned() else { return };
            match replicas.agreed.committed(index, &entry) {
                Ok(Some(committed)) => self.committed(committed),
                Ok(None) => {}
                Err(violation) => return self.note(Err(violation)),
            }
            if self.violation.is_some() {
                return;
            }
        }
        let Some(lag) = self.replicas.as_ref().map(|it| it.plan.apply) else { return };
        let Some(process) = self.process(mi) else { return };
        if process.applying || process.applied >= process.raft.commit() {
            return;
        }
        process.applying = true;
        let life = self.replicas.as_ref().map_or(0, |it| it.all[mi].life);
        let at = self.now + self.rng.between(lag.0, lag.1);
        self.push_monitor(at, MonitorEvent::Apply { mi, life });
    }

    /// A monitor applies some of what is committed.
    fn apply_some(&mut self, mi: usize) {
        for _ in 0..1 + self.rng.below(8) {
            let Some(replicas) = &mut self.replicas else { return };
            let Some(process) = &mut replicas.all[mi].process else { return };
            let index = process.applied + 1;
            if index > process.raft.commit() {
                break;
            }
            let Some(Entry { written_in, payload }) = process.raft.disk.entry(index).cloned() else { return };
            process.applied = index;
            let (number, done) = match payload {
                Payload::Command(number, proposal) => {
                    let outcome = process.map.apply_written(&proposal, written_in);
                    (Some(number), Some((proposal, outcome)))
                }
                Payload::Blank | Payload::Members(_) => (None, None),
            };
            let waits = process.pending.remove(&index).filter(|it| Some(it.0) == number);
            if index >= process.raft.disk.base.index + replicas.plan.snapshot_every {
                let map = process.map.clone();
                process.raft.compact(index, &map);
            }
            let checked = replicas.agreed.applied(index, &process.map);
            self.note(checked);
            if let (Some((_, waits)), Some((proposal, outcome))) = (waits, done) {
                self.answer(mi, waits, &proposal, &outcome);
            }
        }
    }

    /// All movers of those who believe to lead take a step.
    pub(super) fn movers_step(&mut self) {
        for mi in 0..self.monitors() {
            let Some(replicas) = &mut self.replicas else { return };
            let replica = &mut replicas.all[mi];
            let Some(process) = replica.process.as_mut().filter(|_| !replica.paused) else { continue };
            let Some(reigning) = process.reigning.as_mut().filter(|it| it.moving == 0) else { continue };
            let mut actions = Vec::new();
            reigning.mover.step(&process.map, &mut actions);
            let resume = Command::PauseMoves { paused: false };
            if !self.faulty && process.map.moves.paused {
                actions.push(trefoil_core::map::mover::Action::Propose(resume));
            }
            for action in actions {
                self.mover_acts(mi, action);
            }
        }
    }
}
