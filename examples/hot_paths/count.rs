//! What callgrind is told by names: where counting begins, pauses and ends.
//!
//! `--toggle-collect` of `counting` and `pausing` switches counting on or off at each entry and each
//! return, so `pausing` inside of `counting` switches it off for its time; `--dump-before` of
//! `end_of_case` writes what has been counted since the last one. Hence none of the three may be inlined
//! or renamed, and none may be reached from itself.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// True inside of [`counting`].
static COUNTS: AtomicBool = AtomicBool::new(false);

#[inline(never)]
fn counting<T>(op: impl FnOnce() -> T) -> T {
    black_box(op())
}

#[inline(never)]
fn pausing<T>(op: impl FnOnce() -> T) -> T {
    black_box(op())
}

/// The case is over; so many operations have been counted.
#[inline(never)]
fn end_of_case(name: &str, operations: u32) {
    println!("{name}\t{operations}");
}

/// What happens inside counts, if so.
pub fn measured<T>(counts: bool, op: impl FnOnce() -> T) -> T {
    if !counts {
        return op();
    }
    COUNTS.store(true, Relaxed);
    let result = counting(op);
    COUNTS.store(false, Relaxed);
    result
}

/// What happens inside does not count, also inside of [`measured`].
pub fn paused<T>(op: impl FnOnce() -> T) -> T {
    if COUNTS.load(Relaxed) { pausing(op) } else { op() }
}

/// Operations before the first that counts: pools, tables and queues have their size then.
const WARM_UP: u32 = 64;

/// One case: `operation` is called with a running number and `true` where it shall count.
pub fn case(name: &str, operations: u32, mut operation: impl FnMut(u32, bool)) {
    for n in 0..WARM_UP {
        operation(n, false);
    }
    for n in WARM_UP..WARM_UP + operations {
        operation(n, true);
    }
    end_of_case(name, operations);
}
