//! A group: opened (5.1), decided (5.2), settled (5.4), opened again (5.7, 5.8).

use super::choose::{self, Answer};
use super::disputed::{Disputed, Outvoted};
use super::in_sync::Owed;
use super::lost::Word;
use super::object::{CopyState, Object, Spare};
use super::read::{Confirming, Read};
use super::{LeaderCounters, ObjectSet, Output, Shared};
use crate::client::{ClientOp, OpId};
use crate::ids::*;
use crate::message::{FromNode, Line, Refusal, ToNode};
use crate::placement::PgConfig;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};

/// First and longest pause before a next round that the same group needs again (µs).
const ROUND_PAUSE_MIN: u64 = 20_000;
const ROUND_PAUSE_MAX: u64 = 2_000_000;
/// Pause before a node that was not ready is asked again (µs).
const OPEN_RETRY: u64 = 100_000;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No ballot taken yet.
    Closed,
    /// Waits for the votes of a quorum.
    Opening,
    /// Bases are decided; nodes are being settled.
    Decided,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Not connected.
    Down,
    /// Refused for now; asked again then.
    Refused(Time),
    /// Open was sent.
    Opening,
    /// It has answered; there is no decision yet.
    Opened,
    /// Settle was sent.
    Settling,
    /// It has settled.
    Settled,
}

/// A node's place in a group.
#[derive(Debug)]
pub(super) struct Slot {
    pub node: NodeId,
    pub member: bool,
    pub link: Link,
    /// Has settled in this ballot. Stays true when its connection breaks: a line is durable.
    pub settled: bool,
    /// Has answered in this ballot.
    pub answered: bool,
    /// Its answer, until it is settled.
    answer: Option<Answer>,
    /// Answers in a row that did not count ([`super::lost`]), as far as it matters.
    pub not_believed: u8,
}

impl Slot {
    /// Writes and reads may be sent: a Settle is on its way before them, or was answered.
    pub fn live(&self) -> bool {
        matches!(self.link, Link::Settling | Link::Settled)
    }
}

/// A group's state.
pub(super) struct Group<P> {
    pub id: GroupId,
    pub config: PgConfig,
    pub ballot: Ballot,
    pub phase: Phase,
    pub slots: Vec<Slot>,
    pub objects: FxHashMap<ObjectIndex, Object<P>>,
    /// Objects with writes under way or operations waiting.
    pub busy: ObjectSet,
    /// Known objects that no quorum holds whole yet.
    pub closed: ObjectSet,
    /// Copies on connected nodes that are not in line, and when to (re)order their repair. Clients' first.
    pub behind: BTreeMap<(ObjectIndex, usize), Time>,
    /// The copy whose repair was ordered last.
    pub repair_cursor: (ObjectIndex, usize),
    /// Objects that copies could not take for want of room in the last ballot, and the slots of these: the
    /// present one is decided by their votes, if they are a quorum.
    pub no_room: FxHashMap<ObjectIndex, u8>,
    /// No further round for want of room before this, while nobody's write asks for one.
    pub full_round_after: Time,
    /// When the present ballot was taken.
    pub round_began: Time,
    pub undecided: usize,
    /// Operations that wait for the decision.
    pub waiting: VecDeque<ClientOp<P>>,
    /// Queues of objects that have no writes under way, for the next that has some.
    pub spare: Spare<P>,
    pub reads: FxHashMap<u64, Read<P>>,
    /// Of these, those that look at the blocks of a write first (see `full`): overlapping writes wait for them.
    pub probing: BTreeMap<(ObjectIndex, u64), BlockRange>,
    /// Of these, those that nobody is asked for now: all copies have bad blocks, which are being mended.
    pub mending: Vec<u64>,
    /// Blocks that no majority can answer for.
    pub disputed: Disputed,
    /// Copies with blocks that a majority contradicts.
    pub outvoted: Outvoted,
    pub confirming: Option<Confirming>,
    pub confirm_next: Vec<u64>,
    /// Writes that are durable on a quorum, and wait for a Confirm because no lease holds.
    pub acks_next: Vec<OpId>,
    /// Writes that were durable on a quorum when a ballot ended, and not answered (`in_sync`).
    pub owed: Owed,
    /// Of nodes that were found to have lost data: what they have said of that since. One for each at most.
    pub words: BTreeMap<NodeId, Word>,
    round_pause: u64,
    round_after: Time,
    pub counters: LeaderCounters,
}

impl<P: Clone + Default> Group<P> {
    pub fn new(id: GroupId, config: PgConfig) -> Group<P> {
        let mut group = Group {
            id,
            config,
            ballot: Ballot::ZERO,
            phase: Phase::Closed,
            slots: Vec::new(),
            objects: FxHashMap::default(),
            busy: ObjectSet::new(),
            closed: ObjectSet::new(),
            behind: BTreeMap::new(),
            repair_cursor: (0, 0),
            no_room: FxHashMap::default(),
            full_round_after: Time(0),
            round_began: Time(0),
            undecided: 0,
            waiting: VecDeque::new(),
            spare: Vec::new(),
            reads: FxHashMap::default(),
            probing: BTreeMap::new(),
            mending: Vec::new(),
            disputed: Disputed::new(),
            outvoted: Outvoted::new(),
            confirming: None,
            confirm_next: Vec::new(),
            acks_next: Vec::new(),
            owed: Owed::default(),
            words: BTreeMap::new(),
            round_pause: ROUND_PAUSE_MIN,
            round_after: Time(0),
            counters: LeaderCounters::default(),
        };
        group.make_slots();
        group
    }

    fn make_slots(&mut self) {
        let nodes = self.config.everyone();
        let slot = |node| Slot {
            node,
            member: self.config.is_member(node),
            link: Link::Down,
            settled: false,
            answered: false,
            answer: None,
            not_believed: 0,
        };
        self.slots = nodes.into_iter().map(slot).collect();
    }

    pub fn slot_of(&self, node: NodeId) -> Option<usize> {
        self.slots.iter().position(|slot| slot.node == node)
    }

    /// Is the set of slots for which `has` is true a quorum? Learners never count.
    pub fn quorum(&self, mut has: impl FnMut(usize, &Slot) -> bool) -> bool {
        self.config.is_quorum(|node| {
            self.slots.iter().enumerate().any(|(i, slot)| slot.node == node && slot.member && has(i, slot))
        })
    }

    /// Nothing under way, and nothing that waits for time to pass.
    pub fn at_rest(&self) -> bool {
        self.phase == Phase::Closed
            || (self.phase == Phase::Decided
                && self.busy.is_empty()
                && self.closed.is_empty()
                && self.behind.is_empty()
                && self.acks_next.is_empty()
                && self.owed.ids.is_empty()
                && self.confirming.is_none()
                && self.waiting.is_empty())
    }

    pub fn all_whole(&self) -> bool {
        self.phase == Phase::Decided
            && self.at_rest()
            && !self.outvoted_may_be_replaced()
            && self.undecided == 0
            && self.slots.iter().all(|slot| slot.link == Link::Settled)
    }

    /// Every node serves every object, or is about to have what was written last.
    pub fn all_in_line(&self) -> bool {
        self.phase == Phase::Decided
            && self.undecided == 0
            && self.closed.is_empty()
            && self.behind.is_empty()
            && self.slots.iter().all(|slot| slot.link == Link::Settled)
    }

    /// 5.1 and 5.8: takes a new ballot and asks every node. What was counted in the old one counts no
    /// more; writes in flight are issued again when their objects open.
    pub fn next_round(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        let next = match self.phase {
            Phase::Closed => Ballot::new(shared.spec.generation, 0),
            _ => self.ballot.next_round(),
        };
        let Some(ballot) = next else {
            // Rounds have run out: operations wait until the daemon has a new generation.
            return out.push(Output::NeedGeneration);
        };
        self.counters.rounds += 1;
        self.note_no_room();
        self.take_back(shared, now);
        self.ballot = ballot;
        self.phase = Phase::Opening;
        self.round_began = now;
        self.round_after = now.after(self.round_pause);
        self.round_pause = (self.round_pause * 2).min(ROUND_PAUSE_MAX);
        for slot in &mut self.slots {
            slot.settled = false;
            slot.answered = false;
            slot.answer = None;
        }
        for i in 0..self.slots.len() {
            self.open_slot(shared, now, i, out);
        }
    }

    /// Puts everything that is under way back in front of what waits: writes in their order, then reads.
    pub fn take_back(&mut self, shared: &mut Shared, now: Time) {
        let mut again: Vec<ClientOp<P>> = Vec::new();
        let busy = std::mem::take(&mut self.busy);
        for index in &busy {
            let Some(mut object) = self.objects.remove(index) else { continue };
            for (slot, place) in self.slots.iter().enumerate() {
                super::write::forget_pending(shared, now, place.node, slot, &mut object.entries);
            }
            for entry in object.entries.drain(..) {
                match entry.id {
                    Some(id) if entry.acked => self.owed.push(now, id),
                    _ => again.extend(super::write::reissue(*index, entry)),
                }
            }
            again.extend(object.waiting.drain(..));
        }
        let mut reads: Vec<(u64, Read<P>)> = self.reads.drain().collect();
        self.probing.clear();
        reads.sort_unstable_by_key(|(id, _)| *id);
        for (_, read) in reads {
            self.unsend(shared, &read);
            again.push(read.op);
        }
        for op in again.into_iter().rev() {
            self.waiting.push_front(op);
        }
        for slot in self.repairing_slots() {
            let peer = shared.peer(self.slots[slot].node);
            peer.repairs = peer.repairs.saturating_sub(1);
        }
        self.objects.clear();
        self.closed.clear();
        self.behind.clear();
        self.disputed.clear();
        self.outvoted.clear();
        self.undecided = 0;
        if let Some(confirming) = self.confirming.take() {
            self.acks_next.extend(confirming.acks); // durable: any later decision has them
        }
        self.confirm_next.clear();
    }

    /// The slot of every copy that is under repair.
    fn repairing_slots(&self) -> Vec<usize> {
        let repairing = |(index, slot): &(ObjectIndex, usize)| {
            self.objects
                .get(index)
                .is_some_and(|o| matches!(o.copies[*slot].state, CopyState::Repairing { .. }))
        };
        self.behind.keys().filter(|key| repairing(key)).map(|(_, slot)| *slot).collect()
    }

    fn open_slot(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        let node = self.slots[i].node;
        if !shared.is_up(node) {
            self.slots[i].link = Link::Down;
            return;
        }
        self.slots[i].link = Link::Opening;
        let msg = ToNode::Open { group: self.id, ballot: self.ballot, epoch: self.config.epoch };
        shared.ask(now, node, msg, out);
    }

    /// 5.7: the same ballot again, on this node alone.
    pub fn node_up(&mut self, shared: &mut Shared, now: Time, node: NodeId, out: &mut Vec<Output<P>>) {
        if let Some(i) = self.slot_of(node)
            && self.phase != Phase::Closed
        {
            self.open_slot(shared, now, i, out);
        }
    }

    pub fn node_down(&mut self, shared: &mut Shared, now: Time, node: NodeId, out: &mut Vec<Output<P>>) {
        let Some(i) = self.slot_of(node) else { return };
        self.slot_down(shared, now, i, out);
        self.slots[i].link = Link::Down;
        self.pay_owed(shared, now, out);
        if self.phase == Phase::Opening {
            // Nothing was decided with its answer: it is asked again. A decision may not have to wait for
            // it any more.
            self.slots[i].answer = None;
            self.slots[i].answered = false;
            self.decide_if_possible(shared, now, out);
        }
        self.round_if_stuck(shared, now, out);
    }

    /// Nothing more is expected of what was sent to this node.
    fn slot_down(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        let node = self.slots[i].node;
        for index in &self.busy {
            if let Some(object) = self.objects.get_mut(index) {
                super::write::forget_pending(shared, now, node, i, &mut object.entries);
            }
        }
        let behind: Vec<ObjectIndex> = self.behind.keys().filter(|key| key.1 == i).map(|key| key.0).collect();
        for index in behind {
            self.behind.remove(&(index, i));
            if let Some(object) = self.objects.get_mut(&index) {
                if matches!(object.copies[i].state, CopyState::Repairing { .. }) {
                    let peer = shared.peer(node);
                    peer.repairs = peer.repairs.saturating_sub(1);
                }
                object.copies[i].state = CopyState::Except;
            }
        }
        self.slots[i].link = Link::Opening;
        if shared.waits_for_all() {
            self.answer_all_freed(shared, now, out);
        }
        self.tidy_busy();
        self.reads_lose_slot(shared, now, i, out);
    }

    /// 5.8 for a new epoch.
    pub fn configure(&mut self, shared: &mut Shared, now: Time, config: PgConfig, out: &mut Vec<Output<P>>) {
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::no_reopen() && self.go_on_under(shared, now, &config, out) {
            return;
        }
        self.take_back(shared, now);
        self.no_room.clear(); // slots are others now
        self.words_of_before();
        self.config = config;
        self.make_slots();
        if self.phase != Phase::Closed {
            self.next_round(shared, now, out);
        }
    }

    /// A deliberate bug: the ballot goes on, and only nodes that are new are asked.
    #[cfg(feature = "deliberate-bugs")]
    fn go_on_under(
        &mut self,
        shared: &mut Shared,
        now: Time,
        config: &PgConfig,
        out: &mut Vec<Output<P>>,
    ) -> bool {
        let before: Vec<NodeId> = self.slots.iter().map(|slot| slot.node).collect();
        if !config.everyone().starts_with(&before) || self.phase != Phase::Decided {
            return false;
        }
        let known = std::mem::take(&mut self.slots);
        self.config = config.clone();
        self.make_slots();
        for (slot, old) in self.slots.iter_mut().zip(known) {
            *slot = Slot { member: slot.member, ..old };
        }
        for i in before.len()..self.slots.len() {
            self.open_slot(shared, now, i, out);
        }
        true
    }

    pub fn message(
        &mut self,
        shared: &mut Shared,
        now: Time,
        node: NodeId,
        msg: FromNode<P>,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(i) = self.slot_of(node) else { return };
        match msg {
            FromNode::Opened { ballot, settled, lost, objects, .. }
                if ballot == self.ballot && self.slots[i].link == Link::Opening =>
            {
                self.opened(shared, now, i, Answer::new(settled, lost, objects), out);
            }
            FromNode::OpenRefused { ballot, promised, fence, epoch, why, .. } => {
                let by = promised.generation().max(fence);
                if by > shared.spec.generation {
                    shared.deposed = Some(by);
                } else if ballot == self.ballot
                    && matches!(why, Refusal::NotMember | Refusal::Epoch)
                    && self.slots[i].live()
                {
                    // It has left the group (N7) that this leader had opened there, or split it: there is a later
                    // epoch.
                    self.slot_down(shared, now, i, out);
                    self.slots[i].link = Link::Refused(now.after(OPEN_RETRY));
                    out.push(Output::MapStale);
                } else if ballot == self.ballot && self.slots[i].link == Link::Opening {
                    match why {
                        Refusal::Promised if promised > self.ballot => {
                            // A round of this very leader that it does not remember: not possible, and
                            // harmless to step over.
                            self.ballot = promised;
                            self.next_round(shared, now, out);
                        }
                        Refusal::Promised | Refusal::NotReady => {
                            self.slots[i].link = Link::Refused(now.after(OPEN_RETRY));
                        }
                        Refusal::Epoch | Refusal::NotMember => {
                            self.slots[i].link = Link::Refused(now.after(OPEN_RETRY));
                            if epoch > self.config.epoch || why == Refusal::NotMember {
                                out.push(Output::MapStale);
                            }
                        }
                    }
                }
            }
            FromNode::Settled { ballot, .. }
                if ballot == self.ballot && self.slots[i].link == Link::Settling =>
            {
                self.settled(shared, now, i, out);
            }
            FromNode::Have { object, ballot, seq, full } if ballot == self.ballot => {
                shared.took(now, node, full);
                self.have(shared, now, i, object.index, seq, out);
            }
            FromNode::Gap { object, ballot, repair, .. } if ballot == self.ballot => {
                self.gap(shared, now, i, object.index, repair, out);
            }
            FromNode::Doubts { object, ballot, outvoted, disputed } if ballot == self.ballot => {
                self.doubts(now, i, object.index, outvoted, disputed);
                self.order_repairs(shared, now, out);
            }
            FromNode::NoSpace { object, ballot, seq } if ballot == self.ballot => {
                self.no_space(shared, now, i, (object.index, seq), out);
            }
            FromNode::Data { id, checksums, data, .. } => {
                self.data(shared, now, i, id, checksums, data, out);
            }
            FromNode::Bad { id, blocks, .. } => self.bad(shared, now, i, id, &blocks, out),
            FromNode::ReadRefused { id, .. } => self.read_refused(shared, now, i, id, out),
            FromNode::Confirmed { id, .. } => self.confirmed(shared, now, i, id, out),
            _ => {} // of an older ballot
        }
    }

    fn opened(&mut self, shared: &mut Shared, now: Time, i: usize, answer: Answer, out: &mut Vec<Output<P>>) {
        let settled = self.slots[i].settled;
        // 5.9: what a node has reported in this ballot, it must still have.
        if settled && answer.lost {
            return self.next_round(shared, now, out); // it knows, and has no vote
        }
        if !self.believes(shared, now, i, &answer, out) {
            return;
        }
        if settled && self.reports_less(i, &answer) {
            return shared.found_lost(self.slots[i].node, out); // and the next round, in every group
        }
        let slot = &mut self.slots[i];
        slot.link = Link::Opened;
        slot.answered = true;
        slot.answer = Some(answer);
        slot.not_believed = 0;
        match self.phase {
            Phase::Opening => self.decide_if_possible(shared, now, out),
            Phase::Decided if self.undecided > 0 && self.quorum(|_, s| s.answered) => {
                // It may have the votes that were missing. A ballot decides once: take another one.
                self.next_round(shared, now, out);
            }
            Phase::Decided => self.settle(shared, now, i, out),
            Phase::Closed => {}
        }
    }

    fn reports_less(&self, i: usize, answer: &Answer) -> bool {
        answer.settled != self.ballot
            || self.objects.iter().any(|(index, object)| answer.head(*index).seq < object.copies[i].have)
    }

    /// 5.2: the base of every object is the head of the greatest vote. Once per ballot.
    fn decide_if_possible(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if !choose::enough(&self.config, |node| self.answer_of(node)) {
            return;
        }
        let mut named: Vec<ObjectIndex> = self
            .slots
            .iter()
            .filter_map(|slot| slot.answer.as_ref())
            .flat_map(|a| a.objects.keys().copied())
            .collect();
        named.sort_unstable();
        named.dedup();
        let bases: Vec<(ObjectIndex, Option<Head>)> =
            named.into_iter().map(|index| (index, self.decide(index))).collect();
        // Not of one that is doubted: it has no vote, whatever it says.
        let may_come = |slot: &Slot| slot.link == Link::Opening && !self.is_doubted(shared, slot.node);
        let more_to_come = self.slots.iter().any(may_come);
        if more_to_come && bases.iter().any(|(_, base)| base.is_none()) {
            return; // copies were lost: wait for every node that may still answer
        }
        if self.waits_for_refusers(now) {
            return;
        }
        self.no_room.clear();
        self.phase = Phase::Decided;
        for (index, base) in bases {
            let object = match base {
                Some(base) => Object::new(base, true),
                None => {
                    self.undecided += 1;
                    Object::new(Head::ZERO, false)
                }
            };
            self.objects.insert(index, object);
            self.closed.insert(index);
        }
        for i in 0..self.slots.len() {
            if self.slots[i].link == Link::Opened {
                self.settle(shared, now, i, out);
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for op in waiting {
            self.submit(shared, now, op, out);
        }
    }

    /// What a node has answered in this ballot, until it is settled.
    fn answer_of(&self, node: NodeId) -> Option<&Answer> {
        self.slots.iter().find(|slot| slot.node == node)?.answer.as_ref()
    }

    /// 5.2 for one object: among those who had no room for it, if they are a quorum, else among all.
    fn decide(&self, index: ObjectIndex) -> Option<Head> {
        let mask = self.no_room.get(&index).copied().unwrap_or(0);
        let had_no_room = |node| {
            let (i, slot) = self.slots.iter().enumerate().find(|(_, slot)| slot.node == node)?;
            slot.answer.as_ref().filter(|_| mask & 1 << i != 0)
        };
        let of_these = if mask == 0 { None } else { choose::base(&self.config, had_no_room, index) };
        of_these.or_else(|| choose::base(&self.config, |node| self.answer_of(node), index))
    }

    /// 5.3 and 5.4: this node's own `except`, worked out now from its own answer; behind it the writes in
    /// flight which its copies in line lack.
    fn settle(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        let Some(answer) = self.slots[i].answer.take() else { return };
        // Objects that only this answer names: a quorum has decided that there is nothing in them.
        for index in answer.objects.keys() {
            if !self.objects.contains_key(index) {
                let fresh = self.fresh_object();
                self.objects.insert(*index, fresh);
                self.closed.insert(*index);
            }
        }
        let node = self.slots[i].node;
        let lost_all = answer.lost;
        #[cfg(feature = "deliberate-bugs")]
        let lost_all = lost_all || self.is_doubted(shared, node);
        let mut except = Vec::new();
        for (index, object) in &mut self.objects {
            let vote = answer.objects.get(index);
            let head = answer.head(*index);
            let lost = lost_all || vote.is_some_and(|vote| vote.behind == Some(Line::Lost));
            let nothing = head == Head::ZERO && object.base == Head::ZERO && object.acked == 0;
            if object.in_line(self.ballot, head) && (nothing || !lost) {
                object.copies[i].state = CopyState::InLine;
                object.copies[i].no_room = false;
                object.copies[i].have = object.copies[i].have.max(head.seq);
            } else {
                object.copies[i].state = CopyState::Except;
            }
            if object.copies[i].state == CopyState::Except {
                except.push(*index);
                if object.decided {
                    self.behind.insert((*index, i), now);
                }
            }
        }
        except.sort_unstable();
        self.forget_disputes_of(i);
        self.slots[i].link = Link::Settling;
        let msg = ToNode::Settle { group: self.id, ballot: self.ballot, except };
        shared.ask(now, node, msg, out);
        self.send_missing(shared, now, i, out);
        self.pay_owed(shared, now, out);
    }

    fn settled(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        self.slots[i].link = Link::Settled;
        self.slots[i].settled = true;
        self.round_after = self.round_after.max(now.after(ROUND_PAUSE_MIN));
        let look: Vec<ObjectIndex> = self.closed.iter().chain(&self.busy).copied().collect();
        for index in look {
            self.advance(shared, now, index, out);
            self.run_if_waiting(shared, now, index, out);
        }
        self.confirm_again(shared, now, i, out);
        self.confirm_acks(shared, now, out);
        self.order_repairs(shared, now, out);
        self.round_if_stuck(shared, now, out);
    }

    /// An object that no answer has named: a quorum says that nothing was ever written to it. A node
    /// that has answered agrees, or it would have been named.
    pub fn fresh_object(&self) -> Object<P> {
        let mut object = Object::new(Head::ZERO, true);
        for (i, slot) in self.slots.iter().enumerate() {
            if slot.answered && slot.answer.is_none() {
                object.copies[i].state = CopyState::InLine;
            }
        }
        object
    }

    /// 5.8: an object that cannot open because its only sources are gone, while a quorum is there.
    pub fn round_if_stuck(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if self.phase != Phase::Decided || self.closed.is_empty() || now < self.round_after {
            return;
        }
        if !self.quorum(|_, slot| slot.link == Link::Settled) {
            return;
        }
        let has_source = |object: &Object<P>| {
            self.slots
                .iter()
                .enumerate()
                .any(|(i, s)| s.live() && object.copies[i].state == CopyState::InLine)
        };
        let stuck =
            |index: &ObjectIndex| self.objects.get(index).is_some_and(|o| o.decided && !has_source(o));
        if self.closed.iter().any(stuck) || self.round_for_room(now) {
            self.next_round(shared, now, out);
        }
    }

    pub fn tick(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        for i in 0..self.slots.len() {
            if matches!(self.slots[i].link, Link::Refused(at) if at <= now) {
                self.open_slot(shared, now, i, out);
            }
        }
        if self.phase == Phase::Opening {
            self.decide_if_possible(shared, now, out);
        }
        if self.phase == Phase::Decided {
            if self.closed.is_empty() {
                self.round_pause = ROUND_PAUSE_MIN;
            }
            self.round_if_stuck(shared, now, out);
            self.order_repairs(shared, now, out);
            self.tick_reads(shared, now, out);
        }
    }

    /// Asks a node again that has shown not to be in this ballot, as after a lost connection (5.7): its
    /// answer tells whether there is a newer leader.
    pub fn reopen(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        if self.slots[i].link == Link::Settled {
            self.slot_down(shared, now, i, out);
            self.open_slot(shared, now, i, out);
        }
    }
}
