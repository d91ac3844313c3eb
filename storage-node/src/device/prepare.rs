//! The thread that prepares segments: discards and zeroes, one at a time, slowly.
//!
//! It exists so that neither the store's thread nor the ring waits for what can take a second and what
//! nobody is waiting for. Zeroing goes in pieces; after each, and after each discard, comes a pause that is
//! as long as it took: the log keeps at least half of the device. It never touches a range that it was not given.

use super::buffer::Pool;
use super::file::RawDevice;
use super::latency::{Kind, Meter};
use super::wake::Waker;
use super::{Completion, PART_BYTES, PREPARE_QUEUE_MAX, Prepare};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes zeroed by one write.
const PIECE: u64 = PART_BYTES as u64;
/// Longest pause after a piece: a device that is slow for other reasons is not waited for longer.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// A discard of a segment that takes longer than this is slow: the log may be waiting for the segment ...
const DISCARD_SLOW: Duration = Duration::from_secs(1);
/// ... and after so many in a row the device is sent no more of them.
const DISCARDS_SLOW_MAX: u32 = 3;

/// What to do with a range.
pub(super) struct Job {
    pub id: u64,
    pub what: Prepare,
    pub offset: u64,
    pub len: u64,
}

struct Ended {
    completion: Completion,
    bytes: u64,
    took: Duration,
}

/// See the module. The thread starts with the first job.
pub(super) struct Preparer {
    raw: Arc<RawDevice>,
    waker: Waker,
    jobs: Option<SyncSender<Job>>,
    finished: Sender<Ended>,
    done: Receiver<Ended>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    in_flight: usize,
}

impl Preparer {
    pub fn new(raw: Arc<RawDevice>, waker: Waker) -> Preparer {
        let (finished, done) = channel();
        Preparer {
            raw,
            waker,
            jobs: None,
            finished,
            done,
            stop: Arc::new(AtomicBool::new(false)),
            thread: None,
            in_flight: 0,
        }
    }

    /// Queues a job; one that cannot be queued ends at once, with an error.
    pub fn start(&mut self, job: Job) {
        self.in_flight += 1;
        let id = job.id;
        let queued = self.spawned().and_then(|jobs| {
            jobs.try_send(job).map_err(|e| match e {
                TrySendError::Full(_) => io::ErrorKind::WouldBlock.into(),
                TrySendError::Disconnected(_) => io::ErrorKind::BrokenPipe.into(),
            })
        });
        if let Err(error) = queued {
            // We hold the receiver, so this arrives.
            let completion = Completion { id, result: Err(error), buf: None };
            let _ = self.finished.send(Ended { completion, bytes: 0, took: Duration::ZERO });
            self.waker.ring();
        }
    }

    fn spawned(&mut self) -> io::Result<&SyncSender<Job>> {
        if self.jobs.is_none() {
            let (jobs, queue) = sync_channel(PREPARE_QUEUE_MAX);
            let worker = Worker { raw: self.raw.clone(), stop: self.stop.clone() };
            let (finished, waker) = (self.finished.clone(), self.waker.clone());
            let thread = std::thread::Builder::new()
                .name("store-prepare".to_owned())
                .spawn(move || worker.run(&queue, &finished, &waker))?;
            self.thread = Some(thread);
            self.jobs = Some(jobs);
        }
        self.jobs.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    pub fn completions(&mut self, out: &mut Vec<Completion>, meter: &mut Meter) {
        while let Ok(Ended { completion, bytes, took }) = self.done.try_recv() {
            self.in_flight -= 1;
            meter.ended(Instant::now(), Kind::Prepare, took, bytes, completion.result.is_ok());
            out.push(completion);
        }
    }

    /// Jobs that have not been given back.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Preparer {
    /// Waits for the system call that is under way, and begins no other.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Slow discards in a row.
#[derive(Default)]
struct Slow(u32);

impl Slow {
    /// One has taken this long.
    fn too_many(&mut self, took: Duration) -> bool {
        self.0 = if took > DISCARD_SLOW { self.0 + 1 } else { 0 };
        self.0 >= DISCARDS_SLOW_MAX
    }
}

struct Worker {
    raw: Arc<RawDevice>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(&self, queue: &Receiver<Job>, finished: &Sender<Ended>, waker: &Waker) {
        let mut slow = Slow::default();
        while let Ok(job) = queue.recv() {
            let begun = Instant::now();
            let result = match job.what {
                _ if self.stopped() => Err(io::ErrorKind::Interrupted.into()),
                Prepare::Nothing => Ok(()),
                Prepare::Zero => self.zero(job.offset, job.len),
                Prepare::Discard => self.raw.discard(job.offset, job.len),
            };
            let completion = Completion { id: job.id, result, buf: None };
            let took = begun.elapsed();
            if finished.send(Ended { completion, bytes: job.len, took }).is_err() {
                return;
            }
            waker.ring();
            if job.what == Prepare::Discard && !self.stopped() {
                if slow.too_many(took) {
                    self.raw.no_more_discards("they take too long");
                }
                // Many segments may be freed at once.
                std::thread::sleep(took.min(PAUSE_MAX));
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let pool = Pool::new(u64::MAX, 0, None);
        let Some(mut zeros) = pool.get(PIECE.min(len) as usize) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        zeros.fill(0);
        let mut at = offset;
        while at < offset + len {
            if self.stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let begun = Instant::now();
            let n = PIECE.min(offset + len - at);
            self.raw.write_at(at, &zeros[..n as usize])?;
            at += n;
            std::thread::sleep(begun.elapsed().min(PAUSE_MAX));
        }
        self.raw.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discards_are_given_up_when_they_stay_slow_and_not_for_a_moment_of_it() {
        let mut slow = Slow::default();
        let long = 2 * DISCARD_SLOW;
        assert!(!slow.too_many(long) && !slow.too_many(long));
        assert!(!slow.too_many(DISCARD_SLOW), "that is still well");
        assert!(!slow.too_many(long) && !slow.too_many(long) && slow.too_many(long));
    }
}
