//! What is on a device already: file systems, partition tables, parts of volumes, other stores.
//!
//! For a question before a device is overwritten, so it errs on the side of seeing something: where no
//! signature is known, any byte that is not zero in the first 4 MiB or the last 1 MiB is "data". It only
//! reads. Places and magic numbers are those of each format's own documentation.

use super::buffer::Pool;
use super::file::RawDevice;
use serde::Serialize;
use std::io;

/// Bytes at the start that are looked at.
const HEAD: u64 = 4 << 20;
/// Bytes at the end that are looked at.
const TAIL: u64 = 1 << 20;
/// One read.
const STEP: u64 = 1 << 20;
/// First eight bytes of a Trefoil superblock, and where its copies are.
const TREFOIL: (&[u8], [u64; 2]) = (b"TREFOIL\x01", [0, 1 << 20]);
/// `mdadm`'s superblock.
const MD_MAGIC: [u8; 4] = 0xa92b_4efcu32.to_le_bytes();
/// ZFS's uberblock, which is written in the byte order of the host.
const ZFS_MAGIC: u64 = 0x00ba_b10c;

/// Something that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Bytes from the start of the device.
    pub offset: u64,
    /// What it is: "an XFS file system (backup)". Names on the device have no control characters left.
    pub what: String,
}

/// The two ends of a device.
struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
    tail_at: u64,
    size: u64,
}

impl Ends {
    /// `len` bytes at `offset`, if they are in what was read.
    fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let within = |part: &'_ [u8], start: u64| -> Option<std::ops::Range<usize>> {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            let to = from.checked_add(len)?;
            (to <= part.len()).then_some(from..to)
        };
        match within(&self.head, 0) {
            Some(range) => self.head.get(range),
            None => self.tail.get(within(&self.tail, self.tail_at)?),
        }
    }
    fn is(&self, offset: u64, magic: &[u8]) -> bool {
        self.at(offset, magic.len()) == Some(magic)
    }
    fn u32(&self, offset: u64) -> Option<u32> {
        Some(u32::from_le_bytes(*self.at(offset, 4)?.first_chunk()?))
    }
    fn u64(&self, offset: u64) -> Option<u64> {
        Some(u64::from_le_bytes(*self.at(offset, 8)?.first_chunk()?))
    }
    /// A name, up to its first zero byte, in brackets and with a blank in front; nothing if it is empty.
    fn label(&self, offset: u64, len: usize) -> String {
        let bytes = self.at(offset, len).unwrap_or_default();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(&bytes[..end]);
        let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        if text.is_empty() { text } else { format!(" ({text})") }
    }
}

/// What is on the device, in the order of its bytes; empty if the ends are all zeros.
pub fn signatures(raw: &RawDevice) -> io::Result<Vec<Found>> {
    let head = read(raw, 0, HEAD.min(raw.size))?;
    // From a boundary on, for direct I/O.
    let tail_at = raw.size.saturating_sub(TAIL) / 4096 * 4096;
    let tail = read(raw, tail_at, raw.size - tail_at)?;
    Ok(look(&Ends { head, tail, tail_at, size: raw.size }))
}

/// The last block of a device or file need not be whole: what there is of it is read.
fn read(raw: &RawDevice, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let pool = Pool::new(u64::MAX, 0, None);
    let mut out = Vec::with_capacity(len as usize);
    while (out.len() as u64) < len {
        let left = len - out.len() as u64;
        let Some(mut buf) = pool.get(STEP.min(left.next_multiple_of(4096)) as usize) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let at = offset + out.len() as u64;
        let got = raw.read_some(at, &mut buf)?.min(left as usize);
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A read that stopped between blocks ends here; only the device's end may do that.
        out.extend_from_slice(&buf[..got]);
        if !got.is_multiple_of(4096) && (got as u64) < left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(out)
}

fn look(ends: &Ends) -> Vec<Found> {
    let mut found = Vec::new();
    trefoil(ends, &mut found);
    file_systems(ends, &mut found);
    volumes(ends, &mut found);
    partitions(ends, &mut found);
    found.sort_by_key(|f| f.offset);
    found.dedup();
    if found.is_empty() {
        let data = |bytes: &[u8], at: u64| Some(at + bytes.iter().position(|b| *b != 0)? as u64);
        if let Some(offset) = data(&ends.head, 0).or_else(|| data(&ends.tail, ends.tail_at)) {
            found.push(Found { offset, what: "data of an unknown kind".to_owned() });
        }
    }
    found
}

fn trefoil(ends: &Ends, found: &mut Vec<Found>) {
    for offset in TREFOIL.1.into_iter().filter(|at| ends.is(*at, TREFOIL.0)) {
        let (version, node) = (ends.u32(offset + 8).unwrap_or(0), ends.u32(offset + 12).unwrap_or(0));
        let incarnation = ends.u64(offset + 16).unwrap_or(0);
        let cluster = ends.at(offset + 24, 16).unwrap_or_default();
        let cluster: String = cluster.iter().map(|b| format!("{b:02x}")).collect();
        // A node's number is not known when its device is formatted.
        let node = if node == u32::MAX { String::new() } else { format!("node {node}, ") };
        let what = format!(
            "a Trefoil store ({node}cluster {cluster}, incarnation {incarnation:016x}, format version {version})"
        );
        found.push(Found { offset, what });
    }
}

fn file_systems(ends: &Ends, found: &mut Vec<Found>) {
    // Where the magic is, what it is, what it says, where a name is and how long.
    let known: [(u64, &[u8], &str, u64, usize); 18] = [
        (0x438, &[0x53, 0xef], "an ext2/3/4 file system", 0x478, 16),
        (0, b"XFSB", "an XFS file system", 108, 12),
        (0x1_0040, b"_BHRfS_M", "a btrfs file system", 0x1_012b, 256),
        (3, b"NTFS    ", "an NTFS file system", 0, 0),
        (3, b"EXFAT   ", "an exFAT file system", 0, 0),
        (54, b"FAT12   ", "a FAT file system", 43, 11),
        (54, b"FAT16   ", "a FAT file system", 43, 11),
        (82, b"FAT32   ", "a FAT file system", 71, 11),
        (0x400, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system", 0, 0),
        (0, b"hsqs", "a squashfs image", 0, 0),
        (0x8001, b"CD001", "an ISO 9660 file system", 0x8028, 32),
        (4096 - 10, b"SWAPSPACE2", "swap space", 1052, 16),
        (4096 - 10, b"SWAP-SPACE", "swap space", 0, 0),
        ((64 << 10) - 10, b"SWAPSPACE2", "swap space", 1052, 16),
        (4096 - 10, b"S1SUSPEND\0", "a hibernated system's memory", 0, 0),
        (0, b"QFI\xfb", "a qcow2 image", 0, 0),
        (0, b"KDMV", "a VMDK image", 0, 0),
        (0, b"bluestore block device\n", "a Ceph OSD (BlueStore)", 0, 0),
    ];
    for (offset, magic, what, label_at, label_len) in known {
        if ends.is(offset, magic) {
            found.push(Found { offset, what: format!("{what}{}", ends.label(label_at, label_len)) });
        }
    }
}

/// What other block devices are made of.
fn volumes(ends: &Ends, found: &mut Vec<Found>) {
    let mut see = |offset, what: String| found.push(Found { offset, what });
    if ends.is(0, b"LUKS\xba\xbe") {
        see(0, "a LUKS volume".to_owned());
    }
    // The second header of LUKS2 lies behind the first, whose size is one of these.
    for offset in (14..=22).map(|shift| 1u64 << shift).filter(|at| ends.is(*at, b"SKUL\xba\xbe")) {
        see(offset, "a LUKS volume (second header)".to_owned());
    }
    for sector in (0..4u64).map(|n| n * 512).filter(|at| ends.is(*at, b"LABELONE")) {
        see(sector, "an LVM physical volume".to_owned());
    }
    let md_1_0 = (ends.size / 512).checked_sub(16).map(|sectors| sectors / 8 * 8 * 512);
    for offset in [Some(0), Some(4096), md_1_0].into_iter().flatten() {
        if ends.is(offset, &MD_MAGIC) && ends.u32(offset + 4) == Some(1) {
            see(offset, format!("a member of an md RAID array{}", ends.label(offset + 32, 32)));
        }
    }
    let md_0_9 = (ends.size / (64 << 10) * (64 << 10)).checked_sub(64 << 10);
    if let Some(offset) = md_0_9.filter(|at| ends.is(*at, &MD_MAGIC)) {
        see(offset, "a member of an md RAID array (format 0.9)".to_owned());
    }
    const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
    const BCACHEFS: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
    for (magic, what) in [(BCACHE, "a bcache device"), (BCACHEFS, "a bcachefs file system")] {
        if ends.is(4096 + 24, magic) {
            see(4096 + 24, what.to_owned());
        }
    }
    // Four labels of 256 KiB: two at the start, two at the end. Each has a ring of uberblocks in its
    // second half.
    const LABEL: u64 = 256 << 10;
    let end = ends.size / LABEL * LABEL;
    for label in
        [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)].into_iter().flatten()
    {
        let magic =
            |at: &u64| ends.u64(*at).is_some_and(|word| word == ZFS_MAGIC || word.swap_bytes() == ZFS_MAGIC);
        if let Some(offset) = (label + LABEL / 2..label + LABEL).step_by(1024).find(magic) {
            see(offset, "a member of a ZFS pool".to_owned());
        }
    }
}

fn partitions(ends: &Ends, found: &mut Vec<Found>) {
    let mut gpt = false;
    // The sector size is that of the device that it was written on, which may have been another one.
    for sector in [512, 4096] {
        if ends.is(sector, b"EFI PART") {
            gpt = true;
            found.push(Found { offset: sector, what: "a GPT partition table".to_owned() });
        }
        if let Some(last) = (ends.size / sector * sector).checked_sub(sector)
            && last > sector
            && ends.is(last, b"EFI PART")
        {
            gpt = true;
            found.push(Found { offset: last, what: "a GPT partition table (backup)".to_owned() });
        }
    }
    let boot_sector_of_a_file_system = found.iter().any(|f| f.offset < 512 && f.what.contains("file system"));
    if !gpt && !boot_sector_of_a_file_system && ends.is(510, &[0x55, 0xaa]) {
        let entries = ends.at(446, 64).unwrap_or_default();
        let used = entries.chunks(16).filter(|e| e.get(4).is_some_and(|kind| *kind != 0)).count();
        let what = match used {
            0 => "a boot sector".to_owned(),
            n => format!("an MBR partition table ({n} in use)"),
        };
        found.push(Found { offset: 510, what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device of `size` bytes with these bytes on it.
    fn with(size: u64, bytes: &[(u64, &[u8])]) -> Vec<Found> {
        let mut whole = vec![0; size as usize];
        for (at, part) in bytes {
            whole[*at as usize..*at as usize + part.len()].copy_from_slice(part);
        }
        let head = whole[..HEAD.min(size) as usize].to_vec();
        let tail_at = size.saturating_sub(TAIL) / 4096 * 4096;
        let tail = whole[tail_at as usize..].to_vec();
        look(&Ends { head, tail, tail_at, size })
    }

    fn only(size: u64, bytes: &[(u64, &[u8])]) -> (u64, String) {
        match &with(size, bytes)[..] {
            [Found { offset, what }] => (*offset, what.clone()),
            other => panic!("{other:?}"),
        }
    }

    const SIZE: u64 = (16 << 20) + (64 << 10) + 512;

    #[test]
    fn nothing_and_anything() {
        assert_eq!(with(SIZE, &[]), []);
        assert_eq!(with(4096, &[]), []);
        assert_eq!(with(0, &[]), []);
        assert_eq!(only(SIZE, &[(1234, &[7])]), (1234, "data of an unknown kind".to_owned()));
        assert_eq!(only(SIZE, &[(SIZE - 70_000, &[7])]).0, SIZE - 70_000);
    }

    #[test]
    fn the_ends_of_the_device_are_where_many_keep_their_own() {
        let md = [&MD_MAGIC[..], &1u32.to_le_bytes()].concat();
        let at = (SIZE / 512 - 16) / 8 * 4096;
        assert_eq!(only(SIZE, &[(at, &md)]), (at, "a member of an md RAID array".to_owned()));
        let at = SIZE / 65536 * 65536 - 65536;
        assert!(only(SIZE, &[(at, &MD_MAGIC)]).1.contains("0.9"));
        let label = SIZE / (256 << 10) * (256 << 10) - (256 << 10);
        let uberblock = ZFS_MAGIC.to_be_bytes();
        assert!(only(SIZE, &[(label + (128 << 10) + 5 * 1024, &uberblock)]).1.contains("ZFS"));
        assert!(only(SIZE, &[(SIZE - 512, b"EFI PART")]).1.contains("GPT partition table (backup)"));
        let even = 16 << 20;
        assert!(only(even, &[(even - 4096, b"EFI PART")]).1.contains("GPT partition table (backup)"));
    }

    #[test]
    fn names_are_told_and_cannot_move_a_cursor() {
        let (at, what) = only(SIZE, &[(0x438, &[0x53, 0xef]), (0x478, b"ro\x1bot\0junk")]);
        assert_eq!((at, what.as_str()), (0x438, "an ext2/3/4 file system (root)"));
        let mut sb = b"TREFOIL\x01".to_vec();
        for part in [&2u32.to_le_bytes()[..], &5u32.to_le_bytes(), &0xabcdu64.to_le_bytes(), &[0x11; 16]] {
            sb.extend_from_slice(part);
        }
        let what = only(SIZE, &[(1 << 20, &sb)]).1;
        assert!(what.contains("node 5") && what.contains(&"11".repeat(16)), "{what}");
        assert!(what.contains("000000000000abcd") && what.contains("version 2"), "{what}");
    }

    #[test]
    fn several_are_all_told() {
        let all =
            with(SIZE, &[(0, b"XFSB"), (512, b"LABELONE"), (510, &[0x55, 0xaa]), (4086, b"SWAPSPACE2")]);
        let text = format!("{all:?}");
        assert_eq!(all.len(), 3, "the boot sector's mark belongs to the file system: {text}");
        let mut table = [0u8; 66];
        table[4] = 0x83;
        table[16 + 4] = 0x82;
        table[64..].copy_from_slice(&[0x55, 0xaa]);
        assert!(only(SIZE, &[(446, &table)]).1.contains("2 in use"));
    }

    #[test]
    fn a_signature_cut_off_by_the_end_is_none() {
        // Sizes at which every place that is computed from the end lies oddly.
        for size in [1u64, 511, 512, 4095, 4096, 8192, 65536, 262_144, 524_288, 1 << 20] {
            assert_eq!(with(size, &[]), []);
        }
    }
}
