//! What a device is, as the kernel tells: sectors, write cache, discard, model, and who holds it.
//!
//! Read once, when a device is opened. Everything from `/sys` and `/proc` may be missing (in a container,
//! on an odd file system): it is then unknown, and nothing depends on it but what is said to people and
//! whether discards are sent.

use serde::Serialize;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A whole device's or partition's number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DevNumber(pub u64);

impl fmt::Display for DevNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", libc::major(self.0), libc::minor(self.0))
    }
}

/// File or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A regular file.
    File,
    /// A whole disk, a partition, or anything else that is a block device.
    Block,
}

/// The cache between a write and its medium, as the kernel treats it (`queue/write_cache`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteCache {
    /// Volatile: the kernel flushes it, or writes with FUA, for each durable write.
    WriteBack,
    /// None, or with power protection: a write that has ended is durable.
    WriteThrough,
    /// The kernel does not say.
    #[default]
    Unknown,
}

/// What is known of a device. Of a file, what has no other source is about the disk below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// The path that it was opened with.
    pub path: String,
    /// File or block device.
    pub kind: DeviceKind,
    /// Bytes.
    pub size: u64,
    /// I/O goes around the page cache.
    pub direct: bool,
    /// Smallest unit of I/O, in bytes; of a file: unknown.
    pub logical_block: Option<u32>,
    /// Unit that is written without being read first, in bytes; of a file: unknown.
    pub physical_block: Option<u32>,
    /// The kernel's name of the disk (`nvme0n1`), where it has one.
    pub disk: Option<String>,
    /// The disk's model (of a loop device: its file; of a mapped one: its name).
    pub model: Option<String>,
    /// The disk's write cache.
    pub write_cache: WriteCache,
    /// The disk can make a single write durable by itself (FUA).
    pub fua: Option<bool>,
    /// Spinning.
    pub rotational: Option<bool>,
    /// Unit of discards in bytes; 0: a discard does nothing here. Always 0 of a file.
    pub discard_granularity: u64,
}

impl DeviceInfo {
    /// What makes a write durable here, in words.
    pub fn durability(&self) -> &'static str {
        match (self.write_cache, self.fua) {
            (WriteCache::WriteThrough, _) => "a write that has ended is durable (no volatile cache)",
            (WriteCache::WriteBack, Some(true)) => "each durable write goes through the cache (FUA)",
            (WriteCache::WriteBack, _) => "each durable write is followed by a flush of the cache",
            (WriteCache::Unknown, _) => {
                "the kernel is asked for a flush; it does not say what cache there is"
            }
        }
    }

    pub(super) fn read(path: &Path, file: &File, direct: bool, size: u64) -> io::Result<DeviceInfo> {
        let meta = file.metadata()?;
        let block = meta.file_type().is_block_device();
        let disk = Disk::find(DevNumber(if block { meta.rdev() } else { meta.dev() }));
        let queue = |name: &str| disk.as_ref().and_then(|disk| disk.queue(name));
        let flag = |name| queue(name).map(|text| text == "1");
        let (logical_block, physical_block) = if block {
            (Some(sector_size(file, libc::BLKSSZGET)?), sector_size(file, libc::BLKPBSZGET).ok())
        } else {
            (None, None)
        };
        let number = |name| queue(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let discards = block && number("discard_max_bytes") > 0;
        Ok(DeviceInfo {
            path: path.display().to_string(),
            kind: if block { DeviceKind::Block } else { DeviceKind::File },
            size,
            direct,
            logical_block,
            physical_block,
            disk: disk.as_ref().and_then(Disk::name),
            model: disk.as_ref().and_then(Disk::model),
            write_cache: match queue("write_cache").as_deref() {
                Some("write back") => WriteCache::WriteBack,
                Some("write through") => WriteCache::WriteThrough,
                _ => WriteCache::Unknown,
            },
            fua: flag("fua"),
            rotational: flag("rotational"),
            discard_granularity: if discards { number("discard_granularity").max(512) } else { 0 },
        })
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::File => "file",
            DeviceKind::Block => "block device",
        };
        write!(f, "{}: {kind}, {} bytes", self.path, self.size)?;
        if let Some(model) = &self.model {
            write!(f, ", {model}")?;
        }
        if let (Some(logical), Some(physical)) = (self.logical_block, self.physical_block) {
            write!(f, ", sectors of {logical} bytes ({physical} physical)")?;
        }
        let cache = match self.write_cache {
            WriteCache::WriteBack => "write back",
            WriteCache::WriteThrough => "write through",
            WriteCache::Unknown => "unknown",
        };
        write!(f, ", write cache: {cache} ({})", self.durability())?;
        if self.rotational == Some(true) {
            write!(f, ", rotational")?;
        }
        if !self.direct {
            write!(f, ", no direct I/O")?;
        }
        Ok(())
    }
}

fn sector_size(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one int to where they are told, which outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A disk's directory in `/sys`; a partition's is one below its disk's.
struct Disk {
    own: PathBuf,
    whole: PathBuf,
}

impl Disk {
    fn find(number: DevNumber) -> Option<Disk> {
        let own = fs::canonicalize(format!("/sys/dev/block/{number}")).ok()?;
        let whole = if own.join("partition").exists() { own.parent()?.to_path_buf() } else { own.clone() };
        Some(Disk { own, whole })
    }
    fn name(&self) -> Option<String> {
        Some(self.whole.file_name()?.to_string_lossy().into_owned())
    }
    fn queue(&self, name: &str) -> Option<String> {
        read_line(&self.whole.join("queue").join(name))
    }
    fn model(&self) -> Option<String> {
        ["device/model", "loop/backing_file", "dm/name"]
            .iter()
            .find_map(|name| read_line(&self.whole.join(name)))
    }
    fn holders(&self) -> Vec<String> {
        let names = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
        names(self.own.join("holders")).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }
    /// Numbers of the partitions of a whole disk.
    fn partitions(&self) -> Vec<(String, String)> {
        let entries = fs::read_dir(&self.own).into_iter().flatten().flatten();
        let parts = entries.filter(|e| e.path().join("partition").exists());
        parts
            .filter_map(|e| {
                Some((read_line(&e.path().join("dev"))?, e.file_name().to_string_lossy().into_owned()))
            })
            .collect()
    }
}

/// The first line of a small file, trimmed; `None` if there is none or it is empty.
fn read_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// Who holds a block device, as far as can be seen from here: where it (or a partition of it) is mounted,
/// whether it is swapped to, what device-mapper or md device is made of it.
pub(super) fn holder(number: DevNumber) -> Option<String> {
    let disk = Disk::find(number);
    let mut numbers = vec![(number.to_string(), None)];
    for (dev, name) in disk.iter().flat_map(Disk::partitions) {
        numbers.push((dev, Some(name)));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        if let Some((at, index)) = mounted(line, &numbers) {
            return Some(match &numbers[index].1 {
                Some(partition) => format!("its partition {partition} is mounted at {at}"),
                None => format!("it is mounted at {at}"),
            });
        }
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for path in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        if fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device() && m.rdev() == number.0) {
            return Some("it is used as swap".to_owned());
        }
    }
    let holders = disk.as_ref().map(Disk::holders).unwrap_or_default();
    (!holders.is_empty()).then(|| format!("it is part of {}", holders.join(", ")))
}

/// The mount point in a line of `mountinfo`, if it is one of these devices, and which.
fn mounted(line: &str, numbers: &[(String, Option<String>)]) -> Option<(String, usize)> {
    let mut fields = line.split(' ');
    let number = fields.nth(2)?;
    let at = fields.nth(1)?;
    // File systems of their own device number (btrfs) name the device only as their source.
    let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
    let of_source = || {
        let meta = source.starts_with("/dev/").then(|| fs::metadata(source).ok()).flatten()?;
        meta.file_type().is_block_device().then(|| DevNumber(meta.rdev()).to_string())
    };
    let found = |number: &str| numbers.iter().position(|(n, _)| n == number);
    let index = found(number).or_else(|| found(&of_source()?))?;
    Some((at.replace("\\040", " "), index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_understood() {
        let numbers = [("7:3".to_owned(), None), ("259:2".to_owned(), Some("nvme0n1p2".to_owned()))];
        let line = "36 35 7:3 /root /mnt/two\\040words rw,noatime master:1 - ext3 /dev/no-such rw";
        assert_eq!(mounted(line, &numbers), Some(("/mnt/two words".to_owned(), 0)));
        let line = "36 35 259:2 / /boot rw shared:1 - vfat /dev/no-such rw,errors=continue";
        assert_eq!(mounted(line, &numbers), Some(("/boot".to_owned(), 1)));
        let line = "36 35 0:44 / /x rw - tmpfs tmpfs rw";
        assert_eq!(mounted(line, &numbers), None);
        assert_eq!(mounted("short line", &numbers), None);
        assert_eq!(mounted("", &numbers), None);
    }

    #[test]
    fn durability_follows_from_the_cache() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("f");
        let file = File::create(&path).expect("made");
        let mut info = DeviceInfo::read(&path, &file, false, 0).expect("read");
        assert_eq!((info.kind, info.logical_block, info.discard_granularity), (DeviceKind::File, None, 0));
        info.write_cache = WriteCache::WriteBack;
        info.fua = Some(true);
        assert!(info.to_string().contains("write back") && info.durability().contains("FUA"));
        info.fua = Some(false);
        assert!(info.durability().contains("flush"));
    }
}
