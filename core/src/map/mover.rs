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

use super::{ClusterMap, Command, Move};
use crate::ids::*;
use crate::message::{GroupList, ListRequest, ListedGroup};
use crate::placement::PgConfig;
use std::collections::{BTreeMap, BTreeSet};

/// Moves under way at once, where nobody says otherwise.
pub const MOVES_CLUSTER_DEFAULT: usize = 16;
/// Of these, how many a node may come or go by, where nobody says otherwise.
pub const MOVES_PER_NODE_DEFAULT: usize = 2;
/// Placement groups that are looked at in one step for whether they live where they should.
pub const PLAN_PGS_PER_STEP: usize = 1024;
/// Groups that are asked to be opened in one step, for each move. The others' turn comes.
pub const OPENS_PER_STEP: usize = 64;
/// Steps that the new node may be down before its move is undone, so that another one can take its place.
pub const STALLED_STEPS_MAX: u32 = 600;

/// How much may be under way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Moves in the cluster; at most [`super::MOVES_MAX`].
    pub cluster: usize,
    /// Moves that one node may come or go by.
    pub node: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { cluster: MOVES_CLUSTER_DEFAULT, node: MOVES_PER_NODE_DEFAULT }
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
    /// Groups that they named.
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
    found.ready = majority && list(to).is_some() && found.lacking.is_empty();
    found
}

impl Mover {
    /// One that knows nothing yet.
    pub fn new(limits: Limits) -> Mover {
        Mover { limits, ..Mover::default() }
    }

    /// A node has answered a List. Answers of another epoch than the present one say nothing.
    pub fn listed(&mut self, map: &ClusterMap, node: NodeId, list: GroupList) {
        let Some(pg) = map.members(list.pg).filter(|pg| pg.epoch == list.epoch && pg.takes_part(node)) else {
            return;
        };
        // More groups than there may be volumes are no answer.
        if !map.moves.active.contains_key(&list.pg) || list.groups.len() > super::VOLUMES_MAX {
            return;
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

    /// Says what is to be done now. Wanted about once in a second. What it has said is said again until it
    /// has been done.
    pub fn step(&mut self, map: &ClusterMap, out: &mut Vec<Action>) {
        self.reports.retain(|pg, _| map.moves.active.contains_key(pg));
        if map.moves.paused {
            return;
        }
        for (pg, it) in map.moves.active.iter() {
            self.take_further(map, *pg, it, out);
        }
        self.plan(map, out);
    }

    fn take_further(&mut self, map: &ClusterMap, pg: PgId, it: &Move, out: &mut Vec<Action>) {
        let Some(config) = map.members(pg).map(|pg| pg.config()) else { return };
        let up = |node: NodeId| map.nodes.get(&node).is_some_and(|node| node.up && !node.lost);
        let reports = self.reports.entry(pg).or_default();
        reports.at(config.epoch);
        let epoch = config.epoch;
        reports.stalled = if up(it.to) { 0 } else { reports.stalled + 1 };
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

    /// Starts moves towards where CRUSH wants the placement groups, as far as the limits allow; none while
    /// more than a third of the nodes is away.
    fn plan(&mut self, map: &ClusterMap, out: &mut Vec<Action>) {
        if self.settled == map.layout && map.moves.active.is_empty() {
            return;
        }
        let away = map.nodes.values().filter(|node| !node.up || node.lost).count();
        if away * 3 > map.nodes.len() {
            return;
        }
        let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
        for it in map.moves.active.values() {
            *load.entry(it.from).or_default() += 1;
            *load.entry(it.to).or_default() += 1;
        }
        let most = self.limits.cluster.min(super::MOVES_MAX);
        let mut left = most.saturating_sub(map.moves.active.len());
        let mut placer = map.placer();
        for _ in 0..PLAN_PGS_PER_STEP {
            if left == 0 {
                return;
            }
            let Some(pg) = self.next_pg(map) else { return };
            let Some(pool) = map.pools.get(&pg.pool) else { continue };
            let Some(config) = map.members(pg).map(|pg| pg.config()) else { continue };
            if map.moves.active.contains_key(&pg) {
                self.round = 0; // to be looked at again when it has ended
                continue;
            }
            // A rule that finds too few places is no reason to move anything.
            let Ok(wanted) = placer.place(pg.pool, pool, pg.pg) else { continue };
            let Some(it) = next_move(map, &config, &wanted) else { continue };
            let free = |node| load.get(&node).is_none_or(|moves| *moves < self.limits.node);
            self.round = 0;
            if !free(it.from) || !free(it.to) {
                continue;
            }
            *load.entry(it.from).or_default() += 1;
            *load.entry(it.to).or_default() += 1;
            left -= 1;
            let Move { from, to } = it;
            out.push(Action::Propose(Command::StartMove { pg, epoch: config.epoch, from, to }));
        }
    }

    /// The next placement group, round and round. Behind the last one of a round in which nothing was to be
    /// done, none until the layout changes.
    fn next_pg(&mut self, map: &ClusterMap) -> Option<PgId> {
        let next = match self.cursor {
            None => {
                self.round = map.layout;
                map.pools.keys().next().map(|pool| PgId { pool: *pool, pg: 0 })
            }
            Some(PgId { pool, pg }) if map.pools.get(&pool).is_some_and(|it| pg + 1 < it.pg_num) => {
                Some(PgId { pool, pg: pg + 1 })
            }
            Some(PgId { pool, .. }) => {
                map.pools.range(pool..).find(|(id, _)| **id > pool).map(|(id, _)| PgId { pool: *id, pg: 0 })
            }
        };
        if next.is_none() && self.cursor.is_some() && self.round == map.layout {
            self.settled = map.layout;
        }
        self.cursor = next;
        next
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

/// One member that should not be there, and one that should: first those who are lost or down.
fn next_move(map: &ClusterMap, config: &PgConfig, wanted: &[NodeId]) -> Option<Move> {
    let up = |node: &NodeId| map.nodes.get(node).is_some_and(|node| node.up && !node.lost);
    let to = wanted.iter().copied().find(|node| !config.is_member(*node) && up(node))?;
    let leaves = config.new.iter().copied().filter(|node| !wanted.contains(node));
    let from = leaves.min_by_key(|node| up(node))?;
    Some(Move { from, to })
}

#[cfg(test)]
mod tests;
