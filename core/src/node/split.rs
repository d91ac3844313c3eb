//! Placement groups that are split (section 7 of `docs/protocol.md`).
//!
//! ```text
//!   p at 8  ──Open, List, Compare, Digest, or a tick──►  p and its children at 16
//!           one record: promises and lines copied, objects and what is behind by hash
//! ```
//!
//! A node hears from its map that a pool has more placement groups. It splits what it has of one when it is first
//! asked about that, or about one that splits off from it, and the others a few at each tick: so no pool is split at
//! one go, and a node that was away for several splits makes one of them. A placement group of which it has nothing
//! begins as one of the pool as it is.
//!
//! With the record, every ballot of before is over here: the leaders that were listened to are told so, and an Open
//! under the new epoch is needed. Else a Confirm, which names no object, would speak for the half that is gone. A
//! node whose map does not reach to what it has split ([`Node::knows_split`]) answers nothing about it: it may be
//! that of a past life.

use super::{Node, Output};
use crate::crush::{object_pg, pg_ancestors, pg_split_children};
use crate::ids::*;
use crate::limits::{SPLIT_PGS_PER_TICK, SPLITS_PER_TICK};
use crate::message::Refusal;
use crate::placement::PoolPgs;
use crate::record::Record;
use std::ops::Bound;

impl<P: Clone> Node<P> {
    /// Pools have so many placement groups. They never have fewer.
    pub(super) fn learn_pools(&mut self, pools: Vec<(PoolId, PoolPgs)>) {
        for (pool, pgs) in pools {
            let known = self.pools.entry(pool).or_insert(pgs);
            if pgs.now > known.now {
                *known = pgs;
            }
        }
    }

    /// The node's map says as much about splits of the placement group as the node has carried out.
    pub(super) fn knows_split(&self, pg: PgId) -> bool {
        let level = self.state.pgs.get(&pg).map_or(0, |state| state.pg_num);
        level == 0 || self.pools.get(&pg.pool).is_some_and(|pool| pool.now >= level)
    }

    /// The node has the placement group as a pool of so many has it; none: it has nothing of it.
    fn level(&self, pg: PgId, pool: PoolPgs) -> Option<u32> {
        self.state.pgs.get(&pg).map(|state| state.level(pool.first))
    }

    /// What is here of the placement group, and of those that split off from it, is not as the map has it.
    pub(super) fn needs_split(&self, pg: PgId) -> bool {
        let Some(pool) = self.pools.get(&pg.pool).copied() else { return false };
        pool.now != pool.first
            && self.level(pg, pool).is_some_and(|level| {
                level < pool.now && !pg_split_children(pg.pg, level, pool.now).is_empty()
            })
    }

    /// Splits what the node has of the placement group, or of the one that it splits off from, if the map says
    /// so.
    pub(super) fn split_for(&mut self, pg: PgId, out: &mut Vec<Output<P>>) {
        let Some(pool) = self.pools.get(&pg.pool).copied() else { return };
        if pool.now == pool.first || pg.pg >= pool.now {
            return;
        }
        if self.state.pgs.contains_key(&pg) {
            if self.needs_split(pg) {
                self.split(pg, pool, out);
            }
            return;
        }
        for at in pg_ancestors(pg.pg) {
            let parent = PgId { pg: at, ..pg };
            let Some(level) = self.level(parent, pool) else { continue };
            if level <= pg.pg && pg_split_children(at, level, pool.now).contains(&pg.pg) {
                return self.split(parent, pool, out);
            }
        }
        // Nothing is here that it could have split off from.
        self.persist(Record::Split { pg, from: pool.now, to: pool.now }, out);
    }

    fn split(&mut self, pg: PgId, pool: PoolPgs, out: &mut Vec<Output<P>>) {
        let from = self.level(pg, pool).unwrap_or(pool.now);
        let record = Record::Split { pg, from, to: pool.now };
        self.counters.splits += 1;
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::split_without_record() {
            return self.tally.apply(&mut self.state, &record);
        }
        self.persist(record, out);
        let moved = |object: &ObjectId| object.group.pg == pg && self.state.place(*object) != *object;
        // They are found again by the next read.
        let gone: Vec<(ObjectId, u32)> =
            self.heals.keys().filter(|(object, _)| moved(object)).copied().collect();
        let damaged: Vec<ObjectId> = self.damaged.iter().filter(|object| moved(object)).copied().collect();
        gone.iter().for_each(|key| _ = self.heals.remove(key));
        for object in damaged {
            self.damaged.remove(&object);
            let now = self.state.place(object);
            self.damaged.insert(now);
        }
        self.scrub_follows_split(pg, &pg_split_children(pg.pg, from, pool.now));
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::wrong_group() {
            return;
        }
        let mut led: Vec<GroupId> = self.conns.keys().filter(|group| group.pg == pg).copied().collect();
        led.sort_unstable();
        for group in led {
            self.cancel_repairs(group);
            let (conn, ballot) = (self.conns.remove(&group), self.group(group).map(|s| s.promised.ballot));
            if let (Some(conn), Some(ballot)) = (conn, ballot) {
                let msg = self.refusal(group, ballot, Refusal::Epoch);
                self.hold_leader(conn, msg, out);
            }
        }
    }

    /// A few more of those that nobody has asked about.
    pub(super) fn tick_splits(&mut self, out: &mut Vec<Output<P>>) {
        if self.pools.values().all(|pool| pool.now == pool.first) {
            return;
        }
        let from = self.split_cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.state.pgs.range((from, Bound::Unbounded)).take(SPLIT_PGS_PER_TICK);
        let some: Vec<PgId> = some.map(|(pg, _)| *pg).collect();
        let mut done = 0;
        self.split_cursor = None; // at the end: begin again
        for pg in some {
            self.split_cursor = Some(pg);
            if self.needs_split(pg) {
                self.split_for(pg, out);
                done += 1;
            }
            if done == SPLITS_PER_TICK {
                return;
            }
        }
    }

    /// The object belongs to its group, as far as the node has split that.
    pub(super) fn belongs(&self, group: GroupId, index: ObjectIndex) -> bool {
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::wrong_group() {
            return true;
        }
        let level = self.split_level(group.pg);
        level == 0 || object_pg(group.volume.0, index, level) == group.pg.pg
    }

    /// What was split here as in a pool of so many; 0: nothing ever was.
    pub(super) fn split_level(&self, pg: PgId) -> u32 {
        // Looked at for each read and write: most pools were never split.
        if !self.has_split {
            return 0;
        }
        self.state.pgs.get(&pg).map_or(0, |state| state.pg_num)
    }
}

#[cfg(test)]
mod tests;
