//! A front end that does not reach the monitor any more, and reaches its nodes: its client notices nothing.
//!
//! Between the two is a forwarder of this test, which is the only way that the front end knows.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Shape, front_end_config};
use crate::health::is_well;
use crate::nbd_client::Endpoint;
use crate::prober::Prober;
use crate::tools::wait_until;

/// Longer than a lease (7 s with its margin) and what a healer waits for behind it (5 s).
const CUT_OFF_FOR: Duration = Duration::from_secs(18);
/// What fails the test: reads without a lease ask a majority, and nothing waits for a monitor.
const STALL_MAX: Duration = Duration::from_secs(3);

/// Forwards connections while it is open.
struct Forwarder {
    address: String,
    open: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Forwarder {
    fn start(to: &str) -> Forwarder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let open = Arc::new(AtomicBool::new(true));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let forwarder = Forwarder { address, open: open.clone(), streams: streams.clone() };
        let to = to.to_owned();
        std::thread::spawn(move || {
            // Ends with the test's process.
            for from in listener.incoming().map_while(Result::ok) {
                // One that is shut takes connections and closes them: nobody is told of more than silence.
                let Some(there) = TcpStream::connect(&to).ok().filter(|_| open.load(Ordering::Relaxed))
                else {
                    continue;
                };
                let both = |stream: &TcpStream| stream.try_clone().expect("a second handle");
                let mut known = streams.lock().expect("nobody panics with it");
                known.extend([both(&from), both(&there)]);
                drop(known);
                let back = (both(&there), both(&from));
                std::thread::spawn(move || copy(from, there));
                std::thread::spawn(move || copy(back.0, back.1));
            }
        });
        forwarder
    }

    fn shut(&self) {
        self.open.store(false, Ordering::Relaxed);
        for stream in self.streams.lock().expect("nobody panics with it").drain(..) {
            // One that has ended is shut already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 || to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// The configuration of a daemon, with another value.
fn configure(cluster: &Cluster, name: &str, key: &str, value: toml::Value) {
    let path = cluster.config(name);
    let text = std::fs::read_to_string(&path).expect("its configuration");
    let mut table: toml::Table = text.parse().expect("a configuration of `trefoil up` is TOML");
    table.insert(key.to_owned(), value);
    std::fs::write(&path, table.to_string()).expect("written");
}

fn check<'a>(status: &'a Value, code: &str) -> Option<&'a Value> {
    status["checks"].as_array()?.iter().find(|check| check["code"] == code)
}

#[test]
fn a_front_end_that_does_not_reach_the_monitor_keeps_its_volume_from_healers() {
    let mut cluster = Cluster::start(Shape::default());
    let monitor = cluster.names("monitor").remove(0);
    let forwarder = Forwarder::start(&cluster.process(&monitor).address);
    // Or the front end would learn of the other way.
    configure(&cluster, &monitor, "advertise", forwarder.address.clone().into());
    cluster.kill(&monitor);
    cluster.restart(&monitor);
    // It tells the others when it leads; who asks before is given the other way.
    let told = || cluster.run(&["monitor", "list"]).out.contains(&forwarder.address);
    assert!(wait_until(Duration::from_secs(20), told), "{}", cluster.logs());
    let first = cluster.names("nbd").remove(0);
    let text = std::fs::read_to_string(cluster.config(&first)).expect("the first one's configuration");
    let socket: PathBuf = cluster.dir.join("second.sock");
    std::fs::write(cluster.config("second"), front_end_config(&text, "second", &socket)).expect("a file");
    let monitors = toml::Value::Array(vec![forwarder.address.clone().into()]);
    configure(&cluster, "second", "monitors", monitors);
    let config = cluster.config("second");
    cluster.run_daemon("nbd", "second", &config);
    let endpoint = Endpoint::Unix(socket);
    assert!(wait_until(Duration::from_secs(20), || endpoint.open().is_ok()), "{}", cluster.logs());

    // The first front end has no client: it is the healer that asks for work.
    let prober = Prober::start(&endpoint, "disk0", 0, 1024);
    cluster.wait_until_whole(Duration::from_secs(60));
    let generation = |cluster: &Cluster| cluster.ask(&["volume", "info", "disk0"])["generation"].clone();
    let before = generation(&cluster);
    assert!(before.is_u64(), "{before}");
    forwarder.shut();
    let start = Instant::now();
    let mut seen = None;
    while start.elapsed() < CUT_OFF_FOR {
        let status = cluster.status();
        if let Some(check) = check(&status, "VOLUME_NEEDS_HEAL") {
            seen.get_or_insert((start.elapsed(), check.clone()));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(generation(&cluster), before, "nobody else was given the volume\n{}", cluster.logs());
    let (after, told) = seen.unwrap_or_else(|| panic!("the volume is not shown\n{}", cluster.logs()));
    println!("after {:.1} s: {told:#}", after.as_secs_f64());
    assert!(told["details"][0].as_str().is_some_and(|text| text.contains("hears its front end")), "{told:#}");

    // It has its lease again, and all is well.
    forwarder.open();
    let mut last = Value::Null;
    let well = wait_until(Duration::from_secs(30), || {
        last = cluster.status();
        is_well(&last)
    });
    assert!(well, "{last:#}\n{}", cluster.logs());
    assert_eq!(generation(&cluster), before);
    let seen = prober.stop();
    seen.report("front end cut off from the monitor");
    assert!(seen.faults.is_empty(), "{:?}\n{}", seen.faults, cluster.logs());
    assert!(seen.longest() < STALL_MAX, "{:?}\n{}", seen.longest(), cluster.logs());
    cluster.stop();
}
