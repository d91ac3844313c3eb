//! What the servers of one process share: the limits on connections and bytes.
//!
//! Both hold for the process, whatever number of shards it has. A connection takes its [`Slot`] when it is accepted
//! and keeps it when it is handed over. Bytes are counted by each shard for itself, request by request, without a look
//! at the others: it takes room from the process in large pieces ([`Ration`]) and gives back what it does not need, so
//! that memory which two processors write to is touched once in megabytes and not for each request.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes that a shard takes from the process at once, at most.
const PIECE_BYTES_MAX: u64 = 4 << 20;
/// Pieces that all shards together may keep without need, as a part of the whole: a quarter. Each keeps up to two.
const PIECES_PER_SHARD: u64 = 8;

/// What is left for all shards.
#[derive(Debug)]
pub(super) struct Process {
    connections: AtomicUsize,
    bytes_left: AtomicU64,
    /// See [`PIECE_BYTES_MAX`].
    piece: u64,
}

impl Process {
    /// For so many shards, which may hold so many bytes together.
    pub fn new(shards: usize, bytes_max: u64) -> Arc<Process> {
        let piece = bytes_max / (PIECES_PER_SHARD * (shards as u64).max(1));
        Arc::new(Process {
            connections: AtomicUsize::new(0),
            bytes_left: AtomicU64::new(bytes_max),
            piece: piece.clamp(1, PIECE_BYTES_MAX),
        })
    }

    /// Bytes that no shard has.
    #[cfg(test)]
    fn bytes_left(&self) -> u64 {
        self.bytes_left.load(Ordering::Relaxed)
    }
}

/// The place of one connection among those of the process, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Process>);

impl Slot {
    /// None: there are `limit` already.
    pub fn take(process: &Arc<Process>, limit: usize) -> Option<Slot> {
        let more = |now: usize| (now < limit).then(|| now + 1);
        process.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Slot(process.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that a shard may hold.
#[derive(Debug)]
pub(super) struct Ration {
    process: Arc<Process>,
    granted: Cell<u64>,
    /// Never given back.
    own: u64,
}

impl Ration {
    /// One shard of several: it has nothing yet.
    pub fn shared(process: &Arc<Process>) -> Ration {
        Ration { process: process.clone(), granted: Cell::new(0), own: 0 }
    }

    /// The only one: it has all of it, and keeps it.
    pub fn whole(process: &Arc<Process>) -> Ration {
        let all = process.bytes_left.swap(0, Ordering::Relaxed);
        Ration { process: process.clone(), granted: Cell::new(all), own: all }
    }

    /// True if `held` bytes are within it, after a try to get more where they are not. Gives back what is far more
    /// than is held.
    pub fn covers(&self, held: u64) -> bool {
        let granted = self.granted.get();
        if held > granted {
            return self.grow(held - granted, held);
        }
        let piece = self.process.piece;
        if granted > self.own && granted - held.max(self.own) > 2 * piece {
            let keep = held.max(self.own) + piece;
            self.granted.set(keep);
            self.process.bytes_left.fetch_add(granted - keep, Ordering::Relaxed);
        }
        true
    }

    fn grow(&self, missing: u64, held: u64) -> bool {
        let wanted = missing.next_multiple_of(self.process.piece);
        let mut got = 0;
        let take = |left: u64| {
            got = wanted.min(left);
            (got > 0).then(|| left - got)
        };
        if self.process.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            got = 0;
        }
        self.granted.set(self.granted.get() + got);
        held <= self.granted.get()
    }
}

impl Drop for Ration {
    fn drop(&mut self) {
        self.process.bytes_left.fetch_add(self.granted.get(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn shards_never_have_more_than_the_process_may_together() {
        let process = Process::new(2, 64 * MIB);
        let (a, b) = (Ration::shared(&process), Ration::shared(&process));
        assert!(a.covers(60 * MIB), "one may have nearly all of it");
        assert!(b.covers(MIB));
        assert!(!b.covers(10 * MIB), "what is left is not enough");
        assert_eq!(a.granted.get() + b.granted.get() + process.bytes_left(), 64 * MIB);
        assert!(a.covers(MIB), "gives back");
        assert!(b.covers(40 * MIB), "and the other one has it at its next look");
        assert_eq!(a.granted.get() + b.granted.get() + process.bytes_left(), 64 * MIB);
        assert!(a.covers(0) && a.granted.get() <= 2 * process.piece);
        drop((a, b));
        assert_eq!(process.bytes_left(), 64 * MIB);
    }

    #[test]
    fn what_idle_shards_keep_is_a_part_of_the_whole() {
        let process = Process::new(64, 1 << 30);
        let shards: Vec<Ration> = (0..64).map(|_| Ration::shared(&process)).collect();
        for shard in &shards {
            assert!(shard.covers(10 * MIB) && shard.covers(0));
        }
        assert!(process.bytes_left() >= 768 << 20, "{}", process.bytes_left());
    }

    #[test]
    fn a_ration_that_is_held_steadily_does_not_look_at_the_process() {
        let process = Process::new(2, 64 * MIB);
        let ration = Ration::shared(&process);
        assert!(ration.covers(10 * MIB));
        let left = process.bytes_left();
        // Requests come and go within two pieces.
        for held in [9 * MIB, 12 * MIB, 8 * MIB, 11 * MIB, 12 * MIB] {
            assert!(ration.covers(held));
            assert_eq!(process.bytes_left(), left, "{held}");
        }
    }

    #[test]
    fn the_only_shard_has_all_and_keeps_it() {
        let process = Process::new(1, 64 * MIB);
        let ration = Ration::whole(&process);
        assert!(ration.covers(64 * MIB) && !ration.covers(64 * MIB + 1) && ration.covers(0));
        assert_eq!((ration.granted.get(), process.bytes_left()), (64 * MIB, 0));
    }

    #[test]
    fn connections_are_counted_across_shards() {
        let process = Process::new(2, 0);
        let first = Slot::take(&process, 2).unwrap();
        let second = Slot::take(&process, 2).unwrap();
        assert!(Slot::take(&process, 2).is_none());
        // It is another thread's by then.
        std::thread::spawn(move || drop(first)).join().unwrap();
        assert!(Slot::take(&process, 2).is_some());
        drop(second);
    }
}
