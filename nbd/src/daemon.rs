//! From a configuration to a serving front end, and to its end.

use crate::config::{ConfigError, NbdConfig};
use crate::metrics;
use crate::monitors::Monitors;
use crate::server::{Config as ServerConfig, ListenError, Server};
use crate::session::cluster::Cluster;
use crate::session::exports::Volumes;
use crate::session::front::FrontEnd;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::LocalSet;
use tokio::time::sleep;
use trefoil_core::map::{HOLDER_LEN_MAX, Holder, HolderKind};
use trefoil_monitor::MonitorClient;
use trefoil_transport::{Hello, Role};

/// The pause between two tries to reach the monitors.
const MONITORS_RETRY: Duration = Duration::from_millis(250);
/// How long the volumes may take to be released at the end.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// Where the front end serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// TCP addresses, with the ports that were bound.
    pub tcp: Vec<SocketAddr>,
    /// The unix socket.
    pub socket: Option<PathBuf>,
}

/// Why a front end does not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot serve metrics where it was told to.
    #[error(transparent)]
    Metrics(std::io::Error),
}

/// A number that no other start of any process has.
fn boot_id() -> u64 {
    // The hasher's keys are random in each process; the time and the process tell its starts apart.
    let now = std::time::SystemTime::now();
    RandomState::new().hash_one((now, std::process::id())) | 1
}

/// Runs a front end until `shutdown` resolves, then releases its volumes. `ready` is called when it
/// listens. Waits for the monitors first: nothing can be served that nobody knows.
/// Must run on a `current_thread` runtime; the thread is the front end's own.
pub async fn run(
    config: NbdConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    config.check()?;
    LocalSet::new().run_until(serve(config, ready, shutdown)).await
}

async fn serve(
    config: NbdConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    tokio::pin!(shutdown);
    let boot = boot_id();
    let mut hello = Hello::new(Role::FrontEnd, [0; 16]);
    hello.incarnation = boot;
    let client = MonitorClient::new(config.monitors.clone(), hello);
    let metrics_listener =
        config.metrics_listen.bind(config.listen.first().copied()).await.map_err(RunError::Metrics)?;
    let map = tokio::select! {
        map = first_map(&client) => map,
        () = &mut shutdown => return Ok(()),
    };
    hello.cluster_id = map.cluster_id;
    let me = Holder { name: holder_name(&config), boot, kind: HolderKind::FrontEnd };
    let monitors = Monitors::new(client, me, map);
    let front =
        FrontEnd::new(monitors.clone() as Rc<dyn Cluster>, hello, Duration::from_micros(config.busy_poll_us));
    let server = Server::new(
        Rc::new(Volumes::new(front.clone(), config.volumes.clone())),
        ServerConfig { connections_max: config.connections_max, ..ServerConfig::default() },
    );
    let mut serving = Ready { tcp: Vec::new(), socket: config.socket.clone() };
    for address in &config.listen {
        serving.tcp.push(server.listen_tcp(*address)?);
    }
    if let Some(socket) = &config.socket {
        server.listen_unix(socket)?;
    }
    tokio::task::spawn_local(monitors.follow());
    tokio::task::spawn_local(front.clone().follow_map());
    tokio::task::spawn_local(front.clone().ticks());
    tokio::task::spawn_local(front.clone().poll());
    tokio::task::spawn_local(front.clone().renewals());
    if config.heal {
        tokio::task::spawn_local(front.clone().heal());
    }
    if let Some(listener) = metrics_listener {
        let front = front.clone();
        tokio::task::spawn_local(trefoil_metrics::serve(
            listener,
            async move || metrics::Snapshot::take(&front),
            metrics::render,
        ));
    }
    tracing::info!(?serving, "the front end serves");
    ready(serving);
    shutdown.await;
    tracing::info!("stopping");
    server.stop().await;
    front.stop(RELEASE_WITHIN).await;
    Ok(())
}

async fn first_map(client: &MonitorClient) -> std::sync::Arc<trefoil_core::map::ClusterMap> {
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

/// Names this front end to people: what the configuration says, else host and process.
fn holder_name(config: &NbdConfig) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut name = match &config.name {
        Some(name) => name.clone(),
        None => format!("nbd@{}:{}", host().trim(), std::process::id()),
    };
    while name.len() > HOLDER_LEN_MAX {
        name.pop();
    }
    name
}
