//! Answering requests: the map through Raft, leases and heartbeats from memory.
//!
//! One thread. What is in [`Soft`] is this monitor's own, and gone when it stops: leases (see
//! [`trefoil_core::map::lease`] for why that is safe), heartbeats, and what is to be healed. A borrow of it
//! is never held across an await.
//!
//! A grant runs as a task of its own, which the end of the connection that asked does not cut off: between the
//! decision to grant and its commit, the old holder cannot renew, and that must end.

use crate::health::{self, Facts, Status};
use crate::history::History;
use crate::raft::{Outcome, Raft, SharedMap};
use crate::reports::Reports;
use crate::rpc::*;
use openraft::error::{ClientWriteError, RaftError};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;
use trefoil_core::leader::report::{NodeReport, REPORT_NODES_MAX};
use trefoil_core::map::lease::{LeaseConfig, LeaseTable, NotNow};
use trefoil_core::map::liveness::Liveness;
use trefoil_core::map::{ClusterMap, Command, Grant, Holder, HolderKind, MapError, Reply, Volume};
use trefoil_core::{Generation, NodeId, Time, VolumeId};

/// Volumes that are being healed at once, cluster-wide: repair must not become a storm (P6).
pub const HEALS_MAX: usize = 4;

/// A volume that a healer could not bring into line (a node is away) is offered again after this long,
/// in microseconds.
const HEAL_AGAIN: u64 = 10_000_000;

/// How long a command may take: the disk, mostly. Longer is answered with "unsure".
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// What this monitor knows beside the map.
pub(crate) struct Soft {
    pub leases: LeaseTable,
    pub liveness: Liveness,
    /// The last of each node of the map.
    pub heartbeats: BTreeMap<NodeId, Heartbeat>,
    /// What leaders say of nodes.
    reports: Reports,
    /// When a volume was last given to a healer. Entries older than [`HEAL_AGAIN`] are dropped.
    healed: BTreeMap<VolumeId, Time>,
}

/// The monitor, but for its sockets.
pub(crate) struct Service {
    pub raft: Raft,
    pub map: SharedMap,
    pub soft: RefCell<Soft>,
    pub tasks: RefCell<JoinSet<()>>,
    lease: LeaseConfig,
    renew: u64,
    clock: Instant,
    started: Time,
    /// The maps that were sent last.
    history: RefCell<History>,
    healing: Cell<bool>,
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

type Result<T, E = RpcError> = std::result::Result<T, E>;

/// Milliseconds since 1970, for people. A clock before 1970 says 0.
fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Service {
    /// At the moment when this monitor leads, and its map is current.
    /// `boot` is random.
    pub fn new(
        raft: Raft,
        map: SharedMap,
        lease: LeaseConfig,
        renew: u64,
        node_timeout: u64,
        boot: u64,
    ) -> Service {
        let clock = Instant::now();
        let now = Time(0);
        let leases = LeaseTable::new(lease, &map.borrow(), now);
        Service {
            raft,
            map,
            soft: RefCell::new(Soft {
                leases,
                liveness: Liveness::new(node_timeout, now),
                heartbeats: BTreeMap::new(),
                reports: Reports::new(renew),
                healed: BTreeMap::new(),
            }),
            tasks: RefCell::new(JoinSet::new()),
            lease,
            renew,
            clock,
            started: now,
            history: RefCell::new(History::new(boot)),
            healing: Cell::new(false),
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

    /// Commits a command and gives its reply.
    pub async fn propose(&self, command: Command) -> Result<Reply> {
        let write = self.raft.client_write(command);
        match tokio::time::timeout(COMMIT_TIMEOUT, write).await {
            Ok(Ok(written)) => match written.data {
                Outcome(Some(result)) => Ok(result?),
                Outcome(None) => Err(RpcError::Unsure("an entry without a command".to_owned())),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(RpcError::NotLeading(to.to_string()))
            }
            Ok(Err(error)) => Err(RpcError::Unsure(error.to_string())),
            Err(_) => Err(RpcError::Unsure(format!(
                "not committed within {} s: is the monitor's disk slow?",
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
            Request::GetMap { have, base } => return self.send_map(have, base, remember),
            Request::WaitMap { have, base, timeout } => {
                return self.wait_map(have, base, timeout, remember).await;
            }
            Request::MapPart { of, offset } => return Ok(self.history.borrow().part(of, offset)?.into()),
            Request::Volume { volume } => {
                let map = self.map();
                let found = self.find(&map, &volume).ok().and_then(|id| map.volumes.get(&id));
                return Ok(Response::Info(found.map(|it| Box::new(Volume::clone(it)))).into());
            }
            Request::Heartbeat(heartbeat) => return Ok(self.heartbeat(heartbeat).await?.into()),
            Request::Attach { volume, holder, above } => {
                return Ok(self.attach(volume, holder, above).await?.into());
            }
            Request::Renew { holder, volumes, nodes } => {
                return Ok(self.renew(holder, volumes, nodes).await?.into());
            }
            Request::Release { volumes } => self.release(volumes).await?,
            Request::HealWork { holder, max } => {
                return Ok(self.heal_work(holder, max).await?.into());
            }
            Request::Status => return Ok(Response::Status(Box::new(self.status())).into()),
            Request::RegisterNode { id, incarnation, address, host, class, size } => {
                let now = wall_clock();
                let command = Command::RegisterNode { id, incarnation, address, host, class, size, now };
                self.propose(command).await?
            }
            Request::CreatePool { name, size, pg_num, domain, ack } => {
                let command = Command::CreatePool { name, size, pg_num, domain, ack };
                self.propose(command).await?
            }
            Request::CreateVolume { name, pool, size, object_size, io_timeout } => {
                let command = Command::CreateVolume { name, pool, size, object_size, io_timeout };
                self.propose(command).await?
            }
            Request::RemoveVolume { volume } => self.remove_volume(volume).await?,
            Request::SetCrush { crush } => self.propose(Command::SetCrush { crush }).await?,
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
        let changed = reader.wait_for(|map| map.layout != have);
        let timeout = Duration::from_micros(timeout.min(WAIT_MAX));
        // Whether it changed or the time is over: the answer is what is there now.
        let _ = tokio::time::timeout(timeout, changed).await;
        self.send_map(have, base, remember)
    }

    /// Who has the volume, by the map.
    fn holder(&self, volume: VolumeId) -> Option<Holder> {
        self.map().volumes.get(&volume).and_then(|it| it.holder.clone())
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Response> {
        let map = self.map();
        let id = heartbeat.node;
        let Some(node) = map.nodes.get(&id) else {
            return Err(MapError::Missing { what: "node".to_owned(), name: id.to_string() }.into());
        };
        if node.incarnation != heartbeat.incarnation {
            return Err(MapError::OtherIncarnation {
                node: id,
                known: node.incarnation,
                given: heartbeat.incarnation,
            }
            .into());
        }
        if heartbeat.differing.len() > DIFFERING_MAX {
            let text = format!("more than {DIFFERING_MAX} differing groups in a heartbeat");
            return Err(RpcError::Malformed(text));
        }
        let lost = heartbeat.lost;
        let position = heartbeat.position;
        let position_floor = {
            let mut soft = self.soft.borrow_mut();
            let known = soft.heartbeats.get(&id).map_or(0, |it| it.position);
            let floor = known.max(map.position(id));
            let now = self.now();
            soft.liveness.heard(id, now);
            let kept = soft.heartbeats.entry(id).or_default();
            *kept = heartbeat;
            // A node that fell back must not take the memory of it along.
            kept.position = floor.max(position);
            floor
        };
        if node.lost != lost {
            self.propose(Command::SetNodeLost { node: id, lost }).await?;
        }
        let layout = self.map().layout;
        Ok(Response::Alive { layout, position_floor })
    }

    fn find(&self, map: &ClusterMap, key: &VolumeKey) -> Result<VolumeId> {
        let (found, name) = match key {
            VolumeKey::Id(id) => (map.volumes.contains_key(id).then_some(*id), id.to_string()),
            VolumeKey::Name(name) => (map.volume_named(name).map(|it| it.0), format!("{name:?}")),
        };
        found.ok_or_else(|| {
            let what = "volume".to_owned();
            RpcError::Refused(MapError::Missing { what, name })
        })
    }

    async fn attach(self: &Rc<Self>, key: VolumeKey, holder: Holder, above: Generation) -> Result<Response> {
        self.confirm_leading().await?;
        let map = self.map();
        let volume = self.find(&map, &key)?;
        let asked = self.soft.borrow_mut().leases.ask(&map, volume, &holder, self.now());
        let seen = match asked {
            Ok(seen) => seen,
            Err(NotNow::Busy { holder, retry_after }) => {
                return Ok(Response::Busy { holder, retry_after });
            }
            Err(NotNow::Missing) => {
                let what = "volume".to_owned();
                let name = volume.to_string();
                return Err(MapError::Missing { what, name }.into());
            }
        };
        let grant = Grant { volume, seen, above };
        let mut granted = self.grant(vec![grant], holder).await?;
        match granted.pop() {
            Some(Ok(granted)) => Ok(Response::Granted(Box::new(granted))),
            // Somebody was faster.
            Some(Err(MapError::Stale { .. })) => match self.holder(volume) {
                Some(holder) => Ok(Response::Busy { holder, retry_after: self.renew }),
                None => Err(RpcError::NotLeading("the volume changed; ask again".to_owned())),
            },
            Some(Err(error)) => Err(error.into()),
            None => Err(RpcError::Unsure("no answer to a grant".to_owned())),
        }
    }

    /// Commits grants that the lease table said yes to, as a task that nothing cuts off, and settles them
    /// with the table.
    async fn grant(
        self: &Rc<Self>,
        grants: Vec<Grant>,
        holder: Holder,
    ) -> Result<Vec<Result<Granted, MapError>>> {
        let service = self.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.spawn(async move {
            // Who asked may be gone; the grant stands all the same, until its lease runs out.
            let _ = sender.send(service.commit_grants(grants, holder).await);
        });
        let ended = receiver.await;
        ended.unwrap_or_else(|_| Err(RpcError::Unsure("the monitor is stopping".to_owned())))
    }

    async fn commit_grants(
        &self,
        grants: Vec<Grant>,
        holder: Holder,
    ) -> Result<Vec<Result<Granted, MapError>>> {
        let command = Command::GrantGenerations { grants: grants.clone(), holder };
        let reply = self.propose(command).await;
        let now = self.now();
        let leases = &mut self.soft.borrow_mut().leases;
        let results = match reply {
            Ok(Reply::Granted(results)) => results,
            Ok(_) => return Err(RpcError::Unsure("an answer that fits no grant".to_owned())),
            // It may still be committed: the old holder stays without renewal until it is known.
            Err(error @ RpcError::Unsure(_)) => return Err(error),
            Err(error) => {
                for grant in &grants {
                    leases.not_granted(grant.volume, grant.seen);
                }
                return Err(error);
            }
        };
        let map = self.map();
        let mut granted = Vec::with_capacity(results.len());
        for (grant, result) in grants.iter().zip(results) {
            granted.push(match (result, map.volumes.get(&grant.volume)) {
                (Ok(generation), Some(info)) => {
                    leases.granted(grant.volume, generation, now);
                    Ok(Granted {
                        volume: grant.volume,
                        generation,
                        info: Volume::clone(info),
                        lease: self.lease.lease,
                        renew: self.renew,
                    })
                }
                (Ok(_), None) => {
                    Err(MapError::Missing { what: "volume".to_owned(), name: grant.volume.to_string() })
                }
                (Err(error), _) => {
                    leases.not_granted(grant.volume, grant.seen);
                    Err(error)
                }
            });
        }
        Ok(granted)
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

    /// Makes sure that this monitor still leads: a lease must not be renewed behind a successor's back.
    async fn confirm_leading(&self) -> Result<()> {
        match tokio::time::timeout(COMMIT_TIMEOUT, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(RpcError::NotLeading(error.to_string())),
            Err(_) => Err(RpcError::NotLeading("no majority of monitors answers".to_owned())),
        }
    }

    async fn renew(
        &self,
        holder: Holder,
        volumes: Vec<(VolumeId, Generation)>,
        nodes: Vec<NodeReport>,
    ) -> Result<Response> {
        check_count(volumes.len())?;
        if nodes.len() > REPORT_NODES_MAX {
            let text = format!("a report of {} nodes: send at most {REPORT_NODES_MAX}", nodes.len());
            return Err(RpcError::Malformed(text));
        }
        self.confirm_leading().await?;
        let map = self.map();
        let now = self.now();
        let mut soft = self.soft.borrow_mut();
        soft.reports.heard(&holder, nodes, now);
        let renewed: Vec<_> = volumes
            .iter()
            .map(|(volume, generation)| {
                let renewal = soft.leases.renew(&map, &holder, *volume, *generation, now);
                (*volume, renewal)
            })
            .collect();
        let reports = soft.heartbeats.values().flat_map(|it| &it.differing);
        let mut differing: Vec<_> = reports
            .filter(|group| volumes.iter().any(|(volume, _)| *volume == group.volume))
            .copied()
            .collect();
        differing.sort_unstable();
        differing.dedup();
        differing.truncate(DIFFERING_MAX);
        Ok(Response::Renewed { volumes: renewed, layout: map.layout, differing })
    }

    async fn release(&self, volumes: Vec<(VolumeId, Generation, bool)>) -> Result<Reply> {
        check_count(volumes.len())?;
        let command = Command::Release { volumes: volumes.clone() };
        let reply = self.propose(command).await?;
        let map = self.map();
        let mut soft = self.soft.borrow_mut();
        for (id, generation, clean) in volumes {
            let Some(volume) = map.volumes.get(&id) else {
                continue;
            };
            if volume.generation != generation || volume.holder.is_some() {
                continue;
            }
            soft.leases.released(id);
            if clean {
                // What nodes said before is over; they say it again if it is not.
                for heartbeat in soft.heartbeats.values_mut() {
                    heartbeat.differing.retain(|group| group.volume != id);
                }
            }
        }
        Ok(reply)
    }

    async fn remove_volume(&self, key: VolumeKey) -> Result<Reply> {
        self.confirm_leading().await?;
        let map = self.map();
        let volume = self.find(&map, &key)?;
        let generation = map.volumes.get(&volume).map(|it| it.generation);
        let expired = self.soft.borrow_mut().leases.expired(&map, volume, self.now());
        let expired = generation.filter(|_| expired);
        let reply = self.propose(Command::RemoveVolume { volume, expired }).await?;
        let mut soft = self.soft.borrow_mut();
        soft.leases.released(volume);
        soft.healed.remove(&volume);
        Ok(reply)
    }

    /// Section 8: volumes without a holder that are not known to be whole. A healer that died is no
    /// holder any more when its lease has run out.
    async fn heal_work(self: &Rc<Self>, holder: Holder, max: u32) -> Result<Response> {
        if holder.kind != HolderKind::Healer {
            return Err(RpcError::Malformed("a healer must say that it is one".to_owned()));
        }
        self.confirm_leading().await?;
        // Two at once would count the same places as free.
        if self.healing.replace(true) {
            return Ok(Response::Heal(Vec::new()));
        }
        let grants = self.choose_heals(&holder, max as usize);
        let granted = match grants.is_empty() {
            true => Ok(Vec::new()),
            false => self.grant(grants, holder).await,
        };
        self.healing.set(false);
        Ok(Response::Heal(granted?.into_iter().flatten().collect()))
    }

    fn choose_heals(&self, holder: &Holder, max: usize) -> Vec<Grant> {
        let map = self.map();
        let now = self.now();
        let soft = &mut *self.soft.borrow_mut();
        soft.healed.retain(|_, at| now.since(*at) < HEAL_AGAIN);
        let statuses = volume_statuses(&map, soft, now);
        let running = statuses.iter().filter(|it| it.healing).count();
        let mut grants = Vec::new();
        for status in statuses.iter().filter(|it| it.needs_heal) {
            if grants.len() >= max.min(HEALS_MAX.saturating_sub(running)) {
                break;
            }
            let volume = status.volume;
            if soft.healed.contains_key(&volume) {
                continue;
            }
            if let Ok(seen) = soft.leases.ask(&map, volume, holder, now) {
                soft.healed.insert(volume, now);
                let above = Generation(0);
                grants.push(Grant { volume, seen, above });
            }
        }
        grants
    }

    /// How everything is, as far as this monitor knows while it leads.
    pub fn status(&self) -> Status {
        let map = self.map();
        let now = self.now();
        let soft = &mut *self.soft.borrow_mut();
        let volumes = volume_statuses(&map, soft, now);
        health::status(Facts {
            map: &map,
            liveness: &soft.liveness,
            heartbeats: &soft.heartbeats,
            said: soft.reports.said(now),
            volumes,
            now,
            started: self.started,
        })
    }

    /// What has to be committed now and then: nodes that came or went, and log positions.
    pub async fn upkeep(&self, positions: bool) -> Result<()> {
        let map = self.map();
        let nodes = self.soft.borrow().liveness.changes(&map, self.now());
        if !nodes.is_empty() {
            for (node, up) in &nodes {
                tracing::warn!(%node, up, "node {}", if *up { "is back" } else { "is down" });
            }
            let now = wall_clock();
            self.propose(Command::SetNodesUp { nodes, now }).await?;
        }
        if positions {
            let positions: Vec<_> = {
                let soft = self.soft.borrow();
                let reported = soft.heartbeats.iter().map(|(node, it)| (*node, it.position));
                reported.filter(|(node, at)| *at > map.position(*node)).collect()
            };
            if !positions.is_empty() {
                self.propose(Command::ReportPositions { positions }).await?;
            }
        }
        Ok(())
    }
}

fn check_count(volumes: usize) -> Result<()> {
    if volumes > VOLUMES_PER_REQUEST_MAX {
        return Err(RpcError::Malformed(format!(
            "{volumes} volumes in one request: send at most {VOLUMES_PER_REQUEST_MAX}"
        )));
    }
    Ok(())
}

fn volume_statuses(map: &ClusterMap, soft: &mut Soft, now: Time) -> Vec<health::VolumeStatus> {
    let reports = soft.heartbeats.values().flat_map(|it| &it.differing);
    let differing: std::collections::BTreeSet<VolumeId> = reports.map(|it| it.volume).collect();
    let volumes = map.volumes.keys().map(|id| {
        let expired = soft.leases.expired(map, *id, now);
        health::volume_status(map, *id, expired, differing.contains(id))
    });
    volumes.collect()
}
