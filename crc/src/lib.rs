//! The two CRCs that Trefoil's bytes carry: CRC-32C over headers of messages, CRC-64/NVME over what is stored.
//!
//! The work is `crc-fast`'s. Its code is compiled in the crate that calls it, once for each, and how well depends on
//! how that crate happens to be cut into units: without link-time optimization a MiB took 360,000 to 1,200,000
//! instructions. So it is called from here alone: one crate, of one unit in every profile (see the workspace's
//! manifest), and no function that is inlined elsewhere.
//!
//! Nothing here knows what the bytes are.

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// CRC-32C (Castagnoli; iSCSI, RFC 3720).
#[inline(never)]
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-64/NVME (NVM Command Set Specification 1.0, 64b CRC).
#[inline(never)]
pub fn crc64(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// [`crc64`] of bytes that come in pieces.
#[derive(Debug)]
pub struct Crc64(Digest);

impl Default for Crc64 {
    fn default() -> Crc64 {
        Crc64(Digest::new(CrcAlgorithm::Crc64Nvme))
    }
}

impl Crc64 {
    /// The next bytes.
    #[inline(never)]
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum of all of them.
    #[inline(never)]
    pub fn finish(self) -> u64 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_that_the_specifications_give() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn in_pieces_as_in_one() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| ((n * n) >> 3) as u8).collect();
        for at in [0, 1, 7, 64, 4096, 9_999] {
            let mut sum = Crc64::default();
            sum.update(&bytes[..at]);
            sum.update(&bytes[at..]);
            assert_eq!(sum.finish(), crc64(&bytes), "cut at {at}");
        }
    }
}
