//! Making a store on a device, and refusing to make one where something is.

use super::root::Root;
use super::superblock::{
    COPIES, DATA_START, LARGE_DEVICE_BYTES, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN, SEGMENTS_MIN,
    Superblock,
};
use crate::device::buffer::Pool;
use crate::device::file::{Engine, FileDevice, OpenDeviceError, RawDevice};
use crate::device::info::DeviceInfo;
use crate::device::signature::{Found, signatures};
use crate::device::{Device, Prepare};
use std::io;
use std::path::Path;
use trefoil_core::{BLOCK_SIZE, Incarnation, NodeId};

/// Bytes discarded at once.
const DISCARD_STEP: u64 = 1 << 30;
/// Bytes overwritten at each end where something was: more than any format keeps there.
const WIPE_BYTES: u64 = 4 << 20;

/// How to format.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Bytes to use; a regular file is made or extended to that length. `None`: all that is there.
    pub size: Option<u64>,
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The node.
    pub node_id: NodeId,
    /// Bytes of a segment: a power of two, at least 32 MiB. `None`:
    /// [`default_segment_bytes`].
    pub segment_bytes: Option<u64>,
    /// Allocate a regular file's space now, so that it cannot run out later; else it is sparse.
    pub preallocate: bool,
    /// Format although something is there. It is lost.
    pub force: bool,
}

/// Why a device was not formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It cannot be opened.
    #[error(transparent)]
    Device(#[from] OpenDeviceError),
    /// The system.
    #[error("{device}: {what}: {source}")]
    Io {
        /// The device.
        device: String,
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// It holds something.
    #[error(
        "{device} is not empty: it holds {what}. Nothing was written. If it may be overwritten, \
         format with --force"
    )]
    NotEmpty {
        /// The device.
        device: String,
        /// What was seen.
        what: String,
    },
    /// Too small.
    #[error(
        "{device}: {size} bytes are too few: a store needs at least {least} bytes ({min} segments of \
         {segment})", min = SEGMENTS_MIN
    )]
    TooSmall {
        /// The device.
        device: String,
        /// Its size.
        size: u64,
        /// The least.
        least: u64,
        /// The segment size.
        segment: u64,
    },
    /// The segment size.
    #[error("a segment of {0} bytes is not possible: choose a power of two of at least {min}", min = SEGMENT_BYTES_MIN)]
    Segment(u64),
    /// A device that is not there.
    #[error(
        "{0} is not there, and a file is not made in its place: it would lie in memory, where the device nodes \
         are, or where a link points that leads nowhere. Check the device's name; `lsblk` shows what there is"
    )]
    NoDevice(String),
    /// A device smaller than asked for.
    #[error("{device} has {have} bytes, fewer than the size asked for ({want})")]
    Smaller {
        /// The device.
        device: String,
        /// Its size.
        have: u64,
        /// Asked for.
        want: u64,
    },
}

/// How the device is gone about, beyond what [`FormatOptions`] says.
pub struct FormatHow<'a> {
    /// Tell a block device that nothing on it is needed.
    pub discard: bool,
    /// Asked where something is on the device and no force is used: may it be overwritten? The device is
    /// locked meanwhile, so that what was seen is what is overwritten.
    pub overwrite: &'a mut dyn FnMut(&DeviceInfo, &[Found]) -> bool,
    /// Told how many bytes have been discarded, of how many.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Formatted {
    /// The store.
    pub superblock: Superblock,
    /// On what.
    pub device: DeviceInfo,
    /// What was there before, and is lost.
    pub replaced: Vec<Found>,
    /// Bytes discarded.
    pub discarded: u64,
    /// Why not all of the device was discarded, if it was tried. That costs speed at most.
    pub discard_error: Option<String>,
}

/// Makes a store on a file or block device. What is there is looked at first; see [`FormatOptions`].
pub fn format(path: &Path, options: &FormatOptions) -> Result<Superblock, FormatError> {
    let how = FormatHow { discard: true, overwrite: &mut |_, _| false, progress: &mut |_, _| () };
    Ok(format_with(path, options, how)?.superblock)
}

/// The size of segments of a store of `size` bytes where none is named: small ones on a small device, so
/// that cleaning has enough of them to choose from.
pub fn default_segment_bytes(size: u64) -> u64 {
    if size < LARGE_DEVICE_BYTES { SEGMENT_BYTES_MIN } else { SEGMENT_BYTES_DEFAULT }
}

/// [`format()`], by somebody who can be asked and told.
pub fn format_with(path: &Path, options: &FormatOptions, how: FormatHow) -> Result<Formatted, FormatError> {
    if let Some(segment) = options.segment_bytes
        && (!segment.is_power_of_two() || !(SEGMENT_BYTES_MIN..=1 << 32).contains(&segment))
    {
        return Err(FormatError::Segment(segment));
    }
    let name = path.display().to_string();
    let io = |what| {
        let device = name.clone();
        move |source| FormatError::Io { device, what, source }
    };
    let incarnation = random_incarnation().map_err(io("cannot read random numbers"))?;
    let plan = |size: u64| {
        let size = size / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
        let segment = options.segment_bytes.unwrap_or_else(|| default_segment_bytes(size));
        Superblock::new(size, segment, incarnation, options.cluster_id, options.node_id).ok_or_else(|| {
            let least = DATA_START + SEGMENTS_MIN * segment;
            FormatError::TooSmall { device: name.clone(), size, least, segment }
        })
    };
    // Before a file is made that cannot be used.
    if let Some(size) = options.size {
        plan(size)?;
    }
    let create = options.size.is_some() && !path.exists();
    if create && means_a_device(path) {
        return Err(FormatError::NoDevice(name));
    }
    let mut raw = RawDevice::open(path, create)?;
    let sb = plan(options.size.unwrap_or(raw.size))?;
    let regular = !raw.is_block();
    if raw.size < sb.size && !regular {
        return Err(FormatError::Smaller { device: name, have: raw.size, want: sb.size });
    }
    let replaced = signatures(&raw).map_err(io("cannot read what is on it"))?;
    if !replaced.is_empty() && !options.force && !(how.overwrite)(&raw.info, &replaced) {
        return Err(FormatError::NotEmpty { device: name, what: list(&replaced) });
    }
    if regular && raw.size < sb.size {
        raw.file.set_len(sb.size).map_err(io("cannot extend the file"))?;
        raw.size = sb.size;
        raw.info.size = sb.size;
    }
    if regular && options.preallocate {
        nix::fcntl::posix_fallocate(&*raw.file, 0, sb.size as i64)
            .map_err(|e| io("cannot allocate the file's space")(e.into()))?;
    }
    raw.file.sync_all().map_err(io("cannot make it durable"))?;
    if regular
        && let Some(dir) = path.parent()
        && let Ok(dir) = std::fs::File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
    {
        dir.sync_all().map_err(io("cannot make its directory durable"))?;
    }
    let (discarded, discard_error) = match how.discard && raw.prepare() == Prepare::Discard {
        true => discard_all(&raw, how.progress),
        false => (0, None),
    };
    if !replaced.is_empty() {
        wipe(&raw).map_err(io("cannot overwrite what is there"))?;
    }
    let info = raw.info.clone();
    let mut device = FileDevice::new(raw, Engine::Blocking).map_err(io("cannot start"))?;
    format_device(&mut device, &sb).map_err(io("cannot write the superblock"))?;
    Ok(Formatted { superblock: sb, device: info, replaced, discarded, discard_error })
}

/// True for a path of nothing that can only have meant a device: among the device nodes, or a link to nowhere,
/// as those of udev are while their disk is away. A file made there would take what the device should have, and
/// in `/dev` it is in memory.
fn means_a_device(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
    path.is_symlink() || dir.starts_with("/dev") && !dir.starts_with("/dev/shm")
}

fn list(found: &[Found]) -> String {
    let each = found.iter().map(|f| format!("{} (at byte {})", f.what, f.offset));
    each.collect::<Vec<_>>().join(", ")
}

/// Discards everything, in steps that a person can watch. Returns how much, and what stopped it.
fn discard_all(raw: &RawDevice, progress: &mut dyn FnMut(u64, u64)) -> (u64, Option<String>) {
    let end = raw.size / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    let mut done = 0;
    while done < end {
        progress(done, end);
        let step = DISCARD_STEP.min(end - done);
        if let Err(error) = raw.discard(done, step) {
            return (done, Some(error.to_string()));
        }
        done += step;
    }
    progress(end, end);
    (done, None)
}

/// Overwrites both ends, where others keep what they know a device by: whoever looks for it at the next
/// boot (a RAID, a volume manager) must not find it and take the device. A discard does not do that: what
/// is read after it is anything.
fn wipe(raw: &RawDevice) -> io::Result<()> {
    // To the last sector, which is where a GPT has its second header.
    let sector = u64::from(raw.info.logical_block.unwrap_or(BLOCK_SIZE as u32));
    let end = raw.size / sector * sector;
    let tail_at = end.saturating_sub(WIPE_BYTES) / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    let pool = Pool::new(u64::MAX, 0, None);
    let Some(mut zeros) = pool.get(WIPE_BYTES as usize + BLOCK_SIZE) else {
        return Err(io::ErrorKind::OutOfMemory.into());
    };
    zeros.fill(0);
    // The start last: a crash in between leaves a device that still says that something was there.
    for (at, to) in [(tail_at, end), (0, WIPE_BYTES.min(end))] {
        raw.write_at(at, &zeros[..(to - at) as usize])?;
    }
    raw.sync()
}

/// Writes the superblock's copies, and an empty block where the log begins.
pub fn format_device<D: Device>(device: &mut D, sb: &Superblock) -> io::Result<()> {
    let pool = Pool::new(u64::MAX, 0, None);
    let Some(mut buf) = pool.get(BLOCK_SIZE) else {
        return Ok(());
    };
    buf.fill(0);
    device.write_now(sb.location(0, 0) * BLOCK_SIZE as u64, &buf)?;
    for number in [1, 0] {
        let root = Root { number, ..Root::default() };
        buf.copy_from_slice(&root.encode(sb.incarnation));
        device.write_now(root.offset(), &buf)?;
    }
    buf.copy_from_slice(&sb.encode());
    // The second copy first: a crash in between leaves a device that says what it is.
    for at in COPIES.into_iter().rev() {
        device.write_now(at, &buf)?;
    }
    Ok(())
}

fn random_incarnation() -> io::Result<Incarnation> {
    use std::io::Read;
    let mut source = std::fs::File::open("/dev/urandom")?;
    loop {
        let mut bytes = [0; 8];
        source.read_exact(&mut bytes)?;
        match u64::from_le_bytes(bytes) {
            0 => continue,
            n => return Ok(Incarnation(n)),
        }
    }
}
