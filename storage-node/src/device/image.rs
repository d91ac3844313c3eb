//! What is on a device, cheap to copy, and what a power cut leaves of it. For tests and simulation.
//!
//! The model of durability, for the simulated device and for what [`super::faulty`] sees of a real one:
//! a change (write, discard, zeroing) is durable when its end has been handed out, and not before; of
//! one that is under way when the power goes, a write leaves any mix of its 512-byte sectors, a discard
//! or zeroing leaves of each block what was there, zeros or anything. Several under way at once are
//! independent of each other.
//!
//! Each start and each end of a change is a point at which the power may fail: [`Power`] shows it to an
//! observer, which may keep a copy of the [`Image`] and cut it later, in as many ways as it likes.
//!
//! The model also watches what no correct store does: two operations under way on the same blocks, of
//! which at least one changes them. That panics.

use super::Op;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;

/// Bytes that are written as a whole or not at all.
pub const SECTOR: usize = 512;
/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks that are copied together when one of two copies changes.
const CHUNK: u64 = 64;

/// A small seeded generator (xorshift64*, Vigna 2016); good enough for faults.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed; 0 is allowed.
    pub fn new(seed: u64) -> Rng {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1 | 1);
        for _ in 0..8 {
            rng.next();
        }
        rng
    }
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// Below `n`, which is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n.max(1)
    }
    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

type Chunk = [Option<Rc<[u8; BLOCK]>>; CHUNK as usize];

/// The bytes of a device; what was never written is zeros. A clone shares everything until one of the
/// two is written to.
#[derive(Clone)]
pub struct Content {
    size: u64,
    chunks: FxHashMap<u64, Rc<Chunk>>,
}

impl Content {
    /// Zeros.
    pub fn new(size: u64) -> Content {
        Content { size, chunks: FxHashMap::default() }
    }
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
    fn get(&self, block: u64) -> Option<&Rc<[u8; BLOCK]>> {
        self.chunks.get(&(block / CHUNK))?[(block % CHUNK) as usize].as_ref()
    }
    fn slot(&mut self, block: u64) -> &mut Option<Rc<[u8; BLOCK]>> {
        let chunk =
            self.chunks.entry(block / CHUNK).or_insert_with(|| Rc::new([const { None }; CHUNK as usize]));
        &mut Rc::make_mut(chunk)[(block % CHUNK) as usize]
    }
    /// Fills `buf`; zeros beyond the end. Any offset, any length.
    pub fn read(&self, offset: u64, mut buf: &mut [u8]) {
        let mut at = offset;
        while !buf.is_empty() {
            let inside = (at % BLOCK as u64) as usize;
            let n = buf.len().min(BLOCK - inside);
            let (part, rest) = buf.split_at_mut(n);
            match self.get(at / BLOCK as u64) {
                Some(block) => part.copy_from_slice(&block[inside..inside + n]),
                None => part.fill(0),
            }
            at += n as u64;
            buf = rest;
        }
    }
    /// Overwrites bytes. Any offset, any length.
    pub fn write(&mut self, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let inside = (at % BLOCK as u64) as usize;
            let n = data.len().min(BLOCK - inside);
            let (part, rest) = data.split_at(n);
            let slot = self.slot(at / BLOCK as u64);
            match <&[u8; BLOCK]>::try_from(part) {
                Ok(whole) => *slot = Some(Rc::new(*whole)),
                Err(_) => {
                    let block = slot.get_or_insert_with(|| Rc::new([0; BLOCK]));
                    Rc::make_mut(block)[inside..inside + n].copy_from_slice(part);
                }
            }
            at += n as u64;
            data = rest;
        }
    }
    /// Makes a block zeros.
    fn clear(&mut self, block: u64) {
        *self.slot(block) = None;
    }
    /// Calls `each` with the offset and the bytes of every block that was written.
    pub fn blocks<E>(&self, mut each: impl FnMut(u64, &[u8; BLOCK]) -> Result<(), E>) -> Result<(), E> {
        for (number, chunk) in &self.chunks {
            for (n, block) in chunk.iter().enumerate() {
                if let Some(block) = block {
                    each((number * CHUNK + n as u64) * BLOCK as u64, block)?;
                }
            }
        }
        Ok(())
    }
}

/// An operation that changes what is on the device.
#[derive(Clone)]
pub enum Change {
    /// [`Op::Write`].
    Write {
        /// Bytes from the start of the device.
        offset: u64,
        /// One behind the other.
        bufs: Vec<Bytes>,
    },
    /// [`Op::Discard`].
    Discard {
        /// Bytes from the start of the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// [`Op::Zero`].
    Zero {
        /// Bytes from the start of the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Change {
    /// What the operation changes, if anything.
    pub fn of(op: &Op) -> Option<Change> {
        match op {
            Op::Read { .. } => None,
            Op::Write { offset, bufs, .. } => Some(Change::Write { offset: *offset, bufs: bufs.clone() }),
            Op::Discard { offset, len } => Some(Change::Discard { offset: *offset, len: *len }),
            Op::Zero { offset, len } => Some(Change::Zero { offset: *offset, len: *len }),
        }
    }
    /// The bytes of the device that it touches.
    pub fn range(&self) -> Range<u64> {
        match self {
            Change::Write { offset, bufs } => {
                *offset..offset + bufs.iter().map(|b| b.len() as u64).sum::<u64>()
            }
            Change::Discard { offset, len } | Change::Zero { offset, len } => *offset..offset + len,
        }
    }
    /// Sectors that it touches.
    pub fn sectors(&self) -> u32 {
        let range = self.range();
        ((range.end - range.start) / SECTOR as u64) as u32
    }
    /// Calls `each` with the offset and the bytes of every sector that is written.
    fn each_sector(&self, mut each: impl FnMut(u32, u64, &[u8])) {
        let Change::Write { offset, bufs } = self else { return };
        let sectors = bufs.iter().flat_map(|b| b.chunks(SECTOR));
        for (n, sector) in (0u32..).zip(sectors) {
            each(n, offset + u64::from(n) * SECTOR as u64, sector);
        }
    }
    /// Carries it out. What a discard leaves is chosen by `rng`.
    fn apply(&self, content: &mut Content, rng: &mut Rng) {
        match self {
            Change::Write { offset, bufs } => {
                let mut at = *offset;
                for buf in bufs {
                    content.write(at, buf);
                    at += buf.len() as u64;
                }
            }
            Change::Zero { .. } => self.each_block(|block| content.clear(block)),
            Change::Discard { .. } => self.scatter(content, rng),
        }
    }
    fn each_block(&self, each: impl FnMut(u64)) {
        let range = self.range();
        (range.start / BLOCK as u64..range.end / BLOCK as u64).for_each(each);
    }
    /// Each block holds what it held, zeros or anything.
    fn scatter(&self, content: &mut Content, rng: &mut Rng) {
        self.each_block(|block| match rng.below(3) {
            0 => {}
            1 => content.clear(block),
            _ => {
                let mut junk = [0; BLOCK];
                for part in junk.chunks_mut(8) {
                    part.copy_from_slice(&rng.next().to_le_bytes());
                }
                content.write(block * BLOCK as u64, &junk);
            }
        });
    }
    /// What a power cut leaves of it.
    fn tear(&self, content: &mut Content, tear: Tear) {
        let mut rng = Rng::new(match tear {
            Tear::Random(seed) => seed,
            _ => 1,
        });
        match (tear, self) {
            (Tear::None, _) => {}
            (Tear::All, _) => self.apply(content, &mut rng),
            (_, Change::Discard { .. } | Change::Zero { .. }) => self.scatter(content, &mut rng),
            (_, Change::Write { .. }) => {
                let all = self.sectors();
                // What real devices do most: a prefix, a suffix, nearly all. And at times a mere mix.
                let (kind, cut) = (rng.below(4), rng.below(u64::from(all) + 1) as u32);
                self.each_sector(|n, at, sector| {
                    let kept = match tear {
                        Tear::Prefix(len) => n < len,
                        Tear::Suffix(len) => n >= all.saturating_sub(len),
                        Tear::Omit(sector) => n != sector,
                        Tear::Only(sector) => n == sector,
                        Tear::None | Tear::All => false,
                        Tear::Random(_) => match kind {
                            0 => n < cut,
                            1 => n >= cut,
                            2 => !rng.one_in(8),
                            _ => rng.one_in(2),
                        },
                    };
                    if kept {
                        content.write(at, sector);
                    }
                });
            }
        }
    }
}

/// Which sectors of a write are on the medium after a power cut. Of a discard or a zeroing: `None` and
/// `All` mean that, anything else a mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// None.
    None,
    /// All.
    All,
    /// The first ones, this many.
    Prefix(u32),
    /// The last ones, this many.
    Suffix(u32),
    /// All but this one.
    Omit(u32),
    /// Only this one.
    Only(u32),
    /// A mix that follows from this seed.
    Random(u64),
}

impl fmt::Display for Tear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tear::None => f.write_str("none"),
            Tear::All => f.write_str("all"),
            Tear::Prefix(n) => write!(f, "prefix{n}"),
            Tear::Suffix(n) => write!(f, "suffix{n}"),
            Tear::Omit(n) => write!(f, "omit{n}"),
            Tear::Only(n) => write!(f, "only{n}"),
            Tear::Random(seed) => write!(f, "random{seed}"),
        }
    }
}

impl FromStr for Tear {
    type Err = String;
    fn from_str(text: &str) -> Result<Tear, String> {
        let name = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = || text[name.len()..].parse::<u64>().map_err(|e| format!("{text}: {e}"));
        Ok(match name {
            "none" => Tear::None,
            "all" => Tear::All,
            "prefix" => Tear::Prefix(number()? as u32),
            "suffix" => Tear::Suffix(number()? as u32),
            "omit" => Tear::Omit(number()? as u32),
            "only" => Tear::Only(number()? as u32),
            "random" => Tear::Random(number()?),
            _ => return Err(format!("{text}: no such tear")),
        })
    }
}

/// A device at one moment.
#[derive(Clone)]
pub struct Image {
    /// What would be there if nothing were under way.
    pub durable: Content,
    /// What is under way, with a number of its own, oldest first.
    pub in_flight: Vec<(u64, Change)>,
}

impl Image {
    /// What is there after a power cut; `tear` is asked for each change under way, by its place.
    pub fn cut(&self, mut tear: impl FnMut(usize, &Change) -> Tear) -> Content {
        let mut content = self.durable.clone();
        for (n, (_, change)) in self.in_flight.iter().enumerate() {
            change.tear(&mut content, tear(n, change));
        }
        content
    }
}

/// Whether a change begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is under way from here on.
    Started,
    /// It is durable from here on.
    Ended,
}

/// Is shown each start and each end of a change, with the device as it is then.
pub type Observer = Box<dyn FnMut(Stage, &Change, &Image)>;

/// The model of durability: see the module.
pub struct Power {
    /// The device now.
    pub image: Image,
    reads: Vec<(u64, Range<u64>)>,
    observer: Option<Observer>,
    number: u64,
    rng: Rng,
    /// Two operations under way on the same blocks are a mistake. Not so on a device that misdirects.
    pub watch: bool,
}

impl Power {
    /// A device that holds `content`; what discards leave follows from the seed.
    pub fn new(content: Content, seed: u64) -> Power {
        Power {
            image: Image { durable: content, in_flight: Vec::new() },
            reads: Vec::new(),
            observer: None,
            number: 0,
            rng: Rng::new(seed),
            watch: true,
        }
    }
    /// Shows each point to `observer` from now on.
    pub fn observe(&mut self, observer: Option<Observer>) {
        self.observer = observer;
    }
    fn show(&mut self, stage: Stage, change: &Change) {
        // Taken out, since it is shown the rest.
        if let Some(mut observer) = self.observer.take() {
            observer(stage, change, &self.image);
            self.observer = Some(observer);
        }
    }
    /// A change is under way; gives its number.
    pub fn begin(&mut self, change: Change) -> u64 {
        self.number += 1;
        let range = change.range();
        let taken = |other: &Range<u64>| range.start < other.end && other.start < range.end;
        let read = self.reads.iter().map(|r| r.1.clone()).find(taken);
        let changed = self.image.in_flight.iter().map(|c| c.1.range()).find(taken);
        assert!(
            !self.watch || read.is_none() && changed.is_none(),
            "bytes {range:?} are changed while bytes {read:?} are read and bytes {changed:?} are changed"
        );
        self.image.in_flight.push((self.number, change.clone()));
        self.show(Stage::Started, &change);
        self.number
    }
    /// The change is durable.
    pub fn end(&mut self, number: u64) {
        let Some(n) = self.image.in_flight.iter().position(|c| c.0 == number) else { return };
        let (_, change) = self.image.in_flight.remove(n);
        change.apply(&mut self.image.durable, &mut self.rng);
        self.show(Stage::Ended, &change);
    }
    /// The change has failed, and left this much. Not shown: nothing has become durable.
    pub fn fail(&mut self, number: u64, tear: Tear) {
        let Some(n) = self.image.in_flight.iter().position(|c| c.0 == number) else { return };
        let (_, change) = self.image.in_flight.remove(n);
        change.tear(&mut self.image.durable, tear);
    }
    /// Blocks are being read; gives a number for it.
    pub fn read_begin(&mut self, range: Range<u64>) -> u64 {
        self.number += 1;
        let changed = self
            .image
            .in_flight
            .iter()
            .map(|c| c.1.range())
            .find(|c| c.start < range.end && range.start < c.end);
        assert!(
            !self.watch || changed.is_none(),
            "bytes {range:?} are read while bytes {changed:?} are changed"
        );
        self.reads.push((self.number, range));
        self.number
    }
    /// The read has ended.
    pub fn read_end(&mut self, number: u64) {
        self.reads.retain(|r| r.0 != number);
    }
    /// The power fails: nothing is under way any more, and of what was this much is there.
    pub fn cut(&mut self, tear: impl FnMut(usize, &Change) -> Tear) {
        self.image.durable = self.image.cut(tear);
        self.image.in_flight.clear();
        self.reads.clear();
    }
    /// True if anything is under way.
    pub fn busy(&self) -> bool {
        !self.image.in_flight.is_empty() || !self.reads.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, fill: u8, blocks: usize) -> Change {
        Change::Write { offset, bufs: vec![vec![fill; blocks * BLOCK].into()] }
    }
    fn sectors(content: &Content, n: usize) -> Vec<u8> {
        let mut buf = vec![0; n * SECTOR];
        content.read(0, &mut buf);
        buf.chunks(SECTOR)
            .map(|s| {
                assert!(s.iter().all(|b| *b == s[0]));
                s[0]
            })
            .collect()
    }

    #[test]
    fn copies_are_independent_and_what_is_in_flight_is_torn_as_told() {
        let mut power = Power::new(Content::new(1 << 20), 1);
        let first = power.begin(write(0, 1, 1));
        power.end(first);
        let before = power.image.clone();
        power.begin(write(0, 2, 1));
        let torn = |tear: &str| {
            let tear: Tear = tear.parse().expect("a tear");
            assert_eq!(tear.to_string().parse(), Ok(tear));
            sectors(&power.image.cut(|_, _| tear), 9)
        };
        assert_eq!(torn("none"), [1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(torn("all"), [2, 2, 2, 2, 2, 2, 2, 2, 0]);
        assert_eq!(torn("prefix3"), [2, 2, 2, 1, 1, 1, 1, 1, 0]);
        assert_eq!(torn("suffix3"), [1, 1, 1, 1, 1, 2, 2, 2, 0]);
        assert_eq!(torn("omit7"), [2, 2, 2, 2, 2, 2, 2, 1, 0]);
        assert_eq!(torn("only0"), [2, 1, 1, 1, 1, 1, 1, 1, 0]);
        let mixes: std::collections::BTreeSet<Vec<u8>> =
            (0..50).map(|n| torn(&format!("random{n}"))).collect();
        assert!(mixes.len() > 20, "{}", mixes.len());
        power.cut(|_, _| Tear::All);
        assert_eq!(sectors(&before.durable, 8), [1; 8]);
        assert_eq!(sectors(&power.image.durable, 8), [2; 8]);
        assert!(!power.busy());
        assert!("omit".parse::<Tear>().is_err() && "half3".parse::<Tear>().is_err());
    }

    #[test]
    fn a_discard_leaves_anything_and_a_zeroing_zeros() {
        let mut power = Power::new(Content::new(1 << 20), 1);
        let n = power.begin(write(0, 1, 60));
        power.end(n);
        let n = power.begin(Change::Discard { offset: 0, len: 60 * BLOCK as u64 });
        let count = |content: &Content| {
            let (mut old, mut zero, mut junk) = (0, 0, 0);
            for n in 0..60 {
                let mut block = [0; BLOCK];
                content.read(n * BLOCK as u64, &mut block);
                match block[0] {
                    1 if block == [1; BLOCK] => old += 1,
                    0 if block == [0; BLOCK] => zero += 1,
                    _ => junk += 1,
                }
            }
            (old, zero, junk)
        };
        assert_eq!(count(&power.image.cut(|_, _| Tear::None)), (60, 0, 0));
        let (old, zero, junk) = count(&power.image.cut(|_, _| Tear::Random(1)));
        assert!(old > 5 && zero > 5 && junk > 5);
        power.end(n);
        let (old, zero, junk) = count(&power.image.durable);
        assert!(old > 5 && zero > 5 && junk > 5);
        let n = power.begin(Change::Zero { offset: 0, len: 60 * BLOCK as u64 });
        power.end(n);
        assert_eq!(count(&power.image.durable), (0, 60, 0));
    }

    #[test]
    #[should_panic(expected = "are changed while bytes Some(0..4096) are read")]
    fn blocks_that_are_being_read_are_not_to_be_changed() {
        let mut power = Power::new(Content::new(1 << 20), 1);
        power.read_begin(0..4096);
        power.begin(Change::Discard { offset: 0, len: 8192 });
    }
}
