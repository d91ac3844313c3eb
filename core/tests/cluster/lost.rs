//! Nodes that fall back behind what they had reported, and do not know it (5.9): found, not counted, and taken back by
//! the very leader that found it, as soon as they say so themselves.

use crate::world::{Disk, VOLUME, World, ids};
use trefoil_core::client::OpId;
use trefoil_core::leader::{Input, Options};
use trefoil_core::map::Ack;
use trefoil_core::node;
use trefoil_core::placement::PgConfig;
use trefoil_core::*;

/// Longer than a node is held out whose connection was given up.
const HELD_OUT: u64 = 1_100_000;

fn simple(epoch: u64) -> PgConfig {
    PgConfig::simple(Epoch(epoch), ids(&[0, 1, 2]))
}

/// A front end with some written objects.
fn world(options: Options) -> (World, usize) {
    let mut w = World::new();
    let f = w.front(1, options);
    w.lease(f, 3_600_000_000);
    for object in 0..6 {
        w.write(f, object, 0, 10 + u64::from(object));
    }
    (w, f)
}

fn snapshot(w: &World, node: u32) -> Disk {
    let disk = &w.hosts[&NodeId(node)].disk;
    Disk { durable: disk.durable.clone(), blocks: disk.blocks.clone(), ..Disk::default() }
}

/// The node starts again with what it had then, and nobody has told it. A leader that closes its connection makes it
/// anew.
fn fall_back(w: &mut World, f: usize, node: u32, to: &Disk) {
    w.crash(NodeId(node));
    w.hosts.get_mut(&NodeId(node)).expect("a node").disk = to.clone();
    w.restart(NodeId(node));
    w.glide(10_000);
    if !w.fronts[f].conns.contains_key(&NodeId(node)) {
        w.connect(f, NodeId(node));
    }
}

/// What the node's daemon does when the monitors order it.
fn take_note(w: &mut World, f: usize, node: u32) {
    let fences = vec![(VOLUME, Generation(1))];
    w.tell_node(NodeId(node), node::Input::StateLost { fences });
    w.disconnect(f, NodeId(node));
    w.connect(f, NodeId(node));
}

fn losses(w: &World, f: usize) -> usize {
    w.fronts[f].events.iter().filter(|event| **event == "lost data").count()
}

/// A write of each object is answered at once.
fn goes_on(w: &mut World, f: usize, value: u64) {
    for object in 0..6 {
        let id = w.write(f, object, 1, value);
        assert_eq!(w.result(f, id), Some(Ok(0)), "object {object}");
    }
}

/// Time passes in which two copies serve everything.
fn goes_on_for(w: &mut World, f: usize, micros: u64) {
    let end = w.now.after(micros);
    while w.now < end {
        goes_on(w, f, w.now.0);
        w.pass(50_000);
    }
}

/// All three copies are equal, in a line of the present ballot.
fn whole(w: &World, f: usize) -> bool {
    let blocks = |node: u32| {
        let blocks = &w.hosts[&NodeId(node)].disk.blocks;
        let mut blocks: Vec<_> = blocks.iter().map(|(at, value)| (*at, *value)).collect();
        blocks.sort_unstable();
        blocks
    };
    let whole = w.fronts[f].machine.all_whole();
    assert!(!whole || (1..3).all(|node| blocks(node) == blocks(0)));
    whole
}

/// With node 1 away a write needs node 0: it is answered, or not before node 1 is back.
fn counts(w: &mut World, f: usize) -> bool {
    w.crash(NodeId(1));
    let id: OpId = w.write(f, 0, 2, w.now.0);
    w.pass(400_000);
    let counts = w.result(f, id).is_some();
    w.restart(NodeId(1));
    w.pass(400_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    counts
}

/// Node 0 has lost the last writes, which was found, and is connected again.
fn found(options: Options) -> (World, usize, Disk) {
    let (mut w, f) = world(options);
    let before = snapshot(&w, 0);
    goes_on(&mut w, f, 20);
    fall_back(&mut w, f, 0, &before);
    assert_eq!(losses(&w, f), 1);
    goes_on_for(&mut w, f, HELD_OUT);
    (w, f, before)
}

#[test]
fn a_node_that_says_that_it_lost_state_is_healed_by_the_leader_that_found_it() {
    let (mut w, f, _) = found(Options::default());
    goes_on_for(&mut w, f, 3_000_000);
    assert!(!whole(&w, f));
    assert_eq!((w.at(0, 3, 1), w.at(0, 3, 0)), (0, 13), "nothing is done to its copies");
    assert!(!w.fronts[f].machine.nodes(w.now).any(|node| node.node == NodeId(0) && node.up));
    take_note(&mut w, f, 0);
    goes_on_for(&mut w, f, 500_000);
    w.pass(100_000);
    assert!(whole(&w, f));
    assert!(w.fronts[f].machine.nodes(w.now).all(|node| node.up && node.behind == 0));
    assert_eq!(w.fronts[f].machine.counters().distrust_lifted, 1);
    assert!(counts(&mut w, f));
    assert!(!w.hosts[&NodeId(0)].machine.has_lost());
}

#[test]
fn before_it_says_so_it_counts_for_nothing_and_keeps_its_old_line_from_nobody() {
    let (mut w, f, before) = found(Options::default());
    assert!(!counts(&mut w, f));
    let group = World::object(0).group;
    let settled = |w: &World| w.hosts[&NodeId(0)].disk.durable.groups[&group].settled;
    assert_eq!(settled(&w), before.durable.groups[&group].settled, "it is not settled");
    // Not for reads either.
    let reads = w.reads_sent.get(&NodeId(0)).copied();
    (0..6).for_each(|object| assert_eq!(w.value(f, object, 0), 10 + u64::from(object)));
    assert_eq!(w.reads_sent.get(&NodeId(0)).copied(), reads);
    // With one of the others away, it is repaired from the third before it counts, and then it does.
    w.crash(NodeId(1));
    let id = w.write(f, 0, 2, 77);
    take_note(&mut w, f, 0);
    w.pass(500_000);
    assert_eq!((w.result(f, id), w.at(0, 0, 2), w.at(0, 3, 1)), (Some(Ok(0)), 77, w.at(2, 3, 1)));
}

#[test]
fn a_node_that_never_takes_note_is_asked_now_and_then() {
    let (mut w, f, _) = found(Options::default());
    let before = w.opens_sent[&NodeId(0)];
    goes_on_for(&mut w, f, 120_000_000);
    let opens = w.opens_sent[&NodeId(0)] - before;
    assert!((15..40).contains(&opens), "{opens} in two minutes");
    assert_eq!(losses(&w, f), 2, "said once for each connection");
    assert!(!whole(&w, f));
    // By then it takes note, and by some mishap its connection stays.
    w.tell_node(NodeId(0), node::Input::StateLost { fences: vec![(VOLUME, Generation(1))] });
    w.pass(8_000_000);
    assert!(whole(&w, f));
}

#[test]
fn a_new_epoch_changes_nothing_about_it() {
    let (mut w, f, _) = found(Options::default());
    w.configure(simple(2), &[0, 1, 2]);
    w.tell_config(f);
    w.pass(300_000);
    assert!(!counts(&mut w, f) && !whole(&w, f));
    take_note(&mut w, f, 0);
    w.pass(500_000);
    assert!(whole(&w, f));
    // It says `lost` no more, and need not.
    w.configure(simple(3), &[0, 1, 2]);
    w.tell_config(f);
    w.pass(300_000);
    assert!(whole(&w, f) && counts(&mut w, f));
    // An epoch between its word and its Settle.
    let before = snapshot(&w, 0);
    goes_on(&mut w, f, 30);
    fall_back(&mut w, f, 0, &before);
    w.pass(10_000_000);
    w.answer_after(0, 1_000);
    take_note(&mut w, f, 0);
    w.drop_to = ids(&[0]);
    w.glide(2_000);
    w.drop_to.clear();
    w.configure(simple(4), &[0, 1, 2]);
    w.tell_config(f);
    w.glide(500_000);
    assert!(whole(&w, f));
    assert_eq!(w.fronts[f].machine.counters().distrust_lifted, 2);
}

#[test]
fn a_split_changes_nothing_about_it() {
    // Before the node has taken note.
    let (mut w, f, _) = found(Options::default());
    w.split(f, 2, 4);
    w.pass(300_000);
    goes_on(&mut w, f, 30);
    assert!(!whole(&w, f) && !counts(&mut w, f));
    take_note(&mut w, f, 0);
    w.pass(500_000);
    assert!(whole(&w, f) && counts(&mut w, f));
    assert!(w.hosts[&NodeId(0)].disk.durable.groups.len() > 1);
    // After it: the groups that split off have nothing to say of it.
    let (mut w, f, _) = found(Options::default());
    take_note(&mut w, f, 0);
    w.pass(500_000);
    assert!(whole(&w, f));
    w.split(f, 2, 4);
    w.pass(500_000);
    assert!(whole(&w, f) && counts(&mut w, f));
    // In between: it has said so, and is not settled yet.
    let (mut w, f, _) = found(Options::default());
    w.answer_after(0, 1_000);
    take_note(&mut w, f, 0);
    w.drop_to = ids(&[0]);
    w.glide(2_000);
    w.drop_to.clear();
    w.split(f, 2, 4);
    w.glide(500_000);
    assert!(whole(&w, f));
}

#[test]
fn a_second_loss_is_found_like_the_first() {
    let (mut w, f, before) = found(Options::default());
    // Ordered, and gone again with all that the device had: the mark, too.
    take_note(&mut w, f, 0);
    w.pass(20_000);
    let told = losses(&w, f);
    fall_back(&mut w, f, 0, &before);
    w.pass(HELD_OUT);
    assert!(losses(&w, f) > told && !whole(&w, f) && !counts(&mut w, f));
    w.pass(10_000_000);
    take_note(&mut w, f, 0);
    goes_on_for(&mut w, f, 500_000);
    w.pass(100_000);
    assert!(whole(&w, f) && counts(&mut w, f));
    assert_eq!(w.fronts[f].machine.counters().distrust_lifted, 2);
}

#[test]
fn a_node_that_loses_its_mark_before_it_is_settled_is_not_believed() {
    let (mut w, f, before) = found(Options::default());
    let told = losses(&w, f);
    w.answer_after(0, 1_000);
    take_note(&mut w, f, 0);
    // Its word arrives, the Settle does not.
    w.drop_to = ids(&[0]);
    w.glide(2_000);
    w.drop_to.clear();
    assert_eq!(w.fronts[f].machine.counters().distrust_lifted, 1);
    fall_back(&mut w, f, 0, &before);
    w.glide(HELD_OUT);
    assert_eq!(losses(&w, f), told + 1, "whoever orders it has to order it once more");
    assert!(!whole(&w, f));
    w.answers_after.clear();
    assert!(!counts(&mut w, f));
    take_note(&mut w, f, 0);
    w.pass(500_000);
    assert!(whole(&w, f));
}

#[test]
fn a_node_that_restarts_between_its_word_and_its_settle_is_brought_back_all_the_same() {
    for settles in [false, true] {
        let (mut w, f, _) = found(Options::default());
        w.answer_after(0, 1_000);
        take_note(&mut w, f, 0);
        if !settles {
            w.drop_to = ids(&[0]);
        }
        w.glide(1_500);
        w.drop_to.clear();
        assert_eq!(w.hosts[&NodeId(0)].machine.has_lost(), !settles);
        w.crash(NodeId(0));
        w.restart(NodeId(0));
        w.glide(HELD_OUT);
        assert!(whole(&w, f), "settled before it went: {settles}");
        assert_eq!(w.fronts[f].machine.counters().distrust_lifted, 1);
    }
}

#[test]
fn a_node_that_has_left_and_is_back_is_counted() {
    let (mut w, f, _) = found(Options::default());
    take_note(&mut w, f, 0);
    w.pass(500_000);
    w.boot(NodeId(3), Disk::default());
    let all = [0, 1, 2, 3];
    w.connect(f, NodeId(3));
    let of = |epoch, old: &[u32], new: &[u32]| PgConfig {
        epoch: Epoch(epoch),
        old: ids(old),
        new: ids(new),
        learners: vec![],
    };
    let learns = |epoch, set: &[u32], node| PgConfig {
        learners: ids(&[node]),
        ..PgConfig::simple(Epoch(epoch), ids(set))
    };
    let (with, without) = ([0, 1, 2], [1, 2, 3]);
    for config in [
        learns(2, &with, 3),
        of(3, &with, &without),
        PgConfig::simple(Epoch(4), ids(&without)),
        learns(5, &without, 0),
        of(6, &without, &with),
        simple(7),
    ] {
        w.configure(config, &all);
        w.tell_config(f);
        w.pass(1_000_000);
        let value = w.now.0;
        goes_on(&mut w, f, value);
        assert!(w.fronts[f].machine.all_whole());
    }
    assert!(whole(&w, f) && counts(&mut w, f));
    assert_eq!(w.fronts[f].machine.counters().distrust_lifted, 1);
}

#[test]
fn answers_that_wait_for_all_copies_wait_for_it_when_it_is_in_line_again() {
    let options = Options { ack: Ack::AllInSync, ..Options::default() };
    let (mut w, f, _) = found(options);
    // A round in which all members are heard of first, and one of them says nothing that counts.
    w.hosts.get_mut(&NodeId(2)).expect("a node").disk.hold = true;
    let held = w.write(f, 0, 0, 5);
    w.pass(20_000);
    assert_eq!(w.result(f, held), None, "two copies are in line, and one has it");
    w.flush(NodeId(2));
    assert_eq!(w.result(f, held), Some(Ok(0)));
    w.answer_after(0, crate::world::STOPPED);
    w.configure(simple(2), &[0, 1, 2]);
    w.tell_config(f);
    goes_on(&mut w, f, 40);
    w.answer_after(0, 0);
    w.answers_after.clear();
    take_note(&mut w, f, 0);
    goes_on_for(&mut w, f, 500_000);
    w.pass(100_000);
    assert!(whole(&w, f));
    w.hosts.get_mut(&NodeId(0)).expect("a node").disk.hold = true;
    let id = w.write(f, 0, 0, 6);
    w.pass(20_000);
    assert_eq!(w.result(f, id), None, "it is in line");
    w.flush(NodeId(0));
    assert_eq!(w.result(f, id), Some(Ok(0)));
}

#[test]
fn other_groups_count_it_no_more_as_soon_as_one_has_found_it() {
    let mut w = World::new();
    w.pg_num = 4;
    for node in 0..3 {
        w.boot(NodeId(node), Disk::default());
    }
    let f = w.front(1, Options::default());
    w.lease(f, 3_600_000_000);
    let pg = |object: u32| crate::world::pg_of(VOLUME, object, 4);
    let (here, there) = (0, (1..16).find(|object| pg(*object) != pg(0)).expect("another group"));
    w.write(f, here, 0, 1);
    w.write(f, there, 0, 1);
    let before = snapshot(&w, 0);
    w.write(f, here, 0, 2);
    fall_back(&mut w, f, 0, &before);
    assert_eq!(losses(&w, f), 1);
    w.pass(HELD_OUT);
    // Nothing was lost of the other object.
    w.crash(NodeId(1));
    let id = w.write(f, there, 0, 3);
    w.pass(1_000_000);
    assert_eq!(w.result(f, id), None);
    take_note(&mut w, f, 0);
    w.pass(500_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    w.restart(NodeId(1));
    w.pass(500_000);
    assert!(w.fronts[f].machine.all_whole());
    assert_eq!(w.fronts[f].machine.counters().distrust_lifted, 4);
    w.tell_leader(f, Input::Release);
    w.pass(50_000);
    assert_eq!(w.fronts[f].events.last(), Some(&"released clean"));
}
