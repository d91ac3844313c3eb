//! What the rest of the world knows of the monitors: generations and leases, and who may heal.
//!
//! The rules are the daemons' own, [`trefoil_core::map::reign`]. In three runs of five there is one monitor,
//! which agrees with itself at once and leads for ever; in the others there are several, see
//! [`replicas`](super::replicas). A healer holds no lease and may be replaced at any time.

use super::calls::{all_nodes_said_nobody, held_by_front_end};
use super::net::{MONITOR, host_end};
use super::requests::Request;
use super::{Clock, Event, World};
use crate::check::Violation;
use crate::coverage::Cover;
use crate::plan::{POOL, Plan, VOLUMES_MAX};
use trefoil_core::leader::Input;
use trefoil_core::map::heard::Callers;
use trefoil_core::map::lease::{LeaseConfig, Renewal};
use trefoil_core::map::reign::{Confirmed, Fate, NoGrant, Outcome, Reign, ReignId};
use trefoil_core::map::{Ack, ClusterMap, Command, FailureDomain, Holder, HolderKind, MapError, Reply};
use trefoil_core::{Generation, GroupId, Incarnation, NodeId, PgId, Time, VolumeId};

/// What the world keeps of a volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// The last generation granted.
    pub generation: u64,
    /// Its copies may differ.
    pub needs_healing: bool,
    /// Somebody wants to take it over.
    pub wanted: bool,
}

/// The monitors.
#[derive(Debug)]
pub struct Monitor {
    volumes: [Volume; VOLUMES_MAX],
    /// The clock of the only one.
    pub clock: Clock,
    /// Until then it does not answer.
    pub down_until: u64,
    /// What the only one knows.
    map: ClusterMap,
    reign: Reign,
    /// Processes that have asked.
    pub boots: u64,
}

/// The reign of the only monitor.
const ALWAYS: ReignId = ReignId { term: 1, monitor: 1 };

/// The run's leases.
pub fn lease_config(plan: &Plan) -> LeaseConfig {
    let word = plan.calls.as_ref().map_or(plan.lease, |calls| calls.believed);
    LeaseConfig { lease: plan.lease, margin: plan.margin, word }
}

/// The map that a run begins with.
pub fn first_map(plan: &Plan) -> Result<ClusterMap, MapError> {
    let mut map = ClusterMap::new();
    map.apply(&Command::Init { cluster_id: [1; 16], name: "sim".to_owned() })?;
    for n in 0..plan.nodes as u64 {
        map.apply(&Command::RegisterNode {
            id: None,
            incarnation: Incarnation(n + 1),
            address: ([127, 0, 0, 1], 1).into(),
            host: format!("host{n}"),
            class: None,
            size: 1 << 40,
            now: 0,
        })?;
    }
    let (name, domain, ack) = ("pool".to_owned(), FailureDomain::Host, Ack::Majority);
    map.apply(&Command::CreatePool { name, size: 3, pg_num: plan.pgs.len() as u32, domain, ack })?;
    for (pg, config) in (0..).zip(&plan.pgs) {
        map.pgs.set(PgId { pool: POOL, pg }, config);
    }
    for n in 0..plan.volumes {
        let (name, pool) = (format!("volume{n}"), "pool".to_owned());
        let (size, object_size) = ((plan.objects as u64) << 22, 4 << 20);
        map.apply(&Command::CreateVolume { name, pool, size, object_size, io_timeout: None })?;
    }
    Ok(map)
}

/// A process that leads, or wants to, by the number that it drew when it started.
pub fn holder(boot: u64, healer: bool) -> Holder {
    let kind = if healer { HolderKind::Healer } else { HolderKind::FrontEnd };
    Holder { name: "sim".to_owned(), boot, kind }
}

impl Monitor {
    pub(super) fn new(clock: Clock, plan: &Plan, map: ClusterMap) -> Monitor {
        let config = lease_config(plan);
        let reign = Reign::begin(Confirmed::by_majority(ALWAYS), config, &map, Time(clock.local(0)));
        let volumes = std::array::from_fn(|_| Volume::default());
        Monitor { volumes, clock, down_until: 0, map, reign, boots: 0 }
    }
    /// A volume.
    pub fn volume(&mut self, id: VolumeId) -> &mut Volume {
        &mut self.volumes[id.0 as usize - 1]
    }
    /// A generation was granted, of which this is known.
    pub(super) fn granted(&mut self, id: VolumeId, generation: u64) {
        let volume = self.volume(id);
        volume.generation = generation;
        volume.wanted = false;
        // Unless its holder says otherwise.
        volume.needs_healing = true;
    }
    /// The only monitor decides, and agrees with itself.
    fn grant_at_once(&mut self, id: VolumeId, holder: &Holder, now: Time) -> Result<Option<u64>, NoGrant> {
        let sure = Confirmed::by_majority(ALWAYS);
        let grant = self.reign.ask(sure, &self.map, id, holder, Generation(0), now)?;
        let grants = vec![grant];
        let command = Command::GrantGenerations { grants: grants.clone(), holder: holder.clone() };
        let outcome = self.map.apply_written(&self.reign.proposal(command, 0), ALWAYS);
        let Outcome::Done(Ok(Reply::Granted(results))) = outcome else { return Ok(None) };
        self.reign.settle(&grants, Fate::Applied(&results), &self.map, now);
        Ok(results.first().and_then(|it| it.as_ref().ok()).map(|generation| generation.0))
    }

    /// The last generation granted for a volume.
    pub fn generation_of(&self, id: VolumeId) -> u64 {
        self.volumes[id.0 as usize - 1].generation
    }
}

impl World {
    /// From time to time, for each volume: does anybody want to lead it?
    pub(super) fn volume_timer(&mut self, volume: VolumeId) {
        let state = self.monitor.volume(volume).clone();
        let at = self.now + self.rng.between(self.plan.attach_after.0, self.plan.attach_after.1);
        if !self.calm_done(volume) {
            self.queue.push(at, Event::VolumeTimer { volume });
        }
        let healer = if self.faulty {
            let served = self.leaders.iter().any(|l| {
                l.volume == volume && l.generation == state.generation && l.machine.is_some() && !l.healer
            });
            if served && !state.wanted {
                // Healers ask all the time, and the monitors know of a front end only what its lease says.
                if self.plan.calls.is_none() || !state.needs_healing || self.rng.one_in(2) {
                    return;
                }
                true
            } else {
                // A volume that nobody uses is healed; sometimes a client is faster.
                state.needs_healing && !state.wanted && self.rng.one_in(2)
            }
        } else {
            match self.calm_wants(volume) {
                Some(healer) => healer,
                None => return,
            }
        };
        let host = self.rng.index(self.plan.hosts);
        if self.replicas.is_some() {
            return self.ask_monitors(volume, healer, host);
        }
        if self.lease_message_lost() {
            return;
        }
        let arrives = self.arrival(host_end(host), MONITOR);
        self.queue.push(arrives, Event::Ask { volume, healer, host, asked: self.now });
    }

    pub(super) fn lease_message_lost(&mut self) -> bool {
        self.faulty && self.rng.percent(self.plan.renewals_lost_percent)
    }

    /// The monitors are asked for a generation.
    pub(super) fn ask(&mut self, volume: VolumeId, healer: bool, host: usize, asked: u64) {
        if self.monitor.down_until > self.now {
            return;
        }
        let now = Time(self.monitor.clock.local(self.now));
        let held = self.monitor.map.volumes.get(&volume).and_then(|it| it.holder.as_ref());
        let by_expiry = held.is_some_and(|holder| holder.kind == HolderKind::FrontEnd);
        // Each process asks once.
        self.monitor.boots += 1;
        let boot = self.monitor.boots;
        let before = held_by_front_end(&self.monitor.map, volume).filter(|_| healer);
        if healer {
            all_nodes_said_nobody(&self.plan, &mut self.monitor.reign, &self.monitor.map, now);
        }
        let generation = match self.monitor.grant_at_once(volume, &holder(boot, healer), now) {
            Ok(Some(generation)) => generation,
            Ok(None) => return,
            Err(why) => return self.not_given(&why),
        };
        self.given_to_healer((0, ALWAYS), volume, before);
        self.monitor.granted(volume, generation);
        if let Some(moves) = &mut self.moves
            && !moves.granted(volume, generation)
        {
            let what = format!("the map does not grant generation {generation} of {volume}");
            self.note(Err(Violation::plain("map", what)));
        }
        if by_expiry {
            self.coverage.count(Cover::LeasesExpired);
        }
        if self.trace.wanted() {
            self.say(
                Some((volume, None)),
                format!("generation {generation} of {volume} is granted to host {host}"),
            );
        }
        if self.lease_message_lost() {
            return;
        }
        let at = self.arrival(MONITOR, host_end(host));
        // With the grant comes the map as it is now.
        let pgs = self.plan.pgs.as_slice().into();
        let asker = super::requests::Asker { boot, number: 0 };
        self.queue.push(at, Event::Granted { volume, generation, healer, host, asked, asker, pgs });
    }

    /// A leader renews its lease.
    pub(super) fn renew(&mut self, li: usize) {
        let host = &self.leaders[li];
        if host.machine.is_none() || !host.renews {
            return;
        }
        let end = host_end(host.host);
        let sent = host.clock.local(self.now);
        let (volume, generation, from) = (host.volume, host.generation, host.host);
        self.queue.push(self.now + self.plan.lease / 3, Event::Renew { li });
        if self.replicas.is_some() {
            return self.request(from, Request::Renewal { volume, generation, li, sent });
        }
        if self.lease_message_lost() {
            return;
        }
        let at = self.arrival(end, MONITOR);
        self.queue.push(at, Event::Renewal { volume, generation, li, sent });
    }

    /// A renewal has come to the monitors.
    pub(super) fn renewal(&mut self, volume: VolumeId, generation: u64, li: usize, sent: u64) {
        if self.monitor.down_until > self.now {
            return;
        }
        let now = Time(self.monitor.clock.local(self.now));
        let lease = self.plan.lease;
        let holder = holder(self.leaders[li].boot, false);
        let Monitor { reign, map, .. } = &mut self.monitor;
        let sure = Confirmed::by_majority(ALWAYS);
        let renewed = reign.renew(sure, map, &holder, volume, Generation(generation), now);
        if !matches!(renewed, Ok(Renewal::Renewed { .. })) {
            return;
        }
        if self.lease_message_lost() {
            return;
        }
        let at = self.arrival(MONITOR, host_end(self.leaders[li].host));
        self.queue.push(at, Event::Renewed { li, until: sent + lease });
    }

    /// The answer to a renewal has come to the leader.
    pub(super) fn renewed(&mut self, li: usize, until: u64) {
        let host = &self.leaders[li];
        if host.machine.is_some() && host.lease_until < host.clock.local(self.now) {
            self.coverage.count(Cover::RenewedLate);
        }
        self.believes(li, until);
        self.leader_input(li, Input::Lease { until: Time(until) });
    }

    /// A front end believes in its lease until then, by its own clock.
    pub(super) fn believes(&mut self, li: usize, until: u64) {
        let host = &self.leaders[li];
        if host.machine.is_none() || host.healer {
            return;
        }
        let (volume, generation, until) = (host.volume, host.generation, host.clock.when(until));
        let checked = self.leases.given(volume, li, generation, until, self.now);
        self.note(checked);
    }

    /// A node's word has come to the only monitor.
    pub(super) fn word(&mut self, ni: usize, callers: &Callers) {
        if self.monitor.down_until > self.now {
            return;
        }
        let now = Time(self.monitor.clock.local(self.now));
        let Monitor { reign, map, .. } = &mut self.monitor;
        reign.node_hears(map, NodeId(ni as u32), callers, now);
        self.was_told((0, ALWAYS), ni, callers);
    }

    /// A release has come to the monitors.
    pub(super) fn released(&mut self, volume: VolumeId, generation: u64, clean: bool) {
        if self.monitor.down_until > self.now {
            return;
        }
        let volumes = vec![(volume, Generation(generation), clean)];
        let Monitor { reign, map, .. } = &mut self.monitor;
        let _ = map.apply_written(&reign.proposal(Command::Release { volumes }, 0), ALWAYS);
        if reign.released(map, volume, Generation(generation)) {
            self.monitor.volume(volume).needs_healing = !clean;
        }
        self.calm_released(volume, generation);
    }

    /// Nodes have found that their copies of a group differ, and no leader to tell.
    /// An attached front end is told (section 8); else a healer will be granted the volume.
    pub(super) fn volume_differs(&mut self, group: GroupId) {
        let volume = group.volume;
        if self.monitor.down_until > self.now {
            return;
        }
        self.monitor.volume(volume).needs_healing = true;
        let generation = self.monitor.volume(volume).generation;
        let holder = self.leaders.iter().position(|l| l.volume == volume && l.generation == generation);
        if let Some(li) = holder.filter(|li| self.leaders[*li].machine.is_some()) {
            let at = self.arrival(MONITOR, host_end(self.leaders[li].host));
            self.queue.push(at, Event::Differs { li, group });
        }
    }
}
