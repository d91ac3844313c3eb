//! What nodes ask of each other: Fetch (N5), a block by its checksum (section 9), digests (section 8).
//!
//! None of it changes what a copy holds.

use super::{Asked, ConnId, Node, Output, ReadMode, ReadResult, Reading, Ticket};
use crate::checksum::{HOLE, UNKNOWN};
use crate::ids::*;
use crate::limits::{
    DIGESTS_AFTER_TICKS, DIGESTS_PER_TICK, DIGESTS_SPREAD_TICKS, NODE_DAMAGED_MAX, NODE_HEALS_MAX,
    PIECE_BLOCKS_MAX, REPAIR_WAIT_TICKS_MAX,
};
use crate::message::{FromNode, Line, PeerMsg};
use crate::record::{GroupState, Record};
use crate::scrub::Doubt;
use std::ops::Bound;

/// A bad block whose bytes are being looked for.
#[derive(Debug)]
pub(super) struct Heal {
    checksum: u64,
    /// Peers not asked yet.
    left: Vec<NodeId>,
    /// The peer and the request that an answer is awaited of; `None` when nobody had the bytes. Such an
    /// entry stays for a while: a peer whose block is bad too looks for it here, which would find this
    /// one bad again, and so on without end.
    asked: Option<(NodeId, u64)>,
    waited: u32,
}

impl<P: Clone> Node<P> {
    pub(super) fn peer_message(&mut self, node: NodeId, msg: PeerMsg<P>, out: &mut Vec<Output<P>>) {
        match msg {
            PeerMsg::Fetch { object, ballot, request, min, blocks, have } => {
                let fits = blocks.count <= PIECE_BLOCKS_MAX && have.len() == blocks.count as usize;
                let asked = Asked { node, object, ballot, request, min, blocks, have, since: self.now };
                if fits && self.fetchable(object, ballot, min).is_some() {
                    self.serve_in_turn(asked, out);
                } else {
                    asked.refuse(out);
                }
            }
            PeerMsg::Piece { object, ballot, request, head, blocks, checksums, bad, doubts, data } => {
                let claims = (&checksums[..], &bad[..], &doubts[..]);
                self.piece(node, object, (ballot, request, head), blocks, claims, data, out);
            }
            PeerMsg::NotYet { object, request, .. } => self.not_yet(node, object, request),
            PeerMsg::FetchBlock { object, request, block, checksum } => {
                self.split_for(object.group.pg, out);
                let what = Reading::Block { node, object, request, block, checksum };
                self.read(what, object, BlockRange::new(block, 1), ReadMode::All, out);
            }
            PeerMsg::Block { object, request, block, checksum, data } => {
                self.heal_answer(node, object, request, (block, checksum), data, out)
            }
            PeerMsg::Digest { group, settled, digest } => {
                self.split_for(group.pg, out);
                let mine =
                    self.group(group).map_or((Ballot::ZERO, digest_of(&GroupState::default())), |state| {
                        (state.settled.ballot, digest_of(state))
                    });
                // A group that is being led here changes all the time; its leader knows this copy. A node
                // that is leaving, or has left, has nothing to compare.
                let compares = !self.conns.contains_key(&group) && !self.is_outside(group.pg);
                // Where neither has anything, they differ at most in their lines. It may be that no leader is ever to
                // make them equal: a split makes groups also for volumes that have no object there.
                let nothing = digest == mine.1 && digest == digest_of(&GroupState::default());
                if compares && mine != (settled, digest) && !nothing {
                    out.push(Output::ToPeer { node, msg: PeerMsg::DigestDiffers { group } });
                }
            }
            PeerMsg::DigestDiffers { group } => match self.conns.get(&group) {
                Some(conn) => out.push(Output::ToLeader { conn: *conn, msg: FromNode::Differs { group } }),
                None if self.state.groups.contains_key(&group) && !self.is_outside(group.pg) => {
                    out.push(Output::Differs { group })
                }
                None => {}
            },
            PeerMsg::Compare { group, epoch, request, settled, objects } => {
                self.compare(node, group, (epoch, request), settled, &objects, out);
            }
            PeerMsg::ScrubAsk { object, request, head, sum } => {
                self.split_for(object.group.pg, out);
                self.scrub_ask(node, object, (request, head, sum), out);
            }
            PeerMsg::ScrubTell { object, request, found } => {
                self.scrub_tell(node, object, (request, found), out);
            }
            PeerMsg::AtLeast { group, epoch, request, yes } => {
                self.at_least(node, group, (epoch, request), yes, out);
            }
        }
    }

    /// N5: the head of a copy that a Fetch may be served from.
    pub(super) fn fetchable(&self, object: ObjectId, ballot: Ballot, min: u64) -> Option<Head> {
        // Of an object that a split has put elsewhere this group would tell that it was never written.
        if !self.leads(object.group, ballot) || !self.belongs(object.group, object.index) {
            return None;
        }
        let state = self.group(object.group)?;
        if state.behind.contains_key(&object.index) || self.damaged.contains(&object) {
            return None;
        }
        let head = state.objects.get(&object.index).copied().unwrap_or_default();
        (head.seq >= min).then_some(head)
    }

    pub(super) fn piece_read(
        &mut self,
        node: NodeId,
        (object, ballot, request, head, blocks, after): (ObjectId, Ballot, u64, Head, BlockRange, Ticket),
        mut doubts: Vec<(u32, Doubt)>,
        found: ReadResult<P>,
        out: &mut Vec<Output<P>>,
    ) {
        if found.checksums.contains(&UNKNOWN) {
            // Its table turned out to be damaged: no source.
            self.table_damaged(self.state.place(object), out);
            return out.push(Output::ToPeer { node, msg: PeerMsg::NotYet { object, ballot, request } });
        }
        // What was in doubt when the blocks were read, and what has been found since.
        doubts.extend(self.doubts_of(self.state.place(object)));
        doubts.retain(|(block, _)| blocks.contains(BlockRange::new(*block, 1)));
        doubts.sort_unstable();
        doubts.dedup_by_key(|(block, _)| *block);
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::repair_forgets_doubts() {
            doubts.clear();
        }
        let msg = PeerMsg::Piece {
            object,
            ballot,
            request,
            head,
            blocks,
            checksums: found.checksums,
            bad: found.bad,
            doubts,
            data: found.data,
        };
        // Held until the head that it names is durable here: the asker will report it as its own.
        self.hold_after(after, Output::ToPeer { node, msg }, out);
    }

    pub(super) fn block_read(
        &mut self,
        node: NodeId,
        (object, request, block, checksum): (ObjectId, u64, u32, u64),
        found: ReadResult<P>,
        out: &mut Vec<Output<P>>,
    ) {
        let good = checksum != HOLE && found.bad.is_empty() && *found.checksums == [checksum];
        let data = good.then_some(found.data);
        out.push(Output::ToPeer { node, msg: PeerMsg::Block { object, request, block, checksum, data } });
    }

    /// The store has found a bad block: look for its bytes at the PG's other nodes, one after the other.
    pub(super) fn bad_block(
        &mut self,
        object: ObjectId,
        block: u32,
        checksum: u64,
        out: &mut Vec<Output<P>>,
    ) {
        self.counters.bad_blocks += 1;
        // The store may have read it before the group was split.
        let object = self.state.place(object);
        if checksum == UNKNOWN {
            return self.table_damaged(object, out);
        }
        if checksum == HOLE || self.heals.len() >= NODE_HEALS_MAX || self.heals.contains_key(&(object, block))
        {
            return;
        }
        let Some(config) = self.configs.get(&object.group.pg) else { return };
        let left: Vec<NodeId> = config.everyone().into_iter().filter(|node| *node != self.id).collect();
        self.heals.insert((object, block), Heal { checksum, left, asked: None, waited: 0 });
        self.heal_next(object, block, out);
    }

    /// Nobody can say by checksum what these blocks held. The leader is told that the copy does not
    /// follow any more, and orders its repair.
    pub(super) fn table_damaged(&mut self, object: ObjectId, out: &mut Vec<Output<P>>) {
        if self.damaged.len() >= NODE_DAMAGED_MAX || !self.damaged.insert(object) {
            return;
        }
        if let Some(conn) = self.conns.get(&object.group) {
            self.tell_damaged(*conn, object, out);
        }
    }

    /// Tells a leader that has just settled this node of the group's damaged copies.
    pub(super) fn tell_all_damaged(&mut self, conn: ConnId, group: GroupId, out: &mut Vec<Output<P>>) {
        let first = ObjectId { group, index: 0 };
        let last = ObjectId { group, index: ObjectIndex::MAX };
        let objects: Vec<ObjectId> = self.damaged.range(first..=last).copied().collect();
        for object in objects {
            self.tell_damaged(conn, object, out);
        }
    }

    fn tell_damaged(&mut self, conn: ConnId, object: ObjectId, out: &mut Vec<Output<P>>) {
        let Some(state) = self.group(object.group) else { return };
        let (ballot, head) = (state.settled.ballot, state.objects.get(&object.index).copied());
        let head = head.unwrap_or_default();
        self.hold_leader(conn, FromNode::Gap { object, ballot, head, repair: false }, out);
    }

    fn heal_next(&mut self, object: ObjectId, block: u32, out: &mut Vec<Output<P>>) {
        let request = self.next_token;
        let Some(heal) = self.heals.get_mut(&(object, block)) else { return };
        heal.waited = 0;
        let Some(node) = heal.left.pop() else {
            // Nobody has it. It stays bad; a write over it clears it, and a later read looks again.
            heal.asked = None;
            return;
        };
        self.next_token += 1;
        heal.asked = Some((node, request));
        let checksum = heal.checksum;
        out.push(Output::ToPeer { node, msg: PeerMsg::FetchBlock { object, request, block, checksum } });
    }

    fn heal_answer(
        &mut self,
        node: NodeId,
        object: ObjectId,
        request: u64,
        (block, found): (u32, u64),
        data: Option<P>,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(heal) = self.heals.get(&(object, block)).filter(|heal| heal.asked == Some((node, request)))
        else {
            return;
        };
        let checksum = heal.checksum;
        // The bytes have been verified against the checksum in the answer. Another one than was asked for:
        // not the bytes that are missing here.
        match data.filter(|_| found == checksum) {
            Some(data) if self.room > 0 => {
                self.heals.remove(&(object, block));
                self.counters.healed_blocks += 1;
                self.persist(Record::Heal { object, block, checksum, data }, out);
            }
            Some(_) => {
                self.heals.remove(&(object, block));
            }
            None => self.heal_next(object, block, out),
        }
    }

    pub(super) fn tick_heals(&mut self, out: &mut Vec<Output<P>>) {
        let mut late = Vec::new();
        for (key, heal) in &mut self.heals {
            heal.waited += 1;
            if heal.waited > REPAIR_WAIT_TICKS_MAX {
                late.push(*key);
            }
        }
        for (object, block) in late {
            if self.heals.get(&(object, block)).is_some_and(|heal| heal.asked.is_none()) {
                self.heals.remove(&(object, block));
            } else {
                self.heal_next(object, block, out);
            }
        }
    }

    pub(super) fn peer_gone(&mut self, node: NodeId, out: &mut Vec<Output<P>>) {
        self.repairs_lose_source(node, out);
        self.asked.retain(|asked| asked.node != node);
        self.scrub_loses_peer(node, out);
        let lost: Vec<(ObjectId, u32)> = self
            .heals
            .iter()
            .filter(|(_, heal)| heal.asked.is_some_and(|(asked, _)| asked == node))
            .map(|(key, _)| *key)
            .collect();
        for (object, block) in lost {
            self.heal_next(object, block, out);
        }
    }

    /// Compares some groups that nobody leads here with the PG's other nodes.
    pub(super) fn tick_digests(&mut self, out: &mut Vec<Output<P>>) {
        self.ticks = self.ticks.saturating_add(1);
        if self.ticks < first_digests(self.id) {
            return;
        }
        let from = self.digest_cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (group, state) in self.state.groups.range((from, Bound::Unbounded)).take(DIGESTS_PER_TICK) {
            last = Some(*group);
            let outside = self.is_outside(group.pg) || self.needs_split(group.pg);
            if self.conns.contains_key(group) || outside || !self.knows_split(group.pg) {
                continue;
            }
            let Some(config) = self.configs.get(&group.pg) else { continue };
            let digest = digest_of(state);
            for node in config.everyone().into_iter().filter(|node| *node != self.id) {
                let msg = PeerMsg::Digest { group: *group, settled: state.settled.ballot, digest };
                out.push(Output::ToPeer { node, msg });
            }
        }
        self.digest_cursor = last; // None at the end: begin again
    }
}

/// The tick from which on a node that has started compares its groups. Leaders come back meanwhile, and what they
/// open need not be compared; and of nodes that start all at once each has its own time.
fn first_digests(id: NodeId) -> u32 {
    DIGESTS_AFTER_TICKS + id.0.wrapping_mul(0x9e37_79b9) % DIGESTS_SPREAD_TICKS
}

/// A sum over what a copy of a group would vote. Not a proof of equality: a difference that it misses is
/// found by the next Open.
fn digest_of(state: &GroupState) -> u64 {
    let mix = |a: u64, b: u64| (a ^ b.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    let object =
        |index: &ObjectIndex, a: u64, b: u64, kind: u64| mix(mix(mix(u64::from(*index), kind), a), b);
    let mut sum = u64::from(state.lost);
    for (index, head) in &state.objects {
        sum = sum.wrapping_add(object(index, head.ballot.0, head.seq, 1));
    }
    for (index, line) in &state.behind {
        let line = match line {
            Line::At(ballot) => ballot.0,
            Line::Lost => u64::MAX,
        };
        sum = sum.wrapping_add(object(index, line, 0, 2));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::GROUP_OBJECTS_MAX;
    use crate::message::{ToNode, WriteOp};
    use crate::node::{Input, NodeConfig};
    use crate::placement::PgConfig;
    use crate::record::Durable;

    const OBJECT: ObjectId =
        ObjectId { group: GroupId { volume: VolumeId(1), pg: PgId { pool: PoolId(1), pg: 0 } }, index: 0 };

    fn node() -> Node<u8> {
        let mut node = Node::new(NodeConfig { id: NodeId(0) }, Durable::default());
        let config = PgConfig::simple(Epoch(1), vec![NodeId(0), NodeId(1), NodeId(2)]);
        tell(&mut node, Input::Config(vec![(OBJECT.group.pg, config)]));
        node
    }

    fn tell(node: &mut Node<u8>, input: Input<u8>) -> Vec<Output<u8>> {
        let mut out = Vec::new();
        node.handle(Time(0), input, &mut out);
        // Everything is durable at once.
        let ticket = node.given;
        node.handle(Time(0), Input::Durable { ticket }, &mut out);
        out
    }

    #[test]
    fn a_block_with_another_checksum_than_was_asked_for_heals_nothing() {
        let mut node = node();
        let asks = |out: &[Output<u8>]| match out {
            [Output::ToPeer { node, msg: PeerMsg::FetchBlock { request, .. } }] => (*node, *request),
            other => panic!("{other:?}"),
        };
        let bad = Input::BadBlock { object: OBJECT, block: 3, checksum: 7 };
        let (peer, request) = asks(&tell(&mut node, bad));
        let answer =
            |checksum, request| PeerMsg::Block { object: OBJECT, request, block: 3, checksum, data: Some(1) };
        let out = tell(&mut node, Input::Peer { node: peer, msg: answer(8, request) });
        let (other, request) = asks(&out);
        assert_ne!(peer, other, "the next one is asked");
        let out = tell(&mut node, Input::Peer { node: other, msg: answer(7, request) });
        assert!(matches!(out[..], [Output::Persist { record: Record::Heal { checksum: 7, .. }, .. }]));
    }

    /// A node that leads the group of [`OBJECT`] under ballot (1, 0), by connection 1.
    fn led() -> (Node<u8>, Ballot) {
        let mut node = node();
        let (group, ballot) = (OBJECT.group, Ballot::new(Generation(1), 0).expect("a ballot"));
        let leader = |msg| Input::Leader { conn: 1, msg };
        tell(&mut node, leader(ToNode::Open { group, ballot, epoch: Epoch(1) }));
        tell(&mut node, leader(ToNode::Settle { group, ballot, except: vec![] }));
        (node, ballot)
    }

    #[test]
    fn a_full_node_takes_what_adds_nothing() {
        let (mut node, ballot) = led();
        let write = |seq, op| ToNode::Write { object: OBJECT, ballot, seq, snap: 0, op };
        let blocks = BlockRange::new(0, 2);
        let data = |seq| write(seq, WriteOp::Data { blocks, checksums: [3, 4].into(), data: 1 });
        let leader = |msg| Input::Leader { conn: 1, msg };
        let taken =
            |out: &[Output<u8>]| matches!(out[0], Output::Persist { record: Record::Write { .. }, .. });
        let refused =
            |out: &[Output<u8>]| matches!(out, [Output::ToLeader { msg: FromNode::NoSpace { .. }, .. }]);

        node.set_room(2, true);
        assert_eq!(node.asks_growth(&data(1)), None, "there is room for all of it");
        node.set_room(1, true);
        assert_eq!(node.asks_growth(&data(1)), Some((OBJECT, blocks)));
        assert!(refused(&tell(&mut node, leader(data(1)))), "the store was not asked");
        node.set_growth(2);
        assert!(refused(&tell(&mut node, leader(data(1)))));
        node.set_growth(1);
        assert!(taken(&tell(&mut node, leader(data(1)))));
        assert_eq!(node.room(), 0);
        assert!(refused(&tell(&mut node, leader(data(2)))), "what was said of the last write is forgotten");
        node.set_growth(0);
        tell(&mut node, Input::Tick);
        assert!(refused(&tell(&mut node, leader(data(2)))), "it was about the next input");
        node.set_growth(0);
        assert!(taken(&tell(&mut node, leader(data(2)))), "an overwrite");
        let zero = write(3, WriteOp::Zero { blocks });
        assert_eq!(node.asks_growth(&zero), None);
        assert!(taken(&tell(&mut node, leader(zero))), "zeros give room back");
    }

    #[test]
    fn a_settle_that_names_more_than_a_group_has_is_refused_without_harm() {
        let (mut node, ballot) = led();
        let settle = |except: Vec<u32>| Input::Leader {
            conn: 1,
            msg: ToNode::Settle { group: OBJECT.group, ballot, except },
        };
        let most = GROUP_OBJECTS_MAX as u32;
        tell(&mut node, settle((0..most).collect()));
        let before = node.state().clone();
        // Each list is of an allowed length: together they are not one group's.
        let out = tell(&mut node, settle((u32::MAX - most..u32::MAX).collect()));
        assert!(matches!(out[..], [Output::CloseLeader { .. }]));
        assert_eq!(*node.state(), before);
    }

    /// The store tells of a damaged page when it is loaded. Written to since, the page is good again and
    /// its other entries are still unknown, also after a restart: nothing but a read shows them.
    #[test]
    fn a_read_that_finds_unknown_blocks_has_the_copy_repaired() {
        let (mut node, ballot) = led();
        let leader = |msg| Input::Leader { conn: 1, msg };
        let blocks = BlockRange::new(0, 1);
        let read = ToNode::Read { object: OBJECT, ballot, id: 5, blocks, data: true };
        let token = match tell(&mut node, leader(read))[..] {
            [Output::Read { token, .. }] => token,
            ref other => panic!("{other:?}"),
        };
        let found = ReadResult { checksums: [UNKNOWN].into(), data: 0, bad: vec![0] };
        let out = tell(&mut node, Input::Read { token, found });
        let told = |wanted: fn(&FromNode<u8>) -> bool| {
            out.iter().any(|o| matches!(o, Output::ToLeader { msg, .. } if wanted(msg)))
        };
        assert!(told(|msg| matches!(msg, FromNode::Bad { .. })));
        assert!(told(|msg| matches!(msg, FromNode::Gap { repair: false, .. })), "{out:?}");
        assert!(node.fetchable(OBJECT, ballot, 0).is_none(), "and it is no source");
    }
}
