//! One *reign*: what a monitor may decide while it leads, from when it was elected to when it was not the leader
//! any more. Section 6.2 of `docs/protocol.md`, `docs/decisions/0007-monitors.md`.
//!
//! Consensus makes one sequence of commands. It does not know on what they rest: whether a lease has run out is
//! known to the leader alone, and only for as long as it leads without a gap. These are the rules that hold a
//! decision to the reign in which it is true. The monitors and the simulator use this file; neither has a rule of
//! its own. Pure: time, the map and what a majority has said come in. It does no consensus.
//!
//! # The rules
//!
//! 1. A reign begins when a majority has confirmed it, with a map that has everything which its predecessors
//!    committed; and with none of their leases: each held one counts as renewed at that moment ([`Reign::begin`]).
//! 2. A lease is judged (granted over, renewed, called expired) only when a majority that was asked *after* the
//!    request came has said that this reign lasts ([`Confirmed`]). Otherwise a successor may have judged it
//!    meanwhile.
//! 3. Every decision is written with the reign in which it was made, and does something only if it was *written*
//!    in that reign ([`ClusterMap::apply_written`]). A monitor may lead, be deposed, and lead again before it
//!    writes; a successor in between may have renewed the lease which it found to have run out.
//! 4. Between the decision to grant and its fate the old holder cannot renew; if the fate is not known, never
//!    again in this reign ([`Reign::settle`]).
//! 5. A healer gets nothing from a front end that nodes hear ([`super::heard`]). What they hear is soft state of the
//!    reign, too: a new one has to be told first.

use super::heard::{Callers, Heard, Kept};
use super::lease::{LeaseConfig, LeaseTable, NotNow, Renewal};
use super::{ClusterMap, Command, Grant, Holder, HolderKind, MapError, Reply};
use crate::ids::*;
use serde::{Deserialize, Serialize};

/// A pause of more than this (µs) between two moments at which a majority was known to answer is one in which nobody
/// could renew ([`Reign::heard`]).
pub const PAUSE_MIN: u64 = 1_000_000;
/// What such a pause counts all the same (µs): as much as lies between two moments that are not late. A monitor that is
/// late each time would find nobody silent, ever.
pub const PAUSE_COUNTS: u64 = 200_000;

/// Names a reign: no other one, of whichever monitor, has the same. Later ones are greater.
///
/// It is in the log's entries: fields are not reordered.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReignId {
    /// Raft's term.
    pub term: u64,
    /// The monitor.
    pub monitor: u64,
}

/// What is written to the log: a command, and the reign in which it was decided.
///
/// It is in the log's entries: fields are not reordered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Rule 3.
    pub reign: ReignId,
    /// When it was proposed: milliseconds since 1970, for people.
    pub at: u64,
    /// What is to be done.
    pub command: Command,
}

/// What came of an entry of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It has no command: a new leader's first, or a change of the monitors.
    Nothing,
    /// It was decided in another reign than it was written in, and changed nothing.
    Superseded,
    /// The command was applied.
    Done(Result<Reply, MapError>),
}

impl ClusterMap {
    /// Applies an entry of the log, which was written in `written_in`: rule 3.
    pub fn apply_written(&mut self, proposal: &Proposal, written_in: ReignId) -> Outcome {
        let superseded = proposal.reign != written_in;
        #[cfg(feature = "deliberate-bugs")]
        let superseded = superseded && !crate::bugs::superseded_applies();
        if superseded {
            return Outcome::Superseded;
        }
        Outcome::Done(self.apply_at(&proposal.command, proposal.at))
    }
}

/// A majority of the monitors has said that a reign lasts.
#[derive(Copy, Clone, Debug)]
pub struct Confirmed {
    reign: ReignId,
}

impl Confirmed {
    /// The caller answers for it: a majority was asked after what is now to be decided had come; it answered the
    /// monitor that leads in `reign`; and the map has everything that was committed when it was asked, an entry
    /// of this reign included.
    pub fn by_majority(reign: ReignId) -> Confirmed {
        Confirmed { reign }
    }
}

/// The confirmation names another reign than this one, whose leases say nothing any more. The asker asks again.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this monitor had lost the lead, and leads anew: ask again")]
pub struct OtherReign;

/// Why there is no grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoGrant {
    /// See there.
    OtherReign,
    /// The lease table says no.
    NotNow(NotNow),
}

/// What became of a proposal.
#[derive(Clone, Debug)]
pub enum Fate<'a> {
    /// It was committed, and applied here.
    Applied(&'a [Result<Generation, MapError>]),
    /// It changed nothing, and never will.
    Never,
    /// It may be committed yet.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Reign {
    id: ReignId,
    started: Time,
    /// When a majority was last known to answer.
    heard: Time,
    leases: LeaseTable,
    /// Rule 5.
    callers: Heard,
}

impl Reign {
    /// Rule 1: at a moment when this monitor leads, with the map of that moment.
    pub fn begin(confirmed: Confirmed, config: LeaseConfig, map: &ClusterMap, now: Time) -> Reign {
        let renewed = now;
        #[cfg(feature = "deliberate-bugs")]
        let renewed = if crate::bugs::new_reign_waits_for_nobody() { Time(0) } else { renewed };
        let leases = LeaseTable::new(config, map, renewed);
        Reign { id: confirmed.reign, started: now, heard: now, leases, callers: Heard::new(config.word) }
    }

    /// Its name.
    pub fn id(&self) -> ReignId {
        self.id
    }

    /// When it began, by this monitor's clock.
    pub fn started(&self) -> Time {
        self.started
    }

    /// A majority answers now, or did a moment ago. Wanted several times in each [`PAUSE_MIN`] while that is so, and
    /// before a lease is judged.
    ///
    /// A monitor goes on leading when the others are away or this process stands still, and no renewal is answered
    /// meanwhile. Were that time counted, all leases would have run out when it is over, and whoever asks first
    /// (a healer, say) would be given volumes whose holders are well, before these could renew. For safety nothing
    /// depends on it: leases only become longer.
    ///
    /// How much of such a pause that is over now does not count (all but [`PAUSE_COUNTS`]); 0: there was none. Other
    /// things that are counted by what was heard in this reign are to be told.
    pub fn heard(&mut self, now: Time) -> u64 {
        let pause = Some(now.since(self.heard)).filter(|pause| *pause > PAUSE_MIN);
        let pause = pause.map_or(0, |pause| pause - PAUSE_COUNTS);
        if pause > 0 {
            self.leases.stood_still(pause, now);
            self.callers.stood_still(pause, now);
        }
        self.heard = self.heard.max(now);
        pause
    }

    /// Rule 2.
    ///
    /// Errors: what a majority has confirmed is another reign.
    pub fn check(&self, confirmed: Confirmed) -> Result<(), OtherReign> {
        if confirmed.reign == self.id { Ok(()) } else { Err(OtherReign) }
    }

    /// A node has said which leaders it hears (rule 5).
    pub fn node_hears(&mut self, map: &ClusterMap, node: NodeId, callers: &Callers, now: Time) {
        self.callers.said(map, node, callers, now);
    }

    /// A node is one of the cluster no more.
    pub fn forget_node(&mut self, node: NodeId) {
        self.callers.forget_node(node);
    }

    /// Rule 5: says of any volume why no healer gets it, whatever its lease; none: nobody speaks against it. To be
    /// asked of many volumes at once.
    pub fn keeper<'a>(&'a self, map: &'a ClusterMap, now: Time) -> impl Fn(VolumeId) -> Option<Kept> + 'a {
        let keeper = self.callers.keeper(map, now);
        move |volume| {
            let it = map.volumes.get(&volume)?;
            // Who has released says itself that nobody leads; and a healer has nobody's I/O to end.
            let front_end = it.holder.as_ref().is_some_and(|holder| holder.kind == HolderKind::FrontEnd);
            front_end.then(|| keeper(volume, it.generation)).flatten()
        }
    }

    /// What is decided now is written with this reign's name.
    pub fn proposal(&self, command: Command, at: u64) -> Proposal {
        Proposal { reign: self.id, at, command }
    }

    /// May `holder` have the volume? If so, what is to be proposed, with `above` as in [`Grant`]. The caller tells
    /// [`Reign::settle`] what became of it, whatever that is; until then an overdue holder cannot renew.
    pub fn ask(
        &mut self,
        confirmed: Confirmed,
        map: &ClusterMap,
        volume: VolumeId,
        holder: &Holder,
        above: Generation,
        now: Time,
    ) -> Result<Grant, NoGrant> {
        self.check(confirmed).map_err(|OtherReign| NoGrant::OtherReign)?;
        let healer = holder.kind == HolderKind::Healer;
        let kept = healer.then(|| self.keeper(map, now)(volume)).flatten();
        #[cfg(feature = "deliberate-bugs")]
        let kept = kept.filter(|_| !crate::bugs::healers_ask_nobody());
        if let Some(kept) = kept {
            return Err(NoGrant::NotNow(NotNow::Kept(kept)));
        }
        let seen = self.leases.ask(map, volume, holder, now).map_err(NoGrant::NotNow)?;
        Ok(Grant { volume, seen, above })
    }

    /// Rule 4. `map`: with the proposal, if it was applied.
    pub fn settle(&mut self, grants: &[Grant], fate: Fate<'_>, map: &ClusterMap, now: Time) {
        match fate {
            Fate::Unknown => {}
            Fate::Never => grants.iter().for_each(|it| self.leases.not_granted(it.volume, it.seen)),
            Fate::Applied(results) => {
                for (grant, result) in grants.iter().zip(results) {
                    match result {
                        Ok(generation) if map.volumes.contains_key(&grant.volume) => {
                            self.leases.granted(grant.volume, *generation, now);
                        }
                        Ok(_) => {}
                        Err(_) => self.leases.not_granted(grant.volume, grant.seen),
                    }
                }
            }
        }
    }

    /// A holder renews its lease.
    ///
    /// Errors: what a majority has confirmed is another reign.
    pub fn renew(
        &mut self,
        confirmed: Confirmed,
        map: &ClusterMap,
        holder: &Holder,
        volume: VolumeId,
        generation: Generation,
        now: Time,
    ) -> Result<Renewal, OtherReign> {
        self.check(confirmed)?;
        Ok(self.leases.renew(map, holder, volume, generation, now))
    }

    /// A release of that generation was applied to the map. True if it has ended the volume's lease.
    pub fn released(&mut self, map: &ClusterMap, volume: VolumeId, generation: Generation) -> bool {
        let over = |it: &super::Volume| it.generation == generation && it.holder.is_none();
        let over = map.volumes.get(&volume).is_some_and(|it| over(it));
        if over {
            self.leases.released(volume);
            self.callers.forget_volume(volume);
        }
        over
    }

    /// What is proposed to remove a volume: even one that has a holder, if its lease has run out.
    ///
    /// Errors: what a majority has confirmed is another reign.
    pub fn removal(
        &mut self,
        confirmed: Confirmed,
        map: &ClusterMap,
        volume: VolumeId,
        now: Time,
    ) -> Result<Command, OtherReign> {
        self.check(confirmed)?;
        let generation = map.volumes.get(&volume).map(|it| it.generation);
        let expired = generation.filter(|_| self.expired(map, volume, now));
        Ok(Command::RemoveVolume { volume, expired })
    }

    /// A volume was removed from the map.
    pub fn removed(&mut self, volume: VolumeId) {
        self.leases.released(volume);
        self.callers.forget_volume(volume);
    }

    /// Microseconds since the volume's holder last renewed; none: nobody holds it. For people: nothing is decided by
    /// it.
    pub fn unrenewed(&mut self, map: &ClusterMap, volume: VolumeId, now: Time) -> Option<u64> {
        self.leases.unrenewed(map, volume, now)
    }

    /// True if the volume's holder may not believe in its lease any more, or there is none. For people, and for
    /// choosing what to look at: nothing is decided by it without a confirmation.
    pub fn expired(&mut self, map: &ClusterMap, volume: VolumeId, now: Time) -> bool {
        self.leases.expired(map, volume, now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::HolderKind;
    use super::super::tests::{cluster, holder, volume};
    use super::*;

    const FIRST: ReignId = ReignId { term: 1, monitor: 2 };
    const SECOND: ReignId = ReignId { term: 2, monitor: 1 };

    fn apply(map: &mut ClusterMap, proposal: &Proposal, written_in: ReignId) -> Option<Generation> {
        match map.apply_written(proposal, written_in) {
            Outcome::Done(Ok(Reply::Granted(results))) => results[0].clone().ok(),
            _ => None,
        }
    }

    fn sure(reign: ReignId) -> Confirmed {
        Confirmed::by_majority(reign)
    }

    /// Asks, writes and settles at once.
    fn attach(
        reign: &mut Reign,
        map: &mut ClusterMap,
        volume: VolumeId,
        who: &Holder,
        now: Time,
    ) -> Generation {
        let grant = reign.ask(sure(reign.id()), map, volume, who, Generation(0), now).unwrap();
        let grants = vec![grant];
        let command = Command::GrantGenerations { grants: grants.clone(), holder: who.clone() };
        let generation = apply(map, &reign.proposal(command, 0), reign.id()).unwrap();
        reign.settle(&grants, Fate::Applied(&[Ok(generation)]), map, now);
        generation
    }

    #[test]
    fn what_was_decided_in_one_reign_does_nothing_in_another() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        let config = LeaseConfig::default();
        let mut first = Reign::begin(sure(FIRST), config, &map, Time(0));
        let (a, b) = (holder("a", 1), holder("b", 2));
        let g1 = attach(&mut first, &mut map, disk, &a, Time(0));
        // The lease runs out, and b is to have the volume; but before that is written another monitor leads,
        // and a renews there.
        let late = Time(config.lease + config.margin + 1);
        let grant = first.ask(sure(FIRST), &map, disk, &b, Generation(0), late).unwrap();
        let command = Command::GrantGenerations { grants: vec![grant], holder: b.clone() };
        let proposal = first.proposal(command, 0);
        let mut second = Reign::begin(sure(SECOND), config, &map, Time(77));
        let renewed = second.renew(sure(SECOND), &map, &a, disk, g1, Time(78));
        assert_eq!(renewed, Ok(Renewal::Renewed { release_please: false }));
        let before = map.clone();
        assert!(matches!(map.apply_written(&proposal, SECOND), Outcome::Superseded));
        assert_eq!(map, before);
        assert!(matches!(map.apply_written(&proposal, FIRST), Outcome::Done(Ok(_))), "as it was decided");
    }

    #[test]
    fn a_confirmation_of_another_reign_judges_no_lease() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        let mut reign = Reign::begin(sure(FIRST), LeaseConfig::default(), &map, Time(0));
        let a = holder("a", 1);
        let g1 = attach(&mut reign, &mut map, disk, &a, Time(0));
        let other = sure(SECOND);
        assert_eq!(reign.renew(other, &map, &a, disk, g1, Time(1)), Err(OtherReign));
        let asked = reign.ask(other, &map, disk, &a, Generation(0), Time(1));
        assert_eq!(asked, Err(NoGrant::OtherReign));
        assert_eq!(reign.removal(other, &map, disk, Time(1)), Err(OtherReign));
    }

    #[test]
    fn a_new_reign_waits_for_every_lease_that_it_has_not_seen() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        let config = LeaseConfig::default();
        let a = holder("a", 1);
        attach(&mut Reign::begin(sure(FIRST), config, &map, Time(0)), &mut map, disk, &a, Time(0));
        let began = Time(1_000_000_000);
        let mut reign = Reign::begin(sure(SECOND), config, &map, began);
        let ask =
            |reign: &mut Reign, now| reign.ask(sure(SECOND), &map, disk, &holder("b", 2), Generation(0), now);
        let ends = config.lease + config.margin;
        assert!(matches!(ask(&mut reign, began.after(ends)), Err(NoGrant::NotNow(NotNow::Busy { .. }))));
        assert!(ask(&mut reign, began.after(ends + 1)).is_ok());
        let removal = reign.removal(sure(SECOND), &map, disk, began.after(ends)).unwrap();
        assert_eq!(removal, Command::RemoveVolume { volume: disk, expired: None });
    }

    #[test]
    fn a_grant_of_unknown_fate_keeps_the_old_holder_from_renewing() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        let config = LeaseConfig::default();
        let mut reign = Reign::begin(sure(FIRST), config, &map, Time(0));
        let (a, b) = (holder("a", 1), holder("b", 2));
        let g1 = attach(&mut reign, &mut map, disk, &a, Time(0));
        let late = Time(config.lease + config.margin + 1);
        let grant = reign.ask(sure(FIRST), &map, disk, &b, Generation(0), late).unwrap();
        reign.settle(std::slice::from_ref(&grant), Fate::Unknown, &map, late);
        let renew = |reign: &mut Reign| reign.renew(sure(FIRST), &map, &a, disk, g1, late);
        assert_eq!(renew(&mut reign), Ok(Renewal::Undecided));
        reign.settle(&[grant], Fate::Never, &map, late);
        assert_eq!(renew(&mut reign), Ok(Renewal::Renewed { release_please: false }));
    }

    /// Two ask for a volume whose lease has run out, and both are told yes. The proposal of the first is on its way to
    /// a majority; that of the second is given up before it is written (no majority has answered lately, say). The
    /// first may still be committed: if the old holder could renew in between, two would hold leases.
    #[test]
    fn a_grant_that_comes_to_nothing_does_not_let_the_holder_renew_under_another_one() {
        let config = LeaseConfig::default();
        let (a, b) = (holder("a", 1), holder("b", 2));
        let mut healer = holder("h", 9);
        healer.kind = HolderKind::Healer;
        // The second one: somebody else, a healer, or the holder's own process, attaching anew.
        for (second, told) in [(holder("c", 3), true), (healer, false), (a.clone(), false)] {
            let mut map = cluster(3);
            let disk = volume(&mut map, "disk0");
            let mut reign = Reign::begin(sure(FIRST), config, &map, Time(0));
            let g1 = attach(&mut reign, &mut map, disk, &a, Time(0));
            let late = Time(config.lease + config.margin + 1);
            // No node hears it.
            (0..3).for_each(|node| reign.node_hears(&map, NodeId(node), &Callers::default(), late));
            let ask = |reign: &mut Reign, map: &ClusterMap, who: &Holder| {
                reign.ask(sure(FIRST), map, disk, who, Generation(0), late).unwrap()
            };
            let (first, other) = (ask(&mut reign, &map, &b), ask(&mut reign, &map, &second));
            if told {
                // As it is when the answer was waited for in vain.
                reign.settle(std::slice::from_ref(&first), Fate::Unknown, &map, late);
            }
            reign.settle(&[other], Fate::Never, &map, late);
            let renew =
                |reign: &mut Reign, map: &ClusterMap| reign.renew(sure(FIRST), map, &a, disk, g1, late);
            assert_eq!(renew(&mut reign, &map), Ok(Renewal::Undecided), "{}", second.name);
            let command = Command::GrantGenerations { grants: vec![first.clone()], holder: b.clone() };
            let generation = apply(&mut map, &reign.proposal(command, 0), FIRST).unwrap();
            reign.settle(&[first], Fate::Applied(&[Ok(generation)]), &map, late);
            assert_eq!(renew(&mut reign, &map), Ok(Renewal::Lost));
        }
    }

    #[test]
    fn time_in_which_no_majority_answers_does_not_count() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        let config = LeaseConfig::default();
        let mut reign = Reign::begin(sure(FIRST), config, &map, Time(0));
        let (a, b) = (holder("a", 1), holder("b", 2));
        let g1 = attach(&mut reign, &mut map, disk, &a, Time(0));
        let second = 1_000_000;
        let beat = |reign: &mut Reign, from: u64, to: u64| {
            (5 * from..=5 * to).for_each(|fifth| _ = reign.heard(Time(fifth * second / 5)));
        };
        beat(&mut reign, 0, 3);
        // A minute without a majority; then all ask at once, the holder last.
        beat(&mut reign, 63, 64);
        let now = Time(64 * second);
        assert!(!reign.expired(&map, disk, now));
        assert!(reign.ask(sure(FIRST), &map, disk, &b, Generation(0), now).is_err());
        let renewal = reign.renew(sure(FIRST), &map, &a, disk, g1, now);
        assert_eq!(renewal, Ok(Renewal::Renewed { release_please: true }));
        // One that is dead does not hold the volume for longer than before.
        let ends = 64 + (config.lease + config.margin) / second;
        beat(&mut reign, 64, ends);
        assert!(!reign.expired(&map, disk, Time(ends * second)));
        assert!(reign.expired(&map, disk, Time(ends * second + 1)));
    }

    #[test]
    fn a_monitor_that_is_late_each_time_finds_out_all_the_same_who_is_silent() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        let config = LeaseConfig::default();
        let mut reign = Reign::begin(sure(FIRST), config, &map, Time(0));
        attach(&mut reign, &mut map, disk, &holder("a", 1), Time(0));
        let gap = PAUSE_MIN + 1;
        let looks = (config.lease + config.margin) / PAUSE_COUNTS;
        for look in 1..=looks {
            assert_eq!(reign.heard(Time(look * gap)), gap - PAUSE_COUNTS);
            assert!(!reign.expired(&map, disk, Time(look * gap)), "after {look} looks");
        }
        reign.heard(Time((looks + 1) * gap));
        assert!(reign.expired(&map, disk, Time((looks + 1) * gap)));
    }

    #[test]
    fn a_release_ends_the_lease_of_its_own_generation_only() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        let mut reign = Reign::begin(sure(FIRST), LeaseConfig::default(), &map, Time(0));
        let mut healer = holder("h", 9);
        healer.kind = HolderKind::Healer;
        let g1 = attach(&mut reign, &mut map, disk, &healer, Time(0));
        let g2 = attach(&mut reign, &mut map, disk, &holder("a", 1), Time(1));
        map.apply(&Command::Release { volumes: vec![(disk, g1, true)] }).unwrap();
        assert!(!reign.released(&map, disk, g1));
        assert!(!reign.expired(&map, disk, Time(2)));
        map.apply(&Command::Release { volumes: vec![(disk, g2, true)] }).unwrap();
        assert!(reign.released(&map, disk, g2));
        assert!(reign.expired(&map, disk, Time(2)));
    }
}
