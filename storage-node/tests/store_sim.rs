//! The store on a simulated device: long seeded lives of random records, reads, checkpoints, cleaning,
//! full media and power cuts after any operation, checked against a model of what was acknowledged.
//!
//! `STORE_SIM_SEEDS=N` sets the number of seeds, `STORE_SIM_SEED=S` runs one, `STORE_SIM_FIRST=S` says
//! with which to begin. What happens is all in `model/`; short lives with *every* cut are in
//! `store_crash.rs`.

mod model;

use model::bench::{SimBench, format};
use model::history::{fill, options, steps};
use model::index::MemIndex;
use model::make::{Maker, Mix};
use model::run::Run;
use model::{DATA, SEGMENT};
use trefoil_storage_node::device::Prepare;
use trefoil_storage_node::device::image::Rng;
use trefoil_storage_node::store::StoreOptions;

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let of = |rng: &mut Rng, choices: &[u64]| choices[rng.below(choices.len() as u64) as usize];
    let crowded = rng.one_in(3);
    let segments = if crowded { of(&mut rng, &[12, 14, 18]) } else { of(&mut rng, &[24, 40]) };
    let mix = Mix {
        objects: 2 + rng.below(6) as u32,
        blocks: if crowded { 150 + rng.below(200) as u32 } else { 1400 },
        large: of(&mut rng, &[8, 40, 100]),
        deletes: of(&mut rng, &[0, 1, 4]),
        ..Mix::default()
    };
    let options = StoreOptions {
        table_cache_bytes: of(&mut rng, &[1, 4, 4, 16, 256]) * 4096,
        batch_bytes_max: of(&mut rng, &[16, 64, 256, 900]) << 10,
        checkpoint_bytes: of(&mut rng, &[64, 256, 512, 4096]) << 10,
        pending_bytes_max: of(&mut rng, &[512, 4096, 65536]) << 10,
        queued_changes_max: of(&mut rng, &[64, 4096, 1 << 18]) as usize,
        read_bytes_max: of(&mut rng, &[64, 1024, 65536]) << 10,
        ..options()
    };
    let bench = SimBench {
        done_percent: of(&mut rng, &[10, 60, 60, 95]),
        prepare: [Prepare::Nothing, Prepare::Zero, Prepare::Discard][rng.below(3) as usize],
        ..SimBench::new(DATA + segments * SEGMENT)
    };
    format(&bench);
    let index = MemIndex::default();
    let mut run = Run::new(bench, index.clone(), options, Maker::new(seed ^ 0xfeed, mix));
    for life in 0..2 + rng.below(6) {
        let recovered = run.open(seed ^ life << 32);
        if std::env::var("STORE_SIM_SEED").is_ok() {
            eprintln!("life {life}: {:?} {:?}", recovered.how, run.store().stats());
        }
        let n = run.verify(&recovered);
        run.forget(n);
        if crowded && life % 2 == 0 {
            fill(&mut run, segments * 200, 300);
        }
        let most = if rng.one_in(6) { 400 } else { 120 };
        let times = rng.below(most);
        steps(&mut run, times, 1 + rng.below(80));
        if rng.one_in(8) {
            index.refuse(1 + rng.below(3) as u32);
        }
        if rng.one_in(4) {
            run.drain();
            run.audit();
        }
        if rng.one_in(5) {
            run.drain();
            run.close(true);
        } else if let Some(store) = run.store.take() {
            store.into_device().power_cut();
            index.power_cut(rng.one_in(2));
        }
        let versions = index.versions();
        match rng.below(8) {
            0 => index.restore(Default::default()),
            // An index that is older than the log's end is as good as any.
            1 | 2 if !versions.is_empty() => {
                index.restore(versions[rng.below(versions.len() as u64) as usize].clone());
            }
            _ => {}
        }
    }
}

#[test]
fn power_cuts_at_random_points_lose_nothing_acknowledged() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    if let Some(seed) = number("STORE_SIM_SEED") {
        return run(seed);
    }
    let first = number("STORE_SIM_FIRST").unwrap_or(1);
    for seed in first..first + number("STORE_SIM_SEEDS").unwrap_or(100) {
        let result = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = result {
            eprintln!(
                "seed {seed} failed: STORE_SIM_SEED={seed} cargo test -p trefoil-storage-node --test \
                 store_sim power_cuts"
            );
            std::panic::resume_unwind(panic);
        }
    }
}
