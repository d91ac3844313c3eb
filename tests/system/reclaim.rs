//! Full nodes from a client's side: what is there is written over and trimmed, what is new is refused, and
//! trims and removed volumes make room for it. All of it on real processes, with every block compared.

use std::time::{Duration, Instant};

use crate::blocks::{BLOCK, Content, Ledger, Random};
use crate::cluster::{Cluster, Shape, run_trefoil};
use crate::nbd_client::{Client, ENOSPC};
use crate::tools::wait_until;
use crate::writer::{self, Mix};

/// Blocks of a large write: 1 MiB.
const LARGE: usize = 256;
/// The longest that one write may take at full: a refusal may cost its group a round, and the log may have
/// to wait for cleaning.
const SLOW: Duration = Duration::from_secs(5);
/// Until a trim or a removed volume is room for new writes: the nodes have to know, and the front end has to
/// find out.
const FREED_WITHIN: Duration = Duration::from_secs(60);

/// A volume, one request at a time.
struct Disk {
    client: Client,
    ledger: Ledger,
    slowest: Duration,
}

impl Disk {
    fn open(cluster: &Cluster, name: &str, salt: u64, blocks: usize) -> Disk {
        Disk { client: cluster.connect(name), ledger: Ledger::new(salt, 0, blocks), slowest: Duration::ZERO }
    }

    /// False: there is no room. Any other error ends the test.
    #[track_caller]
    fn write(&mut self, index: usize, count: usize) -> bool {
        let (content, bytes) = self.ledger.begin_write(index, count);
        let start = Instant::now();
        let done = self.client.write(self.ledger.offset(index), &bytes);
        self.slowest = self.slowest.max(start.elapsed());
        match done {
            Ok(()) => self.ledger.acknowledge(index, count, content),
            Err(error) if error.to_string().starts_with(&format!("NBD error {ENOSPC} ")) => {
                self.ledger.leave_open(index, count);
                return false;
            }
            Err(error) => panic!("a write of {count} blocks from {index}: {error}"),
        }
        true
    }

    #[track_caller]
    fn trim(&mut self, index: usize, count: usize) {
        self.ledger.begin_zero(index, count);
        self.client.trim(self.ledger.offset(index), count * BLOCK).expect("a trim at full");
        self.ledger.acknowledge(index, count, Content::Zero);
    }

    /// Large writes from a block on until there is no room: where the first one was refused.
    fn fill(&mut self, mut index: usize) -> usize {
        while self.write(index, LARGE) {
            index += LARGE;
            assert!(index + LARGE <= self.ledger.blocks(), "never full");
        }
        index
    }

    #[track_caller]
    fn compare(&mut self, when: &str) {
        let findings = writer::compare(&self.client, &mut self.ledger).expect(when);
        assert!(findings.wrong.is_empty(), "{when}: {findings}");
    }
}

#[test]
fn full_nodes_take_overwrites_and_trims_and_removed_volumes_make_room() {
    let shape = Shape {
        node_size: "512MiB",
        volumes: &["disk0=2GiB", "disk1=64MiB"],
        limit: Duration::from_secs(300),
        ..Shape::default()
    };
    let mut cluster = Cluster::start(shape);
    let mut other = Disk::open(&cluster, "disk1", 5, (64 << 20) / BLOCK);
    writer::write_through(&other.client, &mut other.ledger).expect("the other volume");
    drop(other);

    let mut disk = Disk::open(&cluster, "disk0", 6, (1 << 30) / BLOCK);
    let full = disk.fill(0);
    println!("full after {} MiB", full / LARGE);
    assert!(full >= 96 * LARGE, "a good part of the nodes can be used: {} MiB", full / LARGE);
    let mut random = Random::new(6);
    for turn in 0..400 {
        let (index, count) = match turn % 8 {
            0 => (random.below((full - LARGE) as u64) as usize, LARGE),
            _ => (random.below(full as u64) as usize, 1),
        };
        assert!(
            disk.write(index, count),
            "overwrite {turn} of {count} blocks at {index}\n{}",
            cluster.logs()
        );
        if turn % 20 == 0 {
            assert!(!disk.write(full + LARGE + turn, 1), "a new write, turn {turn}");
        }
    }
    println!("overwrites at full: the slowest request took {:?}", disk.slowest);
    assert!(disk.slowest < SLOW, "{:?}", disk.slowest);
    disk.compare("full");
    let told = wait_until(Duration::from_secs(15), || cluster.status()["health"] == "HEALTH_ERR");
    assert!(told, "the status says that nodes are full: {:#}", cluster.status());

    // Trims: what they give back can be written elsewhere.
    for index in (0..32).map(|n| n * LARGE) {
        disk.trim(index, LARGE);
    }
    let mut next = full + 64 * LARGE;
    let start = Instant::now();
    let room = wait_until(FREED_WITHIN, || disk.write(next, LARGE));
    assert!(room, "trims make room\n{}", cluster.logs());
    println!("room {:?} after a trim", start.elapsed());
    next = disk.fill(next + LARGE);
    disk.compare("full again");

    // A removed volume, on nodes that are full and on one that was down then.
    cluster.kill("node-2");
    let mut said = String::new();
    let removed = wait_until(Duration::from_secs(30), || {
        let monitor = &cluster.process("monitor").address;
        let command = ["volume", "remove", "disk1", "--yes", "--monitor", monitor];
        let finished = run_trefoil(&command, Duration::from_secs(30));
        said = format!("{finished:?}");
        finished.status.success()
    });
    assert!(removed, "{said}\n{}", cluster.logs());
    cluster.restart("node-2");
    let start = Instant::now();
    let room = wait_until(FREED_WITHIN, || disk.write(next, LARGE));
    assert!(room, "a removed volume makes room\n{}", cluster.logs());
    println!("room {:?} after a volume was removed", start.elapsed());
    let before = next;
    next = disk.fill(next + LARGE);
    assert!(next - before >= 48 * LARGE, "most of its room: {} MiB", (next - before) / LARGE);
    disk.compare("full for the third time");

    // Nothing of what went on is left behind.
    for index in (0..next).step_by(LARGE) {
        disk.trim(index, LARGE);
    }
    cluster.wait_until_whole(Duration::from_secs(90));
    disk.compare("empty");
    drop(disk);
    cluster.stop();
}

#[test]
fn a_full_cluster_under_load_survives_a_node_that_is_killed() {
    let shape = Shape { node_size: "512MiB", volumes: &["disk0=2GiB"], ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    let client = cluster.connect("disk0");
    let mut ledger = Ledger::new(8, 0, (512 << 20) / BLOCK);
    let mut random = Random::new(8);
    let mix = Mix { depth: 16, blocks_max: 128, zeroes_one_in: 0, flush_one_in: 0 };
    let mut burst = |ledger: &mut Ledger, mix: Mix, millis: u64| {
        let start = Instant::now();
        let limit = Duration::from_millis(millis);
        let outcome = writer::run(&client, ledger, &mut random, mix, || start.elapsed() > limit);
        assert!(outcome.end.is_none(), "no hang and no closed connection: {outcome:?}");
        assert!(outcome.errors.keys().all(|error| *error == ENOSPC), "{outcome:?}");
        outcome
    };
    let start = Instant::now();
    while burst(&mut ledger, mix, 300).errors.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "never full");
    }
    // Writes, overwrites and zeroes at the edge.
    let mix = Mix { zeroes_one_in: 6, blocks_max: 32, ..mix };
    let mut said = Vec::new();
    let mut at_the_edge = |ledger: &mut Ledger, what: &'static str, millis| {
        let outcome = burst(ledger, mix, millis);
        let refused = outcome.errors.values().sum::<u64>();
        assert!(outcome.acknowledged > 0, "{what}: {outcome:?}");
        said.push((what, outcome.acknowledged, refused, outcome.longest));
    };
    at_the_edge(&mut ledger, "all nodes up", 1000);
    cluster.kill("node-1");
    at_the_edge(&mut ledger, "one down", 1000);
    cluster.restart("node-1");
    at_the_edge(&mut ledger, "one comes back", 2500);
    assert!(said.iter().any(|(_, _, refused, _)| *refused > 0), "it was at the edge: {said:?}");
    println!("at the edge (what, acknowledged, refused, longest): {said:?}");
    let findings = writer::compare(&client, &mut ledger).expect("reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    // With room again, everything heals.
    for index in (0..ledger.blocks() / 2).step_by(LARGE) {
        ledger.begin_zero(index, LARGE);
        client.trim(ledger.offset(index), LARGE * BLOCK).expect("a trim at full");
        ledger.acknowledge(index, LARGE, Content::Zero);
    }
    cluster.wait_until_whole(Duration::from_secs(60));
    let findings = writer::compare(&client, &mut ledger).expect("reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    drop(client);
    cluster.stop();
}
