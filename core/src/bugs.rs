//! Deliberate bugs, which the simulator must catch. Compiled only with the feature `deliberate-bugs`,
//! which no daemon is built with, and off until one is asked for.

use std::cell::Cell;

/// A bug that can be switched on for this thread.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A leader acknowledges a write that one copy has.
    AckAtOneCopy,
    /// A leader leaves copies that are behind out of the choice (5.2).
    StaleCopyWithoutVote,
    /// A late read is sent to another node over a write in flight (6.1).
    HedgeOvertakesWrite,
}

thread_local! {
    static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Switches a bug on, or all of them off, for this thread.
pub fn set(bug: Option<Bug>) {
    BUG.set(bug);
}

pub(crate) fn ack_at_one_copy() -> bool {
    BUG.get() == Some(Bug::AckAtOneCopy)
}

pub(crate) fn stale_copy_without_vote() -> bool {
    BUG.get() == Some(Bug::StaleCopyWithoutVote)
}

pub(crate) fn hedge_overtakes_write() -> bool {
    BUG.get() == Some(Bug::HedgeOvertakesWrite)
}
