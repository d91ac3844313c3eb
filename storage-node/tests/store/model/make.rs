//! Records at random, from a seed.

use super::{Model, block, data_op, head, object, write};
use bytes::Bytes;
use trefoil_core::checksum::HOLE;
use trefoil_core::crush::object_pg;
use trefoil_core::message::{Line, WriteOp};
use trefoil_core::record::{Durable, Patch, Promise, Record};
use trefoil_core::*;
use trefoil_storage_node::device::image::Rng;

/// What records are like.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Objects of each of two volumes.
    pub objects: u32,
    /// Blocks of each object.
    pub blocks: u32,
    /// Blocks in the largest write.
    pub large: u64,
    /// Out of 100 writes: large ones.
    pub often_large: u64,
    /// Out of 100: records without data (fences, promises, lines).
    pub plain: u64,
    /// Out of 100: zeroings.
    pub zeros: u64,
    /// Out of 100: repairs.
    pub installs: u64,
    /// Out of 100: heals.
    pub heals: u64,
    /// Out of 100: deletes of a volume, or of a placement group that the node leaves.
    pub deletes: u64,
    /// Out of 100: splits of a placement group.
    pub splits: u64,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix {
            objects: 6,
            blocks: 1400,
            large: 100,
            often_large: 10,
            plain: 13,
            zeros: 10,
            installs: 10,
            heals: 4,
            deletes: 1,
            splits: 0,
        }
    }
}

/// What a block that an Install calls bad should be filled with.
pub fn bad_fill(block: u32) -> u64 {
    0xbad0_0001 | u64::from(block) << 40
}

/// Makes records.
#[derive(Clone, Debug)]
pub struct Maker {
    /// Of everything.
    pub rng: Rng,
    /// What they are like.
    pub mix: Mix,
    /// The older of the two volumes in use.
    pub volume: u64,
    seq: u64,
    /// What was split so far, as of the last state that it was shown, and nothing else.
    split: Durable,
}

/// Placement groups that there are at first.
const FIRST_PGS: u32 = 3;
/// And at last, where they are split.
const PGS_MAX: u32 = 40;

impl Maker {
    /// From a seed.
    pub fn new(seed: u64, mix: Mix) -> Maker {
        Maker { rng: Rng::new(seed), mix, volume: 1, seq: 0, split: Durable::default() }
    }
    /// An object.
    pub fn object(&mut self) -> ObjectId {
        let volume = self.volume + self.rng.below(2);
        let object = object(volume, self.rng.below(u64::from(self.mix.objects)) as u32);
        if self.mix.splits == 0 {
            return object;
        }
        self.split.place(self.root(object))
    }
    /// A placement group that there is.
    fn pg(&mut self) -> PgId {
        let all = (0..PGS_MAX).map(|pg| PgId { pool: PoolId(1), pg });
        let there = |pg: &PgId| pg.pg < FIRST_PGS || self.split.pgs.contains_key(pg);
        let known: Vec<PgId> = all.filter(there).collect();
        known[self.rng.below(known.len() as u64) as usize]
    }
    /// Of a placement group that there is: to some number of them. Each may be as far as it likes.
    fn split(&mut self) -> Record<Bytes> {
        let pg = self.pg();
        let from = self.split.pgs.get(&pg).map_or(FIRST_PGS, |state| state.level(FIRST_PGS));
        let to = (from + self.rng.below(12) as u32).min(PGS_MAX);
        Record::Split { pg, from, to }
    }
    /// What is there now, in which something may have been split.
    pub fn sees(&mut self, now: &Durable) {
        if self.mix.splits > 0 {
            self.split.pgs.clone_from(&now.pgs);
        }
    }
    /// The object as it was named before anything was split.
    pub fn root(&self, object: ObjectId) -> ObjectId {
        if self.mix.splits == 0 {
            return object;
        }
        let pg = object_pg(object.group.volume.0, object.index, FIRST_PGS);
        ObjectId { group: GroupId { pg: PgId { pg, ..object.group.pg }, ..object.group }, ..object }
    }
    fn fill(&mut self) -> u64 {
        self.seq << 20 | self.rng.below(1 << 20) | 1
    }
    /// A range within an object, of up to `most` blocks.
    pub fn range(&mut self, most: u64) -> BlockRange {
        let all = u64::from(self.mix.blocks);
        let count = 1 + self.rng.below(most.min(all));
        BlockRange::new(self.rng.below(all - count + 1) as u32, count as u32)
    }
    /// The next record, as of this state.
    pub fn record(&mut self, now: &Model) -> Record<Bytes> {
        self.seq += 1;
        let mix = self.mix.clone();
        let mut dice = self.rng.below(100);
        let mut falls = |percent: u64| {
            let falls = dice < percent;
            dice = if falls { u64::MAX } else { dice - percent };
            falls
        };
        if falls(mix.splits) {
            self.split()
        } else if falls(mix.plain) {
            self.plain()
        } else if falls(mix.zeros) {
            let object = self.object();
            let op = WriteOp::Zero { blocks: self.range(u64::from(mix.blocks) / 2) };
            Record::Write { object, head: head(self.seq), snap: 0, op }
        } else if falls(mix.installs) {
            self.install()
        } else if falls(mix.heals) {
            self.heal(now)
        } else if falls(mix.deletes) {
            if self.rng.one_in(2) {
                // Unlike a volume it may come back, with the same objects.
                let pg = self.pg();
                return Record::Leave { pg, epoch: Epoch(self.rng.below(9)) };
            }
            let volume = VolumeId(self.volume);
            self.volume += 1;
            Record::DeleteVolume { volume }
        } else {
            let most = match self.rng.below(100) {
                n if n < mix.often_large => mix.large,
                n if n < mix.often_large + 20 => mix.large.min(8),
                _ => 1,
            };
            self.write(most)
        }
    }
    /// A write of up to `most` blocks.
    pub fn write(&mut self, most: u64) -> Record<Bytes> {
        self.seq += 1;
        let object = self.object();
        let range = self.range(most);
        let fills: Vec<u64> = (0..range.count).map(|_| self.fill()).collect();
        write(object, self.seq, range.first, &fills)
    }
    fn plain(&mut self) -> Record<Bytes> {
        let group = self.object().group;
        let rng = &mut self.rng;
        let promise = Promise { ballot: Ballot(self.seq << 20), epoch: Epoch(rng.below(9)) };
        match rng.below(9) {
            0 | 1 => Record::Fence { volume: group.volume, generation: Generation(rng.below(50)) },
            2..=4 => Record::Open { group, promised: promise, epoch: promise.epoch },
            5 if rng.one_in(3) => Record::LostState { fences: vec![(group.volume, Generation(60))] },
            8 => Record::Epoch {
                pg: group.pg,
                epoch: promise.epoch,
                fences: vec![(group.volume, Generation(rng.below(50)))],
            },
            _ => Record::Settle {
                group,
                settled: promise,
                add: vec![
                    (rng.below(9) as u32, Line::At(promise.ballot)),
                    (20 + rng.below(2000) as u32, Line::Lost),
                ],
                remove: vec![rng.below(9) as u32],
            },
        }
    }
    fn install(&mut self) -> Record<Bytes> {
        let o = self.object();
        let base = self.rng.below(u64::from(self.mix.blocks) - 100) as u32;
        let mut patch = Patch { blocks: Vec::new(), data: Bytes::new(), bad: Vec::new() };
        let mut data = Vec::new();
        for n in 0..self.rng.below(20) as u32 {
            let fill = self.fill();
            let (bytes, sum) = block(o, base + n * 2, fill);
            if self.rng.one_in(4) {
                patch.blocks.push((base + n * 2, HOLE));
            } else {
                patch.blocks.push((base + n * 2, sum));
                data.extend(bytes);
            }
        }
        patch.data = data.into();
        let bad = base + 90;
        patch.bad.push((bad, block(o, bad, bad_fill(bad)).1));
        let writes = vec![
            data_op(o, base + 3, &[self.fill(), self.fill()]),
            WriteOp::Zero { blocks: BlockRange::new(base, 2) },
        ];
        Record::Install { object: o, head: head(self.seq), patches: vec![patch], writes }
    }
    /// Of a block that is bad, if there is one; else one that must change nothing.
    fn heal(&mut self, now: &Model) -> Record<Bytes> {
        let mut bad: Vec<_> = now.bad.iter().collect();
        bad.sort_unstable();
        if bad.is_empty() || self.rng.one_in(5) {
            let object = self.object();
            let (bytes, _) = block(object, 7, 3);
            return Record::Heal { object, block: 7, checksum: 99, data: bytes.into() };
        }
        let (&(object, n), &(checksum, fill)) = bad[self.rng.below(bad.len() as u64) as usize];
        Record::Heal { object, block: n, checksum, data: block(object, n, fill).0.into() }
    }
}
