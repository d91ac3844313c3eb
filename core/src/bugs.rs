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
    /// What was decided in one reign is applied though it was written in another (6.2).
    SupersededApplies,
    /// A new leader takes every lease for one that has run out (6.2).
    NewReignWaitsForNobody,
    /// A holder renews between the decision to grant over its lease and the commit (6.2).
    RenewalSlipsIn,
    /// The map of a backup goes on with its generations as they are (6.5).
    RestoreSkipsNothing,
    /// Of copies that differ at one head, the first one wins (P3).
    ScrubFirstWins,
    /// Of copies that differ at one head, the minority wins (P3).
    ScrubMinorityWins,
    /// A repair forgets which blocks of its source are in doubt.
    RepairForgetsDoubts,
    /// A split leaves the promises behind.
    SplitWithoutPromise,
    /// A node splits in memory, and answers before the record of it is durable: it is never written.
    SplitWithoutRecord,
    /// A leader that has not heard of a split goes on, and its writes are taken in the group that they name.
    WrongGroup,
    /// A leader opens a group that split off with a ballot of its own, from round 0.
    SplitFromRoundZero,
    /// A leader answers what a majority has in a pool whose answers wait for all copies in line (5.6).
    AllInSyncForgotten,
    /// A leader lists all copies of a node as behind that has lost data and does not know it, and goes on (5.9).
    DoubtedNodeCounts,
    /// A healer gets whatever has a lease that ran out (8).
    HealersAskNobody,
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

pub(crate) fn superseded_applies() -> bool {
    BUG.get() == Some(Bug::SupersededApplies)
}

pub(crate) fn new_reign_waits_for_nobody() -> bool {
    BUG.get() == Some(Bug::NewReignWaitsForNobody)
}

pub(crate) fn renewal_slips_in() -> bool {
    BUG.get() == Some(Bug::RenewalSlipsIn)
}

pub(crate) fn restore_skips_nothing() -> bool {
    BUG.get() == Some(Bug::RestoreSkipsNothing)
}

pub(crate) fn scrub_first_wins() -> bool {
    BUG.get() == Some(Bug::ScrubFirstWins)
}

pub(crate) fn scrub_minority_wins() -> bool {
    BUG.get() == Some(Bug::ScrubMinorityWins)
}

pub(crate) fn repair_forgets_doubts() -> bool {
    BUG.get() == Some(Bug::RepairForgetsDoubts)
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

pub(crate) fn healers_ask_nobody() -> bool {
    BUG.get() == Some(Bug::HealersAskNobody)
}

pub(crate) fn all_in_sync_forgotten() -> bool {
    BUG.get() == Some(Bug::AllInSyncForgotten)
}

pub(crate) fn doubted_node_counts() -> bool {
    BUG.get() == Some(Bug::DoubtedNodeCounts)
}
