//! N4: a copy pulls what differs, on a leader's word.
//!
//! The old copy stays as it is until the end: the pieces, and the writes that came meanwhile, are
//! installed in one durable record. A repair that cannot go on is given up, and the leader is told
//! with a Gap; it orders another one, from another source if need be.

use super::budget::{PIECE_COST, Way};
use super::paced::{Done, cost};
use super::{ConnId, Node, Output, ReadMode, ReadResult, Reading};
use crate::checksum::{HOLE, UNKNOWN};
use crate::ids::*;
use crate::limits::*;
use crate::message::{FETCH_URGENT, FromNode, Line, PeerMsg, WriteOp};
use crate::record::{GroupState, Patch, Record};
use crate::scrub::{Doubt, Mark, doubt_of};
use std::collections::BTreeMap;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for one of the [`NODE_REPAIRS_MAX`] places.
    Queued,
    /// Waits until the budget has enough for the next piece.
    Paced,
    /// Reads its own table.
    Table { token: u64 },
    /// Has asked the source for the piece from `next` on.
    Fetching { request: u64 },
    /// The source was not ready; asks again at the next tick.
    Again,
    /// Has all pieces; waits for the writes up to the greatest head that it has seen.
    Catching,
}

/// One repair.
#[derive(Debug)]
pub(super) struct Repair<P> {
    pub conn: ConnId,
    pub ballot: Ballot,
    pub from: NodeId,
    pub upto: u64,
    pub object_blocks: u32,
    /// A client waits for it.
    pub urgent: bool,
    /// When it began, among all of them.
    begun: u64,
    /// Bytes of the budget that the piece under way has taken.
    taken: u64,
    pub phase: Phase,
    /// Ticks since the last progress.
    waited: u32,
    /// Checksums of the old copy, one for each block of the object.
    have: Box<[u64]>,
    /// The first block that has not been fetched.
    next: u32,
    /// The least and the greatest head among the pieces.
    heads: Option<(Head, Head)>,
    patches: Vec<Patch<P>>,
    /// Writes kept on top, by number.
    overlay: BTreeMap<u64, WriteOp<P>>,
    overlay_bytes: usize,
    /// What will be in doubt of the copy, as far as it was fetched.
    doubts: Vec<Mark>,
    /// Blocks that differ and stay as they are here, with the source's checksums: in the piece that was asked
    /// for last, they were said to be equal.
    keep: Vec<(u32, u64)>,
}

/// A block of the copy takes room: it is no hole. A bad one counts as if it were good: its bytes may be
/// found again.
fn is_there(sum: u64) -> bool {
    sum != HOLE && sum != UNKNOWN
}

impl<P> Repair<P> {
    /// Blocks that the pieces fetched so far, and these writes behind them, add to the old copy; what they
    /// give back taken off.
    fn adds(&self, writes: &[WriteOp<P>]) -> u64 {
        let before: Vec<bool> = self.have.iter().map(|sum| is_there(*sum)).collect();
        let mut after = before.clone();
        let mut set = |block: u32, there: bool| {
            if after.len() <= block as usize {
                after.resize(block as usize + 1, false);
            }
            after[block as usize] = there;
        };
        for patch in &self.patches {
            patch.blocks.iter().for_each(|(block, sum)| set(*block, *sum != HOLE));
            patch.bad.iter().for_each(|(block, sum)| set(*block, is_there(*sum)));
        }
        for op in writes {
            let blocks = op.blocks();
            (blocks.first..blocks.end()).for_each(|block| set(block, matches!(op, WriteOp::Data { .. })));
        }
        let count = |of: &[bool]| of.iter().filter(|there| **there).count() as u64;
        count(&after).saturating_sub(count(&before))
    }
}

impl<P: Clone> Node<P> {
    pub(super) fn order_repair(
        &mut self,
        conn: ConnId,
        object: ObjectId,
        ballot: Ballot,
        (from, upto, object_blocks, urgent): (NodeId, u64, u32, bool),
        out: &mut Vec<Output<P>>,
    ) {
        if urgent && self.hurry(conn, object, ballot, (from, upto, object_blocks), out) {
            return;
        }
        self.drop_repair(object);
        let unknown = |state: &GroupState| !state.objects.contains_key(&object.index);
        let more = |state: &GroupState| unknown(state) && state.objects.len() >= GROUP_OBJECTS_MAX;
        if self.repairs.len() >= NODE_REPAIR_QUEUE_MAX || self.group(object.group).is_some_and(more) {
            return self.tell_given_up(conn, object, ballot, out);
        }
        if !urgent && !self.takes_on(object_blocks) {
            return self.put_off(conn, object, ballot, out);
        }
        self.background += usize::from(!urgent);
        let repair = Repair {
            conn,
            ballot,
            from,
            upto,
            object_blocks,
            urgent,
            begun: 0,
            taken: 0,
            phase: Phase::Queued,
            waited: 0,
            have: Box::default(),
            next: 0,
            heads: None,
            patches: Vec::new(),
            overlay: BTreeMap::new(),
            overlay_bytes: 0,
            doubts: Vec::new(),
            keep: Vec::new(),
        };
        self.repairs.insert(object, repair);
        if urgent {
            self.repair_queue.push_front(object);
        } else {
            self.repair_queue.push_back(object);
        }
        self.start_repairs(out);
    }

    pub(super) fn start_repairs(&mut self, out: &mut Vec<Output<P>>) {
        while let Some(object) = self.repair_queue.front().copied() {
            let running = self.repairs.len() - self.repair_queue.len();
            let urgent = self.repairs.get(&object).is_some_and(|repair| repair.urgent);
            let more = if urgent { NODE_REPAIRS_URGENT_MAX } else { 0 };
            if running >= NODE_REPAIRS_MAX + more {
                return;
            }
            self.repair_queue.pop_front();
            let Some(repair) = self.repairs.get_mut(&object) else { continue };
            self.begun += 1;
            repair.begun = self.begun;
            repair.phase = Phase::Table { token: self.next_token };
            let blocks = BlockRange::new(0, repair.object_blocks);
            self.read(Reading::Table { object }, object, blocks, ReadMode::ChecksumsOnly, out);
        }
    }

    pub(super) fn table_read(
        &mut self,
        object: ObjectId,
        token: u64,
        found: ReadResult<P>,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(repair) = self.repairs.get_mut(&object) else { return };
        // The answer for a repair that was dropped and ordered anew may be older than the copy is now:
        // what differs must be worked out against the copy that the pieces will be laid on.
        if repair.phase != (Phase::Table { token }) || found.checksums.len() != repair.object_blocks as usize
        {
            return;
        }
        repair.have = found.checksums;
        // Nothing is there that could be written over or given back: not worth a fetch.
        if self.room == 0 && !repair.have.iter().any(|sum| is_there(*sum)) {
            return self.refuse_for_room(object, out);
        }
        self.fetch_next(object, out);
    }

    /// The repair would add more blocks than there is room for. Its leader is told and orders it again
    /// later; the copy stays as it is.
    fn refuse_for_room(&mut self, object: ObjectId, out: &mut Vec<Output<P>>) {
        let Some(repair) = self.take_repair(object) else { return };
        self.counters.no_space += 1;
        self.counters.repairs_failed += 1;
        let (ballot, seq) = (repair.ballot, repair.upto);
        self.hold_leader(repair.conn, FromNode::NoSpace { object, ballot, seq }, out);
        self.start_repairs(out);
    }

    pub(super) fn fetch_next(&mut self, object: ObjectId, out: &mut Vec<Output<P>>) {
        let Some(repair) = self.repairs.get_mut(&object) else { return };
        if repair.next >= repair.object_blocks {
            repair.phase = Phase::Catching;
            return self.finish_if_level(object, out);
        }
        let blocks = BlockRange::new(repair.next, PIECE_BLOCKS_MAX.min(repair.object_blocks - repair.next));
        // What is kept on top must not overflow while it waits: it would have been for nothing.
        let fills = repair.overlay_bytes > REPAIR_OVERLAY_BYTES_MAX / 2
            || repair.overlay.len() > REPAIR_OVERLAY_OPS_MAX / 2;
        let (begun, at_once) = (repair.begun, repair.urgent || fills);
        let cost = cost(blocks);
        if at_once {
            self.budget.take_at_once(self.now, Way::In, cost);
        } else if self.paced.first().is_some_and(|first| first.0 < begun)
            || !self.budget.take(self.now, Way::In, cost)
        {
            repair.phase = Phase::Paced;
            let at = self.paced.partition_point(|other| other.0 < begun);
            return self.paced.insert(at, (begun, object));
        }
        repair.taken = cost;
        let request = self.next_token | if repair.urgent { FETCH_URGENT } else { 0 };
        self.next_token += 1;
        repair.phase = Phase::Fetching { request };
        repair.waited = 0;
        let mut have: Box<[u64]> = repair.have[blocks.first as usize..blocks.end() as usize].into();
        for (block, sum) in &repair.keep {
            have[(block - blocks.first) as usize] = *sum; // of this piece: emptied behind each
        }
        let (ballot, min) = (repair.ballot, repair.upto);
        let msg = PeerMsg::Fetch { object, ballot, request, min, blocks, have };
        out.push(Output::ToPeer { node: repair.from, msg });
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn piece(
        &mut self,
        node: NodeId,
        object: ObjectId,
        (ballot, request, head): (Ballot, u64, Head),
        blocks: BlockRange,
        (checksums, bad, doubts): (&[u64], &[u32], &[(u32, Doubt)]),
        data: P,
        out: &mut Vec<Output<P>>,
    ) {
        // At one head the copies are one content, and only what is not to be trusted here is replaced: a
        // source must not be able to spread what nobody has compared yet.
        let state = self.group(object.group);
        let kept = state.and_then(|state| {
            let lost = state.lost || state.behind.get(&object.index) == Some(&Line::Lost);
            state.objects.get(&object.index).filter(|mine| **mine == head && !lost)
        });
        let (marks, same_head) =
            (state.map_or_else(Vec::new, |state| state.marks(object.index).to_vec()), kept.is_some());
        let Some(repair) = self.repairs.get_mut(&object) else { return };
        let want = BlockRange::new(repair.next, PIECE_BLOCKS_MAX.min(repair.object_blocks - repair.next));
        let fits = repair.phase == Phase::Fetching { request }
            && (repair.from, repair.ballot) == (node, ballot)
            && blocks == want
            && checksums.len() == blocks.count as usize
            && head.seq >= repair.upto;
        if !fits {
            return;
        }
        // What is kept must not be sent: the source is asked again, as if these were equal.
        let claims = || (blocks.first..).zip(checksums);
        let theirs = |block| doubts.iter().find(|(marked, _)| *marked == block).map(|(_, doubt)| *doubt);
        let stays = |(block, sum): &(u32, &u64)| {
            let (have, mine) = (repair.have[*block as usize], doubt_of(&marks, *block));
            let replaced = mine == Some(Doubt::Outvoted) && theirs(*block).is_none();
            same_head && have != UNKNOWN && have != **sum && !replaced
        };
        let keep: Vec<(u32, u64)> = claims().filter(stays).map(|(block, sum)| (block, *sum)).collect();
        if keep != repair.keep {
            repair.keep = keep;
            let waited = repair.waited;
            self.fetch_next(object, out);
            if let Some(repair) = self.repairs.get_mut(&object) {
                repair.waited = waited; // asking again is no progress
            }
            return;
        }
        let keep = std::mem::take(&mut repair.keep);
        let mut patch = Patch { blocks: Vec::new(), data, bad: Vec::new() };
        for (block, sum) in claims() {
            let (have, mine) = (repair.have[block as usize], doubt_of(&marks, block));
            let kept = keep.iter().any(|(kept, _)| *kept == block);
            // Equal at one head, without a doubt here: a witness of its own.
            let doubt = match (kept, mine) {
                (true, mine) => mine,
                (false, None) if same_head && have == *sum => None,
                (false, _) => theirs(block),
            };
            repair.doubts.extend(doubt.map(|doubt| Mark {
                block,
                doubt,
                checksum: if kept { have } else { *sum },
            }));
            if kept || have == *sum {
                continue;
            }
            if bad.contains(&block) && *sum != HOLE {
                patch.bad.push((block, *sum));
            } else {
                patch.blocks.push((block, *sum));
            }
        }
        let came = patch.blocks.iter().filter(|b| b.1 != HOLE).count() as u64;
        let spent = came * BLOCK_SIZE as u64 + PIECE_COST;
        self.budget.give_back(Way::In, std::mem::take(&mut repair.taken).saturating_sub(spent));
        self.counters.repair_blocks += came;
        if !patch.blocks.is_empty() || !patch.bad.is_empty() {
            repair.patches.push(patch);
        }
        repair.heads = Some(match repair.heads {
            None => (head, head),
            Some((least, greatest)) => (least.min(head), greatest.max(head)),
        });
        repair.next = blocks.end();
        // Even if everything behind this piece were given back: the rest need not be fetched.
        let rest = repair.have[repair.next as usize..].iter().filter(|sum| is_there(**sum)).count() as u64;
        if repair.adds(&[]) > self.room.saturating_add(rest) {
            return self.refuse_for_room(object, out);
        }
        self.fetch_next(object, out);
    }

    pub(super) fn not_yet(&mut self, node: NodeId, object: ObjectId, request: u64) {
        if let Some(repair) = self.repairs.get_mut(&object)
            && repair.from == node
            && repair.phase == (Phase::Fetching { request })
        {
            repair.phase = Phase::Again;
            self.budget.give_back(Way::In, std::mem::take(&mut repair.taken));
        }
    }

    /// A write to a copy under repair: kept on top, within limits. At the limit the repair is given up.
    pub(super) fn keep_on_top(
        &mut self,
        object: ObjectId,
        seq: u64,
        op: WriteOp<P>,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(repair) = self.repairs.get_mut(&object) else { return };
        if seq <= repair.upto {
            return;
        }
        if repair.phase == Phase::Queued {
            // Nothing was fetched yet: as if it had been ordered behind this write. However long it waits, it
            // keeps nothing.
            repair.upto = seq;
            return;
        }
        let bytes = op.data_blocks() as usize * BLOCK_SIZE;
        if repair.overlay_bytes + bytes > REPAIR_OVERLAY_BYTES_MAX
            || repair.overlay.len() >= REPAIR_OVERLAY_OPS_MAX
            || self.overlay_bytes + bytes > NODE_OVERLAY_BYTES_MAX
        {
            return self.give_up(object, out);
        }
        if repair.overlay.insert(seq, op).is_none() {
            repair.overlay_bytes += bytes;
            self.overlay_bytes += bytes;
        }
        self.finish_if_level(object, out);
    }

    /// The end of N4: complete when what was kept on top goes from m + 1 to at least M without a gap.
    fn finish_if_level(&mut self, object: ObjectId, out: &mut Vec<Output<P>>) {
        let Some(repair) = self.repairs.get(&object).filter(|repair| repair.phase == Phase::Catching) else {
            return;
        };
        let Some((least, greatest)) = repair.heads else { return };
        let last =
            (least.seq + 1..).take_while(|seq| repair.overlay.contains_key(seq)).last().unwrap_or(least.seq);
        if last < greatest.seq {
            return;
        }
        // `b == promised` still: every Open cancels the group's repairs, so that one which is here is of
        // the promised ballot. Looked at all the same: this is the line between a repair and a lost write.
        if !self.leads(object.group, repair.ballot) {
            return self.drop_repair(object);
        }
        let head = if last > least.seq { Head { ballot: repair.ballot, seq: last } } else { greatest };
        let Some(repair) = self.repairs.get_mut(&object) else { return };
        let mut rest = std::mem::take(&mut repair.overlay).split_off(&(least.seq + 1));
        rest.retain(|seq, _| *seq <= last);
        let writes: Vec<WriteOp<P>> = rest.into_values().collect();
        let adds = repair.adds(&writes);
        if adds > self.room || self.growth == Some(u32::MAX) {
            return self.refuse_for_room(object, out);
        }
        let marks = self.marks_after(object, &writes);
        if !marks.is_empty() && !self.may_mark(object) {
            return self.give_up(object, out); // no place for doubts that it would bring
        }
        let Some(repair) = self.take_repair(object) else { return };
        let (conn, ballot) = (repair.conn, repair.ballot);
        self.counters.repairs_done += 1;
        self.damaged.remove(&object);
        self.note_done(Done { object, ballot, upto: repair.upto });
        // A crash in between must leave too much in doubt rather than too little.
        let old = self.group(object.group).map_or_else(Vec::new, |state| state.marks(object.index).to_vec());
        let mut all = marks.clone();
        all.extend(old.iter().filter(|mark| doubt_of(&marks, mark.block).is_none()));
        all.sort_unstable();
        if all != old {
            self.persist(Record::Doubt { object, marks: all }, out);
        }
        let is_mended =
            |mark: &&Mark| mark.doubt == Doubt::Outvoted && doubt_of(&marks, mark.block).is_none();
        self.counters.scrub_mended += old.iter().filter(is_mended).count() as u64;
        let told = !old.is_empty() || !marks.is_empty();
        let record = Record::Install { object, head, patches: repair.patches, writes };
        // Not more than the blocks of an object, which are few.
        self.persist_adding(record, adds as u32, out);
        if self.group(object.group).is_some_and(|state| state.marks(object.index) != marks) {
            self.persist(Record::Doubt { object, marks }, out);
        }
        if told {
            self.tell_doubts(conn, object, out);
        }
        // Held until the whole repair is durable, in its one record.
        self.hold_leader(conn, FromNode::Have { object, ballot, seq: head.seq, full: self.full }, out);
        self.start_repairs(out);
    }

    /// What will be in doubt of the copy when the pieces and these writes are installed.
    fn marks_after(&self, object: ObjectId, writes: &[WriteOp<P>]) -> Vec<Mark> {
        let Some(repair) = self.repairs.get(&object) else { return Vec::new() };
        let written = |mark: &Mark| {
            let block = BlockRange::new(mark.block, 1);
            writes.iter().any(|op| op.blocks().contains(block))
        };
        repair.doubts.iter().filter(|mark| !written(mark)).copied().collect()
    }

    pub(super) fn tick_repairs(&mut self, out: &mut Vec<Output<P>>) {
        let mut again = Vec::new();
        let mut late = Vec::new();
        for (object, repair) in &mut self.repairs {
            if matches!(repair.phase, Phase::Queued | Phase::Paced) {
                continue;
            }
            repair.waited += 1;
            if repair.waited > REPAIR_WAIT_TICKS_MAX {
                late.push(*object);
            } else if repair.phase == Phase::Again {
                again.push(*object);
            }
        }
        for object in late {
            self.give_up(object, out);
        }
        for object in again {
            let waited = self.repairs.get(&object).map_or(0, |repair| repair.waited);
            self.fetch_next(object, out);
            if let Some(repair) = self.repairs.get_mut(&object) {
                repair.waited = waited; // asking again is no progress
            }
        }
    }

    /// The source of repairs is gone.
    pub(super) fn repairs_lose_source(&mut self, node: NodeId, out: &mut Vec<Output<P>>) {
        let lost: Vec<ObjectId> = self
            .repairs
            .iter()
            .filter(|(_, r)| r.from == node && matches!(r.phase, Phase::Fetching { .. } | Phase::Again))
            .map(|(object, _)| *object)
            .collect();
        for object in lost {
            self.give_up(object, out);
        }
    }

    fn give_up(&mut self, object: ObjectId, out: &mut Vec<Output<P>>) {
        if let Some(repair) = self.take_repair(object) {
            self.tell_given_up(repair.conn, object, repair.ballot, out);
            self.start_repairs(out);
        }
    }

    pub(super) fn tell_given_up(
        &mut self,
        conn: ConnId,
        object: ObjectId,
        ballot: Ballot,
        out: &mut Vec<Output<P>>,
    ) {
        self.counters.repairs_failed += 1;
        self.tell_not_repaired(conn, object, ballot, out);
    }

    /// The copy is as it was; the leader is to order its repair again.
    pub(super) fn tell_not_repaired(
        &mut self,
        conn: ConnId,
        object: ObjectId,
        ballot: Ballot,
        out: &mut Vec<Output<P>>,
    ) {
        let head =
            self.group(object.group).and_then(|g| g.objects.get(&object.index)).copied().unwrap_or_default();
        self.hold_leader(conn, FromNode::Gap { object, ballot, head, repair: true }, out);
    }

    /// Drops a group's repairs and what they kept on top, without a word: its leader opens it anew.
    pub(super) fn cancel_repairs(&mut self, group: GroupId) {
        let first = ObjectId { group, index: 0 };
        let last = ObjectId { group, index: ObjectIndex::MAX };
        let objects: Vec<ObjectId> = self.repairs.range(first..=last).map(|(object, _)| *object).collect();
        for object in objects {
            self.drop_repair(object);
        }
    }

    fn drop_repair(&mut self, object: ObjectId) {
        self.take_repair(object);
    }

    fn take_repair(&mut self, object: ObjectId) -> Option<Repair<P>> {
        let repair = self.repairs.remove(&object)?;
        self.overlay_bytes -= repair.overlay_bytes;
        self.background -= usize::from(!repair.urgent);
        match repair.phase {
            Phase::Queued => self.repair_queue.retain(|queued| *queued != object),
            Phase::Paced => self.paced.retain(|paced| paced.1 != object),
            _ => {}
        }
        Some(repair)
    }
}
