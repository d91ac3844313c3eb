//! The monitors themselves: who they are, adding, removing, replacing, and what they say to each other.
//!
//! Each change goes through Raft's own joint membership: at every step a majority of the old monitors and a
//! majority of the new ones decide, so that a crash in the middle leaves one cluster. A monitor first learns
//! everything without a vote, and votes when it is level.

use crate::config::MONITORS_MAX;
use crate::peers::{self, HEARD_MAX, ask_who};
use crate::raft::{self, Member, Metrics, PeerAnswer, PeerRequest, Raft, Who};
use crate::rpc::{MonitorStatus, MonitorsStatus, RpcError};
use crate::service::{Result, Service};
use openraft::{ChangeMembers, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use trefoil_core::map::MapError;
use trefoil_transport::{Hello, Role};

/// How long a new monitor may take to learn everything, and a change of the monitors to be committed. What is
/// not done by then goes on, or is begun again by the same command.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A monitor that hears of no leader for so long asks the others whether it is still one of them.
pub(crate) const LOST_AFTER: Duration = Duration::from_secs(5);

/// How long the others may take to elect one of them when the leader gives up.
const YIELD_TIMEOUT: Duration = Duration::from_secs(20);

fn refused(text: String) -> RpcError {
    RpcError::Refused(MapError::Invalid(text))
}

fn voters(metrics: &Metrics) -> BTreeSet<u64> {
    metrics.membership_config.membership().voter_ids().collect()
}

fn members(metrics: &Metrics) -> BTreeMap<u64, Member> {
    let members = metrics.membership_config.membership().nodes();
    members.map(|(id, member)| (*id, member.clone())).collect()
}

impl Service {
    fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    fn is_heard(&self, id: u64, member: &Member) -> bool {
        let heard = self.peers.heard(id, member.incarnation);
        id == self.identity.id || heard.is_some_and(|at| at.elapsed() < HEARD_MAX)
    }

    /// The monitors, as this one knows them.
    pub fn monitors(&self) -> MonitorsStatus {
        let metrics = self.metrics();
        let leads = self.leads_lately() && self.reign.borrow().is_some();
        let voters = voters(&metrics);
        let log = |id: u64| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            match id == self.identity.id {
                true => metrics.last_log_index,
                false => matched.map(|at| at.index),
            }
        };
        let monitors = members(&metrics).into_iter().map(|(id, member)| MonitorStatus {
            id,
            address: member.address,
            incarnation: member.incarnation,
            voter: voters.contains(&id),
            leader: metrics.current_leader == Some(id),
            up: leads.then(|| self.is_heard(id, &member)),
            log: leads.then(|| log(id).unwrap_or(0)),
        });
        MonitorsStatus {
            cluster_name: self.identity.cluster_name.clone(),
            cluster_id: self.identity.cluster_id,
            answered_by: self.identity.id,
            leads,
            term: metrics.current_term,
            log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.map_or(0, |at| at.index),
            version: self.map().version,
            monitors: monitors.collect(),
        }
    }

    /// Who this monitor is, and who it thinks the others are, as far as that is committed.
    fn who(&self) -> Who {
        let metrics = self.metrics();
        let at = *metrics.membership_config.log_id();
        let committed = at.filter(|at| metrics.last_applied.is_some_and(|applied| *at <= applied));
        let known = committed.map(|_| members(&metrics)).unwrap_or_default();
        Who {
            id: self.identity.id,
            incarnation: self.identity.incarnation,
            cluster_id: self.identity.cluster_id,
            cluster_name: self.identity.cluster_name.clone(),
            initialised: metrics.last_log_index.is_some(),
            members: known.into_iter().map(|(id, it)| (id, it.address, it.incarnation)).collect(),
            members_at: committed.map_or((0, 0), |at| (at.leader_id.term, at.index)),
        }
    }

    /// Answers another monitor.
    pub async fn answer_peer(&self, hello: &Hello, payload: &[u8]) -> PeerAnswer {
        let request = match peers::decode::<PeerRequest>(payload) {
            Ok(request) => request,
            Err(error) => return PeerAnswer::Refused(format!("malformed request: {error}")),
        };
        let metrics = self.metrics();
        let known = members(&metrics).remove(&hello.id);
        // Who knows no cluster yet may ask which one this is, and nothing else.
        if !matches!(request, PeerRequest::Who) && hello.cluster_id != self.identity.cluster_id {
            return PeerAnswer::Refused("it does not know which cluster it is of".to_owned());
        }
        if !matches!(request, PeerRequest::Who)
            && let Some(known) = &known
            && known.incarnation != hello.incarnation
        {
            return PeerAnswer::Refused(format!(
                "monitor {} is known with another directory: remove it, and add the new one",
                hello.id
            ));
        }
        match request {
            PeerRequest::Who => PeerAnswer::Who(self.who()),
            PeerRequest::Moved(address) => match known {
                None => PeerAnswer::Refused("no member of this cluster".to_owned()),
                Some(_) => match self.set_address(hello.id, hello.incarnation, address).await {
                    Ok(()) => PeerAnswer::Who(self.who()),
                    Err(error) => PeerAnswer::Refused(error.to_string()),
                },
            },
            request => raft::answer(&self.raft, hello.id, request).await,
        }
    }

    async fn change(&self, change: ChangeMembers<u64, Member>, what: &str) -> Result<()> {
        let changed = tokio::time::timeout(CHANGE_TIMEOUT, self.raft.change_membership(change, false)).await;
        match changed {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(RpcError::Unsure(format!("{what}: {error}"))),
            Err(_) => Err(RpcError::Unsure(format!(
                "{what} takes longer than {} s: see `trefoil monitor list`, and run the command again",
                CHANGE_TIMEOUT.as_secs()
            ))),
        }
    }

    async fn set_address(&self, id: u64, incarnation: u64, address: SocketAddr) -> Result<()> {
        self.confirmed_reign().await?;
        let member = Member { address, incarnation };
        if members(&self.metrics()).get(&id).is_some_and(|known| *known == member) {
            return Ok(());
        }
        tracing::info!(id, %address, "a monitor has another address");
        self.change(ChangeMembers::SetNodes([(id, member)].into()), "the monitor's address").await
    }

    /// Lets another monitor come to lead, which can then remove or replace this one: a leader never takes itself
    /// out. It falls silent until the others have elected somebody, a few seconds, and does nothing for anybody
    /// meanwhile.
    async fn yield_lead(&self) -> RpcError {
        if self.yielding.replace(true) {
            return self.not_leading("it is giving up the lead: ask again");
        }
        tracing::info!("this monitor lets another one lead");
        *self.reign.borrow_mut() = None;
        self.raft.runtime_config().heartbeat(false);
        self.raft.runtime_config().elect(false);
        let me = self.identity.id;
        let elected = self.raft.wait(Some(YIELD_TIMEOUT));
        let elected = elected.metrics(|seen| seen.current_leader != Some(me), "another one leads").await;
        self.raft.runtime_config().heartbeat(true);
        self.raft.runtime_config().elect(true);
        self.yielding.set(false);
        match elected {
            Ok(_) => self.not_leading("it has given up the lead: ask the next one"),
            Err(error) => RpcError::Unsure(format!("no other monitor has come to lead: {error}")),
        }
    }

    /// See [`crate::rpc::Request::AddMonitor`]. May be repeated.
    pub async fn add_monitor(
        self: Rc<Self>,
        id: u64,
        address: SocketAddr,
        replaces: Option<u64>,
    ) -> Result<()> {
        self.confirmed_reign().await?;
        let metrics = self.metrics();
        let (known, old) = (members(&metrics), voters(&metrics));
        let mut hello = Hello::new(Role::Monitor, self.identity.cluster_id);
        (hello.id, hello.incarnation) = (self.identity.id, self.identity.incarnation);
        let asked = ask_who(address, hello).await;
        let who =
            asked.map_err(|error| refused(format!("the new monitor cannot be asked who it is: {error}")))?;
        if who.id != id {
            return Err(refused(format!("the monitor at {address} has id {}, not {id}", who.id)));
        }
        let member = Member { address, incarnation: who.incarnation };
        match known.get(&id) {
            Some(known) if known.incarnation != who.incarnation => {
                return Err(refused(format!(
                    "monitor {id} is one of the cluster with another directory: if that is lost, remove {id} first, \
                     or give the new one another number"
                )));
            }
            None if who.initialised => {
                return Err(refused(format!(
                    "the monitor at {address} has been one of a cluster before: give it an empty directory"
                )));
            }
            None if known.len() >= MONITORS_MAX => {
                return Err(refused(format!("there are {MONITORS_MAX} monitors: no more are possible")));
            }
            _ => {}
        }
        if let Some(replaced) = replaces
            && !known.contains_key(&replaced)
            && !old.contains(&id)
        {
            return Err(refused(format!("there is no monitor {replaced} to be replaced")));
        }
        if !known.contains_key(&id) {
            tracing::info!(id, %address, "a monitor is added: it learns first");
        }
        let learnt = tokio::time::timeout(CHANGE_TIMEOUT, self.raft.add_learner(id, member, true)).await;
        match learnt {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(RpcError::Unsure(format!("the new monitor: {error}"))),
            Err(_) => {
                return Err(RpcError::Unsure(format!(
                    "the new monitor is still learning after {} s: run the command again to finish",
                    CHANGE_TIMEOUT.as_secs()
                )));
            }
        }
        if replaces == Some(self.identity.id) {
            return Err(self.yield_lead().await);
        }
        let mut new = old.clone();
        new.insert(id);
        replaces.map(|replaced| new.remove(&replaced));
        if new != old {
            self.change(ChangeMembers::ReplaceAllVoters(new), "the new monitor's vote").await?;
        }
        tracing::info!(id, %address, replaces, "a monitor was added");
        Ok(())
    }

    /// See [`crate::rpc::Request::RemoveMonitor`]. May be repeated.
    pub async fn remove_monitor(self: Rc<Self>, id: u64, force: bool) -> Result<()> {
        self.confirmed_reign().await?;
        let metrics = self.metrics();
        let (known, voters) = (members(&metrics), voters(&metrics));
        if !known.contains_key(&id) {
            return Err(refused(format!("there is no monitor {id}")));
        }
        if !voters.contains(&id) {
            self.change(ChangeMembers::RemoveNodes([id].into()), "the removal").await?;
            tracing::info!(id, "a monitor that did not vote was removed");
            return Ok(());
        }
        let left: Vec<u64> = voters.iter().copied().filter(|voter| *voter != id).collect();
        if left.is_empty() {
            return Err(refused(format!("{id} is the only monitor: add another one first")));
        }
        let up = left.iter().filter(|id| known.get(id).is_some_and(|member| self.is_heard(**id, member)));
        let up = up.count();
        if 2 * up <= left.len() && !force {
            return Err(refused(format!(
                "of the {} monitors that would be left only {up} answer: no majority, and nothing could be changed \
                 any more. Bring them back first (or use --force, if they will be back)",
                left.len()
            )));
        }
        if id == self.identity.id {
            return Err(self.yield_lead().await);
        }
        self.change(ChangeMembers::RemoveVoters([id].into()), "the removal").await?;
        tracing::info!(id, "a monitor was removed");
        Ok(())
    }
}

/// Follows what becomes of this monitor's own place: tells the leader of an address that has changed, and
/// ends with a reason when the monitor is one of the cluster no more.
pub(crate) async fn watch_place(service: Rc<Service>, address: SocketAddr) -> anyhow::Error {
    let me = service.identity.id;
    let now = std::time::Instant::now();
    let (mut without_leader, mut without_me) = (now, now);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let metrics = service.metrics();
        // One that waits to be added is no member yet.
        if metrics.last_log_index.is_none() {
            continue;
        }
        let known = members(&metrics);
        let now = std::time::Instant::now();
        if metrics.current_leader.is_some() {
            without_leader = now;
        }
        if let Some(member) = known.get(&me) {
            without_me = now;
            if member.address != address
                && let Err(error) = tell_address(&service, &metrics, address).await
            {
                tracing::debug!(%error, "the leader was not told of this monitor's new address yet");
            }
        }
        // A new monitor reads of times when it was no member, too: so others are asked, and not at once.
        let at = metrics.membership_config.log_id().map_or(0, |at| at.index);
        let lost = now.duration_since(without_leader) > LOST_AFTER;
        let left_out = now.duration_since(without_me) > LOST_AFTER;
        if (lost && is_removed(&service, &known, at + 1).await)
            || (left_out && is_removed(&service, &known, at).await)
        {
            return removed(me);
        }
    }
}

fn removed(me: u64) -> anyhow::Error {
    anyhow::anyhow!(
        "monitor {me} was removed from the cluster: stop it for good; to add it again, give it an empty directory"
    )
}

async fn tell_address(service: &Rc<Service>, metrics: &Metrics, address: SocketAddr) -> anyhow::Result<()> {
    let (me, incarnation) = (service.identity.id, service.identity.incarnation);
    if metrics.state == ServerState::Leader {
        return Ok(service.set_address(me, incarnation, address).await?);
    }
    let known = members(metrics);
    let leader = metrics.current_leader.and_then(|id| Some((id, known.get(&id)?.clone())));
    let Some((leader, member)) = leader else { anyhow::bail!("no leader is known") };
    let answer = service.peers.ask(leader, member, &PeerRequest::Moved(address)).await?;
    match answer {
        PeerAnswer::Who(_) => Ok(()),
        PeerAnswer::Refused(text) => anyhow::bail!(text),
        _ => anyhow::bail!("an answer that fits no question"),
    }
}

/// True if one of the others knows of a committed change, at `least` or behind it in the log, that has left this
/// monitor out.
async fn is_removed(service: &Rc<Service>, known: &BTreeMap<u64, Member>, least: u64) -> bool {
    let (me, incarnation) = (service.identity.id, service.identity.incarnation);
    for (id, member) in known.iter().filter(|(id, _)| **id != me) {
        let asked = service.peers.ask(*id, member.clone(), &PeerRequest::Who).await;
        if let Ok(PeerAnswer::Who(who)) = asked
            && !who.members.is_empty()
            && who.members_at.1 >= least
            && !who.members.iter().any(|(id, _, theirs)| (*id, *theirs) == (me, incarnation))
        {
            return true;
        }
    }
    false
}

/// True if this monitor is the only one that votes.
pub(crate) fn is_alone(raft: &Raft, me: u64) -> bool {
    raft.metrics().borrow().membership_config.membership().voter_ids().eq([me])
}
