//! What a new CRUSH map would move, against maps that were really changed.

use super::super::tests::{cluster, create, pool, register};
use super::super::{Command, FailureDomain, Out};
use super::*;
use crate::crush::edit::Edit;
use crate::crush::{MapDef, WEIGHT_ONE};

fn edited(map: &ClusterMap, edit: &Edit) -> CrushMap {
    map.crush.edited(edit).unwrap_or_else(|error| panic!("{edit:?}: {error}")).0
}

fn reweight(device: u32, weight: u32) -> Edit {
    Edit::Reweight { name: format!("osd.{device}"), weight }
}

fn rooms(map: &ClusterMap, used: u64) -> BTreeMap<NodeId, Room> {
    map.nodes.keys().map(|node| (*node, Room { total: 8 << 30, used })).collect()
}

#[test]
fn nothing_moves_where_nothing_changes() {
    let map = cluster(6);
    let diff = crush_diff(&map, &map.crush, &rooms(&map, 1 << 30)).unwrap();
    assert_eq!((diff.moves.len(), diff.bytes, diff.problems()), (0, 0, vec![]));
    assert_eq!(diff.nodes.values().map(|it| it.pgs_before).sum::<u64>(), 3 * 32);
    assert_eq!((diff.pools[0].pending, diff.pools[0].short_after), (0, 0));
    // Nor where only names do.
    let rename = Edit::Rename { from: "host3".to_owned(), to: "h".to_owned() };
    assert_eq!(crush_diff(&map, &edited(&map, &rename), &rooms(&map, 0)).unwrap().moves, []);
}

#[test]
fn what_is_foretold_is_what_the_new_map_gives() {
    let mut map = cluster(6);
    map.apply(&create("a", 1 << 30)).unwrap();
    let new = edited(&map, &reweight(2, 0));
    let diff = crush_diff(&map, &new, &rooms(&map, 3 << 30)).unwrap();
    // A pool made by the new map is placed as foretold.
    let mut later = map.clone();
    later.apply(&Command::SetCrush { crush: Box::new(new) }).unwrap();
    let mut placer = later.placer();
    let mut expected = Vec::new();
    for (pg, config) in map.pool_pgs(PoolId(1)) {
        let target = placer.place(PoolId(1), &map.pools[&PoolId(1)], pg.pg).unwrap();
        if target.iter().any(|node| !config.new.contains(node)) {
            expected.push((pg, config.new.to_vec(), target));
        }
    }
    let moves: Vec<_> = diff.moves.iter().map(|it| (it.pg, it.acting.clone(), it.target.clone())).collect();
    assert_eq!(moves, expected);
    let of_node_2 = map.pool_pgs(PoolId(1)).filter(|(_, it)| it.new.contains(&NodeId(2))).count();
    assert!(of_node_2 > 0);
    assert_eq!(diff.nodes[&NodeId(2)].pgs_out as usize, of_node_2);
    assert_eq!((diff.nodes[&NodeId(2)].pgs_after(), diff.nodes[&NodeId(2)].pgs_in), (0, 0));
    let sums = diff.nodes.values().fold((0, 0), |sum, it| (sum.0 + it.pgs_in, sum.1 + it.pgs_out));
    assert_eq!(sums, (diff.pools[0].moved_copies, diff.pools[0].moved_copies));
    // Once it is set, the same is pending, and nothing more would move by setting it again.
    let again = crush_diff(&later, &later.crush, &rooms(&map, 3 << 30)).unwrap();
    assert_eq!((again.pools[0].pending as usize, &again.moves), (diff.moves.len(), &diff.moves));
}

#[test]
fn bytes_are_those_in_use_or_those_that_could_be() {
    let mut map = cluster(6);
    map.apply(&create("a", 32 << 30)).unwrap();
    let new = edited(&map, &reweight(2, 0));
    // All nodes together have three copies of 32 groups of 1 GiB.
    let half: BTreeMap<NodeId, Room> = map
        .nodes
        .keys()
        .map(|node| {
            let pgs = map.pool_pgs(PoolId(1)).filter(|(_, it)| it.new.contains(node)).count() as u64;
            (*node, Room { total: 100 << 30, used: pgs << 29 })
        })
        .collect();
    let diff = crush_diff(&map, &new, &half).unwrap();
    assert_eq!((diff.bytes, diff.unmeasured), (diff.pools[0].moved_copies << 29, 0));
    assert_eq!(diff.nodes[&NodeId(2)].bytes_out, diff.nodes[&NodeId(2)].pgs_out << 29);
    let unknown = crush_diff(&map, &new, &BTreeMap::new()).unwrap();
    assert_eq!(unknown.bytes, unknown.pools[0].moved_copies << 30);
    assert_eq!(unknown.unmeasured, unknown.moves.len() as u64);
    // Without volumes nothing is copied, whatever the nodes have in use.
    let empty = cluster(6);
    assert_eq!(crush_diff(&empty, &new, &rooms(&empty, 1 << 30)).unwrap().bytes, 0);
    assert_eq!(diff.seconds(1 << 29, None), diff.pools[0].moved_copies);
    let busiest = diff.nodes.values().map(|it| it.pgs_in.max(it.pgs_out)).max().unwrap();
    assert_eq!(diff.seconds(u64::MAX, Some(1 << 28)), 2 * busiest);
    assert_eq!(diff.seconds(0, Some(0)), diff.bytes);
}

#[test]
fn a_map_with_too_few_places_is_a_problem_only_where_it_is_worse() {
    let map = cluster(3);
    let new = edited(&map, &reweight(1, 0));
    let diff = crush_diff(&map, &new, &rooms(&map, 0)).unwrap();
    let it = &diff.pools[0];
    assert_eq!((it.newly_short, it.short_after, it.short_before, diff.moves.len()), (32, 32, 0, 0));
    assert_eq!(it.first_short, Some((PgId { pool: PoolId(1), pg: 0 }, 2)));
    let problems = diff.problems();
    assert_eq!(problems.len(), 1);
    let told = problems[0].to_string();
    assert!(
        told.contains("pool default (rule 0): 32 of 32") && told.contains("1.0, which would find 2"),
        "{told}"
    );
    // The rule that no pool uses is worse, too.
    assert_eq!(diff.rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["replicated_osd"]);
    // Set by force; the way back, and what makes it no worse, is no problem.
    let mut forced = map.clone();
    forced.apply(&Command::SetCrush { crush: Box::new(new) }).unwrap();
    for edit in [reweight(1, WEIGHT_ONE), reweight(2, WEIGHT_ONE)] {
        let diff = crush_diff(&forced, &edited(&forced, &edit), &rooms(&map, 0)).unwrap();
        assert_eq!((diff.problems(), diff.pools[0].short_before), (vec![], 32), "{edit:?}");
    }
}

#[test]
fn lost_nodes_and_strange_devices_get_nothing() {
    let mut map = cluster(5);
    let place = vec![("host".to_owned(), "host9".to_owned()), ("root".to_owned(), "default".to_owned())];
    let add = Edit::Add { device: "osd.9".to_owned(), weight: 50 * WEIGHT_ONE, location: place };
    let new = edited(&map, &add);
    // No node has registered as 9: its host takes part in the choice, and gives way.
    let diff = crush_diff(&map, &new, &rooms(&map, 0)).unwrap();
    assert!(!diff.nodes.contains_key(&NodeId(9)));
    map.apply(&Command::SetNodeLost { node: NodeId(3), lost: true }).unwrap();
    let diff = crush_diff(&map, &map.crush, &rooms(&map, 0)).unwrap();
    assert_eq!((diff.nodes[&NodeId(3)].pgs_in, diff.nodes[&NodeId(3)].pgs_after()), (0, 0));
    assert_eq!(diff.pools[0].pending as usize, diff.moves.len());
    let nodes = vec![(NodeId(2), Some(Out::Administrator))];
    map.apply(&Command::SetNodesOut { nodes }).unwrap();
    let diff = crush_diff(&map, &map.crush, &rooms(&map, 0)).unwrap();
    assert_eq!((diff.nodes[&NodeId(2)].pgs_in, diff.nodes[&NodeId(2)].pgs_after()), (0, 0));
}

#[test]
fn a_node_without_room_is_a_problem() {
    let mut map = cluster(4);
    map.apply(&create("a", 32 << 30)).unwrap();
    // Four nodes of 8 GiB with 7 in use: three cannot hold it.
    let new = edited(&map, &reweight(0, 0));
    let diff = crush_diff(&map, &new, &rooms(&map, 7 << 30)).unwrap();
    let crowded: Vec<NodeId> = diff.crowded.iter().map(|(node, _)| *node).collect();
    assert_eq!(crowded, [NodeId(1), NodeId(2), NodeId(3)]);
    assert!(diff.problems()[0].to_string().contains("node.1 would hold about"), "{:?}", diff.problems());
    assert_eq!(crush_diff(&map, &new, &rooms(&map, 4 << 30)).unwrap().problems(), []);
}

#[test]
fn a_map_without_a_pools_rule_is_refused() {
    let map = cluster(3);
    let def = MapDef { rules: Vec::new(), ..map.crush.def().clone() };
    let error = crush_diff(&map, &CrushMap::new(def).unwrap(), &rooms(&map, 0)).unwrap_err();
    assert!(error.to_string().contains("pool \"default\" needs rule 0"), "{error}");
}

#[test]
fn nobodys_edit_is_lost() {
    let mut map = cluster(4);
    let seen = map.crush_version;
    let mine = edited(&map, &reweight(1, WEIGHT_ONE));
    let replace = |seen, crush: &CrushMap| Command::ReplaceCrush { seen, crush: Box::new(crush.clone()) };
    // What is no change of the CRUSH map does not count.
    map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(0), false)], now: 9 }).unwrap();
    map.apply(&pool("other", 8, FailureDomain::Osd)).unwrap();
    assert_eq!(map.crush_version, seen);
    map.apply_at(&replace(seen, &mine), 7).unwrap();
    assert_eq!(
        map.events().after(0, 9).map(|it| it.what.to_string()).collect::<Vec<_>>(),
        ["CRUSH map changed"]
    );
    assert_eq!((map.crush_version, &*map.crush), (map.version, &mine));
    // An answer was lost, and it was asked again.
    let before = map.clone();
    map.apply_at(&replace(seen, &mine), 8).unwrap();
    assert_eq!(map, before);
    // Somebody else had read the map before.
    let other = edited(&cluster(4), &reweight(2, WEIGHT_ONE));
    let error = map.apply(&replace(seen, &other)).unwrap_err();
    assert_eq!(error, MapError::CrushChanged { seen, current: map.crush_version });
    assert_eq!(map, before);
    // A node that registers changes it, too.
    let seen = map.crush_version;
    map.apply(&register(7)).unwrap();
    assert!(map.apply(&replace(seen, &other)).is_err());
    // Whoever has an older map learns of the version by the difference.
    let mut older = before.clone();
    older.apply_delta(&map.diff(&before).unwrap()).unwrap();
    assert_eq!(older, map);
}
