//! `trefoil storage-node format`: makes a store on a device, and refuses where something is.
//!
//! The device belongs to a cluster from its first byte on, so a monitor is asked which one that is. Which
//! node it will be is settled when the node first starts.

use super::Global;
use crate::admin;
use crate::failure::Outcome;
use crate::size::Size;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use trefoil_core::ids::NodeId;
use trefoil_storage_node::store::{FormatOptions, format};

const EXAMPLES: &str = "\
Examples:
  trefoil --monitor 127.0.0.1:10800 storage-node format /dev/nvme1n1
  trefoil storage-node format /srv/node-0 --size 100G --preallocate

What is on the device is looked at first: a file system, a partition table or any other data is
refused, and nothing is written, unless --force says that it may be lost.";

/// Make a store on a block device or a file
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct FormatArgs {
    /// The block device, or a file, which is made where it is missing
    device: PathBuf,
    /// Bytes to use; needed for a new file [default: all of the device]
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// Allocate a file's space now, so that it cannot run out later; else the file is sparse
    #[arg(long)]
    preallocate: bool,
    /// Format although something is there. It is lost
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: &FormatArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let cluster = admin::snapshot(global)?.map;
    let options = FormatOptions {
        size: args.size.map(|size| size.0),
        cluster_id: cluster.cluster_id,
        // The monitors give it to the incarnation that formatting draws.
        node_id: NodeId(u32::MAX),
        segment_bytes: None,
        preallocate: args.preallocate,
        force: args.force,
    };
    let made = format(&args.device, &options)?;
    writeln!(
        out,
        "formatted {} for cluster {}: incarnation {:016x}",
        args.device.display(),
        cluster.name,
        made.incarnation.0
    )?;
    Ok(())
}
