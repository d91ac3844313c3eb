//! `storage-node format`: what it asks, of whom, and what it shows.

use crate::common::*;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

/// A monitor, and its address.
fn monitor(dir: &Path) -> (Up, String) {
    let at = format!("127.0.0.1:{}", free_port());
    let config =
        format!("listen = \"{at}\"\ndata_dir = \"{}\"\n[bootstrap]\n", dir.join("monitor").display());
    let path = dir.join("monitor.toml");
    std::fs::write(&path, config).unwrap();
    let mut monitor = Up::run(trefoil(&["monitor", "--config", path.to_str().unwrap()]));
    monitor.ready();
    (monitor, at)
}

/// A file of 600 MiB that looks like a file system with a name.
fn precious(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(600 << 20).unwrap();
    file.write_all_at(&[0x53, 0xef], 0x438).unwrap();
    file.write_all_at(b"family pictures", 0x478).unwrap();
}

/// Runs `trefoil` on a terminal of its own and types that line; what the terminal showed, and the exit
/// code. `None` where there is no `script` to make a terminal.
fn on_a_terminal(arguments: &[&str], typed: &str) -> Option<(String, i32)> {
    let command = [&[env!("CARGO_BIN_EXE_trefoil")], arguments].concat().join(" ");
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env_remove("TREFOIL_MONITOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    // Its end would be typed too, so it stays open meanwhile.
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    Some((stdout(&output), output.status.code()?))
}

#[test]
fn somebody_at_a_terminal_is_asked_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut monitor, at) = monitor(dir.path());
    let path = dir.path().join("device");
    precious(&path);
    let device = path.to_str().unwrap();
    let format = ["storage-node", "--monitor", &at, "format", device];

    let told = bad(&format, 1);
    assert!(told.contains("an ext2/3/4 file system (family pictures) (at byte 1080)"), "{told}");
    assert!(told.contains("Nothing was written") && told.contains("--force"), "{told}");

    for no in ["no\n", "y\n", "\n"] {
        let Some((shown, code)) = on_a_terminal(&format, no) else {
            eprintln!("skipped: there is no `script` to make a terminal");
            break;
        };
        assert_eq!(code, 1, "{shown}");
        assert!(shown.contains(&format!("{device} (600 MiB) is not empty:")), "{shown}");
        assert!(shown.contains("at byte 1080: an ext2/3/4 file system (family pictures)"), "{shown}");
        assert!(shown.contains(&format!("type its name ({device}) or yes:")), "{shown}");
        assert!(shown.contains("Nothing was written"), "{shown}");
    }
    let there = std::fs::read(&path).unwrap();
    assert!(there[0x438] == 0x53 && there[..0x438].iter().all(|byte| *byte == 0), "as it was");

    if let Some((shown, code)) = on_a_terminal(&format, "yes\n") {
        assert_eq!(code, 0, "{shown}");
        assert!(shown.contains("formatted"), "{shown}");
        // Its own store is something too, and is named.
        let told = bad(&format, 1);
        assert!(told.contains("a Trefoil store (cluster ") && !told.contains("ext2"), "{told}");
    }
    monitor.stop();
}

#[test]
fn what_was_made_can_be_had_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let (mut monitor, at) = monitor(dir.path());
    let path = dir.path().join("device");
    precious(&path);
    let device = path.to_str().unwrap();
    let format = ["storage-node", "--monitor", &at, "format", device, "--json", "--force"];
    let made: Value = serde_json::from_str(&good(&format)).unwrap();
    assert_eq!(made["device"]["path"], device);
    assert_eq!((&made["device"]["kind"], &made["size"]), (&"file".into(), &(600u64 << 20).into()));
    assert_eq!(made["segment_bytes"], 16 << 20, "a small device has small segments");
    assert_eq!(made["replaced"][0]["offset"], 0x438);
    assert_eq!(made["replaced"][0]["what"], "an ext2/3/4 file system (family pictures)");
    assert_eq!(made["incarnation"].as_str().map(str::len), Some(16));
    assert_eq!((&made["discarded_bytes"], &made["discard_error"]), (&0.into(), &Value::Null));

    // Too small: refused before a file is made.
    let small = dir.path().join("small");
    let told = bad(&["storage-node", "--monitor", &at, "format", small.to_str().unwrap(), "--size", "1M"], 1);
    assert!(told.contains("too few") && !small.exists(), "{told}");
    monitor.stop();
}
