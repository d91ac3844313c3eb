//! What fio writes with `--output-format=json`, as far as it is used.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What one job has come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Its reads, if it made any.
    pub read: Option<Side>,
    /// Its writes, if it made any.
    pub write: Option<Side>,
    /// Processor time of the thread that made them.
    pub job_cpu: Duration,
    /// Processor time of all of fio, from its start to its end.
    pub process_cpu: Duration,
}

/// Reads or writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// How many.
    pub ios: u64,
    /// Bytes.
    pub bytes: u64,
    /// In a second.
    pub iops: f64,
    /// 10^6 bytes in a second.
    pub mb_per_s: f64,
    /// Microseconds; the same for the others.
    pub mean_us: f64,
    /// The median.
    pub p50_us: f64,
    /// Of a hundred, one took longer.
    pub p99_us: f64,
    /// Of a thousand, one took longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Measured {
    /// Both sides in one: of latencies, the worse.
    pub fn total(&self) -> Side {
        let mut total = Side::default();
        let sides = || [self.read, self.write].into_iter().flatten();
        for side in sides() {
            total.ios += side.ios;
            total.bytes += side.bytes;
            total.iops += side.iops;
            total.mb_per_s += side.mb_per_s;
            total.p50_us = total.p50_us.max(side.p50_us);
            total.p99_us = total.p99_us.max(side.p99_us);
            total.p999_us = total.p999_us.max(side.p999_us);
            total.max_us = total.max_us.max(side.max_us);
        }
        let sum: f64 = sides().map(|side| side.mean_us * side.ios as f64).sum();
        total.mean_us = sum / (total.ios as f64).max(1.0);
        total
    }
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    read: SideRead,
    write: SideRead,
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Deserialize)]
struct SideRead {
    iops: f64,
    total_ios: u64,
    io_bytes: u64,
    bw_bytes: f64,
    /// Milliseconds.
    runtime: u64,
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    #[serde(default)]
    max: f64,
    #[serde(default)]
    mean: f64,
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

impl SideRead {
    fn side(&self) -> anyhow::Result<Option<Side>> {
        if self.total_ios == 0 {
            return Ok(None);
        }
        let percentile = |key: &str| {
            let found = self.lat_ns.percentile.get(key).copied();
            found.map(|ns| ns / 1e3).with_context(|| format!("no percentile {key}"))
        };
        Ok(Some(Side {
            ios: self.total_ios,
            bytes: self.io_bytes,
            iops: self.iops,
            mb_per_s: self.bw_bytes / 1e6,
            mean_us: self.lat_ns.mean / 1e3,
            p50_us: percentile("50.000000")?,
            p99_us: percentile("99.000000")?,
            p999_us: percentile("99.900000")?,
            max_us: self.lat_ns.max / 1e3,
        }))
    }
}

/// Reads it.
pub fn parse(text: &str) -> anyhow::Result<Measured> {
    // Notes come before it.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let report: Report = serde_json::from_str(json)?;
    let job = report.jobs.first().context("no job")?;
    anyhow::ensure!(job.error == 0, "error {}", job.error);
    let (read, write) = (job.read.side()?, job.write.side()?);
    anyhow::ensure!(read.is_some() || write.is_some(), "it has done nothing");
    // Percent of the job's time.
    let runtime_ms = job.read.runtime.max(job.write.runtime) as f64;
    let job_cpu = ((job.usr_cpu + job.sys_cpu) / 100.0 * runtime_ms / 1000.0).max(0.0);
    let job_cpu = Duration::try_from_secs_f64(job_cpu).context("its processor time is no time")?;
    Ok(Measured { read, write, job_cpu, process_cpu: Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"fio: a note
{ "fio version": "fio-3.33", "jobs": [ { "jobname": "raw", "error": 0,
  "read": { "iops": 0.0, "total_ios": 0, "io_bytes": 0, "bw_bytes": 0, "runtime": 0, "lat_ns": { "min": 0 } },
  "write": { "iops": 500.5, "total_ios": 1001, "io_bytes": 4100096, "bw_bytes": 2050048, "runtime": 2000,
             "lat_ns": { "min": 1, "max": 9000000, "mean": 2000000.5,
                         "percentile": { "50.000000": 1900000, "99.000000": 4000000, "99.900000": 5000000 } } },
  "usr_cpu": 1.0, "sys_cpu": 3.004 } ] }"#;

    #[test]
    fn its_report_is_understood() {
        let measured = parse(REPORT).unwrap();
        assert_eq!(measured.read, None);
        let side = measured.write.unwrap();
        assert_eq!((side.ios, side.bytes, side.iops), (1001, 4_100_096, 500.5));
        assert_eq!((side.p50_us, side.p99_us, side.p999_us, side.max_us), (1900.0, 4000.0, 5000.0, 9000.0));
        assert_eq!(measured.job_cpu, Duration::from_micros(80_080));
        for text in
            ["", "{}", "{\"jobs\": []}", &REPORT.replace("1001", "0"), &REPORT.replace("99.9", "99.8")]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        let failed = REPORT.replace("\"error\": 0", "\"error\": 5");
        assert!(parse(&failed).unwrap_err().to_string().contains("error 5"));
    }

    #[test]
    fn a_mix_is_as_slow_as_its_worse_side() {
        let side =
            |ios, us| Side { ios, iops: ios as f64, mean_us: us, p50_us: us, max_us: us, ..Side::default() };
        let mix =
            Measured { read: Some(side(300, 10.0)), write: Some(side(100, 50.0)), ..Measured::default() };
        let total = mix.total();
        assert_eq!((total.ios, total.iops, total.mean_us), (400, 400.0, 20.0));
        assert_eq!((total.p50_us, total.max_us), (50.0, 50.0));
    }
}
