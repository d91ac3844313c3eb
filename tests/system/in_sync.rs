//! A pool whose writes are acknowledged when every copy in line has them (`ack = all-in-sync`), on real processes: a
//! stopped node holds up writes for as long as is promised and no longer, and each node's device alone has every
//! acknowledged write.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::blocks::{BLOCK, Findings, Ledger, Random};
use crate::cluster::{Cluster, Shape, run_trefoil};
use crate::writer::{self, Mix, Outcome};

const BLOCKS: usize = 4 << 10;
/// A node that says nothing is cut loose after 5 s, to a tick; the rest is what a busy machine may add.
const HELD_MAX: Duration = Duration::from_secs(15);
/// Less than that is not the time of which the node says nothing, but a moment of a busy machine.
const HELD_MIN: Duration = Duration::from_secs(3);
const STOPPED: Duration = Duration::from_secs(8);

/// Writes until `during` is over.
fn write_during(
    cluster: &mut Cluster,
    ledger: &mut Ledger,
    random: &mut Random,
    during: impl FnOnce(&mut Cluster),
) -> Outcome {
    let client = cluster.connect("disk0");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mix = Mix { depth: 8, ..Mix::default() };
        let (client, asked) = (&client, &over);
        let stop = || asked.load(Ordering::Relaxed);
        let writer = scope.spawn(move || writer::run(client, ledger, random, mix, stop));
        during(cluster);
        over.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic")
    })
}

/// What the device of one node alone says of the region, nobody else being there.
#[track_caller]
pub fn look_at(cluster: &Cluster, node: &str, image: &Path, ledger: &Ledger) -> Findings {
    let map = cluster.dir.join(node).join("map");
    let device = cluster.device(node);
    let text = |path: &Path| path.to_str().expect("a path of UTF-8").to_owned();
    let (map, device, out) = (text(&map), text(&device), text(image));
    let export = ["store", "export-volume", "disk0", "--map", &map, "--device", &device, "--believe-one"];
    let done = run_trefoil(&[&export[..], &["--out", &out, "--force"]].concat(), Duration::from_secs(30));
    // That it is one alone is told, and the image written.
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let bytes = std::fs::read(image).expect("the image");
    let mut findings = Findings::default();
    // A ledger of its own: of what was in flight each node may have something else.
    let first = ledger.offset(0) as usize;
    ledger.clone().check(0, &bytes[first..][..ledger.blocks() * BLOCK], &mut findings);
    findings
}

#[test]
fn all_in_sync_is_held_by_each_device_alone_and_a_stopped_node_costs_its_timeout() {
    let shape = Shape { volumes: &["disk0=64MiB"], limit: Duration::from_secs(150), ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    let mut random = Random::new(51);
    let mut ledger = Ledger::new(51, 0, BLOCKS);
    let nodes = cluster.names("storage-node");

    let stopped = &nodes[0];
    let outcome = write_during(&mut cluster, &mut ledger, &mut random, |cluster| {
        // The front end hears of it while it writes.
        std::thread::sleep(Duration::from_millis(300));
        cluster.ask(&["pool", "set", "default", "ack", "all-in-sync"]);
        std::thread::sleep(Duration::from_millis(1500));
        cluster.signal(stopped, Signal::SIGSTOP);
        std::thread::sleep(STOPPED);
        // It is cut loose by now: nobody waits for it any more.
        let client = cluster.connect("disk0");
        let began = Instant::now();
        client.write(60 << 20, &[7; BLOCK]).expect("a write with a node stopped");
        println!(
            "all in sync: a write took {:?} when the node had been stopped for a while",
            began.elapsed()
        );
        assert!(began.elapsed() < HELD_MIN, "{:?}\n{}", began.elapsed(), cluster.logs());
        cluster.signal(stopped, Signal::SIGCONT);
    });
    println!("all in sync: {} writes, the longest {:?}", outcome.acknowledged, outcome.longest);
    assert!(outcome.end.is_none() && outcome.errors.is_empty(), "{outcome:?}\n{}", cluster.logs());
    assert!(outcome.longest > HELD_MIN, "nobody waited for the third copy: {outcome:?}");
    assert!(outcome.longest < HELD_MAX, "{outcome:?}\n{}", cluster.logs());
    cluster.wait_until_whole(Duration::from_secs(60));

    // In mid-write all is over: first the front end, so that it takes no node for one that is away.
    let front = cluster.names("nbd")[0].clone();
    let outcome = write_during(&mut cluster, &mut ledger, &mut random, |cluster| {
        std::thread::sleep(Duration::from_millis(1500));
        cluster.kill(&front);
        cluster.kill_all();
    });
    assert!(outcome.end.is_some() && outcome.acknowledged > 10, "{outcome:?}");
    let folder = tempfile::tempdir().expect("a directory");
    for node in &nodes {
        let findings = look_at(&cluster, node, &folder.path().join("image.raw"), &ledger);
        println!("all in sync: {node} alone: {findings}");
        assert!(findings.wrong.is_empty(), "{node} alone: {findings}");
    }
    cluster.start_again();
    let findings = writer::compare(&cluster.connect("disk0"), &mut ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}\n{}", cluster.logs());
    cluster.stop();
}
