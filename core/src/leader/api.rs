//! What goes into a leader's machine and what comes out.

use crate::client::{ClientOp, OpDone};
use crate::ids::*;
use crate::limits::{CALL_BEFORE, CALL_EVERY};
use crate::map::Ack;
use crate::message::{FromNode, ToNode};
use crate::placement::{PgConfig, PgTable, SLOTS_MAX};

/// What a leader has to know of its volume.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// The volume.
    pub id: VolumeId,
    /// The generation that the monitors granted to this leader, and to nobody else ever.
    pub generation: Generation,
    /// Blocks in an object.
    pub object_blocks: u32,
    /// Objects in the volume.
    pub objects: u32,
    /// Its pool.
    pub pool: PoolId,
    /// The pool's placement groups, by number: as they are at the start. Shared with the map, and with the
    /// pool's other volumes.
    pub pgs: PgTable,
    /// Object to placement group: `(volume, object, pg_num)`.
    pub pg_of: fn(VolumeId, ObjectIndex, u32) -> u32,
    /// The newest snapshot; 0 for none.
    pub snap: u64,
}

/// How a leader behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// No client: open every group, make every copy whole, say [`Output::AllWhole`] (section 8).
    pub healer: bool,
    /// A client's operation that takes longer than this (µs) fails; `None`: it waits.
    pub io_timeout: Option<u64>,
    /// When a write is answered: as the pool has it. See [`Input::Ack`].
    pub ack: Ack,
    /// A read is sent to a second node when the first is late: it has not answered for three times what 99
    /// of 100 reads took lately, but for no less and no more than this (µs).
    pub hedge_after: (u64, u64),
    /// A node that has not answered anything for this long (µs), though it was asked, is cut loose.
    pub node_timeout: u64,
    /// A node that is this far behind with writes (µs) is cut loose, if no quorum needs it; as is one that
    /// [`crate::limits::NODE_BACKLOG_BYTES_MAX`] or [`crate::limits::NODE_BACKLOG_OPS_MAX`] are under way to.
    pub lag_max: u64,
    /// A node that was cut loose is left alone for this long (µs) at first, and at most; doubled each time.
    /// Not one that a quorum needs.
    pub hold: (u64, u64),
    /// Groups that are opened in the background at once.
    pub background_opens: usize,
    /// A front end calls at its nodes when its lease ends within the first (µs), at intervals of the second
    /// (section 8); `None`: never.
    pub call: Option<(u64, u64)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            healer: false,
            io_timeout: None,
            ack: Ack::Majority,
            hedge_after: (4_000, 20_000),
            node_timeout: 5_000_000,
            lag_max: 10_000_000,
            hold: (1_000_000, 60_000_000),
            background_opens: 4,
            call: Some((CALL_BEFORE, CALL_EVERY)),
        }
    }
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input<P> {
    /// A connection to this node has been made (a new one; the old one, if any, is gone).
    NodeUp {
        /// Which node.
        node: NodeId,
    },
    /// The connection to this node is gone.
    NodeDown {
        /// Which node.
        node: NodeId,
    },
    /// A node said something on its present connection.
    Node {
        /// Which node.
        node: NodeId,
        /// What it said.
        msg: FromNode<P>,
    },
    /// A client wants something.
    Op(ClientOp<P>),
    /// The lease holds until then, by this process's clock: counted from when the renewal was *sent*.
    Lease {
        /// The end.
        until: Time,
    },
    /// The pool has more placement groups, or others: all of them as they are now, of one map.
    Pgs {
        /// By number.
        pgs: PgTable,
    },
    /// A placement group has a new configuration.
    Config {
        /// Its number in the pool.
        pg: u32,
        /// The configuration.
        config: PgConfig,
    },
    /// The pool's writes are answered so from now on; those under way too.
    Ack {
        /// When a write is answered.
        ack: Ack,
    },
    /// The monitors (or a node) want this group looked at: open it in the background.
    Differs {
        /// The group.
        group: GroupId,
    },
    /// Finish what is under way, take nothing new, then say [`Output::Released`].
    Release,
    /// Time has passed. Wanted whenever [`super::Leader::next_tick`] says.
    Tick,
}

/// What a leader finds of a node; for metrics and status pages. Latencies in µs, of the last seconds or the
/// last few hundred operations; 0 where too few are known. A write counts from its sending until the node has
/// it durably, however long it waited in queues.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// It is spoken to.
    pub up: bool,
    /// It is connected, and left alone for a time because it was too slow.
    pub held: bool,
    /// Reads go to it only if no other node can serve them.
    pub slow: bool,
    /// Half of its reads took no longer.
    pub read_p50: u32,
    /// All but one in a hundred of its reads took no longer.
    pub read_p99: u32,
    /// Half of its writes took no longer.
    pub write_p50: u32,
    /// All but one in a hundred of its writes took no longer.
    pub write_p99: u32,
    /// Reads under way to it.
    pub reads: usize,
    /// Writes under way to it.
    pub backlog_ops: usize,
    /// Their bytes.
    pub backlog_bytes: u64,
    /// How long it has owed the oldest of them, to a factor of two.
    pub backlog_age: u64,
    /// For how long it has been slow (µs); 0: it is not.
    pub slow_for: u64,
    /// Copies on it that are known not to be whole, while it is connected.
    pub behind: usize,
    /// How often it was cut loose.
    pub cuts: u64,
}

/// The nodes that a message goes to.
#[derive(Copy, Clone, Default, PartialEq, Eq)]
pub struct NodeList {
    nodes: [NodeId; SLOTS_MAX],
    len: u8,
}

impl NodeList {
    /// One node.
    pub fn one(node: NodeId) -> NodeList {
        let mut list = NodeList::default();
        list.push(node);
        list
    }
    /// Adds a node. More than [`SLOTS_MAX`] are not possible in a configuration; one more is dropped.
    pub fn push(&mut self, node: NodeId) {
        if let Some(slot) = self.nodes.get_mut(usize::from(self.len)) {
            *slot = node;
            self.len += 1;
        }
    }
    /// The nodes.
    pub fn as_slice(&self) -> &[NodeId] {
        &self.nodes[..usize::from(self.len)]
    }
    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for NodeList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// Something is to be done. Outputs are carried out in their order.
#[derive(Clone, Debug)]
pub enum Output<P> {
    /// Send the same message to these nodes.
    Send {
        /// The nodes.
        to: NodeList,
        /// The message.
        msg: ToNode<P>,
    },
    /// An operation has ended.
    Done(OpDone<P>),
    /// Every placement group's quorum is fenced: no older front end can finish a write (6.4). Operations
    /// given before wait for this by themselves.
    Attached,
    /// A newer leader exists. All operations have failed with Deposed; nothing will be sent any more.
    Deposed {
        /// Its generation, as far as it is known.
        by: Generation,
    },
    /// All operations have ended after a Release.
    Released {
        /// Every object that this leader knows is whole on all of its nodes.
        clean: bool,
    },
    /// A healer's work is done: every group is open and every copy whole. Said again whenever it becomes
    /// true again.
    AllWhole,
    /// Close the connection to this node and connect again after a pause: it has fallen too far behind,
    /// does not answer, or broke the protocol.
    Reset {
        /// Which node.
        node: NodeId,
        /// Why, for the log.
        why: &'static str,
    },
    /// A node has lost what it had reported as durable (5.9): it is not counted before it says so itself; the
    /// monitors are to know (N8), and have it told. Said again when the node is back and does not know.
    LostData {
        /// Which node.
        node: NodeId,
    },
    /// A node's map is newer: fetch the map and give [`Input::Config`].
    MapStale,
    /// The rounds have run out: this leader needs a new generation. Nothing more is opened.
    NeedGeneration,
}
