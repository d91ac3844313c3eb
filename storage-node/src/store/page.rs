//! A page of a block table, what can happen to it, and what that changes in the live counts of segments.
//!
//! Plain data and functions on it: which pages there are, and where, is `table.rs`'s.

use super::segments::Delta;
use super::superblock::Superblock;
use trefoil_core::checksum::HOLE;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries in a page.
pub const PAGE_BLOCKS: u32 = 256;

/// Where a block is. Checksum 0: a hole; no location, yet a checksum: bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockEntry {
    /// Absolute block number on the device; 0 is none (the superblock is there).
    pub location: u64,
    /// Checksum.
    pub checksum: u64,
}

/// An entry, as it is on the device.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
pub struct DiskEntry {
    location: U64,
    checksum: U64,
}

/// 256 entries, as they are on the device.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone)]
#[repr(C)]
pub struct Page([DiskEntry; PAGE_BLOCKS as usize]);

impl Page {
    /// All holes.
    pub fn empty() -> Box<Page> {
        let none = DiskEntry { location: U64::new(0), checksum: U64::new(HOLE) };
        Box::new(Page([none; PAGE_BLOCKS as usize]))
    }
    /// Sets an entry, without counting.
    pub fn put(&mut self, block: usize, location: u64, checksum: u64) {
        self.0[block] = DiskEntry { location: U64::new(location), checksum: U64::new(checksum) };
    }
    /// An entry.
    pub fn get(&self, block: usize) -> BlockEntry {
        BlockEntry { location: self.0[block].location.get(), checksum: self.0[block].checksum.get() }
    }
}

/// A change of a page, or a look at it, in its order.
pub enum PageOp {
    /// A block.
    One { block: u8, location: u64, checksum: u64 },
    /// Blocks that lie one behind the other.
    Run { first: u8, location: u64, checksums: Box<[u64]> },
    /// Holes.
    Zero { first: u8, count: u16 },
    /// A block, if it has this checksum.
    Heal { block: u8, location: u64, checksum: u64 },
    /// A read wants to know.
    Capture { read: usize, at: u32, first: u8, count: u16 },
}

impl PageOp {
    /// Blocks of data that it brings.
    pub fn data_blocks(&self) -> u64 {
        match self {
            PageOp::One { location, .. } => u64::from(*location != 0),
            PageOp::Run { checksums, .. } => checksums.len() as u64,
            _ => 0,
        }
    }
}

/// Carries out a change.
pub fn apply(page: &mut Page, op: PageOp, counts: &mut Counts, pending: &mut Pending) {
    let mut set = |page: &mut Page, block: usize, location, checksum| {
        pending.change(counts, page.get(block).location, -1);
        pending.change(counts, location, 1);
        page.put(block, location, checksum);
    };
    match op {
        PageOp::One { block, location, checksum } => set(page, block.into(), location, checksum),
        PageOp::Run { first, location, checksums } => {
            for (n, checksum) in checksums.iter().enumerate() {
                set(page, usize::from(first) + n, location + n as u64, *checksum);
            }
        }
        PageOp::Zero { first, count } => {
            for block in usize::from(first)..usize::from(first) + usize::from(count) {
                set(page, block, 0, HOLE);
            }
        }
        PageOp::Heal { block, location, checksum } => {
            if page.get(block.into()).checksum == checksum {
                set(page, block.into(), location, checksum);
            }
        }
        PageOp::Capture { .. } => {}
    }
}

/// How changes of a page change the live counts of segments.
#[derive(Default)]
pub struct Counts {
    /// In the order of the changes, or merged.
    pub deltas: Vec<Delta>,
    /// Length at which they are merged.
    merge_at: usize,
}

/// Changes of counts that a page keeps before it merges them.
const MERGE_AT: usize = 64;

impl Counts {
    fn add(&mut self, (segment, turn): (u32, u16), delta: i32) {
        if let Some(last) = self.deltas.last_mut()
            && (last.0, last.1) == (segment, turn)
        {
            last.2 += delta;
            return;
        }
        self.deltas.push((segment, turn, delta));
        if self.deltas.len() >= self.merge_at.max(MERGE_AT) {
            merge(&mut self.deltas);
            // At most 512 segments differ, so this ends.
            self.merge_at = self.deltas.len() * 2;
        }
    }
}

/// Adds up what is of the same segment and turn.
pub fn merge(deltas: &mut Vec<Delta>) {
    deltas.sort_unstable();
    deltas.dedup_by(|next, kept| {
        let same = (next.0, next.1) == (kept.0, kept.1);
        if same {
            kept.2 += next.2;
        }
        same
    });
    deltas.retain(|d| d.2 != 0);
}

/// What all pages' changes add to the counts, beyond what their newest images in the log say.
pub struct Pending {
    /// Says which segment a location is in.
    pub sb: Superblock,
    /// By segment: its turn, and the sum.
    pub segments: Vec<(u16, i32)>,
    /// Of all.
    pub total: i64,
}

impl Pending {
    fn add(&mut self, (segment, turn): (u32, u16), delta: i32) -> bool {
        match self.segments.get_mut(segment as usize) {
            Some(pending) if pending.0 == turn => {
                pending.1 += delta;
                self.total += i64::from(delta);
                true
            }
            _ => false,
        }
    }
    /// An entry of a page changes.
    fn change(&mut self, counts: &mut Counts, location: u64, delta: i32) {
        if location != 0 {
            let tag = self.sb.tag_of(location);
            if self.add(tag, delta) {
                counts.add(tag, delta);
            }
        }
    }
    /// A page's changes are in an image, or are no more.
    pub fn undo(&mut self, counts: &[Delta]) {
        for &(segment, turn, delta) in counts {
            self.add((segment, turn), -delta);
        }
    }
}

/// The entries of a page's image.
pub fn entries_of(bytes: &[u8]) -> impl Iterator<Item = BlockEntry> {
    let page = Page::ref_from_bytes(bytes).ok();
    (0..PAGE_BLOCKS as usize).filter_map(move |block| page.map(|p| p.get(block)))
}
