//! I1: an acknowledged write is read back until it is overwritten.
//!
//! Simpler than I2 and independent of it: of each block it keeps when the newest acknowledged write
//! began. A read that starts later and shows a write that had ended before that one began has lost it.

use super::{Checked, Moment, NEVER, PerBlock, SLOTS, Violation, object_of};
use crate::payload::Value;
use crate::plan::BLOCKS_MAX;

/// When the newest acknowledged write of each block began.
#[derive(Debug)]
pub struct Acknowledged {
    began: Vec<PerBlock>,
}

impl Default for Acknowledged {
    fn default() -> Acknowledged {
        Acknowledged { began: vec![[0; BLOCKS_MAX]; SLOTS] }
    }
}

impl Acknowledged {
    /// A write that began at `began` was acknowledged.
    pub fn acknowledged(&mut self, slot: usize, block: usize, began: Moment) {
        let newest = &mut self.began[slot][block];
        *newest = (*newest).max(began);
    }

    /// What a read that starts now may not be older than.
    pub fn floor(&self, slot: usize) -> PerBlock {
        self.began[slot]
    }

    /// A read with this floor shows `value`, whose write was acknowledged at `ended`.
    pub fn read(slot: usize, block: usize, floor: &PerBlock, value: Value, ended: Moment) -> Checked {
        if ended != NEVER && ended < floor[block] {
            let what = format!(
                "block {block} shows value {value}, acknowledged at {ended}; a write that began at {} was \
                 acknowledged before the read began",
                floor[block]
            );
            return Err(Violation::of("I1", object_of(slot), what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_value_after_an_acknowledgement_is_caught() {
        let mut a = Acknowledged::default();
        a.acknowledged(0, 1, 10);
        let floor = a.floor(0);
        assert!(Acknowledged::read(0, 1, &floor, 7, 12).is_ok(), "the write itself");
        assert!(Acknowledged::read(0, 1, &floor, 8, NEVER).is_ok(), "one under way");
        assert!(Acknowledged::read(0, 1, &floor, 6, 9).is_err());
        assert!(Acknowledged::read(0, 0, &floor, 6, 9).is_ok(), "another block");
    }
}
