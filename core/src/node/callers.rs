//! Leaders whose calls this node hears (section 8): what its heartbeats tell the monitors.
//!
//! A call is a Fence that was not refused, the first one of a connection included. Nothing else counts: a connection
//! stands while the process at its other end hangs. Healers send the first one only, and the monitors ask nobody
//! about what a healer holds.

use super::{ConnId, Node};
use crate::ids::*;
use crate::limits::CALLERS_MAX;
use crate::map::heard::Callers;
use std::collections::BTreeMap;

#[derive(Copy, Clone, Debug)]
struct Caller {
    generation: Generation,
    conn: ConnId,
    at: Time,
}

/// Soft state; at most [`CALLERS_MAX`] entries.
#[derive(Debug, Default)]
pub(super) struct Calls {
    by_volume: BTreeMap<VolumeId, Caller>,
    /// When one was heard for whom there was no room.
    more: Option<Time>,
}

impl Calls {
    pub fn heard(&mut self, volume: VolumeId, generation: Generation, conn: ConnId, at: Time) {
        if self.by_volume.len() >= CALLERS_MAX && !self.by_volume.contains_key(&volume) {
            // Those that call no more go when the next heartbeat is made.
            self.more = Some(at);
        } else {
            self.by_volume.insert(volume, Caller { generation, conn, at });
        }
    }

    /// A connection is gone, and with it who called on it.
    pub fn gone(&mut self, conn: ConnId) {
        self.by_volume.retain(|_, caller| caller.conn != conn);
    }
}

impl<P: Clone> Node<P> {
    /// Leaders that have called within the last `fresh` (µs); those that have not are forgotten.
    pub fn callers(&mut self, now: Time, fresh: u64) -> Callers {
        let is_fresh = |at: Time| now.since(at) <= fresh;
        self.calls.by_volume.retain(|_, caller| is_fresh(caller.at));
        self.calls.more = self.calls.more.filter(|at| is_fresh(*at));
        let leaders = self.calls.by_volume.iter().map(|(volume, caller)| (*volume, caller.generation));
        Callers { leaders: leaders.collect(), more: self.calls.more.is_some() }
    }
}
