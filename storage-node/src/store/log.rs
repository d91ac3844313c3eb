//! The end of the log: batches that are being filled, sealed, written, and not durable yet.
//!
//! A record's place is known the moment it joins a batch: the batch's own place is fixed when it is
//! opened, and so is the size of its header. Small payload is copied once, into the aligned memory that
//! is written; large payload is written from where it lies, if that is aligned. Until a batch is durable its blocks are served from here ([`LogWriter::find`]).
//! One batch is under way at a time, so at most one can be torn. No I/O happens in this module.
//!
//! Two streams lay their batches into segments of their own: what clients write is apart from what
//! cleaning has moved, since the one dies soon and the other does not. It is one chain all the same: one
//! batch is open at a time, and it is sealed when the other stream wants one, so that the order of
//! appends is the order of LSNs.

use super::batch::{DataChecksum, FIXED, HEADER_BLOCKS_MAX, Header, NO_SEGMENT};
use super::memory::{self, Memory};
use super::placement::{self, Layout};
use super::superblock::{Superblock, byte_of};
use crate::device::buffer::Pool;
use bytes::Bytes;
use std::collections::VecDeque;
use trefoil_core::BLOCK_SIZE;

/// A record with more bytes than this opens its batch with a larger header, so that others like it
/// can share it.
const LARGE_RECORD_BYTES: usize = 1000;
/// Blocks of that larger header.
const LARGE_HEADER_BLOCKS: u32 = 4;
/// Blocks of data in the largest record that any batch takes: an Install of a whole object with all
/// that was kept on top. It fits into the smallest segment.
pub const RECORD_BLOCKS_MAX: u32 = trefoil_core::limits::OBJECT_BLOCKS_MAX
    + (trefoil_core::limits::REPAIR_OVERLAY_BYTES_MAX / BLOCK_SIZE) as u32;

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Clients, table pages, snapshots.
    Hot = 0,
    /// Cleaning.
    Cold = 1,
}

impl Stream {
    fn other(self) -> Stream {
        match self {
            Stream::Hot => Stream::Cold,
            Stream::Cold => Stream::Hot,
        }
    }
}

/// Where a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// Its segment.
    pub segment: u32,
    /// That segment's turn.
    pub turn: u16,
    /// Where the next batch begins, if it fits.
    pub block: u32,
    /// The segment behind that one, named when the first is nearly full; [`NO_SEGMENT`]: none yet.
    pub next: u32,
    /// That segment's turn.
    pub next_turn: u16,
}

/// Both streams, hot first.
pub type Ends = [StreamEnd; 2];

/// Where the streams of a new store begin.
pub const FIRST_ENDS: Ends = [
    StreamEnd { segment: 0, turn: 0, block: 0, next: NO_SEGMENT, next_turn: 0 },
    StreamEnd { segment: 1, turn: 0, block: 0, next: NO_SEGMENT, next_turn: 0 },
];

/// What a sealed batch does to the counts of its segment: see `Segments::batch`.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// Its segment.
    pub segment: u32,
    /// Its first block.
    pub first: u32,
    /// The block behind it.
    pub end: u32,
    /// Its LSN.
    pub lsn: u64,
    /// The age of what it holds.
    pub stamp: u64,
}

/// Names a batch in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BatchRef {
    /// Its LSN; 0 before the first.
    pub lsn: u64,
    /// Its header's checksum.
    pub checksum: u64,
    /// Its segment.
    pub segment: u32,
    /// Its first block in the segment.
    pub block: u32,
}

/// Why a record cannot join the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not even the reserve has room.
    #[error(
        "the device is full to its last block, the reserve included: nothing can be made durable any \
         more. Add nodes, or move the node's data to a larger device"
    )]
    Full,
    /// Larger than the format allows.
    #[error("a record of {header_bytes} header bytes and {data_blocks} data blocks is larger than a batch")]
    TooLarge {
        /// Bytes of header.
        header_bytes: usize,
        /// Blocks of data.
        data_blocks: u32,
    },
}

struct OpenBatch {
    stream: Stream,
    /// The greatest age of moved data in it.
    stamp: u64,
    segment: u32,
    turn: u16,
    block: u32,
    header_blocks: u32,
    data_blocks: u32,
    /// Those of them that no client waits for.
    background_blocks: u32,
    records: Vec<u8>,
    memory: Memory,
    ticket: Option<u64>,
}

/// A batch that is complete, written or about to be.
pub struct SealedBatch {
    /// Its name.
    pub at: BatchRef,
    /// Of its first block.
    pub location: u64,
    /// Blocks, header included.
    pub blocks: u32,
    /// Blocks of data.
    pub data_blocks: u32,
    /// The bytes.
    pub bufs: Vec<Bytes>,
    /// The greatest ticket in it.
    pub ticket: Option<u64>,
    /// Most of it is what no client waits for: repairs, table pages, moved blocks.
    pub background: bool,
}

/// See the module.
pub struct LogWriter {
    sb: Superblock,
    pool: Pool,
    batch_blocks_max: u32,
    ends: Ends,
    layout: Layout,
    /// Free segments that may be written at once.
    ready: VecDeque<(u32, u16)>,
    notes: Vec<Note>,
    /// By stream.
    appended: [u64; 2],
    last: BatchRef,
    open: Option<OpenBatch>,
    sealed: VecDeque<SealedBatch>,
    in_flight: Option<SealedBatch>,
    spare_records: Vec<u8>,
    skipped: u64,
}

impl LogWriter {
    /// Continues a log whose last batch is `last` and whose streams end at `ends`.
    pub fn new(sb: Superblock, pool: Pool, batch_bytes_max: u64, last: BatchRef, ends: Ends) -> LogWriter {
        LogWriter {
            sb,
            pool,
            batch_blocks_max: (batch_bytes_max / BLOCK_SIZE as u64).clamp(1, 1 << 20) as u32,
            ends,
            layout: Layout::default(),
            ready: VecDeque::new(),
            notes: Vec::new(),
            appended: [0; 2],
            last,
            open: None,
            sealed: VecDeque::new(),
            in_flight: None,
            spare_records: Vec::new(),
            skipped: 0,
        }
    }

    /// Leaves out the LSNs up to `lsn`. Only before the first batch is opened.
    pub fn skip_to(&mut self, lsn: u64) {
        self.skipped = lsn.saturating_sub(self.last.lsn);
    }

    /// A segment may be written from now on; nothing in it is needed.
    pub fn give(&mut self, segment: u32, turn: u16) {
        self.ready.push_back((segment, turn));
    }

    /// Segments that were given and not taken yet.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Those that a stream may take: the last one is kept for the cold stream where that is about to need
    /// it, since without cleaning none would come.
    pub fn ready_for(&self, stream: Stream) -> usize {
        let cold = &self.ends[Stream::Cold as usize];
        let size = self.sb.segment_blocks;
        let short = cold.next == NO_SEGMENT && cold.block >= size / 2;
        self.ready.len().saturating_sub(usize::from(short && stream == Stream::Hot))
    }

    /// Where the streams go on.
    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// Makes room for a record of `bytes` in the header and `blocks` of data; opens or changes the
    /// batch if need be. Returns the place of its first data block. Nothing is lost on an error.
    pub fn reserve(&mut self, stream: Stream, bytes: usize, blocks: u32) -> Result<u64, LogError> {
        let end = self.ends[stream as usize];
        // While it is not known where the stream goes on, a block is kept for the header that will say so.
        let unnamed = end.next == NO_SEGMENT && self.ready_for(stream) == 0;
        let size = self.sb.segment_blocks - u32::from(unnamed);
        if let Some(open) = &self.open
            && open.stream == stream
        {
            let header_fits = FIXED + open.records.len() + bytes <= open.header_blocks as usize * BLOCK_SIZE;
            let used = open.header_blocks + open.data_blocks;
            if header_fits
                && open.block + used + blocks <= size
                && open.data_blocks + blocks <= self.batch_blocks_max
            {
                return Ok(self.sb.in_turn(open.segment, open.turn, open.block + used));
            }
        }
        let mut header_blocks = (FIXED + bytes).div_ceil(BLOCK_SIZE) as u32;
        if header_blocks > HEADER_BLOCKS_MAX || header_blocks + blocks > size {
            return Err(LogError::TooLarge { header_bytes: bytes, data_blocks: blocks });
        }
        if bytes > LARGE_RECORD_BYTES && LARGE_HEADER_BLOCKS + blocks <= size {
            header_blocks = header_blocks.max(LARGE_HEADER_BLOCKS);
        }
        self.seal();
        if self.ends[stream as usize].block + header_blocks + blocks > size {
            // Only to a segment that a header has named: readers find no other.
            if self.ends[stream as usize].next == NO_SEGMENT {
                self.name_next(stream)?;
            }
            let end = &mut self.ends[stream as usize];
            *end = StreamEnd {
                segment: end.next,
                turn: end.next_turn,
                block: 0,
                next: NO_SEGMENT,
                next_turn: 0,
            };
        }
        let end = self.ends[stream as usize];
        let mut records = std::mem::take(&mut self.spare_records);
        records.clear();
        self.open = Some(OpenBatch {
            stream,
            stamp: 0,
            segment: end.segment,
            turn: end.turn,
            block: end.block,
            header_blocks,
            data_blocks: 0,
            background_blocks: 0,
            records,
            memory: Memory::default(),
            ticket: None,
        });
        Ok(self.sb.in_turn(end.segment, end.turn, end.block + header_blocks))
    }

    /// A batch without records that says where the stream goes on.
    fn name_next(&mut self, stream: Stream) -> Result<(), LogError> {
        let end = self.ends[stream as usize];
        // Where there is no choice, the hot stream takes the cold one's, too.
        if self.ready.is_empty() || end.block >= self.sb.segment_blocks {
            return Err(LogError::Full);
        }
        self.open = Some(OpenBatch {
            stream,
            stamp: 0,
            segment: end.segment,
            turn: end.turn,
            block: end.block,
            header_blocks: 1,
            data_blocks: 0,
            background_blocks: 0,
            records: Vec::new(),
            memory: Memory::default(),
            ticket: None,
        });
        if let Some((segment, turn)) = placement::take(&mut self.ready, stream, self.layout) {
            let end = &mut self.ends[stream as usize];
            (end.next, end.next_turn) = (segment, turn);
        }
        self.seal();
        Ok(())
    }

    /// The age of moved data in the open batch.
    pub fn stamp(&mut self, stamp: u64) {
        if let Some(open) = &mut self.open {
            open.stamp = open.stamp.max(stamp);
        }
    }

    /// Adds what [`LogWriter::reserve`] has made room for: the encoded record, its ticket; its data
    /// follows through [`LogWriter::data`].
    pub fn push(&mut self, record: &[u8], ticket: Option<u64>) {
        if let Some(open) = &mut self.open {
            open.records.extend_from_slice(record);
            open.ticket = ticket.or(open.ticket);
        }
    }

    /// Copies whole blocks of a record's data to their place.
    pub fn data(&mut self, bytes: &[u8]) {
        let Some(open) = &mut self.open else { return };
        open.memory.begin(&self.pool, open.header_blocks);
        open.memory.copy(&self.pool, bytes);
        open.data_blocks += (bytes.len() / BLOCK_SIZE) as u32;
    }

    /// The same for data that is written from where it lies, if that is worth its while.
    pub fn shared_data(&mut self, bytes: &Bytes) {
        let Some(open) = &mut self.open else { return };
        if !memory::can_share(bytes) || open.memory.is_crowded() || open.header_blocks > memory::CHUNK_BLOCKS
        {
            return self.data(bytes);
        }
        open.memory.begin(&self.pool, open.header_blocks);
        open.memory.share(bytes.clone());
        open.data_blocks += (bytes.len() / BLOCK_SIZE) as u32;
    }

    /// So many blocks of data that join the open batch are nothing that a client waits for.
    pub fn in_background(&mut self, blocks: u32) {
        if let Some(open) = &mut self.open {
            open.background_blocks += blocks;
        }
    }

    /// Closes the open batch, if there is one.
    pub fn seal(&mut self) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let blocks = open.header_blocks + open.data_blocks;
        open.memory.begin(&self.pool, open.header_blocks);
        let mut sum = DataChecksum::default();
        let mut skip = open.header_blocks as usize * BLOCK_SIZE;
        for part in open.memory.parts() {
            let skipped = skip.min(part.len());
            sum.update(&part[skipped..]);
            skip -= skipped;
        }
        let some_ready = self.ready_for(open.stream) > 0;
        let own = &mut self.ends[open.stream as usize];
        own.block = open.block + blocks;
        if own.next == NO_SEGMENT
            && some_ready
            && own.block >= self.sb.segment_blocks / 4 * 3
            && let Some((segment, turn)) = placement::take(&mut self.ready, open.stream, self.layout)
        {
            (own.next, own.next_turn) = (segment, turn);
        }
        let next_segment = own.next;
        let other = self.ends[open.stream.other() as usize];
        let mut header = Header {
            checksum: 0,
            header_blocks: open.header_blocks,
            data_blocks: open.data_blocks,
            records_bytes: open.records.len() as u32,
            lsn: self.last.lsn + 1 + std::mem::take(&mut self.skipped),
            previous_lsn: self.last.lsn,
            previous_checksum: self.last.checksum,
            data_checksum: sum.finish(),
            segment: open.segment,
            block: open.block,
            next_segment,
            other_segment: other.segment,
            other_block: other.block,
            other_next: other.next,
            cold: open.stream == Stream::Cold,
            turn: open.turn,
        };
        header.checksum = match open.memory.front(open.header_blocks) {
            Some(area) => header.seal(self.sb.incarnation, &open.records, area),
            None => {
                let mut area = vec![0; open.header_blocks as usize * BLOCK_SIZE];
                let checksum = header.seal(self.sb.incarnation, &open.records, &mut area);
                open.memory.overwrite(&area);
                checksum
            }
        };
        let at =
            BatchRef { lsn: header.lsn, checksum: header.checksum, segment: open.segment, block: open.block };
        self.last = at;
        self.appended[open.stream as usize] += u64::from(blocks);
        self.notes.push(Note {
            segment: open.segment,
            first: open.block,
            end: open.block + blocks,
            lsn: header.lsn,
            stamp: if open.stamp == 0 { header.lsn } else { open.stamp },
        });
        self.sealed.push_back(SealedBatch {
            at,
            location: self.sb.in_turn(open.segment, open.turn, open.block),
            blocks,
            data_blocks: open.data_blocks,
            bufs: open.memory.freeze(),
            ticket: open.ticket,
            background: open.stream == Stream::Cold || open.background_blocks > open.data_blocks / 2,
        });
        self.spare_records = open.records;
    }

    /// The next batch to write, if none is under way: its offset on the device, its bytes, and whether it is
    /// in the background.
    pub fn next_write(&mut self) -> Option<(u64, Vec<Bytes>, bool)> {
        if self.in_flight.is_some() {
            return None;
        }
        if self.sealed.is_empty() {
            self.seal();
        }
        let batch = self.sealed.pop_front()?;
        let write = (byte_of(batch.location), batch.bufs.clone(), batch.background);
        self.in_flight = Some(batch);
        Some(write)
    }

    /// The write has ended well: the batch is durable.
    pub fn written(&mut self) -> Option<SealedBatch> {
        self.in_flight.take()
    }

    /// The write has to be made again (nothing of it can be trusted, nothing was acknowledged).
    /// Returns its place.
    pub fn write_again(&mut self) -> u64 {
        let Some(batch) = self.in_flight.take() else {
            return 0;
        };
        let location = batch.location;
        self.sealed.push_front(batch);
        location
    }

    /// Has the ticket acknowledged with what is pending; false if nothing is.
    pub fn attach_ticket(&mut self, ticket: u64) -> bool {
        let slot = match (&mut self.open, self.sealed.back_mut(), &mut self.in_flight) {
            (Some(open), _, _) => &mut open.ticket,
            (None, Some(sealed), _) => &mut sealed.ticket,
            (None, None, Some(in_flight)) => &mut in_flight.ticket,
            (None, None, None) => return false,
        };
        *slot = Some(ticket);
        true
    }

    /// The bytes of a block that is in a batch which is not durable yet.
    pub fn find(&self, location: u64) -> Option<&[u8]> {
        // Asked for each block of each read.
        if !self.busy() {
            return None;
        }
        let inside = |start: u64, blocks: u32| {
            location.checked_sub(start).filter(|n| *n < u64::from(blocks)).map(|n| n as usize * BLOCK_SIZE)
        };
        for batch in self.in_flight.iter().chain(&self.sealed) {
            if let Some(at) = inside(batch.location, batch.blocks) {
                return memory::block_at(batch.bufs.iter().map(|part| &part[..]), at);
            }
        }
        let open = self.open.as_ref()?;
        let start = self.sb.in_turn(open.segment, open.turn, open.block);
        let at = inside(start, open.header_blocks + open.data_blocks)?;
        memory::block_at(open.memory.parts(), at)
    }

    /// The last sealed batch.
    pub fn last(&self) -> BatchRef {
        self.last
    }
    /// True if a batch is open, sealed or under way.
    pub fn busy(&self) -> bool {
        self.open.is_some() || !self.sealed.is_empty() || self.in_flight.is_some()
    }
    /// Bytes that are pending.
    pub fn pending_bytes(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |o| o.header_blocks + o.data_blocks);
        let sealed = self.sealed.iter().chain(&self.in_flight).map(|b| b.blocks);
        (sealed.sum::<u32>() + open) as u64 * BLOCK_SIZE as u64
    }
    /// Those of one stream: the rest of its segment, the next one, and what is ready for either.
    pub fn stream_free(&self, stream: Stream) -> u64 {
        let size = self.sb.segment_blocks;
        let end = &self.ends[stream as usize];
        let open = self.open.as_ref().filter(|o| o.stream == stream);
        let used = open.map_or(0, |o| o.header_blocks + o.data_blocks);
        let next = if end.next == NO_SEGMENT { 0 } else { size };
        u64::from(size.saturating_sub(end.block + used))
            + u64::from(next)
            + self.ready_for(stream) as u64 * u64::from(size)
    }
    /// Blocks sealed since the log was continued.
    pub fn appended_blocks(&self) -> u64 {
        self.appended[0] + self.appended[1]
    }
    /// Those of one stream.
    pub fn appended_by(&self, stream: Stream) -> u64 {
        self.appended[stream as usize]
    }
    /// What has been sealed since the last call.
    pub fn take_notes(&mut self) -> std::vec::Drain<'_, Note> {
        self.notes.drain(..)
    }
}
