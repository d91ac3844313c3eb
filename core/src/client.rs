//! What a leader is asked for and what it answers: block operations inside one object.
//!
//! The layer above (the front end) cuts a client's bytes into these. All of them are whole blocks.

use crate::ids::{BlockRange, ObjectIndex};

/// Names an operation until its [`OpDone`]. The asker chooses it; it must not have two under one id.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// One operation on one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOp<P> {
    /// Names it.
    pub id: OpId,
    /// The object.
    pub object: ObjectIndex,
    /// What to do.
    pub kind: OpKind<P>,
}

/// What to do with an object's blocks. Every range has at least one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpKind<P> {
    /// Give the bytes; at most [`crate::limits::OP_BLOCKS_MAX`] blocks.
    Read {
        /// Which blocks.
        blocks: BlockRange,
    },
    /// Say which blocks are holes, without the bytes; any range within the object.
    Status {
        /// Which blocks.
        blocks: BlockRange,
    },
    /// Put the bytes there; at most [`crate::limits::OP_BLOCKS_MAX`] blocks.
    Write {
        /// Which blocks.
        blocks: BlockRange,
        /// One checksum for each block, as [`crate::checksum::block_checksum`] gives it.
        checksums: Box<[u64]>,
        /// `blocks.count * 4096` bytes.
        data: P,
    },
    /// Make holes, which read as zeros; any range within the object.
    Zero {
        /// Which blocks.
        blocks: BlockRange,
    },
}

impl<P> OpKind<P> {
    /// The blocks that it is about.
    pub fn blocks(&self) -> BlockRange {
        match self {
            OpKind::Read { blocks }
            | OpKind::Status { blocks }
            | OpKind::Write { blocks, .. }
            | OpKind::Zero { blocks } => *blocks,
        }
    }
    /// True where it changes the object.
    pub fn is_write(&self) -> bool {
        matches!(self, OpKind::Write { .. } | OpKind::Zero { .. })
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpDone<P> {
    /// Which one.
    pub id: OpId,
    /// Its result.
    pub result: Result<OpOutput<P>, OpError>,
}

/// The result of an operation that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpOutput<P> {
    /// A write or zero is durable on a majority of the object's copies.
    Written,
    /// The blocks that were asked for.
    Read {
        /// One for each block; [`crate::checksum::HOLE`] for a hole.
        checksums: Box<[u64]>,
        /// The bytes of the blocks that are no holes, in order, without gaps. Empty for a status.
        data: P,
    },
}

/// Why an operation failed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// No copy has these bytes with a good checksum. Nothing is guessed.
    #[error("no good copy of a block")]
    Bad,
    /// The nodes that hold this object have no room for it.
    #[error("no space on the storage nodes")]
    NoSpace,
    /// It took longer than the volume's I/O timeout. A write may still take effect.
    #[error("timed out")]
    TimedOut,
    /// This front end does not lead the volume any more. A write may or may not have taken effect.
    #[error("the volume is attached elsewhere")]
    Deposed,
    /// The leader is releasing the volume and takes no more operations.
    #[error("the volume is being detached")]
    Closing,
    /// More than [`crate::limits::LEADER_OPS_MAX`] operations at once, or a range outside the object.
    #[error("refused: malformed or too many at once")]
    Refused,
}
