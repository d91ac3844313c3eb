//! `trefoil top`: what goes on, again and again.
//!
//! Health, nodes and repair are what the monitors say (`trefoil status`); IOPS and latency of volumes come from the
//! metrics of the front ends that can be reached. What is not known is shown as `-`, never as 0.

mod sample;
mod scrape;

use super::Global;
use super::status::health;
use crate::admin::{Admin, block_on};
use crate::failure::{Failure, Outcome};
use crate::output::{self, count, duration, printable};
use crate::size::Size;
use crate::up::{DIR_DEFAULT, state::State};
use anyhow::anyhow;
use clap::Args;
use sample::{Look, NodeTop, Rates, Times, TopView, VolumeTop};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Where the metrics of a front end are that listens on NBD's own port.
const FRONT_END_DEFAULT: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    10_809 + trefoil_metrics::listen::PORT_OFFSET,
);
/// Front ends that are asked.
const FRONT_ENDS_MAX: usize = 64;
/// Rows of a table on a live screen; `--json` has all.
const ROWS_MAX: usize = 40;
/// Heartbeats come every second: more often, there is nothing new.
const INTERVAL_MIN_S: u64 = 1;

const EXAMPLES: &str = "\
Examples:
  trefoil top
  trefoil top --once
  trefoil top --once --json | jq '.volumes[] | {name, io}'
  trefoil top --metrics host1:11809,host2:11809     # front ends on other hosts

Nodes are counted by their heartbeats, one a second: at the default interval their rates are right to a third.";

/// Show nodes, volumes, IOPS, latency and recovery, live
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct TopArgs {
    /// Look once, for one interval, and end
    #[arg(long)]
    once: bool,
    /// Write JSON
    #[arg(long, requires = "once")]
    json: bool,
    /// Seconds from one screen to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(INTERVAL_MIN_S..=3600))]
    interval: u64,
    /// Where front ends serve their metrics [default: that of the `trefoil up` on ./trefoil-data, else
    /// 127.0.0.1:11809]
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    metrics: Vec<String>,
}

/// Runs the command.
pub fn run(args: &TopArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let interval = Duration::from_secs(args.interval);
    let named = args.metrics.iter().map(String::as_str);
    let named = match args.metrics.is_empty() {
        true => Vec::new(),
        false => crate::admin::addresses(named, "--metrics").map_err(Failure::usage)?,
    };
    if named.len() > FRONT_ENDS_MAX {
        return Err(Failure::usage(anyhow!("--metrics: at most {FRONT_ENDS_MAX} front ends")));
    }
    block_on(async {
        let mut before = look(global, &named).await?;
        loop {
            sleep(interval).await;
            let now = match look(global, &named).await {
                Ok(now) => now,
                Err(failure) if args.once => return Err(failure),
                // A live view outlives an election, and says that it knows nothing meanwhile.
                Err(failure) => {
                    begin_screen(out)?;
                    writeln!(out, "health    UNKNOWN: {}", failure.line().unwrap_or_default())?;
                    out.flush()?;
                    continue;
                }
            };
            let view = sample::compare(&before, &now);
            if args.json {
                return output::json(out, &view);
            }
            if !args.once {
                begin_screen(out)?;
            }
            let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let rows = if args.once { usize::MAX } else { ROWS_MAX };
            write!(out, "{}", screen(&view, color, rows))?;
            out.flush()?;
            if args.once {
                return Ok(());
            }
            before = now;
        }
    })
}

/// A terminal is cleared; in a pipe, screens follow each other.
fn begin_screen(out: &mut dyn Write) -> Outcome {
    match std::io::stdout().is_terminal() {
        true => write!(out, "\x1b[H\x1b[J")?,
        false => writeln!(out)?,
    }
    Ok(())
}

async fn look(global: &Global, named: &[SocketAddr]) -> Outcome<Look> {
    let snapshot = Admin::connect(global)?.snapshot().await?;
    let asked = match named.is_empty() {
        true => vec![usual_front_end(&snapshot.from)],
        false => named.to_vec(),
    };
    let mut front_ends = BTreeMap::new();
    for address in asked {
        let said = scrape::volumes(address).await.map_err(|error| format!("{error:#}"));
        front_ends.insert(address, said);
    }
    Ok(Look { at: Instant::now(), snapshot, front_ends })
}

/// Of the `trefoil up` here, if it is that monitor's.
fn usual_front_end(monitor: &str) -> SocketAddr {
    let state = State::load(Path::new(DIR_DEFAULT)).ok().flatten();
    let ours = state.filter(|state| state.monitor.to_string() == monitor);
    ours.and_then(|state| state.metrics.get("nbd").copied()).unwrap_or(FRONT_END_DEFAULT)
}

fn screen(view: &TopView, color: bool, rows_max: usize) -> String {
    let mut text = String::new();
    let status = &view.status;
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label:<10}{value}");
    };
    let heard = status.checks.iter().filter(|check| check.muted.is_none());
    let codes: Vec<String> = heard.map(|check| printable(&check.code)).collect();
    line("health", [health(status.health, &status.checks, color), codes.join(" ")].join(" ").trim_end());
    let (nodes, pgs, volumes) = (&status.nodes, &status.pgs, &status.volumes);
    let unknown = if nodes.unknown > 0 { format!(" ({} unknown)", nodes.unknown) } else { String::new() };
    let cluster = format!(
        "{} of {} nodes up{unknown}, {} of {} pgs active, {} of {} volumes attached, {} of {} used",
        nodes.up,
        nodes.total,
        pgs.active,
        pgs.total,
        volumes.attached,
        volumes.total,
        Size(status.space.used_bytes),
        Size(status.space.total_bytes)
    );
    line("cluster", &cluster);
    line("recovery", &recovery(view));
    for front_end in &view.front_ends {
        if let Some(error) = &front_end.error {
            let words = format!(
                "{}: no metrics ({}); name others with --metrics",
                front_end.metrics,
                printable(error)
            );
            line("front end", &words);
        }
    }
    text.push('\n');
    let headers = [
        "NODE",
        "HOST",
        "STATE",
        ">USED",
        ">READ/S",
        ">WRITE/S",
        ">READ B/S",
        ">WRITE B/S",
        ">DEV READ",
        ">DEV WRITE",
        ">BEHIND",
    ];
    table(&mut text, &headers, view.nodes.iter().map(node_row), rows_max);
    if !view.volumes.is_empty() {
        text.push('\n');
        let headers = [
            "VOLUME",
            "STATE",
            ">READ/S",
            ">WRITE/S",
            ">READ B/S",
            ">WRITE B/S",
            ">READ",
            ">READ P99",
            ">WRITE",
            ">WRITE P99",
            ">IN FLIGHT",
        ];
        // The busiest first.
        let mut volumes: Vec<&VolumeTop> = view.volumes.iter().collect();
        let busy = |it: &VolumeTop| it.io.map_or(-1.0, |io| io.reads_per_s + io.writes_per_s);
        volumes.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
        table(&mut text, &headers, volumes.into_iter().map(volume_row), rows_max);
    }
    text
}

fn recovery(view: &TopView) -> String {
    let recovery = &view.recovery;
    let mut text = match recovery.now.copies_behind {
        0 => "no copies behind".to_owned(),
        n => format!("{n} copies behind on {}", count(recovery.now.nodes_behind, "node")),
    };
    if let Some(left) = recovery.seconds_left {
        let _ = write!(text, ", {:.1}/s, about {} left", recovery.copies_per_s, duration(left));
    } else if recovery.copies_per_s < 0.0 {
        let _ = write!(text, ", {:.1}/s more", -recovery.copies_per_s);
    }
    let silent = view.status.nodes.total.saturating_sub(recovery.now.nodes_known);
    if silent > 0 {
        let _ = write!(text, " among the nodes that are up; not known of {silent}");
    }
    text
}

fn table(
    text: &mut String,
    headers: &[&str],
    rows: impl ExactSizeIterator<Item = Vec<String>>,
    rows_max: usize,
) {
    let more = rows.len().saturating_sub(rows_max);
    let _ = writeln!(text, "{}", output::table(headers, rows.take(rows_max)));
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
}

fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn number(value: f64) -> String {
    format!("{value:.0}")
}

fn bytes(value: f64) -> String {
    Size(value.round() as u64).to_string()
}

/// Microseconds in the unit that fits.
fn time(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0}us"),
        us if us < 1e6 => format!("{:.1}ms", us / 1e3),
        us => format!("{:.1}s", us / 1e6),
    }
}

fn rate_cells(io: Option<Rates>) -> [String; 4] {
    [
        or_dash(io, |io| number(io.reads_per_s)),
        or_dash(io, |io| number(io.writes_per_s)),
        or_dash(io, |io| bytes(io.read_bytes_per_s)),
        or_dash(io, |io| bytes(io.write_bytes_per_s)),
    ]
}

fn node_row(it: &NodeTop) -> Vec<String> {
    let used = it.node.used_bytes.zip(it.space_bytes);
    let used = or_dash(used, |(used, all)| format!("{} %", u128::from(used) * 100 / u128::from(all.max(1))));
    let mut row = vec![it.node.id.to_string(), it.node.host.clone(), it.node.state.to_owned(), used];
    row.extend(rate_cells(it.io));
    row.push(or_dash(it.device_read_us, |us| time(us as f64)));
    row.push(or_dash(it.device_write_us, |us| time(us as f64)));
    row.push(or_dash(it.node.copies_behind, |n| n.to_string()));
    row
}

fn volume_row(it: &VolumeTop) -> Vec<String> {
    let mut row = vec![it.volume.name.clone(), it.volume.state.to_owned()];
    row.extend(rate_cells(it.io));
    for times in [it.read, it.write] {
        row.push(or_dash(times, |times: Times| time(times.mean_us)));
        row.push(or_dash(times, |times: Times| time(times.p99_us)));
    }
    row.push(or_dash(it.in_flight, |n| n.to_string()));
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_the_unit_that_fits_and_what_is_not_known_is_a_dash() {
        assert_eq!([12.4, 1500.0, 2.5e6].map(time), ["12us", "1.5ms", "2.5s"]);
        assert_eq!(rate_cells(None), ["-"; 4]);
        let io = Rates { reads_per_s: 10.4, write_bytes_per_s: 4096.0, ..Rates::default() };
        assert_eq!(rate_cells(Some(io)), ["10", "0", "0 B", "4 KiB"]);
    }

    #[test]
    fn more_rows_than_fit_are_counted() {
        let mut text = String::new();
        let rows = (0..5).map(|n| vec![n.to_string()]).collect::<Vec<_>>();
        table(&mut text, &[">N"], rows.into_iter(), 2);
        assert_eq!(text, "N\n0\n1\nand 3 more\n");
    }
}
