//! What is measured, and what the project wants to reach.

use super::super::fio;
use serde::Serialize;
use std::time::Duration;
use trefoil_storage_node::bench::floor::load::Pattern;

/// 1 MiB.
const MIB: u64 = 1 << 20;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Job {
    /// What it is called.
    pub name: &'static str,
    /// fio's word for it.
    pub rw: &'static str,
    /// Bytes of each I/O.
    pub block_bytes: u64,
    /// I/Os under way at once.
    pub depth: u32,
    /// Of a mix.
    pub read_percent: Option<u32>,
}

/// All of them, in the order in which they run.
pub const JOBS: [Job; 7] = [
    job("randwrite-4k-qd1", "randwrite", 4096, 1, None),
    job("randread-4k-qd1", "randread", 4096, 1, None),
    job("randwrite-4k-qd32", "randwrite", 4096, 32, None),
    job("randread-4k-qd32", "randread", 4096, 32, None),
    job("randrw70-4k-qd16", "randrw", 4096, 16, Some(70)),
    job("write-1m-qd8", "write", MIB, 8, None),
    job("read-1m-qd8", "read", MIB, 8, None),
];

/// Writes everything once.
pub const WRITE_THROUGH: Job = job("write-through", "write", MIB, 8, None);

const fn job(
    name: &'static str,
    rw: &'static str,
    block_bytes: u64,
    depth: u32,
    read_percent: Option<u32>,
) -> Job {
    Job { name, rw, block_bytes, depth, read_percent }
}

impl Job {
    /// By name.
    pub fn named(name: &str) -> Option<Job> {
        JOBS.into_iter().find(|job| job.name == name)
    }

    /// True if it overwrites.
    pub fn writes(&self) -> bool {
        self.rw != "read" && self.rw != "randread"
    }

    /// For the floor, which knows no mix.
    pub fn pattern(&self) -> Option<Pattern> {
        let bytes = u32::try_from(self.block_bytes).ok()?;
        let pattern = Pattern { write: self.writes(), bytes, depth: self.depth };
        self.read_percent.is_none().then_some(pattern)
    }

    /// For fio: on the first `size` bytes, for this long or, without a time, once through.
    pub fn arguments(&self, size: u64, time: Option<Duration>) -> Vec<String> {
        let mut all = vec![
            format!("--name={}", self.name),
            format!("--rw={}", self.rw),
            format!("--bs={}", self.block_bytes),
            format!("--iodepth={}", self.depth),
            format!("--size={size}"),
            "--thread".to_owned(),
        ];
        all.extend(fio::COMMON.split_whitespace().map(str::to_owned));
        all.extend(self.read_percent.map(|percent| format!("--rwmixread={percent}")));
        if let Some(time) = time {
            all.extend(["--time_based".to_owned(), format!("--runtime={}ms", time.as_millis())]);
        }
        all
    }
}

/// What is held against a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// Microseconds of processor time of each I/O, over all processes of the cluster: at most.
    Cpu,
    /// IOPS as a part of raw ones: at least.
    RawIops,
    /// The median latency as a multiple of the raw one: at most.
    RawP50,
}

/// An aim.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// Of this job.
    pub job: &'static str,
    /// What.
    pub what: Quantity,
    /// How much.
    pub limit: f64,
}

/// The project's, for three copies, through NBD over a unix socket, all on one machine.
pub const AIMS: [Aim; 9] = [
    aim("randwrite-4k-qd1", Quantity::RawP50, 2.5),
    aim("randread-4k-qd1", Quantity::RawP50, 2.0),
    aim("randwrite-4k-qd32", Quantity::Cpu, 45.0),
    aim("randwrite-4k-qd32", Quantity::RawIops, 0.35),
    aim("randread-4k-qd32", Quantity::Cpu, 16.0),
    aim("randread-4k-qd32", Quantity::RawIops, 0.75),
    aim("write-1m-qd8", Quantity::Cpu, 1800.0),
    aim("write-1m-qd8", Quantity::RawIops, 0.31),
    aim("read-1m-qd8", Quantity::Cpu, 450.0),
];

const fn aim(job: &'static str, what: Quantity, limit: f64) -> Aim {
    Aim { job, what, limit }
}

impl Aim {
    /// Of a job.
    pub fn of(job: &str, what: Quantity) -> Option<Aim> {
        AIMS.into_iter().find(|aim| aim.job == job && aim.what == what)
    }

    /// Whether `measured` is good enough.
    pub fn is_met_by(&self, measured: f64) -> bool {
        match self.what {
            Quantity::RawIops => measured >= self.limit,
            Quantity::Cpu | Quantity::RawP50 => measured <= self.limit,
        }
    }
}

impl Quantity {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Quantity::Cpu => "CPU µs of each",
            Quantity::RawIops => "IOPS by raw IOPS",
            Quantity::RawP50 => "median latency by raw",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_aim_is_of_a_job_that_there_is() {
        for aim in AIMS {
            let job = Job::named(aim.job).unwrap();
            // A write's limits hold for each MiB: one I/O.
            assert!(job.block_bytes == 4096 || job.block_bytes == MIB, "{aim:?}");
        }
        assert_eq!(Job::named("nothing"), None);
        assert!(Aim::of("randread-4k-qd32", Quantity::RawIops).unwrap().is_met_by(0.75));
        assert!(!Aim::of("randread-4k-qd32", Quantity::RawIops).unwrap().is_met_by(0.74));
        assert!(Aim::of("randwrite-4k-qd1", Quantity::RawP50).unwrap().is_met_by(2.5));
        assert!(!Aim::of("randwrite-4k-qd1", Quantity::RawP50).unwrap().is_met_by(2.6));
        assert!(Aim::of("read-1m-qd8", Quantity::RawP50).is_none());
    }

    #[test]
    fn fio_is_told_what_the_job_is() {
        let mix = Job::named("randrw70-4k-qd16").unwrap();
        let all = mix.arguments(8192, Some(Duration::from_millis(1500))).join(" ");
        for wanted in
            ["--rw=randrw", "--rwmixread=70", "--bs=4096", "--iodepth=16", "--size=8192", "--runtime=1500ms"]
        {
            assert!(all.contains(wanted), "{all}");
        }
        assert_eq!(mix.pattern(), None);
        let read = Job::named("read-1m-qd8").unwrap().pattern();
        assert_eq!(read, Some(Pattern { write: false, bytes: 1 << 20, depth: 8 }));
        assert!(mix.writes() && !Job::named("read-1m-qd8").unwrap().writes());
        assert!(!WRITE_THROUGH.arguments(8192, None).join(" ").contains("time_based"));
    }
}
