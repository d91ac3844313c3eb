//! A storage node that comes back as it was some time ago, with all that it keeps beside its device, as from the
//! snapshot of a virtual machine: it has lost acknowledged writes, and nothing that it has says so.
//!
//! Who knows: the front end that is attached (rule 5.9), or else the monitors, who hear each second how far a node's
//! log goes (N8), or nobody. ([`crate::rollback`]: the device alone is put back, and the node itself knows.)

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::blocks::Ledger;
use crate::cluster::{Cluster, Shape};
use crate::in_sync::look_at;
use crate::prober::Prober;
use crate::scrub::metric;
use crate::tools::{run, wait_until};
use crate::writer;

/// For what takes some seconds, on a machine that has other work.
const SOON: Duration = Duration::from_secs(40);
/// What fails the test: a node is killed, and nothing waits for a monitor, or for the node that fell back.
const STALL_MAX: Duration = Duration::from_secs(8);
/// Of the ledger, behind those of the prober.
const FIRST_BLOCK: u64 = 4096;
const BLOCKS: usize = 4096;
/// Nobody answers for so long what nobody may answer.
const UNANSWERED: Duration = Duration::from_secs(2);

const FOUND: &str = "the node has lost writes that it had reported as durable";
const ORDERED: &str = "a leader has found that this node lost writes which it had reported as durable";
const NOTED: &str = "the node has taken note that it has lost writes";
const FOUND_AT_START: &str = "the log ends before a position that this node had reported as durable";

/// A node, and all that it was at some time.
struct Snapshot {
    node: String,
    then: PathBuf,
}

fn copy(from: &Path, to: &Path) {
    let (from, to) = (from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
    run("cp", &["-a", "--sparse=always", from, to], Duration::from_secs(60)).ok("cp");
}

impl Snapshot {
    /// The node is killed, and goes on when its directory has been copied.
    fn of(cluster: &mut Cluster, node: &str) -> Snapshot {
        cluster.kill(node);
        let then = cluster.dir.join("then");
        copy(&cluster.dir.join(node), &then);
        cluster.restart(node);
        Snapshot { node: node.to_owned(), then }
    }

    /// Puts it back, under a node that does not run. It had everything, and has lost some of it.
    #[track_caller]
    fn put_back(&self, cluster: &Cluster, ledger: &Ledger) {
        assert_has_all(cluster, &self.node, ledger);
        let now = cluster.dir.join(&self.node);
        std::fs::remove_dir_all(&now).expect("its directory");
        copy(&self.then, &now);
        let findings = look_at(cluster, &self.node, &cluster.dir.join("image.raw"), ledger);
        println!("put back: {} lacks {} of {BLOCKS} blocks", self.node, findings.wrong.len());
        assert!(!findings.wrong.is_empty(), "it has lost nothing: {findings}");
    }
}

/// The node's device alone, of a node that does not run.
#[track_caller]
fn assert_has_all(cluster: &Cluster, node: &str, ledger: &Ledger) {
    let findings = look_at(cluster, node, &cluster.dir.join("image.raw"), ledger);
    assert!(findings.wrong.is_empty(), "{node} alone: {findings}\n{}", cluster.logs());
}

fn shape() -> Shape {
    Shape { node_size: "1GiB", volumes: &["disk0=64MiB"], ..Shape::default() }
}

/// The front end speaks with all nodes, and all that it has ever written is on all of them.
#[track_caller]
fn wait_for_copies(cluster: &Cluster) {
    let front = cluster.names("nbd").remove(0);
    let of = |node: u32, name: &str| {
        metric(cluster, &front, &format!("trefoil_nbd_node_{name}{{volume=\"disk0\",node=\"{node}\"}}"))
    };
    let all = || {
        (0..3).all(|node| {
            of(node, "up") == 1 && of(node, "copies_behind") == 0 && of(node, "writes_in_flight") == 0
        })
    };
    assert!(wait_until(SOON, all), "not all copies are whole\n{}", cluster.logs());
}

#[track_caller]
fn write_to_all(cluster: &Cluster, ledger: &mut Ledger) {
    writer::write_through(&cluster.connect("disk0"), ledger).expect("it writes");
    wait_for_copies(cluster);
}

#[track_caller]
fn compare(cluster: &Cluster, ledger: &mut Ledger) {
    let findings = writer::compare(&cluster.connect("disk0"), ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}\n{}", cluster.logs());
}

#[track_caller]
fn wait_for_log(cluster: &Cluster, name: &str, text: &str) {
    assert!(wait_until(SOON, || cluster.log_of(name).contains(text)), "{name}: {text}\n{}", cluster.logs());
}

/// How far a node's log goes, as the monitors remember it.
#[track_caller]
fn heard_of(cluster: &Cluster, node: &str) -> u64 {
    let list = cluster.ask(&["node", "list"]);
    let address = &cluster.process(node).address;
    let mut list = list.as_array().into_iter().flatten();
    let it = list.find(|it| it["address"] == address.as_str()).expect("the node is known");
    it["log_position"].as_u64().unwrap_or(0)
}

fn has_check(cluster: &Cluster, code: &str) -> bool {
    let status = cluster.status();
    status["checks"].as_array().is_some_and(|checks| checks.iter().any(|check| check["code"] == code))
}

/// NODE_LOST_STATE may stand for a second only: the front end settles the node at once. That it stood is kept for
/// whoever was not there to see it.
#[track_caller]
fn wait_for_events(cluster: &Cluster, times: usize) {
    let mut events = String::new();
    let told = wait_until(SOON, || {
        events = cluster.run(&["events"]).ok("events").out;
        let count = |text: &str| events.matches(text).count();
        let lost = count("\"node-lost\"");
        lost >= times && count("\"node-healed\"") == lost
    });
    assert!(told, "{events}\n{}", cluster.logs());
}

#[test]
fn a_node_that_fell_back_is_found_by_the_front_end_and_healed() {
    let mut cluster = Cluster::start(shape());
    let mut ledger = Ledger::new(59, FIRST_BLOCK, BLOCKS);
    let [monitor, front] = ["monitor", "nbd"].map(|role| cluster.names(role).remove(0));
    let nodes = cluster.names("storage-node");
    write_to_all(&cluster, &mut ledger);
    let prober = Prober::start(&cluster.endpoint(), "disk0", 0, 1024);

    // Without a monitor, or it would know how far the node's log went, and the front end had nothing to find.
    cluster.kill(&monitor);
    let snapshot = Snapshot::of(&mut cluster, &nodes[1]);
    wait_for_copies(&cluster);
    write_to_all(&cluster, &mut ledger);
    cluster.kill(&nodes[1]);
    snapshot.put_back(&cluster, &ledger);
    cluster.restart(&monitor);
    cluster.restart(&nodes[1]);

    wait_for_log(&cluster, &front, FOUND);
    compare(&cluster, &mut ledger);
    wait_for_log(&cluster, &nodes[1], ORDERED);
    wait_for_log(&cluster, &front, NOTED);
    assert!(!cluster.log_of(&nodes[1]).contains(FOUND_AT_START), "{}", cluster.logs());
    cluster.wait_until_whole(SOON);
    wait_for_copies(&cluster);
    wait_for_events(&cluster, 1);
    assert!(
        metric(&cluster, &nodes[1], "trefoil_storage_state_losses_total") > 0,
        "for alerts, which may miss the check"
    );

    // Whoever is away now: it counts, and it is right.
    cluster.kill(&nodes[0]);
    compare(&cluster, &mut ledger);
    let seen = prober.stop();
    seen.report("a node that fell back");
    assert!(seen.faults.is_empty(), "{:?}\n{}", seen.faults, cluster.logs());
    assert!(seen.longest() < STALL_MAX, "{:?}\n{}", seen.longest(), cluster.logs());
    cluster.kill_all();
    assert_has_all(&cluster, &nodes[1], &ledger);
}

#[test]
fn a_node_whose_loss_only_the_monitors_know_has_no_vote_for_a_new_front_end() {
    let mut cluster = Cluster::start(shape());
    let mut ledger = Ledger::new(60, FIRST_BLOCK, BLOCKS);
    let front = cluster.names("nbd").remove(0);
    let nodes = cluster.names("storage-node");
    write_to_all(&cluster, &mut ledger);
    let snapshot = Snapshot::of(&mut cluster, &nodes[1]);
    wait_for_copies(&cluster);

    // What is acknowledged from here on is on two nodes, one of which will have lost it.
    cluster.kill(&nodes[2]);
    let client = cluster.connect("disk0");
    writer::write_through(&client, &mut ledger).expect("it writes");
    drop(client);
    let written = metric(&cluster, &nodes[1], "trefoil_storage_log_position");
    let heard = || heard_of(&cluster, &nodes[1]) >= written;
    assert!(written > 0 && wait_until(SOON, heard), "{written}\n{}", cluster.logs());
    for name in [&front, &nodes[1], &nodes[0]] {
        cluster.kill(name);
    }
    snapshot.put_back(&cluster, &ledger);
    cluster.restart(&nodes[2]);
    cluster.restart(&nodes[1]);
    wait_for_log(&cluster, &nodes[1], FOUND_AT_START);
    cluster.restart(&front);

    // Two nodes of three, and one of them has no vote: nobody is answered, least of all with what is old.
    let client = cluster.connect("disk0");
    let reader = std::thread::spawn(move || {
        let findings = writer::compare(&client, &mut ledger);
        (findings, ledger)
    });
    let up = |node: u32| {
        metric(&cluster, &front, &format!("trefoil_nbd_node_up{{volume=\"disk0\",node=\"{node}\"}}"))
    };
    let speaks = || (0..3).map(up).sum::<u64>() == 2;
    assert!(wait_until(SOON, speaks), "{}", cluster.logs());
    std::thread::sleep(UNANSWERED);
    assert!(!reader.is_finished(), "{:?}\n{}", reader.join().map(|it| it.0), cluster.logs());
    assert!(has_check(&cluster, "NODE_LOST_STATE"), "{:#}\n{}", cluster.status(), cluster.logs());

    cluster.restart(&nodes[0]);
    let (findings, mut ledger) = reader.join().expect("the reader does not panic");
    let findings = findings.unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    assert!(findings.wrong.is_empty(), "{findings}\n{}", cluster.logs());
    wait_for_copies(&cluster);
    wait_for_events(&cluster, 1);

    // The same snapshot once more, with a front end that is there all the time.
    let prober = Prober::start(&cluster.endpoint(), "disk0", 0, 1024);
    cluster.kill(&nodes[1]);
    snapshot.put_back(&cluster, &ledger);
    cluster.restart(&nodes[1]);
    wait_for_events(&cluster, 2);
    compare(&cluster, &mut ledger);
    wait_for_copies(&cluster);
    let seen = prober.stop();
    seen.report("a node that fell back, and knows");
    assert!(seen.faults.is_empty(), "{:?}\n{}", seen.faults, cluster.logs());
    assert!(seen.longest() < STALL_MAX, "{:?}\n{}", seen.longest(), cluster.logs());
    cluster.kill_all();
    assert_has_all(&cluster, &nodes[1], &ledger);
}

#[test]
fn a_node_whose_loss_nobody_knows_is_healed_by_a_new_front_end_from_any_other_copy() {
    let mut cluster = Cluster::start(shape());
    let mut ledger = Ledger::new(61, FIRST_BLOCK, BLOCKS);
    let [monitor, front] = ["monitor", "nbd"].map(|role| cluster.names(role).remove(0));
    let nodes = cluster.names("storage-node");
    write_to_all(&cluster, &mut ledger);
    cluster.kill(&monitor);
    let snapshot = Snapshot::of(&mut cluster, &nodes[1]);
    wait_for_copies(&cluster);
    write_to_all(&cluster, &mut ledger);
    for name in [&front, &nodes[1], &nodes[0]] {
        cluster.kill(name);
    }
    snapshot.put_back(&cluster, &ledger);
    for name in [&monitor, &nodes[1], &front] {
        cluster.restart(name);
    }

    // It and one that has everything are two of three, and the greater votes are the other one's.
    compare(&cluster, &mut ledger);
    // Nobody was told, as 5.9 says.
    for told in [FOUND, ORDERED, FOUND_AT_START] {
        assert!(
            !cluster.log_of(&nodes[1]).contains(told) && !cluster.log_of(&front).contains(told),
            "{told}"
        );
    }
    cluster.restart(&nodes[0]);
    wait_for_copies(&cluster);
    cluster.kill_all();
    assert_has_all(&cluster, &nodes[1], &ledger);
}
