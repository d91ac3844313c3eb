//! Devices that lie and fail, simulated ones and a real file: lost and misdirected writes, reads that
//! are short or of another place, errors once and always, a device that vanishes, one that is slow.
//!
//! What must hold: bytes that are not right are never given out; what is lost is said; nothing is
//! acknowledged after a write has failed; nothing panics; nothing waits for ever (`model/run.rs`).
//! What rots at rest is in `rot.rs`.

use crate::model::bench::{FaultyBench, FaultyFile, FaultySim, format};
use crate::model::damage::{Verdict, is_batch, judge};
use crate::model::history::{fill, options, steps};
use crate::model::index::{MemIndex, Saved};
use crate::model::make::{Maker, Mix};
use crate::model::run::Run;
use crate::model::{DATA, SEGMENT, other_seed};
use std::collections::BTreeMap;
use trefoil_core::BlockRange;
use trefoil_storage_node::device::faulty::{Fault, Kind, Rule};
use trefoil_storage_node::store::{OpenError, StoreOptions};

const SEGMENTS: u64 = 12;
const SIZE: u64 = DATA + SEGMENTS * SEGMENT;

/// A store that may be lied to, open.
fn start<B: FaultyBench>(seed: u64) -> Run<B> {
    let seed = seed + other_seed().unwrap_or(0);
    let bench = B::empty(SIZE);
    format(&bench);
    let mix = Mix { objects: 3, blocks: 300, large: 24, deletes: 2, ..Mix::default() };
    let options = StoreOptions { checkpoint_bytes: 160 << 10, ..options() };
    let mut run = Run::new(bench, MemIndex::default(), options, Maker::new(seed, mix));
    run.open(seed);
    run.bench.faults().list_writes();
    run.tolerant = true;
    run
}

/// Goes on until there are so many records, or the store has failed.
fn go_on<B: FaultyBench>(run: &mut Run<B>, records: usize) {
    for _ in 0..records * 20 {
        if run.records.len() >= records || run.failed.is_some() {
            break;
        }
        steps(run, 1, 2);
    }
    run.drain();
}

/// What the running store shows is right, or bad.
fn check<B: FaultyBench>(run: &mut Run<B>) -> usize {
    let seen = run.contents();
    match crate::model::damage::but_for_bad(&run.now, &seen) {
        Some(bad) => bad,
        None => {
            let model = &run.now;
            let wrong = seen.iter().find(|(at, fill)| model.blocks.get(at) != Some(fill));
            panic!("{wrong:?} is neither right nor bad")
        }
    }
}

/// True if no batch was written behind the last write that a fault has met.
fn hit_the_last<B: FaultyBench>(run: &Run<B>) -> bool {
    let writes = run.bench.faults().writes();
    let hit = writes.iter().rposition(|w| w.fault.is_some());
    hit.is_some_and(|hit| !writes[hit + 1..].iter().any(is_batch))
}

/// Closes the store, opens it again with no more faults and with or without its index, and judges.
fn reopen<B: FaultyBench>(run: &mut Run<B>, in_order: bool, keep_index: bool, last: bool) -> Verdict {
    run.bench.faults().clear();
    run.close(in_order);
    if !keep_index {
        run.index.restore(Saved::default());
    }
    run.failed = None;
    let recovered = match run.try_open(77) {
        Err(OpenError::Recover(why)) if !keep_index => {
            assert!(why.to_string().contains("rebuilt from the other copies"), "{why}");
            return Verdict::Refused;
        }
        opened => opened.unwrap_or_else(|e| panic!("the store does not open: {e}")),
    };
    let verdict = judge(run, &recovered, last);
    // And what it says stays so.
    run.close(false);
    let again = run.open(78);
    if verdict == Verdict::Lost {
        assert!(again.lost.is_some(), "said again at each start");
    }
    assert_eq!(judge(run, &again, last) == Verdict::Lost, verdict == Verdict::Lost);
    verdict
}

/// Which writes of a history are tried: on the real file only some.
fn tried<B: FaultyBench>() -> usize {
    if std::any::type_name::<B>().contains("File") { 7 } else { 1 }
}

/// Each write of a history in turn meets this fault; the store runs on, closes, opens.
fn each_write<B: FaultyBench>(fault: impl Fn(&Run<B>, u32) -> Fault) -> BTreeMap<String, u32> {
    let mut tally = BTreeMap::new();
    let mut skip = 0;
    loop {
        let mut run: Run<B> = start(3);
        // Some log first, for a write to be misdirected into.
        go_on(&mut run, 15);
        let rule = Rule::nth(Kind::Write, skip, fault(&run, skip));
        run.bench.faults().add(rule);
        go_on(&mut run, 100);
        if run.bench.faults().met() == 0 {
            assert!(skip > 20, "only {skip} writes");
            return tally;
        }
        check(&mut run);
        let last = hit_the_last(&run);
        let (in_order, keep_index) = (skip % 2 == 0, skip % 3 != 0);
        eprintln!("write {skip}: in order {in_order}, index {keep_index}, last {last}");
        let verdict = reopen(&mut run, in_order, keep_index, last);
        *tally.entry(format!("{verdict:?}")).or_default() += 1;
        skip += tried::<B>() as u32;
    }
}

fn lost_writes<B: FaultyBench>() {
    let tally = each_write::<B>(|_, _| Fault::Lost);
    assert!(tally.contains_key("Lost") || tried::<B>() > 1 || other_seed().is_some(), "{tally:?}");
    println!("lost writes: {tally:?}");
}

fn misdirected_writes<B: FaultyBench>() {
    let tally = each_write::<B>(|run, n| {
        let writes = run.bench.faults().writes();
        let old = &writes[n as usize * 7 % writes.len()];
        Fault::Misdirected(match n % 6 {
            // Over a superblock or a root, over the log, behind it, and a little beside.
            0 => [0, 1 << 20, 64 << 10, (1 << 20) + (64 << 10)][n as usize / 6 % 4],
            1 => old.offset,
            2 => old.offset + 4096,
            3 => SIZE - (1 << 20),
            4 => writes[writes.len() - 1].offset,
            _ => DATA + u64::from(n) * 40960,
        })
    });
    assert!(tally.contains_key("Lost") || tried::<B>() > 1 || other_seed().is_some(), "{tally:?}");
    println!("misdirected writes: {tally:?}");
}

/// A last batch that did not land, and no checkpoint after it: nothing on the device shows it.
fn a_lost_last_write_looks_torn<B: FaultyBench>() {
    let mut run: Run<B> = start(4);
    go_on(&mut run, 12);
    run.settle_down(200);
    let position = run.store().log_position();
    run.bench.faults().add(Rule::nth(Kind::Write, 0, Fault::Lost));
    let record = run.maker.write(3);
    assert!(run.append(record));
    run.drain();
    let told = run.store().log_position();
    assert!(told > position);
    assert_eq!(reopen(&mut run, false, true, true), Verdict::Torn);
    // What the monitors remember shows it.
    run.close(false);
    let recovered = run.open(5);
    assert!(recovered.log_position >= position);
}

/// Each read in turn meets this; the answers are right or bad, and nothing is lost.
fn each_read<B: FaultyBench>(fault: Fault) {
    let mut skip = 0;
    let mut bad = 0;
    loop {
        let mut run: Run<B> = start(5);
        go_on(&mut run, 15);
        run.bench.faults().add(Rule::nth(Kind::Read, skip, fault));
        go_on(&mut run, 30);
        bad += check(&mut run);
        assert_eq!(run.failed, None);
        if run.bench.faults().met() == 0 {
            assert!(skip > 10, "only {skip} reads");
            break;
        }
        bad += run.bad.len();
        // It was the way, not the medium: nothing is lost, but a table's page may have been given up.
        let verdict = reopen(&mut run, skip % 2 == 0, skip % 3 != 0, false);
        assert!(!matches!(verdict, Verdict::Lost | Verdict::Torn), "{verdict:?}");
        if run.lost_tables.is_empty() {
            assert_eq!(verdict, Verdict::Right);
        }
        skip += 3 * tried::<B>() as u32;
    }
    println!("{fault:?}: {bad} bad");
}

fn reads_that_fail_once<B: FaultyBench>() {
    each_read::<B>(Fault::Error(libc::EIO));
}

fn reads_that_are_short<B: FaultyBench>() {
    each_read::<B>(Fault::Short(1024));
    each_read::<B>(Fault::ShortSilently(512));
}

fn reads_of_another_place<B: FaultyBench>() {
    each_read::<B>(Fault::ReadElsewhere(DATA));
    each_read::<B>(Fault::ReadElsewhere(DATA + 40960));
}

/// No read works any more: each is answered as bad, writes go on and are acknowledged.
fn reads_that_always_fail<B: FaultyBench>() {
    let mut run: Run<B> = start(6);
    go_on(&mut run, 25);
    run.bench.faults().add(Rule::every(Kind::Read, Fault::Error(libc::EIO)));
    go_on(&mut run, 40);
    assert_eq!(run.failed, None);
    assert!(check(&mut run) > 0);
    assert!(!run.bad.is_empty());
    let verdict = reopen(&mut run, false, false, false);
    assert!(!matches!(verdict, Verdict::Lost | Verdict::Torn), "{verdict:?}");
}

/// Each write in turn fails: the store says so, acknowledges nothing more, answers reads, and after a
/// restart everything acknowledged is there.
fn each_write_fails<B: FaultyBench>(fault: Fault) {
    let mut skip = 0;
    loop {
        let mut run: Run<B> = start(7);
        go_on(&mut run, 10);
        run.bench.faults().add(Rule { times: u32::MAX, ..Rule::nth(Kind::Write, skip, fault) });
        go_on(&mut run, 40);
        if run.bench.faults().met() == 0 {
            assert!(skip > 10, "only {skip} writes");
            return;
        }
        run.settle_down(50);
        assert!(run.failed.as_ref().is_some_and(|why| why.contains("writing")), "{:?}", run.failed);
        let acked = run.recorder.borrow().progress.acked;
        // Appends after that are dropped, reads go on, nothing is acknowledged.
        let record = run.maker.write(3);
        let ticket = run.first + run.records.len() as u64;
        assert!(!run.store().can_accept() && run.store().room_blocks() == 0);
        run.store().append(ticket, record);
        let object = run.maker.object();
        run.read(object, BlockRange::new(0, 200));
        run.drain();
        check(&mut run);
        run.settle_down(50);
        assert_eq!(run.recorder.borrow().progress.acked, acked);
        run.bench.faults().clear();
        run.close(skip % 2 == 0);
        if skip % 3 == 0 {
            run.index.restore(Saved::default());
        }
        run.failed = None;
        run.tolerant = false;
        let recovered = run.open(8);
        let n = run.verify(&recovered);
        // It is a store like any other.
        run.forget(n);
        steps(&mut run, 6, 4);
        run.drain();
        run.audit();
        skip += tried::<B>() as u32;
    }
}

fn writes_that_fail<B: FaultyBench>() {
    each_write_fails::<B>(Fault::Error(libc::EIO));
    each_write_fails::<B>(Fault::Partial(1, libc::EIO));
    each_write_fails::<B>(Fault::Partial(3, libc::ENOSPC));
}

fn writes_that_are_to_be_tried_again<B: FaultyBench>() {
    for number in [libc::EAGAIN, libc::EINTR, libc::ENOMEM] {
        let mut run: Run<B> = start(9);
        run.tolerant = false;
        run.bench.faults().add(Rule { times: 3, ..Rule::nth(Kind::Write, 4, Fault::Error(number)) });
        run.bench.faults().add(Rule { times: 3, ..Rule::nth(Kind::Write, 4, Fault::Partial(1, number)) });
        go_on(&mut run, 30);
        assert_eq!(run.bench.faults().met(), 6);
        run.close(false);
        let recovered = run.open(1);
        assert_eq!(run.verify(&recovered), run.records.len());
    }
}

/// The first record of a session cannot be written: the store does not open, and nothing is lost.
fn a_start_that_fails<B: FaultyBench>() {
    let mut run: Run<B> = start(10);
    go_on(&mut run, 20);
    run.close(false);
    for fault in [Fault::Error(libc::EIO), Fault::Error(libc::EROFS)] {
        run.bench.faults().add(Rule::every(Kind::Write, fault));
        let error = run.try_open(3).expect_err("refused");
        assert!(matches!(&error, OpenError::Io { .. }), "{error}");
        run.bench.faults().clear();
    }
    run.tolerant = false;
    let recovered = run.open(4);
    assert_eq!(run.verify(&recovered), run.records.len());
}

/// The device is gone at some moment. Nothing hangs; what was acknowledged is there when it is back.
fn a_device_that_vanishes<B: FaultyBench>() {
    for at in [1, 7, 13, 22, 31] {
        let mut run: Run<B> = start(20 + at as u64);
        go_on(&mut run, at);
        let range = BlockRange::new(0, 300);
        let object = run.maker.object();
        run.read(object, range);
        run.submit();
        run.bench.faults().vanish();
        steps(&mut run, 10, 3);
        run.drain();
        let record = run.maker.write(3);
        run.append(record);
        run.drain();
        assert!(run.failed.is_some());
        check(&mut run);
        run.close(at % 2 == 0);
        let refused = run.try_open(3).expect_err("nothing to open");
        assert!(matches!(refused, OpenError::Superblock(_) | OpenError::Io { .. }), "{refused}");
        run.bench.faults().clear();
        run.failed = None;
        run.tolerant = false;
        let recovered = run.open(4);
        run.verify(&recovered);
    }
}

/// The system refuses to take operations at all.
fn a_device_that_takes_nothing<B: FaultyBench>() {
    let mut run: Run<B> = start(30);
    go_on(&mut run, 12);
    run.bench.faults().fail_submit(libc::EIO);
    let record = run.maker.write(3);
    run.append(record);
    run.submit();
    run.poll();
    assert!(run.failed.as_ref().is_some_and(|why| why.contains("cannot be started")), "{:?}", run.failed);
    run.bench.faults().clear();
    run.close(false);
    run.failed = None;
    run.tolerant = false;
    let recovered = run.open(4);
    run.verify(&recovered);
}

/// A hundred times slower: everything is as it was, and nothing takes it for broken.
fn a_slow_device<B: FaultyBench>() {
    let mut run: Run<B> = start(40);
    run.tolerant = false;
    fill(&mut run, 300, 100);
    run.bench.faults().slow(100);
    go_on(&mut run, 60);
    run.audit();
    run.bench.faults().slow(7);
    go_on(&mut run, 90);
    run.close(true);
    let recovered = run.open(4);
    assert_eq!(run.verify(&recovered), run.records.len());
}

macro_rules! on_both {
    ($($name:ident,)*) => {
        mod sim {
            $(#[test] fn $name() { super::$name::<super::FaultySim>(); })*
        }
        mod file {
            $(#[test] fn $name() { super::$name::<super::FaultyFile>(); })*
        }
    };
}

on_both!(
    lost_writes,
    misdirected_writes,
    a_lost_last_write_looks_torn,
    reads_that_fail_once,
    reads_that_are_short,
    reads_of_another_place,
    reads_that_always_fail,
    writes_that_fail,
    writes_that_are_to_be_tried_again,
    a_start_that_fails,
    a_device_that_vanishes,
    a_device_that_takes_nothing,
    a_slow_device,
);
