//! What a node claims is durable there at that moment: N1, N2, N3, N4 and 6.4's answers are held against
//! the durable image of its store when they leave.

use super::{Checked, Violation};
use crate::payload::Blocks;
use crate::store::Store;
use trefoil_core::message::{FromNode, Line};
use trefoil_core::{Head, NodeId, ObjectId, Vote};

/// Is what this message claims durable?
pub fn check(node: NodeId, store: &Store, msg: &FromNode<Blocks>) -> Checked {
    let durable = &store.state;
    let about = match msg {
        FromNode::Opened { group, .. } | FromNode::Settled { group, .. } => Some(*group),
        FromNode::Have { object, .. } => Some(object.group),
        _ => None,
    };
    // The node has left since (N7); those who have the group now hold at least as much.
    if about.is_some_and(|group| store.emptied.contains(&group)) {
        return Ok(());
    }
    match msg {
        FromNode::Fenced { volume, generation } => {
            let fence = durable.fences.get(volume).copied().unwrap_or_default();
            if fence < *generation {
                return wrong(node, format!("says Fenced {volume} {generation}; durable is {fence}"));
            }
        }
        FromNode::Opened { group, ballot, settled, lost, objects } => {
            let state = durable.groups.get(group);
            let promised = state.map(|s| s.promised.ballot).unwrap_or_default();
            let durable_line = state.map(|s| s.settled.ballot).unwrap_or_default();
            if promised < *ballot || durable_line < *settled {
                return wrong(
                    node,
                    format!(
                        "says Opened {group} {ballot}, settled {settled}; durable are {promised}, {durable_line}"
                    ),
                );
            }
            if *lost || promised > *ballot {
                return Ok(());
            }
            for vote in objects {
                let line = match vote.behind {
                    Some(Line::Lost) => continue,
                    Some(Line::At(line)) => line,
                    None => *settled,
                };
                let said = Vote { line, head: vote.head };
                // One that does not know of its loss speaks of what it has; whether that counts is not judged here.
                let is = if store.unaware {
                    kept_vote(store, *group, vote.index)
                } else {
                    vote_of(store, *group, vote.index)
                };
                if is.is_none_or(|is| is < said) {
                    let what =
                        format!("votes {said:?} for object {} of {group}; durable is {is:?}", vote.index);
                    return wrong(node, what);
                }
            }
        }
        FromNode::Settled { group, ballot } => {
            let settled = durable.groups.get(group).map(|s| s.settled.ballot).unwrap_or_default();
            if settled < *ballot {
                return wrong(node, format!("says Settled {group} {ballot}; durable is {settled}"));
            }
        }
        FromNode::Have { object, ballot, seq, .. } => {
            let state = durable.groups.get(&store.find(*object).group);
            let head = state.and_then(|s| s.objects.get(&object.index)).copied().unwrap_or(Head::ZERO);
            let settled = state.map(|s| s.settled.ballot).unwrap_or_default();
            let behind = state.is_some_and(|s| s.behind.contains_key(&object.index));
            // A line that came since then may have listed the copy; but then its Open came first, and
            // this answer is too late to be heard.
            let held = settled == *ballot && !behind && head.seq >= *seq;
            if !held && settled <= *ballot {
                let what = format!(
                    "says Have {object} ({ballot}, {seq}); durable are head {head}, settled {settled}, \
                     behind {behind}"
                );
                return wrong(node, what);
            }
        }
        // Of Doubts: what is marked may be written over by the time that it is said.
        FromNode::Doubts { .. }
        | FromNode::Confirmed { .. }
        | FromNode::FenceRefused { .. }
        | FromNode::OpenRefused { .. }
        | FromNode::Gap { .. }
        | FromNode::NoSpace { .. }
        | FromNode::Data { .. }
        | FromNode::Bad { .. }
        | FromNode::ReadRefused { .. }
        | FromNode::Differs { .. } => {}
    }
    Ok(())
}

/// The vote of a copy, as a crash now would leave it; `None` for a copy that has lost it.
pub fn vote_of(store: &Store, group: trefoil_core::GroupId, index: u32) -> Option<Vote> {
    if store.lost {
        return None; // the node knows, and will say so before anything else; or its leader knows, and nobody else asks
    }
    kept_vote(store, group, index)
}

/// [`vote_of`], without what else is known.
fn kept_vote(store: &Store, group: trefoil_core::GroupId, index: u32) -> Option<Vote> {
    let group = store.find(ObjectId { group, index }).group;
    let Some(state) = store.state.groups.get(&group) else {
        return (!store.state.amnesia).then(Vote::default);
    };
    if state.lost {
        return None;
    }
    let line = match state.behind.get(&index) {
        None => state.settled.ballot,
        Some(Line::At(line)) => *line,
        Some(Line::Lost) => return None,
    };
    Some(Vote { line, head: state.objects.get(&index).copied().unwrap_or(Head::ZERO) })
}

fn wrong(node: NodeId, what: String) -> Checked {
    Err(Violation::plain("durable before answered", format!("{node} {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::message::{ObjectVote, WriteOp};
    use trefoil_core::record::{Promise, Record};
    use trefoil_core::{Ballot, BlockRange, Epoch, GroupId, VolumeId};

    #[test]
    fn each_claim_needs_its_record() {
        let mut store = Store::default();
        let (group, ballot, node) = (GroupId::default(), Ballot(5), NodeId(1));
        let promised = Promise { ballot, epoch: Epoch(1) };
        let head = Head { ballot, seq: 1 };
        let fence = trefoil_core::Generation(1);
        let object = ObjectId { group, index: 0 };
        let vote = ObjectVote { index: 0, head: Head { ballot, seq: 2 }, behind: None };
        let op = WriteOp::Zero { blocks: BlockRange::new(0, 1) };
        let steps: [(Record<Blocks>, FromNode<Blocks>); 5] = [
            (
                Record::Fence { volume: VolumeId(0), generation: fence },
                FromNode::Fenced { volume: VolumeId(0), generation: fence },
            ),
            (
                Record::Open { group, promised, epoch: Epoch(1) },
                FromNode::Opened { group, ballot, settled: Ballot::ZERO, lost: false, objects: vec![] },
            ),
            (
                Record::Settle { group, settled: promised, add: vec![], remove: vec![] },
                FromNode::Settled { group, ballot },
            ),
            (
                Record::Write { object, head, snap: 0, op: op.clone() },
                FromNode::Have { object, ballot, seq: 1, full: false },
            ),
            (
                Record::Write { object, head: Head { ballot, seq: 2 }, snap: 0, op },
                FromNode::Opened { group, ballot, settled: ballot, lost: false, objects: vec![vote] },
            ),
        ];
        for (ticket, (record, claim)) in steps.into_iter().enumerate() {
            store.push(ticket as u64 + 1, record);
            assert!(check(node, &store, &claim).is_err(), "before it is durable: {claim:?}");
            store.start_flush(1);
            store.end_flush(|_, _| ());
            assert!(check(node, &store, &claim).is_ok(), "{claim:?}");
        }
    }
}
