//! The daemons of one `up`: which run, which have died, and what follows from it.
//!
//! A plain table of [`Slot`]s and one queue of events; every wait of `up` goes through
//! [`Supervisor::during`], so that a daemon that dies and a signal are seen at once, whatever is being
//! waited for.

use super::dir::{DataDir, write_atomically};
use super::launch::{self, EVENTS_MAX, Event, Running, STOP_WAIT, What};
use super::tell::Tell;
use crate::cmd::daemons::PARENT_ENV;
use crate::daemon::{Daemon, Role};
use crate::failure::{Failure, Outcome, one_line};
use crate::output::printable;
use crate::signals::{Shutdown, stopped};
use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// First wait before a daemon that died is started again; doubles with each death.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(500);
/// The longest wait.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
/// A daemon that ran this long has recovered: its next death counts as the first.
const RESTART_FORGET: Duration = Duration::from_secs(60);
/// How often a wait looks whether it should say that it is a long one.
const WAIT_TICK: Duration = Duration::from_secs(1);
/// A log longer than this is set aside when its daemon starts.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How much of the end of a log is looked at for its last line.
const LOG_TAIL_BYTES: u64 = 4096;

/// One daemon of this `up`.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it is.
    pub role: Role,
    /// `monitor`, `node-0`, ..., `nbd`.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Where it serves its metrics.
    pub metrics: Option<SocketAddr>,
    /// What to run.
    pub daemon: Daemon,
}

/// How daemons run.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Each on a thread of this process.
    Threads,
    /// Each as a process of its own.
    Processes {
        /// Further arguments: those about logging.
        args: Vec<String>,
        /// Start again what died.
        restart: bool,
    },
}

/// Why a wait did not come to its end.
pub enum Interrupt {
    /// A signal asked us to stop.
    Stop,
    /// It cannot go on.
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Interrupt {
    fn from(error: E) -> Interrupt {
        Interrupt::Failed(error.into())
    }
}

struct Slot {
    member: Member,
    running: Option<Running>,
    ready: bool,
    /// Why it is not running.
    ended: Option<String>,
    started: Instant,
    deaths: u32,
    restart_at: Option<Instant>,
}

/// An entry of `processes.json`.
#[derive(Serialize)]
struct ProcessEntry<'a> {
    role: Role,
    name: &'a str,
    pid: u32,
    address: &'a str,
    metrics: Option<SocketAddr>,
    config: PathBuf,
}

/// What is read back of an entry.
#[derive(Deserialize)]
pub struct ProcessRead {
    /// `node-0`, ...
    pub name: String,
    /// Its process, then.
    pub pid: u32,
}

/// See the module.
pub struct Supervisor<'a> {
    dir: &'a DataDir,
    mode: Mode,
    slots: Vec<Slot>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    shutdown: Shutdown,
    /// What is said to the user.
    pub tell: Tell,
}

impl<'a> Supervisor<'a> {
    /// Without a daemon yet.
    pub fn new(dir: &'a DataDir, mode: Mode, shutdown: Shutdown, tell: Tell) -> Supervisor<'a> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        Supervisor { dir, mode, slots: Vec::new(), sender, events, shutdown, tell }
    }

    /// The directory.
    pub fn dir(&self) -> &'a DataDir {
        self.dir
    }
    /// True where each daemon is a process of its own.
    pub fn has_processes(&self) -> bool {
        matches!(self.mode, Mode::Processes { .. })
    }

    /// Starts a daemon and returns its number.
    pub fn start(&mut self, member: Member) -> Outcome<usize> {
        if let Mode::Processes { .. } = self.mode {
            let text = member.daemon.to_toml()?;
            let head = format!(
                "# Written by `trefoil up` at each start. To start this daemon again by hand while `up` runs:\n#   \
                 trefoil {} --config {}\n",
                member.role,
                self.dir.config_file(&member.name).display()
            );
            write_atomically(&self.dir.config_file(&member.name), (head + &text).as_bytes())?;
        }
        let (started, number) = (Instant::now(), self.slots.len());
        let slot =
            Slot { member, running: None, ready: false, ended: None, started, deaths: 0, restart_at: None };
        self.slots.push(slot);
        self.launch(number)?;
        Ok(number)
    }

    fn launch(&mut self, number: usize) -> Outcome {
        let sender = self.sender.clone();
        let slot = &mut self.slots[number];
        let name = &slot.member.name;
        let running = match &self.mode {
            Mode::Threads => {
                let daemon = slot.member.daemon.clone();
                launch::thread(number, name, sender, move |shutdown, ready| {
                    daemon.run(shutdown, ready, || (), std::future::ready(()))
                })
            }
            Mode::Processes { args, .. } => {
                let log = self.dir.log_file(name);
                let mut command = Command::new("/proc/self/exe");
                command.arg0("trefoil").arg(slot.member.role.to_string());
                command.arg("--config").arg(self.dir.config_file(name));
                command.env(PARENT_ENV, std::process::id().to_string());
                command.args(args).stderr(open_log(&log)?);
                launch::process(number, command, sender)
            }
        };
        slot.running = Some(running.with_context(|| format!("cannot start {name}"))?);
        (slot.started, slot.ready, slot.restart_at, slot.ended) = (Instant::now(), false, None, None);
        self.write_processes();
        Ok(())
    }

    /// `processes.json`: what runs now. That it cannot be written (a full disk, say) stops no daemon.
    fn write_processes(&self) {
        if let Mode::Threads = self.mode {
            return;
        }
        let entries: Vec<ProcessEntry> = self.slots.iter().filter_map(|slot| self.entry(slot)).collect();
        let written = serde_json::to_string_pretty(&entries).map_err(anyhow::Error::from).and_then(|text| {
            let text = text + "\n";
            write_atomically(&self.dir.processes_file(), text.as_bytes())
        });
        if let Err(error) = written {
            self.tell.warning(&format!("{}; it does not say what runs now", one_line(&error)));
        }
    }

    fn entry<'s>(&self, slot: &'s Slot) -> Option<ProcessEntry<'s>> {
        let Member { role, name, address, metrics, .. } = &slot.member;
        let (pid, metrics) = (slot.running.as_ref()?.pid?, *metrics);
        Some(ProcessEntry { role: *role, name, pid, address, metrics, config: self.dir.config_file(name) })
    }

    /// Waits for `future`, which `what` names, and handles what happens to daemons meanwhile.
    pub async fn during<T>(
        &mut self,
        what: &str,
        future: impl Future<Output = Outcome<T>>,
    ) -> Result<T, Interrupt> {
        self.tell.waiting_for(what);
        let mut future = std::pin::pin!(future);
        let result = loop {
            tokio::select! {
                biased;
                () = stopped(self.shutdown.clone()) => break Err(Interrupt::Stop),
                result = &mut future => break result.map_err(Interrupt::Failed),
                event = self.events.recv() => self.happened(event),
                () = sleep(WAIT_TICK) => self.tell.still_waiting(),
            }
        };
        self.tell.waited();
        result
    }

    /// Waits until each of `members` serves or has ended, and returns those which have ended, with why.
    pub async fn wait_ready(&mut self, members: &[usize]) -> Result<Vec<(usize, String)>, Interrupt> {
        loop {
            let waits = |i: &&usize| !self.slots[**i].ready && self.slots[**i].ended.is_none();
            let Some(first) = members.iter().find(waits) else { break };
            let what = format!("{} to be ready", self.slots[*first].member.name);
            self.tell.waiting_for(&what);
            tokio::select! {
                biased;
                () = stopped(self.shutdown.clone()) => return Err(Interrupt::Stop),
                event = self.events.recv() => self.happened(event),
                () = sleep(WAIT_TICK) => self.tell.still_waiting(),
            }
        }
        self.tell.waited();
        let ended = |i: &usize| Some((*i, self.slots[*i].ended.clone()?));
        Ok(members.iter().filter_map(ended).collect())
    }

    /// Runs until a signal asks to stop.
    ///
    /// # Errors
    ///
    /// Every daemon has ended, and none will be started again.
    pub async fn serve(&mut self) -> Outcome {
        loop {
            let gone = |slot: &Slot| slot.running.is_none() && slot.restart_at.is_none();
            if self.slots.iter().all(gone) {
                return Err(anyhow!("every daemon has ended; nothing is left to run").into());
            }
            let next = self.slots.iter().filter_map(|slot| slot.restart_at).min();
            let restart = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopped(self.shutdown.clone()) => return Ok(()),
                event = self.events.recv() => self.happened(event),
                () = restart => self.restart_due(),
            }
        }
    }

    fn restart_due(&mut self) {
        let now = Instant::now();
        for number in 0..self.slots.len() {
            if self.slots[number].restart_at.is_some_and(|at| at <= now) {
                let name = self.slots[number].member.name.clone();
                self.tell.line(&format!("starting {name} again"));
                if let Err(failure) = self.launch(number) {
                    self.died(number, failure.line().unwrap_or_default());
                }
            }
        }
    }

    fn happened(&mut self, event: Option<Event>) {
        // None would mean that all senders are gone, and we hold one.
        let Some(Event { member, what }) = event else { return };
        match what {
            What::Ready => {
                let slot = &mut self.slots[member];
                slot.ready = true;
                if slot.deaths > 0 {
                    self.tell.line(&format!("{} serves again", slot.member.name));
                }
            }
            What::Ended(result) => {
                self.slots[member].running = None;
                self.slots[member].ready = false;
                self.died(member, result.err().unwrap_or_else(|| "ended".to_owned()));
                self.write_processes();
            }
        }
    }

    /// Tells of a death, and plans what follows.
    fn died(&mut self, number: usize, why: String) {
        let restart = matches!(self.mode, Mode::Processes { restart: true, .. });
        let last_line = match self.mode {
            Mode::Processes { .. } => last_line(&self.dir.log_file(&self.slots[number].member.name)),
            Mode::Threads => None,
        };
        let slot = &mut self.slots[number];
        if slot.started.elapsed() >= RESTART_FORGET {
            slot.deaths = 0;
        }
        slot.deaths = slot.deaths.saturating_add(1);
        let name = &slot.member.name;
        let mut text = format!("{name}: {why}");
        if let Some(line) = last_line {
            text += &format!("; the last line of its log: {line}");
        }
        slot.ended = Some(text.clone());
        let next = if restart {
            let delay = restart_delay(slot.deaths);
            slot.restart_at = Some(Instant::now() + delay);
            format!("it is started again in {:.1} s", delay.as_secs_f32())
        } else if let Mode::Processes { .. } = self.mode {
            let config = self.dir.config_file(name);
            format!("it stays down; to start it: trefoil {} --config {}", slot.member.role, config.display())
        } else {
            "it stays down until `up` is started again".to_owned()
        };
        self.tell.warning(&format!("{text}; {next}"));
    }

    /// Stops everything, the last started first, and waits for each.
    pub async fn stop(&mut self) {
        for number in (0..self.slots.len()).rev() {
            let Some(running) = &self.slots[number].running else { continue };
            running.stop();
            // Processes are killed after STOP_WAIT; threads cannot be.
            let deadline = Instant::now() + STOP_WAIT + Duration::from_secs(2);
            let name = self.slots[number].member.name.clone();
            self.tell.waiting_for(&format!("{name} to stop"));
            while self.slots[number].running.is_some() {
                let event = tokio::select! {
                    event = self.events.recv() => event,
                    () = sleep_until(deadline) => {
                        self.tell.warning(&format!("{name} does not stop; going on without it"));
                        self.slots[number].running = None;
                        break;
                    }
                };
                let Some(Event { member, what: What::Ended(result) }) = event else { continue };
                self.slots[member].running = None;
                if let Err(why) = result {
                    self.tell.warning(&format!("{}: {why}", self.slots[member].member.name));
                }
            }
            self.write_processes();
        }
        self.tell.waited();
    }
}

/// The wait before the start after death number `deaths`.
fn restart_delay(deaths: u32) -> Duration {
    let doublings = deaths.saturating_sub(1).min(16);
    (RESTART_DELAY_MIN * (1 << doublings)).min(RESTART_DELAY_MAX)
}

/// Opens a log to append to; one that has grown is kept as `NAME.log.old`, in place of the last such.
fn open_log(path: &Path) -> anyhow::Result<std::fs::File> {
    let name = path.display();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    if path.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        let old = path.with_extension("log.old");
        std::fs::rename(path, &old).with_context(|| format!("cannot rename {name}"))?;
    }
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.with_context(|| format!("cannot open the log {name}"))
}

/// The last line of a log, if it is a complaint.
fn last_line(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    let line = line.strip_prefix("trefoil: error: ").unwrap_or(line);
    // One that went without a word of complaint left nothing worth repeating.
    let idle = [" INFO ", " DEBUG ", " TRACE "].iter().any(|level| line.contains(level));
    (!idle).then(|| printable(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_become_rarer_and_never_stop() {
        let delays = [1, 2, 3, 6, 7, 8, u32::MAX].map(|n| restart_delay(n).as_millis());
        assert_eq!(delays, [500, 1000, 2000, 16_000, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn a_log_that_has_grown_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/x.log");
        open_log(&path).unwrap().set_len(LOG_BYTES_MAX).unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), LOG_BYTES_MAX);
        open_log(&path).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(dir.path().join("log/x.log.old").metadata().unwrap().len(), LOG_BYTES_MAX + 1);
    }

    #[test]
    fn the_last_line_of_a_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        assert_eq!(last_line(&path), None);
        std::fs::write(&path, format!("{}\nbad \x1b[31mdisk\n\n", "x".repeat(9000))).unwrap();
        assert_eq!(last_line(&path).as_deref(), Some("bad \u{fffd}[31mdisk"));
        std::fs::write(&path, "trefoil: error: no room\n").unwrap();
        assert_eq!(last_line(&path).as_deref(), Some("no room"));
        std::fs::write(&path, "2026-11-21T04:06:26Z  INFO trefoil: serves\n").unwrap();
        assert_eq!(last_line(&path), None);
    }
}
