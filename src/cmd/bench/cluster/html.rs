//! The same as a page: one file, without scripts and without anything from elsewhere, readable in light and dark.

use super::jobs::{Aim, Job, Quantity};
use super::measure::{RAW, TREFOIL};
use super::plot::{self, Bar, Group, Latencies, Limit, colour, escaped, time};
use super::report::{Figures, JobView, Report, of};
use crate::cmd::bench::digits;
use crate::cmd::bench::fio::Side;
use crate::size::Size;

/// Longest bar of a part of raw IOPS: where writes share a flush, some are far beyond what is of interest.
const RATIO_SHOWN: f64 = 2.0;

const STYLE: &str = "
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1b1f24; --soft: #59636e; --grid: #d8dee4; --good: #1a7f37;
  --bad: #b3261e; --c0: #1f6feb; --c1: #868e98; --c2: #d2690a; --c3: #8250df; --c4: #0f8a7e; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --fg: #e6edf3; --soft: #9aa4af; --grid: #30363d;
  --good: #4cc263; --bad: #ff8a80; --c0: #58a6ff; --c1: #8b949e; --c2: #f0953e; --c3: #bc8cff; --c4: #35c4b5; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; max-width: 1080px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin: 2em 0 0.3em; }
p { margin: 0.4em 0; } .soft { color: var(--soft); }
svg { width: 100%; height: auto; display: block; margin: 0.6em 0; font: 12px system-ui, sans-serif; }
svg text { fill: var(--fg); } svg .tick { fill: var(--soft); font-size: 11px; }
svg .value { font-size: 11px; } svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .aim { stroke: var(--fg); stroke-width: 2; stroke-dasharray: 4 2; }
.s0 { fill: var(--c0); } .s1 { fill: var(--c1); } .s2 { fill: var(--c2); } .s3 { fill: var(--c3); }
.s4 { fill: var(--c4); } .l0 { stroke: var(--c0); } .l1 { stroke: var(--c1); } .l2 { stroke: var(--c2); }
.l3 { stroke: var(--c3); } .l4 { stroke: var(--c4); } svg [class^=l] { stroke-width: 2; }
svg .open { fill: var(--bg); } .key svg { width: 12px; height: 12px; display: inline; margin: 0 4px 0 0; }
.key span { margin-right: 1.4em; white-space: nowrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; } td.l, th.l { text-align: left; }
svg .more { opacity: 0.4; } tr.same td { border-bottom-color: transparent; } .met { color: var(--good); } .missed { color: var(--bad); }
";

/// The page.
pub fn page(report: &Report) -> String {
    let mut body = head(report);
    if !report.aims.is_empty() {
        body += &section("Aims", "", &aims(report));
    }
    let small = |job: &Job| job.block_bytes == 4096;
    let large = |job: &Job| job.block_bytes != 4096;
    let shallow = |job: &Job| job.depth == 1;
    let any = |_: &Job| true;
    for (title, words, what, jobs, most) in [
        (
            "Processor time of each 4 KiB",
            "µs over all processes of the system, and, lighter, that of fio, in which a client library runs. Dashed: the \
             aim of the former, at most.",
            Quantity::Cpu,
            &small as &dyn Fn(&Job) -> bool,
            f64::MAX,
        ),
        ("Processor time of each MiB", "The same for large I/O, in µs.", Quantity::Cpu, &large, f64::MAX),
        (
            "IOPS by raw IOPS",
            "1 is as many as the disk makes by itself. Dashed: the aim, at least. Three copies on one disk of what is \
             written can be 0.33 of raw at most where bandwidth is the limit.",
            Quantity::RawIops,
            &any,
            RATIO_SHOWN,
        ),
        (
            "Median latency by raw, depth 1",
            "1 is as fast as the disk by itself. Dashed: the aim, at most.",
            Quantity::RawP50,
            &shallow,
            f64::MAX,
        ),
    ] {
        body += &section(title, words, &plot::bars(title, &groups(report, what, jobs), most));
    }
    let title = "Latency";
    let words = "From a request to its answer: the median (●), the 99th and 99.9th percentile (|), the longest (○). \
                 Logarithmic. Of a mix its slower side.";
    body += &section(title, words, &plot::latencies(title, &latencies(report)));
    body += &section("All figures", "", &table(report));
    let title = "Trefoil: benchmark of a cluster";
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n{body}</body>\n</html>\n"
    )
}

/// Nothing where there is nothing to be shown.
fn section(title: &str, words: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<h2>{title}</h2>\n<p class=\"soft\">{words}</p>\n{content}\n")
}

fn head(report: &Report) -> String {
    let about = &report.about;
    let own = if about.own_volume { "A volume made for it" } else { "A volume that was there" };
    let rounds = match about.rounds {
        1 => "one round".to_owned(),
        n => format!("the median of {n} rounds"),
    };
    let mut text = format!(
        "<h1>Benchmark of a Trefoil cluster</h1>\n<p class=\"soft\">{}; {} CPUs ({}), Linux {}, load {} before and {} \
         after. Trefoil {}, {}. {own}, {} of it; {} s for each job, {rounds}.</p>\n",
        date(about.at),
        about.cpus,
        escaped(&about.cpu),
        escaped(&about.kernel),
        about.load[0],
        about.load[1],
        escaped(about.trefoil),
        escaped(&about.fio),
        Size(about.size_bytes),
        about.runtime_s
    );
    text += "<p class=\"key\">";
    for (n, system) in report.systems.iter().enumerate() {
        let class = colour(n);
        let name = escaped(&system.name);
        text += &format!(
            "<span><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\"><rect class=\"s{class}\" width=\"12\" \
             height=\"12\"/></svg>{name}</span>"
        );
    }
    text += "</p>\n";
    for system in &report.systems {
        if let Some(note) = &system.note {
            text += &format!("<p class=\"soft\">{}: {}</p>\n", escaped(&system.name), escaped(note));
        }
    }
    text
}

fn aims(report: &Report) -> String {
    let mut rows = String::new();
    for aim in &report.aims {
        let bound = if aim.what == Quantity::RawIops { "at least" } else { "at most" };
        let (class, met) = if aim.met { ("met", "✓ met") } else { ("missed", "✗ missed") };
        rows += &format!(
            "<tr><td class=\"l\">{}</td><td class=\"l\">{}</td><td>{}</td><td>{bound} {}</td><td class=\"l {class}\">{met}\
             </td></tr>\n",
            aim.job,
            aim.what.words(),
            digits(aim.measured),
            digits(aim.limit)
        );
    }
    format!(
        "<div class=\"wide\"><table><tr><th class=\"l\">Job</th><th class=\"l\">What</th><th>Measured</th><th>Aim</th>\
         <th></th></tr>\n{rows}</table></div>"
    )
}

fn groups(report: &Report, what: Quantity, jobs: &dyn Fn(&Job) -> bool) -> Vec<Group> {
    let group = |line: &JobView| {
        let bar = |(n, system): (usize, &super::report::SystemView)| {
            let figures = line.systems.get(&system.name)?;
            let value = of(figures, what)?;
            let more = (what == Quantity::Cpu).then_some(figures.client_cpu_us);
            (system.name != RAW).then(|| Bar { system: n, name: system.name.clone(), value, more })
        };
        let bars: Vec<Bar> = report.systems.iter().enumerate().filter_map(bar).collect();
        // The mark is the first bar's, which is Trefoil's.
        let ours = bars.first().filter(|bar| bar.name == TREFOIL).map(|bar| bar.value);
        let aim = Aim::of(line.job.name, what).zip(ours);
        let aim = aim.map(|(aim, ours)| Limit {
            limit: aim.limit,
            at_least: what == Quantity::RawIops,
            met: aim.is_met_by(ours),
        });
        (!bars.is_empty()).then(|| Group { name: line.job.name.to_owned(), bars, aim })
    };
    report.jobs.iter().filter(|line| jobs(&line.job)).filter_map(group).collect()
}

fn latencies(report: &Report) -> Vec<Latencies> {
    let mut lines = Vec::new();
    for job in &report.jobs {
        let mut name = job.job.name.to_owned();
        for (n, system) in report.systems.iter().enumerate() {
            if let Some(Figures { total, .. }) = job.systems.get(&system.name) {
                let us = [total.p50_us, total.p99_us, total.p999_us, total.max_us];
                let system = (n, system.name.clone());
                lines.push(Latencies { name: std::mem::take(&mut name), system, us });
            }
        }
    }
    lines
}

fn table(report: &Report) -> String {
    let headers = [
        "IOPS",
        "MB/s",
        "p50",
        "p99",
        "p99.9",
        "longest",
        "CPU µs",
        "fio CPU µs",
        "written",
        "IOPS/raw",
        "p50/raw",
    ];
    let mut text =
        "<div class=\"wide\"><table><tr><th class=\"l\">Job</th><th class=\"l\">System</th>".to_owned();
    text.extend(headers.map(|header| format!("<th>{header}</th>")));
    text += "</tr>\n";
    for job in &report.jobs {
        let there = report.systems.iter().filter(|system| job.systems.contains_key(&system.name)).count();
        for (n, system) in report.systems.iter().enumerate() {
            let Some(figures) = job.systems.get(&system.name) else { continue };
            let class = if n + 1 < there { " class=\"same\"" } else { "" };
            let name = if n == 0 { job.job.name } else { "" };
            let maybe = |number: Option<f64>| number.map_or_else(|| "–".to_owned(), digits);
            let ratio = |number: Option<f64>| maybe(number.filter(|_| system.name != RAW));
            let Side { iops, mb_per_s, p50_us, p99_us, p999_us, max_us, .. } = figures.total;
            let cells = [
                digits(iops),
                digits(mb_per_s),
                time(p50_us),
                time(p99_us),
                time(p999_us),
                time(max_us),
                maybe(figures.cpu_us),
                digits(figures.client_cpu_us),
                maybe(figures.written_per_byte),
                ratio(figures.raw_iops_ratio),
                ratio(figures.raw_p50_ratio),
            ];
            text += &format!(
                "<tr{class}><td class=\"l\">{name}</td><td class=\"l\">{}</td>",
                escaped(&system.name)
            );
            text.extend(cells.map(|cell| format!("<td>{cell}</td>")));
            text += "</tr>\n";
        }
    }
    text + "</table></div>\n<p class=\"soft\">CPU: processor time of each I/O over all processes of the system; fio CPU: \
            that of fio, in which a client library runs. Written: bytes that all copies together gave to their devices \
            for each byte that the client wrote.</p>"
}

/// Seconds since 1970 as a date (Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
fn date(at: u64) -> String {
    let (days, second) = (at / 86_400 + 719_468, at % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Of a year that begins in March.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + next;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::bench::cluster::report::tests::a_report;

    #[test]
    fn the_page_stands_by_itself_and_shows_everything() {
        let page = page(&a_report(true));
        assert_eq!(page.matches("<svg viewBox=\"0 0 900").count(), 5, "{page}");
        for elsewhere in ["http", "url(", "@import", "<script", "src=", "href="] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        assert!(page.contains("prefers-color-scheme: dark"));
        // Names of others are text.
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>") && !page.contains("a <cpu>"));
        assert_eq!(page.matches("class=\"aim\"").count(), 9);
        assert_eq!((page.matches("✓ met").count(), page.matches("✗ missed").count()), (7, 2));
        // No bar of raw beside itself.
        assert!(!page.contains("<title>raw: 1.00</title>"));
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let page = page(&a_report(false));
        assert!(!page.contains("IOPS by raw IOPS</h2>") && page.contains("Processor time of each MiB</h2>"));
    }

    #[test]
    fn dates_are_dates() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(date(1_709_210_096), "2024-02-29 12:34 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59 UTC");
    }
}
