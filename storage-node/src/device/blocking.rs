//! The fallback where io_uring is refused: a few threads that call pread and pwritev2(RWF_DSYNC).
//!
//! Same contract, more CPU. Writes have a thread of their own, so that the log, which writes one batch at
//! a time, never waits for a slow read. The queues to the threads are bounded by what the store has under
//! way.

use super::file::RawDevice;
use super::info::DeviceInfo;
use super::latency::{DeviceStats, Kind, Meter, stalled};
use super::prepare::{Job, Preparer};
use super::wake::Waker;
use super::{Completion, Device, Op, PART_BYTES, Prepare};
use bytes::Bytes;
use slab::Slab;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that read.
const READERS: usize = 4;

struct Pending {
    id: u64,
    kind: Kind,
    begun: Instant,
    bytes: u64,
}

/// A key of `pending`, and the operation.
type Queued = (u64, Op);

/// See the module.
pub struct BlockingDevice {
    raw: Arc<RawDevice>,
    preparer: Preparer,
    waker: Waker,
    /// For reads and for writes; `None` once the device is being closed.
    queues: Option<[Sender<Queued>; 2]>,
    done: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
    pending: Slab<Pending>,
    /// What could not be handed to a thread.
    refused: Vec<Completion>,
    meter: Meter,
}

impl BlockingDevice {
    /// Starts the threads.
    pub fn new(raw: RawDevice, waker: Waker) -> io::Result<BlockingDevice> {
        let raw = Arc::new(raw);
        let (finished, done) = channel();
        let mut threads = Vec::new();
        let mut spawn = |name: String, jobs: Arc<Mutex<Receiver<Queued>>>| {
            let (raw, finished, waker) = (raw.clone(), finished.clone(), waker.clone());
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((key, op)) = job else { return };
                    if finished.send(carry_out(&raw, key, op)).is_err() {
                        return;
                    }
                    waker.ring();
                }
            });
            thread.map(|thread| threads.push(thread))
        };
        let (reads, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for n in 0..READERS {
            spawn(format!("store-read-{n}"), jobs.clone())?;
        }
        let (writes, jobs) = channel();
        spawn("store-write".to_owned(), Arc::new(Mutex::new(jobs)))?;
        Ok(BlockingDevice {
            preparer: Preparer::new(raw.clone(), waker.clone()),
            raw,
            waker,
            queues: Some([reads, writes]),
            done,
            threads,
            pending: Slab::new(),
            refused: Vec::new(),
            meter: Meter::new(Instant::now()),
        })
    }

    fn begun(&self) -> impl Iterator<Item = Instant> {
        self.pending.iter().map(|(_, pending)| pending.begun)
    }
}

/// The completion has the key in the place of the id.
fn carry_out(raw: &RawDevice, key: u64, op: Op) -> Completion {
    match op {
        Op::Read { offset, mut buf } => {
            let result = raw.read_now(offset, &mut buf);
            Completion { id: key, result, buf: Some(buf) }
        }
        Op::Write { offset, bufs, gently } => {
            let len: usize = bufs.iter().map(Bytes::len).sum();
            let result = if gently && len > PART_BYTES {
                write_gently(raw, offset, &bufs, len)
            } else {
                write_part(raw, offset, &bufs, 0..len, libc::RWF_DSYNC)
            };
            Completion { id: key, result, buf: None }
        }
        // Never queued here.
        Op::Discard { .. } | Op::Zero { .. } => {
            Completion { id: key, result: Err(io::ErrorKind::Unsupported.into()), buf: None }
        }
    }
}

/// See [`Op::Write`].
fn write_gently(raw: &RawDevice, offset: u64, bufs: &[Bytes], len: usize) -> io::Result<()> {
    for at in (0..len).step_by(PART_BYTES) {
        write_part(raw, offset, bufs, at..len.min(at + PART_BYTES), 0)?;
    }
    raw.sync()
}

fn write_part(
    raw: &RawDevice,
    offset: u64,
    bufs: &[Bytes],
    bytes: Range<usize>,
    flags: libc::c_int,
) -> io::Result<()> {
    let mut iovecs = Vec::new();
    super::iovecs_of(bufs, bytes.clone(), &mut iovecs);
    let offset = offset + bytes.start as u64;
    // SAFETY: the iovecs point into `bufs`, which live until the call has returned; the kernel
    // only reads them.
    #[allow(unsafe_code)]
    let n = unsafe {
        libc::pwritev2(
            raw.file.as_raw_fd(),
            iovecs.as_ptr(),
            iovecs.len() as libc::c_int,
            offset as libc::off_t,
            flags,
        )
    };
    let got = usize::try_from(n).map_err(|_| io::Error::last_os_error());
    raw.ended("write", offset, bytes.len(), got)
}

impl Device for BlockingDevice {
    fn size(&self) -> u64 {
        self.raw.size
    }
    fn name(&self) -> &str {
        &self.raw.name
    }
    fn start(&mut self, id: u64, op: Op) {
        let (kind, bytes) = match &op {
            Op::Read { buf, .. } => (Kind::Read, buf.len() as u64),
            Op::Write { bufs, .. } => (Kind::Write, bufs.iter().map(|b| b.len() as u64).sum()),
            Op::Discard { offset, len } => {
                return self.preparer.start(Job { id, what: Prepare::Discard, offset: *offset, len: *len });
            }
            Op::Zero { offset, len } => {
                return self.preparer.start(Job { id, what: Prepare::Zero, offset: *offset, len: *len });
            }
        };
        let key = self.pending.insert(Pending { id, kind, begun: Instant::now(), bytes }) as u64;
        let queued = match &self.queues {
            Some([reads, writes]) => {
                let queue = if kind == Kind::Read { reads } else { writes };
                queue.send((key, op)).map_err(|unsent| unsent.0.1)
            }
            None => Err(op),
        };
        if let Err(op) = queued {
            let buf = if let Op::Read { buf, .. } = op { Some(buf) } else { None };
            let result = Err(io::Error::other("the thread for it has ended"));
            self.refused.push(Completion { id: key, result, buf });
            self.waker.ring();
        }
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        let now = Instant::now();
        while let Some(mut completion) = self.refused.pop().or_else(|| self.done.try_recv().ok()) {
            let Some(pending) = self.pending.try_remove(completion.id as usize) else {
                continue;
            };
            completion.id = pending.id;
            let took = now.saturating_duration_since(pending.begun);
            self.meter.ended(now, pending.kind, took, pending.bytes, completion.result.is_ok());
            out.push(completion);
        }
        self.preparer.completions(out, &mut self.meter);
    }
    fn in_flight(&self) -> usize {
        self.pending.len() + self.preparer.in_flight()
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
    fn info(&self) -> Option<&DeviceInfo> {
        Some(&self.raw.info)
    }
    fn stats(&self) -> DeviceStats {
        self.meter.stats(Instant::now(), self.begun())
    }
    fn stalled(&self) -> Option<Duration> {
        stalled(Instant::now(), self.begun())
    }
}

impl Drop for BlockingDevice {
    /// Lets the threads finish what they were given.
    fn drop(&mut self) {
        self.queues = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
