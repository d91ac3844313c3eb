//! The cluster map: who is there, what volumes exist, where their objects live, who may lead them.
//!
//! A pure state machine. The monitors agree on a sequence of [`Command`]s through Raft, and
//! [`ClusterMap::apply`] makes the same map of it everywhere: in each monitor, in the simulator, after
//! each restart. A command that is refused changes nothing, the version included.
//!
//! # Layout
//!
//! | module | what |
//! |---|---|
//! | `types` | the map's parts and their limits |
//! | `command` | what can be done to it, and how that fails |
//! | `apply` | doing it |
//! | `pgs`, `cow` | its large parts, which versions share |
//! | `delta` | from one version to a later one |
//! | [`restore`] | the map of a backup, made fit to be used again |
//! | [`admin`] | nodes that are drained and removed, settings of pools |
//! | [`mutes`], [`deaths`] | checks that are not to be heard of, daemons that died: for people |
//! | [`diff`] | what another CRUSH map would move |
//! | [`lease`] | who may be granted a volume now: the leader's soft state beside the map |
//! | [`reign`] | what a leader may decide, and for how long it is true |
//! | [`heard`] | which leaders nodes hear: why a healer does not get a volume |
//! | [`events`] | what has happened, for people |
//! | [`outs`] | which nodes that are down are given up: a rule without state |
//! | [`liveness`] | which nodes have been heard of: the same |
//! | `moves` | steps of placement groups from one set of nodes to another |
//! | [`mover`] | which step comes next: the leader's soft state beside the map |
//! | `split` | more placement groups for a pool |
//! | `placer` | where CRUSH says that they should live |
//!
//! # Versions
//!
//! `version` counts every change. `layout` is the version of the last change that anybody but the
//! monitors acts on (nodes, pools, placement groups, volumes): grants, releases and log positions
//! raise the one and not the other, so that attaching a disk does not send the map to everybody. Who has
//! an older layout gets the difference ([`ClusterMap::diff`]).
//!
//! # Size
//!
//! Every daemon has the map, and it may have 10,000 nodes and a million placement groups. Its large parts
//! are shared between versions: a clone costs next to nothing, a change what it changes
//! ([`CowMap`], [`PgTable`](crate::placement::PgTable)). `trefoil bench map` measures it.

pub mod admin;
mod apply;
mod command;
mod cow;
pub mod deaths;
mod delta;
pub mod diff;
pub mod events;
pub mod heard;
pub mod lease;
pub mod liveness;
pub mod mover;
mod moves;
pub mod mutes;
pub mod outs;
mod pgs;
mod placer;
pub mod reign;
pub mod restore;
mod split;
mod types;

pub use crate::placement::Pg;
pub use command::{Command, FailureDomain, Grant, MapError, Reply};
pub use cow::CowMap;
pub use delta::{DeltaError, MapDelta};
pub use events::{Event, EventLog};
pub use moves::{
    MOVES_CLUSTER_DEFAULT, MOVES_MAX, MOVES_PER_NODE_DEFAULT, Move, MoveLimits, MoveStage, Moves,
};
pub use pgs::PgMap;
pub use placer::Placer;
pub use restore::{LayoutReport, Restored};
pub use types::*;

use crate::crush::{CrushMap, object_pg};
use crate::ids::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Raised by one by each change; 0: not initialised.
    pub version: u64,
    /// `version` when something last changed that daemons act on.
    pub layout: u64,
    /// Drawn at random by Init. All zeros before.
    pub cluster_id: [u8; 16],
    /// For people.
    pub name: String,
    /// Where placement groups should live. Where they do is in `pgs`.
    pub crush: Arc<CrushMap>,
    /// `version` when the CRUSH map last changed: whoever edits it says which one they saw.
    pub crush_version: u64,
    /// The nodes.
    pub nodes: CowMap<NodeId, Node>,
    /// The pools.
    pub pools: BTreeMap<PoolId, Pool>,
    /// Every placement group of every pool.
    pub pgs: PgMap,
    /// The volumes that exist.
    pub volumes: CowMap<VolumeId, Volume>,
    /// Every volume id below this one was issued; it is never issued again.
    pub next_volume: VolumeId,
    next_node: NodeId,
    next_pool: PoolId,
    positions: Arc<Positions>,
    events: Arc<EventLog>,
    /// Ranges of volume ids, from and to before, of which this map knows nothing: it was restored from a backup
    /// that was taken before they were issued. Volumes of such ids are not deleted.
    forgotten: Vec<(VolumeId, VolumeId)>,
    /// Placement groups on the move.
    pub moves: Moves,
    /// What a restore from a backup has left open.
    pub restored: Restored,
    /// Health checks that are not to be heard of. Only the monitors have them.
    pub mutes: mutes::Mutes,
    /// Daemons that died. Only the monitors have them.
    pub deaths: deaths::DeathLog,
    removed: admin::Removed,
}

impl Default for ClusterMap {
    fn default() -> ClusterMap {
        ClusterMap::new()
    }
}

impl ClusterMap {
    /// The map before Init.
    pub fn new() -> ClusterMap {
        ClusterMap {
            version: 0,
            layout: 0,
            cluster_id: [0; 16],
            name: String::new(),
            crush: Arc::new(CrushMap::with_root()),
            crush_version: 0,
            nodes: CowMap::default(),
            pools: BTreeMap::new(),
            pgs: PgMap::default(),
            volumes: CowMap::default(),
            next_volume: VolumeId(1),
            next_node: NodeId(0),
            next_pool: PoolId(1),
            positions: Arc::default(),
            events: Arc::default(),
            forgotten: Vec::new(),
            moves: Moves::default(),
            restored: Restored::default(),
            mutes: mutes::Mutes::default(),
            deaths: deaths::DeathLog::default(),
            removed: Arc::default(),
        }
    }

    /// The group of an object, or none where the volume does not exist or is not that large.
    pub fn group_of(&self, volume: VolumeId, object: ObjectIndex) -> Option<GroupId> {
        let it = self.volumes.get(&volume)?;
        if object >= it.objects() {
            return None;
        }
        let pg_num = self.pools.get(&it.pool)?.pg_num;
        let pg = PgId { pool: it.pool, pg: object_pg(volume.0, object, pg_num) };
        Some(GroupId { volume, pg })
    }

    /// Where a placement group lives.
    pub fn members(&self, pg: PgId) -> Option<Pg<'_>> {
        self.pgs.get(&pg)
    }

    /// The placement groups of a pool, in order.
    pub fn pool_pgs(&self, pool: PoolId) -> impl Iterator<Item = (PgId, Pg<'_>)> {
        let table = self.pgs.pool(pool).into_iter();
        table.flat_map(move |table| table.iter().map(move |(pg, config)| (PgId { pool, pg }, config)))
    }

    /// The placement groups that a volume's objects may be in: all of its pool. (A small volume has
    /// objects in few of them; [`ClusterMap::groups_of`] says in which.)
    pub fn volume_pgs(&self, volume: VolumeId) -> impl Iterator<Item = (PgId, Pg<'_>)> {
        let pool = self.volumes.get(&volume).map(|it| it.pool);
        pool.into_iter().flat_map(|pool| self.pool_pgs(pool))
    }

    /// Every node that has or gets a copy of any object of the volume: whom a leader fences.
    pub fn volume_nodes(&self, volume: VolumeId) -> BTreeSet<NodeId> {
        self.volume_pgs(volume).flat_map(|(_, pg)| pg.nodes()).collect()
    }

    /// The groups that a volume has objects in, each with its objects, in order. Hashes every object:
    /// for attaching and healing, not for each request.
    pub fn groups_of(&self, volume: VolumeId) -> BTreeMap<GroupId, Vec<ObjectIndex>> {
        let mut groups: BTreeMap<GroupId, Vec<ObjectIndex>> = BTreeMap::new();
        let objects = self.volumes.get(&volume).map_or(0, |it| it.objects());
        for object in 0..objects {
            if let Some(group) = self.group_of(volume, object) {
                groups.entry(group).or_default().push(object);
            }
        }
        groups
    }

    /// The volume of that name.
    pub fn volume_named(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        let mut volumes = self.volumes.iter();
        volumes.find(|(_, it)| it.name == name).map(|(id, it)| (*id, &**it))
    }

    /// The pool of that name.
    pub fn pool_named(&self, name: &str) -> Option<(PoolId, &Pool)> {
        let mut pools = self.pools.iter();
        pools.find(|(_, it)| it.name == name).map(|(id, it)| (*id, it))
    }

    /// True if a node may delete what it has of the volume: the id was issued, and is gone. An id that
    /// was not issued yet, as far as this map goes, or was issued after a backup that it was restored from,
    /// says nothing.
    pub fn is_deleted(&self, volume: VolumeId) -> bool {
        let forgotten = self.forgotten.iter().any(|(from, to)| (*from..*to).contains(&volume));
        volume.0 != 0 && volume < self.next_volume && !self.volumes.contains_key(&volume) && !forgotten
    }

    /// The greatest log position that the node has reported as durable, as far as it was committed
    /// (N8).
    pub fn position(&self, node: NodeId) -> u64 {
        self.positions.get(&node).copied().unwrap_or(0)
    }

    /// The map without what only the monitors need of it: what daemons are sent. Log positions change
    /// all the time, and those of ten thousand nodes would outweigh any other change; events are for people.
    pub fn without_positions(&self) -> ClusterMap {
        ClusterMap {
            positions: Arc::default(),
            events: Arc::default(),
            mutes: mutes::Mutes::default(),
            deaths: deaths::DeathLog::default(),
            removed: Arc::default(),
            ..self.clone()
        }
    }

    /// What has happened.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Shares with an older map what is the same: for a map that has come as a whole, so that it costs no
    /// more than a difference would have, and is compared as quickly.
    pub fn share(&mut self, older: &ClusterMap) {
        for (pool, table) in &mut self.pgs.0 {
            if let Some(older) = older.pgs.pool(*pool) {
                table.share(older);
            }
        }
        if self.crush == older.crush {
            self.crush = older.crush.clone();
        }
    }

    /// The last granted generation of every volume: what a node that lost state is fenced with (N8).
    pub fn generations(&self) -> impl Iterator<Item = (VolumeId, Generation)> + '_ {
        self.volumes.iter().map(|(id, it)| (*id, it.generation))
    }
}

#[cfg(test)]
mod tests;
