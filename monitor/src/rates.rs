//! What nodes do per second, from the counters in their heartbeats.
//!
//! Soft state of the monitor that leads; nothing is decided by it. A counter that went back is that of a process which
//! was started anew: what it did before is not known, and is not guessed.

use crate::rpc::Heartbeat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use trefoil_core::{NodeId, Time};

/// Two looks are at least so far apart (µs): heartbeats come every second, and not to the millisecond.
const SPAN_MIN: u64 = 2_500_000;
/// A rate that is older (µs) is not shown: nobody knows what the node does.
const FRESH: u64 = 10_000_000;

/// Per second. Writes are counted once for each copy.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoRates {
    /// Reads of front ends.
    pub reads: u64,
    /// Writes of front ends.
    pub writes: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Bytes of these.
    pub write_bytes: u64,
    /// Bytes that the node got from others to repair its copies.
    pub recovery_bytes: u64,
}

#[derive(Debug)]
struct Look {
    at: Time,
    counters: IoRates,
    rates: Option<IoRates>,
}

/// See the module. At most one entry for each node of the map: the caller has checked that it is one.
#[derive(Debug, Default)]
pub(crate) struct Rates(BTreeMap<NodeId, Look>);

impl Rates {
    /// A node has said how far its counters are.
    pub fn heard(&mut self, beat: &Heartbeat, now: Time) {
        let counters = IoRates {
            reads: beat.reads,
            writes: beat.writes,
            read_bytes: beat.read_bytes,
            write_bytes: beat.write_bytes,
            recovery_bytes: beat.recovery_bytes,
        };
        let Some(look) = self.0.get_mut(&beat.node) else {
            self.0.insert(beat.node, Look { at: now, counters, rates: None });
            return;
        };
        let passed = now.since(look.at);
        if passed < SPAN_MIN {
            return;
        }
        // After a silence the mean would be that of a time in which nobody knows what happened.
        let rates = (passed < FRESH).then(|| between(&look.counters, &counters, passed)).flatten();
        *look = Look { at: now, counters, rates };
    }

    /// A node is one of the cluster no more.
    pub fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// What it does; none: not known.
    pub fn of(&self, node: NodeId, now: Time) -> Option<IoRates> {
        let look = self.0.get(&node).filter(|look| now.since(look.at) < FRESH)?;
        look.rates
    }
}

fn between(before: &IoRates, now: &IoRates, passed: u64) -> Option<IoRates> {
    let rate = |of: fn(&IoRates) -> u64| {
        let events = u128::from(of(now).checked_sub(of(before))?) * 1_000_000 / u128::from(passed.max(1));
        u64::try_from(events).ok()
    };
    Some(IoRates {
        reads: rate(|it| it.reads)?,
        writes: rate(|it| it.writes)?,
        read_bytes: rate(|it| it.read_bytes)?,
        write_bytes: rate(|it| it.write_bytes)?,
        recovery_bytes: rate(|it| it.recovery_bytes)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(reads: u64, recovery_bytes: u64) -> Heartbeat {
        Heartbeat { node: NodeId(1), reads, recovery_bytes, ..Heartbeat::default() }
    }

    #[test]
    fn rates_are_those_between_heartbeats_and_nothing_is_made_up() {
        let (mut rates, node, s) = (Rates::default(), NodeId(1), |s: u64| Time(s * 1_000_000));
        rates.heard(&beat(100, 0), s(10));
        assert_eq!(rates.of(node, s(10)), None, "one look says nothing");
        rates.heard(&beat(999, 0), s(11));
        assert_eq!(rates.of(node, s(11)), None);
        rates.heard(&beat(400, 30 << 20), s(13));
        let found = rates.of(node, s(14)).unwrap();
        assert_eq!((found.reads, found.writes, found.recovery_bytes), (100, 0, 10 << 20));
        assert_eq!(rates.of(node, s(23)), None, "it is silent");
        rates.heard(&beat(500, 30 << 20), s(33));
        assert_eq!(rates.of(node, s(33)), None, "a mean over a silence");
        rates.heard(&beat(5, 0), s(36));
        assert_eq!(rates.of(node, s(36)), None, "it was started anew");
        rates.heard(&beat(35, 0), s(39));
        assert_eq!(rates.of(node, s(39)).map(|it| it.reads), Some(10));
        rates.forget(node);
        assert_eq!(rates.of(node, s(39)), None);
    }
}
