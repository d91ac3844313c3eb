//! The network: ordered connections between leaders and nodes and between nodes.
//!
//! A connection breaks at some moment for what is under way to the one side, at another for the other,
//! and both ends notice later still: what was sent just before may arrive or be lost, always a suffix.
//! A path between two hosts can be shut, in one direction or both; what is sent meanwhile arrives after
//! it opens again, if its connection lasts.

use super::{Event, World};
use crate::coverage::Cover;
use crate::payload::Blocks;
use crate::plan::{MONITORS_MAX, NODES_MAX};
use trefoil_core::message::{FromNode, PeerMsg, ToNode};
use trefoil_core::node::ConnId;

/// Hosts that front ends and healers run on, at most.
pub const HOSTS_MAX: usize = 3;
/// Ends of paths: nodes, hosts, and the monitors.
pub const ENDS: usize = NODES_MAX + HOSTS_MAX + MONITORS_MAX;
/// The monitor's end, or the first one's.
pub const MONITOR: usize = NODES_MAX + HOSTS_MAX;

/// The end of a monitor.
pub fn monitor_end(mi: usize) -> usize {
    MONITOR + mi
}

/// The end of a front end's host.
pub fn host_end(host: usize) -> usize {
    NODES_MAX + host
}

/// Index of the direction towards the node in a [`Conn`]'s pairs; the other is towards the leader.
pub const TO_NODE: usize = 0;
/// See [`TO_NODE`].
pub const TO_LEADER: usize = 1;

/// A connection between a leader and a node.
#[derive(Clone, Debug)]
pub struct Conn {
    /// The leader.
    pub leader: usize,
    /// The node.
    pub node: usize,
    /// Which life of the node.
    pub life: u32,
    /// From then on nothing arrives.
    pub cut: [u64; 2],
    /// When the last message arrives: none overtakes another.
    pub last: [u64; 2],
    /// It is broken, or one end is gone.
    pub broken: bool,
    /// The node knows that it is gone.
    pub node_told: bool,
    /// The leader knows that it is gone, or is gone itself.
    pub leader_told: bool,
}

/// One direction between two nodes.
#[derive(Copy, Clone, Debug, Default)]
pub struct Link {
    /// Counts its breaks.
    pub life: u32,
    /// From then on nothing of the life before arrives.
    pub cut: u64,
    /// When the last message arrives.
    pub last: u64,
}

/// All of it.
#[derive(Debug)]
pub struct Network {
    /// By [`ConnId`] less one.
    pub conns: Vec<Conn>,
    /// By sender and receiver.
    pub links: [[Link; NODES_MAX]; NODES_MAX],
    /// Until when nothing sent from one end arrives at another.
    pub shut: [[u64; ENDS]; ENDS],
}

impl Default for Network {
    fn default() -> Network {
        Network {
            conns: Vec::new(),
            links: [[Link::default(); NODES_MAX]; NODES_MAX],
            shut: [[0; ENDS]; ENDS],
        }
    }
}

impl Network {
    /// A connection.
    pub fn conn(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[id as usize - 1]
    }
}

impl World {
    /// How long a message takes.
    pub(super) fn delay(&mut self) -> u64 {
        let delay = self.rng.between(self.plan.delay.0, self.plan.delay.1);
        let late = self.faulty && self.plan.late_one_in > 0 && self.rng.one_in(self.plan.late_one_in);
        if late { delay * 20 } else { delay }
    }

    /// When something sent now from one end arrives at the other.
    pub(super) fn arrival(&mut self, from: usize, to: usize) -> u64 {
        let slow =
            |end: usize| self.nodes.get(end).filter(|_| end < NODES_MAX).map_or(1, |node| node.slow_net);
        let times = slow(from).max(slow(to));
        let at = self.now.max(self.net.shut[from][to]) + self.delay() * times;
        for end in [from, to] {
            if let Some(node) = self.nodes.get_mut(end).filter(|node| node.slow_net > 1) {
                node.slow_until = node.slow_until.max(at);
            }
        }
        at
    }

    /// True if nothing sent from either end to the other arrives now.
    pub(super) fn is_shut(&self, a: usize, b: usize) -> bool {
        self.net.shut[a][b] > self.now || self.net.shut[b][a] > self.now
    }

    /// A leader tries to connect to a node, and tries again later if it cannot.
    pub(super) fn connect(&mut self, li: usize, ni: usize) {
        let host = &self.leaders[li];
        if host.machine.is_none() || host.conns[ni] != 0 {
            return;
        }
        if self.nodes[ni].machine.is_none() || self.is_shut(host_end(host.host), ni) || self.is_hidden(li, ni)
        {
            let later = self.now + self.rng.magnitude(500, 50_000);
            return self.queue.push(later, Event::Connect { li, ni });
        }
        let conn = Conn {
            leader: li,
            node: ni,
            life: self.nodes[ni].life,
            cut: [u64::MAX; 2],
            last: [0; 2],
            broken: false,
            node_told: false,
            leader_told: false,
        };
        self.net.conns.push(conn);
        self.leaders[li].conns[ni] = self.net.conns.len() as ConnId;
        self.leader_connected(li, ni);
    }

    pub(super) fn send_to_node(&mut self, li: usize, ni: usize, msg: ToNode<Blocks>) {
        let id = self.leaders[li].conns[ni];
        if id == 0 {
            return;
        }
        let arrival = self.arrival(host_end(self.leaders[li].host), ni);
        let conn = self.net.conn(id);
        let arrival = arrival.max(conn.last[TO_NODE]);
        conn.last[TO_NODE] = arrival;
        self.queue.push(arrival, Event::ToNode { conn: id, msg });
    }

    pub(super) fn send_to_leader(&mut self, id: ConnId, msg: FromNode<Blocks>) {
        let (li, ni, told) = {
            let conn = self.net.conn(id);
            (conn.leader, conn.node, conn.node_told)
        };
        if told {
            return;
        }
        let arrival = self.arrival(ni, host_end(self.leaders[li].host));
        let conn = self.net.conn(id);
        let arrival = arrival.max(conn.last[TO_LEADER]);
        conn.last[TO_LEADER] = arrival;
        self.queue.push(arrival, Event::ToLeader { conn: id, msg });
    }

    pub(super) fn send_to_peer(&mut self, from: usize, to: usize, msg: PeerMsg<Blocks>) {
        if to >= self.plan.nodes || to == from {
            return;
        }
        if self.nodes[to].machine.is_none() || self.net.shut[from][to] > self.now + 20_000 {
            let later = self.now + self.delay();
            let life = self.nodes[from].life;
            return self.queue.push(later, Event::PeerLost { ni: from, life, other: to });
        }
        let arrival = self.arrival(from, to);
        let link = &mut self.net.links[from][to];
        let arrival = arrival.max(link.last);
        link.last = arrival;
        let event =
            Event::Peer { from, to, link_life: link.life, life: self.nodes[to].life, msg: Box::new(msg) };
        self.queue.push(arrival, event);
    }

    /// A connection breaks: some of what is under way still arrives, both ends notice at some time.
    pub(super) fn break_conn(&mut self, id: ConnId) {
        if self.net.conn(id).broken {
            return;
        }
        self.coverage.count(Cover::Breaks);
        let span = self.plan.delay.1 * 3;
        for side in [TO_NODE, TO_LEADER] {
            let cut = self.now + self.rng.below(span);
            let late = if self.faulty && self.rng.one_in(4) { 100_000 } else { 1_000 };
            let notice = cut + self.rng.magnitude(1, late);
            let conn = self.net.conn(id);
            conn.broken = true;
            conn.cut[side] = cut;
            let event = if side == TO_NODE {
                Event::NodeLosesConn { conn: id }
            } else {
                Event::LeaderLosesConn { conn: id }
            };
            self.queue.push(notice, event);
        }
    }

    /// The leader's end is gone (it closed it, or died): what it sent may still arrive.
    pub(super) fn leader_end_gone(&mut self, id: ConnId) {
        let span = self.plan.delay.1 * 10;
        let cut = self.now + self.rng.below(span);
        let notice = cut + self.rng.magnitude(1, if self.faulty { 300_000 } else { 1_000 });
        let conn = self.net.conn(id);
        conn.leader_told = true;
        if !conn.broken {
            conn.broken = true;
            conn.cut[TO_NODE] = cut;
            conn.cut[TO_LEADER] = self.now;
            self.queue.push(notice, Event::NodeLosesConn { conn: id });
        }
    }

    /// The node's end is gone with the node: what it sent may still arrive.
    pub(super) fn node_end_gone(&mut self, id: ConnId) {
        let span = self.plan.delay.1 * 3;
        let cut = self.now + self.rng.below(span);
        let notice = cut + self.rng.magnitude(1, 20_000);
        let conn = self.net.conn(id);
        conn.node_told = true;
        if !conn.broken {
            conn.broken = true;
            conn.cut[TO_LEADER] = cut;
            self.queue.push(notice, Event::LeaderLosesConn { conn: id });
        }
    }

    /// The connection between two nodes breaks.
    pub(super) fn break_link(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let span = self.plan.delay.1 * 2;
            let cut = self.now + self.rng.below(span);
            let notice = cut + self.rng.magnitude(1, 20_000);
            let link = &mut self.net.links[from][to];
            link.life += 1;
            link.cut = cut;
            // The receiver of this direction notices behind its last message.
            let life = self.nodes[to].life;
            self.queue.push(notice, Event::PeerLost { ni: to, life, other: from });
        }
    }
}
