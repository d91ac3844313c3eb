//! `trefoil bench floor`, really run for a moment: every line comes, and its figures can be.

mod cli_common;

use cli_common::{bad, good};
use serde_json::Value;
use std::path::Path;

fn floor<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["bench", "floor", "--dir", dir.to_str().expect("UTF-8"), "--size", "16M"];
    all.extend(more);
    all
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("there").next().is_none()
}

#[test]
fn each_pattern_is_measured_each_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = good(&floor(dir.path(), &["--runtime", "0.1", "--event-loop", "epoll,ring,poll", "--json"]));
    let view: Value = serde_json::from_str(&text).expect("JSON");
    let lines = view["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 6 * (1 + 2 * 3), "{view:#}");
    for line in lines {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line:#}"));
        for key in ["iops", "p50_us", "p99_us", "cpu_client_us", "device_ops", "ratio", "p50_ratio"] {
            assert!(number(key) > 0.0, "{key}: {line:#}");
        }
        assert!(number("p50_us") <= number("p99_us"), "{line:#}");
        if line["transport"].is_null() {
            assert!((number("device_ops") - 1.0).abs() < 0.5 && number("cpu_us") == 0.0, "{line:#}");
            continue;
        }
        for key in
            ["cpu_front_us", "cpu_nodes_us", "syscalls_front", "syscalls_nodes", "nodes_us", "device_us"]
        {
            assert!(number(key) > 0.0, "{key}: {line:#}");
        }
        // Three copies of a write, in fewer device operations where several come at once; one of a read.
        let copies = if line["write"] == true { 3.0 } else { 1.0 };
        assert!(number("device_ops") <= copies * 1.2 + 0.1, "{line:#}");
        if line["depth"] == 1 {
            // A node that is late may find several writes; two of three it takes.
            assert!(number("device_ops") > copies * 0.6, "{line:#}");
        }
    }
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn it_is_shown_as_a_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let more = ["--runtime", "0.02", "--transport", "unix", "--event-loop", "ring"];
    let text = good(&floor(dir.path(), &more));
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 1 + 6 * 2, "{text}");
    assert_eq!((lines[0][0], lines[0][17]), ("PATTERN", "P50_RATIO"), "{text}");
    assert_eq!(lines[1][..5], ["4k", "write", "1", "device", "-"], "{text}");
    assert_eq!(lines[2][..5], ["4k", "write", "1", "unix", "ring"], "{text}");
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn what_cannot_be_done_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().to_str().expect("UTF-8");
    let told = bad(&floor(dir.path(), &["--event-loop", "select"]), 2);
    assert!(told.contains("epoll, ring, poll or batch"), "{told}");
    bad(&["bench", "floor", "--dir", at, "--size", "1M"], 2);
    let told = bad(&["bench", "floor", "--dir", at, "--size", "9000T"], 1);
    assert!(told.contains("free, and") && told.contains("--size"), "{told}");
    bad(&["bench", "floor", "--dir", "/nowhere/at/all"], 1);
    assert!(is_empty(dir.path()), "nothing is left");
}
