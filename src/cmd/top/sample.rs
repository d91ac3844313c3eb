//! Two looks at a cluster, and what went on between them.
//!
//! Plain functions over what monitors and front ends said. A counter that went back belongs to a process that was
//! started anew: what it did before is not known, and is not guessed.

use super::scrape::{Op, Volume};
use crate::view::{NodeView, RecoveryView, Snapshot, StatusView, VolumeView};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use trefoil_monitor::rpc::Heartbeat;

/// One look.
pub struct Look {
    pub at: Instant,
    pub snapshot: Snapshot,
    /// What each front end said, or why it did not.
    pub front_ends: BTreeMap<SocketAddr, Result<BTreeMap<String, Volume>, String>>,
}

/// `trefoil top --once --json`. Rates are per second, over `interval_s`.
#[derive(Clone, Debug, Serialize)]
pub struct TopView {
    pub interval_s: f64,
    /// As `trefoil status --json`.
    pub status: StatusView,
    pub recovery: RecoveryRate,
    pub nodes: Vec<NodeTop>,
    pub volumes: Vec<VolumeTop>,
    pub front_ends: Vec<FrontEndView>,
}

/// How repair goes on.
#[derive(Clone, Debug, Serialize)]
pub struct RecoveryRate {
    #[serde(flatten)]
    pub now: RecoveryView,
    /// By how many the copies behind have become fewer.
    pub copies_per_s: f64,
    /// None: they do not become fewer, or there are none.
    pub seconds_left: Option<u64>,
}

/// A storage node. Rates and times come with its heartbeats, one a second; none: not known.
#[derive(Clone, Debug, Serialize)]
pub struct NodeTop {
    #[serde(flatten)]
    pub node: NodeView,
    pub space_bytes: Option<u64>,
    pub io: Option<Rates>,
    /// Mean times of the device over the last minute.
    pub device_read_us: Option<u64>,
    pub device_write_us: Option<u64>,
}

/// What went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    pub reads_per_s: f64,
    pub writes_per_s: f64,
    pub read_bytes_per_s: f64,
    pub write_bytes_per_s: f64,
}

/// A volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeTop {
    #[serde(flatten)]
    pub volume: VolumeView,
    /// None: no front end that could be asked has it.
    pub io: Option<Rates>,
    pub in_flight: Option<u64>,
    /// None: there were none in this time.
    pub read: Option<Times>,
    pub write: Option<Times>,
}

/// How long requests took that ended in this time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    pub mean_us: f64,
    /// To the factor of two by which front ends count.
    pub p99_us: f64,
}

/// A front end that was asked.
#[derive(Clone, Debug, Serialize)]
pub struct FrontEndView {
    pub metrics: SocketAddr,
    /// None: it has answered.
    pub error: Option<String>,
}

/// What went on between two looks.
pub fn compare(before: &Look, now: &Look) -> TopView {
    let passed = now.at.saturating_duration_since(before.at);
    let status = now.snapshot.status();
    let behind_before = before.snapshot.status().recovery.copies_behind;
    TopView {
        interval_s: passed.as_secs_f64(),
        recovery: recovery(status.recovery.clone(), behind_before, passed),
        nodes: nodes(&before.snapshot, &now.snapshot, passed),
        volumes: volumes(before, now, passed),
        front_ends: now
            .front_ends
            .iter()
            .map(|(metrics, said)| FrontEndView { metrics: *metrics, error: said.as_ref().err().cloned() })
            .collect(),
        status,
    }
}

fn per_second(before: u64, now: u64, passed: Duration) -> Option<f64> {
    Some(now.checked_sub(before)? as f64 / passed.as_secs_f64().max(1e-3))
}

fn recovery(now: RecoveryView, before: u64, passed: Duration) -> RecoveryRate {
    let copies_per_s = (before as f64 - now.copies_behind as f64) / passed.as_secs_f64().max(1e-3);
    let moves = copies_per_s > 0.0 && now.copies_behind > 0;
    let seconds_left = moves.then(|| (now.copies_behind as f64 / copies_per_s).ceil() as u64);
    RecoveryRate { now, copies_per_s, seconds_left }
}

fn nodes(before: &Snapshot, now: &Snapshot, passed: Duration) -> Vec<NodeTop> {
    let beats = |snapshot: &Snapshot| -> BTreeMap<u32, (Option<bool>, Heartbeat)> {
        let nodes = snapshot.status.nodes.iter();
        nodes.filter_map(|it| Some((it.node.0, (it.up, it.heartbeat.clone()?)))).collect()
    };
    let (before, said) = (beats(before), beats(now));
    let view = |node: NodeView| {
        let said = said.get(&node.id);
        let beat = said.map(|(_, beat)| beat);
        // The last word of a node that is down says nothing of now.
        let up = said.filter(|(up, _)| *up == Some(true)).map(|(_, beat)| beat);
        let io = up.zip(before.get(&node.id)).and_then(|(now, (_, before))| {
            let rate = |of: fn(&Heartbeat) -> u64| per_second(of(before), of(now), passed);
            (before.incarnation == now.incarnation).then_some(())?;
            Some(Rates {
                reads_per_s: rate(|it| it.reads)?,
                writes_per_s: rate(|it| it.writes)?,
                read_bytes_per_s: rate(|it| it.read_bytes)?,
                write_bytes_per_s: rate(|it| it.write_bytes)?,
            })
        });
        let device = up.map(|it| it.device);
        NodeTop {
            space_bytes: beat.map(|it| it.bytes_total),
            io,
            device_read_us: device.filter(|it| it.reads > 0).map(|it| it.read_us),
            device_write_us: device.filter(|it| it.writes > 0).map(|it| it.write_us),
            node,
        }
    };
    now.nodes().into_iter().map(view).collect()
}

/// Of a volume that several front ends name, the one whose counters moved has it.
fn volumes(before: &Look, now: &Look, passed: Duration) -> Vec<VolumeTop> {
    let mut found: BTreeMap<&str, (Option<&Volume>, &Volume)> = BTreeMap::new();
    for (address, said) in &now.front_ends {
        let earlier = before.front_ends.get(address).and_then(|said| said.as_ref().ok());
        for (name, volume) in said.iter().flatten() {
            let pair = (earlier.and_then(|all| all.get(name)), volume);
            let moved = |(before, now): &(Option<&Volume>, &Volume)| {
                before.map_or(0, |it| {
                    (now.read.count + now.write.count).abs_diff(it.read.count + it.write.count)
                })
            };
            if found.get(name.as_str()).is_none_or(|kept| moved(kept) < moved(&pair)) {
                found.insert(name, pair);
            }
        }
    }
    let view = |volume: VolumeView| {
        let pair = found.get(volume.name.as_str()).copied();
        let both = pair.and_then(|(before, now)| Some((before?, now)));
        VolumeTop {
            io: both.and_then(|(before, now)| rates(before, now, passed)),
            in_flight: pair.map(|(_, now)| now.in_flight),
            read: both.and_then(|(before, now)| times(&before.read, &now.read)),
            write: both.and_then(|(before, now)| times(&before.write, &now.write)),
            volume,
        }
    };
    now.snapshot.volumes().into_iter().map(view).collect()
}

fn rates(before: &Volume, now: &Volume, passed: Duration) -> Option<Rates> {
    Some(Rates {
        reads_per_s: per_second(before.read.count, now.read.count, passed)?,
        writes_per_s: per_second(before.write.count, now.write.count, passed)?,
        read_bytes_per_s: per_second(before.read.bytes, now.read.bytes, passed)?,
        write_bytes_per_s: per_second(before.write.bytes, now.write.bytes, passed)?,
    })
}

fn times(before: &Op, now: &Op) -> Option<Times> {
    let count = now.count.checked_sub(before.count).filter(|count| *count > 0)?;
    let mean_us = ((now.seconds - before.seconds) * 1e6 / count as f64).max(0.0);
    // The first bucket that all but one in a hundred are in, and where in it they end if they are spread evenly.
    let wanted = count as f64 * 0.99;
    let (mut begin, mut seen) = (0.0, 0.0);
    for (end, all) in &now.buckets {
        let here = all.saturating_sub(before.buckets.get(end).copied().unwrap_or(0)) as f64;
        if here >= wanted && here > seen {
            let p99_us = begin + (*end as f64 - begin) * (wanted - seen) / (here - seen);
            return Some(Times { mean_us, p99_us });
        }
        (begin, seen) = (*end as f64, here);
    }
    // It is behind the last bucket: that is where it begins.
    Some(Times { mean_us, p99_us: begin.max(mean_us) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn op(count: u64, seconds: f64, buckets: &[(u64, u64)]) -> Op {
        Op { count, seconds, bytes: count * 4096, buckets: buckets.iter().copied().collect() }
    }

    #[test]
    fn rates_and_times_are_of_what_was_added() {
        let before = op(100, 1.0, &[(128, 100), (256, 100), (512, 100)]);
        let now = op(300, 1.06, &[(128, 100), (256, 290), (512, 300)]);
        let times = times(&before, &now).unwrap();
        assert!((times.mean_us - 300.0).abs() < 0.1, "{times:?}");
        // 198 of 200: 190 up to 256 µs, 8 of the 10 behind them.
        assert!((times.p99_us - (256.0 + 256.0 * 0.8)).abs() < 0.1, "{times:?}");
        let volume = |read| Volume { read, ..Volume::default() };
        let rates = rates(&volume(before), &volume(now), 2 * SECOND).unwrap();
        assert_eq!((rates.reads_per_s, rates.read_bytes_per_s), (100.0, 409_600.0));
        assert_eq!(rates.writes_per_s, 0.0);
    }

    #[test]
    fn what_a_new_process_did_before_is_not_guessed() {
        let (old, new) = (op(100, 1.0, &[(16, 100)]), op(5, 0.1, &[(16, 5)]));
        assert_eq!(times(&old, &new), None);
        assert_eq!(times(&old, &old), None, "nothing happened");
        let volume = |write| Volume { write, ..Volume::default() };
        assert_eq!(rates(&volume(old), &volume(new), SECOND), None);
        let slow = op(3, 90.0, &[(16, 0), (32, 0)]);
        assert_eq!(times(&Op::default(), &slow).unwrap().p99_us, 30e6, "no bucket has them");
    }

    #[test]
    fn what_is_left_of_a_repair_is_told_only_while_it_goes_on() {
        let behind = |n| RecoveryView { copies_behind: n, ..RecoveryView::default() };
        let going = recovery(behind(10), 30, 2 * SECOND);
        assert_eq!((going.copies_per_s, going.seconds_left), (10.0, Some(1)));
        assert_eq!(recovery(behind(30), 10, SECOND).seconds_left, None);
        assert_eq!(recovery(behind(0), 10, SECOND).seconds_left, None);
    }
}
