//! The cluster map in a file, and a monitor from such a file.
//!
//! A backup is one consistent map, as a running cluster or the directory of a stopped monitor has it, with
//! a checksum over all of it. It is for the day when every monitor is lost: as long as one monitor's directory
//! is left, a backup of *that* is newer than any other.
//!
//! **What a restore must not do** is give out anything twice that was given out after the backup was taken:
//! generations, volume ids. [`ClusterMap::restored`] goes far above them, and nodes are the second guard: a
//! refused Open names the promise, and the monitors grant above it (6.5).
//!
//! The file: [`MAGIC`], the length of what follows but the checksum (u64, little-endian), a `postcard` value,
//! CRC-64/NVME of all that (u64, little-endian).

use crate::config::MONITORS_MAX;
use crate::raft::{self, Failure, Identity, Member, OpenError, SNAPSHOT_BYTES_MAX, Store};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use trefoil_core::map::restore::RESTORED_HOLDER;
use trefoil_core::map::{ClusterMap, Holder, HolderKind};
use trefoil_crc::crc64;

/// The first bytes of a backup. The last one is the version of the format.
pub const MAGIC: &[u8; 8] = b"TFMONBK\x03";
/// Bytes of a backup beside its value.
const FRAME_BYTES: usize = MAGIC.len() + 8 + 8;

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Milliseconds since 1970.
    pub taken: u64,
    /// Where it was taken, for people.
    pub from: String,
    /// The map.
    pub map: ClusterMap,
}

/// Why there is no backup, or no monitor from one.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file or directory fails.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// How.
        error: io::Error,
    },
    /// What is in the file is no backup, or not all of one.
    #[error("{} is no backup of monitors, or is damaged: {what}; use another one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Something is there already.
    #[error("{} is not empty: restore into an empty directory; nothing is overwritten", .0.display())]
    NotEmpty(PathBuf),
    /// The map has no cluster.
    #[error("there is no cluster in it yet: nothing to back up")]
    Empty,
    /// The directory cannot be used.
    #[error("{0}")]
    Directory(String),
    /// The map cannot be restored.
    #[error("the map cannot be restored: its numbers are used up, or it has been restored 64 times")]
    UsedUp,
}

impl From<OpenError> for BackupError {
    fn from(error: OpenError) -> BackupError {
        BackupError::Directory(error.to_string())
    }
}

impl From<Failure> for BackupError {
    fn from(error: Failure) -> BackupError {
        BackupError::Directory(error.to_string())
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::Io { path, error }
}

/// The map of a monitor that does not run, to the end of its log. Blocks.
pub fn of_stopped(dir: &Path) -> Result<ClusterMap, BackupError> {
    let (store, _) = Store::open_existing(dir)?;
    Ok(raft::map_of(&store)?)
}

/// Writes a backup, durably. Refuses to replace a file. Blocks.
pub fn write(path: &Path, backup: &Backup) -> Result<u64, BackupError> {
    if backup.map.version == 0 {
        return Err(BackupError::Empty);
    }
    let damaged =
        |error: postcard::Error| BackupError::Damaged { path: path.to_owned(), what: error.to_string() };
    let value = postcard::to_stdvec(backup).map_err(damaged)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&value);
    let sum = crc64(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    let mut file = File::create_new(path).map_err(io_error(path))?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = written.and_then(|()| File::open(parent)?.sync_all());
    if let Err(error) = written {
        // Half a backup is worse than none; that it may stay behind is told by its checksum.
        let _ = std::fs::remove_file(path);
        return Err(io_error(path)(error));
    }
    Ok(bytes.len() as u64)
}

/// Reads and checks a backup. Blocks.
pub fn read(path: &Path) -> Result<Backup, BackupError> {
    let damaged = |what: &str| BackupError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let mut bytes = Vec::new();
    let most = SNAPSHOT_BYTES_MAX + FRAME_BYTES;
    let file = File::open(path).map_err(io_error(path))?;
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(io_error(path))?;
    if bytes.len() > most {
        return Err(damaged("it is too long"));
    }
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(damaged("it does not begin like one of this version"));
    };
    let (Some((length, rest)), Some((before, sum))) = (rest.split_first_chunk(), bytes.split_last_chunk())
    else {
        return Err(damaged("it is cut off"));
    };
    let value = rest.get(..rest.len().saturating_sub(8)).unwrap_or_default();
    if u64::from_le_bytes(*length) != value.len() as u64 {
        return Err(damaged("it is cut off"));
    }
    if crc64(before) != u64::from_le_bytes(*sum) {
        return Err(damaged("its checksum is wrong"));
    }
    match postcard::take_from_bytes::<Backup>(value) {
        Ok((backup, [])) if backup.map.version == 0 => Err(BackupError::Empty),
        Ok((backup, [])) => Ok(backup),
        Ok(_) => Err(damaged("bytes are left over")),
        Err(error) => Err(damaged(&error.to_string())),
    }
}

/// Makes `dir`, which is empty or not there, that of monitor `id`: the only one of the cluster that the backup is
/// of. The others are added to it with empty directories. `random`: two random numbers, not 0.
///
/// Every monitor of the cluster from before must have been stopped for good: nothing here can stop them.
/// Blocks.
pub fn restore(
    backup: &Backup,
    dir: &Path,
    id: u64,
    address: SocketAddr,
    random: (u64, u64),
) -> Result<(), BackupError> {
    debug_assert!(MONITORS_MAX > 0 && random.0 != 0 && random.1 != 0);
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(BackupError::NotEmpty(dir.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(dir)(error)),
    }
    let mut map = backup.map.clone();
    let nobody = Holder { name: RESTORED_HOLDER.to_owned(), boot: random.1, kind: HolderKind::FrontEnd };
    if !map.restored(&nobody) {
        return Err(BackupError::UsedUp);
    }
    let identity = Identity {
        cluster_id: map.cluster_id,
        cluster_name: map.name.clone(),
        id,
        incarnation: random.0,
        founding: false,
    };
    let (store, _) = Store::open(dir, &map.name, identity)?;
    let member = Member { address, incarnation: random.0 };
    Ok(raft::seed(&store, id, member, &map)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::map::Command;

    fn backup() -> Backup {
        let mut map = ClusterMap::new();
        map.apply(&Command::Init { cluster_id: [5; 16], name: "test".to_owned() }).unwrap();
        Backup { taken: 1, from: "here".to_owned(), map }
    }

    #[test]
    fn a_backup_comes_back_and_a_damaged_one_is_refused_wherever_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let length = write(&path, &backup()).unwrap();
        assert_eq!(read(&path).unwrap(), backup());
        assert!(matches!(write(&path, &backup()), Err(BackupError::Io { .. })), "nothing is replaced");
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len() as u64, length);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(read(&path), Err(BackupError::Damaged { .. })), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(matches!(read(&path), Err(BackupError::Damaged { .. })), "cut at {at}");
        }
        std::fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn nothing_is_restored_over_anything() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "x").unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let told = restore(&backup(), dir.path(), 1, address, (1, 2)).unwrap_err().to_string();
        assert!(told.contains("is not empty"), "{told}");
        let empty = Backup { map: ClusterMap::new(), ..backup() };
        assert!(matches!(write(&dir.path().join("b"), &empty), Err(BackupError::Empty)));
    }

    #[test]
    fn what_a_stopped_monitor_has_is_what_was_restored_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("m");
        restore(&backup(), &into, 3, "127.0.0.1:1".parse().unwrap(), (1, 2)).unwrap();
        let map = of_stopped(&into).unwrap();
        assert_eq!(map.cluster_id, [5; 16]);
        assert!(map.version > trefoil_core::map::restore::VERSIONS_SKIPPED);
        assert!(of_stopped(dir.path()).is_err());
    }
}
