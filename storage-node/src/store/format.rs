//! Making a store on a device, and refusing to make one where something is.

use super::root::Root;
use super::superblock::{
    COPIES, DATA_START, LARGE_DEVICE_BYTES, MAGIC, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN, SEGMENTS_MIN,
    Superblock,
};
use crate::device::Device;
use crate::device::buffer::Pool;
use crate::device::file::{Engine, FileDevice, OpenDeviceError, RawDevice};
use std::io;
use std::path::Path;
use trefoil_core::{BLOCK_SIZE, Incarnation, NodeId};

/// How to format.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Bytes to use; a regular file is made or extended to that length. `None`: all that is there.
    pub size: Option<u64>,
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The node.
    pub node_id: NodeId,
    /// Bytes of a segment: a power of two, at least 32 MiB. `None`: 64 MiB.
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
         format with force"
    )]
    NotEmpty {
        /// The device.
        device: String,
        /// What was seen.
        what: String,
    },
    /// Too small.
    #[error(
        "{device}: {size} bytes are too few: a store needs at least {least} bytes (four segments of \
         {segment})"
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

/// Makes a store on a file or block device. What is there is looked at first; see [`FormatOptions`].
pub fn format(path: &Path, options: &FormatOptions) -> Result<Superblock, FormatError> {
    let default = match options.size {
        Some(size) if size < LARGE_DEVICE_BYTES => SEGMENT_BYTES_MIN,
        _ => SEGMENT_BYTES_DEFAULT,
    };
    let segment = options.segment_bytes.unwrap_or(default);
    if !segment.is_power_of_two() || !(SEGMENT_BYTES_MIN..=1 << 32).contains(&segment) {
        return Err(FormatError::Segment(segment));
    }
    let create = options.size.is_some() && !path.exists();
    let mut raw = RawDevice::open(path, create)?;
    let name = raw.name.clone();
    let io = |what| {
        let device = name.clone();
        move |source| FormatError::Io { device, what, source }
    };
    let size = options.size.unwrap_or(raw.size) / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    let too_small = || FormatError::TooSmall {
        device: name.clone(),
        size,
        least: DATA_START + SEGMENTS_MIN * segment,
        segment,
    };
    let incarnation = random_incarnation().map_err(io("cannot read random numbers"))?;
    let Some(sb) = Superblock::new(size, segment, incarnation, options.cluster_id, options.node_id) else {
        return Err(too_small());
    };
    if !options.force
        && let Some(what) = holds(&raw).map_err(io("cannot read"))?
    {
        return Err(FormatError::NotEmpty { device: name, what });
    }
    let regular = raw.file.metadata().map_err(io("cannot look"))?.is_file();
    if regular && raw.size < size {
        raw.file.set_len(size).map_err(io("cannot extend the file"))?;
        raw.size = size;
    }
    if raw.size < size {
        return Err(FormatError::Smaller { device: name, have: raw.size, want: size });
    }
    if regular && options.preallocate {
        nix::fcntl::posix_fallocate(&*raw.file, 0, size as i64)
            .map_err(|e| io("cannot allocate the file's space")(e.into()))?;
    }
    raw.file.sync_all().map_err(io("cannot make it durable"))?;
    if regular
        && let Some(dir) = path.parent()
        && let Ok(dir) = std::fs::File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
    {
        dir.sync_all().map_err(io("cannot make its directory durable"))?;
    }
    let mut device = FileDevice::new(raw, Engine::Blocking).map_err(io("cannot start"))?;
    format_device(&mut device, &sb).map_err(io("cannot write the superblock"))?;
    Ok(sb)
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

/// What the start and the end of a device hold; `None` if they are all zeros.
fn holds(raw: &RawDevice) -> io::Result<Option<String>> {
    let pool = Pool::new(u64::MAX, 0, None);
    let mut at = 0;
    let end = raw.size / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    const STEP: u64 = 1 << 20;
    while at < end {
        let n = STEP.min(end - at);
        let Some(mut buf) = pool.get(n as usize) else {
            break;
        };
        raw.read_now(at, &mut buf)?;
        let sign = |offset: usize, magic: &[u8]| buf.get(offset..offset + magic.len()) == Some(magic);
        let known = [
            (0, &MAGIC[..], "a Trefoil store"),
            (0x438, &[0x53, 0xef], "an ext2/3/4 file system"),
            (0, b"XFSB", "an XFS file system"),
            (0x10040, b"_BHRfS_M", "a btrfs file system"),
            (0, b"LUKS\xba\xbe", "a LUKS volume"),
            (512, b"LABELONE", "an LVM physical volume"),
            (512, b"EFI PART", "a GPT partition table"),
            (510, &[0x55, 0xaa], "a boot sector or partition table"),
        ];
        let seen = known.iter().find(|(o, m, _)| at == 0 && sign(*o, m));
        if let Some((_, _, what)) = seen {
            return Ok(Some((*what).to_owned()));
        }
        if let Some(first) = buf.iter().position(|b| *b != 0) {
            return Ok(Some(format!("data (first at byte {})", at + first as u64)));
        }
        // The first 4 MiB, then the last one.
        at = if at + n < (4 << 20).min(end) {
            at + n
        } else if at + n < end.saturating_sub(STEP) {
            end - STEP
        } else {
            at + n
        };
    }
    Ok(None)
}
