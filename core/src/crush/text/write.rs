//! The writer of text maps: byte for byte what `crushtool -d` prints.
//!
//! With one exception: a weight that three decimals do not give back exactly gets as many as it
//! needs, so that reading the text gives the same map.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::rules::CHOOSE_ARGS_DEFAULT_TEXT;
use crate::crush::model::ALG_NAMES;
use crate::crush::{
    Bucket, BucketAlg, CHOOSE_ARGS_DEFAULT, ChooseArgs, CrushMap, MapDef, Mode, Rule, RuleKind, Step,
    Tunables, WEIGHT_ONE,
};

/// Enough for every weight: 16 binary places have no more decimals.
const DECIMALS_MAX: usize = 16;

impl CrushMap {
    /// The map in Ceph's text format; [`CrushMap::parse`] gives back an equal map.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = Writer::new(self.def()).map(&mut out);
        out
    }
}

struct Writer<'d> {
    def: &'d MapDef,
    items: BTreeMap<i32, &'d str>,
    types: BTreeMap<i32, &'d str>,
}

/// A weight as Ceph prints it, or with the decimals that it needs.
struct Weight(u32);

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = WEIGHT_ONE as f32;
        let weight = self.0 as f32 / one;
        let exact = |decimals: &usize| {
            let text = format!("{weight:.decimals$}");
            text.parse::<f32>().is_ok_and(|read| (read * one) as u32 == self.0)
        };
        let decimals = (3..DECIMALS_MAX).find(exact).unwrap_or(DECIMALS_MAX);
        write!(f, "{weight:.decimals$}")
    }
}

impl<'d> Writer<'d> {
    fn new(def: &'d MapDef) -> Self {
        let devices = def.devices.iter().map(|device| (device.id, device.name.as_str()));
        let buckets = def.buckets.iter().map(|bucket| (bucket.id, bucket.name.as_str()));
        let types = def.types.iter().map(|entry| (entry.id, entry.name.as_str()));
        Self { def, items: devices.chain(buckets).collect(), types: types.collect() }
    }

    fn map(&self, out: &mut String) -> fmt::Result {
        let def = self.def;
        out.push_str("# begin crush map\n");
        let (mut tunables, mut legacy) = (def.tunables.clone(), Tunables::LEGACY);
        for ((name, value), (_, default)) in tunables.named().into_iter().zip(legacy.named()) {
            if value != default {
                writeln!(out, "tunable {name} {value}")?;
            }
        }
        out.push_str("\n# devices\n");
        for device in &def.devices {
            write!(out, "device {} {}", device.id, device.name)?;
            if let Some(class) = &device.class {
                write!(out, " class {class}")?;
            }
            out.push('\n');
        }
        out.push_str("\n# types\n");
        for entry in &def.types {
            writeln!(out, "type {} {}", entry.id, entry.name)?;
        }
        out.push_str("\n# buckets\n");
        def.buckets.iter().try_for_each(|bucket| self.bucket(bucket, out))?;
        out.push_str("\n# rules\n");
        def.rules.iter().try_for_each(|rule| self.rule(rule, out))?;
        if !def.choose_args.is_empty() {
            out.push_str("\n# choose_args\n");
            def.choose_args.iter().try_for_each(|set| choose_args(set, out))?;
        }
        out.push_str("\n# end crush map\n");
        Ok(())
    }

    fn item(&self, id: i32) -> &'d str {
        self.items.get(&id).copied().unwrap_or_default()
    }

    fn type_name(&self, id: i32) -> &'d str {
        self.types.get(&id).copied().unwrap_or_default()
    }

    fn bucket(&self, bucket: &Bucket, out: &mut String) -> fmt::Result {
        const WARNING: &str = "\t\t# do not change unnecessarily";
        writeln!(out, "{} {} {{", self.type_name(bucket.type_id), bucket.name)?;
        writeln!(out, "\tid {}{WARNING}", bucket.id)?;
        for (class, id) in &bucket.class_ids {
            writeln!(out, "\tid {id} class {class}{WARNING}")?;
        }
        let sum = bucket.items.iter().fold(0u32, |sum, item| sum.wrapping_add(item.weight));
        writeln!(out, "\t# weight {:.3}", sum as f32 / WEIGHT_ONE as f32)?;
        let name = ALG_NAMES.iter().find(|entry| entry.1 == bucket.alg).map_or("", |entry| entry.0);
        write!(out, "\talg {name}")?;
        let size = bucket.items.len();
        match bucket.alg {
            BucketAlg::Uniform => {
                write!(out, "\t# do not change bucket size ({size}) unnecessarily")?;
            }
            BucketAlg::List => {
                out.push_str("\t# add new items at the end; do not change order unnecessarily");
            }
            BucketAlg::Tree => {
                out.push_str("\t# do not change pos for existing items unnecessarily");
            }
            BucketAlg::Straw | BucketAlg::Straw2 => {}
        }
        out.push_str("\n\thash 0\t# rjenkins1\n");
        for (pos, item) in bucket.items.iter().enumerate() {
            write!(out, "\titem {} weight {}", self.item(item.id), Weight(item.weight))?;
            if matches!(bucket.alg, BucketAlg::Uniform | BucketAlg::Tree) {
                write!(out, " pos {pos}")?;
            }
            out.push('\n');
        }
        out.push_str("}\n");
        Ok(())
    }

    fn rule(&self, rule: &Rule, out: &mut String) -> fmt::Result {
        writeln!(out, "rule {} {{", rule.name)?;
        writeln!(out, "\tid {}", rule.id)?;
        let kind = match rule.kind {
            RuleKind::Replicated => "replicated",
            RuleKind::Erasure => "erasure",
        };
        writeln!(out, "\ttype {kind}")?;
        writeln!(out, "\tmin_size {}", rule.min_size)?;
        writeln!(out, "\tmax_size {}", rule.max_size)?;
        for step in &rule.steps {
            out.push_str("\tstep ");
            match step {
                Step::Take { item, class } => {
                    write!(out, "take {}", self.item(*item))?;
                    if let Some(class) = class {
                        write!(out, " class {class}")?;
                    }
                }
                Step::Choose { leaf, mode, num, type_id } => {
                    let verb = if *leaf { "chooseleaf" } else { "choose" };
                    let mode = match mode {
                        Mode::Firstn => "firstn",
                        Mode::Indep => "indep",
                    };
                    write!(out, "{verb} {mode} {num} type {}", self.type_name(*type_id))?;
                }
                Step::Emit => out.push_str("emit"),
                Step::SetChooseTries(n) => write!(out, "set_choose_tries {n}")?,
                Step::SetChooseleafTries(n) => write!(out, "set_chooseleaf_tries {n}")?,
                Step::SetChooseLocalTries(n) => write!(out, "set_choose_local_tries {n}")?,
                Step::SetChooseLocalFallbackTries(n) => {
                    write!(out, "set_choose_local_fallback_tries {n}")?;
                }
                Step::SetChooseleafVaryR(n) => write!(out, "set_chooseleaf_vary_r {n}")?,
                Step::SetChooseleafStable(n) => write!(out, "set_chooseleaf_stable {n}")?,
            }
            out.push('\n');
        }
        out.push_str("}\n");
        Ok(())
    }
}

fn choose_args(set: &ChooseArgs, out: &mut String) -> fmt::Result {
    match set.id {
        CHOOSE_ARGS_DEFAULT => writeln!(out, "choose_args {CHOOSE_ARGS_DEFAULT_TEXT} {{")?,
        id => writeln!(out, "choose_args {id} {{")?,
    }
    for arg in &set.args {
        writeln!(out, "  {{\n    bucket_id {}", arg.bucket_id)?;
        if !arg.weight_set.is_empty() {
            out.push_str("    weight_set [\n");
            for weights in &arg.weight_set {
                out.push_str("      [ ");
                weights.iter().try_for_each(|&weight| write!(out, "{} ", Weight(weight)))?;
                out.push_str("]\n");
            }
            out.push_str("    ]\n");
        }
        if !arg.ids.is_empty() {
            out.push_str("    ids [ ");
            arg.ids.iter().try_for_each(|id| write!(out, "{id} "))?;
            out.push_str("]\n");
        }
        out.push_str("  }\n");
    }
    out.push_str("}\n");
    Ok(())
}
