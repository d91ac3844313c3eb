//! The systemd units and `scripts/install`, on a Debian with systemd as process 1.
//!
//! A container of the harness beside this repository is the host; what is checked in it stands in
//! `scripts/lib/deploy-one-host.sh`. Three hosts, and the upgrade under load: `scripts/deploy-drill`,
//! which takes some minutes and is no part of this.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cluster::trefoil;
use crate::tools::Running;

/// The first run on a machine builds the container's root file system, which takes a minute or two.
const LIMIT: Duration = Duration::from_secs(400);

/// The harness, where a container can be had. It is no part of the repository, so that its absence is
/// never a failure.
fn harness() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/harness/systemd.sh");
    if !path.is_file() {
        println!("SKIP: {} is not there", path.display());
        return None;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: a container with systemd needs root");
        return None;
    }
    Some(path)
}

#[test]
fn a_bare_host_is_installed_served_from_upgraded_and_left() {
    let Some(harness) = harness() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = |from: &Path, to: &str| format!("{}:/opt/trefoil/{to}", from.display());
    let mut command = Command::new(harness);
    command.args(["--tests", "", "--timeout", "240"]);
    command.args(["--file", &file(&trefoil(), "trefoil")]);
    command.args(["--file", &file(&root.join("scripts"), "scripts")]);
    command.args(["--file", &file(&root.join("docs"), "docs")]);
    command.arg("--test").arg(root.join("scripts/lib/deploy-one-host.sh"));
    let finished = Running::start(&mut command).finish(LIMIT);
    println!("{}", finished.out);
    let finished = finished.ok("the checks in the container");
    // A script that was not run says PASS to nothing, and would look as good.
    for check in ["install: puts everything in place", "killed by the watchdog", "uninstall: takes away"] {
        let passed = finished.out.lines().any(|line| line.contains("PASS") && line.contains(check));
        assert!(passed, "no PASS of {check:?}\n{}", finished.out);
    }
}
