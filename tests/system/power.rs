//! The power fails: every process is killed at once, in mid-write, again and again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::blocks::{Findings, Ledger, Random};
use crate::cluster::{Cluster, Shape};
use crate::nbd_client::{Client, Endpoint};
use crate::writer::{self, Mix};

/// What is lost beside the processes.
#[derive(Copy, Clone, Debug, PartialEq)]
enum Index {
    Kept,
    /// Of one node, each in turn.
    DeletedOnOne,
    DeletedOnAll,
}

fn rounds(index: Index, rounds: u64) {
    let shape =
        Shape { node_size: "16GiB", limit: Duration::from_secs(60 + 30 * rounds), ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    // 128 MiB, in the middle of which lies nothing special.
    let mut ledger = Ledger::new(31, 1000, 32 << 10);
    let mut random = Random::new(31 + rounds);
    let mut in_flight = 0;
    for round in 0..rounds {
        let client = if round % 2 == 0 { cluster.connect("disk0") } else { over_tcp(&cluster) };
        // Not always at the same distance from the start.
        let until = Duration::from_millis(500 + random.below(1500));
        let over = AtomicBool::new(false);
        // On a thread of its own, so that it is in the midst of writing when the end comes.
        let outcome = std::thread::scope(|scope| {
            let (client, ledger, random, asked) = (&client, &mut ledger, &mut random, &over);
            let stop = || asked.load(Ordering::Relaxed);
            let writer = scope.spawn(move || writer::run(client, ledger, random, Mix::default(), stop));
            std::thread::sleep(until);
            cluster.kill_all();
            // It has seen the connection end by now; if not, it must not write for ever.
            std::thread::sleep(Duration::from_millis(200));
            over.store(true, Ordering::Relaxed);
            writer.join().expect("the writer does not panic")
        });
        assert!(outcome.end.is_some(), "round {round}: the writer saw the end: {outcome:?}");
        assert!(outcome.errors.is_empty(), "round {round}: {outcome:?}");
        assert!(outcome.acknowledged > 10, "round {round}: {outcome:?}");
        in_flight += outcome.in_flight.len();
        drop(client);

        let nodes = cluster.names("storage-node");
        let gone = match index {
            Index::Kept => &[][..],
            Index::DeletedOnOne => &nodes[round as usize % 3..][..1],
            Index::DeletedOnAll => &nodes[..],
        };
        for node in gone {
            cluster.delete_index(node);
        }
        let ready = cluster.start_again();
        let findings = look(&cluster, &mut ledger);
        println!(
            "power loss {round} ({index:?}): {} acknowledged, {} in flight, ready after {:.1} s; {findings}",
            outcome.acknowledged,
            outcome.in_flight.len(),
            ready.as_secs_f64()
        );
        assert!(findings.wrong.is_empty(), "round {round}: {findings}\n{}", cluster.logs());
    }
    cluster.wait_until_whole(Duration::from_secs(60));
    let findings = look(&cluster, &mut ledger);
    assert!(findings.wrong.is_empty(), "when all copies are whole: {findings}");
    println!("{} writes acknowledged in all, {in_flight} were in flight", ledger.acknowledged);
    assert!(in_flight > 0, "it was in mid-write at least once");
    cluster.stop();
}

fn over_tcp(cluster: &Cluster) -> Client {
    let address = cluster.process(&cluster.names("nbd")[0]).address.clone();
    Client::connect(&Endpoint::Tcp(address), "disk0").expect("it connects over TCP")
}

fn look(cluster: &Cluster, ledger: &mut Ledger) -> Findings {
    writer::compare(&cluster.connect("disk0"), ledger)
        .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()))
}

#[test]
fn ten_power_losses_lose_nothing_that_was_acknowledged() {
    rounds(Index::Kept, 10);
}

#[test]
fn power_losses_with_one_nodes_index_deleted_lose_nothing() {
    rounds(Index::DeletedOnOne, 3);
}

#[test]
fn power_losses_with_every_index_deleted_lose_nothing() {
    rounds(Index::DeletedOnAll, 2);
}

#[test]
fn a_clean_stop_and_a_start_find_everything_at_once() {
    let mut cluster = Cluster::start(Shape::default());
    let mut ledger = Ledger::new(33, 0, 8 << 10);
    let client = cluster.connect("disk0");
    writer::write_through(&client, &mut ledger).expect("it writes");
    drop(client);
    cluster.stop_processes();
    cluster.start_again();
    let findings = look(&cluster, &mut ledger);
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.stop();
}
