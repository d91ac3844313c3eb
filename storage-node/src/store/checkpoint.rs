//! Checkpoints: bringing the index up to date, a little at each `submit`, so that I/O never waits.
//!
//! 1. *Begin*: the open batch is sealed; the last batch, C, is what the index will cover. The keys that
//!    have changed and the pages that are dirty are listed.
//! 2. *Pages*: the listed pages are appended to the log (those not in memory are loaded first).
//! 3. *Keys*: entries for the listed keys are read from the state, some at a time.
//! 4. *Durable*: the batches up to now become durable; the entries name places in them.
//! 5. *Commit*: the index takes the entries and C in one batch on its own thread.
//!
//! Entries are read later than C; replaying the log from C makes them right (`state.rs` says why).

use super::engine::Store;
use super::index::{Delta, Index, Meta, VERSION};
use super::log::BatchRef;
use super::state::Key;
use crate::device::Device;
use std::collections::VecDeque;
use trefoil_core::ObjectId;

/// Pages written per step.
const PAGES_PER_STEP: usize = 128;
/// Pages that the checkpoint loads at once.
const LOADS_MAX: usize = 64;
/// Entries read per step.
const KEYS_PER_STEP: usize = 512;

/// How far the checkpoint is.
#[derive(Default)]
pub enum Phase {
    /// None under way.
    #[default]
    Idle,
    /// Steps 2 and 3.
    Gathering {
        /// What the index will cover.
        covers: BatchRef,
        /// Pages still to be written.
        pages: VecDeque<(u32, ObjectId, u32)>,
        /// Pages that are being loaded to be written.
        loading: Vec<(u32, ObjectId, u32)>,
        /// Keys still to be read.
        keys: Vec<Key>,
        /// What was read.
        entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    },
    /// Step 4.
    Durable {
        /// Wait until this LSN is durable.
        lsn: u64,
        /// What to commit then.
        delta: Delta,
    },
    /// Step 5.
    Commit,
}

impl<D: Device, I: Index> Store<D, I> {
    /// Begins a checkpoint if none is under way.
    pub(super) fn checkpoint_begin(&mut self) {
        if !matches!(self.phase, Phase::Idle) || self.failed.is_some() {
            return;
        }
        self.log.seal();
        let covers = self.log.last();
        let mut keys = std::mem::take(&mut self.state.dirty);
        if self.index_empty {
            keys.extend(self.state.all_keys());
        }
        self.checkpoint_from = self.log.free_blocks();
        self.phase = Phase::Gathering {
            covers,
            pages: self.state.tables.dirty_slots().into(),
            loading: Vec::new(),
            keys: keys.into_iter().collect(),
            entries: Vec::new(),
        };
    }

    /// True if a step can be made without waiting for I/O.
    pub(super) fn checkpoint_runs(&self) -> bool {
        match &self.phase {
            // Nothing moves any more: the caller must not be kept awake.
            _ if self.failed.is_some() => false,
            // Woken by the end of the batch under way.
            Phase::Gathering { .. } if self.log_is_behind() => false,
            Phase::Gathering { pages, loading, .. } => {
                !pages.is_empty() && loading.len() < LOADS_MAX || loading.is_empty()
            }
            Phase::Durable { lsn, .. } => *lsn <= self.durable_lsn,
            _ => false,
        }
    }

    /// Pages are read faster than the log is written: what is gathered must not pile up in memory.
    fn log_is_behind(&self) -> bool {
        self.log.pending_bytes() >= self.options.pending_bytes_max
    }

    /// The next step, if there is one.
    pub(super) fn checkpoint_step(&mut self) {
        if self.failed.is_some() {
            return;
        }
        match std::mem::take(&mut self.phase) {
            Phase::Idle => {
                let blocks = self.checkpoint_from.saturating_sub(self.log.free_blocks());
                let bytes = blocks * trefoil_core::BLOCK_SIZE as u64;
                if bytes >= self.options.checkpoint_bytes
                    || self.state.tables.queued() > self.options.queued_changes_max / 2
                {
                    self.checkpoint_begin();
                }
            }
            Phase::Gathering { covers, mut pages, mut loading, mut keys, mut entries } => {
                loading.retain(|&(slot, object, page)| self.flush_listed(slot, object, page));
                for _ in 0..PAGES_PER_STEP {
                    if loading.len() >= LOADS_MAX || self.log_is_behind() {
                        break;
                    }
                    let Some((slot, object, page)) = pages.pop_front() else {
                        break;
                    };
                    if self.flush_listed(slot, object, page) {
                        loading.push((slot, object, page));
                    }
                }
                if pages.is_empty() && loading.is_empty() {
                    let rest = keys.len().saturating_sub(KEYS_PER_STEP);
                    entries.extend(keys.drain(rest..).map(|key| self.state.entry(key)));
                }
                if !(pages.is_empty() && loading.is_empty() && keys.is_empty()) {
                    self.phase = Phase::Gathering { covers, pages, loading, keys, entries };
                    return;
                }
                self.log.seal();
                let meta = Meta {
                    version: VERSION,
                    incarnation: self.sb.incarnation,
                    covers,
                    lost: self.state.lost,
                    amnesia: self.state.durable.amnesia,
                    session: self.state.session,
                };
                self.phase = Phase::Durable { lsn: self.log.last().lsn, delta: Delta { entries, meta } };
                self.checkpoint_step();
            }
            Phase::Durable { lsn, delta } => {
                if lsn <= self.durable_lsn {
                    self.index.commit(delta);
                    self.phase = Phase::Commit;
                } else {
                    self.phase = Phase::Durable { lsn, delta };
                }
            }
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
