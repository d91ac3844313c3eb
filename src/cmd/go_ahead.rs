//! Whether a change of what is wanted where is made: what all such commands say, refuse and ask.
//!
//! A change is worked out on the map as it is, and foretold; here it is shown, refused where it makes things worse,
//! and asked about where data would move. Nothing here makes it.

use super::crush::change::Rates;
use super::crush::diff::{self, DiffView, Shown};
use crate::failure::Outcome;
use crate::output::{self, count};
use anyhow::{anyhow, bail, ensure};
use clap::Args;
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Write};

/// How often a change is worked out again because somebody else was faster.
pub const TRIES_MAX: usize = 5;

/// The options of every change.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Make it although rules would no longer find enough places, or nodes would be too small
    #[arg(long)]
    pub force: bool,
    /// Do not ask, although data would move
    #[arg(long)]
    pub yes: bool,
    /// Say what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub rates: Rates,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// A change as it was worked out.
pub struct Proposal<'a> {
    /// It changes nothing.
    pub same: bool,
    /// What it does, in words; may be empty.
    pub does: &'a [String],
    /// What it moves.
    pub diff: &'a DiffView,
    /// What is strange about it.
    pub notes: &'a [String],
}

/// Whether the change is to be made, having said what it does. If not, all has been said. `report`: the change for
/// scripts, as not made.
///
/// Errors: it makes things worse, and nobody has forced it; nobody has confirmed it.
pub fn go_ahead(
    proposal: &Proposal<'_>,
    report: &impl Serialize,
    options: &Options,
    out: &mut dyn Write,
) -> Outcome<bool> {
    if proposal.same {
        say("nothing to do: it is so already", report, options, out)?;
        return Ok(false);
    }
    if !options.json {
        for line in proposal.does {
            writeln!(out, "{}", output::printable(line))?;
        }
        diff::print(proposal.diff, if options.dry_run { Shown::All } else { Shown::Summary }, out)?;
        for line in proposal.notes {
            writeln!(out, "note: {line}")?;
        }
    }
    if options.dry_run {
        say("nothing was changed (--dry-run)", report, options, out)?;
        return Ok(false);
    }
    refuse(proposal.diff, options)?;
    if proposal.diff.moved_pgs > 0 && !options.yes {
        out.flush()?;
        confirm(proposal.diff)?;
    }
    Ok(true)
}

/// What came of it: a line for people, the report for scripts.
pub fn say(text: &str, report: &impl Serialize, options: &Options, out: &mut dyn Write) -> Outcome {
    match options.json {
        true => output::json(out, report),
        false => Ok(writeln!(out, "{text}")?),
    }
}

/// Somebody else was faster: it is worked out again.
pub fn once_more() {
    output::tell("the CRUSH map was changed by somebody else meanwhile: once more");
}

/// Somebody else was faster [`TRIES_MAX`] times.
pub fn too_often() -> anyhow::Error {
    anyhow!(
        "the CRUSH map was changed by somebody else {TRIES_MAX} times while this was worked out: \
         try again when they are done"
    )
}

fn refuse(view: &DiffView, options: &Options) -> anyhow::Result<()> {
    if view.problems.is_empty() || options.force {
        return Ok(());
    }
    bail!("nothing was changed: {}; say --force if that is what you want", view.problems.join("; "))
}

/// Asks a person; a script has to say `--yes`.
fn confirm(view: &DiffView) -> anyhow::Result<()> {
    let pgs = count(view.moved_pgs, "placement group");
    ensure!(
        std::io::stdin().is_terminal(),
        "nothing was changed: {pgs} would move, and nobody is there to be asked: say --yes"
    );
    write!(std::io::stderr(), "{pgs} would move. Go on? Type yes: ")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    ensure!(answer.trim() == "yes", "not confirmed: nothing was changed");
    Ok(())
}
