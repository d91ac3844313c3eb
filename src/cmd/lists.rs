//! `trefoil node list` and `pg list`, and what lists share.

use super::Global;
use crate::admin;
use crate::failure::Outcome;
use crate::output::{self, ago};
use crate::size::Size;
use crate::view::{NodeView, PgView};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::Write;
use std::time::SystemTime;
use trefoil_core::ids::NodeId;
use trefoil_core::map::Out;

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
    Out(NodesArgs),
    /// Give nodes data again
    In(NodesArgs),
}

/// Which nodes.
#[derive(Args, Debug)]
pub struct NodesArgs {
    /// Their ids, as `trefoil node list` shows them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<u32>,
}

/// `trefoil pg ...`.
#[derive(Subcommand, Debug)]
pub enum PgCommand {
    /// List placement groups: epoch, acting set, state
    #[command(after_help = "\
Examples:
  trefoil pg list
  trefoil pg list --json | jq -r '.[] | select(.state != \"active\") | .pg'")]
    List(ListArgs),
    Scrub(super::pg_scrub::ScrubArgs),
    Settle(super::pg_scrub::SettleArgs),
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
fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `1,2,3`.
fn joined(numbers: &[u32]) -> String {
    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
    texts.join(",")
}

/// Runs `trefoil node ...`.
pub fn node(command: &NodeCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    let (args, by) = match command {
        NodeCommand::List(args) => return node_list(args, global, out),
        NodeCommand::Out(args) => (args, Some(Out::Administrator)),
        NodeCommand::In(args) => (args, None),
    };
    let nodes: Vec<(NodeId, Option<Out>)> = args.ids.iter().map(|id| (NodeId(*id), by)).collect();
    admin::block_on(async { admin::Admin::connect(global)?.set_nodes_out(nodes).await })?;
    let word = if by.is_some() { "out" } else { "in" };
    let texts: Vec<String> = args.ids.iter().map(u32::to_string).collect();
    writeln!(out, "{word}: {}", texts.join(", "))?;
    Ok(())
}

fn node_list(args: &ListArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let now = SystemTime::now();
    let row = |node: &NodeView| {
        vec![
            node.id.to_string(),
            node.host.clone(),
            node.address.clone(),
            if node.out { format!("{}, out", node.state) } else { node.state.to_owned() },
            ago(node.since_ms, now),
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
        ">SIZE",
        ">USED",
        ">LOG POSITION",
        ">BEHIND",
        ">BAD BLOCKS",
    ];
    list(args, out, admin::snapshot(global)?.nodes(), &headers, row)
}

/// Runs `trefoil pg ...`.
pub fn pg(command: &PgCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    let args = match command {
        PgCommand::List(args) => args,
        PgCommand::Scrub(args) => return super::pg_scrub::scrub(args, global, out),
        PgCommand::Settle(args) => return super::pg_scrub::settle(args, global, out),
    };
    let row = |pg: &PgView| {
        let mut acting = joined(&pg.acting);
        if !pg.leaving.is_empty() {
            acting = format!("{} -> {acting}", joined(&pg.leaving));
        }
        if !pg.learners.is_empty() {
            acting += &format!(" (learning: {})", joined(&pg.learners));
        }
        vec![pg.pg.clone(), pg.pool.clone(), pg.epoch.to_string(), acting, pg.state.to_owned()]
    };
    list(args, out, admin::snapshot(global)?.pgs(), &["PG", "POOL", ">EPOCH", "ACTING", "STATE"], row)
}
