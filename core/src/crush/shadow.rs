//! The shadow buckets of the device classes: per class, a copy of each bucket with the devices of
//! that class only, which `take BUCKET class CLASS` starts from.
//!
//! Their ids go into the hash, so they are given out exactly as Ceph's compiler does. They exist
//! in the compiled map only; the definition keeps nothing but their ids.

use std::collections::{BTreeMap, BTreeSet};

use super::bucket::Node;
use super::error::{BuildError, Subject, duplicate, range};
use super::model::{Bucket, BucketAlg, MapDef};
use super::{BUCKET_ID_MIN, BUCKETS_MAX, ITEMS_MAX};

/// The ids of all shadow buckets: the copy of each bucket that holds one class's devices only.
pub(super) struct Shadows {
    classes: Vec<String>,
    /// By (original, class).
    pub ids: BTreeMap<(i32, String), i32>,
}

impl Shadows {
    /// Takes the ids that the definition gives, and invents the missing ones as Ceph does: per
    /// root from the lowest id up, per class, items before their bucket, the next free id.
    pub fn assign(def: &MapDef, classes: &[String]) -> Result<Self, BuildError> {
        let count = def.buckets.len() * (classes.len() + 1);
        let what = "number of buckets with their shadows";
        range(Subject::Map, what, count as i64, 0, BUCKETS_MAX as i64)?;
        let mut used: BTreeSet<i32> = def.buckets.iter().map(|bucket| bucket.id).collect();
        let mut ids = BTreeMap::new();
        for bucket in &def.buckets {
            let subject = Subject::Bucket(bucket.id);
            for (class, id) in &bucket.class_ids {
                range(subject, "shadow bucket id", i64::from(*id), i64::from(BUCKET_ID_MIN), -1)?;
                if !used.insert(*id) {
                    return Err(duplicate(subject, "bucket id", id));
                }
                if ids.insert((bucket.id, class.clone()), *id).is_some() {
                    return Err(duplicate(subject, "device class", class));
                }
            }
        }
        let by_id: BTreeMap<i32, &Bucket> = def.buckets.iter().map(|bucket| (bucket.id, bucket)).collect();
        let inner: BTreeSet<i32> =
            def.buckets.iter().flat_map(|bucket| &bucket.items).map(|item| item.id).collect();
        let mut roots: Vec<&Bucket> =
            def.buckets.iter().filter(|bucket| !inner.contains(&bucket.id)).collect();
        roots.sort_by_key(|bucket| bucket.id);
        let mut free = -1;
        for root in roots {
            for class in classes {
                let mut done = BTreeSet::new();
                let mut order = Vec::new();
                children_first(root, &by_id, &mut done, &mut order);
                for bucket in order {
                    if ids.contains_key(&(bucket, class.clone())) {
                        continue;
                    }
                    while used.contains(&free) {
                        free -= 1;
                    }
                    let (id, min) = (i64::from(free), i64::from(BUCKET_ID_MIN));
                    range(Subject::Bucket(bucket), "shadow bucket id", id, min, -1)?;
                    used.insert(free);
                    ids.insert((bucket, class.clone()), free);
                }
            }
        }
        Ok(Self { classes: classes.to_vec(), ids })
    }

    /// All buckets of the definition (items before their bucket), each with its shadows.
    pub fn nodes(&self, def: &MapDef) -> Result<Vec<Node>, BuildError> {
        let class_of: BTreeMap<i32, &String> =
            def.devices.iter().filter_map(|device| Some((device.id, device.class.as_ref()?))).collect();
        let version = def.tunables.straw_calc_version;
        let mut nodes = Vec::with_capacity(self.ids.len() + def.buckets.len());
        let mut shadow_weights: BTreeMap<i32, u32> = BTreeMap::new();
        let mut items = 0usize;
        for bucket in &def.buckets {
            let subject = Subject::Bucket(bucket.id);
            let make = |id, entries: &[(i32, u32)]| {
                Node::new(id, bucket.type_id, bucket.alg, entries, version)
                    .ok_or(BuildError::WeightOverflow { subject })
            };
            let own: Vec<(i32, u32)> = bucket.items.iter().map(|i| (i.id, i.weight)).collect();
            nodes.push(make(bucket.id, &own)?);
            items += own.len();
            for class in &self.classes {
                let shadow_of = |&(id, weight): &(i32, u32)| {
                    if id >= 0 {
                        return (class_of.get(&id) == Some(&class)).then_some((id, weight));
                    }
                    let shadow = *self.ids.get(&(id, class.clone()))?;
                    Some((shadow, shadow_weights.get(&shadow).copied().unwrap_or(0)))
                };
                let entries: Vec<(i32, u32)> = own.iter().filter_map(shadow_of).collect();
                items += entries.len();
                let what = "number of items with those of shadow buckets";
                range(Subject::Map, what, items as i64, 0, ITEMS_MAX as i64)?;
                let Some(&id) = self.ids.get(&(bucket.id, class.clone())) else {
                    continue;
                };
                let node = make(id, &entries)?;
                shadow_weights.insert(id, node.weight);
                nodes.push(node);
            }
        }
        Ok(nodes)
    }
}

/// Bounded by `DEPTH_MAX` levels, and by visiting each bucket once.
fn children_first(
    bucket: &Bucket,
    by_id: &BTreeMap<i32, &Bucket>,
    done: &mut BTreeSet<i32>,
    order: &mut Vec<i32>,
) {
    if !done.insert(bucket.id) {
        return;
    }
    for child in bucket.items.iter().filter_map(|item| by_id.get(&item.id)) {
        children_first(child, by_id, done, order);
    }
    order.push(bucket.id);
}

/// The shadow buckets whose choices are not defined, each with the name of the tree bucket to
/// blame: Ceph grows the shadow of a tree bucket item by item without clearing the weights of new
/// inner nodes, so from three items on its choices depend on what the memory held before.
pub(super) fn unpredictable(def: &MapDef, shadows: &Shadows, nodes: &[Node]) -> BTreeMap<i32, String> {
    let originals: BTreeMap<i32, i32> =
        shadows.ids.iter().map(|((original, _), id)| (*id, *original)).collect();
    let names: BTreeMap<i32, &String> = def.buckets.iter().map(|bucket| (bucket.id, &bucket.name)).collect();
    let mut blame: BTreeMap<i32, String> = BTreeMap::new();
    // Items come before their bucket.
    for node in nodes {
        let Some(original) = originals.get(&node.id) else {
            continue;
        };
        let inherited = node.items.iter().find_map(|item| blame.get(item).cloned());
        let own = node.alg == BucketAlg::Tree && node.items.len() > 2;
        let name = if own { names.get(original).map(|name| (*name).clone()) } else { inherited };
        if let Some(name) = name {
            blame.insert(node.id, name);
        }
    }
    blame
}
