//! `trefoil crush get`: the cluster's map as text, or as the JSON of `ceph osd crush dump`.

use super::file;
use crate::admin;
use crate::cmd::Global;
use crate::failure::Outcome;
use crate::output;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use trefoil_core::crush::{Bucket, BucketAlg, MapDef, Mode, Rule, RuleKind, Step};

/// `trefoil crush get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Write to this file, which is made or overwritten
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write JSON, as `ceph osd crush dump`
    #[arg(long, conflicts_with = "text")]
    json: bool,
    /// Write text, as `crushtool -d`; the default
    #[arg(long)]
    text: bool,
}

/// Runs the command.
pub fn get(args: &GetArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let snapshot = admin::snapshot(global)?;
    let (map, version) = (&snapshot.map.crush, snapshot.map.crush_version);
    let mut bytes = Vec::new();
    match args.json {
        true => output::json(&mut bytes, &dump(map.def(), version))?,
        false => bytes.extend(file::text(map, &snapshot.status().cluster.id, version).into_bytes()),
    }
    let Some(path) = &args.out else {
        return Ok(out.write_all(&bytes)?);
    };
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(out, "wrote version {version} of the CRUSH map to {}", path.display())?;
    Ok(())
}

/// Weights are in 1/65536, as there.
fn dump(def: &MapDef, version: u64) -> Value {
    let type_name = |id: i32| def.types.iter().find(|it| it.id == id).map_or("", |it| it.name.as_str());
    let device = |it: &trefoil_core::crush::Device| json!({"id": it.id, "name": it.name, "class": it.class});
    let bucket = |it: &Bucket| {
        let alg = match it.alg {
            BucketAlg::Uniform => "uniform",
            BucketAlg::List => "list",
            BucketAlg::Tree => "tree",
            BucketAlg::Straw => "straw",
            BucketAlg::Straw2 => "straw2",
        };
        let weight: u64 = it.items.iter().map(|item| u64::from(item.weight)).sum();
        let items = it.items.iter().enumerate();
        let items: Vec<Value> =
            items.map(|(pos, item)| json!({"id": item.id, "weight": item.weight, "pos": pos})).collect();
        json!({
            "id": it.id, "name": it.name, "type_id": it.type_id, "type_name": type_name(it.type_id),
            "weight": weight, "alg": alg, "hash": "rjenkins1", "items": items,
        })
    };
    let types = |it: &trefoil_core::crush::TypeName| json!({"type_id": it.id, "name": it.name});
    json!({
        "crush_version": version,
        "devices": def.devices.iter().map(device).collect::<Vec<_>>(),
        "types": def.types.iter().map(types).collect::<Vec<_>>(),
        "buckets": def.buckets.iter().map(bucket).collect::<Vec<_>>(),
        "rules": def.rules.iter().map(|rule| rule_json(def, rule)).collect::<Vec<_>>(),
        "tunables": def.tunables,
        "choose_args": def.choose_args,
    })
}

/// A rule as in `ceph osd crush rule dump`.
pub fn rule_json(def: &MapDef, rule: &Rule) -> Value {
    let type_name = |id: i32| def.types.iter().find(|it| it.id == id).map_or("", |it| it.name.as_str());
    let kind = match rule.kind {
        RuleKind::Replicated => "replicated",
        RuleKind::Erasure => "erasure",
    };
    let step = |step: &Step| match step {
        Step::Take { item, class } => {
            let name = item_name(def, *item);
            json!({"op": "take", "item": item, "item_name": name, "class": class})
        }
        Step::Choose { leaf, mode, num, type_id } => {
            let verb = if *leaf { "chooseleaf" } else { "choose" };
            let mode = match mode {
                Mode::Firstn => "firstn",
                Mode::Indep => "indep",
            };
            json!({"op": format!("{verb}_{mode}"), "num": num, "type": type_name(*type_id)})
        }
        Step::Emit => json!({"op": "emit"}),
        Step::SetChooseTries(n) => json!({"op": "set_choose_tries", "num": n}),
        Step::SetChooseleafTries(n) => json!({"op": "set_chooseleaf_tries", "num": n}),
        Step::SetChooseLocalTries(n) => json!({"op": "set_choose_local_tries", "num": n}),
        Step::SetChooseLocalFallbackTries(n) => json!({"op": "set_choose_local_fallback_tries", "num": n}),
        Step::SetChooseleafVaryR(n) => json!({"op": "set_chooseleaf_vary_r", "num": n}),
        Step::SetChooseleafStable(n) => json!({"op": "set_chooseleaf_stable", "num": n}),
    };
    json!({
        "rule_id": rule.id, "rule_name": rule.name, "type": kind,
        "steps": rule.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

/// What a bucket or device is called.
pub fn item_name(def: &MapDef, id: i32) -> String {
    let buckets = def.buckets.iter().map(|it| (it.id, &it.name));
    let mut items = buckets.chain(def.devices.iter().map(|it| (it.id, &it.name)));
    items.find(|it| it.0 == id).map_or_else(|| id.to_string(), |it| it.1.clone())
}
