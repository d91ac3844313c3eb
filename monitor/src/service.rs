//! Answering requests: the map through Raft, leases and heartbeats from memory.
//!
//! One thread. What only the leader knows is in its [`Reign`].
//!
//! Who does not lead answers who does, with two exceptions: the monitors as it knows them, and the map to those
//! who have one already and want a newer one. A follower's map may lag, and is never behind what the asker
//! has: then it waits. Who wants the map as it is now (`have` 0) is answered by the leader, when a majority
//! has confirmed it.

use crate::grants::volume_statuses;
use crate::health::{self, Facts, Status};
use crate::history::History;
use crate::peers::Peers;
use crate::raft::{ENTRY_BYTES_MAX, Identity, Outcome, Proposal, Raft, SharedMap, reign_of};
use crate::reign::Reign;
use crate::rpc::*;
use crate::scrub::{DOUBTS_PER_REPORT_MAX, OrderError, ScrubReport};
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;
use trefoil_core::limits::CALLERS_MAX;
use trefoil_core::map::heard::Callers;
use trefoil_core::map::lease::LeaseConfig;
use trefoil_core::map::outs::{self, Room};
use trefoil_core::map::reign::Confirmed;
use trefoil_core::map::{ClusterMap, Command, Holder, MapError, Node, Out, Reply, Volume};
use trefoil_core::{Incarnation, NodeId, Time, VolumeId};

/// How long a command may take: the disk, mostly. Longer is answered with "unsure".
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a majority may take to confirm that this monitor leads.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before it is asked again.
const CONFIRM_PAUSE: Duration = Duration::from_millis(20);

/// The monitor, but for its sockets.
pub(crate) struct Service {
    pub raft: Raft,
    pub map: SharedMap,
    pub identity: Identity,
    pub peers: Rc<Peers>,
    /// While this monitor leads.
    pub reign: RefCell<Option<Rc<Reign>>>,
    /// It is letting another monitor come to lead, and begins no reign.
    pub yielding: Cell<bool>,
    pub tasks: RefCell<JoinSet<()>>,
    pub lease: LeaseConfig,
    /// Microseconds.
    pub node_timeout: u64,
    /// Milliseconds; 0: never.
    out_after: u64,
    pub renew: u64,
    /// A leader that no majority has answered for so many milliseconds does not answer either.
    quorum_silent_max: u64,
    clock: Instant,
    /// The maps that were sent last.
    history: RefCell<History>,
}

/// What a service is told of its configuration.
pub(crate) struct Settings {
    pub lease: LeaseConfig,
    /// Microseconds.
    pub renew: u64,
    /// Microseconds.
    pub node_timeout: u64,
    /// Milliseconds; 0: never.
    pub out_after: u64,
    /// Milliseconds.
    pub election_ms: u64,
    /// Random.
    pub boot: u64,
}

/// An answer, with the frame's payload.
pub(crate) struct Answer {
    pub response: Response,
    pub payload: Option<bytes::Bytes>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer { response, payload: None }
    }
}

impl From<(Response, Option<bytes::Bytes>)> for Answer {
    fn from((response, payload): (Response, Option<bytes::Bytes>)) -> Answer {
        Answer { response, payload }
    }
}

impl From<RpcError> for Answer {
    fn from(error: RpcError) -> Answer {
        Response::Error(error).into()
    }
}

pub(crate) type Result<T, E = RpcError> = std::result::Result<T, E>;

/// Milliseconds since 1970, for people. A clock before 1970 says 0.
pub(crate) fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

fn not_ordered(error: OrderError) -> RpcError {
    match error {
        OrderError::TooMany(_) => RpcError::Later(error.to_string()),
        error => RpcError::NotAllowed(error.to_string()),
    }
}

/// The node that has that store.
pub(crate) fn known_node(map: &ClusterMap, node: NodeId, incarnation: Incarnation) -> Result<&Node> {
    let Some(known) = map.nodes.get(&node) else {
        if let Some(node) = map.removed_node(incarnation) {
            return Err(MapError::Removed { node }.into());
        }
        return Err(MapError::Missing { what: "node".to_owned(), name: node.to_string() }.into());
    };
    if known.incarnation != incarnation {
        let (known, given) = (known.incarnation, incarnation);
        return Err(MapError::OtherIncarnation { node, known, given }.into());
    }
    Ok(known)
}

impl Service {
    /// Leads nothing yet.
    pub fn new(
        raft: Raft,
        map: SharedMap,
        identity: Identity,
        peers: Rc<Peers>,
        settings: &Settings,
    ) -> Service {
        Service {
            raft,
            map,
            identity,
            peers,
            reign: RefCell::new(None),
            yielding: Cell::new(false),
            tasks: RefCell::new(JoinSet::new()),
            lease: settings.lease,
            node_timeout: settings.node_timeout,
            out_after: settings.out_after,
            renew: settings.renew,
            quorum_silent_max: settings.election_ms + settings.election_ms / 2,
            clock: Instant::now(),
            history: RefCell::new(History::new(settings.boot)),
        }
    }

    /// The clock of leases and heartbeats: monotonic, and unlike any other process's.
    pub fn now(&self) -> Time {
        Time(self.clock.elapsed().as_micros() as u64)
    }

    /// The map as applied last.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.map.borrow().clone()
    }

    /// Commits a command that was decided in `reign`, and gives its reply.
    pub async fn propose(&self, reign: &Reign, command: Command) -> Result<Reply> {
        // Never waits for a majority that is known to be away.
        if !self.leads_lately() {
            return Err(self.not_leading("no majority of monitors answers it"));
        }
        let proposal = Proposal { reign: reign.leader, at: wall_clock(), command };
        // Checked here, because the map looks at it only when it is in the log, and goes to every monitor.
        let bytes = postcard::to_stdvec(&proposal).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > ENTRY_BYTES_MAX {
            return Err(RpcError::Malformed(format!("a change of {bytes} bytes: at most {ENTRY_BYTES_MAX}")));
        }
        let write = self.raft.client_write(proposal);
        match tokio::time::timeout(COMMIT_TIMEOUT, write).await {
            Ok(Ok(written)) => match written.data {
                Outcome::Done(result) => Ok(result?),
                Outcome::Superseded => Err(self.not_leading("it had begun to lead anew: ask again")),
                Outcome::Nothing => Err(RpcError::Unsure("an entry without a command".to_owned())),
            },
            // It may have been written before the lead was lost, and be carried on by a successor.
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(RpcError::Unsure("another monitor has begun to lead meanwhile".to_owned()))
            }
            Ok(Err(error)) => Err(RpcError::Unsure(error.to_string())),
            Err(_) => Err(RpcError::Unsure(format!(
                "not committed within {} s: is a majority of the monitors there, and are their disks fast enough?",
                COMMIT_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Answers one request. `remember`: the asker is one that follows the map.
    pub async fn answer(self: &Rc<Self>, request: Request, remember: bool) -> Answer {
        match self.try_answer(request, remember).await {
            Ok(answer) => answer,
            Err(error) => error.into(),
        }
    }

    async fn try_answer(self: &Rc<Self>, request: Request, remember: bool) -> Result<Answer> {
        let reply = match request {
            Request::Ping => return Ok(Response::Pong.into()),
            Request::Monitors => return Ok(Response::Monitors(Box::new(self.monitors())).into()),
            Request::AddMonitor { id, address, replaces } => {
                self.clone().add_monitor(id, address, replaces).await?;
                Reply::Done
            }
            Request::RemoveMonitor { id, force } => {
                self.clone().remove_monitor(id, force).await?;
                Reply::Done
            }
            Request::GetMap { have, base } => {
                if have == 0 {
                    self.confirmed_reign().await?;
                }
                return self.send_map(have, base, remember);
            }
            Request::WaitMap { have, base, timeout } => {
                if have == 0 {
                    self.confirmed_reign().await?;
                }
                return self.wait_map(have, base, timeout, remember).await;
            }
            Request::MapPart { of, offset } => return Ok(self.history.borrow().part(of, offset)?.into()),
            Request::Volume { volume } => {
                self.confirmed_reign().await?;
                let map = self.map();
                let found = self.find(&map, &volume).ok().and_then(|id| map.volumes.get(&id));
                return Ok(Response::Info(found.map(|it| Box::new(Volume::clone(it)))).into());
            }
            Request::Heartbeat(heartbeat) => return Ok(self.heartbeat(heartbeat).await?.into()),
            Request::Scrub(report) => return Ok(self.scrub_report(*report)?.into()),
            Request::OrderScrub { pg, deep } => {
                let (reign, now) = (self.confirmed_reign().await?, self.now());
                let ordered = reign.soft.borrow_mut().scrubs.scrub(&self.map(), pg, deep, now);
                ordered.map_err(not_ordered)?;
                return Ok(Response::Done.into());
            }
            Request::Doubts { pg } => {
                let (reign, now) = (self.confirmed_reign().await?, self.now());
                let said = reign.soft.borrow().scrubs.of_pg(&self.map(), pg, now);
                let said = said.ok_or_else(|| not_ordered(OrderError::NoPg(pg)))?;
                return Ok(Response::Doubts(said).into());
            }
            Request::SettleBlocks { volume, index, blocks, from } => {
                let (reign, map, now) = (self.confirmed_reign().await?, self.map(), self.now());
                let id = self.find(&map, &volume)?;
                let settled = reign.soft.borrow_mut().scrubs.settle(&map, (id, index), blocks, from, now);
                settled.map_err(not_ordered)?;
                return Ok(Response::Done.into());
            }
            Request::Attach { volume, holder, above } => {
                return Ok(self.attach(volume, holder, above).await?.into());
            }
            Request::Renew { holder, volumes, nodes } => {
                return Ok(self.renew(holder, volumes, nodes).await?.into());
            }
            Request::Release { volumes } => self.release(volumes).await?,
            Request::LostData { holder, volume, generation, node, incarnation } => {
                return Ok(self.lost_data(holder, (volume, generation), node, incarnation).await?.into());
            }
            Request::HealWork { holder, max } => {
                return Ok(self.heal_work(holder, max).await?.into());
            }
            Request::Events { after, timeout } => return Ok(self.events(after, timeout).await.into()),
            Request::SetNodesOut { nodes } => {
                self.propose(&*self.reign()?, Command::SetNodesOut { nodes }).await?
            }
            Request::Died { daemon, life } => self.died(daemon, life).await?,
            Request::AcknowledgeDeaths { daemons } => {
                self.propose(&*self.reign()?, Command::AcknowledgeDeaths { daemons }).await?
            }
            Request::Mute { code, time_ms, because } => self.mute(code, time_ms, because).await?,
            Request::Unmute { code } => self.unmute(code).await?,
            Request::DrainNode { node, drain, seen } => {
                self.propose(&*self.reign()?, Command::DrainNode { node, drain, seen }).await?
            }
            Request::RemoveNode { node } => {
                let reign = self.reign()?;
                let reply = self.propose(&reign, Command::RemoveNode { node }).await?;
                reign.soft.borrow_mut().forget_node(node);
                reply
            }
            Request::SetPool { pool, change } => {
                self.propose(&*self.reign()?, Command::SetPool { pool, change }).await?
            }
            Request::Status => return Ok(Response::Status(Box::new(self.status().await?)).into()),
            Request::RegisterNode { id, incarnation, address, host, class, size } => {
                let now = wall_clock();
                let command = Command::RegisterNode { id, incarnation, address, host, class, size, now };
                self.propose(&*self.reign()?, command).await?
            }
            Request::CreatePool { name, size, pg_num, domain, ack } => {
                let command = Command::CreatePool { name, size, pg_num, domain, ack };
                self.propose(&*self.reign()?, command).await?
            }
            Request::CreateVolume { name, pool, size, object_size, io_timeout } => {
                let command = Command::CreateVolume { name, pool, size, object_size, io_timeout };
                self.propose(&*self.reign()?, command).await?
            }
            Request::RemoveVolume { volume } => self.remove_volume(volume).await?,
            Request::SetCrush { crush } => self.propose(&*self.reign()?, Command::SetCrush { crush }).await?,
            Request::SetPgNum { pool, seen, pg_num } => {
                self.propose(&*self.reign()?, Command::SetPgNum { pool, seen, pg_num }).await?
            }
            Request::ReplaceCrush { seen, crush } => {
                self.propose(&*self.reign()?, Command::ReplaceCrush { seen, crush }).await?
            }
            Request::NodeWork { node, incarnation, timeout } => {
                return Ok(self.node_work(node, incarnation, timeout).await?.into());
            }
            Request::Listed { node, incarnation, list } => self.listed(node, incarnation, list)?,
            Request::Layout { node, incarnation, report } => self.layout(node, incarnation, report)?,
            Request::Moves => return Ok(self.moves().await?.into()),
            Request::PauseMoves { paused } => {
                self.propose(&*self.reign()?, Command::PauseMoves { paused }).await?
            }
            Request::UndoMove { pg } => self.undo_move(pg).await?,
            Request::SetMoveLimits { limits } => {
                self.propose(&*self.reign()?, Command::SetMoveLimits { limits }).await?
            }
            Request::Pg { pg } => return Ok(self.pg(pg).await?.into()),
        };
        let response = match reply {
            Reply::Node(id) => Response::Node(id),
            Reply::Pool(id) => Response::Pool(id),
            Reply::Volume(id) => Response::Volume(id),
            Reply::Done | Reply::Granted(_) => Response::Done,
        };
        Ok(response.into())
    }

    /// For tests: as if the map were large.
    pub fn set_map_part_bytes(&self, bytes: usize) {
        self.history.borrow_mut().set_part_bytes(bytes);
    }

    fn send_map(&self, have: u64, base: MapId, remember: bool) -> Result<Answer> {
        Ok(self.history.borrow_mut().answer(&self.map(), have, base, remember)?.into())
    }

    async fn wait_map(&self, have: u64, base: MapId, timeout: u64, remember: bool) -> Result<Answer> {
        let mut reader = self.map.clone();
        let changed = reader.wait_for(|map| map.layout > have);
        let timeout = Duration::from_micros(timeout.min(WAIT_MAX));
        // Whether it changed or the time is over: the answer is what is there now.
        let _ = tokio::time::timeout(timeout, changed).await;
        self.send_map(have, base, remember)
    }

    /// Who has the volume, by the map.
    pub fn holder(&self, volume: VolumeId) -> Option<Holder> {
        self.map().volumes.get(&volume).and_then(|it| it.holder.clone())
    }

    async fn heartbeat(&self, mut heartbeat: Heartbeat) -> Result<Response> {
        let reign = self.reign()?;
        // One that was deposed and has not heard of it must not keep the nodes from its successor.
        if !self.leads_lately() {
            return Err(self.not_leading("no majority of monitors answers it"));
        }
        let map = self.map();
        let id = heartbeat.node;
        let was_lost = known_node(&map, id, heartbeat.incarnation)?.lost;
        if heartbeat.differing.len() > DIFFERING_MAX {
            let text = format!("more than {DIFFERING_MAX} differing groups in a heartbeat");
            return Err(RpcError::Malformed(text));
        }
        if heartbeat.callers.len() > CALLERS_MAX {
            return Err(RpcError::Malformed(format!("more than {CALLERS_MAX} leaders in a heartbeat")));
        }
        // They are kept once for all nodes, and not with each.
        let leaders = std::mem::take(&mut heartbeat.callers);
        let callers = Callers { leaders, more: heartbeat.callers_more };
        let lost = heartbeat.lost;
        let position = heartbeat.position;
        let (position_floor, lost_order) = {
            let mut soft = reign.soft.borrow_mut();
            let known = soft.heartbeats.get(&id).map_or(0, |it| it.position);
            let floor = known.max(map.position(id));
            let now = self.now();
            soft.liveness.heard(id, now);
            soft.rates.heard(&heartbeat, now);
            soft.leases.node_hears(&map, id, &callers, now);
            let lost_order = soft.losses.heard(id, heartbeat.lost_noted);
            let kept = soft.heartbeats.entry(id).or_default();
            *kept = heartbeat;
            // A node that fell back must not take the memory of it along.
            kept.position = floor.max(position);
            (floor, lost_order)
        };
        if was_lost != lost {
            self.propose(&reign, Command::SetNodeLost { node: id, lost }).await?;
        }
        let layout = self.map().layout;
        Ok(Response::Alive { layout, position_floor, lost_order })
    }

    /// How a node's scrub is, and what it is to do.
    fn scrub_report(&self, report: ScrubReport) -> Result<Response> {
        let reign = self.reign()?;
        let map = self.map();
        let known = map.nodes.get(&report.node).is_some_and(|node| node.incarnation == report.incarnation);
        if !known || report.doubts.len() > DOUBTS_PER_REPORT_MAX {
            let text = "a report on scrub by an unknown node, or of too many blocks".to_owned();
            return Err(RpcError::Malformed(text));
        }
        let now = self.now();
        let orders = reign.soft.borrow_mut().scrubs.heard(report, now);
        Ok(Response::ScrubOrders(orders))
    }

    pub fn find(&self, map: &ClusterMap, key: &VolumeKey) -> Result<VolumeId> {
        let (found, name) = match key {
            VolumeKey::Id(id) => (map.volumes.contains_key(id).then_some(*id), id.to_string()),
            VolumeKey::Name(name) => (map.volume_named(name).map(|it| it.0), format!("{name:?}")),
        };
        found.ok_or_else(|| {
            let what = "volume".to_owned();
            RpcError::Refused(MapError::Missing { what, name })
        })
    }

    /// Runs a task until it ends or the monitor stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a request's task panicked; the monitor goes on");
            }
        }
        tasks.spawn_local(task);
    }

    /// The reign, if this monitor leads.
    pub fn reign(&self) -> Result<Rc<Reign>> {
        let reign = self.reign.borrow().clone();
        reign.ok_or_else(|| self.not_leading("another one does, or none yet"))
    }

    /// The reign, and a majority says that it lasts.
    pub async fn confirmed_reign(&self) -> Result<Rc<Reign>> {
        Ok(self.confirmed().await?.0)
    }

    /// The same, with what leases are judged by.
    pub async fn confirmed(&self) -> Result<(Rc<Reign>, Confirmed)> {
        let reign = self.reign()?;
        let confirmed = self.confirm(&reign).await?;
        Ok((reign, confirmed))
    }

    /// That this monitor does not lead, and who does.
    pub fn not_leading(&self, why: &str) -> RpcError {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader.filter(|leader| *leader != self.identity.id);
        let member = leader.and_then(|leader| metrics.membership_config.membership().get_node(&leader));
        RpcError::NotLeading { why: why.to_owned(), leader: member.map(|member| member.address) }
    }

    /// Makes sure that the reign lasts: a lease must not be judged behind a successor's back. A majority
    /// is asked after this was called; its answer names the reign, because this monitor may have begun
    /// another one meanwhile.
    pub async fn confirm(&self, reign: &Reign) -> Result<Confirmed> {
        let confirmed = async {
            loop {
                match self.raft.ensure_linearizable().await {
                    Ok(Some(at)) if reign_of(&at.leader_id) == reign.leader => {
                        reign.soft.borrow_mut().majority_answers(self.now());
                        return Ok(Confirmed::by_majority(reign.leader));
                    }
                    Ok(_) => return Err(self.not_leading("it has begun to lead anew: ask again")),
                    // Somebody may have been too busy to answer within a heartbeat.
                    Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                        tokio::time::sleep(CONFIRM_PAUSE).await;
                    }
                    Err(_) => return Err(self.not_leading("another one does, or none yet")),
                }
            }
        };
        let confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, confirmed).await;
        confirmed.unwrap_or_else(|_| Err(self.not_leading("no majority of monitors answers it")))
    }

    /// True while a majority has answered this leader lately. Says nothing about leases; it is for what may
    /// be a little out of date.
    pub fn leads_lately(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let alone = metrics.membership_config.membership().voter_ids().count() == 1;
        let lately = metrics.millis_since_quorum_ack.is_some_and(|ms| ms <= self.quorum_silent_max);
        metrics.state == ServerState::Leader && (alone || lately)
    }

    /// How everything is, as far as this monitor knows while it leads.
    pub async fn status(&self) -> Result<Status> {
        let reign = self.confirmed_reign().await?;
        Ok(self.status_now(&reign))
    }

    /// The same, without a question to the others.
    pub(crate) fn status_now(&self, reign: &Reign) -> Status {
        let map = self.map();
        let now = self.now();
        let soft = &mut *reign.soft.borrow_mut();
        let volumes = volume_statuses(&map, soft, now);
        health::status(Facts {
            map: &map,
            monitors: self.monitors().monitors,
            liveness: &soft.liveness,
            heartbeats: &soft.heartbeats,
            said: soft.reports.said(now),
            unsettled: soft.layouts.unsettled(&map),
            scrubs: &soft.scrubs,
            volumes,
            rates: &soft.rates,
            silent_after: 2 * self.renew,
            now,
            wall: wall_clock(),
            started: reign.started,
        })
    }

    /// Nodes that are down for long are taken out, where that does no harm.
    async fn take_out(&self, reign: &Reign) -> Result<()> {
        let map = self.map();
        // Nearly always: nobody is down.
        if self.out_after == 0 || map.nodes.values().all(|node| node.up || node.out.is_some()) {
            return Ok(());
        }
        let decision = {
            let soft = reign.soft.borrow();
            let room = soft.heartbeats.iter();
            let room =
                room.map(|(id, it)| (*id, Room { total: it.bytes_total, used: it.bytes_used })).collect();
            outs::decide(&map, self.out_after, wall_clock(), &room)
        };
        if decision.out.is_empty() {
            return Ok(());
        }
        for node in &decision.out {
            tracing::warn!(%node, "node is out: it has been down for long, and its data is to live elsewhere");
        }
        let nodes = decision.out.into_iter().map(|node| (node, Some(Out::Automatic))).collect();
        self.propose(reign, Command::SetNodesOut { nodes }).await?;
        Ok(())
    }

    /// Events after a number; waits until there are some, or for `timeout` microseconds. Any monitor can say: each
    /// has the same, if not at the same time.
    async fn events(&self, after: u64, timeout: u64) -> Response {
        let mut reader = self.map.clone();
        let news = reader.wait_for(|map| map.events().last() > after);
        let timeout = Duration::from_micros(timeout.min(WAIT_MAX));
        // Whether there is news or the time is over: the answer is what is there now.
        let _ = tokio::time::timeout(timeout, news).await;
        let map = self.map();
        let log = map.events();
        Response::Events {
            events: log.after(after, EVENTS_PER_ANSWER_MAX).cloned().collect(),
            last: log.last(),
        }
    }

    /// What has to be committed now and then: nodes that came or went, and log positions.
    /// Nothing on a monitor that does not lead.
    pub async fn upkeep(&self, positions: bool) -> Result<()> {
        let Ok(reign) = self.reign() else { return Ok(()) };
        if !self.leads_lately() {
            return Ok(());
        }
        reign.soft.borrow_mut().majority_answers(self.now());
        let map = self.map();
        let nodes = {
            let (soft, now) = (&mut *reign.soft.borrow_mut(), self.now());
            let unreached = soft.reports.unreached(now);
            soft.liveness.changes(&map, now, |node| unreached.contains(&node))
        };
        if !nodes.is_empty() {
            for (node, up) in &nodes {
                tracing::warn!(%node, up, "node {}", if *up { "is back" } else { "is down" });
            }
            let now = wall_clock();
            self.propose(&reign, Command::SetNodesUp { nodes, now }).await?;
        }
        self.take_out(&reign).await?;
        self.end_mutes(&reign).await?;
        if positions {
            let positions: Vec<_> = {
                let soft = reign.soft.borrow();
                let reported = soft.heartbeats.iter().map(|(node, it)| (*node, it.position));
                reported.filter(|(node, at)| *at > map.position(*node)).collect()
            };
            if !positions.is_empty() {
                self.propose(&reign, Command::ReportPositions { positions }).await?;
            }
        }
        Ok(())
    }
}
