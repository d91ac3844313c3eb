//! The same power cuts on the real device code: a file, io_uring (or the threads where it is refused),
//! and a device in between that knows what is durable.
//!
//! The history runs on one file. A cut writes what the device would hold, with torn sectors of what was
//! under way, to a second one, and the next life opens that.

use crate::model::bench::{Bench, FaultyBench, FaultyFile};
use crate::model::crash::Effort;
use crate::model::history::histories;

/// With all tears; more than enough without.
const FULL_SECONDS: u64 = 60;

fn crash(name: &str) {
    let mut history = histories().into_iter().find(|h| h.name == name).expect("a history");
    history.seed += crate::model::other_seed().unwrap_or(0);
    history.records = 30;
    let bench = FaultyFile::empty(history.size());
    let played = history.play(bench.clone());
    let full = std::env::var("STORE_CRASH").is_ok_and(|v| v == "full");
    let effort =
        Effort { full, tears: 3, second_every: 10, go_on_every: 5, points: 16, seconds: FULL_SECONDS };
    let tally = played.crash(effort, "crash_uring", &|content| bench.with(content));
    println!("{name}: {} points, {tally:?}", played.points.len());
    assert!(played.points.len() > 20 && tally.cuts >= 16 && tally.second > 0 && tally.went_on > 0);
}

#[test]
fn cuts_on_a_real_file_while_checkpoints_are_taken() {
    crash("checkpoints");
}

#[test]
fn cuts_on_a_real_file_while_stores_are_opened_and_closed() {
    crash("restarts");
}

#[test]
fn cuts_on_a_real_file_that_is_full() {
    crash("full");
}
