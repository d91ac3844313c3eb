//! `trefoil status`: one screen that a tired person reads right.
//!
//! Nothing here decides what is healthy: the monitor does. Where it cannot be asked there is no screen
//! at all, but an error (see `admin`).

use super::Global;
use crate::admin;
use crate::failure::{EXIT_ERR, EXIT_WARN, Failure, Outcome};
use crate::output::{self, count, duration, printable};
use crate::size::Size;
use crate::view::StatusView;
use clap::Args;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use trefoil_monitor::health::Health;

const EXAMPLES: &str = "\
Examples:
  trefoil status
  trefoil status --json | jq -r .health
  trefoil status --exit-code > /dev/null || echo 'look at the cluster'";

/// Show how the cluster is: health, nodes, placement groups, volumes, space, recovery
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct StatusArgs {
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Exit with 4 at HEALTH_WARN and 5 at HEALTH_ERR
    #[arg(long)]
    exit_code: bool,
}

/// Runs the command.
pub fn run(args: &StatusArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let status = admin::snapshot(global)?.status();
    if args.json {
        output::json(out, &status)?;
    } else {
        let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        write!(out, "{}", screen(&status, color))?;
    }
    match status.health {
        Health::HEALTH_WARN if args.exit_code => Err(Failure::code(EXIT_WARN)),
        Health::HEALTH_ERR if args.exit_code => Err(Failure::code(EXIT_ERR)),
        _ => Ok(()),
    }
}

/// The screen. Each line begins with what it is about; what is wrong comes first.
fn screen(status: &StatusView, color: bool) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label:<10}{value}");
    };
    line("health", &health(status.health, color));
    for check in &status.checks {
        line(
            "",
            &format!("{}: {}", health_word(&check.code, check.health, color), printable(&check.summary)),
        );
        for detail in &check.details {
            line("", &format!("    {}", printable(detail)));
        }
        line("", &format!("  > {}", printable(&check.remedy)));
    }
    let cluster = &status.cluster;
    line("cluster", &format!("{}, id {}, map {}", printable(&cluster.name), cluster.id, cluster.map_version));
    let monitor = &status.monitor;
    line("monitor", &format!("{} leads, for {}", monitor.leader, duration(monitor.leading_for_s)));

    let nodes = &status.nodes;
    let mut value = format!("{} of {} up", nodes.up, nodes.total);
    push_if(&mut value, nodes.down, "down");
    push_if(&mut value, nodes.unknown, "not heard of yet");
    line("nodes", &value);

    let pgs = &status.pgs;
    let mut value = format!("{} of {} active", pgs.active, pgs.total);
    push_if(&mut value, pgs.degraded, "degraded");
    push_if(&mut value, pgs.unavailable, "UNAVAILABLE");
    line("pgs", &format!("{value}, in {}", count(status.pools, "pool")));

    let volumes = &status.volumes;
    let mut value = format!("{} of {} attached", volumes.attached, volumes.total);
    push_if(&mut value, volumes.healing, "being healed");
    push_if(&mut value, volumes.needs_heal, "waiting to be healed");
    line("volumes", &value);

    let space = &status.space;
    line(
        "space",
        &match space.nodes_known {
            0 => "not known: no node has been heard of yet".to_owned(),
            known => {
                let percent = u128::from(space.used_bytes) * 100 / u128::from(space.total_bytes.max(1));
                let of_nodes =
                    if known == nodes.total { String::new() } else { format!(", on {known} nodes") };
                format!(
                    "{} of {} used ({percent} %), copies counted{of_nodes}",
                    Size(space.used_bytes),
                    Size(space.total_bytes)
                )
            }
        },
    );

    let recovery = &status.recovery;
    let mut value = match recovery.copies_behind {
        // Without every node's word, "none" would be a guess.
        0 if space.nodes_known < nodes.total => {
            format!("no copies behind on the {} heard of", count(space.nodes_known, "node"))
        }
        0 => "no copies behind".to_owned(),
        n => format!("{n} copies behind on {}", count(recovery.nodes_behind, "node")),
    };
    push_if(&mut value, recovery.bad_blocks, "bad blocks");
    push_if(&mut value, recovery.checksum_errors, "checksum errors since the nodes started");
    line("recovery", &value);
    text
}

fn push_if(text: &mut String, n: u64, what: &str) {
    if n > 0 {
        let _ = write!(text, ", {n} {what}");
    }
}

fn health(health: Health, color: bool) -> String {
    let word = match health {
        Health::HEALTH_OK => "HEALTH_OK",
        Health::HEALTH_WARN => "HEALTH_WARN",
        Health::HEALTH_ERR => "HEALTH_ERR",
    };
    health_word(word, health, color)
}

fn health_word(word: &str, health: Health, color: bool) -> String {
    let word = printable(word);
    let code = match health {
        _ if !color => return word,
        Health::HEALTH_OK => "1;32",
        Health::HEALTH_WARN => "1;33",
        Health::HEALTH_ERR => "1;31",
    };
    format!("\x1b[{code}m{word}\x1b[0m")
}
