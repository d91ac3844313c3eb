//! How a change of what is wanted where is made, other than by editing the CRUSH map: nodes drained or out, a pool's
//! rule.
//!
//! As `crush::change` does it: work the change out on a copy of the map, foretell what it moves, refuse what makes
//! things worse, ask if anything would move, then have the monitors do it. The change itself is the map's own
//! command, so what is foretold is what is done.

use super::Global;
use super::crush::diff::{self, DiffView};
use super::go_ahead::{Options, Proposal, TRIES_MAX, go_ahead, once_more, say, too_often};
use crate::admin::{self, Admin, Replaced};
use crate::failure::Outcome;
use anyhow::anyhow;
use serde::Serialize;
use std::io::Write;
use trefoil_core::map::{ClusterMap, Command};

/// What was done, for scripts.
#[derive(Serialize)]
struct WishView<'a> {
    changed: bool,
    done: &'a str,
    diff: &'a DiffView,
}

/// Makes a change. `commands`: what it is on a map. `perform`: asks the monitors for it, as it was seen on that map.
/// `done`: what is said when it is done.
///
/// Errors: the map refuses it; it makes things worse, and nobody has forced it; nobody has confirmed it.
pub fn make(
    commands: impl Fn(&ClusterMap) -> Vec<Command>,
    perform: impl AsyncFn(&mut Admin, &ClusterMap) -> Outcome<Replaced>,
    done: &str,
    options: &Options,
    global: &Global,
    out: &mut dyn Write,
) -> Outcome {
    for _ in 0..TRIES_MAX {
        let snapshot = admin::snapshot(global)?;
        let mut later = snapshot.map.clone();
        for command in commands(&snapshot.map) {
            later.apply(&command).map_err(|error| anyhow!("nothing was changed: {error}"))?;
        }
        let view = diff::view_later(&snapshot, &later, options.rates);
        let mut report = WishView { changed: false, done: "", diff: &view };
        let same = later.version == snapshot.map.version;
        let proposal = Proposal { same, does: &[], diff: &view, notes: &[] };
        if !go_ahead(&proposal, &report, options, out)? {
            return Ok(());
        }
        let performed = admin::block_on(async {
            let mut admin = Admin::connect(global)?;
            perform(&mut admin, &snapshot.map).await
        })?;
        if performed == Replaced::Changed {
            once_more();
            continue;
        }
        (report.changed, report.done) = (true, done);
        return say(done, &report, options, out);
    }
    Err(too_often().into())
}
