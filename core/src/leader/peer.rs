//! A node as its leader sees it: what it owes, how quick it is, and whether it is spoken to.

use super::latency::Latency;
use super::write::REPAIR_RETRY;
use crate::ids::*;
use crate::limits::{LEADER_REPAIRS_PER_NODE, NODE_BACKLOG_BYTES_MAX, NODE_BACKLOG_OPS_MAX};

/// A slow node is read from again when so many probes in a row were answered in time.
const PROBES_GOOD: u8 = 3;
/// Time to the next probe: behind one that was in time, behind the first that was late, and at most (µs).
const PROBE_SOON: u64 = 10_000;
const PROBE_MIN: u64 = 50_000;
const PROBE_MAX: u64 = 1_000_000;
/// A probe that was not answered for so long will not be: its group was opened anew meanwhile, say (µs).
const PROBE_LOST: u64 = 5_000_000;

/// A node, as this leader sees it.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Its connection stands. It is spoken to only if it is `up`, too.
    pub connected: bool,
    pub up: bool,
    /// Has made this generation's fence durable.
    pub fenced: bool,
    /// How often it was found to have lost what it had reported (5.9, [`super::lost`]).
    pub doubts: u32,
    /// That was said since its connection was made.
    pub loss_said: bool,
    /// Writes sent and not answered yet.
    pub backlog_ops: usize,
    pub backlog_bytes: u64,
    /// How old the backlog is.
    pub mark: Option<Mark>,
    /// Reads sent and not answered yet.
    pub reads: usize,
    /// Was late with a read: read from only if nobody else can be, until it has answered probes in time.
    pub slow: bool,
    /// Since when.
    pub slow_since: Time,
    /// The probe under way: its id, and when it was sent.
    pub probe: Option<(u64, Time)>,
    probe_after: Time,
    probe_pause: u64,
    probes_good: u8,
    /// How long its reads take, and its writes until they are durable.
    pub read_latency: Latency,
    pub write_latency: Latency,
    /// Repairs ordered and not answered yet.
    pub repairs: usize,
    /// How many there may be.
    pub repair_window: Window,
    /// It has put off a repair while it had no other: none but urgent ones are ordered before this.
    pub put_off_until: Time,
    /// When it was last heard to be full, and until when that is believed; 0: it is not known to be.
    pub full_until: Time,
    /// How long it is believed the next time; 0: it has not refused a write since it had room.
    pub full_for: u64,
    /// It has refused the last repair for want of room: none but urgent ones are ordered before this; 0:
    /// it has not.
    pub repair_after: Time,
    /// Since when an answer is awaited without any having come.
    pub asked: Option<Time>,
    /// It was cut loose: not spoken to before this, unless it is needed for a quorum.
    pub held_until: Time,
    /// How long it is held out; doubles each time. 0: it was never cut loose.
    pub hold: u64,
    /// Since when it is spoken to.
    pub up_since: Time,
    /// How often it was cut loose.
    pub cuts: u64,
    /// It should have been cut loose, but a quorum needs it: not looked at again before this.
    pub spared_until: Time,
}

/// A point in the backlog of a node: the write that was sent last then, and how many writes are to be
/// answered until it is. A node answers about in the order of sending, so the age of the mark is the age of
/// the backlog, to a factor of two; for an exact one each write would have to be looked for.
#[derive(Copy, Clone, Debug)]
pub(super) struct Mark {
    pub since: Time,
    left: usize,
}

/// How many repairs a node is ordered at once: fewer when it gives them back undone, more as it gets them done
/// (additive increase, multiplicative decrease). A leader does not know what else the node repairs, and for whom.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    /// Done since it grew last.
    done: usize,
}

impl Default for Window {
    fn default() -> Window {
        Window { size: LEADER_REPAIRS_PER_NODE, done: 0 }
    }
}

impl Window {
    pub fn size(&self) -> usize {
        self.size
    }

    fn grow(&mut self) {
        self.done += 1;
        if self.done >= self.size && self.size < LEADER_REPAIRS_PER_NODE {
            *self = Window { size: self.size + 1, done: 0 };
        }
    }

    fn shrink(&mut self) {
        *self = Window { size: (self.size / 2).max(1), done: 0 };
    }
}

impl Peer {
    /// A repair that it was ordered is done.
    pub fn repair_done(&mut self) {
        self.repairs = self.repairs.saturating_sub(1);
        self.repair_after = Time(0);
        self.repair_window.grow();
    }

    /// It has given one back undone, which is not among `repairs` any more.
    pub fn repair_came_back(&mut self, now: Time) {
        self.repair_window.shrink();
        if self.repairs == 0 {
            // Else the end of another one is when the next is ordered.
            self.put_off_until = now.after(REPAIR_RETRY);
        }
    }

    /// Another repair that no client waits for may be ordered of it.
    pub fn takes_repairs(&self, now: Time) -> bool {
        self.repairs < self.repair_window.size() && self.repair_after <= now && self.put_off_until <= now
    }

    /// A write is sent to it.
    pub fn owes(&mut self, now: Time, bytes: u64) {
        self.asked.get_or_insert(now);
        self.backlog_ops += 1;
        self.backlog_bytes += bytes;
        if self.mark.is_none() {
            self.mark = Some(Mark { since: now, left: self.backlog_ops });
        }
    }

    /// A write is not awaited of it any more.
    pub fn owes_less(&mut self, now: Time, bytes: u64) {
        self.backlog_ops = self.backlog_ops.saturating_sub(1);
        self.backlog_bytes = self.backlog_bytes.saturating_sub(bytes);
        if let Some(mark) = &mut self.mark {
            mark.left = mark.left.saturating_sub(1);
            if mark.left == 0 {
                self.mark = (self.backlog_ops > 0).then_some(Mark { since: now, left: self.backlog_ops });
            }
        }
    }

    /// For how long it has owed the oldest of its backlog, to a factor of two (µs).
    pub fn backlog_age(&self, now: Time) -> u64 {
        self.mark.map_or(0, |mark| now.since(mark.since))
    }

    /// Its backlog is at the limit.
    pub fn is_too_far_behind(&self) -> bool {
        self.backlog_ops > NODE_BACKLOG_OPS_MAX || self.backlog_bytes > NODE_BACKLOG_BYTES_MAX
    }

    /// It has a quarter of the limit: no repairs are ordered of it, since the writes of repaired copies would
    /// only join its backlog.
    pub fn is_far_behind(&self) -> bool {
        self.backlog_ops > NODE_BACKLOG_OPS_MAX / 4 || self.backlog_bytes > NODE_BACKLOG_BYTES_MAX / 4
    }

    /// It owes answers, and has said nothing for so long (µs).
    pub fn is_silent(&self, now: Time, so_long: u64) -> bool {
        self.asked.is_some_and(|since| now.since(since) >= so_long)
    }

    /// It is late with a read that was sent then. The late answer counts as a probe.
    pub fn late(&mut self, now: Time, id: u64, sent: Time) {
        if !std::mem::replace(&mut self.slow, true) {
            self.slow_since = now;
            self.probe_pause = PROBE_MIN;
            self.probe_after = now;
        }
        self.probes_good = 0;
        self.probe.get_or_insert((id, sent));
    }

    /// A probe is due.
    pub fn wants_probe(&self, now: Time) -> bool {
        self.probe_after <= now && self.probe.is_none_or(|(_, sent)| now.since(sent) > PROBE_LOST)
    }

    /// The answer to the probe, if it is one: it came within `limit` (µs), or not.
    pub fn probed(&mut self, now: Time, id: u64, limit: u64) -> bool {
        let Some((_, sent)) = self.probe.filter(|(probe, _)| *probe == id) else { return false };
        self.probe = None;
        let took = now.since(sent);
        if took > limit {
            self.probes_good = 0;
            self.probe_after = now.after(self.probe_pause);
            self.probe_pause = (self.probe_pause * 2).clamp(PROBE_MIN, PROBE_MAX);
        } else {
            self.probes_good += 1;
            self.probe_after = now.after(if self.slow { PROBE_SOON } else { PROBE_MIN });
            self.probe_pause = PROBE_MIN;
            if self.slow && self.probes_good >= PROBES_GOOD {
                // What it took while it was slow says nothing about now.
                self.slow = false;
                self.read_latency.forget();
            }
        }
        self.read_latency.record(now, took);
        true
    }

    /// Its connection is gone, or given up: what was sent on it is not awaited any more. What is known of
    /// its speed stays.
    pub fn down(&mut self) {
        self.up = false;
        self.asked = None;
        self.mark = None;
        self.probe = None;
        self.loss_said = false;
        (self.backlog_ops, self.backlog_bytes, self.reads, self.repairs) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_as_old_as_its_mark() {
        let mut peer = Peer::default();
        for n in 0..10 {
            peer.owes(Time(n), 1);
        }
        assert_eq!(peer.mark.unwrap().since, Time(0));
        peer.owes_less(Time(50), 1);
        assert_eq!(peer.mark.unwrap().since, Time(50), "the first is answered: those behind it");
        for n in 0..8 {
            peer.owes_less(Time(60 + n), 1);
        }
        assert_eq!(peer.mark.unwrap().since, Time(50));
        peer.owes_less(Time(70), 1);
        assert!(peer.mark.is_none() && peer.backlog_bytes == 0);
    }

    #[test]
    fn fewer_repairs_are_ordered_of_a_node_that_puts_them_off() {
        let mut peer = Peer { repairs: LEADER_REPAIRS_PER_NODE, ..Peer::default() };
        assert!(!peer.takes_repairs(Time(1)), "the limit");
        for _ in 1..LEADER_REPAIRS_PER_NODE {
            peer.repairs -= 1;
            peer.repair_came_back(Time(1));
        }
        assert_eq!((peer.repair_window.size(), peer.repairs), (1, 1));
        peer.repair_done();
        assert!(peer.takes_repairs(Time(1)), "at once: it has done one");
        peer.repair_came_back(Time(1));
        assert!(!peer.takes_repairs(Time(1)) && peer.takes_repairs(Time(1 + REPAIR_RETRY)));
        for _ in 0..100 {
            peer.repair_done();
        }
        assert_eq!(peer.repair_window.size(), LEADER_REPAIRS_PER_NODE);
    }

    #[test]
    fn a_slow_node_is_believed_after_some_probes_in_time() {
        let mut peer = Peer::default();
        peer.late(Time(1_000), 7, Time(0));
        assert!(peer.slow && !peer.wants_probe(Time(1_000)), "the late read is the probe");
        assert!(!peer.probed(Time(2_000), 8, 500), "another read");
        assert!(peer.probed(Time(90_000), 7, 500));
        // Pauses grow while it stays slow.
        let mut now = 90_000;
        for pause in [50_000, 100_000, 200_000, 400_000, 800_000, 1_000_000, 1_000_000] {
            assert!(!peer.wants_probe(Time(now + pause - 1)) && peer.wants_probe(Time(now + pause)));
            now += pause;
            peer.probe = Some((9, Time(now)));
            now += 600;
            assert!(peer.probed(Time(now), 9, 500));
        }
        for good in 1..=PROBES_GOOD {
            peer.probe = Some((9, Time(now)));
            assert!(peer.probed(Time(now + 100), 9, 500));
            assert_eq!(peer.slow, good < PROBES_GOOD);
            assert!(peer.wants_probe(Time(now + 100 + PROBE_SOON)) || !peer.slow);
        }
    }
}
