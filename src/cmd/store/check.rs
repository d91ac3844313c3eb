//! `trefoil store check` and `trefoil store rebuild-index`.

use super::{open, tell, verdict};
use crate::failure::Outcome;
use crate::output::{self, printable};
use crate::size::Size;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use trefoil_storage_node::offline::{self, FINDINGS_MAX};

/// `trefoil store check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The block device or file that the store is on; its storage node must not run. It is not written
    device: PathBuf,
    /// Compare this index with what the log says (`index` in the node's state directory); a copy is opened
    #[arg(long, value_name = "DIR")]
    index: Option<PathBuf>,
    /// Findings to name; all are counted
    #[arg(long, value_name = "N", default_value_t = FINDINGS_MAX)]
    limit: usize,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `trefoil store rebuild-index`.
#[derive(Args, Debug)]
pub struct RebuildArgs {
    /// The block device or file that the store is on; its storage node must not run. It is not written
    device: PathBuf,
    /// Where the index goes (`index` in the node's state directory). One that is there is moved aside
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Move aside what is there even if it is no index
    #[arg(long)]
    force: bool,
}

/// Runs `trefoil store check`.
pub fn check(args: &CheckArgs, out: &mut dyn Write) -> Outcome {
    let mut bar: Option<(&str, super::Bar)> = None;
    let report = offline::check(&args.device, args.index.as_deref(), args.limit, &mut |what, done, all| {
        if bar.as_ref().is_none_or(|(now, _)| *now != what) {
            bar = Some((what, super::Bar::new(format!("reading {what} of {}", args.device.display()))));
        }
        if let Some((_, bar)) = &mut bar {
            bar.at(done, all);
        }
    })?;
    drop(bar);
    if args.json {
        output::json(out, &report)?;
        return verdict(report.is_good());
    }
    if !report.findings.is_empty() {
        let cell = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let rows = report.findings.iter().map(|finding| {
            vec![
                finding.kind.to_owned(),
                cell(finding.object.clone()),
                cell(finding.block.map(|n| n.to_string())),
                cell(finding.segment.map(|n| n.to_string())),
                cell(finding.byte.map(|n| n.to_string())),
                finding.what.clone(),
            ]
        });
        let headers = ["KIND", "OBJECT", ">BLOCK", ">SEGMENT", ">BYTE", "WHAT IS WRONG"];
        writeln!(out, "{}\n", output::table(&headers, rows))?;
    }
    let more = report.wrong - report.findings.len() as u64;
    if more > 0 {
        writeln!(out, "and {more} more (--limit names them)\n")?;
    }
    writeln!(
        out,
        "{}: read {} of the log ({}, {}), {}, {} and {} ({})",
        printable(&report.device),
        Size(report.log_bytes),
        batches(report.batches),
        output::count(report.records, "record"),
        output::count(report.objects, "object"),
        output::count(report.pages, "table page"),
        output::count(report.blocks, "good block"),
        Size(report.blocks * trefoil_core::ids::BLOCK_SIZE as u64)
    )?;
    for note in &report.notes {
        writeln!(out, "note: {}", printable(note))?;
    }
    if report.is_good() {
        writeln!(out, "nothing is wrong")?;
    } else {
        let kinds = report.by_kind.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>();
        writeln!(out, "WRONG: {} ({})", output::count(report.wrong, "finding"), kinds.join(", "))?;
    }
    verdict(report.is_good())
}

fn batches(n: u64) -> String {
    format!("{n} {}", if n == 1 { "batch" } else { "batches" })
}

/// Runs `trefoil store rebuild-index`.
pub fn rebuild(args: &RebuildArgs, out: &mut dyn Write) -> Outcome {
    let store = open(&args.device)?;
    if let Some(lost) = store.lost() {
        tell(&format!("{}: {lost}", args.device.display()));
    }
    let aside = store.rebuild_index(&args.index, args.force)?;
    if let Some(aside) = aside {
        writeln!(out, "what was there is now {}", aside.display())?;
    }
    writeln!(out, "{}: a new index of {}", args.index.display(), args.device.display())?;
    Ok(())
}
