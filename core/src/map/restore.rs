//! The map of a backup, made fit to be used again.
//!
//! A backup does not know what was granted, issued and deleted after it was taken, and nodes and clients do.
//! Whatever must never be given out twice begins again far above what can have been given out since. What
//! was made after the backup is missing from the map, and is *forgotten*, not deleted: nodes keep its data.

use super::{ClusterMap, Holder};
use crate::ids::*;

/// Generations of each volume that are left out. (At one grant a second: half a year's.)
pub const GENERATIONS_SKIPPED: u64 = 1 << 24;
/// Volume ids that are left out.
pub const VOLUMES_SKIPPED: u64 = 1 << 20;
/// Node ids that are left out. They are the devices of the CRUSH map, whose tables are as long as the greatest.
pub const NODES_SKIPPED: u32 = 1000;
/// Pool ids that are left out.
pub const POOLS_SKIPPED: u32 = 100;
/// How often a cluster may have been restored: of each time a range is kept.
pub const RESTORES_MAX: usize = 64;
/// Versions that are left out: whoever has a map of the cluster before takes this one for a later one.
pub const VERSIONS_SKIPPED: u64 = 1 << 32;

impl ClusterMap {
    /// Makes the map of a backup that of a restored cluster. `holder`, who is nobody, gets every volume: somebody
    /// may have been granted it after the backup, and may believe in a lease that this map does not show. So
    /// no volume is granted before a lease and the margin have passed.
    ///
    /// False, and nothing is changed, where the numbers of a volume, node or pool are used up, or this has been done
    /// [`RESTORES_MAX`] times.
    pub fn restored(&mut self, holder: &Holder) -> bool {
        if self.forgotten.len() >= RESTORES_MAX {
            return false;
        }
        let mut map = self.clone();
        let above = |number: u64, skipped: u64| number.checked_add(skipped);
        let (Some(version), Some(next_volume), Some(next_node), Some(next_pool)) = (
            above(self.version, VERSIONS_SKIPPED),
            above(self.next_volume.0, VOLUMES_SKIPPED),
            self.next_node.0.checked_add(NODES_SKIPPED),
            self.next_pool.0.checked_add(POOLS_SKIPPED),
        ) else {
            return false;
        };
        let ids: Vec<VolumeId> = map.volumes.keys().copied().collect();
        for id in ids {
            if let Some(volume) = map.volumes.get_mut(&id) {
                let generation = volume.generation.0.saturating_add(GENERATIONS_SKIPPED);
                #[cfg(feature = "deliberate-bugs")]
                let generation =
                    if crate::bugs::restore_skips_nothing() { volume.generation.0 } else { generation };
                if generation > Ballot::GENERATION_MAX {
                    return false;
                }
                volume.generation = Generation(generation);
                volume.holder = Some(holder.clone());
                volume.clean = false;
            }
        }
        map.forgotten.push((map.next_volume, VolumeId(next_volume)));
        (map.next_volume, map.next_node, map.next_pool) =
            (VolumeId(next_volume), NodeId(next_node), PoolId(next_pool));
        (map.version, map.layout) = (version, version);
        *self = map;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::super::{Ack, Command, FailureDomain, Grant, HolderKind, Reply};
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { name: name.to_owned(), boot: 9, kind: HolderKind::FrontEnd }
    }

    fn volume(map: &mut ClusterMap, name: &str) -> VolumeId {
        let create = Command::CreateVolume {
            name: name.to_owned(),
            pool: "p".to_owned(),
            size: 1 << 30,
            object_size: 4 << 20,
            io_timeout: None,
        };
        match map.apply(&create).unwrap() {
            Reply::Volume(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn grant(map: &mut ClusterMap, volume: VolumeId) -> Generation {
        let seen = map.volumes[&volume].generation;
        let grants = vec![Grant { volume, seen, above: Generation(0) }];
        match map.apply(&Command::GrantGenerations { grants, holder: holder("a") }).unwrap() {
            Reply::Granted(granted) => granted[0].clone().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_that_was_given_out_after_the_backup_is_given_out_again() {
        let mut map = cluster(3);
        let (name, domain) = ("p".to_owned(), FailureDomain::Osd);
        map.apply(&Command::CreatePool { name, size: 3, pg_num: 8, domain, ack: Ack::Majority }).unwrap();
        let old = volume(&mut map, "old");
        grant(&mut map, old);
        let mut restored = map.clone();
        // What happens after the backup.
        let last = (0..50).map(|_| grant(&mut map, old)).last().unwrap();
        let gone = volume(&mut map, "made-later");

        assert!(restored.restored(&holder("restored")));
        assert!(restored.version > map.version && restored.layout > map.layout);
        assert!(!restored.is_deleted(gone), "nodes keep what was made after the backup");
        assert_eq!(restored.volumes[&old].holder, Some(holder("restored")));
        assert!(!restored.volumes[&old].clean);
        assert!(grant(&mut restored, old) > last);
        let new = volume(&mut restored, "new");
        assert!(new > gone);
        assert!(!restored.is_deleted(gone));
        restored.apply(&Command::RemoveVolume { volume: new, expired: None }).unwrap();
        assert!(restored.is_deleted(new));
        // Whoever has the map from before can be sent the difference.
        let delta = restored.diff(&map).unwrap();
        map.apply_delta(&delta).unwrap();
        assert_eq!(map, restored);
    }

    #[test]
    fn restores_are_bounded() {
        let mut map = cluster(3);
        for _ in 0..RESTORES_MAX {
            assert!(map.restored(&holder("restored")));
        }
        let before = map.clone();
        assert!(!map.restored(&holder("restored")));
        assert_eq!(map, before);
    }

    #[test]
    fn numbers_that_are_used_up_are_told_and_nothing_changes() {
        let mut map = cluster(3);
        map.version = u64::MAX;
        let before = map.clone();
        assert!(!map.restored(&holder("restored")));
        assert_eq!(map, before);
    }
}
