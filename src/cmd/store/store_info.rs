//! `trefoil store info`.

use super::{DeviceArgs, verdict};
use crate::failure::Outcome;
use crate::output::{self, printable};
use crate::size::Size;
use std::io::Write;
use trefoil_storage_node::offline::{BareInfo, BareStore, Info, VolumeInfo};

/// Runs the command.
pub fn run(args: &DeviceArgs, out: &mut dyn Write) -> Outcome {
    let bare = BareStore::open(&args.device)?;
    let mut bar = super::Bar::new(format!("reading the log of {}", args.device.display()));
    let recovered = bare.recover(&mut |done, all| bar.at(done, all));
    drop(bar);
    let store = match recovered {
        Ok(store) => store,
        Err((bare, error)) => {
            let info = BareInfo { trouble: Some(error.to_string()), ..bare.info() };
            if args.json {
                output::json(out, &info)?;
            } else {
                bare_text(&info, out)?;
            }
            return verdict(false);
        }
    };
    let info = store.info();
    if args.json {
        output::json(out, &info)?;
    } else {
        text(&info, out)?;
    }
    verdict(!info.is_damaged())
}

fn row(out: &mut dyn Write, name: &str, value: String) -> Outcome {
    Ok(writeln!(out, "{name:<14}{}", printable(&value))?)
}

fn bare_text(info: &BareInfo, out: &mut dyn Write) -> Outcome {
    let mut row = |name: &str, value: String| row(out, name, value);
    row("device", format!("{} ({})", info.device, Size(info.size_bytes)))?;
    row("cluster", info.cluster.clone())?;
    row("incarnation", info.incarnation.clone())?;
    if let Some(node) = info.node {
        row("node", node.to_string())?;
    }
    row("segments", format!("{} of {}", info.segments, Size(info.segment_bytes)))?;
    for copy in &info.superblocks {
        let state = copy.damage.as_deref().map_or("good".to_owned(), |why| format!("DAMAGED: {why}"));
        row("superblock", format!("at byte {}: {state}", copy.byte))?;
    }
    for root in &info.roots {
        let what = match (root.number, root.covers) {
            (Some(number), Some(0)) => format!("number {number}, no snapshot yet"),
            (Some(number), Some(covers)) => format!("number {number}, a snapshot of LSN {covers}"),
            _ => "DAMAGED".to_owned(),
        };
        row("root", format!("at byte {}: {what}{}", root.byte, if root.used { " (used)" } else { "" }))?;
    }
    if let Some(trouble) = &info.trouble {
        row("LOG DAMAGE", trouble.clone())?;
    }
    Ok(())
}

fn text(info: &Info, out: &mut dyn Write) -> Outcome {
    bare_text(&info.bare, out)?;
    let mut row = |name: &str, value: String| row(out, name, value);
    let log = &info.log;
    let end = format!("LSN {} (segment {}, block {})", log.position, log.segment, log.block);
    row("log ends at", end)?;
    row("log read", format!("{} batches, {} records", log.batches_read, log.records_read))?;
    row("sessions", log.sessions.to_string())?;
    if let Some(lsn) = log.torn_tail {
        row("torn tail", format!("LSN {lsn}: begun when the power failed, never acknowledged"))?;
    }
    for damage in &log.damage {
        row("LOG DAMAGE", damage.clone())?;
    }
    if let Some(lost) = &info.lost {
        row("STATE LOST", format!("{lost}: this store has no vote"))?;
    }
    if info.amnesia {
        row("amnesia", "it has lost state at some time: groups that it does not know are lost".to_owned())?;
    }
    row("holds", format!("{} PGs, {} groups, {} objects", info.pgs, info.groups, info.objects))?;
    let space = &info.space;
    let live = format!("{} blocks ({})", space.live_blocks, Size(space.live_bytes));
    row("live", format!("{live}; segments: {} used, {} free", space.segments_used, space.segments_free))?;
    if !info.volumes.is_empty() {
        writeln!(out, "\n{}", volumes(&info.volumes))?;
    }
    Ok(())
}

/// The table of volumes.
pub fn volumes(volumes: &[VolumeInfo]) -> String {
    let row = |volume: &VolumeInfo| {
        let fence = volume.fence.map_or_else(|| "-".to_owned(), |fence| fence.to_string());
        let numbers = [volume.groups, volume.groups_lost, volume.objects, volume.behind];
        let mut row = vec![volume.volume.to_string(), fence];
        row.extend(numbers.map(|n| n.to_string()));
        row
    };
    let headers = [">VOLUME", ">FENCE", ">GROUPS", ">LOST", ">OBJECTS", ">BEHIND"];
    output::table(&headers, volumes.iter().map(row))
}
