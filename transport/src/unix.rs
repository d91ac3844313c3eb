//! A unix socket that wakes its process for bytes that have come, and not for bytes that have gone.
//!
//! The kernel tells the sender of a unix socket at every message that the receiver takes out that there is
//! room again, whether it waits for room or not (TCP tells only those who do). With epoll asked for both
//! directions, as tokio's own type does, each message sent wakes its sender a second time, for nothing.
//! Here epoll is asked for arrivals only. Whoever finds the socket full asks for room through a second
//! descriptor of it, which lives no longer than that.
//!
//! A connection therefore needs two descriptors while its peer is behind. It does no framing and has no
//! queue.

use socket2::SockRef;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};
use tokio::net::UnixStream;

/// A connected unix socket. See the module.
#[derive(Debug)]
pub struct UnixSocket {
    socket: AsyncFd<OwnedFd>,
    /// There while a write waits for room: the same socket, of which epoll is asked for room.
    room: Option<AsyncFd<OwnedFd>>,
}

/// Registers with the tokio runtime that this is called in.
#[allow(unsafe_code)]
fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, gives it out by shared reference only and closes it when
    // it has taken it off epoll.
    let fd = unsafe { AsyncFd::register_with_interest(fd, interest) };
    fd.map_err(io::Error::from)
}

impl UnixSocket {
    /// Takes a connection over. Errors: it cannot be registered anew.
    pub fn new(stream: UnixStream) -> io::Result<UnixSocket> {
        let socket = register(stream.into_std()?.into(), Interest::READABLE)?;
        Ok(UnixSocket { socket, room: None })
    }

    /// Takes it off its runtime; it stays non-blocking.
    pub fn into_std(self) -> std::os::unix::net::UnixStream {
        self.socket.into_inner().into()
    }

    /// A second descriptor to wait for room with: what epoll knows at its registration counts, too.
    fn ask_room(&self) -> io::Result<AsyncFd<OwnedFd>> {
        register(self.socket.get_ref().try_clone()?, Interest::WRITABLE)
    }

    /// Waits until a read would not block.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await?.retain_ready();
        Ok(())
    }

    /// Waits until a write would not block. Errors: no descriptor is left to wait with.
    pub async fn writable(&self) -> io::Result<()> {
        self.ask_room()?.writable().await?.retain_ready();
        Ok(())
    }

    /// Runs `read` if something may have come; its `WouldBlock` says that nothing is left.
    pub fn try_read_io(&self, read: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.socket.try_io(Interest::READABLE, |_| read())
    }

    /// Writes what the kernel takes at once. Errors: `WouldBlock`, or the connection is broken.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        SockRef::from(self.socket.get_ref()).send_vectored_with_flags(slices, libc::MSG_NOSIGNAL)
    }

    /// True where the peer has closed or shut down its side.
    pub fn peer_closed(&self, cx: &mut Context<'_>) -> bool {
        matches!(self.socket.poll_read_ready(cx), Poll::Ready(Ok(guard)) if guard.ready().is_read_closed())
    }

    /// One read of what has come; nothing read: the other side has closed.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let room = buf.remaining();
            let read = receive(guard.get_inner().as_fd(), buf);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    // A short read has emptied the socket; the next arrival is another edge.
                    if read > 0 && read < room {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// One write of as much as the kernel takes; waits for room where it takes nothing.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let Some(room) = &self.room else {
                match self.try_write_vectored(slices) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.room = Some(self.ask_room()?)
                    }
                    result => return Poll::Ready(result),
                }
                continue;
            };
            // Before the write: room that comes after it is not forgotten with what was there before.
            let mut guard = ready!(room.poll_write_ready(cx))?;
            match self.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                result => {
                    if result.as_ref().is_ok_and(|sent| *sent == total(slices)) {
                        self.room = None;
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }

    /// Sends what is left and no more.
    pub fn shutdown(&self) -> io::Result<()> {
        SockRef::from(self.socket.get_ref()).shutdown(std::net::Shutdown::Write)
    }
}

fn total(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

/// `recv` into the room of `buf`.
#[allow(unsafe_code)]
fn receive(fd: BorrowedFd<'_>, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: nothing in the room is made uninitialised: the kernel only writes to it.
    let room = unsafe { buf.unfilled_mut() };
    let read = SockRef::from(&fd).recv(room)?;
    // SAFETY: `recv` has written that many bytes at the beginning of the room.
    unsafe { buf.assume_init(read) };
    buf.advance(read);
    Ok(read)
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Stream;
    use std::os::fd::AsRawFd;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), test).await.expect("it does not hang")
        })
    }

    fn pair() -> (UnixSocket, UnixSocket) {
        let (a, b) = UnixStream::pair().expect("a pair");
        (UnixSocket::new(a).expect("registered"), UnixSocket::new(b).expect("registered"))
    }

    /// What any epoll of this process is asked for about a descriptor.
    fn asked_of(fd: impl AsRawFd) -> Vec<u32> {
        let wanted = format!("tfd: {:8} ", fd.as_raw_fd());
        let infos = std::fs::read_dir("/proc/self/fdinfo").expect("fdinfo");
        let texts = infos.flatten().filter_map(|info| std::fs::read_to_string(info.path()).ok());
        let events = |line: &str| {
            let hex = line.strip_prefix(wanted.as_str())?.trim_start().strip_prefix("events:")?;
            u32::from_str_radix(hex.split_whitespace().next()?, 16).ok()
        };
        texts.flat_map(|text| text.lines().filter_map(events).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn epoll_is_asked_for_room_only_while_the_socket_is_full() {
        run(async {
            let (mut full, peer) = pair();
            let out = libc::EPOLLOUT as u32;
            let asked = asked_of(full.as_fd());
            assert!(!asked.is_empty() && asked.iter().all(|events| events & out == 0), "{asked:x?}");
            // Until nothing more goes in.
            let data = vec![7; 64 << 10];
            let mut sent = 0;
            while let Poll::Ready(more) =
                std::future::poll_fn(|cx| Poll::Ready(full.poll_write(cx, &[IoSlice::new(&data)]))).await
            {
                sent += more.expect("sent");
            }
            let room = full.room.as_ref().expect("it waits for room").get_ref().as_raw_fd();
            assert!(asked_of(room).iter().any(|events| events & out != 0));
            // The other side takes all of it; then there is room.
            let mut taken = vec![0; sent];
            let mut peer = Stream::Unix(peer);
            peer.read_exact(&mut taken).await.expect("all that was sent");
            assert!(taken.iter().all(|byte| *byte == 7));
            let more = std::future::poll_fn(|cx| full.poll_write(cx, &[IoSlice::new(&data)])).await;
            assert_eq!(more.expect("there is room"), data.len());
            assert!(full.room.is_none());
            assert_eq!(asked_of(full.as_fd()), asked);
        });
    }

    #[test]
    fn what_does_not_fit_at_once_arrives_whole_and_in_order() {
        run(async {
            let (a, b) = pair();
            let (mut a, mut b) = (Stream::Unix(a), Stream::Unix(b));
            let sent: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
            let mut came = Vec::new();
            let send = async {
                a.write_all(&sent).await.expect("sent");
                a.shutdown().await.expect("shut down");
            };
            let (_, read) = tokio::join!(send, b.read_to_end(&mut came));
            assert_eq!(read.expect("read"), sent.len());
            assert!(came == sent);
            assert!(std::future::poll_fn(|cx| Poll::Ready(b.peer_closed(cx))).await);
        });
    }

    #[test]
    fn a_write_waits_for_a_reader_that_comes_late() {
        run(async {
            let (a, b) = pair();
            let data = vec![1; 1 << 20];
            let mut sent = 0;
            while let Ok(more) = a.try_write_vectored(&[IoSlice::new(&data)]) {
                sent += more;
            }
            let reader = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let mut taken = vec![0; sent];
                Stream::Unix(b).read_exact(&mut taken).await.expect("all that was sent")
            };
            let writer = async { a.writable().await.expect("a descriptor is left") };
            tokio::join!(reader, writer);
        });
    }

    #[test]
    fn a_broken_connection_is_an_error_and_no_signal() {
        run(async {
            let (mut a, b) = pair();
            drop(b);
            let wrote = std::future::poll_fn(|cx| a.poll_write(cx, &[IoSlice::new(b"x")])).await;
            assert_eq!(wrote.expect_err("nobody is there").kind(), io::ErrorKind::BrokenPipe);
            a.readable().await.expect("its end can be read");
            assert!(std::future::poll_fn(|cx| Poll::Ready(a.peer_closed(cx))).await);
        });
    }
}
