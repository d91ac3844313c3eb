//! A read from the capture of its entries to its answer. The engine does the I/O.

use super::ReadMode;
use super::table::{BlockEntry, UNKNOWN};
use crate::device::buffer::Buf;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::{BLOCK_SIZE, BlockRange, ObjectId};

/// A read under way.
pub struct Read {
    /// The caller's.
    pub token: u64,
    /// What is read.
    pub object: ObjectId,
    /// Which blocks.
    pub blocks: BlockRange,
    /// Which bytes.
    pub mode: ReadMode,
    /// As of the call.
    pub entries: Vec<BlockEntry>,
    /// Parts of the entries, then pieces of the data, that are still to come.
    pub waiting: usize,
    /// Blocks (relative to the range) whose bytes are wanted and have a place.
    pub wanted: Vec<u32>,
    /// Filled pieces: the index in `wanted` of the first block, and the bytes.
    pub pieces: Vec<(u32, Buf)>,
    /// Indices in `wanted` that the device could not read.
    pub unreadable: Vec<u32>,
}

/// What a finished read comes to.
pub struct Answer {
    /// One for each block.
    pub checksums: Box<[u64]>,
    /// Good bytes.
    pub data: Option<Buf>,
    /// Blocks without.
    pub bad: Vec<u32>,
    /// Those of them whose damage the read has found: `(block, entry)`.
    pub damaged: Vec<(u32, BlockEntry)>,
}

impl Read {
    /// Chooses the blocks whose bytes are to be fetched.
    pub fn choose(&mut self) {
        for (n, entry) in self.entries.iter().enumerate() {
            let asked = match &self.mode {
                ReadMode::All => entry.checksum != HOLE,
                ReadMode::Differing(have) => {
                    entry.checksum != HOLE && have.get(n) != Some(&entry.checksum)
                }
                ReadMode::ChecksumsOnly => false,
            };
            if asked && entry.location != 0 {
                self.wanted.push(n as u32);
            }
        }
    }

    /// Verifies what came and puts it together.
    pub fn finish(mut self) -> Answer {
        self.pieces.sort_unstable_by_key(|p| p.0);
        let mut data: Option<Buf> = None;
        for (_, piece) in self.pieces {
            data = Some(match data.take() {
                None => piece,
                Some(mut all) => {
                    // Pieces are parts of one buffer, in order: they always join.
                    let joined = all.join(piece);
                    debug_assert!(joined.is_ok());
                    all
                }
            });
        }
        let mut damaged = Vec::new();
        let mut kept = 0;
        if let Some(data) = &mut data {
            for (n, &at) in self.wanted.iter().enumerate() {
                let entry = self.entries[at as usize];
                let block = self.blocks.first + at;
                let from = n * BLOCK_SIZE..(n + 1) * BLOCK_SIZE;
                let good = !self.unreadable.contains(&(n as u32))
                    && data.get(from.clone()).is_some_and(|bytes| {
                        let o = &self.object;
                        block_checksum(o.group.volume, o.index, block, bytes) == entry.checksum
                    });
                if !good {
                    damaged.push((block, entry));
                    continue;
                }
                if kept != from.start {
                    data.copy_within(from, kept);
                }
                kept += BLOCK_SIZE;
            }
            data.truncate(kept);
        }
        let mut bad: Vec<u32> = damaged.iter().map(|d| d.0).collect();
        for (n, entry) in self.entries.iter().enumerate() {
            let asked = match &self.mode {
                ReadMode::All => true,
                ReadMode::Differing(have) => have.get(n) != Some(&entry.checksum),
                ReadMode::ChecksumsOnly => entry.checksum == UNKNOWN,
            };
            if asked && entry.checksum != HOLE && entry.location == 0 {
                bad.push(self.blocks.first + n as u32);
            }
        }
        bad.sort_unstable();
        Answer {
            checksums: self.entries.iter().map(|e| e.checksum).collect(),
            data,
            bad,
            damaged,
        }
    }
}
