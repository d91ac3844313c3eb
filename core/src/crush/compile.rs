//! From a [`MapDef`] to a [`CrushMap`]: everything is checked here, so that placement need not.
//!
//! Brings the definition into its canonical order (the one in which Ceph prints it), makes the
//! shadow buckets of the device classes with the ids that Ceph's compiler would give them, and
//! lays the buckets out for the mapper. Cost: linear in buckets times classes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::bucket::{Node, NodeArg};
use super::error::{BuildError, Subject, duplicate, range, undefined};
use super::model::{Bucket, BucketAlg, ChooseArgs, MapDef, Rule, Step, Tunables, TypeName};
use super::shadow::{Shadows, unpredictable};
use super::*;

/// No node has this bucket id.
const NO_NODE: u32 = u32::MAX;

/// A set of choose_args: its id, and the arguments by node.
pub(super) type CompiledArgs = (i64, Vec<Option<NodeArg>>);

/// A valid map, ready for placement. See the module's page for what "valid" means.
///
/// Two maps are equal when their definitions are: everything else follows from it. Serialised as
/// its [`MapDef`]; deserialising checks it again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "MapDef", into = "MapDef")]
pub struct CrushMap {
    def: MapDef,
    /// Buckets and shadow buckets.
    pub(super) nodes: Vec<Node>,
    /// Bucket id -1 - i is `nodes[index[i]]`, or [`NO_NODE`].
    index: Vec<u32>,
    /// One more than the greatest device id.
    pub(super) max_devices: i32,
    /// By rule id; `take` steps have their class resolved to a shadow bucket.
    pub(super) rules: Vec<Option<Vec<Step>>>,
    /// By set: the arguments by node.
    pub(super) choose_args: Vec<CompiledArgs>,
}

impl PartialEq for CrushMap {
    fn eq(&self, other: &Self) -> bool {
        self.def == other.def
    }
}

impl Eq for CrushMap {}

impl TryFrom<MapDef> for CrushMap {
    type Error = BuildError;

    fn try_from(def: MapDef) -> Result<Self, BuildError> {
        Self::new(def)
    }
}

impl From<CrushMap> for MapDef {
    fn from(map: CrushMap) -> Self {
        map.def
    }
}

impl CrushMap {
    /// Checks a definition and makes it ready for placement.
    ///
    /// # Errors
    ///
    /// The first fault found, with the part of the map that has it.
    pub fn new(mut def: MapDef) -> Result<Self, BuildError> {
        check_counts(&def)?;
        check_tunables(&mut def.tunables)?;
        // Ceph numbers the classes as they appear, and makes shadow buckets in that order.
        let classes = classes_in_order(&def)?;
        check_devices(&mut def)?;
        check_types(&mut def.types)?;
        check_buckets(&def)?;
        sort_children_first(&mut def)?;
        let shadows = Shadows::assign(&def, &classes)?;
        let nodes = shadows.nodes(&def)?;
        let canonical = classes_in_order(&def)?;
        for bucket in &mut def.buckets {
            let id_of = |class: &String| (class.clone(), shadows.ids[&(bucket.id, class.clone())]);
            bucket.class_ids = canonical.iter().map(id_of).collect();
        }
        let lowest = nodes.iter().map(|node| node.id).min().unwrap_or(0);
        let mut index = vec![NO_NODE; lowest.unsigned_abs() as usize];
        for (i, node) in nodes.iter().enumerate() {
            index[slot(node.id)] = i as u32;
        }
        let max_devices = def.devices.last().map_or(0, |device| device.id + 1);
        let rules = compile_rules(&mut def, &shadows, &nodes)?;
        let mut map = Self { def, nodes, index, max_devices, rules, choose_args: Vec::new() };
        map.choose_args = map.compile_choose_args()?;
        Ok(map)
    }

    /// What the map says, in canonical order and with every shadow bucket's id filled in.
    pub fn def(&self) -> &MapDef {
        &self.def
    }

    /// One more than the greatest device id, 0 without devices: the length of a full vector of
    /// reweights.
    pub fn max_devices(&self) -> usize {
        self.max_devices as usize
    }

    /// True if there is a rule with this id.
    pub fn has_rule(&self, rule_id: u32) -> bool {
        matches!(self.rules.get(rule_id as usize), Some(Some(_)))
    }

    /// The reweights of a cluster in which every device is fully in: 65536 for each device that
    /// is an item of some bucket, 0 for gaps.
    pub fn full_reweights(&self) -> Vec<u32> {
        let mut reweights = vec![0; self.max_devices()];
        for item in self.nodes.iter().flat_map(|node| &node.items) {
            if let Ok(device) = usize::try_from(*item) {
                reweights[device] = WEIGHT_ONE;
            }
        }
        reweights
    }

    /// The node of a bucket id, and its number.
    #[inline]
    pub(super) fn node(&self, bucket_id: i32) -> Option<(usize, &Node)> {
        let number = *self.index.get(slot(bucket_id))? as usize;
        Some((number, self.nodes.get(number)?))
    }

    /// Fails for sets that do not fit; drops arguments that have no effect, as Ceph does.
    fn compile_choose_args(&mut self) -> Result<Vec<CompiledArgs>, BuildError> {
        let mut sets = std::mem::take(&mut self.def.choose_args);
        sets.sort_by_key(|set| set.id);
        let mut compiled = Vec::with_capacity(sets.len());
        for set in &mut sets {
            let subject = Subject::ChooseArgs(set.id);
            if compiled.last().is_some_and(|(id, _)| *id == set.id) {
                return Err(duplicate(subject, "choose_args", set.id));
            }
            range(subject, "choose_args", set.id, CHOOSE_ARGS_DEFAULT, i64::from(i32::MAX))?;
            compiled.push((set.id, self.compile_choose_args_set(set)?));
        }
        self.def.choose_args = sets;
        Ok(compiled)
    }

    fn compile_choose_args_set(&self, set: &mut ChooseArgs) -> Result<Vec<Option<NodeArg>>, BuildError> {
        let subject = Subject::ChooseArgs(set.id);
        let mut by_node: Vec<Option<NodeArg>> = vec![None; self.nodes.len()];
        set.args.sort_by_key(|arg| std::cmp::Reverse(arg.bucket_id));
        let mut last = 0;
        for arg in &set.args {
            let bucket_id = arg.bucket_id;
            if bucket_id == last {
                return Err(duplicate(subject, "bucket id", bucket_id));
            }
            last = bucket_id;
            let Some((number, node)) = self.node(bucket_id) else {
                return Err(undefined(subject, "bucket id", bucket_id));
            };
            let shape = |what, count| {
                let items = node.items.len();
                let error = BuildError::ChooseArgsShape { subject, bucket_id, items, what, count };
                if count == items { Ok(()) } else { Err(error) }
            };
            let positions = arg.weight_set.len() as i64;
            let positions_max = WEIGHT_SET_POSITIONS_MAX as i64;
            range(subject, "number of positions", positions, 0, positions_max)?;
            for weights in &arg.weight_set {
                shape("weight_set", weights.len())?;
                weights.iter().try_for_each(|&weight| check_fine(subject, weight))?;
            }
            if !arg.ids.is_empty() {
                shape("ids", arg.ids.len())?;
            }
            let node_arg = NodeArg { weight_set: arg.weight_set.clone(), ids: arg.ids.clone() };
            by_node[number] = Some(node_arg);
        }
        set.args.retain(|arg| {
            let straw2 = |(_, node): (usize, &Node)| node.alg == BucketAlg::Straw2;
            let effect = !arg.weight_set.is_empty() || !arg.ids.is_empty();
            effect && self.node(arg.bucket_id).is_some_and(straw2)
        });
        Ok(by_node)
    }
}

/// Where a bucket id's entry is in the index; beyond its end for devices.
fn slot(bucket_id: i32) -> usize {
    usize::try_from(-1 - i64::from(bucket_id)).unwrap_or(usize::MAX)
}

fn check_name(subject: Subject, name: &str) -> Result<(), BuildError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.chars().all(usable) {
        return Ok(());
    }
    Err(BuildError::BadName { subject, name: name.to_owned() })
}

fn check_fine(subject: Subject, weight: u32) -> Result<(), BuildError> {
    let error = BuildError::WeightTooFine { subject, weight };
    if weight as f32 as u64 == u64::from(weight) { Ok(()) } else { Err(error) }
}

fn check_counts(def: &MapDef) -> Result<(), BuildError> {
    let items: usize = def.buckets.iter().map(|bucket| bucket.items.len()).sum();
    let counts = [
        ("number of devices", def.devices.len(), DEVICE_ID_MAX as usize + 1),
        ("number of types", def.types.len(), TYPES_MAX),
        ("number of buckets", def.buckets.len(), BUCKETS_MAX),
        ("number of items of all buckets", items, ITEMS_MAX),
        ("number of rules", def.rules.len(), RULES_MAX as usize),
        ("number of choose_args", def.choose_args.len(), CHOOSE_ARGS_MAX),
    ];
    let mut counts = counts.iter();
    counts.try_for_each(|&(what, n, max)| range(Subject::Map, what, n as i64, 0, max as i64))
}

fn check_tunables(tunables: &mut Tunables) -> Result<(), BuildError> {
    for (name, value) in tunables.named() {
        let max = match name {
            "allowed_bucket_algs" => u32::MAX,
            "chooseleaf_vary_r" | "chooseleaf_stable" | "straw_calc_version" => 255,
            _ => TRIES_MAX,
        };
        range(Subject::Map, name, i64::from(*value), 0, i64::from(max))?;
    }
    Ok(())
}

/// The device classes in the order in which devices, then buckets name them.
fn classes_in_order(def: &MapDef) -> Result<Vec<String>, BuildError> {
    let of_devices = def.devices.iter().filter_map(|device| device.class.as_ref());
    let of_buckets = def.buckets.iter().flat_map(|bucket| &bucket.class_ids).map(|entry| &entry.0);
    let mut seen = BTreeSet::new();
    let mut classes = Vec::new();
    for class in of_devices.chain(of_buckets) {
        if seen.insert(class) {
            check_name(Subject::Map, class)?;
            classes.push(class.clone());
            let max = CLASSES_MAX as i64;
            range(Subject::Map, "number of classes", classes.len() as i64, 0, max)?;
        }
    }
    Ok(classes)
}

fn check_devices(def: &mut MapDef) -> Result<(), BuildError> {
    def.devices.sort_by_key(|device| device.id);
    let mut last = -1;
    for device in &def.devices {
        let subject = Subject::Device(device.id);
        range(subject, "device id", i64::from(device.id), 0, i64::from(DEVICE_ID_MAX))?;
        check_name(subject, &device.name)?;
        if device.id == last {
            return Err(duplicate(subject, "device id", device.id));
        }
        last = device.id;
    }
    Ok(())
}

fn check_types(types: &mut Vec<TypeName>) -> Result<(), BuildError> {
    types.sort_by_key(|entry| entry.id);
    let mut names = BTreeSet::new();
    let mut last = -1;
    for entry in types.iter() {
        let subject = Subject::Type(entry.id);
        range(subject, "type id", i64::from(entry.id), 0, i64::from(TYPE_ID_MAX))?;
        check_name(subject, &entry.name)?;
        if entry.id == last {
            return Err(duplicate(subject, "type id", entry.id));
        }
        if !names.insert(entry.name.as_str()) {
            return Err(duplicate(subject, "type name", &entry.name));
        }
        last = entry.id;
    }
    // Ceph prints this line for maps that name no type 0.
    if types.first().is_none_or(|entry| entry.id != 0) {
        if names.contains("osd") {
            return Err(undefined(Subject::Map, "type id", 0));
        }
        types.insert(0, TypeName { id: 0, name: "osd".to_owned() });
    }
    Ok(())
}

fn check_buckets(def: &MapDef) -> Result<(), BuildError> {
    let types: BTreeSet<i32> = def.types.iter().map(|entry| entry.id).collect();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for device in &def.devices {
        if !names.insert(&device.name) {
            return Err(duplicate(Subject::Device(device.id), "device name", &device.name));
        }
    }
    let mut ids: BTreeSet<i32> = def.devices.iter().map(|device| device.id).collect();
    for bucket in &def.buckets {
        let subject = Subject::Bucket(bucket.id);
        range(subject, "bucket id", i64::from(bucket.id), i64::from(BUCKET_ID_MIN), -1)?;
        check_name(subject, &bucket.name)?;
        if !names.insert(&bucket.name) {
            return Err(duplicate(subject, "name", &bucket.name));
        }
        if !ids.insert(bucket.id) {
            return Err(duplicate(subject, "bucket id", bucket.id));
        }
        range(subject, "type id", i64::from(bucket.type_id), 1, i64::from(TYPE_ID_MAX))?;
        if !types.contains(&bucket.type_id) {
            return Err(undefined(subject, "type id", bucket.type_id));
        }
    }
    for bucket in &def.buckets {
        let subject = Subject::Bucket(bucket.id);
        for item in &bucket.items {
            if !ids.contains(&item.id) {
                return Err(undefined(subject, "item", item.id));
            }
            let max = if item.id < 0 { BUCKET_WEIGHT_MAX } else { DEVICE_WEIGHT_MAX };
            range(subject, "weight in 1/65536", i64::from(item.weight), 0, i64::from(max))?;
            check_fine(subject, item.weight)?;
        }
        let equal = bucket.items.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        if bucket.alg == BucketAlg::Uniform && !equal {
            return Err(BuildError::UnequalWeights { subject });
        }
    }
    Ok(())
}

/// Sorts the buckets as Ceph prints them: from id -1 downwards, each after its items. Notices
/// cycles and depth.
fn sort_children_first(def: &mut MapDef) -> Result<(), BuildError> {
    def.buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.id));
    let number: BTreeMap<i32, usize> =
        def.buckets.iter().enumerate().map(|(i, bucket)| (bucket.id, i)).collect();
    // Levels below and including each finished bucket; 0: not finished.
    let mut levels = vec![0usize; def.buckets.len()];
    let mut order = Vec::with_capacity(def.buckets.len());
    for root in 0..def.buckets.len() {
        // (bucket, next item to look at); the path from `root` down.
        let mut path = vec![(root, 0usize)];
        while let Some(&(current, next)) = path.last() {
            if levels[current] > 0 {
                path.pop();
                continue;
            }
            let bucket = &def.buckets[current];
            let subject = Subject::Bucket(bucket.id);
            if let Some(item) = bucket.items.get(next) {
                if let Some(top) = path.last_mut() {
                    top.1 += 1;
                }
                let Some(&child) = number.get(&item.id) else {
                    continue;
                };
                if path.iter().any(|&(on_path, _)| on_path == child) {
                    return Err(BuildError::Cycle { subject, name: bucket.name.clone() });
                }
                if levels[child] == 0 {
                    path.push((child, 0));
                    let depth = path.len() as i64;
                    range(subject, "depth in levels", depth, 1, DEPTH_MAX as i64)?;
                }
                continue;
            }
            let children = bucket.items.iter().filter_map(|item| number.get(&item.id));
            let below = children.map(|&child| levels[child]).max().unwrap_or(0);
            range(subject, "depth in levels", below as i64 + 1, 1, DEPTH_MAX as i64)?;
            levels[current] = below + 1;
            order.push(current);
            path.pop();
        }
    }
    let mut buckets: Vec<Option<Bucket>> = def.buckets.drain(..).map(Some).collect();
    def.buckets = order.iter().filter_map(|&i| buckets[i].take()).collect();
    Ok(())
}

fn compile_rules(
    def: &mut MapDef,
    shadows: &Shadows,
    nodes: &[Node],
) -> Result<Vec<Option<Vec<Step>>>, BuildError> {
    def.rules.sort_by_key(|rule| rule.id);
    let items: BTreeSet<i32> = def
        .devices
        .iter()
        .map(|device| device.id)
        .chain(def.buckets.iter().map(|bucket| bucket.id))
        .collect();
    let types: BTreeSet<i32> = def.types.iter().map(|entry| entry.id).collect();
    let undefined_in_ceph = unpredictable(def, shadows, nodes);
    let mut names = BTreeSet::new();
    let mut rules: Vec<Option<Vec<Step>>> = Vec::new();
    for rule in &def.rules {
        let subject = Subject::Rule(rule.id);
        range(subject, "rule id", i64::from(rule.id), 0, i64::from(RULES_MAX) - 1)?;
        if !rule.name.is_empty() {
            check_name(subject, &rule.name)?;
            if !names.insert(rule.name.as_str()) {
                return Err(duplicate(subject, "rule name", &rule.name));
            }
        }
        let number = rule.id as usize;
        if rules.len() > number {
            return Err(duplicate(subject, "rule id", rule.id));
        }
        rules.resize(number + 1, None);
        let steps_max = RULE_STEPS_MAX as i64;
        range(subject, "number of steps", rule.steps.len() as i64, 1, steps_max)?;
        let steps = compile_steps(rule, &items, &types, shadows)?;
        for step in &steps {
            let Step::Take { item, .. } = step else {
                continue;
            };
            if let Some(bucket) = undefined_in_ceph.get(item) {
                return Err(BuildError::TreeWithClass { subject, bucket: bucket.clone() });
            }
        }
        rules[number] = Some(steps);
    }
    Ok(rules)
}

fn compile_steps(
    rule: &Rule,
    items: &BTreeSet<i32>,
    types: &BTreeSet<i32>,
    shadows: &Shadows,
) -> Result<Vec<Step>, BuildError> {
    let subject = Subject::Rule(rule.id);
    let compile = |step: &Step| {
        let tries = |what, n: u32| range(subject, what, i64::from(n), 0, i64::from(TRIES_MAX));
        match step {
            Step::Take { item, class } => {
                if !items.contains(item) {
                    return Err(undefined(subject, "item", item));
                }
                let Some(class) = class else {
                    return Ok(step.clone());
                };
                let shadow = shadows.ids.get(&(*item, class.clone()));
                let missing = || undefined(subject, "device class", class);
                return Ok(Step::Take { item: *shadow.ok_or_else(missing)?, class: None });
            }
            Step::Choose { num, type_id, .. } => {
                let max = REPLICAS_MAX as i64;
                range(subject, "number of items", i64::from(*num), -max, max)?;
                if !types.contains(type_id) {
                    return Err(undefined(subject, "type id", type_id));
                }
            }
            Step::Emit => {}
            Step::SetChooseTries(n) => tries("set_choose_tries", *n)?,
            Step::SetChooseleafTries(n) => tries("set_chooseleaf_tries", *n)?,
            Step::SetChooseLocalTries(n) => tries("set_choose_local_tries", *n)?,
            Step::SetChooseLocalFallbackTries(n) => {
                tries("set_choose_local_fallback_tries", *n)?;
            }
            Step::SetChooseleafVaryR(n) => tries("set_chooseleaf_vary_r", *n)?,
            Step::SetChooseleafStable(n) => tries("set_chooseleaf_stable", *n)?,
        }
        Ok(step.clone())
    };
    rule.steps.iter().map(compile).collect()
}
