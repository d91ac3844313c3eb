//! `trefoil node ...`, and what lists share.

use super::{Global, node};
use crate::admin;
use crate::failure::Outcome;
use crate::output::{self, ago};
use crate::size::Size;
use crate::view::NodeView;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::Write;
use std::time::SystemTime;

/// The option that all lists share.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// `trefoil node ...`.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// List storage nodes: host, address, state, space, log position, damage
    #[command(after_help = "\
Examples:
  trefoil node list
  trefoil node list --json | jq -r '.[] | select(.state != \"up\") | .id'")]
    List(ListArgs),
    /// Let nodes' data live elsewhere: CRUSH gives them nothing
    #[command(after_help = "\
Examples:
  trefoil node out 4
  trefoil node in 4")]
    Out(node::OutArgs),
    /// Give nodes data again
    In(node::NodesArgs),
    Drain(node::DrainArgs),
    Remove(node::RemoveArgs),
}

/// Writes a list as a table, or as JSON.
pub fn list<T: Serialize>(
    args: &ListArgs,
    out: &mut dyn Write,
    views: Vec<T>,
    headers: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Outcome {
    if args.json {
        return output::json(out, &views);
    }
    writeln!(out, "{}", output::table(headers, views.iter().map(row)))?;
    Ok(())
}

/// A value, or `-` where it is not known.
pub fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `1,2,3`.
pub fn joined(numbers: &[u32]) -> String {
    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
    texts.join(",")
}

/// Runs `trefoil node ...`.
pub fn node(command: &NodeCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        NodeCommand::List(args) => node_list(args, global, out),
        NodeCommand::Out(args) => node::out(args, global, out),
        NodeCommand::In(args) => node::back_in(args, global, out),
        NodeCommand::Drain(args) => node::drain(args, global, out),
        NodeCommand::Remove(args) => node::remove(args, global, out),
    }
}

/// `up`, and what is to become of the node.
fn state(node: &NodeView) -> String {
    let mut text = node.state.to_owned();
    if node.out {
        text += ", out";
    }
    match (node.draining, node.pgs) {
        (false, _) => {}
        (true, 0) => text += ", drained",
        (true, _) => text += ", draining",
    }
    text
}

fn node_list(args: &ListArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let now = SystemTime::now();
    let row = |node: &NodeView| {
        vec![
            node.id.to_string(),
            node.host.clone(),
            node.address.clone(),
            state(node),
            ago(node.since_ms, now),
            node.pgs.to_string(),
            Size(node.size_bytes).to_string(),
            known(node.used_bytes.map(Size)),
            known(node.log_position),
            known(node.copies_behind),
            known(node.bad_blocks),
        ]
    };
    let headers = [
        ">ID",
        "HOST",
        "ADDRESS",
        "STATE",
        ">SINCE",
        ">PGS",
        ">SIZE",
        ">USED",
        ">LOG POSITION",
        ">BEHIND",
        ">BAD BLOCKS",
    ];
    list(args, out, admin::snapshot(global)?.nodes(), &headers, row)
}
