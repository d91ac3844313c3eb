//! Blocks of which only a part is written: read-modify-write, one at a time per block.
//!
//! While the old content of a block is being read, the block has an [`Edge`]. Every write to that block
//! which comes in the meantime becomes a patch of the edge, whole-block writes too; when the old content
//! is there, all patches are applied in the order in which they came and leave as *one* write, and the
//! edge ends. So no write can slip between the reading and the writing of an edge and be lost under it,
//! nothing waits in a queue, nothing can deadlock, and small sequential writes to one block are merged
//! into few. A later edge of the same block reads again; the leader lets a read that overlaps a write
//! in flight wait for it.
//!
//! The table is bounded: each edge is one of the layer's operations under way.

use super::requests::RequestKey;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use trefoil_core::ids::{BLOCK_SIZE, ObjectIndex};

/// An object and a block in it.
pub(super) type Place = (ObjectIndex, u32);

/// New content for a part of a block.
#[derive(Clone, Debug)]
pub(super) struct Patch {
    pub request: RequestKey,
    /// First byte within the block.
    pub from: usize,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Data(Bytes),
    /// Zeros. `hole`: where the whole block becomes zeros it may become a hole.
    Zeros {
        len: usize,
        hole: bool,
    },
}

impl Patch {
    fn len(&self) -> usize {
        match &self.content {
            Content::Data(data) => data.len(),
            Content::Zeros { len, .. } => *len,
        }
    }
    fn is_whole(&self) -> bool {
        self.len() == BLOCK_SIZE
    }
}

/// What becomes of a block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// It is a hole and stays one.
    StaysHole,
    /// It becomes a hole.
    BecomesHole,
    /// It gets this content.
    Content(Bytes),
}

/// The edges that are being read.
#[derive(Debug, Default)]
pub(super) struct Edges(BTreeMap<Place, Vec<Patch>>);

impl Edges {
    /// Adds to the edge at `place`; false, and nothing done, where there is none.
    pub fn add(&mut self, place: Place, patch: impl FnOnce() -> Patch) -> bool {
        match self.0.get_mut(&place) {
            Some(patches) => {
                patches.push(patch());
                true
            }
            None => false,
        }
    }
    /// A new edge, whose content is now being read.
    pub fn start(&mut self, place: Place, patch: Patch) {
        let before = self.0.insert(place, vec![patch]);
        debug_assert!(before.is_none(), "two edges of one block");
    }
    /// The first block of `place.1 .. end` that has an edge.
    pub fn first_in(&self, place: Place, end: u32) -> Option<u32> {
        if self.0.is_empty() {
            return None;
        }
        self.0.range(place..(place.0, end)).next().map(|((_, block), _)| *block)
    }
    /// The edge ends; its patches, in order.
    pub fn end(&mut self, place: Place) -> Vec<Patch> {
        self.0.remove(&place).unwrap_or_default()
    }
    /// Takes away the patches whose request `is_dead`, and reports each.
    pub fn drop_patches(&mut self, is_dead: impl Fn(RequestKey) -> bool) -> Vec<RequestKey> {
        let mut dropped = Vec::new();
        for patches in self.0.values_mut() {
            patches.retain(|patch| {
                let dead = is_dead(patch.request);
                if dead {
                    dropped.push(patch.request);
                }
                !dead
            });
        }
        dropped
    }
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Applies patches in order. `old`: the block's content, `None` for a hole; an error where it could not
/// be read, which does not matter to patches from the last whole-block one on, nor to what they cover.
pub(super) fn merge<E>(old: Result<Option<Bytes>, E>, patches: &[Patch]) -> Result<Merged, E> {
    let whole = patches.iter().rposition(Patch::is_whole);
    let (old, patches) = match (whole, old) {
        (Some(at), _) => (None, &patches[at..]),
        (None, old) => (old?, patches),
    };
    let was_hole = whole.is_none() && old.is_none();
    let mut block = match &old {
        Some(old) => BytesMut::from(&old[..]),
        None => BytesMut::zeroed(BLOCK_SIZE),
    };
    block.resize(BLOCK_SIZE, 0);
    let mut hole = was_hole;
    for patch in patches {
        let part = &mut block[patch.from..patch.from + patch.len()];
        match &patch.content {
            Content::Data(data) => {
                part.copy_from_slice(data);
                hole = false;
            }
            Content::Zeros { hole: may, .. } => {
                part.fill(0);
                hole = *may && (hole || patch.is_whole());
            }
        }
    }
    Ok(match (hole, was_hole) {
        (true, true) => Merged::StaysHole,
        (true, false) => Merged::BecomesHole,
        (false, _) => Merged::Content(block.freeze()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(from: usize, byte: u8, len: usize) -> Patch {
        Patch { request: RequestKey(0), from, content: Content::Data(vec![byte; len].into()) }
    }
    fn zeros(from: usize, len: usize, hole: bool) -> Patch {
        Patch { request: RequestKey(0), from, content: Content::Zeros { len, hole } }
    }

    #[test]
    fn later_patches_win_and_the_rest_stays() {
        let old = Ok::<_, ()>(Some(Bytes::from(vec![1; BLOCK_SIZE])));
        let Ok(Merged::Content(block)) = merge(old, &[data(0, 2, 10), data(5, 3, 10)]) else {
            panic!("content expected")
        };
        assert_eq!((block[4], block[5], block[14], block[15]), (2, 3, 3, 1));
        assert_eq!(block.len(), BLOCK_SIZE);
    }

    #[test]
    fn zeros_in_a_hole_write_nothing_and_whole_zeros_make_one() {
        assert_eq!(merge(Ok::<_, ()>(None), &[zeros(7, 9, true)]), Ok(Merged::StaysHole));
        let old = Ok::<_, ()>(Some(Bytes::from(vec![1; BLOCK_SIZE])));
        let patches = [data(1, 1, 1), zeros(0, BLOCK_SIZE, true), zeros(0, 3, true)];
        assert_eq!(merge(old, &patches), Ok(Merged::BecomesHole));
        assert!(matches!(merge(Ok::<_, ()>(None), &[zeros(0, 9, false)]), Ok(Merged::Content(_))));
    }

    #[test]
    fn a_bad_old_block_fails_partial_writes_and_no_whole_ones() {
        assert_eq!(merge(Err("bad"), &[data(0, 1, 1)]), Err("bad"));
        let patches = [data(0, 1, 1), data(0, 2, BLOCK_SIZE)];
        assert!(matches!(merge(Err("bad"), &patches), Ok(Merged::Content(_))));
    }
}
