//! Listeners: binding safely, accepting within the limit.

use super::Shared;
use super::connection;
use super::handover::Moving;
use super::share::Slot;
use socket2::{SockRef, TcpKeepalive};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use trefoil_transport::{Stream, UnixSocket};

/// Mode of a unix socket: the owner and the group (say, of QEMU's user) may connect.
const SOCKET_MODE: u32 = 0o660;

/// Wait after an `accept` that failed (no file descriptors left, say) before the next one.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// A TCP client whose host is silent for about a minute is taken for dead, which also fences what it
/// had queued.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server answers on this unix socket.
    #[error("{0}: another server answers on this socket; stop it or choose another path")]
    Live(PathBuf),
    /// The path is taken by something else.
    #[error("{0}: exists and is no socket; choose another path or move it away")]
    NotASocket(PathBuf),
    /// The system refuses the path.
    #[error("{path}: cannot listen on this unix socket: {source}")]
    Unix {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses the address.
    #[error("{address}: cannot listen: {source}; is another server running there?")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    async fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_RETRIES);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            Listener::Unix(listener, file) => {
                let (stream, _) = listener.accept().await?;
                // A reply of 1 MiB goes out in one piece, not in five turns of both processes.
                trefoil_transport::tune_unix(&stream);
                Ok((Stream::Unix(UnixSocket::new(stream)?), file.path.display().to_string()))
            }
        }
    }
}

/// A bound unix socket's file; removed when dropped, unless someone has put another one in its place.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Ok(now) = fs::symlink_metadata(&self.path)
            && (now.dev(), now.ino()) == (self.device, self.inode)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn tcp(shared: &Rc<Shared>, address: SocketAddr) -> Result<SocketAddr, ListenError> {
    let bind = || {
        // std sets SO_REUSEADDR, so that a restart does not wait for old connections to time out.
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, bound))
    };
    let (listener, bound) = bind().map_err(|source| ListenError::Tcp { address, source })?;
    spawn(shared, Listener::Tcp(listener));
    Ok(bound)
}

pub(super) fn unix(shared: &Rc<Shared>, path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Unix { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(ListenError::Live(path.to_owned())),
            Err(error) => return Err(failed(error)),
        },
    }
    // Bound beside its place and moved there when it has its mode: nobody meets a half-made socket,
    // and a dead one is replaced in one step.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let _ = fs::remove_file(&beside);
    let bind = || {
        let listener = std::os::unix::net::UnixListener::bind(&beside)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(SOCKET_MODE))?;
        let meta = fs::symlink_metadata(&beside)?;
        let listener = UnixListener::from_std(listener)?;
        fs::rename(&beside, path)?;
        let (device, inode) = (meta.dev(), meta.ino());
        Ok((listener, SocketFile { path: path.to_owned(), device, inode }))
    };
    let (listener, file) = bind().map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed(error)
    })?;
    spawn(shared, Listener::Unix(listener, file));
    Ok(())
}

fn spawn(shared: &Rc<Shared>, listener: Listener) {
    shared.listeners.set(shared.listeners.get() + 1);
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        let mut stop = shared.stop.clone();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = accept(&shared, &listener) => {}
        }
        drop(listener);
        shared.listeners.set(shared.listeners.get() - 1);
        shared.ended.notify_waiters();
    });
}

/// Serves what other shards hand over.
pub(super) fn inbox(shared: &Rc<Shared>, mut inbox: mpsc::Receiver<Moving>) {
    shared.listeners.set(shared.listeners.get() + 1);
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        let mut stop = shared.stop.clone();
        loop {
            let moving = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                moving = inbox.recv() => moving,
            };
            let Some(moving) = moving else { break };
            shared.count(|c| c.connections += 1);
            tokio::task::spawn_local(connection::take_over(shared.clone(), moving));
        }
        // Whoever is still in it is disconnected, like all others.
        drop(inbox);
        shared.listeners.set(shared.listeners.get() - 1);
        shared.ended.notify_waiters();
    });
}

async fn accept(shared: &Rc<Shared>, listener: &Listener) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(more) = shared.log.pass() {
                    tracing::warn!(%error, held_back = more, "cannot accept an NBD connection");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let limit = shared.config.connections_max;
        let Some(slot) = Slot::take(&shared.process, limit) else {
            shared.count(|c| c.refused += 1);
            if let Some(more) = shared.log.pass() {
                tracing::warn!(peer, limit, held_back = more, "too many NBD connections: refused");
            }
            continue;
        };
        shared.count(|c| {
            c.connections += 1;
            c.accepted += 1;
        });
        tokio::task::spawn_local(connection::serve(shared.clone(), stream, peer, slot));
    }
}
