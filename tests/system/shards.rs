//! A front end of several threads: volumes on all of them under load that is compared while a node is killed, one moved
//! to another front end and back, its clients on TCP and on the unix socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::blocks::{Ledger, Random};
use crate::cluster::{Cluster, Shape, front_end_config};
use crate::nbd_client::{Client, Endpoint};
use crate::tools::wait_until;
use crate::writer::{self, Mix};

const VOLUMES: [&str; 4] = ["disk0", "disk1", "disk2", "disk3"];
const SHARDS: usize = 3;
const BLOCKS: usize = 2048;
/// Two leases, and what a busy machine adds.
const MOVE_LIMIT: Duration = Duration::from_secs(40);

/// A writer on a volume, until it is told to stop.
struct Load {
    volume: usize,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Ledger, writer::Outcome)>,
}

impl Load {
    fn start(volume: usize, client: Client, mut ledger: Ledger) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut random = Random::new(70 + volume as u64);
            let mix = Mix { depth: 8, ..Mix::default() };
            let outcome =
                writer::run(&client, &mut ledger, &mut random, mix, || told.load(Ordering::Relaxed));
            (ledger, outcome)
        });
        Load { volume, stop, thread }
    }

    /// Fails if the client saw an error. What must be there now.
    #[track_caller]
    fn stop(self, cluster: &Cluster) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let (ledger, outcome) = self.thread.join().expect("the writer");
        let volume = VOLUMES[self.volume];
        assert!(
            outcome.end.is_none() && outcome.errors.is_empty(),
            "{volume}: {outcome:?}\n{}",
            cluster.logs()
        );
        assert!(outcome.acknowledged > 20, "{volume}: {outcome:?}");
        println!("{volume}: {} acknowledged, longest {:?}", outcome.acknowledged, outcome.longest);
        ledger
    }
}

#[track_caller]
fn compare(cluster: &Cluster, endpoint: &Endpoint, volume: &str, ledger: &mut Ledger) {
    let client = Client::connect(endpoint, volume)
        .unwrap_or_else(|error| panic!("{volume}: {error}\n{}", cluster.logs()));
    let findings = writer::compare(&client, ledger)
        .unwrap_or_else(|error| panic!("{volume}: {error}\n{}", cluster.logs()));
    assert!(findings.wrong.is_empty(), "{volume}: {findings}\n{}", cluster.logs());
}

/// Who holds each volume, as people are told.
fn holders(cluster: &Cluster) -> Vec<String> {
    let all = cluster.ask(&["volume", "list"]);
    let all = all.as_array().expect("a list");
    let holder = |name: &&str| {
        let found = all.iter().find(|it| it["name"] == **name);
        found.and_then(|it| it["holder"].as_str()).unwrap_or_default().to_owned()
    };
    VOLUMES.iter().map(holder).collect()
}

#[test]
fn volumes_of_all_shards_are_written_while_a_node_is_killed_and_one_moves_away_and_back() {
    let mut cluster = Cluster::start(Shape {
        volumes: &["disk0=64MiB", "disk1=64MiB", "disk2=64MiB", "disk3=64MiB"],
        arguments: &["--shards", "3"],
        limit: Duration::from_secs(240),
        ..Shape::default()
    });
    let first = cluster.names("nbd").remove(0);
    let tcp = Endpoint::Tcp(cluster.process(&first).address.clone());
    let mut ledgers: Vec<Option<Ledger>> =
        (0..VOLUMES.len()).map(|n| Some(Ledger::new(60 + n as u64, 0, BLOCKS))).collect();
    let mut loads = Vec::new();
    for (n, name) in VOLUMES.iter().enumerate() {
        let endpoint = if n % 2 == 0 { cluster.endpoint() } else { tcp.clone() };
        let client =
            Client::connect(&endpoint, name).unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
        let mut ledger = ledgers[n].take().expect("each once");
        writer::write_through(&client, &mut ledger).expect("it writes");
        loads.push(Load::start(n, client, ledger));
    }
    let names = holders(&cluster);
    let suffixes: Vec<&str> = names.iter().filter_map(|name| name.rsplit('/').next()).collect();
    let mut shards: Vec<usize> = suffixes.iter().filter_map(|text| text.parse().ok()).collect();
    assert!(shards.len() == VOLUMES.len() && shards.iter().all(|shard| *shard < SHARDS), "{names:?}");
    shards.sort_unstable();
    shards.dedup();
    assert!(shards.len() >= 2, "ids that follow one another are spread: {names:?}");

    std::thread::sleep(Duration::from_secs(1));
    cluster.kill("node-1");
    std::thread::sleep(Duration::from_secs(3));
    cluster.restart("node-1");
    cluster.wait_until_whole(Duration::from_secs(60));

    // One of them to another front end, with a shard more, while the others go on.
    let moved = 1;
    let load = loads.remove(moved);
    let mut ledger = load.stop(&cluster);
    let socket: PathBuf = cluster.dir.join("second.sock");
    let text = std::fs::read_to_string(cluster.config(&first)).expect("the first one's configuration");
    let mut table: toml::Table = front_end_config(&text, "second", &socket).parse().expect("TOML");
    assert_eq!(table.get("shards").and_then(toml::Value::as_integer), Some(SHARDS as i64));
    table.insert("shards".into(), 2.into());
    let config = cluster.dir.join("etc").join("second.toml");
    std::fs::write(&config, table.to_string()).expect("a file");
    cluster.run_daemon("nbd", "second", &config);
    let second = Endpoint::Unix(socket);
    assert!(wait_until(Duration::from_secs(30), || second.open().is_ok()), "it listens\n{}", cluster.logs());
    for (round, endpoint) in [&second, &tcp].into_iter().enumerate() {
        let begun = Instant::now();
        if round == 1 {
            // Stopped in order, it gives the volume back.
            cluster.signal("second", Signal::SIGTERM);
            let gone = wait_until(Duration::from_secs(30), || !cluster.is_running("second"));
            assert!(gone, "the second front end stops\n{}", cluster.logs());
        }
        compare(&cluster, endpoint, VOLUMES[moved], &mut ledger);
        let client = Client::connect(endpoint, VOLUMES[moved]).expect("it connects again");
        let mut random = Random::new(90 + round as u64);
        let start = Instant::now();
        let outcome = writer::run(&client, &mut ledger, &mut random, Mix::default(), || {
            start.elapsed() > Duration::from_secs(1)
        });
        assert!(outcome.end.is_none() && outcome.errors.is_empty(), "{outcome:?}\n{}", cluster.logs());
        assert!(begun.elapsed() < MOVE_LIMIT, "round {round}: {:?}", begun.elapsed());
        println!(
            "move {round}: {:.1} s with the comparison and 1 s of writing",
            begun.elapsed().as_secs_f64()
        );
    }
    for load in loads {
        let volume = load.volume;
        ledgers[volume] = Some(load.stop(&cluster));
    }
    ledgers[moved] = Some(ledger);
    for (n, ledger) in ledgers.iter_mut().enumerate() {
        if let Some(ledger) = ledger {
            compare(&cluster, &cluster.endpoint(), VOLUMES[n], ledger);
        }
    }
    assert!(cluster.is_running(&first));
    cluster.stop();
}
