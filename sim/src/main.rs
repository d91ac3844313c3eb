//! `trefoil-sim`: runs seeds of the simulator from the command line.
//!
//! Ends with 0 if every seed passed (or, with `--expect-caught`, if the deliberate bug was caught), else
//! with 1 and, for each failing seed, what happened and the line that reproduces it.

use anyhow::{Context, bail};
use clap::Parser;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use trefoil_sim::plan::Bug;
use trefoil_sim::runner::{self, FAILURES_MAX, STEPS_DEFAULT, Settings};

/// Whole Trefoil clusters on one thread, under one seed.
#[derive(Debug, Parser)]
#[command(name = "trefoil-sim", version)]
struct Args {
    /// Run this seed.
    #[arg(long, conflicts_with_all = ["seeds", "soak"])]
    seed: Option<u64>,
    /// Run these seeds, A..B (B is not run).
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// Run seeds for this long, beginning at --from.
    #[arg(long, value_name = "SECONDS", conflicts_with = "seeds")]
    soak: Option<u64>,
    /// The first seed of a soak.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Events of a run's first phase.
    #[arg(long, default_value_t = STEPS_DEFAULT)]
    steps: u64,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Break this rule on purpose.
    #[arg(long, value_enum)]
    bug: Option<Bug>,
    /// Succeed if and only if a seed fails.
    #[arg(long)]
    expect_caught: bool,
    /// No faults.
    #[arg(long)]
    calm: bool,
    /// Only runs of a good cluster with one node at a time in trouble, where every operation's time is
    /// bounded.
    #[arg(long)]
    brisk: bool,
    /// Check only what a client could see.
    #[arg(long)]
    outside_only: bool,
    /// Print the run's whole trace (with --seed).
    #[arg(short, long)]
    verbose: bool,
    /// Events about the object that are printed for a failure.
    #[arg(long, default_value_t = 60)]
    events: usize,
    /// Print what happened, counted.
    #[arg(long)]
    coverage: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (a, b) = text.split_once("..").ok_or("expected A..B")?;
    let number = |s: &str| s.parse::<u64>().map_err(|e| format!("{s:?}: {e}"));
    let (a, b) = (number(a)?, number(b)?);
    if a < b { Ok((a, b)) } else { Err(format!("{a}..{b} has no seed in it")) }
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(bug) = args.bug
        && !runner::has_bug(bug)
    {
        bail!("this build has no deliberate bugs in it: build with --features deliberate-bugs");
    }
    // A machine's panic is reported with its seed; the default message would come without one.
    std::panic::set_hook(Box::new(|_| ()));
    let Args { steps, bug, calm, brisk, outside_only, .. } = args;
    let settings = Settings { steps, bug, calm, brisk, outside_only };
    let started = Instant::now();
    if args.verbose {
        let seed = args.seed.context("-v wants --seed")?;
        let outcome = runner::run(seed, &settings, usize::MAX);
        outcome.lines.iter().for_each(|line| println!("{line}"));
    }
    let (first, end, time) = match (args.seed, args.seeds, args.soak) {
        (Some(seed), _, _) => (seed, Some(seed + 1), None),
        (_, Some((a, b)), _) => (a, Some(b), None),
        (_, _, Some(seconds)) => (args.from, None, Some(Duration::from_secs(seconds))),
        _ => bail!("say which seeds: --seed N, --seeds A..B or --soak SECONDS"),
    };
    let failures_max = if args.expect_caught { 1 } else { FAILURES_MAX };
    let totals = runner::run_many(first, end, time, args.jobs, &settings, failures_max);
    let seconds = started.elapsed().as_secs_f64();
    for failure in &totals.failures {
        println!("{}\n", runner::report(failure, &settings, args.events));
    }
    if args.coverage {
        print!("{}", totals.coverage);
        println!("  {:>12}  longest operation (µs) with one node in trouble", totals.longest);
    }
    println!(
        "{} seeds, {} steps, {:.1} s, {:.0} steps/s on {} threads, {} failed",
        totals.seeds,
        totals.steps,
        seconds,
        totals.steps as f64 / seconds.max(1e-9),
        args.jobs.max(1),
        totals.failures.len()
    );
    if args.seed.is_some() && totals.failures.is_empty() {
        let outcome = runner::run(first, &settings, 0);
        println!("{}; {} µs; hash {:016x}", outcome.plan, outcome.time, outcome.hash);
    }
    let caught = !totals.failures.is_empty();
    if args.expect_caught {
        println!("{}", if caught { "caught, as expected" } else { "NOT CAUGHT" });
    }
    Ok(if caught == args.expect_caught { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
