//! `trefoil pg scrub`: copies compared now.
//!
//! Monitors keep a bounded number of orders for each node, and hand them out as the node has room. What is more waits
//! here: nothing is left half ordered because there was much of it.

use super::Global;
use crate::admin::{self, Admin, Ordered};
use crate::failure::{Failure, Outcome};
use crate::output::{count as count_of, tell};
use anyhow::anyhow;
use clap::Args;
use std::io::Write;
use std::time::{Duration, Instant};
use trefoil_core::ids::PgId;

/// The pause before an order that was not taken is given again.
const PAUSE: Duration = Duration::from_secs(1);
/// An order that was not taken for so long is given up: by then a node that does not fetch its orders has lost them.
const STUCK: Duration = Duration::from_secs(600);
/// Between two words on how far it is.
const TELL: Duration = Duration::from_secs(10);

/// Compare the copies of placement groups now; with --deep, read and verify every block
#[derive(Args, Debug)]
#[command(after_help = "\
Each node that has a copy looks at its own. What is found is in `trefoil status`, in the
metrics and in the nodes' logs. Scrubs come by themselves, too: see scrub_light_hours and scrub_deep_hours in
the nodes' configuration. Where a node has as many orders as it takes, the command waits until it has room.

Examples:
  trefoil pg scrub 1.7
  trefoil pg scrub 1.7 1.8 --deep
  trefoil pg scrub --all")]
pub struct ScrubArgs {
    /// Which ones, as `trefoil pg list` shows them
    #[arg(value_name = "PG", value_parser = super::pg::pg_id, required_unless_present = "all", conflicts_with = "all")]
    pgs: Vec<PgId>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// Read every block, too, and verify it against its checksum
    #[arg(long)]
    deep: bool,
}

/// Runs `trefoil pg scrub`.
pub fn scrub(args: &ScrubArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let mut pgs = args.pgs.clone();
    let count = admin::block_on(async {
        let mut admin = Admin::connect(global)?;
        if args.all {
            pgs = admin.map().await?.1.pgs.iter().map(|(id, _)| id).collect();
        }
        let mut waiting = Waiting::default();
        for (done, pg) in pgs.iter().enumerate() {
            while let Ordered::Later(why) = admin.order_scrub(*pg, args.deep).await? {
                waiting.step(done, pgs.len(), &why)?;
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(pgs.len())
    })?;
    let kind = if args.deep { "deep" } else { "light" };
    writeln!(out, "{kind} scrub ordered: {}", count_of(count as u64, "placement group"))?;
    Ok(())
}

/// Orders wait for nodes that have as many as they take.
#[derive(Default)]
struct Waiting {
    /// The order that waits, and since when.
    at: Option<(usize, Instant)>,
    told: Option<Instant>,
}

impl Waiting {
    /// Says now and then how far it is.
    ///
    /// Errors: nothing has moved for [`STUCK`].
    fn step(&mut self, done: usize, all: usize, why: &str) -> Outcome {
        let now = Instant::now();
        let since = match self.at {
            Some((at, since)) if at == done => since,
            _ => self.at.insert((done, now)).1,
        };
        if now.duration_since(since) >= STUCK {
            return Err(Failure::from(anyhow!(
                "{done} of {all} scrubs were ordered; the next one has waited for {} s: {why}. Is a node stuck? \
                 See `trefoil health`; those that were ordered go on",
                STUCK.as_secs()
            )));
        }
        if self.told.is_none_or(|told| now.duration_since(told) >= TELL) {
            self.told = Some(now);
            tell(&format!("{done} of {all} scrubs ordered; the others wait for room: {why}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_room_gives_up_only_when_nothing_moves() {
        let mut waiting = Waiting::default();
        assert!(waiting.step(5, 9, "full").is_ok());
        waiting.at = waiting.at.map(|(at, since)| (at, since - STUCK));
        let error = waiting.step(5, 9, "full").unwrap_err().line().unwrap();
        assert!(error.starts_with("5 of 9 scrubs were ordered") && error.contains("full"), "{error}");
        assert!(waiting.step(6, 9, "full").is_ok(), "one more was taken meanwhile");
    }
}
