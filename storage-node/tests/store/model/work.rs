//! What a store did while a test ran it, and what it was in the middle of at each point: so that a test can
//! ask whether it still exercises what it is there for, and choose its power cuts where they matter.

use super::crash::Point;
use std::collections::BTreeSet;
use std::fmt;
use trefoil_storage_node::device::image::{Content, Rng};
use trefoil_storage_node::store::Stats;

/// Points around the moment at which segments were freed that belong to it.
const FREE_POINTS: usize = 6;

/// Sums over all lives of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Blocks of log written.
    pub blocks: u64,
    /// Blocks that cleaning has moved.
    pub moved: u64,
    /// Segments that became free.
    pub freed: u64,
    /// Of those, with reads under way.
    pub freed_under_reads: u64,
    /// Snapshots whose root was written.
    pub snapshots: u64,
    /// Commits of the index.
    pub commits: u64,
    /// Pages of deleted objects that were reaped.
    pub reaped: u64,
    /// Times that a segment was begun that had been in use before.
    pub reused: u64,
    /// The same of the segment that was begun most often.
    pub turns: u64,
}

impl Work {
    /// What has happened between two looks at the counters.
    pub fn note(&mut self, before: &Stats, now: &Stats) {
        self.blocks += (now.bytes_written - before.bytes_written) / 4096;
        self.moved += now.moved_blocks - before.moved_blocks;
        self.snapshots += now.snapshots - before.snapshots;
        self.commits += now.checkpoints - before.checkpoints;
        self.reaped += before.pages_dead.saturating_sub(now.pages_dead) as u64;
        let freed = now.segments_freed - before.segments_freed;
        self.freed += freed;
        if before.reads > 0 && now.reads > 0 {
            self.freed_under_reads += freed;
        }
    }
    /// With that of another.
    pub fn add(&mut self, other: &Work) {
        self.blocks += other.blocks;
        self.moved += other.moved;
        self.freed += other.freed;
        self.freed_under_reads += other.freed_under_reads;
        self.snapshots += other.snapshots;
        self.commits += other.commits;
        self.reaped += other.reaped;
        self.reused += other.reused;
        self.turns = self.turns.max(other.turns);
    }
    /// Panics where it is less than this: the test has gone thin.
    pub fn at_least(&self, least: &Work) {
        let all = |w: &Work| {
            [
                w.blocks,
                w.moved,
                w.freed,
                w.freed_under_reads,
                w.snapshots,
                w.commits,
                w.reaped,
                w.reused,
                w.turns,
            ]
        };
        let enough = all(self).iter().zip(all(least)).all(|(have, least)| *have >= least);
        assert!(enough, "the test exercises {self:?}, which is less than {least:?}");
    }
}

/// Prints a line if `STORE_COVERAGE` is set.
pub fn say(line: impl fmt::Display) {
    if std::env::var_os("STORE_COVERAGE").is_some() {
        println!("{line}");
    }
}

/// What the device was told to do at a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    #[default]
    None,
    /// A batch of the hot stream.
    Batch,
    /// One of the cold stream.
    Cold,
    /// One at the beginning of a segment that was in use before.
    Reuse,
    /// A root.
    Root,
    /// A discard or zeroing.
    Prepare,
}

/// What is written at `offset`, of which these are the first bytes.
pub fn kind_of(offset: u64, bytes: &[u8], durable: &Content, segment: u64) -> Kind {
    let Some(inside) = offset.checked_sub(super::DATA) else {
        return Kind::Root;
    };
    let mut before = [0; 8];
    durable.read(offset, &mut before);
    if inside.is_multiple_of(segment) && before == *b"TRFLBATC" {
        Kind::Reuse
    } else if bytes.get(18).is_some_and(|flags| flags & 1 == 1) {
        Kind::Cold
    } else {
        Kind::Batch
    }
}

/// What the store was in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The snapshot is durable and its root is not, or has just become so.
    Root,
    /// Segments are about to be freed, or have just been.
    Free,
    /// The first batch in a segment that was in use before.
    Reuse,
    /// Blocks are being moved.
    Move,
    /// The index is committing.
    Commit,
    /// A segment is being discarded or zeroed.
    Prepare,
}

/// The moments of a point.
pub fn moments(points: &[Point], n: usize) -> Vec<Moment> {
    let around = |far: usize| &points[n.saturating_sub(far)..(n + far + 1).min(points.len())];
    let near = |kind: Kind| around(1).iter().any(|p| p.kind == kind);
    let freed = |p: Option<&Point>| p.map(|p| p.at.freed);
    let frees = around(FREE_POINTS);
    [
        (near(Kind::Root), Moment::Root),
        (freed(frees.first()) != freed(frees.last()), Moment::Free),
        (near(Kind::Reuse), Moment::Reuse),
        (points[n].kind == Kind::Cold, Moment::Move),
        (points[n].index.committed.is_some(), Moment::Commit),
        (near(Kind::Prepare), Moment::Prepare),
    ]
    .into_iter()
    .filter_map(|(is, moment)| is.then_some(moment))
    .collect()
}

/// Some of the points, at most about this many: as many of each moment, and others.
pub fn choose(points: &[Point], most: usize, seed: u64) -> Vec<usize> {
    if points.len() <= most {
        return (0..points.len()).collect();
    }
    let mut order: Vec<usize> = (0..points.len()).collect();
    let mut rng = Rng::new(seed ^ 0xc0ffee);
    for n in (1..order.len()).rev() {
        order.swap(n, rng.below(n as u64 + 1) as usize);
    }
    let mut chosen = BTreeSet::new();
    let kinds = [Moment::Root, Moment::Free, Moment::Reuse, Moment::Move, Moment::Commit, Moment::Prepare];
    for wanted in kinds {
        let such = order.iter().filter(|n| moments(points, **n).contains(&wanted));
        chosen.extend(such.take(most / 8));
    }
    for n in order {
        if chosen.len() >= most {
            break;
        }
        chosen.insert(n);
    }
    chosen.into_iter().collect()
}
