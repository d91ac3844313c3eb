//! Connections to other nodes: made on demand, tried again with a growing pause, never waited for.
//!
//! A node sends on connections that it made and listens on those that were made to it, so no two nodes
//! have to agree on who connects. [`Peers`] is the book-keeping, without tasks and without a clock of its
//! own: it says whom to connect to ([`Peers::take_wanted`]) and is told how that went.

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use trefoil_core::{Incarnation, NodeId};
use trefoil_transport::Sender;

/// Messages that wait for one connection to be made. Repairs send one at a time each; at the limit the
/// peer counts as gone, and whoever wants something of it asks again.
const WAITING_MAX: usize = 256;
/// Bytes of blocks that wait for one connection to be made; see [`WAITING_MAX`].
const WAITING_BYTES_MAX: usize = 16 << 20;
/// The pause after the first failure.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A message that waits: kind, meta, payload.
type Waiting = (u16, Bytes, Option<Bytes>);

enum State {
    /// Not connected. `until`: not tried again before.
    Down { until: Option<Instant>, pause: Duration },
    /// A task is at it.
    Connecting { attempt: Attempt, waiting: Vec<Waiting>, bytes: usize, pause: Duration },
    /// Connected.
    Up { attempt: Attempt, sender: Sender, dirty: bool },
}

impl State {
    fn is_of(&self, attempt: Attempt) -> bool {
        matches!(self, State::Connecting { attempt: of, .. } | State::Up { attempt: of, .. } if *of == attempt)
    }
}

/// Numbers the connections that are made, so that the end of an old one is not taken for that of the
/// present one.
pub type Attempt = u64;

/// Where a node is to be found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its listener.
    pub address: SocketAddr,
    /// Its store. Another one at the address is another node.
    pub incarnation: Incarnation,
}

/// See the module.
#[derive(Default)]
pub struct Peers {
    book: FxHashMap<NodeId, PeerAddress>,
    states: FxHashMap<NodeId, State>,
    wanted: Vec<(NodeId, Attempt)>,
    dirty: Vec<NodeId>,
    attempts: Attempt,
    tried: u64,
    /// Another number for each node.
    seed: u64,
    /// The newest connection that each node has made to this one.
    incoming: FxHashMap<NodeId, Attempt>,
}

impl Peers {
    /// Connections that were to be made since the start.
    pub fn tried(&self) -> u64 {
        self.tried
    }

    /// What its pauses are drawn from: should be another number for each node, such as its incarnation.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// The map's addresses. A node that has moved or was replaced loses its connection.
    pub fn set_addresses(&mut self, book: FxHashMap<NodeId, PeerAddress>) {
        for (node, state) in &self.states {
            if self.book.get(node) != book.get(node)
                && let State::Up { sender, .. } = state
            {
                sender.close("the map has another address for this node");
            }
        }
        self.states
            .retain(|node, state| book.contains_key(node) || matches!(state, State::Connecting { .. }));
        self.book = book;
    }

    /// Where a node is.
    pub fn address(&self, node: NodeId) -> Option<PeerAddress> {
        self.book.get(&node).copied()
    }

    /// Queues a message. False: the node cannot be reached now, the message is dropped.
    pub fn send(&mut self, node: NodeId, kind: u16, meta: &[u8], payload: Option<Bytes>) -> bool {
        if !self.book.contains_key(&node) {
            return false;
        }
        let now = Instant::now();
        let state = self.states.entry(node).or_insert(State::Down { until: None, pause: PAUSE_MIN });
        if let State::Down { until, pause } = state {
            if until.is_some_and(|until| now < until) {
                return false;
            }
            self.attempts += 1;
            self.tried += 1;
            let attempt = self.attempts;
            *state = State::Connecting { attempt, waiting: Vec::new(), bytes: 0, pause: *pause };
            self.wanted.push((node, attempt));
        }
        match state {
            State::Connecting { waiting, bytes, .. } => {
                *bytes += payload.as_ref().map_or(0, Bytes::len);
                if waiting.len() >= WAITING_MAX || *bytes > WAITING_BYTES_MAX {
                    waiting.clear();
                    *bytes = 0;
                    return false;
                }
                waiting.push((kind, Bytes::copy_from_slice(meta), payload));
                true
            }
            State::Up { sender, dirty, .. } => {
                if sender.push_slice(kind, meta, payload).is_err() {
                    return false;
                }
                if !std::mem::replace(dirty, true) {
                    self.dirty.push(node);
                }
                true
            }
            State::Down { .. } => false,
        }
    }

    /// Nodes to connect to now.
    pub fn take_wanted(&mut self) -> Vec<(NodeId, Attempt)> {
        std::mem::take(&mut self.wanted)
    }

    /// A connection has been made. False: nobody wants it any more.
    pub fn connected(&mut self, node: NodeId, attempt: Attempt, sender: Sender) -> bool {
        let Some(state) = self.states.get_mut(&node).filter(|state| state.is_of(attempt)) else {
            return false;
        };
        let up = State::Up { attempt, sender: sender.clone(), dirty: false };
        if let State::Connecting { waiting, .. } = std::mem::replace(state, up) {
            for (kind, meta, payload) in waiting {
                if sender.push_slice(kind, &meta, payload).is_err() {
                    break;
                }
            }
            sender.flush();
        }
        true
    }

    /// A connection could not be made, or has ended. Nothing is tried before a pause. False: it was not the
    /// present one, and nothing has changed.
    pub fn down(&mut self, node: NodeId, attempt: Attempt) -> bool {
        let pause = match self.states.get(&node).filter(|state| state.is_of(attempt)) {
            None => return false,
            Some(State::Connecting { pause, .. }) => *pause,
            Some(_) => PAUSE_MIN,
        };
        // A part of it is drawn, so that nodes that were started all at once do not come all at once.
        let mut draw = FxHasher::default();
        (self.seed, node, attempt).hash(&mut draw);
        let until = Some(Instant::now() + pause - pause / 2 * ((draw.finish() >> 32) as u32 % 1024) / 1024);
        self.states.insert(node, State::Down { until, pause: (pause * 2).min(PAUSE_MAX) });
        true
    }

    /// A node has connected to this one.
    pub fn came(&mut self, node: NodeId) -> Attempt {
        self.attempts += 1;
        self.incoming.insert(node, self.attempts);
        self.attempts
    }

    /// Such a connection has ended. False: the node has made a newer one.
    pub fn left(&mut self, node: NodeId, attempt: Attempt) -> bool {
        let newest = self.incoming.get(&node) == Some(&attempt);
        if newest {
            self.incoming.remove(&node);
        }
        newest
    }

    /// Hands the kernel what was queued.
    pub fn flush(&mut self) {
        for node in self.dirty.drain(..) {
            if let Some(State::Up { sender, dirty, .. }) = self.states.get_mut(&node) {
                *dirty = false;
                sender.flush();
            }
        }
    }

    /// Closes every connection.
    pub fn close_all(&mut self, why: &'static str) {
        for state in self.states.values() {
            if let State::Up { sender, .. } = state {
                sender.close(why);
            }
        }
        self.states.clear();
        self.book.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Peers {
        let mut peers = Peers::default();
        let address = PeerAddress { address: ([127, 0, 0, 1], 1).into(), incarnation: Incarnation(5) };
        peers.set_addresses([(NodeId(1), address)].into_iter().collect());
        peers
    }

    #[test]
    fn an_unknown_node_is_gone_at_once() {
        assert!(!peers().send(NodeId(2), 9, b"", None));
        assert!(peers().take_wanted().is_empty());
    }

    #[test]
    fn one_connection_is_wanted_however_much_waits_for_it() {
        let mut peers = peers();
        for _ in 0..WAITING_MAX {
            assert!(peers.send(NodeId(1), 9, b"m", None));
        }
        assert_eq!(peers.take_wanted(), [(NodeId(1), 1)]);
        assert!(!peers.send(NodeId(1), 9, b"m", None), "the limit");
        assert!(peers.take_wanted().is_empty());
    }

    #[test]
    fn the_bytes_that_wait_are_limited() {
        let mut peers = peers();
        let block = Bytes::from(vec![0; WAITING_BYTES_MAX / 2]);
        assert!(peers.send(NodeId(1), 9, b"m", Some(block.clone())));
        assert!(peers.send(NodeId(1), 9, b"m", Some(block.clone())));
        assert!(!peers.send(NodeId(1), 9, b"m", Some(block)));
    }

    #[test]
    fn after_a_failure_there_is_a_pause_that_grows() {
        let mut peers = peers();
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            if let Some(State::Down { until, .. }) = peers.states.get_mut(&NodeId(1)) {
                *until = None;
            }
            assert!(peers.send(NodeId(1), 9, b"m", None));
            let wanted = peers.take_wanted();
            assert!(matches!(wanted[..], [(NodeId(1), _)]));
            assert!(peers.down(NodeId(1), wanted[0].1));
            assert!(!peers.send(NodeId(1), 9, b"m", None));
            let Some(State::Down { pause, .. }) = peers.states.get(&NodeId(1)) else { panic!() };
            assert!(*pause > last || *pause == PAUSE_MAX);
            last = *pause;
        }
        assert_eq!(last, PAUSE_MAX);
    }

    #[test]
    fn nodes_that_were_started_all_at_once_do_not_come_back_all_at_once() {
        let pauses: Vec<Duration> = (0..64)
            .map(|seed| {
                let mut peers = peers();
                peers.set_seed(seed);
                assert!(peers.send(NodeId(1), 9, b"m", None));
                let begun = Instant::now();
                assert!(peers.down(NodeId(1), 1));
                let Some(State::Down { until: Some(until), .. }) = peers.states.get(&NodeId(1)) else {
                    panic!()
                };
                *until - begun
            })
            .collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*least >= PAUSE_MIN / 2 && *most - *least > PAUSE_MIN / 4, "{least:?} to {most:?}");
    }

    #[test]
    fn the_end_of_an_old_connection_is_not_the_end_of_the_new_one() {
        let mut peers = peers();
        assert!(peers.send(NodeId(1), 9, b"m", None));
        let (_, old) = peers.take_wanted()[0];
        assert!(peers.down(NodeId(1), old));
        if let Some(State::Down { until, .. }) = peers.states.get_mut(&NodeId(1)) {
            *until = None;
        }
        assert!(peers.send(NodeId(1), 9, b"m", None));
        let (_, new) = peers.take_wanted()[0];
        assert!(!peers.down(NodeId(1), old), "late");
        assert!(peers.send(NodeId(1), 9, b"m", None), "the new one is being made still");
        assert!(peers.down(NodeId(1), new));

        let (old, new) = (peers.came(NodeId(1)), peers.came(NodeId(1)));
        assert!(!peers.left(NodeId(1), old));
        assert!(peers.left(NodeId(1), new));
    }
}
