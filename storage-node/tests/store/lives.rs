//! The store on a simulated device: long seeded lives of random records, reads, checkpoints, cleaning,
//! full media and power cuts after any operation, checked against a model of what was acknowledged.
//!
//! `STORE_SIM_SEEDS=N` sets the number of seeds, `STORE_SIM_SEED=S` runs one, `STORE_SIM_FIRST=S` says
//! with which to begin; `STORE_SIM_TINY=1` has one life in six on segments of 128 blocks. What happens is all in `model/life.rs`; short lives with *every* cut are in
//! `crash.rs`.

use crate::model::life::live;
use crate::model::work::{Work, say};

/// Seeds of the normal suite.
const SEEDS: u64 = 40;

#[test]
fn power_cuts_at_random_points_lose_nothing_acknowledged() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    if let Some(seed) = number("STORE_SIM_SEED") {
        println!("{:?}", live(seed));
        return;
    }
    let first = number("STORE_SIM_FIRST").unwrap_or(1);
    let seeds = number("STORE_SIM_SEEDS").unwrap_or(SEEDS);
    let mut work = Work::default();
    for seed in first..first + seeds {
        match std::panic::catch_unwind(|| live(seed)) {
            Ok(one) => work.add(&one),
            Err(panic) => {
                eprintln!(
                    "seed {seed} failed: STORE_SIM_SEED={seed} cargo test -p trefoil-storage-node --test \
                     store lives::"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    say(format_args!("{seeds} seeds: {work:?}"));
    if seeds >= SEEDS {
        work.at_least(&LEAST);
    }
}

/// What that many seeds exercise, or they have gone thin.
const LEAST: Work = Work {
    blocks: 200_000,
    moved: 15_000,
    freed: 500,
    freed_under_reads: 150,
    snapshots: 150,
    commits: 1000,
    reaped: 1000,
    reused: 300,
    turns: 4,
};
