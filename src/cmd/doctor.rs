//! `trefoil doctor`: shows what was found of this host, worst last, with what to do.
//!
//! Changes nothing and needs no cluster. What the findings mean stands in `docs/operations.md`.

use crate::doctor::daemons::Daemons;
use crate::doctor::host::{Host, Live};
use crate::doctor::{Finding, Level, examine};
use crate::failure::{Failure, Outcome};
use crate::output::{self, count, printable};
use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Where `trefoil init --config-dir` and the systemd units have configurations.
pub const CONFIG_DIR: &str = "/etc/trefoil";

const EXAMPLES: &str = "\
Examples:
  trefoil doctor                                    # this host, with all daemons in /etc/trefoil
  trefoil doctor --config trefoil-data/etc/node-0.toml
  trefoil doctor --json | jq -r '.findings[] | select(.level != \"OK\") | .code'

Run it as root on a host before it is trusted with data, and after a change of kernel, disks,
network or configuration. It changes nothing. What it could not look at it does not list.

Exit codes:
  0  nothing but OK
  1  at least one WARN
  2  at least one ERROR (or wrong usage)";

/// Check this host: limits, connection tracking, clocks, io_uring, disks, memory, space, network
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// A daemon's configuration, in place of all in --config-dir; may be given several times
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// The directory with monitor/, storage-node/ and nbd/
    #[arg(long, value_name = "DIR", default_value = CONFIG_DIR, conflicts_with = "config")]
    config_dir: PathBuf,
    /// Look at the copy of a host below DIR: at its files alone, without asking the kernel
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` shows.
#[derive(Serialize)]
struct View<'a> {
    level: Level,
    daemons: usize,
    findings: &'a [Finding],
}

/// Runs the command.
pub fn run(args: &DoctorArgs, out: &mut dyn Write) -> Outcome {
    let host = match args.root.as_path() {
        root if root == std::path::Path::new("/") => Host::here(),
        root if root.is_dir() => Host::below(root, Live::default()),
        root => return Err(Failure::usage(anyhow!("--root {}: there is no such directory", root.display()))),
    };
    let mut daemons = Daemons::default();
    if args.config.is_empty() {
        daemons = Daemons::in_directory(&host, &args.config_dir);
    }
    for path in &args.config {
        daemons.add_file(path);
    }
    let findings = examine(&host, &daemons);
    let level = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if args.json {
        let daemons = daemons.all.len() + daemons.broken.len();
        output::json(out, &View { level, daemons, findings: &findings })?;
    } else {
        write!(out, "{}", screen(&findings))?;
    }
    match level {
        Level::Ok => Ok(()),
        Level::Warn => Err(Failure::code(1)),
        Level::Error => Err(Failure::code(2)),
    }
}

/// The table, and below it what to do.
fn screen(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    // Stable: within a level they stay in the order of the checks.
    sorted.sort_by_key(|finding| finding.level);
    let rows = sorted
        .iter()
        .map(|it| vec![it.level.to_string(), it.code.to_owned(), it.about.clone(), it.found.clone()]);
    let mut text = output::table(&["LEVEL", "CODE", "ABOUT", "FOUND"], rows) + "\n";
    let bad = |level| findings.iter().filter(|it| it.level == level).count() as u64;
    let (errors, warnings) = (bad(Level::Error), bad(Level::Warn));
    if errors + warnings == 0 {
        return text + "\nnothing to do\n";
    }
    text += "\nwhat to do:\n";
    for it in sorted.iter().rev().filter(|it| it.level != Level::Ok) {
        let about = if it.about.is_empty() { String::new() } else { format!(" ({})", printable(&it.about)) };
        let remedy = printable(it.remedy.as_deref().unwrap_or_default());
        text += &format!("  {}{about}: {remedy}\n", it.code);
    }
    text + &format!("\n{}, {}\n", count(errors, "error"), count(warnings, "warning"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_last_in_the_table_and_first_in_what_to_do() {
        let findings = [
            Finding::bad("B", Level::Error, "sdb", "gone", "bring it back"),
            Finding::ok("A", "", "fine"),
            Finding::bad("C", Level::Warn, "", "slow\x1b[2J", "hurry"),
        ];
        let text = screen(&findings);
        let lines: Vec<&str> = text.lines().collect();
        let begins = ["LEVEL  CODE", "OK     A", "WARN   C", "ERROR  B", "", "what to do:"];
        for (line, begin) in lines.iter().zip(begins) {
            assert!(line.starts_with(begin), "{text}");
        }
        assert_eq!(lines[6..], ["  B (sdb): bring it back", "  C: hurry", "", "1 error, 1 warning"]);
        assert!(!text.contains('\x1b'));
        assert!(screen(&findings[1..2]).ends_with("nothing to do\n"));
    }
}
