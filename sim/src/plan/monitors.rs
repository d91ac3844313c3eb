//! What a seed decides of the monitors, in the runs that have several of them. Times in µs.

use super::{Fault, Plan, Span};
use crate::rng::Rng;

/// Most monitors in a run.
pub const MONITORS_MAX: usize = 5;
/// Which runs have monitors that have to agree. Such that those of `tests/seeds.txt` from before there were any
/// have none.
const SALT: u64 = 0x6d6f_6e69_746f_725a;

/// The monitors, and how well they get on.
#[derive(Clone, Debug)]
pub struct MonitorsPlan {
    /// 1, 3 or 5.
    pub count: usize,
    /// Between two signs of life of a leader, and between two looks at the time.
    pub beat: u64,
    /// Who has not heard of a leader for so long wants to lead.
    pub election: Span,
    /// Of a hundred messages between monitors, how many are lost.
    pub lost_percent: u64,
    /// Between a decision and the moment when it is written.
    pub write: Span,
    /// Between the commit of an entry and the moment when it is applied.
    pub apply: Span,
    /// Until what is said is durable.
    pub flush: Span,
    /// Entries of the log between two snapshots.
    pub snapshot_every: u64,
    /// Of a hundred requests, how many go to any monitor whatever the asker knows.
    pub astray_percent: u64,
}

/// What only such runs have.
pub const MONITOR_FAULTS: [Fault; 6] = [
    Fault::MonitorCrash,
    Fault::MonitorPause,
    Fault::MonitorPartition,
    Fault::MonitorElects,
    Fault::MonitorReplaced,
    Fault::MonitorsRestored,
];

impl Plan {
    /// In two runs of five there are monitors that have to agree; in the others one that answers at once.
    pub(super) fn draw_monitors(&mut self) {
        // Numbers of their own: the other runs are what they were.
        let r = &mut Rng::new(self.seed ^ SALT);
        if !r.percent(40) || self.stall_limit.is_some() {
            return;
        }
        let beat = r.magnitude(2_000 + 2 * self.delay.1, 20_000);
        let flush = r.magnitude(20, 2_000);
        let patience = 3 * beat + 6 * self.delay.1 + 2 * flush;
        // A decision may wait for its turn until somebody else has led in between.
        let write = if r.one_in(3) { r.magnitude(1_000, 4 * patience) } else { 500 };
        let apply = if r.one_in(3) { r.magnitude(1_000, 4 * patience) } else { 500 };
        self.monitors = Some(MonitorsPlan {
            count: [1, 3, 3, 3, 5][r.index(5)],
            beat,
            election: (patience, 3 * patience),
            lost_percent: if r.one_in(3) { r.below(20) } else { 0 },
            write: (0, write),
            apply: (0, apply),
            flush: (flush / 2, flush),
            snapshot_every: r.magnitude(4, 100),
            astray_percent: r.below(20),
        });
        for fault in MONITOR_FAULTS {
            let rare = matches!(fault, Fault::MonitorReplaced | Fault::MonitorsRestored);
            // The epochs of a backup are those of when it was taken: a known limit.
            let possible = fault != Fault::MonitorsRestored || self.moves.is_none();
            *self.weight(fault) = match (possible, rare) {
                (true, true) if r.percent(30) => r.between(1, 2) as u32,
                (true, false) if r.percent(60) => r.between(1, 8) as u32,
                _ => 0,
            };
        }
    }
}
