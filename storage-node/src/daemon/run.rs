//! From a configuration to a serving node, and to its end.
//!
//! Order of a start: the store is opened and recovered; the monitors are asked who this is (a node that
//! knows its id and has a map goes on without them); lost state is told to the machine before anything
//! else (N8); only then does anybody get an answer.

use super::cluster::{Membership, Registration};
use super::connections::Daemon;
use super::engine::Engine;
use super::identity::{Identity, StateDir};
use super::metrics;
use super::scrub;
use crate::config::{ConfigError, NodeConfig};
use crate::device::wake::AsyncWaker;
use crate::store::{FormatError, FormatOptions, OpenError, Recovered, Store, format};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use trefoil_core::NodeId;
use trefoil_core::map::ClusterMap;
use trefoil_core::node::{Node, NodeConfig as MachineConfig};
use trefoil_monitor::{CallError, MonitorClient};
use trefoil_transport::{Hello, LocalName, Policy, Role, ServeOptions, listen, serve};

/// How long a node that could start without monitors waits for them first.
const MONITORS_WAIT: Duration = Duration::from_secs(3);
/// The pause between two tries to reach the monitors.
const MONITORS_RETRY: Duration = Duration::from_millis(250);

/// What is known once the node serves.
#[derive(Copy, Clone, Debug)]
pub struct Ready {
    /// Its number in the map.
    pub node: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Why a node does not start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device could not be formatted.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// There was a store, and now there is nothing.
    #[error(
        "{device} is missing or empty, but {known} says that this node has had a store on it: bring the device back,          or, if its data is lost for good, remove {known} to start as a new node"
    )]
    Gone {
        /// The device.
        device: PathBuf,
        /// The file that remembers.
        known: PathBuf,
    },
    /// The store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system: a directory, a socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The monitors refuse this node.
    #[error("the monitors refuse this node: {0}")]
    Refused(CallError),
    /// The store takes no more writes.
    #[error(
        "the store has failed: {0}; what was acknowledged is safe with the other copies. Look at the device, then start the node again"
    )]
    Store(String),
}

/// Runs a storage node until `shutdown` resolves, or its store fails. `ready` is called when it serves.
/// Must run on a `current_thread` runtime; the thread is the node's own.
pub async fn run(
    config: NodeConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    config.check()?;
    run_boxed(config, Box::new(ready), Box::pin(shutdown)).await
}

/// Not generic, so that this crate generates what it calls, and not every crate that runs a node.
fn run_boxed<'a>(
    config: NodeConfig,
    ready: Box<dyn FnOnce(Ready) + 'a>,
    shutdown: Pin<Box<dyn Future<Output = ()> + 'a>>,
) -> Pin<Box<dyn Future<Output = Result<(), RunError>> + 'a>> {
    Box::pin(run_checked(config, ready, shutdown))
}

async fn run_checked(
    config: NodeConfig,
    ready: Box<dyn FnOnce(Ready) + '_>,
    shutdown: Pin<Box<dyn Future<Output = ()> + '_>>,
) -> Result<(), RunError> {
    let local = LocalSet::new();
    let ended = local.run_until(serve_node(&config, ready, shutdown)).await;
    // Every task has a share of the daemon. They end here, so that the store is left to us alone.
    drop(local);
    let (running, result) = ended?;
    let Some((daemon, membership)) = running else { return result };
    match daemon.into_engine() {
        Some(engine) if result.is_ok() => {
            let store = engine.into_store();
            // Everything that was acknowledged is before this.
            let position = store.log_position();
            match store.shutdown() {
                Ok(()) => membership.stopped(position),
                Err(error) => {
                    tracing::warn!(error, "the last checkpoint failed; the next start takes longer");
                }
            }
        }
        Some(_) => {}
        None => tracing::warn!("a task outlived the node; the next start replays more of the log"),
    }
    if result.is_ok() {
        membership.end_life();
    }
    result
}

type Ended = (Option<(Rc<Daemon<Store>>, Rc<Membership>)>, Result<(), RunError>);

async fn serve_node(
    config: &NodeConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<Ended, RunError> {
    tokio::pin!(shutdown);
    let state = StateDir::open(&config.state_dir)?;
    let metrics_listener = config.metrics_listen.bind(Some(config.listen)).await?;
    let started = tokio::select! {
        started = start(config, state) => started?,
        () = &mut shutdown => return Ok((None, Ok(()))),
    };
    let Started { daemon, membership, listener, address, waker, policy, map } = started;
    let mut options = ServeOptions::new(policy);
    options.connections_max = config.connections_max;
    let hello = options.policy.hello;
    options.local = Some(LocalName::new(hello.cluster_id, Role::StorageNode, hello.id, hello.incarnation));
    let accept = serve(listener, options, {
        let daemon = daemon.clone();
        move |connected| daemon.clone().serve(connected)
    });
    tokio::task::spawn_local(daemon.clone().ticks());
    tokio::task::spawn_local(daemon.clone().poll());
    // Tasks of their own, not arms of the select below: that is polled whenever any task has run.
    tokio::task::spawn_local(accept);
    let disk = tokio::task::spawn_local(daemon.clone().disk(waker, Store::has_work));
    tokio::task::spawn_local(membership.clone().heartbeats(daemon.clone()));
    if let Some(died) = membership.begin_life() {
        tokio::task::spawn_local(membership.clone().tell_death(died));
    }
    tokio::task::spawn_local(membership.clone().follow_map(daemon.clone(), map));
    tokio::task::spawn_local(membership.clone().lists(daemon.clone()));
    tokio::task::spawn_local(membership.clone().tell_lists(daemon.clone()));
    tokio::task::spawn_local(scrub::run(membership.clone(), daemon.clone(), config.scrub_plan()));
    if let Some(listener) = metrics_listener {
        let (daemon, membership) = (daemon.clone(), membership.clone());
        let snapshot = async move || metrics::Snapshot::take(&daemon, &membership);
        tokio::task::spawn_local(trefoil_metrics::serve(listener, snapshot, metrics::render));
    }
    let node = membership.node;
    tracing::info!(%node, %address, "the storage node serves");
    ready(Ready { node, address });
    let result = tokio::select! {
        () = &mut shutdown => Ok(()),
        error = daemon.failed() => Err(RunError::Store(error)),
        ended = disk => match ended {
            Ok(result) => result.map_err(RunError::from),
            Err(error) => Err(RunError::Store(format!("the store's task has ended: {error}"))),
        },
    };
    if result.is_ok() {
        tracing::info!(%node, "stopping");
    }
    daemon.end();
    if let Err(error) = &result {
        // The monitors hear of it at once rather than by silence: a last heartbeat, as far as it goes.
        tracing::error!(%node, %error, "stopping");
    }
    Ok((Some((daemon, membership)), result))
}

struct Started {
    daemon: Rc<Daemon<Store>>,
    membership: Rc<Membership>,
    listener: TcpListener,
    address: SocketAddr,
    waker: AsyncWaker,
    policy: Policy,
    map: Option<Arc<ClusterMap>>,
}

async fn start(config: &NodeConfig, state: StateDir) -> Result<Started, RunError> {
    let (store, recovered) = open_store(config, &state).await?;
    let superblock = *store.superblock();
    let incarnation = superblock.incarnation;
    let listener = listen(config.listen).await?;
    let bound = listener.local_addr()?;
    let address = config.advertise.unwrap_or(bound);

    let mut hello = Hello::new(Role::StorageNode, superblock.cluster_id);
    hello.incarnation = incarnation.0;
    let known = state.identity(incarnation);
    let kept = state.map().filter(|map| map.cluster_id == superblock.cluster_id).map(Arc::new);
    let before = kept.clone();
    let client = MonitorClient::new(config.monitors.clone(), hello);
    let size = store.stats().space.total;
    let short = config.memory_short(size);
    if short > 0 {
        tracing::warn!(
            memory_bytes = config.memory_bytes,
            short,
            "a device of this size may need more memory than `memory_bytes` when it is full: raise it by what is short"
        );
    }
    let known_node = known.map(|identity| identity.node);
    let register = register(&client, config, known_node, incarnation, address, size);
    let unchecked = known.and_then(|identity| identity.unchecked).unwrap_or(u64::MAX);
    let found = recovered.log_position.min(unchecked);
    let ended = known.and_then(|identity| identity.position).unwrap_or(0);
    let lost = recovered.lost.or_else(|| rolled_back(found, ended));
    // State that is lost has to be told to the machine with the generations that the monitors granted.
    let could_do_without = known.is_some() && kept.is_some() && lost.is_none();
    let mut alone = false;
    let (node, map) = if could_do_without {
        match timeout(MONITORS_WAIT, register).await {
            Ok(registered) => registered?,
            Err(_) => {
                tracing::warn!("the monitors do not answer: starting with the last map");
                alone = true;
                match (known_node, kept) {
                    (Some(node), Some(map)) => (node, map),
                    _ => return Err(io::Error::other("no id and no map").into()),
                }
            }
        }
    } else {
        register.await?
    };
    let position = Some(found.max(ended));
    state.keep_identity(Identity { incarnation, node, unchecked: Some(found), position });
    // One that was restored from a backup and is not checked yet knows less than the one before.
    let unchecked = map.restored.unchecked;
    if !unchecked {
        state.keep_map(&map);
    }
    client.set_identity(u64::from(node.0), incarnation.0);
    hello.id = u64::from(node.0);

    let waker = AsyncWaker::new(store.waker())?;
    let mut machine = Node::new(MachineConfig { id: node }, recovered.durable);
    machine.set_budget(config.budget());
    let busy_poll = Duration::from_micros(config.busy_poll_us);
    let daemon = Daemon::new(Engine::new(machine, store), hello, busy_poll);
    let start_position = Cell::new(Some(found));
    let membership = Rc::new(Membership {
        client,
        node,
        incarnation,
        state,
        registration: Registration { address, host: config.host.clone(), class: config.class.clone(), size },
        start_position,
        lost_ticket: Cell::new(None),
        lost_order: Cell::new(None),
        lost_noted: Cell::new(None),
        lost_untold: Cell::new(false),
        life: RefCell::new(None),
        scrub_ages: Cell::new((None, None)),
        map: RefCell::new(None),
    });
    if let Some(why) = &lost {
        tracing::error!(why, "the store has lost state: its copies have no vote until they are repaired");
        membership.state_lost(&daemon, &map);
    } else if !alone {
        // The floor that the monitors remember, before anybody is answered.
        let beat = membership.heartbeat(&daemon);
        if let Ok(Ok(alive)) = timeout(MONITORS_WAIT, membership.client.heartbeat(beat)).await {
            match alive.lost_order {
                // It ended before it had taken note.
                Some(order) => membership.lose_by_order(&daemon, order, &map),
                None => membership.check_position(&daemon, alive.position_floor, &map),
            }
        }
    }
    // What it had heard before the monitors were restored is what they are to be told.
    if let Some(before) = before.filter(|_| unchecked) {
        membership.adopt(&daemon, None, &before);
    }
    membership.adopt(&daemon, None, &map);
    let roles = &[Role::FrontEnd, Role::StorageNode];
    let policy = Policy { hello, roles, unknown_cluster: false };
    Ok(Started { daemon, membership, listener, address: bound, waker, policy, map: Some(map) })
}

/// N8, without the monitors: the log ended at `ended` once, and was found to end at `found`.
fn rolled_back(found: u64, ended: u64) -> Option<String> {
    (found < ended).then(|| {
        format!(
            "the log ends at {found}, before {ended}, where it ended when this node stopped: was the device \
             replaced by an older copy of itself?"
        )
    })
}

/// Until the monitors have answered. Only their refusal is an error.
async fn register(
    client: &MonitorClient,
    config: &NodeConfig,
    known: Option<NodeId>,
    incarnation: trefoil_core::Incarnation,
    address: SocketAddr,
    size: u64,
) -> Result<(NodeId, Arc<ClusterMap>), RunError> {
    let mut told = false;
    loop {
        let registered = async {
            let (host, class) = (config.host.clone(), config.class.clone());
            let node = client.register_node(known, incarnation, address, host, class, size).await?;
            Ok::<_, CallError>((node, client.get_map(0).await?))
        };
        match registered.await {
            Ok((node, Some(map))) => return Ok((node, map)),
            Err(error @ CallError::Answered(trefoil_monitor::rpc::RpcError::Refused(_))) => {
                return Err(RunError::Refused(error));
            }
            other => {
                if !std::mem::replace(&mut told, true) {
                    let why = other.map_or_else(|error| error.to_string(), |_| "no map".to_owned());
                    tracing::warn!(why, "waiting for the monitors");
                }
                sleep(MONITORS_RETRY).await;
            }
        }
    }
}

/// Opens the store; makes it first, if that is wanted and nothing is there.
async fn open_store(config: &NodeConfig, state: &StateDir) -> Result<(Store, Recovered), RunError> {
    let missing = match std::fs::metadata(&config.device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            let text = format!("{}: {error}", config.device.display());
            return Err(io::Error::new(error.kind(), text).into());
        }
        Ok(meta) => meta.is_file() && meta.len() == 0,
    };
    if missing && config.format_if_missing {
        // A file that was cut off or a mount that is not there must not look like a first start.
        if let Some(known) = state.known() {
            return Err(RunError::Gone { device: config.device.clone(), known });
        }
        format_device(config).await?;
    }
    let mut last = 0;
    let mut progress = |done: u32, all: u32| {
        if let Some(percent) = (u64::from(done) * 100).checked_div(u64::from(all))
            && percent >= last + 10
        {
            last = percent;
            tracing::info!(percent, "reading the log");
        }
    };
    let index = state.index();
    let (store, recovered) = Store::open(&config.device, &index, config.store_options(), &mut progress)?;
    tracing::info!(
        incarnation = format_args!("{:016x}", recovered.incarnation.0),
        position = recovered.log_position,
        how = ?recovered.how,
        "the store is open"
    );
    Ok((store, recovered))
}

/// The device belongs to a cluster from its first byte on, so the monitors are asked which one it is.
async fn format_device(config: &NodeConfig) -> Result<(), RunError> {
    let client = MonitorClient::new(config.monitors.clone(), Hello::new(Role::StorageNode, [0; 16]));
    let mut told = false;
    let cluster_id = loop {
        match client.get_map(0).await {
            Ok(Some(map)) => break map.cluster_id,
            Ok(None) => {}
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%error, "waiting for the monitors, to format the device for their cluster");
            }
            Err(_) => {}
        }
        sleep(MONITORS_RETRY).await;
    };
    let options = FormatOptions {
        size: config.size,
        cluster_id,
        // Not known yet: the monitors give it to the incarnation that formatting draws.
        node_id: NodeId(u32::MAX),
        segment_bytes: None,
        preallocate: false,
        force: false,
    };
    format(&config.device, &options)?;
    tracing::info!(device = %config.device.display(), "formatted");
    Ok(())
}
