//! Section 8: front ends without a lease call, nodes hear them, and nobody else.

use super::world::{VOLUME, World, ids};
use trefoil_core::leader::Options;
use trefoil_core::limits::{CALL_BEFORE, CALL_EVERY, CALL_FRESH, CALLERS_MAX};
use trefoil_core::map::heard::Callers;
use trefoil_core::message::ToNode;
use trefoil_core::*;

/// Longer than a call counts.
const LEASE: u64 = 2 * CALL_FRESH;

fn heard(w: &mut World, node: u32) -> Vec<(VolumeId, Generation)> {
    let now = w.now;
    let Callers { leaders, more } = w.hosts.get_mut(&NodeId(node)).unwrap().machine.callers(now, CALL_FRESH);
    assert!(!more);
    leaders
}

fn calls(w: &World, f: usize) -> u64 {
    w.fronts[f].machine.counters().calls
}

#[test]
fn a_front_end_whose_lease_runs_out_is_heard_by_its_nodes() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    let led = vec![(VOLUME, Generation(1))];
    assert_eq!(heard(&mut w, 0), led, "it has just fenced the volume");
    // It renews: it says nothing.
    for _ in 0..4 {
        w.lease(f, LEASE);
        w.glide(LEASE - CALL_BEFORE - 1);
    }
    assert_eq!((heard(&mut w, 0), calls(&w, f)), (vec![], 0));
    // It does not any more: its nodes hear it in good time before the lease is over, and from then on.
    w.glide(CALL_EVERY);
    assert_eq!(calls(&w, f), 3, "one to each node");
    for node in 0..3 {
        assert_eq!(heard(&mut w, node), led);
    }
    w.glide(60 * CALL_EVERY);
    assert_eq!(heard(&mut w, 0), led);
    assert!((180..=186).contains(&calls(&w, f)), "{}", calls(&w, f));
    // It renews again.
    w.lease(f, LEASE + CALL_BEFORE);
    w.glide(CALL_FRESH + 1);
    assert_eq!(heard(&mut w, 0), vec![]);
    // What it says changes nothing: it works as before.
    let id = w.write(f, 1, 2, 3);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    assert_eq!(w.fronts[f].events, ["attached"]);
}

#[test]
fn who_hangs_or_has_gone_is_not_heard() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.glide(20 * CALL_EVERY);
    assert_eq!(heard(&mut w, 1).len(), 1);
    // Its connections stand, and its process does not run.
    w.stop(f);
    w.glide(CALL_FRESH + CALL_EVERY);
    for node in 0..3 {
        assert_eq!(heard(&mut w, node), vec![]);
    }
    w.resume(f);
    w.glide(2 * CALL_EVERY);
    assert_eq!(heard(&mut w, 1).len(), 1);
    // A connection that ends takes with it what was heard on it.
    w.disconnect(f, NodeId(1));
    assert_eq!((heard(&mut w, 1).len(), heard(&mut w, 2).len()), (0, 1));
}

#[test]
fn a_healer_is_never_heard_and_an_older_leader_is_heard_as_what_it_is() {
    let mut w = World::new();
    let old = w.front(1, Options { background_opens: 0, ..Options::default() });
    let healer = w.front(2, Options { healer: true, background_opens: 0, ..Options::default() });
    w.glide(10 * CALL_EVERY);
    assert_eq!(calls(&w, healer), 0);
    let seen = heard(&mut w, 0);
    assert!(seen.iter().all(|(_, generation)| *generation == Generation(1)), "{seen:?}");
    // One that was replaced by a front end finds out by its own call.
    let new = w.front(3, Options { background_opens: 0, ..Options::default() });
    w.glide(3 * CALL_EVERY);
    assert!(w.fronts[old].events.contains(&"deposed"));
    assert_eq!(heard(&mut w, 0), vec![(VOLUME, Generation(3))]);
    assert_eq!(w.fronts[new].events, ["attached"]);
}

#[test]
fn a_node_names_so_many_leaders_and_says_that_there_are_more() {
    let mut w = World::new();
    let say = |w: &mut World, volume| {
        let msg = ToNode::Fence { volume: VolumeId(volume), generation: Generation(1) };
        w.tell_node(NodeId(0), node::Input::Leader { conn: 1, msg });
    };
    let hears = |w: &mut World| {
        let now = w.now;
        w.hosts.get_mut(&NodeId(0)).unwrap().machine.callers(now, CALL_FRESH)
    };
    (0..CALLERS_MAX as u64).for_each(|n| say(&mut w, n));
    say(&mut w, 7);
    let callers = hears(&mut w);
    assert!(callers.leaders.len() == CALLERS_MAX && !callers.more, "no more than it can name");
    say(&mut w, 1 << 40);
    let callers = hears(&mut w);
    assert!(callers.leaders.len() == CALLERS_MAX && callers.more);
    // Those who call no more make room.
    w.now = w.now.after(CALL_FRESH + 1);
    assert_eq!(hears(&mut w), Callers::default());
    say(&mut w, 1 << 40);
    assert_eq!(hears(&mut w).leaders, [(VolumeId(1 << 40), Generation(1))]);
}

/// A node whose reads hang and that answers calls is given up all the same.
#[test]
fn an_answer_to_a_call_hides_no_node_that_owes_something() {
    let mut w = World::new();
    let f = w.front(1, Options::default());
    w.glide(20 * CALL_EVERY);
    w.drop_to = ids(&[2]);
    w.write(f, 0, 0, 1);
    w.drop_to.clear();
    let before = calls(&w, f);
    w.glide(3 * Options::default().node_timeout);
    assert!(w.fronts[f].events.contains(&"reset"), "{:?}", w.fronts[f].events);
    assert!(calls(&w, f) > before);
}
