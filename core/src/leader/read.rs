//! 6.1 to 6.3: from whom a read is taken, and when what it brought may be used.

use super::group::{Group, Link, Phase};
use super::object::CopyState;
use super::{NodeList, Output, Shared};
use crate::checksum::HOLE;
use crate::client::{ClientOp, OpError, OpId, OpKind, OpOutput};
use crate::ids::*;
use crate::message::ToNode;

/// How long a node that was late with a read is avoided (µs).
const SLOW_FOR: u64 = 1_000_000;
/// A read of blocks of which each copy has only some waits this often for [`BAD_RETRY`], while the nodes
/// mend them from each other.
const BAD_RETRIES_MAX: u8 = 20;
/// See [`BAD_RETRIES_MAX`] (µs).
const BAD_RETRY: u64 = 100_000;

/// A read that was sent to a node.
#[derive(Debug)]
pub(super) struct Read<P> {
    pub op: ClientOp<P>,
    /// When it was sent to the node that it was sent to last; retried after this, if `asked` is 0.
    sent: Time,
    /// Slots that an answer is awaited of.
    asked: u8,
    /// Slots that have answered without good bytes.
    failed: u8,
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
        if object.untouched() && shared.lease_holds(now) {
            // A quorum has said that nothing was ever written; under the lease nobody else has since.
            let checksums = vec![HOLE; blocks.count as usize].into_boxed_slice();
            shared.done(op.id, Ok(OpOutput::Read { checksums, data: P::default() }), out);
            return None;
        }
        let Some(i) = self.pick(shared, now, op.object, 0) else { return Some(op) };
        let id = self.new_read(shared, now, op, i, out);
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
        let read = Read {
            op,
            sent: now,
            asked: 0,
            failed: 0,
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

    /// 6.1: a node that is connected and settled, holds the object whole, and has reported everything
    /// that was acknowledged; of these the one with the least to do.
    pub fn pick(&self, shared: &Shared, now: Time, index: ObjectIndex, not: u8) -> Option<usize> {
        let object = self.objects.get(&index)?;
        let fits = |(i, slot): &(usize, &super::group::Slot)| {
            slot.link == Link::Settled
                && slot.settled
                && object.copies[*i].state == CopyState::InLine
                && object.copies[*i].have >= object.acked
                && not & 1 << i == 0
        };
        let load = |i: usize, node: NodeId| {
            let peer = shared.peers.get(&node);
            let slow = peer.is_some_and(|peer| peer.slow_until > now);
            // Objects are spread over their copies, so that each node's caches hold other ones.
            let turn = (index as usize + i) % self.slots.len();
            (slow, peer.map_or(0, |peer| peer.reads), turn)
        };
        self.slots.iter().enumerate().filter(fits).min_by_key(|(i, slot)| load(*i, slot.node)).map(|(i, _)| i)
    }

    fn send_read(&mut self, shared: &mut Shared, now: Time, id: u64, i: usize, out: &mut Vec<Output<P>>) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        read.asked |= 1 << i;
        read.sent = now;
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
        for (_, slot) in self.slots.iter().enumerate().filter(|(i, _)| read.asked & 1 << i != 0) {
            let peer = shared.peer(slot.node);
            peer.reads = peer.reads.saturating_sub(1);
        }
    }

    /// Puts a read back: sent again it is a new read, and waits again.
    fn restart(&mut self, shared: &mut Shared, now: Time, id: u64, out: &mut Vec<Output<P>>) {
        if let Some(read) = self.reads.remove(&id) {
            self.unsend(shared, &read);
            self.submit(shared, now, read.op, out);
        }
    }

    fn answered(&mut self, shared: &mut Shared, i: usize, id: u64) -> Option<&mut Read<P>> {
        let node = self.slots[i].node;
        let read = self.reads.get_mut(&id).filter(|read| read.asked & 1 << i != 0)?;
        read.asked &= !(1 << i);
        let peer = shared.peer(node);
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
        let Some(read) = self.answered(shared, i, id) else { return };
        if checksums.len() != read.op.kind.blocks().count as usize {
            return shared.reset(node, "it answers a read with another number of blocks");
        }
        if read.op.kind.is_write() {
            let holes = checksums.contains(&HOLE);
            return self.probed(shared, now, id, holes, out);
        }
        if read.found.is_none() {
            read.found = Some((checksums, data));
        }
        // 6.2: the clock is looked at after the answer has arrived.
        if shared.lease_holds(now) || read.confirmed {
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
        let Some(read) = self.answered(shared, i, id) else { return };
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
            return;
        }
        let op = read.op.id;
        self.reads.remove(&id);
        shared.done(op, Err(OpError::Bad), out);
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
        if !confirm && self.answered(shared, i, id).is_none() {
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
            if self.answered(shared, i, id).is_some_and(|read| read.asked == 0 && read.found.is_none()) {
                self.restart(shared, now, id, out);
            }
        }
    }

    /// Hedging: a read whose node is late is sent to another one too, if nothing has been written over
    /// it since.
    pub fn tick_reads(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        let after = shared.options.hedge_after;
        let late = |read: &Read<P>| {
            read.found.is_none() && now.since(read.sent) > if read.asked == 0 { BAD_RETRY } else { after }
        };
        let mut ids: Vec<u64> = self.reads.iter().filter(|(_, read)| late(read)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            let Some(read) = self.reads.get_mut(&id) else { continue };
            if read.asked == 0 {
                read.failed = 0; // asks everybody again
            }
            let (index, range, not) = (read.op.object, read.op.kind.blocks(), read.failed | read.asked);
            let asked = read.asked;
            read.sent = now;
            if self.objects.get(&index).is_none_or(|object| object.write_in_flight(range)) {
                continue;
            }
            for (_, slot) in self.slots.iter().enumerate().filter(|(i, _)| asked & 1 << i != 0) {
                shared.peer(slot.node).slow_until = now.after(SLOW_FOR);
            }
            if let Some(i) = self.pick(shared, now, index, not) {
                self.counters.hedged += u64::from(asked != 0);
                self.send_read(shared, now, id, i, out);
            }
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
