//! Daemons that ended without having been stopped, in the last week.
//!
//! A daemon that dies and is started again by its supervisor looks well a second later, and dies again tomorrow.
//! So each death is kept for a week, or until somebody says that they have seen it. Nothing is decided by it.
//!
//! A death is known from what the daemon itself finds at its next start (it left a mark that it runs, and took it
//! away at no clean stop), and of a front end, which has no directory, from a volume that it neither released nor
//! went on to renew. It is named by the *life* that ended, so that it counts once however often it is told.

use super::apply::{Applied, Changed, done, missing};
use super::{ClusterMap, HOLDER_LEN_MAX, MapError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// For how long a death is shown (ms): a week.
pub const DEATH_MS: u64 = 7 * 86_400_000;
/// Daemons whose deaths are kept. Of more, the one whose last death is oldest is forgotten.
pub const DEATHS_MAX: usize = 1024;
/// Bytes in a daemon's name.
pub const DAEMON_LEN_MAX: usize = HOLDER_LEN_MAX + 16;

/// The deaths of one daemon.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deaths {
    /// Names the life that ended last.
    pub life: u64,
    /// When that was told: milliseconds since 1970 by a monitor's clock.
    pub at: u64,
    /// How many lives ended so, since the first that is not older than a week or was not acknowledged.
    pub times: u32,
    /// Somebody has seen it. Kept, so that the same death is not told again.
    pub acknowledged: bool,
}

/// By daemon: `node.3`, `monitor.1`, `front end NAME`. A clone shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeathLog(pub Arc<BTreeMap<String, Deaths>>);

impl DeathLog {
    /// Those that are to be shown at `now` (ms since 1970), by name.
    pub fn recent(&self, now: u64) -> impl Iterator<Item = (&str, &Deaths)> {
        let all = self.0.iter().map(|(daemon, it)| (daemon.as_str(), it));
        all.filter(move |(_, it)| !it.acknowledged && now.saturating_sub(it.at) < DEATH_MS)
    }
}

impl ClusterMap {
    /// True if it is news.
    pub(super) fn note_death(&mut self, daemon: &str, life: u64, now: u64) -> bool {
        let known = self.deaths.0.get(daemon);
        if known.is_some_and(|it| it.life == life) {
            return false;
        }
        let counts = |it: &&Deaths| !it.acknowledged && now.saturating_sub(it.at) < DEATH_MS;
        let times = known.filter(counts).map_or(1, |it| it.times.saturating_add(1));
        let is_new = known.is_none();
        let all = Arc::make_mut(&mut self.deaths.0);
        if is_new {
            all.retain(|_, it| now.saturating_sub(it.at) < DEATH_MS);
            if all.len() >= DEATHS_MAX
                && let Some(oldest) = all.iter().min_by_key(|(_, it)| it.at).map(|(daemon, _)| daemon.clone())
            {
                all.remove(&oldest);
            }
        }
        all.insert(daemon.to_owned(), Deaths { life, at: now, times, acknowledged: false });
        true
    }

    pub(super) fn died(&mut self, daemon: &str, life: u64, now: u64) -> Applied {
        if daemon.is_empty() || daemon.len() > DAEMON_LEN_MAX {
            return Err(MapError::Invalid("that is no name of a daemon".to_owned()));
        }
        match self.note_death(daemon, life, now) {
            true => done(Changed::Inside),
            false => done(Changed::Nothing),
        }
    }

    /// Of all daemons, where none is named.
    pub(super) fn acknowledge_deaths(&mut self, daemons: &[String]) -> Applied {
        if daemons.len() > DEATHS_MAX {
            return Err(MapError::Full { what: "daemons in one request".to_owned(), max: DEATHS_MAX as u64 });
        }
        if let Some(unknown) = daemons.iter().find(|daemon| !self.deaths.0.contains_key(*daemon)) {
            return Err(missing("death of", unknown.chars().take(DAEMON_LEN_MAX).collect::<String>()));
        }
        let named = |daemon: &String| daemons.is_empty() || daemons.contains(daemon);
        if !self.deaths.0.iter().any(|(daemon, it)| named(daemon) && !it.acknowledged) {
            return done(Changed::Nothing);
        }
        for (daemon, it) in Arc::make_mut(&mut self.deaths.0) {
            it.acknowledged |= named(daemon);
        }
        done(Changed::Inside)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cluster, holder, volume};
    use super::super::{Command, Grant};
    use super::*;
    use crate::ids::Generation;

    fn died(daemon: &str, life: u64, now: u64) -> Command {
        Command::Died { daemon: daemon.to_owned(), life, now }
    }

    fn shown(map: &ClusterMap, now: u64) -> Vec<(String, u32)> {
        map.deaths.recent(now).map(|(daemon, it)| (daemon.to_owned(), it.times)).collect()
    }

    #[test]
    fn each_life_ends_once_and_is_shown_for_a_week_or_until_it_was_seen() {
        let mut map = cluster(3);
        let layout = map.layout;
        map.apply_at(&died("node.1", 7, 1_000), 1_000).unwrap();
        map.apply_at(&died("node.1", 7, 9_000), 9_000).unwrap();
        assert_eq!(shown(&map, 9_000), [("node.1".to_owned(), 1)], "told twice");
        map.apply_at(&died("node.1", 8, 9_000), 9_000).unwrap();
        map.apply_at(&died("monitor.2", 8, 10_000), 10_000).unwrap();
        assert_eq!(shown(&map, 10_000), [("monitor.2".to_owned(), 1), ("node.1".to_owned(), 2)]);
        assert_eq!(map.layout, layout, "no daemon is told");
        assert_eq!(shown(&map, 9_000 + DEATH_MS), [("monitor.2".to_owned(), 1)]);

        let seen = |daemons: &[&str]| Command::AcknowledgeDeaths {
            daemons: daemons.iter().map(|it| (*it).to_owned()).collect(),
        };
        assert!(map.apply(&seen(&["node.2"])).unwrap_err().to_string().contains("no death of node.2"));
        map.apply(&seen(&["node.1"])).unwrap();
        assert_eq!(shown(&map, 10_000), [("monitor.2".to_owned(), 1)]);
        map.apply(&died("node.1", 8, 11_000)).unwrap();
        assert_eq!(shown(&map, 11_000).len(), 1, "the same death is not news");
        map.apply(&died("node.1", 9, 12_000)).unwrap();
        assert_eq!(shown(&map, 12_000)[1], ("node.1".to_owned(), 1), "the next one is");
        map.apply(&seen(&[])).unwrap();
        assert_eq!(shown(&map, 12_000), []);
        let events: Vec<String> = map.events().after(0, 9).map(|event| event.what.to_string()).collect();
        assert_eq!(events.first().map(String::as_str), Some("node.1 had ended without having been stopped"));
        assert_eq!(events.len(), 3, "{events:?}");
    }

    #[test]
    fn a_front_end_that_let_its_lease_run_out_has_died() {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk");
        let grant = |map: &mut ClusterMap, boot, at| {
            let seen = map.volumes[&disk].generation;
            let grants = vec![Grant { volume: disk, seen, above: Generation(0) }];
            let command = Command::GrantGenerations { grants, holder: holder("vm-host", boot) };
            map.apply_at(&command, at).unwrap();
            map.volumes[&disk].generation
        };
        grant(&mut map, 1, 1_000);
        let generation = grant(&mut map, 1, 2_000);
        assert_eq!(shown(&map, 2_000), [], "the same process asks again");
        map.apply_at(&Command::Release { volumes: vec![(disk, generation, true)] }, 3_000).unwrap();
        grant(&mut map, 2, 4_000);
        assert_eq!(shown(&map, 4_000), [], "it was released");
        grant(&mut map, 3, 5_000);
        assert_eq!(shown(&map, 5_000), [("front end vm-host".to_owned(), 1)]);
    }

    #[test]
    fn deaths_are_bounded() {
        let mut map = cluster(3);
        for n in 0..DEATHS_MAX as u64 + 10 {
            map.apply(&died(&format!("front end {n}"), n, n)).unwrap();
        }
        assert_eq!(map.deaths.0.len(), DEATHS_MAX);
        assert!(!map.deaths.0.contains_key("front end 9") && map.deaths.0.contains_key("front end 10"));
        map.apply(&died(&"x".repeat(DAEMON_LEN_MAX + 1), 1, 1)).unwrap_err();
    }
}
