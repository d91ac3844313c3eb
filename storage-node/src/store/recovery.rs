//! Opening: the index, then what the log holds behind it, then the end of the log.
//!
//! The log is followed from batch to batch: the next one begins behind the last one, or at the start of
//! the segment that its header names, and carries the last one's LSN and checksum. Only the last batch
//! can be torn, since a batch is written when the one before it is durable. A batch is known to have
//! been durable when a later header names it as its predecessor; that tells damage from a torn tail:
//! see `docs/on-disk-format.md`.

use super::batch::{DataChecksum, Header, NO_SEGMENT};
use super::codec::Entry;
use super::index::{Index, Meta};
use super::log::BatchRef;
use super::state::{State, in_bounds};
use super::superblock::Superblock;
use super::table::{OBJECT_BLOCKS_MAX, PAGE_BLOCKS};
use crate::device::Device;
use crate::device::buffer::{Buf, Pool};
use std::cell::Cell;
use trefoil_core::BLOCK_SIZE;

/// Times that the device is asked for the same blocks.
const READS_MAX: u32 = 3;
/// Blocks read at once while following the log.
const WINDOW_BLOCKS: u32 = 64;

/// What became of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IndexUse {
    /// It was loaded; the log was replayed from where it ends.
    #[default]
    Used,
    /// There was none: everything comes from the log.
    Missing,
    /// It could not be used, for this reason; it was deleted, and everything comes from the log.
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
    /// Where the next one may begin.
    pub end: (u32, u32),
    /// What was done.
    pub how: How,
    /// State is lost, in words.
    pub lost: Option<String>,
    /// The index has to be written anew.
    pub index_empty: bool,
}

struct Found {
    header: Header,
    entries: Vec<Entry>,
}

impl Found {
    fn at(&self) -> BatchRef {
        BatchRef {
            lsn: self.header.lsn,
            checksum: self.header.checksum,
            segment: self.header.segment,
            block: self.header.block,
        }
    }
}

struct Reader<'a, D> {
    device: &'a D,
    sb: &'a Superblock,
    pool: Pool,
    window: Option<(u64, Buf)>,
    /// A block that the device could not give, and why: it is not known what is there.
    trouble: Cell<Option<(u64, std::io::ErrorKind)>>,
}

impl<D: Device> Reader<'_, D> {
    /// Blocks of one segment; `None` where the device fails.
    fn read(&self, location: u64, blocks: u32) -> Option<Buf> {
        let mut buf = self.pool.get(blocks as usize * BLOCK_SIZE)?;
        let mut why = None;
        for _ in 0..READS_MAX {
            match self.device.read_now(location * BLOCK_SIZE as u64, &mut buf) {
                Ok(()) => return Some(buf),
                Err(error) => why = Some((location, error.kind())),
            }
        }
        self.trouble.set(why);
        None
    }

    /// A block of a segment, through the window.
    fn block(&mut self, segment: u32, block: u32) -> Option<&[u8]> {
        let location = self.sb.location(segment, block);
        let hit = self.window.as_ref().is_some_and(|(start, buf)| {
            location >= *start && location - start < (buf.len() / BLOCK_SIZE) as u64
        });
        if !hit {
            let n = WINDOW_BLOCKS.min(self.sb.segment_blocks - block);
            // Where a window cannot be read, perhaps its first block can.
            let before = self.trouble.get();
            let buf = match self.read(location, n) {
                Some(buf) => buf,
                None => {
                    self.trouble.set(before);
                    self.read(location, 1)?
                }
            };
            self.window = Some((location, buf));
        }
        let (start, buf) = self.window.as_ref()?;
        let at = (location - start) as usize * BLOCK_SIZE;
        buf.get(at..at + BLOCK_SIZE)
    }

    /// The batch that begins here, if one does: its header is verified, its data is not.
    fn batch(&mut self, segment: u32, block: u32) -> Option<Found> {
        if segment >= self.sb.segments || block >= self.sb.segment_blocks {
            return None;
        }
        let sb = self.sb;
        let first = self.block(segment, block)?;
        let header = Header::peek(first, sb.incarnation, segment, block)?;
        if u64::from(block) + u64::from(header.blocks()) > u64::from(sb.segment_blocks) {
            return None;
        }
        let entries = if header.header_blocks == 1 {
            header.verify(sb.incarnation, first).then(|| header.entries(first))??
        } else {
            let area = self.read(sb.location(segment, block), header.header_blocks)?;
            header.verify(sb.incarnation, &area).then(|| header.entries(&area))??
        };
        let sane = entries.iter().all(|e| match e {
            Entry::Node(record) => in_bounds(record),
            Entry::Page { page, .. } => *page < OBJECT_BLOCKS_MAX / PAGE_BLOCKS,
            Entry::Start { .. } => true,
        });
        sane.then_some(Found { header, entries })
    }

    /// True if the batch's data blocks are all there.
    fn whole(&self, header: &Header) -> bool {
        let mut sum = DataChecksum::default();
        let mut at = header.block + header.header_blocks;
        let end = header.block + header.blocks();
        while at < end {
            let n = (end - at).min(256);
            let Some(buf) = self.read(self.sb.location(header.segment, at), n) else {
                return false;
            };
            sum.update(&buf);
            at += n;
        }
        sum.finish() == header.data_checksum
    }

    /// Looks behind `(segment, block)`, in the rest of the segment, in the segment that comes next and
    /// at the first block of the others (`thorough`), for the first batch whose predecessor has an LSN
    /// of at least `least`: the log once went on.
    fn later(
        &mut self,
        (segment, block): (u32, u32),
        next: u32,
        least: u64,
        thorough: bool,
    ) -> Option<Found> {
        let mut best: Option<Found> = None;
        let mut look = |this: &mut Self, segment, block| {
            if let Some(found) = this.batch(segment, block)
                && found.header.previous_lsn >= least
                && best.as_ref().is_none_or(|b| found.header.lsn < b.header.lsn)
            {
                best = Some(found);
            }
        };
        for block in block..self.sb.segment_blocks {
            look(self, segment, block);
        }
        if next < self.sb.segments {
            for block in 0..self.sb.segment_blocks {
                look(self, next, block);
            }
        }
        if thorough {
            for segment in 0..self.sb.segments {
                // One block of each: no window.
                let at = self.sb.location(segment, 0);
                self.window = self.read(at, 1).map(|buf| (at, buf));
                look(self, segment, 0);
            }
        }
        best
    }
}

/// Recovers the state. Writes nothing to the device; may discard the index.
pub fn recover<D: Device, I: Index>(
    device: &D,
    sb: &Superblock,
    index: &mut I,
    cache_bytes: u64,
    progress: &mut dyn FnMut(u32, u32),
) -> Recovery {
    let mut reader = Reader {
        device,
        sb,
        pool: Pool::new(u64::MAX, 4 << 20, None),
        window: None,
        trouble: Cell::new(None),
    };
    let mut how = How::default();
    let mut state = State::new(cache_bytes);
    let mut claimed = 0;
    let loaded = match index.load(&mut |key, value| state.restore(key, value)) {
        Ok(Some(meta)) => match covered(&mut reader, sb, &meta) {
            Ok(found) => Ok((meta, found)),
            Err(why) => {
                if meta.incarnation == sb.incarnation {
                    claimed = meta.covers.lsn;
                }
                Err(Some(why))
            }
        },
        Ok(None) => Err(None),
        Err(why) => Err(Some(why)),
    };
    let mut last = BatchRef::default();
    let mut end = (0, 0);
    let mut next = 0;
    let mut lost = None;
    let index_empty = loaded.is_err();
    match loaded {
        Ok((meta, header)) => {
            last = meta.covers;
            end = (header.segment, header.block + header.blocks());
            next = header.next_segment;
            state.lost = meta.lost;
            state.session = meta.session;
            state.durable.amnesia = meta.amnesia;
        }
        Err(why) => {
            state = State::new(cache_bytes);
            how.index = match why {
                None => IndexUse::Missing,
                Some(why) => {
                    tracing::warn!(device = device.name(), why, "the index is discarded and rebuilt");
                    IndexUse::Discarded(why)
                }
            };
            if let Err(error) = index.discard() {
                tracing::warn!(error, "there is no index for now");
            }
        }
    }
    let thorough = index_empty;
    // The batch found last: not replayed before it is known to have been durable.
    let mut pending: Option<Found> = None;
    let mut reported = None;
    loop {
        let from = pending.as_ref().map_or(last, Found::at);
        let (at, after) = match &pending {
            Some(p) => ((p.header.segment, p.header.block + p.header.blocks()), p.header.next_segment),
            None => (end, next),
        };
        reader.trouble.set(None);
        let successor = [at, (after, 0)].into_iter().filter(|(segment, _)| *segment != NO_SEGMENT).find_map(
            |(segment, block)| {
                reader.batch(segment, block).filter(|f| {
                    f.header.previous_lsn == from.lsn && f.header.previous_checksum == from.checksum
                })
            },
        );
        let follows = successor.is_some();
        let mut successor = successor;
        let whole = follows || pending.as_ref().is_none_or(|p| reader.whole(&p.header));
        if !follows {
            // Anything that names a successor of `from` as its predecessor, or `from` itself where
            // `from` looks torn, proves that the log went on.
            let behind = match (&pending, whole) {
                (Some(p), false) => (p.header.segment, p.header.block + p.header.header_blocks),
                _ => at,
            };
            let least = if whole { from.lsn + 1 } else { from.lsn };
            let unread = reader.trouble.take();
            successor = reader.later(behind, after, least, thorough);
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
                end = (p.header.segment, p.header.block + p.header.blocks());
                next = p.header.next_segment;
                replay(&mut state, sb, &p, &mut how);
                if reported != Some(p.header.segment) {
                    reported = Some(p.header.segment);
                    progress(p.header.segment, sb.segments);
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
    if claimed > last.lsn {
        lost.get_or_insert(format!(
            "the log ends at LSN {}, but the index covers LSN {claimed}: the device has lost writes that \
             were durable, or is an older copy of itself",
            last.lsn
        ));
    }
    state.lost |= lost.is_some();
    if state.lost && lost.is_none() {
        lost = Some("the loss was found when the store was opened before".to_owned());
    }
    Recovery { state, last, end, how, lost, index_empty }
}

/// The batch that the index says it covers; or why the index cannot be used.
fn covered<D: Device>(reader: &mut Reader<'_, D>, sb: &Superblock, meta: &Meta) -> Result<Header, String> {
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
    let mut location = sb.location(h.segment, h.block + h.header_blocks);
    for entry in &found.entries {
        state.replay(entry, location);
        location += u64::from(entry.data_blocks());
        how.records += 1;
    }
}
