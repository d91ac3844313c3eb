//! The edits that the monitor makes to its own map: hosts and devices come, go and change weight.
//!
//! An edit gives a whole valid map or leaves the old one as it was. Every edit makes the
//! weights above what it touched the sums of those below. Cost: as for compiling the map; edits
//! are rare. Maps with more levels than root, host and device are made by text
//! ([`CrushMap::parse`]); these edits work on them too, as long as hosts are where devices go.

use std::collections::BTreeSet;

use thiserror::Error;

use super::compile::CrushMap;
use super::error::BuildError;
use super::model::{Bucket, BucketAlg, Device, Item, MapDef, Mode, Rule, RuleKind, Step, Tunables, TypeName};
use super::{DEVICE_WEIGHT_MAX, RULES_MAX};

/// The levels that a new Ceph cluster has; a map may use any of them.
const TYPE_NAMES: [&str; 12] =
    ["osd", "host", "chassis", "rack", "row", "pdu", "pod", "room", "datacenter", "zone", "region", "root"];
/// The index of `root` in [`TYPE_NAMES`].
const TYPE_ROOT: i32 = 11;
/// The name of the root that a new map has.
const ROOT_NAME: &str = "default";
/// The sizes that new rules say they are for (as `ceph osd crush rule create-simple`).
const RULE_SIZES: (u8, u8) = (1, 10);

/// Why a map was not changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BuilderError {
    /// There is no bucket of this name.
    #[error("the CRUSH map has no bucket `{0}`; add it first")]
    NoSuchBucket(String),
    /// There is no device with this id.
    #[error("the CRUSH map has no device {0}; add it first")]
    NoSuchDevice(i32),
    /// There is no type of this name.
    #[error("the CRUSH map has no type `{0}`; name one of its types")]
    NoSuchType(String),
    /// Only empty buckets can be removed.
    #[error("bucket `{0}` still has items; remove them first")]
    NotEmpty(String),
    /// A rule still takes the bucket or device.
    #[error("rule `{rule}` takes `{item}`; remove or change the rule first")]
    InUse {
        /// The rule.
        rule: String,
        /// What it takes.
        item: String,
    },
    /// All rule ids are taken.
    #[error("the CRUSH map has {RULES_MAX} rules, which is the limit; remove one first")]
    NoFreeRule,
    /// The changed map would not be valid.
    #[error(transparent)]
    Invalid(#[from] BuildError),
}

impl Default for CrushMap {
    fn default() -> Self {
        Self::with_root()
    }
}

impl CrushMap {
    /// A map with Ceph's types, optimal tunables and an empty root, `default` (id -1).
    pub fn with_root() -> Self {
        let root = Bucket {
            id: -1,
            name: ROOT_NAME.to_owned(),
            type_id: TYPE_ROOT,
            alg: BucketAlg::Straw2,
            items: Vec::new(),
            class_ids: Vec::new(),
        };
        let type_name = |(id, name): (i32, &&str)| TypeName { id, name: (*name).to_owned() };
        let def = MapDef {
            tunables: Tunables::OPTIMAL,
            devices: Vec::new(),
            types: (0..).zip(&TYPE_NAMES).map(type_name).collect(),
            buckets: vec![root],
            rules: Vec::new(),
            choose_args: Vec::new(),
        };
        Self::new(def).expect("a constant; a test makes it")
    }

    /// Adds an empty host below the root `default`; returns its id.
    ///
    /// # Errors
    ///
    /// The name is taken or not usable, or the map has no root `default`.
    pub fn add_host(&mut self, name: &str) -> Result<i32, BuilderError> {
        self.add_bucket(name, "host", ROOT_NAME)
    }

    /// Adds an empty straw2 bucket of a type below another; returns its id.
    ///
    /// # Errors
    ///
    /// The name is taken or not usable, or type or parent do not exist.
    pub fn add_bucket(&mut self, name: &str, type_name: &str, parent: &str) -> Result<i32, BuilderError> {
        let mut def = self.def().clone();
        let type_id = type_of(&def, type_name)?;
        let shadows = def.buckets.iter().flat_map(|bucket| &bucket.class_ids).map(|entry| entry.1);
        let ids: BTreeSet<i32> = def.buckets.iter().map(|bucket| bucket.id).chain(shadows).collect();
        let mut id = -1;
        while ids.contains(&id) {
            id -= 1;
        }
        let parent = bucket_mut(&mut def, parent)?;
        parent.items.push(Item { id, weight: 0 });
        let touched = [parent.id];
        def.buckets.push(Bucket {
            id,
            name: name.to_owned(),
            type_id,
            alg: BucketAlg::Straw2,
            items: Vec::new(),
            class_ids: Vec::new(),
        });
        self.replace(def, &touched)?;
        Ok(id)
    }

    /// Adds device `id`, named `osd.ID`, below a host, with a weight in 16.16 (by custom its
    /// size in TiB, at most 100.0) and maybe a device class.
    ///
    /// # Errors
    ///
    /// The id is taken, the weight too great, or there is no such host.
    pub fn add_osd(
        &mut self,
        id: i32,
        host: &str,
        weight: u32,
        class: Option<&str>,
    ) -> Result<(), BuilderError> {
        let mut def = self.def().clone();
        let class = class.map(str::to_owned);
        def.devices.push(Device { id, name: format!("osd.{id}"), class });
        let host = bucket_mut(&mut def, host)?;
        host.items.push(Item { id, weight: device_weight(weight) });
        let touched = [host.id];
        self.replace(def, &touched)
    }

    /// Changes a device's weight (16.16, at most 100.0) wherever it is an item.
    ///
    /// # Errors
    ///
    /// There is no such device, or the weight is too great.
    pub fn set_osd_weight(&mut self, id: i32, weight: u32) -> Result<(), BuilderError> {
        let mut def = self.def().clone();
        if !def.devices.iter().any(|device| device.id == id) {
            return Err(BuilderError::NoSuchDevice(id));
        }
        let touched = parents_of(&def, id);
        for item in def.buckets.iter_mut().flat_map(|bucket| &mut bucket.items) {
            if item.id == id {
                item.weight = device_weight(weight);
            }
        }
        self.replace(def, &touched)
    }

    /// Takes a device out of the map.
    ///
    /// # Errors
    ///
    /// There is no such device, or a rule takes it.
    pub fn remove_osd(&mut self, id: i32) -> Result<(), BuilderError> {
        let mut def = self.def().clone();
        let Some(at) = def.devices.iter().position(|device| device.id == id) else {
            return Err(BuilderError::NoSuchDevice(id));
        };
        check_not_taken(&def, id, &def.devices[at].name)?;
        def.devices.remove(at);
        let touched = parents_of(&def, id);
        remove_item(&mut def, id);
        self.replace(def, &touched)
    }

    /// Takes an empty bucket out of the map.
    ///
    /// # Errors
    ///
    /// There is no such bucket, it has items, or a rule takes it.
    pub fn remove_bucket(&mut self, name: &str) -> Result<(), BuilderError> {
        let mut def = self.def().clone();
        let bucket = bucket_mut(&mut def, name)?;
        let id = bucket.id;
        if !bucket.items.is_empty() {
            return Err(BuilderError::NotEmpty(name.to_owned()));
        }
        check_not_taken(&def, id, name)?;
        def.buckets.retain(|bucket| bucket.id != id);
        let touched = parents_of(&def, id);
        remove_item(&mut def, id);
        self.replace(def, &touched)
    }

    /// Adds the rule `take default; chooseleaf firstn 0 type host; emit`: each replica on
    /// another host. Returns its id.
    ///
    /// # Errors
    ///
    /// The name is taken or not usable, or there is no free id.
    pub fn add_rule_chooseleaf_host(&mut self, name: &str) -> Result<u32, BuilderError> {
        self.add_replicated_rule(name, true, "host")
    }

    /// Adds the rule `take default; choose firstn 0 type osd; emit`: each replica on another
    /// device, hosts do not matter. Returns its id.
    ///
    /// # Errors
    ///
    /// The name is taken or not usable, or there is no free id.
    pub fn add_rule_choose_osd(&mut self, name: &str) -> Result<u32, BuilderError> {
        self.add_replicated_rule(name, false, "osd")
    }

    /// Adds a replicated rule that spreads over buckets (or devices) of a type below the root
    /// `default`; with `leaf` it goes on to one device below each. Returns its id.
    ///
    /// # Errors
    ///
    /// The name is taken or not usable, there is no such type, or no free id.
    pub fn add_replicated_rule(
        &mut self,
        name: &str,
        leaf: bool,
        type_name: &str,
    ) -> Result<u32, BuilderError> {
        let mut def = self.def().clone();
        let type_id = type_of(&def, type_name)?;
        let item = bucket_mut(&mut def, ROOT_NAME)?.id;
        let free = (0..RULES_MAX).find(|&id| !self.has_rule(id));
        let id = free.ok_or(BuilderError::NoFreeRule)?;
        def.rules.push(Rule {
            id,
            name: name.to_owned(),
            kind: RuleKind::Replicated,
            min_size: RULE_SIZES.0,
            max_size: RULE_SIZES.1,
            steps: vec![
                Step::Take { item, class: None },
                Step::Choose { leaf, mode: Mode::Firstn, num: 0, type_id },
                Step::Emit,
            ],
        });
        self.replace(def, &[])?;
        Ok(id)
    }

    /// Takes the new definition if it is valid, with the weights of all buckets above the
    /// touched ones made sums again. Other weights stay, though they may not be exact sums: a
    /// map that came as text has rounded ones, and changing them would move data.
    fn replace(&mut self, def: MapDef, touched: &[i32]) -> Result<(), BuilderError> {
        // Compiled once for the order (items before their bucket), in which sums can be made.
        let mut def = Self::new(def)?.def().clone();
        let mut changed: BTreeSet<i32> = touched.iter().copied().collect();
        for i in 0..def.buckets.len() {
            let id = def.buckets[i].id;
            if !changed.contains(&id) {
                continue;
            }
            let sum = def.buckets[i].items.iter().map(|item| u64::from(item.weight)).sum();
            for parent in &mut def.buckets {
                for item in parent.items.iter_mut().filter(|item| item.id == id) {
                    item.weight = round(sum);
                    changed.insert(parent.id);
                }
            }
        }
        *self = Self::new(def)?;
        Ok(())
    }
}

/// The greatest weight not above the sum that the text format can hold (24 significant bits).
pub(super) fn round(sum: u64) -> u32 {
    let sum = u32::try_from(sum).unwrap_or(u32::MAX);
    let surplus = 8u32.saturating_sub(sum.leading_zeros());
    sum >> surplus << surplus
}

/// Weights above the limit pass unchanged, for the check that names the limit.
pub(super) fn device_weight(weight: u32) -> u32 {
    if weight <= DEVICE_WEIGHT_MAX { round(u64::from(weight)) } else { weight }
}

fn type_of(def: &MapDef, name: &str) -> Result<i32, BuilderError> {
    let found = def.types.iter().find(|entry| entry.name == name);
    found.map(|entry| entry.id).ok_or_else(|| BuilderError::NoSuchType(name.to_owned()))
}

fn bucket_mut<'d>(def: &'d mut MapDef, name: &str) -> Result<&'d mut Bucket, BuilderError> {
    let found = def.buckets.iter_mut().find(|bucket| bucket.name == name);
    found.ok_or_else(|| BuilderError::NoSuchBucket(name.to_owned()))
}

fn parents_of(def: &MapDef, id: i32) -> Vec<i32> {
    let holds = |bucket: &&Bucket| bucket.items.iter().any(|item| item.id == id);
    def.buckets.iter().filter(holds).map(|bucket| bucket.id).collect()
}

fn remove_item(def: &mut MapDef, id: i32) {
    for bucket in &mut def.buckets {
        bucket.items.retain(|item| item.id != id);
    }
}

fn check_not_taken(def: &MapDef, id: i32, name: &str) -> Result<(), BuilderError> {
    let takes = |step: &Step| matches!(step, Step::Take { item, .. } if *item == id);
    let Some(rule) = def.rules.iter().find(|rule| rule.steps.iter().any(takes)) else {
        return Ok(());
    };
    Err(BuilderError::InUse { rule: rule.name.clone(), item: name.to_owned() })
}
