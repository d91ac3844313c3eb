//! How records look in the header of a batch: `postcard`, one after the other.
//!
//! The data of a record is not here: it lies in the batch's data blocks, in the order of the records,
//! and within a record in the order of its parts. What is decoded is therefore a `Record<()>` plus the
//! number of data blocks that it owns. The version is that of the batch header.

use super::index::Meta;
use super::log::BatchRef;
use super::segments::Delta;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use trefoil_core::checksum::HOLE;
use trefoil_core::message::{Line, WriteOp};
use trefoil_core::record::{Patch, Promise, Record};
use trefoil_core::scrub::Mark;
use trefoil_core::*;
use zerocopy::IntoBytes;

/// Checksums to be written: their little-endian bytes behind their length in bytes.
pub struct SumsOut<'a>(pub &'a [u64]);

impl Serialize for SumsOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if let [one] = self.0 {
            return s.serialize_bytes(&one.to_le_bytes());
        }
        if cfg!(target_endian = "little") {
            return s.serialize_bytes(self.0.as_bytes());
        }
        let bytes: Vec<u8> = self.0.iter().flat_map(|c| c.to_le_bytes()).collect();
        s.serialize_bytes(&bytes)
    }
}

/// Checksums as read.
pub struct SumsIn(pub Box<[u64]>);

impl<'de> Deserialize<'de> for SumsIn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<SumsIn, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = SumsIn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("checksums")
            }
            fn visit_bytes<E: serde::de::Error>(self, v: &[u8]) -> Result<SumsIn, E> {
                let (sums, rest) = v.as_chunks::<8>();
                if !rest.is_empty() {
                    return Err(E::custom("checksums of odd length"));
                }
                Ok(SumsIn(sums.iter().map(|b| u64::from_le_bytes(*b)).collect()))
            }
        }
        d.deserialize_bytes(V)
    }
}

#[derive(Serialize, Deserialize)]
enum DiskOp<S> {
    Data { first: u32, checksums: S },
    Zero { blocks: BlockRange },
}

#[derive(Serialize, Deserialize)]
struct DiskPatch<S> {
    /// Numbers of the blocks; their checksums follow in the same order.
    blocks: Vec<u32>,
    checksums: S,
    bad: Vec<u32>,
    bad_checksums: S,
}

/// The order of the variants is the format: add at the end only.
#[derive(Serialize, Deserialize)]
enum DiskRecord<S> {
    Start { session: u64, lost: bool },
    Fence { volume: VolumeId, generation: Generation },
    Open { group: GroupId, promised: Promise, epoch: Epoch },
    Settle { group: GroupId, settled: Promise, add: Vec<(ObjectIndex, Line)>, remove: Vec<ObjectIndex> },
    Write { object: ObjectId, head: Head, snap: u64, op: DiskOp<S> },
    Install { object: ObjectId, head: Head, patches: Vec<DiskPatch<S>>, writes: Vec<DiskOp<S>> },
    Heal { object: ObjectId, block: u32, checksums: S },
    DeleteVolume { volume: VolumeId },
    LostState { fences: Vec<(VolumeId, Generation)> },
    Page { object: ObjectId, page: u32, checksums: S, deltas: Vec<Delta> },
    Move { object: ObjectId, stamp: u64, blocks: Vec<u32>, checksums: S },
    Reap { locations: Vec<u64>, deltas: Vec<Delta> },
    Free { segments: Vec<u32> },
    Entry { key: Bytes, value: Bytes },
    SnapshotEnd { covers: BatchRef, meta: Meta },
    Epoch { pg: PgId, epoch: Epoch, fences: Vec<(VolumeId, Generation)> },
    Leave { pg: PgId, epoch: Epoch },
    Doubt { object: ObjectId, marks: Vec<Mark> },
    Split { pg: PgId, from: u32, to: u32 },
}

/// Bytes that are written as such and not as a list of numbers.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Bytes(#[serde(with = "raw")] Vec<u8>);

mod raw {
    use super::*;
    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }
        }
        d.deserialize_bytes(V)
    }
}

/// What a batch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The first record of a session: the store has been opened.
    Start {
        /// How often the store has been opened, this time included.
        session: u64,
        /// State has been lost, and the node has not said yet (by LostState) that it knows.
        lost: bool,
    },
    /// A step of the node.
    Node(Record<()>),
    /// A page of an object's block table, as of this place in the log.
    Page {
        /// The object.
        object: ObjectId,
        /// Blocks `256 * page ..`.
        page: u32,
        /// Of the page's 4 KiB.
        checksum: u64,
        /// What it changes in the live counts besides adding its own block.
        deltas: Vec<Delta>,
    },
    /// Blocks that cleaning has copied: each counts if the table still has this checksum for it.
    Move {
        /// The object.
        object: ObjectId,
        /// LSN of when they were written first, or earlier.
        stamp: u64,
        /// `(block, checksum)`.
        blocks: Vec<(u32, u64)>,
    },
    /// Pages of deleted objects' tables that count no more.
    Reap {
        /// Where they are.
        locations: Vec<u64>,
        /// What that changes in the live counts.
        deltas: Vec<Delta>,
    },
    /// Nothing in these segments is needed.
    Free {
        /// The segments.
        segments: Vec<u32>,
    },
    /// A part of a snapshot.
    Snapshot {
        /// As in the index.
        key: Vec<u8>,
        /// As in the index.
        value: Vec<u8>,
    },
    /// The snapshot of `covers` is whole.
    SnapshotEnd {
        /// Everything up to this batch, itself included, is in it.
        covers: BatchRef,
        /// What the index would say of itself.
        meta: Meta,
    },
}

impl Entry {
    /// Data blocks that belong to it.
    pub fn data_blocks(&self) -> u32 {
        match self {
            Entry::Node(record) => record.data_blocks(),
            Entry::Page { .. } => 1,
            Entry::Move { blocks, .. } => blocks.len() as u32,
            _ => 0,
        }
    }
}

/// Appends to a vector. `postcard::to_extend` does it too, byte by byte.
struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }
    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn put(value: &DiskRecord<SumsOut<'_>>, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    postcard::serialize_with_flavor(value, Append(out))
}

/// Appends a Start.
pub fn put_start(session: u64, lost: bool, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    put(&DiskRecord::Start { session, lost }, out)
}

/// Appends a Page.
pub fn put_page(
    object: ObjectId,
    page: u32,
    checksum: u64,
    deltas: Vec<Delta>,
    out: &mut Vec<u8>,
) -> Result<(), postcard::Error> {
    let checksums = SumsOut(&[checksum]);
    put(&DiskRecord::Page { object, page, checksums, deltas }, out)
}

/// Appends a Move.
pub fn put_move(
    object: ObjectId,
    stamp: u64,
    blocks: Vec<u32>,
    checksums: &[u64],
    out: &mut Vec<u8>,
) -> Result<(), postcard::Error> {
    put(&DiskRecord::Move { object, stamp, blocks, checksums: SumsOut(checksums) }, out)
}

/// Appends a Reap.
pub fn put_reap(locations: Vec<u64>, deltas: Vec<Delta>, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    put(&DiskRecord::Reap { locations, deltas }, out)
}

/// Appends a Free.
pub fn put_free(segments: Vec<u32>, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    put(&DiskRecord::Free { segments }, out)
}

/// Appends a part of a snapshot.
pub fn put_snapshot(key: Vec<u8>, value: Vec<u8>, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    put(&DiskRecord::Entry { key: Bytes(key), value: Bytes(value) }, out)
}

/// Appends the end of a snapshot.
pub fn put_snapshot_end(covers: BatchRef, meta: Meta, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    put(&DiskRecord::SnapshotEnd { covers, meta }, out)
}

fn op_out<P>(op: &WriteOp<P>) -> DiskOp<SumsOut<'_>> {
    match op {
        WriteOp::Data { blocks, checksums, .. } => {
            DiskOp::Data { first: blocks.first, checksums: SumsOut(checksums) }
        }
        WriteOp::Zero { blocks } => DiskOp::Zero { blocks: *blocks },
    }
}

/// Appends a record of the node, less its data.
pub fn put_record<P>(record: &Record<P>, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    let disk = match record {
        Record::Fence { volume, generation } => {
            DiskRecord::Fence { volume: *volume, generation: *generation }
        }
        Record::Open { group, promised, epoch } => {
            DiskRecord::Open { group: *group, promised: *promised, epoch: *epoch }
        }
        Record::Settle { group, settled, add, remove } => {
            DiskRecord::Settle { group: *group, settled: *settled, add: add.clone(), remove: remove.clone() }
        }
        Record::Write { object, head, snap, op } => {
            DiskRecord::Write { object: *object, head: *head, snap: *snap, op: op_out(op) }
        }
        Record::Install { object, head, patches, writes } => {
            let sums: Vec<(Vec<u64>, Vec<u64>)> = patches
                .iter()
                .map(|p| (p.blocks.iter().map(|b| b.1).collect(), p.bad.iter().map(|b| b.1).collect()))
                .collect();
            let disk = DiskRecord::Install {
                object: *object,
                head: *head,
                patches: patches
                    .iter()
                    .zip(&sums)
                    .map(|(p, (good, bad))| DiskPatch {
                        blocks: p.blocks.iter().map(|b| b.0).collect(),
                        checksums: SumsOut(good),
                        bad: p.bad.iter().map(|b| b.0).collect(),
                        bad_checksums: SumsOut(bad),
                    })
                    .collect(),
                writes: writes.iter().map(op_out).collect(),
            };
            return put(&disk, out);
        }
        Record::Heal { object, block, checksum, .. } => {
            let checksums = [*checksum];
            let disk = DiskRecord::Heal { object: *object, block: *block, checksums: SumsOut(&checksums) };
            return put(&disk, out);
        }
        Record::DeleteVolume { volume } => DiskRecord::DeleteVolume { volume: *volume },
        Record::LostState { fences } => DiskRecord::LostState { fences: fences.clone() },
        Record::Epoch { pg, epoch, fences } => {
            DiskRecord::Epoch { pg: *pg, epoch: *epoch, fences: fences.clone() }
        }
        Record::Leave { pg, epoch } => DiskRecord::Leave { pg: *pg, epoch: *epoch },
        Record::Doubt { object, marks } => DiskRecord::Doubt { object: *object, marks: marks.clone() },
        Record::Split { pg, from, to } => DiskRecord::Split { pg: *pg, from: *from, to: *to },
    };
    put(&disk, out)
}

fn one(sums: &SumsIn) -> Result<u64, postcard::Error> {
    match *sums.0 {
        [sum] => Ok(sum),
        _ => Err(postcard::Error::custom("one checksum expected")),
    }
}

fn op_in(op: DiskOp<SumsIn>) -> WriteOp<()> {
    match op {
        DiskOp::Data { first, checksums } => WriteOp::Data {
            blocks: BlockRange::new(first, checksums.0.len() as u32),
            checksums: checksums.0,
            data: (),
        },
        DiskOp::Zero { blocks } => WriteOp::Zero { blocks },
    }
}

fn zip(blocks: Vec<u32>, sums: SumsIn) -> Result<Vec<(u32, u64)>, postcard::Error> {
    if blocks.len() != sums.0.len() {
        return Err(postcard::Error::custom("as many checksums as blocks expected"));
    }
    Ok(blocks.into_iter().zip(sums.0).collect())
}

/// Takes one entry off the front of `bytes`.
pub fn take(bytes: &[u8]) -> Result<(Entry, &[u8]), postcard::Error> {
    let (disk, rest) = postcard::take_from_bytes::<DiskRecord<SumsIn>>(bytes)?;
    let record = match disk {
        DiskRecord::Start { session, lost } => return Ok((Entry::Start { session, lost }, rest)),
        DiskRecord::Page { object, page, checksums, deltas } => {
            let checksum = one(&checksums)?;
            return Ok((Entry::Page { object, page, checksum, deltas }, rest));
        }
        DiskRecord::Move { object, stamp, blocks, checksums } => {
            let blocks = zip(blocks, checksums)?;
            return Ok((Entry::Move { object, stamp, blocks }, rest));
        }
        DiskRecord::Reap { locations, deltas } => return Ok((Entry::Reap { locations, deltas }, rest)),
        DiskRecord::Free { segments } => return Ok((Entry::Free { segments }, rest)),
        DiskRecord::Entry { key, value } => {
            return Ok((Entry::Snapshot { key: key.0, value: value.0 }, rest));
        }
        DiskRecord::SnapshotEnd { covers, meta } => {
            return Ok((Entry::SnapshotEnd { covers, meta }, rest));
        }
        DiskRecord::Fence { volume, generation } => Record::Fence { volume, generation },
        DiskRecord::Open { group, promised, epoch } => Record::Open { group, promised, epoch },
        DiskRecord::Settle { group, settled, add, remove } => Record::Settle { group, settled, add, remove },
        DiskRecord::Write { object, head, snap, op } => Record::Write { object, head, snap, op: op_in(op) },
        DiskRecord::Install { object, head, patches, writes } => Record::Install {
            object,
            head,
            patches: patches
                .into_iter()
                .map(|p| {
                    Ok(Patch {
                        blocks: zip(p.blocks, p.checksums)?,
                        data: (),
                        bad: zip(p.bad, p.bad_checksums)?,
                    })
                })
                .collect::<Result<_, postcard::Error>>()?,
            writes: writes.into_iter().map(op_in).collect(),
        },
        DiskRecord::Heal { object, block, checksums } => {
            Record::Heal { object, block, checksum: one(&checksums)?, data: () }
        }
        DiskRecord::DeleteVolume { volume } => Record::DeleteVolume { volume },
        DiskRecord::LostState { fences } => Record::LostState { fences },
        DiskRecord::Epoch { pg, epoch, fences } => Record::Epoch { pg, epoch, fences },
        DiskRecord::Leave { pg, epoch } => Record::Leave { pg, epoch },
        DiskRecord::Doubt { object, marks } => Record::Doubt { object, marks },
        DiskRecord::Split { pg, from, to } => Record::Split { pg, from, to },
    };
    Ok((Entry::Node(record), rest))
}

/// Calls `each` with the payload parts of a record in the order in which their blocks are stored.
/// False if a part's length does not fit its checksums: such a record must not be stored.
pub fn payload_parts<'a, P: AsRef<[u8]>>(record: &'a Record<P>, mut each: impl FnMut(&'a P)) -> bool {
    let mut part = |data: &'a P, blocks: usize| {
        each(data);
        data.as_ref().len() == blocks * BLOCK_SIZE
    };
    // The part of a write, if it has one.
    fn of_op<P>(op: &WriteOp<P>) -> Option<(&P, &[u64], u32)> {
        match op {
            WriteOp::Data { blocks, checksums, data } => Some((data, checksums, blocks.count)),
            WriteOp::Zero { .. } => None,
        }
    }
    let sane = |sums: &[u64], count: u32| sums.len() == count as usize && !sums.contains(&HOLE);
    match record {
        Record::Write { op, .. } => match of_op(op) {
            Some((data, sums, count)) => sane(sums, count) && part(data, sums.len()),
            None => true,
        },
        Record::Install { patches, writes, .. } => {
            patches.iter().all(|p| {
                let blocks = p.blocks.iter().filter(|b| b.1 != HOLE).count();
                p.bad.iter().all(|b| b.1 != HOLE) && part(&p.data, blocks)
            }) && writes
                .iter()
                .filter_map(of_op)
                .all(|(data, sums, count)| sane(sums, count) && part(data, sums.len()))
        }
        Record::Heal { data, checksum, .. } => *checksum != HOLE && part(data, 1),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> ObjectId {
        ObjectId { group: GroupId { volume: VolumeId(3), pg: PgId { pool: PoolId(1), pg: 300 } }, index: 9 }
    }

    #[test]
    fn golden_bytes_of_a_write() {
        let record: Record<()> = Record::Write {
            object: object(),
            head: Head { ballot: Ballot(1 << 20), seq: 200 },
            snap: 0,
            op: WriteOp::Data {
                blocks: BlockRange::new(5, 1),
                checksums: Box::new([0x1122_3344_5566_7788]),
                data: (),
            },
        };
        let mut out = Vec::new();
        put_record(&record, &mut out).expect("encodes");
        // Frozen: devices in the field carry it.
        assert_eq!(
            out,
            [
                4, 3, 1, 172, 2, 9, 128, 128, 64, 200, 1, 0, 0, 5, 8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33,
                0x22, 0x11
            ]
        );
        let (entry, rest) = take(&out).expect("decodes");
        assert_eq!((entry, rest), (Entry::Node(record), &[][..]));
    }

    #[test]
    fn golden_bytes_of_a_split() {
        let record: Record<()> = Record::Split { pg: object().group.pg, from: 301, to: 1000 };
        let mut out = Vec::new();
        put_record(&record, &mut out).expect("encodes");
        // Frozen: devices in the field carry it.
        assert_eq!(out, [18, 1, 172, 2, 173, 2, 232, 7]);
    }

    #[test]
    fn every_record_survives_the_way_there_and_back() {
        let promise = Promise { ballot: Ballot(77), epoch: Epoch(3) };
        let group = object().group;
        let data = |first, n: u64| WriteOp::Data {
            blocks: BlockRange::new(first, n as u32),
            checksums: (1..=n).collect(),
            data: (),
        };
        let all: Vec<Record<()>> = vec![
            Record::Fence { volume: VolumeId(1), generation: Generation(9) },
            Record::Open { group, promised: promise, epoch: Epoch(4) },
            Record::Settle {
                group,
                settled: promise,
                add: vec![(1, Line::Lost), (2, Line::At(Ballot(6)))],
                remove: vec![7],
            },
            Record::Install {
                object: object(),
                head: Head::ZERO,
                patches: vec![Patch { blocks: vec![(1, 5), (2, HOLE)], data: (), bad: vec![(3, 8)] }],
                writes: vec![data(0, 3), WriteOp::Zero { blocks: BlockRange::new(0, 1024) }],
            },
            Record::Heal { object: object(), block: 3, checksum: 8, data: () },
            Record::DeleteVolume { volume: VolumeId(2) },
            Record::LostState { fences: vec![(VolumeId(1), Generation(2))] },
            Record::Epoch { pg: group.pg, epoch: Epoch(5), fences: vec![(VolumeId(1), Generation(2))] },
            Record::Leave { pg: group.pg, epoch: Epoch(6) },
            Record::Doubt {
                object: object(),
                marks: vec![Mark { block: 3, doubt: scrub::Doubt::Disputed, checksum: 8 }],
            },
            Record::Split { pg: group.pg, from: 301, to: 1000 },
        ];
        let mut out = Vec::new();
        for record in &all {
            put_record(record, &mut out).expect("encodes");
        }
        let mut rest = &out[..];
        for record in all {
            let (entry, more) = take(rest).expect("decodes");
            assert_eq!(entry, Entry::Node(record));
            rest = more;
        }
        assert!(rest.is_empty());
        for cut in 0..out.len().min(40) {
            // Cut short anywhere: an error or a shorter list, never a panic.
            let _ = take(&out[..cut]);
        }
    }

    #[test]
    fn a_record_whose_payload_does_not_fit_is_told() {
        let write = |count, sums: &[u64], bytes: usize| Record::Write {
            object: object(),
            head: Head::ZERO,
            snap: 0,
            op: WriteOp::Data {
                blocks: BlockRange::new(0, count),
                checksums: sums.into(),
                data: vec![0u8; bytes],
            },
        };
        assert!(payload_parts(&write(1, &[5], 4096), |_| ()));
        assert!(!payload_parts(&write(1, &[5], 4095), |_| ()));
        assert!(!payload_parts(&write(2, &[5], 4096), |_| ()));
        assert!(!payload_parts(&write(1, &[HOLE], 4096), |_| ()));
    }
}
