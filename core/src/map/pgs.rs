//! The placement groups of all pools: a [`PgTable`] for each.

use crate::ids::*;
use crate::placement::{Pg, PgConfig, PgTable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// See the module. A clone shares the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgMap(pub(super) BTreeMap<PoolId, PgTable>);

impl PgMap {
    /// Where a placement group lives.
    pub fn get(&self, id: &PgId) -> Option<Pg<'_>> {
        self.0.get(&id.pool)?.get(id.pg)
    }

    /// The table of a pool.
    pub fn pool(&self, pool: PoolId) -> Option<&PgTable> {
        self.0.get(&pool)
    }

    /// Replaces a placement group. False if there is none of that name.
    pub fn set(&mut self, id: PgId, config: &PgConfig) -> bool {
        self.0.get_mut(&id.pool).is_some_and(|table| table.set(id.pg, config))
    }

    /// Every placement group, in order.
    pub fn iter(&self) -> impl Iterator<Item = (PgId, Pg<'_>)> {
        self.0.iter().flat_map(|(pool, table)| {
            table.iter().map(move |(pg, config)| (PgId { pool: *pool, pg }, config))
        })
    }

    /// Those that `older` does not have, or not so. Costs next to nothing where the two share their
    /// tables, as a map and the one that a delta has made of it do.
    pub fn changed<'a>(&'a self, older: Option<&'a PgMap>) -> impl Iterator<Item = (PgId, Pg<'a>)> {
        self.0.iter().flat_map(move |(pool, table)| {
            let before = older.and_then(|older| older.0.get(pool));
            table.changed(before).map(move |(pg, config)| (PgId { pool: *pool, pg }, config))
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(|table| table.len() as usize).sum()
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the tables take of the heap; see [`PgTable::heap_bytes`].
    pub fn heap_bytes(&self) -> usize {
        self.0.values().map(PgTable::heap_bytes).sum()
    }
}
