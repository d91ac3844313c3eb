//! What a seed decides of front ends that call and of nodes that say whom they hear (section 8), in the runs that have
//! it. Times in µs.

use super::{Fault, Plan};
use crate::rng::Rng;

/// Which runs have it. Such that those of `tests/seeds.txt` from before have not.
const SALT: u64 = 0x6361_6c6c_733a;

/// The least time between two words of a node: there is much to be done meanwhile.
const BEAT_MIN: u64 = 5_000;

/// How front ends make themselves heard, and who tells it. As the daemons have it, but for the lease's length.
#[derive(Clone, Debug)]
pub struct CallsPlan {
    /// A leader's [`trefoil_core::leader::Options::call`].
    pub call: (u64, u64),
    /// A node hears a leader for so long after its last call.
    pub fresh: u64,
    /// Between two words of a node to the monitors.
    pub beat: u64,
    /// These believe a word for so long.
    pub believed: u64,
}

impl Plan {
    /// In a quarter of the runs front ends are cut off from the monitors alone, and their nodes hear them.
    pub(super) fn draw_calls(&mut self) {
        // Numbers of their own: the other runs are what they were.
        let r = &mut Rng::new(self.seed ^ SALT);
        if !r.one_in(4) || self.stall_limit.is_some() {
            return;
        }
        let every = (self.lease / r.between(4, 16)).max(1_000);
        let beat = (self.lease / r.between(4, 16)).max(BEAT_MIN);
        self.calls = Some(CallsPlan {
            call: (self.lease * r.between(50, 100) / 100, every),
            fresh: 3 * every,
            beat,
            believed: beat * r.between(3, 6),
        });
        *self.weight(Fault::CutOff) = r.between(2, 10) as u32;
    }
}
