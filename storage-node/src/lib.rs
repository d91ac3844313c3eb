//! The storage node: a log-structured store and its daemon.
//!
//! [`run`] is the daemon: one thread, one device. [`store`] is what it keeps its objects in. [`offline`]
//! looks at, checks and exports stores whose daemons do not run. [`mod@bench`] measures the store.

pub mod bench;
pub mod config;
mod daemon;
pub mod device;
pub mod offline;
pub mod store;

pub use config::NodeConfig;
pub use daemon::{Ready, RunError, run};
