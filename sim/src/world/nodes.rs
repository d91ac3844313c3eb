//! Storage nodes: the machine of `trefoil-core`, a simulated store, and what a daemon's shell does.

use super::{Clock, Event, World};
use crate::check::i4_equal_heads::EqualHeads;
use crate::check::p6_budget::Spent;
use crate::check::{self, Checked, slot_of};
use crate::coverage::{Cover, Coverage};
use crate::payload::{self, Blocks};
use crate::plan::{Plan, Span};
use crate::store::{self, Store};
use std::collections::{BTreeMap, VecDeque};
use trefoil_core::message::{FromNode, PeerMsg, ToNode, WriteOp};
use trefoil_core::node::{ConnId, Input, Node, NodeConfig, Output};
use trefoil_core::record::{Durable, Record};
use trefoil_core::{Generation, NodeId, ObjectId, PgId, Time};

/// Room for as many blocks as anyone could write.
pub const ROOMY: u64 = 1 << 40;

/// A node's state is held against its records once in so many steps.
const STATE_EVERY: u64 = 61;

/// A storage node, up or down.
pub struct NodeHost {
    /// The machine; `None` while the node is down.
    pub machine: Option<Node<Blocks>>,
    /// What is on its device.
    pub store: Store,
    /// Counts its starts.
    pub life: u32,
    /// Its clock.
    pub clock: Clock,
    /// It stands still; what happens to it waits here.
    pub paused: bool,
    /// See [`NodeHost::paused`].
    pub deferred: VecDeque<Event>,
    /// Blocks that its store can hold, and with how many left it says that it is nearly full.
    pub capacity: u64,
    /// See [`NodeHost::capacity`].
    pub nearly: u64,
    /// Messages of front ends that wait until the store knows how many blocks a write would add.
    pub waiting: BTreeMap<ConnId, VecDeque<ToNode<Blocks>>>,
    /// Its device is so many times slower than planned.
    pub slow: u64,
    /// Messages to it and from it take so many times as long as planned.
    pub slow_net: u64,
    /// The last thing that was begun while it was slow ends then.
    pub slow_until: u64,
    /// What its repairs have taken, where the plan has a budget.
    pub spent: Option<Spent>,
}

impl NodeHost {
    pub(super) fn new(clock: Clock, skip_flush: bool, first_pgs: u32) -> NodeHost {
        NodeHost {
            machine: None,
            store: Store::new(skip_flush).of_pool(first_pgs),
            life: 0,
            clock,
            paused: false,
            deferred: VecDeque::new(),
            capacity: ROOMY,
            nearly: 0,
            waiting: BTreeMap::new(),
            slow: 1,
            slow_net: 1,
            slow_until: 0,
            spent: None,
        }
    }

    /// Blocks that may be added.
    pub fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.store.now.live)
    }
}

/// What a flush changed: the objects whose votes may be others now.
struct Became {
    touched: u32,
    checked: Checked,
}

impl Default for Became {
    fn default() -> Became {
        Became { touched: 0, checked: Ok(()) }
    }
}

impl Became {
    /// A record has become durable; the store is as it was right then. Every head names one content.
    fn record(
        &mut self,
        plan: &Plan,
        heads: &mut EqualHeads,
        coverage: &mut Coverage,
        ni: usize,
        store: &Store,
        record: &Record<Blocks>,
    ) {
        match record {
            Record::Write { object, .. } | Record::Install { object, .. } => {
                let Some(slot) = slot_of(*object) else { return };
                let group = store.state.groups.get(&object.group);
                let head = group.and_then(|g| g.objects.get(&object.index)).copied().unwrap_or_default();
                let seen = heads.seen(slot, NodeId(ni as u32), head, store.truthful(*object).as_deref());
                if self.checked.is_ok() {
                    self.checked = seen;
                }
                self.touched |= 1 << slot;
            }
            Record::Settle { group, .. } => {
                for index in 0..plan.objects as u32 {
                    if plan.pg(group.volume, index).0 == group.pg
                        && let Some(slot) = check::slot(group.volume, index)
                    {
                        self.touched |= 1 << slot;
                    }
                }
            }
            Record::Leave { pg, .. } => {
                for slot in 0..check::SLOTS {
                    let (volume, index) = check::object_of(slot);
                    if plan.pg(volume, index).0 == *pg {
                        self.touched |= 1 << slot;
                    }
                }
            }
            // Every vote must be what it was.
            Record::Split { .. } => self.touched = u32::MAX,
            Record::Heal { .. } => coverage.count(Cover::Healed),
            _ => {}
        }
    }
}

impl World {
    /// A node starts from what is durable.
    pub(super) fn start_node(&mut self, ni: usize) {
        if self.nodes[ni].machine.is_some() {
            return;
        }
        let node = &mut self.nodes[ni];
        let now = node.clock.local(self.now);
        node.life += 1;
        let durable: Durable = node.store.state.clone();
        let mut machine = Node::new(NodeConfig { id: NodeId(ni as u32) }, durable);
        machine.set_scrub_rate(if self.plan.lies.is_some() { 1 << 20 } else { 0 });
        let budget = self.plan.budget;
        budget.into_iter().for_each(|budget| machine.set_budget(budget));
        node.machine = Some(machine);
        node.spent = budget.map(|budget| Spent::new(budget, now));
        let life = node.life;
        if self.trace.wanted() {
            self.say(None, format!("node.{ni} starts (life {life})"));
        }
        if self.nodes[ni].store.lost && !self.stays_silent(ni) {
            self.state_lost(ni);
        }
        // It starts with the last map that it has seen; one that has lost state asks the monitors first.
        let lost = self.nodes[ni].store.lost;
        let newest = self.moves.is_none() || lost || self.rng.one_in(2);
        let known = match &self.moves {
            Some(moves) if !newest => moves.heard(ni),
            _ => {
                self.node_has_newest(ni);
                self.plan.pgs.clone()
            }
        };
        self.tell_pools(ni, known.len());
        let configs = known.iter().enumerate();
        let configs = configs.map(|(pg, c)| (PgId { pool: crate::plan::POOL, pg: pg as u32 }, c.clone()));
        self.node_input(ni, Input::Config(configs.collect()));
        let first = self.now + self.rng.below(100_000);
        self.queue.push(first, Event::NodeTick { ni, life });
    }

    /// A node learns that it has lost state (N8).
    pub(super) fn state_lost(&mut self, ni: usize) {
        self.nodes[ni].store.unaware = false;
        let volumes: Vec<_> = self.plan.volume_ids().collect();
        let granted = |volume| (volume, Generation(self.monitor.generation_of(volume)));
        let fences = volumes.into_iter().map(granted).collect();
        self.node_input(ni, Input::StateLost { fences });
    }

    /// The power of a node is gone.
    pub(super) fn crash_node(&mut self, ni: usize) {
        if self.nodes[ni].machine.take().is_none() {
            return;
        }
        self.coverage.count(Cover::Crashes);
        let flushing = self.nodes[ni].store.flushing();
        let survive = if flushing == 0 { 0 } else { self.rng.index(flushing + 1) };
        let node = &mut self.nodes[ni];
        node.paused = false;
        node.deferred.clear();
        node.waiting.clear();
        (node.slow, node.slow_net, node.slow_until) = (1, 1, 0);
        let mut durable = Became::default();
        let World { nodes, heads, plan, coverage, .. } = self;
        let lost = nodes[ni].store.crash(survive, |store, record| {
            durable.record(plan, heads, coverage, ni, store, record);
        });
        self.given[ni] = self.nodes[ni].store.state.clone();
        if self.trace.wanted() {
            self.say(None, format!("node.{ni} crashes: {survive} records survive, {lost} are lost"));
        }
        if lost > 0 {
            self.coverage.count(Cover::LostSuffix);
        }
        if survive > 0 {
            self.coverage.count(Cover::SurvivingSuffix);
        }
        self.note(durable.checked);
        // What was answered and lost shows here.
        for slot in 0..check::SLOTS {
            self.check_choice(slot);
        }
        for li in 0..self.leaders.len() {
            let id = self.leaders[li].conns[ni];
            if id != 0 {
                self.node_end_gone(id);
            }
        }
        for other in (0..self.plan.nodes).filter(|other| *other != ni) {
            self.break_link(ni, other);
        }
    }

    /// A front end's message. One that the store has to be asked about first may have to wait, and with it
    /// what comes behind it on its connection.
    pub(super) fn frame(&mut self, ni: usize, conn: ConnId, msg: ToNode<Blocks>) {
        let host = &mut self.nodes[ni];
        if let Some(waiting) = host.waiting.get_mut(&conn) {
            return waiting.push_back(msg);
        }
        let room = host.room();
        let Some(machine) = host.machine.as_mut() else { return };
        machine.set_room(room, room <= host.nearly);
        if machine.asks_growth(&msg).is_some() && self.rng.one_in(3) {
            self.nodes[ni].waiting.insert(conn, VecDeque::from([msg]));
            return self.ask_store(ni, conn);
        }
        self.node_input(ni, Input::Leader { conn, msg });
    }

    /// When something that a device begins now ends.
    fn device_takes(&mut self, ni: usize, span: Span) -> u64 {
        let node = &mut self.nodes[ni];
        let at = self.now + self.rng.between(span.0, span.1) * node.slow;
        if node.slow > 1 {
            node.slow_until = node.slow_until.max(at);
        }
        at
    }

    /// The store reads a page of its table.
    fn ask_store(&mut self, ni: usize, conn: ConnId) {
        self.coverage.count(Cover::GrowthUnknown);
        let at = self.device_takes(ni, self.plan.read);
        let life = self.nodes[ni].life;
        self.queue.push(at, Event::GrowthKnown { ni, life, conn });
    }

    /// It is known now how many blocks the first message that waits would add.
    pub(super) fn growth_known(&mut self, ni: usize, conn: ConnId) {
        let Some(mut waiting) = self.nodes[ni].waiting.remove(&conn) else { return };
        let Some(first) = waiting.pop_front() else { return };
        self.node_input(ni, Input::Leader { conn, msg: first });
        // The others, as they come: one of them may have to wait again.
        for msg in waiting {
            self.frame(ni, conn, msg);
        }
    }

    /// What a front end has said and waits is gone with its connection.
    pub(super) fn leader_is_gone(&mut self, ni: usize, conn: ConnId) {
        self.nodes[ni].waiting.remove(&conn);
        self.node_input(ni, Input::LeaderGone { conn });
    }

    pub(super) fn node_input(&mut self, ni: usize, input: Input<Blocks>) {
        let host = &mut self.nodes[ni];
        let Some(machine) = host.machine.as_mut() else { return };
        let now = Time(host.clock.local(self.now));
        let room = host.capacity.saturating_sub(host.store.now.live);
        machine.set_room(room, room <= host.nearly);
        if let Input::Leader { msg, .. } = &input
            && let Some((object, blocks)) = machine.asks_growth(msg)
        {
            machine.set_growth(host.store.now.growth(object, blocks));
        }
        let mut out = std::mem::take(&mut self.node_out);
        machine.handle(now, input, &mut out);
        for output in out.drain(..) {
            self.node_output(ni, output);
        }
        self.node_out = out;
        if self.steps.is_multiple_of(STATE_EVERY)
            && self.nodes[ni].machine.as_ref().is_some_and(|machine| *machine.state() != self.given[ni])
        {
            let what = format!("node.{ni}'s state is not what its records add up to");
            self.note(Err(check::Violation::plain("record", what)));
        }
        self.start_flush(ni);
    }

    fn start_flush(&mut self, ni: usize) {
        let limit = self.plan.flush_records;
        let Some(answer) = self.nodes[ni].store.start_flush(limit) else { return };
        let at = self.device_takes(ni, self.plan.flush);
        let life = self.nodes[ni].life;
        self.queue.push(at, Event::Flushed { ni, life });
        if let Some(ticket) = answer {
            // The deliberate bug: said before it is true.
            self.queue.push(self.now, Event::SaidDurable { ni, life, ticket });
        }
    }

    pub(super) fn flushed(&mut self, ni: usize) {
        let mut durable = Became::default();
        let World { nodes, heads, plan, coverage, .. } = self;
        let ticket = nodes[ni].store.end_flush(|store, record| {
            durable.record(plan, heads, coverage, ni, store, record);
        });
        self.note(durable.checked);
        for slot in 0..check::SLOTS {
            if durable.touched >> slot & 1 == 1 {
                self.check_choice(slot);
            }
        }
        if let Some(ticket) = ticket {
            self.node_input(ni, Input::Durable { ticket });
        }
        self.start_flush(ni);
    }

    fn node_output(&mut self, ni: usize, output: Output<Blocks>) {
        match output {
            Output::Persist { ticket, record } => {
                self.record_given(ni, &record);
                let host = &mut self.nodes[ni];
                let (before, full) = (host.store.now.live, host.room() == 0);
                let heals = matches!(record, Record::Heal { .. });
                let writes = matches!(&record, Record::Write { op: WriteOp::Data { .. }, .. });
                host.store.push(ticket, record);
                let (after, capacity) = (host.store.now.live, host.capacity);
                if after > before.max(capacity) && !heals {
                    let what = format!("node.{ni} holds {after} blocks, and has room for {capacity}");
                    self.note(Err(check::Violation::plain("room", what)));
                }
                if full && writes {
                    self.coverage.count(Cover::FullOverwrites);
                }
            }
            Output::ToLeader { conn, msg } => {
                // What a node that was told of its loss had held back since before goes to nobody.
                if !self.silent.has_closed(ni, conn) {
                    self.node_says(ni, &msg);
                }
                if self.trace.wanted() {
                    let li = self.net.conn(conn).leader;
                    let about = super::words::about_from_node(&msg);
                    self.say(about, format!("node.{ni} → leader {li} (conn {conn}): {msg:?}"));
                }
                self.send_to_leader(conn, msg);
            }
            Output::ToPeer { node, msg } => {
                if matches!(msg, PeerMsg::AtLeast { yes: false, .. }) {
                    self.coverage.count(Cover::HoldsLess);
                }
                if self.trace.wanted() {
                    let about = super::words::about_peer(&msg);
                    self.say(about, format!("node.{ni} → {node}: {msg:?}"));
                }
                self.spends(ni, node.0, &msg);
                self.send_to_peer(ni, node.0 as usize, msg);
            }
            Output::Read { token, object, blocks, mode } => {
                let found = self.nodes[ni].store.read(object, blocks, &mode);
                let at = self.device_takes(ni, self.plan.read);
                let life = self.nodes[ni].life;
                self.queue.push(at, Event::ReadDone { ni, life, token, object, found });
            }
            Output::CloseLeader { conn, why } => {
                if self.trace.wanted() {
                    self.say(None, format!("node.{ni} closes conn {conn}: {why}"));
                }
                let life = self.nodes[ni].life;
                self.node_end_gone(conn);
                self.queue.push(self.now, Event::LeaderGone { ni, life, conn });
            }
            Output::Listed { id, list } => {
                if self.trace.wanted() {
                    self.say(None, format!("node.{ni} answers {list:?}"));
                }
                let by = id as usize;
                let at = self.arrival(ni, super::net::monitor_end(by));
                self.queue.push(at, Event::Listed { ni, by, list });
            }
            Output::Scrubbed { .. } => self.coverage.count(Cover::Scrubbed),
            Output::Differs { group } => {
                self.coverage.count(Cover::Differs);
                self.volume_differs(group);
            }
        }
    }

    /// What goes to a peer is within the node's budget, or a client waits for it.
    fn spends(&mut self, ni: usize, to: u32, msg: &PeerMsg<Blocks>) {
        let host = &mut self.nodes[ni];
        let Some(spent) = &mut host.spent else { return };
        let waited = host.machine.as_ref().map(|machine| machine.counters());
        let waited = waited.is_some_and(|count| count.repairs_put_off + count.fetches_waited > 0);
        if waited {
            self.coverage.count(Cover::PutOff);
        }
        let checked = spent.sent(host.clock.local(self.now), ni, to, msg);
        self.note(checked);
    }

    fn record_given(&mut self, ni: usize, record: &Record<Blocks>) {
        if let Some(why) = store::malformed(record) {
            let what = format!("node.{ni}: {why}: {record:?}");
            self.note(Err(check::Violation::plain("record", what)));
        }
        if self.trace.wanted() {
            self.say(super::words::about_record(record), format!("node.{ni} gives {record:?}"));
        }
        let now = self.moment();
        match record {
            Record::Write { object, head, op, .. } => {
                if let Some(slot) = slot_of(*object) {
                    let checked = self.content.persisted(slot, (head.ballot, head.seq), op, now);
                    self.note(checked);
                }
            }
            Record::Install { patches, writes, .. } => {
                self.coverage.count(Cover::Repairs);
                if patches.len() > 1 {
                    self.coverage.count(Cover::RepairsOfPieces);
                }
                if !writes.is_empty() {
                    self.coverage.count(Cover::RepairsWithOverlay);
                }
            }
            Record::Settle { add, .. } if !add.is_empty() => self.coverage.count(Cover::Behind),
            Record::Doubt { marks, .. } if !marks.is_empty() => self.coverage.count(Cover::Doubts),
            Record::Doubt { .. } => self.coverage.count(Cover::DoubtsEnded),
            Record::Leave { pg, .. } => self.node_leaves(ni, *pg),
            Record::Split { pg, from, to } => self.node_splits(ni, *pg, *from, *to),
            Record::Open { group, .. }
                if self.given[ni].pgs.get(&group.pg).is_some_and(|pg| pg.left.is_some()) =>
            {
                self.coverage.count(Cover::CameBack);
            }
            _ => {}
        }
        // Against the state before it: what was given out last and not this.
        let checked = check::never_back::check(NodeId(ni as u32), &self.given[ni], record);
        self.note(checked);
        let split = matches!(record, Record::Split { .. }).then(|| self.given[ni].clone());
        self.given[ni].apply(record);
        if let Some(before) = split {
            let checked = check::split::check(NodeId(ni as u32), &before, &self.given[ni], record);
            self.note(checked);
        }
    }

    fn node_says(&mut self, ni: usize, msg: &FromNode<Blocks>) {
        let node = NodeId(ni as u32);
        let checked = check::durable_first::check(node, &self.nodes[ni].store, msg);
        self.note(checked);
        match msg {
            FromNode::Have { object, ballot, seq, .. } => {
                if let Some(slot) = slot_of(*object) {
                    self.majority.claimed(slot, node, *ballot, *seq);
                }
            }
            FromNode::Opened { group, ballot, objects, .. } => {
                self.coverage.count(Cover::Opened);
                // After a reconnect, a vote in the ballot itself says what a `Have` would have said.
                for vote in objects.iter().filter(|v| v.head.ballot == *ballot && v.behind.is_none()) {
                    if let Some(slot) = check::slot(group.volume, vote.index) {
                        self.majority.claimed(slot, node, *ballot, vote.head.seq);
                    }
                }
            }
            FromNode::OpenRefused { .. } => self.coverage.count(Cover::OpenRefused),
            FromNode::FenceRefused { .. } => self.coverage.count(Cover::FenceRefused),
            FromNode::Gap { repair: false, .. } => self.coverage.count(Cover::Gaps),
            FromNode::Gap { repair: true, .. } => self.coverage.count(Cover::RepairsGivenUp),
            FromNode::NoSpace { .. } => self.coverage.count(Cover::NoSpace),
            FromNode::Confirmed { .. } => self.coverage.count(Cover::Confirms),
            FromNode::ReadRefused { .. } => self.coverage.count(Cover::ReadRefused),
            FromNode::Bad { .. } => self.coverage.count(Cover::BadReads),
            _ => {}
        }
    }

    pub(super) fn read_done(
        &mut self,
        ni: usize,
        token: u64,
        object: ObjectId,
        found: trefoil_core::node::ReadResult<Blocks>,
    ) {
        let bad = found.bad.clone();
        self.node_input(ni, Input::Read { token, found });
        for block in bad {
            let checksum = self.nodes[ni].store.now.sum(object, block);
            self.node_input(ni, Input::BadBlock { object, block, checksum });
        }
    }

    pub(super) fn peer_says(&mut self, to: usize, from: usize, mut msg: PeerMsg<Blocks>) {
        // The shell verifies what has crossed a wire.
        if let PeerMsg::Block { checksum, data, .. } = &mut msg {
            let good = |d: &Blocks| matches!(d.values(), [v] if payload::checksum(*v) == *checksum);
            if data.as_ref().is_some_and(|d| !good(d)) {
                *data = None;
            }
        }
        self.node_input(to, Input::Peer { node: NodeId(from as u32), msg });
    }
}
