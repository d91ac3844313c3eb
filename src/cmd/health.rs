//! `trefoil health`: what is not as it should be, what it means, what to do; muting it, and taking note of deaths.
//!
//! Nothing here decides what is healthy: the monitor does.

use super::Global;
use super::status::health_word;
use crate::admin::{self, Admin};
use crate::failure::{EXIT_ERR, EXIT_WARN, Failure, Outcome};
use crate::output::{self, count, duration, printable};
use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::time::Duration;
use trefoil_monitor::health::{CHECKS, Check, CheckKind, Health};

/// Where each code has its page.
const PAGE: &str = "docs/operations.md";

/// Show what is not as it should be and what to do about it; mute checks, take note of crashes
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  trefoil health
  trefoil health --detail
  trefoil health --json | jq -r '.checks[] | select(.muted == null) | .code'
  trefoil health mute NODE_DOWN --for 4h --because 'new power supply'
  trefoil health unmute NODE_DOWN
  trefoil health ack-crash node.3

Exit code with --exit-code: 4 at HEALTH_WARN, 5 at HEALTH_ERR. Muted checks do not count."
)]
pub struct HealthArgs {
    #[command(subcommand)]
    command: Option<HealthCommand>,
    /// Say which nodes, groups and so on each check is about, what it means, and where its page is
    #[arg(long)]
    detail: bool,
    /// List every check that there is, whether it applies or not
    #[arg(long, conflicts_with = "detail")]
    codes: bool,
    /// Exit with 4 at HEALTH_WARN and 5 at HEALTH_ERR
    #[arg(long, conflicts_with = "codes")]
    exit_code: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum HealthCommand {
    Mute(MuteArgs),
    /// Hear of a muted check again
    Unmute {
        /// Its code
        code: String,
    },
    AckCrash(AckArgs),
}

/// Do not hear of a check for a while
///
/// It is still shown, as muted, and does not count for the whole. The mute ends when its time is over, when the check
/// does not apply any more, and when it becomes worse (counts more than now).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  trefoil health mute NODE_DOWN --for 4h --because 'new power supply'
  trefoil health mute NODE_OUT --for 2d")]
struct MuteArgs {
    /// Its code
    code: String,
    /// For how long: 30m, 4h, 2d; at most 30d
    #[arg(long = "for", value_name = "TIME")]
    time: Span,
    /// Why, for whoever sees it
    #[arg(long, value_name = "TEXT", default_value = "")]
    because: String,
}

/// Take note that daemons have died (DAEMON_DIED_RECENTLY)
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  trefoil health ack-crash node.3 monitor.1
  trefoil health ack-crash 'front end host7/nbd'
  trefoil health ack-crash --all")]
struct AckArgs {
    /// Which ones, as `trefoil health --detail` names them
    #[arg(value_name = "DAEMON", required_unless_present = "all", conflicts_with = "all")]
    daemons: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// A length of time: a number and s, m, h, d or w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span(Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let wrong = || format!("{text:?} is no length of time: give a number and a unit, as 30m, 4h or 2d");
        let unit = text.chars().next_back().ok_or_else(wrong)?;
        let seconds: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return Err(wrong()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        let all = number.checked_mul(seconds).filter(|all| *all > 0).ok_or_else(wrong)?;
        Ok(Span(Duration::from_secs(all)))
    }
}

#[derive(Serialize)]
struct HealthView<'a> {
    health: Health,
    checks: &'a [Check],
}

#[derive(Serialize)]
struct CodeView {
    code: &'static str,
    health: Health,
    meaning: &'static str,
    remedy: &'static str,
}

/// Runs the command.
pub fn run(args: &HealthArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    match &args.command {
        Some(HealthCommand::Mute(mute)) => return run_mute(mute, global, out),
        Some(HealthCommand::Unmute { code }) => {
            let code = code.to_uppercase();
            admin::block_on(async { Admin::connect(global)?.unmute(code.clone()).await })?;
            return Ok(writeln!(out, "{code} is not muted any more")?);
        }
        Some(HealthCommand::AckCrash(ack)) => {
            let daemons = ack.daemons.clone();
            admin::block_on(async { Admin::connect(global)?.acknowledge_deaths(daemons).await })?;
            let whose = if ack.all { "all daemons".to_owned() } else { ack.daemons.join(", ") };
            return Ok(writeln!(out, "taken note of: {whose}")?);
        }
        None if args.codes => return codes(args.json, out),
        None => {}
    }
    let status = admin::snapshot(global)?.status;
    if args.json {
        output::json(out, &HealthView { health: status.health, checks: &status.checks })?;
    } else {
        let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        write!(out, "{}", text(status.health, &status.checks, args.detail, color))?;
    }
    match status.health {
        Health::HEALTH_WARN if args.exit_code => Err(Failure::code(EXIT_WARN)),
        Health::HEALTH_ERR if args.exit_code => Err(Failure::code(EXIT_ERR)),
        _ => Ok(()),
    }
}

fn run_mute(mute: &MuteArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let code = mute.code.to_uppercase();
    if !CHECKS.iter().any(|check| check.code == code) {
        return Err(Failure::usage(anyhow!(
            "there is no health check {code}; `trefoil health --codes` lists all"
        )));
    }
    let (time, because) = (mute.time.0, mute.because.clone());
    admin::block_on(async { Admin::connect(global)?.mute(code.clone(), time, because).await })?;
    writeln!(out, "{code} is muted for {}, unless it clears or becomes worse", duration(time.as_secs()))?;
    Ok(())
}

fn codes(json: bool, out: &mut dyn Write) -> Outcome {
    if json {
        let view = |it: &CheckKind| CodeView {
            code: it.code,
            health: it.health,
            meaning: it.meaning,
            remedy: it.remedy,
        };
        return output::json(out, &CHECKS.iter().map(view).collect::<Vec<_>>());
    }
    for check in CHECKS {
        writeln!(out, "{} ({:?})\n  {}\n  > {}", check.code, check.health, check.meaning, check.remedy)?;
    }
    Ok(())
}

/// For people: the worst first, the muted ones last.
fn text(health: Health, checks: &[Check], detail: bool, color: bool) -> String {
    let mut lines = vec![super::status::health(health, checks, color)];
    for check in checks {
        let code = match check.muted {
            None => health_word(&check.code, check.health, color),
            Some(_) => check.code.clone(),
        };
        lines.push(format!("{code}: {}{}", printable(&check.summary), muted(check)));
        if detail {
            lines.extend(check.details.iter().map(|it| format!("    {}", printable(it))));
            let more = check.count.saturating_sub(check.details.len() as u64);
            if more > 0 && !check.details.is_empty() && check.code != "DAEMON_DIED_RECENTLY" {
                lines.push(format!("    and {more} more"));
            }
            if let Some(kind) = CHECKS.iter().find(|kind| kind.code == check.code) {
                lines.push(format!("  {}", kind.meaning));
            }
        }
        lines.push(format!("  > {}", printable(&check.remedy)));
    }
    if detail && !checks.is_empty() {
        lines.push(format!("{} in {PAGE}, Health codes", count(checks.len() as u64, "code")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// ` [muted, 3h59m left: reason]`, or nothing.
pub fn muted(check: &Check) -> String {
    let Some(muted) = &check.muted else { return String::new() };
    let because = match muted.because.as_str() {
        "" => String::new(),
        because => format!(": {}", printable(because)),
    };
    format!(" [muted, {} left{because}]", duration(muted.left_s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_monitor::health::Muted;

    fn check(code: &str, health: Health, muted: Option<Muted>) -> Check {
        Check {
            code: code.to_owned(),
            health,
            summary: "2 nodes down".to_owned(),
            details: vec!["node.1".to_owned(), "node.2".to_owned()],
            remedy: "Look.".to_owned(),
            count: 3,
            muted,
        }
    }

    #[test]
    fn lengths_of_time_are_read() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("4h", 14_400), ("2d", 172_800), ("1w", 604_800)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
        }
        for bad in ["", "h", "4", "0h", "-1h", "4 h", "99999999999999999999d", "99999999999999w", "1é"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_muted_check_is_shown_and_is_not_the_health() {
        let left = Muted { left_s: 3600, because: "power".to_owned() };
        let checks = [check("NODE_DOWN", Health::HEALTH_WARN, Some(left))];
        let shown = text(Health::HEALTH_OK, &checks, false, false);
        let expected =
            "HEALTH_OK (muted: NODE_DOWN)\nNODE_DOWN: 2 nodes down [muted, 1h00m left: power]\n  > Look.\n";
        assert_eq!(shown, expected);
        let shown = text(Health::HEALTH_WARN, &[check("NODE_DOWN", Health::HEALTH_WARN, None)], true, true);
        for part in
            ["\x1b[1;33mNODE_DOWN\x1b[0m: 2", "    node.2\n    and 1 more\n", "1 code in docs/operations.md"]
        {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }
}
