//! How long something takes: a coarse histogram of fixed size, which forgets.
//!
//! Buckets are a quarter of an octave wide, so that a quantile is right to a fifth of itself. All counts are
//! halved when there are [`WINDOW`] of them and for every [`HALF_LIFE`] that has passed: what is said is
//! about the last few hundred samples, or the last seconds. No allocation, and no clock but the `now` that
//! it is given. The quantiles are worked out once in [`EVERY`] samples; asking for them costs nothing.

use crate::ids::Time;

/// Counts are halved when there are so many.
const WINDOW: u32 = 512;
/// Counts are halved after so long (µs).
const HALF_LIFE: u64 = 2_000_000;
/// Quantiles are worked out again after so many samples.
const EVERY: u32 = 64;
/// With fewer samples than this nothing is said.
const SAMPLES_MIN: u32 = 8;
/// The first bucket ends here (µs, a power of two).
const FIRST: u64 = 16;
/// 20 octaves in quarters, behind the first bucket: the last one begins at 14 s.
const BUCKETS: usize = 1 + 4 * 20;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Latency {
    counts: [u16; BUCKETS],
    total: u32,
    /// Samples since the quantiles were worked out.
    fresh: u32,
    halved: Time,
    p50: Option<u32>,
    p99: Option<u32>,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency { counts: [0; BUCKETS], total: 0, fresh: 0, halved: Time(0), p50: None, p99: None }
    }
}

fn bucket(us: u64) -> usize {
    if us < FIRST {
        return 0;
    }
    let octave = us.ilog2();
    let quarter = us >> (octave - 2) & 3;
    ((octave - FIRST.ilog2()) as usize * 4 + quarter as usize + 1).min(BUCKETS - 1)
}

/// Where a bucket ends (µs).
fn end(bucket: usize) -> u32 {
    let Some(n) = bucket.checked_sub(1) else { return FIRST as u32 };
    let begin = (FIRST as u32) << (n / 4);
    begin + begin / 4 * (n % 4 + 1) as u32
}

impl Latency {
    /// It took so long (µs).
    pub fn record(&mut self, now: Time, us: u64) {
        if self.total > 0 && now.since(self.halved) >= HALF_LIFE {
            let times = now.since(self.halved) / HALF_LIFE;
            self.shift(times.min(15) as u32);
            self.halved = now;
        } else if self.total >= WINDOW {
            self.shift(1);
        }
        if self.total == 0 {
            self.halved = now;
        }
        self.counts[bucket(us)] += 1;
        self.total += 1;
        self.fresh += 1;
        if self.fresh >= EVERY || self.total <= SAMPLES_MIN {
            self.refresh();
        }
    }

    fn shift(&mut self, times: u32) {
        self.total = 0;
        for count in &mut self.counts {
            *count >>= times;
            self.total += u32::from(*count);
        }
    }

    fn refresh(&mut self) {
        self.fresh = 0;
        if self.total < SAMPLES_MIN {
            (self.p50, self.p99) = (None, None);
            return;
        }
        let (half, most) = (self.total.div_ceil(2), self.total - self.total / 100);
        let mut seen = 0;
        let (mut p50, mut p99) = (None, None);
        for (n, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            seen += u32::from(*count);
            if seen >= half && p50.is_none() {
                p50 = Some(end(n));
            }
            if seen >= most && p99.is_none() {
                p99 = Some(end(n));
            }
        }
        (self.p50, self.p99) = (p50, p99);
    }

    /// Nothing is known any more.
    pub fn forget(&mut self) {
        *self = Latency::default();
    }

    /// Half of them took no longer (µs); `None`: too few to say.
    pub fn p50(&self) -> Option<u32> {
        self.p50
    }

    /// All but one in a hundred took no longer (µs); `None`: too few to say.
    pub fn p99(&self) -> Option<u32> {
        self.p99
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_hold_what_they_say() {
        let mut last = 0;
        for us in (0..4_000u64).chain((4_000..20_000_000).step_by(997)) {
            let n = bucket(us);
            assert!(n == last || n == last + 1, "{us} µs is in bucket {n} behind {last}");
            last = n;
            assert!(n == BUCKETS - 1 || us < u64::from(end(n)), "{us} µs in a bucket up to {}", end(n));
            assert!(n == 0 || us >= u64::from(end(n - 1)), "{us} µs in a bucket from {}", end(n - 1));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(u64::from(end(BUCKETS - 1)) > 16_000_000);
    }

    #[test]
    fn quantiles_are_right_to_a_quarter() {
        let mut latency = Latency::default();
        assert_eq!(latency.p50(), None);
        for n in 0..400u64 {
            latency.record(Time(n), if n % 50 == 0 { 9_000 } else { 200 });
        }
        let (p50, p99) = (latency.p50().unwrap(), latency.p99().unwrap());
        assert!((200..=250).contains(&p50), "{p50}");
        assert!((9_000..=11_250).contains(&p99), "{p99}");
    }

    #[test]
    fn it_forgets_by_count_and_by_time() {
        let mut latency = Latency::default();
        for n in 0..500 {
            latency.record(Time(n), 50_000);
        }
        // By count: what comes now outweighs what was.
        for n in 500..1_200 {
            latency.record(Time(n), 100);
        }
        assert!(latency.p50().unwrap() <= 128);
        // By time: one sample in 100 ms, as of a node that is only probed.
        for n in 0..500 {
            latency.record(Time(2_000 + n), 50_000);
        }
        for n in 0..100 {
            latency.record(Time(100_000 * n), 100);
        }
        assert!(latency.p50().unwrap() <= 128, "{:?}", latency.p50());
        latency.record(Time(u64::MAX / 2), 100);
        assert_eq!(latency.p99(), None, "of long ago nothing is left, and one sample says nothing");
    }
}
