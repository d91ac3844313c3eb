//! The map of a backup, made fit to be used again.
//!
//! A backup does not know what was granted, issued and deleted after it was taken, and nodes and clients do.
//! Whatever must never be given out twice begins again far above what can have been given out since. What
//! was made after the backup is missing from the map, and is *forgotten*, not deleted: nodes keep its data.

use super::apply::{Applied, Changed, done, missing};
use super::{BATCH_MAX, ClusterMap, Holder, MapError, Move};
use crate::ids::*;
use crate::placement::PgConfig;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The name of the holder that a restored map gives every volume to: nobody, and nobody who has died.
pub const RESTORED_HOLDER: &str = "restored-from-a-backup";
/// Generations of each volume that are left out. (At one grant a second: half a year's.)
pub const GENERATIONS_SKIPPED: u64 = 1 << 24;
/// Volume ids that are left out.
pub const VOLUMES_SKIPPED: u64 = 1 << 20;
/// Node ids that are left out. They are the devices of the CRUSH map, whose tables are as long as the greatest.
pub const NODES_SKIPPED: u32 = 1000;
/// Pool ids that are left out.
pub const POOLS_SKIPPED: u32 = 100;
/// How often a cluster may have been restored: of each time a range is kept.
pub const RESTORES_MAX: usize = 64;
/// Versions that are left out: whoever has a map of the cluster before takes this one for a later one.
pub const VERSIONS_SKIPPED: u64 = 1 << 32;

/// Epochs of each placement group that are left out when its layout has been checked: none is ever that of two
/// configurations.
pub const EPOCHS_SKIPPED: u64 = 1 << 32;

/// What a restore from a backup has left open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Placement groups may have moved since the backup was taken. Until it is known where they live, nobody
    /// is granted a volume and nothing is moved.
    pub unchecked: bool,
    /// Ranges of node ids, from and to before, that were left out: a node that comes with one of them was made
    /// after the backup, and keeps it. At most [`RESTORES_MAX`].
    pub nodes: Vec<(NodeId, NodeId)>,
}

/// What a node knows of where placement groups live, for a map that was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutReport {
    /// It has lost state (N8): it may have answered in later epochs than it knows.
    pub lost: bool,
    /// Of each placement group that concerns it: the highest epoch that it has answered under, and the newest
    /// configuration that it has heard of.
    pub pgs: Vec<(PgId, Epoch, Option<PgConfig>)>,
}

/// Why it is not known where a placement group lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsettled {
    /// A majority of those who are its members as far as anybody knows has not said what it knows.
    NotHeard {
        /// Of which placement group.
        pg: PgId,
        /// Who has not.
        nodes: Vec<NodeId>,
    },
    /// A node has answered in an epoch whose configuration nobody knows who has said anything.
    UnknownEpoch {
        /// Of which placement group.
        pg: PgId,
        /// The epoch.
        epoch: Epoch,
    },
    /// A member is a node that this map does not have.
    UnknownNode {
        /// Of which placement group.
        pg: PgId,
        /// The node.
        node: NodeId,
    },
    /// Nodes have placement groups that a pool of this map does not have: it was split after the backup.
    Split(PgId),
    /// Two nodes know different configurations of one epoch.
    Contradiction(PgId),
}

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsettled::NotHeard { pg, nodes } => {
                let names: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
                write!(f, "{pg}: not heard of yet: {}; start them", names.join(", "))
            }
            Unsettled::UnknownEpoch { pg, epoch } => {
                write!(
                    f,
                    "{pg}: nodes have answered in epoch {epoch}, and nobody has said who its members are then"
                )
            }
            Unsettled::UnknownNode { pg, node } => {
                write!(f, "{pg}: {node} is a member, and was made after the backup; start it again")
            }
            Unsettled::Split(pg) => {
                write!(f, "{pg} was made by a split after the backup; use a later backup")
            }
            Unsettled::Contradiction(pg) => {
                write!(f, "{pg}: nodes contradict each other; are they of one cluster?")
            }
        }
    }
}

/// Where placement groups live, by what nodes say: those that the map has otherwise, or why that cannot be told,
/// for each placement group of which it cannot.
///
/// **Why a majority is enough.** Let E be the highest epoch whose configuration anybody knows who has said
/// something. For anything to be acknowledged in a later one, or for the members to change, a quorum of E's
/// members has answered an Open or a List in an epoch above E, durably (5.2, M3). It has a node in common with
/// the quorum of E's members that has been heard, and that node names the epoch. So, if nobody names one, no
/// later configuration has ever mattered, and none will: all epochs go on above [`EPOCHS_SKIPPED`].
pub fn settle(
    map: &ClusterMap,
    reports: &BTreeMap<NodeId, LayoutReport>,
) -> Result<Vec<(PgId, PgConfig)>, Vec<Unsettled>> {
    let mut epochs: BTreeMap<PgId, Epoch> = BTreeMap::new();
    let mut newest: BTreeMap<PgId, PgConfig> = BTreeMap::new();
    let mut unsettled = Vec::new();
    let mut contradicted = BTreeSet::new();
    for (pg, epoch, config) in reports.values().flat_map(|report| &report.pgs) {
        let Some(known) = map.members(*pg) else {
            // A pool that this map does not have is forgotten as a whole.
            if map.pools.contains_key(&pg.pool) {
                unsettled.push(Unsettled::Split(*pg));
            }
            continue;
        };
        let highest = epochs.entry(*pg).or_default();
        *highest = (*highest).max(*epoch);
        let Some(config) = config.as_ref().filter(|config| config.problem().is_none()) else { continue };
        let best = newest.get(pg).map_or_else(|| known.config(), PgConfig::clone);
        if config.epoch > best.epoch {
            newest.insert(*pg, config.clone());
        } else if config.epoch == best.epoch && *config != best && contradicted.insert(*pg) {
            unsettled.push(Unsettled::Contradiction(*pg));
        }
    }
    let heard = |node: NodeId| reports.get(&node).is_some_and(|report| !report.lost);
    for (pg, known) in map.pgs.iter() {
        let config = newest.get(&pg).map_or_else(|| known.config(), PgConfig::clone);
        let everyone = config.everyone();
        if let Some(epoch) = epochs.get(&pg).copied().filter(|epoch| *epoch > config.epoch) {
            unsettled.push(Unsettled::UnknownEpoch { pg, epoch });
        } else if let Some(node) = everyone.iter().find(|node| !map.nodes.contains_key(node)) {
            unsettled.push(Unsettled::UnknownNode { pg, node: *node });
        } else if !config.is_quorum(heard) {
            let nodes =
                everyone.into_iter().filter(|node| config.is_member(*node) && !heard(*node)).collect();
            unsettled.push(Unsettled::NotHeard { pg, nodes });
        }
    }
    match unsettled.is_empty() {
        true => Ok(newest.into_iter().collect()),
        false => Err(unsettled),
    }
}

impl ClusterMap {
    /// A node of that number was made after the backup that this map was restored from.
    pub(super) fn is_forgotten_node(&self, node: NodeId) -> bool {
        let ranges = &self.restored.nodes;
        !self.nodes.contains_key(&node) && ranges.iter().any(|(from, to)| (*from..*to).contains(&node))
    }

    pub(super) fn adopt_layout(&mut self, configs: &[(PgId, PgConfig)], last: bool) -> Applied {
        if !self.restored.unchecked {
            return done(Changed::Nothing); // asked twice
        }
        if configs.len() > BATCH_MAX {
            return Err(MapError::Full {
                what: "placement groups in one change".to_owned(),
                max: BATCH_MAX as u64,
            });
        }
        for (pg, config) in configs {
            let known = self.members(*pg).ok_or_else(|| missing("placement group", pg))?;
            let problem = config.problem().map(str::to_owned);
            let older = (config.epoch < known.epoch).then(|| "an older epoch than this map's".to_owned());
            if let Some(why) = problem.or(older) {
                return Err(MapError::Invalid(format!("placement group {pg}: {why}")));
            }
            if let Some(node) = config.everyone().into_iter().find(|node| !self.nodes.contains_key(node)) {
                return Err(missing("node", node));
            }
        }
        for (pg, config) in configs {
            self.pgs.set(*pg, config);
        }
        if last {
            self.leave_old_epochs();
            self.restored.unchecked = false;
        }
        done(Changed::Layout)
    }

    /// Each placement group goes on with its members, in an epoch that nobody has heard of. Who has no vote yet
    /// begins anew.
    fn leave_old_epochs(&mut self) {
        let all: Vec<(PgId, PgConfig)> = self.pgs.iter().map(|(pg, config)| (pg, config.config())).collect();
        let mut active = BTreeMap::new();
        for (pg, config) in all {
            let gone = |a: &[NodeId], b: &[NodeId]| a.iter().copied().find(|node| !b.contains(node));
            if let (Some(from), Some(to)) = (gone(&config.old, &config.new), gone(&config.new, &config.old)) {
                active.insert(pg, Move { from, to });
            }
            let epoch = Epoch(config.epoch.0.saturating_add(EPOCHS_SKIPPED));
            self.pgs.set(pg, &PgConfig { epoch, learners: Vec::new(), ..config });
        }
        self.moves.active = Arc::new(active);
        self.moves.held = Arc::default();
    }

    /// Makes the map of a backup that of a restored cluster. `holder`, who is nobody, gets every volume: somebody
    /// may have been granted it after the backup, and may believe in a lease that this map does not show. So
    /// no volume is granted before a lease and the margin have passed.
    ///
    /// False, and nothing is changed, where the numbers of a volume, node or pool are used up, or this has been done
    /// [`RESTORES_MAX`] times.
    pub fn restored(&mut self, holder: &Holder) -> bool {
        if self.forgotten.len() >= RESTORES_MAX {
            return false;
        }
        let mut map = self.clone();
        let above = |number: u64, skipped: u64| number.checked_add(skipped);
        let (Some(version), Some(next_volume), Some(next_node), Some(next_pool)) = (
            above(self.version, VERSIONS_SKIPPED),
            above(self.next_volume.0, VOLUMES_SKIPPED),
            self.next_node.0.checked_add(NODES_SKIPPED),
            self.next_pool.0.checked_add(POOLS_SKIPPED),
        ) else {
            return false;
        };
        let ids: Vec<VolumeId> = map.volumes.keys().copied().collect();
        for id in ids {
            if let Some(volume) = map.volumes.get_mut(&id) {
                let generation = volume.generation.0.saturating_add(GENERATIONS_SKIPPED);
                #[cfg(feature = "deliberate-bugs")]
                let generation =
                    if crate::bugs::restore_skips_nothing() { volume.generation.0 } else { generation };
                if generation > Ballot::GENERATION_MAX {
                    return false;
                }
                volume.generation = Generation(generation);
                volume.holder = Some(holder.clone());
                volume.clean = false;
            }
        }
        map.forgotten.push((map.next_volume, VolumeId(next_volume)));
        map.restored.nodes.push((map.next_node, NodeId(next_node)));
        map.restored.unchecked = !map.pgs.is_empty();
        (map.next_volume, map.next_node, map.next_pool) =
            (VolumeId(next_volume), NodeId(next_node), PoolId(next_pool));
        (map.version, map.layout) = (version, version);
        *self = map;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::super::{Ack, Command, FailureDomain, Grant, HolderKind, Reply};
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { name: name.to_owned(), boot: 9, kind: HolderKind::FrontEnd }
    }

    fn volume(map: &mut ClusterMap, name: &str) -> VolumeId {
        let create = Command::CreateVolume {
            name: name.to_owned(),
            pool: "p".to_owned(),
            size: 1 << 30,
            object_size: 4 << 20,
            io_timeout: None,
        };
        match map.apply(&create).unwrap() {
            Reply::Volume(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn grant(map: &mut ClusterMap, volume: VolumeId) -> Generation {
        let seen = map.volumes[&volume].generation;
        let grants = vec![Grant { volume, seen, above: Generation(0) }];
        match map.apply(&Command::GrantGenerations { grants, holder: holder("a") }).unwrap() {
            Reply::Granted(granted) => granted[0].clone().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_that_was_given_out_after_the_backup_is_given_out_again() {
        let mut map = cluster(3);
        let (name, domain) = ("p".to_owned(), FailureDomain::Osd);
        map.apply(&Command::CreatePool { name, size: 3, pg_num: 8, domain, ack: Ack::Majority }).unwrap();
        let old = volume(&mut map, "old");
        grant(&mut map, old);
        let mut restored = map.clone();
        // What happens after the backup.
        let last = (0..50).map(|_| grant(&mut map, old)).last().unwrap();
        let gone = volume(&mut map, "made-later");

        assert!(restored.restored(&holder("restored")));
        assert!(restored.version > map.version && restored.layout > map.layout);
        assert!(!restored.is_deleted(gone), "nodes keep what was made after the backup");
        assert_eq!(restored.volumes[&old].holder, Some(holder("restored")));
        assert!(!restored.volumes[&old].clean);
        let seen = restored.volumes[&old].generation;
        let grants = vec![Grant { volume: old, seen, above: Generation(0) }];
        let early = Command::GrantGenerations { grants, holder: holder("a") };
        assert_eq!(restored.apply(&early), Err(MapError::Unchecked), "where the copies are is not known");
        restored.apply(&Command::AdoptLayout { configs: Vec::new(), last: true }).unwrap();
        assert!(grant(&mut restored, old) > last);
        let new = volume(&mut restored, "new");
        assert!(new > gone);
        assert!(!restored.is_deleted(gone));
        restored.apply(&Command::RemoveVolume { volume: new, expired: None }).unwrap();
        assert!(restored.is_deleted(new));
        // Whoever has the map from before can be sent the difference.
        let delta = restored.diff(&map).unwrap();
        map.apply_delta(&delta).unwrap();
        assert_eq!(map, restored);
    }

    const PG: PgId = PgId { pool: PoolId(1), pg: 0 };

    /// Five nodes; the backup of a map with placement group 0 on nodes 0, 1 and 2 in epoch 1, restored.
    fn restored_map() -> ClusterMap {
        let mut map = cluster(5);
        assert!(map.pgs.set(PG, &simple(1, &[0, 1, 2])));
        for pg in 1..map.pools[&PG.pool].pg_num {
            assert!(map.pgs.set(PgId { pg, ..PG }, &simple(1, &[0, 1, 2])));
        }
        assert!(map.restored(&holder("restored")));
        map
    }

    fn simple(epoch: u64, nodes: &[u32]) -> PgConfig {
        PgConfig::simple(Epoch(epoch), nodes.iter().map(|n| NodeId(*n)).collect())
    }

    fn report(epoch: u64, config: Option<PgConfig>) -> LayoutReport {
        LayoutReport { lost: false, pgs: vec![(PG, Epoch(epoch), config)] }
    }

    fn told(reports: &[(u32, LayoutReport)]) -> BTreeMap<NodeId, LayoutReport> {
        reports.iter().map(|(node, report)| (NodeId(*node), report.clone())).collect()
    }

    #[test]
    fn a_layout_that_has_not_changed_is_settled_by_a_majority() {
        let mut map = restored_map();
        let same = || report(1, Some(simple(1, &[0, 1, 2])));
        let one = settle(&map, &told(&[(0, same())])).unwrap_err();
        assert!(one.contains(&Unsettled::NotHeard { pg: PG, nodes: vec![NodeId(1), NodeId(2)] }), "{one:?}");
        let lost = LayoutReport { lost: true, ..same() };
        assert!(
            settle(&map, &told(&[(0, same()), (2, lost)])).is_err(),
            "what has lost state does not count"
        );
        assert_eq!(settle(&map, &told(&[(0, same()), (2, same())])), Ok(Vec::new()));
        let start = Command::StartMove { pg: PG, epoch: Epoch(1), from: NodeId(0), to: NodeId(4) };
        assert_eq!(map.apply(&start), Err(MapError::Unchecked));
        map.apply(&Command::AdoptLayout { configs: Vec::new(), last: true }).unwrap();
        assert_eq!(map.members(PG).unwrap().config(), simple(1 + EPOCHS_SKIPPED, &[0, 1, 2]));
        let version = map.version;
        map.apply(&Command::AdoptLayout { configs: Vec::new(), last: true }).unwrap();
        assert_eq!(map.version, version, "asked twice");
    }

    #[test]
    fn what_has_moved_since_the_backup_is_where_the_nodes_say() {
        let mut map = restored_map();
        let now = simple(4, &[0, 1, 3]);
        // Nodes 0 and 2 alone would be a majority of the backup's members: but one names a later epoch.
        let old = || report(1, Some(simple(1, &[0, 1, 2])));
        let unknown = settle(&map, &told(&[(0, report(3, None)), (2, old())])).unwrap_err();
        assert!(unknown.contains(&Unsettled::UnknownEpoch { pg: PG, epoch: Epoch(3) }), "{unknown:?}");
        // Somebody has heard of it; it takes a majority of the members that it names, and of the others'.
        let heard = || report(3, Some(now.clone()));
        let few = settle(&map, &told(&[(0, heard()), (2, old())])).unwrap_err();
        assert_eq!(few, [Unsettled::NotHeard { pg: PG, nodes: vec![NodeId(1), NodeId(3)] }]);
        let all = settle(&map, &told(&[(0, heard()), (2, old()), (3, report(4, None))])).unwrap();
        assert_eq!(all, [(PG, now.clone())]);
        map.apply(&Command::AdoptLayout { configs: all, last: true }).unwrap();
        assert_eq!(map.members(PG).unwrap().config(), simple(4 + EPOCHS_SKIPPED, &[0, 1, 3]));
        assert!(!map.restored.unchecked);
    }

    #[test]
    fn a_move_that_was_under_way_goes_on_and_one_that_only_learned_begins_anew() {
        let mut map = restored_map();
        let joint = PgConfig { old: simple(3, &[0, 1, 2]).old, ..simple(3, &[0, 1, 4]) };
        let learn = PgConfig { learners: vec![NodeId(3)], ..simple(2, &[0, 1, 2]) };
        let other = PgId { pg: 1, ..PG };
        let configs = vec![(PG, joint.clone()), (other, learn)];
        map.apply(&Command::AdoptLayout { configs, last: false }).unwrap();
        assert!(map.restored.unchecked, "there is more to come");
        map.apply(&Command::AdoptLayout { configs: Vec::new(), last: true }).unwrap();
        assert_eq!(map.moves.active[&PG], Move { from: NodeId(2), to: NodeId(4) });
        assert_eq!(map.moves.active.len(), 1);
        let config = map.members(PG).unwrap().config();
        assert_eq!((config.old, config.new), (joint.old, joint.new));
        assert_eq!(map.members(other).unwrap().config(), simple(2 + EPOCHS_SKIPPED, &[0, 1, 2]));
    }

    #[test]
    fn what_cannot_be_told_is_said_and_nothing_is_adopted() {
        let mut map = restored_map();
        let stranger = NodeId(7);
        let moved = report(4, Some(simple(4, &[0, 1, 7])));
        let unsettled = settle(&map, &told(&[(0, moved.clone()), (1, moved)])).unwrap_err();
        assert!(unsettled.contains(&Unsettled::UnknownNode { pg: PG, node: stranger }), "{unsettled:?}");
        let split = LayoutReport { lost: false, pgs: vec![(PgId { pg: 999, ..PG }, Epoch(2), None)] };
        let unsettled = settle(&map, &told(&[(0, split)])).unwrap_err();
        assert!(unsettled.contains(&Unsettled::Split(PgId { pg: 999, ..PG })));
        let two =
            told(&[(0, report(2, Some(simple(2, &[0, 1, 3])))), (1, report(2, Some(simple(2, &[0, 1, 4]))))]);
        assert!(settle(&map, &two).unwrap_err().contains(&Unsettled::Contradiction(PG)));
        let before = map.clone();
        for config in [simple(4, &[0, 1, 7]), simple(0, &[0, 1, 3]), simple(4, &[0, 0, 3])] {
            assert!(map.apply(&Command::AdoptLayout { configs: vec![(PG, config)], last: true }).is_err());
        }
        assert_eq!(map, before);
        // The stranger is a node that was made after the backup: it keeps its number when it comes.
        let again = Command::RegisterNode {
            id: Some(stranger),
            incarnation: Incarnation(77),
            address: ([127, 0, 0, 1], 9).into(),
            host: "host7".to_owned(),
            class: None,
            size: 1 << 40,
            now: 0,
        };
        assert_eq!(map.apply(&again), Ok(Reply::Node(stranger)));
        assert_eq!(map.apply(&again), Ok(Reply::Node(stranger)), "asked twice");
        assert_eq!(map.nodes[&stranger].incarnation, Incarnation(77));
        assert!(
            map.apply(&Command::AdoptLayout { configs: vec![(PG, simple(4, &[0, 1, 7]))], last: true })
                .is_ok()
        );
    }

    #[test]
    fn restores_are_bounded() {
        let mut map = cluster(3);
        for _ in 0..RESTORES_MAX {
            assert!(map.restored(&holder("restored")));
        }
        let before = map.clone();
        assert!(!map.restored(&holder("restored")));
        assert_eq!(map, before);
    }

    #[test]
    fn numbers_that_are_used_up_are_told_and_nothing_changes() {
        let mut map = cluster(3);
        map.version = u64::MAX;
        let before = map.clone();
        assert!(!map.restored(&holder("restored")));
        assert_eq!(map, before);
    }
}
