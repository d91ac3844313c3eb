//! The daemons that are configured on a host, and what they may need of it when they are busy.
//!
//! Needs are worked out from the limits that the daemons keep themselves, so that a host is held against
//! what its daemons will take at most, not against what they take on a quiet day.

use super::host::Host;
use super::{Finding, Level};
use crate::config;
use crate::daemon::{Daemon, Role};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use trefoil_monitor::MonitorConfig;
use trefoil_nbd::NbdConfig;
use trefoil_storage_node::NodeConfig;

/// Directories of configurations, one for each role, below the directory of them all.
pub const ROLE_DIRS: [(&str, Role); 3] =
    [("monitor", Role::Monitor), ("storage-node", Role::StorageNode), ("nbd", Role::Nbd)];

/// Configurations in a directory that are looked at; a host has one for each device.
const FILES_MAX: usize = 1024;
/// Storage nodes that one daemon is connected to, at most, as far as a host is held to it. In clusters of
/// more than a thousand nodes raise LimitNOFILE= by what is more.
const NODES_CONNECTED: u64 = 1024;
/// Descriptors beside connections: device, ring, index, log, epoll, and some that are just being closed.
const OWN_DESCRIPTORS: u64 = 256;
/// Bytes of memory that a monitor or a front end is counted with; they have no setting for it.
const MEMORY_OF_OTHERS: u64 = 256 << 20;
/// What each further shard of a front end adds: a map of its own and buffers; and its runtime's descriptors.
const MEMORY_PER_SHARD: u64 = 32 << 20;
const DESCRIPTORS_PER_SHARD: u64 = 16;

/// A configured daemon.
#[derive(Debug)]
pub struct Configured {
    /// Where from; none of a daemon that is just starting.
    pub file: Option<PathBuf>,
    /// Its configuration.
    pub daemon: Daemon,
}

/// All of a host's.
#[derive(Debug, Default)]
pub struct Daemons {
    /// Those that can run.
    pub all: Vec<Configured>,
    /// Files that are no configuration, and why.
    pub broken: Vec<(PathBuf, String)>,
}

/// What a daemon may take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Connections, from and to it.
    pub connections: u64,
    /// File descriptors.
    pub descriptors: u64,
    /// Bytes of memory.
    pub memory: u64,
}

impl Need {
    /// Of a daemon with this configuration.
    pub fn of(daemon: &Daemon) -> Need {
        // What a file says may be anything.
        let (own, nodes, memory, shards) = match daemon {
            Daemon::Monitor(config) => (config.connections_max, 0, MEMORY_OF_OTHERS, 1),
            Daemon::StorageNode(config) => (config.connections_max, NODES_CONNECTED, config.memory_bytes, 1),
            Daemon::Nbd(config) => {
                let shards = config.shards as u64;
                let more = shards.saturating_sub(1).saturating_mul(MEMORY_PER_SHARD);
                let nodes = shards.saturating_mul(NODES_CONNECTED);
                (config.connections_max, nodes, MEMORY_OF_OTHERS.saturating_add(more), shards)
            }
        };
        let connections = (own as u64).saturating_add(nodes);
        let others =
            OWN_DESCRIPTORS.saturating_add(shards.saturating_sub(1).saturating_mul(DESCRIPTORS_PER_SHARD));
        Need { connections, descriptors: connections.saturating_add(others), memory }
    }
}

impl Configured {
    /// What it is.
    pub fn role(&self) -> Role {
        match &self.daemon {
            Daemon::Monitor(_) => Role::Monitor,
            Daemon::StorageNode(_) => Role::StorageNode,
            Daemon::Nbd(_) => Role::Nbd,
        }
    }
    /// What to call it.
    pub fn name(&self) -> String {
        match self.file.as_deref().and_then(Path::file_stem) {
            Some(stem) => format!("{} {}", self.role(), stem.to_string_lossy()),
            None => self.role().to_string(),
        }
    }
    /// Addresses that it listens on.
    pub fn listens(&self) -> Vec<SocketAddr> {
        match &self.daemon {
            Daemon::Monitor(config) => vec![config.listen],
            Daemon::StorageNode(config) => vec![config.listen],
            Daemon::Nbd(config) => config.listen.clone(),
        }
    }
    /// Monitors that it is told of.
    pub fn monitors(&self) -> &[SocketAddr] {
        match &self.daemon {
            Daemon::Monitor(_) => &[],
            Daemon::StorageNode(config) => &config.monitors,
            Daemon::Nbd(config) => &config.monitors,
        }
    }
    /// The directory that it writes to.
    pub fn data_dir(&self) -> Option<&Path> {
        match &self.daemon {
            Daemon::Monitor(config) => Some(&config.data_dir),
            Daemon::StorageNode(config) => Some(&config.state_dir),
            Daemon::Nbd(_) => None,
        }
    }
    /// The configuration of a storage node.
    pub fn storage_node(&self) -> Option<&NodeConfig> {
        match &self.daemon {
            Daemon::StorageNode(config) => Some(config),
            _ => None,
        }
    }
    fn allows_plaintext(&self) -> bool {
        match &self.daemon {
            Daemon::Monitor(config) => config.allow_plaintext,
            Daemon::StorageNode(config) => config.allow_plaintext,
            Daemon::Nbd(config) => config.allow_plaintext,
        }
    }
}

impl Daemons {
    /// One that is just starting.
    pub fn one(daemon: &Daemon) -> Daemons {
        Daemons { all: vec![Configured { file: None, daemon: daemon.clone() }], broken: Vec::new() }
    }

    /// Everything in a directory as `trefoil init` makes it: `monitor/*.toml`, `storage-node/*.toml`,
    /// `nbd/*.toml`.
    pub fn in_directory(host: &Host, directory: &Path) -> Daemons {
        let mut daemons = Daemons::default();
        for (name, role) in ROLE_DIRS {
            let directory = directory.join(name);
            let names = host.names(&directory);
            for name in names.iter().filter(|name| name.ends_with(".toml")).take(FILES_MAX) {
                daemons.load(directory.join(name), &host.path(directory.join(name)), role);
            }
        }
        daemons
    }

    /// Adds one file; what it is the configuration of is seen from its keys.
    pub fn add_file(&mut self, path: &Path) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let has = |keys: &[&str]| {
            let key = |line: &str| line.split('=').next().map(|key| key.trim().to_owned());
            text.lines().filter_map(key).any(|key| keys.contains(&key.as_str()))
        };
        let role = if has(&["device", "state_dir"]) {
            Role::StorageNode
        } else if has(&["data_dir", "cluster_name", "node_timeout_ms", "lease_ms"]) {
            Role::Monitor
        } else {
            Role::Nbd
        };
        self.load(path.to_owned(), path, role);
    }

    fn load(&mut self, shown: PathBuf, path: &Path, role: Role) {
        let told = |failure: crate::failure::Failure| failure.line().unwrap_or_default();
        let loaded = match role {
            Role::Monitor => config::load::<MonitorConfig>(path)
                .map_err(told)
                .and_then(|c| c.check().map(|()| Daemon::Monitor(c)).map_err(|e| e.to_string())),
            Role::StorageNode => config::load::<NodeConfig>(path)
                .map_err(told)
                .and_then(|c| c.check().map(|()| Daemon::StorageNode(c)).map_err(|e| e.to_string())),
            Role::Nbd => config::load::<NbdConfig>(path)
                .map_err(told)
                .and_then(|c| c.check().map(|()| Daemon::Nbd(c)).map_err(|e| e.to_string())),
        };
        match loaded {
            Ok(daemon) => self.all.push(Configured { file: Some(shown), daemon }),
            Err(why) => self.broken.push((shown, why)),
        }
    }

    /// Configured storage nodes, with their names.
    pub fn storage_nodes(&self) -> impl Iterator<Item = (String, &NodeConfig)> {
        self.all.iter().filter_map(|it| Some((it.name(), it.storage_node()?)))
    }
    /// What all of them may take together.
    pub fn need(&self) -> Need {
        let none = Need { connections: 0, descriptors: 0, memory: 0 };
        self.all.iter().map(|it| Need::of(&it.daemon)).fold(none, |sum, need| Need {
            connections: sum.connections.saturating_add(need.connections),
            descriptors: sum.descriptors.saturating_add(need.descriptors),
            memory: sum.memory.saturating_add(need.memory),
        })
    }
    /// TCP ports of this host's daemons and of the monitors.
    pub fn ports(&self) -> Vec<u16> {
        let listens = self.all.iter().flat_map(Configured::listens);
        let monitors = self.all.iter().flat_map(|it| it.monitors().iter().copied());
        let mut ports: Vec<u16> = listens.chain(monitors).map(|address| address.port()).collect();
        ports.retain(|port| *port != 0);
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// The configurations themselves.
pub fn findings(_: &Host, daemons: &Daemons) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, why) in &daemons.broken {
        let remedy = "mend the file: the daemon does not start with it";
        findings.push(Finding::bad("CONFIG", Level::Error, file.display().to_string(), why, remedy));
    }
    if daemons.all.is_empty() {
        if daemons.broken.is_empty() {
            findings.push(Finding::ok("CONFIG", "", "no daemon is configured: the host itself is looked at"));
        }
        return findings;
    }
    findings.extend(conflicts(daemons));
    let count = |role| daemons.all.iter().filter(|it| it.role() == role).count();
    let (monitors, nodes, fronts) = (count(Role::Monitor), count(Role::StorageNode), count(Role::Nbd));
    if findings.is_empty() {
        let found = format!("{monitors} monitor, {nodes} storage node, {fronts} nbd: each file can be used");
        findings.push(Finding::ok("CONFIG", "", found));
    }
    let open: Vec<String> = daemons
        .all
        .iter()
        .filter(|it| it.allows_plaintext() && it.listens().iter().any(|at| !at.ip().is_loopback()))
        .map(Configured::name)
        .collect();
    if !open.is_empty() {
        findings.push(Finding::bad(
            "PLAINTEXT",
            Level::Warn,
            open.join(", "),
            "connections between hosts are not encrypted, and nobody has to say who he is: whoever reaches these \
             ports can read and change every volume",
            "keep them on a network of their own (a VLAN, a firewall) until this version is followed by one with TLS",
        ));
    }
    findings
}

/// Two daemons that want the same thing.
fn conflicts(daemons: &Daemons) -> Vec<Finding> {
    let mut wanted: Vec<(String, String)> = Vec::new();
    for it in &daemons.all {
        let name = it.name();
        wanted
            .extend(it.listens().iter().filter(|at| at.port() != 0).map(|at| (at.to_string(), name.clone())));
        wanted.extend(it.data_dir().map(|dir| (dir.display().to_string(), name.clone())));
        wanted.extend(it.storage_node().map(|config| (config.device.display().to_string(), name.clone())));
    }
    wanted.sort();
    let pairs = wanted.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    pairs
        .map(|pair| {
            let found = format!("{} and {} both want it", pair[0].1, pair[1].1);
            Finding::bad("CONFLICT", Level::Error, &pair[0].0, found, "give each of them its own")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, levels};
    use super::*;

    #[test]
    fn what_is_configured_is_found_and_what_is_broken_is_told() {
        let fake = Fake::new();
        fake.config("monitor/0.toml", "listen = \"127.0.0.1:10800\"\n");
        fake.config("nbd/0.toml", "monitors = [\"127.0.0.1:10800\"]\nsocket = \"/run/x\"\n");
        fake.config("storage-node/notes.txt", "not looked at");
        let daemons = fake.daemons();
        assert_eq!((daemons.all.len(), daemons.broken.len()), (2, 0));
        assert_eq!(daemons.ports(), [10800]);
        assert_eq!(levels(&findings(&fake.host(), &daemons)), [("CONFIG", Level::Ok)]);
        fake.config("storage-node/0.toml", "devise = \"/dev/x\"\n");
        let found = findings(&fake.host(), &fake.daemons());
        assert_eq!(found[0].level, Level::Error);
        assert!(found[0].found.contains("unknown field `devise`"), "{found:?}");
        assert_eq!(found[0].about, "/etc/trefoil/storage-node/0.toml", "not where the copy is");
    }

    #[test]
    fn two_that_want_the_same_are_told() {
        let fake = Fake::new();
        let node = |dir: &str| {
            format!(
                "device = \"/dev/sdb\"\nstate_dir = \"/x/{dir}\"\nlisten = \"127.0.0.1:1\"\n\
                 monitors = [\"127.0.0.1:2\"]\n"
            )
        };
        fake.config("storage-node/0.toml", &node("a"));
        fake.config("storage-node/1.toml", &node("b"));
        let found = findings(&fake.host(), &fake.daemons());
        let about: Vec<&str> = found.iter().map(|it| it.about.as_str()).collect();
        assert_eq!(about, ["/dev/sdb", "127.0.0.1:1"]);
        assert!(found.iter().all(|it| it.code == "CONFLICT" && it.level == Level::Error));
    }

    #[test]
    fn plaintext_between_hosts_is_said() {
        let fake = Fake::new();
        fake.config("monitor/0.toml", "listen = \"192.0.2.1:10800\"\nallow_plaintext = true\n");
        let found = findings(&fake.host(), &fake.daemons());
        assert_eq!(levels(&found), [("CONFIG", Level::Ok), ("PLAINTEXT", Level::Warn)]);
        // Without leave it is no configuration at all.
        fake.config("monitor/0.toml", "listen = \"192.0.2.1:10800\"\n");
        assert_eq!(levels(&findings(&fake.host(), &fake.daemons())), [("CONFIG", Level::Error)]);
    }

    #[test]
    fn needs_follow_from_the_daemons_own_limits() {
        let config = NbdConfig { connections_max: 5000, ..NbdConfig::default() };
        let need = Need::of(&Daemon::Nbd(config));
        assert_eq!(need.descriptors, 5000 + NODES_CONNECTED + OWN_DESCRIPTORS);
        let config = NbdConfig { connections_max: 5000, shards: 4, ..NbdConfig::default() };
        let need = Need::of(&Daemon::Nbd(config));
        assert_eq!(need.connections, 5000 + 4 * NODES_CONNECTED);
        assert_eq!(need.descriptors, need.connections + OWN_DESCRIPTORS + 3 * DESCRIPTORS_PER_SHARD);
        assert_eq!(need.memory, MEMORY_OF_OTHERS + 3 * MEMORY_PER_SHARD);
        let config = NbdConfig { connections_max: usize::MAX, ..NbdConfig::default() };
        assert_eq!(Need::of(&Daemon::Nbd(config)).descriptors, u64::MAX);
        let node = Daemon::StorageNode(NodeConfig::default());
        assert_eq!(Need::of(&node).memory, 512 << 20);
        // The units' limit holds what the defaults may need, twice over.
        for daemon in [Daemon::Monitor(MonitorConfig::default()), node, Daemon::Nbd(NbdConfig::default())] {
            assert!(2 * Need::of(&daemon).descriptors <= crate::limits::WANTED);
        }
    }
}
