//! A limit on how often something is logged: one bad peer must not fill a disk with its name.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// At most one message per interval; counts what it kept back.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    last: Cell<Option<Instant>>,
    suppressed: Cell<u64>,
}

impl RateLimit {
    /// At most one per `interval`.
    pub const fn new(interval: Duration) -> RateLimit {
        RateLimit { interval, last: Cell::new(None), suppressed: Cell::new(0) }
    }

    /// `Some(n)` if a message may be logged now; `n` were kept back since the last one.
    pub fn allow(&self) -> Option<u64> {
        let now = Instant::now();
        match self.last.get() {
            Some(last) if now.duration_since(last) < self.interval => {
                self.suppressed.set(self.suppressed.get() + 1);
                None
            }
            _ => {
                self.last.set(Some(now));
                Some(self.suppressed.take())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_back_and_counts() {
        let limit = RateLimit::new(Duration::from_millis(20));
        assert_eq!(limit.allow(), Some(0));
        assert_eq!(limit.allow(), None);
        assert_eq!(limit.allow(), None);
        std::thread::sleep(Duration::from_millis(25));
        assert_eq!(limit.allow(), Some(2));
    }
}
