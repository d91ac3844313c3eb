//! The leader's machine: rules 5.1 to 6.5 of `docs/protocol.md`, and nothing else.
//!
//! ```text
//!  client operations ─┐                        ┌─► Send(open, settle, write, read ..)  to nodes
//!  answers of nodes  ─┼─► Leader::handle(..) ──┼─► Done(result)                        to clients
//!  lease, map, time  ─┘                        └─► Attached, Deposed, Released, ..     to the daemon
//! ```
//!
//! One machine leads one volume under one generation. A volume's objects fall into groups, one for each
//! placement group; each group is opened, decided ([`choose`]) and settled on its own ([`group`]), holds its
//! objects' state ([`object`]), numbers and counts writes ([`write`]), serves reads ([`read`]), orders repairs
//! ([`repair`]) and deals with nodes that are full ([`full`]).
//!
//! A node that is slow, or stopped, must not slow anybody: how quick each node is ([`latency`], [`peer`])
//! says where reads go ([`steer`]), when a second node is asked ([`hedge`], [`due`]), and who is cut loose
//! and for how long ([`laggard`]). A node that has lost what it had reported is not counted until it says so itself
//! ([`lost`]). A leader that cannot renew its lease makes itself heard at the nodes ([`call`]).
//!
//! A write is acknowledged when a quorum of whole copies has *reported* it durable; in pools that want it so, when
//! every copy in line has ([`in_sync`]). The machine decides nothing about durability by itself: it counts what
//! nodes have said.
//!
//! Weaknesses, known: the state of every object that any node has ever named is held in memory (about
//! 300 bytes each, 75 MiB per TiB of written volume).

mod abandon;
mod api;
mod call;
pub mod choose;
mod counters;
mod disputed;
mod due;
mod full;
mod group;
mod hedge;
mod in_sync;
mod laggard;
mod latency;
mod lost;
mod object;
mod peer;
mod read;
mod repair;
pub mod report;
mod split;
mod steer;
mod write;

pub use api::*;
pub use counters::LeaderCounters;

use crate::client::{ClientOp, OpDone, OpError, OpId, OpKind};
use crate::crush::pg_ancestors;
use crate::ids::*;
use crate::limits::*;
use crate::message::{FromNode, ToNode};
use crate::placement::PgTable;
use due::Due;
use group::{Group, Phase};
use hedge::Budget;
use latency::Latency;
use peer::Peer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How long a detach waits for the copies that are not needed for a majority (µs).
const RELEASE_GRACE: u64 = 1_000_000;
/// Time between ticks while something is under way, and else (µs). Reads that become late are extra.
const TICK_BUSY: u64 = 50_000;
const TICK_IDLE: u64 = 500_000;

/// What all groups of a leader share.
struct Shared {
    spec: VolumeSpec,
    options: Options,
    peers: BTreeMap<NodeId, Peer>,
    lease_until: Time,
    /// Operations taken and not answered.
    live: usize,
    next_id: u64,
    deposed: Option<Generation>,
    /// Deadlines of the operations that are not answered. Empty without an I/O timeout.
    deadlines: BTreeMap<OpId, (Time, ObjectIndex)>,
    /// None of them is before this.
    next_deadline: Time,
    /// Nodes that are to be given up after this input.
    resets: Vec<(NodeId, &'static str)>,
    /// Nodes that are too far behind, and to be given up if they can be done without.
    laggards: Vec<(NodeId, &'static str)>,
    /// Some node was found to have lost data (5.9), at some time.
    any_doubts: bool,
    /// Those that were found so by this input.
    doubted: Vec<NodeId>,
    /// Reads under way, by when they were sent.
    due: Due,
    /// How long reads took, from the first node that was asked to the first that answered.
    read_latency: Latency,
    hedges: Budget,
    /// Counters that are no group's.
    counters: LeaderCounters,
}

impl Shared {
    fn lease_holds(&self, now: Time) -> bool {
        now < self.lease_until
    }

    fn done<P>(
        &mut self,
        id: OpId,
        result: Result<crate::client::OpOutput<P>, OpError>,
        out: &mut Vec<Output<P>>,
    ) {
        self.live = self.live.saturating_sub(1);
        if !self.deadlines.is_empty() {
            self.deadlines.remove(&id);
        }
        out.push(Output::Done(OpDone { id, result }));
    }

    fn peer(&mut self, node: NodeId) -> &mut Peer {
        self.peers.entry(node).or_default()
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.up)
    }

    /// Sends one message to one node and notes that an answer is awaited.
    fn ask<P>(&mut self, now: Time, node: NodeId, msg: ToNode<P>, out: &mut Vec<Output<P>>) {
        self.peer(node).asked.get_or_insert(now);
        out.push(Output::Send { to: NodeList::one(node), msg });
    }

    fn reset(&mut self, node: NodeId, why: &'static str) {
        if !self.resets.iter().any(|(n, _)| *n == node) {
            self.resets.push((node, why));
        }
    }
}

/// What a leader has under way; see [`Leader::under_way`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// Operations taken and not answered.
    pub ops: usize,
    /// Writes sent to nodes and not answered by them.
    pub backlog_ops: usize,
    /// Their bytes.
    pub backlog_bytes: u64,
    /// Reads sent to nodes and not answered by them.
    pub reads: usize,
    /// Repairs ordered of nodes that have not ended.
    pub repairs: usize,
    /// Entries of all queues and tables of operations: a few for each operation, and writes that a node
    /// is late with or whose client was told that they timed out.
    pub held: usize,
}

/// The machine: one volume, one generation.
pub struct Leader<P> {
    shared: Shared,
    /// By PG number; `None` where the volume has no object.
    groups: Vec<Option<Box<Group<P>>>>,
    /// Operations that came before the volume was attached.
    before_attach: VecDeque<ClientOp<P>>,
    attached: bool,
    closing: Option<Time>,
    released: bool,
    all_whole_said: bool,
    /// Where the search for groups to open in the background goes on.
    open_cursor: usize,
    /// Groups that were opened in the background and are not decided yet, by number: at most
    /// [`Options::background_opens`].
    opening: Vec<usize>,
    last_tick: Time,
    /// When it called last, or began.
    called: Time,
    /// Something has happened since the last tick, or a group was not at rest then.
    stirred: bool,
}

impl<P: Clone + Default> Leader<P> {
    /// A leader with a generation of its own, which no other process has or had.
    pub fn new(now: Time, mut spec: VolumeSpec, options: Options) -> Leader<P> {
        let groups = split::groups_from(&spec, 0, &spec.pgs);
        // From here on the groups know their own; an old table must not outlive its map.
        spec.pgs = PgTable::default();
        let attached = options.healer;
        // A daemon's leaders follow each other on one connection to a node. An answer to a read of the last
        // one, which arrives late, must not be taken for one of this one's: ids begin elsewhere for each
        // generation, and no leader lives for 2^40 reads.
        let next_id = spec.generation.0 << 40 | 1;
        let shared = Shared {
            spec,
            options,
            peers: BTreeMap::new(),
            lease_until: Time(0),
            live: 0,
            next_id,
            deposed: None,
            deadlines: BTreeMap::new(),
            next_deadline: Time(u64::MAX),
            resets: Vec::new(),
            laggards: Vec::new(),
            any_doubts: false,
            doubted: Vec::new(),
            due: Due::default(),
            read_latency: Latency::default(),
            hedges: Budget::default(),
            counters: LeaderCounters::default(),
        };
        Leader {
            shared,
            groups,
            before_attach: VecDeque::new(),
            attached,
            closing: None,
            released: false,
            all_whole_said: false,
            open_cursor: 0,
            opening: Vec::new(),
            last_tick: now,
            called: now,
            stirred: false,
        }
    }

    /// Takes one input, in the order in which things happened; adds what is to be done to `out`.
    pub fn handle(&mut self, now: Time, input: Input<P>, out: &mut Vec<Output<P>>) {
        if self.shared.deposed.is_some() || self.released {
            if let Input::Op(op) = input {
                let error = if self.released { OpError::Closing } else { OpError::Deposed };
                out.push(Output::Done(OpDone { id: op.id, result: Err(error) }));
            }
            return;
        }
        self.stirred = true;
        match input {
            Input::NodeUp { node } => self.node_up(now, node, out),
            Input::NodeDown { node } => {
                self.shared.hold_if_behind(now, node);
                self.node_down(now, node, out);
                self.release_held(now, out);
            }
            Input::Node { node, msg } => self.node_message(now, node, msg, out),
            Input::Op(op) => self.accept(now, op, out),
            Input::Lease { until } => {
                self.shared.lease_until = self.shared.lease_until.max(until);
                for group in self.groups.iter_mut().flatten() {
                    group.confirm_acks(&mut self.shared, now, out);
                }
            }
            Input::Config { pg, config } => self.configure(now, pg, config, out),
            Input::Pgs { pgs } => self.regroup(now, &pgs, out),
            Input::Ack { ack } => self.set_ack(now, ack, out),
            Input::Differs { group } => self.differs(now, group, out),
            Input::Release => self.closing = self.closing.or(Some(now)),
            Input::Tick => self.tick(now, out),
        }
        self.cut_laggards(now);
        let mut lost = false;
        while let Some((node, why)) = self.shared.resets.pop() {
            out.push(Output::Reset { node, why });
            self.shared.hold(now, node);
            self.node_down(now, node, out);
            lost = true;
        }
        if lost {
            self.count_no_more(now, out);
            self.release_held(now, out); // one of them may be needed now
        }
        if let Some(by) = self.shared.deposed {
            return self.depose(by, out);
        }
        self.open_more(now, out);
        self.end_if_done(now, out);
    }

    /// When the next [`Input::Tick`] is wanted; `None`: not before another input. O(1), so that a shell may
    /// ask after each batch. It is exact to the microsecond where a read becomes late or an operation times
    /// out: a shell that ticks at
    /// that moment keeps the longest read as short as it can be (see `hedge`); one that ticks later makes
    /// late reads longer by as much. It may be in the past: then the tick is due now.
    pub fn next_tick(&self) -> Option<Time> {
        if self.shared.deposed.is_some() || self.released {
            return None;
        }
        let next = self.regular_tick().min(self.shared.next_deadline);
        let next = self.next_call().map_or(next, |call| call.min(next));
        Some(self.shared.next_late().map_or(next, |late| late.min(next)))
    }

    fn regular_tick(&self) -> Time {
        let busy = self.stirred || self.shared.live > 0 || self.closing.is_some();
        self.last_tick.after(if busy { TICK_BUSY } else { TICK_IDLE })
    }

    /// Operations taken and not answered.
    pub fn live_ops(&self) -> usize {
        self.shared.live
    }

    /// Every group is open and every copy is whole on every node: the volume is fully redundant.
    pub fn all_whole(&self) -> bool {
        self.attached && self.groups.iter().flatten().all(|group| group.all_whole())
    }

    /// As [`Leader::all_whole`], but for what is under way.
    pub fn all_in_line(&self) -> bool {
        self.attached && self.groups.iter().flatten().all(|group| group.all_in_line())
    }

    /// Copies of objects that are known not to be whole.
    pub fn copies_behind(&self) -> usize {
        self.groups.iter().flatten().map(|group| group.behind.len()).sum()
    }

    /// What is under way, over all nodes. All 0 when nothing is: anything else would stop I/O one day.
    pub fn under_way(&self) -> UnderWay {
        let mut sum = UnderWay { ops: self.shared.live, ..UnderWay::default() };
        for peer in self.shared.peers.values() {
            sum.backlog_ops += peer.backlog_ops;
            sum.backlog_bytes += peer.backlog_bytes;
            sum.reads += peer.reads;
            sum.repairs += peer.repairs;
        }
        for group in self.groups.iter().flatten() {
            sum.held +=
                group.waiting.len() + group.reads.len() + group.acks_next.len() + group.owed.ids.len();
            sum.held += group.confirm_next.len() + usize::from(group.confirming.is_some());
            let objects = group.busy.iter().filter_map(|index| group.objects.get(index));
            sum.held += objects.map(|object| object.entries.len() + object.waiting.len()).sum::<usize>();
        }
        sum.held += self.before_attach.len() + self.shared.deadlines.len() + self.shared.due.len();
        sum
    }

    /// What is found of each node, by node.
    pub fn nodes(&self, now: Time) -> impl Iterator<Item = NodeView> {
        // Those that have, or get, a copy of anything.
        let mut behind: BTreeMap<NodeId, usize> = BTreeMap::new();
        for group in self.groups.iter().flatten() {
            group.slots.iter().for_each(|slot| _ = behind.entry(slot.node).or_default());
            for (_, slot) in group.behind.keys() {
                *behind.entry(group.slots[*slot].node).or_default() += 1;
            }
        }
        // What says nothing that counts is away.
        let doubted = self.doubted_nodes();
        let known = |node: &NodeId| behind.get(node).copied();
        let peers: Vec<_> =
            self.shared.peers.iter().filter_map(|(node, peer)| Some((node, peer, known(node)?))).collect();
        peers.into_iter().map(move |(node, peer, behind)| NodeView {
            node: *node,
            up: peer.up && !doubted.contains(node),
            held: peer.connected && !peer.up && !doubted.contains(node),
            slow: peer.slow,
            read_p50: peer.read_latency.p50().unwrap_or(0),
            read_p99: peer.read_latency.p99().unwrap_or(0),
            write_p50: peer.write_latency.p50().unwrap_or(0),
            write_p99: peer.write_latency.p99().unwrap_or(0),
            reads: peer.reads,
            backlog_ops: peer.backlog_ops,
            backlog_bytes: peer.backlog_bytes,
            backlog_age: peer.backlog_age(now),
            slow_for: if peer.slow { now.since(peer.slow_since).max(1) } else { 0 },
            behind,
            cuts: peer.cuts,
        })
    }

    fn accept(&mut self, now: Time, op: ClientOp<P>, out: &mut Vec<Output<P>>) {
        let refuse = |error| Output::Done(OpDone { id: op.id, result: Err(error) });
        if self.closing.is_some() {
            return out.push(refuse(OpError::Closing));
        }
        if self.shared.live >= LEADER_OPS_MAX || !self.in_range(&op) {
            return out.push(refuse(OpError::Refused));
        }
        self.shared.live += 1;
        if let Some(timeout) = self.shared.options.io_timeout {
            let at = now.after(timeout);
            self.shared.deadlines.insert(op.id, (at, op.object));
            self.shared.next_deadline = self.shared.next_deadline.min(at);
        }
        if self.attached {
            self.submit(now, op, out);
        } else {
            self.before_attach.push_back(op);
        }
    }

    fn in_range(&self, op: &ClientOp<P>) -> bool {
        let blocks = op.kind.blocks();
        let data_limit = match &op.kind {
            OpKind::Read { .. } => blocks.count <= OP_BLOCKS_MAX,
            OpKind::Write { checksums, .. } => {
                blocks.count <= OP_BLOCKS_MAX && checksums.len() == blocks.count as usize
            }
            OpKind::Status { .. } | OpKind::Zero { .. } => true,
        };
        let spec = &self.shared.spec;
        data_limit && blocks.count > 0 && blocks.end() <= spec.object_blocks && op.object < spec.objects
    }

    fn submit(&mut self, now: Time, op: ClientOp<P>, out: &mut Vec<Output<P>>) {
        let spec = &self.shared.spec;
        let pg = (spec.pg_of)(spec.id, op.object, self.groups.len() as u32) as usize;
        match self.groups.get_mut(pg).and_then(Option::as_mut) {
            Some(group) => group.submit(&mut self.shared, now, op, out),
            // Not possible: `new` made a group for each PG of an object in range.
            None => self.shared.done(op.id, Err(OpError::Refused), out),
        }
    }

    fn node_up(&mut self, now: Time, node: NodeId, out: &mut Vec<Output<P>>) {
        self.node_down(now, node, out);
        self.shared.peer(node).connected = true;
        self.release_held(now, out);
    }

    /// A node that is connected, and not held out any more.
    fn speak_to(&mut self, now: Time, node: NodeId, out: &mut Vec<Output<P>>) {
        let peer = self.shared.peer(node);
        peer.up = true;
        peer.up_since = now;
        if !self.attached && !peer.fenced {
            let (volume, generation) = (self.shared.spec.id, self.shared.spec.generation);
            self.shared.ask(now, node, ToNode::Fence { volume, generation }, out);
        }
        for group in self.groups.iter_mut().flatten() {
            group.node_up(&mut self.shared, now, node, out);
        }
    }

    fn node_down(&mut self, now: Time, node: NodeId, out: &mut Vec<Output<P>>) {
        let peer = self.shared.peer(node);
        peer.connected = false;
        if !peer.up {
            return;
        }
        peer.up = false;
        peer.asked = None;
        for group in self.groups.iter_mut().flatten() {
            group.node_down(&mut self.shared, now, node, out);
        }
        self.shared.peer(node).down();
    }

    fn node_message(&mut self, now: Time, node: NodeId, msg: FromNode<P>, out: &mut Vec<Output<P>>) {
        let peer = self.shared.peer(node);
        if !peer.up {
            return; // a connection that has been given up
        }
        if !(peer.fenced && matches!(msg, FromNode::Fenced { .. })) {
            // The answer to a call says nothing about reads and writes that a node owes.
            peer.asked = None;
        }
        let group = match &msg {
            FromNode::Fenced { volume, generation } => {
                if (*volume, *generation) == (self.shared.spec.id, self.shared.spec.generation) {
                    self.shared.peer(node).fenced = true;
                    self.attach_if_fenced(now, out);
                }
                return;
            }
            FromNode::FenceRefused { volume, fence, .. } => {
                if *volume == self.shared.spec.id && *fence > self.shared.spec.generation {
                    self.shared.deposed = Some(*fence);
                }
                return;
            }
            FromNode::Opened { group, .. }
            | FromNode::OpenRefused { group, .. }
            | FromNode::Settled { group, .. }
            | FromNode::Data { group, .. }
            | FromNode::Bad { group, .. }
            | FromNode::ReadRefused { group, .. }
            | FromNode::Confirmed { group, .. }
            | FromNode::Differs { group } => *group,
            FromNode::Have { object, .. }
            | FromNode::Gap { object, .. }
            | FromNode::Doubts { object, .. }
            | FromNode::NoSpace { object, .. } => object.group,
        };
        if let FromNode::Differs { group } = msg {
            return self.differs(now, group, out);
        }
        match self.groups.get_mut(group.pg.pg as usize).and_then(Option::as_mut) {
            Some(state) if state.id == group => state.message(&mut self.shared, now, node, msg, out),
            _ => {}
        }
    }

    fn differs(&mut self, now: Time, group: GroupId, out: &mut Vec<Output<P>>) {
        if let Some(state) = self.groups.get_mut(group.pg.pg as usize).and_then(Option::as_mut)
            && state.id == group
            && state.phase == Phase::Closed
        {
            state.next_round(&mut self.shared, now, out);
        }
    }

    /// 6.4: the first request is served when a quorum of every PG has made the fence durable.
    fn attach_if_fenced(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        let peers = &self.shared.peers;
        let fenced = |node: NodeId| peers.get(&node).is_some_and(|peer| peer.fenced);
        if self.attached || !self.groups.iter().flatten().all(|group| group.config.is_quorum(fenced)) {
            return;
        }
        self.attached = true;
        out.push(Output::Attached);
        while let Some(op) = self.before_attach.pop_front() {
            self.submit(now, op, out);
        }
    }

    fn configure(
        &mut self,
        now: Time,
        pg: u32,
        config: crate::placement::PgConfig,
        out: &mut Vec<Output<P>>,
    ) {
        // A placement group without a group has no object of this volume, and never gets one.
        let Some(group) = self.groups.get_mut(pg as usize).and_then(Option::as_mut) else { return };
        if config.epoch <= group.config.epoch || config.problem().is_some() {
            return;
        }
        group.configure(&mut self.shared, now, config, out);
        self.attach_if_fenced(now, out);
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        while let Some(late) = self.shared.take_late(now) {
            if let Some(group) = self.groups.get_mut(late.pg as usize).and_then(Option::as_mut) {
                group.late(&mut self.shared, now, late.id, out);
            }
        }
        if now >= self.shared.next_deadline {
            self.time_out_due(now, out);
        }
        self.call_if_due(now, out);
        if now < self.regular_tick() {
            return;
        }
        self.last_tick = now;
        let timeout = self.shared.options.node_timeout;
        let silent: Vec<NodeId> = self
            .shared
            .peers
            .iter()
            .filter(|(_, peer)| peer.up && peer.asked.is_some_and(|since| now.since(since) > timeout))
            .map(|(node, _)| *node)
            .collect();
        for node in silent {
            self.shared.reset(node, "no answer within the node timeout");
        }
        self.find_laggards(now);
        self.find_late_copies(now, out);
        self.release_held(now, out);
        self.stirred = false;
        for group in self.groups.iter_mut().flatten() {
            group.tick(&mut self.shared, now, out);
            self.stirred |= !group.at_rest();
        }
        self.probe_unread(now, out);
    }

    /// Once in a timeout, or for an operation that has timed out: at most [`LEADER_OPS_MAX`] are looked at,
    /// and only with an I/O timeout.
    fn time_out_due(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        let due = |(id, (at, object)): (&OpId, &(Time, ObjectIndex))| (*at <= now).then_some((*id, *object));
        let due: Vec<(OpId, ObjectIndex)> = self.shared.deadlines.iter().filter_map(due).collect();
        for (id, object) in due {
            self.time_out(now, id, object, out);
        }
        let next = self.shared.deadlines.values().map(|(at, _)| *at).min();
        self.shared.next_deadline = next.map_or(Time(u64::MAX), |at| at.max(now.after(TICK_BUSY)));
    }

    fn time_out(&mut self, now: Time, id: OpId, object: ObjectIndex, out: &mut Vec<Output<P>>) {
        if let Some(at) = self.before_attach.iter().position(|op| op.id == id) {
            self.before_attach.remove(at);
            return self.shared.done(id, Err(OpError::TimedOut), out);
        }
        let spec = &self.shared.spec;
        let pg = (spec.pg_of)(spec.id, object, self.groups.len() as u32);
        // A write that waits for a Confirm may do so in the group that this one has split off from.
        for at in std::iter::once(pg).chain(pg_ancestors(pg)) {
            if let Some(group) = self.groups.get_mut(at as usize).and_then(Option::as_mut)
                && group.forget_op(&mut self.shared, id, object)
            {
                self.shared.done(id, Err(OpError::TimedOut), out);
                return group.drop_abandoned(&mut self.shared, now, out);
            }
        }
    }

    /// Opens groups that no client has touched yet, a few at a time, so that copies which are behind are
    /// found and the first use of a group does not wait.
    fn open_more(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        if !self.attached || self.open_cursor >= self.groups.len() {
            return;
        }
        // This runs after every input, and a pool may have tens of thousands of groups: only those that
        // were begun here are looked at.
        let groups = &self.groups;
        let is_opening = |at: &usize| groups[*at].as_ref().is_some_and(|group| group.phase == Phase::Opening);
        self.opening.retain(is_opening);
        while self.opening.len() < self.shared.options.background_opens {
            let Some(slot) = self.groups.get_mut(self.open_cursor) else { return };
            if let Some(group) = slot.as_mut()
                && group.phase == Phase::Closed
            {
                group.next_round(&mut self.shared, now, out);
                self.opening.push(self.open_cursor);
            }
            self.open_cursor += 1;
        }
    }

    fn end_if_done(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        if self.shared.options.healer {
            let whole = self.all_whole();
            if whole && !self.all_whole_said {
                out.push(Output::AllWhole);
            }
            self.all_whole_said = whole;
        }
        let Some(since) = self.closing else { return };
        if self.shared.live > 0 {
            return;
        }
        let clean = self.all_whole();
        if clean || now.since(since) > RELEASE_GRACE {
            self.released = true;
            out.push(Output::Released { clean });
        }
    }

    fn depose(&mut self, by: Generation, out: &mut Vec<Output<P>>) {
        let mut ids: Vec<OpId> = self.before_attach.drain(..).map(|op| op.id).collect();
        for group in self.groups.iter_mut().flatten() {
            group.take_all_ops(&mut ids);
        }
        ids.sort_unstable();
        for id in ids {
            self.shared.done(id, Err(OpError::Deposed), out);
        }
        out.push(Output::Deposed { by });
    }
}

/// Numbers of objects, in order: so that what is iterated over is the same in every run.
type ObjectSet = BTreeSet<ObjectIndex>;
