//! Memory for large payloads, aligned as direct I/O wants it: what comes off the wire can be written to
//! a device from where it lies.
//!
//! Used again through a pool that all connections of the process share. It bounds what is kept, not what
//! is out: that is bounded where payloads are held.

use bytes::Bytes;
use std::sync::{Mutex, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Alignment, and the unit of sizes.
const PAGE: usize = 4096;
/// Sizes are multiples of so many pages.
const SIZE_PAGES: usize = 4;
/// Bytes that wait to be used again: within what the smallest `memory_bytes` of a node leaves for connections.
const KEPT_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Buffers that wait, of any sizes.
static POOL: Mutex<Vec<Vec<Page>>> = Mutex::new(Vec::new());

/// A buffer that is being filled.
pub(crate) struct Aligned {
    pages: Vec<Page>,
    len: usize,
    filled: usize,
}

impl Aligned {
    /// Room for `len` bytes.
    pub(crate) fn new(len: usize) -> Aligned {
        // Few sizes, so that one buffer is of use to many; near the payload's own, since that is what the
        // limits on what is pending count.
        let pages = len.div_ceil(PAGE).next_multiple_of(SIZE_PAGES);
        let kept = {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            pool.iter().rposition(|kept| kept.len() == pages).map(|at| pool.swap_remove(at))
        };
        let pages = kept.unwrap_or_else(|| vec![Page([0; PAGE]); pages]);
        Aligned { pages, len, filled: 0 }
    }

    /// The part that is not filled yet.
    pub(crate) fn rest(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[self.filled..self.len]
    }

    /// So many bytes of it have been filled.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.filled = self.len.min(self.filled + bytes);
    }

    /// True when nothing is missing.
    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.len
    }

    /// Shared and immutable from here on; the memory goes back to the pool with the last handle.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        // What was used last is at the end and is taken first; it is in the cache. The oldest make way.
        let mut kept = pool.iter().map(Vec::len).sum::<usize>() + pages.len();
        while kept * PAGE > KEPT_BYTES_MAX && !pool.is_empty() {
            kept -= pool.remove(0).len();
        }
        if kept * PAGE <= KEPT_BYTES_MAX {
            pool.push(pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_lies_aligned_and_its_memory_is_used_again() {
        let mut buffer = Aligned::new(3 * PAGE + 1);
        assert_eq!(buffer.rest().len(), 3 * PAGE + 1);
        buffer.rest()[..5].copy_from_slice(b"hello");
        buffer.advance(5);
        assert!(!buffer.is_full());
        let left = buffer.rest().len();
        buffer.advance(left);
        assert!(buffer.is_full());
        let bytes = buffer.freeze();
        assert_eq!((bytes.as_ptr() as usize % PAGE, bytes.len()), (0, 3 * PAGE + 1));
        assert_eq!(&bytes[..5], b"hello");
        drop(bytes);
        // However much is dropped, no more than the limit is kept.
        let many: Vec<Aligned> = (0..KEPT_BYTES_MAX / (1 << 20) + 5).map(|_| Aligned::new(1 << 20)).collect();
        drop(many);
        let kept = POOL.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Vec::len).sum::<usize>();
        assert!(kept * PAGE <= KEPT_BYTES_MAX);
    }
}
