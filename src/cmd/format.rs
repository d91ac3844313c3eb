//! `trefoil storage-node format`: makes a store on a device, and asks before it overwrites anything.
//!
//! The device belongs to a cluster from its first byte on, so a monitor is asked which one that is. Which
//! node it will be is settled when the node first starts.

use super::Global;
use crate::admin;
use crate::failure::Outcome;
use crate::output::{self, printable};
use crate::size::Size;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use trefoil_core::BLOCK_SIZE;
use trefoil_core::ids::NodeId;
use trefoil_storage_node::device::info::DeviceInfo;
use trefoil_storage_node::device::signature::Found;
use trefoil_storage_node::store::{FormatHow, FormatOptions, Formatted, format_with};

const EXAMPLES: &str = "\
Examples:
  trefoil --monitor 127.0.0.1:10800 storage-node format /dev/nvme1n1
  trefoil storage-node format /srv/node-0 --size 100G --preallocate

What is on the device is looked at first: file systems, partition tables, parts of volumes and arrays,
other stores, any data. If there is something, and standard input is a terminal, it is shown and you are
asked; else it is refused, and nothing is written, unless --force says that it may be lost. A device that
is mounted or otherwise in use is always refused.";

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
    /// Format although something is there, without a question. It is lost
    #[arg(long)]
    force: bool,
    /// Do not tell a block device that its old content is not needed
    #[arg(long)]
    no_discard: bool,
    /// Show what was made as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` shows.
#[derive(Serialize)]
struct View<'a> {
    device: &'a DeviceInfo,
    cluster: &'a str,
    cluster_id: String,
    incarnation: String,
    size: u64,
    segments: u32,
    segment_bytes: u64,
    replaced: &'a [Found],
    discarded_bytes: u64,
    discard_error: Option<&'a str>,
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
    let bar = progress_bar();
    let how = FormatHow {
        discard: !args.no_discard,
        overwrite: &mut |device, found| ask(device, found, &mut io::stdin().lock()),
        progress: &mut |done, of| {
            bar.set_length(of);
            bar.set_position(done);
        },
    };
    let made = format_with(&args.device, &options, how);
    bar.finish_and_clear();
    let made = made?;
    if let Some(error) = &made.discard_error {
        // Standard output may be for a script.
        let _ = writeln!(io::stderr(), "trefoil: warning: {error}. The store was made all the same");
    }
    if args.json {
        return output::json(out, &view(&made, &cluster.name));
    }
    writeln!(
        out,
        "formatted {} for cluster {}: incarnation {:016x}",
        args.device.display(),
        cluster.name,
        made.superblock.incarnation.0
    )?;
    Ok(())
}

fn view<'a>(made: &'a Formatted, cluster: &'a str) -> View<'a> {
    let sb = &made.superblock;
    View {
        device: &made.device,
        cluster,
        cluster_id: sb.cluster_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        incarnation: format!("{:016x}", sb.incarnation.0),
        size: sb.size,
        segments: sb.segments,
        segment_bytes: u64::from(sb.segment_blocks) * BLOCK_SIZE as u64,
        replaced: &made.replaced,
        discarded_bytes: made.discarded,
        discard_error: made.discard_error.as_deref(),
    }
}

/// Shows nothing where standard error is no terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("discarding {bar:40} {bytes}/{total_bytes} ({eta})") {
        bar.set_style(style);
    }
    bar
}

/// Shows what is there and asks; without a terminal nobody can be asked.
pub(super) fn ask(device: &DeviceInfo, found: &[Found], answers: &mut dyn BufRead) -> bool {
    if !io::stdin().is_terminal() {
        return false;
    }
    let mut answer = String::new();
    let asked =
        writeln!(io::stderr(), "{}", question(device, found)).and_then(|()| answers.read_line(&mut answer));
    asked.is_ok() && agreed(&answer, device)
}

fn question(device: &DeviceInfo, found: &[Found]) -> String {
    let model = device.model.as_ref().map_or(String::new(), |model| format!(", {model}"));
    let mut text = format!("{} ({}{model}) is not empty:\n", device.path, Size(device.size));
    for f in found {
        text += &format!("  at byte {}: {}\n", f.offset, f.what);
    }
    text += &format!("All of it will be lost. To format it, type its name ({}) or yes:", device.path);
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

fn agreed(answer: &str, device: &DeviceInfo) -> bool {
    let answer = answer.trim();
    let last = device.path.rsplit('/').next().unwrap_or_default();
    !answer.is_empty() && (answer == "yes" || answer == device.path || answer == last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_storage_node::device::info::{DeviceKind, WriteCache};

    fn device() -> DeviceInfo {
        DeviceInfo {
            path: "/dev/sdq".to_owned(),
            kind: DeviceKind::Block,
            size: 3 << 40,
            direct: true,
            logical_block: Some(512),
            physical_block: Some(4096),
            disk: Some("sdq".to_owned()),
            model: Some("Spin\x1b[2Jner 3000".to_owned()),
            write_cache: WriteCache::WriteBack,
            fua: Some(false),
            rotational: Some(true),
            discard_granularity: 0,
        }
    }

    #[test]
    fn only_a_clear_answer_is_one() {
        for yes in ["yes\n", "/dev/sdq\n", "sdq\n", " yes "] {
            assert!(agreed(yes, &device()), "{yes:?}");
        }
        for no in ["", "\n", "y\n", "no\n", "YES\n", "/dev/sdp\n", "sd\n", "dev/sdq\n"] {
            assert!(!agreed(no, &device()), "{no:?}");
        }
    }

    #[test]
    fn the_question_says_what_is_there() {
        let found = [Found { offset: 1080, what: "an ext2/3/4 file system (home)".to_owned() }];
        let text = question(&device(), &found);
        assert!(text.starts_with("/dev/sdq (3 TiB, Spin\u{fffd}[2Jner 3000) is not empty:\n"), "{text}");
        assert!(text.contains("at byte 1080: an ext2/3/4 file system (home)\n"), "{text}");
        assert!(text.ends_with("type its name (/dev/sdq) or yes:"), "{text}");
    }
}
