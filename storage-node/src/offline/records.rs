//! The log as lines of JSON: every batch from the snapshot on, and every record in it, in order; or all
//! batches that lie anywhere on the device, for when the log cannot be followed.

use super::dump::{head_json, line_json, promise};
use super::{BareStore, OfflineStore, Progress, ReadMany};
use crate::store::view::{CountDelta, Entry, Step, Superblock, byte_of, scan, walk};
use serde_json::{Value, json};
use std::io::{self, Write};
use trefoil_core::BLOCK_SIZE;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;

fn sums(sums: impl IntoIterator<Item = u64>) -> Value {
    sums.into_iter().map(|sum| json!(format!("{sum:016x}"))).collect()
}

fn op(op: &WriteOp<()>) -> Value {
    let blocks = op.blocks();
    let checksums = match op {
        WriteOp::Data { checksums, .. } => sums(checksums.iter().copied()),
        WriteOp::Zero { .. } => Value::Null,
    };
    json!({ "first": blocks.first, "count": blocks.count, "checksums": checksums })
}

fn node(record: &Record<()>) -> Value {
    match record {
        Record::Fence { volume, generation } => {
            json!({ "record": "fence", "volume": volume.0, "generation": generation.0 })
        }
        Record::Open { group, promised, epoch } => json!({
            "record": "open", "group": group.to_string(), "promised": promise(*promised), "epoch": epoch.0,
        }),
        Record::Settle { group, settled, add, remove } => {
            let add: Vec<Value> =
                add.iter().map(|(index, line)| json!({ "index": index, "line": line_json(*line) })).collect();
            json!({
                "record": "settle", "group": group.to_string(), "settled": promise(*settled), "behind": add,
                "not_behind": remove,
            })
        }
        Record::Write { object, head, snap, op: what } => json!({
            "record": "write", "object": object.to_string(), "head": head_json(*head), "snap": snap,
            "op": op(what),
        }),
        Record::Install { object, head, patches, writes } => {
            let pairs = |pairs: &[(u32, u64)]| -> Value {
                let pair =
                    |(block, sum): &(u32, u64)| json!({ "block": block, "checksum": format!("{sum:016x}") });
                pairs.iter().map(pair).collect()
            };
            let patches: Vec<Value> = patches
                .iter()
                .map(|patch| json!({ "blocks": pairs(&patch.blocks), "bad": pairs(&patch.bad) }))
                .collect();
            json!({
                "record": "install", "object": object.to_string(), "head": head_json(*head),
                "patches": patches, "writes": writes.iter().map(op).collect::<Vec<_>>(),
            })
        }
        Record::Heal { object, block, checksum, .. } => json!({
            "record": "heal", "object": object.to_string(), "block": block,
            "checksum": format!("{checksum:016x}"),
        }),
        Record::DeleteVolume { volume } => json!({ "record": "delete-volume", "volume": volume.0 }),
        Record::LostState { fences } => json!({ "record": "lost-state", "fences": fences_json(fences) }),
        Record::Epoch { pg, epoch, fences } => json!({
            "record": "epoch", "pg": pg.to_string(), "epoch": epoch.0, "fences": fences_json(fences),
        }),
        Record::Doubt { object, marks } => {
            let mark = |mark: &trefoil_core::scrub::Mark| {
                json!({ "block": mark.block, "doubt": format!("{:?}", mark.doubt).to_lowercase(),
                    "checksum": format!("{:016x}", mark.checksum) })
            };
            let marks: Vec<Value> = marks.iter().map(mark).collect();
            json!({ "record": "doubt", "object": object.to_string(), "marks": marks })
        }
        Record::Leave { pg, epoch } => {
            json!({ "record": "leave", "pg": pg.to_string(), "epoch": epoch.0 })
        }
        Record::Split { pg, from, to } => {
            json!({ "record": "split", "pg": pg.to_string(), "from": from, "to": to })
        }
    }
}

fn fences_json(fences: &[(trefoil_core::VolumeId, trefoil_core::Generation)]) -> Value {
    fences
        .iter()
        .map(|(volume, generation)| json!({ "volume": volume.0, "generation": generation.0 }))
        .collect()
}

fn deltas(deltas: &[CountDelta]) -> Value {
    let delta =
        |(segment, turn, live): &CountDelta| json!({ "segment": segment, "turn": turn, "live": live });
    deltas.iter().map(delta).collect()
}

fn entry(entry: &Entry) -> Value {
    match entry {
        Entry::Start { session, lost } => json!({ "record": "start", "session": session, "lost": lost }),
        Entry::Node(record) => node(record),
        Entry::Page { object, page, checksum, deltas: changes } => json!({
            "record": "page", "object": object.to_string(), "page": page,
            "checksum": format!("{checksum:016x}"), "deltas": deltas(changes),
        }),
        Entry::Move { object, stamp, blocks } => {
            let (numbers, checksums): (Vec<u32>, Vec<u64>) = blocks.iter().copied().unzip();
            json!({
                "record": "move", "object": object.to_string(), "stamp": stamp, "blocks": numbers,
                "checksums": sums(checksums),
            })
        }
        Entry::Reap { locations, deltas: changes } => {
            let bytes: Vec<u64> = locations.iter().map(|at| byte_of(*at)).collect();
            json!({ "record": "reap", "bytes": bytes, "deltas": deltas(changes) })
        }
        Entry::Free { segments } => json!({ "record": "free", "segments": segments }),
        Entry::Snapshot { key, value } => json!({
            "record": "snapshot-entry", "key": super::info::hex(key), "value": super::info::hex(value),
        }),
        Entry::SnapshotEnd { covers, .. } => json!({ "record": "snapshot-end", "covers": covers.lsn }),
    }
}

/// A batch and its records.
fn batch(sb: &Superblock, step: &Step<'_>, out: &mut dyn Write) -> io::Result<()> {
    let h = step.header;
    let mut line = |value: Value| writeln!(out, "{value}");
    line(json!({
        "type": "batch", "lsn": h.lsn, "previous_lsn": h.previous_lsn, "segment": h.segment,
        "block": h.block, "byte": sb.location(h.segment, h.block) * BLOCK_SIZE as u64,
        "header_blocks": h.header_blocks, "data_blocks": h.data_blocks, "cold": h.cold, "turn": h.turn,
        "whole": step.whole, "behind_a_gap": step.gap,
    }))?;
    let mut at = sb.location(h.segment, h.block.saturating_add(h.header_blocks));
    for record in step.entries {
        let mut value = entry(record);
        value["type"] = json!("record");
        value["lsn"] = json!(h.lsn);
        if record.data_blocks() > 0 {
            value["data_byte"] = json!(byte_of(at));
        }
        at = at.saturating_add(record.data_blocks().into());
        line(value)?;
    }
    Ok(())
}

impl<D: ReadMany> OfflineStore<D> {
    /// Writes the log, from the snapshot on. Any error is the output's.
    pub fn dump_log(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut done = Ok(());
        let sb = &self.bare.sb;
        walk(&self.bare.device, sb, &self.recovery.root, self.recovery.last, &mut |step| {
            done = batch(sb, &step, out);
            done.is_ok()
        });
        done
    }
}

impl<D: ReadMany> BareStore<D> {
    /// Writes every batch that lies anywhere on the device, of earlier uses of its segments too, in the order
    /// of their places. Needs no root and no log that can be followed. Any error is the output's.
    pub fn dump_scan(&self, out: &mut dyn Write, progress: Progress<'_>) -> io::Result<()> {
        let mut done = Ok(());
        let mut tell = |segment: u32, segments: u32| progress(segment.into(), segments.into());
        scan(&self.device, &self.sb, &mut tell, &mut |step| {
            done = batch(&self.sb, &step, out);
            done.is_ok()
        });
        done
    }
}
