//! Several monitors in one process, with real sockets and files: founding, losing the leader, adding, removing,
//! replacing, strangers, and a cluster from a backup.

use crate::common::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{Holder, HolderKind, LayoutReport, MapError, Out};
use trefoil_core::placement::PgConfig;
use trefoil_core::*;
use trefoil_monitor::backup::{self, Backup};
use trefoil_monitor::rpc::*;
use trefoil_monitor::*;
use trefoil_transport::{Hello, Role};

const LEASE: Duration = Duration::from_millis(3000);
const MARGIN: Duration = Duration::from_millis(400);

/// Ports that nothing listens on now.
fn addresses(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

fn config(dir: &Path, id: u64, address: SocketAddr) -> MonitorConfig {
    MonitorConfig {
        listen: address,
        data_dir: dir.join(format!("m{id}")),
        id,
        election_ms: 300,
        lease_ms: LEASE.as_millis() as u64,
        lease_margin_ms: MARGIN.as_millis() as u64,
        renew_ms: 200,
        node_timeout_ms: 2000,
        bootstrap: Some(Bootstrap::default()),
        ..MonitorConfig::default()
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn spawn(config: MonitorConfig) -> Running {
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::task::spawn_local(async move {
        let monitor = Monitor::start(config).await?;
        monitor
            .run(async {
                let _ = stopped.await;
            })
            .await
    });
    Running { stop, ended }
}

impl Running {
    async fn stop(self) {
        let _ = self.stop.send(());
        self.ended.await.unwrap().unwrap();
    }
}

struct Cluster {
    addresses: Vec<SocketAddr>,
    configs: Vec<MonitorConfig>,
    monitors: Vec<Option<Running>>,
}

impl Cluster {
    fn start(dir: &Path, count: usize) -> Cluster {
        let addresses = addresses(count);
        let peers: Vec<PeerConfig> =
            (1..).zip(&addresses).map(|(id, at)| PeerConfig { id, address: *at }).collect();
        let configs: Vec<_> = peers
            .iter()
            .map(|peer| MonitorConfig { peers: peers.clone(), ..config(dir, peer.id, peer.address) })
            .collect();
        let monitors = configs.iter().map(|config| Some(spawn(config.clone()))).collect();
        Cluster { addresses, configs, monitors }
    }

    fn client(&self, role: Role) -> MonitorClient {
        MonitorClient::new(self.addresses.clone(), Hello::new(role, [0; 16]))
    }

    /// The index of the one that leads.
    async fn leader(&self, client: &MonitorClient) -> usize {
        loop {
            if let Ok(seen) = client.monitors().await
                && let Some(leader) = seen.monitors.iter().find(|it| it.leader)
                && let Some(at) = self.addresses.iter().position(|address| *address == leader.address)
                && self.monitors[at].is_some()
                && seen.monitors.len() >= 2
            {
                return at;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop_one(&mut self, at: usize) {
        self.monitors[at].take().unwrap().stop().await;
    }

    fn restart(&mut self, at: usize) {
        assert!(self.monitors[at].is_none());
        self.monitors[at] = Some(spawn(self.configs[at].clone()));
    }

    async fn stop(mut self) {
        for monitor in self.monitors.iter_mut().filter_map(Option::take) {
            monitor.stop().await;
        }
    }
}

async fn nodes(client: &MonitorClient) {
    for n in 0..3 {
        register(client, n).await;
    }
}

/// As an administrator does it: again, until it is known that it is there.
async fn create(admin: &MonitorClient, name: &str) {
    loop {
        match admin.create_volume(name.to_owned(), "default".to_owned(), 1 << 30, 4 << 20, None).await {
            Ok(_) | Err(CallError::Answered(RpcError::Refused(MapError::Exists { .. }))) => return,
            Err(CallError::Answered(RpcError::Refused(error))) => panic!("{error}"),
            Err(_) => {}
        }
    }
}

async fn attach(client: &MonitorClient, name: &str, who: &Holder) -> Granted {
    loop {
        let asked = client.attach(VolumeKey::Name(name.to_owned()), who.clone(), Generation(0)).await;
        match asked.map(|it| it.0) {
            Ok(Attached::Granted(granted)) => return granted,
            Ok(Attached::Busy { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn three_monitors_lose_their_leader_and_no_change_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut cluster = Cluster::start(dir.path(), 3);
        let (admin, node, front) =
            (cluster.client(Role::Client), cluster.client(Role::StorageNode), cluster.client(Role::FrontEnd));
        nodes(&node).await;
        pool(&admin).await;
        create(&admin, "disk0").await;
        let who = holder("a", 1);
        let granted = attach(&front, "disk0", &who).await;
        for round in 0..3 {
            let leader = cluster.leader(&admin).await;
            let (stopped, made) = tokio::join!(cluster.stop_one(leader), async {
                for n in 0..10 {
                    create(&admin, &format!("v{round}-{n}")).await;
                }
                Instant::now()
            });
            let () = stopped;
            println!("round {round}: all made {:?} ago", made.elapsed());
            // The lease is the new leader's to know, and it is not lost.
            assert_eq!(renew(&front, &who, &granted).await, Renewal::Renewed { release_please: false });
            cluster.restart(leader);
        }
        let map = admin.get_map(0).await.unwrap().unwrap();
        let names: BTreeSet<_> = map.volumes.values().map(|it| it.name.clone()).collect();
        assert_eq!(names.len(), 31);
        assert_eq!(map.volumes.len(), 31, "none twice");
        let mut expected: BTreeSet<_> =
            (0..3).flat_map(|round| (0..10).map(move |n| format!("v{round}-{n}"))).collect();
        expected.insert("disk0".to_owned());
        assert_eq!(names, expected);
        // Everybody comes to the same map.
        for address in &cluster.addresses {
            let one = MonitorClient::new(vec![*address], Hello::new(Role::FrontEnd, [0; 16]));
            let seen = loop {
                match one.monitors().await {
                    Ok(seen) if seen.version == map.version => break seen,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            assert_eq!(seen.monitors.len(), 3);
        }
        cluster.stop().await;
    });
}

#[test]
fn what_people_have_said_outlives_a_leader() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut cluster = Cluster::start(dir.path(), 3);
        let (admin, node) = (cluster.client(Role::Client), cluster.client(Role::StorageNode));
        nodes(&node).await;
        pool(&admin).await;
        let refused = admin.mute("NODE_OUT".to_owned(), Duration::from_secs(60), String::new()).await;
        assert!(refused.unwrap_err().to_string().contains("does not apply now"));
        admin.set_nodes_out(vec![(NodeId(2), Some(Out::Administrator))]).await.unwrap();
        admin.mute("NODE_OUT".to_owned(), Duration::from_secs(60), "new disk".to_owned()).await.unwrap();
        for _ in 0..2 {
            node.died(Daemon::Node(NodeId(1)), 77).await.unwrap();
        }
        assert!(admin.died(Daemon::Node(NodeId(1)), 78).await.is_err(), "only daemons say so, of themselves");
        assert!(node.died(Daemon::Monitor(1), 78).await.is_err());
        let leader = cluster.leader(&admin).await;
        cluster.stop_one(leader).await;
        let status = loop {
            match admin.status().await {
                Ok(status) => break status,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let check = |code: &str| status.checks.iter().find(|check| check.code == code).unwrap();
        let muted = check("NODE_OUT").muted.as_ref().unwrap();
        assert!(muted.because == "new disk" && (30..=60).contains(&muted.left_s), "{muted:?}");
        assert_eq!(
            (check("DAEMON_DIED_RECENTLY").count, check("DAEMON_DIED_RECENTLY").details.len()),
            (1, 1)
        );
        assert_eq!(
            status.checks.last().map(|check| check.code.as_str()),
            Some("NODE_OUT"),
            "muted ones are last"
        );
        admin.acknowledge_deaths(vec![]).await.unwrap();
        node.died(Daemon::Node(NodeId(1)), 77).await.unwrap();
        let status = admin.status().await.unwrap();
        assert!(!status.checks.iter().any(|check| check.code == "DAEMON_DIED_RECENTLY"), "it is no news");
        cluster.stop().await;
    });
}

#[test]
fn a_new_leader_counts_every_lease_as_just_renewed() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut cluster = Cluster::start(dir.path(), 3);
        let (admin, front) = (cluster.client(Role::Client), cluster.client(Role::FrontEnd));
        nodes(&cluster.client(Role::StorageNode)).await;
        pool(&admin).await;
        create(&admin, "disk0").await;
        let granted = attach(&front, "disk0", &holder("a", 1)).await;
        // Most of the lease passes; the old leader would grant again soon.
        tokio::time::sleep(LEASE - Duration::from_millis(300)).await;
        let leader = cluster.leader(&admin).await;
        cluster.stop_one(leader).await;
        let gone = Instant::now();
        let next = attach(&front, "disk0", &holder("b", 2)).await;
        assert!(next.generation > granted.generation);
        let waited = gone.elapsed();
        assert!(waited >= LEASE + MARGIN, "granted {waited:?} after the old leader's end");
        assert_eq!(renew(&front, &holder("a", 1), &granted).await, Renewal::Lost);
        cluster.stop().await;
    });
}

#[test]
fn without_a_majority_nothing_is_changed_and_maps_are_still_followed() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut cluster = Cluster::start(dir.path(), 3);
        let admin = cluster.client(Role::Client);
        nodes(&cluster.client(Role::StorageNode)).await;
        pool(&admin).await;
        create(&admin, "disk0").await;
        let map = admin.get_map(0).await.unwrap().unwrap();
        // The leader is left alone, and does not hear of it: nobody tells it anything any more.
        let leader = cluster.leader(&admin).await;
        let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
        for at in &others {
            cluster.stop_one(*at).await;
        }
        let only = vec![cluster.addresses[leader]];
        let last = MonitorClient::new(only.clone(), Hello::new(Role::FrontEnd, [0; 16]));
        let node = MonitorClient::new(only, Hello::new(Role::StorageNode, [0; 16]));
        let asked = last
            .renew(holder("a", 1), vec![(VolumeId(1), Generation(1))], vec![], Duration::from_secs(3))
            .await;
        assert!(
            matches!(asked, Err(CallError::Answered(RpcError::NotLeading { .. }))),
            "a lease is not its own to renew: {asked:?}"
        );
        let attach = last.attach(VolumeKey::Name("disk0".to_owned()), holder("a", 1), Generation(0));
        let asked = tokio::time::timeout(Duration::from_secs(3), attach).await;
        assert!(!matches!(asked, Ok(Ok(_))), "nor to grant: {asked:?}");
        let beat = Heartbeat { node: NodeId(0), incarnation: Incarnation(100), ..Heartbeat::default() };
        let asked = tokio::time::timeout(Duration::from_secs(2), node.heartbeat(beat)).await;
        assert!(!matches!(asked, Ok(Ok(_))), "the nodes must look for another one");
        // What is there, to those who have less; never an older one.
        let older = last.wait_map(map.layout - 1, Duration::from_secs(3)).await.unwrap().unwrap();
        assert!(older.layout >= map.layout);
        assert_eq!(last.wait_map(map.layout + 5, Duration::from_millis(100)).await.unwrap(), None);
        let asked = tokio::time::timeout(Duration::from_secs(3), last.get_map(0)).await;
        assert!(!matches!(asked, Ok(Ok(_))), "the map as it is now is nobody's to know: {asked:?}");
        let seen = last.monitors().await.unwrap();
        assert!(!seen.leads && seen.monitors.iter().all(|it| it.up.is_none()));
        cluster.restart(others[0]);
        create(&admin, "after").await;
        cluster.stop().await;
    });
}

/// Two of three are away for longer than a lease, and nobody can renew. When they are back, the same monitor may lead in
/// the same reign: volumes that were attached all the time are not given to a healer that asks first.
#[test]
fn holders_keep_their_volumes_when_a_majority_was_away_for_long() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut cluster = Cluster::start(dir.path(), 3);
        let (admin, node, front) =
            (cluster.client(Role::Client), cluster.client(Role::StorageNode), cluster.client(Role::FrontEnd));
        nodes(&node).await;
        pool(&admin).await;
        create(&admin, "disk0").await;
        let who = holder("a", 1);
        let granted = attach(&front, "disk0", &who).await;
        let leader = cluster.leader(&admin).await;
        let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
        for at in &others {
            cluster.stop_one(*at).await;
        }
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(800)).await;
        others.iter().for_each(|at| cluster.restart(*at));
        let healer = Holder { kind: HolderKind::Healer, ..holder("node.0", 7) };
        let work = loop {
            match node.heal_work(healer.clone(), 100).await {
                Ok((work, _)) => break work,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        println!("leader before: {leader}, after: {}", cluster.leader(&admin).await);
        assert_eq!(work, vec![]);
        assert_eq!(renew(&front, &who, &granted).await, Renewal::Renewed { release_please: false });
        cluster.stop().await;
    });
}

#[test]
fn monitors_are_added_replaced_and_removed_while_the_cluster_runs() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut cluster = Cluster::start(dir.path(), 3);
        let admin = cluster.client(Role::Client);
        nodes(&cluster.client(Role::StorageNode)).await;
        pool(&admin).await;
        create(&admin, "disk0").await;
        let fourth = addresses(1)[0];
        let told = admin.add_monitor(4, fourth, None).await.unwrap_err().to_string();
        assert!(told.contains("cannot be asked who it is"), "{told}");
        let join = cluster.addresses.clone();
        let joining = MonitorConfig { join, ..config(dir.path(), 4, fourth) };
        cluster.configs.push(joining.clone());
        cluster.addresses.push(fourth);
        cluster.monitors.push(Some(spawn(joining)));
        let mut told = String::new();
        for _ in 0..100 {
            match admin.add_monitor(5, fourth, None).await {
                Err(error) => told = error.to_string(),
                Ok(()) => panic!("it has another number"),
            }
            if told.contains("has id 4") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(told.contains("has id 4, not 5"), "{told}");
        admin.add_monitor(4, fourth, Some(1)).await.unwrap();
        admin.add_monitor(4, fourth, Some(1)).await.unwrap();
        let seen = admin.monitors().await.unwrap();
        let ids: Vec<u64> = seen.monitors.iter().map(|it| it.id).collect();
        assert_eq!(ids, [2, 3, 4]);
        assert!(seen.monitors.iter().all(|it| it.voter));
        // The one that was replaced finds out, and ends.
        let first = cluster.monitors[0].take().unwrap();
        let ended = first.ended.await.unwrap().unwrap_err().to_string();
        assert!(ended.contains("was removed from the cluster"), "{ended}");
        // The new one counts: with it and one other there is a majority.
        let leader = cluster.leader(&admin).await;
        cluster.stop_one(leader).await;
        create(&admin, "after").await;
        let left: Vec<u64> = ids.iter().copied().filter(|id| *id != leader as u64 + 1).collect();
        let told = admin.remove_monitor(left[0], false).await.unwrap_err().to_string();
        assert!(told.contains("no majority"), "{told}");
        cluster.restart(leader);
        // Down to one, the leader itself included.
        for _ in 0..2 {
            let leader = cluster.leader(&admin).await as u64 + 1;
            loop {
                match admin.remove_monitor(leader, false).await {
                    Ok(()) => break,
                    Err(CallError::Answered(RpcError::Refused(error)))
                        if error.to_string().contains("there is no monitor") =>
                    {
                        break;
                    }
                    Err(error) => println!("{error}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if admin.monitors().await.is_ok_and(|seen| seen.monitors.len() == 1) {
                break;
            }
        }
        create(&admin, "last").await;
        let map = admin.get_map(0).await.unwrap().unwrap();
        assert_eq!(map.volumes.len(), 3);
    });
}

#[test]
fn a_monitor_that_lost_its_directory_and_strangers_are_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let mut cluster = Cluster::start(dir.path(), 3);
        let admin = cluster.client(Role::Client);
        nodes(&cluster.client(Role::StorageNode)).await;
        pool(&admin).await;
        create(&admin, "disk0").await;
        // The founder, of all: it must not found another cluster.
        cluster.stop_one(0).await;
        std::fs::remove_dir_all(&cluster.configs[0].data_dir).unwrap();
        cluster.restart(0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let one = MonitorClient::new(vec![cluster.addresses[0]], Hello::new(Role::Client, [0; 16]));
        let seen = one.monitors().await.unwrap();
        assert_eq!((seen.monitors.len(), seen.log), (0, 0), "it was told nothing: {seen:?}");
        assert_eq!(Some(seen.cluster_id), admin.cluster_id());
        let told = admin.add_monitor(1, cluster.addresses[0], None).await.unwrap_err().to_string();
        assert!(told.contains("with another directory"), "{told}");
        admin.remove_monitor(1, false).await.unwrap();
        admin.add_monitor(1, cluster.addresses[0], None).await.unwrap();
        assert_eq!(admin.monitors().await.unwrap().monitors.len(), 3);
        create(&admin, "after").await;

        // Another cluster's name.
        let strange = MonitorConfig {
            join: vec![cluster.addresses[1]],
            cluster_name: "other".to_owned(),
            ..config(dir.path(), 8, addresses(1)[0])
        };
        let told = Monitor::start(strange).await.err().unwrap().to_string();
        assert!(told.contains("is of cluster \"trefoil\", this one of \"other\""), "{told}");
        // Another cluster of the same name: its monitor is not taken in.
        let other = config(dir.path(), 9, addresses(1)[0]);
        let at = other.listen;
        let other = spawn(other);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let told = admin.add_monitor(9, at, None).await.unwrap_err().to_string();
        assert!(told.contains("another cluster"), "{told}");
        other.stop().await;
        cluster.stop().await;
    });
}

#[test]
fn a_cluster_from_an_old_backup_hands_out_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let (map, last) = on_runtime(async {
        let cluster = Cluster::start(dir.path(), 3);
        let (admin, front) = (cluster.client(Role::Client), cluster.client(Role::FrontEnd));
        nodes(&cluster.client(Role::StorageNode)).await;
        pool(&admin).await;
        create(&admin, "disk0").await;
        attach(&front, "disk0", &holder("a", 1)).await;
        let map = admin.get_map(0).await.unwrap().unwrap();
        backup::write(&file, &Backup { taken: 1, from: String::new(), map: (*map).clone() }).unwrap();
        // After the backup: grants and volumes that it does not know.
        let mut last = Generation(0);
        for _ in 0..5 {
            last = attach(&front, "disk0", &holder("a", 1)).await.generation;
        }
        create(&admin, "later").await;
        let map = admin.get_map(0).await.unwrap().unwrap();
        cluster.stop().await;
        (map, last)
    });
    on_runtime(async {
        let at = addresses(1)[0];
        let restored = dir.path().join("restored");
        let read = backup::read(&file).unwrap();
        backup::restore(&read, &restored, 7, at, (11, 12)).unwrap();
        let config = MonitorConfig { data_dir: restored, ..config(dir.path(), 7, at) };
        let monitor = spawn(config);
        let admin = MonitorClient::new(vec![at], Hello::new(Role::Client, map.cluster_id));
        let front = MonitorClient::new(vec![at], Hello::new(Role::FrontEnd, map.cluster_id));
        let start = Instant::now();
        let after = admin.get_map(0).await.unwrap().unwrap();
        assert_eq!(after.cluster_id, map.cluster_id);
        assert!(after.layout > map.layout, "whoever has the later map of before takes the new one");
        let (later, _) = map.volume_named("later").unwrap();
        assert!(!after.is_deleted(later), "and deletes nothing");
        // Until enough nodes have said where placement groups live, nobody gets anything.
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(200)).await;
        let asked = front.attach(VolumeKey::Name("disk0".to_owned()), holder("b", 2), Generation(0)).await;
        assert!(matches!(asked.unwrap().0, Attached::Busy { .. }));
        let status = admin.status().await.unwrap();
        assert!(status.checks.iter().any(|check| check.code == "LAYOUT_UNCHECKED"), "{:?}", status.checks);
        let node = MonitorClient::new(vec![at], Hello::new(Role::StorageNode, map.cluster_id));
        let (pg, moved) = map.pgs.iter().map(|(pg, config)| (pg, config.config())).next().unwrap();
        // A node that was made after the backup, and is a member by now.
        let stranger = NodeId(3);
        let config = PgConfig::simple(Epoch(4), vec![moved.new[0], moved.new[1], stranger]);
        let report = |pgs| LayoutReport { lost: false, pgs };
        for n in 0..3 {
            let (lists, layout) =
                node.node_work(NodeId(n), Incarnation(100 + u64::from(n)), Duration::ZERO).await.unwrap();
            assert!(layout && lists.is_empty());
            let said = report(vec![(pg, Epoch(3), Some(config.clone()))]);
            node.layout(NodeId(n), Incarnation(100 + u64::from(n)), said).await.unwrap();
        }
        loop {
            let status = admin.status().await.unwrap();
            let check = status.checks.iter().find(|check| check.code == "LAYOUT_UNCHECKED").unwrap();
            if check.details[0].contains("node.3 is a member") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let address = ([127, 0, 0, 1], 7003).into();
        let host = "host3".to_owned();
        let again = node.register_node(Some(stranger), Incarnation(103), address, host, None, 8 << 30);
        assert_eq!(again.await.unwrap(), stranger, "it keeps its number");
        node.layout(stranger, Incarnation(103), report(vec![(pg, Epoch(4), None)])).await.unwrap();
        let settled = loop {
            let map = admin.get_map(0).await.unwrap().unwrap();
            if !map.restored.unchecked {
                break map;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let found = settled.members(pg).unwrap();
        assert_eq!(found.new, config.new);
        assert!(found.epoch > Epoch(1 << 32), "in an epoch that nobody has heard of");
        let granted = attach(&front, "disk0", &holder("b", 2)).await;
        assert!(granted.generation > last, "{} after {last}", granted.generation);
        assert!(start.elapsed() >= LEASE, "somebody may still have a lease");
        // 6.5: a node names a promise that is above all that is known.
        let promise = Generation(granted.generation.0 + 1000);
        let asked = front.attach(VolumeKey::Name("disk0".to_owned()), holder("b", 2), promise).await;
        match asked.unwrap().0 {
            Attached::Granted(granted) => assert!(granted.generation > promise),
            busy => panic!("{busy:?}"),
        }
        create(&admin, "new").await;
        let after = admin.get_map(0).await.unwrap().unwrap();
        assert!(after.volume_named("new").unwrap().0 > later);
        monitor.stop().await;
    });
}

#[test]
fn the_whole_state_comes_to_a_new_monitor_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let at = addresses(1)[0];
        // More changes than the log keeps, so that the newcomer needs the snapshot.
        let alone = spawn(MonitorConfig {
            snapshot_entries: 200,
            snapshot_part_bytes: 700,
            ..config(dir.path(), 1, at)
        });
        let admin = MonitorClient::new(vec![at], Hello::new(Role::Client, [0; 16]));
        let node = MonitorClient::new(vec![at], Hello::new(Role::StorageNode, [0; 16]));
        nodes(&node).await;
        pool(&admin).await;
        for n in 0..260 {
            create(&admin, &format!("v{n}")).await;
        }
        let second = addresses(1)[0];
        let joined = spawn(MonitorConfig { join: vec![at], ..config(dir.path(), 2, second) });
        for _ in 0..100 {
            match admin.add_monitor(2, second, None).await {
                Ok(()) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        let version = admin.get_map(0).await.unwrap().unwrap().version;
        let other = MonitorClient::new(vec![second], Hello::new(Role::Client, [0; 16]));
        while other.monitors().await.unwrap().version < version {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let seen = admin.monitors().await.unwrap();
        assert!(seen.monitors.iter().all(|it| it.voter) && seen.monitors.len() == 2);
        joined.stop().await;
        alone.stop().await;
    });
}

#[test]
fn a_monitor_that_hangs_is_left_for_another_one() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let at = addresses(1)[0];
        let monitor = spawn(config(dir.path(), 1, at));
        let admin = MonitorClient::new(vec![at], Hello::new(Role::Client, [0; 16]));
        let cluster_id = admin.get_map(0).await.unwrap().unwrap().cluster_id;
        // It lets in, and says nothing more: a process that was stopped.
        let listener = trefoil_transport::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let silent = listener.local_addr().unwrap();
        let policy = trefoil_transport::Policy {
            hello: Hello::new(Role::Monitor, cluster_id),
            roles: &[Role::FrontEnd],
            unknown_cluster: true,
        };
        let options = trefoil_transport::ServeOptions::new(policy);
        tokio::task::spawn_local(trefoil_transport::serve(listener, options, |mut connected| async move {
            let mut frames = Vec::new();
            while connected.reader.read_batch(&mut frames).await.is_ok() {
                frames.clear();
            }
        }));
        let client = MonitorClient::new(vec![silent, at], Hello::new(Role::FrontEnd, [0; 16]));
        let start = Instant::now();
        // The longest of all waits.
        assert!(client.wait_map(0, Duration::from_secs(20)).await.unwrap().is_some());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(client.address(), Some(at));
        // A caller that gives up each time before that is found out does not hide it.
        let client = MonitorClient::new(vec![silent, at], Hello::new(Role::FrontEnd, [0; 16]));
        let start = Instant::now();
        while tokio::time::timeout(Duration::from_millis(900), client.get_map(0)).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(8));
        }
        monitor.stop().await;
    });
}

#[test]
fn clients_that_take_every_connection_do_not_keep_the_monitors_apart() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let at = addresses(1)[0];
        let monitor = spawn(MonitorConfig { connections_max: 2, ..config(dir.path(), 1, at) });
        let clients: Vec<_> =
            (0..3).map(|_| MonitorClient::new(vec![at], Hello::new(Role::Client, [0; 16]))).collect();
        clients[0].get_map(0).await.unwrap();
        clients[1].get_map(0).await.unwrap();
        let third = tokio::time::timeout(Duration::from_secs(1), clients[2].get_map(0)).await;
        assert!(third.is_err(), "there is no place for a third");
        let second = addresses(1)[0];
        let joined = spawn(MonitorConfig { join: vec![at], ..config(dir.path(), 2, second) });
        for _ in 0..100 {
            match clients[0].add_monitor(2, second, None).await {
                Ok(()) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        assert_eq!(clients[0].monitors().await.unwrap().monitors.len(), 2);
        joined.stop().await;
        monitor.stop().await;
    });
}
