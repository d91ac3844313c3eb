//! Front ends and healers: the leader's machine, its clients, and what a daemon's shell does.

use super::{Clock, Event, World};
use crate::check::i1_acknowledged::Acknowledged;
use crate::check::{self, Moment, NEVER, PerBlock, slot};
use crate::coverage::Cover;
use crate::payload::{self, Blocks, Value};
use crate::plan::{self, NODES_MAX};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use trefoil_core::client::{ClientOp, OpDone, OpError, OpId, OpKind, OpOutput};
use trefoil_core::leader::{Input, Leader, Options, Output, VolumeSpec};
use trefoil_core::map::Ack;
use trefoil_core::message::ToNode;
use trefoil_core::node::ConnId;
use trefoil_core::placement::PgConfig;
use trefoil_core::{BlockRange, Generation, GroupId, NodeId, ObjectIndex, Time, VolumeId};

/// What a client waits for.
#[derive(Clone, Debug)]
pub struct Pending {
    client: u32,
    index: ObjectIndex,
    first: usize,
    count: usize,
    /// What it does: 0 read, 1 write, 2 zero, 3 status; as in [`plan::Plan::ops`].
    kind: usize,
    value: Value,
    began: Moment,
    /// When it was issued; `None` if its leader was not attached then.
    issued: Option<u64>,
    floor: PerBlock,
}

/// What the last front end of a run does: read everything, write everything, read it again.
#[derive(Debug, Default)]
pub struct Script {
    todo: VecDeque<(usize, ObjectIndex)>,
}

/// A process that leads a volume, or did.
pub struct LeaderHost {
    /// The volume.
    pub volume: VolumeId,
    /// Its generation.
    pub generation: u64,
    /// It has no client.
    pub healer: bool,
    /// The host that it runs on.
    pub host: usize,
    /// The machine; `None` when the process is gone.
    pub machine: Option<Box<Leader<Blocks>>>,
    /// Its clock.
    pub clock: Clock,
    /// Its connection to each node; 0 for none.
    pub conns: [ConnId; NODES_MAX],
    /// It stands still; what happens to it waits here.
    pub paused: bool,
    /// See [`LeaderHost::paused`].
    pub deferred: VecDeque<Event>,
    /// When its next tick is due.
    pub tick_at: u64,
    /// Its clients' operations.
    pub ops: FxHashMap<u64, Pending>,
    /// The number of its process.
    pub boot: u64,
    /// It renews its lease.
    pub renews: bool,
    /// It has been asked to release.
    pub releasing: bool,
    /// It has said that it is attached.
    pub attached: bool,
    /// Its clients issue nothing more.
    pub quiet: bool,
    /// It is the last front end of a run.
    pub script: Option<Script>,
    /// When it answers writes, as it was told last.
    pub ack: Ack,
    /// Since when, or since when it has had a lease without a break, by its clock.
    pub ack_since: u64,
    /// Its lease.
    pub lease_until: u64,
}

impl Pending {
    /// The object.
    pub fn index(&self) -> ObjectIndex {
        self.index
    }
}

impl World {
    /// A process starts to lead a volume.
    pub(super) fn start_leader(
        &mut self,
        (volume, generation): (VolumeId, u64),
        healer: bool,
        host: usize,
        asked: u64,
        pgs: &[PgConfig],
    ) {
        let clock = self.host_clocks[host];
        let spec = VolumeSpec {
            id: volume,
            generation: Generation(generation),
            object_blocks: self.plan.object_blocks(),
            objects: self.plan.objects as u32,
            pool: plan::POOL,
            pgs: pgs.iter().collect(),
            pg_of: self.plan.pg_of,
            snap: 0,
        };
        let options = Options {
            healer,
            io_timeout: self.plan.io_timeout.filter(|_| self.faulty && !healer),
            ack: self.ack,
            hedge_after: self.plan.hedge_after,
            lag_max: self.plan.lag_max,
            hold: self.plan.hold,
            node_timeout: self.plan.node_timeout,
            background_opens: 1 + (generation % 4) as usize,
            call: self.plan.calls.as_ref().map(|calls| calls.call),
        };
        let machine = Leader::new(Time(clock.local(self.now)), spec, options);
        let li = self.leaders.len();
        self.coverage.count(if healer { Cover::Healers } else { Cover::Leaders });
        if self.leaders.iter().any(|l| l.volume == volume && l.machine.is_some() && !l.healer) {
            self.coverage.count(Cover::Takeovers);
        }
        if self.trace.wanted() {
            let who = if healer { "healer" } else { "front end" };
            self.say(
                Some((volume, None)),
                format!("leader {li} starts: {who} of {volume} on host {host}, generation {generation}"),
            );
        }
        let script = (!self.faulty && !healer).then(|| {
            let objects = 0..self.plan.objects as u32;
            let each = |kind| objects.clone().map(move |index| (kind, index));
            Script { todo: each(0).chain(each(1)).chain(each(0)).collect() }
        });
        let clients = if healer { 0 } else { self.plan.clients };
        self.leaders.push(LeaderHost {
            volume,
            generation,
            healer,
            host,
            machine: Some(Box::new(machine)),
            clock,
            conns: [0; NODES_MAX],
            paused: false,
            deferred: VecDeque::new(),
            tick_at: 0,
            ops: FxHashMap::default(),
            boot: 0,
            renews: !healer,
            releasing: false,
            attached: false,
            quiet: false,
            script,
            ack: self.ack,
            ack_since: 0,
            lease_until: 0,
        });
        if !healer {
            let until = Time(clock.local(asked) + self.plan.lease);
            self.leader_input(li, Input::Lease { until });
            self.queue.push(self.now + self.plan.lease / 3, Event::Renew { li });
        }
        for ni in 0..self.plan.nodes {
            let at = self.now + self.delay();
            self.queue.push(at, Event::Connect { li, ni });
        }
        for client in 0..clients as u32 {
            let at = self.now + self.rng.between(self.plan.think.0, self.plan.think.1);
            self.queue.push(at, Event::Client { li, client });
        }
        self.bound_leaders(volume);
    }

    /// At most three leaders of a volume at once; the oldest goes.
    fn bound_leaders(&mut self, volume: VolumeId) {
        let alive: Vec<usize> = (0..self.leaders.len())
            .filter(|li| self.leaders[*li].volume == volume && self.leaders[*li].machine.is_some())
            .collect();
        if alive.len() > 3 {
            self.kill_leader(alive[0]);
        }
    }

    /// A leader's process is gone. What it sent may still arrive.
    pub(super) fn kill_leader(&mut self, li: usize) {
        self.count_leader(li);
        let host = &mut self.leaders[li];
        if host.machine.take().is_none() {
            return;
        }
        self.in_sync.gone(li);
        let host = &mut self.leaders[li];
        host.paused = false;
        host.deferred.clear();
        let left = host.ops.values().filter(|op| op.kind == 1 || op.kind == 2).count();
        host.ops.clear();
        let conns = std::mem::take(&mut host.conns);
        self.coverage.add(Cover::Indeterminate, left as u64);
        if self.trace.wanted() {
            let volume = self.leaders[li].volume;
            self.say(Some((volume, None)), format!("leader {li} is gone; {left} writes unanswered"));
        }
        for id in conns.into_iter().filter(|id| *id != 0) {
            self.leader_end_gone(id);
        }
    }

    /// What a leader has counted itself.
    pub(super) fn count_leader(&mut self, li: usize) {
        let Some(machine) = &self.leaders[li].machine else { return };
        let counters = machine.counters();
        for (what, times) in [
            (Cover::Hedged, counters.hedged),
            (Cover::HedgeWins, counters.hedge_wins),
            (Cover::HedgesDenied, counters.hedges_denied),
            (Cover::LatencyProbes, counters.latency_probes),
            (Cover::AnswersHeld, counters.answers_held),
            (Cover::AnswersLate, counters.answers_late),
            (Cover::DistrustLifted, counters.distrust_lifted),
            (Cover::Calls, counters.calls),
        ] {
            self.coverage.add(what, times);
        }
    }

    pub(super) fn leader_connected(&mut self, li: usize, ni: usize) {
        self.in_sync.lost(li, NodeId(ni as u32));
        self.leader_input(li, Input::NodeUp { node: NodeId(ni as u32) });
    }

    pub(super) fn leader_input(&mut self, li: usize, input: Input<Blocks>) {
        let host = &mut self.leaders[li];
        let Some(machine) = host.machine.as_mut() else { return };
        let now = Time(host.clock.local(self.now));
        if let Input::Lease { until } = &input {
            if now.0 >= host.lease_until {
                host.ack_since = now.0;
            }
            host.lease_until = host.lease_until.max(until.0);
        }
        let mut out = std::mem::take(&mut self.leader_out);
        machine.handle(now, input, &mut out);
        for output in out.drain(..) {
            self.leader_output(li, output);
        }
        self.leader_out = out;
        self.arm(li);
        if self.silent.is_at(li) {
            self.may_still_find(li);
        }
    }

    /// Sees to it that the machine's next tick comes.
    fn arm(&mut self, li: usize) {
        let host = &mut self.leaders[li];
        let Some(machine) = host.machine.as_ref() else { return };
        if let Some(tick) = machine.next_tick() {
            let at = host.clock.when(tick.0).max(self.now + 1);
            if host.tick_at <= self.now || at < host.tick_at {
                host.tick_at = at;
                self.queue.push(at, Event::LeaderTick { li });
            }
        }
    }

    fn leader_output(&mut self, li: usize, output: Output<Blocks>) {
        match output {
            Output::Send { to, msg } => {
                self.leader_says(&msg);
                if self.trace.wanted() {
                    let about = super::words::about_to_node(&msg);
                    self.say(about, format!("leader {li} → {:?}: {msg:?}", to.as_slice()));
                }
                for node in to.as_slice() {
                    self.leader_tells(li, *node, &msg);
                    self.send_to_node(li, node.0 as usize, msg.clone());
                }
            }
            Output::Done(done) => self.op_done(li, done),
            Output::Attached => {
                self.coverage.count(Cover::Attached);
                let now = self.moment();
                let host = &mut self.leaders[li];
                host.attached = true;
                let (volume, generation) = (host.volume, host.generation);
                self.writer.attached(volume.0, generation, now);
                if self.trace.wanted() {
                    self.say(Some((volume, None)), format!("leader {li} is attached"));
                }
            }
            Output::Deposed { by } => {
                self.coverage.count(Cover::Deposed);
                if self.trace.wanted() {
                    let volume = self.leaders[li].volume;
                    self.say(Some((volume, None)), format!("leader {li} is deposed by {by}"));
                }
                let (volume, generation) = (self.leaders[li].volume, self.leaders[li].generation);
                let granted = self.monitor.volume(volume).generation;
                if by.0 <= generation || by.0 > granted {
                    let what = format!(
                        "leader {li} of generation {generation} says it is deposed by {by}; granted is {granted}"
                    );
                    self.note(Err(check::Violation::plain("P2", what)));
                }
                self.queue.push(self.now, Event::LeaderEnds { li });
            }
            Output::Released { clean } => {
                self.coverage.count(Cover::Released);
                if clean {
                    self.coverage.count(Cover::ReleasedClean);
                }
                let at = self.arrival(super::net::host_end(self.leaders[li].host), super::net::MONITOR);
                let (volume, generation) = (self.leaders[li].volume, self.leaders[li].generation);
                self.leases.released(volume, li);
                if self.trace.wanted() {
                    self.say(Some((volume, None)), format!("leader {li} has released, clean: {clean}"));
                }
                if self.replicas.is_some() {
                    self.release_to_monitors(li, clean);
                } else {
                    self.queue.push(at, Event::Release { volume, generation, clean });
                }
                self.queue.push(self.now, Event::LeaderEnds { li });
            }
            Output::AllWhole => {
                self.coverage.count(Cover::AllWhole);
                self.all_whole(li);
            }
            Output::Reset { node, why } => {
                self.coverage.count(Cover::Resets);
                if why.contains("late") || why.contains("behind") {
                    self.coverage.count(Cover::CutLoose);
                }
                let id = self.leaders[li].conns[node.0 as usize];
                if self.trace.wanted() {
                    self.say(None, format!("leader {li} resets its connection to {node}: {why}"));
                }
                self.in_sync.lost(li, node);
                if id != 0 {
                    self.leaders[li].conns[node.0 as usize] = 0;
                    self.leader_end_gone(id);
                    let at = self.now + self.rng.magnitude(200, 20_000);
                    self.queue.push(at, Event::Connect { li, ni: node.0 as usize });
                }
            }
            Output::LostData { node } => {
                self.coverage.count(Cover::LostData);
                if self.trace.wanted() {
                    self.say(None, format!("leader {li} says that {node} has lost data"));
                }
                if self.plan.bug.is_none() && !self.lost_state[node.0 as usize] {
                    let what = format!("leader {li} says that {node} has lost data, which it has not");
                    self.note(Err(check::Violation::plain("5.9", what)));
                }
                self.loss_found(li, node);
            }
            Output::MapStale if self.moves.is_some() => self.tell_leader_map(li),
            Output::MapStale => {
                for (pg, config) in self.plan.pgs.clone().into_iter().enumerate() {
                    self.queue.push(self.now + 1, Event::Config { li, pg: pg as u32, config });
                }
            }
            Output::NeedGeneration => self.queue.push(self.now, Event::LeaderEnds { li }),
        }
    }

    fn leader_says(&mut self, msg: &ToNode<Blocks>) {
        if let (ToNode::Open { group, ballot, epoch }, Some(moves)) = (msg, &mut self.moves) {
            moves.ballot_opened(*group, *ballot, *epoch);
        }
        match msg {
            ToNode::Open { ballot, .. } if ballot.round() > 0 => self.coverage.count(Cover::Rounds),
            ToNode::Repair { .. } => self.coverage.count(Cover::RepairsOrdered),
            ToNode::Write { object, ballot, seq, op, .. } => {
                let Some(slot) = check::slot_of(*object) else { return };
                let now = self.moment();
                self.linear.opened(slot, *ballot, now);
                let checked = self.content.sent(slot, (*ballot, *seq), op);
                self.note(checked);
            }
            ToNode::Read { object, ballot, .. } => {
                let Some(slot) = check::slot_of(*object) else { return };
                let now = self.moment();
                self.linear.opened(slot, *ballot, now);
            }
            _ => {}
        }
    }

    /// A client of this leader wants something.
    pub(super) fn client(&mut self, li: usize, client: u32) {
        let host = &self.leaders[li];
        if host.machine.is_none() || host.quiet {
            return;
        }
        if let Some((_, index)) = host.script.as_ref().and_then(|script| script.todo.front())
            && self.is_lied_about(host.volume, *index)
        {
            return self.client_later(li, client);
        }
        let next = match &mut self.leaders[li].script {
            Some(script) => script.todo.pop_front(),
            None => {
                let reader = (client as usize) < self.plan.readers;
                let kind = if reader { 0 } else { self.rng.weighted(&self.plan.ops).unwrap_or(1) };
                Some((kind, self.rng.index(self.plan.objects) as u32))
            }
        };
        let scripted = self.leaders[li].script.is_some();
        let Some((kind, index)) = next else { return };
        if self.is_lied_about(self.leaders[li].volume, index) {
            return self.client_later(li, client);
        }
        let all = scripted || self.rng.one_in(self.plan.large_one_in);
        let (first, count) = if all {
            (0, self.plan.blocks)
        } else {
            let count =
                if self.rng.one_in(3) { self.rng.between(1, self.plan.blocks as u64) as usize } else { 1 };
            (self.rng.index(self.plan.blocks - count + 1), count)
        };
        self.issue(li, client, kind, index, first, count);
    }

    /// It wants something else, or the same, some other time.
    fn client_later(&mut self, li: usize, client: u32) {
        let at = self.now + 1_000 + self.plan.think.1;
        self.queue.push(at, Event::Client { li, client });
    }

    fn issue(&mut self, li: usize, client: u32, kind: usize, index: ObjectIndex, first: usize, count: usize) {
        let volume = self.leaders[li].volume;
        let generation = self.leaders[li].generation;
        let Some(slot) = slot(volume, index) else { return };
        let began = self.moment();
        let blocks = BlockRange::new(self.plan.first_block + first as u32, count as u32);
        let mut value = 0;
        let op = match kind {
            0 => OpKind::Read { blocks },
            1 => {
                value = self.next_value;
                self.next_value += count as u64;
                let values: Vec<Value> = (value..self.next_value).collect();
                let checksums = values.iter().map(|v| payload::checksum(*v)).collect();
                OpKind::Write { blocks, checksums, data: Blocks::new(&values) }
            }
            2 => OpKind::Zero { blocks },
            _ => OpKind::Status { blocks },
        };
        if op.is_write() {
            self.linear.begin(slot, first..first + count, value, generation, began);
        }
        let id = self.next_op;
        self.next_op += 1;
        if self.trace.wanted() {
            self.say(
                Some((volume, Some(index))),
                format!("client of leader {li}: op {id} {op:?} on object {index} (moment {began})"),
            );
        }
        let floor = self.acknowledged.floor(slot);
        let issued = self.leaders[li].attached.then_some(self.now);
        self.leaders[li]
            .ops
            .insert(id, Pending { client, index, first, count, kind, value, began, issued, floor });
        self.leader_input(li, Input::Op(ClientOp { id: OpId(id), object: index, kind: op }));
    }

    fn op_done(&mut self, li: usize, done: OpDone<Blocks>) {
        let Some(op) = self.leaders[li].ops.remove(&done.id.0) else {
            let what = format!("leader {li} ends op {} a second time, or unasked", done.id.0);
            return self.note(Err(check::Violation::plain("client", what)));
        };
        let (volume, generation) = (self.leaders[li].volume, self.leaders[li].generation);
        let Some(slot) = slot(volume, op.index) else { return };
        let now = self.moment();
        if self.trace.wanted() {
            let text = format!("leader {li}: op {} ends: {:?} (moment {now})", done.id.0, done.result);
            self.say(Some((volume, Some(op.index))), text);
        }
        self.in_time(&op, volume);
        let is_write = op.kind == 1 || op.kind == 2;
        match done.result {
            Ok(OpOutput::Written) if is_write => self.written(li, slot, &op, now),
            Ok(OpOutput::Read { checksums, data }) if !is_write => {
                self.was_read(slot, generation, &op, &checksums, &data, now);
            }
            Ok(_) => {
                let what = format!("leader {li} answers op {} with the wrong kind of result", done.id.0);
                self.note(Err(check::Violation::plain("client", what)));
            }
            Err(error) => {
                self.coverage.count(Cover::OpErrors);
                if is_write {
                    self.linear.give_up(slot, op.first..op.first + op.count, op.value, op.began);
                    self.coverage.count(Cover::Indeterminate);
                }
                let newest = self.monitor.volume(volume).generation == generation;
                let unexpected = match error {
                    OpError::Refused => true,
                    OpError::Bad => is_write || self.rot_so_far + self.lies.told == 0,
                    OpError::Deposed => newest,
                    OpError::TimedOut => self.plan.io_timeout.is_none() || self.leaders[li].script.is_some(),
                    OpError::NoSpace => op.kind != 1 || self.rooms_shut == 0, // not of zeros either
                    OpError::Closing => !self.leaders[li].releasing,
                };
                if unexpected {
                    let what = format!("op {} of leader {li} fails: {error}", done.id.0);
                    self.note(Err(check::Violation::of("P2", (volume, op.index), what)));
                }
                if error == OpError::Closing {
                    return;
                }
            }
        }
        let at = self.now + self.rng.between(self.plan.think.0, self.plan.think.1);
        self.queue.push(at, Event::Client { li, client: op.client });
        self.script_done(li);
    }

    /// P2, in runs where only one node is in trouble at a time.
    fn in_time(&mut self, op: &Pending, volume: VolumeId) {
        let (Some(limit), Some(issued), true) = (self.plan.stall_limit, op.issued, self.faulty) else {
            return;
        };
        let took = self.now - issued;
        let held = self.plan.all_in_sync && matches!(op.kind, 1 | 2);
        if held && took <= limit + self.plan.held_max() {
            return;
        }
        self.longest = self.longest.max(took);
        if took > limit {
            let what = format!("an operation took {took} µs with one node in trouble; {limit} are allowed");
            self.note(Err(check::Violation::of("P2", (volume, op.index), what)));
        }
    }

    /// The first phase ends: what is still waited for must not have waited for too long.
    pub(super) fn all_in_time(&mut self) {
        for li in 0..self.leaders.len() {
            let volume = self.leaders[li].volume;
            let mut ops: Vec<Pending> = self.leaders[li].ops.values().cloned().collect();
            ops.sort_unstable_by_key(|op| op.began);
            for op in ops {
                self.in_time(&op, volume);
            }
        }
    }

    fn written(&mut self, li: usize, slot: usize, op: &Pending, now: Moment) {
        let generation = self.leaders[li].generation;
        self.coverage.count(Cover::Writes);
        if self.writer.is_late(slot, generation) {
            self.coverage.count(Cover::LateAcks);
        }
        let (volume, index) = check::object_of(slot);
        let blocks = op.first..op.first + op.count;
        let checked = self.linear.acknowledge(slot, blocks.clone(), op.value, op.began, now);
        self.note(checked);
        for block in blocks {
            self.acknowledged.acknowledged(slot, block, op.began);
        }
        if let Some(issue) = self.content.issue(op.value).filter(|_| op.value != 0) {
            let (pg, newest) = self.plan.pg(volume, index);
            let opened = self.moves.as_ref().and_then(|m| m.config_of(GroupId { volume, pg }, issue.0));
            let config = opened.unwrap_or(newest).clone();
            let checked = self.majority.acknowledged(slot, &config, issue);
            self.note(checked);
            self.all_in_sync(li, slot, &config, issue);
            let checked =
                self.writer.acknowledged(slot, generation, self.content.first_persisted(slot, issue));
            self.note(checked);
        } else if op.value != 0 {
            let what = format!("a write of value {} is acknowledged that was never sent", op.value);
            self.note(Err(check::Violation::of("P1", (volume, index), what)));
        }
        self.check_choice(slot);
    }

    fn was_read(
        &mut self,
        slot: usize,
        generation: u64,
        op: &Pending,
        sums: &[u64],
        data: &Blocks,
        now: Moment,
    ) {
        self.coverage.count(Cover::Reads);
        let object = check::object_of(slot);
        let mut bytes = data.values().iter();
        let matches = sums.len() == op.count
            && if op.kind == 3 {
                data.values().is_empty()
            } else {
                sums.iter()
                    .filter(|s| **s != 0)
                    .all(|s| bytes.next().map(|v| payload::checksum(*v)) == Some(*s))
                    && bytes.next().is_none()
            };
        if !matches {
            let what = format!("a read gives checksums {sums:x?} with bytes {data:?}");
            return self.note(Err(check::Violation::of("I1", object, what)));
        }
        let start = self.linear.start(slot, generation, op.began);
        for (n, sum) in sums.iter().enumerate() {
            let (block, value) = (op.first + n, payload::value(*sum));
            let ended =
                if value == 0 { NEVER } else { self.linear.register(slot, block).acknowledged(value) };
            let checked = Acknowledged::read(slot, block, &op.floor, value, ended);
            self.note(checked);
            let checked = self.linear.read(slot, block, value, start, now);
            self.note(checked);
        }
        self.coverage.add(Cover::Ambiguous, std::mem::take(&mut self.linear.ambiguous));
        self.check_choice(slot);
    }

    pub(super) fn release_leader(&mut self, li: usize) {
        self.leaders[li].releasing = true;
        if self.trace.wanted() {
            let volume = self.leaders[li].volume;
            self.say(Some((volume, None)), format!("leader {li} is asked to release"));
        }
        self.leader_input(li, Input::Release);
    }

    /// When the last front end's work is done, it releases.
    fn script_done(&mut self, li: usize) {
        let host = &self.leaders[li];
        if host.script.as_ref().is_some_and(|s| s.todo.is_empty()) && host.ops.is_empty() && !host.releasing {
            self.leaders[li].releasing = true;
            self.queue.push(self.now + 1, Event::ReleaseLeader { li });
        }
    }

    /// A clock of the kind that this run has.
    pub(super) fn new_clock(rng: &mut crate::rng::Rng, plan: &plan::Plan) -> Clock {
        let drift = plan.drift_ppm as i64;
        Clock { offset: rng.below(1_000_000_000), ppm: rng.between(0, 2 * plan.drift_ppm) as i64 - drift }
    }
}
