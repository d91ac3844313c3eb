//! Starting one daemon, as a thread of this process or as a process of its own, and hearing of it.
//!
//! Both kinds look the same from outside: [`Running`] to stop them, [`Event`]s when they serve and when
//! they have ended. Nothing is decided here; `supervisor` does that.

use crate::failure::one_line;
use crate::signals::{Shutdown, stopped};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// How long a daemon may take to stop before it is killed. Stopping is fast; this is for one that hangs.
pub const STOP_WAIT: Duration = Duration::from_secs(20);
/// Events that wait for the supervisor. Each start of a daemon makes two; a daemon is started again only
/// by the supervisor, which has then taken the former ones.
pub const EVENTS_MAX: usize = 1024;
/// What a daemon says on standard output is `ready: ADDRESS`; what comes after this much is not read.
const STDOUT_BYTES_MAX: u64 = 64 * 1024;

/// Something happened to a daemon.
#[derive(Debug, PartialEq)]
pub struct Event {
    /// Which one, by the number that it was started with.
    pub member: usize,
    /// What.
    pub what: What,
}

/// See [`Event`].
#[derive(Debug, PartialEq)]
pub enum What {
    /// It serves.
    Ready,
    /// It is gone: because it was told to, or for a reason.
    Ended(Result<(), String>),
}

/// A daemon that was started and not yet reported as ended.
#[derive(Debug)]
pub struct Running {
    stop: watch::Sender<bool>,
    /// Its process, if it has one of its own.
    pub pid: Option<u32>,
}

impl Running {
    /// Asks it to stop; an [`What::Ended`] follows.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Called by a daemon when it serves.
pub type Ready = Box<dyn FnOnce() + Send>;

/// Runs `body` on a thread of its own. A panic in it ends the daemon, not the process.
///
/// # Errors
///
/// There is no thread to be had.
pub fn thread(
    member: usize,
    name: &str,
    events: mpsc::Sender<Event>,
    body: impl FnOnce(Shutdown, Ready) -> anyhow::Result<()> + Send + 'static,
) -> io::Result<Running> {
    let (stop, shutdown) = watch::channel(false);
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || {
        let told = events.clone();
        let ready: Ready = Box::new(move || {
            // Cannot be full (see EVENTS_MAX); closed means that nobody asks any more.
            let _ = told.try_send(Event { member, what: What::Ready });
        });
        let result = match catch_unwind(AssertUnwindSafe(|| body(shutdown, ready))) {
            Ok(result) => result.map_err(|error| one_line(&error)),
            Err(_) => Err("panicked; what and where is in the log above. Please report it".to_owned()),
        };
        let _ = events.blocking_send(Event { member, what: What::Ended(result) });
    })?;
    Ok(Running { stop, pid: None })
}

/// Starts `command`, which says `ready: ` on its standard output when it serves.
///
/// It gets a process group of its own, so that Ctrl-C at a terminal reaches us alone and the daemons
/// stop in order.
///
/// # Errors
///
/// It cannot be started.
pub fn process(member: usize, mut command: Command, events: mpsc::Sender<Event>) -> io::Result<Running> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
    let child = command.spawn()?;
    let pid = child.id();
    let (stop, shutdown) = watch::channel(false);
    tokio::spawn(watch_child(member, child, shutdown, events));
    Ok(Running { stop, pid })
}

async fn watch_child(member: usize, mut child: Child, shutdown: Shutdown, events: mpsc::Sender<Event>) {
    let stdout = child.stdout.take().map(|stdout| BufReader::new(stdout.take(STDOUT_BYTES_MAX)).lines());
    let mut stdout = stdout;
    let mut stopping = false;
    let mut kill_at = None;
    let mut killed = false;
    let status = loop {
        let next_line = async {
            match &mut stdout {
                Some(lines) => lines.next_line().await,
                None => std::future::pending().await,
            }
        };
        let deadline = async {
            match kill_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            line = next_line => match line {
                Ok(Some(line)) if line.starts_with("ready: ") => {
                    let _ = events.send(Event { member, what: What::Ready }).await;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => stdout = None,
            },
            status = child.wait() => break status,
            () = stopped(shutdown.clone()), if !stopping => {
                stopping = true;
                kill_at = Some(Instant::now() + STOP_WAIT);
                // Not waited for yet, so the pid is still its own.
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
            }
            () = deadline => {
                (kill_at, killed) = (None, true);
                let _ = child.start_kill();
            }
        }
    };
    let result = match status {
        _ if killed => Err(format!("did not stop within {} s and was killed", STOP_WAIT.as_secs())),
        Ok(status) if status.success() && stopping => Ok(()),
        Ok(status) => Err(how_it_ended(status)),
        Err(error) => Err(format!("cannot be waited for: {error}")),
    };
    let _ = events.send(Event { member, what: What::Ended(result) }).await;
}

fn how_it_ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (_, Some(signal)) => match Signal::try_from(signal) {
            Ok(name) => format!("killed by {name}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (Some(code), None) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(events: &mut mpsc::Receiver<Event>) -> What {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
        event.expect("an event in time").expect("a sender").what
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).stderr(Stdio::null());
        command
    }

    #[tokio::test]
    async fn a_process_is_heard_of_and_stopped() {
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let running = process(3, shell("echo hello; echo ready: here; exec sleep 60"), sender).unwrap();
        assert_eq!(next(&mut events).await, What::Ready);
        assert!(running.pid.is_some());
        running.stop();
        // `sleep` does not handle SIGTERM.
        assert_eq!(next(&mut events).await, What::Ended(Err("killed by SIGTERM".to_owned())));
    }

    #[tokio::test]
    async fn a_process_that_ends_by_itself_is_never_well() {
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let _running = process(0, shell("exit 0"), sender.clone()).unwrap();
        assert_eq!(next(&mut events).await, What::Ended(Err("ended with exit code 0".to_owned())));
        let running =
            process(0, shell("trap 'exit 0' TERM; echo ready: x; while :; do sleep 0.1; done"), sender);
        let running = running.unwrap();
        assert_eq!(next(&mut events).await, What::Ready);
        running.stop();
        assert_eq!(next(&mut events).await, What::Ended(Ok(())));
    }

    #[tokio::test]
    async fn a_thread_is_heard_of_and_stopped_and_may_panic() {
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let body = |shutdown, ready: Ready| {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            ready();
            runtime.block_on(stopped(shutdown));
            Ok(())
        };
        let running = thread(1, "one", sender.clone(), body).unwrap();
        assert_eq!(next(&mut events).await, What::Ready);
        running.stop();
        assert_eq!(next(&mut events).await, What::Ended(Ok(())));
        let _running = thread(1, "two", sender.clone(), |_, _| anyhow::bail!("no disk")).unwrap();
        assert_eq!(next(&mut events).await, What::Ended(Err("no disk".to_owned())));
        let _running = thread(1, "three", sender, |_, _| panic!("on purpose")).unwrap();
        let What::Ended(Err(told)) = next(&mut events).await else { panic!("it lives") };
        assert!(told.contains("panicked"), "{told}");
    }
}
