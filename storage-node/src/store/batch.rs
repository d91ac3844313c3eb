//! The header of a batch: what makes a batch whole, and what chains it to the one before.
//!
//! A batch is one write: `header_blocks` blocks that hold this header and the records, then
//! `data_blocks` blocks of data. The header's checksum covers all header blocks and is seeded with the
//! store's incarnation; the header names its own place and carries the LSN *and the checksum* of the
//! batch before it. So nothing that was not written here, in this store, directly behind that batch,
//! is ever taken for its successor, whatever bytes a guest writes. `data_checksum` covers the data
//! blocks: it tells a torn batch apart from one that was durable, independently of the checksums
//! that clients send with their blocks.

use super::codec::{self, Entry};
use trefoil_core::{BLOCK_SIZE, Incarnation};
use trefoil_crc::Crc64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of a batch.
pub const MAGIC: [u8; 8] = *b"TRFLBATC";
/// Version of header and records.
pub const VERSION: u16 = 2;
/// Flag: the batch is of the cold stream.
const COLD: u16 = 1;
/// Stands for "there is no next segment".
pub const NO_SEGMENT: u32 = u32::MAX;
/// Blocks of header in one batch: a Settle of a whole group of 2^18 objects fits.
pub const HEADER_BLOCKS_MAX: u32 = 1280;
/// Bytes of the fixed part.
pub const FIXED: usize = size_of::<Disk>();

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    checksum: U64,
    version: U16,
    flags: U16,
    header_blocks: U32,
    data_blocks: U32,
    records_bytes: U32,
    incarnation: U64,
    lsn: U64,
    previous_lsn: U64,
    previous_checksum: U64,
    data_checksum: U64,
    segment: U32,
    block: U32,
    next_segment: U32,
    other_segment: U32,
    other_block: U32,
    other_next: U32,
    turn: U32,
    reserved: U32,
}

/// The header of a batch, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the header blocks.
    pub checksum: u64,
    /// Blocks of header.
    pub header_blocks: u32,
    /// Blocks of data behind them.
    pub data_blocks: u32,
    /// Bytes of records behind the fixed part.
    pub records_bytes: u32,
    /// Position in the log; grows from batch to batch, not always by one.
    pub lsn: u64,
    /// That of the batch before.
    pub previous_lsn: u64,
    /// The header checksum of the batch before.
    pub previous_checksum: u64,
    /// Of the data blocks.
    pub data_checksum: u64,
    /// The segment that it lies in.
    pub segment: u32,
    /// The block of the segment that it begins at.
    pub block: u32,
    /// Where its stream goes on when this segment is full, or [`NO_SEGMENT`].
    pub next_segment: u32,
    /// Where the next batch of the other stream begins: segment.
    pub other_segment: u32,
    /// Block.
    pub other_block: u32,
    /// Where that stream goes on when its segment is full, or [`NO_SEGMENT`].
    pub other_next: u32,
    /// Of the cold stream.
    pub cold: bool,
    /// How often the segment has been taken, in its lowest 16 bits: the turn of its blocks' locations.
    pub turn: u16,
}

impl Header {
    /// Blocks of the whole batch.
    pub fn blocks(&self) -> u32 {
        self.header_blocks.saturating_add(self.data_blocks)
    }

    /// Where the batch behind this one may begin, the likeliest place first.
    pub fn successors(&self) -> [(u32, u32); 4] {
        [
            (self.segment, self.block.saturating_add(self.blocks())),
            (self.next_segment, 0),
            (self.other_segment, self.other_block),
            (self.other_next, 0),
        ]
    }

    /// Writes the header and `records` to the front of `area`, which is `header_blocks` long, and
    /// returns the header's checksum.
    pub fn seal(&self, incarnation: Incarnation, records: &[u8], area: &mut [u8]) -> u64 {
        let mut disk = Disk {
            magic: MAGIC,
            checksum: U64::new(0),
            version: U16::new(VERSION),
            flags: U16::new(if self.cold { COLD } else { 0 }),
            header_blocks: U32::new(self.header_blocks),
            data_blocks: U32::new(self.data_blocks),
            records_bytes: U32::new(records.len() as u32),
            incarnation: U64::new(incarnation.0),
            lsn: U64::new(self.lsn),
            previous_lsn: U64::new(self.previous_lsn),
            previous_checksum: U64::new(self.previous_checksum),
            data_checksum: U64::new(self.data_checksum),
            segment: U32::new(self.segment),
            block: U32::new(self.block),
            next_segment: U32::new(self.next_segment),
            other_segment: U32::new(self.other_segment),
            other_block: U32::new(self.other_block),
            other_next: U32::new(self.other_next),
            turn: U32::new(u32::from(self.turn)),
            reserved: U32::new(0),
        };
        area[..FIXED].copy_from_slice(disk.as_bytes());
        area[FIXED..FIXED + records.len()].copy_from_slice(records);
        area[FIXED + records.len()..].fill(0);
        // The checksum's field is zero as yet: in one piece, which is aligned too.
        let mut digest = Crc64::default();
        digest.update(&incarnation.0.to_le_bytes());
        digest.update(area);
        let sum = digest.finish();
        disk.checksum = U64::new(sum);
        area[..FIXED].copy_from_slice(disk.as_bytes());
        sum
    }

    /// The fixed part, if `block` looks like the first block of a batch of this store at this place.
    /// The checksum is not verified yet: the caller brings `header_blocks` blocks to [`Header::verify`].
    pub fn peek(block: &[u8], incarnation: Incarnation, segment: u32, at: u32) -> Option<Header> {
        let (disk, _) = Disk::read_from_prefix(block).ok()?;
        let header = Header {
            checksum: disk.checksum.get(),
            header_blocks: disk.header_blocks.get(),
            data_blocks: disk.data_blocks.get(),
            records_bytes: disk.records_bytes.get(),
            lsn: disk.lsn.get(),
            previous_lsn: disk.previous_lsn.get(),
            previous_checksum: disk.previous_checksum.get(),
            data_checksum: disk.data_checksum.get(),
            segment: disk.segment.get(),
            block: disk.block.get(),
            next_segment: disk.next_segment.get(),
            other_segment: disk.other_segment.get(),
            other_block: disk.other_block.get(),
            other_next: disk.other_next.get(),
            cold: disk.flags.get() & COLD != 0,
            turn: disk.turn.get() as u16,
        };
        (disk.magic == MAGIC
            && disk.version.get() == VERSION
            && disk.flags.get() & !COLD == 0
            && disk.incarnation.get() == incarnation.0
            && header.segment == segment
            && header.block == at
            && (1..=HEADER_BLOCKS_MAX).contains(&header.header_blocks)
            && header.records_bytes as usize + FIXED <= header.header_blocks as usize * BLOCK_SIZE
            && header.lsn > header.previous_lsn)
            .then_some(header)
    }

    /// True if the header blocks are what was written.
    pub fn verify(&self, incarnation: Incarnation, area: &[u8]) -> bool {
        area.len() == self.header_blocks as usize * BLOCK_SIZE
            && header_checksum(incarnation, area) == self.checksum
    }

    /// The records of verified header blocks; `None` if they do not decode or do not add up.
    pub fn entries(&self, area: &[u8]) -> Option<Vec<Entry>> {
        let mut rest = area.get(FIXED..FIXED + self.records_bytes as usize)?;
        let mut entries = Vec::new();
        let mut data_blocks = 0u32;
        while !rest.is_empty() {
            let (entry, more) = codec::take(rest).ok()?;
            data_blocks = data_blocks.checked_add(entry.data_blocks())?;
            entries.push(entry);
            rest = more;
        }
        (data_blocks == self.data_blocks).then_some(entries)
    }
}

/// Over the header blocks with the checksum field taken as zero.
fn header_checksum(incarnation: Incarnation, area: &[u8]) -> u64 {
    let at = std::mem::offset_of!(Disk, checksum);
    let mut digest = Crc64::default();
    digest.update(&incarnation.0.to_le_bytes());
    digest.update(&area[..at]);
    digest.update(&[0; 8]);
    digest.update(&area[at + 8..]);
    digest.finish()
}

/// The checksum of a page of a block table: over its bytes and over what it is.
pub fn page_checksum(object: trefoil_core::ObjectId, page: u32, bytes: &[u8]) -> u64 {
    // Pages share nothing with data blocks: no object has that many blocks.
    trefoil_core::checksum::block_checksum(object.group.volume, object.index, !page, bytes)
}

/// Folds data blocks into the batch's `data_checksum`, chunk by chunk.
#[derive(Default)]
pub struct DataChecksum(Crc64);

impl DataChecksum {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    /// The sum.
    pub fn finish(self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_every_flip_is_seen() {
        let inc = Incarnation(0x0102_0304_0506_0708);
        let mut records = Vec::new();
        codec::put_start(3, false, &mut records).expect("encodes");
        let header = Header {
            checksum: 0,
            header_blocks: 1,
            data_blocks: 0,
            records_bytes: records.len() as u32,
            lsn: 10,
            previous_lsn: 8,
            previous_checksum: 0x99,
            data_checksum: DataChecksum::default().finish(),
            segment: 2,
            block: 5,
            next_segment: 3,
            other_segment: 7,
            other_block: 8,
            other_next: 9,
            cold: true,
            turn: 6,
        };
        let mut area = vec![0xffu8; BLOCK_SIZE];
        let checksum = header.seal(inc, &records, &mut area);
        let hex: String = area[16..FIXED + 4].iter().map(|b| format!("{b:02x}")).collect();
        // Frozen: devices in the field carry it.
        assert_eq!(
            hex,
            "02000100 01000000 00000000 03000000 08070605 04030201 0a000000 00000000 08000000 \
             00000000 99000000 00000000 00000000 00000000 02000000 05000000 03000000 07000000 \
             08000000 09000000 06000000 00000000 00030000"
                .replace(' ', "")
        );
        assert_eq!(checksum, 4387464559517700822);
        let seen = Header::peek(&area, inc, 2, 5).expect("is one");
        assert_eq!(seen, Header { checksum, ..header });
        assert!(seen.verify(inc, &area));
        assert_eq!(seen.entries(&area), Some(vec![Entry::Start { session: 3, lost: false }]));
        assert!(Header::peek(&area, inc, 2, 6).is_none(), "another place");
        assert!(Header::peek(&area, Incarnation(1), 2, 5).is_none(), "another store");
        for at in 0..BLOCK_SIZE {
            area[at] ^= 1;
            assert!(Header::peek(&area, inc, 2, 5).is_none_or(|h| !h.verify(inc, &area)), "flip at {at}");
            area[at] ^= 1;
        }
    }
}
