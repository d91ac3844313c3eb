//! The monitor's daemon: start, connections, upkeep, stop.

use crate::config::{Bootstrap, MonitorConfig};
use crate::metrics;
use crate::raft::{Identity, Machine, Nobody, Raft, Store, VOTER};
use crate::rpc::{self, KIND_REQUEST, KIND_RESPONSE, REQUESTS_MAX, Request, RpcError};
use crate::service::{Answer, Service};
use anyhow::Context;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use trefoil_core::map::lease::LeaseConfig;
use trefoil_core::map::{ClusterMap, Command, MapError};
use trefoil_transport::{Connected, Hello, Options, Policy, RateLimit, Role, Sender, ServeOptions};

/// Nodes that came or went are looked for this often.
const UPKEEP: Duration = Duration::from_millis(200);
/// Log positions are committed every so many upkeeps.
const POSITIONS_EVERY: u32 = 25;
/// A monitor that does not lead after this long gives up its start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries behind a snapshot after which the next one is taken.
const SNAPSHOT_EVERY: u64 = 4096;
/// Entries before a snapshot that stay for followers that are a little behind.
const LOG_KEPT: u64 = 512;
/// Answers that wait for a client. The largest map must fit.
const ANSWERS_BYTES_MAX: usize = 2 * trefoil_core::limits::FRAME_MAX;

/// A monitor that leads and listens, and serves when it is [`Monitor::run`].
pub struct Monitor {
    service: Rc<Service>,
    listener: TcpListener,
    address: SocketAddr,
    config: MonitorConfig,
    /// Where metrics are served.
    metrics: Option<TcpListener>,
}

/// Starts a monitor and runs it until `shutdown`. Must be called within a `LocalSet`.
pub async fn run(config: MonitorConfig, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    Monitor::start(config).await?.run(shutdown).await
}

fn random_id() -> anyhow::Result<[u8; 16]> {
    use std::io::Read;
    let mut id = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut id))
        .context("cannot read random bytes from /dev/urandom")?;
    Ok(id)
}

impl Monitor {
    /// Opens the data directory (which may be new), brings the map up to date, and listens.
    ///
    /// Errors: what is wrong with configuration, directory, address or disk, and what to do.
    pub async fn start(config: MonitorConfig) -> anyhow::Result<Monitor> {
        config.check()?;
        // First the cheap thing that fails often.
        let listener = trefoil_transport::listen(config.listen).await?;
        let address = listener.local_addr()?;
        let metrics = config.metrics_listen.bind(Some(config.listen)).await?;
        let fresh = Identity { cluster_id: random_id()?, cluster_name: config.cluster_name.clone() };
        let (store, identity) = Store::open(&config.data_dir, &config.cluster_name, fresh)?;
        let (machine, map) = Machine::load(store.clone())
            .with_context(|| format!("the snapshot in {}", config.data_dir.display()))?;
        let raft_config = openraft::Config {
            cluster_name: identity.cluster_name.clone(),
            // One voter elects itself as soon as it is asked to; these only matter for several.
            heartbeat_interval: 250,
            election_timeout_min: 1000,
            election_timeout_max: 2000,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: LOG_KEPT,
            ..openraft::Config::default()
        };
        let raft_config = Arc::new(raft_config.validate()?);
        let raft = Raft::new(VOTER, raft_config, Nobody, store, machine).await?;
        let led = lead(&raft, &identity, || map.borrow().clone());
        match tokio::time::timeout(START_TIMEOUT, led).await {
            Ok(led) => led?,
            Err(_) => anyhow::bail!(
                "the monitor did not come to lead within {} s: is the disk of {} working?",
                START_TIMEOUT.as_secs(),
                config.data_dir.display()
            ),
        }
        let lease = LeaseConfig { lease: config.lease_ms * 1000, margin: config.lease_margin_ms * 1000 };
        let (renew, timeout) = (config.renew_ms * 1000, config.node_timeout_ms * 1000);
        let boot = u64::from_le_bytes(*random_id()?.first_chunk().context("no random bytes")?);
        let service = Rc::new(Service::new(raft, map, lease, renew, timeout, boot));
        tracing::info!(%address, cluster = config.cluster_name, "monitor ready");
        Ok(Monitor { service, listener, address, config, metrics })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For tests: sends the map in parts of so many bytes, and no difference that is larger.
    #[doc(hidden)]
    pub fn set_map_part_bytes(&self, bytes: usize) {
        self.service.set_map_part_bytes(bytes);
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> [u8; 16] {
        self.service.map().cluster_id
    }

    /// Serves until `shutdown`, or until the disk fails.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let policy = Policy {
            hello: Hello::new(Role::Monitor, self.cluster_id()),
            roles: &[Role::StorageNode, Role::FrontEnd, Role::Client],
            unknown_cluster: true,
        };
        let mut options = ServeOptions::new(policy);
        options.connections_max = self.config.connections_max;
        options.connection = Options { queue_bytes_max: ANSWERS_BYTES_MAX, ..Options::default() };
        let service = self.service.clone();
        let serve = trefoil_transport::serve(self.listener, options, move |connected| {
            converse(service.clone(), connected)
        });
        if let Some(listener) = self.metrics {
            let service = self.service.clone();
            let snapshot = async move || metrics::Snapshot::take(&service).await;
            self.service.spawn(trefoil_metrics::serve(listener, snapshot, metrics::render));
        }
        let result = tokio::select! {
            () = serve => Ok(()),
            failed = upkeep(self.service.clone(), self.config.bootstrap.clone()) => Err(failed),
            () = shutdown => Ok(()),
        };
        // Tasks hold the service, and with it the file.
        self.service.tasks.borrow_mut().abort_all();
        let mut tasks = self.service.tasks.take();
        while tasks.join_next().await.is_some() {}
        if let Err(error) = self.service.raft.shutdown().await {
            tracing::warn!(%error, "the monitor's Raft did not stop in order");
        }
        result
    }
}

/// Comes to lead, with the log applied to its end, and makes the first entry of a new cluster.
async fn lead(raft: &Raft, identity: &Identity, map: impl Fn() -> Arc<ClusterMap>) -> anyhow::Result<()> {
    if !raft.is_initialized().await? {
        let voters = BTreeMap::from([(VOTER, openraft::BasicNode::new(""))]);
        raft.initialize(voters).await?;
    } else {
        raft.trigger().elect().await?;
    }
    raft.wait(Some(START_TIMEOUT)).state(openraft::ServerState::Leader, "the only voter leads").await?;
    raft.ensure_linearizable().await?;
    if map().version == 0 {
        let command = Command::Init { cluster_id: identity.cluster_id, name: identity.cluster_name.clone() };
        if let Some(Err(error)) = raft.client_write(command).await?.data.0 {
            anyhow::bail!("the new cluster was refused: {error}");
        }
    }
    let map = map();
    anyhow::ensure!(
        map.cluster_id == identity.cluster_id,
        "the map is of another cluster than the directory says: was a file copied here?"
    );
    Ok(())
}

/// Runs until Raft fails.
async fn upkeep(service: Rc<Service>, bootstrap: Option<Bootstrap>) -> anyhow::Error {
    let metrics = service.raft.metrics();
    let mut bootstrap = bootstrap;
    let log = RateLimit::new(Duration::from_secs(10));
    for tick in 1u32.. {
        tokio::time::sleep(UPKEEP).await;
        let running = metrics.borrow().running_state.clone();
        if let Err(fatal) = running {
            return anyhow::anyhow!(
                "the monitor's Raft has stopped: {fatal}; see the disk and start it again"
            );
        }
        if let Err(error) = service.upkeep(tick.is_multiple_of(POSITIONS_EVERY)).await
            && let Some(kept_back) = log.allow()
        {
            tracing::warn!(%error, kept_back, "upkeep of the map failed; it is tried again");
        }
        if let Some(wanted) = &bootstrap
            && make_pool(&service, wanted, &log).await
        {
            bootstrap = None;
        }
    }
    anyhow::anyhow!("the monitor has run out of ticks")
}

/// True when there is nothing left to do.
async fn make_pool(service: &Service, wanted: &Bootstrap, log: &RateLimit) -> bool {
    let map = service.map();
    if map.pool_named(&wanted.pool).is_some() {
        return true;
    }
    if map.nodes.len() < wanted.nodes {
        return false;
    }
    let command = Command::CreatePool {
        name: wanted.pool.clone(),
        size: wanted.size,
        pg_num: wanted.pg_num,
        domain: wanted.failure_domain,
        ack: wanted.ack,
    };
    match service.propose(command).await {
        Ok(_) => {
            tracing::info!(pool = wanted.pool, "pool created");
            true
        }
        Err(error) => {
            // More nodes may help; a wrong setting does not, and is said again and again.
            if let Some(kept_back) = log.allow() {
                tracing::warn!(%error, kept_back, "the pool {:?} cannot be made yet", wanted.pool);
            }
            matches!(error, RpcError::Refused(MapError::Exists { .. }))
        }
    }
}

/// Answers one client until it goes.
async fn converse(service: Rc<Service>, connected: Connected) {
    let Connected { mut reader, sender, hello } = connected;
    let running = Rc::new(Cell::new(0));
    let mut frames = Vec::new();
    loop {
        if let Err(reason) = reader.read_batch(&mut frames).await {
            tracing::debug!(peer = %reader.peer(), role = %hello.role, %reason, "client gone");
            return;
        }
        for frame in frames.drain(..) {
            // Without an id there is nothing to answer.
            let Some((version, id, rest)) = rpc::split(&frame.meta) else {
                return sender.close("a frame that is no request");
            };
            if frame.kind != KIND_REQUEST {
                return sender.close("a frame that is no request");
            }
            let request = match rpc::decode::<Request>(version, rest) {
                Ok(request) => request,
                Err(text) => {
                    answer(&sender, id, RpcError::Malformed(text).into());
                    continue;
                }
            };
            if !may_ask(hello.role, &request) {
                let text = format!("a {} may not ask this", hello.role);
                answer(&sender, id, RpcError::NotAllowed(text).into());
                continue;
            }
            if running.get() >= REQUESTS_MAX {
                answer(&sender, id, RpcError::TooMany.into());
                continue;
            }
            running.set(running.get() + 1);
            // Administrators ask once; what they are sent need not be remembered for them.
            let remember = hello.role != Role::Client;
            let (service, sender, running) = (service.clone(), sender.clone(), running.clone());
            let task = service.clone();
            task.spawn(async move {
                answer(&sender, id, service.answer(request, remember).await);
                sender.flush();
                running.set(running.get() - 1);
            });
        }
        sender.flush();
    }
}

/// Who registers must be a node; who takes a volume must be able to lead one. Administrators may do
/// what changes no lease.
fn may_ask(role: Role, request: &Request) -> bool {
    match request {
        Request::RegisterNode { .. } | Request::Heartbeat(_) => role == Role::StorageNode,
        Request::Attach { .. } | Request::Renew { .. } | Request::Release { .. } => {
            matches!(role, Role::FrontEnd | Role::StorageNode)
        }
        Request::HealWork { .. } => matches!(role, Role::FrontEnd | Role::StorageNode),
        Request::CreatePool { .. }
        | Request::CreateVolume { .. }
        | Request::RemoveVolume { .. }
        | Request::SetCrush { .. } => role == Role::Client,
        Request::GetMap { .. }
        | Request::WaitMap { .. }
        | Request::MapPart { .. }
        | Request::Volume { .. }
        | Request::Status => true,
    }
}

fn answer(sender: &Sender, id: u64, answer: Answer) {
    let Answer { response, payload } = answer;
    let encode = |meta: &mut bytes::BytesMut| rpc::encode(meta, id, &response);
    if let Err(error) = sender.push(KIND_RESPONSE, encode, payload) {
        tracing::debug!(peer = %sender.peer(), %error, "answer not sent");
    }
}
