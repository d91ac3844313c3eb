//! What processes have used: processor time to the nanosecond, ended threads included, and bytes written.

use anyhow::{Context, bail};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Entries that are read of a file.
const PROCESSES_MAX: usize = 4096;
/// The kernel's own limit. A greater number would be taken for another clock.
const PID_MAX: i32 = 1 << 22;

/// A process of a system that is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is: `node-0`, `osd.2`.
    pub name: String,
    /// Its id.
    pub pid: i32,
}

/// The processes of one system; none: they are not known.
#[derive(Clone, Debug, Default)]
pub struct Processes(Vec<(Process, ClockId)>);

/// What they have used so far, in their order.
#[derive(Debug, Default)]
pub struct Sample {
    cpu: Vec<Duration>,
    written: Option<u64>,
}

/// What they have used between two samples.
#[derive(Debug, Default, PartialEq)]
pub struct Used {
    /// By process.
    pub cpu: BTreeMap<String, Duration>,
    /// Bytes given to devices, by all of them. None: the kernel does not tell us.
    pub written: Option<u64>,
}

impl Processes {
    /// Those, all of which must run.
    pub fn new(all: Vec<Process>) -> anyhow::Result<Processes> {
        if all.len() > PROCESSES_MAX {
            bail!("{} processes are too many: {PROCESSES_MAX} is the limit", all.len());
        }
        let clock = |process: Process| {
            let valid = (1..=PID_MAX).contains(&process.pid);
            let clock = valid.then(|| clock_getcpuclockid(Pid::from_raw(process.pid)).ok()).flatten();
            let clock =
                clock.with_context(|| format!("there is no process {} ({})", process.pid, process.name))?;
            Ok((process, clock))
        };
        Ok(Processes(all.into_iter().map(clock).collect::<anyhow::Result<_>>()?))
    }

    /// Those of a `trefoil up` on `dir`: itself, and with `--processes` those that it has started and that still
    /// run.
    pub fn of_up(dir: &Path, up: u32) -> anyhow::Result<Processes> {
        #[derive(Deserialize)]
        struct Entry {
            name: String,
            pid: i32,
            config: String,
        }
        let mut all = vec![Process { name: "up".to_owned(), pid: up as i32 }];
        if let Ok(text) = std::fs::read_to_string(dir.join("processes.json")) {
            let entries: Vec<Entry> = serde_json::from_str(&text).with_context(|| {
                format!("{} is not what `trefoil up` writes", dir.join("processes.json").display())
            })?;
            // One that was killed is not counted, nor who has its number by now.
            let runs = |entry: &Entry| {
                let arguments = std::fs::read(format!("/proc/{}/cmdline", entry.pid)).unwrap_or_default();
                String::from_utf8_lossy(&arguments).contains(&entry.config)
            };
            all.extend(
                entries.into_iter().filter(runs).map(|entry| Process { name: entry.name, pid: entry.pid }),
            );
        }
        Processes::new(all)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(process, _)| process.name.as_str())
    }

    /// What they have used so far.
    pub fn sample(&self) -> anyhow::Result<Sample> {
        let mut cpu = Vec::with_capacity(self.0.len());
        let mut written = Some(0);
        for (Process { name, pid }, clock) in &self.0 {
            let now = clock.now().with_context(|| format!("process {pid} ({name}) has ended meanwhile"))?;
            cpu.push(Duration::from(now));
            written = written.zip(written_by(*pid)).map(|(sum, bytes)| sum + bytes);
        }
        Ok(Sample { cpu, written: written.filter(|_| !self.0.is_empty()) })
    }

    /// What they have used since.
    pub fn since(&self, before: &Sample) -> anyhow::Result<Used> {
        let now = self.sample()?;
        let used = before.cpu.iter().zip(&now.cpu).map(|(before, now)| now.saturating_sub(*before));
        let mut cpu = BTreeMap::new();
        for (name, used) in self.names().zip(used) {
            *cpu.entry(name.to_owned()).or_insert(Duration::ZERO) += used;
        }
        let written = before.written.zip(now.written).map(|(before, now)| now.saturating_sub(before));
        Ok(Used { cpu, written })
    }
}

/// Bytes that a process has given to devices. Needs the rights of its user.
fn written_by(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_counted_and_strangers_are_refused() {
        let pid = std::process::id() as i32;
        let all = Processes::new(vec![Process { name: "me".to_owned(), pid }]).unwrap();
        let before = all.sample().unwrap();
        let begun = std::time::Instant::now();
        // Other tests run in this process: at least this is counted.
        std::thread::spawn(move || while begun.elapsed() < Duration::from_millis(50) {}).join().unwrap();
        let used = all.since(&before).unwrap();
        assert!(used.cpu["me"] > Duration::from_millis(1), "{used:?}");
        assert!(used.written.is_some());
        for pid in [i32::MIN, -1, 0, PID_MAX, i32::MAX] {
            let gone = Processes::new(vec![Process { name: "gone".to_owned(), pid }]).unwrap_err();
            assert!(gone.to_string().contains(&format!("no process {pid} (gone)")), "{gone}");
        }
        assert_eq!(Processes::default().sample().unwrap().written, None);
    }

    #[test]
    fn processes_that_are_gone_are_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("processes.json");
        let pid = std::process::id();
        std::fs::write(&file, format!(r#"[{{"name": "node-0", "pid": {pid}, "config": "/no/such.toml"}}]"#))
            .unwrap();
        let all = Processes::of_up(dir.path(), pid).unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["up"]);
        std::fs::write(&file, "{}").unwrap();
        assert!(Processes::of_up(dir.path(), pid).unwrap_err().to_string().contains("is not what"));
    }
}
