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
/// Repairs that a node runs besides [`NODE_REPAIRS_MAX`] if clients wait for them. Further ones wait at the front
/// of the queue.
pub const NODE_REPAIRS_URGENT_MAX: usize = 4;
/// Repairs that no client waits for are taken on for as much as the node's budget gives in so long (µs), and
/// always one; others are put off: their leader is told, and comes again. A copy under repair owes its leader
/// the writes that come meanwhile, so that it must not wait here for long.
pub const NODE_REPAIRS_AHEAD_US: u64 = 500_000;
/// Fetches of other nodes that wait for their turn at a source. Further ones are answered "not yet".
pub const NODE_FETCHES_MAX: usize = 64;
/// A Fetch that has waited for so long (µs) is answered "not yet": the asker asks again, or has a better source.
pub const FETCH_WAIT_MAX: u64 = 1_000_000;
/// Repairs that a leader orders of one node at once, per volume. Fewer while the node puts some off.
pub const LEADER_REPAIRS_PER_NODE: usize = 8;
/// Repairs that a leader orders at once, of all nodes together, besides those that clients wait for.
pub const LEADER_REPAIRS_MAX: usize = 64;
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
/// Ticks from a node's start to its first comparison, and over how many more the nodes spread theirs.
pub const DIGESTS_AFTER_TICKS: u32 = 10;
/// See [`DIGESTS_AFTER_TICKS`].
pub const DIGESTS_SPREAD_TICKS: u32 = 40;
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
/// Placement groups that wait for their scrub at a node. More are refused, and asked for again by the schedule.
pub const NODE_SCRUBS_MAX: usize = 4096;
/// Objects that a node compares with its peers at once. Others wait their turn.
pub const SCRUB_LOOKS_MAX: usize = 8;
/// Objects that a scrub begins to compare in one tick; an eighth of it while clients are being served.
pub const SCRUB_OBJECTS_PER_TICK: usize = 32;
/// Placement groups whose scrub begins in one tick.
pub const SCRUB_WALKS_PER_TICK: usize = 2;
/// Objects that peers have asked about and found different, and that wait to be looked at here too. Of more, the
/// asker asks again.
pub const SCRUB_WANTED_MAX: usize = 1024;
/// Peers' questions about objects that a node answers at once. Beyond it the answer is "not now".
pub const SCRUB_ANSWERS_MAX: usize = 64;
/// How often an object is looked at again where a copy was at another head, or away, before what the others come
/// to is believed to be without a majority.
pub const SCRUB_TRIES_MAX: u32 = 6;
/// Ticks between two looks at the same object.
pub const SCRUB_AGAIN_TICKS: u32 = 5;
/// Ticks between two looks at objects with blocks in doubt: a copy that was away may settle them.
pub const DOUBTS_EVERY_TICKS: u32 = 30;
/// Objects with blocks in doubt at one node. What is found beyond is not marked, but counted and found again; a
/// repair that would bring more is given up.
pub const NODE_DOUBTED_OBJECTS_MAX: usize = 4096;
/// A front end calls at its nodes when its lease ends within so long (µs) and is not renewed. As early that the
/// monitors have it from the nodes' heartbeats (1 s apart; one may be lost, 2 s) before they take the lease for
/// over, a margin after it ends; and so late that one that renews (every 2 s, for 6 s) never calls.
pub const CALL_BEFORE: u64 = 3_000_000;
/// Time between two calls (µs).
pub const CALL_EVERY: u64 = 1_000_000;
/// A node hears a leader for so long (µs) after its last call.
pub const CALL_FRESH: u64 = 3_000_000;
/// The monitors believe a node's word on whom it hears for so long (µs): one that is silent for longer says nothing.
/// Heartbeats are a second apart, and one that is lost costs two.
pub const CALL_BELIEVED: u64 = 5_000_000;
/// Leaders that call and that a node remembers, one per volume, and names in one heartbeat. Of more it says only
/// that there are more: then every volume that a front end holds counts as heard.
pub const CALLERS_MAX: usize = 4096;
/// Blocks of one piece that a deep scrub reads (512 KiB).
pub const SCRUB_PIECE_BLOCKS: u32 = 128;
