//! `trefoil bench cluster`: how fast a running cluster is, through its NBD front end, beside the raw disk and others.
//!
//! | module | what |
//! |---|---|
//! | [`jobs`] | what is measured, and the project's aims |
//! | [`target`], [`probe`], [`uri`] | which volume; that nothing is lost |
//! | [`raw`] | what `--raw` names |
//! | [`usage`] | processor time and bytes written by processes |
//! | [`measure`] | running the jobs, in turns |
//! | [`report`], [`html`], [`plot`] | what is shown |
//!
//! The load is `fio`'s (`super::fio`): nobody has to believe a generator of ours.

mod html;
mod jobs;
mod measure;
mod plot;
mod probe;
mod raw;
mod report;
mod target;
mod uri;
mod usage;

use super::{Seconds, fio, floor, progress_bar};
use crate::cmd::Global;
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::signals::{self, Shutdown};
use crate::size::Size;
use anyhow::{Context, anyhow};
use clap::Args;
use jobs::{JOBS, Job};
use measure::{Bench, System};
use report::{About, Report};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use target::{FrontEnd, Target};

/// For `--help`. A paragraph is one line here: clap breaks lines by the width of the terminal.
pub const EXAMPLES: &str = "\
Examples:
  trefoil bench                                # the `trefoil up` on ./trefoil-data
  trefoil bench --raw /srv --html bench.html   # with a file on the disk that the nodes use
  trefoil bench --raw /srv --floor             # with the least that it can cost on this machine
  trefoil bench --dir /srv/try --runtime 10 --json bench.json
  trefoil bench --uri 'nbd+unix:///?socket=/run/nbd.sock' --monitor 10.0.0.1:10800 --size 20G
  trefoil bench --uri nbd://127.0.0.1/scratch --overwrite --pids $(pgrep -d, trefoil)
  trefoil bench --jobs randwrite-4k-qd1,randread-4k-qd1 --rounds 5

Without --volume and without a name in --uri a volume is made for this and removed afterwards. \
All of its bytes are written once; then fio runs each job over NBD and directly afterwards, with \
--raw, on the disk itself: direct I/O by io_uring, writes with O_DSYNC, since Trefoil's writes are \
durable when they are answered, too. The median of the rounds counts.

Columns:
  IOPS, MB/s        as fio has them; 1 MB is 10^6 bytes
  P50 ... P99.9     latency from a request to its answer; of a mix that of its slower side
  MAX               the longest of all rounds
  CPU               processor time of each I/O over all processes of the cluster, known where
                    they run on this machine (--dir, --pids)
  FIO CPU           that of fio, in which a client library runs
  WRITTEN           bytes that all copies together gave to their devices for each of the client
  IOPS/RAW, P50/RAW beside the raw disk directly afterwards
  CPU/FLOOR         with --floor: CPU beside what the sends, receives and device operations of such
                    an I/O cost by themselves, directly afterwards (see `trefoil bench floor`)

The aims are the project's own, for three copies on one disk: where nodes have disks of their \
own, the ratios to raw say less. A miss is no failure.

--beside measures something else in the same turns, which is overwritten without a question. Its \
FILE is JSON:
  {\"name\": \"other\", \"fio\": [\"--ioengine=libaio\", \"--direct=1\", \"--filename=/dev/vdb\"],
   \"environment\": {}, \"processes\": [{\"name\": \"daemon\", \"pid\": 4711}]}";

/// Measure a running cluster through NBD, beside the raw disk
#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// The directory of a running `trefoil up` [default: ./trefoil-data]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A front end, nbd+unix:///VOLUME?socket=PATH or nbd://HOST:PORT/VOLUME; without VOLUME one is made
    #[arg(long, value_name = "URI")]
    uri: Option<String>,
    /// Measure this volume, and not one that is made for it
    #[arg(long, value_name = "NAME")]
    volume: Option<String>,
    /// Overwrite the volume although it holds data
    #[arg(long)]
    overwrite: bool,
    /// The pool for a volume that is made
    #[arg(long, value_name = "NAME", default_value = "default", conflicts_with = "volume")]
    pool: String,
    /// Bytes of the volume that is made, or the beginning of another one [default: 2G, or all of a smaller volume]
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// Measure the raw disk too: a directory on it, or a block device, whose beginning is overwritten
    #[arg(long, value_name = "DIR|DEVICE")]
    raw: Option<PathBuf>,
    /// Overwrite the device of --raw although something is there, without a question
    #[arg(long, requires = "raw")]
    force: bool,
    /// Measure the least that it can cost, too, in the directory of --raw; needs up to 1 GiB there
    #[arg(long, requires = "raw")]
    floor: bool,
    /// Count the processor time of these processes, with commas
    #[arg(long, value_name = "PID", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(1..))]
    pids: Vec<i32>,
    /// Measure another system in the same turns: a file that describes it; several with commas
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    beside: Vec<PathBuf>,
    /// Which jobs, with commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = JOBS.map(|job| job.name))]
    jobs: Vec<String>,
    /// Seconds for each job, system and round
    #[arg(long, value_name = "SECONDS", default_value = "5")]
    runtime: Seconds,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Write JSON; with FILE there, and the table as usual
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    json: Option<Option<PathBuf>>,
    /// Write a page with plots there, which needs nothing else to be looked at
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ClusterArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let version = fio::version("to measure a cluster")?;
    fio::need_engine("nbd", "libnbd")?;
    let jobs: Vec<Job> = match args.jobs.is_empty() {
        true => JOBS.to_vec(),
        // clap knows the names.
        false => args.jobs.iter().filter_map(|name| Job::named(name)).collect(),
    };
    // Before anything is measured: a place that cannot be written would be found out in minutes.
    for file in [args.json.as_ref().and_then(Option::as_ref), args.html.as_ref()].into_iter().flatten() {
        can_write(file)?;
    }
    let beside: Vec<System> = args.beside.iter().map(|file| System::beside(file)).collect::<Outcome<_>>()?;
    let shutdown = signals::listen()?;
    let front_end = FrontEnd::find(args, global)?;
    let target = front_end.target(args)?;
    let outcome = measured(args, &front_end, &target, beside, &jobs, version, &shutdown);
    // Shown before the volume is removed: that waits until the front end has let it go.
    let shown = outcome.and_then(|report| show(args, &report, out));
    let removed = target.remove();
    shown.and(removed)
}

fn measured(
    args: &ClusterArgs,
    front_end: &FrontEnd,
    target: &Target,
    beside: Vec<System>,
    jobs: &[Job],
    version: String,
    shutdown: &Shutdown,
) -> Outcome<Report> {
    // Its files are there before the room for the raw one is looked at.
    let floor = args.raw.as_ref().filter(|_| args.floor).map(|dir| {
        if !dir.is_dir() {
            let told = anyhow!("--floor makes files: give --raw a directory, not {}", dir.display());
            return Err(Failure::usage(told));
        }
        floor::Beside::new(dir, target.size, shutdown)
    });
    let floor = floor.transpose()?;
    let place =
        args.raw.as_ref().map(|path| raw::RawPlace::new(path, target.size, args.force)).transpose()?;
    let mut systems = vec![System::cluster(&target.uri.to_string(), front_end.processes.clone())];
    systems.extend(place.as_ref().map(|place| System::raw(&place.raw.path)));
    systems.extend(floor.map(System::floor));
    systems.extend(beside);
    let names: std::collections::BTreeSet<&str> = systems.iter().map(|system| system.name.as_str()).collect();
    if names.len() < systems.len() {
        return Err(Failure::usage(anyhow!("two systems of --beside have one name: give each its own")));
    }
    let (cpus, cpu, kernel) = report::machine();
    let load_before = report::load();
    let bar = progress_bar();
    let time = args.runtime.0;
    let bench = Bench { shutdown, bar: &bar, size: target.size, time, rounds: args.rounds };
    let results = bench.run(&mut systems, jobs);
    bar.finish_and_clear();
    let results = results?;
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let about = About {
        trefoil: env!("CARGO_PKG_VERSION"),
        fio: version,
        at: at.as_secs(),
        cpus,
        cpu,
        kernel,
        load: [load_before, report::load()],
        uri: target.uri.to_string(),
        own_volume: target.is_own(),
        size_bytes: target.size,
        runtime_s: time.as_secs_f64(),
        rounds: args.rounds,
    };
    Ok(Report::new(about, &systems, jobs, results))
}

fn show(args: &ClusterArgs, report: &Report, out: &mut dyn Write) -> Outcome {
    if let Some(file) = &args.html {
        write(file, html::page(report).as_bytes())?;
    }
    match &args.json {
        Some(None) => return output::json(out, report),
        Some(Some(file)) => {
            let mut text = Vec::new();
            output::json(&mut text, report)?;
            write(file, &text)?;
        }
        None => {}
    }
    writeln!(out, "{}", report.text())?;
    out.flush()?;
    Ok(())
}

fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// That it can be made. What is in it stays for now, and nothing is left of a try.
fn can_write(file: &Path) -> anyhow::Result<()> {
    let there = file.exists();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map(drop).with_context(|| format!("cannot write {}", file.display()))?;
    if !there {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}
