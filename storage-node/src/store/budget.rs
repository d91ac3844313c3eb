//! How much may be moved, and when: the cleaner's budget, and where it must not begin at all.
//!
//! What clients append earns blocks that may be moved; the fewer free segments there are, the more. Where
//! clients wait for free segments (`Store::is_behind`) there is no budget, only room: cleaning must never use
//! up what it needs itself, or what the checkpoint needs without which it gives nothing back.

use super::engine::Store;
use super::index::Index;
use super::log::Stream;
use crate::device::Device;
use trefoil_core::BLOCK_SIZE;

/// Blocks moved in one batch; fewer where segments are small.
const MOVE_MAX: u32 = 128;
/// Blocks that are worth a batch of their own, where there are so many.
const MOVE_MIN: u64 = 64;
/// Budget that is kept for later, in blocks.
const TOKENS_MAX: u64 = 1024;
/// Objects in a block of a snapshot, at least.
const OBJECTS_PER_BLOCK: u64 = 16;

impl<D: Device, I: Index> Store<D, I> {
    /// True where [`Store::clean_step`] would do something without waiting for I/O.
    pub(super) fn clean_runs(&self) -> bool {
        self.failed.is_none()
            && !self.cleaner.is_waiting()
            && (self.cleaner.has_victim() || self.wants_cleaning() && self.worth_choosing())
            && self.may_move(self.cleaner.victim_live())
    }

    pub(super) fn wants_cleaning(&self) -> bool {
        self.supply() < self.supply_wanted().0
    }

    pub(super) fn worth_choosing(&self) -> bool {
        // Choosing looks at all segments: not again and again where nothing is worth it.
        let again = u64::from(self.sb.segment_blocks) / 16;
        self.space.nothing_at.is_none_or(|at| self.log.appended_blocks() - at >= again)
    }

    /// Free segments are short, and nothing can be done about it: nothing is worth cleaning, and no snapshot
    /// would free anything. The reserve is there so that this does not happen; if it does, what needs room
    /// is refused instead of waited for.
    pub(super) fn is_stuck(&self) -> bool {
        !self.clean_can_go_on()
            && matches!(self.phase, super::checkpoint::Phase::Idle)
            && self.nothing_new()
            && self.space.coming() == 0
            && self.state.dead.is_empty()
            && !self.log.busy()
            && self.is_behind()
    }

    /// What the supply of free segments is to be, and the range below that in which the budget grows.
    pub(super) fn supply_wanted(&self) -> (u64, u64) {
        let range = self.space.limits.low;
        (self.space.limits.low + range, range)
    }

    /// Budget for what has been appended since the last call: in the middle of the range as much as keeps
    /// the supply level, above it less, below it up to four times as much.
    pub(super) fn earn(&mut self) {
        let hot = self.log.appended_by(Stream::Hot);
        let appended = hot - std::mem::replace(&mut self.cleaner.hot_seen, hot);
        let (supply, (wanted, range)) = (self.supply(), self.supply_wanted());
        if appended == 0 || supply >= wanted {
            return;
        }
        let size = u64::from(self.sb.segment_blocks);
        let live = self.cleaner.victim_cost().map_or(size / 2, |live| u64::from(live).min(size - 1));
        let level = appended * live / (size - live);
        let tokens = (level * 2 * (wanted - supply) / range).min(level * 4) + 1;
        self.cleaner.tokens = (self.cleaner.tokens + tokens).min(TOKENS_MAX);
    }

    /// Moving leaves room for the table pages and the snapshot without which it gives nothing back.
    pub(super) fn has_room_to_clean(&self) -> bool {
        // One of those that the hot stream reckons with may become the cold stream's.
        let taken = if self.log.ready_for(Stream::Hot) > 0 { u64::from(self.sb.segment_blocks) } else { 0 };
        let plenty = self.hot_free().saturating_sub(taken) >= self.snapshot_blocks() + self.cold_min();
        // Where it is too late for that, segments that need no snapshot any more are what helps; the Free goes
        // into the cold stream, too.
        plenty || self.is_behind()
    }

    /// Blocks that a full checkpoint takes, about.
    pub(super) fn snapshot_blocks(&self) -> u64 {
        let dirty = self.state.tables.dirty() as u64;
        let entries = self.state.tables.len() as u64 / OBJECTS_PER_BLOCK + u64::from(self.sb.segments) / 64;
        dirty + dirty / 8 + entries + 8
    }

    pub(super) fn move_max(&self) -> usize {
        (self.sb.segment_blocks / 16).clamp(8, MOVE_MAX) as usize
    }

    /// Blocks that the cold stream has at least when something is moved.
    pub(super) fn cold_min(&self) -> u64 {
        2 * self.move_max() as u64 + 8
    }

    /// Blocks that the cold stream needs for the next move: at most one header for each block.
    pub(super) fn cold_needed(&self, live: Option<usize>) -> u64 {
        let next = live.unwrap_or(1).min(self.move_max());
        self.cold_min().min(2 * next as u64 + 3)
    }

    /// Blocks that may be moved before another segment is free; `None`: as many as there are.
    pub(super) fn cold_rest(&self) -> Option<u64> {
        let short = self.is_behind() && self.log.ready() == 0;
        let batch = (self.options.batch_bytes_max / BLOCK_SIZE as u64).clamp(1, self.move_max() as u64);
        short.then(|| self.log.stream_free(Stream::Cold).saturating_sub(4) * batch / (batch + 1))
    }

    /// False where a snapshot has to come first.
    pub(super) fn clean_can_go_on(&self) -> bool {
        self.has_room_to_clean()
            && self.log.stream_free(Stream::Cold) >= self.cold_needed(self.cleaner.victim_live())
            && (self.cleaner.has_victim() || self.worth_choosing())
    }

    /// True where moving may go on: budget, or nobody to disturb, or no choice.
    pub(super) fn may_move(&self, live: Option<usize>) -> bool {
        if !self.space.background_may()
            || self.log.pending_bytes() >= self.options.pending_bytes_max
            || !self.has_room_to_clean()
            || self.log.stream_free(Stream::Cold) < self.cold_needed(live)
        {
            return false;
        }
        let idle = !self.log.busy() && self.reads.is_empty();
        self.cleaner.tokens >= MOVE_MIN || idle || self.is_behind()
    }
}
