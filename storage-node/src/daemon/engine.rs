//! The node's machine between its store and its connections.
//!
//! Everything happens in batches: [`Engine::begin`], any number of [`Engine::feed`], then
//! [`Engine::finish`], which carries out what the machine has put out, in its order, and once per batch
//! hands the store its work and the kernel what goes to each connection. An engine has no task of its
//! own and never waits; the tasks that drive it borrow it for one batch and hold no borrow over an
//! await.
//!
//! What it may not do: decide anything. It moves the machine's outputs to where they belong, and says
//! so when that is not possible ([`Input::PeerGone`]).

use super::peers::Peers;
use super::storage::{Storage, StorageEvent};
use super::verify::{self, Fetches, Verdict};
use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use trefoil_core::checksum::UNKNOWN;
use trefoil_core::limits::{NODE_SCRUBS_MAX, OBJECT_BLOCKS_MAX, OP_BLOCKS_MAX};
use trefoil_core::map::heard::Callers;
use trefoil_core::message::{FromNode, GroupList, PeerMsg, ToNode};
use trefoil_core::node::{ConnId, Input, Node, Output, Scrubbed, Ticket};
use trefoil_core::wire::messages::Message;
use trefoil_core::{BLOCK_SIZE, BlockRange, GroupId, NodeId, ObjectId, PgId, Time};
use trefoil_transport::{Frame, Sender};

/// Groups that differ from a peer's and wait for the next heartbeat. Beyond it they are left to the
/// next comparison, which finds them again.
pub const DIFFERING_MAX: usize = 1024;

/// Answers that wait for the store; at the limit no connection is read from. Each record has one, but a
/// Confirm costs the store nothing, so the store's limits do not count them. Half of what a connection's
/// queue takes, since all of them may go to one connection at once.
pub const HELD_MAX: usize = 16 << 10;

/// Answers to the monitors' Lists that wait to be sent. Beyond it they are dropped: whoever wants them asks
/// again.
pub const LISTED_MAX: usize = 64;

/// A group counts as differing for this long after a comparison has shown it.
const DIFFERING_FOR: Duration = Duration::from_secs(15);

/// Counters of the shell; the machine has its own.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineCounters {
    /// Blocks that came off the wire damaged. Their connection was closed.
    pub damaged_on_wire: u64,
    /// Connections that were closed because a message made no sense.
    pub malformed: u64,
    /// Bytes of blocks that came from peers: repairs and found blocks.
    pub peer_bytes_received: u64,
    /// Bytes of blocks that went to peers.
    pub peer_bytes_sent: u64,
    /// Blocks of which the store does not know any more what they hold.
    pub lost_blocks: u64,
    /// Bytes of data in writes.
    pub write_bytes: u64,
    /// Bytes of data in answers to reads.
    pub read_bytes: u64,
    /// Writes that came from leaders.
    pub writes: u64,
    /// Reads that came from leaders.
    pub reads: u64,
}

/// Below so many blocks of room the store is asked before each input that may need some: what the machine
/// takes off for a record is more than the record adds. As much as a write or a repair may need.
const ROOM_ASKED_BELOW: u64 = OBJECT_BLOCKS_MAX as u64 + OP_BLOCKS_MAX as u64;

/// What became of frames.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fed {
    /// All have been taken.
    All,
    /// The store has to read something before it can say whether there is room for the next one. It is kept
    /// here, the rest has been left: to be given again after the store has got on.
    Waits,
    /// The connection must be closed; frames before the bad one have taken effect, those behind it have not.
    Broken,
}

struct LeaderConn {
    sender: Sender,
    dirty: bool,
    /// See [`Fed::Waits`].
    waits: Option<ToNode<Bytes>>,
}

/// See the module.
pub struct Engine<S> {
    node: Node<Bytes>,
    store: S,
    started: Instant,
    out: Vec<Output<Bytes>>,
    events: Vec<StorageEvent>,
    leaders: FxHashMap<ConnId, LeaderConn>,
    dirty: Vec<ConnId>,
    last_conn: ConnId,
    peers: Peers,
    fetches: Fetches,
    /// Peers that could not be reached while outputs were carried out.
    gone: Vec<NodeId>,
    /// Groups that differ from a peer's, and when that was seen last.
    differing: BTreeMap<GroupId, Instant>,
    /// Answers for the monitors.
    listed: Vec<GroupList>,
    /// Scrubs that have ended, until somebody asks.
    scrubbed: Vec<(PgId, bool, Scrubbed)>,
    failed: Option<String>,
    /// The last ticket that the store was given, and the last that is durable.
    given: Ticket,
    durable: Ticket,
    counters: EngineCounters,
    /// Reads that the store has not answered.
    reads: usize,
    scratch: BytesMut,
}

impl<S: Storage> Engine<S> {
    /// A machine that has recovered its state, and the store that recovered it.
    pub fn new(node: Node<Bytes>, store: S) -> Engine<S> {
        Engine {
            node,
            store,
            started: Instant::now(),
            out: Vec::new(),
            events: Vec::new(),
            leaders: FxHashMap::default(),
            dirty: Vec::new(),
            last_conn: 0,
            peers: Peers::default(),
            fetches: Fetches::default(),
            gone: Vec::new(),
            differing: BTreeMap::new(),
            listed: Vec::new(),
            scrubbed: Vec::new(),
            failed: None,
            given: 0,
            durable: 0,
            counters: EngineCounters::default(),
            reads: 0,
            scratch: BytesMut::new(),
        }
    }

    fn now(&self) -> Time {
        // 2^64 µs are 584,000 years.
        Time(self.started.elapsed().as_micros() as u64)
    }

    /// The machine.
    pub fn node(&self) -> &Node<Bytes> {
        &self.node
    }
    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }
    /// The store, for its end.
    pub fn into_store(self) -> S {
        self.store
    }
    /// The connections to other nodes.
    pub fn peers(&mut self) -> &mut Peers {
        &mut self.peers
    }
    /// Connections to other nodes that it wanted.
    pub fn connects(&self) -> u64 {
        self.peers.tried()
    }
    /// Counters of the shell.
    pub fn counters(&self) -> EngineCounters {
        self.counters
    }
    /// The last record that the store was given, and the last that is durable.
    pub fn tickets(&self) -> (Ticket, Ticket) {
        (self.given, self.durable)
    }
    /// Reads and records that the store has been given and has not finished.
    pub fn under_way(&self) -> usize {
        self.reads + self.given.saturating_sub(self.durable) as usize
    }
    /// False while more should not be read from connections.
    pub fn can_accept(&self) -> bool {
        self.store.can_accept() && self.node.held() < HELD_MAX
    }
    /// Why the store has failed, if it has. Nothing is answered any more.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }
    /// The groups that the monitors are to have healed, at most `max`.
    pub fn differing(&mut self, max: usize) -> Vec<GroupId> {
        self.differing.retain(|_, seen| seen.elapsed() < DIFFERING_FOR);
        self.differing.keys().take(max).copied().collect()
    }
    /// See [`Node::callers`].
    pub fn callers(&mut self, fresh: u64) -> Callers {
        let now = self.now();
        self.node.callers(now, fresh)
    }
    /// True if there are answers for the monitors.
    pub fn has_listed(&self) -> bool {
        !self.listed.is_empty()
    }
    /// Answers to Lists: what they say is durable.
    pub fn take_listed(&mut self) -> Vec<GroupList> {
        std::mem::take(&mut self.listed)
    }

    /// Scrubs that have ended since this was asked last.
    pub fn take_scrubbed(&mut self) -> Vec<(PgId, bool, Scrubbed)> {
        std::mem::take(&mut self.scrubbed)
    }
    /// See [`Node::set_scrub_rate`].
    pub fn set_scrub_rate(&mut self, bytes_per_tick: u64) {
        self.node.set_scrub_rate(bytes_per_tick);
    }
    /// Closes the connections of all front ends: they open their groups again, and hear anew what this
    /// node has. What has been read of them already and waits counts no more: a Settle that rests on what this node
    /// said before would give the group the votes back that it has just lost.
    pub fn close_leaders(&mut self, why: &'static str) {
        let conns: Vec<ConnId> = self.leaders.keys().copied().collect();
        for conn in conns {
            if let Some(leader) = self.leaders.get(&conn) {
                leader.sender.close(why);
            }
            self.feed(Input::LeaderGone { conn });
        }
    }

    /// Before the first input of a batch.
    pub fn begin(&mut self) {
        self.node.set_room(self.store.room_blocks(), self.store.nearly_full());
    }

    /// Where room is short, the machine is told exactly how much there is: behind all that it has given out.
    fn ask_room(&mut self) {
        if self.node.room() < ROOM_ASKED_BELOW && self.failed.is_none() {
            self.carry_out();
            self.begin();
            // What even nothing adds too much to takes no data at all.
            let nothing = BlockRange::new(0, 0);
            if self.node.room() == 0 && self.store.growth(ObjectId::default(), nothing) == Some(u32::MAX) {
                self.node.set_growth(u32::MAX);
            }
        }
    }

    /// Tells the machine what it has to know of the store for this message. False: not known yet.
    fn ask_growth(&mut self, msg: &ToNode<Bytes>) -> bool {
        if self.node.room() >= ROOM_ASKED_BELOW || self.failed.is_some() {
            return true;
        }
        self.ask_room();
        let Some((object, blocks)) = self.node.asks_growth(msg) else { return true };
        let growth = self.store.growth(object, blocks);
        growth.into_iter().for_each(|blocks| self.node.set_growth(blocks));
        growth.is_some()
    }

    /// One input of the batch.
    pub fn feed(&mut self, input: Input<Bytes>) {
        if self.failed.is_none() {
            let now = self.now();
            self.node.handle(now, input, &mut self.out);
        }
    }

    /// After the last input of a batch.
    pub fn finish(&mut self) {
        loop {
            self.carry_out();
            self.store.submit();
            // What the store has at hand (blocks in its cache) is answered in the same batch.
            self.store_events();
            while let Some(node) = self.gone.pop() {
                self.peer_gone(node);
            }
            if self.out.is_empty() {
                break;
            }
        }
        // Taking what has ended makes room for more without telling anybody: a page that was read lets the
        // blocks of a read be fetched, a batch of pages lets the next batch be written. Nobody rings for
        // that; left to the next batch of inputs, it would wait for the clock's tick.
        self.store.submit();
        for conn in self.dirty.drain(..) {
            if let Some(leader) = self.leaders.get_mut(&conn) {
                leader.dirty = false;
                leader.sender.flush();
            }
        }
        self.peers.flush();
    }

    fn store_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.store.poll(&mut events);
        for event in events.drain(..) {
            match event {
                StorageEvent::Durable { ticket } => {
                    self.durable = ticket;
                    self.feed(Input::Durable { ticket });
                }
                StorageEvent::Read { token, found } => {
                    self.reads = self.reads.saturating_sub(1);
                    self.feed(Input::Read { token, found });
                }
                StorageEvent::BadBlock { object, block, checksum } => {
                    // At each read until it is healed; the store has said so aloud, once.
                    tracing::debug!(%object, block, "a block's bytes are not good; looking for them at the peers");
                    self.feed(Input::BadBlock { object, block, checksum });
                }
                StorageEvent::LostTable { object, blocks } => {
                    self.counters.lost_blocks += u64::from(blocks.count);
                    tracing::error!(%object, ?blocks, "a page of the object's table is damaged: these blocks are bad here until the object is repaired");
                    self.feed(Input::BadBlock { object, block: blocks.first, checksum: UNKNOWN });
                }
                StorageEvent::Failed { error } => self.fail(error),
            }
        }
        self.events = events;
    }

    /// The store has failed: leaders must not wait for answers that will not come.
    fn fail(&mut self, error: String) {
        if self.failed.is_some() {
            return;
        }
        tracing::error!(%error, "the store has failed; this node stops answering");
        self.failed = Some(error);
        self.out.clear();
        for (_, leader) in self.leaders.drain() {
            leader.sender.close("the store has failed");
        }
        self.peers.close_all("the store has failed");
    }

    fn carry_out(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        for output in out.drain(..) {
            if self.failed.is_some() {
                break;
            }
            match output {
                Output::Persist { ticket, record } => {
                    self.given = ticket;
                    self.store.append(ticket, record);
                }
                Output::Read { token, object, blocks, mode } => {
                    self.reads += 1;
                    self.store.read(token, object, blocks, mode);
                }
                Output::ToLeader { conn, msg } => self.send_leader(conn, &msg),
                Output::ToPeer { node, msg } => self.send_peer(node, msg),
                Output::CloseLeader { conn, why } => self.close_leader(conn, why),
                Output::Differs { group } => {
                    if self.differing.len() < DIFFERING_MAX || self.differing.contains_key(&group) {
                        self.differing.insert(group, Instant::now());
                    }
                }
                Output::Listed { list, .. } => {
                    if self.listed.len() < LISTED_MAX {
                        self.listed.push(list);
                    }
                }
                Output::Scrubbed { pg, deep, found } => {
                    if self.scrubbed.len() < NODE_SCRUBS_MAX {
                        self.scrubbed.push((pg, deep, found));
                    }
                }
            }
        }
        // Carrying out puts nothing into the queue; its memory is used again.
        self.out = out;
    }

    fn send_leader(&mut self, conn: ConnId, msg: &FromNode<Bytes>) {
        // A connection that is gone has its LeaderGone on the way.
        let Some(leader) = self.leaders.get_mut(&conn) else { return };
        if let FromNode::Data { data, .. } = msg {
            self.counters.read_bytes += data.len() as u64;
        }
        let sent = leader.sender.push(msg.kind(), |meta| msg.encode_meta(meta), msg.payload());
        match sent {
            Ok(()) if !leader.dirty => {
                leader.dirty = true;
                self.dirty.push(conn);
            }
            Ok(()) => {}
            // The connection is closed by now; its reader ends and says LeaderGone.
            Err(error) => tracing::debug!(conn, %error, "an answer to a front end was dropped"),
        }
    }

    fn close_leader(&mut self, conn: ConnId, why: &'static str) {
        if let Some(leader) = self.leaders.get(&conn) {
            let peer = leader.sender.peer();
            tracing::warn!(%peer, conn, why, "closing a front end's connection");
            leader.sender.close(why);
        }
    }

    fn send_peer(&mut self, node: NodeId, msg: PeerMsg<Bytes>) {
        self.fetches.sent(node, &msg);
        let bytes = msg.payload().map_or(0, |p| p.len() as u64);
        self.scratch.clear();
        msg.encode_meta(&mut self.scratch);
        if self.peers.send(node, msg.kind(), &self.scratch, msg.payload()) {
            self.counters.peer_bytes_sent += bytes;
        } else if !self.gone.contains(&node) {
            self.gone.push(node);
        }
    }

    /// The connection to a peer is gone, or there is none.
    pub fn peer_gone(&mut self, node: NodeId) {
        self.fetches.peer_gone(node);
        self.feed(Input::PeerGone { node });
    }

    /// A front end has connected.
    pub fn leader_came(&mut self, sender: Sender) -> ConnId {
        self.last_conn += 1;
        self.leaders.insert(self.last_conn, LeaderConn { sender, dirty: false, waits: None });
        self.last_conn
    }

    /// A front end's connection is gone.
    pub fn leader_left(&mut self, conn: ConnId) {
        self.leaders.remove(&conn);
        self.feed(Input::LeaderGone { conn });
    }

    /// Frames of a front end, in their order.
    pub fn leader_frames(&mut self, conn: ConnId, frames: &mut Vec<Frame>) -> Fed {
        if let Some(msg) = self.leaders.get_mut(&conn).and_then(|leader| leader.waits.take())
            && !self.leader_message(conn, msg)
        {
            return Fed::Waits;
        }
        let mut taken = 0;
        let mut fed = Fed::All;
        for frame in frames.iter_mut() {
            taken += 1;
            let payload = std::mem::take(&mut frame.payload);
            let msg = match ToNode::decode(frame.kind, &frame.meta, payload) {
                Ok(msg) => msg,
                Err(error) => {
                    self.counters.malformed += 1;
                    tracing::warn!(conn, %error, "a front end's message makes no sense: closing its connection");
                    fed = Fed::Broken;
                    break;
                }
            };
            if let Err(damaged) = verify::leader_message(&msg) {
                self.counters.damaged_on_wire += 1;
                tracing::warn!(conn, %damaged, "closing the front end's connection; check the network path");
                fed = Fed::Broken;
                break;
            }
            match &msg {
                ToNode::Write { op, .. } => {
                    self.counters.writes += 1;
                    self.counters.write_bytes += u64::from(op.data_blocks()) * BLOCK_SIZE as u64;
                }
                ToNode::Read { .. } => self.counters.reads += 1,
                _ => {}
            }
            if !self.leader_message(conn, msg) {
                fed = Fed::Waits;
                break;
            }
        }
        frames.drain(..taken);
        fed
    }

    /// False: it has to wait, and is kept with its connection.
    fn leader_message(&mut self, conn: ConnId, msg: ToNode<Bytes>) -> bool {
        if self.ask_growth(&msg) {
            self.feed(Input::Leader { conn, msg });
            return true;
        }
        // A connection that is gone has nothing to wait for.
        let Some(leader) = self.leaders.get_mut(&conn) else { return true };
        leader.waits = Some(msg);
        false
    }

    /// Frames of another node. False where the connection must be closed.
    #[must_use]
    pub fn peer_frames(&mut self, node: NodeId, frames: &mut Vec<Frame>) -> bool {
        for frame in frames.drain(..) {
            let bytes = frame.payload.len() as u64;
            let msg = match PeerMsg::decode(frame.kind, &frame.meta, frame.payload) {
                Ok(msg) => msg,
                Err(error) => {
                    self.counters.malformed += 1;
                    tracing::warn!(%node, %error, "a node's message makes no sense: closing its connection");
                    return false;
                }
            };
            match self.fetches.came(node, &msg) {
                Verdict::Good => {
                    self.counters.peer_bytes_received += bytes;
                    self.ask_room(); // it may complete a repair
                    self.feed(Input::Peer { node, msg });
                }
                Verdict::Stale => {}
                Verdict::Malformed => {
                    self.counters.malformed += 1;
                    tracing::warn!(%node, "a node's answer has other blocks than were asked for: closing its connection");
                    return false;
                }
                Verdict::Damaged(damaged) => {
                    self.counters.damaged_on_wire += 1;
                    tracing::warn!(%node, %damaged, "closing the node's connection; check the network path");
                    return false;
                }
            }
        }
        true
    }
}
