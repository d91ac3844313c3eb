//! `ack = all-in-sync` (5.6): who an answer waits for, who it does not wait for, and for how long.

use crate::world::{STOPPED, World, ids};
use trefoil_core::client::{OpError, OpId};
use trefoil_core::leader::{Input, Options, UnderWay};
use trefoil_core::map::Ack;
use trefoil_core::placement::PgConfig;
use trefoil_core::*;

/// How long a healthy node takes here, and between two looks of a busy leader (µs).
const QUICK: u64 = 200;
const LOOK: u64 = 50_000;

fn all() -> Options {
    Options { ack: Ack::AllInSync, ..Options::default() }
}

/// A front end with three written objects, on nodes that all take [`QUICK`].
fn world(options: Options) -> (World, usize) {
    let mut w = World::new();
    (0..3).for_each(|node| w.answer_after(node, QUICK));
    let f = w.front(1, options);
    w.lease(f, 3_600_000_000);
    w.glide(10_000);
    for object in 0..3 {
        let id = w.write(f, object, 0, 100 + u64::from(object));
        w.glide(1_000);
        assert_eq!(w.result(f, id), Some(Ok(0)));
    }
    (w, f)
}

/// How long until it is answered (µs).
fn waits(w: &mut World, f: usize, id: OpId) -> u64 {
    let began = w.now;
    while w.result(f, id).is_none() {
        w.glide(1_000);
        assert!(w.now.since(began) < 60_000_000, "nobody answers");
    }
    assert_eq!(w.result(f, id), Some(Ok(0)));
    w.now.since(began)
}

fn hold(w: &mut World, node: u32) {
    w.hosts.get_mut(&NodeId(node)).unwrap().disk.hold = true;
}

fn resets(w: &World, f: usize) -> usize {
    w.fronts[f].events.iter().filter(|event| **event == "reset").count()
}

#[test]
fn an_answer_waits_for_all_three_and_what_a_majority_has_is_read() {
    let (mut w, f) = world(all());
    let before = w.fronts[f].machine.counters().answers_held;
    hold(&mut w, 2);
    let (first, second) = (w.write(f, 0, 0, 1), w.write(f, 0, 0, 2));
    let other = w.write(f, 1, 1, 3);
    w.glide(100_000);
    assert_eq!([first, second, other].map(|id| w.result(f, id)), [None; 3]);
    let read = w.read(f, 0, 0);
    w.glide(10_000);
    assert_eq!(w.result(f, read), Some(Ok(2)), "a read waits for a majority, and for nobody else");
    w.flush(NodeId(2));
    w.glide(10_000);
    assert_eq!([first, second, other].map(|id| w.result(f, id)), [Some(Ok(0)); 3]);
    assert_eq!(w.fronts[f].machine.counters().answers_held - before, 3);
    assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default());
    assert_eq!((w.at(2, 0, 0), w.at(2, 1, 1)), (2, 3));
}

#[test]
fn two_copies_are_no_reason_to_answer_nor_is_one() {
    let (mut w, f) = world(all());
    for held in [[1, 2], [0, 2], [0, 1]] {
        held.iter().for_each(|node| hold(&mut w, *node));
        let id = w.write(f, 0, 0, u64::from(held[0]) + 10);
        w.glide(10_000);
        assert_eq!(w.result(f, id), None);
        w.flush(NodeId(held[0]));
        w.glide(10_000);
        assert_eq!(w.result(f, id), None);
        w.flush(NodeId(held[1]));
        w.glide(10_000);
        assert_eq!(w.result(f, id), Some(Ok(0)));
    }
}

#[test]
fn a_node_that_is_gone_is_not_waited_for_and_counts_again_when_it_is_back() {
    let (mut w, f) = world(all());
    hold(&mut w, 2);
    let id = w.write(f, 0, 0, 1);
    w.glide(10_000);
    assert_eq!(w.result(f, id), None);
    w.crash(NodeId(2));
    assert_eq!(w.result(f, id), Some(Ok(0)), "at once");
    let id = w.write(f, 0, 1, 2);
    assert!(waits(&mut w, f, id) <= 2_000);
    w.restart(NodeId(2));
    w.glide(1_000_000);
    assert!(w.fronts[f].machine.all_whole());
    assert_eq!((w.at(2, 0, 0), w.at(2, 0, 1)), (1, 2));
    hold(&mut w, 2);
    let id = w.write(f, 0, 0, 3);
    w.glide(10_000);
    assert_eq!(w.result(f, id), None, "it is in line again");
    w.flush(NodeId(2));
    w.glide(1_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
}

#[test]
fn a_copy_under_repair_is_not_waited_for() {
    let (mut w, f) = world(all());
    w.crash(NodeId(2));
    let id = w.write(f, 0, 0, 1);
    assert!(waits(&mut w, f, id) <= 2_000);
    // It settles, and then its disk hangs: the repair does not end.
    w.restart(NodeId(2));
    w.glide(QUICK + QUICK / 2);
    hold(&mut w, 2);
    w.glide(100_000);
    assert_eq!(w.fronts[f].machine.copies_behind(), 1);
    let under_repair = w.write(f, 0, 1, 2);
    let in_line = w.write(f, 1, 1, 2);
    w.glide(10_000);
    assert_eq!((w.result(f, under_repair), w.result(f, in_line)), (Some(Ok(0)), None));
    // What is written meanwhile waits for it from when it is in line.
    w.flush(NodeId(2));
    w.glide(10_000);
    assert_eq!(w.result(f, in_line), Some(Ok(0)));
    assert!(w.fronts[f].machine.all_whole());
}

#[test]
fn a_stopped_node_holds_up_answers_for_the_node_timeout() {
    let (mut w, f) = world(all());
    let limit = Options::default().node_timeout;
    for node in 0..3 {
        w.answer_after(node, STOPPED);
        let id = w.write(f, 0, 0, 500 + u64::from(node));
        let read = w.read(f, 1, 0);
        w.glide(50_000);
        assert_eq!(w.result(f, read), Some(Ok(101)), "reads wait for nobody");
        let took = waits(&mut w, f, id) + 50_000;
        assert!((limit..=limit + 2 * LOOK).contains(&took), "node {node}: {took} µs");
        // And then for nobody.
        let id = w.write(f, 0, 0, 600 + u64::from(node));
        assert!(waits(&mut w, f, id) <= 2_000);
        w.answer_after(node, QUICK);
        let lost: Vec<NodeId> =
            (0..3).map(NodeId).filter(|node| !w.fronts[f].conns.contains_key(node)).collect();
        assert_eq!(lost, [NodeId(node)]);
        w.connect(f, NodeId(node));
        w.glide(130_000_000);
        assert!(w.fronts[f].machine.all_whole());
        assert_eq!(w.at(node, 0, 0), 600 + u64::from(node));
    }
}

#[test]
fn a_node_that_is_too_late_holds_up_answers_for_as_long_as_a_laggard_may_be() {
    let limit = 1_000_000;
    let (mut w, f) = world(Options { lag_max: limit, ..all() });
    // It says something all the time, each word three seconds old.
    w.answer_after(1, 3 * limit);
    let mut sent = Vec::new();
    for n in 0..40 {
        sent.push((w.now, w.write(f, n % 3, n % 8, 700 + u64::from(n))));
        w.glide(limit / 20);
    }
    w.glide(limit);
    assert_eq!(resets(&w, f), 1, "it is cut loose");
    assert_eq!(w.fronts[f].machine.nodes(w.now).map(|node| node.cuts).sum::<u64>(), 1);
    assert!(sent.iter().all(|(_, id)| w.result(f, *id) == Some(Ok(0))));
    let (mut w, f) = world(Options { lag_max: limit, ..all() });
    w.answer_after(1, 3 * limit);
    let id = w.write(f, 0, 0, 1);
    let took = waits(&mut w, f, id);
    assert!((limit..=limit + 2 * LOOK).contains(&took), "{took} µs");
    assert_eq!(w.fronts[f].machine.counters().answers_late, 1);
}

#[test]
fn where_a_late_node_cannot_be_cut_loose_its_copy_is_left_behind_alone() {
    let limit = 1_000_000;
    let (mut w, f) = world(Options { lag_max: limit, ..all() });
    // Node 1 has no room for object 5: whoever else is cut loose leaves that one without a majority.
    w.room(1, 0);
    let id = w.write(f, 5, 0, 1);
    w.glide(10_000);
    assert_eq!(w.result(f, id), Some(Ok(0)), "a copy without room does not count");
    w.answer_after(0, 3 * limit);
    let (needed, spared) = (w.write(f, 5, 0, 2), w.write(f, 0, 0, 3));
    let took = waits(&mut w, f, spared);
    assert!((limit..=limit + 2 * LOOK).contains(&took), "{took} µs");
    assert_eq!((w.result(f, needed), resets(&w, f)), (None, 0), "that one waits for its majority");
    assert!(waits(&mut w, f, needed) + took <= 3 * limit + 2 * LOOK);
    w.answer_after(0, QUICK);
    w.glide(5_000_000);
    assert_eq!((w.at(0, 0, 0), w.at(1, 0, 0)), (3, 3));
}

#[test]
fn answers_are_released_when_the_pool_is_set_to_a_majority_and_held_when_it_is_set_back() {
    let (mut w, f) = world(Options::default());
    hold(&mut w, 0);
    let id = w.write(f, 0, 0, 1);
    assert!(waits(&mut w, f, id) <= 2_000, "a majority");
    w.tell_leader(f, Input::Ack { ack: Ack::AllInSync });
    let held = w.write(f, 0, 0, 2);
    let elsewhere = w.write(f, 1, 0, 2);
    w.glide(10_000);
    assert_eq!((w.result(f, held), w.result(f, elsewhere)), (None, None));
    w.tell_leader(f, Input::Ack { ack: Ack::Majority });
    assert_eq!((w.result(f, held), w.result(f, elsewhere)), (Some(Ok(0)), Some(Ok(0))));
    w.tell_leader(f, Input::Ack { ack: Ack::AllInSync });
    let held = w.write(f, 0, 0, 3);
    w.glide(10_000);
    assert_eq!(w.result(f, held), None);
    w.flush(NodeId(0));
    w.glide(10_000);
    assert_eq!((w.result(f, held), w.at(0, 0, 0)), (Some(Ok(0)), 3));
}

#[test]
fn a_next_round_answers_when_everybody_has_been_heard_of() {
    let next = |epoch| PgConfig::simple(Epoch(epoch), ids(&[0, 1, 2]));
    let (mut w, f) = world(all());
    // It comes back in time.
    w.answer_after(2, STOPPED);
    let id = w.write(f, 0, 0, 1);
    w.glide(10_000);
    w.configure(next(2), &[0, 1, 2]);
    w.tell_config(f);
    w.glide(10_000);
    assert_eq!(w.result(f, id), None, "node 2 has not said whether it has it");
    w.answer_after(2, QUICK);
    w.glide(10_000);
    assert_eq!((w.result(f, id), w.at(2, 0, 0)), (Some(Ok(0)), 1));
    assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default());
    // It does not.
    w.answer_after(2, STOPPED);
    let id = w.write(f, 0, 0, 2);
    w.glide(10_000);
    w.configure(next(3), &[0, 1, 2]);
    w.tell_config(f);
    w.glide(10_000);
    assert_eq!(w.result(f, id), None);
    let limit = Options::default().node_timeout;
    assert!(waits(&mut w, f, id) <= limit + 2 * LOOK);
    // Its connection breaks.
    w.answer_after(2, QUICK);
    w.connect(f, NodeId(2));
    w.glide(5_000_000);
    assert!(w.fronts[f].machine.all_whole());
    w.answer_after(2, STOPPED);
    let id = w.write(f, 0, 0, 3);
    w.glide(10_000);
    w.configure(next(4), &[0, 1, 2]);
    w.tell_config(f);
    w.glide(10_000);
    w.crash(NodeId(2));
    assert_eq!(w.result(f, id), Some(Ok(0)));
}

#[test]
fn a_learner_is_not_waited_for_and_a_new_member_is() {
    let (mut w, f) = world(all());
    w.boot(NodeId(3), crate::world::Disk::default());
    w.answer_after(3, QUICK);
    let nodes = [0, 1, 2, 3];
    w.configure(PgConfig { learners: ids(&[3]), ..PgConfig::simple(Epoch(2), ids(&[0, 1, 2])) }, &nodes);
    w.connect(f, NodeId(3));
    w.tell_config(f);
    w.glide(1_000_000);
    assert!(w.fronts[f].machine.all_whole(), "it has learnt");
    w.answer_after(3, STOPPED);
    let id = w.write(f, 0, 0, 1);
    assert!(waits(&mut w, f, id) <= 2_000);
    w.answer_after(3, QUICK);
    w.configure(
        PgConfig { epoch: Epoch(3), old: ids(&[0, 1, 2]), new: ids(&[0, 1, 3]), learners: vec![] },
        &nodes,
    );
    w.tell_config(f);
    w.glide(1_000_000);
    assert!(w.fronts[f].machine.all_whole());
    for (node, value) in [(3, 2), (2, 3), (0, 4)] {
        w.answer_after(node, STOPPED);
        let id = w.write(f, 0, 0, value);
        w.glide(100_000);
        assert_eq!(w.result(f, id), None, "node {node} is a member, old or new");
        w.answer_after(node, QUICK);
        w.glide(10_000);
        assert_eq!(w.result(f, id), Some(Ok(0)));
    }
}

#[test]
fn an_io_timeout_ends_an_answer_that_is_held_and_the_write_stays() {
    let (mut w, f) = world(Options { io_timeout: Some(300_000), ..all() });
    hold(&mut w, 1);
    let id = w.write(f, 0, 0, 1);
    w.glide(500_000);
    assert_eq!(w.result(f, id), Some(Err(OpError::TimedOut)));
    let read = w.read(f, 0, 0);
    w.glide(10_000);
    assert_eq!(w.result(f, read), Some(Ok(1)), "a majority has it");
    w.flush(NodeId(1));
    w.glide(10_000);
    assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default());
}

#[test]
fn without_a_lease_an_answer_waits_for_all_and_then_for_a_confirm() {
    let mut w = World::new();
    let f = w.front(1, all());
    w.now = w.now.after(5_000_000); // the lease is over
    hold(&mut w, 2);
    let id = w.write(f, 0, 0, 1);
    assert_eq!(w.result(f, id), None);
    w.flush(NodeId(2));
    assert_eq!(w.result(f, id), Some(Ok(0)), "confirmed by the nodes");
    w.stop(f);
    let id = w.write(f, 0, 0, 2);
    let g = w.front(2, all());
    assert_eq!(w.fronts[g].events, ["attached"]);
    w.resume(f);
    assert_ne!(w.result(f, id), Some(Ok(0)), "its successor has attached (P4)");
}

#[test]
fn a_release_waits_for_the_answers() {
    let (mut w, f) = world(all());
    hold(&mut w, 2);
    let id = w.write(f, 0, 0, 1);
    w.tell_leader(f, Input::Release);
    w.glide(1_000_000);
    assert!(w.result(f, id).is_none() && !w.fronts[f].events.iter().any(|it| it.starts_with("released")));
    w.flush(NodeId(2));
    w.glide(1_500_000);
    assert_eq!(w.fronts[f].events.last(), Some(&"released clean"));
}
