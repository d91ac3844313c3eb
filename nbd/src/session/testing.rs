//! A cluster for tests: nodes with the real machine and the real wire, a store in memory; monitors that
//! are a struct. On loopback.

use super::cluster::*;
use crate::disk::LocalFuture;
use bytes::{Bytes, BytesMut};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use trefoil_core::checksum::HOLE;
use trefoil_core::leader::report::NodeReport;
use trefoil_core::map::lease::{LeaseConfig, LeaseTable, NotNow, Renewal};
use trefoil_core::map::{Ack, ClusterMap, Command, FailureDomain, Grant, Holder, HolderKind, Reply};
use trefoil_core::message::{FromNode, ToNode, WriteOp};
use trefoil_core::node::{self, Node, NodeConfig, ReadResult};
use trefoil_core::record::{Durable, Record};
use trefoil_core::wire::frame;
use trefoil_core::wire::messages::Message;
use trefoil_core::*;
use trefoil_transport::{Connected, Hello, Policy, Role, Sender, ServeOptions, listen, serve};

pub const CLUSTER: [u8; 16] = [7; 16];

/// What a node has on its disk. Durable at once.
#[derive(Clone, Default)]
pub struct Disk {
    state: Durable,
    blocks: FxHashMap<(ObjectId, u32), (u64, Bytes)>,
}

impl Disk {
    fn append(&mut self, record: &Record<Bytes>) {
        self.state.apply(record);
        if let Record::Write { object, op, .. } = record {
            match op {
                WriteOp::Data { blocks, checksums, data } => {
                    for i in 0..blocks.count as usize {
                        let bytes = data.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE);
                        self.blocks.insert((*object, blocks.first + i as u32), (checksums[i], bytes));
                    }
                }
                WriteOp::Zero { blocks } => {
                    for block in blocks.first..blocks.end() {
                        self.blocks.remove(&(*object, block));
                    }
                }
            }
        }
    }

    fn read(&self, object: ObjectId, blocks: BlockRange) -> ReadResult<Bytes> {
        let found: Vec<_> =
            (blocks.first..blocks.end()).map(|block| self.blocks.get(&(object, block))).collect();
        let mut data = BytesMut::new();
        found.iter().flatten().for_each(|(_, bytes)| data.extend_from_slice(bytes));
        ReadResult {
            checksums: found.iter().map(|block| block.map_or(HOLE, |(sum, _)| *sum)).collect(),
            data: data.freeze(),
            bad: Vec::new(),
        }
    }
}

/// A node that can be killed and started again.
pub struct TestNode {
    pub id: NodeId,
    pub address: SocketAddr,
    /// Stops in the middle of its next large answer, as a process that is stopped there would.
    pub stuck: Rc<Cell<bool>>,
    disk: Rc<RefCell<Disk>>,
    task: Option<JoinHandle<()>>,
    map: Arc<ClusterMap>,
}

struct Running {
    node: Node<Bytes>,
    disk: Rc<RefCell<Disk>>,
    conns: FxHashMap<u64, Sender>,
    last: u64,
    stuck: Rc<Cell<bool>>,
    /// Connections that had half an answer. Nothing more goes there.
    halved: FxHashSet<u64>,
}

impl Running {
    fn handle(&mut self, input: node::Input<Bytes>) {
        let mut inputs = VecDeque::from([input]);
        let mut out = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.node.handle(Time(0), input, &mut out);
            for output in out.drain(..) {
                match output {
                    node::Output::Persist { ticket, record } => {
                        self.disk.borrow_mut().append(&record);
                        inputs.push_back(node::Input::Durable { ticket });
                    }
                    node::Output::Read { token, object, blocks, .. } => {
                        let found = self.disk.borrow().read(object, blocks);
                        inputs.push_back(node::Input::Read { token, found });
                    }
                    node::Output::ToLeader { conn, msg } => {
                        self.answer(conn, &msg);
                    }
                    node::Output::CloseLeader { conn, why } => {
                        if let Some(sender) = self.conns.get(&conn) {
                            sender.close(why);
                        }
                    }
                    node::Output::ToPeer { .. }
                    | node::Output::Differs { .. }
                    | node::Output::Listed { .. }
                    | node::Output::Scrubbed { .. } => {}
                }
            }
        }
        self.conns.values().for_each(Sender::flush);
    }

    fn answer(&mut self, conn: u64, msg: &FromNode<Bytes>) {
        let Some(sender) = self.conns.get(&conn).filter(|_| !self.halved.contains(&conn)) else { return };
        match msg.payload() {
            Some(payload) if self.stuck.get() && payload.len() >= 1 << 20 => {
                let mut meta = BytesMut::new();
                msg.encode_meta(&mut meta);
                sender.push_raw_for_tests(frame::encode(msg.kind(), &meta, payload.len()).unwrap());
                sender.push_raw_for_tests(payload.slice(..payload.len() / 2));
                self.halved.insert(conn);
            }
            payload => _ = sender.push(msg.kind(), |meta| msg.encode_meta(meta), payload),
        }
    }
}

impl TestNode {
    pub async fn start(&mut self) {
        let listener = listen(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let state = self.disk.borrow().state.clone();
        let mut node = Node::new(NodeConfig { id: self.id }, state);
        let pgs = self.map.pgs.iter().map(|(id, pg)| (id, pg.config())).collect();
        node.handle(Time(0), node::Input::Config(pgs), &mut Vec::new());
        let running = Running {
            node,
            disk: self.disk.clone(),
            conns: FxHashMap::default(),
            last: 0,
            stuck: self.stuck.clone(),
            halved: FxHashSet::default(),
        };
        let running = Rc::new(RefCell::new(running));
        let mut hello = Hello::new(Role::StorageNode, CLUSTER);
        (hello.id, hello.incarnation) = (u64::from(self.id.0), 100 + u64::from(self.id.0));
        let policy = Policy { hello, roles: &[Role::FrontEnd], unknown_cluster: false };
        let served = serve(listener, ServeOptions::new(policy), move |connected: Connected| {
            let running = running.clone();
            async move {
                let Connected { mut reader, sender, .. } = connected;
                let conn = {
                    let mut running = running.borrow_mut();
                    running.last += 1;
                    let conn = running.last;
                    running.conns.insert(conn, sender);
                    conn
                };
                let mut frames = Vec::new();
                while reader.read_batch(&mut frames).await.is_ok() {
                    for frame in frames.drain(..) {
                        let msg = ToNode::decode(frame.kind, &frame.meta, frame.payload).unwrap();
                        running.borrow_mut().handle(node::Input::Leader { conn, msg });
                    }
                }
                running.borrow_mut().conns.remove(&conn);
                running.borrow_mut().handle(node::Input::LeaderGone { conn });
            }
        });
        self.task = Some(tokio::task::spawn_local(served));
    }

    /// A copy of its disk.
    pub fn copy_disk(&self) -> Disk {
        self.disk.borrow().clone()
    }

    /// Another disk is in its place, or an older copy of the same. While it is killed.
    pub fn put_disk(&self, disk: Disk) {
        *self.disk.borrow_mut() = disk;
    }

    pub async fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }
}

/// The monitors, shared by several front ends.
pub struct Monitors {
    pub map: RefCell<Arc<ClusterMap>>,
    leases: RefCell<LeaseTable>,
    started: Instant,
    pub away: Cell<bool>,
    pub releases: RefCell<Vec<(VolumeId, Generation, bool)>>,
    pub heal: RefCell<Vec<VolumeId>>,
    /// What they were told of losses.
    pub lost: RefCell<Vec<(VolumeId, Generation, NodeId, Incarnation)>>,
    /// What they answer; `None`: they refuse.
    pub noted: Cell<Option<bool>>,
}

impl Monitors {
    fn now(&self) -> Time {
        Time(self.started.elapsed().as_micros() as u64)
    }
    pub fn apply(&self, command: Command) -> Reply {
        let mut map = ClusterMap::clone(&self.map.borrow());
        let reply = map.apply(&command).unwrap();
        *self.map.borrow_mut() = Arc::new(map);
        reply
    }
    fn grant(&self, volume: VolumeId, holder: &Holder, above: Generation) -> Result<Granted, AttachError> {
        let map = self.map.borrow().clone();
        let now = self.now();
        let seen = self.leases.borrow_mut().ask(&map, volume, holder, now).map_err(|no| match no {
            NotNow::Missing => AttachError::Missing,
            NotNow::Busy { holder, retry_after } => {
                AttachError::Busy { holder, retry_after: Duration::from_micros(retry_after) }
            }
            NotNow::Kept(kept) => AttachError::Refused(kept.to_string()),
        })?;
        let grants = vec![Grant { volume, seen, above }];
        let Reply::Granted(granted) =
            self.apply(Command::GrantGenerations { grants, holder: holder.clone() })
        else {
            panic!()
        };
        let generation = *granted[0].as_ref().unwrap();
        self.leases.borrow_mut().granted(volume, generation, self.now());
        Ok(Granted {
            generation,
            sent: Instant::now(),
            lease: Duration::from_micros(LeaseConfig::default().lease),
        })
    }
}

/// One front end's door to the monitors.
pub struct Door {
    pub monitors: Rc<Monitors>,
    pub me: Holder,
}

impl Door {
    fn away(&self) -> Result<(), Unreachable> {
        if self.monitors.away.get() { Err(Unreachable("in a test".into())) } else { Ok(()) }
    }
}

fn soon<T: 'static>(value: T) -> LocalFuture<T> {
    Box::pin(async move {
        tokio::task::yield_now().await;
        value
    })
}

impl Cluster for Door {
    fn map(&self) -> Arc<ClusterMap> {
        self.monitors.map.borrow().clone()
    }
    fn map_changed(&self, seen: u64) -> LocalFuture<()> {
        let monitors = self.monitors.clone();
        Box::pin(async move {
            while monitors.map.borrow().layout == seen {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    }
    fn refresh(&self) {}
    fn holder(&self, volume: VolumeId) -> LocalFuture<Result<Option<Holder>, Unreachable>> {
        let holder = self.map().volumes.get(&volume).and_then(|it| it.holder.clone());
        soon(self.away().map(|()| holder))
    }
    fn attach(
        &self,
        volume: VolumeId,
        kind: HolderKind,
        above: Generation,
    ) -> LocalFuture<Result<Granted, AttachError>> {
        let holder = Holder { kind, ..self.me.clone() };
        let granted = self.away().map_err(AttachError::from);
        soon(granted.and_then(|()| self.monitors.grant(volume, &holder, above)))
    }
    fn renew(
        &self,
        volumes: Vec<(VolumeId, Generation)>,
        _: Vec<NodeReport>,
    ) -> LocalFuture<Result<Renewals, Unreachable>> {
        let (map, now) = (self.map(), self.monitors.now());
        let mut leases = self.monitors.leases.borrow_mut();
        let mut renew = |(volume, generation): (VolumeId, Generation)| -> (VolumeId, Renewal) {
            (volume, leases.renew(&map, &self.me, volume, generation, now))
        };
        soon(self.away().map(|()| Renewals {
            sent: Instant::now(),
            volumes: volumes.into_iter().map(&mut renew).collect(),
            differing: Vec::new(),
        }))
    }
    fn release(&self, volumes: Vec<(VolumeId, Generation, bool)>) -> LocalFuture<Result<(), Unreachable>> {
        let done = self.away();
        if done.is_ok() {
            for (volume, generation, _) in &volumes {
                let current = self.map().volumes.get(volume).is_some_and(|it| it.generation == *generation);
                if current {
                    self.monitors.leases.borrow_mut().released(*volume);
                }
            }
            self.monitors.releases.borrow_mut().extend(&volumes);
            self.monitors.apply(Command::Release { volumes });
        }
        soon(done)
    }
    fn lost_data(
        &self,
        volume: VolumeId,
        generation: Generation,
        node: NodeId,
        incarnation: Incarnation,
    ) -> LocalFuture<Result<bool, LostDataError>> {
        let answer = self.away().map_err(LostDataError::from).and_then(|()| {
            self.monitors.lost.borrow_mut().push((volume, generation, node, incarnation));
            self.monitors.noted.get().ok_or_else(|| LostDataError::Refused("in a test".into()))
        });
        soon(answer)
    }
    fn heal(&self, max: usize) -> LocalFuture<Result<Vec<(VolumeId, Granted)>, Unreachable>> {
        let holder = Holder { kind: HolderKind::Healer, ..self.me.clone() };
        let volumes: Vec<VolumeId> = self.monitors.heal.borrow_mut().drain(..).take(max).collect();
        let granted = volumes
            .into_iter()
            .filter_map(|volume| Some((volume, self.monitors.grant(volume, &holder, Generation(0)).ok()?)))
            .collect();
        soon(Ok(granted))
    }
    fn me(&self) -> Holder {
        self.me.clone()
    }
}

/// Three nodes and a volume of 16 objects of 64 KiB.
pub async fn cluster() -> (Rc<Monitors>, Vec<TestNode>, VolumeId) {
    cluster_with(1 << 20, 64 << 10).await
}

/// Three nodes and a volume of so many bytes in objects of so many.
pub async fn cluster_with(size: u64, object_size: u64) -> (Rc<Monitors>, Vec<TestNode>, VolumeId) {
    let mut map = ClusterMap::new();
    map.apply(&Command::Init { cluster_id: CLUSTER, name: "test".into() }).unwrap();
    let mut nodes = Vec::new();
    for i in 0..3u32 {
        // The port is known before the node is in the map.
        let address = listen(([127, 0, 0, 1], 0).into()).await.unwrap().local_addr().unwrap();
        let register = Command::RegisterNode {
            id: None,
            incarnation: Incarnation(100 + u64::from(i)),
            address,
            host: format!("host{i}"),
            class: None,
            size: 1 << 30,
            now: 0,
        };
        let Reply::Node(id) = map.apply(&register).unwrap() else { panic!() };
        assert_eq!(id, NodeId(i));
        nodes.push((id, address));
    }
    let (pool, domain, ack) = ("rbd".to_owned(), FailureDomain::Host, Ack::Majority);
    map.apply(&Command::CreatePool { name: pool.clone(), size: 3, pg_num: 4, domain, ack }).unwrap();
    let name = "disk0".to_owned();
    let create = Command::CreateVolume { name, pool, size, object_size, io_timeout: None };
    let Reply::Volume(volume) = map.apply(&create).unwrap() else { panic!() };
    let map = Arc::new(map);
    let mut started = Vec::new();
    for (id, address) in nodes {
        let disk = Rc::default();
        let mut node = TestNode { id, address, stuck: Rc::default(), disk, task: None, map: map.clone() };
        node.start().await;
        started.push(node);
    }
    let leases = LeaseTable::new(LeaseConfig::default(), &map, Time(0));
    let monitors = Monitors {
        map: RefCell::new(map),
        leases: RefCell::new(leases),
        started: Instant::now(),
        away: Cell::new(false),
        releases: RefCell::default(),
        heal: RefCell::default(),
        lost: RefCell::default(),
        noted: Cell::new(Some(false)),
    };
    (Rc::new(monitors), started, volume)
}
