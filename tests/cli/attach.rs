//! How long a client waits for a large volume: from connecting to the answer to its first request.
//!
//! Real processes, a volume of 10 TiB (2.6 million objects) that holds nothing yet, in the pool that
//! `trefoil up` makes and in one with many placement groups. The aim is 2 s; the limit here leaves room
//! for a busy machine. What it took is printed.

#[allow(dead_code)]
#[path = "../system/nbd_client.rs"]
mod nbd_client;

use crate::common::*;
use nbd_client::{Client, Endpoint};
use std::path::Path;
use std::time::{Duration, Instant};
use trefoil_core::map::{Ack, FailureDomain};
use trefoil_monitor::MonitorClient;
use trefoil_transport::{Hello, Role};

/// The longest that a client may wait.
const LIMIT: Duration = Duration::from_secs(5);
/// Near its end.
const FAR: u64 = (10 << 40) - (1 << 20);

/// A pool of that name, by the monitor at that address.
fn create_pool(monitor: &str, name: &str, pg_num: u32) {
    let addresses = vec![monitor.parse().expect("an address")];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let client = MonitorClient::new(addresses, Hello::new(Role::Client, [0; 16]));
        let made = client.create_pool(name.to_owned(), 3, pg_num, FailureDomain::Osd, Ack::Majority);
        made.await.expect("the pool is made");
    });
}

/// Connects and reads; how long both took.
fn first_read(dir: &Path, volume: &str) -> Duration {
    let begin = Instant::now();
    let client = Client::connect(&Endpoint::Unix(dir.join("nbd.sock")), volume).expect("connected");
    let read = client.read(FAR, 4096).expect("read");
    let took = begin.elapsed();
    assert_eq!(read, vec![0; 4096]);
    client.write(FAR, &[7; 4096]).expect("written");
    assert_eq!(client.read(FAR, 4096).expect("read"), vec![7; 4096]);
    took
}

#[test]
fn a_volume_of_ten_tib_is_attached_in_time() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--processes", "--volume", "small=10T"]);
    up.ready();
    let state = std::fs::read(dir.join("up.json")).expect("up.json");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    let monitor = state["monitor"].as_str().expect("an address");
    let pgs: u32 = std::env::var("TREFOIL_TEST_PGS").map_or(1024, |pgs| pgs.parse().expect("a number"));
    create_pool(monitor, "large", pgs);
    good(&["volume", "create", "large", "10T", "--pool", "large", "--monitor", monitor]);
    for (volume, pgs) in [("small", 32), ("large", pgs)] {
        let took = first_read(&dir, volume);
        println!("10 TiB in {pgs} placement groups: first read after {} ms", took.as_millis());
        assert!(took < LIMIT, "{volume}: {took:?}");
    }
    up.stop();
}
