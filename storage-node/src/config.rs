//! The configuration of a storage node.

use crate::device::file::Engine;
use crate::store::StoreOptions;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

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
    /// Bytes of memory for pages of block tables.
    pub table_cache_bytes: u64,
    /// Bytes of memory for reads under way.
    pub read_memory_bytes: u64,
    /// Bytes of log after which a checkpoint is taken: bounds the time that a start takes after a crash.
    pub checkpoint_bytes: u64,
    /// Connections of front ends and nodes at once.
    pub connections_max: usize,
    /// Listens beyond loopback although there is no encryption yet.
    pub allow_plaintext: bool,
    /// `pread` and `pwrite` on threads instead of io_uring.
    pub no_io_uring: bool,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        let store = StoreOptions::default();
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
            table_cache_bytes: store.table_cache_bytes,
            read_memory_bytes: store.read_bytes_max,
            checkpoint_bytes: store.checkpoint_bytes,
            connections_max: 1024,
            allow_plaintext: false,
            no_io_uring: false,
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
}

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
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(ConfigError::Unspecified(self.listen));
        }
        if !trefoil_core::map::is_name(&self.host) {
            return Err(ConfigError::BadHost(self.host.clone()));
        }
        let least = [
            ("table_cache_bytes", self.table_cache_bytes, 1 << 20),
            ("read_memory_bytes", self.read_memory_bytes, 8 << 20),
            ("checkpoint_bytes", self.checkpoint_bytes, 1 << 20),
            ("connections_max", self.connections_max as u64, 8),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            Some((key, _, least)) => Err(ConfigError::TooSmall(key, least)),
            None => Ok(()),
        }
    }

    /// The store's part of it.
    pub(crate) fn store_options(&self) -> StoreOptions {
        StoreOptions {
            table_cache_bytes: self.table_cache_bytes,
            read_bytes_max: self.read_memory_bytes,
            checkpoint_bytes: self.checkpoint_bytes,
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
        let small = NodeConfig { table_cache_bytes: 1, ..good() };
        assert!(matches!(small.check(), Err(ConfigError::TooSmall("table_cache_bytes", _))));
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<NodeConfig>(r#"{"host": "a"}"#).is_ok());
        assert!(serde_json::from_str::<NodeConfig>(r#"{"hosts": "a"}"#).is_err());
    }
}
