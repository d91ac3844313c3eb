//! `trefoil up --processes`: what runs is written down, what dies is told, and nothing is left behind.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// An entry of `processes.json`.
#[derive(Clone, Debug, PartialEq)]
struct Process {
    role: String,
    name: String,
    pid: u32,
    address: String,
    config: String,
}

fn processes(dir: &Path) -> Vec<Process> {
    let text = std::fs::read_to_string(dir.join("processes.json")).unwrap();
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let read = |entry: &Value| Process {
        role: text(entry, "role"),
        name: text(entry, "name"),
        pid: u32::try_from(entry["pid"].as_u64().unwrap()).unwrap(),
        address: text(entry, "address"),
        config: text(entry, "config"),
    };
    entries.iter().map(read).collect()
}

fn named(dir: &Path, name: &str) -> Option<Process> {
    processes(dir).into_iter().find(|process| process.name == name)
}

/// It runs, and is `trefoil` with that configuration: not a stranger who has its pid by now.
fn runs(process: &Process) -> bool {
    let arguments = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    String::from_utf8_lossy(&arguments).contains(&process.config)
}

fn kill_9(process: &Process) {
    assert!(runs(process), "{process:?}");
    kill(Pid::from_raw(i32::try_from(process.pid).unwrap()), Signal::SIGKILL).unwrap();
}

/// What the status says, in full; not JSON while no monitor answers in time, as on a busy machine.
fn status(dir: &Path) -> String {
    let monitor = named(dir, "monitor").unwrap().address;
    stdout(&run(&["status", "--json", "--monitor", &monitor]))
}

/// The health, but for what has died and is back: that is told for a week.
fn health(dir: &Path) -> String {
    let status: Value = serde_json::from_str(&status(dir)).unwrap_or_default();
    let only_deaths = |checks: &Vec<Value>| checks.iter().all(|it| it["code"] == "DAEMON_DIED_RECENTLY");
    if status["checks"].as_array().is_some_and(only_deaths) {
        return "HEALTH_OK".to_owned();
    }
    status["health"].as_str().unwrap_or_default().to_owned()
}

/// As `eventually`, twice as patient (two builds at once make a minute of a second), and with the whole
/// status if it never comes to be.
fn comes_to_be(what: &str, dir: &Path, is: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !is(&health(dir)) {
        assert!(Instant::now() < deadline, "it never came to be that {what}: {}", status(dir));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_process_that_dies_is_told_and_can_be_started_by_hand() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--processes", "--volume", "a=64M"]);
    up.ready();
    let all = processes(&dir);
    let names: Vec<(&str, &str)> = all.iter().map(|it| (it.role.as_str(), it.name.as_str())).collect();
    let expected = [
        ("monitor", "monitor"),
        ("storage-node", "node-0"),
        ("storage-node", "node-1"),
        ("storage-node", "node-2"),
        ("nbd", "nbd"),
    ];
    assert_eq!(names, expected);
    assert!(all.iter().all(runs));
    comes_to_be("all is well", &dir, |it| it == "HEALTH_OK");

    let node = named(&dir, "node-1").unwrap();
    kill_9(&node);
    eventually("the death is written down", || named(&dir, "node-1").is_none());
    // On a busy machine the others may be late too: then it is HEALTH_ERR for a while.
    comes_to_be("the death is seen", &dir, |it| it == "HEALTH_WARN" || it == "HEALTH_ERR");

    // As the help says: the same configuration, by hand.
    let mut by_hand = Up::run(trefoil(&["storage-node", "--config", &node.config]));
    assert_eq!(by_hand.ready(), node.address);
    comes_to_be("all is well again", &dir, |it| it == "HEALTH_OK");
    by_hand.stop();

    up.stop();
    assert_eq!(processes(&dir), []);
    assert!(!all.iter().any(runs), "nothing is left behind");
}

#[test]
fn a_process_that_dies_is_started_again_if_that_was_asked_for() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--processes", "--restart", "--volume", "a=64M"]);
    up.ready();
    let mut last = Vec::new();
    for name in ["node-0", "nbd", "monitor"] {
        let before = named(&dir, name).unwrap();
        kill_9(&before);
        up.line(&format!("starting {name} again"));
        up.line(&format!("{name} serves again"));
        let after = named(&dir, name).unwrap();
        assert_ne!(before.pid, after.pid);
        assert_eq!(before.address, after.address);
        last.push(after);
    }
    comes_to_be("all is well again", &dir, |it| it == "HEALTH_OK");
    up.stop();
    assert!(!last.iter().any(runs), "nothing is left behind");
}

#[test]
fn processes_go_with_an_up_that_is_killed_and_the_next_one_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--processes", "--volume", "a=64M"]);
    up.ready();
    let all = processes(&dir);
    up.signal(Signal::SIGKILL);
    up.wait();
    // At once: it waits for what is left over.
    let mut up = Up::start(&dir, &["--processes"]);
    up.ready();
    assert!(up.said.iter().any(|line| line.contains("found volume a of 64 MiB")), "{:#?}", up.said);
    assert!(!all.iter().any(runs), "nothing is left behind");
    up.stop();
}

#[test]
fn a_second_signal_ends_at_once() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--processes", "--volume", "a=64M"]);
    up.ready();
    let all = processes(&dir);
    // One that hangs holds up the orderly stop.
    let nbd = Pid::from_raw(i32::try_from(named(&dir, "nbd").unwrap().pid).unwrap());
    kill(nbd, Signal::SIGSTOP).unwrap();
    up.signal(Signal::SIGTERM);
    up.line("stopping");
    std::thread::sleep(std::time::Duration::from_millis(300));
    up.signal(Signal::SIGINT);
    assert_eq!(up.wait().code(), Some(128 + 2));
    eventually("its processes are gone", || !all.iter().any(runs));
}
