//! The whole state of a store as lines of JSON, for scripts and for whoever has to look at every bit.
//!
//! One object per line; `type` says what it is. Streamed: what is written is not held in memory. Checksums
//! and names of 64 bits are hexadecimal texts.

use super::{Block, OfflineStore, ReadMany};
use crate::store::view::byte_of;
use serde_json::{Value, json};
use std::io::{self, Write};
use trefoil_core::message::Line;
use trefoil_core::record::Promise;
use trefoil_core::{BLOCK_SIZE, Ballot, Head, ObjectId};

/// `{"generation": 3, "round": 0}`.
pub(crate) fn ballot(ballot: Ballot) -> Value {
    json!({ "generation": ballot.generation().0, "round": ballot.round() })
}

/// `{"generation": 3, "round": 0, "seq": 17}`.
pub fn head_json(head: Head) -> Value {
    json!({ "generation": head.ballot.generation().0, "round": head.ballot.round(), "seq": head.seq })
}

/// The line of a copy that is behind: a ballot, or `"lost"`.
pub fn line_json(line: Line) -> Value {
    match line {
        Line::At(at) => ballot(at),
        Line::Lost => json!("lost"),
    }
}

pub(crate) fn promise(promise: Promise) -> Value {
    json!({ "ballot": ballot(promise.ballot), "epoch": promise.epoch.0 })
}

/// Blocks of an object that lie one behind the other on the device, or are bad.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Run {
    /// The first block of the object.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Where they begin on the device, in bytes; none: they have no good bytes here.
    pub byte: Option<u64>,
    /// One for each block; none where it is lost with the table's page.
    pub checksums: Vec<Option<String>>,
}

impl<D: ReadMany> OfflineStore<D> {
    /// The blocks of an object that are no holes, in order.
    pub fn runs(&self, object: ObjectId) -> Vec<Run> {
        let table = self.table(object);
        let mut runs: Vec<Run> = Vec::new();
        for (block, entry) in (0u32..).zip(&table.entries) {
            let (byte, sum) = match Block::from(*entry) {
                Block::Hole => continue,
                Block::There(entry) => (Some(byte_of(entry.location)), Some(entry.checksum)),
                Block::Bad(sum) => (None, sum),
            };
            let sum = sum.map(|sum| format!("{sum:016x}"));
            if let Some(run) = runs.last_mut()
                && run.first + run.count == block
                && run.byte.map(|at| at.saturating_add(u64::from(run.count) * BLOCK_SIZE as u64)) == byte
            {
                run.count += 1;
                run.checksums.push(sum);
            } else {
                runs.push(Run { first: block, count: 1, byte, checksums: vec![sum] });
            }
        }
        runs
    }

    /// Writes the state. Any error is the output's.
    pub fn dump(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut line = |value: Value| writeln!(out, "{value}");
        line(json!({ "type": "store", "info": self.info() }))?;
        let durable = self.durable();
        for (volume, fence) in &durable.fences {
            line(json!({ "type": "fence", "volume": volume.0, "generation": fence.0 }))?;
        }
        for (pg, state) in &durable.pgs {
            let left = state.left.map(|epoch| epoch.0);
            line(json!({ "type": "pg", "pg": pg.to_string(), "epoch": state.epoch.0, "left": left }))?;
        }
        for (group, state) in &durable.groups {
            line(json!({
                "type": "group", "volume": group.volume.0, "pg": group.pg.to_string(),
                "promised": promise(state.promised), "settled": promise(state.settled), "lost": state.lost,
                "objects": state.objects.len(), "behind": state.behind.len(),
            }))?;
        }
        for object in self.objects() {
            let group = durable.groups.get(&object.group);
            let head = group.and_then(|group| group.objects.get(&object.index)).map(|head| head_json(*head));
            let behind = group.and_then(|group| group.behind.get(&object.index)).map(|at| line_json(*at));
            let page = |at: &crate::store::view::PageRef| match at.location {
                0 => Value::Null,
                at_block => json!({
                    "byte": byte_of(at_block),
                    "checksum": format!("{:016x}", at.checksum),
                }),
            };
            let pages: Vec<Value> = self.pages(object).iter().map(page).collect();
            line(json!({
                "type": "object", "object": object.to_string(), "volume": object.group.volume.0,
                "pg": object.group.pg.to_string(), "index": object.index, "head": head, "behind": behind,
                "pages": pages, "runs": self.runs(object),
            }))?;
        }
        let ends = &self.recovery.ends;
        for (segment, state) in self.recovery.state.segments.iter().filter(|(_, state)| state.last_lsn > 0) {
            line(json!({
                "type": "segment", "segment": segment, "byte": self.bare.sb.location(segment, 0) * BLOCK_SIZE as u64,
                "live": state.live, "end": state.end, "last_lsn": state.last_lsn, "stamp": state.stamp,
                "turn": state.turn,
                "open": ends.iter().any(|end| end.segment == segment), "free": self.is_free(segment),
            }))?;
        }
        let mut dead: Vec<_> = self.recovery.state.dead.values().collect();
        dead.sort_unstable_by_key(|(_, page)| page.location);
        for (object, page) in dead {
            line(json!({
                "type": "dead-page", "object": object.to_string(), "page": page.page,
                "byte": byte_of(page.location),
                "checksum": format!("{:016x}", page.checksum),
            }))?;
        }
        Ok(())
    }
}
