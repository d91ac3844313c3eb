//! The disks below storage nodes: whether they are there, their write cache, FUA and scheduler.

use super::daemons::{Configured, Daemons};
use super::host::Host;
use super::{Finding, Level, units};
use std::path::{Path, PathBuf};
use trefoil_storage_node::NodeConfig;

/// Each node's device.
pub fn findings(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    let nodes = daemons.all.iter().filter_map(|it| Some((it, it.storage_node()?)));
    nodes
        .flat_map(|(it, config)| {
            let mut findings = of_node(host, &it.name(), config);
            findings.extend(of_unit(host, it, config));
            findings
        })
        .collect()
}

/// A unit may open only what its drop-in names: a changed device is a node that does not start.
fn of_unit(host: &Host, daemon: &Configured, config: &NodeConfig) -> Option<Finding> {
    let settings = units::settings(host, daemon)?;
    let device = config.device.to_str()?;
    let closed = settings.last("DevicePolicy").is_some_and(|policy| policy == "closed" || policy == "strict");
    let allowed = settings.all("DeviceAllow").any(|line| line.split_whitespace().next() == Some(device));
    if !device.starts_with("/dev/") || !closed || allowed {
        return None;
    }
    Some(Finding::bad(
        "UNIT",
        Level::Error,
        daemon.name(),
        format!("its unit may not open {device}: it cannot start"),
        "run scripts/install --devices, which allows each unit the device of its configuration",
    ))
}

fn of_node(host: &Host, name: &str, config: &NodeConfig) -> Vec<Finding> {
    let shown = config.device.display().to_string();
    let path = host.path(&config.device);
    if !path.exists() {
        if config.format_if_missing {
            return vec![Finding::ok(
                "DEVICE",
                shown,
                format!("not there yet: {name} makes it at its start"),
            )];
        }
        return vec![Finding::bad(
            "DEVICE",
            Level::Error,
            shown,
            format!("is not there: {name} cannot start"),
            "see lsblk and dmesg; name devices by /dev/disk/by-id, which stays the same when others come or go",
        )];
    }
    match Disk::find(host, &config.device) {
        Some(disk) => disk.findings(&shown),
        // A file: what is below it is the file system's business.
        None => {
            vec![Finding::ok("DEVICE", shown, "a file: what its file system says is durable is believed")]
        }
    }
}

/// A disk in `/sys`.
struct Disk {
    name: String,
    /// Its directory, as a path of the host.
    sys: PathBuf,
}

impl Disk {
    /// That of a device or of the whole that it is a partition of.
    fn find(host: &Host, device: &Path) -> Option<Disk> {
        let real = host.path(device).canonicalize().ok()?;
        let name = real.file_name()?.to_str()?.to_owned();
        let own = host.path(format!("/sys/class/block/{name}")).canonicalize().ok()?;
        let whole = if own.join("partition").exists() { own.parent()?.to_path_buf() } else { own };
        let name = whole.file_name()?.to_str()?.to_owned();
        Some(Disk { name, sys: whole })
    }

    fn line(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.sys.join(name)).ok()?;
        let line = text.lines().next()?.trim().to_owned();
        (!line.is_empty()).then_some(line)
    }

    /// What the disk itself says of its cache (SCSI and SATA), in place of what the kernel was told.
    fn own_cache(&self) -> Option<String> {
        let disks = std::fs::read_dir(self.sys.join("device/scsi_disk")).ok()?;
        let paths = disks.flatten().map(|entry| entry.path().join("cache_type"));
        paths.filter_map(|path| std::fs::read_to_string(path).ok()).map(|text| text.trim().to_owned()).next()
    }

    fn findings(&self, shown: &str) -> Vec<Finding> {
        let about =
            if shown.ends_with(&self.name) { shown.to_owned() } else { format!("{shown} ({})", self.name) };
        [self.cache(&about), self.scheduler(&about)].into_iter().flatten().collect()
    }

    fn cache(&self, about: &str) -> Option<Finding> {
        let kernel = self.line("queue/write_cache")?;
        let fua = self.line("queue/fua").is_some_and(|text| text == "1");
        let own = self.own_cache();
        match kernel.as_str() {
            "write through" if own.as_deref().is_some_and(|own| own.starts_with("write back")) => {
                Some(Finding::bad(
                    "WRITE_CACHE",
                    Level::Error,
                    about,
                    "the disk has a write cache, and the kernel was told that it has none: it is never flushed, and \
                     acknowledged writes are lost when the power fails",
                    format!(
                        "echo 'write back' > /sys/block/{}/queue/write_cache, and remove what sets it (udev rules, \
                         boot scripts)",
                        self.name
                    ),
                ))
            }
            "write through" => {
                Some(Finding::ok("WRITE_CACHE", about, "write through: a write that has ended is durable"))
            }
            "write back" if fua => {
                Some(Finding::ok("WRITE_CACHE", about, "write back with FUA: one write is one durable write"))
            }
            "write back" => Some(Finding::ok(
                "WRITE_CACHE",
                about,
                "write back without FUA: each durable write is followed by a flush, which is slow on disks \
                 without power-loss protection (try: trefoil bench store)",
            )),
            _ => None,
        }
    }

    fn scheduler(&self, about: &str) -> Option<Finding> {
        let line = self.line("queue/scheduler")?;
        let chosen = line.split('[').nth(1)?.split(']').next()?.to_owned();
        let rotational = self.line("queue/rotational").is_some_and(|text| text == "1");
        let better = if rotational { "mq-deadline" } else { "none" };
        // `none` on what calls itself rotational is right more often than not: loop and virtio disks do.
        if chosen != "bfq" {
            return Some(Finding::ok("SCHEDULER", about, chosen));
        }
        Some(Finding::bad(
            "SCHEDULER",
            Level::Warn,
            about,
            "bfq: it shares the disk among processes, which holds up the log of a node that has it for itself",
            format!(
                "echo {better} > /sys/block/{name}/queue/scheduler; for good, a udev rule: ACTION==\"add|change\", \
                 KERNEL==\"{name}\", ATTR{{queue/scheduler}}=\"{better}\"",
                name = self.name
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, levels};
    use super::*;

    fn node(fake: &Fake, device: &str, more: &str) {
        let text = format!("device = \"{device}\"\nstate_dir = \"/x\"\nmonitors = [\"127.0.0.1:1\"]\n{more}");
        fake.config("storage-node/0.toml", &text);
    }

    fn disk(fake: &Fake, cache: &str, fua: &str, scheduler: &str, rotational: &str) {
        fake.file("/dev/sdb", "").file("/sys/class/block/sdb/queue/write_cache", cache);
        fake.file("/sys/class/block/sdb/queue/fua", fua);
        fake.file("/sys/class/block/sdb/queue/scheduler", scheduler);
        fake.file("/sys/class/block/sdb/queue/rotational", rotational);
    }

    fn found(fake: &Fake) -> Vec<(&'static str, Level)> {
        levels(&findings(&fake.host(), &fake.daemons()))
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_unless_it_is_to_be_made() {
        let fake = Fake::new();
        node(&fake, "/dev/sdb", "");
        assert_eq!(found(&fake), [("DEVICE", Level::Error)]);
        node(&fake, "/srv/device", "format_if_missing = true\n");
        assert_eq!(found(&fake), [("DEVICE", Level::Ok)]);
        fake.file("/srv/device", "x");
        assert_eq!(found(&fake), [("DEVICE", Level::Ok)]);
    }

    #[test]
    fn a_unit_that_may_not_open_the_device_is_told() {
        let fake = Fake::new();
        disk(&fake, "write back", "1", "[none]", "0");
        node(&fake, "/dev/sdb", "");
        let unit = |settings: &str| {
            fake.file(
                "/etc/systemd/system/trefoil-storage-node@.service",
                "[Service]\nDevicePolicy=closed\n",
            );
            fake.file("/etc/systemd/system/trefoil-storage-node@0.service.d/10-device.conf", settings);
            found(&fake).contains(&("UNIT", Level::Error))
        };
        assert!(!found(&fake).iter().any(|it| it.0 == "UNIT"), "there is no unit");
        assert!(unit("[Service]\n") && unit("DeviceAllow=/dev/sdbc rw\n"));
        assert!(!unit("DeviceAllow=/dev/sdb rw\n") && !unit("DevicePolicy=auto\n"));
        node(&fake, "/srv/file", "format_if_missing = true\n");
        assert!(!unit("[Service]\n"), "a file is no device");
    }

    #[test]
    fn caches_that_are_hidden_from_the_kernel_are_errors() {
        let fake = Fake::new();
        node(&fake, "/dev/sdb", "");
        for (cache, fua) in [("write back\n", "0"), ("write back\n", "1"), ("write through\n", "0")] {
            disk(&fake, cache, fua, "[none] mq-deadline", "0");
            assert_eq!(found(&fake), [("WRITE_CACHE", Level::Ok), ("SCHEDULER", Level::Ok)]);
        }
        let own = "/sys/class/block/sdb/device/scsi_disk/0:0:0:0/cache_type";
        fake.file(own, "write through\n");
        assert_eq!(found(&fake)[0].1, Level::Ok);
        fake.file(own, "write back\n");
        assert_eq!(found(&fake)[0], ("WRITE_CACHE", Level::Error));
    }

    #[test]
    fn a_scheduler_that_does_not_fit_is_a_warning_and_a_partition_has_that_of_its_disk() {
        let fake = Fake::new();
        node(&fake, "/dev/sdb1", "");
        fake.file("/dev/sdb1", "").file("/sys/class/block/sdb/sdb1/partition", "1");
        let link = fake.host().path("/sys/class/block/sdb1");
        std::os::unix::fs::symlink("sdb/sdb1", link).unwrap();
        for (scheduler, rotational, level) in [
            ("none mq-deadline [bfq]", "0", Level::Warn),
            ("none mq-deadline [bfq]", "1", Level::Warn),
            ("[none] mq-deadline bfq", "1", Level::Ok),
            ("none [mq-deadline] bfq", "0", Level::Ok),
            ("[none] mq-deadline bfq", "0", Level::Ok),
        ] {
            disk(&fake, "write back", "1", scheduler, rotational);
            assert_eq!(found(&fake)[1], ("SCHEDULER", level), "{scheduler} {rotational}");
        }
        let told = &findings(&fake.host(), &fake.daemons())[1];
        assert_eq!(told.about, "/dev/sdb1 (sdb)");
    }
}
