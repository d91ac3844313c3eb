//! How everything is: coded checks, each with what it means and what to do about it.
//!
//! Computed when somebody asks, from the map and from what nodes have said since this monitor leads.
//! What is not known is never shown as healthy.

use crate::rates::{IoRates, Rates, Recovering};
use crate::reports::Said;
use crate::rpc::{DeviceHealth, Heartbeat, MonitorStatus};
use crate::scrub::{ScrubReport, Scrubs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use trefoil_core::leader::report::NodeTrouble;
use trefoil_core::map::deaths::Deaths;
use trefoil_core::map::heard::Kept;
use trefoil_core::map::liveness::Liveness;
use trefoil_core::map::restore::RESTORED_HOLDER;
use trefoil_core::map::{ClusterMap, HolderKind};
use trefoil_core::scrub::Doubt;
use trefoil_core::{Generation, NodeId, Time, VolumeId};

/// Nodes and volumes that a check names; the summary counts all.
const DETAILS_MAX: usize = 20;

/// A node that has used more than this share of its room, in percent, is nearly full.
const NEARFULL_PERCENT: u64 = 85;

/// An operation of a device that takes longer than this (µs) is stuck: drives give up on a bad sector
/// after some 7 seconds at most, and answer anything else within one.
const STUCK_US: u64 = 8_000_000;
/// A device whose operations take so many times as long as those of the median of the other nodes is slow,
const SLOW_TIMES: u64 = 20;
/// if they take longer than this (µs): a disk's ordinary seek, whatever the others are;
const SLOW_US_MIN: u64 = 20_000;
/// and if so many have ended in the time that the mean is of.
const SLOW_OPS_MIN: u64 = 5;

/// The worst of all checks.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(non_camel_case_types)]
pub enum Health {
    /// Nothing to report, and everybody has been heard of.
    HEALTH_OK,
    /// Redundancy or knowledge is reduced; I/O goes on.
    HEALTH_WARN,
    /// Data or service is at stake.
    HEALTH_ERR,
}

/// One kind of check.
#[derive(Copy, Clone, Debug)]
pub struct CheckKind {
    /// Its code.
    pub code: &'static str,
    /// How bad it is.
    pub health: Health,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

macro_rules! checks {
    ($($name:ident = $health:ident, $meaning:literal, $remedy:literal;)*) => {
        $(const $name: CheckKind = CheckKind {
            code: stringify!($name),
            health: Health::$health,
            meaning: $meaning,
            remedy: $remedy,
        };)*
        /// Every check that there is; `docs/operations.md` lists them.
        pub const CHECKS: &[CheckKind] = &[$($name),*];
    };
}

checks! {
    MONITOR_SETTLING = HEALTH_WARN,
        "The monitor has just started and has not heard of every node yet: what it shows of them is what it knew before.",
        "Wait a few seconds. If it stays, see NODE_DOWN.";
    MONITOR_DOWN = HEALTH_WARN,
        "Monitors have not answered the leader for 3 s. With a majority of them away nothing can be attached, created or noticed; I/O of attached volumes goes on.",
        "Start the monitor again. If its directory or host is lost, see docs/operations.md, Monitors.";
    MONITOR_LEARNING = HEALTH_WARN,
        "Monitors were begun to be added and do not vote yet.",
        "Run `trefoil monitor add` again to finish it, or `trefoil monitor remove`.";
    NO_POOL = HEALTH_WARN,
        "There is no pool, so no volume can be made.",
        "Start enough storage nodes (three, on three hosts), or create a pool with another failure domain.";
    NODE_DOWN = HEALTH_WARN,
        "Nodes have not been heard of for longer than node_timeout_ms. I/O goes on with the others.",
        "Look at the node's log and start it again. If its device is lost, see docs/operations.md, Replacing a node.";
    NODE_SILENT = HEALTH_WARN,
        "Nodes have not been heard of for longer than node_timeout_ms, but nobody else says that they cannot be reached. They are called down after three times as long. How they are is not known.",
        "Wait some seconds. If they do not become NODE_DOWN or well again, look at the network between them and the monitors.";
    NODE_HELD_DOWN = HEALTH_WARN,
        "Nodes come and go. They send heartbeats again, and are counted as down until they have done so for a while: 10 s, and twice as long each time, up to 10 min.",
        "Find out why they stop: their logs, the host's kernel log, memory. They are up again by themselves when they are steady.";
    NODE_OUT = HEALTH_WARN,
        "Nodes are out: CRUSH gives them nothing, and their data is to live elsewhere.",
        "Bring the node back (it is in again by itself, if it was taken out for being down), or remove it; `trefoil events` says who took it out and when.";
    PG_DEGRADED = HEALTH_WARN,
        "Placement groups have a member that is down: one more failure may stop their I/O.",
        "Bring the nodes that are down back.";
    PG_UNAVAILABLE = HEALTH_ERR,
        "Placement groups have no majority of members up: I/O to their objects waits.",
        "Bring the nodes that are down back, those first that are named by most groups.";
    NODE_NEARFULL = HEALTH_WARN,
        "Nodes have used more than 85 % of their room.",
        "Remove volumes that are not needed, trim the others (fstrim in the guests), or add nodes, before writes are refused.";
    NODE_FULL = HEALTH_ERR,
        "Nodes refuse new data for lack of room. Writes go on as long as a majority of each group has room; overwrites, trims and reads go on in any case.",
        "Remove volumes, or trim them (fstrim in the guests): both work on full nodes, and the room is there within seconds. Or add nodes.";
    NODE_SLOW = HEALTH_WARN,
        "The devices of nodes are stuck (an operation has not ended for 8 s) or slow (20 times slower than the median of the other nodes). Their clients are served by the other copies.",
        "Look at the host's kernel log and the device's SMART data. If it does not recover, stop the node: I/O goes on without it.";
    NODE_LAGGING = HEALTH_WARN,
        "Front ends do without nodes that are up: they cannot reach them, hold them out because they are too far behind with writes, or find them slow. Clients are served by the other copies, with less redundancy.",
        "If a node is not reached, look at the network between it and the front ends that are named. If it is slow, look at its host's load and at its device. It is taken back by itself, and what it missed is repaired.";
    NODE_DEVICE_ERRORS = HEALTH_WARN,
        "The devices of nodes have failed reads or writes since the nodes started. What could not be read was answered by other copies.",
        "Look at the host's kernel log and the device's SMART data; the node's log names the places. Replace a device that goes on failing. Starting the node again begins the count anew.";
    NODE_LOST_STATE = HEALTH_ERR,
        "Nodes have lost data that they had acknowledged. Their copies are not believed until they are healed.",
        "Replace the device, or check why it lost acknowledged writes (a volatile cache without power protection?).";
    BAD_BLOCKS = HEALTH_ERR,
        "Nodes have blocks that fail their checksum and for which no peer had good bytes yet. Reads use other copies.",
        "See that the peers of these nodes are up. If it stays, restore the blocks from a backup by writing them.";
    OBJECT_INCONSISTENT = HEALTH_ERR,
        "Copies of blocks differ at one head, each with a valid checksum, and no majority says which is right. Reads of these blocks fail; nothing is guessed.",
        "If a node with a further copy is away, bring it back: it may settle it by itself. Else look at which copy holds what, and settle it: `trefoil pg settle --object VOLUME/INDEX --block N --from NODE`; or write the block anew (from a backup).";
    OBJECT_OUTVOTED = HEALTH_WARN,
        "Nodes have blocks that two other copies contradict. They are not read from and are being replaced.",
        "Wait for the repair. If it stays, see that the nodes of these objects are up. If it comes again at the same node, its device or memory lies: replace it.";
    SCRUB_LATE = HEALTH_WARN,
        "Nodes have placement groups whose scrub is overdue by more than its interval: rot and wrong copies there would not be noticed.",
        "Give scrub more: raise scrub_bytes_per_s or widen scrub_window in the nodes' configuration, or lengthen the intervals.";
    COPIES_BEHIND = HEALTH_WARN,
        "Nodes have copies that are behind and are being repaired.",
        "Wait. If the number does not fall, see that the volumes are attached or healers run, and that all nodes are up.";
    LAYOUT_UNCHECKED = HEALTH_ERR,
        "The monitors were restored from a backup, and it is not known yet of all placement groups where they live by now. No volume is attached and nothing is moved until it is. Nodes and volumes lose nothing meanwhile.",
        "Start all storage nodes, those too that were made after the backup. If nodes are lost for good and it stays, use a later backup.";
    MOVES_PAUSED = HEALTH_WARN,
        "Placement groups do not move, because an administrator has paused moves or undone some. Nodes that are added get nothing, and copies on nodes that are lost are not made elsewhere.",
        "Run `trefoil move resume` when what it was paused for is over.";
    FRONT_END_SILENT = HEALTH_WARN,
        "Front ends that hold volumes have not renewed their leases for twice as long as they should. They are dead, hang, or do not reach the monitors. If it is only the latter, their volumes go on; how they are is not known.",
        "Look at the front end (its process, its log, its host), and at the network between it and the monitors. When its lease has run out, its volumes can be attached by another one.";
    DAEMON_DIED_RECENTLY = HEALTH_WARN,
        "Daemons have ended without having been stopped: killed, crashed, hung until their watchdog ended them, or without power; front ends: a lease ran out without a release. They may be back. It is shown for a week, so that what dies again and again is not overlooked.",
        "Find out why: the daemon's log before its last start, the host's kernel log, memory (`journalctl -k`, `coredumpctl`). Then `trefoil health ack-crash DAEMON`.";
    VOLUME_NEEDS_HEAL = HEALTH_WARN,
        "Volumes that nobody has attached were not released with all copies whole, or nodes say that their copies differ.",
        "Wait for a healer (any running daemon). If it stays, see that all nodes of the volumes are up. Where nodes hear the volume's front end, no healer takes it away from it: look at the network between that front end's host and the monitors.";
}

/// A check that applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its code, from [`CHECKS`].
    pub code: String,
    /// How bad it is.
    pub health: Health,
    /// What, and how many.
    pub summary: String,
    /// Which ones: the first 20.
    pub details: Vec<String>,
    /// What to do.
    pub remedy: String,
    /// How many: a mute ends when this grows.
    pub count: u64,
    /// Somebody does not want to hear of it for a while: it does not count for the whole.
    pub muted: Option<Muted>,
}

/// A check that is muted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Muted {
    /// Seconds until it is heard of again, if it becomes no worse.
    pub left_s: u64,
    /// Why, in somebody's words; may be empty.
    pub because: String,
}

/// A node's last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub node: NodeId,
    /// True or false as last known; none: not heard of since this monitor leads.
    pub up: Option<bool>,
    /// What it said; none as above.
    pub heartbeat: Option<Heartbeat>,
    /// What it does per second; none: not known.
    pub io: Option<IoRates>,
    /// How fast its copies are repaired; none: not known.
    pub recovery: Option<Recovering>,
}

/// A volume's holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its id.
    pub volume: VolumeId,
    /// The last that was granted.
    pub generation: Generation,
    /// A front end has it, and its lease has not run out.
    pub attached: bool,
    /// A healer has it.
    pub healing: bool,
    /// Not held, and not known to be whole.
    pub needs_heal: bool,
    /// Microseconds since its holder has renewed its lease; none: nobody holds it.
    pub unrenewed: Option<u64>,
    /// Why no healer gets it although its front end's lease has run out; none: one may, or its lease runs.
    pub kept: Option<Kept>,
}

/// How everything is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The worst of the checks.
    pub health: Health,
    /// What applies.
    pub checks: Vec<Check>,
    /// The cluster's name. The map has the rest.
    pub cluster_name: String,
    /// The cluster's id.
    pub cluster_id: [u8; 16],
    /// The map's version.
    pub version: u64,
    /// The monitors, in order.
    pub monitors: Vec<MonitorStatus>,
    /// Microseconds since this monitor began to lead.
    pub leading_for: u64,
    /// The nodes, in order.
    pub nodes: Vec<NodeStatus>,
    /// The volumes, in order.
    pub volumes: Vec<VolumeStatus>,
    /// Placement groups in all.
    pub pgs: u64,
    /// Those with a member down and a majority up.
    pub pgs_degraded: u64,
    /// Those without a majority up.
    pub pgs_unavailable: u64,
    /// Those whose members are being changed.
    pub pgs_moving: u64,
    /// Processes that hold volumes with a lease that has not run out: front ends.
    pub front_ends: u64,
}

/// What a status is made of.
pub(crate) struct Facts<'a> {
    pub map: &'a ClusterMap,
    pub monitors: Vec<MonitorStatus>,
    pub liveness: &'a Liveness,
    pub heartbeats: &'a BTreeMap<NodeId, Heartbeat>,
    pub said: BTreeMap<NodeId, Said>,
    /// Why it is not known where placement groups live, for a map that was restored.
    pub unsettled: (usize, Vec<String>),
    pub scrubs: &'a Scrubs,
    pub volumes: Vec<VolumeStatus>,
    pub rates: &'a Rates,
    /// A front end that has not renewed for so long (µs) is silent: two renewals.
    pub silent_after: u64,
    pub now: Time,
    /// Milliseconds since 1970.
    pub wall: u64,
    pub started: Time,
}

/// Placement groups that are not well, and the first [`DETAILS_MAX`] of each kind.
#[derive(Default)]
struct PgCounts {
    unavailable: usize,
    unavailable_ids: Vec<String>,
    degraded: usize,
    degraded_ids: Vec<String>,
    moving: u64,
}

/// Looks at every placement group. There may be a million, and the monitor does nothing else meanwhile:
/// some nanoseconds for each.
fn count_pgs(map: &ClusterMap) -> PgCounts {
    let mut up = vec![false; map.nodes.keys().last().map_or(0, |last| last.0 as usize + 1)];
    for (id, node) in &map.nodes {
        up[id.0 as usize] = node.up;
    }
    let moving = map.moves.active.len() as u64;
    let mut counts = PgCounts { moving, ..PgCounts::default() };
    if up.iter().all(|up| *up) && map.nodes.len() == up.len() {
        return counts;
    }
    let missing =
        |set: &[NodeId]| set.iter().filter(|id| !up.get(id.0 as usize).is_some_and(|up| *up)).count();
    for (id, pg) in map.pgs.iter() {
        let (old, new) = (missing(pg.old), missing(pg.new));
        if old + new == 0 {
            continue;
        }
        let available = 2 * old < pg.old.len() && 2 * new < pg.new.len();
        let (count, ids) = match available {
            true => (&mut counts.degraded, &mut counts.degraded_ids),
            false => (&mut counts.unavailable, &mut counts.unavailable_ids),
        };
        *count += 1;
        if ids.len() < DETAILS_MAX {
            ids.push(id.to_string());
        }
    }
    counts
}

/// Why a device counts as slow, if it does.
fn slow(all: &BTreeMap<NodeId, DeviceHealth>, node: NodeId, device: &DeviceHealth) -> Option<String> {
    if device.oldest_us > STUCK_US {
        return Some(format!("an operation has not ended for {:.1} s", device.oldest_us as f64 / 1e6));
    }
    let compare = |what: &str, of: fn(&DeviceHealth) -> (u64, u64)| {
        let (count, mean) = of(device);
        let others = all.iter().filter(|(id, _)| **id != node).map(|(_, other)| of(other));
        let mut others: Vec<u64> = others.filter(|(n, _)| *n >= SLOW_OPS_MIN).map(|(_, us)| us).collect();
        others.sort_unstable();
        let median = *others.get(others.len() / 2)?;
        let slow = count >= SLOW_OPS_MIN && mean > SLOW_US_MIN && mean > median.saturating_mul(SLOW_TIMES);
        slow.then(|| {
            format!(
                "{what} take {:.1} ms, those of other nodes {:.1} ms",
                mean as f64 / 1e3,
                median as f64 / 1e3
            )
        })
    };
    compare("writes", |it| (it.writes, it.write_us)).or_else(|| compare("reads", |it| (it.reads, it.read_us)))
}

/// The checks that apply, worst first.
pub(crate) fn status(facts: Facts<'_>) -> Status {
    let map = facts.map;
    let mut checks = Vec::new();
    let mut report = |kind: CheckKind, count: usize, what: &str, details: Vec<String>| {
        if count > 0 {
            checks.push(Check {
                code: kind.code.to_owned(),
                health: kind.health,
                summary: counted(count, what),
                details: details.into_iter().take(DETAILS_MAX).collect(),
                remedy: kind.remedy.to_owned(),
                count: count as u64,
                muted: muted(map, kind.code, count as u64, facts.wall),
            });
        }
    };
    let up = |node: NodeId| map.nodes.get(&node).is_some_and(|it| it.up);
    let nodes_with = |test: &dyn Fn(NodeId) -> bool| -> Vec<String> {
        let ids = map.nodes.keys().filter(|id| test(**id));
        ids.map(|id| format!("{id} ({})", map.nodes[id].address)).collect()
    };
    let said = |test: fn(&Heartbeat) -> bool| nodes_with(&|id| facts.heartbeats.get(&id).is_some_and(test));
    let mut nodes_report = |kind, what: &str, nodes: Vec<String>| report(kind, nodes.len(), what, nodes);

    let unheard = nodes_with(&|id| up(id) && !facts.liveness.known(id));
    nodes_report(MONITOR_SETTLING, "nodes not heard of since the monitor started", unheard);
    nodes_report(NODE_DOWN, "nodes down", nodes_with(&|id| !up(id)));
    let silent = nodes_with(&|id| {
        up(id) && facts.liveness.known(id) && facts.liveness.silent(id, facts.now).is_some()
    });
    nodes_report(NODE_SILENT, "nodes silent", silent);
    let held = map.nodes.iter().filter_map(|(id, node)| {
        let left = facts.liveness.held_down(map, *id, facts.now);
        (left > 0 && facts.liveness.silent(*id, facts.now).is_none())
            .then(|| format!("{id} ({}): for {} s more", node.address, left.div_ceil(1_000_000)))
    });
    nodes_report(NODE_HELD_DOWN, "nodes held down for coming and going", held.collect());
    nodes_report(NODE_OUT, "nodes out", nodes_with(&|id| map.nodes[&id].out.is_some()));
    let nearly = said(|it| {
        !it.full
            && u128::from(it.bytes_used) * 100 > u128::from(it.bytes_total) * u128::from(NEARFULL_PERCENT)
    });
    nodes_report(NODE_NEARFULL, "nodes nearly full", nearly);
    nodes_report(NODE_FULL, "nodes full", said(|it| it.full));
    let devices: BTreeMap<NodeId, DeviceHealth> = facts
        .heartbeats
        .iter()
        .filter(|(id, _)| up(**id))
        .map(|(id, heartbeat)| (*id, heartbeat.device))
        .collect();
    let slow: Vec<String> = devices
        .iter()
        .filter_map(|(id, device)| {
            Some(format!("{id} ({}): {}", map.nodes.get(id)?.address, slow(&devices, *id, device)?))
        })
        .collect();
    nodes_report(NODE_SLOW, "nodes with a slow device", slow);
    let failing = said(|it| it.device.errors > 0);
    nodes_report(NODE_DEVICE_ERRORS, "nodes with errors of their device", failing);
    let lost = nodes_with(&|id| map.nodes[&id].lost);
    nodes_report(NODE_LOST_STATE, "nodes with lost state", lost);
    nodes_report(BAD_BLOCKS, "nodes with bad blocks", said(|it| it.bad_blocks > 0));
    let lagging = facts.said.iter().filter(|(id, it)| up(**id) && it.trouble > NodeTrouble::Behind);
    let lagging = lagging.filter_map(|(id, it)| Some(format!("{id} ({}): {it}", map.nodes.get(id)?.address)));
    nodes_report(NODE_LAGGING, "nodes that front ends do without, or find late", lagging.collect());
    let behind = |id: NodeId| {
        facts.heartbeats.get(&id).is_some_and(|it| it.behind > 0)
            || facts.said.get(&id).is_some_and(|it| it.behind > 0)
    };
    nodes_report(COPIES_BEHIND, "nodes with copies behind", nodes_with(&behind));
    let scrubs = |test: fn(&ScrubReport) -> Option<String>| -> Vec<String> {
        let found = facts.scrubs.reports(facts.now).filter_map(|it| Some((it.node, test(it)?)));
        found.map(|(node, text)| format!("{node}: {text}")).collect()
    };
    let late = scrubs(|it| (it.late > 0).then(|| format!("{} of {} placement groups", it.late, it.pgs)));
    nodes_report(SCRUB_LATE, "nodes late with scrub", late);
    let outvoted = scrubs(|it| {
        let count = it.doubts.iter().filter(|it| it.doubt == Doubt::Outvoted).count();
        (count > 0).then(|| format!("{count} blocks"))
    });
    nodes_report(OBJECT_OUTVOTED, "nodes with outvoted blocks", outvoted);
    let disputed = facts.scrubs.disputed(map, facts.now);
    report(OBJECT_INCONSISTENT, disputed.len(), "blocks whose copies differ without a majority", disputed);

    let monitors = |test: &dyn Fn(&MonitorStatus) -> bool| -> Vec<String> {
        let found = facts.monitors.iter().filter(|it| test(it));
        found.map(|it| format!("{} ({})", it.id, it.address)).collect()
    };
    let down = monitors(&|it| it.up == Some(false));
    report(MONITOR_DOWN, down.len(), "monitors down", down);
    let learning = monitors(&|it| !it.voter);
    report(MONITOR_LEARNING, learning.len(), "monitors without a vote", learning);
    if map.pools.is_empty() {
        report(NO_POOL, 1, "cluster without a pool", vec![]);
    }
    let pgs = count_pgs(map);
    report(PG_UNAVAILABLE, pgs.unavailable, "placement groups without a majority", pgs.unavailable_ids);
    report(PG_DEGRADED, pgs.degraded, "placement groups with a member down", pgs.degraded_ids);
    let (unsettled, why) = facts.unsettled.clone();
    report(LAYOUT_UNCHECKED, unsettled, "placement groups of which it is not known where they live", why);
    if map.moves.paused {
        report(MOVES_PAUSED, 1, "cluster whose moves are paused", vec![]);
    } else {
        let held: Vec<String> = map.moves.held.iter().map(ToString::to_string).collect();
        report(MOVES_PAUSED, held.len(), "placement groups whose move was undone", held);
    }
    let unhealed: Vec<String> = facts
        .volumes
        .iter()
        .filter(|it| it.needs_heal)
        .filter_map(|it| {
            let name = &map.volumes.get(&it.volume)?.name;
            Some(it.kept.map_or_else(|| name.clone(), |kept| format!("{name}: {kept}")))
        })
        .collect();
    report(VOLUME_NEEDS_HEAL, unhealed.len(), "volumes to be healed", unhealed);
    let silent = silent_front_ends(&facts);
    report(FRONT_END_SILENT, silent.len(), "front ends silent", silent);
    let died: Vec<_> = map.deaths.recent(facts.wall).collect();
    let deaths = died.iter().map(|(_, it)| it.times as usize).sum();
    let died = died.iter().map(|(daemon, it)| death(daemon, it, facts.wall)).collect();
    report(DAEMON_DIED_RECENTLY, deaths, "ends of daemons that were not stops, in the last week", died);
    checks.sort_by_key(|check| (check.muted.is_some(), std::cmp::Reverse(check.health)));

    let nodes = map.nodes.iter().map(|(id, node)| NodeStatus {
        node: *id,
        up: facts.liveness.known(*id).then_some(node.up).or((!node.up).then_some(false)),
        heartbeat: facts.heartbeats.get(id).cloned(),
        io: facts.rates.of(*id, facts.now),
        recovery: facts.rates.recovery(*id, facts.now),
    });
    let holder = |it: &VolumeStatus| {
        let holder = map.volumes.get(&it.volume).filter(|_| it.attached)?.holder.as_ref()?;
        Some((holder.name.as_str(), holder.boot))
    };
    let front_ends: BTreeSet<_> = facts.volumes.iter().filter_map(holder).collect();
    let heard = checks.iter().filter(|check| check.muted.is_none());
    Status {
        health: heard.map(|check| check.health).max().unwrap_or(Health::HEALTH_OK),
        front_ends: front_ends.len() as u64,
        pgs_moving: pgs.moving,
        cluster_name: map.name.clone(),
        cluster_id: map.cluster_id,
        version: map.version,
        monitors: facts.monitors.clone(),
        leading_for: facts.now.since(facts.started),
        nodes: nodes.collect(),
        pgs: map.pgs.len() as u64,
        pgs_degraded: pgs.degraded as u64,
        pgs_unavailable: pgs.unavailable as u64,
        volumes: facts.volumes,
        checks,
    }
}

/// The mute of a check, while it holds: not a moment longer than its time, and not for more than was muted.
fn muted(map: &ClusterMap, code: &str, count: u64, now: u64) -> Option<Muted> {
    let mute = map.mutes.0.get(code).filter(|mute| mute.until > now && count <= mute.count)?;
    Some(Muted { left_s: mute.until.saturating_sub(now).div_ceil(1000), because: mute.because.clone() })
}

/// `1 node down`, `2 nodes down`. `what` begins with one of the nouns below, in the plural.
fn counted(count: usize, what: &str) -> String {
    let plural = ["nodes", "groups", "volumes", "monitors", "ends"];
    match plural.iter().find(|noun| what.split(' ').take(2).any(|word| word == **noun)) {
        Some(noun) if count == 1 => format!("1 {}", what.replacen(noun, &noun[..noun.len() - 1], 1)),
        _ => format!("{count} {what}"),
    }
}

/// Front ends that hold volumes and do not renew, in words.
fn silent_front_ends(facts: &Facts<'_>) -> Vec<String> {
    let mut all: BTreeMap<(&str, u64), (usize, u64)> = BTreeMap::new();
    for it in &facts.volumes {
        let holder = facts.map.volumes.get(&it.volume).and_then(|volume| volume.holder.as_ref());
        let silent = it.unrenewed.filter(|time| *time > facts.silent_after);
        if let (Some(holder), Some(silent)) = (holder, silent)
            && holder.kind == HolderKind::FrontEnd
            && holder.name != RESTORED_HOLDER
        {
            let front_end = all.entry((&holder.name, holder.boot)).or_default();
            *front_end = (front_end.0 + 1, front_end.1.max(silent));
        }
    }
    let text = |((name, _), (volumes, silent)): (&(&str, u64), &(usize, u64))| {
        let noun = if *volumes == 1 { "volume" } else { "volumes" };
        format!("{name}: {volumes} {noun}, not heard of for {} s", silent / 1_000_000)
    };
    all.iter().map(text).collect()
}

/// One daemon that died, in words.
fn death(daemon: &str, it: &Deaths, now: u64) -> String {
    let seconds = now.saturating_sub(it.at) / 1000;
    let ago = match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, ..) => format!("{days} d"),
    };
    match it.times {
        1 => format!("{daemon}, noticed {ago} ago"),
        times => format!("{daemon}, {times} times, last noticed {ago} ago"),
    }
}

/// The holder's part of a volume's status.
pub(crate) fn volume_status(map: &ClusterMap, id: VolumeId, expired: bool, differs: bool) -> VolumeStatus {
    let volume = map.volumes.get(&id);
    let kind = volume.and_then(|it| it.holder.as_ref()).map(|holder| holder.kind);
    let held = kind.is_some() && !expired;
    let clean = volume.is_some_and(|it| it.clean);
    VolumeStatus {
        volume: id,
        generation: volume.map(|it| it.generation).unwrap_or_default(),
        attached: held && kind == Some(HolderKind::FrontEnd),
        healing: held && kind == Some(HolderKind::Healer),
        needs_heal: !held && (!clean || differs),
        unrenewed: None,
        kept: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(writes: u64, write_us: u64) -> DeviceHealth {
        DeviceHealth { writes, write_us, ..DeviceHealth::default() }
    }

    fn slow_nodes(devices: &[DeviceHealth]) -> Vec<u32> {
        let all: BTreeMap<NodeId, DeviceHealth> =
            devices.iter().enumerate().map(|(n, device)| (NodeId(n as u32), *device)).collect();
        all.iter().filter(|(id, device)| slow(&all, **id, device).is_some()).map(|(id, _)| id.0).collect()
    }

    #[test]
    fn a_device_is_slow_by_the_measure_of_the_others() {
        let fine = device(100, 500);
        assert!(slow_nodes(&[fine, fine, fine]).is_empty());
        assert_eq!(slow_nodes(&[fine, device(100, 50_000), fine]), [1]);
        assert!(slow_nodes(&[fine, device(2, 50_000), fine]).is_empty(), "two writes say nothing");
        assert!(slow_nodes(&[fine, device(100, 15_000), fine]).is_empty(), "not slow by itself");
        assert!(slow_nodes(&[device(100, 30_000); 3]).is_empty(), "all are alike: this is what they can do");
        assert!(slow_nodes(&[device(100, 60_000)]).is_empty(), "nobody to compare with");
        assert!(slow_nodes(&[device(0, 0), device(100, 60_000)]).is_empty(), "nor here");
        let reads = DeviceHealth { reads: 9, read_us: 80_000, ..fine };
        let quick = DeviceHealth { reads: 9, read_us: 800, ..fine };
        assert_eq!(slow_nodes(&[quick, quick, reads]), [2]);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(counted(1, "nodes with copies behind"), "1 node with copies behind");
        assert_eq!(counted(1, "placement groups without a majority"), "1 placement group without a majority");
        assert_eq!(counted(2, "nodes down"), "2 nodes down");
        assert_eq!(counted(1, "cluster without a pool"), "1 cluster without a pool");
    }

    #[test]
    fn a_device_that_does_not_answer_is_slow_by_itself() {
        let stuck = DeviceHealth { oldest_us: STUCK_US + 1, ..DeviceHealth::default() };
        assert_eq!(slow_nodes(&[stuck]), [0]);
        assert!(slow_nodes(&[DeviceHealth { oldest_us: STUCK_US, ..stuck }]).is_empty());
    }
}
