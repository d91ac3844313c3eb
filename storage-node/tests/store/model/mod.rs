//! What the tests of the store have in common: a model of what a sequence of records adds up to, records
//! at random, an index in memory, a harness that runs a store against the model on any device, and
//! power cuts at any point of a short history.
//!
//! Nothing here knows how the store works inside: it goes by the documents, the interface, and (for
//! naming the blocks that a test damages) the on-disk format.

// `store_bugs.rs` is a crate of its own and uses a part.
#![allow(dead_code)]

pub mod bench;
pub mod crash;
pub mod damage;
pub mod history;
pub mod index;
pub mod life;
pub mod lines;
pub mod make;
pub mod run;
pub mod work;

use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::message::WriteOp;
use trefoil_core::record::{Durable, Record};
use trefoil_core::*;
use trefoil_storage_node::device::Device;
use trefoil_storage_node::device::buffer::Pool;
use trefoil_storage_node::store::index::Index;
use trefoil_storage_node::store::{How, Store};

/// Bytes of a segment of the tests' media: 256 blocks.
pub const SEGMENT: u64 = 1 << 20;
/// Where segments begin.
pub const DATA: u64 = 2 << 20;
/// In the place of a fill: the block is bad.
pub const BAD: u64 = u64::MAX;

/// Recomputes the counts of live blocks from all table pages, and compares them with those recorded.
pub fn audit<D: Device, I: Index>(store: &mut Store<D, I>) -> Result<(), String> {
    let audit = store.audit();
    let stats = store.stats();
    let space = stats.space;
    if !audit.is_clean() || space.used + space.free + space.reserve != space.total || stats.recounts > 0 {
        return Err(format!("{audit:?}, {stats:?}"));
    }
    Ok(())
}

/// Added to the seeds of histories: 1000 times the number in `STORE_SEED`, for other histories of the same
/// kinds. `None`: the ones that are known to show what a test wants to see.
pub fn other_seed() -> Option<u64> {
    let number = std::env::var("STORE_SEED").ok()?;
    Some(1000 * number.parse::<u64>().expect("STORE_SEED is a number"))
}

/// An object of the tests.
pub fn object(volume: u64, index: u32) -> ObjectId {
    ObjectId {
        group: GroupId { volume: VolumeId(volume), pg: PgId { pool: PoolId(1), pg: index % 3 } },
        index,
    }
}

/// A head.
pub fn head(seq: u64) -> Head {
    Head { ballot: Ballot(1 << 20), seq }
}

/// Bytes of a block and their checksum.
pub fn block(object: ObjectId, block: u32, fill: u64) -> (Vec<u8>, u64) {
    let data = fill.to_le_bytes().repeat(BLOCK_SIZE / 8);
    let sum = block_checksum(object.group.volume, object.index, block, &data);
    (data, sum)
}

/// Data with these fills, from block `first` on.
pub fn data_op(object: ObjectId, first: u32, fills: &[u64]) -> WriteOp<Bytes> {
    let (mut data, mut sums) = (Vec::new(), Vec::new());
    for (n, fill) in fills.iter().enumerate() {
        let (bytes, sum) = block(object, first + n as u32, *fill);
        data.extend(bytes);
        sums.push(sum);
    }
    WriteOp::Data {
        blocks: BlockRange::new(first, fills.len() as u32),
        checksums: sums.into(),
        data: if first.is_multiple_of(2) { aligned(&data) } else { data.into() },
    }
}

/// As a connection hands large payloads over: the log writes them from where they lie.
fn aligned(data: &[u8]) -> Bytes {
    let mut buffer = Pool::new(u64::MAX, 0, None).get(data.len()).expect("no bound");
    buffer.copy_from_slice(data);
    buffer.freeze()
}

/// A write.
pub fn write(object: ObjectId, seq: u64, first: u32, fills: &[u64]) -> Record<Bytes> {
    Record::Write { object, head: head(seq), snap: 0, op: data_op(object, first, fills) }
}

/// The first eight bytes of each block.
pub fn fills(data: &[u8]) -> impl Iterator<Item = u64> + '_ {
    data.chunks(BLOCK_SIZE).map(|b| b.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)))
}

/// Fills by object and block; holes are left out.
pub type Blocks = HashMap<(ObjectId, u32), u64>;

/// What a sequence of records adds up to.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Model {
    /// Less the blocks.
    pub durable: Durable,
    /// The fill of each block that is no hole ([`BAD`]: bad).
    pub blocks: Blocks,
    /// Of bad blocks: the checksum and the fill that they should have.
    pub bad: HashMap<(ObjectId, u32), (u64, u64)>,
}

impl Model {
    /// The fills of a range; 0 for a hole.
    pub fn range(&self, o: ObjectId, range: BlockRange) -> Vec<u64> {
        (range.first..range.end()).map(|n| self.blocks.get(&(o, n)).copied().unwrap_or(0)).collect()
    }
    fn set(&mut self, o: ObjectId, block: u32, fill: u64) {
        self.bad.remove(&(o, block));
        if fill == 0 {
            self.blocks.remove(&(o, block));
        } else {
            self.blocks.insert((o, block), fill);
        }
    }
    fn op(&mut self, object: ObjectId, op: &WriteOp<Bytes>) {
        let range = op.blocks();
        match op {
            WriteOp::Data { data, .. } => {
                for (n, fill) in (range.first..).zip(fills(data)) {
                    self.set(object, n, fill);
                }
            }
            WriteOp::Zero { .. } => (range.first..range.end()).for_each(|n| self.set(object, n, 0)),
        }
    }
    /// Takes one record.
    pub fn apply(&mut self, record: &Record<Bytes>) {
        self.durable.apply(record);
        match record {
            Record::Write { object, op, .. } => self.op(*object, op),
            Record::Install { object, patches, writes, .. } => {
                for patch in patches {
                    let mut data = fills(&patch.data);
                    for (block, sum) in &patch.blocks {
                        let fill = if *sum == HOLE { 0 } else { data.next().unwrap_or(0) };
                        self.set(*object, *block, fill);
                    }
                    for (n, sum) in &patch.bad {
                        self.set(*object, *n, BAD);
                        // Bad blocks of the tests are such as have their seq and their number as fill.
                        self.bad.insert((*object, *n), (*sum, make::bad_fill(*n)));
                    }
                }
                for op in writes {
                    self.op(*object, op);
                }
            }
            Record::Heal { object, block, checksum, data }
                if self.bad.get(&(*object, *block)).is_some_and(|b| b.0 == *checksum) =>
            {
                self.set(*object, *block, fills(data).next().unwrap_or(0));
            }
            Record::DeleteVolume { volume } => {
                self.blocks.retain(|(o, _), _| o.group.volume != *volume);
                self.bad.retain(|(o, _), _| o.group.volume != *volume);
            }
            Record::Leave { pg, .. } => {
                self.blocks.retain(|(o, _), _| o.group.pg != *pg);
                self.bad.retain(|(o, _), _| o.group.pg != *pg);
            }
            Record::Split { .. } => {
                let place = |object: ObjectId| self.durable.place(object);
                self.blocks = self.blocks.iter().map(|((o, n), fill)| ((place(*o), *n), *fill)).collect();
                self.bad = self.bad.iter().map(|((o, n), it)| ((place(*o), *n), *it)).collect();
            }
            _ => {}
        }
    }
    /// True if this is what a store shows.
    pub fn is(&self, durable: &Durable, blocks: &Blocks) -> bool {
        self.durable == *durable && self.blocks == *blocks
    }
}

/// The object that a record changes.
pub fn object_of(record: &Record<Bytes>) -> Option<ObjectId> {
    match record {
        Record::Write { object, .. } | Record::Install { object, .. } | Record::Heal { object, .. } => {
            Some(*object)
        }
        _ => None,
    }
}

/// The fills of all data that a record carries.
pub fn fills_of(record: &Record<Bytes>, mut each: impl FnMut(u64)) {
    let mut op = |op: &WriteOp<Bytes>| {
        if let WriteOp::Data { data, .. } = op {
            fills(data).for_each(&mut each);
        }
    };
    match record {
        Record::Write { op: o, .. } => op(o),
        Record::Install { patches, writes, .. } => {
            writes.iter().for_each(&mut op);
            patches.iter().for_each(|p| fills(&p.data).for_each(&mut each));
        }
        _ => {}
    }
}

/// The fills of a read's answer; `None` if it does not hang together: bytes that do not match their
/// checksum, are not one of our blocks, or are too many or too few.
pub fn decode(
    o: ObjectId,
    range: BlockRange,
    checksums: &[u64],
    data: &[u8],
    bad: &[u32],
) -> Option<Vec<u64>> {
    let mut parts = data.chunks(BLOCK_SIZE);
    let mut bad = bad.iter().copied().peekable();
    let mut seen = Vec::new();
    for n in range.first..range.end() {
        let sum = *checksums.get((n - range.first) as usize)?;
        seen.push(if sum == HOLE {
            0
        } else if bad.next_if_eq(&n).is_some() {
            BAD
        } else {
            let bytes = parts.next()?;
            let fill = *bytes.first_chunk::<8>()?;
            let uniform = bytes.len() == BLOCK_SIZE && bytes[8..] == bytes[..BLOCK_SIZE - 8];
            if !uniform || block_checksum(o.group.volume, o.index, n, bytes) != sum {
                return None;
            }
            u64::from_le_bytes(fill)
        });
    }
    (parts.next().is_none() && bad.next().is_none()).then_some(seen)
}

/// For a failing case: what differs from the acknowledged state, and from all that was appended.
pub fn difference(
    acked: &Model,
    all: &Model,
    durable: &Durable,
    seen: &Blocks,
    tail: usize,
    how: &How,
) -> String {
    let mut text = format!("{how:?}, {tail} records not acknowledged\n");
    for (name, model) in [("acknowledged", acked), ("appended", all)] {
        let mut blocks: BTreeSet<_> = model.blocks.keys().chain(seen.keys()).collect();
        blocks.retain(|k| model.blocks.get(k) != seen.get(k));
        text += &format!("{name}: {} blocks differ", blocks.len());
        for k in blocks.iter().take(4) {
            let of = |fill: Option<&u64>| match fill {
                None => "a hole".to_owned(),
                Some(&BAD) => "bad".to_owned(),
                Some(f) => format!("{}/{:x}", f >> 20, f & 0xfffff),
            };
            text += &format!(", {}[{}] is {} not {}", k.0, k.1, of(seen.get(k)), of(model.blocks.get(k)));
        }
        for (g, state) in &durable.groups {
            if model.durable.groups.get(g) != Some(state) {
                text += &format!("\n  {g}: recovered {state:?}");
                text += &format!("\n  expected {:?}", model.durable.groups.get(g));
            }
        }
        text += &format!(
            "\n  groups {} of {}, rest equal {}\n",
            durable.groups.len(),
            model.durable.groups.len(),
            (&durable.fences, &durable.pgs, durable.amnesia)
                == (&model.durable.fences, &model.durable.pgs, model.durable.amnesia)
        );
    }
    text
}
