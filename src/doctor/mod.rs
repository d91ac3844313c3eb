//! `trefoil doctor`: whether a host is fit for the daemons that are configured on it.
//!
//! Checks read files (`/proc`, `/sys`, `/etc`) below a root directory and a few facts that only the kernel
//! can be asked for ([`host::Live`]); they change nothing. Each gives findings with a code, a level and, if
//! something is to be done, what. What could not be looked at gives no finding: a doctor that guesses
//! "healthy" is worse than none. `docs/operations.md` has a paragraph for each code.
//!
//! | module | what |
//! |---|---|
//! | [`host`] | where facts come from |
//! | [`daemons`] | the configured daemons, and what they may need |
//! | [`kernel`] | version, io_uring, huge pages, clocks, memory, swap |
//! | [`limits`] | file descriptors, connection tracking |
//! | [`device`] | disks below storage nodes |
//! | [`space`] | free space of data directories |
//! | [`network`] | interfaces and their MTU |
//! | [`units`] | what systemd has been told of a daemon |

pub mod daemons;
mod device;
pub mod host;
mod kernel;
mod limits;
mod network;
mod space;
#[cfg(test)]
mod testing;
mod units;

use crate::daemon::Daemon;
use daemons::Daemons;
use host::Host;
use serde::Serialize;
use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, until something else goes wrong.
    Warn,
    /// Do not run daemons here before it is put right.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "OK",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        })
    }
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind; stays the same over versions.
    pub code: &'static str,
    /// How bad.
    pub level: Level,
    /// Which one of several: a device, an interface, a file. Empty: the host.
    pub about: String,
    /// What was found, and what it means.
    pub found: String,
    /// What to do. None where nothing is to be done.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(code: &'static str, about: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { code, level: Level::Ok, about: about.into(), found: found.into(), remedy: None }
    }
    /// Something is to be done.
    pub fn bad(
        code: &'static str,
        level: Level,
        about: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        let remedy = Some(remedy.into());
        Finding { code, level, about: about.into(), found: found.into(), remedy }
    }
}

/// Everything that can be looked at, in a fixed order.
pub fn examine(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    let checks: [fn(&Host, &Daemons) -> Vec<Finding>; 7] = [
        daemons::findings,
        kernel::findings,
        limits::findings,
        kernel::memory_findings,
        device::findings,
        space::findings,
        network::findings,
    ];
    checks.iter().flat_map(|check| check(host, daemons)).collect()
}

/// The short version, at a daemon's start: what this one may come to lack, as warnings in its log. Never
/// keeps it from starting: a node that serves on a poor host is better than none.
pub fn warn_at_start(daemon: &Daemon) {
    let host = Host::here_for_a_daemon();
    let daemons = Daemons::one(daemon);
    let checks: [fn(&Host, &Daemons) -> Vec<Finding>; 4] =
        [limits::findings, kernel::memory_findings, device::findings, space::findings];
    for finding in checks.iter().flat_map(|check| check(&host, &daemons)) {
        let Finding { code, level, about, found, remedy } = finding;
        let remedy = remedy.unwrap_or_default();
        match level {
            Level::Ok => tracing::debug!(code, about, "{found}"),
            Level::Warn | Level::Error => tracing::warn!(code, about, remedy, "{found}"),
        }
    }
}
