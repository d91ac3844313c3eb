//! `trefoil pool set NAME pg_num N`: says what a split of placement groups will do, and does it.
//!
//! Whether it may be done is the monitors' to say; what will happen is worked out here, on a copy of their map.

use super::SetArgs;
use crate::admin::{self, Admin};
use crate::cmd::Global;
use crate::failure::Outcome;
use crate::output;
use anyhow::{Context, anyhow};
use serde::Serialize;
use std::io::Write;
use trefoil_core::crush::pg_split_parent;
use trefoil_core::map::{ClusterMap, Command};
use trefoil_core::{PgId, PoolId};

/// What it does.
#[derive(Debug, Serialize)]
struct Split {
    pool: String,
    /// Placement groups before and after.
    from: u32,
    to: u32,
    /// Placement groups that are split.
    split: u32,
    /// New ones that CRUSH wants on other nodes than those where they begin: they are moved later.
    to_be_moved: u32,
    /// False for `--dry-run`.
    done: bool,
}

/// Works it out, and checks that it can be.
fn plan(map: &ClusterMap, id: PoolId, seen: u32, pg_num: u32) -> anyhow::Result<Split> {
    let mut after = map.clone();
    after.apply(&Command::SetPgNum { pool: id, seen, pg_num })?;
    let pool = after.pools.get(&id).ok_or_else(|| anyhow!("the pool is gone"))?;
    let mut parents: Vec<u32> = (seen..pg_num).map(|pg| pg_split_parent(pg, seen)).collect();
    parents.sort_unstable();
    parents.dedup();
    let mut placer = after.placer();
    let mut to_be_moved = 0;
    for pg in seen..pg_num {
        let now = after.members(PgId { pool: id, pg });
        // A rule that finds too few places moves nothing.
        let wanted = placer.place(id, pool, pg).unwrap_or_default();
        to_be_moved += u32::from(now.is_some_and(|now| wanted.iter().any(|node| !now.is_member(*node))));
    }
    let split = parents.len() as u32;
    Ok(Split { pool: pool.name.clone(), from: seen, to: pg_num, split, to_be_moved, done: false })
}

/// Runs the command.
pub fn set(args: &SetArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let wanted: u32 = args
        .value
        .parse()
        .with_context(|| format!("pg_num {:?}: give a number of placement groups", args.value))?;
    let split = admin::block_on(async {
        let mut admin = Admin::connect(global)?;
        let map = admin.snapshot().await?.map;
        let (id, pool) = map.pool_named(&args.name).ok_or_else(|| {
            anyhow!("there is no pool {}: `trefoil pool list` shows which there are", args.name)
        })?;
        let seen = pool.pg_num;
        let mut split = plan(&map, id, seen, wanted)?;
        if !args.dry_run && wanted != seen {
            admin.set_pg_num(id, seen, wanted).await?;
            split.done = true;
        }
        Ok(split)
    })?;
    if args.json {
        return output::json(out, &split);
    }
    let Split { pool, from, to, split, to_be_moved, done } = split;
    if from == to {
        writeln!(out, "pool {pool} has {to} placement groups already")?;
        return Ok(());
    }
    let (is, are) = if done { ("has", "are") } else { ("would have", "would be") };
    writeln!(
        out,
        "pool {pool} {is} {to} placement groups instead of {from}: {split} {are} split where they are"
    )?;
    writeln!(out, "no data moves by that, and I/O goes on")?;
    if to_be_moved > 0 {
        let will = if done { "will be" } else { "would be" };
        writeln!(
            out,
            "{to_be_moved} of the new ones belong elsewhere by CRUSH, and {will} moved there, one at a time"
        )?;
    }
    Ok(())
}
