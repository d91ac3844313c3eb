//! P6: what repairs move is bounded. A node sends pieces, and asks for pieces, no faster than its ceiling, but for
//! those that a client waits for.
//!
//! Looked at from outside, by the messages: a source knows from the Fetch whether a client waits, so the checker
//! remembers that of each Fetch that it has seen go by. It counts the data that travels, which is less than what
//! the node counts, so that it never cries without cause.

use super::{Checked, Violation};
use crate::payload::Blocks;
use std::collections::VecDeque;
use trefoil_core::BLOCK_SIZE;
use trefoil_core::message::{FETCH_URGENT, PeerMsg};
use trefoil_core::node::BudgetConfig;

/// Microseconds of the present rate that may come at once behind a pause.
const BURST_US: u64 = 125_000;
/// More data may come at once if one piece is larger than the burst.
const PIECE: u64 = 128 * BLOCK_SIZE as u64;

/// What one node has sent in one life.
#[derive(Debug)]
pub struct Spent {
    budget: BudgetConfig,
    from: u64,
    /// Bytes of data in pieces, and when they were sent, by its clock: those of the last [`WINDOW`].
    sent: VecDeque<(u64, u64)>,
}

/// Over which it is looked at (µs).
const WINDOW: u64 = 10_000_000;

impl Spent {
    /// From this moment on.
    pub fn new(budget: BudgetConfig, from: u64) -> Spent {
        Spent { budget, from, sent: VecDeque::new() }
    }

    /// A node says something to another one.
    pub fn sent(&mut self, now: u64, ni: usize, to: u32, msg: &PeerMsg<Blocks>) -> Checked {
        let PeerMsg::Piece { request, data, .. } = msg else { return Ok(()) };
        if request & FETCH_URGENT != 0 {
            return Ok(());
        }
        while self.sent.front().is_some_and(|(at, _)| *at + WINDOW < now) {
            self.sent.pop_front();
        }
        self.sent.push_back((now, data.values().len() as u64 * BLOCK_SIZE as u64));
        let most = |time: u64| {
            let burst = (self.budget.ceiling * BURST_US / 1_000_000).max(self.budget.burst).max(PIECE);
            burst + (u128::from(self.budget.ceiling) * u128::from(time) / 1_000_000) as u64
        };
        // Pieces are held until what they say is durable, and then leave together: what counts is when they
        // were read, which was in their window or before, but not before the node began.
        let first = self.sent.front().map_or(now, |(at, _)| *at).min(now);
        let slack = SLACK.min(first.saturating_sub(self.from));
        let all: u64 = self.sent.iter().map(|(_, bytes)| bytes).sum();
        let limit = most(now - first + slack);
        if all > limit {
            let what = format!(
                "node.{ni} sends {all} bytes of repairs in {} us, the last to node.{to}: its budget is {limit}",
                now - first
            );
            return Err(Violation::plain("P6", what));
        }
        Ok(())
    }
}

/// How long a piece may be held for what it says to be durable, at most (µs).
const SLACK: u64 = 5_000_000;
