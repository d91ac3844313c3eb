//! The stand-in for the monitors: generations and leases, and who may heal.
//!
//! It grants generation g + 1 only when the holder of g has released, or when g's lease has run out by
//! its own clock since it took the last renewal, plus the margin for clocks that drift (6.2). A healer
//! holds no lease and may be replaced at any time.

use super::net::{MONITOR, host_end};
use super::{Clock, Event, World};
use crate::check::Violation;
use crate::coverage::Cover;
use crate::plan::VOLUMES_MAX;
use trefoil_core::leader::Input;
use trefoil_core::{GroupId, Time, VolumeId};

/// What the monitors know of a volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// The last generation granted.
    pub generation: u64,
    /// Its lease has run out then, by the monitors' clock.
    pub lease_end: u64,
    /// Its holder has released, or there was none.
    pub free: bool,
    /// Its holder is a healer.
    pub healer: bool,
    /// Its copies may differ.
    pub needs_healing: bool,
    /// Somebody wants to take it over.
    pub wanted: bool,
}

/// The monitors.
#[derive(Debug)]
pub struct Monitor {
    volumes: [Volume; VOLUMES_MAX],
    /// Their clock.
    pub clock: Clock,
    /// Until then they do not answer.
    pub down_until: u64,
}

impl Monitor {
    pub(super) fn new(clock: Clock) -> Monitor {
        let volume = Volume { free: true, ..Volume::default() };
        Monitor { volumes: std::array::from_fn(|_| volume.clone()), clock, down_until: 0 }
    }
    /// A volume.
    pub fn volume(&mut self, id: VolumeId) -> &mut Volume {
        &mut self.volumes[id.0 as usize - 1]
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
                return;
            }
            // A volume that nobody uses is healed; sometimes a client is faster.
            state.needs_healing && !state.wanted && self.rng.one_in(2)
        } else {
            match self.calm_wants(volume) {
                Some(healer) => healer,
                None => return,
            }
        };
        let host = self.rng.index(self.plan.hosts);
        if self.lease_message_lost() {
            return;
        }
        let arrives = self.arrival(host_end(host), MONITOR);
        self.queue.push(arrives, Event::Ask { volume, healer, host, asked: self.now });
    }

    fn lease_message_lost(&mut self) -> bool {
        self.faulty && self.rng.percent(self.plan.renewals_lost_percent)
    }

    /// The monitors are asked for a generation.
    pub(super) fn ask(&mut self, volume: VolumeId, healer: bool, host: usize, asked: u64) {
        if self.monitor.down_until > self.now {
            return;
        }
        let now = self.monitor.clock.local(self.now);
        let (lease, margin) = (self.plan.lease, self.plan.margin);
        let state = self.monitor.volume(volume);
        let expired = now > state.lease_end + margin;
        // A healer never stands in a client's way; a healer stands in no healer's way but its own.
        if !(state.free || expired || (state.healer && !healer)) {
            return;
        }
        let by_expiry = !state.free && !state.healer;
        state.generation += 1;
        state.lease_end = now + lease;
        state.free = false;
        state.healer = healer;
        state.wanted = false;
        // Unless its holder says otherwise.
        state.needs_healing = true;
        let generation = state.generation;
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
        self.queue.push(at, Event::Granted { volume, generation, healer, host, asked, pgs });
    }

    /// A leader renews its lease.
    pub(super) fn renew(&mut self, li: usize) {
        let host = &self.leaders[li];
        if host.machine.is_none() || !host.renews {
            return;
        }
        let end = host_end(host.host);
        let sent = host.clock.local(self.now);
        let (volume, generation) = (host.volume, host.generation);
        self.queue.push(self.now + self.plan.lease / 3, Event::Renew { li });
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
        let now = self.monitor.clock.local(self.now);
        let lease = self.plan.lease;
        let state = self.monitor.volume(volume);
        if state.generation != generation || state.free {
            return;
        }
        state.lease_end = state.lease_end.max(now + lease);
        if self.lease_message_lost() {
            return;
        }
        let at = self.arrival(MONITOR, host_end(self.leaders[li].host));
        self.queue.push(at, Event::Renewed { li, until: sent + lease });
    }

    /// The answer to a renewal has come to the leader.
    pub(super) fn renewed(&mut self, li: usize, until: u64) {
        self.leader_input(li, Input::Lease { until: Time(until) });
    }

    /// A release has come to the monitors.
    pub(super) fn released(&mut self, volume: VolumeId, generation: u64, clean: bool) {
        if self.monitor.down_until > self.now {
            return;
        }
        let state = self.monitor.volume(volume);
        if state.generation == generation {
            state.free = true;
            state.needs_healing = !clean;
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
