//! Measurements of the store by itself and of the machine: what `trefoil bench store` and `floor` run.
//!
//! | module | what |
//! |---|---|
//! | [`load`] | a load on a store: so many reads or writes under way at once, checked and timed |
//! | [`churn`] | a filled store that is overwritten: what cleaning costs |
//! | [`metadata`] | a huge store of which only the metadata is kept: memory, and starts after a crash |
//! | [`sparse`] | the device for that |
//! | [`mod@floor`] | the least that a replicated read or write costs on this machine |
//! | [`histogram`], [`usage`] | latencies; processor time and memory of this process |
//!
//! Nothing here knows the store's insides: it uses what the daemon uses, and [`crate::store::Store::audit`].
//! It formats nothing and deletes nothing: whoever calls it brings a store that may be overwritten.

pub mod churn;
pub mod floor;
pub mod histogram;
pub mod load;
pub mod metadata;
pub mod sparse;
pub mod usage;

use crate::store::OpenError;
use std::io;

/// Why a measurement has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The store does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store has failed.
    #[error("the store has failed: {0}")]
    Failed(String),
    /// What was read is not what was written. A bug in the store, or a device that cannot be trusted.
    #[error("object {object}, block {block}: {what}: do not put data on this device, and report it")]
    Wrong {
        /// The object's number.
        object: u64,
        /// The block in it.
        block: u64,
        /// What is wrong.
        what: String,
    },
    /// The system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The store has fewer blocks than the measurement needs.
    #[error("the store has room for {have} blocks of 4 KiB only; {want} are needed: make it larger")]
    Small {
        /// Room.
        have: u64,
        /// Needed.
        want: u64,
    },
    /// The caller has asked for it.
    #[error("interrupted")]
    Stopped,
}
