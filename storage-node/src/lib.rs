//! The storage node: a log-structured store and its daemon.

mod daemon;
pub mod device;
pub mod store;
