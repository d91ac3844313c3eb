//! The processes of `trefoil bench floor`: this program again, with the hidden `bench floor-part`, and the files and
//! sockets that they use. Here they are started, connected and stopped; nothing is measured.

use super::{Limits, Transport};
use crate::failure::Outcome;
use crate::size::Size;
use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::bench::BenchError;
use trefoil_storage_node::bench::floor::engine::Engine;
use trefoil_storage_node::bench::floor::{EventLoop, NODES, PAYLOAD_MAX, part};
use trefoil_storage_node::device::buffer::Pool;
use trefoil_storage_node::device::file::RawDevice;

/// One for each node, and one for the device by itself.
const FILES: usize = NODES + 1;
/// How long processes may take to end when their peers have gone.
const END_WAIT: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
const END_LOOK: Duration = Duration::from_millis(1);
/// Of the line in which a part says where it listens.
const LINE_MAX: u64 = 4096;
/// Space for the file system's own.
const SPARE_BYTES: u64 = 64 << 20;

/// One of the processes. For `bench floor` itself.
#[derive(Args, Debug)]
pub struct PartArgs {
    /// How it waits.
    #[arg(long)]
    event_loop: EventLoop,
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand, Debug)]
enum Part {
    /// Serves one front
    Node {
        /// A socket's path; TCP otherwise
        #[arg(long)]
        listen: Option<PathBuf>,
        #[arg(long)]
        file: PathBuf,
        #[arg(long)]
        bytes: u64,
    },
    /// Serves one client
    Front {
        #[arg(long)]
        listen: PathBuf,
        /// Connections of the client
        #[arg(long)]
        clients: usize,
        /// Addresses or paths
        #[arg(long, value_delimiter = ',')]
        nodes: Vec<String>,
    },
}

/// Runs one of the processes: says `ready: ADDRESS`, and serves until its client has gone.
pub fn run_part(args: &PartArgs, out: &mut dyn Write) -> Outcome {
    match &args.part {
        Part::Node { listen, file, bytes } => {
            let device = RawDevice::open(file, false)?;
            let mut engine = Engine::new(args.event_loop, Some(device))?;
            let mut say = |address: &str| -> std::io::Result<()> {
                writeln!(out, "ready: {address}")?;
                out.flush()
            };
            engine.add(match listen {
                Some(path) => {
                    let listener = UnixListener::bind(path)?;
                    say(&path.display().to_string())?;
                    unix(listener.accept()?.0)?
                }
                None => {
                    let listener = TcpListener::bind(("127.0.0.1", 0))?;
                    say(&listener.local_addr()?.to_string())?;
                    tcp(listener.accept()?.0)?
                }
            })?;
            Ok(part::node(engine, *bytes)?)
        }
        Part::Front { listen, clients, nodes } => {
            let listener = UnixListener::bind(listen)?;
            writeln!(out, "ready: {}", listen.display())?;
            out.flush()?;
            let mut engine = Engine::new(args.event_loop, None)?;
            for _ in 0..*clients {
                engine.add(unix(listener.accept()?.0)?)?;
            }
            for node in nodes {
                engine.add(match node.starts_with('/') {
                    true => unix(UnixStream::connect(node)?)?,
                    false => tcp(TcpStream::connect(node)?)?,
                })?;
            }
            Ok(part::front(engine, *clients)?)
        }
    }
}

fn unix(stream: UnixStream) -> std::io::Result<OwnedFd> {
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

fn tcp(stream: TcpStream) -> std::io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

/// The nodes' files, one for the device by itself, and everybody's sockets. Dropping it removes them.
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Files of zeros, `size` bytes each.
    pub(super) fn make(
        parent: &Path,
        size: u64,
        limits: &Limits,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Outcome<Files> {
        let parent = parent.canonicalize().with_context(|| format!("cannot use {}", parent.display()))?;
        let stat = nix::sys::statvfs::statvfs(&parent)
            .with_context(|| format!("cannot ask how much space {} has", parent.display()))?;
        #[allow(clippy::unnecessary_cast)] // Not 64 bits everywhere.
        let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        let needed = size.saturating_mul(FILES as u64);
        if free < needed.saturating_add(SPARE_BYTES) {
            let (free, needed) = (Size(free), Size(needed.saturating_add(SPARE_BYTES)));
            let why = anyhow!(
                "{} has {free} free, and {needed} are needed: give a smaller --size",
                parent.display()
            );
            return Err(why.into());
        }
        let dir = parent.join(format!("trefoil-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let files = Files { dir };
        let mut zeros = Pool::new(u64::MAX, 0, None).get(PAYLOAD_MAX).context("no memory")?;
        zeros.fill(0);
        for n in 0..FILES {
            let device = RawDevice::open(&files.file(n), true)?;
            for at in (0..size).step_by(PAYLOAD_MAX) {
                if limits.over() {
                    return Err(BenchError::Stopped.into());
                }
                progress(n as u64 * size + at, needed);
                device.write_at(at, &zeros)?;
            }
            device.sync()?;
        }
        debug_assert_eq!(PAYLOAD_MAX % BLOCK_SIZE, 0);
        Ok(files)
    }

    fn file(&self, n: usize) -> PathBuf {
        self.dir.join(format!("file{n}"))
    }

    /// The file of no node.
    pub(super) fn device(&self) -> PathBuf {
        self.file(NODES)
    }

    /// A connection to the front.
    pub(super) fn front(&self) -> std::io::Result<OwnedFd> {
        unix(UnixStream::connect(self.socket("front"))?)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "the benchmark's files cannot be removed");
        }
    }
}

/// The front and the nodes. Dropping it ends them.
pub(super) struct Parts(Vec<Child>);

impl Parts {
    /// Starts them, connected to one another.
    pub(super) fn start(
        files: &Files,
        transport: Transport,
        how: EventLoop,
        clients: usize,
        size: u64,
        limits: &Limits,
    ) -> Outcome<Parts> {
        let mut parts = Parts(Vec::new());
        let mut nodes = Vec::new();
        for n in 0..NODES {
            let mut command = Parts::command(how)?;
            command.arg("node").arg("--bytes").arg(size.to_string()).arg("--file").arg(files.file(n));
            if transport == Transport::Unix {
                command.arg("--listen").arg(fresh(files.socket(&format!("node{n}")))?);
            }
            nodes.push(parts.spawn(command, limits)?);
        }
        let mut command = Parts::command(how)?;
        command
            .arg("front")
            .arg("--listen")
            .arg(fresh(files.socket("front"))?)
            .arg("--clients")
            .arg(clients.to_string())
            .arg("--nodes")
            .arg(nodes.join(","));
        parts.spawn(command, limits)?;
        Ok(parts)
    }

    fn command(how: EventLoop) -> Outcome<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["bench", "floor-part", "--event-loop", how.name()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    }

    /// Where it listens.
    fn spawn(&mut self, mut command: Command, limits: &Limits) -> Outcome<String> {
        let mut child = command.spawn().context("cannot run this program again")?;
        let stdout = child.stdout.take();
        self.0.push(child);
        let stdout = stdout.context("no pipe")?;
        // A pipe is read without a limit; the thread ends with the line, or with the process.
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout.take(LINE_MAX)).read_line(&mut line);
            // Nobody waits any more: then it does not matter.
            let _ = sender.send(read.map(|_| line));
        });
        let late = "a process of the measurement does not say that it is ready";
        let line = said.recv_timeout(limits.left()).context(late)?.context("cannot read")?;
        let address = line.trim_end().strip_prefix("ready: ");
        Ok(address.context("a process of the measurement did not start; it says why above")?.to_owned())
    }

    /// Their client has gone: they end by themselves.
    pub(super) fn end(mut self, limits: &Limits) -> Outcome {
        let deadline = Instant::now() + END_WAIT.min(limits.left());
        for child in &mut self.0 {
            let status = loop {
                if let Some(status) = child.try_wait().context("cannot wait for a process")? {
                    break status;
                }
                if Instant::now() >= deadline {
                    return Err(anyhow!("a process of the measurement does not end").into());
                }
                std::thread::sleep(END_LOOK);
            };
            if !status.success() {
                let why = anyhow!("a process of the measurement failed ({status}); it says why above");
                return Err(why.into());
            }
        }
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that was waited for has ended; then both do nothing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Without the socket of the former processes.
fn fresh(path: PathBuf) -> Outcome<PathBuf> {
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow::Error::new(error).context(format!("cannot remove {}", path.display())).into())
        }
        _ => Ok(path),
    }
}
