//! Section 11, "every quorum's choice": for each quorum of an object's nodes, the copy with the greatest
//! durable vote holds in each block a value that a read which begins and ends now may show.
//!
//! It is what the next leader would decide if everything stopped here and only that quorum came back. It
//! fails long before a client sees anything.

use super::durable_first::vote_of;
use super::i2_linearizable::Linearizable;
use super::{Checked, Moment, Violation, object_of, slot_of};
use crate::payload;
use crate::plan::Plan;
use crate::store::Store;
use trefoil_core::{GroupId, NodeId, ObjectId, ObjectIndex, VolumeId, Vote};

/// Looks at one object.
pub fn check<'a>(
    plan: &Plan,
    linear: &Linearizable,
    (volume, index): (VolumeId, ObjectIndex),
    now: Moment,
    store: impl Fn(usize) -> &'a Store,
) -> Checked {
    let (pg, config) = plan.pg(volume, index);
    let group = GroupId { volume, pg };
    let object = ObjectId { group, index };
    let Some(slot) = slot_of(object) else { return Ok(()) };
    if config.old != config.new {
        return joint(plan, linear, (slot, object), now, store);
    }
    let members = &config.new;
    let mut votes: [Option<Vote>; 8] = [None; 8];
    for (n, node) in members.iter().enumerate() {
        votes[n] = vote_of(store(node.0 as usize), group, index);
    }
    // The least quorums: a greater one chooses what one of them chooses.
    let mut checked: Option<usize> = None;
    for a in 0..members.len() {
        for b in a + 1..members.len() {
            // A copy without a vote takes no part: a quorum of others is needed.
            let (Some(left), Some(right)) = (votes[a], votes[b]) else { continue };
            let chosen = if left >= right { a } else { b };
            if checked == Some(chosen) {
                continue;
            }
            checked = Some(chosen);
            look(plan, linear, slot, object, (members[a], members[b]), members[chosen], now, &store)?;
        }
    }
    Ok(())
}

/// In a joint epoch: every quorum of both sets.
fn joint<'a>(
    plan: &Plan,
    linear: &Linearizable,
    (slot, object): (usize, ObjectId),
    now: Moment,
    store: impl Fn(usize) -> &'a Store,
) -> Checked {
    let config = plan.pg(object.group.volume, object.index).1;
    let members: Vec<NodeId> = config.everyone().into_iter().filter(|node| config.is_member(*node)).collect();
    let vote = |node: NodeId| vote_of(store(node.0 as usize), object.group, object.index);
    let mut looked_at = Vec::new();
    for some in 1u32..1 << members.len() {
        let quorum = || members.iter().enumerate().filter(|(n, _)| some >> n & 1 == 1).map(|(_, node)| *node);
        if !config.is_quorum(|node| quorum().any(|n| n == node)) || quorum().any(|node| vote(node).is_none())
        {
            continue;
        }
        let Some(chosen) = quorum().max_by_key(|node| vote(*node)) else { continue };
        if !looked_at.contains(&chosen) {
            looked_at.push(chosen);
            let ends = (quorum().next().unwrap_or(chosen), quorum().next_back().unwrap_or(chosen));
            look(plan, linear, slot, object, ends, chosen, now, &store)?;
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn look<'a>(
    plan: &Plan,
    linear: &Linearizable,
    slot: usize,
    object: ObjectId,
    quorum: (NodeId, NodeId),
    chosen: NodeId,
    now: Moment,
    store: &impl Fn(usize) -> &'a Store,
) -> Checked {
    let copy = store(chosen.0 as usize);
    let table = copy.durable.tables.get(&copy.find(object));
    for block in 0..plan.blocks {
        let at = plan.first_block as usize + block;
        let sum = table.and_then(|t| t.get(at).copied()).unwrap_or(0);
        let value = payload::value(store(chosen.0 as usize).truth(sum));
        if let Err(wrong) = linear.register(slot, block).allows(value, now) {
            let votes: Vec<String> = plan
                .pg(object.group.volume, object.index)
                .1
                .everyone()
                .into_iter()
                .map(|n| match vote_of(store(n.0 as usize), object.group, object.index) {
                    Some(v) => format!("{n} line {} head {}", v.line, v.head),
                    None => format!("{n} lost"),
                })
                .collect();
            let what = format!(
                "{} and {} would choose {chosen}'s copy, whose block {block} has value {value}: {wrong:?}; \
                 votes: {}",
                quorum.0,
                quorum.1,
                votes.join(", ")
            );
            return Err(Violation::of("every quorum's choice", object_of(slot), what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Blocks, checksum};
    use trefoil_core::message::{Line, WriteOp};
    use trefoil_core::record::{Promise, Record};
    use trefoil_core::{Ballot, BlockRange, Epoch, Head};

    struct World {
        plan: Plan,
        linear: Linearizable,
        stores: Vec<Store>,
        members: Vec<usize>,
        group: GroupId,
    }

    impl World {
        fn new() -> World {
            let plan = Plan { first_block: 0, ..Plan::new(1, 0, None) };
            let (pg, config) = plan.pg(VolumeId(1), 0);
            let members = config.new.iter().map(|n| n.0 as usize).collect();
            let stores = (0..plan.nodes).map(|_| Store::default()).collect();
            let group = GroupId { volume: VolumeId(1), pg };
            World { plan, linear: Linearizable::default(), stores, members, group }
        }
        fn apply(&mut self, member: usize, record: Record<Blocks>) {
            let store = &mut self.stores[self.members[member]];
            store.push(1, record);
            store.start_flush(9);
            store.end_flush(|_, _| ());
        }
        fn settle(&mut self, member: usize, ballot: u64, behind: &[(u32, u64)]) {
            let settled = Promise { ballot: Ballot(ballot), epoch: Epoch(1) };
            let add = behind.iter().map(|(i, line)| (*i, Line::At(Ballot(*line)))).collect();
            let group = self.group;
            self.apply(member, Record::Settle { group, settled, add, remove: vec![] });
        }
        fn write(&mut self, member: usize, ballot: u64, seq: u64, value: u64) {
            let op = WriteOp::Data {
                blocks: BlockRange::new(0, 1),
                checksums: Box::new([checksum(value)]),
                data: Blocks::One(value),
            };
            let object = ObjectId { group: self.group, index: 0 };
            let head = Head { ballot: Ballot(ballot), seq };
            self.apply(member, Record::Write { object, head, snap: 0, op });
        }
        fn check(&self, now: u64) -> Checked {
            check(&self.plan, &self.linear, (VolumeId(1), 0), now, |n| &self.stores[n])
        }
    }

    /// `PROTOCOL.md` section 10, first row: were the copy that is behind left out, w1 would be gone.
    #[test]
    fn an_acknowledged_write_that_a_quorum_would_lose_is_caught() {
        let mut w = World::new();
        for member in 0..3 {
            w.settle(member, 1, &[]);
        }
        w.linear.begin(0, 0..1, 7, 1, 10);
        w.write(0, 1, 1, 7);
        w.check(11).unwrap();
        w.write(2, 1, 1, 7);
        w.linear.acknowledge(0, 0..1, 7, 10, 12).unwrap();
        w.check(13).unwrap();
        // Member 1 is brought into a higher line with nothing: it outvotes the others.
        w.settle(1, 2, &[]);
        assert_eq!(w.check(14).unwrap_err().invariant, "every quorum's choice");
        // Listed as behind with its old line, it does not.
        let mut w2 = World::new();
        w2.linear = w.linear;
        for member in 0..3 {
            w2.settle(member, 1, &[]);
        }
        w2.write(0, 1, 1, 7);
        w2.write(2, 1, 1, 7);
        w2.settle(1, 2, &[(0, 1)]);
        w2.check(15).unwrap();
    }

    #[test]
    fn a_rolled_back_write_that_could_come_back_is_caught() {
        let mut w = World::new();
        for member in 0..3 {
            w.settle(member, 1, &[]);
        }
        w.linear.begin(0, 0..1, 7, 1, 10);
        w.write(0, 1, 1, 7);
        w.linear.opened(0, Ballot::new(trefoil_core::Generation(2), 0).unwrap(), 20);
        w.check(21).unwrap();
        // The next leader, with members 1 and 2, has read the hole before the write.
        w.linear.read(0, 0, 0, 21, 22).unwrap();
        assert!(w.check(23).is_err(), "members 0 and 1 would choose it");
        w.settle(1, 2, &[]);
        w.settle(2, 2, &[]);
        w.check(24).unwrap();
    }
}
