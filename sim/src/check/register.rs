//! One block as an atomic register: is the history of its reads and writes linearizable?
//!
//! Every write has a value of its own, so the question can be answered exactly and at each step
//! (Gibbons, Korach: Testing Shared Memories, SIAM J. Comput. 26, 1997, section 4). A write and the
//! reads of its value are a *cluster*. With `lo` the earliest end and `hi` the latest start among a
//! cluster's operations, its zone is `[lo, hi]` (a forward zone) if `lo < hi`, else `[hi, lo]`. The
//! history is linearizable if and only if no two forward zones overlap, no backward zone lies within a
//! forward one, and no read ends before its write starts. Between two clusters of which not both are
//! backward, all of that is: not (`lo1 < hi2` and `lo2 < hi1`).
//!
//! A write of which nobody knows whether it took effect (its leader died) has no end of its own; it
//! counts from the moment that its value was read. Once a newer leader has begun to serve the object,
//! it either has taken effect or never will: `lo` is that moment at the latest.
//!
//! Holes have no value of their own: a read of a hole that more than one write could explain is left
//! out, which can hide a violation but never make one up.

use super::{Moment, NEVER};
use crate::payload::Value;

/// A write and the reads of its value.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What was written; 0 for a hole.
    pub value: Value,
    /// The generation of the leader that it was given to.
    pub generation: u64,
    /// When the write began.
    pub began: Moment,
    /// The earliest end among the operations; for a write that may yet take effect, [`NEVER`].
    pub lo: Moment,
    /// The latest start among the operations that ended.
    pub hi: Moment,
    /// When the write was acknowledged, or [`NEVER`].
    pub acked: Moment,
    /// Somebody has seen that it took effect: it was acknowledged, or read.
    pub seen: bool,
    /// It was given to a leader that a newer one had replaced: it can never take effect.
    pub void: bool,
    /// Its client was told that it failed; its leader will not issue it again.
    pub given_up: bool,
}

/// What a block may not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Nobody has written it, or only after it was read.
    FromNowhere,
    /// It was given to a leader that had already been replaced in this object.
    Void,
    /// It was overwritten by this value, which was read or acknowledged.
    Overwritten {
        /// The other value.
        by: Value,
    },
}

/// What is remembered of one block.
#[derive(Clone, Debug)]
pub struct Register {
    clusters: Vec<Cluster>,
    /// Holes that were forgotten because something later was seen, up to here: a read that began before
    /// it may be of one of them.
    forgotten_holes: Moment,
    /// Values that were forgotten, and since when they may not be seen any more.
    forgotten: Vec<(Value, Moment)>,
}

impl Default for Register {
    fn default() -> Register {
        let first = Cluster {
            value: 0,
            generation: 0,
            began: 0,
            lo: 0,
            hi: 0,
            acked: 0,
            seen: true,
            void: false,
            given_up: false,
        };
        Register { clusters: vec![first], forgotten_holes: 0, forgotten: Vec::new() }
    }
}

/// More clusters than this, and those that do not matter any more are dropped.
const KEEP: usize = 12;

impl Register {
    /// A write begins. `void`: its leader has been replaced already.
    pub fn begin(&mut self, value: Value, generation: u64, now: Moment, void: bool) {
        if self.clusters.len() > KEEP {
            self.forget();
        }
        self.clusters.push(Cluster {
            value,
            generation,
            began: now,
            lo: NEVER,
            hi: now,
            acked: NEVER,
            seen: false,
            void,
            given_up: false,
        });
    }

    fn find(&self, value: Value, began: Moment) -> Option<usize> {
        self.clusters.iter().position(|c| c.value == value && (value != 0 || c.began == began))
    }

    /// A write that began at `began` (by [`Register::begin`]'s clock) is acknowledged.
    pub fn acknowledge(&mut self, value: Value, began: Moment, now: Moment) -> Result<(), Wrong> {
        let Some(at) = self.find(value, began) else {
            // Forgotten: something later was seen, which is fine for a write; only its value may not be
            // seen now.
            return Ok(());
        };
        self.clusters[at].acked = now;
        self.touch(at, began, now)
    }

    /// The write that began at `began` failed: it has taken effect, or does so before its leader serves
    /// the object in another ballot, or never.
    pub fn give_up(&mut self, value: Value, began: Moment) {
        if let Some(at) = self.find(value, began) {
            self.clusters[at].given_up = true;
        }
    }

    /// A read that began at `start` ended now with `value`. True if it could be told which write it
    /// shows.
    pub fn read(&mut self, value: Value, start: Moment, now: Moment) -> Result<bool, Wrong> {
        if value != 0 {
            let Some(at) = self.find(value, 0) else {
                return match self.forgotten.iter().find(|(v, _)| *v == value) {
                    Some((_, since)) if start > *since => Err(Wrong::Overwritten { by: self.newest_seen() }),
                    Some(_) => Ok(false),
                    None => Err(Wrong::FromNowhere),
                };
            };
            if self.clusters[at].void {
                return Err(Wrong::Void);
            }
            self.touch(at, start, now)?;
            return Ok(true);
        }
        let mut one = None;
        for at in 0..self.clusters.len() {
            let c = &self.clusters[at];
            if c.value == 0 && !c.void && self.overwritten(at, start).is_none() {
                if one.is_some() {
                    return Ok(false);
                }
                one = Some(at);
            }
        }
        match one {
            _ if start <= self.forgotten_holes => Ok(false),
            Some(at) => self.touch(at, start, now).map(|()| true),
            None => Err(Wrong::Overwritten { by: self.newest_seen() }),
        }
    }

    /// May a read that began and ended now show `value`?
    pub fn allows(&self, value: Value, now: Moment) -> Result<(), Wrong> {
        let mut why = Wrong::FromNowhere;
        for at in 0..self.clusters.len() {
            let c = &self.clusters[at];
            if c.value != value {
                continue;
            }
            if c.void {
                why = Wrong::Void;
                continue;
            }
            match self.overwritten(at, now) {
                None => return Ok(()),
                Some(by) => why = Wrong::Overwritten { by },
            }
        }
        if self.forgotten.iter().any(|(v, _)| *v == value) || (value == 0 && why == Wrong::FromNowhere) {
            why = Wrong::Overwritten { by: self.newest_seen() };
        }
        Err(why)
    }

    /// The value whose cluster forbids that cluster `at` is read by an operation that starts at `start`
    /// and ends now.
    fn overwritten(&self, at: usize, start: Moment) -> Option<Value> {
        let (lo, hi) = (self.clusters[at].lo, self.clusters[at].hi.max(start));
        let others = self.clusters.iter().enumerate().filter(|(n, e)| *n != at && e.seen);
        others.filter(|(_, e)| lo < e.hi && e.lo < hi).map(|(_, e)| e.value).next()
    }

    /// An operation of cluster `at` that started at `start` ends now.
    fn touch(&mut self, at: usize, start: Moment, now: Moment) -> Result<(), Wrong> {
        let c = &mut self.clusters[at];
        c.lo = c.lo.min(now);
        c.hi = c.hi.max(start);
        c.seen = true;
        let (lo, hi) = (c.lo, c.hi);
        for (n, e) in self.clusters.iter().enumerate() {
            // Never true of two backward zones.
            if n != at && e.seen && lo < e.hi && e.lo < hi {
                return Err(Wrong::Overwritten { by: e.value });
            }
        }
        Ok(())
    }

    /// From `now` on a leader of `generation` serves the object in a ballot of its own: what older leaders
    /// left, and what it has given up itself, has taken effect or never will. What it was given before and
    /// has not answered is left open: it is issued again, or is durable already and waits for a Confirm.
    pub fn opened(&mut self, generation: u64, now: Moment) {
        for c in &mut self.clusters {
            let over = c.generation < generation || (c.generation == generation && c.given_up);
            if over && c.lo == NEVER {
                c.lo = now;
            }
        }
    }

    /// When the write of this value was acknowledged; [`NEVER`] if it was not or is not known any more.
    pub fn acknowledged(&self, value: Value) -> Moment {
        self.clusters.iter().filter(|c| c.value == value).map(|c| c.acked).max().unwrap_or(NEVER)
    }

    /// The value that was seen and began last: for messages to people.
    pub fn newest_seen(&self) -> Value {
        self.clusters.iter().filter(|c| c.seen).max_by_key(|c| c.began).map_or(0, |c| c.value)
    }

    /// Drops clusters that were overwritten and cannot come into conflict with a cluster that may still
    /// change, except by being read again, which is remembered as forbidden.
    fn forget(&mut self) {
        let mut at = 0;
        while at < self.clusters.len() {
            let c = &self.clusters[at];
            // Since when any read that starts later is a violation.
            let over = self
                .clusters
                .iter()
                .filter(|d| d.seen && d.began > c.lo && d.lo != NEVER)
                .map(|d| d.lo)
                .min();
            let clear = self.clusters.iter().enumerate().all(|(n, e)| n == at || e.lo > c.hi);
            match over {
                Some(since) if clear => {
                    if c.value == 0 {
                        self.forgotten_holes = self.forgotten_holes.max(since);
                    } else {
                        self.forgotten.push((c.value, since));
                    }
                    self.clusters.remove(at);
                }
                _ => at += 1,
            }
        }
    }

    /// Clusters that are remembered.
    pub fn len(&self) -> usize {
        self.clusters.len()
    }

    /// Never: the first hole is always there or forgotten.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `value` from `a` to `b` and acknowledges it.
    fn write(r: &mut Register, value: Value, a: Moment, b: Moment) -> Result<(), Wrong> {
        r.begin(value, 1, a, false);
        r.acknowledge(value, a, b)
    }

    #[test]
    fn reads_show_the_last_write() {
        let mut r = Register::default();
        assert_eq!(r.read(0, 1, 2), Ok(true));
        write(&mut r, 7, 3, 4).unwrap();
        assert_eq!(r.read(7, 5, 6), Ok(true));
        write(&mut r, 8, 7, 8).unwrap();
        assert_eq!(r.read(7, 9, 10), Err(Wrong::Overwritten { by: 8 }));
    }

    #[test]
    fn a_hole_after_an_acknowledged_write_is_a_lost_write() {
        let mut r = Register::default();
        write(&mut r, 7, 3, 4).unwrap();
        assert_eq!(r.read(0, 5, 6), Err(Wrong::Overwritten { by: 7 }));
        assert_eq!(r.allows(0, 6), Err(Wrong::Overwritten { by: 7 }));
        r.begin(0, 1, 7, false);
        assert_eq!(r.read(0, 8, 9), Ok(true), "a zero under way explains it");
    }

    #[test]
    fn overlapping_operations_may_go_either_way_but_only_one_way() {
        let mut r = Register::default();
        r.begin(7, 1, 1, false);
        assert_eq!(r.read(7, 2, 3), Ok(true), "an unacknowledged write may be seen");
        assert_eq!(r.read(0, 4, 5), Err(Wrong::Overwritten { by: 7 }), "but not be unseen again");
        let mut r = Register::default();
        r.begin(7, 1, 1, false);
        assert_eq!(r.read(0, 2, 6), Ok(true), "a read that overlaps may still show the old");
        assert_eq!(r.read(7, 3, 7), Ok(true));
    }

    #[test]
    fn two_writes_at_once_have_one_order() {
        let mut r = Register::default();
        r.begin(7, 1, 1, false);
        r.begin(8, 1, 2, false);
        r.acknowledge(7, 1, 3).unwrap();
        r.acknowledge(8, 2, 4).unwrap();
        assert_eq!(r.read(7, 5, 6), Ok(true));
        assert_eq!(r.read(8, 7, 8), Err(Wrong::Overwritten { by: 7 }));
    }

    #[test]
    fn a_read_of_what_nobody_wrote_is_from_nowhere() {
        let mut r = Register::default();
        assert_eq!(r.read(99, 1, 2), Err(Wrong::FromNowhere));
    }

    #[test]
    fn a_dead_leaders_write_takes_effect_before_its_successor_serves_or_never() {
        let mut r = Register::default();
        write(&mut r, 5, 1, 2).unwrap();
        r.begin(6, 1, 3, false); // never acknowledged
        assert_eq!(r.allows(6, 4), Ok(()));
        r.opened(2, 10);
        assert_eq!(r.allows(5, 11), Ok(()));
        assert_eq!(r.allows(6, 11), Ok(()), "nobody has looked yet");
        assert_eq!(r.read(5, 11, 12), Ok(true), "rolled back");
        assert_eq!(r.allows(6, 13), Err(Wrong::Overwritten { by: 5 }));
        assert_eq!(r.read(6, 13, 14), Err(Wrong::Overwritten { by: 5 }), "it came back");
    }

    #[test]
    fn a_write_that_failed_takes_effect_before_the_next_ballot_or_never() {
        let mut r = Register::default();
        write(&mut r, 5, 1, 2).unwrap();
        r.begin(6, 1, 3, false);
        r.give_up(6, 3);
        assert_eq!(r.allows(6, 4), Ok(()));
        r.opened(1, 10);
        assert_eq!(r.read(5, 11, 12), Ok(true));
        assert_eq!(r.read(6, 13, 14), Err(Wrong::Overwritten { by: 5 }));
    }

    #[test]
    fn what_is_given_to_a_replaced_leader_never_takes_effect() {
        let mut r = Register::default();
        r.opened(2, 1);
        r.begin(6, 1, 3, true);
        assert_eq!(r.read(6, 4, 5), Err(Wrong::Void));
        assert_eq!(r.allows(6, 4), Err(Wrong::Void));
    }

    #[test]
    fn an_ambiguous_hole_is_left_out() {
        let mut r = Register::default();
        r.begin(0, 1, 1, false); // a zero that may never take effect
        assert_eq!(r.read(0, 2, 3), Ok(false));
        write(&mut r, 7, 4, 5).unwrap();
        assert_eq!(r.read(0, 6, 7), Ok(true), "only the zero under way explains it");
        assert_eq!(r.read(7, 8, 9), Err(Wrong::Overwritten { by: 0 }));
    }

    #[test]
    fn forgetting_keeps_what_is_forbidden() {
        let mut r = Register::default();
        for n in 1..=100 {
            write(&mut r, n, n * 10, n * 10 + 1).unwrap();
            assert_eq!(r.read(n, n * 10 + 2, n * 10 + 3), Ok(true));
        }
        assert!(r.len() <= KEEP + 1, "{}", r.len());
        assert_eq!(r.read(3, 2000, 2001), Err(Wrong::Overwritten { by: 100 }));
        assert_eq!(r.read(0, 2000, 2001), Err(Wrong::Overwritten { by: 100 }));
        assert_eq!(r.allows(3, 2002), Err(Wrong::Overwritten { by: 100 }));
        assert_eq!(r.read(3, 35, 2001), Ok(false), "it began when that was the value");
        assert_eq!(r.read(100, 2002, 2003), Ok(true));
    }
}
