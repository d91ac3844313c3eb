//! Power cuts at every operation of the device in short histories: see `model/crash.rs`.
//!
//! `STORE_CRASH=full` makes all cuts of the short histories, and of the long ones as many as ten minutes
//! have room for; `STORE_CRASH_CASE=NAME` makes one; `STORE_SEED=N` plays other histories of the same kinds;
//! `STORE_COVERAGE=1` with `--nocapture` prints what each history exercises.

use crate::model::bench::{Bench, SimBench};
use crate::model::crash::Effort;
use crate::model::history::{History, Played, histories};
use crate::model::work::Moment;
use std::collections::BTreeMap;

fn history(name: &str) -> History {
    let mut history = histories().into_iter().find(|h| h.name == name).expect("a history");
    history.seed += crate::model::other_seed().unwrap_or(0);
    history
}

fn play(name: &str) -> (Played, SimBench) {
    let history = history(name);
    let bench = history.bench();
    (history.play(bench.clone()), bench)
}

/// Gives how many of the points with cuts were in the middle of each thing.
fn crash(name: &str) -> BTreeMap<Moment, usize> {
    let (played, bench) = play(name);
    let effort = Effort::from_env();
    let tally = played.crash(effort, "crash", &|content| bench.with(content));
    if crate::model::other_seed().is_none() {
        played.work.at_least(&played.history.least);
        assert!(played.points.len() > 40 && tally.went_on > 0, "{tally:?}");
        assert!(tally.second > 10 || tally.left_out > 0, "{tally:?}");
    }
    assert!(effort.full || tally.left_out == 0);
    tally.moments
}

#[test]
fn cuts_while_records_are_written() {
    crash("plain");
}

#[test]
fn cuts_while_checkpoints_are_taken() {
    crash("checkpoints");
}

#[test]
fn cuts_while_repairs_are_installed_and_the_index_refuses() {
    crash("repairs");
}

#[test]
fn cuts_while_stores_are_opened_and_closed() {
    crash("restarts");
}

#[test]
fn cuts_while_a_full_store_is_cleaned() {
    crash("full");
}

#[test]
fn cuts_while_freed_segments_are_discarded() {
    crash("discards");
}

/// At least these were cut at, in the middle of these.
fn assert_moments(cuts: &BTreeMap<Moment, usize>, least: usize, of: &[Moment]) {
    let enough = of.iter().all(|m| cuts.get(m).is_some_and(|n| *n >= least));
    assert!(enough || crate::model::other_seed().is_some(), "{cuts:?}");
}

#[test]
fn cuts_while_segments_take_turn_after_turn() {
    use Moment::{Commit, Free, Move, Reuse, Root};
    assert_moments(&crash("turns"), 6, &[Commit, Free, Move, Reuse, Root]);
}

#[test]
fn cuts_while_volumes_come_and_go() {
    use Moment::{Commit, Free, Move, Prepare, Reuse, Root};
    assert_moments(&crash("churn"), 6, &[Commit, Free, Move, Prepare, Reuse, Root]);
}

/// The harness is worth something only if it notices.
#[test]
fn a_device_that_loses_an_acknowledged_write_at_a_cut_is_noticed() {
    let (mut played, bench) = play("plain");
    // At each acknowledgement, the device as it was when the write that carries it had only begun.
    let (mut noticed, mut tried) = (0, 0);
    for n in 1..played.points.len() {
        if played.points[n].what != "acknowledged" {
            continue;
        }
        let begun = (0..n).rev().find(|i| played.points[*i].what == "a write has begun").expect("a write");
        let before = played.points[begun].image.clone();
        let after = std::mem::replace(&mut played.points[n].image, before);
        // Only by what is there, not by the log's position.
        played.points[n].at.position = 0;
        let name = format!("{n}:none:gone");
        let quiet = std::panic::AssertUnwindSafe(|| played.crash_once(&name, &|content| bench.with(content)));
        tried += 1;
        noticed += usize::from(std::panic::catch_unwind(quiet).is_err());
        played.points[n].image = after;
        played.crash_once(&name, &|content| bench.with(content));
    }
    assert!(tried > 10 && noticed == tried, "{noticed} of {tried}");
}

#[test]
fn cuts_while_a_device_is_formatted() {
    use crate::model::bench::format;
    use crate::model::crash::Point;
    use crate::model::index::MemIndex;
    use crate::model::make::{Maker, Mix};
    use crate::model::run::Run;
    use trefoil_storage_node::device::image::{Content, Tear};
    use trefoil_storage_node::store::{OpenError, Store, SuperblockError};
    let history = history("plain");
    let bench = history.bench();
    let run = |bench: SimBench| {
        Run::new(bench, MemIndex::default(), history.options.clone(), Maker::new(1, Mix::default()))
    };
    // The recorder watches the device from before it is formatted.
    let watched = run(bench.clone());
    watched.recorder.borrow_mut().points = Some(Vec::new());
    format(&bench);
    let points: Vec<Point> = watched.recorder.borrow_mut().points.take().expect("noted");
    assert!(points.len() >= 6, "three writes at least");
    let (mut opened, mut refused) = (0, 0);
    let mut check = |content: Content| {
        let bench = bench.with(content);
        let device = bench.device(1);
        match Store::open_on(device, MemIndex::default(), history.options.clone(), &mut |_, _| ()) {
            Ok((store, recovered)) => {
                assert_eq!((recovered.lost, recovered.durable), (None, Default::default()));
                drop(store);
                let mut run = run(bench);
                let recovered = run.open(2);
                assert_eq!(run.verify(&recovered), 0);
                opened += 1;
            }
            Err(OpenError::Superblock(SuperblockError::Foreign { .. } | SuperblockError::Damaged { .. })) => {
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    };
    for point in &points {
        for n in 0..=8 {
            check(point.image.cut(|_, _| Tear::Prefix(n)));
            check(point.image.cut(|_, _| Tear::Suffix(n)));
            check(point.image.cut(|_, _| Tear::Omit(n)));
        }
    }
    assert!(opened > 0 && refused > 0, "{opened} {refused}");
}

#[test]
fn one_case() {
    let Ok(name) = std::env::var("STORE_CRASH_CASE") else {
        return;
    };
    let (history, case) = name.split_once(':').expect("history:point:tears:index");
    let (played, bench) = play(history);
    played.crash_once(case, &|content| bench.with(content));
}
