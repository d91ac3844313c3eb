//! Copies that lie: a block whose bytes and checksum belong together and are not what was written.
//!
//! No read can tell such a block from a good one; only the other copies can (P3). So nothing that reads the
//! object happens from the lie until scrub has found it, which must not take long: that is an *episode*. No
//! other fault begins in one either, since a repair that takes place before anybody can know would hand the
//! lie on, and nothing could be held against it. Once every copy that lies is marked, everything goes on:
//! crashes, takeovers, repairs, reads. From then on no client may ever see the lie, and what a majority
//! held must not be lost.
//!
//! Where there is no majority (two copies lie, or the third one is away), reads of the block may fail until
//! it is written, until the third copy settles it, or until an administrator says whom to believe.

use super::{Event, World};
use crate::check::{self, slot_of};
use crate::coverage::Cover;
use crate::payload;
use trefoil_core::node::{Input, ScrubOrder};
use trefoil_core::scrub::doubt_of;
use trefoil_core::{BlockRange, GroupId, Head, NodeId, ObjectId, ObjectIndex, PgId, VolumeId};

/// Lies must have been found after so much virtual time (µs).
const FOUND_WITHIN: u64 = 60_000_000;

/// A lie that was told and not found yet.
#[derive(Debug)]
struct Episode {
    object: ObjectId,
    block: u32,
    /// Whose copies lie.
    liars: Vec<usize>,
    since: u64,
    /// No majority can settle it.
    disputed: bool,
}

/// What there is of lies in a run.
#[derive(Debug, Default)]
pub struct Lies {
    episode: Option<Episode>,
    /// How many were told.
    pub told: u64,
}

impl World {
    /// Nothing else may go wrong right now.
    pub(super) fn is_lied_to(&self) -> bool {
        self.lies.episode.is_some()
    }

    /// Clients leave this object alone for now.
    pub(super) fn is_lied_about(&self, volume: VolumeId, index: ObjectIndex) -> bool {
        let about = |e: &Episode| (e.object.group.volume, e.object.index) == (volume, index);
        self.lies.episode.as_ref().is_some_and(about)
    }

    /// The next step of an episode, or the first of a new one.
    pub(super) fn lie(&mut self) {
        let Some(plan) = self.plan.lies.clone() else { return };
        if let Some(episode) = &self.lies.episode {
            let (object, block) = (episode.object, episode.block);
            let found = episode.liars.iter().all(|ni| {
                let store = &self.nodes[*ni].store;
                let marks =
                    store.state.groups.get(&object.group).map_or(&[][..], |state| state.marks(object.index));
                let lies = store.lies.contains_key(&store.durable.sum(object, block));
                !lies || doubt_of(marks, block).is_some()
            });
            if found {
                self.lie_is_found();
            } else if self.now > episode.since + FOUND_WITHIN {
                let what = format!("scrub does not find that block {block} of node.{:?} lies", episode.liars);
                let about = (object.group.volume, object.index);
                return self.note(Err(check::Violation::of("scrub", about, what)));
            } else {
                self.order_scrub(object.group.pg);
            }
        } else if self.faulty {
            self.tell_lie();
        }
        let next = if self.is_lied_to() { (500, 20_000) } else { plan.every };
        if self.faulty || self.is_lied_to() {
            let at = self.now + self.rng.between(next.0, next.1);
            self.queue.push(at, Event::Lie);
        }
    }

    /// As the schedule would, and sooner.
    fn order_scrub(&mut self, pg: PgId) {
        for ni in 0..self.plan.nodes {
            if !self.nodes[ni].paused && self.rng.one_in(2) {
                let deep = self.rng.one_in(2);
                self.node_input(ni, Input::Scrub(ScrubOrder::Scrub { pg, deep }));
            }
        }
    }

    /// Everybody has the object as it is, in the newest generation's line, and nothing of it is on its way.
    fn is_at_rest(&self, members: &[usize], object: ObjectId) -> bool {
        let (volume, index) = (object.group.volume, object.index);
        let newest = self.monitor.generation_of(volume);
        let seen = |ni: &usize| {
            let node = &self.nodes[*ni];
            let state = node.store.state.groups.get(&object.group)?;
            let head = state.objects.get(&index).copied().filter(|head| *head != Head::ZERO)?;
            let quiet = node.machine.is_some()
                && !node.paused
                && !state.lost
                && !state.behind.contains_key(&index)
                && state.marks(index).is_empty()
                && state.promised == state.settled
                && state.settled.ballot.generation().0 == newest
                && !node.store.touches(object);
            let sums: Vec<u64> =
                (0..self.plan.object_blocks()).map(|b| node.store.durable.sum(object, b)).collect();
            quiet.then_some((state.settled.ballot, head, sums))
        };
        // A write of one that has died may still be on its way.
        let leads = |l: &super::LeaderHost| {
            l.volume == volume && l.generation == newest && l.machine.is_some() && l.attached
        };
        let first = seen(&members[0]);
        first.is_some()
            && self.leaders.iter().any(leads)
            && members.iter().all(|ni| seen(ni) == first)
            && self.leaders.iter().all(|l| l.volume != volume || l.ops.values().all(|op| op.index() != index))
    }

    fn tell_lie(&mut self) {
        let volume = VolumeId(self.rng.between(1, self.plan.volumes as u64));
        let index = self.rng.index(self.plan.objects) as u32;
        let block = self.plan.first_block + self.rng.index(self.plan.blocks) as u32;
        let (pg, config) = self.plan.pg(volume, index);
        let object = ObjectId { group: GroupId { volume, pg }, index };
        let members: Vec<usize> = config.new.iter().map(|node| node.0 as usize).collect();
        let rotten = |ni: &usize| self.nodes[*ni].store.now.bad.contains(&(object, block));
        if !self.is_at_rest(&members, object) || members.iter().any(rotten) || slot_of(object).is_none() {
            return;
        }
        let first = self.rng.index(members.len());
        let member = |n: usize| members[(first + n) % members.len()];
        let truth = self.nodes[member(0)].store.durable.sum(object, block);
        let (liars, away) = match self.rng.below(4) {
            0 => (vec![member(0), member(1)], None),
            1 => (vec![member(0)], Some(member(1))),
            _ => (vec![member(0)], None),
        };
        for ni in &liars {
            // Given out once and never again, as any value; but nobody has written it.
            let lie = payload::checksum(self.next_value);
            self.next_value += 1;
            self.nodes.iter_mut().for_each(|node| _ = node.store.lies.insert(lie, truth));
            self.nodes[*ni].store.lie(object, block, lie);
        }
        self.coverage.count(Cover::Lies);
        self.lies.told += 1;
        if self.trace.wanted() {
            let what = format!("block {block} of {object} lies on node.{liars:?}; away: {away:?}");
            self.say(Some((volume, Some(index))), what);
        }
        if let Some(ni) = away {
            self.crash_node(ni);
            let lasts = self.rng.magnitude(100_000, 10_000_000);
            self.queue.push(self.now + lasts, Event::NodeStarts { ni });
        }
        let disputed = liars.len() > 1 || away.is_some();
        self.lies.episode = Some(Episode { object, block, liars, since: self.now, disputed });
    }

    /// Everything goes on.
    fn lie_is_found(&mut self) {
        let Some(episode) = self.lies.episode.take() else { return };
        self.coverage.count(if episode.disputed { Cover::LiesDisputed } else { Cover::LiesOutvoted });
        if self.trace.wanted() {
            let object = episode.object;
            let what = format!("block {} of {object}: the lie is found", episode.block);
            self.say(Some((object.group.volume, Some(object.index))), what);
        }
        if episode.disputed && self.rng.one_in(2) {
            let at = self.now + self.rng.magnitude(1_000, 2_000_000);
            let (object, block) = (episode.object, episode.block);
            self.queue.push(at, Event::Believe { object, block, times: 3 });
        }
    }

    /// An administrator, who happens to know, says whose copy is to be believed.
    pub(super) fn settle_lie(&mut self, object: ObjectId, block: u32, times: u32) {
        let config = self.plan.pg(object.group.volume, object.index).1;
        let members: Vec<usize> = config.new.iter().map(|node| node.0 as usize).collect();
        let tells_truth = |ni: &&usize| {
            let node = &self.nodes[**ni];
            let state = node.store.state.groups.get(&object.group);
            let sum = node.store.durable.sum(object, block);
            let marked = state.is_some_and(|s| doubt_of(s.marks(object.index), block).is_some());
            node.machine.is_some() && !node.paused && marked && !node.store.lies.contains_key(&sum)
        };
        let Some(from) = members.iter().find(tells_truth).copied() else { return };
        self.coverage.count(Cover::Believed);
        let blocks = BlockRange::new(block, 1);
        for ni in members {
            if !self.nodes[ni].paused {
                self.node_input(
                    ni,
                    Input::Scrub(ScrubOrder::Believe { object, blocks, from: NodeId(from as u32) }),
                );
            }
        }
        if times > 1 {
            self.queue.push(self.now + 20_000, Event::Believe { object, block, times: times - 1 });
        }
    }
}
