//! The majority rule: what copies of one object that have the same head come to, block by block (P3).
//!
//! Pure functions over what copies say of themselves. A storage node judges *its own* copy with them, and
//! nothing else: it never touches another one, and never changes what its own holds. What it finds is a
//! [`Doubt`], a durable mark on a block of its copy; what may be done with a block in doubt is in
//! [`crate::node`], and who replaces it (a leader, by a Repair) in `docs/protocol.md`, section 9.
//!
//! The rule: recorded checksums are compared, at one head only. A checksum that a quorum of the members
//! has recorded is the block's; who has another one is outvoted. With no quorum for any, the block is
//! disputed: nothing is guessed. Two things keep a copy from being counted twice: who was outvoted has no
//! vote, and copies in doubt never make a quorum among themselves, since a repair may have made one from
//! the other.

use crate::ids::NodeId;
use crate::placement::PgConfig;
use serde::{Deserialize, Serialize};

/// Why the content of a block of a copy is not to be trusted.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Doubt {
    /// A quorum of copies holds something else: to be replaced. No read is served from it, and it has no say
    /// in what the block holds.
    Outvoted,
    /// Copies differ and no quorum holds any one content: reads of the block fail.
    Disputed,
}

/// A block of a copy that is in doubt.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// The block.
    pub block: u32,
    /// Why.
    pub doubt: Doubt,
    /// The checksum that the copy has recorded for it: for people, to tell which copies agree.
    pub checksum: u64,
}

/// What one copy says of one block.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose copy.
    pub node: NodeId,
    /// Its recorded checksum; [`crate::checksum::HOLE`] for a hole.
    pub checksum: u64,
    /// Its mark.
    pub doubt: Option<Doubt>,
}

/// What is to be thought of the block in the copy of `mine`, which is one of the claims. All claims are of
/// copies at one head that are not behind. Claims of nodes that are no members are not looked at.
pub fn judge(config: &PgConfig, mine: NodeId, claims: &[Claim]) -> Option<Doubt> {
    let me = claims.iter().find(|claim| claim.node == mine)?;
    #[cfg(feature = "deliberate-bugs")]
    if crate::bugs::scrub_first_wins() {
        // "The first one wins": what Trefoil is there to rule out.
        let first = claims.iter().min_by_key(|claim| claim.node)?;
        return (first.checksum != me.checksum).then_some(Doubt::Outvoted);
    }
    let won = majority(config, claims);
    let voters = || claims.iter().filter(|claim| has_say(config, claim));
    match won {
        #[cfg(feature = "deliberate-bugs")]
        Some(sum) if crate::bugs::scrub_minority_wins() => (sum == me.checksum).then_some(Doubt::Outvoted),
        Some(sum) if sum == me.checksum => None,
        Some(_) => Some(Doubt::Outvoted),
        // Once outvoted, only a quorum or a leader takes that back.
        None if me.doubt == Some(Doubt::Outvoted) => me.doubt,
        None if voters().any(|claim| claim.checksum != me.checksum) => Some(Doubt::Disputed),
        // Nobody says otherwise: as it was.
        None => me.doubt,
    }
}

/// Who was outvoted, or is no member, has no say in what the block holds.
fn has_say(config: &PgConfig, claim: &Claim) -> bool {
    claim.doubt != Some(Doubt::Outvoted) && config.is_member(claim.node)
}

/// The content that a quorum has recorded, at least one of them without a doubt; `None`: there is no such.
pub fn majority(config: &PgConfig, claims: &[Claim]) -> Option<u64> {
    let voters = || claims.iter().filter(|claim| has_say(config, claim));
    let has = |sum: u64, node: NodeId| voters().any(|claim| claim.node == node && claim.checksum == sum);
    voters()
        .filter(|claim| claim.doubt.is_none())
        .map(|claim| claim.checksum)
        .find(|sum| config.is_quorum(|node| has(*sum, node)))
}

/// A sum over the recorded checksums of a copy, by which equal ones are known without telling them all.
/// Holes at the end do not count: a table may be shorter than its object. FNV-1a's shape over 64-bit words
/// (Fowler, Noll, Vo), finished by splitmix64's mixer; the inputs are checksums already.
pub fn table_sum(checksums: &[u64]) -> u64 {
    let sum = trimmed(checksums).iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, checksum| {
        (sum ^ checksum).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    });
    let sum = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    sum ^ (sum >> 27)
}

/// The checksums without the holes at the end.
pub fn trimmed(checksums: &[u64]) -> &[u64] {
    let holes = checksums.iter().rev().take_while(|sum| **sum == crate::checksum::HOLE).count();
    &checksums[..checksums.len() - holes]
}

/// What is marked on this block.
pub fn doubt_of(marks: &[Mark], block: u32) -> Option<Doubt> {
    let at = marks.binary_search_by_key(&block, |mark| mark.block).ok()?;
    Some(marks[at].doubt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn three() -> PgConfig {
        PgConfig::simple(Epoch(1), vec![NodeId(1), NodeId(2), NodeId(3)])
    }

    /// Claims `(node, checksum, doubt)`: what each of the nodes thinks of its own.
    fn verdicts(config: &PgConfig, claims: &[(u32, u64, Option<Doubt>)]) -> Vec<Option<Doubt>> {
        let claims: Vec<Claim> = claims
            .iter()
            .map(|(node, checksum, doubt)| Claim { node: NodeId(*node), checksum: *checksum, doubt: *doubt })
            .collect();
        claims.iter().map(|claim| judge(config, claim.node, &claims)).collect()
    }

    const OUT: Option<Doubt> = Some(Doubt::Outvoted);
    const DIS: Option<Doubt> = Some(Doubt::Disputed);

    #[test]
    fn two_against_one_wherever_the_one_is() {
        assert_eq!(verdicts(&three(), &[(1, 7, None), (2, 7, None), (3, 7, None)]), [None; 3]);
        assert_eq!(verdicts(&three(), &[(1, 8, None), (2, 7, None), (3, 7, None)]), [OUT, None, None]);
        assert_eq!(verdicts(&three(), &[(1, 7, None), (2, 8, None), (3, 7, None)]), [None, OUT, None]);
        assert_eq!(verdicts(&three(), &[(3, 0, None), (2, 7, None), (1, 7, None)]), [OUT, None, None]);
    }

    #[test]
    fn with_no_majority_nobody_wins() {
        assert_eq!(verdicts(&three(), &[(1, 8, None), (2, 7, None)]), [DIS, DIS]);
        assert_eq!(verdicts(&three(), &[(1, 8, None), (2, 7, None), (3, 9, None)]), [DIS; 3]);
        // A learner has no say, and one copy alone settles nothing.
        let learning = PgConfig { learners: vec![NodeId(4)], ..three() };
        assert_eq!(verdicts(&learning, &[(1, 8, None), (2, 7, None), (4, 7, None)]), [DIS, DIS, DIS]);
        assert_eq!(verdicts(&three(), &[(1, 8, DIS)]), [DIS]);
        assert_eq!(verdicts(&three(), &[(1, 8, None)]), [None]);
        let two = PgConfig::simple(Epoch(1), vec![NodeId(1), NodeId(2)]);
        assert_eq!(verdicts(&two, &[(1, 8, None), (2, 7, None)]), [DIS, DIS]);
    }

    #[test]
    fn the_third_settles_what_two_disputed_unless_it_was_made_from_one_of_them() {
        assert_eq!(verdicts(&three(), &[(1, 8, DIS), (2, 7, DIS), (3, 7, None)]), [OUT, None, None]);
        // A repair hands on the marks: 3 is 2's copy, and no witness.
        assert_eq!(verdicts(&three(), &[(1, 8, DIS), (2, 7, DIS), (3, 7, DIS)]), [DIS; 3]);
        // The same of one that was outvoted: it has no say at all.
        assert_eq!(verdicts(&three(), &[(1, 8, None), (2, 7, OUT), (3, 7, OUT)]), [None, OUT, OUT]);
        assert_eq!(verdicts(&three(), &[(1, 8, None), (2, 7, OUT)]), [None, OUT]);
    }

    #[test]
    fn a_copy_that_agrees_with_a_quorum_is_cleared() {
        assert_eq!(verdicts(&three(), &[(1, 7, DIS), (2, 7, None), (3, 7, DIS)]), [None; 3]);
        assert_eq!(verdicts(&three(), &[(1, 7, OUT), (2, 7, None), (3, 7, None)]), [None; 3]);
    }

    #[test]
    fn between_two_sets_it_takes_a_majority_of_both() {
        let nodes = |ids: [u32; 3]| ids.map(NodeId).to_vec();
        let joint =
            PgConfig { epoch: Epoch(2), old: nodes([1, 2, 3]), new: nodes([1, 4, 5]), learners: Vec::new() };
        assert_eq!(verdicts(&joint, &[(1, 7, None), (2, 7, None), (3, 8, None)]), [DIS; 3]);
        assert_eq!(
            verdicts(&joint, &[(1, 7, None), (2, 7, None), (3, 8, None), (4, 7, None)]),
            [None, None, OUT, None]
        );
    }

    #[test]
    fn a_table_sum_tells_tables_apart_and_not_their_lengths() {
        assert_eq!(table_sum(&[1, 2, 0, 0]), table_sum(&[1, 2]));
        assert_eq!(table_sum(&[]), table_sum(&[0]));
        assert_ne!(table_sum(&[1, 2]), table_sum(&[2, 1]));
        assert_ne!(table_sum(&[1, 0, 2]), table_sum(&[1, 2]));
        assert_ne!(table_sum(&[1]), table_sum(&[]));
    }
}
