//! Scrub on real processes: rot that nobody reads, and copies that lie: bytes and checksum belong together, and
//! are not what was written. Two against one are mended; where no majority says what is right, reads fail, the
//! status names the block, and an administrator's word settles it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::{BlockRange, ObjectId};
use trefoil_storage_node::store::{Store, StoreOptions};

use crate::blocks::{BLOCK, Ledger};
use crate::cluster::{Cluster, Shape, run_trefoil};
use crate::tools::{is_running, wait_until};
use crate::writer;

const SALT: u64 = 61;
const BLOCKS: usize = 4 << 10;
/// Blocks of an object of 4 MiB.
const OBJECT_BLOCKS: u64 = (4 << 20) / BLOCK as u64;
const LONG: Duration = Duration::from_secs(90);

fn start() -> (Cluster, Ledger) {
    let shape = Shape { node_size: "2GiB", limit: Duration::from_secs(400), ..Shape::default() };
    let cluster = Cluster::start(shape);
    let mut ledger = Ledger::new(SALT, 0, BLOCKS);
    writer::write_through(&cluster.connect("disk0"), &mut ledger).expect("it writes");
    cluster.wait_until_whole(LONG);
    (cluster, ledger)
}

/// Stops a node cleanly, so that its log ends where it says.
#[track_caller]
fn stop(cluster: &mut Cluster, name: &str) {
    let pid = cluster.pid(name);
    cluster.signal(name, Signal::SIGTERM);
    // The supervisor starts it again after a while; it must not find the store open.
    assert!(
        wait_until(Duration::from_secs(20), || !is_running(pid)),
        "{name} does not end\n{}",
        cluster.logs()
    );
}

/// Makes a stopped node's copy of a block of the volume another one, as a store that lies would: with its
/// checksum, at the head that it had.
fn lie(cluster: &Cluster, name: &str, block: u64, byte: u8) {
    let dir = cluster.dir.join(name);
    let (mut store, recovered) =
        Store::open(&cluster.device(name), &dir.join("index"), StoreOptions::default(), &mut |_, _| ())
            .expect("the store of a stopped node");
    let (index, block) = ((block / OBJECT_BLOCKS) as u32, (block % OBJECT_BLOCKS) as u32);
    let mut groups = recovered.durable.groups.iter();
    let (group, head) = groups
        .find_map(|(group, state)| Some((*group, *state.objects.get(&index)?)))
        .expect("the object is there");
    let data = vec![byte; BLOCK];
    let checksums = [block_checksum(group.volume, index, block, &data)].into();
    let op = WriteOp::Data { blocks: BlockRange::new(block, 1), checksums, data: data.into() };
    store.append(1, Record::Write { object: ObjectId { group, index }, head, snap: 0, op });
    store.shutdown().expect("it is durable");
}

fn lie_of(cluster: &mut Cluster, name: &str, block: u64, byte: u8) {
    stop(cluster, name);
    lie(cluster, name, block, byte);
    cluster.restart(name);
    cluster.wait_until_whole(LONG);
}

fn order(cluster: &Cluster, arguments: &[&str]) {
    let monitors = cluster.monitors();
    let all = [arguments, &["--monitor", &monitors]].concat();
    run_trefoil(&all, Duration::from_secs(30)).ok(&format!("{arguments:?}"));
}

fn trefoil_says(cluster: &Cluster, arguments: &[&str]) -> String {
    let monitors = cluster.monitors();
    let all = [arguments, &["--monitor", &monitors]].concat();
    run_trefoil(&all, Duration::from_secs(30)).ok(&format!("{arguments:?}")).out
}

/// The details of a check that applies.
fn check(cluster: &Cluster, code: &str) -> Option<Vec<String>> {
    let status = cluster.status();
    let checks = status["checks"].as_array().cloned().unwrap_or_default();
    let check = checks.into_iter().find(|check| check["code"] == code)?;
    let details = check["details"].as_array().cloned().unwrap_or_default();
    Some(details.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// A number of a daemon's metrics; 0 if it cannot be had.
pub fn metric(cluster: &Cluster, name: &str, metric: &str) -> u64 {
    let text = std::fs::read_to_string(cluster.config(name)).expect("the configuration");
    let table: toml::Table = text.parse().expect("TOML");
    let listen = match table.get("metrics_listen").and_then(toml::Value::as_str) {
        Some(listen) if listen.contains(':') => listen.to_owned(),
        _ => {
            let address: std::net::SocketAddr = cluster.process(name).address.parse().expect("an address");
            format!("127.0.0.1:{}", address.port() + 1000)
        }
    };
    scrape(&listen)
        .lines()
        .find_map(|line| line.strip_prefix(metric)?.trim().parse::<f64>().ok())
        .map_or(0, |value| value as u64)
}

fn scrape(listen: &str) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(listen) else { return String::new() };
    let mut text = String::new();
    let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let _ = asked.and_then(|()| stream.read_to_string(&mut text));
    text
}

#[track_caller]
fn read_all(cluster: &Cluster, ledger: &mut Ledger, when: &str) {
    let findings = writer::compare(&cluster.connect("disk0"), ledger)
        .unwrap_or_else(|error| panic!("{when}: {error}\n{}", cluster.logs()));
    assert!(findings.wrong.is_empty(), "{when}: {findings}");
}

fn read_block(cluster: &Cluster, block: u64) -> std::io::Result<Vec<u8>> {
    cluster.connect("disk0").read(block * BLOCK as u64, BLOCK)
}

/// Reads everything with each of the others away in turn.
fn read_from(cluster: &mut Cluster, victim: &str, ledger: &mut Ledger, when: &str) {
    for away in cluster.names("storage-node").iter().filter(|name| *name != victim) {
        cluster.kill(away);
        read_all(cluster, ledger, &format!("{when}, {away} away"));
        cluster.restart(away);
        cluster.wait_until_whole(LONG);
    }
}

/// Flips a byte in each block of the device that holds one of these.
fn rot(device: &Path, bytes: &[u8; 16]) -> usize {
    let file = File::options().read(true).write(true).open(device).expect("the device");
    let length = file.metadata().expect("its length").len();
    let (mut chunk, mut at, mut flipped) = (vec![0; 1 << 20], 0, 0);
    while at < length {
        let wanted = (length - at).min(chunk.len() as u64) as usize;
        file.read_exact_at(&mut chunk[..wanted], at).expect("it can be read");
        for (n, block) in chunk[..wanted].chunks_exact(BLOCK).enumerate().filter(|(_, b)| b[..16] == *bytes) {
            let place = at + (n * BLOCK) as u64 + 99;
            file.write_all_at(&[block[99] ^ 4], place).expect("it can be written");
            flipped += 1;
        }
        at += wanted as u64;
    }
    file.sync_data().expect("it reaches the disk");
    flipped
}

#[test]
fn a_deep_scrub_finds_and_heals_what_nobody_reads() {
    let (mut cluster, mut ledger) = start();
    let victim = cluster.names("storage-node")[0].clone();
    let mut flipped = 0;
    for block in [5usize, 700, 2100] {
        let bytes = read_block(&cluster, block as u64).expect("it is read");
        flipped += rot(&cluster.device(&victim), bytes[..16].try_into().expect("16 bytes"));
    }
    assert!(flipped >= 3, "{flipped}");
    order(&cluster, &["pg", "scrub", "--all", "--deep"]);
    let healed = |cluster: &Cluster| metric(cluster, &victim, "trefoil_storage_healed_blocks_total");
    assert!(
        wait_until(LONG, || healed(&cluster) >= 3),
        "{} healed; status {:#}\n{}",
        healed(&cluster),
        cluster.status(),
        cluster.logs()
    );
    assert!(metric(&cluster, &victim, "trefoil_storage_scrub_bytes_total") > 0);
    cluster.wait_until_whole(LONG);
    read_from(&mut cluster, &victim, &mut ledger, "healed");
    cluster.stop();
}

#[test]
fn a_copy_that_lies_is_outvoted_and_mended() {
    const BLOCK_OF_LIE: u64 = 1300;
    let (mut cluster, mut ledger) = start();
    let victim = cluster.names("storage-node")[1].clone();
    lie_of(&mut cluster, &victim, BLOCK_OF_LIE, 0x55);
    order(&cluster, &["pg", "scrub", "--all"]);
    let mended = |cluster: &Cluster| metric(cluster, &victim, "trefoil_storage_scrub_mended_blocks_total");
    assert!(wait_until(LONG, || mended(&cluster) == 1), "{:#}\n{}", cluster.status(), cluster.logs());
    assert_eq!(metric(&cluster, &victim, "trefoil_storage_scrub_outvoted_blocks_total"), 1);
    cluster.wait_until_whole(LONG);
    read_from(&mut cluster, &victim, &mut ledger, "mended");
    cluster.stop();
}

#[test]
fn three_copies_that_differ_are_named_and_settled_by_word_only() {
    const BLOCK_OF_LIE: u64 = 2051;
    let (mut cluster, mut ledger) = start();
    let names = cluster.names("storage-node");
    lie_of(&mut cluster, &names[0], BLOCK_OF_LIE, 0x55);
    lie_of(&mut cluster, &names[1], BLOCK_OF_LIE, 0x66);
    order(&cluster, &["pg", "scrub", "--all"]);
    let (object, block) = (BLOCK_OF_LIE / OBJECT_BLOCKS, BLOCK_OF_LIE % OBJECT_BLOCKS);
    let named = format!("disk0 object {object} block {block}: ");
    // By all three of them.
    let told = |cluster: &Cluster| {
        let details = check(cluster, "OBJECT_INCONSISTENT").unwrap_or_default();
        details.iter().any(|line| line.starts_with(&named) && line.matches(" has ").count() == 3)
    };
    assert!(wait_until(LONG, || told(&cluster)), "{:#}\n{}", cluster.status(), cluster.logs());
    assert_eq!(cluster.status()["health"], "HEALTH_ERR");
    // And by the command that says which copy holds what.
    let text = format!("disk0/{object}");
    let shown = cluster.ask(&["pg", "show", "--object", &text]);
    let in_doubt = shown["in_doubt"].as_array().expect("blocks");
    assert_eq!(in_doubt.len(), 1, "{shown:#}");
    assert_eq!((&in_doubt[0]["block"], &in_doubt[0]["disputed"]), (&block.into(), &true.into()), "{shown:#}");
    let copies = in_doubt[0]["copies"].as_array().expect("copies");
    assert!(copies.iter().all(|copy| copy["state"] == "disputed"), "{shown:#}");
    let held: BTreeSet<&str> = copies.iter().filter_map(|copy| copy["checksum"].as_str()).collect();
    assert_eq!((copies.len(), held.len()), (3, 3), "each holds something else: {shown:#}");
    let pg = shown["pg"].as_str().expect("a placement group").to_owned();
    let table = trefoil_says(&cluster, &["pg", "show", &pg]);
    assert!(held.iter().all(|sum| table.contains(sum)) && table.contains("pg settle"), "{table}");
    for _ in 0..5 {
        assert!(read_block(&cluster, BLOCK_OF_LIE).is_err(), "nothing is guessed");
    }
    assert!(read_block(&cluster, BLOCK_OF_LIE + 1).is_ok(), "its neighbours are read");
    // Also by a front end that begins anew, and with any one copy away.
    for away in &names {
        cluster.kill(away);
        assert!(read_block(&cluster, BLOCK_OF_LIE).is_err(), "nothing is guessed with {away} away");
        cluster.restart(away);
        let up = || cluster.nodes().iter().filter(|node| node.up).count() == 3;
        assert!(wait_until(LONG, up));
    }
    assert!(wait_until(LONG, || told(&cluster)), "{:#}\n{}", cluster.status(), cluster.logs());

    // What is not in dispute is not settled, and nobody is believed who has no copy.
    let list = cluster.ask(&["node", "list"]);
    let address = cluster.process(&names[2]).address.clone();
    let nodes = list.as_array().expect("a list");
    let id =
        nodes.iter().find(|node| node["address"] == address.as_str()).expect("the node")["id"].to_string();
    let monitors = cluster.monitors();
    let settle = |object: &str, block: &str, from: &str| {
        let arguments =
            ["pg", "settle", "--object", object, "--block", block, "--from", from, "--monitor", &monitors];
        run_trefoil(&arguments, Duration::from_secs(30)).status.success()
    };
    assert!(!settle(&text, "7", &id) && !settle(&text, &block.to_string(), "77"));
    // The command waits until no copy is in doubt any more, and says so.
    let arguments = ["pg", "settle", "--object", &text, "--block", &block.to_string(), "--from", &id];
    let arguments = [&arguments[..], &["--wait", "100", "--monitor", &monitors]].concat();
    let settled = run_trefoil(&arguments, Duration::from_secs(120)).ok("settle").out;
    assert!(settled.contains("settled by the copy of"), "{settled}");
    let shown = cluster.ask(&["pg", "show", &pg]);
    assert_eq!(shown["in_doubt"].as_array().map(Vec::len), Some(0), "{shown:#}");
    let gone =
        || check(&cluster, "OBJECT_INCONSISTENT").is_none() && check(&cluster, "OBJECT_OUTVOTED").is_none();
    assert!(wait_until(LONG, gone), "{:#}\n{}", cluster.status(), cluster.logs());
    cluster.wait_until_whole(LONG);
    // The third copy was the true one, and all three are it now.
    read_all(&cluster, &mut ledger, "settled");
    let first = names[0].clone();
    read_from(&mut cluster, &first, &mut ledger, "settled");
    cluster.stop();
}
