//! `trefoil monitor`, `storage-node` and `nbd`: the daemons by hand, or under systemd.
//!
//! A file first, then flags over it, then the daemon's own checks. It says READY to systemd and one line
//! `ready: ` on standard output when it serves; logs go to standard error.

use super::Global;
use super::format::{self, FormatArgs};
use super::monitor::{self as monitors, MonitorCommand};
use crate::config;
use crate::daemon::{Daemon, Role};
use crate::doctor;
use crate::failure::{Failure, Outcome};
use crate::notify::Manager;
use crate::signals;
use anyhow::{Context, anyhow, ensure};
use clap::{Args, Subcommand};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use trefoil_monitor::{MonitorConfig, PeerConfig};
use trefoil_nbd::NbdConfig;
use trefoil_storage_node::NodeConfig;

/// Set by `trefoil up` for its processes: the pid whose end they do not outlive.
pub const PARENT_ENV: &str = "TREFOIL_UP_PID";

/// What all daemons take.
#[derive(Args, Debug)]
pub struct Common {
    /// The configuration (TOML). Flags win over it; unknown keys are refused
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen beyond loopback although connections are not encrypted yet
    #[arg(long)]
    allow_plaintext: bool,
}

const MONITOR_EXAMPLES: &str = "\
Examples:
  trefoil monitor --config /etc/trefoil/monitor.toml
  trefoil monitor --listen 127.0.0.1:10800 --data-dir /var/lib/trefoil/monitor
  trefoil monitor --id 2 --listen 10.0.0.2:10800 --data-dir /var/lib/trefoil/monitor \\
      --peer 1=10.0.0.1:10800 --peer 2=10.0.0.2:10800 --peer 3=10.0.0.3:10800
  trefoil monitor list                      # of a running cluster: see the commands above

A configuration:
  listen = \"127.0.0.1:10800\"
  data_dir = \"/var/lib/trefoil/monitor\"
  cluster_name = \"trefoil\"
  id = 1                      # of several monitors: each its own, and all the same peers
  peers = [ { id = 1, address = \"10.0.0.1:10800\" }, { id = 2, address = \"10.0.0.2:10800\" },
            { id = 3, address = \"10.0.0.3:10800\" } ]
  [bootstrap]                 # the first pool, made when so many nodes are there
  nodes = 3
  failure_domain = \"host\"

SIGTERM and SIGINT stop it in order; a second one ends it at once.";

/// Run a monitor: keeps the cluster map, grants volumes to front ends, knows who is up
#[derive(Args, Debug)]
#[command(after_help = MONITOR_EXAMPLES)]
pub struct MonitorArgs {
    /// Something else than to run it.
    #[command(subcommand)]
    command: Option<MonitorCommand>,
    #[command(flatten)]
    common: Common,
    /// Its number among the monitors [default: 1]
    #[arg(long)]
    id: Option<u64>,
    /// One of the first monitors of a new cluster, this one included; give all of them
    #[arg(long = "peer", value_name = "ID=ADDR:PORT", value_parser = peer)]
    peers: Vec<PeerConfig>,
    /// A monitor of the cluster that this one waits to be added to; may be given several times
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "peers")]
    join: Vec<SocketAddr>,
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where its state is
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

fn peer(text: &str) -> Result<PeerConfig, String> {
    let usage = || format!("{text:?}: give ID=ADDR:PORT, such as 2=10.0.0.2:10800");
    let (id, address) = text.split_once('=').ok_or_else(usage)?;
    let (id, address) = (id.parse().map_err(|_| usage())?, address.parse().map_err(|_| usage())?);
    Ok(PeerConfig { id, address })
}

const NODE_EXAMPLES: &str = "\
Examples:
  trefoil storage-node --config /etc/trefoil/node-0.toml
  trefoil storage-node --config DIR/etc/node-0.toml    # one of `trefoil up --processes`, again
  trefoil --monitor 127.0.0.1:10800 storage-node format /dev/nvme1n1
  trefoil --monitor 127.0.0.1:10800 storage-node --device /dev/nvme1n1 \\
      --state-dir /var/lib/trefoil/node-0 --listen 127.0.0.1:10810

A configuration:
  monitors = [\"127.0.0.1:10800\"]
  device = \"/dev/nvme1n1\"
  state_dir = \"/var/lib/trefoil/node-0\"
  listen = \"127.0.0.1:10810\"
  host = \"rack1-a\"
  format_if_missing = true    # where the file is missing or empty; nothing is overwritten
  size = 107374182400         # of a file that is made

SIGTERM and SIGINT stop it in order; a second one ends it at once.";

/// Run a storage node: keeps objects on one device, checks and heals itself against its peers
#[derive(Args, Debug)]
#[command(after_help = NODE_EXAMPLES)]
pub struct NodeArgs {
    /// Something else than to run it.
    #[command(subcommand)]
    command: Option<NodeCommand>,
    #[command(flatten)]
    common: Common,
    /// The block device, or preallocated file, that it keeps objects on
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
    /// A directory for its index and what it knows of the cluster
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The CRUSH host that it is put in at its first start
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
}

/// `trefoil storage-node ...`.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    Format(FormatArgs),
}

const NBD_EXAMPLES: &str = "\
Examples:
  trefoil nbd --config /etc/trefoil/nbd.toml
  trefoil --monitor 127.0.0.1:10800 nbd --listen 127.0.0.1:10809
  trefoil --monitor 127.0.0.1:10800 nbd --socket /run/trefoil/nbd.sock

A configuration:
  monitors = [\"127.0.0.1:10800\"]
  listen = [\"127.0.0.1:10809\"]
  socket = \"/run/trefoil/nbd.sock\"

SIGTERM and SIGINT stop it in order: writes are finished and volumes are released. A second one ends it
at once.";

/// Run an NBD front end: serves every volume under its name, over TCP and a unix socket
#[derive(Args, Debug)]
#[command(after_help = NBD_EXAMPLES)]
pub struct NbdArgs {
    #[command(flatten)]
    common: Common,
    /// Where to listen; may be given several times
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// A unix socket to listen on
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Threads that serve volumes, each volume by one of them [default: 1]
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
}

fn loaded<T: Default + serde::de::DeserializeOwned>(common: &Common) -> Outcome<T> {
    match &common.config {
        Some(path) => config::load(path),
        None => Ok(T::default()),
    }
}

fn set<T>(to: &mut T, from: &Option<T>)
where
    T: Clone,
{
    if let Some(value) = from {
        to.clone_from(value);
    }
}

/// `--monitor` over the file.
fn set_monitors(to: &mut Vec<SocketAddr>, global: &Global) -> Outcome {
    if !global.monitor.is_empty() {
        *to = crate::admin::named(global)?;
    }
    Ok(())
}

/// Runs `trefoil monitor`.
pub fn monitor(args: &MonitorArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    if let Some(command) = &args.command {
        let common = &args.common;
        let of_the_daemon = args.id.is_some() || args.listen.is_some() || args.data_dir.is_some();
        let listed = !args.peers.is_empty() || !args.join.is_empty();
        if of_the_daemon || listed || common.config.is_some() || common.allow_plaintext {
            return Err(Failure::usage(anyhow!(
                "options of the daemon before a command that runs none: give them behind it, if it has them"
            )));
        }
        crate::start_logging(global, "warn")?;
        return monitors::run(command, global, out);
    }
    let mut config: MonitorConfig = loaded(&args.common)?;
    set(&mut config.id, &args.id);
    if !args.peers.is_empty() {
        config.peers.clone_from(&args.peers);
    }
    if !args.join.is_empty() {
        config.join.clone_from(&args.join);
    }
    set(&mut config.listen, &args.listen);
    set(&mut config.data_dir, &args.data_dir);
    config.allow_plaintext |= args.common.allow_plaintext;
    config.check().map_err(Failure::usage)?;
    let address = config.listen.to_string();
    run(Role::Monitor, Daemon::Monitor(config), address, global)
}

/// Runs `trefoil storage-node`.
pub fn storage_node(args: &NodeArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    if let Some(NodeCommand::Format(format_args)) = &args.command {
        // clap's own check for this would refuse --monitor as well.
        let common = &args.common;
        let of_the_daemon = args.device.is_some() || args.state_dir.is_some() || args.listen.is_some();
        if of_the_daemon || args.host.is_some() || common.config.is_some() || common.allow_plaintext {
            return Err(Failure::usage(anyhow!(
                "options of the daemon before `format`, which takes only its own: give the device behind it"
            )));
        }
        crate::start_logging(global, "warn")?;
        return format::run(format_args, global, out);
    }
    let mut config: NodeConfig = loaded(&args.common)?;
    set(&mut config.device, &args.device);
    set(&mut config.state_dir, &args.state_dir);
    set(&mut config.listen, &args.listen);
    set(&mut config.host, &args.host);
    set_monitors(&mut config.monitors, global)?;
    config.allow_plaintext |= args.common.allow_plaintext;
    config.check().map_err(|error| Failure::usage(error.into()))?;
    let address = config.listen.to_string();
    run(Role::StorageNode, Daemon::StorageNode(config), address, global)
}

/// Runs `trefoil nbd`.
pub fn nbd(args: &NbdArgs, global: &Global) -> Outcome {
    let mut config: NbdConfig = loaded(&args.common)?;
    if !args.listen.is_empty() {
        config.listen.clone_from(&args.listen);
    }
    if args.socket.is_some() {
        config.socket.clone_from(&args.socket);
    }
    set(&mut config.shards, &args.shards);
    set_monitors(&mut config.monitors, global)?;
    config.allow_plaintext |= args.common.allow_plaintext;
    config.check().map_err(|error| Failure::usage(error.into()))?;
    let mut at: Vec<String> = config.listen.iter().map(SocketAddr::to_string).collect();
    at.extend(config.socket.iter().map(|path| path.display().to_string()));
    run(Role::Nbd, Daemon::Nbd(config), at.join(" "), global)
}

fn run(role: Role, daemon: Daemon, address: String, global: &Global) -> Outcome {
    crate::start_logging(global, "info")?;
    crate::limits::raise_descriptors(doctor::daemons::Need::of(&daemon).descriptors);
    if let Ok(parent) = std::env::var(PARENT_ENV) {
        die_with_parent(&parent)?;
    } else {
        // `up` is for trials: what it runs on is as it is.
        doctor::warn_at_start(&daemon);
    }
    let shutdown = signals::listen().context("cannot handle signals")?;
    let manager = Manager::from_environment();
    manager.starting("starting: the log says what it waits for");
    let ready = {
        let manager = manager.clone();
        move || {
            manager.serving(&format!("serving on {address}"));
            // Nobody may be reading.
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "ready: {address}").and_then(|()| out.flush());
        }
    };
    let stopping = || {
        manager.stopping();
        tracing::info!("stopping");
    };
    let result = daemon.run(shutdown, Box::new(ready), stopping, manager.clone().beats());
    if result.is_ok() {
        tracing::info!("stopped");
    }
    result.map_err(|error| Failure::from(error.context(role.to_string())))
}

/// Asks the kernel to kill this process when its parent ends, and looks whether it has ended already.
///
/// Killed, not stopped: `up` has ended without stopping us, so the monitor and the nodes are going as
/// well, and an orderly end would only wait for them in vain while the next `up` waits for us.
///
/// The environment may have been copied from a daemon of a running `up` by somebody who starts it by
/// hand: then there is no parent to go with.
fn die_with_parent(parent: &str) -> anyhow::Result<()> {
    let parent: i32 = parent.parse().with_context(|| format!("{PARENT_ENV}={parent} is no pid"))?;
    set_pdeathsig(Signal::SIGKILL).context("cannot ask for a signal at the parent's end")?;
    if nix::unistd::getppid().as_raw() != parent {
        set_pdeathsig(None).context("cannot do without a signal at the parent's end")?;
        ensure!(
            std::path::Path::new("/proc").join(parent.to_string()).exists(),
            "the `trefoil up` with pid {parent}, which {PARENT_ENV} names, has ended; unset it to start this \
             daemon by itself"
        );
    }
    Ok(())
}
