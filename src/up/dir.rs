//! The directory of `trefoil up`: what lies where, the lock that makes it one `up`'s, and files that
//! are either old or new after a crash.
//!
//! ```text
//! DIR/lock              held (flock) while an `up` runs; names its pid
//! DIR/up.json           what `up` must remember: nodes, sizes, addresses (see `state`)
//! DIR/monitor/          the monitor's state
//! DIR/node-0/ ...       device (sparse until used) and index of each storage node
//! DIR/nbd.sock          the NBD socket, where --socket does not say otherwise
//! DIR/etc/NAME.toml     \
//! DIR/log/NAME.log       } with --processes only
//! DIR/processes.json    /
//! ```
//!
//! It never deletes what a daemon has written.

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A locked directory. Dropping it unlocks.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Longest pid that is read from a lock file.
const PID_LEN_MAX: u64 = 16;

impl DataDir {
    /// Makes the directory where it is missing, and locks it.
    ///
    /// # Errors
    ///
    /// Another `up` has it (named by its pid); it holds something that is not ours; the system refuses.
    pub fn open(path: &Path) -> anyhow::Result<DataDir> {
        let name = path.display();
        fs::create_dir_all(path).with_context(|| format!("cannot make the directory {name}"))?;
        // Daemons and URIs get absolute paths: they may run elsewhere.
        let path = path.canonicalize().with_context(|| format!("cannot use the directory {name}"))?;
        refuse_foreign(&path)?;
        let lock_path = path.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = options.open(&lock_path);
        let file = file.with_context(|| format!("cannot open {}", lock_path.display()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                let holder = match holder(file) {
                    Some(pid) => format!("by `trefoil up` with pid {pid}"),
                    None => "by another `trefoil up`".to_owned(),
                };
                bail!("{name} is in use {holder}: stop that one, or choose another --dir");
            }
            Err((_, errno)) => {
                bail!("cannot lock {}: {errno}; --dir needs a file system with flock", lock_path.display())
            }
        };
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).with_context(|| {
            format!("cannot write {}: is the file system full or read-only?", lock_path.display())
        })?;
        Ok(DataDir { path, _lock: lock })
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// `DIR/processes.json`.
    pub fn processes_file(&self) -> PathBuf {
        self.path.join("processes.json")
    }
    /// The configuration of a daemon that runs as a process.
    pub fn config_file(&self, name: &str) -> PathBuf {
        self.path.join("etc").join(format!("{name}.toml"))
    }
    /// The log of a daemon that runs as a process.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.path.join("log").join(format!("{name}.log"))
    }
}

/// The name of the file that `up` remembers things in.
pub const STATE_FILE: &str = "up.json";

/// A directory with files but none of ours is somebody else's: `--dir ~` must not fill a home.
fn refuse_foreign(path: &Path) -> anyhow::Result<()> {
    if path.join(STATE_FILE).exists() || path.join("lock").exists() {
        return Ok(());
    }
    let name = path.display();
    let mut entries = fs::read_dir(path).with_context(|| format!("cannot list {name}"))?;
    if entries.next().is_some() {
        bail!("{name} holds files that are not Trefoil's: choose an empty or a new directory with --dir");
    }
    Ok(())
}

/// The pid in a lock file.
fn holder(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_LEN_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The pid of the `up` that runs on `dir`, if one does.
pub fn running_on(dir: &Path) -> Option<u32> {
    let file = File::open(dir.join("lock")).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_unlocked_again) => None,
        Err((file, _)) => holder(file),
    }
}

/// Replaces `path` by `bytes` in one step: after a crash it is the old file or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.display();
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("cannot write {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_ups_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        assert_eq!(running_on(&path), None);
        let first = DataDir::open(&path).unwrap();
        let told = format!("{:#}", DataDir::open(&path).unwrap_err());
        let pid = std::process::id();
        assert!(told.contains(&format!("in use by `trefoil up` with pid {pid}")), "{told}");
        assert_eq!(running_on(&path), Some(pid));
        drop(first);
        assert_eq!(running_on(&path), None);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_of_somebody_else_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("thesis.txt"), "x").unwrap();
        let told = format!("{:#}", DataDir::open(parent.path()).unwrap_err());
        assert!(told.contains("holds files that are not Trefoil's"), "{told}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_are_replaced_in_one_step() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("etc").join("a.toml");
        write_atomically(&path, b"old and longer").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
