//! The counts checked against what they count: for tests and for people who do not believe them.
//!
//! Reads every table page's newest image. Blocks the caller; changes nothing.

use super::batch::page_checksum;
use super::engine::Store;
use super::index::Index;
use super::superblock::{byte_of, place_of};
use super::table::entries_of;
use crate::device::Device;
use crate::device::buffer::Pool;
use trefoil_core::{BLOCK_SIZE, ObjectId};

/// What [`Store::audit`] has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Table pages read.
    pub pages: u64,
    /// Those whose image is damaged: what they count is not known.
    pub damaged: u64,
    /// Segments whose count differs: `(segment, counted, recorded)`.
    pub wrong: Vec<(u32, u32, u32)>,
    /// Places that two entries name, or that lie outside of what has been written.
    pub impossible: Vec<u64>,
    /// Counts that would have gone below zero.
    pub underflows: u64,
}

impl Audit {
    /// True where everything adds up.
    pub fn is_clean(&self) -> bool {
        self.damaged == 0 && self.wrong.is_empty() && self.impossible.is_empty() && self.underflows == 0
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// Counts what is live in each segment from the pages that the log holds, and compares.
    pub fn audit(&mut self) -> Audit {
        self.take_notes();
        let mut audit = Audit { underflows: self.state.segments.impossible, ..Audit::default() };
        let mut live = vec![0u32; self.sb.segments as usize];
        let mut seen = vec![false; self.sb.blocks() as usize];
        let first = self.sb.location(0, 0);
        let mut pages: Vec<(ObjectId, u32, u64, u64)> = Vec::new();
        for object in self.state.tables.objects() {
            for (n, page) in (0u32..).zip(self.state.tables.pages(object).unwrap_or(&[])) {
                pages.push((object, n, page.location, page.checksum));
            }
        }
        for (object, dead) in self.state.dead.values() {
            pages.push((*object, dead.page, dead.location, dead.checksum));
        }
        for (object, page, location, checksum) in pages {
            if location == 0 {
                continue;
            }
            let bytes = match self.log.find(location) {
                Some(bytes) => Some(bytes.to_vec()),
                None => {
                    let mut buf = Pool::new(u64::MAX, 0, None).get(BLOCK_SIZE);
                    buf.as_mut()
                        .and_then(|b| self.dev.read_now(byte_of(location), b).ok().map(|()| b.to_vec()))
                }
            };
            audit.pages += 1;
            let mut count = |at: u64| {
                let (segment, turn) = self.sb.tag_of(at);
                if self.state.segments.get(segment).turn != turn {
                    // Replaced by a change that is not in an image yet; its segment was freed since.
                    return;
                }
                let new = (place_of(at).checked_sub(first)).and_then(|n| seen.get_mut(n as usize));
                match new {
                    Some(seen) if !*seen => {
                        *seen = true;
                        live[self.sb.segment_of(at) as usize] += 1;
                    }
                    _ => audit.impossible.push(at),
                }
            };
            count(location);
            match bytes.filter(|b| page_checksum(object, page, b) == checksum) {
                Some(bytes) => entries_of(&bytes).filter(|e| e.location != 0).for_each(|e| count(e.location)),
                None => audit.damaged += 1,
            }
        }
        for (segment, state) in self.state.segments.iter() {
            let counted = live[segment as usize];
            if counted != state.live {
                audit.wrong.push((segment, counted, state.live));
            }
        }
        audit
    }
}
