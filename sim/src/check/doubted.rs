//! 5.9: the leader that has found that a node lost data only asks it, group by group, until it has said there that it
//! did. Nothing that the node answers before that can count, since the leader has neither settled it nor sent it
//! anything else.

use super::{Checked, Violation};
use crate::payload::Blocks;
use rustc_hash::FxHashSet;
use trefoil_core::crush::pg_ancestors;
use trefoil_core::message::{FromNode, ToNode};
use trefoil_core::{GroupId, NodeId, PgId};

/// One leader, and the node that it has found.
#[derive(Debug)]
pub struct Doubted {
    /// The leader.
    pub leader: usize,
    node: NodeId,
    /// Groups of which the node has said that they are lost.
    said: FxHashSet<GroupId>,
}

impl Doubted {
    /// The leader says so.
    pub fn new(leader: usize, node: NodeId) -> Doubted {
        Doubted { leader, node, said: FxHashSet::default() }
    }

    /// The leader hears something.
    pub fn hears(&mut self, node: NodeId, msg: &FromNode<Blocks>) {
        if let FromNode::Opened { group, lost: true, .. } = msg
            && node == self.node
        {
            self.said.insert(*group);
        }
    }

    /// The leader says something to a node.
    pub fn says(&self, li: usize, node: NodeId, msg: &ToNode<Blocks>) -> Checked {
        let (group, counts) = match msg {
            ToNode::Fence { .. } | ToNode::Open { .. } => return Ok(()),
            ToNode::Repair { object, from, .. } if *from == self.node => (object.group, true),
            ToNode::Settle { group, .. } | ToNode::Confirm { group, .. } => (*group, node == self.node),
            ToNode::Write { object, .. } | ToNode::Read { object, .. } | ToNode::Repair { object, .. } => {
                (object.group, node == self.node)
            }
        };
        // What it has said of a group it has said of those that split off later.
        let mut pgs = std::iter::once(group.pg.pg).chain(pg_ancestors(group.pg.pg));
        let mut said = || pgs.any(|pg| self.said.contains(&GroupId { pg: PgId { pg, ..group.pg }, ..group }));
        if !counts || said() {
            return Ok(());
        }
        let what = format!(
            "leader {li} has found that {} lost data, which has not said so of {group}, and says to {node}: {msg:?}",
            self.node
        );
        Err(Violation::plain("5.9", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::{Ballot, Epoch, PoolId, VolumeId};

    #[test]
    fn a_node_that_was_found_is_asked_and_nothing_else() {
        let group = |pg| GroupId { volume: VolumeId(1), pg: PgId { pool: PoolId(1), pg } };
        let settle = |pg| ToNode::Settle { group: group(pg), ballot: Ballot(5), except: vec![] };
        let opened = |pg, lost| FromNode::Opened {
            group: group(pg),
            ballot: Ballot(5),
            settled: Ballot(4),
            lost,
            objects: vec![],
        };
        let (found, other) = (NodeId(3), NodeId(1));
        let mut check = Doubted::new(0, found);
        let open = ToNode::Open { group: group(0), ballot: Ballot(5), epoch: Epoch(1) };
        assert!(check.says(0, found, &open).is_ok() && check.says(0, other, &settle(0)).is_ok());
        check.hears(found, &opened(0, false));
        check.hears(other, &opened(0, true));
        assert!(check.says(0, found, &settle(0)).is_err());
        check.hears(found, &opened(0, true));
        assert!(check.says(0, found, &settle(0)).is_ok());
        // One that splits off in a pool of two, and another one.
        let mut check = Doubted::new(0, found);
        check.hears(found, &opened(1, true));
        assert!(check.says(0, found, &settle(3)).is_ok() && check.says(0, found, &settle(2)).is_err());
    }
}
