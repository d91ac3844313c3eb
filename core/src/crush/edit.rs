//! The edits that an administrator makes to a map, with the meanings that they have in Ceph: `ceph osd crush
//! add`, `add-bucket`, `move`, `reweight`, `remove`, `rename-bucket`, `set-device-class`, `rule create-replicated`.
//!
//! An [`Edit`] is worked out on a copy: it gives a whole valid map and says in words what it did, or an error
//! that says what to do. It can be worked out again on a later map, which is what makes compare-and-set of a
//! map possible without losing anybody's edit. What a new map would move is not known here ([`crate::map::diff`]).
//!
//! Where Ceph guesses, this refuses: a location whose parts contradict each other, an item that is in several
//! buckets, a bucket below one of its own level.

use super::compile::CrushMap;
use super::editor::Editor;
use super::error::BuildError;
use super::model::{Mode, Rule, RuleKind, Step};
use super::{BUCKET_WEIGHT_MAX, DEVICE_ID_MAX, RULES_MAX, WEIGHT_ONE};
use thiserror::Error;

/// Bytes in a name that an edit gives to a bucket, a class or a rule.
pub const EDIT_NAME_BYTES_MAX: usize = 64;
/// Levels that a location may name.
pub const LOCATION_MAX: usize = super::DEPTH_MAX;
/// The sizes that new rules say they are for, as in Ceph.
const RULE_SIZES: (u8, u8) = (1, 10);

/// Where something is: pairs of a type and a bucket's name, such as (`host`, `h1`), in any order.
pub type Location = Vec<(String, String)>;

/// One edit. Devices are named by their name (`osd.3`) or number (`3`, `node.3`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A device gets this weight at this place, whether it is in the map or not. Buckets of the place that do
    /// not exist are made.
    Add {
        /// The device. One that is not in the map becomes `osd.N`.
        device: String,
        /// 16.16; at most 100.0.
        weight: u32,
        /// At least one level.
        location: Location,
    },
    /// A new empty bucket.
    AddBucket {
        /// Its name.
        name: String,
        /// Its type's name.
        type_name: String,
        /// Empty: below nothing, a root.
        location: Location,
    },
    /// A device or bucket goes elsewhere, with what is below it and with its weight.
    Move {
        /// What.
        name: String,
        /// Where to.
        location: Location,
    },
    /// A device gets another weight.
    Reweight {
        /// The device.
        name: String,
        /// 16.16; at most 100.0.
        weight: u32,
    },
    /// Each device below a bucket gets this weight.
    ReweightSubtree {
        /// The bucket.
        name: String,
        /// 16.16; at most 100.0.
        weight: u32,
    },
    /// A device, or an empty bucket, goes out of the map.
    Remove {
        /// What.
        name: String,
    },
    /// A bucket gets another name. Moves nothing.
    Rename {
        /// The old one.
        from: String,
        /// The new one.
        to: String,
    },
    /// Devices get a class. A device that has another one keeps it, and the edit is refused.
    SetClass {
        /// The class.
        class: String,
        /// The devices.
        devices: Vec<String>,
    },
    /// Devices have no class any more.
    RemoveClass {
        /// The devices.
        devices: Vec<String>,
    },
    /// A new rule for whole copies.
    CreateRule {
        /// Its name.
        name: String,
        /// The bucket that it takes.
        root: String,
        /// The type of what copies are kept apart by.
        type_name: String,
        /// Only devices of this class.
        class: Option<String>,
    },
    /// A rule goes. (Whether a pool uses it, the cluster map knows.)
    RemoveRule {
        /// Its name.
        name: String,
    },
}

/// Why an edit is not possible. The map is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EditError {
    /// There is nothing of that name.
    #[error("the CRUSH map has no {what} `{name}`; `trefoil crush tree` shows what it has")]
    Missing {
        /// What was looked for.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// There is no type of that name.
    #[error("the CRUSH map has no type `{name}`; its types are {known}")]
    NoSuchType {
        /// The name.
        name: String,
        /// Those that it has.
        known: String,
    },
    /// The name is taken.
    #[error("the CRUSH map has a {what} `{name}` already; choose another name")]
    Taken {
        /// What has it.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The name is no name.
    #[error(
        "`{0}` is no name for the CRUSH map: use 1 to {EDIT_NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, and \
         neither a number nor the form osd.N"
    )]
    BadName(String),
    /// No place was given, or too many levels.
    #[error("give a place of 1 to {LOCATION_MAX} levels, such as root=default host=h1")]
    LocationSize,
    /// A level was given twice.
    #[error("the place names two buckets of type {0}: give one")]
    LevelTwice(String),
    /// The bucket is of another type than the place says.
    #[error(
        "the place says {given}={bucket}, but `{bucket}` is a {is}: say {is}={bucket}, or another bucket"
    )]
    WrongType {
        /// The bucket.
        bucket: String,
        /// What it is.
        is: String,
        /// What was given.
        given: String,
    },
    /// The parts of a place contradict each other.
    #[error(
        "the place says that `{bucket}` is below {given}, which it is not: leave {given} out, or move `{bucket}` there \
         first"
    )]
    Elsewhere {
        /// The bucket that exists.
        bucket: String,
        /// What it is not below.
        given: String,
    },
    /// Something would be below a bucket of its own level, or a lower one.
    #[error("a {item} cannot be below a {level}: give a place of a higher level, such as root=default")]
    Level {
        /// The type of what is placed.
        item: String,
        /// The type that was given.
        level: String,
    },
    /// A bucket would be below itself.
    #[error("`{item}` cannot be below `{bucket}`, which is below it")]
    IntoItself {
        /// What is moved.
        item: String,
        /// Where to.
        bucket: String,
    },
    /// Which of its places is meant is not clear.
    #[error("`{0}` is in more than one bucket: edit the map as text (trefoil crush get, set)")]
    Linked(String),
    /// A bucket with items is not removed.
    #[error("bucket `{0}` is not empty: move or remove what is in it first")]
    NotEmpty(String),
    /// A rule takes it.
    #[error("rule `{rule}` takes `{item}`: remove the rule first")]
    InUse {
        /// The rule.
        rule: String,
        /// What it takes.
        item: String,
    },
    /// The device has another class.
    #[error("`{device}` has class {class} already: take it away first (trefoil crush class rm {device})")]
    OtherClass {
        /// The device.
        device: String,
        /// Its class.
        class: String,
    },
    /// A device that is in no bucket has no weight.
    #[error("`{0}` is in no bucket: give it a place with `trefoil crush add`")]
    NotPlaced(String),
    /// All rule ids are taken.
    #[error("the CRUSH map has {RULES_MAX} rules, which is the limit: remove one first")]
    NoFreeRule,
    /// The map that would come out is not valid.
    #[error(transparent)]
    Invalid(#[from] BuildError),
}

impl CrushMap {
    /// The map that an edit makes of this one, and what was done, line by line. No lines: it was so already,
    /// and the maps are equal.
    ///
    /// # Errors
    ///
    /// See [`EditError`].
    pub fn edited(&self, edit: &Edit) -> Result<(CrushMap, Vec<String>), EditError> {
        let mut it = Editor::new(self);
        match edit {
            Edit::Add { device, weight, location } => add(&mut it, device, *weight, location)?,
            Edit::AddBucket { name, type_name, location } => add_bucket(&mut it, name, type_name, location)?,
            Edit::Move { name, location } => move_item(&mut it, name, location)?,
            Edit::Reweight { name, weight } => {
                let id = it.device(name)?;
                it.reweight(id, *weight)?;
            }
            Edit::ReweightSubtree { name, weight } => {
                let id = it.bucket(name)?;
                for device in it.devices_below(id) {
                    it.reweight(device, *weight)?;
                }
            }
            Edit::Remove { name } => remove(&mut it, name)?,
            Edit::Rename { from, to } => rename(&mut it, from, to)?,
            Edit::SetClass { class, devices } => set_class(&mut it, Some(class), devices)?,
            Edit::RemoveClass { devices } => set_class(&mut it, None, devices)?,
            Edit::CreateRule { name, root, type_name, class } => {
                create_rule(&mut it, name, root, type_name, class.as_deref())?;
            }
            Edit::RemoveRule { name } => {
                let missing = || EditError::Missing { what: "rule", name: name.clone() };
                let at = it.def.rules.iter().position(|rule| rule.name == *name).ok_or_else(missing)?;
                it.def.rules.remove(at);
                it.note(format!("removed rule {name}"));
            }
        }
        it.finish(self)
    }
}

/// A weight as `ceph osd tree` shows it.
pub fn weight_text(weight: u32) -> String {
    format!("{:.5}", f64::from(weight) / f64::from(WEIGHT_ONE))
}

/// The number in `osd.N`, `node.N` or `N`.
pub(super) fn device_number(name: &str) -> Option<i32> {
    let digits = name.strip_prefix("osd.").or_else(|| name.strip_prefix("node.")).unwrap_or(name);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !plain {
        return None;
    }
    digits.parse().ok().filter(|id| *id <= DEVICE_ID_MAX)
}

pub(super) fn check_name(name: &str) -> Result<(), EditError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = (1..=EDIT_NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(usable);
    // What could be a device's would name two things.
    if good && device_number(name).is_none() && !name.starts_with("osd.") {
        return Ok(());
    }
    Err(EditError::BadName(name.chars().take(EDIT_NAME_BYTES_MAX).collect()))
}

fn add(it: &mut Editor, device: &str, weight: u32, location: &Location) -> Result<(), EditError> {
    if location.is_empty() {
        return Err(EditError::LocationSize);
    }
    let id = match it.device(device) {
        Ok(id) => id,
        Err(missing) => it.add_device(device_number(device).ok_or(missing)?)?,
    };
    match it.parent(id)? {
        None => it.place(id, weight, location),
        Some((_, before)) => {
            it.place(id, before, location)?;
            it.reweight(id, weight)
        }
    }
}

fn add_bucket(it: &mut Editor, name: &str, type_name: &str, location: &Location) -> Result<(), EditError> {
    let type_id = it.type_id(type_name)?;
    let id = it.add_bucket(name, type_id)?;
    if location.is_empty() {
        return Ok(());
    }
    it.place(id, 0, location)
}

fn move_item(it: &mut Editor, name: &str, location: &Location) -> Result<(), EditError> {
    if location.is_empty() {
        return Err(EditError::LocationSize);
    }
    let id = it.item(name)?;
    // A bucket that is below nothing weighs what is in it.
    let weight = match it.parent(id)? {
        Some((_, weight)) => weight,
        None if id < 0 => it.sum(id).min(BUCKET_WEIGHT_MAX),
        None => return Err(EditError::NotPlaced(it.name(id))),
    };
    it.place(id, weight, location)
}

fn remove(it: &mut Editor, name: &str) -> Result<(), EditError> {
    let id = it.item(name)?;
    let name = it.name(id);
    if it.def.buckets.iter().any(|bucket| bucket.id == id && !bucket.items.is_empty()) {
        return Err(EditError::NotEmpty(name));
    }
    let takes = |step: &Step| matches!(step, Step::Take { item, .. } if *item == id);
    if let Some(rule) = it.def.rules.iter().find(|rule| rule.steps.iter().any(takes)) {
        return Err(EditError::InUse { rule: rule.name.clone(), item: name });
    }
    it.detach(id);
    it.def.devices.retain(|device| device.id != id);
    it.def.buckets.retain(|bucket| bucket.id != id);
    it.note(format!("removed {name}"));
    Ok(())
}

fn rename(it: &mut Editor, from: &str, to: &str) -> Result<(), EditError> {
    let id = it.bucket(from)?;
    if from == to {
        return Ok(());
    }
    it.check_free(to)?;
    if let Some(bucket) = it.def.buckets.iter_mut().find(|bucket| bucket.id == id) {
        bucket.name = to.to_owned();
    }
    it.note(format!("renamed {from} to {to}"));
    Ok(())
}

fn set_class(it: &mut Editor, class: Option<&String>, devices: &[String]) -> Result<(), EditError> {
    if let Some(class) = class {
        check_name(class)?;
    }
    for name in devices {
        let id = it.device(name)?;
        let Some(device) = it.def.devices.iter_mut().find(|device| device.id == id) else { continue };
        if device.class.as_ref() == class {
            continue;
        }
        let told = match (&device.class, class) {
            (Some(old), Some(_)) => {
                return Err(EditError::OtherClass { device: device.name.clone(), class: old.clone() });
            }
            (_, Some(class)) => format!("{} has class {class}", device.name),
            (_, None) => format!("{} has no class any more", device.name),
        };
        device.class = class.cloned();
        it.note(told);
    }
    Ok(())
}

fn create_rule(
    it: &mut Editor,
    name: &str,
    root: &str,
    type_name: &str,
    class: Option<&str>,
) -> Result<(), EditError> {
    check_name(name)?;
    if it.def.rules.iter().any(|rule| rule.name == name) {
        return Err(EditError::Taken { what: "rule", name: name.to_owned() });
    }
    let (item, type_id) = (it.bucket(root)?, it.type_id(type_name)?);
    let free = (0..RULES_MAX).find(|id| it.def.rules.iter().all(|rule| rule.id != *id));
    let id = free.ok_or(EditError::NoFreeRule)?;
    let steps = vec![
        Step::Take { item, class: class.map(str::to_owned) },
        Step::Choose { leaf: type_id != 0, mode: Mode::Firstn, num: 0, type_id },
        Step::Emit,
    ];
    let (min_size, max_size) = RULE_SIZES;
    let kind = RuleKind::Replicated;
    it.def.rules.push(Rule { id, name: name.to_owned(), kind, min_size, max_size, steps });
    it.note(format!("made rule {name} (id {id})"));
    Ok(())
}

#[cfg(test)]
mod tests;
