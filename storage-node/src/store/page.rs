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
    match op {
        PageOp::One { block, location, checksum } => {
            pending.change(counts, page.get(block.into()).location, -1);
            pending.change(counts, location, 1);
            page.put(block.into(), location, checksum);
        }
        PageOp::Run { first, location, checksums } => {
            let run = (location..).zip(checksums.iter().copied());
            set_all(page, first, run, counts, pending);
        }
        PageOp::Zero { first, count } => {
            let holes = std::iter::repeat_n((0, HOLE), count.into());
            set_all(page, first, holes, counts, pending);
        }
        PageOp::Heal { block, location, checksum } => {
            if page.get(block.into()).checksum == checksum {
                apply(page, PageOp::One { block, location, checksum }, counts, pending);
            }
        }
        PageOp::Capture { .. } => {}
    }
}

/// Sets the entries from `first` on.
fn set_all(
    page: &mut Page,
    first: u8,
    entries: impl Iterator<Item = (u64, u64)>,
    counts: &mut Counts,
    pending: &mut Pending,
) {
    // What the entries named, and what they name now.
    let (mut gone, mut come) = (Tally::of(-1), Tally::of(1));
    for (block, (location, checksum)) in (usize::from(first)..).zip(entries) {
        gone.count(page.get(block).location, counts, pending);
        come.count(location, counts, pending);
        page.put(block, location, checksum);
    }
    gone.flush(counts, pending);
    come.flush(counts, pending);
}

/// Adds up changes of one segment's count, as long as they come one after the other: neighbours mostly lie
/// in one segment, and a large write would look its segment up for each of its blocks.
struct Tally {
    /// Of each location.
    delta: i32,
    /// The segment and turn whose locations are `from .. to`.
    tag: (u32, u16),
    from: u64,
    to: u64,
    sum: i32,
}

impl Tally {
    fn of(delta: i32) -> Tally {
        Tally { delta, tag: (0, 0), from: 0, to: 0, sum: 0 }
    }
    fn count(&mut self, location: u64, counts: &mut Counts, pending: &mut Pending) {
        if location == 0 {
            return;
        }
        if !(self.from..self.to).contains(&location) {
            self.flush(counts, pending);
            let (segment, turn) = pending.sb.tag_of(location);
            self.tag = (segment, turn);
            (self.from, self.to) = (0, 0);
            // Of a segment that does not exist nothing is counted, each by itself.
            if segment < pending.sb.segments {
                self.from = pending.sb.in_turn(segment, turn, 0);
                self.to = self.from + u64::from(pending.sb.segment_blocks);
            }
        }
        self.sum += self.delta;
    }
    fn flush(&mut self, counts: &mut Counts, pending: &mut Pending) {
        let sum = std::mem::take(&mut self.sum);
        if sum != 0 && pending.add(self.tag, sum) {
            counts.add(self.tag, sum);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::image::Rng;
    use trefoil_core::{Incarnation, NodeId};

    #[test]
    fn a_run_counts_as_its_blocks_one_by_one() {
        let sb = Superblock::new(64 << 20, 1 << 20, Incarnation(1), [1; 16], NodeId(1)).expect("possible");
        let turns: Vec<(u16, i32)> = (0..sb.segments).map(|n| (n as u16 % 3, 0)).collect();
        let pending = || Pending { sb, segments: turns.clone(), total: 0 };
        let new = || (Page::empty(), Counts::default(), pending());
        let (mut whole, mut single) = (new(), new());
        let mut rng = Rng::new(7);
        let mut most = 0;
        for _ in 0..500 {
            let first = rng.below(200) as u8;
            let count = 1 + rng.below(56) as u16;
            // Any place, also across the end of a segment, in a turn that has passed, and behind the last one.
            let segment = rng.below(u64::from(sb.segments) + 2) as u32;
            let location = sb.in_turn(segment, rng.below(3) as u16, rng.below(256) as u32);
            if rng.one_in(5) {
                apply(&mut whole.0, PageOp::Zero { first, count }, &mut whole.1, &mut whole.2);
            } else {
                let checksums = (0..count).map(|n| u64::from(n) + 1).collect();
                let run = PageOp::Run { first, location, checksums };
                apply(&mut whole.0, run, &mut whole.1, &mut whole.2);
            }
            for n in 0..u64::from(count) {
                let block = first + n as u8;
                let BlockEntry { location, checksum } = whole.0.get(block.into());
                let one = PageOp::One { block, location, checksum };
                apply(&mut single.0, one, &mut single.1, &mut single.2);
            }
            assert!(whole.0.as_bytes() == single.0.as_bytes());
            assert_eq!((&whole.2.segments, whole.2.total), (&single.2.segments, single.2.total));
            most = most.max(whole.2.total);
        }
        merge(&mut whole.1.deltas);
        merge(&mut single.1.deltas);
        assert_eq!(whole.1.deltas, single.1.deltas);
        assert!(most > 40, "most places were of a turn that has passed: {most}");
    }
}
