//! Short histories whose every device operation is a point at which the power may fail.
//!
//! A history is played once. At each start and each end of a change of the device, and at each
//! acknowledgement, what the device holds is kept (copies are cheap), with what was under way, with the
//! index, and with how far the model was: a [`super::crash::Point`]. The cuts themselves happen later.

use super::bench::{Bench, SimBench, format_with};
use super::crash::Point;
use super::index::{MemIndex, Saved};
use super::make::{Maker, Mix};
use super::run::Run;
use super::work::{Kind, Work, say};
use super::{DATA, Model, SEGMENT};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeSet;
use trefoil_core::ObjectId;
use trefoil_core::record::Record;
use trefoil_storage_node::device::Prepare;
use trefoil_storage_node::store::StoreOptions;

/// A history, by what it is made from.
#[derive(Clone)]
pub struct History {
    /// What it is called in the command that reproduces a case.
    pub name: &'static str,
    /// Of everything at random.
    pub seed: u64,
    /// Of the medium.
    pub segments: u64,
    /// Bytes of each.
    pub segment: u64,
    /// Data blocks that are written before, so that the medium is nearly full.
    pub fill: u64,
    /// Records.
    pub records: usize,
    /// What they are like.
    pub mix: Mix,
    /// How the store is opened, this time and after each cut.
    pub options: StoreOptions,
    /// The store is closed and opened again after so many records.
    pub reopen: usize,
    /// The index refuses a commit at times, and has to be made anew.
    pub refuse: bool,
    /// See [`trefoil_storage_node::device::sim::SimDevice`].
    pub done_percent: u64,
    /// What the device says is worth doing.
    pub prepare: Prepare,
    /// See [`trefoil_storage_node::device::sim::SimDevice`].
    pub slow_reads: u32,
    /// See there.
    pub slow_writes: u32,
    /// Everything becomes durable once in so many steps.
    pub drain_one_in: u64,
    /// What it has to exercise to be worth playing.
    pub least: Work,
}

/// Tiny everything.
pub fn options() -> StoreOptions {
    StoreOptions {
        table_cache_bytes: 4 * 4096,
        batch_bytes_max: 256 << 10,
        checkpoint_bytes: 512 << 10,
        ..StoreOptions::default()
    }
}

/// The histories of the normal suite.
pub fn histories() -> Vec<History> {
    let small = Mix { objects: 3, blocks: 300, large: 24, ..Mix::default() };
    let plain = History {
        name: "plain",
        seed: 1,
        segments: 12,
        segment: SEGMENT,
        fill: 0,
        records: 60,
        mix: small.clone(),
        options: StoreOptions { checkpoint_bytes: 1 << 30, ..options() },
        reopen: usize::MAX,
        refuse: false,
        done_percent: 60,
        prepare: Prepare::Nothing,
        slow_reads: 0,
        slow_writes: 0,
        drain_one_in: 3,
        least: Work { blocks: 100, ..Work::default() },
    };
    // Segments of 128 blocks; six objects that nearly fill the store, overwritten all the time.
    let turns = History {
        name: "turns",
        seed: 7,
        segments: 24,
        segment: SEGMENT / 2,
        fill: 3500,
        records: 1100,
        mix: Mix {
            objects: 3,
            blocks: 310,
            large: 24,
            often_large: 25,
            plain: 4,
            zeros: 0,
            installs: 2,
            heals: 1,
            deletes: 0,
            splits: 0,
        },
        options: StoreOptions { checkpoint_bytes: 512 << 10, ..options() },
        slow_reads: 60,
        slow_writes: 200,
        drain_one_in: 60,
        least: Work {
            blocks: 5000,
            moved: 1500,
            freed: 25,
            freed_under_reads: 4,
            snapshots: 8,
            commits: 20,
            reaped: 1,
            reused: 20,
            turns: 2,
        },
        ..plain.clone()
    };
    vec![
        plain.clone(),
        turns.clone(),
        History {
            name: "churn",
            seed: 8,
            mix: Mix { zeros: 2, deletes: 2, often_large: 50, ..turns.mix.clone() },
            reopen: 120,
            refuse: true,
            prepare: Prepare::Discard,
            least: Work {
                blocks: 6000,
                moved: 1000,
                freed: 40,
                freed_under_reads: 8,
                snapshots: 8,
                commits: 15,
                reaped: 40,
                reused: 12,
                turns: 2,
            },
            records: 1100,
            ..turns
        },
        History {
            name: "checkpoints",
            seed: 2,
            options: StoreOptions { checkpoint_bytes: 64 << 10, ..options() },
            records: 60,
            ..plain.clone()
        },
        History {
            name: "repairs",
            seed: 3,
            mix: Mix { installs: 35, heals: 25, deletes: 4, ..small.clone() },
            options: StoreOptions { checkpoint_bytes: 128 << 10, ..options() },
            records: 60,
            refuse: true,
            ..plain.clone()
        },
        History {
            name: "restarts",
            seed: 4,
            options: StoreOptions { checkpoint_bytes: 96 << 10, ..options() },
            mix: Mix { deletes: 3, ..small.clone() },
            records: 60,
            reopen: 8,
            ..plain.clone()
        },
        History {
            name: "full",
            seed: 5,
            segments: 12,
            fill: 6000,
            records: 60,
            mix: Mix {
                objects: 3,
                blocks: 160,
                large: 40,
                often_large: 60,
                zeros: 3,
                deletes: 0,
                installs: 5,
                ..small.clone()
            },
            options: StoreOptions { checkpoint_bytes: 256 << 10, ..options() },
            done_percent: 30,
            ..plain.clone()
        },
        History {
            name: "discards",
            seed: 6,
            segments: 12,
            fill: 6000,
            records: 60,
            mix: Mix {
                objects: 3,
                blocks: 160,
                large: 40,
                often_large: 60,
                zeros: 3,
                deletes: 3,
                installs: 5,
                ..small
            },
            options: StoreOptions { checkpoint_bytes: 128 << 10, ..options() },
            prepare: Prepare::Discard,
            refuse: true,
            ..plain
        },
    ]
}

/// A history that has been played.
pub struct Played {
    /// From what.
    pub history: History,
    /// What was there before.
    pub base: Model,
    /// Its records; the first has the ticket `first`.
    pub records: Vec<Record<Bytes>>,
    /// See `records`.
    pub first: u64,
    /// Where the power may fail.
    pub points: Vec<Point>,
    /// All versions of the index.
    pub versions: Vec<Saved>,
    /// All objects.
    pub objects: BTreeSet<ObjectId>,
    /// What the store did at the points.
    pub work: Work,
    /// The model as of a ticket: the last one that was asked for.
    pub model: RefCell<(u64, Model)>,
}

impl History {
    /// Bytes of its medium.
    pub fn size(&self) -> u64 {
        DATA + self.segments * self.segment
    }

    /// The simulated medium that it is meant for.
    pub fn bench(&self) -> SimBench {
        SimBench {
            done_percent: self.done_percent,
            prepare: self.prepare,
            slow_reads: self.slow_reads,
            slow_writes: self.slow_writes,
            ..SimBench::new(self.size())
        }
    }

    /// Plays it on an empty medium.
    pub fn play<B: Bench + Clone>(&self, bench: B) -> Played {
        format_with(&bench, self.segment);
        let maker = Maker::new(self.seed, self.mix.clone());
        let mut run = Run::new(bench, MemIndex::default(), self.options.clone(), maker);
        run.recorder.borrow_mut().segment = self.segment;
        let recovered = run.open(self.seed);
        assert_eq!(run.verify(&recovered), 0);
        fill(&mut run, self.fill, self.mix.large * 4);
        run.forget(run.records.len());
        let base = run.now.clone();
        let first = run.first;
        run.recorder.borrow_mut().points = Some(Vec::new());
        let mut next_close = self.reopen;
        let mut lives = 0;
        while run.records.len() < self.records {
            steps(&mut run, 1, self.drain_one_in);
            if self.refuse && run.maker.rng.one_in(12) {
                run.index.refuse(1);
            }
            if run.records.len() >= next_close {
                next_close += self.reopen;
                lives += 1;
                run.drain();
                run.close(lives % 2 == 0);
                let recovered = run.open(self.seed + lives);
                assert_eq!(run.verify(&recovered), run.records.len());
                // What was deleted meanwhile is made up for.
                fill(&mut run, self.fill / 8, self.mix.large * 4);
            }
        }
        run.drain();
        run.settle_down(60);
        run.audit();
        run.close(true);
        let image = run.bench.image();
        run.recorder.borrow_mut().point(&image, "closed", Kind::None);
        let points = run.recorder.borrow_mut().points.take().unwrap_or_default();
        let versions = run.index.versions();
        let objects = run.objects().clone();
        let work = run.work();
        say(format_args!("{}: {work:?}, {} points, {} lives", self.name, points.len(), lives + 1));
        let model = RefCell::new((first - 1, base.clone()));
        Played {
            history: self.clone(),
            base,
            records: run.records,
            first,
            points,
            versions,
            objects,
            work,
            model,
        }
    }
}

impl Played {
    /// The model as of a ticket.
    pub fn model_at(&self, ticket: u64) -> Model {
        let mut cached = self.model.borrow_mut();
        if cached.0 > ticket {
            *cached = (self.first - 1, self.base.clone());
        }
        while cached.0 < ticket {
            cached.0 += 1;
            let n = (cached.0 - self.first) as usize;
            cached.1.apply(&self.records[n]);
        }
        cached.1.clone()
    }
}

/// Writes until so many data blocks are written or less than `rest` has room.
pub fn fill<B: Bench>(run: &mut Run<B>, blocks: u64, rest: u64) {
    let (mut written, mut refused) = (0, 0);
    let large = run.maker.mix.large;
    while written < blocks && refused < 40 {
        let record = run.maker.write(large);
        if run.store().room_blocks() < rest || !run.append(record.clone()) {
            refused += 1;
            run.settle_down(5);
            continue;
        }
        refused = 0;
        written += u64::from(record.data_blocks());
        run.submit();
        run.poll();
    }
    run.drain();
}

/// Some records, some reads, some I/O, at times until nothing is pending; several times. Where there is no
/// room for long, something is trimmed or deleted.
pub fn steps<B: Bench>(run: &mut Run<B>, times: u64, drain_one_in: u64) {
    for _ in 0..times {
        for _ in 0..run.maker.rng.below(4) {
            let record = run.maker.record(&run.now);
            let mut tries = 0;
            while !run.append(record.clone()) && tries < 12 {
                tries += 1;
                run.settle_down(1);
            }
            if tries == 12 && record.data_blocks() > 0 {
                let mix = run.maker.mix.clone();
                run.maker.mix =
                    Mix { zeros: 80, deletes: 20, plain: 0, installs: 0, heals: 0, ..mix.clone() };
                let relief = run.maker.record(&run.now);
                run.append(relief);
                run.maker.mix = mix;
            }
        }
        for _ in 0..run.maker.rng.below(3) {
            let object = run.maker.object();
            let most = if run.maker.rng.one_in(4) { 300 } else { 3 };
            let range = run.maker.range(most);
            run.read(object, range);
        }
        if !run.maker.rng.one_in(3) {
            run.submit();
        }
        if !run.maker.rng.one_in(3) {
            run.poll();
        }
        if run.maker.rng.one_in(drain_one_in) {
            run.drain();
            run.until_it_accepts();
        }
    }
}
