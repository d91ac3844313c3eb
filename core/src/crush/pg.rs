//! From objects to placement groups.
//!
//! Ceph's arithmetic (`stable_mod` and its masks, names to hashes, groups to CRUSH inputs), and
//! Trefoil's own rule for the objects of a volume. Pure functions; which nodes a group lives on
//! is the business of [`CrushMap`](super::CrushMap).

use super::hash::{ceph_str_hash_rjenkins, crush_hash32_2, crush_hash32_3};

/// The byte between a namespace and a name in what Ceph hashes.
const NAMESPACE_SEPARATOR: u8 = 0x1f;

/// `ceph_stable_mod`: a remainder of `x` by `b` that moves little when `b` grows.
///
/// `mask` is [`pg_mask`] of `b`. For a power of two it is `x % b`; between two powers of two,
/// each growth by one splits one remainder and leaves the others alone.
#[inline]
pub fn ceph_stable_mod(x: u32, b: u32, mask: u32) -> u32 {
    if x & mask < b { x & mask } else { x & (mask >> 1) }
}

/// `calc_pg_masks`: the least 2^n - 1 that is not less than `pg_num` - 1.
///
/// A `pg_num` of 0 has no groups; it is treated as 1, so that no input can divide by zero.
#[inline]
pub fn pg_mask(pg_num: u32) -> u32 {
    let greatest = pg_num.saturating_sub(1);
    u32::MAX.checked_shr(greatest.leading_zeros()).unwrap_or(0)
}

/// The raw 32-bit hash of an object's name in Ceph (`object_hash` rjenkins): the name's bytes,
/// or with a namespace: namespace, byte 0x1f, name.
pub fn ceph_object_hash(namespace: &str, name: &str) -> u32 {
    if namespace.is_empty() {
        return ceph_str_hash_rjenkins(name.as_bytes());
    }
    let mut bytes = Vec::with_capacity(namespace.len() + 1 + name.len());
    bytes.extend_from_slice(namespace.as_bytes());
    bytes.push(NAMESPACE_SEPARATOR);
    bytes.extend_from_slice(name.as_bytes());
    ceph_str_hash_rjenkins(&bytes)
}

/// The CRUSH input `x` of placement group `pg` of `pool` in Ceph, for a pool with the flag
/// `hashpspool` (each pool since 2013): pools do not lie on top of each other.
#[inline]
pub fn ceph_pg_to_x(pool: u32, pg: u32, pgp_num: u32) -> u32 {
    crush_hash32_2(ceph_stable_mod(pg, pgp_num.max(1), pg_mask(pgp_num)), pool)
}

/// The placement group of one object of a Trefoil volume, out of `pg_num` (0 counts as 1).
///
/// `stable_mod(rjenkins1(low half of the volume id, high half, object index), pg_num)`. The
/// hash does not depend on `pg_num`, so growing `pg_num` by any step moves an object only from
/// a group to a group that splits off from it: see [`pg_split_parent`]. The formula is part of
/// the on-disk format: it may never change for existing volumes.
#[inline]
pub fn object_pg(volume_id: u64, object_index: u32, pg_num: u32) -> u32 {
    let hash = crush_hash32_3(volume_id as u32, (volume_id >> 32) as u32, object_index);
    ceph_stable_mod(hash, pg_num.max(1), pg_mask(pg_num))
}

/// The group out of `pg_num` that `pg` was part of, for any `pg` of a later, greater `pg_num`.
///
/// A group that existed already is its own parent.
#[inline]
pub fn pg_split_parent(pg: u32, pg_num: u32) -> u32 {
    ceph_stable_mod(pg, pg_num.max(1), pg_mask(pg_num))
}

/// The groups below `to` that split off from `pg` when a pool grows from `from` groups to `to`: those of whom
/// [`pg_split_parent`] says so, in no particular order. None for a `pg` that did not exist.
pub fn pg_split_children(pg: u32, from: u32, to: u32) -> Vec<u32> {
    let mut found = Vec::new();
    if pg >= from {
        return found;
    }
    // A child is its parent and one more bit above all of the parent's. One that was there before has children
    // of its own.
    let mut left = vec![pg];
    while let Some(it) = left.pop() {
        let mut bit = u64::from(it).checked_add(1).map_or(1, u64::next_power_of_two);
        while u64::from(it) + bit < u64::from(to) {
            let child = it + bit as u32;
            if child >= from {
                found.push(child);
                left.push(child);
            }
            bit <<= 1;
        }
    }
    found
}

/// The groups that a group may have split off from, directly or not, the nearest first.
pub fn pg_ancestors(pg: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(pg), |pg| pg.checked_ilog2().map(|top| pg & !(1 << top))).skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_the_next_power_of_two_less_one() {
        let cases = [(0, 0), (1, 0), (2, 1), (3, 3), (4, 3), (5, 7), (8, 7), (12, 15), (256, 255)];
        for (pg_num, mask) in cases {
            assert_eq!(pg_mask(pg_num), mask, "pg_num {pg_num}");
        }
        assert_eq!(pg_mask(u32::MAX), u32::MAX);
    }

    #[test]
    fn the_children_of_a_split_are_those_whose_parent_it_is() {
        for (from, to) in [(1, 2), (1, 64), (3, 5), (8, 12), (12, 16), (10, 32), (16, 16), (31, 77)] {
            for pg in 0..to {
                let mut found = pg_split_children(pg, from, to);
                found.sort_unstable();
                let wanted: Vec<u32> =
                    (from..to).filter(|it| pg < from && pg_split_parent(*it, from) == pg).collect();
                assert_eq!(found, wanted, "{pg} from {from} to {to}");
            }
            for pg in from..to {
                assert!(pg_ancestors(pg).any(|it| it == pg_split_parent(pg, from)));
            }
        }
        assert_eq!(pg_ancestors(28).collect::<Vec<_>>(), [12, 4, 0]);
        assert_eq!(pg_ancestors(0).count(), 0);
    }

    #[test]
    fn growing_pg_num_moves_objects_only_to_split_children() {
        let steps = [1u32, 2, 3, 5, 8, 12, 13, 48, 64, 96, 100, 256, 1000, 1024, 4096];
        for (i, &old) in steps.iter().enumerate() {
            for &new in &steps[i..] {
                let mut moved = 0;
                for object in 0..4000u32 {
                    let volume = 0x1234_5678_0000_0000 + u64::from(object % 7);
                    let before = object_pg(volume, object, old);
                    let after = object_pg(volume, object, new);
                    assert!(before < old && after < new);
                    if after != before {
                        moved += 1;
                        assert!(after >= old, "moved to a group that existed: {old} to {new}");
                        assert_eq!(pg_split_parent(after, old), before, "{old} to {new}");
                    }
                }
                assert_eq!(moved == 0, old == new, "{old} to {new}");
            }
        }
    }

    /// Pinned, because it says where the objects of every volume are.
    #[test]
    fn object_pg_never_changes() {
        let places: Vec<u32> = (0..8).map(|index| object_pg(7, index, 1000)).collect();
        assert_eq!(places, PLACES_OF_VOLUME_7);
        assert_ne!(object_pg(7 << 32, 1, 1 << 20), object_pg(7, 1, 1 << 20));
    }

    const PLACES_OF_VOLUME_7: [u32; 8] = [981, 135, 143, 879, 245, 393, 871, 43];

    #[test]
    fn objects_spread_evenly() {
        let mut count = [0u32; 128];
        for object in 0..128_000 {
            count[object_pg(42, object, 128) as usize] += 1;
        }
        // 1000 each on average; six standard deviations are 190.
        assert!(count.iter().all(|&n| (810..=1190).contains(&n)), "{count:?}");
    }
}
