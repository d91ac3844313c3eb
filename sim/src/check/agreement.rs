//! What monitors agree on: one log, one map, each generation once.
//!
//! Looks at what each monitor holds for committed, and makes its own map of it. Whatever was committed at an index
//! stays so, at every monitor (no command is lost); no command is in the log twice; every monitor's map is the same
//! at the same index; generations of a volume only rise, over a restored backup too, and each is told to one asker;
//! nothing that was decided in a reign takes effect behind the first entry of a later one.

use super::{Checked, Violation};
use crate::plan::VOLUMES_MAX;
use crate::raft::{Base, Entry, Payload};
use rustc_hash::{FxHashMap, FxHashSet};
use std::rc::Rc;
use trefoil_core::map::reign::{Outcome, Proposal, ReignId};
use trefoil_core::map::{ClusterMap, Command, Reply};
use trefoil_core::{Generation, VolumeId};

/// What has been committed, and what it has made.
#[derive(Debug)]
pub struct Agreement {
    /// The index of the first map.
    first: u64,
    /// As of each index.
    maps: Vec<ClusterMap>,
    /// By index, from `first + 1` on.
    entries: Vec<(ReignId, Option<u64>)>,
    numbers: FxHashSet<u64>,
    newest: [u64; VOLUMES_MAX],
    told: FxHashMap<(VolumeId, u64), u64>,
}

/// A command that has just been committed, and done.
pub struct Committed {
    /// As it was written.
    pub proposal: Rc<Proposal>,
    /// What came of it.
    pub outcome: Outcome,
    /// The map before.
    pub before: ClusterMap,
}

fn broken(what: String) -> Checked {
    Err(Violation::plain("agreement", what))
}

impl Agreement {
    /// From a snapshot on.
    pub fn new(base: &Base) -> Agreement {
        Agreement {
            first: base.index,
            maps: vec![base.map.clone()],
            entries: Vec::new(),
            numbers: FxHashSet::default(),
            newest: [0; VOLUMES_MAX],
            told: FxHashMap::default(),
        }
    }

    /// The map with everything that is committed.
    pub fn map(&self) -> &ClusterMap {
        &self.maps[self.maps.len() - 1]
    }

    /// The index of the last committed entry.
    pub fn last(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The cluster begins again from a backup: what was committed since is gone, and its generations are not.
    pub fn restored(&mut self, base: &Base) {
        *self = Agreement {
            newest: self.newest,
            told: std::mem::take(&mut self.told),
            numbers: std::mem::take(&mut self.numbers),
            ..Agreement::new(base)
        };
    }

    /// A monitor holds an entry for committed. If it is the first to: what it does.
    pub fn committed(&mut self, index: u64, entry: &Entry) -> Result<Option<Committed>, Box<Violation>> {
        let number = match &entry.payload {
            Payload::Command(number, _) => Some(*number),
            _ => None,
        };
        let it = (entry.written_in, number);
        let Some(at) = index.checked_sub(self.first + 1).map(|at| at as usize) else { return Ok(None) };
        if let Some(known) = self.entries.get(at) {
            if *known != it {
                broken(format!("entry {index} was {known:?}, and is {it:?}: a committed command is lost"))?;
            }
            return Ok(None);
        }
        if at > self.entries.len() {
            broken(format!("entry {index} is committed, and {} is not known", index - 1))?;
        }
        if number.is_some_and(|number| !self.numbers.insert(number)) {
            broken(format!("command {number:?} is committed a second time, at {index}"))?;
        }
        let latest = self.entries.last().map_or(ReignId::default(), |last| last.0);
        self.entries.push(it);
        let before = self.map().clone();
        let mut map = before.clone();
        let committed = match &entry.payload {
            Payload::Command(_, proposal) => {
                let outcome = map.apply_written(proposal, entry.written_in);
                if proposal.reign < latest && matches!(outcome, Outcome::Done(Ok(_))) {
                    broken(format!(
                        "{:?} was decided in {:?} and is done behind an entry of {latest:?}: two reigns decide",
                        proposal.command, proposal.reign
                    ))?;
                }
                self.generations(proposal, &outcome)?;
                Some(Committed { proposal: proposal.clone(), outcome, before })
            }
            _ => None,
        };
        self.maps.push(map);
        Ok(committed)
    }

    fn generations(&mut self, proposal: &Proposal, outcome: &Outcome) -> Checked {
        let (Command::GrantGenerations { grants, .. }, Outcome::Done(Ok(Reply::Granted(results)))) =
            (&proposal.command, outcome)
        else {
            return Ok(());
        };
        for (grant, generation) in grants.iter().zip(results) {
            let Ok(Generation(generation)) = generation else { continue };
            let newest = &mut self.newest[grant.volume.0 as usize - 1];
            if *generation <= *newest {
                let what = format!("generation {generation} of {} is granted behind {newest}", grant.volume);
                return broken(what);
            }
            *newest = *generation;
        }
        Ok(())
    }

    /// A monitor has applied everything up to an index.
    pub fn applied(&self, index: u64, map: &ClusterMap) -> Checked {
        let at = index.checked_sub(self.first).and_then(|at| self.maps.get(at as usize));
        match at {
            Some(agreed) if agreed == map => Ok(()),
            Some(agreed) => broken(format!(
                "two maps at index {index}: version {} and version {}",
                agreed.version, map.version
            )),
            None => broken(format!("a monitor has applied {index}, which is not committed")),
        }
    }

    /// An asker is told that it was granted a generation.
    pub fn told(&mut self, volume: VolumeId, generation: u64, asker: u64) -> Checked {
        match self.told.insert((volume, generation), asker) {
            Some(other) if other != asker => {
                broken(format!("generation {generation} of {volume} is given to {other} and to {asker}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Members;

    fn entry(term: u64, number: u64) -> Entry {
        let written_in = ReignId { term, monitor: 1 };
        let command = Command::PauseMoves { paused: true };
        let proposal = Rc::new(Proposal { reign: written_in, at: 0, command });
        Entry { written_in, payload: Payload::Command(number, proposal) }
    }

    fn agreement() -> Agreement {
        let members = Rc::new(Members::default());
        let written_in = ReignId::default();
        Agreement::new(&Base { index: 1, written_in, members, map: ClusterMap::new() })
    }

    #[test]
    fn a_lost_or_repeated_command_is_caught() {
        let mut agreement = agreement();
        assert!(agreement.committed(2, &entry(1, 7)).is_ok_and(|it| it.is_some()));
        assert!(agreement.committed(2, &entry(1, 7)).is_ok_and(|it| it.is_none()), "another monitor");
        assert!(agreement.committed(2, &entry(2, 8)).is_err(), "another command in its place");
        assert!(agreement.committed(3, &entry(2, 7)).is_err(), "the same one again");
        assert!(agreement.committed(9, &entry(2, 9)).is_err(), "a gap");
    }

    #[test]
    fn maps_that_differ_and_generations_that_are_told_twice_are_caught() {
        let mut agreement = agreement();
        let map = ClusterMap::new();
        assert!(agreement.applied(1, &map).is_ok());
        assert!(agreement.applied(2, &map).is_err(), "not committed");
        let mut other = map;
        other.version = 5;
        assert!(agreement.applied(1, &other).is_err());
        assert!(agreement.told(VolumeId(1), 3, 1).is_ok());
        assert!(agreement.told(VolumeId(1), 3, 1).is_ok());
        assert!(agreement.told(VolumeId(1), 3, 2).is_err());
    }
}
