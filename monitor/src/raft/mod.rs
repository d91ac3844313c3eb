//! The monitors' agreement: openraft over a `redb` file, with the cluster map as its state machine.
//!
//! What is durable, and when: a vote and a log entry before they are answered (one two-phase commit
//! of the file each); the map only as a snapshot now and then. At start the map is the last
//! snapshot plus the log behind it, so nothing that was answered can be missing.
//!
//! A monitor is named by its number and by the *incarnation* of its data directory. A directory that was
//! lost takes votes and entries along that the others count on, so an empty one under the old number is
//! another monitor, and takes part only when an administrator has said so.

mod machine;
mod network;
mod offline;
mod store;

pub(crate) use machine::{Machine, SharedMap};
pub(crate) use network::{ENTRY_BYTES_MAX, Job, JobFailed, Network, PeerAnswer, PeerRequest, Who, answer};
pub(crate) use offline::{map_of, seed};
pub(crate) use store::{Failure, Identity, OpenError, Store};

use serde::{Deserialize, Serialize};
use std::io::Cursor;
use std::net::{Ipv4Addr, SocketAddr};
use trefoil_core::map::reign::ReignId;
pub(crate) use trefoil_core::map::reign::{Outcome, Proposal};

/// Bytes of a snapshot: the largest map, and what is beside it.
pub(crate) const SNAPSHOT_BYTES_MAX: usize = trefoil_core::map::MAP_BYTES_MAX + (1 << 20);
/// Bytes of a snapshot in one message.
pub(crate) const SNAPSHOT_PART_BYTES: u64 = 2 << 20;

/// A monitor as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Where the others reach it.
    pub address: SocketAddr,
    /// Of its data directory.
    pub incarnation: u64,
}

impl Default for Member {
    fn default() -> Member {
        Member { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), incarnation: 0 }
    }
}

/// The reign of an entry, or of a vote: a monitor leads in a term once, without a gap.
pub(crate) fn reign_of(leader: &openraft::LeaderId<u64>) -> ReignId {
    ReignId { term: leader.term, monitor: leader.node_id }
}

openraft::declare_raft_types!(
    /// The types of the monitors' Raft.
    pub(crate) Types:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Member,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, Member>;

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod simulated_disk;
#[cfg(test)]
mod tests;
