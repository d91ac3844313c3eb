//! Hedged reads: when the first node is late, a second one is asked; the first good answer wins.
//!
//! A read is late when it has taken three times as long as 99 of 100 reads of this leader did lately, but
//! never before the floor and always at the ceiling of [`super::Options::hedge_after`]. The measure is what
//! clients have seen of all nodes together, not of the late node: a slow node's own measure would excuse it.
//! The node is marked: it gets no further reads while others can serve them ([`super::steer`]). The answer
//! that comes second is dropped; that it came late is noted, and nothing else.
//!
//! A hedge must not cost a cluster that is slow because it has too much to do its last breath. So there is a
//! budget: one for twenty reads, of which [`BURST`] may be saved up. What costs nothing: a read at a node
//! that does not answer at all, sent to one that does. There are as many of these as were under way when the
//! node fell silent, and no more. In a cluster that is slow as a whole, where all nodes are late and the
//! budget is used up, silence has to last for longer to be told from slowness ([`PATIENCE`]): then a read
//! at a node that has stopped still does not wait for the node's timeout.
//!
//! To another node a read is a new read (6.1): it must not overtake a write that has come since. Where one is
//! in flight, the read is put back behind it, and in front of what overlaps and comes later. A write that is
//! in flight waits for two nodes of three: a slow one does not hold it up.
//!
//! What it may not do: use what an older read brought, or wait for anything but time.

use super::due::{Ticket, Waiting};
use super::group::Group;
use super::steer::Wrong;
use super::{Output, Shared};
use crate::ids::*;

/// A read is late after so many times what 99 of 100 took.
const TIMES: u64 = 3;
/// Reads for each of which a part of a hedge is saved up: one in twenty may be hedged.
const READS_FOR_ONE: u32 = 20;
/// Hedges that may be saved up.
pub(super) const BURST: u32 = 64;

/// How long a node must have been silent for its reads to be sent to one that is slow, whatever the budget:
/// three times what 99 of 100 reads took, and at least and at most this (µs).
const PATIENCE: (u64, u64) = (40_000, 250_000);

/// The budget of a leader's hedges: a bucket of twentieths.
#[derive(Debug)]
pub(super) struct Budget {
    saved: u32,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { saved: BURST * READS_FOR_ONE }
    }
}

impl Budget {
    /// A read begins.
    pub fn earn(&mut self) {
        self.saved = (self.saved + 1).min(BURST * READS_FOR_ONE);
    }

    /// A read is hedged, if there is something left for it.
    pub fn spend(&mut self) -> bool {
        let left = self.saved.checked_sub(READS_FOR_ONE);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

impl Shared {
    /// After how long a read is late (µs).
    pub fn hedge_delay(&self) -> u64 {
        let (least, most) = self.options.hedge_after;
        let usual = self.read_latency.p99().map_or(most, |us| TIMES * u64::from(us));
        usual.max(least).min(most).max(1)
    }

    /// After how long a silent node is given up on even if the others are slow (µs).
    fn patience(&self) -> u64 {
        let usual = self.read_latency.p99().map_or(PATIENCE.0, |us| TIMES * u64::from(us));
        usual.clamp(PATIENCE.0, PATIENCE.1)
    }

    /// When the next read becomes late. O(1).
    pub fn next_late(&self) -> Option<Time> {
        self.due.front().map(|waiting| waiting.sent.after(self.hedge_delay()))
    }

    /// Takes out a read that is late by now.
    pub fn take_late(&mut self, now: Time) -> Option<Waiting> {
        let late = self.due.front().filter(|waiting| now.since(waiting.sent) >= self.hedge_delay())?;
        self.due.remove_front();
        Some(late)
    }
}

impl<P: Clone + Default> Group<P> {
    /// A read is late, and not among the due ones any more.
    pub fn late(&mut self, shared: &mut Shared, now: Time, id: u64, out: &mut Vec<Output<P>>) {
        let (delay, patience) = (shared.hedge_delay(), shared.patience());
        let Some(read) = self.reads.get_mut(&id) else { return };
        read.due = Ticket::NONE;
        let (index, range) = (read.op.object, read.op.kind.blocks());
        let (asked, sent, last, not) = (read.asked, read.sent, read.last, read.failed | read.asked);
        let (mut silent, mut stopped) = (true, true);
        for (i, slot) in self.slots.iter().enumerate().filter(|(i, _)| asked & 1 << i != 0) {
            let peer = shared.peer(slot.node);
            if i == usize::from(last) {
                peer.late(now, id, sent);
            }
            silent &= peer.is_silent(now, delay);
            stopped &= peer.is_silent(now, patience);
        }
        let choice = self.choose(shared, now, index, not);
        let overlaps = self.objects.get(&index).is_none_or(|object| object.write_in_flight(range));
        #[cfg(feature = "deliberate-bugs")]
        let overlaps = overlaps && !crate::bugs::hedge_overtakes_write();
        let goes = match choice.map(|choice| choice.wrong) {
            None => false,
            Some(Wrong::Nothing) if silent => true,
            Some(Wrong::Slow) if stopped => true,
            // Put back, it would come to such a node again and again.
            Some(Wrong::Slow | Wrong::Silent) if overlaps => false,
            Some(_) => {
                let paid = shared.hedges.spend();
                self.counters.hedges_denied += u64::from(!paid);
                paid
            }
        };
        match choice.filter(|_| goes) {
            None => {
                let due = shared.due.push(Waiting { sent: now, pg: self.id.pg.pg, id });
                if let Some(read) = self.reads.get_mut(&id) {
                    read.due = due;
                }
            }
            Some(_) if overlaps => {
                self.counters.hedged += 1;
                self.restart(shared, now, id, out);
            }
            Some(choice) => {
                self.counters.hedged += 1;
                self.send_read(shared, now, id, choice.slot, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_burst_and_one_in_twenty() {
        let mut budget = Budget::default();
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), BURST as usize);
        let hedged = (0..2_000)
            .filter(|_| {
                budget.earn();
                budget.spend()
            })
            .count();
        assert_eq!(hedged, 100);
        (0..1_000_000).for_each(|_| budget.earn());
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), BURST as usize, "no more is saved up");
    }
}
