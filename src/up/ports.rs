//! Ports for the daemons of one `up`, chosen once and kept.
//!
//! They lie below the range from which the kernel takes the local ports of outgoing connections. In
//! that range, a peer that keeps connecting to a node which is down would sooner or later be given the
//! node's own port, connect to itself, and keep the node from coming back.

use anyhow::bail;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};

/// The lowest port that is tried.
const PORT_MIN: u16 = 20_000;
/// One above the highest, where the kernel does not say; Linux' default for outgoing connections.
const PORT_END: u16 = 32_768;

/// True if a daemon can listen there now.
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

/// A free port at `host` that is not in `taken`; `seed` spreads the choices of several `up`s.
///
/// # Errors
///
/// There is none.
pub fn choose(host: IpAddr, taken: &BTreeSet<u16>, seed: u64) -> anyhow::Result<SocketAddr> {
    let end = outgoing_min().unwrap_or(PORT_END).clamp(PORT_MIN + 1000, PORT_END);
    let count = u64::from(end - PORT_MIN);
    for i in 0..count {
        // Below `count`, which fits.
        let port = PORT_MIN + (seed.wrapping_add(i) % count) as u16;
        let address = SocketAddr::from((host, port));
        if !taken.contains(&port) && is_free(address) {
            return Ok(address);
        }
    }
    bail!("no free port on {host} from {PORT_MIN} to {end}: stop something that listens there")
}

/// The first port that the kernel gives to outgoing connections.
fn outgoing_min() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_not_chosen() {
        let host = std::net::Ipv4Addr::LOCALHOST.into();
        let first = choose(host, &BTreeSet::new(), 77).unwrap();
        let listener = TcpListener::bind(first).unwrap();
        assert!(!is_free(first));
        let again = |port: u16| u64::from(port - PORT_MIN);
        let second = choose(host, &BTreeSet::new(), again(first.port())).unwrap();
        assert_ne!(first, second);
        let third = choose(host, &[second.port()].into(), again(second.port())).unwrap();
        assert_ne!(second, third);
        drop(listener);
    }
}
