//! I2: per block, the reads and writes of all sessions are linearizable: a [`Register`] per block.

use super::register::{Register, Wrong};
use super::{Checked, Moment, SLOTS, Violation, object_of};
use crate::payload::Value;
use crate::plan::{BLOCKS_MAX, OBJECTS_MAX};
use std::ops::Range;
use trefoil_core::{Ballot, Generation};

/// The blocks of all volumes.
#[derive(Debug)]
pub struct Linearizable {
    registers: Vec<Register>,
    /// The newest ballot in which the object was served, and since when.
    opened: Vec<(Ballot, Moment)>,
    /// Reads of holes that more than one write could explain.
    pub ambiguous: u64,
}

impl Default for Linearizable {
    fn default() -> Linearizable {
        Linearizable {
            registers: vec![Register::default(); SLOTS * BLOCKS_MAX],
            opened: vec![(Ballot::ZERO, 0); SLOTS],
            ambiguous: 0,
        }
    }
}

fn explain(slot: usize, block: usize, value: Value, wrong: &Wrong, who: &str) -> Box<Violation> {
    let why = match wrong {
        Wrong::FromNowhere => "which nobody had written there".to_string(),
        Wrong::Void => "which was given to a leader that had been replaced in this object".to_string(),
        Wrong::Overwritten { by } => format!("though value {by} was seen or acknowledged after it"),
    };
    Violation::of("I2", object_of(slot), format!("{who}: block {block} shows value {value}, {why}"))
}

impl Linearizable {
    /// The register of a block.
    pub fn register(&self, slot: usize, block: usize) -> &Register {
        &self.registers[slot * BLOCKS_MAX + block]
    }

    /// A write begins: `value + n` goes to the n-th of `blocks`; 0 for a hole in each.
    pub fn begin(&mut self, slot: usize, blocks: Range<usize>, value: Value, generation: u64, now: Moment) {
        let void = generation < self.opened[slot].0.generation().0;
        for (n, block) in blocks.enumerate() {
            let value = if value == 0 { 0 } else { value + n as u64 };
            self.registers[slot * BLOCKS_MAX + block].begin(value, generation, now, void);
        }
    }

    /// The write that began at `began` is acknowledged.
    pub fn acknowledge(
        &mut self,
        slot: usize,
        blocks: Range<usize>,
        value: Value,
        began: Moment,
        now: Moment,
    ) -> Checked {
        for (n, block) in blocks.enumerate() {
            let value = if value == 0 { 0 } else { value + n as u64 };
            self.registers[slot * BLOCKS_MAX + block]
                .acknowledge(value, began, now)
                .map_err(|wrong| explain(slot, block, value, &wrong, "an acknowledgement"))?;
        }
        Ok(())
    }

    /// When an operation that a client began at `began` with a leader of this generation began at the
    /// earliest to take effect.
    pub fn start(&self, slot: usize, generation: u64, began: Moment) -> Moment {
        let (opened, at) = self.opened[slot];
        if opened.generation().0 == generation { began.max(at + 1) } else { began }
    }

    /// A read that started at `start` ended now and showed `value`.
    pub fn read(&mut self, slot: usize, block: usize, value: Value, start: Moment, now: Moment) -> Checked {
        match self.registers[slot * BLOCKS_MAX + block].read(value, start, now) {
            Ok(told) => {
                self.ambiguous += u64::from(!told);
                Ok(())
            }
            Err(wrong) => Err(explain(slot, block, value, &wrong, &format!("a read of {start}..{now}"))),
        }
    }

    /// The write that began at `began` failed.
    pub fn give_up(&mut self, slot: usize, blocks: Range<usize>, value: Value, began: Moment) {
        for (n, block) in blocks.enumerate() {
            let value = if value == 0 { 0 } else { value + n as u64 };
            self.registers[slot * BLOCKS_MAX + block].give_up(value, began);
        }
    }

    /// A leader reads or writes the object in this ballot now: it is open there.
    pub fn opened(&mut self, slot: usize, ballot: Ballot, now: Moment) {
        if ballot > self.opened[slot].0 {
            self.opened[slot] = (ballot, now);
            let generation = ballot.generation().0;
            for block in 0..BLOCKS_MAX {
                self.registers[slot * BLOCKS_MAX + block].opened(generation, now);
            }
        }
    }

    /// [`Linearizable::opened`] for every object of a volume (numbered from 1), in a generation's first
    /// ballot.
    pub fn opened_all(&mut self, volume: u64, generation: u64, now: Moment) {
        let Some(ballot) = Ballot::new(Generation(generation), 0) else { return };
        let first = (volume as usize - 1) * OBJECTS_MAX;
        for slot in first..first + OBJECTS_MAX {
            self.opened(slot, ballot, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(generation: u64) -> Ballot {
        Ballot::new(Generation(generation), 0).unwrap()
    }

    #[test]
    fn a_stale_read_of_an_older_session_is_caught() {
        let mut l = Linearizable::default();
        l.begin(0, 0..2, 5, 1, 1);
        l.acknowledge(0, 0..2, 5, 1, 2).unwrap();
        l.opened(0, ballot(2), 3);
        l.begin(0, 1..2, 9, 2, 4);
        l.acknowledge(0, 1..2, 9, 4, 6).unwrap();
        assert!(l.read(0, 0, 5, 7, 8).is_ok());
        assert!(l.read(0, 1, 6, 7, 8).is_err(), "6 was overwritten by 9");
        assert!(l.read(0, 1, 5, 7, 8).is_err(), "5 is another block's");
    }

    #[test]
    fn operations_of_a_newer_leader_start_when_it_serves() {
        let mut l = Linearizable::default();
        l.opened(3, ballot(2), 10);
        assert_eq!(l.start(3, 2, 4), 11);
        assert_eq!(l.start(3, 1, 4), 4);
        l.begin(3, 0..1, 7, 1, 12);
        assert!(l.read(3, 0, 7, 13, 14).is_err(), "given to a replaced leader");
    }
}
