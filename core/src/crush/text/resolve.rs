//! From names to ids: the second half of reading a text map.
//!
//! Buckets without an id get the first free one from -1 down, items without a weight that of
//! their bucket (1.0 for devices), as in Ceph's compiler. What is a cycle or too deep is noticed
//! here, where the text has a place for it.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::{ParseError, Place, Problem, Token};
use super::parse::{RawBucket, RawMap};
use super::rules::{RawRule, RawStep};
use crate::crush::error::{BuildError, Subject};
use crate::crush::{Bucket, DEPTH_MAX, Item, MapDef, Rule, Step, WEIGHT_ONE};

type Names<'t> = BTreeMap<&'t str, i32>;

/// The definition that a text means, and where its parts are.
pub(super) fn resolve(raw: RawMap<'_>) -> Result<(MapDef, Vec<(Subject, Place)>), ParseError> {
    let RawMap { tunables, devices, types, buckets: raw_buckets, .. } = raw;
    let mut places = raw.places;
    let type_ids: BTreeMap<&str, i32> = types.iter().map(|entry| (entry.name.as_str(), entry.id)).collect();
    let mut names: BTreeMap<&str, i32> =
        devices.iter().map(|device| (device.name.as_str(), device.id)).collect();
    let mut blocks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut used: BTreeSet<i32> = BTreeSet::new();
    for (number, bucket) in raw_buckets.iter().enumerate() {
        let taken = names.contains_key(bucket.name.text);
        if taken || blocks.insert(bucket.name.text, number).is_some() {
            return Err(bucket.name.twice("the name"));
        }
        used.extend(bucket.id);
        used.extend(bucket.class_ids.iter().map(|entry| entry.1));
    }
    let order = children_first(&raw_buckets, &blocks)?;
    let mut weights: BTreeMap<i32, u32> = BTreeMap::new();
    let mut free = -1;
    let mut buckets = Vec::with_capacity(order.len());
    for number in order {
        let bucket = &raw_buckets[number];
        let Some(&type_id) = type_ids.get(bucket.type_name.text) else {
            let hint = "a bucket begins with its type, which a `type` line must define";
            return Err(bucket.type_name.unknown("type or keyword", hint));
        };
        let id = bucket.id.unwrap_or_else(|| {
            while used.contains(&free) {
                free -= 1;
            }
            used.insert(free);
            free
        });
        places.push((Subject::Bucket(id), bucket.name.place));
        let items = items(bucket, &names, &weights)?;
        let sum = items.iter().fold(0u32, |sum, item| sum.saturating_add(item.weight));
        weights.insert(id, sum);
        names.insert(bucket.name.text, id);
        buckets.push(Bucket {
            id,
            name: bucket.name.text.to_owned(),
            type_id,
            alg: bucket.alg,
            items,
            class_ids: bucket.class_ids.clone(),
        });
    }
    let rules = raw.rules.into_iter().map(|rule| resolve_rule(rule, &names, &type_ids));
    let rules = rules.collect::<Result<_, _>>()?;
    let choose_args = raw.choose_args;
    drop((names, type_ids));
    Ok((MapDef { tunables, devices, types, buckets, rules, choose_args }, places))
}

/// The numbers of the blocks, each after those that it uses; else in the order of the text.
fn children_first(
    buckets: &[RawBucket<'_>],
    blocks: &BTreeMap<&str, usize>,
) -> Result<Vec<usize>, ParseError> {
    let mut done = vec![false; buckets.len()];
    let mut order = Vec::with_capacity(buckets.len());
    for root in 0..buckets.len() {
        let mut path = vec![(root, 0usize)];
        while let Some(top) = path.last_mut() {
            let (current, next) = *top;
            top.1 += 1;
            let item = buckets[current].items.get(next).filter(|_| !done[current]);
            let Some(item) = item else {
                path.pop();
                if !std::mem::replace(&mut done[current], true) {
                    order.push(current);
                }
                continue;
            };
            let Some(&child) = blocks.get(item.name.text) else {
                continue;
            };
            let subject = Subject::Map;
            if path.iter().any(|&(on_path, _)| on_path == child) {
                let name = buckets[current].name.text.to_owned();
                let cycle = BuildError::Cycle { subject, name };
                return Err(item.name.place.error(Problem::Build(cycle)));
            }
            if !done[child] {
                path.push((child, 0));
            }
            if path.len() > DEPTH_MAX {
                let (what, value, max) = ("depth in levels", path.len() as i64, DEPTH_MAX as i64);
                let deep = BuildError::OutOfRange { subject, what, value, min: 1, max };
                return Err(item.name.place.error(Problem::Build(deep)));
            }
        }
    }
    Ok(order)
}

fn items(
    bucket: &RawBucket<'_>,
    names: &Names<'_>,
    weights: &BTreeMap<i32, u32>,
) -> Result<Vec<Item>, ParseError> {
    let count = bucket.items.len();
    let mut slots: Vec<Option<Item>> = vec![None; count];
    let mut floating = Vec::new();
    for item in &bucket.items {
        let Some(&id) = names.get(item.name.text) else {
            return Err(item.name.unknown("device or bucket", "define it or take the item out"));
        };
        let default = || weights.get(&id).copied().unwrap_or(WEIGHT_ONE);
        let entry = Item { id, weight: item.weight.unwrap_or_else(default) };
        let Some(pos) = item.pos else {
            floating.push(entry);
            continue;
        };
        match slots.get_mut(pos) {
            Some(slot @ None) => *slot = Some(entry),
            _ => {
                return Err(item.name.place.error(Problem::BadPosition { pos, items: count }));
            }
        }
    }
    let mut floating = floating.into_iter();
    Ok(slots.into_iter().filter_map(|slot| slot.or_else(|| floating.next())).collect())
}

fn resolve_rule(rule: RawRule<'_>, names: &Names<'_>, type_ids: &Names<'_>) -> Result<Rule, ParseError> {
    let find = |known: &Names<'_>, token: Token<'_>, what, hint| {
        known.get(token.text).copied().ok_or_else(|| token.unknown(what, hint))
    };
    let resolve = |step: RawStep<'_>| {
        Ok(match step {
            RawStep::Plain(step) => step,
            RawStep::Take { item, class } => {
                let hint = "take a bucket or device that the map defines";
                let class = class.map(|class| class.text.to_owned());
                Step::Take { item: find(names, item, "device or bucket", hint)?, class }
            }
            RawStep::Choose { leaf, mode, num, type_name } => {
                let hint = "name one of the map's types";
                let type_id = find(type_ids, type_name, "type", hint)?;
                Step::Choose { leaf, mode, num, type_id }
            }
        })
    };
    let steps = rule.steps.into_iter().map(resolve).collect::<Result<_, ParseError>>()?;
    let RawRule { id, name, kind, min_size, max_size, .. } = rule;
    Ok(Rule { id, name, kind, min_size, max_size, steps })
}
