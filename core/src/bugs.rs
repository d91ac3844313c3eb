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
    /// A node that is no member any more deletes at once (N7).
    DeleteWithoutCompare,
    /// A move is made final without a look at the new member (M3).
    FinalWithoutCheck,
    /// A leader goes on in its ballot under a new epoch, and a line of such a ballot counts (M1, M3).
    NoReopen,
    /// A node answers List and forgets the epoch (N1).
    ListWithoutEpoch,
    /// A split leaves the promises behind.
    SplitWithoutPromise,
    /// A node splits in memory, and answers before the record of it is durable: it is never written.
    SplitWithoutRecord,
    /// A leader that has not heard of a split goes on, and its writes are taken in the group that they name.
    WrongGroup,
    /// A leader opens a group that split off with a ballot of its own, from round 0.
    SplitFromRoundZero,
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

pub(crate) fn delete_without_compare() -> bool {
    BUG.get() == Some(Bug::DeleteWithoutCompare)
}

pub(crate) fn final_without_check() -> bool {
    BUG.get() == Some(Bug::FinalWithoutCheck)
}

pub(crate) fn no_reopen() -> bool {
    BUG.get() == Some(Bug::NoReopen)
}

pub(crate) fn list_without_epoch() -> bool {
    BUG.get() == Some(Bug::ListWithoutEpoch)
}

pub(crate) fn split_without_promise() -> bool {
    BUG.get() == Some(Bug::SplitWithoutPromise)
}

pub(crate) fn split_without_record() -> bool {
    BUG.get() == Some(Bug::SplitWithoutRecord)
}

pub(crate) fn wrong_group() -> bool {
    BUG.get() == Some(Bug::WrongGroup)
}

pub(crate) fn split_from_round_zero() -> bool {
    BUG.get() == Some(Bug::SplitFromRoundZero)
}
