//! A device that comes back as an older copy of itself: the node notices by what it has kept beside its
//! store, its copies have no vote until they are repaired, and nobody reads anything old.

use std::path::Path;
use std::time::Duration;

use crate::blocks::Ledger;
use crate::cluster::{Cluster, Shape};
use crate::tools::{run, wait_until};
use crate::writer;

fn copy(from: &Path, to: &Path) {
    let (from, to) = (from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
    run("cp", &["--sparse=always", from, to], Duration::from_secs(60)).ok("cp");
}

#[test]
fn a_device_that_is_an_older_copy_of_itself_has_no_vote() {
    let shape = Shape { node_size: "512MiB", volumes: &["disk0=64MiB"], ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    let mut ledger = Ledger::new(91, 0, 4096);
    writer::write_through(&cluster.connect("disk0"), &mut ledger).expect("the first writes");
    cluster.stop_processes();
    let (device, older) = (cluster.device("node-1"), cluster.dir.join("older"));
    copy(&device, &older);

    cluster.start_again();
    writer::write_through(&cluster.connect("disk0"), &mut ledger).expect("the second writes");
    cluster.stop_processes();
    copy(&older, &device);
    // The index is ahead of the log, and would tell too.
    cluster.delete_index("node-1");

    cluster.start_again();
    let log = cluster.dir.join("log/node-1.log");
    let told = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.contains("where it ended when this node stopped")
    };
    assert!(wait_until(Duration::from_secs(20), told), "{}", cluster.logs());
    let findings = writer::compare(&cluster.connect("disk0"), &mut ledger).expect("reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.wait_until_whole(Duration::from_secs(60));
    let findings = writer::compare(&cluster.connect("disk0"), &mut ledger).expect("reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.stop();
}
