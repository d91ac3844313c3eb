//! Moves: one member of a placement group at a time, in committed steps (section 7 of `docs/protocol.md`).
//!
//! ```text
//!   {A,B,C} ──start──► learn ──advance──► joint ──advance──► final {A,B,D}
//!                        └──────undo────────┴──────► {A,B,C}
//! ```
//!
//! Each step is a command that names the epoch that its proposer saw: whoever has an older one is refused.
//! Here is what a step makes of a configuration, and nothing about when one may be taken; that is
//! [`super::mover`]'s.

use super::apply::{Applied, Changed, done, missing};
use super::{ClusterMap, MapError};
use crate::ids::*;
use crate::placement::PgConfig;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Placement groups that may be on the move at once, whatever limits are set.
pub const MOVES_MAX: usize = 1024;
/// Moves under way at once, where nobody says otherwise.
pub const MOVES_CLUSTER_DEFAULT: u32 = 16;
/// Of these, how many a node may come or go by, where nobody says otherwise.
pub const MOVES_PER_NODE_DEFAULT: u32 = 2;

/// How much may be under way. The administrator's; it may be changed while moves are under way, and then
/// holds for those that begin later.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveLimits {
    /// Moves in the cluster: 1 to [`MOVES_MAX`].
    pub cluster: u32,
    /// Moves that one node may come or go by: 1 to [`MOVES_MAX`].
    pub node: u32,
    /// Data is also moved away from nodes that are well while placement groups have a member down. Else
    /// that waits, and only what gets copies away from nodes that are down, lost or out is begun.
    pub while_degraded: bool,
}

impl Default for MoveLimits {
    fn default() -> MoveLimits {
        MoveLimits { cluster: MOVES_CLUSTER_DEFAULT, node: MOVES_PER_NODE_DEFAULT, while_degraded: false }
    }
}

/// A member that is being replaced. How far it has come is in the configuration of its placement group.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Who leaves.
    pub from: NodeId,
    /// Who comes.
    pub to: NodeId,
}

/// How far a move has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveStage {
    /// The new node gets everything and has no vote.
    Learn,
    /// Every quorum is one of the old set and one of the new.
    Joint,
}

/// The moves under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    /// Nothing is started and nothing is taken further until this is false again. What was begun stays as
    /// it is, and is safe in every state; leaders go on to repair.
    pub paused: bool,
    /// How much may be under way.
    pub limits: MoveLimits,
    /// Placement groups whose move an administrator has undone: none is begun for them before moves are
    /// resumed. At most [`MOVES_MAX`].
    pub held: Arc<BTreeSet<PgId>>,
    /// By placement group; at most [`MOVES_MAX`]. A clone shares them.
    pub active: Arc<BTreeMap<PgId, Move>>,
}

impl Move {
    /// How far it has come in its placement group's configuration.
    pub fn stage(&self, config: &PgConfig) -> MoveStage {
        if config.new.contains(&self.to) { MoveStage::Joint } else { MoveStage::Learn }
    }

    /// The configuration that begins it.
    pub fn start(&self, config: &PgConfig) -> PgConfig {
        PgConfig { epoch: next(config.epoch), learners: vec![self.to], ..config.clone() }
    }

    /// The next one: joint behind learn, the new set alone behind joint.
    pub fn advance(&self, config: &PgConfig) -> PgConfig {
        let epoch = next(config.epoch);
        match self.stage(config) {
            MoveStage::Learn => {
                let replaced = |node: &NodeId| if *node == self.from { self.to } else { *node };
                let new = config.old.iter().map(replaced).collect();
                PgConfig { epoch, old: config.old.clone(), new, learners: Vec::new() }
            }
            MoveStage::Joint => PgConfig::simple(epoch, config.new.clone()),
        }
    }

    /// The one that undoes it, at either stage.
    pub fn undo(&self, config: &PgConfig) -> PgConfig {
        PgConfig::simple(next(config.epoch), config.old.clone())
    }
}

fn next(epoch: Epoch) -> Epoch {
    Epoch(epoch.0.saturating_add(1))
}

impl ClusterMap {
    /// The placement group, if its epoch is the one that the proposer saw.
    fn seen_pg(&self, pg: PgId, given: Epoch) -> Result<PgConfig, MapError> {
        if self.restored.unchecked {
            return Err(MapError::Unchecked);
        }
        let config = self.members(pg).ok_or_else(|| missing("placement group", pg))?.config();
        if config.epoch != given {
            return Err(MapError::OtherEpoch { pg, given, current: config.epoch });
        }
        Ok(config)
    }

    pub(super) fn start_move(&mut self, pg: PgId, epoch: Epoch, from: NodeId, to: NodeId) -> Applied {
        let config = self.seen_pg(pg, epoch)?;
        let refused = |why: String| Err(MapError::Invalid(format!("placement group {pg}: {why}")));
        if let Some(other) = self.moves.active.get(&pg) {
            return refused(format!("{} is being replaced by {} already", other.from, other.to));
        }
        if self.moves.active.len() >= MOVES_MAX {
            return Err(MapError::Full { what: "moves under way".to_owned(), max: MOVES_MAX as u64 });
        }
        if self.moves.paused {
            return refused("moves are paused; resume them first".to_owned());
        }
        if self.moves.held.contains(&pg) {
            return refused("its move was undone; resume moves to let it begin again".to_owned());
        }
        if config.old != config.new || !config.learners.is_empty() || !config.is_member(from) {
            return refused(format!("{from} is no member of it"));
        }
        let node = self.nodes.get(&to).ok_or_else(|| missing("node", to))?;
        if config.takes_part(to) {
            return refused(format!("{to} is a member of it"));
        }
        if !node.up || node.lost {
            return refused(format!("{to} is down or has lost its state; choose another node, or wait"));
        }
        let it = Move { from, to };
        let config = it.start(&config);
        if let Some(why) = config.problem() {
            return refused(why.to_owned());
        }
        self.pgs.set(pg, &config);
        Arc::make_mut(&mut self.moves.active).insert(pg, it);
        done(Changed::Layout)
    }

    pub(super) fn advance_move(&mut self, pg: PgId, epoch: Epoch) -> Applied {
        let (config, it) = self.moving(pg, epoch)?;
        if it.stage(&config) == MoveStage::Joint {
            Arc::make_mut(&mut self.moves.active).remove(&pg);
        }
        self.pgs.set(pg, &it.advance(&config));
        done(Changed::Layout)
    }

    pub(super) fn undo_move(&mut self, pg: PgId, epoch: Epoch) -> Applied {
        let (config, it) = self.moving(pg, epoch)?;
        Arc::make_mut(&mut self.moves.active).remove(&pg);
        self.pgs.set(pg, &it.undo(&config));
        done(Changed::Layout)
    }

    /// As `undo_move`, on an administrator's word: what they have undone must not be begun again behind
    /// their back. Of a placement group that is not on the move, that none is begun.
    pub(super) fn hold_move(&mut self, pg: PgId, epoch: Epoch) -> Applied {
        self.seen_pg(pg, epoch)?;
        if self.moves.held.len() >= MOVES_MAX && !self.moves.held.contains(&pg) {
            return Err(MapError::Full {
                what: "placement groups whose moves were undone: resume moves, or pause them".to_owned(),
                max: MOVES_MAX as u64,
            });
        }
        let active = self.moves.active.contains_key(&pg);
        if active {
            self.undo_move(pg, epoch)?;
        } else if self.moves.held.contains(&pg) {
            return done(Changed::Nothing);
        }
        Arc::make_mut(&mut self.moves.held).insert(pg);
        done(Changed::Layout)
    }

    pub(super) fn limit_moves(&mut self, limits: MoveLimits) -> Applied {
        let possible = 1..=MOVES_MAX as u32;
        if !possible.contains(&limits.cluster) || !possible.contains(&limits.node) {
            return Err(MapError::Invalid(format!(
                "{} moves in the cluster and {} at a node: choose 1 to {MOVES_MAX}; to have none, pause moves",
                limits.cluster, limits.node
            )));
        }
        if self.moves.limits == limits {
            return done(Changed::Nothing);
        }
        self.moves.limits = limits;
        done(Changed::Layout)
    }

    fn moving(&self, pg: PgId, epoch: Epoch) -> Result<(PgConfig, Move), MapError> {
        let config = self.seen_pg(pg, epoch)?;
        match self.moves.active.get(&pg) {
            Some(it) => Ok((config, *it)),
            None => Err(MapError::Invalid(format!(
                "placement group {pg} is not on the move: what is final is not undone but moved back"
            ))),
        }
    }

    pub(super) fn pause_moves(&mut self, paused: bool) -> Applied {
        // To resume is to let all that was held back begin.
        let lets_go = !paused && !self.moves.held.is_empty();
        if self.moves.paused == paused && !lets_go {
            return done(Changed::Nothing);
        }
        self.moves.paused = paused;
        if lets_go {
            self.moves.held = Arc::default();
        }
        done(Changed::Layout)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::super::{Command, Reply};
    use super::*;

    fn ids(n: &[u32]) -> Vec<NodeId> {
        n.iter().map(|n| NodeId(*n)).collect()
    }

    /// A map of five nodes with placement group 0 on nodes 0, 1 and 2, in epoch 1.
    fn map() -> (ClusterMap, PgId) {
        let mut map = cluster(5);
        let pg = PgId { pool: PoolId(1), pg: 0 };
        assert!(map.pgs.set(pg, &PgConfig::simple(Epoch(1), ids(&[0, 1, 2]))));
        (map, pg)
    }

    fn config(map: &ClusterMap, pg: PgId) -> PgConfig {
        map.members(pg).unwrap().config()
    }

    fn start(pg: PgId, epoch: u64, from: u32, to: u32) -> Command {
        Command::StartMove { pg, epoch: Epoch(epoch), from: NodeId(from), to: NodeId(to) }
    }

    #[test]
    fn a_move_goes_from_learn_to_joint_to_final() {
        let (mut map, pg) = map();
        assert_eq!(map.apply(&start(pg, 1, 1, 4)), Ok(Reply::Done));
        let learn = config(&map, pg);
        assert_eq!((learn.epoch, &learn.old, &learn.new), (Epoch(2), &ids(&[0, 1, 2]), &ids(&[0, 1, 2])));
        assert_eq!(learn.learners, ids(&[4]));
        assert_eq!(map.moves.active[&pg].stage(&learn), MoveStage::Learn);
        map.apply(&Command::AdvanceMove { pg, epoch: Epoch(2) }).unwrap();
        let joint = config(&map, pg);
        assert_eq!((joint.epoch, &joint.old, &joint.new), (Epoch(3), &ids(&[0, 1, 2]), &ids(&[0, 4, 2])));
        assert!(joint.learners.is_empty() && joint.problem().is_none());
        map.apply(&Command::AdvanceMove { pg, epoch: Epoch(3) }).unwrap();
        assert_eq!(config(&map, pg), PgConfig::simple(Epoch(4), ids(&[0, 4, 2])));
        assert!(map.moves.active.is_empty());
        assert!(map.apply(&Command::UndoMove { pg, epoch: Epoch(4) }).is_err(), "it is final");
    }

    #[test]
    fn a_move_is_undone_at_either_stage() {
        for steps in 0..2 {
            let (mut map, pg) = map();
            map.apply(&start(pg, 1, 2, 3)).unwrap();
            for step in 0..steps {
                map.apply(&Command::AdvanceMove { pg, epoch: Epoch(2 + step) }).unwrap();
            }
            map.apply(&Command::UndoMove { pg, epoch: Epoch(2 + steps) }).unwrap();
            assert_eq!(config(&map, pg), PgConfig::simple(Epoch(3 + steps), ids(&[0, 1, 2])));
            assert!(map.moves.active.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let (mut map, pg) = map();
        let lost = Command::SetNodeLost { node: NodeId(3), lost: true };
        map.apply(&lost).unwrap();
        let refused = |map: &mut ClusterMap, command: Command, text: &str| {
            let before = map.clone();
            let error = map.apply(&command).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
            assert_eq!(*map, before);
        };
        refused(&mut map, start(pg, 2, 1, 4), "epoch");
        refused(&mut map, start(PgId { pg: 99, ..pg }, 1, 1, 4), "no placement group 1.63");
        refused(&mut map, start(pg, 1, 4, 4), "node.4 is no member");
        refused(&mut map, start(pg, 1, 1, 0), "node.0 is a member");
        refused(&mut map, start(pg, 1, 1, 9), "no node node.9");
        refused(&mut map, start(pg, 1, 1, 3), "lost its state");
        map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(4), false)], now: 1 }).unwrap();
        refused(&mut map, start(pg, 1, 1, 4), "is down");
        map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(4), true)], now: 1 }).unwrap();
        map.apply(&Command::PauseMoves { paused: true }).unwrap();
        refused(&mut map, start(pg, 1, 1, 4), "paused");
        map.apply(&Command::PauseMoves { paused: false }).unwrap();
        map.apply(&start(pg, 1, 1, 4)).unwrap();
        refused(&mut map, start(pg, 2, 0, 4), "already");
        refused(&mut map, Command::AdvanceMove { pg, epoch: Epoch(1) }, "epoch");
        let other = PgId { pg: 1, ..pg };
        let epoch = map.members(other).unwrap().epoch;
        refused(&mut map, Command::AdvanceMove { pg: other, epoch }, "not on the move");
    }

    #[test]
    fn five_copies_can_be_moved() {
        let it = Move { from: NodeId(2), to: NodeId(9) };
        let five = PgConfig::simple(Epoch(1), ids(&[0, 1, 2, 3, 4]));
        let learn = it.start(&five);
        let joint = it.advance(&learn);
        assert_eq!((learn.problem(), joint.problem()), (None, None));
        assert_eq!(it.advance(&joint).new, ids(&[0, 1, 9, 3, 4]));
    }

    #[test]
    fn what_an_administrator_undid_stays_undone_until_moves_are_resumed() {
        let (mut map, pg) = map();
        map.apply(&start(pg, 1, 1, 4)).unwrap();
        assert!(map.apply(&Command::HoldMove { pg, epoch: Epoch(1) }).is_err(), "an older epoch");
        map.apply(&Command::HoldMove { pg, epoch: Epoch(2) }).unwrap();
        assert_eq!(config(&map, pg), PgConfig::simple(Epoch(3), ids(&[0, 1, 2])));
        assert!(map.moves.active.is_empty() && map.moves.held.contains(&pg));
        let version = map.version;
        map.apply(&Command::HoldMove { pg, epoch: Epoch(3) }).unwrap();
        assert_eq!(map.version, version, "it was so already");
        assert!(map.apply(&start(pg, 3, 1, 4)).unwrap_err().to_string().contains("was undone"));
        map.apply(&Command::PauseMoves { paused: false }).unwrap();
        assert!(map.moves.held.is_empty() && map.version > version);
        map.apply(&start(pg, 3, 1, 4)).unwrap();
    }

    #[test]
    fn limits_are_changed_and_impossible_ones_refused() {
        let (mut map, _) = map();
        let set = |cluster, node| Command::SetMoveLimits {
            limits: MoveLimits { cluster, node, while_degraded: true },
        };
        for (cluster, node) in [(0, 1), (1, 0), (MOVES_MAX as u32 + 1, 1), (1, u32::MAX)] {
            let told = map.apply(&set(cluster, node)).unwrap_err().to_string();
            assert!(told.contains("choose 1 to 1024"), "{told}");
        }
        assert_eq!(map.moves.limits, MoveLimits::default());
        map.apply(&set(3, 1)).unwrap();
        assert_eq!(map.moves.limits, MoveLimits { cluster: 3, node: 1, while_degraded: true });
    }

    #[test]
    fn moves_have_a_limit() {
        let (mut map, pg) = map();
        let many = (0..MOVES_MAX as u32)
            .map(|n| (PgId { pool: PoolId(9), pg: n }, Move { from: NodeId(0), to: NodeId(1) }));
        map.moves.active = Arc::new(many.collect());
        assert!(matches!(map.apply(&start(pg, 1, 1, 4)), Err(MapError::Full { .. })));
    }
}
