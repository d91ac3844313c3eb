//! One type for both kinds of connection: TCP between hosts, a unix socket within one.
//!
//! [`Stream::read_some`] knows one thing that the types underneath do not: a read that did not fill its
//! room has emptied the socket, so it is not asked again before the kernel says that more has come.

use crate::unix::UnixSocket;
use bytes::BytesMut;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// To another host, or to this one by its address.
    Tcp(TcpStream),
    /// Within this host.
    Unix(UnixSocket),
}

/// A connected socket that no runtime knows: on its way from one thread's to another's. What has arrived at it and
/// was not read stays in it.
#[derive(Debug)]
pub enum LooseStream {
    /// See [`Stream::Tcp`].
    Tcp(std::net::TcpStream),
    /// See [`Stream::Unix`].
    Unix(std::os::unix::net::UnixStream),
}

impl LooseStream {
    /// Gives it to the runtime that this is called in, which is told of what has arrived before. Errors: it cannot be
    /// registered; then it is closed.
    pub fn bind(self) -> io::Result<Stream> {
        Ok(match self {
            LooseStream::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            LooseStream::Unix(stream) => {
                Stream::Unix(UnixSocket::new(tokio::net::UnixStream::from_std(stream)?)?)
            }
        })
    }
}

impl Stream {
    /// Takes it off its runtime. Errors: that fails; then it is closed.
    pub fn loosen(self) -> io::Result<LooseStream> {
        Ok(match self {
            Stream::Tcp(stream) => LooseStream::Tcp(stream.into_std()?),
            Stream::Unix(stream) => LooseStream::Unix(stream.into_std()),
        })
    }

    /// Waits until a read would not block.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.readable().await,
            Stream::Unix(stream) => stream.readable().await,
        }
    }

    /// Waits until a write would not block.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.writable().await,
            Stream::Unix(stream) => stream.writable().await,
        }
    }

    /// Writes what the kernel takes at once. Errors: `WouldBlock`, or the connection is broken.
    pub fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write_vectored(slices),
            Stream::Unix(stream) => stream.try_write_vectored(slices),
        }
    }

    /// One read of at most `max` bytes into the room behind `buffer`'s bytes; neither may be none. 0: the
    /// other side has closed. Errors: `WouldBlock`, or the connection is broken.
    pub fn read_some(&self, buffer: &mut BytesMut, max: usize) -> io::Result<usize> {
        let room = (buffer.capacity() - buffer.len()).min(max);
        self.read(room, |fd| recv(fd, buffer, room))
    }

    /// One read into `into`, which must not be empty, and otherwise as [`Stream::read_some`].
    pub fn read_into(&self, into: &mut [u8]) -> io::Result<usize> {
        self.read(into.len(), |fd| {
            nix::sys::socket::recv(fd.as_raw_fd(), into, nix::sys::socket::MsgFlags::empty())
                .map_err(io::Error::from)
        })
    }

    fn read(&self, room: usize, recv: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>) -> io::Result<usize> {
        debug_assert!(room > 0);
        let mut result = Err(io::ErrorKind::WouldBlock.into());
        // tokio asks epoll again only when it was told "would block". A short read says the same: the
        // kernel gives all that it has, up to the room, and rings again (edge-triggered) for anything that
        // comes later. Telling tokio so spares the read that would only fetch EAGAIN.
        let outcome = self.try_read_io(|| {
            result = recv(self.as_fd());
            match &result {
                Ok(read) if *read > 0 && *read < room => Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.kind().into()),
            }
        });
        match (outcome, result) {
            // Not readable at all, as far as tokio knows: the closure did not run.
            (Err(error), Err(_)) => Err(error),
            (_, result) => result,
        }
    }

    fn try_read_io(&self, read: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.try_io(Interest::READABLE, read),
            Stream::Unix(stream) => stream.try_read_io(read),
        }
    }

    /// True where the peer has closed or shut down its side, although bytes may be left to read. What
    /// is left was sent by a client that does not wait for answers any more.
    pub fn peer_closed(&self, cx: &mut Context<'_>) -> bool {
        match self {
            Stream::Tcp(s) => {
                let ready = pin!(s.ready(Interest::READABLE)).poll(cx);
                matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
            }
            Stream::Unix(s) => s.peer_closed(cx),
        }
    }
}

/// `recv` into the spare room.
#[allow(unsafe_code)]
fn recv(fd: BorrowedFd<'_>, buffer: &mut BytesMut, max: usize) -> io::Result<usize> {
    let socket = socket2::SockRef::from(&fd);
    let read = socket.recv(&mut buffer.spare_capacity_mut()[..max])?;
    // SAFETY: `recv` has written that many bytes at the beginning of the spare room.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Unix(s) => s.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Unix(s) => s.poll_write(cx, &[io::IoSlice::new(buf)]),
        }
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Stream::Unix(s) => s.poll_write(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Unix(s) => Poll::Ready(s.shutdown()),
        }
    }
}
