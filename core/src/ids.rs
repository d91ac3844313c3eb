//! The nouns of the protocol. Section 1 of `docs/protocol.md` defines them.
//!
//! These are plain numbers with types around them; no rule of the protocol lives here.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a block: the unit of checksums, of versions and of what a leader asks of a node.
pub const BLOCK_SIZE: usize = 4096;

/// A point in time, in microseconds of a monotonic clock of the process that uses it.
///
/// Two processes' values have nothing to do with each other.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The point `micros` microseconds later; stays at the end of time rather than wrap.
    pub const fn after(self, micros: u64) -> Time {
        Time(self.0.saturating_add(micros))
    }
    /// Microseconds since `earlier`, 0 if `earlier` is later.
    pub const fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A volume. Ids are issued by the monitors and never used again.
    VolumeId(u64), "vol"
);
id!(
    /// A storage node, which is one device. The number that CRUSH calls an OSD id.
    NodeId(u32), "node."
);
id!(
    /// A pool: volumes that share a placement rule and a set of placement groups.
    PoolId(u32), "pool"
);
id!(
    /// Granted by the monitors, per volume, each greater than the last, never granted twice.
    Generation(u64), "g"
);
id!(
    /// A committed configuration of a placement group. 0 is before the first.
    Epoch(u64), "e"
);
id!(
    /// The random name that a store takes when its device is formatted. 0 is none.
    Incarnation(u64), "inc"
);

/// A placement group: the objects of a pool that share an acting set.
#[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PgId {
    /// The pool.
    pub pool: PoolId,
    /// The number within the pool, below its `pg_num`.
    pub pg: u32,
}

impl fmt::Display for PgId {
    /// `POOL.PG`, the number in hexadecimal, as Ceph prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool.0, self.pg)
    }
}
impl fmt::Debug for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pg{self}")
    }
}

/// One volume's objects within one placement group: the unit of leadership.
#[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId {
    /// The volume.
    pub volume: VolumeId,
    /// The placement group.
    pub pg: PgId,
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.pg)
    }
}
impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.pg)
    }
}

/// The number of an object within its volume: `byte offset / object_size`.
pub type ObjectIndex = u32;

/// An object of a volume. Its group follows from the map.
#[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// The group.
    pub group: GroupId,
    /// The number within the volume.
    pub index: ObjectIndex,
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.index)
    }
}
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.index)
    }
}

/// `(generation, round)` in one number, compared in that order. 0 is before every ballot.
#[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ballot(pub u64);

impl Ballot {
    /// Bits of the round. A leader that has used them up needs a new generation.
    pub const ROUND_BITS: u32 = 20;
    /// The greatest round.
    pub const ROUND_MAX: u64 = (1 << Self::ROUND_BITS) - 1;
    /// The greatest generation that fits beside the round.
    pub const GENERATION_MAX: u64 = (1 << (64 - Self::ROUND_BITS)) - 2;
    /// Before every ballot: no leader yet.
    pub const ZERO: Ballot = Ballot(0);

    /// A ballot, or `None` where the generation or the round does not fit: a round never carries
    /// over into the generation.
    pub const fn new(generation: Generation, round: u64) -> Option<Ballot> {
        if generation.0 > Self::GENERATION_MAX || round > Self::ROUND_MAX {
            return None;
        }
        Some(Ballot(generation.0 << Self::ROUND_BITS | round))
    }
    /// The generation of the leader whose ballot this is.
    pub const fn generation(self) -> Generation {
        Generation(self.0 >> Self::ROUND_BITS)
    }
    /// The round within the generation.
    pub const fn round(self) -> u64 {
        self.0 & Self::ROUND_MAX
    }
    /// The next round of the same generation; `None` when the rounds have run out.
    pub const fn next_round(self) -> Option<Ballot> {
        Ballot::new(self.generation(), self.round() + 1)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation().0, self.round())
    }
}
impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{self}")
    }
}

/// `(ballot, seq)` of the last write in a copy: names its content. `(0, 0)`: no write yet, all zeros.
#[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Head {
    /// The ballot in which the last write was made.
    pub ballot: Ballot,
    /// Its number. Numbers go on from ballot to ballot.
    pub seq: u64,
}

impl Head {
    /// No write yet.
    pub const ZERO: Head = Head { ballot: Ballot::ZERO, seq: 0 };
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.ballot, self.seq)
    }
}
impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.ballot, self.seq)
    }
}

/// What a node says of an object: `(line, head)`, compared in that order.
#[derive(Copy, Clone, Default, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vote {
    /// The ballot in whose line the copy last was brought.
    pub line: Ballot,
    /// Its last write.
    pub head: Head,
}

/// Blocks `first .. first + count` of an object.
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockRange {
    /// The first block.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl BlockRange {
    /// Blocks `first .. first + count`.
    pub const fn new(first: u32, count: u32) -> BlockRange {
        BlockRange { first, count }
    }
    /// The block behind the last one; does not overflow for ranges from outside.
    pub const fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }
    /// True where the two have a block in common.
    pub const fn overlaps(self, other: BlockRange) -> bool {
        self.first < other.end() && other.first < self.end()
    }
    /// True if every block of `other` is in this one.
    pub const fn contains(self, other: BlockRange) -> bool {
        self.first <= other.first && other.end() <= self.end()
    }
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}+{}]", self.first, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballots_compare_by_generation_then_round() {
        let b = |g, r| Ballot::new(Generation(g), r).unwrap();
        assert!(b(1, 5) < b(2, 0));
        assert!(b(2, 0) < b(2, 1));
        assert_eq!(b(7, 9).generation(), Generation(7));
        assert_eq!(b(7, 9).round(), 9);
    }

    #[test]
    fn a_round_never_carries_over_into_the_generation() {
        let last = Ballot::new(Generation(3), Ballot::ROUND_MAX).unwrap();
        assert_eq!(last.next_round(), None);
        assert_eq!(Ballot::new(Generation(Ballot::GENERATION_MAX + 1), 0), None);
    }

    #[test]
    fn ranges_from_outside_do_not_overflow() {
        let r = BlockRange::new(u32::MAX, u32::MAX);
        assert!(!r.overlaps(BlockRange::new(0, 10)));
        assert_eq!(r.end(), u32::MAX);
    }
}
