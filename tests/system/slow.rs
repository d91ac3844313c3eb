//! Nodes that are killed, stopped, or a hundred times slower, one at a time, under 4 KiB reads and writes at
//! depth 8: no error, no wrong byte, and how long the longest read and the longest write took.
//!
//! A slow node is one whose process is stopped 99 % of the time: everything that it does takes a hundred
//! times as long, and it is never away for long enough to be taken for dead.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::blocks::{BLOCK, Content, Findings, Ledger, Random};
use crate::cluster::{Cluster, Shape};
use crate::nbd_client::{CMD_READ, CMD_WRITE, Client};
use crate::tools::signal;

/// What fails a test. The aim is [`AIM`]; a shared machine's scheduler can take more than that by itself.
const STALL_MAX: Duration = Duration::from_millis(500);
/// The aim, which is printed and not insisted on.
const AIM: Duration = Duration::from_millis(50);

const DEPTH: usize = 8;
const BLOCKS: usize = 8192;
/// A slow node runs for the one time, then stands still for the other.
const RUNS: Duration = Duration::from_millis(1);
const STANDS: Duration = Duration::from_millis(99);

/// One I/O.
#[derive(Copy, Clone)]
struct Sample {
    began: Instant,
    took: Duration,
    writes: bool,
}

/// What the load has seen.
struct Seen {
    samples: Vec<Sample>,
    faults: Vec<String>,
}

impl Seen {
    /// Prints the longest I/Os that were under way within a time, and fails if one was too long.
    #[track_caller]
    fn judge(&self, during: &str, (from, to): (Instant, Instant)) {
        let within = |sample: &&Sample| sample.began < to && sample.began + sample.took > from;
        let mut took: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
        for sample in self.samples.iter().filter(within) {
            took[usize::from(sample.writes)].push(sample.took);
        }
        took.iter_mut().for_each(|took| took.sort_unstable());
        let at = |took: &[Duration], share: f64| {
            let n = ((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1));
            took.get(n).copied().unwrap_or_default()
        };
        let longest = at(&took[0], 1.0).max(at(&took[1], 1.0));
        let worst = self.samples.iter().filter(within).max_by_key(|sample| sample.took);
        let when = worst.map_or(Duration::ZERO, |worst| worst.began.saturating_duration_since(from));
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        println!(
            "STALL {during}: longest write {:.1} ms, longest read {:.1} ms (at {:.2} s), median {:.2} ms and {:.2} ms, p99.9 {:.1} ms \
             and {:.1} ms, {} I/Os at depth {DEPTH}; under {} ms: {}",
            ms(at(&took[1], 1.0)),
            ms(at(&took[0], 1.0)),
            when.as_secs_f64(),
            ms(at(&took[1], 0.5)),
            ms(at(&took[0], 0.5)),
            ms(at(&took[1], 0.999)),
            ms(at(&took[0], 0.999)),
            took[0].len() + took[1].len(),
            AIM.as_millis(),
            if longest < AIM { "yes" } else { "no" },
        );
        assert!(took.iter().all(|took| took.len() > 50), "{during}: the load worked");
        assert!(longest < STALL_MAX, "{during}: an I/O took {longest:?}");
    }
}

/// Reads and writes of single blocks at depth [`DEPTH`], each read compared with what was written.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let client = cluster.connect("disk0");
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen { samples: Vec::new(), faults: Vec::new() };
            if let Err(error) = work(&client, &asked, &mut seen) {
                seen.faults.push(format!("the connection: {error}"));
            }
            seen
        });
        Load { stop, thread }
    }

    #[track_caller]
    fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the load does not panic");
        assert!(seen.faults.is_empty(), "{:?}", seen.faults);
        seen
    }
}

struct Flight {
    index: usize,
    sent: Instant,
    /// What is written; `None` for a read.
    content: Option<Content>,
}

fn work(client: &Client, stop: &AtomicBool, seen: &mut Seen) -> io::Result<()> {
    let mut ledger = Ledger::new(0x736c_6f77, 0, BLOCKS);
    let mut random = Random::new(41);
    let mut flights: HashMap<u64, Flight> = HashMap::new();
    let mut busy: HashSet<usize> = HashSet::new();
    loop {
        while !stop.load(Ordering::Relaxed) && flights.len() < DEPTH {
            let index = random.below(BLOCKS as u64) as usize;
            if !busy.insert(index) {
                continue;
            }
            let offset = ledger.offset(index);
            let sent = Instant::now();
            let (content, cookie) = if random.below(2) == 0 {
                let (content, bytes) = ledger.begin_write(index, 1);
                (Some(content), client.submit(CMD_WRITE, 0, offset, BLOCK, &bytes)?)
            } else {
                (None, client.submit(CMD_READ, 0, offset, BLOCK, &[])?)
            };
            flights.insert(cookie, Flight { index, sent, content });
        }
        if flights.is_empty() {
            return Ok(());
        }
        let completion = client.next(Duration::from_secs(30))?;
        let Some(flight) = flights.remove(&completion.cookie) else { continue };
        busy.remove(&flight.index);
        let took = completion.at - flight.sent;
        seen.samples.push(Sample { began: flight.sent, took, writes: flight.content.is_some() });
        if completion.error != 0 {
            seen.faults.push(format!("NBD error {} of block {}", completion.error, flight.index));
            return Ok(());
        }
        match flight.content {
            Some(content) => ledger.acknowledge(flight.index, 1, content),
            None => {
                let mut findings = Findings::default();
                ledger.check(flight.index, &completion.data, &mut findings);
                seen.faults.append(&mut findings.wrong);
            }
        }
    }
}

/// A process that stands still most of the time, until this is dropped.
struct Slowed {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    fn start(pid: i32) -> Slowed {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) && signal(pid, Signal::SIGSTOP) {
                std::thread::sleep(STANDS);
                signal(pid, Signal::SIGCONT);
                std::thread::sleep(RUNS);
            }
            signal(pid, Signal::SIGCONT);
        });
        Slowed { over, thread: Some(thread) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A cluster and a load that has run for a moment.
fn at_work() -> (Cluster, Load, Instant) {
    let cluster = Cluster::start(Shape { limit: Duration::from_secs(150), ..Shape::default() });
    let load = Load::start(&cluster);
    std::thread::sleep(Duration::from_millis(500));
    (cluster, load, Instant::now())
}

/// Gives one node after the other some trouble; the times of all of it, and of the quiet second before.
#[track_caller]
fn trouble_each(what: &str, mut trouble: impl FnMut(&mut Cluster, &str)) {
    let (mut cluster, load, began) = at_work();
    std::thread::sleep(Duration::from_secs(1));
    let quiet = (began, Instant::now());
    let mut times = Vec::new();
    for node in cluster.names("storage-node").into_iter().take(2) {
        let from = Instant::now();
        trouble(&mut cluster, &node);
        times.push((node, from, Instant::now()));
        cluster.wait_until_whole(Duration::from_secs(60));
    }
    let seen = load.stop();
    seen.judge(&format!("before {what}"), quiet);
    for (node, from, to) in times {
        seen.judge(&format!("{what} ({node})"), (from, to));
    }
    cluster.stop();
}

#[test]
fn a_node_that_is_killed_makes_no_io_long() {
    trouble_each("kill of a node at depth 8", |cluster, node| {
        cluster.kill(node);
        std::thread::sleep(Duration::from_millis(1500));
        cluster.restart(node);
        std::thread::sleep(Duration::from_millis(1500));
    });
}

#[test]
fn a_node_that_is_stopped_makes_no_io_long() {
    trouble_each("SIGSTOP of a node at depth 8", |cluster, node| {
        cluster.signal(node, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(3000));
        cluster.signal(node, Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(500));
    });
}

#[test]
fn a_node_that_is_a_hundred_times_slower_makes_no_io_long() {
    trouble_each("a node slowed 100x at depth 8", |cluster, node| {
        let slowed = Slowed::start(cluster.pid(node));
        std::thread::sleep(Duration::from_millis(4000));
        drop(slowed);
        cluster.last_disturbance = Instant::now();
    });
}
