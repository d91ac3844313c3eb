//! `trefoil pool set NAME pg_num N`: says what a split of placement groups will do, and has it done.
//!
//! Whether it may be done is the map's to say; what will happen is worked out on a copy of it. The split itself moves
//! nothing. What CRUSH then wants elsewhere is shown, and confirmed, as for any other change.

use super::SetArgs;
use crate::admin::{self, Admin, Replaced};
use crate::cmd::{Global, wish};
use crate::failure::{Failure, Outcome};
use crate::output::count;
use anyhow::anyhow;
use std::io::Write;
use trefoil_core::crush::pg_split_parent;
use trefoil_core::map::{ClusterMap, Command};

/// How many of `seen` placement groups are split if there are to be `pg_num`.
fn parents(seen: u32, pg_num: u32) -> u64 {
    let mut parents: Vec<u32> = (seen..pg_num).map(|pg| pg_split_parent(pg, seen)).collect();
    parents.sort_unstable();
    parents.dedup();
    parents.len() as u64
}

/// Runs the command.
pub fn set(args: &SetArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let wanted: u32 = args.value.parse().map_err(|_| {
        Failure::usage(anyhow!("{:?} is no number of placement groups: give one, such as 256", args.value))
    })?;
    let map = admin::snapshot(global)?.map;
    let (id, pool) = map.pool_named(&args.name).ok_or_else(|| {
        anyhow!("there is no pool {}: `trefoil pool list` shows which there are", args.name)
    })?;
    let (name, seen) = (pool.name.clone(), pool.pg_num);
    let command = Command::SetPgNum { pool: id, seen, pg_num: wanted };
    map.clone().apply(&command).map_err(|error| anyhow!("nothing was changed: {error}"))?;
    if !args.options.json && wanted > seen {
        writeln!(
            out,
            "pool {name}: {wanted} placement groups instead of {seen}; {} split, where they are. No data moves by \
             that, and I/O goes on. They cannot become fewer again.",
            count(parents(seen, wanted), "placement group")
        )?;
    }
    let perform = async |admin: &mut Admin, _: &ClusterMap| {
        admin.set_pg_num(id, seen, wanted).await?;
        Ok(Replaced::Done)
    };
    // As they were seen here: who was faster must not be overtaken unseen.
    let commands = |_: &ClusterMap| vec![command.clone()];
    let done = format!("pool {name}: {wanted} placement groups");
    wish::make(commands, perform, &done, &args.options, global, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_eight_four_are_split_into_twelve() {
        assert_eq!(parents(8, 12), 4);
        assert_eq!(parents(8, 48), 8);
        assert_eq!(parents(12, 13), 1);
        assert_eq!(parents(8, 8), 0);
    }
}
