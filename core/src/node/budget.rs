//! How much of a node recovery may take: client I/O first, recovery what is left (P6).
//!
//! Two token buckets in bytes, one for what repairs read here for others and one for what they bring here, and
//! one rate for both. The rate follows what clients see of this node: how long their writes take until they are
//! durable, and their reads until the store has answered. While both work, repairs are held at the floor for
//! two ticks of each [`CYCLE`], and what clients see then is held against what they see in the others: the two
//! differ by what recovery takes, whatever else the machine or the clients do. Later by half in the mean, or
//! more than one in a hundred later than twice the base's 99th percentile: the rate becomes half of what was
//! taken. Else, if repairs waited for tokens, it grows: twice in each cycle until clients were late for
//! the first time, in steps from then on (additive increase and multiplicative decrease, Chiu and Jain 1989; a
//! base that is measured again and again by holding back is that of BBR's ProbeRTT). The mean alone does not
//! do: of a device that stops for 10 ms now and then it shows nothing, and clients see their slowest I/O.
//!
//! It never falls below the floor, so that redundancy always comes back. What a client waits for is taken from
//! the tokens, and never waits for them. Nothing here knows what a repair is; `repair.rs` and `peers.rs` ask.

use super::Ticket;
use crate::ids::{BLOCK_SIZE, Time};
use crate::limits::PIECE_BLOCKS_MAX;
use std::cmp::Ordering;

/// Taken for each piece besides its data (bytes): tables are read and compared also where nothing differs.
pub(super) const PIECE_COST: u64 = 16 << 10;
/// Tokens that a bucket holds at most: those of so long (µs), but some pieces' worth. What comes at once after a
/// pause is no more than this.
const BURST_US: u64 = 125_000;
/// Ticks of about 100 ms: in the first [`LOW`] of each cycle repairs are held at the floor. The first of these is
/// not looked at: what was begun before ends in it.
const CYCLE: u32 = 8;
const LOW: u32 = 2;
const TICKS_PER_S: u64 = 10;
/// Samples in one tick below which it says nothing of clients.
const SAMPLES_MIN: u64 = 3;
/// Late: above the base by half, and by so much (µs), which is less than a client can see.
const LATE_MORE_US: u64 = 300;
/// Late beyond doubt, in a single tick: so many times the base, and so much (µs).
const GROSS: u64 = 4;
const GROSS_MORE_US: u64 = 5_000;
/// Slow: so many times the base's 99th percentile. Late, where more than one in so many is slow, but ...
const SLOW: u64 = 2;
const SLOW_ONE_IN: u64 = 100;
/// ... at least so many: one or two are chance. In a single tick, of a tenth of the samples, that is beyond doubt.
const SLOW_MIN: u64 = 3;
const SLOW_ONE_IN_TICK: u64 = 10;
/// Samples of fewer cycles are looked at together with those of the next one.
const SLOW_SAMPLES: u64 = 100;
/// Samples from which on older ones count half: the 99th percentile of some hundred is what can be followed.
const TAIL_SAMPLES: u32 = 512;
/// Four to each power of two µs, up to an hour.
const TAIL_BUCKETS: usize = 128;
/// The rate grows by this part of the ceiling in a cycle, but at least by the floor.
const STEP_PART: u64 = 64;
/// Ticks without any recovery after which the next one begins at the floor.
const FORGET_TICKS: u32 = 50;
/// Weight of a tick in a mean: one in so many.
const WEIGHT: u64 = 4;

/// What recovery may take, in bytes per second each way. Both at least 1, and the ceiling not below the floor:
/// else they are taken as if they were.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct BudgetConfig {
    /// Always.
    pub floor: u64,
    /// At most.
    pub ceiling: u64,
    /// Bytes that may come at once, at any rate.
    pub burst: u64,
}

impl Default for BudgetConfig {
    /// 8 MiB/s and 1 GiB/s; two pieces at once.
    fn default() -> BudgetConfig {
        let piece = u64::from(PIECE_BLOCKS_MAX) * BLOCK_SIZE as u64 + PIECE_COST;
        BudgetConfig { floor: 8 << 20, ceiling: 1 << 30, burst: 2 * piece }
    }
}

/// What a budget did. Counts from the start of the process.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetCounters {
    /// The rate now, in bytes per second.
    pub rate: u64,
    /// Bytes that repairs were let take, both ways.
    pub taken: u64,
    /// Bytes of them that did not wait for their turn: a client did.
    pub exempt: u64,
    /// How often the rate was lowered because clients were late.
    pub lowered: u64,
}

/// Which way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Read here for others.
    Out,
    /// Brought here.
    In,
}

#[derive(Debug)]
struct Bucket {
    tokens: i64,
    at: Time,
}

impl Bucket {
    fn refill(&mut self, now: Time, rate: u64, most: i64) {
        let new = u128::from(now.since(self.at)) * u128::from(rate) / 1_000_000;
        if new >= 2 * most as u128 {
            (self.tokens, self.at) = (most, now);
        } else if new > 0 {
            self.tokens = (self.tokens + new as i64).min(most);
            // Not to `now`: what is less than a byte is not lost.
            self.at = Time(self.at.0 + (new * 1_000_000 / u128::from(rate)) as u64);
        }
        self.tokens = self.tokens.min(most);
    }
}

/// What a sample says something of.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Beside {
    /// Clients without recovery, or with as little as can be.
    Nothing,
    /// Clients beside recovery.
    Recovery,
    /// Neither: between the two.
    Both,
}

/// A 99th percentile that follows what it is given: a histogram in which older samples count less and less.
#[derive(Debug)]
struct Tail {
    counts: [u32; TAIL_BUCKETS],
    count: u32,
    /// In µs, as of the last [`Tail::settle`]; up to a quarter more than it is. 0: not known.
    p99: u64,
}

impl Default for Tail {
    fn default() -> Tail {
        Tail { counts: [0; TAIL_BUCKETS], count: 0, p99: 0 }
    }
}

impl Tail {
    fn add(&mut self, took: u64) {
        let took = took.clamp(4, u64::MAX);
        let octave = took.ilog2() as usize;
        let bucket = 4 * (octave - 2) + (took >> (octave - 2)) as usize % 4;
        self.counts[bucket.min(TAIL_BUCKETS - 1)] += 1;
        self.count += 1;
    }

    /// Looks at what was added. Once in a tick: no operation pays for it.
    fn settle(&mut self) {
        while self.count >= TAIL_SAMPLES {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.count = self.counts.iter().sum();
        }
        let mut above = self.count / SLOW_ONE_IN as u32;
        let at = self.counts.iter().rposition(|count| {
            let here = *count > above;
            above = above.saturating_sub(*count);
            here
        });
        // The bucket's upper end.
        self.p99 = at.map_or(0, |at| (at as u64 % 4 + 5) << (at / 4));
    }
}

/// The latency of one kind of client operation: one at a time is timed.
#[derive(Debug, Default)]
struct Meter {
    /// What is timed, and since when.
    probe: Option<(u64, Time)>,
    sum: u64,
    count: u64,
    /// Those of them that were slow beside recovery.
    slow: u64,
    /// Samples beside recovery since the last decision, and the slow ones among them.
    seen: (u64, u64),
    /// Without recovery.
    usual: Tail,
    /// Means (µs) without recovery, or with as little as can be; and beside it. 0: not known.
    base: u64,
    beside: u64,
}

impl Meter {
    fn ended(&mut self, now: Time, beside: Beside) {
        let Some((_, since)) = self.probe.take() else { return };
        let took = now.since(since);
        self.sum += took;
        self.count += 1;
        match beside {
            Beside::Nothing => self.usual.add(took),
            Beside::Recovery => {
                let slow = self.usual.p99 > 0 && took > SLOW * self.usual.p99 + LATE_MORE_US;
                self.slow += u64::from(slow);
                self.seen = (self.seen.0 + 1, self.seen.1 + u64::from(slow));
            }
            Beside::Both => {}
        }
    }

    /// More clients were slow than there are without recovery. At the end of each cycle.
    fn take_slow(&mut self) -> bool {
        let (seen, slow) = self.seen;
        let late = slow >= SLOW_MIN && slow * SLOW_ONE_IN > seen;
        if late || seen >= SLOW_SAMPLES {
            self.seen = (0, 0);
        }
        late
    }

    /// What was seen beside recovery at another rate says nothing of the next.
    fn forget_beside(&mut self) {
        (self.beside, self.seen) = (0, (0, 0));
    }

    /// The last tick alone shows that clients are slow.
    fn take_slow_tick(&mut self, samples: u64) -> bool {
        let slow = std::mem::take(&mut self.slow);
        slow >= SLOW_MIN && slow * SLOW_ONE_IN_TICK > samples
    }

    /// The mean of the last tick; an operation that has not ended counts if that is all there is.
    fn take_mean(&mut self, now: Time) -> Option<u64> {
        let pending = self.probe.map_or(0, |(_, since)| now.since(since));
        let (sum, count) = (std::mem::take(&mut self.sum), std::mem::take(&mut self.count));
        if count > 0 {
            self.usual.settle();
        }
        let mean = (count >= SAMPLES_MIN).then(|| sum / count);
        // One that takes longer than a tick leaves no time for samples.
        mean.into_iter().chain((pending >= 100_000).then_some(pending)).max()
    }

    fn learn(value: &mut u64, mean: u64) {
        *value = if *value == 0 { mean.max(1) } else { (*value * (WEIGHT - 1) + mean).div_ceil(WEIGHT) };
    }

    fn is_late(&self) -> bool {
        self.base > 0 && self.beside > self.base + self.base / 2 + LATE_MORE_US
    }

    fn is_gross(&self, mean: u64) -> bool {
        self.base > 0 && mean > self.base * GROSS + GROSS_MORE_US
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Budget {
    config: BudgetConfig,
    rate: u64,
    /// By way.
    buckets: [Bucket; 2],
    /// Somebody has waited since the last tick.
    limited: bool,
    /// Something was taken since the last tick.
    used: bool,
    /// Somebody has waited in this cycle.
    wanted: bool,
    /// Bytes that were taken beside clients in this cycle, by way, and in how many ticks.
    cycle_taken: [u64; 2],
    cycle_ticks: u64,
    /// Clients have not been late since recovery began.
    fast: bool,
    /// Ticks of this cycle.
    phase: u32,
    /// Clients were seen in the last cycle, and in this one.
    clients: (bool, bool),
    idle_for: u32,
    writes: Meter,
    reads: Meter,
    counters: BudgetCounters,
}

impl Budget {
    pub fn new(config: BudgetConfig) -> Budget {
        let bucket = || Bucket { tokens: config.burst as i64, at: Time(0) };
        let mut budget = Budget {
            config,
            rate: 0,
            buckets: [bucket(), bucket()],
            limited: false,
            used: false,
            wanted: false,
            cycle_taken: [0; 2],
            cycle_ticks: 0,
            fast: true,
            phase: 0,
            clients: (true, false),
            idle_for: 0,
            writes: Meter::default(),
            reads: Meter::default(),
            counters: BudgetCounters::default(),
        };
        budget.configure(config);
        budget.rate = budget.config.floor;
        budget
    }

    /// Takes other bounds; what is known of clients stays.
    pub fn configure(&mut self, config: BudgetConfig) {
        let floor = config.floor.max(1);
        // Within what can be counted with: more is no limit.
        let (most, burst) = (1 << 40, config.burst.clamp(1, 1 << 32));
        self.config =
            BudgetConfig { floor: floor.min(most), ceiling: config.ceiling.clamp(floor, most), burst };
        self.rate = self.rate.clamp(self.config.floor, self.config.ceiling);
    }

    /// What counts now.
    fn rate_now(&self) -> u64 {
        if self.phase < LOW && self.clients.0 { self.config.floor } else { self.rate }
    }

    fn most(&self) -> i64 {
        (self.rate_now() / 1000 * BURST_US / 1000).max(self.config.burst) as i64
    }

    /// Takes as many bytes, if there are so many; if they are more than ever come at once, when the bucket is
    /// full.
    pub fn take(&mut self, now: Time, way: Way, bytes: u64) -> bool {
        let (most, rate) = (self.most(), self.rate_now());
        let bucket = &mut self.buckets[way as usize];
        bucket.refill(now, rate, most);
        let there = bucket.tokens >= (bytes as i64).min(most);
        if there {
            bucket.tokens -= bytes as i64;
            self.counters.taken += bytes;
            self.cycle_taken[way as usize] += bytes;
            self.used = true;
        } else {
            self.limited = true;
        }
        there
    }

    /// Takes them without asking: a client waits. Others wait for that no longer than for a full bucket.
    pub fn take_at_once(&mut self, now: Time, way: Way, bytes: u64) {
        let (most, rate) = (self.most(), self.rate_now());
        let bucket = &mut self.buckets[way as usize];
        bucket.refill(now, rate, most);
        bucket.tokens = (bucket.tokens - bytes as i64).max(-most);
        self.counters.taken += bytes;
        self.counters.exempt += bytes;
        self.used = true;
    }

    /// Gives back what was taken and not needed.
    pub fn give_back(&mut self, way: Way, bytes: u64) {
        let most = self.most();
        let bucket = &mut self.buckets[way as usize];
        bucket.tokens = (bucket.tokens + bytes as i64).min(most);
        self.counters.taken = self.counters.taken.saturating_sub(bytes);
        let taken = &mut self.cycle_taken[way as usize];
        *taken = taken.saturating_sub(bytes);
    }

    /// Something else was put off for want of tokens.
    pub fn put_off(&mut self) {
        self.limited = true;
    }

    /// Bytes that may be taken in so long (µs) at the rate of now.
    pub fn in_time(&self, us: u64) -> u64 {
        (u128::from(self.rate) * u128::from(us) / 1_000_000) as u64
    }

    /// What a client's operation that ends now was beside of.
    fn beside(&self) -> Beside {
        if self.idle_for > 0 && !self.used && !self.limited || self.phase + 1 == LOW && self.clients.0 {
            Beside::Nothing
        } else if self.phase >= LOW {
            Beside::Recovery
        } else {
            Beside::Both
        }
    }

    /// A client's write was given out with this ticket.
    pub fn write_begins(&mut self, now: Time, ticket: Ticket) {
        self.writes.probe.get_or_insert((ticket, now));
    }

    /// Everything up to this ticket is durable.
    pub fn durable(&mut self, now: Time, ticket: Ticket) {
        if self.writes.probe.is_some_and(|(probe, _)| probe <= ticket) {
            let beside = self.beside();
            self.writes.ended(now, beside);
        }
    }

    /// A client's read was given to the store.
    pub fn read_begins(&mut self, now: Time, token: u64) {
        self.reads.probe.get_or_insert((token, now));
    }

    /// A read has ended.
    pub fn read_ends(&mut self, now: Time, token: u64) {
        if self.reads.probe.is_some_and(|(probe, _)| probe == token) {
            let beside = self.beside();
            self.reads.ended(now, beside);
        }
    }

    /// The end of a tick, about 100 ms: looks at what clients saw, and sets the rate.
    pub fn tick(&mut self, now: Time) {
        // What has come until now has come at this tick's rate.
        let (most, rate) = (self.most(), self.rate_now());
        self.buckets.iter_mut().for_each(|bucket| bucket.refill(now, rate, most));
        let (used, limited) = (std::mem::take(&mut self.used), std::mem::take(&mut self.limited));
        let busy = used || limited;
        match self.phase.cmp(&LOW) {
            Ordering::Less => (self.cycle_taken, self.cycle_ticks) = ([0; 2], 0),
            _ => self.cycle_ticks += 1,
        }
        self.wanted |= limited && self.phase >= LOW;
        let mut gross = false;
        for meter in [&mut self.writes, &mut self.reads] {
            gross |= meter.take_slow_tick(meter.count);
            let Some(mean) = meter.take_mean(now) else { continue };
            self.clients.1 = true;
            if !busy || self.phase + 1 == LOW {
                Meter::learn(&mut meter.base, mean);
            } else if self.phase >= LOW {
                Meter::learn(&mut meter.beside, mean);
                gross |= meter.is_gross(mean);
            }
        }
        self.idle_for = if busy { 0 } else { self.idle_for.saturating_add(1) };
        if self.idle_for >= FORGET_TICKS {
            (self.rate, self.fast, self.phase, self.wanted) = (self.config.floor, true, 0, false);
            self.forget_beside();
            self.clients = (true, false);
            return;
        }
        self.phase += 1;
        if gross {
            self.lower();
        } else if self.phase < CYCLE {
            return;
        } else {
            let slow = [self.writes.take_slow(), self.reads.take_slow()].contains(&true);
            if slow || self.writes.is_late() || self.reads.is_late() {
                self.lower();
            } else if self.wanted {
                self.raise();
            }
        }
        // The next cycle: after what was beyond doubt at once, to see whether clients are slow without recovery too.
        if !self.clients.1 {
            self.forget_beside();
        }
        self.clients = (self.clients.1, false);
        (self.phase, self.wanted) = (0, false);
    }

    fn lower(&mut self) {
        self.counters.lowered += u64::from(self.rate > self.config.floor);
        // A rate that nobody makes use of could be halved again and again without any effect.
        let taken = self.cycle_taken[0].max(self.cycle_taken[1]);
        let used = (taken * TICKS_PER_S).checked_div(self.cycle_ticks).unwrap_or(self.rate);
        (self.rate, self.fast) = ((self.rate.min(used) / 2).max(self.config.floor), false);
        (self.cycle_taken, self.cycle_ticks) = ([0; 2], 0);
        // What was seen at the old rate says nothing of the new one.
        self.forget_beside();
    }

    fn forget_beside(&mut self) {
        self.writes.forget_beside();
        self.reads.forget_beside();
    }

    fn raise(&mut self) {
        let BudgetConfig { floor, ceiling, .. } = self.config;
        let step = if self.fast { self.rate } else { (ceiling / STEP_PART).max(floor) };
        self.rate = self.rate.saturating_add(step).min(ceiling);
    }

    pub fn counters(&self) -> BudgetCounters {
        BudgetCounters { rate: self.rate, ..self.counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PIECE: u64 = 512 << 10;

    fn budget() -> Budget {
        Budget::new(BudgetConfig { floor: 8 * MIB, ceiling: 256 * MIB, ..BudgetConfig::default() })
    }

    /// Recovery that takes what it gets for some ticks, beside clients whose writes take so long (µs) at a
    /// rate. Says how many bytes it got.
    fn run(budget: &mut Budget, now: &mut u64, ticks: u32, client: impl Fn(u64) -> Option<u64>) -> u64 {
        let mut got = 0;
        for _ in 0..ticks {
            for _ in 0..10 {
                *now += 10_000;
                while budget.take(Time(*now), Way::In, PIECE) {
                    got += PIECE;
                }
                if let Some(took) = client(budget.rate_now()) {
                    budget.write_begins(Time(*now - took), 1);
                    budget.durable(Time(*now), 1);
                }
            }
            budget.tick(Time(*now));
            assert!((8 * MIB..=256 * MIB).contains(&budget.rate));
        }
        got
    }

    #[test]
    fn no_more_than_the_ceiling_and_no_less_than_the_floor() {
        let (mut budget, mut now) = (budget(), 0);
        // Nobody else is there: up to the ceiling, soon.
        run(&mut budget, &mut now, 40, |_| None);
        assert_eq!(budget.rate, 256 * MIB);
        let got = run(&mut budget, &mut now, 100, |_| None);
        assert!(got <= 2560 * MIB + budget.most() as u64 && got > 2400 * MIB, "{got}");
        // Whatever is above the floor harms clients.
        let (mut budget, mut now) = (self::budget(), 0);
        let client = |rate: u64| Some(if rate > 8 * MIB { 9_000 } else { 1_000 });
        run(&mut budget, &mut now, 100, client);
        let got = run(&mut budget, &mut now, 100, client);
        assert!((75 * MIB..=140 * MIB).contains(&got), "{} MiB in 10 s", got / MIB);
    }

    #[test]
    fn the_rate_settles_where_clients_are_in_time() {
        // Usual: 1 ms; from 100 MiB/s on repairs cost clients another 2 ms.
        let client = |rate: u64| Some(if rate > 100 * MIB { 3000 } else { 1000 });
        let (mut budget, mut now) = (budget(), 0);
        run(&mut budget, &mut now, 50, client);
        let (mut late, mut sum) = (0, 0);
        for _ in 0..400 {
            run(&mut budget, &mut now, 1, client);
            late += u32::from(budget.rate_now() > 100 * MIB);
            sum += budget.rate / MIB;
        }
        assert!(late < 100, "{late} of 400 ticks above what clients bear");
        assert!((50..100).contains(&(sum / 400)), "{} MiB/s on average", sum / 400);
    }

    /// Clients become slower, and one tick is as slow as another for reasons of its own: neither is recovery's
    /// doing.
    #[test]
    fn what_is_not_the_doing_of_recovery_does_not_hold_it_back() {
        let (mut budget, mut now) = (budget(), 0);
        run(&mut budget, &mut now, 50, |_| Some(500));
        assert_eq!(budget.rate, 256 * MIB);
        run(&mut budget, &mut now, 300, |_| Some(5000));
        assert!(budget.rate > 64 * MIB, "5 ms is usual now: {} MiB/s", budget.rate / MIB);
        let (mut draw, mut sum) = (7u64, 0);
        for _ in 0..1000 {
            draw = draw.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let took = 2000 + (draw >> 33) % 4000;
            run(&mut budget, &mut now, 1, |_| Some(took));
            sum += budget.rate / MIB;
        }
        assert!(sum / 1000 > 32, "{} MiB/s on average in spite of noise", sum / 1000);
    }

    /// The mean does not show it: of 25 writes one takes 10 ms, the others 2.
    #[test]
    fn clients_slowest_operations_count_and_not_only_their_mean() {
        let (mut budget, mut now) = (budget(), 0);
        let n = std::cell::Cell::new(0u64);
        let client = |rate: u64| {
            n.set(n.get() + 1);
            Some(if rate > 64 * MIB && n.get().is_multiple_of(25) { 10_000 } else { 2_000 })
        };
        run(&mut budget, &mut now, 300, client);
        let above = (0..400).filter(|_| {
            run(&mut budget, &mut now, 1, client);
            budget.rate_now() > 64 * MIB
        });
        let above = above.count();
        assert!(above < 150, "{above} of 400 ticks above what clients bear");
        assert!(budget.counters().lowered > 3, "by nothing but these");
        // The same without any recovery's doing: that is how the device is.
        let (mut budget, mut now) = (self::budget(), 0);
        let client = |_| {
            n.set(n.get() + 1);
            Some(if n.get().is_multiple_of(25) { 10_000 } else { 2_000 })
        };
        run(&mut budget, &mut now, 300, client);
        assert_eq!(budget.rate, 256 * MIB);
    }

    #[test]
    fn what_is_lowered_is_what_was_taken() {
        let (mut budget, mut now) = (budget(), 0);
        run(&mut budget, &mut now, 60, |_| Some(1_000));
        assert_eq!(budget.rate, 256 * MIB);
        // Repairs have become few for another reason: 5 MiB/s.
        let mut trickle = |budget: &mut Budget, ticks: u32, took: u64| {
            for _ in 0..ticks {
                for _ in 0..10 {
                    now += 10_000;
                    budget.write_begins(Time(now - took), 1);
                    budget.durable(Time(now), 1);
                }
                assert!(budget.take(Time(now), Way::In, MIB / 2));
                budget.tick(Time(now));
            }
        };
        trickle(&mut budget, 16, 1_000);
        trickle(&mut budget, 6, 9_900);
        assert_eq!(budget.rate, 8 * MIB);
    }

    #[test]
    fn the_99th_percentile_is_found_and_followed() {
        let (mut tail, mut draw) = (Tail::default(), 7u64);
        let mut found = Vec::new();
        for n in 0..20_000u64 {
            draw = draw.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            tail.add(1 + (draw >> 33) % 1000);
            tail.settle();
            found.extend((n > 1_000).then_some(tail.p99));
        }
        assert!(found.iter().all(|p99| (896..=1280).contains(p99)), "{:?}", found.iter().max());
        // A device of another kind.
        let add = |tail: &mut Tail, times: u32, took: u64| {
            for _ in 0..times {
                tail.add(took);
                tail.settle();
            }
        };
        add(&mut tail, 10, 20_000);
        assert!((20_000..=25_000).contains(&tail.p99), "{}", tail.p99);
        add(&mut tail, 3_000, 500);
        assert!((500..=640).contains(&tail.p99), "{}", tail.p99);
        add(&mut tail, 10, u64::MAX);
        add(&mut tail, 3_000, 0);
        assert_eq!(tail.p99, 5);
    }

    #[test]
    fn what_a_client_waits_for_is_taken_at_once_and_paid_within_bounds() {
        let mut budget = budget();
        let now = Time(1_000_000);
        for _ in 0..1000 {
            budget.take_at_once(now, Way::In, PIECE);
        }
        assert!(!budget.take(now, Way::In, PIECE));
        assert!(budget.take(now, Way::Out, PIECE), "the other way is not touched");
        let later = Time(now.0 + 1_000_000);
        assert!(budget.take(later, Way::In, PIECE), "recovery goes on within a second");
        assert_eq!(budget.counters().exempt, 1000 * PIECE);
    }

    #[test]
    fn small_rates_do_not_lose_what_is_less_than_a_byte() {
        let mut budget = Budget::new(BudgetConfig { floor: 1000, ceiling: 1000, burst: 500 });
        let mut got = 0;
        for now in 0..2_000_000 {
            got += u64::from(budget.take(Time(now), Way::In, 1));
        }
        assert!((2400..=2501).contains(&got), "{got} bytes in 2 s");
    }
}
