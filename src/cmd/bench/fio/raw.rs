//! A raw device's or a plain file's speed: direct I/O through io_uring, writes with O_DSYNC, as durable as ours.

use super::super::place::Raw;
use super::COMMON;
use crate::failure::Outcome;
use crate::signals::Shutdown;
use std::path::Path;
use std::time::Duration;
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::bench::load::Pattern;

/// What makes a job a raw one, on this file or device.
pub fn device(path: &Path) -> Vec<String> {
    // fio takes a colon for the end of a name.
    let path = path.display().to_string().replace('\\', "\\\\").replace(':', "\\:");
    let all = ["--ioengine=io_uring", "--direct=1", "--fallocate=none"].map(str::to_owned);
    all.into_iter().chain([format!("--filename={path}")]).collect()
}

/// What makes its writes durable when they are answered.
pub const DURABLE: &str = "--sync=dsync";

/// What fio has measured beside the store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beside {
    /// Reads or writes in a second.
    pub iops: f64,
    /// Microseconds.
    pub p50_us: f64,
    /// Microseconds.
    pub p99_us: f64,
    /// Microseconds of processor time of each, fio's own included.
    pub cpu_us: f64,
}

/// Runs a pattern of the store's benchmark for this long.
///
/// # Errors
///
/// See [`super::run`].
pub fn run(raw: &Raw, pattern: Pattern, time: Duration, shutdown: &Shutdown) -> Outcome<Beside> {
    let measured = super::run(&arguments(raw, pattern, time), &[], shutdown, &mut || ())?;
    let total = measured.total();
    Ok(Beside {
        iops: total.iops,
        p50_us: total.p50_us,
        p99_us: total.p99_us,
        cpu_us: measured.job_cpu.as_secs_f64() * 1e6 / (total.ios as f64).max(1.0),
    })
}

fn arguments(raw: &Raw, pattern: Pattern, time: Duration) -> Vec<String> {
    let mut all = vec![
        "--name=raw".to_owned(),
        format!("--offset={}", raw.offset),
        format!("--size={}", raw.bytes),
        format!("--rw={}", if pattern.write { "randwrite" } else { "randread" }),
        format!("--bs={}", u64::from(pattern.blocks) * BLOCK_SIZE as u64),
        format!("--iodepth={}", pattern.depth),
        "--time_based".to_owned(),
        format!("--runtime={}ms", time.as_millis()),
    ];
    all.extend(device(&raw.path));
    all.extend(COMMON.split_whitespace().map(str::to_owned));
    if pattern.write {
        all.push(DURABLE.to_owned());
        // Compressing or deduplicating devices would be too fast otherwise; the store writes random bytes too.
        all.push("--refill_buffers".to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_durable_ones_and_names_are_not_cut() {
        let raw = Raw { path: "/a:b".into(), offset: 8192, bytes: 4096 };
        let pattern = Pattern { write: true, blocks: 16, depth: 8 };
        let all = arguments(&raw, pattern, Duration::from_millis(1500));
        for wanted in [
            "--filename=/a\\:b",
            "--offset=8192",
            "--size=4096",
            "--bs=65536",
            "--iodepth=8",
            "--runtime=1500ms",
            "--direct=1",
            "--sync=dsync",
        ] {
            assert!(all.iter().any(|a| a == wanted), "{wanted}: {all:?}");
        }
        let reads = arguments(&raw, Pattern { write: false, ..pattern }, Duration::from_secs(1));
        assert!(!reads.iter().any(|a| a.starts_with("--sync")), "{reads:?}");
    }
}
