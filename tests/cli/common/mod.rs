//! What the tests of the command line share: the binary, run to its end or as a guest that is stopped.

pub mod cluster;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The longest that anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// `trefoil`, away from the environment and the directory of whoever runs the tests.
pub fn trefoil(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trefoil"));
    command.args(arguments).env_remove("TREFOIL_MONITOR").env_remove("TREFOIL_LOG");
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(arguments: &[&str]) -> Output {
    trefoil(arguments).output().expect("trefoil runs")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// It succeeds; what it wrote.
pub fn good(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}\n{}", output.status, stderr(&output));
    stdout(&output)
}

/// It fails with that code and one line on standard error, and writes nothing else; the line.
pub fn bad(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
    told
}

/// A free port on loopback.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// A running `trefoil up`. Dropping it stops it.
pub struct Up {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// What it has said.
    pub said: Vec<String>,
}

impl Up {
    /// Starts it on `dir`, on a port that was free.
    pub fn start(dir: &Path, arguments: &[&str]) -> Up {
        let listen = format!("127.0.0.1:{}", free_port());
        let dir = dir.to_str().expect("UTF-8");
        let mut all = vec!["up", "--dir", dir, "--node-size", "512M", "--listen", &listen];
        all.extend(arguments);
        Up::run(trefoil(&all))
    }

    /// Runs `command`, which is an `up`.
    pub fn run(mut command: Command) -> Up {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("trefoil runs");
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Up { child, lines, said: Vec::new() }
    }

    /// Waits for a line that begins so.
    pub fn line(&mut self, begin: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.starts_with(begin) {
                        return line;
                    }
                }
                Err(error) => panic!("no line {begin:?} ({error}); it said: {:#?}", self.said),
            }
        }
    }

    /// Waits until it serves; the URI.
    pub fn ready(&mut self) -> String {
        let line = self.line("ready: ");
        line["ready: ".len()..].to_owned()
    }

    /// Its standard error, where that is a pipe.
    pub fn stderr(&mut self) -> std::process::ChildStderr {
        self.child.stderr.take().expect("a pipe, taken once")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end; it said: {:#?}", self.said);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it in order.
    pub fn stop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "{status}; it said: {:#?}", self.said);
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Children of `up` go with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Tries until `test` is true.
pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !test() {
        assert!(Instant::now() < deadline, "it never came to be that {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
