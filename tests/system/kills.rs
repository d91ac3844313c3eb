//! Storage nodes that are killed or stopped one at a time, and a monitor that is, while clients
//! work: no error, no wrong byte, and how long the longest I/O took.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::blocks::{Ledger, Random};
use crate::cluster::{Cluster, Shape};
use crate::prober::{Prober, Seen};
use crate::tools::{Running, lacks, wait_until};
use crate::writer;

/// What fails a test. The aim is 200 ms, and what was seen is printed; a shared machine's scheduler can
/// take more than that by itself.
const STALL_MAX: Duration = Duration::from_secs(2);

/// Where fio works and where the prober does, in bytes of the volume.
const FIO_BYTES: u64 = 256 << 20;
const PROBED_FIRST_BLOCK: u64 = (512 << 20) / 4096;
const PROBED_BLOCKS: usize = 1024;

fn shape() -> Shape {
    Shape { node_size: "16GiB", limit: Duration::from_secs(240), ..Shape::default() }
}

fn start_fio(cluster: &Cluster, seconds: u64) -> Running {
    let mut fio = Command::new("fio");
    fio.args(["--name=mix", "--ioengine=nbd", "--rw=randrw", "--bs=4k", "--iodepth=16", "--thread"]);
    // Read back and compared all the time, not only when everything has been written.
    fio.args([
        "--verify=crc32c",
        "--verify_backlog=512",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randseed=3",
    ]);
    fio.args(["--time_based", &format!("--runtime={seconds}"), &format!("--size={FIO_BYTES}")]);
    fio.args([format!("--uri={}", cluster.uri("disk0")), "--output-format=json".to_string()]);
    Running::start(&mut fio)
}

/// Fails unless fio saw no error, and says what it did.
#[track_caller]
fn judge_fio(fio: Running, limit: Duration) {
    let finished = fio.finish(limit).ok("fio");
    // A line of a warning may come before the JSON.
    let start = finished.out.find('{').unwrap_or_else(|| panic!("fio says {}", finished.out));
    let report: Value = serde_json::from_str(&finished.out[start..]).expect("fio's JSON");
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{job:#}");
    assert!(job["write"]["total_ios"].as_u64() > Some(100), "it wrote: {job:#}");
    println!(
        "fio: {} reads, {} writes, longest {:.0} ms and {:.0} ms",
        job["read"]["total_ios"],
        job["write"]["total_ios"],
        job["read"]["clat_ns"]["max"].as_f64().unwrap_or_default() / 1e6,
        job["write"]["clat_ns"]["max"].as_f64().unwrap_or_default() / 1e6,
    );
}

#[track_caller]
fn judge(seen: &Seen, during: &str, limit: Duration) {
    seen.report(during);
    assert!(seen.faults.is_empty(), "{during}: {:?}", seen.faults);
    assert!(seen.count > 100, "{during}: the prober worked: {} I/Os", seen.count);
    assert!(seen.longest() < limit, "{during}: an I/O took {:?}", seen.longest());
}

#[test]
fn storage_nodes_are_killed_in_turn_and_nobody_notices() {
    if lacks(&["fio"]) {
        return;
    }
    const SECONDS: u64 = 60;
    let mut cluster = Cluster::start(shape());
    let mut fio = start_fio(&cluster, SECONDS);
    let prober = Prober::start(&cluster.endpoint(), "disk0", PROBED_FIRST_BLOCK, PROBED_BLOCKS);
    let start = Instant::now();
    let nodes = cluster.names("storage-node");
    assert_eq!(nodes.len(), 3);
    let mut kills = 0;
    let mut slowest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(SECONDS - 10) && !fio.has_ended() {
        let node = &nodes[kills % 3];
        std::thread::sleep(Duration::from_millis(700));
        let at = start.elapsed().as_secs_f64();
        cluster.kill(node);
        std::thread::sleep(Duration::from_millis(1500));
        cluster.restart(node);
        let whole = cluster.wait_until_whole(Duration::from_secs(60));
        println!(
            "{node} killed at {at:.2} s, started 1.5 s later, whole {:.2} s after that",
            whole.as_secs_f64()
        );
        slowest = slowest.max(whole);
        kills += 1;
    }
    println!("{kills} kills; a node was whole again after at most {:.1} s", slowest.as_secs_f64());
    judge_fio(fio, Duration::from_secs(SECONDS + 60));
    judge(&prober.stop(), "kill of each storage node in turn", STALL_MAX);
    assert!(kills >= 3, "each node was killed at least once: {kills}");
    cluster.stop();
}

#[test]
fn nodes_that_are_killed_before_the_last_one_is_whole_cost_time_and_nothing_else() {
    if lacks(&["fio"]) {
        return;
    }
    const SECONDS: u64 = 25;
    let mut cluster = Cluster::start(shape());
    let mut fio = start_fio(&cluster, SECONDS);
    let prober = Prober::start(&cluster.endpoint(), "disk0", PROBED_FIRST_BLOCK, PROBED_BLOCKS);
    let start = Instant::now();
    let nodes = cluster.names("storage-node");
    let mut kills = 0;
    while start.elapsed() < Duration::from_secs(SECONDS - 8) && !fio.has_ended() {
        let node = &nodes[kills % 3];
        cluster.kill(node);
        cluster.restart(node);
        std::thread::sleep(Duration::from_millis(300));
        kills += 1;
    }
    println!("{kills} kills without a wait");
    // I/O may have to wait for a copy to be whole: a majority of whole copies may be missing.
    judge_fio(fio, Duration::from_secs(SECONDS + 90));
    judge(&prober.stop(), "kills without a wait in between (waiting is allowed)", Duration::from_secs(30));
    cluster.wait_until_whole(Duration::from_secs(60));
    cluster.stop();
}

/// A prober and a writer at work on one cluster.
pub struct Load {
    prober: Prober,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    writer: std::thread::JoinHandle<(Ledger, writer::Outcome)>,
}

impl Load {
    /// Begins, on `disk0`.
    pub fn start(cluster: &Cluster) -> Self {
        use std::sync::atomic::{AtomicBool, Ordering};
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (client, asked) = (cluster.connect("disk0"), stop.clone());
        let writer = std::thread::spawn(move || {
            let mut ledger = Ledger::new(21, 0, 16 << 10);
            let mix = writer::Mix { depth: 16, ..writer::Mix::default() };
            let outcome = writer::run(&client, &mut ledger, &mut Random::new(21), mix, || {
                asked.load(Ordering::Relaxed)
            });
            (ledger, outcome)
        });
        let prober = Prober::start(&cluster.endpoint(), "disk0", PROBED_FIRST_BLOCK, PROBED_BLOCKS);
        Self { prober, stop, writer }
    }

    /// Ends it, judges it, and reads everything that was written.
    #[track_caller]
    pub fn judge(self, cluster: &Cluster, during: &str) {
        self.judge_within(cluster, during, STALL_MAX);
    }

    /// As [`Load::judge`], where a request may take longer.
    #[track_caller]
    pub fn judge_within(self, cluster: &Cluster, during: &str, stall_max: Duration) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (mut ledger, outcome) = self.writer.join().expect("the writer does not panic");
        judge(&self.prober.stop(), during, stall_max);
        assert!(
            outcome.end.is_none() && outcome.errors.is_empty(),
            "{during}: {outcome:?}\n{}",
            cluster.logs()
        );
        println!("{during}: {} writes at depth 16, longest {:?}", outcome.acknowledged, outcome.longest);
        let findings = writer::compare(&cluster.connect("disk0"), &mut ledger).expect("it reads");
        assert!(findings.wrong.is_empty(), "{during}: {findings}");
    }
}

#[test]
fn a_storage_node_that_hangs_stalls_nobody() {
    let mut cluster = Cluster::start(shape());
    let load = Load::start(&cluster);
    for node in cluster.names("storage-node") {
        std::thread::sleep(Duration::from_secs(2));
        cluster.signal(&node, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(6));
        cluster.signal(&node, Signal::SIGCONT);
        cluster.wait_until_whole(Duration::from_secs(60));
    }
    load.judge(&cluster, "SIGSTOP of each storage node for 6 s");
    cluster.stop();
}

#[test]
fn attached_volumes_live_without_the_monitor() {
    let mut cluster = Cluster::start(shape());
    let load = Load::start(&cluster);
    std::thread::sleep(Duration::from_secs(2));
    let monitor = cluster.names("monitor").remove(0);
    cluster.kill(&monitor);
    // Longer than any lease.
    std::thread::sleep(Duration::from_secs(20));
    // A storage node may fail meanwhile, too.
    let node = cluster.names("storage-node").remove(1);
    cluster.kill(&node);
    std::thread::sleep(Duration::from_secs(3));
    cluster.restart(&node);
    std::thread::sleep(Duration::from_secs(3));
    cluster.restart(&monitor);
    cluster.wait_until_whole(Duration::from_secs(60));
    load.judge(&cluster, "26 s without the monitor, one storage node killed meanwhile");
    assert!(wait_until(Duration::from_secs(20), || cluster.try_ask(&["volume", "create", "later", "64MiB"])));
    assert_eq!(cluster.connect("later").size, 64 << 20, "the monitor's work goes on");
    cluster.stop();
}
