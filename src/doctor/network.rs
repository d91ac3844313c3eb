//! The interfaces that lead to the daemons' addresses, and whether they agree on how large a packet is.
//!
//! A host can only look at its own end. That a switch in between drops what is larger than it thinks
//! right is seen from outside alone: the finding says how.

use super::daemons::{Configured, Daemons};
use super::host::Host;
use super::{Finding, Level};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The size of packets on Ethernet where nobody has chosen another one.
const MTU_USUAL: u64 = 1500;
/// What an IPv6 packet has to fit in.
const MTU_MIN: u64 = 1280;

/// The MTUs of all interfaces in use.
pub fn findings(host: &Host, daemons: &Daemons) -> Vec<Finding> {
    let routes = Routes::read(host);
    let listens = daemons.all.iter().flat_map(Configured::listens);
    let monitors = daemons.all.iter().flat_map(|it| it.monitors().iter().copied());
    let addresses: BTreeSet<IpAddr> = listens.chain(monitors).map(|address| address.ip()).collect();
    let mut mtus: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for interface in addresses.iter().filter_map(|address| routes.interface(*address)) {
        if interface != "lo"
            && let Some(mtu) = host.number(format!("/sys/class/net/{interface}/mtu"))
        {
            mtus.entry(mtu).or_default().insert(interface.to_owned());
        }
    }
    let all: Vec<String> =
        mtus.iter().flat_map(|(mtu, names)| names.iter().map(move |name| format!("{name}: {mtu}"))).collect();
    let Some((least, most)) = mtus.keys().next().zip(mtus.keys().next_back()) else { return Vec::new() };
    let about = all.join(", ");
    if *least < MTU_MIN {
        let found = "packets are smaller than IPv6 allows: a tunnel that nobody has counted with?";
        let remedy = format!("ip link set INTERFACE mtu {MTU_USUAL}, and see what is below it");
        return vec![Finding::bad("MTU", Level::Warn, about, found, remedy)];
    }
    if least != most {
        let found = "daemons of this host use interfaces of different MTU: connections over the smaller one are \
                     slower, and large packets may vanish where a router does not say that they are too large";
        let remedy = "give all interfaces of the storage network one MTU, on every host and switch";
        return vec![Finding::bad("MTU", Level::Warn, about, found, remedy)];
    }
    let found = if *most > MTU_USUAL {
        let payload = most.saturating_sub(28);
        format!("large: every host and switch must have it. Try each: ping -M do -s {payload} -c 3 HOST")
    } else {
        "one for all".to_owned()
    };
    vec![Finding::ok("MTU", about, found)]
}

/// Networks and the interfaces that lead to them.
struct Routes(Vec<Route>);

struct Route {
    network: u128,
    mask: u128,
    interface: String,
}

/// IPv4 addresses as IPv6 has them, so that one table holds both.
fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Routes {
    fn read(host: &Host) -> Routes {
        let mut routes = Vec::new();
        host.lines("/proc/net/route", |line| routes.extend(ipv4_route(line)));
        host.lines("/proc/net/ipv6_route", |line| routes.extend(ipv6_route(line)));
        host.lines("/proc/net/if_inet6", |line| routes.extend(own_ipv6(line)));
        Routes(routes)
    }

    /// Of the narrowest network that has the address.
    fn interface(&self, address: IpAddr) -> Option<&str> {
        // A default route does not lead to loopback; a route to a part of it may (a test's network).
        let default = if address.is_loopback() { prefix(96).count_ones() } else { 0 };
        let address = key(address);
        let fitting = self.0.iter().filter(|route| address & route.mask == route.network);
        let fitting = fitting.filter(|route| route.mask.count_ones() > default || default == 0);
        // Of equals the last: an own address beside the kernel's route to it over `lo`.
        fitting.max_by_key(|route| route.mask.count_ones()).map(|route| route.interface.as_str())
    }
}

/// `eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0`: numbers in the order of the wire, as the host reads them.
fn ipv4_route(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    // Anything but hexadecimal is the header.
    let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let (network, mask) = (number(1)?.to_ne_bytes(), number(7)?.to_ne_bytes());
    let high = !u128::from(u32::MAX);
    Some(Route {
        network: key(Ipv4Addr::from(network).into()),
        mask: high | u128::from(u32::from_be_bytes(mask)),
        interface: (*fields.first()?).to_owned(),
    })
}

fn prefix(bits: u32) -> u128 {
    u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0)
}

/// Network, its bits, ..., interface.
fn ipv6_route(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.len() < 10 {
        return None;
    }
    let network = u128::from_str_radix(fields.first()?, 16).ok()?;
    let bits = u32::from_str_radix(fields.get(1)?, 16).ok()?;
    // Only what says nothing about IPv4.
    let route = Route { network, mask: prefix(bits), interface: (*fields.last()?).to_owned() };
    (bits > 0).then_some(route)
}

/// Address, number, bits, scope, flags, interface.
fn own_ipv6(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.len() < 6 {
        return None;
    }
    let address = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
    Some(Route { network: key(address.into()), mask: u128::MAX, interface: (*fields.last()?).to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, levels};
    use super::*;

    /// As the kernel prints them on a little-endian machine; on another one the test's addresses differ.
    fn host() -> Fake {
        let fake = Fake::new();
        let row = |interface: &str, network: [u8; 4], mask: [u8; 4]| {
            let (network, mask) = (u32::from_ne_bytes(network), u32::from_ne_bytes(mask));
            format!("{interface}\t{network:08X}\t00000000\t0001\t0\t0\t0\t{mask:08X}\t0\t0\t0\n")
        };
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
            .to_owned()
            + &row("eth0", [0; 4], [0; 4])
            + &row("eth0", [192, 0, 2, 0], [255, 255, 255, 0])
            + &row("eth1", [198, 51, 100, 0], [255, 255, 255, 0]);
        fake.file("/proc/net/route", &text);
        fake.file(
            "/proc/net/ipv6_route",
            "20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
             00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1\n",
        );
        fake.file("/sys/class/net/eth0/mtu", "1500\n").file("/sys/class/net/eth1/mtu", "9000\n");
        fake
    }

    fn found(fake: &Fake, addresses: &[&str]) -> Vec<Finding> {
        let listen: Vec<String> = addresses.iter().map(|at| format!("\"{at}:10809\"")).collect();
        let text = format!(
            "listen = [{}]\nmonitors = [\"127.0.0.1:1\"]\nallow_plaintext = true\n",
            listen.join(", ")
        );
        fake.config("nbd/0.toml", &text);
        findings(&fake.host(), &fake.daemons())
    }

    #[test]
    fn interfaces_are_those_that_lead_to_the_addresses() {
        let host = host();
        let about = |addresses: &[&str]| found(&host, addresses).first().map(|it| it.about.clone());
        assert_eq!(about(&["192.0.2.7"]).as_deref(), Some("eth0: 1500"));
        assert_eq!(about(&["198.51.100.7"]).as_deref(), Some("eth1: 9000"));
        assert_eq!(about(&["[2001:db8::7]"]).as_deref(), Some("eth1: 9000"));
        assert_eq!(found(&host, &["198.51.100.7", "[2001:db8::7]"]).len(), 1);
        assert_eq!(found(&Fake::new(), &["192.0.2.7"]), [], "nothing is known of this host");
    }

    #[test]
    fn interfaces_that_do_not_agree_are_told() {
        let host = host();
        assert_eq!(levels(&found(&host, &["192.0.2.7"])), [("MTU", Level::Ok)]);
        assert_eq!(levels(&found(&host, &["192.0.2.7", "198.51.100.7"])), [("MTU", Level::Warn)]);
        let large = &found(&host, &["198.51.100.7"])[0];
        assert!(large.found.contains("ping -M do -s 8972"), "{large:?}");
        host.file("/sys/class/net/eth0/mtu", "1000\n");
        assert_eq!(levels(&found(&host, &["192.0.2.7"])), [("MTU", Level::Warn)]);
    }

    #[test]
    fn odd_lines_are_passed_over() {
        for line in ["", "Iface\tDestination", "eth0\tXY\t0\t0\t0\t0\t0\t0", "20010db8 zz", "zz"] {
            assert!(ipv4_route(line).is_none() && ipv6_route(line).is_none() && own_ipv6(line).is_none());
        }
    }
}
