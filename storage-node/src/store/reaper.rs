//! Reaping: the tables of deleted objects are read once more, for what in them does not count any more.
//!
//! Deleting an object is one small record; the blocks that its tables name die when their pages have been
//! read and a Reap record says so. Done in the background, some pages at a time, with the cleaner's share of
//! the log. What is not reaped yet survives a restart (`State::dead`).

use super::batch::page_checksum;
use super::codec;
use super::engine::{Running, Store};
use super::index::Index;
use super::segments::{Delta, LEAKED};
use super::superblock::byte_of;
use super::table::{entries_of, merge};
use crate::device::buffer::Pool;
use crate::device::{Device, Op};
use rustc_hash::FxHashSet;
use trefoil_core::BLOCK_SIZE;

/// Pages of deleted objects read at once, and in one record.
const REAP_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Reaper {
    /// Being read, or read and not written down.
    reaping: FxHashSet<u64>,
    /// Read, to be written down together.
    reaped: Vec<(u64, Vec<Delta>)>,
}

impl Reaper {
    /// Pages that are being read.
    pub fn reading(&self) -> usize {
        self.reaping.len() - self.reaped.len()
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// Reads some pages of deleted objects' tables, and writes down what no longer counts.
    pub(super) fn reap_step(&mut self) {
        let reading = self.reaper.reading();
        let full = self.reaper.reaped.len() >= REAP_MAX;
        if !self.reaper.reaped.is_empty() && (full || reading == 0) && self.space.background_may() {
            let mut locations = Vec::new();
            let mut deltas = Vec::new();
            for (location, mut counts) in self.reaper.reaped.drain(..) {
                self.reaper.reaping.remove(&location);
                // Another volume's page may lie there by now only if this one was reaped already.
                if self.state.dead.contains_key(&location) {
                    locations.push(location);
                    deltas.append(&mut counts);
                }
            }
            merge(&mut deltas);
            self.scratch.clear();
            let encoded = codec::put_reap(locations.clone(), deltas.clone(), &mut self.scratch);
            self.put_scratch(encoded);
            if self.failed.is_none() {
                self.space.background_used(1);
                self.state.reap(&locations, &deltas);
                // Perhaps nothing is appended any more before segments are free.
                self.cleaner.look_again();
            }
        }
        if self.state.dead.is_empty() || self.reaper.reaping.len() >= REAP_MAX {
            return;
        }
        let more = REAP_MAX - self.reaper.reaping.len();
        let reaping = &self.reaper.reaping;
        let some: Vec<u64> =
            self.state.dead.keys().filter(|l| !reaping.contains(*l)).take(more).copied().collect();
        for location in some {
            self.reaper.reaping.insert(location);
            if let Some(bytes) = self.log.find(location) {
                let bytes = bytes.to_vec();
                self.dead_page(location, Some(&bytes));
                continue;
            }
            let Some(buf) = Pool::new(u64::MAX, 0, None).get(BLOCK_SIZE) else {
                return;
            };
            let id =
                self.running.insert(Running::Dead { location, retries: 0, epoch: self.space.read_begins() })
                    as u64;
            self.dev.start(id, Op::Read { offset: byte_of(location), buf });
        }
    }

    /// A page of a deleted object has been read; `None`: it cannot be.
    pub(super) fn dead_page(&mut self, location: u64, bytes: Option<&[u8]>) {
        let Some((object, dead)) = self.state.dead.get(&location) else {
            self.reaper.reaped.push((location, Vec::new()));
            return;
        };
        let minus = |location| {
            let (segment, turn) = self.sb.tag_of(location);
            (segment, turn, -1)
        };
        let mut deltas = vec![minus(location)];
        // A damaged one: what it named stays counted until the cleaner has looked at those segments.
        let good = bytes.filter(|b| page_checksum(*object, dead.page, b) == dead.checksum);
        if good.is_none() {
            deltas.push(LEAKED);
        }
        for entry in good.into_iter().flat_map(entries_of) {
            if entry.location != 0 {
                deltas.push(minus(entry.location));
            }
        }
        self.reaper.reaped.push((location, deltas));
    }
}
