//! Which nodes that are down are taken *out*: their data is re-homed, without anybody saying so.
//!
//! That moves data, and moving the data of many nodes at once is how an outage becomes a disaster. So it is never
//! done by itself where something larger than single nodes has failed, or where it could not end well. An
//! administrator can always say otherwise. Pure: the time and the nodes' room come in.

use super::{ClusterMap, Node};
use crate::ids::*;
use std::collections::{BTreeMap, BTreeSet};

/// A node is taken out when it has been down for so long (ms), where nobody says otherwise.
pub const OUT_AFTER_DEFAULT: u64 = 600_000;
/// Of the room of the nodes that are left, so much may be used when all is re-homed, in percent.
pub const FILL_MAX_PERCENT: u64 = 85;

/// Why no node is taken out by itself, or not this one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOut {
    /// That is no failure of nodes.
    #[error("{away} of {nodes} nodes are away: more than a third")]
    TooMany {
        /// Nodes that are down, out or lost.
        away: usize,
        /// All nodes.
        nodes: usize,
    },
    /// A host, rack or zone with several nodes has lost all of them: power or network, most likely.
    #[error("all nodes of {0} are away")]
    WholeDomain(String),
    /// The others could not hold it.
    #[error("the other nodes would be filled to {percent} %, more than {FILL_MAX_PERCENT} %")]
    NoRoom {
        /// How full they would be.
        percent: u64,
    },
    /// A node has not said yet how much it holds.
    #[error("how much data {0} holds is not known")]
    UnknownRoom(NodeId),
}

/// Bytes of a node.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// That it may hold.
    pub total: u64,
    /// That it holds.
    pub used: u64,
}

/// What is decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// These are taken out now.
    pub out: Vec<NodeId>,
    /// These have been down for long enough, and are not.
    pub kept: Vec<(NodeId, NotOut)>,
}

fn is_away(node: &Node) -> bool {
    !node.up || node.lost || node.out.is_some()
}

/// Decides. `after`: see [`OUT_AFTER_DEFAULT`]; 0: never. `now`: milliseconds since 1970. `room`: what each node
/// last said.
pub fn decide(map: &ClusterMap, after: u64, now: u64, room: &BTreeMap<NodeId, Room>) -> Decision {
    let mut decision = Decision::default();
    if after == 0 {
        return decision;
    }
    let due = |node: &Node| !node.up && node.out.is_none() && now.saturating_sub(node.since) >= after;
    let candidates: Vec<NodeId> = map.nodes.iter().filter(|(_, node)| due(node)).map(|(id, _)| *id).collect();
    if candidates.is_empty() {
        return decision;
    }
    let away = map.nodes.values().filter(|node| is_away(node)).count();
    if away * 3 > map.nodes.len() {
        let why = NotOut::TooMany { away, nodes: map.nodes.len() };
        decision.kept = candidates.into_iter().map(|node| (node, why.clone())).collect();
        return decision;
    }
    let dead = dead_domains(map);
    let mut left = left_over(map, room);
    for node in candidates {
        if let Some(name) = dead.get(&node) {
            decision.kept.push((node, NotOut::WholeDomain(name.clone())));
            continue;
        }
        let Some(mine) = room.get(&node) else {
            decision.kept.push((node, NotOut::UnknownRoom(node)));
            continue;
        };
        // What was taken out before it comes to the same nodes.
        let used = left.used.saturating_add(mine.used);
        let percent = u128::from(used) * 100 / u128::from(left.total.max(1));
        if percent > u128::from(FILL_MAX_PERCENT) {
            let percent = u64::try_from(percent).unwrap_or(u64::MAX);
            decision.kept.push((node, NotOut::NoRoom { percent }));
            continue;
        }
        left.used = used;
        decision.out.push(node);
    }
    decision
}

/// All nodes that are there, together. What a node has not said counts as no room.
fn left_over(map: &ClusterMap, room: &BTreeMap<NodeId, Room>) -> Room {
    let there = map.nodes.iter().filter(|(_, node)| !is_away(node));
    let there = there.filter_map(|(id, _)| room.get(id));
    there.fold(Room::default(), |sum, it| Room {
        total: sum.total.saturating_add(it.total),
        used: sum.used.saturating_add(it.used),
    })
}

/// The nodes of hosts, racks and so on with several nodes, none of which is there, and the name of the largest
/// such. Roots are left out: that all is away is found by counting.
fn dead_domains(map: &ClusterMap) -> BTreeMap<NodeId, String> {
    let def = map.crush.def();
    let buckets: BTreeMap<i32, _> = def.buckets.iter().map(|bucket| (bucket.id, bucket)).collect();
    let inner: BTreeSet<i32> =
        def.buckets.iter().flat_map(|bucket| &bucket.items).map(|item| item.id).collect();
    let mut dead: BTreeMap<NodeId, (usize, String)> = BTreeMap::new();
    for bucket in def.buckets.iter().filter(|bucket| inner.contains(&bucket.id)) {
        let mut nodes = BTreeSet::new();
        let mut look: Vec<i32> = vec![bucket.id];
        // The map has been compiled: it is a tree.
        while let Some(id) = look.pop() {
            match (u32::try_from(id), buckets.get(&id)) {
                (Ok(device), _) if map.nodes.contains_key(&NodeId(device)) => {
                    nodes.insert(NodeId(device));
                }
                (_, Some(bucket)) => look.extend(bucket.items.iter().map(|item| item.id)),
                _ => {}
            }
        }
        if nodes.len() < 2 || nodes.iter().any(|id| map.nodes.get(id).is_some_and(|node| !is_away(node))) {
            continue;
        }
        for node in &nodes {
            let known = dead.entry(*node).or_insert((0, String::new()));
            if nodes.len() > known.0 {
                *known = (nodes.len(), bucket.name.clone());
            }
        }
    }
    dead.into_iter().map(|(node, (_, name))| (node, name)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cluster, register};
    use super::super::{Command, Out};
    use super::*;

    const GIB: u64 = 1 << 30;

    fn rooms(map: &ClusterMap, used: u64) -> BTreeMap<NodeId, Room> {
        map.nodes.keys().map(|id| (*id, Room { total: 100 * GIB, used })).collect()
    }

    fn down(map: &mut ClusterMap, nodes: &[u32]) {
        let nodes = nodes.iter().map(|id| (NodeId(*id), false)).collect();
        map.apply(&Command::SetNodesUp { nodes, now: 1_000 }).unwrap();
    }

    #[test]
    fn a_node_that_stays_down_is_taken_out_and_not_before() {
        let mut map = cluster(9);
        down(&mut map, &[4]);
        let room = rooms(&map, 10 * GIB);
        assert_eq!(decide(&map, 600, 1_599, &room), Decision::default());
        assert_eq!(decide(&map, 600, 1_600, &room).out, [NodeId(4)]);
        assert_eq!(decide(&map, 0, u64::MAX, &room), Decision::default(), "switched off");
        let out = Command::SetNodesOut { nodes: vec![(NodeId(4), Some(Out::Automatic))] };
        map.apply(&out).unwrap();
        assert_eq!(decide(&map, 600, 9_000, &room), Decision::default(), "it is out");
    }

    #[test]
    fn not_when_more_than_a_third_is_away() {
        let mut map = cluster(9);
        let room = rooms(&map, GIB);
        down(&mut map, &[1, 2, 3]);
        assert_eq!(decide(&map, 600, 9_000, &room).out.len(), 3);
        down(&mut map, &[4]);
        let decision = decide(&map, 600, 9_000, &room);
        assert!(decision.out.is_empty());
        assert!(decision.kept.iter().all(|(_, why)| *why == NotOut::TooMany { away: 4, nodes: 9 }));
    }

    #[test]
    fn not_when_a_host_with_all_its_nodes_is_away() {
        let mut map = cluster(9);
        let Command::RegisterNode { id, address, class, size, now, .. } = register(20) else {
            unreachable!()
        };
        let host = "host3".to_owned();
        map.apply(&Command::RegisterNode {
            id,
            incarnation: Incarnation(77),
            address,
            host,
            class,
            size,
            now,
        })
        .unwrap();
        let room = rooms(&map, GIB);
        down(&mut map, &[3]);
        assert_eq!(decide(&map, 600, 9_000, &room).out, [NodeId(3)], "its neighbour is there");
        down(&mut map, &[9]);
        let kept = decide(&map, 600, 9_000, &room).kept;
        let why = NotOut::WholeDomain("host3".to_owned());
        assert_eq!(kept, [(NodeId(3), why.clone()), (NodeId(9), why)]);
    }

    #[test]
    fn not_when_the_others_have_no_room_for_it() {
        let mut map = cluster(4);
        down(&mut map, &[0]);
        assert_eq!(decide(&map, 600, 9_000, &rooms(&map, 63 * GIB)).out, [NodeId(0)]);
        let kept = decide(&map, 600, 9_000, &rooms(&map, 65 * GIB)).kept;
        assert_eq!(kept, [(NodeId(0), NotOut::NoRoom { percent: 86 })]);
        let mut room = rooms(&map, GIB);
        room.remove(&NodeId(0));
        assert_eq!(decide(&map, 600, 9_000, &room).kept, [(NodeId(0), NotOut::UnknownRoom(NodeId(0)))]);
    }
}
