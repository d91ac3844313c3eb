//! A node's store: records in order, durable as a prefix, each as a whole or not at all.
//!
//! Two images are kept: what the node has given out (reads see it at once) and what is durable. A
//! crash keeps the durable image and, of the records under way, a random number of the first ones; the
//! record that was being written is torn, and a torn record is no record. This is what the storage
//! node's log promises; whether it keeps the promise is tested there, not here.

use crate::payload::{self, Blocks};
use rustc_hash::{FxHashMap, FxHashSet};
use std::borrow::Cow;
use std::collections::VecDeque;
use trefoil_core::crush::{object_pg, pg_ancestors, pg_split_children, pg_split_parent};
use trefoil_core::message::WriteOp;
use trefoil_core::node::{ReadMode, ReadResult, Ticket};
use trefoil_core::record::{Durable, Patch, Record};
use trefoil_core::{BlockRange, GroupId, ObjectId, PgId};

/// The checksums of an object's blocks; [`trefoil_core::checksum::HOLE`] for a hole.
pub type Table = Vec<u64>;

/// Blocks, as some sequence of records left them.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Objects that have a block. A table may be shorter than the object: the rest are holes.
    pub tables: FxHashMap<ObjectId, Table>,
    /// Blocks whose bytes are not good.
    pub bad: FxHashSet<(ObjectId, u32)>,
    /// Blocks that are no holes.
    pub live: u64,
}

impl Image {
    /// The checksum of a block.
    pub fn sum(&self, object: ObjectId, block: u32) -> u64 {
        let table = self.tables.get(&object);
        table.and_then(|t| t.get(block as usize).copied()).unwrap_or(0)
    }

    fn set(&mut self, object: ObjectId, block: u32, sum: u64) {
        let table = self.tables.entry(object).or_default();
        if table.len() <= block as usize {
            table.resize(block as usize + 1, 0);
        }
        let old = std::mem::replace(&mut table[block as usize], sum);
        self.live = self.live + u64::from(sum != 0) - u64::from(old != 0);
        if !self.bad.is_empty() {
            self.bad.remove(&(object, block));
        }
    }

    fn write(&mut self, object: ObjectId, op: &WriteOp<Blocks>) {
        let range = op.blocks();
        for n in 0..range.count {
            let sum = match op {
                WriteOp::Data { checksums, .. } => checksums[n as usize],
                WriteOp::Zero { .. } => 0,
            };
            self.set(object, range.first + n, sum);
        }
    }

    fn patch(&mut self, object: ObjectId, patch: &Patch<Blocks>) {
        for (block, sum) in &patch.blocks {
            self.set(object, *block, *sum);
        }
        for (block, sum) in &patch.bad {
            self.set(object, *block, *sum);
            self.bad.insert((object, *block));
        }
    }

    fn apply(&mut self, record: &Record<Blocks>) {
        match record {
            Record::Write { object, op, .. } => self.write(*object, op),
            Record::Install { object, patches, writes, .. } => {
                for patch in patches {
                    self.patch(*object, patch);
                }
                for op in writes {
                    self.write(*object, op);
                }
            }
            Record::Heal { object, block, checksum, .. } if self.sum(*object, *block) == *checksum => {
                self.bad.remove(&(*object, *block));
            }
            Record::DeleteVolume { volume } => self.forget(|object| object.group.volume == *volume),
            Record::Leave { pg, .. } => self.forget(|object| object.group.pg == *pg),
            Record::Split { pg, from, to } => self.split(*pg, *from, *to),
            _ => {}
        }
    }

    fn split(&mut self, pg: PgId, from: u32, to: u32) {
        let children = pg_split_children(pg.pg, from, to);
        let place = |object: ObjectId| {
            let to = object_pg(object.group.volume.0, object.index, to);
            let goes = object.group.pg == pg && children.contains(&to);
            let pg = if goes { PgId { pg: to, ..pg } } else { object.group.pg };
            ObjectId { group: GroupId { pg, ..object.group }, ..object }
        };
        self.tables = self.tables.drain().map(|(object, table)| (place(object), table)).collect();
        self.bad = self.bad.drain().map(|(object, block)| (place(object), block)).collect();
    }

    fn forget(&mut self, gone: impl Fn(&ObjectId) -> bool) {
        self.tables.retain(|o, _| !gone(o));
        self.bad.retain(|(o, _)| !gone(o));
        self.live = self.tables.values().flatten().filter(|sum| **sum != 0).count() as u64;
    }

    /// How many of these blocks are holes.
    pub fn growth(&self, object: ObjectId, blocks: BlockRange) -> u32 {
        (blocks.first..blocks.end()).filter(|block| self.sum(object, *block) == 0).count() as u32
    }
}

/// The store of one node.
#[derive(Debug, Default)]
pub struct Store {
    /// Blocks as of the last record given.
    pub now: Image,
    /// Blocks as of the last durable record.
    pub durable: Image,
    /// State as of the last durable record.
    pub state: Durable,
    /// Records that are not durable.
    pending: VecDeque<(Ticket, Record<Blocks>)>,
    /// How many of `pending` the flush under way will make durable; 0 for no flush.
    flushing: usize,
    /// Deliberate bug: a flush is answered when it starts.
    pub skip_flush: bool,
    /// Groups whose placement group the node has left, durably, and which no leader has settled since: what
    /// it said of them before is over.
    pub emptied: FxHashSet<GroupId>,
    /// Placement groups that the pool had first: none of these has split off from another.
    pub first_pgs: u32,
    /// It has lost records that it had reported, and the node's word on that is not durable yet.
    pub lost: bool,
    /// And the node does not know.
    pub unaware: bool,
    /// What blocks that lie should be: lying checksum to true one. The same at every node.
    pub lies: FxHashMap<u64, u64>,
}

/// What is wrong with a record in itself: its checksums and its bytes do not belong together.
pub fn malformed(record: &Record<Blocks>) -> Option<&'static str> {
    let op_ok = |op: &WriteOp<Blocks>| match op {
        WriteOp::Data { blocks, checksums, data } => {
            checksums.len() == blocks.count as usize
                && data.values().len() == checksums.len()
                && (checksums.iter().zip(data.values()))
                    .all(|(sum, v)| *sum == payload::checksum(*v) && *v != 0)
        }
        WriteOp::Zero { .. } => true,
    };
    let patch_ok = |patch: &Patch<Blocks>| {
        let sums = patch.blocks.iter().map(|b| b.1).filter(|sum| *sum != 0);
        sums.eq(patch.data.values().iter().map(|v| payload::checksum(*v)))
    };
    let ok = match record {
        Record::Write { op, .. } => op_ok(op),
        Record::Install { patches, writes, .. } => patches.iter().all(patch_ok) && writes.iter().all(op_ok),
        Record::Heal { checksum, data, .. } => match data.values() {
            [v] => payload::checksum(*v) == *checksum,
            _ => false,
        },
        _ => true,
    };
    (!ok).then_some("checksums and bytes of the record do not belong together")
}

impl Store {
    /// An empty store, with the deliberate bug or without.
    pub fn new(skip_flush: bool) -> Store {
        Store { skip_flush, ..Store::default() }
    }

    /// Of a pool that has so many placement groups first.
    pub fn of_pool(self, first_pgs: u32) -> Store {
        Store { first_pgs, ..self }
    }

    /// Takes a record. Reads see it from now on.
    pub fn push(&mut self, ticket: Ticket, record: Record<Blocks>) {
        self.now.apply(&record);
        self.pending.push_back((ticket, record));
    }

    /// Begins a flush of at most `limit` records if none is under way and there is something to do.
    /// With [`Store::skip_flush`], the ticket that may be answered at once.
    pub fn start_flush(&mut self, limit: usize) -> Option<Option<Ticket>> {
        if self.flushing > 0 || self.pending.is_empty() {
            return None;
        }
        self.flushing = self.pending.len().min(limit.max(1));
        let last = self.pending[self.flushing - 1].0;
        Some(self.skip_flush.then_some(last))
    }

    /// The flush under way has ended: gives each record that became durable, after it was applied, to
    /// `each`; then the last ticket.
    pub fn end_flush(&mut self, mut each: impl FnMut(&Store, &Record<Blocks>)) -> Option<Ticket> {
        let mut last = None;
        for _ in 0..std::mem::take(&mut self.flushing) {
            let Some((ticket, record)) = self.pending.pop_front() else {
                break;
            };
            self.make_durable(&record);
            each(self, &record);
            last = Some(ticket);
        }
        last
    }

    fn make_durable(&mut self, record: &Record<Blocks>) {
        if matches!(record, Record::LostState { .. }) {
            self.lost = false;
        }
        match record {
            Record::Leave { pg, .. } => {
                self.emptied.extend(self.state.groups.keys().filter(|group| group.pg == *pg));
            }
            Record::Settle { group, .. } => {
                self.emptied.remove(group);
            }
            Record::Split { pg, from, to } => {
                let emptied: Vec<GroupId> = self.emptied.iter().filter(|g| g.pg == *pg).copied().collect();
                for child in pg_split_children(pg.pg, *from, *to) {
                    let child = PgId { pg: child, ..*pg };
                    self.emptied.extend(emptied.iter().map(|group| GroupId { pg: child, ..*group }));
                }
            }
            _ => {}
        }
        self.state.apply(record);
        self.durable.apply(record);
    }

    /// Where the node has, durably, an object that the newest map has in this group: there, or in the group that
    /// this one splits off from while the node has not heard of that. (Not where that one is split as far already, and
    /// this one is not here: then the node has nothing of it, and would vote with nothing.)
    pub fn find(&self, object: ObjectId) -> ObjectId {
        let known = |pg: u32| self.state.pgs.contains_key(&PgId { pg, ..object.group.pg });
        let own = object.group.pg.pg;
        let mut at = own;
        for parent in pg_ancestors(own) {
            if known(at) || at < self.first_pgs {
                break;
            }
            at = parent;
        }
        let level = |at: u32| self.state.pgs.get(&PgId { pg: at, ..object.group.pg });
        let level = level(at).map_or(0, |state| state.level(self.first_pgs));
        let at = if level > 0 && (at == own || pg_split_parent(own, level) == at) { at } else { own };
        let pg = PgId { pg: at, ..object.group.pg };
        self.state.place(ObjectId { group: GroupId { pg, ..object.group }, ..object })
    }

    /// The power is gone: `survive` of the records under way became durable although nobody was told
    /// (at most as many as the flush had). Gives those to `each`; says how many were lost.
    pub fn crash(&mut self, survive: usize, mut each: impl FnMut(&Store, &Record<Blocks>)) -> usize {
        for _ in 0..survive.min(self.flushing) {
            if let Some((_, record)) = self.pending.pop_front() {
                self.make_durable(&record);
                each(self, &record);
            }
        }
        self.flushing = 0;
        let lost = self.pending.len();
        self.pending.clear();
        // What rotted stays rotten only if it is durable; blocks that only memory had are gone.
        self.now = self.durable.clone();
        lost
    }

    /// What is durable now, to fall back to later.
    pub fn snapshot(&self) -> (Durable, Image) {
        (self.state.clone(), self.durable.clone())
    }

    /// The device has lost what came after this snapshot, although it had said otherwise (N8). Only while
    /// the node is down.
    pub fn fall_back(&mut self, (state, image): (Durable, Image)) {
        self.state = state;
        self.now = image.clone();
        self.durable = image;
        self.lost = true;
    }

    /// How many records the flush under way has.
    pub fn flushing(&self) -> usize {
        self.flushing
    }

    /// The same, wherever the node has the object now.
    pub fn rot_where_it_is(&mut self, object: ObjectId, block: u32) -> bool {
        self.rot(self.find(object), block)
    }

    /// Bit rot: the bytes of a block that is no hole turn bad, in both images.
    pub fn rot(&mut self, object: ObjectId, block: u32) -> bool {
        let rotten = self.now.sum(object, block) != 0
            && self.now.sum(object, block) == self.durable.sum(object, block);
        if rotten {
            self.now.bad.insert((object, block));
            self.durable.bad.insert((object, block));
        }
        rotten
    }

    /// A record about the object is on its way to the device.
    pub fn touches(&self, object: ObjectId) -> bool {
        self.pending.iter().any(|(_, record)| match record {
            Record::Write { object: o, .. }
            | Record::Install { object: o, .. }
            | Record::Doubt { object: o, .. }
            | Record::Heal { object: o, .. } => *o == object,
            Record::Open { group, .. } | Record::Settle { group, .. } => *group == object.group,
            _ => true,
        })
    }

    /// The block is another one from now on, and looks good. See [`Store::lies`].
    pub fn lie(&mut self, object: ObjectId, block: u32, sum: u64) {
        self.now.set(object, block, sum);
        self.durable.set(object, block, sum);
    }

    /// What a block with this checksum should have.
    pub fn truth(&self, sum: u64) -> u64 {
        if self.lies.is_empty() { sum } else { self.lies.get(&sum).copied().unwrap_or(sum) }
    }

    /// An object's durable table, lies replaced.
    pub fn truthful(&self, object: ObjectId) -> Option<Cow<'_, Table>> {
        let table = self.durable.tables.get(&object)?;
        Some(match self.lies.is_empty() {
            true => Cow::Borrowed(table),
            false => Cow::Owned(table.iter().map(|sum| self.truth(*sum)).collect()),
        })
    }

    /// Reads blocks as they are now.
    pub fn read(&self, object: ObjectId, range: BlockRange, mode: &ReadMode) -> ReadResult<Blocks> {
        let mut found = ReadResult { checksums: Box::default(), data: Blocks::None, bad: Vec::new() };
        let mut sums = Vec::with_capacity(range.count as usize);
        let mut values = Vec::with_capacity(range.count as usize);
        for n in 0..range.count {
            let block = range.first + n;
            let sum = self.now.sum(object, block);
            sums.push(sum);
            let wanted = sum != 0
                && match mode {
                    ReadMode::All => true,
                    ReadMode::ChecksumsOnly => false,
                    ReadMode::Differing(have) => have.get(n as usize) != Some(&sum),
                };
            if wanted && !self.now.bad.is_empty() && self.now.bad.contains(&(object, block)) {
                found.bad.push(block);
            } else if wanted {
                values.push(payload::value(sum));
            }
        }
        found.checksums = sums.into_boxed_slice();
        found.data = Blocks::new(&values);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::{Ballot, Head};

    fn write(seq: u64, value: u64) -> Record<Blocks> {
        Record::Write {
            object: ObjectId::default(),
            head: Head { ballot: Ballot(1), seq },
            snap: 0,
            op: WriteOp::Data {
                blocks: BlockRange::new(0, 1),
                checksums: Box::new([payload::checksum(value)]),
                data: Blocks::One(value),
            },
        }
    }

    #[test]
    fn a_crash_keeps_a_prefix() {
        let mut store = Store::default();
        for n in 1..=4 {
            store.push(n, write(n, n));
        }
        assert_eq!(store.start_flush(3), Some(None));
        assert_eq!(store.start_flush(3), None, "one flush at a time");
        let object = ObjectId::default();
        assert_eq!(payload::value(store.now.sum(object, 0)), 4);
        assert_eq!(store.crash(2, |_, _| ()), 2);
        assert_eq!(payload::value(store.now.sum(object, 0)), 2);
        assert_eq!(store.state.groups[&object.group].objects[&0].seq, 2);
    }

    #[test]
    fn a_flush_ends_with_its_last_ticket() {
        let mut store = Store::default();
        for n in 1..=3 {
            store.push(n, write(n, n));
        }
        store.start_flush(2);
        store.push(4, write(4, 4));
        let mut seen = 0;
        assert_eq!(store.end_flush(|_, _| seen += 1), Some(2));
        assert_eq!(seen, 2);
        assert_eq!(store.crash(9, |_, _| ()), 2, "nothing was under way");
    }

    #[test]
    fn bad_blocks_are_told_and_mended_by_a_write() {
        let mut store = Store::default();
        let object = ObjectId::default();
        store.push(1, write(1, 7));
        store.start_flush(1);
        store.end_flush(|_, _| ());
        assert!(store.rot(object, 0));
        let range = BlockRange::new(0, 2);
        assert_eq!(store.read(object, range, &ReadMode::All).bad, vec![0]);
        let only = store.read(object, range, &ReadMode::ChecksumsOnly);
        assert!(only.bad.is_empty() && only.data.values().is_empty());
        store.push(2, write(2, 8));
        let after = store.read(object, range, &ReadMode::All);
        assert_eq!(after.data.values(), &[8]);
        let equal = ReadMode::Differing(after.checksums.clone());
        assert!(store.read(object, range, &equal).data.values().is_empty());
    }

    #[test]
    fn a_record_whose_bytes_are_another_writes_is_malformed() {
        assert_eq!(malformed(&write(1, 5)), None);
        let Record::Write { object, head, snap, op: WriteOp::Data { blocks, checksums, .. } } = write(1, 5)
        else {
            unreachable!()
        };
        let data = Blocks::One(6);
        let op = WriteOp::Data { blocks, checksums, data };
        assert!(malformed(&Record::Write { object, head, snap, op }).is_some());
    }
}
