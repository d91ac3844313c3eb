//! `trefoil store ...`: stores whose storage nodes do not run, looked at, checked and taken out of.
//!
//! What is done is in `trefoil_storage_node::offline`; here are the arguments, the tables and the exit
//! codes, which are these commands' own: 0 good, 1 something is wrong with the store (or is missing from
//! what was exported), 2 it could not be done.

mod check;
mod objects;
mod progress;
mod store_info;
mod volume;

use crate::failure::{Failure, Outcome};
use clap::{Args, Subcommand};
use progress::Bar;
use std::io::Write;
use std::path::{Path, PathBuf};
use trefoil_core::ids::{ObjectId, VolumeId};
use trefoil_storage_node::offline::{OfflineStore, parse_volume};

/// It could not be done.
const EXIT_COULD_NOT: u8 = 2;
/// Something is wrong with the store.
const EXIT_WRONG: u8 = 1;

/// The exit codes of these commands, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes of these commands:
  0  done, and all is good
  1  something is wrong with the store, or is missing from what was exported
  2  it could not be done: the message says why";

/// `trefoil store ...`.
#[derive(Subcommand, Debug)]
pub enum StoreCommand {
    /// What a store is and what is in it: superblock, log, volumes
    #[command(after_help = "\
Examples:
  trefoil store info /dev/nvme1n1
  trefoil store info trefoil-data/node-0/device --json | jq .log.position")]
    Info(DeviceArgs),
    /// Read and verify everything on a store, and say what is wrong where
    #[command(after_help = "\
Reads both superblocks and roots, the whole log, every table page and every live block, verifies every
checksum, and recomputes the live counts of all segments. Nothing is written and nothing is repaired: a
running node repairs its blocks from its peers.

Examples:
  trefoil store check /dev/nvme1n1
  trefoil store check node-0/device --index node-0/index
  trefoil store check /dev/nvme1n1 --json | jq '.by_kind'")]
    Check(check::CheckArgs),
    /// List the volumes of which a store has something, or the objects of one
    #[command(after_help = "\
Examples:
  trefoil store list /dev/nvme1n1
  trefoil store list /dev/nvme1n1 --volume 1
  trefoil store list /dev/nvme1n1 --volume 1 --json | jq -r '.[] | select(.bad > 0) | .object'")]
    List(ListArgs),
    /// Show one object: head, line, and where its blocks are
    #[command(after_help = "\
Examples:
  trefoil store show /dev/nvme1n1 vol1/1.1c/7
  trefoil store show /dev/nvme1n1 1/7           # object 7 of volume 1")]
    Show(ShowArgs),
    /// Get one object's bytes out of a store; blocks without good bytes become holes
    #[command(after_help = "\
What is exported is the copy on this device, which need not be the one that counts: see
`trefoil store export-volume` for a volume as the cluster would read it.

Examples:
  trefoil store export /dev/nvme1n1 1/7 --out object7.raw
  trefoil store export /dev/nvme1n1 1/7 --out object7.raw --json | jq .bad_blocks")]
    Export(ExportArgs),
    /// Write the whole state of a store as lines of JSON
    #[command(after_help = "\
Examples:
  trefoil store dump /dev/nvme1n1 --json > state.jsonl
  trefoil store dump /dev/nvme1n1 --json --records | jq -c 'select(.record == \"settle\")'
  trefoil store dump /dev/nvme1n1 --json | jq -c 'select(.type == \"group\" and .lost)'")]
    Dump(DumpArgs),
    ExportVolume(volume::ExportVolumeArgs),
    /// Make a store's index anew from its log
    #[command(after_help = "\
A storage node does this by itself when its index is gone or damaged; this is for doing it beforehand.
The device is not written.

Examples:
  trefoil store rebuild-index /dev/nvme1n1 --index /var/lib/trefoil/node-0/index")]
    RebuildIndex(check::RebuildArgs),
}

/// What every command is about.
#[derive(Args, Debug)]
pub struct DeviceArgs {
    /// The block device or file that the store is on; its storage node must not run. It is not written
    device: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `trefoil store list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// List the objects of this volume (`1` or `vol1`)
    #[arg(long, value_name = "ID", value_parser = volume_id)]
    volume: Option<VolumeId>,
}

/// `trefoil store show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The block device or file that the store is on; its storage node must not run. It is not written
    device: PathBuf,
    /// The object: VOLUME/PG/INDEX as lists and logs show it, or VOLUME/INDEX
    object: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `trefoil store export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The block device or file that the store is on; its storage node must not run. It is not written
    device: PathBuf,
    /// The object: VOLUME/PG/INDEX as lists and logs show it, or VOLUME/INDEX
    object: String,
    /// The new file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Bytes that the file has at least, such as the volume's object size
    /// [default: up to the object's last block]
    #[arg(long, value_name = "SIZE")]
    size: Option<crate::size::Size>,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `trefoil store dump`.
#[derive(Args, Debug)]
pub struct DumpArgs {
    /// The block device or file that the store is on; its storage node must not run. It is not written
    device: PathBuf,
    /// Lines of JSON: the only form that there is
    #[arg(long, required = true)]
    json: bool,
    /// The log too: every batch from the last snapshot on, and every record in it
    #[arg(long)]
    records: bool,
    /// Instead of the state: every batch that lies anywhere on the device, what was overwritten since too. It
    /// needs no log that can be followed
    #[arg(long, conflicts_with = "records")]
    scan: bool,
}

fn volume_id(text: &str) -> Result<VolumeId, String> {
    parse_volume(text)
        .ok_or_else(|| format!("{text:?} is no volume id: give a number, as `trefoil store list` shows it"))
}

/// Runs the command.
pub fn run(command: &StoreCommand, out: &mut dyn Write) -> Outcome {
    let done = match command {
        StoreCommand::Info(args) => store_info::run(args, out),
        StoreCommand::Check(args) => check::check(args, out),
        StoreCommand::RebuildIndex(args) => check::rebuild(args, out),
        StoreCommand::List(args) => objects::list(args, out),
        StoreCommand::Show(args) => objects::show(args, out),
        StoreCommand::Export(args) => objects::export(args, out),
        StoreCommand::Dump(args) => objects::dump(args, out),
        StoreCommand::ExportVolume(args) => volume::run(args, out),
    };
    // Whatever failed with words could not be done; that something is wrong is said by the command itself.
    done.map_err(|failure| match failure.error {
        Some(_) => Failure { code: EXIT_COULD_NOT, ..failure },
        None => failure,
    })
}

/// The exit code that says so, where something is wrong.
fn verdict(good: bool) -> Outcome {
    if good { Ok(()) } else { Err(Failure::code(EXIT_WRONG)) }
}

fn open(path: &Path) -> Outcome<OfflineStore> {
    let mut bar = Bar::new(format!("reading the log of {}", path.display()));
    Ok(OfflineStore::open(path, &mut |done, all| bar.at(done, all))?)
}

/// A line that is no result: to standard error.
fn tell(text: &str) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr().lock(), "trefoil: {}", crate::output::printable(text));
}

/// The object that a text names, in either form.
fn object_named(store: &OfflineStore, text: &str) -> Outcome<ObjectId> {
    let known = store.objects();
    let usage = || {
        Failure::usage(anyhow::anyhow!(
            "{text:?} is no object: give VOLUME/PG/INDEX, such as vol1/1.1c/7, or VOLUME/INDEX, such as 1/7"
        ))
    };
    let (volume, rest) = text.split_once('/').ok_or_else(usage)?;
    let volume = parse_volume(volume).ok_or_else(usage)?;
    let (pg, index) = rest.split_once('/').map_or((None, rest), |(pg, index)| (Some(pg), index));
    let index: u32 = index.parse().map_err(|_| usage())?;
    let fits = |object: &&ObjectId| {
        object.group.volume == volume
            && object.index == index
            && pg.is_none_or(|pg| pg == object.group.pg.to_string())
    };
    let found: Vec<&ObjectId> = known.iter().filter(fits).collect();
    match found[..] {
        [object] => Ok(*object),
        [] => Err(Failure::from(anyhow::anyhow!(
            "{} has no object {text}: `trefoil store list {} --volume {}` shows what it has",
            store.name(),
            store.name(),
            volume.0
        ))),
        [..] => {
            let all: Vec<String> = found.iter().map(|object| object.to_string()).collect();
            Err(Failure::from(anyhow::anyhow!("{text} is one of several objects: {}", all.join(", "))))
        }
    }
}
