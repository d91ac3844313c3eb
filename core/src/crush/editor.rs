//! A map that is being edited: its definition, which may be invalid for the moment, and what was done to it.
//!
//! Holds what every edit needs: finding things by name, taking items out of buckets and putting them in, and
//! the sums above what was touched, in the buckets as in the weight sets (`choose_args`), which are kept in
//! step as Ceph does. Weights that no edit has touched stay as they are, though they may not be exact sums: a
//! map that came as text has rounded ones, and changing them would move data.
//!
//! No edit is decided here ([`super::edit`]), and no map leaves but through [`CrushMap::new`], which checks it.

use super::builder::{device_weight, round};
use super::compile::CrushMap;
use super::edit::{EditError, LOCATION_MAX, Location, check_name, device_number, weight_text};
use super::model::{Bucket, BucketAlg, ChooseArg, ChooseArgs, Device, Item, MapDef};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
pub(super) struct Editor {
    /// The definition.
    pub def: MapDef,
    touched: BTreeSet<i32>,
    notes: Vec<String>,
}

impl Editor {
    /// Of a copy.
    pub fn new(map: &CrushMap) -> Self {
        Self { def: map.def().clone(), touched: BTreeSet::new(), notes: Vec::new() }
    }

    /// What was done.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// The bucket's id.
    pub fn bucket(&self, name: &str) -> Result<i32, EditError> {
        let found = self.def.buckets.iter().find(|bucket| bucket.name == name);
        found.map(|it| it.id).ok_or_else(|| EditError::Missing { what: "bucket", name: name.to_owned() })
    }

    /// The device's id.
    pub fn device(&self, name: &str) -> Result<i32, EditError> {
        let devices = || self.def.devices.iter();
        let by_name = devices().find(|device| device.name == name);
        let by_number = || devices().find(|device| Some(device.id) == device_number(name));
        let missing = || EditError::Missing { what: "device", name: name.to_owned() };
        by_name.or_else(by_number).map(|device| device.id).ok_or_else(missing)
    }

    /// The id of a bucket or a device.
    pub fn item(&self, name: &str) -> Result<i32, EditError> {
        let missing = |_| EditError::Missing { what: "bucket or device", name: name.to_owned() };
        self.bucket(name).or_else(|_| self.device(name)).map_err(missing)
    }

    /// What it is called.
    pub fn name(&self, id: i32) -> String {
        let buckets = self.def.buckets.iter().map(|bucket| (bucket.id, &bucket.name));
        let devices = self.def.devices.iter().map(|device| (device.id, &device.name));
        buckets.chain(devices).find(|entry| entry.0 == id).map_or_else(|| id.to_string(), |it| it.1.clone())
    }

    /// The type's id.
    pub fn type_id(&self, name: &str) -> Result<i32, EditError> {
        let found = self.def.types.iter().find(|entry| entry.name == name);
        found.map(|entry| entry.id).ok_or_else(|| {
            let known: Vec<&str> = self.def.types.iter().map(|entry| entry.name.as_str()).collect();
            EditError::NoSuchType { name: name.to_owned(), known: known.join(", ") }
        })
    }

    fn type_name(&self, id: i32) -> String {
        let found = self.def.types.iter().find(|entry| entry.id == id);
        found.map_or_else(|| id.to_string(), |entry| entry.name.clone())
    }

    /// The type of a bucket; 0 for a device.
    fn type_of(&self, id: i32) -> i32 {
        self.def.buckets.iter().find(|bucket| bucket.id == id).map_or(0, |bucket| bucket.type_id)
    }

    /// Fails where something has the name, or it is none.
    pub fn check_free(&self, name: &str) -> Result<(), EditError> {
        check_name(name)?;
        let taken = |what| Err(EditError::Taken { what, name: name.to_owned() });
        if self.bucket(name).is_ok() {
            return taken("bucket");
        }
        if self.def.devices.iter().any(|device| device.name == name) {
            return taken("device");
        }
        Ok(())
    }

    /// The bucket that it is in, and its weight there.
    pub fn parent(&self, id: i32) -> Result<Option<(i32, u32)>, EditError> {
        let items = self.def.buckets.iter().flat_map(|it| it.items.iter().map(move |item| (it.id, item)));
        let mut found = items.filter(|(_, item)| item.id == id).map(|(parent, item)| (parent, item.weight));
        let first = found.next();
        if found.next().is_some() {
            return Err(EditError::Linked(self.name(id)));
        }
        Ok(first)
    }

    /// True where `id` is `above`, or below it. The buckets form no cycle at any time: see `place`.
    fn is_below(&self, id: i32, above: i32) -> bool {
        let mut level = BTreeSet::from([id]);
        while !level.is_empty() {
            if level.contains(&above) {
                return true;
            }
            let holds = |it: &&Bucket| it.items.iter().any(|item| level.contains(&item.id));
            level = self.def.buckets.iter().filter(holds).map(|it| it.id).collect();
        }
        false
    }

    /// Every device below a bucket, once.
    pub fn devices_below(&self, id: i32) -> Vec<i32> {
        let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut left = vec![id];
        while let Some(id) = left.pop() {
            let bucket = self.def.buckets.iter().find(|bucket| bucket.id == id);
            if let Some(bucket) = bucket.filter(|_| seen.insert(id)) {
                let (devices, buckets): (Vec<i32>, Vec<i32>) =
                    bucket.items.iter().map(|item| item.id).partition(|id| *id >= 0);
                found.extend(devices);
                left.extend(buckets);
            }
        }
        found.into_iter().collect()
    }

    /// The weights of a bucket's items together.
    pub fn sum(&self, id: i32) -> u32 {
        let bucket = self.def.buckets.iter().find(|bucket| bucket.id == id);
        bucket.map_or(0, |it| round(it.items.iter().map(|item| u64::from(item.weight)).sum()))
    }

    /// Adds the device `osd.N`, which is in no bucket yet.
    pub fn add_device(&mut self, id: i32) -> Result<i32, EditError> {
        let name = format!("osd.{id}");
        if self.bucket(&name).is_ok() {
            return Err(EditError::Taken { what: "bucket", name });
        }
        self.def.devices.push(Device { id, name, class: None });
        Ok(id)
    }

    /// Adds an empty straw2 bucket, which is below nothing yet.
    pub fn add_bucket(&mut self, name: &str, type_id: i32) -> Result<i32, EditError> {
        self.check_free(name)?;
        if type_id == 0 {
            return Err(EditError::Level { item: "bucket".to_owned(), level: self.type_name(0) });
        }
        let shadows = self.def.buckets.iter().flat_map(|bucket| &bucket.class_ids).map(|entry| entry.1);
        let used: BTreeSet<i32> = self.def.buckets.iter().map(|bucket| bucket.id).chain(shadows).collect();
        let mut id = -1;
        while used.contains(&id) {
            id -= 1;
        }
        self.def.buckets.push(Bucket {
            id,
            name: name.to_owned(),
            type_id,
            alg: BucketAlg::Straw2,
            items: Vec::new(),
            class_ids: Vec::new(),
        });
        self.note(format!("made {} {name}", self.type_name(type_id)));
        Ok(id)
    }

    /// The levels of a place from the lowest up: type and name. Each is above the item's.
    fn levels(&self, item: i32, location: &Location) -> Result<Vec<(i32, String)>, EditError> {
        if location.is_empty() || location.len() > LOCATION_MAX {
            return Err(EditError::LocationSize);
        }
        let mut levels: BTreeMap<i32, String> = BTreeMap::new();
        for (type_name, name) in location {
            let type_id = self.type_id(type_name)?;
            if type_id <= self.type_of(item) {
                let item = self.type_name(self.type_of(item));
                return Err(EditError::Level { item, level: type_name.clone() });
            }
            if levels.insert(type_id, name.clone()).is_some() {
                return Err(EditError::LevelTwice(type_name.clone()));
            }
        }
        Ok(levels.into_iter().collect())
    }

    /// The bucket of that name, if there is one; it must be of that type.
    fn level(&self, type_id: i32, name: &str) -> Result<Option<i32>, EditError> {
        let Ok(id) = self.item(name) else { return Ok(None) };
        let is = self.type_of(id);
        if is == type_id {
            return Ok(Some(id));
        }
        let (is, given) = (self.type_name(is), self.type_name(type_id));
        Err(EditError::WrongType { bucket: name.to_owned(), is, given })
    }

    /// Puts an item where the location says, and takes it out of where it was. Buckets that do not exist are
    /// made, from the lowest up to the first that exists; the levels above that must be as they are said to
    /// be. An item that is there already keeps its weight.
    pub fn place(&mut self, id: i32, weight: u32, location: &Location) -> Result<(), EditError> {
        let levels = self.levels(id, location)?;
        let known = levels.iter().map(|(type_id, name)| self.level(*type_id, name));
        let known: Vec<Option<i32>> = known.collect::<Result<_, _>>()?;
        let first = known.iter().position(Option::is_some).unwrap_or(levels.len());
        if let Some(Some(bucket)) = known.get(first) {
            if self.is_below(*bucket, id) {
                let (item, bucket) = (self.name(id), self.name(*bucket));
                return Err(EditError::IntoItself { item, bucket });
            }
            for ((type_id, name), above) in levels.iter().zip(&known).skip(first + 1) {
                if above.is_none_or(|above| !self.is_below(*bucket, above)) {
                    let given = format!("{}={name}", self.type_name(*type_id));
                    return Err(EditError::Elsewhere { bucket: self.name(*bucket), given });
                }
            }
        }
        let before = self.parent(id)?;
        let target = match (first, known.get(first)) {
            (0, Some(Some(bucket))) => *bucket,
            _ => self.add_bucket(&levels[0].1, levels[0].0)?,
        };
        if before.is_some_and(|(parent, _)| parent == target) {
            return Ok(());
        }
        self.detach(id);
        self.insert(target, id, weight);
        let (name, level) = (self.name(id), self.type_name(self.type_of(target)));
        let place = format!("{level} {}", self.name(target));
        self.note(match before {
            Some((parent, _)) => format!("moved {name} from {} to {place}", self.name(parent)),
            None if id >= 0 => format!("added {name} to {place} with weight {}", weight_text(weight)),
            None => format!("put {name} into {place}"),
        });
        // What was made goes into the next level, up to what was there.
        let mut below = target;
        for (i, (type_id, name)) in levels.iter().enumerate().take(first + 1).skip(1) {
            let bucket = match known[i] {
                Some(bucket) => bucket,
                None => self.add_bucket(name, *type_id)?,
            };
            self.insert(bucket, below, self.sum(below));
            below = bucket;
        }
        if first == levels.len() {
            let name = self.name(below);
            self.note(format!("{name} is below nothing: only a rule that takes it uses what is in it"));
        }
        Ok(())
    }

    /// Gives a device another weight, wherever it is an item.
    pub fn reweight(&mut self, id: i32, weight: u32) -> Result<(), EditError> {
        let weight = device_weight(weight);
        let (mut placed, mut old) = (false, None);
        for bucket in &mut self.def.buckets {
            for (at, item) in bucket.items.iter_mut().enumerate().filter(|(_, item)| item.id == id) {
                placed = true;
                if item.weight == weight {
                    continue;
                }
                old = Some(item.weight);
                item.weight = weight;
                for weights in weight_sets(&mut self.def.choose_args, bucket.id) {
                    if let Some(entry) = weights.get_mut(at) {
                        *entry = weight;
                    }
                }
                self.touched.insert(bucket.id);
            }
        }
        if !placed {
            return Err(EditError::NotPlaced(self.name(id)));
        }
        if let Some(old) = old {
            let name = self.name(id);
            self.note(format!("reweighted {name} from {} to {}", weight_text(old), weight_text(weight)));
        }
        Ok(())
    }

    fn insert(&mut self, bucket: i32, id: i32, weight: u32) {
        let weight = if id >= 0 { device_weight(weight) } else { weight };
        let Some(it) = self.def.buckets.iter_mut().find(|it| it.id == bucket) else { return };
        it.items.push(Item { id, weight });
        for weights in weight_sets(&mut self.def.choose_args, bucket) {
            weights.push(weight);
        }
        for ids in id_sets(&mut self.def.choose_args, bucket) {
            ids.push(id);
        }
        self.touched.insert(bucket);
    }

    /// Takes an item out of every bucket.
    pub fn detach(&mut self, id: i32) {
        for bucket in &mut self.def.buckets {
            while let Some(at) = bucket.items.iter().position(|item| item.id == id) {
                bucket.items.remove(at);
                for weights in weight_sets(&mut self.def.choose_args, bucket.id) {
                    if at < weights.len() {
                        weights.remove(at);
                    }
                }
                for ids in id_sets(&mut self.def.choose_args, bucket.id) {
                    if at < ids.len() {
                        ids.remove(at);
                    }
                }
                self.touched.insert(bucket.id);
            }
        }
    }

    /// The map that has come out, checked, and what was done.
    pub fn finish(mut self, before: &CrushMap) -> Result<(CrushMap, Vec<String>), EditError> {
        if self.notes.is_empty() {
            return Ok((before.clone(), self.notes));
        }
        let shadows = take_shadow_args(&mut self.def);
        // Compiled once for the order (items before their bucket), in which sums can be made.
        self.def = CrushMap::new(self.def)?.def().clone();
        self.sum_up();
        restore_shadow_args(&mut self.def, &shadows);
        Ok((CrushMap::new(self.def)?, self.notes))
    }

    /// The weights above what was touched.
    fn sum_up(&mut self) {
        for i in 0..self.def.buckets.len() {
            let id = self.def.buckets[i].id;
            if !self.touched.contains(&id) {
                continue;
            }
            let weight = self.sum(id);
            for parent in 0..self.def.buckets.len() {
                let Some(at) = self.def.buckets[parent].items.iter().position(|item| item.id == id) else {
                    continue;
                };
                let parent = &mut self.def.buckets[parent];
                parent.items[at].weight = weight;
                self.touched.insert(parent.id);
                for set in &mut self.def.choose_args {
                    let below = set.args.iter().find(|arg| arg.bucket_id == id).cloned();
                    let Some(arg) = set.args.iter_mut().find(|arg| arg.bucket_id == parent.id) else {
                        continue;
                    };
                    for (position, weights) in arg.weight_set.iter_mut().enumerate() {
                        if let Some(entry) = weights.get_mut(at) {
                            *entry = below.as_ref().and_then(|it| set_sum(it, position)).unwrap_or(weight);
                        }
                    }
                }
            }
        }
    }
}

/// The weight lists of a bucket in every set.
fn weight_sets(sets: &mut [ChooseArgs], bucket: i32) -> impl Iterator<Item = &mut Vec<u32>> {
    let args = sets.iter_mut().flat_map(|set| &mut set.args);
    args.filter(move |arg| arg.bucket_id == bucket).flat_map(|arg| &mut arg.weight_set)
}

/// The lists of ids of a bucket in every set that has one.
fn id_sets(sets: &mut [ChooseArgs], bucket: i32) -> impl Iterator<Item = &mut Vec<i32>> {
    let args = sets.iter_mut().flat_map(|set| &mut set.args);
    args.filter(move |arg| arg.bucket_id == bucket && !arg.ids.is_empty()).map(|arg| &mut arg.ids)
}

/// The weights of one position together; the last position serves all later ones.
fn set_sum(arg: &ChooseArg, position: usize) -> Option<u32> {
    let weights = arg.weight_set.get(position).or(arg.weight_set.last())?;
    Some(round(weights.iter().map(|weight| u64::from(*weight)).sum()))
}

/// Takes the arguments of shadow buckets, and of buckets that are gone, out of the sets: which set had one
/// for which bucket.
fn take_shadow_args(def: &mut MapDef) -> BTreeSet<(i64, i32)> {
    let buckets: BTreeSet<i32> = def.buckets.iter().map(|bucket| bucket.id).collect();
    let mut taken = BTreeSet::new();
    for set in &mut def.choose_args {
        let gone = |arg: &&ChooseArg| !buckets.contains(&arg.bucket_id);
        taken.extend(set.args.iter().filter(gone).map(|arg| (set.id, arg.bucket_id)));
        set.args.retain(|arg| buckets.contains(&arg.bucket_id));
    }
    taken
}

/// Makes the arguments of shadow buckets anew from those of their originals, as Ceph does: a device weighs
/// what it weighs there, a bucket what its own shadow weighs.
fn restore_shadow_args(def: &mut MapDef, taken: &BTreeSet<(i64, i32)>) {
    if taken.is_empty() {
        return;
    }
    let class_of: BTreeMap<i32, &String> =
        def.devices.iter().filter_map(|device| Some((device.id, device.class.as_ref()?))).collect();
    let shadow_of: BTreeMap<(i32, &String), i32> = def
        .buckets
        .iter()
        .flat_map(|it| it.class_ids.iter().map(move |(class, id)| ((it.id, class), *id)))
        .collect();
    for set in &mut def.choose_args {
        // What each shadow weighs: by its own weights, and in this set by position.
        let mut plain: BTreeMap<i32, u32> = BTreeMap::new();
        let mut made: BTreeMap<i32, ChooseArg> = BTreeMap::new();
        for bucket in &def.buckets {
            let original = set.args.iter().find(|arg| arg.bucket_id == bucket.id);
            for (class, shadow) in &bucket.class_ids {
                let kept = |(_, item): &(usize, &Item)| item.id < 0 || class_of.get(&item.id) == Some(&class);
                let kept: Vec<(usize, &Item)> = bucket.items.iter().enumerate().filter(kept).collect();
                let below = |item: &Item| shadow_of.get(&(item.id, class)).copied().unwrap_or(0);
                let weigh = |item: &Item| match item.id {
                    0.. => item.weight,
                    _ => plain.get(&below(item)).copied().unwrap_or(0),
                };
                let sum = round(kept.iter().map(|(_, item)| u64::from(weigh(item))).sum());
                let weights = |(position, original): (usize, &Vec<u32>)| {
                    let entry = |(at, item): &(usize, &Item)| match item.id {
                        0.. => original.get(*at).copied().unwrap_or(item.weight),
                        _ => {
                            let inner = made.get(&below(item)).and_then(|arg| set_sum(arg, position));
                            inner.unwrap_or_else(|| weigh(item))
                        }
                    };
                    kept.iter().map(entry).collect()
                };
                if let Some(original) = original.filter(|_| taken.contains(&(set.id, *shadow))) {
                    let weight_set = original.weight_set.iter().enumerate().map(weights).collect();
                    made.insert(*shadow, ChooseArg { bucket_id: *shadow, weight_set, ids: Vec::new() });
                }
                plain.insert(*shadow, sum);
            }
        }
        set.args.extend(made.into_values());
    }
}
