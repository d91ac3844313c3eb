//! Where a benchmark writes: a directory of its own, or a device that was given to it; and its removal.
//!
//! Space is counted before it is used. On a device the store is in front and what fio uses right behind it;
//! in a directory each is a file.

use super::PlaceArgs;
use crate::failure::{Failure, Outcome};
use crate::size::Size;
use anyhow::{Context, anyhow, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use trefoil_core::ids::NodeId;
use trefoil_storage_node::device::Prepare;
use trefoil_storage_node::device::buffer::{Buf, Pool};
use trefoil_storage_node::device::file::RawDevice;
use trefoil_storage_node::store::{FormatHow, FormatOptions, format_with};

/// Bytes written at once.
const STEP: u64 = 1 << 20;
/// Overwritten at both ends of a device, so that nothing takes what is left for a store.
const WIPE_BYTES: u64 = 4 << 20;
/// Space for the index and for the file system's own.
const SPARE_BYTES: u64 = 64 << 20;

/// See the module. Dropping it removes what was made.
pub struct Place {
    /// What the store is on.
    pub device: PathBuf,
    /// A directory for the store's index; it is made by whoever opens it.
    pub index: PathBuf,
    /// What fio may use.
    pub raw: Raw,
    dir: PathBuf,
    parent_made: Option<PathBuf>,
    /// Bytes of the device that were used.
    wipe: Option<u64>,
}

/// A part of a file or device.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The file or device.
    pub path: PathBuf,
    /// Where it begins.
    pub offset: u64,
    /// Its length; 0: none.
    pub bytes: u64,
}

/// What is wanted.
pub struct Wanted {
    /// Bytes of the store.
    pub store: u64,
    /// Bytes for fio.
    pub raw: u64,
    /// Bytes that will really be written.
    pub written: u64,
    /// The store's file gets its space at once.
    pub preallocate: bool,
}

impl Place {
    /// Makes it and formats the store. `progress` is told how much of what fio will use has been written.
    pub fn make(args: &PlaceArgs, wanted: &Wanted, progress: &mut dyn FnMut(u64, u64)) -> Outcome<Place> {
        let name = format!("trefoil-bench-{}", std::process::id());
        let mut place = match (&args.dir, &args.device) {
            (Some(parent), None) => {
                let parent_made = make_dir(parent)?;
                let dir = parent.join(name);
                let device = dir.join("store");
                let raw = Raw { path: dir.join("raw"), offset: 0, bytes: wanted.raw };
                Place { device, index: dir.join("index"), raw, dir, parent_made, wipe: None }
            }
            (None, Some(device)) => {
                let dir = std::env::temp_dir().join(name);
                let raw = Raw { path: device.clone(), offset: wanted.store, bytes: wanted.raw };
                Place {
                    device: device.clone(),
                    index: dir.join("index"),
                    raw,
                    dir,
                    parent_made: None,
                    wipe: None,
                }
            }
            _ => return Err(Failure::usage(anyhow!("give either --dir or --device"))),
        };
        fs::create_dir(&place.dir).with_context(|| format!("cannot make {}", place.dir.display()))?;
        match &args.device {
            None => place.room_for(wanted)?,
            Some(device) => place.is_device(device, wanted)?,
        }
        place.format(wanted, args.force)?;
        if args.device.is_some() {
            // Ours from here on.
            place.wipe = Some(wanted.store + wanted.raw);
        }
        place.write_raw(progress)?;
        Ok(place)
    }

    fn room_for(&self, wanted: &Wanted) -> Outcome {
        let stat = nix::sys::statvfs::statvfs(&self.dir)
            .with_context(|| format!("cannot ask how much space {} has", self.dir.display()))?;
        #[allow(clippy::unnecessary_cast)] // Not 64 bits everywhere.
        let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        let needed = wanted.written + wanted.raw + SPARE_BYTES;
        ensure_that(free >= needed, || {
            let dir = self.dir.parent().unwrap_or(&self.dir).display();
            format!(
                "{dir} has {} free, and {} are needed: give a smaller --size or --write",
                Size(free),
                Size(needed)
            )
        })
    }

    fn is_device(&self, device: &Path, wanted: &Wanted) -> Outcome {
        let raw = RawDevice::open(device, false)?;
        ensure_that(raw.is_block(), || format!("{} is no block device: use --dir", device.display()))?;
        let needed = wanted.store + wanted.raw;
        ensure_that(raw.size >= needed, || {
            format!(
                "{} has {}, and {} are needed: give a smaller --size",
                device.display(),
                Size(raw.size),
                Size(needed)
            )
        })
    }

    fn format(&self, wanted: &Wanted, force: bool) -> Outcome {
        let options = FormatOptions {
            size: Some(wanted.store),
            cluster_id: [0; 16],
            node_id: NodeId(0),
            segment_bytes: None,
            preallocate: wanted.preallocate,
            force,
        };
        let how = FormatHow {
            discard: true,
            overwrite: &mut |device, found| {
                crate::cmd::format::ask(device, found, &mut std::io::stdin().lock())
            },
            progress: &mut |_, _| (),
        };
        format_with(&self.device, &options, how)?;
        Ok(())
    }

    /// Writes what fio will read and overwrite, so that the file system has nothing to add later.
    fn write_raw(&self, progress: &mut dyn FnMut(u64, u64)) -> Outcome {
        if self.raw.bytes == 0 {
            return Ok(());
        }
        let device = RawDevice::open(&self.raw.path, true)?;
        let mut buf = memory(STEP)?;
        for (n, byte) in buf.iter_mut().enumerate() {
            *byte = ((n * 167) >> 8) as u8;
        }
        for at in (0..self.raw.bytes).step_by(STEP as usize) {
            progress(at, self.raw.bytes);
            let n = STEP.min(self.raw.bytes - at) as usize;
            device.write_at(self.raw.offset + at, &buf[..n])?;
        }
        Ok(device.sync()?)
    }

    /// The device must not look like a store afterwards, and a part of one has no use.
    fn wipe_device(&self, used: u64) -> anyhow::Result<()> {
        let device = RawDevice::open(&self.device, false)?;
        let mut zeros = memory(WIPE_BYTES).map_err(|_| anyhow!("no memory"))?;
        zeros.fill(0);
        if device.prepare() == Prepare::Discard {
            // Advice: what counts is overwritten below.
            let _ = device.discard(0, used);
        }
        for at in [0, used.saturating_sub(WIPE_BYTES)] {
            device.write_at(at, &zeros)?;
        }
        Ok(device.sync()?)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(used) = self.wipe
            && let Err(error) = self.wipe_device(used)
        {
            tracing::warn!(device = %self.device.display(), %error, "the benchmark's store cannot be wiped");
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "the benchmark's files cannot be removed");
        }
        if let Some(made) = &self.parent_made {
            // Only if nobody has put anything there.
            let _ = fs::remove_dir(made);
        }
    }
}

/// Makes a directory; its path, if it was not there. Its own parent must be.
fn make_dir(dir: &Path) -> Outcome<Option<PathBuf>> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(Some(dir.to_owned())),
        Err(_) if dir.is_dir() => Ok(None),
        Err(error) => Err(anyhow::Error::new(error).context(format!("cannot make {}", dir.display())).into()),
    }
}

fn memory(bytes: u64) -> Outcome<Buf> {
    Ok(Pool::new(u64::MAX, 0, None).get(bytes as usize).context("no memory")?)
}

fn ensure_that(good: bool, why: impl FnOnce() -> String) -> Outcome {
    let check = || -> anyhow::Result<()> {
        ensure!(good, why());
        Ok(())
    };
    Ok(check()?)
}
