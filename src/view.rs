//! What commands show, with the field names that scripts see in `--json`.
//!
//! Made from the map and the status that a monitor gave, by plain functions. A field is never renamed or
//! given another meaning; new ones may come. Sizes are in bytes, times in the unit that ends the name.

use serde::Serialize;
use std::collections::BTreeMap;
use trefoil_core::ids::NodeId;
use trefoil_core::map::{Ack, ClusterMap, HolderKind, Pg};
use trefoil_monitor::health::{Check, Health, NodeStatus, Status};

/// `trefoil status`.
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    /// `HEALTH_OK`, `HEALTH_WARN` or `HEALTH_ERR`.
    pub health: Health,
    /// What is not as it should be, the worst first.
    pub checks: Vec<Check>,
    /// Which cluster.
    pub cluster: ClusterView,
    /// Who leads.
    pub monitor: MonitorView,
    /// Nodes by state.
    pub nodes: NodeCounts,
    /// Placement groups by state.
    pub pgs: PgCounts,
    /// Pools in all.
    pub pools: u64,
    /// Volumes by state.
    pub volumes: VolumeCounts,
    /// Room on the nodes that have been heard of.
    pub space: SpaceView,
    /// What the nodes do for front ends and for recovery.
    pub io: IoView,
    /// What is being repaired.
    pub recovery: RecoveryView,
}

/// See [`StatusView`].
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct ClusterView {
    pub name: String,
    pub id: String,
    pub map_version: u64,
}

/// See [`StatusView`].
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct MonitorView {
    pub leader: String,
    pub leading_for_s: u64,
    /// Monitors in all.
    pub total: u64,
    /// Those that have answered the leader lately.
    pub up: u64,
}

/// See [`StatusView`].
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct NodeCounts {
    pub total: u64,
    pub up: u64,
    pub down: u64,
    /// Not heard of since the monitor started.
    pub unknown: u64,
    /// CRUSH gives them nothing: taken out, or drained.
    pub out: u64,
    /// Of those that are up: not heard of for so long that nobody knows how they are (NODE_SILENT).
    pub silent: u64,
}

/// See [`StatusView`].
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct PgCounts {
    pub total: u64,
    pub active: u64,
    pub degraded: u64,
    pub unavailable: u64,
    /// Whose members are being changed; whatever they are besides.
    pub moving: u64,
}

/// See [`StatusView`].
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct VolumeCounts {
    pub total: u64,
    pub attached: u64,
    pub healing: u64,
    pub needs_heal: u64,
    /// Processes that have them.
    pub front_ends: u64,
}

/// See [`StatusView`].
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct SpaceView {
    pub nodes_known: u64,
    pub total_bytes: u64,
    pub used_bytes: u64,
}

/// See [`StatusView`].
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct RecoveryView {
    /// Nodes that are up and have said how they are; the rest may miss anything.
    pub nodes_known: u64,
    pub copies_behind: u64,
    pub nodes_behind: u64,
    pub bad_blocks: u64,
    pub checksum_errors: u64,
    /// Seconds until no copy is behind, at the pace of the last half minute; none: not known.
    pub left_s: Option<u64>,
}

/// See [`StatusView`]. Per second, of all nodes that are known; a write is counted once for each copy.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct IoView {
    pub nodes_known: u64,
    pub reads_per_s: u64,
    pub writes_per_s: u64,
    pub read_bytes_per_s: u64,
    pub write_bytes_per_s: u64,
    /// That nodes got from others to repair their copies.
    pub recovery_bytes_per_s: u64,
}

/// An entry of `trefoil node list`.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// The number, CRUSH's OSD id.
    pub id: u32,
    /// The CRUSH bucket of type `host`.
    pub host: String,
    /// Where it listens.
    pub address: String,
    /// `up`, `down`, `lost`, or `unknown`: not heard of since the monitor started.
    pub state: &'static str,
    /// CRUSH gives it nothing: its data is to live elsewhere.
    pub out: bool,
    /// It is being drained: its weight is zero until it is removed, or that is undone.
    pub draining: bool,
    /// Placement groups that it takes part in: as a member, or on its way to be one.
    pub pgs: u64,
    /// When it came up or went down, in milliseconds since 1970.
    pub since_ms: u64,
    /// Its device class.
    pub class: Option<String>,
    /// The device.
    pub size_bytes: u64,
    /// None: not heard of since the monitor started. The same for what follows.
    pub used_bytes: Option<u64>,
    /// Up to where its log is durable.
    pub log_position: Option<u64>,
    /// Blocks that fail their checksum and that no peer could mend.
    pub bad_blocks: Option<u64>,
    /// Blocks that failed their checksum since the node started, mended or not.
    pub checksum_errors: Option<u64>,
    /// Objects that are behind here.
    pub copies_behind: Option<u64>,
    /// The name of its store, in hexadecimal.
    pub incarnation: String,
}

/// An entry of `trefoil pg list`.
#[derive(Clone, Debug, Serialize)]
pub struct PgView {
    /// `POOL.PG`, the latter in hexadecimal.
    pub pg: String,
    /// The pool's name.
    pub pool: String,
    /// Of its configuration.
    pub epoch: u64,
    /// Nodes with a vote.
    pub acting: Vec<u32>,
    /// In a joint epoch, the set that is being left.
    pub leaving: Vec<u32>,
    /// Nodes that get the data and have no vote.
    pub learners: Vec<u32>,
    /// `active`, `degraded` or `unavailable`.
    pub state: &'static str,
    /// `learn` or `joint`, where it is on the move.
    pub moving: Option<&'static str>,
}

/// An entry of `trefoil pool list`.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct PoolView {
    pub id: u32,
    pub name: String,
    pub copies: u8,
    pub pg_num: u32,
    pub rule: u32,
    /// `majority` or `all-in-sync`.
    pub ack: Ack,
    pub volumes: u64,
    /// The rule's name; empty if the CRUSH map has none of that id.
    pub rule_name: String,
    /// The sizes of its volumes, as clients see them.
    pub volume_bytes: u64,
    pub degraded_pgs: u64,
    pub unavailable_pgs: u64,
}

/// An entry of `trefoil volume list`, and `trefoil volume info`.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeView {
    /// Never used again.
    pub id: u64,
    /// What NBD calls the export.
    pub name: String,
    /// The pool's name.
    pub pool: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Bytes.
    pub object_size_bytes: u64,
    /// `attached`, `healing`, `needs-heal` or `detached`.
    pub state: &'static str,
    /// The last that was granted.
    pub generation: u64,
    /// Who was granted it and has not released it.
    pub holder: Option<String>,
    /// `front-end` or `healer`.
    pub holder_kind: Option<HolderKind>,
    /// Every copy was whole at the last release.
    pub clean: bool,
    /// After which an I/O without a majority fails; none: it waits.
    pub io_timeout_ms: Option<u64>,
}

/// What a monitor said: everything that commands show is made of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Who said it.
    pub from: String,
    /// The map.
    pub map: ClusterMap,
    /// How everything is.
    pub status: Status,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers(nodes: &[NodeId]) -> Vec<u32> {
    nodes.iter().map(|node| node.0).collect()
}

impl Snapshot {
    /// `trefoil status`.
    pub fn status(&self) -> StatusView {
        let (status, map) = (&self.status, &self.map);
        let beats = || status.nodes.iter().filter_map(|node| node.heartbeat.as_ref());
        let sum =
            |of: fn(&trefoil_monitor::rpc::Heartbeat) -> u64| beats().map(of).fold(0u64, u64::saturating_add);
        let up_now = || status.nodes.iter().filter(|node| node.up == Some(true));
        let beats_up = || up_now().filter_map(|node| node.heartbeat.as_ref());
        let nodes_with =
            |test: &dyn Fn(&NodeStatus) -> bool| status.nodes.iter().filter(|node| test(node)).count() as u64;
        let volumes_with = |test: fn(&trefoil_monitor::health::VolumeStatus) -> bool| {
            status.volumes.iter().filter(|volume| test(volume)).count() as u64
        };
        StatusView {
            health: status.health,
            checks: status.checks.clone(),
            cluster: ClusterView {
                name: status.cluster_name.clone(),
                id: hex(&status.cluster_id),
                map_version: status.version,
            },
            monitor: MonitorView {
                leader: self.from.clone(),
                leading_for_s: status.leading_for / 1_000_000,
                total: status.monitors.len() as u64,
                up: status.monitors.iter().filter(|it| it.up == Some(true)).count() as u64,
            },
            nodes: NodeCounts {
                total: status.nodes.len() as u64,
                up: nodes_with(&|node| node.up == Some(true)),
                down: nodes_with(&|node| node.up == Some(false)),
                unknown: nodes_with(&|node| node.up.is_none()),
                silent: status.checks.iter().find(|it| it.code == "NODE_SILENT").map_or(0, |it| it.count),
                out: map.nodes.values().filter(|it| it.out.is_some() || it.drained.is_some()).count() as u64,
            },
            pgs: PgCounts {
                total: status.pgs,
                active: status.pgs.saturating_sub(status.pgs_degraded + status.pgs_unavailable),
                degraded: status.pgs_degraded,
                unavailable: status.pgs_unavailable,
                moving: status.pgs_moving,
            },
            pools: map.pools.len() as u64,
            volumes: VolumeCounts {
                total: status.volumes.len() as u64,
                attached: volumes_with(|volume| volume.attached),
                healing: volumes_with(|volume| volume.healing),
                needs_heal: volumes_with(|volume| volume.needs_heal),
                front_ends: status.front_ends,
            },
            space: SpaceView {
                nodes_known: beats().count() as u64,
                total_bytes: sum(|beat| beat.bytes_total),
                used_bytes: sum(|beat| beat.bytes_used),
            },
            recovery: RecoveryView {
                nodes_known: beats_up().count() as u64,
                copies_behind: beats_up().map(|beat| beat.behind).fold(0, u64::saturating_add),
                nodes_behind: beats_up().filter(|beat| beat.behind > 0).count() as u64,
                bad_blocks: sum(|beat| beat.bad_blocks),
                checksum_errors: sum(|beat| beat.checksum_errors),
                left_s: self.recovery_left(),
            },
            io: self.io(),
        }
    }

    /// Seconds until no copy is behind at any node that is up: that of the slowest. None: of some node it is not known.
    fn recovery_left(&self) -> Option<u64> {
        let up = self.status.nodes.iter().filter(|node| node.up == Some(true));
        let behind = up.filter(|node| node.heartbeat.as_ref().is_none_or(|beat| beat.behind > 0));
        behind.map(|node| node.recovery?.left_s).try_fold(0, |most, left| Some(most.max(left?)))
    }

    fn io(&self) -> IoView {
        let known = self.status.nodes.iter().filter_map(|node| node.io);
        known.fold(IoView::default(), |sum, it| IoView {
            nodes_known: sum.nodes_known + 1,
            reads_per_s: sum.reads_per_s.saturating_add(it.reads),
            writes_per_s: sum.writes_per_s.saturating_add(it.writes),
            read_bytes_per_s: sum.read_bytes_per_s.saturating_add(it.read_bytes),
            write_bytes_per_s: sum.write_bytes_per_s.saturating_add(it.write_bytes),
            recovery_bytes_per_s: sum.recovery_bytes_per_s.saturating_add(it.recovery_bytes),
        })
    }

    /// `trefoil node list`.
    pub fn nodes(&self) -> Vec<NodeView> {
        let states: BTreeMap<NodeId, &NodeStatus> =
            self.status.nodes.iter().map(|status| (status.node, status)).collect();
        let mut pgs: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (_, pg) in self.map.pgs.iter() {
            pg.nodes().for_each(|node| *pgs.entry(node).or_default() += 1);
        }
        let view = |(id, node): (&NodeId, &std::sync::Arc<trefoil_core::map::Node>)| {
            let status = states.get(id);
            let beat = status.and_then(|status| status.heartbeat.as_ref());
            NodeView {
                id: id.0,
                host: node.host.clone(),
                address: node.address.to_string(),
                state: match status.and_then(|status| status.up) {
                    _ if node.lost => "lost",
                    Some(true) => "up",
                    Some(false) => "down",
                    None => "unknown",
                },
                out: node.out.is_some(),
                draining: node.drained.is_some(),
                pgs: pgs.get(id).copied().unwrap_or(0),
                since_ms: node.since,
                class: node.class.clone(),
                size_bytes: node.size,
                used_bytes: beat.map(|beat| beat.bytes_used),
                log_position: beat.map(|beat| beat.position),
                bad_blocks: beat.map(|beat| beat.bad_blocks),
                checksum_errors: beat.map(|beat| beat.checksum_errors),
                copies_behind: beat.map(|beat| beat.behind),
                incarnation: format!("{:016x}", node.incarnation.0),
            }
        };
        self.map.nodes.iter().map(view).collect()
    }

    /// `trefoil pg list`.
    pub fn pgs(&self) -> Vec<PgView> {
        self.map
            .pgs
            .iter()
            .map(|(id, pg)| PgView {
                pg: id.to_string(),
                pool: self.pool_name(id.pool),
                epoch: pg.epoch.0,
                acting: numbers(pg.new),
                leaving: if pg.old == pg.new { Vec::new() } else { numbers(pg.old) },
                learners: numbers(pg.learners),
                state: self.pg_state(pg),
                moving: self.map.moves.active.get(&id).map(|it| stage(it.stage(&pg.config()))),
            })
            .collect()
    }

    /// As the monitor counts them: by the nodes that are up in the map.
    pub fn pg_state(&self, pg: Pg<'_>) -> &'static str {
        let up = |node: &NodeId| self.map.nodes.get(node).is_some_and(|node| node.up);
        let majority = |set: &[NodeId]| 2 * set.iter().filter(|node| up(node)).count() > set.len();
        if !majority(pg.old) || !majority(pg.new) {
            "unavailable"
        } else if pg.old.iter().chain(pg.new).all(up) {
            "active"
        } else {
            "degraded"
        }
    }

    /// `trefoil pool list`.
    pub fn pools(&self) -> Vec<PoolView> {
        let volumes = |id| self.map.volumes.values().filter(move |volume| volume.pool == id);
        let rule_name =
            |id| self.map.crush.def().rules.iter().find(|it| it.id == id).map(|it| it.name.clone());
        let in_state = |id, state: &str| {
            self.map.pool_pgs(id).filter(|(_, pg)| self.pg_state(*pg) == state).count() as u64
        };
        let pools = self.map.pools.iter().map(|(id, pool)| PoolView {
            id: id.0,
            name: pool.name.clone(),
            copies: pool.size,
            pg_num: pool.pg_num,
            rule: pool.rule,
            ack: pool.ack,
            volumes: volumes(*id).count() as u64,
            rule_name: rule_name(pool.rule).unwrap_or_default(),
            volume_bytes: volumes(*id).map(|it| it.size).fold(0, u64::saturating_add),
            degraded_pgs: in_state(*id, "degraded"),
            unavailable_pgs: in_state(*id, "unavailable"),
        });
        pools.collect()
    }

    /// `trefoil volume list`, by name.
    pub fn volumes(&self) -> Vec<VolumeView> {
        let states: BTreeMap<_, _> =
            self.status.volumes.iter().map(|status| (status.volume, status)).collect();
        let view =
            |(id, volume): (&trefoil_core::ids::VolumeId, &std::sync::Arc<trefoil_core::map::Volume>)| {
                let status = states.get(id);
                VolumeView {
                    id: id.0,
                    name: volume.name.clone(),
                    pool: self.pool_name(volume.pool),
                    size_bytes: volume.size,
                    object_size_bytes: volume.object_size,
                    state: match status {
                        Some(status) if status.attached => "attached",
                        Some(status) if status.healing => "healing",
                        Some(status) if status.needs_heal => "needs-heal",
                        _ => "detached",
                    },
                    // The status is newer than a map that somebody kept.
                    generation: status.map_or(volume.generation, |status| status.generation).0,
                    holder: volume.holder.as_ref().map(|holder| holder.name.clone()),
                    holder_kind: volume.holder.as_ref().map(|holder| holder.kind),
                    clean: volume.clean,
                    io_timeout_ms: volume.io_timeout,
                }
            };
        let mut views: Vec<VolumeView> = self.map.volumes.iter().map(view).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    fn pool_name(&self, id: trefoil_core::ids::PoolId) -> String {
        self.map.pools.get(&id).map_or_else(|| id.to_string(), |pool| pool.name.clone())
    }
}

/// As it is shown.
fn stage(stage: trefoil_core::map::MoveStage) -> &'static str {
    match stage {
        trefoil_core::map::MoveStage::Learn => "learn",
        trefoil_core::map::MoveStage::Joint => "joint",
    }
}
