//! `trefoil pg list` and `pg show`: where placement groups live, and what each copy holds.

use super::Global;
use super::lists::{ListArgs, joined, list};
use super::pg_doubts::{self, DoubtsView};
use crate::admin::{self, Admin};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::view::{PgView, Snapshot};
use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::io::Write;
use trefoil_core::ids::{PgId, PoolId, VolumeId};
use trefoil_core::map::ClusterMap;
use trefoil_core::message::ListedGroup;

/// `trefoil pg ...`.
#[derive(Subcommand, Debug)]
pub enum PgCommand {
    /// List placement groups: epoch, acting set, state
    #[command(after_help = "\
Examples:
  trefoil pg list
  trefoil pg list --pool default --state degraded
  trefoil pg list --json | jq -r '.[] | select(.moving) | .pg'")]
    List(PgListArgs),
    /// Show a placement group: its configuration, and what its nodes say that they have of it
    ///
    /// Each node is asked. What a node does not say within a few seconds is shown as unknown. Blocks whose copies differ
    /// are listed with what each copy has recorded: those with the same checksum hold the same.
    #[command(after_help = "\
Examples:
  trefoil pg show 1.2f
  trefoil pg show --object disk0/3
  trefoil pg show 1.2f --json | jq '.in_doubt[] | select(.disputed)'
  trefoil pg show 1.2f --json | jq '.copies[] | select(.known | not) | .node'")]
    Show(PgShowArgs),
    Scrub(super::pg_scrub::ScrubArgs),
    Settle(super::pg_settle::SettleArgs),
}

/// What `pg list` is asked for.
#[derive(Args, Debug)]
pub struct PgListArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Only those of this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Only those in this state
    #[arg(long, value_name = "STATE")]
    state: Option<PgState>,
}

/// States to choose by.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
enum PgState {
    /// All members are up
    Active,
    /// A member is down, a majority is up
    Degraded,
    /// No majority is up
    Unavailable,
    /// On the move
    Moving,
}

/// Which placement group.
#[derive(Args, Debug)]
pub struct PgShowArgs {
    /// POOL.PG, the latter in hexadecimal, as `trefoil pg list` shows it
    #[arg(value_parser = pg_id, required_unless_present = "object", conflicts_with = "object")]
    pg: Option<PgId>,
    /// The placement group of this object, and of the blocks in doubt only its own
    #[arg(long, value_name = "VOLUME/INDEX")]
    object: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `1.2f`.
pub fn pg_id(text: &str) -> Result<PgId, String> {
    let read = || {
        let (pool, pg) = text.split_once('.')?;
        Some(PgId { pool: PoolId(pool.parse().ok()?), pg: u32::from_str_radix(pg, 16).ok()? })
    };
    read().ok_or_else(|| format!("{text:?} is no placement group: write POOL.PG, the latter in hexadecimal"))
}

/// Runs `trefoil pg ...`.
pub fn run(command: &PgCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        PgCommand::List(args) => pg_list(args, global, out),
        PgCommand::Show(args) => pg_show(args, global, out),
        PgCommand::Scrub(args) => super::pg_scrub::scrub(args, global, out),
        PgCommand::Settle(args) => super::pg_settle::settle(args, global, out),
    }
}

fn pg_list(args: &PgListArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let snapshot = admin::snapshot(global)?;
    if let Some(pool) = &args.pool
        && snapshot.map.pool_named(pool).is_none()
    {
        return Err(Failure::from(anyhow!("there is no pool {pool:?}; see `trefoil pool list`")));
    }
    let wanted = |pg: &PgView| {
        args.pool.as_ref().is_none_or(|pool| pg.pool == *pool)
            && match args.state {
                None => true,
                Some(PgState::Active) => pg.state == "active",
                Some(PgState::Degraded) => pg.state == "degraded",
                Some(PgState::Unavailable) => pg.state == "unavailable",
                Some(PgState::Moving) => pg.moving.is_some(),
            }
    };
    let pgs = snapshot.pgs().into_iter().filter(wanted).collect();
    let row = |pg: &PgView| {
        vec![pg.pg.clone(), pg.pool.clone(), pg.epoch.to_string(), acting(pg), state(pg.state, pg.moving)]
    };
    list(&args.list, out, pgs, &["PG", "POOL", ">EPOCH", "ACTING", "STATE"], row)
}

fn acting(pg: &PgView) -> String {
    let mut acting = joined(&pg.acting);
    if !pg.leaving.is_empty() {
        acting = format!("{} -> {acting}", joined(&pg.leaving));
    }
    if !pg.learners.is_empty() {
        acting += &format!(" (learning: {})", joined(&pg.learners));
    }
    acting
}

fn state(state: &str, moving: Option<&str>) -> String {
    moving.map_or_else(|| state.to_owned(), |stage| format!("{state}, moving ({stage})"))
}

/// What `pg show --json` writes.
#[derive(Serialize)]
struct ShownView {
    #[serde(flatten)]
    pg: PgView,
    copies: Vec<CopyView>,
    #[serde(flatten)]
    doubts: DoubtsView,
}

/// What a node has of a placement group.
#[derive(Serialize)]
struct CopyView {
    node: u32,
    /// `member`, `leaving`, `coming` or `learner`.
    role: &'static str,
    /// False: it did not answer, and what it holds is not known.
    known: bool,
    /// One for each volume; none where it is not known.
    groups: Option<Vec<GroupView>>,
}

/// What a node has of one volume's objects in a placement group.
#[derive(Serialize)]
struct GroupView {
    volume: u64,
    name: Option<String>,
    /// `GENERATION.ROUND` of the ballot that it has promised.
    promised: String,
    /// `GENERATION.ROUND` of the ballot that it was last brought in line by.
    settled: String,
    /// The epoch in which that was opened.
    opened_epoch: u64,
    behind: u32,
    /// It has lost its votes.
    lost: bool,
}

fn pg_show(args: &PgShowArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let object = args.object.as_deref().map(super::pg_settle::object_name).transpose()?;
    let (snapshot, status, said, pg, only) = admin::block_on(async {
        let mut admin = Admin::connect(global)?;
        let snapshot = admin.snapshot().await?;
        let (pg, only) = match (object, args.pg) {
            (None, Some(pg)) => (pg, None),
            (object, _) => {
                let (volume, index) = object.unwrap_or_default();
                let (pg, id) = pg_of(&snapshot.map, volume, index)?;
                (pg, Some((id, index)))
            }
        };
        let status = admin.pg(pg).await?;
        Ok((snapshot, status, admin.doubts(pg).await?, pg, only))
    })?;
    let config = &status.config;
    let doubts = pg_doubts::view(&snapshot.map, &said, only);
    let mut view = snapshot.pgs().into_iter().find(|view| view.pg == pg.to_string());
    if let Some(view) = &mut view {
        // What the nodes were asked in, whatever it is by now.
        let numbers = |nodes: &[trefoil_core::NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
        view.epoch = config.epoch.0;
        view.acting = numbers(&config.new);
        view.leaving = if config.old == config.new { Vec::new() } else { numbers(&config.old) };
        view.learners = numbers(&config.learners);
    }
    let active = snapshot.map.moves.active.get(&pg);
    let Some(pg) = view else {
        return Err(Failure::from(anyhow!("there is no placement group {pg}; see `trefoil pg list`")));
    };
    let copies = status.copies.iter().map(|(node, groups)| CopyView {
        node: node.0,
        role: match (config.old.contains(node), config.new.contains(node)) {
            (true, true) => "member",
            (true, false) => "leaving",
            (false, true) => "coming",
            (false, false) => "learner",
        },
        known: groups.is_some(),
        groups: groups.as_ref().map(|groups| groups.iter().map(|it| group(&snapshot, it)).collect()),
    });
    let view = ShownView { pg, copies: copies.collect(), doubts };
    if args.json {
        return output::json(out, &view);
    }
    writeln!(out, "{} of pool {}: epoch {}, {}", view.pg.pg, view.pg.pool, view.pg.epoch, acting(&view.pg))?;
    writeln!(out, "state: {}", state(view.pg.state, view.pg.moving))?;
    if let Some(it) = active {
        writeln!(out, "{} is being replaced by {}", it.from, it.to)?;
    }
    writeln!(out)?;
    let rows = view.copies.iter().flat_map(rows);
    let headers = ["NODE", "ROLE", "VOLUME", ">PROMISED", ">SETTLED", ">IN EPOCH", ">BEHIND", "STATE"];
    writeln!(out, "{}", output::table(&headers, rows))?;
    write!(out, "{}", view.doubts.text())?;
    Ok(())
}

/// Where an object is, and its volume.
fn pg_of(map: &ClusterMap, volume: &str, index: u32) -> Outcome<(PgId, VolumeId)> {
    let missing = || Failure::from(anyhow!("there is no volume {volume:?}; see `trefoil volume list`"));
    let (id, info) = map.volume_named(volume).ok_or_else(missing)?;
    let objects = info.objects();
    let group = map.group_of(id, index).ok_or_else(|| {
        Failure::from(anyhow!("{volume:?} has {objects} objects, from 0: there is no object {index}"))
    })?;
    Ok((group.pg, id))
}

fn group(snapshot: &Snapshot, it: &ListedGroup) -> GroupView {
    let ballot = |ballot: trefoil_core::Ballot| format!("{}.{}", ballot.generation().0, ballot.round());
    GroupView {
        volume: it.volume.0,
        name: snapshot.map.volumes.get(&it.volume).map(|volume| volume.name.clone()),
        promised: ballot(it.promised),
        settled: ballot(it.settled),
        opened_epoch: it.opened.0,
        behind: it.behind,
        lost: it.lost,
    }
}

fn rows(copy: &CopyView) -> Vec<Vec<String>> {
    let line = |rest: [String; 6]| {
        let mut cells = vec![copy.node.to_string(), copy.role.to_owned()];
        cells.extend(rest);
        cells
    };
    let empty = |text: &str| {
        let dash = || "-".to_owned();
        vec![line([dash(), dash(), dash(), dash(), dash(), text.to_owned()])]
    };
    match &copy.groups {
        None => empty("unknown: it did not answer"),
        Some(groups) if groups.is_empty() => empty("holds nothing"),
        Some(groups) => groups.iter().map(|it| line(cells(it))).collect(),
    }
}

fn cells(it: &GroupView) -> [String; 6] {
    let state = match (it.lost, it.behind) {
        (true, _) => "lost: has no vote",
        (false, 0) if it.promised == it.settled => "whole",
        (false, 0) => "not settled in its last promise",
        (false, _) => "behind",
    };
    [
        it.name.clone().unwrap_or_else(|| format!("{} (not in the map)", it.volume)),
        it.promised.clone(),
        it.settled.clone(),
        it.opened_epoch.to_string(),
        it.behind.to_string(),
        state.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_groups_are_read_as_they_are_shown() {
        let pg = PgId { pool: PoolId(3), pg: 0x2f };
        assert_eq!(pg_id("3.2f"), Ok(pg));
        assert_eq!(pg_id(&pg.to_string()), Ok(pg));
        for wrong in ["", "3", "3.", ".1", "3.x", "3.1.1", "-1.0", "3.-1"] {
            assert!(pg_id(wrong).is_err(), "{wrong}");
        }
    }
}
