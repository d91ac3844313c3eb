//! `trefoil up`: a whole cluster on one machine, for a first try and for tests.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | what was asked for, over what is there |
//! | [`state`], [`dir`] | what is remembered, and where |
//! | [`check`], [`ports`] | what is looked at before anything is started |
//! | [`launch`] | one daemon, as a thread or a process |
//! | [`supervisor`] | all of them |
//! | [`tell`], [`banner`] | what is said |
//!
//! The daemons are the same as in production and talk TCP as between hosts; `up` gives them no short
//! cut and no rule of its own.

mod banner;
mod check;
pub mod dir;
pub mod launch;
pub mod plan;
mod ports;
pub mod state;
mod supervisor;
mod tell;

use crate::admin::{Admin, NewVolume};
use crate::cmd::Global;
use crate::daemon::{Daemon, Role};
use crate::failure::{Failure, Outcome};
use crate::output::count;
use crate::signals;
use crate::size::Size;
use crate::view::Snapshot;
use anyhow::{Context, anyhow};
use clap::Args;
use dir::DataDir;
use plan::{NODES_MIN, Plan, Request, VolumeArg};
use state::{NodeState, State, VolumeWanted};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use supervisor::{Interrupt, Member, Mode, Supervisor};
use tell::Tell;
use tokio::time::sleep;
use trefoil_core::limits::OBJECT_SIZE_DEFAULT;
use trefoil_core::map::{FailureDomain, is_name};
use trefoil_monitor::{Bootstrap, MonitorConfig, PeerConfig};
use trefoil_nbd::NbdConfig;
use trefoil_nbd::config::ConfigError;
use trefoil_nbd::shards::SHARDS_MAX;
use trefoil_storage_node::NodeConfig;

/// The directory where `--dir` does not say; also where other commands look for a running `up`.
pub const DIR_DEFAULT: &str = "./trefoil-data";
/// The pool that `up` makes.
const POOL: &str = "default";
/// Volumes that are told of one by one.
const VOLUMES_SHOWN: usize = 16;
/// How often the monitor is asked whether what is waited for is so.
const POLL: Duration = Duration::from_millis(50);
/// How long the daemons of an `up` that was killed may take to go, before a new one gives up.
const LEFTOVERS_WAIT: Duration = Duration::from_secs(20);

const EXAMPLES: &str = "\
Examples:
  trefoil up
  trefoil up --dir /srv/try --nodes 5 --node-size 20G --volume a=10G --volume b=5G
  trefoil up --processes --restart

State stays in DIR: starting again finds nodes and volumes as they were. Naming a volume
again keeps it, a new one is made; more --nodes than before are added. SIGTERM or Ctrl-C stop
everything in order; a second one ends at once.

With --processes, DIR/processes.json lists what runs (role, name, pid, address, metrics,
config), DIR/log has the logs, and a daemon that has died can be started again by hand:
  trefoil storage-node --config DIR/etc/node-0.toml

When everything serves, one line on standard output begins with `ready: ` and a URI.";

/// Run a cluster on this machine: a monitor, storage nodes, an NBD front end, and a volume
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct UpArgs {
    /// Where everything is kept; made where it is missing
    #[arg(long, value_name = "DIR", default_value = DIR_DEFAULT)]
    dir: PathBuf,
    /// How many storage nodes, at least 3 [default: 3, or as many as there are]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// How many monitors: 1, 3 or 5. Chosen at the first start [default: 1, or as many as there are]
    #[arg(long, value_name = "N")]
    monitors: Option<usize>,
    /// The size of each node's device, a sparse file [default: 8G]
    #[arg(long, value_name = "SIZE")]
    node_size: Option<Size>,
    /// A volume to make where it does not exist yet; may be given several times [default: disk0=1G, on a
    /// new DIR]
    #[arg(long = "volume", value_name = "NAME=SIZE")]
    volumes: Vec<VolumeArg>,
    /// Where to serve NBD over TCP; port 0: any that is free, and the same again at the next start
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10809")]
    listen: SocketAddr,
    /// The unix socket to serve NBD on [default: DIR/nbd.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Threads of the NBD front end, each volume served by one of them
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: usize,
    /// Run each daemon as a process of its own
    #[arg(long)]
    processes: bool,
    /// Start a process again that died (with growing pauses, up to 30 s)
    #[arg(long, requires = "processes")]
    restart: bool,
    /// Serve NBD beyond loopback although connections are not encrypted yet: whoever reaches the port can
    /// read and write every volume
    #[arg(long)]
    allow_plaintext: bool,
}

/// Runs the command.
pub fn run(args: &UpArgs, global: &Global) -> Outcome {
    if !args.listen.ip().is_loopback() && !args.allow_plaintext {
        return Err(Failure::usage(anyhow!(
            "--listen {}: other hosts can reach it, and there is no encryption yet; listen on 127.0.0.1, or add \
             --allow-plaintext if everybody on that network may read and write every volume",
            args.listen
        )));
    }
    let shards = args.shards;
    if !(1..=SHARDS_MAX).contains(&shards) {
        return Err(Failure::usage(ConfigError::Shards(shards).into()));
    }
    let request = Request {
        nodes: args.nodes,
        node_size: args.node_size,
        volumes: args.volumes.iter().map(|volume| volume.0.clone()).collect(),
    };
    // Before the directory is made: what cannot be in any directory leaves no trace.
    plan::plan(&request, None).map_err(Failure::usage)?;

    crate::limits::raise_descriptors(0);
    let shutdown = signals::listen().context("cannot handle signals")?;
    let dir = DataDir::open(&args.dir)?;
    let old = State::load(dir.path())?;
    let plan = plan::plan(&request, old.as_ref()).map_err(Failure::usage)?;
    let monitors = monitor_count(args.monitors, old.as_ref()).map_err(Failure::usage)?;
    let socket = match &args.socket {
        // Daemons and URIs get absolute paths.
        Some(path) => std::path::absolute(path).context("--socket")?,
        None => dir.path().join("nbd.sock"),
    };
    let mode = match args.processes {
        true => Mode::Processes { args: log_args(global), restart: args.restart },
        false => Mode::Threads,
    };
    let tell = Tell::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot make a runtime: are there file descriptors left?")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        leftovers_gone(&dir).await?;
        if !args.processes {
            // It would name processes that are gone, and some day strangers.
            let _ = std::fs::remove_file(dir.processes_file());
        }
        check::socket_path(&socket)?;
        if args.listen.port() != 0 {
            check::listen_address(args.listen)?;
        }
        let mut state = settle(&dir, &plan, old, monitors, args.listen, socket, &tell)?;
        let mut up = Supervisor::new(&dir, mode, shutdown, tell);
        let outcome = match start(&mut up, &mut state, &plan, args.allow_plaintext, shards).await {
            Ok(()) => up.serve().await,
            Err(Interrupt::Stop) => Ok(()),
            Err(Interrupt::Failed(failure)) => Err(failure),
        };
        up.tell.line("stopping");
        up.stop().await;
        if outcome.is_ok() {
            up.tell.line("stopped");
        }
        outcome
    })
}

/// The logging options, for children.
fn log_args(global: &Global) -> Vec<String> {
    let mut args: Vec<String> = vec!["-v".to_owned(); usize::from(global.verbose)];
    args.extend(global.log.iter().flat_map(|filter| ["--log".to_owned(), filter.clone()]));
    args
}

/// Waits for the daemons of an `up` that was killed: they end when they notice, and until then hold their
/// devices and ports.
async fn leftovers_gone(dir: &DataDir) -> anyhow::Result<()> {
    let file = dir.processes_file();
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    // Whatever else the file holds, it names nobody.
    let entries: Vec<supervisor::ProcessRead> = serde_json::from_str(&text).unwrap_or_default();
    let alive = || entries.iter().find(|entry| is_daemon(entry.pid, &dir.config_file(&entry.name)));
    let deadline = tokio::time::Instant::now() + LEFTOVERS_WAIT;
    while let Some(entry) = alive() {
        anyhow::ensure!(
            tokio::time::Instant::now() < deadline,
            "{} (pid {}) of an earlier `trefoil up` on this directory still runs: stop it first",
            entry.name,
            entry.pid
        );
        sleep(POLL).await;
    }
    Ok(())
}

/// True if `pid` runs a daemon with that configuration. (The pid may be somebody else's by now.)
fn is_daemon(pid: u32, config: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == config.as_os_str().as_bytes())
}

fn monitor_count(wanted: Option<usize>, old: Option<&State>) -> anyhow::Result<usize> {
    let there = old.map(|old| old.monitors().len());
    let count = wanted.or(there).unwrap_or(1);
    anyhow::ensure!(
        matches!(count, 1 | 3 | 5),
        "--monitors {count}: choose 1, 3 (go on without one of them) or 5 (without two)"
    );
    anyhow::ensure!(
        there.is_none_or(|there| there == count),
        "--monitors {count}: there are {} already; leave the option out, and use `trefoil monitor add` and \
         `trefoil monitor remove`",
        there.unwrap_or_default()
    );
    Ok(count)
}

/// Chooses ports, writes down what there will be, and tells of it. Nothing has been started yet.
fn settle(
    dir: &DataDir,
    plan: &Plan,
    old: Option<State>,
    monitors: usize,
    listen: SocketAddr,
    socket: PathBuf,
    tell: &Tell,
) -> anyhow::Result<State> {
    let mut hasher = DefaultHasher::new();
    dir.path().hash(&mut hasher);
    let seed = hasher.finish();
    // Those of all daemons, so that one which must move does not take another one's.
    let mut taken: BTreeSet<u16> = [listen.port()].into();
    let before = old.iter().flat_map(|old| {
        let nodes = old.nodes.iter().map(|node| node.address);
        let metrics = old.metrics.values().copied();
        nodes.chain(old.monitors()).chain(metrics).map(|address| address.port())
    });
    taken.extend(before);
    let mut place = |name: &str, before: Option<SocketAddr>| -> anyhow::Result<SocketAddr> {
        if let Some(before) = before
            && before.port() != listen.port()
            && ports::is_free(before)
        {
            return Ok(before);
        }
        let address = ports::choose(Ipv4Addr::LOCALHOST.into(), &taken, seed)?;
        taken.insert(address.port());
        if let Some(before) = before {
            tell.line(&format!("{name} moves from {before}, which is in use, to {address}"));
        }
        Ok(address)
    };
    let monitor = place("the monitor", old.as_ref().map(|old| old.monitor))?;
    let mut more_monitors = Vec::new();
    for n in 1..monitors {
        let before = old.as_ref().and_then(|old| old.more_monitors.get(n - 1).copied());
        more_monitors.push(place(&monitor_name(n), before)?);
    }
    let listen_before = old.as_ref().map(|old| old.nbd_listen);
    let metrics_before = old.as_ref().map(|old| old.metrics.clone()).unwrap_or_default();
    let mut nodes = old.map(|old| old.nodes).unwrap_or_default();
    for node in &mut nodes {
        node.address = place(&node.name, Some(node.address))?;
    }
    for size in &plan.added {
        let name = format!("node-{}", nodes.len());
        nodes.push(NodeState { address: place(&name, None)?, name, size: *size, made: false });
    }
    let mut metrics = BTreeMap::new();
    for name in ["monitor", "nbd"].into_iter().chain(nodes.iter().map(|node| node.name.as_str())) {
        let address = place(&format!("the metrics of {name}"), metrics_before.get(name).copied())?;
        metrics.insert(name.to_owned(), address);
    }
    let listen = match (listen.port(), listen_before) {
        // Any port: that of the last start, if it may be.
        (0, Some(before)) if before.ip() == listen.ip() && ports::is_free(before) => before,
        (0, _) => ports::choose(listen.ip(), &taken, seed)?,
        _ => listen,
    };
    let devices: Vec<(PathBuf, Size)> =
        nodes.iter().map(|node| (device(dir, &node.name), node.size)).collect();
    let devices: Vec<(&Path, Size)> = devices.iter().map(|(path, size)| (path.as_path(), *size)).collect();
    tell.line(&format!("directory {}", dir.path().display()));
    for note in &plan.notes {
        tell.line(note);
    }
    if let Some(warning) = check::space(dir.path(), &devices)? {
        tell.warning(&warning);
    }
    let state = State {
        version: state::VERSION,
        monitor,
        more_monitors,
        nodes,
        volumes_wanted: plan.volumes.clone(),
        nbd_listen: listen,
        nbd_socket: socket,
        metrics,
    };
    // Before the first daemon: a node that exists must be known here.
    state.save(dir.path())?;
    Ok(state)
}

fn device(dir: &DataDir, node: &str) -> PathBuf {
    dir.path().join(node).join("device")
}

/// Starts everything, in order, until it serves.
async fn start(
    up: &mut Supervisor<'_>,
    state: &mut State,
    plan: &Plan,
    allow_plaintext: bool,
    shards: usize,
) -> Result<(), Interrupt> {
    let mut monitors = Vec::new();
    for n in 0..state.monitors().len() {
        monitors.push(up.start(monitor_member(up.dir(), state, n))?);
    }
    // All of them: the first start needs every one, and a later one that lacks one should say so.
    must_serve(up, &monitors).await?;
    start_nodes(up, state, plan).await?;
    up.tell.line(&format!(
        "{} and {} run{}",
        count(monitors.len() as u64, "monitor"),
        count(state.nodes.len() as u64, "storage node"),
        if up.has_processes() { ", each as a process" } else { ", each on a thread" }
    ));

    let mut admin = Admin::at(&state.monitors());
    up.during("the pool and the nodes", pool_and_nodes(&mut admin)).await?;
    let snapshot = up.during("the cluster map", admin.snapshot()).await?;
    let volumes = volumes(up, &mut admin, state, &snapshot).await?;

    let nbd = up.start(nbd_member(state, allow_plaintext, shards))?;
    must_serve(up, &[nbd]).await?;
    announce(up, state, &volumes);
    Ok(())
}

/// Nodes that are new start one after the other, so that the monitor gives them their numbers in order.
/// At a later start one that does not come is a warning: that is what three copies are for.
async fn start_nodes(up: &mut Supervisor<'_>, state: &mut State, plan: &Plan) -> Result<(), Interrupt> {
    // A node that was never made belongs to a start that was interrupted.
    let made = state.nodes.iter().take(plan.kept).take_while(|node| node.made).count();
    let mut old = Vec::new();
    for node in &state.nodes[..made] {
        old.push(up.start(node_member(up.dir(), state, node))?);
    }
    let failed = up.wait_ready(&old).await?;
    if failed.len() > 1 {
        return Err(Interrupt::Failed(not_started(&failed)));
    }
    for i in made..state.nodes.len() {
        let number = up.start(node_member(up.dir(), state, &state.nodes[i]))?;
        must_serve(up, &[number]).await?;
        state.nodes[i].made = true;
        state.save(up.dir().path())?;
    }
    Ok(())
}

async fn must_serve(up: &mut Supervisor<'_>, members: &[usize]) -> Result<(), Interrupt> {
    match up.wait_ready(members).await?.as_slice() {
        [] => Ok(()),
        failed => Err(Interrupt::Failed(not_started(failed))),
    }
}

fn not_started(failed: &[(usize, String)]) -> Failure {
    let reasons: Vec<&str> = failed.iter().map(|(_, why)| why.as_str()).collect();
    anyhow!("cannot start: {}", reasons.join("; ")).into()
}

/// The first has no number: that is how an `up` with one monitor has always called it.
fn monitor_name(n: usize) -> String {
    if n == 0 { "monitor".to_owned() } else { format!("monitor-{}", n + 1) }
}

fn monitor_member(dir: &DataDir, state: &State, n: usize) -> Member {
    let name = monitor_name(n);
    let addresses = state.monitors();
    let listen = addresses[n];
    let peers = (1..).zip(&addresses).map(|(id, address)| PeerConfig { id, address: *address });
    let config = MonitorConfig {
        listen,
        metrics_listen: state.metrics_listen(&name),
        data_dir: dir.path().join(&name),
        id: n as u64 + 1,
        peers: if addresses.len() > 1 { peers.collect() } else { Vec::new() },
        bootstrap: Some(Bootstrap {
            nodes: NODES_MIN.max(state.nodes.len()),
            pool: POOL.to_owned(),
            // All nodes are on this one host.
            failure_domain: FailureDomain::Osd,
            ..Bootstrap::default()
        }),
        ..MonitorConfig::default()
    };
    let metrics = state.metrics.get(&name).copied();
    let address = listen.to_string();
    Member { role: Role::Monitor, name, address, metrics, daemon: Daemon::Monitor(config) }
}

fn node_member(dir: &DataDir, state: &State, node: &NodeState) -> Member {
    let config = NodeConfig {
        device: device(dir, &node.name),
        state_dir: dir.path().join(&node.name),
        listen: node.address,
        monitors: state.monitors(),
        host: host_name(),
        // A device that was there and is gone is a loss to be told, not to be papered over.
        format_if_missing: !node.made,
        size: Some(node.size.0),
        metrics_listen: state.metrics_listen(&node.name),
        ..NodeConfig::default()
    };
    let address = node.address.to_string();
    let name = node.name.clone();
    let metrics = state.metrics.get(&name).copied();
    Member { role: Role::StorageNode, name, address, metrics, daemon: Daemon::StorageNode(config) }
}

/// This host's name, where it can be one in the cluster map.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if is_name(name) { name.to_owned() } else { "localhost".to_owned() }
}

fn nbd_member(state: &State, allow_plaintext: bool, shards: usize) -> Member {
    let config = NbdConfig {
        listen: vec![state.nbd_listen],
        socket: Some(state.nbd_socket.clone()),
        monitors: state.monitors(),
        shards,
        allow_plaintext,
        metrics_listen: state.metrics_listen("nbd"),
        ..NbdConfig::default()
    };
    let address = state.nbd_listen.to_string();
    let metrics = state.metrics.get("nbd").copied();
    Member { role: Role::Nbd, name: "nbd".to_owned(), address, metrics, daemon: Daemon::Nbd(config) }
}

/// Waits until the pool is made and a majority of nodes has been heard of.
async fn pool_and_nodes(admin: &mut Admin) -> Outcome {
    loop {
        let snapshot = admin.snapshot().await?;
        let up = snapshot.status().nodes.up;
        if snapshot.map.pool_named(POOL).is_some() && up as usize >= NODES_MIN - 1 {
            return Ok(());
        }
        sleep(POLL).await;
    }
}

/// Makes the volumes that are wanted and missing; returns the names of all, those asked for first.
async fn volumes(
    up: &mut Supervisor<'_>,
    admin: &mut Admin,
    state: &mut State,
    snapshot: &Snapshot,
) -> Result<Vec<String>, Interrupt> {
    let wanted = std::mem::take(&mut state.volumes_wanted);
    let there = snapshot.volumes();
    let mut names = Vec::new();
    for (i, volume) in wanted.iter().enumerate() {
        let VolumeWanted { name, size } = volume;
        match there.iter().find(|there| there.name == *name) {
            None => {
                let wish = NewVolume {
                    name: name.clone(),
                    pool: POOL.to_owned(),
                    size: size.0,
                    object_size: OBJECT_SIZE_DEFAULT,
                    io_timeout_ms: None,
                };
                match up.during(&format!("volume {name}"), admin.create_volume(&wish)).await {
                    Ok(id) => up.tell.line(&format!("made volume {name} of {size} (id {})", id.0)),
                    Err(Interrupt::Failed(failure)) => {
                        forget(up.dir(), state, &wanted[i + 1..])?;
                        return Err(Interrupt::Failed(failure));
                    }
                    stop => drop(stop?),
                }
            }
            Some(there) if there.size_bytes == size.0 => {
                up.tell.line(&format!("kept volume {name} of {size}"));
            }
            Some(there) => {
                forget(up.dir(), state, &wanted[i + 1..])?;
                return Err(anyhow!(
                    "--volume {name}={size}: it exists with {}, and this version does not change sizes; leave the \
                     option out to use it as it is, or choose another name",
                    Size(there.size_bytes)
                )
                .into());
            }
        }
        names.push(name.clone());
    }
    let found: Vec<_> = there.iter().filter(|there| !names.contains(&there.name)).collect();
    for (i, volume) in found.iter().enumerate() {
        if i < VOLUMES_SHOWN {
            up.tell.line(&format!("found volume {} of {}", volume.name, Size(volume.size_bytes)));
        }
        names.push(volume.name.clone());
    }
    let sizes = there.iter().filter(|there| !wanted.iter().any(|volume| volume.name == there.name));
    let sizes = sizes.map(|there| there.size_bytes).chain(wanted.iter().map(|volume| volume.size.0));
    let nodes: Vec<Size> = state.nodes.iter().map(|node| node.size).collect();
    if let Some(warning) = check::capacity(sizes.fold(0, u64::saturating_add), &nodes) {
        up.tell.warning(&warning);
    }
    // All made: the next start owes nothing.
    state.save(up.dir().path())?;
    Ok(names)
}

/// A wish that was refused is not owed any more: only those behind it are.
fn forget(dir: &DataDir, state: &mut State, owed: &[VolumeWanted]) -> anyhow::Result<()> {
    state.volumes_wanted = owed.to_vec();
    state.save(dir.path())
}

fn named(monitors: &[SocketAddr]) -> String {
    monitors.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
}

/// What serves now, and what to type next.
fn announce(up: &Supervisor<'_>, state: &State, volumes: &[String]) {
    let (listen, socket) = (state.nbd_listen, state.nbd_socket.as_path());
    for volume in volumes.iter().take(VOLUMES_SHOWN) {
        up.tell.line(&format!("NBD  {}", banner::tcp_uri(listen, volume)));
        up.tell.line(&format!("     {}", banner::unix_uri(socket, volume)));
    }
    if let Some(more) = volumes.len().checked_sub(VOLUMES_SHOWN).filter(|more| *more > 0) {
        up.tell.line(&format!("     and {more} more: trefoil volume list"));
    }
    let Some(first) = volumes.first() else {
        up.tell.line("there is no volume yet; to make one: trefoil volume create disk0 1G");
        up.tell.line(&format!("ready: {}", banner::tcp_uri(listen, "")));
        return;
    };
    up.tell.line("to use it:");
    for line in banner::next_lines(listen, socket, first) {
        up.tell.line(&format!("  {line}"));
    }
    let default = Path::new(DIR_DEFAULT).canonicalize().is_ok_and(|path| path == up.dir().path());
    let hint = if default { String::new() } else { format!("TREFOIL_MONITOR={} ", named(&state.monitors())) };
    up.tell.line(&format!("to watch it:\n  {hint}trefoil status"));
    up.tell.line(&format!("ready: {}", banner::tcp_uri(listen, first)));
}
