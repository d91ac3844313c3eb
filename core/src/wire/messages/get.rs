//! The two halves of the layout: [`Get`] takes values off a message's meta and checks them, the `put_*`
//! functions append them. Nothing here knows a message.

use super::DecodeError;
use crate::checksum::HOLE;
use crate::ids::*;
use crate::limits::OBJECT_BLOCKS_MAX;
use bytes::{BufMut, BytesMut};
use zerocopy::IntoBytes;

/// Greatest number of a write that is taken from outside. Nothing real comes near it; beyond it, "the
/// next number" might not exist.
pub const SEQ_MAX: u64 = u64::MAX >> 1;

/// Takes values off the front of a message's meta.
pub(super) struct Get<'a> {
    pub(super) kind: u16,
    rest: &'a [u8],
}

impl<'a> Get<'a> {
    pub(super) fn new(kind: u16, meta: &'a [u8]) -> Get<'a> {
        Get { kind, rest: meta }
    }

    pub(super) fn range(&self, field: &'static str, value: u64) -> DecodeError {
        DecodeError::Range { kind: self.kind, field, value }
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { kind: self.kind, bytes }),
        }
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(DecodeError::Short { kind: self.kind, field }),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(DecodeError::Short { kind: self.kind, field }),
        }
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A u32 that is 0 or 1.
    pub(super) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u32(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(self.range(field, u64::from(value))),
        }
    }

    /// A count, at most `max`.
    pub(super) fn count(&mut self, field: &'static str, max: usize) -> Result<usize, DecodeError> {
        let count = self.u32(field)?;
        match usize::try_from(count) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(self.range(field, u64::from(count))),
        }
    }

    pub(super) fn generation(&mut self) -> Result<Generation, DecodeError> {
        match self.u64("generation")? {
            value if value <= Ballot::GENERATION_MAX => Ok(Generation(value)),
            value => Err(self.range("generation", value)),
        }
    }

    pub(super) fn ballot(&mut self) -> Result<Ballot, DecodeError> {
        let ballot = Ballot(self.u64("ballot")?);
        if ballot.generation().0 > Ballot::GENERATION_MAX {
            return Err(self.range("ballot", ballot.0));
        }
        Ok(ballot)
    }

    pub(super) fn seq(&mut self) -> Result<u64, DecodeError> {
        match self.u64("seq")? {
            value if value <= SEQ_MAX => Ok(value),
            value => Err(self.range("seq", value)),
        }
    }

    pub(super) fn head(&mut self) -> Result<Head, DecodeError> {
        Ok(Head { ballot: self.ballot()?, seq: self.seq()? })
    }

    pub(super) fn group(&mut self) -> Result<GroupId, DecodeError> {
        Ok(GroupId {
            volume: VolumeId(self.u64("volume")?),
            pg: PgId { pool: PoolId(self.u32("pool")?), pg: self.u32("pg")? },
        })
    }

    pub(super) fn object(&mut self) -> Result<ObjectId, DecodeError> {
        Ok(ObjectId { group: self.group()?, index: self.u32("object")? })
    }

    /// A range of 1 to `max` blocks within the largest object.
    pub(super) fn blocks(&mut self, max: u32) -> Result<BlockRange, DecodeError> {
        let blocks = BlockRange::new(self.u32("first block")?, self.u32("block count")?);
        if blocks.count == 0 || blocks.count > max {
            return Err(self.range("block count", u64::from(blocks.count)));
        }
        match blocks.first.checked_add(blocks.count) {
            Some(end) if end <= OBJECT_BLOCKS_MAX => Ok(blocks),
            _ => Err(self.range("first block", u64::from(blocks.first))),
        }
    }

    /// One block within the largest object.
    pub(super) fn block(&mut self) -> Result<u32, DecodeError> {
        match self.u32("block")? {
            block if block < OBJECT_BLOCKS_MAX => Ok(block),
            block => Err(self.range("block", u64::from(block))),
        }
    }

    /// `count` checksums, holes allowed.
    pub(super) fn checksums(&mut self, count: usize) -> Result<Box<[u64]>, DecodeError> {
        // No overflow: counts are checked against limits before they come here.
        let bytes = self.bytes(count * 8, "checksums")?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(match words {
            [one] => Box::new([u64::from_le_bytes(*one)]),
            words => words.iter().map(|w| u64::from_le_bytes(*w)).collect(),
        })
    }

    /// `count` numbers of 32 bits.
    pub(super) fn u32s(&mut self, field: &'static str, count: usize) -> Result<Vec<u32>, DecodeError> {
        let bytes = self.bytes(count * 4, field)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|w| u32::from_le_bytes(*w)).collect())
    }

    /// A list of blocks in ascending order, each within `within`.
    pub(super) fn block_list(&mut self, within: BlockRange) -> Result<Vec<u32>, DecodeError> {
        let count = self.count("bad block count", within.count as usize)?;
        let list = self.u32s("bad blocks", count)?;
        let mut least = within.first;
        for block in &list {
            if *block < least || *block >= within.end() {
                return Err(self.range("bad block", u64::from(*block)));
            }
            least = block + 1;
        }
        Ok(list)
    }
}

/// How many of them are no holes.
pub(super) fn not_holes(checksums: &[u64]) -> usize {
    checksums.iter().filter(|sum| **sum != HOLE).count()
}

pub(super) fn put_group(out: &mut BytesMut, group: &GroupId) {
    out.put_u64_le(group.volume.0);
    out.put_u32_le(group.pg.pool.0);
    out.put_u32_le(group.pg.pg);
}

pub(super) fn put_object(out: &mut BytesMut, object: &ObjectId) {
    put_group(out, &object.group);
    out.put_u32_le(object.index);
}

pub(super) fn put_head(out: &mut BytesMut, head: &Head) {
    out.put_u64_le(head.ballot.0);
    out.put_u64_le(head.seq);
}

pub(super) fn put_blocks(out: &mut BytesMut, blocks: BlockRange) {
    out.put_u32_le(blocks.first);
    out.put_u32_le(blocks.count);
}

pub(super) fn put_u64s(out: &mut BytesMut, values: &[u64]) {
    if cfg!(target_endian = "little") {
        return out.extend_from_slice(values.as_bytes());
    }
    out.reserve(values.len() * 8);
    for value in values {
        out.put_u64_le(*value);
    }
}

/// A count and then the values.
pub(super) fn put_u32s(out: &mut BytesMut, values: &[u32]) {
    out.reserve(4 + values.len() * 4);
    // Limits keep every list far below 2^32 items.
    out.put_u32_le(values.len() as u32);
    for value in values {
        out.put_u32_le(*value);
    }
}
