//! A split keeps what it splits: each group that splits off has its parent's promise and line, no object is lost,
//! doubled or changed, and each is in the group that its hash says, with what is behind.

use super::{Checked, Violation};
use crate::payload::Blocks;
use trefoil_core::crush::{object_pg, pg_split_children};
use trefoil_core::record::{Durable, GroupState, Record};
use trefoil_core::{GroupId, NodeId, ObjectIndex, PgId};

/// What the record made of a node's state.
pub fn check(node: NodeId, before: &Durable, after: &Durable, record: &Record<Blocks>) -> Checked {
    let Record::Split { pg, from, to } = record else { return Ok(()) };
    let wrong = |what: String| Err(Violation::plain("split", format!("{node} splits {pg}: {what}")));
    let known = before.pgs.get(pg).copied().unwrap_or_default();
    if to < from || *to < known.pg_num || (known.pg_num != 0 && known.pg_num != *from) {
        return wrong(format!("from {from} to {to}; it was split to {} before", known.pg_num));
    }
    let children: Vec<PgId> =
        pg_split_children(pg.pg, *from, *to).into_iter().map(|child| PgId { pg: child, ..*pg }).collect();
    if let Some(child) = children.iter().find(|child| before.pgs.contains_key(child)) {
        return wrong(format!("{child} was there before"));
    }
    let all = || children.iter().chain([pg]);
    if let Some(it) = all().find(|it| {
        after
            .pgs
            .get(it)
            .is_none_or(|now| (now.epoch, now.left, now.pg_num) != (known.epoch, known.left, *to))
    }) {
        return wrong(format!("{it} is {:?} now", after.pgs.get(it)));
    }
    for (group, old) in before.groups.iter().filter(|(group, _)| group.pg == *pg) {
        let mut left: Vec<ObjectIndex> = old.objects.keys().chain(old.behind.keys()).copied().collect();
        left.sort_unstable();
        left.dedup();
        for it in all() {
            let id = GroupId { pg: *it, ..*group };
            let Some(now) = after.groups.get(&id) else { return wrong(format!("there is no {id}")) };
            if (now.promised, now.settled, now.lost) != (old.promised, old.settled, old.lost) {
                return wrong(format!(
                    "{id} is promised to {:?} and settled in {:?}",
                    now.promised, now.settled
                ));
            }
            let same = |index: &ObjectIndex| {
                let of = |state: &GroupState| {
                    (state.objects.get(index).copied(), state.behind.get(index).copied())
                };
                of(now) == of(old) && (children.is_empty() || object_pg(group.volume.0, *index, *to) == it.pg)
            };
            let has: Vec<ObjectIndex> = now.objects.keys().chain(now.behind.keys()).copied().collect();
            if let Some(index) = has.iter().find(|index| !same(index)) {
                return wrong(format!(
                    "object {index} is not the one that was there, or does not belong to {id}"
                ));
            }
            left.retain(|index| !has.contains(index));
        }
        if let Some(index) = left.first() {
            return wrong(format!("object {index} of {group} is gone"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::record::Promise;
    use trefoil_core::{Ballot, Epoch, Head, PoolId, VolumeId};

    #[test]
    fn what_a_split_loses_is_caught() {
        let pg = PgId { pool: PoolId(1), pg: 0 };
        let group = GroupId { volume: VolumeId(1), pg };
        let mut before = Durable::default();
        let promised = Promise { ballot: Ballot(7), epoch: Epoch(1) };
        before.apply(&Record::<Blocks>::Open { group, promised, epoch: Epoch(1) });
        let head = Head { ballot: Ballot(7), seq: 1 };
        (0..16).for_each(|index| _ = before.group_mut(group).objects.insert(index, head));
        let record: Record<Blocks> = Record::Split { pg, from: 1, to: 2 };
        let mut after = before.clone();
        after.apply(&record);
        let child = GroupId { pg: PgId { pg: 1, ..pg }, ..group };
        assert!(after.groups[&child].objects.len() > 2, "some go");
        let check = |after: &Durable| check(NodeId(0), &before, after, &record);
        check(&after).unwrap();
        let spoilt = |spoil: &dyn Fn(&mut Durable)| {
            let mut after = after.clone();
            spoil(&mut after);
            super::super::split::check(NodeId(0), &before, &after, &record).is_err()
        };
        assert!(spoilt(&|it| it.group_mut(child).promised = Promise::default()));
        assert!(spoilt(&|it| it.group_mut(child).objects.clear()));
        assert!(spoilt(&|it| it.group_mut(child).objects.values_mut().for_each(|head| head.seq = 2)));
        assert!(spoilt(&|it| {
            let moved = it.group_mut(child).objects.clone();
            it.group_mut(group).objects.extend(moved);
        }));
        assert!(spoilt(&|it| _ = it.groups.remove(&child)));
        assert!(spoilt(&|it| _ = it.pgs.remove(&child.pg)));
        assert!(check(&before).is_err());
    }
}
