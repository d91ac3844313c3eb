//! Moving data: List, Compare and N7, new epochs at leaders.

use crate::world::{self, Disk, World, ids};
use trefoil_core::leader::Options;
use trefoil_core::placement::PgConfig;
use trefoil_core::*;

fn learn(epoch: u64) -> PgConfig {
    PgConfig { learners: ids(&[3]), ..PgConfig::simple(Epoch(epoch), ids(&[0, 1, 2])) }
}
fn joint(epoch: u64) -> PgConfig {
    PgConfig { epoch: Epoch(epoch), old: ids(&[0, 1, 2]), new: ids(&[0, 1, 3]), learners: vec![] }
}
fn simple(epoch: u64, set: &[u32]) -> PgConfig {
    PgConfig::simple(Epoch(epoch), ids(set))
}

const ALL: [u32; 4] = [0, 1, 2, 3];

/// Nodes 0, 1, 2 with a front end that has written 71 and 72, and node 3, which has nothing.
fn with_data() -> (World, usize) {
    let mut w = World::new();
    w.boot(NodeId(3), Disk::default());
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 71);
    w.write(f, 1, 3, 72);
    (w, f)
}

/// Everything of the PG is gone at the node, and it has left.
fn has_left(w: &World, node: u32) -> bool {
    let disk = &w.hosts[&NodeId(node)].disk;
    let group = World::object(0).group;
    let empty = disk.durable.groups.get(&group).is_none_or(|g| g.objects.is_empty() && g.behind.is_empty());
    empty && disk.blocks.is_empty() && disk.durable.pgs[&group.pg].left.is_some()
}

#[test]
fn a_member_is_replaced_under_writes_and_leaves_empty() {
    let (mut w, f) = with_data();
    let mut value = 100;
    for config in [learn(2), joint(3), simple(4, &[0, 1, 3])] {
        w.configure(config, &ALL);
        w.tell_config(f);
        for object in 0..3 {
            value += 1;
            let id = w.write(f, object, 1, value);
            w.pass(300_000);
            assert_eq!(w.result(f, id), Some(Ok(0)));
        }
        assert_eq!((w.at(3, 0, 0), w.at(3, 1, 3), w.at(3, 2, 1)), (71, 72, value));
    }
    w.pass(500_000);
    assert!(has_left(&w, 2) && !has_left(&w, 3));
    for node in [0, 1, 3] {
        assert_eq!((w.at(node, 0, 0), w.at(node, 2, 1)), (71, value));
    }
    assert_eq!(w.value(f, 0, 0), 71);
    assert!(w.fronts[f].machine.all_whole());
}

#[test]
fn an_undone_learner_leaves_and_a_node_that_left_comes_back() {
    let (mut w, f) = with_data();
    w.configure(learn(2), &ALL);
    w.tell_config(f);
    w.pass(300_000);
    assert_eq!(w.at(3, 0, 0), 71);
    w.configure(simple(3, &[0, 1, 2]), &ALL);
    w.tell_config(f);
    w.pass(500_000);
    assert!(has_left(&w, 3));
    w.configure(learn(4), &ALL);
    w.tell_config(f);
    w.pass(300_000);
    assert_eq!((w.at(3, 0, 0), w.at(3, 1, 3)), (71, 72));
    assert!(!has_left(&w, 3) && w.fronts[f].machine.all_whole());
}

#[test]
fn nothing_is_deleted_before_a_majority_of_the_others_has_it() {
    let (mut w, f) = with_data();
    w.crash(NodeId(0));
    w.write(f, 2, 0, 73);
    // Node 1 holds it all. Node 0 is away, and node 3 has never heard of it.
    w.configure(simple(4, &[0, 1, 3]), &[1, 2, 3]);
    w.pass(5_000_000);
    assert!(!has_left(&w, 2), "one copy would be left");
    // Node 0 is back, and behind.
    w.restart(NodeId(0));
    w.disconnect(f, NodeId(0));
    w.pass(5_000_000);
    assert!(!has_left(&w, 2), "node 0 lacks a write");
    w.connect(f, NodeId(0));
    w.tell_config(f);
    w.pass(1_000_000);
    assert!(has_left(&w, 2));
    assert_eq!((w.at(0, 2, 0), w.at(1, 2, 0), w.at(3, 2, 0)), (73, 73, 73));
}

#[test]
fn a_majority_that_holds_as_much_is_enough_without_any_leader() {
    let (mut w, f) = with_data();
    w.disconnect(f, NodeId(2));
    w.configure(simple(4, &[0, 1, 3]), &ALL);
    w.pass(1_000_000);
    // Nobody has opened the group under the new epoch; 0 and 1 are level, and in the line of node 2.
    assert!(w.at(0, 0, 0) == 71 && has_left(&w, 2));
    assert_eq!(w.at(3, 0, 0), 0, "nor has node 3 heard of it");
}

#[test]
fn a_list_names_the_groups_and_lets_none_be_born_under_an_older_epoch() {
    let (mut w, f) = with_data();
    assert_eq!(w.list(3, 1, 0).map(|list| list.groups.len()), Some(0));
    let list = w.list(0, 2, 9).expect("an answer");
    let [group] = list.groups[..] else { panic!("{list:?}") };
    assert_eq!((group.volume, group.opened, group.behind, group.lost), (world::VOLUME, Epoch(1), 0, false));
    assert_eq!(group.promised, group.settled);
    // Durable: also behind a restart with the old map.
    w.restart(NodeId(0));
    w.restart(NodeId(1));
    assert_eq!(w.list(0, 1, 0), None, "an older one");
    let state = &w.hosts[&NodeId(0)].disk.durable;
    assert_eq!((state.pgs[&list.pg].epoch, state.fences[&world::VOLUME]), (Epoch(2), Generation(9)));
    // Two of three have answered: nobody opens the group under epoch 1 any more. One alone does not count.
    w.list(1, 2, 0).expect("an answer");
    let f2 = w.front(9, Options::default());
    let id = w.write(f2, 0, 0, 80);
    w.pass(500_000);
    assert_eq!(w.result(f2, id), None);
    w.configure(joint(2), &ALL);
    w.tell_config(f2);
    w.pass(500_000);
    assert_eq!(w.result(f2, id), Some(Ok(0)));
    let list = w.list(3, 2, 0).expect("an answer");
    assert_eq!((list.groups[0].opened, list.groups[0].behind), (Epoch(2), 0));
    assert!(w.fronts[f].events.contains(&"deposed"));
}

#[test]
fn an_answer_to_list_waits_until_the_epoch_is_durable() {
    let (mut w, _) = with_data();
    w.hosts.get_mut(&NodeId(0)).unwrap().disk.hold = true;
    assert_eq!(w.list(0, 2, 0), None);
    w.flush(NodeId(0));
    assert_eq!(w.listed.len(), 1);
}

#[test]
fn a_quorum_of_both_sets_is_needed_in_a_joint_epoch() {
    let (mut w, f) = with_data();
    w.configure(learn(2), &ALL);
    w.tell_config(f);
    w.pass(300_000);
    w.configure(joint(3), &ALL);
    w.tell_config(f);
    w.pass(300_000);
    w.crash(NodeId(1));
    let id = w.write(f, 0, 0, 90);
    assert_eq!(w.result(f, id), Some(Ok(0)), "0 and 2; 0 and 3");
    w.crash(NodeId(3));
    let id = w.write(f, 0, 0, 91);
    w.pass(300_000);
    assert_eq!(w.result(f, id), None, "0 and 2 are no majority of the new set");
    w.restart(NodeId(3));
    w.pass(300_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
}
