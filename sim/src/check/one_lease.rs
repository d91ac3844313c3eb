//! Section 6.2: no two front ends believe in a lease of one volume at the same time.
//!
//! In real time, whatever each one's clock says. It rests on nobody's word: what is noted is until when a front end
//! that was granted or renewed may serve reads without asking. One that has died meanwhile might as well have
//! lived, so its lease counts; one that has released has said that it makes no use of it.

use super::{Checked, Violation};
use crate::plan::VOLUMES_MAX;
use rustc_hash::FxHashSet;
use trefoil_core::VolumeId;

#[derive(Copy, Clone, Debug)]
struct Belief {
    leader: usize,
    generation: u64,
    until: u64,
}

/// Who believes in a lease.
#[derive(Debug, Default)]
pub struct OneLease {
    beliefs: [Vec<Belief>; VOLUMES_MAX],
    released: FxHashSet<usize>,
}

impl OneLease {
    /// A front end believes in its lease until then. Times are the world's.
    pub fn given(
        &mut self,
        volume: VolumeId,
        leader: usize,
        generation: u64,
        until: u64,
        now: u64,
    ) -> Checked {
        let beliefs = &mut self.beliefs[volume.0 as usize - 1];
        beliefs.retain(|it| it.until > now && it.leader != leader);
        // An answer may find one that has released and is about to end.
        if until <= now || self.released.contains(&leader) {
            return Ok(());
        }
        let other = beliefs.first().copied();
        beliefs.push(Belief { leader, generation, until });
        match other {
            None => Ok(()),
            Some(other) => Err(Violation::of(
                "6.2",
                (volume, 0),
                format!(
                    "leader {leader} of generation {generation} has a lease until {until}, and leader {} of \
                     generation {} has one until {}",
                    other.leader, other.generation, other.until
                ),
            )),
        }
    }

    /// A front end has released.
    pub fn released(&mut self, volume: VolumeId, leader: usize) {
        self.beliefs[volume.0 as usize - 1].retain(|it| it.leader != leader);
        self.released.insert(leader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_that_overlap_are_caught_and_others_are_not() {
        let mut leases = OneLease::default();
        let (one, two) = (VolumeId(1), VolumeId(2));
        assert!(leases.given(one, 0, 1, 100, 10).is_ok());
        assert!(leases.given(two, 1, 1, 100, 10).is_ok(), "another volume");
        assert!(leases.given(one, 0, 1, 200, 90).is_ok(), "renewed");
        assert!(leases.given(one, 2, 2, 300, 200).is_ok(), "the last one is over");
        assert!(leases.given(one, 0, 1, 280, 250).is_err());
        leases.released(one, 2);
        leases.released(one, 0);
        assert!(leases.given(one, 0, 1, 290, 255).is_ok(), "it makes no use of it");
        assert!(leases.given(one, 3, 3, 400, 260).is_ok());
        assert!(leases.given(one, 4, 4, 250, 260).is_ok(), "over before it came");
    }
}
