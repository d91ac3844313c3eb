//! A cluster of real processes: `trefoil up --processes` in a directory of its own.
//!
//! This is the one place that knows how Trefoil is started, where it keeps its files and what its
//! `--json` looks like. Everything that it starts ends with it, also when a test panics, and when
//! a test takes longer than it may: then the daemons are killed, and whoever waits for them sees
//! closed connections.
//!
//! Clusters run one at a time, whatever `--test-threads` says: on a small machine two of them would
//! measure each other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::nbd_client::{Client, Endpoint};
use crate::tools::{Finished, end, is_running, run, signal, wait_until};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long a start may take, on a busy machine, with a recovery in it.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The program under test.
pub fn trefoil() -> PathBuf {
    std::env::var_os("TREFOIL_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_trefoil")), PathBuf::from)
}

/// Runs the program under test with arguments, to its end.
#[track_caller]
pub fn run_trefoil(arguments: &[&str], limit: Duration) -> Finished {
    let program = trefoil();
    run(program.to_str().expect("a path of UTF-8"), arguments, limit)
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Storage nodes.
    pub nodes: usize,
    /// Bytes of each, as `--node-size` takes it.
    pub node_size: &'static str,
    /// `NAME=SIZE`, as `--volume` takes it.
    pub volumes: &'static [&'static str],
    /// Further arguments of `up`.
    pub arguments: &'static [&'static str],
    /// The longest that the whole test may take.
    pub limit: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            nodes: 3,
            node_size: "8GiB",
            volumes: &["disk0=1GiB"],
            arguments: &[],
            limit: Duration::from_secs(180),
        }
    }
}

/// One daemon, from `DIR/processes.json`.
#[derive(Clone, Debug)]
pub struct Process {
    /// "monitor", "storage-node" or "nbd".
    pub role: String,
    /// "node-0" and so on; also the name of its configuration file.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// Where it listens.
    pub address: String,
}

/// Ids of everything that must not outlive the test; shared with the watchdog.
type Pids = Arc<Mutex<Vec<i32>>>;

/// A running cluster.
pub struct Cluster {
    /// The directory with all of its state.
    pub dir: PathBuf,
    folder: Option<tempfile::TempDir>,
    shape: Shape,
    up: Option<Child>,
    /// Daemons that were started again by [`Cluster::restart`], by name.
    restarted: BTreeMap<String, Child>,
    /// As they were after the last start of everything.
    processes: Vec<Process>,
    pids: Pids,
    over: Arc<AtomicBool>,
    starts: u32,
    /// Daemons that are started by hand get no more file descriptors than this.
    pub descriptors_max: Option<u64>,
    /// Where the front end listens, at every start.
    listen: String,
    /// When a process was last ended, stopped, started or continued.
    pub last_disturbance: Instant,
    _turn: MutexGuard<'static, ()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_all_of(pids: &Pids) {
    for pid in lock(pids).drain(..) {
        signal(pid, Signal::SIGKILL);
    }
}

/// The turn of a test that starts daemons by itself.
pub fn turn() -> MutexGuard<'static, ()> {
    lock(&ONE_AT_A_TIME)
}

impl Cluster {
    /// Starts one and waits until it serves.
    pub fn start(shape: Shape) -> Self {
        let turn = turn();
        let folder =
            tempfile::Builder::new().prefix("trefoil-system-").tempdir().expect("a temporary directory");
        let pids = Pids::default();
        let over = Arc::new(AtomicBool::new(false));
        watch(Arc::clone(&pids), Arc::clone(&over), shape.limit);
        let mut cluster = Self {
            dir: folder.path().join("data"),
            folder: Some(folder),
            shape,
            up: None,
            restarted: BTreeMap::new(),
            processes: Vec::new(),
            pids,
            over,
            starts: 0,
            descriptors_max: None,
            listen: free_address(),
            last_disturbance: Instant::now(),
            _turn: turn,
        };
        cluster.start_again();
        cluster
    }

    /// Starts everything on the same directory: the first time, or after [`Cluster::kill_all`].
    /// Returns how long it took until it was ready.
    pub fn start_again(&mut self) -> Duration {
        assert!(self.up.is_none(), "it runs already");
        let start = Instant::now();
        self.starts += 1;
        let log = self.log_file("up");
        let mut command = Command::new(trefoil());
        command.arg("up").arg("--processes").arg("--dir").arg(&self.dir);
        command.args(["--nodes", &self.shape.nodes.to_string(), "--node-size", self.shape.node_size]);
        command.args(["--listen", &self.listen]).arg("--socket").arg(self.socket());
        for volume in self.shape.volumes {
            command.args(["--volume", volume]);
        }
        command.args(self.shape.arguments);
        // A group of its own, so that Ctrl-C at a terminal ends the test and the test ends the group.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        lock(&self.pids).push(child.id() as i32);
        let lines = self.follow(child.stdout.take().expect("its output is piped"));
        self.up = Some(child);

        let left = START_LIMIT;
        if let Err(why) = wait_for_ready(&lines, left) {
            panic!("`trefoil up` {why}\n{}", self.logs());
        }
        self.processes = self.read_processes();
        lock(&self.pids).extend(self.processes.iter().map(|process| process.pid));
        start.elapsed()
    }

    /// Copies what `up` prints to a file, and hands the lines on.
    fn follow(&self, out: std::process::ChildStdout) -> std::sync::mpsc::Receiver<String> {
        use std::io::Write;
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut copy = self.log_file("up-out");
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // A test that is over does not read any more.
                let _ = writeln!(copy, "{line}");
                let _ = sender.send(line);
            }
        });
        receiver
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().expect("it is there until the end").path()
    }

    fn log_file(&self, name: &str) -> File {
        let path = self.folder().join(format!("{name}-{}.log", self.starts));
        File::options().create(true).append(true).open(path).expect("a log file")
    }

    fn read_processes(&self) -> Vec<Process> {
        let path = self.dir.join("processes.json");
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let text_of = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_string();
        let entries = value.as_array().expect("processes.json is a list").iter();
        entries
            .map(|entry| Process {
                role: text_of(entry, "role"),
                name: text_of(entry, "name"),
                pid: entry["pid"].as_i64().unwrap_or_default() as i32,
                address: text_of(entry, "address"),
            })
            .collect()
    }

    /// All daemons as they were at the last start.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// A daemon by name.
    #[track_caller]
    pub fn process(&self, name: &str) -> &Process {
        let found = self.processes.iter().find(|process| process.name == name);
        found.unwrap_or_else(|| panic!("no {name} among {:?}", self.processes))
    }

    /// Names of a role's daemons.
    pub fn names(&self, role: &str) -> Vec<String> {
        self.processes
            .iter()
            .filter(|process| process.role == role)
            .map(|process| process.name.clone())
            .collect()
    }

    /// The id of a daemon's running process.
    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        self.restarted.get(name).map_or_else(|| self.process(name).pid, |child| child.id() as i32)
    }

    /// Sends a signal to one daemon.
    #[track_caller]
    pub fn signal(&mut self, name: &str, which: Signal) {
        self.last_disturbance = Instant::now();
        assert!(signal(self.pid(name), which), "{name} does not run\n{}", self.logs());
    }

    /// Whether a daemon's process runs.
    pub fn is_running(&self, name: &str) -> bool {
        is_running(self.pid(name))
    }

    /// SIGKILL to one daemon; returns when it is gone.
    #[track_caller]
    pub fn kill(&mut self, name: &str) {
        let pid = self.pid(name);
        self.signal(name, Signal::SIGKILL);
        if let Some(mut child) = self.restarted.remove(name) {
            end(&mut child);
        }
        assert!(wait_until(Duration::from_secs(10), || !is_running(pid)), "{name} survives SIGKILL");
        lock(&self.pids).retain(|known| *known != pid);
    }

    /// As [`Cluster::kill`], of a daemon that was started by [`Cluster::run_daemon`] and is none of `up`'s.
    #[track_caller]
    pub fn kill_by_hand(&mut self, name: &str) {
        self.last_disturbance = Instant::now();
        let mut child =
            self.restarted.remove(name).unwrap_or_else(|| panic!("{name} was not started by hand"));
        let pid = child.id() as i32;
        end(&mut child);
        lock(&self.pids).retain(|known| *known != pid);
    }

    /// Deletes the disposable index of a storage node that does not run.
    #[track_caller]
    pub fn delete_index(&self, name: &str) {
        let path = self.dir.join(name).join("index");
        std::fs::remove_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// A storage node's device.
    pub fn device(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("device")
    }

    /// Where a daemon's configuration is.
    pub fn config(&self, name: &str) -> PathBuf {
        self.dir.join("etc").join(format!("{name}.toml"))
    }

    /// Starts a daemon that was killed, by hand, with its configuration file.
    #[track_caller]
    pub fn restart(&mut self, name: &str) {
        let role = self.process(name).role.clone();
        let config = self.config(name);
        self.run_daemon(&role, name, &config);
    }

    /// Starts a daemon of any role by hand.
    #[track_caller]
    pub fn run_daemon(&mut self, role: &str, name: &str, config: &Path) {
        let log = self.log_file(name);
        let mut command = match self.descriptors_max {
            None => Command::new(trefoil()),
            Some(most) => {
                let mut shell = Command::new("sh");
                // The hard limit too: a daemon raises its soft one.
                shell.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &most.to_string()]).arg(trefoil());
                shell
            }
        };
        command.arg(role).arg("--config").arg(config);
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle"))
            .stdout(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        lock(&self.pids).push(child.id() as i32);
        self.restarted.insert(name.to_string(), child);
        self.last_disturbance = Instant::now();
    }

    /// SIGKILL to everything at once, as when the power fails; returns when all are gone.
    pub fn kill_all(&mut self) {
        let pids = lock(&self.pids).clone();
        kill_all_of(&self.pids);
        if let Some(mut up) = self.up.take() {
            end(&mut up);
        }
        for child in self.restarted.values_mut() {
            end(child);
        }
        self.restarted.clear();
        for pid in pids {
            assert!(wait_until(Duration::from_secs(10), || !is_running(pid)), "{pid} survives SIGKILL");
        }
    }

    /// SIGTERM to everything, and the end of the test; fails it if something does not end cleanly.
    #[track_caller]
    pub fn stop(mut self) {
        self.stop_processes();
    }

    /// SIGTERM to everything; [`Cluster::start_again`] may follow.
    #[track_caller]
    pub fn stop_processes(&mut self) {
        let mut up = self.up.take().expect("it runs");
        for (name, mut child) in std::mem::take(&mut self.restarted) {
            signal(child.id() as i32, Signal::SIGTERM);
            let ended = wait_until(Duration::from_secs(15), || matches!(child.try_wait(), Ok(Some(_))));
            end(&mut child);
            assert!(ended, "{name} does not end at SIGTERM\n{}", self.logs());
        }
        signal(up.id() as i32, Signal::SIGTERM);
        let ended = wait_until(Duration::from_secs(20), || matches!(up.try_wait(), Ok(Some(_))));
        end(&mut up);
        assert!(ended, "`trefoil up` does not end at SIGTERM\n{}", self.logs());
        let left: Vec<_> = self.processes.iter().filter(|process| is_running(process.pid)).collect();
        assert!(left.is_empty(), "`trefoil up` left children behind: {left:?}");
    }

    /// The unix socket.
    pub fn socket(&self) -> PathBuf {
        // Beside the directory of the state, whose path may be long: 107 bytes are a socket's limit.
        self.folder().join("nbd.sock")
    }

    /// The front end's unix socket, for our own client.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket())
    }

    /// A volume's URI over the unix socket.
    pub fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket().display())
    }

    /// A volume's URI over TCP.
    pub fn tcp_uri(&self, volume: &str) -> String {
        let names = self.names("nbd");
        format!("nbd://{}/{volume}", self.process(&names[0]).address)
    }

    /// Connects our own client; tries for a while, as the front end may be starting.
    #[track_caller]
    pub fn connect(&self, volume: &str) -> Client {
        let mut last = String::new();
        let mut client = None;
        wait_until(START_LIMIT, || match Client::connect(&self.endpoint(), volume) {
            Ok(connected) => {
                client = Some(connected);
                true
            }
            Err(error) => {
                last = error.to_string();
                false
            }
        });
        client.unwrap_or_else(|| panic!("cannot connect: {last}\n{}", self.logs()))
    }

    /// All that a daemon has logged since the last start of everything, by `up` and by hand.
    pub fn log_of(&self, name: &str) -> String {
        let by_hand = self.folder().join(format!("{name}-{}.log", self.starts));
        let logs = [self.dir.join("log").join(format!("{name}.log")), by_hand];
        logs.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    }

    /// The end of every log, for a failure's message.
    pub fn logs(&self) -> String {
        const LINES: usize = 30;
        let mut text = String::new();
        for folder in [self.folder().to_path_buf(), self.dir.join("log")] {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "log") {
                    let lines = std::fs::read(&path).unwrap_or_default();
                    let lines = String::from_utf8_lossy(&lines);
                    let lines: Vec<_> = lines.lines().collect();
                    text += &format!("---- {}\n", path.display());
                    text += &lines[lines.len().saturating_sub(LINES)..].join("\n");
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// A front end's configuration from another one's: with a name and a socket of its own, any port.
pub fn front_end_config(text: &str, name: &str, socket: &Path) -> String {
    let mut table: toml::Table = text.parse().expect("a configuration of `trefoil up` is TOML");
    table.insert("listen".into(), toml::Value::Array(vec!["127.0.0.1:0".into()]));
    table.insert("metrics_listen".into(), "off".into());
    table.insert("socket".into(), socket.display().to_string().into());
    if table.contains_key("name") {
        table.insert("name".into(), name.into());
    }
    table.to_string()
}

/// An address on loopback that nothing listens on now. It is chosen here, and not by the front end, so
/// that clients find the front end again when it has been started anew.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").to_string()
}

/// Waits for the line that begins `ready: `.
fn wait_for_ready(lines: &std::sync::mpsc::Receiver<String>, limit: Duration) -> Result<(), String> {
    use std::sync::mpsc::RecvTimeoutError;
    let start = Instant::now();
    loop {
        match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) if line.starts_with("ready: ") => return Ok(()),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Err(format!("was not ready within {limit:?}")),
            Err(RecvTimeoutError::Disconnected) => return Err("ended before it was ready".to_string()),
        }
    }
}

/// Kills the daemons when a test has taken too long: it then fails at the closed connections.
fn watch(pids: Pids, over: Arc<AtomicBool>, limit: Duration) {
    std::thread::spawn(move || {
        let start = Instant::now();
        while !over.load(Ordering::Relaxed) {
            if start.elapsed() > limit {
                eprintln!("this test takes longer than {limit:?}: its daemons are killed");
                kill_all_of(&pids);
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        kill_all_of(&self.pids);
        if let Some(mut up) = self.up.take() {
            end(&mut up);
        }
        for child in self.restarted.values_mut() {
            end(child);
        }
        if std::env::var_os("TREFOIL_TEST_KEEP").is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("TREFOIL_TEST_KEEP: the state stays in {}", folder.keep().display());
        }
    }
}
