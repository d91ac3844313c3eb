//! What the daemon asks of a store: the little that [`super::engine`] needs, so that it can be tested on
//! a store in memory that fails on demand.

use bytes::Bytes;
use trefoil_core::node::{ReadMode, ReadResult, Ticket};
use trefoil_core::record::Record;
use trefoil_core::{BlockRange, ObjectId};

/// A store. Calls never block; what they start ends in [`Storage::poll`].
pub trait Storage {
    /// Makes `record` durable behind all that was given before. Tickets count from 1 in each run.
    fn append(&mut self, ticket: Ticket, record: Record<Bytes>);
    /// Reads blocks as they are after all records given so far.
    fn read(&mut self, token: u64, object: ObjectId, blocks: BlockRange, mode: ReadMode);
    /// Hands everything given since the last call to the device. Once per batch.
    fn submit(&mut self);
    /// Appends what has ended since the last call.
    fn poll(&mut self, events: &mut Vec<StorageEvent>);
    /// Blocks of data that there is room for, less what has been given already.
    fn room_blocks(&self) -> u64;
    /// True when leaders are to be told that it is nearly full.
    fn nearly_full(&self) -> bool;
    /// Bytes that were given and are not durable yet. Above a limit the daemon stops reading from its
    /// connections.
    fn backlog_bytes(&self) -> u64;
    /// The durable end of the log, for the monitors (N8).
    fn log_position(&self) -> u64;
}

/// Something has ended.
#[derive(Clone, Debug)]
pub enum StorageEvent {
    /// All records up to this ticket are durable.
    Durable {
        /// The ticket.
        ticket: Ticket,
    },
    /// A read has ended.
    Read {
        /// Its name.
        token: u64,
        /// What it found.
        found: ReadResult<Bytes>,
    },
    /// A block's bytes are not good.
    BadBlock {
        /// The object.
        object: ObjectId,
        /// The block.
        block: u32,
        /// Its checksum in the table.
        checksum: u64,
    },
    /// The device takes no more writes. Nothing that was not durable will be.
    Failed {
        /// Why, for people.
        error: String,
    },
}
