//! The memory of a batch: what a vectored write to the device is given.
//!
//! Parts follow each other: chunks from the pool that small things are copied into, and large payloads that
//! stay where the connection has read them to. No I/O, and nothing about what the bytes mean.

use crate::device::WRITE_BUFS_MAX;
use crate::device::buffer::{ALIGN, Buf, Pool};
use bytes::Bytes;
use trefoil_core::BLOCK_SIZE;

/// Blocks in one chunk.
pub const CHUNK_BLOCKS: u32 = 64;
const CHUNK_BYTES: usize = CHUNK_BLOCKS as usize * BLOCK_SIZE;
/// Copying less than this is cheaper than a part of its own.
const SHARED_BYTES_MIN: usize = 32 << 10;

/// True if a payload may be a part of its own: large, and as direct I/O wants it.
pub fn can_share(bytes: &Bytes) -> bool {
    bytes.len() >= SHARED_BYTES_MIN
        && bytes.len().is_multiple_of(BLOCK_SIZE)
        && (bytes.as_ptr() as usize).is_multiple_of(ALIGN)
}

/// The block that begins at byte `at` of `parts`, each a multiple of a block long.
pub fn block_at<'a>(parts: impl Iterator<Item = &'a [u8]>, mut at: usize) -> Option<&'a [u8]> {
    for part in parts {
        if at < part.len() {
            return part.get(at..at + BLOCK_SIZE);
        }
        at -= part.len();
    }
    None
}

enum Part {
    /// A chunk, and how many bytes of it are used.
    Own(Buf, usize),
    Shared(Bytes),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Own(chunk, used) => &chunk[..*used],
            Part::Shared(bytes) => bytes,
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Memory {
    parts: Vec<Part>,
}

impl Memory {
    /// Room for the header, if nothing is there yet.
    pub fn begin(&mut self, pool: &Pool, header_blocks: u32) {
        let mut left = if self.parts.is_empty() { header_blocks as usize * BLOCK_SIZE } else { 0 };
        while left > 0 {
            let Some(room) = self.room(pool) else { return };
            let n = left.min(room.len());
            self.used(n);
            left -= n;
        }
    }

    /// Copies whole blocks behind what is there.
    pub fn copy(&mut self, pool: &Pool, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(room) = self.room(pool) else { return };
            let n = bytes.len().min(room.len());
            room[..n].copy_from_slice(&bytes[..n]);
            self.used(n);
            bytes = &bytes[n..];
        }
    }

    /// True when there are so many parts that what comes next must be copied. The batch's limits leave room
    /// for what is copied behind.
    pub fn is_crowded(&self) -> bool {
        self.parts.len() >= WRITE_BUFS_MAX / 2
    }

    /// Puts `bytes` behind what is there, as they are: see [`can_share`].
    pub fn share(&mut self, bytes: Bytes) {
        debug_assert!(can_share(&bytes) && self.parts.len() < WRITE_BUFS_MAX);
        self.parts.push(Part::Shared(bytes));
    }

    /// What is left of the last chunk, or a new one. None only where the pool refuses: that of batches has
    /// no bound of its own, the store's limit on pending bytes is it.
    fn room(&mut self, pool: &Pool) -> Option<&mut [u8]> {
        let full = match self.parts.last() {
            Some(Part::Own(chunk, used)) => *used == chunk.len(),
            _ => true,
        };
        if full {
            self.parts.push(Part::Own(pool.get(CHUNK_BYTES)?, 0));
        }
        match self.parts.last_mut() {
            Some(Part::Own(chunk, used)) => Some(&mut chunk[*used..]),
            _ => None,
        }
    }

    fn used(&mut self, bytes: usize) {
        if let Some(Part::Own(_, used)) = self.parts.last_mut() {
            *used += bytes;
        }
    }

    /// What is there, in order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(Part::bytes)
    }

    /// The first blocks, where they lie in one piece.
    pub fn front(&mut self, blocks: u32) -> Option<&mut [u8]> {
        match self.parts.first_mut() {
            Some(Part::Own(chunk, used)) => chunk[..*used].get_mut(..blocks as usize * BLOCK_SIZE),
            _ => None,
        }
    }

    /// Writes over the first bytes, which are in chunks.
    pub fn overwrite(&mut self, mut bytes: &[u8]) {
        for part in &mut self.parts {
            let Part::Own(chunk, used) = part else { return };
            let n = bytes.len().min(*used);
            chunk[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    /// For the device.
    pub fn freeze(self) -> Vec<Bytes> {
        let freeze = |part| match part {
            Part::Own(mut chunk, used) => {
                Buf::truncate(&mut chunk, used);
                chunk.freeze()
            }
            Part::Shared(bytes) => bytes,
        };
        self.parts.into_iter().map(freeze).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_and_what_is_shared_follow_each_other() {
        let pool = Pool::new(u64::MAX, 0, None);
        let mut large = pool.get(SHARED_BYTES_MIN).expect("room");
        large.fill(9);
        let large = large.freeze();
        assert!(can_share(&large) && !can_share(&large.slice(1..)) && !can_share(&large.slice(..BLOCK_SIZE)));
        let mut memory = Memory::default();
        memory.begin(&pool, 2);
        memory.begin(&pool, 2);
        memory.copy(&pool, &[1; BLOCK_SIZE]);
        memory.share(large.clone());
        memory.copy(&pool, &[2; CHUNK_BYTES + BLOCK_SIZE]);
        memory.front(2).expect("in one piece").fill(5);
        assert!(memory.front(4).is_none());
        let block = |at: usize| block_at(memory.parts(), at * BLOCK_SIZE).map(|bytes| bytes[0]);
        let shared = SHARED_BYTES_MIN / BLOCK_SIZE;
        let found = [0, 1, 2, 3, 2 + shared, 3 + shared, 3 + shared + CHUNK_BLOCKS as usize].map(block);
        assert_eq!(found, [5, 5, 1, 9, 9, 2, 2].map(Some));
        assert_eq!(block(4 + shared + CHUNK_BLOCKS as usize), None);
        let bufs = memory.freeze();
        assert_eq!(
            bufs.iter().map(Bytes::len).collect::<Vec<_>>(),
            [3 * BLOCK_SIZE, SHARED_BYTES_MIN, CHUNK_BYTES, BLOCK_SIZE]
        );
        assert_eq!(bufs[1].as_ptr(), large.as_ptr());
        assert!(bufs.iter().all(|part| (part.as_ptr() as usize).is_multiple_of(ALIGN)));
    }

    #[test]
    fn a_header_of_several_chunks_is_written_over_in_pieces() {
        let pool = Pool::new(u64::MAX, 0, None);
        let mut memory = Memory::default();
        memory.begin(&pool, CHUNK_BLOCKS + 1);
        assert!(memory.front(CHUNK_BLOCKS + 1).is_none());
        memory.overwrite(&[3; CHUNK_BYTES + BLOCK_SIZE]);
        assert!(memory.parts().all(|part| part.iter().all(|byte| *byte == 3)));
    }
}
