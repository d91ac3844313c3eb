//! What the daemon asks of a store: the little that [`super::engine`] needs, so that it can be tested on
//! a store in memory that fails on demand.

use crate::device::latency::DeviceStats;
use crate::store::{self, Store, StoreEvent};
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
    /// Blocks that may be added to what it holds, as of all records given so far. 0 when it is full: then it
    /// still takes what adds nothing.
    fn room_blocks(&self) -> u64;
    /// How many blocks a write of these would add, as of all records given so far: the holes among them, and
    /// pages of the table. `None`: not known yet; a page of the table is being read. To be asked again after
    /// a poll. `u32::MAX`, of any range: it can take no data at present, also none that adds nothing.
    fn growth(&mut self, object: ObjectId, blocks: BlockRange) -> Option<u32>;
    /// True when leaders are to be told that it is nearly full.
    fn nearly_full(&self) -> bool;
    /// False while it is behind: the daemon does not read from its connections then. True again by itself,
    /// unless it has failed.
    fn can_accept(&self) -> bool;
    /// How its device does.
    fn device(&self) -> DeviceStats;
}

impl Storage for Store {
    fn append(&mut self, ticket: Ticket, record: Record<Bytes>) {
        Store::append(self, ticket, record);
    }
    fn read(&mut self, token: u64, object: ObjectId, blocks: BlockRange, mode: ReadMode) {
        let mode = match mode {
            ReadMode::All => store::ReadMode::All,
            ReadMode::Differing(have) => store::ReadMode::Differing(have),
            ReadMode::ChecksumsOnly => store::ReadMode::ChecksumsOnly,
        };
        Store::read(self, token, object, blocks, mode);
    }
    fn submit(&mut self) {
        Store::submit(self);
    }
    fn poll(&mut self, events: &mut Vec<StorageEvent>) {
        // An empty vector allocates nothing, and most polls find a few events.
        let mut found = Vec::new();
        Store::poll(self, &mut found);
        events.extend(found.into_iter().map(StorageEvent::from));
    }
    fn room_blocks(&self) -> u64 {
        Store::room_blocks(self)
    }
    fn growth(&mut self, object: ObjectId, blocks: BlockRange) -> Option<u32> {
        Store::growth(self, object, blocks)
    }
    fn nearly_full(&self) -> bool {
        Store::nearly_full(self)
    }
    fn can_accept(&self) -> bool {
        Store::can_accept(self)
    }
    fn device(&self) -> DeviceStats {
        self.device_stats()
    }
}

impl From<StoreEvent> for StorageEvent {
    fn from(event: StoreEvent) -> StorageEvent {
        match event {
            StoreEvent::Durable { up_to_ticket } => StorageEvent::Durable { ticket: up_to_ticket },
            StoreEvent::Read { token, checksums, data, bad } => {
                StorageEvent::Read { token, found: ReadResult { checksums, data, bad } }
            }
            StoreEvent::Failed { why } => StorageEvent::Failed { error: why },
            StoreEvent::BadBlock { object, block, checksum } => {
                StorageEvent::BadBlock { object, block, checksum }
            }
            StoreEvent::LostTable { object, blocks } => StorageEvent::LostTable { object, blocks },
        }
    }
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
    /// What these blocks hold is not known here any more; they are bad until they are written again.
    LostTable {
        /// The object.
        object: ObjectId,
        /// The blocks.
        blocks: BlockRange,
    },
    /// The device takes no more writes. Nothing that was not durable will be.
    Failed {
        /// Why, for people.
        error: String,
    },
}
