//! The metadata of a huge store, exercised without its data: resident memory against the configured limits,
//! cost per write as the device fills, and how long a start after a crash takes.
//!
//! The device is a [`SparseDevice`]: what is measured is the store's own work and memory, not a disk. The
//! starts read from the disk what they need. A crash is the store dropped as it is, without a checkpoint.

use super::BenchError;
use super::churn::{Amplification, blocks_of};
use super::load::{Load, Measured, Stop};
use super::sparse::SparseDevice;
use super::usage::{self, Memory};
use crate::device::Device;
use crate::store::index::SledIndex;
use crate::store::{IndexUse, OpenError, Stats, Store, StoreOptions};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often, in waits, the gauges are looked at.
const GAUGES_EVERY: u64 = 32;
/// Blocks that are read back at the end.
const SAMPLES: u64 = 4096;

/// What to do.
#[derive(Clone, Debug)]
pub struct MetadataOptions {
    /// Random writes of one block.
    pub writes: u64,
    /// Percent of the capacity that is written from end to end before.
    pub fill: u32,
    /// Percent of the capacity that the random writes go to.
    pub span: u32,
    /// Writes under way at once.
    pub depth: u32,
    /// Parts that the writes are measured in.
    pub stages: u32,
    /// The store's.
    pub store: StoreOptions,
}

/// The most that was seen of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Table pages in memory.
    pub pages: usize,
    /// Changes that wait for pages.
    pub queued: usize,
    /// Bytes appended and not durable.
    pub pending_bytes: u64,
    /// Objects.
    pub objects: usize,
}

impl Gauges {
    fn see(&mut self, stats: &Stats) {
        self.pages = self.pages.max(stats.pages_resident);
        self.queued = self.queued.max(stats.queued_changes);
        self.pending_bytes = self.pending_bytes.max(stats.pending_bytes);
        self.objects = self.objects.max(stats.objects);
    }
}

/// A part of the writes.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Random writes so far.
    pub written: u64,
    /// Live blocks, and the capacity.
    pub live: (u64, u64),
    /// Of this part.
    pub measured: Measured,
    /// Of this part.
    pub amplification: Amplification,
    /// Its peak is that of this part.
    pub memory: Memory,
    /// Of this part.
    pub gauges: Gauges,
}

/// A start after a crash.
#[derive(Clone, Debug)]
pub struct Start {
    /// The index was there and was used.
    pub with_index: bool,
    /// How long it took until the store could be used.
    pub took: Duration,
    /// Batches and blocks of the log that were replayed.
    pub replayed: (u64, u64),
    /// Objects.
    pub objects: usize,
    /// Its peak is that of the start.
    pub memory: Memory,
}

/// What it came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Resident memory before the store was opened.
    pub base: Memory,
    /// The parts.
    pub stages: Vec<Stage>,
    /// First with the index, then without.
    pub starts: Vec<Start>,
    /// Blocks read back at the end, all of them right.
    pub read_back: u64,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writing from end to end.
    Fill,
    /// Writing at random.
    Write,
    /// Starting.
    Start,
}

/// Runs it on a store that has been formatted on a sparse file. `progress` is told `(step, done, of)`, and
/// `tell` each part and each start as it is known.
///
/// # Errors
///
/// Those of the store, and anything that is not read back.
pub async fn metadata(
    device: &Path,
    index_dir: &Path,
    options: &MetadataOptions,
    stop: &Stop,
    progress: &mut dyn FnMut(Step, u64, u64),
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Outcome, BenchError> {
    let base = usage::memory();
    let raw = SparseDevice::open(device).map_err(OpenError::from)?;
    let (store, _) = open(raw, index_dir, &options.store, progress)?;
    let mut load = Load::of_pattern(store, stop.clone());
    let first = load.stats();
    let (span, capacity) = (blocks_of(&first, options.span), blocks_of(&first, 100));
    if span == 0 {
        return Err(BenchError::Small { have: capacity, want: 1 });
    }
    let fill = blocks_of(&first, options.fill);
    if fill > 0 {
        load.fill(fill, &mut |done| progress(Step::Fill, done, fill)).await?;
    }
    let mut stages = Vec::new();
    let mut samples = Vec::new();
    let every = (options.writes / SAMPLES).max(1);
    let mut written = 0;
    for stage in 1..=u64::from(options.stages) {
        let until = options.writes * stage / u64::from(options.stages);
        usage::forget_peak();
        let (before, meter) = (load.stats(), load.measure());
        let (mut gauges, mut waits) = (Gauges::default(), 0u64);
        while written < until {
            while written < until && load.may(options.depth) {
                let block = load.random().below(span);
                load.write(block, 1);
                if written % every == 0 {
                    samples.push(block);
                }
                written += 1;
            }
            load.wait().await?;
            waits += 1;
            if waits % GAUGES_EVERY == 1 {
                gauges.see(&load.stats());
                progress(Step::Write, written, options.writes);
            }
        }
        load.drain().await?;
        let (measured, after) = (load.measured(&meter), load.stats());
        let amplification = Amplification::between(&before, &after);
        let live = (after.live_blocks, capacity);
        let memory = usage::memory();
        let stage = Stage { written, live, measured, amplification, memory, gauges };
        tell(Told::Stage(&stage));
        stages.push(stage);
    }
    let mut starts = Vec::new();
    let mut store = load.into_store();
    for with_index in [true, false] {
        let raw = store.into_device();
        raw.forget_cache()
            .map_err(|source| BenchError::Io { what: "cannot empty the page cache", source })?;
        if !with_index && let Err(source) = std::fs::remove_dir_all(index_dir) {
            return Err(BenchError::Io { what: "cannot delete the index", source });
        }
        usage::forget_peak();
        let begun = Instant::now();
        let (opened, how) = open(raw, index_dir, &options.store, progress)?;
        let took = begun.elapsed();
        let start = Start {
            with_index: how.index == IndexUse::Used,
            took,
            replayed: (how.batches, how.blocks),
            objects: opened.stats().objects,
            memory: usage::memory(),
        };
        tell(Told::Start(&start));
        starts.push(start);
        store = opened;
    }
    let mut load = Load::of_pattern(store, stop.clone());
    for &block in &samples {
        while !load.may(options.depth) {
            load.wait().await?;
        }
        load.read(block, 1);
    }
    load.drain().await?;
    Ok(Outcome { base, stages, starts, read_back: samples.len() as u64 })
}

/// Something is known.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A part of the writes.
    Stage(&'a Stage),
    /// A start.
    Start(&'a Start),
}

type Opened = (Store<SparseDevice, SledIndex>, crate::store::How);

fn open(
    device: SparseDevice,
    index_dir: &Path,
    options: &StoreOptions,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<Opened, BenchError> {
    let index = SledIndex::open(index_dir, device.waker().clone());
    let mut told = |segment, of| progress(Step::Start, u64::from(segment), u64::from(of));
    let (store, recovered) = Store::open_on(device, index, options.clone(), &mut told)?;
    Ok((store, recovered.how))
}
