//! The monitor's configuration: every key, its default, and what is refused.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use trefoil_core::map::{Ack, FailureDomain, PG_NUM_DEFAULT, POOL_SIZE_DEFAULT};

/// Monitors that a cluster has at most, one that is being replaced included. Each of them has to write each
/// change; more than five make nothing safer.
pub const MONITORS_MAX: usize = 7;

/// As in the file; unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// Where it listens. Default: 127.0.0.1:10800. Port 0: any that is free.
    pub listen: SocketAddr,
    /// Where the other monitors, nodes and clients reach it, where that is not `listen`.
    pub advertise: Option<SocketAddr>,
    /// Its number among the monitors, from 1. Default: 1.
    pub id: u64,
    /// The first monitors of a new cluster, this one included: 3 or 5, the same list for each. Not looked at any
    /// more once the cluster is there. Default: this one alone.
    pub peers: Vec<PeerConfig>,
    /// For a monitor that is to be added to a cluster: addresses of monitors of it.
    pub join: Vec<SocketAddr>,
    /// A leader that is not heard of for so many milliseconds, up to twice as many, is replaced. Default: 1000.
    pub election_ms: u64,
    /// Changes after which the map is written as a whole and the log before it is dropped. Default: 4096.
    pub snapshot_entries: u64,
    /// For tests: bytes of a snapshot in one message between monitors. 0: as always.
    #[doc(hidden)]
    #[serde(skip)]
    pub snapshot_part_bytes: u64,
    /// Where its state is. Default: `monitor-data`.
    pub data_dir: PathBuf,
    /// The cluster's name, for people; must stay as it was at the first start. Default: `trefoil`.
    pub cluster_name: String,
    /// Listen beyond loopback without encryption. Default: false, and such a listener is refused.
    pub allow_plaintext: bool,
    /// How long a volume's lease lasts, in milliseconds. Default: 6000. A volume whose front end died
    /// without a release is granted to another after this and the margin.
    pub lease_ms: u64,
    /// Room for clocks of different speed, in milliseconds. Default: 1000.
    pub lease_margin_ms: u64,
    /// How often holders are told to renew, in milliseconds. Default: 2000.
    pub renew_ms: u64,
    /// A node that is not heard of for so many milliseconds is shown as down. Default: 3000.
    pub node_timeout_ms: u64,
    /// A node that has been down for so many milliseconds is taken out: its data is to live elsewhere. Never while
    /// more than a third of the nodes, or a whole host, rack or zone is away, or when the others have no room.
    /// 0: never by itself. Default: 600000.
    pub out_after_ms: u64,
    /// Connections at once. Default: 1024.
    pub connections_max: usize,
    /// Where metrics are served: ADDR:PORT, or "off". Default: on 127.0.0.1, 1000 above the port of `listen`.
    pub metrics_listen: trefoil_metrics::Listen,
    /// A pool to make once enough nodes have registered. Default: none.
    pub bootstrap: Option<Bootstrap>,
}

impl Default for MonitorConfig {
    fn default() -> MonitorConfig {
        MonitorConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 10800)),
            advertise: None,
            id: 1,
            peers: Vec::new(),
            join: Vec::new(),
            election_ms: 1000,
            snapshot_entries: 4096,
            snapshot_part_bytes: 0,
            data_dir: PathBuf::from("monitor-data"),
            cluster_name: "trefoil".to_owned(),
            allow_plaintext: false,
            lease_ms: 6000,
            lease_margin_ms: 1000,
            renew_ms: 2000,
            node_timeout_ms: 3000,
            out_after_ms: trefoil_core::map::outs::OUT_AFTER_DEFAULT,
            connections_max: trefoil_transport::CONNECTIONS_MAX,
            metrics_listen: trefoil_metrics::Listen::Default,
            bootstrap: None,
        }
    }
}

/// One of the first monitors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its number.
    pub id: u64,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A pool that is made by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bootstrap {
    /// How many nodes must have registered. Default: 3.
    pub nodes: usize,
    /// The pool's name. Default: `default`. If there is a pool of that name, nothing is made.
    pub pool: String,
    /// Copies. Default: 3.
    pub size: u8,
    /// Placement groups. Default: 32.
    pub pg_num: u32,
    /// `"host"`, `"osd"`, or `{ rule = 3 }` for a CRUSH rule. Default: `"host"`.
    pub failure_domain: FailureDomain,
    /// `majority` or `all-in-sync`. Default: `majority`.
    pub ack: Ack,
}

impl Default for Bootstrap {
    fn default() -> Bootstrap {
        Bootstrap {
            nodes: 3,
            pool: "default".to_owned(),
            size: POOL_SIZE_DEFAULT,
            pg_num: PG_NUM_DEFAULT,
            failure_domain: FailureDomain::Host,
            ack: Ack::Majority,
        }
    }
}

impl MonitorConfig {
    /// Refuses what cannot work, in words that say which key and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        let loopback = self.listen.ip().is_loopback();
        anyhow::ensure!(
            loopback || self.allow_plaintext,
            "listen = \"{}\" is not loopback, and connections are not encrypted yet: listen on 127.0.0.1, or set \
             allow_plaintext = true if everybody on that network may read and change everything",
            self.listen
        );
        self.metrics_listen.check(self.allow_plaintext)?;
        anyhow::ensure!(
            trefoil_core::map::is_name(&self.cluster_name),
            "cluster_name = {:?} is no name: use letters, digits, '.', '_' and '-'",
            self.cluster_name
        );
        anyhow::ensure!(
            (500..=600_000).contains(&self.lease_ms),
            "lease_ms = {}: choose 500 to 600000",
            self.lease_ms
        );
        // 1/8 of the lease covers clocks of which one runs 12 % slower: far beyond what is broken.
        anyhow::ensure!(
            self.lease_margin_ms >= self.lease_ms / 8 && self.lease_margin_ms <= 600_000,
            "lease_margin_ms = {}: choose at least an eighth of lease_ms ({}), at most 600000",
            self.lease_margin_ms,
            self.lease_ms / 8
        );
        anyhow::ensure!(
            self.renew_ms >= 50 && self.renew_ms <= self.lease_ms / 2,
            "renew_ms = {}: choose 50 to half of lease_ms, so that one lost renewal does not lose a lease",
            self.renew_ms
        );
        anyhow::ensure!(
            (100..=3_600_000).contains(&self.node_timeout_ms),
            "node_timeout_ms = {}: choose 100 to 3600000",
            self.node_timeout_ms
        );
        anyhow::ensure!(
            self.out_after_ms == 0 || (10_000..=31_536_000_000).contains(&self.out_after_ms),
            "out_after_ms = {}: choose 10000 to 31536000000 (a year), or 0 for never",
            self.out_after_ms
        );
        anyhow::ensure!(
            (50..=60_000).contains(&self.election_ms),
            "election_ms = {}: choose 50 to 60000",
            self.election_ms
        );
        anyhow::ensure!(
            (16..=1_000_000).contains(&self.snapshot_entries),
            "snapshot_entries = {}: choose 16 to 1000000",
            self.snapshot_entries
        );
        self.check_peers()?;
        anyhow::ensure!(
            (1..=65_536).contains(&self.connections_max),
            "connections_max = {}: choose 1 to 65536",
            self.connections_max
        );
        Ok(())
    }

    fn check_peers(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.id >= 1, "id = 0: monitors are numbered from 1");
        anyhow::ensure!(
            self.join.len() <= MONITORS_MAX,
            "join names {} monitors: a cluster has at most {MONITORS_MAX}",
            self.join.len()
        );
        if self.peers.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(
            self.join.is_empty(),
            "`peers` founds a cluster and `join` is for one that is there: keep one of them"
        );
        let ids: BTreeSet<u64> = self.peers.iter().map(|peer| peer.id).collect();
        let addresses: BTreeSet<SocketAddr> = self.peers.iter().map(|peer| peer.address).collect();
        anyhow::ensure!(
            ids.len() == self.peers.len() && addresses.len() == self.peers.len() && !ids.contains(&0),
            "peers: give each monitor a number of its own from 1, and an address of its own"
        );
        anyhow::ensure!(
            matches!(self.peers.len(), 1 | 3 | 5),
            "peers names {} monitors: 3 go on without one of them, 5 without two; any other number is worse",
            self.peers.len()
        );
        anyhow::ensure!(
            ids.contains(&self.id),
            "peers does not name this monitor, {}: all of them have the same list",
            self.id
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_refused() {
        let mut good = MonitorConfig::default();
        good.check().unwrap();
        type Change = fn(&mut MonitorConfig);
        let peer = |id: u64| PeerConfig { id, address: ([127, 0, 0, 1], id as u16).into() };
        let bad: [(Change, &str); 13] = [
            (|c| c.id = 0, "id = 0"),
            (|c| c.election_ms = 1, "election_ms"),
            (|c| c.snapshot_entries = 1, "snapshot_entries"),
            (|c| c.peers.truncate(2), "peers names 2"),
            (|c| c.peers[1].id = 1, "a number of its own"),
            (|c| c.join = vec![c.listen], "keep one of them"),
            (|c| c.metrics_listen = "0.0.0.0:1".parse().unwrap(), "metrics_listen"),
            (|c| c.listen = ([0, 0, 0, 0], 1).into(), "allow_plaintext"),
            (|c| c.cluster_name = "a b".to_owned(), "cluster_name"),
            (|c| c.lease_ms = 1, "lease_ms"),
            (|c| c.lease_margin_ms = 1, "lease_margin_ms"),
            (|c| c.renew_ms = 4000, "renew_ms"),
            (|c| c.connections_max = 0, "connections_max"),
        ];
        good.peers = vec![peer(1), peer(2), peer(3)];
        good.check().unwrap();
        let stranger = MonitorConfig { id: 4, ..good.clone() };
        assert!(stranger.check().unwrap_err().to_string().contains("does not name this monitor, 4"));
        for (change, key) in bad {
            let mut config = good.clone();
            change(&mut config);
            let text = config.check().unwrap_err().to_string();
            assert!(text.contains(key), "{text}");
        }
        let mut open = good;
        open.listen = ([0, 0, 0, 0], 1).into();
        open.allow_plaintext = true;
        open.check().unwrap();
    }
}
