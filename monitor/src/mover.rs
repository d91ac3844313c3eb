//! Placement groups on the move: the shell around [`Mover`], at the monitor that leads.
//!
//! About once in a second, and at once when something has got on, the mover says what is to be done. What is to be
//! proposed is proposed, under the reign's number. What is to be asked of a node waits at the [`Desk`] until
//! the node asks for it ([`Service::node_work`]); its answer comes as a request of its own. Groups that their
//! leader is to open are told with the renewal of its lease, or the volume is given to a healer (`grants`).
//!
//! Nothing here outlives a reign: a new leader asks again. Nothing here decides what a step may rest on: that is
//! the mover's, and the map's, which refuses a step whose proposer saw another epoch.

use crate::reign::Reign;
use crate::rpc::*;
use crate::service::{Result, Service, known_node};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use trefoil_core::map::mover::{Action, Mover};
use trefoil_core::map::outs::Room;
use trefoil_core::map::{ClusterMap, Command, MapError, MoveStage, Reply, VOLUMES_MAX};
use trefoil_core::message::{GroupList, ListRequest, ListedGroup};
use trefoil_core::{Epoch, Generation, GroupId, Incarnation, NodeId, PgId, Time, VolumeId};

/// Time between two steps of the mover.
const STEP: Duration = Duration::from_secs(1);
/// The pause before a step that comes early.
const HURRY: Duration = Duration::from_millis(50);
/// How often somebody who waits for work looks whether this monitor still leads.
const LOOK: Duration = Duration::from_millis(500);
/// How long the nodes of a placement group are waited for that somebody wants to see.
const SHOW_WAIT: Duration = Duration::from_secs(3);
/// Placement groups that are shown at once. Beyond it the asker is told to come again.
const SHOWN_MAX: usize = 8;
/// Entries of lists and of their fences in one answer to a node, beyond the first list.
const ENTRIES_PER_ANSWER_MAX: usize = 2 * VOLUMES_MAX;

/// What is known of a move for people.
#[derive(Copy, Clone, Debug)]
struct Seen {
    began: Time,
    behind_max: u64,
}

/// A placement group that somebody wants to see.
#[derive(Debug, Default)]
struct Shown {
    epoch: Epoch,
    /// How many wait for it.
    askers: usize,
    answers: BTreeMap<NodeId, Vec<ListedGroup>>,
}

/// See the module. Part of the reign's soft state.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    mover: Mover,
    /// What nodes are to be asked, until they have fetched it.
    wanted: BTreeMap<NodeId, BTreeMap<PgId, ListRequest>>,
    /// Groups that their leader is to open, as of the last step.
    opens: BTreeSet<GroupId>,
    seen: BTreeMap<PgId, Seen>,
    shown: BTreeMap<PgId, Shown>,
}

impl Desk {
    /// One step: what is to be proposed.
    fn step(
        &mut self,
        map: &ClusterMap,
        rooms: BTreeMap<NodeId, Room>,
        regular: bool,
        now: Time,
    ) -> Vec<Command> {
        let mut actions = Vec::new();
        self.mover.set_rooms(rooms);
        match regular {
            true => self.mover.step(map, &mut actions),
            false => self.mover.step_between(map, &mut actions),
        }
        // All that is still wanted has been said again.
        self.wanted.clear();
        self.opens.clear();
        let mut proposals = Vec::new();
        for action in actions {
            match action {
                Action::List { node, request } => {
                    self.wanted.entry(node).or_default().insert(request.pg, request);
                }
                Action::Open(group) => {
                    self.opens.insert(group);
                }
                Action::Propose(command) => proposals.push(command),
            }
        }
        let shown: Vec<PgId> = self.shown.keys().copied().collect();
        shown.into_iter().for_each(|pg| self.ask_for(map, pg));
        self.seen.retain(|pg, _| map.moves.active.contains_key(pg));
        for pg in map.moves.active.keys() {
            let behind = self.mover.progress(map, *pg).map_or(0, |it| it.behind);
            let seen = self.seen.entry(*pg).or_insert(Seen { began: now, behind_max: 0 });
            seen.behind_max = seen.behind_max.max(behind);
        }
        proposals
    }

    /// Wants to know of every node that takes part what it has of a placement group that is shown. With the
    /// same fences as the mover's: whichever question an answer is to, it says the same.
    fn ask_for(&mut self, map: &ClusterMap, pg: PgId) {
        let Some(config) = map.members(pg).map(|pg| pg.config()) else { return };
        let Some(shown) = self.shown.get_mut(&pg) else { return };
        let epoch = config.epoch;
        if shown.epoch != epoch {
            (shown.epoch, shown.answers) = (epoch, BTreeMap::new());
        }
        for node in config.everyone().into_iter().filter(|node| !shown.answers.contains_key(node)) {
            let request = ListRequest { pg, epoch, fences: fences(map, pg) };
            self.wanted.entry(node).or_default().entry(pg).or_insert(request);
        }
    }

    /// What a node is to be asked now; it is not asked again before the next step.
    fn take(&mut self, node: NodeId) -> Vec<ListRequest> {
        let Some(wanted) = self.wanted.get_mut(&node) else { return Vec::new() };
        let (mut taken, mut entries) = (Vec::new(), 0);
        while let Some(first) = wanted.first_entry() {
            entries += first.get().fences.len();
            if taken.len() >= LISTS_PER_ANSWER_MAX || (!taken.is_empty() && entries > ENTRIES_PER_ANSWER_MAX)
            {
                break;
            }
            taken.push(first.remove());
        }
        if wanted.is_empty() {
            self.wanted.remove(&node);
        }
        taken
    }

    /// A node has answered. True if a move can get on by it.
    fn listed(&mut self, map: &ClusterMap, node: NodeId, list: GroupList) -> bool {
        let pg = list.pg;
        if let Some(shown) = self.shown.get_mut(&pg)
            && shown.epoch == list.epoch
            && map.members(pg).is_some_and(|config| config.takes_part(node))
        {
            shown.answers.insert(node, list.groups.clone());
        }
        self.mover.listed(map, node, list);
        self.mover.progress(map, pg).is_some_and(|it| it.ready)
    }

    /// Of these volumes, the groups that their leader is to open.
    pub fn opens_of(&self, volumes: impl Iterator<Item = VolumeId>) -> impl Iterator<Item = GroupId> {
        let volumes: BTreeSet<VolumeId> = volumes.collect();
        self.opens.iter().filter(move |group| volumes.contains(&group.volume)).copied()
    }

    /// Volumes that have such a group.
    pub fn volumes_to_open(&self) -> BTreeSet<VolumeId> {
        self.opens.iter().map(|group| group.volume).collect()
    }

    /// What is on the move.
    pub fn status(&self, map: &ClusterMap, now: Time) -> MovesStatus {
        let moves = map.moves.active.iter().filter_map(|(pg, it)| {
            let config = map.members(*pg)?.config();
            let found = self.mover.progress(map, *pg)?;
            let seen = self.seen.get(pg);
            Some(MoveStatus {
                pg: *pg,
                from: it.from,
                to: it.to,
                epoch: config.epoch,
                joint: it.stage(&config) == MoveStage::Joint,
                answered: found.answered as u32,
                members: config.old.len() as u32,
                // At most VOLUMES_MAX each.
                groups: found.groups as u32,
                lacking: found.lacking.len() as u32,
                behind: found.heard.then_some(found.behind),
                behind_max: seen.map_or(0, |seen| seen.behind_max).max(found.behind),
                age: seen.map_or(0, |seen| now.since(seen.began)),
            })
        });
        MovesStatus {
            paused: map.moves.paused,
            limits: map.moves.limits,
            held: map.moves.held.iter().copied().collect(),
            moves: moves.collect(),
            waits: self.mover.waits().iter().map(|(why, count)| (*why, *count)).collect(),
        }
    }
}

/// The last granted generation of every volume of the placement group's pool.
fn fences(map: &ClusterMap, pg: PgId) -> Vec<(VolumeId, Generation)> {
    let volumes = map.volumes.iter().filter(|(_, volume)| volume.pool == pg.pool && volume.generation.0 > 0);
    volumes.map(|(id, volume)| (*id, volume.generation)).collect()
}

/// Steps, for ever.
pub(crate) async fn run(service: Rc<Service>) {
    let mut next = Instant::now();
    loop {
        let Ok(reign) = service.reign() else {
            sleep(STEP).await;
            continue;
        };
        let regular = timeout_at(next, reign.hurry.notified()).await.is_err();
        if regular {
            next = Instant::now() + STEP;
        } else {
            sleep(HURRY).await;
        }
        // A reign that is over proposes nothing: its number would be refused.
        if service.leads_lately() {
            service.mover_step(&reign, regular).await;
        }
    }
}

impl Service {
    async fn mover_step(&self, reign: &Reign, regular: bool) {
        let map = self.map();
        if map.restored.unchecked {
            if let Err(error) = self.settle_layout(reign).await {
                tracing::debug!(%error, "where placement groups live is not agreed on yet");
            }
            return;
        }
        let proposals = {
            let (soft, now) = (&mut *reign.soft.borrow_mut(), self.now());
            let heard = soft.heartbeats.iter().filter(|(id, it)| {
                it.bytes_total > 0 && soft.liveness.known(**id) && soft.liveness.silent(**id, now).is_none()
            });
            // One that is full has no room, whatever its numbers say.
            let room = |it: &Heartbeat| Room {
                total: it.bytes_total,
                used: if it.full { it.bytes_total } else { it.bytes_used },
            };
            let rooms = heard.map(|(id, it)| (*id, room(it))).collect();
            soft.desk.step(&map, rooms, regular, now)
        };
        reign.work.notify_waiters();
        let mut changed = false;
        for command in proposals {
            match self.propose(reign, command.clone()).await {
                Ok(_) => {
                    tracing::info!(?command, "a placement group's move gets on");
                    changed = true;
                }
                // Somebody was faster, or a node went down meanwhile: the next step sees it.
                Err(RpcError::Refused(error)) => tracing::debug!(?command, %error, "not moved"),
                Err(error) => {
                    tracing::debug!(%error, "moves wait");
                    return;
                }
            }
        }
        if changed {
            reign.hurry.notify_one();
        }
    }

    /// What a node is asked, as soon as there is something.
    pub async fn node_work(&self, node: NodeId, incarnation: Incarnation, timeout: u64) -> Result<Response> {
        let deadline = Instant::now() + Duration::from_micros(timeout.min(WAIT_MAX));
        loop {
            // Another monitor may lead by now: then it is that one's to ask.
            let reign = self.reign()?;
            if !self.leads_lately() {
                return Err(self.not_leading("no majority of monitors answers it"));
            }
            known_node(&self.map(), node, incarnation)?;
            let work = reign.work.notified();
            let lists = reign.soft.borrow_mut().desk.take(node);
            let layout = reign.soft.borrow_mut().layouts.wants(&self.map(), node, self.now());
            if !lists.is_empty() || layout || Instant::now() >= deadline {
                return Ok(Response::NodeWork { lists, layout });
            }
            // Rung or not: it is time to look.
            let _ = timeout_at(deadline.min(Instant::now() + LOOK), work).await;
        }
    }

    /// A node has answered what it was asked.
    pub fn listed(&self, node: NodeId, incarnation: Incarnation, list: GroupList) -> Result<Reply> {
        let reign = self.reign()?;
        let map = self.map();
        known_node(&map, node, incarnation)?;
        if list.groups.len() > VOLUMES_MAX {
            let text = format!("a list of {} groups: there are at most {VOLUMES_MAX}", list.groups.len());
            return Err(RpcError::Malformed(text));
        }
        if reign.soft.borrow_mut().desk.listed(&map, node, list) {
            reign.hurry.notify_one();
        }
        reign.answered.notify_waiters();
        Ok(Reply::Done)
    }

    /// What is on the move.
    pub async fn moves(&self) -> Result<Response> {
        let reign = self.confirmed_reign().await?;
        let status = reign.soft.borrow().desk.status(&self.map(), self.now());
        Ok(Response::Moves(Box::new(status)))
    }

    /// Undoes a move, and begins none until moves are resumed.
    pub async fn undo_move(&self, pg: PgId) -> Result<Reply> {
        let reign = self.reign()?;
        let map = self.map();
        let Some(epoch) = map.members(pg).map(|config| config.epoch) else { return Err(no_pg(pg)) };
        self.propose(&reign, Command::HoldMove { pg, epoch }).await
    }

    /// What the nodes of a placement group say that they have of it.
    pub async fn pg(&self, pg: PgId) -> Result<Response> {
        let reign = self.confirmed_reign().await?;
        {
            let desk = &mut reign.soft.borrow_mut().desk;
            if desk.shown.len() >= SHOWN_MAX && !desk.shown.contains_key(&pg) {
                let text = format!("more than {SHOWN_MAX} placement groups are being asked for: try again");
                return Err(RpcError::Malformed(text));
            }
            desk.shown.entry(pg).or_default().askers += 1;
        }
        // Given back however this ends.
        let _asker = Asker { reign: reign.clone(), pg };
        let deadline = Instant::now() + SHOW_WAIT;
        loop {
            let answered = reign.answered.notified();
            let map = self.map();
            let Some(config) = map.members(pg).map(|config| config.config()) else { return Err(no_pg(pg)) };
            let status = {
                let desk = &mut reign.soft.borrow_mut().desk;
                desk.ask_for(&map, pg);
                let answers = desk.shown.get(&pg).map(|shown| &shown.answers);
                let answer = |node| answers.and_then(|answers| answers.get(&node)).cloned();
                let copies = config.everyone().into_iter().map(|node| (node, answer(node))).collect();
                PgStatus { config, copies }
            };
            reign.work.notify_waiters();
            let all = status.copies.iter().all(|(_, groups)| groups.is_some());
            if all || timeout_at(deadline, answered).await.is_err() {
                return Ok(Response::Pg(Box::new(status)));
            }
        }
    }
}

fn no_pg(pg: PgId) -> RpcError {
    MapError::Missing { what: "placement group".to_owned(), name: pg.to_string() }.into()
}

/// Somebody who waits for what is shown.
struct Asker {
    reign: Rc<Reign>,
    pg: PgId,
}

impl Drop for Asker {
    fn drop(&mut self) {
        let shown = &mut self.reign.soft.borrow_mut().desk.shown;
        if let Some(it) = shown.get_mut(&self.pg) {
            it.askers = it.askers.saturating_sub(1);
            if it.askers == 0 {
                shown.remove(&self.pg);
            }
        }
    }
}
