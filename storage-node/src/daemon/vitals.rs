//! How the device does, from counters that only grow: the mean of the last seconds is what shows that it
//! has become slow.

use super::storage::DeviceCounters;
use std::collections::VecDeque;
use trefoil_monitor::rpc::DeviceHealth;

/// Heartbeats that a mean is of.
const WINDOW: usize = 10;

/// The counters at the last [`WINDOW`] heartbeats.
#[derive(Debug, Default)]
pub struct Vitals(VecDeque<DeviceCounters>);

impl Vitals {
    /// To be called once for each heartbeat.
    pub fn beat(&mut self, now: DeviceCounters) -> DeviceHealth {
        let before = self.0.front().copied().unwrap_or_default();
        self.0.push_back(now);
        if self.0.len() > WINDOW {
            self.0.pop_front();
        }
        let reads = now.reads.saturating_sub(before.reads);
        let writes = now.writes.saturating_sub(before.writes);
        let mean =
            |sum: u64, before: u64, count: u64| sum.saturating_sub(before).checked_div(count).unwrap_or(0);
        DeviceHealth {
            reads,
            read_us: mean(now.reads_us, before.reads_us, reads),
            writes,
            write_us: mean(now.writes_us, before.writes_us, writes),
            oldest_us: now.oldest_us,
            errors: now.errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_of_the_last_seconds() {
        let mut vitals = Vitals::default();
        let mut counters = DeviceCounters::default();
        for _ in 0..100 {
            counters.writes += 10;
            counters.writes_us += 10 * 200;
            let health = vitals.beat(counters);
            assert_eq!((health.write_us, health.read_us, health.reads), (200, 0, 0));
        }
        for beat in 0..WINDOW {
            counters.writes += 10;
            counters.writes_us += 10 * 20_000;
            let health = vitals.beat(counters);
            assert_eq!(health.writes, 10 * WINDOW as u64);
            assert!(health.write_us > 200 + 1900 * beat as u64);
        }
        assert_eq!(vitals.beat(counters).write_us, 20_000, "what was before is forgotten");
        for _ in 0..WINDOW {
            vitals.beat(counters);
        }
        assert_eq!(vitals.beat(counters), DeviceHealth::default(), "nothing was done");
    }
}
