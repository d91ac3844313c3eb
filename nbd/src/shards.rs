//! Shards: a front end of several threads. Which volume is whose, and who they are.
//!
//! A shard is a whole front end of its own: runtime, connections to nodes and monitors, leaders, leases. To nodes and
//! monitors the shards of a process are as many front ends, each with a name and a boot of its own, so no rule about
//! holders knows of them: none is taken for another one, nor one of this start for one of an earlier one. What they
//! share is the listeners (the first shard's), the limits on connections and bytes, the metrics, and their end.
//!
//! A volume is one shard's, by a hash of its id and nothing else: all connections to it meet in one session, and no
//! request crosses a thread. Nothing on a disk or on the wire depends on the hash: another number of shards is another
//! start of the process, hence other holders.

use crate::config::NbdConfig;
use std::hash::{BuildHasher, RandomState};
use trefoil_core::VolumeId;
use trefoil_core::map::{HOLDER_LEN_MAX, Holder, HolderKind};

/// The most shards that a front end has. Each has a connection to every node and to a monitor.
pub const SHARDS_MAX: usize = 64;

/// Which shard this is, and of how many.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub number: usize,
    /// Not 0.
    pub of: usize,
}

impl Place {
    /// The only one.
    pub const ALONE: Place = Place { number: 0, of: 1 };
}

/// The shard, of so many, that serves a volume. (The finalizer of splitmix64 spreads ids that are numbered one by
/// one; its upper bits choose.)
pub fn home(volume: VolumeId, shards: usize) -> usize {
    let mut x = volume.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    ((u128::from(x) * shards as u128) >> 64) as usize
}

/// Who the shards of this process are: no two alike, and none like any of another start of any process.
pub(crate) fn holders(config: &NbdConfig) -> Vec<Holder> {
    // The hasher's keys are random in each process; the time and the process tell its starts apart.
    let start = (std::time::SystemTime::now(), std::process::id());
    let keys = RandomState::new();
    let mut draws = 0u64;
    let mut holders: Vec<Holder> = Vec::new();
    while holders.len() < config.shards {
        let boot = keys.hash_one((start, draws)) | 1;
        draws += 1;
        if !holders.iter().any(|it| it.boot == boot) {
            let name = holder_name(config, Place { number: holders.len(), of: config.shards });
            holders.push(Holder { name, boot, kind: HolderKind::FrontEnd });
        }
    }
    holders
}

/// Names a shard to people: what the configuration says, else host and process; and its number, where there are
/// several.
fn holder_name(config: &NbdConfig, place: Place) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut name = match &config.name {
        Some(name) => name.clone(),
        None => format!("nbd@{}:{}", host().trim(), std::process::id()),
    };
    let number = if place.of == 1 { String::new() } else { format!("/{}", place.number) };
    while name.len() + number.len() > HOLDER_LEN_MAX {
        name.pop();
    }
    name + &number
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn where_a_volume_is_served_never_changes_and_is_spread() {
        // Golden: connections that one build hands over must be taken by the same shard in the next one, too, as far as
        // anybody relies on it in operation.
        let homes: Vec<usize> = (1..=16).map(|id| home(VolumeId(id), 4)).collect();
        assert_eq!(homes, GOLDEN);
        assert!((1..100).all(|id| home(VolumeId(id), 1) == 0));
        for shards in [2, 3, 7, 64] {
            let mut counts = vec![0u32; shards];
            for id in 0..shards as u64 * 1000 {
                counts[home(VolumeId(id), shards)] += 1;
            }
            assert!(counts.iter().all(|count| (850..1150).contains(count)), "{shards}: {counts:?}");
        }
    }

    const GOLDEN: [usize; 16] = [2, 2, 0, 1, 1, 2, 1, 2, 2, 0, 1, 2, 3, 1, 2, 1];

    #[test]
    fn no_two_shards_of_any_start_are_alike() {
        let config = NbdConfig { shards: SHARDS_MAX, name: Some("front".into()), ..NbdConfig::default() };
        let (first, second) = (holders(&config), holders(&config));
        let boots: BTreeSet<u64> = first.iter().chain(&second).map(|it| it.boot).collect();
        assert_eq!(boots.len(), 2 * SHARDS_MAX);
        for (n, holder) in first.iter().enumerate() {
            assert_eq!(holder.name, format!("front/{n}"));
            assert!(!first.iter().chain(&second).any(|it| !std::ptr::eq(it, holder) && it.is(holder)));
        }
    }

    #[test]
    fn names_are_as_long_as_they_may_be_and_the_number_stays() {
        let long = "ü".repeat(HOLDER_LEN_MAX);
        let config = NbdConfig { shards: 12, name: Some(long), ..NbdConfig::default() };
        let holders = holders(&config);
        assert!(holders.iter().all(|it| it.name.len() <= HOLDER_LEN_MAX));
        assert!(holders[11].name.ends_with("ü/11"), "{}", holders[11].name);
        let alone = NbdConfig { name: Some("front".into()), ..NbdConfig::default() };
        assert_eq!(super::holders(&alone)[0].name, "front", "one shard is called as ever");
    }
}
