//! A store that is filled to a part of its capacity and then overwritten at random: what cleaning costs,
//! and whether anything waits for it.
//!
//! Write amplification is what the store has written to the device for each block that it was given: the
//! block itself, what cleaning has moved, table pages, and the rest (headers, snapshots).

use super::BenchError;
use super::load::{Load, Measured, OP_BLOCKS_MAX};
use crate::device::Device;
use crate::store::index::Index;
use crate::store::{Audit, Stats};
use std::time::Duration;
use trefoil_core::BLOCK_SIZE;

/// Part of a round after which the caller is told how far it is.
const PROGRESS_EVERY: u64 = 256;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct ChurnOptions {
    /// Percent of the capacity that is filled.
    pub fill: u32,
    /// How often what is filled is overwritten.
    pub times: u32,
    /// `(share, part)`: this percentage of the writes goes to that percentage of the blocks, and the
    /// others to the other blocks. `None`: all blocks alike.
    pub skew: Option<(u32, u32)>,
    /// Writes under way at once.
    pub depth: u32,
}

/// Blocks written for each block given.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Amplification {
    /// All of it, the block itself included.
    pub total: f64,
    /// Moved by cleaning.
    pub moved: f64,
    /// Pages of block tables.
    pub pages: f64,
    /// Headers, snapshots, gaps.
    pub rest: f64,
}

impl Amplification {
    /// Between two states of the counters.
    pub fn between(before: &Stats, now: &Stats) -> Amplification {
        let given = (now.client_blocks - before.client_blocks).max(1) as f64;
        let total = (now.bytes_written - before.bytes_written) as f64 / BLOCK_SIZE as f64 / given;
        let moved = (now.moved_blocks - before.moved_blocks) as f64 / given;
        let pages = (now.page_blocks - before.page_blocks) as f64 / given;
        Amplification { total, moved, pages, rest: total - 1.0 - moved - pages }
    }
}

/// One time over what is filled.
#[derive(Clone, Debug)]
pub struct Round {
    /// From 1.
    pub number: u32,
    /// Of this round.
    pub amplification: Amplification,
    /// Of this round.
    pub measured: Measured,
    /// How long the store took nothing, because it was behind.
    pub held: Duration,
    /// Counters before.
    pub before: Stats,
    /// And behind it.
    pub after: Stats,
}

/// What it came to.
#[derive(Clone, Debug)]
pub struct Churned {
    /// Blocks filled.
    pub blocks: u64,
    /// Of what capacity, in blocks.
    pub capacity: u64,
    /// Over all rounds.
    pub amplification: Amplification,
    /// Over all rounds.
    pub measured: Measured,
    /// The store's counts against what they count. Everything has been read back before.
    pub audit: Audit,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Filling.
    Fill,
    /// Overwriting, in this round.
    Overwrite(u32),
    /// Reading back.
    ReadBack,
}

/// Blocks that are `fill` percent of an empty store's capacity, with room for the pages of their tables.
pub fn blocks_of(stats: &Stats, fill: u32) -> u64 {
    let capacity = (stats.space.used + stats.space.free) / BLOCK_SIZE as u64;
    let whole = u64::from(OP_BLOCKS_MAX);
    // A page for each 256 blocks.
    capacity * u64::from(fill) / 100 / (whole + 1) * whole
}

/// Runs it on an empty store; `load` has been made for at least [`blocks_of`] blocks. `progress` is told
/// `(step, done, of)`, and `round` each round's outcome.
///
/// # Errors
///
/// Anything that is not what was written, and whatever the store reports. The audit's outcome is no
/// error: it is in the answer.
pub async fn churn<D: Device, I: Index>(
    load: &mut Load<D, I>,
    options: &ChurnOptions,
    progress: &mut dyn FnMut(Step, u64, u64),
    round: &mut dyn FnMut(&Round),
) -> Result<Churned, BenchError> {
    let first = load.stats();
    let capacity = (first.space.used + first.space.free) / BLOCK_SIZE as u64;
    let blocks = blocks_of(&first, options.fill);
    if blocks == 0 {
        return Err(BenchError::Small { have: capacity, want: u64::from(OP_BLOCKS_MAX) + 1 });
    }
    load.fill(blocks, &mut |done| progress(Step::Fill, done, blocks)).await?;
    let filled = load.stats();
    let mut all = Measured::default();
    for number in 1..=options.times {
        let before = load.stats();
        let meter = load.measure();
        let mut given = 0;
        let mut held = Duration::ZERO;
        while given < blocks {
            while given < blocks && load.may(options.depth) {
                let block = choose(load, options, blocks);
                load.write(block, 1);
                given += 1;
                if given.is_multiple_of(PROGRESS_EVERY) {
                    progress(Step::Overwrite(number), given, blocks);
                }
            }
            let waits = (!load.store().can_accept()).then(std::time::Instant::now);
            load.wait().await?;
            held += waits.map_or(Duration::ZERO, |since| since.elapsed());
        }
        load.drain().await?;
        let measured = load.measured(&meter);
        all.merge(&measured);
        let after = load.stats();
        let amplification = Amplification::between(&before, &after);
        round(&Round { number, amplification, measured, held, before, after });
    }
    let amplification = Amplification::between(&filled, &load.stats());
    load.read_back(blocks, &mut |done| progress(Step::ReadBack, done, blocks)).await?;
    let audit = load.store().audit();
    Ok(Churned { blocks, capacity, amplification, measured: all, audit })
}

fn choose<D: Device, I: Index>(load: &mut Load<D, I>, options: &ChurnOptions, blocks: u64) -> u64 {
    let random = load.random();
    let Some((share, part)) = options.skew else {
        return random.below(blocks);
    };
    let hot = (blocks * u64::from(part) / 100).clamp(1, blocks);
    if hot == blocks || random.below(100) < u64::from(share) {
        random.below(hot)
    } else {
        hot + random.below(blocks - hot)
    }
}
