//! Frames: the unit that daemons send each other, cut out of a stream of bytes and put into one.
//!
//! A frame is a fixed header, then *meta* (a message, small), then *payload* (blocks, large). Sans I/O:
//! [`begin`] and [`finish`] write into a buffer that the caller owns, [`Decoder`] splits frames off a
//! buffer without a copy.
//!
//! | bytes | little-endian |
//! |---|---|
//! | 0..4 | magic `TrF1` |
//! | 4..6 | kind: which message meta is |
//! | 6..8 | flags: 0, reserved; others are refused |
//! | 8..12 | length of meta |
//! | 12..16 | length of payload |
//! | 16..20 | CRC-32C of the header (this field as 0) and meta |
//! | 20..24 | 0, reserved |
//!
//! The CRC does not cover the payload: its blocks carry 64-bit checksums of their own, which are
//! verified where they come to rest. TCP's own checksum lets about one damaged segment in 65,536 pass;
//! a header or a message that slipped through would be acted upon, hence the CRC.

use super::fixed::Fixed;
use crate::limits::FRAME_MAX;
use bytes::{Bytes, BytesMut};
use trefoil_crc::crc32c;

/// The first bytes of each frame.
pub const MAGIC: [u8; 4] = *b"TrF1";

/// Bytes in a header.
pub const HEADER_LEN: usize = 24;

/// Where the CRC is in the header.
const CRC_AT: std::ops::Range<usize> = 16..20;

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Which message it is. The transport keeps kinds below [`KIND_USER_MIN`] for itself.
    pub kind: u16,
    /// The message.
    pub meta: Bytes,
    /// Its blocks; often empty.
    pub payload: Bytes,
}

/// The least kind that is not the transport's own.
pub const KIND_USER_MIN: u16 = 16;

/// Why bytes are no frame. The connection cannot go on after any of them: there is no way to find the
/// next frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not hold frames (or has lost its place).
    #[error("not a Trefoil frame: it begins {found:02x?} instead of {MAGIC:02x?}")]
    Magic {
        /// What was there.
        found: [u8; 4],
    },
    /// Longer than [`FRAME_MAX`].
    #[error("a frame of {len} bytes: the limit is {FRAME_MAX}")]
    TooLong {
        /// The length of meta and payload together.
        len: u64,
    },
    /// Header or meta were damaged on the way.
    #[error("a frame of kind {kind} was damaged on the way: CRC {found:08x}, expected {expected:08x}")]
    Crc {
        /// The kind that the (damaged) header names.
        kind: u16,
        /// The CRC of what came.
        found: u32,
        /// The CRC that the header names.
        expected: u32,
    },
    /// Flags or reserved bytes that this version does not know.
    #[error("a frame of kind {kind} has flags {flags:#x}, reserved {reserved:#x}: from a newer version?")]
    Unknown {
        /// The kind.
        kind: u16,
        /// The flags.
        flags: u16,
        /// The reserved bytes.
        reserved: u32,
    },
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn crc(header_and_meta: &[u8]) -> u32 {
    // The algorithm has 32 bits; the crate returns every CRC as u64.
    crc32c(header_and_meta)
}

/// Leaves room for a header at the end of `arena` and says where. Append meta next, then [`finish`].
/// Several frames may lie in one arena, one behind the other.
pub fn begin(arena: &mut BytesMut) -> usize {
    let start = arena.len();
    arena.resize(start + HEADER_LEN, 0);
    start
}

/// Writes the header of the frame that [`begin`] started at `start`; meta is everything behind it.
///
/// Errors: [`FrameError::TooLong`]; the arena is then as it was before `begin`.
pub fn finish(arena: &mut BytesMut, start: usize, kind: u16, payload_len: usize) -> Result<(), FrameError> {
    let meta_len = arena.len() - start - HEADER_LEN;
    let len = meta_len as u64 + payload_len as u64;
    if len > FRAME_MAX as u64 {
        arena.truncate(start);
        return Err(FrameError::TooLong { len });
    }
    let frame = &mut arena[start..];
    let header = Fixed::<HEADER_LEN>::new()
        .raw(MAGIC)
        .u16(kind)
        .u16(0)
        // Both fit: their sum is at most FRAME_MAX.
        .u32(meta_len as u32)
        .u32(payload_len as u32)
        .u64(0);
    frame[..HEADER_LEN].copy_from_slice(&header.bytes());
    let crc = crc(frame);
    frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// A whole frame but for its payload, for where there is no arena.
///
/// Errors: [`FrameError::TooLong`].
pub fn encode(kind: u16, meta: &[u8], payload_len: usize) -> Result<Bytes, FrameError> {
    let mut arena = BytesMut::with_capacity(HEADER_LEN + meta.len());
    let start = begin(&mut arena);
    arena.extend_from_slice(meta);
    finish(&mut arena, start, kind, payload_len)?;
    Ok(arena.freeze())
}

/// Splits frames off a buffer. Its only state is what the header of a frame that has not all come
/// yet has said, so that it is checked once.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    checked: Option<Header>,
}

/// A frame but for its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The frame's kind.
    pub kind: u16,
    /// Its message.
    pub meta: Bytes,
    /// Bytes of payload that follow: at most [`crate::limits::FRAME_MAX`].
    pub payload_len: usize,
}

#[derive(Copy, Clone, Debug)]
struct Header {
    kind: u16,
    meta_len: usize,
    payload_len: usize,
}

impl Decoder {
    /// A decoder at the start of a frame.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// The next frame, or `None` if it has not all come yet. Meta and payload share `buffer`'s memory.
    ///
    /// After an error, the stream is of no use any more.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let header = match self.checked {
            Some(header) => header,
            None => match check(buffer)? {
                Some(header) => *self.checked.insert(header),
                None => return Ok(None),
            },
        };
        let head_len = HEADER_LEN + header.meta_len;
        if buffer.len() < head_len + header.payload_len {
            return Ok(None);
        }
        let head = self.cut_head(header, buffer)?;
        let payload =
            if header.payload_len == 0 { Bytes::new() } else { buffer.split_to(header.payload_len).freeze() };
        Ok(Some(Frame { kind: head.kind, meta: head.meta, payload }))
    }

    /// After [`Decoder::decode`] gave `None`: the head of the frame that has begun to come, if it has all
    /// come and a payload of at least `payload_min` bytes follows. The frame's payload is then for the caller
    /// to read: its first bytes are what is left in `buffer`, and the next frame begins behind it.
    ///
    /// After an error, the stream is of no use any more.
    pub fn take_head(
        &mut self,
        buffer: &mut BytesMut,
        payload_min: usize,
    ) -> Result<Option<Head>, FrameError> {
        match self.checked {
            Some(header)
                if header.payload_len >= payload_min && buffer.len() >= HEADER_LEN + header.meta_len =>
            {
                self.cut_head(header, buffer).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Verifies and cuts off all but the payload.
    fn cut_head(&mut self, header: Header, buffer: &mut BytesMut) -> Result<Head, FrameError> {
        self.checked = None;
        let mut head = buffer.split_to(HEADER_LEN + header.meta_len);
        let expected = u32_at(&head, CRC_AT.start);
        head[CRC_AT].fill(0);
        let found = crc(&head);
        let kind = header.kind;
        if found != expected {
            return Err(FrameError::Crc { kind, found, expected });
        }
        let (flags, reserved) = (u16_at(&head, 6), u32_at(&head, 20));
        if flags != 0 || reserved != 0 {
            return Err(FrameError::Unknown { kind, flags, reserved });
        }
        let meta = if header.meta_len == 0 { Bytes::new() } else { head.freeze().split_off(HEADER_LEN) };
        Ok(Head { kind, meta, payload_len: header.payload_len })
    }

    /// How many bytes, counted from the start of `buffer`, the next frame needs to be whole, as far as
    /// is known: for the reader to make room at once. At most `HEADER_LEN + FRAME_MAX`.
    pub fn wanted(&self) -> usize {
        match self.checked {
            Some(header) => HEADER_LEN + header.meta_len + header.payload_len,
            None => HEADER_LEN,
        }
    }
}

/// Looks at a header as soon as it can be told to be wrong: the magic after 4 bytes, so that a foreign
/// client which says little is still recognised.
fn check(buffer: &[u8]) -> Result<Option<Header>, FrameError> {
    let known = buffer.len().min(MAGIC.len());
    if buffer[..known] != MAGIC[..known] {
        let mut found = [0; 4];
        found[..known].copy_from_slice(&buffer[..known]);
        return Err(FrameError::Magic { found });
    }
    if buffer.len() < HEADER_LEN {
        return Ok(None);
    }
    let (meta_len, payload_len) = (u32_at(buffer, 8), u32_at(buffer, 12));
    let len = u64::from(meta_len) + u64::from(payload_len);
    if len > FRAME_MAX as u64 {
        return Err(FrameError::TooLong { len });
    }
    Ok(Some(Header {
        kind: u16_at(buffer, 4),
        meta_len: meta_len as usize,
        payload_len: payload_len as usize,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(kind: u16, meta: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = encode(kind, meta, payload.len()).unwrap().to_vec();
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn golden_bytes() {
        // Frozen: peers of the same protocol version send it.
        let frame = whole(0x0102, b"meta", b"load");
        let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "547246310201000004000000040000002b4a3ffc000000006d6574616c6f6164");
    }

    #[test]
    fn several_frames_in_one_arena() {
        let mut arena = BytesMut::new();
        for kind in 16..20u16 {
            let start = begin(&mut arena);
            arena.extend_from_slice(&vec![kind as u8; usize::from(kind)]);
            finish(&mut arena, start, kind, 0).unwrap();
        }
        let mut decoder = Decoder::new();
        for kind in 16..20u16 {
            let frame = decoder.decode(&mut arena).unwrap().unwrap();
            assert_eq!(frame.kind, kind);
            assert_eq!(frame.meta.len(), usize::from(kind));
        }
        assert_eq!(decoder.decode(&mut arena), Ok(None));
    }

    #[test]
    fn a_foreign_first_byte_is_told_at_once() {
        let mut buffer = BytesMut::from(&b"G"[..]);
        let error = Decoder::new().decode(&mut buffer).unwrap_err();
        assert!(matches!(error, FrameError::Magic { .. }));
    }

    #[test]
    fn oversize_is_refused_before_it_is_read_and_before_it_is_sent() {
        let mut frame = whole(20, b"", b"");
        frame[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Decoder::new().decode(&mut BytesMut::from(&frame[..]));
        let len = 2 * u64::from(u32::MAX);
        assert_eq!(error, Err(FrameError::TooLong { len }));

        let mut arena = BytesMut::from(&b"before"[..]);
        let start = begin(&mut arena);
        arena.extend_from_slice(b"x");
        finish(&mut arena, start, 20, FRAME_MAX).unwrap_err();
        assert_eq!(&arena[..], b"before");
        let start = begin(&mut arena);
        arena.extend_from_slice(b"x");
        finish(&mut arena, start, 20, FRAME_MAX - 1).unwrap();
    }

    #[test]
    fn flags_of_a_newer_version_are_refused() {
        let mut frame = whole(20, b"m", b"");
        frame[6] = 1;
        frame[CRC_AT].fill(0);
        let crc = crc(&frame);
        frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
        let error = Decoder::new().decode(&mut BytesMut::from(&frame[..])).unwrap_err();
        assert!(matches!(error, FrameError::Unknown { flags: 1, .. }));
    }

    #[test]
    fn a_large_payload_is_left_to_the_caller() {
        let frame = whole(20, b"meta", &[7; 1000]);
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::from(&frame[..HEADER_LEN + 2]);
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        assert_eq!(decoder.take_head(&mut buffer, 1000), Ok(None), "its message has not all come");
        buffer.extend_from_slice(&frame[HEADER_LEN + 2..500]);
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        assert_eq!(decoder.take_head(&mut buffer, 1001), Ok(None), "not large");
        let head = decoder.take_head(&mut buffer, 1000).unwrap().unwrap();
        assert_eq!((head.kind, &head.meta[..], head.payload_len), (20, &b"meta"[..], 1000));
        assert_eq!(buffer.len(), 500 - HEADER_LEN - 4);
        buffer.clear();
        buffer.extend_from_slice(&whole(21, b"next", b""));
        assert_eq!(decoder.decode(&mut buffer).unwrap().unwrap().kind, 21);
        let mut damaged = BytesMut::from(&frame[..500]);
        damaged[HEADER_LEN] ^= 1;
        assert_eq!(decoder.decode(&mut damaged), Ok(None));
        assert!(matches!(decoder.take_head(&mut damaged, 1), Err(FrameError::Crc { .. })));
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            frames in prop::collection::vec(
                (any::<u16>(), prop::collection::vec(any::<u8>(), 0..50), prop::collection::vec(any::<u8>(), 0..50)),
                0..8,
            ),
            cuts in prop::collection::vec(1usize..40, 1..60),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(k, m, p)| whole(*k, m, p)).collect();
            let (mut decoder, mut buffer, mut got) = (Decoder::new(), BytesMut::new(), vec![]);
            let (mut at, mut cut) = (0, cuts.iter().cycle());
            while at < stream.len() {
                let end = stream.len().min(at + cut.next().unwrap());
                buffer.extend_from_slice(&stream[at..end]);
                at = end;
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    got.push((frame.kind, frame.meta.to_vec(), frame.payload.to_vec()));
                }
                prop_assert!(decoder.wanted() <= HEADER_LEN + FRAME_MAX);
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn one_damaged_bit_in_header_or_meta_never_passes(
            meta in prop::collection::vec(any::<u8>(), 0..64),
            bit in 0usize..((HEADER_LEN + 64) * 8),
        ) {
            let mut frame = whole(20, &meta, b"payload");
            let bit = bit % ((HEADER_LEN + meta.len()) * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            // Either refused, or a longer frame that never becomes whole.
            let result = Decoder::new().decode(&mut BytesMut::from(&frame[..]));
            prop_assert!(!matches!(result, Ok(Some(_))), "{result:?}");
        }

        #[test]
        fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&MAGIC[..]);
            buffer.extend_from_slice(&garbage);
            let mut decoder = Decoder::new();
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }
}
