//! `trefoil store list|show|export|dump`.

use super::{DumpArgs, ExportArgs, ListArgs, ShowArgs, object_named, open, tell, verdict};
use crate::failure::Outcome;
use crate::output;
use crate::size::Size;
use serde::Serialize;
use serde_json::Value;
use std::io::{BufWriter, Write};
use trefoil_core::ids::ObjectId;
use trefoil_core::message::Line;
use trefoil_storage_node::offline::{BareStore, Block, OfflineStore, Run, head_json, line_json};

/// An entry of `trefoil store list --volume`.
#[derive(Serialize)]
struct ObjectRow {
    object: String,
    index: u32,
    pg: String,
    head: Option<Value>,
    behind: Option<Value>,
    blocks: u64,
    bad: u64,
    #[serde(skip)]
    head_text: String,
    #[serde(skip)]
    line_text: String,
}

/// What `trefoil store show --json` writes.
#[derive(Serialize)]
struct ObjectView {
    #[serde(flatten)]
    row: ObjectRow,
    settled: Option<Value>,
    group_lost: bool,
    pages_damaged: u64,
    runs: Vec<Run>,
}

fn row(store: &OfflineStore, object: ObjectId) -> ObjectRow {
    let group = store.durable().groups.get(&object.group);
    let head = group.and_then(|group| group.objects.get(&object.index)).copied();
    let line = group.and_then(|group| group.behind.get(&object.index)).copied();
    let mut row = ObjectRow {
        object: object.to_string(),
        index: object.index,
        pg: object.group.pg.to_string(),
        head: head.map(head_json),
        behind: line.map(line_json),
        blocks: 0,
        bad: 0,
        head_text: head.map_or("-".to_owned(), |head| head.to_string()),
        line_text: match line {
            None => "-".to_owned(),
            Some(Line::Lost) => "lost".to_owned(),
            Some(Line::At(ballot)) => ballot.to_string(),
        },
    };
    for entry in store.table(object).entries {
        match Block::from(entry) {
            Block::Hole => {}
            Block::There(_) => row.blocks += 1,
            Block::Bad(_) => row.bad += 1,
        }
    }
    row
}

/// Runs `trefoil store list`.
pub fn list(args: &ListArgs, out: &mut dyn Write) -> Outcome {
    let store = open(&args.device.device)?;
    let Some(volume) = args.volume else {
        let volumes = store.volumes();
        if args.device.json {
            return output::json(out, &volumes);
        }
        writeln!(out, "{}", super::store_info::volumes(&volumes))?;
        return Ok(());
    };
    let objects = store.objects_of(volume);
    if args.device.json {
        // One at a time: a volume may have millions.
        let mut out = BufWriter::new(out);
        write!(out, "[")?;
        for (n, object) in objects.into_iter().enumerate() {
            let text = serde_json::to_string(&row(&store, object))?;
            write!(out, "{}\n  {text}", if n == 0 { "" } else { "," })?;
        }
        writeln!(out, "\n]")?;
        return Ok(out.flush()?);
    }
    let rows = objects.into_iter().map(|object| {
        let row = row(&store, object);
        vec![
            row.index.to_string(),
            row.pg,
            row.head_text,
            row.line_text,
            row.blocks.to_string(),
            row.bad.to_string(),
        ]
    });
    let headers = [">OBJECT", "PG", "HEAD", "BEHIND AT", ">BLOCKS", ">BAD"];
    writeln!(out, "{}", output::table(&headers, rows))?;
    Ok(())
}

/// Runs `trefoil store show`.
pub fn show(args: &ShowArgs, out: &mut dyn Write) -> Outcome {
    let store = open(&args.device)?;
    let object = object_named(&store, &args.object)?;
    let group = store.durable().groups.get(&object.group);
    let view = ObjectView {
        row: row(&store, object),
        settled: group.map(|group| {
            let ballot = group.settled.ballot;
            serde_json::json!({ "generation": ballot.generation().0, "round": ballot.round() })
        }),
        group_lost: group.is_some_and(|group| group.lost),
        pages_damaged: store.table(object).lost.len() as u64,
        runs: store.runs(object),
    };
    let good = view.row.bad == 0 && view.pages_damaged == 0;
    if args.json {
        output::json(out, &view)?;
        return verdict(good);
    }
    writeln!(out, "object    {object}")?;
    writeln!(out, "head      {}", view.row.head_text)?;
    let settled = group.map_or("-".to_owned(), |group| group.settled.ballot.to_string());
    let vote = match (view.group_lost, &view.row.behind) {
        (true, _) => "none: the node has lost its state of this group".to_owned(),
        (false, Some(_)) => format!("behind, at {}; the group is settled in {settled}", view.row.line_text),
        (false, None) => settled,
    };
    writeln!(out, "line      {vote}")?;
    writeln!(out, "blocks    {} there, {} bad", view.row.blocks, view.row.bad)?;
    if view.pages_damaged > 0 {
        writeln!(out, "TABLE     {} damaged", output::count(view.pages_damaged, "page"))?;
    }
    if !view.runs.is_empty() {
        let rows = view.runs.iter().map(|run| {
            let last = run.first + run.count - 1;
            let at = run.byte.map_or("BAD".to_owned(), |byte| byte.to_string());
            vec![run.first.to_string(), last.to_string(), run.count.to_string(), at]
        });
        let headers = [">FIRST", ">LAST", ">BLOCKS", ">AT BYTE"];
        writeln!(out, "\n{}\nblocks that are not listed are holes", output::table(&headers, rows))?;
    }
    verdict(good)
}

/// Runs `trefoil store export`.
pub fn export(args: &ExportArgs, out: &mut dyn Write) -> Outcome {
    let store = open(&args.device)?;
    let object = object_named(&store, &args.object)?;
    let report = store.export(object, &args.out, args.size.map(|size| size.0), args.force)?;
    for bad in &report.bad_blocks {
        let at = bad.byte.map_or(String::new(), |byte| format!(" (byte {byte} of {})", store.name()));
        tell(&format!("block {} of {object}{at}: {}; a hole in the file", bad.block, bad.why));
    }
    if report.bad > report.bad_blocks.len() as u64 {
        tell(&format!("and {} more bad blocks", report.bad - report.bad_blocks.len() as u64));
    }
    if args.json {
        output::json(out, &report)?;
    } else {
        let size = Size(report.size_bytes);
        let blocks = output::count(report.blocks, "block");
        writeln!(out, "{object}: {blocks} in {} ({size}), {} bad", args.out.display(), report.bad)?;
    }
    verdict(report.bad == 0)
}

/// Runs `trefoil store dump`.
pub fn dump(args: &DumpArgs, out: &mut dyn Write) -> Outcome {
    let mut out = BufWriter::new(out);
    if args.scan {
        let store = BareStore::open(&args.device)?;
        let mut bar = super::Bar::new(format!("reading {}", args.device.display()));
        store.dump_scan(&mut out, &mut |done, all| bar.at(done, all))?;
        return Ok(out.flush()?);
    }
    let store = open(&args.device)?;
    store.dump(&mut out)?;
    if args.records {
        store.dump_log(&mut out)?;
    }
    out.flush()?;
    verdict(!store.info().is_damaged())
}
