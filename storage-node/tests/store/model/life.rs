//! Long seeded lives of a store: random records, reads, checkpoints, cleaning, full media, and power cuts
//! after any operation, checked against the model.

use super::bench::{SimBench, format_with};
use super::history::{fill, options, steps};
use super::index::MemIndex;
use super::make::{Maker, Mix};
use super::run::Run;
use super::work::Work;
use super::{DATA, SEGMENT};
use trefoil_storage_node::device::Prepare;
use trefoil_storage_node::device::image::{BLOCK, Rng};
use trefoil_storage_node::store::StoreOptions;

/// Runs the life that follows from this seed.
pub fn live(seed: u64) -> Work {
    live_with(seed, 0)
}

/// The same with so many splits of placement groups among 100 records.
pub fn live_with(seed: u64, splits: u64) -> Work {
    let mut rng = Rng::new(seed);
    let of = |rng: &mut Rng, choices: &[u64]| choices[rng.below(choices.len() as u64) as usize];
    let kind = rng.below(6);
    // Two in six: nearly full. One in six: also overwritten all the time, in smaller segments.
    let (crowded, turning) = (kind < 3, kind == 0);
    let (segment, segments) = match kind {
        0 if std::env::var_os("STORE_SIM_TINY").is_some() => (SEGMENT / 2, 24),
        0 => (SEGMENT, of(&mut rng, &[14, 18, 24])),
        1 | 2 => (SEGMENT, of(&mut rng, &[12, 14, 18])),
        _ => (SEGMENT, of(&mut rng, &[24, 40])),
    };
    let mix = Mix {
        objects: 2 + rng.below(6) as u32,
        blocks: if crowded { 150 + rng.below(200) as u32 } else { 1400 },
        large: of(&mut rng, if turning { &[8, 24, 40] } else { &[8, 40, 100] }),
        often_large: if turning { 50 } else { 10 },
        zeros: if turning { 2 } else { 10 },
        deletes: of(&mut rng, &[0, 1, 4]),
        splits,
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
        slow_writes: of(&mut rng, &[0, 0, 30, 200]) as u32,
        slow_reads: of(&mut rng, &[0, 0, 20, 100]) as u32,
        ..SimBench::new(DATA + segments * segment)
    };
    format_with(&bench, segment);
    let index = MemIndex::default();
    let mut run = Run::new(bench, index.clone(), options, Maker::new(seed ^ 0xfeed, mix));
    run.recorder.borrow_mut().segment = segment;
    for life in 0..2 + rng.below(6) {
        let recovered = run.open(seed ^ life << 32);
        if std::env::var("STORE_SIM_SEED").is_ok() {
            eprintln!("life {life}: {:?} {:?}", recovered.how, run.store().stats());
        }
        let n = run.verify(&recovered);
        run.forget(n);
        if crowded && life % 2 == 0 {
            fill(&mut run, segments * segment / BLOCK as u64 * 4 / 5, 300);
        }
        let most = if turning || rng.one_in(6) { 400 } else { 120 };
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
    run.work()
}
