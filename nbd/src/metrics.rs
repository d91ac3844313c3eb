//! What a front end tells Prometheus: per volume what clients see, and per node what the volume's leader sees.
//!
//! A snapshot is a copy of counters that exist anyway ([`SessionStatus`]); it is made on the front end's thread and
//! written elsewhere. Those of several shards are put together before. Series of a volume end when it is detached here, and begin at 0 when it is attached again.

use crate::server::Counters;
use crate::session::core::SessionStatus;
use crate::session::front::FrontEnd;
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::time::Duration;
use trefoil_core::leader::{LeaderCounters, NodeView};
use trefoil_metrics::text::seconds;
use trefoil_metrics::{Kind, Text};

/// One shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shard {
    number: usize,
    /// It has answered.
    up: bool,
    /// Connections that it serves.
    connections: usize,
    /// Of all time (counters).
    refused: u64,
    handed_over: u64,
    /// Processor time of its thread.
    cpu_us: u64,
}

/// See the module.
#[derive(Default)]
pub struct Snapshot {
    /// By name.
    volumes: BTreeMap<String, SessionStatus>,
    /// Of those that have answered, in order.
    shards: Vec<Shard>,
    map_version: u64,
}

impl Snapshot {
    /// How a shard is now. To be called on its thread.
    pub fn take(number: usize, front: &FrontEnd, server: Counters) -> Snapshot {
        let map = front.cluster().map();
        let cpu_us = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
            .map_or(0, |used| u64::try_from(Duration::from(used).as_micros()).unwrap_or(u64::MAX));
        let Counters { connections, refused, handed_over, .. } = server;
        let shard = Shard { number, up: true, connections, refused, handed_over, cpu_us };
        let mut snapshot = Snapshot { shards: vec![shard], map_version: map.version, ..Snapshot::default() };
        for status in front.look(|core| core.status()) {
            let known = map.volumes.get(&status.volume);
            let name = known.map_or_else(|| status.volume.to_string(), |volume| volume.name.clone());
            snapshot.keep(name, status);
        }
        snapshot
    }

    /// One that ends while its successor begins, or a healer's and another shard's: of the two, the one that leads, or
    /// the later one.
    fn keep(&mut self, name: String, status: SessionStatus) {
        let kept = self.volumes.entry(name).or_default();
        if kept.generation.is_none() || status.generation > kept.generation {
            *kept = status;
        }
    }

    /// Adds another shard's; none: it does not answer.
    pub fn add(&mut self, number: usize, other: Option<Snapshot>) {
        let Some(other) = other else {
            self.shards.push(Shard { number, ..Shard::default() });
            return;
        };
        // All of them act on this one at least.
        self.map_version = self.map_version.min(other.map_version);
        self.shards.extend(other.shards);
        for (name, status) in other.volumes {
            self.keep(name, status);
        }
    }
}

type Of<T, V> = fn(&T) -> V;

const COUNTERS: &[(&str, &str, Of<LeaderCounters, u64>)] = &[
    ("trefoil_nbd_group_opens_total", "Groups opened, further rounds included.", |c| c.rounds),
    ("trefoil_nbd_repairs_total", "Repairs of copies that were ordered.", |c| c.repairs),
    (
        "trefoil_nbd_reads_confirmed_total",
        "Reads that a majority had to confirm, for want of a lease.",
        |c| c.confirms,
    ),
    ("trefoil_nbd_reads_hedged_total", "Reads sent to a second node because the first was late.", |c| {
        c.hedged
    }),
    ("trefoil_nbd_reads_hedge_wins_total", "Hedged reads that the second node answered first.", |c| {
        c.hedge_wins
    }),
    (
        "trefoil_nbd_reads_hedge_denied_total",
        "Late reads that were not hedged: the budget was used up.",
        |c| c.hedges_denied,
    ),
    (
        "trefoil_nbd_reads_steering_probes_total",
        "Reads sent to nodes that reads are steered away from, to see whether they are quick again.",
        |c| c.latency_probes,
    ),
    ("trefoil_nbd_laggards_cut_total", "Connections to nodes given up: too far behind, or silent.", |c| {
        c.cut_loose
    }),
    ("trefoil_nbd_copies_left_behind_total", "Copies left behind: a gap, or no room on the node.", |c| {
        c.left_behind
    }),
    (
        "trefoil_nbd_answers_held_total",
        "Writes whose answers waited for more copies than a majority (pools with ack = all-in-sync).",
        |c| c.answers_held,
    ),
    (
        "trefoil_nbd_answers_late_total",
        "Of these, those that waited for so long that the late copy was given up.",
        |c| c.answers_late,
    ),
    (
        "trefoil_nbd_full_probes_total",
        "Writes whose blocks were looked at first, since nodes are full.",
        |c| c.probes,
    ),
];

const GAUGES: &[(&str, &str, Of<SessionStatus, f64>)] = &[
    ("trefoil_nbd_attached", "1: this front end leads the volume.", |it| {
        f64::from(u8::from(it.generation.is_some()))
    }),
    ("trefoil_nbd_generation", "The volume's generation under which it is led; 0: it is not.", |it| {
        it.generation.map_or(0.0, |generation| generation.0 as f64)
    }),
    (
        "trefoil_nbd_lease_remaining_seconds",
        "How long the lease still holds; 0: reads are confirmed by a majority.",
        |it| seconds(it.lease_left),
    ),
    ("trefoil_nbd_clients", "Connections of clients to the volume.", |it| it.clients as f64),
    ("trefoil_nbd_requests_in_flight", "Requests of clients that are not answered.", |it| it.requests as f64),
    ("trefoil_nbd_operations_in_flight", "Operations on objects under way for them.", |it| it.ops as f64),
    ("trefoil_nbd_copies_behind", "Copies of objects that are known not to be whole.", |it| {
        it.copies_behind as f64
    }),
];

const OF_NODES: &[(&str, &str, Of<NodeView, f64>)] = &[
    ("trefoil_nbd_node_up", "1: the volume's leader speaks with the node.", |it| f64::from(u8::from(it.up))),
    (
        "trefoil_nbd_node_held_out",
        "1: the node is left alone for a time, because it was too far behind.",
        |it| f64::from(u8::from(it.held)),
    ),
    ("trefoil_nbd_node_avoided", "1: reads are steered away from the node, because it is slow.", |it| {
        f64::from(u8::from(it.slow))
    }),
    ("trefoil_nbd_node_slow_seconds", "For how long the node has been slow; 0: it is not.", |it| {
        seconds(it.slow_for)
    }),
    ("trefoil_nbd_node_reads_in_flight", "Reads under way to the node.", |it| it.reads as f64),
    ("trefoil_nbd_node_writes_in_flight", "Writes under way to the node.", |it| it.backlog_ops as f64),
    ("trefoil_nbd_node_backlog_bytes", "Bytes of the writes under way to the node.", |it| {
        it.backlog_bytes as f64
    }),
    ("trefoil_nbd_node_backlog_seconds", "How long the node has owed the oldest of them.", |it| {
        seconds(it.backlog_age)
    }),
    ("trefoil_nbd_node_copies_behind", "Copies on the node that are known not to be whole.", |it| {
        it.behind as f64
    }),
];

/// Writes a snapshot as text.
pub fn render(snapshot: &Snapshot, text: &mut Text) {
    text.gauge(
        "trefoil_map_version",
        "Version of the cluster map that this daemon acts on.",
        snapshot.map_version,
    );
    shards(snapshot, text);
    requests(snapshot, text);
    for (name, help, of) in GAUGES {
        let mut family = text.family(name, Kind::Gauge, help);
        for (volume, status) in &snapshot.volumes {
            family.sample(&[("volume", volume)], of(status));
        }
    }
    let led = || snapshot.volumes.iter().filter(|(_, status)| status.generation.is_some());
    for (name, help, of) in COUNTERS {
        let mut family = text.family(name, Kind::Counter, help);
        for (volume, status) in led() {
            family.sample(&[("volume", volume)], of(&status.leader));
        }
    }
    for (name, help, of) in OF_NODES {
        let mut family = text.family(name, Kind::Gauge, help);
        for (volume, node) in led().flat_map(|(volume, it)| it.nodes.iter().map(move |node| (volume, node))) {
            family.sample(&[("volume", volume), ("node", &node.node.0.to_string())], of(node));
        }
    }
    let mut family = text.family(
        "trefoil_nbd_node_cuts_total",
        Kind::Counter,
        "How often the node was given up: too far behind, or silent.",
    );
    for (volume, node) in led().flat_map(|(volume, it)| it.nodes.iter().map(move |node| (volume, node))) {
        family.sample(&[("volume", volume), ("node", &node.node.0.to_string())], node.cuts);
    }
    node_latency(snapshot, text);
}

type OfShard = (&'static str, Kind, &'static str, fn(&Shard) -> f64);

const OF_SHARDS: &[OfShard] = &[
    (
        "trefoil_nbd_shard_up",
        Kind::Gauge,
        "1: the thread has answered this scrape; 0: its volumes are missing here.",
        |it| f64::from(u8::from(it.up)),
    ),
    ("trefoil_nbd_shard_connections", Kind::Gauge, "Connections of clients that the thread serves.", |it| {
        it.connections as f64
    }),
    (
        "trefoil_nbd_shard_cpu_seconds_total",
        Kind::Counter,
        "Processor time of the thread: near 1 for each second, it is a bottleneck.",
        |it| seconds(it.cpu_us),
    ),
    (
        "trefoil_nbd_shard_connections_refused_total",
        Kind::Counter,
        "Connections that were refused because of the limit.",
        |it| it.refused as f64,
    ),
    (
        "trefoil_nbd_shard_connections_handed_over_total",
        Kind::Counter,
        "Connections that were handed over to the thread which serves their volume.",
        |it| it.handed_over as f64,
    ),
];

fn shards(snapshot: &Snapshot, text: &mut Text) {
    for (name, kind, help, of) in OF_SHARDS {
        let mut family = text.family(name, *kind, help);
        for shard in snapshot.shards.iter() {
            // What is not known is not shown, lest a counter seem to begin anew.
            if shard.up || *name == "trefoil_nbd_shard_up" {
                family.sample(&[("shard", &shard.number.to_string())], of(shard));
            }
        }
    }
}

/// What clients see.
fn requests(snapshot: &Snapshot, text: &mut Text) {
    let of = || {
        snapshot.volumes.iter().flat_map(|(volume, status)| {
            status
                .meter
                .kinds()
                .map(move |(class, it)| ([("volume", volume.as_str()), ("op", class.name())], it))
        })
    };
    let help = "How long requests of clients took that succeeded, inside the front end: without the client's own \
                connection.";
    let mut family = text.family("trefoil_nbd_request_duration_seconds", Kind::Histogram, help);
    for (labels, it) in of() {
        family.histogram(&labels, &it.took);
    }
    let help = "Bytes that requests were about which succeeded.";
    let mut family = text.family("trefoil_nbd_request_bytes_total", Kind::Counter, help);
    for (labels, it) in of() {
        family.sample(&labels, it.bytes);
    }
    let help = "Requests that failed, or whose client was disconnected instead.";
    let mut family = text.family("trefoil_nbd_request_failures_total", Kind::Counter, help);
    for (labels, it) in of() {
        family.sample(&labels, it.failed);
    }
    let mut of_blocks = |name, help, of: fn(&crate::blocks::Counters) -> u64| {
        let mut family = text.family(name, Kind::Counter, help);
        for (volume, status) in &snapshot.volumes {
            family.sample(&[("volume", volume)], of(&status.blocks));
        }
    };
    of_blocks(
        "trefoil_nbd_checksum_mismatches_total",
        "Blocks that nodes had verified and that do not match here: memory, a wire, or a fault of Trefoil.",
        |it| it.checksum_mismatches,
    );
    of_blocks("trefoil_nbd_malformed_answers_total", "Answers that do not fit what was asked.", |it| {
        it.malformed_answers
    });
    of_blocks("trefoil_nbd_edge_reads_total", "Blocks read because only a part of them was written.", |it| {
        it.edge_reads
    });
}

/// Quantiles that the leader keeps to steer by; a value that it does not know is left out.
fn node_latency(snapshot: &Snapshot, text: &mut Text) {
    let help = "How long the node takes, as the volume's leader steers by: quantiles of the last seconds or the last \
                few hundred operations, a write until it is durable.";
    let mut family = text.family("trefoil_nbd_node_latency_seconds", Kind::Gauge, help);
    for (volume, status) in &snapshot.volumes {
        for node in &status.nodes {
            let number = node.node.0.to_string();
            for (op, quantile, us) in [
                ("read", "0.5", node.read_p50),
                ("read", "0.99", node.read_p99),
                ("write", "0.5", node.write_p50),
                ("write", "0.99", node.write_p99),
            ] {
                if us > 0 {
                    let labels = [("volume", volume.as_str()), ("node", &number), ("op", op)];
                    let labels = [labels[0], labels[1], labels[2], ("quantile", quantile)];
                    family.sample(&labels, seconds(us.into()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::{Generation, NodeId, VolumeId};

    #[test]
    fn every_volume_and_node_has_its_series_and_none_is_written_twice() {
        let node = |node, up| NodeView { node: NodeId(node), up, read_p50: 250, ..NodeView::default() };
        let led = SessionStatus {
            volume: VolumeId(1),
            generation: Some(Generation(7)),
            lease_left: 1_500_000,
            nodes: vec![node(0, true), node(2, false)],
            leader: LeaderCounters { hedged: 3, ..LeaderCounters::default() },
            ..SessionStatus::default()
        };
        let waits = SessionStatus { volume: VolumeId(2), requests: 5, ..SessionStatus::default() };
        let volumes = [("a".to_owned(), led), ("b".to_owned(), waits)].into();
        let mut text = Text::default();
        let first = Shard { up: true, connections: 3, cpu_us: 1_250_000, ..Shard::default() };
        let mut snapshot = Snapshot { volumes, shards: vec![first], map_version: 9 };
        // A healer beside the volume's own leader, which is another shard's; and a volume of its own.
        let stale = SessionStatus { generation: Some(Generation(6)), ..SessionStatus::default() };
        let own = SessionStatus {
            volume: VolumeId(3),
            generation: Some(Generation(2)),
            ..SessionStatus::default()
        };
        let second = Shard { number: 1, up: true, connections: 1, ..Shard::default() };
        let volumes = [("a".to_owned(), stale), ("c".to_owned(), own)].into();
        snapshot.add(1, Some(Snapshot { volumes, shards: vec![second], map_version: 8 }));
        snapshot.add(2, None);
        render(&snapshot, &mut text);
        let text = text.finish();
        for line in [
            "trefoil_map_version 8",
            "trefoil_nbd_generation{volume=\"a\"} 7",
            "trefoil_nbd_generation{volume=\"c\"} 2",
            "trefoil_nbd_shard_up{shard=\"0\"} 1",
            "trefoil_nbd_shard_up{shard=\"2\"} 0",
            "trefoil_nbd_shard_connections{shard=\"0\"} 3",
            "trefoil_nbd_shard_connections{shard=\"1\"} 1",
            "trefoil_nbd_shard_cpu_seconds_total{shard=\"0\"} 1.25",
            "trefoil_nbd_attached{volume=\"a\"} 1",
            "trefoil_nbd_attached{volume=\"b\"} 0",
            "trefoil_nbd_lease_remaining_seconds{volume=\"a\"} 1.5",
            "trefoil_nbd_requests_in_flight{volume=\"b\"} 5",
            "trefoil_nbd_reads_hedged_total{volume=\"a\"} 3",
            "trefoil_nbd_node_up{volume=\"a\",node=\"2\"} 0",
            "trefoil_nbd_node_latency_seconds{volume=\"a\",node=\"0\",op=\"read\",quantile=\"0.5\"} 0.00025",
            "trefoil_nbd_request_duration_seconds_count{volume=\"b\",op=\"trim\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in {text}");
        }
        assert!(!text.contains("quantile=\"0.99\""), "what is not known is not shown");
        let mut series: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit(' ').nth(1))
            .collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all, "a series is written twice");
    }
}
