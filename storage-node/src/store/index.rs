//! The index: a disposable copy of the state as of a checkpoint, in `sled`.
//!
//! No fact lives here alone. The index names the store (incarnation) and the batch that it covers; a
//! foreign, damaged or vanished index is deleted and made again from the log. A commit is one sled
//! batch that includes the position it covers, then `flush`, then `sync_all` on every file and the
//! directory, because sled's own flush is no durability point. It runs on a thread of its own with
//! data of its own.

use super::log::BatchRef;
use crate::device::wake::Waker;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use trefoil_core::Incarnation;

/// Version of the index's entries; another one is discarded.
pub const VERSION: u32 = 2;
/// Key of the [`Meta`] entry; sorts before all others.
const META: &[u8] = b"\0meta";
/// Bytes of memory that sled may use for its cache.
const SLED_CACHE_BYTES: u64 = 16 << 20;

/// Entries of a commit that are applied as one.
const ATOMIC_ENTRIES_MAX: usize = 4096;
/// And of larger commits so many at a time.
const PIECE_ENTRIES: usize = 256;

/// What the index is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// [`VERSION`].
    pub version: u32,
    /// The store.
    pub incarnation: Incarnation,
    /// Everything up to this batch, itself included, is in the index.
    pub covers: BatchRef,
    /// State has been lost, and the node has not said yet that it knows.
    pub lost: bool,
    /// [`trefoil_core::record::Durable::amnesia`].
    pub amnesia: bool,
    /// How often the store has been opened.
    pub session: u64,
    /// Blocks that may be counted as live although nothing names them.
    pub leaked: u64,
}

/// A checkpoint's changes; owned, so that they can be written on another thread.
pub struct Delta {
    /// Entries to set or to remove.
    pub entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// What it covers from then on.
    pub meta: Meta,
}

/// What the store needs of an index. Tests have one in memory.
pub trait Index {
    /// Calls `each` with every entry but the meta entry, which is returned; `Ok(None)`: empty. An
    /// error: the index cannot be used.
    fn load(&mut self, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String>;
    /// Deletes everything. An error: there is no index until the next `discard` succeeds.
    fn discard(&mut self) -> Result<(), String>;
    /// Starts to commit; one at a time.
    fn commit(&mut self, delta: Delta);
    /// The outcome of the commit, once.
    fn finished(&mut self) -> Option<Result<(), String>>;
}

/// The index on disk.
pub struct SledIndex {
    dir: PathBuf,
    db: Option<sled::Db>,
    trouble: Option<String>,
    running: Option<Receiver<Result<(), String>>>,
    waker: Waker,
}

impl SledIndex {
    /// Opens the index in `dir`, which is made if it is not there. Never fails: an index that cannot
    /// be opened is reported by `load`.
    pub fn open(dir: &Path, waker: Waker) -> SledIndex {
        let mut index = SledIndex { dir: dir.to_owned(), db: None, trouble: None, running: None, waker };
        match open_db(dir) {
            Ok(db) => index.db = Some(db),
            Err(e) => index.trouble = Some(e),
        }
        index
    }
}

fn open_db(dir: &Path) -> Result<sled::Db, String> {
    let io = |e: io::Error| format!("{}: {e}", dir.display());
    fs::create_dir_all(dir).map_err(io)?;
    // sled refuses to open after a crash in its own recovery has left one of these.
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "generating") {
            fs::remove_file(&path).map_err(io)?;
        }
    }
    // sled panics on some kinds of damage.
    let dir_owned = dir.to_owned();
    std::panic::catch_unwind(move || {
        sled::Config::new().path(dir_owned).cache_capacity(SLED_CACHE_BYTES).flush_every_ms(None).open()
    })
    .map_err(|_| format!("{}: sled panicked while opening", dir.display()))?
    .map_err(|e| format!("{}: {e}", dir.display()))
}

fn commit(db: &sled::Db, dir: &Path, delta: Delta) -> Result<(), String> {
    let text = |e: sled::Error| e.to_string();
    let mut batch = sled::Batch::default();
    // sled keeps every version of every node that a batch touches until the batch is in: a gigabyte for a
    // hundred thousand objects. Many entries go in pieces, and meanwhile the index does not say what it
    // covers: after a crash in between it is made again from the log.
    let pieces = delta.entries.len() > ATOMIC_ENTRIES_MAX;
    if pieces {
        batch.remove(META);
    }
    for (n, (key, value)) in delta.entries.into_iter().enumerate() {
        match value {
            Some(value) => batch.insert(key, value),
            None => batch.remove(key),
        }
        if pieces && (n + 1) % PIECE_ENTRIES == 0 {
            db.apply_batch(std::mem::take(&mut batch)).map_err(text)?;
        }
    }
    let meta = postcard::to_stdvec(&delta.meta).map_err(|e| e.to_string())?;
    batch.insert(META, meta);
    db.apply_batch(batch).map_err(text)?;
    db.flush().map_err(text)?;
    sync_tree(dir).map_err(|e| format!("{}: {e}", dir.display()))
}

/// Makes every file below `dir` and the directories themselves durable.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            match File::open(entry.path()) {
                Ok(file) => file.sync_all()?,
                // sled has just replaced one of its snapshots.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    File::open(dir)?.sync_all()
}

fn guarded<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err("sled panicked".to_owned()))
}

impl Index for SledIndex {
    fn load(&mut self, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String> {
        let Some(db) = &self.db else {
            return Err(self.trouble.clone().unwrap_or_default());
        };
        guarded(|| {
            let mut meta = None;
            for entry in db.iter() {
                let (key, value) = entry.map_err(|e| e.to_string())?;
                if key == META {
                    let found: Meta = postcard::from_bytes(&value).map_err(|e| e.to_string())?;
                    if found.version != VERSION {
                        return Err(format!("its version is {}", found.version));
                    }
                    meta = Some(found);
                } else if meta.is_none() {
                    return Err("it does not say what it covers".to_owned());
                } else if !each(&key, &value) {
                    return Err(format!("its entry {key:?} cannot be understood"));
                }
            }
            Ok(meta)
        })
    }

    fn discard(&mut self) -> Result<(), String> {
        self.db = None;
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot delete {}: {e}", self.dir.display()));
            }
            _ => {}
        }
        self.db = Some(open_db(&self.dir)?);
        Ok(())
    }

    fn commit(&mut self, delta: Delta) {
        let (done, outcome) = channel();
        self.running = Some(outcome);
        let Some(db) = self.db.clone() else {
            let _ = done.send(Err("there is no index".to_owned()));
            self.waker.ring();
            return;
        };
        let (dir, waker) = (self.dir.clone(), self.waker.clone());
        let started = std::thread::Builder::new().name("store-index".to_owned()).spawn(move || {
            let outcome = guarded(|| commit(&db, &dir, delta));
            // Closed before the outcome is known: whoever waits for it may open it again.
            drop(db);
            let _ = done.send(outcome);
            waker.ring();
        });
        if let Err(error) = started {
            // The receiver finds its sender gone.
            tracing::warn!(%error, "cannot start the index's thread");
            self.waker.ring();
        }
    }

    fn finished(&mut self) -> Option<Result<(), String>> {
        let outcome = match self.running.as_ref()?.try_recv() {
            Ok(outcome) => outcome,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err("the index's thread is gone".to_owned()),
        };
        self.running = None;
        Some(outcome)
    }
}

impl Drop for SledIndex {
    /// Waits for a commit under way: the next one to open the index must find it closed.
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.recv();
        }
    }
}
