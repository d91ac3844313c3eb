//! The short way between daemons of one host: a unix socket beside the TCP one.
//!
//! A VM host that also stores (one of three copies is then next door), and a whole cluster on one
//! machine, spare the TCP stack: a round trip through a unix socket takes a third of the processor time of
//! one over loopback. The socket is in Linux's abstract name space, which belongs to the network name
//! space: what is another host for TCP is another one here, and a process that has died leaves nothing
//! behind. Its name holds cluster, role, id and incarnation, so whoever finds one there has found whom it
//! wanted; the Hello says it again.
//!
//! Abstract names have no permissions, and anybody on the host could take one. Both sides therefore ask
//! the kernel who the other is, and talk only to their own user and to root. Where anything is not as it
//! should be, TCP is used.

use crate::connection::Peer;
use crate::handshake::Role;
use crate::stream::Stream;
use crate::unix::UnixSocket;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// The kernel's buffers of one direction: room for a few of the largest frames, so that one of them does
/// not take a dozen turns of both processes.
const BUFFER_BYTES: usize = 4 << 20;

/// Names a daemon's unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalName(String);

impl LocalName {
    /// Of the daemon that says so in its Hello.
    pub fn new(cluster_id: [u8; 16], role: Role, id: u64, incarnation: u64) -> LocalName {
        let cluster = u128::from_be_bytes(cluster_id);
        LocalName(format!("trefoil/{cluster:032x}/{}/{id}/{incarnation:016x}", role as u8))
    }

    fn address(&self) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(self.0.as_bytes())
    }

    /// Listens. Errors: another process has the name.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        let listener = std::os::unix::net::UnixListener::bind_addr(&self.address()?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    /// Connects, if somebody listens who may be trusted. Never waits: a full backlog is an error.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let stream = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(socket));
        let address = self.address()?;
        let name = address.as_abstract_name().unwrap_or_default();
        connect_abstract(&stream, name)?;
        let stream = UnixStream::from_std(stream)?;
        check_peer(&stream)?;
        Ok(stream)
    }
}

/// `connect` without waiting; the standard library's would block on a full backlog.
fn connect_abstract(stream: &std::os::unix::net::UnixStream, name: &[u8]) -> io::Result<()> {
    let mut path = Vec::with_capacity(name.len() + 1);
    path.push(0);
    path.extend_from_slice(name);
    let path = std::ffi::OsStr::new(std::str::from_utf8(&path).map_err(|_| io::ErrorKind::InvalidInput)?);
    socket2::SockRef::from(stream).connect(&socket2::SockAddr::unix(path)?)
}

/// The other side must be of our user, or root.
pub(crate) fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let ours = nix::unistd::geteuid().as_raw();
    if uid == 0 || uid == ours {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the process at the other end of the unix socket is of user {uid}, not {ours} or 0"),
    ))
}

/// A connection whose other side has been checked, ready to be used.
pub(crate) fn ready(stream: UnixStream) -> io::Result<(Stream, Peer)> {
    tune(&stream);
    let peer = Peer::Local(stream.peer_cred().ok().and_then(|peer| peer.pid()));
    Ok((Stream::Unix(UnixSocket::new(stream)?), peer))
}

/// Larger buffers for a unix socket, as far as the kernel lets us.
pub fn tune(stream: &UnixStream) {
    let socket = socket2::SockRef::from(stream);
    // Without the privilege for more than `net.core.wmem_max` it is that.
    if nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_free_when_its_listener_is_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let unique = u64::from(std::process::id());
            let name = LocalName::new([9; 16], Role::StorageNode, unique, 7);
            assert_eq!(name.connect().expect_err("nobody").kind(), io::ErrorKind::ConnectionRefused);
            let listener = name.listen().expect("free");
            assert_eq!(name.listen().expect_err("taken").kind(), io::ErrorKind::AddrInUse);
            let _client = name.connect().expect("somebody");
            let (served, _) = listener.accept().await.expect("accepted");
            check_peer(&served).expect("ourselves");
            drop(listener);
            assert_eq!(name.connect().expect_err("gone").kind(), io::ErrorKind::ConnectionRefused);
            name.listen().expect("free again");
        });
    }
}
