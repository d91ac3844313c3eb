//! An object's bytes, out of one store into a file.
//!
//! Nothing is guessed: a block without good bytes here is a hole in the file and is named in the report.
//! Whether this copy of the object is the one that counts is not decided here (`volume.rs` does that).

use super::{Block, Fault, OfflineStore, ReadMany};
use crate::store::view::{COPIES, MAGIC, ROOT_MAGIC, SLOTS, byte_of};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use trefoil_core::{BLOCK_SIZE, ObjectId};

/// Bad blocks that a report names; beyond it they are only counted.
pub const BAD_NAMED_MAX: usize = 10_000;

/// Why nothing was exported, or not all.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file is there.
    #[error("{0} exists: choose another file, or overwrite it with --force")]
    Exists(String),
    /// The file is a device.
    #[error("{0} holds a Trefoil store, which is not overwritten, force or not: choose another file")]
    Store(String),
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
    /// The store does not have the object.
    #[error("{device} has no object {object}: `trefoil store list` shows what it has")]
    NoObject {
        /// The device.
        device: String,
        /// The object.
        object: String,
    },
}

/// A new file that is zeros where nothing is written, and takes no room there.
pub struct SparseFile {
    file: Flock<File>,
    path: PathBuf,
    kept: bool,
    made: bool,
    /// Bytes of data written.
    pub written: u64,
}

impl SparseFile {
    /// Makes the file, `size` bytes of zeros. One that exists is refused, unless `force` says that its
    /// content may go.
    pub fn create(path: &Path, size: u64, force: bool) -> Result<SparseFile, ExportError> {
        let failed = |what| {
            let path = path.display().to_string();
            move |source| ExportError::Io { path, what, source }
        };
        let there = path.symlink_metadata().is_ok();
        if there && !force {
            return Err(ExportError::Exists(path.display().to_string()));
        }
        if path.metadata().is_ok_and(|meta| !meta.is_file()) {
            let source = io::Error::other("it is no regular file: export to a file, then copy that");
            return Err(failed("cannot be written to")(source));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).create_new(!force).create(force).truncate(false);
        let file = options.open(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => ExportError::Exists(path.display().to_string()),
            _ => failed("cannot make it")(source),
        })?;
        // A store's device is locked, by us or by its node: it must not become an image by a slip of the hand.
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| failed("it is in use: is it a storage node's device?")(errno.into()))?;
        if is_store(&file) {
            return Err(ExportError::Store(path.display().to_string()));
        }
        file.set_len(0).map_err(failed("cannot empty it"))?;
        let file = SparseFile { file, path: path.to_owned(), kept: false, made: !there, written: 0 };
        file.file.set_len(size).map_err(failed("cannot set its length"))?;
        Ok(file)
    }

    /// Writes bytes. Zeros stay holes.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ExportError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        let path = self.path.display().to_string();
        self.file.write_all_at(bytes, offset).map_err(|source| ExportError::Io {
            path,
            what: "cannot write",
            source,
        })
    }

    /// Makes it durable. Dropped without this, a file that was made here is removed, and one that was there
    /// before is emptied: half an image must not be taken for one.
    pub fn finish(mut self) -> Result<(), ExportError> {
        let path = self.path.display().to_string();
        self.file.sync_all().map_err(|source| ExportError::Io {
            path,
            what: "cannot make it durable",
            source,
        })?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for SparseFile {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The reason for it is on its way up already.
        let _ = match self.made {
            true => std::fs::remove_file(&self.path),
            false => self.file.set_len(0),
        };
    }
}

/// True where any of the places says so that tell a store: the devices that are looked at offline are those of
/// which a part is damaged.
fn is_store(file: &File) -> bool {
    let says = |at: u64, magic: [u8; 8]| {
        let mut there = [0; 8];
        // What is shorter is no store.
        file.read_exact_at(&mut there, at).is_ok() && there == magic
    };
    COPIES.into_iter().any(|at| says(at, MAGIC)) || SLOTS.into_iter().any(|at| says(at, ROOT_MAGIC))
}

/// A block without good bytes.
#[derive(Clone, Debug, Serialize)]
pub struct BadBlock {
    /// The block.
    pub block: u32,
    /// The checksum that its bytes should have, if that is known.
    pub checksum: Option<String>,
    /// Where it is on the device, in bytes, if it has a place.
    pub byte: Option<u64>,
    /// Why, in words.
    pub why: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExportReport {
    /// The object.
    pub object: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Blocks written.
    pub blocks: u64,
    /// Blocks without good bytes: holes in the file.
    pub bad: u64,
    /// The first of them.
    pub bad_blocks: Vec<BadBlock>,
}

impl<D: ReadMany> OfflineStore<D> {
    /// Writes the object to a new file. `size`: bytes of the file, at least what the object holds; none:
    /// up to the last block that is no hole.
    pub fn export(
        &self,
        object: ObjectId,
        path: &Path,
        size: Option<u64>,
        force: bool,
    ) -> Result<ExportReport, ExportError> {
        let known = self.durable().groups.get(&object.group);
        let known = known.is_some_and(|group| group.objects.contains_key(&object.index));
        if !known && self.pages(object).is_empty() {
            let device = self.name().to_owned();
            return Err(ExportError::NoObject { device, object: object.to_string() });
        }
        let table = self.table(object);
        let used = table.entries.iter().rposition(|entry| Block::from(*entry) != Block::Hole);
        let needed = used.map_or(0, |last| (last as u64 + 1) * BLOCK_SIZE as u64);
        let size_bytes = size.unwrap_or(0).max(needed);
        let mut file = SparseFile::create(path, size_bytes, force)?;
        let mut report = ExportReport { object: object.to_string(), size_bytes, ..ExportReport::default() };
        let mut wanted = Vec::new();
        for (block, entry) in (0u32..).zip(&table.entries) {
            match Block::from(*entry) {
                Block::Hole => {}
                Block::There(entry) => wanted.push((block, entry)),
                Block::Bad(checksum) => report.bad(
                    block,
                    checksum,
                    None,
                    match checksum {
                        Some(_) => "its table says that it has no good bytes here".to_owned(),
                        None => "its table's page is damaged".to_owned(),
                    },
                ),
            }
        }
        self.read_blocks(object, &wanted, |block, entry, bytes| match bytes {
            Ok(bytes) => {
                report.blocks += 1;
                file.put(u64::from(block) * BLOCK_SIZE as u64, bytes)
            }
            Err(fault) => {
                let byte = (fault != Fault::Outside).then(|| byte_of(entry.location));
                report.bad(block, Some(entry.checksum), byte, fault.to_string());
                Ok(())
            }
        })?;
        report.bad_blocks.sort_unstable_by_key(|bad| bad.block);
        file.finish()?;
        Ok(report)
    }
}

impl ExportReport {
    fn bad(&mut self, block: u32, checksum: Option<u64>, byte: Option<u64>, why: String) {
        self.bad += 1;
        if self.bad_blocks.len() < BAD_NAMED_MAX {
            let checksum = checksum.map(|sum| format!("{sum:016x}"));
            self.bad_blocks.push(BadBlock { block, checksum, byte, why });
        }
    }
}
