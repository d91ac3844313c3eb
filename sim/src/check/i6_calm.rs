//! I6: when faults have stopped and one more generation has been granted, every copy becomes equal.

use super::{Checked, Violation};
use crate::plan::Plan;
use crate::store::Store;
use trefoil_core::scrub::Doubt;
use trefoil_core::{GroupId, Head, ObjectIndex, VolumeId};

/// A healer has said that every copy of the volume is whole: they must be equal, and settled alike.
pub fn check<'a>(plan: &Plan, volume: VolumeId, store: impl Fn(usize) -> &'a Store) -> Checked {
    for index in 0..plan.objects as ObjectIndex {
        let (pg, config) = plan.pg(volume, index);
        let group = GroupId { volume, pg };
        let mut first = None;
        let marks = config.everyone().into_iter().flat_map(|node| {
            let state = store(node.0 as usize).state.groups.get(&group);
            state.map_or(&[][..], |state| state.marks(index))
        });
        let disputed: Vec<u32> =
            marks.filter(|mark| mark.doubt == Doubt::Disputed).map(|mark| mark.block).collect();
        for node in config.everyone() {
            let store = store(node.0 as usize);
            let Some(state) = store.state.groups.get(&group) else {
                return Err(wrong(volume, index, format!("{node} does not know {group}")));
            };
            if let Some(line) = state.behind.get(&index) {
                return Err(wrong(volume, index, format!("{node} is behind, with line {line:?}")));
            }
            let head = state.objects.get(&index).copied().unwrap_or(Head::ZERO);
            let object = trefoil_core::ObjectId { group, index };
            // Where no majority can say what a block holds, nothing makes its copies equal but a write.
            let sum = |b| if disputed.contains(&b) { 0 } else { store.durable.sum(object, b) };
            let sums: Vec<u64> = (0..plan.object_blocks()).map(sum).collect();
            let mine = (state.settled.ballot, head, sums);
            match &first {
                None => first = Some((node, mine)),
                Some((_, other)) if *other == mine => {}
                Some((other_node, other)) => {
                    let what = format!("{other_node} has {other:x?}, {node} has {mine:x?}");
                    return Err(wrong(volume, index, what));
                }
            }
        }
    }
    Ok(())
}

fn wrong(volume: VolumeId, index: ObjectIndex, what: String) -> Box<Violation> {
    Violation::of(
        "I6 (equal copies)",
        (volume, index),
        format!("a healer found every copy whole, but {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Blocks;
    use trefoil_core::message::{Line, WriteOp};
    use trefoil_core::record::{Promise, Record};
    use trefoil_core::{Ballot, BlockRange, Epoch, ObjectId};

    fn apply(stores: &mut [Store], node: usize, record: &Record<Blocks>) {
        stores[node].push(1, record.clone());
        stores[node].start_flush(9);
        stores[node].end_flush(|_, _| ());
    }

    #[test]
    fn copies_that_differ_are_caught() {
        let plan = Plan::new(1, 0, None);
        let volume = VolumeId(1);
        let mut stores: Vec<Store> = (0..plan.nodes).map(|_| Store::default()).collect();
        let check = |stores: &[Store]| check(&plan, volume, |n| &stores[n]);
        assert!(check(&stores).is_err(), "nobody knows the groups");
        let settled = Promise { ballot: Ballot(5), epoch: Epoch(1) };
        for index in 0..plan.objects as u32 {
            let (pg, config) = plan.pg(volume, index);
            let group = GroupId { volume, pg };
            let settle = Record::Settle { group, settled, add: vec![], remove: vec![] };
            for node in &config.new {
                apply(&mut stores, node.0 as usize, &settle);
            }
        }
        check(&stores).unwrap();
        let (pg, config) = plan.pg(volume, 0);
        let group = GroupId { volume, pg };
        let write = Record::Write {
            object: ObjectId { group, index: 0 },
            head: Head { ballot: Ballot(5), seq: 1 },
            snap: 0,
            op: WriteOp::Zero { blocks: BlockRange::new(0, 1) },
        };
        let members: Vec<usize> = config.new.iter().map(|n| n.0 as usize).collect();
        apply(&mut stores, members[0], &write);
        assert!(check(&stores).is_err(), "one copy is longer");
        apply(&mut stores, members[1], &write);
        apply(&mut stores, members[2], &write);
        check(&stores).unwrap();
        let add = vec![(0, Line::At(Ballot(4)))];
        apply(&mut stores, members[1], &Record::Settle { group, settled, add, remove: vec![] });
        assert!(check(&stores).is_err(), "one copy is behind");
    }
}
