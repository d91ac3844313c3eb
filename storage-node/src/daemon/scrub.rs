//! When placement groups are scrubbed, and what the monitors hear of it.
//!
//! The rules of scrub are the machine's (`trefoil_core::node`); here are the calendar and the messenger. Each
//! placement group is scrubbed in its interval, less up to a tenth that differs from group to group so that
//! not all come at once; those that the node has just got are spread over the interval. When each was scrubbed
//! last is kept beside the store. One or two at a time are given to the machine, which keeps the budget.
//!
//! Nothing here stands in the path of a read or write, but it runs on the thread that serves them: what is done
//! every second does not grow with the number of groups (a volume's objects in a placement group), and files
//! are written by another thread.

use super::cluster::Membership;
use super::connections::Daemon;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::time::{MissedTickBehavior, interval, timeout};
use trefoil_core::PgId;
use trefoil_core::node::{Input, ScrubOrder, Scrubbed};
use trefoil_core::record::Durable;
use trefoil_monitor::scrub::{DOUBTS_PER_REPORT_MAX, DoubtReport, ScrubReport};

/// Time between two looks at the calendar, and between two reports.
const LOOK: Duration = Duration::from_secs(1);
/// A report that takes longer is given up; the next one is as good.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Scrubs that the calendar gives the machine at once.
const AT_ONCE: usize = 2;
/// Placement groups for which the calendar is looked through each second; with more, every second one, and so on.
const PGS_PER_LOOK: usize = 4096;
/// The least time between two writings of what is kept (s). After a crash, what was scrubbed since is scrubbed
/// again.
const KEEP_EVERY: u64 = 30;

/// Hours of the day in which scrubs begin by themselves.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Window {
    from: u64,
    to: u64,
}

impl Window {
    /// From "FROM-TO", hours from 0 to 24 that differ.
    pub fn parse(text: &str) -> Option<Window> {
        let (from, to) = text.trim().split_once('-')?;
        let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        (from <= 24 && to <= 24 && from != to).then_some(Window { from, to })
    }

    /// Whether it is open at a time, in seconds of UTC.
    fn is_open(self, now: u64) -> bool {
        let hour = now / 3600 % 24;
        match self.from < self.to {
            true => self.from <= hour && hour < self.to,
            false => hour >= self.from || hour < self.to,
        }
    }
}

/// When and how fast placement groups are scrubbed. Times in seconds; an interval of 0: never.
#[derive(Copy, Clone, Debug)]
pub struct ScrubPlan {
    /// Between two light scrubs.
    pub light: u64,
    /// Between two deep scrubs.
    pub deep: u64,
    /// What deep scrubs read at most.
    pub bytes_per_s: u64,
    /// `None`: any time.
    pub window: Option<Window>,
}

/// When a placement group was scrubbed last (seconds of UTC).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    light: u64,
    deep: u64,
}

/// Placement groups, and when each was scrubbed last.
#[derive(Debug, Default)]
struct Calendar {
    last: BTreeMap<PgId, Last>,
}

/// A number below `below` that is always the same for a placement group.
fn share(pg: PgId, salt: u64, below: u64) -> u64 {
    let mut mixed =
        (u64::from(pg.pool.0) << 32 | u64::from(pg.pg)) ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    if below == 0 { 0 } else { (mixed ^ mixed >> 31) % below }
}

impl Calendar {
    /// As it was kept.
    fn of(kept: Vec<(PgId, Last)>) -> Calendar {
        Calendar { last: kept.into_iter().collect() }
    }

    /// As it is to be kept.
    fn entries(&self) -> Vec<(PgId, Last)> {
        self.last.iter().map(|(pg, last)| (*pg, *last)).collect()
    }

    /// These are the node's. New ones are as if they had been scrubbed at some time in the last interval: their
    /// first scrubs are spread over the next.
    /// Whether they are others than before.
    fn follow(&mut self, held: &BTreeSet<PgId>, plan: &ScrubPlan, salt: u64, now: u64) -> bool {
        let before = self.last.len();
        self.last.retain(|pg, _| held.contains(pg));
        let mut changed = self.last.len() != before;
        for pg in held {
            changed |= !self.last.contains_key(pg);
            let last = self.last.entry(*pg).or_insert_with(|| Last {
                light: now.saturating_sub(share(*pg, salt, plan.light)),
                deep: now.saturating_sub(share(*pg, salt ^ 1, plan.deep)),
            });
            // A clock that was set back must not put them off for ever.
            (last.light, last.deep) = (last.light.min(now), last.deep.min(now));
        }
        changed
    }

    /// The placement group that is due most, and whether for a deep scrub.
    fn due(&self, plan: &ScrubPlan, salt: u64, now: u64) -> Option<(PgId, bool)> {
        let over = |pg: PgId, last: u64, interval: u64| {
            let interval = (interval > 0).then(|| interval - share(pg, salt, interval / 10))?;
            now.checked_sub(last + interval).map(|over| over * 1000 / interval)
        };
        let each = self.last.iter().flat_map(|(pg, last)| {
            [(over(*pg, last.deep, plan.deep), *pg, true), (over(*pg, last.light, plan.light), *pg, false)]
        });
        let due = each.filter_map(|(over, pg, deep)| Some((over?, pg, deep)));
        due.max_by_key(|(over, _, deep)| (*over, *deep)).map(|(_, pg, deep)| (pg, deep))
    }

    /// One has ended, that began before `now`. A deep scrub is a light one, too.
    fn done(&mut self, pg: PgId, deep: bool, now: u64) {
        if let Some(last) = self.last.get_mut(&pg) {
            last.light = now;
            if deep {
                last.deep = now;
            }
        }
    }

    /// Seconds since the scrub of a kind that was longest ago.
    fn oldest(&self, interval: u64, of: fn(&Last) -> u64, now: u64) -> Option<u64> {
        let ages = self.last.values().map(|last| now.saturating_sub(of(last)));
        if interval == 0 { None } else { ages.max() }
    }

    /// How many are overdue by more than an interval.
    fn late(&self, plan: &ScrubPlan, now: u64) -> u64 {
        let late = |last: u64, interval: u64| interval > 0 && now.saturating_sub(last) > 2 * interval;
        self.last.values().filter(|last| late(last.light, plan.light) || late(last.deep, plan.deep)).count()
            as u64
    }

    fn summary(&self, plan: &ScrubPlan, now: u64) -> Summary {
        Summary {
            pgs: self.last.len() as u64,
            late: self.late(plan, now),
            oldest_light_s: self.oldest(plan.light, |last| last.light, now),
            oldest_deep_s: self.oldest(plan.deep, |last| last.deep, now),
        }
    }
}

/// What the monitors are told of a calendar.
#[derive(Copy, Clone, Debug, Default)]
struct Summary {
    pgs: u64,
    late: u64,
    oldest_light_s: Option<u64>,
    oldest_deep_s: Option<u64>,
}

/// The placement groups that the node has something of, or had until their last volume was deleted: those that
/// it has answered for and has not left.
fn held_pgs(state: &Durable) -> BTreeSet<PgId> {
    state.pgs.iter().filter(|(_, pg)| pg.left.is_none()).map(|(pg, _)| *pg).collect()
}

/// When the calendar is written.
#[derive(Debug, Default)]
struct Keeper {
    changed: bool,
    kept_at: Option<u64>,
}

impl Keeper {
    /// Whether it is to be written now; if so, it is taken for written.
    fn is_due(&mut self, now: u64) -> bool {
        // A clock that was set back must not put it off for ever.
        let waits = self.kept_at.is_some_and(|at| at <= now && now < at + KEEP_EVERY);
        let due = self.changed && !waits;
        if due {
            *self = Keeper { changed: false, kept_at: Some(now) };
        }
        due
    }
}

/// Seconds of UTC.
fn wall_clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Scrubs by the calendar and by order, for ever.
pub async fn run(membership: Rc<Membership>, daemon: Rc<Daemon<Store>>, plan: ScrubPlan) {
    // Ten ticks in a second.
    daemon.change(|engine| engine.set_scrub_rate((plan.bytes_per_s / 10).max(1)));
    let salt = u64::from(membership.node.0) << 1;
    let mut calendar = Calendar::of(membership.state.scrubs());
    // Given to the machine by the calendar, and when.
    let mut given: BTreeMap<PgId, u64> = BTreeMap::new();
    let mut keeper = Keeper::default();
    let (mut summary, mut looked) = (Summary::default(), 0usize);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let now = wall_clock();
        let done = daemon.change(|engine| engine.take_scrubbed());
        keeper.changed |= !done.is_empty();
        for (pg, deep, found) in done {
            tell(pg, deep, found);
            calendar.done(pg, deep, given.remove(&pg).unwrap_or(now).min(now));
        }
        if looked.is_multiple_of(1 + calendar.last.len() / PGS_PER_LOOK) {
            let held = daemon.look(|engine| held_pgs(engine.node().state()));
            keeper.changed |= calendar.follow(&held, &plan, salt, now);
            given.retain(|pg, _| held.contains(pg));
            if given.len() < AT_ONCE && plan.window.is_none_or(|window| window.is_open(now)) {
                let due = calendar.due(&plan, salt, now).filter(|(pg, _)| !given.contains_key(pg));
                if let Some((pg, deep)) = due {
                    given.insert(pg, now);
                    daemon.batch(|engine| engine.feed(Input::Scrub(ScrubOrder::Scrub { pg, deep })));
                }
            }
            summary = calendar.summary(&plan, now);
        }
        looked = looked.wrapping_add(1);
        if keeper.is_due(now) {
            let (state, kept) = (membership.state.clone(), calendar.entries());
            if let Err(error) = tokio::task::spawn_blocking(move || state.keep_scrubs(&kept)).await {
                tracing::warn!(%error, "the times of scrubs were not kept");
            }
        }
        let report = report(&membership, &daemon, summary);
        membership.scrub_ages.set((report.oldest_light_s, report.oldest_deep_s));
        let answer = timeout(REPORT_TIMEOUT, membership.client.scrub(report)).await;
        let Ok(Ok(orders)) = answer else { continue }; // heartbeats tell of monitors that do not answer
        for order in orders {
            tracing::info!(?order, "an administrator's order");
            daemon.batch(|engine| engine.feed(Input::Scrub(order)));
        }
    }
}

fn tell(pg: PgId, deep: bool, found: Scrubbed) {
    let kind = if deep { "deep" } else { "light" };
    if found.bad + found.outvoted + found.disputed > 0 {
        tracing::warn!(%pg, kind, ?found, "scrub has found damage");
    } else {
        tracing::debug!(%pg, kind, ?found, "scrubbed");
    }
}

fn report(membership: &Membership, daemon: &Rc<Daemon<Store>>, of: Summary) -> ScrubReport {
    daemon.look(|engine| {
        let mut in_doubt = 0;
        let mut doubts = Vec::new();
        for (object, head, marks) in engine.node().doubts() {
            in_doubt += marks.len() as u64;
            let room = DOUBTS_PER_REPORT_MAX - doubts.len();
            doubts.extend(marks.iter().take(room).map(|mark| DoubtReport {
                object,
                head,
                block: mark.block,
                doubt: mark.doubt,
                checksum: mark.checksum,
            }));
        }
        ScrubReport {
            node: membership.node,
            incarnation: membership.incarnation,
            pgs: of.pgs,
            late: of.late,
            oldest_light_s: of.oldest_light_s,
            oldest_deep_s: of.oldest_deep_s,
            open: engine.node().scrubs_open() as u64,
            in_doubt,
            doubts,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::record::{Promise, Record};
    use trefoil_core::{Epoch, GroupId, PoolId, VolumeId};

    const DAY: u64 = 86_400;

    fn plan() -> ScrubPlan {
        ScrubPlan { light: DAY, deep: 7 * DAY, bytes_per_s: 1 << 20, window: None }
    }

    fn pgs(count: u32) -> BTreeSet<PgId> {
        (0..count).map(|pg| PgId { pool: PoolId(1), pg }).collect()
    }

    /// Scrubs what is due, once a minute, for so long; how many light and deep ones each group got.
    fn live(calendar: &mut Calendar, plan: &ScrubPlan, from: u64, for_s: u64) -> BTreeMap<PgId, (u64, u64)> {
        let mut got: BTreeMap<PgId, (u64, u64)> = BTreeMap::new();
        for now in (from..from + for_s).step_by(60) {
            if let Some((pg, deep)) = calendar.due(plan, 7, now) {
                let got = got.entry(pg).or_default();
                *(if deep { &mut got.1 } else { &mut got.0 }) += 1;
                calendar.done(pg, deep, now);
            }
        }
        got
    }

    #[test]
    fn each_group_is_scrubbed_in_its_interval_and_not_all_at_once() {
        let mut calendar = Calendar::default();
        calendar.follow(&pgs(60), &plan(), 7, 100 * DAY);
        let first_hour = live(&mut calendar, &plan(), 100 * DAY, 3600);
        assert!(first_hour.len() < 15, "{} of 60 in the first hour", first_hour.len());
        assert_eq!(calendar.late(&plan(), 100 * DAY), 0, "what is new is not late");
        let got = live(&mut calendar, &plan(), 100 * DAY + 3600, 14 * DAY);
        for (pg, (light, deep)) in &got {
            assert!(
                (2..=3).contains(deep) && light + deep >= 13 && light + deep <= 18,
                "{pg}: {light}, {deep}"
            );
        }
        assert_eq!(got.len(), 60);
        let end = 114 * DAY + 3600;
        assert!(calendar.oldest(DAY, |last| last.light, end).unwrap() <= DAY + 60);
        assert_eq!(calendar.oldest(0, |last| last.light, end), None);
    }

    #[test]
    fn what_was_not_scrubbed_for_long_is_late_and_off_is_not() {
        let mut calendar = Calendar::default();
        calendar.follow(&pgs(10), &plan(), 7, 100 * DAY);
        assert_eq!(calendar.late(&plan(), 103 * DAY), 10);
        let off = ScrubPlan { light: 0, deep: 0, ..plan() };
        assert_eq!(calendar.late(&off, 103 * DAY), 0);
        assert_eq!(calendar.due(&off, 7, 103 * DAY), None);
        // Back in time: not in the future.
        calendar.follow(&pgs(9), &plan(), 7, 50 * DAY);
        assert!(calendar.last.len() == 9 && calendar.last.values().all(|last| last.light <= 50 * DAY));
    }

    #[test]
    fn a_window_is_hours_of_the_day() {
        let night = Window::parse("22-6").unwrap();
        let at = |hour: u64| night.is_open(3 * DAY + hour * 3600);
        assert!(at(22) && at(23) && at(0) && at(5) && !at(6) && !at(21));
        assert!(Window::parse("9-17").unwrap().is_open(9 * 3600));
        for bad in ["", "9", "9-", "9-9", "25-1", "a-b"] {
            assert_eq!(Window::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_calendar_comes_back_as_it_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = super::super::identity::StateDir::open(dir.path()).unwrap();
        let mut calendar = Calendar::of(state.scrubs());
        calendar.follow(&pgs(3), &plan(), 7, 100 * DAY);
        state.keep_scrubs(&calendar.entries());
        assert_eq!(Calendar::of(state.scrubs()).last, calendar.last);
        std::fs::write(dir.path().join("scrub.json"), "{").unwrap();
        assert!(Calendar::of(state.scrubs()).last.is_empty());
        // A writer that did not come to its end leaves what was there.
        state.keep_scrubs(&calendar.entries());
        std::fs::write(dir.path().join("scrub.json.new"), "[").unwrap();
        assert_eq!(Calendar::of(state.scrubs()).last, calendar.last);
        state.keep_scrubs(&calendar.entries());
        assert!(!dir.path().join("scrub.json.new").exists());
    }

    #[test]
    fn it_is_written_now_and_then_and_only_when_something_has_changed() {
        let mut keeper = Keeper::default();
        assert!(!keeper.is_due(1000), "nothing to keep");
        let mut written = Vec::new();
        for now in 1000..1100 {
            keeper.changed = true;
            if keeper.is_due(now) {
                written.push(now);
            }
        }
        assert_eq!(written, [1000, 1030, 1060, 1090]);
        assert!(keeper.is_due(1120), "what changed meanwhile is not forgotten");
        assert!(!keeper.is_due(1200));
        keeper.changed = true;
        assert!(keeper.is_due(50), "a clock that was set back");
    }

    #[test]
    fn a_node_scrubs_what_it_has_answered_for_and_has_not_left() {
        let mut state = Durable::default();
        let pg = |pg| PgId { pool: PoolId(1), pg };
        for n in 0..3 {
            for volume in 1..4 {
                let group = GroupId { volume: VolumeId(volume), pg: pg(n) };
                let open = Record::Open { group, promised: Promise::default(), epoch: Epoch(1) };
                state.apply::<()>(&open);
            }
        }
        assert_eq!(held_pgs(&state), pgs(3));
        state.apply::<()>(&Record::Leave { pg: pg(2), epoch: Epoch(2) });
        assert_eq!(held_pgs(&state), pgs(2));
        let mut calendar = Calendar::default();
        assert!(calendar.follow(&pgs(3), &plan(), 7, DAY));
        assert!(!calendar.follow(&pgs(3), &plan(), 7, DAY), "the same");
        assert!(calendar.follow(&held_pgs(&state), &plan(), 7, DAY), "one is gone");
        let other = BTreeSet::from([pg(0), pg(7)]);
        assert!(calendar.follow(&other, &plan(), 7, DAY), "another one for it");
    }
}
