//! The monitors' agreement: openraft over a `redb` file, with the cluster map as its state machine.
//!
//! What is durable, and when: a vote and a log entry before they are answered (one two-phase commit
//! of the file each); the map only as a snapshot now and then. At start the map is the last
//! snapshot plus the log behind it, so nothing that was answered can be missing.
//!
//! One voter for now. The network says that everybody else is unreachable; store and state machine
//! are those that three voters need.

mod machine;
mod network;
mod store;

pub(crate) use machine::{Machine, SharedMap};
pub(crate) use network::Nobody;
pub(crate) use store::{Identity, Store};

use serde::{Deserialize, Serialize};
use std::io::Cursor;
use trefoil_core::map::{Command, MapError, Reply};

/// The monitor's id among the voters. The only one, for now.
pub(crate) const VOTER: u64 = 1;

/// What came of an entry. Entries without a command (a new leader's first) come to nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome(pub Option<Result<Reply, MapError>>);

openraft::declare_raft_types!(
    /// The types of the monitors' Raft.
    pub(crate) Types:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<Types>;

#[cfg(test)]
mod tests;
