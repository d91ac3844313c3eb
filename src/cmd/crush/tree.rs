//! `trefoil crush tree`: the hierarchy as `ceph osd tree` shows it, with what is known of the nodes.

use crate::admin;
use crate::cmd::Global;
use crate::failure::Outcome;
use crate::output;
use crate::size::Size;
use crate::view::{NodeView, Snapshot};
use clap::Args;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use trefoil_core::crush::edit::weight_text;
use trefoil_core::crush::{Bucket, Device};

/// `trefoil crush tree`.
#[derive(Args, Debug)]
pub struct TreeArgs {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The hierarchy, for scripts: each bucket once, in the order in which it is shown.
#[derive(Serialize)]
struct TreeView {
    crush_version: u64,
    nodes: Vec<EntryView>,
    /// Devices that are in no bucket, and nodes that are not in the map: nothing is placed there.
    stray: Vec<EntryView>,
}

/// A bucket or a device.
#[derive(Clone, Serialize)]
struct EntryView {
    id: i32,
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    /// In its bucket, 1.0 for each 65536.
    weight: f64,
    #[serde(skip)]
    weight_fixed: u32,
    depth: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    children: Option<Vec<i32>>,
    class: Option<String>,
    /// `up`, `down`, `lost`, `unknown`; none: no node has registered as this device.
    state: Option<&'static str>,
    /// It is out: nothing is placed there, whatever its weight.
    out: bool,
    /// The host that the node said it runs on.
    host: Option<String>,
    size_bytes: Option<u64>,
    used_bytes: Option<u64>,
}

struct Walk<'a> {
    buckets: BTreeMap<i32, &'a Bucket>,
    devices: BTreeMap<i32, &'a Device>,
    types: BTreeMap<i32, &'a str>,
    nodes: BTreeMap<i32, &'a NodeView>,
    out: BTreeSet<i32>,
    shown: BTreeSet<i32>,
    found: Vec<EntryView>,
}

impl Walk<'_> {
    fn entry(&self, id: i32, weight: u32, depth: usize) -> EntryView {
        let (bucket, device, node) = (self.buckets.get(&id), self.devices.get(&id), self.nodes.get(&id));
        let type_id = bucket.map_or(0, |bucket| bucket.type_id);
        let name = bucket.map(|it| &it.name).or(device.map(|it| &it.name));
        EntryView {
            id,
            name: name.cloned().unwrap_or_else(|| format!("osd.{id}")),
            type_name: self.types.get(&type_id).copied().unwrap_or_default().to_owned(),
            weight: f64::from(weight) / f64::from(trefoil_core::crush::WEIGHT_ONE),
            weight_fixed: weight,
            depth,
            children: bucket.map(|it| it.items.iter().map(|item| item.id).collect()),
            class: device.and_then(|it| it.class.clone()),
            state: node.map(|it| it.state),
            out: self.out.contains(&id),
            host: node.map(|it| it.host.clone()),
            size_bytes: node.map(|it| it.size_bytes),
            used_bytes: node.and_then(|it| it.used_bytes),
        }
    }

    /// What is below an item, too; a bucket that is linked in several places only once. As deep as the map,
    /// which has at most [`trefoil_core::crush::DEPTH_MAX`] levels.
    fn down(&mut self, id: i32, weight: u32, depth: usize) {
        self.found.push(self.entry(id, weight, depth));
        if !self.shown.insert(id) {
            return;
        }
        let items = self.buckets.get(&id).map_or_else(Vec::new, |bucket| bucket.items.clone());
        for item in items {
            self.down(item.id, item.weight, depth + 1);
        }
    }
}

/// Runs the command.
pub fn run(args: &TreeArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let snapshot = admin::snapshot(global)?;
    let tree = view(&snapshot);
    if args.json {
        return output::json(out, &tree);
    }
    let headers = [">ID", "CLASS", ">WEIGHT", "TYPE NAME", "STATE", "HOST", ">SIZE", ">USED"];
    let rows = tree.nodes.iter().map(row);
    writeln!(out, "{}", output::table(&headers, rows))?;
    if !tree.stray.is_empty() {
        writeln!(out, "\nIn no bucket, so nothing is placed there (trefoil crush add):")?;
        writeln!(out, "{}", output::table(&headers, tree.stray.iter().map(row)))?;
    }
    Ok(())
}

fn row(entry: &EntryView) -> Vec<String> {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let device = entry.children.is_none();
    let state = match (entry.state, entry.out) {
        (None, _) => "no node".to_owned(),
        (Some(state), false) => state.to_owned(),
        (Some(state), true) => format!("{state}, out"),
    };
    let only = |value: String| if device { value } else { String::new() };
    vec![
        entry.id.to_string(),
        only(known(entry.class.clone())),
        weight_text(entry.weight_fixed),
        format!("{}{} {}", "    ".repeat(entry.depth), entry.type_name, entry.name),
        only(state),
        only(known(entry.host.clone())),
        only(known(entry.size_bytes.map(|size| Size(size).to_string()))),
        only(known(entry.used_bytes.map(|size| Size(size).to_string()))),
    ]
}

fn view(snapshot: &Snapshot) -> TreeView {
    let def = snapshot.map.crush.def();
    let nodes = snapshot.nodes();
    let inner: BTreeSet<i32> = def.buckets.iter().flat_map(|it| &it.items).map(|item| item.id).collect();
    let mut walk = Walk {
        buckets: def.buckets.iter().map(|it| (it.id, it)).collect(),
        devices: def.devices.iter().map(|it| (it.id, it)).collect(),
        types: def.types.iter().map(|it| (it.id, it.name.as_str())).collect(),
        nodes: nodes.iter().filter_map(|it| Some((i32::try_from(it.id).ok()?, it))).collect(),
        out: snapshot
            .map
            .nodes
            .iter()
            .filter(|(_, node)| node.out.is_some())
            .filter_map(|(id, _)| i32::try_from(id.0).ok())
            .collect(),
        shown: BTreeSet::new(),
        found: Vec::new(),
    };
    let mut roots: Vec<&Bucket> = def.buckets.iter().filter(|it| !inner.contains(&it.id)).collect();
    roots.sort_by_key(|bucket| std::cmp::Reverse(bucket.id));
    for root in roots {
        let weight = root.items.iter().fold(0u32, |sum, item| sum.saturating_add(item.weight));
        walk.down(root.id, weight, 0);
    }
    let all: BTreeSet<i32> = walk.devices.keys().chain(walk.nodes.keys()).copied().collect();
    let stray = all.into_iter().filter(|id| !inner.contains(id)).map(|id| walk.entry(id, 0, 0)).collect();
    TreeView { crush_version: snapshot.map.crush_version, nodes: walk.found, stray }
}
