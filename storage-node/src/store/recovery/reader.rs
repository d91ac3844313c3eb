//! The device as recovery reads it: batches by their place, and the batch behind a batch.
//!
//! A start reads the headers of all of the log behind the last checkpoint. How long that takes is how long a
//! node is away for after a crash, so little is read that is not looked at, and nothing twice. Nothing here
//! writes, or knows what records mean.

use crate::device::Device;
use crate::device::buffer::{Buf, Pool};
use crate::store::batch::{DataChecksum, Header, NO_SEGMENT};
use crate::store::bugs::{self, Bug};
use crate::store::codec::Entry;
use crate::store::log::BatchRef;
use crate::store::root::Root;
use crate::store::state::in_bounds;
use crate::store::superblock::Superblock;
use crate::store::table::{OBJECT_BLOCKS_MAX, PAGE_BLOCKS};
use std::cell::Cell;
use trefoil_core::BLOCK_SIZE;

/// Times that the device is asked for the same blocks.
const READS_MAX: u32 = 3;
/// Blocks read at once while following the log, where its batches are small.
const WINDOW_BLOCKS: u32 = 128;
/// Blocks read at once where batches are large: of their data, which recovery does not look at, little is read.
const WINDOW_BLOCKS_SPARSE: u32 = 4;
/// Blocks of a batch from which it counts as large. A read of so many takes about as long as one read more.
const SPARSE_FROM: u32 = 48;
/// Parts of the log in memory: behind each batch there are four places to look at, and the same three of them
/// behind nearly every one.
const WINDOWS: usize = 5;

/// A batch of the log, without its data.
pub(super) struct Found {
    pub header: Header,
    pub entries: Vec<Entry>,
}

impl Found {
    /// Where and which it is.
    pub fn at(&self) -> BatchRef {
        BatchRef {
            lsn: self.header.lsn,
            checksum: self.header.checksum,
            segment: self.header.segment,
            block: self.header.block,
        }
    }
}

/// Reads the log of a device on which nothing is written meanwhile.
pub(super) struct Reader<'a, D> {
    pub device: &'a D,
    pub sb: &'a Superblock,
    pool: Pool,
    windows: [Window; WINDOWS],
    /// Counts looks at windows: the one that was looked at longest ago is read anew.
    looks: u64,
    /// Blocks read at once at the place where the log most likely goes on.
    ahead: u32,
    /// A block that the device could not give, and why: it is not known what is there.
    pub trouble: Cell<Option<(u64, std::io::ErrorKind)>>,
}

/// Blocks from `start` on, as they are on the device. Nothing is written while the log is read.
#[derive(Default)]
struct Window {
    start: u64,
    buf: Option<Buf>,
    looked: u64,
}

impl Window {
    fn has(&self, location: u64) -> bool {
        let blocks = self.buf.as_ref().map_or(0, |buf| (buf.len() / BLOCK_SIZE) as u64);
        location >= self.start && location - self.start < blocks
    }
}

impl<'a, D: Device> Reader<'a, D> {
    /// Nothing has been read yet.
    pub fn new(device: &'a D, sb: &'a Superblock) -> Reader<'a, D> {
        Reader {
            device,
            sb,
            pool: Pool::new(u64::MAX, 4 << 20, None),
            windows: Default::default(),
            looks: 0,
            ahead: WINDOW_BLOCKS,
            trouble: Cell::new(None),
        }
    }

    /// Blocks of one segment; `None` where the device fails.
    fn read(&self, location: u64, blocks: u32) -> Option<Buf> {
        let mut buf = self.pool.get(blocks as usize * BLOCK_SIZE)?;
        let mut why = None;
        for _ in 0..READS_MAX {
            match self.device.read_now(location * BLOCK_SIZE as u64, &mut buf) {
                Ok(()) => return Some(buf),
                Err(error) => why = Some((location, error.kind())),
            }
        }
        self.trouble.set(why);
        None
    }

    /// A block of a segment, through a window; where none has it, so many blocks are read.
    fn block(&mut self, segment: u32, block: u32, ahead: u32) -> Option<&[u8]> {
        let location = self.sb.location(segment, block);
        self.looks += 1;
        let found = self.windows.iter().position(|window| window.has(location));
        let at = match found {
            Some(at) => at,
            None => {
                let oldest = (0..WINDOWS).min_by_key(|at| self.windows[*at].looked)?;
                // Before the next one is read: its memory is used again.
                self.windows[oldest].buf = None;
                let n = ahead.min(self.sb.segment_blocks - block);
                // Where a window cannot be read, perhaps its first block can.
                let before = self.trouble.get();
                let buf = match self.read(location, n) {
                    Some(buf) => buf,
                    None => {
                        self.trouble.set(before);
                        self.read(location, 1)?
                    }
                };
                self.windows[oldest] = Window { start: location, buf: Some(buf), looked: 0 };
                oldest
            }
        };
        let window = &mut self.windows[at];
        window.looked = self.looks;
        let at = (location - window.start) as usize * BLOCK_SIZE;
        window.buf.as_ref()?.get(at..at + BLOCK_SIZE)
    }

    /// The batch that begins here, if one does: its header is verified, its data is not.
    pub fn batch(&mut self, segment: u32, block: u32) -> Option<Found> {
        self.batch_if(segment, block, self.ahead, |_| true)
    }

    /// The same, for a batch whose header, not verified yet, is `wanted`; others cost nothing more.
    fn batch_if(
        &mut self,
        segment: u32,
        block: u32,
        ahead: u32,
        wanted: impl FnOnce(&Header) -> bool,
    ) -> Option<Found> {
        if segment >= self.sb.segments || block >= self.sb.segment_blocks {
            return None;
        }
        let sb = self.sb;
        let first = self.block(segment, block, ahead)?;
        let header = Header::peek(first, sb.incarnation, segment, block)?;
        if u64::from(block) + u64::from(header.blocks()) > u64::from(sb.segment_blocks) || !wanted(&header) {
            return None;
        }
        let entries = if header.header_blocks == 1 {
            header.verify(sb.incarnation, first).then(|| header.entries(first))??
        } else {
            let area = self.read(sb.location(segment, block), header.header_blocks)?;
            header.verify(sb.incarnation, &area).then(|| header.entries(&area))??
        };
        let sane = entries.iter().all(|e| match e {
            Entry::Node(record) => in_bounds(record),
            Entry::Page { page, .. } => *page < OBJECT_BLOCKS_MAX / PAGE_BLOCKS,
            Entry::Move { blocks, .. } => blocks.iter().all(|b| b.0 < OBJECT_BLOCKS_MAX),
            _ => true,
        });
        sane.then_some(Found { header, entries })
    }

    /// True if the batch's data blocks are all there.
    pub fn whole(&self, header: &Header) -> bool {
        let mut sum = DataChecksum::default();
        let mut at = header.block + header.header_blocks;
        let end = header.block + header.blocks();
        while at < end {
            let n = (end - at).min(256);
            let Some(buf) = self.read(self.sb.location(header.segment, at), n) else {
                return false;
            };
            sum.update(&buf);
            at += n;
        }
        sum.finish() == header.data_checksum
    }

    /// The batch behind `from`, which may begin at one of `places`. Where a torn one fits too, it has the
    /// smaller LSN: a Start leaves one out.
    pub fn successor(&mut self, from: BatchRef, places: &[(u32, u32)]) -> Option<Found> {
        let mut best: Option<Found> = None;
        let follows =
            |header: &Header| header.previous_lsn == from.lsn && header.previous_checksum == from.checksum;
        for (n, &(segment, block)) in places.iter().enumerate() {
            if segment == NO_SEGMENT {
                continue;
            }
            // The first place is the likeliest: of the others only the block in question is read.
            let ahead = if n == 0 { self.ahead } else { 1 };
            if let Some(found) = self.batch_if(segment, block, ahead, follows)
                && best
                    .as_ref()
                    .is_none_or(|b| b.header.lsn < found.header.lsn && !bugs::on(Bug::FirstSuccessor))
            {
                best = Some(found);
            }
        }
        if let Some(found) = &best {
            let sparse = found.header.blocks() >= SPARSE_FROM;
            self.ahead = if sparse { WINDOW_BLOCKS_SPARSE } else { WINDOW_BLOCKS };
        }
        best
    }

    /// Looks from each of `places` to the end of its segment, and at the first block of the other segments
    /// (`thorough`), for the first batch whose predecessor has an LSN of at least `least`: the log once
    /// went on.
    pub fn later(&mut self, places: &[(u32, u32)], least: u64, thorough: bool) -> Option<Found> {
        let mut best: Option<Found> = None;
        let mut look = |this: &mut Self, segment, block, ahead| {
            let before = best.as_ref().map_or(u64::MAX, |found| found.header.lsn);
            let wanted = |header: &Header| header.previous_lsn >= least && header.lsn < before;
            if let Some(found) = this.batch_if(segment, block, ahead, wanted) {
                best = Some(found);
            }
        };
        for &(segment, from) in places {
            if segment < self.sb.segments {
                for block in from..self.sb.segment_blocks {
                    look(self, segment, block, WINDOW_BLOCKS);
                }
            }
        }
        if thorough {
            for segment in 0..self.sb.segments {
                look(self, segment, 0, 1);
            }
        }
        best
    }

    /// Looks at every batch of every segment for the newest SnapshotEnd: for when no root is good.
    pub fn find_snapshot(&mut self, progress: &mut dyn FnMut(u32, u32)) -> Option<Root> {
        let mut newest: Option<Root> = None;
        for segment in 0..self.sb.segments {
            progress(segment, self.sb.segments);
            let mut block = 0;
            while block < self.sb.segment_blocks {
                let Some(found) = self.batch(segment, block) else {
                    // Damage, or the end of what was written: what lies behind is found block by block.
                    block += 1;
                    continue;
                };
                for entry in &found.entries {
                    if let Entry::SnapshotEnd { covers, .. } = entry
                        && newest.is_none_or(|n| n.covers.lsn < covers.lsn)
                    {
                        newest = Some(Root { number: 0, covers: *covers, end: found.at() });
                    }
                }
                block += found.header.blocks();
            }
        }
        newest
    }
}
