//! No space left: writes end with ENOSPC, what was acknowledged is there, reads go on, nothing hangs.

use std::time::{Duration, Instant};

use crate::blocks::{BLOCK, Ledger, Random};
use crate::cluster::{Cluster, Shape};
use crate::nbd_client::ENOSPC;
use crate::tools::wait_until;
use crate::writer::{self, Mix};

#[test]
fn full_nodes_refuse_writes_and_lose_nothing() {
    // The smallest nodes that there are, and a volume that they cannot hold.
    let shape = Shape {
        node_size: "512MiB",
        volumes: &["disk0=2GiB"],
        limit: Duration::from_secs(240),
        ..Shape::default()
    };
    let mut cluster = Cluster::start(shape);
    let client = cluster.connect("disk0");
    let mut ledger = Ledger::new(71, 0, (1 << 30) / BLOCK);
    let mut random = Random::new(71);
    let mix = Mix { depth: 16, blocks_max: 64, zeroes_one_in: 0, flush_one_in: 0 };
    let start = Instant::now();
    let mut acknowledged = 0;
    let refused = loop {
        let burst = Instant::now();
        let outcome = writer::run(&client, &mut ledger, &mut random, mix, || {
            burst.elapsed() > Duration::from_millis(300)
        });
        assert!(outcome.end.is_none(), "no hang and no closed connection: {outcome:?}\n{}", cluster.logs());
        acknowledged += outcome.acknowledged;
        if !outcome.errors.is_empty() {
            break outcome.errors;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "never full: {acknowledged} writes");
    };
    println!("full after {acknowledged} writes in {:.1} s: {refused:?}", start.elapsed().as_secs_f64());
    assert!(refused.keys().all(|error| *error == ENOSPC), "NBD errors {refused:?}\n{}", cluster.logs());

    let look = |cluster: &Cluster, ledger: &mut Ledger, when: &str| {
        let findings = writer::compare(&cluster.connect("disk0"), ledger)
            .unwrap_or_else(|error| panic!("{when}: {error}\n{}", cluster.logs()));
        assert!(findings.wrong.is_empty(), "{when}: {findings}");
    };
    look(&cluster, &mut ledger, "full");
    let told = wait_until(Duration::from_secs(15), || cluster.status()["health"] != "HEALTH_OK");
    assert!(told, "the status says so: {:#}", cluster.status());
    // A full store starts again, too.
    drop(client);
    cluster.kill_all();
    cluster.start_again();
    look(&cluster, &mut ledger, "full and started again");
    cluster.stop();
}
