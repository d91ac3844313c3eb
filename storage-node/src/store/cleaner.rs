//! Cleaning: live blocks are moved out of segments that are mostly dead.
//!
//! One segment at a time, chosen by cost and benefit (Rosenblum and Ousterhout, "The Design and
//! Implementation of a Log-Structured File System", 1992): what it gives, times how long it has not
//! changed, by what it costs. Its batches' headers say what each block was; the tables say whether it
//! still is. Live blocks are read, *verified*, and appended in the cold stream; table pages that lie in it
//! are written anew by the next checkpoint. It becomes free when the next snapshot's root is durable.
//!
//! Nothing is ever lost by cleaning: a block whose bytes are not good is reported, and its segment stays as
//! it is until the block has been healed or overwritten. A header that cannot be read keeps its segment, too.
//!
//! The budget: for what clients append, a number of blocks may be moved that grows as free segments get
//! fewer ([`Store::clean_step`]); an idle store cleans by itself until it has enough.

use super::batch::Header;
use super::codec::{self, Entry};
use super::engine::{CLEANER, Running, Store};
use super::index::Index;
use super::log::Stream;
use super::state::Key;
use super::superblock::place_of;
use super::table::BlockEntry;
use crate::device::buffer::{Buf, Pool};
use crate::device::{Device, Op};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::io;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::{BLOCK_SIZE, BlockRange, ObjectId};

/// Blocks read at once.
const WINDOW_BLOCKS: u32 = 256;
/// Blocks looked up at once.
const RESOLVE_MAX: usize = 256;
/// Times that a block is read again before it counts as bad.
const READS_MAX: u32 = 3;
/// Errors of one segment after which it is left alone.
const ERRORS_MAX: u32 = 256;
/// A segment with fewer dead blocks than one in so many is not worth it.
const WORTH_PART: u32 = 64;
/// And while nobody writes.
const IDLE_WORTH_PART: u32 = 8;

/// What a block of a victim was when it was written.
#[derive(Clone, Copy)]
enum What {
    Block { object: ObjectId, block: u32 },
    Page { object: ObjectId, page: u32 },
}

#[derive(Clone, Copy)]
struct Candidate {
    what: What,
    location: u64,
}

/// A block to be moved.
#[derive(Clone, Copy)]
struct Live {
    object: ObjectId,
    block: u32,
    entry: BlockEntry,
}

struct Victim {
    segment: u32,
    /// Live blocks when it was chosen.
    live_at_start: u32,
    end: u32,
    stamp: u64,
    /// The next header.
    at: u32,
    /// What the headers have named and nobody has looked up.
    todo: VecDeque<Candidate>,
    /// Being looked up; when `unknown` is 0 all entries are there.
    asked: Vec<(Live, u64)>,
    unknown: usize,
    live: VecDeque<Live>,
    /// Blocks in memory: the first one's number in the segment.
    window: Option<(u32, Buf)>,
    reading: bool,
    /// Blocks to read at once: fewer after an error.
    step: u32,
    retries: u32,
    errors: u32,
    /// Found live, pages included.
    found: u64,
    /// Why it cannot be freed.
    stays: bool,
}

impl Victim {
    /// Nothing of it is left to be looked at or moved.
    fn is_through(&self) -> bool {
        self.at >= self.end && self.todo.is_empty() && self.asked.is_empty() && self.live.is_empty()
    }
}

/// See the module.
#[derive(Default)]
pub struct Cleaner {
    victim: Option<Box<Victim>>,
    /// Emptied, with `appended_blocks` of when that was so.
    done: FxHashMap<u32, u64>,
    /// Nothing in them is live, whatever their counts say.
    pub empty: FxHashSet<u32>,
    /// Those that something keeps, with what was live in them then: looked at again when that changes.
    kept: FxHashMap<u32, u32>,
    /// To be looked at again: nothing live was left, yet the count says otherwise.
    recheck: FxHashSet<u32>,
    /// A segment has been gone through, or counts have changed, since anybody asked.
    ended: bool,
    /// Blocks that may be moved.
    pub tokens: u64,
    /// What the hot stream had appended when they were reckoned last.
    pub hot_seen: u64,
}

impl Cleaner {
    /// Segments that are free after the next snapshot.
    pub fn done_count(&self) -> u64 {
        self.done.len() as u64
    }
    /// True once after a segment has been gone through, or [`Cleaner::look_again`].
    pub fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }
    /// Counts have changed otherwise than by what has been appended.
    pub fn look_again(&mut self) {
        self.ended = true;
    }
    /// True for one that has been emptied.
    pub fn is_done(&self, segment: u32) -> bool {
        self.done.contains_key(&segment)
    }
    /// True for the segment that is being cleaned.
    pub fn is_victim(&self, segment: u32) -> bool {
        self.victim.as_ref().is_some_and(|v| v.segment == segment)
    }
    /// Segments that something keeps from being freed.
    pub fn kept_count(&self) -> usize {
        self.kept.len()
    }
    /// The segment is free.
    pub fn freed(&mut self, segment: u32) {
        self.done.remove(&segment);
        self.kept.remove(&segment);
        self.recheck.remove(&segment);
    }
    /// A segment is being cleaned.
    pub fn has_victim(&self) -> bool {
        self.victim.is_some()
    }
    /// Blocks of it that are known to be live and wait to be moved.
    pub fn victim_live(&self) -> Option<usize> {
        self.victim.as_ref().map(|v| v.live.len())
    }
    /// Blocks that were live in it when it was chosen.
    pub fn victim_cost(&self) -> Option<u32> {
        self.victim.as_ref().map(|v| v.live_at_start)
    }
    /// True while it waits for something that rings.
    pub fn is_waiting(&self) -> bool {
        self.victim.as_ref().is_some_and(|v| v.reading || v.unknown > 0)
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// The next steps, as far as budget and I/O allow.
    pub(super) fn clean_step(&mut self) {
        if self.failed.is_some() {
            return;
        }
        self.earn();
        self.reap_step();
        while self.failed.is_none() && !self.cleaner.is_waiting() {
            let Some(mut victim) = self.cleaner.victim.take() else {
                if !self.wants_cleaning() {
                    return;
                }
                match self.choose() {
                    Some(victim) => self.cleaner.victim = Some(Box::new(victim)),
                    None => return,
                }
                continue;
            };
            if self.cold_rest().is_some_and(|rest| rest < victim.live.len() as u64) {
                // There is no room for it: a smaller one makes some.
                continue;
            }
            let goes_on = self.clean(&mut victim);
            if goes_on && victim.is_through() {
                self.ended(&victim);
            } else {
                self.cleaner.victim = Some(victim);
            }
            if !goes_on {
                return;
            }
        }
    }

    fn choose(&mut self) -> Option<Victim> {
        if !self.worth_choosing() {
            return None;
        }
        self.take_notes();
        let size = self.sb.segment_blocks;
        let now = self.log.last().lsn;
        let ends = self.log.ends();
        let covers = self.root.covers.lsn;
        let mut best: Option<(f64, u32, u32)> = None;
        let mut emptiest_young = u32::MAX;
        let rest = self.cold_rest();
        let behind = self.is_behind();
        // An idle store must not turn over what is all but full for ever.
        let idle = !behind && !self.log.busy() && self.cleaner.tokens == 0;
        let worth = size - size / if idle { IDLE_WORTH_PART } else { WORTH_PART };
        for (segment, state) in self.state.segments.iter() {
            let live = self.live_in(segment);
            if live > worth
                || state.last_lsn == 0
                || self.space.is_free(segment)
                || self.cleaner.done.contains_key(&segment)
                || self.cleaner.empty.contains(&segment)
                || self.cleaner.kept.get(&segment) == Some(&live)
                || ends.iter().any(|e| e.segment == segment || e.next == segment)
            {
                continue;
            }
            if state.last_lsn >= covers {
                // Its records are needed until the next snapshot.
                emptiest_young = emptiest_young.min(live);
                continue;
            }
            if live == 0 || rest.is_some_and(|rest| rest < u64::from(live)) {
                continue;
            }
            let (used, all) = (f64::from(live), f64::from(size));
            let age = now.saturating_sub(state.stamp) as f64 + 1.0;
            // Where space is short, what gives the most at once.
            let score = if behind { all - used } else { (all - used) * age / (all + used) };
            if best.is_none_or(|b| b.0 < score) {
                best = Some((score, segment, live));
            }
        }
        let best_live = best.map_or(size, |b| b.2);
        self.space.snapshot_wanted =
            emptiest_young < best_live / 2 || best.is_none() && emptiest_young < size;
        let Some((_, segment, _)) = best else {
            self.space.nothing_at = Some(self.log.appended_blocks());
            return None;
        };
        let state = self.state.segments.get(segment);
        Some(Victim {
            segment,
            live_at_start: best_live,
            end: state.end.min(size),
            stamp: state.stamp,
            at: 0,
            todo: VecDeque::new(),
            asked: Vec::new(),
            unknown: 0,
            live: VecDeque::new(),
            window: None,
            reading: false,
            step: WINDOW_BLOCKS,
            retries: 0,
            errors: 0,
            found: 0,
            stays: false,
        })
    }

    /// One step; false if it has to wait.
    fn clean(&mut self, v: &mut Victim) -> bool {
        if !v.asked.is_empty() {
            for (live, location) in v.asked.drain(..) {
                if live.entry.location == location && live.entry.checksum != HOLE {
                    v.found += 1;
                    v.live.push_back(live);
                }
            }
            return true;
        }
        if let Some(first) = v.live.front() {
            let at = self.block_of(v, first.entry.location);
            if !in_window(v, at) {
                let last = v.live.back().map_or(at, |l| self.block_of(v, l.entry.location));
                self.clean_read(v, at, last + 1 - at);
                return false;
            }
            if !self.may_move(Some(v.live.len())) {
                return false;
            }
            self.move_some(v);
            return true;
        }
        if !v.todo.is_empty() {
            self.look_up(v);
            return v.unknown == 0;
        }
        if v.at >= v.end {
            return true;
        }
        if !in_window(v, v.at) {
            self.clean_read(v, v.at, v.end - v.at);
            return false;
        }
        self.parse(v);
        !v.reading
    }

    fn block_of(&self, v: &Victim, location: u64) -> u32 {
        place_of(location).saturating_sub(self.sb.location(v.segment, 0)) as u32
    }

    /// Reads blocks of the victim into its window.
    fn clean_read(&mut self, v: &mut Victim, at: u32, blocks: u32) {
        let blocks = blocks.clamp(1, v.step).min(self.sb.segment_blocks - at);
        let Some(buf) = Pool::new(u64::MAX, 0, None).get(blocks as usize * BLOCK_SIZE) else {
            return;
        };
        v.window = None;
        v.reading = true;
        let id = self.running.insert(Running::Clean { segment: v.segment, at }) as u64;
        let offset = self.sb.location(v.segment, at) * BLOCK_SIZE as u64;
        self.dev.start(id, Op::Read { offset, buf });
    }

    /// The window has been read, or not.
    pub(super) fn clean_window(&mut self, segment: u32, at: u32, result: io::Result<()>, buf: Option<Buf>) {
        let Some(mut v) = self.cleaner.victim.take() else {
            return;
        };
        if v.segment == segment {
            v.reading = false;
            match (result, buf) {
                (Ok(()), Some(buf)) => {
                    v.window = Some((at, buf));
                    (v.step, v.retries) = ((v.step * 2).min(WINDOW_BLOCKS), 0);
                }
                (result, buf) => self.clean_unreadable(&mut v, at, buf.map_or(0, |b| b.len()), result.err()),
            }
        }
        self.cleaner.victim = Some(v);
    }

    fn clean_unreadable(&mut self, v: &mut Victim, at: u32, len: usize, error: Option<io::Error>) {
        v.errors += 1;
        if len > BLOCK_SIZE && v.errors < ERRORS_MAX {
            // One of them is to blame: fewer at once.
            v.step = 1;
            return;
        }
        v.retries += 1;
        if v.retries < READS_MAX {
            return;
        }
        v.retries = 0;
        v.stays = true;
        if v.errors >= ERRORS_MAX {
            v.at = v.end;
            v.todo.clear();
        }
        let byte = self.sb.location(v.segment, at) * BLOCK_SIZE as u64;
        tracing::error!(
            device = self.dev.name(),
            segment = v.segment,
            byte,
            ?error,
            "a block cannot be read while cleaning: its segment is kept"
        );
        match v.live.pop_front() {
            Some(live) => self.found_bad(live.object, live.block, live.entry),
            // A header: what lies behind it cannot be told.
            None => v.at = v.end,
        }
    }

    /// The batches whose headers are in the window.
    fn parse(&mut self, v: &mut Victim) {
        let Some((first, buf)) = v.window.take() else {
            return;
        };
        while v.at < v.end && v.at >= first && v.todo.len() < RESOLVE_MAX {
            let Some(bytes) = buf.get((v.at - first) as usize * BLOCK_SIZE..).filter(|b| !b.is_empty())
            else {
                break;
            };
            let header = Header::peek(bytes, self.sb.incarnation, v.segment, v.at);
            let Some(header) = header.filter(|h| v.at + h.blocks() <= v.end) else {
                return self.broken(v);
            };
            let Some(area) = bytes.get(..header.header_blocks as usize * BLOCK_SIZE) else {
                // The window ends in it: a window from its beginning on, and large enough.
                v.step = v.step.max(header.header_blocks);
                return self.clean_read(v, v.at, header.header_blocks.max(WINDOW_BLOCKS));
            };
            let entries = header.verify(self.sb.incarnation, area).then(|| header.entries(area)).flatten();
            let Some(entries) = entries else {
                return self.broken(v);
            };
            let mut location = self.sb.in_turn(v.segment, header.turn, v.at + header.header_blocks);
            for entry in &entries {
                name_blocks(entry, location, &mut v.todo);
                location += u64::from(entry.data_blocks());
            }
            v.at += header.blocks();
        }
        v.window = Some((first, buf));
    }

    fn broken(&self, v: &mut Victim) {
        tracing::error!(
            device = self.dev.name(),
            segment = v.segment,
            byte = self.sb.location(v.segment, v.at) * BLOCK_SIZE as u64,
            "a batch's header is damaged: what lies behind it cannot be told, and its segment is kept"
        );
        v.stays = true;
        v.at = v.end;
    }

    /// Asks the tables about some of what the headers have named.
    fn look_up(&mut self, v: &mut Victim) {
        while v.asked.len() < RESOLVE_MAX
            && let Some(candidate) = v.todo.pop_front()
        {
            match candidate.what {
                What::Page { object, page } => {
                    if let Some(slot) = self.state.tables.touch(object, page, candidate.location) {
                        v.found += 1;
                        self.state.dirty.insert(Key::Object(self.state.tables.current(object)));
                        // Written now, or when it has been loaded; where there is no room, by the checkpoint.
                        if !self.room_is_coming()
                            && self.state.tables.prepare_flush(slot, object, page) == Some(true)
                        {
                            self.flush_page(slot);
                        }
                    }
                }
                What::Block { object, block } => {
                    let mut entry = [BlockEntry::default()];
                    let at = BlockRange::new(block, 1);
                    let index = v.asked.len();
                    let parts = self.state.tables.capture_at(object, at, CLEANER, index as u32, &mut entry);
                    v.unknown += parts;
                    v.asked.push((Live { object, block, entry: entry[0] }, candidate.location));
                }
            }
        }
    }

    /// The tables have answered.
    pub(super) fn clean_captured(&mut self, at: u32, entries: &[BlockEntry]) {
        if let Some(v) = &mut self.cleaner.victim
            && let (Some(asked), Some(entry)) = (v.asked.get_mut(at as usize), entries.first())
        {
            asked.0.entry = *entry;
            v.unknown = v.unknown.saturating_sub(1);
        }
    }

    /// Moves the live blocks at the front that are in the window.
    fn move_some(&mut self, v: &mut Victim) {
        let Some((first, buf)) = v.window.take() else {
            return;
        };
        let blocks = (buf.len() / BLOCK_SIZE) as u32;
        let mut some: Vec<(Live, u32)> = Vec::with_capacity(self.move_max());
        while some.len() < self.move_max()
            && let Some(&live) = v.live.front()
        {
            let at = self.block_of(v, live.entry.location);
            if at < first || at >= first + blocks {
                break;
            }
            v.live.pop_front();
            // Overwritten meanwhile.
            if self
                .state
                .tables
                .peek(live.object, live.block)
                .is_some_and(|e| e.location != live.entry.location)
            {
                continue;
            }
            let bytes = &buf[(at - first) as usize * BLOCK_SIZE..][..BLOCK_SIZE];
            let group = live.object.group;
            if block_checksum(group.volume, live.object.index, live.block, bytes) != live.entry.checksum {
                // Kept where it is, until it has been healed from a peer.
                v.stays = true;
                self.found_bad(live.object, live.block, live.entry);
                continue;
            }
            some.push((live, at - first));
        }
        some.sort_unstable_by_key(|(l, _)| (l.object, l.block));
        for run in some.chunk_by(|a, b| a.0.object == b.0.object) {
            let object = run[0].0.object;
            let blocks: Vec<u32> = run.iter().map(|(l, _)| l.block).collect();
            let sums: Vec<u64> = run.iter().map(|(l, _)| l.entry.checksum).collect();
            self.scratch.clear();
            if let Err(error) = codec::put_move(object, v.stamp, blocks, &sums, &mut self.scratch) {
                return self.fail(format!("a move cannot be encoded: {error}"));
            }
            let location = match self.log.reserve(Stream::Cold, self.scratch.len(), run.len() as u32) {
                Ok(location) => location,
                Err(error) => return self.fail(error.to_string()),
            };
            self.log.push(&self.scratch, None);
            self.log.stamp(v.stamp);
            for (_, at) in run {
                self.log.data(&buf[*at as usize * BLOCK_SIZE..][..BLOCK_SIZE]);
            }
            let moved: Vec<(u32, u64)> = run.iter().map(|(l, _)| (l.block, l.entry.checksum)).collect();
            self.state.moved(object, &moved, location);
        }
        let n = some.len() as u32;
        self.stats.moved_blocks += u64::from(n);
        self.space.background_used(n);
        self.cleaner.tokens = self.cleaner.tokens.saturating_sub(u64::from(n));
        v.window = Some((first, buf));
    }

    /// All of the victim has been looked at.
    fn ended(&mut self, v: &Victim) {
        let live = self.live_in(v.segment);
        self.stats.segments_cleaned += 1;
        self.cleaner.ended = true;
        if v.stays {
            self.cleaner.kept.insert(v.segment, live);
        } else if v.found == 0 && live > 0 && self.cleaner.recheck.remove(&v.segment) {
            // Twice nothing. A count goes astray with a table page that was lost, and with nothing else.
            if u64::from(live) <= self.state.segments.leaked {
                tracing::warn!(
                    device = self.dev.name(),
                    segment = v.segment,
                    live,
                    "what counts as live in this segment was named by a lost table page: it is freed"
                );
                self.stats.recounts += 1;
                self.cleaner.empty.insert(v.segment);
            } else {
                tracing::error!(
                    device = self.dev.name(),
                    segment = v.segment,
                    live,
                    "nothing live was found in this segment, but its count says otherwise: it is kept. \
                     This is a bug; please report it"
                );
                self.cleaner.kept.insert(v.segment, live);
            }
        } else {
            self.cleaner.done.insert(v.segment, self.log.appended_blocks());
        }
    }

    /// Live blocks of a segment, as far as is known: pages that are not in memory may have queued changes.
    pub(super) fn live_in(&self, segment: u32) -> u32 {
        self.state.segments.get(segment).live.saturating_add_signed(self.state.tables.pending(segment))
    }

    /// A full checkpoint has ended: all pages have been in memory, so segments that were emptied before it
    /// and are not free are looked at again.
    pub(super) fn clean_after_snapshot(&mut self, began: u64) {
        let left: Vec<u32> =
            self.cleaner.done.iter().filter(|(_, at)| **at < began).map(|(segment, _)| *segment).collect();
        for segment in left {
            if self.live_in(segment) > 0 {
                self.cleaner.done.remove(&segment);
                self.cleaner.recheck.insert(segment);
            }
        }
        self.space.nothing_at = None;
    }
}

fn in_window(v: &Victim, at: u32) -> bool {
    v.window.as_ref().is_some_and(|(first, buf)| at >= *first && at < first + (buf.len() / BLOCK_SIZE) as u32)
}

/// What the data blocks of an entry are, in order.
fn name_blocks(entry: &Entry, mut location: u64, todo: &mut VecDeque<Candidate>) {
    let mut block = |object, block| {
        todo.push_back(Candidate { what: What::Block { object, block }, location });
        location += 1;
    };
    fn op_blocks<P>(op: &WriteOp<P>) -> std::ops::Range<u32> {
        match op {
            WriteOp::Data { blocks, .. } => blocks.first..blocks.end(),
            WriteOp::Zero { .. } => 0..0,
        }
    }
    match entry {
        Entry::Node(Record::Write { object, op, .. }) => op_blocks(op).for_each(|b| block(*object, b)),
        Entry::Node(Record::Install { object, patches, writes, .. }) => {
            for (b, checksum) in patches.iter().flat_map(|p| &p.blocks) {
                if *checksum != HOLE {
                    block(*object, *b);
                }
            }
            writes.iter().flat_map(op_blocks).for_each(|b| block(*object, b));
        }
        Entry::Node(Record::Heal { object, block: b, .. }) => block(*object, *b),
        Entry::Move { object, blocks, .. } => blocks.iter().for_each(|(b, _)| block(*object, *b)),
        Entry::Page { object, page, .. } => {
            todo.push_back(Candidate { what: What::Page { object: *object, page: *page }, location });
        }
        _ => {}
    }
}
