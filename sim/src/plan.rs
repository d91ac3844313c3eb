//! What a seed decides before anything happens: the cluster, the load, the odds of each fault.
//!
//! Each kind of fault is switched on or off per run, and its weight drawn, so that runs differ in what
//! they try ("swarm testing"): a cluster whose only trouble is restarts finds other things than one
//! where everything happens at once. All times in µs.

mod calls;
mod monitors;

pub use calls::CallsPlan;
pub use monitors::{MONITOR_FAULTS, MONITORS_MAX, MonitorsPlan};

use crate::rng::Rng;
use trefoil_core::limits::FETCH_WAIT_MAX;
use trefoil_core::node::BudgetConfig;
use trefoil_core::placement::PgConfig;
use trefoil_core::{Epoch, NodeId, ObjectIndex, PgId, PoolId, VolumeId};

/// Most storage nodes in a run.
pub const NODES_MAX: usize = 6;
/// Most volumes in a run.
pub const VOLUMES_MAX: usize = 2;
/// Most objects of a volume.
pub const OBJECTS_MAX: usize = 6;
/// Most blocks of an object that clients use.
pub const BLOCKS_MAX: usize = 8;
/// Which runs have moves in them. Such that those of `tests/seeds.txt` from before there were moves have
/// none.
const MOVES_SALT: u64 = 0x006d_6f76_657d;
/// Which runs have copies that lie. Such that those of `tests/seeds.txt` from before have none.
const LIES_SALT: u64 = 0x006c_6965_7300;
/// Which runs have splits in them. As [`MOVES_SALT`], with those from before there were splits.
const SPLITS_SALT: u64 = 0x7370_6c69_7468;
/// In which runs answers wait for all copies in line. Such that those of `tests/seeds.txt` from before are none.
const ACK_SALT: u64 = 0x616c_6c5f_696e_0039;
/// In which runs a node loses state and does not know. Such that those of `tests/seeds.txt` from before are none.
const SILENT_SALT: u64 = 0x7369_6c65_6e74_004e;
/// Most placement groups in a run.
pub const PGS_MAX: usize = 12;
/// The pool of every volume.
pub const POOL: PoolId = PoolId(1);

/// A kind of fault.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Fault {
    NodeCrash,
    AllNodesCrash,
    NodePause,
    LeaderDies,
    LeaderPause,
    ConnectionBreaks,
    PeerConnectionBreaks,
    Partition,
    OneWay,
    MonitorDown,
    RenewalsLost,
    BadBlock,
    NoRoom,
    SlowDisk,
    Takeover,
    Release,
    LostState,
    Isolated,
    SlowNode,
    MonitorCrash,
    MonitorPause,
    MonitorPartition,
    MonitorElects,
    MonitorReplaced,
    MonitorsRestored,
    CutOff,
}

/// All kinds, in the order of their numbers.
pub const FAULTS: [Fault; 26] = [
    Fault::NodeCrash,
    Fault::AllNodesCrash,
    Fault::NodePause,
    Fault::LeaderDies,
    Fault::LeaderPause,
    Fault::ConnectionBreaks,
    Fault::PeerConnectionBreaks,
    Fault::Partition,
    Fault::OneWay,
    Fault::MonitorDown,
    Fault::RenewalsLost,
    Fault::BadBlock,
    Fault::NoRoom,
    Fault::SlowDisk,
    Fault::Takeover,
    Fault::Release,
    Fault::LostState,
    Fault::Isolated,
    Fault::SlowNode,
    Fault::MonitorCrash,
    Fault::MonitorPause,
    Fault::MonitorPartition,
    Fault::MonitorElects,
    Fault::MonitorReplaced,
    Fault::MonitorsRestored,
    Fault::CutOff,
];

/// How many times slower a node is that is struck by [`Fault::SlowNode`].
pub const SLOW_NODE: u64 = 100;
/// P2 in a brisk cluster: the longest operation (µs) while one node at a time is slow, stopped or gone.
pub const BRISK_STALL_MAX: u64 = 50_000;

/// A range that a duration is drawn from.
pub type Span = (u64, u64);

/// A rule that is broken on purpose, to see that the checks notice.
#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// The leader acknowledges a write that one copy has.
    AckAtOneCopy,
    /// The store answers before its flush has ended.
    SkipFlush,
    /// A copy that is behind has no vote.
    StaleCopyWithoutVote,
    /// A hedged read is sent to a second node over a write in flight.
    HedgeOvertakesWrite,
    /// No read is hedged: not wrong, but slow. For runs of [`Plan::brisk`].
    NoHedges,
    /// A node that is no member any more deletes what it has at once.
    DeleteWithoutCompare,
    /// A move is made final without a look at the new member.
    FinalWithoutCheck,
    /// A leader goes on in its ballot under a new epoch, and such ballots count for M3.
    NoReopen,
    /// A node answers List and forgets the epoch.
    ListWithoutEpoch,
    /// What was decided in one reign is applied though it was written in another.
    SupersededApplies,
    /// A new leader takes every lease for one that has run out.
    NewReignWaitsForNobody,
    /// A holder renews between the decision to grant over its lease and the commit.
    RenewalSlipsIn,
    /// The map of a backup goes on with its generations as they are.
    RestoreSkipsNothing,
    /// A monitor that led once renews leases by what it knows itself.
    RenewWithoutConfirm,
    /// A monitor that was just elected decides before an entry of its own is committed.
    ReignBeforeOwnEntry,
    /// A monitor that has lost its directory goes on under its old name.
    EmptyMonitorVotes,
    /// Of copies that differ at one head, the first one wins.
    ScrubFirstWins,
    /// Of copies that differ at one head, the minority wins.
    ScrubMinorityWins,
    /// A repair forgets which blocks of its source are in doubt.
    RepairForgetsDoubts,
    /// A split leaves the promises behind.
    SplitWithoutPromise,
    /// A node splits and writes no record of it.
    SplitWithoutRecord,
    /// A node that has split takes what a leader of before sends, in the group that it names.
    WrongGroup,
    /// A leader opens a group that split off as if it had none there before.
    SplitFromRoundZero,
    /// A leader answers what a majority has, in a pool that wants all copies in line.
    AllInSyncForgotten,
    /// A leader goes on with a node that has lost data and does not know it, all copies there listed as behind.
    DoubtedNodeCounts,
    /// A healer gets whatever has a lease that ran out, whoever hears its front end.
    HealersAskNobody,
}

/// How placement groups move in a run. Times in µs.
#[derive(Clone, Debug)]
pub struct MovesPlan {
    /// Between two steps of the mover.
    pub step: u64,
    /// Between two wishes for a move, or for its end.
    pub wish_every: Span,
    /// How long it takes until a node or front end hears of a new epoch, at first.
    pub news_take: Span,
    /// Who has not heard by then is told at one step of the mover in so many.
    pub news_one_in: u64,
    /// Of a hundred wishes, how many are to undo a move.
    pub undo_percent: u64,
    /// Of a hundred steps that are taken, how many are followed by a crash at once.
    pub crash_percent: u64,
    /// Moves go to where CRUSH wants the placement groups, too.
    pub crush: bool,
    /// Between ticks of a node.
    pub node_tick: u64,
    /// Between two wishes for more placement groups; none: they are never split.
    pub split_every: Option<Span>,
}

/// How copies lie in a run. Times in µs.
#[derive(Clone, Debug)]
pub struct LiesPlan {
    /// Between two lies.
    pub every: Span,
    /// Between ticks of a node.
    pub node_tick: u64,
}

/// How a node loses state and does not know, in a run. Times in µs.
#[derive(Clone, Debug)]
pub struct SilentPlan {
    /// Somebody must have found it by then, or it finds out by itself.
    pub found_within: u64,
    /// From when it is found to the monitors' order.
    pub order_takes: Span,
}

/// Everything that a seed decides beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Steps of the first phase, in which faults happen.
    pub steps: u64,
    /// The deliberate bug, if any.
    pub bug: Option<Bug>,
    /// Storage nodes.
    pub nodes: usize,
    /// The pool's placement groups: their newest configurations.
    pub pgs: Vec<PgConfig>,
    /// Copies lie, in some runs.
    pub lies: Option<LiesPlan>,
    /// A node that loses state does not know, in some runs.
    pub silent: Option<SilentPlan>,
    /// They move, in some runs.
    pub moves: Option<MovesPlan>,
    /// Several monitors, in some runs; else one that answers at once.
    pub monitors: Option<MonitorsPlan>,
    /// Front ends without a lease that nodes hear; none: whenever a healer asks, all nodes have just said that they
    /// hear nobody.
    pub calls: Option<CallsPlan>,
    /// Answers wait for all copies in line, at first.
    pub all_in_sync: bool,
    /// The pool is set to the other kind so often.
    pub ack_changes: Option<Span>,
    /// Object to placement group: `(volume, object, placement groups)`.
    pub pg_of: fn(VolumeId, ObjectIndex, u32) -> u32,
    /// Volumes.
    pub volumes: usize,
    /// Objects of each volume.
    pub objects: usize,
    /// Blocks that clients use in each object.
    pub blocks: usize,
    /// The first of them. Not 0 in some runs: objects that a repair fetches in several pieces.
    pub first_block: u32,
    /// Hosts that front ends run on.
    pub hosts: usize,
    /// One way through the network.
    pub delay: Span,
    /// One message in so many takes twenty times as long; 0 for none.
    pub late_one_in: u64,
    /// A flush.
    pub flush: Span,
    /// Records in one flush at most.
    pub flush_records: usize,
    /// A read from a device.
    pub read: Span,
    /// Operations that a front end's clients have under way at once.
    pub clients: usize,
    /// How many of these clients only read.
    pub readers: usize,
    /// Between a client's operations.
    pub think: Span,
    /// Weights of read, write, zero, status.
    pub ops: [u32; 4],
    /// One operation in so many is of all blocks of its object.
    pub large_one_in: u64,
    /// Between faults.
    pub fault_every: Span,
    /// Weight of each fault; 0 for never.
    pub faults: [u32; FAULTS.len()],
    /// How long a fault lasts.
    pub fault_lasts: Span,
    /// A lease.
    pub lease: u64,
    /// The monitors wait for this much longer than a lease.
    pub margin: u64,
    /// Clocks run faster or slower by at most so many parts in a million.
    pub drift_ppm: u64,
    /// Percent of lease messages that are lost.
    pub renewals_lost_percent: u64,
    /// A leader's [`trefoil_core::leader::Options::io_timeout`].
    pub io_timeout: Option<u64>,
    /// A leader's [`trefoil_core::leader::Options::hedge_after`].
    pub hedge_after: (u64, u64),
    /// A leader's [`trefoil_core::leader::Options::node_timeout`].
    pub node_timeout: u64,
    /// A leader's [`trefoil_core::leader::Options::lag_max`].
    pub lag_max: u64,
    /// A leader's [`trefoil_core::leader::Options::hold`].
    pub hold: (u64, u64),
    /// A volume without a front end gets one after this long.
    pub attach_after: Span,
    /// In some runs only one node is in trouble at a time, and only when all copies are whole: then no
    /// operation may take longer than this (P2).
    pub stall_limit: Option<u64>,
    /// What recovery may take at a node, where it is not what nodes are given by default.
    pub budget: Option<BudgetConfig>,
    /// Virtual time within which everything must be well when faults have stopped.
    pub calm_limit: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, steps: u64, bug: Option<Bug>) -> Plan {
        let mut rng = Rng::new(seed ^ 0x7265_666f_696c);
        let r = &mut rng;
        let nodes = r.between(3, NODES_MAX as u64) as usize;
        let pgs = (0..r.between(1, 4)).map(|_| PgConfig::simple(Epoch(1), three_of(nodes, r))).collect();
        let latency = r.magnitude(20, 1_000);
        let flush = r.magnitude(20, 3_000);
        // What came later draws from numbers of its own.
        let late = &mut Rng::new(seed ^ 0x6c61_6767_6172_6473);
        let hold = late.magnitude(1_000, 200_000);
        let mut faults = [0; FAULTS.len()];
        for (weight, kind) in faults.iter_mut().zip(FAULTS) {
            *weight = match kind {
                kind if MONITOR_FAULTS.contains(&kind) => 0,
                Fault::LostState if r.one_in(5) => r.between(1, 3) as u32,
                Fault::LostState => 0,
                Fault::SlowNode if late.percent(55) => late.between(1, 10) as u32,
                Fault::SlowNode | Fault::CutOff => 0,
                Fault::AllNodesCrash => r.below(3) as u32,
                _ if r.percent(55) => r.between(1, 10) as u32,
                _ => 0,
            };
        }
        let fault_every = r.magnitude(1_000, 60_000);
        let lease = r.magnitude(10_000, 400_000);
        let drift_ppm = r.magnitude(10, 40_000);
        let mut plan = Plan {
            seed,
            steps,
            bug,
            nodes,
            pgs,
            moves: None,
            monitors: None,
            calls: None,
            lies: None,
            silent: None,
            all_in_sync: false,
            ack_changes: None,
            pg_of,
            volumes: r.between(1, VOLUMES_MAX as u64) as usize,
            objects: r.between(1, OBJECTS_MAX as u64) as usize,
            blocks: r.between(2, BLOCKS_MAX as u64) as usize,
            first_block: if r.one_in(5) { 125 } else { 0 },
            hosts: r.between(2, 3) as usize,
            delay: (latency / 2, latency * 2),
            late_one_in: if r.one_in(3) { 0 } else { r.magnitude(10, 1_000) },
            flush: (flush / 2, flush * 3),
            flush_records: r.magnitude(1, 64) as usize,
            read: (5, r.magnitude(10, 3_000)),
            clients: r.between(1, 8) as usize,
            readers: r.below(4) as usize,
            think: (0, r.magnitude(10, 5_000)),
            ops: [r.between(5, 60) as u32, r.between(20, 60) as u32, r.below(12) as u32, r.below(6) as u32],
            large_one_in: r.between(2, 40),
            fault_every: (fault_every / 4, fault_every * 2),
            faults,
            fault_lasts: (500, r.magnitude(5_000, 600_000)),
            lease,
            // Both clocks may be off by the whole drift, in opposite directions; and the division rounds.
            margin: lease * drift_ppm * 3 / 1_000_000 + 10,
            drift_ppm,
            renewals_lost_percent: if r.one_in(3) { r.below(60) } else { 0 },
            io_timeout: r.one_in(6).then(|| r.magnitude(20_000, 500_000)),
            hedge_after: (late.magnitude(100, 1_000), r.magnitude(1_000, 60_000)),
            node_timeout: r.magnitude(30_000, 2_000_000),
            lag_max: late.magnitude(20_000, 5_000_000),
            hold: (hold, hold * late.between(1, 16)),
            attach_after: (100, r.magnitude(1_000, 200_000)),
            stall_limit: None,
            budget: None,
            calm_limit: 180_000_000,
        };
        // Numbers of their own: objects here are small, and so must be what is taken for many.
        let b = &mut Rng::new(seed ^ 0x6275_6467_6574);
        if b.one_in(2) {
            let floor = b.magnitude(64 << 10, 16 << 20);
            plan.budget = Some(BudgetConfig {
                floor,
                ceiling: floor * b.between(1, 16),
                burst: b.magnitude(4 << 10, 256 << 10),
            });
        }
        if r.one_in(10) {
            plan.one_node_at_a_time();
            if late.one_in(2) {
                plan.make_brisk(late);
            }
        }
        // Numbers of their own again: runs in which nothing moves are what they were.
        let m = &mut Rng::new(seed ^ MOVES_SALT);
        if nodes > 3 && plan.stall_limit.is_none() && m.one_in(3) {
            plan.moves = Some(MovesPlan {
                step: m.magnitude(500, 50_000),
                wish_every: (1_000, m.magnitude(5_000, 200_000)),
                news_take: (0, m.magnitude(1_000, 500_000)),
                news_one_in: m.magnitude(2, 200),
                undo_percent: if m.one_in(2) { m.below(60) } else { 0 },
                crash_percent: if m.one_in(2) { m.below(60) } else { 0 },
                crush: m.one_in(3),
                node_tick: m.magnitude(2_000, 100_000),
                split_every: None,
            });
        }
        // And again: runs in which nothing is split are what they were.
        let s = &mut Rng::new(seed ^ SPLITS_SALT);
        if plan.stall_limit.is_none() && s.one_in(4) {
            plan.split(s);
        }
        // And again: runs in which nobody lies are what they were.
        let l = &mut Rng::new(seed ^ LIES_SALT);
        if plan.moves.is_none() && plan.stall_limit.is_none() && l.one_in(4) {
            plan.lies = Some(LiesPlan {
                every: (500, l.magnitude(2_000, 100_000)),
                // A node waits for a piece by ticks, and the piece may wait for its source's budget by the clock.
                node_tick: l.magnitude(1_000, 20_000).max(plan.budget.map_or(0, |_| FETCH_WAIT_MAX / 20)),
            });
            // A device that forgets a lie, or a write that a client has given up and that comes later, would be
            // two things to blame at once.
            *plan.weight(Fault::LostState) = 0;
            plan.io_timeout = None;
        }
        plan.draw_monitors();
        plan.draw_calls();
        // And again: runs of pools whose answers wait for a majority are what they were.
        let a = &mut Rng::new(seed ^ ACK_SALT);
        if a.one_in(3) {
            plan.all_in_sync = true;
            let every = a.magnitude(20_000, 500_000);
            plan.ack_changes = a.one_in(4).then_some((every / 4, every));
        }
        // And again: runs in which a node knows what it has lost are what they were. Until it knows, it must not be
        // asked what it has of placement groups that move, and nothing else may be to blame.
        let n = &mut Rng::new(seed ^ SILENT_SALT);
        if plan.moves.is_none() && plan.lies.is_none() && plan.stall_limit.is_none() && n.one_in(4) {
            plan.silent = Some(SilentPlan {
                found_within: n.magnitude(50_000, 2_000_000),
                order_takes: (500, n.magnitude(2_000, 2_000_000)),
            });
            *plan.weight(Fault::LostState) = n.between(4, 12) as u32;
            if n.one_in(2) {
                // Whoever finds it lives on.
                let ends = [Fault::LeaderDies, Fault::Takeover, Fault::Release, Fault::Isolated];
                ends.into_iter().chain([Fault::RenewalsLost]).for_each(|fault| *plan.weight(fault) = 0);
            }
        }
        plan
    }

    /// The pool gets more placement groups while the run goes on, once or more.
    fn split(&mut self, rng: &mut Rng) {
        let every = rng.magnitude(5_000, 400_000);
        let moves = self.moves.get_or_insert_with(|| MovesPlan {
            step: rng.magnitude(500, 50_000),
            // Now and then: what splits is to be seen by itself, too.
            wish_every: (100_000, rng.magnitude(200_000, 2_000_000)),
            news_take: (0, rng.magnitude(1_000, 500_000)),
            news_one_in: rng.magnitude(2, 200),
            undo_percent: 10,
            crash_percent: if rng.one_in(2) { rng.below(60) } else { 0 },
            crush: false,
            node_tick: rng.magnitude(2_000, 100_000),
            split_every: None,
        });
        moves.split_every = Some((every / 4, every));
        // Objects go to where their hash says, as in the daemons: a node splits by that.
        self.pg_of = |volume, index, pg_num| trefoil_core::crush::object_pg(volume.0, index, pg_num);
        self.volumes = VOLUMES_MAX;
        self.objects = self.objects.max(4);
    }

    /// See [`Plan::stall_limit`].
    fn one_node_at_a_time(&mut self) {
        let strikes = [
            Fault::NodeCrash,
            Fault::NodePause,
            Fault::SlowDisk,
            Fault::SlowNode,
            Fault::ConnectionBreaks,
            Fault::NoRoom,
            Fault::MonitorDown,
        ];
        let weights = self.faults;
        self.faults = [0; FAULTS.len()];
        for fault in strikes {
            *self.weight(fault) = weights[fault as usize].max(1);
        }
        self.late_one_in = 0;
        self.io_timeout = None;
        // What an operation may wait for: those before it that overlap, on each a few messages and a flush;
        // the hedge, and the patience with a silent node where all are slow; and the records of everybody
        // else, where a flush takes few of them.
        let round = 2 * self.delay.1 + self.read.1 + 2 * self.flush.1;
        let queue = 40 * self.flush.1 / self.flush_records as u64;
        self.stall_limit = Some(2 * self.hedge_after.1 + 250_000 + 12 * round + queue);
    }

    /// The plan of a seed whose run is certain to be a brisk one: a cluster like a real one on good devices,
    /// with leaders as the daemons have them. Whatever becomes of one node at a time, no operation may take
    /// longer than [`BRISK_STALL_MAX`].
    pub fn brisk(mut self) -> Plan {
        (self.moves, self.monitors, self.lies) = (None, None, None);
        (self.silent, self.calls) = (None, None);
        self.pg_of = pg_of;
        if self.stall_limit != Some(BRISK_STALL_MAX) {
            let rng = &mut Rng::new(self.seed ^ 0x0062_7269_736b);
            self.one_node_at_a_time();
            self.make_brisk(rng);
        }
        self
    }

    /// See [`Plan::brisk`].
    fn make_brisk(&mut self, rng: &mut Rng) {
        let options = trefoil_core::leader::Options::default();
        let never = u64::MAX / 4;
        self.hedge_after = if self.bug == Some(Bug::NoHedges) { (never, never) } else { options.hedge_after };
        self.node_timeout = rng.magnitude(100_000, options.node_timeout);
        self.delay = (10, rng.magnitude(20, 250));
        self.flush = (20, rng.magnitude(50, 600));
        self.flush_records = rng.between(16, 64) as usize;
        self.read = (5, rng.magnitude(20, 400));
        // Time for several faults, each of which lasts longer than anybody may wait.
        self.steps *= 4;
        self.clients = 8;
        self.think = (0, rng.magnitude(200, 20_000));
        self.fault_lasts = (BRISK_STALL_MAX, 8 * BRISK_STALL_MAX);
        self.fault_every = (1_000, 30_000);
        self.stall_limit = Some(BRISK_STALL_MAX);
    }

    /// The plan with every fault and every oddity off: what a quiet day looks like.
    pub fn calm(mut self) -> Plan {
        self.faults = [0; FAULTS.len()];
        self.late_one_in = 0;
        self.renewals_lost_percent = 0;
        self.io_timeout = None;
        self.stall_limit = None;
        (self.lies, self.silent) = (None, None);
        if let Some(moves) = &mut self.moves {
            moves.crash_percent = 0;
        }
        if let Some(monitors) = &mut self.monitors {
            monitors.lost_percent = 0;
        }
        self
    }

    /// How much longer than other operations a write may take in a pool whose answers wait for all copies in line: until a
    /// copy is left behind. (Clocks drift, and a leader looks every 50 ms.)
    pub fn held_max(&self) -> u64 {
        let longest = self.node_timeout.max(self.lag_max);
        longest + longest * self.drift_ppm / 1_000_000 + 60_000
    }

    /// Blocks in an object, as the leaders and nodes know it.
    pub fn object_blocks(&self) -> u32 {
        self.first_block + self.blocks as u32
    }

    /// The weight of a kind of fault.
    pub fn weight(&mut self, fault: Fault) -> &mut u32 {
        &mut self.faults[fault as usize]
    }

    /// The volumes.
    pub fn volume_ids(&self) -> impl Iterator<Item = VolumeId> + use<> {
        (1..=self.volumes as u64).map(VolumeId)
    }

    /// The configuration of an object's placement group, and its number.
    pub fn pg(&self, volume: VolumeId, index: ObjectIndex) -> (PgId, &PgConfig) {
        let pg = (self.pg_of)(volume, index, self.pgs.len() as u32);
        (PgId { pool: POOL, pg }, &self.pgs[pg as usize])
    }

    /// The faults that may happen, for people.
    pub fn fault_names(&self) -> String {
        let on = FAULTS.iter().zip(&self.faults).filter(|(_, w)| **w > 0);
        on.map(|(f, w)| format!("{f:?}:{w}")).collect::<Vec<_>>().join(" ")
    }
}

/// Object to placement group: small numbers that collide often, which is the point.
fn pg_of(volume: VolumeId, index: ObjectIndex, pg_num: u32) -> u32 {
    (volume.0 as u32).wrapping_mul(5).wrapping_add(index.wrapping_mul(7)) % pg_num.max(1)
}

fn three_of(nodes: usize, rng: &mut Rng) -> Vec<NodeId> {
    let mut set: Vec<NodeId> = Vec::with_capacity(3);
    while set.len() < 3 {
        let node = NodeId(rng.index(nodes) as u32);
        if !set.contains(&node) {
            set.push(node);
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_hold_their_limits() {
        for seed in 0..500 {
            let plan = Plan::new(seed, 10, None);
            assert!(plan.nodes <= NODES_MAX && plan.blocks <= BLOCKS_MAX && plan.objects <= OBJECTS_MAX);
            assert!(plan.pgs.iter().all(|c| c.problem().is_none() && c.new.len() == 3));
            // P4 and I2 rest on it: whoever counts slowly must not think a lease runs that the monitors,
            // counting fast, have given away.
            let slow = plan.lease * (1_000_000 + plan.drift_ppm) / (1_000_000 - plan.drift_ppm);
            assert!(plan.lease + plan.margin > slow + 2, "seed {seed}");
        }
    }
}
