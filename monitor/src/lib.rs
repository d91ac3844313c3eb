//! The monitors: the cluster map on Raft, leases, health.
//!
//! A monitor is not in the data path. With every monitor down, attached volumes go on reading (confirmed
//! by a majority of copies instead of a lease) and writing; what does not go on is attaching, creating,
//! and noticing.
//!
//! # Layout
//!
//! | module | what |
//! |---|---|
//! | `server` | the daemon: [`run`], [`Monitor`] |
//! | `service` | what each request does |
//! | `history` | what askers of the map are sent: differences |
//! | [`rpc`] | requests and answers on the wire |
//! | [`health`] | coded checks, with remedies |
//! | `client` | [`MonitorClient`], for every other daemon and the command line |
//! | `metrics` | what Prometheus is told |
//! | `raft` | openraft over `redb` |
//! | `config` | [`MonitorConfig`] |
//!
//! The rules are in `trefoil_core::map`; here is what feeds them: sockets, a disk, a clock.

mod client;
mod config;
pub mod health;
mod history;
mod metrics;
mod raft;
mod reports;
pub mod rpc;
mod server;
mod service;

pub use client::{Attached, CallError, MonitorClient, RETRY_MAX, Renewed};
pub use config::{Bootstrap, MonitorConfig};
pub use server::{Monitor, run};
pub use service::HEALS_MAX;
