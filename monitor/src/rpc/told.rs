//! What monitors tell: of moves, of placement groups, of themselves, and of volumes that they grant.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use trefoil_core::map::mover::Waits;
use trefoil_core::map::{MoveLimits, Volume};
use trefoil_core::message::ListedGroup;
use trefoil_core::placement::PgConfig;
use trefoil_core::{Epoch, Generation, NodeId, PgId, VolumeId};

/// A move that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveStatus {
    /// Of which placement group.
    pub pg: PgId,
    /// Who leaves.
    pub from: NodeId,
    /// Who comes.
    pub to: NodeId,
    /// The placement group's epoch.
    pub epoch: Epoch,
    /// It is in the joint stage; else the new node is learning.
    pub joint: bool,
    /// Members of the old set that have answered in this epoch.
    pub answered: u32,
    /// Members of the old set.
    pub members: u32,
    /// Groups that they have named so far.
    pub groups: u32,
    /// Of these, those that the new node lacks or is not level with.
    pub lacking: u32,
    /// Objects that are behind at the new node; none: it has not answered in this epoch.
    pub behind: Option<u64>,
    /// The most that this was since the move began, or since this monitor leads.
    pub behind_max: u64,
    /// Microseconds since the move began, or since this monitor leads.
    pub age: u64,
}

/// What is on the move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovesStatus {
    /// Nothing is begun or taken further.
    pub paused: bool,
    /// How much may be.
    pub limits: MoveLimits,
    /// Placement groups whose move was undone, and that get none until moves are resumed.
    pub held: Vec<PgId>,
    /// In order of their placement groups.
    pub moves: Vec<MoveStatus>,
    /// Why placement groups are not moved that should be: for each reason how many, as far as the leading
    /// monitor has looked since it looked at the first one.
    pub waits: Vec<(Waits, u32)>,
}

/// A placement group, and what its nodes say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgStatus {
    /// How it is laid out.
    pub config: PgConfig,
    /// What each of its nodes has of it, in order; none: it did not answer in time.
    pub copies: Vec<(NodeId, Option<Vec<ListedGroup>>)>,
}

/// A monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorStatus {
    /// Its number.
    pub id: u64,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Of its data directory.
    pub incarnation: u64,
    /// It votes; else it is still learning.
    pub voter: bool,
    /// It is the one that leads, as far as the answering one knows.
    pub leader: bool,
    /// It has answered lately; none: the answering one does not lead and cannot know.
    pub up: Option<bool>,
    /// The last log entry that it is known to have; none as above.
    pub log: Option<u64>,
}

/// The monitors, as one of them knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorsStatus {
    /// The cluster's name.
    pub cluster_name: String,
    /// The cluster's id.
    pub cluster_id: [u8; 16],
    /// The number of the one that answers.
    pub answered_by: u64,
    /// It leads, and a majority has said so within the last second or so.
    pub leads: bool,
    /// Raft's term.
    pub term: u64,
    /// Its last log entry.
    pub log: u64,
    /// The last entry that it has applied to its map.
    pub applied: u64,
    /// Its map's version.
    pub version: u64,
    /// In order of their numbers.
    pub monitors: Vec<MonitorStatus>,
}

/// A volume that was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Its id.
    pub volume: VolumeId,
    /// The generation: never granted before, never granted again.
    pub generation: Generation,
    /// What the map says of it.
    pub info: Volume,
    /// The lease lasts this many microseconds *from when the request was sent*.
    pub lease: u64,
    /// It should be renewed this often, in microseconds.
    pub renew: u64,
}
