//! Latencies, in buckets that are at most 1/64 wide: percentiles without keeping every sample.
//!
//! Log-linear, as in HdrHistogram: each power of two is cut into 64 equal parts. 30 KiB, whatever the
//! number of samples; adding one allocates nothing.

use std::time::Duration;

/// Parts of each power of two.
const PARTS: u64 = 64;
const PARTS_SHIFT: u32 = PARTS.ilog2();
/// Up to 2^64 ns.
const BUCKETS: usize = (64 - PARTS_SHIFT as usize + 1) * PARTS as usize;

/// See the module.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: vec![0; BUCKETS].into(), count: 0, sum: 0, max: 0 }
    }
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < PARTS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - PARTS_SHIFT;
    // The bits below the highest choose the part.
    ((u64::from(shift) + 1) * PARTS + (nanos >> shift) - PARTS) as usize
}

/// The largest value that falls into it.
fn end_of(bucket: usize) -> u64 {
    let (row, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    match row {
        0 => part,
        _ => (((u128::from(PARTS + part) + 1) << (row - 1)) - 1) as u64,
    }
}

impl Histogram {
    /// Adds a sample.
    pub fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)] += 1;
        self.count += 1;
        self.sum += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    /// Adds all samples of another.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// Samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Their mean; zero of none.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos((self.sum / u128::from(self.count.max(1))) as u64)
    }

    /// A value that this part (0 to 1) of the samples does not exceed; at most 1/64 too large.
    pub fn percentile(&self, part: f64) -> Duration {
        let wanted = ((self.count as f64 * part).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                return Duration::from_nanos(end_of(bucket).min(self.max));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_without_gaps_up_to_the_largest_number() {
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(end_of(bucket)), bucket);
            assert_eq!(bucket_of(end_of(bucket) + 1), bucket + 1);
        }
        assert_eq!((bucket_of(u64::MAX), end_of(BUCKETS - 1)), (BUCKETS - 1, u64::MAX));
    }

    #[test]
    fn percentiles_are_at_most_a_sixty_fourth_too_large() {
        let mut all = Histogram::default();
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        for n in 1..=10_000u64 {
            all.add(Duration::from_micros(n));
            if n <= 5000 { &mut low } else { &mut high }.add(Duration::from_micros(n));
        }
        low.merge(&high);
        for h in [&all, &low] {
            for part in [0.001, 0.5, 0.99, 0.999] {
                let (exact, is) = (part * 1e7, h.percentile(part).as_nanos() as f64);
                assert!(is >= exact && is <= exact * (1.0 + 1.0 / 64.0), "{part}: {is}");
            }
            assert_eq!((h.count(), h.max()), (10_000, Duration::from_millis(10)));
            assert_eq!(h.percentile(1.0), h.max());
            assert_eq!(h.mean(), Duration::from_nanos(5_000_500));
        }
        assert_eq!(Histogram::default().percentile(0.5), Duration::ZERO);
    }
}
