//! What has been measured, as figures, as JSON and as tables. `html` draws the same.

use super::jobs::{AIMS, Aim, Job, Quantity};
use super::measure::{FLOOR, RAW, Results, System, TREFOIL};
use super::usage::Used;
use crate::cmd::bench::fio::{Measured, Side};
use crate::cmd::bench::{digits, median};
use crate::output;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use trefoil_storage_node::bench::floor;
use trefoil_storage_node::bench::floor::load::Pattern;

/// What one system has done in one job: the median of the rounds, but for `max_us`, the longest of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Reads and writes; of latencies the worse of the two.
    #[serde(flatten)]
    pub total: Side,
    /// Microseconds of processor time of each I/O, over all processes of the system.
    pub cpu_us: Option<f64>,
    /// The same by process.
    pub cpu_us_by_process: BTreeMap<String, f64>,
    /// And of fio, in which a client library runs.
    pub client_cpu_us: f64,
    /// Bytes that all copies together wrote to their devices for each byte that the client wrote.
    pub written_per_byte: Option<f64>,
    /// IOPS by those of the raw device.
    pub raw_iops_ratio: Option<f64>,
    /// The median latency by that of the raw device.
    pub raw_p50_ratio: Option<f64>,
    /// `cpu_us` by that of the floor. It says more than `cpu_us` does: what the same work costs on one machine differs
    /// by half between two hours.
    pub floor_cpu_ratio: Option<f64>,
    /// Of a mix.
    pub read: Option<Side>,
    /// Of a mix.
    pub write: Option<Side>,
}

impl Figures {
    /// Of one run.
    pub fn new(measured: &Measured, used: &Used, client: Duration) -> Figures {
        let total = measured.total();
        let ios = (total.ios as f64).max(1.0);
        let each = |time: Duration| time.as_secs_f64() * 1e6 / ios;
        let mix = measured.read.is_some() && measured.write.is_some();
        let to_write = measured.write.map(|side| side.bytes as f64).filter(|bytes| *bytes > 0.0);
        Figures {
            total,
            cpu_us: (!used.cpu.is_empty()).then(|| used.cpu.values().copied().map(each).sum()),
            cpu_us_by_process: used.cpu.iter().map(|(name, time)| (name.clone(), each(*time))).collect(),
            client_cpu_us: each(client),
            written_per_byte: used.written.zip(to_write).map(|(written, bytes)| written as f64 / bytes),
            raw_iops_ratio: None,
            raw_p50_ratio: None,
            floor_cpu_ratio: None,
            read: measured.read.filter(|_| mix),
            write: measured.write.filter(|_| mix),
        }
    }

    /// Of the floor.
    pub fn of_floor(pattern: Pattern, measured: &floor::load::Measured) -> Figures {
        let ios = measured.latency.count();
        let iops = ios as f64 / measured.elapsed.as_secs_f64().max(1e-9);
        let us = |part| measured.latency.percentile(part).as_secs_f64() * 1e6;
        let each = |cpu_ns: u64| cpu_ns as f64 / 1000.0 / ios.max(1) as f64;
        let cpu = [("front", measured.front.cpu_ns), ("nodes", measured.nodes.cpu_ns)];
        let bytes = ios.saturating_mul(u64::from(pattern.bytes));
        Figures {
            total: Side {
                ios,
                bytes,
                iops,
                mb_per_s: iops * f64::from(pattern.bytes) / 1e6,
                mean_us: measured.latency.mean().as_secs_f64() * 1e6,
                p50_us: us(0.5),
                p99_us: us(0.99),
                p999_us: us(0.999),
                max_us: us(1.0),
            },
            cpu_us: Some(cpu.iter().map(|(_, ns)| each(*ns)).sum()),
            cpu_us_by_process: cpu.iter().map(|(name, ns)| ((*name).to_owned(), each(*ns))).collect(),
            client_cpu_us: each(measured.client.cpu_ns),
            ..Figures::default()
        }
    }

    /// With the ratios to the raw device's and to the floor's.
    pub fn beside(mut self, raw: Option<&Figures>, floor: Option<&Figures>) -> Figures {
        let ratio = |ours: f64, raw: f64| (raw > 0.0).then(|| ours / raw);
        self.raw_iops_ratio = raw.and_then(|raw| ratio(self.total.iops, raw.total.iops));
        self.raw_p50_ratio = raw.and_then(|raw| ratio(self.total.p50_us, raw.total.p50_us));
        let floor_cpu = floor.and_then(|floor| floor.cpu_us);
        self.floor_cpu_ratio = self.cpu_us.zip(floor_cpu).and_then(|(ours, floor)| ratio(ours, floor));
        self
    }
}

/// The median of each figure; what one round lacks is left out. Nothing of no rounds.
pub fn median_of(rounds: &[Figures]) -> Option<Figures> {
    if rounds.is_empty() {
        return None;
    }
    let of = |figure: &dyn Fn(&Figures) -> f64| median(rounds.iter().map(figure));
    let maybe = |figure: &dyn Fn(&Figures) -> Option<f64>| {
        let there: Option<Vec<f64>> = rounds.iter().map(figure).collect();
        there.filter(|all| !all.is_empty()).map(|all| median(all.into_iter()))
    };
    let names = rounds.iter().flat_map(|figures| figures.cpu_us_by_process.keys());
    let by_process = names.map(|name| {
        (name.clone(), of(&|figures| figures.cpu_us_by_process.get(name).copied().unwrap_or_default()))
    });
    let sides = |side: &dyn Fn(&Figures) -> Option<Side>| {
        let there: Option<Vec<Side>> = rounds.iter().map(side).collect();
        there.filter(|all| !all.is_empty()).map(|all| median_side(&all))
    };
    Some(Figures {
        total: median_side(&rounds.iter().map(|figures| figures.total).collect::<Vec<_>>()),
        cpu_us: maybe(&|figures| figures.cpu_us),
        cpu_us_by_process: by_process.collect(),
        client_cpu_us: of(&|figures| figures.client_cpu_us),
        written_per_byte: maybe(&|figures| figures.written_per_byte),
        raw_iops_ratio: maybe(&|figures| figures.raw_iops_ratio),
        raw_p50_ratio: maybe(&|figures| figures.raw_p50_ratio),
        floor_cpu_ratio: maybe(&|figures| figures.floor_cpu_ratio),
        read: sides(&|figures| figures.read),
        write: sides(&|figures| figures.write),
    })
}

fn median_side(rounds: &[Side]) -> Side {
    let of = |figure: &dyn Fn(&Side) -> f64| median(rounds.iter().map(figure));
    Side {
        ios: rounds.iter().map(|side| side.ios).sum(),
        bytes: rounds.iter().map(|side| side.bytes).sum(),
        iops: of(&|side| side.iops),
        mb_per_s: of(&|side| side.mb_per_s),
        mean_us: of(&|side| side.mean_us),
        p50_us: of(&|side| side.p50_us),
        p99_us: of(&|side| side.p99_us),
        p999_us: of(&|side| side.p999_us),
        max_us: rounds.iter().map(|side| side.max_us).fold(0.0, f64::max),
    }
}

/// Everything that is known at the end, as `--json` shows it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where and when.
    pub about: About,
    /// Trefoil, and what was measured beside it, in order.
    pub systems: Vec<SystemView>,
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// The aims that could be judged.
    pub aims: Vec<AimView>,
}

/// Where and when.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct About {
    pub trefoil: &'static str,
    pub fio: String,
    /// Seconds since 1970.
    pub at: u64,
    pub cpus: usize,
    pub cpu: String,
    pub kernel: String,
    /// Of the last minute, before and after.
    pub load: [f64; 2],
    pub uri: String,
    /// The volume was made for this, and removed.
    pub own_volume: bool,
    pub size_bytes: u64,
    pub runtime_s: f64,
    pub rounds: u32,
}

/// One system.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct SystemView {
    pub name: String,
    pub note: Option<String>,
    /// 10^6 bytes a second, when everything was written once.
    pub written_through_mb_per_s: Option<f64>,
}

/// One job.
#[derive(Debug, Serialize)]
pub struct JobView {
    /// What it is.
    #[serde(flatten)]
    pub job: Job,
    /// By system.
    pub systems: BTreeMap<String, Figures>,
}

/// One aim.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct AimView {
    pub job: &'static str,
    pub what: Quantity,
    pub measured: f64,
    pub limit: f64,
    pub met: bool,
}

impl Report {
    /// Puts it together.
    pub fn new(about: About, systems: &[System], jobs: &[Job], results: Results) -> Report {
        let names = systems.iter().map(|system| system.name.clone());
        let views = systems.iter().zip(&results.written_through).map(|(system, mb)| SystemView {
            name: system.name.clone(),
            note: system.note.clone(),
            written_through_mb_per_s: *mb,
        });
        let lines = jobs.iter().zip(results.jobs).map(|(job, all)| {
            let there = names.clone().zip(all).filter_map(|(name, figures)| Some((name, figures?)));
            JobView { job: *job, systems: there.collect() }
        });
        let mut report = Report { about, systems: views.collect(), jobs: lines.collect(), aims: Vec::new() };
        report.aims = AIMS.iter().filter_map(|aim| report.judge(aim)).collect();
        report
    }

    fn judge(&self, aim: &Aim) -> Option<AimView> {
        let job = self.jobs.iter().find(|line| line.job.name == aim.job)?;
        let measured = of(job.systems.get(TREFOIL)?, aim.what)?;
        Some(AimView {
            job: aim.job,
            what: aim.what,
            measured,
            limit: aim.limit,
            met: aim.is_met_by(measured),
        })
    }

    /// The tables and the aims.
    pub fn text(&self) -> String {
        let mut text = self.table();
        if let Some(processes) = self.process_table() {
            text += &format!("\n\nCPU µs of each I/O by process:\n{processes}");
        }
        text.push_str("\n\n");
        for aim in &self.aims {
            let met = if aim.met { "met" } else { "MISSED" };
            let bound = if aim.what == Quantity::RawIops { "at least" } else { "at most" };
            let (measured, limit) = (digits(aim.measured), digits(aim.limit));
            text += &format!("aim {met}: {}: {} {measured} ({bound} {limit})\n", aim.job, aim.what.words());
        }
        let met = self.aims.iter().filter(|aim| aim.met).count();
        text += &format!("{met} of {} aims met", self.aims.len());
        let possible =
            AIMS.iter().filter(|aim| self.jobs.iter().any(|line| line.job.name == aim.job)).count();
        if possible > self.aims.len() {
            let more = possible - self.aims.len();
            text += &format!("; {more} more could be judged with --raw, and with processes on this machine");
        }
        text
    }

    fn table(&self) -> String {
        let headers = [
            "JOB",
            "SYSTEM",
            ">IOPS",
            ">MB/s",
            ">P50 µs",
            ">P99 µs",
            ">P99.9 µs",
            ">MAX µs",
            ">CPU µs",
            ">FIO CPU",
            ">WRITTEN",
            ">IOPS/RAW",
            ">P50/RAW",
            ">CPU/FLOOR",
        ];
        // A column of nothing would only take room.
        let columns = headers.len() - usize::from(!self.systems.iter().any(|system| system.name == FLOOR));
        let mut rows = Vec::new();
        for line in &self.jobs {
            for (n, system) in self.systems.iter().enumerate() {
                let Some(figures) = line.systems.get(&system.name) else { continue };
                let first = if n == 0 { line.job.name } else { "" };
                rows.push(row(first, &system.name, &figures.total, Some(figures)));
                for (side, name) in [(&figures.read, "  its reads"), (&figures.write, "  its writes")] {
                    rows.extend(side.as_ref().map(|side| row("", name, side, None)));
                }
            }
        }
        rows.iter_mut().for_each(|row: &mut Vec<String>| row.truncate(columns));
        output::table(&headers[..columns], rows)
    }

    fn process_table(&self) -> Option<String> {
        let ours = || self.jobs.iter().filter_map(|line| Some((line.job.name, line.systems.get(TREFOIL)?)));
        let names: Vec<&String> = ours().next()?.1.cpu_us_by_process.keys().collect();
        if names.len() < 2 {
            return None;
        }
        let right: Vec<String> = names.iter().map(|name| format!(">{}", name.to_uppercase())).collect();
        let headers: Vec<&str> = ["JOB"].into_iter().chain(right.iter().map(String::as_str)).collect();
        let rows = ours().map(|(job, figures)| {
            let each = names.iter().map(|name| figures.cpu_us_by_process.get(*name).copied());
            [job.to_owned()].into_iter().chain(each.map(known)).collect()
        });
        Some(output::table(&headers, rows))
    }
}

/// A number of ours that an aim is about.
pub fn of(figures: &Figures, what: Quantity) -> Option<f64> {
    match what {
        Quantity::Cpu => figures.cpu_us,
        Quantity::RawIops => figures.raw_iops_ratio,
        Quantity::RawP50 => figures.raw_p50_ratio,
    }
}

fn known(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), digits)
}

fn row(job: &str, system: &str, side: &Side, figures: Option<&Figures>) -> Vec<String> {
    let mut row = vec![job.to_owned(), system.to_owned()];
    row.extend([side.iops, side.mb_per_s, side.p50_us, side.p99_us, side.p999_us, side.max_us].map(digits));
    let raw = system == RAW;
    row.push(known(figures.and_then(|figures| figures.cpu_us)));
    row.push(known(figures.map(|figures| figures.client_cpu_us)));
    row.push(known(figures.and_then(|figures| figures.written_per_byte)));
    row.push(known(figures.and_then(|figures| figures.raw_iops_ratio).filter(|_| !raw)));
    row.push(known(figures.and_then(|figures| figures.raw_p50_ratio).filter(|_| !raw)));
    row.push(known(figures.and_then(|figures| figures.floor_cpu_ratio).filter(|_| system != FLOOR)));
    row
}

/// What this machine is.
pub fn machine() -> (usize, String, String) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, it)| it.trim()));
    (cpus, model.unwrap_or("unknown").to_owned(), read("/proc/sys/kernel/osrelease").trim().to_owned())
}

/// The load of the last minute.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A figure of each kind, from one number.
    pub fn figures(iops: f64, cpu_us: Option<f64>) -> Figures {
        let total = Side {
            ios: 100,
            iops,
            p50_us: 1e6 / iops,
            p99_us: 2e6 / iops,
            p999_us: 3e6 / iops,
            max_us: 4e6 / iops,
            ..Side::default()
        };
        let by = cpu_us.iter().flat_map(|us| [("nbd".to_owned(), us / 2.0), ("node-0".to_owned(), us / 2.0)]);
        Figures { total, cpu_us, cpu_us_by_process: by.collect(), client_cpu_us: 5.0, ..Figures::default() }
    }

    /// Of Trefoil, raw, and `<b>`, with all jobs.
    pub fn a_report(with_raw: bool) -> Report {
        let about = About {
            trefoil: "0",
            fio: "fio-3".to_owned(),
            at: 0,
            cpus: 2,
            cpu: "a <cpu>".to_owned(),
            kernel: "6".to_owned(),
            load: [0.0, 1.0],
            uri: "nbd://h/d".to_owned(),
            own_volume: true,
            size_bytes: 1 << 30,
            runtime_s: 1.0,
            rounds: 3,
        };
        let names: &[&str] = if with_raw { &[TREFOIL, RAW, "<b>"] } else { &[TREFOIL] };
        let view = |name: &&str| SystemView {
            name: (*name).to_owned(),
            note: None,
            written_through_mb_per_s: Some(1.0),
        };
        let raw = figures(1000.0, None);
        let line = |job: Job| {
            let ours = figures(500.0, Some(40.0)).beside(with_raw.then_some(&raw), None);
            let all = [
                ours,
                raw.clone().beside(Some(&raw), None),
                figures(100.0, Some(400.0)).beside(Some(&raw), None),
            ];
            JobView { job, systems: names.iter().map(|name| (*name).to_owned()).zip(all).collect() }
        };
        let mut report = Report {
            about,
            systems: names.iter().map(view).collect(),
            jobs: super::super::jobs::JOBS.into_iter().map(line).collect(),
            aims: Vec::new(),
        };
        report.aims = AIMS.iter().filter_map(|aim| report.judge(aim)).collect();
        report
    }

    #[test]
    fn aims_are_judged_where_they_can_be() {
        let met = |report: &Report| report.aims.iter().map(|aim| aim.met).collect::<Vec<_>>();
        // 40 µs, half of raw, twice its latency.
        assert_eq!(met(&a_report(true)), [true, true, true, true, false, false, true, true, true]);
        let alone = a_report(false);
        assert_eq!(met(&alone), [true, false, true, true]);
        let text = alone.text();
        assert!(text.contains("aim MISSED: randread-4k-qd32: CPU µs of each 40.0 (at most 16.0)"), "{text}");
        assert!(text.ends_with(
            "3 of 4 aims met; 5 more could be judged with --raw, and with processes on this machine"
        ));
    }

    #[test]
    fn the_median_is_of_each_figure_and_the_longest_of_all() {
        let mut rounds = [100.0, 400.0, 200.0].map(|iops| figures(iops, Some(iops / 10.0)));
        rounds[2].written_per_byte = Some(3.0);
        let median = median_of(&rounds).unwrap();
        assert_eq!((median.total.iops, median.total.p50_us, median.total.max_us), (200.0, 5000.0, 40_000.0));
        assert_eq!((median.cpu_us, median.cpu_us_by_process["nbd"]), (Some(20.0), 10.0));
        assert_eq!(median.written_per_byte, None, "one round of three is no median");
        assert_eq!(median_of(&[]), None);
    }

    #[test]
    fn processor_time_is_held_against_that_of_the_floor() {
        let (ours, floor) = (figures(500.0, Some(24.0)), figures(900.0, Some(16.0)));
        assert_eq!(ours.clone().beside(None, Some(&floor)).floor_cpu_ratio, Some(1.5));
        assert_eq!(ours.beside(None, None).floor_cpu_ratio, None);
        let mut report = a_report(true);
        assert!(!report.text().contains("CPU/FLOOR"));
        report.systems[2].name = FLOOR.to_owned();
        for line in &mut report.jobs {
            line.systems.insert(FLOOR.to_owned(), floor.clone());
            let ours = line.systems[TREFOIL].clone().beside(None, Some(&floor));
            line.systems.insert(TREFOIL.to_owned(), ours);
        }
        let text = report.text();
        let line = text.lines().find(|line| line.starts_with("randwrite-4k-qd1 ")).unwrap();
        assert!(text.contains("CPU/FLOOR") && line.ends_with("2.50"), "{text}");
    }

    #[test]
    fn what_is_used_is_told_for_each_io() {
        let side = Side { ios: 1000, bytes: 4_096_000, ..Side::default() };
        let measured = Measured { write: Some(side), ..Measured::default() };
        let cpu = [("a", 30), ("b", 10)].map(|(name, ms)| (name.to_owned(), Duration::from_millis(ms)));
        let used = Used { cpu: cpu.into(), written: Some(12_288_000) };
        let figures = Figures::new(&measured, &used, Duration::from_millis(5));
        assert_eq!((figures.cpu_us, figures.client_cpu_us), (Some(40.0), 5.0));
        assert_eq!(figures.written_per_byte, Some(3.0));
        let unknown = Figures::new(&measured, &Used::default(), Duration::ZERO);
        assert_eq!((unknown.cpu_us, unknown.written_per_byte), (None, None));
    }
}
