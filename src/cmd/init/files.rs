//! The text of each configuration, with every key explained: those that matter set, the others as
//! comments with their defaults.
//!
//! Each text is read back by the daemon's own rules before it is given out: what `init` writes starts.

use crate::size::Size;
use anyhow::Context;
use std::net::SocketAddr;
use std::path::Path;
use trefoil_monitor::MonitorConfig;
use trefoil_nbd::NbdConfig;
use trefoil_storage_node::NodeConfig;

/// Placement groups that each storage node has a copy of, about.
const PGS_PER_NODE: usize = 32;
/// The most that one pool has.
const PGS_MAX: usize = 65_536;

/// Text as TOML has it, quotes included.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn plaintext(on: bool) -> &'static str {
    match on {
        true => {
            "# Connections between hosts are NOT encrypted, and nobody has to say who he is: whoever reaches this\n\
             # port can read and change every volume. Without this line only loopback is listened on.\n\
             allow_plaintext = true\n"
        }
        false => {
            "# Listen beyond loopback although connections are not encrypted.\n# allow_plaintext = false\n"
        }
    }
}

/// What a monitor's depends on.
pub struct Monitor<'a> {
    pub cluster_name: &'a str,
    /// Its number, from 1: its place among `all`.
    pub id: usize,
    /// Where the monitors listen, this one included.
    pub all: &'a [SocketAddr],
    /// Of the whole cluster.
    pub nodes: usize,
    pub many_hosts: bool,
    pub plaintext: bool,
}

/// Addresses as a list of TOML.
fn listed(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!("[{}]", texts.join(", "))
}

/// A monitor's.
pub fn monitor(it: &Monitor<'_>) -> anyhow::Result<String> {
    let Monitor { cluster_name, id, all, nodes, many_hosts, plaintext: allow_plaintext } = *it;
    let listen = id.checked_sub(1).and_then(|at| all.get(at)).context("a monitor without an address")?;
    let peers: Vec<String> =
        (1..).zip(all).map(|(id, at)| format!("    {{ id = {id}, address = \"{at}\" }},\n")).collect();
    let (id, peers) = match all.len() {
        1 => ("# id = 1".to_owned(), "# peers = []".to_owned()),
        _ => (format!("id = {id}"), format!("peers = [\n{}]", peers.concat())),
    };
    let domain = if many_hosts { "host" } else { "osd" };
    let pgs = (nodes * PGS_PER_NODE / 3).next_power_of_two().clamp(32, PGS_MAX);
    let default = MonitorConfig::default();
    let text = format!(
        "# A monitor: keeps the cluster map, grants volumes to front ends, knows who is up.
# Made by `trefoil init`. Read at its start: systemctl restart trefoil-monitor@0

# Where it listens. Storage nodes, front ends and administrators connect here.
listen = \"{listen}\"
# Where the other monitors, nodes and clients reach it, where that is not `listen`: advertise = \"ADDR:PORT\"
# Its number among the monitors, from 1.
{id}
# The first 3 or 5 monitors of a new cluster, this one included, the same list on each, as
# [{{ id = 1, address = \"192.0.2.1:10800\" }}, {{ id = 2, address = \"192.0.2.2:10800\" }}, ...]; empty: this one alone.
# They wait for each other when they first start; later this is only another way to find the others.
{peers}
# For a monitor that is added to a cluster later (`trefoil monitor add`): addresses of monitors of it.
# join = []
# A leader that is not heard of for so many ms, up to twice as many, is replaced.
# election_ms = {election}
# Changes after which the map is written as a whole and the log before it is dropped.
# snapshot_entries = {entries}
# Where its state is. The cluster's id and map are here: back it up (`trefoil monitor backup`).
data_dir = \"/var/lib/trefoil/monitor/0\"
# The cluster's name, for people. It must stay as it was at the first start.
cluster_name = {name}
{plaintext}
# Connections at once. Each takes a file descriptor: `trefoil doctor` compares.
# connections_max = {connections}
# Where metrics are served: \"ADDR:PORT\", \"off\", or \"default\": on 127.0.0.1, 1000 above the port of `listen`.
# metrics_listen = \"default\"
# How long a volume's lease lasts, in ms. A volume whose front end died without a release is granted to
# another one after this and the margin.
# lease_ms = {lease}
# Room for clocks of different speed, in ms; at least an eighth of lease_ms.
# lease_margin_ms = {margin}
# How often holders renew, in ms; at most half of lease_ms.
# renew_ms = {renew}
# A node that is not heard of for so many ms is shown as down.
# node_timeout_ms = {timeout}
# A node that has been down for so many ms is taken out, where that does no harm; 0: never by itself.
# out_after_ms = {out_after}

# The first pool, made by itself once so many storage nodes have registered; never changed later.
[bootstrap]
nodes = {nodes}
pool = \"default\"
# Copies of each block.
size = 3
# Placement groups: about {PGS_PER_NODE} copies on each node.
pg_num = {pgs}
# No two copies on the same \"host\"; \"osd\": on the same storage node (with fewer than three hosts).
failure_domain = \"{domain}\"
# A write is answered when a \"majority\" of copies has it; \"all-in-sync\": every copy that is in line.
ack = \"majority\"
",
        name = quoted(cluster_name),
        plaintext = plaintext(allow_plaintext),
        connections = default.connections_max,
        lease = default.lease_ms,
        margin = default.lease_margin_ms,
        renew = default.renew_ms,
        timeout = default.node_timeout_ms,
        out_after = default.out_after_ms,
        election = default.election_ms,
        entries = default.snapshot_entries,
    );
    let config: MonitorConfig = toml::from_str(&text).context("the monitor's configuration")?;
    config.check()?;
    Ok(text)
}

/// What a storage node's depends on.
pub struct Node<'a> {
    /// Which one of its host.
    pub number: usize,
    /// Its device.
    pub device: &'a Path,
    /// The device is a file of this size.
    pub size: Option<Size>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The monitor.
    pub monitors: &'a [SocketAddr],
    /// The host's name.
    pub host: &'a str,
    /// Its memory.
    pub memory: Size,
    /// It listens beyond loopback.
    pub plaintext: bool,
}

/// A storage node's.
pub fn storage_node(node: &Node<'_>) -> anyhow::Result<String> {
    let default = NodeConfig::default();
    let format = match node.size {
        Some(size) => format!(
            "# Make the file, where it is missing or empty, so many bytes long. Nothing is ever overwritten.\n\
             format_if_missing = true\nsize = {}\n",
            size.0
        ),
        None => "# A block device is formatted by hand: trefoil storage-node format DEVICE. With true, a file that is\n\
                 # missing is made, `size` bytes long.\n# format_if_missing = false\n# size = 107374182400\n"
            .to_owned(),
    };
    let text = format!(
        "# A storage node: keeps objects on one device.
# Made by `trefoil init`. Read at its start: systemctl restart trefoil-storage-node@{number}

# The block device or file. Name disks by /dev/disk/by-id: /dev/sdX changes when others come and go.
# After a change run scripts/install --devices, which allows the unit this device and no other.
device = {device}
{format}# Its index, and what it knows of the cluster. Made again from the device and the monitors if it is lost.
state_dir = \"/var/lib/trefoil/storage-node/{number}\"
# Where front ends and other nodes connect.
listen = \"{listen}\"
# The address that others are told, where it is another one (address translation).
# advertise = \"{listen}\"
{plaintext}# The monitors. All of them, where there are several.
monitors = {monitors}
# The CRUSH host that it is put in at its first start, and the class of its device there (ssd, hdd, ...).
host = {host}
# class = \"ssd\"

# Memory that the process may take, in bytes. Shares of it: block tables 3/8, reads under way 1/4, writes
# 1/8; each can be set by hand.
memory_bytes = {memory}
# table_cache_bytes = {table}
# read_memory_bytes = {read}
# pending_bytes = {pending}
# Bytes of log after which a checkpoint is taken, at the latest.
# checkpoint_bytes = {checkpoint}
# Milliseconds that reading the log may take at a start after a crash, by estimate: checkpoints are taken so
# often that it does not take longer.
# replay_ms_max = {replay}
# Bytes per second that repairs may read here for others, and as many that they may bring here: no less while
# clients work, no more when nobody does. In between they take what clients leave.
# recovery_floor = {floor}
# recovery_ceiling = {ceiling}
# Connections at once. Each takes a file descriptor: `trefoil doctor` compares.
# connections_max = {connections}
# Where metrics are served: \"ADDR:PORT\", \"off\", or \"default\": on 127.0.0.1, 1000 above the port of `listen`.
# metrics_listen = \"default\"
# Hours between two scrubs of a placement group: light ones compare its copies, deep ones read and verify every
# block, too. 0: never.
# scrub_light_hours = {light}
# scrub_deep_hours = {deep}
# Bytes per second that deep scrubs read at most; an eighth of it while clients are served.
# scrub_bytes_per_s = {scrub}
# Hours of the day, in UTC, in which scrubs begin by themselves, as in \"22-6\". Empty: any.
# scrub_window = \"\"
# Microseconds for which it looks for work before it sleeps: lower latency at low depth for processor
# time. 0: never.
# busy_poll_us = {poll}
# Threads in place of io_uring. It falls back by itself where io_uring is refused.
# no_io_uring = false
",
        number = node.number,
        device = quoted(node.device.to_str().context("a device's path that is not UTF-8")?),
        listen = node.listen,
        plaintext = plaintext(node.plaintext),
        monitors = listed(node.monitors),
        host = quoted(node.host),
        memory = node.memory.0,
        table = node.memory.0 / 8 * 3,
        read = node.memory.0 / 4,
        pending = node.memory.0 / 8,
        checkpoint = default.checkpoint_bytes,
        replay = default.replay_ms_max,
        floor = default.recovery_floor,
        ceiling = default.recovery_ceiling,
        connections = default.connections_max,
        light = default.scrub_light_hours,
        deep = default.scrub_deep_hours,
        scrub = default.scrub_bytes_per_s,
        poll = default.busy_poll_us,
    );
    let config: NodeConfig = toml::from_str(&text).context("the storage node's configuration")?;
    config.check().with_context(|| format!("storage node {} of {}", node.number, node.host))?;
    Ok(text)
}

/// A front end's.
pub fn nbd(listen: SocketAddr, monitors: &[SocketAddr]) -> anyhow::Result<String> {
    let default = NbdConfig::default();
    let text = format!(
        "# An NBD front end: serves volumes to the virtual machines of this host.
# Made by `trefoil init`. A restart closes its clients' connections (QEMU: set reconnect-delay).

# A unix socket; its owner and group may connect. Put QEMU's user into the group trefoil.
socket = \"/run/trefoil/nbd-0/nbd.sock\"
# TCP. Whoever can connect can use every volume: any user of this host, on loopback.
listen = [\"{listen}\"]
# Listen beyond loopback although connections are not encrypted. Clients of other hosts are better served
# by a front end of their own.
# allow_plaintext = false
# The monitors. All of them, where there are several.
monitors = {monitors}
# What it is called as the holder of volumes [default: host and process id].
# name = \"nbd@host\"
# Volumes that are exported [default: all].
# volumes = [\"disk0\"]
# Brings copies of volumes into line that nobody has attached.
# heal = true
# Threads that serve volumes, 1 to {shards_max}; each volume is one thread's. More than one where a single processor is
# not enough for all guests of this host. Each has its own connection to every storage node.
# shards = {shards}
# NBD connections at once, of all shards. Each takes a file descriptor: `trefoil doctor` compares.
# connections_max = {connections}
# Where metrics are served: \"ADDR:PORT\", \"off\", or \"default\": on 127.0.0.1, 1000 above the port of `listen`.
# metrics_listen = \"default\"
# Microseconds for which it looks for work before it sleeps: lower latency at low depth for processor
# time. 0: never.
# busy_poll_us = {poll}
",
        monitors = listed(monitors),
        shards_max = trefoil_nbd::shards::SHARDS_MAX,
        shards = default.shards,
        connections = default.connections_max,
        poll = default.busy_poll_us,
    );
    let config: NbdConfig = toml::from_str(&text).context("the front end's configuration")?;
    config.check()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    static MONITORS: LazyLock<Vec<SocketAddr>> =
        LazyLock::new(|| (1..=3).map(|n| at(&format!("192.0.2.{n}:10800"))).collect());

    fn one(all: &[SocketAddr], nodes: usize) -> String {
        let it = Monitor { cluster_name: "prod", id: 1, all, nodes, many_hosts: true, plaintext: true };
        monitor(&it).unwrap()
    }

    fn node() -> Node<'static> {
        Node {
            number: 2,
            device: Path::new("/dev/disk/by-id/odd\"name"),
            size: None,
            listen: at("192.0.2.1:10812"),
            monitors: &MONITORS,
            host: "a",
            memory: Size(1 << 30),
            plaintext: true,
        }
    }

    /// Without the comment signs before keys.
    fn with_all_keys(text: &str) -> toml::Table {
        let lines = text.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n").parse().unwrap()
    }

    #[test]
    fn every_key_is_there_and_explained() {
        let monitor_text = one(&[at("127.0.0.1:1")], 3);
        // Keys that have a default show in it; the others are named here.
        let default = |text: String, more: &[&str]| {
            let table: toml::Table = text.parse().unwrap();
            table.keys().cloned().chain(more.iter().map(|key| (*key).to_owned())).collect::<Vec<_>>()
        };
        let monitor_keys = default(toml::to_string(&MonitorConfig::default()).unwrap(), &["bootstrap"]);
        let node_keys = default(
            toml::to_string(&NodeConfig::default()).unwrap(),
            &["advertise", "class", "size", "table_cache_bytes", "read_memory_bytes", "pending_bytes"],
        );
        let nbd_keys =
            default(toml::to_string(&NbdConfig::default()).unwrap(), &["socket", "name", "volumes"]);
        for (text, keys) in [
            (monitor_text, monitor_keys),
            (storage_node(&node()).unwrap(), node_keys),
            (nbd(at("127.0.0.1:1"), &[at("127.0.0.1:2")]).unwrap(), nbd_keys),
        ] {
            let table = with_all_keys(&text);
            for key in keys {
                assert!(table.contains_key(&key), "{key} is not in\n{text}");
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_what_the_daemons_read() {
        let config: NodeConfig = toml::from_str(&storage_node(&node()).unwrap()).unwrap();
        assert_eq!(config.device, Path::new("/dev/disk/by-id/odd\"name"));
        assert_eq!(
            (config.memory_bytes, config.allow_plaintext, config.format_if_missing),
            (1 << 30, true, false)
        );
        let file = Node { size: Some(Size(8 << 30)), ..node() };
        let config: NodeConfig = toml::from_str(&storage_node(&file).unwrap()).unwrap();
        assert_eq!((config.format_if_missing, config.size), (true, Some(8 << 30)));
        let small = Node { memory: Size(1 << 20), ..node() };
        assert!(format!("{:#}", storage_node(&small).unwrap_err()).contains("memory_bytes"));

        for (nodes, pgs) in [(3, 32), (9, 128), (30, 512)] {
            let text = one(&MONITORS, nodes);
            let config: MonitorConfig = toml::from_str(&text).unwrap();
            assert_eq!((config.id, config.peers.len(), config.peers[2].id), (1, 3, 3));
            assert_eq!((config.listen, config.peers[2].address), (MONITORS[0], MONITORS[2]));
            let made = config.bootstrap.unwrap();
            assert_eq!((made.nodes, made.pg_num), (nodes, pgs), "{nodes}");
        }
    }

    #[test]
    fn commented_defaults_are_the_defaults() {
        let table = with_all_keys(&one(&[at("127.0.0.1:1")], 3));
        let config: MonitorConfig = table.try_into().unwrap();
        let bootstrap = config.bootstrap.clone();
        let data_dir = config.data_dir.clone();
        let (listen, cluster_name) = (config.listen, config.cluster_name.clone());
        let expected = MonitorConfig {
            listen,
            data_dir,
            cluster_name,
            bootstrap,
            allow_plaintext: true,
            ..MonitorConfig::default()
        };
        assert_eq!(config, expected);
    }
}
