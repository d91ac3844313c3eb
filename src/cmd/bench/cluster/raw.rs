//! What `--raw` names: a directory, in which a file is made and removed, or a device, of which the beginning is
//! overwritten.

use super::super::place::Raw;
use crate::failure::{Failure, Outcome};
use crate::size::Size;
use anyhow::{Context, anyhow};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use trefoil_storage_node::device::file::RawDevice;
use trefoil_storage_node::device::signature;

/// Space in a directory's file system that is left alone.
const SPARE_BYTES: u64 = 64 << 20;

/// See the module. Dropping it removes the file.
pub struct RawPlace {
    /// What fio uses.
    pub raw: Raw,
    remove: bool,
}

impl RawPlace {
    /// Checks that it may be used. fio makes the file.
    pub fn new(path: &Path, bytes: u64, force: bool) -> Outcome<RawPlace> {
        let name = path.display();
        let meta = std::fs::metadata(path).with_context(|| format!("--raw {name}"))?;
        if meta.is_dir() {
            let stat = nix::sys::statvfs::statvfs(path);
            let stat = stat.with_context(|| format!("cannot ask how much space {name} has"))?;
            #[allow(clippy::unnecessary_cast)] // Not 64 bits everywhere.
            let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
            if free < bytes + SPARE_BYTES {
                let (free, bytes) = (Size(free), Size(bytes));
                return Err(anyhow!(
                    "--raw {name} has {free} free, and {bytes} are needed: give a smaller --size"
                )
                .into());
            }
            let path = path.join(format!("trefoil-bench-{}.raw", std::process::id()));
            return Ok(RawPlace { raw: Raw { path, offset: 0, bytes }, remove: true });
        }
        if !meta.file_type().is_block_device() {
            return Err(Failure::usage(anyhow!("--raw {name} is neither a directory nor a block device")));
        }
        // Refuses what is mounted or otherwise in use.
        let device = RawDevice::open(path, false)?;
        if device.size < bytes {
            let told = anyhow!(
                "--raw {name} has {}, and {} are needed: give a smaller --size",
                Size(device.size),
                Size(bytes)
            );
            return Err(told.into());
        }
        let found = signature::signatures(&device).with_context(|| format!("cannot read {name}"))?;
        let may = force
            || found.is_empty()
            || crate::cmd::format::ask(&device.info, &found, &mut std::io::stdin().lock());
        if !may {
            let what: Vec<String> = found.iter().map(|found| found.what.clone()).collect();
            return Err(anyhow!(
                "--raw {name} is not empty ({}), and the benchmark would overwrite its beginning: give a directory on \
                 it, or say --force if nothing on it is needed",
                what.join(", ")
            )
            .into());
        }
        Ok(RawPlace { raw: Raw { path: path.to_owned(), offset: 0, bytes }, remove: false })
    }
}

impl Drop for RawPlace {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = std::fs::remove_file(&self.raw.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.raw.path.display(), %error, "the benchmark's file cannot be removed");
        }
    }
}
