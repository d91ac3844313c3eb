//! Which nodes are up: the leading monitor's soft state beside the map.
//!
//! Up and down are about redundancy and about what people see; no I/O waits for them (P2). Pure: the time
//! comes in.
//!
//! - **Down**: a node whose heartbeats have stopped, and whom others cannot reach either. A monitor that is cut
//!   off from a node that everybody else reaches does not call it down at once: without such a word it takes
//!   [`ALONE`] times as long. Meanwhile it is *silent*, and shown so.
//! - **Up again**: with the first heartbeat; but a node that comes and goes is held down, for a time that doubles
//!   each time ([`hold_down`]), and must have been heard of all that time.

use super::ClusterMap;
use crate::ids::*;
use std::collections::BTreeMap;

/// Without the word of others, a node must have been silent for so many timeouts.
pub const ALONE: u64 = 3;
/// A node may flap so many times before it is held down.
pub const FLAPS_FREE: u16 = 2;
/// How long it is held down then, at first (µs).
pub const HOLD_DOWN_MIN: u64 = 10_000_000;
/// How long it is held down at most (µs).
pub const HOLD_DOWN_MAX: u64 = 600_000_000;

/// How long a node that has gone down so often in a row ([`super::Node::flaps`]) must be heard of before it is up
/// again (µs).
pub fn hold_down(flaps: u16) -> u64 {
    match flaps.checked_sub(FLAPS_FREE + 1) {
        None => 0,
        Some(more) => HOLD_DOWN_MIN.saturating_mul(1 << more.min(32)).min(HOLD_DOWN_MAX),
    }
}

/// When a node was heard of.
#[derive(Copy, Clone, Debug)]
struct Heard {
    last: Time,
    /// Since when without a pause of more than the timeout.
    since: Time,
}

/// When each node was last heard of. Has at most one entry per node of the map.
#[derive(Clone, Debug)]
pub struct Liveness {
    timeout: u64,
    started: Time,
    heard: BTreeMap<NodeId, Heard>,
}

impl Liveness {
    /// At the moment when this monitor begins to lead: nobody counts as missing before `timeout`
    /// microseconds have passed.
    pub fn new(timeout: u64, now: Time) -> Liveness {
        Liveness { timeout, started: now, heard: BTreeMap::new() }
    }

    /// The node has sent a heartbeat. The caller has checked that the map has it.
    pub fn heard(&mut self, node: NodeId, now: Time) {
        let it = self.heard.entry(node).or_insert(Heard { last: now, since: now });
        if now.since(it.last) > self.timeout {
            it.since = now;
        }
        it.last = now;
    }

    /// For so long nobody could be heard of, up to `now` (no majority of monitors answered, or this one stood still):
    /// it does not count as anybody's silence.
    pub fn stood_still(&mut self, time: u64, now: Time) {
        self.started = self.started.after(time).min(now).max(self.started);
        for it in self.heard.values_mut() {
            it.last = it.last.after(time).min(now).max(it.last);
        }
    }

    /// The node is one of the map no more.
    pub fn forget(&mut self, node: NodeId) {
        self.heard.remove(&node);
    }

    /// True if the node has been heard of since this monitor leads. What the map says of one that has
    /// not is what an earlier leader knew.
    pub fn known(&self, node: NodeId) -> bool {
        self.heard.contains_key(&node)
    }

    /// True if the time since the start is too short to call anybody missing.
    pub fn settling(&self, now: Time) -> bool {
        now.since(self.started) <= self.timeout
    }

    /// For how long nothing has been heard of it (µs), where that is longer than the timeout.
    pub fn silent(&self, node: NodeId, now: Time) -> Option<u64> {
        let last = self.heard.get(&node).map_or(self.started, |it| it.last);
        Some(now.since(last)).filter(|silent| *silent > self.timeout)
    }

    /// For how long yet a node that is heard of is held down because it flaps (µs); 0: it is not.
    pub fn held_down(&self, map: &ClusterMap, node: NodeId, now: Time) -> u64 {
        let Some(it) = map.nodes.get(&node).filter(|it| !it.up) else { return 0 };
        let Some(heard) = self.heard.get(&node) else { return 0 };
        hold_down(it.flaps).saturating_sub(now.since(heard.since))
    }

    /// The nodes whose state in the map is not what was heard: what is to be committed. `unreached`: others say
    /// that they cannot reach the node.
    pub fn changes(
        &self,
        map: &ClusterMap,
        now: Time,
        unreached: impl Fn(NodeId) -> bool,
    ) -> Vec<(NodeId, bool)> {
        let mut changes = Vec::new();
        for (id, node) in &map.nodes {
            let silent = self.silent(*id, now);
            let gone = |silent: u64| unreached(*id) || silent > self.timeout.saturating_mul(ALONE);
            if node.up && silent.is_some_and(gone) {
                changes.push((*id, false));
            } else if !node.up && silent.is_none() && self.known(*id) && self.held_down(map, *id, now) == 0 {
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

    fn all(_: NodeId) -> bool {
        true
    }

    fn none(_: NodeId) -> bool {
        false
    }

    #[test]
    fn silence_is_down_and_a_heartbeat_is_up_again() {
        let mut map = cluster(3);
        let mut it = Liveness::new(100, Time(1000));
        let ids: Vec<NodeId> = map.nodes.keys().copied().collect();
        assert!(it.settling(Time(1100)));
        it.heard(ids[0], Time(1050));
        assert_eq!(it.changes(&map, Time(1100), all), vec![], "the start counts for all");
        assert_eq!(it.changes(&map, Time(1101), all), vec![(ids[1], false), (ids[2], false)]);
        assert_eq!(it.changes(&map, Time(1151), all).len(), 3);
        if let Some(node) = map.nodes.get_mut(&ids[1]) {
            node.up = false;
        }
        assert!(!it.known(ids[1]));
        it.heard(ids[1], Time(1140));
        assert_eq!(it.changes(&map, Time(1145), all), vec![(ids[1], true), (ids[2], false)]);
    }

    #[test]
    fn a_node_that_nobody_else_misses_is_silent_first_and_down_later() {
        let map = cluster(3);
        let mut it = Liveness::new(100, Time(0));
        let node = NodeId(1);
        map.nodes.keys().filter(|id| **id != node).for_each(|id| it.heard(*id, Time(300)));
        assert_eq!(it.silent(node, Time(100)), None);
        assert_eq!(it.silent(node, Time(101)), Some(101));
        assert_eq!(it.changes(&map, Time(300), none), vec![]);
        assert_eq!(it.changes(&map, Time(301), none), vec![(node, false)]);
        assert_eq!(it.changes(&map, Time(101), |id| id == node), vec![(node, false)]);
    }

    #[test]
    fn time_in_which_nobody_could_be_heard_of_is_nobodys_silence() {
        let map = cluster(3);
        let mut it = Liveness::new(100, Time(0));
        let ids: Vec<NodeId> = map.nodes.keys().copied().collect();
        it.heard(ids[0], Time(50));
        it.stood_still(10_000, Time(10_060));
        assert_eq!(it.changes(&map, Time(10_100), all), vec![]);
        it.heard(ids[0], Time(10_110));
        assert_eq!(it.changes(&map, Time(10_120), all), vec![(ids[1], false), (ids[2], false)]);
        it.stood_still(10_000, Time(10_115));
        assert_eq!(it.silent(ids[0], Time(10_216)), Some(101), "not into the future");
    }

    #[test]
    fn a_node_that_was_never_heard_of_stays_down_while_the_monitor_settles() {
        let mut map = cluster(3);
        for id in 0..3 {
            map.nodes.get_mut(&NodeId(id)).unwrap().up = false;
        }
        let it = Liveness::new(100, Time(1000));
        assert_eq!(it.changes(&map, Time(1001), all), vec![]);
    }

    #[test]
    fn a_node_that_flaps_is_held_down_longer_each_time() {
        assert_eq!((hold_down(0), hold_down(FLAPS_FREE)), (0, 0));
        assert_eq!(hold_down(FLAPS_FREE + 1), HOLD_DOWN_MIN);
        assert_eq!(hold_down(FLAPS_FREE + 2), 2 * HOLD_DOWN_MIN);
        assert_eq!(hold_down(u16::MAX), HOLD_DOWN_MAX);

        let mut map = cluster(3);
        let node = NodeId(1);
        map.nodes.get_mut(&node).unwrap().up = false;
        map.nodes.get_mut(&node).unwrap().flaps = FLAPS_FREE + 1;
        let mut it = Liveness::new(3_000_000, Time(0));
        let beat = |it: &mut Liveness, from: u64, to: u64| {
            (from..=to).for_each(|s| it.heard(node, Time(s * 1_000_000)));
        };
        beat(&mut it, 10, 15);
        let up = |it: &Liveness, s: u64| it.changes(&map, Time(s * 1_000_000), none).contains(&(node, true));
        assert!(!up(&it, 15));
        assert_eq!(it.held_down(&map, node, Time(15_000_000)), 5_000_000);
        // A pause: the time begins anew.
        beat(&mut it, 19, 28);
        assert!(!up(&it, 28));
        beat(&mut it, 29, 29);
        assert!(up(&it, 29));
    }
}
