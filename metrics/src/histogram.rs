//! How long things took, counted in octaves: for hot paths, where recording must cost next to nothing.
//!
//! Recording is one shift, two additions and one increment of an array: no allocation, no lock, no float.
//! A count is never forgotten while the process lives; Prometheus takes differences. Quantiles worked out of
//! it are right to a factor of two at worst, which tells a slow disk from a quick one and an SSD from a disk;
//! fewer buckets are fewer series, of which each volume has four times as many.

/// Bucket 0 counts what took at most this, in µs.
const FIRST_US: u64 = 16;
/// Octaves that have a bucket. The last ends at 16.8 s; what is behind it is in `+Inf` only.
const OCTAVES: usize = 21;

/// See the module. Times are in µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// One more than the octaves: what took longer.
    counts: [u64; OCTAVES + 1],
    sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; OCTAVES + 1], sum_us: 0 }
    }
}

fn bucket(us: u64) -> usize {
    // Upper ends belong to their bucket, as Prometheus' `le` wants it.
    let above = us.saturating_sub(1) / FIRST_US;
    ((u64::BITS - above.leading_zeros()) as usize).min(OCTAVES)
}

impl Histogram {
    /// One more, which took so long.
    #[inline]
    pub fn record(&mut self, us: u64) {
        self.counts[bucket(us)] += 1;
        self.sum_us = self.sum_us.wrapping_add(us);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What they took together, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// For each bucket its upper end in µs (included), and how many took no longer. What is missing from
    /// [`Histogram::count`] took longer than all of them.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut seen = 0;
        self.counts[..OCTAVES].iter().enumerate().map(move |(n, count)| {
            seen += count;
            (FIRST_US << n, seen)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_that_does_not_end_before_it() {
        for us in (0..100_000).chain([1 << 24, (1 << 24) + 1, u64::MAX]) {
            let mut histogram = Histogram::default();
            histogram.record(us);
            let ends = histogram.cumulative().find(|(_, seen)| *seen > 0).map(|(end, _)| end);
            let expected = (0..OCTAVES).map(|n| FIRST_US << n).find(|end| us <= *end);
            assert_eq!(ends, expected, "{us} µs");
            assert_eq!(histogram.count(), 1);
        }
    }

    #[test]
    fn counts_are_cumulative_and_the_sum_is_exact() {
        let mut histogram = Histogram::default();
        for us in [1, 16, 17, 1000, 60_000_000] {
            histogram.record(us);
        }
        let seen: Vec<u64> = histogram.cumulative().map(|(_, seen)| seen).collect();
        assert!(seen.is_sorted());
        assert_eq!((seen[0], seen[1], seen[OCTAVES - 1], histogram.count()), (2, 3, 4, 5));
        assert_eq!(histogram.sum_seconds(), 60.001034);
    }
}
