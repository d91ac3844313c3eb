//! `trefoil crush diff`: what another map would move, before anything does. And how every change shows it.
//!
//! The numbers are `trefoil_core::map::diff`'s; here are their names and their order on the screen.

use super::change::Rates;
use super::file;
use crate::admin;
use crate::cmd::Global;
use crate::failure::Outcome;
use crate::output::{self, count, duration, printable};
use crate::size::Size;
use crate::view::Snapshot;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use trefoil_core::crush::CrushMap;
use trefoil_core::ids::NodeId;
use trefoil_core::map::ClusterMap;
use trefoil_core::map::diff::{CrushDiff, PgMove, RULE_COPIES, RULE_SAMPLES, Room, crush_diff, map_diff};

/// Placement groups and nodes that are shown unless all are asked for.
const LINES_SHOWN: usize = 24;

/// `trefoil crush diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// The new map, as text
    file: PathBuf,
    #[command(flatten)]
    rates: Rates,
    /// Show every placement group and node that something would change for
    #[arg(long)]
    all: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What a new map would change, with the field names that scripts see.
#[derive(Serialize)]
pub struct DiffView {
    /// The version of the CRUSH map that the new one is compared with.
    pub crush_version: u64,
    /// The two are equal.
    pub same: bool,
    /// Placement groups that would move.
    pub moved_pgs: u64,
    /// Copies that would be made elsewhere.
    pub moved_copies: u64,
    /// Bytes of these: an estimate.
    pub bytes: u64,
    /// Groups of `moves` whose size is that of their volumes, since no node says what it uses.
    pub unmeasured_pgs: u64,
    /// The limit that `seconds` is for.
    pub rate_bytes_per_s: u64,
    /// See `rate_bytes_per_s`; for one node.
    pub node_rate_bytes_per_s: Option<u64>,
    /// How long it takes at least.
    pub seconds: u64,
    /// Placement groups that move at once, in the cluster and by which one node comes or goes: what limits moves.
    pub moves_at_once: u32,
    /// See `moves_at_once`.
    pub node_moves_at_once: u32,
    /// Moves are paused: nothing would move before they are resumed.
    pub moves_paused: bool,
    /// Why the new map is worse than the present one: what has to be forced.
    pub problems: Vec<String>,
    /// By pool.
    pub pools: Vec<PoolDiffView>,
    /// By node.
    pub nodes: Vec<NodeDiffView>,
    /// Rules that no pool uses and that find fewer places than before.
    pub rules: Vec<RuleDiffView>,
    /// The placement groups that would move.
    pub moves: Vec<MoveView>,
}

/// See [`DiffView`].
#[derive(Serialize)]
#[allow(missing_docs)]
pub struct PoolDiffView {
    pub name: String,
    pub rule: u32,
    pub copies: u8,
    pub pgs: u32,
    pub moved_pgs: u32,
    pub moved_copies: u64,
    pub bytes: u64,
    /// Not where the present map wants them.
    pub pending_pgs: u32,
    /// For which the rule finds too few places by the present map.
    pub short_pgs_before: u32,
    /// The same by the new one.
    pub short_pgs_after: u32,
}

/// See [`DiffView`].
#[derive(Serialize)]
#[allow(missing_docs)]
pub struct NodeDiffView {
    pub id: u32,
    pub pgs_before: u64,
    pub pgs_after: u64,
    pub pgs_in: u64,
    pub pgs_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// See [`DiffView`]. Of `samples` tries.
#[derive(Serialize)]
#[allow(missing_docs)]
pub struct RuleDiffView {
    pub id: u32,
    pub name: String,
    pub samples: u32,
    pub copies: u8,
    pub short_before: u32,
    pub short_after: u32,
}

/// See [`DiffView`].
#[derive(Serialize)]
#[allow(missing_docs)]
pub struct MoveView {
    pub pg: String,
    pub pool: String,
    pub acting: Vec<u32>,
    pub target: Vec<u32>,
    pub coming: Vec<u32>,
    pub leaving: Vec<u32>,
    /// Of all copies that come.
    pub bytes: u64,
}

/// How much is shown of it.
#[derive(Clone, Copy, PartialEq)]
pub enum Shown {
    /// Pools, totals, what is wrong.
    Summary,
    /// And nodes and placement groups, as far as they fit a screen.
    Some,
    /// And all of them.
    All,
}

/// Runs `trefoil crush diff`.
pub fn run(args: &DiffArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    // What is wrong with the file is told without a cluster.
    let new = file::read(&args.file)?.map;
    let view = view(&admin::snapshot(global)?, &new, args.rates)?;
    if args.json {
        return output::json(out, &view);
    }
    print(&view, if args.all { Shown::All } else { Shown::Some }, out)
}

fn numbers(nodes: impl IntoIterator<Item = NodeId>) -> Vec<u32> {
    nodes.into_iter().map(|node| node.0).collect()
}

/// What the new map would change.
pub fn view(snapshot: &Snapshot, new: &CrushMap, rates: Rates) -> anyhow::Result<DiffView> {
    let diff = crush_diff(&snapshot.map, new, &rooms(snapshot))?;
    Ok(view_of(snapshot, &diff, *new == *snapshot.map.crush, rates))
}

/// What the change to a later map would change.
pub fn view_later(snapshot: &Snapshot, later: &ClusterMap, rates: Rates) -> DiffView {
    let diff = map_diff(&snapshot.map, later, &rooms(snapshot));
    view_of(snapshot, &diff, later.version == snapshot.map.version, rates)
}

fn rooms(snapshot: &Snapshot) -> BTreeMap<NodeId, Room> {
    let beats = snapshot.status.nodes.iter().filter_map(|it| Some((it.node, it.heartbeat.as_ref()?)));
    beats.map(|(node, beat)| (node, Room { total: beat.bytes_total, used: beat.bytes_used })).collect()
}

fn view_of(snapshot: &Snapshot, diff: &CrushDiff, same: bool, rates: Rates) -> DiffView {
    let map = &snapshot.map;
    let (rate, node_rate) = (rates.rate.0, rates.node_rate.map(|rate| rate.0));
    let pool_name =
        |it: &PgMove| map.pools.get(&it.pg.pool).map_or_else(String::new, |pool| pool.name.clone());
    DiffView {
        crush_version: map.crush_version,
        same,
        moved_pgs: diff.moves.len() as u64,
        moved_copies: diff.pools.iter().map(|pool| pool.moved_copies).sum(),
        bytes: diff.bytes,
        unmeasured_pgs: diff.unmeasured,
        rate_bytes_per_s: rate,
        node_rate_bytes_per_s: node_rate,
        seconds: diff.seconds(rate, node_rate),
        moves_at_once: map.moves.limits.cluster,
        node_moves_at_once: map.moves.limits.node,
        moves_paused: map.moves.paused,
        problems: diff.problems().iter().map(ToString::to_string).collect(),
        pools: pools(diff),
        nodes: nodes(diff),
        rules: rules(diff),
        moves: diff
            .moves
            .iter()
            .map(|it| MoveView {
                pg: it.pg.to_string(),
                pool: pool_name(it),
                acting: numbers(it.acting.iter().copied()),
                target: numbers(it.target.iter().copied()),
                coming: numbers(it.coming()),
                leaving: numbers(it.leaving()),
                bytes: it.copy_bytes.saturating_mul(it.coming().count() as u64),
            })
            .collect(),
    }
}

fn pools(diff: &CrushDiff) -> Vec<PoolDiffView> {
    let view = |it: &trefoil_core::map::diff::PoolDiff| PoolDiffView {
        name: it.name.clone(),
        rule: it.rule,
        copies: it.copies,
        pgs: it.pgs,
        moved_pgs: it.moved,
        moved_copies: it.moved_copies,
        bytes: it.bytes,
        pending_pgs: it.pending,
        short_pgs_before: it.short_before,
        short_pgs_after: it.short_after,
    };
    diff.pools.iter().map(view).collect()
}

fn nodes(diff: &CrushDiff) -> Vec<NodeDiffView> {
    let view = |(id, it): (&NodeId, &trefoil_core::map::diff::NodeDiff)| NodeDiffView {
        id: id.0,
        pgs_before: it.pgs_before,
        pgs_after: it.pgs_after(),
        pgs_in: it.pgs_in,
        pgs_out: it.pgs_out,
        bytes_in: it.bytes_in,
        bytes_out: it.bytes_out,
    };
    diff.nodes.iter().map(view).collect()
}

fn rules(diff: &CrushDiff) -> Vec<RuleDiffView> {
    let view = |it: &trefoil_core::map::diff::RuleDiff| RuleDiffView {
        id: it.id,
        name: it.name.clone(),
        samples: RULE_SAMPLES,
        copies: RULE_COPIES,
        short_before: it.short_before,
        short_after: it.short_after,
    };
    diff.rules.iter().map(view).collect()
}

fn joined(nodes: &[u32]) -> String {
    nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Writes it for people.
pub fn print(view: &DiffView, shown: Shown, out: &mut dyn Write) -> Outcome {
    if view.same && shown != Shown::Summary {
        writeln!(out, "the map is the cluster's own (version {})", view.crush_version)?;
    }
    for pool in &view.pools {
        let PoolDiffView { name, rule, copies, pgs, moved_pgs, moved_copies, bytes, .. } = pool;
        write!(out, "pool {name} (rule {rule}, {copies} copies): ")?;
        match moved_pgs {
            0 => writeln!(out, "nothing of {} would move", count(u64::from(*pgs), "placement group"))?,
            _ => writeln!(
                out,
                "{moved_pgs} of {} would move: {} of about {}",
                count(u64::from(*pgs), "placement group"),
                if *moved_copies == 1 { "1 copy".to_owned() } else { format!("{moved_copies} copies") },
                Size(*bytes)
            )?,
        }
        if pool.pending_pgs > 0 {
            writeln!(out, "  {} of them are not where the present map wants them", pool.pending_pgs)?;
        }
        if pool.short_pgs_after > 0 {
            writeln!(
                out,
                "  {} of them would stay where they are: the rule finds too few places (now: {})",
                pool.short_pgs_after, pool.short_pgs_before
            )?;
        }
    }
    if shown != Shown::Summary && view.moved_pgs > 0 {
        print_tables(view, shown, out)?;
    }
    if view.moved_pgs > 0 {
        print_total(view, out)?;
    }
    for rule in &view.rules {
        let RuleDiffView { id, name, samples, copies, short_before, short_after } = rule;
        writeln!(
            out,
            "rule {name} (id {id}), which no pool uses: {short_after} of {samples} tries would not find {copies} \
             places (now: {short_before})"
        )?;
    }
    for problem in &view.problems {
        writeln!(out, "WARNING: {}", printable(problem))?;
    }
    Ok(())
}

fn print_total(view: &DiffView, out: &mut dyn Write) -> Outcome {
    let node_rate = match view.node_rate_bytes_per_s {
        Some(rate) => format!(", a node at most {}/s", Size(rate)),
        None => String::new(),
    };
    writeln!(
        out,
        "in all about {}: at least {} at {}/s{node_rate}",
        Size(view.bytes),
        duration(view.seconds),
        Size(view.rate_bytes_per_s)
    )?;
    writeln!(
        out,
        "  (at most {} placement groups at once, {} by one node: see `trefoil move limits`{})",
        view.moves_at_once,
        view.node_moves_at_once,
        if view.moves_paused { "; moves are PAUSED" } else { "" }
    )?;
    match view.unmeasured_pgs {
        0 => writeln!(out, "  (estimated by what the nodes have in use and the volumes' sizes)")?,
        n => writeln!(
            out,
            "  (estimated by what the nodes have in use and the volumes' sizes; {n} of the groups by these alone, \
             which is too much where volumes are not full)"
        )?,
    }
    Ok(())
}

fn print_tables(view: &DiffView, shown: Shown, out: &mut dyn Write) -> Outcome {
    let most = if shown == Shown::All { usize::MAX } else { LINES_SHOWN };
    let row = |it: &MoveView| {
        vec![
            it.pg.clone(),
            it.pool.clone(),
            joined(&it.acting),
            joined(&it.target),
            Size(it.bytes).to_string(),
        ]
    };
    let rows = view.moves.iter().take(most).map(row);
    writeln!(out, "\n{}", output::table(&["PG", "POOL", "ACTING", "WOULD BE ON", ">COPIES OF"], rows))?;
    more(view.moves.len(), most, out)?;
    let row = |it: &&NodeDiffView| {
        vec![
            it.id.to_string(),
            it.pgs_before.to_string(),
            it.pgs_after.to_string(),
            it.pgs_in.to_string(),
            it.pgs_out.to_string(),
            Size(it.bytes_in).to_string(),
            Size(it.bytes_out).to_string(),
        ]
    };
    let changed: Vec<&NodeDiffView> =
        view.nodes.iter().filter(|it| it.pgs_in > 0 || it.pgs_out > 0).collect();
    let headers = [">NODE", ">PGS", ">WOULD BE", ">IN", ">OUT", ">BYTES IN", ">BYTES OUT"];
    writeln!(out, "\n{}", output::table(&headers, changed.iter().take(most).map(row)))?;
    more(changed.len(), most, out)?;
    writeln!(out)?;
    Ok(())
}

fn more(all: usize, most: usize, out: &mut dyn Write) -> Outcome {
    if all > most {
        writeln!(out, "... and {} more (--all, or --json)", all - most)?;
    }
    Ok(())
}
