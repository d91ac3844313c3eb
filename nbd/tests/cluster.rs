//! The whole path on loopback: a monitor, three storage nodes on files, a front end, an NBD client.
//!
//! Each daemon has a thread and a runtime of its own, as it has a process of its own in production.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use trefoil_core::VolumeId;
use trefoil_core::map::{FailureDomain, Holder};
use trefoil_monitor::{Bootstrap, Monitor, MonitorClient, MonitorConfig};
use trefoil_nbd::NbdConfig;
use trefoil_storage_node::NodeConfig;
use trefoil_transport::{Hello, Role};

const SIZE: u64 = 64 << 20;

/// A daemon on a thread.
struct Daemon {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start<R: Send + 'static>(
        name: &str,
        run: impl AsyncFnOnce(mpsc::Sender<R>, oneshot::Receiver<()>) + Send + 'static,
    ) -> (Daemon, R) {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            runtime.block_on(local.run_until(run(ready, stopped)));
        });
        let daemon = Daemon { stop: Some(stop), thread: Some(thread.unwrap()) };
        let ready = is_ready.recv_timeout(Duration::from_secs(20)).expect("the daemon does not start");
        (daemon, ready)
    }
    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn monitor(dir: &Path, listen: SocketAddr) -> (Daemon, SocketAddr) {
    let config = MonitorConfig {
        listen,
        data_dir: dir.join("monitor"),
        bootstrap: Some(Bootstrap { pg_num: 8, failure_domain: FailureDomain::Osd, ..Bootstrap::default() }),
        ..MonitorConfig::default()
    };
    Daemon::start("monitor", async move |ready, stop| {
        let monitor = Monitor::start(config).await.unwrap();
        ready.send(monitor.address()).unwrap();
        monitor.run(async { drop(stop.await) }).await.unwrap();
    })
}

fn node(dir: &Path, number: u32, monitor: SocketAddr, listen: SocketAddr) -> (Daemon, SocketAddr) {
    let config = NodeConfig {
        device: dir.join(format!("node-{number}")),
        state_dir: dir.join(format!("node-{number}.state")),
        listen,
        monitors: vec![monitor],
        host: format!("host-{number}"),
        format_if_missing: true,
        size: Some(1 << 30),
        ..NodeConfig::default()
    };
    Daemon::start("node", async move |ready, stop| {
        let serving = |it: trefoil_storage_node::Ready| ready.send(it.address).unwrap();
        trefoil_storage_node::run(config, serving, async { drop(stop.await) }).await.unwrap();
    })
}

fn front(socket: &Path, monitor: SocketAddr) -> Daemon {
    front_of(socket, monitor, 1)
}

fn front_of(socket: &Path, monitor: SocketAddr, shards: usize) -> Daemon {
    let (socket, monitors) = (Some(socket.to_owned()), vec![monitor]);
    let name = Some("front".to_owned());
    let config = NbdConfig { socket, monitors, shards, name, ..NbdConfig::default() };
    let (daemon, ()) = Daemon::start("nbd", async move |ready, stop| {
        let serving = |_| ready.send(()).unwrap();
        trefoil_nbd::run(config, serving, async { drop(stop.await) }).await.unwrap();
    });
    daemon
}

fn ask_monitor(monitor: SocketAddr, ask: impl AsyncFn(&MonitorClient) -> bool + Send + 'static) {
    let (mut daemon, ()) = Daemon::start("client", async move |ready, _stop| {
        let client = MonitorClient::new(vec![monitor], Hello::new(Role::Client, [0; 16]));
        let begun = Instant::now();
        while !ask(&client).await {
            assert!(begun.elapsed() < Duration::from_secs(15), "the cluster does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ready.send(()).unwrap();
    });
    daemon.stop();
}

fn create_volume(monitor: SocketAddr, name: &'static str) {
    ask_monitor(monitor, async move |client| {
        client.create_volume(name.into(), "default".into(), SIZE, 4 << 20, None).await.is_ok()
    });
}

/// A client of one connection: EXPORT_NAME and simple replies, as the kernel's.
struct Nbd(UnixStream);

impl Nbd {
    fn connect(socket: &Path, export: &str) -> Nbd {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; EXPORT_NAME.
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello).unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u64::from_be_bytes(answer[..8].try_into().unwrap()), SIZE);
        Nbd(stream)
    }
    fn send(&mut self, kind: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.0.write_all(&request).unwrap();
    }
    fn reply(&mut self) -> (u32, u64) {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        (
            u32::from_be_bytes(reply[4..8].try_into().unwrap()),
            u64::from_be_bytes(reply[8..].try_into().unwrap()),
        )
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.send(1, offset, offset, data.len() as u32, data);
        assert_eq!(self.reply(), (0, offset));
    }
    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.send(0, offset, offset, len as u32, &[]);
        assert_eq!(self.reply(), (0, offset));
        let mut data = vec![0; len];
        self.0.read_exact(&mut data).unwrap();
        data
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    monitor_address: SocketAddr,
    nodes: Vec<(Daemon, SocketAddr)>,
    monitor: Option<Daemon>,
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

impl Cluster {
    fn start() -> Cluster {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_thread_names(true)
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let (daemon, monitor_address) = monitor(dir.path(), any());
        let nodes = (0..3).map(|n| node(dir.path(), n, monitor_address, any())).collect();
        create_volume(monitor_address, "disk0");
        Cluster { dir, monitor_address, nodes, monitor: Some(daemon) }
    }
    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn restart_node(&mut self, number: usize) {
        let address = self.nodes[number].1;
        self.nodes[number].0.stop();
        self.nodes[number] = node(self.dir.path(), number as u32, self.monitor_address, address);
    }
    fn wait_healthy(&self) {
        // Heartbeats tell the state of up to a second ago.
        std::thread::sleep(Duration::from_millis(1500));
        ask_monitor(self.monitor_address, async |client| {
            let Ok(status) = client.status().await else { return false };
            let behind = |node: &trefoil_monitor::health::NodeStatus| {
                node.heartbeat.as_ref().is_none_or(|beat| beat.behind > 0)
            };
            status.nodes.len() == 3 && !status.nodes.iter().any(behind)
        });
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_each_node_in_turn_was_away_and_after_a_restart_of_all() {
    let mut cluster = Cluster::start();
    let socket = cluster.socket("nbd.sock");
    let mut front_end = front(&socket, cluster.monitor_address);
    let mut nbd = Nbd::connect(&socket, "disk0");
    let mut image = vec![0u8; SIZE as usize];
    let mut write = |nbd: &mut Nbd, offset: usize, seed: u64, len: usize| {
        let data = pattern(seed, len);
        nbd.write(offset as u64, &data);
        image[offset..offset + len].copy_from_slice(&data);
    };
    for i in 0..16 {
        write(&mut nbd, i << 22, i as u64 + 1, 2 << 20);
    }
    write(&mut nbd, 1000, 77, 512);
    for victim in 0..3 {
        cluster.nodes[victim].0.stop();
        let begun = Instant::now();
        for i in 0..32 {
            write(&mut nbd, i * 2_000_000 / 512 * 512, (100 * victim + i) as u64, 8192);
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(3), "32 writes with a node away took {took:?}");
        cluster.restart_node(victim);
        // The next one may only go when this one is level again; it takes what it missed meanwhile.
        let begun = Instant::now();
        cluster.wait_healthy();
        println!("node {victim} was level after {:?}", begun.elapsed());
    }
    for i in 0..16 {
        assert!(nbd.read(i << 22, 4 << 20) == image[(i << 22) as usize..][..4 << 20], "object {i}");
    }
    drop(nbd);
    front_end.stop();
    for (node, _) in &mut cluster.nodes {
        node.stop();
    }
    for number in 0..3 {
        cluster.restart_node(number);
    }
    let _front = front(&socket, cluster.monitor_address);
    let mut nbd = Nbd::connect(&socket, "disk0");
    for i in 0..16 {
        assert!(nbd.read(i << 22, 4 << 20) == image[(i << 22) as usize..][..4 << 20], "object {i}");
    }
}

#[test]
fn io_goes_on_and_nodes_start_without_the_monitor() {
    let mut cluster = Cluster::start();
    let socket = cluster.socket("nbd.sock");
    let _front = front(&socket, cluster.monitor_address);
    let mut nbd = Nbd::connect(&socket, "disk0");
    nbd.write(0, &pattern(1, 4096));
    drop(cluster.monitor.take());
    nbd.write(4096, &pattern(2, 4096));
    cluster.restart_node(1);
    nbd.write(8192, &pattern(3, 4096));
    cluster.restart_node(2);
    cluster.restart_node(0);
    assert!(nbd.read(0, 12288) == [pattern(1, 4096), pattern(2, 4096), pattern(3, 4096)].concat());
}

#[test]
fn a_second_front_end_takes_over() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.socket("a.sock"), cluster.socket("b.sock"));
    let _front_a = front(&a, cluster.monitor_address);
    let _front_b = front(&b, cluster.monitor_address);
    let mut first = Nbd::connect(&a, "disk0");
    first.write(0, &pattern(1, 65536));
    let mut second = Nbd::connect(&b, "disk0");
    let begun = Instant::now();
    assert!(second.read(0, 65536) == pattern(1, 65536));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    second.write(0, &pattern(2, 65536));
    // The first one is closed, not answered.
    first.send(1, 9, 0, 4096, &pattern(3, 4096));
    let mut byte = [0];
    assert_eq!(first.0.read(&mut byte).unwrap_or(0), 0);
    assert!(second.read(0, 65536) == pattern(2, 65536));
}

/// N8: a device that is an older copy of itself must not vote as if nothing had happened.
#[test]
fn a_node_whose_device_was_rolled_back_says_so_and_is_repaired() {
    a_rolled_back_node(false);
}

/// Without the index, only the monitors remember how far the log went.
#[test]
fn a_node_whose_device_was_rolled_back_and_whose_index_is_gone_says_so_and_is_repaired() {
    a_rolled_back_node(true);
}

fn a_rolled_back_node(index_gone: bool) {
    let mut cluster = Cluster::start();
    let socket = cluster.socket("nbd.sock");
    let mut front_end = front(&socket, cluster.monitor_address);
    let mut nbd = Nbd::connect(&socket, "disk0");
    nbd.write(0, &pattern(1, 1 << 20));
    cluster.restart_node(0);
    cluster.wait_healthy();
    cluster.nodes[0].0.stop();
    let device = cluster.dir.path().join("node-0");
    let old = cluster.dir.path().join("old");
    let copy = |from: &Path, to: &Path| {
        let copied = std::process::Command::new("cp").arg("--sparse=always").arg(from).arg(to).status();
        assert!(copied.unwrap().success());
    };
    copy(&device, &old);
    cluster.restart_node(0);
    cluster.wait_healthy();
    nbd.write(0, &pattern(2, 1 << 20));
    // A heartbeat must carry the new position to the monitor.
    cluster.wait_healthy();
    cluster.nodes[0].0.stop();
    copy(&old, &device);
    if index_gone {
        std::fs::remove_dir_all(cluster.dir.path().join("node-0.state")).unwrap();
    }
    // The front end is gone too, so that nobody but the nodes knows what was written.
    drop(nbd);
    front_end.stop();
    cluster.restart_node(0);
    ask_monitor(cluster.monitor_address, async |client| {
        let Ok(status) = client.status().await else { return false };
        let beats: Vec<_> = status.nodes.iter().filter_map(|node| node.heartbeat.as_ref()).collect();
        beats.len() == 3 && beats.iter().filter(|beat| beat.lost).count() == 1
    });
    // With one of the two good ones away too, nothing may be read that was overwritten: the volume waits.
    cluster.nodes[1].0.stop();
    let _front = front(&socket, cluster.monitor_address);
    let mut nbd = Nbd::connect(&socket, "disk0");
    nbd.0.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    nbd.send(0, 1, 0, 4096, &[]);
    let mut byte = [0];
    let waits = nbd.0.read(&mut byte);
    assert!(waits.is_err(), "an answer although the majority knows nothing: {waits:?}");
    // When it is back, all is as it was written, on all three.
    nbd.0.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    cluster.restart_node(1);
    assert_eq!(nbd.reply(), (0, 1));
    nbd.0.read_exact(&mut vec![0; 4096]).unwrap();
    assert!(nbd.read(0, 1 << 20) == pattern(2, 1 << 20));
    ask_monitor(cluster.monitor_address, async |client| {
        let Ok(status) = client.status().await else { return false };
        let beats: Vec<_> = status.nodes.iter().filter_map(|node| node.heartbeat.as_ref()).collect();
        beats.len() == 3 && beats.iter().all(|beat| !beat.lost && beat.behind == 0)
    });
}

#[test]
fn a_foreign_request_to_a_node_is_refused_and_harms_nothing() {
    let cluster = Cluster::start();
    let mut stream = std::net::TcpStream::connect(cluster.nodes[0].1).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Trefoil storage node"), "{answer:?}");
}

/// Who holds each volume, by its name.
fn holders(cluster: &Cluster) -> std::collections::BTreeMap<String, (u64, Option<Holder>)> {
    let (sender, receiver) = mpsc::channel();
    ask_monitor(cluster.monitor_address, async move |client| {
        let Ok(Some(map)) = client.get_map(0).await else { return false };
        let all = map.volumes.iter().map(|(id, it)| (it.name.clone(), (id.0, it.holder.clone())));
        sender.send(all.collect()).is_ok()
    });
    receiver.recv().unwrap()
}

#[test]
fn shards_hold_their_volumes_as_front_ends_of_their_own() {
    let names = ["disk0", "a", "b", "c", "d", "e"];
    let cluster = Cluster::start();
    names[1..].iter().for_each(|name| create_volume(cluster.monitor_address, name));
    let socket = cluster.socket("nbd.sock");
    let mut front_end = front_of(&socket, cluster.monitor_address, 3);
    let mut clients: Vec<Nbd> = names.iter().map(|name| Nbd::connect(&socket, name)).collect();
    for (n, client) in (0..).zip(&mut clients) {
        client.write(0, &pattern(n, 65536));
    }
    let held = holders(&cluster);
    let mut seen = std::collections::BTreeMap::new();
    for (name, (id, holder)) in &held {
        let holder = holder.clone().unwrap_or_else(|| panic!("{name} is held by nobody"));
        let shard = trefoil_nbd::shards::home(VolumeId(*id), 3);
        assert_eq!(holder.name, format!("front/{shard}"), "{name}");
        let boot = seen.entry(holder.name).or_insert(holder.boot);
        assert_eq!(*boot, holder.boot, "{name}: one shard is one holder");
    }
    let boots: std::collections::BTreeSet<u64> = seen.values().copied().collect();
    assert!(
        seen.len() >= 2 && boots.len() == seen.len(),
        "several shards, none taken for another one: {held:?}"
    );
    // Beyond the first renewals, each holder's own.
    std::thread::sleep(Duration::from_secs(5));
    for (n, client) in (0..).zip(&mut clients) {
        assert!(client.read(0, 65536) == pattern(n, 65536));
    }
    // A second connection meets the first one's session.
    let mut again = Nbd::connect(&socket, "c");
    again.write(4096, &pattern(99, 4096));
    assert!(clients[3].read(4096, 4096) == pattern(99, 4096));
    // All shards give back what they hold; another number of them finds it as it was.
    drop((clients, again));
    front_end.stop();
    assert!(holders(&cluster).values().all(|(_, holder)| holder.is_none()));
    let _front = front_of(&socket, cluster.monitor_address, 2);
    for (n, name) in (0..).zip(names) {
        let mut client = Nbd::connect(&socket, name);
        assert!(client.read(8192, 57344) == pattern(n, 65536)[8192..], "{name}");
    }
}
