//! What a leader may ask for: Fence, Open (N1), Settle (N2), Write (N3), Read and Confirm (N6).

use super::{ConnId, Node, Output, ReadMode, Reading};
use crate::checksum::HOLE;
use crate::ids::*;
use crate::limits::{GROUP_OBJECTS_MAX, OBJECT_BLOCKS_MAX, OP_BLOCKS_MAX};
use crate::message::{FromNode, Line, Refusal, ToNode, WriteOp};
use crate::record::{Promise, Record};

impl<P: Clone> Node<P> {
    pub(super) fn leader_message(&mut self, conn: ConnId, msg: ToNode<P>, out: &mut Vec<Output<P>>) {
        match msg {
            ToNode::Fence { volume, generation } => self.fence_volume(conn, volume, generation, out),
            ToNode::Open { group, ballot, epoch } => self.open(conn, group, ballot, epoch, out),
            ToNode::Settle { group, ballot, except } => self.settle(conn, group, ballot, except, out),
            ToNode::Write { object, ballot, seq, snap, op } => {
                self.write(conn, object, ballot, (seq, snap), op, out)
            }
            ToNode::Repair { object, ballot, from, upto, object_blocks, urgent } => {
                if object_blocks > OBJECT_BLOCKS_MAX || from == self.id {
                    out.push(Output::CloseLeader { conn, why: "a repair of an impossible size or source" });
                } else if !self.belongs(object.group, object.index) {
                    self.refuse_stranger(conn, object.group, out);
                } else if !self.leads(object.group, ballot) {
                    self.tell_replaced(conn, object.group, ballot, out);
                } else if self.listens(conn, object.group) {
                    self.order_repair(conn, object, ballot, (from, upto, object_blocks, urgent), out);
                }
            }
            ToNode::Read { object, ballot, id, blocks, data } => {
                self.read_blocks(conn, object, ballot, id, blocks, data, out)
            }
            ToNode::Confirm { group, ballot, id } => {
                let promised = self.group(group).is_some_and(|state| state.promised.ballot == ballot);
                let promised = promised && !self.has_left(group.pg);
                // A ballot of before a split speaks for objects that are in other groups by now.
                let promised = promised && (self.split_level(group.pg) == 0 || self.listens(conn, group));
                let msg = if promised && ballot.generation() >= self.fence(group.volume) {
                    FromNode::Confirmed { group, id }
                } else {
                    FromNode::ReadRefused { group, id }
                };
                // Held: the promise that it confirms may not be durable yet.
                self.hold_leader(conn, msg, out);
            }
        }
    }

    /// A leader that was replaced is told, so that its clients, or the work of a healer, do not wait for
    /// nothing. Its own newer round is not: these are its late messages.
    fn tell_replaced(&mut self, conn: ConnId, group: GroupId, ballot: Ballot, out: &mut Vec<Output<P>>) {
        let promised = self.group(group).map_or(Ballot::ZERO, |state| state.promised.ballot);
        if promised.generation() > ballot.generation() || self.fence(group.volume) > ballot.generation() {
            self.counters.refused += 1;
            let msg = self.refusal(group, ballot, Refusal::Promised);
            self.hold_leader(conn, msg, out);
        } else if promised == ballot && self.has_left(group.pg) {
            // It has an older map.
            let msg = self.refusal(group, ballot, Refusal::NotMember);
            self.hold_leader(conn, msg, out);
        }
    }

    /// An object of another group: this leader has another map than it says.
    fn refuse_stranger(&mut self, conn: ConnId, group: GroupId, out: &mut Vec<Output<P>>) {
        // One that was led before the split has been told.
        if self.listens(conn, group) {
            out.push(Output::CloseLeader { conn, why: "an object that belongs to another placement group" });
        }
    }

    /// The newest connection that opened a group is the only one listened to for it.
    fn listens(&self, conn: ConnId, group: GroupId) -> bool {
        self.conns.get(&group) == Some(&conn)
    }

    fn fence_volume(
        &mut self,
        conn: ConnId,
        volume: VolumeId,
        generation: Generation,
        out: &mut Vec<Output<P>>,
    ) {
        let fence = self.fence(volume);
        if generation < fence {
            self.counters.refused += 1;
            return self.hold_leader(conn, FromNode::FenceRefused { volume, generation, fence }, out);
        }
        if generation > fence {
            self.persist(Record::Fence { volume, generation }, out);
        }
        self.calls.heard(volume, generation, conn, self.now);
        // Held until the fence is durable.
        self.hold_leader(conn, FromNode::Fenced { volume, generation }, out);
    }

    /// N1.
    fn open(&mut self, conn: ConnId, group: GroupId, ballot: Ballot, epoch: Epoch, out: &mut Vec<Output<P>>) {
        self.split_for(group.pg, out);
        if let Some(why) = self.refuses_open(group, ballot, epoch) {
            self.counters.refused += 1;
            let msg = self.refusal(group, ballot, why);
            return self.hold_leader(conn, msg, out);
        }
        let promised = self.group(group).map_or(Ballot::ZERO, |state| state.promised.ballot);
        if promised == ballot && self.conns.get(&group).is_some_and(|newest| *newest > conn) {
            return; // late, on a connection that its leader has given up
        }
        let epoch_now = self.state.pgs.get(&group.pg).map_or(Epoch(0), |pg| pg.epoch).max(epoch);
        let promise = Promise { ballot, epoch };
        let known = self.group(group).is_some_and(|state| state.promised == promise)
            && self.state.pgs.get(&group.pg).is_some_and(|pg| pg.epoch == epoch_now && pg.left.is_none());
        if !known {
            self.persist(Record::Open { group, promised: promise, epoch: epoch_now }, out);
        }
        self.cancel_repairs(group);
        // An older leader whose repairs were dropped just now would wait for them for ever.
        if let Some(older) = self.conns.insert(group, conn).filter(|older| *older != conn) {
            self.tell_replaced(older, group, promised, out);
        }
        let state = self.state.group_mut(group);
        let objects = state.votes();
        let msg =
            FromNode::Opened { group, ballot, settled: state.settled.ballot, lost: state.lost, objects };
        // Held until the promise, and every write among the votes, is durable.
        self.hold_leader(conn, msg, out);
    }

    fn refuses_open(&self, group: GroupId, ballot: Ballot, epoch: Epoch) -> Option<Refusal> {
        let promised = self.group(group).map_or(Ballot::ZERO, |state| state.promised.ballot);
        if ballot < promised || ballot.generation() < self.fence(group.volume) {
            return Some(Refusal::Promised);
        }
        let pg = self.state.pgs.get(&group.pg).copied().unwrap_or_default();
        // A node whose map does not reach to the leader's epoch cannot say whether it is a member.
        let Some(config) = self.configs.get(&group.pg).filter(|config| config.epoch >= epoch) else {
            return Some(Refusal::NotReady);
        };
        // Nor one whose map is from before what it has split itself.
        if !self.knows_split(group.pg) {
            return Some(Refusal::NotReady);
        }
        if epoch < pg.epoch || epoch < config.epoch {
            return Some(Refusal::Epoch);
        }
        if !config.takes_part(self.id) {
            return Some(Refusal::NotMember);
        }
        match pg.left {
            Some(left) if epoch < left || ballot <= promised => Some(Refusal::NotMember),
            _ => None,
        }
    }

    pub(super) fn refusal(&self, group: GroupId, ballot: Ballot, why: Refusal) -> FromNode<P> {
        FromNode::OpenRefused {
            group,
            ballot,
            promised: self.group(group).map_or(Ballot::ZERO, |state| state.promised.ballot),
            fence: self.fence(group.volume),
            epoch: self.configs.get(&group.pg).map_or(Epoch(0), |c| c.epoch).max(self.epoch_of(group.pg)),
            why,
        }
    }

    /// N2.
    fn settle(
        &mut self,
        conn: ConnId,
        group: GroupId,
        ballot: Ballot,
        mut except: Vec<ObjectIndex>,
        out: &mut Vec<Output<P>>,
    ) {
        if self.has_left(group.pg) || self.group(group).is_none_or(|state| state.promised.ballot != ballot) {
            return self.tell_replaced(conn, group, ballot, out);
        }
        if !self.listens(conn, group) {
            return;
        }
        if !except.iter().all(|index| self.belongs(group, *index)) {
            return self.refuse_stranger(conn, group, out);
        }
        let Some(state) = self.group(group) else { return };
        if except.len() > GROUP_OBJECTS_MAX {
            return out.push(Output::CloseLeader { conn, why: "a Settle of too many objects" });
        }
        except.sort_unstable();
        except.dedup();
        let line = if state.lost { Line::Lost } else { Line::At(state.settled.ballot) };
        // A copy of which the node has lost what it knew has no vote, whatever its line was before.
        let add: Vec<(ObjectIndex, Line)> = except
            .iter()
            .filter(|index| state.lost || !state.behind.contains_key(index))
            .map(|index| (*index, line))
            .collect();
        let mut remove: Vec<ObjectIndex> =
            state.behind.keys().filter(|index| except.binary_search(index).is_err()).copied().collect();
        remove.sort_unstable();
        // Both are objects of the group, and different ones: more are no group's.
        if add.len() + remove.len() > GROUP_OBJECTS_MAX {
            return out.push(Output::CloseLeader { conn, why: "a Settle of more objects than a group has" });
        }
        let settled = state.promised;
        if state.settled != settled || state.lost || !add.is_empty() || !remove.is_empty() {
            self.persist(Record::Settle { group, settled, add, remove }, out);
        }
        // Before the line: an object must not open for reads that should fail.
        self.tell_all_doubts(conn, group, out);
        // Held until the line is durable.
        self.hold_leader(conn, FromNode::Settled { group, ballot }, out);
        self.tell_all_damaged(conn, group, out);
    }

    /// N3.
    fn write(
        &mut self,
        conn: ConnId,
        object: ObjectId,
        ballot: Ballot,
        (seq, snap): (u64, u64),
        op: WriteOp<P>,
        out: &mut Vec<Output<P>>,
    ) {
        if let Some(why) = malformed(&op) {
            return out.push(Output::CloseLeader { conn, why });
        }
        let group = object.group;
        let Some(state) = self.led(group, ballot) else {
            return self.tell_replaced(conn, group, ballot, out);
        };
        if !self.listens(conn, group) {
            return;
        }
        if !self.belongs(group, object.index) {
            return self.refuse_stranger(conn, group, out);
        }
        if self.repairs.contains_key(&object) {
            // Kept on top, in memory: that is no Have (N4).
            return self.keep_on_top(object, seq, op, out);
        }
        if state.behind.contains_key(&object.index) {
            return;
        }
        let known = state.objects.get(&object.index).copied();
        let objects = state.objects.len();
        let head = known.unwrap_or_default();
        if seq == head.seq + 1 {
            // What is there already is written over, and zeros give room back: both also when full, or
            // nobody could ever make room.
            let adds = match &op {
                WriteOp::Zero { .. } => 0,
                WriteOp::Data { blocks, .. } => self.growth.take().unwrap_or(blocks.count),
            };
            if u64::from(adds) > self.room || (known.is_none() && objects >= GROUP_OBJECTS_MAX) {
                self.counters.no_space += 1;
                return self.hold_leader(conn, FromNode::NoSpace { object, ballot, seq }, out);
            }
            let record = Record::Write { object, head: Head { ballot, seq }, snap, op };
            let ticket = self.persist_adding(record, adds, out);
            self.budget.write_begins(self.now, ticket);
            // Held until the write's record is durable, and with it all before it.
            self.hold_leader(conn, FromNode::Have { object, ballot, seq, full: self.full }, out);
        } else if head.ballot == ballot && head.seq >= seq {
            // Held: the write that is already here may still be on its way to the device.
            self.hold_leader(conn, FromNode::Have { object, ballot, seq: head.seq, full: self.full }, out);
        } else {
            self.hold_leader(conn, FromNode::Gap { object, ballot, head, repair: false }, out);
        }
    }

    /// N6. The read takes effect here, in the order of the connection: the store gives the blocks as
    /// they are behind every record given out so far.
    #[allow(clippy::too_many_arguments)]
    fn read_blocks(
        &mut self,
        conn: ConnId,
        object: ObjectId,
        ballot: Ballot,
        id: u64,
        blocks: BlockRange,
        data: bool,
        out: &mut Vec<Output<P>>,
    ) {
        let limit = if data { OP_BLOCKS_MAX } else { OBJECT_BLOCKS_MAX };
        if blocks.count == 0 || blocks.count > limit || blocks.end() > OBJECT_BLOCKS_MAX {
            return out.push(Output::CloseLeader { conn, why: "a Read of an impossible range" });
        }
        let group = object.group;
        let whole = self
            .led(group, ballot)
            .is_some_and(|state| self.listens(conn, group) && !state.behind.contains_key(&object.index))
            && self.belongs(group, object.index);
        if !whole {
            return out.push(Output::ToLeader { conn, msg: FromNode::ReadRefused { group, id } });
        }
        let marks = self.group(group).map_or(&[][..], |state| state.marks(object.index));
        let marked = marks.iter().map(|mark| mark.block);
        let bad: Vec<u32> = marked.filter(|block| blocks.contains(BlockRange::new(*block, 1))).collect();
        if !bad.is_empty() {
            // In doubt: not for anybody to read, nor to be told for holes.
            return out.push(Output::ToLeader { conn, msg: FromNode::Bad { group, id, blocks: bad } });
        }
        let mode = if data { ReadMode::All } else { ReadMode::ChecksumsOnly };
        self.read(Reading::Leader { conn, object, id }, object, blocks, mode, out);
    }
}

/// Why a write cannot be meant, if so.
fn malformed<P>(op: &WriteOp<P>) -> Option<&'static str> {
    let blocks = op.blocks();
    if blocks.count == 0 || blocks.end() > OBJECT_BLOCKS_MAX || blocks.first >= OBJECT_BLOCKS_MAX {
        return Some("a Write of an impossible range");
    }
    match op {
        WriteOp::Data { blocks, .. } if blocks.count > OP_BLOCKS_MAX => Some("a Write of too many blocks"),
        WriteOp::Data { blocks, checksums, .. }
            if checksums.len() != blocks.count as usize || checksums.contains(&HOLE) =>
        {
            Some("a Write whose checksums do not fit its blocks")
        }
        _ => None,
    }
}
