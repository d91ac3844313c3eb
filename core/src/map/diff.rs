//! What another CRUSH map would change: which placement groups would move, from where to where, how much that
//! is, and where the new map is worse than the old one. For an administrator, before anything happens.
//!
//! Pure, and exact but for bytes: it asks CRUSH for each placement group as those do who move it
//! ([`Placer`](super::Placer)), and compares with the **acting sets**, since it is from there that data moves.
//! A cluster that is not yet where its present map wants it is told apart ([`PoolDiff::pending`]).
//!
//! **Bytes** are an estimate: what a node has in use is taken to lie in its placement groups in proportion to
//! the sizes of their pools' volumes, and a group's copy to be as large as the mean of its copies. Where no
//! node has said what it uses, a copy is taken to be as large as its volumes' sizes allow, which is too much
//! for volumes that are not full ([`CrushDiff::unmeasured`] counts these).
//!
//! It costs two placements for each group, which is some seconds for a million. Nothing is changed here.

pub use super::outs::Room;
use super::{Ack, ClusterMap, MapError, Pool};
use crate::crush::CrushMap;
use crate::ids::*;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Inputs that a rule is tried with which no pool uses.
pub const RULE_SAMPLES: u32 = 256;
/// Copies that such a rule is asked for.
pub const RULE_COPIES: u8 = super::POOL_SIZE_DEFAULT;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrushDiff {
    /// Every pool.
    pub pools: Vec<PoolDiff>,
    /// Every node that has a placement group, or would get one.
    pub nodes: BTreeMap<NodeId, NodeDiff>,
    /// Every placement group that would move.
    pub moves: Vec<PgMove>,
    /// Rules of both maps that no pool uses and that find fewer places than before.
    pub rules: Vec<RuleDiff>,
    /// Bytes that would be copied: an estimate.
    pub bytes: u64,
    /// How many of `moves` were estimated by the sizes of volumes, because no node has said what it uses.
    pub unmeasured: u64,
    /// Nodes that would get more than they have room for.
    pub crowded: Vec<(NodeId, Room)>,
}

/// What becomes of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolDiff {
    /// Which one.
    pub pool: PoolId,
    /// Its name.
    pub name: String,
    /// Its rule.
    pub rule: u32,
    /// Copies of each placement group.
    pub copies: u8,
    /// Its placement groups.
    pub pgs: u32,
    /// Those of them that would move.
    pub moved: u32,
    /// Copies that would be made elsewhere.
    pub moved_copies: u64,
    /// Bytes of these: an estimate.
    pub bytes: u64,
    /// Placement groups that are not where the present map wants them.
    pub pending: u32,
    /// Placement groups for which the present map's rule finds too few places.
    pub short_before: u32,
    /// The same for the new map.
    pub short_after: u32,
    /// Those that have enough places by the present map, and too few by the new one. They would not move, but
    /// nothing would take the place of a node that is lost.
    pub newly_short: u32,
    /// The first of these, and how many places it would have.
    pub first_short: Option<(PgId, usize)>,
}

/// What becomes of a node.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDiff {
    /// Placement groups that it has a copy of.
    pub pgs_before: u64,
    /// Copies that would come.
    pub pgs_in: u64,
    /// Copies that would go.
    pub pgs_out: u64,
    /// Bytes of those that would come: an estimate.
    pub bytes_in: u64,
    /// Bytes of those that would go: an estimate.
    pub bytes_out: u64,
}

/// A placement group that would move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgMove {
    /// Which one.
    pub pg: PgId,
    /// Where it lives.
    pub acting: Vec<NodeId>,
    /// Where the new map wants it.
    pub target: Vec<NodeId>,
    /// Bytes of one copy: an estimate.
    pub copy_bytes: u64,
}

/// A rule that finds fewer places than before, of [`RULE_SAMPLES`] tries for [`RULE_COPIES`] copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleDiff {
    /// Its id.
    pub id: u32,
    /// Its name in the new map.
    pub name: String,
    /// Tries that found too few places before.
    pub short_before: u32,
    /// The same after.
    pub short_after: u32,
}

/// Why a new map is not one that an administrator would want, unless they say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A pool's rule finds too few places.
    TooFewPlaces(PoolDiff),
    /// A node would get more than it has room for.
    NoRoom {
        /// Which one.
        node: NodeId,
        /// What it has.
        room: Room,
        /// What it would have in use.
        wanted: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::TooFewPlaces(it) => {
                let PoolDiff { name, rule, copies, pgs, newly_short, .. } = it;
                write!(
                    f,
                    "pool {name} (rule {rule}): {newly_short} of {pgs} placement groups would no longer find {copies} \
                     places"
                )?;
                match it.first_short {
                    Some((pg, found)) => write!(f, ", such as {pg}, which would find {found}"),
                    None => Ok(()),
                }
            }
            Problem::NoRoom { node, room, wanted } => write!(
                f,
                "{node} would hold about {wanted} bytes, and has room for {} ({} used now)",
                room.total, room.used
            ),
        }
    }
}

impl PgMove {
    /// Nodes that would get a copy.
    pub fn coming(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.target.iter().filter(|node| !self.acting.contains(node)).copied()
    }

    /// Nodes whose copy would go.
    pub fn leaving(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.acting.iter().filter(|node| !self.target.contains(node)).copied()
    }
}

impl NodeDiff {
    /// Placement groups that it would have a copy of.
    pub fn pgs_after(&self) -> u64 {
        (self.pgs_before + self.pgs_in).saturating_sub(self.pgs_out)
    }

    /// What would be in use, of what is now: an estimate.
    fn used_after(&self, used: u64) -> u64 {
        used.saturating_add(self.bytes_in).saturating_sub(self.bytes_out)
    }
}

impl CrushDiff {
    /// What is to be forced: where the new map is worse than the present one.
    pub fn problems(&self) -> Vec<Problem> {
        let short = self.pools.iter().filter(|pool| pool.newly_short > 0);
        let short = short.map(|pool| Problem::TooFewPlaces(pool.clone()));
        let crowded = self.crowded.iter().map(|(node, room)| {
            let wanted = self.nodes.get(node).map_or(room.used, |it| it.used_after(room.used));
            Problem::NoRoom { node: *node, room: *room, wanted }
        });
        short.chain(crowded).collect()
    }

    /// How long it takes at least, in seconds, where the cluster may copy `rate` bytes per second in all and
    /// a node take in or give out `node_rate`. 0 counts as 1.
    pub fn seconds(&self, rate: u64, node_rate: Option<u64>) -> u64 {
        let all = self.bytes.div_ceil(rate.max(1));
        let Some(node_rate) = node_rate else { return all };
        let busiest = self.nodes.values().map(|it| it.bytes_in.max(it.bytes_out)).max().unwrap_or(0);
        all.max(busiest.div_ceil(node_rate.max(1)))
    }
}

/// What `new` would change in a cluster with that map and that much in use.
///
/// # Errors
///
/// A pool's rule is not in the new map: the monitors refuse it, whoever forces it.
pub fn crush_diff(
    map: &ClusterMap,
    new: &CrushMap,
    rooms: &BTreeMap<NodeId, Room>,
) -> Result<CrushDiff, MapError> {
    if let Some(pool) = map.pools.values().find(|pool| !new.has_rule(pool.rule)) {
        return Err(map.rule_is_missing(pool));
    }
    let mut later = map.clone();
    later.crush = Arc::new(new.clone());
    Ok(map_diff(map, &later, rooms))
}

/// The same for any change of what is wanted where: the CRUSH map, nodes that are out, the rules of pools.
pub fn map_diff(map: &ClusterMap, later: &ClusterMap, rooms: &BTreeMap<NodeId, Room>) -> CrushDiff {
    // What has split off is compared with where it begins: that moves nothing.
    let split = split_as(map, later);
    let map = split.as_ref().unwrap_or(map);
    let sizes = Sizes::new(map, rooms);
    let mut diff = CrushDiff::default();
    for (id, pool) in &map.pools {
        pool_diff(map, later, *id, pool, &sizes, &mut diff);
    }
    diff.rules = rules_diff(map, later);
    let full = |(node, it): (&NodeId, &NodeDiff)| {
        let room = rooms.get(node).filter(|room| it.used_after(room.used) > room.total.max(room.used));
        room.map(|room| (*node, *room))
    };
    diff.crowded = diff.nodes.iter().filter_map(full).collect();
    diff
}

/// The map with the placement groups of a later one, if pools have more there.
fn split_as(map: &ClusterMap, later: &ClusterMap) -> Option<ClusterMap> {
    let pg_num = |id: &PoolId| later.pools.get(id).map(|pool| pool.pg_num);
    if map.pools.iter().all(|(id, pool)| pg_num(id).is_none_or(|there| there == pool.pg_num)) {
        return None;
    }
    let mut split = map.clone();
    split.pgs = later.pgs.clone();
    for (id, pool) in &mut split.pools {
        pool.pg_num = pg_num(id).unwrap_or(pool.pg_num);
    }
    Some(split)
}

fn pool_diff(
    map: &ClusterMap,
    later: &ClusterMap,
    id: PoolId,
    pool: &Pool,
    sizes: &Sizes,
    diff: &mut CrushDiff,
) {
    let mut found = PoolDiff {
        pool: id,
        name: pool.name.clone(),
        rule: pool.rule,
        copies: pool.size,
        pgs: pool.pg_num,
        moved: 0,
        moved_copies: 0,
        bytes: 0,
        pending: 0,
        short_before: 0,
        short_after: 0,
        newly_short: 0,
        first_short: None,
    };
    let (mut before, mut after) = (map.placer(), later.placer());
    let later_pool = later.pools.get(&id).unwrap_or(pool);
    for (pg, config) in map.pool_pgs(id) {
        let acting = config.new;
        for node in acting {
            diff.nodes.entry(*node).or_default().pgs_before += 1;
        }
        let same =
            |target: &[NodeId]| target.len() == acting.len() && target.iter().all(|n| acting.contains(n));
        let old = before.place(id, pool, pg.pg);
        match &old {
            Ok(target) if same(target) => {}
            Ok(_) => found.pending += 1,
            Err(_) => found.short_before += 1,
        }
        let target = match after.place(id, later_pool, pg.pg) {
            Ok(target) => target,
            Err(error) => {
                found.short_after += 1;
                found.newly_short += u32::from(old.is_ok());
                if let MapError::TooFewNodes { found: places, .. } = error
                    && old.is_ok()
                    && found.first_short.is_none()
                {
                    found.first_short = Some((pg, places));
                }
                // It stays where it is.
                continue;
            }
        };
        if same(&target) {
            continue;
        }
        let (copy_bytes, measured) = sizes.copy(id, acting);
        let it = PgMove { pg, acting: acting.to_vec(), target, copy_bytes };
        found.moved += 1;
        diff.unmeasured += u64::from(!measured);
        for node in it.coming() {
            let entry = diff.nodes.entry(node).or_default();
            entry.pgs_in += 1;
            entry.bytes_in = entry.bytes_in.saturating_add(copy_bytes);
            found.moved_copies += 1;
            found.bytes = found.bytes.saturating_add(copy_bytes);
        }
        for node in it.leaving() {
            let entry = diff.nodes.entry(node).or_default();
            entry.pgs_out += 1;
            entry.bytes_out = entry.bytes_out.saturating_add(copy_bytes);
        }
        diff.moves.push(it);
    }
    diff.bytes = diff.bytes.saturating_add(found.bytes);
    diff.pools.push(found);
}

fn rules_diff(map: &ClusterMap, later: &ClusterMap) -> Vec<RuleDiff> {
    let used = |id| map.pools.values().any(|pool| pool.rule == id);
    let rules = later.crush.def().rules.iter().filter(|rule| map.crush.has_rule(rule.id) && !used(rule.id));
    let worse = rules.filter_map(|rule| {
        let name = rule.name.clone();
        let (pg_num, pg_num_first) = (RULE_SAMPLES, RULE_SAMPLES);
        let pool = Pool { name, size: RULE_COPIES, pg_num, pg_num_first, rule: rule.id, ack: Ack::Majority };
        let short = |map: &ClusterMap| {
            let mut placer = map.placer();
            let short = (0..RULE_SAMPLES).filter(|pg| placer.place(PoolId(0), &pool, *pg).is_err());
            short.count() as u32
        };
        let (short_before, short_after) = (short(map), short(later));
        let it = RuleDiff { id: rule.id, name: rule.name.clone(), short_before, short_after };
        (short_after > short_before).then_some(it)
    });
    worse.collect()
}

/// How large a copy of a placement group may be.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// By pool: bytes of its volumes for each of its placement groups.
    provisioned: BTreeMap<PoolId, u64>,
    /// By node that has said what it uses: that, and the provisioned bytes of all its copies.
    nodes: BTreeMap<NodeId, (u64, u128)>,
}

impl Sizes {
    pub(super) fn new(map: &ClusterMap, rooms: &BTreeMap<NodeId, Room>) -> Sizes {
        let mut provisioned: BTreeMap<PoolId, u64> = map.pools.keys().map(|id| (*id, 0)).collect();
        for volume in map.volumes.values() {
            if let Some(bytes) = provisioned.get_mut(&volume.pool) {
                *bytes = bytes.saturating_add(volume.size);
            }
        }
        for (id, bytes) in &mut provisioned {
            *bytes /= u64::from(map.pools.get(id).map_or(1, |pool| pool.pg_num).max(1));
        }
        let mut nodes: BTreeMap<NodeId, (u64, u128)> =
            rooms.iter().map(|(node, room)| (*node, (room.used, 0))).collect();
        for (pg, config) in map.pgs.iter() {
            let bytes = provisioned.get(&pg.pool).copied().unwrap_or(0);
            for node in config.nodes() {
                if let Some((_, all)) = nodes.get_mut(&node) {
                    *all += u128::from(bytes);
                }
            }
        }
        Sizes { provisioned, nodes }
    }

    /// Bytes of one copy, and whether a node has said anything about it.
    pub(super) fn copy(&self, pool: PoolId, acting: &[NodeId]) -> (u64, bool) {
        let provisioned = self.provisioned.get(&pool).copied().unwrap_or(0);
        let share = |node: &NodeId| {
            let (used, all) = self.nodes.get(node)?;
            // Without volumes there is nothing to copy, whatever is in use.
            Some((u128::from(*used) * u128::from(provisioned)).checked_div(*all).unwrap_or(0))
        };
        let shares: Vec<u128> = acting.iter().filter_map(share).collect();
        let Some(mean) = shares.iter().sum::<u128>().checked_div(shares.len() as u128) else {
            return (provisioned, false);
        };
        (u64::try_from(mean).unwrap_or(u64::MAX), true)
    }
}

#[cfg(test)]
mod tests;
