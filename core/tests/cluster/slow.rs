//! Slow and stopped nodes: nobody waits for one while two others answer, and it is brought back.

use crate::world::{STOPPED, World};
use trefoil_core::client::{OpId, OpKind};
use trefoil_core::leader::{NodeView, Options, UnderWay};
use trefoil_core::limits::NODE_BACKLOG_OPS_MAX;
use trefoil_core::*;

/// How long a healthy node takes here (µs).
const QUICK: u64 = 200;
/// The floor and the ceiling of the time after which a read is late (µs).
const LATE: (u64, u64) = (4_000, 20_000);

impl World {
    /// A front end with ten written objects, on nodes that all take [`QUICK`]. Long-lived leases.
    fn slow_world(options: Options) -> (World, usize) {
        let mut w = World::new();
        (0..3).for_each(|node| w.answer_after(node, QUICK));
        let f = w.front(1, options);
        w.lease(f, 3_600_000_000);
        w.glide(10_000);
        for object in 0..10 {
            let id = w.write(f, object, 0, 100 + u64::from(object));
            w.glide(1_000);
            assert_eq!(w.result(f, id), Some(Ok(0)));
        }
        (w, f)
    }

    /// Reads and waits; how long it took (µs).
    fn timed_read(&mut self, f: usize, object: u32) -> u64 {
        let id = self.read(f, object, 0);
        let began = self.now;
        while self.result(f, id).is_none() {
            self.glide(50);
            assert!(self.now.since(began) < 60_000_000, "the read of object {object} hangs");
        }
        assert_eq!(self.result(f, id), Some(Ok(100 + u64::from(object))));
        self.now.since(began)
    }

    /// The longest of some reads, one behind the other.
    fn longest_read(&mut self, f: usize, reads: u32) -> u64 {
        (0..reads).map(|n| self.timed_read(f, n % 10)).max().unwrap_or(0)
    }

    fn node(&self, f: usize, node: u32) -> NodeView {
        let found = self.fronts[f].machine.nodes(self.now).find(|view| view.node == NodeId(node));
        found.expect("the leader knows the node")
    }

    fn reads_of(&self, node: u32) -> usize {
        self.reads_sent.get(&NodeId(node)).copied().unwrap_or(0)
    }

    fn resets(&self, f: usize) -> usize {
        self.fronts[f].events.iter().filter(|event| **event == "reset").count()
    }

    /// Node 0 becomes so slow that it is cut loose, and is quick again; it is connected and held out.
    fn hold_out_0(&mut self, f: usize) {
        let resets = self.resets(f);
        self.answer_after(0, 2_000_000);
        while self.resets(f) == resets {
            self.write(f, 0, 0, self.now.0);
            self.glide(100_000);
        }
        self.answer_after(0, QUICK);
        self.reconnect(f);
        assert!(self.node(f, 0).held);
    }

    /// What a shell does: a connection that was given up is made again.
    fn reconnect(&mut self, f: usize) {
        for node in (0..3).map(NodeId) {
            if !self.fronts[f].conns.contains_key(&node) {
                self.connect(f, node);
            }
        }
    }
}

#[test]
fn reads_are_spread_over_quick_nodes() {
    let (mut w, f) = World::slow_world(Options::default());
    for _ in 0..100 {
        let ids: Vec<OpId> = (0..3).map(|object| w.read(f, object, 0)).collect();
        w.glide(500);
        assert!(ids.iter().all(|id| w.result(f, *id).is_some()));
    }
    w.longest_read(f, 300);
    for node in 0..3 {
        let share = w.reads_of(node);
        assert!((150..=250).contains(&share), "node {node} had {share} of 600 reads");
    }
    assert_eq!(w.fronts[f].machine.counters().hedged, 0);
    assert_eq!(w.fronts[f].machine.counters().latency_probes, 0, "nobody is avoided");
}

#[test]
fn a_node_that_takes_longer_gets_less_and_is_found_to_be_quick_again() {
    let (mut w, f) = World::slow_world(Options::default());
    w.longest_read(f, 60);
    // Not so slow that any read of it would be late.
    w.answer_after(1, 10 * QUICK);
    w.longest_read(f, 1_500);
    let before: Vec<usize> = (0..3).map(|node| w.reads_of(node)).collect();
    w.longest_read(f, 300);
    let share = w.reads_of(1) - before[1];
    assert!(share <= 30, "the slow node had {share} of 300 reads");
    assert!(w.reads_of(0) - before[0] > 100 && w.reads_of(2) - before[2] > 100);
    w.answer_after(1, QUICK);
    while w.now.0 < 20_000_000 {
        w.longest_read(f, 10);
        w.glide(20_000);
    }
    let before = w.reads_of(1);
    w.longest_read(f, 300);
    assert!(w.reads_of(1) - before > 80, "{} of 300", w.reads_of(1) - before);
}

#[test]
fn a_read_at_a_stopped_node_is_answered_by_another_one_in_time() {
    let (mut w, f) = World::slow_world(Options::default());
    w.longest_read(f, 100);
    w.answer_after(0, STOPPED);
    let began = w.now;
    let ids: Vec<OpId> = (0..10).map(|object| w.read(f, object, 0)).collect();
    assert!(w.node(f, 0).reads > 0, "some went to the stopped node");
    let tick = w.fronts[f].machine.next_tick().unwrap();
    assert_eq!(tick.since(began), LATE.0, "the tick is wanted when the first read becomes late");
    w.glide(LATE.0 + 2 * QUICK);
    assert!(ids.iter().all(|id| matches!(w.result(f, *id), Some(Ok(_)))), "all are answered");
    let counters = w.fronts[f].machine.counters();
    assert!(counters.hedged > 0 && counters.hedged == counters.hedge_wins);
    assert!(w.node(f, 0).slow);
    // From now on nobody even notices.
    let before = w.reads_of(0);
    assert!(w.longest_read(f, 200) <= 2 * QUICK);
    assert_eq!(w.reads_of(0), before, "the late read is the probe: no other is sent");
    // The late answers come, and mean nothing.
    let old = ids.iter().map(|id| w.result(f, *id)).collect::<Vec<_>>();
    w.answer_after(0, QUICK);
    w.glide(100_000);
    assert_eq!(ids.iter().map(|id| w.result(f, *id)).collect::<Vec<_>>(), old);
    w.longest_read(f, 100);
    w.glide(100_000);
    w.longest_read(f, 300);
    assert!(!w.node(f, 0).slow, "it has answered some probes in time");
    assert!(w.reads_of(0) > before + 50, "and is read from");
    assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default());
}

#[test]
fn a_node_that_was_late_is_found_to_be_quick_again_although_nobody_reads() {
    let (mut w, f) = World::slow_world(Options::default());
    w.longest_read(f, 100);
    w.answer_after(0, 200_000);
    w.longest_read(f, 30);
    assert!(w.node(f, 0).slow);
    // It is still slow: asked now and then, and not believed.
    w.glide(5_000_000);
    assert!(w.node(f, 0).slow);
    w.answer_after(0, QUICK);
    let asked = w.reads_of(0);
    w.glide(10_000_000);
    assert!(!w.node(f, 0).slow, "it has answered probes in time");
    let probes = w.reads_of(0) - asked;
    assert!((1..=10).contains(&probes), "{probes} probes: it is asked until it is believed, and no further");
}

#[test]
fn a_stopped_node_is_found_out_by_its_silence_before_anything_is_read_of_it() {
    let (mut w, f) = World::slow_world(Options::default());
    w.longest_read(f, 100);
    w.answer_after(2, STOPPED);
    let id = w.write(f, 0, 1, 7);
    w.glide(LATE.1 + 1);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    let before = w.reads_of(2);
    assert!(w.longest_read(f, 100) <= 2 * QUICK);
    assert_eq!(w.reads_of(2), before);
}

#[test]
fn hedging_does_not_double_the_load_of_nodes_that_are_all_slow() {
    let (mut w, f) = World::slow_world(Options::default());
    w.longest_read(f, 200);
    (0..3).for_each(|node| w.answer_after(node, 60_000));
    let before: usize = w.reads_sent.values().sum();
    let reads = 2_000;
    let mut ids = Vec::new();
    for n in 0..reads {
        ids.push(w.read(f, n % 10, 0));
        w.glide(1_000);
    }
    w.glide(1_000_000);
    assert!(ids.iter().all(|id| matches!(w.result(f, *id), Some(Ok(_)))));
    let sent = w.reads_sent.values().sum::<usize>() - before;
    let counters = w.fronts[f].machine.counters();
    let extra = sent - reads as usize;
    assert!(extra <= reads as usize / 20 + 64 + 100, "{extra} extra reads: {counters:?}");
    assert!(counters.hedges_denied > 0 && counters.hedged >= 64);
}

#[test]
fn a_hedged_read_does_not_overtake_a_write() {
    let (mut w, f) = World::slow_world(Options::default());
    w.longest_read(f, 100);
    w.answer_after(0, STOPPED);
    // One of them goes to the stopped node; only its object is looked at.
    let ids: Vec<OpId> = (0..3).map(|object| w.read(f, object, 0)).collect();
    w.glide(2 * QUICK);
    let object = (0..3).find(|n| w.result(f, ids[*n]).is_none()).expect("one waits") as u32;
    let read = ids[object as usize];
    // A write of what it reads comes, and is on its way to be durable on the other two.
    for node in [1, 2] {
        w.hosts.get_mut(&NodeId(node)).unwrap().disk.hold = true;
    }
    let write = w.write(f, object, 0, 55);
    let before = (w.reads_of(1), w.reads_of(2));
    w.glide(LATE.1 * 4);
    assert_eq!((w.reads_of(1), w.reads_of(2)), before, "they would show what may never have been");
    assert_eq!((w.result(f, read), w.result(f, write)), (None, None));
    w.flush(NodeId(1));
    w.flush(NodeId(2));
    w.glide(LATE.0);
    assert_eq!(w.result(f, write), Some(Ok(0)));
    assert_eq!(w.result(f, read), Some(Ok(55)));
    // What the stopped node had to say is from before the write, and comes too late.
    w.answer_after(0, QUICK);
    w.glide(100_000);
    assert_eq!(w.result(f, read), Some(Ok(55)));
}

#[test]
fn a_hedged_read_without_a_lease_is_confirmed() {
    let mut w = World::new();
    (0..3).for_each(|node| w.answer_after(node, QUICK));
    let f = w.front(1, Options::default());
    w.glide(10_000);
    w.write(f, 0, 0, 100);
    w.glide(2_000_000); // the lease has run out
    w.longest_read_of(f, 0, 30);
    w.answer_after(0, STOPPED);
    let ids: Vec<OpId> = (0..3).map(|_| w.read(f, 0, 0)).collect();
    w.glide(LATE.1 + 4 * QUICK);
    assert!(ids.iter().all(|id| w.result(f, *id) == Some(Ok(100))));
    assert!(w.fronts[f].machine.counters().confirms > 0);
}

impl World {
    fn longest_read_of(&mut self, f: usize, object: u32, reads: u32) -> u64 {
        (0..reads).map(|_| self.timed_read(f, object)).max().unwrap_or(0)
    }
}

#[test]
fn a_laggard_is_cut_loose_by_time_and_held_out_longer_each_time() {
    let hold = (500_000, 8_000_000);
    let options = Options { lag_max: 1_000_000, hold, ..Options::default() };
    let (mut w, f) = World::slow_world(options);
    // Its answers come, and are always two seconds old.
    let mut held = Vec::new();
    for turn in 0..6 {
        w.answer_after(0, 2_000_000);
        let began = w.now;
        while w.resets(f) == turn {
            let id = w.write(f, 0, 0, 1_000 + w.now.0);
            w.glide(100_000);
            assert_eq!(w.result(f, id), Some(Ok(0)), "writes go on");
            assert!(w.now.since(began) < 20_000_000, "turn {turn}: it was not cut loose");
        }
        let cut = w.now;
        w.answer_after(0, QUICK);
        w.reconnect(f);
        assert!(w.node(f, 0).held && !w.node(f, 0).up);
        while w.node(f, 0).held {
            w.glide(10_000);
        }
        held.push(w.now.since(cut));
        w.glide(1_000_000);
        assert!(w.fronts[f].machine.all_whole(), "brought back by repair");
        assert_eq!(w.at(0, 0, 0), w.at(1, 0, 0));
    }
    // To the next tick, which comes at least every half second.
    for (turn, held) in held.iter().enumerate() {
        let least = (hold.0 << turn).min(hold.1);
        assert!((least - 200_000..least + 600_000).contains(held), "turn {turn}: {held} µs");
    }
    assert_eq!(w.node(f, 0).cuts, 6);
    // Steady for a while: what was is forgotten.
    w.glide(130_000_000);
    w.answer_after(0, 2_000_000);
    while w.resets(f) == 6 {
        w.write(f, 0, 0, w.now.0);
        w.glide(100_000);
    }
    w.answer_after(0, QUICK);
    w.reconnect(f);
    w.glide(hold.0 + 600_000);
    assert!(w.node(f, 0).up, "held out for the shortest time again");
}

#[test]
fn a_stopped_node_is_cut_loose_and_comes_back() {
    let (mut w, f) = World::slow_world(Options::default());
    w.answer_after(1, STOPPED);
    for n in 0..70 {
        let id = w.write(f, n % 10, 1, 500 + u64::from(n));
        w.glide(100_000);
        assert_eq!(w.result(f, id), Some(Ok(0)));
    }
    assert_eq!(w.resets(f), 1, "after the node timeout");
    assert!(!w.node(f, 1).up);
    w.answer_after(1, QUICK);
    w.reconnect(f);
    w.glide(5_000_000);
    assert!(w.fronts[f].machine.all_whole());
    for object in 0..10 {
        assert_eq!(w.at(1, object, 1), w.at(0, object, 1));
    }
}

#[test]
fn a_laggard_is_cut_loose_by_the_length_of_its_queue() {
    let (mut w, f) = World::slow_world(Options::default());
    w.answer_after(2, STOPPED);
    let mut writes = 0;
    while w.resets(f) == 0 {
        w.write(f, writes % 10, 2, u64::from(writes) + 1);
        w.glide(2 * QUICK / 64);
        writes += 1;
        assert!(writes as usize <= NODE_BACKLOG_OPS_MAX + 1_000, "it was not cut loose");
        assert!(w.node(f, 2).backlog_ops <= NODE_BACKLOG_OPS_MAX + 1);
    }
    assert_eq!(w.node(f, 2).backlog_ops, 0);
}

#[test]
fn a_node_that_was_held_out_is_taken_back_at_once_when_it_is_needed() {
    let options = Options { lag_max: 500_000, hold: (30_000_000, 60_000_000), ..Options::default() };
    let (mut w, f) = World::slow_world(options);
    w.hold_out_0(f);
    w.crash(NodeId(1));
    assert!(w.node(f, 0).up, "without it there is no quorum");
    let id = w.write(f, 0, 0, 77);
    w.glide(200_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    // The same for one that is silent, which nobody has noticed yet.
    w.restart(NodeId(1));
    w.glide(1_000_000);
    w.hold_out_0(f);
    w.answer_after(1, STOPPED);
    let id = w.write(f, 0, 0, 78);
    w.glide(400_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
}

#[test]
fn a_node_that_was_held_out_is_taken_back_at_once_when_another_one_becomes_slow() {
    let options = Options { lag_max: 500_000, hold: (30_000_000, 60_000_000), ..Options::default() };
    let (mut w, f) = World::slow_world(options);
    w.hold_out_0(f);
    // Slow, and never silent for long: it answers every few milliseconds what it was asked long ago.
    w.answer_after(1, 300_000);
    let writes: Vec<OpId> = (0..200)
        .map(|n| {
            let id = w.write(f, n % 10, 3, 900 + u64::from(n));
            w.glide(1_000);
            id
        })
        .collect();
    w.glide(100_000);
    assert!(!w.node(f, 0).held, "clients would wait for the slow one");
    for id in writes {
        assert_eq!(w.result(f, id), Some(Ok(0)));
    }
    assert_eq!(w.node(f, 0).cuts, 1, "and it is not cut loose again");
}

#[test]
fn a_laggard_that_a_quorum_needs_is_kept_and_its_queue_is_bounded() {
    let options = Options { node_timeout: 3_600_000_000, ..Options::default() };
    let (mut w, f) = World::slow_world(options);
    // Node 1 has no room for what is new: its copy of object 9 is behind, and node 2 and 0 are needed for it.
    w.room(1, 0);
    let id = w.write(f, 9, 5, 1);
    w.glide(1_000);
    assert_eq!(w.result(f, id), Some(Ok(0)));
    w.glide(100_000);
    assert!(w.fronts[f].machine.copies_behind() > 0);
    w.answer_after(0, STOPPED);
    let waits = w.write(f, 9, 0, 2);
    let mut last = OpId(0);
    for n in 0..NODE_BACKLOG_OPS_MAX as u64 + 3_000 {
        last = w.write(f, 3, 0, 5_000 + n); // an overwrite: node 1 takes it
        w.glide(QUICK / 10);
        let backlog = w.node(f, 0).backlog_ops;
        assert!(backlog <= NODE_BACKLOG_OPS_MAX + 2, "{backlog} writes are under way to it");
    }
    w.glide(10_000);
    assert_eq!(w.resets(f), 0, "object 9 has no quorum without it");
    assert_eq!(w.result(f, last), Some(Ok(0)), "object 3 has one");
    assert_eq!(w.result(f, waits), None);
    assert!(w.node(f, 0).backlog_ops < 100, "its copy of object 3 was left behind");
    w.answer_after(0, QUICK);
    w.room(1, 1000);
    w.glide(30_000_000);
    assert_eq!(w.result(f, waits), Some(Ok(0)));
    assert!(w.fronts[f].machine.all_whole());
    assert_eq!(w.at(0, 3, 0), w.at(2, 3, 0));
    assert_eq!(w.fronts[f].machine.under_way(), UnderWay::default());
}

#[test]
fn ticks_are_rare_while_nothing_is_late() {
    let (mut w, f) = World::slow_world(Options::default());
    w.glide(1_000_000);
    let before = w.ticks;
    w.glide(10_000_000);
    assert!(w.ticks - before <= 21, "{} ticks in ten quiet seconds", w.ticks - before);
    // Reads that are answered leave no ticks of their own behind.
    let (before, began) = (w.ticks, w.now);
    w.longest_read(f, 2_000);
    let (ticks, took) = ((w.ticks - before) as u64, w.now.since(began));
    assert!(ticks <= took / 50_000 + 2, "{ticks} ticks for 2000 reads in {took} µs");
    let status = w.op(f, 0, OpKind::Status { blocks: BlockRange::new(0, 8) });
    let next = w.fronts[f].machine.next_tick().expect("a tick");
    assert!(next <= w.now.after(LATE.1), "a status may become late, too");
    w.glide(1_000);
    assert!(w.result(f, status).is_some());
}

#[test]
fn reads_at_a_stopped_node_go_on_even_where_all_are_slow_and_the_budget_is_used_up() {
    let (mut w, f) = World::slow_world(Options::default());
    (0..3).for_each(|node| w.answer_after(node, 30_000));
    let mut denied = 0;
    for n in 0..4_000 {
        w.read(f, n % 10, 0);
        w.glide(1_000);
        denied = w.fronts[f].machine.counters().hedges_denied;
    }
    assert!(denied > 0, "the budget is used up");
    w.answer_after(1, STOPPED);
    let mut under_way = Vec::new();
    for n in 0..1_000 {
        under_way.push((w.now, w.read(f, n % 10, 0)));
        w.glide(1_000);
        under_way.retain(|(_, id)| w.result(f, *id).is_none());
        for (sent, id) in &under_way {
            let waited = w.now.since(*sent);
            assert!(waited < 200_000, "{id:?} has waited for {waited} µs");
        }
    }
    assert_eq!(w.resets(f), 0, "nobody had to wait for the node's timeout");
}
