//! What rots at rest: every block of a device in turn has a flipped bit, or cannot be read, once or for
//! good. Simulated devices and a real file.
//!
//! The rule is in `model/damage.rs`: right, or bad, or lost and said so; and for a last batch only, as if
//! it had been torn. What is found is reported with the device and the place.

use crate::model::bench::{FaultyBench, FaultyFile, FaultySim, format};
use crate::model::damage::{Kind as Block, Verdict, blocks_of, is_batch, judge};
use crate::model::history::{options, steps};
use crate::model::index::{MemIndex, Saved};
use crate::model::lines::lines_of;
use crate::model::make::{Maker, Mix};
use crate::model::run::Run;
use crate::model::{DATA, SEGMENT, block, other_seed};
use std::collections::{BTreeMap, HashMap};
use trefoil_core::record::Record;
use trefoil_core::{BLOCK_SIZE, BlockRange, ObjectId};
use trefoil_storage_node::device::Device;
use trefoil_storage_node::device::faulty::{Fault, Kind, Rule, Written};
use trefoil_storage_node::device::image::Content;
use trefoil_storage_node::store::{OpenError, StoreOptions, SuperblockError};

const SIZE: u64 = DATA + 12 * SEGMENT;
const B: u64 = BLOCK_SIZE as u64;

/// A store that was closed, and what lies where on its device.
struct Closed<F: FaultyBench> {
    run: Run<F>,
    content: Content,
    index: Saved,
    /// By offset: what it is, its fill, and whether it belongs to the last batch.
    blocks: BTreeMap<u64, (Block, u64, bool)>,
}

fn closed<F: FaultyBench>(seed: u64, in_order: bool) -> Closed<F> {
    let seed = seed + other_seed().unwrap_or(0);
    let bench = F::empty(SIZE);
    let mix = Mix { objects: 3, blocks: 300, large: 20, deletes: 1, ..Mix::default() };
    let options = StoreOptions { checkpoint_bytes: 160 << 10, ..options() };
    format(&bench);
    bench.faults().list_writes();
    let mut run = Run::new(bench, MemIndex::default(), options, Maker::new(seed, mix));
    run.tolerant = true;
    run.open(seed);
    while run.records.len() < 70 {
        steps(&mut run, 1, 2);
    }
    run.drain();
    run.settle_down(100);
    run.close(in_order);
    let content = run.bench.image().durable;
    let mut writes = run.bench.faults().writes();
    // A real file may still have had one under way, which `content` is without: the batch before it is the last one.
    let is_there = |write: &Written| {
        let bytes = write.bufs.concat();
        let mut there = vec![0; bytes.len()];
        content.read(write.offset, &mut there);
        there == bytes
    };
    while writes.last().is_some_and(|write| !is_there(write)) {
        writes.pop();
    }
    let last = writes.iter().rposition(is_batch).expect("a batch");
    let mut blocks = BTreeMap::new();
    for (n, write) in writes.iter().enumerate().filter(|(_, w)| is_batch(w)) {
        blocks.extend(blocks_of(write).into_iter().map(|(at, kind, fill)| (at, (kind, fill, n == last))));
    }
    let index = run.index.at().durable;
    Closed { run, content, index, blocks }
}

/// On a real file only some are tried, and not all that there is to see is seen.
fn is_file<F: FaultyBench>() -> bool {
    std::any::type_name::<F>().contains("File")
}

impl<F: FaultyBench> Closed<F> {
    /// The same store on a device that holds this.
    fn on(&self, content: Content, keep_index: bool) -> Run<F> {
        let index = MemIndex::of(if keep_index { self.index.clone() } else { Saved::default() });
        let bench = self.run.bench.with(content);
        let maker = Maker::new(1, self.run.maker.mix.clone());
        let mut run = Run::new(bench, index, self.run.options.clone(), maker)
            .continued(self.run.base.clone(), self.run.objects().clone());
        run.records = self.run.records.clone();
        run.now = self.run.now.clone();
        run.ever = self.run.ever.clone();
        run.tolerant = true;
        let mut notes = run.recorder.borrow_mut();
        notes.progress = self.run.recorder.borrow().progress;
        drop(notes);
        run
    }

    /// With a flipped bit.
    fn flipped(&self, at: &[u64], keep_index: bool) -> Run<F> {
        let mut content = self.content.clone();
        for at in at {
            let mut byte = [0];
            content.read(*at, &mut byte);
            content.write(*at, &[byte[0] ^ 0x04]);
        }
        self.on(content, keep_index)
    }

    /// Every block, or on a real file some.
    fn some(&self) -> Vec<(u64, Block, u64, bool)> {
        let all = self.blocks.iter().map(|(at, (kind, fill, last))| (*at, *kind, *fill, *last));
        all.enumerate().filter(|(n, b)| !is_file::<F>() || n % 29 == 0 || b.3).map(|(_, b)| b).collect()
    }
}

/// The block of an object that has this fill.
fn owner<F: FaultyBench>(run: &Run<F>, fill: u64) -> Option<(ObjectId, u32)> {
    run.now.blocks.iter().find(|(_, f)| **f == fill).map(|(at, _)| *at)
}

fn every_flipped_bit_is_found<F: FaultyBench>() {
    let mut tally: BTreeMap<(Block, bool, &str), u32> = BTreeMap::new();
    for in_order in [true, false] {
        let store = closed::<F>(11, in_order);
        for (n, (at, kind, fill, last)) in store.some().into_iter().enumerate() {
            let keep_index = n % 2 == 0;
            // Anywhere in the block.
            let mut run = store.flipped(&[at + (n as u64 * 613) % B], keep_index);
            let (recovered, verdict);
            match run.try_open(1) {
                Err(OpenError::Recover(_)) if !keep_index && kind == Block::Header => {
                    *tally.entry((kind, last, "refused")).or_default() += 1;
                    continue;
                }
                opened => {
                    recovered = opened.unwrap_or_else(|e| panic!("byte {at}, {kind:?}: {e}"));
                    verdict = judge(&mut run, &recovered, last);
                }
            }
            let says = match verdict {
                Verdict::Refused => "refused",
                Verdict::Right => "right",
                Verdict::Bad(_) => "bad",
                Verdict::Lost => "lost",
                Verdict::Torn => "torn",
            };
            *tally.entry((kind, last, says)).or_default() += 1;
            let what = format!("byte {at}, {kind:?}, index {keep_index}, in order {in_order}: {verdict:?}");
            match (kind, verdict) {
                (_, Verdict::Right) | (Block::Header, Verdict::Lost) => {}
                (_, Verdict::Torn) => assert!(last, "{what}"),
                (Block::Data, Verdict::Bad(1)) => {
                    let (object, n) = owner(&run, fill).expect("live");
                    assert_eq!(run.bad, [(object, n)], "{what}");
                    // It is found again elsewhere, and good for good.
                    let (bytes, checksum) = block(object, n, fill);
                    assert!(run.append(Record::Heal { object, block: n, checksum, data: bytes.into() }));
                    run.drain();
                    run.close(false);
                    let recovered = run.open(2);
                    assert_eq!(judge(&mut run, &recovered, false), Verdict::Right, "{what}");
                }
                (Block::Page, Verdict::Bad(bad)) => {
                    assert!(bad <= 256 && run.lost_tables.len() == 1, "{what}");
                }
                _ => panic!("{what}"),
            }
        }
    }
    println!("{tally:?}");
    let seen = |kind, says| tally.iter().any(|((k, _, s), _)| (*k, *s) == (kind, says));
    let both = seen(Block::Data, "bad") && seen(Block::Header, "lost");
    assert!(both || is_file::<F>() || other_seed().is_some(), "{tally:?}");
}

/// A block that the device does not give is not a torn one: never an older state without a word.
fn every_block_that_cannot_be_read_is_found<F: FaultyBench>() {
    let mut tally: BTreeMap<(Block, bool, String), u32> = BTreeMap::new();
    let store = closed::<F>(12, false);
    for (n, (at, kind, _, last)) in store.some().into_iter().enumerate() {
        for times in [1, u32::MAX] {
            let mut run = store.on(store.content.clone(), n % 3 != 0);
            let rule = Rule { times, ..Rule::every(Kind::Read, Fault::Error(libc::EIO)) };
            run.bench.faults().add(rule.at(at..at + B));
            let recovered = run.open(1);
            let verdict = judge(&mut run, &recovered, false);
            let what = format!("byte {at}, {kind:?}, {times} times: {verdict:?}");
            match (times, kind, &verdict) {
                (_, _, Verdict::Right) | (u32::MAX, Block::Header, Verdict::Lost) => {}
                // A client is answered at once; the block is asked for elsewhere.
                (1, Block::Data, Verdict::Bad(_)) | (u32::MAX, Block::Data, Verdict::Bad(1)) => {}
                (u32::MAX, Block::Data, Verdict::Lost) => assert!(last, "{what}"),
                (u32::MAX, Block::Page, Verdict::Lost) => assert!(last, "{what}"),
                (u32::MAX, Block::Page, Verdict::Bad(_)) => assert_eq!(run.lost_tables.len(), 1, "{what}"),
                _ => panic!("{what}"),
            }
            if times == 1 {
                run.close(false);
                let recovered = run.open(2);
                assert_eq!(judge(&mut run, &recovered, false), Verdict::Right, "{what}");
            }
            *tally.entry((kind, last, format!("{times} {verdict:?}"))).or_default() += 1;
        }
    }
    println!("{tally:?}");
    let seen = |kind, last| tally.keys().any(|(k, l, s)| *k == kind && *l == last && s.contains("Lost"));
    let both = seen(Block::Header, true) && seen(Block::Header, false);
    assert!(both || is_file::<F>() || other_seed().is_some(), "{tally:?}");
}

fn superblocks_and_roots_have_second_copies<F: FaultyBench>() {
    let store = closed::<F>(13, true);
    let (copies, roots) = ([0, 1 << 20], [64 << 10, (1 << 20) + (64 << 10)]);
    for keep_index in [true, false] {
        for at in [40, 3000] {
            for copy in copies {
                let mut run = store.flipped(&[copy + at], keep_index);
                let recovered = run.open(1);
                assert!(recovered.superblock_damage.is_some());
                assert_eq!(judge(&mut run, &recovered, false), Verdict::Right);
            }
            let mut run = store.flipped(&copies.map(|c| c + at), keep_index);
            let refused = run.try_open(1).expect_err("none is left");
            assert!(matches!(refused, OpenError::Superblock(SuperblockError::Damaged { .. })), "{refused}");
            for damage in [&roots[..1], &roots[1..], &roots[..]] {
                let at: Vec<u64> = damage.iter().map(|root| root + at).collect();
                let mut run = store.flipped(&at, keep_index);
                let recovered = run.open(1);
                let verdict = judge(&mut run, &recovered, false);
                assert_eq!(verdict, Verdict::Right, "roots {damage:?}, index {keep_index}");
            }
        }
    }
    // What cannot be read is what is damaged.
    for at in copies.into_iter().chain(roots) {
        let mut run = store.on(store.content.clone(), false);
        run.bench.faults().add(Rule::every(Kind::Read, Fault::Error(libc::EIO)).at(at..at + B));
        let recovered = run.open(1);
        assert_eq!(judge(&mut run, &recovered, false), Verdict::Right, "byte {at}");
    }
}

/// The lines of the program's log that name the device and the byte.
fn name_the_place(lines: &[String], device: &str, bytes: std::ops::Range<u64>) -> bool {
    lines.iter().any(|line| {
        let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
        line.starts_with("ERROR") && line.contains(device) && numbers.any(|n| bytes.contains(&n))
    })
}

/// Of everything that is found, whether it was reported with the device and the place.
fn reported<F: FaultyBench>() -> HashMap<&'static str, bool> {
    let store = closed::<F>(14, false);
    let mut seen: HashMap<&str, bool> = HashMap::new();
    for (at, kind, _, last) in store.some() {
        let mut run = store.flipped(&[at + 100], kind != Block::Header);
        let ((verdict, device), lines) = lines_of(|| {
            let recovered = run.open(1);
            let verdict = judge(&mut run, &recovered, last);
            run.close(false);
            (verdict, run.bench.device(1).name().to_owned())
        });
        let what = match verdict {
            Verdict::Bad(_) if kind == Block::Data => "block",
            Verdict::Bad(_) => "table",
            Verdict::Lost => "header",
            Verdict::Right | Verdict::Torn | Verdict::Refused => continue,
        };
        // Of a header: where the log was left.
        let place = if what == "header" { at - 16 * B..at + 16 * B } else { at..at + B };
        let named = name_the_place(&lines, &device, place);
        *seen.entry(what).or_insert(true) &= named;
        if !named {
            eprintln!("{what} at byte {at}: not in {lines:?}");
        }
    }
    seen
}

fn damage_is_reported_with_its_place<F: FaultyBench>() {
    let seen = reported::<F>();
    assert_ne!((seen.get("block"), seen.get("header")), (None, None));
    assert!(seen.get("block") != Some(&false) && seen.get("header") != Some(&false), "{seen:?}");
}

#[test]
fn a_damaged_table_page_is_reported_with_its_place() {
    assert_eq!(reported::<FaultySim>().get("table"), Some(&true));
}

#[test]
fn a_failed_write_is_reported_with_its_place() {
    let store = closed::<FaultySim>(14, false);
    let mut run = store.on(store.content.clone(), true);
    run.open(1);
    run.bench.faults().add(Rule::every(Kind::Write, Fault::Error(libc::EIO)));
    let record = run.maker.write(2);
    run.append(record);
    let ((), lines) = lines_of(|| run.drain());
    assert!(run.failed.is_some());
    assert!(name_the_place(&lines, "sim", DATA..SIZE), "{lines:?}");
}

/// A file that is cut short below a running store: reads really are short.
#[test]
fn a_file_that_is_cut_short_below_a_running_store() {
    let store = closed::<FaultyFile>(15, false);
    let mut places: Vec<u64> = store.blocks.keys().copied().collect();
    places.sort_unstable();
    for part in [0, 1, 2, 3] {
        let mut run = store.on(store.content.clone(), true);
        run.open(1);
        let end = places[places.len() * part / 4];
        let file = std::fs::OpenOptions::new().write(true).open(run.bench.path()).expect("opened");
        // Amidst a block.
        file.set_len(end + 1000).expect("cut");
        let seen = run.contents();
        assert!(crate::model::damage::but_for_bad(&run.now, &seen).is_some_and(|bad| bad > 0));
        assert_eq!(run.failed, None);
        // What is read again is as bad as before; what is written goes behind the end of the log.
        let object = run.maker.object();
        run.read(object, BlockRange::new(0, 300));
        steps(&mut run, 3, 2);
        run.drain();
        run.close(part % 2 == 0);
        file.set_len(SIZE).expect("extended");
        run.failed = None;
        let recovered = run.open(2);
        judge(&mut run, &recovered, false);
    }
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
    every_flipped_bit_is_found,
    every_block_that_cannot_be_read_is_found,
    superblocks_and_roots_have_second_copies,
    damage_is_reported_with_its_place,
);
