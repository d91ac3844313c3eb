//! What daemons say of themselves.

use serde::{Deserialize, Serialize};
use trefoil_core::{Generation, GroupId, Incarnation, NodeId, VolumeId};

/// Names what a node is told of writes that it has lost: whose leader found it.
pub type LostOrder = (VolumeId, Generation);

/// How a node's device does. All zeros: nothing was measured.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceHealth {
    /// Reads that ended within the last minute or so.
    pub reads: u64,
    /// Their mean time, in microseconds.
    pub read_us: u64,
    /// The time of the slowest, in microseconds.
    pub read_max_us: u64,
    /// Writes, as `reads`.
    pub writes: u64,
    /// See `read_us`.
    pub write_us: u64,
    /// See `read_max_us`.
    pub write_max_us: u64,
    /// The age of the oldest operation that has not ended, in microseconds.
    pub oldest_us: u64,
    /// Reads and writes that have failed since the node started.
    pub errors: u64,
}

/// What a node says of itself, every second or so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its id.
    pub node: NodeId,
    /// Its store.
    pub incarnation: Incarnation,
    /// The position up to which its log is durable.
    pub position: u64,
    /// It has lost acknowledged state, and not all of it is healed (N8).
    pub lost: bool,
    /// Bytes of its device that can hold data.
    pub bytes_total: u64,
    /// Bytes of them in use.
    pub bytes_used: u64,
    /// It refuses new data for lack of room.
    pub full: bool,
    /// Blocks that are bad here now: their bytes fail their checksum, and no peer had good ones.
    pub bad_blocks: u64,
    /// Blocks whose bytes failed their checksum since the node started, healed or not.
    pub checksum_errors: u64,
    /// Objects that are behind here.
    pub behind: u64,
    /// Reads, writes, and their bytes since the node started.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// See `reads`.
    pub read_bytes: u64,
    /// See `reads`.
    pub write_bytes: u64,
    /// Bytes that came from other nodes to repair copies, since the node started.
    pub recovery_bytes: u64,
    /// Repairs of copies that were completed, since the node started.
    pub repairs: u64,
    /// Its device.
    pub device: DeviceHealth,
    /// Groups of which the node has seen that its copy differs from a peer's (section 8): all of them at
    /// present, at most [`DIFFERING_MAX`](super::DIFFERING_MAX).
    pub differing: Vec<GroupId>,
    /// The last [`Response::Alive`](super::Response::Alive) order in this life of the node which is durable: its state
    /// is marked as lost since.
    pub lost_noted: Option<LostOrder>,
    /// Leaders without a lease that call here (section 8): volume and generation, at most
    /// [`CALLERS_MAX`](trefoil_core::limits::CALLERS_MAX).
    pub callers: Vec<(VolumeId, Generation)>,
    /// There are more than it can name.
    pub callers_more: bool,
}

/// A daemon that has a directory of its own.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Daemon {
    /// A storage node.
    Node(NodeId),
    /// A monitor, by its number.
    Monitor(u64),
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Daemon::Node(node) => write!(f, "{node}"),
            Daemon::Monitor(id) => write!(f, "monitor.{id}"),
        }
    }
}
