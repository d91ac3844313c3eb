//! The random numbers of a run: xoshiro256++ (Blackman, Vigna 2019), seeded through splitmix64.
//!
//! Ours and not a library's, so that a seed means the same run for as long as this file stays as it is.

/// A generator. Cloning it forks the sequence; do not.
#[derive(Debug)]
pub struct Rng {
    s: [u64; 4],
}

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Rng {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Rng { s: [next(), next(), next(), next()] }
    }

    /// 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.s;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `n`; 0 for `n == 0`.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// An index below `n`; 0 for `n == 0`.
    #[inline]
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// A number in `low..=high`.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True once in `n` times.
    #[inline]
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// True `percent` times in a hundred.
    #[inline]
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A number in `low..=high` whose order of magnitude is drawn first: small ones are as likely as
    /// large ones.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let low = low.max(1);
        let span = (high.max(low) as f64 / low as f64).ln();
        let part = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        ((low as f64 * (span * part).exp()) as u64).clamp(low, high.max(low))
    }

    /// One of `weights`' indexes, each as often as its weight says; `None` if all are 0.
    pub fn weighted(&mut self, weights: &[u32]) -> Option<usize> {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.below(total);
        for (index, weight) in weights.iter().enumerate() {
            match at.checked_sub(u64::from(*weight)) {
                None => return Some(index),
                Some(rest) => at = rest,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let draw = |seed| {
            let mut r = Rng::new(seed);
            [r.bits(), r.below(10), r.magnitude(1, 1000)]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn ranges_hold_their_ends() {
        let mut r = Rng::new(3);
        let mut seen = [false; 3];
        for _ in 0..200 {
            seen[(r.between(5, 7) - 5) as usize] = true;
            assert!((2..=900).contains(&r.magnitude(2, 900)));
            assert_eq!(r.weighted(&[0, 3, 0]), Some(1));
        }
        assert_eq!(seen, [true; 3]);
        assert_eq!(r.weighted(&[0, 0]), None);
        assert_eq!(r.below(0), 0);
    }
}
