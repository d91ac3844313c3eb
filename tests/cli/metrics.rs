//! Metrics of a real cluster: every daemon answers, the text is what Prometheus reads, counters move with I/O, a
//! dead node shows within seconds, and `trefoil top` reads all of it.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A dead node must show within this (P8).
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);

/// The metrics of one daemon, by series: name and labels as they are written.
struct Metrics {
    samples: BTreeMap<String, f64>,
    text: String,
}

impl Metrics {
    fn value(&self, series: &str) -> f64 {
        let value = self.samples.get(series);
        *value.unwrap_or_else(|| panic!("{series} is missing in\n{}", self.text))
    }
}

/// Asks as Prometheus does; none where nobody listens.
fn get(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Prometheus/2.42.0\r\nAccept: \
         application/openmetrics-text;version=1.0.0,*/*;q=0.1\r\nAccept-Encoding: gzip\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    Some(body.to_owned())
}

fn scrape(address: &str) -> Metrics {
    let text = get(address).unwrap_or_else(|| panic!("{address} gives no metrics"));
    let samples = strictly(&text);
    Metrics { samples, text }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Reads the text by the letter of the format: every sample belongs to the family above it, which has its HELP and
/// TYPE once and in this order; no series twice; histograms are cumulative and complete.
fn strictly(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let (mut family, mut kind) = (String::new(), String::new());
    let mut families = BTreeSet::new();
    let mut samples = BTreeMap::new();
    let mut helped = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(!help.is_empty() && is_name(name), "{line}");
            assert!(families.insert(name.to_owned()), "a family twice: {line}");
            helped = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, what) = rest.split_once(' ').expect("a type");
            assert_eq!(helped.take().as_deref(), Some(name), "HELP comes first: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&what), "{line}");
            assert_eq!(what == "counter", name.ends_with("_total"), "{line}");
            (family, kind) = (name.to_owned(), what.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is none of {family}"));
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix) && helped.is_none(), "{line} is none of {family}, a {kind}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let labels = labels.strip_prefix('{').and_then(|it| it.strip_suffix("\"}")).expect("labels");
                for label in labels.split("\",") {
                    let (key, text) = label.split_once("=\"").expect("a label");
                    assert!(is_name(key) && !text.contains('"'), "{line}");
                }
            }
            assert!(kind == "gauge" || value >= 0.0, "{line}");
            assert!(samples.insert(series.to_owned(), value).is_none(), "a series twice: {line}");
        }
    }
    histograms(&samples);
    samples
}

fn histograms(samples: &BTreeMap<String, f64>) {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, value) in samples {
        // Not the end of "quantile".
        let le = series.find("{le=\"").or(series.find(",le=\""));
        if let Some((begin, end)) = le.map(|at| (&series[..=at], &series[at + 5..])) {
            let le = end.strip_suffix("\"}").expect("le is the last label");
            let le = if le == "+Inf" { f64::INFINITY } else { le.parse().expect("a number") };
            buckets.entry(begin.to_owned()).or_default().push((le, *value));
        }
    }
    for (begin, mut counts) in buckets {
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(counts.is_sorted_by(|a, b| a.1 <= b.1), "{begin} is not cumulative: {counts:?}");
        let last = counts.last().unwrap();
        let labels = begin.split_once('{').unwrap().1.trim_end_matches(',');
        let name = begin.split("_bucket").next().unwrap();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        assert_eq!(last.0, f64::INFINITY, "{begin}");
        assert_eq!(samples.get(&format!("{name}_count{labels}")), Some(&last.1), "{begin}");
        assert!(samples.contains_key(&format!("{name}_sum{labels}")), "{begin}");
    }
}

/// What Prometheus itself says of the text, where its tool is installed.
fn linted(name: &str, text: &str) {
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut tool = match tool {
        Ok(tool) => tool,
        Err(error) => {
            let required = std::env::var_os("TREFOIL_TEST_REQUIRE").is_some_and(|value| value == "1");
            assert!(!required, "TREFOIL_TEST_REQUIRE=1, but promtool does not run: {error}");
            return println!("SKIP: not installed: promtool (scripts/test installs it)");
        }
    };
    tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}: {}", stderr(&output));
}

/// Entries of `processes.json`, by name.
fn processes(dir: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(dir.join("processes.json")).unwrap();
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    entries.into_iter().map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry)).collect()
}

fn metrics_of(dir: &Path, name: &str) -> String {
    processes(dir)[name]["metrics"].as_str().expect("an address of metrics").to_owned()
}

/// Writes, reads and flushes through the cluster's NBD front end, by the oldest of NBD's ways: no options but a name.
struct Nbd(TcpStream);

impl Nbd {
    fn connect(uri: &str) -> Nbd {
        let (address, volume) = uri.strip_prefix("nbd://").unwrap().split_once('/').unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        // Fixed newstyle, no zeroes; NBD_OPT_EXPORT_NAME.
        let mut request = 3u32.to_be_bytes().to_vec();
        request.extend(b"IHAVEOPT");
        request.extend(1u32.to_be_bytes());
        request.extend((volume.len() as u32).to_be_bytes());
        request.extend(volume.as_bytes());
        stream.write_all(&request).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Nbd(stream)
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, data: &[u8], answer: &mut [u8]) {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(7u64.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.0.write_all(&request).unwrap();
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "the request succeeds");
        self.0.read_exact(answer).unwrap();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.request(1, offset, data.len() as u32, data, &mut []);
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) {
        self.request(0, offset, into.len() as u32, &[], into);
    }

    fn flush(&mut self) {
        self.request(3, 0, 0, &[], &mut []);
    }

    fn trim(&mut self, offset: u64, len: u32) {
        self.request(4, offset, len, &[], &mut []);
    }
}

#[test]
fn every_daemon_tells_prometheus_what_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--processes", "--shards", "2", "--volume", "a=64M"]);
    let uri = up.ready();
    let names = ["monitor", "nbd", "node-0", "node-1", "node-2"];
    let addresses: BTreeMap<&str, String> =
        names.iter().map(|name| (*name, metrics_of(&dir, name))).collect();
    let own = |name: &str| match name {
        "monitor" => "trefoil_monitor_leads",
        "nbd" => "trefoil_map_version",
        _ => "trefoil_storage_log_position",
    };
    for name in names {
        let metrics = scrape(&addresses[name]);
        assert!(metrics.value(own(name)) > 0.0, "{name}");
        assert!(metrics.value("process_resident_memory_bytes") > 1e6, "{name}");
        assert_eq!(metrics.value("trefoil_exporter_samples_dropped"), 0.0, "{name}");
        linted(name, &metrics.text);
    }
    counters_grow(&uri, &addresses);
    top(&dir, &addresses, &uri);
    a_dead_node_shows(&dir, &addresses);
    up.stop();
}

fn counters_grow(uri: &str, addresses: &BTreeMap<&str, String>) {
    let mut nbd = Nbd::connect(uri);
    let block = [7; 4096];
    nbd.write(0, &block);
    let series = |what: &str, op: &str| format!("trefoil_nbd_request_{what}{{volume=\"a\",op=\"{op}\"}}");
    let before = scrape(&addresses["nbd"]);
    let nodes = ["node-0", "node-1", "node-2"];
    let stored = || nodes.map(|node| scrape(&addresses[node]));
    let stored_before = stored();
    assert_eq!(before.value("trefoil_nbd_attached{volume=\"a\"}"), 1.0);
    let start = Instant::now();
    let mut read = [0; 4096];
    for n in 0..50 {
        nbd.write(n * 4096, &block);
        nbd.read(n * 4096, &mut read);
        assert_eq!(read, block);
    }
    nbd.flush();
    nbd.trim(0, 4096);
    let took = start.elapsed().as_secs_f64();
    let after = scrape(&addresses["nbd"]);
    let grown = |what: &str, op: &str| after.value(&series(what, op)) - before.value(&series(what, op));
    let counts = ["read", "write", "flush", "trim"].map(|op| grown("duration_seconds_count", op));
    assert_eq!(counts, [50.0, 50.0, 1.0, 1.0]);
    assert_eq!(["read", "write", "trim"].map(|op| grown("bytes_total", op)), [204_800.0, 204_800.0, 4096.0]);
    for op in ["read", "write"] {
        let sum = grown("duration_seconds_sum", op);
        assert!(sum > 0.0 && sum <= took, "{op}s took {sum} s of {took} s");
        assert_eq!(grown("failures_total", op), 0.0);
    }
    assert_eq!(after.value("trefoil_nbd_requests_in_flight{volume=\"a\"}"), 0.0);
    assert_eq!(after.value("trefoil_nbd_clients{volume=\"a\"}"), 1.0);
    // Of both shards, one of which has the volume's one connection.
    let shards =
        |what: &str| ["0", "1"].map(|n| after.value(&format!("trefoil_nbd_shard_{what}{{shard=\"{n}\"}}")));
    assert_eq!(shards("up"), [1.0, 1.0]);
    assert_eq!(shards("connections").iter().sum::<f64>(), 1.0);
    assert!(shards("cpu_seconds_total").iter().all(|used| *used > 0.0 && *used < 60.0));
    let lease = after.value("trefoil_nbd_lease_remaining_seconds{volume=\"a\"}");
    assert!(lease > 0.0 && lease <= 6.0, "{lease}");
    // Each node is one that somebody writes to; together they have served every read.
    let (mut reads, mut bytes) = (0.0, 0.0);
    for (before, after) in stored_before.iter().zip(stored()) {
        let grown = |series: &str| after.value(series) - before.value(series);
        assert!(grown("trefoil_storage_requests_total{op=\"write\"}") >= 50.0);
        assert!(grown("trefoil_storage_log_position") > 0.0);
        assert!(grown("trefoil_storage_device_duration_seconds_count{op=\"write\"}") > 0.0);
        assert!(grown("trefoil_storage_bytes_total{op=\"write\"}") >= 204_800.0);
        reads += grown("trefoil_storage_requests_total{op=\"read\"}");
        bytes += grown("trefoil_storage_bytes_total{op=\"read\"}");
    }
    assert!(reads >= 50.0 && bytes >= 204_800.0, "{reads} reads, {bytes} bytes");
}

fn top(dir: &Path, addresses: &BTreeMap<&str, String>, uri: &str) {
    let monitor = processes(dir)["monitor"]["address"].as_str().unwrap().to_owned();
    let arguments =
        ["top", "--once", "--interval", "2", "--monitor", &monitor, "--metrics", addresses["nbd"].as_str()];
    let mut nbd = Nbd::connect(uri);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let load = std::thread::spawn(move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            nbd.write(0, &[1; 4096]);
        }
    });
    let text = good(&arguments);
    let mut json = arguments.to_vec();
    json.push("--json");
    let view: Value = serde_json::from_str(&good(&json)).unwrap();
    drop(stop);
    load.join().unwrap();
    assert!(text.starts_with("health    HEALTH_") && !text.contains('\x1b'), "{text}");
    assert!(text.lines().any(|line| line.starts_with("a  ") && line.contains("attached")), "{text}");
    assert_eq!(view["volumes"][0]["name"], "a");
    assert!(view["volumes"][0]["io"]["writes_per_s"].as_f64().unwrap() > 1.0, "{view:#}");
    let write = &view["volumes"][0]["write"];
    assert!(write["mean_us"].as_f64().unwrap() > 1.0 && write["p99_us"].as_f64().unwrap() > 1.0, "{view:#}");
    assert_eq!(view["nodes"].as_array().unwrap().len(), 3);
    assert!(view["nodes"][0]["io"]["writes_per_s"].as_f64().unwrap() > 1.0, "{view:#}");
    assert_eq!(view["front_ends"][0]["error"], Value::Null);
    // Nobody listens there: what it does not know it does not make up.
    let nowhere =
        ["top", "--once", "--interval", "1", "--monitor", &monitor, "--metrics", "127.0.0.1:1", "--json"];
    let view: Value = serde_json::from_str(&good(&nowhere)).unwrap();
    assert_eq!(view["volumes"][0]["io"], Value::Null);
    assert!(view["front_ends"][0]["error"].is_string(), "{view:#}");
}

fn a_dead_node_shows(dir: &Path, addresses: &BTreeMap<&str, String>) {
    let node = "node-1";
    let number = scrape(&addresses[node]);
    let number =
        number.samples.keys().find_map(|it| it.strip_prefix("trefoil_storage_node_info{node=\"")).unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let number = number.trim_end_matches("\"}").to_owned();
    let is_up = |metrics: &Metrics| {
        let begin = format!("trefoil_node_up{{node=\"{number}\",");
        metrics.samples.iter().find(|(series, _)| series.starts_with(&begin)).map(|(_, value)| *value)
    };
    eventually(&format!("all nodes of {} are up", host.trim()), || {
        let metrics = scrape(&addresses["monitor"]);
        is_up(&metrics) == Some(1.0) && metrics.value("trefoil_nodes{state=\"up\"}") == 3.0
    });
    let pid = processes(dir)[node]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    // What Prometheus sees as up == 0.
    while get(&addresses[node]).is_some() {
        assert!(killed.elapsed() < VISIBLE_WITHIN, "its metrics outlive it");
    }
    let metrics = loop {
        let metrics = scrape(&addresses["monitor"]);
        if is_up(&metrics) == Some(0.0) {
            break metrics;
        }
        assert!(killed.elapsed() < VISIBLE_WITHIN, "it does not show:\n{}", metrics.text);
        std::thread::sleep(Duration::from_millis(50));
    };
    println!("a killed node showed after {:.1} s", killed.elapsed().as_secs_f64());
    assert_eq!(metrics.value("trefoil_nodes{state=\"down\"}"), 1.0);
    assert!(metrics.value("trefoil_health_status") >= 1.0);
    assert_eq!(metrics.value("trefoil_health_check{code=\"NODE_DOWN\",level=\"warning\"}"), 1.0);
    assert!(metrics.value("trefoil_pgs{state=\"degraded\"}") > 0.0);
}

#[test]
fn metrics_beyond_loopback_and_on_a_port_in_use_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("nbd.toml");
    let write = |listen: &str| {
        let text = format!(
            "monitors = [\"127.0.0.1:1\"]\nlisten = [\"127.0.0.1:{}\"]\nmetrics_listen = \"{listen}\"\n",
            free_port()
        );
        std::fs::write(&config, text).unwrap();
        bad(
            &["nbd", "--config", config.to_str().unwrap(), "--log", "error"],
            if listen.starts_with('0') { 2 } else { 1 },
        )
    };
    let told = write("0.0.0.0:1234");
    assert!(told.contains("metrics_listen") && told.contains("allow_plaintext"), "{told}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let told = write(&address);
    assert!(told.contains("metrics_listen") && told.contains(&address), "{told}");
}
