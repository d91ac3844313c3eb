//! I3: one (object, ballot, seq) has one content, at whatever leader or node it is seen; and a leader's
//! numbers go up by one.
//!
//! Also remembers under which number each value was issued last, for P1 and P4.

use super::{Checked, Moment, NEVER, SLOTS, Violation, object_of};
use crate::payload::{Blocks, Value};
use rustc_hash::FxHashMap;
use trefoil_core::Ballot;
use trefoil_core::message::WriteOp;

/// A write's number.
pub type Issue = (Ballot, u64);

#[derive(Copy, Clone, Debug)]
struct Content {
    hash: u64,
    persisted: Moment,
}

/// Contents by number.
#[derive(Debug)]
pub struct OneContent {
    contents: FxHashMap<(usize, Ballot, u64), Content>,
    last: Vec<Issue>,
    issues: FxHashMap<Value, Issue>,
}

impl Default for OneContent {
    fn default() -> OneContent {
        OneContent {
            contents: FxHashMap::default(),
            last: vec![(Ballot::ZERO, 0); SLOTS],
            issues: FxHashMap::default(),
        }
    }
}

/// A hash of what a write does.
pub fn hash_of(op: &WriteOp<Blocks>) -> u64 {
    let mix = |a: u64, b: u64| (a ^ b).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
    let range = op.blocks();
    let mut hash = mix(u64::from(range.first) << 32 | u64::from(range.count), 1);
    if let WriteOp::Data { checksums, .. } = op {
        hash = checksums.iter().fold(hash, |h, sum| mix(h, *sum));
    }
    hash
}

impl OneContent {
    fn content(
        &mut self,
        slot: usize,
        issue: Issue,
        hash: u64,
        who: &str,
    ) -> Result<&mut Content, Box<Violation>> {
        let content =
            self.contents.entry((slot, issue.0, issue.1)).or_insert(Content { hash, persisted: NEVER });
        if content.hash != hash {
            let what = format!("{who}: write {} of ballot {} has two contents", issue.1, issue.0);
            return Err(Violation::of("I3", object_of(slot), what));
        }
        Ok(content)
    }

    /// A leader sends a write.
    pub fn sent(&mut self, slot: usize, issue: Issue, op: &WriteOp<Blocks>) -> Checked {
        self.content(slot, issue, hash_of(op), "a leader")?;
        let (ballot, seq) = self.last[slot];
        if issue.0 == ballot && issue.1 > seq + 1 {
            let what = format!("a leader skips a number: {seq}, then {}, in ballot {ballot}", issue.1);
            return Err(Violation::of("I3", object_of(slot), what));
        }
        if issue > self.last[slot] {
            self.last[slot] = issue;
            if let WriteOp::Data { data, .. } = op
                && let Some(value) = data.values().first()
            {
                self.issues.insert(*value, issue);
            }
        }
        Ok(())
    }

    /// A node gives a write to its store.
    pub fn persisted(&mut self, slot: usize, issue: Issue, op: &WriteOp<Blocks>, now: Moment) -> Checked {
        let content = self.content(slot, issue, hash_of(op), "a node")?;
        content.persisted = content.persisted.min(now);
        Ok(())
    }

    /// The number that a write of this (first) value got last.
    pub fn issue(&self, value: Value) -> Option<Issue> {
        self.issues.get(&value).copied()
    }

    /// When a node first gave the write of this number to its store.
    pub fn first_persisted(&self, slot: usize, issue: Issue) -> Moment {
        self.contents.get(&(slot, issue.0, issue.1)).map_or(NEVER, |c| c.persisted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::checksum;
    use trefoil_core::BlockRange;

    fn op(first: u32, value: Value) -> WriteOp<Blocks> {
        WriteOp::Data {
            blocks: BlockRange::new(first, 1),
            checksums: Box::new([checksum(value)]),
            data: Blocks::One(value),
        }
    }

    #[test]
    fn a_number_given_twice_is_caught() {
        let mut c = OneContent::default();
        c.sent(0, (Ballot(4), 1), &op(0, 7)).unwrap();
        c.sent(0, (Ballot(4), 1), &op(0, 7)).unwrap();
        assert!(c.sent(0, (Ballot(4), 1), &op(0, 8)).is_err());
        assert!(c.persisted(0, (Ballot(4), 1), &op(1, 7), 3).is_err());
        assert!(c.persisted(1, (Ballot(4), 1), &op(1, 7), 3).is_ok(), "another object");
        c.persisted(0, (Ballot(4), 1), &op(0, 7), 9).unwrap();
        assert_eq!(c.first_persisted(0, c.issue(7).unwrap()), 9);
    }

    #[test]
    fn a_number_left_out_is_caught() {
        let mut c = OneContent::default();
        c.sent(0, (Ballot(4), 5), &op(0, 7)).unwrap();
        c.sent(0, (Ballot(4), 6), &op(0, 8)).unwrap();
        assert!(c.sent(0, (Ballot(4), 8), &op(0, 9)).is_err());
        assert!(c.sent(0, (Ballot(5), 6), &op(0, 9)).is_ok(), "a ballot begins at its base");
    }
}
