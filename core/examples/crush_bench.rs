//! How long one placement takes: `cargo run --release -p trefoil-core --example crush_bench MAP`.
//!
//! Places 200,000 inputs by the map's first rule with three replicas and prints the mean. Not a
//! test; an example may read a clock and a file, the core may not.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // a benchmark measures time

use std::time::Instant;

use trefoil_core::crush::{CrushMap, Placement, Scratch};

const PLACEMENTS: u32 = 200_000;

fn main() {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("give the path of a CRUSH map in text form");
        return;
    };
    let parsed = std::fs::read_to_string(&path).map(|text| CrushMap::parse(&text));
    let map = match parsed {
        Ok(Ok(map)) => map,
        Ok(Err(error)) => return eprintln!("{path}: {error}"),
        Err(error) => return eprintln!("{path}: {error}"),
    };
    let reweights = map.full_reweights();
    let Some(rule) = map.def().rules.first() else {
        return eprintln!("{path} has no rule");
    };
    let (mut scratch, mut osds) = (Scratch::default(), Vec::new());
    let mut sum = 0i64;
    let start = Instant::now();
    for x in 0..PLACEMENTS {
        let placement =
            Placement { rule_id: rule.id, x, num_rep: 3, reweights: &reweights, choose_args_id: 0 };
        if let Err(error) = map.do_rule_into(&placement, &mut scratch, &mut osds) {
            return eprintln!("{error}");
        }
        sum += osds.iter().map(|&osd| i64::from(osd)).sum::<i64>();
    }
    let mean = start.elapsed().as_nanos() / u128::from(PLACEMENTS);
    println!("{path}, rule {}: {mean} ns per placement (checksum {sum})", rule.name);
}
