//! Replies of the transmission phase.
//!
//! Once structured replies are negotiated every READ is answered by one, errors too; without them
//! never. Other successes go as simple replies, which are shorter and allowed either way; other errors
//! as structured ones, because these can say why.

use super::handshake::cut;
use super::limits::ZEROS_BYTES;
use super::outbox::Outbox;
use super::transmission::Header;
use super::wire::{self, cflag, chunk, cmd, errno};
use crate::disk::{Chunk, Chunks, DiskError, Extent};
use bytes::Bytes;

static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// Writes the replies of one connection.
pub(super) struct Replies<'a> {
    pub out: &'a mut Outbox,
    pub structured: bool,
}

impl Replies<'_> {
    fn simple(&mut self, cookie: u64, error: u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&wire::MAGIC_SIMPLE_REPLY.to_be_bytes());
        header[4..8].copy_from_slice(&error.to_be_bytes());
        header[8..].copy_from_slice(&cookie.to_be_bytes());
        self.out.header(&header);
    }

    fn chunk(&mut self, cookie: u64, kind: u16, done: bool, len: u32) {
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        let mut header = [0; 20];
        header[..4].copy_from_slice(&wire::MAGIC_STRUCTURED_REPLY.to_be_bytes());
        header[4..6].copy_from_slice(&flags.to_be_bytes());
        header[6..8].copy_from_slice(&kind.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..].copy_from_slice(&len.to_be_bytes());
        self.out.header(&header);
    }

    fn zeros(&mut self, len: u64) {
        let mut left = len;
        while left > 0 {
            let part = left.min(ZEROS_BYTES as u64);
            self.out.payload(Bytes::from_static(&ZEROS[..part as usize]));
            left -= part;
        }
    }

    /// An error with its reason.
    pub fn error(&mut self, request: &Header, error: u32, message: &str) {
        if !self.structured {
            return self.simple(request.cookie, error);
        }
        let message = cut(message, wire::STRING_BYTES_MAX / 2).as_bytes();
        self.chunk(request.cookie, chunk::ERROR, true, 6 + message.len() as u32);
        self.out.header(&error.to_be_bytes());
        self.out.header(&(message.len() as u16).to_be_bytes());
        self.out.header(message);
    }

    /// A disk's error. `false`: it has no number; the connection is to be closed instead, so that the
    /// client connects again rather than fail its file system.
    #[must_use]
    pub fn disk_error(&mut self, request: &Header, error: DiskError) -> bool {
        let number = match error {
            DiskError::Io | DiskError::TimedOut => errno::EIO,
            DiskError::NoSpace => errno::ENOSPC,
            DiskError::ReadOnly => errno::EPERM,
            DiskError::Invalid => errno::EINVAL,
            DiskError::Gone => return false,
        };
        self.error(request, number, &error.to_string());
        true
    }

    /// Success without data.
    pub fn done(&mut self, request: &Header) {
        if self.structured && request.command == cmd::READ {
            return self.chunk(request.cookie, chunk::NONE, true, 0);
        }
        self.simple(request.cookie, 0);
    }

    /// The bytes of a read. Anything but exactly the bytes that were asked for becomes an I/O error: a
    /// client must never take bytes for those of another place.
    pub fn data(&mut self, request: &Header, chunks: Chunks) {
        if chunks.total_bytes() != u64::from(request.len) {
            return self.error(request, errno::EIO, "internal error: a read of the wrong length");
        }
        if !self.structured {
            self.simple(request.cookie, 0);
            return self.contents(chunks.into_iter());
        }
        let one_hole = matches!(chunks.iter().next(), Some(Chunk::Hole(n)) if *n == request.len);
        if request.has(cflag::DF) && !one_hole {
            self.data_header(request.cookie, request.offset, request.len, true);
            return self.contents(chunks.into_iter());
        }
        self.fragments(request, chunks);
    }

    fn data_header(&mut self, cookie: u64, offset: u64, len: u32, done: bool) {
        self.chunk(cookie, chunk::OFFSET_DATA, done, 8 + len);
        self.out.header(&offset.to_be_bytes());
    }

    fn contents(&mut self, chunks: impl Iterator<Item = Chunk>) {
        for chunk in chunks {
            match chunk {
                Chunk::Data(data) => self.out.payload(data),
                Chunk::Hole(len) => self.zeros(u64::from(len)),
            }
        }
    }

    /// Holes as holes; data that follows data shares one header.
    fn fragments(&mut self, request: &Header, chunks: Chunks) {
        let end = request.offset + u64::from(request.len);
        let mut offset = request.offset;
        let mut run: Vec<Bytes> = Vec::new();
        let mut chunks = chunks.into_iter().peekable();
        while let Some(chunk) = chunks.next() {
            match chunk {
                Chunk::Hole(len) => {
                    let done = offset + u64::from(len) == end;
                    self.chunk(request.cookie, chunk::OFFSET_HOLE, done, 12);
                    self.out.header(&offset.to_be_bytes());
                    self.out.header(&len.to_be_bytes());
                    offset += u64::from(len);
                }
                Chunk::Data(data) if matches!(chunks.peek(), Some(Chunk::Data(_))) => {
                    run.push(data);
                }
                Chunk::Data(data) => {
                    let total = run.iter().chain([&data]).map(|d| d.len() as u64).sum::<u64>();
                    self.data_header(request.cookie, offset, total as u32, offset + total == end);
                    run.drain(..).for_each(|data| self.out.payload(data));
                    self.out.payload(data);
                    offset += total;
                }
            }
        }
    }

    /// The extents of a status, cut at the request's end, at `max` and, where one was asked for, at
    /// one.
    pub fn extents(&mut self, request: &Header, extents: &[Extent], max: usize) {
        let max = if request.has(cflag::REQ_ONE) { 1 } else { max };
        let mut left = request.len;
        let mut sent: Vec<Extent> = Vec::with_capacity(extents.len().min(max));
        for extent in extents {
            let len = extent.len.min(left);
            left -= len;
            let full = sent.len() == max;
            match sent.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.hole == extent.hole => last.len += len,
                _ if full => break,
                _ => sent.push(Extent { len, hole: extent.hole }),
            }
        }
        if sent.is_empty() {
            return self.error(request, errno::EIO, "internal error: a status without extents");
        }
        let len = 4 + 8 * sent.len() as u32;
        self.chunk(request.cookie, chunk::BLOCK_STATUS, true, len);
        self.out.header(&wire::CONTEXT_ALLOCATION_ID.to_be_bytes());
        for extent in sent {
            let flags = if extent.hole { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 };
            self.out.header(&extent.len.to_be_bytes());
            self.out.header(&flags.to_be_bytes());
        }
    }
}
