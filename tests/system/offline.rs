//! The cluster is in pieces: nothing runs, and a volume's image is taken out of the bare devices. It must
//! be what the cluster read, with one device stale, with one rotten, with one missing, and after a power
//! failure in mid-write.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::blocks::{BLOCK, Findings, Ledger, Random};
use crate::cluster::{Cluster, Shape, run_trefoil};
use crate::tools::{Finished, lacks, run};
use crate::writer::{self, Mix};

const MINUTE: Duration = Duration::from_secs(60);
const BLOCKS: usize = 8 << 10;

/// A block in an object of its own (of 4 MiB), which is written last. Damage in the last batch of a log looks like a
/// write that a power failure tore: it is not named, the batch is gone. So nothing else may be in that batch.
const LAST_OBJECT: u64 = 40;
const LAST_BLOCK: u64 = LAST_OBJECT * (4 << 20) / BLOCK as u64;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.out).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

/// Exports `disk0` from some of the nodes' devices.
fn export(cluster: &Cluster, nodes: &[&String], out: &Path) -> Finished {
    let map = cluster.dir.join(nodes[0]).join("map");
    let devices: Vec<PathBuf> = nodes.iter().map(|name| cluster.device(name)).collect();
    let mut arguments = vec!["store", "export-volume", "disk0", "--map", text(&map), "--json", "--force"];
    for device in &devices {
        arguments.extend(["--device", text(device)]);
    }
    arguments.extend(["--out", text(out)]);
    run_trefoil(&arguments, MINUTE)
}

#[track_caller]
fn assert_same(left: &Path, right: &Path) {
    run("cmp", &[text(left), text(right)], MINUTE).ok("they are equal");
}

fn scribble(cluster: &Cluster, ledger: &mut Ledger, random: &mut Random, time: Duration) {
    let client = cluster.connect("disk0");
    let start = Instant::now();
    let outcome = writer::run(&client, ledger, random, Mix::default(), || start.elapsed() > time);
    assert!(outcome.end.is_none() && outcome.errors.is_empty(), "{outcome:?}\n{}", cluster.logs());
}

/// Flips a byte in some of the blocks that the store on a device has of volume 1, but for [`LAST_BLOCK`], and
/// returns how many.
fn rot(device: &Path, random: &mut Random, one_in: u64) -> usize {
    let dump = run_trefoil(&["store", "dump", text(device), "--json"], MINUTE).ok("a dump");
    let file = File::options().read(true).write(true).open(device).expect("the device");
    let mut flipped = 0;
    for line in dump.out.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        if line["index"] == LAST_OBJECT {
            continue;
        }
        for run in line["runs"].as_array().into_iter().flatten() {
            let start = run["byte"].as_u64().expect("a place");
            for block in 0..run["count"].as_u64().expect("a count") {
                if random.below(one_in) == 0 {
                    let at = start + block * BLOCK as u64 + random.below(BLOCK as u64);
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).expect("it can be read");
                    file.write_all_at(&[byte[0] ^ 0x10], at).expect("it can be written");
                    flipped += 1;
                }
            }
        }
    }
    flipped
}

#[test]
fn a_volume_comes_out_of_bare_devices_as_the_cluster_read_it() {
    if lacks(&["nbdcopy", "fio"]) {
        return;
    }
    let shape = Shape { volumes: &["disk0=256MiB"], limit: 4 * MINUTE, ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    let folder = tempfile::tempdir().expect("a directory");
    let (reference, image) = (folder.path().join("reference.raw"), folder.path().join("image.raw"));
    let mut random = Random::new(71);
    let mut ledger = Ledger::new(71, 0, BLOCKS);
    writer::write_through(&cluster.connect("disk0"), &mut ledger).expect("it writes");
    let names = cluster.names("storage-node");
    let (good, rotten, stale) = (&names[0], &names[1], &names[2]);

    // One node misses what fio and our own writer change.
    cluster.wait_until_whole(Duration::from_secs(30));
    cluster.kill(stale);
    scribble(&cluster, &mut ledger, &mut random, Duration::from_secs(2));
    let uri = format!("--uri={}", cluster.uri("disk0"));
    let fio = ["--name=x", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=4k", "--iodepth=16"];
    let region = ["--offset=64m", "--size=64m", "--io_size=16m", "--randrepeat=1", "--refill_buffers=1"];
    run("fio", &[&fio[..], &region[..]].concat(), MINUTE).ok("fio");
    let mut last = Ledger::new(72, LAST_BLOCK, 1);
    writer::write_through(&cluster.connect("disk0"), &mut last).expect("it writes");
    run("nbdcopy", &[&cluster.uri("disk0"), text(&reference)], MINUTE).ok("nbdcopy");
    let in_use = export(&cluster, &[good, rotten], &image);
    assert_eq!(in_use.status.code(), Some(2), "{in_use:?}");
    assert!(in_use.err.contains("stop the storage node first"), "{in_use:?}");
    cluster.kill_all();

    for nodes in [vec![good, rotten, stale], vec![stale, good], vec![rotten, stale], vec![good, rotten]] {
        let done = export(&cluster, &nodes, &image).ok("an export");
        assert_same(&reference, &image);
        let report = json(&done);
        assert_eq!(
            (&report["bad"], &report["conflicts"], &report["undecided"]),
            (&0.into(), &0.into(), &0.into())
        );
        println!("offline: {nodes:?}: {} blocks, {:.1} s", report["blocks"], done.took.as_secs_f64());
    }
    let one = export(&cluster, &[good], &image);
    assert_eq!(one.status.code(), Some(2), "{one:?}");
    assert!(one.err.contains("no majority") && one.err.contains("--believe-one"), "{one:?}");

    // Nothing is wrong with a device whose node was killed, nor with its index.
    for name in &names {
        let (device, index) = (cluster.device(name), cluster.dir.join(name).join("index"));
        let check = ["store", "check", text(&device), "--index", text(&index), "--json"];
        let report = json(&run_trefoil(&check, MINUTE).ok("a check"));
        assert!(report["wrong"] == 0 && report["blocks"].as_u64() > Some(8000), "{name}: {report:#}");
    }

    // Rot on one device is made good from the others; with only the stale one beside it, what is lost is
    // named block by block, and nothing else differs.
    let flipped = rot(&cluster.device(rotten), &mut random, 40);
    assert!(flipped > 50, "{flipped} blocks");
    let check = run_trefoil(&["store", "check", text(&cluster.device(rotten)), "--json"], MINUTE);
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    let found = json(&check)["by_kind"]["block"].as_u64().unwrap_or(0) as usize;
    assert_eq!(found, flipped, "{}", check.out);
    let report = json(&export(&cluster, &[rotten, good, stale], &image).ok("an export"));
    assert_same(&reference, &image);
    assert!(report["mended"].as_u64() > Some(50) && report["bad"] == 0, "{report:#}");
    let done = export(&cluster, &[rotten, stale], &image);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let report = json(&done);
    let problems = report["block_problems"].as_array().expect("a list");
    let bad: BTreeSet<u64> =
        problems.iter().map(|it| it["image_byte"].as_u64().expect("a place") / BLOCK as u64).collect();
    println!("offline: {flipped} blocks rotten, {} of them on no other device", bad.len());
    // The stale one may have none of them.
    assert!(!bad.is_empty() && bad.len() <= flipped, "{} of {flipped}", bad.len());
    let (left, right) = (std::fs::read(&reference).expect("read"), std::fs::read(&image).expect("read"));
    for (block, (left, right)) in (0u64..).zip(left.chunks(BLOCK).zip(right.chunks(BLOCK))) {
        let as_it_should =
            if bad.contains(&block) { right.iter().all(|byte| *byte == 0) } else { left == right };
        assert!(as_it_should, "block {block}");
    }
}

#[test]
fn after_a_power_failure_the_image_has_every_acknowledged_write() {
    let shape = Shape { volumes: &["disk0=128MiB"], limit: 3 * MINUTE, ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    let folder = tempfile::tempdir().expect("a directory");
    let image = folder.path().join("image.raw");
    let mut random = Random::new(72);
    let mut ledger = Ledger::new(72, 0, BLOCKS);
    for round in 0..2 {
        let client = cluster.connect("disk0");
        let over = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            let (client, ledger, random, asked) = (&client, &mut ledger, &mut random, &over);
            let stop = || asked.load(Ordering::Relaxed);
            let writer = scope.spawn(move || writer::run(client, ledger, random, Mix::default(), stop));
            std::thread::sleep(Duration::from_millis(700));
            cluster.kill_all();
            std::thread::sleep(Duration::from_millis(200));
            over.store(true, Ordering::Relaxed);
            writer.join().expect("the writer does not panic")
        });
        assert!(outcome.end.is_some() && outcome.acknowledged > 10, "{outcome:?}");
        let names = cluster.names("storage-node");
        let all: Vec<&String> = names.iter().collect();
        // Any two of them have it all, as any two can go on. A ledger of its own for each: what was in
        // flight may be seen by one majority and not by another.
        for nodes in [vec![all[0], all[1]], vec![all[1], all[2]], vec![all[2], all[0]], all.clone()] {
            export(&cluster, &nodes, &image).ok("an export");
            let mut findings = Findings::default();
            ledger.clone().check(0, &std::fs::read(&image).expect("read")[..BLOCKS * BLOCK], &mut findings);
            println!("offline: power loss {round}, {nodes:?}: {findings}");
            assert!(findings.wrong.is_empty(), "{nodes:?}: {findings}");
        }
        cluster.start_again();
        let findings = writer::compare(&cluster.connect("disk0"), &mut ledger).expect("it reads");
        assert!(findings.wrong.is_empty(), "{findings}");
    }
    cluster.stop();
}
