//! What the service manager is told: ready, stopping, and that the event loop still turns.
//!
//! sd_notify's protocol, a few lines in a datagram, written here for one reason: nothing about it may make
//! a daemon wait. A manager that is busy or hangs lets datagrams queue up, and a blocking `send` would then
//! be a stall of I/O. Here the socket never blocks; what could not be told is told with the next beat.
//!
//! The beats come from a task on the daemon's own runtime ([`Manager::beats`]), never from a thread of
//! their own: when the loop hangs they stop, and the manager starts the daemon anew.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The pause before something that the manager did not take is tried again, where there is no watchdog.
const AGAIN: Duration = Duration::from_secs(1);
/// Beats within the time after which the manager gives a daemon up: two may be lost.
const BEATS: u32 = 3;
/// The shortest pause between two beats; a watchdog of less than 30 ms is none.
const BEAT_MIN: Duration = Duration::from_millis(10);

/// What it is to know.
#[derive(Debug, Default)]
struct State {
    /// The daemon serves; the text for `systemctl status`.
    serving: Option<String>,
    /// The manager has taken that.
    told: bool,
    stopping: bool,
}

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    /// After so long without a beat it starts the daemon anew.
    watchdog: Option<Duration>,
    state: Mutex<State>,
}

impl Manager {
    /// The one that the environment names (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID).
    pub fn from_environment() -> Arc<Manager> {
        let variable = |name: &str| std::env::var_os(name).filter(|text| !text.is_empty());
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let socket = variable("NOTIFY_SOCKET").and_then(|name| match connected(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(?name, %error, "NOTIFY_SOCKET cannot be used: the service manager hears nothing");
                None
            }
        });
        // Somebody else's, where the variable names another process.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        Manager::new(socket, watchdog)
    }

    fn new(socket: Option<UnixDatagram>, watchdog: Option<Duration>) -> Arc<Manager> {
        Arc::new(Manager { socket, watchdog, state: Mutex::default() })
    }

    /// Text for `systemctl status` while the daemon starts; may be lost.
    pub fn starting(&self, text: &str) {
        self.send(&format!("STATUS={}\n", one_line(text)));
    }

    /// The daemon serves: starts that wait for it go on, and the watchdog begins to count.
    pub fn serving(&self, text: &str) {
        self.with(|state| state.serving = Some(one_line(text)));
        self.beat();
    }

    /// It has been told to stop, and does.
    pub fn stopping(&self) {
        self.with(|state| state.stopping = true);
        self.send("STOPPING=1\nSTATUS=stopping\n");
    }

    /// Tells the manager again and again that the loop which runs this future turns; ends where nobody
    /// wants to know.
    pub async fn beats(self: Arc<Manager>) {
        if self.socket.is_none() {
            return;
        }
        let pause = self.watchdog.map_or(AGAIN, |after| (after / BEATS).max(BEAT_MIN));
        loop {
            tokio::time::sleep(pause).await;
            self.beat();
            if self.watchdog.is_none() && self.with(|state| state.told) {
                return;
            }
        }
    }

    fn beat(&self) {
        let mut text = String::new();
        let mut first = false;
        self.with(|state| {
            if let Some(serving) = &state.serving
                && !state.told
                && !state.stopping
            {
                first = true;
                text = format!("READY=1\nSTATUS={serving}\n");
            }
        });
        if self.watchdog.is_some() {
            text += "WATCHDOG=1\n";
        }
        if !text.is_empty() && self.send(&text) && first {
            self.with(|state| state.told = true);
        }
    }

    /// True if the manager has it.
    fn send(&self, text: &str) -> bool {
        let Some(socket) = &self.socket else { return false };
        match socket.send(text.as_bytes()) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "the service manager was not told; tried again with the next beat");
                false
            }
        }
    }

    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A path, or with `@` a name in the abstract name space.
fn connected(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// A line break in a text would begin another assignment.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    fn heard(theirs: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 512];
        let next = || theirs.recv(&mut bytes).ok().map(|n| String::from_utf8_lossy(&bytes[..n]).into_owned());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_full_queue_makes_nobody_wait_and_nothing_is_forgotten() {
        let (ours, theirs) = pair();
        while ours.send(b"x").is_ok() {}
        let manager = Manager::new(Some(ours), None);
        let begun = Instant::now();
        manager.serving("serves\nSTOPPING=1");
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert!(heard(&theirs).iter().all(|text| text == "x"), "it was not told");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        // Ends by itself once the manager has taken it: there is no watchdog.
        runtime.block_on(manager.beats());
        assert_eq!(heard(&theirs), ["READY=1\nSTATUS=serves STOPPING=1\n"]);
    }

    #[test]
    fn beats_stop_when_the_loop_hangs_and_go_on_after_it() {
        let (ours, theirs) = pair();
        let manager = Manager::new(Some(ours), Some(Duration::from_millis(60)));
        manager.serving("serves");
        assert_eq!(heard(&theirs), ["READY=1\nSTATUS=serves\nWATCHDOG=1\n"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.spawn(manager.clone().beats());
        runtime.block_on(async {
            let busy = || tokio::time::sleep(Duration::from_millis(100));
            busy().await;
            assert!(!heard(&theirs).is_empty(), "the loop turns");
            // The daemon's own work hangs.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(heard(&theirs), [""; 0], "nobody else speaks for it");
            busy().await;
            let beats = heard(&theirs);
            assert!(!beats.is_empty() && beats.iter().all(|text| text == "WATCHDOG=1\n"), "{beats:?}");
        });
    }

    #[test]
    fn names_may_be_paths_or_abstract() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let theirs = UnixDatagram::bind(&path).unwrap();
        connected(path.as_os_str()).unwrap().send(b"1").unwrap();
        let name = format!("trefoil-test-notify-{}", std::process::id());
        let abstract_one =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        connected(OsStr::new(&format!("@{name}"))).unwrap().send(b"2").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(theirs.recv(&mut bytes).unwrap(), 1);
        assert_eq!(abstract_one.recv(&mut bytes).unwrap(), 1);
        assert!(connected(OsStr::new("/nonexistent/notify")).is_err());
    }
}
