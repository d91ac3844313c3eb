//! The file of a monitor that does not run: the map that is in it, and a file that begins with a map.

use super::machine::{Meta, Saved};
use super::store::{SNAPSHOT, decode, encode};
use super::{Failure, Member, Store, reign_of};
use openraft::{CommittedLeaderId, EntryPayload, LogId, Membership, StoredMembership};
use std::collections::BTreeMap;
use trefoil_core::map::ClusterMap;

/// The map that the snapshot and the *whole* log behind it make. The end of the log may not have been
/// committed; that this monitor has acknowledged it is reason enough to keep it in a backup. Blocks.
pub(crate) fn map_of(store: &Store) -> Result<ClusterMap, Failure> {
    let saved: Option<Saved> = store.get(SNAPSHOT)?;
    let (applied, mut map) = match saved {
        Some(saved) => (saved.meta.last_log_id, decode(&saved.map)?),
        None => (None, ClusterMap::new()),
    };
    if let Some(purged) = store.purged()?.filter(|purged| applied < Some(*purged)) {
        return Err(Failure::Hole { snapshot: applied, purged });
    }
    let from = applied.map_or(0, |at: LogId<u64>| at.index + 1);
    for entry in store.entries(from.., usize::MAX)? {
        if let EntryPayload::Normal(proposal) = &entry.payload {
            // One that is refused or superseded changes nothing, now as then.
            let _ = map.apply_written(proposal, reign_of(&entry.log_id.leader_id));
        }
    }
    Ok(map)
}

/// Makes an empty file that of a cluster with one monitor, `id`, and this map. Blocks.
pub(crate) fn seed(store: &Store, id: u64, member: Member, map: &ClusterMap) -> Result<(), Failure> {
    let at = LogId::new(CommittedLeaderId::new(1, id), 1);
    let members = BTreeMap::from([(id, member)]);
    let membership = Membership::new(vec![[id].into()], members);
    let meta = Meta {
        last_log_id: Some(at),
        last_membership: StoredMembership::new(Some(at), membership),
        snapshot_id: at.to_string(),
    };
    store.seed(&Saved { meta, map: encode(map)? }, at)
}
