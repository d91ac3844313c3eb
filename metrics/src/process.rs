//! What the kernel says of this process, under the names that all Prometheus clients use.
//!
//! Reads /proc, so it belongs on a thread that may wait. What cannot be read is left out, never guessed.

use crate::text::{Kind, Text};
use std::sync::OnceLock;

/// `USER_HZ`: the unit of times in /proc, the same on every Linux that Trefoil runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// The field behind the process's name in /proc/PID/stat is number 3.
const FIRST_FIELD: usize = 3;

/// The families `trefoil_build_info` and `process_...`.
pub fn render(text: &mut Text) {
    let version = env!("CARGO_PKG_VERSION");
    let mut build =
        text.family("trefoil_build_info", Kind::Gauge, "Always 1; the label is Trefoil's version.");
    build.sample(&[("version", version)], true);
    if let Some((cpu, started)) = stat() {
        text.counter("process_cpu_seconds_total", "Processor time of all threads, user and system.", cpu);
        if let Some(at) = started {
            text.gauge("process_start_time_seconds", "When the process started, since 1970.", at);
        }
    }
    if let Some(bytes) = status_kib("VmRSS:") {
        text.gauge("process_resident_memory_bytes", "Memory that is resident.", bytes);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Open file descriptors.", descriptors.count());
    }
    if let Some(most) = descriptors_max() {
        text.gauge("process_max_fds", "File descriptors that may be open.", most);
    }
}

/// Processor time, and the time of the start, in seconds.
fn stat() -> Option<(f64, Option<f64>)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold anything, brackets too.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - FIRST_FIELD)?.parse::<f64>().ok();
    let cpu = (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND;
    // Worked out once: the kernel's idea of when it booted moves when the clock is set.
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    let started = *STARTED.get_or_init(|| Some(booted()? + ticks(22)? / TICKS_PER_SECOND));
    Some((cpu, started))
}

/// When the host booted, since 1970.
fn booted() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn status_kib(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

fn descriptors_max() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn this_process_has_all_of_them() {
        let mut text = Text::default();
        render(&mut text);
        let text = text.finish();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
