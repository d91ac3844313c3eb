//! Adaptive busy polling: a thread that expects work within microseconds does not go to sleep.
//!
//! Putting a thread to sleep and waking it costs more than what most requests need: an interrupt to the
//! other processor, a halt to leave, on a virtual machine an exit for each. A request at depth 1 crosses
//! four such wake-ups. [`Poller::run`] is a task that keeps the runtime looking (each turn of it polls
//! epoll without waiting) while work comes at short intervals, and for at most a limit after the last of
//! it. It gives the processor away at every turn, so that threads with work go first. With much under way
//! there is no polling: sleeping then gathers larger batches, which cost less for each request.
//!
//! What it may not do: decide anything else. With a limit of zero nothing changes but latency.

use std::cell::Cell;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a daemon polls, in microseconds, where its configuration does not say otherwise.
pub const BUSY_POLL_US: u64 = 200;
/// The longest that a configuration may say.
pub const BUSY_POLL_US_MAX: u64 = 10_000;
/// With more requests under way than this, waiting gathers batches.
pub const POLL_DEPTH_MAX: usize = 4;
/// The weight of the newest gap in the mean is one part in so many.
const MEAN_SHARE: u32 = 8;
/// With each batch the depth of late loses one part of so many.
const DEPTH_PARTS: usize = 8;
/// A gap counts as at most so many limits: after a pause a few requests at short intervals are enough.
const GAP_LIMITS_MAX: u32 = 3;

/// See the module.
#[derive(Debug)]
pub struct Poller {
    limit: Duration,
    /// When the last batch ended.
    last: Cell<Instant>,
    /// The mean of the gaps between batches.
    gap: Cell<Duration>,
    /// How many requests were under way at most of late, in parts of one: a batch whose end leaves few for a
    /// moment does not make little of much.
    depth_parts: Cell<usize>,
    /// Work is expected within the limit.
    wanted: Cell<bool>,
    sleeps: Cell<bool>,
    wake: Notify,
}

impl Poller {
    /// Polls for at most `limit` after the last work; zero: never.
    pub fn new(limit: Duration) -> Poller {
        Poller {
            limit,
            last: Cell::new(Instant::now()),
            gap: Cell::new(limit * GAP_LIMITS_MAX),
            depth_parts: Cell::new(0),
            wanted: Cell::new(false),
            sleeps: Cell::new(false),
            wake: Notify::new(),
        }
    }

    /// Work has come; called at the beginning of each batch of it.
    pub fn begin(&self) {
        if !self.limit.is_zero() {
            let gap = self.last.get().elapsed().min(self.limit * GAP_LIMITS_MAX);
            self.gap.set((self.gap.get() * (MEAN_SHARE - 1) + gap) / MEAN_SHARE);
        }
    }

    /// The batch has been dealt with, and so many requests are under way.
    pub fn end(&self, under_way: usize) {
        if self.limit.is_zero() {
            return;
        }
        self.last.set(Instant::now());
        let before = self.depth_parts.get();
        let depth = (under_way.saturating_mul(DEPTH_PARTS)).max(before - before.div_ceil(DEPTH_PARTS));
        self.depth_parts.set(depth);
        self.wanted.set(depth <= POLL_DEPTH_MAX * DEPTH_PARTS && self.gap.get() < self.limit);
        if self.sleeps.get() && self.wanted.get() {
            self.sleeps.set(false);
            self.wake.notify_one();
        }
    }

    /// For ever; a task of its own.
    pub async fn run(&self) {
        loop {
            if !self.wanted.get() || self.last.get().elapsed() >= self.limit {
                self.sleeps.set(true);
                self.wake.notified().await;
            }
            // Others on this processor go first.
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches that come `gap` apart until the mean has settled.
    fn settle(poller: &Poller, gap: Duration, under_way: usize) {
        for _ in 0..64 {
            poller.last.set(Instant::now().checked_sub(gap).expect("the clock has run"));
            poller.begin();
            poller.end(under_way);
        }
    }

    #[test]
    fn it_polls_while_work_comes_soon_and_little_is_under_way() {
        let poller = Poller::new(Duration::from_millis(200));
        settle(&poller, Duration::from_millis(1), 1);
        assert!(poller.wanted.get());
        settle(&poller, Duration::from_millis(1), POLL_DEPTH_MAX + 1);
        assert!(!poller.wanted.get(), "batches gather while it sleeps");
        poller.end(0);
        assert!(!poller.wanted.get(), "that few are left for a moment says nothing");
        settle(&poller, Duration::from_millis(1), 0);
        assert!(poller.wanted.get());
        settle(&poller, Duration::from_secs(1), 0);
        assert!(!poller.wanted.get(), "nothing is expected in time");
        let never = Poller::new(Duration::ZERO);
        settle(&never, Duration::ZERO, 0);
        assert!(!never.wanted.get());
    }

    #[test]
    fn it_sleeps_when_nothing_has_come_for_the_limit() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let poller = Poller::new(Duration::from_millis(50));
            settle(&poller, Duration::from_millis(1), 0);
            let until = tokio::time::sleep(Duration::from_millis(300));
            tokio::select! {
                () = poller.run() => {}
                () = until => {}
            }
            assert!(poller.sleeps.get());
        });
    }
}
