//! `trefoil crush rule list|show|create-replicated|remove`.

use super::change;
use super::show::{item_name, rule_json};
use crate::admin;
use crate::cmd::Global;
use crate::cmd::go_ahead::Options;
use crate::cmd::pool::rule_id;
use crate::failure::Outcome;
use crate::output;
use crate::view::Snapshot;
use anyhow::{anyhow, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Write;
use trefoil_core::crush::edit::Edit;
use trefoil_core::crush::{MapDef, Rule, Step};

/// `trefoil crush rule ...`.
#[derive(Subcommand, Debug)]
pub enum RuleCommand {
    /// List rules: what they take, what they keep copies apart by, which pools use them
    #[command(after_help = "\
Examples:
  trefoil crush rule list
  trefoil crush rule list --json | jq -r '.[].rule_name'")]
    List {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one rule, step by step
    #[command(after_help = "\
Examples:
  trefoil crush rule show replicated_host
  trefoil crush rule show 0 --json")]
    Show {
        /// Its name or id
        rule: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a rule that keeps copies apart
    #[command(
        visible_alias = "create-simple",
        after_help = "\
Examples:
  trefoil crush rule create-replicated by-rack default rack
  trefoil crush rule create-replicated fast default host ssd"
    )]
    CreateReplicated {
        /// Its name
        name: String,
        /// The bucket that it takes
        root: String,
        /// What each copy has of its own: host, rack, ..., osd
        #[arg(value_name = "TYPE")]
        type_name: String,
        /// Only devices of this class
        class: Option<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Remove a rule that no pool uses
    #[command(after_help = "\
Examples:
  trefoil crush rule remove by-rack")]
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        options: Options,
    },
}

/// Runs the command.
pub fn run(command: &RuleCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        RuleCommand::List { json } => list(*json, global, out),
        RuleCommand::Show { rule, json } => show(rule, *json, global, out),
        RuleCommand::CreateReplicated { name, root, type_name, class, options } => {
            let (name, root, type_name) = (name.clone(), root.clone(), type_name.clone());
            let edit = Edit::CreateRule { name, root, type_name, class: class.clone() };
            change::edit(&edit, options, global, out)
        }
        RuleCommand::Remove { name, options } => remove(name, options, global, out),
    }
}

fn pools_of(snapshot: &Snapshot, rule: u32) -> Vec<String> {
    let pools = snapshot.map.pools.values().filter(|pool| pool.rule == rule);
    pools.map(|pool| pool.name.clone()).collect()
}

fn view(snapshot: &Snapshot, rule: &Rule) -> Value {
    let mut value = rule_json(snapshot.map.crush.def(), rule);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("pools".to_owned(), json!(pools_of(snapshot, rule.id)));
    }
    value
}

fn list(as_json: bool, global: &Global, out: &mut dyn Write) -> Outcome {
    let snapshot = admin::snapshot(global)?;
    let def = snapshot.map.crush.def();
    if as_json {
        let views: Vec<Value> = def.rules.iter().map(|rule| view(&snapshot, rule)).collect();
        return output::json(out, &views);
    }
    let row = |rule: &Rule| {
        let pools = pools_of(&snapshot, rule.id);
        let pools = if pools.is_empty() { "-".to_owned() } else { pools.join(",") };
        vec![rule.id.to_string(), rule.name.clone(), takes(def, rule), apart(def, rule), pools]
    };
    let rows = def.rules.iter().map(row);
    writeln!(out, "{}", output::table(&[">ID", "NAME", "TAKES", "CHOOSES", "POOLS"], rows))?;
    Ok(())
}

fn takes(def: &MapDef, rule: &Rule) -> String {
    let takes = rule.steps.iter().filter_map(|step| match step {
        Step::Take { item, class: None } => Some(item_name(def, *item)),
        Step::Take { item, class: Some(class) } => Some(format!("{} ({class})", item_name(def, *item))),
        _ => None,
    });
    takes.collect::<Vec<_>>().join(", ")
}

fn apart(def: &MapDef, rule: &Rule) -> String {
    let chooses = rule.steps.iter().filter_map(|step| match step {
        Step::Choose { type_id, .. } => {
            def.types.iter().find(|it| it.id == *type_id).map(|it| it.name.as_str())
        }
        _ => None,
    });
    chooses.collect::<Vec<_>>().join(", ")
}

fn show(name: &str, as_json: bool, global: &Global, out: &mut dyn Write) -> Outcome {
    let snapshot = admin::snapshot(global)?;
    let crush = &snapshot.map.crush;
    let id = rule_id(crush, name)?;
    let rule = crush.def().rules.iter().find(|rule| rule.id == id);
    let rule = rule.ok_or_else(|| anyhow!("the CRUSH map has no rule {name:?}"))?;
    if as_json {
        return output::json(out, &view(&snapshot, rule));
    }
    // As it stands in the text of the map.
    let text = crush.to_text();
    let head = format!("rule {} {{", rule.name);
    let lines = text.lines().skip_while(|line| *line != head);
    for line in lines.take_while(|line| *line != "}") {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "}}")?;
    let pools = pools_of(&snapshot, id);
    match pools.as_slice() {
        [] => writeln!(out, "no pool uses it")?,
        pools => writeln!(out, "used by pool {}", pools.join(", "))?,
    }
    Ok(())
}

fn remove(name: &str, options: &Options, global: &Global, out: &mut dyn Write) -> Outcome {
    let make = |snapshot: &Snapshot| {
        let crush = &snapshot.map.crush;
        let rule = crush.def().rules.iter().find(|rule| rule.name == name);
        if let Some(rule) = rule {
            let pools = pools_of(snapshot, rule.id);
            if !pools.is_empty() {
                bail!(
                    "rule {name} is that of pool {}: a rule that a pool uses is not removed",
                    pools.join(", ")
                );
            }
        }
        Ok(crush.edited(&Edit::RemoveRule { name: name.to_owned() })?)
    };
    change::make(make, options, global, out)
}
