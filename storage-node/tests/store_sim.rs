//! The store on a simulated device: seeded runs of random records, reads, checkpoints and power cuts
//! after any operation, checked against a model of what was acknowledged.
//!
//! `STORE_SIM_SEEDS=N` sets the number of seeds, `STORE_SIM_SEED=S` runs one.

use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::message::{Line, WriteOp};
use trefoil_core::record::{Durable, Patch, Promise, Record};
use trefoil_core::*;
use trefoil_storage_node::device::Device;
use trefoil_storage_node::device::sim::{Rng, SimDevice, SimMedium};
use trefoil_storage_node::store::index::{Delta, Index, Meta};
use trefoil_storage_node::store::{
    How, ReadMode, Recovered, Store, StoreEvent, StoreOptions, Superblock, format_device,
};

/// An index in memory that survives the store, with commits that take a while and may be lost.
#[derive(Clone, Default)]
struct MemIndex(Rc<RefCell<Mem>>);

#[derive(Default)]
struct Mem {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    meta: Option<Meta>,
    running: Option<(Delta, u32)>,
    refuse: bool,
}

impl MemIndex {
    fn put(mem: &mut Mem, delta: Delta) {
        for (key, value) in delta.entries {
            match value {
                Some(value) => mem.entries.insert(key, value),
                None => mem.entries.remove(&key),
            };
        }
        mem.meta = Some(delta.meta);
    }
    /// Power cut: a commit under way is there or not.
    fn power_cut(&self, rng: &mut Rng) {
        let mut mem = self.0.borrow_mut();
        if let Some((delta, _)) = mem.running.take()
            && rng.one_in(2)
        {
            MemIndex::put(&mut mem, delta);
        }
    }
    fn delete(&self) {
        *self.0.borrow_mut() = Mem::default();
    }
    fn snapshot(&self) -> (BTreeMap<Vec<u8>, Vec<u8>>, Option<Meta>) {
        let mem = self.0.borrow();
        (mem.entries.clone(), mem.meta)
    }
    fn restore(&self, (entries, meta): (BTreeMap<Vec<u8>, Vec<u8>>, Option<Meta>)) {
        *self.0.borrow_mut() = Mem { entries, meta, ..Mem::default() };
    }
}

impl Index for MemIndex {
    fn load(&mut self, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String> {
        let mem = self.0.borrow();
        for (key, value) in &mem.entries {
            if !each(key, value) {
                return Err("cannot be understood".to_owned());
            }
        }
        Ok(mem.meta)
    }
    fn discard(&mut self) -> Result<(), String> {
        self.delete();
        Ok(())
    }
    fn commit(&mut self, delta: Delta) {
        self.0.borrow_mut().running = Some((delta, 3));
    }
    fn finished(&mut self) -> Option<Result<(), String>> {
        let mut mem = self.0.borrow_mut();
        let (delta, left) = mem.running.take()?;
        if left > 0 {
            mem.running = Some((delta, left - 1));
            return None;
        }
        if std::mem::take(&mut mem.refuse) {
            return Some(Err("told to refuse".to_owned()));
        }
        MemIndex::put(&mut mem, delta);
        Some(Ok(()))
    }
}

type Sim = Store<SimDevice, MemIndex>;

const SEGMENT: u64 = 1 << 20;

fn medium(segments: u64) -> SimMedium {
    let medium = SimMedium::new((2 << 20) + segments * SEGMENT);
    let mut device = medium.device(1).expect("device");
    let sb = Superblock::new(device.size(), SEGMENT, Incarnation(0x7777), [3; 16], NodeId(1))
        .expect("large enough");
    format_device(&mut device, &sb).expect("formatted");
    medium
}

fn options() -> StoreOptions {
    StoreOptions {
        table_cache_bytes: 4 * 4096,
        batch_bytes_max: 256 << 10,
        checkpoint_bytes: 512 << 10,
        ..StoreOptions::default()
    }
}

fn open(medium: &SimMedium, index: &MemIndex, seed: u64) -> (Sim, Recovered) {
    let device = medium.device(seed).expect("device");
    Store::open_on(device, index.clone(), options(), &mut |_, _| ()).expect("opens")
}

fn object(volume: u64, index: u32) -> ObjectId {
    ObjectId {
        group: GroupId { volume: VolumeId(volume), pg: PgId { pool: PoolId(1), pg: index % 3 } },
        index,
    }
}

fn head(seq: u64) -> Head {
    Head { ballot: Ballot(1 << 20), seq }
}

/// Bytes of a block and their checksum.
fn block(object: ObjectId, block: u32, fill: u64) -> (Vec<u8>, u64) {
    let data = fill.to_le_bytes().repeat(BLOCK_SIZE / 8);
    let sum = block_checksum(object.group.volume, object.index, block, &data);
    (data, sum)
}

fn data_op(object: ObjectId, first: u32, fills: &[u64]) -> WriteOp<Bytes> {
    let (mut data, mut sums) = (Vec::new(), Vec::new());
    for (n, fill) in fills.iter().enumerate() {
        let (bytes, sum) = block(object, first + n as u32, *fill);
        data.extend(bytes);
        sums.push(sum);
    }
    WriteOp::Data {
        blocks: BlockRange::new(first, fills.len() as u32),
        checksums: sums.into(),
        data: data.into(),
    }
}

fn write(object: ObjectId, seq: u64, first: u32, fills: &[u64]) -> Record<Bytes> {
    Record::Write { object, head: head(seq), snap: 0, op: data_op(object, first, fills) }
}

/// What a sequence of records adds up to, with the fill of each block (0: hole; MAX: bad).
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    durable: Durable,
    blocks: HashMap<(ObjectId, u32), u64>,
}

const BAD: u64 = u64::MAX;

impl Model {
    fn range(&self, o: ObjectId, range: BlockRange) -> Vec<u64> {
        (range.first..range.end()).map(|n| self.blocks.get(&(o, n)).copied().unwrap_or(0)).collect()
    }
    fn op(&mut self, object: ObjectId, op: &WriteOp<Bytes>) {
        let range = op.blocks();
        for n in 0..range.count {
            let fill = match op {
                WriteOp::Data { data, .. } => {
                    let at = n as usize * BLOCK_SIZE;
                    u64::from_le_bytes(data[at..at + 8].try_into().expect("8 bytes"))
                }
                WriteOp::Zero { .. } => 0,
            };
            self.blocks.insert((object, range.first + n), fill);
        }
    }
    fn apply(&mut self, record: &Record<Bytes>) {
        self.durable.apply(record);
        match record {
            Record::Write { object, op, .. } => self.op(*object, op),
            Record::Install { object, patches, writes, .. } => {
                for patch in patches {
                    let mut at = 0;
                    for (block, sum) in &patch.blocks {
                        let fill = if *sum == HOLE {
                            0
                        } else {
                            at += BLOCK_SIZE;
                            let bytes = &patch.data[at - BLOCK_SIZE..at - BLOCK_SIZE + 8];
                            u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
                        };
                        self.blocks.insert((*object, *block), fill);
                    }
                    for (block, _) in &patch.bad {
                        self.blocks.insert((*object, *block), BAD);
                    }
                }
                for op in writes {
                    self.op(*object, op);
                }
            }
            Record::DeleteVolume { volume } => {
                self.blocks.retain(|(o, _), _| o.group.volume != *volume);
            }
            _ => {}
        }
        self.blocks.retain(|_, fill| *fill != 0);
    }
}

struct Run {
    rng: Rng,
    store: Option<Sim>,
    ticket: u64,
    acked: u64,
    /// Records not acknowledged yet.
    tail: Vec<(u64, Record<Bytes>)>,
    /// As of the last acknowledged record; as of the last appended one.
    acked_model: Model,
    now: Model,
    reads: HashMap<u64, (ObjectId, BlockRange, Vec<u64>)>,
    token: u64,
    seq: u64,
    volume: u64,
    failed: Option<String>,
}

impl Run {
    fn record(&mut self) -> Record<Bytes> {
        let rng = &mut self.rng;
        self.seq += 1;
        let seq = self.seq;
        let fill = |rng: &mut Rng| seq << 20 | rng.below(1 << 20) | 1;
        let o = object(self.volume + rng.below(2), rng.below(6) as u32);
        let promise = Promise { ballot: Ballot(seq << 20), epoch: Epoch(rng.below(9)) };
        match rng.below(40) {
            0 => Record::Fence { volume: o.group.volume, generation: Generation(rng.below(50)) },
            1 | 2 => Record::Open { group: o.group, promised: promise, epoch: promise.epoch },
            3 | 4 => Record::Settle {
                group: o.group,
                settled: promise,
                add: vec![
                    (rng.below(9) as u32, Line::At(promise.ballot)),
                    (20 + rng.below(2000) as u32, Line::Lost),
                ],
                remove: vec![rng.below(9) as u32],
            },
            5..=8 => Record::Write {
                object: o,
                head: head(seq),
                snap: 0,
                op: WriteOp::Zero {
                    blocks: BlockRange::new(rng.below(900) as u32, 1 + rng.below(600) as u32),
                },
            },
            9..=12 => {
                let base = rng.below(500) as u32;
                let mut patch =
                    Patch { blocks: Vec::new(), data: Bytes::new(), bad: vec![(base + 90, 12345)] };
                let mut data = Vec::new();
                for n in 0..rng.below(20) as u32 {
                    let (bytes, sum) = block(o, base + n * 2, fill(rng));
                    if rng.one_in(4) {
                        patch.blocks.push((base + n * 2, HOLE));
                    } else {
                        patch.blocks.push((base + n * 2, sum));
                        data.extend(bytes);
                    }
                }
                patch.data = data.into();
                let writes = vec![
                    data_op(o, base + 3, &[fill(rng), fill(rng)]),
                    WriteOp::Zero { blocks: BlockRange::new(base, 2) },
                ];
                Record::Install { object: o, head: head(seq), patches: vec![patch], writes }
            }
            13 if rng.one_in(4) => {
                let volume = VolumeId(self.volume);
                self.volume += 1;
                Record::DeleteVolume { volume }
            }
            14 if rng.one_in(4) => Record::LostState { fences: vec![(o.group.volume, Generation(60))] },
            15 => {
                // A heal that must change nothing: its checksum is nowhere.
                let (bytes, _) = block(o, 7, 3);
                Record::Heal { object: o, block: 7, checksum: 99, data: bytes.into() }
            }
            _ => {
                let n = match rng.below(10) {
                    0 => rng.below(100),
                    1 | 2 => rng.below(8),
                    _ => 0,
                };
                let fills: Vec<u64> = (0..=n).map(|_| fill(rng)).collect();
                write(o, seq, rng.below(1400) as u32, &fills)
            }
        }
    }

    fn step(&mut self) {
        let Some(mut store) = self.store.take() else {
            return;
        };
        for _ in 0..self.rng.below(4) {
            let record = self.record();
            if !store.can_accept() || u64::from(record.data_blocks()) > store.room_blocks() {
                continue;
            }
            self.ticket += 1;
            self.now.apply(&record);
            store.append(self.ticket, record.clone());
            self.tail.push((self.ticket, record));
        }
        for _ in 0..self.rng.below(3) {
            let o = object(self.volume + self.rng.below(2), self.rng.below(6) as u32);
            let most = if self.rng.one_in(4) { 300 } else { 3 };
            let range = BlockRange::new(self.rng.below(1400) as u32, 1 + self.rng.below(most) as u32);
            self.token += 1;
            store.read(self.token, o, range, ReadMode::All);
            let expected = self.now.range(o, range);
            self.reads.insert(self.token, (o, range, expected));
        }
        if !self.rng.one_in(3) {
            store.submit();
        }
        let mut events = Vec::new();
        if !self.rng.one_in(3) {
            store.poll(&mut events);
        }
        self.store = Some(store);
        self.take(events);
    }

    fn take(&mut self, events: Vec<StoreEvent>) {
        for event in events {
            match event {
                StoreEvent::Durable { up_to_ticket } => {
                    assert!(up_to_ticket >= self.acked && up_to_ticket <= self.ticket);
                    self.acked = up_to_ticket;
                    while self.tail.first().is_some_and(|t| t.0 <= up_to_ticket) {
                        let (_, record) = self.tail.remove(0);
                        self.acked_model.apply(&record);
                    }
                }
                StoreEvent::Read { token, checksums, data, bad } => {
                    let (o, range, expected) = self.reads.remove(&token).expect("asked for");
                    let seen = decode(o, range, &checksums, &data, &bad);
                    assert_eq!(seen, Some(expected), "read of {o} {range:?} is not as of its call");
                }
                StoreEvent::Failed { why } => self.failed = Some(why),
                StoreEvent::BadBlock { object, block, .. } => panic!("bad {object} {block}"),
                StoreEvent::LostTable { object, .. } => panic!("lost table of {object}"),
            }
        }
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            let store = self.store.as_mut().expect("open");
            store.submit();
            let mut events = Vec::new();
            store.poll(&mut events);
            self.take(events);
            if self.reads.is_empty() && self.tail.is_empty() {
                return;
            }
        }
        panic!(
            "stuck: {} reads, {} records, {:?}",
            self.reads.len(),
            self.tail.len(),
            self.store.as_ref().map(Store::stats)
        );
    }

    /// After recovery: some prefix of what was appended, at least what was acknowledged.
    fn settle(&mut self, recovered: &Recovered) {
        let mut model = self.acked_model.clone();
        let mut tail = std::mem::take(&mut self.tail);
        let mut objects: Vec<ObjectId> = model.blocks.keys().map(|k| k.0).collect();
        objects.extend(tail.iter().filter_map(|(_, r)| match r {
            Record::Write { object, .. } | Record::Install { object, .. } => Some(*object),
            _ => None,
        }));
        objects.sort_unstable();
        objects.dedup();
        let mut seen = HashMap::new();
        for o in objects {
            let all = BlockRange::new(0, 2048);
            for (n, fill) in self.content(o, all).into_iter().enumerate() {
                if fill != 0 {
                    seen.insert((o, n as u32), fill);
                }
            }
        }
        tail.reverse();
        let first = (model.clone(), tail.len());
        while model.durable != recovered.durable || model.blocks != seen {
            let Some((_, record)) = tail.pop() else {
                panic!(
                    "what was recovered is no prefix that holds every acknowledged record: {}",
                    difference(&first.0, &model, &recovered.durable, &seen, first.1, &recovered.how)
                );
            };
            model.apply(&record);
        }
        self.acked_model = model.clone();
        self.now = model;
        self.reads.clear();
    }

    /// What the store says of an object.
    fn content(&mut self, o: ObjectId, range: BlockRange) -> Vec<u64> {
        let store = self.store.as_mut().expect("open");
        store.read(7, o, range, ReadMode::All);
        let mut events = Vec::new();
        while events.is_empty() {
            store.submit();
            store.poll(&mut events);
        }
        match &events[..] {
            [StoreEvent::Read { checksums, data, bad, .. }] => {
                decode(o, range, checksums, data, bad).expect("consistent")
            }
            other => panic!("{other:?}"),
        }
    }
}

/// For a failing seed: what differs from the acknowledged state, and from all that was appended.
fn difference(
    acked: &Model,
    all: &Model,
    durable: &Durable,
    seen: &HashMap<(ObjectId, u32), u64>,
    tail: usize,
    how: &How,
) -> String {
    let mut text = format!("{how:?}, {tail} records not acknowledged\n");
    for (name, model) in [("acknowledged", acked), ("appended", all)] {
        let mut blocks: Vec<_> = model.blocks.keys().chain(seen.keys()).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.retain(|k| model.blocks.get(k) != seen.get(k));
        text += &format!("{name}: {} blocks differ", blocks.len());
        for k in blocks.iter().take(4) {
            let of = |fill: Option<&u64>| fill.map(|f| (f >> 20, f & 0xfffff));
            text += &format!(", {}[{}] is {:?} not {:?}", k.0, k.1, of(seen.get(k)), of(model.blocks.get(k)));
        }
        for (g, state) in &durable.groups {
            if model.durable.groups.get(g) != Some(state) {
                text += &format!(
                    "\n  {g}: recovered {:?} {:?} lost {} heads {:?} behind {}",
                    state.promised,
                    state.settled,
                    state.lost,
                    state.objects,
                    state.behind.len()
                );
                text += &format!("\n  expected {:?}", model.durable.groups.get(g));
            }
        }
        text += &format!(
            "\n  groups {} of {}, rest equal {}\n",
            durable.groups.len(),
            model.durable.groups.len(),
            (&durable.fences, &durable.pgs, durable.amnesia)
                == (&model.durable.fences, &model.durable.pgs, model.durable.amnesia)
        );
    }
    text
}

/// The fills of a read's answer; `None` if it does not hang together.
fn decode(o: ObjectId, range: BlockRange, checksums: &[u64], data: &[u8], bad: &[u32]) -> Option<Vec<u64>> {
    let mut parts = data.chunks(BLOCK_SIZE);
    let mut bad = bad.iter().copied().peekable();
    let mut fills = Vec::new();
    for n in range.first..range.end() {
        let sum = checksums[(n - range.first) as usize];
        fills.push(if sum == HOLE {
            0
        } else if bad.next_if_eq(&n).is_some() {
            BAD
        } else {
            let bytes = parts.next()?;
            let fill = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            if block(o, n, fill) != (bytes.to_vec(), sum) {
                return None;
            }
            fill
        });
    }
    (parts.next().is_none() && bad.next().is_none()).then_some(fills)
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let medium = medium(24);
    let index = MemIndex::default();
    let mut run = Run {
        rng: rng.clone(),
        store: None,
        ticket: 0,
        acked: 0,
        tail: Vec::new(),
        acked_model: Model::default(),
        now: Model::default(),
        reads: HashMap::new(),
        token: 100,
        seq: 0,
        volume: 1,
        failed: None,
    };
    let mut position = 0;
    let mut old = None;
    for life in 0..2 + rng.below(6) {
        let (mut store, recovered) = open(&medium, &index, seed ^ life << 32);
        if std::env::var("STORE_SIM_SEED").is_ok() {
            eprintln!("life {life}: {:?} {:?}", recovered.how, store.stats());
        }
        assert!(recovered.log_position >= position, "the position went back");
        assert_eq!(recovered.lost, None);
        assert!(recovered.how.damage.is_empty(), "{:?}", recovered.how);
        store_sanity(&mut store);
        run.store = Some(store);
        run.settle(&recovered);
        for _ in 0..rng.below(120) {
            run.step();
        }
        if rng.one_in(8) {
            index.0.borrow_mut().refuse = true;
        }
        if rng.one_in(4) {
            run.drain();
        }
        assert_eq!(run.failed, None);
        let mut store = run.store.take().expect("open");
        store_sanity(&mut store);
        position = store.log_position();
        if rng.one_in(5) {
            run.store = Some(store);
            run.drain();
            let store = run.store.take().expect("open");
            let _ = store.shutdown();
        } else {
            store.into_device().power_cut();
            index.power_cut(&mut rng);
        }
        match rng.below(8) {
            0 => index.delete(),
            1 => old = Some(index.snapshot()),
            2 => {
                // An index that is older than the log's end is as good as any.
                if let Some(old) = old.clone() {
                    index.restore(old);
                }
            }
            _ => {}
        }
    }
}

fn store_sanity(store: &mut Sim) {
    let stats = store.stats();
    assert_eq!(stats.space.used + stats.space.free + stats.space.reserve, stats.space.total);
    let audit = store.audit();
    assert!(audit.is_clean(), "{audit:?}");
    assert_eq!(stats.recounts, 0);
}

#[test]
fn power_cuts_at_random_points_lose_nothing_acknowledged() {
    if let Ok(seed) = std::env::var("STORE_SIM_SEED") {
        return run(seed.parse().expect("a number"));
    }
    let seeds = std::env::var("STORE_SIM_SEEDS").map_or(150, |n| n.parse().expect("a number"));
    for seed in 1..=seeds {
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
