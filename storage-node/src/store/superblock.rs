//! The superblock: what a device is, whose, and how it is divided. Two copies, written at format only.
//!
//! Nothing that changes lives here: a running store never writes a superblock, so a crash cannot
//! damage one. `docs/on-disk-format.md` has the layout.

use crate::device::Device;
use crate::device::buffer::Pool;
use trefoil_core::{BLOCK_SIZE, Incarnation, NodeId};
use trefoil_crc::crc64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of both copies.
pub const MAGIC: [u8; 8] = *b"TREFOIL\x01";
/// The version that this code writes, and the only one that it reads: version 1 never reused space.
pub const VERSION: u32 = 2;
/// Where the copies are.
pub const COPIES: [u64; 2] = [0, 1 << 20];
/// Where segment 0 begins.
pub const DATA_START: u64 = 2 << 20;
/// Smallest segment that `Store::format` makes: the largest record must fit into one.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 20;
/// Segment size of a device of [`LARGE_DEVICE_BYTES`] or more, where none is named; below: the smallest.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// See [`SEGMENT_BYTES_DEFAULT`].
pub const LARGE_DEVICE_BYTES: u64 = 64 << 30;
/// Least number of segments; below it the reserve would leave nothing for data.
pub const SEGMENTS_MIN: u64 = 12;

/// The lower bits of a location are the block's number, the upper ones the turn of its segment.
const TURN_SHIFT: u32 = 48;

/// The number of a location's block, counted from the start of the device.
pub fn place_of(location: u64) -> u64 {
    location & ((1 << TURN_SHIFT) - 1)
}

/// The byte of the device that a location begins at.
pub fn byte_of(location: u64) -> u64 {
    place_of(location) * BLOCK_SIZE as u64
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    version: U32,
    node: U32,
    incarnation: U64,
    cluster: [u8; 16],
    size: U64,
    block_bytes: U32,
    segment_blocks: U32,
    segments: U32,
    flags: U32,
    device: U32,
    devices: U32,
    first_segment: U32,
    logical_block: U32,
    checksum: U64,
}

/// What a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Random name of this store, given at format; never 0.
    pub incarnation: Incarnation,
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The node.
    pub node_id: NodeId,
    /// Bytes of the device that the store uses.
    pub size: u64,
    /// Blocks of 4 KiB in a segment.
    pub segment_blocks: u32,
    /// Segments.
    pub segments: u32,
    /// Bytes of the device's logical block when it was formatted; 0 where that is not known.
    pub logical_block: u32,
}

/// Why a device's superblock cannot be used. Nothing is written when one is returned.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// Neither copy can be read.
    #[error("{device}: cannot read the superblock: {source}")]
    Io {
        /// The device.
        device: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// Neither copy has the magic.
    #[error(
        "{device} holds no Trefoil store (no signature at bytes 0 and {second}): check the path, or \
         format it with `trefoil storage-node format`",
        second = COPIES[1]
    )]
    Foreign {
        /// The device.
        device: String,
    },
    /// Both copies are damaged.
    #[error(
        "{device}: both copies of the superblock (bytes 0 and {second}) are damaged: keep the device \
         as it is for inspection; its data can be rebuilt from the other copies on a fresh device",
        second = COPIES[1]
    )]
    Damaged {
        /// The device.
        device: String,
    },
    /// Written by older software.
    #[error(
        "{device} has format version {found}, which this program does not read any more (it reads {VERSION}): \
         take the node's data from its peers: format the device anew and let the node be repaired, one node at \
         a time"
    )]
    Older {
        /// The device.
        device: String,
        /// Its version.
        found: u32,
    },
    /// A part of a store on two devices, which this version does not open.
    #[error("{device} is one of {devices} devices of a store: this version opens stores on one device only")]
    Several {
        /// The device.
        device: String,
        /// How many.
        devices: u32,
    },
    /// Written by newer software.
    #[error(
        "{device} has format version {found}, this program reads up to {VERSION}: use the newer \
         version of Trefoil that wrote it"
    )]
    Newer {
        /// The device.
        device: String,
        /// Its version.
        found: u32,
    },
    /// The device is smaller than the store on it.
    #[error(
        "{device} has {have} bytes, but the store on it was formatted with {want}: it has been \
         truncated or copied in part; restore its full length before starting"
    )]
    Truncated {
        /// The device.
        device: String,
        /// Bytes there.
        have: u64,
        /// Bytes needed.
        want: u64,
    },
    /// Checksummed, and yet impossible.
    #[error("{device}: the superblock makes no sense ({what})")]
    Nonsense {
        /// The device.
        device: String,
        /// What.
        what: &'static str,
    },
}

impl Superblock {
    /// Divides `size` bytes into segments. `None` if it is too small for `SEGMENTS_MIN`.
    pub fn new(
        size: u64,
        segment_bytes: u64,
        incarnation: Incarnation,
        cluster_id: [u8; 16],
        node_id: NodeId,
    ) -> Option<Superblock> {
        let segments = size.checked_sub(DATA_START)? / segment_bytes;
        let segments = u32::try_from(segments).ok()?;
        if u64::from(segments) < SEGMENTS_MIN {
            return None;
        }
        Some(Superblock {
            incarnation,
            cluster_id,
            node_id,
            size,
            segment_blocks: u32::try_from(segment_bytes / BLOCK_SIZE as u64).ok()?,
            segments,
            logical_block: 0,
        })
    }

    /// The location of a block of a segment in this turn of it.
    pub fn in_turn(&self, segment: u32, turn: u16, block: u32) -> u64 {
        self.location(segment, block) | u64::from(turn) << TURN_SHIFT
    }

    /// The segment that a location lies in.
    pub fn segment_of(&self, location: u64) -> u32 {
        let behind = place_of(location).saturating_sub(DATA_START / BLOCK_SIZE as u64);
        u32::try_from(behind / u64::from(self.segment_blocks.max(1))).unwrap_or(u32::MAX)
    }

    /// The segment and its turn.
    pub fn tag_of(&self, location: u64) -> (u32, u16) {
        (self.segment_of(location), (location >> TURN_SHIFT) as u16)
    }

    /// Blocks of all segments.
    pub fn blocks(&self) -> u64 {
        u64::from(self.segments) * u64::from(self.segment_blocks)
    }

    /// Absolute number of the device's block that is `block` of `segment`.
    pub fn location(&self, segment: u32, block: u32) -> u64 {
        DATA_START / BLOCK_SIZE as u64
            + u64::from(segment) * u64::from(self.segment_blocks)
            + u64::from(block)
    }

    /// The 4 KiB that go to the device.
    pub fn encode(&self) -> [u8; BLOCK_SIZE] {
        let mut disk = Disk {
            magic: MAGIC,
            version: U32::new(VERSION),
            node: U32::new(self.node_id.0),
            incarnation: U64::new(self.incarnation.0),
            cluster: self.cluster_id,
            size: U64::new(self.size),
            block_bytes: U32::new(BLOCK_SIZE as u32),
            segment_blocks: U32::new(self.segment_blocks),
            segments: U32::new(self.segments),
            flags: U32::new(0),
            device: U32::new(0),
            devices: U32::new(1),
            first_segment: U32::new(0),
            logical_block: U32::new(self.logical_block),
            checksum: U64::new(0),
        };
        let mut out = [0; BLOCK_SIZE];
        out[..size_of::<Disk>()].copy_from_slice(disk.as_bytes());
        disk.checksum = U64::new(crc64(&out));
        out[..size_of::<Disk>()].copy_from_slice(disk.as_bytes());
        out
    }

    /// One copy: `Ok(None)` if there is no signature.
    fn decode(device: &str, bytes: &[u8]) -> Result<Option<Superblock>, SuperblockError> {
        let name = || device.to_owned();
        let Ok((disk, _)) = Disk::read_from_prefix(bytes) else {
            return Ok(None);
        };
        if disk.magic != MAGIC {
            return Ok(None);
        }
        // Other versions have their checksum elsewhere. A version that has rotted does no harm: the other
        // copy is good.
        if disk.version.get() > VERSION {
            return Err(SuperblockError::Newer { device: name(), found: disk.version.get() });
        }
        if disk.version.get() < VERSION {
            return Err(SuperblockError::Older { device: name(), found: disk.version.get() });
        }
        let mut zeroed = bytes.to_vec();
        let at = std::mem::offset_of!(Disk, checksum);
        zeroed[at..at + 8].fill(0);
        if crc64(&zeroed) != disk.checksum.get() {
            return Err(SuperblockError::Damaged { device: name() });
        }
        let nonsense = |what| SuperblockError::Nonsense { device: name(), what };
        let sb = Superblock {
            incarnation: Incarnation(disk.incarnation.get()),
            cluster_id: disk.cluster,
            node_id: NodeId(disk.node.get()),
            size: disk.size.get(),
            segment_blocks: disk.segment_blocks.get(),
            segments: disk.segments.get(),
            logical_block: disk.logical_block.get(),
        };
        if disk.devices.get() != 1 {
            return Err(SuperblockError::Several { device: name(), devices: disk.devices.get() });
        }
        if disk.device.get() != 0 || disk.first_segment.get() != 0 {
            return Err(nonsense("device number"));
        }
        if disk.block_bytes.get() as usize != BLOCK_SIZE {
            return Err(nonsense("block size"));
        }
        if sb.incarnation.0 == 0 {
            return Err(nonsense("no incarnation"));
        }
        let end = u128::from(sb.segments) * u128::from(sb.segment_blocks) * BLOCK_SIZE as u128
            + u128::from(DATA_START);
        if sb.segment_blocks == 0 || u64::from(sb.segments) < SEGMENTS_MIN || end > u128::from(sb.size) {
            return Err(nonsense("segments"));
        }
        Ok(Some(sb))
    }

    /// Reads the superblock. The second value says what was wrong with one copy, if it was.
    pub fn read(device: &impl Device) -> Result<(Superblock, Option<String>), SuperblockError> {
        let name = device.name().to_owned();
        let pool = Pool::new(u64::MAX, 0, None);
        let mut found = None;
        let mut complaint = None;
        let mut worst = SuperblockError::Foreign { device: name.clone() };
        for at in COPIES {
            let Some(mut buf) = pool.get(BLOCK_SIZE) else {
                continue;
            };
            let copy = match device.read_now(at, &mut buf) {
                Ok(()) => Superblock::decode(&name, &buf),
                // The end of a short file: there is no signature there.
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
                Err(source) => Err(SuperblockError::Io { device: name.clone(), source }),
            };
            match copy {
                Ok(Some(sb)) => match found {
                    None => found = Some(sb),
                    Some(first) if first != sb => {
                        return Err(SuperblockError::Nonsense {
                            device: name,
                            what: "its two copies are of different stores",
                        });
                    }
                    Some(_) => {}
                },
                Ok(None) => {
                    complaint = Some(format!("the superblock's copy at byte {at} has no signature"));
                }
                Err(e) => {
                    complaint = Some(format!("the superblock's copy at byte {at} is damaged"));
                    worst = e;
                }
            }
        }
        let Some(sb) = found else { return Err(worst) };
        if device.size() < sb.size {
            return Err(SuperblockError::Truncated { device: name, have: device.size(), want: sb.size });
        }
        Ok((sb, complaint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let sb = Superblock::new(
            DATA_START + (12 << 26),
            1 << 26,
            Incarnation(0x1122_3344_5566_7788),
            *b"0123456789abcdef",
            NodeId(7),
        )
        .expect("large enough");
        let bytes = sb.encode();
        let hex: String = bytes[..88].iter().map(|b| format!("{b:02x}")).collect();
        // Frozen: devices in the field carry it.
        assert_eq!(
            hex,
            "54524546 4f494c01 02000000 07000000 88776655 44332211 30313233 34353637 38396162 63646566 00002030 \
             00000000 00100000 00400000 0c000000 00000000 00000000 01000000 00000000 00000000 bf4c9425 b9502510"
                .replace(' ', "")
        );
        assert_eq!(Superblock::decode("x", &bytes).ok().flatten(), Some(sb));
        let mut bad = bytes;
        bad[40] ^= 1;
        assert!(matches!(Superblock::decode("x", &bad), Err(SuperblockError::Damaged { .. })));
    }
}
