//! Sums over a node's groups, kept as records come.
//!
//! What is told every second (heartbeats, metrics, scrub) must not walk through the groups: there may be a
//! hundred thousand, and the thread that would walk serves I/O. Each record says of which group it is; what
//! that group adds to the sums is taken off before it is applied and put back after. Records that touch many
//! groups, which are rare and walk through them anyway, have everything counted anew.
//!
//! Derived state: nothing here is durable, and nothing but the records changes it.

use crate::ids::GroupId;
use crate::record::{Durable, GroupState, Record};
use std::collections::BTreeSet;

/// What all groups of a node come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Groups with marks on some block.
    doubted: BTreeSet<GroupId>,
    /// Objects with marks on some block.
    doubted_objects: usize,
    /// Objects that are behind.
    behind: u64,
    /// Groups that have lost their votes.
    lost: usize,
}

/// Which groups a record may change, as far as the sums go.
enum Touches {
    Nothing,
    One(GroupId),
    Many,
}

impl Tally {
    /// Counts everything.
    pub fn of(state: &Durable) -> Tally {
        let mut tally = Tally::default();
        for (group, it) in &state.groups {
            tally.put(*group, it);
        }
        tally
    }

    /// Applies a record to the state, and to the sums.
    pub fn apply<P>(&mut self, state: &mut Durable, record: &Record<P>) {
        match self.touches(state, record) {
            Touches::Nothing => state.apply(record),
            Touches::One(group) => {
                if let Some(it) = state.groups.get(&group) {
                    self.take(group, it);
                }
                state.apply(record);
                if let Some(it) = state.groups.get(&group) {
                    self.put(group, it);
                }
            }
            Touches::Many => {
                state.apply(record);
                *self = Tally::of(state);
            }
        }
    }

    fn touches<P>(&self, state: &Durable, record: &Record<P>) -> Touches {
        match record {
            // Of all records these are nearly all. One may end doubts of its group, or make a group, which
            // then is a lost one if the node has forgotten some; else it changes no sum.
            Record::Write { object, .. } if state.amnesia || !self.doubted.is_empty() => {
                Touches::One(object.group)
            }
            Record::Write { .. } | Record::Fence { .. } | Record::Heal { .. } | Record::Epoch { .. } => {
                Touches::Nothing
            }
            Record::Open { group, .. } | Record::Settle { group, .. } => Touches::One(*group),
            Record::Install { object, .. } | Record::Doubt { object, .. } => Touches::One(object.group),
            _ => Touches::Many,
        }
    }

    fn put(&mut self, group: GroupId, it: &GroupState) {
        if !it.doubts.is_empty() {
            self.doubted.insert(group);
        }
        self.doubted_objects += it.doubts.len();
        self.behind += it.behind.len() as u64;
        self.lost += usize::from(it.lost);
    }

    fn take(&mut self, group: GroupId, it: &GroupState) {
        if !it.doubts.is_empty() {
            self.doubted.remove(&group);
        }
        self.doubted_objects -= it.doubts.len();
        self.behind -= it.behind.len() as u64;
        self.lost -= usize::from(it.lost);
    }

    /// Groups with marks on some block, in order.
    pub fn doubted(&self) -> impl Iterator<Item = GroupId> {
        self.doubted.iter().copied()
    }

    /// Objects with marks on some block.
    pub fn doubted_objects(&self) -> usize {
        self.doubted_objects
    }

    /// Objects that are behind.
    pub fn behind(&self) -> u64 {
        self.behind
    }

    /// Some group has lost its votes.
    pub fn has_lost(&self) -> bool {
        self.lost > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::*;
    use crate::message::{Line, WriteOp};
    use crate::record::Promise;
    use crate::scrub::{Doubt, Mark};

    /// A sequence that is always the same (Steele, Lea, Flood: SplitMix64).
    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn record(seed: &mut u64) -> Record<()> {
        let mut below = |n: u64| random(seed) % n;
        let volume = VolumeId(1 + below(4));
        let pg = PgId { pool: PoolId(1), pg: below(4) as u32 };
        let group = GroupId { volume, pg };
        let object = ObjectId { group, index: below(3) as u32 };
        let head = Head { ballot: Ballot::ZERO, seq: below(3) };
        let blocks = BlockRange::new(0, 1 + below(4) as u32);
        match below(40) {
            0 => Record::LostState { fences: vec![(volume, Generation(below(5)))] },
            1..3 => Record::DeleteVolume { volume },
            3..5 => Record::Leave { pg, epoch: Epoch(below(9)) },
            5 => Record::Epoch { pg, epoch: Epoch(below(9)), fences: Vec::new() },
            33 => Record::Split { pg, from: 4, to: 4 + below(5) as u32 },
            6 => Record::Fence { volume, generation: Generation(below(5)) },
            7..12 => Record::Open { group, promised: Promise::default(), epoch: Epoch(below(9)) },
            12..20 => Record::Settle {
                group,
                settled: Promise::default(),
                add: vec![(below(3) as u32, Line::Lost), (below(3) as u32, Line::Lost)],
                remove: vec![below(3) as u32],
            },
            20..26 => Record::Install { object, head, patches: Vec::new(), writes: Vec::new() },
            26..33 => {
                let mark = |block| Mark { block, doubt: Doubt::Disputed, checksum: 7 };
                Record::Doubt { object, marks: (0..below(3) as u32).map(mark).collect() }
            }
            _ => Record::Write { object, head, snap: 0, op: WriteOp::Zero { blocks } },
        }
    }

    #[test]
    fn the_sums_are_what_a_walk_through_all_groups_would_find() {
        let mut seen = [false; 3];
        for seed in 0..50 {
            let (mut seed, mut state) = (seed, Durable::default());
            let mut tally = Tally::of(&state);
            for _ in 0..200 {
                let record = record(&mut seed);
                tally.apply(&mut state, &record);
                assert_eq!(tally, Tally::of(&state), "after {record:?}");
                let now = [tally.doubted_objects() > 1, tally.behind() > 1, tally.has_lost()];
                seen.iter_mut().zip(now).for_each(|(seen, now)| *seen |= now);
            }
        }
        assert_eq!(seen, [true; 3]);
    }
}
