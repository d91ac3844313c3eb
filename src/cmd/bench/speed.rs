//! The store's speed, each pattern beside fio on the raw device, in turns, so that both meet the same machine.

use super::fio::{self, raw::Beside};
use super::place::{Place, Wanted};
use super::{StoreArgs, digits, median, progress, progress_bar, stop};
use crate::failure::Outcome;
use crate::output;
use crate::signals::Shutdown;
use crate::size::Size;
use serde::Serialize;
use std::io::Write;
use std::time::Duration;
use tokio::runtime::Runtime;
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::bench::BenchError;
use trefoil_storage_node::bench::load::{Load, Measured, Pattern};
use trefoil_storage_node::store::{Store, StoreOptions};

/// Bytes of the store, where they are not given.
const SIZE: Size = Size(2 << 30);
/// The part of it that is read and written.
const DATA_PART: u64 = 4;
/// Background work gets this long before fio has its turn.
const SETTLE: Duration = Duration::from_millis(500);

/// The project's aims for the store. [`Aim::measured`] is to be at most the limit.
mod aims {
    /// Mean latency of durable 4k writes at depth 1, as a multiple of the raw one. The mean, because on many
    /// devices a flush takes either long or not, and the median is now one and now the other.
    pub const WRITE_LATENCY: f64 = 1.3;
    /// Raw durable 4k writes a second at depth 32 for each of the store's.
    pub const WRITE_IOPS: f64 = 1.0;
    /// Median latency of reads at depth 1; raw reads a second for each of the store's at others.
    pub const READ: f64 = 1.15;
    /// Microseconds of processor time of a 4k write at depth 32.
    pub const WRITE_CPU: f64 = 12.0;
    /// And of a read.
    pub const READ_CPU: f64 = 9.0;
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    pattern: String,
    depth: u32,
    write: bool,
    bytes: u64,
    iops: f64,
    mib_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    raw: Option<RawLine>,
}

#[derive(Debug, Serialize)]
struct RawLine {
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    /// The store's I/Os for each of these.
    ratio: f64,
    /// The store's median latency by this one.
    p50_ratio: f64,
}

/// An aim, and whether it was met.
#[derive(Debug, Serialize)]
struct Aim {
    what: String,
    measured: f64,
    limit: f64,
    met: bool,
}

/// What `--json` shows.
#[derive(Serialize)]
struct View<'a> {
    device: String,
    fio: Option<&'a str>,
    size: u64,
    data: u64,
    runtime_s: f64,
    rounds: u32,
    patterns: &'a [Line],
    aims: &'a [Aim],
}

/// Runs it.
pub fn run(args: &StoreArgs, shutdown: &Shutdown, runtime: &Runtime, out: &mut dyn Write) -> Outcome {
    let version = match args.no_raw {
        true => None,
        false => Some(fio::version("for the raw device's speed; --no-raw measures the store alone")?),
    };
    let size = args.size.unwrap_or(SIZE).0;
    let data = (size / DATA_PART) >> 20 << 20;
    let raw = if args.no_raw { 0 } else { data };
    let bar = progress_bar();
    let wanted = Wanted { store: size, raw, written: size, preallocate: true };
    let place =
        Place::make(&args.place, &wanted, &mut |done, of| progress(&bar, "writing fio's part", done, of))?;
    let stop = stop(shutdown);
    let options = StoreOptions::default();
    let (store, _) =
        Store::open(&place.device, &place.index, options, &mut |_, _| ()).map_err(BenchError::from)?;
    let blocks = data / BLOCK_SIZE as u64;
    let mut load = Load::new(store, blocks, stop);
    runtime.block_on(write_through(&mut load, blocks, size, &mut |done| {
        progress(&bar, "writing the store through", done, size)
    }))?;

    let patterns = patterns(&args.depth);
    let time = args.runtime.0;
    let mut stores: Vec<Vec<Measured>> = vec![Vec::new(); patterns.len()];
    let mut raws: Vec<Vec<Beside>> = vec![Vec::new(); patterns.len()];
    for round in 0..u64::from(args.rounds) {
        for (n, (name, pattern)) in patterns.iter().enumerate() {
            let (done, of) =
                (round * patterns.len() as u64 + n as u64, u64::from(args.rounds) * patterns.len() as u64);
            progress(&bar, &format!("{name}, {}", pattern.depth), done, of);
            stores[n].push(runtime.block_on(load.run(*pattern, blocks, time))?);
            if place.raw.bytes > 0 {
                runtime.block_on(load.settle(SETTLE))?;
                raws[n].push(fio::raw::run(&place.raw, *pattern, time, shutdown)?);
            }
        }
    }
    runtime.block_on(
        load.read_back(blocks, &mut |done| progress(&bar, "reading everything back", done, blocks)),
    )?;
    bar.finish_and_clear();
    drop(load);
    let names = patterns.iter().zip(&stores).zip(&raws);
    let lines: Vec<Line> =
        names.map(|(((name, pattern), store), raw)| line(name, *pattern, store, raw)).collect();
    let aims = aims_of(&lines);
    if args.json {
        let view = View {
            device: place.device.display().to_string(),
            fio: version.as_deref(),
            size,
            data,
            runtime_s: time.as_secs_f64(),
            rounds: args.rounds,
            patterns: &lines,
            aims: &aims,
        };
        return output::json(out, &view);
    }
    writeln!(out, "{}", table(&lines))?;
    writeln!(out)?;
    for aim in &aims {
        let met = if aim.met { "met" } else { "MISSED" };
        writeln!(out, "aim {met}: {} {} (at most {})", aim.what, digits(aim.measured), digits(aim.limit))?;
    }
    let of = if version.is_some() { "" } else { "; those beside the raw device need fio" };
    let met = aims.iter().filter(|aim| aim.met).count();
    writeln!(out, "{met} of {} aims met{of}. All data was read back and is right", aims.len())?;
    Ok(())
}

/// Until every segment of the log has been used, so that nothing new to the device is left.
async fn write_through(
    load: &mut Load,
    blocks: u64,
    size: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), BenchError> {
    loop {
        let written = load.stats().bytes_written;
        if written >= size {
            break;
        }
        load.fill(blocks, &mut |done| progress((written + done * BLOCK_SIZE as u64).min(size))).await?;
    }
    load.settle(SETTLE * 4).await
}

/// What is measured, and its name.
fn patterns(depths: &[u32]) -> Vec<(&'static str, Pattern)> {
    let or = |default: &[u32]| if depths.is_empty() { default.to_vec() } else { depths.to_vec() };
    let kinds = [
        ("4k random write", true, 1, or(&[1, 8, 32])),
        ("4k random read", false, 1, or(&[1, 32])),
        ("64k random write", true, 16, or(&[8])),
        ("64k random read", false, 16, or(&[8])),
        ("1M random write", true, 256, or(&[8])),
        ("1M random read", false, 256, or(&[8])),
    ];
    let each = |(name, write, blocks, depths): (_, _, _, Vec<u32>)| {
        depths.into_iter().map(move |depth| (name, Pattern { write, blocks, depth }))
    };
    kinds.into_iter().flat_map(each).collect()
}

fn line(name: &str, pattern: Pattern, store: &[Measured], raw: &[Beside]) -> Line {
    let us = |m: &Measured, part| m.latency.percentile(part).as_secs_f64() * 1e6;
    let of = |f: &dyn Fn(&Measured) -> f64| median(store.iter().map(f));
    let of_raw = |f: &dyn Fn(&Beside) -> f64| median(raw.iter().map(f));
    let bytes = u64::from(pattern.blocks) * BLOCK_SIZE as u64;
    let iops = of(&|m| m.iops());
    // Of each pair of neighbours, so that a slow minute counts for both.
    let pairs = || store.iter().zip(raw);
    let raw = (!raw.is_empty()).then(|| RawLine {
        iops: of_raw(&|m| m.iops),
        p50_us: of_raw(&|m| m.p50_us),
        p99_us: of_raw(&|m| m.p99_us),
        cpu_us: of_raw(&|m| m.cpu_us),
        ratio: median(pairs().map(|(store, raw)| store.iops() / raw.iops.max(1e-9))),
        p50_ratio: median(pairs().map(|(store, raw)| us(store, 0.5) / raw.p50_us.max(1e-9))),
    });
    Line {
        pattern: name.to_owned(),
        depth: pattern.depth,
        write: pattern.write,
        bytes,
        iops,
        mib_per_s: iops * bytes as f64 / f64::from(1 << 20),
        p50_us: of(&|m| us(m, 0.5)),
        p99_us: of(&|m| us(m, 0.99)),
        cpu_us: of(&|m| m.cpu_us()),
        raw,
    }
}

fn aims_of(lines: &[Line]) -> Vec<Aim> {
    let mut aims = Vec::new();
    let mut aim = |line: &Line, what: &str, measured: f64, limit: f64| {
        let what = format!("{}, depth {}: {what}", line.pattern, line.depth);
        aims.push(Aim { what, measured, limit, met: measured <= limit });
    };
    for line in lines {
        let small = line.bytes == BLOCK_SIZE as u64;
        if let Some(raw) = &line.raw {
            match (line.write, line.depth) {
                // At depth 1 the mean latency is the time that one takes.
                (true, 1) if small => {
                    aim(line, "mean latency by raw", 1.0 / raw.ratio.max(1e-9), aims::WRITE_LATENCY);
                }
                (true, 32) if small => {
                    aim(line, "raw IOPS by the store's", 1.0 / raw.ratio.max(1e-9), aims::WRITE_IOPS);
                }
                (false, 1) => aim(line, "median latency by raw", raw.p50_ratio, aims::READ),
                (false, _) => aim(line, "raw IOPS by the store's", 1.0 / raw.ratio.max(1e-9), aims::READ),
                _ => {}
            }
        }
        if small && line.depth == 32 {
            let limit = if line.write { aims::WRITE_CPU } else { aims::READ_CPU };
            aim(line, "CPU µs of each", line.cpu_us, limit);
        }
    }
    aims
}

fn table(lines: &[Line]) -> String {
    let headers = [
        "PATTERN",
        ">DEPTH",
        ">IOPS",
        ">MiB/s",
        ">P50 µs",
        ">P99 µs",
        ">CPU µs",
        ">RAW IOPS",
        ">RAW P50",
        ">RAW P99",
        ">RAW CPU",
        ">RATIO",
    ];
    let rows = lines.iter().map(|line| {
        let mut row = vec![line.pattern.clone(), line.depth.to_string()];
        row.extend([line.iops, line.mib_per_s, line.p50_us, line.p99_us, line.cpu_us].map(digits));
        match &line.raw {
            Some(raw) => row.extend([raw.iops, raw.p50_us, raw.p99_us, raw.cpu_us, raw.ratio].map(digits)),
            None => row.extend(["-"; 5].map(str::to_owned)),
        }
        row
    });
    output::table(&headers, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_line(write: bool, bytes: u64, depth: u32, raw: Option<(f64, f64)>) -> Line {
        let (iops, p50_us) = (1000.0, 100.0);
        let raw = raw.map(|(iops_raw, p50_raw)| RawLine {
            iops: iops_raw,
            p50_us: p50_raw,
            p99_us: 0.0,
            cpu_us: 0.0,
            ratio: iops / iops_raw,
            p50_ratio: p50_us / p50_raw,
        });
        let pattern = "x".to_owned();
        Line { pattern, depth, write, bytes, iops, mib_per_s: 1.0, p50_us, p99_us: 1.0, cpu_us: 10.0, raw }
    }

    #[test]
    fn aims_are_those_of_the_project() {
        let met = |line: Line| aims_of(&[line]).iter().map(|aim| aim.met).collect::<Vec<_>>();
        // Latency at depth 1: 1 ms beside 1/1.29 and 1/1.31 of it; of reads the median, 100 beside 90 and 80.
        assert_eq!(met(a_line(true, 4096, 1, Some((1290.0, 1.0)))), [true]);
        assert_eq!(met(a_line(true, 4096, 1, Some((1310.0, 1000.0)))), [false]);
        assert_eq!(met(a_line(false, 4096, 1, Some((9999.0, 90.0)))), [true]);
        assert_eq!(met(a_line(false, 4096, 1, Some((1.0, 80.0)))), [false]);
        // More than raw at depth 32, and 10 µs of processor time: enough for a write, not for a read.
        assert_eq!(met(a_line(true, 4096, 32, Some((999.0, 1.0)))), [true, true]);
        assert_eq!(met(a_line(true, 4096, 32, Some((1001.0, 1.0)))), [false, true]);
        assert_eq!(met(a_line(false, 4096, 32, Some((1100.0, 1.0)))), [true, false]);
        assert_eq!(met(a_line(false, 65536, 8, Some((1200.0, 1.0)))), [false]);
        // No aim for large writes, nor beside nothing.
        assert_eq!(met(a_line(true, 65536, 8, Some((1e9, 1.0)))), [false; 0]);
        assert_eq!(met(a_line(false, 4096, 32, None)), [false]);
        assert_eq!(met(a_line(true, 4096, 1, None)), [false; 0]);
    }

    #[test]
    fn depths_can_be_chosen() {
        assert_eq!(patterns(&[]).len(), 9);
        assert_eq!(patterns(&[4]).len(), 6);
        assert!(patterns(&[2, 4]).iter().all(|(_, p)| [2, 4].contains(&p.depth)));
    }
}
