//! How much of a node recovery may take: client I/O first, recovery what is left (P6).
//!
//! Two token buckets in bytes, one for what repairs read here for others and one for what they bring here, and
//! one rate for both. The rate follows what clients see of this node: how long their writes take until they are
//! durable, and their reads until the store has answered, against how long both took lately when no repair was
//! running. Later than that by half: the rate is halved. In time, and repairs waited for tokens: the rate
//! grows, by doubling until clients were late for the first time, in steps from then on (the additive increase
//! and multiplicative decrease of congestion control, Chiu and Jain 1989; the base is that of delay-based
//! controllers such as TCP Vegas).
//!
//! It never falls below the floor, so that redundancy always comes back; and at the floor the base is learned
//! anew, slowly, so that a node whose clients have become busier themselves does not stay there for ever.
//!
//! What a client waits for is taken from the tokens, and never waits for them. Nothing here knows what a
//! repair is; `repair.rs` and `peers.rs` ask.

use super::Ticket;
use crate::ids::{BLOCK_SIZE, Time};
use crate::limits::PIECE_BLOCKS_MAX;

/// Taken for each piece besides its data (bytes): tables are read and compared also where nothing differs.
pub(super) const PIECE_COST: u64 = 16 << 10;
/// Tokens that a bucket holds at most: those of so long (µs), but some pieces' worth. What comes at once after a
/// pause is no more than this.
const BURST_US: u64 = 125_000;
/// Samples in one tick below which it says nothing of clients.
const SAMPLES_MIN: u64 = 3;
/// Late: above the base by half, and by so much (µs), which is less than a client can see.
const LATE_MORE_US: u64 = 300;
/// Ticks without growth after clients were late.
const CALM_TICKS: u32 = 3;
/// The rate grows by this part of the ceiling in a tick, but at least by the floor.
const STEP_PART: u64 = 256;
/// Ticks without any recovery after which the next one begins at the floor.
const FORGET_TICKS: u32 = 50;
/// Weight of a tick in the base when nothing is repaired, and when the rate is at the floor; one in so many.
const LEARN: u64 = 8;
const LEARN_AT_FLOOR: u64 = 512;

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

/// The latency of one kind of client operation: one at a time is timed.
#[derive(Debug, Default)]
struct Meter {
    /// What is timed, and since when.
    probe: Option<(u64, Time)>,
    sum: u64,
    count: u64,
    /// The mean that is usual, times [`LEARN_AT_FLOOR`] (µs); 0: not known.
    base: u64,
}

impl Meter {
    fn ended(&mut self, now: Time) {
        if let Some((_, since)) = self.probe.take() {
            self.sum += now.since(since);
            self.count += 1;
        }
    }

    /// The mean of the last tick; an operation that has not ended counts if that is all there is.
    fn take_mean(&mut self, now: Time) -> Option<u64> {
        let pending = self.probe.map_or(0, |(_, since)| now.since(since));
        let (sum, count) = (std::mem::take(&mut self.sum), std::mem::take(&mut self.count));
        let mean = (count >= SAMPLES_MIN).then(|| sum / count);
        // One that takes longer than a tick leaves no time for samples.
        mean.into_iter().chain((pending >= 100_000).then_some(pending)).max()
    }

    fn is_late(&self, mean: u64) -> bool {
        let base = self.base / LEARN_AT_FLOOR;
        self.base > 0 && mean > base + base / 2 + LATE_MORE_US
    }

    fn learn(&mut self, mean: u64, weight: u64) {
        if self.base == 0 {
            self.base = (mean * LEARN_AT_FLOOR).max(1);
        } else {
            let (old, new) = (self.base, mean * LEARN_AT_FLOOR);
            self.base = (old - old / weight + new / weight).max(1);
        }
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
    /// Clients have not been late since recovery began.
    doubling: bool,
    calm_for: u32,
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
            doubling: true,
            calm_for: 0,
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

    fn most(&self) -> i64 {
        (self.rate / 1000 * BURST_US / 1000).max(self.config.burst) as i64
    }

    /// Takes as many bytes, if there are so many; if they are more than ever come at once, when the bucket is
    /// full.
    pub fn take(&mut self, now: Time, way: Way, bytes: u64) -> bool {
        let most = self.most();
        let bucket = &mut self.buckets[way as usize];
        bucket.refill(now, self.rate, most);
        let there = bucket.tokens >= (bytes as i64).min(most);
        if there {
            bucket.tokens -= bytes as i64;
            self.counters.taken += bytes;
            self.used = true;
        } else {
            self.limited = true;
        }
        there
    }

    /// Takes them without asking: a client waits. Others wait for that no longer than for a full bucket.
    pub fn take_at_once(&mut self, now: Time, way: Way, bytes: u64) {
        let most = self.most();
        let bucket = &mut self.buckets[way as usize];
        bucket.refill(now, self.rate, most);
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
    }

    /// Something else was put off for want of tokens.
    pub fn put_off(&mut self) {
        self.limited = true;
    }

    /// Bytes that may be taken in so long (µs) at the rate of now.
    pub fn in_time(&self, us: u64) -> u64 {
        (u128::from(self.rate) * u128::from(us) / 1_000_000) as u64
    }

    /// A client's write was given out with this ticket.
    pub fn write_begins(&mut self, now: Time, ticket: Ticket) {
        self.writes.probe.get_or_insert((ticket, now));
    }

    /// Everything up to this ticket is durable.
    pub fn durable(&mut self, now: Time, ticket: Ticket) {
        if self.writes.probe.is_some_and(|(probe, _)| probe <= ticket) {
            self.writes.ended(now);
        }
    }

    /// A client's read was given to the store.
    pub fn read_begins(&mut self, now: Time, token: u64) {
        self.reads.probe.get_or_insert((token, now));
    }

    /// A read has ended.
    pub fn read_ends(&mut self, now: Time, token: u64) {
        if self.reads.probe.is_some_and(|(probe, _)| probe == token) {
            self.reads.ended(now);
        }
    }

    /// The end of a tick, about 100 ms: looks at what clients saw, and sets the rate.
    pub fn tick(&mut self, now: Time) {
        let (used, limited) = (std::mem::take(&mut self.used), std::mem::take(&mut self.limited));
        let busy = used || limited;
        let BudgetConfig { floor, ceiling, .. } = self.config;
        let (mut late, mut unknown) = (false, false);
        for meter in [&mut self.writes, &mut self.reads] {
            let Some(mean) = meter.take_mean(now) else { continue };
            late |= meter.is_late(mean);
            if !busy {
                meter.learn(mean, LEARN);
            } else if mean * LEARN_AT_FLOOR < meter.base {
                meter.learn(mean, LEARN); // in time in spite of repairs
            } else if self.rate == floor {
                meter.learn(mean, LEARN_AT_FLOOR);
            } else {
                unknown |= meter.base == 0;
            }
        }
        self.idle_for = if busy { 0 } else { self.idle_for.saturating_add(1) };
        self.calm_for = if late { 0 } else { self.calm_for.saturating_add(1) };
        if self.idle_for == FORGET_TICKS {
            (self.rate, self.doubling) = (floor, true);
        } else if unknown {
            // Clients have come whose base is not known: it is what they see now, at the floor.
            self.rate = floor;
        } else if late && busy {
            self.counters.lowered += u64::from(self.rate > floor);
            (self.rate, self.doubling) = ((self.rate / 2).max(floor), false);
        } else if limited && (self.doubling || self.calm_for > CALM_TICKS) {
            let step = if self.doubling { self.rate } else { (ceiling / STEP_PART).max(floor) };
            self.rate = self.rate.saturating_add(step).min(ceiling);
        }
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
                if let Some(took) = client(budget.rate) {
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
        run(&mut budget, &mut now, 10, |_| None);
        assert_eq!(budget.rate, 256 * MIB);
        let got = run(&mut budget, &mut now, 100, |_| None);
        assert!(got <= 2560 * MIB + budget.most() as u64 && got > 2400 * MIB, "{got}");
        // Clients see nothing but harm.
        let (mut budget, mut now) = (self::budget(), 0);
        for _ in 0..20 {
            now += 10_000;
            budget.write_begins(Time(now - 1000), 1);
            budget.durable(Time(now), 1);
        }
        budget.tick(Time(now));
        let got = run(&mut budget, &mut now, 100, |_| Some(9_000));
        assert!(got >= 70 * MIB && got <= 120 * MIB, "{got} bytes in 10 s");
    }

    #[test]
    fn the_rate_settles_where_clients_are_in_time() {
        let (mut budget, mut now) = (budget(), 0);
        // Usual: 1 ms; from 100 MiB/s on repairs cost clients another 2 ms.
        let client = |rate: u64| Some(if rate > 100 * MIB { 3000 } else { 1000 });
        for _ in 0..40 {
            now += 10_000;
            budget.write_begins(Time(now - 1000), 1);
            budget.durable(Time(now), 1);
            if now % 100_000 == 0 {
                budget.tick(Time(now));
            }
        }
        run(&mut budget, &mut now, 50, client);
        let mut late = 0;
        let mut sum = 0;
        for _ in 0..200 {
            run(&mut budget, &mut now, 1, client);
            late += u32::from(budget.rate > 100 * MIB);
            sum += budget.rate / MIB;
        }
        assert!(late < 50, "{late} of 200 ticks above what clients bear");
        assert!((40..100).contains(&(sum / 200)), "{} MiB/s on average", sum / 200);
    }

    #[test]
    fn clients_that_have_become_slower_themselves_are_not_waited_for_without_end() {
        let (mut budget, mut now) = (budget(), 0);
        for _ in 0..40 {
            now += 10_000;
            budget.write_begins(Time(now - 500), 1);
            budget.durable(Time(now), 1);
        }
        budget.tick(Time(now));
        run(&mut budget, &mut now, 20, |_| Some(5000));
        assert_eq!(budget.rate, 8 * MIB);
        run(&mut budget, &mut now, 1000, |_| Some(5000));
        assert!(budget.rate > 8 * MIB, "5 ms is usual now");
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
