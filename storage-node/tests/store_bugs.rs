//! The crash and fault tests are worth something only if they notice: the store with one of its rules broken
//! (`src/store/bugs.rs`), and how soon that shows. Needs `--features deliberate-bugs`; without it there is
//! nothing here.
#![cfg(feature = "deliberate-bugs")]

#[path = "store/model/mod.rs"]
mod model;

use model::bench::Bench;
use model::crash::Effort;
use model::history::histories;
use model::life::{live, live_with};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use trefoil_storage_node::store::bugs::{self, Bug};

/// Seeds in which a bug has to show at the latest.
const SEEDS: u64 = 3000;
/// Seconds for one bug.
const SECONDS: Duration = Duration::from_secs(100);

/// True if the cuts of a history notice.
fn crash(name: &str) -> bool {
    let history = histories().into_iter().find(|h| h.name == name).expect("a history");
    let bench = history.bench();
    let cuts = || {
        let played = history.play(bench.clone());
        played.crash(Effort::from_env(), "crash", &|content| bench.with(content));
    };
    catch_unwind(AssertUnwindSafe(cuts)).is_err()
}

/// The first seed that notices, and that has nothing to notice without the bug.
fn seeds(bug: Bug) -> Option<u64> {
    let until = Instant::now() + SECONDS;
    let fails = |on: Option<Bug>, seed: u64| {
        bugs::set(on);
        let splits = if bug == Bug::SplitUnderCheckpoint { 4 } else { 0 };
        catch_unwind(|| live_with(seed, splits)).is_err()
    };
    (1..SEEDS)
        .take_while(|_| Instant::now() < until)
        .find(|seed| fails(Some(bug), *seed) && !fails(None, *seed))
}

/// `STORE_BUG=NAME`: only this one, and what notices it says so.
fn caught(bug: Bug) {
    let name = format!("{bug:?}");
    match std::env::var("STORE_BUG") {
        Ok(one) if one != name => return,
        Ok(_) => {}
        Err(_) => std::panic::set_hook(Box::new(|_| ())),
    }
    bugs::set(Some(bug));
    let mut by = Vec::new();
    for history in ["turns", "churn"] {
        let start = Instant::now();
        if crash(history) {
            by.push(format!("history {history} after {:.1} s", start.elapsed().as_secs_f32()));
        }
    }
    let start = Instant::now();
    if let Some(seed) = seeds(bug) {
        by.push(format!("seed {seed} after {:.1} s", start.elapsed().as_secs_f32()));
    }
    bugs::set(None);
    println!("deliberate bug {name}: caught by {by:?}");
    assert!(!by.is_empty(), "{name} is not noticed");
}

#[test]
fn reuse_before_the_free_is_durable() {
    caught(Bug::ReuseBeforeFree);
}

#[test]
fn free_before_the_root_is_durable() {
    caught(Bug::FreeBeforeRoot);
}

#[test]
fn a_move_that_does_not_look() {
    caught(Bug::MoveWithoutChecksum);
}

#[test]
fn a_segment_freed_without_another_turn() {
    caught(Bug::SameTurn);
}

#[test]
fn a_torn_successor_before_the_good_one() {
    caught(Bug::FirstSuccessor);
}

#[test]
fn pages_of_the_newly_dead_left_out() {
    caught(Bug::NoNewlyDead);
}

#[test]
fn reuse_under_a_read() {
    caught(Bug::ReuseUnderRead);
}

#[test]
fn a_split_under_a_checkpoint() {
    caught(Bug::SplitUnderCheckpoint);
}

#[test]
fn no_bug_no_alarm() {
    assert!(!crash("discards") && live(1).blocks > 0);
}
