//! The storage node: a log-structured store and its daemon.

pub mod device;
pub mod store;
