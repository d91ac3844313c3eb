//! Opening: the index, then what the log holds behind it, then the end of the log.
//!
//! State comes from the index, or where that is missing, damaged or too old, from the snapshot that the
//! newest root names. From the batch that it covers the
//! log is followed from batch to batch: the next one begins at one of the four places that the last one's
//! header names, and carries the last one's LSN and checksum. Only the last batch
//! can be torn, since a batch is written when the one before it is durable. A batch is known to have
//! been durable when a later header names it as its predecessor; that tells damage from a torn tail:
//! see `docs/on-disk-format.md`.

mod reader;
pub mod walk;

use super::batch::Header;
use super::codec::Entry;
use super::index::{Index, Meta, VERSION};
use super::log::{BatchRef, Ends, FIRST_ENDS, StreamEnd};
use super::root::{Root, Roots};
use super::state::State;
use super::superblock::Superblock;
use crate::device::Device;
use reader::{Found, Reader};
use std::time::{Duration, Instant};
use trefoil_core::BLOCK_SIZE;

/// What became of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IndexUse {
    /// It was loaded; the log was replayed from where it ends.
    #[default]
    Used,
    /// There was none: everything comes from the log and the snapshot in it.
    Missing,
    /// It could not be used, for this reason; it was deleted, and everything comes from the log and the
    /// snapshot in it.
    Discarded(String),
}

/// What recovery did.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// The index.
    pub index: IndexUse,
    /// Batches read from the log.
    pub batches: u64,
    /// Blocks of the device that they take.
    pub blocks: u64,
    /// Records in them.
    pub records: u64,
    /// How long the replay took, without the time for the index.
    pub took: Duration,
    /// A batch at the end that was not written whole: `(lsn, segment, block)`. It was never
    /// acknowledged.
    pub torn_tail: Option<(u64, u32, u32)>,
    /// Damage, in words, with its place.
    pub damage: Vec<String>,
}

/// The state and where the log ends.
pub struct Recovery {
    /// The state.
    pub state: State,
    /// The last batch.
    pub last: BatchRef,
    /// Where the streams go on.
    pub ends: Ends,
    /// The newest root.
    pub root: Root,
    /// What was done.
    pub how: How,
    /// State is lost, in words.
    pub lost: Option<String>,
    /// The index has to be written anew.
    pub index_empty: bool,
}

/// Where a replay begins.
struct From {
    state: State,
    last: BatchRef,
    ends: Ends,
    /// Where the batch behind `last` may begin.
    places: Vec<(u32, u32)>,
}

/// Where the streams go on behind this batch.
fn ends_behind(h: &Header) -> Ends {
    // The turns are known when the log has been replayed.
    let end = |segment, block, next| StreamEnd { segment, turn: 0, block, next, next_turn: 0 };
    let own = end(h.segment, h.block + h.blocks(), h.next_segment);
    let other = end(h.other_segment, h.other_block, h.other_next);
    if h.cold { [other, own] } else { [own, other] }
}

fn start_of_log(cache_bytes: u64, sb: &Superblock) -> From {
    From {
        state: State::new(cache_bytes, sb),
        last: BatchRef::default(),
        ends: FIRST_ENDS,
        places: vec![(0, 0)],
    }
}

/// Recovers the state. Writes nothing to the device; may discard the index.
pub fn recover<D: Device, I: Index>(
    device: &D,
    sb: &Superblock,
    index: &mut I,
    cache_bytes: u64,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Recovery, RecoverError> {
    let mut reader = Reader::new(device, sb);
    let roots = Roots::read(device, sb.incarnation);
    let mut claimed = 0;
    let why = match from_index(&mut reader, index, roots.good.first(), cache_bytes, &mut claimed) {
        Ok(from) => {
            let root = roots.good.first().copied().unwrap_or_default();
            let mut recovery = follow(&mut reader, from, root, false, 0, progress);
            recovery.how.damage.splice(0..0, roots.damage.iter().cloned());
            if recovery.lost.is_none() || recovery.state.lost_before {
                return Ok(recovery);
            }
            // Perhaps the index is an old one, and the log from there on is no more: the snapshot decides.
            let text = recovery.lost.clone().unwrap_or_default();
            match from_log(&mut reader, &roots, cache_bytes, progress) {
                Ok((from, root)) => {
                    let mut again = follow(&mut reader, from, root, true, claimed, progress);
                    if again.last.lsn < recovery.last.lsn {
                        return Ok(recovery);
                    }
                    again.how.damage.splice(0..0, roots.damage.iter().cloned());
                    again.how.index = discard(device, index, Some(text));
                    again.index_empty = true;
                    return Ok(again);
                }
                Err(_) => return Ok(recovery),
            }
        }
        Err(why) => why,
    };
    let (from, root) = from_log(&mut reader, &roots, cache_bytes, progress)?;
    let index_use = discard(device, index, why);
    let mut recovery = follow(&mut reader, from, root, true, claimed, progress);
    recovery.how.damage.splice(0..0, roots.damage.iter().cloned());
    recovery.how.index = index_use;
    recovery.index_empty = true;
    Ok(recovery)
}

fn discard<D: Device, I: Index>(device: &D, index: &mut I, why: Option<String>) -> IndexUse {
    if let Err(error) = index.discard() {
        tracing::warn!(error, "there is no index for now");
    }
    match why {
        None => IndexUse::Missing,
        Some(why) => {
            tracing::warn!(device = device.name(), why, "the index is discarded and rebuilt");
            IndexUse::Discarded(why)
        }
    }
}

/// Takes the state from the index; or why it cannot be used (`None`: there is none).
fn from_index<D: Device, I: Index>(
    reader: &mut Reader<'_, D>,
    index: &mut I,
    root: Option<&Root>,
    cache_bytes: u64,
    claimed: &mut u64,
) -> Result<From, Option<String>> {
    let mut state = State::new(cache_bytes, reader.sb);
    let meta = index.load(&mut |key, value| state.restore(key, value)).map_err(Some)?.ok_or(None)?;
    if meta.incarnation == reader.sb.incarnation {
        *claimed = meta.covers.lsn;
    }
    let Some(root) = root else {
        return Err(Some("no root is good, so it cannot be known whether it is too old".to_owned()));
    };
    if meta.covers.lsn < root.covers.lsn {
        return Err(Some(format!(
            "it covers LSN {}, and the log before LSN {} is no more",
            meta.covers.lsn, root.covers.lsn
        )));
    }
    let header = covered(reader, &meta)?;
    take_meta(&mut state, &meta);
    Ok(From { state, last: meta.covers, ends: ends_behind(&header), places: header.successors().into() })
}

fn take_meta(state: &mut State, meta: &Meta) {
    state.lost = meta.lost;
    state.lost_before = meta.lost;
    state.session = meta.session;
    state.segments.leaked = meta.leaked;
    state.durable.amnesia = meta.amnesia;
}

/// Takes the state from the newest snapshot, or from the beginning of the log where there is none yet.
fn from_log<D: Device>(
    reader: &mut Reader<'_, D>,
    roots: &Roots,
    cache_bytes: u64,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<(From, Root), RecoverError> {
    let mut why = roots.damage.clone();
    for root in &roots.good {
        if root.covers.lsn == 0 {
            return Ok((start_of_log(cache_bytes, reader.sb), *root));
        }
        match from_snapshot(reader, root, cache_bytes) {
            Ok(from) => return Ok((from, *root)),
            Err(text) => why.push(text),
        }
        // An older root's snapshot may be gone in part; that would be found, but is not looked for.
    }
    tracing::error!(device = reader.device.name(), ?why, "no root is good: looking for a snapshot");
    let found = reader.find_snapshot(progress);
    if let Some(root) = found {
        match from_snapshot(reader, &root, cache_bytes) {
            Ok(from) => return Ok((from, root)),
            Err(text) => why.push(text),
        }
    } else if reader.batch(0, 0).is_some_and(|f| f.header.previous_lsn == 0) {
        // No snapshot has ever been written: the log is whole from its beginning.
        return Ok((start_of_log(cache_bytes, reader.sb), Root::default()));
    }
    Err(RecoverError { device: reader.device.name().to_owned(), why: why.join("; ") })
}

/// No state can be found.
#[derive(Debug, thiserror::Error)]
#[error(
    "{device}: there is no index, and no snapshot in the log can be read whole ({why}): keep the device as it is for \
     `trefoil store check`; its data can be rebuilt from the other copies on a fresh device"
)]
pub struct RecoverError {
    /// The device.
    pub device: String,
    /// Why.
    pub why: String,
}

fn from_snapshot<D: Device>(
    reader: &mut Reader<'_, D>,
    root: &Root,
    cache_bytes: u64,
) -> Result<From, String> {
    let covers = root.covers;
    let gone = |what: &str, at: BatchRef| {
        format!(
            "the snapshot behind LSN {} is not whole: {what} LSN {} (segment {}, block {}) is not on the device",
            covers.lsn, at.lsn, at.segment, at.block
        )
    };
    let first = reader.batch(covers.segment, covers.block).filter(|f| f.at() == covers);
    let first = first.ok_or_else(|| gone("its beginning,", covers))?.header;
    let mut state = State::new(cache_bytes, reader.sb);
    let (mut last, mut places) = (covers, first.successors());
    loop {
        let found = reader.successor(last, &places).ok_or_else(|| gone("the batch behind", last))?;
        (last, places) = (found.at(), found.header.successors());
        for entry in &found.entries {
            match entry {
                Entry::Snapshot { key, value } if !state.restore(key, value) => {
                    return Err(format!(
                        "an entry of the snapshot behind LSN {} cannot be understood",
                        covers.lsn
                    ));
                }
                Entry::SnapshotEnd { covers: ended, meta } if *ended == covers => {
                    if meta.version != VERSION {
                        return Err(format!("the snapshot has version {}", meta.version));
                    }
                    take_meta(&mut state, meta);
                    let (ends, places) = (ends_behind(&first), first.successors().into());
                    return Ok(From { state, last: covers, ends, places });
                }
                _ => {}
            }
        }
        if last.lsn > root.end.lsn {
            return Err(gone("its end,", root.end));
        }
    }
}

/// Replays the log from there on to its end.
fn follow<D: Device>(
    reader: &mut Reader<'_, D>,
    from: From,
    root: Root,
    thorough: bool,
    claimed: u64,
    progress: &mut dyn FnMut(u32, u32),
) -> Recovery {
    let (device, sb) = (reader.device, reader.sb);
    let From { mut state, mut last, mut ends, places: first_places } = from;
    let mut how = How::default();
    let begun = Instant::now();
    let mut lost = None;
    // The batch found last: not replayed before it is known to have been durable.
    let mut pending: Option<Found> = None;
    let mut reported = None;
    // How much there is is not known before the end: at most what lies between two snapshots, about.
    let (mut done, expected) = (0, sb.segments / 8);
    let mut behind_last = first_places;
    loop {
        let (from, places) = match &pending {
            Some(p) => (p.at(), p.header.successors().to_vec()),
            None => (last, behind_last.clone()),
        };
        reader.trouble.set(None);
        let mut successor = reader.successor(from, &places);
        let follows = successor.is_some();
        let whole = follows || pending.as_ref().is_none_or(|p| reader.whole(&p.header));
        if !follows {
            // Anything that names a successor of `from` as its predecessor, or `from` itself where
            // `from` looks torn, proves that the log went on.
            let mut places = places.clone();
            if let (Some(p), false) = (&pending, whole) {
                places.push((p.header.segment, p.header.block + p.header.header_blocks));
            }
            let least = if whole { from.lsn + 1 } else { from.lsn };
            let unread = reader.trouble.take();
            successor = reader.later(&places, least, thorough);
            if let (None, Some((location, kind))) = (&successor, unread) {
                // Not a torn tail: what the device does not give may have been acknowledged.
                let text = format!(
                    "the end of the log cannot be read (byte {}: {kind}): what was written behind LSN {} is lost",
                    location * BLOCK_SIZE as u64,
                    last.lsn
                );
                tracing::error!(device = device.name(), "{text}");
                how.damage.push(text.clone());
                lost.get_or_insert(text);
            }
            if let Some(found) = &successor {
                let at = places.first().copied().unwrap_or_default();
                let text = format!(
                    "the log is damaged behind LSN {} (segment {}, block {}, byte {}): it goes on with \
                     LSN {} (segment {}, block {}); what was in between is lost",
                    from.lsn,
                    at.0,
                    at.1,
                    sb.location(at.0.min(sb.segments - 1), at.1) * BLOCK_SIZE as u64,
                    found.header.lsn,
                    found.header.segment,
                    found.header.block
                );
                tracing::error!(device = device.name(), "{text}");
                how.damage.push(text.clone());
                if whole || found.header.previous_lsn > from.lsn {
                    lost.get_or_insert(text);
                }
            }
        }
        if let Some(p) = pending.take() {
            if whole || successor.is_some() {
                if !whole {
                    how.damage.push(format!(
                        "data blocks of the batch with LSN {} (segment {}, block {}) are damaged; they \
                         will be found bad when they are read",
                        p.header.lsn, p.header.segment, p.header.block
                    ));
                }
                last = p.at();
                ends = ends_behind(&p.header);
                behind_last = p.header.successors().to_vec();
                replay(&mut state, sb, &p, &mut how);
                if reported != Some(p.header.segment) {
                    reported = Some(p.header.segment);
                    done += 1;
                    progress(done, expected.max(done));
                }
            } else {
                how.torn_tail = Some((p.header.lsn, p.header.segment, p.header.block));
            }
        }
        match successor {
            Some(found) => pending = Some(found),
            None => break,
        }
    }
    how.took = begun.elapsed();
    if claimed > last.lsn {
        lost.get_or_insert(format!(
            "the log ends at LSN {}, but the index covers LSN {claimed}: the device has lost writes that \
             were durable, or is an older copy of itself",
            last.lsn
        ));
    }
    if root.end.lsn > last.lsn {
        lost.get_or_insert(format!(
            "the log ends at LSN {}, but a root names a snapshot that ended at LSN {}: the device has lost \
             writes that were durable",
            last.lsn, root.end.lsn
        ));
    }
    state.tables.take_turns(&state.segments);
    for end in &mut ends {
        end.turn = state.segments.get(end.segment).turn;
        end.next_turn = state.segments.get(end.next).turn;
    }
    state.lost |= lost.is_some();
    if state.lost && lost.is_none() {
        lost = Some("the loss was found when the store was opened before".to_owned());
    }
    Recovery { state, last, ends, root, how, lost, index_empty: false }
}

/// The batch that the index says it covers; or why the index cannot be used.
fn covered<D: Device>(reader: &mut Reader<'_, D>, meta: &Meta) -> Result<Header, String> {
    let sb = reader.sb;
    if meta.incarnation != sb.incarnation {
        return Err(format!(
            "it belongs to another store ({}, this is {})",
            meta.incarnation, sb.incarnation
        ));
    }
    match reader.batch(meta.covers.segment, meta.covers.block) {
        Some(f) if f.at() == meta.covers => Ok(f.header),
        _ => Err(format!(
            "the batch that it covers (LSN {}, segment {}, block {}) is not on the device",
            meta.covers.lsn, meta.covers.segment, meta.covers.block
        )),
    }
}

fn replay(state: &mut State, sb: &Superblock, found: &Found, how: &mut How) {
    let h = &found.header;
    how.batches += 1;
    how.blocks += u64::from(h.blocks());
    let mut location = sb.in_turn(h.segment, h.turn, h.block + h.header_blocks);
    let mut stamp = 0;
    for entry in &found.entries {
        state.replay(entry, location, sb);
        location += u64::from(entry.data_blocks());
        how.records += 1;
        if let Entry::Move { stamp: age, .. } = entry {
            stamp = stamp.max(*age);
        }
    }
    state.segments.batch(
        h.segment,
        h.block,
        h.block + h.blocks(),
        h.lsn,
        if stamp == 0 { h.lsn } else { stamp },
    );
}
