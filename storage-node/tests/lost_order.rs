//! A node that leaders have found to have lost writes (5.9): told so by the monitors, it has no vote from then on, also
//! where it was away when they were told. A monitor and the real daemon on loopback; the test is the front end.

use bytes::Bytes;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use trefoil_core::map::{Holder, HolderKind};
use trefoil_core::message::{FromNode, ToNode};
use trefoil_core::wire::messages::Message;
use trefoil_core::*;
use trefoil_monitor::rpc::{LostOrder, VolumeKey};
use trefoil_monitor::{Attached, Bootstrap, Monitor, MonitorClient, MonitorConfig};
use trefoil_storage_node::{NodeConfig, Ready, run};
use trefoil_transport::{Connected, Expect, Hello, Options, Role, connect};

/// The daemon on a thread of its own.
struct Running {
    ready: Ready,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    async fn start(dir: &Path, monitor: SocketAddr) -> Running {
        let config = NodeConfig {
            device: dir.join("node"),
            state_dir: dir.join("node.state"),
            listen: "127.0.0.1:0".parse().unwrap(),
            monitors: vec![monitor],
            host: "host-0".to_owned(),
            format_if_missing: true,
            size: Some(1 << 30),
            metrics_listen: "off".parse().unwrap(),
            ..NodeConfig::default()
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let serving = |it: Ready| assert!(ready.send(it).is_ok(), "the test has given up");
            runtime.block_on(run(config, serving, async { drop(stopped.await) })).unwrap();
        });
        let ready = tokio::time::timeout(Duration::from_secs(30), is_ready).await;
        let ready = ready.expect("the node does not start").unwrap();
        Running { ready, stop: Some(stop), thread: Some(thread) }
    }
    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Test {
    admin: MonitorClient,
    front_end: MonitorClient,
    monitor: SocketAddr,
    node: Running,
    me: Holder,
    loss: LostOrder,
    incarnation: Incarnation,
    group: GroupId,
    epoch: Epoch,
}

impl Test {
    /// A volume that the test leads.
    async fn new(dir: &Path) -> Test {
        let config = MonitorConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: dir.join("monitor"),
            bootstrap: Some(Bootstrap { pg_num: 1, ..Bootstrap::default() }),
            ..MonitorConfig::default()
        };
        let monitor = Monitor::start(config).await.unwrap();
        let address = monitor.address();
        tokio::task::spawn_local(monitor.run(std::future::pending()));
        let client = |role| MonitorClient::new(vec![address], Hello::new(role, [0; 16]));
        let (nodes, admin) = (client(Role::StorageNode), client(Role::Client));
        for n in 1..3u64 {
            let at = ([127, 0, 0, 1], 1).into();
            let other = nodes.register_node(None, Incarnation(n), at, format!("host-{n}"), None, 1 << 30);
            other.await.unwrap();
        }
        let node = Running::start(dir, address).await;
        let mut map = admin.get_map(0).await.unwrap().unwrap();
        while map.pools.is_empty() {
            map = admin.wait_map(map.layout, Duration::from_secs(10)).await.unwrap().expect("a pool");
        }
        let incarnation = map.nodes[&node.ready.node].incarnation;
        let created = admin.create_volume("disk0".to_owned(), "default".to_owned(), 1 << 30, 4 << 20, None);
        let volume = created.await.unwrap();
        let me = Holder { name: "test".to_owned(), boot: 1, kind: HolderKind::FrontEnd };
        let front_end = client(Role::FrontEnd);
        let asked = front_end.attach(VolumeKey::Id(volume), me.clone(), Generation(0)).await.unwrap().0;
        let Attached::Granted(granted) = asked else { panic!("nobody has it") };
        let (pg, known) = map.pgs.iter().next().unwrap();
        let (group, epoch) = (GroupId { volume, pg }, known.epoch);
        let loss = (volume, granted.generation);
        Test { admin, front_end, monitor: address, node, me, loss, incarnation, group, epoch }
    }

    /// Opens the group as its leader would, with a ballot of that round; true if the node says that it has no vote.
    async fn has_lost(&self, round: u64) -> bool {
        let mut hello = Hello::new(Role::FrontEnd, self.front_end.cluster_id().unwrap());
        hello.incarnation = 1;
        let expect = Expect { role: Role::StorageNode, identity: None };
        let ballot = Ballot::new(self.loss.1, round).unwrap();
        let open: ToNode<Bytes> = ToNode::Open { group: self.group, ballot, epoch: self.epoch };
        for _ in 0..200 {
            let connected = connect(self.node.ready.address, hello, &expect, Options::default()).await;
            let Connected { mut reader, sender, .. } = connected.unwrap();
            sender.push(open.kind(), |meta| open.encode_meta(meta), open.payload()).unwrap();
            sender.flush();
            let mut frames = Vec::new();
            if reader.read_batch(&mut frames).await.is_ok() {
                let frame = frames.remove(0);
                match FromNode::<Bytes>::decode(frame.kind, &frame.meta, frame.payload).unwrap() {
                    FromNode::Opened { lost, .. } => return lost,
                    FromNode::OpenRefused { .. } => {} // it has not heard of the placement group yet
                    other => panic!("{other:?}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the group is never opened");
    }

    async fn tell(&self) -> bool {
        let node = self.node.ready.node;
        self.front_end.lost_data(self.me.clone(), self.loss, node, self.incarnation).await.unwrap()
    }

    async fn tell_until_noted(&self) {
        for _ in 0..300 {
            if self.tell().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the node takes no note");
    }

    async fn health_names(&self, code: &str) {
        for _ in 0..300 {
            if self.admin.status().await.unwrap().checks.iter().any(|check| check.code == code) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{code} is never said");
    }
}

fn on_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(120), test).await.expect("the test hangs");
    });
}

#[test]
fn a_node_that_is_told_of_a_loss_has_no_vote_and_says_so_when_that_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut test = Test::new(dir.path()).await;
        assert!(!test.has_lost(0).await);
        test.tell_until_noted().await;
        assert!(test.has_lost(1).await);
        test.health_names("NODE_LOST_STATE").await;
        // For good, and its next life is told nothing again.
        test.node.stop();
        test.node = Running::start(dir.path(), test.monitor).await;
        assert!(test.has_lost(2).await);
        // A leader that did not get the answer: this life has noted nothing yet, and does.
        test.tell_until_noted().await;
        assert!(test.has_lost(3).await);
    });
}

#[test]
fn a_node_that_was_away_when_it_was_told_of_has_no_vote_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut test = Test::new(dir.path()).await;
        assert!(!test.has_lost(0).await);
        test.node.stop();
        assert!(!test.tell().await);
        test.node = Running::start(dir.path(), test.monitor).await;
        // Its first answer already: nobody counts it in between.
        assert!(test.has_lost(1).await);
        test.tell_until_noted().await;
        test.health_names("NODE_LOST_STATE").await;
    });
}
