//! What goes into the node's machine and what comes out.

use crate::ids::*;
use crate::message::{FromNode, GroupList, ListRequest, PeerMsg, ToNode};
use crate::placement::{PgConfig, PoolPgs};
use crate::record::Record;
use serde::{Deserialize, Serialize};

/// A connection from a leader. A later connection has a greater number; none is used twice in one run.
pub type ConnId = u64;

/// Numbers the records that the machine gives out, from 1, without gaps. A ticket is durable when its
/// record and all before it are.
pub type Ticket = u64;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input<P> {
    /// A leader said something. Messages of one connection come in their order.
    Leader {
        /// The connection.
        conn: ConnId,
        /// What it said.
        msg: ToNode<P>,
    },
    /// A leader's connection is gone. What it asked for and waits for is dropped.
    LeaderGone {
        /// The connection.
        conn: ConnId,
    },
    /// Another node said something.
    Peer {
        /// Which node.
        node: NodeId,
        /// What it said.
        msg: PeerMsg<P>,
    },
    /// The connection to another node is gone, or could not be made. Answers that were to come will not.
    PeerGone {
        /// Which node.
        node: NodeId,
    },
    /// All records up to this ticket are durable.
    Durable {
        /// The ticket.
        ticket: Ticket,
    },
    /// The store's answer to [`Output::Read`].
    Read {
        /// The Read's.
        token: u64,
        /// What it found.
        found: ReadResult<P>,
    },
    /// The store has found that a block's bytes are not good (while reading, or in a scrub).
    BadBlock {
        /// The object.
        object: ObjectId,
        /// The block.
        block: u32,
        /// Its checksum in the table.
        checksum: u64,
    },
    /// The store has lost state that this node had reported as durable (N8). Said at most once, before
    /// anything else; `fences` has the generation that the monitors have granted last, for every volume.
    StateLost {
        /// Per volume.
        fences: Vec<(VolumeId, Generation)>,
    },
    /// Pools have so many placement groups now. Said before the [`Input::Config`] of the same map.
    Pools(Vec<(PoolId, PoolPgs)>),
    /// Placement groups have these configurations now. A PG that is not named is as before.
    Config(Vec<(PgId, PgConfig)>),
    /// The committed map shows these volumes as deleted, or as issued and gone.
    VolumesDeleted(Vec<VolumeId>),
    /// The monitors want to know what groups a placement group has here (M3). Answered with
    /// [`Output::Listed`], or not at all if the node has answered under a later epoch.
    List {
        /// Names the answer.
        id: u64,
        /// What they ask.
        request: ListRequest,
    },
    /// The calendar, or an administrator, wants this of scrub.
    Scrub(ScrubOrder),
    /// Time has passed. Wanted about ten times in a second.
    Tick,
}

/// What a node's scrub is to do.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScrubOrder {
    /// Scrub a placement group now: compare its copies with the peers'.
    Scrub {
        /// Which one.
        pg: PgId,
        /// Read and verify every block, too.
        deep: bool,
    },
    /// An administrator has said whose copy of disputed blocks is to be believed. Said to every member.
    Believe {
        /// The object.
        object: ObjectId,
        /// Which blocks.
        blocks: BlockRange,
        /// The node whose copy it is.
        from: NodeId,
    },
}

/// What a read of the store found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadResult<P> {
    /// The table's checksums, one for each block; [`crate::checksum::HOLE`] for a hole.
    pub checksums: Box<[u64]>,
    /// The bytes of the blocks asked for that are neither holes nor bad (nor, for
    /// [`ReadMode::Differing`], equal), in order.
    pub data: P,
    /// Blocks asked for whose bytes are not good: they failed their checksum or could not be read.
    pub bad: Vec<u32>,
}

/// Which bytes a read wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Of every block that is no hole.
    All,
    /// Of blocks whose checksum in the table is another than the one given (one for each block).
    Differing(Box<[u64]>),
    /// None: the checksums only.
    ChecksumsOnly,
}

/// What a scrub of a placement group came to.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Objects that this node has of it.
    pub objects: u64,
    /// Of these, those that were behind or being repaired, and were left out.
    pub skipped: u64,
    /// Bytes that were read and verified, holes counted as if they were bytes.
    pub bytes: u64,
    /// Blocks whose bytes were not good.
    pub bad: u64,
    /// Blocks of this node's copies that were outvoted by others.
    pub outvoted: u64,
    /// Blocks that are disputed: no majority.
    pub disputed: u64,
}

/// Something is to be done. Outputs are carried out in their order.
#[derive(Clone, Debug)]
pub enum Output<P> {
    /// Make this durable, behind all that was given before; then say [`Input::Durable`].
    Persist {
        /// Its number.
        ticket: Ticket,
        /// The record.
        record: Record<P>,
    },
    /// Send to a leader. What the message claims is durable already.
    ToLeader {
        /// The connection.
        conn: ConnId,
        /// The message.
        msg: FromNode<P>,
    },
    /// Send to another node; connect if need be. If that fails, say [`Input::PeerGone`].
    ToPeer {
        /// Which node.
        node: NodeId,
        /// The message.
        msg: PeerMsg<P>,
    },
    /// Read blocks as they are after all records given so far and before all later ones; then say
    /// [`Input::Read`].
    Read {
        /// Names the answer.
        token: u64,
        /// The object.
        object: ObjectId,
        /// Which blocks.
        blocks: BlockRange,
        /// Which bytes.
        mode: ReadMode,
    },
    /// Close a leader's connection: it broke the protocol, or was replaced by a newer one.
    CloseLeader {
        /// The connection.
        conn: ConnId,
        /// Why, for the log.
        why: &'static str,
    },
    /// A group here differs from a peer's and no leader is connected that could be told: the monitors
    /// are to have it healed (section 8).
    Differs {
        /// The group.
        group: GroupId,
    },
    /// A [`ScrubOrder::Scrub`] is through.
    Scrubbed {
        /// The placement group.
        pg: PgId,
        /// It was a deep one.
        deep: bool,
        /// What was found.
        found: Scrubbed,
    },
    /// The answer to an [`Input::List`]. What it claims is durable already.
    Listed {
        /// The List's.
        id: u64,
        /// The groups.
        list: GroupList,
    },
}
