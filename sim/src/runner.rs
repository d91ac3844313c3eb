//! Runs seeds: one, a range on several threads, or as many as there is time for; and says what happened.

use crate::check::Violation;
use crate::coverage::Coverage;
use crate::plan::{Bug, Plan};
use crate::trace::Line;
use crate::world::World;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Steps of the first phase where nothing else is asked for.
pub const STEPS_DEFAULT: u64 = 12_000;

/// Which runs.
#[derive(Copy, Clone, Debug)]
pub struct Settings {
    /// Steps of the first phase.
    pub steps: u64,
    /// A rule that is broken.
    pub bug: Option<Bug>,
    /// No faults at all.
    pub calm: bool,
    /// Every run is one of a good cluster with one node at a time in trouble: see [`Plan::brisk`].
    pub brisk: bool,
    /// Only what a client could see is checked.
    pub outside_only: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { steps: STEPS_DEFAULT, bug: None, calm: false, brisk: false, outside_only: false }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Events.
    pub steps: u64,
    /// Virtual time (µs).
    pub time: u64,
    /// The hash of all that happened.
    pub hash: u64,
    /// What happened, counted.
    pub coverage: Coverage,
    /// What must not be, if it was.
    pub violation: Option<Box<Violation>>,
    /// The longest operation (µs), if only one node was in trouble at a time.
    pub longest: u64,
    /// The trace, if words were wanted.
    pub lines: Vec<Line>,
    /// What was wrong with the cluster at the end, for people.
    pub wrong: String,
    /// The plan, for people.
    pub plan: String,
}

fn plan_of(seed: u64, settings: &Settings) -> Plan {
    let plan = Plan::new(seed, settings.steps, settings.bug);
    let plan = if settings.brisk { plan.brisk() } else { plan };
    if settings.calm { plan.calm() } else { plan }
}

fn switch(bug: Option<Bug>) {
    #[cfg(feature = "deliberate-bugs")]
    trefoil_core::bugs::set(match bug {
        Some(Bug::AckAtOneCopy) => Some(trefoil_core::bugs::Bug::AckAtOneCopy),
        Some(Bug::StaleCopyWithoutVote) => Some(trefoil_core::bugs::Bug::StaleCopyWithoutVote),
        Some(Bug::HedgeOvertakesWrite) => Some(trefoil_core::bugs::Bug::HedgeOvertakesWrite),
        Some(Bug::DeleteWithoutCompare) => Some(trefoil_core::bugs::Bug::DeleteWithoutCompare),
        Some(Bug::FinalWithoutCheck) => Some(trefoil_core::bugs::Bug::FinalWithoutCheck),
        Some(Bug::NoReopen) => Some(trefoil_core::bugs::Bug::NoReopen),
        Some(Bug::ListWithoutEpoch) => Some(trefoil_core::bugs::Bug::ListWithoutEpoch),
        Some(Bug::SupersededApplies) => Some(trefoil_core::bugs::Bug::SupersededApplies),
        Some(Bug::NewReignWaitsForNobody) => Some(trefoil_core::bugs::Bug::NewReignWaitsForNobody),
        Some(Bug::RenewalSlipsIn) => Some(trefoil_core::bugs::Bug::RenewalSlipsIn),
        Some(Bug::RestoreSkipsNothing) => Some(trefoil_core::bugs::Bug::RestoreSkipsNothing),
        Some(Bug::ScrubFirstWins) => Some(trefoil_core::bugs::Bug::ScrubFirstWins),
        Some(Bug::ScrubMinorityWins) => Some(trefoil_core::bugs::Bug::ScrubMinorityWins),
        Some(Bug::RepairForgetsDoubts) => Some(trefoil_core::bugs::Bug::RepairForgetsDoubts),
        Some(Bug::SplitWithoutPromise) => Some(trefoil_core::bugs::Bug::SplitWithoutPromise),
        Some(Bug::SplitWithoutRecord) => Some(trefoil_core::bugs::Bug::SplitWithoutRecord),
        Some(Bug::WrongGroup) => Some(trefoil_core::bugs::Bug::WrongGroup),
        Some(Bug::SplitFromRoundZero) => Some(trefoil_core::bugs::Bug::SplitFromRoundZero),
        Some(Bug::HealersAskNobody) => Some(trefoil_core::bugs::Bug::HealersAskNobody),
        Some(Bug::AllInSyncForgotten) => Some(trefoil_core::bugs::Bug::AllInSyncForgotten),
        Some(Bug::DoubtedNodeCounts) => Some(trefoil_core::bugs::Bug::DoubtedNodeCounts),
        Some(_) | None => None,
    });
    let _ = bug;
}

/// Bugs of what stands around the machines; every build has them.
const OURS: [Bug; 5] = [
    Bug::SkipFlush,
    Bug::NoHedges,
    Bug::RenewWithoutConfirm,
    Bug::ReignBeforeOwnEntry,
    Bug::EmptyMonitorVotes,
];

/// True if this build can be given the bug.
pub fn has_bug(bug: Bug) -> bool {
    OURS.contains(&bug) || cfg!(feature = "deliberate-bugs")
}

/// Runs one seed. `words`: how many of the last lines are kept, of those that concern the object of a
/// violation; `usize::MAX` for all that concern anything; 0 for a run without words.
pub fn run(seed: u64, settings: &Settings, words: usize) -> Outcome {
    switch(settings.bug);
    let plan = plan_of(seed, settings);
    let summary = format!(
        "{} monitors, {} nodes, {} PGs, {} volumes of {} objects of {} blocks (from {}), {} clients, lease {} µs, drift {} \
         ppm; {}; answered by {}; {}faults: {}",
        plan.monitors.as_ref().map_or(0, |monitors| monitors.count),
        plan.nodes,
        plan.pgs.len(),
        plan.volumes,
        plan.objects,
        plan.blocks,
        plan.first_block,
        plan.clients,
        plan.lease,
        plan.drift_ppm,
        match &plan.moves {
            None => "nothing moves",
            Some(moves) if moves.split_every.is_some() => "PGs move and split",
            Some(_) => "PGs move",
        },
        match (plan.all_in_sync, plan.ack_changes) {
            (false, _) => "a majority",
            (true, None) => "all in line",
            (true, Some(_)) => "all in line or a majority, in turns",
        },
        if plan.silent.is_some() { "state is lost unnoticed; " } else { "" },
        plan.fault_names()
    );
    let mut world = World::new(plan, words > 0);
    world.outside_only = settings.outside_only;
    // A panic of a machine is a finding like any other, and has a seed.
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    switch(None);
    if let Some(panic) = panicked {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        world.violation.get_or_insert(Violation::plain("no panic", text.to_string()));
    }
    let object = world.violation.as_ref().and_then(|v| v.object).filter(|_| words < usize::MAX);
    Outcome {
        seed,
        steps: world.steps,
        time: world.now,
        hash: world.trace.hash(),
        coverage: world.coverage,
        longest: world.longest,
        wrong: if words > 0 { world.wrong_now() } else { String::new() },
        lines: if words > 0 { world.trace.last(words, object) } else { Vec::new() },
        violation: world.violation.take(),
        plan: summary,
    }
}

/// The line that reproduces a run.
pub fn reproduce(seed: u64, settings: &Settings) -> String {
    let mut line = String::from("cargo run --release -p trefoil-sim");
    let bug = match settings.bug {
        None => None,
        Some(Bug::SkipFlush) => Some("skip-flush"),
        Some(Bug::AckAtOneCopy) => Some("ack-at-one-copy"),
        Some(Bug::StaleCopyWithoutVote) => Some("stale-copy-without-vote"),
        Some(Bug::HedgeOvertakesWrite) => Some("hedge-overtakes-write"),
        Some(Bug::NoHedges) => Some("no-hedges"),
        Some(Bug::DeleteWithoutCompare) => Some("delete-without-compare"),
        Some(Bug::FinalWithoutCheck) => Some("final-without-check"),
        Some(Bug::NoReopen) => Some("no-reopen"),
        Some(Bug::ListWithoutEpoch) => Some("list-without-epoch"),
        Some(Bug::SupersededApplies) => Some("superseded-applies"),
        Some(Bug::NewReignWaitsForNobody) => Some("new-reign-waits-for-nobody"),
        Some(Bug::RenewalSlipsIn) => Some("renewal-slips-in"),
        Some(Bug::RestoreSkipsNothing) => Some("restore-skips-nothing"),
        Some(Bug::RenewWithoutConfirm) => Some("renew-without-confirm"),
        Some(Bug::ReignBeforeOwnEntry) => Some("reign-before-own-entry"),
        Some(Bug::EmptyMonitorVotes) => Some("empty-monitor-votes"),
        Some(Bug::ScrubFirstWins) => Some("scrub-first-wins"),
        Some(Bug::ScrubMinorityWins) => Some("scrub-minority-wins"),
        Some(Bug::RepairForgetsDoubts) => Some("repair-forgets-doubts"),
        Some(Bug::SplitWithoutPromise) => Some("split-without-promise"),
        Some(Bug::SplitWithoutRecord) => Some("split-without-record"),
        Some(Bug::WrongGroup) => Some("wrong-group"),
        Some(Bug::SplitFromRoundZero) => Some("split-from-round-zero"),
        Some(Bug::AllInSyncForgotten) => Some("all-in-sync-forgotten"),
        Some(Bug::DoubtedNodeCounts) => Some("doubted-node-counts"),
        Some(Bug::HealersAskNobody) => Some("healers-ask-nobody"),
    };
    if bug.is_some() {
        line += " --features deliberate-bugs";
    }
    let _ = write!(line, " -- --seed {seed} --steps {}", settings.steps);
    if let Some(bug) = bug {
        let _ = write!(line, " --bug {bug}");
    }
    if settings.calm {
        line += " --calm";
    }
    if settings.brisk {
        line += " --brisk";
    }
    if settings.outside_only {
        line += " --outside-only";
    }
    line
}

/// Words about a failure: the seed, its plan, the last events about the object, the values, and the line
/// that reproduces it. Runs the seed again, with words.
pub fn report(outcome: &Outcome, settings: &Settings, words: usize) -> String {
    let again = run(outcome.seed, settings, words);
    let mut text = String::new();
    let Some(violation) = &again.violation else {
        return format!(
            "seed {} failed once and not again: the simulator is not deterministic",
            outcome.seed
        );
    };
    let _ = writeln!(text, "seed {}: {}", again.seed, again.plan);
    for line in &again.lines {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "at that moment: {}", again.wrong);
    let _ = writeln!(
        text,
        "FAILED at step {}, {} µs: {} is violated: {}",
        again.steps, again.time, violation.invariant, violation.what
    );
    let _ = write!(text, "reproduce: {}", reproduce(again.seed, settings));
    text
}

/// What many runs add up to.
#[derive(Debug, Default)]
pub struct Totals {
    /// Seeds that were run.
    pub seeds: u64,
    /// Their events.
    pub steps: u64,
    /// Their coverage.
    pub coverage: Coverage,
    /// The longest operation (µs) of runs in which only one node was in trouble at a time.
    pub longest: u64,
    /// The failures, at most [`FAILURES_MAX`], by seed.
    pub failures: Vec<Outcome>,
}

/// A run of many seeds ends after so many failures.
pub const FAILURES_MAX: usize = 10;

/// Runs seeds from `first` up to `end` (if given) or until `time` is over, on `jobs` threads.
pub fn run_many(
    first: u64,
    end: Option<u64>,
    time: Option<Duration>,
    jobs: usize,
    settings: &Settings,
    failures_max: usize,
) -> Totals {
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                let mut mine = Totals::default();
                while !stop.load(Ordering::Relaxed) && time.is_none_or(|time| started.elapsed() < time) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if end.is_some_and(|end| seed >= end) {
                        break;
                    }
                    let outcome = run(seed, settings, 0);
                    mine.seeds += 1;
                    mine.steps += outcome.steps;
                    mine.coverage.merge(&outcome.coverage);
                    mine.longest = mine.longest.max(outcome.longest);
                    if outcome.violation.is_some() {
                        mine.failures.push(outcome);
                        let mut sum = totals.lock().unwrap_or_else(|e| e.into_inner());
                        sum.failures.append(&mut mine.failures);
                        if sum.failures.len() >= failures_max {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
                let mut sum = totals.lock().unwrap_or_else(|e| e.into_inner());
                sum.seeds += mine.seeds;
                sum.steps += mine.steps;
                sum.coverage.merge(&mine.coverage);
                sum.longest = sum.longest.max(mine.longest);
            });
        }
    });
    let mut totals = totals.into_inner().unwrap_or_else(|e| e.into_inner());
    totals.failures.sort_by_key(|f| f.seed);
    totals
}
