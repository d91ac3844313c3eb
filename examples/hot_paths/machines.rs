//! A leader and three nodes, without anything between them.
//!
//! What a node is told to make durable is durable at once, what it is told to read is there: the store has
//! cases of its own.

use crate::count::{case, measured};
use bytes::Bytes;
use trefoil_core::checksum::block_checksum;
use trefoil_core::client::{ClientOp, OpId, OpKind};
use trefoil_core::leader::{self, Leader, Options, VolumeSpec};
use trefoil_core::message::FromNode;
use trefoil_core::node::{self, Node, NodeConfig, ReadResult, Ticket};
use trefoil_core::placement::PgConfig;
use trefoil_core::record::Durable;
use trefoil_core::*;

const VOLUME: VolumeId = VolumeId(7);
/// As many as a small pool has.
const PGS: u32 = 128;
const OBJECTS: u32 = 256;
const NODES: usize = 3;
/// Any connection: there is one from the leader to each node.
const CONN: u64 = 1;

/// Whose work counts.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Who {
    Nobody,
    Leader,
    /// One of the three.
    Node,
}

struct Trio {
    now: Time,
    leader: Leader<Bytes>,
    nodes: Vec<Node<Bytes>>,
    next_op: u64,
    block: Bytes,
    out: Vec<leader::Output<Bytes>>,
    node_out: Vec<node::Output<Bytes>>,
    answers: Vec<(usize, FromNode<Bytes>)>,
    done: usize,
}

impl Trio {
    fn new() -> Trio {
        let now = Time(1);
        let set: Vec<NodeId> = (0..NODES as u32).map(NodeId).collect();
        let pgs: Vec<PgConfig> = (0..PGS).map(|_| PgConfig::simple(Epoch(1), set.clone())).collect();
        let configs: Vec<(PgId, PgConfig)> =
            (0..).zip(&pgs).map(|(pg, config)| (PgId { pool: PoolId(1), pg }, config.clone())).collect();
        let nodes = set.iter().map(|id| {
            let mut node = Node::new(NodeConfig { id: *id }, Durable::default());
            node.handle(now, node::Input::Config(configs.clone()), &mut Vec::new());
            node
        });
        let spec = VolumeSpec {
            id: VOLUME,
            generation: Generation(1),
            object_blocks: 1024,
            objects: OBJECTS,
            pool: PoolId(1),
            pgs: pgs.into(),
            pg_of: |volume, object, pg_num| crush::object_pg(volume.0, object, pg_num),
            snap: 0,
        };
        let mut trio = Trio {
            now,
            nodes: nodes.collect(),
            leader: Leader::new(now, spec, Options::default()),
            next_op: 0,
            block: crate::block(1).into(),
            out: Vec::new(),
            node_out: Vec::new(),
            answers: Vec::new(),
            done: 0,
        };
        trio.tell(leader::Input::Lease { until: Time(u64::MAX >> 1) });
        for node in set {
            trio.tell(leader::Input::NodeUp { node });
        }
        while !trio.leader.all_whole() {
            trio.now = trio.now.after(10_000);
            trio.tell(leader::Input::Tick);
        }
        // Every object is there from here on.
        for _ in 0..OBJECTS {
            trio.batch(1, true, false, Who::Nobody);
        }
        trio
    }

    fn tell(&mut self, input: leader::Input<Bytes>) {
        self.leader.handle(self.now, input, &mut self.out);
        self.run(Who::Nobody);
    }

    /// Until nobody has anything left to do. Each node takes all that came, then all is durable.
    fn run(&mut self, who: Who) {
        while !self.out.is_empty() {
            let mut sent: [Vec<node::Input<Bytes>>; NODES] = Default::default();
            for output in std::mem::take(&mut self.out) {
                match output {
                    leader::Output::Send { to, msg } => {
                        for node in to.as_slice() {
                            sent[node.0 as usize].push(node::Input::Leader { conn: CONN, msg: msg.clone() });
                        }
                    }
                    leader::Output::Done(done) => {
                        assert!(done.result.is_ok());
                        self.done += 1;
                    }
                    leader::Output::Attached => {}
                    other => panic!("{other:?}"),
                }
            }
            for (n, inputs) in sent.into_iter().enumerate() {
                self.node(n, inputs, who == Who::Node && n == 0);
            }
            for (n, msg) in std::mem::take(&mut self.answers) {
                let (now, out) = (self.now, &mut self.out);
                let input = leader::Input::Node { node: NodeId(n as u32), msg };
                measured(who == Who::Leader, || self.leader.handle(now, input, out));
            }
        }
    }

    fn node(&mut self, n: usize, inputs: Vec<node::Input<Bytes>>, counts: bool) {
        let mut next = inputs;
        while !next.is_empty() {
            let (now, out, node) = (self.now, &mut self.node_out, &mut self.nodes[n]);
            for input in next.drain(..) {
                measured(counts, || node.handle(now, input, out));
            }
            let mut durable: Ticket = 0;
            for output in out.drain(..) {
                match output {
                    node::Output::Persist { ticket, .. } => durable = ticket,
                    node::Output::ToLeader { msg, .. } => self.answers.push((n, msg)),
                    node::Output::Read { token, object, blocks, .. } => {
                        let sum = block_checksum(VOLUME, object.index, blocks.first, &self.block);
                        let found =
                            ReadResult { checksums: Box::new([sum]), data: self.block.clone(), bad: vec![] };
                        next.push(node::Input::Read { token, found });
                    }
                    other => panic!("{other:?}"),
                }
            }
            if durable > 0 {
                next.push(node::Input::Durable { ticket: durable });
            }
        }
    }

    /// So many operations at once, each on an object of its own, or all on one as a sequential stream.
    fn batch(&mut self, depth: u32, write: bool, stream: bool, who: Who) {
        let before = self.done;
        for n in 0..depth {
            self.next_op += 1;
            let object = if stream { 9 } else { (self.next_op % u64::from(OBJECTS)) as u32 };
            let blocks = BlockRange::new(5 + n, 1);
            let kind = match write {
                true => {
                    let checksums = Box::new([block_checksum(VOLUME, object, blocks.first, &self.block)]);
                    OpKind::Write { blocks, checksums, data: self.block.clone() }
                }
                false => OpKind::Read { blocks },
            };
            let input = leader::Input::Op(ClientOp { id: OpId(self.next_op), object, kind });
            let (now, out) = (self.now, &mut self.out);
            measured(who == Who::Leader, || self.leader.handle(now, input, out));
        }
        self.run(who);
        assert_eq!(self.done - before, depth as usize);
    }
}

pub fn cases() {
    let mut trio = Trio::new();
    for (who, name) in [(Who::Leader, "leader"), (Who::Node, "node")] {
        for (write, what) in [(true, "write"), (false, "read")] {
            for (depth, stream, how) in
                [(1, false, "depth 1"), (32, false, "depth 32"), (32, true, "depth 32, one object")]
            {
                let who = |counts| if counts { who } else { Who::Nobody };
                // A batch is one call, and `depth` operations.
                let mut left = 0;
                case(&format!("{name}: {what} 4k, {how}"), 256, |_, counts| {
                    if left == 0 {
                        left = depth;
                        trio.batch(depth, write, stream, who(counts));
                    }
                    left -= 1;
                });
            }
        }
    }
}
