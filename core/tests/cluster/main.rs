//! Rules of the protocol, one test each, on a small cluster under virtual time.

mod calls;
mod full;
mod in_sync;
mod lost;
mod moves;
mod scrub;
mod slow;
mod two;
mod world;

use trefoil_core::client::{OpError, OpKind};
use trefoil_core::leader::{Input, Options, UnderWay};
use trefoil_core::*;
use world::{World, ids};

#[test]
fn a_write_is_read_back_and_is_on_all_three() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    assert_eq!(w.fronts[f].events, ["attached"]);
    let id = w.write(f, 3, 2, 77);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!(w.value(f, 3, 2), 77);
    assert_eq!(w.value(f, 3, 1), 0);
    for node in 0..3 {
        assert_eq!(w.at(node, 3, 2), 77);
    }
}

#[test]
fn no_answer_before_it_is_durable_on_two() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    let id = w.write(f, 0, 0, 1);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    for node in ids(&[1, 2]) {
        w.hosts.get_mut(&node).unwrap().disk.hold = true;
    }
    let id = w.write(f, 0, 0, 2);
    assert_eq!(w.result(f, id), None, "one copy is no majority");
    w.flush(NodeId(2));
    assert_eq!(w.result(f, id), Some(Ok(0)));
}

#[test]
fn one_node_away_stops_nothing_and_only_what_differs_travels() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    for block in 0..8 {
        w.write(f, 0, block, 100 + u64::from(block));
    }
    w.crash(NodeId(0));
    let id = w.write(f, 0, 5, 55);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!(w.value(f, 0, 5), 55);
    w.restart(NodeId(0));
    w.pass(300_000);
    assert_eq!(w.at(0, 0, 5), 55);
    assert_eq!(w.fetched_blocks, 1, "seven blocks were the same");
    assert!(w.fronts[f].machine.all_whole());
}

#[test]
fn two_nodes_away_make_io_wait_and_it_goes_on_when_one_is_back() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 1);
    w.crash(NodeId(0));
    w.crash(NodeId(1));
    let id = w.write(f, 0, 0, 2);
    w.pass(500_000);
    assert_eq!(w.result(f, id), None);
    w.restart(NodeId(1));
    w.pass(200_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!(w.at(1, 0, 0), 2);
}

#[test]
fn an_io_timeout_turns_waiting_into_an_error() {
    let mut w = World::new();
    let f = w.front(1, Options { io_timeout: Some(200_000), ..Options::default() });
    w.write(f, 0, 0, 1);
    w.crash(NodeId(0));
    w.crash(NodeId(1));
    let write = w.write(f, 0, 0, 2);
    let read = w.read(f, 0, 0);
    w.pass(400_000);
    assert_eq!(w.result(f, write), Some(Err(OpError::TimedOut)));
    assert_eq!(w.result(f, read), Some(Err(OpError::TimedOut)));
}

#[test]
fn an_unacknowledged_write_that_was_not_chosen_does_not_come_back() {
    // The row "line before head" of the protocol's table.
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 1);
    // Write 2 reaches node 0 only.
    w.drop_to = ids(&[1, 2]);
    let id = w.write(f, 0, 0, 2);
    assert_eq!(w.result(f, id), None);
    assert_eq!(w.at(0, 0, 0), 2);
    w.drop_to.clear();
    w.crash(NodeId(0));
    let g = w.front(2, Options::default());
    assert_eq!(w.value(g, 0, 0), 1);
    for node in 1..3 {
        w.disconnect(g, NodeId(node));
    }
    w.restart(NodeId(0));
    w.crash(NodeId(2));
    let h = w.front(3, Options::default());
    assert_eq!(w.value(h, 0, 0), 1, "it was read as 1 before");
    w.pass(300_000);
    assert_eq!(w.at(0, 0, 0), 1, "the copy that was longer in a line which lost is repaired");
}

#[test]
fn a_fenced_front_end_finishes_no_write_anywhere() {
    let mut w = World::new();
    let old = w.front(1, Options { background_opens: 0, ..Options::default() });
    let id = w.write(old, 0, 0, 1);
    assert_eq!(w.result(old, id), Some(Ok(0)));
    // The new one attaches, and has not opened the group yet.
    let new = w.front(2, Options { background_opens: 0, ..Options::default() });
    assert_eq!(w.fronts[new].events, ["attached"]);
    let id = w.write(old, 0, 0, 2);
    w.pass(300_000);
    assert_eq!(w.result(old, id), Some(Err(OpError::Deposed)));
    assert_eq!(w.fronts[old].events, ["attached", "deposed"]);
    assert_eq!(w.value(new, 0, 0), 1);
}

#[test]
fn reads_without_a_lease_are_confirmed_by_a_majority() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 9);
    w.pass(2_000_000); // the lease has run out
    assert_eq!(w.value(f, 0, 0), 9);
    assert!(w.fronts[f].machine.counters().confirms > 0);
    // With one node it must wait.
    w.crash(NodeId(0));
    w.crash(NodeId(1));
    let id = w.read(f, 0, 0);
    w.pass(200_000);
    assert_eq!(w.result(f, id), None);
}

#[test]
fn a_reader_that_was_replaced_shows_nothing_old() {
    let mut w = World::new();
    let old = w.front(1, Options::default());
    w.write(old, 0, 0, 1);
    w.pass(2_000_000);
    let new = w.front(2, Options::default());
    w.write(new, 0, 0, 2);
    let id = w.read(old, 0, 0);
    w.pass(300_000);
    assert_eq!(w.result(old, id), Some(Err(OpError::Deposed)));
}

#[test]
fn a_bad_block_is_read_elsewhere_and_mended() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 5);
    for node in 0..2 {
        w.hosts.get_mut(&NodeId(node)).unwrap().disk.bad.push((World::object(0), 0));
    }
    for _ in 0..3 {
        assert_eq!(w.value(f, 0, 0), 5);
    }
    w.pass(200_000);
    let bad: usize = w.hosts.values().map(|host| host.disk.bad.len()).sum();
    assert!(bad < 2, "what was read was mended");
}

#[test]
fn a_block_that_is_bad_everywhere_fails_and_is_cleared_by_a_write() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 5);
    for node in 0..3 {
        w.hosts.get_mut(&NodeId(node)).unwrap().disk.bad.push((World::object(0), 0));
    }
    let id = w.read(f, 0, 0);
    w.pass(100_000);
    assert_eq!(w.result(f, id), Some(Err(OpError::Bad)));
    let id = w.write(f, 0, 0, 6);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!(w.value(f, 0, 0), 6);
}

#[test]
fn zero_makes_holes_and_untouched_objects_cost_nothing() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    let id = w.op(f, 9, OpKind::Zero { blocks: BlockRange::new(0, 8) });
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert!(!w.hosts[&NodeId(0)].disk.durable.groups.values().any(|g| g.objects.contains_key(&9)));
    w.write(f, 9, 3, 8);
    let id = w.op(f, 9, OpKind::Zero { blocks: BlockRange::new(0, 8) });
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!(w.value(f, 9, 3), 0);
    assert_eq!(w.at(1, 9, 3), 0);
}

#[test]
fn a_healer_makes_all_copies_equal_and_is_preempted() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    for object in 0..5 {
        w.write(f, object, 0, 10 + u64::from(object));
    }
    w.crash(NodeId(2));
    for object in 3..8 {
        w.write(f, object, 1, 20 + u64::from(object));
    }
    for node in 0..3 {
        w.disconnect(f, NodeId(node)); // the front end dies
    }
    w.restart(NodeId(2));
    w.disconnect(f, NodeId(2));
    let h = w.front(2, Options { healer: true, ..Options::default() });
    w.pass(1_000_000);
    assert!(w.fronts[h].events.contains(&"all whole"));
    for object in 0..8 {
        for block in 0..2 {
            assert_eq!(w.at(0, object, block), w.at(2, object, block));
        }
    }
    let g = w.front(3, Options::default());
    w.write(g, 0, 0, 99);
    assert_eq!(w.value(g, 0, 0), 99);
}

#[test]
fn a_node_that_lost_its_state_has_no_vote_and_is_brought_back() {
    // The row "N8 amnesia": w5@A,B; A comes back empty; {A,C} must not settle on the older content.
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 1);
    w.crash(NodeId(2));
    let id = w.write(f, 0, 0, 2);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    for node in 0..2 {
        w.crash(NodeId(node));
    }
    // Node 0 lost everything; it says so.
    w.boot(NodeId(0), world::Disk::default());
    let lost = node::Input::StateLost { fences: vec![(world::VOLUME, Generation(1))] };
    w.tell_node(NodeId(0), lost);
    w.restart(NodeId(2));
    for node in 0..3 {
        w.disconnect(f, NodeId(node));
    }
    let g = w.front(2, Options::default());
    let read = w.read(g, 0, 0);
    w.pass(500_000);
    assert_eq!(w.result(g, read), None, "a quorum of other nodes is needed");
    w.restart(NodeId(1));
    w.pass(500_000);
    assert_eq!(w.result(g, read), Some(Ok(2)));
    w.pass(500_000);
    assert_eq!(w.at(0, 0, 0), 2);
    assert!(w.fronts[g].machine.all_whole());
}

#[test]
fn a_node_that_silently_lost_what_it_reported_is_found_out() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 1);
    let disk_before = w.hosts[&NodeId(0)].disk.durable.clone();
    w.write(f, 0, 0, 2);
    w.crash(NodeId(0));
    w.hosts.get_mut(&NodeId(0)).unwrap().disk.durable = disk_before;
    w.restart(NodeId(0));
    w.pass(300_000);
    assert!(w.fronts[f].events.contains(&"lost data"));
    assert_eq!(w.value(f, 0, 0), 2);
}

#[test]
fn a_clean_release_says_so() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 1);
    w.pass(100_000);
    w.tell_leader(f, Input::Release);
    w.pass(50_000);
    assert!(w.fronts[f].events.contains(&"released clean"));
    let late = w.write(f, 0, 0, 2);
    assert_eq!(w.result(f, late), Some(Err(OpError::Closing)));
}

#[test]
fn a_read_waits_for_the_write_that_it_overlaps() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.write(f, 0, 0, 1);
    for node in ids(&[0, 1]) {
        w.hosts.get_mut(&node).unwrap().disk.hold = true;
    }
    let write = w.write(f, 0, 0, 2);
    let read = w.read(f, 0, 0);
    let behind = w.write(f, 0, 0, 3);
    assert_eq!(w.result(f, read), None);
    assert_eq!(w.result(f, behind), None);
    w.flush(NodeId(0));
    assert_eq!(w.result(f, write), Some(Ok(0)));
    w.flush(NodeId(1));
    w.pass(50_000);
    assert_eq!(w.result(f, read), Some(Ok(2)));
    assert_eq!(w.result(f, behind), Some(Ok(0)));
    assert_eq!(w.value(f, 0, 0), 3);
}

#[test]
fn a_front_end_that_was_stopped_acknowledges_nothing_after_its_successor() {
    let mut w = World::new();
    let old = w.front(1, Options::default());
    let first = w.write(old, 0, 0, 1);
    assert_eq!(w.result(old, first), Some(Ok(0)));
    // A write is durable on all three, and the answers are in the sockets of a process that is stopped.
    w.stop(old);
    let late = w.write(old, 0, 0, 2);
    w.now = w.now.after(5_000_000);
    let new = w.front(2, Options::default());
    assert!(w.fronts[new].events.contains(&"attached"));
    assert_eq!(w.at(0, 0, 0), 2);
    w.resume(old);
    w.pass(300_000);
    assert_eq!(w.result(old, late), Some(Err(OpError::Deposed)));
    assert_eq!(w.value(new, 0, 0), 2, "it was durable, and stays");
}

#[test]
fn without_a_lease_writes_go_on_with_a_confirm() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.pass(2_000_000); // the lease has run out
    let id = w.write(f, 0, 0, 1);
    w.pass(20_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
}

#[test]
fn a_copy_whose_table_is_damaged_is_repaired_and_is_no_source() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    for block in 0..4 {
        w.write(f, 0, block, 10 + u64::from(block));
    }
    let unknown = trefoil_core::checksum::UNKNOWN;
    w.hosts.get_mut(&NodeId(1)).unwrap().disk.blocks.insert((World::object(0), 2), unknown);
    let found = node::Input::BadBlock { object: World::object(0), block: 2, checksum: unknown };
    w.tell_node(NodeId(1), found);
    w.pass(500_000);
    assert_eq!(w.at(1, 0, 2), 12);
    assert!(w.fronts[f].machine.all_whole());
}

#[test]
fn timed_out_writes_do_not_pile_up_while_a_majority_is_away() {
    let mut w = World::new();
    let f = w.front(1, Options { io_timeout: Some(50_000), ..Options::default() });
    w.write(f, 0, 0, 1);
    w.crash(NodeId(0));
    w.crash(NodeId(1));
    for round in 0..50 {
        // A client that tries again and again.
        let ids: Vec<_> = (0..8).map(|block| w.write(f, 0, block, 1000 + round)).collect();
        w.pass(80_000);
        assert!(ids.iter().all(|id| w.result(f, *id) == Some(Err(OpError::TimedOut))));
        let held = w.fronts[f].machine.under_way().held;
        assert!(held <= 8, "{held} held after {round} rounds");
    }
    w.restart(NodeId(0));
    w.restart(NodeId(1));
    w.lease(f, 1_000_000);
    w.pass(500_000);
    let seen = w.value(f, 0, 0);
    assert!(seen == 1 || seen == 1000, "the one that was issued, or none: {seen}");
    let id = w.write(f, 0, 0, 2);
    w.pass(20_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    w.pass(500_000);
    assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default());
}

#[test]
fn deadlines_of_operations_that_have_ended_are_forgotten() {
    let mut w = World::new();
    let f = w.front(1, Options { io_timeout: Some(3_600_000_000), ..Options::default() });
    for value in 1..2000 {
        let id = w.write(f, 0, 0, value);
        assert_eq!(w.result(f, id), Some(Ok(0)));
    }
    assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default());
}

/// Nodes that come and go for hours, one or two at a time, under reads and writes with and without a
/// lease: everything ends well, every read is as the last write or one under way, and nothing stays counted.
#[test]
fn flapping_nodes_leave_nothing_behind() {
    for seed in 1..=8u64 {
        let mut w = World::new();
        let f = w.front(1, Options::default());
        let mut state = seed;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        // By block: the last value that was given, in order; each object is used by one "client" at a time
        // for each block, so the values of a block are written one behind the other.
        let mut last = std::collections::BTreeMap::new();
        let mut ops = Vec::new();
        let mut next = 1;
        for flap in 0..400 {
            let node = NodeId(draw(3) as u32);
            match draw(5) {
                0 if w.hosts[&node].up => w.crash(node),
                1 | 2 => w.disconnect(f, node),
                3 => w.hosts.get_mut(&node).unwrap().disk.hold = w.hosts[&node].up && draw(2) == 0,
                _ => {}
            }
            for _ in 0..draw(12) {
                let (object, block) = (draw(6) as u32, draw(8) as u32);
                if draw(3) == 0 {
                    let from = last.get(&(object, block)).copied().unwrap_or(0);
                    ops.push((w.read(f, object, block), Some(from)));
                } else {
                    ops.push((w.write(f, object, block, next), None));
                    last.insert((object, block), next);
                    next += 1;
                }
            }
            if draw(3) == 0 {
                w.lease(f, 100_000);
            }
            w.pass(10_000 * (1 + draw(5)));
            for node in ids(&[0, 1, 2]) {
                if !w.hosts[&node].up && draw(2) == 0 {
                    w.restart(node);
                } else if w.hosts[&node].up && draw(2) == 0 {
                    w.flush(node);
                    if !w.fronts[f].conns.contains_key(&node) {
                        w.connect(f, node);
                    }
                }
            }
            let under_way = w.fronts[f].machine.under_way();
            assert!(under_way.backlog_ops <= 3 * next as usize, "seed {seed} flap {flap}: {under_way:?}");
        }
        for node in ids(&[0, 1, 2]) {
            if !w.hosts[&node].up {
                w.restart(node);
            }
            w.flush(node);
            if !w.fronts[f].conns.contains_key(&node) {
                w.connect(f, node);
            }
        }
        w.pass(10_000_000);
        for (id, from) in ops {
            let result = w.result(f, id);
            match from {
                None => assert_eq!(result, Some(Ok(0)), "seed {seed}, {id:?}"),
                // A read comes behind the writes that were given before it.
                Some(from) => {
                    let seen = result.unwrap_or_else(|| panic!("seed {seed}: {id:?} hangs")).unwrap();
                    assert!(seen >= from, "seed {seed}: {seen} was overwritten by {from} before the read");
                }
            }
        }
        w.lease(f, 10_000_000);
        for ((object, block), value) in last {
            assert_eq!(w.value(f, object, block), value, "seed {seed}");
        }
        assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default(), "seed {seed}");
        assert!(w.fronts[f].machine.all_whole(), "seed {seed}");
        for node in 1..3 {
            for (object, block) in (0..6).flat_map(|object| (0..8).map(move |block| (object, block))) {
                assert_eq!(w.at(node, object, block), w.at(0, object, block), "seed {seed}");
            }
        }
    }
}
