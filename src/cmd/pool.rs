//! `trefoil pool create|set|list`.
//!
//! What a pool may be is the monitors' to say; here a rule's name is looked up, and nothing else.

mod pg_num;

use super::go_ahead::Options;
use super::lists::{ListArgs, list};
use super::{Global, wish};
use crate::admin::{self, Admin, NewPool, Replaced};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::size::Size;
use crate::view::PoolView;
use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use std::io::Write;
use trefoil_core::crush::CrushMap;
use trefoil_core::map::admin::PoolChange;
use trefoil_core::map::{Ack, Command, FailureDomain, PG_NUM_DEFAULT, POOL_SIZE_DEFAULT};

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
    #[command(flatten)]
    two: TwoCopies,
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

/// The words without which no pool has two copies.
#[derive(Args, Clone, Copy, Debug)]
struct TwoCopies {
    /// Two copies: writes wait whenever one of them is away, and where the two differ nobody can say which is right
    #[arg(long)]
    yes_two_copies_cannot_outvote_each_other: bool,
}

impl TwoCopies {
    fn check(self, copies: u8) -> Outcome {
        if copies != 2 || self.yes_two_copies_cannot_outvote_each_other {
            return Ok(());
        }
        Err(Failure::usage(anyhow!(
            "two copies: writes wait whenever one of the two nodes is away, and where the two differ no majority can say \
             which is right. Take 3; or say --yes-two-copies-cannot-outvote-each-other"
        )))
    }
}

/// Change a setting of a pool: its CRUSH rule, its number of copies or placement groups, when a write is done
///
/// `rule NAME|ID`: its placement groups are then wanted where that rule says; what would move is shown first. `copies N`
/// (or `size N`): 3, 5 or, with words, 2; only while the pool has no volume. `pg_num N`: more placement groups, never
/// fewer. Each is split where it is: no data moves by that, and I/O goes on; where CRUSH wants the new ones elsewhere,
/// which is shown first, they are moved there later. `ack majority|all-in-sync`: a write is done when a majority of
/// copies has it, or when every copy that is in line has; for writes from now on.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  trefoil pool set default rule ssd --dry-run
  trefoil pool set default rule ssd --yes
  trefoil pool set default pg_num 256 --dry-run
  trefoil pool set vital copies 5 --yes
  trefoil pool set vital ack all-in-sync")]
pub struct SetArgs {
    /// The pool's name
    name: String,
    /// The setting
    key: Key,
    /// Its new value
    value: String,
    #[command(flatten)]
    two: TwoCopies,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Key {
    Rule,
    #[value(alias = "size")]
    Copies,
    #[value(name = "pg_num", alias = "pg-num")]
    PgNum,
    Ack,
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

impl From<AckArg> for Ack {
    fn from(arg: AckArg) -> Ack {
        match arg {
            AckArg::Majority => Ack::Majority,
            AckArg::AllInSync => Ack::AllInSync,
        }
    }
}

/// Runs the command.
pub fn run(command: &PoolCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        PoolCommand::Create(args) => create(args, global, out),
        PoolCommand::Set(args) => set(args, global, out),
        PoolCommand::List(args) => list_pools(args, global, out),
    }
}

fn set(args: &SetArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let change = match args.key {
        Key::Rule => {
            let rule = rule_id(&admin::snapshot(global)?.map.crush, &args.value)?;
            PoolChange::Rule(rule)
        }
        Key::Copies => {
            let copies = args.value.parse().map_err(|_| {
                Failure::usage(anyhow!("{:?} is no number of copies: choose 3 or 5", args.value))
            })?;
            args.two.check(copies)?;
            PoolChange::Copies(copies)
        }
        Key::PgNum => return pg_num::set(args, global, out),
        Key::Ack => {
            let arg = AckArg::from_str(&args.value, false).map_err(|_| {
                Failure::usage(anyhow!("ack {:?}: choose majority or all-in-sync", args.value))
            })?;
            PoolChange::Ack(arg.into())
        }
    };
    let pool = args.name.clone();
    let perform = async |admin: &mut Admin, _: &_| {
        admin.set_pool(pool.clone(), change).await?;
        Ok(Replaced::Done)
    };
    let done = match change {
        PoolChange::Rule(rule) => format!("pool {pool}: rule {rule}"),
        PoolChange::Copies(copies) => format!("pool {pool}: {copies} copies"),
        PoolChange::Ack(ack) => format!("pool {pool}: writes are acknowledged by {ack}"),
    };
    let commands = |_: &_| vec![Command::SetPool { pool: pool.clone(), change }];
    wish::make(commands, perform, &done, &args.options, global, out)
}

fn create(args: &CreateArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    args.two.check(args.copies)?;
    let ack = args.ack.into();
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
        vec![
            pool.id.to_string(),
            pool.name.clone(),
            pool.copies.to_string(),
            pool.pg_num.to_string(),
            format!("{} ({})", pool.rule_name, pool.rule),
            pool.ack.to_string(),
            pool.volumes.to_string(),
            Size(pool.volume_bytes).to_string(),
            pool.degraded_pgs.to_string(),
            pool.unavailable_pgs.to_string(),
        ]
    };
    let headers = [
        ">ID",
        "NAME",
        ">COPIES",
        ">PGS",
        "RULE",
        "ACK",
        ">VOLUMES",
        ">PROVISIONED",
        ">DEGRADED",
        ">UNAVAILABLE",
    ];
    list(args, out, admin::snapshot(global)?.pools(), &headers, row)
}
