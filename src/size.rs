//! Sizes as people write and read them.
//!
//! `8G` is 2^33 bytes as in QEMU, fio and the LVM tools; `8GB` is 8 * 10^9. Written sizes are exact or
//! refused: nothing is rounded on the way in.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub u64);

const USAGE: &str = "give bytes, or a number with K, M, G or T (powers of 1024; KB, MB, GB, TB are powers \
                     of 1000), such as 512M, 8GiB or 1.5T";

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(format!("{text:?} is no size: {USAGE}")),
        };
        let wrong = || format!("{text:?} is no size: {USAGE}");
        let too_large = || format!("{text:?} is too large: the limit is 16 EiB");
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 9 {
            return Err(wrong());
        }
        // A number of digits only, so what can go wrong is its length.
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let scale = 10u128.pow(fraction.len() as u32);
        let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| wrong())? };
        let bytes = u128::from(whole) * u128::from(unit) * scale + part * u128::from(unit);
        if !bytes.is_multiple_of(scale) {
            return Err(format!("{text:?} is not a whole number of bytes"));
        }
        u64::try_from(bytes / scale).map(Size).map_err(|_| too_large())
    }
}

impl fmt::Display for Size {
    /// In the largest binary unit that gives at least 1: exact where it is exact, else one decimal place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let power = if self.0 == 0 { 0 } else { (self.0.ilog2() / 10) as usize };
        let unit = 1u64 << (10 * power);
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        let text = if rest == 0 {
            format!("{whole} {}", UNITS[power])
        } else {
            // Cut off, not rounded: what is shown as free is there.
            let tenths = u128::from(rest) * 10 / u128::from(unit);
            format!("{whole}.{tenths} {}", UNITS[power])
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<u64, String> {
        text.parse::<Size>().map(|size| size.0)
    }

    #[test]
    fn sizes_are_read_exactly() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("1.5T", 3 << 39),
            ("2GB", 2_000_000_000),
            ("1.000000001GB", 1_000_000_001),
        ] {
            assert_eq!(parsed(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", ".5G", "1.G", "1..5G", "-1", "1e9", "8Gi", "8X", "١G"] {
            assert!(parsed(text).unwrap_err().contains("is no size"), "{text}");
        }
        assert!(parsed("0.3K").unwrap_err().contains("not a whole number"));
        assert!(parsed("99999999999T").unwrap_err().contains("too large"));
        assert!(parsed("99999999999999999999").unwrap_err().contains("too large"));
    }

    #[test]
    fn sizes_are_shown_without_rounding_up() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (8 << 30, "8 GiB"),
            ((8 << 30) - 1, "7.9 GiB"),
            (1536, "1.5 KiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>8}", Size(1024)), "   1 KiB");
    }
}
