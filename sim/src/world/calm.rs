//! The second phase: faults have stopped. Each volume gets one more front end, which reads everything,
//! writes everything and reads it again; then a healer, which must find or make every copy whole.
//!
//! All of that within [`crate::plan::Plan::calm_limit`] of virtual time: a cluster that is safe because
//! it does nothing any more is no good.

use super::nodes::ROOMY;
use super::{Event, World};
use crate::check;
use crate::coverage::Cover;
use crate::plan::VOLUMES_MAX;
use trefoil_core::VolumeId;

/// How far a volume has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub enum Stage {
    /// Wants its last front end.
    #[default]
    FrontEnd,
    /// Wants its healer.
    Healer,
    /// All copies are equal.
    Done,
}

/// The second phase.
#[derive(Debug, Default)]
pub struct Calm {
    /// When it began.
    pub since: u64,
    /// By volume.
    pub stages: [Stage; VOLUMES_MAX],
    /// Nodes stay full until the last front ends are through: these must be able to read everything, since
    /// no copy was lost.
    pub full: bool,
    /// The last generation of the first phase, by volume.
    before: [u64; VOLUMES_MAX],
}

impl World {
    /// Faults stop.
    pub(super) fn begin_calm(&mut self) {
        self.all_in_time();
        self.faulty = false;
        self.calm.since = self.now;
        if self.trace.wanted() {
            self.say(None, "faults stop".to_string());
        }
        self.net.shut = Default::default();
        self.monitor.down_until = 0;
        self.monitors_recover();
        self.finish_moves();
        let kill = self.rng.one_in(2);
        let finder = self.finder_lives_on();
        for li in 0..self.leaders.len() {
            let host = &mut self.leaders[li];
            host.quiet = true;
            host.renews &= finder == Some(li);
            if host.paused {
                self.queue.push(self.now, Event::LeaderResumes { li });
            }
            if kill && finder != Some(li) {
                self.kill_leader(li);
            }
        }
        let lost = self.lost_state.contains(&true);
        // A learner needs room: nothing that moves gets on at full.
        // Nor does a copy that was outvoted, if what the majority has takes more room.
        let may_fill = !lost && self.moves.is_none() && self.lies.told == 0;
        self.calm.full = self.rooms_shut > 0 && may_fill && self.rng.one_in(2);
        for ni in 0..self.plan.nodes {
            (self.nodes[ni].slow, self.nodes[ni].slow_net) = (1, 1);
            if !self.calm.full {
                self.nodes[ni].capacity = ROOMY;
            } else if self.nodes[ni].capacity == ROOMY && self.rng.one_in(2) {
                self.nodes[ni].capacity = self.nodes[ni].store.now.live + self.rng.below(3);
            }
            let life = self.nodes[ni].life;
            self.queue.push(self.now, Event::NodeResumes { ni, life });
            self.queue.push(self.now, Event::NodeStarts { ni });
        }
        for volume in self.plan.volume_ids() {
            self.calm.before[volume.0 as usize - 1] = self.monitor.volume(volume).generation;
        }
    }

    /// Whether the volume wants a front end (false) or a healer (true); `None`: it has what it wants.
    pub(super) fn calm_wants(&mut self, volume: VolumeId) -> Option<bool> {
        if self.finder_heals(volume) {
            return None;
        }
        let v = volume.0 as usize - 1;
        let healer = match self.calm.stages[v] {
            Stage::FrontEnd => false,
            Stage::Healer => true,
            Stage::Done => return None,
        };
        // One that was replaced meanwhile does not count, whether it knows it or not.
        let newest = self.monitor.volume(volume).generation;
        let has = self.leaders.iter().any(|l| {
            l.volume == volume
                && l.machine.is_some()
                && l.healer == healer
                && l.generation == newest
                && newest > self.calm.before[v]
        });
        (!has).then_some(healer)
    }

    pub(super) fn calm_done(&self, volume: VolumeId) -> bool {
        !self.faulty && self.calm.stages[volume.0 as usize - 1] == Stage::Done
    }

    /// A step of a move was committed, late: what was asked for while there were faults. There is more to heal.
    pub(super) fn calm_moved(&mut self) {
        if self.faulty {
            return;
        }
        for volume in self.plan.volume_ids() {
            if self.calm_done(volume) {
                self.calm.stages[volume.0 as usize - 1] = Stage::Healer;
                self.queue.push(self.now + 1, Event::VolumeTimer { volume });
            }
        }
    }

    /// A leader has released, and the monitors know.
    pub(super) fn calm_released(&mut self, volume: VolumeId, generation: u64) {
        let v = volume.0 as usize - 1;
        if !self.faulty && self.calm.stages[v] == Stage::FrontEnd && generation > self.calm.before[v] {
            self.calm.stages[v] = Stage::Healer;
            // What a healer of the first phase may have been granted does not count.
            self.calm.before[v] = self.monitor.volume(volume).generation;
            if self.calm.full
                && self.plan.volume_ids().all(|v| self.calm.stages[v.0 as usize - 1] != Stage::FrontEnd)
            {
                self.coverage.count(Cover::CalmAtFull);
                self.calm.full = false;
                self.nodes.iter_mut().for_each(|node| node.capacity = ROOMY);
            }
        }
    }

    /// A leader says that all is whole.
    pub(super) fn all_whole(&mut self, li: usize) {
        let (volume, generation, healer) =
            (self.leaders[li].volume, self.leaders[li].generation, self.leaders[li].healer);
        if self.trace.wanted() {
            self.say(Some((volume, None)), format!("leader {li}: all is whole"));
        }
        let now = self.moment();
        self.linear.opened_all(volume.0, generation, now);
        let v = volume.0 as usize - 1;
        let newest = self.monitor.volume(volume).generation;
        // While something moves there is more to heal.
        let still = self.nothing_moves();
        if !self.faulty && self.calm.stages[v] == Stage::Healer && generation == newest && still {
            let nodes = &self.nodes;
            let checked = check::i6_calm::check(&self.plan, volume, |ni| &nodes[ni].store);
            self.note(checked);
            for index in 0..self.plan.objects as u32 {
                if let Some(slot) = check::slot(volume, index) {
                    self.check_choice(slot);
                }
            }
            self.calm.stages[v] = Stage::Done;
        }
        if healer && !self.leaders[li].releasing {
            self.leaders[li].releasing = true;
            self.queue.push(self.now + 1, Event::ReleaseLeader { li });
        }
    }

    /// All volumes are well.
    pub(super) fn is_calm(&self) -> bool {
        self.plan.volume_ids().all(|volume| self.calm_done(volume)) && self.not_empty().is_none()
    }

    /// Everything is well, and has been for a while: no client of a leader that was replaced still waits,
    /// and no healer that was replaced still thinks that it has work to do.
    pub(super) fn nobody_waits(&mut self) {
        if let Some(what) = self.monitors_are_not_level() {
            return self.note(Err(check::Violation::plain("I6", what)));
        }
        for li in 0..self.leaders.len() {
            let host = &self.leaders[li];
            if host.machine.is_some() && (host.healer || !host.ops.is_empty()) {
                let what = format!(
                    "leader {li} (generation {}, healer {}, attached {}) was replaced long ago and is still at \
                     work, with {} operations",
                    host.generation,
                    host.healer,
                    host.attached,
                    host.ops.len()
                );
                let volume = host.volume;
                return self.note(Err(check::Violation::of("I6", (volume, 0), what)));
            }
        }
    }

    /// It took too long: says what is missing.
    pub(super) fn not_calm(&mut self) {
        let mut what = String::from("faults have stopped, but");
        if let Some(left) = self.not_empty() {
            what += &format!(" {left};");
        }
        if !self.nothing_moves() {
            what += &format!(" on the move: {};", self.moves_now());
        }
        for volume in self.plan.volume_ids() {
            let stage = self.calm.stages[volume.0 as usize - 1];
            if stage != Stage::Done {
                let alive: Vec<String> = self
                    .leaders
                    .iter()
                    .enumerate()
                    .filter(|(_, l)| l.volume == volume && l.machine.is_some())
                    .map(|(li, l)| {
                        let behind = l.machine.as_ref().map_or(0, |m| m.copies_behind());
                        format!(
                            "leader {li} (generation {}, healer {}, attached {}, releasing {}, {} ops, {behind} \
                             copies behind)",
                            l.generation,
                            l.healer,
                            l.attached,
                            l.releasing,
                            l.ops.len()
                        )
                    })
                    .collect();
                what += &format!(" {volume} is at {stage:?}: [{}];", alive.join(", "));
            }
        }
        self.note(Err(check::Violation::plain("I6", what)));
    }
}
