//! `trefoil events` and `trefoil node out|in`, on a cluster whose nodes come and go.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// P8: a daemon that has died is visible within so long. (A busy machine adds to it.)
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);

fn process(dir: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(dir.join("processes.json")).unwrap();
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    entries.into_iter().find(|entry| entry["name"] == name).unwrap()
}

fn texts(monitor: &str) -> Vec<String> {
    let lines = good(&["events", "--json", "--monitor", monitor]);
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
}

fn eventually_told(monitor: &str, part: &str) {
    let begin = Instant::now();
    while !texts(monitor).iter().any(|text| text.contains(part)) {
        assert!(begin.elapsed() < PATIENCE, "no event {part:?}: {:#?}", texts(monitor));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_happens_is_told_and_nodes_go_out_and_in() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--processes", "--volume", "a=64M"]);
    up.ready();
    let monitor = process(&dir, "monitor")["address"].as_str().unwrap().to_owned();
    let told = texts(&monitor);
    for expected in
        ["cluster trefoil made", "node.0 added", "node.2 added", "pool default made", "volume a made"]
    {
        assert!(told.iter().any(|text| text.contains(expected)), "{expected}: {told:#?}");
    }

    // A follower sees what happens from now on, as it happens.
    let mut follower = trefoil(&["events", "--follow", "--last", "0", "--monitor", &monitor])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();

    let pid = i32::try_from(process(&dir, "node-1")["pid"].as_u64().unwrap()).unwrap();
    let killed = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    loop {
        let status: Value = serde_json::from_str(&stdout(&run(&["status", "--json", "--monitor", &monitor])))
            .unwrap_or_default();
        if status["health"].as_str().is_some_and(|health| health != "HEALTH_OK") {
            break;
        }
        assert!(killed.elapsed() < PATIENCE, "{status:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let visible = killed.elapsed();
    println!("a dead node showed after {:.1} s", visible.as_secs_f64());
    assert!(visible < 2 * VISIBLE_WITHIN, "{visible:?}");
    eventually_told(&monitor, "node.1 down");
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("UTC  ! node.1 down, after"), "{line}");
    follower.kill().unwrap();
    follower.wait().unwrap();

    let told = bad(&["node", "out", "1", "--yes", "--json", "--monitor", &monitor], 1);
    assert!(told.contains("would no longer find 3 places"), "{told}");
    let told = good(&["node", "out", "1", "--force", "--monitor", &monitor]);
    assert!(told.ends_with("out: node.1\n"), "{told}");
    let list = good(&["node", "list", "--monitor", &monitor]);
    assert!(list.contains("down, out"), "{list}");
    let status = good(&["status", "--monitor", &monitor]);
    assert!(status.contains("NODE_OUT"), "{status}");
    assert_eq!(good(&["node", "in", "1", "--monitor", &monitor]).trim(), "in: node.1");
    let told = texts(&monitor);
    let last: Vec<&str> = told.iter().rev().take(2).rev().map(String::as_str).collect();
    assert_eq!(last, ["node.1 out, on command: its data is re-homed", "node.1 in"]);
    assert_eq!(good(&["events", "--warnings", "--monitor", &monitor]).lines().count(), 2);
    let told = bad(&["node", "out", "77", "--monitor", &monitor], 1);
    assert!(told.contains("there is no node node.77"), "{told}");
    up.stop();
}
