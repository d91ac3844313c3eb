//! `trefoil crush ...`: the CRUSH map, which says where copies should live.
//!
//! | module | what |
//! |---|---|
//! | [`mod@test`] | where a map in a file places things, without a cluster |
//! | [`mod@file`] | maps in files, and what they were read from |
//! | [`show`], [`tree`], [`rule`] | the cluster's map as it is |
//! | [`edit`] | the words of an edit |
//! | [`change`] | how any change is made: foretold, checked, confirmed, compared and set |
//! | [`diff`] | what a change would move, for people and scripts |
//!
//! What an edit means and what it would move is worked out in `trefoil_core` (`crush::edit`, `map::diff`).

pub mod change;
pub mod diff;
mod edit;
mod file;
mod rule;
mod show;
mod test;
mod tree;

use super::Global;
use crate::failure::Outcome;
use clap::Subcommand;
use std::io::Write;

/// `trefoil crush ...`.
#[derive(Subcommand, Debug)]
pub enum CrushCommand {
    /// Write the cluster's map as text, as `crushtool -d` does, or as JSON
    #[command(after_help = "\
Examples:
  trefoil crush get -o map.txt
  trefoil crush get --json | jq '.devices'")]
    Get(show::GetArgs),
    /// Make a map in a file the cluster's, if nobody has changed the cluster's since the file was got
    #[command(after_help = "\
Examples:
  trefoil crush get -o map.txt
  editor map.txt
  trefoil crush diff map.txt
  trefoil crush set map.txt
  trefoil crush set map.txt --yes --json")]
    Set(edit::SetArgs),
    /// Say what a map in a file would move, how much and how long, and what it would break
    #[command(after_help = "\
Nothing is changed. Bytes are an estimate: what the nodes have in use, spread over their placement
groups by the sizes of the volumes.

Examples:
  trefoil crush diff map.txt
  trefoil crush diff map.txt --rate 200MiB/s --all
  trefoil crush diff map.txt --json | jq -r '.moves[] | \"\\(.pg) \\(.acting) -> \\(.target)\"'")]
    Diff(diff::DiffArgs),
    /// Show the hierarchy with weights, classes, and which nodes are up
    #[command(after_help = "\
Examples:
  trefoil crush tree
  trefoil crush tree --json | jq '.stray'")]
    Tree(tree::TreeArgs),
    /// Give a device (osd.N is node N) a weight and a place; buckets that do not exist are made
    #[command(after_help = "\
Examples:
  trefoil crush add osd.7 1.75 root=default rack=r2 host=h4
  trefoil crush add osd.7 1.75 host=h4 --dry-run")]
    Add(edit::AddArgs),
    /// Add an empty bucket: a host, a rack, a root
    #[command(after_help = "\
Examples:
  trefoil crush add-bucket r2 rack root=default
  trefoil crush add-bucket archive root")]
    AddBucket(edit::AddBucketArgs),
    /// Move a device or a bucket, with what is in it, to another place
    #[command(after_help = "\
Examples:
  trefoil crush move h4 root=default rack=r2
  trefoil crush move osd.7 host=h5 --dry-run")]
    Move(edit::MoveArgs),
    /// Give a device another weight (by custom its size in TiB; 0: nothing should live there)
    #[command(after_help = "\
Examples:
  trefoil crush reweight osd.7 0.9
  trefoil crush reweight osd.7 0 --dry-run")]
    Reweight(edit::ReweightArgs),
    /// Give every device below a bucket a weight
    #[command(after_help = "\
Examples:
  trefoil crush reweight-subtree h4 1.75")]
    ReweightSubtree(edit::ReweightArgs),
    /// Take a device or an empty bucket out of the map
    #[command(after_help = "\
Examples:
  trefoil crush remove osd.7 --dry-run
  trefoil crush remove h4")]
    Remove(edit::RemoveArgs),
    /// Give a bucket another name
    #[command(after_help = "\
Examples:
  trefoil crush rename r2 rack-b")]
    Rename(edit::RenameArgs),
    /// Give devices a class, or take it away
    #[command(subcommand)]
    Class(edit::ClassCommand),
    /// List, show, make and remove rules
    #[command(subcommand)]
    Rule(rule::RuleCommand),
    /// Show where a rule of a CRUSH map places things, as `crushtool --test --show-mappings`
    #[command(after_help = "\
Examples:
  crushtool -d map.bin -o map.txt
  trefoil crush test --map map.txt --rule 0 --num-rep 3 --min-x 0 --max-x 9
  trefoil crush test --map map.txt --rule 0 --num-rep 3 --weight 4=0 --weight 5=0.5")]
    Test(test::CrushTestArgs),
}

/// Runs the command.
pub fn run(command: &CrushCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        CrushCommand::Get(args) => show::get(args, global, out),
        CrushCommand::Set(args) => edit::set(args, global, out),
        CrushCommand::Diff(args) => diff::run(args, global, out),
        CrushCommand::Tree(args) => tree::run(args, global, out),
        CrushCommand::Add(args) => change::edit(&args.edit(), &args.options, global, out),
        CrushCommand::AddBucket(args) => change::edit(&args.edit(), &args.options, global, out),
        CrushCommand::Move(args) => change::edit(&args.edit(), &args.options, global, out),
        CrushCommand::Reweight(args) => change::edit(&args.edit(), &args.options, global, out),
        CrushCommand::ReweightSubtree(args) => change::edit(&args.subtree(), &args.options, global, out),
        CrushCommand::Remove(args) => change::edit(&args.edit(), &args.options, global, out),
        CrushCommand::Rename(args) => change::edit(&args.edit(), &args.options, global, out),
        CrushCommand::Class(command) => change::edit(&command.edit(), command.options(), global, out),
        CrushCommand::Rule(command) => rule::run(command, global, out),
        CrushCommand::Test(args) => Ok(test::run(args, out)?),
    }
}
