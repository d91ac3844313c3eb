//! The configuration of a storage node.

use crate::daemon::scrub::{ScrubPlan, Window};
use crate::device::file::Engine;
use crate::store::StoreOptions;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use trefoil_core::node::BudgetConfig;

/// What `trefoil storage-node --config FILE` reads. Unknown keys are refused. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// The device: a block device or a file.
    pub device: PathBuf,
    /// A directory for the index, the node's id and the last map. It may be lost: all of it is made
    /// again, but then the node cannot start while the monitors are away.
    pub state_dir: PathBuf,
    /// Where front ends and other nodes connect.
    pub listen: SocketAddr,
    /// The address that others are told, where it is not `listen`.
    pub advertise: Option<SocketAddr>,
    /// The monitors' addresses.
    pub monitors: Vec<SocketAddr>,
    /// The CRUSH bucket of type `host` that the node is put in at its first start.
    pub host: String,
    /// Its device class (`ssd`, `hdd`, ...).
    pub class: Option<String>,
    /// Formats the device if there is nothing on it, or the file is not there.
    pub format_if_missing: bool,
    /// Bytes to format; a file is made that long. Default: all that is there.
    pub size: Option<u64>,
    /// Bytes of memory that the process may take. What it keeps has its share of it: pages of block tables
    /// 3/8, reads under way 1/4, writes that are not durable yet 1/8, changes that wait for a page 1/16;
    /// 3/16 are left for repairs, connections and the objects' heads (65 MB per TiB of data).
    pub memory_bytes: u64,
    /// Bytes of memory for pages of block tables, where it is not to be the share.
    pub table_cache_bytes: Option<u64>,
    /// Bytes of memory for reads under way, where it is not to be the share.
    pub read_memory_bytes: Option<u64>,
    /// Bytes of memory for writes that are not durable yet, where it is not to be the share.
    pub pending_bytes: Option<u64>,
    /// Bytes of log after which a checkpoint is taken, at the latest.
    pub checkpoint_bytes: u64,
    /// Milliseconds that the replay of the log at a start after a crash may take, by estimate: a checkpoint is
    /// taken before it would take longer.
    pub replay_ms_max: u64,
    /// Bytes per second that repairs may always read here, and as many that they may bring here: recovery goes
    /// on however busy clients are.
    pub recovery_floor: u64,
    /// The same when clients leave the node idle. In between repairs take what does not slow clients down.
    pub recovery_ceiling: u64,
    /// Connections of front ends and nodes at once.
    pub connections_max: usize,
    /// Listens beyond loopback although there is no encryption yet.
    pub allow_plaintext: bool,
    /// `pread` and `pwrite` on threads instead of io_uring.
    pub no_io_uring: bool,
    /// Microseconds for which the node looks for more work before it sleeps, while little is under way and
    /// work has been coming at such intervals: lower latency at low depth for processor time. 0: never.
    pub busy_poll_us: u64,
    /// Hours between two light scrubs of a placement group (its copies are compared); 0: never.
    pub scrub_light_hours: u64,
    /// Hours between two deep scrubs of a placement group (every block is read, too); 0: never.
    pub scrub_deep_hours: u64,
    /// Bytes per second that deep scrubs read at most. An eighth of it while clients are served.
    pub scrub_bytes_per_s: u64,
    /// Hours of the day, in UTC, in which scrubs begin by themselves: "FROM-TO", as in "22-6". Empty: any.
    pub scrub_window: String,
    /// Where metrics are served: ADDR:PORT, or "off". Default: on 127.0.0.1, 1000 above the port of `listen`.
    pub metrics_listen: trefoil_metrics::Listen,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        let (store, budget) = (StoreOptions::default(), BudgetConfig::default());
        NodeConfig {
            device: PathBuf::new(),
            state_dir: PathBuf::new(),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            monitors: Vec::new(),
            host: "localhost".to_owned(),
            class: None,
            format_if_missing: false,
            size: None,
            memory_bytes: 512 << 20,
            table_cache_bytes: None,
            read_memory_bytes: None,
            pending_bytes: None,
            checkpoint_bytes: store.checkpoint_bytes,
            replay_ms_max: store.replay_max.as_millis() as u64,
            recovery_floor: budget.floor,
            recovery_ceiling: budget.ceiling,
            connections_max: 1024,
            allow_plaintext: false,
            no_io_uring: false,
            busy_poll_us: trefoil_transport::BUSY_POLL_US,
            scrub_light_hours: 24,
            scrub_deep_hours: 7 * 24,
            scrub_bytes_per_s: 20 << 20,
            scrub_window: String::new(),
            metrics_listen: trefoil_metrics::Listen::Default,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to store on.
    #[error("`device` is not set: name the block device or file that this node stores on")]
    NoDevice,
    /// No place for the index.
    #[error("`state_dir` is not set: name a directory for the node's index")]
    NoStateDir,
    /// No cluster.
    #[error("`monitors` is empty: give the address of at least one monitor")]
    NoMonitors,
    /// Open to the network.
    #[error(
        "{0} is reachable from other hosts and there is no encryption yet: listen on loopback, or set \
         `allow_plaintext = true` if the network is trusted"
    )]
    Plaintext(SocketAddr),
    /// Nobody could be told where the node is.
    #[error("`listen` is {0}, which is no address to connect to: set `advertise`")]
    Unspecified(SocketAddr),
    /// The name is none.
    #[error("`host` is {0:?}: use letters, digits, '.', '_' and '-', beginning with a letter or digit")]
    BadHost(String),
    /// A limit that makes no sense.
    #[error("`{0}` is too small: at least {1}")]
    TooSmall(&'static str, u64),
    /// A limit that makes no sense, either.
    #[error("`{0}` is too large: at most {1}")]
    TooLarge(&'static str, u64),
    /// The window for scrub is none.
    #[error("`scrub_window` is {0:?}: give two hours of the day, as in \"22-6\", or nothing for any time")]
    BadWindow(String),
    /// More was given away than there is.
    #[error(
        "table pages, reads and pending writes may take {0} bytes, and `memory_bytes` is {1}: raise it to {2} \
         or more, or lower `table_cache_bytes`, `read_memory_bytes` or `pending_bytes`"
    )]
    TooMuchMemory(u64, u64, u64),
    /// Metrics, open to the network.
    #[error(transparent)]
    OpenMetrics(#[from] trefoil_metrics::NotLoopback),
}

/// Bytes that a change which waits for a page of its table takes, as far as they are counted.
const QUEUED_CHANGE_BYTES: u64 = 128;
/// A repair of an object must not take so long that its node counts as a laggard meanwhile.
const RECOVERY_FLOOR_MIN: u64 = 1 << 20;
/// The least that a node can work with.
const MEMORY_MIN: u64 = 128 << 20;
/// The least that deep scrubs may read, in bytes per second: a piece of an object in each second.
const SCRUB_RATE_MIN: u64 = 512 << 10;
/// Bytes of memory per object of 4 MiB: its head, and where its pages are.
const OBJECT_BYTES: u64 = 250;

impl NodeConfig {
    /// Looks for what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.device.as_os_str().is_empty() {
            return Err(ConfigError::NoDevice);
        }
        if self.state_dir.as_os_str().is_empty() {
            return Err(ConfigError::NoStateDir);
        }
        if self.monitors.is_empty() {
            return Err(ConfigError::NoMonitors);
        }
        if !self.listen.ip().is_loopback() && !self.allow_plaintext {
            return Err(ConfigError::Plaintext(self.listen));
        }
        self.metrics_listen.check(self.allow_plaintext)?;
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(ConfigError::Unspecified(self.listen));
        }
        if !trefoil_core::map::is_name(&self.host) {
            return Err(ConfigError::BadHost(self.host.clone()));
        }
        let least = [
            ("memory_bytes", self.memory_bytes, MEMORY_MIN),
            ("table_cache_bytes", self.table_cache(), 1 << 20),
            ("read_memory_bytes", self.read_memory(), 8 << 20),
            ("pending_bytes", self.pending(), 8 << 20),
            ("checkpoint_bytes", self.checkpoint_bytes, 1 << 20),
            ("replay_ms_max", self.replay_ms_max, 100),
            ("recovery_floor", self.recovery_floor, RECOVERY_FLOOR_MIN),
            ("recovery_ceiling", self.recovery_ceiling, self.recovery_floor),
            ("connections_max", self.connections_max as u64, 8),
            ("scrub_bytes_per_s", self.scrub_bytes_per_s, SCRUB_RATE_MIN),
        ];
        if let Some((key, _, least)) = least.into_iter().find(|(_, value, least)| value < least) {
            return Err(ConfigError::TooSmall(key, least));
        }
        if self.busy_poll_us > trefoil_transport::BUSY_POLL_US_MAX {
            return Err(ConfigError::TooLarge("busy_poll_us", trefoil_transport::BUSY_POLL_US_MAX));
        }
        if !self.scrub_window.is_empty() && Window::parse(&self.scrub_window).is_none() {
            return Err(ConfigError::BadWindow(self.scrub_window.clone()));
        }
        let shares = [self.table_cache(), self.read_memory(), self.pending()];
        let all = shares.into_iter().fold(0, u64::saturating_add);
        // By the shares these are three quarters. An eighth is the least to leave for all the rest.
        if all > self.memory_bytes / 8 * 7 {
            return Err(ConfigError::TooMuchMemory(all, self.memory_bytes, all.saturating_add(all / 7 + 8)));
        }
        Ok(())
    }

    fn table_cache(&self) -> u64 {
        self.table_cache_bytes.unwrap_or(self.memory_bytes / 8 * 3)
    }
    fn read_memory(&self) -> u64 {
        self.read_memory_bytes.unwrap_or(self.memory_bytes / 4)
    }
    fn pending(&self) -> u64 {
        self.pending_bytes.unwrap_or(self.memory_bytes / 8)
    }

    /// Memory, in bytes, that a device of so many bytes may need when it is full of objects of 4 MiB, beyond
    /// what is left of `memory_bytes`; 0: it will do.
    pub(crate) fn memory_short(&self, device: u64) -> u64 {
        let rest = self.memory_bytes.saturating_sub(self.table_cache() + self.read_memory() + self.pending());
        (device / trefoil_core::limits::OBJECT_SIZE_DEFAULT * OBJECT_BYTES).saturating_sub(rest)
    }

    /// What recovery may take.
    pub(crate) fn budget(&self) -> BudgetConfig {
        BudgetConfig { floor: self.recovery_floor, ceiling: self.recovery_ceiling, ..BudgetConfig::default() }
    }

    /// When and how fast placement groups are scrubbed.
    pub(crate) fn scrub_plan(&self) -> ScrubPlan {
        ScrubPlan {
            light: self.scrub_light_hours.saturating_mul(3600),
            deep: self.scrub_deep_hours.saturating_mul(3600),
            bytes_per_s: self.scrub_bytes_per_s,
            window: Window::parse(&self.scrub_window),
        }
    }

    /// The store's part of it.
    pub(crate) fn store_options(&self) -> StoreOptions {
        StoreOptions {
            table_cache_bytes: self.table_cache(),
            read_bytes_max: self.read_memory(),
            pending_bytes_max: self.pending(),
            queued_changes_max: (self.memory_bytes / 16 / QUEUED_CHANGE_BYTES) as usize,
            checkpoint_bytes: self.checkpoint_bytes,
            replay_max: Duration::from_millis(self.replay_ms_max),
            engine: if self.no_io_uring { Engine::Blocking } else { Engine::Auto },
            ..StoreOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> NodeConfig {
        NodeConfig {
            device: "/dev/x".into(),
            state_dir: "/var/x".into(),
            monitors: vec![([127, 0, 0, 1], 1).into()],
            ..NodeConfig::default()
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert_eq!(good().check(), Ok(()));
        assert_eq!(NodeConfig { device: "".into(), ..good() }.check(), Err(ConfigError::NoDevice));
        assert_eq!(NodeConfig { monitors: vec![], ..good() }.check(), Err(ConfigError::NoMonitors));
        assert_eq!(
            NodeConfig { host: "a b".into(), ..good() }.check(),
            Err(ConfigError::BadHost("a b".into()))
        );
        let any: SocketAddr = ([0, 0, 0, 0], 1).into();
        assert_eq!(NodeConfig { listen: any, ..good() }.check(), Err(ConfigError::Plaintext(any)));
        let open = NodeConfig { listen: any, allow_plaintext: true, ..good() };
        assert_eq!(open.check(), Err(ConfigError::Unspecified(any)));
        let small = NodeConfig { table_cache_bytes: Some(1), ..good() };
        assert!(matches!(small.check(), Err(ConfigError::TooSmall("table_cache_bytes", _))));
        for (window, fine) in
            [("22-6", true), ("0-24", true), ("6-6", false), ("25-3", false), ("night", false)]
        {
            let config = NodeConfig { scrub_window: window.to_owned(), ..good() };
            assert_eq!(config.check().is_ok(), fine, "{window}");
        }
        let long = NodeConfig { busy_poll_us: 1_000_000, ..good() };
        assert!(matches!(long.check(), Err(ConfigError::TooLarge("busy_poll_us", _))));
    }

    #[test]
    fn memory_is_shared_out_and_not_more_than_there_is() {
        for memory in [MEMORY_MIN, 512 << 20, 7 << 30] {
            let config = NodeConfig { memory_bytes: memory, ..good() };
            assert_eq!(config.check(), Ok(()));
            let store = config.store_options();
            let queued = store.queued_changes_max as u64 * QUEUED_CHANGE_BYTES;
            let all = store.table_cache_bytes + store.read_bytes_max + store.pending_bytes_max + queued;
            assert!(all <= memory / 16 * 13, "{all} of {memory}");
            assert!(store.pending_bytes_max >= 2 * store.batch_bytes_max);
        }
        let less = NodeConfig { memory_bytes: MEMORY_MIN - 1, ..good() };
        assert_eq!(less.check(), Err(ConfigError::TooSmall("memory_bytes", MEMORY_MIN)));
        let config = NodeConfig { table_cache_bytes: Some(600 << 20), ..good() };
        let Err(ConfigError::TooMuchMemory(all, _, enough)) = config.check() else { panic!() };
        assert!(all > 600 << 20);
        let keys = (config.read_memory_bytes, config.pending_bytes);
        assert_eq!(keys, (None, None));
        // What it says is enough, with the other shares as they are.
        let (read, pending) = (Some(config.read_memory()), Some(config.pending()));
        let more = NodeConfig {
            memory_bytes: enough,
            read_memory_bytes: read,
            pending_bytes: pending,
            ..config.clone()
        };
        assert_eq!(more.check(), Ok(()));
        assert_eq!(more.store_options().table_cache_bytes, 600 << 20, "an explicit key counts");
        assert_eq!(good().memory_short(1 << 40), 0);
        assert!(good().memory_short(4 << 40) > 0);
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<NodeConfig>(r#"{"host": "a"}"#).is_ok());
        assert!(serde_json::from_str::<NodeConfig>(r#"{"hosts": "a"}"#).is_err());
    }
}
