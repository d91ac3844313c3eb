//! What waits to be sent to a client: small headers, collected, and payloads that are never copied.
//!
//! Headers are written to one growing buffer; a payload ends the current piece of it. What results is
//! a queue of segments for one vectored write. Not bounded here: [`super::Session`] looks at
//! [`Outbox::len`] before it takes the next request.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Headers are collected in buffers of this size; a full one is replaced, and its memory comes back
/// when its last segment has been sent.
const HEADERS_BYTES: usize = 16 << 10;

/// Payloads up to this size are copied behind their header: cheaper than a segment of their own.
const INLINE_BYTES_MAX: usize = 256;

/// A queue of bytes to be sent.
#[derive(Debug, Default)]
pub struct Outbox {
    segments: VecDeque<Bytes>,
    headers: BytesMut,
    len: u64,
}

impl Outbox {
    /// Bytes that wait.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// True where nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Appends bytes by copying them, as is right for headers; it counts as waiting.
    pub(super) fn header(&mut self, bytes: &[u8]) {
        if self.headers.capacity() - self.headers.len() < bytes.len() {
            self.seal();
            self.headers.reserve(HEADERS_BYTES.max(bytes.len()));
        }
        self.headers.put_slice(bytes);
        self.len += bytes.len() as u64;
    }
    /// Appends a payload without copying it (or, where it is tiny, with).
    pub(super) fn payload(&mut self, data: Bytes) {
        if data.len() <= INLINE_BYTES_MAX {
            return self.header(&data);
        }
        self.seal();
        self.len += data.len() as u64;
        self.segments.push_back(data);
    }
    fn seal(&mut self) {
        if !self.headers.is_empty() {
            self.segments.push_back(self.headers.split().freeze());
        }
    }
    /// Fills `slices` with what is to be sent next, in order; says how many were filled.
    pub fn fill<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.seal();
        let mut filled = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = IoSlice::new(segment);
            filled += 1;
        }
        filled
    }
    /// `n` bytes have been sent.
    pub fn sent(&mut self, mut n: usize) {
        debug_assert!(n as u64 <= self.len);
        self.len = self.len.saturating_sub(n as u64);
        while let Some(front) = self.segments.front_mut() {
            if n < front.len() {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.segments.pop_front();
        }
    }
    /// Takes everything, for tests and tools that have no socket.
    pub fn take(&mut self) -> Vec<u8> {
        self.seal();
        self.len = 0;
        self.segments.drain(..).flatten().collect()
    }
}
