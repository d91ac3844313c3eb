//! The fallback where io_uring is refused: a few threads that call pread and pwritev2(RWF_DSYNC).
//!
//! Same contract, more CPU. The queue to the threads is bounded by what the store has under way.

use super::file::{RawDevice, ended, whole};
use super::prepare::{Job, Preparer};
use super::wake::Waker;
use super::{Completion, Device, Op, Prepare};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads; one of them is always free for the log, since the log writes one batch at a time.
const THREADS: usize = 4;

/// See the module.
pub struct BlockingDevice {
    raw: Arc<RawDevice>,
    preparer: Preparer,
    waker: Waker,
    queue: Option<Sender<(u64, Op)>>,
    done: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl BlockingDevice {
    /// Starts the threads.
    pub fn new(raw: RawDevice, waker: Waker) -> io::Result<BlockingDevice> {
        let raw = Arc::new(raw);
        let (queue, jobs) = channel();
        let (finished, done) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let mut threads = Vec::new();
        for n in 0..THREADS {
            let (raw, jobs, finished, waker) = (raw.clone(), jobs.clone(), finished.clone(), waker.clone());
            let thread = std::thread::Builder::new().name(format!("store-io-{n}")).spawn(move || {
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((id, op)) = job else { return };
                    if finished.send(carry_out(&raw, id, op)).is_err() {
                        return;
                    }
                    waker.ring();
                }
            })?;
            threads.push(thread);
        }
        let preparer = Preparer::new(raw.clone(), waker.clone());
        Ok(BlockingDevice { raw, preparer, waker, queue: Some(queue), done, threads, in_flight: 0 })
    }
}

fn carry_out(raw: &RawDevice, id: u64, op: Op) -> Completion {
    match op {
        Op::Read { offset, mut buf } => {
            let result = raw.read_now(offset, &mut buf);
            ended(id, result, Some(buf))
        }
        Op::Write { offset, bufs } => {
            let iovecs: Vec<libc::iovec> = bufs
                .iter()
                .map(|b| libc::iovec { iov_base: b.as_ptr() as *mut libc::c_void, iov_len: b.len() })
                .collect();
            let len: usize = bufs.iter().map(|b| b.len()).sum();
            // SAFETY: the iovecs point into `bufs`, which live until the call has returned; the kernel
            // only reads them.
            #[allow(unsafe_code)]
            let n = unsafe {
                libc::pwritev2(
                    raw.file.as_raw_fd(),
                    iovecs.as_ptr(),
                    iovecs.len() as libc::c_int,
                    offset as libc::off_t,
                    libc::RWF_DSYNC,
                )
            };
            let result = if n < 0 { Err(io::Error::last_os_error()) } else { whole(n as usize, len) };
            ended(id, result, None)
        }
        // Never queued here.
        Op::Discard { .. } | Op::Zero { .. } => ended(id, Err(io::ErrorKind::Unsupported.into()), None),
    }
}

impl Device for BlockingDevice {
    fn size(&self) -> u64 {
        self.raw.size
    }
    fn name(&self) -> &str {
        &self.raw.name
    }
    fn start(&mut self, id: u64, op: Op) {
        let op = match op {
            Op::Discard { offset, len } => {
                return self.preparer.start(Job { id, what: Prepare::Discard, offset, len });
            }
            Op::Zero { offset, len } => {
                return self.preparer.start(Job { id, what: Prepare::Zero, offset, len });
            }
            op => op,
        };
        if let Some(queue) = &self.queue
            && queue.send((id, op)).is_ok()
        {
            self.in_flight += 1;
        }
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        while let Ok(completion) = self.done.try_recv() {
            self.in_flight -= 1;
            out.push(completion);
        }
        self.preparer.completions(out);
    }
    fn in_flight(&self) -> usize {
        self.in_flight + self.preparer.in_flight()
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.raw.read_now(offset, buf)
    }
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.raw.write_now(offset, data)
    }
    fn waker(&self) -> &Waker {
        &self.waker
    }
    fn prepare(&self) -> Prepare {
        self.raw.prepare()
    }
}

impl Drop for BlockingDevice {
    /// Lets the threads finish what they were given.
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
