//! The threads of all shards but the first, as the first one sees them: started, asked, watched, stopped.
//!
//! None of them may end or hang unnoticed: its volumes would stand still while the process looks alive. One that ends
//! without having been told to, or whose loop has not turned for [`HANGS_AFTER`], is the end of the process
//! ([`Threads::failed`]), which whoever runs it then starts again. Nothing in here is done for each request.

use crate::config::NbdConfig;
use crate::metrics::Snapshot;
use crate::server::Door;
use crate::shard::{RELEASE_WITHIN, Shard, server_config};
use crate::shards::Place;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use trefoil_core::map::Holder;

/// How often a shard says that its loop turns, and how often that is looked at.
const BEAT: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row without a beat, and the shard hangs. Looks and not seconds: a host that was suspended or a
/// process that was stopped makes no look either.
const HANGS_AFTER: u32 = 15;
/// How long metrics wait for a shard.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(2);
/// Scrapes that wait for a shard; further ones do without it.
const SNAPSHOTS_MAX: usize = 4;
/// What the end of a shard may take beyond the limits of its parts.
const END_MARGIN: Duration = Duration::from_secs(3);

/// A shard that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The system has no more threads, or file descriptors for a runtime.
    #[error("cannot start shard {0}: {1}; are there threads and file descriptors left?")]
    NoThread(usize, std::io::Error),
    /// It panicked.
    #[error(
        "shard {0} has panicked; what and where is in the log above. Its volumes are not served: the front end ends \
         and must be started again. Please report it"
    )]
    Panicked(usize),
    /// It has stopped turning.
    #[error(
        "shard {0} has hung for {HANGS_AFTER} s. Its volumes are not served: the front end ends and must be started \
         again. Please report it"
    )]
    Hangs(usize),
}

type Asked = oneshot::Sender<Snapshot>;

/// One of them.
struct Thread {
    number: usize,
    snapshots: mpsc::Sender<Asked>,
    beats: Arc<AtomicU64>,
    ready: Option<oneshot::Receiver<()>>,
    /// When it has ended; closed: it has, in whatever way.
    end: oneshot::Receiver<Result<(), ShardError>>,
    /// It is known to have ended, or never to end.
    ended: bool,
}

/// See the module. Dropped, it tells them to stop and does not wait for it.
pub(crate) struct Threads {
    all: Vec<Thread>,
    stop: watch::Sender<bool>,
    stop_within: Duration,
}

/// A thread's whole life: [`run`], but for tests.
pub(crate) type Life = fn(Job) -> Result<(), ShardError>;

/// What a thread gets.
pub(crate) struct Job {
    config: NbdConfig,
    me: Holder,
    pub place: Place,
    door: Door,
    /// To be told that it serves.
    pub ready: oneshot::Sender<()>,
    snapshots: mpsc::Receiver<Asked>,
    beats: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
}

impl Threads {
    /// Starts shards 1 and up: one for each holder and door.
    pub fn start(config: &NbdConfig, shards: Vec<(Holder, Door)>, life: Life) -> Result<Threads, ShardError> {
        let (stop, stopped) = watch::channel(false);
        let stop_within = server_config(config).stop_drain + RELEASE_WITHIN + END_MARGIN;
        let mut threads = Threads { all: Vec::new(), stop, stop_within };
        for (number, (me, door)) in (1..).zip(shards) {
            let (ready, is_ready) = oneshot::channel();
            let (snapshots, wanted) = mpsc::channel(SNAPSHOTS_MAX);
            let beats = Arc::new(AtomicU64::new(0));
            let job = Job {
                config: config.clone(),
                me,
                place: Place { number, of: config.shards },
                door,
                ready,
                snapshots: wanted,
                beats: beats.clone(),
                stop: stopped.clone(),
            };
            let (ended, end) = oneshot::channel();
            let builder = std::thread::Builder::new().name(format!("nbd-{number}"));
            let started = builder.spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| life(job)));
                let result = result.unwrap_or(Err(ShardError::Panicked(number)));
                // Nobody listens when the first shard has died: then the process ends anyway.
                let _ = ended.send(result);
            });
            started.map_err(|error| ShardError::NoThread(number, error))?;
            threads.all.push(Thread { number, snapshots, beats, ready: Some(is_ready), end, ended: false });
        }
        Ok(threads)
    }

    /// Waits until all of them have a map, or one has failed.
    pub async fn ready(&mut self) -> Result<(), ShardError> {
        for thread in &mut self.all {
            if let Some(ready) = thread.ready.take()
                && ready.await.is_err()
            {
                return Err(thread.why().await);
            }
        }
        Ok(())
    }

    /// Resolves when one of them has ended or hangs.
    pub async fn failed(&mut self) -> ShardError {
        self.watch(LOOK).await
    }

    async fn watch(&mut self, look: Duration) -> ShardError {
        if self.all.is_empty() {
            return std::future::pending().await;
        }
        let mut seen: Vec<(u64, u32)> = vec![(0, 0); self.all.len()];
        loop {
            let ended = poll_fn(|cx| {
                self.all
                    .iter_mut()
                    .map(|thread| thread.poll_end(cx))
                    .find(Poll::is_ready)
                    .unwrap_or(Poll::Pending)
            });
            if let Ok(error) = timeout(look, ended).await {
                return error;
            }
            for (thread, (last, still)) in self.all.iter_mut().zip(&mut seen) {
                let beats = thread.beats.load(Ordering::Relaxed);
                *still = if std::mem::replace(last, beats) == beats { *still + 1 } else { 0 };
                if *still >= HANGS_AFTER {
                    // Nobody waits for its end.
                    thread.ended = true;
                    return ShardError::Hangs(thread.number);
                }
            }
        }
    }

    /// Adds what the others have to the first one's.
    pub fn snapshots(&self) -> impl AsyncFn(&mut Snapshot) + use<> {
        let asked: Vec<_> = self.all.iter().map(|it| (it.number, it.snapshots.clone())).collect();
        async move |into: &mut Snapshot| {
            // All are asked before the first is waited for.
            let answers: Vec<_> = asked
                .iter()
                .map(|(number, snapshots)| {
                    let (answer, answered) = oneshot::channel();
                    // Full: it hangs; closed: it is gone. Either way nobody answers.
                    let _ = snapshots.try_send(answer);
                    (*number, answered)
                })
                .collect();
            let until = tokio::time::Instant::now() + SNAPSHOT_WITHIN;
            for (number, answered) in answers {
                let answer = tokio::time::timeout_at(until, answered).await;
                into.add(number, answer.ok().and_then(Result::ok));
            }
        }
    }

    /// Tells them to stop.
    pub fn tell(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for their ends, as long as these may take; the first that was none.
    pub async fn stopped(mut self) -> Result<(), ShardError> {
        self.tell();
        let until = tokio::time::Instant::now() + self.stop_within;
        let mut result = Ok(());
        for thread in self.all.iter_mut().filter(|thread| !thread.ended) {
            let ended = match tokio::time::timeout_at(until, &mut thread.end).await {
                Ok(ended) => ended.unwrap_or(Err(ShardError::Panicked(thread.number))),
                Err(_) => Err(ShardError::Hangs(thread.number)),
            };
            if let Err(error) = ended {
                tracing::error!("{error}");
                result = result.and(Err(error));
            }
        }
        result
    }
}

impl Thread {
    /// Ready when it has ended, which it was not told to.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ShardError> {
        let ended = ready!(Pin::new(&mut self.end).poll(cx));
        self.ended = true;
        Poll::Ready(ended.ok().and_then(Result::err).unwrap_or(ShardError::Panicked(self.number)))
    }

    /// Why it has ended before it was ready.
    async fn why(&mut self) -> ShardError {
        self.ended = true;
        match timeout(END_MARGIN, &mut self.end).await {
            Ok(Ok(Err(error))) => error,
            _ => ShardError::Panicked(self.number),
        }
    }
}

/// Serves until it is told to stop.
pub(crate) fn run(job: Job) -> Result<(), ShardError> {
    let number = job.place.number;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ShardError::NoThread(number, error))?;
    LocalSet::new().block_on(&runtime, serve(job))
}

async fn serve(job: Job) -> Result<(), ShardError> {
    let Job { config, me, place, door, ready, mut snapshots, beats, mut stop } = job;
    // Ends with the runtime.
    tokio::task::spawn_local(async move {
        loop {
            beats.fetch_add(1, Ordering::Relaxed);
            sleep(BEAT).await;
        }
    });
    let shard = tokio::select! {
        shard = Shard::start(&config, me, place, Some(door)) => shard,
        // Also when the first shard is gone.
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let _ = ready.send(());
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = shard.front.broken() => return Err(ShardError::Panicked(place.number)),
            Some(asked) = snapshots.recv() => {
                // Who asked may have given up.
                let _ = asked.send(shard.snapshot());
            }
        }
    }
    shard.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::doors;
    use crate::shards::holders;

    fn test(life: Life, check: impl AsyncFnOnce(Threads)) {
        let monitors = vec![([127, 0, 0, 1], 1).into()];
        let config = NbdConfig { shards: 3, monitors, ..NbdConfig::default() };
        let shards = holders(&config).into_iter().zip(doors(3, 1 << 20)).skip(1).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let threads = Threads::start(&config, shards, life).unwrap();
            timeout(Duration::from_secs(20), check(threads)).await.expect("in time");
        });
    }

    #[test]
    fn shards_that_wait_for_monitors_are_stopped() {
        test(run, async |mut threads| {
            assert!(
                timeout(Duration::from_millis(300), threads.ready()).await.is_err(),
                "there is no monitor"
            );
            threads.stopped().await.unwrap();
        });
    }

    #[test]
    fn a_shard_that_ends_by_itself_is_told_of() {
        let life: Life = |job| {
            assert!(job.place.number != 2, "on purpose");
            run(job)
        };
        test(life, async |mut threads| {
            assert!(matches!(threads.watch(Duration::from_millis(5)).await, ShardError::Panicked(2)));
            // The other one ends in order.
            threads.stopped().await.unwrap();
        });
    }

    #[test]
    fn a_shard_that_does_not_turn_any_more_is_told_of() {
        let life: Life = |job| {
            let mut stop = job.stop.clone();
            if job.place.number == 1 {
                // Says nothing, and ends only because this is a test.
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let _ = runtime.block_on(stop.wait_for(|stop| *stop));
                return Ok(());
            }
            run(job)
        };
        test(life, async |mut threads| {
            // Far longer in all than a healthy one is ever silent, also on a busy machine.
            let look = Duration::from_millis(300);
            assert!(matches!(threads.watch(look).await, ShardError::Hangs(1)));
            threads.stopped().await.unwrap();
        });
    }

    #[test]
    fn a_scrape_does_without_shards_that_do_not_answer() {
        test(run, async |threads| {
            let snapshots = threads.snapshots();
            let mut snapshot = Snapshot::default();
            let begun = std::time::Instant::now();
            snapshots(&mut snapshot).await;
            assert!(begun.elapsed() < 4 * SNAPSHOT_WITHIN);
            let mut text = trefoil_metrics::Text::default();
            crate::metrics::render(&snapshot, &mut text);
            let text = text.finish();
            for number in 1..3 {
                let line = format!("trefoil_nbd_shard_up{{shard=\"{number}\"}} 0");
                assert!(text.lines().any(|it| it == line), "{text}");
            }
            assert!(!text.contains("trefoil_nbd_shard_cpu_seconds_total{"), "{text}");
            threads.stopped().await.unwrap();
        });
    }
}
