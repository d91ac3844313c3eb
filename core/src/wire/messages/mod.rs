//! The protocol's messages as frames: a kind, a small *meta*, and the blocks as payload.
//!
//! Sans I/O, as all of [`crate::wire`]. Everything is laid out by hand, little-endian, at fixed places
//! behind each other; lists are a count and then their items. [`Message::encode_meta`] appends to a
//! buffer that the caller keeps, so a message costs no allocation; blocks are never copied, in neither
//! direction: a message's payload *is* the frame's.
//!
//! # What decoding promises
//!
//! A message that [`Message::decode`] has let pass keeps every limit of [`crate::limits`], its lists
//! have the lengths that its ranges ask for, and its payload has exactly the bytes that its checksums
//! speak of. Block checksums themselves are *not* verified here: that is done where the blocks come
//! to rest, and it is the shells' business. What the protocol makes of a message (is the ballot
//! current, does the object belong to the group) is the machines' business.
//!
//! # Compatibility
//!
//! The layout of a kind is frozen by golden bytes in the tests. A change is a new kind, or a new
//! version of the transport's handshake.

mod from_node;
mod get;
mod peer;
#[cfg(test)]
mod tests;
mod to_node;
mod votes;

use crate::ids::BLOCK_SIZE;
use bytes::{Bytes, BytesMut};

pub use get::SEQ_MAX;

/// A message that travels as a frame.
pub trait Message: Sized {
    /// The frame's kind.
    fn kind(&self) -> u16;
    /// Appends the frame's meta. The message must be one that [`Message::decode`] lets pass: the
    /// machines make no others.
    fn encode_meta(&self, out: &mut BytesMut);
    /// The frame's payload, shared; `None` where there are no blocks.
    fn payload(&self) -> Option<Bytes>;
    /// The message of a frame. `payload` is taken over without a copy.
    fn decode(kind: u16, meta: &[u8], payload: Bytes) -> Result<Self, DecodeError>;
}

/// Why a frame holds no message. The sender is broken or not a Trefoil daemon: the connection is to be
/// closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No message of this direction has this kind.
    #[error("message of unknown kind {kind:#06x}: is the peer of a newer version?")]
    Kind {
        /// The kind.
        kind: u16,
    },
    /// Meta ends before the message does.
    #[error("message of kind {kind:#06x} ends early, at {field}")]
    Short {
        /// The kind.
        kind: u16,
        /// What was to come.
        field: &'static str,
    },
    /// Meta goes on behind the end of the message.
    #[error("message of kind {kind:#06x} has {bytes} bytes too many")]
    Trailing {
        /// The kind.
        kind: u16,
        /// How many.
        bytes: usize,
    },
    /// A value that is out of its limits.
    #[error("message of kind {kind:#06x}: {field} is {value}, which is out of range")]
    Range {
        /// The kind.
        kind: u16,
        /// Which value.
        field: &'static str,
        /// It.
        value: u64,
    },
    /// The payload has another length than the message speaks of.
    #[error("message of kind {kind:#06x} has {found} bytes of payload where {expected} should be")]
    Payload {
        /// The kind.
        kind: u16,
        /// Bytes that came.
        found: usize,
        /// Bytes that should have come (for a piece of a repair: at most).
        expected: usize,
    },
}

/// The kinds, in one place so that none is given twice. Those below 0x100 are the transport's and the
/// monitors'.
pub mod kind {
    /// Leader to node: `Fence`.
    pub const FENCE: u16 = 0x0100;
    /// Leader to node: `Open`.
    pub const OPEN: u16 = 0x0101;
    /// Leader to node: `Settle`.
    pub const SETTLE: u16 = 0x0102;
    /// Leader to node: `Write` of data.
    pub const WRITE: u16 = 0x0103;
    /// Leader to node: `Write` of holes.
    pub const ZERO: u16 = 0x0104;
    /// Leader to node: `Repair`.
    pub const REPAIR: u16 = 0x0105;
    /// Leader to node: `Read`.
    pub const READ: u16 = 0x0106;
    /// Leader to node: `Confirm`.
    pub const CONFIRM: u16 = 0x0107;

    /// Node to leader: `Fenced`.
    pub const FENCED: u16 = 0x0200;
    /// Node to leader: `FenceRefused`.
    pub const FENCE_REFUSED: u16 = 0x0201;
    /// Node to leader: `Opened`.
    pub const OPENED: u16 = 0x0202;
    /// Node to leader: `OpenRefused`.
    pub const OPEN_REFUSED: u16 = 0x0203;
    /// Node to leader: `Settled`.
    pub const SETTLED: u16 = 0x0204;
    /// Node to leader: `Have`.
    pub const HAVE: u16 = 0x0205;
    /// Node to leader: `Gap`.
    pub const GAP: u16 = 0x0206;
    /// Node to leader: `NoSpace`.
    pub const NO_SPACE: u16 = 0x0207;
    /// Node to leader: `Data`.
    pub const DATA: u16 = 0x0208;
    /// Node to leader: `Bad`.
    pub const BAD: u16 = 0x0209;
    /// Node to leader: `ReadRefused`.
    pub const READ_REFUSED: u16 = 0x020a;
    /// Node to leader: `Confirmed`.
    pub const CONFIRMED: u16 = 0x020b;
    /// Node to leader: `Differs`.
    pub const DIFFERS: u16 = 0x020c;
    /// Node to leader: `Doubts`.
    pub const DOUBTS: u16 = 0x0210;

    /// Node to node: `Fetch`.
    pub const FETCH: u16 = 0x0300;
    /// Node to node: `Piece`.
    pub const PIECE: u16 = 0x0301;
    /// Node to node: `NotYet`.
    pub const NOT_YET: u16 = 0x0302;
    /// Node to node: `FetchBlock`.
    pub const FETCH_BLOCK: u16 = 0x0303;
    /// Node to node: `Block`.
    pub const BLOCK: u16 = 0x0304;
    /// Node to node: `Digest`.
    pub const DIGEST: u16 = 0x0305;
    /// Node to node: `DigestDiffers`.
    pub const DIGEST_DIFFERS: u16 = 0x0306;
    /// Node to node: `Compare`.
    pub const COMPARE: u16 = 0x0307;
    /// Node to node: `AtLeast`.
    pub const AT_LEAST: u16 = 0x0308;
    /// Node to node: `Piece` from a source with blocks in doubt.
    pub const PIECE_IN_DOUBT: u16 = 0x0310;
    /// Node to node: `ScrubAsk`.
    pub const SCRUB_ASK: u16 = 0x0311;
    /// Node to node: `ScrubTell`.
    pub const SCRUB_TELL: u16 = 0x0312;
}

/// The payload of a message, if it has any.
fn some_bytes(data: &Bytes) -> Option<Bytes> {
    (!data.is_empty()).then(|| data.clone())
}

/// Refuses a payload whose length is not that of `blocks` blocks.
fn payload_is(kind: u16, payload: &Bytes, blocks: usize) -> Result<(), DecodeError> {
    let (found, expected) = (payload.len(), blocks * BLOCK_SIZE);
    if found != expected {
        return Err(DecodeError::Payload { kind, found, expected });
    }
    Ok(())
}
