//! `trefoil events`: what has happened to the cluster, and, with `--follow`, what happens.

use super::Global;
use crate::admin::{self, Admin};
use crate::failure::{Failure, Outcome};
use crate::output;
use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use trefoil_core::map::Event;
use trefoil_core::map::events::Happened;

/// How long one question waits for news.
const WAIT: Duration = Duration::from_secs(20);
/// The pause after a question that failed, with `--follow`.
const PAUSE: Duration = Duration::from_secs(1);

/// Show what has happened: nodes that came and went, volumes and pools that were made and removed
///
/// The monitors keep the last 4096 events; each of them shows the same.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  trefoil events
  trefoil events --last 100 --warnings
  trefoil events --follow
  trefoil events --since 2h --json | jq -r 'select(.warning) | .text'")]
pub struct EventsArgs {
    /// Go on, and show events as they happen
    #[arg(short, long)]
    follow: bool,
    /// At most so many of those that have been, the last ones
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: usize,
    /// Only those of this time: 90s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = time_span)]
    since: Option<Duration>,
    /// Only what somebody should look at: nodes down, lost or out
    #[arg(short, long)]
    warnings: bool,
    /// Write JSON, one event a line
    #[arg(long)]
    json: bool,
}

/// `90s`, `15m`, `2h`, `7d`.
fn time_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write 90s, 15m, 2h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number.checked_mul(seconds).ok_or_else(wrong)?))
}

#[derive(Serialize)]
struct EventView<'a> {
    seq: u64,
    at_ms: u64,
    warning: bool,
    text: String,
    event: &'a Happened,
}

/// `2026-11-21 13:05:09 UTC`.
fn time(at_ms: u64) -> String {
    let time = i64::try_from(at_ms).ok().and_then(chrono::DateTime::from_timestamp_millis);
    time.map_or_else(|| format!("{at_ms} ms"), |time| time.format("%F %T UTC").to_string())
}

/// Runs `trefoil events`.
pub fn run(args: &EventsArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    admin::block_on(async {
        let mut admin = Admin::connect(global)?;
        let mut events = Vec::new();
        let mut seen = 0;
        loop {
            let (more, last) = admin.events(seen, Duration::ZERO).await?;
            seen = more.last().map_or(last, |event| event.seq);
            events.extend(more);
            if seen >= last {
                break;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
        let from = args.since.map_or(0, |since| now.saturating_sub(since.as_millis() as u64));
        let wanted = |event: &&Event| event.at >= from && (!args.warnings || event.what.is_warning());
        let shown: Vec<&Event> = events.iter().filter(wanted).collect();
        show(args, &shown[shown.len().saturating_sub(args.last)..], out)?;
        if !args.follow {
            return Ok(());
        }
        loop {
            match admin.events(seen, WAIT).await {
                Ok((events, last)) => {
                    // Fewer than there were: the monitors are those of a backup that was restored.
                    seen = events.last().map_or(last, |event| event.seq);
                    let shown: Vec<&Event> = events.iter().filter(wanted).collect();
                    show(args, &shown, out)?;
                }
                Err(error) => {
                    tracing::warn!(
                        error = error.line().as_deref(),
                        "no news from the monitors; trying again"
                    );
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

fn show(args: &EventsArgs, events: &[&Event], out: &mut dyn Write) -> Outcome {
    for event in events {
        let (text, warning) = (event.what.to_string(), event.what.is_warning());
        if args.json {
            let view = EventView { seq: event.seq, at_ms: event.at, warning, text, event: &event.what };
            let line = serde_json::to_string(&view).map_err(|error| Failure::from(anyhow!(error)))?;
            writeln!(out, "{line}")?;
        } else {
            let mark = if warning { "!" } else { " " };
            writeln!(out, "{}  {mark} {}", time(event.at), output::printable(&text))?;
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_are_read_or_refused() {
        assert_eq!(time_span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time_span("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "5", "h", "-1h", "1w", "1é", "99999999999999999999d", "999999999999999999d"] {
            assert!(time_span(wrong).is_err_and(|text| text.contains("is no time")), "{wrong}");
        }
    }

    #[test]
    fn times_are_of_one_zone_and_say_so() {
        assert_eq!(time(1_795_266_309_000), "2026-11-21 13:05:09 UTC");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
    }
}
