//! The clock that leases are counted by: it goes on while the host is suspended.
//!
//! `Instant` is CLOCK_MONOTONIC, which stands still during a suspend. A front end that wakes up would
//! take a lease for valid that ran out long ago, and show what its successor has overwritten since.
//! CLOCK_BOOTTIME does not stand still. (A virtual machine that is paused from outside may not notice at
//! all: front ends belong on the host, or its guest clock must be corrected before it runs.)

use nix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::time::{Duration, Instant};
use trefoil_core::Time;

/// A jump between the two clocks that is larger than this is a suspend. Well below the drift margin
/// that the monitors add to every lease.
const SUSPENDED: Duration = Duration::from_millis(50);

/// See the module.
pub struct LeaseClock {
    started: Instant,
    /// How far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC, as it was seen last.
    ahead: Cell<Duration>,
    /// Up to when a suspend was noticed last.
    woke: Cell<Option<Instant>>,
}

impl Default for LeaseClock {
    fn default() -> LeaseClock {
        LeaseClock { started: Instant::now(), ahead: Cell::new(ahead()), woke: Cell::new(None) }
    }
}

/// How far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC; 0 where a kernel does not know it.
fn ahead() -> Duration {
    let read = |id| clock_gettime(id).map(Duration::from);
    match (read(ClockId::CLOCK_MONOTONIC), read(ClockId::CLOCK_BOOTTIME)) {
        (Ok(mono), Ok(boot)) => boot.saturating_sub(mono),
        _ => Duration::ZERO,
    }
}

impl LeaseClock {
    /// Microseconds since it was made, time in suspend included.
    pub fn now(&self) -> Time {
        self.look(Instant::now(), ahead())
    }

    /// The same for a moment that has passed; 0 for one from before the last suspend, of which nobody
    /// can say how long ago it is: a lease that was asked for then is no lease.
    pub fn time_of(&self, at: Instant) -> Time {
        self.now();
        match self.woke.get() {
            Some(woke) if at <= woke => Time(0),
            _ => self.at(at),
        }
    }

    /// As [`LeaseClock::now`], without a look at whether the host slept since that was asked last: for
    /// statistics, at a third of the cost.
    pub fn about_now(&self) -> Time {
        self.at(Instant::now())
    }

    fn at(&self, at: Instant) -> Time {
        let since = at.saturating_duration_since(self.started) + self.ahead.get();
        Time(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn look(&self, now: Instant, ahead: Duration) -> Time {
        if ahead > self.ahead.get() + SUSPENDED {
            tracing::warn!(slept = ?(ahead - self.ahead.get()), "this host was suspended; leases from before are not used");
            self.ahead.set(ahead);
            self.woke.set(Some(now));
        }
        self.at(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_counts_and_what_was_before_it_gives_no_lease() {
        let clock = LeaseClock::default();
        let sent = Instant::now();
        let before = clock.time_of(sent);
        assert_eq!(before, clock.at(sent), "before a suspend every moment counts");
        let woke = clock.look(Instant::now(), clock.ahead.get() + Duration::from_secs(60));
        assert!(woke.since(before) >= 60_000_000);
        // What the real clocks say is not moved backwards by it, and the old moment is of no use.
        assert_eq!(clock.time_of(sent), Time(0));
        assert!(clock.time_of(Instant::now()) >= woke);
    }
}
