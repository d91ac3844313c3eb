//! A node is away while 200 MiB change on a larger volume: when it is back, only about that travels,
//! and the volume is in use all the time.

use std::time::{Duration, Instant};

use crate::blocks::{BLOCK, Ledger, Random};
use crate::cluster::{Cluster, Shape};
use crate::prober::Prober;
use crate::tools::wait_until;
use crate::writer::{self, Mix};

const WRITTEN_BLOCKS: usize = (700 << 20) / BLOCK;
const CHANGED_BYTES: u64 = 200 << 20;

/// Bytes that came in over loopback since the machine started. Clients use the unix socket, so this
/// is what daemons say to each other (and whatever else runs on the machine, which only adds).
fn loopback_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/net/dev").expect("/proc/net/dev");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("a loopback interface");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number of bytes")
}

/// Bytes that a process has caused to be written to disks.
fn bytes_written(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("/proc/PID/io");
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:")).expect("write_bytes");
    line.trim().parse().expect("a number of bytes")
}

#[test]
fn a_node_that_was_away_pulls_what_changed_and_no_more() {
    let shape = Shape { node_size: "16GiB", limit: Duration::from_secs(300), ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    let client = cluster.connect("disk0");
    let mut ledger = Ledger::new(61, 0, WRITTEN_BLOCKS);
    writer::write_through(&client, &mut ledger).expect("it writes");
    cluster.wait_until_whole(Duration::from_secs(30));

    let node = cluster.names("storage-node").remove(2);
    cluster.kill(&node);
    let mut random = Random::new(61);
    let written = ledger.acknowledged;
    // Random blocks anywhere: the hardest case for telling what changed. A write is 1 block in three of
    // four cases and 32.5 on average else.
    let mix = Mix { depth: 32, blocks_max: 64, zeroes_one_in: 0, flush_one_in: 0 };
    let before = ledger.clone();
    while ((ledger.changed_since(&before) * BLOCK) as u64) < CHANGED_BYTES {
        let start = Instant::now();
        let outcome = writer::run(&client, &mut ledger, &mut random, mix, || {
            start.elapsed() > Duration::from_millis(200)
        });
        assert!(outcome.end.is_none() && outcome.errors.is_empty(), "{outcome:?}\n{}", cluster.logs());
    }
    let changed = (ledger.changed_since(&before) * BLOCK) as u64;
    println!("catch-up: {} writes changed {} MiB meanwhile", ledger.acknowledged - written, changed >> 20);

    let prober = Prober::start(&cluster.endpoint(), "disk0", (1 << 30) / BLOCK as u64 - 256, 256);
    std::thread::sleep(Duration::from_millis(500));
    let lo_before = loopback_bytes();
    let start = Instant::now();
    cluster.restart(&node);
    // It must have been seen as behind before it can be seen as whole.
    let mut behind = 0;
    wait_until(Duration::from_secs(5), || {
        let nodes = cluster.nodes();
        let found = nodes.iter().find(|it| it.name == node && it.up).map_or(0, |it| it.copies_behind);
        behind = behind.max(found);
        behind > 0
    });
    cluster.wait_until_whole(Duration::from_secs(120));
    let took = start.elapsed();
    let travelled = loopback_bytes() - lo_before;
    let stored = bytes_written(cluster.pid(&node));
    let seen = prober.stop();
    seen.report("catch-up of a node");
    println!(
        "catch-up: {:.1} s, {behind} objects shown as behind; {} MiB over loopback in all, {} MiB written by the node, for {} MiB changed of {} MiB",
        took.as_secs_f64(),
        travelled >> 20,
        stored >> 20,
        changed >> 20,
        (WRITTEN_BLOCKS * BLOCK) >> 20
    );
    assert!(seen.faults.is_empty() && seen.count > 50, "the volume stays in use: {:?}", seen.faults);
    assert!(seen.longest() < Duration::from_secs(2), "{:?}", seen.longest());
    // The prober's own I/O is in these figures, and is small.
    let probed = seen.count * 3 * 8192;
    assert!(travelled < 2 * changed + probed, "{travelled} bytes travelled for {changed}");
    assert!(stored < 2 * changed + probed, "{stored} bytes were written for {changed}");
    assert!(stored > changed / 2, "it did pull: {stored} bytes for {changed}");

    // With another one away, the node that was behind is needed for every majority, and serves reads.
    let other = cluster.names("storage-node").remove(0);
    cluster.kill(&other);
    let findings = writer::compare(&client, &mut ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.restart(&other);
    cluster.wait_until_whole(Duration::from_secs(60));
    cluster.stop();
}
