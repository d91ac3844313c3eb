//! A small cluster on virtual time: leaders and nodes joined by in-memory connections, each node with a
//! store that is a map. For tests of one rule at a time; the simulator is where everything fails at once.

use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};
use trefoil_core::checksum::HOLE;
use trefoil_core::client::{ClientOp, OpDone, OpError, OpId, OpKind, OpOutput};
use trefoil_core::message::{FromNode, GroupList, ListRequest, PeerMsg, ToNode, WriteOp};
use trefoil_core::placement::{PgConfig, PoolPgs};
use trefoil_core::record::{Durable, Record};
use trefoil_core::*;
use trefoil_core::{leader, node};

/// A payload: one number for each block. The checksum of a block is its number.
pub type P = Vec<u64>;
pub const OBJECT_BLOCKS: u32 = 8;
pub const VOLUME: VolumeId = VolumeId(1);

#[derive(Clone, Default)]
pub struct Disk {
    pub durable: Durable,
    pub blocks: FxHashMap<(ObjectId, u32), u64>,
    pub bad: Vec<(ObjectId, u32)>,
    /// Records given and not durable yet, while the disk is held.
    pub pending: Vec<(u64, Record<P>)>,
    pub hold: bool,
    /// Blocks that it can hold; `None`: the test says what the machine is told.
    pub capacity: Option<u64>,
    /// It takes no data at all, also none that adds nothing.
    pub stuck: bool,
}

impl Disk {
    pub fn live(&self) -> u64 {
        self.blocks.values().filter(|value| **value != HOLE).count() as u64
    }
    fn room(&self) -> Option<u64> {
        Some(self.capacity?.saturating_sub(self.as_given().live()))
    }
    fn growth(&self, object: ObjectId, blocks: BlockRange) -> u32 {
        let seen = self.as_given();
        let hole = |block: &u32| seen.blocks.get(&(object, *block)).is_none_or(|value| *value == HOLE);
        (blocks.first..blocks.end()).filter(hole).count() as u32
    }
    /// What a read sees: all records given so far, durable or not.
    fn as_given(&self) -> Disk {
        let mut seen = self.clone();
        for (_, record) in &self.pending {
            seen.apply(record);
        }
        seen
    }
    fn put(&mut self, object: ObjectId, block: u32, value: u64) {
        self.bad.retain(|bad| *bad != (object, block));
        self.blocks.insert((object, block), value);
    }
    fn write(&mut self, object: ObjectId, op: &WriteOp<P>) {
        let range = op.blocks();
        for i in 0..range.count {
            let value = match op {
                WriteOp::Data { data, .. } => data[i as usize],
                WriteOp::Zero { .. } => HOLE,
            };
            self.put(object, range.first + i, value);
        }
    }
    fn apply(&mut self, record: &Record<P>) {
        self.durable.apply(record);
        match record {
            Record::Write { object, op, .. } => self.write(*object, op),
            Record::Install { object, patches, writes, .. } => {
                for patch in patches {
                    let mut data = patch.data.iter();
                    for (block, sum) in &patch.blocks {
                        let value = if *sum == HOLE { HOLE } else { *data.next().expect("bytes of a patch") };
                        assert_eq!(value, *sum);
                        self.put(*object, *block, value);
                    }
                    for (block, sum) in &patch.bad {
                        self.put(*object, *block, *sum);
                        self.bad.push((*object, *block));
                    }
                }
                for op in writes {
                    self.write(*object, op);
                }
            }
            Record::Heal { object, block, data, .. } => self.put(*object, *block, data[0]),
            Record::DeleteVolume { volume } => {
                self.blocks.retain(|(object, _), _| object.group.volume != *volume);
            }
            Record::Split { .. } => {
                let durable = &self.durable;
                let moved = self
                    .blocks
                    .drain()
                    .map(|((object, block), value)| ((durable.place(object), block), value));
                self.blocks = moved.collect();
            }
            Record::Leave { pg, .. } => self.blocks.retain(|(object, _), _| object.group.pg != *pg),
            _ => {}
        }
    }
}

pub struct Host {
    pub machine: node::Node<P>,
    pub disk: Disk,
    pub up: bool,
}

pub struct Front {
    pub machine: leader::Leader<P>,
    pub conns: BTreeMap<NodeId, u64>,
    pub done: FxHashMap<OpId, OpDone<P>>,
    pub events: Vec<&'static str>,
    pub next_op: u64,
    /// Answers that arrive while its process is stopped.
    pub stopped: Option<Vec<(u64, NodeId, FromNode<P>)>>,
}

enum Job {
    Node(NodeId, node::Input<P>),
    Leader(usize, u64, NodeId, FromNode<P>),
}

pub struct World {
    pub now: Time,
    pub hosts: BTreeMap<NodeId, Host>,
    pub fronts: Vec<Front>,
    jobs: VecDeque<Job>,
    /// Connection number to (front end, node).
    conns: FxHashMap<u64, (usize, NodeId)>,
    next_conn: u64,
    pub config: PgConfig,
    /// Placement groups of the pool, which all live where `config` says.
    pub pg_num: u32,
    /// Messages from leaders to these nodes are lost (as on a connection that breaks later).
    pub drop_to: Vec<NodeId>,
    pub fetched_blocks: usize,
    /// How long (µs) these nodes' answers to leaders take; [`STOPPED`]: until that is changed.
    pub answers_after: BTreeMap<NodeId, u64>,
    /// Answers on their way, in the order of sending.
    answers: VecDeque<(Time, usize, u64, NodeId, FromNode<P>)>,
    /// Those of nodes that are stopped.
    stuck: Vec<(usize, u64, NodeId, FromNode<P>)>,
    /// Ticks that leaders were given by [`World::glide`].
    pub ticks: usize,
    /// Reads that leaders have sent, by node.
    pub reads_sent: BTreeMap<NodeId, usize>,
    /// Opens that leaders have sent, by node.
    pub opens_sent: BTreeMap<NodeId, usize>,
    /// Answers to List.
    pub listed: Vec<(NodeId, GroupList)>,
    /// Scrubs that have ended.
    pub scrubbed: Vec<(NodeId, PgId, bool, node::Scrubbed)>,
}

/// See [`World::answers_after`].
pub const STOPPED: u64 = u64::MAX;

pub fn ids(n: &[u32]) -> Vec<NodeId> {
    n.iter().map(|n| NodeId(*n)).collect()
}

/// As in the daemons: nodes split by it.
pub fn pg_of(volume: VolumeId, index: ObjectIndex, pg_num: u32) -> u32 {
    trefoil_core::crush::object_pg(volume.0, index, pg_num)
}

impl World {
    pub fn new() -> World {
        let config = PgConfig::simple(Epoch(1), ids(&[0, 1, 2]));
        let mut world = World {
            scrubbed: Vec::new(),
            now: Time(1),
            hosts: BTreeMap::new(),
            fronts: Vec::new(),
            jobs: VecDeque::new(),
            conns: FxHashMap::default(),
            next_conn: 1,
            config,
            pg_num: 1,
            drop_to: Vec::new(),
            fetched_blocks: 0,
            answers_after: BTreeMap::new(),
            answers: VecDeque::new(),
            stuck: Vec::new(),
            ticks: 0,
            reads_sent: BTreeMap::new(),
            opens_sent: BTreeMap::new(),
            listed: Vec::new(),
        };
        for id in ids(&[0, 1, 2]) {
            world.boot(id, Disk::default());
        }
        world
    }

    pub fn boot(&mut self, id: NodeId, disk: Disk) {
        let mut machine = node::Node::new(node::NodeConfig { id }, disk.durable.clone());
        for input in self.map() {
            machine.handle(self.now, input, &mut Vec::new());
        }
        self.hosts.insert(id, Host { machine, disk, up: true });
    }

    /// What a node is told of the map as it is; of the pool where there is anything to say.
    fn map(&self) -> Vec<node::Input<P>> {
        let pg = |pg| (PgId { pool: PoolId(1), pg }, self.config.clone());
        let configs = node::Input::Config((0..self.pg_num).map(pg).collect());
        if self.pg_num == 1 {
            return vec![configs];
        }
        let pools = vec![(PoolId(1), PoolPgs { first: 1, now: self.pg_num })];
        vec![node::Input::Pools(pools), configs]
    }

    /// The pool gets more placement groups, and everybody hears of it.
    pub fn split(&mut self, f: usize, epoch: u64, pg_num: u32) {
        self.config.epoch = Epoch(epoch);
        self.pg_num = pg_num;
        for node in self.hosts.keys().copied().collect::<Vec<_>>() {
            for input in self.map() {
                self.tell_node(node, input);
            }
        }
        let pgs = vec![self.config.clone(); pg_num as usize];
        self.tell_leader(f, leader::Input::Pgs { pgs: pgs.into() });
    }

    /// Adds a front end (or healer) with this generation, connected to every node that is up.
    pub fn front(&mut self, generation: u64, options: leader::Options) -> usize {
        self.front_of(VOLUME, generation, options)
    }

    pub fn front_of(&mut self, volume: VolumeId, generation: u64, options: leader::Options) -> usize {
        let spec = leader::VolumeSpec {
            id: volume,
            generation: Generation(generation),
            object_blocks: OBJECT_BLOCKS,
            objects: 16,
            pool: PoolId(1),
            pgs: vec![self.config.clone(); self.pg_num as usize].into(),
            pg_of,
            snap: 0,
        };
        let machine = leader::Leader::new(self.now, spec, options);
        self.fronts.push(Front {
            machine,
            conns: BTreeMap::new(),
            done: FxHashMap::default(),
            events: Vec::new(),
            next_op: 1,
            stopped: None,
        });
        let f = self.fronts.len() - 1;
        self.lease(f, 1_000_000);
        for id in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.connect(f, id);
        }
        f
    }

    pub fn lease(&mut self, f: usize, micros: u64) {
        let until = self.now.after(micros);
        self.tell_leader(f, leader::Input::Lease { until });
    }

    pub fn connect(&mut self, f: usize, node: NodeId) {
        if !self.hosts[&node].up {
            return;
        }
        let conn = self.next_conn;
        self.next_conn += 1;
        self.conns.insert(conn, (f, node));
        self.fronts[f].conns.insert(node, conn);
        self.tell_leader(f, leader::Input::NodeUp { node });
    }

    pub fn disconnect(&mut self, f: usize, node: NodeId) {
        if let Some(conn) = self.fronts[f].conns.remove(&node) {
            self.conns.remove(&conn);
            self.tell_leader(f, leader::Input::NodeDown { node });
            if self.hosts[&node].up {
                self.tell_node(node, node::Input::LeaderGone { conn });
            }
        }
    }

    pub fn stop(&mut self, f: usize) {
        self.fronts[f].stopped = Some(Vec::new());
    }

    pub fn resume(&mut self, f: usize) {
        for (conn, node, msg) in self.fronts[f].stopped.take().unwrap_or_default() {
            self.jobs.push_back(Job::Leader(f, conn, node, msg));
        }
        self.run();
    }

    /// The node's process dies; records that were not durable are gone.
    pub fn crash(&mut self, node: NodeId) {
        let host = self.hosts.get_mut(&node).expect("a node");
        host.up = false;
        host.disk.pending.clear();
        for f in 0..self.fronts.len() {
            self.disconnect(f, node);
        }
        for other in self.hosts.keys().copied().filter(|n| *n != node).collect::<Vec<_>>() {
            self.jobs.push_back(Job::Node(other, node::Input::PeerGone { node }));
        }
        self.run();
    }

    pub fn restart(&mut self, node: NodeId) {
        let mut disk = std::mem::take(&mut self.hosts.get_mut(&node).expect("a node").disk);
        disk.hold = false;
        self.boot(node, disk);
        for f in 0..self.fronts.len() {
            self.connect(f, node);
        }
        self.run();
    }

    pub fn tell_node(&mut self, node: NodeId, input: node::Input<P>) {
        self.jobs.push_back(Job::Node(node, input));
        self.run();
    }

    pub fn tell_leader(&mut self, f: usize, input: leader::Input<P>) {
        let mut out = Vec::new();
        self.fronts[f].machine.handle(self.now, input, &mut out);
        self.leader_outputs(f, out);
        self.run();
    }

    pub fn op(&mut self, f: usize, object: u32, kind: OpKind<P>) -> OpId {
        let id = OpId(self.fronts[f].next_op);
        self.fronts[f].next_op += 1;
        self.tell_leader(f, leader::Input::Op(ClientOp { id, object, kind }));
        id
    }

    pub fn write(&mut self, f: usize, object: u32, block: u32, value: u64) -> OpId {
        let blocks = BlockRange::new(block, 1);
        self.op(f, object, OpKind::Write { blocks, checksums: Box::new([value]), data: vec![value] })
    }

    pub fn read(&mut self, f: usize, object: u32, block: u32) -> OpId {
        self.op(f, object, OpKind::Read { blocks: BlockRange::new(block, 1) })
    }

    pub fn result(&self, f: usize, id: OpId) -> Option<Result<u64, OpError>> {
        self.fronts[f].done.get(&id).map(|done| match &done.result {
            Ok(OpOutput::Written) => Ok(0),
            Ok(OpOutput::Read { checksums, .. }) => Ok(checksums[0]),
            Err(error) => Err(*error),
        })
    }

    pub fn value(&mut self, f: usize, object: u32, block: u32) -> u64 {
        let id = self.read(f, object, block);
        self.pass(100_000);
        self.result(f, id).expect("the read ends").expect("the read succeeds")
    }

    /// Lets time pass, with the ticks that the machines want.
    pub fn pass(&mut self, micros: u64) {
        let end = self.now.after(micros);
        while self.now < end {
            self.now = self.now.after(10_000);
            for f in (0..self.fronts.len()).filter(|f| self.fronts[*f].stopped.is_none()).collect::<Vec<_>>()
            {
                self.tell_leader(f, leader::Input::Tick);
            }
            if self.now.0 % 100_000 < 10_000 {
                for id in self.hosts.keys().copied().collect::<Vec<_>>() {
                    self.tell_node(id, node::Input::Tick);
                }
            }
        }
    }

    /// The node's answers take so long from now on; [`STOPPED`]: they do not come. Those of a node that was
    /// stopped come now.
    pub fn answer_after(&mut self, node: u32, micros: u64) {
        let node = NodeId(node);
        self.answers_after.insert(node, micros);
        if micros != STOPPED {
            for (f, conn, node, msg) in self.stuck.extract_if(.., |answer| answer.2 == node) {
                self.answers.push_back((self.now, f, conn, node, msg));
            }
        }
    }

    /// Lets time pass from one thing that happens to the next: answers that arrive, and ticks at the very
    /// moment that the machines want them.
    pub fn glide(&mut self, micros: u64) {
        let end = self.now.after(micros);
        loop {
            let ticks = self.fronts.iter().enumerate().filter_map(|(f, front)| {
                let tick = front.machine.next_tick().filter(|_| front.stopped.is_none())?;
                Some((tick.max(self.now), f))
            });
            let tick = ticks.min();
            let answer =
                self.answers.iter().map(|answer| answer.0).enumerate().min_by_key(|(n, at)| (*at, *n));
            let (at, tick) = match (tick, answer) {
                (Some((tick, f)), Some((_, answer))) if tick < answer => (tick, Some(f)),
                (_, Some((_, answer))) => (answer, None),
                (Some((tick, f)), None) => (tick, Some(f)),
                (None, None) => break,
            };
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            match (tick, answer) {
                (Some(f), _) => {
                    self.ticks += 1;
                    self.tell_leader(f, leader::Input::Tick);
                }
                (None, Some((n, _))) => {
                    let (_, f, conn, node, msg) = self.answers.remove(n).expect("an answer");
                    self.jobs.push_back(Job::Leader(f, conn, node, msg));
                    self.run();
                }
                (None, None) => {}
            }
        }
        self.now = end;
    }

    /// Makes what a held disk was given durable.
    pub fn flush(&mut self, node: NodeId) {
        let host = self.hosts.get_mut(&node).expect("a node");
        host.disk.hold = false;
        let pending = std::mem::take(&mut host.disk.pending);
        let Some(last) = pending.last().map(|(ticket, _)| *ticket) else { return };
        for (_, record) in pending {
            host.disk.apply(&record);
        }
        self.tell_node(node, node::Input::Durable { ticket: last });
    }

    fn leader_outputs(&mut self, f: usize, out: Vec<leader::Output<P>>) {
        for output in out {
            match output {
                leader::Output::Send { to, msg } => {
                    for node in to.as_slice() {
                        *self.reads_sent.entry(*node).or_default() +=
                            usize::from(matches!(msg, ToNode::Read { .. }));
                        *self.opens_sent.entry(*node).or_default() +=
                            usize::from(matches!(msg, ToNode::Open { .. }));
                        if let Some(conn) = self.fronts[f].conns.get(node)
                            && !self.drop_to.contains(node)
                        {
                            let input = node::Input::Leader { conn: *conn, msg: msg.clone() };
                            self.jobs.push_back(Job::Node(*node, input));
                        }
                    }
                }
                leader::Output::Done(done) => {
                    assert!(self.fronts[f].done.insert(done.id, done).is_none(), "answered twice");
                }
                leader::Output::Attached => self.fronts[f].events.push("attached"),
                leader::Output::Deposed { .. } => self.fronts[f].events.push("deposed"),
                leader::Output::Released { clean: true } => self.fronts[f].events.push("released clean"),
                leader::Output::Released { clean: false } => self.fronts[f].events.push("released"),
                leader::Output::AllWhole => self.fronts[f].events.push("all whole"),
                leader::Output::LostData { .. } => self.fronts[f].events.push("lost data"),
                leader::Output::Reset { node, .. } => {
                    self.fronts[f].events.push("reset");
                    if let Some(conn) = self.fronts[f].conns.remove(&node) {
                        self.conns.remove(&conn);
                        self.jobs.push_back(Job::Node(node, node::Input::LeaderGone { conn }));
                    }
                }
                leader::Output::MapStale => self.fronts[f].events.push("map stale"),
                leader::Output::NeedGeneration => self.fronts[f].events.push("need generation"),
            }
        }
    }

    pub fn run(&mut self) {
        while let Some(job) = self.jobs.pop_front() {
            match job {
                Job::Node(id, input) => {
                    let host = self.hosts.get_mut(&id).expect("a node");
                    if host.up {
                        let mut out = Vec::new();
                        if let Some(room) = host.disk.room() {
                            host.machine.set_room(room, room == 0);
                            if host.disk.stuck {
                                host.machine.set_room(0, true);
                                host.machine.set_growth(u32::MAX);
                            } else if let node::Input::Leader { msg, .. } = &input
                                && let Some((object, blocks)) = host.machine.asks_growth(msg)
                            {
                                host.machine.set_growth(host.disk.growth(object, blocks));
                            }
                        }
                        host.machine.handle(self.now, input, &mut out);
                        self.node_outputs(id, out);
                    }
                }
                Job::Leader(f, conn, node, msg) if self.fronts[f].stopped.is_some() => {
                    self.fronts[f].stopped.as_mut().expect("stopped").push((conn, node, msg));
                }
                Job::Leader(f, conn, node, msg) => {
                    if self.fronts[f].conns.get(&node) == Some(&conn) {
                        let mut out = Vec::new();
                        self.fronts[f].machine.handle(self.now, leader::Input::Node { node, msg }, &mut out);
                        self.leader_outputs(f, out);
                    }
                }
            }
        }
    }

    fn node_outputs(&mut self, id: NodeId, out: Vec<node::Output<P>>) {
        for output in out {
            match output {
                node::Output::Persist { ticket, record } => {
                    let disk = &mut self.hosts.get_mut(&id).expect("a node").disk;
                    // Durable in order: nothing overtakes what is held.
                    if disk.hold || !disk.pending.is_empty() {
                        disk.pending.push((ticket, record));
                    } else {
                        disk.apply(&record);
                        self.jobs.push_back(Job::Node(id, node::Input::Durable { ticket }));
                    }
                }
                node::Output::Scrubbed { pg, deep, found } => self.scrubbed.push((id, pg, deep, found)),
                node::Output::ToLeader { conn, msg } => {
                    if let Some((f, node)) = self.conns.get(&conn) {
                        match self.answers_after.get(&id) {
                            None => self.jobs.push_back(Job::Leader(*f, conn, *node, msg)),
                            Some(&STOPPED) => self.stuck.push((*f, conn, *node, msg)),
                            Some(after) => {
                                self.answers.push_back((self.now.after(*after), *f, conn, *node, msg));
                            }
                        }
                    }
                }
                node::Output::ToPeer { node, msg } => {
                    if let PeerMsg::Piece { data, .. } = &msg {
                        self.fetched_blocks += data.len();
                    }
                    let input = if self.hosts[&node].up {
                        Job::Node(node, node::Input::Peer { node: id, msg })
                    } else {
                        Job::Node(id, node::Input::PeerGone { node })
                    };
                    self.jobs.push_back(input);
                }
                node::Output::Read { token, object, blocks, mode } => {
                    let disk = &self.hosts[&id].disk.as_given();
                    let mut found =
                        node::ReadResult { checksums: Box::default(), data: Vec::new(), bad: Vec::new() };
                    let sum = |b: u32| disk.blocks.get(&(object, b)).copied().unwrap_or(HOLE);
                    found.checksums = (blocks.first..blocks.end()).map(sum).collect();
                    let mut bad_seen = Vec::new();
                    for (i, value) in found.checksums.iter().enumerate() {
                        let block = blocks.first + i as u32;
                        let wanted = match &mode {
                            node::ReadMode::All => *value != HOLE,
                            node::ReadMode::Differing(have) => *value != HOLE && have[i] != *value,
                            node::ReadMode::ChecksumsOnly => false,
                        };
                        if wanted && disk.bad.contains(&(object, block)) {
                            found.bad.push(block);
                            bad_seen.push((block, *value));
                        } else if wanted {
                            found.data.push(*value);
                        }
                    }
                    self.jobs.push_back(Job::Node(id, node::Input::Read { token, found }));
                    for (block, checksum) in bad_seen {
                        let input = node::Input::BadBlock { object, block, checksum };
                        self.jobs.push_back(Job::Node(id, input));
                    }
                }
                node::Output::CloseLeader { why, .. } => panic!("a node calls a leader malformed: {why}"),
                node::Output::Differs { .. } => {}
                node::Output::Listed { list, .. } => self.listed.push((id, list)),
            }
        }
    }

    pub fn object(index: u32) -> ObjectId {
        let group = GroupId { volume: VOLUME, pg: PgId { pool: PoolId(1), pg: 0 } };
        ObjectId { group, index }
    }

    /// The placement group has another configuration, which these nodes hear of.
    pub fn configure(&mut self, config: PgConfig, nodes: &[u32]) {
        self.config = config.clone();
        for node in ids(nodes) {
            let input = node::Input::Config(vec![(World::object(0).group.pg, config.clone())]);
            self.tell_node(node, input);
        }
        self.run();
    }

    /// A leader hears of the present configuration.
    pub fn tell_config(&mut self, f: usize) {
        let config = self.config.clone();
        self.tell_leader(f, leader::Input::Config { pg: 0, config });
        self.run();
    }

    /// What a node answers to List now; none if it does not answer.
    pub fn list(&mut self, node: u32, epoch: u64, fence: u64) -> Option<GroupList> {
        self.listed.clear();
        let fences = vec![(VOLUME, Generation(fence))];
        let request = ListRequest { pg: World::object(0).group.pg, epoch: Epoch(epoch), fences };
        self.tell_node(NodeId(node), node::Input::List { id: 1, request });
        self.run();
        self.listed.pop().map(|(_, list)| list)
    }

    /// From now on the node's disk holds so many blocks more than it does.
    pub fn room(&mut self, node: u32, blocks: u64) {
        let disk = &mut self.hosts.get_mut(&NodeId(node)).expect("a node").disk;
        disk.capacity = Some(disk.as_given().live() + blocks);
    }

    pub fn at(&self, node: u32, object: u32, block: u32) -> u64 {
        let disk = &self.hosts[&NodeId(node)].disk;
        disk.blocks.get(&(World::object(object), block)).copied().unwrap_or(HOLE)
    }
}
