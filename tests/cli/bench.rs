//! `bench store` with tiny sizes: that it measures, checks, says what it found, and leaves nothing behind.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

fn bench<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["bench", "store", "--dir", dir.to_str().unwrap()];
    all.extend(more);
    all
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

fn has_fio() -> bool {
    std::process::Command::new("fio").arg("--version").output().is_ok()
}

#[test]
fn each_pattern_is_measured_and_held_against_the_aims() {
    let dir = tempfile::tempdir().unwrap();
    let alone = ["--size", "256M", "--runtime", "0.05", "--rounds", "2", "--no-raw", "--json"];
    let view: Value = serde_json::from_str(&good(&bench(dir.path(), &alone))).unwrap();
    let patterns = view["patterns"].as_array().unwrap();
    assert_eq!(patterns.len(), 9, "{view:#}");
    for line in patterns {
        assert!(line["iops"].as_f64().unwrap() > 0.0 && line["cpu_us"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["p50_us"].as_f64().unwrap() <= line["p99_us"].as_f64().unwrap(), "{line}");
        assert_eq!(line["raw"], Value::Null);
    }
    let aims = view["aims"].as_array().unwrap();
    assert_eq!(aims.len(), 2, "processor time is known without fio: {view:#}");
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn the_raw_device_is_measured_beside_it() {
    if !has_fio() {
        eprintln!("skipped: there is no fio");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Made, and removed again.
    let inside = dir.path().join("new");
    let text =
        good(&bench(&inside, &["--size", "256M", "--runtime", "0.1", "--rounds", "1", "--depth", "1"]));
    let mut lines = text.lines();
    let header = lines.next().unwrap();
    assert!(header.starts_with("PATTERN") && header.ends_with("RATIO"), "{text}");
    let first: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(first[..4], ["4k", "random", "write", "1"], "{text}");
    let numbers: Vec<f64> = first[4..].iter().map(|n| n.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 10, "{text}");
    let ratio = numbers[0] / numbers[5];
    // Shown with two digits behind the point.
    assert!((ratio - numbers[9]).abs() <= ratio * 0.02 + 0.01, "{text}");
    assert!(text.contains("4k random write, depth 1: mean latency by raw"), "{text}");
    assert!(text.contains("of 4 aims met. All data was read back and is right"), "{text}");
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn cleaning_is_measured_and_everything_is_checked_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let churn = ["--churn", "--size", "256M", "--fill", "80", "--times", "2", "--skew", "90/10", "--json"];
    let view: Value = serde_json::from_str(&good(&bench(dir.path(), &churn))).unwrap();
    assert_eq!(view["audit_clean"], true, "{view:#}");
    assert_eq!(view["rounds"].as_array().unwrap().len(), 2);
    let total = view["amplification"]["total"].as_f64().unwrap();
    let parts = ["moved", "pages", "rest"].map(|part| view["amplification"][part].as_f64().unwrap());
    assert!((total - 1.0 - parts.iter().sum::<f64>()).abs() < 1e-6 && total > 1.0, "{view:#}");
    assert!(view["filled"].as_u64().unwrap() * 100 / view["capacity"].as_u64().unwrap() >= 78, "{view:#}");
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn the_metadata_of_a_huge_store_takes_little_space_and_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--metadata", "--size", "1T", "--write", "4M", "--json"];
    let view: Value = serde_json::from_str(&good(&bench(dir.path(), &options))).unwrap();
    assert_eq!(view["stages"].as_array().unwrap().len(), 10, "{view:#}");
    let starts = view["starts"].as_array().unwrap();
    assert_eq!((&starts[0]["objects"], starts.len()), (&starts[1]["objects"], 2), "{view:#}");
    assert!(starts[0]["objects"].as_u64().unwrap() > 900, "nearly each write goes to another object");
    assert_eq!(starts[1]["with_index"], false);
    assert_eq!(view["read_back"], 1024, "each block that was written");
    assert!(view["rss_peak"].as_u64().unwrap() > 1 << 20, "{view:#}");

    // Filled with large writes first, whose batches have large headers; far enough for a snapshot.
    let options = ["--metadata", "--size", "1G", "--fill", "50", "--write", "1M", "--json"];
    let view: Value = serde_json::from_str(&good(&bench(dir.path(), &options))).unwrap();
    assert_eq!(
        (&view["read_back"], &view["starts"][1]["with_index"]),
        (&256.into(), &false.into()),
        "{view:#}"
    );
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn what_cannot_be_done_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let told = bad(&bench(dir.path(), &["--size", "9000T", "--no-raw"]), 1);
    assert!(told.contains("free, and") && told.contains("--size"), "{told}");
    let told = bad(&bench(dir.path(), &["--size", "64M", "--no-raw"]), 1);
    assert!(told.contains("too few"), "{told}");
    assert!(is_empty(dir.path()));

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let told = bad(&["bench", "store", "--device", file.to_str().unwrap(), "--no-raw", "--force"], 1);
    assert!(told.contains("is no block device"), "{told}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");

    for wrong in [
        vec!["--fill", "50"],
        vec!["--churn", "--skew", "1"],
        vec!["--churn", "--depth", "1,2"],
        vec!["--times", "2"],
    ] {
        bad(&bench(dir.path(), &wrong), 2);
    }
    bad(&["bench", "store"], 2);

    let mut command = trefoil(&bench(dir.path(), &["--size", "256M"]));
    let output = command.env("PATH", dir.path()).output().unwrap();
    let told = stderr(&output);
    assert!(told.contains("fio is needed") && told.contains("--no-raw"), "{told}");
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    for long in [vec!["--churn", "--times", "10000"], vec!["--no-raw", "--runtime", "600"]] {
        let mut all = bench(dir.path(), &["--size", "256M"]);
        all.extend(&long);
        let child = trefoil(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("it has made its files", || !is_empty(dir.path()));
        std::thread::sleep(std::time::Duration::from_millis(500));
        let begun = Instant::now();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{long:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
        assert!(begun.elapsed().as_secs() < 30 && is_empty(dir.path()), "{long:?}");
    }
}
