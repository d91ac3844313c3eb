//! What the operating system grants this process: file descriptors.
//!
//! A daemon's limit on connections is a promise that it can keep only if the kernel gives it as many
//! descriptors; many systems start processes with 1024.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that a daemon is given room for at least; `LimitNOFILE=` of the systemd units is the same.
pub const WANTED: u64 = 16 * 1024;
/// With fewer than this, the daemons' own limits on connections are no protection.
const ENOUGH: u64 = 4096;

/// Raises the soft limit on file descriptors as far as may be, and says so where that is not far. `need`:
/// what this daemon's own limits on connections add up to.
pub fn raise_descriptors(need: u64) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = WANTED.max(need).min(hard);
    if soft < wanted
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    {
        tracing::warn!(%error, soft, "cannot raise the limit on file descriptors");
        return;
    }
    if soft.max(wanted) < ENOUGH {
        tracing::warn!(
            limit = soft.max(wanted),
            "few file descriptors are allowed (ulimit -Hn): with many connections some are refused; {ENOUGH} \
             are enough"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        raise_descriptors(0);
        let (after, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(after, before.max(WANTED.min(hard)));
    }

    #[test]
    fn the_units_ask_for_as_many_as_the_daemons_want() {
        for role in ["monitor", "storage-node", "nbd"] {
            let path = format!("{}/scripts/systemd/trefoil-{role}@.service", env!("CARGO_MANIFEST_DIR"));
            let unit = std::fs::read_to_string(path).unwrap();
            assert!(unit.lines().any(|line| line == format!("LimitNOFILE={WANTED}")), "{unit}");
            assert!(unit.lines().any(|line| line.starts_with("SystemCallFilter=") && !line.contains('~')));
        }
    }
}
