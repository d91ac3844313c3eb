//! Power cuts at the points of a history that was played, and what must be there afterwards.
//!
//! A case is a point, a tear for each change that was under way there, and an index; in some cases
//! the power fails again, at a point of the start-up that follows. Its name says all of that:
//! `history:point:tear+tear:index`, and once more `:point:tear+tear:index` for the second cut. After
//! each: every acknowledged record is there, of the others some prefix, and nothing else; the books are
//! right; the store goes on as if nothing had been.

use super::bench::Bench;
use super::history::{Played, steps};
use super::index::{IndexAt, MemIndex, Saved};
use super::make::Maker;
use super::run::Run;
use super::work::{Kind, Moment, choose, moments, say};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};
use trefoil_storage_node::device::image::{BLOCK, Change, Content, Image, Rng, SECTOR, Tear};

/// How far the model was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The greatest ticket that has been acknowledged.
    pub acked: u64,
    /// The greatest ticket that has been appended.
    pub appended: u64,
    /// The log's position that the store has told.
    pub position: u64,
    /// Segments freed.
    pub freed: u64,
}

/// A moment at which the power may fail.
pub struct Point {
    /// The device.
    pub image: Image,
    /// The model.
    pub at: Progress,
    /// The index.
    pub index: IndexAt,
    /// What has just happened.
    pub what: &'static str,
    /// What was written.
    pub kind: Kind,
}

/// Which index there is after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexCase {
    /// What was durable.
    Durable,
    /// With the commit that was under way.
    Committed,
    /// None.
    None,
    /// This version, which is older.
    Older(usize),
}

impl fmt::Display for IndexCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IndexCase::Durable => f.write_str("durable"),
            IndexCase::Committed => f.write_str("committed"),
            IndexCase::None => f.write_str("gone"),
            IndexCase::Older(n) => write!(f, "older{n}"),
        }
    }
}

/// One power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// At which point.
    pub point: usize,
    /// What becomes of each change under way.
    pub tears: Vec<Tear>,
    /// What becomes of the index.
    pub index: IndexCase,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tears: Vec<String> = self.tears.iter().map(Tear::to_string).collect();
        write!(f, "{}:{}:{}", self.point, tears.join("+"), self.index)
    }
}

/// One power cut, or two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// In the history.
    pub first: Cut,
    /// In the start-up after it.
    pub second: Option<Cut>,
}

impl Case {
    /// From its name, less the history's.
    pub fn parse(text: &str) -> Result<Case, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let cut = |parts: &[&str]| {
            let [point, tears, index] = parts else { return Err(format!("{text}: no such case")) };
            let older = index.strip_prefix("older").map(str::parse);
            Ok(Cut {
                point: point.parse().map_err(|e| format!("{text}: {e}"))?,
                tears: tears
                    .split('+')
                    .filter(|t| !t.is_empty())
                    .map(str::parse)
                    .collect::<Result<_, _>>()?,
                index: match (*index, older) {
                    ("durable", _) => IndexCase::Durable,
                    ("committed", _) => IndexCase::Committed,
                    ("gone", _) => IndexCase::None,
                    (_, Some(Ok(n))) => IndexCase::Older(n),
                    _ => return Err(format!("{index}: no such index")),
                },
            })
        };
        match parts.len() {
            3 => Ok(Case { first: cut(&parts)?, second: None }),
            6 => Ok(Case { first: cut(&parts[..3])?, second: Some(cut(&parts[3..])?) }),
            _ => Err(format!("{text}: no such case")),
        }
    }
}

/// How many cuts are made.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// All tears and all indices at each point.
    pub full: bool,
    /// Tears at each point, where not all.
    pub tears: usize,
    /// A second cut in each so-many-th case.
    pub second_every: usize,
    /// The store goes on after each so-many-th case.
    pub go_on_every: usize,
    /// Points, about: of each [`Moment`] as many.
    pub points: usize,
    /// At the latest then it is enough. (Not to be reached where not all cuts are made.)
    pub seconds: u64,
}

/// Seconds for one history with all cuts: eight of them, on one core, take ten minutes.
const FULL_SECONDS: u64 = 70;
/// Cuts at a point before the next point has its turn, where all are made.
const ROUND: usize = 4;

impl Effort {
    /// For the normal suite, unless `STORE_CRASH=full` says otherwise (for `STORE_CRASH_SECONDS` at each
    /// history).
    pub fn from_env() -> Effort {
        let full = std::env::var("STORE_CRASH").is_ok_and(|v| v == "full");
        let seconds = std::env::var("STORE_CRASH_SECONDS").ok().and_then(|s| s.parse().ok());
        let seconds = seconds.unwrap_or(FULL_SECONDS);
        if full {
            Effort { full, tears: 0, second_every: 7, go_on_every: 8, points: usize::MAX, seconds }
        } else {
            let seconds = u64::MAX;
            Effort { full, tears: 2, second_every: 10, go_on_every: 12, points: 56, seconds }
        }
    }
}

/// The ways in which what is under way may be torn.
fn tears(image: &Image, effort: Effort, rng: &mut Rng) -> Vec<Vec<Tear>> {
    let n = image.in_flight.len();
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut ways = vec![vec![Tear::None; n], vec![Tear::All; n]];
    let mut more = Vec::new();
    if let [(_, change @ Change::Write { .. })] = &image.in_flight[..] {
        let sectors = change.sectors();
        let block = (BLOCK / SECTOR) as u32;
        let some = |rng: &mut Rng| rng.below(u64::from(sectors)) as u32;
        more.extend([
            Tear::Prefix(block),
            Tear::Prefix(1),
            Tear::Prefix(sectors - 1),
            Tear::Prefix(some(rng)),
            Tear::Suffix(sectors.saturating_sub(block).max(1)),
            Tear::Suffix(sectors - 1),
            Tear::Suffix(some(rng)),
            Tear::Omit(0),
            Tear::Omit(some(rng)),
            Tear::Omit(some(rng)),
            Tear::Only(0),
            Tear::Only(some(rng)),
        ]);
        if effort.full {
            // Every single sector of a short write, every 17th of a long one.
            let step = if sectors <= 96 { 1 } else { 17 };
            more.extend((0..sectors).step_by(step).map(Tear::Omit));
            more.extend((0..sectors).step_by(step).map(Tear::Prefix));
        }
        ways.extend(more.into_iter().map(|tear| vec![tear]));
    } else {
        // Each by itself: one there and the others not, and the other way round.
        for one in 0..n {
            ways.push((0..n).map(|i| if i == one { Tear::All } else { Tear::None }).collect());
            ways.push((0..n).map(|i| if i == one { Tear::None } else { Tear::All }).collect());
        }
    }
    for _ in 0..if effort.full { 12 } else { 4 } {
        ways.push((0..n).map(|_| Tear::Random(rng.below(1 << 20))).collect());
    }
    if !effort.full {
        // None of it, then others at random.
        for at in 1..ways.len() {
            let other = at + rng.below((ways.len() - at) as u64) as usize;
            ways.swap(at, other);
        }
        ways.truncate(effort.tears);
    }
    ways
}

/// The indices that there may be.
fn indices(at: &IndexAt, effort: Effort, rng: &mut Rng) -> Vec<IndexCase> {
    let mut all = vec![IndexCase::Durable, IndexCase::None];
    if at.committed.is_some() {
        all.push(IndexCase::Committed);
    }
    if at.versions > 0 {
        all.push(IndexCase::Older(at.versions - 1));
        all.push(IndexCase::Older(rng.below(at.versions as u64) as usize));
    }
    if !effort.full {
        let one = rng.below(all.len() as u64) as usize;
        all = vec![all[one]];
    }
    all.dedup();
    all
}

/// The cuts at a point.
fn cuts(point: usize, at: &Point, effort: Effort) -> Vec<Cut> {
    let mut rng = Rng::new(point as u64 * 31 + at.at.appended);
    let mut cuts = Vec::new();
    for tears in tears(&at.image, effort, &mut rng) {
        for index in indices(&at.index, effort, &mut rng) {
            cuts.push(Cut { point, tears: tears.clone(), index });
        }
    }
    cuts
}

fn saved(at: &IndexAt, index: IndexCase, versions: &[Saved]) -> Saved {
    match index {
        IndexCase::Durable => at.durable.clone(),
        IndexCase::Committed => at.committed.clone().unwrap_or_default(),
        IndexCase::None => Saved::default(),
        IndexCase::Older(n) => versions.get(n).cloned().unwrap_or_default(),
    }
}

fn shuffle<T>(all: &mut [T], seed: u64) {
    let mut rng = Rng::new(seed);
    for n in (1..all.len()).rev() {
        all.swap(n, rng.below(n as u64 + 1) as usize);
    }
}

/// What happened in a number of cases.
#[derive(Default, Debug)]
pub struct Tally {
    /// Cuts in the history.
    pub cuts: usize,
    /// Second cuts.
    pub second: usize,
    /// Cases after which the store went on.
    pub went_on: usize,
    /// How many records beyond the acknowledged ones were there, and how often.
    pub beyond: BTreeMap<usize, usize>,
    /// Points at which there were cuts.
    pub points: usize,
    /// Of those, how many were in the middle of what.
    pub moments: BTreeMap<Moment, usize>,
    /// Of the cuts that the effort asks for, how many were left out because time was up.
    pub left_out: usize,
}

impl Played {
    fn opened<B: Bench>(
        &self,
        point: &Point,
        cut: &Cut,
        versions: &[Saved],
        at: Progress,
        make: &dyn Fn(Content) -> B,
    ) -> Run<B> {
        let content = point.image.cut(|n, _| cut.tears.get(n).copied().unwrap_or(Tear::None));
        let index = MemIndex::of(saved(&point.index, cut.index, versions));
        let maker = Maker::new(self.history.seed + cut.point as u64, self.history.mix.clone());
        let mut run = Run::new(make(content), index, self.history.options.clone(), maker)
            .continued(self.model_at(at.acked), self.objects.clone());
        // What was acknowledged is the base; what was only appended may be there or not.
        run.first = at.acked + 1;
        let of = |ticket: u64| (ticket + 1 - self.first) as usize;
        run.records = self.records[of(at.acked)..of(at.appended)].to_vec();
        run.recorder.borrow_mut().progress = at;
        run
    }

    /// One case. `go_on`: the store goes on afterwards. Gives the points of the start-up.
    fn case<B: Bench>(
        &self,
        case: &Case,
        go_on: bool,
        want_points: bool,
        tally: &mut Tally,
        make: &dyn Fn(Content) -> B,
    ) -> (Vec<Point>, Vec<Saved>) {
        let point = &self.points[case.first.point];
        let mut run = self.opened(point, &case.first, &self.versions, point.at, make);
        if want_points || case.second.is_some() {
            run.recorder.borrow_mut().points = Some(Vec::new());
        }
        let mut recovered = run.open(case.first.point as u64);
        let mut points = run.recorder.borrow_mut().points.take().unwrap_or_default();
        let mut versions = self.versions.clone();
        versions.extend(run.index.versions());
        if let Some(second) = &case.second {
            tally.second += 1;
            let at = &points[second.point];
            run = self.opened(at, second, &versions, point.at, make);
            recovered = run.open(second.point as u64 + 7);
            points = Vec::new();
        }
        let n = run.verify(&recovered);
        *tally.beyond.entry(n).or_default() += 1;
        if recovered.how.torn_tail.is_some() && !go_on {
            // What was dropped never comes back.
            run.forget(n);
            run.close(false);
            let recovered = run.open(5);
            run.verify(&recovered);
        }
        if go_on {
            tally.went_on += 1;
            self.go_on(&mut run, n, make);
        }
        (points, versions)
    }

    /// The store that has been opened again is as good as any: at once, after some more, and after another
    /// power cut in the middle of that.
    fn go_on<B: Bench>(&self, run: &mut Run<B>, n: usize, make: &dyn Fn(Content) -> B) {
        run.forget(n);
        run.close(false);
        let recovered = run.open(3);
        run.verify(&recovered);
        for round in 0..2 {
            steps(run, 8, 20);
            run.drain();
            run.audit();
            run.close(round == 0);
            let recovered = run.open(4);
            assert_eq!(run.verify(&recovered), run.records.len());
        }
        if !run.bench.is_exact() {
            return;
        }
        steps(run, 12, 40);
        let seed = run.maker.rng.below(1 << 20);
        let content = run.bench.image().cut(|n, _| Tear::Random(seed + n as u64));
        let index = MemIndex::of(run.index.at().durable);
        let mut again = Run::new(make(content), index, run.options.clone(), run.maker.clone())
            .continued(run.base.clone(), run.objects().clone());
        again.first = run.first;
        again.records = run.records.clone();
        again.recorder.borrow_mut().progress = run.recorder.borrow().progress;
        let recovered = again.open(6);
        again.verify(&recovered);
    }

    /// All cases that the effort is worth; a failing one says how to reproduce it.
    pub fn crash<B: Bench>(&self, effort: Effort, test: &str, make: &dyn Fn(Content) -> B) -> Tally {
        let until = Instant::now().checked_add(Duration::from_secs(effort.seconds));
        let is_late = || until.is_some_and(|until| Instant::now() > until);
        let mut tally = Tally::default();
        let mut number = 0;
        let chosen = choose(&self.points, effort.points, self.history.seed);
        for n in &chosen {
            tally.points += 1;
            for moment in moments(&self.points, *n) {
                *tally.moments.entry(moment).or_default() += 1;
            }
        }
        let mut round = 0;
        loop {
            let mut any = false;
            for &n in &chosen {
                let mut cuts = cuts(n, &self.points[n], effort);
                if effort.full {
                    // Some at each point, then others, until there are no more, or time is up.
                    shuffle(&mut cuts, n as u64);
                    cuts = cuts.into_iter().skip(round * ROUND).take(ROUND).collect();
                }
                for cut in cuts {
                    any = true;
                    if is_late() {
                        tally.left_out += 1;
                        continue;
                    }
                    number += 1;
                    tally.cuts += 1;
                    self.cut(cut, number, effort, test, &mut tally, make);
                }
            }
            round += 1;
            if !effort.full || !any || tally.left_out > 0 {
                break;
            }
        }
        say(format_args!("{}: {effort:?}: {tally:?}, {round} rounds", self.history.name));
        tally
    }

    /// One cut, and at times others in the start-up after it.
    fn cut<B: Bench>(
        &self,
        cut: Cut,
        number: usize,
        effort: Effort,
        test: &str,
        tally: &mut Tally,
        make: &dyn Fn(Content) -> B,
    ) {
        let second = number.is_multiple_of(effort.second_every);
        let case = Case { first: cut, second: None };
        let go_on = number.is_multiple_of(effort.go_on_every);
        let (points, _) = self.guarded(&case, test, || self.case(&case, go_on, second, tally, make));
        if !second {
            return;
        }
        // A second crash in the start-up: in full at some, a few tears at the others.
        let effort = Effort { full: effort.full && number.is_multiple_of(16), tears: 3, ..effort };
        let step = if effort.full { 1 } else { points.len().div_ceil(4).max(1) };
        for (n, point) in points.iter().enumerate().skip(number % step).step_by(step) {
            for cut in cuts(n, point, effort) {
                let case = Case { second: Some(cut), ..case.clone() };
                let go_on = tally.second.is_multiple_of(4 * effort.go_on_every);
                self.guarded(&case, test, || self.case(&case, go_on, false, tally, make));
            }
        }
    }

    /// One case by its name, less the history's.
    pub fn crash_once<B: Bench>(&self, name: &str, make: &dyn Fn(Content) -> B) {
        let case = Case::parse(name).unwrap_or_else(|e| panic!("{e}"));
        let at = &self.points[case.first.point];
        let ranges: Vec<_> = at.image.in_flight.iter().map(|c| c.1.range()).collect();
        eprintln!("point {}: {}, {:?}, under way: bytes {ranges:?}", case.first.point, at.what, at.at);
        self.case(&case, true, false, &mut Tally::default(), make);
    }

    fn guarded<T>(&self, case: &Case, test: &str, f: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
            let second = case.second.as_ref().map(|cut| format!(":{cut}")).unwrap_or_default();
            let seed = std::env::var("STORE_SEED").map(|n| format!("STORE_SEED={n} ")).unwrap_or_default();
            eprintln!(
                "FAILED ({}): {seed}STORE_CRASH_CASE={}:{}{second} cargo test -p trefoil-storage-node \
                 --test store {test}::one_case -- --nocapture",
                self.points[case.first.point].what, self.history.name, case.first
            );
            resume_unwind(panic)
        })
    }
}
