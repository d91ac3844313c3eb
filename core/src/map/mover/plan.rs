//! Which moves begin: towards where CRUSH wants the placement groups, as far as limits and gates allow.
//!
//! A move makes nothing less safe at any step, but it costs: room, reads and writes, and an epoch. So what
//! saves copies (off nodes that are down, lost or out) comes first, and what only spreads them better waits
//! while a placement group has a member down, unless the administrator says otherwise. Nothing begins that
//! could not end: towards a node that is down, was not heard of or has no room, or in a placement group
//! that has no majority.

use super::{Action, Mover, PLAN_PGS_PER_STEP};
use crate::ids::*;
use crate::map::diff::Sizes;
use crate::map::{ClusterMap, Command, MOVES_MAX, Move};
use crate::placement::{Pg, PgConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Of a node's room, so much may be used when the moves to it have ended, in percent.
pub const TARGET_FILL_MAX_PERCENT: u64 = crate::map::outs::FILL_MAX_PERCENT;
/// How large copies are is found out again after so many steps: it takes a look at each placement group.
const SIZES_STEPS: u32 = 60;

/// Fences that are asked for in one step, over all moves: 16 bytes each. Each move asks its nodes, and each of them with
/// a fence for every volume. With very many volumes fewer moves than the limits allow begin.
const FENCES_PER_STEP_MAX: usize = 1 << 22;
/// Nodes that take part in a move, at most.
const NODES_PER_MOVE: usize = crate::limits::SET_MEMBERS_MAX + 1;

/// Why a placement group that does not live where it should is not moved now.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waits {
    /// More than a third of the nodes is away, or was not heard of yet: nothing begins.
    TooManyAway,
    /// It has no majority of members up: it could not be moved to its end.
    NoMajority,
    /// Its members are well, and some placement group has a member down: that comes first.
    Degraded,
    /// Whoever it should go to is down, lost, or was not heard of since this monitor leads.
    TargetAway,
    /// Whoever it should go to would be too full.
    NoRoom,
    /// An administrator has undone its move.
    Held,
    /// As many moves are under way as may be.
    Limits,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Waits::TooManyAway => "more than a third of the nodes is away",
            Waits::NoMajority => "no majority of its members is up",
            Waits::Degraded => "placement groups with a member down come first",
            Waits::TargetAway => "the new node is away",
            Waits::NoRoom => "the new node has no room for it",
            Waits::Held => "undone by an administrator; `trefoil move resume` lets it begin again",
            Waits::Limits => "as many moves are under way as the limits allow",
        })
    }
}

/// Who comes and goes by moves.
struct Load {
    /// Moves that are under way or begin now, by node.
    moves: BTreeMap<NodeId, usize>,
    /// Of these, those to the node.
    coming: BTreeMap<NodeId, u64>,
}

impl Load {
    fn new(map: &ClusterMap) -> Load {
        let mut load = Load { moves: BTreeMap::new(), coming: BTreeMap::new() };
        map.moves.active.values().for_each(|it| load.add(it));
        load
    }

    fn add(&mut self, it: &Move) {
        *self.moves.entry(it.from).or_default() += 1;
        *self.moves.entry(it.to).or_default() += 1;
        *self.coming.entry(it.to).or_default() += 1;
    }
}

impl Mover {
    /// Why placement groups stay where they should not, in the present round over all of them: how many for
    /// each reason, as far as it has come.
    pub fn waits(&self) -> &BTreeMap<Waits, u32> {
        &self.waits
    }

    pub(super) fn age_sizes(&mut self) {
        if let Some((_, age)) = &mut self.sizes {
            *age += 1;
        }
        self.sizes.take_if(|(_, age)| *age > SIZES_STEPS);
    }

    /// Starts moves towards where CRUSH wants the placement groups; none while more than a third of the
    /// nodes is away.
    pub(super) fn plan(&mut self, map: &ClusterMap, out: &mut Vec<Action>) {
        if self.settled == map.layout && map.moves.active.is_empty() {
            return self.waits.clear();
        }
        let heard = |node: &NodeId| self.rooms.as_ref().is_none_or(|rooms| rooms.contains_key(node));
        let there = |node: &NodeId| is_up(map, *node) && heard(node);
        let away = map.nodes.keys().filter(|node| !there(node)).count();
        if away * 3 > map.nodes.len() {
            self.waits = [(Waits::TooManyAway, 1)].into();
            return;
        }
        self.waits.remove(&Waits::TooManyAway);
        let limits = map.moves.limits;
        let most =
            self.limits.cluster.min(MOVES_MAX).min(limits.cluster as usize).min(moves_of(map.volumes.len()));
        let per_node = self.limits.node.min(limits.node as usize);
        let mut left = most.saturating_sub(map.moves.active.len());
        let mut load = Load::new(map);
        // Looked at once, and only where a node is down.
        let mut degraded = None;
        let mut placer = map.placer();
        for _ in 0..PLAN_PGS_PER_STEP {
            if left == 0 {
                self.waits.entry(Waits::Limits).or_insert(0);
                return;
            }
            let Some(pg) = self.next_pg(map) else { return };
            let Some(pool) = map.pools.get(&pg.pool) else { continue };
            let Some(members) = map.members(pg) else { continue };
            if map.moves.active.contains_key(&pg) {
                self.round = 0; // to be looked at again when it has ended
                continue;
            }
            // A rule that finds too few places is no reason to move anything.
            let Ok(wanted) = placer.place(pg.pool, pool, pg.pg) else { continue };
            let config = members.config();
            if wanted.iter().all(|node| config.is_member(*node)) {
                continue;
            }
            // From here on there is something to be done, now or later.
            self.round = 0;
            let mut degraded = || *degraded.get_or_insert_with(|| any_degraded(map));
            let it = match self.choose(map, (pg, &config, members), &wanted, &load, &mut degraded) {
                Ok(it) => it,
                Err(why) => {
                    *self.waits.entry(why).or_default() += 1;
                    continue;
                }
            };
            let free = |node| load.moves.get(&node).is_none_or(|moves| *moves < per_node);
            if !free(it.from) || !free(it.to) {
                *self.waits.entry(Waits::Limits).or_default() += 1;
                continue;
            }
            load.add(&it);
            left -= 1;
            let Move { from, to } = it;
            out.push(Action::Propose(Command::StartMove { pg, epoch: config.epoch, from, to }));
        }
    }

    /// One member that should not be there, and one that should: first those who are lost or down.
    fn choose(
        &mut self,
        map: &ClusterMap,
        (pg, config, members): (PgId, &PgConfig, Pg<'_>),
        wanted: &[NodeId],
        load: &Load,
        degraded: &mut impl FnMut() -> bool,
    ) -> Result<Move, Waits> {
        if map.moves.held.contains(&pg) {
            return Err(Waits::Held);
        }
        if !config.is_quorum(|node| is_up(map, node)) {
            return Err(Waits::NoMajority);
        }
        let leaves = config.new.iter().copied().filter(|node| !wanted.contains(node));
        let well =
            |node: &NodeId| is_up(map, *node) && map.nodes.get(node).is_some_and(|it| it.out.is_none());
        let from = leaves.min_by_key(|node| (is_up(map, *node), well(node))).ok_or(Waits::TargetAway)?;
        if well(&from) && !map.moves.limits.while_degraded && degraded() {
            return Err(Waits::Degraded);
        }
        let coming = wanted.iter().copied().filter(|node| !config.is_member(*node));
        let mut why = Waits::TargetAway;
        for to in coming {
            if !is_up(map, to) {
                continue;
            }
            let Some(rooms) = &self.rooms else { return Ok(Move { from, to }) };
            let Some(room) = rooms.get(&to) else { continue };
            let (sizes, _) = self.sizes.get_or_insert_with(|| (Sizes::new(map, rooms), 0));
            let (copy, _) = sizes.copy(pg.pool, members.new);
            // What those that are under way have brought so far counts twice: it is an estimate.
            let copies = load.coming.get(&to).copied().unwrap_or(0).saturating_add(1);
            let then = u128::from(room.used) + u128::from(copies) * u128::from(copy);
            if then * 100 <= u128::from(room.total) * u128::from(TARGET_FILL_MAX_PERCENT) {
                return Ok(Move { from, to });
            }
            why = Waits::NoRoom;
        }
        Err(why)
    }

    /// The next placement group, round and round. Behind the last one of a round in which nothing was to be
    /// done, none until the layout changes.
    fn next_pg(&mut self, map: &ClusterMap) -> Option<PgId> {
        let next = match self.cursor {
            None => {
                self.round = map.layout;
                self.waits.clear();
                map.pools.keys().next().map(|pool| PgId { pool: *pool, pg: 0 })
            }
            Some(PgId { pool, pg }) if map.pools.get(&pool).is_some_and(|it| pg + 1 < it.pg_num) => {
                Some(PgId { pool, pg: pg + 1 })
            }
            Some(PgId { pool, .. }) => {
                map.pools.range(pool..).find(|(id, _)| **id > pool).map(|(id, _)| PgId { pool: *id, pg: 0 })
            }
        };
        if next.is_none() && self.cursor.is_some() && self.round == map.layout {
            self.settled = map.layout;
        }
        self.cursor = next;
        next
    }
}

/// So many moves at once keep [`FENCES_PER_STEP_MAX`]; at least one.
fn moves_of(volumes: usize) -> usize {
    (FENCES_PER_STEP_MAX / (volumes.max(1) * NODES_PER_MOVE)).max(1)
}

fn is_up(map: &ClusterMap, node: NodeId) -> bool {
    map.nodes.get(&node).is_some_and(|node| node.up && !node.lost)
}

/// A placement group has a member that is down or lost.
fn any_degraded(map: &ClusterMap) -> bool {
    if map.nodes.values().all(|node| node.up && !node.lost) {
        return false;
    }
    map.pgs.iter().any(|(_, pg)| pg.old.iter().chain(pg.new).any(|node| !is_up(map, *node)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::VOLUMES_MAX;

    #[test]
    fn with_very_many_volumes_fewer_moves_begin() {
        assert!(moves_of(0) >= MOVES_MAX && moves_of(100) >= MOVES_MAX);
        assert_eq!(moves_of(VOLUMES_MAX), 16, "as many as there are without a word from anybody");
        assert_eq!(moves_of(usize::MAX / NODES_PER_MOVE), 1);
    }
}
