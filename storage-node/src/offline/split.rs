//! Placement groups that a device's node had not split yet when it stopped.
//!
//! A node splits what it has when it is asked about it; a device that was taken away before has objects in the
//! groups of before. What its node would have made of them is made here, in memory: the same record, applied by
//! the same code. The device is not written.

use super::OfflineStore;
use trefoil_core::PgId;
use trefoil_core::crush::pg_split_children;
use trefoil_core::map::ClusterMap;
use trefoil_core::record::Record;

impl<D> OfflineStore<D> {
    /// Splits what the store has as far as the map says.
    pub fn split_as(&mut self, map: &ClusterMap) {
        let state = &mut self.recovery.state;
        let due = |(pg, it): (&PgId, &trefoil_core::record::PgState)| {
            let pool = map.pools.get(&pg.pool)?;
            let (from, to) = (it.level(pool.pg_num_first), pool.pg_num);
            let splits = from < to && !pg_split_children(pg.pg, from, to).is_empty();
            splits.then_some(Record::<()>::Split { pg: *pg, from, to })
        };
        let due: Vec<Record<()>> = state.durable.pgs.iter().filter_map(due).collect();
        for record in due {
            state.apply(&record, 0);
        }
    }
}
