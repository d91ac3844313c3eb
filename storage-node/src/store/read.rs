//! Reads: from the capture of their entries at the call, over the device, to their answers.

use super::engine::{Running, Store};
use super::index::Index;
use super::superblock::byte_of;
use super::table::{BlockEntry, OBJECT_BLOCKS_MAX, UNKNOWN};
use super::{ReadMode, StoreEvent};
use crate::device::buffer::Buf;
use crate::device::{Device, Op};
use std::io;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::{BLOCK_SIZE, BlockRange, ObjectId};

/// Blocks in one read of the device.
const RUN_BLOCKS_MAX: u32 = 256;
/// Ended reads whose lists are kept for later ones (1 MiB in all); others are freed.
const SPARE_MAX: usize = 64;
/// Blocks of the largest read whose lists are kept.
const SPARE_BLOCKS_MAX: usize = 256;
/// Bad blocks remembered; beyond it their damage is counted and logged at each read.
const BAD_MAX: usize = 64 << 10;

/// A read under way.
#[derive(Default)]
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
    /// For [`super::space::SpaceState::read_ended`]: its blocks stay where they are until then.
    pub epoch: u64,
}

/// What a finished read comes to.
pub struct Answer {
    /// One for each block.
    pub checksums: Box<[u64]>,
    /// Good bytes.
    pub data: Option<Buf>,
    /// Blocks without.
    pub bad: Vec<u32>,
    /// Those of them whose bytes can be looked for by their checksum: `(block, entry)`.
    pub damaged: Vec<(u32, BlockEntry)>,
}

impl Read {
    /// Chooses the blocks whose bytes are to be fetched.
    pub fn choose(&mut self) {
        for (n, entry) in self.entries.iter().enumerate() {
            let asked = match &self.mode {
                ReadMode::All => entry.checksum != HOLE,
                ReadMode::Differing(have) => entry.checksum != HOLE && have.get(n) != Some(&entry.checksum),
                ReadMode::ChecksumsOnly => false,
            };
            if asked && entry.location != 0 {
                self.wanted.push(n as u32);
            }
        }
    }

    /// Verifies what came and puts it together. Its lists are empty afterwards.
    pub fn finish(&mut self) -> Answer {
        self.pieces.sort_unstable_by_key(|p| p.0);
        let mut data: Option<Buf> = None;
        for (_, piece) in self.pieces.drain(..) {
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
        if let Some(buf) = &mut data {
            let data: &mut [u8] = buf;
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
            buf.truncate(kept);
        }
        let mut bad: Vec<u32> = damaged.iter().map(|d| d.0).collect();
        for (n, entry) in self.entries.iter().enumerate() {
            let asked = match &self.mode {
                ReadMode::All => true,
                ReadMode::Differing(have) => have.get(n) != Some(&entry.checksum),
                ReadMode::ChecksumsOnly => entry.checksum == UNKNOWN,
            };
            if asked && entry.checksum != HOLE && entry.location == 0 {
                let block = self.blocks.first + n as u32;
                bad.push(block);
                // Where the page is lost nobody can say by checksum what it held.
                if entry.checksum != UNKNOWN {
                    damaged.push((block, *entry));
                }
            }
        }
        bad.sort_unstable();
        let checksums = self.entries.iter().map(|e| e.checksum).collect();
        self.entries.clear();
        self.wanted.clear();
        self.unreadable.clear();
        Answer { checksums, data, bad, damaged }
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// Reads blocks as of all records appended so far, durable or not, and of none appended later. The
    /// answer is a [`StoreEvent::Read`] with this token.
    pub fn read(&mut self, token: u64, object: ObjectId, blocks: BlockRange, mode: ReadMode) {
        let end = blocks.end().min(OBJECT_BLOCKS_MAX);
        let blocks = BlockRange::new(blocks.first, end.saturating_sub(blocks.first));
        let epoch = self.space.read_begins();
        let lists = self.spare_reads.pop().unwrap_or_default();
        let mut read = Read { token, object, blocks, mode, epoch, waiting: 0, ..lists };
        read.entries.resize(blocks.count as usize, BlockEntry::default());
        let slot = self.reads.vacant_entry();
        let key = slot.key();
        let waiting = self.state.tables.capture(object, blocks, key, &mut read.entries);
        read.waiting = waiting;
        slot.insert(read);
        if waiting == 0 {
            self.captured(key);
        }
    }

    /// All entries of a read are known.
    pub(super) fn captured(&mut self, key: usize) {
        if let Some(read) = self.reads.get_mut(key) {
            read.choose();
            if read.wanted.is_empty() || self.starved.is_empty() {
                self.fetch(key);
            } else {
                // Not past those that wait for memory.
                self.starved.push_back(key);
            }
        }
    }

    /// Fetches a read's bytes: from pending batches at once, from the device in runs.
    pub(super) fn fetch(&mut self, key: usize) {
        let Some(read) = self.reads.get_mut(key) else {
            return;
        };
        if read.wanted.is_empty() {
            return self.finish(key);
        }
        let Some(mut rest) = self.read_pool.get(read.wanted.len() * BLOCK_SIZE) else {
            self.starved.push_back(key);
            return;
        };
        let mut first = 0;
        while first < read.wanted.len() {
            let place = |n: usize| read.entries[read.wanted[n] as usize].location;
            let location = place(first);
            if let Some(bytes) = self.log.find(location) {
                let mut piece = rest;
                rest = piece.split_off(BLOCK_SIZE);
                piece.copy_from_slice(bytes);
                read.pieces.push((first as u32, piece));
                first += 1;
                continue;
            }
            let mut n = 1;
            while first + n < read.wanted.len()
                && n < RUN_BLOCKS_MAX as usize
                && place(first + n) == location + n as u64
                && self.log.find(place(first + n)).is_none()
            {
                n += 1;
            }
            let mut piece = rest;
            rest = piece.split_off(n * BLOCK_SIZE);
            let id = self.running.insert(Running::Piece { read: key, first: first as u32 });
            read.waiting += 1;
            self.stats.blocks_read += n as u64;
            self.dev.start(id as u64, Op::Read { offset: byte_of(location), buf: piece });
            first += n;
        }
        if read.waiting == 0 {
            self.finish(key);
        }
    }

    fn finish(&mut self, key: usize) {
        let Some(mut read) = self.reads.try_remove(key) else {
            return;
        };
        self.space.read_ended(read.epoch);
        let (token, object) = (read.token, read.object);
        let answer = read.finish();
        if !self.bad.is_empty() && matches!(read.mode, ReadMode::All) {
            // What a device could not give for a moment is bad no more.
            let good =
                (read.blocks.first..read.blocks.end()).filter(|b| answer.bad.binary_search(b).is_err());
            let now = self.state.tables.current(object);
            good.for_each(|block| _ = self.bad.remove(&(now, block)));
        }
        if self.spare_reads.len() < SPARE_MAX && read.entries.capacity() <= SPARE_BLOCKS_MAX {
            self.spare_reads.push(read);
        }
        for (block, entry) in answer.damaged {
            self.found_bad(object, block, entry);
        }
        self.events.push(StoreEvent::Read {
            token,
            checksums: answer.checksums,
            data: answer.data.map(Buf::freeze).unwrap_or_default(),
            bad: answer.bad,
        });
    }

    /// A block's bytes are not what they should be, or its table says that they are not here. Counted and
    /// logged once; told each time: the node looks for a limited number at once, and does not find what only
    /// peers have that are away.
    pub(super) fn found_bad(&mut self, object: ObjectId, block: u32, entry: BlockEntry) {
        let object = self.state.tables.current(object);
        if self.state.tables.peek(object, block).is_some_and(|now| now != entry) {
            // Written, healed or moved while it was being read.
            return;
        }
        if !self.bad.contains(&(object, block)) {
            self.stats.bad_blocks += u64::from(entry.location != 0);
            if entry.location == 0 {
                tracing::warn!(
                    device = self.dev.name(), %object, block,
                    "a repair has not got the bytes of this block; they will be fetched from another copy"
                );
            } else {
                tracing::error!(
                    device = self.dev.name(), %object, block,
                    byte = byte_of(entry.location),
                    "a block does not match its checksum; it will be fetched from another copy"
                );
            }
            if self.bad.len() < BAD_MAX {
                self.bad.insert((object, block));
            }
        }
        self.events.push(StoreEvent::BadBlock { object, block, checksum: entry.checksum });
    }

    /// A piece has come, or could not be read.
    pub(super) fn piece_read(&mut self, key: usize, first: u32, result: io::Result<()>, buf: Option<Buf>) {
        let Some(read) = self.reads.get_mut(key) else {
            return;
        };
        read.waiting -= 1;
        if let Some(mut buf) = buf {
            match result {
                Ok(()) => read.pieces.push((first, buf)),
                Err(error) if buf.len() <= BLOCK_SIZE => {
                    tracing::warn!(device = self.dev.name(), %error, "a block cannot be read");
                    read.unreadable.push(first);
                    read.pieces.push((first, buf));
                }
                Err(_) => {
                    // One of them is to blame: each by itself.
                    let mut n = first;
                    while !buf.is_empty() {
                        let rest = buf.split_off(BLOCK_SIZE);
                        let at = read.wanted.get(n as usize).copied().unwrap_or(0);
                        let location = read.entries.get(at as usize).map_or(0, |e| e.location);
                        let id = self.running.insert(Running::Piece { read: key, first: n });
                        read.waiting += 1;
                        let offset = byte_of(location);
                        self.dev.start(id as u64, Op::Read { offset, buf });
                        buf = rest;
                        n += 1;
                    }
                }
            }
        }
        if read.waiting == 0 {
            self.finish(key);
        }
    }
}
