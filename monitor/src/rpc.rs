//! What daemons and administrators ask the monitors, and what they answer.
//!
//! A frame of kind [`KIND_REQUEST`] or [`KIND_RESPONSE`] whose meta is a version byte, the request's id
//! (u64, little-endian) and a `postcard` value. Ids are the asker's; answers come in any order.
//! Append variants at the end only, and raise [`VERSION`] where a type changes.
//!
//! Kept here: requests, answers, errors, and how they travel. [`heartbeat`] has what daemons say of themselves,
//! [`told`] what is told of others; both are part of this module's names.
//!
//! Times that travel are lengths in microseconds, never points in time: no two clocks are compared.

mod heartbeat;
mod told;

pub use heartbeat::{Daemon, DeviceHealth, Heartbeat, LostOrder};
pub use told::{Granted, MonitorStatus, MonitorsStatus, MoveStatus, MovesStatus, PgStatus};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::net::SocketAddr;
use trefoil_core::crush::CrushMap;
use trefoil_core::leader::report::NodeReport;
use trefoil_core::map::admin::PoolChange;
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{Ack, Event, FailureDomain, Holder, LayoutReport, MapError, MoveLimits, Out, Volume};
use trefoil_core::message::{GroupList, ListRequest};
use trefoil_core::node::ScrubOrder;
use trefoil_core::{BlockRange, Generation, GroupId, Incarnation, NodeId, PgId, PoolId, VolumeId};
use trefoil_transport::KIND_USER_MIN;

use crate::health::Status;
use crate::scrub::{CopyDoubts, ScrubReport};

/// The frame of a [`Request`].
pub const KIND_REQUEST: u16 = KIND_USER_MIN;
/// The frame of a [`Response`].
pub const KIND_RESPONSE: u16 = KIND_USER_MIN + 1;
/// From a monitor to another one: what they say to each other is Raft's.
pub(crate) const KIND_PEER_REQUEST: u16 = KIND_USER_MIN + 2;
/// The answer.
pub(crate) const KIND_PEER_RESPONSE: u16 = KIND_USER_MIN + 3;
/// Of every type here. Both sides must have the same.
pub const VERSION: u8 = 8;

/// Requests under way on one connection. Further ones are answered [`RpcError::TooMany`].
pub const REQUESTS_MAX: usize = 64;
/// Differing groups in one heartbeat. A node with more reports the rest when these are healed.
pub const DIFFERING_MAX: usize = 256;
/// Events in one answer.
pub const EVENTS_PER_ANSWER_MAX: usize = 512;
/// Volumes in one Renew, Release or HealWork. A front end with more sends several.
pub const VOLUMES_PER_REQUEST_MAX: usize = 1024;
/// Lists that a node is asked for in one answer. It asks for more when it has answered.
pub const LISTS_PER_ANSWER_MAX: usize = 16;
/// The longest [`Request::WaitMap`] and [`Request::NodeWork`], in microseconds.
pub const WAIT_MAX: u64 = 30_000_000;

/// Bytes of a whole map in one answer; a larger one comes in several. A difference that is larger is not
/// sent: the whole map is.
pub const MAP_PART_BYTES: usize = 4 << 20;

/// Names a map that a monitor has sent, so that it can send the difference to a later one. All zeros:
/// none.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapId {
    /// The monitor's process.
    pub boot: u64,
    /// [`trefoil_core::map::ClusterMap::version`].
    pub version: u64,
    /// With log positions. What daemons follow is without.
    pub full: bool,
}

/// Names a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKey {
    /// By its id.
    Id(VolumeId),
    /// By its name, as clients do.
    Name(String),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// The map, if its layout is not the one that the asker acts on.
    GetMap {
        /// [`trefoil_core::map::ClusterMap::layout`] of that. 0: none, or whatever it is, the map as it
        /// is now is wanted.
        have: u64,
        /// The map that the asker has, for the answer to be the difference to it.
        base: MapId,
    },
    /// As GetMap, and waits until there is another layout, or for `timeout` microseconds.
    WaitMap {
        /// As in GetMap.
        have: u64,
        /// As in GetMap.
        base: MapId,
        /// At most [`WAIT_MAX`].
        timeout: u64,
    },
    /// A storage node introduces itself.
    RegisterNode {
        /// The id that it was given before.
        id: Option<NodeId>,
        /// Its store.
        incarnation: Incarnation,
        /// Where it listens.
        address: SocketAddr,
        /// Its CRUSH host.
        host: String,
        /// Its device class.
        class: Option<String>,
        /// Bytes of its device.
        size: u64,
    },
    /// A node lives.
    Heartbeat(Heartbeat),
    /// The volume, please. To be asked again after the time that Busy names, or sooner.
    Attach {
        /// Which one.
        volume: VolumeKey,
        /// For whom.
        holder: Holder,
        /// A promise that a node named when it refused, above all granted generations (6.5); else 0.
        above: Generation,
    },
    /// These are still in use.
    Renew {
        /// By whom.
        holder: Holder,
        /// Which ones, at most [`VOLUMES_PER_REQUEST_MAX`].
        volumes: Vec<(VolumeId, Generation)>,
        /// What the holder's leaders find of nodes: of all its volumes, whichever are named here. At most
        /// [`REPORT_NODES_MAX`](trefoil_core::leader::report::REPORT_NODES_MAX).
        nodes: Vec<NodeReport>,
    },
    /// These are not in use any more.
    Release {
        /// Volume, generation, and whether every member holds every object whole, so that there is
        /// nothing to heal. At most [`VOLUMES_PER_REQUEST_MAX`].
        volumes: Vec<(VolumeId, Generation, bool)>,
    },
    /// Volumes to heal (section 8), each with a generation for it.
    HealWork {
        /// Who would do it; its kind must be Healer.
        holder: Holder,
        /// How many more it can take.
        max: u32,
    },
    /// What has happened after a number: of the map's events, at most [`EVENTS_PER_ANSWER_MAX`].
    Events {
        /// [`trefoil_core::map::Event::seq`] of the last one that is known; 0: none.
        after: u64,
        /// Wait for so many microseconds where there is none.
        timeout: u64,
    },
    /// Nodes are out, or in.
    SetNodesOut {
        /// Which ones; `None`: in.
        nodes: Vec<(NodeId, Option<Out>)>,
    },
    /// How is everything?
    Status,
    /// A new pool.
    CreatePool {
        /// Its name.
        name: String,
        /// Copies.
        size: u8,
        /// Placement groups.
        pg_num: u32,
        /// What puts copies apart.
        domain: FailureDomain,
        /// When a write is acknowledged.
        ack: Ack,
    },
    /// A new volume.
    CreateVolume {
        /// Its name.
        name: String,
        /// Its pool's name.
        pool: String,
        /// Bytes.
        size: u64,
        /// Bytes of an object.
        object_size: u64,
        /// Milliseconds.
        io_timeout: Option<u64>,
    },
    /// A volume goes, with its data.
    RemoveVolume {
        /// Which one.
        volume: VolumeKey,
    },
    /// Another CRUSH map.
    SetCrush {
        /// The map.
        crush: Box<CrushMap>,
    },
    /// A further part of a map.
    MapPart {
        /// Which one: that of the first part.
        of: MapId,
        /// How many bytes the asker has.
        offset: u64,
    },
    /// What the map says now of one volume: its holder, above all.
    Volume {
        /// Which one.
        volume: VolumeKey,
    },
    /// Another CRUSH map, if nobody has changed it since it was read.
    ReplaceCrush {
        /// [`trefoil_core::map::ClusterMap::crush_version`] of the map that it was made of.
        seen: u64,
        /// The new one.
        crush: Box<CrushMap>,
    },
    /// Are you there? Answered at once by a monitor that is not stopped, whether it leads or not.
    Ping,
    /// The monitors, as the one that is asked knows them. Answered by any.
    Monitors,
    /// A monitor that waits to join becomes one of the cluster: first it is sent everything, then it votes.
    AddMonitor {
        /// Its number.
        id: u64,
        /// Where it listens.
        address: SocketAddr,
        /// The monitor whose place it takes, in one step.
        replaces: Option<u64>,
    },
    /// A monitor is one of the cluster no more.
    RemoveMonitor {
        /// Its number.
        id: u64,
        /// Although those that are left and answer would be no majority.
        force: bool,
    },
    /// What the monitors want to know of a node: as soon as there is something, or after `timeout`.
    NodeWork {
        /// Which one asks.
        node: NodeId,
        /// Its store.
        incarnation: Incarnation,
        /// In microseconds; at most [`WAIT_MAX`].
        timeout: u64,
    },
    /// What a node was asked for with NodeWork.
    Listed {
        /// Which one answers.
        node: NodeId,
        /// Its store.
        incarnation: Incarnation,
        /// What it says.
        list: GroupList,
    },
    /// Where placement groups live, as far as a node knows: it was asked with NodeWork.
    Layout {
        /// Which one answers.
        node: NodeId,
        /// Its store.
        incarnation: Incarnation,
        /// What it says.
        report: LayoutReport,
    },
    /// What is on the move?
    Moves,
    /// Moves stop where they are, or go on.
    PauseMoves {
        /// Stop.
        paused: bool,
    },
    /// Back to where the placement group was, and no new move of it until moves are resumed.
    UndoMove {
        /// Which one.
        pg: PgId,
    },
    /// How much may be moved at once.
    SetMoveLimits {
        /// The limits.
        limits: MoveLimits,
    },
    /// What each copy of a placement group holds: its nodes are asked.
    Pg {
        /// Which one.
        pg: PgId,
    },
    /// The asker's life before this one ended without a stop.
    Died {
        /// Who it is.
        daemon: Daemon,
        /// Names the life that ended.
        life: u64,
    },
    /// Somebody has seen that daemons died.
    AcknowledgeDeaths {
        /// Which ones, as health names them; none: all.
        daemons: Vec<String>,
    },
    /// A health check that applies is not to be heard of for a while.
    Mute {
        /// Its code.
        code: String,
        /// Milliseconds.
        time_ms: u64,
        /// Why; may be empty.
        because: String,
    },
    /// It is to be heard of again.
    Unmute {
        /// Its code.
        code: String,
    },
    /// A node's data is to live elsewhere for good, or not any more.
    DrainNode {
        /// Which one.
        node: NodeId,
        /// Or undo it.
        drain: bool,
        /// [`trefoil_core::map::ClusterMap::crush_version`] that was looked at.
        seen: u64,
    },
    /// A node that holds nothing is one of the cluster no more.
    RemoveNode {
        /// Which one.
        node: NodeId,
    },
    /// A setting of a pool.
    SetPool {
        /// The pool's name.
        pool: String,
        /// Which, and to what.
        change: PoolChange,
    },
    /// How a node's scrub is; answered with what it is to do.
    Scrub(Box<ScrubReport>),
    /// A placement group is to be scrubbed now.
    OrderScrub {
        /// Which one.
        pg: PgId,
        /// Every block is to be read, too.
        deep: bool,
    },
    /// Of blocks that are disputed, the copy of one node is to be believed.
    SettleBlocks {
        /// The volume.
        volume: VolumeKey,
        /// The object.
        index: u32,
        /// Which blocks.
        blocks: BlockRange,
        /// Whose copy.
        from: NodeId,
    },
    /// What nodes have said of the blocks of a placement group that are in doubt.
    Doubts {
        /// Which one.
        pg: PgId,
    },
    /// A pool gets more placement groups, if it has as many as the asker saw.
    SetPgNum {
        /// The pool.
        pool: PoolId,
        /// How many it had.
        seen: u32,
        /// How many it is to have.
        pg_num: u32,
    },
    /// A node has less than it had reported as durable (5.9). Answered with [`Response::LostData`], and told again
    /// until that says that the node has taken note.
    LostData {
        /// Whose leader has found it: the volume's holder now.
        holder: Holder,
        /// The volume.
        volume: VolumeId,
        /// The leader's generation.
        generation: Generation,
        /// Which node.
        node: NodeId,
        /// Its store.
        incarnation: Incarnation,
    },
}

impl Request {
    /// True where asking twice does no more than asking once, so that the client may ask again when it
    /// does not know whether the first was heard. (Attach is: a second generation for the same
    /// process replaces its first.)
    pub fn is_idempotent(&self) -> bool {
        !matches!(
            self,
            Request::CreatePool { .. }
                | Request::CreateVolume { .. }
                | Request::RemoveVolume { .. }
                | Request::AddMonitor { .. }
                | Request::RemoveMonitor { .. }
                | Request::ReplaceCrush { .. }
                | Request::DrainNode { .. }
                | Request::RemoveNode { .. }
                | Request::Unmute { .. }
                | Request::SetPgNum { .. }
        )
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// The asker has the latest layout.
    MapUnchanged {
        /// It.
        layout: u64,
    },
    /// The frame's payload is the map, or the first part of it: [`VERSION`] and its `postcard`.
    Map {
        /// Its layout.
        layout: u64,
        /// It.
        id: MapId,
        /// Its bytes, all parts together.
        bytes: u64,
    },
    /// The node's id.
    Node(NodeId),
    /// To a heartbeat.
    Alive {
        /// The latest layout: a node with an older one asks for the map.
        layout: u64,
        /// The greatest log position that the monitors have been told by this node. A node whose log
        /// ends before it at start has lost state (N8). After a monitor's restart it may be
        /// some seconds old.
        position_floor: u64,
        /// A leader has found that the node has less than it had reported as durable (5.9): its state is lost
        /// (N8). Said until the node names it in [`Heartbeat::lost_noted`].
        lost_order: Option<LostOrder>,
    },
    /// Here it is.
    Granted(Box<Granted>),
    /// Not now.
    Busy {
        /// Who has it.
        holder: Holder,
        /// Microseconds after which it is worth asking again at the latest.
        retry_after: u64,
    },
    /// To a renewal.
    Renewed {
        /// Volume by volume, in the order of the question.
        volumes: Vec<(VolumeId, Renewal)>,
        /// The latest layout.
        layout: u64,
        /// Groups of these volumes that nodes say differ: open them in the background.
        differing: Vec<GroupId>,
    },
    /// What to heal.
    Heal(Vec<Granted>),
    /// How everything is.
    Status(Box<Status>),
    /// What has happened.
    Events {
        /// Oldest first.
        events: Vec<Event>,
        /// The number of the last one that there is.
        last: u64,
    },
    /// The pool's id.
    Pool(PoolId),
    /// The volume's id.
    Volume(VolumeId),
    /// It is done.
    Done,
    /// It is not.
    Error(RpcError),
    /// The frame's payload is what makes the map of the asker's `base`: [`VERSION`] and the `postcard` of
    /// a [`trefoil_core::map::MapDelta`].
    MapDelta {
        /// The layout of the map that comes out.
        layout: u64,
        /// It.
        id: MapId,
    },
    /// The frame's payload is the next part.
    MapPart,
    /// The volume; none where there is none of that name.
    Info(Option<Box<Volume>>),
    /// Yes.
    Pong,
    /// The monitors.
    Monitors(Box<MonitorsStatus>),
    /// What a node is asked.
    NodeWork {
        /// List (M3), for each of these. At most [`LISTS_PER_ANSWER_MAX`].
        lists: Vec<ListRequest>,
        /// Where placement groups live: the monitors were restored from a backup.
        layout: bool,
    },
    /// What is on the move.
    Moves(Box<MovesStatus>),
    /// The placement group.
    Pg(Box<PgStatus>),
    /// What a node's scrub is to do.
    ScrubOrders(Vec<ScrubOrder>),
    /// What each node of a placement group says of its copies.
    Doubts(Vec<CopyDoubts>),
    /// To [`Request::LostData`].
    LostData {
        /// The node has taken note, durably. False: not yet.
        noted: bool,
    },
}

/// Why a request failed. Nothing was changed, but for [`RpcError::Unsure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RpcError {
    /// The map does not allow it.
    #[error("{0}")]
    Refused(#[from] MapError),
    /// The request cannot be read, or breaks a limit.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// More than [`REQUESTS_MAX`] at once on one connection.
    #[error("more than {REQUESTS_MAX} requests at once on one connection: wait for answers")]
    TooMany,
    /// This monitor does not lead (yet): try again, or another one.
    #[error("this monitor does not lead at present: {why}")]
    NotLeading {
        /// What it knows of it.
        why: String,
        /// Who does, as far as it knows.
        leader: Option<SocketAddr>,
    },
    /// The monitor failed while it did it; it may yet take effect.
    #[error("the monitor cannot tell whether it was done: {0}")]
    Unsure(String),
    /// A role that may not ask this.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// The monitor does not have the map any more whose parts the asker fetches: it begins again.
    #[error("the map has changed while it was fetched: ask again")]
    MapMoved,
    /// A limit is reached that is not for long: try again later.
    #[error("not now: {0}")]
    Later(String),
}

/// Appends what each meta begins with.
pub(crate) fn begin(meta: &mut bytes::BytesMut, id: u64) {
    meta.extend_from_slice(&[VERSION]);
    meta.extend_from_slice(&id.to_le_bytes());
}

/// Appends the meta of a request or response to a buffer.
pub(crate) fn encode<T: Serialize>(meta: &mut bytes::BytesMut, id: u64, value: &T) {
    begin(meta, id);
    // postcard fails for sequences of unknown length only, and there are none here.
    if let Ok(bytes) = postcard::to_stdvec(value) {
        meta.extend_from_slice(&bytes);
    }
}

/// The id of a request or response, and the rest.
pub(crate) fn split(meta: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (version, rest) = meta.split_first()?;
    let (id, rest) = rest.split_first_chunk::<8>()?;
    Some((*version, u64::from_le_bytes(*id), rest))
}

/// What is behind the id; bytes that are left over are an error.
pub(crate) fn decode<T: DeserializeOwned>(version: u8, rest: &[u8]) -> Result<T, String> {
    if version != VERSION {
        return Err(format!(
            "version {version}, this monitor speaks {VERSION}: run the same release on both sides"
        ));
    }
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        Ok((_, left)) => Err(format!("{} bytes left over", left.len())),
        Err(error) => Err(error.to_string()),
    }
}
