//! What a storage node tells Prometheus: clients' and peers' I/O, the device, the log and its cleaning, damage.
//!
//! A snapshot is a copy of counters that exist anyway, made on the node's thread between two batches; it costs what
//! a heartbeat does. Totals begin at 0 when the process starts.

use super::cluster::Membership;
use super::connections::Daemon;
use super::engine::{EngineCounters, HELD_MAX};
use crate::device::latency::{DeviceStats, OpStats};
use crate::store::{Stats, Store};
use std::rc::Rc;
use trefoil_core::BLOCK_SIZE;
use trefoil_core::node::{BudgetCounters, NodeCounters};
use trefoil_metrics::text::seconds;
use trefoil_metrics::{Kind, Text};

/// See the module.
pub struct Snapshot {
    node: u32,
    shell: EngineCounters,
    machine: NodeCounters,
    store: Stats,
    device: DeviceStats,
    log_position: u64,
    /// Reads and records that the store has not finished.
    under_way: usize,
    /// Answers that wait for the store.
    held: usize,
    accepts: bool,
    full: bool,
    lost: bool,
    behind: u64,
    groups: usize,
    repairs_open: usize,
    recovery: BudgetCounters,
    /// Connections to other nodes that this one has tried to make.
    connects: u64,
    scrubs_open: usize,
    in_doubt: u64,
    /// Seconds since the light and the deep scrub that were longest ago.
    scrub_ages: (Option<u64>, Option<u64>),
}

impl Snapshot {
    /// How the node is now.
    pub fn take(daemon: &Rc<Daemon<Store>>, membership: &Membership) -> Snapshot {
        daemon.look(|engine| {
            let (store, state) = (engine.store(), engine.node().state());
            Snapshot {
                node: membership.node.0,
                shell: engine.counters(),
                machine: engine.node().counters(),
                store: store.stats(),
                device: store.device_stats(),
                log_position: store.log_position(),
                under_way: engine.under_way(),
                held: engine.node().held(),
                accepts: engine.can_accept(),
                full: store.nearly_full(),
                lost: membership.has_lost(engine.node()),
                behind: engine.node().behind(),
                groups: state.groups.len(),
                repairs_open: engine.node().repairs_open(),
                recovery: engine.node().budget(),
                connects: engine.connects(),
                scrubs_open: engine.node().scrubs_open(),
                in_doubt: engine.node().doubts().map(|(_, _, marks)| marks.len() as u64).sum(),
                scrub_ages: membership.scrub_ages.get(),
            }
        })
    }
}

const BLOCK: u64 = BLOCK_SIZE as u64;

type Row = (&'static str, &'static str, fn(&Snapshot) -> u64);

const COUNTERS: &[Row] = &[
    ("trefoil_storage_repairs_done_total", "Repairs of objects that were completed here.", |it| {
        it.machine.repairs_done
    }),
    (
        "trefoil_storage_repairs_failed_total",
        "Repairs that were given up; their leader orders them again.",
        |it| it.machine.repairs_failed,
    ),
    (
        "trefoil_storage_repairs_put_off_total",
        "Repairs that were put off because recovery had its share; their leader orders them again.",
        |it| it.machine.repairs_put_off,
    ),
    (
        "trefoil_storage_fetches_waited_total",
        "Pieces of repairs at other nodes that waited here for recovery's share.",
        |it| it.machine.fetches_waited,
    ),
    (
        "trefoil_storage_recovery_taken_bytes_total",
        "Bytes that repairs took of recovery's share, to this node and from it.",
        |it| it.recovery.taken,
    ),
    (
        "trefoil_storage_recovery_urgent_bytes_total",
        "Bytes of them that clients waited for: they do not wait for a share.",
        |it| it.recovery.exempt,
    ),
    (
        "trefoil_storage_recovery_lowered_total",
        "How often recovery's share was lowered because clients were slowed down.",
        |it| it.recovery.lowered,
    ),
    ("trefoil_storage_peer_connects_total", "Connections to other nodes that were tried.", |it| it.connects),
    ("trefoil_storage_repair_bytes_total", "Bytes of data that repairs brought.", |it| {
        it.machine.repair_blocks * BLOCK
    }),
    (
        "trefoil_storage_checksum_errors_total",
        "Blocks whose bytes failed their checksum, healed or not.",
        |it| it.store.bad_blocks,
    ),
    ("trefoil_storage_healed_blocks_total", "Bad blocks whose bytes were found again at a peer.", |it| {
        it.machine.healed_blocks
    }),
    ("trefoil_storage_lost_pages_total", "Pages of block tables that were found damaged.", |it| {
        it.store.lost_pages
    }),
    ("trefoil_storage_wire_damage_total", "Blocks that came off the wire damaged.", |it| {
        it.shell.damaged_on_wire
    }),
    (
        "trefoil_storage_malformed_messages_total",
        "Messages that made no sense; their connection was closed.",
        |it| it.shell.malformed,
    ),
    ("trefoil_storage_writes_no_space_total", "Writes that were refused for want of room.", |it| {
        it.machine.no_space
    }),
    (
        "trefoil_storage_refused_leaders_total",
        "Opens and writes of leaders that a newer one had replaced.",
        |it| it.machine.refused,
    ),
    ("trefoil_storage_scrub_objects_total", "Objects that scrub has compared with the other copies.", |it| {
        it.machine.scrub_objects
    }),
    ("trefoil_storage_scrub_bytes_total", "Bytes that deep scrubs have read and verified.", |it| {
        it.machine.scrub_bytes
    }),
    (
        "trefoil_storage_scrub_outvoted_blocks_total",
        "Blocks here that were found to be contradicted by a majority of copies.",
        |it| it.machine.scrub_outvoted,
    ),
    (
        "trefoil_storage_scrub_disputed_blocks_total",
        "Blocks here that were found to differ from other copies without a majority.",
        |it| it.machine.scrub_disputed,
    ),
    ("trefoil_storage_scrub_mended_blocks_total", "Outvoted blocks that a repair has replaced.", |it| {
        it.machine.scrub_mended
    }),
    ("trefoil_storage_pg_splits_total", "Placement groups that were split here.", |it| it.machine.splits),
    (
        "trefoil_storage_state_losses_total",
        "How often it was found that acknowledged state is lost, healed or not.",
        |it| it.machine.state_losses,
    ),
    ("trefoil_storage_log_batches_total", "Batches of the log that became durable.", |it| it.store.batches),
    ("trefoil_storage_log_bytes_total", "Bytes in them: by client bytes, the write amplification.", |it| {
        it.store.bytes_written
    }),
    (
        "trefoil_storage_log_client_bytes_total",
        "Bytes of data in them that front ends and repairs gave.",
        |it| it.store.client_blocks * BLOCK,
    ),
    ("trefoil_storage_log_table_bytes_total", "Bytes of block tables in them.", |it| {
        it.store.page_blocks * BLOCK
    }),
    ("trefoil_storage_log_cleaned_bytes_total", "Bytes in them that cleaning has moved.", |it| {
        it.store.moved_blocks * BLOCK
    }),
    ("trefoil_storage_segments_cleaned_total", "Segments that cleaning has worked through.", |it| {
        it.store.segments_cleaned
    }),
    ("trefoil_storage_segments_freed_total", "Segments that became free.", |it| it.store.segments_freed),
    ("trefoil_storage_checkpoints_total", "Checkpoints that the index has taken.", |it| it.store.checkpoints),
    ("trefoil_storage_checkpoints_failed_total", "Checkpoints that the index has refused.", |it| {
        it.store.checkpoints_failed
    }),
    ("trefoil_storage_snapshots_total", "Snapshots of the index written to the log.", |it| {
        it.store.snapshots
    }),
    ("trefoil_storage_table_cache_hits_total", "Table pages that a read found in memory.", |it| {
        it.store.cache_hits
    }),
    ("trefoil_storage_table_cache_misses_total", "Table pages that a read had to wait for.", |it| {
        it.store.cache_misses
    }),
];

const GAUGES: &[Row] = &[
    ("trefoil_storage_space_bytes", "Room for data and their tables.", |it| {
        it.store.space.total.saturating_sub(it.store.space.reserve)
    }),
    ("trefoil_storage_used_bytes", "Room that live data and their tables take.", |it| it.store.space.used),
    ("trefoil_storage_free_bytes", "What may be added.", |it| it.store.space.free),
    ("trefoil_storage_reserve_bytes", "What is kept for cleaning.", |it| it.store.space.reserve),
    ("trefoil_storage_full", "1: new data is refused.", |it| it.full.into()),
    ("trefoil_storage_segments_free", "Segments that are free.", |it| it.store.segments_free),
    (
        "trefoil_storage_segments_damaged",
        "Segments that cannot be cleaned because of damage in them.",
        |it| it.store.segments_kept as u64,
    ),
    (
        "trefoil_storage_log_position",
        "Number of the last durable batch of the log, as heartbeats say it.",
        |it| it.log_position,
    ),
    ("trefoil_storage_bad_blocks", "Blocks that are known to have no good bytes here now.", |it| {
        (it.store.bad_now as u64).saturating_add(it.shell.lost_blocks)
    }),
    ("trefoil_storage_lost_state", "1: acknowledged state was lost and is not all healed.", |it| {
        it.lost.into()
    }),
    ("trefoil_storage_copies_behind", "Objects whose copy here is behind.", |it| it.behind),
    ("trefoil_storage_recovery_rate_bytes", "Bytes per second that repairs may take now, each way.", |it| {
        it.recovery.rate
    }),
    ("trefoil_storage_repairs_in_flight", "Repairs under way.", |it| it.repairs_open as u64),
    ("trefoil_storage_scrubs_in_flight", "Placement groups being scrubbed or waiting for it.", |it| {
        it.scrubs_open as u64
    }),
    ("trefoil_storage_blocks_in_doubt", "Blocks here that are outvoted or disputed at present.", |it| {
        it.in_doubt
    }),
    (
        "trefoil_storage_scrub_light_age_seconds",
        "Since the light scrub of a placement group that was longest ago; 0: nothing to scrub.",
        |it| it.scrub_ages.0.unwrap_or(0),
    ),
    (
        "trefoil_storage_scrub_deep_age_seconds",
        "Since the deep scrub of a placement group that was longest ago; 0: nothing to scrub.",
        |it| it.scrub_ages.1.unwrap_or(0),
    ),
    ("trefoil_storage_groups", "Groups (a volume's objects in one placement group) kept here.", |it| {
        it.groups as u64
    }),
    ("trefoil_storage_objects", "Objects kept here.", |it| it.store.objects as u64),
    ("trefoil_storage_accepting", "0: connections are not read from, because the store is behind.", |it| {
        it.accepts.into()
    }),
    ("trefoil_storage_requests_in_flight", "Reads and log records that the store has not finished.", |it| {
        it.under_way as u64
    }),
    ("trefoil_storage_reads_in_flight", "Reads that the store has under way.", |it| it.store.reads as u64),
    ("trefoil_storage_pending_bytes", "Bytes appended to the log and not durable.", |it| {
        it.store.pending_bytes
    }),
    ("trefoil_storage_queued_changes", "Changes and reads that wait for a page of a table.", |it| {
        it.store.queued_changes as u64
    }),
    ("trefoil_storage_held_answers", "Answers that wait for the store.", |it| it.held as u64),
    ("trefoil_storage_held_answers_max", "Their limit.", |_| HELD_MAX as u64),
    ("trefoil_storage_table_pages_resident", "Table pages in memory.", |it| it.store.pages_resident as u64),
    ("trefoil_storage_table_pages_dirty", "Table pages that are not in the log as they are.", |it| {
        it.store.pages_dirty as u64
    }),
];

/// Writes a snapshot as text.
pub fn render(it: &Snapshot, text: &mut Text) {
    let node = it.node.to_string();
    let mut family = text.family(
        "trefoil_storage_node_info",
        Kind::Gauge,
        "Always 1; the label is the node's number in the map.",
    );
    family.sample(&[("node", &node)], true);
    let help = "Reads and writes that came from front ends.";
    let mut family = text.family("trefoil_storage_requests_total", Kind::Counter, help);
    family.sample(&[("op", "read")], it.shell.reads).sample(&[("op", "write")], it.shell.writes);
    let help = "Bytes of data in writes and in answers to reads.";
    let mut family = text.family("trefoil_storage_bytes_total", Kind::Counter, help);
    family.sample(&[("op", "read")], it.shell.read_bytes).sample(&[("op", "write")], it.shell.write_bytes);
    let help = "Bytes of blocks that went to other nodes, or came from them, for repairs.";
    let mut family = text.family("trefoil_storage_peer_bytes_total", Kind::Counter, help);
    family.sample(&[("direction", "sent")], it.shell.peer_bytes_sent);
    family.sample(&[("direction", "received")], it.shell.peer_bytes_received);
    for (name, help, of) in COUNTERS {
        text.counter(name, help, of(it));
    }
    for (name, help, of) in GAUGES {
        text.gauge(name, help, of(it));
    }
    let help = "How long the replay of the log would take if the node ended now, by estimate.";
    text.gauge("trefoil_storage_replay_seconds", help, seconds(it.store.replay_us));
    device(&it.device, text);
}

fn device(device: &DeviceStats, text: &mut Text) {
    let kinds = [("read", &device.reads), ("write", &device.writes), ("prepare", &device.prepares)];
    let help = "How long operations of the device took, failed ones too; prepare: discards and zeroing.";
    let mut family = text.family("trefoil_storage_device_duration_seconds", Kind::Histogram, help);
    for (op, stats) in kinds {
        family.histogram(&[("op", op)], &stats.took);
    }
    let mut of = |name, help, value: fn(&OpStats) -> u64| {
        let mut family = text.family(name, Kind::Counter, help);
        for (op, stats) in kinds {
            family.sample(&[("op", op)], value(stats));
        }
    };
    of("trefoil_storage_device_bytes_total", "Bytes that were read or written.", |it| it.bytes);
    of("trefoil_storage_device_errors_total", "Operations that failed.", |it| it.errors);
    text.gauge("trefoil_storage_device_in_flight", "Reads and writes under way.", device.in_flight);
    text.gauge("trefoil_storage_device_stalled", "Of these, those for longer than a second.", device.stalled);
    let oldest = seconds(device.oldest_in_flight_us);
    text.gauge("trefoil_storage_device_oldest_seconds", "For how long the oldest is under way.", oldest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_written_once_and_has_a_name_of_the_node() {
        let mut device = DeviceStats::default();
        device.writes.took.record(100);
        device.writes.errors = 2;
        let snapshot = Snapshot {
            node: 4,
            shell: EngineCounters { writes: 3, lost_blocks: 2, ..EngineCounters::default() },
            machine: NodeCounters { healed_blocks: 1, ..NodeCounters::default() },
            store: Stats { bad_blocks: 5, bad_now: 4, client_blocks: 10, ..Stats::default() },
            device,
            log_position: 77,
            under_way: 0,
            held: 0,
            accepts: true,
            full: false,
            lost: false,
            behind: 0,
            groups: 0,
            repairs_open: 0,
            recovery: BudgetCounters::default(),
            connects: 0,
            scrubs_open: 1,
            in_doubt: 3,
            scrub_ages: (Some(60), None),
        };
        let mut text = Text::default();
        render(&snapshot, &mut text);
        let text = text.finish();
        for line in [
            "trefoil_storage_node_info{node=\"4\"} 1",
            "trefoil_storage_requests_total{op=\"write\"} 3",
            "trefoil_storage_bad_blocks 6",
            "trefoil_storage_checksum_errors_total 5",
            "trefoil_storage_log_client_bytes_total 40960",
            "trefoil_storage_log_position 77",
            "trefoil_storage_device_duration_seconds_bucket{op=\"write\",le=\"0.000128\"} 1",
            "trefoil_storage_device_errors_total{op=\"write\"} 2",
            "trefoil_storage_accepting 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in {text}");
        }
        let families = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        let ours = text.lines().filter(|line| line.starts_with("# TYPE trefoil_storage_")).count();
        assert_eq!(families, ours + 1, "all but that of the exporter");
    }
}
