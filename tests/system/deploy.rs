//! The systemd units and `scripts/install`, on a Debian with systemd as process 1.
//!
//! A container of the harness beside this repository is the host; what is checked in it stands in
//! `scripts/lib/deploy-one-host.sh`. Three hosts, and the upgrade under load: `scripts/deploy-drill`,
//! which takes some minutes and is no part of this.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cluster::trefoil;
use crate::tools::{Finished, Running};

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

/// `scripts/install --root` on a host whose systemd is of that version.
fn install_below(root: &Path, systemd: u32, arguments: &[&str]) -> Finished {
    use std::os::unix::fs::PermissionsExt;
    let programs = root.join("programs");
    let systemctl = programs.join("systemctl");
    std::fs::create_dir_all(&programs).expect("a directory");
    std::fs::write(&systemctl, format!("#!/bin/sh\necho 'systemd {systemd} ({systemd}.4-1)'\n"))
        .expect("a file");
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).expect("our file");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
    command.arg("--root").arg(root.join("host")).args(["--prefix", "/usr"]).args(arguments);
    command.env("PATH", format!("{}:{path}", programs.display()));
    Running::start(&mut command).finish(Duration::from_secs(60))
}

#[test]
fn an_image_gets_units_that_fit_its_systemd_and_drop_ins_that_fit_its_disks() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let root = folder.path();
    let host = root.join("host");
    let binary = trefoil();
    let binary = binary.to_str().expect("a path of UTF-8");
    let text = |path: &str| std::fs::read_to_string(host.join(path)).unwrap_or_default();
    let restart = "usr/lib/systemd/system/trefoil-nbd@.service.d/50-restart.conf";

    install_below(root, 252, &["--bin", binary]).ok("install");
    assert_eq!(text(restart), "", "252 does not know the words");
    let unit = text("usr/lib/systemd/system/trefoil-storage-node@.service");
    assert!(unit.contains("ExecStart=/usr/bin/trefoil storage-node"), "{unit}");
    install_below(root, 255, &["--bin", binary]).ok("upgrade");
    assert!(text(restart).contains("RestartSteps=6\nRestartMaxDelaySec=5\n"), "{}", text(restart));

    let etc = host.join("etc/trefoil");
    let etc = etc.to_str().expect("a path of UTF-8");
    let devices = ["--device", "/dev/disk/by-id/x", "--device", "/srv/t/1", "--device", "/dev/y"];
    let init = [&["init", "--config-dir", etc, "--memory", "1G"], &devices[..]].concat();
    crate::cluster::run_trefoil(&init, Duration::from_secs(20)).ok("init");
    install_below(root, 255, &["--devices"]).ok("drop-ins");
    let drop_in =
        |n: u32| text(&format!("etc/systemd/system/trefoil-storage-node@{n}.service.d/10-device.conf"));
    let lines = |n: u32| {
        drop_in(n).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
    };
    let disk =
        ["[Service]", "DeviceAllow=/dev/disk/by-id/x rw", "SupplementaryGroups=disk", "MemoryMax=2147483648"];
    assert_eq!(lines(0), disk);
    assert_eq!(
        lines(1),
        ["[Service]", "PrivateDevices=yes", "ReadWritePaths=-/srv/t", "MemoryMax=2147483648"]
    );
    assert!(drop_in(0).contains("from /etc/trefoil/storage-node/0.toml"), "{}", drop_in(0));

    let told = install_below(root, 255, &["--uninstall"]).ok("uninstall").out;
    assert!(told.contains("taken away") && drop_in(0).is_empty() && text(restart).is_empty(), "{told}");
    assert!(!host.join("usr/bin/trefoil").exists() && host.join("etc/trefoil/storage-node/0.toml").exists());
    let refused = install_below(root, 255, &["--bin", "/nonexistent"]);
    assert!(
        !refused.status.success() && refused.err.contains("no binary at /nonexistent"),
        "{}",
        refused.err
    );
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
