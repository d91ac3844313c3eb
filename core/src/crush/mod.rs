//! CRUSH: which storage nodes hold a placement group, computed by everyone, stored by no one.
//!
//! Bit for bit what Ceph's `crushtool` 16.2 computes: rjenkins1, the buckets straw2, straw, list,
//! tree and uniform, `firstn` and `indep` rules, every tunable, reweights, device classes, weight
//! sets (`choose_args`). Operators bring their maps as `crushtool -d` prints them.
//!
//! # Layout
//!
//! - `model`: what a map says ([`MapDef`] and its parts): plain data, what is stored and sent.
//! - `compile`: checks a [`MapDef`] and turns it into a [`CrushMap`], with the shadow buckets of
//!   the device classes and what the older buckets derive from their weights.
//!   `shadow` and `error` are its parts.
//! - `bucket`, `mapper`: the choice within a bucket, and the walk of a rule ([`CrushMap::do_rule`]).
//! - `text`: Ceph's text format, in and out.
//! - `builder`: the edits that the monitor makes to its own map.
//! - [`edit`]: those that an administrator makes; `editor` is its workbench.
//! - `hash`, `ln`, `ln_table`, `pg`: the arithmetic.
//!
//! # Invariants
//!
//! - A [`CrushMap`] is valid: each name is defined, the buckets form no cycle, every number is
//!   within the limits below. There is no other way to get one (also not by deserialising), so a
//!   placement cannot fail, panic or run without end because of the map.
//! - Placement is a pure function of map, rule, `x`, number of replicas and reweights. Integer
//!   arithmetic only, but for the lengths of *straw* (not straw2) buckets, which Ceph derives with
//!   the C library's `pow`.
//! - No I/O, no clock, no randomness, no allocation per placement ([`CrushMap::do_rule_into`]).

mod bucket;
mod builder;
mod compile;
pub mod edit;
mod editor;
mod error;
mod hash;
mod ln;
mod ln_table;
mod mapper;
mod model;
mod pg;
mod shadow;
mod text;

pub use builder::BuilderError;
pub use compile::CrushMap;
pub use error::{BuildError, Subject};
pub use hash::{
    ceph_str_hash_rjenkins, crush_hash32, crush_hash32_2, crush_hash32_3, crush_hash32_4, crush_hash32_5,
};
pub use mapper::{DoRuleError, Placement, Scratch};
pub use model::{
    Bucket, BucketAlg, ChooseArg, ChooseArgs, Device, Item, MapDef, Mode, Rule, RuleKind, Step, Tunables,
    TypeName,
};
pub use pg::{
    ceph_object_hash, ceph_pg_to_x, ceph_stable_mod, object_pg, pg_ancestors, pg_mask, pg_split_children,
    pg_split_parent,
};
pub use text::{ParseError, Problem};

/// 1.0 in the 16.16 fixed point of weights and reweights.
pub const WEIGHT_ONE: u32 = 0x1_0000;

/// A hole in the answer of an `indep` rule (`CRUSH_ITEM_NONE`; `crushtool` prints 2147483647).
pub const ITEM_NONE: i32 = i32::MAX;

/// The set of `choose_args` that serves every pool without a set of its own.
pub const CHOOSE_ARGS_DEFAULT: i64 = -1;

/// The longest text map, in bytes (a map of 10,000 devices has about 1 MB).
pub const MAP_TEXT_BYTES_MAX: usize = 64 << 20;
/// The greatest device id. Reweights and lookup tables are as long as the greatest id in use.
pub const DEVICE_ID_MAX: i32 = (1 << 20) - 1;
/// The least (most negative) bucket id, shadow buckets included.
pub const BUCKET_ID_MIN: i32 = -(1 << 20);
/// The most buckets of a map, shadow buckets included.
pub const BUCKETS_MAX: usize = 1 << 17;
/// The most items of all buckets together, shadow buckets included.
pub const ITEMS_MAX: usize = 1 << 22;
/// The most device classes.
pub const CLASSES_MAX: usize = 64;
/// The most levels of buckets, from a root to the bucket that holds devices.
pub const DEPTH_MAX: usize = 32;
/// The most bucket types.
pub const TYPES_MAX: usize = 1024;
/// The greatest bucket type id (16 bits in Ceph's map).
pub const TYPE_ID_MAX: i32 = u16::MAX as i32;
/// The most rules; rule ids are below it (Ceph's `CRUSH_MAX_RULES`).
pub const RULES_MAX: u32 = 256;
/// The most steps of one rule.
pub const RULE_STEPS_MAX: usize = 256;
/// The greatest number of items that one step of a rule may ask for, and the most replicas that
/// one placement may ask for.
pub const REPLICAS_MAX: usize = 4096;
/// The greatest number of tries that a tunable or a rule may ask for. Ceph knows no limit; its
/// default is 50, and 100 is usual for erasure codes.
pub const TRIES_MAX: u32 = 100_000;
/// The most sets of `choose_args`.
pub const CHOOSE_ARGS_MAX: usize = 1024;
/// The most positions of one weight set.
pub const WEIGHT_SET_POSITIONS_MAX: usize = 64;
/// The greatest weight of a device in its bucket: 100.0, as in Ceph.
pub const DEVICE_WEIGHT_MAX: u32 = 100 * WEIGHT_ONE;
/// The greatest weight of a bucket in its parent: 65535.0, as in Ceph.
pub const BUCKET_WEIGHT_MAX: u32 = 65_535 * WEIGHT_ONE;
