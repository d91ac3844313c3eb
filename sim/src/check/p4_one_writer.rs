//! P4: once a leader is attached, no older one finishes a write that no node had before that moment.
//!
//! Stated this way on purpose. An answer that was on its way when the newer leader attached may still
//! reach the older one, which then acknowledges a write that *was* durable on a majority; and a write
//! that one fenced node has, an unfenced third one may still complete. Neither can be prevented by a
//! fence, and both are found by the newer leader's Open, before it serves the object.

use super::{Checked, Moment, Violation, object_of};
use crate::plan::VOLUMES_MAX;

/// The newest attached generation of each volume, and since when.
#[derive(Debug, Default)]
pub struct OneWriter {
    attached: [(u64, Moment); VOLUMES_MAX],
}

impl OneWriter {
    /// A leader says that it is attached. Volumes are numbered from 1.
    pub fn attached(&mut self, volume: u64, generation: u64, now: Moment) {
        let newest = &mut self.attached[volume as usize - 1];
        if generation > newest.0 {
            *newest = (generation, now);
        }
    }

    /// A leader of this generation acknowledges a write which a node first had at `persisted`.
    pub fn acknowledged(&self, slot: usize, generation: u64, persisted: Moment) -> Checked {
        let object = object_of(slot);
        let (newest, since) = self.attached[object.0.0 as usize - 1];
        if generation < newest && persisted > since {
            let what = format!(
                "generation {generation} acknowledges a write that reached its first node at {persisted}; \
                 generation {newest} is attached since {since}"
            );
            return Err(Violation::of("P4", object, what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_an_older_leader_after_the_fence_is_caught() {
        let mut w = OneWriter::default();
        w.attached(1, 2, 10);
        w.attached(1, 1, 20);
        assert!(w.acknowledged(0, 1, 9).is_ok(), "a node had it before");
        assert!(w.acknowledged(0, 1, 11).is_err());
        assert!(w.acknowledged(0, 2, 11).is_ok());
    }
}
