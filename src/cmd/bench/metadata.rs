//! `--metadata`: a huge store without its data: memory against the limits, cost per write, starts.

use super::place::{Place, Wanted};
use super::{StoreArgs, digits, progress, progress_bar, stop};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::signals::Shutdown;
use crate::size::Size;
use anyhow::anyhow;
use serde::Serialize;
use std::io::Write;
use tokio::runtime::Runtime;
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::bench::load::OBJECT_BLOCKS;
use trefoil_storage_node::bench::metadata::{
    MetadataOptions, Outcome as Measured, Stage, Start, Step, Told, metadata,
};
use trefoil_storage_node::store::StoreOptions;

/// Bytes of the store, where they are not given.
const SIZE: Size = Size(1 << 40);
/// Writes under way at once, where it is not given.
const DEPTH: u32 = 32;
/// Percent of the capacity that the writes go to.
const SPAN: u32 = 80;
/// Parts of the writes.
const STAGES: u32 = 10;
/// Bytes of an object in memory, as the store's documentation has it.
const OBJECT_BYTES: u64 = 250;
/// Bytes of a change that waits for its page, likewise.
const CHANGE_BYTES: u64 = 40;
/// What sled may keep, likewise.
const INDEX_BYTES: u64 = 16 << 20;
/// Resident memory may be this many times what is configured.
const MEMORY: f64 = 1.1;

/// Where memory may go, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Limits {
    /// The process, before the store was opened.
    base: u64,
    table_cache: u64,
    pending: u64,
    reads: u64,
    changes: u64,
    index: u64,
    objects: u64,
}

impl Limits {
    fn of(options: &StoreOptions, measured: &Measured) -> Limits {
        let objects = measured.stages.iter().map(|stage| stage.gauges.objects).max().unwrap_or(0);
        Limits {
            base: measured.base.now,
            table_cache: options.table_cache_bytes,
            pending: options.pending_bytes_max,
            reads: options.read_bytes_max,
            changes: options.queued_changes_max as u64 * CHANGE_BYTES,
            index: INDEX_BYTES,
            objects: objects as u64 * OBJECT_BYTES,
        }
    }
    fn sum(&self) -> u64 {
        self.base + self.table_cache + self.pending + self.reads + self.changes + self.index + self.objects
    }
}

#[derive(Debug, Serialize)]
struct StageView {
    written: u64,
    live: u64,
    cpu_us: f64,
    iops: f64,
    p99_us: f64,
    longest_wait_ms: f64,
    amplification: f64,
    pages_written: f64,
    rss: u64,
    rss_peak: u64,
    pages: usize,
    queued_changes: usize,
    pending: u64,
    objects: usize,
}

impl StageView {
    fn of(stage: &Stage) -> StageView {
        StageView {
            written: stage.written * BLOCK_SIZE as u64,
            live: stage.live.0 * BLOCK_SIZE as u64,
            cpu_us: stage.measured.cpu_us(),
            iops: stage.measured.iops(),
            p99_us: stage.measured.latency.percentile(0.99).as_secs_f64() * 1e6,
            longest_wait_ms: stage.measured.longest_wait.as_secs_f64() * 1e3,
            amplification: stage.amplification.total,
            pages_written: stage.amplification.pages,
            rss: stage.memory.now,
            rss_peak: stage.memory.peak,
            pages: stage.gauges.pages,
            queued_changes: stage.gauges.queued,
            pending: stage.gauges.pending_bytes,
            objects: stage.gauges.objects,
        }
    }
}

#[derive(Debug, Serialize)]
struct StartView {
    with_index: bool,
    seconds: f64,
    /// Of volumes whose objects are here. The part that replays the log grows only up to a limit, so that
    /// this is an upper bound.
    seconds_per_tib: f64,
    batches: u64,
    replayed: u64,
    objects: usize,
    rss_peak: u64,
}

impl StartView {
    fn of(start: &Start) -> StartView {
        let seconds = start.took.as_secs_f64();
        let tib =
            start.objects.max(1) as f64 * (OBJECT_BLOCKS * BLOCK_SIZE as u64) as f64 / (1u64 << 40) as f64;
        StartView {
            with_index: start.with_index,
            seconds,
            seconds_per_tib: seconds / tib,
            batches: start.replayed.0,
            replayed: start.replayed.1 * BLOCK_SIZE as u64,
            objects: start.objects,
            rss_peak: start.memory.peak,
        }
    }
}

/// What `--json` shows.
#[derive(Serialize)]
struct View<'a> {
    size: u64,
    filled: u64,
    written: u64,
    stages: Vec<StageView>,
    starts: Vec<StartView>,
    limits: &'a Limits,
    limit: u64,
    rss_peak: u64,
    ratio: f64,
    met: bool,
    read_back: u64,
}

/// Runs it.
pub fn run(args: &StoreArgs, shutdown: &Shutdown, runtime: &Runtime, out: &mut dyn Write) -> Outcome {
    let size = args.size.unwrap_or(SIZE).0;
    let writes = args.write.0 / BLOCK_SIZE as u64;
    if writes < u64::from(STAGES) {
        return Err(Failure::usage(anyhow!("--write {} is too little", args.write)));
    }
    let fill = args.fill.unwrap_or(0);
    let options = MetadataOptions {
        writes,
        fill,
        span: SPAN,
        depth: args.depth.first().copied().unwrap_or(DEPTH),
        stages: STAGES,
        store: StoreOptions { table_cache_bytes: args.table_cache.0, ..StoreOptions::default() },
    };
    // Each write may cost a page; headers and snapshots; what is filled takes a hundredth.
    let written = writes * BLOCK_SIZE as u64 * 3 / 2 + size / 100 * u64::from(fill) / 50;
    let wanted = Wanted { store: size, raw: 0, written, preallocate: false };
    let place = Place::make(&args.place, &wanted, &mut |_, _| ())?;
    let bar = progress_bar();
    if !args.json {
        writeln!(
            out,
            "4k random writes at depth {} to {SPAN} % of a store of {}, {fill} % filled before; data is not kept",
            options.depth,
            Size(size)
        )?;
        writeln!(out, "{}", header())?;
    }
    let mut told: Outcome = Ok(());
    let measured = runtime.block_on(metadata(
        &place.device,
        &place.index,
        &options,
        &stop(shutdown),
        &mut |step, done, of| {
            let what = match step {
                Step::Fill => "filling",
                Step::Write => "writing",
                Step::Start => "starting after a crash",
            };
            progress(&bar, what, done, of);
        },
        &mut |news| {
            if !args.json && told.is_ok() {
                told = bar.suspend(|| tell(out, news));
            }
        },
    ))?;
    bar.finish_and_clear();
    told?;
    let limits = Limits::of(&options.store, &measured);
    let starts = measured.starts.iter().map(|start| start.memory.peak);
    let peak = measured.stages.iter().map(|stage| stage.memory.peak).chain(starts).max().unwrap_or(0);
    let ratio = peak as f64 / limits.sum().max(1) as f64;
    let met = ratio <= MEMORY;
    if args.json {
        let view = View {
            size,
            filled: size / 100 * u64::from(fill),
            written: args.write.0,
            stages: measured.stages.iter().map(StageView::of).collect(),
            starts: measured.starts.iter().map(StartView::of).collect(),
            limits: &limits,
            limit: limits.sum(),
            rss_peak: peak,
            ratio,
            met,
            read_back: measured.read_back,
        };
        return output::json(out, &view);
    }
    let l = limits;
    let parts = [l.base, l.table_cache, l.pending, l.reads, l.changes, l.index, l.objects]
        .map(|n| Size(n >> 20 << 20));
    writeln!(
        out,
        "configured: {} (process {}, table cache {}, pending {}, reads {}, changes {}, index {}, objects {})",
        Size(l.sum() >> 20 << 20),
        parts[0],
        parts[1],
        parts[2],
        parts[3],
        parts[4],
        parts[5],
        parts[6],
    )?;
    let word = if met { "met" } else { "MISSED" };
    writeln!(
        out,
        "aim {word}: resident at most {} by configured {} (at most {MEMORY})",
        Size(peak >> 20 << 20),
        digits(ratio)
    )?;
    writeln!(out, "read back: {} of the blocks written, all of them right", measured.read_back)?;
    Ok(())
}

fn header() -> String {
    format!(
        "{:>10} {:>8} {:>8} {:>7} {:>9} {:>6} {:>6} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}",
        "WRITTEN",
        "CPU µs",
        "IOPS",
        "P99 ms",
        "WAIT ms",
        "AMPL",
        "PAGES",
        "RSS",
        "RSS PEAK",
        "CACHED",
        "QUEUED",
        "PENDING",
        "OBJECTS"
    )
}

fn tell(out: &mut dyn Write, news: Told<'_>) -> Outcome {
    match news {
        Told::Stage(stage) => {
            let s = StageView::of(stage);
            writeln!(
                out,
                "{:>10} {:>8} {:>8.0} {:>7} {:>9} {:>6.2} {:>6.2} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}",
                Size(s.written >> 20 << 20),
                digits(s.cpu_us),
                s.iops,
                digits(s.p99_us / 1e3),
                digits(s.longest_wait_ms),
                s.amplification,
                s.pages_written,
                Size(s.rss >> 20 << 20),
                Size(s.rss_peak >> 20 << 20),
                s.pages,
                s.queued_changes,
                Size(s.pending >> 20 << 20),
                s.objects
            )?;
        }
        Told::Start(start) => {
            let s = StartView::of(start);
            let with = if s.with_index { "with its index" } else { "without an index" };
            writeln!(
                out,
                "start after a crash {with}: {} s (at most {} s per TiB of volumes): {} objects, {} batches, {} of log replayed, resident at most {}",
                digits(s.seconds),
                digits(s.seconds_per_tib),
                s.objects,
                s.batches,
                Size(s.replayed >> 20 << 20),
                Size(s.rss_peak >> 20 << 20)
            )?;
        }
    }
    Ok(())
}
