//! What nodes say is in doubt of their copies (P3, `docs/protocol.md` section 9, scrub).
//!
//! Disputed blocks: no majority can answer for them. Reads fail, until they are written. Nodes say which ones
//! before they say that they have settled, and whenever that changes. Any quorum of an object's copies has
//! one that knows, so a leader knows before the object opens, and no third copy, back from somewhere, is
//! asked for what would be a guess.
//!
//! Outvoted copies: other copies contradict some of their blocks. They are left behind and repaired, one
//! at a time, while a quorum of whole copies is there without them and one of these is to be trusted; until then they
//! serve what is not in doubt of them. So no operation ever waits for such a repair.

use super::group::{Group, Link};
use super::object::CopyState;
use super::{Output, Shared};
use crate::ids::*;

/// Blocks that are disputed, by object and slot: what each node has said last. At most those of
/// [`crate::limits::NODE_DOUBTED_OBJECTS_MAX`] objects for each node.
pub(super) type Disputed = std::collections::BTreeMap<(ObjectIndex, usize), Vec<u32>>;
/// Copies with outvoted blocks, by object and slot: when their repair may be ordered (again), and how often it
/// was. As many as of [`Disputed`].
pub(super) type Outvoted = std::collections::BTreeMap<(ObjectIndex, usize), (Time, u32)>;

/// Pause before a copy is repaired again that was still outvoted after a repair (µs); four times as long each
/// time, three times over.
const AGAIN: u64 = 1_000_000;
/// Pause before it is looked at again whether a copy can be done without (µs).
const NOT_YET: u64 = 200_000;
/// After so many repairs a copy's doubts hold up nobody who waits for all copies to be whole.
const TRIES: u32 = 3;
/// Copies that are looked at in one go.
const LOOK_AT_MAX: usize = 64;

impl<P: Clone + Default> Group<P> {
    /// A node has said what is in doubt of its copy.
    pub fn doubts(&mut self, now: Time, i: usize, index: ObjectIndex, outvoted: bool, mut blocks: Vec<u32>) {
        let object = self.objects.get(&index);
        let state = object.map(|object| object.copies[i].state);
        // It said so before it had these writes, which are on their way.
        let later = object.into_iter().flat_map(|object| &object.entries).filter(|e| e.pending >> i & 1 == 1);
        later.for_each(|entry| blocks.retain(|block| !entry.blocks.contains(BlockRange::new(*block, 1))));
        // Of a copy that is behind it says nothing: what made it so may be written over by now.
        let known = matches!(state, Some(CopyState::InLine | CopyState::Repairing { .. }));
        if outvoted && known {
            self.outvoted.entry((index, i)).or_insert((now, 0));
        } else {
            self.outvoted.remove(&(index, i));
        }
        if blocks.is_empty() || !known {
            self.disputed.remove(&(index, i));
        } else {
            self.disputed.insert((index, i), blocks);
        }
    }

    /// A read of these blocks cannot be answered by anybody.
    pub fn is_disputed(&self, index: ObjectIndex, blocks: BlockRange) -> bool {
        let of_object = self.disputed.range((index, 0)..=(index, usize::MAX));
        of_object.flat_map(|(_, list)| list).any(|block| blocks.contains(BlockRange::new(*block, 1)))
    }

    /// A write of these blocks is issued: reads that overlap it wait for it, and then it is what they hold.
    pub fn dispute_ends(&mut self, index: ObjectIndex, blocks: BlockRange) {
        let of_object = self.disputed.range_mut((index, 0)..=(index, usize::MAX));
        of_object.for_each(|(_, list)| list.retain(|block| !blocks.contains(BlockRange::new(*block, 1))));
        self.disputed.retain(|_, list| !list.is_empty());
    }

    /// What a node has said counts no more: it says it again.
    pub fn forget_disputes_of(&mut self, i: usize) {
        self.disputed.retain(|(_, slot), _| *slot != i);
        self.outvoted.retain(|(_, slot), _| *slot != i);
    }

    /// The copy can be done without, and there is one to be trusted.
    fn may_be_replaced(&self, index: ObjectIndex, i: usize) -> bool {
        let Some(object) = self.objects.get(&index).filter(|o| o.copies[i].state == CopyState::InLine) else {
            return false;
        };
        let whole = |j: usize, link: Link| {
            j != i && link == Link::Settled && object.copies[j].state == CopyState::InLine
        };
        let trusted = |j: usize| !self.outvoted.contains_key(&(index, j));
        self.quorum(|j, slot| whole(j, slot.link))
            && self.slots.iter().enumerate().any(|(j, slot)| whole(j, slot.link) && trusted(j))
    }

    /// There are copies whose doubts a repair may still end.
    pub fn outvoted_may_be_replaced(&self) -> bool {
        let mut new = self.outvoted.iter().filter(|(_, (_, tries))| *tries < TRIES);
        new.any(|((index, i), _)| self.may_be_replaced(*index, *i))
    }

    /// Leaves copies behind whose blocks are outvoted, where they can be done without: their repair is ordered
    /// like any other.
    pub fn replace_outvoted(&mut self, shared: &mut Shared, now: Time, out: &mut Vec<Output<P>>) {
        if self.outvoted.is_empty() {
            return;
        }
        let due = self.outvoted.iter().filter(|(_, (at, _))| *at <= now).map(|(key, _)| *key);
        let due: Vec<(ObjectIndex, usize)> = due.take(LOOK_AT_MAX).collect();
        for (index, i) in due {
            let may = self.may_be_replaced(index, i);
            if let Some((at, tries)) = self.outvoted.get_mut(&(index, i)) {
                let pause = if may { AGAIN << (2 * (*tries).min(3)) } else { NOT_YET };
                (*at, *tries) = (now.after(pause), *tries + u32::from(may));
            }
            if may {
                self.leave_behind(shared, now, i, index, now, out);
            }
        }
    }
}
