//! Placement groups that are split, on real processes and under load that is compared: by any step, with nodes and the
//! leading monitor killed in the middle, a node away during several splits; then what CRUSH wants elsewhere moves.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Shape};
use crate::health::is_well;
use crate::kills::Load;
use crate::monitors::leader;
use crate::moving::{Data, all_copies_are_level, is_moving, tell, wait_until_moved};
use crate::scrub::metric;
use crate::tools::wait_until;

/// A request may have to wait until a node that was killed is there again: where another one is away, too.
const STALL_MAX: Duration = Duration::from_secs(40);
/// What all nodes together may write for a split while nothing else goes on: records, and the index's next entries,
/// of which there are some at any time. Far less than what a copy of the data takes.
const SPLIT_BYTES_MAX: u64 = 8 << 20;

/// What is in the pool that `up` makes.
const FIRST: u64 = 32;

fn pg_num(cluster: &Cluster) -> u64 {
    let pools = cluster.ask(&["pool", "list"]);
    pools[0]["pg_num"].as_u64().unwrap_or_default()
}

fn set(cluster: &Cluster, pg_num: u64) {
    tell(cluster, &["pool", "set", "default", "pg_num", &pg_num.to_string(), "--yes"]);
}

/// The sum of a counter over the nodes that run.
fn sum(cluster: &Cluster, nodes: &[String], name: &str) -> u64 {
    nodes.iter().map(|node| metric(cluster, node, name)).sum()
}

/// The nodes have split what they have.
#[track_caller]
fn wait_until_split(cluster: &Cluster, nodes: &[String], least: u64) {
    const SPLITS: &str = "trefoil_storage_pg_splits_total";
    let split = wait_until(Duration::from_secs(40), || sum(cluster, nodes, SPLITS) >= least);
    assert!(split, "{} of {least} splits\n{}", sum(cluster, nodes, SPLITS), cluster.logs());
}

/// All is well, but for moves that are paused. As [`Cluster::wait_until_whole`].
#[track_caller]
fn wait_until_well(cluster: &Cluster) {
    // A node that comes back soon is never shown as down: nothing is believed before this has passed.
    std::thread::sleep(Duration::from_millis(4500).saturating_sub(cluster.last_disturbance.elapsed()));
    let mut last = serde_json::Value::Null;
    let well = wait_until(Duration::from_secs(90), || {
        last = cluster.status();
        last["checks"].as_array_mut().is_some_and(|checks| {
            checks.retain(|check| check["code"] != "MOVES_PAUSED");
            true
        }) && is_well(&last)
    });
    assert!(well, "{last:#}\n{}", cluster.logs());
}

#[test]
fn placement_groups_are_split_under_load_and_under_kills() {
    let arguments = &["--monitors", "3"];
    let volumes = &["disk0=1GiB", "idle=64MiB"];
    let mut cluster = Cluster::start(Shape {
        nodes: 4,
        arguments,
        volumes,
        limit: Duration::from_secs(300),
        ..Shape::default()
    });
    let nodes = cluster.names("storage-node");
    let mut data = Data::write(&cluster);
    cluster.wait_until_whole(Duration::from_secs(60));
    // Nothing but the splits, at first.
    tell(&cluster, &["move", "pause"]);

    // By itself a split moves nothing, and costs some records. Sixteen are split into two, on three nodes each.
    const WRITTEN: &str = "trefoil_storage_device_bytes_total{op=\"write\"}";
    const MOVED: &str = "trefoil_storage_repair_bytes_total";
    let dry = cluster.ask(&["pool", "set", "default", "pg_num", "48", "--dry-run"]);
    assert!(dry["changed"] == false && pg_num(&cluster) == FIRST, "{dry:#}");
    let before = (sum(&cluster, &nodes, WRITTEN), sum(&cluster, &nodes, MOVED));
    set(&cluster, 48);
    wait_until_split(&cluster, &nodes, 3 * 16);
    let after = (sum(&cluster, &nodes, WRITTEN), sum(&cluster, &nodes, MOVED));
    println!("a split of 16 placement groups on 3 nodes each: {} bytes written", after.0 - before.0);
    assert!(after.0 > before.0 && after.0 - before.0 < SPLIT_BYTES_MAX, "{before:?}, {after:?}");
    assert_eq!(after.1, before.1, "no data moves");
    let all = cluster.ask(&["pg", "list"]);
    assert_eq!(all.as_array().map(Vec::len), Some(48), "{all:#}");
    data.is_there(&cluster);
    let fewer = cluster.run(&["pool", "set", "default", "pg_num", "32", "--yes"]);
    assert!(!fewer.status.success() && fewer.err.contains("only become more"), "{fewer:?}");

    // Under load, a node killed in the middle.
    let load = Load::start(&cluster);
    std::thread::sleep(Duration::from_secs(1));
    set(&cluster, 64);
    cluster.kill("node-1");
    std::thread::sleep(Duration::from_millis(500));
    cluster.restart("node-1");
    wait_until_well(&cluster);

    // One is away during several, while the leading monitor dies.
    cluster.kill("node-3");
    set(&cluster, 65);
    set(&cluster, 72);
    let monitor = leader(&cluster);
    cluster.kill(&monitor);
    set(&cluster, 80);
    cluster.restart("node-3");
    cluster.restart(&monitor);
    wait_until_well(&cluster);
    assert_eq!(pg_num(&cluster), 80);
    assert!(!is_moving(&cluster), "moves are paused");
    all_copies_are_level(&cluster);

    // What CRUSH wants elsewhere goes there.
    tell(&cluster, &["move", "limits", "--node", "16", "--cluster", "32"]);
    tell(&cluster, &["move", "resume"]);
    let start = Instant::now();
    wait_until_moved(&cluster);
    println!("what has split off was moved after {:.1} s", start.elapsed().as_secs_f64());
    load.judge_within(&cluster, "placement groups split, daemons killed", STALL_MAX);
    data.is_there(&cluster);
    cluster.wait_until_whole(Duration::from_secs(60));
    all_copies_are_level(&cluster);
    assert!(cluster.try_ask(&["volume", "create", "later", "64MiB"]));
    assert_eq!(cluster.connect("later").size, 64 << 20, "its groups are where they belong");
    cluster.stop();
}
