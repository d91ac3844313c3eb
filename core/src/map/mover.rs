//! Which step of which move comes next: rules M2 and M3 of `docs/protocol.md`, and the queue of moves that
//! brings each placement group to where CRUSH wants it.
//!
//! The soft state of whoever leads the monitors, beside the map: what nodes have answered to List. A new
//! leader begins with none, and asks again. Pure: it sees the map and the answers, and says what is to be
//! asked and proposed. Every proposal names the epoch that it rests on, and is refused if that is over.
//!
//! **Why final is safe** (M3). A List is sent only in the epoch that it names, after that was committed. When
//! a majority of the old set has answered, no ballot is opened under an older epoch any more; every ballot
//! that was, is named in their answers, and the new node is settled in a later one, opened by a quorum of
//! both sets. And every generation that was granted before the joint epoch was committed is a fence on that
//! majority and on the new node, so that no older front end finds a quorum without a fence (6.4).

mod plan;

pub use plan::{TARGET_FILL_MAX_PERCENT, Waits};

use super::diff::Sizes;
use super::outs::Room;
use super::{ClusterMap, Command, Move};
use crate::crush::object_pg;
use crate::ids::*;
use crate::message::{GroupList, ListRequest, ListedGroup};
use crate::placement::PgConfig;
use std::collections::{BTreeMap, BTreeSet};

/// Placement groups that are looked at in one step for whether they live where they should.
pub const PLAN_PGS_PER_STEP: usize = 1024;
/// Groups that are asked to be opened in one step, for each move. The others' turn comes.
pub const OPENS_PER_STEP: usize = 64;
/// Steps that the new node may be down before its move is undone, so that another one can take its place.
pub const STALLED_STEPS_MAX: u32 = 600;

/// Further limits beside those of the map ([`super::MoveLimits`]): the lower ones hold.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Moves in the cluster.
    pub cluster: usize,
    /// Moves that one node may come or go by.
    pub node: usize,
}

impl Default for Limits {
    /// None.
    fn default() -> Limits {
        Limits { cluster: usize::MAX, node: usize::MAX }
    }
}

/// Something is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask a node; the answer goes to [`Mover::listed`].
    List {
        /// Whom.
        node: NodeId,
        /// What.
        request: ListRequest,
    },
    /// The group's leader is to open it: an attached front end is told, else a healer is granted the volume.
    Open(GroupId),
    /// Propose this.
    Propose(Command),
}

/// How far a move is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Members of the old set that have answered in this epoch.
    pub answered: usize,
    /// The new node has answered in this epoch.
    pub heard: bool,
    /// Groups that the old set named.
    pub groups: usize,
    /// Of these, those which the new node lacks, or is not level with, by volume.
    pub lacking: Vec<VolumeId>,
    /// Objects that are behind there.
    pub behind: u64,
    /// It may go on.
    pub ready: bool,
}

/// What is known of one move, in one epoch.
#[derive(Debug, Default)]
struct Reports {
    epoch: Epoch,
    /// The last answer of each node.
    lists: BTreeMap<NodeId, Vec<ListedGroup>>,
    /// Steps in a row in which the new node was down.
    stalled: u32,
    /// Where the groups to be opened go on.
    cursor: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Mover {
    limits: Limits,
    /// By placement group on the move.
    reports: BTreeMap<PgId, Reports>,
    /// The placement group that was looked at last.
    cursor: Option<PgId>,
    /// The layout in which every placement group was found to be where it should, or cannot be helped.
    settled: u64,
    /// The layout in which the present round over all placement groups began.
    round: u64,
    /// What nodes have said of their room; none: it is not looked at. A node that is not in it has not been
    /// heard of.
    rooms: Option<BTreeMap<NodeId, Room>>,
    /// How large copies are, as found so many steps ago.
    sizes: Option<(Sizes, u32)>,
    /// Why placement groups stay where they should not, in the present round: how many for each reason.
    waits: BTreeMap<Waits, u32>,
}

/// M2 and M3 in one: they differ in the epoch, and in what rests on them.
pub fn progress<'a>(
    config: &PgConfig,
    to: NodeId,
    list: impl Fn(NodeId) -> Option<&'a [ListedGroup]>,
    exists: impl Fn(VolumeId) -> bool,
) -> Progress {
    let mut found = Progress::default();
    let mut named = BTreeSet::new();
    for groups in config.old.iter().filter_map(|node| list(*node)) {
        found.answered += 1;
        named.extend(groups.iter().map(|group| group.volume).filter(|volume| exists(*volume)));
    }
    found.groups = named.len();
    found.heard = list(to).is_some();
    let there: BTreeMap<VolumeId, &ListedGroup> =
        list(to).unwrap_or(&[]).iter().map(|group| (group.volume, group)).collect();
    found.behind = there.values().map(|group| u64::from(group.behind)).sum();
    // Settled in a ballot that was opened in this epoch: a ballot of before proves nothing.
    let level = |group: &&ListedGroup| !group.lost && group.behind == 0 && group.opened >= config.epoch;
    #[cfg(feature = "deliberate-bugs")]
    let level = |group: &&ListedGroup| {
        level(group)
            || (crate::bugs::no_reopen() && !group.lost && group.behind == 0 && group.opened > Epoch(0))
    };
    let lacks = |volume: &VolumeId| there.get(volume).is_none_or(|group| !level(group));
    found.lacking = named.into_iter().filter(lacks).collect();
    let majority = found.answered * 2 > config.old.len();
    found.ready = majority && found.heard && found.lacking.is_empty();
    found
}

/// What a node that has lost state may have had of a placement group, and does not name: one group of each volume
/// that has an object there. (Others nobody ever opens.) Hashes objects of each volume until one is found.
fn forgotten(map: &ClusterMap, list: &GroupList) -> Vec<ListedGroup> {
    let Some(pool) = map.pools.get(&list.pg.pool) else { return Vec::new() };
    let named: BTreeSet<VolumeId> = list.groups.iter().map(|group| group.volume).collect();
    let of_pool = map.volumes.iter().filter(|(_, volume)| volume.pool == list.pg.pool);
    let unnamed = of_pool.filter(|(id, volume)| {
        let there = |index| object_pg(id.0, index, pool.pg_num) == list.pg.pg;
        !named.contains(id) && (0..volume.objects()).any(there)
    });
    unnamed.map(|(id, _)| ListedGroup::forgotten(*id)).collect()
}

impl Mover {
    /// One that knows nothing yet.
    pub fn new(limits: Limits) -> Mover {
        Mover { limits, ..Mover::default() }
    }

    /// A node has answered a List. Answers of another epoch than the present one say nothing.
    ///
    /// A node that has lost state does not know what it was a member of. It is taken to have had a group of
    /// every volume that has an object there: the new node must be level in all of them, which takes a leader and a quorum of
    /// votes of others.
    pub fn listed(&mut self, map: &ClusterMap, node: NodeId, mut list: GroupList) {
        let Some(pg) = map.members(list.pg).filter(|pg| pg.epoch == list.epoch && pg.takes_part(node)) else {
            return;
        };
        // More groups than there may be volumes are no answer.
        if !map.moves.active.contains_key(&list.pg) || list.groups.len() > super::VOLUMES_MAX {
            return;
        }
        if list.amnesia {
            list.groups.extend(forgotten(map, &list));
        }
        let reports = self.reports.entry(list.pg).or_default();
        reports.at(pg.epoch);
        reports.lists.insert(node, list.groups);
    }

    /// How far a move is; none if there is no such move.
    pub fn progress(&self, map: &ClusterMap, pg: PgId) -> Option<Progress> {
        let it = map.moves.active.get(&pg)?;
        let config = map.members(pg)?.config();
        let reports = self.reports.get(&pg).filter(|reports| reports.epoch == config.epoch);
        let list = |node| reports.and_then(|reports| reports.lists.get(&node)).map(Vec::as_slice);
        Some(progress(&config, it.to, list, |volume| map.may_be_led(volume, pg)))
    }

    /// What the nodes that have been heard of say of their room. From then on no move is begun to a node that
    /// is not among them, or would be filled by it beyond [`TARGET_FILL_MAX_PERCENT`].
    pub fn set_rooms(&mut self, rooms: BTreeMap<NodeId, Room>) {
        self.rooms = Some(rooms);
    }

    /// Says what is to be done now. Wanted about once in a second. What it has said is said again until it
    /// has been done.
    pub fn step(&mut self, map: &ClusterMap, out: &mut Vec<Action>) {
        self.go_on(map, 1, out);
        self.age_sizes();
    }

    /// As [`Mover::step`], between two of them: something has just changed.
    pub fn step_between(&mut self, map: &ClusterMap, out: &mut Vec<Action>) {
        self.go_on(map, 0, out);
    }

    fn go_on(&mut self, map: &ClusterMap, steps: u32, out: &mut Vec<Action>) {
        self.reports.retain(|pg, _| map.moves.active.contains_key(pg));
        if map.moves.paused {
            return;
        }
        for (pg, it) in map.moves.active.iter() {
            self.take_further(map, *pg, it, steps, out);
        }
        self.plan(map, out);
    }

    fn take_further(&mut self, map: &ClusterMap, pg: PgId, it: &Move, steps: u32, out: &mut Vec<Action>) {
        let Some(config) = map.members(pg).map(|pg| pg.config()) else { return };
        let up = |node: NodeId| map.nodes.get(&node).is_some_and(|node| node.up && !node.lost);
        let reports = self.reports.entry(pg).or_default();
        reports.at(config.epoch);
        let epoch = config.epoch;
        reports.stalled = if up(it.to) { 0 } else { reports.stalled.saturating_add(steps) };
        if reports.stalled > STALLED_STEPS_MAX {
            return out.push(Action::Propose(Command::UndoMove { pg, epoch }));
        }
        let mut found = Progress::default();
        if let Some(progress) = self.progress(map, pg) {
            found = progress;
        }
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::final_without_check() && it.stage(&config) == super::MoveStage::Joint {
            found.ready = true;
        }
        if found.ready {
            return out.push(Action::Propose(Command::AdvanceMove { pg, epoch }));
        }
        let Some(reports) = self.reports.get_mut(&pg) else { return };
        // What the old set has answered in this epoch stays good; how far the new node is changes.
        let asks = |node: &NodeId| *node == it.to || !reports.lists.contains_key(node);
        let fences = || {
            let granted = map.volumes.iter().filter(|(_, volume)| volume.pool == pg.pool);
            let granted = granted.map(|(id, volume)| (*id, volume.generation));
            granted.filter(|(_, generation)| generation.0 > 0).collect()
        };
        for node in config.everyone().into_iter().filter(|node| asks(node)) {
            out.push(Action::List { node, request: ListRequest { pg, epoch, fences: fences() } });
        }
        let lacking = found.lacking.len();
        let first = if reports.cursor < lacking { reports.cursor } else { 0 };
        let turn = found.lacking.iter().skip(first).take(OPENS_PER_STEP);
        out.extend(turn.map(|volume| Action::Open(GroupId { volume: *volume, pg })));
        reports.cursor = first + OPENS_PER_STEP;
    }
}

impl Reports {
    /// Forgets what is of another epoch.
    fn at(&mut self, epoch: Epoch) {
        if self.epoch != epoch {
            *self = Reports { epoch, ..Reports::default() };
        }
    }
}

#[cfg(test)]
mod tests;
