//! What `trefoil status --json` says, as far as the tests need it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, run_trefoil};
use crate::tools::{Finished, wait_until};

/// Older than this, nothing that the monitor shows is from before: its default `node_timeout_ms`, and
/// more than one heartbeat.
const STALE_MAX: Duration = Duration::from_millis(4500);

/// One storage node as the cluster sees it.
#[derive(Clone, Debug)]
pub struct NodeHealth {
    /// "node-0" and so on, as in `processes.json`.
    pub name: String,
    /// Heard of lately.
    pub up: bool,
    /// Copies of objects that are behind.
    pub copies_behind: u64,
    /// Blocks that are bad now.
    pub bad_blocks: u64,
    /// Blocks whose bytes failed their checksum since the node started, healed or not.
    pub checksum_errors: u64,
}

/// Nothing is wrong now. That daemons have died, which tests do to them, is told for a week.
pub fn is_well(status: &Value) -> bool {
    let checks = status["checks"].as_array();
    checks.is_some_and(|checks| checks.iter().all(|check| check["code"] == "DAEMON_DIED_RECENTLY"))
}

impl Cluster {
    /// `trefoil COMMAND... --json` against this cluster; fails the test if it fails.
    #[track_caller]
    pub fn ask(&self, command: &[&str]) -> Value {
        let finished = self.run(command).ok(&format!("{command:?}"));
        serde_json::from_str(&finished.out)
            .unwrap_or_else(|error| panic!("{command:?}: {error}: {}", finished.out))
    }

    /// As [`Cluster::ask`], where a refusal is no failure.
    #[track_caller]
    pub fn try_ask(&self, command: &[&str]) -> bool {
        self.run(command).status.success()
    }

    /// `trefoil COMMAND... --json` against this cluster.
    #[track_caller]
    pub fn run(&self, command: &[&str]) -> Finished {
        let monitors = self.monitors();
        run_trefoil(&[command, &["--monitor", &monitors, "--json"]].concat(), Duration::from_secs(30))
    }

    /// All monitors that `up` has started, as `--monitor` takes them.
    pub fn monitors(&self) -> String {
        let addresses = self.names("monitor").into_iter().map(|name| self.process(&name).address.clone());
        addresses.collect::<Vec<_>>().join(",")
    }

    /// The whole status.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.ask(&["status"])
    }

    /// All storage nodes.
    #[track_caller]
    pub fn nodes(&self) -> Vec<NodeHealth> {
        let list = self.ask(&["node", "list"]);
        let nodes = list.as_array().unwrap_or_else(|| panic!("no list of nodes: {list}"));
        let number = |node: &Value, key: &str| node[key].as_u64().unwrap_or_default();
        nodes
            .iter()
            .map(|node| NodeHealth {
                name: self.name_at(node["address"].as_str().unwrap_or_default()),
                up: node["state"] == "up",
                copies_behind: number(node, "copies_behind"),
                bad_blocks: number(node, "bad_blocks"),
                checksum_errors: number(node, "checksum_errors"),
            })
            .collect()
    }

    fn name_at(&self, address: &str) -> String {
        let process = self.processes().iter().find(|process| process.address == address);
        process.map_or_else(|| address.to_string(), |process| process.name.clone())
    }

    /// Waits until the cluster says that nothing is wrong with it: all nodes up, every copy whole.
    /// Returns how long that took.
    ///
    /// A node that comes back within `node_timeout_ms` is never shown as down, and what is shown of it
    /// may be what it said before: nothing is believed before this time has passed.
    #[track_caller]
    pub fn wait_until_whole(&self, limit: Duration) -> Duration {
        let start = Instant::now();
        let quiet = STALE_MAX.saturating_sub(self.last_disturbance.elapsed());
        std::thread::sleep(quiet);
        let mut last = Value::Null;
        let whole = wait_until(limit, || {
            last = self.status();
            is_well(&last)
        });
        assert!(whole, "not whole again within {limit:?}: {last:#}\n{}", self.logs());
        start.elapsed()
    }
}
