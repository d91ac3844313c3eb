//! A load on a store: so many reads or writes under way at once, each of them timed and checked.
//!
//! Each write has other content than the one before it at the same place, and what was written last is
//! remembered, so that a read of something older is found. What the generator itself costs (choosing a
//! place, one checksum per block written, as a front end would give it) is in the processor time that is
//! measured.

use super::BenchError;
use super::histogram::Histogram;
use super::sparse::PATTERN;
use super::usage;
use crate::device::Device;
use crate::device::file::FileDevice;
use crate::store::index::{Index, SledIndex};
use crate::store::{ReadMode, Stats, Store, StoreEvent};
use bytes::Bytes;
use slab::Slab;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::{BLOCK_SIZE, Ballot, BlockRange, GroupId, Head, ObjectId, PgId, VolumeId};

/// Blocks of an object.
pub const OBJECT_BLOCKS: u64 = 1024;
/// Blocks of the largest read or write: 1 MiB.
pub const OP_BLOCKS_MAX: u32 = 256;
/// Reads and writes that may be under way at once: far fewer than the store's own limits.
pub const DEPTH_MAX: u32 = 1024;
/// Of small reads one in so many has its bytes checked, not only what the store says of them.
const CHECKED_PART: u64 = 16;

/// Asked now and then whether to stop.
pub type Stop = Rc<dyn Fn() -> bool>;

/// What to do over and over again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Writes; else reads.
    pub write: bool,
    /// Blocks of 4 KiB in each, a power of two, at most [`OP_BLOCKS_MAX`].
    pub blocks: u32,
    /// How many are under way at once.
    pub depth: u32,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Reads or writes that ended.
    pub ops: u64,
    /// In this time.
    pub elapsed: Duration,
    /// Processor time of the process meanwhile.
    pub cpu: Duration,
    /// From the moment that the store was given one until its end was told.
    pub latency: Histogram,
    /// The longest time in which no write was acknowledged.
    pub longest_wait: Duration,
}

impl Measured {
    /// In a second.
    pub fn iops(&self) -> f64 {
        self.ops as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
    /// Microseconds of processor time of each.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.ops.max(1) as f64
    }
    /// Adds another round of the same.
    pub fn merge(&mut self, other: &Measured) {
        self.ops += other.ops;
        self.elapsed += other.elapsed;
        self.cpu += other.cpu;
        self.latency.merge(&other.latency);
        self.longest_wait = self.longest_wait.max(other.longest_wait);
    }
}

/// Xorshift64: fast, and the same every time.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence; `seed` is not 0.
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }
    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper bits are the better ones.
        ((u128::from(self.0) * u128::from(end)) >> 64) as u64
    }
}

/// What blocks hold.
enum Content {
    /// Random bytes: parts of `data` from random offsets. The checksum of each block as it was written last.
    Random { sums: Vec<u64> },
    /// [`PATTERN`] everywhere.
    Pattern,
}

struct ReadUnderWay {
    begun: Instant,
    block: u64,
    count: u32,
}

/// See the module.
pub struct Load<D: Device = FileDevice, I: Index = SledIndex> {
    store: Store<D, I>,
    stop: Stop,
    content: Content,
    data: Bytes,
    random: Random,
    events: Vec<StoreEvent>,
    ticket: u64,
    writes: VecDeque<(u64, Instant)>,
    reads: Slab<ReadUnderWay>,
    checked: u64,
    /// All bytes of all reads are checked.
    thorough: bool,
    /// Of what is being measured.
    measured: Measured,
    acknowledged: Instant,
}

/// The object of a block, and the block's number in it.
fn place(block: u64) -> (ObjectId, u32) {
    let group = GroupId { volume: VolumeId(1), pg: PgId::default() };
    let object = ObjectId { group, index: (block / OBJECT_BLOCKS) as u32 };
    (object, (block % OBJECT_BLOCKS) as u32)
}

impl<D: Device, I: Index> Load<D, I> {
    /// A load on an empty store, over `blocks` blocks of random bytes.
    pub fn new(store: Store<D, I>, blocks: u64, stop: Stop) -> Load<D, I> {
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
        let bytes = OP_BLOCKS_MAX as usize * BLOCK_SIZE * 2;
        let data: Vec<u8> = (0..bytes / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
        let content = Content::Random { sums: vec![HOLE; blocks as usize] };
        Load::with(store, content, data.into(), stop)
    }

    /// A load that writes nothing but [`PATTERN`].
    pub fn of_pattern(store: Store<D, I>, stop: Stop) -> Load<D, I> {
        Load::with(store, Content::Pattern, PATTERN.repeat(OP_BLOCKS_MAX as usize).into(), stop)
    }

    fn with(store: Store<D, I>, content: Content, data: Bytes, stop: Stop) -> Load<D, I> {
        Load {
            store,
            stop,
            content,
            data,
            random: Random::new(88_172_645_463_325_252),
            events: Vec::new(),
            ticket: 0,
            writes: VecDeque::new(),
            reads: Slab::new(),
            checked: 0,
            thorough: false,
            measured: Measured::default(),
            acknowledged: Instant::now(),
        }
    }

    /// The store's counters.
    pub fn stats(&self) -> Stats {
        self.store.stats()
    }
    /// The store.
    pub fn store(&mut self) -> &mut Store<D, I> {
        &mut self.store
    }
    /// Gives the store back. What is under way is forgotten.
    pub fn into_store(self) -> Store<D, I> {
        self.store
    }
    /// The load's random numbers.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Gives the store a write of `count` blocks, which do not cross an object's end.
    pub fn write(&mut self, block: u64, count: u32) {
        let (object, first) = place(block);
        let bytes = count as usize * BLOCK_SIZE;
        let from = match self.content {
            Content::Random { .. } => self.random.below((self.data.len() - bytes) as u64) as usize,
            Content::Pattern => 0,
        };
        let data = self.data.slice(from..from + bytes);
        let sum = |n: u32| {
            let at = n as usize * BLOCK_SIZE;
            block_checksum(object.group.volume, object.index, first + n, &data[at..at + BLOCK_SIZE])
        };
        let checksums = (0..count).map(sum).collect::<Vec<u64>>();
        if let Content::Random { sums } = &mut self.content
            && let Some(sums) = sums.get_mut(block as usize..block as usize + count as usize)
        {
            sums.copy_from_slice(&checksums);
        }
        self.ticket += 1;
        let head = Head { ballot: Ballot(1 << 20), seq: self.ticket };
        let op = WriteOp::Data { blocks: BlockRange::new(first, count), checksums: checksums.into(), data };
        self.writes.push_back((self.ticket, Instant::now()));
        self.store.append(self.ticket, Record::Write { object, head, snap: 0, op });
    }

    /// Asks the store for `count` blocks, which do not cross an object's end.
    pub fn read(&mut self, block: u64, count: u32) {
        let (object, first) = place(block);
        let token = self.reads.insert(ReadUnderWay { begun: Instant::now(), block, count });
        self.store.read(token as u64, object, BlockRange::new(first, count), ReadMode::All);
    }

    /// Reads and writes under way.
    pub fn under_way(&self) -> u32 {
        (self.reads.len() + self.writes.len()) as u32
    }

    /// Room for one more, at this depth.
    pub fn may(&self, depth: u32) -> bool {
        self.under_way() < depth && self.store.can_accept()
    }

    /// Starts what there is, waits until something has ended, and takes it.
    pub async fn wait(&mut self) -> Result<(), BenchError> {
        if (self.stop)() {
            return Err(BenchError::Stopped);
        }
        self.store.submit();
        self.store.ready().await.map_err(|source| BenchError::Io { what: "cannot wait", source })?;
        self.store.poll(&mut self.events);
        let mut events = std::mem::take(&mut self.events);
        let now = Instant::now();
        for event in events.drain(..) {
            self.take(event, now)?;
        }
        self.events = events;
        Ok(())
    }

    /// Waits until nothing is under way.
    pub async fn drain(&mut self) -> Result<(), BenchError> {
        while self.under_way() > 0 {
            self.wait().await?;
        }
        Ok(())
    }

    fn take(&mut self, event: StoreEvent, now: Instant) -> Result<(), BenchError> {
        match event {
            StoreEvent::Durable { up_to_ticket } => {
                while let Some((ticket, begun)) = self.writes.front().copied()
                    && ticket <= up_to_ticket
                {
                    self.writes.pop_front();
                    self.measured.ops += 1;
                    self.measured.latency.add(now.saturating_duration_since(begun));
                }
                let waited = now.saturating_duration_since(self.acknowledged);
                self.measured.longest_wait = self.measured.longest_wait.max(waited);
                self.acknowledged = now;
            }
            StoreEvent::Read { token, checksums, data, bad, .. } => {
                let Some(read) = self.reads.try_remove(token as usize) else {
                    return Err(BenchError::Failed(format!(
                        "it answers a read {token} that nobody has asked for"
                    )));
                };
                self.measured.ops += 1;
                self.measured.latency.add(now.saturating_duration_since(read.begun));
                self.check(&read, &checksums, &data, &bad)?;
            }
            StoreEvent::Failed { why } => return Err(BenchError::Failed(why)),
            StoreEvent::BadBlock { object, block, .. } => {
                let block = u64::from(object.index) * OBJECT_BLOCKS + u64::from(block);
                return Err(wrong(block, "its bytes do not match its checksum"));
            }
            StoreEvent::LostTable { object, blocks } => {
                let block = u64::from(object.index) * OBJECT_BLOCKS + u64::from(blocks.first);
                return Err(wrong(block, "its page of the block table is damaged"));
            }
        }
        Ok(())
    }

    fn check(
        &mut self,
        read: &ReadUnderWay,
        sums: &[u64],
        data: &[u8],
        bad: &[u32],
    ) -> Result<(), BenchError> {
        if let Some(bad) = bad.first() {
            let first = read.block / OBJECT_BLOCKS * OBJECT_BLOCKS;
            return Err(wrong(first + u64::from(*bad), "it cannot be read"));
        }
        self.checked += 1;
        let bytes = self.thorough || self.checked.is_multiple_of(CHECKED_PART);
        let mut held = data.chunks_exact(BLOCK_SIZE);
        for (n, sum) in (0..u64::from(read.count)).zip(sums) {
            let block = read.block + n;
            let (object, inside) = place(block);
            let of = |data: &[u8]| block_checksum(object.group.volume, object.index, inside, data);
            let written = match &self.content {
                Content::Random { sums } => sums.get(block as usize).copied().unwrap_or(HOLE),
                Content::Pattern => of(&PATTERN),
            };
            if written != *sum {
                let what = if *sum == HOLE { "it is not there" } else { "it is not what was written last" };
                return Err(wrong(block, what));
            }
            if *sum != HOLE && held.next().is_none_or(|data| bytes && of(data) != *sum) {
                return Err(wrong(block, "its bytes are not those that were written"));
            }
        }
        if sums.len() != read.count as usize || held.next().is_some() {
            return Err(wrong(read.block, "a read has brought too few or too many blocks"));
        }
        Ok(())
    }

    /// Begins to measure; [`Load::measured`] ends it.
    pub fn measure(&mut self) -> Meter {
        self.measured = Measured::default();
        self.acknowledged = Instant::now();
        Meter { begun: Instant::now(), cpu: usage::cpu() }
    }

    /// What has ended since [`Load::measure`].
    pub fn measured(&mut self, meter: &Meter) -> Measured {
        let mut measured = std::mem::take(&mut self.measured);
        measured.elapsed = meter.begun.elapsed();
        measured.cpu = usage::cpu().saturating_sub(meter.cpu);
        measured
    }

    /// Runs a pattern over the first `blocks` blocks, at random, for this long.
    pub async fn run(
        &mut self,
        pattern: Pattern,
        blocks: u64,
        time: Duration,
    ) -> Result<Measured, BenchError> {
        let places = (blocks / u64::from(pattern.blocks)).max(1);
        let depth = pattern.depth.clamp(1, DEPTH_MAX);
        let meter = self.measure();
        while meter.begun.elapsed() < time {
            while self.may(depth) {
                let block = self.random.below(places) * u64::from(pattern.blocks);
                if pattern.write {
                    self.write(block, pattern.blocks);
                } else {
                    self.read(block, pattern.blocks);
                }
            }
            self.wait().await?;
        }
        let measured = self.measured(&meter);
        self.drain().await?;
        Ok(measured)
    }

    /// Writes the first `blocks` blocks from end to end; `progress` is told how many are done.
    pub async fn fill(&mut self, blocks: u64, progress: &mut dyn FnMut(u64)) -> Result<(), BenchError> {
        for block in (0..blocks).step_by(OP_BLOCKS_MAX as usize) {
            while !self.may(8) {
                self.wait().await?;
            }
            self.write(block, OP_BLOCKS_MAX.min((blocks - block) as u32));
            progress(block);
        }
        self.drain().await
    }

    /// Lets background work get on until none is to be seen for a moment, or `most` has passed.
    pub async fn settle(&mut self, most: Duration) -> Result<(), BenchError> {
        let deadline = Instant::now() + most;
        let quiet = Duration::from_millis(20);
        let mut since = Instant::now();
        let mut seen = self.store.stats();
        while Instant::now() < deadline && since.elapsed() < quiet {
            self.store.submit();
            self.store.poll(&mut self.events);
            let mut events = std::mem::take(&mut self.events);
            for event in events.drain(..) {
                self.take(event, Instant::now())?;
            }
            self.events = events;
            let now = self.store.stats();
            if now != seen || self.store.has_work() {
                (seen, since) = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(())
    }

    /// Reads the first `blocks` blocks from end to end and checks every byte.
    pub async fn read_back(&mut self, blocks: u64, progress: &mut dyn FnMut(u64)) -> Result<(), BenchError> {
        self.thorough = true;
        for block in (0..blocks).step_by(OP_BLOCKS_MAX as usize) {
            while !self.may(4) {
                self.wait().await?;
            }
            self.read(block, OP_BLOCKS_MAX.min((blocks - block) as u32));
            progress(block);
        }
        let result = self.drain().await;
        self.thorough = false;
        result
    }
}

/// When a measurement began.
pub struct Meter {
    /// Then.
    pub begun: Instant,
    cpu: Duration,
}

pub(super) fn wrong(block: u64, what: &str) -> BenchError {
    BenchError::Wrong { object: block / OBJECT_BLOCKS, block: block % OBJECT_BLOCKS, what: what.to_owned() }
}
