//! Requests of the transmission phase: the header, and whether the request may be served.
//!
//! Pure functions. Every request that reaches a disk lies within it, has a length and only flags that
//! its command knows.

use super::limits::Limits;
use super::wire::{self, cflag, cmd, errno};
use crate::disk::{DiskOp, ExportInfo};
use bytes::Bytes;

/// A request as it came.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl Header {
    /// Parses the 28 bytes; `None` where the magic is wrong, after which nothing can be trusted.
    pub fn parse(bytes: &[u8; wire::REQUEST_HEADER_BYTES]) -> Option<Header> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (command, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let len = rest.first_chunk::<4>()?;
        (u32::from_be_bytes(*magic) == wire::MAGIC_REQUEST).then_some(Header {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            len: u32::from_be_bytes(*len),
        })
    }
    /// Bytes that follow the header.
    pub fn payload_bytes(&self) -> u32 {
        if self.command == cmd::WRITE { self.len } else { 0 }
    }
    /// True where the flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
    /// Bytes that serving it may hold in memory.
    pub fn weight_bytes(&self) -> u64 {
        match self.command {
            cmd::READ | cmd::WRITE => u64::from(self.len),
            // At worst every block is an extent of its own.
            cmd::BLOCK_STATUS => (u64::from(self.len) / 4096 + 2).min(STATUS_EXTENTS_WEIGHED) * 8,
            _ => 0,
        }
    }
}

/// Extents of one status that are counted as memory; no disk answers with more at a time.
const STATUS_EXTENTS_WEIGHED: u64 = 128 << 10;

/// What a connection has negotiated, as far as requests depend on it.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub export: ExportInfo,
    pub structured: bool,
    pub allocation: bool,
}

/// A request that is answered without the disk.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on to the disk.
    Serve,
    /// Nothing to do: its length is 0.
    Empty,
    /// Refuse it.
    Refuse(u32, &'static str),
}

/// Looks at everything but the payload.
pub(super) fn check(header: &Header, terms: &Terms, limits: &Limits) -> Verdict {
    use Verdict::{Empty, Refuse, Serve};
    let known = match header.command {
        cmd::READ if terms.structured => cflag::DF,
        cmd::READ | cmd::WRITE | cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
        cmd::WRITE_ZEROES => cflag::NO_HOLE | cflag::FAST_ZERO,
        cmd::BLOCK_STATUS => cflag::REQ_ONE,
        _ => return Refuse(errno::EINVAL, "unknown command"),
    };
    if header.flags & !(known | cflag::FUA) != 0 {
        return Refuse(errno::EINVAL, "a flag that this command does not take");
    }
    let writes = matches!(header.command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES);
    if writes && terms.export.read_only {
        return Refuse(errno::EPERM, "the export is read-only");
    }
    if header.command == cmd::FLUSH {
        return match (header.offset, header.len) {
            (0, 0) => Serve,
            _ => Refuse(errno::EINVAL, "a flush has neither offset nor length"),
        };
    }
    if header.command == cmd::BLOCK_STATUS && !terms.allocation {
        return Refuse(errno::EINVAL, "no metadata context was negotiated for this export");
    }
    let payload = matches!(header.command, cmd::READ | cmd::WRITE);
    if payload && header.len > limits.payload_bytes_max {
        let too_large = terms.structured && header.command == cmd::READ;
        let errno = if too_large { errno::EOVERFLOW } else { errno::EINVAL };
        return Refuse(errno, "more bytes than this server takes in one request");
    }
    let within = |end: u64| end <= terms.export.size_bytes;
    if !header.offset.checked_add(u64::from(header.len)).is_some_and(within) {
        return match header.command {
            cmd::WRITE | cmd::WRITE_ZEROES => Refuse(errno::ENOSPC, "past the end of the export"),
            _ => Refuse(errno::EINVAL, "past the end of the export"),
        };
    }
    // Stored zeros cost what a write costs, so a fast one is refused: holes are what is fast here.
    if header.has(cflag::FAST_ZERO) && header.has(cflag::NO_HOLE) {
        return Refuse(errno::ENOTSUP, "zeros without a hole are not faster than a write");
    }
    match (header.len, header.command) {
        (0, cmd::BLOCK_STATUS) => Refuse(errno::EINVAL, "the status of no bytes"),
        (0, _) => Empty,
        _ => Serve,
    }
}

/// The disk's operation for a request that passed [`check`].
pub(super) fn operation(header: &Header, data: Bytes) -> DiskOp {
    let Header { offset, len, .. } = *header;
    let fua = header.has(cflag::FUA);
    match header.command {
        cmd::WRITE => DiskOp::Write { offset, data, fua },
        cmd::FLUSH => DiskOp::Flush,
        cmd::TRIM => DiskOp::Trim { offset, len, fua },
        cmd::CACHE => DiskOp::Cache { offset, len },
        cmd::WRITE_ZEROES => DiskOp::Zero { offset, len, no_hole: header.has(cflag::NO_HOLE), fua },
        cmd::BLOCK_STATUS => DiskOp::Status { offset, len },
        _ => DiskOp::Read { offset, len },
    }
}
