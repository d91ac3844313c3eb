//! Leases under clocks of different speed, monitors that restart, and holders that hang.

use super::super::tests::{cluster, holder, volume};
use super::super::{Command, Grant, Reply};
use super::*;
use proptest::prelude::*;

const LEASE: u64 = 6_000_000;
const MARGIN: u64 = 1_000_000;

fn grant(map: &mut ClusterMap, volume: VolumeId, seen: Generation, holder: &Holder) -> Generation {
    let above = Generation(0);
    let grants = vec![Grant { volume, seen, above }];
    let holder = holder.clone();
    match map.apply(&Command::GrantGenerations { grants, holder }) {
        Ok(Reply::Granted(results)) => results[0].clone().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_holder_is_waited_for_and_asked_to_release() {
    let mut map = cluster(3);
    let disk = volume(&mut map, "disk0");
    let mut table = LeaseTable::new(LeaseConfig::default(), &map, Time(0));
    let (a, b) = (holder("a", 1), holder("b", 2));
    let seen = table.ask(&map, disk, &a, Time(10)).unwrap();
    let g1 = grant(&mut map, disk, seen, &a);
    table.granted(disk, g1, Time(20));

    let renewed = |release_please| Renewal::Renewed { release_please };
    assert_eq!(table.renew(&map, &a, disk, g1, Time(30)), renewed(false));
    let busy = table.ask(&map, disk, &b, Time(40)).unwrap_err();
    let retry_after = LEASE + MARGIN - 10 + 1;
    assert_eq!(busy, NotNow::Busy { holder: a.clone(), retry_after });
    assert_eq!(table.renew(&map, &a, disk, g1, Time(50)), renewed(true));
    // Who gave up asking does not drive it out.
    assert_eq!(table.renew(&map, &a, disk, g1, Time(41 + 2 * LEASE)), renewed(false));

    let last = Time(41 + 2 * LEASE);
    assert!(table.ask(&map, disk, &b, last.after(LEASE + MARGIN)).is_err());
    let late = last.after(LEASE + MARGIN + 1);
    let seen = table.ask(&map, disk, &b, late).unwrap();
    let g2 = grant(&mut map, disk, seen, &b);
    assert!(g2 > g1);
    table.granted(disk, g2, late);
    assert_eq!(table.renew(&map, &a, disk, g1, late), Renewal::Lost);
    // The name alone is not the process.
    assert_eq!(table.renew(&map, &holder("b", 3), disk, g2, late), Renewal::Lost);
}

#[test]
fn a_release_and_the_same_process_do_not_wait_but_a_restarted_one_does() {
    let mut map = cluster(3);
    let disk = volume(&mut map, "disk0");
    let mut table = LeaseTable::new(LeaseConfig::default(), &map, Time(0));
    let a = holder("a", 1);
    let g1 = grant(&mut map, disk, Generation(0), &a);
    table.granted(disk, g1, Time(5));
    assert_eq!(table.ask(&map, disk, &a, Time(6)), Ok(g1));
    assert!(table.ask(&map, disk, &holder("a", 2), Time(6)).is_err());
    map.apply(&Command::Release { volumes: vec![(disk, g1, true)] }).unwrap();
    table.released(disk);
    assert_eq!(table.ask(&map, disk, &holder("a", 2), Time(7)), Ok(g1));
}

#[test]
fn front_ends_preempt_healers_and_healers_preempt_nobody() {
    let mut map = cluster(3);
    let disk = volume(&mut map, "disk0");
    let mut table = LeaseTable::new(LeaseConfig::default(), &map, Time(0));
    let mut healer = holder("h", 9);
    healer.kind = HolderKind::Healer;
    let g1 = grant(&mut map, disk, Generation(0), &healer);
    table.granted(disk, g1, Time(5));
    let mut other = healer.clone();
    other.boot = 10;
    assert!(table.ask(&map, disk, &other, Time(6)).is_err());
    assert_eq!(table.ask(&map, disk, &holder("a", 1), Time(6)), Ok(g1));
    let g2 = grant(&mut map, disk, g1, &holder("a", 1));
    table.granted(disk, g2, Time(7));
    assert!(table.ask(&map, disk, &healer, Time(8)).is_err());
    let renewal = table.renew(&map, &holder("a", 1), disk, g2, Time(9));
    assert_eq!(renewal, Renewal::Renewed { release_please: false }, "a healer waits");
}

#[test]
fn no_renewal_slips_in_between_the_decision_and_its_commit() {
    let mut map = cluster(3);
    let disk = volume(&mut map, "disk0");
    let mut table = LeaseTable::new(LeaseConfig::default(), &map, Time(0));
    let (a, b) = (holder("a", 1), holder("b", 2));
    let g1 = grant(&mut map, disk, Generation(0), &a);
    table.granted(disk, g1, Time(0));
    let late = Time(LEASE + MARGIN + 1);
    let seen = table.ask(&map, disk, &b, late).unwrap();
    // The commit is on its way; a answer of "renewed" would give two holders at once.
    assert_eq!(table.renew(&map, &a, disk, g1, late), Renewal::Undecided);
    // It fails: the holder goes on.
    table.not_granted(disk, seen);
    let renewed = Renewal::Renewed { release_please: false };
    assert_eq!(table.renew(&map, &a, disk, g1, late), renewed);
    // A failure that is told late does not undo somebody else's grant.
    let later = late.after(LEASE + MARGIN + 1);
    let seen = table.ask(&map, disk, &b, later).unwrap();
    let g2 = grant(&mut map, disk, seen, &b);
    table.granted(disk, g2, later);
    table.not_granted(disk, seen);
    assert_eq!(table.renew(&map, &a, disk, g1, later), Renewal::Lost);
    assert!(!table.expired(&map, disk, later));
}

/// One front end, as it sees itself.
struct Process {
    holder: Holder,
    /// Its clock's speed in parts per million of real time.
    speed: u64,
    /// Its generation, and the real time at which its lease ends.
    lease: Option<(Generation, u64)>,
    /// A renewal that was sent at this real time and is not answered yet.
    sent: Option<u64>,
    /// A grant that is being committed: on top of which generation, and when it was asked for.
    pending: Option<(Generation, u64)>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever holders and monitors do, and when: no two processes believe in a lease of one volume at
    /// the same real time, as long as clocks differ by less than the margin.
    #[test]
    fn no_two_leases_overlap_in_real_time(
        speeds in prop::collection::vec(0u64..=130_000, 3),
        steps in prop::collection::vec((0u8..8, 0usize..3, 0u64..3_000_000), 1..200),
    ) {
        let mut map = cluster(3);
        let disk = volume(&mut map, "disk0");
        // The monitor's clock is right; the others are slower or faster by up to 6.5 percent each way:
        // the margin covers a factor of 7/6.
        let mut processes: Vec<Process> = speeds.iter().enumerate().map(|(n, speed)| Process {
            holder: holder("p", n as u64 + 1),
            speed: 935_000 + speed,
            lease: None,
            sent: None,
            pending: None,
        }).collect();
        let mut now = 1_000;
        let config = LeaseConfig { lease: LEASE, margin: MARGIN, ..LeaseConfig::default() };
        let mut table = LeaseTable::new(config, &map, Time(now));
        let mut granted = Generation(0);
        for (step, n, pause) in steps {
            now += pause;
            // An answer that is on its way while the holder's clock stands at `sent`.
            let ends = |process: &Process, sent: u64| sent + LEASE * 1_000_000 / process.speed;
            match step {
                0 => {
                    // What was proposed and not answered is not committed (if it is, as below).
                    table = LeaseTable::new(config, &map, Time(now));
                    for process in &mut processes {
                        process.pending = None;
                    }
                }
                1 => {
                    // Attach; the question was sent a moment ago.
                    let sent = now - pause.min(1_000) - 1;
                    if let Ok(seen) = table.ask(&map, disk, &processes[n].holder, Time(now)) {
                        processes[n].pending = Some((seen, sent));
                    }
                }
                2 => {
                    let Some((seen, sent)) = processes[n].pending.take() else { continue };
                    if map.volumes[&disk].generation != seen {
                        table.not_granted(disk, seen);
                        continue;
                    }
                    let generation = grant(&mut map, disk, seen, &processes[n].holder.clone());
                    prop_assert!(generation > granted);
                    granted = generation;
                    // Its task may be cut off before the table hears of it.
                    if pause % 3 != 0 {
                        table.granted(disk, generation, Time(now));
                    }
                    let end = ends(&processes[n], sent);
                    // The one process that is granted anew does not use its old generation.
                    processes[n].lease = Some((generation, end));
                    processes[n].sent = None;
                }
                3 => processes[n].sent = processes[n].lease.map(|_| now),
                4 | 5 => {
                    if let (Some(sent), Some((generation, _))) = (processes[n].sent.take(), processes[n].lease) {
                        let who = processes[n].holder.clone();
                        processes[n].lease = match table.renew(&map, &who, disk, generation, Time(now)) {
                            Renewal::Renewed { .. } => Some((generation, ends(&processes[n], sent))),
                            Renewal::Lost => None,
                            Renewal::Undecided => processes[n].lease,
                        };
                    }
                }
                6 => {
                    if let Some((generation, _)) = processes[n].lease.take() {
                        map.apply(&Command::Release { volumes: vec![(disk, generation, true)] }).unwrap();
                    }
                }
                // The process restarts: it forgets, the monitor does not.
                _ => {
                    processes[n].holder.boot += 100;
                    processes[n].lease = None;
                    processes[n].sent = None;
                    processes[n].pending = None;
                }
            }
            let believing = processes.iter().filter(|p| p.lease.is_some_and(|(_, end)| end > now)).count();
            prop_assert!(believing <= 1, "{believing} holders at {now}");
        }
    }
}

#[test]
fn a_healer_does_not_take_over_from_the_front_end_of_its_own_process() {
    let mut map = cluster(3);
    let disk = volume(&mut map, "disk0");
    let mut table = LeaseTable::new(LeaseConfig::default(), &map, Time(0));
    let front = holder("a", 1);
    let healer = Holder { kind: HolderKind::Healer, ..front.clone() };
    let g1 = grant(&mut map, disk, Generation(0), &front);
    table.granted(disk, g1, Time(5));
    assert!(table.ask(&map, disk, &healer, Time(6)).is_err());
    // The process hung for longer than its lease; now its healer asks for work and its front end renews,
    // both at once. A lease that ran anew here would outlive the generation.
    let late = Time(6).after(LEASE + MARGIN);
    assert_eq!(table.ask(&map, disk, &healer, late), Ok(g1));
    assert_eq!(table.renew(&map, &front, disk, g1, late), Renewal::Undecided);
    let g2 = grant(&mut map, disk, g1, &healer);
    table.granted(disk, g2, late);
    assert_eq!(table.renew(&map, &front, disk, g1, late), Renewal::Lost);
    // The other way round nothing depends on the healer's lease.
    assert_eq!(table.ask(&map, disk, &front, late), Ok(g2));
}
