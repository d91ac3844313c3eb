//! `trefoil bench floor`: what a replicated read or write costs at least on this machine, several ways.
//!
//! The client and the device by itself run in this process; the front and the nodes are others ([`parts`]). What
//! they do is in [`trefoil_storage_node::bench::floor`].
//!
//! Whatever hangs, the run ends: everything that waits here does so for a while only, and then looks at
//! [`Limits`].

mod parts;

use super::{Seconds, digits, progress, progress_bar};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::signals::{self, Shutdown};
use crate::size::Size;
use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use parts::{Files, Parts};
use serde::Serialize;
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use trefoil_storage_node::bench::BenchError;
use trefoil_storage_node::bench::floor::engine::Engine;
use trefoil_storage_node::bench::floor::load::{Client, Measured, Pattern, raw};
use trefoil_storage_node::bench::floor::{CLIENTS_MAX, Counters, EventLoop, PAYLOAD_MAX};
use trefoil_storage_node::device::file::RawDevice;

pub use parts::{PartArgs, run_part};

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
/// Of a line's time, what its pattern is measured on the device by itself just before it.
const RAW_PART: u32 = 2;
/// Largest file of the floor beside a cluster.
const BESIDE_SIZE_MAX: u64 = 256 << 20;
/// The whole run may take so many times what its measurements take by themselves,
const LIMIT_TIMES: u32 = 3;
/// and for the files, and for each line's processes to start and end,
const LIMIT_FILES: Duration = Duration::from_secs(60);
/// so long.
const LIMIT_LINE: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  trefoil bench floor --dir /srv/bench
  trefoil bench floor --dir /srv/bench --transport unix --event-loop ring,poll --runtime 5
  trefoil bench floor --dir /srv/bench --clients 64
  trefoil bench floor --dir /srv/bench --json

A client, a front and three nodes with a file each send, receive, read and write (durably) what a
volume's do, without protocol, checksums and tables. Event loops of front and nodes:
  epoll  epoll, recv and writev; the device on io_uring, which rings an eventfd
  ring   sockets and device on one io_uring, one io_uring_enter for each wake-up
  poll   as ring, but it looks for up to 50 us before it sleeps
  batch  as ring, but with several requests under way it waits up to 20 us for several completions
         (Linux 6.12)
The client sends each request by itself, as libnbd, QEMU and the kernel do. With --clients it has that
many connections, DEPTH is that of all together.
CPU_US is processor time of front and nodes for each I/O, CPU_FRONT and CPU_NODES its parts;
CPU_CLIENT, the load's own, is apart. SYSCALLS, SLEEPS and DEVICE_OPS are those of front and nodes for
each I/O, three copies together. NODES_US is the mean time from the front to the node whose answer
decides, and back; DEVICE_US is the part of it that this node had the request, waiting for the device
or at work on it.

RATIO (of IOPS) and P50_RATIO are to the lines `device`: reads and durable writes of the same size and
as many under way, of one file without any process between, writes one after another as a node's are,
reads anywhere. They are measured in turns with the lines they belong to. A node writes everything that
has come meanwhile at once, the device by itself each request: with many writes under way RATIO can
exceed 1.

Nothing else should run on the machine: the kernel ends a durable write in a thread of its own, which
waits for its turn behind a busy process. Depth 1 shows it first.";

/// Measure the least that a replicated read or write costs on this machine
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct FloorArgs {
    /// A directory on the device; it must be there. Four files are made in it, and removed
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Seconds for each line
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    runtime: Seconds,
    /// Bytes of each file
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    size: Size,
    /// Between front and nodes
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "tcp,unix")]
    transport: Vec<Transport>,
    /// Of front and nodes; see below [default: all that this kernel can]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    event_loop: Vec<EventLoop>,
    /// Connections of the client, as if that many disks were attached; each request takes the next one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=CLIENTS_MAX as i64))]
    clients: u16,
    /// Seconds after which the whole run is given up [default: 3 times what it measures, and a minute or two]
    #[arg(long, value_name = "SECONDS")]
    limit: Option<Seconds>,
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
    /// Of that, in the node from the request's arrival to the end of the device's work.
    device_us: f64,
    /// To the device by itself.
    ratio: f64,
    p50_ratio: f64,
}

#[derive(Serialize)]
struct View<'a> {
    runtime_s: f64,
    size: u64,
    clients: u16,
    lines: &'a [Line],
}

/// When the run has to end, and where it is.
#[derive(Clone)]
struct Limits {
    shutdown: Shutdown,
    begun: Instant,
    limit: Duration,
}

impl Limits {
    fn over(&self) -> bool {
        *self.shutdown.borrow() || self.left().is_zero()
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.begun.elapsed())
    }

    /// Why it has ended, where `failure` is what came of that.
    fn reason(&self, failure: Failure, at: &str) -> Failure {
        if *self.shutdown.borrow() {
            // The signal ends the other processes too.
            return BenchError::Stopped.into();
        }
        if !self.left().is_zero() {
            return failure;
        }
        let why = anyhow!(
            "not done after {} s, at \"{at}\": a process of the measurement or the device hangs, or the machine is \
             slower than expected: give a larger --limit or a smaller --runtime",
            self.limit.as_secs_f64()
        );
        why.into()
    }
}

/// Runs the command.
pub fn run(args: &FloorArgs, out: &mut dyn Write) -> Outcome {
    let size = args.size.0 / PAYLOAD_MAX as u64 * PAYLOAD_MAX as u64;
    if size < SIZE_MIN {
        return Err(Failure::usage(anyhow!("--size must be at least {}", Size(SIZE_MIN))));
    }
    let loops = event_loops(&args.event_loop)?;
    let rows = (PATTERNS.len() * args.transport.len() * loops.len()) as u32;
    let row = args.runtime.0 + args.runtime.0 / RAW_PART;
    let expected = row * rows * LIMIT_TIMES + LIMIT_LINE * rows + LIMIT_FILES;
    let limit = args.limit.map_or(expected, |limit| limit.0);
    let limits = Limits { shutdown: signals::listen()?, begun: Instant::now(), limit };
    let at = RefCell::new("start".to_owned());
    let lines = measure(args, size, &loops, &limits, &at).map_err(|f| limits.reason(f, &at.borrow()))?;
    if args.json {
        let runtime_s = args.runtime.0.as_secs_f64();
        let clients = args.clients;
        return output::json(out, &View { runtime_s, size, clients, lines: &lines });
    }
    writeln!(out, "{}", table(&lines))?;
    Ok(())
}

/// Those asked for, or all that there can be.
fn event_loops(asked: &[EventLoop]) -> Outcome<Vec<EventLoop>> {
    if asked.is_empty() {
        let can = |how: &EventLoop| Engine::new(*how, None).is_ok();
        return Ok(EventLoop::ALL.into_iter().filter(can).collect());
    }
    for how in asked {
        Engine::new(*how, None).with_context(|| format!("cannot use --event-loop {how}"))?;
    }
    Ok(asked.to_vec())
}

fn measure(
    args: &FloorArgs,
    size: u64,
    loops: &[EventLoop],
    limits: &Limits,
    at: &RefCell<String>,
) -> Outcome<Vec<Line>> {
    let bar = progress_bar();
    let files = Files::make(&args.dir, size, limits, &mut |done, of| {
        at.replace("writing the files".to_owned());
        progress(&bar, "writing the files", done, of);
    })?;
    let of = 2 * (PATTERNS.len() * args.transport.len() * loops.len()) as u64;
    let mut done = 0;
    let mut next = |what: String| {
        progress(&bar, &what, done, of);
        at.replace(what);
        done += 1;
    };
    let mut lines = Vec::new();
    let mut device = Engine::new(EventLoop::Ring, Some(RawDevice::open(&files.device(), false)?))?;
    for (name, pattern) in PATTERNS {
        let (mut alone, mut rows) = (Measured::default(), Vec::new());
        for &transport in &args.transport {
            for &how in loops {
                next(format!("device: {name}, {}", pattern.depth));
                let time = args.runtime.0 / RAW_PART;
                alone.merge(&raw(&mut device, pattern, size, time, &|| limits.over())?);
                next(format!("{}, {how}: {name}, {}", transport.name(), pattern.depth));
                let way = Way { transport, how, clients: args.clients.into() };
                rows.push((transport, how, way.run(&files, size, pattern, args.runtime.0, limits)?));
            }
        }
        lines.push(line(name, pattern, None, &alone, &alone));
        let measured = |(transport, how, row)| line(name, pattern, Some((transport, how)), &row, &alone);
        lines.extend(rows.into_iter().map(measured));
    }
    bar.finish_and_clear();
    Ok(lines)
}

/// How a line's processes talk.
struct Way {
    transport: Transport,
    how: EventLoop,
    /// Connections of the client.
    clients: usize,
}

impl Way {
    /// A line: its processes are started for it, and end with it.
    fn run(
        &self,
        files: &Files,
        size: u64,
        pattern: Pattern,
        time: Duration,
        limits: &Limits,
    ) -> Outcome<Measured> {
        let parts = Parts::start(files, self.transport, self.how, self.clients, size, limits)?;
        let mut engine = Engine::new(EventLoop::Epoll, None)?;
        for _ in 0..self.clients {
            engine.add(files.front().context("cannot reach the front")?)?;
        }
        let over = limits.clone();
        let mut client = Client::new(engine, self.clients, size, Box::new(move || over.over()));
        let measured = client.run(pattern, time)?;
        drop(client);
        parts.end(limits)?;
        Ok(measured)
    }
}

/// The floor for the benchmark of a cluster, in turns with it: unix sockets and epoll, which are the cluster's
/// own where all of it is on one host. Dropping it removes its files.
pub struct Beside {
    files: Files,
    size: u64,
    shutdown: Shutdown,
}

impl Beside {
    /// Makes its files, of at most `size` bytes each.
    pub fn new(dir: &Path, size: u64, shutdown: &Shutdown) -> Outcome<Beside> {
        let size = size.clamp(SIZE_MIN, BESIDE_SIZE_MAX) / PAYLOAD_MAX as u64 * PAYLOAD_MAX as u64;
        let limits = Limits { shutdown: shutdown.clone(), begun: Instant::now(), limit: LIMIT_FILES };
        let made = Files::make(dir, size, &limits, &mut |_, _| ());
        let files = made.map_err(|failure| limits.reason(failure, "writing the files of the floor"))?;
        Ok(Beside { files, size, shutdown: shutdown.clone() })
    }

    /// One measurement.
    pub fn run(&self, pattern: Pattern, time: Duration) -> Outcome<Measured> {
        let limit = time * LIMIT_TIMES + LIMIT_FILES;
        let limits = Limits { shutdown: self.shutdown.clone(), begun: Instant::now(), limit };
        let way = Way { transport: Transport::Unix, how: EventLoop::Epoll, clients: 1 };
        let measured = way.run(&self.files, self.size, pattern, time, &limits);
        measured.map_err(|failure| limits.reason(failure, "the floor"))
    }
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
    let mean = |nanos: u64| nanos as f64 / 1000.0 / front.decided.max(1) as f64;
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
        nodes_us: mean(front.nodes_ns),
        device_us: mean(front.device_ns),
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
        ">CPU_FRONT",
        ">CPU_NODES",
        ">CPU_CLIENT",
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
        row.extend([line.cpu_us, line.cpu_front_us, line.cpu_nodes_us].map(|n| of_parts(line, n)));
        row.push(digits(line.cpu_client_us));
        let sums = [line.syscalls_front + line.syscalls_nodes, line.sleeps_front + line.sleeps_nodes];
        row.extend(sums.map(|n| of_parts(line, n)));
        row.push(digits(line.device_ops));
        row.extend([line.nodes_us, line.device_us].map(|n| of_parts(line, n)));
        row.extend([line.ratio, line.p50_ratio].map(digits));
        row
    });
    output::table(&headers, rows)
}

/// There are no front and no nodes where the device is measured by itself.
fn of_parts(line: &Line, n: f64) -> String {
    line.transport.map_or("-".to_owned(), |_| digits(n))
}
