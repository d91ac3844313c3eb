//! Placement groups on the move, as a monitor and made-up nodes see it: what is asked, what moves, what an
//! administrator sees and says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use trefoil_core::map::{ClusterMap, MoveLimits};
use trefoil_core::message::{GroupList, ListedGroup};
use trefoil_core::*;
use trefoil_monitor::rpc::*;
use trefoil_monitor::*;
use trefoil_transport::{Hello, Role};

fn config(dir: &Path) -> MonitorConfig {
    MonitorConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: dir.to_owned(),
        node_timeout_ms: 3000,
        bootstrap: Some(Bootstrap { pg_num: 8, ..Bootstrap::default() }),
        ..MonitorConfig::default()
    }
}

fn on_runtime<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs")
    })
}

/// What the made-up nodes answer.
#[derive(Default)]
struct Nodes {
    /// Groups that each says it has, whatever the placement group.
    groups: RefCell<BTreeMap<NodeId, Vec<ListedGroup>>>,
    /// Does not answer.
    silent: Cell<Option<NodeId>>,
}

fn incarnation(node: NodeId) -> Incarnation {
    Incarnation(100 + u64::from(node.0))
}

/// A node that beats and answers, for ever.
async fn node(at: SocketAddr, id: NodeId, nodes: Rc<Nodes>) {
    let client = MonitorClient::new(vec![at], Hello::new(Role::StorageNode, [0; 16]));
    let address = ([127, 0, 0, 1], 7000 + id.0 as u16).into();
    let host = format!("host{}", id.0);
    let given = client.register_node(None, incarnation(id), address, host, None, 8 << 30).await;
    assert_eq!(given.unwrap(), id);
    loop {
        let beat = Heartbeat {
            node: id,
            incarnation: incarnation(id),
            bytes_total: 1 << 30,
            bytes_used: 1 << 20,
            ..Heartbeat::default()
        };
        client.heartbeat(beat).await.unwrap();
        let (lists, layout) =
            client.node_work(id, incarnation(id), Duration::from_millis(500)).await.unwrap();
        assert!(!layout, "nothing was restored");
        for request in lists {
            if nodes.silent.get() == Some(id) {
                continue;
            }
            let groups = nodes.groups.borrow().get(&id).cloned().unwrap_or_default();
            let list = GroupList { pg: request.pg, epoch: request.epoch, groups, amnesia: false };
            client.listed(id, incarnation(id), list).await.unwrap();
        }
    }
}

struct Test {
    admin: MonitorClient,
    at: SocketAddr,
    nodes: Rc<Nodes>,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
    others: Vec<tokio::task::JoinHandle<()>>,
}

impl Test {
    /// Three nodes and the pool.
    async fn start(dir: &Path) -> Test {
        let monitor = Monitor::start(config(dir)).await.unwrap();
        let at = monitor.address();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::task::spawn_local(monitor.run(async {
            let _ = stopped.await;
        }));
        let admin = MonitorClient::new(vec![at], Hello::new(Role::Client, [0; 16]));
        let mut test = Test { admin, at, nodes: Rc::default(), stop, ended, others: Vec::new() };
        for n in 0..3 {
            test.add(n).await;
        }
        test.until(|map| !map.pools.is_empty()).await;
        test
    }

    async fn add(&mut self, n: u32) {
        self.others.push(tokio::task::spawn_local(node(self.at, NodeId(n), self.nodes.clone())));
        self.until(|map| map.nodes.contains_key(&NodeId(n))).await;
    }

    async fn until(&self, is_so: impl Fn(&ClusterMap) -> bool) -> std::sync::Arc<ClusterMap> {
        loop {
            let map = self.admin.get_map(0).await.unwrap().unwrap();
            if is_so(&map) {
                return map;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        for other in &self.others {
            assert!(!other.is_finished(), "a node has failed");
            other.abort();
        }
        let _ = self.stop.send(());
        self.ended.await.unwrap().unwrap();
    }
}

fn misplaced(map: &ClusterMap) -> usize {
    let mut placer = map.placer();
    let mut is_so = |pg: PgId, nodes: &[NodeId]| {
        let wanted = placer.place(pg.pool, &map.pools[&pg.pool], pg.pg).unwrap();
        wanted.iter().any(|node| !nodes.contains(node))
    };
    map.pgs.iter().filter(|(pg, config)| is_so(*pg, config.new)).count()
}

#[test]
fn a_new_node_gets_its_share_by_what_nodes_answer_and_one_that_is_out_loses_it() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut test = Test::start(dir.path()).await;
        test.add(3).await;
        let there = |map: &ClusterMap| map.moves.active.is_empty() && misplaced(map) == 0;
        let map = test.until(|map| there(map) && map.pgs.iter().any(|(_, pg)| pg.epoch > Epoch(1))).await;
        assert!(map.pgs.iter().any(|(_, pg)| pg.takes_part(NodeId(3))));
        test.admin.set_nodes_out(vec![(NodeId(0), Some(map::Out::Administrator))]).await.unwrap();
        let map = test.until(there).await;
        assert!(map.pgs.iter().all(|(_, pg)| !pg.takes_part(NodeId(0))));
        test.stop().await;
    });
}

#[test]
fn a_move_waits_for_the_old_set_and_the_new_node_and_can_be_held_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut test = Test::start(dir.path()).await;
        let size = 1 << 30;
        let made = test.admin.create_volume("disk0".to_owned(), "default".to_owned(), size, 4 << 20, None);
        let volume = made.await.unwrap();
        let limits = MoveLimits { cluster: 1, node: 1, while_degraded: false };
        test.admin.set_move_limits(limits).await.unwrap();
        assert!(test.admin.set_move_limits(MoveLimits { cluster: 0, ..limits }).await.is_err());
        // All of the old set name a group; the new node lacks it.
        let ballot = Ballot::new(Generation(1), 0).unwrap();
        let group = |opened, behind| ListedGroup {
            volume,
            promised: ballot,
            settled: ballot,
            opened: Epoch(opened),
            behind,
            lost: false,
        };
        for n in 0..3 {
            test.nodes.groups.borrow_mut().insert(NodeId(n), vec![group(1, 0)]);
        }
        test.nodes.groups.borrow_mut().insert(NodeId(3), vec![group(1, 7)]);
        test.add(3).await;
        let status = loop {
            let status = test.admin.moves().await.unwrap();
            if status.moves.iter().any(|it| it.answered == 3 && it.behind == Some(7)) {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!((status.moves.len(), status.limits), (1, limits));
        let it = &status.moves[0];
        assert_eq!((it.to, it.epoch, it.groups, it.lacking, it.behind_max), (NodeId(3), Epoch(2), 1, 1, 7));
        // Whoever leads the volume is to open it: nobody does, so a healer gets it.
        let holder = map::Holder { name: "healer".to_owned(), boot: 1, kind: map::HolderKind::Healer };
        let front = test.admin_as(Role::FrontEnd);
        let work = loop {
            let (work, _) = front.heal_work(holder.clone(), 8).await.unwrap();
            if !work.is_empty() {
                break work;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(work.iter().map(|it| it.volume).collect::<Vec<_>>(), [volume]);

        // What nodes have is shown as they say it, and a node that says nothing as not known.
        test.nodes.silent.set(Some(NodeId(1)));
        let shown = test.admin.pg(it.pg).await.unwrap();
        assert_eq!(shown.config.epoch, Epoch(2));
        assert_eq!(shown.copies.len(), 4);
        for (node, groups) in shown.copies {
            match node {
                NodeId(1) => assert_eq!(groups, None),
                NodeId(3) => assert_eq!(groups, Some(vec![group(1, 7)])),
                _ => assert_eq!(groups, Some(vec![group(1, 0)])),
            }
        }
        test.nodes.silent.set(None);
        assert!(test.admin.pg(PgId { pg: 99, ..it.pg }).await.is_err());

        // Undone, it is where it was, and stays there while others go on.
        test.admin.undo_move(it.pg).await.unwrap();
        let map = test.until(|map| !map.moves.active.is_empty()).await;
        assert!(map.moves.held.contains(&it.pg) && !map.moves.active.contains_key(&it.pg));
        assert!(!map.members(it.pg).unwrap().takes_part(NodeId(3)));
        // Paused, it stays where it is, whatever nodes say.
        test.admin.pause_moves(true).await.unwrap();
        test.nodes.groups.borrow_mut().insert(NodeId(3), vec![group(50, 0)]);
        let before = test.admin.get_map(0).await.unwrap().unwrap().pgs.clone();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert!(test.admin.get_map(0).await.unwrap().unwrap().pgs == before);
        let status = test.admin.status().await.unwrap();
        assert!(status.checks.iter().any(|check| check.code == "MOVES_PAUSED"), "{:?}", status.checks);
        test.admin.pause_moves(false).await.unwrap();
        test.until(|map| map.moves.active.is_empty() && misplaced(map) == 0).await;
        test.stop().await;
    });
}

impl Test {
    fn admin_as(&self, role: Role) -> MonitorClient {
        MonitorClient::new(vec![self.at], Hello::new(role, [0; 16]))
    }
}
