//! The storage node: a log-structured store and its daemon.
//!
//! [`run`] is the daemon: one thread, one device. [`store`] is what it keeps its objects in.
//! [`bench`] measures it.

pub mod bench;
pub mod config;
mod daemon;
pub mod device;
pub mod store;

pub use config::NodeConfig;
pub use daemon::{Ready, RunError, run};
