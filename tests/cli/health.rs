//! What is told of daemons that die and hang, on real processes: how soon it is seen, that it is not forgotten when they
//! are back, and what an administrator may say about it.

use crate::common::cluster::Cluster;
use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// A daemon that is dead or hangs must be seen within this time. Other work on the machine may take as much again.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);

impl Cluster {
    /// The check, if it applies.
    fn check(&self, code: &str) -> Option<Value> {
        let health = self.look(&["health"]);
        health["checks"].as_array()?.iter().find(|check| check["code"] == code).cloned()
    }

    fn health(&self) -> String {
        self.look(&["health"])["health"].as_str().unwrap_or_default().to_owned()
    }

    /// The checks that are not muted; none while no monitor answers.
    fn loud(&self) -> Option<Vec<String>> {
        let health = self.look(&["health"]);
        let loud = health["checks"].as_array()?.iter().filter(|it| it["muted"].is_null());
        Some(loud.filter_map(|it| it["code"].as_str().map(str::to_owned)).collect())
    }

    fn process(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.dir.join("processes.json")).unwrap();
        let all: Vec<Value> = serde_json::from_str(&text).unwrap();
        all.into_iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    fn signal(&self, name: &str, signal: Signal) {
        let pid = i32::try_from(self.process(name)["pid"].as_u64().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        if signal == Signal::SIGKILL {
            // Its port is free when it is gone.
            let text = || std::fs::read_to_string(self.dir.join("processes.json")).unwrap();
            eventually("it is gone", || !text().contains(&format!("\"{name}\"")));
        }
    }

    /// How long until a check names the node, as down or silent.
    fn seen(&self, node: &str, how: &str) -> Duration {
        let since = Instant::now();
        loop {
            for code in ["NODE_DOWN", "NODE_SILENT"] {
                let details = self.check(code).map(|check| check["details"].to_string()).unwrap_or_default();
                if details.contains(&format!("{node} ")) {
                    println!("{node} {how}: seen as {code} after {:.1} s", since.elapsed().as_secs_f64());
                    return since.elapsed();
                }
            }
            assert!(since.elapsed() < PATIENCE, "{node} {how}: {:#}", self.look(&["status"]));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn start_by_hand(dir: &Path, role: &str, name: &str) -> Up {
    let config = dir.join("etc").join(format!("{name}.toml"));
    let mut daemon = Up::run(trefoil(&[role, "--config", config.to_str().unwrap()]));
    daemon.ready();
    daemon
}

#[test]
fn who_dies_or_hangs_is_seen_at_once_and_not_forgotten_when_it_is_back() {
    let mut cluster = Cluster::start(&["--processes", "--nodes", "4", "--volume", "a=64M"]);
    eventually("all is well", || cluster.health() == "HEALTH_OK");
    cluster.signal("node-1", Signal::SIGKILL);
    let killed = cluster.seen("node.1", "killed");
    let mut node = start_by_hand(&cluster.dir, "storage-node", "node-1");
    cluster.signal("node-2", Signal::SIGSTOP);
    let stopped = cluster.seen("node.2", "stopped");
    cluster.signal("node-2", Signal::SIGCONT);

    // Back, and not forgotten; also by the next monitor. Who hung and went on has not died.
    eventually("that is all", || cluster.loud().is_some_and(|loud| loud == ["DAEMON_DIED_RECENTLY"]));
    let died = cluster.check("DAEMON_DIED_RECENTLY").unwrap();
    assert!(
        died["count"] == 1 && died["details"][0].as_str().unwrap().starts_with("node.1, noticed"),
        "{died:#}"
    );
    cluster.signal("monitor", Signal::SIGKILL);
    let mut monitor = start_by_hand(&cluster.dir, "monitor", "monitor");
    eventually("both deaths are told", || {
        let died = cluster.check("DAEMON_DIED_RECENTLY").map(|it| it["details"].to_string());
        died.is_some_and(|it| it.contains("monitor.1, noticed") && it.contains("node.1, noticed"))
    });
    let told = cluster.bad(&["health", "ack-crash", "node.7"], 1);
    assert!(told.contains("no death of node.7"), "{told}");
    cluster.good(&["health", "ack-crash", "node.1"]);
    let died = cluster.check("DAEMON_DIED_RECENTLY").unwrap();
    assert!(died["count"] == 1 && !died["details"].to_string().contains("node.1"), "{died:#}");
    cluster.good(&["health", "ack-crash", "--all"]);
    eventually("all is well", || cluster.health() == "HEALTH_OK");

    // A clean stop is no death.
    node.stop();
    let mut node = start_by_hand(&cluster.dir, "storage-node", "node-1");
    eventually("all is well again", || cluster.health() == "HEALTH_OK");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(cluster.check("DAEMON_DIED_RECENTLY"), None);
    let told = cluster.good(&["events", "--last", "50"]);
    assert!(told.contains("! node.1 had ended without having been stopped"), "{told}");
    node.stop();
    monitor.stop();
    cluster.up.stop();
    for (what, took) in [("killed", killed), ("stopped", stopped)] {
        assert!(took < 2 * VISIBLE_WITHIN, "{what}: {took:?}");
    }
}

#[test]
fn a_check_is_muted_until_it_is_worse_or_gone() {
    let mut cluster = Cluster::start(&["--nodes", "5", "--volume", "a=64M"]);
    eventually("all is well", || cluster.health() == "HEALTH_OK");
    let told = cluster.bad(&["health", "mute", "NODE_OUT", "--for", "4h"], 1);
    assert!(told.contains("does not apply now"), "{told}");
    assert!(cluster.bad(&["health", "mute", "NODE_OUTT", "--for", "4h"], 2).contains("health --codes"));
    assert!(cluster.bad(&["health", "mute", "NODE_OUT", "--for", "4"], 2).contains("4h"));
    cluster.good(&["node", "out", "4", "--yes"]);
    assert!(cluster.bad(&["health", "mute", "NODE_OUT", "--for", "31d"], 1).contains("at most 30 days"));
    let told = cluster.good(&["health", "mute", "node_out", "--for", "4h", "--because", "new disk"]);
    assert!(told.contains("NODE_OUT is muted for 4h00m"), "{told}");
    let screen = cluster.good(&["status", "--exit-code"]);
    assert!(screen.starts_with("health    HEALTH_OK (muted: NODE_OUT)\n"), "{screen}");
    assert!(
        screen.contains("NODE_OUT: 1 node out [muted, ") && screen.contains(" left: new disk]"),
        "{screen}"
    );
    let shown = cluster.good(&["health", "--detail", "--exit-code"]);
    assert!(shown.contains("    node.4 (") && shown.contains("docs/operations.md"), "{shown}");

    // One more is worse: what was muted for one is heard of again.
    cluster.good(&["node", "out", "3", "--yes"]);
    eventually("it is heard of", || cluster.loud().is_some_and(|loud| loud == ["NODE_OUT"]));
    let ended = |why: &str| {
        cluster.good(&["events", "--last", "50"]).contains(&format!("NODE_OUT not muted any more: {why}"))
    };
    eventually("the mute has ended", || ended("it has become worse"));
    let told = cluster.bad(&["health", "unmute", "NODE_OUT"], 1);
    assert!(told.contains("no muted check NODE_OUT"), "{told}");
    cluster.good(&["health", "mute", "NODE_OUT", "--for", "1h"]);
    cluster.good(&["health", "unmute", "NODE_OUT"]);
    assert_eq!(cluster.health(), "HEALTH_WARN");
    cluster.good(&["health", "mute", "NODE_OUT", "--for", "2s"]);
    eventually("its time is over", || cluster.loud().is_some_and(|loud| loud == ["NODE_OUT"]));

    // What has cleared is heard of when it comes again.
    cluster.good(&["health", "mute", "NODE_OUT", "--for", "1h"]);
    cluster.good(&["node", "in", "3", "4"]);
    eventually("the mute has ended", || ended("it does not apply any more"));
    cluster.good(&["node", "out", "4", "--yes"]);
    assert_eq!(cluster.loud().unwrap(), ["NODE_OUT"]);
    assert!(ended("on command"));
    cluster.up.stop();
}

#[test]
fn every_code_has_its_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let all: Vec<Value> = serde_json::from_str(&good(&["health", "--codes", "--json"])).unwrap();
    assert!(all.len() >= 20);
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).collect();
    for check in &all {
        let (code, level) = (check["code"].as_str().unwrap(), check["health"].as_str().unwrap());
        let level = level.strip_prefix("HEALTH_").unwrap();
        let row = rows.iter().find(|row| row.starts_with(&format!("| {code} | {level} | ")));
        assert!(
            row.is_some_and(|row| row.split('|').count() >= 6),
            "docs/operations.md has no row of {code}, {level}"
        );
    }
}
