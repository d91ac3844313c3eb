//! Two front ends for one volume: the second takes over, and from its first acknowledged write on,
//! no write of the first is acknowledged. The storage nodes see to it, not good manners: the
//! first may be stopped before and continued after.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::blocks::{Findings, Ledger, Random};
use crate::cluster::{Cluster, Shape};
use crate::nbd_client::{CMD_WRITE, Client, Endpoint};
use crate::tools::wait_until;
use crate::writer::{self, Mix};

/// Two leases and what a busy machine adds.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(30);

/// Between two threads of this test that note the time of what they read from different sockets.
const CLOCK_SLACK: Duration = Duration::from_millis(50);

/// A second front end, and where it listens.
fn second_front_end(cluster: &mut Cluster) -> Endpoint {
    let socket: PathBuf = cluster.dir.join("second.sock");
    let first = cluster.names("nbd").remove(0);
    let text = std::fs::read_to_string(cluster.config(&first)).expect("the first one's configuration");
    let config = cluster.dir.join("etc").join("second.toml");
    std::fs::write(&config, crate::cluster::front_end_config(&text, "second", &socket)).expect("a file");
    cluster.run_daemon("nbd", "second", &config);
    let endpoint = Endpoint::Unix(socket);
    let listens = wait_until(Duration::from_secs(20), || endpoint.open().is_ok());
    assert!(listens, "the second front end listens\n{}", cluster.logs());
    endpoint
}

/// Connects and writes one block until that is acknowledged; when it was.
fn first_write(cluster: &Cluster, endpoint: &Endpoint, ledger: &mut Ledger) -> (Client, Instant) {
    let client =
        Client::connect(endpoint, "disk0").unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    let start = Instant::now();
    let (content, bytes) = ledger.begin_write(0, 1);
    client.write(ledger.offset(0), &bytes).unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    let acknowledged = Instant::now();
    ledger.acknowledge(0, 1, content);
    println!(
        "STALL takeover: the second front end's first write took {:.1} s",
        start.elapsed().as_secs_f64()
    );
    assert!(start.elapsed() < TAKEOVER_LIMIT);
    (client, acknowledged)
}

/// Sends a write to each block of the region, without waiting.
fn send_all(client: &Client, ledger: &mut Ledger) {
    for index in 0..ledger.blocks() {
        let (_, bytes) = ledger.begin_write(index, 1);
        client
            .submit(CMD_WRITE, 0, ledger.offset(index), bytes.len(), &bytes)
            .expect("room in the socket's buffer");
    }
}

/// Takes every answer until the connection ends or nothing comes for a while: the cookies of what succeeded.
fn successes(client: &Client, quiet: Duration) -> Vec<u64> {
    let mut found = Vec::new();
    while let Ok(completion) = client.next(quiet) {
        if completion.error == 0 {
            found.push(completion.cookie);
        }
    }
    found
}

#[test]
fn a_front_end_that_was_stopped_acknowledges_nothing_after_it_was_replaced() {
    let mut cluster = Cluster::start(Shape::default());
    let first = cluster.names("nbd").remove(0);
    let first_client = cluster.connect("disk0");
    let mut ledger = Ledger::new(41, 64, 4096);
    writer::write_through(&first_client, &mut ledger).expect("it writes");

    // Into the socket of a stopped process: they wait there until it goes on.
    cluster.signal(&first, Signal::SIGSTOP);
    let mut late = Ledger::new(42, 0, 32);
    send_all(&first_client, &mut late);

    let endpoint = second_front_end(&mut cluster);
    let mut second_ledger = ledger.clone();
    let (second_client, _) = first_write(&cluster, &endpoint, &mut second_ledger);
    // The blocks that the late writes are for get other content by now.
    let mut mine = Ledger::new(43, 0, 32);
    writer::write_through(&second_client, &mut mine).expect("it writes");

    cluster.signal(&first, Signal::SIGCONT);
    let acknowledged = successes(&first_client, Duration::from_secs(10));
    assert!(
        acknowledged.is_empty(),
        "{} writes of the first were acknowledged\n{}",
        acknowledged.len(),
        cluster.logs()
    );

    let mut random = Random::new(41);
    let start = Instant::now();
    let outcome = writer::run(&second_client, &mut second_ledger, &mut random, Mix::default(), || {
        start.elapsed() > Duration::from_secs(2)
    });
    assert!(
        outcome.end.is_none() && outcome.errors.is_empty(),
        "the second goes on: {outcome:?}\n{}",
        cluster.logs()
    );
    for ledger in [&mut mine, &mut second_ledger] {
        let findings = writer::compare(&second_client, ledger).expect("it reads");
        assert!(findings.wrong.is_empty(), "{findings}");
    }
    assert!(cluster.is_running(&first), "being replaced ends no process");
    cluster.stop();
}

#[test]
fn a_front_end_that_was_stopped_in_mid_write_keeps_what_it_acknowledged_and_adds_nothing() {
    let mut cluster = Cluster::start(Shape::default());
    let first = cluster.names("nbd").remove(0);
    let first_client = cluster.connect("disk0");
    let mut ledger = Ledger::new(44, 64, 4096);
    let mut random = Random::new(44);
    let start = Instant::now();
    let mut stopped = None;
    // Small enough that all that is in flight fits into the socket's buffer.
    // No flushes: one that waits in the socket is answered, since all that was acknowledged is durable.
    let mix = Mix { depth: 16, blocks_max: 1, flush_one_in: 0, ..Mix::default() };
    // Ends with requests in flight, at the front end and in the nodes: none of them is known to be done.
    let outcome = writer::run_and_leave(&first_client, &mut ledger, &mut random, mix, || {
        if stopped.is_none() && start.elapsed() > Duration::from_secs(1) {
            cluster.signal(&first, Signal::SIGSTOP);
            stopped = Some(Instant::now());
        }
        stopped.is_some_and(|at: Instant| at.elapsed() > Duration::from_millis(300))
    });
    assert!(outcome.acknowledged > 0 && !outcome.in_flight.is_empty(), "{outcome:?}");

    let endpoint = second_front_end(&mut cluster);
    let mut other = Ledger::new(45, 0, 8);
    let (second_client, _) = first_write(&cluster, &endpoint, &mut other);
    let findings = writer::compare(&second_client, &mut ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.signal(&first, Signal::SIGCONT);
    let late = successes(&first_client, Duration::from_secs(8));
    println!(
        "takeover: of {} writes in flight {} were acknowledged late",
        outcome.in_flight.len(),
        late.len()
    );
    // The first may have been stopped between its decision to acknowledge, with a lease, and the answer's way out:
    // the second one has found such a write when it took over. Anything else was decided without a lease.
    for cookie in late {
        let write = outcome.in_flight.get(&cookie).expect("an answer to what was in flight");
        let found = ledger.sure(write.index);
        assert!(
            found == write.content,
            "the first acknowledged {:?} of block {}, where the second one found {found:?}\n{}",
            write.content,
            write.index,
            cluster.logs()
        );
    }
    // What was read once is what stays: no write of the first comes through later.
    let findings = writer::compare(&second_client, &mut ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.stop();
}

#[test]
fn a_front_end_in_use_hands_over_and_stays_out() {
    let mut cluster = Cluster::start(Shape::default());
    let client = cluster.connect("disk0");
    let over = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&over);
    // The first one's client goes on writing, whatever happens to it.
    let first = std::thread::spawn(move || {
        let mut ledger = Ledger::new(46, 64, 2048);
        let mut last: Option<Instant> = None;
        let mut random = Random::new(46);
        while !asked.load(Ordering::Relaxed) {
            let index = random.below(2048) as usize;
            let (content, bytes) = ledger.begin_write(index, 1);
            let offset = ledger.offset(index);
            if client.submit(CMD_WRITE, 0, offset, bytes.len(), &bytes).is_err() {
                break;
            }
            match wait_for_answer(&client, &asked) {
                Some(0) => {
                    last = Some(Instant::now());
                    ledger.acknowledge(index, 1, content);
                }
                Some(_) => ledger.leave_open(index, 1),
                None => break,
            }
        }
        (ledger, last)
    });
    std::thread::sleep(Duration::from_secs(2));
    let endpoint = second_front_end(&mut cluster);
    let mut other = Ledger::new(47, 0, 8);
    let (second_client, taken_over) = first_write(&cluster, &endpoint, &mut other);
    std::thread::sleep(Duration::from_secs(5));
    over.store(true, Ordering::Relaxed);
    let (mut ledger, last) = first.join().expect("the first one's client does not panic");
    let last = last.expect("the first wrote before");
    assert!(
        last < taken_over + CLOCK_SLACK,
        "a write of the first was acknowledged {:?} after the second's\n{}",
        last - taken_over,
        cluster.logs()
    );
    let mut findings = Findings::default();
    for index in 0..ledger.blocks() {
        let bytes = second_client.read(ledger.offset(index), 4096).expect("it reads");
        ledger.check(index, &bytes, &mut findings);
    }
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.stop();
}

/// The error number of the next answer; `None` at the end of the connection or the test.
fn wait_for_answer(client: &Client, over: &AtomicBool) -> Option<u32> {
    while !over.load(Ordering::Relaxed) {
        match client.next(Duration::from_millis(50)) {
            Ok(completion) => return Some(completion.error),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
            Err(_) => return None,
        }
    }
    None
}
