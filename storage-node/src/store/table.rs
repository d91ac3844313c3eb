//! Block tables: where each block of each object lies and what its checksum is.
//!
//! A page holds 256 entries of 16 bytes. Pages live in the log; a bounded number is kept in memory.
//! A change to a page that is not in memory is queued on it, in order with the reads that wait for it,
//! so that a write never waits for a page and a read never shows a change that came behind it. Each page
//! also keeps how its changes since its newest image in the log change the live counts of segments; the
//! Page record of the next image carries that. This module does no I/O: it says which pages to load ([`Tables::next_load`]) and to write
//! ([`Tables::dirty_victim`]), and is told when that has happened.

mod name;
pub mod view;

use super::batch::page_checksum;
pub use super::page::{BlockEntry, PAGE_BLOCKS, entries_of, merge};
use super::page::{Counts, Page, PageOp, Pending, apply};
use super::segments::{Delta, LEAKED, Segments};
use super::superblock::Superblock;
use name::{Name, Table};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;
use trefoil_core::{BLOCK_SIZE, BlockRange, GroupId, ObjectId};
use zerocopy::{FromBytes, IntoBytes};

/// Blocks in the largest object.
pub const OBJECT_BLOCKS_MAX: u32 = (trefoil_core::limits::OBJECT_SIZE_MAX / BLOCK_SIZE as u64) as u32;
/// The checksum of a block whose entry is lost with its page: no block has it, it is bad until written.
pub const UNKNOWN: u64 = trefoil_core::checksum::UNKNOWN;
/// Changes that may wait on one page before it is loaded for them.
const QUEUE_LOAD: usize = 64;
/// Pages that [`Tables::resolve`] orders at once.
const RESOLVE_MAX: usize = 256;
const NO_SLOT: u32 = u32::MAX;

/// Where an object's page is.
#[derive(Clone, Copy, Debug)]
pub struct PageRef {
    /// In the log; 0: it has never been written.
    pub location: u64,
    /// Of its 4 KiB.
    pub checksum: u64,
    slot: u32,
}

impl PageRef {
    const NONE: PageRef = PageRef { location: 0, checksum: 0, slot: NO_SLOT };
}

struct Slot {
    owner: (ObjectId, u32),
    /// The object has been deleted; the slot only lives for the reads that wait on it.
    gone: bool,
    location: u64,
    checksum: u64,
    page: Option<Box<Page>>,
    queue: VecDeque<PageOp>,
    loading: bool,
    dirty: bool,
    referenced: bool,
    /// Write it to the log once it is in memory: the checkpoint waits for it.
    flush: bool,
    /// Its image was damaged: what that counted is not known.
    lost: bool,
    /// What has changed since the newest image, when `page` is there.
    counts: Counts,
}

/// A page of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadPage {
    /// Where its newest image is.
    pub location: u64,
    /// Of the image.
    pub checksum: u64,
    /// Blocks `256 * page ..`.
    pub page: u32,
}

/// A part of a read whose entries have become known.
pub struct Captured {
    /// The read.
    pub read: usize,
    /// Where in the read's entries they go.
    pub at: u32,
    /// The entries.
    pub entries: Vec<BlockEntry>,
}

/// What a page load came to.
pub struct Loaded {
    /// Reads that waited.
    pub captured: Vec<Captured>,
    /// The page does not match its checksum: its entries are lost. Its place is the third.
    pub lost: Option<(ObjectId, BlockRange, u64)>,
    /// The checkpoint wants it written.
    pub flush: bool,
}

/// See the module.
pub struct Tables {
    objects: FxHashMap<Name, Table>,
    slots: Slab<Slot>,
    resident: usize,
    resident_max: usize,
    queued: usize,
    /// Data blocks in queued changes: whether they replace others is not known yet.
    queued_blocks: u64,
    dirty: usize,
    pending: Pending,
    /// Pages that have never been written to the log.
    unplaced: usize,
    hand: usize,
    loads: VecDeque<u32>,
    /// Changes to pages that were never written are queued too: recovery must not fill memory.
    pub replaying: bool,
    /// Page lookups of reads that found it in memory.
    pub hits: u64,
    /// And those that did not.
    pub misses: u64,
}

impl Tables {
    /// No objects; keeps at most `cache_bytes` of pages, and at least four.
    pub fn new(cache_bytes: u64, sb: Superblock) -> Tables {
        Tables {
            objects: FxHashMap::default(),
            slots: Slab::new(),
            resident: 0,
            resident_max: (cache_bytes / BLOCK_SIZE as u64).clamp(4, 1 << 30) as usize,
            queued: 0,
            queued_blocks: 0,
            dirty: 0,
            pending: Pending { sb, segments: vec![(0, 0); sb.segments as usize], total: 0 },
            unplaced: 0,
            hand: 0,
            loads: VecDeque::new(),
            replaying: true,
            hits: 0,
            misses: 0,
        }
    }

    /// Takes an object's pages from the index.
    pub fn restore(&mut self, object: ObjectId, pages: &[(u64, u64)]) {
        let pages =
            pages.iter().map(|&(location, checksum)| PageRef { location, checksum, slot: NO_SLOT }).collect();
        self.objects.insert(object.into(), Table { pg: object.group.pg, pages });
    }

    /// The pages of an object, for the index.
    pub fn pages(&self, object: ObjectId) -> Option<&[PageRef]> {
        self.objects.get(&object.into()).map(|table| table.pages.as_slice())
    }

    /// Replay has found a page in the log: it is the truth up to here.
    pub fn replay_page(&mut self, object: ObjectId, page: u32, location: u64, checksum: u64) {
        // An index that was read after the object's deletion does not have it: the deletion is still to come.
        let pages = &mut self.make(object).pages;
        if pages.len() <= page as usize {
            pages.resize(page as usize + 1, PageRef::NONE);
        }
        let old = std::mem::replace(&mut pages[page as usize], PageRef { location, checksum, slot: NO_SLOT });
        if old.slot != NO_SLOT {
            self.free(old.slot);
        }
    }

    /// Blocks `first ..` lie at `location ..`, with these checksums (none of them a hole).
    pub fn set_run(&mut self, object: ObjectId, first: u32, location: u64, checksums: &[u64]) {
        self.make(object);
        let mut done = 0;
        while done < checksums.len() {
            let block = first + done as u32;
            let (page, inside) = (block / PAGE_BLOCKS, block % PAGE_BLOCKS);
            let n = (checksums.len() - done).min((PAGE_BLOCKS - inside) as usize);
            let location = location + done as u64;
            let op = match &checksums[done..done + n] {
                [checksum] => PageOp::One { block: inside as u8, location, checksum: *checksum },
                many => PageOp::Run { first: inside as u8, location, checksums: many.into() },
            };
            self.change(object, page, op, true);
            done += n;
        }
    }

    /// A block has no good bytes, but these it should have.
    pub fn set_bad(&mut self, object: ObjectId, block: u32, checksum: u64) {
        self.make(object);
        let op = PageOp::One { block: (block % PAGE_BLOCKS) as u8, location: 0, checksum };
        self.change(object, block / PAGE_BLOCKS, op, true);
    }

    /// Blocks become holes.
    pub fn zero(&mut self, object: ObjectId, blocks: BlockRange) {
        self.make(object);
        let mut block = blocks.first;
        while block < blocks.end() {
            let inside = block % PAGE_BLOCKS;
            let n = (blocks.end() - block).min(PAGE_BLOCKS - inside);
            let op = PageOp::Zero { first: inside as u8, count: n as u16 };
            self.change(object, block / PAGE_BLOCKS, op, false);
            block += n;
        }
    }

    /// A block has its bytes at a new place, if it still has this checksum.
    pub fn heal(&mut self, object: ObjectId, block: u32, location: u64, checksum: u64) {
        if self.objects.contains_key(&object.into()) {
            let op = PageOp::Heal { block: (block % PAGE_BLOCKS) as u8, location, checksum };
            self.change(object, block / PAGE_BLOCKS, op, false);
        }
    }

    /// The entry of a block whose page is in memory; `None` where that is not so.
    pub fn peek(&self, object: ObjectId, block: u32) -> Option<BlockEntry> {
        let page = self.objects.get(&object.into())?.pages.get((block / PAGE_BLOCKS) as usize)?;
        let slot = self.slots.get(page.slot as usize)?;
        Some(slot.page.as_ref()?.get((block % PAGE_BLOCKS) as usize))
    }

    fn change(&mut self, object: ObjectId, page: u32, op: PageOp, makes: bool) {
        let Some(key) = self.slot(object, page, makes) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(key as usize) else {
            return;
        };
        if !slot.dirty {
            slot.dirty = true;
            self.dirty += 1;
        }
        slot.referenced = true;
        if let Some(page) = &mut slot.page {
            apply(page, op, &mut slot.counts, &mut self.pending);
            return;
        }
        self.queued_blocks += op.data_blocks();
        slot.queue.push_back(op);
        self.queued += 1;
        if self.replaying {
            return;
        }
        let long = slot.queue.len() >= QUEUE_LOAD;
        if slot.location == 0 {
            if self.resident < self.resident_max || long {
                self.materialize(key);
            }
        } else if long {
            self.want(key);
        }
    }

    /// The slot of a page. `None`: there is no such page, and `makes` is false.
    fn slot(&mut self, object: ObjectId, page: u32, makes: bool) -> Option<u32> {
        let table = self.objects.get_mut(&object.into())?;
        let (pg, pages) = (table.pg, &mut table.pages);
        let index = page as usize;
        if pages.len() <= index {
            if !makes {
                return None;
            }
            pages.resize(index + 1, PageRef::NONE);
        }
        let entry = &mut pages[index];
        if entry.slot == NO_SLOT {
            if entry.location == 0 && !makes {
                return None;
            }
            self.unplaced += usize::from(entry.location == 0);
            entry.slot = self.slots.insert(Slot {
                // Perhaps asked for by an older name.
                owner: (ObjectId { group: GroupId { pg, ..object.group }, ..object }, page),
                gone: false,
                location: entry.location,
                checksum: entry.checksum,
                page: None,
                queue: VecDeque::new(),
                loading: false,
                dirty: false,
                referenced: true,
                flush: false,
                lost: false,
                counts: Counts::default(),
            }) as u32;
        }
        Some(entry.slot)
    }

    fn want(&mut self, key: u32) {
        if let Some(slot) = self.slots.get_mut(key as usize)
            && !slot.loading
        {
            slot.loading = true;
            self.loads.push_back(key);
        }
    }

    /// Brings a page that was never written into memory.
    fn materialize(&mut self, key: u32) {
        if let Some(slot) = self.slots.get_mut(key as usize)
            && slot.page.is_none()
            && slot.location == 0
        {
            let mut page = Page::empty();
            // No read waits on such a page: reads materialize it at once.
            self.queued -= slot.queue.len();
            for op in slot.queue.drain(..) {
                self.queued_blocks -= op.data_blocks();
                apply(&mut page, op, &mut slot.counts, &mut self.pending);
            }
            slot.page = Some(page);
            self.resident += 1;
        }
    }

    /// How many blocks a write of these would add, table pages included; `None`: a page has to be loaded
    /// first, which is ordered hereby.
    pub fn growth(&mut self, object: ObjectId, blocks: BlockRange) -> Option<u32> {
        let mut known = true;
        let mut grows = 0;
        let mut block = blocks.first;
        while block < blocks.end() {
            let (page, first) = (block / PAGE_BLOCKS, block % PAGE_BLOCKS);
            let n = (blocks.end() - block).min(PAGE_BLOCKS - first);
            block += n;
            let Some(key) = self.slot(object, page, false) else {
                grows += n + 1;
                continue;
            };
            if self.slots.get(key as usize).is_some_and(|s| s.location == 0) {
                self.materialize(key);
            }
            let Some(slot) = self.slots.get_mut(key as usize) else {
                continue;
            };
            slot.referenced = true;
            match &slot.page {
                Some(page) => {
                    let hole = |i: &u32| page.get(*i as usize).location == 0;
                    grows += (first..first + n).filter(hole).count() as u32;
                }
                None => {
                    known = false;
                    self.want(key);
                }
            }
        }
        known.then_some(grows)
    }

    /// Marks a page to be written anew, if its newest image is this one; returns its slot.
    pub fn touch(&mut self, object: ObjectId, page: u32, location: u64) -> Option<u32> {
        let newest = self.objects.get(&object.into()).and_then(|table| table.pages.get(page as usize));
        if location == 0 || newest.is_none_or(|p| p.location != location) {
            return None;
        }
        let key = self.slot(object, page, false)?;
        let slot = self.slots.get_mut(key as usize)?;
        if !slot.dirty {
            slot.dirty = true;
            self.dirty += 1;
        }
        Some(key)
    }

    /// Orders the pages that queued changes wait for, so that it becomes known what they add.
    pub fn resolve(&mut self) {
        let waiting: Vec<u32> = self
            .slots
            .iter()
            .filter(|(_, s)| s.page.is_none() && !s.queue.is_empty() && !s.loading)
            .map(|(key, _)| key as u32)
            .take(RESOLVE_MAX)
            .collect();
        for key in waiting {
            if self.slots.get(key as usize).is_some_and(|s| s.location == 0) {
                self.materialize(key);
            } else {
                self.want(key);
            }
        }
    }

    /// The entries of `blocks` as of now go to `out`; where a page has to be loaded first, they come
    /// later as [`Captured`]. Returns how many such parts there are.
    pub fn capture(
        &mut self,
        object: ObjectId,
        blocks: BlockRange,
        read: usize,
        out: &mut [BlockEntry],
    ) -> usize {
        self.capture_at(object, blocks, read, 0, out)
    }

    /// The same for a part of a larger list that begins at `base` of it.
    pub fn capture_at(
        &mut self,
        object: ObjectId,
        blocks: BlockRange,
        read: usize,
        base: u32,
        out: &mut [BlockEntry],
    ) -> usize {
        let mut parts = 0;
        let mut block = blocks.first;
        while block < blocks.end() {
            let (page, first) = (block / PAGE_BLOCKS, block % PAGE_BLOCKS);
            let n = (blocks.end() - block).min(PAGE_BLOCKS - first);
            let at = block - blocks.first;
            block += n;
            let Some(key) = self.slot(object, page, false) else {
                continue;
            };
            if self.slots.get(key as usize).is_some_and(|s| s.location == 0) {
                self.materialize(key);
            }
            let Some(slot) = self.slots.get_mut(key as usize) else {
                continue;
            };
            slot.referenced = true;
            if let Some(page) = &slot.page {
                self.hits += 1;
                for i in 0..n {
                    out[(at + i) as usize] = page.get((first + i) as usize);
                }
                continue;
            }
            self.misses += 1;
            parts += 1;
            let at = base + at;
            slot.queue.push_back(PageOp::Capture { read, at, first: first as u8, count: n as u16 });
            self.queued += 1;
            self.want(key);
        }
        parts
    }

    /// The next page to load: its slot and its place.
    pub fn next_load(&mut self) -> Option<(u32, u64)> {
        while let Some(key) = self.loads.pop_front() {
            if let Some(slot) = self.slots.get(key as usize) {
                return Some((key, slot.location));
            }
        }
        None
    }

    /// A page has been read; `None` where the device had no bytes for it.
    pub fn loaded(&mut self, key: u32, bytes: Option<&[u8]>) -> Loaded {
        let mut loaded = Loaded { captured: Vec::new(), lost: None, flush: false };
        let Some(slot) = self.slots.get_mut(key as usize) else {
            return loaded;
        };
        let (object, page) = slot.owner;
        let good = bytes.filter(|b| page_checksum(object, page, b) == slot.checksum);
        let mut page = match good.and_then(|b| Page::read_from_bytes(b).ok()) {
            Some(page) => Box::new(page),
            None => {
                if !slot.gone {
                    let blocks = BlockRange::new(page * PAGE_BLOCKS, PAGE_BLOCKS);
                    loaded.lost = Some((object, blocks, slot.location));
                    slot.lost = true;
                }
                let mut page = Page::empty();
                for block in 0..PAGE_BLOCKS as usize {
                    // What the lost entries counted stays counted until their segments are looked at.
                    page.put(block, 0, UNKNOWN);
                }
                page
            }
        };
        self.queued -= slot.queue.len();
        for op in slot.queue.drain(..) {
            self.queued_blocks -= op.data_blocks();
            if let PageOp::Capture { read, at, first, count } = op {
                let first = usize::from(first);
                loaded.captured.push(Captured {
                    read,
                    at,
                    entries: (first..first + usize::from(count)).map(|b| page.get(b)).collect(),
                });
            } else {
                apply(&mut page, op, &mut slot.counts, &mut self.pending);
            }
        }
        slot.loading = false;
        loaded.flush = std::mem::take(&mut slot.flush) && slot.dirty;
        if !slot.gone {
            slot.page = Some(page);
            self.resident += 1;
        } else {
            self.free(key);
        }
        loaded
    }

    /// Beyond its bound the cache drops pages, least recently used first (CLOCK). Returns a page that
    /// has to be written before it can be dropped; call again after that.
    pub fn dirty_victim(&mut self) -> Option<u32> {
        let mut looked = 0;
        while self.resident > self.resident_max {
            let slots = self.slots.capacity().max(1);
            if looked > 2 * slots {
                return None;
            }
            looked += 1;
            self.hand = (self.hand + 1) % slots;
            let Some(slot) = self.slots.get_mut(self.hand) else {
                continue;
            };
            if slot.page.is_none() {
                continue;
            }
            if slot.referenced {
                slot.referenced = false;
            } else if slot.dirty {
                return Some(self.hand as u32);
            } else {
                self.drop_clean(self.hand as u32);
            }
        }
        None
    }

    fn drop_clean(&mut self, key: u32) {
        if let Some(slot) = self.slots.get(key as usize)
            && let Some(entry) = self
                .objects
                .get_mut(&slot.owner.0.into())
                .and_then(|t| t.pages.get_mut(slot.owner.1 as usize))
        {
            entry.slot = NO_SLOT;
        }
        self.free(key);
    }

    fn free(&mut self, key: u32) {
        if let Some(slot) = self.slots.try_remove(key as usize) {
            self.queued -= slot.queue.len();
            self.queued_blocks -= slot.queue.iter().map(PageOp::data_blocks).sum::<u64>();
            self.dirty -= usize::from(slot.dirty);
            self.pending.undo(&slot.counts.deltas);
            self.unplaced -= usize::from(slot.location == 0);
            self.resident -= usize::from(slot.page.is_some());
        }
    }

    /// The image of a dirty page that is in memory, to be written to the log.
    pub fn image(&self, key: u32) -> Option<(ObjectId, u32, &[u8])> {
        let slot = self.slots.get(key as usize)?;
        let (object, page) = slot.owner;
        Some((object, page, slot.page.as_ref()?.as_bytes()))
    }

    /// How the next image changes the live counts besides adding its own block; it counts as carried out
    /// hereby.
    pub fn take_deltas(&mut self, key: u32) -> Vec<Delta> {
        let Some(slot) = self.slots.get_mut(key as usize) else {
            return Vec::new();
        };
        let mut deltas = std::mem::take(&mut slot.counts).deltas;
        self.pending.undo(&deltas);
        if std::mem::take(&mut slot.lost) {
            deltas.push(LEAKED);
        }
        if slot.location != 0 {
            let (segment, turn) = self.pending.sb.tag_of(slot.location);
            deltas.push((segment, turn, -1));
        }
        merge(&mut deltas);
        deltas
    }

    /// A segment begins another turn: what was pending about it is settled.
    pub fn freed(&mut self, segment: u32, turn: u16) {
        if let Some(pending) = self.pending.segments.get_mut(segment as usize) {
            self.pending.total -= i64::from(pending.1);
            *pending = (turn, 0);
        }
    }

    /// After a replay: the turns as the log has left them.
    pub fn take_turns(&mut self, segments: &Segments) {
        for (segment, state) in segments.iter() {
            self.freed(segment, state.turn);
        }
    }

    /// What the pages in memory add to a segment's live count.
    pub fn pending(&self, segment: u32) -> i32 {
        self.pending.segments.get(segment as usize).map_or(0, |p| p.1)
    }

    /// The image has joined the log at `location`: the page is clean.
    pub fn flushed(&mut self, key: u32, location: u64, checksum: u64) {
        let Some(slot) = self.slots.get_mut(key as usize) else {
            return;
        };
        self.unplaced -= usize::from(slot.location == 0);
        slot.location = location;
        slot.checksum = checksum;
        self.dirty -= usize::from(std::mem::take(&mut slot.dirty));
        let drop = self.resident > self.resident_max && !slot.referenced;
        if let Some(entry) =
            self.objects.get_mut(&slot.owner.0.into()).and_then(|t| t.pages.get_mut(slot.owner.1 as usize))
        {
            entry.location = location;
            entry.checksum = checksum;
        }
        if drop {
            self.drop_clean(key);
        }
    }

    /// Slots of the pages that are dirty now, with what they are of.
    pub fn dirty_slots(&self) -> Vec<(u32, ObjectId, u32)> {
        self.slots
            .iter()
            .filter(|(_, s)| s.dirty)
            .map(|(key, s)| (key as u32, s.owner.0, s.owner.1))
            .collect()
    }

    /// Whether a slot of [`Tables::dirty_slots`] is still to be written: `Some(true)` if it can be now,
    /// `Some(false)` if it has to be loaded first, which is ordered hereby.
    pub fn prepare_flush(&mut self, key: u32, object: ObjectId, page: u32) -> Option<bool> {
        let slot = self.slots.get_mut(key as usize)?;
        let same = (Name::from(slot.owner.0), slot.owner.1) == (Name::from(object), page);
        if !same || slot.gone || !slot.dirty {
            return None;
        }
        if slot.page.is_none() && slot.location == 0 {
            self.materialize(key);
            return Some(true);
        }
        if slot.page.is_some() {
            return Some(true);
        }
        slot.flush = true;
        self.want(key);
        Some(false)
    }

    /// The object is gone. Reads that wait on its pages are still answered as of before. Returns its pages
    /// in the log.
    pub fn remove(&mut self, object: ObjectId) -> Vec<DeadPage> {
        let mut dead = Vec::new();
        let pages = self.objects.remove(&object.into()).map(|table| table.pages);
        for (n, page) in (0u32..).zip(pages.unwrap_or_default()) {
            if page.location != 0 {
                dead.push(DeadPage { location: page.location, checksum: page.checksum, page: n });
            }
            if page.slot == NO_SLOT {
                continue;
            }
            match self.slots.get_mut(page.slot as usize) {
                Some(slot) if slot.loading => {
                    slot.gone = true;
                    slot.flush = false;
                    self.dirty -= usize::from(std::mem::take(&mut slot.dirty));
                    // Its queue is still applied, so that reads in it are answered; counts are dropped with it.
                }
                _ => self.free(page.slot),
            }
        }
        dead
    }

    /// Changes and reads that wait on pages.
    pub fn queued(&self) -> usize {
        self.queued
    }
    /// Pages that are not in the log as they are.
    pub fn dirty(&self) -> usize {
        self.dirty
    }
    /// Data blocks of queued changes: they may replace others, or add to them.
    pub fn queued_blocks(&self) -> u64 {
        self.queued_blocks
    }
    /// What the changes that no image holds yet add to the live blocks.
    pub fn pending_total(&self) -> i64 {
        self.pending.total
    }
    /// Pages that have no place in the log yet.
    pub fn unplaced(&self) -> usize {
        self.unplaced
    }
    /// Pages in memory.
    pub fn resident(&self) -> usize {
        self.resident
    }
    /// Objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }
}
