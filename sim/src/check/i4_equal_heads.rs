//! I4: two copies of an object with the same head are equal, whatever their lines, and at whatever time
//! in the run they had it. A head names one content.

use super::{Checked, Violation, object_of};
use crate::store::Table;
use rustc_hash::FxHashMap;
use trefoil_core::{Head, NodeId};

/// What each head named when it was first seen.
#[derive(Debug, Default)]
pub struct EqualHeads {
    named: FxHashMap<(usize, Head), (u64, NodeId)>,
}

fn hash(table: Option<&Table>) -> u64 {
    // Holes add nothing, so that a short table equals a long one with holes at its end.
    let sums = table.into_iter().flatten().enumerate().filter(|(_, sum)| **sum != 0);
    sums.fold(0, |h: u64, (block, sum)| {
        h.wrapping_add((sum ^ (block as u64 + 1)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(31))
    })
}

impl EqualHeads {
    /// This copy has this head, durably.
    pub fn seen(&mut self, slot: usize, node: NodeId, head: Head, table: Option<&Table>) -> Checked {
        let content = hash(table);
        let (named, first) = *self.named.entry((slot, head)).or_insert((content, node));
        if named != content {
            let what =
                format!("{node} has head {head} with {table:x?}; {first} had other blocks at that head");
            return Err(Violation::of("I4", object_of(slot), what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::Ballot;

    #[test]
    fn one_head_with_two_contents_is_caught() {
        let mut e = EqualHeads::default();
        let head = Head { ballot: Ballot(3), seq: 9 };
        e.seen(0, NodeId(0), head, Some(&vec![5, 0])).unwrap();
        e.seen(0, NodeId(1), head, Some(&vec![5])).unwrap();
        e.seen(0, NodeId(1), Head { seq: 10, ..head }, Some(&vec![6])).unwrap();
        assert!(e.seen(0, NodeId(2), head, Some(&vec![6])).is_err());
        assert!(e.seen(0, NodeId(2), head, None).is_err());
        assert!(e.seen(0, NodeId(2), head, Some(&vec![0, 5])).is_err(), "the same sum in another block");
    }
}
