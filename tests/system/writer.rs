//! The writer of the crash tests, which knows what was acknowledged, and the reader that compares.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use crate::blocks::{BLOCK, Content, Findings, Ledger, Random};
use crate::nbd_client::{CMD_FLUSH, CMD_WRITE, CMD_WRITE_ZEROES, Client, FLAG_FUA};

/// How a run of the writer ended.
#[derive(Debug)]
pub struct Outcome {
    /// Changes acknowledged in this run.
    pub acknowledged: u64,
    /// Changes that were in flight at its end, by cookie.
    pub in_flight: HashMap<u64, Flight>,
    /// The longest time between a change and its acknowledgement.
    pub longest: Duration,
    /// NBD errors answered, by number.
    pub errors: HashMap<u32, u64>,
    /// Why it ended: `None` when it was told to.
    pub end: Option<io::Error>,
}

/// A change that was sent.
#[derive(Debug)]
pub struct Flight {
    /// The first block, in the ledger's region.
    pub index: usize,
    /// Blocks.
    pub count: usize,
    /// What they get.
    pub content: Content,
    sent: Instant,
}

/// What a writer sends.
#[derive(Copy, Clone, Debug)]
pub struct Mix {
    /// Requests in flight.
    pub depth: usize,
    /// Blocks of the longest write; lengths are 1 most of the time.
    pub blocks_max: u64,
    /// One in how many is a `WRITE_ZEROES`; 0 for none.
    pub zeroes_one_in: u64,
    /// One in how many is followed by a `FLUSH`; 0 for none.
    pub flush_one_in: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self { depth: 32, blocks_max: 8, zeroes_one_in: 16, flush_one_in: 64 }
    }
}

/// Writes at random places of the ledger's region until `stop` says so, and then waits for what is in
/// flight; ends earlier when the connection does. What was never answered stays open in the ledger.
pub fn run(
    client: &Client,
    ledger: &mut Ledger,
    random: &mut Random,
    mix: Mix,
    stop: impl FnMut() -> bool,
) -> Outcome {
    run_to(client, ledger, random, mix, stop, true)
}

/// As [`run`], but leaves what is in flight when `stop` says so: its answers may come later.
pub fn run_and_leave(
    client: &Client,
    ledger: &mut Ledger,
    random: &mut Random,
    mix: Mix,
    stop: impl FnMut() -> bool,
) -> Outcome {
    run_to(client, ledger, random, mix, stop, false)
}

fn run_to(
    client: &Client,
    ledger: &mut Ledger,
    random: &mut Random,
    mix: Mix,
    mut stop: impl FnMut() -> bool,
    waits: bool,
) -> Outcome {
    let mut outcome = Outcome {
        acknowledged: 0,
        in_flight: HashMap::new(),
        longest: Duration::ZERO,
        errors: HashMap::new(),
        end: None,
    };
    let mut flights: HashMap<u64, Flight> = HashMap::new();
    let mut stopping = false;
    loop {
        stopping = stopping || stop();
        while !stopping && flights.len() < mix.depth {
            match send(client, ledger, random, mix, &mut flights) {
                Ok(()) => {}
                Err(error) => {
                    outcome.end = Some(error);
                    stopping = true;
                }
            }
        }
        if flights.is_empty() || (stopping && !waits) {
            return give_up(ledger, flights, outcome);
        }
        // Short, so that `stop` is asked while a server is silent.
        match client.next(Duration::from_millis(20)) {
            Ok(completion) => {
                let Some(flight) = flights.remove(&completion.cookie) else { continue };
                if completion.error == 0 {
                    ledger.acknowledge(flight.index, flight.count, flight.content);
                    outcome.acknowledged += 1;
                } else {
                    ledger.leave_open(flight.index, flight.count);
                    *outcome.errors.entry(completion.error).or_default() += 1;
                }
                outcome.longest = outcome.longest.max(completion.at - flight.sent);
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let oldest = flights.values().map(|flight| flight.sent.elapsed()).max().unwrap_or_default();
                outcome.longest = outcome.longest.max(oldest);
                if oldest < STALL_LIMIT {
                    continue;
                }
                outcome.end = Some(error);
                return give_up(ledger, flights, outcome);
            }
            Err(error) => {
                outcome.end.get_or_insert(error);
                return give_up(ledger, flights, outcome);
            }
        }
    }
}

/// An answer that takes this long will not come.
const STALL_LIMIT: Duration = Duration::from_secs(60);

fn give_up(ledger: &mut Ledger, flights: HashMap<u64, Flight>, mut outcome: Outcome) -> Outcome {
    for flight in flights.values() {
        ledger.leave_open(flight.index, flight.count);
    }
    outcome.in_flight = flights;
    outcome
}

fn send(
    client: &Client,
    ledger: &mut Ledger,
    random: &mut Random,
    mix: Mix,
    flights: &mut HashMap<u64, Flight>,
) -> io::Result<()> {
    let one_in = |random: &mut Random, n: u64| n > 0 && random.below(n) == 0;
    let count = if random.below(4) == 0 { 1 + random.below(mix.blocks_max) as usize } else { 1 };
    let index = loop {
        // Half of the writes go to a sixteenth of the region: overwriting is what loses data.
        let blocks = ledger.blocks() as u64;
        let end = if random.below(2) == 0 { blocks } else { (blocks / 16).max(1) };
        let index = random.below(end) as usize;
        if ledger.is_free(index, count) {
            break index;
        }
    };
    let flags = if one_in(random, 8) { FLAG_FUA } else { 0 };
    let offset = ledger.offset(index);
    let sent = Instant::now();
    let (content, cookie) = if one_in(random, mix.zeroes_one_in) {
        ledger.begin_zero(index, count);
        (Content::Zero, client.submit(CMD_WRITE_ZEROES, flags, offset, count * BLOCK, &[]))
    } else {
        let (content, bytes) = ledger.begin_write(index, count);
        (content, client.submit(CMD_WRITE, flags, offset, bytes.len(), &bytes))
    };
    match cookie {
        Ok(cookie) => {
            flights.insert(cookie, Flight { index, count, content, sent });
        }
        Err(error) => {
            // Part of it may have been sent.
            ledger.leave_open(index, count);
            return Err(error);
        }
    }
    if one_in(random, mix.flush_one_in) {
        // Its answer is of no interest: an acknowledged write is durable without it.
        client.submit(CMD_FLUSH, 0, 0, 0, &[])?;
    }
    Ok(())
}

/// Writes every block of the region once, from its beginning, with large requests.
pub fn write_through(client: &Client, ledger: &mut Ledger) -> io::Result<()> {
    const BLOCKS_PER_WRITE: usize = 256;
    let mut flights = HashMap::new();
    let mut index = 0;
    while index < ledger.blocks() || !flights.is_empty() {
        while index < ledger.blocks() && flights.len() < 4 {
            let count = BLOCKS_PER_WRITE.min(ledger.blocks() - index);
            let (content, bytes) = ledger.begin_write(index, count);
            let cookie = client.submit(CMD_WRITE, 0, ledger.offset(index), bytes.len(), &bytes)?;
            flights.insert(cookie, (index, count, content));
            index += count;
        }
        let completion = client.next(STALL_LIMIT)?;
        let Some((index, count, content)) = flights.remove(&completion.cookie) else { continue };
        if completion.error != 0 {
            return Err(io::Error::other(format!("NBD error {} while writing through", completion.error)));
        }
        ledger.acknowledge(index, count, content);
    }
    Ok(())
}

/// Reads the whole region and compares.
pub fn compare(client: &Client, ledger: &mut Ledger) -> io::Result<Findings> {
    const BLOCKS_PER_READ: usize = 64;
    let mut findings = Findings::default();
    let mut index = 0;
    while index < ledger.blocks() {
        let count = BLOCKS_PER_READ.min(ledger.blocks() - index);
        let bytes = client.read(ledger.offset(index), count * BLOCK)?;
        ledger.check(index, &bytes, &mut findings);
        index += count;
    }
    Ok(findings)
}
