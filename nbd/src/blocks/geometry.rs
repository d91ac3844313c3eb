//! Where bytes are: from an offset in a volume to blocks of an object.

use trefoil_core::ids::{BLOCK_SIZE, BlockRange, ObjectIndex, VolumeId};
use trefoil_core::limits::{OBJECT_SIZE_MAX, OBJECT_SIZE_MIN};

/// Bytes in a block.
pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;

/// The shape of a volume.
#[derive(Copy, Clone, Debug)]
pub(super) struct Geometry {
    pub volume: VolumeId,
    pub size_bytes: u64,
    pub object_size: u64,
}

/// Consecutive blocks of one object, and the part of a request's bytes that lies in them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub object: ObjectIndex,
    pub blocks: BlockRange,
    /// First byte behind it, at most the end that was asked for.
    pub end: u64,
}

impl Geometry {
    pub fn is_possible(&self) -> bool {
        let size = self.object_size;
        let objects = self.size_bytes.div_ceil(size.max(1));
        size.is_power_of_two()
            && (OBJECT_SIZE_MIN..=OBJECT_SIZE_MAX).contains(&size)
            && objects <= u64::from(u32::MAX)
    }

    /// The blocks from the one that holds byte `start`, up to the one that holds the byte before
    /// `end`, the object's end, or `blocks_max` of them.
    pub fn span(&self, start: u64, end: u64, blocks_max: u32) -> Span {
        debug_assert!(start < end && blocks_max > 0);
        let object = start / self.object_size;
        let object_start = object * self.object_size;
        let first = (start - object_start) / BLOCK;
        let limit = (object_start + self.object_size)
            .min(object_start + (first + u64::from(blocks_max)) * BLOCK)
            .min(end);
        let last = (limit - object_start).div_ceil(BLOCK);
        let blocks = BlockRange::new(first as u32, (last - first) as u32);
        Span { object: object as u32, blocks, end: limit }
    }

    /// `end`, or, where that is the end of the volume, the end of its last block: nobody can tell the
    /// bytes behind the end of the volume from zeros.
    pub fn round_up_at_end(&self, end: u64) -> u64 {
        if end == self.size_bytes { end.next_multiple_of(BLOCK) } else { end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_ends_at_its_object_its_limit_and_its_end() {
        let g = Geometry { volume: VolumeId(1), size_bytes: 1 << 30, object_size: 4 << 20 };
        let span = |start, end, max| g.span(start, end, max);
        let object_end = span((4 << 20) - 10, (4 << 20) + 10, 256);
        assert_eq!(object_end, Span { object: 0, blocks: BlockRange::new(1023, 1), end: 4 << 20 });
        let limited = span(100, 1 << 22, 256);
        assert_eq!(limited, Span { object: 0, blocks: BlockRange::new(0, 256), end: 1 << 20 });
        let small = span((4 << 20) + 5000, (4 << 20) + 5001, 256);
        assert_eq!(small.blocks, BlockRange::new(1, 1));
        assert_eq!((small.object, small.end), (1, (4 << 20) + 5001));
    }
}
