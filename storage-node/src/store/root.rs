//! The roots: where the newest whole snapshot is. The only place that a running store overwrites.
//!
//! Two blocks, written in turn, so that the one that counts is never under way. A root is written when
//! the snapshot that it names is durable; segments that this snapshot has made unnecessary are used again
//! only when the root is durable.

use super::log::BatchRef;
use crate::device::Device;
use crate::device::buffer::Pool;
use trefoil_core::{BLOCK_SIZE, Incarnation};
use trefoil_crc::crc64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of both slots.
pub const MAGIC: [u8; 8] = *b"TRFLROOT";
const VERSION: u32 = 1;
/// Where root `n` goes: slot `n % 2`.
pub const SLOTS: [u64; 2] = [64 << 10, (1 << 20) + (64 << 10)];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct DiskRef {
    lsn: U64,
    checksum: U64,
    segment: U32,
    block: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    incarnation: U64,
    number: U64,
    covers: DiskRef,
    end: DiskRef,
    checksum: U64,
}

/// Names a snapshot. The default: there is none, the log begins at segment 0, block 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Roots are counted.
    pub number: u64,
    /// The batch that the snapshot covers: the log from behind it on is needed.
    pub covers: BatchRef,
    /// The batch with its SnapshotEnd.
    pub end: BatchRef,
}

/// What the two slots hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Good ones, the newest first.
    pub good: Vec<Root>,
    /// What is wrong with the others, in words.
    pub damage: Vec<String>,
}

fn disk_ref(at: BatchRef) -> DiskRef {
    DiskRef {
        lsn: U64::new(at.lsn),
        checksum: U64::new(at.checksum),
        segment: U32::new(at.segment),
        block: U32::new(at.block),
    }
}

fn batch_ref(at: DiskRef) -> BatchRef {
    BatchRef {
        lsn: at.lsn.get(),
        checksum: at.checksum.get(),
        segment: at.segment.get(),
        block: at.block.get(),
    }
}

impl Root {
    /// Where it goes, in bytes.
    pub fn offset(&self) -> u64 {
        SLOTS[(self.number % 2) as usize]
    }

    /// The 4 KiB that go to the device.
    pub fn encode(&self, incarnation: Incarnation) -> [u8; BLOCK_SIZE] {
        let mut disk = Disk {
            magic: MAGIC,
            version: U32::new(VERSION),
            reserved: U32::new(0),
            incarnation: U64::new(incarnation.0),
            number: U64::new(self.number),
            covers: disk_ref(self.covers),
            end: disk_ref(self.end),
            checksum: U64::new(0),
        };
        let mut out = [0; BLOCK_SIZE];
        out[..size_of::<Disk>()].copy_from_slice(disk.as_bytes());
        disk.checksum = U64::new(crc64(&out));
        out[..size_of::<Disk>()].copy_from_slice(disk.as_bytes());
        out
    }

    fn decode(bytes: &[u8], incarnation: Incarnation, slot: usize) -> Result<Root, &'static str> {
        let (disk, _) = Disk::read_from_prefix(bytes).map_err(|_| "too short")?;
        if disk.magic != MAGIC {
            return Err("no signature");
        }
        let mut zeroed = bytes.to_vec();
        let at = std::mem::offset_of!(Disk, checksum);
        zeroed[at..at + 8].fill(0);
        if crc64(&zeroed) != disk.checksum.get() {
            return Err("its checksum does not match");
        }
        if disk.version.get() != VERSION {
            return Err("its version is not known");
        }
        if disk.incarnation.get() != incarnation.0 {
            return Err("it is of another store");
        }
        if disk.number.get() % 2 != slot as u64 {
            return Err("it belongs into the other slot");
        }
        Ok(Root { number: disk.number.get(), covers: batch_ref(disk.covers), end: batch_ref(disk.end) })
    }
}

impl Roots {
    /// Reads both slots.
    pub fn read(device: &impl Device, incarnation: Incarnation) -> Roots {
        let pool = Pool::new(u64::MAX, 0, None);
        let mut roots = Roots::default();
        for (slot, at) in SLOTS.into_iter().enumerate() {
            let Some(mut buf) = pool.get(BLOCK_SIZE) else {
                continue;
            };
            let root = match device.read_now(at, &mut buf) {
                Ok(()) => Root::decode(&buf, incarnation, slot).map_err(str::to_owned),
                Err(error) => Err(error.to_string()),
            };
            match root {
                Ok(root) => roots.good.push(root),
                Err(why) => roots.damage.push(format!("the root at byte {at} cannot be used: {why}")),
            }
        }
        roots.good.sort_unstable_by_key(|r| std::cmp::Reverse(r.number));
        roots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_every_flip_is_seen() {
        let at = |n| BatchRef { lsn: n, checksum: n << 8, segment: 3, block: 4 };
        let root = Root { number: 7, covers: at(0x11), end: at(0x22) };
        let mut bytes = root.encode(Incarnation(0x0102_0304_0506_0708));
        let hex: String = bytes[..88].iter().map(|b| format!("{b:02x}")).collect();
        // Frozen: devices in the field carry it.
        assert_eq!(
            hex,
            "5452464c 524f4f54 01000000 00000000 08070605 04030201 07000000 00000000 11000000 00000000 \
             00110000 00000000 03000000 04000000 22000000 00000000 00220000 00000000 03000000 04000000 \
             53dd248db0eadcc3"
                .replace(' ', "")
        );
        assert_eq!(Root::decode(&bytes, Incarnation(0x0102_0304_0506_0708), 1), Ok(root));
        assert!(Root::decode(&bytes, Incarnation(0x0102_0304_0506_0708), 0).is_err());
        assert!(Root::decode(&bytes, Incarnation(1), 1).is_err());
        for at in 0..BLOCK_SIZE {
            bytes[at] ^= 4;
            assert!(Root::decode(&bytes, Incarnation(0x0102_0304_0506_0708), 1).is_err(), "flip at {at}");
            bytes[at] ^= 4;
        }
    }
}
