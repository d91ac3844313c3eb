//! What a store may say after its device has lied, and where things lie on the device.
//!
//! The rule: bytes that are not right are never given out. A block is as it should be, or bad. State that
//! is not as it should be is reported as lost (N8), but for one case: a last batch that is damaged looks
//! torn, and the state is that before it.

use super::bench::Bench;
use super::run::Run;
use super::{BAD, Blocks, Model, difference};
use trefoil_core::BLOCK_SIZE;
use trefoil_storage_node::device::faulty::Written;
use trefoil_storage_node::store::Recovered;

/// What a store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is there.
    Right,
    /// Everything but the bytes of so many blocks, which are reported as bad.
    Bad(usize),
    /// State is lost, and it was said.
    Lost,
    /// The last batch looks torn.
    Torn,
    /// There is nothing to open it from: the index is gone, and what the newest snapshot rests on.
    Refused,
}

/// The blocks that are bad, if all others are as they should be.
pub fn but_for_bad(model: &Model, seen: &Blocks) -> Option<usize> {
    let mut bad = 0;
    for (at, fill) in seen {
        if model.blocks.get(at) != Some(fill) {
            if *fill != BAD {
                return None;
            }
            bad += 1;
        }
    }
    model.blocks.keys().all(|at| seen.contains_key(at)).then_some(bad)
}

/// Judges a store that has been opened on a device that has lied. `last`: the last batch may be damaged.
pub fn judge<B: Bench>(run: &mut Run<B>, recovered: &Recovered, last: bool) -> Verdict {
    let seen = run.contents();
    if recovered.lost.is_some() {
        for (at, fill) in &seen {
            let known = *fill == BAD || run.ever.get(at).is_some_and(|e| e.contains(fill));
            assert!(known, "{}[{}] has never been {fill:x}", at.0, at.1);
        }
        return Verdict::Lost;
    }
    if run.now.durable == recovered.durable
        && let Some(bad) = but_for_bad(&run.now, &seen)
    {
        return if bad == 0 { Verdict::Right } else { Verdict::Bad(bad) };
    }
    let mut model = run.base.clone();
    let mut known = std::iter::once(None).chain(run.records.iter().map(Some));
    let torn = known.any(|record| {
        if let Some(record) = record {
            model.apply(record);
        }
        model.durable == recovered.durable && but_for_bad(&model, &seen).is_some()
    });
    if torn && last {
        return Verdict::Torn;
    }
    panic!(
        "the state is {}, and nobody was told: {}",
        if torn { "an older one" } else { "none that ever was" },
        difference(&run.base, &run.now, &recovered.durable, &seen, run.records.len(), &recovered.how)
    );
}

/// What a block on the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Of a batch's header.
    Header,
    /// A client's.
    Data,
    /// Of an object's table.
    Page,
}

/// True for a write of a batch.
pub fn is_batch(write: &Written) -> bool {
    write.bufs.first().is_some_and(|b| b.starts_with(b"TRFLBATC"))
}

/// The blocks of a batch, with their offsets and their first bytes.
pub fn blocks_of(write: &Written) -> Vec<(u64, Kind, u64)> {
    let bytes = write.bufs.concat();
    let headers = bytes.get(20..24).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("4 bytes")));
    let kind = |n: usize, block: &[u8]| {
        if n < headers as usize {
            Kind::Header
        } else if block[8..] == block[..BLOCK_SIZE - 8] && block[0] != 0 {
            Kind::Data
        } else {
            Kind::Page
        }
    };
    let fill = |b: &[u8]| b.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    bytes
        .chunks(BLOCK_SIZE)
        .enumerate()
        .map(|(n, b)| (write.offset + (n * BLOCK_SIZE) as u64, kind(n, b), fill(b)))
        .collect()
}
