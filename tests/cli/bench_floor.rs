//! `trefoil bench floor`, really run for a moment: every line comes, its figures can be, and it always ends.

use crate::common::{PATIENCE, bad, good, trefoil};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn floor<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["bench", "floor", "--dir", dir.to_str().expect("UTF-8"), "--size", "16M"];
    all.extend(more);
    all
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("there").next().is_none()
}

/// With every event loop that this kernel has: `batch` is not on each.
#[test]
fn each_pattern_is_measured_each_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = good(&floor(dir.path(), &["--runtime", "0.02", "--transport", "tcp", "--json"]));
    let view: Value = serde_json::from_str(&text).expect("JSON");
    let lines = view["lines"].as_array().expect("lines");
    assert!(lines.len() == 6 * (1 + 3) || lines.len() == 6 * (1 + 4), "{view:#}");
    for line in lines {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line:#}"));
        for key in ["iops", "p50_us", "p99_us", "cpu_client_us", "device_ops", "ratio", "p50_ratio"] {
            assert!(number(key) > 0.0, "{key}: {line:#}");
        }
        assert!(number("p50_us") <= number("p99_us"), "{line:#}");
        if line["transport"].is_null() {
            assert_eq!(
                (number("device_ops"), number("ratio"), number("cpu_us")),
                (1.0, 1.0, 0.0),
                "{line:#}"
            );
            continue;
        }
        for key in ["cpu_front_us", "cpu_nodes_us", "syscalls_front", "syscalls_nodes", "device_us"] {
            assert!(number(key) > 0.0, "{key}: {line:#}");
        }
        assert!(number("device_us") < number("nodes_us"), "a part of it: {line:#}");
        // Exact, as no copy is made outside of the line it belongs to.
        let device_ops = number("device_ops");
        match (line["write"] == true, line["depth"].as_u64()) {
            (false, _) => assert_eq!(device_ops, 1.0, "{line:#}"),
            // Two nodes have written before the next one is sent; a third that is late may write several at once.
            (true, Some(1)) => assert!((2.0..=3.0).contains(&device_ops), "{line:#}"),
            (true, _) => assert!(device_ops <= 3.0, "{line:#}"),
        }
    }
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn it_is_shown_as_a_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let more = ["--runtime", "0.02", "--transport", "unix", "--event-loop", "ring", "--clients", "64"];
    let text = good(&floor(dir.path(), &more));
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 1 + 6 * 2, "{text}");
    assert_eq!((lines[0][0], lines[0][10], lines[0][17]), ("PATTERN", "CPU_CLIENT", "P50_RATIO"), "{text}");
    assert_eq!(lines[1][..5], ["4k", "write", "1", "device", "-"], "{text}");
    assert_eq!(lines[2][..5], ["4k", "write", "1", "unix", "ring"], "{text}");
    assert!(is_empty(dir.path()), "nothing is left");
}

/// Whichever process does not go on: the run ends when its time is over, says where it was, and takes the others
/// with it.
#[test]
fn a_process_that_hangs_ends_the_run_and_not_the_patience() {
    for part in ["front", "node"] {
        let dir = tempfile::tempdir().expect("a directory");
        let more = ["--runtime", "1", "--limit", "4", "--transport", "unix", "--event-loop", "ring"];
        let mut command = trefoil(&floor(dir.path(), &more));
        let begun = Instant::now();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("trefoil runs");
        let all = loop {
            let all = parts(child.id());
            if all.iter().any(|(_, is)| is == "front") {
                break all;
            }
            assert!(begun.elapsed() < PATIENCE, "no front");
            std::thread::sleep(Duration::from_millis(5));
        };
        // All nodes: a majority would do without one.
        for (pid, _) in all.iter().filter(|(_, is)| is == part) {
            kill(*pid, Signal::SIGSTOP).expect("stopped");
        }
        let output = child.wait_with_output().expect("ended");
        let told = crate::common::stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("not done after 4 s, at \"unix, ring: 4k write, 1\""), "{told}");
        assert!(told.contains("--limit"), "{told}");
        for (pid, _) in &all {
            assert!(kill(*pid, None).is_err(), "{pid} still runs");
        }
        assert!(is_empty(dir.path()), "nothing is left");
    }
}

/// The processes of a measurement and which they are.
fn parts(parent: u32) -> Vec<(Pid, String)> {
    let mut parts = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace() {
            // One that has just been forked is still its parent.
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut arguments = line.split('\0').skip_while(|argument| *argument != "floor-part").skip(3);
            if let Some(is) = arguments.next() {
                parts.push((Pid::from_raw(pid.parse().expect("a number")), is.to_owned()));
            }
        }
    }
    parts
}

#[test]
fn what_cannot_be_done_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().to_str().expect("UTF-8");
    let told = bad(&floor(dir.path(), &["--event-loop", "select"]), 2);
    assert!(told.contains("epoll, ring, poll or batch"), "{told}");
    bad(&["bench", "floor", "--dir", at, "--size", "1M"], 2);
    bad(&["bench", "floor", "--dir", at, "--clients", "65"], 2);
    bad(&["bench", "floor", "--dir", at, "--clients", "0"], 2);
    let told = bad(&["bench", "floor", "--dir", at, "--size", "9000T"], 1);
    assert!(told.contains("free, and") && told.contains("--size"), "{told}");
    bad(&["bench", "floor", "--dir", "/nowhere/at/all"], 1);
    let told = bad(&floor(dir.path(), &["--limit", "0.01"]), 1);
    assert!(told.contains("not done after 0.01 s, at \"writing the files\""), "{told}");
    assert!(is_empty(dir.path()), "nothing is left");
}
