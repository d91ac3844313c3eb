//! CRUSH's fixed-point logarithm, which turns a 16-bit hash into a straw's length.
//!
//! Integers only, so that every machine draws the same straws. It may not be replaced by a more
//! exact one: see `ln_table`.

use super::ln_table::{LOG2_HIGH, LOG2_LOW, RECIPROCAL};

/// What [`crush_ln`] gives for the greatest draw but for a rounding error: 2^44 * log2(2^16).
pub(super) const LN_MAX: u64 = 0x1_0000_0000_0000;

/// About 2^44 * log2(`draw` + 1).
#[inline]
pub(super) fn crush_ln(draw: u16) -> u64 {
    // Normalised to 1.15 fixed point: 2^15 <= x <= 2^16.
    let mut x = u32::from(draw) + 1;
    let mut exponent = 15u64;
    if x & 0x1_8000 == 0 {
        let shift = (x & 0x1_ffff).leading_zeros() - 16;
        x <<= shift;
        exponent = 15 - u64::from(shift);
    }
    // 128 <= x >> 8 <= 256: the logarithm of the upper bits from one table, and of what is left
    // after dividing by them from the other.
    let high = ((x >> 8) - 128) as usize;
    let rest = (u64::from(x) * RECIPROCAL[high]) >> 48;
    let fraction = (LOG2_HIGH[high] + LOG2_LOW[(rest & 0xff) as usize]) >> 4;
    (exponent << 44) + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A straw2 bucket leaves out what cannot win, which rests on this.
    #[test]
    fn the_logarithm_falls_once_at_its_end() {
        for draw in 1..u16::MAX {
            assert!(crush_ln(draw) >= crush_ln(draw - 1), "draw {draw}");
        }
        assert!(crush_ln(u16::MAX) < crush_ln(u16::MAX - 1), "a quirk of Ceph's tables");
        assert!(crush_ln(u16::MAX) >= crush_ln(u16::MAX - 2));
    }

    /// The formula of the first table has no quirks, so a slip in it shows here.
    #[test]
    fn reciprocals_follow_their_formula() {
        for (k, &entry) in RECIPROCAL.iter().enumerate() {
            assert_eq!(entry, (1u64 << 55).div_ceil(128 + k as u64), "entry {k}");
        }
    }

    /// Floating point is good to about 2^-50 here: enough to catch a wrong digit, not a wrong
    /// last bit, which the checksum below pins.
    #[test]
    fn logarithms_are_near_their_formula() {
        for (k, &entry) in LOG2_HIGH.iter().enumerate().take(128) {
            let exact = (1.0 + k as f64 / 128.0).log2() * 2f64.powi(48);
            assert!((entry as f64 - exact).abs() < 4.0, "high entry {k}");
        }
        assert_eq!(LOG2_HIGH[128], (1 << 48) - (1 << 32), "the known quirk");
        for (k, &entry) in LOG2_LOW.iter().enumerate() {
            let exact = (1.0 + k as f64 / 32768.0).log2() * 2f64.powi(48);
            let error = (entry as f64 - exact).abs() / 2f64.powi(48);
            assert!(error < 1e-4, "low entry {k}: off by {error}");
        }
    }

    /// Every draw's logarithm at once, as a checksum: any changed bit of any table shows.
    #[test]
    fn logarithms_never_change() {
        let sum = (0..=u16::MAX)
            .fold(0xcbf2_9ce4_8422_2325u64, |sum, draw| (sum ^ crush_ln(draw)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(sum, CHECKSUM_OF_ALL_LOGARITHMS);
        assert!((0..=u16::MAX).all(|draw| crush_ln(draw) <= LN_MAX));
    }

    const CHECKSUM_OF_ALL_LOGARITHMS: u64 = 7_303_404_993_660_392_677;
}
