//! `trefoil status`: one screen that a tired person reads right.
//!
//! Nothing here decides what is healthy: the monitor does. Where it cannot be asked there is no screen
//! at all, but an error (see `admin`).

use super::Global;
use super::health::muted;
use crate::admin;
use crate::failure::{EXIT_ERR, EXIT_WARN, Failure, Outcome};
use crate::output::{self, count, duration, printable};
use crate::size::Size;
use crate::view::StatusView;
use clap::Args;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use trefoil_monitor::health::{Check, Health};

const EXAMPLES: &str = "\
Examples:
  trefoil status
  trefoil status --json | jq -r .health
  trefoil status --exit-code > /dev/null || echo 'look at the cluster'";

/// Details of one check on the screen.
const DETAILS_SHOWN: usize = 8;

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
    line("health", &health(status.health, &status.checks, color));
    for check in &status.checks {
        line("", &format!("{}: {}{}", word(check, color), printable(&check.summary), muted(check)));
        if check.muted.is_some() {
            continue;
        }
        if !check.details.is_empty() {
            line("", &format!("    {}", some_of(&check.details)));
        }
        line("", &format!("  > {}", printable(&check.remedy)));
    }
    let cluster = &status.cluster;
    line("cluster", &format!("{}, id {}, map {}", printable(&cluster.name), cluster.id, cluster.map_version));
    let monitor = &status.monitor;
    let mut value = format!("{} of {} up", monitor.up, monitor.total);
    let _ = write!(value, "; {} leads, for {}", monitor.leader, duration(monitor.leading_for_s));
    line("monitors", &value);

    let nodes = &status.nodes;
    let mut value = format!("{} of {} up", nodes.up, nodes.total);
    push_if(&mut value, nodes.silent, "of them silent (nobody knows how they are)");
    push_if(&mut value, nodes.down, "down");
    push_if(&mut value, nodes.unknown, "not heard of yet");
    push_if(&mut value, nodes.out, "out or drained");
    line("nodes", &value);

    let pgs = &status.pgs;
    let mut value = format!("{} of {} active", pgs.active, pgs.total);
    push_if(&mut value, pgs.degraded, "degraded (I/O goes on)");
    push_if(&mut value, pgs.unavailable, "UNAVAILABLE (I/O waits)");
    push_if(&mut value, pgs.moving, "on the move");
    line("pgs", &format!("{value}, in {}", count(status.pools, "pool")));

    let volumes = &status.volumes;
    let mut value = format!("{} of {} attached", volumes.attached, volumes.total);
    if volumes.attached > 0 {
        let _ = write!(value, " by {}", count(volumes.front_ends, "front end"));
    }
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

    line("io", &io(status));
    let recovery = &status.recovery;
    let mut value = match recovery.copies_behind {
        0 => "no copies behind".to_owned(),
        n => format!("{n} copies behind on {}", count(recovery.nodes_behind, "node")),
    };
    // A node that is away falls behind with every write, and cannot say how far.
    let silent = nodes.total.saturating_sub(recovery.nodes_known);
    if silent > 0 {
        value = format!("{value} among the nodes that are up; not known of {silent}");
    }
    if status.io.recovery_bytes_per_s > 0 {
        let _ = write!(value, ", {}/s from other nodes", Size(status.io.recovery_bytes_per_s));
    }
    match recovery.left_s {
        _ if recovery.copies_behind == 0 => {}
        Some(left) => _ = write!(value, ", about {} left", duration(left)),
        None => value += ", time left unknown",
    }
    push_if(&mut value, recovery.bad_blocks, "bad blocks");
    push_if(&mut value, recovery.checksum_errors, "checksum errors since the nodes started");
    line("recovery", &value);
    text
}

/// What nodes do for front ends, as far as it is known.
fn io(status: &StatusView) -> String {
    let (io, total) = (&status.io, status.nodes.total);
    if io.nodes_known == 0 {
        return "not known yet".to_owned();
    }
    let mut text = format!(
        "{} reads/s ({}/s), {} writes/s ({}/s), each copy counted",
        io.reads_per_s,
        Size(io.read_bytes_per_s),
        io.writes_per_s,
        Size(io.write_bytes_per_s)
    );
    if io.nodes_known < total {
        let _ = write!(text, "; not known of {}", count(total - io.nodes_known, "node"));
    }
    text
}

/// A check's code, in colour unless it is muted.
fn word(check: &Check, color: bool) -> String {
    health_word(&check.code, check.health, color && check.muted.is_none())
}

/// As many as fit a line; `--json` has more.
fn some_of(details: &[String]) -> String {
    let shown = details.iter().take(DETAILS_SHOWN).map(|detail| printable(detail));
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if details.len() > DETAILS_SHOWN {
        text += ", ...";
    }
    text
}

fn push_if(text: &mut String, n: u64, what: &str) {
    if n > 0 {
        let _ = write!(text, ", {n} {what}");
    }
}

/// `HEALTH_OK` and so on, in colour on a terminal; and what it does not count.
pub fn health(health: Health, checks: &[Check], color: bool) -> String {
    let word = match health {
        Health::HEALTH_OK => "HEALTH_OK",
        Health::HEALTH_WARN => "HEALTH_WARN",
        Health::HEALTH_ERR => "HEALTH_ERR",
    };
    let mut text = health_word(word, health, color);
    let muted = checks.iter().filter(|check| check.muted.is_some());
    let muted: Vec<String> = muted.map(|check| printable(&check.code)).collect();
    if !muted.is_empty() {
        let _ = write!(text, " (muted: {})", muted.join(", "));
    }
    text
}

/// A code in the colour of how bad it is.
pub fn health_word(word: &str, health: Health, color: bool) -> String {
    let word = printable(word);
    let code = match health {
        _ if !color => return word,
        Health::HEALTH_OK => "1;32",
        Health::HEALTH_WARN => "1;33",
        Health::HEALTH_ERR => "1;31",
    };
    format!("\x1b[{code}m{word}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::*;
    use trefoil_monitor::health::Muted;

    fn well() -> StatusView {
        StatusView {
            health: Health::HEALTH_OK,
            checks: vec![],
            cluster: ClusterView { name: "c".into(), id: "00".into(), map_version: 7 },
            monitor: MonitorView { leader: "127.0.0.1:1".into(), leading_for_s: 61, total: 3, up: 3 },
            nodes: NodeCounts { total: 3, up: 3, ..NodeCounts::default() },
            pgs: PgCounts { total: 32, active: 32, ..PgCounts::default() },
            pools: 1,
            volumes: VolumeCounts { total: 2, attached: 1, front_ends: 1, ..VolumeCounts::default() },
            space: SpaceView { nodes_known: 3, total_bytes: 300 << 30, used_bytes: 150 << 30 },
            recovery: RecoveryView { nodes_known: 3, ..RecoveryView::default() },
            io: IoView {
                nodes_known: 3,
                reads_per_s: 100,
                read_bytes_per_s: 4 << 20,
                writes_per_s: 30,
                write_bytes_per_s: 1 << 20,
                recovery_bytes_per_s: 0,
            },
        }
    }

    #[test]
    fn a_healthy_cluster_is_one_quiet_screen() {
        let expected = "\
health    HEALTH_OK
cluster   c, id 00, map 7
monitors  3 of 3 up; 127.0.0.1:1 leads, for 1m01s
nodes     3 of 3 up
pgs       32 of 32 active, in 1 pool
volumes   1 of 2 attached by 1 front end
space     150 GiB of 300 GiB used (50 %), copies counted
io        100 reads/s (4 MiB/s), 30 writes/s (1 MiB/s), each copy counted
recovery  no copies behind
";
        assert_eq!(screen(&well(), false), expected);
        assert!(screen(&well(), true).starts_with("health    \x1b[1;32mHEALTH_OK\x1b[0m\n"));
    }

    #[test]
    fn what_is_wrong_comes_first_and_what_is_not_known_is_not_well() {
        let mut status = well();
        status.health = Health::HEALTH_ERR;
        status.checks = vec![Check {
            code: "PG_UNAVAILABLE".into(),
            health: Health::HEALTH_ERR,
            summary: "12 placement groups without a majority".into(),
            details: (0..12).map(|i| format!("1.{i:x}")).collect(),
            remedy: "Bring them\nback.".into(),
            count: 12,
            muted: None,
        }];
        status.nodes = NodeCounts { total: 3, up: 1, down: 1, unknown: 1, silent: 1, out: 1 };
        status.pgs = PgCounts { total: 32, active: 0, degraded: 20, unavailable: 12, moving: 0 };
        (status.io.nodes_known, status.io.recovery_bytes_per_s) = (1, 3 << 20);
        status.recovery = RecoveryView { nodes_known: 1, bad_blocks: 2, ..RecoveryView::default() };
        let text = screen(&status, false);
        let expected = "\
health    HEALTH_ERR
          PG_UNAVAILABLE: 12 placement groups without a majority
              1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, ...
            > Bring them\u{fffd}back.
";
        assert!(text.starts_with(expected), "{text}");
        let nodes = "nodes     1 of 3 up, 1 of them silent (nobody knows how they are), 1 down, 1 not heard of yet, \
                     1 out or drained\n";
        assert!(text.contains(nodes), "{text}");
        let pgs =
            "pgs       0 of 32 active, 20 degraded (I/O goes on), 12 UNAVAILABLE (I/O waits), in 1 pool\n";
        assert!(text.contains(pgs), "{text}");
        let recovery = "recovery  no copies behind among the nodes that are up; not known of 2, 3 MiB/s from other nodes, 2 bad blocks\n";
        assert!(text.contains(recovery), "{text}");
        assert!(text.contains("counted; not known of 2 nodes\n"), "{text}");
        status.recovery =
            RecoveryView { nodes_known: 3, copies_behind: 5, nodes_behind: 1, ..status.recovery };
        let going = |status: &StatusView| {
            screen(status, false)
                .lines()
                .find(|line| line.starts_with("recovery"))
                .unwrap_or_default()
                .to_owned()
        };
        let text = going(&status);
        assert!(
            text.contains("5 copies behind on 1 node, 3 MiB/s from other nodes, time left unknown, 2"),
            "{text}"
        );
        status.recovery.left_s = Some(90);
        assert!(going(&status).contains("3 MiB/s from other nodes, about 1m30s left, 2 bad blocks"));
        status.io = IoView::default();
        assert!(screen(&status, false).contains("io        not known yet\n"));
        status.space = SpaceView::default();
        assert!(screen(&status, false).contains("space     not known: no node has been heard of yet\n"));
    }

    #[test]
    fn a_muted_check_is_one_line_and_the_health_says_that_there_is_one() {
        let mut status = well();
        status.checks = vec![Check {
            code: "NODE_DOWN".into(),
            health: Health::HEALTH_WARN,
            summary: "1 nodes down".into(),
            details: vec!["node.1".into()],
            remedy: "Look.".into(),
            count: 1,
            muted: Some(Muted { left_s: 14_400, because: "new disk".into() }),
        }];
        let text = screen(&status, false);
        let expected = "\
health    HEALTH_OK (muted: NODE_DOWN)
          NODE_DOWN: 1 nodes down [muted, 4h00m left: new disk]
cluster   c, id 00, map 7
";
        assert!(text.starts_with(expected), "{text}");
    }
}
