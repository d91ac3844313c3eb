//! The configuration of a front end.

use crate::shards::SHARDS_MAX;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What `trefoil nbd --config FILE` reads. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdConfig {
    /// TCP addresses to serve NBD on. Whoever can reach them can use every volume.
    pub listen: Vec<SocketAddr>,
    /// A unix socket to serve NBD on.
    pub socket: Option<PathBuf>,
    /// The monitors' addresses.
    pub monitors: Vec<SocketAddr>,
    /// Names this front end to people, as the holder of its volumes. Default: host name and process id.
    pub name: Option<String>,
    /// Volumes that are exported; default: all.
    pub volumes: Option<Vec<String>>,
    /// Heals volumes that nobody has attached, when the monitors ask for it.
    pub heal: bool,
    /// Threads that serve volumes, each volume by one of them: at most [`SHARDS_MAX`]. One core's worth of requests
    /// needs one; each is a front end of its own to nodes and monitors.
    pub shards: usize,
    /// NBD connections at once, of all shards.
    pub connections_max: usize,
    /// Listens beyond loopback although there is no encryption yet.
    pub allow_plaintext: bool,
    /// Microseconds for which the front end looks for more work before it sleeps, while little is under way
    /// and work has been coming at such intervals: lower latency at low depth for processor time. 0: never.
    pub busy_poll_us: u64,
    /// Where metrics are served: ADDR:PORT, or "off". Default: on 127.0.0.1, 1000 above the port of the first of
    /// `listen`.
    pub metrics_listen: trefoil_metrics::Listen,
}

impl Default for NbdConfig {
    fn default() -> NbdConfig {
        NbdConfig {
            listen: Vec::new(),
            socket: None,
            monitors: Vec::new(),
            name: None,
            volumes: None,
            heal: true,
            shards: 1,
            connections_max: 256,
            allow_plaintext: false,
            busy_poll_us: trefoil_transport::BUSY_POLL_US,
            metrics_listen: trefoil_metrics::Listen::Default,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nobody could connect.
    #[error("neither `listen` nor `socket` is set: give at least one place to serve NBD on")]
    NoListener,
    /// No cluster.
    #[error("`monitors` is empty: give the address of at least one monitor")]
    NoMonitors,
    /// Open to the network.
    #[error(
        "{0} is reachable from other hosts and there is no encryption yet: listen on loopback or a unix \
         socket, or set `allow_plaintext = true` if the network is trusted"
    )]
    Plaintext(SocketAddr),
    /// A limit that makes no sense.
    #[error("`connections_max` is 0: no client could connect")]
    NoConnections,
    /// Nobody would serve, or far too many.
    #[error(
        "`shards` is {0}: choose 1 to {SHARDS_MAX}. One thread serves about one core's worth of requests; more \
         shards than cores are of no use"
    )]
    Shards(usize),
    /// Nothing else would ever run.
    #[error("`busy_poll_us` is too large: at most {0}")]
    PollsTooLong(u64),
    /// The same, of metrics.
    #[error(transparent)]
    OpenMetrics(#[from] trefoil_metrics::NotLoopback),
}

impl NbdConfig {
    /// Looks for what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.listen.is_empty() && self.socket.is_none() {
            return Err(ConfigError::NoListener);
        }
        if self.monitors.is_empty() {
            return Err(ConfigError::NoMonitors);
        }
        if self.connections_max == 0 {
            return Err(ConfigError::NoConnections);
        }
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return Err(ConfigError::Shards(self.shards));
        }
        if self.busy_poll_us > trefoil_transport::BUSY_POLL_US_MAX {
            return Err(ConfigError::PollsTooLong(trefoil_transport::BUSY_POLL_US_MAX));
        }
        self.metrics_listen.check(self.allow_plaintext)?;
        match self.listen.iter().find(|address| !address.ip().is_loopback()) {
            Some(address) if !self.allow_plaintext => Err(ConfigError::Plaintext(*address)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> NbdConfig {
        NbdConfig {
            listen: vec![([127, 0, 0, 1], 10809).into()],
            monitors: vec![([127, 0, 0, 1], 1).into()],
            ..NbdConfig::default()
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert_eq!(good().check(), Ok(()));
        assert_eq!(NbdConfig { listen: vec![], ..good() }.check(), Err(ConfigError::NoListener));
        assert_eq!(NbdConfig { monitors: vec![], ..good() }.check(), Err(ConfigError::NoMonitors));
        assert_eq!(NbdConfig { connections_max: 0, ..good() }.check(), Err(ConfigError::NoConnections));
        for shards in [0, SHARDS_MAX + 1] {
            let error = NbdConfig { shards, ..good() }.check().unwrap_err();
            assert_eq!(error, ConfigError::Shards(shards));
            assert!(error.to_string().contains(&format!("`shards` is {shards}: choose 1 to 64")), "{error}");
        }
        assert_eq!(NbdConfig { shards: SHARDS_MAX, ..good() }.check(), Ok(()));
        let max = trefoil_transport::BUSY_POLL_US_MAX;
        let long = NbdConfig { busy_poll_us: max + 1, ..good() };
        assert_eq!(long.check(), Err(ConfigError::PollsTooLong(max)));
        let open: SocketAddr = ([0, 0, 0, 0], 10809).into();
        let config = NbdConfig { listen: vec![open], ..good() };
        assert_eq!(config.check(), Err(ConfigError::Plaintext(open)));
        assert_eq!(NbdConfig { allow_plaintext: true, ..config }.check(), Ok(()));
        let config = NbdConfig { metrics_listen: trefoil_metrics::Listen::At(open), ..good() };
        assert_eq!(config.check(), Err(ConfigError::OpenMetrics(trefoil_metrics::NotLoopback(open))));
        assert_eq!(NbdConfig { allow_plaintext: true, ..config }.check(), Ok(()));
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<NbdConfig>(r#"{"socket": "/x", "monitors": []}"#).is_ok());
        assert!(serde_json::from_str::<NbdConfig>(r#"{"sockets": "/x"}"#).is_err());
    }
}
