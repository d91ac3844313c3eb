//! Verifies blocks where they come off the wire: a block that was damaged on its way is never stored.
//!
//! Stateless but for [`Fetches`]: which blocks a piece of a repair must carry follows from the checksums
//! that its Fetch named, so those are kept until the answer comes.

use bytes::Bytes;
use std::collections::VecDeque;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::message::{PeerMsg, ToNode, WriteOp};
use trefoil_core::{BLOCK_SIZE, BlockRange, NodeId, ObjectId};

/// Fetches whose answers are awaited. A node runs
/// [`trefoil_core::limits::NODE_REPAIRS_MAX`] repairs, each with one Fetch under way; those that were
/// given up are forgotten from the oldest on, and their late answers are dropped.
const FETCHES_MAX: usize = 32;

/// A block is not what its message says.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {block} of {object} was damaged on the way: its checksum does not match")]
pub struct Damaged {
    object: ObjectId,
    block: u32,
}

fn check(object: ObjectId, block: u32, checksum: u64, bytes: &[u8]) -> Result<(), Damaged> {
    if block_checksum(object.group.volume, object.index, block, bytes) == checksum {
        return Ok(());
    }
    Err(Damaged { object, block })
}

/// Verifies the blocks that a leader's message carries. The decoder has made sure that there are as many
/// as it names.
pub fn leader_message(msg: &ToNode<Bytes>) -> Result<(), Damaged> {
    let ToNode::Write { object, op: WriteOp::Data { blocks, checksums, data }, .. } = msg else {
        return Ok(());
    };
    for ((bytes, sum), block) in data.chunks(BLOCK_SIZE).zip(checksums).zip(blocks.first..) {
        check(*object, block, *sum, bytes)?;
    }
    Ok(())
}

/// What becomes of a peer's message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be believed as far as its blocks go.
    Good,
    /// Nobody waits for it (any more).
    Stale,
    /// It carries another number of blocks than were asked for.
    Malformed,
    /// A block is damaged.
    Damaged(Damaged),
}

/// Fetches that were sent and not answered yet.
#[derive(Debug, Default)]
pub struct Fetches(VecDeque<Fetch>);

#[derive(Debug)]
struct Fetch {
    node: NodeId,
    request: u64,
    object: ObjectId,
    blocks: BlockRange,
    have: Box<[u64]>,
}

impl Fetches {
    /// Notes a message that goes to a peer.
    pub fn sent(&mut self, node: NodeId, msg: &PeerMsg<Bytes>) {
        if let PeerMsg::Fetch { object, request, blocks, have, .. } = msg {
            // One repair of an object at a time, and one piece of it: an older one was given up.
            self.0.retain(|fetch| fetch.object != *object);
            if self.0.len() >= FETCHES_MAX {
                self.0.pop_front();
            }
            let (object, request, blocks, have) = (*object, *request, *blocks, have.clone());
            self.0.push_back(Fetch { node, request, object, blocks, have });
        }
    }

    /// The peer's answers will not come.
    pub fn peer_gone(&mut self, node: NodeId) {
        self.0.retain(|fetch| fetch.node != node);
    }

    fn take(&mut self, node: NodeId, request: u64) -> Option<Fetch> {
        let at = self.0.iter().position(|f| f.node == node && f.request == request)?;
        self.0.remove(at)
    }

    /// Verifies a message of a peer.
    pub fn came(&mut self, node: NodeId, msg: &PeerMsg<Bytes>) -> Verdict {
        match msg {
            PeerMsg::Piece { object, request, blocks, checksums, bad, data, .. } => {
                let Some(fetch) = self.take(node, *request) else { return Verdict::Stale };
                if (fetch.object, fetch.blocks) != (*object, *blocks) {
                    return Verdict::Malformed;
                }
                let differs = |(have, sum): (&u64, &u64)| have != sum && *sum != HOLE;
                let mut pieces = data.chunks_exact(BLOCK_SIZE);
                for (pair, block) in fetch.have.iter().zip(checksums).zip(blocks.first..) {
                    if !differs(pair) || bad.contains(&block) {
                        continue;
                    }
                    let Some(bytes) = pieces.next() else { return Verdict::Malformed };
                    if let Err(damaged) = check(*object, block, *pair.1, bytes) {
                        return Verdict::Damaged(damaged);
                    }
                }
                match pieces.next() {
                    None => Verdict::Good,
                    Some(_) => Verdict::Malformed,
                }
            }
            PeerMsg::NotYet { request, .. } => {
                self.take(node, *request);
                Verdict::Good
            }
            PeerMsg::Block { object, block, checksum, data: Some(data), .. } => {
                match check(*object, *block, *checksum, data) {
                    Ok(()) => Verdict::Good,
                    Err(damaged) => Verdict::Damaged(damaged),
                }
            }
            _ => Verdict::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::{Ballot, GroupId, Head, PgId, VolumeId};

    fn object() -> ObjectId {
        ObjectId { group: GroupId { volume: VolumeId(7), pg: PgId::default() }, index: 3 }
    }
    fn block(byte: u8) -> Vec<u8> {
        vec![byte; BLOCK_SIZE]
    }
    fn sum(number: u32, byte: u8) -> u64 {
        block_checksum(VolumeId(7), 3, number, &block(byte))
    }

    #[test]
    fn a_damaged_write_is_seen() {
        let write = |bytes: [u8; 2]| ToNode::Write {
            object: object(),
            ballot: Ballot(1),
            seq: 1,
            snap: 0,
            op: WriteOp::Data {
                blocks: BlockRange::new(4, 2),
                checksums: [sum(4, 1), sum(5, 2)].into(),
                data: bytes.map(block).concat().into(),
            },
        };
        assert_eq!(leader_message(&write([1, 2])), Ok(()));
        assert_eq!(leader_message(&write([1, 3])).map_err(|d| d.block), Err(5));
        assert_eq!(leader_message(&write([2, 1])).map_err(|d| d.block), Err(4));
    }

    fn fetch(request: u64) -> PeerMsg<Bytes> {
        PeerMsg::Fetch {
            object: object(),
            ballot: Ballot(1),
            request,
            min: 0,
            blocks: BlockRange::new(0, 4),
            have: [sum(0, 1), HOLE, sum(2, 3), sum(3, 4)].into(),
        }
    }
    /// Block 0 is equal, 1 and 2 differ, 3 is a hole at the source.
    fn piece(request: u64, bad: Vec<u32>, bytes: &[u8]) -> PeerMsg<Bytes> {
        PeerMsg::Piece {
            object: object(),
            ballot: Ballot(1),
            request,
            head: Head::ZERO,
            blocks: BlockRange::new(0, 4),
            checksums: [sum(0, 1), sum(1, 8), sum(2, 9), HOLE].into(),
            bad,
            doubts: Vec::new(),
            data: bytes.iter().flat_map(|b| block(*b)).collect::<Vec<u8>>().into(),
        }
    }

    #[test]
    fn a_piece_carries_exactly_the_blocks_that_differ() {
        let node = NodeId(1);
        let verdict = |bad: Vec<u32>, bytes: &[u8]| {
            let mut fetches = Fetches::default();
            fetches.sent(node, &fetch(5));
            fetches.came(node, &piece(5, bad, bytes))
        };
        assert_eq!(verdict(vec![], &[8, 9]), Verdict::Good);
        assert_eq!(verdict(vec![1], &[9]), Verdict::Good);
        assert!(matches!(verdict(vec![], &[9, 8]), Verdict::Damaged(_)));
        assert_eq!(verdict(vec![], &[8]), Verdict::Malformed);
        assert_eq!(verdict(vec![1], &[9, 9]), Verdict::Malformed);
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_dropped() {
        let mut fetches = Fetches::default();
        fetches.sent(NodeId(1), &fetch(5));
        assert_eq!(fetches.came(NodeId(2), &piece(5, vec![], &[8, 9])), Verdict::Stale);
        assert_eq!(fetches.came(NodeId(1), &piece(6, vec![], &[8, 9])), Verdict::Stale);
        fetches.peer_gone(NodeId(1));
        assert_eq!(fetches.came(NodeId(1), &piece(5, vec![], &[8, 9])), Verdict::Stale);
        fetches.sent(NodeId(1), &fetch(1));
        fetches.sent(NodeId(2), &fetch(2));
        assert_eq!(fetches.0.len(), 1, "the first one was given up");
        assert_eq!(fetches.came(NodeId(1), &piece(1, vec![], &[8, 9])), Verdict::Stale);
        assert_eq!(fetches.came(NodeId(2), &piece(2, vec![], &[8, 9])), Verdict::Good);
        for request in 0..2 * FETCHES_MAX as u64 {
            let mut other = fetch(request);
            if let PeerMsg::Fetch { object, .. } = &mut other {
                object.index = request as u32;
            }
            fetches.sent(NodeId(1), &other);
        }
        assert_eq!(fetches.0.len(), FETCHES_MAX);
    }
}
