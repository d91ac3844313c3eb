//! I5, at each deletion: a majority of the newest epoch's nodes holds at least as much as the copy that
//! goes. (Of both sets, in a joint epoch.) What "as much" is, is what N7 says: a vote that is as great; and
//! a vote never becomes less.

use super::durable_first::vote_of;
use super::{Checked, Violation};
use crate::plan::Plan;
use crate::store::Store;
use trefoil_core::message::Line;
use trefoil_core::record::Durable;
use trefoil_core::{Head, NodeId, PgId, Vote};

/// The node gives out a Leave of this placement group; `before` is what it had until then.
pub fn check<'a>(
    plan: &Plan,
    node: NodeId,
    before: &Durable,
    pg: PgId,
    store: impl Fn(usize) -> &'a Store,
) -> Checked {
    let Some(config) = plan.pgs.get(pg.pg as usize) else { return Ok(()) };
    // One that has not heard yet that it is to come back may leave before it does; but a member that was
    // found to be level has answered under that epoch.
    if config.old == config.new && config.is_member(node) {
        let what = format!("{node} leaves {pg}, of which it is a member under {}", config.epoch);
        return Err(Violation::plain("I5", what));
    }
    for (group, state) in before.groups.iter().filter(|(group, state)| group.pg == pg && !state.lost) {
        let behind = state.behind.keys().filter(|index| !state.objects.contains_key(index));
        for index in state.objects.keys().chain(behind) {
            let line = match state.behind.get(index) {
                None => state.settled.ballot,
                Some(Line::At(line)) => *line,
                Some(Line::Lost) => continue,
            };
            let goes = Vote { line, head: state.objects.get(index).copied().unwrap_or(Head::ZERO) };
            let holds = |other: NodeId| {
                // One that has lost its state since is another fault: any one node may.
                other != node
                    && vote_of(store(other.0 as usize), *group, *index).is_none_or(|vote| vote >= goes)
            };
            if !config.is_quorum(holds) {
                let votes = config
                    .everyone()
                    .into_iter()
                    .map(|other| format!("{other} {:?}", vote_of(store(other.0 as usize), *group, *index)));
                let what = format!(
                    "{node} deletes its copy, {goes:?}; under {} these hold: {}",
                    config.epoch,
                    votes.collect::<Vec<_>>().join(", ")
                );
                return Err(Violation::of("I5", (group.volume, *index), what));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Blocks;
    use trefoil_core::message::WriteOp;
    use trefoil_core::placement::PgConfig;
    use trefoil_core::record::{Promise, Record};
    use trefoil_core::{Ballot, BlockRange, Epoch, GroupId, ObjectId, VolumeId};

    #[test]
    fn a_deletion_that_leaves_one_copy_is_caught() {
        let mut plan = Plan::new(1, 0, None);
        plan.nodes = 4;
        let (pg, _) = plan.pg(VolumeId(1), 0);
        let ids = |n: [u32; 3]| n.map(NodeId).to_vec();
        plan.pgs[pg.pg as usize] = PgConfig::simple(Epoch(4), ids([0, 1, 3]));
        let group = GroupId { volume: VolumeId(1), pg };
        let ballot = Ballot(5);
        let records = |seq: u64| -> Vec<Record<Blocks>> {
            let settled = Promise { ballot, epoch: Epoch(1) };
            let op = WriteOp::Zero { blocks: BlockRange::new(0, 1) };
            let (object, head) = (ObjectId { group, index: 0 }, Head { ballot, seq });
            vec![
                Record::Settle { group, settled, add: vec![], remove: vec![] },
                Record::Write { object, head, snap: 0, op },
            ]
        };
        let mut stores: Vec<Store> = (0..4).map(|_| Store::default()).collect();
        let apply = |store: &mut Store, seq: u64| {
            for record in records(seq) {
                store.push(1, record);
                store.start_flush(9);
                store.end_flush(|_, _| ());
            }
        };
        apply(&mut stores[2], 2);
        apply(&mut stores[0], 2);
        apply(&mut stores[1], 1);
        let before = stores[2].state.clone();
        let leaves = |stores: &[Store], node| check(&plan, NodeId(node), &before, pg, |n| &stores[n]);
        assert_eq!(leaves(&stores, 2).unwrap_err().invariant, "I5");
        apply(&mut stores[1], 2);
        assert!(leaves(&stores, 2).is_ok());
        assert!(leaves(&stores, 0).is_err(), "a member");
    }
}
