//! A prober: one 4 KiB read or write at a time, to see the longest that a client ever waits.
//!
//! fio's own maximum would do, but it does not say *when* the worst I/O was, nor does it tell reads
//! from writes across a kill. The prober keeps every latency above a limit with its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::blocks::{BLOCK, Findings, Ledger, Random};
use crate::nbd_client::{Client, Endpoint};

/// What a prober has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// I/Os that were answered with success.
    pub count: u64,
    /// The longest write.
    pub longest_write: Duration,
    /// The longest read.
    pub longest_read: Duration,
    /// The start of the longest I/O, since the prober's start.
    pub longest_at: Duration,
    /// Errors, and wrong bytes.
    pub faults: Vec<String>,
    latencies_us: Vec<u32>,
    /// I/Os of more than [`LONG`]: when they began, how long they took. The first [`LONG_MAX`].
    long: Vec<(Duration, Duration)>,
}

/// An I/O that is named by itself.
const LONG: Duration = Duration::from_millis(100);
const LONG_MAX: usize = 20;

impl Seen {
    /// The longest I/O of either kind.
    pub fn longest(&self) -> Duration {
        self.longest_read.max(self.longest_write)
    }

    /// The latency below which this share of all I/Os stayed.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        Duration::from_micros(sorted.get(at).copied().unwrap_or_default().into())
    }

    /// One line for a person, and for `scripts/test`, which collects lines that begin with "STALL".
    pub fn report(&self, during: &str) {
        println!(
            "STALL {during}: longest write {:.1} ms, longest read {:.1} ms (at {:.1} s), median {:.2} ms, p99.9 {:.1} ms, \
             {} I/Os",
            self.longest_write.as_secs_f64() * 1e3,
            self.longest_read.as_secs_f64() * 1e3,
            self.longest_at.as_secs_f64(),
            self.quantile(0.5).as_secs_f64() * 1e3,
            self.quantile(0.999).as_secs_f64() * 1e3,
            self.count,
        );
        let long = self
            .long
            .iter()
            .map(|(at, took)| format!("{} ms at {:.2} s", took.as_millis(), at.as_secs_f64()));
        if !self.long.is_empty() {
            println!("{during}: the long ones: {}", long.collect::<Vec<_>>().join(", "));
        }
    }
}

/// A prober at work.
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Prober {
    /// Starts probing `blocks` blocks from `first_block` on a connection of its own. Nobody else may
    /// write there.
    pub fn start(endpoint: &Endpoint, export: &str, first_block: u64, blocks: usize) -> Self {
        let client = Client::connect(endpoint, export).expect("the prober connects");
        let stop = Arc::new(AtomicBool::new(false));
        let seen_stop = Arc::clone(&stop);
        let thread = std::thread::spawn(move || probe(&client, first_block, blocks, &seen_stop));
        Self { stop, thread }
    }

    /// Ends it; the I/O that it is in is still waited for.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the prober does not panic")
    }
}

fn probe(client: &Client, first_block: u64, blocks: usize, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut ledger = Ledger::new(0x70_726f_6265, first_block, blocks);
    let mut random = Random::new(first_block + 1);
    let start = Instant::now();
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) && seen.faults.len() < 10 {
        let writes = written < blocks || random.below(2) == 0;
        let index = if written < blocks { written } else { random.below(blocks as u64) as usize };
        let sent = Instant::now();
        let fault = if writes {
            let (content, bytes) = ledger.begin_write(index, 1);
            let result = client.write(ledger.offset(index), &bytes);
            match result {
                Ok(()) => {
                    ledger.acknowledge(index, 1, content);
                    written += usize::from(written < blocks);
                    None
                }
                Err(error) => Some(format!("write of block {index}: {error}")),
            }
        } else {
            match client.read(ledger.offset(index), BLOCK) {
                Ok(bytes) => {
                    let mut findings = Findings::default();
                    ledger.check(index, &bytes, &mut findings);
                    findings.wrong.pop()
                }
                Err(error) => Some(format!("read of block {index}: {error}")),
            }
        };
        let took = sent.elapsed();
        if took > seen.longest() {
            seen.longest_at = sent - start;
        }
        if took > LONG && seen.long.len() < LONG_MAX {
            seen.long.push((sent - start, took));
        }
        let longest = if writes { &mut seen.longest_write } else { &mut seen.longest_read };
        *longest = took.max(*longest);
        seen.latencies_us.push(took.as_micros().min(u32::MAX.into()) as u32);
        match fault {
            None => seen.count += 1,
            Some(fault) => {
                seen.faults.push(format!("{:.1} s: {fault}", (sent - start).as_secs_f64()));
                return seen;
            }
        }
    }
    seen
}
