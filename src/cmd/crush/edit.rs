//! The words of an edit on the command line: those of `ceph osd crush ...`. And `set`, which takes a whole map.
//!
//! Here arguments become an [`Edit`]; how it is made is [`super::change`]'s.

use super::change;
use super::file::{self, MapFile};
use crate::cmd::Global;
use crate::cmd::go_ahead::Options;
use crate::failure::Outcome;
use crate::view::Snapshot;
use anyhow::{bail, ensure};
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use trefoil_core::crush::edit::Edit;
use trefoil_core::crush::{CrushMap, DEVICE_WEIGHT_MAX, WEIGHT_ONE};

/// Devices that one command is told of.
const DEVICES_MAX: usize = 1024;

/// A `KEY=VALUE`: a type and a bucket's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Level(String, String);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((level, name)) if !level.is_empty() && !name.is_empty() => {
                Ok(Self(level.to_owned(), name.to_owned()))
            }
            _ => Err("give TYPE=NAME, such as root=default or host=h1".to_owned()),
        }
    }
}

fn location(levels: &[Level]) -> Vec<(String, String)> {
    levels.iter().map(|level| (level.0.clone(), level.1.clone())).collect()
}

/// A weight in 16.16, as Ceph's tools compute it: single precision, cut off.
fn weight(text: &str) -> Result<u32, String> {
    let most = DEVICE_WEIGHT_MAX / WEIGHT_ONE;
    let weight = text.parse::<f32>().ok().filter(|weight| (0.0..=most as f32).contains(weight));
    let weight =
        weight.ok_or_else(|| format!("give a weight from 0 to {most}, by custom the size in TiB"))?;
    Ok((weight * WEIGHT_ONE as f32) as u32)
}

/// `trefoil crush add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// The device: osd.N, or N
    device: String,
    /// Its weight, by custom its size in TiB
    #[arg(value_parser = weight)]
    weight: u32,
    /// Its place, each level as TYPE=NAME
    #[arg(required = true, value_name = "TYPE=NAME")]
    location: Vec<Level>,
    #[command(flatten)]
    pub options: Options,
}

impl AddArgs {
    /// What is meant.
    pub fn edit(&self) -> Edit {
        let (device, weight) = (self.device.clone(), self.weight);
        Edit::Add { device, weight, location: location(&self.location) }
    }
}

/// `trefoil crush add-bucket`.
#[derive(Args, Debug)]
pub struct AddBucketArgs {
    /// Its name
    name: String,
    /// Its type: host, rack, ...
    #[arg(value_name = "TYPE")]
    type_name: String,
    /// Its place, each level as TYPE=NAME; without one it is a root
    #[arg(value_name = "TYPE=NAME")]
    location: Vec<Level>,
    #[command(flatten)]
    pub options: Options,
}

impl AddBucketArgs {
    /// What is meant.
    pub fn edit(&self) -> Edit {
        let (name, type_name) = (self.name.clone(), self.type_name.clone());
        Edit::AddBucket { name, type_name, location: location(&self.location) }
    }
}

/// `trefoil crush move`.
#[derive(Args, Debug)]
pub struct MoveArgs {
    /// The device or bucket
    name: String,
    /// Its new place, each level as TYPE=NAME
    #[arg(required = true, value_name = "TYPE=NAME")]
    location: Vec<Level>,
    #[command(flatten)]
    pub options: Options,
}

impl MoveArgs {
    /// What is meant.
    pub fn edit(&self) -> Edit {
        Edit::Move { name: self.name.clone(), location: location(&self.location) }
    }
}

/// `trefoil crush reweight` and `reweight-subtree`.
#[derive(Args, Debug)]
pub struct ReweightArgs {
    /// The device, or the bucket
    name: String,
    /// The new weight
    #[arg(value_parser = weight)]
    weight: u32,
    #[command(flatten)]
    pub options: Options,
}

impl ReweightArgs {
    /// What is meant for one device.
    pub fn edit(&self) -> Edit {
        Edit::Reweight { name: self.name.clone(), weight: self.weight }
    }

    /// What is meant for all below a bucket.
    pub fn subtree(&self) -> Edit {
        Edit::ReweightSubtree { name: self.name.clone(), weight: self.weight }
    }
}

/// `trefoil crush remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The device or empty bucket
    name: String,
    #[command(flatten)]
    pub options: Options,
}

impl RemoveArgs {
    /// What is meant.
    pub fn edit(&self) -> Edit {
        Edit::Remove { name: self.name.clone() }
    }
}

/// `trefoil crush rename`.
#[derive(Args, Debug)]
pub struct RenameArgs {
    /// The bucket
    from: String,
    /// Its new name
    to: String,
    #[command(flatten)]
    pub options: Options,
}

impl RenameArgs {
    /// What is meant.
    pub fn edit(&self) -> Edit {
        Edit::Rename { from: self.from.clone(), to: self.to.clone() }
    }
}

/// `trefoil crush class ...`.
#[derive(Subcommand, Debug)]
pub enum ClassCommand {
    /// Give devices that have none a class
    #[command(after_help = "\
Examples:
  trefoil crush class set ssd osd.0 osd.1")]
    Set {
        /// The class: ssd, hdd, ...
        class: String,
        /// The devices
        #[arg(required = true, num_args = 1..=DEVICES_MAX)]
        devices: Vec<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Take the class of devices away
    #[command(after_help = "\
Examples:
  trefoil crush class rm osd.0 osd.1")]
    Rm {
        /// The devices
        #[arg(required = true, num_args = 1..=DEVICES_MAX)]
        devices: Vec<String>,
        #[command(flatten)]
        options: Options,
    },
}

impl ClassCommand {
    /// What is meant.
    pub fn edit(&self) -> Edit {
        match self {
            ClassCommand::Set { class, devices, .. } => {
                Edit::SetClass { class: class.clone(), devices: devices.clone() }
            }
            ClassCommand::Rm { devices, .. } => Edit::RemoveClass { devices: devices.clone() },
        }
    }

    /// How it is to be made.
    pub fn options(&self) -> &Options {
        match self {
            ClassCommand::Set { options, .. } | ClassCommand::Rm { options, .. } => options,
        }
    }
}

/// `trefoil crush set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// The map, as text
    file: PathBuf,
    /// Only if the cluster's CRUSH map has this version. Without it, the one that `get` wrote into the file
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
    #[command(flatten)]
    options: Options,
}

/// Runs `trefoil crush set`.
pub fn set(args: &SetArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let read = file::read(&args.file)?;
    let make = |snapshot: &Snapshot| -> anyhow::Result<(CrushMap, Vec<String>)> {
        check_origin(args, &read, snapshot)?;
        let told = format!("the map of {} takes the place of the cluster's", args.file.display());
        Ok((read.map.clone(), vec![told]))
    };
    change::make(make, &args.options, global, out)
}

/// Fails where somebody has changed the map since the file was made of it.
fn check_origin(args: &SetArgs, read: &MapFile, snapshot: &Snapshot) -> anyhow::Result<()> {
    let (file, current) = (args.file.display(), snapshot.map.crush_version);
    if read.map == *snapshot.map.crush {
        return Ok(());
    }
    if let Some(expected) = args.expect {
        ensure!(
            expected == current,
            "the cluster's CRUSH map has version {current}, not {expected}: get it again, and make the change on that"
        );
        return Ok(());
    }
    // A file of another cluster, or from another tool, says nothing of this one's versions.
    let Some((_, version)) = read.origin.as_ref().filter(|it| it.0 == snapshot.status().cluster.id) else {
        return Ok(());
    };
    if *version == current {
        return Ok(());
    }
    bail!(
        "{file} was made of version {version} of the CRUSH map, which was changed since: get it again and make the \
         change on that; or, if `trefoil crush diff {file}` shows just what you want, say --expect {current}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_places_are_read_as_in_ceph() {
        assert_eq!(weight("1"), Ok(WEIGHT_ONE));
        assert_eq!(weight("0.3"), Ok(19660));
        assert_eq!(weight("100"), Ok(DEVICE_WEIGHT_MAX));
        for bad in ["", "x", "-1", "100.1", "nan", "inf", "1,5"] {
            assert!(weight(bad).unwrap_err().contains("from 0 to 100"), "{bad}");
        }
        assert_eq!("host=h1".parse(), Ok(Level("host".to_owned(), "h1".to_owned())));
        for bad in ["host", "=h1", "host=", ""] {
            assert!(bad.parse::<Level>().unwrap_err().contains("TYPE=NAME"), "{bad}");
        }
    }
}
