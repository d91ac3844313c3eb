//! The limits that both ends of a connection count on. Each has a name, and its doc says what happens
//! when it is reached.

/// Blocks of data in one write or read operation (1 MiB). Larger requests are split by the front end;
/// a node refuses a larger one as malformed.
pub const OP_BLOCKS_MAX: u32 = 256;

/// Blocks in one piece of a repair (512 KiB). A larger object is fetched in several pieces.
pub const PIECE_BLOCKS_MAX: u32 = 128;

/// Smallest and largest object size in bytes; a power of two between them.
pub const OBJECT_SIZE_MIN: u64 = 64 << 10;
/// Largest object size in bytes.
pub const OBJECT_SIZE_MAX: u64 = 8 << 20;
/// Object size where a volume does not name one.
pub const OBJECT_SIZE_DEFAULT: u64 = 4 << 20;

/// Objects in one group. A volume whose groups would be larger is refused at creation, with the advice
/// to use a pool with more placement groups. Keeps an `Opened` below [`FRAME_MAX`].
pub const GROUP_OBJECTS_MAX: usize = 1 << 18;

/// Largest frame on the wire in bytes. A peer that announces a larger one is cut off.
pub const FRAME_MAX: usize = 16 << 20;

/// Members of a placement group's old or new set.
pub const SET_MEMBERS_MAX: usize = 7;

/// Bytes that the front end keeps under way to one node, over all volumes. A node that falls further
/// behind is cut loose: its connection is closed, and what it missed is repaired later.
pub const NODE_BACKLOG_BYTES_MAX: u64 = 64 << 20;
/// Requests that the front end keeps under way to one node; see [`NODE_BACKLOG_BYTES_MAX`].
pub const NODE_BACKLOG_OPS_MAX: usize = 32 << 10;

/// Client operations that a leader holds at once for a volume; the front end stops reading from its
/// clients before that.
pub const LEADER_OPS_MAX: usize = 16 << 10;

/// Repairs that one node runs at once for all leaders; further ones wait in a queue of
/// [`NODE_REPAIR_QUEUE_MAX`].
pub const NODE_REPAIRS_MAX: usize = 4;
/// Repairs that wait at a node. Beyond it the node drops the order; the leader gives it again.
pub const NODE_REPAIR_QUEUE_MAX: usize = 4096;
/// Repairs that a leader orders of one node at once, per volume.
pub const LEADER_REPAIRS_PER_NODE: usize = 8;
/// Bytes that one repair keeps on top of the old copy. Overflow drops the repair; the leader orders it
/// again.
pub const REPAIR_OVERLAY_BYTES_MAX: usize = 4 << 20;
/// Writes that one repair keeps on top of the old copy; see [`REPAIR_OVERLAY_BYTES_MAX`].
pub const REPAIR_OVERLAY_OPS_MAX: usize = 4096;
/// Bytes that all repairs of a node keep on top together; see [`REPAIR_OVERLAY_BYTES_MAX`].
pub const NODE_OVERLAY_BYTES_MAX: usize = 64 << 20;
/// Ticks that a repair waits for a source that is not ready, or for an answer, before it is given up and
/// the leader is told.
pub const REPAIR_WAIT_TICKS_MAX: u32 = 30;
/// Bad blocks that a node looks for at its peers at once. Others are found again by the next read.
pub const NODE_HEALS_MAX: usize = 256;
/// Objects with a damaged table that a node remembers. Others are found again by the next read.
pub const NODE_DAMAGED_MAX: usize = 4096;
/// Groups without a leader that a node compares with its peers at each tick.
pub const DIGESTS_PER_TICK: usize = 8;
/// Blocks in an object of the largest size.
pub const OBJECT_BLOCKS_MAX: u32 = (OBJECT_SIZE_MAX / crate::ids::BLOCK_SIZE as u64) as u32;
/// Placement groups that a node looks at in a tick for whether it has to leave them.
pub const LEAVE_PGS_PER_TICK: usize = 256;
/// Placement groups that a node looks at in a tick for whether they are to be split.
pub const SPLIT_PGS_PER_TICK: usize = 256;
/// Placement groups that a node splits in a tick, besides those that it is asked about. Each may hold up the node
/// for as long as it takes to look at all of their objects.
pub const SPLITS_PER_TICK: usize = 2;
/// Ticks that a node which leaves a placement group waits for the answers to one Compare, before it asks for
/// the group to be opened and goes on with another one.
pub const LEAVE_WAIT_TICKS_MAX: u32 = 10;
