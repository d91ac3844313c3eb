//! `trefoil move ...`: what is on the move, how fast, and the administrator's hand on it.

use super::Global;
use super::pg::pg_id;
use crate::admin::{self, Admin};
use crate::failure::Outcome;
use crate::output::{self, count, duration};
use crate::size::Size;
use crate::view::Snapshot;
use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::time::Duration;
use trefoil_core::ids::{NodeId, PgId};
use trefoil_core::map::{ClusterMap, MoveLimits};
use trefoil_monitor::Recovering;
use trefoil_monitor::rpc::{MoveStatus, MovesStatus};

/// Between two looks, with `--follow`.
const PAUSE: Duration = Duration::from_secs(1);
/// Bars at once; of more moves the first are shown.
const BARS_MAX: usize = 16;

/// `trefoil move ...`.
#[derive(Subcommand, Debug)]
pub enum MoveCommand {
    /// Show what is on the move, what waits, and why
    #[command(after_help = "\
Examples:
  trefoil move status
  trefoil move status --follow          # progress bars; ends when nothing is left to be moved
  trefoil move status --json | jq '.moves[] | {pg, behind}'")]
    Status(StatusArgs),
    /// Begin no moves and take none further, until they are resumed
    ///
    /// A move that has begun stays where it is, which is safe at every step; its copies go on being repaired.
    Pause,
    /// Let moves begin and go on, those too that were undone
    Resume,
    /// Bring a placement group back to where it was, and begin no move of it until moves are resumed
    #[command(after_help = "\
Examples:
  trefoil move undo 1.2f")]
    Undo(UndoArgs),
    /// Say how much may be moved at once; without options, show it
    #[command(after_help = "\
Examples:
  trefoil move limits
  trefoil move limits --cluster 4 --node 1
  trefoil move limits --while-degraded true")]
    Limits(LimitsArgs),
}

/// What `move status` is asked for.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Go on until nothing is left to be moved
    #[arg(short, long)]
    follow: bool,
    /// Write JSON; with --follow, one line for each look
    #[arg(long)]
    json: bool,
}

/// What `move undo` is asked for.
#[derive(Args, Debug)]
pub struct UndoArgs {
    /// POOL.PG, the latter in hexadecimal, as `trefoil move status` shows it
    #[arg(value_parser = pg_id)]
    pg: PgId,
}

/// What `move limits` is asked for.
#[derive(Args, Debug)]
pub struct LimitsArgs {
    /// Moves at once in the cluster
    #[arg(long, value_name = "N")]
    cluster: Option<u32>,
    /// Moves at once that one node may come or go by
    #[arg(long, value_name = "N")]
    node: Option<u32>,
    /// Whether data is also moved off nodes that are well while placement groups have a member down
    #[arg(long, value_name = "true|false")]
    while_degraded: Option<bool>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `move status --json` writes.
#[derive(Debug, Serialize)]
struct StatusView {
    paused: bool,
    limits: MoveLimits,
    /// Placement groups that do not live where CRUSH wants them, those that are on the move included.
    misplaced: u64,
    /// Those whose move was undone.
    held: Vec<String>,
    /// Per second, what the nodes that copies come to get from others; null: of one of them it is not known.
    bytes_per_s: Option<u64>,
    /// Seconds until the moves that are under way have everything, at the pace of the last half minute; null: not
    /// known. What waits comes after that.
    left_s: Option<u64>,
    moves: Vec<MoveView>,
    /// Why others are not moved now.
    waits: Vec<WaitView>,
}

/// A move.
#[derive(Debug, Serialize)]
struct MoveView {
    pg: String,
    /// `learn` or `joint`.
    stage: &'static str,
    from: u32,
    to: u32,
    epoch: u64,
    /// Members of the old set that have answered in this epoch, and how many there are.
    answered: u32,
    members: u32,
    /// Volumes' shares of the placement group, and how many of them the new node is not level with.
    groups: u32,
    lacking: u32,
    /// Objects that are behind at the new node; null: it has not answered in this epoch.
    behind: Option<u64>,
    behind_max: u64,
    seconds: u64,
    /// Per second, what the new node gets from others, for this move and all else that it repairs; null: not known.
    bytes_per_s: Option<u64>,
    /// Seconds until nothing is behind at the new node; null: not known.
    left_s: Option<u64>,
}

#[derive(Debug, Serialize)]
struct WaitView {
    why: String,
    /// As far as the leading monitor has looked; 0: not counted.
    pgs: u32,
}

/// Runs `trefoil move ...`.
pub fn run(command: &MoveCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    admin::block_on(async {
        let mut admin = Admin::connect(global)?;
        match command {
            MoveCommand::Status(args) => status(args, &mut admin, out).await,
            MoveCommand::Pause => {
                admin.pause_moves(true).await?;
                Ok(writeln!(out, "moves are paused; `trefoil move resume` lets them go on")?)
            }
            MoveCommand::Resume => {
                admin.pause_moves(false).await?;
                Ok(writeln!(out, "moves go on")?)
            }
            MoveCommand::Undo(args) => {
                admin.undo_move(args.pg).await?;
                let pg = args.pg;
                Ok(writeln!(out, "{pg} is where it was; `trefoil move resume` lets it be moved again")?)
            }
            MoveCommand::Limits(args) => limits(args, &mut admin, out).await,
        }
    })
}

async fn limits(args: &LimitsArgs, admin: &mut Admin, out: &mut dyn Write) -> Outcome {
    let known = admin.moves().await?.limits;
    let wanted = MoveLimits {
        cluster: args.cluster.unwrap_or(known.cluster),
        node: args.node.unwrap_or(known.node),
        while_degraded: args.while_degraded.unwrap_or(known.while_degraded),
    };
    if wanted != known {
        admin.set_move_limits(wanted).await?;
    }
    if args.json {
        return output::json(out, &wanted);
    }
    Ok(writeln!(out, "{}", said(wanted))?)
}

fn said(limits: MoveLimits) -> String {
    let waits = match limits.while_degraded {
        true => "also while placement groups are degraded",
        false => "nodes that are well are left alone while placement groups are degraded",
    };
    format!("at most {} in the cluster, {} at a node; {waits}", limits.cluster, limits.node)
}

/// Placement groups that do not live where CRUSH wants them.
fn misplaced(map: &ClusterMap) -> u64 {
    let mut placer = map.placer();
    let mut found = 0;
    for (id, pool) in &map.pools {
        for (pg, config) in map.pool_pgs(*id) {
            let wanted = placer.place(*id, pool, pg.pg);
            found +=
                u64::from(wanted.is_ok_and(|wanted| wanted.iter().any(|node| !config.new.contains(node))));
        }
    }
    // Those in the joint stage are where they should be, and not done.
    let joint = |pg: &PgId| map.members(*pg).is_some_and(|config| config.old != config.new);
    found + map.moves.active.keys().filter(|pg| joint(pg)).count() as u64
}

/// How fast each node's copies are repaired, where it is known.
type Paces = BTreeMap<NodeId, Recovering>;

fn view(map: &ClusterMap, status: &MovesStatus, paces: &Paces) -> StatusView {
    let moves: Vec<MoveView> = status.moves.iter().map(|it| move_view(it, paces)).collect();
    // Of each node once, however many moves it is in.
    let nodes: BTreeSet<NodeId> = status.moves.iter().map(|it| it.to).collect();
    let bytes = nodes.iter().map(|node| Some(paces.get(node)?.bytes));
    StatusView {
        paused: status.paused,
        limits: status.limits,
        misplaced: misplaced(map),
        held: status.held.iter().map(PgId::to_string).collect(),
        bytes_per_s: bytes.sum(),
        left_s: moves.iter().map(|it| it.left_s).try_fold(0, |most, left| Some(most.max(left?))),
        moves,
        waits: status.waits.iter().map(|(why, pgs)| WaitView { why: why.to_string(), pgs: *pgs }).collect(),
    }
}

fn move_view(it: &MoveStatus, paces: &Paces) -> MoveView {
    let pace = paces.get(&it.to);
    // What has not been opened there yet is not known to be behind.
    let known = it.behind.filter(|behind| it.lacking == 0 || *behind > 0);
    MoveView {
        pg: it.pg.to_string(),
        stage: if it.joint { "joint" } else { "learn" },
        from: it.from.0,
        to: it.to.0,
        epoch: it.epoch.0,
        answered: it.answered,
        members: it.members,
        groups: it.groups,
        lacking: it.lacking,
        behind: it.behind,
        behind_max: it.behind_max,
        seconds: it.age / 1_000_000,
        bytes_per_s: pace.map(|pace| pace.bytes),
        left_s: known.and_then(|behind| if behind == 0 { Some(0) } else { pace?.left_s }),
    }
}

impl MoveView {
    /// In percent; none where it is not known.
    fn done(&self) -> Option<u64> {
        let behind = self.behind?;
        if self.lacking > 0 && behind == 0 {
            return None; // not opened there yet: what it lacks is not known
        }
        Some(100 - (behind * 100).checked_div(self.behind_max).unwrap_or(0).min(100))
    }
}

impl StatusView {
    /// Nothing is on the move, and nothing is left that could be moved.
    fn is_over(&self) -> bool {
        self.moves.is_empty() && self.misplaced <= self.held.len() as u64
    }

    fn headline(&self) -> String {
        let state = if self.paused { "paused" } else { "running" };
        let waiting = self.misplaced.saturating_sub(self.moves.len() as u64);
        let mut text = format!(
            "moves are {state}: {} on the move, {waiting} more to be moved ({})",
            count(self.moves.len() as u64, "placement group"),
            said(self.limits)
        );
        if !self.moves.is_empty() {
            let (rate, left) = (rate(self.bytes_per_s), time_left(self.left_s));
            text +=
                &format!("\nrecovery brings {rate} to the new nodes; left for what is on the move: {left}");
        }
        text
    }
}

fn rate(bytes_per_s: Option<u64>) -> String {
    bytes_per_s.map_or_else(|| "unknown".to_owned(), |bytes| format!("{}/s", Size(bytes)))
}

fn time_left(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "unknown".to_owned(), duration)
}

async fn look(admin: &mut Admin) -> Outcome<StatusView> {
    let Snapshot { map, status, .. } = admin.snapshot().await?;
    let moves = admin.moves().await?;
    let paces = status.nodes.iter().filter_map(|node| Some((node.node, node.recovery?))).collect();
    Ok(view(&map, &moves, &paces))
}

async fn status(args: &StatusArgs, admin: &mut Admin, out: &mut dyn Write) -> Outcome {
    let bars = args.follow && !args.json && std::io::stderr().is_terminal();
    let mut bars = bars.then(Bars::default);
    let mut told = String::new();
    loop {
        let view = match look(admin).await {
            Ok(view) => view,
            Err(error) if args.follow => {
                tracing::warn!(error = error.line().as_deref(), "no news from the monitors; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if args.json && args.follow {
            writeln!(out, "{}", serde_json::to_string(&view)?)?;
        } else if args.json {
            return output::json(out, &view);
        } else if let Some(bars) = &mut bars {
            bars.show(&view);
        } else {
            // Said again only where it is another.
            let text = table(&view);
            if text != told {
                writeln!(out, "{text}")?;
                told = text;
            }
        }
        out.flush()?;
        if !args.follow || view.is_over() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    if bars.take().is_some() {
        writeln!(out, "nothing is left to be moved")?;
    }
    Ok(())
}

fn table(view: &StatusView) -> String {
    let mut text = view.headline();
    if !view.moves.is_empty() {
        let row = |it: &MoveView| {
            let known = |value: Option<u64>, unit: &str| {
                value.map_or_else(|| "unknown".to_owned(), |value| format!("{value}{unit}"))
            };
            vec![
                it.pg.clone(),
                it.stage.to_owned(),
                it.from.to_string(),
                it.to.to_string(),
                format!("{}/{}", it.answered, it.members),
                it.groups.to_string(),
                it.lacking.to_string(),
                known(it.behind, ""),
                known(it.done(), "%"),
                rate(it.bytes_per_s),
                time_left(it.left_s),
                duration(it.seconds),
            ]
        };
        let headers = [
            "PG",
            "STAGE",
            ">FROM",
            ">TO",
            ">ANSWERED",
            ">GROUPS",
            ">LACKING",
            ">BEHIND",
            ">DONE",
            ">RATE",
            ">LEFT",
            ">FOR",
        ];
        text += &format!("\n\n{}", output::table(&headers, view.moves.iter().map(row)));
    }
    if !view.held.is_empty() {
        text += &format!("\n\nundone, and held until moves are resumed: {}", view.held.join(", "));
    }
    for wait in &view.waits {
        match wait.pgs {
            0 => text += &format!("\nwaiting: {}", wait.why),
            pgs => text += &format!("\nwaiting: {}: {}", count(u64::from(pgs), "placement group"), wait.why),
        }
    }
    text
}

/// Progress bars: one for all, and one for each move.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    total: Option<(ProgressBar, u64)>,
    each: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, view: &StatusView) {
        let (total, most) = self.total.get_or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(0));
            let style = "placement groups {wide_bar} {pos}/{len}  {per_sec}  {eta} left  {msg}";
            set_style(&bar, style);
            (bar, 0)
        });
        *most = (*most).max(view.misplaced);
        total.set_length(*most);
        total.set_position(*most - view.misplaced);
        total.set_message(if view.paused { "PAUSED".to_owned() } else { rate(view.bytes_per_s) });
        self.each.retain(|pg, bar| {
            let there = view.moves.iter().any(|it| it.pg == *pg);
            if !there {
                bar.finish_and_clear();
            }
            there
        });
        for it in view.moves.iter().take(BARS_MAX) {
            let all = &self.all;
            let bar = self.each.entry(it.pg.clone()).or_insert_with(|| {
                let bar = all.add(ProgressBar::new(0));
                set_style(&bar, "{prefix} {wide_bar} {pos}/{len} objects  {per_sec}  {eta} left  {msg}");
                bar.set_prefix(format!("{} {} -> {}", it.pg, it.from, it.to));
                bar
            });
            bar.set_length(it.behind_max);
            bar.set_position(it.behind_max.saturating_sub(it.behind.unwrap_or(it.behind_max)));
            bar.set_message(match it.behind {
                None => format!("{}: not heard of yet", it.stage),
                Some(_) => format!("{}, {} at node.{}", it.stage, rate(it.bytes_per_s), it.to),
            });
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // What stands on the terminal then is what the command says last.
        let _ = self.all.clear();
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::ids::{Epoch, PoolId};

    fn moving(behind: Option<u64>, lacking: u32) -> MoveView {
        MoveView {
            pg: "1.a".to_owned(),
            stage: "learn",
            from: 1,
            to: 3,
            epoch: 2,
            answered: 2,
            members: 3,
            groups: 4,
            lacking,
            behind,
            behind_max: 40,
            seconds: 61,
            bytes_per_s: None,
            left_s: None,
        }
    }

    fn status_of(moves: Vec<MoveView>, misplaced: u64, held: usize) -> StatusView {
        StatusView {
            paused: false,
            limits: MoveLimits::default(),
            misplaced,
            held: vec!["1.b".to_owned(); held],
            bytes_per_s: None,
            left_s: None,
            moves,
            waits: vec![WaitView { why: "reasons".to_owned(), pgs: 2 }],
        }
    }

    #[test]
    fn what_is_not_known_is_not_shown_as_done() {
        assert_eq!(moving(None, 4).done(), None);
        assert_eq!(moving(Some(0), 4).done(), None, "nothing opened there yet");
        assert_eq!(moving(Some(0), 0).done(), Some(100));
        assert_eq!(moving(Some(30), 1).done(), Some(25));
        let text = table(&status_of(vec![moving(None, 4)], 3, 1));
        assert!(text.contains("unknown") && text.contains("2 more to be moved"), "{text}");
        assert!(text.contains("1.b") && text.contains("2 placement groups: reasons"), "{text}");
    }

    fn status(to: u32, behind: Option<u64>, lacking: u32) -> MoveStatus {
        MoveStatus {
            pg: PgId { pool: PoolId(1), pg: 10 },
            from: NodeId(1),
            to: NodeId(to),
            epoch: Epoch(2),
            joint: false,
            answered: 2,
            members: 3,
            groups: 4,
            lacking,
            behind,
            behind_max: 40,
            age: 61_000_000,
        }
    }

    #[test]
    fn rate_and_time_left_are_those_of_the_new_nodes_and_else_unknown() {
        let pace = |bytes, left_s| Recovering { bytes, repairs_per_ks: 1, left_s };
        let paces = Paces::from([(NodeId(3), pace(3 << 20, Some(90))), (NodeId(4), pace(5 << 20, None))]);
        let seen = |moves: Vec<MoveStatus>| {
            view(&ClusterMap::new(), &MovesStatus { moves, ..MovesStatus::default() }, &paces)
        };
        let both = seen(vec![status(3, Some(10), 1), status(3, Some(0), 0)]);
        assert_eq!((both.bytes_per_s, both.left_s), (Some(3 << 20), Some(90)), "the node counts once");
        let text = table(&both);
        assert!(text.contains("3 MiB/s to the new nodes; left for what is on the move: 1m30s"), "{text}");
        let other = seen(vec![status(3, Some(10), 1), status(4, Some(1), 0)]);
        assert_eq!((other.bytes_per_s, other.left_s), (Some(8 << 20), None));
        let silent = seen(vec![status(5, Some(10), 1)]);
        assert_eq!((silent.bytes_per_s, silent.left_s), (None, None));
        let unopened = seen(vec![status(3, Some(0), 4)]);
        assert_eq!(unopened.left_s, None, "nobody knows yet what it lacks");
        assert!(table(&unopened).contains("on the move: unknown"));
    }

    #[test]
    fn it_is_over_when_only_held_ones_are_left() {
        assert!(!status_of(vec![moving(Some(1), 1)], 0, 0).is_over());
        assert!(!status_of(Vec::new(), 2, 1).is_over());
        assert!(status_of(Vec::new(), 1, 1).is_over());
    }
}
