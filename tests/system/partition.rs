//! Five monitors on five hosts with a network between them: two killed, a minority with the leader cut off by
//! dropped packets, all of them restarted. No change of the map is lost or doubled, and who uses a volume notices
//! nothing.
//!
//! The hosts are network name spaces of the harness beside this repository: a sixth one has the storage nodes and the
//! front end. Configurations are those that `trefoil init` makes. Needs root and the harness; says SKIP without.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{trefoil, turn};
use crate::nbd_client::Endpoint;
use crate::prober::Prober;
use crate::tools::{Finished, Running, end, lacks, skip, wait_until};

const MONITORS: usize = 5;
/// The host with everything else.
const STORAGE: usize = 6;
/// From a fault until a change can be made: an election, and what a busy machine adds.
const CHANGE_LIMIT: Duration = Duration::from_secs(40);
/// What fails the test; what was seen is printed.
const STALL_MAX: Duration = Duration::from_secs(5);

struct Hosts {
    script: PathBuf,
    name: String,
    folder: tempfile::TempDir,
    daemons: BTreeMap<String, Child>,
    _turn: MutexGuard<'static, ()>,
}

impl Hosts {
    /// None where there is no harness or no right to use it.
    fn up() -> Option<Hosts> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/harness/netns.sh");
        if !script.is_file() {
            println!("SKIP: {} is not there", script.display());
            return None;
        }
        if !nix::unistd::geteuid().is_root() {
            skip("network name spaces need root");
            return None;
        }
        if lacks(&["ip", "nft"]) {
            return None;
        }
        let folder =
            tempfile::Builder::new().prefix("trefoil-part-").tempdir().expect("a temporary directory");
        let name = format!("tp{}h", std::process::id());
        let hosts = Hosts { script, name, folder, daemons: BTreeMap::new(), _turn: turn() };
        let made = hosts.net(&["up", &STORAGE.to_string()]);
        if !made.status.success() {
            println!("SKIP: no network name spaces here: {}", made.err);
            return None;
        }
        Some(hosts)
    }

    fn net(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(&self.script);
        command.args(["--name", &self.name]).args(arguments);
        Running::start(&mut command).finish(Duration::from_secs(60))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn on(&self, host: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{host}", self.name)]).arg(trefoil());
        command
    }

    /// What `init` makes, with the paths of this test.
    fn configure(&self) {
        let names: Vec<String> = (1..=STORAGE).map(|n| format!("h{n}=127.77.0.{n}")).collect();
        let monitors: Vec<String> = (1..=MONITORS).map(|n| format!("h{n}")).collect();
        let etc = self.path("etc");
        let mut init = Command::new(trefoil());
        init.arg("init").arg(&etc).args(["--size", "512M", "--memory", "128M"]);
        init.args(["--monitors", &monitors.join(",")]);
        names.iter().for_each(|name| {
            init.args(["--host", name]);
        });
        for n in 0..3 {
            init.args(["--device", &format!("h{STORAGE}:{}", self.path(&format!("device-{n}")).display())]);
        }
        Running::start(&mut init).finish(Duration::from_secs(60)).ok("init");
        let state = self.path("state").display().to_string();
        let run = self.path("run").display().to_string();
        std::fs::create_dir_all(&run).expect("a directory");
        for host in 1..=STORAGE {
            for role in ["monitor", "storage-node", "nbd"] {
                let Ok(files) = std::fs::read_dir(etc.join(format!("h{host}")).join(role)) else { continue };
                for file in files.map(|file| file.expect("an entry").path()) {
                    let text = std::fs::read_to_string(&file).expect("its text");
                    let text = text
                        .replace("/var/lib/trefoil", &format!("{state}/h{host}"))
                        .replace("/run/trefoil/nbd-0", &format!("{run}/{host}"))
                        .replace("# metrics_listen = \"default\"", "metrics_listen = \"off\"");
                    std::fs::write(&file, text).expect("written");
                }
            }
            std::fs::create_dir_all(format!("{run}/{host}")).expect("a directory");
        }
    }

    fn start(&mut self, host: usize, role: &str, number: usize) {
        let config = self.path("etc").join(format!("h{host}")).join(role).join(format!("{number}.toml"));
        let name = format!("{role}-{host}-{number}");
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{name}.log")));
        let log = log.expect("a log file");
        let mut command = self.on(host);
        command.arg(role).arg("--config").arg(config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.daemons.insert(name, child);
    }

    fn start_monitor(&mut self, host: usize) {
        self.start(host, "monitor", 0);
    }

    /// SIGKILL.
    fn kill_monitor(&mut self, host: usize) {
        let mut child = self.daemons.remove(&format!("monitor-{host}-0")).expect("it runs");
        end(&mut child);
    }

    /// `trefoil COMMAND --json`, from the host with the storage nodes.
    fn ask(&self, command: &[&str]) -> Finished {
        let all: Vec<String> = (1..=MONITORS).map(|n| format!("127.77.0.{n}:10800")).collect();
        let mut asking = self.on(STORAGE);
        asking.args(command).args(["--json", "--monitor", &all.join(",")]);
        Running::start(&mut asking).finish(Duration::from_secs(60))
    }

    fn json(&self, command: &[&str]) -> Value {
        serde_json::from_str(&self.ask(command).out).unwrap_or_default()
    }

    /// The host of the leader, as soon as there is one.
    #[track_caller]
    fn leader(&self) -> usize {
        let mut leader = None;
        let found = wait_until(CHANGE_LIMIT, || {
            let list = self.json(&["monitor", "list"]);
            let all = list.as_array().cloned().unwrap_or_default();
            let leads = all.iter().find(|it| it["leader"] == true && it["up"] == true);
            leader = leads.and_then(|it| it["id"].as_u64());
            leader.is_some()
        });
        assert!(found, "nobody leads\n{}", self.logs());
        leader.map_or(0, |id| id as usize)
    }

    /// As somebody does who does not give up.
    #[track_caller]
    fn create(&self, name: &str) -> Duration {
        let start = Instant::now();
        let made = wait_until(CHANGE_LIMIT, || {
            let finished = self.ask(&["volume", "create", name, "64MiB"]);
            finished.status.success() || finished.err.contains("exists already")
        });
        assert!(made, "{name} was not made within {CHANGE_LIMIT:?}\n{}", self.logs());
        start.elapsed()
    }

    #[track_caller]
    fn all_up(&self) {
        let mut last = Value::Null;
        let up = wait_until(CHANGE_LIMIT, || {
            last = self.json(&["monitor", "list"]);
            let all = last.as_array().cloned().unwrap_or_default();
            all.len() == MONITORS && all.iter().all(|it| it["up"] == true)
        });
        assert!(up, "not all are up: {last:#}\n{}", self.logs());
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for name in self.daemons.keys() {
            let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text += &format!("---- {name}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        text
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.daemons.values_mut().for_each(end);
        self.net(&["down"]);
    }
}

#[test]
fn five_monitors_lose_two_and_then_a_minority_to_the_network_and_then_all() {
    let Some(mut hosts) = Hosts::up() else { return };
    hosts.configure();
    for host in 1..=MONITORS {
        hosts.start_monitor(host);
    }
    for number in 0..3 {
        hosts.start(STORAGE, "storage-node", number);
    }
    hosts.start(STORAGE, "nbd", 0);
    hosts.create("disk0");
    let socket = hosts.path("run").join(STORAGE.to_string()).join("nbd.sock");
    assert!(wait_until(CHANGE_LIMIT, || socket.exists()), "no front end\n{}", hosts.logs());
    let prober = Prober::start(&Endpoint::Unix(socket), "disk0", 0, 1024);
    let mut expected = BTreeSet::from(["disk0".to_owned()]);
    let mut made = |hosts: &Hosts, when: &str| {
        let mut first = Duration::ZERO;
        for n in 0..3 {
            let name = format!("{when}-{n}");
            let took = hosts.create(&name);
            first = if n == 0 { took } else { first };
            expected.insert(name);
        }
        println!("{when}: a volume was made after {:.1} s", first.as_secs_f64());
    };

    // Two killed, the leader among them.
    let leader = hosts.leader();
    let other = leader % MONITORS + 1;
    hosts.kill_monitor(leader);
    hosts.kill_monitor(other);
    made(&hosts, "two-killed");
    assert!(![leader, other].contains(&hosts.leader()));
    hosts.start_monitor(leader);
    hosts.start_monitor(other);
    hosts.all_up();
    made(&hosts, "back");

    // The leader and another one hear each other, and nobody else hears them.
    let leader = hosts.leader();
    let other = leader % MONITORS + 1;
    let minority = format!("{leader},{other}");
    let rest: Vec<String> =
        (1..=STORAGE).filter(|host| ![leader, other].contains(host)).map(|host| host.to_string()).collect();
    hosts.net(&["cut", &minority, &rest.join(",")]).ok("cut");
    made(&hosts, "minority-cut-off");
    assert!(![leader, other].contains(&hosts.leader()), "those that are cut off lead nobody");
    hosts.net(&["heal"]).ok("heal");
    hosts.all_up();
    made(&hosts, "healed");

    // All at once.
    (1..=MONITORS).for_each(|host| hosts.kill_monitor(host));
    std::thread::sleep(Duration::from_secs(1));
    (1..=MONITORS).for_each(|host| hosts.start_monitor(host));
    made(&hosts, "all-restarted");
    hosts.all_up();

    let list = hosts.json(&["volume", "list"]);
    let list = list.as_array().expect("a list");
    let names: BTreeSet<String> =
        list.iter().map(|it| it["name"].as_str().unwrap_or_default().to_owned()).collect();
    let ids: BTreeSet<u64> = list.iter().map(|it| it["id"].as_u64().unwrap_or_default()).collect();
    assert_eq!(names, expected, "none is lost");
    assert_eq!((list.len(), ids.len()), (expected.len(), expected.len()), "none is there twice");
    let info = hosts.json(&["volume", "info", "disk0"]);
    assert_eq!(
        (&info["generation"], &info["state"]),
        (&1.into(), &"attached".into()),
        "granted once: {info:#}"
    );
    let mut told = Value::Null;
    let all_told = wait_until(CHANGE_LIMIT, || {
        told = hosts.json(&["health"]);
        let checks = told["checks"].as_array().cloned().unwrap_or_default();
        let died = checks.iter().find(|it| it["code"] == "DAEMON_DIED_RECENTLY").cloned().unwrap_or_default();
        // The two that were killed first may not have got word to a leader before they were killed again: they
        // were asking one that was cut off.
        let count = died["count"].as_u64().unwrap_or_default();
        died["details"].as_array().map(Vec::len) == Some(MONITORS) && (5..=7).contains(&count)
    });
    assert!(all_told, "all were killed, two of them twice: {told:#}\n{}", hosts.logs());

    let seen = prober.stop();
    seen.report("five monitors: two killed, two cut off, all restarted");
    assert!(seen.faults.is_empty(), "{:?}\n{}", seen.faults, hosts.logs());
    assert!(
        seen.count > 100 && seen.longest() < STALL_MAX,
        "{} I/Os, longest {:?}",
        seen.count,
        seen.longest()
    );
}
