//! The world: one cluster, one thread, one seed.
//!
//! [`World::step`] takes the next event from the queue and gives it to whom it concerns. Everything that
//! can happen is an [`Event`]; everything random is drawn from the one generator; nothing else is read
//! that could differ between two runs. The checkers look at what goes in and out, see [`crate::check`].
//!
//! | file | what |
//! |---|---|
//! | `event` | what can happen |
//! | [`net`] | connections, breaks, partitions |
//! | `nodes` | storage nodes and their stores |
//! | `leaders` | front ends, healers, clients |
//! | `acks` | pools whose answers wait for all copies in line |
//! | `monitor` | generations and leases: one monitor that answers at once |
//! | `replicas` | several monitors that have to agree |
//! | `requests` | what is asked of them, and answered |
//! | `calls` | front ends that only nodes hear |
//! | `monitor_faults` | what goes wrong with them |
//! | `moves` | placement groups that move |
//! | `splits` | placement groups that are split |
//! | `faults` | what goes wrong |
//! | `silent` | nodes that lose state and do not know |
//! | `lies` | copies that are wrong and look right |
//! | `calm` | the second phase |

mod acks;
mod calls;
mod calm;
mod event;
mod faults;
mod leaders;
mod lies;
mod monitor;
mod monitor_faults;
mod moves;
pub mod net;
mod nodes;
mod replicas;
mod requests;
mod silent;
mod splits;
mod words;

pub use calm::Stage;
pub use event::Event;
pub use leaders::LeaderHost;
pub use nodes::NodeHost;

use crate::check::all_in_sync::AllInSync;
use crate::check::i1_acknowledged::Acknowledged;
use crate::check::i2_linearizable::Linearizable;
use crate::check::i3_one_content::OneContent;
use crate::check::i4_equal_heads::EqualHeads;
use crate::check::kept::Kept;
use crate::check::one_lease::OneLease;
use crate::check::p1_majority::Majority;
use crate::check::p4_one_writer::OneWriter;
use crate::check::{self, Checked, Moment, Violation};
use crate::coverage::{Cover, Coverage};
use crate::payload::Blocks;
use crate::plan::{Bug, NODES_MAX, Plan};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::store::Image;
use crate::trace::{About, Trace};
use net::{Network, TO_LEADER, TO_NODE};
use trefoil_core::map::Ack;
use trefoil_core::node::ConnId;
use trefoil_core::record::Durable;
use trefoil_core::{NodeId, leader, node};

/// Steps that the second phase may take at most, whatever the virtual time.
const CALM_STEPS_MAX: u64 = 3_000_000;

/// Time between ticks of a node (µs).
const NODE_TICK: u64 = 100_000;

/// Virtual time after everything is well in which a leader that was replaced must have been told (µs).
const AFTER_CALM: u64 = 10_000_000;

/// Properties that a client can see.
const OUTSIDE: [&str; 5] = ["I1", "I2", "I6", "P2", "client"];

/// A process's clock, in µs: it starts anywhere, and runs a little too fast or too slow.
#[derive(Copy, Clone, Debug, Default)]
pub struct Clock {
    offset: u64,
    ppm: i64,
}

impl Clock {
    /// What it shows at a point of the world's time.
    pub fn local(&self, now: u64) -> u64 {
        let skew = now as i64 * self.ppm / 1_000_000;
        self.offset + (now as i64 + skew) as u64
    }
    /// A point of the world's time at which it shows at least this, and hardly more.
    pub fn when(&self, local: u64) -> u64 {
        let passed = local.saturating_sub(self.offset) as i128;
        let mut now = (passed * 1_000_000 / i128::from(1_000_000 + self.ppm)) as u64;
        while self.local(now) < local {
            now += 1;
        }
        now
    }
}

/// A cluster, and everything around it.
pub struct World {
    /// What the seed decided.
    pub plan: Plan,
    /// Virtual time (µs).
    pub now: u64,
    /// Events taken.
    pub steps: u64,
    /// What happened, counted.
    pub coverage: Coverage,
    /// What happened, in words or as a hash.
    pub trace: Trace,
    /// What must not be, if it was.
    pub violation: Option<Box<Violation>>,
    /// Only what a client could see counts.
    pub outside_only: bool,
    /// The longest operation (µs), in runs where only one node is in trouble at a time.
    pub longest: u64,
    /// Faults happen.
    faulty: bool,
    rng: Rng,
    queue: Queue<Event>,
    net: Network,
    nodes: Vec<NodeHost>,
    /// Each node's state as of the last record that it gave out.
    given: Vec<Durable>,
    leaders: Vec<LeaderHost>,
    host_clocks: Vec<Clock>,
    monitor: monitor::Monitor,
    replicas: Option<Box<replicas::Replicas>>,
    calm: calm::Calm,
    moves: Option<Box<moves::Moves>>,
    moments: Moment,
    next_value: u64,
    next_op: u64,
    rot_so_far: u64,
    lies: lies::Lies,
    rooms_shut: u64,
    /// Nodes that have lost state, and what one may fall back to.
    lost_state: [bool; NODES_MAX],
    snapshot: Option<(usize, (Durable, Image))>,
    silent: silent::Silent,
    // The checkers.
    linear: Linearizable,
    acknowledged: Acknowledged,
    content: OneContent,
    heads: EqualHeads,
    majority: Majority,
    in_sync: AllInSync,
    /// What the pool is set to.
    ack: Ack,
    writer: OneWriter,
    leases: OneLease,
    kept: Kept,
    // Buffers.
    node_out: Vec<node::Output<Blocks>>,
    leader_out: Vec<leader::Output<Blocks>>,
}

impl World {
    /// The world of a plan, before anything has happened.
    pub fn new(plan: Plan, words: bool) -> World {
        let mut rng = Rng::new(plan.seed);
        let skip_flush = plan.bug == Some(Bug::SkipFlush);
        let nodes = (0..plan.nodes)
            .map(|_| NodeHost::new(World::new_clock(&mut rng, &plan), skip_flush, plan.pgs.len() as u32))
            .collect();
        let host_clocks = (0..plan.hosts).map(|_| World::new_clock(&mut rng, &plan)).collect();
        let map = monitor::first_map(&plan);
        let wrong = map.as_ref().err().map(|error| Violation::plain("map", error.to_string()));
        let map = map.unwrap_or_default();
        let monitor = monitor::Monitor::new(World::new_clock(&mut rng, &plan), &plan, map.clone());
        let mut world = World {
            given: vec![Durable::default(); plan.nodes],
            plan,
            now: 0,
            steps: 0,
            coverage: Coverage::default(),
            trace: Trace::new(words),
            violation: wrong,
            outside_only: false,
            longest: 0,
            faulty: true,
            rng,
            queue: Queue::default(),
            net: Network::default(),
            nodes,
            leaders: Vec::new(),
            host_clocks,
            monitor,
            replicas: None,
            calm: calm::Calm::default(),
            moves: None,
            moments: 0,
            next_value: 1,
            next_op: 1,
            rot_so_far: 0,
            lies: lies::Lies::default(),
            rooms_shut: 0,
            lost_state: [false; NODES_MAX],
            snapshot: None,
            silent: silent::Silent::default(),
            linear: Linearizable::default(),
            acknowledged: Acknowledged::default(),
            content: OneContent::default(),
            heads: EqualHeads::default(),
            majority: Majority::default(),
            in_sync: AllInSync::default(),
            ack: Ack::Majority,
            writer: OneWriter::default(),
            leases: OneLease::default(),
            kept: Kept::default(),
            node_out: Vec::new(),
            leader_out: Vec::new(),
        };
        world.start_acks();
        world.start_moves(map.clone());
        world.start_monitors(map);
        world.start_calls();
        for ni in 0..world.plan.nodes {
            world.start_node(ni);
        }
        for volume in world.plan.volume_ids() {
            world.queue.push(0, Event::VolumeTimer { volume });
        }
        world.queue.push(world.plan.fault_every.1, Event::Fault);
        if let Some(plan) = &world.plan.lies {
            world.queue.push(plan.every.1, Event::Lie);
        }
        world
    }

    /// Runs both phases to their end, or to the first violation.
    pub fn run(&mut self) {
        while self.violation.is_none() && self.steps < self.plan.steps && self.step() {}
        if self.violation.is_some() {
            return;
        }
        self.begin_calm();
        if self.violation.is_some() {
            return;
        }
        let last_step = self.steps + CALM_STEPS_MAX;
        while self.violation.is_none() && !self.is_calm() {
            if self.now > self.calm.since + self.plan.calm_limit || self.steps > last_step || !self.step() {
                self.not_calm();
            }
        }
        // Time for those who were replaced to find out.
        let end = self.now + AFTER_CALM;
        while self.violation.is_none() && self.now < end && self.step() {}
        self.nobody_waits();
        for li in 0..self.leaders.len() {
            self.count_leader(li);
        }
    }

    /// The next thing happens. False if nothing ever will.
    pub fn step(&mut self) -> bool {
        let Some((time, event)) = self.queue.pop() else { return false };
        self.now = self.now.max(time);
        // What monitors say to each other is not what a run is measured in.
        let counts = !matches!(event, Event::Monitors(_) | Event::Beat { .. } | Event::Word { .. });
        self.steps += u64::from(counts);
        self.trace.mix(time);
        self.happen(event, true);
        true
    }

    /// A moment of its own, with room for one more behind it.
    fn moment(&mut self) -> Moment {
        self.moments += 2;
        self.moments
    }

    fn note(&mut self, checked: Checked) {
        if let Err(violation) = checked {
            if self.outside_only && !OUTSIDE.contains(&violation.invariant) {
                return;
            }
            if self.trace.wanted() {
                self.say(None, format!("VIOLATION of {}: {}", violation.invariant, violation.what));
            }
            self.violation.get_or_insert(violation);
        }
    }

    fn say(&mut self, about: About, text: String) {
        self.trace.line(self.steps, self.now, about, text);
    }

    /// Every quorum's choice, of one object.
    fn check_choice(&mut self, slot: usize) {
        let object = check::object_of(slot);
        if object.0.0 as usize > self.plan.volumes || object.1 as usize >= self.plan.objects {
            return;
        }
        let nodes = &self.nodes;
        let now = self.moments + 1;
        let checked =
            check::quorum_choice::check(&self.plan, &self.linear, object, now, |ni| &nodes[ni].store);
        self.note(checked);
    }

    fn node_lives(&self, ni: usize, life: u32) -> bool {
        self.nodes[ni].life == life && self.nodes[ni].machine.is_some()
    }

    /// Gives back what has to wait because the one that it concerns stands still.
    fn defer(&mut self, event: Event) -> Option<Event> {
        let (ni, li) = match &event {
            Event::ToNode { conn, .. } | Event::NodeLosesConn { conn } => {
                (Some(self.net.conn(*conn).node), None)
            }
            Event::ToLeader { conn, .. } | Event::LeaderLosesConn { conn } => {
                (None, Some(self.net.conn(*conn).leader))
            }
            Event::Peer { to, .. } => (Some(*to), None),
            Event::PeerLost { ni, .. }
            | Event::Flushed { ni, .. }
            | Event::SaidDurable { ni, .. }
            | Event::ReadDone { ni, .. }
            | Event::GrowthKnown { ni, .. }
            | Event::LeaderGone { ni, .. }
            | Event::NodeMap { ni, .. }
            | Event::List { ni, .. }
            | Event::LossOrdered { ni, .. }
            | Event::NodeTick { ni, .. } => (Some(*ni), None),
            Event::LeaderTick { li }
            | Event::Client { li, .. }
            | Event::Renewed { li, .. }
            | Event::Renew { li }
            | Event::ReleaseLeader { li }
            | Event::Config { li, .. }
            | Event::LeaderMap { li, .. }
            | Event::LeaderAck { li }
            | Event::Differs { li, .. }
            | Event::Connect { li, .. } => (None, Some(*li)),
            _ => (None, None),
        };
        match (ni, li) {
            (Some(ni), _) if self.nodes[ni].paused => self.nodes[ni].deferred.push_back(event),
            (_, Some(li)) if self.leaders[li].paused => self.leaders[li].deferred.push_back(event),
            _ => return Some(event),
        }
        None
    }

    /// `fresh`: it happens now; else it arrived while the one that it concerns stood still.
    fn happen(&mut self, event: Event, fresh: bool) {
        // What arrives behind the break of its connection does not arrive. Looked at before it waits: what
        // has reached a host that stands still is in its buffers.
        let cut = match &event {
            Event::ToNode { conn, .. } if fresh => {
                let conn = self.net.conn(*conn);
                (conn.cut[TO_NODE] <= self.now).then_some(conn.node)
            }
            Event::ToLeader { conn, .. } if fresh => {
                let conn = self.net.conn(*conn);
                (conn.cut[TO_LEADER] <= self.now).then_some(conn.node)
            }
            _ => None,
        };
        if cut.is_some() {
            return self.coverage.count(Cover::LostMessages);
        }
        let Some(event) = self.defer(event) else { return };
        match event {
            Event::ToNode { conn, msg } => {
                let (ni, life, told) = {
                    let c = self.net.conn(conn);
                    (c.node, c.life, c.node_told)
                };
                if self.node_lives(ni, life) && !told {
                    self.frame(ni, conn, msg);
                }
            }
            Event::ToLeader { conn, msg } => {
                let (li, ni) = {
                    let c = self.net.conn(conn);
                    (c.leader, c.node)
                };
                if self.leaders[li].conns[ni] == conn {
                    self.leader_hears(li, NodeId(ni as u32), &msg);
                    self.leader_input(li, leader::Input::Node { node: NodeId(ni as u32), msg });
                }
            }
            Event::NodeLosesConn { conn } => {
                let c = self.net.conn(conn);
                let (ni, life, told) = (c.node, c.life, c.node_told);
                c.node_told = true;
                if !told && self.node_lives(ni, life) {
                    self.leader_is_gone(ni, conn);
                }
            }
            Event::LeaderGone { ni, life, conn } => {
                if self.node_lives(ni, life) {
                    self.leader_is_gone(ni, conn);
                }
            }
            Event::LeaderLosesConn { conn } => self.leader_loses(conn),
            Event::Connect { li, ni } => self.connect(li, ni),
            Event::Peer { from, to, link_life, life, msg } => {
                let link = self.net.links[from][to];
                let arrives =
                    link.life == link_life || !fresh || (link.life == link_life + 1 && self.now < link.cut);
                if arrives && self.node_lives(to, life) {
                    self.peer_says(to, from, *msg);
                } else {
                    self.coverage.count(Cover::LostMessages);
                }
            }
            Event::PeerLost { ni, life, other } => {
                if self.node_lives(ni, life) {
                    self.node_input(ni, node::Input::PeerGone { node: NodeId(other as u32) });
                }
            }
            Event::Flushed { ni, life } => {
                if self.node_lives(ni, life) {
                    self.flushed(ni);
                }
            }
            Event::SaidDurable { ni, life, ticket } => {
                if self.node_lives(ni, life) {
                    self.node_input(ni, node::Input::Durable { ticket });
                }
            }
            Event::ReadDone { ni, life, token, object, found } => {
                if self.node_lives(ni, life) {
                    self.read_done(ni, token, object, found);
                }
            }
            Event::NodeTick { ni, life } => {
                if self.node_lives(ni, life) {
                    let moves = self.plan.moves.as_ref().map(|plan| plan.node_tick);
                    let tick =
                        moves.or(self.plan.lies.as_ref().map(|plan| plan.node_tick)).unwrap_or(NODE_TICK);
                    self.queue.push(self.now + tick, Event::NodeTick { ni, life });
                    self.node_input(ni, node::Input::Tick);
                }
            }
            Event::Lie => self.lie(),
            Event::Believe { object, block, times } => self.settle_lie(object, block, times),
            Event::NodeStarts { ni } => self.start_node(ni),
            Event::NodeResumes { ni, life } => {
                if self.nodes[ni].life == life && self.nodes[ni].paused {
                    self.nodes[ni].paused = false;
                    for event in std::mem::take(&mut self.nodes[ni].deferred) {
                        self.happen(event, false);
                    }
                }
            }
            Event::SpeedRecovers { ni } => (self.nodes[ni].slow, self.nodes[ni].slow_net) = (1, 1),
            Event::RoomAgain { ni } => {
                if !self.calm.full {
                    self.nodes[ni].capacity = nodes::ROOMY;
                }
            }
            Event::GrowthKnown { ni, life, conn } => {
                if self.node_lives(ni, life) {
                    self.growth_known(ni, conn);
                }
            }
            Event::LeaderTick { li } => {
                if self.leaders[li].tick_at <= self.now {
                    self.leaders[li].tick_at = 0;
                    self.leader_input(li, leader::Input::Tick);
                }
            }
            Event::LeaderResumes { li } => {
                if self.leaders[li].paused {
                    self.leaders[li].paused = false;
                    for event in std::mem::take(&mut self.leaders[li].deferred) {
                        self.happen(event, false);
                    }
                }
            }
            Event::LeaderEnds { li } => self.kill_leader(li),
            Event::ReleaseLeader { li } => self.release_leader(li),
            Event::Config { li, pg, config } => {
                self.leader_input(li, leader::Input::Config { pg, config });
            }
            Event::LeaderMap { li, pgs } => self.leader_input(li, leader::Input::Pgs { pgs }),
            Event::Differs { li, group } => self.leader_input(li, leader::Input::Differs { group }),
            Event::Client { li, client } => self.client(li, client),
            Event::Renew { li } => self.renew(li),
            Event::RenewsAgain { li } => {
                if self.faulty && self.leaders[li].machine.is_some() && !self.leaders[li].renews {
                    self.leaders[li].renews = !self.leaders[li].healer;
                    self.queue.push(self.now, Event::Renew { li });
                }
            }
            Event::Renewal { volume, generation, li, sent } => self.renewal(volume, generation, li, sent),
            Event::Renewed { li, until } => self.renewed(li, until),
            Event::Release { volume, generation, clean } => self.released(volume, generation, clean),
            Event::VolumeTimer { volume } => self.volume_timer(volume),
            Event::Ask { volume, healer, host, asked } => self.ask(volume, healer, host, asked),
            Event::Granted { volume, generation, healer, host, asked, asker, pgs } => {
                if self.answer_counts(volume, host, asker) {
                    self.start_leader((volume, generation), healer, host, asked, &pgs);
                    self.is_process(asker.boot, asked);
                }
            }
            Event::Beat { ni } => self.beat(ni),
            Event::Word { ni, callers } => self.word(ni, &callers),
            Event::AckChange => self.ack_changes(),
            Event::LeaderAck { li } => self.tell_ack(li),
            Event::MoverStep => self.mover_step(),
            Event::MoveWish => self.move_wish(),
            Event::SplitWish => self.split_wish(),
            Event::NodeFails { ni, life } => {
                if self.faulty && self.node_lives(ni, life) {
                    self.crash_for_a_while(ni);
                }
            }
            Event::NodeMap { ni, life, configs } => {
                if self.node_lives(ni, life) {
                    self.node_map(ni, configs);
                }
            }
            Event::List { ni, life, by, request } => {
                if self.node_lives(ni, life) {
                    self.list(ni, by, request);
                }
            }
            Event::Listed { ni, by, list } => self.listed(ni, by, list),
            Event::Monitors(event) => self.monitor_event(*event),
            Event::Fault => self.fault(),
            Event::LossOrdered { ni, life } => {
                if self.node_lives(ni, life) {
                    self.loss_ordered(ni);
                }
            }
            Event::LossKnown => self.loss_known(),
        }
    }

    fn leader_loses(&mut self, conn: ConnId) {
        let c = self.net.conn(conn);
        let (li, ni) = (c.leader, c.node);
        if std::mem::replace(&mut c.leader_told, true) || self.leaders[li].conns[ni] != conn {
            return;
        }
        self.leaders[li].conns[ni] = 0;
        self.in_sync.lost(li, NodeId(ni as u32));
        self.leader_input(li, leader::Input::NodeDown { node: NodeId(ni as u32) });
        let at = self.now + self.rng.magnitude(200, 20_000);
        self.queue.push(at, Event::Connect { li, ni });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_can_be_turned_back() {
        for ppm in [-40_000, -7, 0, 13, 40_000] {
            let clock = Clock { offset: 1234, ppm };
            for now in [0, 1, 999, 1_000_003, 77_000_000] {
                let at = clock.when(clock.local(now));
                assert!(clock.local(at) >= clock.local(now));
                assert!(at <= now + 1);
            }
        }
    }
}
