//! Deliberate bugs, which the crash and fault tests must catch (`tests/store_bugs.rs`). They can be switched
//! on only with the feature `deliberate-bugs`, which no daemon is built with; without it every question
//! below is a constant `false`.

use std::cell::Cell;

/// A rule of the store that can be broken on this thread.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A freed segment is written again before its Free record is durable.
    ReuseBeforeFree,
    /// Segments are freed by the snapshot whose root is still being written.
    FreeBeforeRoot,
    /// A Move counts whatever the table says by then.
    MoveWithoutChecksum,
    /// Freeing a segment leaves its turn as it was.
    SameTurn,
    /// Recovery takes the first successor that fits instead of the one with the greatest LSN.
    FirstSuccessor,
    /// Pages of objects that were deleted while a checkpoint gathered are not in it.
    NoNewlyDead,
    /// A freed segment is written again while a read that began before is under way.
    ReuseUnderRead,
    /// A placement group is split while a checkpoint has read half of it.
    SplitUnderCheckpoint,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 8] = [
        Bug::ReuseBeforeFree,
        Bug::FreeBeforeRoot,
        Bug::MoveWithoutChecksum,
        Bug::SameTurn,
        Bug::FirstSuccessor,
        Bug::NoNewlyDead,
        Bug::ReuseUnderRead,
        Bug::SplitUnderCheckpoint,
    ];
}

thread_local! {
    static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Switches a bug on, or all of them off, for this thread. Nothing happens without the feature.
pub fn set(bug: Option<Bug>) {
    BUG.set(bug);
}

/// True where this rule is to be broken.
pub(super) fn on(bug: Bug) -> bool {
    cfg!(feature = "deliberate-bugs") && BUG.get() == Some(bug)
}
