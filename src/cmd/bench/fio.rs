//! The raw device's speed, by `fio` as a child process: direct I/O through io_uring, writes with O_DSYNC.

use super::place::Raw;
use crate::failure::Outcome;
use crate::signals::Shutdown;
use anyhow::{Context, anyhow};
use serde::Deserialize;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::bench::BenchError;
use trefoil_storage_node::bench::load::Pattern;

/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of its output that are read.
const OUTPUT_MAX: u64 = 4 << 20;

/// What fio has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Reads or writes in a second.
    pub iops: f64,
    /// Microseconds.
    pub p50_us: f64,
    /// Microseconds.
    pub p99_us: f64,
    /// Microseconds of processor time of each, fio's own included.
    pub cpu_us: f64,
}

/// That there is one; its version.
pub fn version() -> Outcome<String> {
    let missing =
        "fio is needed for the raw device's speed (apt-get install fio); --no-raw measures the store alone";
    let output = Command::new("fio").arg("--version").stdin(Stdio::null()).output().context(missing)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a pattern for this long.
///
/// # Errors
///
/// fio cannot be run, or does not understand us, or the user has had enough.
pub fn run(raw: &Raw, pattern: Pattern, time: Duration, shutdown: &Shutdown) -> Outcome<Measured> {
    let mut command = Command::new("fio");
    command.args(arguments(raw, pattern, time)).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run fio")?;
    let outcome = wait(&mut child, shutdown);
    if outcome.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let json = outcome?;
    Ok(parse(&json, pattern.write)
        .with_context(|| format!("fio has written something unknown: {:.200}", json.trim()))?)
}

fn arguments(raw: &Raw, pattern: Pattern, time: Duration) -> Vec<String> {
    // fio takes a colon for the end of a name.
    let path = raw.path.display().to_string().replace('\\', "\\\\").replace(':', "\\:");
    let mut all = vec![
        "--name=raw".to_owned(),
        format!("--filename={path}"),
        format!("--offset={}", raw.offset),
        format!("--size={}", raw.bytes),
        format!("--rw={}", if pattern.write { "randwrite" } else { "randread" }),
        format!("--bs={}", u64::from(pattern.blocks) * BLOCK_SIZE as u64),
        format!("--iodepth={}", pattern.depth),
        format!("--runtime={}ms", time.as_millis()),
    ];
    let fixed = "--time_based --ioengine=io_uring --direct=1 --norandommap --randrepeat=0 --fallocate=none \
                 --clat_percentiles=0 --lat_percentiles=1 --percentile_list=50:99 --output-format=json";
    all.extend(fixed.split_whitespace().map(str::to_owned));
    if pattern.write {
        all.push("--sync=dsync".to_owned());
        // Compressing or deduplicating devices would be too fast otherwise; the store writes random bytes too.
        all.push("--refill_buffers".to_owned());
    }
    all
}

/// Its output, once it has ended well.
fn wait(child: &mut Child, shutdown: &Shutdown) -> Outcome<String> {
    // Read elsewhere, so that it never waits for us.
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.map(|pipe| pipe.take(OUTPUT_MAX).read_to_string(&mut text));
            text
        })
    };
    let out = reader(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let errors = reader(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for fio")? {
            break status;
        }
        if *shutdown.borrow() {
            return Err(BenchError::Stopped.into());
        }
        std::thread::sleep(LOOK);
    };
    // A thread of ours that reads does not panic.
    let (text, errors) = (out.join().unwrap_or_default(), errors.join().unwrap_or_default());
    if !status.success() {
        let stopped = *shutdown.borrow();
        return Err(match stopped {
            true => BenchError::Stopped.into(),
            false => {
                anyhow!("fio failed ({status}): {}; --no-raw measures the store alone", errors.trim()).into()
            }
        });
    }
    Ok(text)
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    read: Side,
    write: Side,
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Deserialize)]
struct Side {
    iops: f64,
    total_ios: u64,
    runtime: u64,
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

fn parse(text: &str, write: bool) -> anyhow::Result<Measured> {
    // Notes come before it.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let report: Report = serde_json::from_str(json)?;
    let job = report.jobs.first().context("no job")?;
    anyhow::ensure!(job.error == 0, "error {}", job.error);
    let side = if write { &job.write } else { &job.read };
    anyhow::ensure!(side.total_ios > 0, "it has done nothing");
    let percentile =
        |key: &str| side.lat_ns.percentile.get(key).copied().with_context(|| format!("no {key}"));
    // Percent of the job's time, in milliseconds.
    let cpu_us = (job.usr_cpu + job.sys_cpu) / 100.0 * side.runtime as f64 * 1000.0;
    Ok(Measured {
        iops: side.iops,
        p50_us: percentile("50.000000")? / 1000.0,
        p99_us: percentile("99.000000")? / 1000.0,
        cpu_us: cpu_us / side.total_ios as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"fio: a note
{ "fio version": "fio-3.33", "jobs": [ { "jobname": "raw", "error": 0,
  "read": { "iops": 0.0, "total_ios": 0, "runtime": 0, "lat_ns": { "min": 0 } },
  "write": { "iops": 500.5, "total_ios": 1001, "runtime": 2000,
             "lat_ns": { "min": 1, "percentile": { "50.000000": 1900000, "99.000000": 4000000 } } },
  "usr_cpu": 1.0, "sys_cpu": 3.004 } ] }"#;

    #[test]
    fn its_report_is_understood() {
        let measured = parse(REPORT, true).unwrap();
        assert_eq!((measured.iops, measured.p50_us, measured.p99_us), (500.5, 1900.0, 4000.0));
        assert!((measured.cpu_us - 80.0).abs() < 0.01, "{measured:?}");
        for (text, write) in [(REPORT, false), ("", true), ("{}", true), ("{\"jobs\": []}", true)] {
            assert!(parse(text, write).is_err());
        }
        let failed = REPORT.replace("\"error\": 0", "\"error\": 5");
        assert!(parse(&failed, true).unwrap_err().to_string().contains("error 5"));
    }

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
            "--sync=dsync",
        ] {
            assert!(all.iter().any(|a| a == wanted), "{wanted}: {all:?}");
        }
        let reads = arguments(&raw, Pattern { write: false, ..pattern }, Duration::from_secs(1));
        assert!(!reads.iter().any(|a| a.starts_with("--sync")), "{reads:?}");
    }
}
