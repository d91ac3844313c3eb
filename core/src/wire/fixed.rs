//! The fixed part of a header or message that travels with each I/O: laid out in place, appended in one
//! piece. Each append to a buffer has to look whether it has room, and is a call.
//!
//! Everything is inlined by force: left to the compiler, it depends on unrelated code whether ten stores
//! are ten stores or ten calls. Knows no message and no limit.

use crate::ids::*;
use bytes::BytesMut;

/// `N` bytes, little-endian, filled from the front.
pub(super) struct Fixed<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Fixed<N> {
    /// Nothing in it yet.
    #[inline(always)]
    pub(super) fn new() -> Fixed<N> {
        Fixed { bytes: [0; N], len: 0 }
    }
    /// What it holds at the end: exactly `N` bytes.
    #[inline(always)]
    pub(super) fn bytes(self) -> [u8; N] {
        debug_assert_eq!(self.len, N);
        self.bytes
    }
    /// The same, to the end of a buffer.
    #[inline(always)]
    pub(super) fn append_to(self, out: &mut BytesMut) {
        out.extend_from_slice(&self.bytes());
    }
    /// Bytes as they are. What does not fit is a mistake in the caller's `N`, which every test sees.
    #[inline(always)]
    pub(super) fn raw<const M: usize>(mut self, bytes: [u8; M]) -> Fixed<N> {
        let place = self.bytes[self.len..].first_chunk_mut::<M>();
        debug_assert!(place.is_some());
        if let Some(place) = place {
            *place = bytes;
        }
        self.len += M;
        self
    }
    #[inline(always)]
    pub(super) fn u16(self, value: u16) -> Fixed<N> {
        self.raw(value.to_le_bytes())
    }
    #[inline(always)]
    pub(super) fn u32(self, value: u32) -> Fixed<N> {
        self.raw(value.to_le_bytes())
    }
    #[inline(always)]
    pub(super) fn u64(self, value: u64) -> Fixed<N> {
        self.raw(value.to_le_bytes())
    }
    #[inline(always)]
    pub(super) fn group(self, group: &GroupId) -> Fixed<N> {
        self.u64(group.volume.0).u32(group.pg.pool.0).u32(group.pg.pg)
    }
    #[inline(always)]
    pub(super) fn object(self, object: &ObjectId) -> Fixed<N> {
        self.group(&object.group).u32(object.index)
    }
    #[inline(always)]
    pub(super) fn blocks(self, blocks: BlockRange) -> Fixed<N> {
        self.u32(blocks.first).u32(blocks.count)
    }
}
