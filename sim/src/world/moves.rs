//! Placement groups that move: the monitors' map and mover, and how the news of it travels.
//!
//! The map and the mover are the daemons' own ([`trefoil_core::map`]). What is made up: who wishes for a
//! move, when a node or a front end hears of it (late, or by being refused), and that whatever took part in
//! a step crashes right behind it.

use super::net::{MONITOR, host_end};
use super::{Event, World};
use crate::check;
use crate::coverage::Cover;
use crate::plan::{MovesPlan, NODES_MAX, POOL};
use rustc_hash::FxHashMap;
use trefoil_core::crush::pg_ancestors;
use trefoil_core::map::mover::{Action, Limits, Mover};
use trefoil_core::map::{ClusterMap, Command, Grant, Holder, HolderKind, MapError, MoveStage, Reply};
use trefoil_core::message::{GroupList, ListRequest, ListedGroup};
use trefoil_core::node::Input;
use trefoil_core::placement::PgConfig;
use trefoil_core::{Ballot, Epoch, Generation, GroupId, NodeId, PgId, VolumeId};

/// What the run has of moves.
pub struct Moves {
    /// What the seed decided.
    pub plan: MovesPlan,
    /// The monitors'.
    pub(super) map: ClusterMap,
    pub(super) mover: Mover,
    /// Every configuration that each placement group has had, by epoch less one.
    pub(super) history: Vec<Vec<PgConfig>>,
    /// The configurations that each node has heard of, and keeps over restarts.
    heard: [Vec<PgConfig>; NODES_MAX],
    /// The epoch that each ballot was opened in.
    opened: FxHashMap<(GroupId, Ballot), Epoch>,
    /// A split is wished for, and waits until nothing moves.
    pub(super) split_wanted: bool,
    /// The next one is wished for then.
    pub(super) split_after: u64,
}

pub(super) fn pg_id(pg: usize) -> PgId {
    PgId { pool: POOL, pg: pg as u32 }
}

impl Moves {
    fn new(plan: &MovesPlan, map: ClusterMap, pgs: &[PgConfig]) -> Moves {
        Moves {
            mover: new_mover(plan.crush),
            plan: plan.clone(),
            map,
            history: pgs.iter().map(|config| vec![config.clone()]).collect(),
            heard: std::array::from_fn(|_| pgs.to_vec()),
            opened: FxHashMap::default(),
            split_wanted: false,
            split_after: 0,
        }
    }

    /// What a node that starts knows of placement groups.
    pub(super) fn heard(&self, ni: usize) -> Vec<PgConfig> {
        self.heard[ni].clone()
    }

    /// The configuration that a ballot was opened in.
    pub(super) fn config_of(&self, group: GroupId, ballot: Ballot) -> Option<&PgConfig> {
        // Or in the group that this one has split off from since. None of its own ballots is one of that.
        let mut groups = std::iter::once(group.pg.pg).chain(pg_ancestors(group.pg.pg));
        groups.find_map(|pg| {
            let group = GroupId { pg: PgId { pg, ..group.pg }, ..group };
            let epoch = self.opened.get(&(group, ballot))?;
            self.history[pg as usize].iter().find(|config| config.epoch == *epoch)
        })
    }

    pub(super) fn ballot_opened(&mut self, group: GroupId, ballot: Ballot, epoch: Epoch) {
        self.opened.entry((group, ballot)).or_insert(epoch);
    }

    /// A generation was granted.
    pub(super) fn granted(&mut self, volume: VolumeId, generation: u64) -> bool {
        let (seen, above) = (Generation(generation - 1), Generation(0));
        let holder = Holder { name: "sim".to_owned(), boot: 1, kind: HolderKind::FrontEnd };
        let grants = vec![Grant { volume, seen, above }];
        self.map.apply(&Command::GrantGenerations { grants, holder }).is_ok()
    }
}

pub(super) fn plan_split(plan: &crate::plan::Plan) -> Option<crate::plan::Span> {
    plan.moves.as_ref().and_then(|moves| moves.split_every)
}

pub(super) fn new_mover(crush: bool) -> Mover {
    Mover::new(if crush { Limits::default() } else { Limits { cluster: 0, node: 0 } })
}

fn pg_of_move(command: &Command) -> Option<usize> {
    match command {
        Command::StartMove { pg, .. } | Command::AdvanceMove { pg, .. } | Command::UndoMove { pg, .. } => {
            Some(pg.pg as usize)
        }
        _ => None,
    }
}

impl World {
    /// Moves begin to happen.
    pub(super) fn start_moves(&mut self, map: ClusterMap) {
        let Some(plan) = &self.plan.moves else { return };
        self.moves = Some(Box::new(Moves::new(plan, map, &self.plan.pgs)));
        self.queue.push(0, Event::MoverStep);
        self.queue.push(0, Event::MoveWish);
        if let Some(every) = plan_split(&self.plan) {
            self.queue.push(self.rng.between(every.0, every.1), Event::SplitWish);
        }
    }

    /// Faults have stopped: what was begun is finished, and nothing more is begun.
    pub(super) fn finish_moves(&mut self) {
        let resume = Command::PauseMoves { paused: false };
        if self.moves.is_some() {
            self.propose(&resume);
        }
        if let Some(moves) = &mut self.moves {
            moves.mover = new_mover(false);
        }
    }

    /// Nothing is on the move.
    pub(super) fn nothing_moves(&self) -> bool {
        self.moves.as_ref().is_none_or(|moves| moves.map.moves.active.is_empty())
    }

    /// Nodes that still have something of a placement group in which they take no part.
    pub(super) fn not_empty(&self) -> Option<String> {
        self.moves.as_ref()?;
        self.nodes.iter().enumerate().find_map(|(ni, node)| {
            let node_id = NodeId(ni as u32);
            let outside = |pg: PgId| !self.plan.pgs[pg.pg as usize].takes_part(node_id);
            let has = |(group, state): (&GroupId, &trefoil_core::record::GroupState)| {
                let some = !state.objects.is_empty() || !state.behind.is_empty();
                (outside(group.pg) && some).then_some(*group)
            };
            let table = node.store.durable.tables.keys().map(|object| object.group).find(|g| outside(g.pg));
            let group = node.store.state.groups.iter().find_map(has).or(table)?;
            Some(format!("node.{ni} has left {group}, and still has something of it"))
        })
    }

    /// Somebody wants a move, or the end of one.
    pub(super) fn move_wish(&mut self) {
        let Some(plan) = self.moves.as_ref().map(|moves| moves.plan.clone()) else { return };
        if !self.faulty {
            return;
        }
        let next = self.now + self.rng.between(plan.wish_every.0, plan.wish_every.1);
        self.queue.push(next, Event::MoveWish);
        let undo = self.rng.percent(plan.undo_percent);
        let pg = self.rng.index(self.plan.pgs.len());
        let (config, id) = (self.plan.pgs[pg].clone(), pg_id(pg));
        let Some(moves) = &self.moves else { return };
        let active = moves.map.moves.active.contains_key(&id);
        // Now and then by one who has not heard of the last step.
        let late = self.rng.one_in(8) && config.epoch > Epoch(1);
        let epoch = if late { Epoch(config.epoch.0 - 1) } else { config.epoch };
        if active && undo {
            return self.propose(&Command::UndoMove { pg: id, epoch });
        }
        if self.rng.one_in(30) {
            let paused = !self.moves.as_ref().is_some_and(|moves| moves.map.moves.paused);
            return self.propose(&Command::PauseMoves { paused });
        }
        let waits = self.moves.as_ref().is_some_and(|moves| moves.split_wanted);
        if active || plan.crush || waits {
            return;
        }
        let from = config.new[self.rng.index(config.new.len())];
        let others: Vec<NodeId> =
            (0..self.plan.nodes as u32).map(NodeId).filter(|node| !config.is_member(*node)).collect();
        if others.is_empty() {
            return;
        }
        let to = others[self.rng.index(others.len())];
        self.propose(&Command::StartMove { pg: id, epoch, from, to });
    }

    /// The mover's turn, at whichever monitor leads.
    pub(super) fn mover_step(&mut self) {
        let Some(moves) = &mut self.moves else { return };
        self.queue.push(self.now + moves.plan.step, Event::MoverStep);
        if self.replicas.is_some() {
            self.movers_step();
            return self.spread_news();
        }
        if self.monitor.down_until > self.now {
            return;
        }
        if self.faulty && self.rng.one_in(20) {
            // Another monitor leads; what was answered is forgotten.
            moves.mover = new_mover(moves.plan.crush && !moves.split_wanted);
        }
        let mut actions = Vec::new();
        moves.mover.step(&moves.map, &mut actions);
        for action in actions {
            match action {
                Action::List { node, request } => {
                    let ni = node.0 as usize;
                    let (at, life) = (self.arrival(MONITOR, ni), self.nodes[ni].life);
                    self.queue.push(at, Event::List { ni, life, by: 0, request });
                }
                Action::Open(group) => self.volume_differs(group),
                Action::Propose(command) => {
                    self.propose(&command);
                    if self.violation.is_some() {
                        return;
                    }
                }
            }
        }
        self.spread_news();
    }

    /// Those who have missed it hear of it some time, unless they have been told otherwise by then.
    fn spread_news(&mut self) {
        let seldom = self.plan.moves.as_ref().map_or(1, |plan| plan.news_one_in);
        for ni in 0..self.plan.nodes {
            let behind = |moves: &Moves| moves.heard[ni] != self.plan.pgs;
            if self.moves.as_ref().is_some_and(|moves| behind(moves)) && self.rng.one_in(seldom) {
                let (at, life) = (self.arrival(MONITOR, ni), self.nodes[ni].life);
                let configs = self.some_map();
                self.queue.push(at, Event::NodeMap { ni, life, configs });
            }
        }
        for li in 0..self.leaders.len() {
            if self.leaders[li].machine.is_some() && self.rng.one_in(seldom) {
                self.tell_leader_map(li);
            }
        }
    }

    /// A leader asks for the map, or is told.
    pub(super) fn tell_leader_map(&mut self, li: usize) {
        if self.monitor.down_until > self.now {
            return;
        }
        let at = self.arrival(MONITOR, host_end(self.leaders[li].host));
        let known = self.some_map();
        if plan_split(&self.plan).is_some() {
            return self.queue.push(at, Event::LeaderMap { li, pgs: known.iter().collect() });
        }
        for (pg, config) in known.into_iter().enumerate() {
            if config.epoch > Epoch(1) {
                self.queue.push(at, Event::Config { li, pg: pg as u32, config });
            }
        }
    }

    /// A command is committed, or refused.
    pub(super) fn propose(&mut self, command: &Command) {
        if self.replicas.is_some() {
            return self.wish(command.clone());
        }
        let pg = pg_of_move(command);
        let Some(moves) = &mut self.moves else { return };
        let applied = moves.map.apply(command);
        self.moved(pg, command, applied);
    }

    /// A command has been committed: what it does to the world. `map`: with it.
    pub(super) fn committed_move(
        &mut self,
        command: &Command,
        applied: Result<Reply, MapError>,
        map: ClusterMap,
    ) {
        let Some(moves) = &mut self.moves else { return };
        moves.map = map;
        let pg = pg_of_move(command);
        if pg.is_some() || matches!(command, Command::PauseMoves { .. } | Command::SetPgNum { .. }) {
            self.moved(pg, command, applied);
        }
    }

    fn moved(&mut self, pg: Option<usize>, command: &Command, applied: Result<Reply, MapError>) {
        let before = pg.map(|pg| self.plan.pgs[pg].clone());
        if self.trace.wanted() {
            self.say(None, format!("{command:?}: {applied:?}"));
        }
        if applied.is_err() && matches!(command, Command::SetPgNum { .. }) {
            return self.coverage.count(Cover::SplitsRefused);
        }
        if applied.is_err() {
            return self.coverage.count(Cover::StaleMoves);
        }
        if let Command::SetPgNum { .. } = command {
            return self.pool_is_split();
        }
        let (Some(pg), Some(before), Some(moves)) = (pg, before, &mut self.moves) else { return };
        let Some(config) = moves.map.members(pg_id(pg)).map(|pg| pg.config()) else { return };
        moves.history[pg].push(config.clone());
        let joint = before.old != before.new;
        self.coverage.count(match command {
            Command::StartMove { .. } => Cover::MovesStarted,
            Command::AdvanceMove { .. } if joint => Cover::MovesFinal,
            Command::AdvanceMove { .. } => Cover::MovesJoint,
            _ if joint => Cover::JointUndone,
            _ => Cover::MovesUndone,
        });
        self.plan.pgs[pg] = config.clone();
        self.calm_moved();
        self.changed(pg_id(pg), &config);
        self.crash_behind(&before, &config);
    }

    /// Placement groups have changed, this one among them: the news goes out.
    pub(super) fn changed(&mut self, pg: PgId, config: &PgConfig) {
        // From here on the next leader may be of the new epoch.
        for slot in 0..check::SLOTS {
            let (volume, index) = check::object_of(slot);
            if self.plan.pg(volume, index).0 == pg {
                self.check_choice(slot);
            }
        }
        let news = self.plan.moves.as_ref().map_or((0, 0), |plan| plan.news_take);
        for ni in 0..self.plan.nodes {
            let (at, life) = (self.now + self.rng.between(news.0, news.1), self.nodes[ni].life);
            let configs = self.plan.pgs.clone();
            self.queue.push(at, Event::NodeMap { ni, life, configs });
        }
        for li in 0..self.leaders.len() {
            if self.leaders[li].machine.is_some() {
                let at = self.now + self.rng.between(news.0, news.1);
                self.queue.push(
                    at,
                    match plan_split(&self.plan) {
                        None => Event::Config { li, pg: pg.pg, config: config.clone() },
                        // Of one map: which objects a group has goes with its epoch.
                        Some(_) => Event::LeaderMap { li, pgs: self.plan.pgs.iter().collect() },
                    },
                );
            }
        }
    }

    /// Something that took part in the step crashes.
    pub(super) fn crash_behind(&mut self, before: &PgConfig, after: &PgConfig) {
        let percent = self.plan.moves.as_ref().map_or(0, |plan| plan.crash_percent);
        if !self.faulty || !self.rng.percent(percent) {
            return;
        }
        self.coverage.count(Cover::MoveCrashes);
        let mut nodes = before.everyone();
        nodes.extend(after.everyone());
        match self.rng.below(8) {
            0 => (0..self.plan.nodes).for_each(|ni| self.crash_for_a_while(ni)),
            1 | 2 => {
                let alive: Vec<usize> =
                    (0..self.leaders.len()).filter(|li| self.leaders[*li].machine.is_some()).collect();
                if !alive.is_empty() {
                    let li = alive[self.rng.index(alive.len())];
                    self.kill_leader(li);
                }
            }
            _ => {
                let ni = nodes[self.rng.index(nodes.len())].0 as usize;
                self.crash_for_a_while(ni);
            }
        }
    }

    pub(super) fn crash_for_a_while(&mut self, ni: usize) {
        self.crash_node(ni);
        let lasts = self.rng.magnitude(self.plan.fault_lasts.0, self.plan.fault_lasts.1);
        self.queue.push(self.now + lasts, Event::NodeStarts { ni });
    }

    /// A node hears of placement groups.
    pub(super) fn node_map(&mut self, ni: usize, configs: Vec<PgConfig>) {
        let Some(moves) = &mut self.moves else { return };
        let mut news = Vec::new();
        let heard = &mut moves.heard[ni];
        for (pg, config) in configs.into_iter().enumerate() {
            // An older one than it has is no news.
            match heard.get_mut(pg) {
                Some(known) if config.epoch <= known.epoch => continue,
                Some(known) => *known = config.clone(),
                None => heard.push(config.clone()),
            }
            news.push((pg_id(pg), config));
        }
        if !news.is_empty() {
            let pools = moves.heard[ni].len();
            self.tell_pools(ni, pools);
            self.node_input(ni, Input::Config(news));
        }
    }

    /// A node has the newest map.
    pub(super) fn node_has_newest(&mut self, ni: usize) {
        if let Some(moves) = &mut self.moves {
            moves.heard[ni].clone_from(&self.plan.pgs);
        }
    }

    /// `by`: the monitor that asks.
    pub(super) fn list(&mut self, ni: usize, by: usize, request: ListRequest) {
        self.node_input(ni, Input::List { id: by as u64, request });
        let percent = self.plan.moves.as_ref().map_or(0, |plan| plan.crash_percent);
        if self.faulty && self.rng.percent(percent / 8) {
            self.coverage.count(Cover::MoveCrashes);
            self.crash_for_a_while(ni);
        }
    }

    /// The answer to a List has come to the monitors.
    pub(super) fn listed(&mut self, ni: usize, by: usize, mut list: GroupList) {
        if std::mem::take(&mut list.amnesia) {
            // As the mover would: but objects are where the plan says, not where the map's hash does.
            let named: Vec<VolumeId> = list.groups.iter().map(|group| group.volume).collect();
            let of_plan = (0..self.plan.objects as u32)
                .flat_map(|index| self.plan.volume_ids().map(move |volume| (volume, index)));
            let mut there: Vec<VolumeId> = of_plan
                .filter(|(volume, index)| {
                    self.plan.pg(*volume, *index).0 == list.pg && !named.contains(volume)
                })
                .map(|(volume, _)| volume)
                .collect();
            there.sort_unstable();
            there.dedup();
            list.groups.extend(there.into_iter().map(ListedGroup::forgotten));
        }
        if self.replicas.is_some() {
            return self.listed_to(ni, by, list);
        }
        if self.monitor.down_until > self.now {
            return;
        }
        self.coverage.count(Cover::Lists);
        if let Some(moves) = &mut self.moves {
            moves.mover.listed(&moves.map, NodeId(ni as u32), list);
        }
    }

    /// A node leaves a placement group.
    pub(super) fn node_leaves(&mut self, ni: usize, pg: PgId) {
        let nodes = &self.nodes;
        let (node, before) = (NodeId(ni as u32), &self.given[ni]);
        let some = before.groups.iter().any(|(group, state)| group.pg == pg && !state.objects.is_empty());
        let checked = check::i5_deletion::check(&self.plan, node, before, pg, |n| &nodes[n].store);
        if some {
            self.coverage.count(Cover::Left);
        }
        self.note(checked);
    }

    /// What is on the move, for people.
    pub(super) fn moves_now(&self) -> String {
        let Some(moves) = &self.moves else { return String::new() };
        let one = |(pg, it): (&PgId, &trefoil_core::map::Move)| {
            let config = &self.plan.pgs[pg.pg as usize];
            let stage = match it.stage(config) {
                MoveStage::Learn => "learn",
                MoveStage::Joint => "joint",
            };
            let progress = moves.mover.progress(&moves.map, *pg);
            format!("{pg} {stage} from {} to {}: {progress:?}", it.from, it.to)
        };
        moves.map.moves.active.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}
