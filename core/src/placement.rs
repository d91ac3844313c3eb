//! The configuration of a placement group, and what a quorum of it is.

mod table;

pub use table::{CHUNK_PGS, Pg, PgTable};

use crate::ids::*;
use crate::limits::SET_MEMBERS_MAX;
use serde::{Deserialize, Serialize};

/// Nodes that one configuration may name in all, both sets and the learners: five copies, of which one is
/// being moved.
pub const SLOTS_MAX: usize = 6;

/// How many placement groups a pool has, and had.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PoolPgs {
    /// When it was made.
    pub first: u32,
    /// Now. Never fewer than before.
    pub now: u32,
}

/// Where a placement group lives: one committed configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgConfig {
    /// Its number; greater with each change.
    pub epoch: Epoch,
    /// The old set. The same as the new one except in a joint epoch.
    pub old: Vec<NodeId>,
    /// The new set.
    pub new: Vec<NodeId>,
    /// Nodes that get the writes and have no vote.
    pub learners: Vec<NodeId>,
}

impl PgConfig {
    /// A configuration with one set and no learners.
    pub fn simple(epoch: Epoch, set: Vec<NodeId>) -> PgConfig {
        PgConfig { epoch, old: set.clone(), new: set, learners: Vec::new() }
    }

    /// Every node that takes part, each once: the members, then the learners.
    pub fn everyone(&self) -> Vec<NodeId> {
        let mut all = self.old.clone();
        for node in self.new.iter().chain(&self.learners) {
            if !all.contains(node) {
                all.push(*node);
            }
        }
        all
    }

    /// True for a node of the old or the new set: it has a vote.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.old.contains(&node) || self.new.contains(&node)
    }

    /// True for a member or a learner.
    pub fn takes_part(&self, node: NodeId) -> bool {
        self.is_member(node) || self.learners.contains(&node)
    }

    /// True if the nodes for which `has` is true are a majority of the old set and a majority of the
    /// new set.
    pub fn is_quorum(&self, mut has: impl FnMut(NodeId) -> bool) -> bool {
        let mut majority = |set: &[NodeId]| {
            let n = set.iter().filter(|node| has(**node)).count();
            n * 2 > set.len()
        };
        majority(&self.old) && (self.old == self.new || majority(&self.new))
    }

    /// Why this configuration cannot be used, if so.
    pub fn problem(&self) -> Option<&'static str> {
        let unique = |set: &[NodeId]| set.iter().enumerate().all(|(i, n)| !set[..i].contains(n));
        if self.old.is_empty() || self.new.is_empty() {
            Some("a set has no members")
        } else if self.old.len() > SET_MEMBERS_MAX || self.new.len() > SET_MEMBERS_MAX {
            Some("a set has too many members")
        } else if self.everyone().len() > SLOTS_MAX {
            Some("too many nodes in all")
        } else if !unique(&self.old) || !unique(&self.new) || !unique(&self.learners) {
            Some("a node is named twice")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().map(|n| NodeId(*n)).collect()
    }

    #[test]
    fn a_quorum_is_a_majority_of_both_sets() {
        let joint = PgConfig {
            epoch: Epoch(2),
            old: nodes(&[1, 2, 3]),
            new: nodes(&[1, 2, 4]),
            learners: nodes(&[5]),
        };
        let q = |ids: &[u32]| joint.is_quorum(|n| ids.contains(&n.0));
        assert!(q(&[1, 2]));
        assert!(!q(&[1, 3]));
        assert!(q(&[1, 3, 4]));
        assert!(!q(&[3, 4, 5]));
        assert_eq!(joint.problem(), None);
        assert!(!PgConfig::simple(Epoch(1), nodes(&[1])).is_quorum(|_| false));
        assert!(PgConfig::simple(Epoch(1), nodes(&[1, 1, 2])).problem().is_some());
    }
}
