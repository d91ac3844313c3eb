//! A store that runs against the model.
//!
//! Checked at every step: a read answers as of its call; an acknowledgement comes in order, and only
//! when every block that it covers has been in a write that has ended; whenever the store has something
//! to do it is either under way or the store says so (else a node would sleep for ever).

use super::bench::Bench;
use super::crash::{Point, Progress};
use super::index::MemIndex;
use super::make::{Maker, bad_fill};
use super::work::{Kind, Work, kind_of};
use super::{BAD, Blocks, Model, audit, block, decode, difference, fills_of, object_of};
use bytes::Bytes;
use rustc_hash::FxHashSet;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::device::image::{Change, Image, Observer, Stage};
use trefoil_storage_node::store::{OpenError, ReadMode, Recovered, Stats, Store, StoreEvent, StoreOptions};

/// Steps after which what has not been done never will be.
const TURNS_MAX: u32 = 200_000;
/// Table pages that a write of the tests may need besides its blocks.
const PAGES_MAX: u64 = 8;
/// Steps in a row with nothing under way, nothing to do, and something to wait for.
const IDLE_MAX: u32 = 4;

/// What is noted while a store runs.
#[derive(Default)]
pub struct Recorder {
    /// Fills in writes that have ended.
    ended: FxHashSet<u64>,
    /// Points at which the power may fail, if they are wanted.
    pub points: Option<Vec<Point>>,
    /// As of now.
    pub progress: Progress,
    index: MemIndex,
    /// Bytes of a segment, 0 for [`super::SEGMENT`].
    pub segment: u64,
    kind: Kind,
    /// By segment: how often one that had been in use was begun.
    reused: HashMap<u64, u64>,
}

impl Recorder {
    /// The power may fail here.
    pub fn point(&mut self, image: &Image, what: &'static str, kind: Kind) {
        let (at, index) = (self.progress, self.index.clone());
        if let Some(points) = &mut self.points {
            points.push(Point { image: image.clone(), at, index: index.at(), what, kind });
        }
    }

    fn kind(&mut self, stage: Stage, change: &Change, image: &Image) -> Kind {
        let segment = if self.segment == 0 { super::SEGMENT } else { self.segment };
        match (stage, change) {
            (_, Change::Discard { .. } | Change::Zero { .. }) => return Kind::Prepare,
            (_, Change::Write { offset, .. }) if *offset < super::DATA => return Kind::Root,
            (Stage::Started, Change::Write { offset, bufs }) => {
                self.kind = kind_of(*offset, bufs.first().map_or(&[], |b| b), &image.durable, segment);
                if self.kind == Kind::Reuse {
                    *self.reused.entry(*offset).or_default() += 1;
                }
            }
            // One batch is under way at a time.
            (Stage::Ended, _) => {}
        }
        self.kind
    }
}

/// See the module.
pub struct Run<B: Bench> {
    /// What it runs on.
    pub bench: B,
    /// The index.
    pub index: MemIndex,
    /// How the store is opened.
    pub options: StoreOptions,
    /// Open or not.
    pub store: Option<Store<B::D, MemIndex>>,
    /// Makes records.
    pub maker: Maker,
    /// Records since `base`; the first has the ticket `first`.
    pub records: Vec<Record<Bytes>>,
    /// See `records`.
    pub first: u64,
    /// What was there before them.
    pub base: Model,
    /// With all of them.
    pub now: Model,
    /// Notes.
    pub recorder: Rc<RefCell<Recorder>>,
    /// Wrong bytes are wrong at any time, but blocks may be bad, and the store may fail.
    pub tolerant: bool,
    /// Set when the store has failed.
    pub failed: Option<String>,
    /// Blocks that the store has reported as bad.
    pub bad: Vec<(ObjectId, u32)>,
    /// Tables that the store has reported as lost.
    pub lost_tables: Vec<(ObjectId, BlockRange)>,
    /// Every fill that a block ever had, if the run is tolerant.
    pub ever: HashMap<(ObjectId, u32), Vec<u64>>,
    reads: HashMap<u64, (ObjectId, BlockRange, Vec<u64>)>,
    token: u64,
    objects: BTreeSet<ObjectId>,
    work: Work,
    /// As of when `work` was brought up to date.
    stats: Stats,
}

impl<B: Bench> Run<B> {
    /// A store that is not open yet, on a medium that is formatted.
    pub fn new(bench: B, index: MemIndex, options: StoreOptions, maker: Maker) -> Run<B> {
        let recorder = Rc::new(RefCell::new(Recorder { index: index.clone(), ..Recorder::default() }));
        let notes = recorder.clone();
        let observer: Observer = Box::new(move |stage: Stage, change: &Change, image: &Image| {
            let mut notes = notes.borrow_mut();
            if let (Stage::Ended, Change::Write { bufs, .. }) = (stage, change) {
                bufs.iter().for_each(|buf| notes.ended.extend(super::fills(buf)));
            }
            let what = match (stage, change) {
                (Stage::Started, Change::Write { .. }) => "a write has begun",
                (Stage::Started, _) => "a discard or zeroing has begun",
                (Stage::Ended, Change::Write { .. }) => "a write has ended",
                (Stage::Ended, _) => "a discard or zeroing has ended",
            };
            let kind = notes.kind(stage, change, image);
            notes.point(image, what, kind);
        });
        bench.observe(Some(observer));
        Run {
            bench,
            index,
            options,
            store: None,
            maker,
            records: Vec::new(),
            first: 1,
            base: Model::default(),
            now: Model::default(),
            recorder,
            tolerant: false,
            failed: None,
            bad: Vec::new(),
            lost_tables: Vec::new(),
            ever: HashMap::new(),
            reads: HashMap::new(),
            token: 100,
            objects: BTreeSet::new(),
            work: Work::default(),
            stats: Stats::default(),
        }
    }

    /// Goes on from what another run has left.
    pub fn continued(mut self, base: Model, objects: BTreeSet<ObjectId>) -> Run<B> {
        self.now = base.clone();
        self.base = base;
        self.objects = objects;
        self
    }

    /// Objects that ever were.
    pub fn objects(&self) -> &BTreeSet<ObjectId> {
        &self.objects
    }

    fn acked(&self) -> u64 {
        self.recorder.borrow().progress.acked
    }

    /// Powers on and opens.
    pub fn open(&mut self, seed: u64) -> Recovered {
        self.try_open(seed).unwrap_or_else(|e| panic!("the store does not open: {e}"))
    }

    /// Powers on and opens, if it can be.
    pub fn try_open(&mut self, seed: u64) -> Result<Recovered, OpenError> {
        let device = self.bench.device(seed);
        let opened = Store::open_on(device, self.index.clone(), self.options.clone(), &mut |_, _| ());
        let (mut store, recovered) = opened?;
        if !self.tolerant {
            assert_eq!(recovered.lost, None, "{:?}", recovered.how);
            assert!(recovered.how.damage.is_empty(), "{:?}", recovered.how);
            let before = self.recorder.borrow().progress.position;
            let position = recovered.log_position;
            assert!(position >= before, "the log's position went back from {before} to {position}");
            if let Err(why) = audit(&mut store) {
                panic!("the books are wrong after an open ({:?}): {why}", recovered.how);
            }
        }
        assert_eq!(store.durable(), &recovered.durable);
        self.stats = store.stats();
        self.store = Some(store);
        Ok(recovered)
    }

    /// The store.
    pub fn store(&mut self) -> &mut Store<B::D, MemIndex> {
        self.store.as_mut().expect("the store is open")
    }

    /// True if the store takes this record now: as a node asks it.
    pub fn accepts(&mut self, record: &Record<Bytes>) -> bool {
        let store = self.store();
        if !store.can_accept() {
            return false;
        }
        let (blocks, room) = (u64::from(record.data_blocks()), store.room_blocks());
        match record {
            _ if blocks == 0 || blocks + PAGES_MAX <= room => true,
            Record::Write { object, op, .. } => {
                store.growth(*object, op.blocks()).is_some_and(|grows| u64::from(grows) <= room)
            }
            _ => false,
        }
    }

    /// The store may be behind for a while, but takes records again by itself.
    pub fn until_it_accepts(&mut self) {
        let mut idle = 0;
        for _ in 0..TURNS_MAX {
            if self.store().can_accept() || self.failed.is_some() {
                return;
            }
            self.submit();
            let busy = self.bench.busy() || self.index.busy();
            let told = self.poll();
            let store = self.store();
            if told || store.waker().take() || store.has_work() || busy {
                idle = 0;
                self.bench.pause();
            } else {
                idle += 1;
                assert!(idle < IDLE_MAX, "it takes nothing, and will not: {}", self.pending());
            }
        }
        panic!("it takes nothing: {}", self.pending());
    }

    /// Appends a record if the store takes it.
    pub fn append(&mut self, record: Record<Bytes>) -> bool {
        if !self.accepts(&record) {
            return false;
        }
        self.objects.extend(object_of(&record).map(|object| self.maker.root(object)));
        self.now.apply(&record);
        self.maker.sees(&self.now.durable);
        if self.tolerant {
            // What is there once the power is back may be of any time.
            for (at, fill) in &self.now.blocks {
                let ever = self.ever.entry(*at).or_default();
                if ever.last() != Some(fill) {
                    ever.push(*fill);
                }
            }
        }
        self.records.push(record.clone());
        let ticket = self.first + self.records.len() as u64 - 1;
        self.recorder.borrow_mut().progress.appended = ticket;
        self.store().append(ticket, record);
        true
    }

    /// Asks for blocks.
    pub fn read(&mut self, object: ObjectId, range: BlockRange) {
        if !self.store().can_accept() && self.failed.is_none() {
            return;
        }
        self.token += 1;
        let token = self.token;
        self.store().read(token, object, range, ReadMode::All);
        let expected = self.now.range(object, range);
        self.reads.insert(token, (object, range, expected));
    }

    /// Starts what there is to start.
    pub fn submit(&mut self) {
        self.store().submit();
        self.take_stats();
    }

    fn take_stats(&mut self) {
        let now = self.store().stats();
        self.work.note(&self.stats, &now);
        self.stats = now;
        self.recorder.borrow_mut().progress.freed = self.work.freed;
    }

    /// What the store has done since this run began.
    pub fn work(&self) -> Work {
        let notes = self.recorder.borrow();
        let reused = notes.reused.values().sum();
        Work { reused, turns: notes.reused.values().max().copied().unwrap_or(0), ..self.work }
    }

    /// Takes what has ended; true if anything was told.
    pub fn poll(&mut self) -> bool {
        let mut events = Vec::new();
        self.store().poll(&mut events);
        self.take_stats();
        let position = self.store().log_position();
        self.recorder.borrow_mut().progress.position = position;
        let told = !events.is_empty();
        let before = self.acked();
        events.into_iter().for_each(|event| self.take(event));
        if self.acked() != before {
            // Who was told so may rely on it from this very moment.
            let image = self.bench.image();
            self.recorder.borrow_mut().point(&image, "acknowledged", Kind::None);
        }
        told
    }

    fn take(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Durable { up_to_ticket } => self.acknowledged(up_to_ticket),
            StoreEvent::Read { token, checksums, data, bad } => {
                let (o, range, expected) = self.reads.remove(&token).expect("asked for");
                let Some(mut seen) = decode(o, range, &checksums, &data, &bad) else {
                    panic!("a read of {o} {range:?} gave bytes that are not right: {bad:?}");
                };
                if self.tolerant {
                    let pairs = seen.iter_mut().zip(&expected);
                    pairs.filter(|(seen, _)| **seen == BAD).for_each(|(seen, expected)| *seen = *expected);
                }
                assert_eq!(seen, expected, "a read of {o} {range:?} is not as of its call");
            }
            StoreEvent::Failed { why } => {
                assert!(self.tolerant, "the store has failed: {why}; {}", self.pending());
                assert!(self.failed.is_none(), "said once");
                self.failed = Some(why);
            }
            StoreEvent::BadBlock { object, block: n, checksum } => {
                let came_bad = checksum == block(object, n, bad_fill(n)).1;
                let healed_since = self.now.blocks.get(&(object, n)) == Some(&bad_fill(n));
                if came_bad && !(self.tolerant && healed_since) {
                    return; // a repair has left it so
                }
                assert!(self.tolerant, "bad {object} {n}");
                // Told at each read.
                if !self.bad.contains(&(object, n)) {
                    self.bad.push((object, n));
                }
            }
            StoreEvent::LostTable { object, blocks } => {
                assert!(self.tolerant, "lost table of {object} {blocks:?}");
                self.lost_tables.push((object, blocks));
            }
        }
    }

    fn acknowledged(&mut self, up_to: u64) {
        assert!(self.failed.is_none(), "ticket {up_to} is acknowledged after the store has failed");
        let mut notes = self.recorder.borrow_mut();
        let before = notes.progress.acked;
        let last = self.first + self.records.len() as u64 - 1;
        assert!(up_to >= before && up_to <= last, "ticket {up_to} after {before}, of {last}");
        notes.progress.acked = up_to;
        if self.tolerant {
            return;
        }
        for ticket in before.max(self.first - 1) + 1..=up_to {
            let record = &self.records[(ticket - self.first) as usize];
            fills_of(record, |fill| {
                assert!(
                    notes.ended.contains(&fill),
                    "ticket {ticket} is acknowledged, but no write that has ended carries its data"
                );
            });
        }
    }

    /// Goes on until every record is acknowledged and every read answered, or the store has failed.
    pub fn drain(&mut self) {
        let mut idle = 0;
        for _ in 0..TURNS_MAX {
            self.submit();
            let busy = self.bench.busy() || self.index.busy();
            let told = self.poll();
            let waits = self.acked() < self.recorder.borrow().progress.appended && self.failed.is_none();
            if self.reads.is_empty() && !waits {
                return;
            }
            let store = self.store();
            let rung = store.waker().take();
            if told || rung || store.has_work() || busy {
                idle = 0;
                if !told {
                    self.bench.pause();
                }
                continue;
            }
            idle += 1;
            assert!(idle < IDLE_MAX, "a node would sleep for ever: {}", self.pending());
        }
        panic!("stuck: {}", self.pending());
    }

    fn pending(&self) -> String {
        format!(
            "{} reads, {:?}, {:?}, {:?}",
            self.reads.len(),
            self.recorder.borrow().progress,
            self.store.as_ref().map(Store::stats),
            self.options
        )
    }

    /// Lets the store do what it does by itself.
    pub fn settle_down(&mut self, turns: u32) {
        for _ in 0..turns {
            self.submit();
            if !self.poll() {
                self.bench.pause();
            }
        }
    }

    /// What the store says of every object that ever was.
    pub fn contents(&mut self) -> Blocks {
        let mut seen = Blocks::new();
        let blocks = self.maker.mix.blocks;
        let objects: Vec<ObjectId> = self.objects.iter().copied().collect();
        let mut asked = HashMap::new();
        let mut next = objects.iter();
        let mut events = Vec::new();
        for _ in 0..TURNS_MAX {
            while asked.len() < 8
                && let Some(o) = next.next()
            {
                self.token += 1;
                let token = self.token;
                // Where it is by now.
                let o = self.store().durable().place(*o);
                self.store().read(token, o, BlockRange::new(0, blocks), ReadMode::All);
                asked.insert(token, o);
            }
            if asked.is_empty() {
                return seen;
            }
            self.store().submit();
            self.store().poll(&mut events);
            if events.is_empty() {
                self.bench.pause();
            }
            for event in std::mem::take(&mut events) {
                let StoreEvent::Read { token, checksums, data, bad } = event else {
                    self.take(event);
                    continue;
                };
                let Some(o) = asked.remove(&token) else {
                    self.take(StoreEvent::Read { token, checksums, data, bad });
                    continue;
                };
                let Some(fills) = decode(o, BlockRange::new(0, blocks), &checksums, &data, &bad) else {
                    panic!("a read of {o} gave bytes that are not right: {bad:?}");
                };
                let there = (0u32..).zip(fills).filter(|(_, fill)| *fill != 0);
                seen.extend(there.map(|(n, fill)| ((o, n), fill)));
            }
        }
        panic!("stuck: {} reads of everything", asked.len());
    }

    /// After an open: the state is that of some prefix of what was appended, with at least all that was
    /// acknowledged. From here on it is the state. Gives the number of records that are there.
    pub fn verify(&mut self, recovered: &Recovered) -> usize {
        let seen = self.contents();
        let acked = (self.acked() + 1).saturating_sub(self.first) as usize;
        let mut model = self.base.clone();
        self.records[..acked].iter().for_each(|r| model.apply(r));
        let least = model.clone();
        let mut n = acked;
        while !model.is(&recovered.durable, &seen) {
            let Some(record) = self.records.get(n) else {
                panic!(
                    "what was recovered is no prefix that holds every acknowledged record: {}",
                    difference(
                        &least,
                        &model,
                        &recovered.durable,
                        &seen,
                        self.records.len() - acked,
                        &recovered.how
                    )
                );
            };
            model.apply(record);
            n += 1;
        }
        self.now = model;
        self.maker.sees(&self.now.durable);
        self.reads.clear();
        n
    }

    /// What was appended before is part of the base from here on; `n` records of it are there.
    pub fn forget(&mut self, n: usize) {
        self.first += n as u64;
        self.records.clear();
        self.base = self.now.clone();
        let mut notes = self.recorder.borrow_mut();
        notes.progress.acked = self.first - 1;
        notes.progress.appended = self.first - 1;
        notes.ended.clear();
    }

    /// Closes the store: in order, or as a crash of the process would.
    pub fn close(&mut self, in_order: bool) {
        let Some(store) = self.store.take() else { return };
        if in_order {
            let _ = store.shutdown();
        }
        // A commit under way is lost, or not.
        self.index.power_cut(self.maker.rng.one_in(2));
    }

    /// The books are right.
    pub fn audit(&mut self) {
        if let Err(why) = audit(self.store()) {
            panic!("the books are wrong: {why}");
        }
    }
}
