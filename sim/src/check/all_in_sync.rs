//! 5.6, `ack = all-in-sync`: what is acknowledged, every member has said to have whose copy is in line, besides a
//! majority.
//!
//! Which copies these are is seen from outside, by what the leader and the node have said: in line is what a Settle
//! does not except, or a repair has brought back; until there is an Open, a Gap, a refusal, or an end of the
//! connection. Two reasons to leave a copy behind cannot be seen: it is outvoted (then the node has said so), and it
//! is later than a laggard may be. Such copies are looked at again when they are in line again.

use super::i3_one_content::Issue;
use super::{Checked, Violation, object_of, slot_of};
use crate::payload::Blocks;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use trefoil_core::message::{FromNode, ToNode};
use trefoil_core::placement::PgConfig;
use trefoil_core::{Ballot, GroupId, NodeId, ObjectIndex};

/// A node's place with a leader: which group.
type Place = (usize, NodeId, GroupId);

/// What a Settle has made of a node's copies of a group.
#[derive(Debug, Default)]
struct Line {
    ballot: Ballot,
    /// Copies that are not in line.
    out: FxHashSet<ObjectIndex>,
    /// Of these, those under repair, and what their node must have.
    repairs: FxHashMap<ObjectIndex, u64>,
    /// The greatest number of this ballot that the leader has heard of.
    claims: FxHashMap<ObjectIndex, u64>,
}

/// A write as it was sent first.
#[derive(Copy, Clone, Debug)]
struct Sent {
    group: GroupId,
    /// When, by its leader's clock.
    at: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct AllInSync {
    lines: FxHashMap<Place, Line>,
    /// Heads of the ballot itself that a node has answered an Open with.
    opened: FxHashMap<Place, (Ballot, FxHashMap<ObjectIndex, u64>)>,
    sent: BTreeMap<(usize, Ballot, u64), Sent>,
}

impl AllInSync {
    /// A leader sends something to a node. `now`: by its clock.
    pub fn said(&mut self, li: usize, node: NodeId, msg: &ToNode<Blocks>, now: u64) {
        match msg {
            ToNode::Open { group, ballot, .. } => {
                self.lines.remove(&(li, node, *group));
                self.opened.remove(&(li, node, *group));
                // A next round is one for all, also for who is no member any more.
                self.lines.retain(|(l, _, g), line| (*l, *g) != (li, *group) || line.ballot >= *ballot);
            }
            ToNode::Settle { group, ballot, except } => {
                let opened = self.opened.remove(&(li, node, *group)).filter(|opened| opened.0 == *ballot);
                let claims = opened.map(|opened| opened.1).unwrap_or_default();
                let out = except.iter().copied().collect();
                let line = Line { ballot: *ballot, out, claims, ..Line::default() };
                self.lines.insert((li, node, *group), line);
            }
            ToNode::Repair { object, ballot, upto, .. } => {
                if let Some(line) = self.lines.get_mut(&(li, node, object.group))
                    && line.ballot == *ballot
                {
                    line.out.insert(object.index);
                    line.repairs.insert(object.index, *upto);
                }
            }
            ToNode::Write { object, ballot, seq, .. } => {
                if let Some(slot) = slot_of(*object) {
                    let sent = Sent { group: object.group, at: now };
                    self.sent.entry((slot, *ballot, *seq)).or_insert(sent);
                }
            }
            _ => {}
        }
    }

    /// A leader is about to hear something. `lag_max`: after so long it may leave a copy behind.
    pub fn heard(&mut self, li: usize, node: NodeId, msg: &FromNode<Blocks>, now: u64, lag_max: u64) {
        let leaves =
            |lines: &mut FxHashMap<Place, Line>, group: GroupId, index: ObjectIndex, repair: bool| {
                if let Some(line) = lines.get_mut(&(li, node, group))
                    && line.repairs.contains_key(&index) == repair
                {
                    line.repairs.remove(&index);
                    line.out.insert(index);
                }
            };
        match msg {
            FromNode::Opened { group, ballot, objects, .. } => {
                let own = objects.iter().filter(|vote| vote.head.ballot == *ballot);
                let heads = own.map(|vote| (vote.index, vote.head.seq)).collect();
                self.opened.insert((li, node, *group), (*ballot, heads));
            }
            FromNode::OpenRefused { group, .. } | FromNode::ReadRefused { group, .. } => {
                self.lines.remove(&(li, node, *group));
            }
            FromNode::Gap { object, repair, .. } => {
                leaves(&mut self.lines, object.group, object.index, *repair);
                if *repair {
                    // The Have of a write that was under way when it was ordered may have been taken for its end.
                    leaves(&mut self.lines, object.group, object.index, false);
                }
            }
            FromNode::NoSpace { object, .. } => {
                leaves(&mut self.lines, object.group, object.index, true);
                leaves(&mut self.lines, object.group, object.index, false);
            }
            FromNode::Doubts { object, outvoted: true, .. } => {
                leaves(&mut self.lines, object.group, object.index, false);
            }
            FromNode::Have { object, ballot, seq, .. } => {
                let (Some(slot), Some(line)) =
                    (slot_of(*object), self.lines.get_mut(&(li, node, object.group)))
                else {
                    return;
                };
                if line.ballot != *ballot {
                    return;
                }
                let claim = line.claims.entry(object.index).or_default();
                if is_late(&self.sent, slot, *ballot, *claim, now, lag_max) {
                    line.out.insert(object.index);
                }
                *claim = (*claim).max(*seq);
                if line.repairs.get(&object.index).is_some_and(|upto| seq >= upto) {
                    line.repairs.remove(&object.index);
                    line.out.remove(&object.index);
                }
            }
            _ => {}
        }
    }

    /// A leader's connection to a node is gone, or another one is there.
    pub fn lost(&mut self, li: usize, node: NodeId) {
        self.lines.retain(|(l, n, _), _| (*l, *n) != (li, node));
        self.opened.retain(|(l, n, _), _| (*l, *n) != (li, node));
    }

    /// A leader's process is gone.
    pub fn gone(&mut self, li: usize) {
        self.lines.retain(|(l, ..), _| *l != li);
        self.opened.retain(|(l, ..), _| *l != li);
    }

    /// A write that went out under this number is acknowledged. `since`: when its leader was told last to wait for all, by
    /// its clock, or had no lease; what was sent before may have been answered as far as copies go by then, and have waited
    /// for a Confirm only.
    #[allow(clippy::too_many_arguments)]
    pub fn acknowledged(
        &mut self,
        li: usize,
        slot: usize,
        config: &PgConfig,
        (ballot, seq): Issue,
        since: u64,
        now: u64,
        lag_max: u64,
    ) -> Checked {
        let sent = self.sent.get(&(slot, ballot, seq)).copied();
        let Some(sent) = sent.filter(|sent| sent.at >= since) else { return Ok(()) };
        let index = object_of(slot).1;
        for node in config.everyone().into_iter().filter(|node| config.is_member(*node)) {
            let Some(line) = self.lines.get_mut(&(li, node, sent.group)) else { continue };
            let claim = line.claims.get(&index).copied().unwrap_or_default();
            if line.ballot != ballot || line.out.contains(&index) || claim >= seq {
                continue;
            }
            if is_late(&self.sent, slot, ballot, claim, now, lag_max) {
                line.out.insert(index);
                continue;
            }
            let what = format!(
                "write {seq} of ballot {ballot} is acknowledged; the copy of {node} is in line, and is known to have {claim}"
            );
            return Err(Violation::of("all in sync", object_of(slot), what));
        }
        Ok(())
    }
}

/// The first write that the leader does not know the node to have was sent so long ago that it may have left the copy
/// behind.
fn is_late(
    sent: &BTreeMap<(usize, Ballot, u64), Sent>,
    slot: usize,
    ballot: Ballot,
    claim: u64,
    now: u64,
    lag_max: u64,
) -> bool {
    let first = sent.range((slot, ballot, claim + 1)..=(slot, ballot, u64::MAX)).next();
    first.is_some_and(|(_, sent)| now.saturating_sub(sent.at) > lag_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::message::WriteOp;
    use trefoil_core::{BlockRange, Epoch, ObjectId, PgId, PoolId, VolumeId};

    const LAG: u64 = 100;

    fn object() -> ObjectId {
        let group = GroupId { volume: VolumeId(1), pg: PgId { pool: PoolId(1), pg: 0 } };
        ObjectId { group, index: 0 }
    }

    fn write(check: &mut AllInSync, seq: u64, now: u64) {
        let op = WriteOp::Zero { blocks: BlockRange::new(0, 1) };
        for node in (0..3).map(NodeId) {
            let msg = ToNode::Write { object: object(), ballot: Ballot(4), seq, snap: 0, op: op.clone() };
            check.said(0, node, &msg, now);
        }
    }

    fn have(check: &mut AllInSync, node: u32, seq: u64, now: u64) {
        let msg = FromNode::Have { object: object(), ballot: Ballot(4), seq, full: false };
        check.heard(0, NodeId(node), &msg, now, LAG);
    }

    fn acknowledged(check: &mut AllInSync, seq: u64, now: u64) -> bool {
        let config = PgConfig::simple(Epoch(1), (0..3).map(NodeId).collect());
        check.acknowledged(0, 0, &config, (Ballot(4), seq), 0, now, LAG).is_ok()
    }

    fn settled(except: Vec<ObjectIndex>) -> AllInSync {
        let mut check = AllInSync::default();
        for node in (0..3).map(NodeId) {
            let except = if node == NodeId(2) { except.clone() } else { Vec::new() };
            let msg = ToNode::Settle { group: object().group, ballot: Ballot(4), except };
            check.said(0, node, &msg, 0);
        }
        check
    }

    #[test]
    fn who_is_in_line_must_have_said_so() {
        let mut check = settled(Vec::new());
        write(&mut check, 1, 0);
        (0..2).for_each(|node| have(&mut check, node, 1, 10));
        assert!(!acknowledged(&mut check, 1, 20));
        have(&mut check, 2, 1, 30);
        assert!(acknowledged(&mut check, 1, 40));
        // Another leader's is another matter, as is one whose connection is gone.
        write(&mut check, 2, 50);
        (0..2).for_each(|node| have(&mut check, node, 2, 60));
        assert!(!acknowledged(&mut check, 2, 70));
        check.lost(1, NodeId(2));
        assert!(!acknowledged(&mut check, 2, 80));
        check.lost(0, NodeId(2));
        assert!(acknowledged(&mut check, 2, 90));
    }

    #[test]
    fn who_is_behind_counts_again_when_it_is_repaired() {
        let mut check = settled(vec![0]);
        write(&mut check, 1, 0);
        (0..2).for_each(|node| have(&mut check, node, 1, 10));
        assert!(acknowledged(&mut check, 1, 20));
        let repair = ToNode::Repair {
            object: object(),
            ballot: Ballot(4),
            from: NodeId(0),
            upto: 1,
            object_blocks: 8,
            urgent: false,
        };
        check.said(0, NodeId(2), &repair, 30);
        write(&mut check, 2, 40);
        (0..2).for_each(|node| have(&mut check, node, 2, 50));
        assert!(acknowledged(&mut check, 2, 60), "under repair");
        have(&mut check, 2, 1, 70);
        assert!(!acknowledged(&mut check, 2, 80), "in line");
    }

    #[test]
    fn who_is_late_may_be_left_behind() {
        let mut check = settled(Vec::new());
        write(&mut check, 1, 0);
        (0..2).for_each(|node| have(&mut check, node, 1, 10));
        assert!(!acknowledged(&mut check, 1, LAG));
        assert!(acknowledged(&mut check, 1, LAG + 1));
        write(&mut check, 2, LAG + 2);
        (0..2).for_each(|node| have(&mut check, node, 2, LAG + 3));
        assert!(acknowledged(&mut check, 2, LAG + 4), "it has been left behind");
    }
}
