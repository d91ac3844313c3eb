//! A pool that gets more placement groups while the volume is led (section 7 of `docs/protocol.md`).
//!
//! A leader learns of it from one map: every operation that is under way in a group that is split is taken back (5.8)
//! and dealt to the group that its object belongs to now, and all of these groups take the next round. A group that
//! splits off goes on from its parent's ballot: its objects carry heads, and its nodes promises, of the parent's
//! rounds, and no ballot of theirs may come twice.
//!
//! Writes that are durable on a majority, and wait for a Confirm before they are acknowledged, wait for their parent's:
//! that says what they need, that no newer front end was attached before (6.4), for all of the volume.

use super::group::{Group, Phase};
use super::{Leader, Output, VolumeSpec};
use crate::client::ClientOp;
use crate::crush::pg_split_parent;
use crate::ids::*;
use crate::placement::PgTable;
use std::collections::VecDeque;

/// The groups of the placement groups from `first` on; `None` where the volume has no object. Hashes objects until
/// each has one.
pub(super) fn groups_from<P: Clone + Default>(
    spec: &VolumeSpec,
    first: u32,
    pgs: &PgTable,
) -> Vec<Option<Box<Group<P>>>> {
    let pg_num = pgs.len();
    let mut groups: Vec<Option<Box<Group<P>>>> = (first..pg_num).map(|_| None).collect();
    let mut left = groups.len();
    for object in 0..spec.objects {
        if left == 0 {
            break;
        }
        let pg = (spec.pg_of)(spec.id, object, pg_num);
        let Some(at) = pg.checked_sub(first) else { continue };
        if let (Some(slot @ None), Some(config)) = (groups.get_mut(at as usize), pgs.get(pg)) {
            let id = GroupId { volume: spec.id, pg: PgId { pool: spec.pool, pg } };
            *slot = Some(Box::new(Group::new(id, config.config())));
            left -= 1;
        }
    }
    groups
}

impl<P: Clone + Default> Leader<P> {
    /// The pool's placement groups are these now. Fewer than before: a late word, of an older map.
    pub(super) fn regroup(&mut self, now: Time, pgs: &PgTable, out: &mut Vec<Output<P>>) {
        let before = self.groups.len() as u32;
        if pgs.len() < before {
            return;
        }
        let mut split_off: Vec<usize> = Vec::new();
        if pgs.len() > before {
            let children = groups_from(&self.shared.spec, before, pgs);
            for (pg, child) in (before..).zip(&children) {
                if child.is_some() {
                    split_off.push(pg as usize);
                }
            }
            self.groups.extend(children);
            for at in &split_off {
                self.inherit(now, *at, pg_split_parent(*at as u32, before) as usize);
            }
            self.deal(before);
        }
        for (pg, config) in pgs.iter().take(before as usize) {
            self.configure(now, pg, config.config(), out);
        }
        for at in split_off {
            if let Some(child) = self.groups.get_mut(at).and_then(Option::as_mut)
                && child.phase != Phase::Closed
            {
                child.next_round(&mut self.shared, now, out);
            }
        }
        self.all_whole_said = false;
        self.attach_if_fenced(now, out);
    }

    /// A group that splits off is as far as its parent: the next round of both comes behind all of the parent's.
    fn inherit(&mut self, now: Time, at: usize, parent: usize) {
        let Some(parent) = self.groups.get_mut(parent).and_then(Option::as_mut) else { return };
        parent.take_back(&mut self.shared, now);
        let (ballot, phase) = (parent.ballot, parent.phase);
        // A node that has said of the parent that it was lost, and was settled, says no more of the child.
        let words = parent.words.clone();
        #[cfg(feature = "deliberate-bugs")]
        let (ballot, phase) = match crate::bugs::split_from_round_zero() {
            true => (Ballot::ZERO, Phase::Closed),
            false => (ballot, phase),
        };
        if let Some(child) = self.groups.get_mut(at).and_then(Option::as_mut) {
            (child.ballot, child.phase) = (ballot, phase);
            child.words = words;
            child.words_of_before();
        }
    }

    /// What waits in the groups of before goes to where it belongs, in its order.
    fn deal(&mut self, before: u32) {
        let (volume, pg_of, pg_num) = {
            let spec = &self.shared.spec;
            (spec.id, spec.pg_of, self.groups.len() as u32)
        };
        for at in 0..before as usize {
            let Some(group) = self.groups.get_mut(at).and_then(Option::as_mut) else { continue };
            let waiting: VecDeque<ClientOp<P>> = std::mem::take(&mut group.waiting);
            for op in waiting {
                let to = pg_of(volume, op.object, pg_num) as usize;
                let to = if self.groups.get(to).is_some_and(Option::is_some) { to } else { at };
                if let Some(group) = self.groups.get_mut(to).and_then(Option::as_mut) {
                    group.waiting.push_back(op);
                }
            }
        }
    }
}
