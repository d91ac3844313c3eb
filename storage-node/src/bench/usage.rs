//! What this process has used: processor time over all threads, and resident memory.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use std::time::Duration;

/// Processor time of all threads so far, the kernel's included (and so that of io_uring's workers).
pub fn cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let of = |t: TimeVal| {
        let micros = t.tv_sec() * 1_000_000 + t.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub now: u64,
    /// The most since the start, or since [`forget_peak`].
    pub peak: u64,
}

/// As `/proc` has it; zeros where there is none.
pub fn memory() -> Memory {
    parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse(status: &str) -> Memory {
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    };
    Memory { now: of("VmRSS:"), peak: of("VmHWM:") }
}

/// Starts the peak anew. Where the kernel does not let us, the peak is that of the whole process.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t     512 kB\n";
        assert_eq!(parse(text), Memory { now: 512 << 10, peak: 2 << 20 });
        assert_eq!(parse("VmRSS: nonsense"), Memory::default());
        let own = memory();
        assert!(own.now > 100 << 10 && own.peak >= own.now, "{own:?}");
    }

    #[test]
    fn work_costs_processor_time() {
        let before = cpu();
        let mut n = 0u64;
        while cpu() == before {
            n = std::hint::black_box(n + 1);
        }
        assert!(cpu() > before);
    }
}
