//! Checkpoints: bringing the index up to date, and at times the snapshot in the log, a little at each
//! `submit`, so that I/O never waits.
//!
//! 1. *Begin*: the open batch is sealed; the last batch, C, is what the index will cover. The keys that
//!    have changed and the pages that are dirty are listed; the segments' counts are copied.
//! 2. *Pages*: the listed pages are appended to the log (those not in memory are loaded first).
//! 3. *Keys*: entries for the listed keys are read from the state, some at a time. A *full* checkpoint
//!    reads all of them and appends them to the log too: that is the snapshot.
//! 4. *Durable*: the batches up to now become durable; the entries name places in them.
//! 5. *Root* (full ones): the root that names the snapshot is written. When it is durable, nothing before
//!    C is needed any more but live blocks: segments become free.
//! 6. *Commit*: the index takes the entries and C in one batch on its own thread.
//!
//! Entries are read later than C; replaying the log from C makes them right (`state.rs` says why).

use super::bugs::{self, Bug};
use super::codec;
use super::engine::{Running, Store};
use super::index::{Delta, Index, Meta, VERSION};
use super::log::{BatchRef, Stream};
use super::replay_cost::Log;
use super::root::Root;
use super::segments::Segments;
use super::state::{Key, State};
use crate::device::buffer::Pool;
use crate::device::{Device, Op};
use std::collections::VecDeque;
use trefoil_core::{BLOCK_SIZE, ObjectId, PgId};

/// Pages written per step.
const PAGES_PER_STEP: usize = 128;
/// Pages that the checkpoint loads at once.
const LOADS_MAX: usize = 64;
/// Entries read per step.
const KEYS_PER_STEP: usize = 512;
/// Blocks that this many entries take in a snapshot, about.
const KEY_STEP_BLOCKS: u32 = 16;
/// Bytes of one value in a snapshot: a larger one is a bug, since every record must fit into a header.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// How far the checkpoint is.
#[derive(Default)]
pub enum Phase {
    /// None under way.
    #[default]
    Idle,
    /// Steps 2 and 3.
    Gathering(Box<Gathering>),
    /// Step 4.
    Durable {
        /// Wait until this LSN is durable.
        lsn: u64,
        /// The root to write then, if the checkpoint is a full one.
        root: Option<Root>,
        /// What to commit then.
        delta: Delta,
    },
    /// Step 5.
    Root {
        /// What is being written.
        root: Root,
        /// What to commit then.
        delta: Delta,
    },
    /// Step 6.
    Commit,
}

/// Steps 2 and 3.
pub struct Gathering {
    covers: BatchRef,
    /// A snapshot is written too.
    full: bool,
    /// Pages still to be written.
    pages: VecDeque<(u32, ObjectId, u32)>,
    /// Pages that are being loaded to be written.
    loading: Vec<(u32, ObjectId, u32)>,
    /// Keys still to be read, from the end, and whether the index wants them.
    keys: Vec<(Key, bool)>,
    /// As of `covers`.
    segments: Segments,
    chunk: u32,
    /// For the index.
    entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Gathering {
    fn pages_done(&self) -> bool {
        self.pages.is_empty() && self.loading.is_empty()
    }
}

impl<D: Device, I: Index> Store<D, I> {
    /// Begins a checkpoint if none is under way.
    pub(super) fn checkpoint_begin(&mut self, full: bool) {
        if !matches!(self.phase, Phase::Idle) || self.failed.is_some() {
            return;
        }
        self.log.seal();
        self.take_notes();
        let covers = self.log.last();
        let mut dirty = std::mem::take(&mut self.state.dirty);
        let mut keys: Vec<(Key, bool)> = Vec::new();
        if full || self.index_empty {
            let all = self.index_empty;
            keys.extend(self.state.all_keys().into_iter().map(|key| (key, dirty.remove(&key) || all)));
        }
        // What is there no more is only to be removed from the index, in any order.
        keys.splice(0..0, dirty.into_iter().map(|key| (key, true)));
        self.state.newly_dead.clear();
        self.space.checkpoint_from = self.log.appended_blocks();
        self.replay_cost.from_lsn = covers.lsn;
        self.replayed = Log::default();
        self.phase = Phase::Gathering(Box::new(Gathering {
            covers,
            full,
            pages: self.state.tables.dirty_slots().into(),
            loading: Vec::new(),
            keys,
            segments: self.state.segments.clone(),
            chunk: 0,
            entries: Vec::new(),
        }));
    }

    /// True if a step can be made without waiting for I/O.
    pub(super) fn checkpoint_runs(&self) -> bool {
        match &self.phase {
            // Nothing moves any more: the caller must not be kept awake.
            _ if self.failed.is_some() => false,
            // Woken by the end of the batch under way.
            Phase::Gathering(_) if self.log_is_behind() => false,
            Phase::Gathering(g) => !g.pages.is_empty() && g.loading.len() < LOADS_MAX || g.loading.is_empty(),
            Phase::Durable { lsn, .. } => *lsn <= self.durable_lsn,
            _ => false,
        }
    }

    /// Pages are read faster than the log is written: what is gathered must not pile up in memory, nor
    /// before what clients write.
    pub(super) fn log_is_behind(&self) -> bool {
        !self.space.background_may()
            || self.log.pending_bytes() >= self.options.pending_bytes_max
            || self.room_is_coming()
    }

    /// The next step, if there is one.
    pub(super) fn checkpoint_step(&mut self) {
        if self.failed.is_some() {
            return;
        }
        match std::mem::take(&mut self.phase) {
            Phase::Idle => {
                if let Some(full) = self.checkpoint_due() {
                    self.checkpoint_begin(full);
                }
            }
            Phase::Gathering(g) => self.gather(g),
            Phase::Durable { lsn, root, delta } => {
                if lsn > self.durable_lsn {
                    self.phase = Phase::Durable { lsn, root, delta };
                } else if let Some(root) = root {
                    // Its snapshot is durable: `lsn` is that of the SnapshotEnd or later.
                    self.write_root(root);
                    self.phase = Phase::Root { root, delta };
                } else {
                    self.commit(delta);
                }
            }
            phase @ Phase::Root { .. } => self.phase = phase,
            Phase::Commit => match self.index.finished() {
                None => self.phase = Phase::Commit,
                Some(Ok(())) => {
                    self.index_empty = false;
                    self.stats.checkpoints += 1;
                }
                Some(Err(error)) => {
                    tracing::warn!(
                        device = self.dev.name(),
                        error,
                        "the index has refused a checkpoint; it is deleted and made anew"
                    );
                    self.stats.checkpoints_failed += 1;
                    self.index_empty = true;
                    if let Err(error) = self.index.discard() {
                        tracing::warn!(error, "there is no index for now; the log holds everything");
                    }
                }
            },
        }
    }

    fn commit(&mut self, delta: Delta) {
        self.index.commit(delta);
        self.phase = Phase::Commit;
    }

    fn write_root(&mut self, root: Root) {
        let block = root.encode(self.sb.incarnation);
        let Some(mut buf) = Pool::new(u64::MAX, 0, None).get(BLOCK_SIZE) else {
            return self.fail("no memory for a root".to_owned());
        };
        buf.copy_from_slice(&block);
        let id = self.running.insert(Running::Root) as u64;
        self.dev.start(id, Op::Write { offset: root.offset(), bufs: vec![buf.freeze()], gently: false });
    }

    /// The root's write has ended.
    pub(super) fn root_written(&mut self, result: std::io::Result<()>) {
        let Phase::Root { root, delta } = std::mem::take(&mut self.phase) else {
            return;
        };
        match result {
            Ok(()) => {
                self.root = root;
                self.stats.snapshots += 1;
                self.commit(delta);
                // Durable: the root that makes what is before its snapshot unnecessary.
                self.free_segments();
                self.log.seal();
                self.space.snapshot_from = self.log.appended_blocks();
                self.clean_after_snapshot(self.space.checkpoint_from);
            }
            // Not trusted: perhaps it is there, so nothing that it needs may be used again; perhaps not,
            // so nothing that the root before needs either. No segment becomes free any more.
            Err(error) => self.fail(format!(
                "{}: writing the root at byte {} failed: {error}. Restart the node when the device works again",
                self.dev.name(),
                root.offset()
            )),
        }
    }

    fn gather(&mut self, mut g: Box<Gathering>) {
        if !self.room_is_coming() {
            g.loading.retain(|&(slot, object, page)| self.flush_listed(slot, object, page));
        }
        for _ in 0..PAGES_PER_STEP {
            if g.loading.len() >= LOADS_MAX || self.log_is_behind() {
                break;
            }
            let Some((slot, object, page)) = g.pages.pop_front() else {
                break;
            };
            if self.flush_listed(slot, object, page) {
                g.loading.push((slot, object, page));
            }
        }
        if g.pages_done() && !self.log_is_behind() {
            if g.keys.is_empty() {
                // Objects whose entries were read after their deletion are not in this checkpoint: their
                // pages must be.
                let mut dead = std::mem::take(&mut self.state.newly_dead);
                if bugs::on(Bug::NoNewlyDead) {
                    dead.clear();
                }
                g.keys.extend(dead.into_iter().map(|location| (Key::Dead(location), true)));
            }
            let rest = g.keys.len().saturating_sub(KEYS_PER_STEP);
            if g.full {
                self.space.background_used(KEY_STEP_BLOCKS);
            }
            let some = g.keys.split_off(rest);
            self.read_keys(&mut g, some);
        }
        if self.failed.is_some() {
            return;
        }
        if !(g.pages_done() && g.keys.is_empty() && self.state.newly_dead.is_empty()) {
            self.phase = Phase::Gathering(g);
            return;
        }
        while let Some((name, value)) = State::segments_entry(&g.segments, g.chunk) {
            g.chunk += 1;
            if g.full {
                self.put_snapshot(&name, &value);
            }
            g.entries.push((name, Some(value)));
        }
        let meta = Meta {
            version: VERSION,
            incarnation: self.sb.incarnation,
            covers: g.covers,
            lost: self.state.lost,
            amnesia: self.state.durable.amnesia,
            session: self.state.session,
            leaked: g.segments.leaked,
        };
        if g.full {
            self.scratch.clear();
            let encoded = codec::put_snapshot_end(g.covers, meta, &mut self.scratch);
            self.put_scratch(encoded);
        }
        self.log.seal();
        let end = self.log.last();
        let root = g.full.then_some(Root { number: self.root.number + 1, covers: g.covers, end });
        self.phase = Phase::Durable { lsn: end.lsn, root, delta: Delta { entries: g.entries, meta } };
        self.checkpoint_step();
    }

    /// Reads the entries of these keys, from the end.
    fn read_keys(&mut self, g: &mut Gathering, keys: Vec<(Key, bool)>) {
        for (key, for_index) in keys.into_iter().rev() {
            let (name, value) = self.state.entry(key);
            if g.full
                && let Some(value) = &value
            {
                self.put_snapshot(&name, value);
            }
            if for_index {
                g.entries.push((name, value));
            }
        }
    }

    /// A placement group is to be split by the next record. A replay from C does it again, on what it finds in the
    /// index then: that must be the placement group as it was before, and not half of it read behind the split,
    /// where the other half has gone under other names. So what a checkpoint under way has not read of it is read now.
    pub(super) fn checkpoint_before_split(&mut self, pg: PgId) {
        match std::mem::take(&mut self.phase) {
            Phase::Gathering(mut g) if !bugs::on(Bug::SplitUnderCheckpoint) => {
                let (of_it, rest) =
                    std::mem::take(&mut g.keys).into_iter().partition(|(key, _)| key.is_of(pg));
                g.keys = rest;
                self.read_keys(&mut g, of_it);
                self.phase = Phase::Gathering(g);
            }
            phase => self.phase = phase,
        }
    }

    fn put_snapshot(&mut self, key: &[u8], value: &[u8]) {
        debug_assert!(value.len() <= VALUE_BYTES_MAX);
        self.scratch.clear();
        let encoded = codec::put_snapshot(key.to_vec(), value.to_vec(), &mut self.scratch);
        self.put_scratch(encoded);
    }

    /// Appends the record in `scratch`, which has no data and no ticket.
    pub(super) fn put_scratch(&mut self, encoded: Result<(), postcard::Error>) {
        self.put_scratch_in(Stream::Hot, encoded);
    }

    /// The same, in a stream.
    pub(super) fn put_scratch_in(&mut self, stream: Stream, encoded: Result<(), postcard::Error>) {
        if let Err(error) = encoded {
            return self.fail(format!("a record cannot be encoded: {error}"));
        }
        match self.log.reserve(stream, self.scratch.len(), 0) {
            Ok(_) => self.log.push(&self.scratch, None),
            Err(error) => self.fail(error.to_string()),
        }
    }

    /// Writes a listed page; true if it has to be loaded first.
    fn flush_listed(&mut self, slot: u32, object: ObjectId, page: u32) -> bool {
        match self.state.tables.prepare_flush(slot, object, page) {
            None => false,
            Some(true) => {
                self.flush_page(slot);
                false
            }
            Some(false) => true,
        }
    }
}
