//! How any change of the CRUSH map is made.
//!
//! Read the map, work the change out on it, foretell what it moves, refuse what makes things worse, ask if
//! anything would move, and set it **if nobody has changed it meanwhile**. Whoever was slower works an edit
//! out again on what is there now, so that no one's edit is lost; a whole map from a file is refused instead.
//!
//! Nothing here moves anything: the monitors do, when the new map is theirs.

use super::diff::{self, DiffView};
use crate::admin::{self, Admin, Replaced};
use crate::cmd::Global;
use crate::cmd::go_ahead::{Options, Proposal, TRIES_MAX, go_ahead, once_more, say, too_often};
use crate::failure::Outcome;
use crate::size::Size;
use crate::view::Snapshot;
use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::str::FromStr;
use trefoil_core::crush::CrushMap;
use trefoil_core::crush::edit::Edit;
use trefoil_core::ids::NodeId;
use trefoil_core::limits::FRAME_MAX;
use trefoil_core::map::ClusterMap;

/// Bytes of a map on its way to the monitors; a frame has a little more than the map in it.
const MAP_WIRE_BYTES_MAX: usize = FRAME_MAX - (64 << 10);
/// Bytes per second that the cluster is taken to copy where nobody says.
const RATE_TEXT: &str = "100MiB/s";

/// Bytes per second: `100MiB/s`, or without `/s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: Size = text.trim().strip_suffix("/s").unwrap_or(text).parse()?;
        if size.0 == 0 {
            return Err("at a rate of 0 nothing would ever be done".to_owned());
        }
        Ok(Self(size.0))
    }
}

/// At what limits the time is worked out.
#[derive(Args, Clone, Copy, Debug)]
pub struct Rates {
    /// Say how long it takes if the cluster copies so much in all
    #[arg(long, value_name = "BYTES/s", default_value = RATE_TEXT)]
    pub rate: Rate,
    /// And if one node takes in or gives out no more than this
    #[arg(long, value_name = "BYTES/s")]
    pub node_rate: Option<Rate>,
}

/// What was done, for scripts.
#[derive(Serialize)]
struct ChangeView<'a> {
    changed: bool,
    done: &'a [String],
    warnings: &'a [String],
    /// Of the CRUSH map that is there now.
    crush_version: u64,
    diff: &'a DiffView,
}

/// Makes an edit.
pub fn edit(edit: &Edit, options: &Options, global: &Global, out: &mut dyn Write) -> Outcome {
    make(|snapshot| Ok(snapshot.map.crush.edited(edit)?), options, global, out)
}

/// Makes the change that `work_out` makes of the map: the new one, and in words what was done.
pub fn make(
    work_out: impl Fn(&Snapshot) -> anyhow::Result<(CrushMap, Vec<String>)>,
    options: &Options,
    global: &Global,
    out: &mut dyn Write,
) -> Outcome {
    for _ in 0..TRIES_MAX {
        let snapshot = admin::snapshot(global)?;
        let (new, done) = work_out(&snapshot)?;
        let map = &snapshot.map;
        check_size(&new)?;
        let view = diff::view(&snapshot, &new, options.rates)?;
        let warnings = strange_devices(map, &new);
        let same = new == *map.crush;
        let mut report = ChangeView {
            changed: false,
            done: if same { &[] } else { &done },
            warnings: &warnings,
            crush_version: map.crush_version,
            diff: &view,
        };
        let proposal = Proposal { same, does: &done, diff: &view, notes: &warnings };
        if !go_ahead(&proposal, &report, options, out)? {
            return Ok(());
        }
        let seen = map.crush_version;
        let (replaced, version) = admin::block_on(async {
            let mut admin = Admin::connect(global)?;
            let replaced = admin.replace_crush(seen, &new).await?;
            Ok((replaced, admin.snapshot().await?.map.crush_version))
        })?;
        if replaced == Replaced::Changed {
            once_more();
            continue;
        }
        (report.changed, report.crush_version) = (true, version);
        return say(&format!("done: the CRUSH map has version {version}"), &report, options, out);
    }
    Err(too_often().into())
}

fn check_size(new: &CrushMap) -> anyhow::Result<()> {
    let bytes = postcard::to_stdvec(new)?.len();
    ensure!(
        bytes <= MAP_WIRE_BYTES_MAX,
        "the map has {bytes} bytes, and a cluster's may have {MAP_WIRE_BYTES_MAX}: take out what is not used"
    );
    Ok(())
}

/// Devices that come into the map and that no node has registered as.
fn strange_devices(map: &ClusterMap, new: &CrushMap) -> Vec<String> {
    let known = |id: i32| map.crush.def().devices.iter().any(|device| device.id == id);
    let strange = new.def().devices.iter().filter(|device| {
        let node = u32::try_from(device.id).map(NodeId);
        !known(device.id) && node.is_ok_and(|node| !map.nodes.contains_key(&node))
    });
    let text = |it: &trefoil_core::crush::Device| {
        format!("no node has registered as {}: nothing is placed there until one does", it.name)
    };
    strange.map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sizes_per_second() {
        assert_eq!("100MiB/s".parse(), Ok(Rate(100 << 20)));
        assert_eq!("1G".parse(), Ok(Rate(1 << 30)));
        for bad in ["", "/s", "0", "fast", "1M/h"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_map_that_no_frame_can_hold_is_refused_here() {
        let mut def = CrushMap::with_root().def().clone();
        assert!(check_size(&CrushMap::with_root()).is_ok());
        let name = "d".repeat(1 << 20);
        let device = |id| trefoil_core::crush::Device { id, name: format!("{name}{id}"), class: None };
        def.devices = (0..17).map(device).collect();
        let told = check_size(&CrushMap::new(def).unwrap()).unwrap_err().to_string();
        assert!(told.contains("a cluster's may have"), "{told}");
    }
}
