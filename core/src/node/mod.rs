//! The node's machine: rules N1 to N8 of `docs/protocol.md`, and nothing else.
//!
//! ```text
//!  Leader messages ─┐                      ┌─► Persist(record), Read(blocks)   to the store
//!  Peer messages   ─┼─► Node::handle(..) ──┼─► ToLeader(answer)                to front ends
//!  Durable, Read   ─┘                      └─► ToPeer(fetch, piece, ..)        to other nodes
//! ```
//!
//! The machine holds the node's state *as of the last record that it gave out*. An answer that claims
//! something is held back, in order, until the store has said that everything the claim rests on is
//! durable: [`Node::hold`] is the only way out for such an answer, and the one place where the rule
//! "durable before answered" lives.
//!
//! The machine owns no socket, file, clock or random source. What it may not do: change a copy without
//! a leader's word. The one exception, [`Record::Heal`], puts back the bytes that the node's own table
//! names by checksum. What scrub finds it marks, durably, and leaves to a leader.

mod api;
mod budget;
mod callers;
mod leaders;
mod leaving;
mod paced;
mod peers;
mod repair;
mod scrub;
mod split;
mod tally;

pub use api::*;
pub use budget::{BudgetConfig, BudgetCounters};

use crate::checksum::UNKNOWN;
use crate::ids::*;
use crate::message::{FromNode, ToNode, WriteOp};
use crate::placement::{PgConfig, PoolPgs};
use crate::record::{Durable, GroupState, Record};
use crate::scrub::Doubt;
use budget::Budget;
use callers::Calls;
use leaving::Leaving;
use paced::{Asked, Done};
use peers::Heal;
use repair::Repair;
use rustc_hash::FxHashMap;
use scrub::Scrubber;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tally::Tally;

/// Who a node is.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its number in the map.
    pub id: NodeId,
}

/// What a read of the store was for.
#[derive(Debug)]
enum Reading {
    /// A leader's Read.
    Leader { conn: ConnId, object: ObjectId, id: u64 },
    /// The table of a copy that is to be repaired.
    Table { object: ObjectId },
    /// A peer's Fetch. `after`: what was given out when the blocks were read.
    Fetch {
        node: NodeId,
        object: ObjectId,
        ballot: Ballot,
        request: u64,
        head: Head,
        blocks: BlockRange,
        doubts: Vec<(u32, Doubt)>,
        after: Ticket,
        /// The asker's checksums: what it has does not travel, and is not paid for.
        have: Box<[u64]>,
    },
    /// A copy's table, to be compared.
    Look { object: ObjectId },
    /// The same for a peer that has asked.
    ScrubAnswer {
        node: NodeId,
        object: ObjectId,
        request: u64,
        sum: u64,
        doubts: Vec<(u32, Doubt)>,
        after: Ticket,
    },
    /// A piece of a deep scrub.
    Deep,
    /// A peer's FetchBlock.
    Block { node: NodeId, object: ObjectId, request: u64, block: u32, checksum: u64 },
}

/// Counters, for metrics. They start at 0 with the process.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Repairs that were completed.
    pub repairs_done: u64,
    /// Repairs that were given up; their leader was told.
    pub repairs_failed: u64,
    /// Repairs that were put off because recovery has its share already; their leader comes again.
    pub repairs_put_off: u64,
    /// Pieces that waited for their turn, as their source.
    pub fetches_waited: u64,
    /// Blocks of data that repairs brought.
    pub repair_blocks: u64,
    /// Bad blocks that were seen.
    pub bad_blocks: u64,
    /// Bad blocks whose bytes were found again.
    pub healed_blocks: u64,
    /// Writes that were refused for want of room.
    pub no_space: u64,
    /// Opens and writes of leaders that a newer one has replaced.
    pub refused: u64,
    /// Placement groups that the node has left (N7).
    pub left: u64,
    /// Objects that scrub has compared, with however many peers there were.
    pub scrub_objects: u64,
    /// Bytes that deep scrubs have read, holes counted as if they were bytes.
    pub scrub_bytes: u64,
    /// Blocks of this node's copies that were found outvoted.
    pub scrub_outvoted: u64,
    /// Blocks of this node's copies that were found disputed.
    pub scrub_disputed: u64,
    /// Blocks in doubt that a repair has replaced.
    pub scrub_mended: u64,
    /// Placement groups that the node has split.
    pub splits: u64,
    /// How often it was found that acknowledged state is lost (N8, 5.9).
    pub state_losses: u64,
}

/// The machine.
pub struct Node<P> {
    id: NodeId,
    state: Durable,
    /// Sums over the groups of `state`.
    tally: Tally,
    configs: FxHashMap<PgId, PgConfig>,
    pools: FxHashMap<PoolId, PoolPgs>,
    /// Some placement group was split here, or comes from a pool that was.
    has_split: bool,
    /// The last ticket given out, and the last that is durable.
    given: Ticket,
    durable: Ticket,
    /// Answers that wait for their ticket, in the order of tickets.
    held: VecDeque<(Ticket, Output<P>)>,
    /// The newest connection that opened the group, and is still there.
    conns: FxHashMap<GroupId, ConnId>,
    /// Leaders that have no lease, and say that they are there.
    calls: Calls,
    reads: FxHashMap<u64, Reading>,
    next_token: u64,
    repairs: BTreeMap<ObjectId, Repair<P>>,
    repair_queue: VecDeque<ObjectId>,
    /// Repairs here that no client waits for.
    background: usize,
    /// Numbers the repairs that have begun.
    begun: u64,
    /// Repairs that wait for the budget, those that have begun first in front.
    paced: Vec<(u64, ObjectId)>,
    /// Fetches of others that wait for the budget, in order.
    asked: VecDeque<Asked>,
    /// The repairs that were completed last.
    done: VecDeque<Done>,
    budget: Budget,
    /// When the present input came.
    now: Time,
    /// Since the start.
    ticks: u32,
    overlay_bytes: usize,
    heals: BTreeMap<(ObjectId, u32), Heal>,
    /// Objects of whose table a part is damaged: their copy is to be repaired, and is no source.
    damaged: BTreeSet<ObjectId>,
    /// The placement group that the node is leaving.
    leaving: Option<Leaving>,
    /// The placement group that was looked at last for whether it is to be left.
    leave_cursor: Option<PgId>,
    /// The placement group that was looked at last for whether it is to be split.
    split_cursor: Option<PgId>,
    /// The group that was compared with the peers last.
    digest_cursor: Option<GroupId>,
    scrub: Scrubber,
    room: u64,
    full: bool,
    /// What the store has said of the write that comes next; see [`Node::asks_growth`].
    growth: Option<u32>,
    counters: NodeCounters,
}

impl<P: Clone> Node<P> {
    /// A node that has recovered this state.
    pub fn new(config: NodeConfig, durable: Durable) -> Node<P> {
        Node {
            id: config.id,
            tally: Tally::of(&durable),
            has_split: durable.pgs.values().any(|pg| pg.pg_num != 0),
            state: durable,
            configs: FxHashMap::default(),
            pools: FxHashMap::default(),
            given: 0,
            durable: 0,
            held: VecDeque::new(),
            conns: FxHashMap::default(),
            calls: Calls::default(),
            reads: FxHashMap::default(),
            next_token: 1,
            repairs: BTreeMap::new(),
            repair_queue: VecDeque::new(),
            background: 0,
            begun: 0,
            paced: Vec::new(),
            asked: VecDeque::new(),
            done: VecDeque::new(),
            budget: Budget::new(BudgetConfig::default()),
            now: Time(0),
            ticks: 0,
            overlay_bytes: 0,
            heals: BTreeMap::new(),
            damaged: BTreeSet::new(),
            leaving: None,
            leave_cursor: None,
            split_cursor: None,
            digest_cursor: None,
            scrub: Scrubber::default(),
            room: u64::MAX,
            full: false,
            growth: None,
            counters: NodeCounters::default(),
        }
    }

    /// Takes one input, in the order in which things happened; adds what is to be done to `out`.
    pub fn handle(&mut self, now: Time, input: Input<P>, out: &mut Vec<Output<P>>) {
        self.now = self.now.max(now);
        match input {
            Input::Leader { conn, msg } => self.leader_message(conn, msg, out),
            Input::LeaderGone { conn } => self.leader_gone(conn),
            Input::Peer { node, msg } => self.peer_message(node, msg, out),
            Input::PeerGone { node } => self.peer_gone(node, out),
            Input::Durable { ticket } => self.durable(ticket, out),
            Input::Read { token, found } => self.read_done(token, found, out),
            Input::BadBlock { object, block, checksum } => self.bad_block(object, block, checksum, out),
            Input::StateLost { fences } => {
                self.counters.state_losses += 1;
                self.persist(Record::LostState { fences }, out);
                let mut known: Vec<(PgId, Epoch)> =
                    self.configs.iter().map(|(pg, c)| (*pg, c.epoch)).collect();
                known.sort_unstable();
                for (pg, epoch) in known {
                    self.split_for(pg, out);
                    self.learn_epoch(pg, epoch, out);
                }
            }
            Input::Pools(pools) => self.learn_pools(pools),
            Input::Config(configs) => {
                for (pg, config) in configs {
                    let newer = self.configs.get(&pg).is_none_or(|old| old.epoch <= config.epoch);
                    if newer && config.problem().is_none() {
                        let epoch = config.epoch;
                        self.configs.insert(pg, config);
                        if self.state.amnesia {
                            self.split_for(pg, out);
                        }
                        self.learn_epoch(pg, epoch, out);
                    }
                }
            }
            Input::VolumesDeleted(volumes) => {
                for volume in volumes {
                    self.delete_volume(volume, out);
                }
            }
            Input::List { id, request } => self.list(id, request, out),
            Input::Scrub(ScrubOrder::Scrub { pg, deep }) => self.order_scrub(pg, deep, out),
            Input::Scrub(ScrubOrder::Believe { object, blocks, from }) => {
                self.believe(object, blocks, from, out);
            }
            Input::Tick => {
                self.budget.tick(self.now);
                self.tick_repairs(out);
                self.tick_heals(out);
                self.tick_splits(out);
                self.tick_leaving(out);
                self.tick_digests(out);
                self.tick_scrub(out);
            }
        }
        if !(self.paced.is_empty() && self.asked.is_empty()) {
            self.take_turns(out);
        }
        self.growth = None; // it was about this input
    }

    /// Blocks that may be added to what the store holds, and whether leaders are to be told that it is
    /// nearly full. Said before each batch of inputs, and again whenever the machine has less
    /// ([`Node::room`]) than the next input may need: each block of a record is taken off here as if it
    /// were an added one. What adds more than there is room for is refused before anything is applied; what
    /// adds nothing (an overwrite, zeros) never is.
    pub fn set_room(&mut self, blocks: u64, full: bool) {
        self.room = blocks;
        self.full = full;
    }

    /// What is left of [`Node::set_room`].
    pub fn room(&self) -> u64 {
        self.room
    }

    /// The blocks of a write that fits only if some of them are there already. The store is to be asked,
    /// as it is behind every record given out so far, how many of them are holes, and
    /// [`Node::set_growth`] to be called right before the message is fed. Not asked, all count as added.
    pub fn asks_growth(&self, msg: &ToNode<P>) -> Option<(ObjectId, BlockRange)> {
        match msg {
            ToNode::Write { object, op: WriteOp::Data { blocks, .. }, .. }
                if u64::from(blocks.count) > self.room && !self.repairs.contains_key(object) =>
            {
                Some((*object, *blocks))
            }
            _ => None,
        }
    }

    /// How many blocks the next input, a Write, would add: the holes among its own, and what the store needs
    /// besides. `u32::MAX` before any input: the store takes no data at all, also none that adds nothing.
    /// Forgotten after that input.
    pub fn set_growth(&mut self, blocks: u32) {
        self.growth = Some(blocks);
    }

    /// How many placement groups pools have, as far as it has heard.
    pub fn pools(&self) -> impl Iterator<Item = (PoolId, PoolPgs)> {
        self.pools.iter().map(|(pool, pgs)| (*pool, *pgs))
    }

    /// The configurations that it has heard of.
    pub fn configs(&self) -> &FxHashMap<PgId, PgConfig> {
        &self.configs
    }

    /// The state as of the last record given out.
    pub fn state(&self) -> &Durable {
        &self.state
    }

    /// Objects whose copy here is behind. Costs the same for any number of groups.
    pub fn behind(&self) -> u64 {
        self.tally.behind()
    }

    /// Some group here has lost its votes (N8). Costs the same for any number of groups.
    pub fn has_lost(&self) -> bool {
        self.tally.has_lost()
    }

    /// Answers that wait until what they claim is durable.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Counters, for metrics.
    pub fn counters(&self) -> NodeCounters {
        self.counters
    }

    /// Changes what recovery may take, from now on.
    pub fn set_budget(&mut self, config: BudgetConfig) {
        self.budget.configure(config);
    }

    /// What recovery has taken, and what it may take now.
    pub fn budget(&self) -> BudgetCounters {
        self.budget.counters()
    }

    /// Repairs that are running or waiting here.
    pub fn repairs_open(&self) -> usize {
        self.repairs.len()
    }

    /// Gives out a record and takes it into the state.
    fn persist(&mut self, record: Record<P>, out: &mut Vec<Output<P>>) -> Ticket {
        let adds = record.data_blocks();
        self.persist_adding(record, adds, out)
    }

    /// The same for a record that adds so many blocks.
    fn persist_adding(&mut self, record: Record<P>, adds: u32, out: &mut Vec<Output<P>>) -> Ticket {
        self.tally.apply(&mut self.state, &record);
        self.has_split |= matches!(record, Record::Split { .. });
        // What was compared before is not what the node has now.
        if self.leaving.as_ref().is_some_and(|leaving| record.changes_pg() == Some(leaving.pg())) {
            self.leaving = None;
        }
        self.room = self.room.saturating_sub(u64::from(adds));
        self.given += 1;
        out.push(Output::Persist { ticket: self.given, record });
        self.given
    }

    /// Sends `output` when everything that has been given out so far is durable. What it claims can rest
    /// on nothing later.
    fn hold(&mut self, output: Output<P>, out: &mut Vec<Output<P>>) {
        self.hold_after(self.given, output, out);
    }

    fn hold_after(&mut self, ticket: Ticket, output: Output<P>, out: &mut Vec<Output<P>>) {
        if ticket <= self.durable && self.held.is_empty() {
            out.push(output);
            return;
        }
        // A claim that was held back before this one must not be overtaken by it.
        let ticket = ticket.max(self.held.back().map_or(0, |(t, _)| *t));
        self.held.push_back((ticket, output));
    }

    fn hold_leader(&mut self, conn: ConnId, msg: FromNode<P>, out: &mut Vec<Output<P>>) {
        self.hold(Output::ToLeader { conn, msg }, out);
    }

    fn durable(&mut self, ticket: Ticket, out: &mut Vec<Output<P>>) {
        self.budget.durable(self.now, ticket);
        self.durable = self.durable.max(ticket.min(self.given));
        while self.held.front().is_some_and(|(t, _)| *t <= self.durable) {
            if let Some((_, output)) = self.held.pop_front() {
                // Durable: the store has said so of every record up to the ticket it waited for.
                out.push(output);
            }
        }
    }

    fn read(
        &mut self,
        what: Reading,
        object: ObjectId,
        blocks: BlockRange,
        mode: ReadMode,
        out: &mut Vec<Output<P>>,
    ) {
        let token = self.next_token;
        self.next_token += 1;
        if matches!(what, Reading::Leader { .. }) {
            self.budget.read_begins(self.now, token);
        }
        self.reads.insert(token, what);
        out.push(Output::Read { token, object, blocks, mode });
    }

    fn read_done(&mut self, token: u64, found: ReadResult<P>, out: &mut Vec<Output<P>>) {
        match self.reads.remove(&token) {
            None => {}
            Some(Reading::Leader { conn, object, id }) => {
                self.budget.read_ends(self.now, token);
                let group = object.group;
                if found.checksums.contains(&UNKNOWN) {
                    self.table_damaged(self.state.place(object), out);
                }
                // A read claims nothing about durability: the leader asks for blocks only whose writes
                // a majority has made durable.
                let msg = if found.bad.is_empty() {
                    FromNode::Data { group, id, checksums: found.checksums, data: found.data }
                } else {
                    FromNode::Bad { group, id, blocks: found.bad }
                };
                out.push(Output::ToLeader { conn, msg });
            }
            Some(Reading::Table { object }) => self.table_read(object, token, found, out),
            Some(Reading::Fetch { node, object, ballot, request, head, blocks, doubts, after, have }) => {
                self.paid_for(blocks, &have, &found);
                self.piece_read(node, (object, ballot, request, head, blocks, after), doubts, found, out);
            }
            Some(Reading::Look { object }) => self.look_read(object, token, found, out),
            Some(Reading::ScrubAnswer { node, object, request, sum, doubts, after }) => {
                self.scrub_answer_read(node, object, (request, sum, doubts, after), found, out);
            }
            Some(Reading::Deep) => self.deep_read(&found, out),
            Some(Reading::Block { node, object, request, block, checksum }) => {
                self.block_read(node, (object, request, block, checksum), found, out);
            }
        }
    }

    fn group(&self, group: GroupId) -> Option<&GroupState> {
        self.state.groups.get(&group)
    }

    fn fence(&self, volume: VolumeId) -> Generation {
        self.state.fences.get(&volume).copied().unwrap_or_default()
    }

    /// `b == promised == settled`, and the volume is not fenced against the ballot. The fence has to be
    /// looked at here too: an older front end may have opened the group before a newer one fenced the
    /// volume, and must not finish a write from then on (6.4).
    fn leads(&self, group: GroupId, ballot: Ballot) -> bool {
        self.led(group, ballot).is_some()
    }

    /// The group's state, if [`Node::leads`]: looked up once per I/O.
    fn led(&self, group: GroupId, ballot: Ballot) -> Option<&GroupState> {
        let state = self.group(group)?;
        let leads = state.promised.ballot == ballot && state.settled.ballot == ballot && !state.lost;
        (leads && ballot.generation() >= self.fence(group.volume)).then_some(state)
    }

    fn leader_gone(&mut self, conn: ConnId) {
        self.calls.gone(conn);
        let gone: Vec<GroupId> = self.conns.iter().filter(|(_, c)| **c == conn).map(|(g, _)| *g).collect();
        for group in gone {
            self.conns.remove(&group);
            // What was kept on top would have a gap: the writes that were under way are lost.
            self.cancel_repairs(group);
        }
    }

    fn delete_volume(&mut self, volume: VolumeId, out: &mut Vec<Output<P>>) {
        let known = self.state.fences.contains_key(&volume)
            || self.state.groups.keys().any(|group| group.volume == volume);
        if !known {
            return;
        }
        let groups: Vec<GroupId> = self.conns.keys().filter(|g| g.volume == volume).copied().collect();
        for group in groups {
            self.conns.remove(&group);
            self.cancel_repairs(group);
        }
        self.heals.retain(|(object, _), _| object.group.volume != volume);
        self.damaged.retain(|object| object.group.volume != volume);
        self.persist(Record::DeleteVolume { volume }, out);
    }
}
