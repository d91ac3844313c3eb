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
//! | `found` | how a new monitor finds its cluster, or founds it |
//! | `service` | what each request does |
//! | `reign` | what only a leader knows, and for how long it is true |
//! | `grants` | who may lead a volume |
//! | `lost` | nodes that have lost writes, told by leaders (5.9) |
//! | `mover` | placement groups on the move: what is asked of nodes and proposed |
//! | `members`, `peers` | the other monitors: adding, removing, talking to them |
//! | `history` | what askers of the map are sent: differences |
//! | [`rpc`] | requests and answers on the wire |
//! | [`scrub`] | what nodes' scrubs have found, and orders for them |
//! | [`health`] | coded checks, with remedies |
//! | `client`, `link` | [`MonitorClient`], for every other daemon and the command line |
//! | [`backup`] | the map in a file, and back |
//! | `layout` | after that: where placement groups live by now, by what nodes say |
//! | `attention`, `rates` | mutes, deaths and rates, for people |
//! | [`life`] | how a daemon knows that its last life ended without a stop |
//! | `metrics` | what Prometheus is told |
//! | `raft` | openraft over `redb` |
//! | `config` | [`MonitorConfig`] |
//!
//! The rules are in `trefoil_core::map`; here is what feeds them: sockets, a disk, a clock.

mod attention;
pub mod backup;
mod client;
mod config;
mod found;
mod grants;
pub mod health;
mod history;
mod layout;
pub mod life;
mod link;
mod lost;
mod members;
mod metrics;
mod mover;
mod peers;
mod raft;
mod rates;
mod reign;
mod reports;
pub mod rpc;
pub mod scrub;
mod server;
mod service;

pub use client::{Alive, Attached, CallError, MonitorClient, RETRY_MAX, Renewed};
pub use config::{Bootstrap, MONITORS_MAX, MonitorConfig, PeerConfig};
pub use grants::HEALS_MAX;
pub use rates::{IoRates, Recovering};
pub use server::{Monitor, run};
