//! What leaders say of nodes to the monitors: which ones they do without, and why.
//!
//! A storage node that is held out as a laggard is up, answers heartbeats, and does not know what it was not
//! sent. Only its leaders know that redundancy is reduced, so they say so with each renewal of their leases; the
//! monitors show it. Nothing is decided by it.

use super::NodeView;
use crate::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Nodes that one report names. Of more, those in the worst state are named.
pub const REPORT_NODES_MAX: usize = 256;
/// A node that is slow, or owes writes, for so long is reported (µs): less is a hiccup.
pub const REPORT_AFTER: u64 = 1_000_000;

/// How a leader finds a node. In order: the last is the worst.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeTrouble {
    /// In time, but copies on it are being repaired.
    Behind,
    /// It is read from only if no other node will do.
    Slow,
    /// Writes to it are more than [`REPORT_AFTER`] under way.
    Lagging,
    /// It was too far behind, and is left alone for a time: it misses every write.
    HeldOut,
    /// It is not connected: it misses every write.
    Away,
}

impl std::fmt::Display for NodeTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NodeTrouble::Behind => "copies on it are being repaired",
            NodeTrouble::Slow => "its reads are late, others are asked",
            NodeTrouble::Lagging => "its writes are late",
            NodeTrouble::HeldOut => "too far behind, held out for a time",
            NodeTrouble::Away => "not connected",
        })
    }
}

/// A node of which there is something to say.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Which one.
    pub node: NodeId,
    /// The worst that any leader of this process finds.
    pub trouble: NodeTrouble,
    /// Copies on it that are known not to be whole, while it is connected.
    pub behind: u64,
    /// For how long its oldest write is under way (µs), to a factor of two.
    pub lag: u64,
}

/// Puts together what the leaders of one process find: at most [`REPORT_NODES_MAX`] nodes, in order.
pub fn report(views: impl Iterator<Item = NodeView>) -> Vec<NodeReport> {
    let mut found: BTreeMap<NodeId, NodeReport> = BTreeMap::new();
    for view in views {
        let trouble = if view.held {
            NodeTrouble::HeldOut
        } else if !view.up {
            NodeTrouble::Away
        } else if view.backlog_age >= REPORT_AFTER {
            NodeTrouble::Lagging
        } else if view.slow_for >= REPORT_AFTER {
            NodeTrouble::Slow
        } else if view.behind > 0 {
            NodeTrouble::Behind
        } else {
            continue;
        };
        let new = NodeReport { node: view.node, trouble, behind: 0, lag: 0 };
        let it = found.entry(view.node).or_insert(new);
        it.trouble = it.trouble.max(trouble);
        it.behind += view.behind as u64;
        it.lag = it.lag.max(view.backlog_age);
    }
    let mut found: Vec<NodeReport> = found.into_values().collect();
    if found.len() > REPORT_NODES_MAX {
        found.sort_by_key(|it| (std::cmp::Reverse(it.trouble), it.node));
        found.truncate(REPORT_NODES_MAX);
        found.sort_by_key(|it| it.node);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(node: u32) -> NodeView {
        NodeView { node: NodeId(node), up: true, ..NodeView::default() }
    }

    #[test]
    fn the_worst_that_any_leader_finds_is_said_and_nothing_of_the_others() {
        let held = NodeView { up: false, held: true, ..view(2) };
        let late = NodeView { backlog_age: REPORT_AFTER, behind: 3, ..view(2) };
        let hiccup = NodeView { backlog_age: REPORT_AFTER - 1, slow_for: REPORT_AFTER - 1, ..view(1) };
        let said = report([view(1), view(2), held, late, hiccup].into_iter());
        let expected =
            NodeReport { node: NodeId(2), trouble: NodeTrouble::HeldOut, behind: 3, lag: REPORT_AFTER };
        assert_eq!(said, [expected]);
    }

    #[test]
    fn of_too_many_nodes_the_worst_are_named() {
        let views = (0..1000).map(|n| match n {
            700 => NodeView { up: false, ..view(n) },
            _ => NodeView { behind: 1, ..view(n) },
        });
        let said = report(views);
        assert_eq!(said.len(), REPORT_NODES_MAX);
        assert!(said.iter().any(|it| it.node == NodeId(700) && it.trouble == NodeTrouble::Away));
        assert!(said.is_sorted_by_key(|it| it.node));
    }
}
