//! One eventfd that everything of a store rings when the store should look again: the ring's
//! completions, the threads of the fallback, the index's thread, a buffer that came back.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A clonable handle to the eventfd.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A new eventfd, non-blocking, closed on exec.
    #[allow(unsafe_code)]
    pub fn new() -> io::Result<Waker> {
        // SAFETY: a plain system call; the descriptor that it returns is ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: checked above: a valid descriptor that nobody else owns.
        Ok(Waker(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Makes the eventfd readable.
    pub fn ring(&self) {
        // A full counter (EAGAIN) is readable already; nothing else can fail here.
        let _ = nix::unistd::write(self.0.as_fd(), &1u64.to_ne_bytes());
    }

    /// Clears it; true if it had been rung.
    pub fn take(&self) -> bool {
        let mut count = [0u8; 8];
        nix::unistd::read(self.0.as_fd(), &mut count).is_ok()
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A waker that a task can wait on.
pub struct AsyncWaker(AsyncFd<Waker>);

impl AsyncWaker {
    /// Registers with the tokio runtime that this is called in.
    #[allow(unsafe_code)]
    pub fn new(waker: Waker) -> io::Result<AsyncWaker> {
        // SAFETY: the `AsyncFd` holds a share of the descriptor, which is closed only with the last
        // share, and is never replaced.
        let fd = unsafe { AsyncFd::register_with_interest(waker, Interest::READABLE) };
        Ok(AsyncWaker(fd.map_err(io::Error::from)?))
    }

    /// Waits until the waker has been rung since it was last waited for. Once after it was made it may
    /// say so for nothing.
    pub async fn rung(&self) -> io::Result<()> {
        // The count is left in the eventfd: epoll is edge-triggered here, and each further ring is an edge of
        // its own. That spares a read for every wake-up. (At 2^64 - 2 rings the counter would be full; a
        // ring each nanosecond takes 584 years for that.)
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
