//! The storage node's daemon: a store, the node's machine, and the connections of front ends, peers and
//! monitors, on one thread.
//!
//! | module | what |
//! |---|---|
//! | [`storage`] | what is asked of a store |
//! | [`engine`] | the machine between store and connections, in batches, without tasks |
//! | [`connections`] | the tasks around it |
//! | [`peers`] | connections to other nodes |
//! | [`verify`] | checksums of blocks that come off the wire |
//! | [`cluster`] | the monitors: map, heartbeats, lost state |
//! | [`identity`] | what is kept beside the store |
//! | [`metrics`] | what Prometheus is told |
//! | [`run`] | start and end |
//! | [`scrub`] | when placement groups are scrubbed, and reports of it |

mod cluster;
mod connections;
mod engine;
mod identity;
mod metrics;
mod peers;
mod run;
pub(crate) mod scrub;
mod storage;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use identity::kept_map;
pub use run::{Ready, RunError, run};
