//! Which nodes have been heard of: the leading monitor's soft state beside the map.
//!
//! Up and down are about redundancy and about what people see; no I/O waits for them. Pure: the time
//! comes in.

use super::ClusterMap;
use crate::ids::*;
use std::collections::BTreeMap;

/// When each node was last heard of. Has at most one entry per node of the map.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout: u64,
    started: Time,
    last: BTreeMap<NodeId, Time>,
}

impl Liveness {
    /// At the moment when this monitor begins to lead: nobody counts as missing before `timeout`
    /// microseconds have passed.
    pub fn new(timeout: u64, now: Time) -> Liveness {
        Liveness { timeout, started: now, last: BTreeMap::new() }
    }

    /// The node has sent a heartbeat. The caller has checked that the map has it.
    pub fn heard(&mut self, node: NodeId, now: Time) {
        self.last.insert(node, now);
    }

    /// True if the node has been heard of since this monitor leads. What the map says of one that has
    /// not is what an earlier leader knew.
    pub fn known(&self, node: NodeId) -> bool {
        self.last.contains_key(&node)
    }

    /// True if the time since the start is too short to call anybody missing.
    pub fn settling(&self, now: Time) -> bool {
        now.since(self.started) <= self.timeout
    }

    /// The nodes whose state in the map is not what was heard: what is to be committed.
    pub fn changes(&self, map: &ClusterMap, now: Time) -> Vec<(NodeId, bool)> {
        let mut changes = Vec::new();
        for (id, node) in &map.nodes {
            let last = self.last.get(id);
            let silent = now.since(*last.unwrap_or(&self.started)) > self.timeout;
            if node.up && silent {
                changes.push((*id, false));
            } else if !node.up && !silent && last.is_some() {
                changes.push((*id, true));
            }
        }
        changes.truncate(super::BATCH_MAX);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::*;

    #[test]
    fn silence_is_down_and_a_heartbeat_is_up_again() {
        let mut map = cluster(3);
        let mut it = Liveness::new(100, Time(1000));
        let ids: Vec<NodeId> = map.nodes.keys().copied().collect();
        assert!(it.settling(Time(1100)));
        it.heard(ids[0], Time(1050));
        assert_eq!(it.changes(&map, Time(1100)), vec![], "the start counts for all");
        assert_eq!(it.changes(&map, Time(1101)), vec![(ids[1], false), (ids[2], false)]);
        assert_eq!(it.changes(&map, Time(1151)).len(), 3);
        if let Some(node) = map.nodes.get_mut(&ids[1]) {
            node.up = false;
        }
        assert!(!it.known(ids[1]));
        it.heard(ids[1], Time(1140));
        assert_eq!(it.changes(&map, Time(1145)), vec![(ids[1], true), (ids[2], false)]);
    }

    #[test]
    fn a_node_that_is_down_and_was_never_heard_of_stays_down_while_the_monitor_settles() {
        let mut map = cluster(3);
        for id in 0..3 {
            map.nodes.get_mut(&NodeId(id)).unwrap().up = false;
        }
        let it = Liveness::new(100, Time(1000));
        assert_eq!(it.changes(&map, Time(1001)), vec![]);
    }
}
