//! Accepting connections: bounded, and hard to disturb.
//!
//! Every accepted socket counts against the limit from the first byte, so strangers that say nothing
//! cannot use up file descriptors. A connection too many is told so and closed. Running out of file
//! descriptors or memory slows the loop down and never ends it.

use crate::connection::{Options, Peer};
use crate::handshake::{AcceptError, Connected, Policy, accept, refuse_too_many};
use crate::local::{self, LocalName};
use crate::rate::RateLimit;
use crate::stream::Stream;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

/// Connections that one listener has at once, where [`ServeOptions`] does not say otherwise.
pub const CONNECTIONS_MAX: usize = 1024;

/// Connections over the limit that are being told so at once; further ones are closed without a word.
const REFUSALS_MAX: usize = 16;

/// How long to wait when the kernel has no descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lines in the log about connections that were not accepted: one per this long.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Who is let in.
    pub policy: Policy,
    /// Limits of each connection.
    pub connection: Options,
    /// Connections at once, handshakes included.
    pub connections_max: usize,
    /// Daemons of this host may come through a unix socket of this name, too.
    pub local: Option<LocalName>,
}

impl ServeOptions {
    /// With the default limits.
    pub fn new(policy: Policy) -> ServeOptions {
        ServeOptions { policy, connection: Options::default(), connections_max: CONNECTIONS_MAX, local: None }
    }
}

/// Binds `address`; the error says which address, and what to do.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => ": another process listens there; stop it or choose another port",
            io::ErrorKind::AddrNotAvailable => ": this host does not have that address",
            io::ErrorKind::PermissionDenied => ": ports below 1024 need privileges",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
    })
}

struct Slot(Rc<Cell<usize>>);

impl Slot {
    fn take(count: &Rc<Cell<usize>>, max: usize) -> Option<Slot> {
        if count.get() >= max {
            return None;
        }
        count.set(count.get() + 1);
        Some(Slot(count.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Never ends where there is no unix socket.
async fn accept_local(listener: Option<&UnixListener>) -> io::Result<(Stream, Peer)> {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        let (stream, _) = listener.accept().await?;
        match local::check_peer(&stream).and_then(|()| local::ready(stream)) {
            Ok(ready) => return Ok(ready),
            Err(error) => tracing::debug!(%error, "a connection by the unix socket was not accepted"),
        }
    }
}

/// Accepts connections and runs `handle` for each as a local task, for ever. Dropping the future stops
/// accepting and ends every connection's task. Must run within a `LocalSet`.
pub async fn serve<H, F>(listener: TcpListener, options: ServeOptions, handle: H)
where
    H: Fn(Connected) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let handle = Rc::new(handle);
    let options = Rc::new(options);
    let connections = Rc::new(Cell::new(0));
    let refusals = Rc::new(Cell::new(0));
    let log = Rc::new(RateLimit::new(LOG_INTERVAL));
    let local = options.local.as_ref().and_then(|name| {
        let listener = name.listen();
        // TCP is there all the same.
        listener.inspect_err(|error| tracing::warn!(?name, %error, "no unix socket for this host")).ok()
    });
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => {
                accepted.map(|(stream, peer)| (Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            accepted = accept_local(local.as_ref()) => accepted,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked; the daemon goes on");
                }
                continue;
            }
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(kept_back) = log.allow() {
                    tracing::warn!(%error, kept_back, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = Slot::take(&connections, options.connections_max) else {
            let max = options.connections_max;
            if let Some(kept_back) = log.allow() {
                tracing::warn!(%peer, max, kept_back, "connection refused: too many");
            }
            if let Some(slot) = Slot::take(&refusals, REFUSALS_MAX) {
                tasks.spawn_local(async move {
                    refuse_too_many(stream, max).await;
                    drop(slot);
                });
            }
            continue;
        };
        let (handle, options, log) = (handle.clone(), options.clone(), log.clone());
        tasks.spawn_local(async move {
            match accept(stream, peer, &options.policy, options.connection).await {
                Ok(connected) => handle(connected).await,
                Err(AcceptError::Socket(error)) => {
                    tracing::debug!(%peer, %error, "connection lost before its handshake");
                }
                Err(error) => {
                    if let Some(kept_back) = log.allow() {
                        tracing::warn!(%peer, %error, kept_back, "connection not accepted");
                    }
                }
            }
            drop(slot);
        });
    }
}
