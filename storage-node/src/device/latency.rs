//! How long a device takes: counts, and a histogram of the last minute, in bounded memory.
//!
//! A disk that has become a hundred times slower is a fault like any other, only that it never says so.
//! The engines tell a [`Meter`] of each operation that has ended; the daemon asks for [`DeviceStats`]
//! now and then. Nothing is decided here.

use serde::Serialize;
use std::time::{Duration, Instant};
use trefoil_metrics::Histogram;

/// An operation that has been under way for this long counts as stalled.
pub const STALLED: Duration = Duration::from_secs(1);
/// The histogram is kept in this many windows ...
const WINDOWS: usize = 6;
/// ... of this length; the oldest is forgotten as a whole.
const WINDOW: Duration = Duration::from_secs(10);
/// Bucket `n` counts what took less than `2^n` µs, and not less than `2^(n-1)`. The last one has the rest
/// (from 67 s on).
const BUCKETS: usize = 28;

/// What one kind of operation has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpStats {
    /// Operations that have ended since the device was opened, failed ones too.
    pub ended: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Operations of the last minute: what the figures below are about.
    pub recent: u64,
    /// Their mean time, in µs.
    pub mean_us: u64,
    /// 99 % of them took at most this (to the next power of two), in µs.
    pub p99_us: u64,
    /// The slowest of them, in µs.
    pub max_us: u64,
    /// How long all of them took that have ended since the device was opened.
    #[serde(skip)]
    pub took: Histogram,
}

/// How a device is doing. Times run from when the store handed an operation over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceStats {
    /// Reads.
    pub reads: OpStats,
    /// Writes of the log and of roots.
    pub writes: OpStats,
    /// Discards and zeroing in the background. Slow ones say nothing of the device's health.
    pub prepares: OpStats,
    /// Reads and writes under way.
    pub in_flight: usize,
    /// Of these, how many for longer than [`STALLED`].
    pub stalled: usize,
    /// How long the oldest of these has been under way, in µs; 0 if there is none.
    pub oldest_in_flight_us: u64,
}

/// The kinds of operation that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Prepare,
}

#[derive(Clone, Copy, Default)]
struct Window {
    /// Which stretch of time since the meter's start this is about.
    number: u64,
    count: u64,
    sum_us: u64,
    max_us: u64,
    buckets: [u32; BUCKETS],
}

#[derive(Default)]
struct Series {
    ended: u64,
    bytes: u64,
    errors: u64,
    took: Histogram,
    windows: [Window; WINDOWS],
}

impl Series {
    fn record(&mut self, number: u64, took: Duration, bytes: u64, ok: bool) {
        self.ended += 1;
        self.bytes += if ok { bytes } else { 0 };
        self.errors += u64::from(!ok);
        let window = &mut self.windows[(number % WINDOWS as u64) as usize];
        if window.number != number {
            *window = Window { number, ..Window::default() };
        }
        let us = micros(took);
        self.took.record(us);
        window.count += 1;
        window.sum_us = window.sum_us.saturating_add(us);
        window.max_us = window.max_us.max(us);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        let count = &mut window.buckets[bucket.min(BUCKETS - 1)];
        *count = count.saturating_add(1);
    }

    fn stats(&self, number: u64) -> OpStats {
        let recent = || self.windows.iter().filter(|w| w.number + WINDOWS as u64 > number);
        let count: u64 = recent().map(|w| w.count).sum();
        let sum: u64 = recent().fold(0, |sum, w| sum.saturating_add(w.sum_us));
        let max_us = recent().map(|w| w.max_us).max().unwrap_or(0);
        let mut slower = count / 100;
        let mut p99_us = 0;
        for n in (0..BUCKETS).rev() {
            let here: u64 = recent().map(|w| u64::from(w.buckets[n])).sum();
            if here > slower {
                p99_us = if n + 1 == BUCKETS { max_us } else { (1 << n).min(max_us) };
                break;
            }
            slower -= here;
        }
        OpStats {
            ended: self.ended,
            bytes: self.bytes,
            errors: self.errors,
            recent: count,
            mean_us: sum.checked_div(count).unwrap_or(0),
            p99_us,
            max_us,
            took: self.took,
        }
    }
}

/// See the module.
pub(super) struct Meter {
    start: Instant,
    series: [Series; 3],
}

impl Meter {
    pub fn new(now: Instant) -> Meter {
        Meter { start: now, series: Default::default() }
    }

    fn window(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / WINDOW.as_secs()
    }

    /// An operation on `bytes` bytes has ended at `now` after `took`.
    pub fn ended(&mut self, now: Instant, kind: Kind, took: Duration, bytes: u64, ok: bool) {
        let number = self.window(now);
        self.series[kind as usize].record(number, took, bytes, ok);
    }

    /// `begun`: when each read and write that is under way was handed over.
    pub fn stats(&self, now: Instant, begun: impl Iterator<Item = Instant>) -> DeviceStats {
        let number = self.window(now);
        let of = |kind| self.series[kind as usize].stats(number);
        let mut stats = DeviceStats {
            reads: of(Kind::Read),
            writes: of(Kind::Write),
            prepares: of(Kind::Prepare),
            ..DeviceStats::default()
        };
        for begun in begun {
            let age = now.saturating_duration_since(begun);
            stats.in_flight += 1;
            stats.stalled += usize::from(age >= STALLED);
            stats.oldest_in_flight_us = stats.oldest_in_flight_us.max(micros(age));
        }
        stats
    }
}

/// How long the oldest operation has been under way, where that is [`STALLED`] or longer.
pub(super) fn stalled(now: Instant, begun: impl Iterator<Item = Instant>) -> Option<Duration> {
    let oldest = begun.min()?;
    let age = now.saturating_duration_since(oldest);
    (age >= STALLED).then_some(age)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_one_shows_and_is_forgotten_after_a_minute() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        for _ in 0..999 {
            meter.ended(start, Kind::Write, MS, 4096, true);
        }
        meter.ended(start, Kind::Write, 300 * MS, 4096, false);
        let stats = meter.stats(start + Duration::from_secs(49), std::iter::empty());
        let writes = stats.writes;
        assert_eq!((writes.ended, writes.recent, writes.errors), (1000, 1000, 1));
        assert_eq!((writes.max_us, writes.p99_us, writes.mean_us), (300_000, 1024, 1299));
        assert_eq!(writes.bytes, 999 * 4096);
        assert_eq!((writes.took.count(), writes.took.sum_seconds()), (1000, 1.299));
        assert_eq!(stats.reads, OpStats::default());
        let later = meter.stats(start + Duration::from_secs(60), std::iter::empty()).writes;
        assert_eq!((later.ended, later.errors), (1000, 1), "totals stay");
        assert_eq!(later.took, writes.took, "also here");
        assert_eq!((later.recent, later.max_us, later.p99_us, later.mean_us), (0, 0, 0, 0));
    }

    #[test]
    fn a_window_is_used_again_from_nothing() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.ended(start, Kind::Read, 500 * MS, 1, true);
        meter.ended(start + WINDOW * WINDOWS as u32, Kind::Read, MS, 1, true);
        let reads = meter.stats(start + WINDOW * WINDOWS as u32, std::iter::empty()).reads;
        assert_eq!((reads.recent, reads.max_us), (1, 1000));
    }

    #[test]
    fn no_duration_is_too_long_for_the_buckets() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.ended(start, Kind::Read, Duration::MAX, 1, true);
        meter.ended(start, Kind::Read, Duration::ZERO, 1, true);
        meter.ended(start, Kind::Read, Duration::from_secs(70), 1, true);
        let reads = meter.stats(start, std::iter::empty()).reads;
        assert_eq!((reads.recent, reads.max_us, reads.p99_us), (3, u64::MAX, u64::MAX));
    }

    #[test]
    fn what_is_under_way_is_seen_before_it_ends() {
        let start = Instant::now();
        let meter = Meter::new(start);
        let now = start + 5 * STALLED;
        let begun = [start, now - MS, now - STALLED];
        let stats = meter.stats(now, begun.into_iter());
        assert_eq!((stats.in_flight, stats.stalled, stats.oldest_in_flight_us), (3, 2, 5_000_000));
        assert_eq!(stalled(now, begun.into_iter()), Some(5 * STALLED));
        assert_eq!(stalled(now, [now - MS].into_iter()), None);
    }
}
