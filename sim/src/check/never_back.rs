//! Section 2's "always": promised >= settled; promised, settled, epoch and fence never go back; a head
//! changes only by a write that follows it or by a whole repair.

use super::{Checked, Violation};
use crate::payload::Blocks;
use trefoil_core::message::Line;
use trefoil_core::record::{Durable, Record};
use trefoil_core::{Head, NodeId};

/// Would this record, on top of this state, take something back?
pub fn check(node: NodeId, before: &Durable, record: &Record<Blocks>) -> Checked {
    let back = |what: String| Err(Violation::plain("N", format!("{node}: {what}")));
    if let Record::Write { object, .. } | Record::Install { object, .. } = record {
        let place = before.place(*object);
        if place != *object {
            return back(format!("{object} is changed, which is {place} by now"));
        }
    }
    match record {
        Record::Fence { volume, generation } => {
            let fence = before.fences.get(volume).copied().unwrap_or_default();
            if *generation < fence {
                return back(format!("the fence of {volume} goes from {fence} to {generation}"));
            }
        }
        Record::Open { group, promised, epoch } => {
            let old = before.groups.get(group).map(|g| g.promised.ballot).unwrap_or_default();
            let pg = before.pgs.get(&group.pg).copied().unwrap_or_default();
            let fence = before.fences.get(&group.volume).copied().unwrap_or_default();
            if promised.ballot < old {
                return back(format!("the promise of {group} goes from {old} to {}", promised.ballot));
            }
            if promised.ballot.generation() < fence {
                return back(format!("{group} is promised to {}, below the fence {fence}", promised.ballot));
            }
            if *epoch < pg.epoch {
                return back(format!("the epoch of {group} goes from {} to {epoch}", pg.epoch));
            }
        }
        Record::Settle { group, settled, add, .. } => {
            let Some(old) = before.groups.get(group) else {
                return back(format!("{group} is settled without a promise"));
            };
            if settled.ballot < old.settled.ballot || settled.ballot != old.promised.ballot {
                return back(format!(
                    "{group} settles in {}; promised {}, settled {}",
                    settled.ballot, old.promised.ballot, old.settled.ballot
                ));
            }
            // A group that was lost has no vote to keep.
            let anew = |(index, line): &&(u32, Line)| {
                old.behind.contains_key(index) && !(old.lost && *line == Line::Lost)
            };
            if let Some((index, _)) = add.iter().find(anew) {
                return back(format!("{group}: the line of object {index}, which is behind, is set anew"));
            }
        }
        Record::Write { object, head, .. } => {
            let Some(group) = before.groups.get(&object.group) else {
                return back(format!("a write to {object} without a promise"));
            };
            let old = group.objects.get(&object.index).copied().unwrap_or(Head::ZERO);
            let led = head.ballot == group.promised.ballot && head.ballot == group.settled.ballot;
            if head.seq != old.seq + 1 || !led || group.behind.contains_key(&object.index) {
                return back(format!(
                    "{object}: a write {head} on top of {old}; promised {}, settled {}, behind {}",
                    group.promised.ballot,
                    group.settled.ballot,
                    group.behind.contains_key(&object.index)
                ));
            }
            let fence = before.fences.get(&object.group.volume).copied().unwrap_or_default();
            if head.ballot.generation() < fence {
                return back(format!("{object}: a write {head} below the fence {fence}"));
            }
        }
        Record::Install { object, head, .. } => {
            let promised = before.groups.get(&object.group).map(|g| (g.promised.ballot, g.settled.ballot));
            let Some((promised, settled)) = promised else {
                return back(format!("a repair of {object} without a promise"));
            };
            if promised != settled || head.ballot > promised {
                return back(format!(
                    "{object}: a repair ends at {head}; promised {promised}, settled {settled}"
                ));
            }
        }
        Record::Epoch { pg, epoch, fences } => {
            let known = before.pgs.get(pg).copied().unwrap_or_default();
            if *epoch < known.epoch {
                return back(format!("the epoch of {pg} goes from {} to {epoch}", known.epoch));
            }
            for (volume, generation) in fences {
                let fence = before.fences.get(volume).copied().unwrap_or_default();
                if *generation < fence {
                    return back(format!("the fence of {volume} goes from {fence} to {generation}"));
                }
            }
        }
        Record::Leave { pg, epoch } => {
            let known = before.pgs.get(pg).copied().unwrap_or_default();
            if *epoch < known.epoch {
                return back(format!("{pg} is left under {epoch}; it was opened under {}", known.epoch));
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::message::WriteOp;
    use trefoil_core::record::Promise;
    use trefoil_core::{Ballot, BlockRange, Epoch, GroupId, ObjectId, VolumeId};

    fn open(ballot: u64) -> Record<Blocks> {
        let promised = Promise { ballot: Ballot(ballot), epoch: Epoch(1) };
        Record::Open { group: GroupId::default(), promised, epoch: Epoch(1) }
    }
    fn settle(ballot: u64, add: &[u32]) -> Record<Blocks> {
        let settled = Promise { ballot: Ballot(ballot), epoch: Epoch(1) };
        let add = add.iter().map(|index| (*index, Line::At(Ballot(0)))).collect();
        Record::Settle { group: GroupId::default(), settled, add, remove: vec![] }
    }
    fn write(ballot: u64, seq: u64) -> Record<Blocks> {
        Record::Write {
            object: ObjectId::default(),
            head: Head { ballot: Ballot(ballot), seq },
            snap: 0,
            op: WriteOp::Zero { blocks: BlockRange::new(0, 1) },
        }
    }
    /// Does the last of these records take something back?
    fn goes_back(records: &[Record<Blocks>]) -> bool {
        let mut state = Durable::default();
        let (last, first) = records.split_last().unwrap();
        for record in first {
            check(NodeId(0), &state, record).unwrap();
            state.apply(record);
        }
        check(NodeId(0), &state, last).is_err()
    }

    #[test]
    fn steps_back_are_caught() {
        assert!(!goes_back(&[open(5), settle(5, &[]), write(5, 1), write(5, 2), open(6)]));
        assert!(goes_back(&[open(5), open(4)]));
        assert!(goes_back(&[settle(5, &[])]));
        assert!(goes_back(&[open(5), settle(4, &[])]));
        assert!(goes_back(&[open(5), settle(5, &[0]), open(6), settle(6, &[0])]), "a line is set anew");
        let lost = Record::LostState { fences: vec![] };
        let settled = Promise { ballot: Ballot(6), epoch: Epoch(1) };
        let add = vec![(0, Line::Lost)];
        let anew = Record::Settle { group: GroupId::default(), settled, add, remove: vec![] };
        assert!(!goes_back(&[open(5), settle(5, &[0]), lost, open(6), anew.clone()]));
        assert!(goes_back(&[open(5), settle(5, &[0]), open(6), anew]), "a vote is given away");
        assert!(goes_back(&[open(5), write(5, 1)]), "not settled");
        assert!(goes_back(&[open(5), settle(5, &[]), write(5, 2)]), "over a gap");
        assert!(goes_back(&[open(5), settle(5, &[]), open(6), write(5, 1)]), "of an older ballot");
        assert!(goes_back(&[open(5), settle(5, &[0]), write(5, 1)]), "to a copy that is behind");
        let fence = |g| Record::Fence { volume: VolumeId(0), generation: trefoil_core::Generation(g) };
        assert!(goes_back(&[fence(3), fence(2)]));
        assert!(goes_back(&[fence(3), open(5)]));
        assert!(goes_back(&[open(5), settle(5, &[]), fence(3), write(5, 1)]));
        let (pg, fences) = (GroupId::default().pg, vec![]);
        let list = |epoch| Record::Epoch { pg, epoch: Epoch(epoch), fences: fences.clone() };
        let leave = |epoch| Record::Leave { pg, epoch: Epoch(epoch) };
        assert!(!goes_back(&[open(5), settle(5, &[]), list(2), leave(2), leave(3)]));
        assert!(goes_back(&[list(2), list(1)]));
        assert!(goes_back(&[list(2), leave(1)]));
        assert!(goes_back(&[leave(2), open(5)]));
    }
}
