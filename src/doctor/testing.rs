//! A host made of files, for the tests of the checks.

use super::daemons::Daemons;
use super::host::{Host, Live};
use super::{Finding, Level};
use std::fs;
use std::path::Path;

/// See the module.
pub struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    /// An empty one: nothing is known of it.
    pub fn new() -> Fake {
        Fake { dir: tempfile::tempdir().unwrap() }
    }
    /// Writes a file; `path` is the host's.
    pub fn file(&self, path: &str, text: &str) -> &Fake {
        let path = self.dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }
    /// Writes a configuration below `/etc/trefoil`.
    pub fn config(&self, name: &str, text: &str) {
        self.file(&format!("/etc/trefoil/{name}"), text);
    }
    /// The host as files alone.
    pub fn host(&self) -> Host {
        self.host_with(Live::default())
    }
    /// The host with what has no file.
    pub fn host_with(&self, live: Live) -> Host {
        Host::below(self.dir.path(), live)
    }
    /// Its daemons.
    pub fn daemons(&self) -> Daemons {
        Daemons::in_directory(&self.host(), Path::new("/etc/trefoil"))
    }
}

/// Codes and levels.
pub fn levels(findings: &[Finding]) -> Vec<(&'static str, Level)> {
    findings.iter().map(|finding| (finding.code, finding.level)).collect()
}
