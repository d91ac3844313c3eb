//! `trefoil bench store`: how fast this machine's store is, beside the raw device in the same run; and
//! [`floor`], what a replicated read or write costs at least.
//!
//! Of the store, three measurements: [`speed`] (the default), [`churn`] and [`metadata`]. The load and its checks are in
//! `trefoil_storage_node::bench`; here are the options, the places that are used ([`place`]), fio ([`fio`]) and
//! what is shown. Whatever is made is removed at the end, also after Ctrl-C.

mod churn;
mod fio;
mod floor;
mod map;
mod metadata;
mod place;
mod speed;

use crate::failure::{Failure, Outcome};
use crate::signals::{self, Shutdown};
use crate::size::Size;
use anyhow::anyhow;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;
use trefoil_storage_node::bench::load::{DEPTH_MAX, Stop};

/// Longest measurement of one pattern.
const RUNTIME_MAX: f64 = 3600.0;

/// `trefoil bench ...`.
#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    Store(Box<StoreArgs>),
    Map(map::MapArgs),
    Floor(floor::FloorArgs),
    /// One of the processes of `floor`
    #[command(hide = true)]
    FloorPart(floor::PartArgs),
}

const EXAMPLES: &str = "\
Examples:
  trefoil bench store --dir /srv/bench
  trefoil bench store --device /dev/nvme1n1               # asks first; what is on it is lost
  trefoil bench store --dir /srv/bench --json --runtime 5 --rounds 5
  trefoil bench store --dir /srv/bench --churn --fill 90 --times 10
  trefoil bench store --dir /srv/bench --churn --fill 90 --skew 90/10
  trefoil bench store --dir /srv/bench --metadata --write 8G

Nothing else should run on the machine. The speed is measured in a store that has been written through once, on
a quarter of its size; fio reads and writes as much beside it, in turns with the store. CPU is the processor time
of all threads of the process, the load's own included. Everything that is read is checked.";

/// Measure the store of a storage node by itself, beside the raw device
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct StoreArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Fill the store, overwrite it at random, and show what cleaning costs; then check everything
    #[arg(long)]
    churn: bool,
    /// Write the metadata of a huge store on a sparse file, and show memory and how long starts take
    #[arg(long, conflicts_with_all = ["churn", "device"])]
    metadata: bool,
    /// Bytes of the store [default: 2G; with --metadata 1T]
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// Seconds for each pattern and round
    #[arg(long, value_name = "SECONDS", default_value = "2", conflicts_with_all = ["churn", "metadata"])]
    runtime: Seconds,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with_all = ["churn", "metadata"],
          value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Reads or writes under way at once; several with commas
    /// [default: 4k writes 1,8,32, 4k reads 1,32, others 8; with --churn and --metadata 32]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(DEPTH_MAX)))]
    depth: Vec<u32>,
    /// Measure the store alone, without fio
    #[arg(long, conflicts_with_all = ["churn", "metadata"])]
    no_raw: bool,
    /// Percent of the capacity that is filled [default: 90; with --metadata 0]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=99))]
    fill: Option<u32>,
    /// How often what is filled is overwritten
    #[arg(long, value_name = "N", default_value_t = 10, requires = "churn", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    times: u32,
    /// SHARE/PART: that percentage of the writes goes to that percentage of the blocks
    #[arg(long, value_name = "SHARE/PART", requires = "churn")]
    skew: Option<Skew>,
    /// Bytes of random 4k writes
    #[arg(long, value_name = "SIZE", default_value = "4G", requires = "metadata")]
    write: Size,
    /// The store's cache of block tables, in bytes
    #[arg(long, value_name = "SIZE", default_value = "64M", requires = "metadata")]
    table_cache: Size,
    /// Show the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Where.
#[derive(Args, Debug)]
struct PlaceArgs {
    /// A directory on the device; it is made where it is missing. A few files are made in it, and removed
    #[arg(long, value_name = "DIR", required_unless_present = "device", conflicts_with = "device")]
    dir: Option<PathBuf>,
    /// A block device that is not in use. What is on it is lost
    #[arg(long, value_name = "DEVICE")]
    device: Option<PathBuf>,
    /// Overwrite the device although something is there, without a question
    #[arg(long, requires = "device")]
    force: bool,
}

/// A time.
#[derive(Clone, Copy, Debug)]
struct Seconds(Duration);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seconds, String> {
        let seconds = text.parse::<f64>().ok().filter(|s| (0.01..=RUNTIME_MAX).contains(s));
        let seconds = seconds.ok_or_else(|| format!("give seconds from 0.01 to {RUNTIME_MAX}"))?;
        Ok(Seconds(Duration::from_secs_f64(seconds)))
    }
}

/// `90/10`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Skew {
    share: u32,
    part: u32,
}

impl FromStr for Skew {
    type Err = String;

    fn from_str(text: &str) -> Result<Skew, String> {
        let percent = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=99).contains(n));
        let parts = text.split_once('/').and_then(|(share, part)| Some((percent(share)?, percent(part)?)));
        let (share, part) = parts.ok_or("give SHARE/PART in percent, such as 90/10")?;
        Ok(Skew { share, part })
    }
}

/// Runs the command.
pub fn run(command: &BenchCommand, out: &mut dyn Write) -> Outcome {
    let args = match command {
        BenchCommand::Store(args) => args,
        BenchCommand::Map(args) => return map::run(args, out),
        BenchCommand::Floor(args) => return floor::run(args, out),
        BenchCommand::FloorPart(args) => return floor::run_part(args, out),
    };
    if args.fill.is_some() && !args.churn && !args.metadata {
        return Err(Failure::usage(anyhow!("--fill goes with --churn or --metadata")));
    }
    if args.depth.len() > 1 && (args.churn || args.metadata) {
        return Err(Failure::usage(anyhow!("--churn and --metadata take one --depth")));
    }
    let shutdown = signals::listen()?;
    // The store's own thread, as in the daemon.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &**args {
        StoreArgs { metadata: true, .. } => metadata::run(args, &shutdown, &runtime, out),
        StoreArgs { churn: true, .. } => churn::run(args, &shutdown, &runtime, out),
        _ => speed::run(args, &shutdown, &runtime, out),
    }
}

/// For the load: asks whether a signal has come.
fn stop(shutdown: &Shutdown) -> Stop {
    let shutdown = shutdown.clone();
    Rc::new(move || *shutdown.borrow())
}

/// Shows nothing where standard error is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(5));
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {bar:32} {percent:>3}% ({elapsed})") {
        bar.set_style(style);
    }
    bar
}

/// Moves the bar, which counts from 0 to `of`.
fn progress(bar: &ProgressBar, what: &str, done: u64, of: u64) {
    if bar.message() != what {
        bar.set_message(what.to_owned());
    }
    bar.set_length(of);
    bar.set_position(done);
}

/// Microseconds and the like with three digits.
fn digits(n: f64) -> String {
    match n.abs() {
        n if n >= 100.0 => format!("{:.0}", n.round()),
        n if n >= 10.0 => format!("{n:.1}"),
        _ => format!("{n:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_say_what_they_want() {
        assert_eq!("90/10".parse(), Ok(Skew { share: 90, part: 10 }));
        for wrong in ["90", "0/10", "90/100", "a/b", "90/10/1", "-1/5"] {
            assert!(wrong.parse::<Skew>().is_err(), "{wrong}");
        }
        assert_eq!("0.5".parse::<Seconds>().map(|s| s.0), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "2s"] {
            assert!(wrong.parse::<Seconds>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([0.5, 9.994, 12.34, 123.4, 54321.0].map(digits), ["0.50", "9.99", "12.3", "123", "54321"]);
    }
}
