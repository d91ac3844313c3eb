//! Placement groups that split: who wishes for it, how nodes hear of it, and what each of their splits is held against.
//!
//! A wish waits until nothing moves (the map refuses it before), as an administrator's would. The first placement
//! groups of a run are few, so that a node which is away for a while comes back to several splits at once.

use super::moves::{new_mover, pg_id, plan_split};
use super::{Event, World};
use crate::check;
use crate::coverage::Cover;
use crate::plan::{PGS_MAX, POOL};
use trefoil_core::crush::pg_split_children;
use trefoil_core::map::Command;
use trefoil_core::node::Input;
use trefoil_core::placement::PoolPgs;
use trefoil_core::{NodeId, PgId};

impl World {
    /// Somebody wants more placement groups.
    pub(super) fn split_wish(&mut self) {
        let Some(every) = plan_split(&self.plan) else { return };
        if !self.faulty || self.plan.pgs.len() >= PGS_MAX {
            return;
        }
        if let Some(after) =
            self.moves.as_ref().map(|moves| moves.split_after).filter(|after| *after > self.now)
        {
            return self.queue.push(after, Event::SplitWish);
        }
        let still = self.nothing_moves();
        let (seen, more) = (self.plan.pgs.len() as u32, self.rng.between(1, 4) as u32);
        let pg_num = (seen + more).min(PGS_MAX as u32);
        // Now and then by one who has not heard of the last one.
        let seen = if self.rng.one_in(8) { seen - 1 } else { seen };
        if let Some(moves) = &mut self.moves
            && !moves.split_wanted
        {
            moves.split_wanted = true;
            moves.mover = new_mover(false);
            self.movers_begin(false);
        }
        // Also where it will be refused.
        let now = still || self.rng.one_in(4);
        if now {
            self.propose(&Command::SetPgNum { pool: POOL, seen, pg_num });
        }
        // Where several monitors have to agree it takes a while, or is lost.
        let patience = if now && self.replicas.is_some() { every.0.clamp(5_000, 50_000) } else { 2_000 };
        self.queue.push(self.now + patience, Event::SplitWish);
    }

    /// The map has it: so has the plan, and the news goes out.
    pub(super) fn pool_is_split(&mut self) {
        let Some(every) = plan_split(&self.plan) else { return };
        let after = self.now + self.rng.between(every.0, every.1);
        let Some(moves) = &mut self.moves else { return };
        self.coverage.count(Cover::PoolSplits);
        (moves.split_wanted, moves.split_after) = (false, after);
        let crush = moves.plan.crush && self.faulty;
        moves.mover = new_mover(crush);
        self.movers_begin(crush);
        self.calm_moved();
        let Some(moves) = &mut self.moves else { return };
        let before = self.plan.pgs.clone();
        let mut first = None;
        for (id, pg) in moves.map.pool_pgs(POOL) {
            let (at, config) = (id.pg as usize, pg.config());
            match self.plan.pgs.get_mut(at) {
                Some(known) if *known == config => continue,
                Some(known) => {
                    *known = config.clone();
                    moves.history[at].push(config);
                }
                None => {
                    self.plan.pgs.push(config.clone());
                    moves.history.push(vec![config]);
                }
            }
            first = first.or(Some(at));
        }
        let Some(at) = first else { return };
        for slot in 0..check::SLOTS {
            self.check_choice(slot);
        }
        let after = self.plan.pgs[at].clone();
        self.changed(pg_id(at), &after);
        self.crash_behind(&before[at], &after);
    }

    /// A node is told how many placement groups there are, in the map that it is given next.
    pub(super) fn tell_pools(&mut self, ni: usize, now: usize) {
        let first =
            self.moves.as_ref().and_then(|moves| moves.map.pools.get(&POOL)).map(|pool| pool.pg_num_first);
        if let (Some(first), Some(_)) = (first, plan_split(&self.plan)) {
            self.node_input(ni, Input::Pools(vec![(POOL, PoolPgs { first, now: now as u32 })]));
        }
    }

    /// A node splits a placement group.
    pub(super) fn node_splits(&mut self, ni: usize, pg: PgId, from: u32, to: u32) {
        let children = pg_split_children(pg.pg, from, to);
        if children.is_empty() {
            return;
        }
        self.coverage.count(Cover::NodeSplits);
        if children.len() > 1 {
            self.coverage.count(Cover::SplitsInOne);
        }
        if !self.plan.pgs[pg.pg as usize].takes_part(NodeId(ni as u32)) {
            self.coverage.count(Cover::SplitsOutside);
        }
        for (group, state) in self.given[ni].groups.iter().filter(|(group, _)| group.pg == pg) {
            let goes = |index: &&u32| (self.plan.pg_of)(group.volume, **index, to) != pg.pg;
            let gone = state.objects.keys().filter(goes).count();
            self.coverage.add(Cover::ObjectsSplit, gone as u64);
        }
        // Right before the record, behind it, or before it is durable.
        let percent = self.plan.moves.as_ref().map_or(0, |plan| plan.crash_percent);
        if self.faulty && self.rng.percent(percent / 4) {
            self.coverage.count(Cover::MoveCrashes);
            let life = self.nodes[ni].life;
            let at = self.now + self.rng.between(0, self.plan.flush.1 * 2);
            self.queue.push(at, Event::NodeFails { ni, life });
        }
    }
}
