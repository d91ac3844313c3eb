//! `trefoil pool create|set|list`.
//!
//! What a pool may be is the monitors' to say; here a rule's name is looked up, and nothing else.

mod pg_num;

use super::Global;
use super::lists::{ListArgs, list};
use crate::admin::{self, Admin, NewPool};
use crate::failure::Outcome;
use crate::output;
use crate::view::PoolView;
use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use std::io::Write;
use trefoil_core::crush::CrushMap;
use trefoil_core::map::{Ack, FailureDomain, PG_NUM_DEFAULT, POOL_SIZE_DEFAULT};

/// `trefoil pool ...`.
#[derive(Subcommand, Debug)]
pub enum PoolCommand {
    /// Make a pool: volumes that share a rule, a number of copies and a set of placement groups
    #[command(after_help = "\
Examples:
  trefoil pool create fast --rule fast --pg-num 128
  trefoil pool create trial --domain osd
  trefoil pool create vital --copies 5 --ack all-in-sync --json")]
    Create(CreateArgs),
    /// Change a pool: more placement groups
    #[command(after_help = "\
Keys:
  pg_num   placement groups; they can only become more. Each is split where it is: no data moves, and I/O
           goes on. Where CRUSH wants the new ones elsewhere, they are moved there later, one at a time.

Examples:
  trefoil pool set fast pg_num 256
  trefoil pool set fast pg_num 256 --dry-run --json")]
    Set(SetArgs),
    /// List pools: copies, placement groups, rule
    #[command(after_help = "\
Examples:
  trefoil pool list
  trefoil pool list --json")]
    List(ListArgs),
}

/// `trefoil pool create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The name: A-Z a-z 0-9 . _ -
    name: String,
    /// Copies: 3 or 5
    #[arg(long, value_name = "N", default_value_t = POOL_SIZE_DEFAULT)]
    copies: u8,
    /// Placement groups
    #[arg(long, value_name = "N", default_value_t = PG_NUM_DEFAULT)]
    pg_num: u32,
    /// What each copy has of its own: a host, or (for trials on one host) only a node
    #[arg(long, value_name = "DOMAIN", default_value = "host", conflicts_with = "rule")]
    domain: Domain,
    /// The CRUSH rule, by name or id; see `trefoil crush rule list`
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// When a write is done: durable on a majority, or on every copy that is in line
    #[arg(long, value_name = "WHEN", default_value = "majority")]
    ack: AckArg,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `trefoil pool set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// The pool
    name: String,
    /// What to change
    key: Key,
    /// Its new value
    value: String,
    /// Say what would happen, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Key {
    #[value(name = "pg_num")]
    PgNum,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Domain {
    Host,
    Osd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AckArg {
    Majority,
    AllInSync,
}

/// Runs the command.
pub fn run(command: &PoolCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        PoolCommand::Create(args) => create(args, global, out),
        PoolCommand::Set(args) => match args.key {
            Key::PgNum => pg_num::set(args, global, out),
        },
        PoolCommand::List(args) => list_pools(args, global, out),
    }
}

fn create(args: &CreateArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let ack = match args.ack {
        AckArg::Majority => Ack::Majority,
        AckArg::AllInSync => Ack::AllInSync,
    };
    let snapshot = admin::block_on(async {
        let mut admin = Admin::connect(global)?;
        let domain = match (&args.rule, args.domain) {
            (Some(rule), _) => FailureDomain::Rule(rule_id(&admin.snapshot().await?.map.crush, rule)?),
            (None, Domain::Host) => FailureDomain::Host,
            (None, Domain::Osd) => FailureDomain::Osd,
        };
        let (name, copies, pg_num) = (args.name.clone(), args.copies, args.pg_num);
        admin.create_pool(&NewPool { name, copies, pg_num, domain, ack }).await?;
        admin.snapshot().await
    })?;
    let view = snapshot.pools().into_iter().find(|pool| pool.name == args.name);
    let view = view.ok_or_else(|| anyhow!("pool {} was made and is gone again", args.name))?;
    if args.json {
        return output::json(out, &view);
    }
    let PoolView { id, name, copies, pg_num, rule, .. } = view;
    writeln!(out, "made pool {name} (id {id}): {copies} copies, {pg_num} placement groups, rule {rule}")?;
    Ok(())
}

/// The id of a rule, by its name or as a number.
pub fn rule_id(crush: &CrushMap, text: &str) -> anyhow::Result<u32> {
    let rules = &crush.def().rules;
    let by_name = rules.iter().find(|rule| rule.name == text);
    let by_id = || rules.iter().find(|rule| text.parse() == Ok(rule.id));
    by_name.or_else(by_id).map(|rule| rule.id).ok_or_else(|| {
        anyhow!("the CRUSH map has no rule {text:?}; `trefoil crush rule list` shows which it has")
    })
}

fn list_pools(args: &ListArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let row = |pool: &PoolView| {
        let ack = match pool.ack {
            Ack::Majority => "majority",
            Ack::AllInSync => "all-in-sync",
        };
        vec![
            pool.id.to_string(),
            pool.name.clone(),
            pool.copies.to_string(),
            pool.pg_num.to_string(),
            pool.rule.to_string(),
            ack.to_owned(),
            pool.volumes.to_string(),
        ]
    };
    let headers = [">ID", "NAME", ">COPIES", ">PGS", ">RULE", "ACK", ">VOLUMES"];
    list(args, out, admin::snapshot(global)?.pools(), &headers, row)
}
