//! Sessions between NBD clients and nodes: leaders, block layers and links, in batches, without tasks.
//!
//! A [`Session`] is one attachment of one volume: it begins without a generation, leads under exactly
//! one, and ends. After its end every request is answered with [`DiskError::Gone`], which closes the
//! client's socket; a client that connects again gets a new session. So no state of a leader ever
//! outlives its generation.
//!
//! All work comes in batches: some inputs, then [`Core::finish`], which lets operations and answers run
//! until nothing is left to do, and encodes each message once for all the nodes it goes to. Each node is
//! written to once for all batches of a turn of the runtime. What has to wait (monitors, time) is asked for by [`Notice`]s, which
//! [`super::front`] acts on.

use super::clock::LeaseClock;
use super::links::Links;
use crate::blocks::BlockLayer;
use crate::disk::{ConnId, DiskError, DiskRequest};
use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use trefoil_core::client::ClientOp;
use trefoil_core::leader::report::{NodeReport, report};
use trefoil_core::leader::{Input, Leader, LeaderCounters, NodeView, Options, Output, VolumeSpec};
use trefoil_core::map::Ack;
use trefoil_core::message::FromNode;
use trefoil_core::placement::{PgConfig, PgTable};
use trefoil_core::wire::messages::Message;
use trefoil_core::{Generation, GroupId, NodeId, PoolId, Time, VolumeId};
use trefoil_transport::{Frame, Sender};

/// Names a session; never used twice in a process.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub u64);

/// Something that has to be done outside of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The session has a request, and no generation yet: attach the volume.
    Wanted(SessionKey),
    /// The session leads; its fence is durable on a quorum of every placement group.
    Attached(SessionKey),
    /// The session has ended; if it led, its generation is to be released or is over.
    Ended(SessionKey, (VolumeId, End)),
    /// A healer has nothing left to do.
    AllWhole(SessionKey),
    /// A node has lost what it had reported as durable (5.9).
    LostData {
        /// Which node.
        node: NodeId,
        /// Whose leader has found it.
        volume: VolumeId,
        /// That leader's.
        generation: Generation,
    },
    /// A node knows a newer map.
    MapStale,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All operations have ended: the generation is to be given back.
    Released {
        /// It.
        generation: Generation,
        /// Every copy is whole.
        clean: bool,
    },
    /// There is a newer leader.
    Deposed {
        /// Its generation, as far as it is known.
        by: Generation,
    },
    /// It never led.
    Abandoned,
}

enum Phase {
    /// No generation. `wanted`: a request waits for one.
    Detached { wanted: bool },
    /// Has one.
    Leading {
        leader: Box<Leader<Bytes>>,
        generation: Generation,
        /// Takes nothing new any more.
        closing: bool,
    },
}

/// One attachment of a volume.
struct Session {
    volume: VolumeId,
    pool: PoolId,
    layer: Option<BlockLayer>,
    phase: Phase,
    /// Nodes that the leader is told about.
    nodes: BTreeSet<NodeId>,
    /// Connections of clients.
    clients: usize,
    /// How long its lease lasts after a renewal was sent.
    lease: Duration,
    /// Until when, as far as the leader was told.
    lease_until: Time,
    out: Vec<Output<Bytes>>,
    /// Operations at the leader after the last batch.
    live: usize,
    /// Is in [`Core::touched`].
    touched: bool,
}

/// What metrics and the status page want of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// The volume.
    pub volume: VolumeId,
    /// The generation; none: not attached.
    pub generation: Option<Generation>,
    /// Operations at the leader.
    pub ops: usize,
    /// Copies of objects that are known not to be whole.
    pub copies_behind: usize,
    /// The leader's counters.
    pub leader: LeaderCounters,
    /// How quick the leader finds each node, and what it owes.
    pub nodes: Vec<NodeView>,
    /// The block layer's counters.
    pub blocks: crate::blocks::Counters,
    /// Requests of clients that are not answered.
    pub requests: usize,
    /// What clients have asked, and how long it took.
    pub meter: crate::blocks::Meter,
    /// Connections of clients.
    pub clients: usize,
    /// How long the lease still lasts, in microseconds. 0: there is none; reads go on, confirmed by a majority.
    pub lease_left: u64,
}

/// See the module.
pub struct Core {
    clock: LeaseClock,
    sessions: FxHashMap<SessionKey, Session>,
    by_volume: FxHashMap<VolumeId, SessionKey>,
    last_key: u64,
    links: Links,
    touched: Vec<SessionKey>,
    notices: Vec<Notice>,
    /// Operations at all leaders.
    live: usize,
    scratch: BytesMut,
    ops: Vec<ClientOp<Bytes>>,
}

impl Default for Core {
    fn default() -> Core {
        Core {
            clock: LeaseClock::default(),
            sessions: FxHashMap::default(),
            by_volume: FxHashMap::default(),
            last_key: 0,
            links: Links::default(),
            touched: Vec::new(),
            notices: Vec::new(),
            live: 0,
            scratch: BytesMut::new(),
            ops: Vec::new(),
        }
    }
}

impl Core {
    /// Microseconds, by a clock that goes on while the host is suspended.
    pub fn now(&self) -> Time {
        self.clock.now()
    }
    /// The same for a moment that has passed.
    pub fn time_of(&self, at: Instant) -> Time {
        self.clock.time_of(at)
    }
    /// The connections to nodes.
    pub fn links(&mut self) -> &mut Links {
        &mut self.links
    }
    /// Takes what has to be done outside.
    pub fn take_notices(&mut self, into: &mut Vec<Notice>) {
        into.append(&mut self.notices);
    }
    /// The volume's session that has not ended.
    pub fn session_of(&self, volume: VolumeId) -> Option<SessionKey> {
        self.by_volume.get(&volume).copied()
    }
    /// Sessions that have a generation.
    pub fn leading(&self) -> Vec<(SessionKey, VolumeId, Generation)> {
        let mut all: Vec<_> = self
            .sessions
            .iter()
            .filter_map(|(key, session)| match &session.phase {
                Phase::Leading { generation, .. } => Some((*key, session.volume, *generation)),
                _ => None,
            })
            .collect();
        all.sort_unstable();
        all
    }
    /// What the leaders find of the nodes, for the monitors.
    pub fn report(&self) -> Vec<NodeReport> {
        let now = self.clock.now();
        let leaders = self.sessions.values().filter_map(|session| match &session.phase {
            Phase::Leading { leader, .. } => Some(leader),
            _ => None,
        });
        report(leaders.flat_map(|leader| leader.nodes(now)))
    }
    /// Every session that has not ended.
    pub fn status(&self) -> Vec<SessionStatus> {
        let mut all: Vec<SessionStatus> = self.sessions.values().map(|s| s.status(self.now())).collect();
        all.sort_unstable_by_key(|status| status.volume);
        all
    }
    /// One session.
    pub fn status_of(&self, key: SessionKey) -> Option<SessionStatus> {
        self.sessions.get(&key).map(|session| session.status(self.now()))
    }
    /// True while any leader has operations or unfinished business: ticks are wanted soon.
    pub fn is_busy(&self) -> bool {
        self.sessions.values().any(|session| match &session.phase {
            Phase::Leading { leader, .. } => leader.live_ops() > 0,
            _ => false,
        })
    }

    /// Operations at all leaders, after the last batch.
    pub fn under_way(&self) -> usize {
        self.live
    }

    /// How long it is until the first leader wants a tick; at most `most`.
    pub fn until_tick(&self, most: Duration) -> Duration {
        let now = self.now();
        let next = self.sessions.values().filter_map(|session| match &session.phase {
            Phase::Leading { leader, .. } => leader.next_tick(),
            Phase::Detached { .. } => None,
        });
        next.min().map_or(most, |at| Duration::from_micros(at.0.saturating_sub(now.0)).min(most))
    }

    /// A new session without a generation. `layer`: none for a healer.
    pub fn open(&mut self, volume: VolumeId, pool: PoolId, layer: Option<BlockLayer>) -> SessionKey {
        self.last_key += 1;
        let key = SessionKey(self.last_key);
        let phase = Phase::Detached { wanted: false };
        let session = Session {
            volume,
            pool,
            layer,
            phase,
            nodes: BTreeSet::new(),
            clients: 0,
            lease: Duration::ZERO,
            lease_until: Time(0),
            out: Vec::new(),
            live: 0,
            touched: false,
        };
        self.sessions.insert(key, session);
        self.by_volume.insert(volume, key);
        key
    }

    /// A client has opened the session.
    pub fn client_came(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.clients += 1;
        }
    }

    /// A client has let go of the session.
    pub fn client_left(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.clients = session.clients.saturating_sub(1);
        }
    }

    /// A client's connection has ended: its requests that are not at the leader do not start any more.
    pub fn client_gone(&mut self, key: SessionKey, conn: ConnId) {
        if let Some(Session { layer: Some(layer), .. }) = self.sessions.get_mut(&key) {
            layer.client_gone(conn);
        }
    }

    /// Sessions that no client has open.
    pub fn without_clients(&self) -> BTreeSet<SessionKey> {
        self.sessions.iter().filter(|(_, s)| s.clients == 0).map(|(key, _)| *key).collect()
    }

    /// All sessions.
    pub fn keys(&self) -> Vec<SessionKey> {
        self.sessions.keys().copied().collect()
    }

    /// The session's volume.
    pub fn volume(&self, key: SessionKey) -> Option<VolumeId> {
        self.sessions.get(&key).map(|session| session.volume)
    }

    /// True for a session that takes nothing new any more.
    pub fn is_closing(&self, key: SessionKey) -> bool {
        matches!(self.sessions.get(&key), Some(Session { phase: Phase::Leading { closing: true, .. }, .. }))
    }

    /// True while the session has no generation and has not ended.
    pub fn is_detached(&self, key: SessionKey) -> bool {
        matches!(self.sessions.get(&key), Some(Session { phase: Phase::Detached { .. }, .. }))
    }

    /// Requests of clients.
    pub fn submit(&mut self, key: SessionKey, batch: &mut Vec<DiskRequest>) {
        match self.sessions.get_mut(&key) {
            Some(Session { layer: Some(layer), .. }) => {
                layer.set_now(self.clock.about_now());
                layer.submit(batch);
                self.want(key);
                self.touch(key);
            }
            _ => {
                for request in batch.drain(..) {
                    request.reply_to.push(request.token, Err(DiskError::Gone));
                }
            }
        }
    }

    /// The session is to get a generation, if it has none.
    pub fn want(&mut self, key: SessionKey) {
        if let Some(Session { phase: Phase::Detached { wanted }, .. }) = self.sessions.get_mut(&key)
            && !std::mem::replace(wanted, true)
        {
            self.notices.push(Notice::Wanted(key));
        }
    }

    fn touch(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key)
            && !std::mem::replace(&mut session.touched, true)
        {
            self.touched.push(key);
        }
    }

    fn input(&mut self, key: SessionKey, input: Input<Bytes>) {
        self.input_at(self.now(), key, input);
    }

    fn input_at(&mut self, now: Time, key: SessionKey, input: Input<Bytes>) {
        if let Some(session) = self.sessions.get_mut(&key)
            && let Phase::Leading { leader, .. } = &mut session.phase
        {
            leader.handle(now, input, &mut session.out);
            if !std::mem::replace(&mut session.touched, true) {
                self.touched.push(key);
            }
        }
    }

    /// The session leads from now on, under a lease that counts from `sent`. False if it has ended
    /// meanwhile: the generation is to be released.
    pub fn lead(
        &mut self,
        key: SessionKey,
        spec: VolumeSpec,
        options: Options,
        sent: Instant,
        lease: Duration,
    ) -> bool {
        if !self.is_detached(key) {
            return false;
        }
        let nodes = spec.pgs.nodes();
        let generation = spec.generation;
        let leader = Box::new(Leader::new(self.now(), spec, options));
        if let Some(session) = self.sessions.get_mut(&key) {
            session.phase = Phase::Leading { leader, generation, closing: false };
            session.nodes = nodes.clone();
            session.lease = lease;
        }
        self.renewed(key, sent);
        for node in nodes {
            if self.links.want(node) {
                self.input(key, Input::NodeUp { node });
            }
        }
        true
    }

    /// The lease of a session's generation was renewed by a request that was sent at that moment.
    pub fn renewed(&mut self, key: SessionKey, sent: Instant) {
        let at = self.time_of(sent);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let until = at.after(session.lease.as_micros() as u64);
        session.lease_until = session.lease_until.max(until);
        self.input(key, Input::Lease { until });
    }

    /// Finishes what is under way and ends the session. A session that does not lead ends at once.
    pub fn release(&mut self, key: SessionKey) {
        if self.is_detached(key) {
            self.end(key, End::Abandoned);
            return;
        }
        if let Some(Session { phase: Phase::Leading { closing, .. }, .. }) = self.sessions.get_mut(&key) {
            *closing = true;
        }
        self.input(key, Input::Release);
    }

    /// Ends a session at once, without a word to anybody: its generation is not used any more.
    pub fn abandon(&mut self, key: SessionKey) {
        self.end(key, End::Abandoned);
    }

    /// The monitors say that the generation is over.
    pub fn depose(&mut self, key: SessionKey, by: Generation) {
        self.end(key, End::Deposed { by });
    }

    /// A placement group of a pool has a new configuration.
    pub fn configure(&mut self, pool: PoolId, pg: u32, config: &PgConfig) {
        let keys: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, s)| s.pool == pool).map(|(key, _)| *key).collect();
        for key in keys {
            self.input(key, Input::Config { pg, config: config.clone() });
            for node in config.everyone() {
                let Some(session) = self.sessions.get_mut(&key) else { continue };
                if matches!(session.phase, Phase::Leading { .. })
                    && session.nodes.insert(node)
                    && self.links.want(node)
                {
                    self.input(key, Input::NodeUp { node });
                }
            }
        }
    }

    /// A pool has more placement groups: all of them, as one map has them.
    pub fn regroup(&mut self, pool: PoolId, pgs: &PgTable) {
        let keys: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, s)| s.pool == pool).map(|(key, _)| *key).collect();
        let nodes = pgs.nodes();
        for key in keys {
            self.input(key, Input::Pgs { pgs: pgs.clone() });
            for node in &nodes {
                let Some(session) = self.sessions.get_mut(&key) else { continue };
                if matches!(session.phase, Phase::Leading { .. })
                    && session.nodes.insert(*node)
                    && self.links.want(*node)
                {
                    self.input(key, Input::NodeUp { node: *node });
                }
            }
        }
    }

    /// A pool's writes are answered so from now on.
    pub fn set_ack(&mut self, pool: PoolId, ack: Ack) {
        let keys: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, s)| s.pool == pool).map(|(key, _)| *key).collect();
        for key in keys {
            self.input(key, Input::Ack { ack });
        }
    }

    /// The map has changed: a node that it had dropped may be back.
    pub fn want_nodes(&mut self) {
        for node in self.sessions.values().flat_map(|session| &session.nodes) {
            self.links.want(*node);
        }
    }

    /// The monitors want a group looked at.
    pub fn differs(&mut self, group: GroupId) {
        if let Some(key) = self.session_of(group.volume) {
            self.input(key, Input::Differs { group });
        }
    }

    /// Time has passed: ticks for those leaders that want one.
    pub fn tick(&mut self) {
        let now = self.now();
        let due: Vec<SessionKey> = self
            .sessions
            .iter()
            .filter(|(_, session)| match &session.phase {
                Phase::Leading { leader, .. } => leader.next_tick().is_some_and(|at| at <= now),
                _ => false,
            })
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.input(key, Input::Tick);
        }
    }

    /// A connection to a node has been made.
    pub fn link_up(&mut self, node: NodeId, sender: Sender) {
        self.links.up(node, sender);
        for key in self.led_on(node) {
            self.input(key, Input::NodeUp { node });
        }
    }

    /// A node's connection has ended. True if a leader had given it up.
    pub fn link_down(&mut self, node: NodeId) -> bool {
        let reset = self.links.down(node);
        for key in self.led_on(node) {
            self.input(key, Input::NodeDown { node });
        }
        reset
    }

    fn led_on(&self, node: NodeId) -> Vec<SessionKey> {
        self.sessions.iter().filter(|(_, s)| s.nodes.contains(&node)).map(|(key, _)| *key).collect()
    }

    /// Frames of a node. False where the connection must be closed.
    #[must_use]
    pub fn node_frames(&mut self, node: NodeId, frames: &mut Vec<Frame>) -> bool {
        // One look for all of them: after they have come, as a lease wants it (6.2).
        let now = self.now();
        for frame in frames.drain(..) {
            let msg = match FromNode::decode(frame.kind, &frame.meta, frame.payload) {
                Ok(msg) => msg,
                Err(error) => {
                    tracing::warn!(%node, %error, "a node's message makes no sense: closing its connection");
                    return false;
                }
            };
            if let Some(key) = self.session_of(volume_of(&msg)) {
                self.input_at(now, key, Input::Node { node, msg });
            }
        }
        true
    }

    /// After the last input of a batch. What it has queued for nodes is flushed by the caller, after other
    /// batches of the same turn, perhaps.
    pub fn finish(&mut self) {
        while let Some(key) = self.touched.pop() {
            self.run(key);
        }
    }

    /// Lets one session run until it has nothing left to do.
    fn run(&mut self, key: SessionKey) {
        let now = self.now();
        let mut ops = std::mem::take(&mut self.ops);
        let mut end = None;
        let Core { sessions, links, scratch, notices, live, .. } = self;
        if let Some(session) = sessions.get_mut(&key) {
            session.touched = false;
            let Session {
                phase: Phase::Leading { leader, generation, .. },
                volume,
                layer,
                out,
                live: before,
                ..
            } = session
            else {
                self.ops = ops;
                return;
            };
            if let Some(layer) = layer.as_mut() {
                layer.set_now(now);
            }
            loop {
                if let Some(layer) = layer.as_mut() {
                    layer.take_ops(&mut ops);
                }
                for op in ops.drain(..) {
                    leader.handle(now, Input::Op(op), out);
                }
                if out.is_empty() {
                    break;
                }
                for output in out.drain(..) {
                    match output {
                        Output::Send { to, msg } => {
                            scratch.clear();
                            msg.encode_meta(scratch);
                            let (kind, payload) = (msg.kind(), msg.payload());
                            for node in to.as_slice() {
                                links.send(*node, kind, scratch, payload.clone());
                            }
                        }
                        Output::Done(done) => {
                            if let Some(layer) = layer.as_mut() {
                                layer.complete(done);
                            }
                        }
                        Output::Attached => notices.push(Notice::Attached(key)),
                        Output::Deposed { by } => end = Some(End::Deposed { by }),
                        Output::Released { clean } => {
                            end = Some(End::Released { generation: *generation, clean });
                        }
                        Output::AllWhole => notices.push(Notice::AllWhole(key)),
                        Output::Reset { node, why } => {
                            tracing::warn!(%node, why, "giving up the connection to a node");
                            links.reset(node, why);
                        }
                        Output::LostData { node } => {
                            let (volume, generation) = (*volume, *generation);
                            notices.push(Notice::LostData { node, volume, generation });
                        }
                        Output::MapStale => notices.push(Notice::MapStale),
                        // Ends like a detach; the client connects again and gets another generation.
                        Output::NeedGeneration => {
                            end = Some(End::Released { generation: *generation, clean: false });
                        }
                    }
                }
                if end.is_some() {
                    break;
                }
            }
            let now = leader.live_ops();
            *live = *live - std::mem::replace(before, now) + now;
        }
        ops.clear();
        self.ops = ops;
        if let Some(end) = end {
            self.end(key, end);
        }
    }

    /// The session is over and forgotten. Its clients are closed by the answers to their requests.
    fn end(&mut self, key: SessionKey, end: End) {
        let Some(mut session) = self.sessions.remove(&key) else { return };
        self.live -= session.live;
        if let Some(layer) = &mut session.layer {
            layer.fail_all(DiskError::Gone);
        }
        if self.by_volume.get(&session.volume) == Some(&key) {
            self.by_volume.remove(&session.volume);
        }
        self.notices.push(Notice::Ended(key, (session.volume, end)));
    }
}

impl Session {
    fn status(&self, now: Time) -> SessionStatus {
        let mut status =
            SessionStatus { volume: self.volume, clients: self.clients, ..SessionStatus::default() };
        if let Phase::Leading { leader, generation, .. } = &self.phase {
            status.generation = Some(*generation);
            status.ops = leader.live_ops();
            status.copies_behind = leader.copies_behind();
            status.leader = leader.counters();
            status.nodes = leader.nodes(now).collect();
            status.lease_left = self.lease_until.since(now);
        }
        if let Some(layer) = &self.layer {
            status.blocks = layer.counters();
            status.requests = layer.requests_pending();
            status.meter = *layer.meter();
        }
        status
    }
}

fn volume_of(msg: &FromNode<Bytes>) -> VolumeId {
    match msg {
        FromNode::Fenced { volume, .. } | FromNode::FenceRefused { volume, .. } => *volume,
        FromNode::Opened { group, .. }
        | FromNode::OpenRefused { group, .. }
        | FromNode::Settled { group, .. }
        | FromNode::Data { group, .. }
        | FromNode::Bad { group, .. }
        | FromNode::ReadRefused { group, .. }
        | FromNode::Confirmed { group, .. }
        | FromNode::Differs { group } => group.volume,
        FromNode::Have { object, .. }
        | FromNode::Gap { object, .. }
        | FromNode::Doubts { object, .. }
        | FromNode::NoSpace { object, .. } => object.group.volume,
    }
}
