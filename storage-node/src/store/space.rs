//! Room: what may be added, what is free, and how freed segments come to be written again.
//!
//! Two different shortages. *Full*: live data has reached the capacity (all segments less the reserve);
//! what would add to it is refused, for good. *Behind*: free segments are few because cleaning has not
//! caught up; nothing is refused, the caller is asked to wait ([`Store::can_accept`]), and cleaning goes
//! on without regard to its budget.
//!
//! The reserve is what keeps cleaning from getting stuck: with live data at the capacity there are dead
//! blocks worth several segments outside of those that are free or being written, so the emptiest segment
//! gives more than its cleaning costs.

use super::bugs::{self, Bug};
use super::checkpoint::Phase;
use super::codec;
use super::engine::{NEARLY_FULL_BLOCKS, Running, Store};
use super::index::Index;
use super::log::Stream;
use super::superblock::Superblock;
use super::{Space, StoreOptions};
use crate::device::{Device, Op, Prepare};
use std::collections::VecDeque;
use trefoil_core::{BLOCK_SIZE, BlockRange, Incarnation, NodeId, ObjectId};

/// The part of the segments that is kept: one in so many, and a few for the ends of the streams.
const RESERVE_PART: u32 = 9;
const RESERVE_MORE: u32 = 4;
/// At least so many.
const RESERVE_MIN: u32 = 8;
/// Segments that stay free for table pages and snapshots, besides what clients may have pending: below it
/// they wait.
const HARD_SEGMENTS: u64 = 1;
/// Clients may have pending at once one in so many blocks.
const BURST_PART: u64 = 128;
/// Free segments that cleaning keeps: one in so many and some more.
const LOW_PART: u32 = 128;
const LOW_MORE: u64 = 2;
/// A snapshot is written when this part of the device has been written since the last.
const INTERVAL_PART: u64 = 8;
/// Blocks of log below which another snapshot is not worth it, however short space is.
const NEW_MIN: u64 = 8;
/// And at the latest after so many blocks (8 GiB): a start without an index replays that much.
const INTERVAL_MAX: u64 = 2 << 20;
/// Segments that are zeroed or discarded ahead.
const AHEAD: usize = 2;
/// Blocks of background work (table pages, snapshots, moves) that may join the log for each batch that has
/// been written: what clients write waits behind it.
const BACKGROUND_BLOCKS: u32 = 128;
/// Blocks of log that table pages leave to others where they can wait: more than those that are being loaded
/// to be written.
const PAGES_FLOOR: u64 = 96;
/// Below this room it is found out exactly what queued changes add.
const EXACT_BELOW: u64 = 64 << 10;

/// What follows from the superblock and the options.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Live blocks that the store takes.
    pub capacity: u64,
    /// All blocks less these.
    pub reserve: u64,
    /// Blocks that must be writable before clients may add to the log.
    pub hard: u64,
    /// Free segments below which cleaning is urgent.
    pub low: u64,
    /// Blocks of log after which a snapshot is due.
    pub interval: u64,
    /// Blocks of log after which a checkpoint is due.
    pub checkpoint: u64,
    /// Estimated time of the replay (µs) at which a checkpoint is due.
    pub replay_us: u64,
    /// Dirty pages at which a checkpoint is due.
    pub dirty_pages: usize,
}

impl Limits {
    /// For this store.
    pub fn new(sb: &Superblock, options: &StoreOptions) -> Limits {
        let size = u64::from(sb.segment_blocks);
        let total = sb.blocks();
        let reserve = u64::from((sb.segments / RESERVE_PART + RESERVE_MORE).max(RESERVE_MIN)) * size;
        let interval = (total / INTERVAL_PART).clamp(size, INTERVAL_MAX.max(size));
        Limits {
            capacity: total.saturating_sub(reserve),
            reserve: reserve.min(total),
            hard: HARD_SEGMENTS * size
                + (options.pending_bytes_max / BLOCK_SIZE as u64).min(total / BURST_PART),
            low: u64::from(sb.segments / LOW_PART) + LOW_MORE,
            interval,
            checkpoint: (options.checkpoint_bytes / BLOCK_SIZE as u64).min(interval).max(1),
            replay_us: (options.replay_max.as_micros() as u64).max(1),
            dirty_pages: (reserve / 8) as usize,
        }
    }
}

/// Bytes of live data, tables included, that a store on a device of `device_bytes` takes; 0 where that is too
/// small for a store.
pub fn usable_bytes(device_bytes: u64) -> u64 {
    let segment = super::default_segment_bytes(device_bytes);
    let none = (Incarnation(1), [0; 16], NodeId(0));
    Superblock::new(device_bytes, segment, none.0, none.1, none.2)
        .map_or(0, |sb| Limits::new(&sb, &StoreOptions::default()).capacity * BLOCK_SIZE as u64)
}

/// The free segments, and what is due.
pub struct SpaceState {
    /// See [`Limits`].
    pub limits: Limits,
    /// `appended_blocks` when the last checkpoint began.
    pub checkpoint_from: u64,
    /// The same of the last snapshot.
    pub snapshot_from: u64,
    /// What background work may append until the next batch is written.
    background: u32,
    /// Free, or on the way there: not to be freed again.
    free: Vec<bool>,
    /// Never written: worth zeroing first.
    fresh: VecDeque<u32>,
    /// Being zeroed or discarded.
    preparing: usize,
    /// Freed by a batch with this LSN, which is not durable yet.
    freeing: VecDeque<(u64, u32)>,
    /// Free but for reads that began before.
    waiting: Vec<u32>,
    next_waiting: Vec<u32>,
    /// Reads that began before `waiting` became free.
    old_reads: usize,
    epoch: u64,
    /// Segments without live blocks that wait for a snapshot, as of `counted_at`.
    reclaimable: u64,
    counted_at: u64,
    /// `appended_blocks` when nothing was found worth cleaning.
    pub nothing_at: Option<u64>,
    /// Segments that the next snapshot makes cleanable are much better than those that are.
    pub snapshot_wanted: bool,
}

impl SpaceState {
    /// Nothing is free yet.
    pub fn new(sb: &Superblock, options: &StoreOptions) -> SpaceState {
        SpaceState {
            limits: Limits::new(sb, options),
            checkpoint_from: 0,
            snapshot_from: 0,
            background: BACKGROUND_BLOCKS,
            free: vec![false; sb.segments as usize],
            fresh: VecDeque::new(),
            preparing: 0,
            freeing: VecDeque::new(),
            waiting: Vec::new(),
            next_waiting: Vec::new(),
            old_reads: 0,
            epoch: 0,
            reclaimable: 0,
            counted_at: 0,
            nothing_at: None,
            snapshot_wanted: false,
        }
    }

    /// A read begins: to be given back at its end.
    pub fn read_begins(&self) -> u64 {
        self.epoch
    }
    /// The read has ended.
    pub fn read_ended(&mut self, epoch: u64) {
        if epoch < self.epoch {
            self.old_reads = self.old_reads.saturating_sub(1);
        }
    }
    /// Background work has appended blocks.
    pub fn background_used(&mut self, blocks: u32) {
        self.background = self.background.saturating_sub(blocks);
    }
    /// True if it may append.
    pub fn background_may(&self) -> bool {
        self.background > 0
    }
    /// A batch has been written.
    pub fn background_refill(&mut self) {
        self.background = BACKGROUND_BLOCKS;
    }
    /// True for a segment that is free or on the way there.
    pub fn is_free(&self, segment: u32) -> bool {
        self.free.get(segment as usize).copied().unwrap_or(true)
    }
    /// Segments that the log can be given, now or soon.
    pub fn coming(&self) -> u64 {
        let waiting = self.freeing.len() + self.waiting.len() + self.next_waiting.len();
        (self.fresh.len() + self.preparing + waiting) as u64
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// False: let what is pending get on before more is given. See the limits of [`StoreOptions`]. It
    /// becomes true by itself, unless the store has failed.
    pub fn can_accept(&self) -> bool {
        self.failed.is_none()
            && self.log.pending_bytes() < self.options.pending_bytes_max
            && self.state.tables.queued() < self.options.queued_changes_max
            && self.reads.len() < self.options.reads_max
            && (!self.is_behind() || self.is_stuck())
            && !self.is_inexact()
    }

    /// Free segments are short.
    pub(super) fn is_behind(&self) -> bool {
        self.hot_free() < self.space.limits.hard + self.state.tables.dirty() as u64
    }

    /// Near the capacity, and not all that has been taken is known to have replaced something.
    fn is_inexact(&self) -> bool {
        self.state.tables.queued_blocks() > 0 && self.upper_room() < EXACT_BELOW.min(self.sb.blocks() / 64)
    }

    /// Blocks that clients' batches can be written to now: not those that are about to become free.
    pub(super) fn hot_free(&self) -> u64 {
        let fresh = self.space.fresh.len() as u64 * u64::from(self.sb.segment_blocks);
        self.log.stream_free(Stream::Hot) + fresh
    }

    /// The log has hardly any room, and will have more: table pages wait for that.
    pub(super) fn room_is_coming(&self) -> bool {
        self.hot_free() <= PAGES_FLOOR && (self.space.coming() > 0 || self.cleaner.has_victim())
    }

    /// Next to nothing has been appended since the last snapshot: another one would change nothing.
    pub(super) fn nothing_new(&self) -> bool {
        self.log.appended_blocks() - self.space.snapshot_from < NEW_MIN
    }

    /// Room if all queued changes add what they bring.
    fn upper_room(&self) -> u64 {
        let t = &self.state.tables;
        let live = self.state.segments.live().saturating_add_signed(t.pending_total()) + t.unplaced() as u64;
        self.space.limits.capacity.saturating_sub(live + t.queued_blocks())
    }

    /// Data blocks that may be *added*. Blocks that replace others need none: see [`Store::growth`].
    pub fn room_blocks(&self) -> u64 {
        if self.failed.is_some() || self.is_stuck() { 0 } else { self.upper_room() }
    }

    /// How many blocks a write of these would add (pages of the object's table included); `None`: not known
    /// yet; a page is being read for it: ask again after the next [`Store::poll`].
    pub fn growth(&mut self, object: ObjectId, blocks: BlockRange) -> Option<u32> {
        if self.is_stuck() {
            return Some(u32::MAX);
        }
        self.state.tables.growth(object, blocks)
    }

    /// True when leaders are to be told so: a full node then says no before a write has been sent to its
    /// peers. A small device has a smaller margin, or most of it could not be used.
    pub fn nearly_full(&self) -> bool {
        self.room_blocks() < NEARLY_FULL_BLOCKS.min(self.sb.blocks() / 128)
    }

    pub(super) fn space(&self) -> Space {
        let block = BLOCK_SIZE as u64;
        let limits = self.space.limits;
        let used = (limits.capacity - self.upper_room().min(limits.capacity)).min(limits.capacity) * block;
        let total = self.sb.blocks() * block;
        let reserve = limits.reserve * block;
        Space { total, used, free: total - reserve - used, reserve }
    }

    /// At the start: all segments that nothing needs.
    pub(super) fn find_free_at_start(&mut self) {
        let ends = self.log.ends();
        for (segment, state) in self.state.segments.iter() {
            if !(state.free || state.last_lsn == 0)
                || ends.iter().any(|e| e.segment == segment || e.next == segment)
            {
                continue;
            }
            self.space.free[segment as usize] = true;
            if state.last_lsn == 0 && self.dev.prepare() == Prepare::Zero {
                self.space.fresh.push_back(segment);
            } else {
                self.log.give(segment, state.turn);
            }
        }
        self.count_reclaimable();
        self.prepare_segments();
    }

    /// Frees segments whose blocks are all dead and whose records are all in the snapshot. Pages that named
    /// their blocks need not have been written since: what replaced those is in the log behind the snapshot,
    /// and before the Free.
    pub(super) fn free_segments(&mut self) {
        // Of this turn: a segment that has just been filled still looks as it did when it was freed.
        self.take_notes();
        let ends = self.log.ends();
        let mut covers = self.root.covers.lsn;
        if let Phase::Durable { root: Some(root), .. } | Phase::Root { root, .. } = &self.phase
            && bugs::on(Bug::FreeBeforeRoot)
        {
            covers = root.covers.lsn;
        }
        let mut freed = Vec::new();
        for (segment, state) in self.state.segments.iter() {
            if state.last_lsn != 0
                && !state.free
                && state.last_lsn < covers
                && (self.live_in(segment) == 0 || self.cleaner.empty.contains(&segment))
                && !self.space.is_free(segment)
                && !self.cleaner.is_victim(segment)
                && !ends.iter().any(|e| e.segment == segment || e.next == segment)
            {
                freed.push(segment);
            }
        }
        if freed.is_empty() || self.failed.is_some() {
            return;
        }
        self.scratch.clear();
        let encoded = codec::put_free(freed.clone(), &mut self.scratch);
        // What makes room must not need any of what is short.
        let stream = if self.is_behind() && self.log.stream_free(Stream::Cold) > 1 {
            Stream::Cold
        } else {
            Stream::Hot
        };
        self.put_scratch_in(stream, encoded);
        if self.failed.is_some() {
            return;
        }
        self.state.free(&freed);
        // Used again when the batch with the Free is durable.
        let lsn = self.log.last().lsn + 1;
        for segment in freed {
            self.space.free[segment as usize] = true;
            self.cleaner.freed(segment);
            self.stats.segments_freed += 1;
            self.space.freeing.push_back((lsn, segment));
        }
    }

    /// Segments whose last reader is gone go on.
    pub(super) fn release_waiting(&mut self) {
        while let Some((lsn, segment)) = self.space.freeing.front().copied()
            && (lsn <= self.durable_lsn || bugs::on(Bug::ReuseBeforeFree))
        {
            self.space.freeing.pop_front();
            self.space.next_waiting.push(segment);
        }
        loop {
            if self.space.old_reads > 0 && !bugs::on(Bug::ReuseUnderRead) {
                return;
            }
            for segment in std::mem::take(&mut self.space.waiting) {
                if self.dev.prepare() == Prepare::Discard {
                    self.prepare(segment);
                } else {
                    self.give(segment);
                }
            }
            if self.space.next_waiting.is_empty() {
                return;
            }
            // Reads that begin from now on cannot name these segments.
            self.space.waiting = std::mem::take(&mut self.space.next_waiting);
            self.space.epoch += 1;
            self.space.old_reads = self.reads.len() + self.loads + self.reaper.reading();
        }
    }

    /// Sees to it that the log has segments ahead.
    pub(super) fn prepare_segments(&mut self) {
        if self.log.ready() >= AHEAD {
            return;
        }
        let next = self.log.ends().iter().any(|e| e.next == super::batch::NO_SEGMENT);
        if next && self.log.ready() == 0 {
            // No time to zero it.
            if let Some(segment) = self.space.fresh.pop_front() {
                self.give(segment);
            }
        }
        if self.space.preparing == 0
            && let Some(segment) = self.space.fresh.pop_front()
        {
            self.prepare(segment);
        }
    }

    fn prepare(&mut self, segment: u32) {
        let offset = self.sb.location(segment, 0) * BLOCK_SIZE as u64;
        let len = u64::from(self.sb.segment_blocks) * BLOCK_SIZE as u64;
        let op = match self.dev.prepare() {
            Prepare::Zero => Op::Zero { offset, len },
            Prepare::Discard => Op::Discard { offset, len },
            Prepare::Nothing => return self.give(segment),
        };
        self.space.preparing += 1;
        let id = self.running.insert(Running::Prepare { segment }) as u64;
        self.dev.start(id, op);
    }

    /// A segment has been zeroed or discarded, or not: it can be written.
    pub(super) fn prepared(&mut self, segment: u32) {
        self.space.preparing -= 1;
        self.give(segment);
    }

    fn give(&mut self, segment: u32) {
        self.log.give(segment, self.state.segments.get(segment).turn);
    }

    /// Brings the counts up to what has been sealed.
    pub(super) fn take_notes(&mut self) {
        let Store { log, state, space, .. } = self;
        let ends = log.ends();
        for note in log.take_notes() {
            state.segments.batch(note.segment, note.first, note.end, note.lsn, note.stamp);
        }
        for end in ends {
            for segment in [end.segment, end.next] {
                if let Some(free) = space.free.get_mut(segment as usize) {
                    *free = false;
                }
            }
        }
    }

    /// From time to time: frees what is dead, and counts what will be.
    pub(super) fn look_for_dead(&mut self) {
        let every = u64::from(self.sb.segment_blocks) / 8;
        if self.log.appended_blocks() - self.space.counted_at >= every || self.cleaner.take_ended() {
            self.free_segments();
            self.count_reclaimable();
        }
    }

    fn count_reclaimable(&mut self) {
        let ends = self.log.ends();
        let waits = |(segment, state): &(u32, &super::segments::SegState)| {
            state.last_lsn != 0
                && !state.free
                && self.live_in(*segment) == 0
                && !self.space.is_free(*segment)
                && !self.cleaner.is_done(*segment)
                && !ends.iter().any(|e| e.segment == *segment || e.next == *segment)
        };
        let dead = self.state.segments.iter().filter(waits).count() as u64;
        self.space.reclaimable = dead;
        self.space.counted_at = self.log.appended_blocks();
    }

    /// Segments that are free or become free at the next snapshot.
    pub(super) fn supply(&self) -> u64 {
        self.free_count() + self.cleaner.done_count()
    }

    /// Segments that are free.
    pub(super) fn free_count(&self) -> u64 {
        self.log.ready() as u64 + self.space.coming()
    }

    /// Whether a checkpoint is due, and whether a full one.
    pub(super) fn checkpoint_due(&self) -> Option<bool> {
        let limits = &self.space.limits;
        let appended = self.log.appended_blocks();
        let waiting = self.space.reclaimable + self.cleaner.done_count();
        let since = appended - self.space.snapshot_from;
        let size = u64::from(self.sb.segment_blocks);
        let short = self.supply() < limits.low * 2;
        if since >= limits.interval
            || short && since >= size && (self.space.snapshot_wanted || self.space.reclaimable > limits.low)
        {
            return Some(true);
        }
        // What has been emptied is needed now: not for a few, as long as cleaning can go on.
        if self.is_behind()
            && self.space.coming() == 0
            && !self.nothing_new()
            && self.hot_free() >= self.snapshot_blocks()
            && (waiting >= limits.low || !self.clean_can_go_on())
        {
            return Some(true);
        }
        let due = appended + self.replayed.blocks - self.space.checkpoint_from >= limits.checkpoint
            || self.replay_us() >= limits.replay_us
            || self.state.tables.queued() > self.options.queued_changes_max / 2
            || self.state.tables.dirty() > limits.dirty_pages;
        due.then_some(false)
    }

    /// Loads the pages that tell what queued changes add and replace, where that decides whether the store is
    /// full, or whether segments that have been emptied can be freed.
    pub(super) fn be_exact(&mut self) {
        let short = self.cleaner.done_count() > 0 && self.free_count() <= self.space.limits.low;
        if self.loads == 0 && self.state.tables.queued() > 0 && (short || self.is_inexact()) {
            self.state.tables.resolve();
        }
    }
}
