//! What leaders and nodes say to each other: section 3 of `docs/protocol.md`.
//!
//! `P` is the payload: shared bytes in the daemons, small stand-ins in the simulator. Leader and node
//! speak over one ordered connection per pair; every answer names what it is for. How a message looks
//! on the wire is [`crate::wire`]'s business.

use crate::ids::*;
use crate::scrub::Doubt;
use serde::{Deserialize, Serialize};

/// The change that a write makes to an object's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp<P> {
    /// New bytes.
    Data {
        /// Which blocks.
        blocks: BlockRange,
        /// One for each block; never [`crate::checksum::HOLE`].
        checksums: Box<[u64]>,
        /// The bytes.
        data: P,
    },
    /// Holes, which read as zeros.
    Zero {
        /// Which blocks.
        blocks: BlockRange,
    },
}

impl<P> WriteOp<P> {
    /// The blocks that it changes.
    pub fn blocks(&self) -> BlockRange {
        match self {
            WriteOp::Data { blocks, .. } | WriteOp::Zero { blocks } => *blocks,
        }
    }
    /// Blocks of data that it carries: what it needs of a store's room, and of a queue's.
    pub fn data_blocks(&self) -> u32 {
        match self {
            WriteOp::Data { blocks, .. } => blocks.count,
            WriteOp::Zero { .. } => 0,
        }
    }
}

/// Leader to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode<P> {
    /// Refuse every leader of this volume below `generation` from now on.
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The generation of the sender.
        generation: Generation,
    },
    /// Promise `ballot`, and tell the votes (N1).
    Open {
        /// The group.
        group: GroupId,
        /// The ballot.
        ballot: Ballot,
        /// The configuration that the leader opens it under.
        epoch: Epoch,
    },
    /// Join the ballot's line (N2).
    Settle {
        /// The group.
        group: GroupId,
        /// The ballot.
        ballot: Ballot,
        /// Objects whose copy here is not in line.
        except: Vec<ObjectIndex>,
    },
    /// Write number `seq` of an object (N3).
    Write {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// Its number.
        seq: u64,
        /// The newest snapshot that the leader knows; 0 for none.
        snap: u64,
        /// What changes.
        op: WriteOp<P>,
    },
    /// Pull what differs from another node's copy (N4).
    Repair {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// The node to pull from.
        from: NodeId,
        /// The last number issued; the source must have it, the writes behind it are on their way here.
        upto: u64,
        /// Blocks in an object of this volume.
        object_blocks: u32,
        /// A client waits for it.
        urgent: bool,
    },
    /// Read blocks (N6).
    Read {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// Names the answer.
        id: u64,
        /// Which blocks.
        blocks: BlockRange,
        /// False: checksums only (which blocks are holes).
        data: bool,
    },
    /// Say whether the promise is still this ballot (N6).
    Confirm {
        /// The group.
        group: GroupId,
        /// The ballot.
        ballot: Ballot,
        /// Names the answer.
        id: u64,
    },
}

/// A node's vote on one object, as [`FromNode::Opened`] carries it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ObjectVote {
    /// The object.
    pub index: ObjectIndex,
    /// Its head here.
    pub head: Head,
    /// Its line, if it is behind; else its line is the group's `settled`.
    pub behind: Option<Line>,
}

/// The line of a copy that is behind.
#[derive(Copy, Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Line {
    /// It was last brought in line by this ballot, and votes with it.
    At(Ballot),
    /// The node has lost what it knew of it: it has no vote (N8).
    Lost,
}

/// Node to leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromNode<P> {
    /// The fence is durable.
    Fenced {
        /// The volume.
        volume: VolumeId,
        /// The generation that was asked for.
        generation: Generation,
    },
    /// A newer leader was here before.
    FenceRefused {
        /// The volume.
        volume: VolumeId,
        /// The generation that was asked for.
        generation: Generation,
        /// The fence.
        fence: Generation,
    },
    /// The promise is durable; these are the votes.
    Opened {
        /// The group.
        group: GroupId,
        /// The ballot.
        ballot: Ballot,
        /// The ballot in whose line this node last was brought.
        settled: Ballot,
        /// The node has lost its state of the whole group: no vote on any object (N8).
        lost: bool,
        /// The objects that it has, and those which it lacks and is behind with.
        objects: Vec<ObjectVote>,
    },
    /// The Open was refused.
    OpenRefused {
        /// The group.
        group: GroupId,
        /// The ballot that was asked for.
        ballot: Ballot,
        /// The promise.
        promised: Ballot,
        /// The volume's fence here.
        fence: Generation,
        /// The epoch of the placement group here.
        epoch: Epoch,
        /// Why.
        why: Refusal,
    },
    /// The line is durable.
    Settled {
        /// The group.
        group: GroupId,
        /// The ballot.
        ballot: Ballot,
    },
    /// Everything of this ballot's history up to `seq` is durable here.
    Have {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// The number.
        seq: u64,
        /// The node is short of room: it will soon answer [`FromNode::NoSpace`].
        full: bool,
    },
    /// The copy does not follow: the write does not fit on its head, or its repair was given up.
    Gap {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// The copy's head.
        head: Head,
        /// True where this ends a Repair that was ordered; false where it refuses a write.
        repair: bool,
    },
    /// No room; nothing was applied.
    NoSpace {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// The number that was refused.
        seq: u64,
    },
    /// The blocks of a Read.
    Data {
        /// The group.
        group: GroupId,
        /// The Read's.
        id: u64,
        /// One for each block; [`crate::checksum::HOLE`] for a hole.
        checksums: Box<[u64]>,
        /// The bytes of the blocks that are no holes, in order. Empty if only checksums were asked for.
        data: P,
    },
    /// What is in doubt of an object's copy here (P3): this, and nothing else.
    Doubts {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// Some blocks are outvoted: the leader has the copy repaired from another one.
        outvoted: bool,
        /// These are disputed, ascending: the leader fails reads of them until they are written.
        disputed: Vec<u32>,
    },
    /// Some blocks of a Read have no good bytes here.
    Bad {
        /// The group.
        group: GroupId,
        /// The Read's.
        id: u64,
        /// Which ones.
        blocks: Vec<u32>,
    },
    /// The Read or Confirm is of another ballot, or the object is behind here.
    ReadRefused {
        /// The group.
        group: GroupId,
        /// The Read's or Confirm's.
        id: u64,
    },
    /// The promise is still the Confirm's ballot.
    Confirmed {
        /// The group.
        group: GroupId,
        /// The Confirm's.
        id: u64,
    },
    /// The node has seen that its copy of the group differs from a peer's: the leader opens the group in
    /// the background (section 8).
    Differs {
        /// The group.
        group: GroupId,
    },
}

/// Why an Open was refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Refusal {
    /// Promised to a higher ballot, or fenced: the leader is deposed, or its round is too low.
    Promised,
    /// The epoch is older than one under which the node has answered.
    Epoch,
    /// The node is no member of the placement group under that epoch, as far as its map goes.
    NotMember,
    /// The node has lost state and waits for the monitors' word before it answers (N8).
    NotReady,
}

/// The bit in a Fetch's request that says that a client waits: it is served before its turn. An opaque part of
/// the number to nodes that do not know it.
pub const FETCH_URGENT: u64 = 1 << 63;

/// What a copy is beside the asker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScrubFound {
    /// At another head, behind, or busy: not comparable now.
    Unlike,
    /// At the same head, with the same checksums, and no block in doubt.
    Same,
    /// At the same head: these are its checksums.
    Sums {
        /// From block 0 on; all behind the last are holes.
        checksums: Box<[u64]>,
        /// Its blocks in doubt, ascending.
        doubts: Vec<(u32, Doubt)>,
    },
}

/// Node to node. None of these changes what a copy holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMsg<P> {
    /// Give what differs (N5).
    Fetch {
        /// The object.
        object: ObjectId,
        /// The ballot of the repair.
        ballot: Ballot,
        /// Names the answer. With [`FETCH_URGENT`] a client waits for it.
        request: u64,
        /// The least head number that will do.
        min: u64,
        /// Which blocks; at most [`crate::limits::PIECE_BLOCKS_MAX`].
        blocks: BlockRange,
        /// The asker's checksums of them.
        have: Box<[u64]>,
    },
    /// The answer to a Fetch.
    Piece {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// The Fetch's.
        request: u64,
        /// The source's head when the blocks were read.
        head: Head,
        /// Which blocks.
        blocks: BlockRange,
        /// The source's checksums of them.
        checksums: Box<[u64]>,
        /// Blocks that differ, and of which the source has no good bytes.
        bad: Vec<u32>,
        /// Blocks that are in doubt at the source: the copy made from it is as doubtful.
        doubts: Vec<(u32, Doubt)>,
        /// The bytes of the blocks that differ and are neither holes nor bad, in order.
        data: P,
    },
    /// The source cannot serve the Fetch (now).
    NotYet {
        /// The object.
        object: ObjectId,
        /// The ballot.
        ballot: Ballot,
        /// The Fetch's.
        request: u64,
    },
    /// Give the block that has this checksum, whatever the ballot (section 9, bad block).
    FetchBlock {
        /// The object.
        object: ObjectId,
        /// Names the answer.
        request: u64,
        /// The block.
        block: u32,
        /// Its checksum in the asker's table.
        checksum: u64,
    },
    /// The answer to a FetchBlock.
    Block {
        /// The object.
        object: ObjectId,
        /// The FetchBlock's.
        request: u64,
        /// The FetchBlock's.
        block: u32,
        /// The FetchBlock's. The receiver's shell verifies the bytes against it.
        checksum: u64,
        /// The bytes, if the node has them under that checksum.
        data: Option<P>,
    },
    /// What does your copy of this object hold? (Scrub, section 9.)
    ScrubAsk {
        /// The object.
        object: ObjectId,
        /// Names the answer.
        request: u64,
        /// The asker's head: only a copy at the same one is comparable.
        head: Head,
        /// [`crate::scrub::table_sum`] of the asker's recorded checksums.
        sum: u64,
    },
    /// The answer to a ScrubAsk.
    ScrubTell {
        /// The object.
        object: ObjectId,
        /// The ScrubAsk's.
        request: u64,
        /// What was found.
        found: ScrubFound,
    },
    /// What the sender's copy of a group adds up to (section 8). Answered only when it differs.
    Digest {
        /// The group.
        group: GroupId,
        /// Its line.
        settled: Ballot,
        /// Over all heads and lines.
        digest: u64,
    },
    /// The answer to a Digest that differs.
    DigestDiffers {
        /// The group.
        group: GroupId,
    },
    /// The sender is no member any more and would delete its copy of the group (N7): does the receiver hold
    /// at least as much?
    Compare {
        /// The group.
        group: GroupId,
        /// The epoch under which the sender is no member.
        epoch: Epoch,
        /// Names the answer.
        request: u64,
        /// The ballot in whose line the sender last was brought.
        settled: Ballot,
        /// Its votes.
        objects: Vec<ObjectVote>,
    },
    /// The answer to a Compare. The epoch is durable at the one who answers.
    AtLeast {
        /// The group.
        group: GroupId,
        /// The Compare's.
        epoch: Epoch,
        /// The Compare's.
        request: u64,
        /// Every vote of the sender is no greater than this node's, whose copies of these objects are not
        /// behind.
        yes: bool,
    },
}

/// Monitors to node (M3): name every group of a placement group, and open none under an older epoch from
/// now on. Answered with a [`GroupList`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRequest {
    /// The placement group.
    pub pg: PgId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The last generation that was granted, for each volume of the pool. The node fences the volumes, so
    /// that whoever attached with the fence of nodes that leave is not followed by an older front end (6.4).
    pub fences: Vec<(VolumeId, Generation)>,
}

/// A node's answer to a [`ListRequest`]. The epoch and the fences are durable there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupList {
    /// The placement group.
    pub pg: PgId,
    /// The request's.
    pub epoch: Epoch,
    /// Every group with a promise, by volume.
    pub groups: Vec<ListedGroup>,
    /// The node has lost state (N8): there may be groups that it had promised in and does not name.
    pub amnesia: bool,
}

/// One group of a [`GroupList`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedGroup {
    /// The volume.
    pub volume: VolumeId,
    /// The promise.
    pub promised: Ballot,
    /// The line.
    pub settled: Ballot,
    /// The epoch in which the line's ballot was opened.
    pub opened: Epoch,
    /// Objects that are behind.
    pub behind: u32,
    /// The node has lost its votes on the group (N8).
    pub lost: bool,
}

impl ListedGroup {
    /// What is said for a node that has lost state, of a group which it does not name.
    pub fn forgotten(volume: VolumeId) -> ListedGroup {
        let none = Ballot::ZERO;
        ListedGroup { volume, promised: none, settled: none, opened: Epoch(0), behind: 0, lost: true }
    }
}
