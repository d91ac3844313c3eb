//! A running `trefoil up` with a directory of its own, and its monitor asked.

use super::{Up, bad, good, run, stdout};
use serde_json::Value;
use std::path::PathBuf;

/// See the module. Gone when it is dropped.
pub struct Cluster {
    pub up: Up,
    /// The cluster's directory. That above it is a test's own.
    pub dir: PathBuf,
    pub monitor: String,
    _parent: tempfile::TempDir,
}

impl Cluster {
    /// Runs `up` with these arguments and waits until it serves.
    pub fn start(arguments: &[&str]) -> Cluster {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let mut up = Up::start(&dir, arguments);
        up.ready();
        let state: Value = serde_json::from_slice(&std::fs::read(dir.join("up.json")).unwrap()).unwrap();
        let monitor = state["monitor"].as_str().unwrap().to_owned();
        Cluster { up, dir, monitor, _parent: parent }
    }

    /// The arguments, and its monitor.
    pub fn with<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--monitor", &self.monitor]].concat()
    }

    /// It succeeds; what it wrote.
    pub fn good(&self, arguments: &[&str]) -> String {
        good(&self.with(arguments))
    }

    /// It fails with that code and writes nothing but one line on standard error; the line.
    pub fn bad(&self, arguments: &[&str], code: i32) -> String {
        bad(&self.with(arguments), code)
    }

    /// It succeeds; what it wrote with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// The same, or null while no monitor answers.
    pub fn look(&self, arguments: &[&str]) -> Value {
        let output = run(&self.with(&[arguments, &["--json"]].concat()));
        serde_json::from_str(&stdout(&output)).unwrap_or_default()
    }
}
