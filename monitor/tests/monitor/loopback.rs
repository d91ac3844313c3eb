//! A monitor on loopback with real clients: what was answered survives, one holder at a time, bad input
//! hurts nobody.

use crate::common::*;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use trefoil_core::leader::report::{NodeReport, NodeTrouble, REPORT_NODES_MAX};
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{Ack, FailureDomain, Holder, HolderKind};
use trefoil_core::*;
use trefoil_monitor::health::{CHECKS, Health};
use trefoil_monitor::rpc::*;
use trefoil_monitor::*;
use trefoil_transport::{Expect, Hello, Options, Role};

fn config(dir: &Path) -> MonitorConfig {
    crate::common::config(dir, 700)
}

async fn try_attach(client: &MonitorClient, who: &Holder) -> Attached {
    let volume = VolumeKey::Name("disk0".to_owned());
    let asked = client.attach(volume, who.clone(), Generation(0)).await;
    asked.unwrap().0
}

async fn attach(client: &MonitorClient, who: &Holder) -> Granted {
    match try_attach(client, who).await {
        Attached::Granted(granted) => granted,
        busy => panic!("{busy:?}"),
    }
}

fn renewed(release_please: bool) -> Renewal {
    Renewal::Renewed { release_please }
}

#[test]
fn a_restart_keeps_everything_and_grants_above() {
    let dir = tempfile::tempdir().unwrap();
    let (before, generation) = on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let granted = attach(&running.client(Role::FrontEnd), &holder("a", 1)).await;
        assert_eq!(granted.generation, Generation(1));
        let map = running.client(Role::Client).get_map(0).await.unwrap().unwrap();
        running.stop().await;
        (map, granted.generation)
    });
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let map = running.client(Role::Client).get_map(0).await.unwrap().unwrap();
        assert_eq!(*map, *before);
        // The holder goes on where it was; another one waits for a whole lease.
        let front_end = running.client(Role::FrontEnd);
        let a = holder("a", 1);
        let mut granted = match try_attach(&front_end, &holder("a", 2)).await {
            Attached::Busy { holder, .. } => {
                assert_eq!(holder, a);
                let again = attach(&front_end, &a).await;
                assert!(again.generation > generation, "never granted twice");
                again
            }
            granted => panic!("{granted:?}"),
        };
        assert_eq!(renew(&front_end, &a, &granted).await, renewed(false));
        granted.generation = generation;
        assert_eq!(renew(&front_end, &a, &granted).await, Renewal::Lost);
        running.stop().await;
    });
}

#[test]
fn whatever_was_answered_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<String> = Vec::new();
    for round in 0..4 {
        let name = format!("disk-{round}");
        let (map, generation) = on_runtime(async {
            let running = Running::start(config(dir.path())).await;
            if round == 0 {
                cluster(&running).await;
            }
            let admin = running.client(Role::Client);
            let map = admin.get_map(0).await.unwrap().unwrap();
            for name in &names {
                assert!(map.volume_named(name).is_some(), "{name} is gone");
            }
            let id = create(&admin, &name).await;
            let front_end = running.client(Role::FrontEnd);
            let me = holder("x", round + 1);
            let volume = VolumeKey::Id(id);
            let asked = front_end.attach(volume, me, Generation(10 * round)).await;
            let Attached::Granted(granted) = asked.unwrap().0 else {
                panic!("nobody has it");
            };
            assert_eq!(granted.generation, Generation(10 * round + 1));
            // A commit is on its way when the lights go out.
            let doomed = admin.clone();
            let doomed_name = format!("doomed-{round}");
            tokio::task::spawn_local(async move { create(&doomed, &doomed_name).await });
            tokio::task::yield_now().await;
            (admin.get_map(0).await.unwrap().unwrap(), granted)
        });
        assert_eq!(map.volumes[&generation.volume].generation, generation.generation);
        names.push(name);
    }
}

#[test]
fn the_second_front_end_waits_for_the_lease_and_the_first_is_deposed() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let (first, second) = (running.client(Role::FrontEnd), running.client(Role::FrontEnd));
        let (a, b) = (holder("a", 1), holder("b", 2));
        let g1 = attach(&first, &a).await;
        assert_eq!(renew(&first, &a, &g1).await, renewed(false));
        let last_renewal = Instant::now();
        let Attached::Busy { holder, retry_after } = try_attach(&second, &b).await else {
            panic!("two holders");
        };
        assert_eq!(holder, a);
        assert!(retry_after <= LEASE + MARGIN + Duration::from_millis(1));
        // The first hangs; the second asks until it gets it.
        let g2 = loop {
            match try_attach(&second, &b).await {
                Attached::Granted(granted) => break granted,
                Attached::Busy { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert!(last_renewal.elapsed() > LEASE, "granted while the lease ran");
        assert!(g2.generation > g1.generation);
        assert_eq!(renew(&first, &a, &g1).await, Renewal::Lost);
        assert_eq!(renew(&second, &b, &g2).await, renewed(false));
        // A late release of the first changes nothing.
        first.release(vec![(g1.volume, g1.generation, true)]).await.unwrap();
        assert_eq!(renew(&second, &b, &g2).await, renewed(false));

        // A live holder is asked, and when it lets go, nobody waits.
        assert!(matches!(try_attach(&first, &a).await, Attached::Busy { .. }));
        assert_eq!(renew(&second, &b, &g2).await, renewed(true));
        second.release(vec![(g2.volume, g2.generation, true)]).await.unwrap();
        let g3 = attach(&first, &a).await;
        assert!(g3.generation > g2.generation);
        running.stop().await;
    });
}

#[test]
fn two_at_once_get_one_volume_once() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 1..=8 {
            let client = running.client(Role::FrontEnd);
            tasks.spawn_local(async move { try_attach(&client, &holder("h", n)).await });
        }
        let answers = tasks.join_all().await;
        let granted = answers.iter().filter(|it| matches!(it, Attached::Granted(_)));
        assert_eq!(granted.count(), 1, "{answers:?}");
        running.stop().await;
    });
}

fn beat(node: u32) -> Heartbeat {
    Heartbeat {
        node: NodeId(node),
        incarnation: Incarnation(100 + u64::from(node)),
        bytes_total: 1000,
        ..Heartbeat::default()
    }
}

#[test]
fn nodes_that_fall_silent_are_seen_and_nothing_unknown_looks_healthy() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let (nodes, admin) = (running.client(Role::StorageNode), running.client(Role::Client));
        let codes = |status: &health::Status| -> Vec<String> {
            status.checks.iter().map(|check| check.code.clone()).collect()
        };
        let status = admin.status().await.unwrap();
        assert_eq!(codes(&status), ["MONITOR_SETTLING"]);
        assert_eq!(status.health, Health::HEALTH_WARN);
        assert!(status.nodes.iter().all(|node| node.up.is_none()));
        for n in 0..3 {
            nodes.heartbeat(beat(n)).await.unwrap();
        }
        let status = admin.status().await.unwrap();
        assert_eq!((status.health, codes(&status)), (Health::HEALTH_OK, vec![]));

        // Nodes do not know what they were not sent; their leaders do.
        let front_end = running.client(Role::FrontEnd);
        let node = NodeId(1);
        let report = NodeReport { node, trouble: NodeTrouble::HeldOut, behind: 0, lag: 0 };
        front_end.renew(holder("a", 1), Vec::new(), vec![report], LEASE).await.unwrap();
        let status = admin.status().await.unwrap();
        assert_eq!((status.health, codes(&status)), (Health::HEALTH_WARN, vec!["NODE_LAGGING".to_owned()]));
        assert!(status.checks[0].details[0].contains("held out for a time (says a"), "{status:?}");
        let many = (0..=REPORT_NODES_MAX as u32).map(|n| NodeReport { node: NodeId(n), ..report });
        assert!(front_end.renew(holder("a", 1), Vec::new(), many.collect(), LEASE).await.is_err());
        front_end.renew(holder("a", 1), Vec::new(), Vec::new(), LEASE).await.unwrap();
        assert_eq!(admin.status().await.unwrap().health, Health::HEALTH_OK);

        // Node 2 falls silent, node 1 is nearly full and lost something, then node 1 falls silent, too.
        let wait_for = async |code: &str, beating: &[Heartbeat]| loop {
            for heartbeat in beating {
                nodes.heartbeat(heartbeat.clone()).await.unwrap();
            }
            let status = admin.status().await.unwrap();
            if codes(&status).iter().any(|it| it == code) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let status = wait_for("NODE_DOWN", &[beat(0), beat(1)]).await;
        assert!(codes(&status).contains(&"PG_DEGRADED".to_owned()));
        assert_eq!((status.pgs, status.pgs_degraded, status.pgs_unavailable), (32, 32, 0));
        let mut full = beat(1);
        (full.bytes_used, full.lost, full.bad_blocks) = (900, true, 1);
        let status = wait_for("NODE_LOST_STATE", &[beat(0), full]).await;
        assert!(codes(&status).contains(&"NODE_NEARFULL".to_owned()));
        assert!(codes(&status).contains(&"BAD_BLOCKS".to_owned()));
        let status = wait_for("PG_UNAVAILABLE", &[beat(0)]).await;
        assert_eq!((status.health, status.pgs_unavailable), (Health::HEALTH_ERR, 32));
        for check in &status.checks {
            assert!(CHECKS.iter().any(|kind| kind.code == check.code && !kind.remedy.is_empty()));
        }
        let status = wait_for("MONITOR_SETTLING", &[]);
        assert!(tokio::time::timeout(Duration::from_millis(200), status).await.is_err());
        running.stop().await;
    });
}

#[test]
fn a_node_is_told_how_far_its_log_once_went() {
    let dir = tempfile::tempdir().unwrap();
    let at = |position| Heartbeat { position, ..beat(1) };
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let nodes = running.client(Role::StorageNode);
        assert_eq!(nodes.heartbeat(at(500)).await.unwrap().position_floor, 0);
        assert_eq!(nodes.heartbeat(at(900)).await.unwrap().position_floor, 500);
        assert_eq!(nodes.heartbeat(at(10)).await.unwrap().position_floor, 900);
        assert_eq!(nodes.heartbeat(at(20)).await.unwrap().position_floor, 900);
        let admin = running.client(Role::Client);
        while admin.get_map(0).await.unwrap().unwrap().position(NodeId(1)) == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        running.stop().await;
    });
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let nodes = running.client(Role::StorageNode);
        assert_eq!(nodes.heartbeat(at(20)).await.unwrap().position_floor, 900);
        // Another store under the same id.
        let mut other = at(20);
        other.incarnation = Incarnation(5);
        let error = nodes.heartbeat(other).await.unwrap_err().to_string();
        assert!(error.contains("new node"), "{error}");
        running.stop().await;
    });
}

/// A monitor that stood still (here the whole process) has answered no renewal: holders that are well keep their
/// volumes, whoever asks first when it is over.
#[test]
fn a_pause_of_the_monitor_costs_no_holder_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let volume = cluster(&running).await;
        let (front, node) = (running.client(Role::FrontEnd), running.client(Role::StorageNode));
        let a = holder("a", 1);
        let granted = attach(&front, &a).await;
        let healer = Holder { kind: HolderKind::Healer, ..holder("node.0", 7) };
        assert_eq!(node.heal_work(healer.clone(), 100).await.unwrap().0, vec![], "{volume} is attached");
        // All of it runs on this thread. In pauses that are shorter than the others' patience with a connection.
        for _ in 0..3 {
            std::thread::sleep(LEASE + MARGIN + Duration::from_millis(600));
            assert_eq!(node.heal_work(healer.clone(), 100).await.unwrap().0, vec![]);
            assert!(matches!(try_attach(&front, &holder("b", 2)).await, Attached::Busy { .. }));
            assert!(matches!(renew(&front, &a, &granted).await, Renewal::Renewed { .. }));
        }
        // Nor does a node count as down that could not be heard of meanwhile.
        let admin = running.client(Role::Client);
        for n in 0..3 {
            let (node_id, incarnation) = (NodeId(n), Incarnation(100 + u64::from(n)));
            let beat = Heartbeat { node: node_id, incarnation, ..Heartbeat::default() };
            node.heartbeat(beat).await.unwrap();
        }
        let before = admin.get_map(0).await.unwrap().unwrap().events().last();
        // More than three times the node timeout.
        std::thread::sleep(Duration::from_millis(2_500));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let map = admin.get_map(0).await.unwrap().unwrap();
        assert!(
            map.nodes.values().all(|node| node.up) && map.events().last() == before,
            "{:?}",
            map.events()
        );
        assert!(matches!(renew(&front, &a, &granted).await, Renewal::Renewed { .. }));
        // One that is dead does not keep it.
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(100)).await;
        assert_eq!(node.heal_work(healer, 100).await.unwrap().0.len(), 1);
        running.stop().await;
    });
}

#[test]
fn volumes_that_were_not_released_clean_are_healed_and_clients_come_first() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let disk = cluster(&running).await;
        let admin = running.client(Role::Client);
        for n in 1..=HEALS_MAX + 2 {
            create(&admin, &format!("disk{n}")).await;
        }
        let node = running.client(Role::StorageNode);
        let healer = Holder { kind: HolderKind::Healer, ..holder("node.0", 7) };
        let work = async || node.heal_work(healer.clone(), 100).await.unwrap().0;
        assert_eq!(work().await, vec![], "never attached: nothing to heal");

        // A front end dies: its volume is offered when its lease has run out.
        let front_end = running.client(Role::FrontEnd);
        attach(&front_end, &holder("a", 1)).await;
        assert_eq!(work().await, vec![]);
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(50)).await;
        // Not before nodes have said that they do not hear it.
        assert_eq!(work().await, vec![]);
        for n in 0..3 {
            node.heartbeat(beat(n)).await.unwrap();
        }
        let status = admin.status().await.unwrap();
        assert!(status.checks.iter().any(|check| check.code == "VOLUME_NEEDS_HEAL"));
        let orders = work().await;
        assert_eq!(orders.len(), 1);
        assert_eq!((orders[0].volume, orders[0].generation), (disk, Generation(2)));
        assert_eq!(work().await, vec![], "it is being healed");
        assert_eq!(renew(&node, &healer, &orders[0]).await, renewed(false));

        // A client does not wait for a healer.
        let granted = attach(&front_end, &holder("a", 2)).await;
        assert_eq!(granted.generation, Generation(3));
        assert_eq!(renew(&node, &healer, &orders[0]).await, Renewal::Lost);
        // While it is attached, what nodes report goes to its holder.
        let group = GroupId { volume: disk, pg: PgId { pool: PoolId(1), pg: 3 } };
        node.heartbeat(Heartbeat { differing: vec![group], ..beat(0) }).await.unwrap();
        let me = holder("a", 2);
        let volumes = vec![(granted.volume, granted.generation)];
        let told = front_end.renew(me, volumes, Vec::new(), LEASE).await.unwrap();
        assert_eq!(told.differing, vec![group]);
        front_end.release(vec![(disk, Generation(3), true)]).await.unwrap();

        // More differences than healers may work on at once.
        let map = admin.get_map(0).await.unwrap().unwrap();
        let pg = group.pg;
        let others = map.volumes.keys().filter(|id| **id != disk);
        let differing = others.map(|id| GroupId { volume: *id, pg }).collect();
        node.heartbeat(Heartbeat { differing, ..beat(0) }).await.unwrap();
        assert_eq!(work().await.len(), HEALS_MAX);
        assert_eq!(work().await.len(), 0);
        running.stop().await;
    });
}

#[test]
fn bad_requests_are_answered_and_the_monitor_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let connect = async || {
            let expect = Expect { role: Role::Monitor, identity: None };
            let hello = Hello::new(Role::Client, [0; 16]);
            trefoil_transport::connect(running.address, hello, &expect, Options::default()).await.unwrap()
        };
        let mut bad = connect().await;
        let mut frames = Vec::new();
        let mut seed = 1u64;
        for round in 0..500u64 {
            // A version, an id, and noise.
            let mut meta = vec![if round % 5 == 0 { 9 } else { VERSION }];
            meta.extend_from_slice(&round.to_le_bytes());
            for _ in 0..round % 60 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                meta.push((seed >> 33) as u8);
            }
            bad.sender.push_slice(KIND_REQUEST, &meta, None).unwrap();
            bad.sender.flush();
            frames.clear();
            // Noise may by chance be a WaitMap; nothing else takes long.
            let answer = tokio::time::timeout(Duration::from_secs(3), bad.reader.read_batch(&mut frames));
            if let Ok(answer) = answer.await {
                answer.unwrap();
                assert_eq!(frames[0].kind, KIND_RESPONSE);
            }
        }
        // No request at all: the connection ends.
        for meta in [&b""[..], b"short"] {
            let mut bad = connect().await;
            bad.sender.push_slice(KIND_REQUEST, meta, None).unwrap();
            bad.sender.flush();
            bad.reader.read_batch(&mut frames).await.unwrap_err();
        }
        // Roles are kept apart.
        let admin = running.client(Role::Client);
        let volume = VolumeKey::Id(VolumeId(1));
        let refused = admin.attach(volume.clone(), holder("a", 1), Generation(0)).await;
        assert!(matches!(refused, Err(CallError::Answered(RpcError::NotAllowed(_)))));
        let front_end = running.client(Role::FrontEnd);
        let refused = front_end.remove_volume(volume.clone()).await;
        assert!(matches!(refused, Err(CallError::Answered(RpcError::NotAllowed(_)))));
        // And what does not exist is said in words.
        let error = admin.remove_volume(volume).await.unwrap_err().to_string();
        assert_eq!(error, "there is no volume vol1");
        let pool = admin.create_pool("p".to_owned(), 3, 8, FailureDomain::Host, Ack::Majority).await;
        let error = pool.unwrap_err().to_string();
        assert!(error.contains("add nodes"), "{error}");
        running.stop().await;
    });
}

#[test]
fn too_many_requests_at_once_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let client = running.client(Role::Client);
        let map = client.get_map(0).await.unwrap().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..REQUESTS_MAX + 10 {
            let client = client.clone();
            let have = map.layout;
            tasks.spawn_local(async move { client.wait_map(have, Duration::from_millis(300)).await });
        }
        let results = tasks.join_all().await;
        let refused = results.iter().filter(|it| matches!(it, Err(CallError::Answered(RpcError::TooMany))));
        assert_eq!(refused.count(), 10);
        assert_eq!(results.iter().filter(|it| matches!(it, Ok(None))).count(), REQUESTS_MAX);
        running.stop().await;
    });
}

#[test]
fn clients_come_back_by_themselves_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let address = running.address;
        let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let client = MonitorClient::new(vec![nobody, address], Hello::new(Role::FrontEnd, [0; 16]));
        let a = holder("a", 1);
        let granted = attach(&client, &a).await;
        running.stop().await;
        let meanwhile = client.clone();
        let (who, what) = (a.clone(), granted.clone());
        let renewal = tokio::task::spawn_local(async move { renew(&meanwhile, &who, &what).await });
        let failed = client.renew(a.clone(), vec![], vec![], Duration::from_millis(200)).await;
        assert!(matches!(failed, Err(CallError::Unavailable(_))), "{failed:?}");
        let mut again = config(dir.path());
        again.listen = address;
        let running = Running::start(again).await;
        assert_eq!(renewal.await.unwrap(), renewed(false));
        running.stop().await;
    });
}

#[test]
fn directories_and_listeners_that_do_not_fit_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let error = async |config| match Monitor::start(config).await {
            Ok(_) => panic!("started"),
            Err(error) => format!("{error:#}"),
        };
        let text = error(config(dir.path())).await;
        assert!(text.contains("in use by another monitor"), "{text}");
        let mut same_port = config(&dir.path().join("other"));
        same_port.listen = running.address;
        let text = error(same_port).await;
        assert!(text.contains("another process listens there"), "{text}");
        let mut open = config(&dir.path().join("other"));
        open.listen = "0.0.0.0:0".parse().unwrap();
        let text = error(open).await;
        assert!(text.contains("allow_plaintext"), "{text}");
        assert!(!dir.path().join("other").exists(), "nothing is written");
        running.stop().await;

        let mut renamed = config(dir.path());
        renamed.cluster_name = "other".to_owned();
        let text = error(renamed).await;
        assert!(text.contains("belongs to cluster \"trefoil\", not \"other\""), "{text}");

        let damaged = dir.path().join("damaged");
        std::fs::create_dir(&damaged).unwrap();
        std::fs::write(damaged.join("monitor.redb"), b"this is no database").unwrap();
        let text = error(config(&damaged)).await;
        assert!(text.contains("monitor.redb cannot be used"), "{text}");
        assert_eq!(std::fs::read(damaged.join("monitor.redb")).unwrap(), b"this is no database");
    });
}

#[test]
fn a_monitor_that_is_away_is_named_however_short_the_wait() {
    on_runtime(async {
        let holder = holder("a", 1);
        let short = Duration::from_millis(60);
        // One that refuses connections (bound once, closed again), and one that takes them in silence.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for address in [gone, silent.local_addr().unwrap()] {
            let client = MonitorClient::new(vec![address], Hello::new(Role::FrontEnd, [0; 16]));
            for _ in 0..4 {
                let error = client
                    .renew(holder.clone(), Vec::new(), Vec::new(), short)
                    .await
                    .unwrap_err()
                    .to_string();
                assert!(error.contains(&address.to_string()), "{error}");
            }
        }
        let nobody = MonitorClient::new(Vec::new(), Hello::new(Role::FrontEnd, [0; 16]));
        let error = nobody.renew(holder, Vec::new(), Vec::new(), short).await.unwrap_err().to_string();
        assert!(error.contains("no address is configured"), "{error}");
    });
}

/// Follows the map like a daemon for some changes; each is the map that an administrator gets as a whole.
async fn follow(running: &Running) {
    cluster(running).await;
    let daemon = running.client(Role::FrontEnd);
    let admin = || running.client(Role::Client);
    let mut seen = daemon.get_map(0).await.unwrap().unwrap();
    for n in 0..20 {
        create(&admin(), &format!("more{n}")).await;
        let map = daemon.wait_map(seen.layout, Duration::from_secs(5)).await.unwrap().unwrap();
        let whole = admin().get_map(0).await.unwrap().unwrap();
        assert_eq!(map.without_positions(), whole.without_positions());
        assert!(map.layout > seen.layout);
        seen = map;
    }
    assert_eq!(daemon.get_map(seen.layout).await.unwrap(), None);
    let volume = daemon.volume(VolumeKey::Name("disk0".to_owned())).await.unwrap().unwrap();
    assert_eq!(volume.holder, None);
    let a = holder("a", 1);
    attach(&daemon, &a).await;
    let volume = daemon.volume(VolumeKey::Id(VolumeId(1))).await.unwrap().unwrap();
    assert_eq!(volume.holder, Some(a), "what a map that is followed does not show");
    assert_eq!(daemon.volume(VolumeKey::Id(VolumeId(99))).await.unwrap(), None);
}

#[test]
fn daemons_follow_the_map_by_differences() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        follow(&running).await;
        running.stop().await;
    });
}

#[test]
fn a_map_that_is_too_large_for_one_answer_comes_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start_with_parts(config(dir.path()), 50).await;
        follow(&running).await;
        running.stop().await;
    });
}

#[test]
fn a_daemon_goes_on_following_after_a_restart_of_the_monitor() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let daemon = running.client(Role::StorageNode);
        let seen = daemon.get_map(0).await.unwrap().unwrap();
        let address = running.address;
        running.stop().await;
        let mut again = config(dir.path());
        again.listen = address;
        let running = Running::start(again).await;
        create(&running.client(Role::Client), "more").await;
        let map = daemon.wait_map(seen.layout, Duration::from_secs(10)).await.unwrap().unwrap();
        assert!(map.volume_named("more").is_some() && map.layout > seen.layout);
        running.stop().await;
    });
}
