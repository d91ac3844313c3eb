//! File descriptors and connection tracking: what overflowed in the incident of 2014.
//!
//! Both are held against what all daemons of the host may need at once, which is what a mass restart
//! makes them need.

use super::daemons::{Configured, Daemons, Need};
use super::host::Host;
use super::{Finding, Level, units};
use crate::limits::WANTED;

/// Percent of the connection table in use that is too near to its end.
const TRACKED_PERCENT_ERROR: u64 = 90;
/// Percent of the connection table in use that is a warning.
const TRACKED_PERCENT_WARN: u64 = 60;

/// Descriptors and connection tracking.
pub fn findings(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(each_process(host, daemons));
    findings.extend(all_of_the_host(host, daemons));
    findings.extend(tracking(host, daemons));
    findings
}

/// The limit that systemd gives a daemon, if there is a unit for it.
fn unit_limit(host: &Host, daemon: &Configured) -> Option<u64> {
    let settings = units::settings(host, daemon)?;
    // The last word counts; SOFT:HARD, or one for both.
    let hard = settings.last("LimitNOFILE")?.rsplit(':').next()?.trim();
    if hard == "infinity" { host.number("/proc/sys/fs/nr_open") } else { hard.parse().ok() }
}

/// What a process gets of its hard limit: it raises its own soft one as far as it needs.
fn each_process(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut enough = 0;
    let mut least = u64::MAX;
    for daemon in &daemons.all {
        let need = Need::of(&daemon.daemon).descriptors;
        let (limit, whose) = match (unit_limit(host, daemon), host.live.descriptors) {
            (Some(limit), _) => (limit, "its unit's LimitNOFILE="),
            (None, Some((_, hard))) => (hard, "no unit; the hard limit here"),
            (None, None) => continue,
        };
        let limit = limit.min(host.number("/proc/sys/fs/nr_open").unwrap_or(u64::MAX));
        if limit >= need {
            enough += 1;
            least = least.min(limit);
            continue;
        }
        let found = format!(
            "may need {need} (connections_max, storage nodes, its own files) and gets {limit} ({whose}): then it can \
             open no file and take no connection"
        );
        let remedy = format!(
            "set LimitNOFILE={} in a drop-in (systemctl edit), or lower connections_max",
            need.max(WANTED)
        );
        findings.push(Finding::bad("DESCRIPTORS", Level::Error, daemon.name(), found, remedy));
    }
    if findings.is_empty() && enough > 0 {
        let found = format!("each may need at most {}, and gets {least} or more", most(daemons));
        findings.push(Finding::ok("DESCRIPTORS", "each daemon", found));
    }
    findings
}

fn most(daemons: &Daemons) -> u64 {
    daemons.all.iter().map(|it| Need::of(&it.daemon).descriptors).max().unwrap_or(0)
}

fn all_of_the_host(host: &Host, daemons: &Daemons) -> Option<Finding> {
    let max = host.number("/proc/sys/fs/file-max")?;
    let used = host.number("/proc/sys/fs/file-nr")?;
    let need = daemons.need().descriptors;
    let found = format!("all daemons may need {need}; {used} of the host's {max} are in use");
    if used.saturating_add(need) <= max {
        return Some(Finding::ok("FILE_MAX", "host", found));
    }
    let remedy = format!(
        "set fs.file-max = {} in /etc/sysctl.d/, and run sysctl --system",
        used.saturating_add(need).saturating_mul(2)
    );
    Some(Finding::bad("FILE_MAX", Level::Error, "host", format!("{found}: they will run out"), remedy))
}

/// Not loaded: nothing is tracked, and nothing can overflow.
fn tracking(host: &Host, daemons: &Daemons) -> Option<Finding> {
    let Some(max) = host.number("/proc/sys/net/netfilter/nf_conntrack_max") else {
        let known = host.line("/proc/sys/kernel/osrelease").is_some();
        return known.then(|| Finding::ok("CONNTRACK", "", "not loaded: no connection is tracked"));
    };
    let used = host.number("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0);
    let need = daemons.need().connections;
    let ports = daemons.ports();
    let tracked = on_ports(host, &ports);
    let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let enough = used.saturating_add(need).saturating_mul(2).max(1 << 18);
    let remedy = if ports.is_empty() {
        format!("set net.netfilter.nf_conntrack_max = {enough} or more in /etc/sysctl.d/")
    } else {
        format!(
            "exempt the ports {{ {list} }} with `notrack` (docs/operations.md, CONNTRACK), or set \
             net.netfilter.nf_conntrack_max = {enough} or more in /etc/sysctl.d/"
        )
    };
    let whose = match tracked {
        Some(tracked) => format!("{tracked} of them of Trefoil's ports"),
        None => "whose they are only root can see".to_owned(),
    };
    let found = format!("{used} of {max} connections are tracked, {whose}");
    let bad = |level, why: &str| {
        Some(Finding::bad("CONNTRACK", level, "", format!("{found}: {why}"), remedy.clone()))
    };
    let full = "when the table is full, packets of new connections are dropped without a word, and daemons that \
                come back cannot be reached";
    // 0: no limit.
    let percent = used.saturating_mul(100).checked_div(max).unwrap_or(0);
    if percent >= TRACKED_PERCENT_ERROR {
        return bad(Level::Error, full);
    }
    // Those that are tracked already are in `used`.
    let more = need.saturating_sub(tracked.unwrap_or(0));
    if tracked != Some(0) && max > 0 && used.saturating_add(more) > max {
        let why = format!("the daemons here may have {need}, which do not fit. {full}");
        return bad(if tracked.is_some() { Level::Error } else { Level::Warn }, &why);
    }
    if percent >= TRACKED_PERCENT_WARN {
        return bad(Level::Warn, full);
    }
    if tracked.is_some_and(|tracked| tracked > 0) {
        return bad(
            Level::Warn,
            "the firewall follows storage connections, which costs time and can overflow",
        );
    }
    Some(Finding::ok("CONNTRACK", "", found))
}

/// Tracked connections from or to one of the ports; `None` where that cannot be seen.
fn on_ports(host: &Host, ports: &[u16]) -> Option<u64> {
    let mut tracked = 0;
    let seen = host.lines("/proc/net/nf_conntrack", |line| {
        let port = |field: &str| {
            let number = field.strip_prefix("sport=").or_else(|| field.strip_prefix("dport="))?;
            number.parse::<u16>().ok()
        };
        if line.contains(" tcp ") && line.split_whitespace().filter_map(port).any(|it| ports.contains(&it)) {
            tracked += 1;
        }
    });
    seen.then_some(tracked)
}

#[cfg(test)]
mod tests {
    use super::super::host::Live;
    use super::super::testing::{Fake, levels};
    use super::*;

    const UNIT: &str = "/etc/systemd/system/trefoil-monitor@.service";

    fn with_monitor(connections: u32) -> Fake {
        let fake = Fake::new();
        fake.config(
            "monitor/0.toml",
            &format!("listen = \"127.0.0.1:10800\"\nconnections_max = {connections}\n"),
        );
        fake
    }

    fn level(fake: &Fake, hard: u64) -> Level {
        let host = fake.host_with(Live { descriptors: Some((1024, hard)), ..Live::default() });
        each_process(&host, &fake.daemons())[0].level
    }

    #[test]
    fn each_daemon_is_held_against_its_units_limit() {
        let fake = with_monitor(1024);
        assert_eq!((level(&fake, 1024), level(&fake, 4096)), (Level::Error, Level::Ok));
        // The unit's word counts, not that of this shell; a drop-in's more; that of the instance most.
        fake.file(UNIT, "[Service]\nLimitNOFILE=16384\n");
        assert_eq!(level(&fake, 10), Level::Ok);
        fake.file(&format!("{UNIT}.d/a.conf"), "[Service]\nLimitNOFILE=512:1024\n");
        assert_eq!(level(&fake, 1 << 20), Level::Error);
        fake.file("/etc/systemd/system/trefoil-monitor@0.service.d/a.conf", "[Service]\nLimitNOFILE=8192\n");
        assert_eq!(level(&fake, 10), Level::Ok);
        // More than the kernel gives anybody is not got.
        fake.file("/proc/sys/fs/nr_open", "1000");
        assert_eq!(level(&fake, 1 << 20), Level::Error);
        assert_eq!(level(&with_monitor(65_536), 16_384), Level::Error);
    }

    #[test]
    fn the_hosts_table_of_files_holds_all_daemons() {
        let fake = with_monitor(60_000);
        fake.file("/proc/sys/fs/file-max", "100000").file("/proc/sys/fs/file-nr", "2000\t0\t100000");
        let level = |fake: &Fake| all_of_the_host(&fake.host(), &fake.daemons()).map(|it| it.level);
        assert_eq!(level(&fake), Some(Level::Ok));
        fake.file("/proc/sys/fs/file-nr", "50000\t0\t100000");
        assert_eq!(level(&fake), Some(Level::Error));
    }

    #[test]
    fn tracked_storage_ports_and_full_tables_are_told() {
        let fake = with_monitor(1024);
        let found = |fake: &Fake| levels(&findings(&fake.host(), &fake.daemons()));
        assert_eq!(found(&fake), [], "nothing is known of this host");
        fake.file("/proc/sys/kernel/osrelease", "6.1.0");
        assert_eq!(found(&fake), [("CONNTRACK", Level::Ok)]);
        let set = |count: &str, max: &str| {
            fake.file("/proc/sys/net/netfilter/nf_conntrack_count", count);
            fake.file("/proc/sys/net/netfilter/nf_conntrack_max", max);
        };
        set("10", "262144");
        assert_eq!(found(&fake), [("CONNTRACK", Level::Ok)]);
        // Without the right to see whose they are, they may be ours.
        set("10", "1000");
        assert_eq!(found(&fake), [("CONNTRACK", Level::Warn)]);
        set("10", "262144");
        // Another's port first, then one of ours.
        let line = |port: u16| {
            format!(
                "ipv4     2 tcp      6 431999 ESTABLISHED src=192.0.2.1 dst=192.0.2.2 sport=40000 dport={port} \
                 src=192.0.2.2 dst=192.0.2.1 sport={port} dport=40000 [ASSURED] mark=0 use=1\n"
            )
        };
        fake.file("/proc/net/nf_conntrack", &line(443));
        assert_eq!(found(&fake), [("CONNTRACK", Level::Ok)]);
        fake.file("/proc/net/nf_conntrack", &(line(443) + &line(10800)));
        assert_eq!(found(&fake), [("CONNTRACK", Level::Warn)]);
        // What the daemons may have does not fit.
        set("10", "1000");
        assert_eq!(found(&fake), [("CONNTRACK", Level::Error)]);
        fake.file("/proc/net/nf_conntrack", "");
        set("700", "1000");
        assert_eq!(found(&fake), [("CONNTRACK", Level::Warn)]);
        set("950", "1000");
        assert_eq!(found(&fake), [("CONNTRACK", Level::Error)]);
        let told = &findings(&fake.host(), &fake.daemons())[0];
        assert!(told.remedy.as_deref().is_some_and(|text| text.contains("{ 10800 }")), "{told:?}");
    }
}
