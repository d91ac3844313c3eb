//! The connections to storage nodes: one per node, shared by all volumes of this front end.
//!
//! Book-keeping without tasks and without a clock: [`Links`] knows which nodes are wanted, which are
//! connected, and who has something to flush. The task that makes a node's connection and reads from it
//! is in [`super::front`].

use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_core::{Incarnation, NodeId};
use trefoil_transport::Sender;

/// The pause after the first failure to connect: a node that was restarted is back at once.
pub const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest pause between two tries.
pub const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// The pause before a node is tried again that a leader has given up on.
pub const RESET_PAUSE: Duration = Duration::from_millis(500);

/// Where a node is to be found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// Its listener.
    pub address: SocketAddr,
    /// Its store. Another one at the address is another node.
    pub incarnation: Incarnation,
}

#[derive(Default)]
struct Link {
    sender: Option<Sender>,
    dirty: bool,
    /// A leader has given the connection up: the next one is made after [`RESET_PAUSE`].
    reset: bool,
}

/// See the module.
#[derive(Default)]
pub struct Links {
    book: FxHashMap<NodeId, NodeAddress>,
    links: FxHashMap<NodeId, Link>,
    dirty: Vec<NodeId>,
    wanted: Vec<NodeId>,
}

impl Links {
    /// The map's addresses. A node that has moved or was replaced loses its connection.
    pub fn set_addresses(&mut self, book: FxHashMap<NodeId, NodeAddress>) {
        for (node, link) in &self.links {
            if self.book.get(node) != book.get(node)
                && let Some(sender) = &link.sender
            {
                sender.close("the map has another address for this node");
            }
        }
        self.book = book;
    }

    /// Where the node is.
    pub fn address(&self, node: NodeId) -> Option<NodeAddress> {
        self.book.get(&node).copied()
    }

    /// The node is to be connected from now on, for as long as the map has it. True if it is.
    pub fn want(&mut self, node: NodeId) -> bool {
        match self.links.get(&node) {
            Some(link) => link.sender.is_some(),
            None => {
                self.links.insert(node, Link::default());
                self.wanted.push(node);
                false
            }
        }
    }

    /// Nodes that need a task.
    pub fn take_wanted(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.wanted)
    }

    /// The node's task has ended: the map has it no longer.
    pub fn forget(&mut self, node: NodeId) {
        self.links.remove(&node);
    }

    /// A connection has been made.
    pub fn up(&mut self, node: NodeId, sender: Sender) {
        self.links.insert(node, Link { sender: Some(sender), dirty: false, reset: false });
    }

    /// The connection has ended. True if a leader had given it up.
    pub fn down(&mut self, node: NodeId) -> bool {
        let Some(link) = self.links.get_mut(&node) else { return false };
        link.sender = None;
        std::mem::take(&mut link.reset)
    }

    /// Closes the connection; its task sees the end and waits before the next one.
    pub fn reset(&mut self, node: NodeId, why: &'static str) {
        if let Some(link) = self.links.get_mut(&node)
            && let Some(sender) = link.sender.take()
        {
            link.reset = true;
            sender.close(why);
        }
    }

    /// Queues a message. One to a node that is not connected is dropped: its leader is told, or has been
    /// told, that the node is down.
    pub fn send(&mut self, node: NodeId, kind: u16, meta: &[u8], payload: Option<Bytes>) {
        let Some(link) = self.links.get_mut(&node) else { return };
        let Some(sender) = &link.sender else { return };
        if let Err(error) = sender.push_slice(kind, meta, payload) {
            tracing::debug!(%node, %error, "a message to a node was dropped");
            return;
        }
        if !std::mem::replace(&mut link.dirty, true) {
            self.dirty.push(node);
        }
    }

    /// True while something is queued that was not flushed.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Hands the kernel what was queued.
    pub fn flush(&mut self) {
        for node in self.dirty.drain(..) {
            if let Some(link) = self.links.get_mut(&node) {
                link.dirty = false;
                if let Some(sender) = &link.sender {
                    sender.flush();
                }
            }
        }
    }

    /// Nodes that are connected, in order.
    pub fn connected(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.links.iter().filter(|(_, link)| link.sender.is_some()).map(|(node, _)| *node).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Closes every connection.
    pub fn close_all(&mut self, why: &'static str) {
        for link in self.links.values() {
            if let Some(sender) = &link.sender {
                sender.close(why);
            }
        }
        self.book.clear();
    }
}

/// How long to wait before the next try: doubles with each failure; a part of it is drawn, so that many
/// front ends do not come at once.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    /// Before the first failure.
    fn default() -> Backoff {
        Backoff { next: RECONNECT_PAUSE_MIN }
    }
}

impl Backoff {
    /// A connection was made.
    pub fn succeeded(&mut self) {
        self.next = RECONNECT_PAUSE_MIN;
    }

    /// The next pause: between three quarters of the step and the step; `draw` is any number.
    pub fn pause(&mut self, draw: u32) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(RECONNECT_PAUSE_MAX);
        step - step / 4 * (draw % 1024) / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_limit_and_begins_again() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(0), RECONNECT_PAUSE_MIN);
        let pauses: Vec<Duration> = (0..10).map(|_| backoff.pause(1023)).collect();
        assert!(pauses.is_sorted());
        assert!(pauses[9] <= RECONNECT_PAUSE_MAX && pauses[9] >= RECONNECT_PAUSE_MAX * 3 / 4);
        backoff.succeeded();
        assert_eq!(backoff.pause(0), RECONNECT_PAUSE_MIN);
    }

    #[test]
    fn a_node_gets_one_task() {
        let mut links = Links::default();
        assert!(!links.want(NodeId(1)));
        assert!(!links.want(NodeId(1)));
        assert_eq!(links.take_wanted(), [NodeId(1)]);
        links.send(NodeId(1), 9, b"", None); // dropped
        links.forget(NodeId(1));
        assert!(!links.want(NodeId(1)));
        assert_eq!(links.take_wanted(), [NodeId(1)]);
    }
}
