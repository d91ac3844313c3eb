//! What a monitor tells Prometheus: itself always, the cluster while it leads.
//!
//! Of several monitors only the leader knows how the cluster is, so only it says so; otherwise each fact would have as
//! many versions as there are monitors. That nobody says anything is an alert of its own. What is not known has no
//! sample: a node that has not been heard of is not shown as up.

use crate::health::{CHECKS, Health, Status};
use crate::service::Service;
use openraft::ServerState;
use std::sync::Arc;
use trefoil_core::map::{ClusterMap, Pg};
use trefoil_metrics::text::seconds;
use trefoil_metrics::{Kind, Text};

/// This monitor's part in Raft.
#[derive(Copy, Clone, Debug, Default)]
struct RaftState {
    id: u64,
    term: u64,
    running: bool,
    leads: bool,
    /// 0: none is known.
    leader: u64,
    last_log: u64,
    applied: u64,
    snapshot: u64,
    /// Milliseconds; none: it does not lead.
    quorum_age: Option<u64>,
    voters: usize,
}

/// See the module.
pub(crate) struct Snapshot {
    raft: RaftState,
    map: Arc<ClusterMap>,
    /// None: this monitor does not lead.
    status: Option<Status>,
}

impl Snapshot {
    /// How it is now.
    pub async fn take(service: &Service) -> Snapshot {
        let raft = {
            let watched = service.raft.metrics();
            let metrics = watched.borrow();
            RaftState {
                id: metrics.id,
                term: metrics.current_term,
                running: metrics.running_state.is_ok(),
                leads: metrics.state == ServerState::Leader,
                leader: metrics.current_leader.unwrap_or(0),
                last_log: metrics.last_log_index.unwrap_or(0),
                applied: metrics.last_applied.map_or(0, |at| at.index),
                snapshot: metrics.snapshot.map_or(0, |at| at.index),
                quorum_age: metrics.millis_since_quorum_ack,
                voters: metrics.membership_config.voter_ids().count(),
            }
        };
        let status = if raft.leads { service.status().await.ok() } else { None };
        Snapshot { raft, map: service.map(), status }
    }
}

/// Writes a snapshot as text.
pub(crate) fn render(snapshot: &Snapshot, text: &mut Text) {
    raft(&snapshot.raft, text);
    text.gauge(
        "trefoil_map_version",
        "Version of the cluster map that this daemon acts on.",
        snapshot.map.version,
    );
    if let Some(status) = &snapshot.status {
        health(status, text);
        nodes(&snapshot.map, status, text);
        groups(&snapshot.map, status, text);
        volumes(&snapshot.map, status, text);
    }
}

fn raft(it: &RaftState, text: &mut Text) {
    text.gauge("trefoil_monitor_id", "This monitor's number.", it.id);
    text.gauge("trefoil_monitor_leads", "1: this monitor leads.", it.leads);
    text.gauge("trefoil_monitor_raft_running", "0: Raft has stopped, and the monitor with it.", it.running);
    text.gauge(
        "trefoil_monitor_raft_leader",
        "The number of the leader, as known here; 0: none is known.",
        it.leader,
    );
    text.gauge("trefoil_monitor_raft_voters", "Monitors with a vote, as known here.", it.voters);
    text.counter("trefoil_monitor_raft_term_total", "Raft's term: grows with each election.", it.term);
    text.counter(
        "trefoil_monitor_raft_log_entries_total",
        "Index of the last entry of the log.",
        it.last_log,
    );
    text.counter("trefoil_monitor_raft_applied_total", "Index of the last entry in the map.", it.applied);
    text.counter(
        "trefoil_monitor_raft_snapshot_total",
        "Index of the last entry in a snapshot.",
        it.snapshot,
    );
    if let Some(age) = it.quorum_age {
        let help = "How long ago a majority has last acknowledged this leader.";
        text.gauge("trefoil_monitor_raft_quorum_age_seconds", help, seconds(age.saturating_mul(1000)));
    }
}

fn level(health: Health) -> (u64, &'static str) {
    match health {
        Health::HEALTH_OK => (0, "ok"),
        Health::HEALTH_WARN => (1, "warning"),
        Health::HEALTH_ERR => (2, "error"),
    }
}

fn health(status: &Status, text: &mut Text) {
    let help = "The worst of all checks: 0 HEALTH_OK, 1 HEALTH_WARN, 2 HEALTH_ERR.";
    text.gauge("trefoil_health_status", help, level(status.health).0);
    let help = "1: the health check applies. docs/operations.md says what each code means and what to do.";
    let mut family = text.family("trefoil_health_check", Kind::Gauge, help);
    for check in CHECKS {
        let applies = status.checks.iter().any(|it| it.code == check.code && it.muted.is_none());
        family.sample(&[("code", check.code), ("level", level(check.health).1)], applies);
    }
    let help = "1: the health check applies, and somebody has muted it: trefoil_health_check is 0 meanwhile.";
    let mut family = text.family("trefoil_health_check_muted", Kind::Gauge, help);
    for check in CHECKS {
        let muted = status.checks.iter().any(|it| it.code == check.code && it.muted.is_some());
        family.sample(&[("code", check.code), ("level", level(check.health).1)], muted);
    }
    let help =
        "How many nodes, groups or whatever it counts each health check that applies is about, muted or not.";
    let mut family = text.family("trefoil_health_check_count", Kind::Gauge, help);
    for check in &status.checks {
        family.sample(&[("code", &check.code)], check.count);
    }
    let help = "For how long this monitor leads.";
    text.gauge("trefoil_monitor_leading_seconds", help, seconds(status.leading_for));
}

fn nodes(map: &ClusterMap, status: &Status, text: &mut Text) {
    let count = |up: Option<bool>| status.nodes.iter().filter(|node| node.up == up).count();
    let help = "Storage nodes by state; unknown: not heard of since this monitor leads.";
    let mut family = text.family("trefoil_nodes", Kind::Gauge, help);
    for (state, up) in [("up", Some(true)), ("down", Some(false)), ("unknown", None)] {
        family.sample(&[("state", state)], count(up));
    }
    let labels: Vec<(String, &str)> = status
        .nodes
        .iter()
        .map(|it| (it.node.0.to_string(), map.nodes.get(&it.node).map_or("", |node| node.host.as_str())))
        .collect();
    let all = || labels.iter().zip(&status.nodes);
    let help = "0: the node is down. Not there while it has not been heard of.";
    let mut family = text.family("trefoil_node_up", Kind::Gauge, help);
    for ((node, host), it) in all() {
        if let Some(up) = it.up {
            family.sample(&[("node", node), ("host", host)], up);
        }
    }
    let help = "1: the node has lost state that it had acknowledged.";
    let mut family = text.family("trefoil_node_lost_state", Kind::Gauge, help);
    for ((node, host), it) in all() {
        let lost = map.nodes.get(&it.node).is_some_and(|node| node.lost);
        family.sample(&[("node", node), ("host", host)], lost);
    }
    type Said = fn(&crate::rpc::Heartbeat) -> u64;
    let said: [(&'static str, &str, Said); 7] = [
        ("trefoil_node_space_bytes", "Room for data, by the node's last heartbeat.", |it| it.bytes_total),
        ("trefoil_node_used_bytes", "Room in use, by the node's last heartbeat.", |it| it.bytes_used),
        ("trefoil_node_full", "1: the node refuses new data.", |it| it.full.into()),
        ("trefoil_node_bad_blocks", "Blocks without good bytes on the node.", |it| it.bad_blocks),
        ("trefoil_node_copies_behind", "Objects whose copy on the node is behind.", |it| it.behind),
        ("trefoil_node_log_position", "Number of the last durable batch of the node's log.", |it| {
            it.position
        }),
        (
            "trefoil_node_differing_groups",
            "Groups whose copies the node has seen to differ (the first 256).",
            |it| it.differing.len() as u64,
        ),
    ];
    for (name, help, of) in said {
        let mut family = text.family(name, Kind::Gauge, help);
        for ((node, host), it) in all() {
            if let Some(heartbeat) = &it.heartbeat {
                family.sample(&[("node", node), ("host", host)], of(heartbeat));
            }
        }
    }
}

fn groups(map: &ClusterMap, status: &Status, text: &mut Text) {
    let help = "Placement groups by state; degraded: a member is down; unavailable: I/O waits.";
    let mut family = text.family("trefoil_pgs", Kind::Gauge, help);
    let active = status.pgs.saturating_sub(status.pgs_degraded + status.pgs_unavailable);
    family.sample(&[("state", "active")], active);
    family.sample(&[("state", "degraded")], status.pgs_degraded);
    family.sample(&[("state", "unavailable")], status.pgs_unavailable);
    let moving = |pg: &Pg<'_>| pg.old != pg.new || !pg.learners.is_empty();
    let help = "Placement groups whose members are being changed.";
    text.gauge("trefoil_pgs_moving", help, map.pgs.iter().filter(|(_, pg)| moving(pg)).count());
    let joint =
        map.moves.active.keys().filter(|pg| map.members(**pg).is_some_and(|it| it.old != it.new)).count();
    let help = "Moves under way, by stage.";
    let mut family = text.family("trefoil_moves", Kind::Gauge, help);
    family.sample(&[("stage", "learn")], map.moves.active.len() - joint);
    family.sample(&[("stage", "joint")], joint);
    let help = "1: moves are paused.";
    text.gauge("trefoil_moves_paused", help, map.moves.paused);
    let help = "Placement groups whose move was undone, and that get none until moves are resumed.";
    text.gauge("trefoil_moves_held", help, map.moves.held.len());
    text.gauge("trefoil_pools", "Pools.", map.pools.len());
}

fn volumes(map: &ClusterMap, status: &Status, text: &mut Text) {
    let count = |test: fn(&crate::health::VolumeStatus) -> bool| {
        status.volumes.iter().filter(|volume| test(volume)).count()
    };
    let help = "Volumes by state; needs_heal: nobody has it, and its copies are not known to be whole.";
    let mut family = text.family("trefoil_volumes", Kind::Gauge, help);
    family.sample(&[("state", "attached")], count(|it| it.attached));
    family.sample(&[("state", "healing")], count(|it| it.healing));
    family.sample(&[("state", "needs_heal")], count(|it| it.needs_heal));
    family.sample(&[("state", "detached")], count(|it| !it.attached && !it.healing && !it.needs_heal));
    let mut family =
        text.family("trefoil_volume_size_bytes", Kind::Gauge, "The volume's size, as clients see it.");
    for volume in map.volumes.values() {
        let pool = map.pools.get(&volume.pool).map_or("", |pool| pool.name.as_str());
        family.sample(&[("volume", &volume.name), ("pool", pool)], volume.size);
    }
    let help = "1: a front end has the volume, and its lease has not run out.";
    let mut family = text.family("trefoil_volume_attached", Kind::Gauge, help);
    for it in &status.volumes {
        if let Some(volume) = map.volumes.get(&it.volume) {
            family.sample(&[("volume", &volume.name)], it.attached);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Check, NodeStatus};
    use crate::rpc::Heartbeat;
    use trefoil_core::map::Command;
    use trefoil_core::{Incarnation, NodeId};

    fn text_of(snapshot: &Snapshot) -> String {
        let mut text = Text::default();
        render(snapshot, &mut text);
        text.finish()
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|it| it == *line), "{line} is missing in {text}");
        }
    }

    #[test]
    fn the_cluster_is_told_of_by_the_leader_and_what_is_unknown_by_nobody() {
        let mut map = ClusterMap::new();
        map.apply(&Command::Init { cluster_id: [1; 16], name: "c".to_owned() }).unwrap();
        for n in 0..3 {
            let register = Command::RegisterNode {
                id: None,
                incarnation: Incarnation(n + 1),
                address: ([127, 0, 0, 1], 1).into(),
                host: format!("h{n}"),
                class: None,
                size: 1 << 40,
                now: 0,
            };
            map.apply(&register).unwrap();
        }
        let node =
            |n: u32, up, heartbeat| NodeStatus { node: NodeId(n), up, heartbeat, io: None, recovery: None };
        let beat = Heartbeat { bytes_total: 100, bytes_used: 60, ..Heartbeat::default() };
        let status = Status {
            monitors: Vec::new(),
            health: Health::HEALTH_WARN,
            checks: vec![Check {
                code: "NODE_DOWN".to_owned(),
                health: Health::HEALTH_WARN,
                summary: String::new(),
                details: vec![],
                remedy: String::new(),
                count: 1,
                muted: None,
            }],
            cluster_name: "c".to_owned(),
            cluster_id: [1; 16],
            version: map.version,
            leading_for: 2_000_000,
            nodes: vec![node(0, Some(true), Some(beat)), node(1, Some(false), None), node(2, None, None)],
            volumes: vec![],
            pgs: 32,
            pgs_degraded: 20,
            pgs_unavailable: 2,
            pgs_moving: 0,
            front_ends: 0,
        };
        let raft = RaftState { id: 1, leads: true, term: 3, ..RaftState::default() };
        let mut snapshot = Snapshot { raft, map: Arc::new(map), status: Some(status) };
        let text = text_of(&snapshot);
        let lines = [
            "trefoil_monitor_leads 1",
            "trefoil_monitor_raft_term_total 3",
            "trefoil_health_status 1",
            "trefoil_health_check{code=\"NODE_DOWN\",level=\"warning\"} 1",
            "trefoil_health_check{code=\"PG_UNAVAILABLE\",level=\"error\"} 0",
            "trefoil_nodes{state=\"unknown\"} 1",
            "trefoil_node_up{node=\"0\",host=\"h0\"} 1",
            "trefoil_node_up{node=\"1\",host=\"h1\"} 0",
            "trefoil_node_used_bytes{node=\"0\",host=\"h0\"} 60",
            "trefoil_pgs{state=\"active\"} 10",
            "trefoil_monitor_leading_seconds 2",
        ];
        has(&text, &lines);
        assert!(!text.contains("trefoil_node_up{node=\"2\""), "nobody knows");
        let codes = text.lines().filter(|line| line.starts_with("trefoil_health_check{")).count();
        assert_eq!(codes, CHECKS.len());

        snapshot.status = None;
        snapshot.raft.leads = false;
        let text = text_of(&snapshot);
        has(&text, &["trefoil_monitor_leads 0", "trefoil_map_version 4"]);
        assert!(!text.contains("trefoil_health") && !text.contains("trefoil_node_up"), "{text}");
    }
}
