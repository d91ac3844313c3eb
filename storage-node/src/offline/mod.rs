//! A store whose storage node does not run: looked at, checked, taken out of (promise P10).
//!
//! ```text
//!  device (read-only, shared lock) ─► recovery from the log alone ─► OfflineStore
//!     info      what it is and what is in it          check    everything on it, verified
//!     dump      the whole state as JSON lines          records  the log, record by record
//!     export    an object's bytes                      volume   a volume's image out of several devices,
//!     index     compared, or made anew (never the               by the majority rule of the live system
//!               device is written)                     map      where a volume's objects should be
//! ```
//!
//! The state is found by the very code that a start runs (`store::recovery`), from the log and never from
//! the index. Which copy of an object counts is decided by the leader's own function
//! ([`trefoil_core::leader::choose`]). No other rule about either is here.
//!
//! # Memory
//!
//! What recovery needs (see [`crate::store`]), one object's table, and for a check one bit for each block
//! of the device: 32 MiB per TiB.

mod check;
mod device;
mod dump;
mod export;
mod index;
mod info;
mod map;
mod records;
mod split;
mod volume;

pub use check::{CheckError, CheckProgress, CheckReport, FINDINGS_MAX, Finding, check};
pub use device::{ReadMany, ReadOnlyDevice, ReadOnlyError};
pub use dump::{Run, head_json, line_json};
pub use export::{BadBlock, ExportError, ExportReport, SparseFile};
pub use index::IndexError;
pub use info::{BareInfo, CopyInfo, Info, LogInfo, RootInfo, SpaceInfo, VolumeInfo};
pub use map::{Layout, LayoutError, Place, parse_volume, read_map};
pub use volume::{
    BlockProblem, DeviceReport, ObjectProblem, VolumeError, VolumeOptions, VolumeReport, export_volume,
    refuses,
};

use crate::device::buffer::{Buf, Pool};
use crate::store::view::{self, PAGE_BLOCKS, PageRef, PageView, Recovery, byte_of, place_of};
use crate::store::{BlockEntry, How, RecoverError, Superblock, SuperblockError};
use std::path::Path;
use trefoil_core::checksum::{HOLE, UNKNOWN, block_checksum};
use trefoil_core::record::Durable;
use trefoil_core::{BLOCK_SIZE, BlockRange, ObjectId, VolumeId};

/// Blocks in one read of the device.
const RUN_BLOCKS_MAX: usize = 256;
/// Reads that are made at once.
const RUNS_MAX: usize = 256;
/// Blocks read at once, beyond which no further run is begun: at most 9 MiB are held.
const READ_BLOCKS_MAX: usize = 2048;
/// Times that the device is asked for the same blocks.
const READS_MAX: u32 = 3;

/// Told how far a long reading is: done and in all, in units that only mean something together.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why a store cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The device.
    #[error(transparent)]
    Device(#[from] ReadOnlyError),
    /// The superblock.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The log.
    #[error(transparent)]
    Recover(#[from] RecoverError),
}

/// What a block of an object is, as its table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Never written, or trimmed: zeros.
    Hole,
    /// It has no good bytes here. Those it should have carry the checksum; none where that is lost too.
    Bad(Option<u64>),
    /// Its bytes are at this place.
    There(BlockEntry),
}

impl From<BlockEntry> for Block {
    fn from(entry: BlockEntry) -> Block {
        match entry {
            BlockEntry { checksum: HOLE, .. } => Block::Hole,
            BlockEntry { location: 0, checksum: UNKNOWN } => Block::Bad(None),
            BlockEntry { location: 0, checksum } => Block::Bad(Some(checksum)),
            entry => Block::There(entry),
        }
    }
}

/// Why a block's bytes cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The place is not one of the device's.
    #[error("its place is outside the device's segments")]
    Outside,
    /// The device fails.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// Other bytes are there.
    #[error("does not match its checksum")]
    Mismatch,
}

/// An object's block table as of the end of the log.
#[derive(Clone, Debug, Default)]
pub struct ObjectTable {
    /// One for each block up to the last page; behind them there are only holes.
    pub entries: Vec<BlockEntry>,
    /// Pages whose image is damaged: what these blocks held is not known here, unless they were written
    /// since.
    pub lost: Vec<BlockRange>,
}

impl ObjectTable {
    /// A block; a hole behind the end.
    pub fn block(&self, block: u32) -> Block {
        self.entries.get(block as usize).copied().unwrap_or_default().into()
    }
}

/// A device with a superblock, opened for reading only; whether its log can be read is not known yet.
pub struct BareStore<D = ReadOnlyDevice> {
    device: D,
    sb: Superblock,
    pool: Pool,
}

impl BareStore {
    /// Opens the store on a file or block device. The device is locked against its storage node and is
    /// not written.
    pub fn open(path: &Path) -> Result<BareStore, OfflineError> {
        BareStore::open_on(ReadOnlyDevice::open(path)?)
    }
}

impl<D: ReadMany> BareStore<D> {
    /// Opens the store on any device. Nothing is written to it.
    pub fn open_on(device: D) -> Result<BareStore<D>, OfflineError> {
        // What is wrong with one copy of the superblock is told by `superblock_copies`.
        let (sb, _) = Superblock::read(&device)?;
        Ok(BareStore { device, sb, pool: Pool::new(u64::MAX, 8 << 20, None) })
    }

    /// The device's path.
    pub fn name(&self) -> &str {
        self.device.name()
    }
    /// What the store is.
    pub fn superblock(&self) -> &Superblock {
        &self.sb
    }

    /// Finds the state of the store: reads its log. Gives the store back, with why, where that cannot be.
    pub fn recover(self, progress: Progress<'_>) -> Result<OfflineStore<D>, (BareStore<D>, RecoverError)> {
        let mut tell = |segment: u32, segments: u32| progress(segment.into(), segments.into());
        match view::view(&self.device, &self.sb, &mut tell) {
            Ok(recovery) => Ok(OfflineStore { bare: self, recovery }),
            Err(error) => Err((self, error)),
        }
    }

    /// True if these blocks are in segments.
    pub(crate) fn inside(&self, location: u64, blocks: usize) -> bool {
        // A place has 48 bits: no overflow.
        let place = place_of(location);
        place >= self.sb.location(0, 0) && place + blocks as u64 <= self.sb.location(self.sb.segments, 0)
    }

    /// Reads blocks of the device, asking more than once.
    pub(crate) fn read(&self, location: u64, blocks: usize) -> Result<Buf, Fault> {
        if !self.inside(location, blocks) {
            return Err(Fault::Outside);
        }
        self.read_raw(byte_of(location), blocks)
    }

    /// The same anywhere on the device, at a byte.
    pub(crate) fn read_raw(&self, offset: u64, blocks: usize) -> Result<Buf, Fault> {
        let Some(mut buf) = self.pool.get(blocks * BLOCK_SIZE) else {
            return Err(Fault::Unreadable("no memory".to_owned()));
        };
        let mut why = String::new();
        for _ in 0..READS_MAX {
            match self.device.read_now(offset, &mut buf) {
                Ok(()) => return Ok(buf),
                Err(error) => why = error.to_string(),
            }
        }
        Err(Fault::Unreadable(why))
    }
}

/// A store with its state, opened for reading only.
pub struct OfflineStore<D = ReadOnlyDevice> {
    bare: BareStore<D>,
    recovery: Recovery,
}

impl OfflineStore {
    /// Opens the store on a file or block device and finds its state. The device is locked against its
    /// storage node and is not written. `progress` is told about the reading of the log.
    pub fn open(path: &Path, progress: Progress<'_>) -> Result<OfflineStore, OfflineError> {
        OfflineStore::open_on(ReadOnlyDevice::open(path)?, progress)
    }
}

impl<D: ReadMany> OfflineStore<D> {
    /// Opens the store on any device. Nothing is written to it.
    pub fn open_on(device: D, progress: Progress<'_>) -> Result<OfflineStore<D>, OfflineError> {
        BareStore::open_on(device)?.recover(progress).map_err(|(_, error)| error.into())
    }

    /// The device and its superblock.
    pub fn bare(&self) -> &BareStore<D> {
        &self.bare
    }
    /// The device's path.
    pub fn name(&self) -> &str {
        self.bare.name()
    }
    /// What the store is.
    pub fn superblock(&self) -> &Superblock {
        &self.bare.sb
    }
    /// The node's state at the end of the log.
    pub fn durable(&self) -> &Durable {
        &self.recovery.state.durable
    }
    /// State that was once durable is lost (N8), in words: the node would not vote.
    pub fn lost(&self) -> Option<&str> {
        self.recovery.lost.as_deref()
    }
    /// What reading the log found.
    pub fn how(&self) -> &How {
        &self.recovery.how
    }
    /// LSN of the last batch.
    pub fn log_position(&self) -> u64 {
        self.recovery.last.lsn
    }

    /// Every object that has a head, a table or a line, in order.
    pub fn objects(&self) -> Vec<ObjectId> {
        let groups = &self.durable().groups;
        let named = groups.iter().flat_map(|(group, state)| {
            let all = state.objects.keys().chain(state.behind.keys());
            all.map(|index| ObjectId { group: *group, index: *index })
        });
        let mut all: Vec<ObjectId> = named.chain(self.recovery.state.tables.objects()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The same, of one volume.
    pub fn objects_of(&self, volume: VolumeId) -> Vec<ObjectId> {
        let mut all = self.objects();
        all.retain(|object| object.group.volume == volume);
        all
    }

    /// Where the pages of an object's table are; none where it has no table.
    pub(crate) fn pages(&self, object: ObjectId) -> &[PageRef] {
        self.recovery.state.tables.pages(object).unwrap_or(&[])
    }

    /// The images of an object's pages as they lie in the log; none where one was never written or cannot
    /// be read.
    pub(crate) fn images(&self, object: ObjectId) -> Vec<Option<Buf>> {
        let at = |page: &PageRef| (0, BlockEntry { location: page.location, checksum: page.checksum });
        let pages: Vec<[(u32, BlockEntry); 1]> = self.pages(object).iter().map(|page| [at(page)]).collect();
        let runs: Vec<&[(u32, BlockEntry)]> = pages.iter().map(|page| &page[..]).collect();
        let once = self.read_runs(&runs).into_iter().zip(&pages);
        once.map(|(image, [(_, at)])| image.or_else(|| self.bare.read(at.location, 1).ok())).collect()
    }

    /// A page with what has changed since its image was written.
    pub(crate) fn page(&self, object: ObjectId, page: u32, image: Option<&[u8]>) -> Option<PageView> {
        self.recovery.state.tables.view(object, page, image)
    }

    /// An object's table.
    pub fn table(&self, object: ObjectId) -> ObjectTable {
        let mut table = ObjectTable::default();
        for (page, image) in (0..).zip(self.images(object)) {
            let Some(view) = self.page(object, page, image.as_deref()) else {
                continue;
            };
            table.entries.resize((page * PAGE_BLOCKS) as usize, BlockEntry::default());
            table.entries.extend(view.entries);
            if view.lost {
                table.lost.push(BlockRange::new(page * PAGE_BLOCKS, PAGE_BLOCKS));
            }
        }
        table
    }

    /// Reads blocks of an object and verifies them. `each` is told of every one, in order.
    pub fn read_blocks<E>(
        &self,
        object: ObjectId,
        blocks: &[(u32, BlockEntry)],
        mut each: impl FnMut(u32, &BlockEntry, Result<&[u8], Fault>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = blocks;
        while !rest.is_empty() {
            let mut runs: Vec<&[(u32, BlockEntry)]> = Vec::new();
            let mut total = 0;
            while let Some((first, _)) = rest.split_first()
                && runs.len() < RUNS_MAX
                && total < READ_BLOCKS_MAX
            {
                let follows = |n: usize| rest[n].1.location == first.1.location.wrapping_add(n as u64);
                let n = (1..rest.len().min(RUN_BLOCKS_MAX)).take_while(|n| follows(*n)).count() + 1;
                let (run, behind) = rest.split_at(n);
                runs.push(run);
                total += n;
                rest = behind;
            }
            for (run, whole) in runs.iter().zip(self.read_runs(&runs)) {
                self.verify(object, run, whole, &mut each)?;
            }
        }
        Ok(())
    }

    /// Reads runs of blocks that lie one behind the other, all at once; none where that fails.
    fn read_runs(&self, runs: &[&[(u32, BlockEntry)]]) -> Vec<Option<Buf>> {
        let mut bufs: Vec<Option<Buf>> = Vec::with_capacity(runs.len());
        for run in runs {
            let inside = run.first().is_some_and(|(_, entry)| self.bare.inside(entry.location, run.len()));
            bufs.push(if inside { self.bare.pool.get(run.len() * BLOCK_SIZE) } else { None });
        }
        let start = |run: &&[(u32, BlockEntry)]| run.first().map_or(0, |(_, entry)| entry.location);
        let places = runs.iter().zip(&mut bufs);
        let places = places.filter_map(|(run, buf)| {
            let buf = buf.as_mut()?;
            Some((byte_of(start(run)), &mut buf[..]))
        });
        let mut outcomes = self.bare.device.read_many(places.collect()).into_iter();
        for buf in bufs.iter_mut().filter(|buf| buf.is_some()) {
            if !matches!(outcomes.next(), Some(Ok(()))) {
                *buf = None;
            }
        }
        bufs
    }

    /// Verifies a run.
    fn verify<E>(
        &self,
        object: ObjectId,
        run: &[(u32, BlockEntry)],
        whole: Option<Buf>,
        each: &mut impl FnMut(u32, &BlockEntry, Result<&[u8], Fault>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (i, (block, entry)) in run.iter().enumerate() {
            // Where a run cannot be read, perhaps most of its blocks can.
            let alone = if whole.is_none() { Some(self.bare.read(entry.location, 1)) } else { None };
            let bytes = match (&whole, &alone) {
                (Some(buf), _) => buf.get(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE).ok_or(Fault::Mismatch),
                (None, Some(read)) => read.as_deref().map_err(Clone::clone),
                (None, None) => Err(Fault::Mismatch),
            };
            let good = bytes.and_then(|bytes| {
                let sum = block_checksum(object.group.volume, object.index, *block, bytes);
                if sum == entry.checksum { Ok(bytes) } else { Err(Fault::Mismatch) }
            });
            each(*block, entry, good)?;
        }
        Ok(())
    }
}
