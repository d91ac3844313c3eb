//! A future that is polled only when somebody has woken it.
//!
//! A `LocalSet` polls the future that it runs until at every turn in which any of its tasks has run: many
//! thousand times a second for a daemon's "until it is told to stop", which waits on locks and lists each
//! time. [`when_woken`] gives such a future a waker of its own, and asks it nothing before that is used.
//!
//! What it may not do: put off a wake-up. One that comes during a poll counts for the next one.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

struct Flag {
    woken: AtomicBool,
    /// Who polls the whole.
    outer: Mutex<Option<Waker>>,
}

impl Flag {
    fn set_outer(&self, waker: &Waker) {
        let mut outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner);
        if !outer.as_ref().is_some_and(|outer| outer.will_wake(waker)) {
            *outer = Some(waker.clone());
        }
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        let outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(outer) = outer {
            outer.wake();
        }
    }
}

/// The same future; a poll that it has not been woken for costs a lock that nobody else holds and a load.
pub async fn when_woken<F: Future>(future: F) -> F::Output {
    let flag = Arc::new(Flag { woken: AtomicBool::new(true), outer: Mutex::new(None) });
    let waker = Waker::from(flag.clone());
    let mut future = pin!(future);
    poll_fn(|cx| {
        // Before the look at the flag: a wake-up behind that look finds whom to wake.
        flag.set_outer(cx.waker());
        if !flag.woken.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Before the poll: a wake-up during it is for the next one. Of one between the two, the poll sees what
        // it was about.
        flag.woken.swap(false, Ordering::AcqRel);
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Duration;
    use tokio::sync::Notify;

    #[test]
    fn it_is_polled_when_it_was_woken_and_at_no_other_time() {
        let (polls, notify) = (Cell::new(0), Notify::new());
        let mut future = pin!(when_woken(async {
            let mut notified = pin!(notify.notified());
            poll_fn(|cx| {
                polls.set(polls.get() + 1);
                notified.as_mut().poll(cx)
            })
            .await;
        }));
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..5 {
            assert!(future.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(polls.get(), 1, "nobody has woken it since the first");
        notify.notify_waiters();
        assert!(future.as_mut().poll(&mut cx).is_ready());
        assert_eq!(polls.get(), 2);
    }

    #[test]
    fn a_wake_up_from_its_own_poll_or_another_thread_reaches_whoever_polls_last() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = tokio::task::LocalSet::new();
        let ended = local.block_on(&runtime, async {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                sender.send(7).expect("somebody waits");
            });
            // Polled by another task in the end than at first.
            let mut future = Box::pin(when_woken(async {
                tokio::task::yield_now().await;
                receiver.await.expect("sent")
            }));
            let first = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
            assert!(first.is_pending());
            let task = tokio::task::spawn_local(future);
            tokio::time::timeout(Duration::from_secs(30), task).await
        });
        assert_eq!(ended.expect("it does not hang").expect("no panic"), 7);
    }
}
