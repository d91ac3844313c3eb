//! System calls per I/O, by process and by call: what each I/O costs whatever the machine's speed.
//!
//! `strace -f -c` is attached to every daemon while a fixed number of 4 KiB I/Os goes through NBD. At depth 1
//! each I/O goes its way alone, so the counts hardly differ from run to run, and budgets are tight; looks of busy
//! polling are left out, and where it finds something a wait less is counted than where a daemon sleeps. At
//! depth 32 they depend on how many I/Os a wake-up finds waiting, hence on speed, which strace lowers: the
//! budgets there have more room and catch only what is lost altogether, as batching would be.
//!
//! To renew the budgets: run the test with `--nocapture` and copy the rows that it prints into [`BUDGETS`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::blocks::Random;
use crate::cluster::{Cluster, Shape};
use crate::nbd_client::{CMD_READ, CMD_WRITE, Client};
use crate::tools::{end, lacks, signal, wait_until};

/// System calls per I/O as they were measured: of the front end, and of the three nodes together.
#[rustfmt::skip]
const BUDGETS: [(&str, f64, f64); 4] = [
    ("write 4k, depth 1", 9.4, 18.7),
    ("read 4k, depth 1", 5.5, 5.5),
    ("write 4k, depth 32", 0.8, 1.4),
    ("read 4k, depth 32", 0.9, 1.3),
];
/// By how much a count may be above its row, by depth.
const ROOM_ALONE: f64 = 1.3;
const ROOM_BATCHED: f64 = 2.0;
/// Ticks and heartbeats go on meanwhile.
const ROOM_PER_IO: f64 = 0.5;

const BLOCK: usize = 4096;
/// Where the I/Os go: written before, larger than what a node keeps in memory of what it has just written.
const AREA_BYTES: u64 = 64 << 20;
/// I/Os that are counted.
const COUNT_ALONE: usize = 1000;
const COUNT_BATCHED: usize = 4000;
const LIMIT: Duration = Duration::from_secs(60);

/// Calls by name, and those of them that failed (as a receive does that finds nothing).
type Calls = BTreeMap<String, (u64, u64)>;

/// `strace` on one process and all of its threads.
struct Counter {
    strace: Child,
    file: PathBuf,
    pid: i32,
}

impl Counter {
    fn attach(cluster: &Cluster, name: &str) -> Self {
        let file = cluster.dir.join(format!("{name}.syscalls"));
        let pid = cluster.pid(name);
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(&file).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { strace: command.spawn().expect("strace starts"), file, pid }
    }

    /// Whether every thread is traced.
    fn is_attached(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        threads.flatten().all(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
            tracer.is_some_and(|pid| pid.trim() != "0")
        })
    }

    /// Lets go, and gives what was counted.
    fn finish(mut self) -> Calls {
        signal(self.strace.id() as i32, Signal::SIGINT);
        let ended = wait_until(Duration::from_secs(10), || matches!(self.strace.try_wait(), Ok(Some(_))));
        assert!(ended, "strace does not end at SIGINT");
        parse(&std::fs::read_to_string(&self.file).expect("strace's summary"))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        end(&mut self.strace);
    }
}

/// The table that `strace -c` writes: share, seconds, microseconds, calls, errors (or nothing), name.
fn parse(summary: &str) -> Calls {
    let mut calls = Calls::new();
    for line in summary.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (count, errors, name) = match words[..] {
            [_, _, _, count, name] => (count, "0", name),
            [_, _, _, count, errors, name] => (count, errors, name),
            _ => continue,
        };
        if let (Ok(count), Ok(errors)) = (count.parse(), errors.parse())
            && name != "total"
        {
            calls.insert(name.to_string(), (count, errors));
        }
    }
    calls
}

/// 4 KiB I/Os at random places, so many at once.
fn run_ios(client: &Client, command: u16, depth: usize, count: usize) {
    let mut random = Random::new(5);
    let block = [0x5a; BLOCK];
    let submit = |random: &mut Random| {
        let offset = random.below(AREA_BYTES / BLOCK as u64) * BLOCK as u64;
        let data: &[u8] = if command == CMD_WRITE { &block } else { &[] };
        client.submit(command, 0, offset, BLOCK, data).expect("sent");
    };
    (0..depth).for_each(|_| submit(&mut random));
    for answered in 0..count {
        let completion = client.next(LIMIT).expect("an answer");
        assert_eq!(completion.error, 0);
        if answered + depth < count {
            submit(&mut random);
        }
    }
}

/// All of them, but for the looks of busy polling: each gives the processor away and asks epoll without waiting. How
/// many there are is a question of how long others take, and no work.
fn total(calls: &Calls) -> u64 {
    let of = |name| calls.get(name).map_or(0, |(count, _)| *count);
    let looks = of("sched_yield");
    let sum: u64 = calls.values().map(|(count, _)| count).sum();
    sum - looks - looks.min(of("epoll_wait"))
}

fn add(to: &mut Calls, calls: &Calls) {
    for (name, (count, errors)) in calls {
        let sum = to.entry(name.clone()).or_default();
        *sum = (sum.0 + count, sum.1 + errors);
    }
}

fn show(who: &str, calls: &Calls, ios: f64) {
    let mut sorted: Vec<_> = calls.iter().filter(|(_, (count, _))| *count as f64 / ios >= 0.01).collect();
    sorted.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    let words: Vec<String> = sorted
        .iter()
        .map(|(name, (count, errors))| match *errors as f64 / ios {
            failed if failed >= 0.01 => format!("{name} {:.2} ({failed:.2} in vain)", *count as f64 / ios),
            _ => format!("{name} {:.2}", *count as f64 / ios),
        })
        .collect();
    println!("syscalls:   {who}: {:.2} without looks: {}", total(calls) as f64 / ios, words.join(", "));
}

#[test]
fn each_io_costs_few_system_calls() {
    if lacks(&["strace"]) {
        return;
    }
    let cluster = Cluster::start(Shape::default());
    let client = cluster.connect("disk0");
    let piece = vec![0xa5; 1 << 20];
    (0..AREA_BYTES >> 20).for_each(|n| client.write(n << 20, &piece).expect("written"));
    let names: Vec<String> =
        ["nbd", "storage-node", "monitor"].iter().flat_map(|role| cluster.names(role)).collect();

    let mut over = Vec::new();
    for (what, front_budget, nodes_budget) in BUDGETS {
        let command = if what.starts_with("write") { CMD_WRITE } else { CMD_READ };
        let alone = what.ends_with(" 1");
        let (depth, count, room) =
            if alone { (1, COUNT_ALONE, ROOM_ALONE) } else { (32, COUNT_BATCHED, ROOM_BATCHED) };
        run_ios(&client, command, depth, 64);
        let counters: Vec<_> = names.iter().map(|name| Counter::attach(&cluster, name)).collect();
        if !wait_until(Duration::from_secs(10), || counters.iter().all(Counter::is_attached)) {
            // Not a program that is missing: containers and hardened kernels refuse it, and nothing here can help.
            println!("SKIP: strace may not trace other processes here (ptrace is refused)");
            return;
        }
        run_ios(&client, command, depth, count);

        let ios = count as f64;
        let (mut front, mut nodes) = (Calls::new(), Calls::new());
        println!("syscalls: {what}, per I/O:");
        for (name, counter) in names.iter().zip(counters) {
            let calls = counter.finish();
            show(name, &calls, ios);
            match name.as_str() {
                name if cluster.process(name).role == "nbd" => add(&mut front, &calls),
                name if cluster.process(name).role == "storage-node" => add(&mut nodes, &calls),
                _ => {}
            }
        }
        let (front, nodes) = (total(&front) as f64 / ios, total(&nodes) as f64 / ios);
        println!("syscalls: row: (\"{what}\", {front:.1}, {nodes:.1}),");
        assert!(front > 0.1 && nodes > 0.1, "strace has counted: {front}, {nodes}");
        for (who, calls, budget) in [("front end", front, front_budget), ("nodes", nodes, nodes_budget)] {
            if calls > budget * room + ROOM_PER_IO {
                over.push(format!("{what}, {who}: {calls:.1} instead of {budget:.1}"));
            }
        }
    }
    drop(client);
    cluster.stop();
    assert!(over.is_empty(), "more system calls per I/O than the budgets have: {over:?}");
}
