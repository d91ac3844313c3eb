//! The NBD server: sockets in front of [`crate::proto`], [`crate::disk`] behind it.
//!
//! One thread: a `current_thread` runtime with a `LocalSet`. One task per connection does everything
//! for it: it reads all that has arrived, parses it, hands all requests to the disk as one batch and
//! sends all finished replies with one vectored write. No request crosses a task or a thread.
//!
//! | file | what |
//! |---|---|
//! | `listen` | TCP and unix listeners; the limit on connections |
//! | `connection` | the task of one connection |
//! | `handover` | connections that go on at another shard's server |
//! | `share` | the limits that all shards of a process share |
//!
//! A process may have several, each on a thread of its own, with a [`Door`] to the others.
//!
//! It knows no volume and no replication. It never guesses that a client is alive: a connection whose
//! peer is gone loses the requests that have not started (see `connection`).

mod connection;
mod handover;
mod listen;
mod share;

pub use handover::{Door, doors};
pub use listen::ListenError;

use crate::disk::{ConnId, Exports};
use crate::proto::Limits;
use handover::Moving;
use share::{Process, Ration};
use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};

/// What a server may use, and how long it waits.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bounds of each connection.
    pub limits: Limits,
    /// Connections at once, at all shards. Further ones are accepted and closed at once, with a line in the log.
    pub connections_max: usize,
    /// Bytes that all connections of all shards together may hold in requests, replies and receive buffers. Over it,
    /// a connection that holds more than [`Config::connection_share_bytes`] is not read from, unless the
    /// one request that is arriving is all it has. The worst case is therefore this and one largest
    /// payload for each connection.
    pub bytes_max: u64,
    /// What a connection may hold although [`Config::bytes_max`] is reached, so that none starves.
    pub connection_share_bytes: u64,
    /// Time that a client has to get through the handshake, without the time that opening the export
    /// takes. Then its connection is closed.
    pub handshake_timeout: Duration,
    /// Time that requests under way get to finish when the server is stopped.
    pub stop_drain: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            limits: Limits::default(),
            connections_max: 128,
            bytes_max: 1 << 30,
            connection_share_bytes: 1 << 20,
            handshake_timeout: Duration::from_secs(30),
            stop_drain: Duration::from_secs(2),
        }
    }
}

/// Counters of a server, for metrics.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that are open now, and this server's: without those that it has handed over.
    pub connections: usize,
    /// Connections accepted since the start, without the refused ones.
    pub accepted: u64,
    /// Connections that were handed over to another shard's server.
    pub handed_over: u64,
    /// Connections refused because of [`Config::connections_max`].
    pub refused: u64,
    /// Connections closed because the client broke the protocol or ran out of time.
    pub protocol_errors: u64,
    /// Bytes held by all connections.
    pub bytes_held: u64,
}

/// What listeners and connections share.
struct Shared {
    exports: Rc<dyn Exports>,
    config: Config,
    counters: Cell<Counters>,
    process: Arc<Process>,
    ration: Ration,
    /// To each shard's server, this one included; none where there is only this one.
    doors: Vec<mpsc::Sender<Moving>>,
    next_conn: Cell<u64>,
    /// Told when a connection or listener has ended.
    ended: Notify,
    listeners: Cell<usize>,
    stop: watch::Receiver<bool>,
    log: LogGate,
}

impl Shared {
    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
    /// What a connection holds has changed by so much. Gets room for it, or gives room back.
    fn hold(&self, before: u64, now: u64) {
        self.count(|c| c.bytes_held = c.bytes_held - before + now);
        self.ration.covers(self.counters.get().bytes_held);
    }
    /// True while more may be read.
    fn has_room(&self) -> bool {
        self.ration.covers(self.counters.get().bytes_held)
    }
    fn next_conn(&self) -> ConnId {
        let id = self.next_conn.get() + 1;
        self.next_conn.set(id);
        ConnId(id)
    }
}

/// Lets one log line through per period, and says how many were held back before it.
struct LogGate {
    last: Cell<Option<Instant>>,
    held_back: Cell<u64>,
}

impl LogGate {
    const PERIOD: Duration = Duration::from_secs(5);

    fn new() -> LogGate {
        LogGate { last: Cell::new(None), held_back: Cell::new(0) }
    }
    fn pass(&self) -> Option<u64> {
        if self.last.get().is_some_and(|last| last.elapsed() < Self::PERIOD) {
            self.held_back.set(self.held_back.get() + 1);
            return None;
        }
        self.last.set(Some(Instant::now()));
        Some(self.held_back.replace(0))
    }
}

/// A running server. Must be made and used on a `LocalSet`. Dropping it closes its listeners and
/// drains its connections like [`Server::stop`], without waiting for it.
pub struct Server {
    shared: Rc<Shared>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// The only server of its process, without listeners.
    pub fn new(exports: Rc<dyn Exports>, config: Config) -> Server {
        let process = Process::new(1, config.bytes_max);
        let ration = Ration::whole(&process);
        Server::with(exports, config, process, ration, Vec::new())
    }

    /// One server of several, without listeners. It also serves what the others hand over to it.
    pub fn behind(door: Door, exports: Rc<dyn Exports>, config: Config) -> Server {
        let ration = Ration::shared(&door.process);
        let server = Server::with(exports, config, door.process, ration, door.to);
        listen::inbox(&server.shared, door.inbox);
        server
    }

    fn with(
        exports: Rc<dyn Exports>,
        config: Config,
        process: Arc<Process>,
        ration: Ration,
        doors: Vec<mpsc::Sender<Moving>>,
    ) -> Server {
        let (stop, stopped) = watch::channel(false);
        let shared = Rc::new(Shared {
            exports,
            config,
            counters: Cell::default(),
            process,
            ration,
            doors,
            next_conn: Cell::new(0),
            ended: Notify::new(),
            listeners: Cell::new(0),
            stop: stopped,
            log: LogGate::new(),
        });
        Server { shared, stop }
    }

    /// Listens on a TCP address; gives the one that was bound (port 0 is any). Whoever can reach it can
    /// use the exports: who may listen on what is the caller's decision.
    pub fn listen_tcp(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        listen::tcp(&self.shared, address)
    }

    /// Listens on a unix socket with mode 0660. A socket that another server answers on is left alone
    /// and refused; a dead one is replaced.
    pub fn listen_unix(&self, path: &Path) -> Result<(), ListenError> {
        listen::unix(&self.shared, path)
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters.get()
    }

    /// Stops accepting, removes the unix sockets, lets requests under way finish for
    /// [`Config::stop_drain`] and closes all connections. Clients are not told "shutting down": they
    /// would report I/O errors; a closed socket lets them connect again.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        loop {
            let ended = self.shared.ended.notified();
            if self.shared.counters.get().connections == 0 && self.shared.listeners.get() == 0 {
                return;
            }
            ended.await;
        }
    }
}
