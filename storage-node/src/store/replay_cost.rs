//! How long a start after a crash would take, by estimate: what decides that a checkpoint is due, besides the
//! bytes of the log.
//!
//! A replay reads the log in large pieces and looks at each batch's header and records, so that its time goes
//! with the blocks and, where batches are small, with their number. What one of each takes is another matter
//! on each machine: the first guess is set right by how long the replay took when this store was opened. It
//! may be wrong by a factor: it decides when a checkpoint is taken, and nothing else.

use super::engine::Store;
use super::index::Index;
use crate::device::Device;
use std::time::Duration;

/// A batch: its header is found, verified and decoded (ns).
const BATCH_NS: u64 = 15_000;
/// A block of the log: it is read, and what its record says is taken (ns).
const BLOCK_NS: u64 = 2_500;
/// The guess is not set right by more than these factors, in sixteenths: an hour in which the machine was busy
/// with something else must not make checkpoints so frequent that they become the load.
const FACTORS: (u64, u64) = (4, 16 * 16);
/// A replay that the first guess puts below this (µs) says nothing: it is mostly the first reads.
const LEARN_FROM_US: u64 = 50_000;

/// A part of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Batches.
    pub batches: u64,
    /// Blocks that they take.
    pub blocks: u64,
}

impl Log {
    /// The first guess, in microseconds.
    fn guess_us(self) -> u64 {
        (self.batches.saturating_mul(BATCH_NS)).saturating_add(self.blocks.saturating_mul(BLOCK_NS)) / 1000
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct ReplayCost {
    /// The batch that the last checkpoint covers, or the last one of the start.
    pub from_lsn: u64,
    /// By which the guess is multiplied, in sixteenths.
    factor: u64,
}

impl ReplayCost {
    /// Nothing is known of this machine yet.
    pub fn new(from_lsn: u64) -> ReplayCost {
        ReplayCost { from_lsn, factor: 16 }
    }

    /// A replay of so much took so long.
    pub fn learn(&mut self, replayed: Log, took: Duration) {
        let guess = replayed.guess_us();
        if guess >= LEARN_FROM_US {
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.factor = (took.saturating_mul(16) / guess).clamp(FACTORS.0, FACTORS.1);
        }
    }

    /// How long the replay of so much would take (µs).
    pub fn of(&self, log: Log) -> u64 {
        log.guess_us().saturating_mul(self.factor) / 16
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// How long the replay would take if the process ended now (µs), by estimate.
    pub(super) fn replay_us(&self) -> u64 {
        let appended = self.log.appended_blocks().saturating_sub(self.space.checkpoint_from);
        let batches = self.log.last().lsn.saturating_sub(self.replay_cost.from_lsn);
        self.replay_cost.of(Log {
            batches: self.replayed.batches.saturating_add(batches),
            blocks: self.replayed.blocks.saturating_add(appended),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guess_is_set_right_by_what_a_start_took_within_bounds() {
        let log = Log { batches: 100_000, blocks: 200_000 };
        let mut cost = ReplayCost::new(7);
        assert_eq!(cost.of(log), 2_000_000);
        cost.learn(Log { batches: 10, blocks: 20 }, Duration::from_secs(9));
        assert_eq!(cost.of(log), 2_000_000, "too little to learn from");
        cost.learn(log, Duration::from_secs(3));
        assert_eq!(cost.of(log), 3_000_000);
        cost.learn(log, Duration::from_secs(1000));
        assert_eq!(cost.of(log), 32_000_000, "at most 16 times");
        cost.learn(log, Duration::from_millis(1));
        assert_eq!(cost.of(log), 500_000, "at least a quarter");
        let all = Log { batches: u64::MAX, blocks: u64::MAX };
        assert!(cost.of(all) > 0, "no overflow");
    }
}
