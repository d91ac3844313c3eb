//! The store itself: appends, reads, and the I/O that both need. See the module above for the picture.

use super::batch::page_checksum;
use super::checkpoint::Phase;
use super::cleaner::Cleaner;
use super::codec;
use super::index::{Index, SledIndex};
use super::log::{BatchRef, LogWriter, RECORD_BLOCKS_MAX, Stream};
use super::read::Read;
use super::reaper::Reaper;
use super::recovery::recover;
use super::replay_cost::{Log, ReplayCost};
use super::root::Root;
use super::space::SpaceState;
use super::state::{Key, State, in_bounds};
use super::superblock::{Superblock, byte_of};
use super::table::Captured;
use super::{FormatError, FormatOptions, OpenError, Recovered, Stats, StoreEvent, StoreOptions};
use crate::device::buffer::Pool;
use crate::device::file::{FileDevice, RawDevice};
use crate::device::wake::AsyncWaker;
use crate::device::{Completion, Device, Op, PART_BYTES};
use bytes::Bytes;
use rustc_hash::FxHashSet;
use slab::Slab;
use std::cell::OnceCell;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use trefoil_core::record::Record;
use trefoil_core::{BLOCK_SIZE, BlockRange, ObjectId};

/// Pages that are loaded at once.
const LOADS_MAX: usize = 128;
/// Room, in blocks, below which a store of 8 GiB or more counts as nearly full (64 MiB).
pub(super) const NEARLY_FULL_BLOCKS: u64 = 16 << 10;
/// Stands for the cleaner where the tables are told which read asks.
pub(super) const CLEANER: usize = usize::MAX;
/// Times that a write is made again after an error that says "try again".
const WRITE_RETRIES_MAX: u32 = 8;
/// Times that the read of a page is made again after any error: 256 blocks go with a page, and it may
/// not be the medium's fault.
const PAGE_RETRIES_MAX: u32 = 8;

/// What an operation of the device is for.
pub(super) enum Running {
    /// The batch under way.
    Batch,
    /// A page, for this slot; how often its read has been made again.
    Page { slot: u32, location: u64, retries: u32, epoch: u64 },
    /// A part of a read's data, from this index in its `wanted`.
    Piece { read: usize, first: u32 },
    /// The root under way.
    Root,
    /// Zeroing or discarding a free segment.
    Prepare { segment: u32 },
    /// Blocks of the segment that is being cleaned, from this one on.
    Clean { segment: u32, at: u32 },
    /// A page of a deleted object's table; how often its read has been made again.
    Dead { location: u64, retries: u32, epoch: u64 },
}

/// A store. `D` is the device and `I` the index; the defaults are the real ones.
pub struct Store<D: Device = FileDevice, I: Index = SledIndex> {
    pub(super) dev: D,
    pub(super) index: I,
    pub(super) sb: Superblock,
    pub(super) options: StoreOptions,
    pub(super) state: State,
    pub(super) log: LogWriter,
    pub(super) phase: Phase,
    pub(super) index_empty: bool,
    pub(super) space: SpaceState,
    pub(super) cleaner: Cleaner,
    pub(super) reaper: Reaper,
    /// The newest that is durable.
    pub(super) root: Root,
    pub(super) durable_lsn: u64,
    pub(super) failed: Option<String>,
    pub(super) stats: Stats,
    pub(super) running: Slab<Running>,
    pub(super) reads: Slab<Read>,
    /// Ended ones, for their memory.
    pub(super) spare_reads: Vec<Read>,
    pub(super) starved: VecDeque<usize>,
    pub(super) loads: usize,
    pub(super) read_pool: Pool,
    pub(super) events: Vec<StoreEvent>,
    completions: Vec<Completion>,
    pub(super) bad: FxHashSet<(ObjectId, u32)>,
    pub(super) scratch: Vec<u8>,
    retries: u32,
    wake: OnceCell<AsyncWaker>,
    /// What the start has read of the log: it counts towards the next checkpoint.
    pub(super) replayed: Log,
    pub(super) replay_cost: ReplayCost,
}

impl Store {
    /// Makes a store; see [`super::format`].
    pub fn format(path: &Path, options: &FormatOptions) -> Result<Superblock, FormatError> {
        super::format(path, options)
    }

    /// Opens the store at `path`, with its index in `index_dir`. Blocks while the log is replayed;
    /// `progress` is told `(segment, segments)` meanwhile.
    pub fn open(
        path: &Path,
        index_dir: &Path,
        options: StoreOptions,
        progress: &mut dyn FnMut(u32, u32),
    ) -> Result<(Store, Recovered), OpenError> {
        let raw = RawDevice::open(path, false)?;
        let name = raw.name.clone();
        if !raw.direct {
            tracing::warn!(device = %name, "the file system has no direct I/O: going through its cache");
        }
        let dev = FileDevice::new(raw, options.engine).map_err(|source| OpenError::Io {
            device: name,
            what: "cannot start I/O",
            source,
        })?;
        if let Some(info) = dev.info() {
            tracing::info!(device = dev.name(), ?info, "the device");
        }
        // A foreign device must not cost the index of ours.
        let (sb, damage) = Superblock::read(&dev)?;
        let index = SledIndex::open(index_dir, dev.waker().clone());
        let (mut store, recovered) = Store::start(dev, index, sb, damage, options, progress)?;
        // Not in `start`: a store on a simulated device must do the same things in the same order each time.
        store.replay_cost.learn(store.replayed, recovered.how.took);
        Ok((store, recovered))
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// Opens a store on any device and index.
    pub fn open_on(
        dev: D,
        index: I,
        options: StoreOptions,
        progress: &mut dyn FnMut(u32, u32),
    ) -> Result<(Store<D, I>, Recovered), OpenError> {
        let (sb, damage) = Superblock::read(&dev)?;
        Store::start(dev, index, sb, damage, options, progress)
    }

    fn start(
        dev: D,
        mut index: I,
        sb: Superblock,
        superblock_damage: Option<String>,
        options: StoreOptions,
        progress: &mut dyn FnMut(u32, u32),
    ) -> Result<(Store<D, I>, Recovered), OpenError> {
        if let Some(damage) = &superblock_damage {
            tracing::warn!(device = dev.name(), damage, "using the superblock's other copy");
        }
        let mut recovery = recover(&dev, &sb, &mut index, options.table_cache_bytes, progress)?;
        recovery.state.tables.replaying = false;
        recovery.state.session += 1;
        // Before this session's own record, which would hide that batches are missing.
        let log_position = recovery.last.lsn;
        let chunks = Pool::new(u64::MAX, options.pending_bytes_max.min(32 << 20), None);
        let mut start = Vec::new();
        // Two small numbers always serialise.
        let _ = codec::put_start(recovery.state.session, recovery.state.lost, &mut start);
        // One LSN is left out: it may be that of a torn batch, which must never fit in again.
        let before = BatchRef { lsn: recovery.last.lsn + 1, ..recovery.last };
        let batch_bytes = options.batch_bytes_max;
        let mut log = LogWriter::new(sb, chunks, batch_bytes, recovery.last, recovery.ends);
        log.skip_to(before.lsn);
        let waker = dev.waker().clone();
        let mut store = Store {
            read_pool: Pool::new(options.read_bytes_max, 32 << 20, Some(waker)),
            space: SpaceState::new(&sb, &options),
            cleaner: Cleaner::default(),
            reaper: Reaper::default(),
            root: recovery.root,
            dev,
            index,
            sb,
            options,
            state: recovery.state,
            log,
            phase: Phase::Idle,
            index_empty: recovery.index_empty,
            durable_lsn: recovery.last.lsn,
            failed: None,
            stats: Stats::default(),
            running: Slab::new(),
            reads: Slab::new(),
            spare_reads: Vec::new(),
            starved: VecDeque::new(),
            loads: 0,
            events: Vec::new(),
            completions: Vec::new(),
            bad: FxHashSet::default(),
            scratch: Vec::new(),
            retries: 0,
            wake: OnceCell::new(),
            // What was replayed counts, so that a node that keeps crashing still gets to a checkpoint.
            replayed: Log { batches: recovery.how.batches, blocks: recovery.how.blocks },
            replay_cost: ReplayCost::new(recovery.last.lsn),
        };
        store.find_free_at_start();
        store.begin_session(&start)?;
        let space = store.space();
        let recovered = Recovered {
            durable: store.state.durable.clone(),
            log_position,
            incarnation: sb.incarnation,
            space,
            lost: recovery.lost,
            superblock_damage,
            how: recovery.how,
        };
        Ok((store, recovered))
    }

    /// Writes the session's first record.
    fn begin_session(&mut self, start: &[u8]) -> Result<(), OpenError> {
        match self.log.reserve(Stream::Hot, start.len(), 0) {
            Ok(_) => self.log.push(start, None),
            Err(error) => {
                self.fail(error.to_string());
                return Ok(());
            }
        }
        let Some((mut offset, bufs, _)) = self.log.next_write() else {
            return Ok(());
        };
        for buf in bufs {
            self.dev.write_now(offset, &buf).map_err(|source| OpenError::Io {
                device: self.dev.name().to_owned(),
                what: "cannot write the first record of this session",
                source,
            })?;
            offset += buf.len() as u64;
        }
        self.log.written();
        self.durable_lsn = self.log.last().lsn;
        self.take_notes();
        Ok(())
    }

    /// How the device does.
    pub fn device_stats(&self) -> crate::device::latency::DeviceStats {
        self.dev.stats()
    }

    /// What the store is.
    pub fn superblock(&self) -> &Superblock {
        &self.sb
    }

    /// Position of the last batch that is durable; grows over the store's life.
    pub fn log_position(&self) -> u64 {
        self.durable_lsn
    }

    /// The state as of all records appended.
    pub fn durable(&self) -> &trefoil_core::record::Durable {
        &self.state.durable
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        Stats {
            space: self.space(),
            cache_hits: self.state.tables.hits,
            cache_misses: self.state.tables.misses,
            replay_us: self.replay_us(),
            pending_bytes: self.log.pending_bytes(),
            reads: self.reads.len(),
            queued_changes: self.state.tables.queued(),
            pages_resident: self.state.tables.resident(),
            pages_dirty: self.state.tables.dirty(),
            objects: self.state.tables.len(),
            segments_free: self.free_count(),
            segments_kept: self.cleaner.kept_count(),
            pages_dead: self.state.dead.len(),
            bad_now: self.bad.len(),
            live_blocks: self.state.segments.live(),
            ..self.stats
        }
    }

    /// Appends a record. Its ticket, which is greater than all before, is acknowledged by
    /// [`StoreEvent::Durable`], or never: after [`StoreEvent::Failed`] records are dropped.
    pub fn append(&mut self, ticket: u64, record: Record<Bytes>) {
        if self.failed.is_some() {
            return;
        }
        // Few records have more than one part.
        let (mut part, mut more): (Option<&Bytes>, Vec<&Bytes>) = (None, Vec::new());
        let blocks = record.data_blocks();
        if !in_bounds(&record)
            || blocks > RECORD_BLOCKS_MAX
            || !codec::payload_parts(&record, |next| match part {
                None => part = Some(next),
                Some(_) => more.push(next),
            })
        {
            return self.fail(
                "a record with impossible blocks was given to the store: this is a bug in the node; \
                 please report it"
                    .to_owned(),
            );
        }
        if let Record::Heal { object, block, checksum, .. } = &record {
            self.stats.healed += 1;
            let known_bad = self.bad.contains(&(*object, *block));
            if !known_bad
                && let Some(entry) = self.state.tables.peek(*object, *block)
                && (entry.checksum != *checksum || entry.location != 0)
            {
                // Nothing to heal.
                if !self.log.attach_ticket(ticket) {
                    self.events.push(StoreEvent::Durable { up_to_ticket: ticket });
                }
                return;
            }
        }
        if let Record::Split { pg, .. } = &record {
            self.checkpoint_before_split(*pg);
        }
        self.scratch.clear();
        if let Err(error) = codec::put_record(&record, &mut self.scratch) {
            return self.fail(format!("a record cannot be encoded: {error}"));
        }
        if self.log.ready() == 0 {
            self.prepare_segments();
        }
        let repairs = matches!(record, Record::Install { .. });
        if repairs && blocks as usize > PART_BYTES / BLOCK_SIZE {
            // The writes of clients that are there already do not wait for it.
            self.log.seal();
        }
        let location = match self.log.reserve(Stream::Hot, self.scratch.len(), blocks) {
            Ok(location) => location,
            Err(error) => return self.fail(error.to_string()),
        };
        self.log.push(&self.scratch, Some(ticket));
        if repairs {
            self.log.in_background(blocks);
        }
        for part in part.into_iter().chain(more) {
            self.log.shared_data(part);
        }
        self.stats.client_blocks += u64::from(blocks);
        self.state.apply(&record, location);
        if !self.bad.is_empty() {
            self.forget_bad(&record);
        }
    }

    fn forget_bad(&mut self, record: &Record<Bytes>) {
        match record {
            Record::Heal { object, block, .. } => {
                self.bad.remove(&(*object, *block));
            }
            Record::Write { object, op, .. } => {
                let blocks = op.blocks();
                self.bad.retain(|(o, b)| o != object || !blocks.contains(BlockRange::new(*b, 1)));
            }
            // What is still bad will be found again.
            Record::Install { object, .. } => self.bad.retain(|(o, _)| o != object),
            Record::DeleteVolume { volume } => self.bad.retain(|(o, _)| o.group.volume != *volume),
            Record::Leave { pg, .. } => self.bad.retain(|(o, _)| o.group.pg != *pg),
            Record::Split { .. } => {
                let tables = &self.state.tables;
                self.bad = self.bad.drain().map(|(o, b)| (tables.current(o), b)).collect();
            }
            _ => {}
        }
    }

    /// Starts what can be started: page loads, reads that waited for memory, a step of the checkpoint and
    /// of cleaning, the next batch. At most one system call.
    pub fn submit(&mut self) {
        if !self.log.busy() {
            self.space.background_refill();
        }
        // A cache that is a little too large for a moment is better than a log without room for what makes room.
        while !self.room_is_coming()
            && let Some(slot) = self.state.tables.dirty_victim()
        {
            if !self.evict_page(slot) {
                break;
            }
        }
        // A checkpoint loads them too, but not while the index commits: the queue must not stay full.
        if self.loads == 0 && self.state.tables.queued() > self.options.queued_changes_max / 4 * 3 {
            self.state.tables.resolve();
        }
        self.be_exact();
        self.checkpoint_step();
        self.clean_step();
        self.look_for_dead();
        self.release_waiting();
        self.prepare_segments();
        while self.loads < LOADS_MAX {
            let Some((slot, location)) = self.state.tables.next_load() else {
                break;
            };
            if let Some(bytes) = self.log.find(location) {
                let bytes = Bytes::copy_from_slice(bytes);
                self.page_loaded(slot, Some(&bytes));
                continue;
            }
            // Bounded by LOADS_MAX, so it does not come out of the reads' share.
            let Some(buf) = Pool::new(u64::MAX, 0, None).get(BLOCK_SIZE) else {
                break;
            };
            self.loads += 1;
            let epoch = self.space.read_begins();
            let id = self.running.insert(Running::Page { slot, location, retries: 0, epoch }) as u64;
            let offset = byte_of(location);
            self.dev.start(id, Op::Read { offset, buf });
        }
        for _ in 0..self.starved.len() {
            let Some(key) = self.starved.pop_front() else {
                break;
            };
            self.fetch(key);
            if self.starved.back() == Some(&key) {
                // Still no memory: it keeps its turn.
                self.starved.rotate_right(1);
                break;
            }
        }
        if self.failed.is_none()
            && let Some((offset, bufs, gently)) = self.log.next_write()
        {
            let id = self.running.insert(Running::Batch) as u64;
            self.dev.start(id, Op::Write { offset, bufs, gently });
        }
        self.take_notes();
        if let Err(error) = self.dev.submit() {
            self.fail(format!("{}: I/O cannot be started: {error}", self.dev.name()));
        }
    }

    /// Takes what has ended and appends what there is to tell. Call [`Store::submit`] after it.
    pub fn poll(&mut self, events: &mut Vec<StoreEvent>) {
        let mut ended = std::mem::take(&mut self.completions);
        self.dev.completions(&mut ended);
        for completion in ended.drain(..) {
            let Some(running) = self.running.try_remove(completion.id as usize) else {
                continue;
            };
            match running {
                Running::Batch => self.batch_written(completion.result),
                Running::Page { slot, location, retries, epoch } => match (completion.result, completion.buf)
                {
                    (Err(error), Some(buf)) if retries < PAGE_RETRIES_MAX => {
                        tracing::warn!(device = self.dev.name(), %error, "a table page cannot be read: trying again");
                        let again = Running::Page { slot, location, retries: retries + 1, epoch };
                        let id = self.running.insert(again) as u64;
                        self.dev.start(id, Op::Read { offset: byte_of(location), buf });
                    }
                    (result, buf) => {
                        self.loads -= 1;
                        self.space.read_ended(epoch);
                        let bytes = result.is_ok().then_some(buf).flatten();
                        self.page_loaded(slot, bytes.as_deref());
                    }
                },
                Running::Root => self.root_written(completion.result),
                Running::Prepare { segment } => {
                    if let Err(error) = completion.result {
                        // Advice only: the segment is used all the same. Without space below, the log's
                        // write will say so.
                        tracing::warn!(device = self.dev.name(), segment, %error, "a segment was not prepared");
                    }
                    self.prepared(segment);
                }
                Running::Clean { segment, at } => {
                    self.clean_window(segment, at, completion.result, completion.buf);
                }
                Running::Dead { location, retries, epoch } => match (completion.result, completion.buf) {
                    (Err(_), Some(buf)) if retries < PAGE_RETRIES_MAX => {
                        let again = Running::Dead { location, retries: retries + 1, epoch };
                        let id = self.running.insert(again) as u64;
                        self.dev.start(id, Op::Read { offset: byte_of(location), buf });
                    }
                    (result, buf) => {
                        self.space.read_ended(epoch);
                        let bytes = result.is_ok().then_some(buf).flatten();
                        self.dead_page(location, bytes.as_deref());
                    }
                },
                Running::Piece { read, first } => {
                    self.piece_read(read, first, completion.result, completion.buf);
                }
            }
        }
        self.completions = ended;
        if matches!(self.phase, Phase::Commit) {
            self.checkpoint_step();
        }
        events.append(&mut self.events);
    }

    fn batch_written(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => {
                self.retries = 0;
                self.space.background_refill();
                let Some(batch) = self.log.written() else {
                    return;
                };
                self.durable_lsn = batch.at.lsn;
                self.stats.batches += 1;
                self.stats.blocks += u64::from(batch.data_blocks);
                self.stats.bytes_written += u64::from(batch.blocks) * BLOCK_SIZE as u64;
                if let Some(up_to_ticket) = batch.ticket
                    && self.failed.is_none()
                {
                    self.events.push(StoreEvent::Durable { up_to_ticket });
                }
            }
            Err(error) => {
                let location = self.log.write_again();
                let again = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENOMEM));
                self.retries += 1;
                if !again || self.retries > WRITE_RETRIES_MAX {
                    self.fail(format!(
                        "{}: writing the log at byte {} failed: {error}. What was not acknowledged may or may \
                         not be on the device; restart the node when the device works again",
                        self.dev.name(),
                        byte_of(location)
                    ));
                }
            }
        }
    }

    fn page_loaded(&mut self, slot: u32, bytes: Option<&[u8]>) {
        let loaded = self.state.tables.loaded(slot, bytes);
        if let Some((object, blocks, location)) = loaded.lost {
            self.stats.lost_pages += 1;
            tracing::error!(
                device = self.dev.name(), %object, ?blocks, byte = byte_of(location),
                "a page of a block table is damaged: what these blocks hold is not known here any more"
            );
            self.events.push(StoreEvent::LostTable { object, blocks });
        }
        for Captured { read, at, entries } in loaded.captured {
            if read == CLEANER {
                self.clean_captured(at, &entries);
                continue;
            }
            let Some(r) = self.reads.get_mut(read) else {
                continue;
            };
            let at = at as usize;
            r.entries[at..at + entries.len()].copy_from_slice(&entries);
            r.waiting -= 1;
            if r.waiting == 0 {
                self.captured(read);
            }
        }
        // Where it has to wait, the checkpoint comes back to it.
        if loaded.flush && !self.room_is_coming() {
            self.flush_page(slot);
        }
        if self.cleaner.done_count() > 0 {
            // What was queued on the page has replaced blocks.
            self.cleaner.look_again();
        }
    }

    /// Appends a dirty page that is in memory to the log.
    pub(super) fn flush_page(&mut self, slot: u32) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let Some((object, page, image)) = self.state.tables.image(slot) else {
            return false;
        };
        let checksum = page_checksum(object, page, image);
        self.scratch.clear();
        let deltas = self.state.tables.take_deltas(slot);
        let encoded = codec::put_page(object, page, checksum, deltas.clone(), &mut self.scratch);
        if let Err(error) = encoded {
            self.fail(format!("a table page cannot be encoded: {error}"));
            return false;
        }
        match self.log.reserve(Stream::Hot, self.scratch.len(), 1) {
            Ok(location) => {
                self.log.push(&self.scratch, None);
                self.log.in_background(1);
                if let Some((.., image)) = self.state.tables.image(slot) {
                    self.log.data(image);
                }
                self.state.tables.flushed(slot, location, checksum);
                self.state.segments.add_all(&deltas);
                self.state.segments.add(self.sb.tag_of(location), 1);
                self.space.background_used(1);
                self.stats.page_blocks += 1;
                true
            }
            Err(error) => {
                self.fail(error.to_string());
                false
            }
        }
    }

    /// Writes a page because the cache is full.
    fn evict_page(&mut self, slot: u32) -> bool {
        if let Some((object, ..)) = self.state.tables.image(slot) {
            self.state.dirty.insert(Key::Object(object));
        }
        self.flush_page(slot)
    }

    /// Nothing is acknowledged from here on.
    pub(super) fn fail(&mut self, why: String) {
        if self.failed.is_none() {
            tracing::error!(device = self.dev.name(), why, "the store has failed");
            self.events.push(StoreEvent::Failed { why: why.clone() });
            self.failed = Some(why);
        }
    }

    /// What [`Store::ready`] waits for: for a caller that cannot borrow the store meanwhile. To be asked
    /// together with [`Store::has_work`].
    pub fn waker(&self) -> crate::device::wake::Waker {
        self.dev.waker().clone()
    }

    /// True where [`Store::poll`] or [`Store::submit`] has something to do without the waker's ringing.
    pub fn has_work(&self) -> bool {
        !self.events.is_empty() || self.checkpoint_runs() || self.clean_runs()
    }

    /// Waits until [`Store::poll`] or [`Store::submit`] has something to do. Needs a tokio runtime with
    /// I/O.
    pub async fn ready(&self) -> io::Result<()> {
        if self.has_work() {
            return Ok(());
        }
        let waker = match self.wake.get() {
            Some(waker) => waker,
            None => {
                let waker = AsyncWaker::new(self.dev.waker().clone())?;
                self.wake.get_or_init(|| waker)
            }
        };
        waker.rung().await
    }

    /// Gives the device back and drops the rest, as a crash would. For tests.
    pub fn into_device(self) -> D {
        self.dev
    }

    /// Makes everything durable and takes a final checkpoint. Blocks. Reads that are under way are
    /// dropped. An error: what was acknowledged is safe, the next start replays more.
    pub fn shutdown(mut self) -> Result<(), String> {
        let mut events = Vec::new();
        let mut begun = false;
        loop {
            self.submit();
            self.poll(&mut events);
            events.clear();
            if let Some(why) = self.failed {
                return Err(why);
            }
            if matches!(self.phase, Phase::Idle) && !self.log.busy() {
                if begun {
                    return if self.index_empty {
                        Err("the index has refused the final checkpoint".to_owned())
                    } else {
                        Ok(())
                    };
                }
                begun = true;
                self.checkpoint_begin(false);
            }
            if !self.checkpoint_runs() {
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        }
    }
}
