//! Pools of two copies: a majority of two is both. Nothing is lost that one of three would not lose, but one node
//! away stops writes, and two copies that differ cannot outvote each other.

use crate::world::{World, ids};
use trefoil_core::checksum::HOLE;
use trefoil_core::leader::Options;
use trefoil_core::placement::PgConfig;
use trefoil_core::*;

/// Two nodes. (The third of the world has no part in it.)
fn two() -> World {
    let mut w = World::new();
    w.configure(PgConfig::simple(Epoch(2), ids(&[0, 1])), &[0, 1, 2]);
    w
}

#[test]
fn a_write_is_done_when_both_have_it_and_waits_while_one_is_away() {
    let mut w = two();
    let f = w.front(1, Options::default());
    let id = w.write(f, 0, 0, 1);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!((w.at(0, 0, 0), w.at(1, 0, 0)), (1, 1));
    w.hosts.get_mut(&NodeId(1)).unwrap().disk.hold = true;
    let id = w.write(f, 0, 0, 2);
    assert_eq!(w.result(f, id), None, "durable on one is not done");
    w.flush(NodeId(1));
    assert_eq!(w.result(f, id), Some(Ok(0)));

    w.hosts.get_mut(&NodeId(1)).unwrap().disk.hold = false;
    w.crash(NodeId(1));
    let id = w.write(f, 0, 0, 3);
    w.pass(500_000);
    assert_eq!(w.result(f, id), None, "one of two is no majority");
    let id_read = w.read(f, 1, 0);
    w.pass(100_000);
    assert!(w.result(f, id_read).is_none_or(|it| it.is_ok()), "nothing is made up");
    w.restart(NodeId(1));
    w.pass(300_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!((w.at(0, 0, 0), w.at(1, 0, 0)), (3, 3));
    assert_eq!(w.at(2, 0, 0), HOLE, "it is no member");
}

#[test]
fn a_new_front_end_needs_both_and_finds_everything_that_was_acknowledged() {
    let mut w = two();
    let f = w.front(1, Options::default());
    for block in 0..4 {
        let id = w.write(f, 0, block, 10 + u64::from(block));
        assert_eq!(w.result(f, id), Some(Ok(0)));
    }
    w.crash(NodeId(0));
    let g = w.front(2, Options::default());
    let read = w.read(g, 0, 2);
    w.pass(500_000);
    assert_eq!(w.result(g, read), None, "what the other one has is not known");
    w.restart(NodeId(0));
    w.pass(500_000);
    assert_eq!(w.result(g, read), Some(Ok(12)));
    let id = w.write(g, 0, 2, 77);
    w.pass(100_000);
    assert_eq!(w.result(g, id), Some(Ok(0)));
    assert_eq!((w.at(0, 0, 2), w.at(1, 0, 2)), (77, 77));
}
