//! Placement groups that move, on real processes and under load that is compared: a node added, one taken out,
//! one with a lost disk; nodes and the leading monitor killed in the middle; undone, paused, limited.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::blocks::Ledger;
use crate::cluster::{Cluster, Shape};
use crate::kills::Load;
use crate::monitors::leader;
use crate::tools::wait_until;
use crate::writer;

/// Until everything is where it should be, on a busy machine.
const MOVE_LIMIT: Duration = Duration::from_secs(100);
/// The longest that a request may take while placement groups move and nothing fails, on a busy machine.
const STALL_MAX: Duration = Duration::from_secs(5);
/// The same while daemons are killed: a majority of whole copies may be missing for a while.
const KILL_STALL_MAX: Duration = Duration::from_secs(40);
/// What a store of 8 GiB uses that holds nothing: less than this.
const EMPTY_BYTES: u64 = 24 << 20;

fn shape(arguments: &'static [&'static str]) -> Shape {
    Shape {
        arguments,
        volumes: &["disk0=1GiB", "idle=64MiB"],
        limit: Duration::from_secs(240),
        ..Shape::default()
    }
}

/// Starts one more node, on a host of its own.
#[track_caller]
fn add_node(cluster: &mut Cluster, name: &str) {
    let text = std::fs::read_to_string(cluster.config("node-0")).expect("the first one's configuration");
    let mut table: toml::Table = text.parse().expect("TOML");
    let dir = cluster.dir.join(name);
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut set = |key: &str, value: String| table.insert(key.into(), value.into());
    set("device", dir.join("device").display().to_string());
    set("state_dir", dir.display().to_string());
    set("listen", crate::cluster::free_address());
    set("host", format!("host-of-{name}"));
    set("metrics_listen", "off".to_owned());
    table.insert("format_if_missing".into(), true.into());
    table.insert("size".into(), toml::Value::Integer(8 << 30));
    let config = cluster.dir.join("etc").join(format!("{name}.toml"));
    std::fs::write(&config, table.to_string()).expect("a file");
    cluster.run_daemon("storage-node", name, &config);
}

fn moves(cluster: &Cluster) -> Value {
    let finished = cluster.run(&["move", "status"]);
    serde_json::from_str(&finished.out).unwrap_or_default()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(u64::MAX)
}

/// Whether something is on the move.
pub fn is_moving(cluster: &Cluster) -> bool {
    moves(cluster)["moves"].as_array().is_some_and(|moves| !moves.is_empty())
}

#[track_caller]
fn wait_until_moving(cluster: &Cluster) {
    let begun = wait_until(Duration::from_secs(40), || is_moving(cluster));
    assert!(begun, "nothing moves: {:#}\n{}", moves(cluster), cluster.logs());
}

#[track_caller]
pub fn wait_until_moved(cluster: &Cluster) {
    let start = Instant::now();
    let mut last = Value::Null;
    let moved = wait_until(MOVE_LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        last = moves(cluster);
        last["moves"].as_array().is_some_and(Vec::is_empty) && number(&last, "misplaced") == 0
    });
    assert!(moved, "not moved within {MOVE_LIMIT:?}: {last:#}\n{}", cluster.logs());
    println!("everything was moved after {:.1} s", start.elapsed().as_secs_f64());
}

/// Placement groups that a node is a member of.
fn pgs_of(cluster: &Cluster, node: u64) -> usize {
    let all = cluster.ask(&["pg", "list"]);
    let pgs = all.as_array().expect("a list").iter();
    pgs.filter(|pg| pg["acting"].as_array().is_some_and(|acting| acting.iter().any(|it| *it == node))).count()
}

fn used(cluster: &Cluster, node: u64) -> u64 {
    let all = cluster.ask(&["node", "list"]);
    let found = all.as_array().expect("a list").iter().find(|it| it["id"] == node);
    found.map_or(u64::MAX, |it| number(it, "used_bytes"))
}

#[track_caller]
fn wait_until_empty(cluster: &Cluster, node: u64) {
    let empty = wait_until(Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(200));
        used(cluster, node) < EMPTY_BYTES
    });
    assert!(empty, "node {node} still uses {} bytes\n{}", used(cluster, node), cluster.logs());
}

/// Every copy of every placement group is there, level and known.
#[track_caller]
pub fn all_copies_are_level(cluster: &Cluster) {
    let all = cluster.ask(&["pg", "list"]);
    for pg in all.as_array().expect("a list").iter().step_by(11) {
        let id = pg["pg"].as_str().expect("an id");
        let mut last = Value::Null;
        let level = wait_until(Duration::from_secs(30), || {
            last = cluster.ask(&["pg", "show", id]);
            let copies = last["copies"].as_array().expect("copies");
            copies.len() == 3
                && copies.iter().all(|copy| {
                    let groups = copy["groups"].as_array();
                    copy["known"] == true
                        && groups
                            .is_some_and(|all| all.iter().all(|it| it["behind"] == 0 && it["lost"] == false))
                })
        });
        assert!(level, "{last:#}\n{}", cluster.logs());
    }
}

/// What was written where no load writes.
pub struct Data {
    /// On the volume that is in use.
    disk: Ledger,
    /// A volume that nobody has attached while placement groups move: healers are its leaders.
    idle: Ledger,
}

impl Data {
    #[track_caller]
    pub fn write(cluster: &Cluster) -> Data {
        // Behind what the writer and the prober use.
        let mut data = Data { disk: Ledger::new(81, 32 << 10, 8 << 10), idle: Ledger::new(82, 0, 2 << 10) };
        writer::write_through(&cluster.connect("disk0"), &mut data.disk).expect("it writes");
        writer::write_through(&cluster.connect("idle"), &mut data.idle).expect("it writes");
        data
    }

    #[track_caller]
    pub fn is_there(&mut self, cluster: &Cluster) {
        for (volume, ledger) in [("disk0", &mut self.disk), ("idle", &mut self.idle)] {
            let findings = writer::compare(&cluster.connect(volume), ledger)
                .unwrap_or_else(|error| panic!("{volume}: {error}\n{}", cluster.logs()));
            assert!(findings.wrong.is_empty(), "{volume}: {findings}\n{}", cluster.logs());
        }
    }
}

/// A command that writes no JSON.
#[track_caller]
pub fn tell(cluster: &Cluster, command: &[&str]) {
    let monitors = cluster.monitors();
    let all = [command, &["--monitor", &monitors]].concat();
    // While a monitor is being elected nobody can say yes.
    let mut last = None;
    let done = wait_until(Duration::from_secs(20), || {
        let finished = crate::cluster::run_trefoil(&all, Duration::from_secs(30));
        let done = finished.status.success();
        last = Some(finished);
        done
    });
    assert!(done, "{command:?}: {last:?}\n{}", cluster.logs());
}

#[test]
fn a_node_is_added_under_load_and_another_one_taken_out() {
    let mut cluster = Cluster::start(shape(&[]));
    let mut data = Data::write(&cluster);
    tell(&cluster, &["move", "limits", "--node", "6"]);
    let load = Load::start(&cluster);
    add_node(&mut cluster, "node-3");
    wait_until_moving(&cluster);
    wait_until_moved(&cluster);
    assert!(pgs_of(&cluster, 3) > 0, "CRUSH gives a new node its share");
    data.is_there(&cluster);
    tell(&cluster, &["node", "out", "1", "--yes"]);
    wait_until_moving(&cluster);
    wait_until_moved(&cluster);
    assert_eq!(pgs_of(&cluster, 1), 0);
    load.judge_within(&cluster, "a node added, another one taken out", STALL_MAX);
    data.is_there(&cluster);
    wait_until_empty(&cluster, 1);
    all_copies_are_level(&cluster);
    cluster.stop();
}

#[test]
fn nodes_and_the_leading_monitor_are_killed_while_placement_groups_move() {
    let mut cluster = Cluster::start(shape(&["--monitors", "3"]));
    let mut data = Data::write(&cluster);
    // One at a time, so that there is something to be killed in the middle of.
    tell(&cluster, &["move", "limits", "--node", "1", "--while-degraded", "true"]);
    let load = Load::start(&cluster);
    add_node(&mut cluster, "node-3");
    wait_until_moving(&cluster);
    for who in ["node-3", "monitor", "node-0", "node-1", "monitor"] {
        let name = if who == "monitor" { leader(&cluster) } else { who.to_owned() };
        if name == "node-3" {
            cluster.kill_by_hand(&name);
            std::thread::sleep(Duration::from_millis(500));
            let config = cluster.dir.join("etc").join("node-3.toml");
            cluster.run_daemon("storage-node", "node-3", &config);
        } else {
            cluster.kill(&name);
            std::thread::sleep(Duration::from_millis(500));
            cluster.restart(&name);
        }
        // Long enough for the next one to be hit elsewhere in its move.
        std::thread::sleep(Duration::from_millis(1700));
    }
    let under_way = is_moving(&cluster);
    println!("kills while placement groups move: the last one in the middle: {under_way}");
    tell(&cluster, &["move", "limits", "--node", "8"]);
    wait_until_moved(&cluster);
    load.judge_within(&cluster, "kills while placement groups move", KILL_STALL_MAX);
    data.is_there(&cluster);
    cluster.wait_until_whole(Duration::from_secs(60));
    all_copies_are_level(&cluster);
    cluster.stop();
}

#[test]
fn moves_are_paused_undone_and_resumed() {
    let mut cluster = Cluster::start(shape(&[]));
    let mut data = Data::write(&cluster);
    tell(&cluster, &["move", "pause"]);
    let load = Load::start(&cluster);
    add_node(&mut cluster, "node-3");
    let waits = wait_until(Duration::from_secs(30), || moves(&cluster)["misplaced"].as_u64() > Some(0));
    assert!(waits, "{:#}", moves(&cluster));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!is_moving(&cluster), "nothing begins: {:#}", moves(&cluster));
    tell(&cluster, &["move", "resume"]);
    // Undone at whichever stage they are, as soon as they are seen.
    let mut undone = Vec::new();
    for _ in 0..3 {
        wait_until_moving(&cluster);
        let now = moves(&cluster);
        let Some(pg) = now["moves"][0]["pg"].as_str() else { continue };
        tell(&cluster, &["move", "undo", pg]);
        undone.push(pg.to_owned());
    }
    assert!(!undone.is_empty());
    let rest = wait_until(MOVE_LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = moves(&cluster);
        let held = now["held"].as_array().map_or(0, Vec::len) as u64;
        held > 0 && number(&now, "misplaced") == held && now["moves"].as_array().is_some_and(Vec::is_empty)
    });
    assert!(rest, "all but those that were undone: {:#}\n{}", moves(&cluster), cluster.logs());
    let all = cluster.ask(&["pg", "list"]);
    for pg in all.as_array().expect("a list").iter().filter(|pg| undone.iter().any(|it| pg["pg"] == *it)) {
        let acting = pg["acting"].as_array().expect("a list");
        let is_back = acting.iter().all(|node| *node != 3);
        // It may have become final before it was to be undone: then it is held where it is.
        assert!(is_back || pg["epoch"] == 4, "{pg:#}");
    }
    data.is_there(&cluster);
    tell(&cluster, &["move", "resume"]);
    wait_until_moved(&cluster);
    load.judge_within(&cluster, "moves paused, undone, resumed", STALL_MAX);
    data.is_there(&cluster);
    cluster.wait_until_whole(Duration::from_secs(60));
    all_copies_are_level(&cluster);
    cluster.stop();
}

#[test]
fn a_lost_disk_is_a_new_node_and_is_filled_from_the_others() {
    let mut cluster = Cluster::start(shape(&[]));
    let mut data = Data::write(&cluster);
    tell(&cluster, &["move", "limits", "--node", "8"]);
    let load = Load::start(&cluster);
    let lost = "node-2";
    cluster.kill(lost);
    std::fs::remove_dir_all(cluster.dir.join(lost)).expect("its directory");
    std::fs::create_dir_all(cluster.dir.join(lost)).expect("a new one");
    // The same configuration on a new device: the monitors give it a number of its own.
    cluster.restart(lost);
    let there = wait_until(Duration::from_secs(40), || {
        cluster.ask(&["node", "list"]).as_array().is_some_and(|nodes| nodes.len() == 4)
    });
    assert!(there, "{}", cluster.logs());
    tell(&cluster, &["node", "out", "2", "--yes"]);
    wait_until_moving(&cluster);
    wait_until_moved(&cluster);
    assert_eq!((pgs_of(&cluster, 2), pgs_of(&cluster, 3)), (0, 32), "three nodes, three copies");
    load.judge_within(&cluster, "a disk lost and replaced", KILL_STALL_MAX);
    data.is_there(&cluster);
    all_copies_are_level(&cluster);
    // One of the others may go now.
    cluster.kill("node-0");
    data.is_there(&cluster);
}

#[test]
fn a_backup_from_before_a_move_is_restored_and_the_data_is_found_where_it_is() {
    let mut cluster = Cluster::start(shape(&[]));
    let mut data = Data::write(&cluster);
    let file = cluster.dir.join("backup");
    tell(&cluster, &["monitor", "backup", file.to_str().expect("a path of UTF-8")]);
    tell(&cluster, &["move", "limits", "--node", "8"]);
    add_node(&mut cluster, "node-3");
    let there = wait_until(Duration::from_secs(40), || {
        cluster.ask(&["node", "list"]).as_array().is_some_and(|nodes| nodes.len() == 4)
    });
    assert!(there, "{}", cluster.logs());
    tell(&cluster, &["node", "out", "0", "--yes"]);
    wait_until_moving(&cluster);
    wait_until_moved(&cluster);
    wait_until_empty(&cluster, 0);
    // Restored, the monitor believes that everything is on three nodes, one of which has nothing any more, and has
    // never heard of the fourth.
    let monitor = cluster.names("monitor").remove(0);
    cluster.kill(&monitor);
    let restored = cluster.dir.join("restored");
    let into = restored.to_str().expect("a path of UTF-8").to_owned();
    let address = cluster.process(&monitor).address.clone();
    let backup = file.to_str().expect("a path of UTF-8");
    let arguments = ["monitor", "restore", backup, "--data-dir", &into, "--listen", &address];
    crate::cluster::run_trefoil(&arguments, Duration::from_secs(30)).ok("restore");
    let config = cluster.config(&monitor);
    let mut table: toml::Table = std::fs::read_to_string(&config).expect("a file").parse().expect("TOML");
    table.insert("data_dir".into(), into.into());
    std::fs::write(&config, table.to_string()).expect("a file");
    // A node that was down meanwhile has what it had heard in its directory.
    cluster.kill("node-1");
    cluster.restart("node-1");
    cluster.restart(&monitor);
    let found = wait_until(Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(200));
        let finished = cluster.run(&["node", "list"]);
        let nodes: Value = serde_json::from_str(&finished.out).unwrap_or_default();
        nodes.as_array().is_some_and(|nodes| nodes.len() == 4 && nodes.iter().all(|it| it["state"] == "up"))
    });
    assert!(found, "all four are there again\n{}", cluster.logs());
    let read = wait_until(Duration::from_secs(60), || {
        writer::compare(&cluster.connect("disk0"), &mut data.disk.clone()).is_ok()
    });
    assert!(read, "{:#}\n{}", cluster.status(), cluster.logs());
    data.is_there(&cluster);
    // Node 0 is in again, as far as the backup goes: it gets its share. The limits are the backup's, too; with two at a
    // node, and only healers that look every few seconds, this would take about two minutes.
    tell(&cluster, &["move", "limits", "--node", "8"]);
    wait_until_moved(&cluster);
    cluster.wait_until_whole(Duration::from_secs(60));
    data.is_there(&cluster);
}
