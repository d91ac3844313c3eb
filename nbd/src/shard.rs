//! One shard from the monitors' first map to its end: on its thread, in its `LocalSet`.

use crate::config::NbdConfig;
use crate::metrics::Snapshot;
use crate::monitors::Monitors;
use crate::server::{Config as ServerConfig, Door, Server};
use crate::session::cluster::Cluster;
use crate::session::exports::Volumes;
use crate::session::front::FrontEnd;
use crate::shards::Place;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use trefoil_core::map::{ClusterMap, Holder};
use trefoil_monitor::MonitorClient;
use trefoil_transport::{Hello, Role};

/// The pause between two tries to reach the monitors.
const MONITORS_RETRY: Duration = Duration::from_millis(250);
/// How long the volumes may take to be released at the end.
pub(crate) const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// A shard that serves, as far as somebody connects to it or hands connections over.
pub(crate) struct Shard {
    number: usize,
    pub front: Rc<FrontEnd>,
    pub server: Server,
}

/// What all servers of a process are made with.
pub(crate) fn server_config(config: &NbdConfig) -> ServerConfig {
    ServerConfig { connections_max: config.connections_max, ..ServerConfig::default() }
}

impl Shard {
    /// Waits for the monitors first: nothing can be served that nobody knows. May be dropped while it does. `door`:
    /// none for the only shard.
    pub async fn start(config: &NbdConfig, me: Holder, place: Place, door: Option<Door>) -> Shard {
        let mut hello = Hello::new(Role::FrontEnd, [0; 16]);
        hello.incarnation = me.boot;
        let client = MonitorClient::new(config.monitors.clone(), hello);
        let map = first_map(&client).await;
        hello.cluster_id = map.cluster_id;
        let monitors = Monitors::new(client, me, map);
        let busy_poll = Duration::from_micros(config.busy_poll_us);
        let front = FrontEnd::new(monitors.clone() as Rc<dyn Cluster>, hello, busy_poll);
        let exports = Rc::new(Volumes::of_shard(front.clone(), config.volumes.clone(), place));
        let server = match door {
            None => Server::new(exports, server_config(config)),
            Some(door) => Server::behind(door, exports, server_config(config)),
        };
        front.task(monitors.follow());
        front.task(front.clone().follow_map());
        front.task(front.clone().ticks());
        front.task(front.clone().poll());
        front.task(front.clone().renewals());
        // How many volumes a process heals at once is a limit of the process. A client of a volume that another shard
        // serves makes its healer give way, as one of another process would.
        if config.heal && place.number == 0 {
            front.task(front.clone().heal());
        }
        Shard { number: place.number, front, server }
    }

    /// What metrics want of it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self.number, &self.front, self.server.counters())
    }

    /// Lets requests under way finish, closes all connections and releases all volumes.
    pub async fn stop(self) {
        self.server.stop().await;
        self.front.stop(RELEASE_WITHIN).await;
    }
}

async fn first_map(client: &MonitorClient) -> Arc<ClusterMap> {
    let mut told = false;
    loop {
        match client.get_map(0).await {
            Ok(Some(map)) => return map,
            Ok(None) => {}
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%error, "waiting for the monitors");
            }
            Err(_) => {}
        }
        sleep(MONITORS_RETRY).await;
    }
}
