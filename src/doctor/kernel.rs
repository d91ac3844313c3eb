//! Kernel version, io_uring, clocks, memory, huge pages and swap.

use super::daemons::Daemons;
use super::host::Host;
use super::{Finding, Level};
use crate::size::Size;

/// The oldest kernel that is not warned of, major and minor: a long-term one, with an io_uring that has
/// outgrown its first faults. Tested are Debian 12's 6.1 and later ones.
const KERNEL_MIN: (u64, u64) = (5, 10);
/// An error of the clock, in microseconds by the kernel's own estimate, that makes logs hard to compare.
const CLOCK_ERROR_MAX: u64 = 1_000_000;
/// Percent of the memory that daemons may take before it is a warning: the kernel, the page cache and
/// whatever else runs want some as well.
const MEMORY_PERCENT_MAX: u64 = 80;

/// Version, io_uring, huge pages and clocks.
pub fn findings(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    let checks = [version(host), io_uring(host, daemons), huge_pages(host), clock(host), clock_source(host)];
    checks.into_iter().flatten().collect()
}

/// Memory and swap.
pub fn memory_findings(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    [memory(host, daemons), swap(host)].into_iter().flatten().collect()
}

fn version(host: &Host) -> Option<Finding> {
    let release = host.line("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u64>());
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    if (major, minor) >= KERNEL_MIN {
        return Some(Finding::ok("KERNEL", "", release));
    }
    let (old, older) = KERNEL_MIN;
    Some(Finding::bad(
        "KERNEL",
        Level::Warn,
        "",
        format!("{release} is older than {old}.{older}: its io_uring has known faults, and it is not tested"),
        "boot a newer kernel; Debian 12 has 6.1",
    ))
}

/// Only storage nodes use it; without any configured it is looked at all the same, for they may come.
fn io_uring(host: &Host, daemons: &Daemons) -> Option<Finding> {
    if !daemons.all.is_empty() && daemons.storage_nodes().next().is_none() {
        return None;
    }
    let slower =
        "storage nodes fall back to threads, which cost several times the processor time for each I/O";
    let bad = |found: String, remedy: &str| {
        Some(Finding::bad("IO_URING", Level::Warn, "", format!("{found}: {slower}"), remedy))
    };
    let allow = "set kernel.io_uring_disabled = 0 in /etc/sysctl.d/, and run sysctl --system";
    match host.number("/proc/sys/kernel/io_uring_disabled") {
        Some(2) => return bad("kernel.io_uring_disabled = 2 refuses it to everybody".into(), allow),
        Some(1) => {
            let found =
                "kernel.io_uring_disabled = 1 refuses it to users that are not in kernel.io_uring_group";
            return bad(found.into(), &format!("{allow}; or make the group of the user trefoil that group"));
        }
        _ => {}
    }
    match &host.live.io_uring {
        Some(Ok(())) => Some(Finding::ok("IO_URING", "", "can be used")),
        Some(Err(why)) => bad(
            format!("this process may not use it ({why})"),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile",
        ),
        None => None,
    }
}

fn clock(host: &Host) -> Option<Finding> {
    let (kept, error) = host.live.clock?;
    let remedy = "install and start chrony or systemd-timesyncd, and see what it says (chronyc tracking)";
    if !kept {
        let found = "nothing keeps the clock: times in logs and events of several hosts cannot be compared, and a \
                     clock that runs 12 % slow breaks what leases rely on";
        return Some(Finding::bad("CLOCK", Level::Warn, "", found, remedy));
    }
    if error > CLOCK_ERROR_MAX {
        let found = format!("the clock may be wrong by {} ms, by its own estimate", error / 1000);
        return Some(Finding::bad("CLOCK", Level::Warn, "", found, remedy));
    }
    let found = format!("kept by a time service; wrong by at most {} ms, by its own estimate", error / 1000);
    Some(Finding::ok("CLOCK", "", found))
}

fn clock_source(host: &Host) -> Option<Finding> {
    let source = host.line("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    if !["hpet", "acpi_pm", "jiffies", "refined-jiffies"].contains(&source.as_str()) {
        return Some(Finding::ok("CLOCKSOURCE", "", source));
    }
    Some(Finding::bad(
        "CLOCKSOURCE",
        Level::Warn,
        "",
        format!("{source}: each look at the clock is a slow one, and every I/O has several"),
        "find out why the kernel does not trust the TSC (dmesg | grep -i -e tsc -e clocksource)",
    ))
}

fn memory(host: &Host, daemons: &Daemons) -> Option<Finding> {
    let text = host.text("/proc/meminfo")?;
    let field = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = field.split_whitespace().next()?.parse().ok()?;
    let (total, need) = (kib.saturating_mul(1024), daemons.need().memory);
    if daemons.all.is_empty() {
        return Some(Finding::ok("MEMORY", "", format!("{} in all", Size(total))));
    }
    let about = format!("{} configured daemons", daemons.all.len());
    let found = format!("they may take {} of {}", Size(need), Size(total));
    let remedy = "lower memory_bytes of storage nodes, run fewer of them here, or add memory";
    if need > total {
        let found = format!("{found}: the kernel will kill one of them in the middle of its work");
        return Some(Finding::bad("MEMORY", Level::Error, about, found, remedy));
    }
    if need > total / 100 * MEMORY_PERCENT_MAX {
        let found = format!("{found}: little is left for the kernel, virtual machines and everything else");
        return Some(Finding::bad("MEMORY", Level::Warn, about, found, remedy));
    }
    Some(Finding::ok("MEMORY", about, found))
}

/// The allocator asks for them where it may (docs/performance.md has what they spare).
fn huge_pages(host: &Host) -> Option<Finding> {
    let choices = host.line("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let chosen = choices.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))?;
    if chosen != "never" {
        return Some(Finding::ok("HUGE_PAGES", "", format!("transparent ones: {chosen}")));
    }
    Some(Finding::bad(
        "HUGE_PAGES",
        Level::Warn,
        "",
        "transparent huge pages are given to nobody: large writes cost storage nodes about a sixth more processor time",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, and transparent_hugepage=madvise on the kernel's \
         command line: programs that do not ask get none then, either",
    ))
}

fn swap(host: &Host) -> Option<Finding> {
    let text = host.text("/proc/swaps")?;
    let used: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if used.is_empty() {
        return Some(Finding::ok("SWAP", "", "none"));
    }
    Some(Finding::bad(
        "SWAP",
        Level::Warn,
        used.join(", "),
        "a daemon whose memory has been swapped out answers late: a stall for every client",
        "swapoff -a, and remove it from /etc/fstab; the units' MemorySwapMax=0 does the same for the daemons alone \
         where systemd has cgroup v2 (stat -fc %T /sys/fs/cgroup says cgroup2fs)",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::host::Live;
    use super::super::testing::{Fake, levels};
    use super::*;

    #[test]
    fn old_kernels_are_warned_of() {
        for (release, level) in [
            ("6.1.0-28-amd64", Level::Ok),
            ("5.10.0-1", Level::Ok),
            ("5.4.0-200-generic", Level::Warn),
            ("3.10.0-1160.el7", Level::Warn),
        ] {
            let fake = Fake::new();
            fake.file("/proc/sys/kernel/osrelease", release);
            assert_eq!(version(&fake.host()).map(|it| it.level), Some(level), "{release}");
        }
        assert_eq!(version(&Fake::new().host()), None, "nothing is made up");
        let odd = Fake::new();
        assert_eq!(version(&odd.file("/proc/sys/kernel/osrelease", "next").host()), None);
    }

    #[test]
    fn io_uring_is_asked_of_sysctl_and_of_the_kernel() {
        let fake = Fake::new();
        let level = |fake: &Fake, answer: Option<Result<(), String>>| {
            let host = fake.host_with(Live { io_uring: answer, ..Live::default() });
            io_uring(&host, &fake.daemons()).map(|it| it.level)
        };
        assert_eq!(level(&fake, None), None);
        assert_eq!(level(&fake, Some(Ok(()))), Some(Level::Ok));
        assert_eq!(level(&fake, Some(Err("EPERM".into()))), Some(Level::Warn));
        for disabled in ["1", "2"] {
            // What root may, the user of the daemons may not.
            fake.file("/proc/sys/kernel/io_uring_disabled", disabled);
            assert_eq!(level(&fake, Some(Ok(()))), Some(Level::Warn));
        }
        fake.config("monitor/0.toml", "");
        assert_eq!(level(&fake, Some(Ok(()))), None, "a monitor does not use it");
    }

    #[test]
    fn huge_pages_that_nobody_gets_are_told() {
        let level = |text: &str| {
            let fake = Fake::new();
            let fake = fake.file("/sys/kernel/mm/transparent_hugepage/enabled", text);
            huge_pages(&fake.host()).map(|it| it.level)
        };
        assert_eq!(level("always madvise [never]\n"), Some(Level::Warn));
        assert_eq!(level("always [madvise] never\n"), Some(Level::Ok));
        assert_eq!(level("[always] madvise never\n"), Some(Level::Ok));
        assert_eq!(level("other\n"), None, "nothing is made up");
        assert_eq!(huge_pages(&Fake::new().host()), None, "a kernel without them");
    }

    #[test]
    fn clocks_that_nobody_keeps_are_told() {
        let fake = Fake::new();
        let level = |clock| {
            let host = fake.host_with(Live { clock, ..Live::default() });
            super::clock(&host).map(|it| it.level)
        };
        assert_eq!(level(Some((true, 900))), Some(Level::Ok));
        assert_eq!(level(Some((true, 16_000_000))), Some(Level::Warn));
        assert_eq!(level(Some((false, 0))), Some(Level::Warn));
        assert_eq!(level(None), None);
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        assert_eq!(clock_source(&fake.file(source, "tsc\n").host()).map(|it| it.level), Some(Level::Ok));
        assert_eq!(clock_source(&fake.file(source, "hpet\n").host()).map(|it| it.level), Some(Level::Warn));
    }

    #[test]
    fn memory_is_held_against_all_daemons_together() {
        let fake = Fake::new();
        let node = |i: u32, bytes: u64| {
            let text = format!(
                "device = \"/dev/sd{i}\"\nstate_dir = \"/x/{i}\"\nmonitors = [\"127.0.0.1:1\"]\nmemory_bytes = {bytes}\n"
            );
            fake.config(&format!("storage-node/{i}.toml"), &text);
        };
        fake.file("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
        fake.file("/proc/swaps", "Filename Type Size Used Priority\n");
        node(0, 4 << 30);
        let found = memory_findings(&fake.host(), &fake.daemons());
        assert_eq!(levels(&found), [("MEMORY", Level::Ok), ("SWAP", Level::Ok)]);
        node(1, 10 << 30);
        assert_eq!(memory(&fake.host(), &fake.daemons()).map(|it| it.level), Some(Level::Warn));
        node(2, 4 << 30);
        assert_eq!(memory(&fake.host(), &fake.daemons()).map(|it| it.level), Some(Level::Error));
        fake.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
        assert_eq!(
            swap(&fake.host()).map(|it| (it.level, it.about)),
            Some((Level::Warn, "/dev/sda2".into()))
        );
    }
}
