//! `bench cluster` on a small `trefoil up`: what it shows, what it refuses to overwrite, and that nothing is left behind.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

/// fio with NBD, without which there is nothing to test here.
fn has_fio() -> bool {
    let there = std::process::Command::new("fio").arg("--enghelp=nbd").output();
    let there = there.is_ok_and(|output| output.status.success() && !output.stdout.is_empty());
    if !there {
        eprintln!("SKIP: there is no fio with an engine for NBD");
    }
    there
}

fn bench<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["bench", "cluster", "--dir", dir.to_str().unwrap(), "--size", "16M", "--rounds", "1"];
    all.extend(more);
    all
}

fn volumes(dir: &Path) -> Vec<String> {
    let state: Value = serde_json::from_slice(&fs::read(dir.join("up.json")).unwrap()).unwrap();
    let list = good(&["volume", "list", "--json", "--monitor", state["monitor"].as_str().unwrap()]);
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    list.iter().map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_cluster_is_measured_beside_the_raw_disk_and_nothing_is_left() {
    if !has_fio() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let (dir, page, json) =
        (parent.path().join("data"), parent.path().join("p.html"), parent.path().join("j.json"));
    let mut up = Up::start(&dir, &["--volume", "a=64M"]);
    up.ready();
    let raw = parent.path().join("raw");
    fs::create_dir(&raw).unwrap();
    let jobs = "randwrite-4k-qd32,randrw70-4k-qd16";
    let mut options = bench(&dir, &["--runtime", "0.5", "--jobs", jobs, "--raw", raw.to_str().unwrap()]);
    options.push("--floor");
    options.extend(["--json", json.to_str().unwrap(), "--html", page.to_str().unwrap()]);
    let text = good(&options);
    for wanted in
        ["randwrite-4k-qd32  trefoil", "its writes", "randwrite-4k-qd32: IOPS by raw IOPS", "of 2 aims met"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert_eq!((volumes(&dir), files(&raw)), (vec!["a".to_owned()], vec![]));

    let view: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(view["about"]["own_volume"], true, "{view:#}");
    assert_eq!(view["about"]["size_bytes"], 16 << 20);
    let names: Vec<&str> =
        view["systems"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["trefoil", "raw", "floor"]);
    let lines = view["jobs"].as_array().unwrap();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["systems"]["trefoil"]["floor_cpu_ratio"].as_f64().unwrap() > 0.0, "{view:#}");
    assert_eq!(lines[1]["systems"]["floor"], Value::Null, "it knows no mix");
    for (n, line) in lines.iter().enumerate() {
        for name in names.iter().take(3 - n) {
            let figures = &line["systems"][name];
            let number = |key: &str| figures[key].as_f64().unwrap_or_else(|| panic!("{key}: {figures:#}"));
            assert!(number("iops") > 0.0 && number("mb_per_s") > 0.0, "{figures:#}");
            let percentiles = ["p50_us", "p99_us", "p999_us"].map(number);
            assert!(percentiles.is_sorted() && percentiles[0] > 0.0, "{figures:#}");
            assert!(number("max_us") >= number("mean_us") && number("client_cpu_us") >= 0.0, "{figures:#}");
        }
        let ours = &line["systems"]["trefoil"];
        // All daemons are threads of one process here.
        let by_process = ours["cpu_us_by_process"].as_object().unwrap();
        assert_eq!(by_process.keys().collect::<Vec<_>>(), ["up"], "{ours:#}");
        assert!(ours["cpu_us"].as_f64().unwrap() > 0.0);
        // Three copies, and what goes with them.
        assert!(ours["written_per_byte"].as_f64().unwrap() > 2.0, "{ours:#}");
        let ratio = ours["iops"].as_f64().unwrap() / line["systems"]["raw"]["iops"].as_f64().unwrap();
        assert!((ours["raw_iops_ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9, "{line:#}");
    }
    assert_eq!(lines[0]["systems"]["trefoil"]["read"], Value::Null);
    let mix = &lines[1]["systems"]["trefoil"];
    let (reads, writes) = (mix["read"]["ios"].as_u64().unwrap(), mix["write"]["ios"].as_u64().unwrap());
    assert!(reads > writes && writes > 0, "70 of 100: {mix:#}");
    assert_eq!(view["aims"].as_array().unwrap().len(), 2);
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("randrw70-4k-qd16"), "{page}");
}

#[test]
fn a_volume_with_data_is_not_overwritten() {
    if !has_fio() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--volume", "a=64M"]);
    let uri = up.ready();
    let short = ["--runtime", "0.2", "--jobs", "randread-4k-qd1", "--json"];
    // Nothing is in it yet: then it may be used.
    let mut named = bench(&dir, &["--volume", "a"]);
    named.extend(short);
    let view: Value = serde_json::from_str(&good(&named)).unwrap();
    assert_eq!(view["about"]["own_volume"], false, "{view:#}");
    let told = bad(&named, 1);
    assert!(told.contains("volume a holds data (first at byte 0)") && told.contains("--overwrite"), "{told}");
    let by_uri = ["bench", "--uri", &uri, "--size", "16M", "--rounds", "1"];
    let told = bad(&[&by_uri[..], &short].concat(), 1);
    assert!(told.contains("holds data"), "{told}");
    // Behind what was written there is nothing.
    let view = good(&[&by_uri[..], &short, &["--overwrite"]].concat());
    let view: Value = serde_json::from_str(&view).unwrap();
    let ours = &view["jobs"][0]["systems"]["trefoil"];
    assert_eq!(
        (&ours["cpu_us"], &view["aims"]),
        (&Value::Null, &Value::Array(vec![])),
        "a URI names no processes"
    );
    named.push("--overwrite");
    good(&named);

    let told = bad(&["bench", "--uri", &uri.replace("/a", "/b"), "--overwrite"], 1);
    assert!(told.contains("cannot ask about") && told.contains("refuses"), "{told}");
    let told = bad(&["bench", "--uri", &uri, "--volume", "b"], 2);
    assert!(told.contains("two volumes"), "{told}");
    let dir_text = dir.to_str().unwrap();
    let told = bad(&["bench", "--dir", dir_text, "--volume", "a", "--overwrite", "--size", "1G"], 2);
    assert!(told.contains("volume a has 64 MiB"), "{told}");
    let told = bad(&["bench", "--dir", dir_text, "--size", "1T"], 1);
    assert!(told.contains("too little for 3 copies of 1 TiB"), "{told}");
    let told = bad(&bench(&dir, &["--floor"]), 2);
    assert!(told.contains("--raw"), "{told}");
    let told = bad(&bench(&dir, &["--floor", "--raw", "/dev/null"]), 2);
    assert!(told.contains("give --raw a directory, not /dev/null"), "{told}");
    let told = bad(&bench(&dir, &["--raw", "/dev/null"]), 2);
    assert!(told.contains("neither a directory nor a block device"), "{told}");
    let other = parent.path().join("other.json");
    fs::write(&other, r#"{"name": "raw", "fio": []}"#).unwrap();
    let told = bad(&bench(&dir, &["--beside", other.to_str().unwrap()]), 2);
    assert!(told.contains("no name for another system"), "{told}");
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    if !has_fio() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--volume", "a=64M"]);
    up.ready();
    let long = bench(&dir, &["--runtime", "600"]);
    let child = trefoil(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it has made its volume", || volumes(&dir).len() == 2);
    std::thread::sleep(std::time::Duration::from_millis(500));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
    assert_eq!(volumes(&dir), ["a"]);
}

#[test]
fn its_help_says_what_the_columns_are() {
    for command in [&["bench", "--help"][..], &["bench", "cluster", "--help"]] {
        let help = good(command);
        for wanted in ["Examples:\n  trefoil bench", "\n  WRITTEN  ", "--overwrite", "randwrite-4k-qd1"] {
            assert!(help.contains(wanted), "{wanted}: {help}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    let output = trefoil(&["bench", "--dir", empty]).env("PATH", dir.path()).output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("fio is needed to measure a cluster") && told.contains("apt-get install fio"),
        "{told}"
    );

    // A fio that knows no NBD.
    let fio = dir.path().join("fio");
    fs::write(&fio, "#!/bin/sh\n[ \"$1\" = --version ] && echo fio-3\n").unwrap();
    fs::set_permissions(&fio, fs::Permissions::from_mode(0o755)).unwrap();
    let output = trefoil(&["bench", "--dir", empty]).env("PATH", dir.path()).output().unwrap();
    assert!(stderr(&output).contains("this fio has no engine nbd"), "{}", stderr(&output));

    bad(&["bench", "--jobs", "nothing"], 2);
    bad(&["bench", "--runtime", "0"], 2);
    bad(&["bench", "--pids", "0"], 2);
    bad(&["bench", "--volume", "a", "--pool", "b"], 2);
    if !has_fio() {
        return;
    }
    let page = dir.path().join("p.html");
    let told = bad(&["bench", "--dir", empty, "--html", page.to_str().unwrap()], 3);
    assert!(!page.exists());
    assert!(told.contains("no `trefoil up` runs on") && told.contains("--uri"), "{told}");
    bad(&["bench", "--uri", "disk0"], 2);
    let told = bad(&["bench", "--uri", "nbd+unix:///a?socket=/nonexistent/s"], 1);
    assert!(told.contains("cannot reach the front end"), "{told}");
    let told = bad(&["bench", "--dir", empty, "--html", "/nonexistent/p.html"], 1);
    assert!(told.contains("cannot write /nonexistent/p.html"), "{told}");
}
