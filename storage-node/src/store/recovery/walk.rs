//! The log once more, for those who only look: every batch from the snapshot on, its data verified.
//!
//! Recovery verifies the data of the last batch only; this reads all of it. It follows the same chain by
//! the same rules, and changes nothing.

use super::{Found, Reader, from_snapshot};
use crate::device::Device;
use crate::store::batch::Header;
use crate::store::codec::Entry;
use crate::store::log::BatchRef;
use crate::store::root::Root;
use crate::store::state::State;
use crate::store::superblock::Superblock;

/// A batch of the log.
pub struct Step<'a> {
    /// Its header.
    pub header: &'a Header,
    /// Its records.
    pub entries: &'a [Entry],
    /// Its data blocks are what was written.
    pub whole: bool,
    /// It does not follow the batch before it: something in between is missing.
    pub gap: bool,
}

/// Calls `each` with every batch from the one that the root's snapshot covers (the first of the log, where
/// there is no snapshot) to `last`, in order, until it says false.
pub fn walk<D: Device>(
    device: &D,
    sb: &Superblock,
    root: &Root,
    last: BatchRef,
    each: &mut dyn FnMut(Step<'_>) -> bool,
) {
    let mut reader = Reader::new(device, sb);
    let mut from = BatchRef::default();
    let mut places = vec![(0, 0)];
    let first = (root.covers.lsn > 0).then(|| reader.batch(root.covers.segment, root.covers.block)).flatten();
    let mut next = first.filter(|found| found.at() == root.covers);
    if next.is_none() && root.covers.lsn > 0 {
        (from, places) = (root.covers, vec![(root.covers.segment, root.covers.block)]);
    }
    let mut gap = false;
    while from.lsn < last.lsn {
        let found: Option<Found> = next.take().or_else(|| reader.successor(from, &places));
        let found = found.or_else(|| {
            gap = true;
            reader.later(&places, from.lsn, true).filter(|found| found.header.lsn > from.lsn)
        });
        let Some(found) = found else { break };
        let whole = reader.whole(&found.header);
        if !each(Step { header: &found.header, entries: &found.entries, whole, gap }) {
            break;
        }
        (from, places, gap) = (found.at(), found.header.successors().to_vec(), false);
    }
}

/// Calls `each` with every batch that lies anywhere in the segments, of earlier uses of them too, segment by
/// segment, until it says false: for when the log cannot be followed. `progress` is told the segment.
pub fn scan<D: Device>(
    device: &D,
    sb: &Superblock,
    progress: &mut dyn FnMut(u32, u32),
    each: &mut dyn FnMut(Step<'_>) -> bool,
) {
    let mut reader = Reader::new(device, sb);
    for segment in 0..sb.segments {
        progress(segment, sb.segments);
        let mut block = 0;
        while block < sb.segment_blocks {
            let Some(found) = reader.batch(segment, block) else {
                block += 1;
                continue;
            };
            let whole = reader.whole(&found.header);
            if !each(Step { header: &found.header, entries: &found.entries, whole, gap: false }) {
                return;
            }
            // Behind a header whose data was overwritten there may be what has overwritten it.
            block += if whole { found.header.blocks() } else { 1 };
        }
    }
}

/// The state as the root's snapshot has it, nothing replayed; or why it cannot be read.
pub fn snapshot_state<D: Device>(device: &D, sb: &Superblock, root: &Root) -> Result<State, String> {
    from_snapshot(&mut Reader::new(device, sb), root, 0).map(|from| from.state)
}
