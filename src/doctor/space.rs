//! Free space where daemons keep what is theirs: the monitors' map, the nodes' indexes, devices in files.

use super::daemons::{Configured, Daemons};
use super::host::Host;
use super::{Finding, Level};
use crate::size::Size;
use nix::sys::statvfs::statvfs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// With less than this a data directory will be full before somebody has looked.
const FREE_WARN: u64 = 1 << 30;
/// With less than this a daemon may stop in the middle of a write to it.
const FREE_ERROR: u64 = 128 << 20;

/// Each data directory, and each device that is a file.
pub fn findings(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for daemon in &daemons.all {
        if let Some(dir) = daemon.data_dir()
            && let Some(free) = free(&host.path(dir))
        {
            findings.push(of_directory(dir, &daemon.name(), free));
        }
        findings.extend(of_file(host, daemon));
    }
    findings
}

/// Bytes free to others than root where `path` is, or will be.
fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|path| path.exists())?;
    let stat = statvfs(there).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn of_directory(dir: &Path, name: &str, free: u64) -> Finding {
    let about = dir.display().to_string();
    let found = format!("{} free for {name}", Size(free));
    let remedy = "free some, or move the directory to a larger file system";
    let bad = |level, why| Finding::bad("SPACE", level, about.clone(), format!("{found}: {why}"), remedy);
    match free {
        0..FREE_ERROR => bad(Level::Error, "it stops when a write there fails"),
        FREE_ERROR..FREE_WARN => bad(Level::Warn, "little: it stops when that is used up"),
        _ => Finding::ok("SPACE", about, found),
    }
}

/// A sparse file that its file system cannot hold fails its writes, and the node stops.
fn of_file(host: &Host, daemon: &Configured) -> Option<Finding> {
    let config = daemon.storage_node()?;
    let path = host.path(&config.device);
    let (size, allocated) = match path.metadata() {
        Ok(meta) if meta.is_file() => (meta.len(), meta.blocks() * 512),
        Ok(_) => return None,
        Err(_) if config.format_if_missing => (config.size?, 0),
        Err(_) => return None,
    };
    let missing = size.saturating_sub(allocated);
    let free = free(&path)?;
    let found = format!("may come to need {} more, of {} free", Size(missing), Size(free));
    let about = config.device.display().to_string();
    if missing <= free {
        return Some(Finding::ok("SPACE", about, found));
    }
    Some(Finding::bad(
        "SPACE",
        Level::Error,
        about,
        format!("{found}: writes fail when it is full, and {} stops", daemon.name()),
        "free some; or make a smaller device; `trefoil storage-node format --preallocate` takes the space at once",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, levels};
    use super::*;

    #[test]
    fn little_space_is_a_warning_and_less_an_error() {
        let level = |free| of_directory(Path::new("/x"), "monitor 0", free).level;
        assert_eq!(
            [level(1 << 20), level(512 << 20), level(1 << 40)],
            [Level::Error, Level::Warn, Level::Ok]
        );
    }

    #[test]
    fn a_device_that_its_file_system_cannot_hold_is_told() {
        let fake = Fake::new();
        let node = |size: u64| {
            let text = format!(
                "device = \"/srv/device\"\nstate_dir = \"/x\"\nmonitors = [\"127.0.0.1:1\"]\nformat_if_missing = true\n\
                 size = {size}\n"
            );
            fake.config("storage-node/0.toml", &text);
            levels(&findings(&fake.host(), &fake.daemons()))
        };
        assert_eq!(node(1 << 60), [("SPACE", Level::Ok), ("SPACE", Level::Error)]);
        assert_eq!(node(1 << 20), [("SPACE", Level::Ok), ("SPACE", Level::Ok)]);
        // Once it is there its own length counts.
        fake.file("/srv/device", "");
        std::fs::File::options()
            .write(true)
            .open(fake.host().path("/srv/device"))
            .unwrap()
            .set_len(1 << 43)
            .unwrap();
        assert_eq!(node(1 << 20), [("SPACE", Level::Ok), ("SPACE", Level::Error)]);
    }
}
