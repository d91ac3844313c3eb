//! What a CRUSH map says, as plain data: the form in which a map is stored, sent and edited.
//!
//! Nothing here is checked. `compile` checks it once and for all; placement works on its result
//! only.

use serde::{Deserialize, Serialize};

/// The numbers that steer how hard a rule tries. Names and meanings are Ceph's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunables {
    /// Retries within the bucket of a collision, before going back to the `take`.
    pub choose_local_tries: u32,
    /// Retries with a permutation of the bucket, before going back to the `take`.
    pub choose_local_fallback_tries: u32,
    /// Retries (not tries) from the `take` on.
    pub choose_total_tries: u32,
    /// 1: a `chooseleaf` that finds no leaf goes back at once.
    pub chooseleaf_descend_once: u32,
    /// 0: the search for a leaf does not depend on the attempt; n: it does, shifted by n - 1.
    pub chooseleaf_vary_r: u32,
    /// 1: the search for a leaf does not depend on the position in the answer.
    pub chooseleaf_stable: u32,
    /// Which of two formulas gives the straws of `straw` buckets (0 or 1).
    pub straw_calc_version: u32,
    /// A mask of the algorithms that Ceph's monitors may use; kept, but without effect here.
    pub allowed_bucket_algs: u32,
}

impl Tunables {
    /// What a text map means that sets no tunables ("argonaut" in Ceph): the compiler starts
    /// from these, so that a text means the same for ever.
    pub const LEGACY: Self = Self {
        choose_local_tries: 2,
        choose_local_fallback_tries: 5,
        choose_total_tries: 19,
        chooseleaf_descend_once: 0,
        chooseleaf_vary_r: 0,
        chooseleaf_stable: 0,
        straw_calc_version: 0,
        allowed_bucket_algs: 22,
    };
    /// Ceph's "optimal" and "default" profile since Jewel: what new maps have.
    pub const OPTIMAL: Self = Self {
        choose_local_tries: 0,
        choose_local_fallback_tries: 0,
        choose_total_tries: 50,
        chooseleaf_descend_once: 1,
        chooseleaf_vary_r: 1,
        chooseleaf_stable: 1,
        straw_calc_version: 1,
        allowed_bucket_algs: 54,
    };

    /// Each tunable with its name in text maps, in the order in which they are printed.
    pub(super) fn named(&mut self) -> [(&'static str, &mut u32); 8] {
        [
            ("choose_local_tries", &mut self.choose_local_tries),
            ("choose_local_fallback_tries", &mut self.choose_local_fallback_tries),
            ("choose_total_tries", &mut self.choose_total_tries),
            ("chooseleaf_descend_once", &mut self.chooseleaf_descend_once),
            ("chooseleaf_vary_r", &mut self.chooseleaf_vary_r),
            ("chooseleaf_stable", &mut self.chooseleaf_stable),
            ("straw_calc_version", &mut self.straw_calc_version),
            ("allowed_bucket_algs", &mut self.allowed_bucket_algs),
        ]
    }
}

/// A device: a leaf of the tree, in Ceph an OSD, in Trefoil a storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// 0 or more; may leave gaps.
    pub id: i32,
    /// Unique among devices and buckets.
    pub name: String,
    /// The device class (`ssd`, `hdd`, ...), if it has one.
    pub class: Option<String>,
}

/// The name of a level of the tree. Type 0 is the devices'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeName {
    /// 0 to 65535.
    pub id: i32,
    /// Unique among types.
    pub name: String,
}

/// How a bucket chooses among its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BucketAlg {
    /// All items weigh the same: a permutation. Quick; any change of size moves everything.
    Uniform,
    /// A chain from the newest item back: good for buckets that only grow.
    List,
    /// A binary tree of weights.
    Tree,
    /// The longest straw wins; a change of one weight may move data between others.
    Straw,
    /// As straw, but with independent straws: the only one to use in new maps.
    Straw2,
}

/// Each algorithm with its name in text maps.
pub(super) const ALG_NAMES: [(&str, BucketAlg); 5] = [
    ("uniform", BucketAlg::Uniform),
    ("list", BucketAlg::List),
    ("tree", BucketAlg::Tree),
    ("straw", BucketAlg::Straw),
    ("straw2", BucketAlg::Straw2),
];

/// An entry of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// A device (0 or more) or a bucket (negative).
    pub id: i32,
    /// Its weight within the bucket, 16.16 fixed point.
    pub weight: u32,
}

/// An inner node of the tree: a host, a rack, a root. Its hash is always rjenkins1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Negative. Goes into every choice, so changing it moves data.
    pub id: i32,
    /// Unique among devices and buckets.
    pub name: String,
    /// A [`TypeName::id`] above 0.
    pub type_id: i32,
    /// How it chooses.
    pub alg: BucketAlg,
    /// Its items; the order counts for all algorithms but the straws.
    pub items: Vec<Item>,
    /// The ids of its shadow buckets, by device class. Classes that are missing here get an id
    /// when the map is compiled.
    pub class_ids: Vec<(String, i32)>,
}

/// What a rule is meant for. Without effect on placements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleKind {
    /// Whole copies.
    Replicated,
    /// Erasure-coded shards, for which the position in the answer counts.
    Erasure,
}

/// How a `choose` step fills its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// The first n that can be had: a failure moves later ones up.
    Firstn,
    /// Each position on its own: a failure leaves the others where they are, or a hole.
    Indep,
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Start from this item.
    Take {
        /// A bucket or a device.
        item: i32,
        /// Only its devices of this class.
        class: Option<String>,
    },
    /// Choose items below each of those at hand.
    Choose {
        /// Go on to one device below each (`chooseleaf`).
        leaf: bool,
        /// How to fill the answer.
        mode: Mode,
        /// How many; 0 or less is added to the number of replicas asked for.
        num: i32,
        /// Of which type.
        type_id: i32,
    },
    /// Give out the items at hand.
    Emit,
    /// For this rule: tries (not retries) from the `take` on; 0 changes nothing.
    SetChooseTries(u32),
    /// For this rule: tries of the search for a leaf; 0 changes nothing.
    SetChooseleafTries(u32),
    /// For this rule: [`Tunables::choose_local_tries`].
    SetChooseLocalTries(u32),
    /// For this rule: [`Tunables::choose_local_fallback_tries`].
    SetChooseLocalFallbackTries(u32),
    /// For this rule: [`Tunables::chooseleaf_vary_r`].
    SetChooseleafVaryR(u32),
    /// For this rule: [`Tunables::chooseleaf_stable`].
    SetChooseleafStable(u32),
}

/// A recipe for a placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Below [`RULES_MAX`](super::RULES_MAX).
    pub id: u32,
    /// Unique among rules, or empty.
    pub name: String,
    /// What it is meant for.
    pub kind: RuleKind,
    /// The fewest replicas it is meant for. Without effect on placements.
    pub min_size: u8,
    /// The most replicas it is meant for. Without effect on placements.
    pub max_size: u8,
    /// What it does.
    pub steps: Vec<Step>,
}

/// Other weights and ids for the choices of one straw2 bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChooseArg {
    /// The bucket; may be a shadow bucket.
    pub bucket_id: i32,
    /// Weights (16.16) of the items, one list per position of the answer; the last one serves
    /// all later positions. Empty: the bucket's own.
    pub weight_set: Vec<Vec<u32>>,
    /// What is hashed in place of the items' ids. Empty: the items' ids.
    pub ids: Vec<i32>,
}

/// A set of [`ChooseArg`]s: what Ceph's balancer makes ("weight sets").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChooseArgs {
    /// The pool that it serves, or [`CHOOSE_ARGS_DEFAULT`](super::CHOOSE_ARGS_DEFAULT).
    pub id: i64,
    /// At most one per bucket.
    pub args: Vec<ChooseArg>,
}

/// A whole map, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDef {
    /// How hard rules try.
    pub tunables: Tunables,
    /// The leaves.
    pub devices: Vec<Device>,
    /// The names of the levels.
    pub types: Vec<TypeName>,
    /// The inner nodes, without the shadow buckets.
    pub buckets: Vec<Bucket>,
    /// The recipes.
    pub rules: Vec<Rule>,
    /// The weight sets.
    pub choose_args: Vec<ChooseArgs>,
}
