//! The index of a store, which no tool trusts: compared with the log, or made anew from it.
//!
//! The index is a database of its own (`sled`) that writes when it is opened. To be compared it is
//! copied, and the copy is opened.

use super::check::{CheckReport, Finding};
use super::{OfflineStore, ReadMany};
use crate::device::wake::Waker;
use crate::store::view::{Delta, Index, IndexUse, Meta, SledIndex, State, VERSION, recover, snapshot_state};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use trefoil_core::ObjectId;

/// Files that every index has.
const INDEX_FILES: [&str; 2] = ["conf", "db"];
/// Old indexes that are kept beside the new one; beyond it the administrator has to clean up.
const ASIDE_MAX: u32 = 100;

/// Why an index was not looked at or not made.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The system.
    #[error("{path}: {what}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// Something else is there.
    #[error("{0} holds something that is no index: choose another directory, or move it aside with --force")]
    NotAnIndex(String),
    /// There is nothing to make it of.
    #[error(
        "{0} has no snapshot yet, and its tables are not all in the log: there is nothing to make an index of. The \
         storage node can start without one, and reads the log from its beginning then"
    )]
    NoSnapshot(String),
    /// The snapshot is damaged.
    #[error("{0}")]
    Snapshot(String),
    /// The database.
    #[error("{path}: the index cannot be written: {why}")]
    Database {
        /// The directory.
        path: String,
        /// Its word.
        why: String,
    },
}

fn io_error<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> IndexError + 'a {
    move |source| IndexError::Io { path: path.display().to_string(), what, source }
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, IndexError> {
        let dir = std::env::temp_dir();
        let mut why = io::Error::other("no free name");
        for n in 0..ASIDE_MAX {
            let path = dir.join(format!("trefoil-index-{}-{n}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Scratch(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => why = error,
            }
        }
        Err(io_error(&dir, "cannot make a directory for a copy of the index")(why))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left in the temporary directory is nobody's loss.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), IndexError> {
    for entry in fs::read_dir(from).map_err(io_error(from, "cannot read the index"))? {
        let entry = entry.map_err(io_error(from, "cannot read the index"))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(io_error(&from, "cannot read the index"))?;
        if kind.is_dir() {
            fs::create_dir(&to).map_err(io_error(&to, "cannot make a directory"))?;
            copy(&from, &to)?;
        } else if kind.is_file() {
            fs::copy(&from, &to).map_err(io_error(&from, "cannot copy the index"))?;
        }
    }
    Ok(())
}

/// An index that can be loaded and not be thrown away.
struct Kept(SledIndex);

impl Index for Kept {
    fn load(&mut self, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String> {
        self.0.load(each)
    }
    fn discard(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn commit(&mut self, _: Delta) {}
    fn finished(&mut self) -> Option<Result<(), String>> {
        Some(Err("nothing is kept".to_owned()))
    }
}

fn waker() -> Result<Waker, IndexError> {
    Waker::new().map_err(|e| io_error(Path::new("eventfd"), "cannot make one")(e))
}

/// True for a directory that an index is in.
fn is_index(dir: &Path) -> bool {
    INDEX_FILES.iter().all(|name| dir.join(name).is_file())
}

impl<D: ReadMany> OfflineStore<D> {
    /// Compares an index with what the log says: a storage node that starts with it must come to the same
    /// state. What differs is added to the report. The index itself is not opened and not changed.
    pub fn check_index(&self, dir: &Path, report: &mut CheckReport) -> Result<(), IndexError> {
        let scratch = Scratch::new()?;
        copy(dir, &scratch.0)?;
        let mut wrong = |what: String| {
            report.add(Finding {
                kind: "index",
                what: format!("{}: {what}", dir.display()),
                ..Finding::default()
            });
        };
        let mut index = Kept(SledIndex::open(&scratch.0, waker()?));
        let theirs = match recover(&self.bare.device, &self.bare.sb, &mut index, 0, &mut |_, _| ()) {
            Ok(recovery) => recovery,
            Err(error) => {
                wrong(error.to_string());
                return Ok(());
            }
        };
        let mut empty = false;
        match &theirs.how.index {
            IndexUse::Used => {}
            // So it is before the first checkpoint.
            IndexUse::Missing => empty = true,
            IndexUse::Discarded(why) => wrong(format!("the next start will discard it: {why}")),
        }
        if theirs.last != self.recovery.last {
            wrong(format!(
                "with it the log ends at LSN {}, without it at LSN {}",
                theirs.last.lsn, self.recovery.last.lsn
            ));
        }
        for what in differences(&self.recovery.state, &theirs.state) {
            wrong(what);
        }
        if empty {
            report.notes.push(format!("{} is empty: the next start reads the log instead", dir.display()));
        }
        Ok(())
    }

    /// Makes a new index in `dir` from what the log says, as of the last snapshot or, after a clean stop,
    /// as of the end. What is there is moved aside, and its new name returned; what is no index is refused
    /// unless `force`. The device is not written.
    pub fn rebuild_index(&self, dir: &Path, force: bool) -> Result<Option<PathBuf>, IndexError> {
        let recovery = &self.recovery;
        let snapshot;
        // Nothing waits for a page: the pages in the log are as of its end.
        let (state, covers) = if recovery.state.tables.queued() == 0 && recovery.last.lsn > 0 {
            (&recovery.state, recovery.last)
        } else if recovery.root.covers.lsn > 0 {
            snapshot = snapshot_state(&self.bare.device, &self.bare.sb, &recovery.root)
                .map_err(IndexError::Snapshot)?;
            (&snapshot, recovery.root.covers)
        } else {
            return Err(IndexError::NoSnapshot(self.name().to_owned()));
        };
        let mut entries: Vec<_> = state.all_keys().into_iter().map(|key| state.entry(key)).collect();
        let chunks = (0..).map_while(|n| State::segments_entry(&state.segments, n));
        entries.extend(chunks.map(|(key, value)| (key, Some(value))));
        let meta = Meta {
            version: VERSION,
            incarnation: self.bare.sb.incarnation,
            covers,
            lost: state.lost,
            amnesia: state.durable.amnesia,
            session: state.session,
            leaked: state.segments.leaked,
        };
        let aside = self.make_way(dir, force)?;
        let mut index = SledIndex::open(dir, waker()?);
        index.commit(Delta { entries, meta });
        let done = loop {
            match index.finished() {
                Some(done) => break done,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        done.map_err(|why| IndexError::Database { path: dir.display().to_string(), why })?;
        Ok(aside)
    }

    fn make_way(&self, dir: &Path, force: bool) -> Result<Option<PathBuf>, IndexError> {
        match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(_) if force && dir.symlink_metadata().is_ok_and(|meta| !meta.is_dir()) => {}
            Err(error) => return Err(io_error(dir, "cannot look into it")(error)),
            Ok(mut entries) => {
                if entries.next().is_none() {
                    return Ok(None);
                }
                if !is_index(dir) && !force {
                    return Err(IndexError::NotAnIndex(dir.display().to_string()));
                }
            }
        }
        let mut name = dir.as_os_str().to_owned();
        name.push(".old");
        let names = (1..ASIDE_MAX).map(|n| {
            let mut name = name.clone();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        });
        let free =
            std::iter::once(PathBuf::from(&name)).chain(names).find(|path| path.symlink_metadata().is_err());
        let full = || {
            io_error(dir, "too many old ones lie beside it: remove some")(io::Error::other("no free name"))
        };
        let aside = free.ok_or_else(full)?;
        fs::rename(dir, &aside).map_err(io_error(dir, "cannot move it aside"))?;
        Ok(Some(aside))
    }
}

/// What differs between the state that the log gives and that which an index and the log give.
fn differences(log: &State, index: &State) -> Vec<String> {
    let mut out = Vec::new();
    let (ours, theirs) = (&log.durable, &index.durable);
    if ours.fences != theirs.fences {
        out.push("it leads to other fences than the log".to_owned());
    }
    if ours.pgs != theirs.pgs {
        out.push("it leads to other states of placement groups than the log".to_owned());
    }
    for (group, state) in &ours.groups {
        match theirs.groups.get(group) {
            None => out.push(format!("it leads to a state without group {group}")),
            Some(other) if other != state => out.push(format!("it leads to another state of group {group}")),
            Some(_) => {}
        }
    }
    for group in theirs.groups.keys().filter(|group| !ours.groups.contains_key(group)) {
        out.push(format!("it leads to a state with group {group}, which the log does not have"));
    }
    if (ours.amnesia, log.lost) != (theirs.amnesia, index.lost) {
        out.push("it says something else about lost state than the log".to_owned());
    }
    let pages = |state: &State, object: ObjectId| -> Vec<(u64, u64)> {
        state.tables.pages(object).unwrap_or(&[]).iter().map(|page| (page.location, page.checksum)).collect()
    };
    let mut objects: Vec<ObjectId> = log.tables.objects().chain(index.tables.objects()).collect();
    objects.sort_unstable();
    objects.dedup();
    for object in objects {
        if pages(log, object) != pages(index, object) {
            out.push(format!("it leads to another block table of object {object}"));
        }
    }
    for ((segment, ours), (_, theirs)) in log.segments.iter().zip(index.segments.iter()) {
        if (ours.live, ours.end, ours.turn) != (theirs.live, theirs.end, theirs.turn) {
            out.push(format!(
                "it leads to {} live blocks of {} in segment {segment}, the log to {} of {}",
                theirs.live, theirs.end, ours.live, ours.end
            ));
        }
    }
    out
}
