//! Logs: tracing to standard error, so that standard output is the command's own.

use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. `filter` (a `tracing` filter such as `info,trefoil_nbd=debug`) wins; without it
/// `quiet` is the level, and each `-v` makes it one step more talkative.
///
/// # Errors
///
/// The filter is not one.
pub fn start(filter: Option<&str>, quiet: &str, verbose: u8) -> anyhow::Result<()> {
    const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
    let base = LEVELS.iter().position(|level| *level == quiet).unwrap_or(1);
    let level = LEVELS[(base + usize::from(verbose)).min(LEVELS.len() - 1)];
    let filter = match filter {
        Some(text) => EnvFilter::try_new(text).with_context(|| {
            format!("--log {text:?} is no filter: give a level or TARGET=LEVEL,..., such as info")
        })?,
        // What libraries say below a warning is for those who ask for it by name. The target is a
        // prefix: all of our crates have it. Raft says several times a second that a monitor is away; ours
        // say it once.
        None if base + usize::from(verbose) > 1 => {
            EnvFilter::try_new(format!("warn,openraft=off,trefoil={level}"))?
        }
        None => EnvFilter::try_new(format!("{level},openraft=off"))?,
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start (tests in one process) keeps the first.
    let _ = logs.with_ansi(std::io::stderr().is_terminal()).try_init();
    Ok(())
}
