//! What can be done to the cluster map: the entries of the monitors' Raft log.
//!
//! A command carries everything that its effect depends on; times and random numbers are drawn by
//! the monitor that proposes it. Append variants at the end only: logs are read after an upgrade.

use super::admin::PoolChange;
use super::moves::MoveLimits;
use super::mutes::{Mute, MuteEnd};
use super::types::*;
use crate::crush::CrushMap;
use crate::ids::*;
use crate::limits::{GROUP_OBJECTS_MAX, OBJECT_SIZE_MAX, OBJECT_SIZE_MIN};
use crate::placement::PgConfig;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What puts copies apart.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureDomain {
    /// Each copy on another host.
    #[default]
    Host,
    /// Each copy on another node; hosts do not matter. For trials on one host.
    Osd,
    /// A rule of the CRUSH map by its id.
    Rule(u32),
}

/// One volume in a [`Command::GrantGenerations`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which one.
    pub volume: VolumeId,
    /// The generation that the proposer saw. If another was granted since, this grant is refused:
    /// what the proposer knew of the holder's lease was about this one.
    pub seen: Generation,
    /// A generation that a node has promised to somebody, above all that the monitors knew (6.5);
    /// the new one is above it. 0 if there is none.
    pub above: Generation,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The first entry.
    Init {
        /// Drawn at random; not zero.
        cluster_id: [u8; 16],
        /// For people.
        name: String,
    },
    /// A node introduces itself. Doing it again changes nothing but address and size.
    RegisterNode {
        /// The id that it was given before, if it knows it.
        id: Option<NodeId>,
        /// The name of its store; not zero.
        incarnation: Incarnation,
        /// Where it listens.
        address: SocketAddr,
        /// The CRUSH bucket of type `host` for it; made below the root `default` if there is none.
        host: String,
        /// Its device class.
        class: Option<String>,
        /// Bytes of its device.
        size: u64,
        /// Milliseconds since 1970.
        now: u64,
    },
    /// Nodes whose heartbeats came again or stopped.
    SetNodesUp {
        /// Which ones, and whether they are up.
        nodes: Vec<(NodeId, bool)>,
        /// Milliseconds since 1970.
        now: u64,
    },
    /// Nodes that have lost acknowledged state (N8), or have been healed after it.
    SetNodeLost {
        /// Which one.
        node: NodeId,
        /// Lost, or healed.
        lost: bool,
    },
    /// Log positions that nodes have reported as durable. The greatest is kept.
    ReportPositions {
        /// Node and position.
        positions: Vec<(NodeId, u64)>,
    },
    /// A new pool; its placement groups are placed at once.
    CreatePool {
        /// Its name.
        name: String,
        /// Copies: 3 or 5; or 2, for those who know that two cannot outvote each other.
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
        /// The pool's name.
        pool: String,
        /// Bytes; a multiple of 4096.
        size: u64,
        /// Bytes of an object.
        object_size: u64,
        /// Milliseconds.
        io_timeout: Option<u64>,
    },
    /// A volume goes, with all that is in it.
    RemoveVolume {
        /// Which one.
        volume: VolumeId,
        /// The generation of a holder whose lease, the proposer knows, has run out.
        expired: Option<Generation>,
    },
    /// New generations. Whether the last holder's lease allows it is the proposer's to know (6.2).
    GrantGenerations {
        /// Of which volumes; each at most once.
        grants: Vec<Grant>,
        /// To whom.
        holder: Holder,
    },
    /// Holders let go.
    Release {
        /// Volume, generation, and whether every copy is whole.
        volumes: Vec<(VolumeId, Generation, bool)>,
    },
    /// Another CRUSH map. Moves nothing by itself.
    SetCrush {
        /// The new one.
        crush: Box<CrushMap>,
    },
    /// Nodes whose data is to live elsewhere, or that get data again.
    SetNodesOut {
        /// Which ones; `None`: in.
        nodes: Vec<(NodeId, Option<Out>)>,
    },
    /// As SetCrush, if nobody has changed the CRUSH map since: it was made of one that was read.
    ReplaceCrush {
        /// [`ClusterMap::crush_version`](super::ClusterMap::crush_version) when it was read.
        seen: u64,
        /// The new one.
        crush: Box<CrushMap>,
    },
    /// A member of a placement group is to be replaced: `to` begins to learn.
    StartMove {
        /// The placement group.
        pg: PgId,
        /// The epoch that the proposer saw.
        epoch: Epoch,
        /// Who leaves.
        from: NodeId,
        /// Who comes.
        to: NodeId,
    },
    /// A move goes from learn to joint, or from joint to its end. Whether it may is the proposer's to know
    /// ([`super::mover`]).
    AdvanceMove {
        /// The placement group.
        pg: PgId,
        /// The epoch that the proposer saw, and has found to be ready.
        epoch: Epoch,
    },
    /// A move that is not final is undone.
    UndoMove {
        /// The placement group.
        pg: PgId,
        /// The epoch that the proposer saw.
        epoch: Epoch,
    },
    /// Moves stop where they are, or go on.
    PauseMoves {
        /// Stop.
        paused: bool,
    },
    /// How much may be moved at once.
    SetMoveLimits {
        /// The limits.
        limits: MoveLimits,
    },
    /// Undo a placement group's move, if it has one, and begin none until moves are resumed.
    HoldMove {
        /// Which one.
        pg: PgId,
        /// Its present epoch.
        epoch: Epoch,
    },
    /// After a restore from a backup: how placement groups are laid out, as nodes know it.
    AdoptLayout {
        /// Those that the backup has otherwise; at most [`BATCH_MAX`].
        configs: Vec<(PgId, PgConfig)>,
        /// All have been adopted, with those of this command: the map is that of the cluster again.
        last: bool,
    },
    /// A health check is not to be heard of for a while.
    Mute {
        /// Its code.
        code: String,
        /// Until when, and what for.
        mute: Mute,
        /// Milliseconds since 1970.
        now: u64,
    },
    /// Mutes end.
    Unmute {
        /// Which ones, and why.
        codes: Vec<(String, MuteEnd)>,
    },
    /// A daemon has ended without having been stopped.
    Died {
        /// Which one.
        daemon: String,
        /// Names the life that ended: told again, it is no news.
        life: u64,
        /// Milliseconds since 1970.
        now: u64,
    },
    /// Somebody has seen that daemons died.
    AcknowledgeDeaths {
        /// Which ones; none: all.
        daemons: Vec<String>,
    },
    /// A node's data is to live elsewhere for good, or not any more.
    DrainNode {
        /// Which one.
        node: NodeId,
        /// Or undo it.
        drain: bool,
        /// [`ClusterMap::crush_version`](super::ClusterMap::crush_version) that was looked at.
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
    /// A pool gets more placement groups: its present ones are split, where they are.
    SetPgNum {
        /// The pool.
        pool: PoolId,
        /// How many it had when the proposer looked.
        seen: u32,
        /// How many it is to have.
        pg_num: u32,
    },
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The node's id.
    Node(NodeId),
    /// The pool's id.
    Pool(PoolId),
    /// The volume's id.
    Volume(VolumeId),
    /// For each grant, in order: the generation, or why not.
    Granted(Vec<Result<Generation, MapError>>),
}

/// Why a command changed nothing. Travels to whoever asked, so each text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MapError {
    /// Nothing but Init is possible before Init.
    #[error("the cluster has not been initialised")]
    NotInitialised,
    /// Init a second time.
    #[error("the cluster has been initialised already")]
    AlreadyInitialised,
    /// The name is not one.
    #[error(
        "{0:?} is no name: use 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
    )]
    BadName(String),
    /// The name is taken.
    #[error("{what} {name:?} exists already")]
    Exists {
        /// What it is.
        what: String,
        /// Its name.
        name: String,
    },
    /// There is nothing of that name.
    #[error("there is no {what} {name}")]
    Missing {
        /// What it is.
        what: String,
        /// Its name or id.
        name: String,
    },
    /// A limit of the cluster is reached.
    #[error("the cluster may have at most {max} {what}")]
    Full {
        /// What there are too many of.
        what: String,
        /// The limit.
        max: u64,
    },
    /// A number that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A known node came back with another store.
    #[error(
        "{node} is known with incarnation {known:?}, not {given:?}: a device that was formatted anew is a new \
         node; let it register without its old id"
    )]
    OtherIncarnation {
        /// The id that it claims.
        node: NodeId,
        /// What the map has.
        known: Incarnation,
        /// What it has.
        given: Incarnation,
    },
    /// The rule does not find enough nodes.
    #[error(
        "placement group {pg} would have {found} copies of {wanted}: add nodes (with failure domain host, on more \
         hosts), or choose another failure domain"
    )]
    TooFewNodes {
        /// The first group for which it fails.
        pg: u32,
        /// Nodes that the rule found.
        found: usize,
        /// Nodes that it needs.
        wanted: usize,
    },
    /// The CRUSH map refuses.
    #[error("CRUSH map: {0}")]
    Crush(String),
    /// The size is not possible.
    #[error("a volume of {0} bytes: the size must be a multiple of 4096 between 4096 and {VOLUME_SIZE_MAX}")]
    BadSize(u64),
    /// The object size is not possible.
    #[error(
        "objects of {0} bytes: the size must be a power of two between {OBJECT_SIZE_MIN} and {OBJECT_SIZE_MAX}"
    )]
    BadObjectSize(u64),
    /// A group would have too many objects.
    #[error(
        "about {objects} objects in one group: the limit is {GROUP_OBJECTS_MAX}; use a pool with more placement \
         groups, larger objects, or a smaller volume"
    )]
    GroupTooLarge {
        /// Objects to be expected in the largest group.
        objects: u64,
    },
    /// The volume has a holder.
    #[error("volume {name:?} is attached by {holder}; detach it first")]
    Attached {
        /// The volume.
        name: String,
        /// Who has it.
        holder: String,
    },
    /// The generation was not the current one.
    #[error("generation {given} of the volume is over: {current} was granted since")]
    Stale {
        /// What was given.
        given: Generation,
        /// The last that was granted.
        current: Generation,
    },
    /// The CRUSH map is another one than that which was edited.
    #[error(
        "the CRUSH map was changed since it was read: version {current} now, {seen} then; read it again, and make the \
         change on that"
    )]
    CrushChanged {
        /// What was given.
        seen: u64,
        /// What it is.
        current: u64,
    },
    /// The store is that of a node that was removed.
    #[error(
        "this store was {node}, which was removed from the cluster: to add the device as a new node, format it anew \
         (`trefoil storage-node format --force`) and start it with an empty state_dir"
    )]
    Removed {
        /// What it was.
        node: NodeId,
    },
    /// The pool has another number of placement groups than the proposer saw.
    #[error("pool {name:?} has {current} placement groups, not {seen}: it was changed since; look again")]
    OtherPgNum {
        /// The pool.
        name: String,
        /// What was given.
        seen: u32,
        /// What it is.
        current: u32,
    },
    /// Placement groups that are on the move are not split.
    #[error(
        "{moving} placement groups of pool {name:?} are on the move, {first} among them: a placement group is split \
         when it is in one place; wait until `trefoil move status` shows none of this pool, or undo them"
    )]
    Moving {
        /// The pool.
        name: String,
        /// How many.
        moving: usize,
        /// One of them.
        first: PgId,
    },
    /// The epoch was not the current one.
    #[error("placement group {pg} is in epoch {current}, not {given}: it was changed since; look again")]
    OtherEpoch {
        /// The placement group.
        pg: PgId,
        /// What was given.
        given: Epoch,
        /// What it is.
        current: Epoch,
    },
    /// The map is a backup's, and nodes may know a later layout.
    #[error(
        "this map was restored from a backup, and it is being checked with the nodes where placement groups live: \
         wait; `trefoil health` says which nodes are missing"
    )]
    Unchecked,
}
