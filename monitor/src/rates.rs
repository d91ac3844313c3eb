//! What nodes do per second, from the counters in their heartbeats.
//!
//! Soft state of the monitor that leads; nothing is decided by it. A counter that went back is that of a process which
//! was started anew: what it did before is not known, and is not guessed.

use crate::rpc::Heartbeat;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use trefoil_core::{NodeId, Time};

/// Two looks are at least so far apart (µs): heartbeats come every second, and not to the millisecond.
const SPAN_MIN: u64 = 2_500_000;
/// A rate that is older (µs) is not shown: nobody knows what the node does.
const FRESH: u64 = 10_000_000;
/// Looks over which the pace of recovery is taken: half a minute or so. Repairs come one by one, in bursts.
const RECOVERY_LOOKS: usize = 12;

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

/// How fast a node's copies are repaired, over the last half minute or so.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovering {
    /// Bytes per second that it got from others for it.
    pub bytes: u64,
    /// Copies that were repaired, in a thousand seconds.
    pub repairs_per_ks: u64,
    /// Seconds after which none would be behind at this pace, if no more fell behind; none: not known.
    pub left_s: Option<u64>,
}

#[derive(Debug)]
struct Look {
    at: Time,
    counters: IoRates,
    rates: Option<IoRates>,
    /// Without a silence or a start in between, the last at the end.
    recovery: VecDeque<Repaired>,
}

/// How far a node's repairs are.
#[derive(Copy, Clone, Debug)]
struct Repaired {
    at: Time,
    bytes: u64,
    repairs: u64,
    behind: u64,
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
        let (bytes, repairs, behind) = (beat.recovery_bytes, beat.repairs, beat.behind);
        let repaired = Repaired { at: now, bytes, repairs, behind };
        let Some(look) = self.0.get_mut(&beat.node) else {
            let recovery = VecDeque::from([repaired]);
            self.0.insert(beat.node, Look { at: now, counters, rates: None, recovery });
            return;
        };
        let passed = now.since(look.at);
        if passed < SPAN_MIN {
            return;
        }
        // After a silence the mean would be that of a time in which nobody knows what happened.
        let rates = (passed < FRESH).then(|| between(&look.counters, &counters, passed)).flatten();
        let mut recovery = std::mem::take(&mut look.recovery);
        let went_back = recovery.back().is_some_and(|it| it.bytes > bytes || it.repairs > repairs);
        if passed >= FRESH || went_back {
            recovery.clear();
        }
        if recovery.len() >= RECOVERY_LOOKS {
            recovery.pop_front();
        }
        recovery.push_back(repaired);
        *look = Look { at: now, counters, rates, recovery };
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

    /// How fast its copies are repaired; none: not known.
    pub fn recovery(&self, node: NodeId, now: Time) -> Option<Recovering> {
        let looks = &self.0.get(&node).filter(|look| now.since(look.at) < FRESH)?.recovery;
        let (first, last) = (looks.front()?, looks.back()?);
        let passed = u128::from(last.at.since(first.at));
        if passed == 0 {
            return None; // one look says nothing
        }
        let per = |events: u64, us: u128| u64::try_from(u128::from(events) * us / passed).unwrap_or(u64::MAX);
        let repairs = last.repairs.saturating_sub(first.repairs);
        let left = u128::from(last.behind) * passed / 1_000_000;
        let left = left.checked_div(u128::from(repairs)).and_then(|left| u64::try_from(left).ok());
        Some(Recovering {
            bytes: per(last.bytes.saturating_sub(first.bytes), 1_000_000),
            repairs_per_ks: per(repairs, 1_000_000_000),
            left_s: if last.behind == 0 { Some(0) } else { left },
        })
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

    #[test]
    fn the_time_that_repairs_take_is_told_by_their_pace_or_not_at_all() {
        let (mut rates, node, s) = (Rates::default(), NodeId(1), |s: u64| Time(s * 1_000_000));
        let beat = |repairs, behind, recovery_bytes| Heartbeat {
            node: NodeId(1),
            repairs,
            behind,
            recovery_bytes,
            ..Heartbeat::default()
        };
        rates.heard(&beat(0, 90, 0), s(0));
        assert_eq!(rates.recovery(node, s(0)), None, "one look says nothing");
        rates.heard(&beat(0, 90, 0), s(3));
        let stuck = rates.recovery(node, s(3)).unwrap();
        assert_eq!((stuck.bytes, stuck.left_s), (0, None), "nothing is repaired: nobody knows how long");
        // One in six seconds, a MiB each.
        for n in 1..20 {
            rates.heard(&beat(n, 90 - n, n << 20), s(3 + 6 * n));
        }
        let found = rates.recovery(node, s(117)).unwrap();
        assert_eq!((found.bytes, found.repairs_per_ks, found.left_s), ((1 << 20) / 6, 166, Some(71 * 6)));
        assert_eq!(rates.0[&node].recovery.len(), RECOVERY_LOOKS, "bounded");
        rates.heard(&beat(20, 0, 20 << 20), s(123));
        assert_eq!(rates.recovery(node, s(123)).unwrap().left_s, Some(0));
        assert_eq!(rates.recovery(node, s(133)), None, "it is silent");
        rates.heard(&beat(30, 9, 30 << 20), s(140));
        assert_eq!(rates.recovery(node, s(140)), None, "what was in the silence is not known");
        rates.heard(&beat(1, 9, 1 << 20), s(143));
        assert_eq!(rates.recovery(node, s(143)), None, "it was started anew");
        rates.heard(&beat(4, 6, 4 << 20), s(146));
        assert_eq!(rates.recovery(node, s(146)).unwrap().left_s, Some(6));
    }
}
