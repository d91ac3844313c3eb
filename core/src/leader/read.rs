//! 6.1 to 6.3: reads that are sent to nodes, and when what they brought may be used.
//!
//! Which node a read goes to is [`super::steer`]'s to say; when it goes to a second one, [`super::hedge`]'s.

use super::due::{Ticket, Waiting};
use super::group::{Group, Link, Phase};
use super::{NodeList, Output, Shared};
use crate::checksum::HOLE;
use crate::client::{ClientOp, OpError, OpId, OpKind, OpOutput};
use crate::ids::*;
use crate::message::ToNode;

/// A read of blocks of which each copy has only some waits this often for [`BAD_RETRY`], while the nodes
/// mend them from each other.
const BAD_RETRIES_MAX: u8 = 20;
/// See [`BAD_RETRIES_MAX`] (µs).
const BAD_RETRY: u64 = 100_000;

/// A read that was sent to a node.
#[derive(Debug)]
pub(super) struct Read<P> {
    pub op: ClientOp<P>,
    /// When it was sent first.
    pub began: Time,
    /// When it was sent to the node that it was sent to last; retried after this, if `asked` is 0.
    pub sent: Time,
    /// That node's slot.
    pub last: u8,
    /// Slots that an answer is awaited of.
    pub asked: u8,
    /// Slots that have answered without good bytes.
    pub failed: u8,
    /// Its place among the reads that may become late.
    pub due: Ticket,
    /// Blocks that are bad at every slot that has answered so far.
    bad: Option<Vec<u32>>,
    retries: u8,
    /// What came, if only a Confirm is still wanted.
    found: Option<(Box<[u64]>, P)>,
    /// A quorum has confirmed the ballot since the read arrived (6.3).
    confirmed: bool,
    /// Is in a round of Confirm, or will be in the next one.
    confirming: bool,
}

/// A round of Confirm under way.
#[derive(Debug)]
pub(super) struct Confirming {
    id: u64,
    /// Slots that have confirmed.
    got: u8,
    reads: Vec<u64>,
    /// Writes that are acknowledged when it is through.
    pub acks: Vec<OpId>,
}

impl<P: Clone + Default> Group<P> {
    /// Starts a read of an open object; gives it back if it has to wait.
    pub fn start_read(
        &mut self,
        shared: &mut Shared,
        now: Time,
        op: ClientOp<P>,
        out: &mut Vec<Output<P>>,
    ) -> Option<ClientOp<P>> {
        let blocks = op.kind.blocks();
        let object = self.objects.get(&op.object)?;
        if object.write_in_flight(blocks) {
            return Some(op);
        }
        if !self.disputed.is_empty() && self.is_disputed(op.object, blocks) {
            shared.done(op.id, Err(OpError::Bad), out); // P3: nothing is guessed
            return None;
        }
        if object.untouched() && shared.lease_holds(now) {
            // A quorum has said that nothing was ever written; under the lease nobody else has since.
            let checksums = vec![HOLE; blocks.count as usize].into_boxed_slice();
            shared.done(op.id, Ok(OpOutput::Read { checksums, data: P::default() }), out);
            return None;
        }
        let Some(choice) = self.choose(shared, now, op.object, 0) else { return Some(op) };
        let (object, first) = (op.object, blocks.first);
        let id = self.new_read(shared, now, op, choice.slot, out);
        if let Some(avoided) = choice.avoided {
            self.send_probe(shared, now, avoided, object, first, out);
        }
        if !shared.lease_holds(now) {
            self.want_confirm(shared, now, id, out);
        }
        None
    }

    pub fn new_read(
        &mut self,
        shared: &mut Shared,
        now: Time,
        op: ClientOp<P>,
        i: usize,
        out: &mut Vec<Output<P>>,
    ) -> u64 {
        let id = shared.next_id;
        shared.next_id += 1;
        shared.hedges.earn();
        let read = Read {
            op,
            began: now,
            sent: now,
            last: 0,
            asked: 0,
            failed: 0,
            due: Ticket::NONE,
            bad: None,
            retries: 0,
            found: None,
            confirmed: false,
            confirming: false,
        };
        self.reads.insert(id, read);
        self.send_read(shared, now, id, i, out);
        id
    }

    pub fn send_read(&mut self, shared: &mut Shared, now: Time, id: u64, i: usize, out: &mut Vec<Output<P>>) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        read.asked |= 1 << i;
        read.last = i as u8;
        read.sent = now;
        shared.due.remove(read.due);
        read.due = shared.due.push(Waiting { sent: now, pg: self.id.pg.pg, id });
        let node = self.slots[i].node;
        let peer = shared.peer(node);
        peer.reads += 1;
        peer.asked.get_or_insert(now);
        let object = ObjectId { group: self.id, index: read.op.object };
        let data = matches!(read.op.kind, OpKind::Read { .. });
        let msg = ToNode::Read { object, ballot: self.ballot, id, blocks: read.op.kind.blocks(), data };
        out.push(Output::Send { to: NodeList::one(node), msg });
    }

    /// Nothing is awaited of the nodes any more that a read was sent to.
    pub fn unsend(&self, shared: &mut Shared, read: &Read<P>) {
        shared.due.remove(read.due);
        for (_, slot) in self.slots.iter().enumerate().filter(|(i, _)| read.asked & 1 << i != 0) {
            let peer = shared.peer(slot.node);
            peer.reads = peer.reads.saturating_sub(1);
        }
    }

    /// Puts a read back: sent again it is a new read, and waits again.
    pub fn restart(&mut self, shared: &mut Shared, now: Time, id: u64, out: &mut Vec<Output<P>>) {
        let Some(read) = self.reads.remove(&id) else { return };
        self.unsend(shared, &read);
        let index = read.op.object;
        if self.probing.remove(&(index, id)).is_none() {
            return self.submit(shared, now, read.op, out);
        }
        // A write: those that wait for it must not go before it now.
        let Some(object) = self.objects.get_mut(&index) else {
            return self.submit(shared, now, read.op, out);
        };
        object.waiting.push_front(read.op);
        self.busy.insert(index);
        self.run_if_waiting(shared, now, index, out);
    }

    /// A node has answered: the read, if it is still wanted. How long it took is noted in any case.
    fn answered(&mut self, shared: &mut Shared, now: Time, i: usize, id: u64) -> Option<&mut Read<P>> {
        let limit = shared.hedge_delay();
        let peer = shared.peer(self.slots[i].node);
        let probe = peer.probed(now, id, limit);
        let read = self.reads.get_mut(&id).filter(|read| read.asked & 1 << i != 0)?;
        read.asked &= !(1 << i);
        peer.reads = peer.reads.saturating_sub(1);
        if !probe && usize::from(read.last) == i {
            peer.read_latency.record(now, now.since(read.sent));
        }
        Some(read)
    }

    /// A node will not answer any more.
    fn lost(&mut self, shared: &mut Shared, i: usize, id: u64) -> Option<&mut Read<P>> {
        let read = self.reads.get_mut(&id).filter(|read| read.asked & 1 << i != 0)?;
        read.asked &= !(1 << i);
        let peer = shared.peer(self.slots[i].node);
        peer.reads = peer.reads.saturating_sub(1);
        Some(read)
    }

    #[allow(clippy::too_many_arguments)]
    pub fn data(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        id: u64,
        checksums: Box<[u64]>,
        data: P,
        out: &mut Vec<Output<P>>,
    ) {
        let node = self.slots[i].node;
        let Some(read) = self.answered(shared, now, i, id) else { return };
        if checksums.len() != read.op.kind.blocks().count as usize {
            return shared.reset(node, "it answers a read with another number of blocks");
        }
        if read.op.kind.is_write() {
            let holes = checksums.contains(&HOLE);
            return self.probed(shared, now, id, holes, out);
        }
        let mut won = false;
        if read.found.is_none() {
            read.found = Some((checksums, data));
            shared.due.remove(std::mem::replace(&mut read.due, Ticket::NONE));
            if matches!(read.op.kind, OpKind::Read { .. }) {
                shared.read_latency.record(now, now.since(read.began));
            }
            won = read.asked != 0 && usize::from(read.last) == i;
        }
        // 6.2: the clock is looked at after the answer has arrived.
        let usable = shared.lease_holds(now) || read.confirmed;
        self.counters.hedge_wins += u64::from(won);
        if usable {
            self.finish_read(shared, id, out);
        } else {
            self.want_confirm(shared, now, id, out);
        }
    }

    fn finish_read(&mut self, shared: &mut Shared, id: u64, out: &mut Vec<Output<P>>) {
        let Some(mut read) = self.reads.remove(&id) else { return };
        self.unsend(shared, &read);
        if let Some((checksums, data)) = read.found.take() {
            shared.done(read.op.id, Ok(OpOutput::Read { checksums, data }), out);
        }
    }

    /// Some blocks are bad at this node: try the other whole copies, then fail. Nothing is guessed.
    pub fn bad(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        id: u64,
        blocks: &[u32],
        out: &mut Vec<Output<P>>,
    ) {
        let Some(read) = self.answered(shared, now, i, id) else { return };
        if read.op.kind.is_write() {
            return self.probed(shared, now, id, false, out);
        }
        read.failed |= 1 << i;
        match &mut read.bad {
            None => read.bad = Some(blocks.to_vec()),
            Some(bad) => bad.retain(|block| blocks.contains(block)),
        }
        let (index, range, not) = (read.op.object, read.op.kind.blocks(), read.failed | read.asked);
        if read.asked != 0 || read.found.is_some() {
            return;
        }
        // To another node it is a new read: it must not overtake a write that has come since.
        if self.objects.get(&index).is_some_and(|object| object.write_in_flight(range)) {
            return self.restart(shared, now, id, out);
        }
        if let Some(next) = self.pick(shared, now, index, not) {
            return self.send_read(shared, now, id, next, out);
        }
        let Some(read) = self.reads.get_mut(&id) else { return };
        if read.bad.as_ref().is_some_and(Vec::is_empty) && read.retries < BAD_RETRIES_MAX {
            // Each block is good somewhere: the nodes are mending them from each other.
            read.retries += 1;
            read.sent = now;
            shared.due.remove(std::mem::replace(&mut read.due, Ticket::NONE));
            if !self.mending.contains(&id) {
                self.mending.push(id);
            }
            return;
        }
        if let Some(read) = self.reads.remove(&id) {
            self.unsend(shared, &read);
            shared.done(read.op.id, Err(OpError::Bad), out);
        }
    }

    pub fn read_refused(
        &mut self,
        shared: &mut Shared,
        now: Time,
        i: usize,
        id: u64,
        out: &mut Vec<Output<P>>,
    ) {
        let confirm = self.confirming.as_ref().is_some_and(|confirming| confirming.id == id);
        let probe = shared.peer(self.slots[i].node).probe.is_some_and(|(probe, _)| probe == id);
        if self.answered(shared, now, i, id).is_none() && !confirm && !probe {
            return;
        }
        // The node is not in this ballot, or not in line, after all. Ask it: 5.7.
        self.reopen(shared, now, i, out);
        if !confirm && self.reads.get(&id).is_some_and(|read| read.asked == 0 && read.found.is_none()) {
            self.restart(shared, now, id, out);
        }
    }

    /// The node that reads were sent to is gone.
    pub fn reads_lose_slot(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        let mut lost: Vec<u64> =
            self.reads.iter().filter(|(_, read)| read.asked & 1 << i != 0).map(|(id, _)| *id).collect();
        lost.sort_unstable();
        for id in lost {
            if self.lost(shared, i, id).is_some_and(|read| read.asked == 0 && read.found.is_none()) {
                self.restart(shared, now, id, out);
            }
        }
    }

    /// Reads whose blocks are being mended ask everybody again.
    fn ask_again(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        let mut mending = std::mem::take(&mut self.mending);
        mending.retain(|id| {
            let Some(read) = self.reads.get_mut(id) else { return false };
            if read.asked != 0 || read.found.is_some() {
                return false;
            }
            let (index, range) = (read.op.object, read.op.kind.blocks());
            if now.since(read.sent) <= BAD_RETRY
                || self.objects.get(&index).is_none_or(|object| object.write_in_flight(range))
            {
                return true;
            }
            read.failed = 0;
            let Some(i) = self.pick(shared, now, index, 0) else { return true };
            self.send_read(shared, now, *id, i, out);
            false
        });
        self.mending = mending;
    }

    /// What reads have to be looked at for now and then, whether they are late or not.
    pub fn tick_reads(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if !self.mending.is_empty() {
            self.ask_again(shared, now, out);
        }
        // Reads that found no node to ask: one may have become level without anything being reported.
        let waiting: Vec<ObjectIndex> = self
            .busy
            .iter()
            .filter(|index| self.objects.get(index).is_some_and(|o| o.open && !o.waiting.is_empty()))
            .copied()
            .collect();
        for index in waiting {
            self.run_waiting(shared, now, index, out);
        }
    }

    /// 6.3: this read may be used when a quorum has confirmed the ballot, asked after the read arrived.
    fn want_confirm(&mut self, shared: &mut Shared, now: Time, id: u64, out: &mut Vec<Output<P>>) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        if std::mem::replace(&mut read.confirming, true) {
            return;
        }
        self.counters.confirms += 1;
        self.confirm_next.push(id);
        if self.confirming.is_none() {
            self.start_confirm(shared, now, out);
        }
    }

    fn start_confirm(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        let id = shared.next_id;
        shared.next_id += 1;
        let reads = std::mem::take(&mut self.confirm_next);
        let acks = std::mem::take(&mut self.acks_next);
        self.confirming = Some(Confirming { id, got: 0, reads, acks });
        for i in 0..self.slots.len() {
            self.send_confirm(shared, now, i, id, out);
        }
    }

    fn send_confirm(&mut self, shared: &mut Shared, now: Time, i: usize, id: u64, out: &mut Vec<Output<P>>) {
        let slot = &self.slots[i];
        if slot.link == Link::Settled && slot.member {
            shared.ask(now, slot.node, ToNode::Confirm { group: self.id, ballot: self.ballot, id }, out);
        }
    }

    /// A node has settled: a round of Confirm that waits may need it.
    pub fn confirm_again(&mut self, shared: &mut Shared, now: Time, i: usize, out: &mut Vec<Output<P>>) {
        if let Some(id) = self.confirming.as_ref().map(|confirming| confirming.id) {
            self.send_confirm(shared, now, i, id, out);
        }
    }

    pub fn confirmed(&mut self, shared: &mut Shared, now: Time, i: usize, id: u64, out: &mut Vec<Output<P>>) {
        let Some(confirming) = self.confirming.as_mut().filter(|confirming| confirming.id == id) else {
            return;
        };
        confirming.got |= 1 << i;
        let got = confirming.got;
        if !self.quorum(|i, _| got & 1 << i != 0) {
            return;
        }
        let Some(Confirming { reads, acks, .. }) = self.confirming.take() else { return };
        for id in acks {
            // Durable: a quorum has reported it, and a quorum has said since that no newer leader was
            // there yet.
            shared.done(id, Ok(OpOutput::Written), out);
        }
        for id in reads {
            let Some(read) = self.reads.get_mut(&id) else { continue };
            read.confirmed = true;
            if read.found.is_some() {
                self.finish_read(shared, id, out);
            }
        }
        self.confirm_acks(shared, now, out);
        if !self.confirm_next.is_empty() && self.confirming.is_none() {
            self.start_confirm(shared, now, out);
        }
    }

    /// Has a quorum confirm writes that no lease lets be acknowledged at once.
    ///
    /// Such a write is durable, and safe: whoever leads next finds it. But a front end that was stopped
    /// and goes on finds answers in its sockets from before it was replaced, and must not acknowledge
    /// anything after its successor has attached (P4).
    pub fn confirm_acks(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if self.acks_next.is_empty() {
            return;
        }
        if shared.lease_holds(now) {
            for id in std::mem::take(&mut self.acks_next) {
                shared.done(id, Ok(OpOutput::Written), out);
            }
        } else if self.confirming.is_none() && self.phase == Phase::Decided {
            self.start_confirm(shared, now, out);
        }
    }
}
