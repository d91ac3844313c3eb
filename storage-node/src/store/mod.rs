//! The log-structured store of one storage node: one device, one thread.
//!
//! ```text
//!  append ──► LogWriter: open batch ─► sealed ─► one durable write ─► Durable{up_to_ticket}
//!      └────► State: Durable + Tables (changes queue on pages that are not in memory)
//!  read ────► Tables: entries as of now ─► blocks from pending batches or the device ─► Read{..}
//!  checkpoint: dirty pages into the log ─► changed entries into the index (sled, own thread);
//!              at times all entries into the log: the snapshot, then the root ─► segments become free
//!  cleaner: live blocks of the emptiest segment ─► LogWriter, cold stream
//!  open: index ─► replay of the log behind it ─► Start record
//! ```
//!
//! The log is the truth; the index is disposable. What is in memory when a record has been appended
//! is what recovery gives once the record is durable. The format and the order of writes at a crash
//! are in `docs/on-disk-format.md`.
//!
//! # The caller's loop
//!
//! `append` and `read` in the order in which they take effect; [`Store::submit`] starts I/O;
//! [`Store::ready`] waits; [`Store::poll`] gives events; then `submit` again. Before taking on work
//! the caller asks [`Store::can_accept`], and before data also [`Store::room_blocks`].
//!
//! # Memory
//!
//! The bounds of [`StoreOptions`], and about 250 bytes for each object that has been written: 65 MB per
//! TiB of 4 MiB objects. Recovery holds about 40 bytes per block written since the last checkpoint.
//!
//! # Known weaknesses
//!
//! A lone last batch that rots between its write and the next start cannot be told
//! from a torn one; the log position that the monitors remember shows it.

mod audit;
mod batch;
mod budget;
pub mod bugs;
mod checkpoint;
mod cleaner;
mod codec;
mod engine;
mod format;
pub mod index;
mod log;
mod memory;
mod page;
mod placement;
mod read;
mod reaper;
mod recovery;
mod replay_cost;
mod root;
mod segments;
mod space;
mod state;
mod superblock;
mod table;
pub(crate) mod view;

pub use audit::Audit;
pub use engine::Store;
pub use format::{
    FormatError, FormatHow, FormatOptions, Formatted, default_segment_bytes, format, format_device,
    format_with,
};
pub use log::LogError;
pub use recovery::{How, IndexUse, RecoverError};
pub use space::usable_bytes;
pub use superblock::{Superblock, SuperblockError};
pub use table::BlockEntry;

use crate::device::file::{Engine, OpenDeviceError};
use bytes::Bytes;
use std::time::Duration;
use trefoil_core::{BlockRange, Incarnation, ObjectId, record::Durable};

/// Checksum in a [`StoreEvent::Read`] of a block whose entry was lost with its page of the table.
pub const UNKNOWN_CHECKSUM: u64 = table::UNKNOWN;

/// Limits and engine of a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Pages of block tables kept in memory, in bytes.
    pub table_cache_bytes: u64,
    /// Data in one batch, in bytes; a larger record has a batch of its own.
    pub batch_bytes_max: u64,
    /// Bytes appended and not durable yet; at the limit [`Store::can_accept`] is false.
    pub pending_bytes_max: u64,
    /// Changes and reads that wait for a page; at the limit [`Store::can_accept`] is false.
    pub queued_changes_max: usize,
    /// Reads under way; at the limit [`Store::can_accept`] is false.
    pub reads_max: usize,
    /// Memory of reads, from their start until the caller drops the data, in bytes; at the limit reads
    /// wait.
    pub read_bytes_max: u64,
    /// Log written since the last checkpoint at which the next one begins: bounds what is read at a start.
    pub checkpoint_bytes: u64,
    /// By estimate the replay at a start after a crash takes no longer: a checkpoint begins before that. The
    /// estimate follows from the batches and blocks of the log, and from how long the replay took at the last
    /// start.
    pub replay_max: Duration,
    /// io_uring or threads.
    pub engine: Engine,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            table_cache_bytes: 64 << 20,
            batch_bytes_max: 4 << 20,
            pending_bytes_max: 64 << 20,
            queued_changes_max: 256 << 10,
            reads_max: 4096,
            read_bytes_max: 128 << 20,
            // Each checkpoint writes all dirty table pages: further apart, fewer. A start reads the headers of so
            // much log.
            checkpoint_bytes: 4 << 30,
            // The node is away for so long, besides the time that its peers need to notice that it is back.
            replay_max: Duration::from_secs(2),
            engine: Engine::Auto,
        }
    }
}

/// Which bytes a read wants besides the checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// Of every block that is no hole.
    All,
    /// Of the blocks whose checksum is not the one given for it (one for each block of the range).
    Differing(Box<[u64]>),
    /// None.
    #[default]
    ChecksumsOnly,
}

/// What [`Store::poll`] reports.
#[derive(Debug)]
pub enum StoreEvent {
    /// All records with tickets up to this one are durable.
    Durable {
        /// The ticket.
        up_to_ticket: u64,
    },
    /// A read.
    Read {
        /// The caller's.
        token: u64,
        /// One for each block; [`trefoil_core::checksum::HOLE`] for a hole, [`UNKNOWN_CHECKSUM`] where
        /// the table's page is lost (the block is in `bad` too, whatever the mode).
        checksums: Box<[u64]>,
        /// The bytes that the mode asked for, less the bad ones, in order.
        data: Bytes,
        /// Blocks that the mode asked for and that have no good bytes here, ascending.
        bad: Vec<u32>,
    },
    /// Nothing can be made durable any more; no ticket is acknowledged from here on. Reads go on.
    Failed {
        /// Why, and what to do.
        why: String,
    },
    /// Damage: a block does not match its checksum, cannot be read, or came without its bytes (`bad` of a
    /// repair's [`trefoil_core::record::Patch`]). It can be healed. Told at each read that finds it, until it is.
    BadBlock {
        /// The object.
        object: ObjectId,
        /// The block.
        block: u32,
        /// The checksum that its bytes should have.
        checksum: u64,
    },
    /// A page of an object's table is damaged: what these blocks hold is not known here any more. They
    /// are bad until they are written again.
    LostTable {
        /// The object.
        object: ObjectId,
        /// The blocks.
        blocks: BlockRange,
    },
}

/// Space of a store, in bytes: `used + free + reserve = total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Of the log's segments.
    pub total: u64,
    /// Used by live blocks and their tables. At most; exact where little is left.
    pub used: u64,
    /// What may be added.
    pub free: u64,
    /// Kept for cleaning: dead blocks, headers, segments being written, free ones.
    pub reserve: u64,
}

/// Counters since the store was opened, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Space.
    pub space: Space,
    /// Batches that became durable.
    pub batches: u64,
    /// Data blocks in them: clients', table pages, and what cleaning has moved.
    pub blocks: u64,
    /// Data blocks that clients have given.
    pub client_blocks: u64,
    /// Table pages written.
    pub page_blocks: u64,
    /// Blocks that cleaning has moved.
    pub moved_blocks: u64,
    /// Segments that cleaning has looked at from end to end.
    pub segments_cleaned: u64,
    /// Segments that became free.
    pub segments_freed: u64,
    /// Segments whose live count was found wrong and set right.
    pub recounts: u64,
    /// Snapshots written.
    pub snapshots: u64,
    /// Segments that are free now.
    pub segments_free: u64,
    /// Segments that cannot be cleaned because of damage in them.
    pub segments_kept: usize,
    /// Table pages of deleted objects that still count.
    pub pages_dead: usize,
    /// Blocks that the tables' newest images in the log name, and these images.
    pub live_blocks: u64,
    /// Bytes in them.
    pub bytes_written: u64,
    /// Blocks read from the device.
    pub blocks_read: u64,
    /// Table pages that a read found in memory.
    pub cache_hits: u64,
    /// Table pages that a read had to wait for.
    pub cache_misses: u64,
    /// Blocks found not to match their checksums, or unreadable.
    pub bad_blocks: u64,
    /// Blocks that are known to have no good bytes here now (at most 65,536 are remembered).
    pub bad_now: usize,
    /// Heal records taken.
    pub healed: u64,
    /// Table pages found damaged.
    pub lost_pages: u64,
    /// Checkpoints that the index has taken.
    pub checkpoints: u64,
    /// Checkpoints that the index has refused.
    pub checkpoints_failed: u64,
    /// How long the replay would take if the process ended now, by estimate, in microseconds.
    pub replay_us: u64,
    /// Bytes appended and not durable.
    pub pending_bytes: u64,
    /// Reads under way.
    pub reads: usize,
    /// Changes and reads that wait for pages.
    pub queued_changes: usize,
    /// Table pages in memory.
    pub pages_resident: usize,
    /// Table pages that are not in the log as they are.
    pub pages_dirty: usize,
    /// Objects.
    pub objects: usize,
}

/// What opening found.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The node's state.
    pub durable: Durable,
    /// Position of the end of the log as it was found, without the record that this start has written.
    /// One that is smaller than one that [`Store::log_position`] gave before means that the device was
    /// rolled back.
    pub log_position: u64,
    /// The store's name.
    pub incarnation: Incarnation,
    /// Space.
    pub space: Space,
    /// State that was once durable is lost: the node must not vote as before (N8). Said again at each
    /// start until a `LostState` record has been appended.
    pub lost: Option<String>,
    /// A copy of the superblock is damaged.
    pub superblock_damage: Option<String>,
    /// What recovery did.
    pub how: How,
}

/// Why a store could not be opened. Nothing has been written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device.
    #[error(transparent)]
    Device(#[from] OpenDeviceError),
    /// The superblock.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The log.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The system.
    #[error("{device}: {what}: {source}")]
    Io {
        /// The device.
        device: String,
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
}
