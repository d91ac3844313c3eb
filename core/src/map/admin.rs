//! What administrators do to nodes and pools: draining, removing, setting.
//!
//! **Drain**: the node's CRUSH weight becomes zero, so that its placement groups are wanted elsewhere, and each
//! moves once. (*Out* keeps the weight of its host, and what follows when it is removed would move again.) The
//! weight is remembered for an undo.
//!
//! **Remove**: only a node that takes part in no placement group. Its store is remembered: one that comes back is told
//! that it was removed, and is not taken for a new node with old data on it.
//!
//! Whether rules would still find enough places is for an administrator to look at first ([`super::diff`]); so each
//! of these names the CRUSH map that was looked at.

use super::apply::{Applied, Changed, done, missing};
use super::{Ack, ClusterMap, MapError, Pool};
use crate::crush::edit::Edit;
use crate::ids::*;
use crate::placement::{PgConfig, PgTable, SLOTS_MAX};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Stores of removed nodes that are remembered. Of more, the oldest are forgotten.
pub const REMOVED_MAX: usize = 10_000;

/// The stores of nodes that were removed, the last ones last. A clone shares them.
pub type Removed = Arc<Vec<(Incarnation, NodeId)>>;

/// A setting of a pool.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolChange {
    /// Another CRUSH rule, by its id. Its placement groups are then wanted where that rule says.
    Rule(u32),
    /// Another number of copies; only while it has no volume.
    Copies(u8),
    /// When a write is acknowledged. Front ends do so as soon as they have the map.
    Ack(Ack),
}

/// Whether a pool may have that many copies.
///
/// Errors: what may be chosen. An even number needs as many answers as the next odd one and survives no more; two are
/// possible, for those who know that two copies cannot outvote each other.
pub(super) fn check_copies(size: u8) -> Result<(), MapError> {
    let odd = !size.is_multiple_of(2) && size >= 3 && usize::from(size) <= SLOTS_MAX;
    if !odd && size != 2 {
        return Err(MapError::Invalid(format!(
            "{size} copies: choose 3 or 5 (or 2, which cannot outvote each other)"
        )));
    }
    Ok(())
}

impl ClusterMap {
    /// The weight that the node has in the CRUSH map (16.16); none if it is in no bucket.
    pub fn crush_weight(&self, node: NodeId) -> Option<u32> {
        let device = i32::try_from(node.0).ok()?;
        let mut items = self.crush.def().buckets.iter().flat_map(|bucket| &bucket.items);
        items.find(|item| item.id == device).map(|item| item.weight)
    }

    /// How many placement groups the node takes part in: as a member, or on its way to be one.
    pub fn pgs_of(&self, node: NodeId) -> u64 {
        self.pgs.iter().filter(|(_, pg)| pg.takes_part(node)).count() as u64
    }

    /// The node that had that store and was removed.
    pub fn removed_node(&self, incarnation: Incarnation) -> Option<NodeId> {
        self.removed.iter().rev().find(|(known, _)| *known == incarnation).map(|(_, node)| *node)
    }

    fn edit_crush(&mut self, edit: &Edit) -> Result<(), MapError> {
        let edited = self.crush.edited(edit).map_err(|error| MapError::Crush(error.to_string()))?;
        self.crush = Arc::new(edited.0);
        Ok(())
    }

    fn check_seen(&self, seen: u64) -> Result<(), MapError> {
        if seen != self.crush_version {
            return Err(MapError::CrushChanged { seen, current: self.crush_version });
        }
        Ok(())
    }

    pub(super) fn drain_node(&mut self, node: NodeId, drain: bool, seen: u64) -> Applied {
        let drained = self.nodes.get(&node).ok_or_else(|| missing("node", node))?.drained;
        let weight = self.crush_weight(node);
        let (name, now) = (node.0.to_string(), weight.unwrap_or(0));
        if drain {
            if drained.is_some() && now == 0 {
                return done(Changed::Nothing);
            }
            if weight.is_none() {
                let text = format!("{node} is in no bucket of the CRUSH map: there is nothing to drain");
                return Err(MapError::Crush(text));
            }
            self.check_seen(seen)?;
            self.edit_crush(&Edit::Reweight { name, weight: 0 })?;
        } else {
            let Some(before) = drained else { return done(Changed::Nothing) };
            // Somebody has given it a weight since: theirs stays.
            if now == 0 && weight.is_some() {
                self.check_seen(seen)?;
                self.edit_crush(&Edit::Reweight { name, weight: before })?;
            }
        }
        if let Some(it) = self.nodes.get_mut(&node) {
            it.drained = drain.then_some(now);
        }
        done(Changed::Layout)
    }

    pub(super) fn remove_node(&mut self, node: NodeId) -> Applied {
        let it = self.nodes.get(&node).ok_or_else(|| missing("node", node))?;
        let incarnation = it.incarnation;
        let given_up = it.drained.is_some() || it.out.is_some() || self.crush_weight(node).unwrap_or(0) == 0;
        let refused = |why: String| Err(MapError::Invalid(format!("{node} is not removed: {why}")));
        let held = self.pgs_of(node);
        if held > 0 {
            return refused(format!(
                "it takes part in {held} placement groups; `trefoil node drain {}` has them moved elsewhere",
                node.0
            ));
        }
        if !given_up {
            return refused(format!("CRUSH may still give it data; `trefoil node drain {}` first", node.0));
        }
        let device = i32::try_from(node.0).unwrap_or(i32::MAX);
        if self.crush.def().devices.iter().any(|it| it.id == device) {
            self.edit_crush(&Edit::Remove { name: node.0.to_string() })?;
        }
        self.nodes.remove(&node);
        if self.positions.contains_key(&node) {
            Arc::make_mut(&mut self.positions).remove(&node);
        }
        let removed = Arc::make_mut(&mut self.removed);
        if removed.len() >= REMOVED_MAX {
            removed.remove(0);
        }
        removed.push((incarnation, node));
        done(Changed::Layout)
    }

    pub(super) fn set_pool(&mut self, name: &str, change: PoolChange) -> Applied {
        let (id, pool) = self.pool_named(name).ok_or_else(|| missing("pool", name))?;
        let mut pool = pool.clone();
        match change {
            PoolChange::Rule(rule) if pool.rule == rule => return done(Changed::Nothing),
            PoolChange::Copies(copies) if pool.size == copies => return done(Changed::Nothing),
            PoolChange::Ack(ack) if pool.ack == ack => return done(Changed::Nothing),
            PoolChange::Ack(ack) => pool.ack = ack,
            PoolChange::Rule(rule) => {
                if !self.crush.has_rule(rule) {
                    return Err(missing("CRUSH rule", rule));
                }
                pool.rule = rule;
                // Nothing moves by this. But each group must have a place to go to.
                self.find_places(id, &pool)?;
            }
            PoolChange::Copies(copies) => {
                check_copies(copies)?;
                let volumes = self.volumes.values().filter(|it| it.pool == id).count();
                let moving = self.moves.active.keys().any(|pg| pg.pool == id);
                if volumes > 0 || moving {
                    return Err(MapError::Invalid(format!(
                        "pool {name:?} has {volumes} volumes{}: the number of copies can be changed while a pool is \
                         empty and nothing of it moves; make another pool, and copy the volumes there",
                        if moving { ", and placement groups on the move" } else { "" }
                    )));
                }
                pool.size = copies;
                let places = self.find_places(id, &pool)?;
                let mut pgs = PgTable::default();
                for ((_, old), set) in self.pool_pgs(id).zip(places) {
                    pgs.push(&PgConfig::simple(Epoch(old.epoch.0.saturating_add(1)), set));
                }
                self.pgs.0.insert(id, pgs);
            }
        }
        self.pools.insert(id, pool);
        done(Changed::Layout)
    }

    /// Where CRUSH wants each placement group of a pool.
    fn find_places(&self, id: PoolId, pool: &Pool) -> Result<Vec<Vec<NodeId>>, MapError> {
        let mut placer = self.placer();
        (0..pool.pg_num).map(|pg| placer.place(id, pool, pg)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cluster, create, register};
    use super::super::{Command, Event, Reply};
    use super::*;

    fn drain(map: &ClusterMap, node: u32, drain: bool) -> Command {
        Command::DrainNode { node: NodeId(node), drain, seen: map.crush_version }
    }

    fn wanted(map: &ClusterMap) -> Vec<NodeId> {
        let (id, pool) = map.pool_named("default").unwrap();
        map.find_places(id, pool).unwrap().concat()
    }

    /// As the mover would have done it.
    fn move_all(map: &mut ClusterMap) {
        let (id, pool) = map.pool_named("default").unwrap();
        let places = map.find_places(id, pool).unwrap();
        for (pg, set) in places.into_iter().enumerate() {
            let pg = PgId { pool: id, pg: pg as u32 };
            assert!(map.pgs.set(pg, &PgConfig::simple(Epoch(2), set)));
        }
    }

    #[test]
    fn a_drained_node_is_wanted_nowhere_and_an_undo_is_as_before() {
        let mut map = cluster(5);
        let before = map.clone();
        assert!(wanted(&map).contains(&NodeId(2)));
        map.apply(&drain(&map, 2, true)).unwrap();
        assert_eq!((map.crush_weight(NodeId(2)), map.nodes[&NodeId(2)].drained.is_some()), (Some(0), true));
        assert!(!wanted(&map).contains(&NodeId(2)) && map.pgs == before.pgs, "nothing has moved yet");
        let version = map.version;
        map.apply(&drain(&map, 2, true)).unwrap();
        assert_eq!(map.version, version, "twice is once");
        let stale = Command::DrainNode { node: NodeId(2), drain: false, seen: 1 };
        assert!(matches!(map.apply(&stale), Err(MapError::CrushChanged { .. })));
        map.apply(&drain(&map, 2, false)).unwrap();
        assert_eq!((&map.crush, &map.nodes), (&before.crush, &before.nodes));
    }

    #[test]
    fn a_weight_that_somebody_gave_meanwhile_outlives_the_undo() {
        let mut map = cluster(5);
        map.apply(&drain(&map, 2, true)).unwrap();
        let edit = Edit::Reweight { name: "2".to_owned(), weight: 77 };
        let crush = Box::new(map.crush.edited(&edit).unwrap().0);
        map.apply(&Command::SetCrush { crush }).unwrap();
        map.apply(&drain(&map, 2, false)).unwrap();
        assert_eq!((map.crush_weight(NodeId(2)), map.nodes[&NodeId(2)].drained), (Some(77), None));
    }

    #[test]
    fn only_a_node_that_holds_nothing_is_removed_and_its_store_is_not_a_new_node() {
        let mut map = cluster(5);
        let remove = Command::RemoveNode { node: NodeId(2) };
        let told = map.apply(&remove).unwrap_err().to_string();
        assert!(told.contains("takes part in") && told.contains("node drain 2"), "{told}");
        map.apply(&drain(&map, 2, true)).unwrap();
        map.apply(&remove).unwrap_err();
        move_all(&mut map);
        // It learns: it is on its way to be a member.
        let pg = PgId { pool: PoolId(1), pg: 3 };
        let config = map.members(pg).unwrap().config();
        assert!(map.pgs.set(pg, &PgConfig { learners: vec![NodeId(2)], ..config.clone() }));
        assert!(map.apply(&remove).unwrap_err().to_string().contains("1 placement groups"));
        assert!(map.pgs.set(pg, &config));
        map.apply(&Command::ReportPositions { positions: vec![(NodeId(2), 9)] }).unwrap();

        map.apply_at(&remove, 1).unwrap();
        assert!(!map.nodes.contains_key(&NodeId(2)) && map.crush_weight(NodeId(2)).is_none());
        assert_eq!(map.position(NodeId(2)), 0);
        let last = map.events().after(0, 99).last().map(|Event { what, .. }| what.to_string());
        assert_eq!(last.as_deref(), Some("node.2 removed"));
        assert!(matches!(map.apply(&remove), Err(MapError::Missing { .. })));
        for id in [None, Some(NodeId(2))] {
            let mut command = register(2);
            if let Command::RegisterNode { id: claimed, .. } = &mut command {
                *claimed = id;
            }
            let told = map.apply(&command).unwrap_err().to_string();
            assert!(told.contains("was removed from the cluster") && told.contains("format"), "{told}");
        }
        let Reply::Node(next) = map.apply(&register(9)).unwrap() else { panic!() };
        assert_eq!(next, NodeId(5), "numbers are not used again");
    }

    #[test]
    fn a_node_that_crush_may_give_data_is_drained_first() {
        let mut map = cluster(5);
        map.apply(&register(9)).unwrap();
        let told = map.apply(&Command::RemoveNode { node: NodeId(5) }).unwrap_err().to_string();
        assert!(told.contains("node drain 5"), "{told}");
        map.apply(&drain(&map, 5, true)).unwrap();
        map.apply(&Command::RemoveNode { node: NodeId(5) }).unwrap();
    }

    #[test]
    fn removed_stores_are_bounded() {
        let mut map = cluster(3);
        map.removed =
            Arc::new((0..REMOVED_MAX as u64).map(|n| (Incarnation(100_000 + n), NodeId(0))).collect());
        map.apply(&register(9)).unwrap();
        map.apply(&drain(&map, 3, true)).unwrap();
        map.apply(&Command::RemoveNode { node: NodeId(3) }).unwrap();
        assert_eq!(map.removed.len(), REMOVED_MAX);
        assert_eq!(
            (map.removed_node(Incarnation(100_000)), map.removed_node(Incarnation(1009))),
            (None, Some(NodeId(3)))
        );
    }

    #[test]
    fn a_pool_gets_another_rule_and_while_it_is_empty_another_number_of_copies() {
        let mut map = cluster(5);
        let set = |change| Command::SetPool { pool: "default".to_owned(), change };
        assert!(map.apply(&set(PoolChange::Rule(99))).unwrap_err().to_string().contains("no CRUSH rule 99"));
        let before = map.pgs.clone();
        map.apply(&set(PoolChange::Rule(1))).unwrap();
        assert_eq!((map.pools[&PoolId(1)].rule, map.pgs == before), (1, true), "nothing moves by it");
        let layout = map.layout;
        map.apply(&set(PoolChange::Rule(1))).unwrap();
        assert_eq!(map.layout, layout);

        for ack in [Ack::AllInSync, Ack::AllInSync, Ack::Majority] {
            let (changes, layout) = (map.pools[&PoolId(1)].ack != ack, map.layout);
            map.apply(&set(PoolChange::Ack(ack))).unwrap();
            assert_eq!((map.pools[&PoolId(1)].ack, map.layout > layout, &map.pgs), (ack, changes, &before));
        }

        for (copies, possible) in
            [(0, false), (1, false), (2, true), (4, false), (5, true), (7, false), (3, true)]
        {
            let made = map.apply(&set(PoolChange::Copies(copies)));
            assert_eq!(made.is_ok(), possible, "{copies}: {made:?}");
            if possible {
                let pgs: Vec<_> = map.pgs.iter().map(|(_, pg)| pg.config()).collect();
                assert!(pgs.iter().all(|pg| pg.new.len() == usize::from(copies) && pg.problem().is_none()));
            }
        }
        assert!(map.pgs.iter().all(|(_, pg)| pg.epoch == Epoch(4)), "each was told as a change");
        map.apply(&create("disk", 1 << 30)).unwrap();
        let told = map.apply(&set(PoolChange::Copies(5))).unwrap_err().to_string();
        assert!(told.contains("has 1 volumes") && told.contains("another pool"), "{told}");
    }
}
