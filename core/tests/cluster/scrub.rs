//! Copies that lie: bytes and checksum belong together, and are not what was written (P3).

use crate::world::{World, ids};
use trefoil_core::client::OpError;
use trefoil_core::leader::Options;
use trefoil_core::node::{Input, ScrubOrder};
use trefoil_core::scrub::Doubt;
use trefoil_core::*;

const BAD: Option<Result<u64, OpError>> = Some(Err(OpError::Bad));

/// The copy holds this from now on, and no read of it alone can tell.
fn lie(w: &mut World, node: u32, index: u32, block: u32, value: u64) {
    let host = w.hosts.get_mut(&NodeId(node)).expect("a node");
    host.disk.blocks.insert((World::object(index), block), value);
}

fn scrub(w: &mut World, deep: bool) {
    let pg = World::object(0).group.pg;
    for node in ids(&[0, 1, 2]) {
        let rate = 1 << 20;
        w.hosts.get_mut(&node).expect("a node").machine.set_scrub_rate(rate);
        w.tell_node(node, Input::Scrub(ScrubOrder::Scrub { pg, deep }));
    }
    w.pass(6_000_000);
}

fn marks(w: &World, node: u32, index: u32) -> Vec<(u32, Doubt)> {
    let state = &w.hosts[&NodeId(node)].disk.durable;
    let group = &state.groups[&World::object(index).group];
    group.marks(index).iter().map(|mark| (mark.block, mark.doubt)).collect()
}

fn written() -> (World, usize) {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    for block in 0..4 {
        w.write(f, 0, block, 10 + u64::from(block));
    }
    (w, f)
}

#[test]
fn two_against_one_replaces_the_one_whichever_it_is() {
    for liar in 0..3 {
        for deep in [false, true] {
            let (mut w, f) = written();
            lie(&mut w, liar, 0, 2, 99);
            scrub(&mut w, deep);
            assert_eq!(w.at(liar, 0, 2), 12, "node {liar}");
            assert!((0..3).all(|node| marks(&w, node, 0).is_empty()));
            assert_eq!(w.value(f, 0, 2), 12);
            let ended = w.scrubbed.iter().filter(|(_, _, was_deep, _)| *was_deep == deep).count();
            assert_eq!(ended, 3);
            let counters = w.hosts[&NodeId(liar)].machine.counters();
            assert_eq!((counters.scrub_outvoted, counters.scrub_mended), (1, 1));
        }
    }
}

#[test]
fn without_a_leader_one_is_asked_for() {
    let (mut w, f) = written();
    w.tell_leader(f, trefoil_core::leader::Input::Release);
    for node in ids(&[0, 1, 2]) {
        w.disconnect(f, node);
    }
    lie(&mut w, 1, 0, 2, 99);
    scrub(&mut w, false);
    assert_eq!(marks(&w, 1, 0), [(2, Doubt::Outvoted)]);
    assert_eq!(w.at(1, 0, 2), 99, "no node changes what it holds by itself");
    let f = w.front(2, Options::default());
    w.pass(300_000);
    assert_eq!(w.at(1, 0, 2), 12);
    assert!(marks(&w, 1, 0).is_empty() && w.value(f, 0, 2) == 12);
}

#[test]
fn three_that_differ_are_read_by_nobody_until_they_are_written() {
    let (mut w, f) = written();
    lie(&mut w, 0, 0, 2, 98);
    lie(&mut w, 1, 0, 2, 99);
    scrub(&mut w, false);
    for node in 0..3 {
        assert_eq!(marks(&w, node, 0), [(2, Doubt::Disputed)], "node {node}");
    }
    let id = w.read(f, 0, 2);
    assert_eq!(w.result(f, id), BAD);
    assert_eq!(w.value(f, 0, 1), 11, "the others are as they were");
    // Nor by the next front end, however it begins, nor after a restart.
    for node in ids(&[0, 1, 2]) {
        w.crash(node);
        w.restart(node);
    }
    let f = w.front(2, Options::default());
    w.pass(300_000);
    let id = w.read(f, 0, 2);
    assert_eq!(w.result(f, id), BAD);
    let id = w.write(f, 0, 2, 50);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!(w.value(f, 0, 2), 50);
    assert!((0..3).all(|node| marks(&w, node, 0).is_empty() && w.at(node, 0, 2) == 50));
}

#[test]
fn an_administrators_word_settles_it_and_only_it() {
    for from in 0..3 {
        let (mut w, f) = written();
        lie(&mut w, 0, 0, 2, 98);
        lie(&mut w, 1, 0, 2, 99);
        scrub(&mut w, false);
        let believed = w.at(from, 0, 2);
        for node in ids(&[0, 1, 2]) {
            let (object, blocks) = (World::object(0), BlockRange::new(2, 1));
            w.tell_node(node, Input::Scrub(ScrubOrder::Believe { object, blocks, from: NodeId(from) }));
        }
        w.pass(8_000_000);
        assert_eq!(w.value(f, 0, 2), believed);
        for node in 0..3 {
            assert_eq!(w.at(node, 0, 2), believed, "node {node}");
            assert!(marks(&w, node, 0).is_empty());
        }
    }
}

#[test]
fn an_administrators_word_changes_nothing_that_is_not_disputed() {
    let (mut w, f) = written();
    for node in ids(&[0, 1, 2]) {
        let (object, blocks) = (World::object(0), BlockRange::new(0, 4));
        w.tell_node(node, Input::Scrub(ScrubOrder::Believe { object, blocks, from: NodeId(0) }));
    }
    assert!((0..3).all(|node| marks(&w, node, 0).is_empty()));
    assert_eq!(w.value(f, 0, 2), 12);
}

#[test]
fn one_against_one_waits_for_the_third() {
    let (mut w, f) = written();
    w.crash(NodeId(2));
    lie(&mut w, 0, 0, 2, 99);
    scrub(&mut w, false);
    assert_eq!(marks(&w, 0, 0), [(2, Doubt::Disputed)]);
    assert_eq!(marks(&w, 1, 0), [(2, Doubt::Disputed)]);
    let id = w.read(f, 0, 2);
    assert_eq!(w.result(f, id), BAD, "nothing is guessed");
    w.restart(NodeId(2));
    w.pass(8_000_000);
    assert_eq!(w.value(f, 0, 2), 12);
    assert!((0..3).all(|node| marks(&w, node, 0).is_empty() && w.at(node, 0, 2) == 12));
}

/// A copy that was repaired from one of two that differ is no witness.
#[test]
fn a_copy_made_from_a_disputed_one_settles_nothing() {
    let (mut w, f) = written();
    w.crash(NodeId(2));
    lie(&mut w, 0, 0, 2, 99);
    scrub(&mut w, false);
    w.write(f, 0, 0, 70); // the third one is behind now
    w.restart(NodeId(2));
    w.pass(8_000_000);
    assert_eq!(w.at(2, 0, 0), 70);
    for node in 0..3 {
        assert_eq!(marks(&w, node, 0), [(2, Doubt::Disputed)], "node {node}");
    }
    let id = w.read(f, 0, 2);
    assert_eq!(w.result(f, id), BAD);
}

#[test]
fn a_deep_scrub_finds_rot_that_nobody_reads() {
    let (mut w, _) = written();
    let host = w.hosts.get_mut(&NodeId(1)).expect("a node");
    host.disk.bad.push((World::object(0), 3));
    scrub(&mut w, false);
    assert_eq!(w.hosts[&NodeId(1)].disk.bad.len(), 1, "a light one reads no block");
    scrub(&mut w, true);
    assert!(w.hosts[&NodeId(1)].disk.bad.is_empty(), "healed");
    let bad: u64 = w.scrubbed.iter().map(|(.., found)| found.bad).sum();
    assert_eq!(bad, 1);
}

#[test]
fn the_same_marks_are_found_by_another_scrub_and_told_once() {
    let (mut w, _) = written();
    lie(&mut w, 0, 0, 2, 98);
    lie(&mut w, 1, 0, 2, 99);
    scrub(&mut w, false);
    let found = |w: &World| w.hosts[&NodeId(0)].machine.counters().scrub_disputed;
    assert_eq!(found(&w), 1);
    scrub(&mut w, true);
    assert_eq!(found(&w), 1);
}

/// A write is on its way to an outvoted copy while its repair is ordered: its Have, which says no more than that the
/// write was taken, comes behind the order. Then the source dies, and the repair is given up with the writes that were
/// kept on top. Taken for the end of the repair, that Have made the leader wait for these for ever.
#[test]
fn a_repair_that_fails_behind_a_late_have_is_ordered_again() {
    let (mut w, f) = written();
    w.lease(f, 1_000_000_000);
    lie(&mut w, 2, 0, 2, 99);
    w.answer_after(2, crate::world::STOPPED);
    scrub(&mut w, false);
    assert_eq!(marks(&w, 2, 0), [(2, Doubt::Outvoted)]);
    let late = w.write(f, 0, 0, 50);
    assert_eq!((w.result(f, late), w.at(2, 0, 0)), (Some(Ok(0)), 50));
    // Node 1 is the source, and does not get on with the piece.
    w.hosts.get_mut(&NodeId(1)).unwrap().disk.hold = true;
    w.write(f, 1, 0, 7);
    // The doubts, and the Have behind them.
    w.answer_after(2, 0);
    w.glide(1);
    w.answers_after.clear();
    let id = w.write(f, 0, 1, 60);
    assert_eq!(w.result(f, id), None, "node 1 does not get on, and node 2 keeps it on top");
    w.crash(NodeId(1));
    w.pass(3_000_000);
    assert_eq!(w.result(f, id), Some(Ok(0)), "two of three are there");
    assert_eq!((w.at(2, 0, 1), w.at(2, 0, 2)), (60, 12));
    assert_eq!(w.value(f, 0, 1), 60);
}
