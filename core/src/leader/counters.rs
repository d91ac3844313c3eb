//! What a leader counts of what it does: for metrics, and for the simulator to see that it happens.

use super::Leader;

/// Counters, for metrics and for the simulator's coverage. They start at 0 with the leader.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderCounters {
    /// Groups opened, next rounds included.
    pub rounds: u64,
    /// Repairs ordered.
    pub repairs: u64,
    /// Reads that needed a Confirm.
    pub confirms: u64,
    /// Reads sent to a second node because the first was late.
    pub hedged: u64,
    /// Of these, those whose second node answered first.
    pub hedge_wins: u64,
    /// Reads that were late and not sent to a second node, because the budget for that was used up.
    pub hedges_denied: u64,
    /// Reads of one block that were sent to avoided nodes, to see whether they are quick again.
    pub latency_probes: u64,
    /// Connections given up because the node was too far behind or silent.
    pub cut_loose: u64,
    /// Copies that were left behind by a Gap or a NoSpace.
    pub left_behind: u64,
    /// Writes whose blocks were looked at first, because the nodes are full.
    pub probes: u64,
    /// Writes whose answers had to wait for more copies than a majority.
    pub answers_held: u64,
    /// Of these, those that waited for so long that copies were given up for it.
    pub answers_late: u64,
    /// Groups in which a node that had lost data is counted again, since it has said so itself.
    pub distrust_lifted: u64,
    /// Calls sent to nodes, for want of a lease.
    pub calls: u64,
}

impl<P: Clone + Default> Leader<P> {
    /// Counters, for metrics.
    pub fn counters(&self) -> LeaderCounters {
        let mut sum = self.shared.counters;
        for c in self.groups.iter().flatten().map(|group| &group.counters) {
            sum.rounds += c.rounds;
            sum.repairs += c.repairs;
            sum.confirms += c.confirms;
            sum.hedged += c.hedged;
            sum.hedge_wins += c.hedge_wins;
            sum.hedges_denied += c.hedges_denied;
            sum.latency_probes += c.latency_probes;
            sum.left_behind += c.left_behind;
            sum.probes += c.probes;
            sum.answers_held += c.answers_held;
            sum.answers_late += c.answers_late;
        }
        sum
    }
}
