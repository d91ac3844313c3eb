//! `trefoil pg scrub` and `pg settle`: copies compared now, and an administrator's word where they differ and no
//! majority says which is right.

use super::Global;
use crate::admin;
use crate::failure::{Failure, Outcome};
use anyhow::{Context, anyhow};
use clap::Args;
use std::io::Write;
use trefoil_core::ids::{BlockRange, NodeId, PgId};
use trefoil_core::limits::OBJECT_BLOCKS_MAX;
use trefoil_monitor::rpc::VolumeKey;

/// Compare the copies of placement groups now; with --deep, read and verify every block
#[derive(Args, Debug)]
#[command(after_help = "\
Each node that has a copy looks at its own. What is found is in `trefoil status`, in the
metrics and in the nodes' logs. Scrubs come by themselves, too: see scrub_light_hours and scrub_deep_hours in
the nodes' configuration.

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

/// Say which copy of blocks is to be believed, where copies differ and no majority says it
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is guessed: reads of such blocks fail until they are written, until a third copy settles them, or
until this command is given. `trefoil status` (OBJECT_INCONSISTENT) shows which copy holds what. The copy that
is named is believed, and the others are replaced by it. What they held of these blocks is lost.

Examples:
  trefoil pg settle --object disk0/3 --block 17 --from 2
  trefoil pg settle --object disk0/3 --from 2")]
pub struct SettleArgs {
    /// The object: its volume's name, and its number
    #[arg(long, value_name = "VOLUME/INDEX")]
    object: String,
    /// The block within the object; without it, all of its disputed blocks
    #[arg(long, value_name = "N")]
    block: Option<u32>,
    /// The node whose copy is to be believed
    #[arg(long, value_name = "NODE")]
    from: u32,
}

/// Runs `trefoil pg scrub`.
pub fn scrub(args: &ScrubArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let mut pgs = args.pgs.clone();
    let count = admin::block_on(async {
        let mut admin = admin::Admin::connect(global)?;
        if args.all {
            pgs = admin.map().await?.1.pgs.iter().map(|(id, _)| id).collect();
        }
        for pg in &pgs {
            admin.order_scrub(*pg, args.deep).await?;
        }
        Ok(pgs.len())
    })?;
    let kind = if args.deep { "deep" } else { "light" };
    writeln!(out, "{kind} scrub ordered: {count} placement groups")?;
    Ok(())
}

/// Runs `trefoil pg settle`.
pub fn settle(args: &SettleArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let wrong = || anyhow!("--object {:?}: give VOLUME/INDEX, as in disk0/3", args.object);
    let (volume, index) = args.object.rsplit_once('/').ok_or_else(|| Failure::usage(wrong()))?;
    let index: u32 = index.parse().with_context(|| format!("{:#}", wrong())).map_err(Failure::usage)?;
    let blocks = match args.block {
        None => BlockRange::new(0, OBJECT_BLOCKS_MAX),
        Some(block) if block < OBJECT_BLOCKS_MAX => BlockRange::new(block, 1),
        Some(block) => {
            let text = format!("--block {block}: an object has at most {OBJECT_BLOCKS_MAX} blocks");
            return Err(Failure::usage(anyhow!(text)));
        }
    };
    let volume = VolumeKey::Name(volume.to_owned());
    let from = NodeId(args.from);
    admin::block_on(async {
        admin::Admin::connect(global)?.settle_blocks(volume, index, blocks, from).await
    })?;
    writeln!(out, "{}: the copy of {from} is to be believed; the others are being replaced", args.object)?;
    Ok(())
}
