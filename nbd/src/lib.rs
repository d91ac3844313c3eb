//! The NBD front end.

pub mod blocks;
pub mod config;
pub mod disk;
pub mod proto;
pub mod server;
pub mod session;
