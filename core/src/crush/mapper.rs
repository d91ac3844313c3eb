//! The walk of a rule over a map: `crush_do_rule`.
//!
//! A placement reads the map and writes only to buffers that the caller keeps, so it neither
//! allocates nor locks. Its time is bounded by the tries of the rule; the order of attempts is
//! the algorithm, so nothing here may be reordered.

use thiserror::Error;

use super::bucket::{Node, NodeArg};
use super::compile::CrushMap;
use super::hash::crush_hash32_2;
use super::model::{Mode, Step};
use super::{CHOOSE_ARGS_DEFAULT, ITEM_NONE, REPLICAS_MAX, WEIGHT_ONE};

/// A position that is not decided yet (`CRUSH_ITEM_UNDEF`); never given out.
const ITEM_UNDEF: i32 = i32::MAX - 1;

/// What to place.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// The rule to follow.
    pub rule_id: u32,
    /// The input that is hashed; see [`ceph_pg_to_x`](super::ceph_pg_to_x) for Ceph's.
    pub x: u32,
    /// How many replicas; at most [`REPLICAS_MAX`].
    pub num_rep: usize,
    /// By device id, 16.16: 65536 is fully in, 0 is out, between them the share of inputs that
    /// the device keeps. Devices beyond its end are out.
    pub reweights: &'a [u32],
    /// Which set of `choose_args`; without that set the default one serves, and without that
    /// one none. `crushtool` uses 0, Ceph's clusters the pool's id.
    pub choose_args_id: i64,
}

/// Why a rule cannot be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DoRuleError {
    /// The map has no such rule.
    #[error("the map has no rule {0}; name one of the rules that it has")]
    NoSuchRule(u32),
    /// More replicas than [`REPLICAS_MAX`].
    #[error("{0} replicas are more than the {REPLICAS_MAX} that one placement may ask for")]
    TooManyReplicas(usize),
}

/// Buffers for placements, to be kept and used again. They grow to the largest placement.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// The items at hand.
    working: Vec<i32>,
    /// The items that a step chooses.
    chosen: Vec<i32>,
    /// The leaves below them.
    leaves: Vec<i32>,
}

impl CrushMap {
    /// Where `x` goes by a rule: device ids in order, [`ITEM_NONE`] for the holes of `indep`
    /// rules. Uses the `choose_args` that `crushtool --test` uses. Allocates; for many
    /// placements use [`do_rule_into`](Self::do_rule_into).
    ///
    /// # Errors
    ///
    /// There is no such rule, or `num_rep` is greater than [`REPLICAS_MAX`].
    pub fn do_rule(
        &self,
        rule_id: u32,
        x: u32,
        num_rep: usize,
        reweights: &[u32],
    ) -> Result<Vec<i32>, DoRuleError> {
        let placement = Placement { rule_id, x, num_rep, reweights, choose_args_id: 0 };
        let mut result = Vec::new();
        self.do_rule_into(&placement, &mut Scratch::default(), &mut result)?;
        Ok(result)
    }

    /// As [`do_rule`](Self::do_rule), into `result`, which is overwritten. Does not allocate
    /// once `scratch` and `result` have been used with as many replicas.
    ///
    /// # Errors
    ///
    /// There is no such rule, or `num_rep` is greater than [`REPLICAS_MAX`]; `result` is empty
    /// then.
    pub fn do_rule_into(
        &self,
        placement: &Placement<'_>,
        scratch: &mut Scratch,
        result: &mut Vec<i32>,
    ) -> Result<(), DoRuleError> {
        result.clear();
        let Some(Some(steps)) = self.rules.get(placement.rule_id as usize) else {
            return Err(DoRuleError::NoSuchRule(placement.rule_id));
        };
        let result_max = placement.num_rep;
        if result_max > REPLICAS_MAX {
            return Err(DoRuleError::TooManyReplicas(result_max));
        }
        for buffer in [&mut scratch.working, &mut scratch.chosen, &mut scratch.leaves] {
            buffer.clear();
            // At least one entry: a `take` puts its item there whatever `num_rep` says.
            buffer.resize(result_max.max(1), ITEM_NONE);
        }
        let tunables = &self.def().tunables;
        let mut walk = Walk {
            map: self,
            args: self.args_for(placement.choose_args_id),
            x: placement.x,
            reweights: placement.reweights,
            // The tunable counts retries, not tries.
            tries: tunables.choose_total_tries + 1,
            leaf_tries: 0,
            local_tries: tunables.choose_local_tries,
            fallback_tries: tunables.choose_local_fallback_tries,
            vary_r: tunables.chooseleaf_vary_r,
            stable: tunables.chooseleaf_stable != 0,
        };
        let mut at_hand = 0;
        for step in steps {
            match *step {
                Step::Take { item, .. } => {
                    scratch.working[0] = item;
                    at_hand = 1;
                }
                Step::Choose { leaf, mode, num, type_id } => {
                    if at_hand > 0 {
                        let kind = Kind { leaf, mode, num, type_id };
                        at_hand = walk.choose(kind, at_hand, result_max, scratch);
                    }
                }
                Step::Emit => {
                    let room = result_max - result.len();
                    result.extend_from_slice(&scratch.working[..at_hand.min(room)]);
                    at_hand = 0;
                }
                Step::SetChooseTries(n) if n > 0 => walk.tries = n,
                Step::SetChooseleafTries(n) if n > 0 => walk.leaf_tries = n,
                Step::SetChooseTries(_) | Step::SetChooseleafTries(_) => {}
                Step::SetChooseLocalTries(n) => walk.local_tries = n,
                Step::SetChooseLocalFallbackTries(n) => walk.fallback_tries = n,
                Step::SetChooseleafVaryR(n) => walk.vary_r = n,
                Step::SetChooseleafStable(n) => walk.stable = n != 0,
            }
        }
        Ok(())
    }

    fn args_for(&self, id: i64) -> Option<&[Option<NodeArg>]> {
        let set = |id| self.choose_args.iter().find(|(set, _)| *set == id);
        set(id).or_else(|| set(CHOOSE_ARGS_DEFAULT)).map(|(_, args)| &args[..])
    }
}

/// A choose step.
#[derive(Clone, Copy)]
struct Kind {
    leaf: bool,
    mode: Mode,
    num: i32,
    type_id: i32,
}

/// What stays the same while a rule is walked, but for its `set_` steps.
struct Walk<'a> {
    map: &'a CrushMap,
    args: Option<&'a [Option<NodeArg>]>,
    x: u32,
    reweights: &'a [u32],
    tries: u32,
    /// 0: not set by the rule.
    leaf_tries: u32,
    local_tries: u32,
    fallback_tries: u32,
    vary_r: u32,
    stable: bool,
}

/// How `firstn` searches: for the items of the step, or for the one leaf below one of them.
struct Firstn {
    type_id: i32,
    tries: u32,
    /// Tries of the search for leaves; `None`: no leaves.
    leaf_tries: Option<u32>,
    /// The first and one past the last replica number.
    reps: (i32, i32),
    parent_r: i32,
}

/// How `indep` searches.
struct Indep {
    type_id: i32,
    tries: u32,
    leaf_tries: Option<u32>,
    num_rep: i32,
    parent_r: i32,
}

/// What an item of a bucket is to a search.
enum Found<'a> {
    /// A bucket on the way: the search goes on in it.
    Inner((usize, &'a Node)),
    /// A device, when devices are looked for.
    Device,
    /// A bucket of the type that is looked for.
    Bucket((usize, &'a Node)),
    /// The map leads elsewhere: no further try will help.
    Never,
}

impl<'a> Walk<'a> {
    /// One choose step: from the first `at_hand` items of `scratch.working` to the new ones,
    /// which it leaves there; returns how many.
    fn choose(&mut self, kind: Kind, at_hand: usize, result_max: usize, scratch: &mut Scratch) -> usize {
        let mut size = 0;
        for i in 0..at_hand {
            let num_rep = if kind.num > 0 { kind.num } else { kind.num + result_max as i32 };
            // A device, or a hole left by an earlier step: nothing to choose from.
            let Some(start) = self.map.node(scratch.working[i]) else {
                continue;
            };
            if num_rep <= 0 {
                continue;
            }
            let room = result_max - size;
            let chosen = &mut scratch.chosen[size..size + room];
            let leaves = &mut scratch.leaves[size..size + room];
            match kind.mode {
                Mode::Firstn => {
                    let descend_once = self.map.def().tunables.chooseleaf_descend_once != 0;
                    let leaf_tries = match self.leaf_tries {
                        0 if descend_once => 1,
                        0 => self.tries,
                        set => set,
                    };
                    let search = Firstn {
                        type_id: kind.type_id,
                        tries: self.tries,
                        leaf_tries: kind.leaf.then_some(leaf_tries),
                        reps: (0, num_rep),
                        parent_r: 0,
                    };
                    size += self.firstn(&search, start, chosen, leaves, 0);
                }
                Mode::Indep => {
                    let width = room.min(num_rep as usize);
                    let search = Indep {
                        type_id: kind.type_id,
                        tries: self.tries,
                        leaf_tries: kind.leaf.then_some(self.leaf_tries.max(1)),
                        num_rep,
                        parent_r: 0,
                    };
                    self.indep(&search, start, &mut chosen[..width], &mut leaves[..width], 0);
                    size += width;
                }
            }
        }
        let next = if kind.leaf { &mut scratch.leaves } else { &mut scratch.chosen };
        std::mem::swap(&mut scratch.working, next);
        size
    }

    /// `crush_choose_firstn`: fills `out` from `outpos` on with distinct items; returns how many
    /// entries of `out` are filled then. With `leaf_tries`, `leaves` gets the device of each.
    fn firstn(
        &self,
        search: &Firstn,
        start: (usize, &'a Node),
        out: &mut [i32],
        leaves: &mut [i32],
        mut outpos: usize,
    ) -> usize {
        for rep in search.reps.0..search.reps.1 {
            if outpos >= out.len() {
                break;
            }
            if let Some(item) = self.firstn_one(search, start, out, leaves, outpos, rep) {
                out[outpos] = item;
                outpos += 1;
            }
        }
        outpos
    }

    /// One replica of `firstn`: tries until an item is neither out nor taken, or gives up.
    fn firstn_one(
        &self,
        search: &Firstn,
        start: (usize, &'a Node),
        out: &mut [i32],
        leaves: &mut [i32],
        outpos: usize,
        rep: i32,
    ) -> Option<i32> {
        let mut failures = 0u32;
        'descent: loop {
            let mut bucket = start;
            let mut local_failures = 0u32;
            loop {
                let r = rep.wrapping_add(search.parent_r).wrapping_add(failures as i32);
                let size = bucket.1.items.len() as u32;
                let (mut collision, mut rejected) = (false, size == 0);
                let mut item = 0;
                if size > 0 {
                    let fallback = self.fallback_tries > 0
                        && local_failures >= size >> 1
                        && local_failures > self.fallback_tries;
                    item = if fallback {
                        bucket.1.choose_permuted(self.x, r)
                    } else {
                        self.choose_in(bucket, r, outpos)
                    };
                    let found = self.look(item, search.type_id);
                    if let Found::Inner(inner) = found {
                        bucket = inner;
                        continue;
                    }
                    collision = out[..outpos].contains(&item);
                    match (found, search.leaf_tries) {
                        (Found::Bucket(below), Some(tries)) if !collision => {
                            rejected = !self.firstn_leaf(below, tries, leaves, outpos, r);
                        }
                        (Found::Bucket(_), _) => {}
                        (Found::Device, leaf_tries) => {
                            if !collision && leaf_tries.is_some() {
                                leaves[outpos] = item;
                            }
                            rejected = self.is_out(item);
                        }
                        (Found::Inner(_) | Found::Never, _) => return None,
                    }
                }
                if !rejected && !collision {
                    return Some(item);
                }
                failures += 1;
                local_failures += 1;
                let again_here = (collision && local_failures <= self.local_tries)
                    || (self.fallback_tries > 0
                        && local_failures <= size.saturating_add(self.fallback_tries));
                if again_here {
                    continue;
                }
                if failures < search.tries {
                    continue 'descent;
                }
                return None;
            }
        }
    }

    /// The device below a bucket that `chooseleaf firstn` has chosen; false: there is none to be
    /// had.
    fn firstn_leaf(
        &self,
        bucket: (usize, &'a Node),
        tries: u32,
        leaves: &mut [i32],
        outpos: usize,
        r: i32,
    ) -> bool {
        let search = Firstn {
            type_id: 0,
            tries,
            leaf_tries: None,
            reps: if self.stable { (0, 1) } else { (outpos as i32, outpos as i32 + 1) },
            parent_r: match self.vary_r {
                0 => 0,
                n => r.wrapping_shr(n - 1),
            },
        };
        self.firstn(&search, bucket, leaves, &mut [], outpos) > outpos
    }

    /// `crush_choose_indep`: fills each position of `out` on its own. `position` is that of
    /// `out[0]` in the step's answer.
    fn indep(
        &self,
        search: &Indep,
        start: (usize, &'a Node),
        out: &mut [i32],
        leaves: &mut [i32],
        position: usize,
    ) {
        out.fill(ITEM_UNDEF);
        leaves.fill(ITEM_UNDEF);
        let mut left = out.len();
        for failures in 0..search.tries {
            if left == 0 {
                break;
            }
            for slot in 0..out.len() {
                if out[slot] != ITEM_UNDEF {
                    continue;
                }
                let decided = self.indep_one(search, start, out, leaves, (position, slot), failures);
                if let Some(item) = decided {
                    out[slot] = item;
                    left -= 1;
                }
            }
        }
        for item in out.iter_mut().chain(leaves) {
            if *item == ITEM_UNDEF {
                *item = ITEM_NONE;
            }
        }
    }

    /// One attempt at one position of `indep`: the item, a hole for good, or `None` for "try
    /// again".
    fn indep_one(
        &self,
        search: &Indep,
        start: (usize, &'a Node),
        out: &[i32],
        leaves: &mut [i32],
        (position, slot): (usize, usize),
        failures: u32,
    ) -> Option<i32> {
        let mut bucket = start;
        loop {
            let size = bucket.1.items.len();
            // An unlucky relation of size and replicas would permute to the same items again.
            let uniform = bucket.1.alg == super::BucketAlg::Uniform;
            let resonant = uniform && size.is_multiple_of(search.num_rep as usize);
            let stride = search.num_rep + i32::from(resonant);
            let r = ((position + slot) as i32)
                .wrapping_add(search.parent_r)
                .wrapping_add(stride.wrapping_mul(failures as i32));
            if size == 0 {
                return None;
            }
            let item = self.choose_in(bucket, r, position);
            match self.look(item, search.type_id) {
                Found::Inner(inner) => bucket = inner,
                Found::Never => {
                    if search.leaf_tries.is_some() {
                        leaves[slot] = ITEM_NONE;
                    }
                    return Some(ITEM_NONE);
                }
                Found::Device | Found::Bucket(_) if out.contains(&item) => return None,
                Found::Device => {
                    // Before the device is known to be in, as in Ceph: when every try fails, the
                    // last one stays in the answer.
                    if search.leaf_tries.is_some() {
                        leaves[slot] = item;
                    }
                    return (!self.is_out(item)).then_some(item);
                }
                Found::Bucket(inner) => {
                    let Some(tries) = search.leaf_tries else {
                        return Some(item);
                    };
                    let below =
                        Indep { type_id: 0, tries, leaf_tries: None, num_rep: search.num_rep, parent_r: r };
                    let leaf = &mut leaves[slot..=slot];
                    self.indep(&below, inner, leaf, &mut [], position + slot);
                    return (leaf[0] != ITEM_NONE).then_some(item);
                }
            }
        }
    }

    #[inline]
    fn choose_in(&self, (number, node): (usize, &Node), r: i32, position: usize) -> i32 {
        let arg = self.args.and_then(|args| args.get(number)?.as_ref());
        node.choose(arg, self.x, r, position)
    }

    #[inline]
    fn look(&self, item: i32, type_id: i32) -> Found<'a> {
        if item >= 0 {
            let wanted = item < self.map.max_devices && type_id == 0;
            return if wanted { Found::Device } else { Found::Never };
        }
        match self.map.node(item) {
            Some(found) if found.1.type_id == type_id => Found::Bucket(found),
            Some(found) => Found::Inner(found),
            None => Found::Never,
        }
    }

    /// True if the device's reweight keeps this input away from it.
    #[inline]
    fn is_out(&self, device: i32) -> bool {
        match self.reweights.get(device as usize) {
            None | Some(0) => true,
            Some(&reweight) if reweight >= WEIGHT_ONE => false,
            Some(&reweight) => crush_hash32_2(self.x, device as u32) & 0xffff >= reweight,
        }
    }
}
