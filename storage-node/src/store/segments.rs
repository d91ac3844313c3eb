//! What each segment holds: the counts that cleaning and the reuse of segments rest on.
//!
//! All of it is a function of the log up to a place (`docs/on-disk-format.md`, *Live counts*): recovery
//! folds the same records into the same counts. This module decides nothing and does no I/O.

use super::bugs::{self, Bug};
use serde::{Deserialize, Serialize};

/// Segments in one entry of the index or snapshot.
pub const CHUNK: u32 = 256;

/// A segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegState {
    /// Blocks that a page's newest image in the log names, and such images.
    pub live: u32,
    /// Blocks written since it was last begun.
    pub end: u32,
    /// LSN of the newest batch; 0: it has never been written.
    pub last_lsn: u64,
    /// LSN of when the data in it was written first.
    pub stamp: u64,
    /// How often it has been freed, in 16 bits. Locations carry it: those of another turn name nothing.
    pub turn: u16,
    /// Nothing in it is needed; it has not been written since.
    pub free: bool,
}

/// Stands for a page whose entries were lost: what they counted stays counted.
pub const LEAKED: Delta = (u32::MAX, 0, 256);

/// A change of a live count: the segment, its turn, the change. One of another turn changes nothing.
pub type Delta = (u32, u16, i32);

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    states: Vec<SegState>,
    live: u64,
    /// Blocks that may be counted for good although nothing names them: those that lost table pages named.
    pub leaked: u64,
    /// Times that a count would have gone below zero or beyond the segment: a bug, or a damaged log.
    pub impossible: u64,
}

impl Segments {
    /// So many, never written.
    pub fn new(segments: u32) -> Segments {
        Segments { states: vec![SegState::default(); segments as usize], live: 0, leaked: 0, impossible: 0 }
    }

    /// One of them; a segment that does not exist has the default.
    pub fn get(&self, segment: u32) -> SegState {
        self.states.get(segment as usize).copied().unwrap_or_default()
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &SegState)> {
        (0u32..).zip(&self.states)
    }

    /// Live blocks of all.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Changes a live count, if this is still the segment's turn.
    pub fn add(&mut self, (segment, turn): (u32, u16), delta: i32) {
        if segment == LEAKED.0 {
            self.leaked += u64::from(delta.unsigned_abs());
            return;
        }
        let Some(state) = self.states.get_mut(segment as usize) else {
            self.impossible += 1;
            return;
        };
        if state.turn != turn {
            return;
        }
        match state.live.checked_add_signed(delta) {
            Some(live) => {
                self.live = self.live - u64::from(state.live) + u64::from(live);
                state.live = live;
            }
            None => {
                self.impossible += 1;
                self.live -= u64::from(state.live);
                state.live = 0;
            }
        }
    }

    /// Several at once.
    pub fn add_all(&mut self, deltas: &[Delta]) {
        for &(segment, turn, delta) in deltas {
            self.add((segment, turn), delta);
        }
    }

    /// Nothing in it is needed any more. Images of pages may name blocks in it that later records have
    /// replaced: those have the old turn.
    pub fn free(&mut self, segment: u32) {
        if let Some(state) = self.states.get_mut(segment as usize) {
            self.live -= u64::from(state.live);
            *state = SegState {
                turn: state.turn.wrapping_add(u16::from(!bugs::on(Bug::SameTurn))),
                free: true,
                last_lsn: state.last_lsn,
                ..SegState::default()
            };
        }
    }

    /// A batch has joined the log: it ends before `end`; `stamp` is the age of what it holds.
    pub fn batch(&mut self, segment: u32, first: u32, end: u32, lsn: u64, stamp: u64) {
        if let Some(state) = self.states.get_mut(segment as usize) {
            state.free = false;
            state.stamp = if first == 0 { stamp } else { state.stamp.max(stamp) };
            state.end = end;
            state.last_lsn = lsn;
        }
    }

    /// The value of an entry: segments `CHUNK * chunk ..`.
    pub fn chunk(&self, chunk: u32) -> Option<&[SegState]> {
        let first = chunk.checked_mul(CHUNK)? as usize;
        let end = (first + CHUNK as usize).min(self.states.len());
        self.states.get(first..end).filter(|c| !c.is_empty())
    }

    /// Takes an entry; false if there are no such segments.
    pub fn restore(&mut self, chunk: u32, states: &[SegState]) -> bool {
        let first = chunk.saturating_mul(CHUNK) as usize;
        let Some(own) = self.states.get_mut(first..first + states.len()) else {
            return false;
        };
        own.copy_from_slice(states);
        self.live = self.states.iter().map(|s| u64::from(s.live)).sum();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_never_wrap() {
        let mut s = Segments::new(600);
        s.add_all(&[(1, 0, 5), (599, 0, 7), (1, 0, -2), (1, 3, 50)]);
        assert_eq!((s.live(), s.get(1).live), (10, 3));
        assert!(s.chunk(2).is_some() && s.chunk(3).is_none());
        s.add((1, 0), -4);
        s.add((600, 0), 1);
        assert_eq!((s.live(), s.impossible), (7, 2));
        s.batch(1, 0, 9, 40, 30);
        s.batch(1, 9, 12, 41, 20);
        let written = SegState { end: 12, last_lsn: 41, stamp: 30, ..SegState::default() };
        assert_eq!(s.get(1), written);
        let mut other = Segments::new(600);
        for chunk in 0..3 {
            assert!(other.restore(chunk, s.chunk(chunk).expect("there")));
        }
        assert_eq!(other.live(), 7);
        assert!(!other.restore(3, &[SegState::default()]));
        s.free(599);
        assert_eq!((s.live(), s.get(599).turn, s.get(599).free), (0, 1, true));
        // What named its blocks before names nothing now.
        s.add((599, 0), -3);
        s.add((599, 1), 2);
        assert_eq!((s.live(), s.impossible), (2, 2));
    }
}
