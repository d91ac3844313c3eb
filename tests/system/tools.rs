//! Other people's programs: found, run with a limit on their time, and skipped with a reason.
//!
//! A test that cannot run on this machine says `SKIP: why` and passes. `TREFOIL_TEST_REQUIRE=1` (set by
//! `scripts/test`, which installs what is needed) turns such a skip into a failure.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a finished program said.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// Fails the test, with everything the program said, unless it succeeded.
    #[track_caller]
    pub fn ok(self, what: &str) -> Self {
        assert!(self.status.success(), "{what}: {}\n{}\n{}", self.status, self.out, self.err);
        self
    }
}

/// Ends a process that we started, and takes its exit status away.
pub fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal to a process; false if there is none with that id.
pub fn signal(pid: i32, signal: nix::sys::signal::Signal) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).is_ok()
}

/// Whether a process runs: a zombie, whose parent has not looked yet, does not. But while threads of it are on their
/// way out, their sockets are open, and whoever is started in its place cannot listen.
pub fn is_running(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name may hold anything, so the state is looked for behind its last bracket.
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    match state {
        Some("Z") => std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.count() > 1),
        state => !matches!(state, Some("X") | None),
    }
}

/// Waits until something is so, looking every 20 ms. False if it was not within the limit.
pub fn wait_until(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that runs beside the test; ended with it.
pub struct Running {
    child: Child,
    name: String,
    start: Instant,
    out: Option<std::thread::JoinHandle<String>>,
    err: Option<std::thread::JoinHandle<String>>,
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// Starts a program with its output collected and no input.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let out = child.stdout.take().map(drain);
        let err = child.stderr.take().map(drain);
        Self { child, name, start: Instant::now(), out, err }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end. A program that takes longer than the limit is ended and fails the test.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Finished {
        let left = limit.saturating_sub(self.start.elapsed());
        let in_time = wait_until(left, || self.has_ended());
        let took = self.start.elapsed();
        if !in_time {
            end(&mut self.child);
        }
        let status = self.child.wait().expect("a child that we started");
        let text = |thread: Option<std::thread::JoinHandle<String>>| {
            thread.map(|thread| thread.join().unwrap_or_default()).unwrap_or_default()
        };
        let (out, err) = (text(self.out.take()), text(self.err.take()));
        assert!(in_time, "{} did not end within {limit:?}\n{out}\n{err}", self.name);
        Finished { status, out, err, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(program: &str, arguments: &[&str], limit: Duration) -> Finished {
    Running::start(Command::new(program).args(arguments)).finish(limit)
}

/// Where a program is, in `PATH` or where Debian keeps what only root runs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether a test can do without what it lacks. Prints the reason.
#[track_caller]
pub fn skip(reason: &str) {
    let required = std::env::var_os("TREFOIL_TEST_REQUIRE").is_some_and(|value| value == "1");
    assert!(!required, "TREFOIL_TEST_REQUIRE=1, but: {reason}");
    println!("SKIP: {reason}");
}

/// True, and a word why, when one of the programs is not there.
#[track_caller]
pub fn lacks(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| find(program).is_none()).copied().collect();
    if missing.is_empty() {
        return false;
    }
    skip(&format!("not installed: {} (scripts/test installs them)", missing.join(", ")));
    true
}

/// A file of random bytes.
pub fn random_file(path: &Path, bytes: u64) {
    use std::io::Write;
    let mut file =
        std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path).expect("a new file"));
    let mut random = crate::blocks::Random::new(bytes);
    for _ in 0..bytes / 8 {
        file.write_all(&random.next().to_le_bytes()).expect("room for the file");
    }
    file.flush().expect("room for the file");
}
