//! Operations that are taken out of a group before their end: clients that were told that they timed out,
//! and all of them when the leader is replaced. Nothing here completes an operation.

use super::group::{Group, Phase};
use super::object::Object;
use super::{Output, Shared};
use crate::client::{ClientOp, OpId};
use crate::ids::*;
use std::collections::VecDeque;

impl<P: Clone + Default> Group<P> {
    /// Takes an operation out, wherever it is. A write that was issued goes on without its client.
    pub fn forget_op(&mut self, shared: &mut Shared, id: OpId, index: ObjectIndex) -> bool {
        let take = |queue: &mut VecDeque<ClientOp<P>>| {
            queue.iter().position(|op| op.id == id).and_then(|at| queue.remove(at)).is_some()
        };
        if take(&mut self.waiting) {
            return true;
        }
        let acks = self.confirming.iter_mut().map(|c| &mut c.acks);
        let acks = acks.chain([&mut self.acks_next, &mut self.owed.ids]);
        for acks in acks {
            if let Some(at) = acks.iter().position(|ack| *ack == id) {
                acks.remove(at);
                return true;
            }
        }
        if let Some(read) = self.reads.iter().find(|(_, read)| read.op.id == id).map(|(read, _)| *read) {
            if let Some(read) = self.reads.remove(&read) {
                self.unsend(shared, &read);
                self.probing.retain(|(_, probe), _| self.reads.contains_key(probe));
            }
            return true;
        }
        let Some(object) = self.objects.get_mut(&index) else { return false };
        if take(&mut object.waiting) {
            self.tidy_busy();
            return true;
        }
        match object.entries.iter_mut().find(|entry| entry.id == Some(id)) {
            Some(entry) => entry.id.take().is_some(),
            None => false,
        }
    }

    /// Writes whose clients have been told that they timed out are kept while they can still be
    /// completed. Without a majority that may be never, while clients try again and again: then the next
    /// round (5.8) decides whether the objects have them.
    pub fn drop_abandoned(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if self.phase != Phase::Decided || self.quorum(|_, slot| slot.live()) {
            return;
        }
        let abandoned = |object: &Object<P>| object.entries.iter().any(|e| !e.acked && e.id.is_none());
        if self.busy.iter().filter_map(|index| self.objects.get(index)).any(abandoned) {
            self.next_round(shared, now, out);
        }
    }

    /// The ids of all operations, which are taken out.
    pub fn take_all_ops(&mut self, ids: &mut Vec<OpId>) {
        ids.extend(self.waiting.drain(..).map(|op| op.id));
        ids.append(&mut self.acks_next);
        ids.append(&mut self.owed.ids);
        ids.extend(self.confirming.take().into_iter().flat_map(|confirming| confirming.acks));
        ids.extend(self.reads.drain().map(|(_, read)| read.op.id));
        for object in self.objects.values_mut() {
            ids.extend(object.waiting.drain(..).map(|op| op.id));
            ids.extend(object.entries.drain(..).filter_map(|entry| entry.id));
        }
    }

    pub fn tidy_busy(&mut self) {
        let objects = &self.objects;
        self.busy.retain(|index| objects.get(index).is_some_and(|object| !object.at_rest()));
    }
}
