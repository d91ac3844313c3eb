//! Who may lead a volume: granting, renewing, releasing, and work for healers.
//!
//! Each request is decided within one [`Reign`]: first a majority confirms it, then its leases are looked at,
//! then what came of it is written with its number.
//!
//! A grant runs as a task of its own, which the end of the connection that asked does not cut off: between the
//! decision to grant and its commit, the old holder cannot renew, and that must end.

use crate::health;
use crate::reign::{Reign, Soft};
use crate::rpc::*;
use crate::service::{Result, Service};
use std::rc::Rc;
use trefoil_core::leader::report::{NodeReport, REPORT_NODES_MAX};
use trefoil_core::map::lease::NotNow;
use trefoil_core::map::reign::{Confirmed, Fate, NoGrant, OtherReign};
use trefoil_core::map::{ClusterMap, Command, Grant, Holder, HolderKind, MapError, Reply, Volume};
use trefoil_core::{Generation, Time, VolumeId};

/// Volumes that are being healed at once, cluster-wide: repair must not become a storm (P6).
pub const HEALS_MAX: usize = 4;

/// A volume that a healer could not bring into line (a node is away) is offered again after this long,
/// in microseconds.
const HEAL_AGAIN: u64 = 10_000_000;

/// The same for a volume that has a group which a move waits for.
const MOVE_HEAL_AGAIN: u64 = 3_000_000;

impl Service {
    pub async fn attach(
        self: &Rc<Self>,
        key: VolumeKey,
        holder: Holder,
        above: Generation,
    ) -> Result<Response> {
        let (reign, sure) = self.confirmed().await?;
        let map = self.map();
        let volume = self.find(&map, &key)?;
        if let Some(holder) = map.volumes.get(&volume).and_then(|it| it.holder.clone())
            && map.restored.unchecked
        {
            // Soon: as soon as it is known where the copies are.
            return Ok(Response::Busy { holder, retry_after: self.renew });
        }
        let asked = reign.soft.borrow_mut().leases.ask(sure, &map, volume, &holder, above, self.now());
        let grant = match asked {
            Ok(grant) => grant,
            Err(NoGrant::OtherReign) => return Err(self.not_leading("it has begun to lead anew: ask again")),
            Err(NoGrant::NotNow(NotNow::Busy { holder, retry_after })) => {
                return Ok(Response::Busy { holder, retry_after });
            }
            Err(NoGrant::NotNow(NotNow::Missing)) => {
                let what = "volume".to_owned();
                let name = volume.to_string();
                return Err(MapError::Missing { what, name }.into());
            }
            // Who attaches is asked for by a client. One that says it is a healer is none that we know.
            Err(NoGrant::NotNow(NotNow::Kept(kept))) => return Err(RpcError::NotAllowed(kept.to_string())),
        };
        let mut granted = self.grant(&reign, vec![grant], holder).await?;
        match granted.pop() {
            Some(Ok(granted)) => Ok(Response::Granted(Box::new(granted))),
            // Somebody was faster.
            Some(Err(MapError::Stale { .. })) => match self.holder(volume) {
                Some(holder) => Ok(Response::Busy { holder, retry_after: self.renew }),
                None => Err(self.not_leading("the volume changed; ask again")),
            },
            Some(Err(error)) => Err(error.into()),
            None => Err(RpcError::Unsure("no answer to a grant".to_owned())),
        }
    }

    /// Commits grants that the lease table said yes to, as a task that nothing cuts off, and settles them
    /// with the table.
    async fn grant(
        self: &Rc<Self>,
        reign: &Rc<Reign>,
        grants: Vec<Grant>,
        holder: Holder,
    ) -> Result<Vec<Result<Granted, MapError>>> {
        let (service, reign) = (self.clone(), reign.clone());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.spawn(async move {
            // Who asked may be gone; the grant stands all the same, until its lease runs out.
            let _ = sender.send(service.commit_grants(&reign, grants, holder).await);
        });
        let ended = receiver.await;
        ended.unwrap_or_else(|_| Err(RpcError::Unsure("the monitor is stopping".to_owned())))
    }

    async fn commit_grants(
        &self,
        reign: &Reign,
        grants: Vec<Grant>,
        holder: Holder,
    ) -> Result<Vec<Result<Granted, MapError>>> {
        let command = Command::GrantGenerations { grants: grants.clone(), holder };
        let reply = self.propose(reign, command).await;
        let fate = match &reply {
            Ok(Reply::Granted(results)) => Fate::Applied(results),
            // It may still be committed: the old holder stays without renewal until it is known.
            Ok(_) | Err(RpcError::Unsure(_)) => Fate::Unknown,
            Err(_) => Fate::Never,
        };
        let map = self.map();
        reign.soft.borrow_mut().leases.settle(&grants, fate, &map, self.now());
        let Reply::Granted(results) = reply? else {
            return Err(RpcError::Unsure("an answer that fits no grant".to_owned()));
        };
        let granted = |grant: &Grant, result: Result<Generation, MapError>| {
            let gone = || MapError::Missing { what: "volume".to_owned(), name: grant.volume.to_string() };
            Ok(Granted {
                volume: grant.volume,
                generation: result?,
                info: Volume::clone(map.volumes.get(&grant.volume).ok_or_else(gone)?),
                lease: self.lease.lease,
                renew: self.renew,
            })
        };
        Ok(grants.iter().zip(results).map(|(grant, result)| granted(grant, result)).collect())
    }

    pub async fn renew(
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
        let (reign, sure) = self.confirmed().await?;
        let map = self.map();
        let now = self.now();
        let mut soft = reign.soft.borrow_mut();
        soft.reports.heard(&holder, nodes, now);
        let mut renew = |(volume, generation): &(VolumeId, Generation)| {
            Ok((*volume, soft.leases.renew(sure, &map, &holder, *volume, *generation, now)?))
        };
        let renewed: Result<Vec<_>, OtherReign> = volumes.iter().map(&mut renew).collect();
        let renewed = renewed.map_err(|error| self.not_leading(&error.to_string()))?;
        let reports = soft.heartbeats.values().flat_map(|it| &it.differing);
        let mut differing: Vec<_> = reports
            .filter(|group| volumes.iter().any(|(volume, _)| *volume == group.volume))
            .copied()
            .collect();
        // Those that a move waits for first.
        differing.sort_unstable();
        let mut named: Vec<_> = soft.desk.opens_of(volumes.iter().map(|(volume, _)| *volume)).collect();
        named.extend(differing);
        let mut seen = std::collections::BTreeSet::new();
        named.retain(|group| seen.insert(*group));
        named.truncate(DIFFERING_MAX);
        let differing = named;
        Ok(Response::Renewed { volumes: renewed, layout: map.layout, differing })
    }

    pub async fn release(&self, volumes: Vec<(VolumeId, Generation, bool)>) -> Result<Reply> {
        check_count(volumes.len())?;
        let reign = self.reign()?;
        let command = Command::Release { volumes: volumes.clone() };
        let reply = self.propose(&reign, command).await?;
        let map = self.map();
        let mut soft = reign.soft.borrow_mut();
        for (id, generation, clean) in volumes {
            if soft.leases.released(&map, id, generation) && clean {
                // What nodes said before is over; they say it again if it is not.
                for heartbeat in soft.heartbeats.values_mut() {
                    heartbeat.differing.retain(|group| group.volume != id);
                }
            }
        }
        Ok(reply)
    }

    pub async fn remove_volume(&self, key: VolumeKey) -> Result<Reply> {
        let (reign, sure) = self.confirmed().await?;
        let map = self.map();
        let volume = self.find(&map, &key)?;
        let command = reign.soft.borrow_mut().leases.removal(sure, &map, volume, self.now());
        let command = command.map_err(|error| self.not_leading(&error.to_string()))?;
        let reply = self.propose(&reign, command).await?;
        let mut soft = reign.soft.borrow_mut();
        soft.leases.removed(volume);
        soft.healed.remove(&volume);
        Ok(reply)
    }

    /// Section 8: volumes without a holder that are not known to be whole. A healer that died is no
    /// holder any more when its lease has run out.
    pub async fn heal_work(self: &Rc<Self>, holder: Holder, max: u32) -> Result<Response> {
        if holder.kind != HolderKind::Healer {
            return Err(RpcError::Malformed("a healer must say that it is one".to_owned()));
        }
        let (reign, sure) = self.confirmed().await?;
        // Two at once would count the same places as free.
        if reign.healing.replace(true) {
            return Ok(Response::Heal(Vec::new()));
        }
        let grants = self.choose_heals(&reign, sure, &holder, max as usize);
        let granted = match grants.is_empty() {
            true => Ok(Vec::new()),
            false => self.grant(&reign, grants, holder).await,
        };
        reign.healing.set(false);
        Ok(Response::Heal(granted?.into_iter().flatten().collect()))
    }

    fn choose_heals(&self, reign: &Reign, sure: Confirmed, holder: &Holder, max: usize) -> Vec<Grant> {
        let map = self.map();
        if map.restored.unchecked {
            return Vec::new();
        }
        let now = self.now();
        let soft = &mut *reign.soft.borrow_mut();
        soft.healed.retain(|volume, _| map.volumes.contains_key(volume));
        let statuses = volume_statuses(&map, soft, now);
        let running = statuses.iter().filter(|it| it.healing).count();
        let opens = soft.desk.volumes_to_open();
        let mut due: Vec<(Option<Time>, VolumeId)> = Vec::new();
        for status in statuses.iter().filter(|it| !it.attached && !it.healing && it.kept.is_none()) {
            // One that a move waits for may be wanted again as soon as the move has got a step further.
            let again = match opens.contains(&status.volume) {
                true => MOVE_HEAL_AGAIN,
                false if status.needs_heal => HEAL_AGAIN,
                false => continue,
            };
            let last = soft.healed.get(&status.volume).copied();
            if last.is_none_or(|last| now.since(last) >= again) {
                due.push((last, status.volume));
            }
        }
        // Those that have waited longest: some cannot be healed now, and must not keep the others from it.
        due.sort_unstable();
        let mut grants = Vec::new();
        for (_, volume) in due {
            if grants.len() >= max.min(HEALS_MAX.saturating_sub(running)) {
                break;
            }
            if let Ok(grant) = soft.leases.ask(sure, &map, volume, holder, Generation(0), now) {
                soft.healed.insert(volume, now);
                grants.push(grant);
            }
        }
        grants
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

pub(crate) fn volume_statuses(map: &ClusterMap, soft: &mut Soft, now: Time) -> Vec<health::VolumeStatus> {
    let reports = soft.heartbeats.values().flat_map(|it| &it.differing);
    let differing: std::collections::BTreeSet<VolumeId> = reports.map(|it| it.volume).collect();
    let keeper = soft.leases.keeper(map, now);
    let kept: Vec<_> = map.volumes.keys().map(|id| keeper(*id)).collect();
    drop(keeper);
    let volumes = map.volumes.keys().zip(kept).map(|(id, kept)| {
        let expired = soft.leases.expired(map, *id, now);
        let unrenewed = soft.leases.unrenewed(map, *id, now);
        // While the lease runs it is the lease that keeps it.
        let kept = kept.filter(|_| expired);
        let status = health::volume_status(map, *id, expired, differing.contains(id));
        health::VolumeStatus { unrenewed, kept, ..status }
    });
    volumes.collect()
}
