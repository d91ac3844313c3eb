//! The checksum of a block: 64 bits over its bytes and over what the block is.
//!
//! CRC-64/NVME of the 4096 bytes, xored with a hash of (volume, object, block number), so that a block
//! that a device returns from another place does not match although its bytes are intact. The front
//! end computes it once; it travels and rests with the block, and is checked wherever the block has
//! crossed a wire or a device. 0 is never the checksum of a block: it stands for a hole.

use crate::ids::{ObjectIndex, VolumeId};
use trefoil_crc::crc64;

/// The value that stands for a hole: a block that was never written, or was trimmed. It reads as zeros.
pub const HOLE: u64 = 0;

/// The value that stands for a block of whose checksum nothing is known any more: its table was damaged.
/// It has no good bytes until it is written or repaired. Never the checksum of a block.
pub const UNKNOWN: u64 = u64::MAX;

/// Finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The checksum of `data`, which is block `block` of object `object` of `volume`.
pub fn block_checksum(volume: VolumeId, object: ObjectIndex, block: u32, data: &[u8]) -> u64 {
    let place = mix(volume.0 ^ mix(u64::from(object) << 32 | u64::from(block)));
    match crc64(data) ^ place {
        HOLE | UNKNOWN => 1,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_elsewhere_have_another_checksum() {
        let data = [7u8; 4096];
        let here = block_checksum(VolumeId(1), 2, 3, &data);
        assert_ne!(here, block_checksum(VolumeId(2), 2, 3, &data));
        assert_ne!(here, block_checksum(VolumeId(1), 3, 3, &data));
        assert_ne!(here, block_checksum(VolumeId(1), 2, 4, &data));
        assert_eq!(here, block_checksum(VolumeId(1), 2, 3, &data));
    }

    #[test]
    fn golden_value() {
        // Frozen: stored blocks carry it.
        assert_eq!(block_checksum(VolumeId(1), 2, 3, &[7u8; 4096]), 17116262374082137695);
    }
}
