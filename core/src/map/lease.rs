//! Who may be granted a volume now: section 6.2 of `docs/protocol.md`.
//!
//! The map says who was granted the last generation. This table, kept by the leading monitor in memory,
//! says until when that holder may believe in its lease. Pure: the time comes in.
//!
//! # The rule
//!
//! Generation g+1 is granted only when g was released, or when its lease has run out *by the monitor's
//! clock*, plus the margin. The holder counts from when it *sent* the request that was answered, so its
//! lease ends before the monitor's count does, unless its clock is slower by more than the margin over
//! one lease (1 s in 6 s, where clocks drift by less than 1 ms).
//!
//! # Why renewals need no disk
//!
//! A monitor that starts, or takes over, counts every held lease as renewed at that moment. Every
//! renewal that the one before it answered was sent earlier, so the holder's count ends earlier than
//! this one's. What is lost is time (a volume whose holder died during the change waits one lease and
//! margin more), never safety. A grant is another matter: it is in the map, through Raft, before it
//! is answered. With several monitors, a leader confirms with a majority that it still is the leader
//! before it answers renewals; otherwise one that has been deposed could renew behind its
//! successor's back.
//!
//! # Why a restarted front end waits
//!
//! A holder that crashed and one that hangs look the same from here. A new process with the same name,
//! on the same host, even on the same socket, proves nothing about the old one (it may be stopped, and
//! continued later with a lease that it believes in). So only a release shortens the wait; without one
//! it is at most lease and margin. A request by the *same* process (same boot id) is granted at once: it
//! says itself that it does not use its last generation any more. A *healer* serves no reads, so nothing
//! depends on its lease: any front end takes over at once, and the ballot deposes it. It takes over from nobody
//! whose lease runs, its own process's front end included; nor from a front end that nodes still hear
//! ([`super::heard`], asked by [`super::reign::Reign::ask`] before this table is).

use super::heard::Kept;
use super::{ClusterMap, Holder, HolderKind, Volume};
use crate::ids::*;
use crate::limits::CALL_BELIEVED;
use rustc_hash::FxHashMap;

/// Lengths, in microseconds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// How long a lease lasts after its renewal was sent.
    pub lease: u64,
    /// How much longer the monitor waits: room for clocks of different speed.
    pub margin: u64,
    /// For how long a node's word is believed on which leaders it hears ([`super::heard`]).
    pub word: u64,
}

impl Default for LeaseConfig {
    fn default() -> LeaseConfig {
        LeaseConfig { lease: 6_000_000, margin: 1_000_000, word: CALL_BELIEVED }
    }
}

/// What a holder hears when it renews.
#[derive(Copy, Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Renewal {
    /// The lease runs anew from when the renewal was sent.
    Renewed {
        /// Another front end wants the volume: finish what is under way, and release.
        release_please: bool,
    },
    /// The generation is over, or the volume is gone.
    Lost,
    /// The lease was found to have run out, and whether another generation is granted is just being
    /// decided: it does not run anew. Ask again.
    Undecided,
}

/// Why a volume is not granted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// There is no such volume.
    Missing,
    /// Somebody else has it.
    Busy {
        /// Who.
        holder: Holder,
        /// Microseconds until its lease will have run out, unless it is renewed.
        retry_after: u64,
    },
    /// A healer asks, and the front end that holds it may be well.
    Kept(Kept),
}

#[derive(Copy, Clone, Debug)]
struct Lease {
    generation: Generation,
    renewed: Time,
    /// When a front end last asked for the volume. One that has given up does not drive the holder out.
    wanted: Option<Time>,
    /// Grants on top of this generation that are being committed, each between [`LeaseTable::ask`]'s yes and its
    /// end, and those whose end nobody knows: while there is one, no renewal may slip in. Counted, since several may
    /// ask before the first is through, and that one of them comes to nothing says nothing about the others.
    granting: u32,
}

impl Lease {
    fn new(generation: Generation, renewed: Time) -> Lease {
        Lease { generation, renewed, wanted: None, granting: 0 }
    }
}

/// The leases of the volumes that are held. Has at most one entry per volume of the map.
#[derive(Clone, Debug)]
pub struct LeaseTable {
    config: LeaseConfig,
    leases: FxHashMap<VolumeId, Lease>,
}

impl LeaseTable {
    /// At the moment when this monitor begins to lead, with the map of that moment: every held lease
    /// counts as renewed now.
    pub fn new(config: LeaseConfig, map: &ClusterMap, now: Time) -> LeaseTable {
        let mut table = LeaseTable { config, leases: FxHashMap::default() };
        for (id, volume) in &map.volumes {
            if volume.holder.is_some() {
                table.granted(*id, volume.generation, now);
            }
        }
        table
    }

    /// The volume's lease. One of a generation that the table does not know was granted by a request
    /// that was cut off before it could say so: it counts as renewed at `now`, which is never too
    /// early.
    fn lease(&mut self, volume: VolumeId, generation: Generation, now: Time) -> &mut Lease {
        let fresh = Lease::new(generation, now);
        let lease = self.leases.entry(volume).or_insert(fresh);
        if lease.generation != generation {
            *lease = fresh;
        }
        lease
    }

    /// May `asker` have the volume? If so, the generation that it is granted on top of (for
    /// [`super::Grant::seen`]). If not, and it is a front end, the holder is asked to release.
    ///
    /// After a yes the caller proposes the grant and, whatever comes of it, then calls
    /// [`LeaseTable::granted`] or [`LeaseTable::not_granted`], once for each yes; until then the holder cannot
    /// renew.
    pub fn ask(
        &mut self,
        map: &ClusterMap,
        volume: VolumeId,
        asker: &Holder,
        now: Time,
    ) -> Result<Generation, NotNow> {
        let it = map.volumes.get(&volume).ok_or(NotNow::Missing)?;
        let Some(holder) = &it.holder else {
            return Ok(it.generation);
        };
        let preempts = holder.kind == HolderKind::Healer && asker.kind == HolderKind::FrontEnd;
        // A healer of the holder's own process says nothing about the front end beside it, which may
        // still lead: it gets no more than anybody else's.
        let same = holder.is(asker) && holder.kind == asker.kind;
        let ends = self.config.lease.saturating_add(self.config.margin);
        let lease = self.lease(volume, it.generation, now);
        let held = now.since(lease.renewed);
        if same || preempts || held > ends {
            lease.granting = lease.granting.saturating_add(1);
            return Ok(it.generation);
        }
        if asker.kind == HolderKind::FrontEnd {
            lease.wanted = Some(now);
        }
        Err(NotNow::Busy { holder: holder.clone(), retry_after: ends - held + 1 })
    }

    /// A grant was committed, and is answered now.
    pub fn granted(&mut self, volume: VolumeId, generation: Generation, now: Time) {
        self.leases.insert(volume, Lease::new(generation, now));
    }

    /// A grant on top of `seen`, to which [`LeaseTable::ask`] said yes, was not committed and never
    /// will be.
    pub fn not_granted(&mut self, volume: VolumeId, seen: Generation) {
        if let Some(lease) = self.leases.get_mut(&volume)
            && lease.generation == seen
        {
            lease.granting = lease.granting.saturating_sub(1);
        }
    }

    /// A holder renews. The caller has made sure that it leads (see the module).
    pub fn renew(
        &mut self,
        map: &ClusterMap,
        holder: &Holder,
        volume: VolumeId,
        generation: Generation,
        now: Time,
    ) -> Renewal {
        let held =
            |it: &Volume| it.generation == generation && it.holder.as_ref().is_some_and(|h| h.is(holder));
        if !map.volumes.get(&volume).is_some_and(|it| held(it)) {
            return Renewal::Lost;
        }
        let patience = 2 * self.config.lease;
        let lease = self.lease(volume, generation, now);
        let undecided = lease.granting > 0;
        #[cfg(feature = "deliberate-bugs")]
        let undecided = undecided && !crate::bugs::renewal_slips_in();
        if undecided {
            return Renewal::Undecided;
        }
        // A renewal that came late finds the generation not yet granted to another: it may go on.
        lease.renewed = now;
        let release_please = lease.wanted.is_some_and(|at| now.since(at) < patience);
        Renewal::Renewed { release_please }
    }

    /// For so long nobody could renew, up to `now`: it does not count. Leases only become longer by it.
    pub fn stood_still(&mut self, time: u64, now: Time) {
        for lease in self.leases.values_mut() {
            lease.renewed = lease.renewed.after(time).min(now).max(lease.renewed);
        }
    }

    /// A volume was released or removed.
    pub fn released(&mut self, volume: VolumeId) {
        self.leases.remove(&volume);
    }

    /// For how long the holder has not renewed (µs); none if there is no holder.
    pub fn unrenewed(&mut self, map: &ClusterMap, volume: VolumeId, now: Time) -> Option<u64> {
        let it = map.volumes.get(&volume).filter(|it| it.holder.is_some())?;
        Some(now.since(self.lease(volume, it.generation, now).renewed))
    }

    /// True if the volume's holder may not believe in its lease any more, or there is none.
    pub fn expired(&mut self, map: &ClusterMap, volume: VolumeId, now: Time) -> bool {
        let Some(it) = map.volumes.get(&volume) else {
            return true;
        };
        let ends = self.config.lease.saturating_add(self.config.margin);
        it.holder.is_none() || now.since(self.lease(volume, it.generation, now).renewed) > ends
    }
}

#[cfg(test)]
mod tests;
