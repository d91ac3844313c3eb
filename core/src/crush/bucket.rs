//! The choice of one item of one bucket, for each of CRUSH's five algorithms.
//!
//! Also what three of them derive from the items' weights when the map is compiled. Ties, roundings
//! and orders are part of the algorithms: they decide where data lies. The callers guarantee that
//! a bucket that must choose is not empty.

use super::hash::{crush_hash32_3, crush_hash32_4};
use super::ln::{LN_MAX, crush_ln};
use super::model::BucketAlg;

/// A bucket as placement sees it; shadow buckets are no different.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub id: i32,
    pub type_id: i32,
    pub alg: BucketAlg,
    /// The sum of `weights`.
    pub weight: u32,
    pub items: Vec<i32>,
    pub weights: Vec<u32>,
    /// List: sums of the weights up to each item. Tree: the weights of the tree's nodes.
    /// Straw: the lengths of the straws. Else empty.
    derived: Vec<u32>,
}

/// Other weights and ids for one straw2 bucket; see `model::ChooseArg`.
#[derive(Clone, Debug)]
pub(super) struct NodeArg {
    pub weight_set: Vec<Vec<u32>>,
    pub ids: Vec<i32>,
}

impl Node {
    /// `None` if the sum of the weights overflows.
    pub fn new(
        id: i32,
        type_id: i32,
        alg: BucketAlg,
        entries: &[(i32, u32)],
        straw_calc_version: u32,
    ) -> Option<Self> {
        let items: Vec<i32> = entries.iter().map(|entry| entry.0).collect();
        let weights: Vec<u32> = entries.iter().map(|entry| entry.1).collect();
        let weight = weights.iter().try_fold(0u32, |sum, &w| sum.checked_add(w))?;
        let derived = match alg {
            BucketAlg::Uniform | BucketAlg::Straw2 => Vec::new(),
            BucketAlg::List => running_sums(&weights),
            BucketAlg::Tree => tree_weights(&weights),
            BucketAlg::Straw => straw_lengths(&weights, straw_calc_version),
        };
        Some(Self { id, type_id, alg, weight, items, weights, derived })
    }

    /// The item that input `x` and attempt `r` choose; `position` is the one in the answer that
    /// is to be filled (for weight sets).
    #[inline]
    pub fn choose(&self, arg: Option<&NodeArg>, x: u32, r: i32, position: usize) -> i32 {
        match self.alg {
            BucketAlg::Straw2 => self.choose_straw2(arg, x, r, position),
            BucketAlg::Uniform => self.choose_permuted(x, r),
            BucketAlg::List => self.choose_list(x, r),
            BucketAlg::Tree => self.choose_tree(x, r),
            BucketAlg::Straw => self.choose_straw(x, r),
        }
    }

    /// Draws a length for each item, exponentially distributed by its weight: the longest wins,
    /// the first of equals.
    #[inline]
    fn choose_straw2(&self, arg: Option<&NodeArg>, x: u32, r: i32, position: usize) -> i32 {
        let (mut ids, mut weights) = (&self.items[..], &self.weights[..]);
        if let Some(arg) = arg {
            if let Some(set) = arg.weight_set.get(position).or(arg.weight_set.last()) {
                weights = set;
            }
            if !arg.ids.is_empty() {
                ids = &arg.ids;
            }
        }
        // Ceph draws ln(u) / weight, which is negative, and keeps the greatest. Here its
        // magnitude is drawn and the least kept: the same order and the same truncation.
        let mut winner = 0;
        let mut least = u64::MAX;
        let (mut best_draw, mut best_weight) = (0, 0);
        for (i, (&id, &weight)) in ids.iter().zip(weights).enumerate() {
            if weight == 0 {
                continue;
            }
            let draw = crush_hash32_3(x, id as u32, r as u32) as u16;
            // The magnitude grows neither with the draw nor with the weight, so this one cannot be less.
            // Among items of one weight that leaves the logarithm and the division, which cost more than
            // the hash, to a handful.
            if draw <= best_draw && weight <= best_weight {
                continue;
            }
            let magnitude = (LN_MAX - crush_ln(draw)) / u64::from(weight);
            if magnitude < least {
                winner = i;
                least = magnitude;
                // By a quirk of Ceph's tables the logarithm falls at the last draw, below that of the last
                // but one (see its tests): only draws below that one are then known to be no better.
                best_draw = if draw == u16::MAX { draw - 2 } else { draw };
                best_weight = weight;
            }
        }
        self.items[winner]
    }

    /// Position `r` of a permutation that depends on `x`. Uniform buckets, and the last resort
    /// of the others (`choose_local_fallback_tries`).
    ///
    /// Ceph shuffles an array: step p swaps entry p with entry p + (hash mod (size - p)). Entry
    /// `r` is final after step r, so what it holds is found by following the swaps backwards,
    /// without an array.
    pub fn choose_permuted(&self, x: u32, r: i32) -> i32 {
        let size = self.items.len() as u32;
        let swap = |p: u32| {
            if p + 1 < size { p + crush_hash32_3(x, self.id as u32, p) % (size - p) } else { p }
        };
        let last = r as u32 % size;
        let mut source = swap(last);
        for p in (0..last).rev() {
            if swap(p) == source {
                source = p;
            }
        }
        self.items[source as usize]
    }

    /// From the newest item back: each is taken with the probability of its share of itself and
    /// all that are older.
    fn choose_list(&self, x: u32, r: i32) -> i32 {
        for (i, &item) in self.items.iter().enumerate().rev() {
            let hash = crush_hash32_4(x, item as u32, r as u32, self.id as u32) & 0xffff;
            let point = (u64::from(hash) * u64::from(self.derived[i])) >> 16;
            if point < u64::from(self.weights[i]) {
                return item;
            }
        }
        self.items[0]
    }

    /// Down a binary tree whose leaves are the odd nodes, left or right by weight.
    fn choose_tree(&self, x: u32, r: i32) -> i32 {
        let mut node = self.derived.len() >> 1;
        while node & 1 == 0 {
            let hash = crush_hash32_4(x, node as u32, r as u32, self.id as u32);
            let point = (u64::from(hash) * u64::from(self.derived[node])) >> 32;
            let half = 1 << (node.trailing_zeros() - 1);
            let left = node - half;
            node = if point < u64::from(self.derived[left]) { left } else { node + half };
        }
        // All weights 0 lead to the right, beyond the last item if the tree is not full; Ceph
        // reads past its array there. The first item stands for "none can be had".
        self.items.get(node >> 1).copied().unwrap_or(self.items[0])
    }

    /// Draws a length for each item, scaled by its straw: the longest wins, the first of equals.
    fn choose_straw(&self, x: u32, r: i32) -> i32 {
        let mut winner = 0;
        let mut longest = 0;
        for (i, (&item, &straw)) in self.items.iter().zip(&self.derived).enumerate() {
            let hash = crush_hash32_3(x, item as u32, r as u32) & 0xffff;
            let length = u64::from(hash) * u64::from(straw);
            if length > longest {
                winner = i;
                longest = length;
            }
        }
        self.items[winner]
    }
}

/// The caller has made sure that the sum does not overflow.
fn running_sums(weights: &[u32]) -> Vec<u32> {
    let mut sum = 0u32;
    let add = |&weight: &u32| {
        sum = sum.wrapping_add(weight);
        sum
    };
    weights.iter().map(add).collect()
}

/// Node weights of the tree whose leaf for item i is node 2i + 1, and whose inner nodes of height
/// h are the odd multiples of 2^h.
fn tree_weights(weights: &[u32]) -> Vec<u32> {
    if weights.is_empty() {
        return Vec::new();
    }
    let leaves = weights.len().next_power_of_two();
    let mut nodes = vec![0u32; leaves * 2];
    for (i, &weight) in weights.iter().enumerate() {
        nodes[2 * i + 1] = weight;
    }
    let mut step = 2;
    while step <= leaves {
        for node in (step..leaves * 2).step_by(step * 2) {
            nodes[node] = nodes[node - step / 2].wrapping_add(nodes[node + step / 2]);
        }
        step *= 2;
    }
    nodes
}

/// The lengths of straws (16.16), by the first (0) or the second formula.
///
/// Floating point with `pow`, as in Ceph; the first formula misjudges equal and zero weights,
/// and is kept because maps exist that rely on it.
fn straw_lengths(weights: &[u32], version: u32) -> Vec<u32> {
    // From the lightest to the heaviest; equals in their order.
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| weights[i]);
    let mut lengths = vec![0; weights.len()];
    let mut left = weights.len() as i32;
    let mut straw = 1.0f64;
    let mut below = 0.0f64;
    let mut last = 0.0f64;
    for (place, &i) in order.iter().enumerate() {
        let weight = weights[i];
        if weight == 0 {
            if version > 0 {
                left -= 1;
            }
            continue;
        }
        lengths[i] = truncate(straw * 65536.0);
        let Some(&next) = order.get(place + 1) else {
            break;
        };
        let next_weight = weights[next];
        if version == 0 && next_weight == weight {
            continue;
        }
        below += (f64::from(weight) - last) * f64::from(left);
        if version == 0 {
            let heavier = &order[place + 1..];
            left -= heavier.iter().take_while(|&&j| weights[j] == next_weight).count() as i32;
        } else {
            left -= 1;
        }
        // Ceph multiplies 32-bit integers here, which may wrap.
        let step = (left as u32).wrapping_mul(next_weight - weight);
        let share = below / (below + f64::from(step));
        straw *= (1.0 / share).powf(1.0 / f64::from(left));
        last = f64::from(weight);
    }
    lengths
}

/// C's conversion of a double to 32 bits on the machines that Ceph runs on: the low half of the
/// 64-bit integer, 0 when it does not fit one.
fn truncate(value: f64) -> u32 {
    if value.abs() < 2f64.powi(63) { value as i64 as u32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, with nothing left out.
    fn straw2(node: &Node, x: u32, r: i32) -> i32 {
        let magnitude = |i: usize| {
            let draw = crush_hash32_3(x, node.items[i] as u32, r as u32) as u16;
            (LN_MAX - crush_ln(draw)) / u64::from(node.weights[i])
        };
        let drawing = (0..node.items.len()).filter(|i| node.weights[*i] > 0);
        // The first of equals.
        drawing.min_by_key(|i| magnitude(*i)).map_or(node.items[0], |i| node.items[i])
    }

    #[test]
    fn what_a_straw2_bucket_leaves_out_could_not_have_won() {
        let kinds: [&[u32]; 4] =
            [&[0x10000], &[1, 0x10000, 0], &[0x10000, 0x8000, 0x20000], &[u32::MAX >> 12]];
        let mut last_draws = 0;
        for (kind, weights) in kinds.iter().enumerate() {
            for size in [1, 2, 40, 3000] {
                let entries: Vec<(i32, u32)> = (0..size)
                    .map(|i| (i, weights[crush_hash32_3(i as u32, kind as u32, 7) as usize % weights.len()]))
                    .collect();
                let node = Node::new(-1, 1, BucketAlg::Straw2, &entries, 1).unwrap();
                for x in 0..150 {
                    for r in [0, 3] {
                        assert_eq!(node.choose(None, x, r, 0), straw2(&node, x, r), "{kind} {size} {x} {r}");
                    }
                    let draw = |id: &i32| crush_hash32_3(x, *id as u32, 0) as u16;
                    last_draws += u32::from(node.items.iter().any(|id| draw(id) == u16::MAX));
                }
            }
        }
        assert!(last_draws > 10, "the quirk of the last draw was not met: {last_draws}");
    }
}
