//! `trefoil node out|in|drain|remove`.
//!
//! What each means is in `trefoil_core::map::admin`; what it would move is shown first, as for any edit of the CRUSH map.

use super::go_ahead::Options;
use super::{Global, wish};
use crate::admin::{self, Admin, Replaced};
use crate::failure::Outcome;
use crate::output::count;
use anyhow::anyhow;
use clap::Args;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;
use trefoil_core::ids::NodeId;
use trefoil_core::map::{Command, Out};

/// Between two looks at how far a drain has come.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A node's name: `3`, `node.3` or, as CRUSH calls it, `osd.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeName(NodeId);

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<NodeName, String> {
        let number = text.strip_prefix("node.").or_else(|| text.strip_prefix("osd.")).unwrap_or(text);
        let id = number
            .parse()
            .map_err(|_| format!("{text:?} is no node: give its number, as 3, node.3 or osd.3"))?;
        Ok(NodeName(NodeId(id)))
    }
}

/// Which nodes.
#[derive(Args, Debug)]
pub struct NodesArgs {
    /// Their numbers, as `trefoil node list` shows them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<NodeName>,
}

/// Let nodes' data live elsewhere for a while: CRUSH gives them nothing
///
/// For nodes that come back. One that goes for good is drained.
#[derive(Args, Debug)]
#[command(after_help = "\
Refused where rules would find too few places, or nodes would be too small, unless forced.

Examples:
  trefoil node out 4 --dry-run
  trefoil node out 4 --yes
  trefoil node in 4")]
pub struct OutArgs {
    #[command(flatten)]
    nodes: NodesArgs,
    #[command(flatten)]
    options: Options,
}

/// Have a node's data moved elsewhere for good, so that the node can be removed
///
/// Its CRUSH weight becomes zero, and its placement groups are wanted elsewhere. They move one at a time, each copied
/// and verified first; `trefoil node list` shows how many are left.
#[derive(Args, Debug)]
#[command(after_help = "\
Refused where rules would find too few places, or nodes would be too small, unless forced.

Examples:
  trefoil node drain 4 --dry-run
  trefoil node drain 4 --yes --wait
  trefoil node drain 4 --undo --yes       # its weight is what it was before
  trefoil node remove 4")]
pub struct DrainArgs {
    /// Its number, as `trefoil node list` shows it: 3, node.3 or osd.3
    #[arg(value_name = "NAME")]
    name: NodeName,
    /// Give it its weight back
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
    /// Show how far it has come, until the node holds nothing. May be ended and begun again
    #[arg(long, conflicts_with_all = ["json", "dry_run"])]
    wait: bool,
    #[command(flatten)]
    options: Options,
}

/// Take a node out of the cluster, and of the CRUSH map: one that holds no placement group
///
/// Refused while it takes part in any, or while CRUSH may give it some: drain it first. Its number is not used again,
/// and its device comes back into a cluster only when it is formatted anew.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  trefoil node drain 4 --yes --wait
  trefoil node remove 4
  systemctl disable --now trefoil-storage-node@0      # on its host")]
pub struct RemoveArgs {
    /// Its number, as `trefoil node list` shows it: 3, node.3 or osd.3
    #[arg(value_name = "NAME")]
    name: NodeName,
}

fn joined(names: &[NodeName]) -> String {
    names.iter().map(|name| name.0.to_string()).collect::<Vec<_>>().join(", ")
}

fn with(args: &NodesArgs, by: Option<Out>) -> Vec<(NodeId, Option<Out>)> {
    args.ids.iter().map(|name| (name.0, by)).collect()
}

/// `trefoil node out`.
pub fn out(args: &OutArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let nodes = with(&args.nodes, Some(Out::Administrator));
    let perform = async |admin: &mut Admin, _: &_| {
        admin.set_nodes_out(nodes.clone()).await?;
        Ok(Replaced::Done)
    };
    let commands = |_: &_| vec![Command::SetNodesOut { nodes: nodes.clone() }];
    wish::make(commands, perform, &format!("out: {}", joined(&args.nodes.ids)), &args.options, global, out)
}

/// `trefoil node in`.
pub fn back_in(args: &NodesArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let nodes = with(args, None);
    admin::block_on(async { Admin::connect(global)?.set_nodes_out(nodes).await })?;
    writeln!(out, "in: {}", joined(&args.ids))?;
    Ok(())
}

/// `trefoil node drain`.
pub fn drain(args: &DrainArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let (node, drain) = (args.name.0, !args.undo);
    let done = match drain {
        true => format!(
            "{node} is being drained: `trefoil node list` shows how many placement groups it still holds"
        ),
        false => format!("{node} is not drained any more: it has its weight back"),
    };
    let perform = async |admin: &mut Admin, map: &trefoil_core::map::ClusterMap| {
        admin.drain_node(node, drain, map.crush_version).await
    };
    let commands = |map: &trefoil_core::map::ClusterMap| {
        vec![Command::DrainNode { node, drain, seen: map.crush_version }]
    };
    wish::make(commands, perform, &done, &args.options, global, out)?;
    if args.wait { wait(node, global, out) } else { Ok(()) }
}

/// Shows how many placement groups are left, until there are none. No limit of time: moves have theirs, and may be
/// paused.
fn wait(node: NodeId, global: &Global, out: &mut dyn Write) -> Outcome {
    let mut last = None;
    loop {
        let map = admin::snapshot(global)?.map;
        if !map.nodes.contains_key(&node) {
            return Err(anyhow!("{node} was removed meanwhile").into());
        }
        let left = map.pgs_of(node);
        let moving = map.moves.active.values().filter(|it| it.from == node || it.to == node).count();
        if last != Some((left, moving)) {
            last = Some((left, moving));
            let paused = if map.moves.paused { ", and moves are paused" } else { "" };
            match left {
                0 => writeln!(out, "{node} holds nothing any more: `trefoil node remove {}`", node.0)?,
                _ => writeln!(
                    out,
                    "{node}: {} left, {moving} on the move{paused}",
                    count(left, "placement group")
                )?,
            }
            out.flush()?;
        }
        if left == 0 {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// `trefoil node remove`.
pub fn remove(args: &RemoveArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let node = args.name.0;
    admin::block_on(async { Admin::connect(global)?.remove_node(node).await })?;
    writeln!(
        out,
        "{node} is one of the cluster no more: stop it (its device is a new node when it is formatted anew)"
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_as_in_any_list() {
        for text in ["3", "node.3", "osd.3"] {
            assert_eq!(text.parse(), Ok(NodeName(NodeId(3))), "{text}");
        }
        for bad in ["", "node.", "host3", "-1", "osd.x"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }
}
