//! From one version of the map to a later one, without the map: what the monitors send to those who have
//! an older one.
//!
//! `newer == older + (newer - older)`, to the last field: [`ClusterMap::diff`] and
//! [`ClusterMap::apply_delta`]. Both cost what has changed, where the two versions share the rest; the
//! CRUSH map is the exception, which is checked anew as a whole when a part of it changes.
//!
//! A delta comes from outside: one that does not fit is refused, and the map is as it was.

use super::admin::Removed;
use super::cow::Changes;
use super::deaths::DeathLog;
use super::mutes::Mutes;
use super::{ClusterMap, EventLog, Moves, Node, Pool, Positions, Restored, Volume};
use crate::crush::{Bucket, ChooseArgs, CrushMap, Device, MapDef, Rule, Tunables, TypeName};
use crate::ids::*;
use crate::placement::{PgConfig, PgTable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a delta cannot be applied. The remedy is the whole map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// It is one for another map.
    #[error("a change of version {wanted} of the cluster map cannot be applied to version {found}")]
    Base {
        /// The version that it is for.
        wanted: u64,
        /// The map's.
        found: u64,
    },
    /// It does not fit the map.
    #[error("a change of the cluster map does not fit it: {0}")]
    Misfit(String),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDelta {
    /// The version of the map that it is applied to.
    base: u64,
    version: u64,
    layout: u64,
    crush: CrushChange,
    crush_version: u64,
    nodes: Changes<NodeId, Node>,
    pools: BTreeMap<PoolId, Option<Pool>>,
    pgs: BTreeMap<PoolId, PgsChange>,
    volumes: Changes<VolumeId, Volume>,
    next_volume: VolumeId,
    next_node: NodeId,
    next_pool: PoolId,
    positions: Option<Arc<Positions>>,
    events: Option<Arc<EventLog>>,
    forgotten: Option<Vec<(VolumeId, VolumeId)>>,
    moves: Option<Moves>,
    restored: Option<Restored>,
    mutes: Option<Mutes>,
    deaths: Option<DeathLog>,
    removed: Option<Removed>,
}

/// What becomes of a pool's placement groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum PgsChange {
    Gone,
    /// A new table.
    Whole(PgTable),
    /// Some groups of the one that is there, or behind its end.
    Some(Vec<(u32, PgConfig)>),
}

/// What becomes of the CRUSH map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum CrushChange {
    Same,
    Whole(Arc<CrushMap>),
    Parts(Box<CrushParts>),
}

/// The parts of a CRUSH map that are others: those that a cluster has thousands of each by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct CrushParts {
    tunables: Option<Tunables>,
    types: Option<Vec<TypeName>>,
    rules: Option<Vec<Rule>>,
    choose_args: Option<Vec<ChooseArgs>>,
    devices: Vec<Device>,
    devices_gone: Vec<i32>,
    buckets: Vec<Bucket>,
    buckets_gone: Vec<i32>,
}

impl MapDelta {
    /// True where applying it may take some 10 ms in a large cluster, whatever it changes: the CRUSH map is
    /// checked anew. A thread that serves I/O leaves it to another one.
    pub fn is_costly(&self) -> bool {
        self.crush != CrushChange::Same
    }
}

fn changed_items<T: Clone + PartialEq>(
    older: &[T],
    newer: &[T],
    id: impl Fn(&T) -> i32,
) -> (Vec<T>, Vec<i32>) {
    let known: BTreeMap<i32, &T> = older.iter().map(|it| (id(it), it)).collect();
    let kept: std::collections::BTreeSet<i32> = newer.iter().map(&id).collect();
    let put = newer.iter().filter(|it| known.get(&id(it)) != Some(it)).cloned().collect();
    (put, known.into_keys().filter(|id| !kept.contains(id)).collect())
}

fn change_items<T: Clone>(items: &mut Vec<T>, put: &[T], gone: &[i32], id: impl Fn(&T) -> i32) {
    let mut put: BTreeMap<i32, &T> = put.iter().map(|it| (id(it), it)).collect();
    items.retain(|it| !gone.contains(&id(it)));
    for it in items.iter_mut() {
        if let Some(new) = put.remove(&id(it)) {
            *it = new.clone();
        }
    }
    items.extend(put.into_values().cloned());
}

impl CrushParts {
    fn between(older: &MapDef, newer: &MapDef) -> CrushParts {
        let (devices, devices_gone) = changed_items(&older.devices, &newer.devices, |it| it.id);
        let (buckets, buckets_gone) = changed_items(&older.buckets, &newer.buckets, |it| it.id);
        CrushParts {
            tunables: (older.tunables != newer.tunables).then(|| newer.tunables.clone()),
            types: (older.types != newer.types).then(|| newer.types.clone()),
            rules: (older.rules != newer.rules).then(|| newer.rules.clone()),
            choose_args: (older.choose_args != newer.choose_args).then(|| newer.choose_args.clone()),
            devices,
            devices_gone,
            buckets,
            buckets_gone,
        }
    }

    fn on(&self, older: &MapDef) -> Result<CrushMap, DeltaError> {
        let mut def = older.clone();
        change_items(&mut def.devices, &self.devices, &self.devices_gone, |it| it.id);
        change_items(&mut def.buckets, &self.buckets, &self.buckets_gone, |it| it.id);
        let CrushParts { tunables, types, rules, choose_args, .. } = self.clone();
        def.tunables = tunables.unwrap_or(def.tunables);
        def.types = types.unwrap_or(def.types);
        def.rules = rules.unwrap_or(def.rules);
        def.choose_args = choose_args.unwrap_or(def.choose_args);
        CrushMap::new(def).map_err(|error| DeltaError::Misfit(error.to_string()))
    }
}

impl CrushChange {
    fn between(older: &Arc<CrushMap>, newer: &Arc<CrushMap>) -> CrushChange {
        if Arc::ptr_eq(older, newer) || older == newer {
            return CrushChange::Same;
        }
        let parts = CrushParts::between(older.def(), newer.def());
        // The order of buckets and the ids of shadow buckets come from the compiler. It is not taken on
        // trust that they come out the same.
        match parts.on(older.def()) {
            Ok(made) if made == **newer => CrushChange::Parts(Box::new(parts)),
            _ => CrushChange::Whole(newer.clone()),
        }
    }

    fn on(&self, older: &Arc<CrushMap>) -> Result<Arc<CrushMap>, DeltaError> {
        match self {
            CrushChange::Same => Ok(older.clone()),
            CrushChange::Whole(newer) => Ok(newer.clone()),
            CrushChange::Parts(parts) => parts.on(older.def()).map(Arc::new),
        }
    }
}

impl PgsChange {
    fn between(older: &PgTable, newer: &PgTable) -> Option<PgsChange> {
        if newer.len() < older.len() {
            return Some(PgsChange::Whole(newer.clone()));
        }
        let changed: Vec<_> = newer.changed(Some(older)).map(|(pg, it)| (pg, it.config())).collect();
        (!changed.is_empty()).then_some(PgsChange::Some(changed))
    }
}

impl ClusterMap {
    /// What makes this map of an older one; none if the two are not of one cluster, or there is nothing
    /// in common to speak of.
    pub fn diff(&self, older: &ClusterMap) -> Option<MapDelta> {
        if (self.cluster_id, &self.name) != (older.cluster_id, &older.name) {
            return None;
        }
        let ids = |map: &ClusterMap| map.pools.keys().chain(map.pgs.0.keys()).copied().collect::<Vec<_>>();
        let (mut pools, mut pgs) = (BTreeMap::new(), BTreeMap::new());
        for id in ids(self).into_iter().chain(ids(older)) {
            if self.pools.get(&id) != older.pools.get(&id) {
                pools.insert(id, self.pools.get(&id).cloned());
            }
            let size = |map: &ClusterMap| map.pools.get(&id).map(|pool| pool.size);
            let change = match (older.pgs.pool(id), self.pgs.pool(id)) {
                // A table is laid out for so many copies: the other way round each group would be an exception.
                (Some(_), Some(newer)) if size(self) != size(older) => Some(PgsChange::Whole(newer.clone())),
                (Some(older), Some(newer)) => PgsChange::between(older, newer),
                (None, Some(newer)) => Some(PgsChange::Whole(newer.clone())),
                (Some(_), None) => Some(PgsChange::Gone),
                (None, None) => None,
            };
            pgs.extend(change.map(|change| (id, change)));
        }
        let same_positions =
            Arc::ptr_eq(&self.positions, &older.positions) || self.positions == older.positions;
        Some(MapDelta {
            base: older.version,
            version: self.version,
            layout: self.layout,
            crush: CrushChange::between(&older.crush, &self.crush),
            crush_version: self.crush_version,
            nodes: self.nodes.changes(&older.nodes),
            pools,
            pgs,
            volumes: self.volumes.changes(&older.volumes),
            forgotten: (self.forgotten != older.forgotten).then(|| self.forgotten.clone()),
            next_volume: self.next_volume,
            next_node: self.next_node,
            next_pool: self.next_pool,
            positions: (!same_positions).then(|| self.positions.clone()),
            // Maps that are sent have none.
            events: (self.events != older.events).then(|| self.events.clone()),
            moves: (self.moves != older.moves).then(|| self.moves.clone()),
            restored: (self.restored != older.restored).then(|| self.restored.clone()),
            mutes: (self.mutes != older.mutes).then(|| self.mutes.clone()),
            deaths: (self.deaths != older.deaths).then(|| self.deaths.clone()),
            removed: (self.removed != older.removed).then(|| self.removed.clone()),
        })
    }

    /// Makes the newer map of this one.
    ///
    /// Errors: the delta is one for another map. This one is as it was.
    pub fn apply_delta(&mut self, delta: &MapDelta) -> Result<(), DeltaError> {
        if delta.base != self.version {
            return Err(DeltaError::Base { wanted: delta.base, found: self.version });
        }
        let crush = delta.crush.on(&self.crush)?;
        let mut pgs = self.pgs.clone();
        for (pool, change) in &delta.pgs {
            match change {
                PgsChange::Gone => {
                    pgs.0.remove(pool);
                }
                PgsChange::Whole(table) => {
                    pgs.0.insert(*pool, table.clone());
                }
                PgsChange::Some(changed) => {
                    let misfit = || DeltaError::Misfit(format!("placement groups of {pool}"));
                    let table = pgs.0.get_mut(pool).ok_or_else(misfit)?;
                    for (pg, config) in changed {
                        if *pg == table.len() {
                            table.push(config);
                        } else if !table.set(*pg, config) {
                            return Err(misfit());
                        }
                    }
                }
            }
        }
        // From here on nothing fails.
        (self.crush, self.pgs) = (crush, pgs);
        self.nodes.change(&delta.nodes);
        self.volumes.change(&delta.volumes);
        for (id, pool) in &delta.pools {
            match pool {
                Some(pool) => self.pools.insert(*id, pool.clone()),
                None => self.pools.remove(id),
            };
        }
        if let Some(positions) = &delta.positions {
            self.positions = positions.clone();
        }
        if let Some(events) = &delta.events {
            self.events = events.clone();
        }
        if let Some(forgotten) = &delta.forgotten {
            self.forgotten.clone_from(forgotten);
        }
        if let Some(moves) = &delta.moves {
            self.moves = moves.clone();
        }
        if let Some(restored) = &delta.restored {
            self.restored.clone_from(restored);
        }
        if let Some(mutes) = &delta.mutes {
            self.mutes = mutes.clone();
        }
        if let Some(deaths) = &delta.deaths {
            self.deaths = deaths.clone();
        }
        if let Some(removed) = &delta.removed {
            self.removed = removed.clone();
        }
        (self.version, self.layout) = (delta.version, delta.layout);
        self.crush_version = delta.crush_version;
        (self.next_volume, self.next_node, self.next_pool) =
            (delta.next_volume, delta.next_node, delta.next_pool);
        Ok(())
    }
}
