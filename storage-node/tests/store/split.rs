//! Placement groups that are split, in a store: everything that its long lives try (power cuts after any operation,
//! checkpoints, cleaning, an older index, full media), with a split among every twenty-five records.
//!
//! `STORE_SEED=N` tries other lives, `STORE_SIM_SEED=N` that one.

use crate::model::life::live_with;
use crate::model::other_seed;

/// Splits among 100 records.
const SPLITS: u64 = 4;

#[test]
fn a_store_whose_placement_groups_are_split_keeps_everything() {
    let first = other_seed().unwrap_or(0);
    let one = std::env::var("STORE_SIM_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = one.map_or(first..first + 12, |seed| seed..seed + 1);
    let mut blocks = 0;
    for seed in seeds {
        blocks += live_with(seed, SPLITS).blocks;
    }
    assert!(blocks > 0, "nothing was written");
}
