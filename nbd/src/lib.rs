//! The NBD front end.

pub mod blocks;
pub mod config;
mod daemon;
pub mod disk;
mod metrics;
mod monitors;
pub mod proto;
pub mod server;
pub mod session;
mod shard;
pub mod shards;
mod threads;

pub use config::NbdConfig;
pub use daemon::{Ready, RunError, run};
pub use threads::ShardError;
