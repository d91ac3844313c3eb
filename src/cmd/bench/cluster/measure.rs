//! Running the jobs: each on the cluster, and directly after it on the raw device and on what stands beside it.
//!
//! Processor time and bytes written are counted from before a job until a moment after it, so that what was put off
//! counts as well. fio's own start is measured before and not counted.

use super::jobs::{Job, WRITE_THROUGH};
use super::report::{Figures, median_of};
use super::usage::{Process, Processes};
use crate::cmd::bench::fio::{self, Measured, raw};
use crate::cmd::bench::floor;
use crate::failure::{Failure, Outcome};
use crate::signals::Shutdown;
use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};
use trefoil_storage_node::bench::BenchError;

/// After each job: its afterwork is counted, and the next one's neighbour is quiet.
const SETTLE: Duration = Duration::from_millis(500);
/// How often a signal is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How often fio's start is measured.
const STARTS: u32 = 3;
/// Longest description of another system.
const BESIDE_BYTES_MAX: u64 = 1 << 20;

/// Something that fio can read and write.
pub struct System {
    /// What it is called.
    pub name: String,
    /// What there is to know about it.
    pub note: Option<String>,
    /// Engine and place.
    fio: Vec<String>,
    /// For jobs that write.
    fio_writes: Vec<String>,
    environment: Vec<(String, String)>,
    processes: Processes,
    /// Of a fio that does next to nothing.
    start_cpu: Duration,
    /// It is not measured with fio.
    floor: Option<floor::Beside>,
}

/// Name of the cluster that is measured.
pub const TREFOIL: &str = "trefoil";
/// Name of the raw device.
pub const RAW: &str = "raw";
/// Name of the least that such a cluster can cost here.
pub const FLOOR: &str = "floor";

/// The file that `--beside` names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BesideRead {
    name: String,
    fio: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    processes: Vec<Process>,
    note: Option<String>,
}

impl System {
    /// A volume of Trefoil.
    pub fn cluster(uri: &str, processes: Processes) -> System {
        System {
            name: TREFOIL.to_owned(),
            note: None,
            fio: vec!["--ioengine=nbd".to_owned(), format!("--uri={uri}")],
            fio_writes: Vec::new(),
            environment: Vec::new(),
            processes,
            start_cpu: Duration::ZERO,
            floor: None,
        }
    }

    /// A raw device or a file.
    pub fn raw(path: &Path) -> System {
        System {
            name: RAW.to_owned(),
            note: Some(format!("{}, O_DIRECT by io_uring, writes with O_DSYNC", path.display())),
            fio: raw::device(path),
            fio_writes: vec![raw::DURABLE.to_owned()],
            environment: Vec::new(),
            processes: Processes::default(),
            start_cpu: Duration::ZERO,
            floor: None,
        }
    }

    /// The sends, receives and device operations of a cluster without anything else.
    pub fn floor(floor: floor::Beside) -> System {
        let note = "what `trefoil bench floor` does, by epoll and unix sockets: CPU of front and nodes, FIO CPU of its client";
        System {
            name: FLOOR.to_owned(),
            note: Some(note.to_owned()),
            fio: Vec::new(),
            fio_writes: Vec::new(),
            environment: Vec::new(),
            processes: Processes::default(),
            start_cpu: Duration::ZERO,
            floor: Some(floor),
        }
    }

    /// What a file describes.
    pub fn beside(path: &Path) -> Outcome<System> {
        let name = path.display();
        let mut text = String::new();
        let file = std::fs::File::open(path).with_context(|| format!("--beside {name}"))?;
        file.take(BESIDE_BYTES_MAX).read_to_string(&mut text).with_context(|| format!("--beside {name}"))?;
        let read: BesideRead = serde_json::from_str(&text).with_context(|| format!("--beside {name}"))?;
        let taken = [TREFOIL, RAW, FLOOR].contains(&read.name.as_str()) || read.name.trim().is_empty();
        if taken {
            let told = anyhow!("--beside {name}: {:?} is no name for another system", read.name);
            return Err(Failure::usage(told));
        }
        Ok(System {
            processes: Processes::new(read.processes).with_context(|| format!("--beside {name}"))?,
            name: crate::output::printable(&read.name),
            note: read.note,
            fio: read.fio,
            fio_writes: Vec::new(),
            environment: read.environment.into_iter().collect(),
            start_cpu: Duration::ZERO,
            floor: None,
        })
    }
}

/// What all measurements share.
pub struct Bench<'a> {
    /// Ctrl-C.
    pub shutdown: &'a Shutdown,
    /// What is seen meanwhile.
    pub bar: &'a ProgressBar,
    /// Bytes that are used.
    pub size: u64,
    /// Of each job.
    pub time: Duration,
    /// How often.
    pub rounds: u32,
}

/// What has come of it, by system in the order in which they were given.
pub struct Results {
    /// 10^6 bytes a second, when everything was written once.
    pub written_through: Vec<Option<f64>>,
    /// By job, and by system.
    pub jobs: Vec<Vec<Option<Figures>>>,
}

impl Bench<'_> {
    /// Everything.
    ///
    /// # Errors
    ///
    /// fio fails, a process that is counted ends, or the user has had enough.
    pub fn run(&self, systems: &mut [System], jobs: &[Job]) -> Outcome<Results> {
        let step = self.time + SETTLE;
        let steps = u64::from(self.rounds) * (jobs.len() * systems.len()) as u64;
        self.bar.set_length(steps * step.as_millis() as u64);
        let mut written_through = Vec::new();
        for system in systems.iter_mut() {
            if system.floor.is_some() {
                written_through.push(None);
                continue;
            }
            self.bar.set_message(format!("writing through, {}", system.name));
            let written = self.fio(system, &WRITE_THROUGH, None, 0)?;
            written_through.push(Some(written.total().mb_per_s));
            system.start_cpu = self.start_cpu(system)?;
            self.rest()?;
        }
        let mut all: Vec<Vec<Vec<Figures>>> = vec![vec![Vec::new(); systems.len()]; jobs.len()];
        let mut done = 0;
        for _ in 0..self.rounds {
            for (job, of_job) in jobs.iter().zip(&mut all) {
                let mut neighbours = Vec::new();
                for system in systems.iter() {
                    self.bar.set_message(format!("{}, {}", job.name, system.name));
                    neighbours.push(self.measure(system, job, done)?);
                    done += step.as_millis() as u64;
                    self.bar.set_position(done);
                }
                // Of neighbours, so that a slow minute counts for both.
                let named = |name| systems.iter().position(|system| system.name == name);
                let neighbour = |name| named(name).and_then(|n| neighbours[n].clone());
                let (raw, floor) = (neighbour(RAW), neighbour(FLOOR));
                for (figures, of_system) in neighbours.into_iter().zip(of_job) {
                    of_system.extend(figures.map(|figures| figures.beside(raw.as_ref(), floor.as_ref())));
                }
            }
        }
        let jobs = all.iter().map(|of_job| of_job.iter().map(|rounds| median_of(rounds)).collect()).collect();
        Ok(Results { written_through, jobs })
    }

    /// Nothing where the system cannot do that.
    fn measure(&self, system: &System, job: &Job, done: u64) -> Outcome<Option<Figures>> {
        if let Some(floor) = &system.floor {
            let Some(pattern) = job.pattern() else { return Ok(None) };
            let figures = Figures::of_floor(pattern, &floor.run(pattern, self.time)?);
            self.rest()?;
            return Ok(Some(figures));
        }
        let before = system.processes.sample()?;
        let measured = self.fio(system, job, Some(self.time), done)?;
        self.rest()?;
        let used = system.processes.since(&before)?;
        let client = measured.process_cpu.saturating_sub(system.start_cpu);
        Ok(Some(Figures::new(&measured, &used, client)))
    }

    /// What fio needs to start, reach the volume and stop: the least of a few tries, for on a busy machine one is
    /// easily too much, and would be taken off every job.
    fn start_cpu(&self, system: &System) -> Outcome<Duration> {
        let mut arguments = Job { rw: "read", ..WRITE_THROUGH }.arguments(self.size, None);
        arguments.push("--number_ios=1".to_owned());
        arguments.extend(system.fio.iter().cloned());
        let mut least = Duration::MAX;
        for _ in 0..STARTS {
            let measured = fio::run(&arguments, &system.environment, self.shutdown, &mut || ())?;
            least = least.min(measured.process_cpu);
        }
        Ok(least)
    }

    fn fio(&self, system: &System, job: &Job, time: Option<Duration>, done: u64) -> Outcome<Measured> {
        let mut arguments = job.arguments(self.size, time);
        arguments.extend(system.fio.iter().cloned());
        if job.writes() {
            arguments.extend(system.fio_writes.iter().cloned());
        }
        let begun = Instant::now();
        let mut tick = || {
            let elapsed = time.map_or(Duration::ZERO, |time| begun.elapsed().min(time));
            self.bar.set_position(done + elapsed.as_millis() as u64);
        };
        let measured = fio::run(&arguments, &system.environment, self.shutdown, &mut tick);
        measured.map_err(|failure| failure.context(format!("{}, {}", job.name, system.name)))
    }

    fn rest(&self) -> Outcome {
        let end = Instant::now() + SETTLE;
        while Instant::now() < end {
            if *self.shutdown.borrow() {
                return Err(BenchError::Stopped.into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
