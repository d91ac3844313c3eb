//! What the tests of monitors share: a runtime, and what nodes, administrators and front ends ask.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{Holder, HolderKind};
use trefoil_core::*;
use trefoil_monitor::rpc::Granted;
use trefoil_monitor::{Bootstrap, Monitor, MonitorClient, MonitorConfig};
use trefoil_transport::{Hello, Role};

/// Runs a test on a runtime of its own. What is not stopped in order when the test ends is dropped in
/// mid-air, as by SIGKILL.
pub fn on_runtime<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs")
    })
}

/// How long the leases of [`config`] run, and their margin.
pub const LEASE: Duration = Duration::from_millis(600);
pub const MARGIN: Duration = Duration::from_millis(150);

/// A monitor alone, on loopback, with a pool, and with leases that a test can wait for.
pub fn config(dir: &Path, node_timeout_ms: u64) -> MonitorConfig {
    MonitorConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: dir.to_owned(),
        lease_ms: LEASE.as_millis() as u64,
        lease_margin_ms: MARGIN.as_millis() as u64,
        renew_ms: 200,
        node_timeout_ms,
        bootstrap: Some(Bootstrap::default()),
        ..MonitorConfig::default()
    }
}

/// Three nodes, the pool, and a volume, disk0.
pub async fn cluster(running: &Running) -> VolumeId {
    let nodes = running.client(Role::StorageNode);
    for n in 0..3 {
        assert_eq!(register(&nodes, n).await, NodeId(n as u32));
    }
    let admin = running.client(Role::Client);
    pool(&admin).await;
    create(&admin, "disk0").await
}

pub async fn create(admin: &MonitorClient, name: &str) -> VolumeId {
    let size = 1 << 30;
    let created = admin.create_volume(name.to_owned(), "default".to_owned(), size, 4 << 20, None);
    created.await.unwrap()
}

/// Node `n` introduces itself, with incarnation 100 + n, on a host of its own.
pub async fn register(client: &MonitorClient, n: u64) -> NodeId {
    let address = ([127, 0, 0, 1], 7000 + n as u16).into();
    let host = format!("host{n}");
    client.register_node(None, Incarnation(100 + n), address, host, None, 8 << 30).await.unwrap()
}

/// Waits for the first pool.
pub async fn pool(admin: &MonitorClient) {
    let mut map = admin.get_map(0).await.unwrap().unwrap();
    while map.pools.is_empty() {
        let newer = admin.wait_map(map.layout, Duration::from_secs(5)).await;
        map = newer.unwrap().expect("the pool was not made");
    }
}

/// A front end's process.
pub fn holder(name: &str, boot: u64) -> Holder {
    Holder { name: name.to_owned(), boot, kind: HolderKind::FrontEnd }
}

/// A holder renews what it was granted.
pub async fn renew(client: &MonitorClient, who: &Holder, granted: &Granted) -> Renewal {
    let volumes = vec![(granted.volume, granted.generation)];
    let renewed = client.renew(who.clone(), volumes, Vec::new(), Duration::from_secs(8));
    renewed.await.unwrap().volumes[0].1
}

/// A monitor that runs on loopback.
pub struct Running {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub async fn start(config: MonitorConfig) -> Running {
        Running::go(Monitor::start(config).await.unwrap())
    }
    /// As [`Running::start`], and its map counts as large.
    pub async fn start_with_parts(config: MonitorConfig, part_bytes: usize) -> Running {
        let monitor = Monitor::start(config).await.unwrap();
        monitor.set_map_part_bytes(part_bytes);
        Running::go(monitor)
    }
    fn go(monitor: Monitor) -> Running {
        let address = monitor.address();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::task::spawn_local(monitor.run(async {
            let _ = stopped.await;
        }));
        Running { address, stop, ended }
    }
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.ended.await.unwrap().unwrap();
    }
    pub fn client(&self, role: Role) -> MonitorClient {
        MonitorClient::new(vec![self.address], Hello::new(role, [0; 16]))
    }
}
