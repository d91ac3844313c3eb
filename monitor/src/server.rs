//! The monitor's daemon: start, connections, upkeep, stop.

use crate::config::{Bootstrap, MONITORS_MAX, MonitorConfig};
use crate::found;
use crate::life::Life;
use crate::members;
use crate::metrics;
use crate::mover;
use crate::peers::{JOBS_MAX, Peers};
use crate::raft::{Identity, Machine, Member, Network, PeerAnswer, Raft, SNAPSHOT_PART_BYTES, Store};
use crate::reign;
use crate::rpc::{
    self, Daemon, KIND_PEER_REQUEST, KIND_PEER_RESPONSE, KIND_REQUEST, KIND_RESPONSE, REQUESTS_MAX, Request,
    RpcError,
};
use crate::service::{Answer, Service, Settings};
use anyhow::Context;
use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use trefoil_core::map::lease::LeaseConfig;
use trefoil_core::map::{Command, MapError};
use trefoil_transport::{Connected, Hello, Options, Policy, RateLimit, Role, Sender, ServeOptions};

/// Nodes that came or went are looked for this often.
const UPKEEP: Duration = Duration::from_millis(200);
/// Log positions are committed every so many upkeeps.
const POSITIONS_EVERY: u32 = 25;
/// A monitor that does not lead after this long gives up its start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries before a snapshot that stay for followers that are a little behind, as a share of those between two.
const LOG_KEPT_SHARE: u64 = 8;
/// Log entries in one message between monitors, at most; their bytes are limited as well.
const ENTRIES_PER_MESSAGE: u64 = 256;
/// How long a monitor may take to put away a part of a snapshot.
const SNAPSHOT_PART_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are left to other monitors: two each, while one replaces another.
const PEER_CONNECTIONS: usize = 2 * MONITORS_MAX;
/// Requests of one other monitor under way.
const PEER_REQUESTS_MAX: usize = 256;
/// Answers that wait for a client. The largest map must fit.
const ANSWERS_BYTES_MAX: usize = 2 * trefoil_core::limits::FRAME_MAX;

/// A future for this thread.
type LocalBoxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A monitor that listens, and serves when it is [`Monitor::run`].
pub struct Monitor {
    service: Rc<Service>,
    listener: TcpListener,
    address: SocketAddr,
    advertised: SocketAddr,
    config: MonitorConfig,
    watching: tokio::task::JoinHandle<anyhow::Error>,
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

/// A second handle to the listening socket: who is new answers on it, and goes on to listen.
fn twice(listener: TcpListener) -> std::io::Result<(TcpListener, TcpListener)> {
    let listener = listener.into_std()?;
    let second = listener.try_clone()?;
    Ok((TcpListener::from_std(listener)?, TcpListener::from_std(second)?))
}

fn random_number() -> anyhow::Result<u64> {
    // 0 means "none" in a handshake.
    Ok(u64::from_le_bytes(*random_id()?.first_chunk().context("no random bytes")?).max(1))
}

impl Monitor {
    /// Opens the data directory (which may be new), and listens. The only monitor of a cluster leads when this
    /// returns. One of several takes part in elections from when it is [`Monitor::run`]; a new one waits here
    /// until all of the first monitors have found each other, or until it has found the cluster to join.
    ///
    /// Errors: what is wrong with configuration, directory, address or disk, and what to do.
    // Boxed here, and not generated again by every crate that starts a monitor: all of Raft is in it.
    pub fn start(config: MonitorConfig) -> LocalBoxed<'static, anyhow::Result<Monitor>> {
        Box::pin(Monitor::prepare(config))
    }

    async fn prepare(config: MonitorConfig) -> anyhow::Result<Monitor> {
        config.check()?;
        // First the cheap thing that fails often.
        let listener = trefoil_transport::listen(config.listen).await?;
        let bound = listener.local_addr()?;
        let metrics = config.metrics_listen.bind(Some(config.listen)).await?;
        let address = config.advertise.unwrap_or(bound);
        let alone = config.join.is_empty() && config.peers.len() <= 1;
        let random = random_id()?;
        let fresh = Identity {
            cluster_id: if alone { random } else { [0; 16] },
            cluster_name: config.cluster_name.clone(),
            id: config.id,
            incarnation: random_number()?,
            founding: alone,
        };
        let (store, mut identity) = Store::open(&config.data_dir, &config.cluster_name, fresh)?;
        let mut listener = listener;
        let mut members = None;
        if identity.cluster_id == [0; 16] || (identity.founding && !alone) {
            let (kept, second) = twice(listener)?;
            listener = kept;
            let meanwhile = found::serve_meanwhile(second, config.connections_max, identity.clone());
            let founded = tokio::select! {
                founded = found::find(&config, address, &identity, random) => founded?,
                () = meanwhile => anyhow::bail!("the listener has ended"),
            };
            identity.cluster_id = founded.cluster_id;
            identity.founding = founded.members.is_some();
            store.set_identity(&identity).await?;
            members = founded.members;
        } else if identity.founding {
            let me = Member { address, incarnation: identity.incarnation };
            members = Some([(identity.id, me)].into());
        }
        let (machine, map) = Machine::load(store.clone())
            .with_context(|| format!("the snapshot in {}", config.data_dir.display()))?;
        let heartbeat = (config.election_ms / 4).max(1);
        let raft_config = openraft::Config {
            cluster_name: identity.cluster_name.clone(),
            heartbeat_interval: heartbeat,
            election_timeout_min: config.election_ms,
            election_timeout_max: 2 * config.election_ms,
            install_snapshot_timeout: SNAPSHOT_PART_TIMEOUT.as_millis() as u64,
            snapshot_max_chunk_size: match config.snapshot_part_bytes {
                0 => SNAPSHOT_PART_BYTES,
                bytes => bytes,
            },
            max_payload_entries: ENTRIES_PER_MESSAGE,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
            max_in_snapshot_log_to_keep: config.snapshot_entries / LOG_KEPT_SHARE,
            // Who is further behind than this is sent the snapshot.
            replication_lag_threshold: 2 * config.snapshot_entries,
            ..openraft::Config::default()
        };
        let raft_config = Arc::new(raft_config.validate()?);
        let mut hello = Hello::new(Role::Monitor, identity.cluster_id);
        (hello.id, hello.incarnation) = (identity.id, identity.incarnation);
        let configured = config.peers.iter().map(|peer| (peer.id, peer.address)).collect();
        let peers = Peers::new(hello, configured);
        let (jobs, receiver) = tokio::sync::mpsc::channel(JOBS_MAX);
        let raft = Raft::new(identity.id, raft_config, Network::new(jobs), store.clone(), machine).await?;
        if let Some(members) = members {
            if !raft.is_initialized().await? {
                raft.initialize(members).await?;
            }
            identity.founding = false;
            store.set_identity(&identity).await?;
        }
        let settings = Settings {
            lease: LeaseConfig {
                lease: config.lease_ms * 1000,
                margin: config.lease_margin_ms * 1000,
                ..LeaseConfig::default()
            },
            renew: config.renew_ms * 1000,
            node_timeout: config.node_timeout_ms * 1000,
            out_after: config.out_after_ms,
            election_ms: config.election_ms,
            boot: random_number()?,
        };
        let service = Rc::new(Service::new(raft, map, identity, peers.clone(), &settings));
        service.spawn(peers.route(receiver));
        service.spawn(mover::run(service.clone()));
        let watching = tokio::task::spawn_local(reign::watch(service.clone()));
        let mut monitor =
            Monitor { service, listener, address: bound, advertised: address, config, watching, metrics };
        monitor.come_to_lead().await?;
        tracing::info!(address = %bound, id = monitor.config.id, cluster = monitor.config.cluster_name, "monitor ready");
        Ok(monitor)
    }

    /// Waits until the only monitor leads: there is nobody to wait for.
    async fn come_to_lead(&mut self) -> anyhow::Result<()> {
        let service = &self.service;
        if !members::is_alone(&service.raft, service.identity.id) {
            return Ok(());
        }
        service.raft.trigger().elect().await?;
        let start = tokio::time::Instant::now();
        while service.reign().is_err() {
            if self.watching.is_finished() {
                return Err((&mut self.watching).await?);
            }
            anyhow::ensure!(
                start.elapsed() < START_TIMEOUT,
                "the monitor did not come to lead within {} s: is the disk of {} working?",
                START_TIMEOUT.as_secs(),
                self.config.data_dir.display()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
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
        self.service.identity.cluster_id
    }

    /// Serves until `shutdown`, or until the disk fails, or until the monitor was removed from the cluster.
    pub fn run<'a>(self, shutdown: impl Future<Output = ()> + 'a) -> LocalBoxed<'a, anyhow::Result<()>> {
        self.serve_boxed(Box::pin(shutdown))
    }

    /// Not generic, so that this crate generates what it calls.
    fn serve_boxed<'a>(self, shutdown: LocalBoxed<'a, ()>) -> LocalBoxed<'a, anyhow::Result<()>> {
        Box::pin(self.serve(shutdown))
    }

    async fn serve(self, shutdown: LocalBoxed<'_, ()>) -> anyhow::Result<()> {
        let Monitor { service, listener, advertised, config, watching, metrics, .. } = self;
        let mut hello = Hello::new(Role::Monitor, service.identity.cluster_id);
        (hello.id, hello.incarnation) = (service.identity.id, service.identity.incarnation);
        let roles = &[Role::StorageNode, Role::FrontEnd, Role::Client, Role::Monitor];
        let mut options = ServeOptions::new(Policy { hello, roles, unknown_cluster: true });
        // However many clients there are, the other monitors get through.
        options.connections_max = config.connections_max + PEER_CONNECTIONS;
        let clients = Rc::new(Cell::new(0));
        let clients_max = config.connections_max;
        options.connection = Options { queue_bytes_max: ANSWERS_BYTES_MAX, ..Options::default() };
        let serving = service.clone();
        let serve = trefoil_transport::serve(listener, options, move |connected| {
            admit(serving.clone(), connected, clients.clone(), clients_max)
        });
        if let Some(listener) = metrics {
            let told = service.clone();
            let snapshot = async move || metrics::Snapshot::take(&told).await;
            service.spawn(trefoil_metrics::serve(listener, snapshot, metrics::render));
        }
        let life = Life::begin(&config.data_dir);
        if let Err(error) = &life {
            let dir = config.data_dir.display();
            tracing::warn!(%error, "no mark in {dir}: it will not be known how this monitor ends");
        }
        if let Some(died) = life.as_ref().ok().and_then(|life| life.died) {
            tracing::warn!("this monitor had ended without having been stopped");
            service.spawn(service.clone().tell_own_death(died));
        }
        let mut watching = watching;
        let result = tokio::select! {
            () = serve => Ok(()),
            failed = upkeep(service.clone(), config.bootstrap.clone()) => Err(failed),
            failed = members::watch_place(service.clone(), advertised) => Err(failed),
            failed = &mut watching => Err(failed.unwrap_or_else(anyhow::Error::from)),
            () = shutdown => Ok(()),
        };
        // Tasks hold the service, and with it the file.
        watching.abort();
        if let Err(error) = service.raft.shutdown().await {
            tracing::warn!(%error, "the monitor's Raft did not stop in order");
        }
        service.tasks.borrow_mut().abort_all();
        let mut tasks = service.tasks.take();
        while tasks.join_next().await.is_some() {}
        if let (Ok(()), Ok(life)) = (&result, life) {
            life.end();
        }
        result
    }
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
    let Ok(reign) = service.reign() else { return false };
    match service.propose(&reign, command).await {
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

/// Gives a client one of the places that there are for clients.
async fn admit(service: Rc<Service>, connected: Connected, clients: Rc<Cell<usize>>, most: usize) {
    if connected.hello.role == Role::Monitor {
        return converse(service, connected).await;
    }
    if clients.get() >= most {
        tracing::debug!(peer = %connected.reader.peer(), most, "connection refused: too many");
        return connected.sender.close("all connections are in use");
    }
    clients.set(clients.get() + 1);
    // Given back also when the daemon stops in the middle.
    struct Place(Rc<Cell<usize>>);
    impl Drop for Place {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }
    let _place = Place(clients);
    converse(service, connected).await;
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
            if frame.kind == KIND_PEER_REQUEST && hello.role == Role::Monitor {
                answer_peer(&service, &sender, &running, hello, (version, id), frame.payload);
                continue;
            }
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

/// Answers another monitor. Over the limit it is not answered: it has given up by then, and says again what is
/// still worth saying.
fn answer_peer(
    service: &Rc<Service>,
    sender: &Sender,
    running: &Rc<Cell<usize>>,
    hello: Hello,
    (version, id): (u8, u64),
    payload: bytes::Bytes,
) {
    if running.get() >= PEER_REQUESTS_MAX {
        return;
    }
    running.set(running.get() + 1);
    let (asked, sender, running) = (service.clone(), sender.clone(), running.clone());
    service.spawn(async move {
        let answer = match version == rpc::VERSION {
            true => asked.answer_peer(&hello, &payload).await,
            false => PeerAnswer::Refused(format!(
                "version {version}, this monitor speaks {}: run the same release on all monitors",
                rpc::VERSION
            )),
        };
        let payload = postcard::to_stdvec(&answer).unwrap_or_default().into();
        if let Err(error) = sender.push(KIND_PEER_RESPONSE, |meta| rpc::begin(meta, id), Some(payload)) {
            tracing::debug!(peer = %sender.peer(), %error, "answer not sent");
        }
        sender.flush();
        running.set(running.get() - 1);
    });
}

/// Who registers must be a node; who takes a volume must be able to lead one. Administrators may do
/// what changes no lease.
fn may_ask(role: Role, request: &Request) -> bool {
    match request {
        Request::RegisterNode { .. }
        | Request::Heartbeat(_)
        | Request::Scrub(_)
        | Request::NodeWork { .. }
        | Request::Listed { .. }
        | Request::Layout { .. } => role == Role::StorageNode,
        Request::Attach { .. } | Request::Renew { .. } | Request::Release { .. } => {
            matches!(role, Role::FrontEnd | Role::StorageNode)
        }
        Request::HealWork { .. } | Request::LostData { .. } => {
            matches!(role, Role::FrontEnd | Role::StorageNode)
        }
        Request::CreatePool { .. }
        | Request::CreateVolume { .. }
        | Request::RemoveVolume { .. }
        | Request::SetCrush { .. }
        | Request::SetNodesOut { .. }
        | Request::Events { .. }
        | Request::AddMonitor { .. }
        | Request::RemoveMonitor { .. }
        | Request::PauseMoves { .. }
        | Request::UndoMove { .. }
        | Request::SetMoveLimits { .. }
        | Request::Pg { .. }
        | Request::AcknowledgeDeaths { .. }
        | Request::Mute { .. }
        | Request::Unmute { .. }
        | Request::DrainNode { .. }
        | Request::RemoveNode { .. }
        | Request::SetPool { .. }
        | Request::OrderScrub { .. }
        | Request::Doubts { .. }
        | Request::SettleBlocks { .. }
        | Request::SetPgNum { .. }
        | Request::ReplaceCrush { .. } => role == Role::Client,
        Request::Died { daemon: Daemon::Node(_), .. } => role == Role::StorageNode,
        Request::Died { daemon: Daemon::Monitor(_), .. } => role == Role::Monitor,
        Request::GetMap { .. }
        | Request::WaitMap { .. }
        | Request::MapPart { .. }
        | Request::Volume { .. }
        | Request::Ping
        | Request::Monitors
        | Request::Moves
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
