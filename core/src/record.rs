//! What a node makes durable: section 2 of `docs/protocol.md`.
//!
//! Each [`Record`] is one step of the node, durable as a whole or not at all, in the order in which the
//! node gave them. [`Durable`] is what a sequence of records adds up to, less the blocks themselves:
//! the node's machine, the store's recovery and the simulator's disk all fold records with the same
//! [`Durable::apply`], so that what is true after a crash cannot differ from what was true before.

use crate::crush::{object_pg, pg_ancestors, pg_split_children};
use crate::ids::*;
use crate::message::{Line, ObjectVote, WriteOp};
use crate::scrub::Mark;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A ballot and the epoch that its Open named.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Promise {
    /// The ballot.
    pub ballot: Ballot,
    /// The epoch under which it was opened.
    pub epoch: Epoch,
}

/// Blocks that a repair brought: only those which differ from the old copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch<P> {
    /// `(block, checksum)` in ascending order of blocks; [`crate::checksum::HOLE`] makes a hole.
    pub blocks: Vec<(u32, u64)>,
    /// The bytes of those that are no holes, in order.
    pub data: P,
    /// `(block, checksum)` of blocks whose bytes no source had: bad until they are written or found.
    pub bad: Vec<(u32, u64)>,
}

/// One durable step of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<P> {
    /// The volume's fence (answer: Fenced).
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The fence.
        generation: Generation,
    },
    /// A promise (answer: Opened).
    Open {
        /// The group.
        group: GroupId,
        /// The promise.
        promised: Promise,
        /// The epoch of the group's PG from now on; `left` is cleared.
        epoch: Epoch,
    },
    /// A line (answer: Settled). `settled` becomes `promised`.
    Settle {
        /// The group.
        group: GroupId,
        /// The line.
        settled: Promise,
        /// Objects that are behind from now on, with their lines.
        add: Vec<(ObjectIndex, Line)>,
        /// Objects that are not behind any more.
        remove: Vec<ObjectIndex>,
    },
    /// A write (answer: Have).
    Write {
        /// The object.
        object: ObjectId,
        /// The head that it gives.
        head: Head,
        /// The newest snapshot that its leader knew.
        snap: u64,
        /// What changes.
        op: WriteOp<P>,
    },
    /// A finished repair (answer: Have): pieces, then writes in order, the head that this gives, out of
    /// `behind`, in one step.
    Install {
        /// The object.
        object: ObjectId,
        /// The head.
        head: Head,
        /// What the sources had.
        patches: Vec<Patch<P>>,
        /// What was kept on top, in order.
        writes: Vec<WriteOp<P>>,
    },
    /// The bytes of a block that had gone bad, found again by the checksum in the node's own table.
    /// Content and head stay as they were.
    Heal {
        /// The object.
        object: ObjectId,
        /// The block.
        block: u32,
        /// Its checksum; if the table has another one by now, nothing changes.
        checksum: u64,
        /// The bytes.
        data: P,
    },
    /// What is in doubt of a copy from now on (section 9, scrub): these blocks and no others. Content and head
    /// stay as they were.
    Doubt {
        /// The object.
        object: ObjectId,
        /// Ascending by block, each once.
        marks: Vec<Mark>,
    },
    /// The volume is deleted: its groups, objects and fence go.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The node knows that it has lost state (N8): every group that it still knows has lost its votes,
    /// and leaders below these generations are refused.
    LostState {
        /// The generation that the monitors have granted last, for each volume.
        fences: Vec<(VolumeId, Generation)>,
    },
    /// The node has answered List or Compare under this epoch (answer: Groups, AtLeast): from now on it
    /// opens no group of the PG under an older one, and refuses leaders below these generations.
    Epoch {
        /// The placement group.
        pg: PgId,
        /// The epoch.
        epoch: Epoch,
        /// Fences that rise, by volume.
        fences: Vec<(VolumeId, Generation)>,
    },
    /// The node has left the PG (N7): its objects there go, and it takes nothing for it but an Open as in N1.
    Leave {
        /// The placement group.
        pg: PgId,
        /// The epoch under which the node is no member.
        epoch: Epoch,
    },
    /// The PG is split: its pool had `from` placement groups as far as the node's copy of this one goes, and has
    /// `to`. Each one that splits off gets the PG's state and copies of its groups' promises and lines; objects,
    /// and what is behind or in doubt, go to where their hash says. Where `from` is `to` nothing splits: the node begins
    /// with a PG of a pool that has been split before.
    Split {
        /// The placement group.
        pg: PgId,
        /// Placement groups of its pool, as far as it was split here before.
        from: u32,
        /// Placement groups of its pool.
        to: u32,
    },
}

impl<P> Record<P> {
    /// Blocks of data that it carries.
    pub fn data_blocks(&self) -> u32 {
        let patch = |p: &Patch<P>| p.blocks.iter().filter(|b| b.1 != crate::checksum::HOLE).count() as u32;
        match self {
            Record::Write { op, .. } => op.data_blocks(),
            Record::Install { patches, writes, .. } => {
                patches.iter().map(patch).sum::<u32>() + writes.iter().map(WriteOp::data_blocks).sum::<u32>()
            }
            Record::Heal { .. } => 1,
            _ => 0,
        }
    }

    /// The placement group whose promises, lines or heads it changes.
    pub fn changes_pg(&self) -> Option<PgId> {
        match self {
            Record::Open { group, .. } | Record::Settle { group, .. } => Some(group.pg),
            Record::Write { object, .. } | Record::Install { object, .. } => Some(object.group.pg),
            Record::Leave { pg, .. } | Record::Split { pg, .. } => Some(*pg),
            Record::Fence { .. }
            | Record::Heal { .. }
            | Record::Doubt { .. }
            | Record::DeleteVolume { .. }
            | Record::LostState { .. }
            | Record::Epoch { .. } => None,
        }
    }
}

/// Durable state of a placement group at a node.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgState {
    /// The highest epoch under which this node has answered Open, List or Compare.
    pub epoch: Epoch,
    /// Set when the node has left the PG.
    pub left: Option<Epoch>,
    /// What is here of the PG is split as in a pool of so many. 0: the node never heard of a split, and it is
    /// as many as the pool had first.
    pub pg_num: u32,
}

impl PgState {
    /// [`PgState::pg_num`], for a pool that had so many first.
    pub fn level(&self, first: u32) -> u32 {
        if self.pg_num == 0 { first } else { self.pg_num }
    }
}

/// Durable state of a group at a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The highest ballot promised.
    pub promised: Promise,
    /// The ballot in whose line the node last was brought. Never above `promised`.
    pub settled: Promise,
    /// The node has lost what it knew of the group, and has not been settled since: no vote (N8).
    pub lost: bool,
    /// The head of every object that has one.
    pub objects: FxHashMap<ObjectIndex, Head>,
    /// Objects that are behind, with their lines. May name objects that the node does not have.
    pub behind: FxHashMap<ObjectIndex, Line>,
    /// Blocks in doubt, by object; never an empty list.
    pub doubts: FxHashMap<ObjectIndex, Vec<Mark>>,
}

impl GroupState {
    /// The marks on an object's blocks.
    pub fn marks(&self, index: ObjectIndex) -> &[Mark] {
        if self.doubts.is_empty() { &[] } else { self.doubts.get(&index).map_or(&[], Vec::as_slice) }
    }

    /// What these blocks held is written over: nothing of it is in doubt any more.
    fn written(&mut self, index: ObjectIndex, blocks: BlockRange) {
        if self.doubts.is_empty() {
            return;
        }
        if let Some(marks) = self.doubts.get_mut(&index) {
            marks.retain(|mark| !blocks.contains(BlockRange::new(mark.block, 1)));
            if marks.is_empty() {
                self.doubts.remove(&index);
            }
        }
    }

    /// The votes of an answer to Open: the objects that the node has, and those which it lacks and is
    /// behind with, in order.
    pub fn votes(&self) -> Vec<ObjectVote> {
        let has = self.objects.iter().map(|(index, head)| (*index, *head));
        let lacks = self.behind.keys().filter(|index| !self.objects.contains_key(index));
        let all = has.chain(lacks.map(|index| (*index, Head::ZERO)));
        let mut votes: Vec<ObjectVote> = all
            .map(|(index, head)| ObjectVote { index, head, behind: self.behind.get(&index).copied() })
            .collect();
        votes.sort_unstable_by_key(|vote| vote.index);
        votes
    }
}

/// What a node's records add up to, less the blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Per volume.
    pub fences: BTreeMap<VolumeId, Generation>,
    /// Per placement group.
    pub pgs: BTreeMap<PgId, PgState>,
    /// Per group.
    pub groups: BTreeMap<GroupId, GroupState>,
    /// The node has lost state at some time: a group that it does not know is a lost one, not an empty
    /// one.
    pub amnesia: bool,
}

impl Durable {
    /// The group's state, made if need be: a group that a node with [`Durable::amnesia`] does not know
    /// is lost.
    pub fn group_mut(&mut self, group: GroupId) -> &mut GroupState {
        let lost = self.amnesia;
        self.groups.entry(group).or_insert_with(|| GroupState { lost, ..GroupState::default() })
    }

    /// Takes one step. Records come from the node's own machine or its own log, both of which have been
    /// checked; a record about a group that is not there makes it.
    pub fn apply<P>(&mut self, record: &Record<P>) {
        match record {
            Record::Fence { volume, generation } => {
                let fence = self.fences.entry(*volume).or_default();
                *fence = (*fence).max(*generation);
            }
            Record::Open { group, promised, epoch } => {
                let pg = self.pgs.entry(group.pg).or_default();
                pg.epoch = pg.epoch.max(*epoch);
                pg.left = None;
                self.group_mut(*group).promised = *promised;
            }
            Record::Settle { group, settled, add, remove } => {
                let state = self.group_mut(*group);
                state.settled = *settled;
                state.lost = false;
                for index in remove {
                    state.behind.remove(index);
                }
                for (index, line) in add {
                    state.behind.insert(*index, *line);
                }
            }
            Record::Write { object, head, op, .. } => {
                // Of all records these are nearly all, and their group is nearly always there.
                let group = match self.groups.get_mut(&object.group) {
                    Some(group) => group,
                    None => self.group_mut(object.group),
                };
                group.objects.insert(object.index, *head);
                group.written(object.index, op.blocks());
            }
            Record::Install { object, head, writes, .. } => {
                let state = self.group_mut(object.group);
                state.behind.remove(&object.index);
                if *head != Head::ZERO {
                    state.objects.insert(object.index, *head);
                } else {
                    state.objects.remove(&object.index);
                    state.doubts.remove(&object.index);
                }
                // Of what came from the source, a Doubt before and one behind this record says.
                writes.iter().for_each(|op| state.written(object.index, op.blocks()));
            }
            Record::Doubt { object, marks } => {
                let state = self.group_mut(object.group);
                match marks.is_empty() {
                    true => state.doubts.remove(&object.index),
                    false => state.doubts.insert(object.index, marks.clone()),
                };
            }
            Record::Heal { .. } => {}
            Record::DeleteVolume { volume } => {
                self.fences.remove(volume);
                self.groups.retain(|group, _| group.volume != *volume);
            }
            Record::LostState { fences } => {
                self.amnesia = true;
                for group in self.groups.values_mut() {
                    group.lost = true;
                }
                self.raise(fences);
            }
            Record::Epoch { pg, epoch, fences } => {
                let pg = self.pgs.entry(*pg).or_default();
                pg.epoch = pg.epoch.max(*epoch);
                self.raise(fences);
            }
            Record::Split { pg, from, to } => self.split(*pg, *from, *to),
            Record::Leave { pg, epoch } => {
                let state = self.pgs.entry(*pg).or_default();
                state.epoch = state.epoch.max(*epoch);
                state.left = Some(*epoch);
                // Promises stay: a late message of a ballot that was promised must not find the group as if
                // nobody had ever led it. The line goes: an empty copy must outvote nobody when this node
                // comes back. What was lost (N8) stays lost.
                for (_, group) in self.groups.iter_mut().filter(|(group, _)| group.pg == *pg) {
                    group.settled = Promise::default();
                    group.objects = FxHashMap::default();
                    group.behind = FxHashMap::default();
                    group.doubts = FxHashMap::default();
                }
            }
        }
    }

    /// See [`Record::Split`].
    fn split(&mut self, pg: PgId, from: u32, to: u32) {
        let state = self.pgs.entry(pg).or_default();
        state.pg_num = to;
        let state = *state;
        let children: BTreeSet<u32> = pg_split_children(pg.pg, from, to).into_iter().collect();
        for child in &children {
            self.pgs.entry(PgId { pg: *child, ..pg }).or_insert(state);
        }
        if children.is_empty() {
            return;
        }
        let ids: Vec<GroupId> = self.groups.keys().filter(|group| group.pg == pg).copied().collect();
        for id in ids {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let goes = |index: &ObjectIndex| {
                let child = object_pg(id.volume.0, *index, to);
                children.contains(&child).then_some(child)
            };
            #[allow(unused_mut)]
            let mut copy = GroupState {
                promised: group.promised,
                settled: group.settled,
                lost: group.lost,
                ..GroupState::default()
            };
            #[cfg(feature = "deliberate-bugs")]
            if crate::bugs::split_without_promise() {
                copy.promised = copy.settled;
            }
            let mut gone: BTreeMap<u32, GroupState> =
                children.iter().map(|child| (*child, copy.clone())).collect();
            group.objects.retain(|index, head| {
                let child = goes(index).and_then(|child| gone.get_mut(&child));
                child.map(|child| child.objects.insert(*index, *head)).is_none()
            });
            group.behind.retain(|index, line| {
                let child = goes(index).and_then(|child| gone.get_mut(&child));
                child.map(|child| child.behind.insert(*index, *line)).is_none()
            });
            group.doubts.retain(|index, marks| {
                let child = goes(index).and_then(|child| gone.get_mut(&child));
                child.map(|child| child.doubts.insert(*index, std::mem::take(marks))).is_none()
            });
            for (child, state) in gone {
                self.groups.insert(GroupId { pg: PgId { pg: child, ..pg }, ..id }, state);
            }
        }
    }

    /// Where an object is now that was in this group once: it is in that, or in one that split off from it.
    pub fn place(&self, mut object: ObjectId) -> ObjectId {
        loop {
            let level = self.pgs.get(&object.group.pg).map_or(0, |pg| pg.pg_num);
            let pg = object_pg(object.group.volume.0, object.index, level);
            // What splits off has a greater number than what it splits from.
            let own = object.group.pg.pg;
            if level == 0 || pg <= own {
                return object;
            }
            // By way of the first that has split off: it may not be as far as this one is.
            let there = |pg: &u32| self.pgs.contains_key(&PgId { pg: *pg, ..object.group.pg });
            let way = std::iter::once(pg).chain(pg_ancestors(pg)).take_while(|pg| *pg > own);
            match way.filter(there).last() {
                Some(next) => object.group.pg.pg = next,
                None => return object,
            }
        }
    }

    fn raise(&mut self, fences: &[(VolumeId, Generation)]) {
        for (volume, generation) in fences {
            let fence = self.fences.entry(*volume).or_default();
            *fence = (*fence).max(*generation);
        }
    }
}
