//! `trefoil store export-volume`.

use super::{open, tell, verdict};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::size::Size;
use anyhow::anyhow;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use trefoil_storage_node::offline::{
    Layout, SparseFile, VolumeOptions, VolumeReport, export_volume, parse_volume, read_map, refuses,
};

/// Problems that are shown to people; `--json` has more.
const SHOWN_MAX: usize = 20;

const EXAMPLES: &str = "\
Which copy of an object counts is decided as the running cluster decides it: by the votes of a
majority of its copies. Objects without a majority, and blocks without good bytes on any device, are
holes in the image; they are named, and the exit code is 1.

The map is the file `map` in the state directory of any of the nodes, best of the one that ran last.
Without it, give the volume's id, --size and --object-size, and the devices of all nodes.

Examples:
  trefoil store export-volume disk0 --map node-0/map --device node-0/device --device node-1/device \\
      --device node-2/device --out disk0.raw
  trefoil store export-volume 1 --size 10G --object-size 4M --pg-num 32 --device /dev/sda \\
      --device /dev/sdb --out disk.raw
  trefoil store export-volume disk0 --map map --device /dev/sda --believe-one --out disk0.raw";

/// Get a volume's image out of the devices of stopped storage nodes
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ExportVolumeArgs {
    /// The volume's name, or its id (`1` or `vol1`)
    volume: String,
    /// A storage node's device; give all that there are. None is written
    #[arg(long = "device", value_name = "DEVICE", required = true)]
    devices: Vec<PathBuf>,
    /// The new file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A cluster map that a storage node has kept: `map` in its state directory
    #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "object_size", "pg_num", "copies"])]
    map: Option<PathBuf>,
    /// Without a map: the volume's size
    #[arg(long, value_name = "SIZE", required_unless_present = "map")]
    size: Option<Size>,
    /// Without a map: bytes of one object of the volume [default: 4M]
    #[arg(long, value_name = "SIZE")]
    object_size: Option<Size>,
    /// Without a map: placement groups of the volume's pool. It tells which objects may be on devices that
    /// are not given
    #[arg(long, value_name = "N")]
    pg_num: Option<u32>,
    /// Without a map: copies of each object
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    copies: u8,
    /// Where there is no majority, take the newest copy that is there. It may lack acknowledged writes,
    /// or hold writes that were taken back; the objects are named, and the exit code is 1
    #[arg(long)]
    believe_one: bool,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

fn layout(args: &ExportVolumeArgs) -> Outcome<Layout> {
    if let Some(path) = &args.map {
        return Ok(Layout::from_map(read_map(path)?, &args.volume)?);
    }
    let id = parse_volume(&args.volume).ok_or_else(|| {
        Failure::usage(anyhow!(
            "{:?} is a name, and only a cluster map knows names: give --map FILE (`map` in the state directory \
             of a node), or the volume's id (`trefoil store list` shows ids)",
            args.volume
        ))
    })?;
    let object_size = args.object_size.map_or(trefoil_core::limits::OBJECT_SIZE_DEFAULT, |size| size.0);
    Ok(Layout::by_hand(id, args.size.map_or(0, |size| size.0), object_size, args.pg_num)?)
}

/// Runs the command.
pub fn run(args: &ExportVolumeArgs, out: &mut dyn Write) -> Outcome {
    let layout = layout(args)?;
    let options = VolumeOptions { copies: args.copies.into(), believe_one: args.believe_one };
    let mut stores: Vec<_> = args.devices.iter().map(|path| open(path)).collect::<Result<_, _>>()?;
    if let Some(map) = layout.map() {
        stores.iter_mut().for_each(|store| store.split_as(map));
    }
    refuses(&stores, &layout, options)?;
    let mut file = SparseFile::create(&args.out, layout.size, args.force)?;
    let mut bar = super::Bar::new(format!("writing {}", args.out.display()));
    let report = export_volume(&stores, &layout, options, &mut file, &mut |done, all| bar.at(done, all))?;
    file.finish()?;
    drop(bar);
    complain(&report);
    if args.json {
        output::json(out, &report)?;
    } else {
        let name = report.name.clone().unwrap_or_else(|| format!("vol{}", report.volume));
        let devices = report.devices.iter().map(|device| {
            let node = device.node.map_or("-".to_owned(), |node| node.to_string());
            let vote = device.no_vote.clone().map_or("yes".to_owned(), |why| format!("no: {why}"));
            vec![
                device.device.clone(),
                node,
                device.log_position.to_string(),
                device.blocks.to_string(),
                vote,
            ]
        });
        let headers = ["DEVICE", ">NODE", ">LOG POSITION", ">BLOCKS TAKEN", "VOTES"];
        writeln!(out, "{}\n", output::table(&headers, devices))?;
        writeln!(
            out,
            "volume {name}: {} ({}), {} objects: {} decided, {} empty, {} undecided, {} believed",
            args.out.display(),
            Size(report.size_bytes),
            report.objects,
            report.decided,
            report.empty + report.unproven_holes,
            report.undecided,
            report.believed
        )?;
        writeln!(
            out,
            "{} written, {} of them not from the first copy; {} bad, {} on which copies differ",
            output::count(report.blocks, "block"),
            report.mended,
            report.bad,
            report.conflicts
        )?;
    }
    verdict(report.is_good())
}

/// What is wrong with the image, to standard error.
fn complain(report: &VolumeReport) {
    for problem in report.object_problems.iter().take(SHOWN_MAX) {
        tell(&format!(
            "object {} (byte {} of the image): {}",
            problem.object, problem.image_byte, problem.why
        ));
    }
    more(report.undecided + report.believed, "objects");
    for problem in report.block_problems.iter().take(SHOWN_MAX) {
        let at = format!("block {} of object {}", problem.block, problem.object);
        tell(&format!("{at} (byte {} of the image): {}; a hole", problem.image_byte, problem.why));
    }
    more(report.bad, "bad blocks");
    if report.unproven_holes > 0 {
        tell(&format!(
            "{} are on none of these devices. Whether they were ever written cannot be said without a majority \
             of the devices that should have them: give --map (or --pg-num), and all devices",
            output::count(report.unproven_holes, "object")
        ));
    }
}

fn more(total: u64, what: &str) {
    let shown = SHOWN_MAX as u64;
    if total > shown {
        tell(&format!("and {} more {what} (--json names them)", total - shown));
    }
}
