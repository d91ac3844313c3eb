//! The three daemons as the command line and `up` see them: a configuration that can be run.
//!
//! What they do is in their crates. Here: one thread and one `current_thread` runtime each, whether the thread is a process's only one or one of many in `trefoil up`.

use crate::signals::{Shutdown, stopped};
use crate::up::launch::Ready;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fmt;
use trefoil_monitor::{Monitor, MonitorConfig};
use trefoil_nbd::NbdConfig;
use trefoil_storage_node::NodeConfig;

/// What a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Keeps the cluster map.
    Monitor,
    /// Keeps objects.
    StorageNode,
    /// Serves NBD.
    Nbd,
}

impl fmt::Display for Role {
    /// The name of its subcommand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Monitor => "monitor",
            Role::StorageNode => "storage-node",
            Role::Nbd => "nbd",
        })
    }
}

/// A daemon's configuration.
#[derive(Clone, Debug)]
pub enum Daemon {
    /// `trefoil monitor`.
    Monitor(MonitorConfig),
    /// `trefoil storage-node`.
    StorageNode(NodeConfig),
    /// `trefoil nbd`.
    Nbd(NbdConfig),
}

impl Daemon {
    /// The configuration as its file.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let text = match self {
            Daemon::Monitor(config) => toml::to_string(config),
            Daemon::StorageNode(config) => toml::to_string(config),
            Daemon::Nbd(config) => toml::to_string(config),
        };
        text.context("a configuration cannot be written as TOML")
    }

    /// Runs it on this thread until `shutdown`, or until it fails. Calls `ready` once it serves, and
    /// `stopping` when it has been told to stop and begins to. `beside` runs on the same loop, in turns
    /// with the daemon's own tasks: when these hang, it hangs.
    pub fn run(
        self,
        shutdown: Shutdown,
        ready: Ready,
        stopping: impl FnOnce(),
        beside: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot make a runtime: are there file descriptors left?")?;
        // Ends with the runtime.
        runtime.spawn(beside);
        let stop = async move {
            stopped(shutdown).await;
            stopping();
        };
        match self {
            Daemon::Monitor(config) => tokio::task::LocalSet::new().block_on(&runtime, async move {
                let mut stop = Box::pin(stop);
                // A new monitor may wait long for the others.
                let monitor = tokio::select! {
                    started = Monitor::start(config) => started?,
                    () = &mut stop => return Ok(()),
                };
                ready();
                monitor.run(stop).await
            }),
            // These two bring a LocalSet of their own.
            Daemon::StorageNode(config) => {
                Ok(runtime.block_on(trefoil_storage_node::run(config, |_| ready(), stop))?)
            }
            Daemon::Nbd(config) => Ok(runtime.block_on(trefoil_nbd::run(config, |_| ready(), stop))?),
        }
    }
}
