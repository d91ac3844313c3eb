//! `--churn`: a filled store that is overwritten, round by round, and checked at the end.

use super::place::{Place, Wanted};
use super::{StoreArgs, digits, progress, progress_bar, stop};
use crate::failure::{EXIT_FAILED, Failure, Outcome};
use crate::output;
use crate::signals::Shutdown;
use crate::size::Size;
use indicatif::ProgressBar;
use serde::Serialize;
use std::io::Write;
use std::time::Duration;
use tokio::runtime::Runtime;
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::bench::BenchError;
use trefoil_storage_node::bench::churn::{
    Amplification, ChurnOptions, Churned, Round, Step, blocks_of, churn,
};
use trefoil_storage_node::bench::load::{Load, Measured};
use trefoil_storage_node::store::{Store, StoreOptions};

/// Bytes of the store, where they are not given.
const SIZE: Size = Size(2 << 30);
/// Percent that is filled, where it is not given.
const FILL: u32 = 90;
/// Writes under way at once, where it is not given.
const DEPTH: u32 = 32;

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    round: u32,
    amplification: Amplification,
    iops: f64,
    p50_us: f64,
    p999_us: f64,
    longest_wait_ms: f64,
    held_ms: f64,
    segments_free: u64,
    segments_cleaned: u64,
    snapshots: u64,
    checkpoints: u64,
    cpu_us: f64,
}

impl Line {
    fn of(round: &Round) -> Line {
        let (before, after) = (&round.before, &round.after);
        Line {
            round: round.number,
            amplification: round.amplification,
            iops: round.measured.iops(),
            p50_us: us(&round.measured, 0.5),
            p999_us: us(&round.measured, 0.999),
            longest_wait_ms: ms(round.measured.longest_wait),
            held_ms: ms(round.held),
            segments_free: after.segments_free,
            segments_cleaned: after.segments_cleaned - before.segments_cleaned,
            snapshots: after.snapshots - before.snapshots,
            checkpoints: after.checkpoints - before.checkpoints,
            cpu_us: round.measured.cpu_us(),
        }
    }
}

fn us(measured: &Measured, part: f64) -> f64 {
    measured.latency.percentile(part).as_secs_f64() * 1e6
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What `--json` shows.
#[derive(Serialize)]
struct View<'a> {
    device: String,
    size: u64,
    capacity: u64,
    filled: u64,
    fill_percent: u32,
    skew: Option<[u32; 2]>,
    depth: u32,
    rounds: &'a [Line],
    amplification: Amplification,
    iops: f64,
    p999_us: f64,
    longest_wait_ms: f64,
    audit_clean: bool,
    audit_pages: u64,
    shutdown_ms: f64,
}

/// Runs it.
pub fn run(args: &StoreArgs, shutdown: &Shutdown, runtime: &Runtime, out: &mut dyn Write) -> Outcome {
    let options = ChurnOptions {
        fill: args.fill.unwrap_or(FILL),
        times: args.times,
        skew: args.skew.map(|skew| (skew.share, skew.part)),
        depth: args.depth.first().copied().unwrap_or(DEPTH),
    };
    let size = args.size.unwrap_or(SIZE).0;
    let wanted = Wanted { store: size, raw: 0, written: size, preallocate: true };
    let place = Place::make(&args.place, &wanted, &mut |_, _| ())?;
    let (store, _) = Store::open(&place.device, &place.index, StoreOptions::default(), &mut |_, _| ())
        .map_err(BenchError::from)?;
    let blocks = blocks_of(&store.stats(), options.fill);
    let mut load = Load::new(store, blocks, stop(shutdown));
    let bar = progress_bar();
    if !args.json {
        let all = options.skew.map_or("all blocks alike".to_owned(), |(share, part)| {
            format!("{share} % of the writes to {part} % of the blocks")
        });
        let filled = Size(blocks * BLOCK_SIZE as u64);
        writeln!(
            out,
            "{filled} ({} %) of a store of {} filled; 4k random writes at depth {}, {all}",
            options.fill,
            Size(size),
            options.depth
        )?;
        writeln!(out, "{}", header())?;
    }
    let mut lines = Vec::new();
    let mut told: Outcome = Ok(());
    let churned = runtime.block_on(churn(
        &mut load,
        &options,
        &mut |step, done, of| show(&bar, step, done, of),
        &mut |round| {
            let line = Line::of(round);
            if !args.json && told.is_ok() {
                told = bar.suspend(|| Ok(writeln!(out, "{}", row(&line))?));
            }
            lines.push(line);
        },
    ))?;
    bar.finish_and_clear();
    told?;
    let begun = std::time::Instant::now();
    load.into_store().shutdown().map_err(BenchError::Failed)?;
    let took = begun.elapsed();
    let clean = churned.audit.is_clean();
    if args.json {
        output::json(out, &view(args, &options, &place, size, &lines, &churned, took))?;
    } else {
        let a = churned.amplification;
        writeln!(
            out,
            "all: amplification {:.2} (moved {:.2}, pages {:.2}, rest {:.2}), {:.0} IOPS, p99.9 {} ms, longest wait {} ms",
            a.total,
            a.moved,
            a.pages,
            a.rest,
            churned.measured.iops(),
            digits(us(&churned.measured, 0.999) / 1e3),
            digits(ms(churned.measured.longest_wait)),
        )?;
        writeln!(out, "read back: {} blocks, all of them what was written last", churned.blocks)?;
        let audit = if clean {
            format!("clean ({} table pages)", churned.audit.pages)
        } else {
            format!("WRONG: {:?}", churned.audit)
        };
        writeln!(out, "audit: {audit}; shut down in {} ms", digits(ms(took)))?;
    }
    if !clean {
        return Err(match args.json {
            true => Failure::code(EXIT_FAILED),
            false => anyhow::anyhow!("the store's counts are wrong: please report it").into(),
        });
    }
    Ok(())
}

fn view<'a>(
    args: &StoreArgs,
    options: &ChurnOptions,
    place: &Place,
    size: u64,
    lines: &'a [Line],
    churned: &Churned,
    shutdown: Duration,
) -> View<'a> {
    View {
        device: place.device.display().to_string(),
        size,
        capacity: churned.capacity * BLOCK_SIZE as u64,
        filled: churned.blocks * BLOCK_SIZE as u64,
        fill_percent: options.fill,
        skew: args.skew.map(|skew| [skew.share, skew.part]),
        depth: options.depth,
        rounds: lines,
        amplification: churned.amplification,
        iops: churned.measured.iops(),
        p999_us: us(&churned.measured, 0.999),
        longest_wait_ms: ms(churned.measured.longest_wait),
        audit_clean: churned.audit.is_clean(),
        audit_pages: churned.audit.pages,
        shutdown_ms: ms(shutdown),
    }
}

fn show(bar: &ProgressBar, step: Step, done: u64, of: u64) {
    match step {
        Step::Fill => progress(bar, "filling", done, of),
        Step::Overwrite(round) => progress(bar, &format!("overwriting, {round}"), done, of),
        Step::ReadBack => progress(bar, "reading everything back", done, of),
    }
}

// Lines come one at a time, so that the columns' widths are given.
fn header() -> String {
    format!(
        "{:>5} {:>6} {:>6} {:>6} {:>6} {:>8} {:>9} {:>9} {:>8} {:>5} {:>8} {:>10} {:>7}",
        "ROUND",
        "AMPL",
        "MOVED",
        "PAGES",
        "REST",
        "IOPS",
        "P99.9 ms",
        "WAIT ms",
        "HELD ms",
        "FREE",
        "CLEANED",
        "SNAPSHOTS",
        "CPU µs"
    )
}

fn row(l: &Line) -> String {
    let a = &l.amplification;
    format!(
        "{:>5} {:>6.2} {:>6.2} {:>6.2} {:>6.2} {:>8.0} {:>9} {:>9} {:>8} {:>5} {:>8} {:>10} {:>7}",
        l.round,
        a.total,
        a.moved,
        a.pages,
        a.rest,
        l.iops,
        digits(l.p999_us / 1e3),
        digits(l.longest_wait_ms),
        digits(l.held_ms),
        l.segments_free,
        l.segments_cleaned,
        l.snapshots,
        digits(l.cpu_us)
    )
}
