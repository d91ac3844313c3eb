//! What the cluster map is made of: plain data, and the limits of each part.
//!
//! No rule lives here but what a name may look like. Changes are made by
//! [`ClusterMap::apply`](super::ClusterMap::apply) alone.

use crate::ids::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Nodes that a cluster may have, lost ones included; registering more is refused.
pub const NODES_MAX: usize = 10_000;
/// Pools that a cluster may have.
pub const POOLS_MAX: usize = 64;
/// Placement groups of all pools together. 20 bytes of memory each in every daemon.
pub const PGS_MAX: u32 = 1 << 20;
/// Placement groups of one pool. A pool is placed by one command, which holds up the monitors for as long
/// as it takes (some seconds for so many), and a front end has a group of each volume in each of them.
pub const POOL_PGS_MAX: u32 = 1 << 16;
/// Volumes that exist at once.
pub const VOLUMES_MAX: usize = 1 << 15;
/// Bytes of a map, encoded. What the other limits allow, with the longest names and holders, is about
/// 40 MiB; a map with more is refused by those who read it.
pub const MAP_BYTES_MAX: usize = 64 << 20;
/// Bytes in the name of a cluster, a pool, a volume or a host.
pub const NAME_LEN_MAX: usize = 64;
/// Bytes in the identity of a holder.
pub const HOLDER_LEN_MAX: usize = 128;
/// The largest volume, in bytes: 256 TiB.
pub const VOLUME_SIZE_MAX: u64 = 256 << 40;
/// Volumes in one Grant, nodes in one report, and so on: entries of one command.
pub const BATCH_MAX: usize = 10_000;
/// Placement groups of a pool that does not say.
pub const PG_NUM_DEFAULT: u32 = 32;
/// Copies of a pool that does not say.
pub const POOL_SIZE_DEFAULT: u8 = 3;

/// A storage node: one device, under one incarnation, for ever. A device that is formatted again is
/// another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The name of its store, drawn when the device was formatted.
    pub incarnation: Incarnation,
    /// Where it listens.
    pub address: SocketAddr,
    /// The CRUSH bucket of type `host` that it was put in when it registered.
    pub host: String,
    /// Its device class (`ssd`, `hdd`, ...), if it has one.
    pub class: Option<String>,
    /// Bytes of its device.
    pub size: u64,
    /// As far as the monitors know. I/O never waits for this.
    pub up: bool,
    /// When `up` last changed: milliseconds since 1970 by a monitor's clock, for people.
    pub since: u64,
    /// It has said that it lost acknowledged state (N8), and has not been healed since.
    pub lost: bool,
    /// Its data is to live elsewhere: CRUSH gives it nothing.
    pub out: Option<Out>,
    /// How often it has gone down, each time less than [`STEADY_MS`] after it came up.
    pub flaps: u16,
    /// It is being drained: its CRUSH weight is zero, and was this before (16.16).
    pub drained: Option<u32>,
}

/// Who said that a node is out.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Out {
    /// The monitors, because it was down for long. It is in again when it is up again.
    Automatic,
    /// An administrator. It is in again when an administrator says so.
    Administrator,
}

/// A node that was up for so long (ms) before it goes down does not flap.
pub const STEADY_MS: u64 = 600_000;

/// When a write is acknowledged. What is durable is what a majority has, in either case.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ack {
    /// Durable on a majority.
    #[default]
    Majority,
    /// Durable on a majority, and on every copy that the front end counts as in line. One that is away, behind or
    /// left behind does not count: see [`crate::leader`].
    AllInSync,
}

impl std::fmt::Display for Ack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Ack::Majority => "majority",
            Ack::AllInSync => "all-in-sync",
        })
    }
}

/// Volumes that share a rule and a set of placement groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Unique among pools.
    pub name: String,
    /// Copies.
    pub size: u8,
    /// Placement groups; they are `0..pg_num`. May grow.
    pub pg_num: u32,
    /// Placement groups that it had when it was made: what a node has that never heard of a split.
    pub pg_num_first: u32,
    /// The CRUSH rule.
    pub rule: u32,
    /// When a write is acknowledged.
    pub ack: Ack,
}

/// What leads a volume.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HolderKind {
    /// Serves a client.
    FrontEnd,
    /// Brings copies into line, and gives way to any front end.
    Healer,
}

/// Who leads a volume: one process, in one life of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Names it to people: host, process, socket.
    pub name: String,
    /// Drawn at random when the process starts. A process that was restarted is another holder, under
    /// whatever name, and never goes on with the generation of its last life.
    pub boot: u64,
    /// Front end or healer.
    pub kind: HolderKind,
}

impl Holder {
    /// The same process in the same life.
    pub fn is(&self, other: &Holder) -> bool {
        self.boot == other.boot && self.name == other.name
    }
}

/// A snapshot of a volume. Reserved: nothing makes one yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Ascending per volume, from 1; never used again.
    pub id: u64,
    /// Unique in its volume.
    pub name: String,
    /// The volume's size then, in bytes.
    pub size: u64,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique among the volumes that exist: what NBD calls the export.
    pub name: String,
    /// Where it lives.
    pub pool: PoolId,
    /// Bytes, a multiple of the block size.
    pub size: u64,
    /// Bytes of one object, a power of two. Never changes.
    pub object_size: u64,
    /// The last that was granted; 0: never attached.
    pub generation: Generation,
    /// Who was granted it, until it is released. A holder whose lease has run out still stands here.
    pub holder: Option<Holder>,
    /// Every copy was whole at the last release (or nothing was ever written). False while attached.
    pub clean: bool,
    /// Milliseconds after which an I/O that finds no majority fails; none: it waits.
    pub io_timeout: Option<u64>,
    /// Reserved.
    pub snapshots: Vec<Snapshot>,
}

impl Volume {
    /// How many objects it has.
    pub fn objects(&self) -> u32 {
        // CreateVolume refuses volumes with more.
        self.size.div_ceil(self.object_size) as u32
    }
}

/// Which position of its log each node has reported as durable, at most. Kept beside the nodes because
/// it changes all the time and nobody but the node itself asks for it.
pub type Positions = BTreeMap<NodeId, u64>;

/// True for a name of a cluster, pool, volume or host: 1 to [`NAME_LEN_MAX`] of `A-Z a-z 0-9 . _ -`,
/// beginning with a letter or digit. So it needs no quoting in URIs, file names and shells.
pub fn is_name(name: &str) -> bool {
    name.len() <= NAME_LEN_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}
