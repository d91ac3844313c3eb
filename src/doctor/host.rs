//! Where the doctor's facts come from: files below a root directory, and the few that have no file.
//!
//! A root other than `/` is for tests, and for looking at the copy of a host; the kernel is then asked
//! nothing, since it is another one.

use nix::sys::resource::{Resource, getrlimit};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use trefoil_storage_node::device::uring::UringDevice;
use trefoil_storage_node::device::wake::Waker;

/// Files of `/proc` and `/sys` that are read as a whole are shorter.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Lines of a long file (`/proc/net/nf_conntrack`) that are looked at.
const LINES_MAX: usize = 1 << 20;

/// A host that is looked at.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    /// What has no file.
    pub live: Live,
}

/// What only the kernel can be asked for; `None`: not asked, or it did not say.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Why io_uring is refused to this process, or that it is not.
    pub io_uring: Option<Result<(), String>>,
    /// The kernel's clock is kept by something (chrony, systemd-timesyncd, ...), and its own estimate of
    /// the largest error, in microseconds.
    pub clock: Option<(bool, u64)>,
    /// Soft and hard limit on file descriptors of this process.
    pub descriptors: Option<(u64, u64)>,
}

impl Live {
    fn measured() -> Live {
        Live {
            io_uring: Waker::new()
                .ok()
                .map(|waker| UringDevice::probe(&waker).map(|_| ()).map_err(|error| error.to_string())),
            clock: clock(),
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).ok(),
        }
    }
}

/// STA_UNSYNC and the greatest error, as ntp_adjtime tells without changing anything.
fn clock() -> Option<(bool, u64)> {
    // SAFETY: a plain old structure of integers, for which zeros are valid: `modes` 0 changes nothing.
    #[allow(unsafe_code)]
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to the structure, which outlives the call.
    #[allow(unsafe_code)]
    let state = unsafe { libc::adjtimex(&mut time) };
    // Refused (a service without the right to look at clocks): unknown.
    (state >= 0).then(|| (time.status & libc::STA_UNSYNC == 0, u64::try_from(time.maxerror).unwrap_or(0)))
}

impl Host {
    /// This one.
    pub fn here() -> Host {
        Host { root: PathBuf::from("/"), live: Live::measured() }
    }
    /// This one, as far as a daemon that starts wants to know it: it tries io_uring itself.
    pub fn here_for_a_daemon() -> Host {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).ok();
        Host { root: PathBuf::from("/"), live: Live { descriptors, ..Live::default() } }
    }
    /// Files below `root`.
    pub fn below(root: &Path, live: Live) -> Host {
        Host { root: root.to_owned(), live }
    }

    /// Where a path of the host is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
    /// A small file; `None` if it cannot be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let mut text = String::new();
        let file = File::open(self.path(path)).ok()?;
        file.take(TEXT_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }
    /// The first line of a small file, trimmed; `None` if it is empty, too.
    pub fn line(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = self.text(path)?;
        let line = text.lines().next()?.trim();
        (!line.is_empty()).then(|| line.to_owned())
    }
    /// The first number of a small file.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.line(path)?.split_whitespace().next()?.parse().ok()
    }
    /// Calls `with` for each line of a file that may be long; false if it cannot be read.
    pub fn lines(&self, path: impl AsRef<Path>, mut with: impl FnMut(&str)) -> bool {
        let Ok(file) = File::open(self.path(path)) else { return false };
        for line in BufReader::new(file).lines().take(LINES_MAX).map_while(Result::ok) {
            with(&line);
        }
        true
    }
    /// Names in a directory, sorted; none if it cannot be read.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/sys")).unwrap();
        fs::write(dir.path().join("proc/sys/n"), "17\t0\t9\n").unwrap();
        fs::write(dir.path().join("proc/sys/empty"), "\n").unwrap();
        let host = Host::below(dir.path(), Live::default());
        assert_eq!(host.number("/proc/sys/n"), Some(17));
        assert_eq!(host.line("/proc/sys/empty"), None);
        assert_eq!(host.line("/proc/sys/missing"), None);
        assert_eq!(host.names("/proc/sys"), ["empty", "n"]);
    }

    #[test]
    fn this_kernel_answers() {
        let live = Live::measured();
        assert!(live.descriptors.is_some_and(|(soft, hard)| soft <= hard));
        assert!(live.io_uring.is_some());
    }
}
