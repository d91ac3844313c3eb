//! What clients have asked of one volume, and how long it took: counted where requests begin and end.
//!
//! By kind of request, in arrays; the clock is the one that the session has read for its batch anyway. Nothing
//! is decided by it.

use trefoil_core::Time;
use trefoil_metrics::Histogram;

/// Kinds of request that are told apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Zeros to be written.
    Zero,
    /// Trims.
    Trim,
    /// Flushes, which have nothing to wait for: every write is durable when it is answered.
    Flush,
    /// Block status.
    Status,
}

impl Class {
    /// All of them, in the order of [`Meter::kinds`].
    pub const ALL: [Class; 6] =
        [Class::Read, Class::Write, Class::Zero, Class::Trim, Class::Flush, Class::Status];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Class::Read => "read",
            Class::Write => "write",
            Class::Zero => "zero",
            Class::Trim => "trim",
            Class::Flush => "flush",
            Class::Status => "status",
        }
    }
}

/// Requests of one kind.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// How long those took that succeeded, from the batch that they came with to the one that answered them.
    pub took: Histogram,
    /// Bytes that these were about.
    pub bytes: u64,
    /// Those that were answered with an error, or whose client was cut off instead.
    pub failed: u64,
}

/// See the module.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    kinds: [Requests; Class::ALL.len()],
}

impl Meter {
    /// A request has been answered.
    pub(super) fn answered(&mut self, class: Class, bytes: u64, took_us: u64, ok: bool) {
        let kind = &mut self.kinds[class as usize];
        if ok {
            kind.took.record(took_us);
            kind.bytes += bytes;
        } else {
            kind.failed += 1;
        }
    }

    /// By kind.
    pub fn kinds(&self) -> impl Iterator<Item = (Class, &Requests)> {
        Class::ALL.into_iter().zip(&self.kinds)
    }
}

/// When a request came, and what it is.
#[derive(Copy, Clone, Debug)]
pub(super) struct Asked {
    pub class: Class,
    pub bytes: u64,
    pub at: Time,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_kept_apart_under_their_names() {
        let mut meter = Meter::default();
        for (n, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, n);
            for _ in 0..=n {
                meter.answered(class, 10, 100, true);
            }
        }
        meter.answered(Class::Trim, 10, 100, false);
        let told: Vec<_> =
            meter.kinds().map(|(class, it)| (class.name(), it.took.count(), it.bytes, it.failed)).collect();
        let expected = [
            ("read", 1, 10, 0),
            ("write", 2, 20, 0),
            ("zero", 3, 30, 0),
            ("trim", 4, 40, 1),
            ("flush", 5, 50, 0),
            ("status", 6, 60, 0),
        ];
        assert_eq!(told, expected);
    }
}
