//! `trefoil bench floor`: what a replicated read or write costs at least on this machine, several ways.
//!
//! The processes are this program again, with the hidden `bench floor-part`; the client is this process. What
//! they do is in [`trefoil_storage_node::bench::floor`]; here they are started, connected, and stopped.

use super::{Seconds, digits, progress, progress_bar, stop};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::signals::{self, Shutdown};
use crate::size::Size;
use anyhow::{Context, anyhow, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::bench::BenchError;
use trefoil_storage_node::bench::floor::engine::Engine;
use trefoil_storage_node::bench::floor::load::{Client, Measured, Pattern, raw};
use trefoil_storage_node::bench::floor::{Counters, EventLoop, NODES, PAYLOAD_MAX, part};
use trefoil_storage_node::device::buffer::Pool;
use trefoil_storage_node::device::file::RawDevice;

/// What is measured, each with each transport and event loop.
const PATTERNS: [(&str, Pattern); 6] = [
    ("4k write", Pattern { write: true, bytes: 4096, depth: 1 }),
    ("4k write", Pattern { write: true, bytes: 4096, depth: 32 }),
    ("4k read", Pattern { write: false, bytes: 4096, depth: 1 }),
    ("4k read", Pattern { write: false, bytes: 4096, depth: 32 }),
    ("1M write", Pattern { write: true, bytes: 1 << 20, depth: 8 }),
    ("1M read", Pattern { write: false, bytes: 1 << 20, depth: 8 }),
];
/// Smallest file: with the largest batch in it there is still something to go round.
const SIZE_MIN: u64 = 16 << 20;
/// How long processes may take to end when their peers have gone.
const END_WAIT: Duration = Duration::from_secs(2);
/// Of the line in which a part says where it listens.
const LINE_MAX: u64 = 4096;
/// Space for the file system's own.
const SPARE_BYTES: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  trefoil bench floor --dir /srv/bench
  trefoil bench floor --dir /srv/bench --transport unix --event-loop ring,poll --runtime 5
  trefoil bench floor --dir /srv/bench --json

A client, a front and three nodes with a file each send, receive, read and write (durably) what a volume's do,
without protocol, checksums and tables. Event loops of front and nodes:
  epoll  epoll, recv and writev; the device on io_uring, which rings an eventfd
  ring   sockets and device on one io_uring, one io_uring_enter for each wake-up
  poll   as ring, but it looks for up to 50 us before it sleeps
  batch  as ring, but with several requests under way it waits up to 20 us for several completions
CPU is processor time of front and nodes for each I/O; the client's is apart. SYSCALLS and SLEEPS are those of
front and nodes for each I/O. NODES is the mean time from the front to the deciding node and back, DEVICE the
part of it in a node from the request's arrival to the end of the device's work. RATIO is to the device by itself.";

/// Measure the least that a replicated read or write costs on this machine
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct FloorArgs {
    /// A directory on the device; it must be there. Three files are made in it, and removed
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Seconds for each line
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    runtime: Seconds,
    /// Bytes of each node's file
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    size: Size,
    /// Between front and nodes
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "tcp,unix")]
    transport: Vec<Transport>,
    /// Of front and nodes; see below
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "epoll,ring,poll,batch")]
    event_loop: Vec<EventLoop>,
    /// Show the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Between front and nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    /// TCP over the loopback interface
    Tcp,
    /// Unix sockets
    Unix,
}

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
        Part::Front { listen, nodes } => {
            let listener = UnixListener::bind(listen)?;
            writeln!(out, "ready: {}", listen.display())?;
            out.flush()?;
            let mut engine = Engine::new(args.event_loop, None)?;
            engine.add(unix(listener.accept()?.0)?)?;
            for node in nodes {
                engine.add(match node.starts_with('/') {
                    true => unix(UnixStream::connect(node)?)?,
                    false => tcp(TcpStream::connect(node)?)?,
                })?;
            }
            Ok(part::front(engine)?)
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

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    pattern: &'static str,
    depth: u32,
    write: bool,
    bytes: u32,
    /// Without it the device by itself was measured.
    transport: Option<Transport>,
    event_loop: Option<&'static str>,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    /// Of front and nodes.
    cpu_us: f64,
    cpu_front_us: f64,
    cpu_nodes_us: f64,
    /// For the device by itself this is the only process.
    cpu_client_us: f64,
    syscalls_front: f64,
    syscalls_nodes: f64,
    sleeps_front: f64,
    sleeps_nodes: f64,
    device_ops: f64,
    /// Mean time from the front to the answer of the node that decides.
    nodes_us: f64,
    /// Mean time in a node from arrival to the end of the device's work.
    device_us: f64,
    /// To the device by itself.
    ratio: f64,
    p50_ratio: f64,
}

#[derive(Serialize)]
struct View<'a> {
    runtime_s: f64,
    size: u64,
    lines: &'a [Line],
}

/// Runs the command.
pub fn run(args: &FloorArgs, out: &mut dyn Write) -> Outcome {
    let size = args.size.0 / PAYLOAD_MAX as u64 * PAYLOAD_MAX as u64;
    if size < SIZE_MIN {
        return Err(Failure::usage(anyhow!("--size must be at least {}", Size(SIZE_MIN))));
    }
    let shutdown = signals::listen()?;
    measure(args, size, &shutdown, out).map_err(|failure| match *shutdown.borrow() {
        // Whatever failed, failed because of that: the signal ends the other processes too.
        true => BenchError::Stopped.into(),
        false => failure,
    })
}

fn measure(args: &FloorArgs, size: u64, shutdown: &Shutdown, out: &mut dyn Write) -> Outcome {
    let bar = progress_bar();
    let files = Files::make(&args.dir, size, shutdown, &mut |done, of| {
        progress(&bar, "writing the files", done, of)
    })?;
    let time = args.runtime.0;
    let of = (PATTERNS.len() * (1 + args.transport.len() * args.event_loop.len())) as u64;
    let mut done = 0;
    let mut next = |what: &str| {
        progress(&bar, what, done, of);
        done += 1;
    };
    let mut raws = Vec::new();
    let mut device = Engine::new(EventLoop::Ring, Some(RawDevice::open(&files.file(0), false)?))?;
    let stopped = stop(shutdown);
    for (name, pattern) in PATTERNS {
        next(&format!("device: {name}, {}", pattern.depth));
        raws.push(raw(&mut device, pattern, size, time, &*stopped)?);
    }
    // The nodes want its lock.
    drop(device);
    let mut all: Vec<Vec<Line>> = PATTERNS
        .iter()
        .zip(&raws)
        .map(|((name, pattern), raw)| vec![line(name, *pattern, None, raw, raw)])
        .collect();
    for &transport in &args.transport {
        for &how in &args.event_loop {
            let parts = Parts::start(&files, transport, how, size)?;
            let mut engine = Engine::new(EventLoop::Epoll, None)?;
            let front = files.socket("front");
            engine.add(unix(UnixStream::connect(&front).context("cannot reach the front")?)?)?;
            let (shutdown, size) = (shutdown.clone(), size);
            let mut client = Client::new(engine, size, Box::new(move || *shutdown.borrow()));
            for (n, (name, pattern)) in PATTERNS.into_iter().enumerate() {
                next(&format!("{}, {how}: {name}, {}", transport.name(), pattern.depth));
                let measured = client.run(pattern, time)?;
                all[n].push(line(name, pattern, Some((transport, how)), &measured, &raws[n]));
            }
            drop(client);
            parts.end()?;
        }
    }
    bar.finish_and_clear();
    let lines: Vec<Line> = all.into_iter().flatten().collect();
    if args.json {
        return output::json(out, &View { runtime_s: time.as_secs_f64(), size, lines: &lines });
    }
    writeln!(out, "{}", table(&lines))?;
    Ok(())
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Unix => "unix",
        }
    }
}

fn line(
    name: &'static str,
    pattern: Pattern,
    how: Option<(Transport, EventLoop)>,
    measured: &Measured,
    raw: &Measured,
) -> Line {
    let n = measured.latency.count().max(1) as f64;
    let iops = |m: &Measured| m.latency.count() as f64 / m.elapsed.as_secs_f64().max(1e-9);
    let us = |m: &Measured, part| m.latency.percentile(part).as_secs_f64() * 1e6;
    let Measured { client, front, nodes, .. } = measured;
    let cpu = |c: &Counters| c.cpu_ns as f64 / 1000.0 / n;
    let each = |count: u64| count as f64 / n;
    let waited = |c: &Counters| c.waited_ns as f64 / 1000.0 / c.waited.max(1) as f64;
    Line {
        pattern: name,
        depth: pattern.depth,
        write: pattern.write,
        bytes: pattern.bytes,
        transport: how.map(|(transport, _)| transport),
        event_loop: how.map(|(_, how)| how.name()),
        iops: iops(measured),
        p50_us: us(measured, 0.5),
        p99_us: us(measured, 0.99),
        cpu_us: cpu(&front.and(nodes)),
        cpu_front_us: cpu(front),
        cpu_nodes_us: cpu(nodes),
        cpu_client_us: cpu(client),
        syscalls_front: each(front.syscalls),
        syscalls_nodes: each(nodes.syscalls),
        sleeps_front: each(front.switches),
        sleeps_nodes: each(nodes.switches),
        device_ops: each(nodes.device_ops + client.device_ops),
        nodes_us: waited(front),
        device_us: waited(nodes),
        ratio: iops(measured) / iops(raw).max(1e-9),
        p50_ratio: us(measured, 0.5) / us(raw, 0.5).max(1e-9),
    }
}

fn table(lines: &[Line]) -> String {
    let headers = [
        "PATTERN",
        ">DEPTH",
        "TRANSPORT",
        "LOOP",
        ">IOPS",
        ">P50_US",
        ">P99_US",
        ">CPU_US",
        ">FRONT",
        ">NODES",
        ">CLIENT",
        ">SYSCALLS",
        ">SLEEPS",
        ">DEVICE_OPS",
        ">NODES_US",
        ">DEVICE_US",
        ">RATIO",
        ">P50_RATIO",
    ];
    let rows = lines.iter().map(|line| {
        let mut row = vec![
            line.pattern.to_owned(),
            line.depth.to_string(),
            line.transport.map_or("device", Transport::name).to_owned(),
            line.event_loop.unwrap_or("-").to_owned(),
        ];
        row.extend([line.iops, line.p50_us, line.p99_us].map(digits));
        let of_parts = [
            line.cpu_us,
            line.cpu_front_us,
            line.cpu_nodes_us,
            line.cpu_client_us,
            line.syscalls_front + line.syscalls_nodes,
            line.sleeps_front + line.sleeps_nodes,
            line.device_ops,
            line.nodes_us,
            line.device_us,
            line.ratio,
            line.p50_ratio,
        ];
        row.extend(of_parts.map(digits));
        row
    });
    output::table(&headers, rows)
}

/// The nodes' files and everybody's sockets. Dropping it removes them.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn make(
        parent: &Path,
        size: u64,
        shutdown: &Shutdown,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Outcome<Files> {
        let parent = parent.canonicalize().with_context(|| format!("cannot use {}", parent.display()))?;
        let stat = nix::sys::statvfs::statvfs(&parent)
            .with_context(|| format!("cannot ask how much space {} has", parent.display()))?;
        #[allow(clippy::unnecessary_cast)] // Not 64 bits everywhere.
        let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        let needed = size * NODES as u64;
        if free < needed + SPARE_BYTES {
            let (free, needed) = (Size(free), Size(needed + SPARE_BYTES));
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
        for n in 0..NODES {
            let device = RawDevice::open(&files.file(n), true)?;
            for at in (0..size).step_by(PAYLOAD_MAX) {
                if *shutdown.borrow() {
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

    fn file(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}"))
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
struct Parts(Vec<Child>);

impl Parts {
    fn start(files: &Files, transport: Transport, how: EventLoop, size: u64) -> Outcome<Parts> {
        let mut parts = Parts(Vec::new());
        let mut nodes = Vec::new();
        for n in 0..NODES {
            let mut command = Parts::command(how)?;
            command.arg("node").arg("--bytes").arg(size.to_string()).arg("--file").arg(files.file(n));
            if transport == Transport::Unix {
                command.arg("--listen").arg(fresh(files.socket(&format!("node{n}")))?);
            }
            nodes.push(parts.spawn(command)?);
        }
        let mut command = Parts::command(how)?;
        command
            .arg("front")
            .arg("--listen")
            .arg(fresh(files.socket("front"))?)
            .arg("--nodes")
            .arg(nodes.join(","));
        parts.spawn(command)?;
        Ok(parts)
    }

    fn command(how: EventLoop) -> Outcome<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["bench", "floor-part", "--event-loop", how.name()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    }

    /// Where it listens.
    fn spawn(&mut self, mut command: Command) -> Outcome<String> {
        let mut child = command.spawn().context("cannot run this program again")?;
        let stdout = child.stdout.take();
        self.0.push(child);
        let mut line = String::new();
        BufReader::new(stdout.context("no pipe")?.take(LINE_MAX))
            .read_line(&mut line)
            .context("cannot read")?;
        let address = line.trim_end().strip_prefix("ready: ");
        Ok(address.context("a process of the measurement did not start; it says why above")?.to_owned())
    }

    /// Their client has gone: they end by themselves.
    fn end(mut self) -> Outcome {
        let deadline = Instant::now() + END_WAIT;
        for child in &mut self.0 {
            let status = loop {
                if let Some(status) = child.try_wait().context("cannot wait for a process")? {
                    break status;
                }
                if Instant::now() >= deadline {
                    return Err(anyhow!("a process of the measurement does not end").into());
                }
                std::thread::sleep(Duration::from_millis(2));
            };
            let good = || -> anyhow::Result<()> {
                ensure!(
                    status.success(),
                    "a process of the measurement failed ({status}); it says why above"
                );
                Ok(())
            };
            good()?;
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
