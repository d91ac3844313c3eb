//! Several servers of one process, each on its thread, with disks that write down what they are given, and clients
//! made of raw bytes: connections that are handed over, limits, stops.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use trefoil_nbd::disk::{
    Completions, ConnId, Disk, DiskOp, DiskReply, DiskRequest, Elsewhere, ExportInfo, Exports, LocalFuture,
    OpenError,
};
use trefoil_nbd::server::{Config, Counters, Server, doors};

const PATIENCE: Duration = Duration::from_secs(20);

/// Shard, export, offset, bytes.
type Written = (usize, String, u64, Vec<u8>);

/// What all shards' disks have been given.
#[derive(Default)]
struct Seen {
    writes: Mutex<Vec<Written>>,
    /// Requests are kept until this is set.
    answers: AtomicBool,
    /// A thread that is held up is so until this is set.
    goes_on: AtomicBool,
    gone: Mutex<Vec<ConnId>>,
}

/// Exports whose name ends with the number of their shard. Of what begins with `lost`, each says that the next one has
/// it; what begins with `no` is not there; what begins with `hold` holds its shard's thread up.
struct Named {
    shard: usize,
    of: usize,
    seen: Arc<Seen>,
}

fn home(name: &str, of: usize) -> usize {
    name.bytes().last().map_or(0, |last| usize::from(last - b'0')) % of
}

fn unknown(name: &str) -> OpenError {
    OpenError::Unknown(format!("no {name} here"))
}

impl Exports for Named {
    fn list(&self) -> Vec<String> {
        (0..4).map(|n| format!("disk{n}")).collect()
    }
    fn describe(&self, name: &str) -> LocalFuture<Result<ExportInfo, OpenError>> {
        let info = ExportInfo { name: name.into(), size_bytes: 1 << 30, ..ExportInfo::default() };
        Box::pin(std::future::ready(if name.starts_with("no") { Err(unknown(name)) } else { Ok(info) }))
    }
    fn open(&self, name: &str) -> LocalFuture<Result<Rc<dyn Disk>, OpenError>> {
        assert_eq!(home(name, self.of), self.shard, "opened where it does not belong");
        if name.starts_with("hold") {
            until("it is let go on", || self.seen.goes_on.load(Ordering::Relaxed));
        }
        let disk = Kept { shard: self.shard, name: name.into(), seen: self.seen.clone() };
        let known = !name.starts_with("no");
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if known { Ok(Rc::new(disk) as Rc<dyn Disk>) } else { Err(unknown(&disk.name)) }
        })
    }
    fn elsewhere(&self, name: &str) -> Option<Elsewhere> {
        let shard = match name.starts_with("lost") {
            true => (self.shard + 1) % self.of,
            false => home(name, self.of),
        };
        (shard != self.shard).then_some(Elsewhere { shard, known: 1 })
    }
}

struct Kept {
    shard: usize,
    name: String,
    seen: Arc<Seen>,
}

impl Disk for Kept {
    fn info(&self) -> ExportInfo {
        ExportInfo { name: self.name.clone(), size_bytes: 1 << 30, ..ExportInfo::default() }
    }
    fn submit(&self, batch: &mut Vec<DiskRequest>) {
        for DiskRequest { token, reply_to, op } in batch.drain(..) {
            if let DiskOp::Write { offset, data, .. } = op {
                let write = (self.shard, self.name.clone(), offset, data.to_vec());
                self.seen.writes.lock().unwrap().push(write);
            }
            answer(&self.seen, token, reply_to);
        }
    }
    fn client_gone(&self, conn: ConnId) {
        self.seen.gone.lock().unwrap().push(conn);
    }
}

fn answer(seen: &Arc<Seen>, token: u64, reply_to: Rc<Completions>) {
    if seen.answers.load(Ordering::Relaxed) {
        return reply_to.push(token, Ok(DiskReply::Done));
    }
    let seen = seen.clone();
    tokio::task::spawn_local(async move {
        while !seen.answers.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        reply_to.push(token, Ok(DiskReply::Done));
    });
}

/// One shard's server on its thread.
struct Shard {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Mutex<Counters>>,
}

struct Process {
    shards: Vec<Shard>,
    tcp: SocketAddr,
    unix: PathBuf,
    seen: Arc<Seen>,
    _dir: tempfile::TempDir,
}

impl Process {
    fn start(of: usize, config: Config) -> Process {
        let dir = tempfile::tempdir().unwrap();
        let unix = dir.path().join("nbd.sock");
        let seen = Arc::new(Seen::default());
        seen.answers.store(true, Ordering::Relaxed);
        let (ready, is_ready) = mpsc::channel();
        let mut shards = Vec::new();
        for (shard, door) in doors(of, config.bytes_max).into_iter().enumerate() {
            let (stop, stopped) = oneshot::channel::<()>();
            let (ready, config, seen, unix) = (ready.clone(), config.clone(), seen.clone(), unix.clone());
            let counters = Arc::new(Mutex::new(Counters::default()));
            let told = counters.clone();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                tokio::task::LocalSet::new().block_on(&runtime, async move {
                    let server = Server::behind(door, Rc::new(Named { shard, of, seen }), config);
                    if shard == 0 {
                        server.listen_unix(&unix).unwrap();
                        ready.send(server.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
                    }
                    tokio::pin!(stopped);
                    loop {
                        tokio::select! {
                            _ = &mut stopped => break,
                            () = tokio::time::sleep(Duration::from_millis(2)) => {
                                *told.lock().unwrap() = server.counters();
                            }
                        }
                    }
                    server.stop().await;
                });
            });
            shards.push(Shard { stop: Some(stop), thread: Some(thread), counters });
        }
        let tcp = is_ready.recv_timeout(PATIENCE).unwrap();
        Process { shards, tcp, unix, seen, _dir: dir }
    }

    fn two() -> Process {
        Process::start(2, Config::default())
    }

    fn tell(&mut self, shard: usize) {
        drop(self.shards[shard].stop.take());
    }

    fn stop(&mut self) {
        (0..self.shards.len()).for_each(|shard| self.tell(shard));
        for shard in &mut self.shards {
            if let Some(thread) = shard.thread.take() {
                thread.join().unwrap();
            }
        }
    }

    fn counters(&self, shard: usize) -> Counters {
        *self.shards[shard].counters.lock().unwrap()
    }

    fn writes(&self) -> Vec<Written> {
        self.seen.writes.lock().unwrap().clone()
    }

    fn tcp(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::greeted(stream)
    }

    fn unix(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(&self.unix).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::greeted(stream)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.seen.answers.store(true, Ordering::Relaxed);
        self.seen.goes_on.store(true, Ordering::Relaxed);
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Client<S>(S);

const EXPORT_NAME: u32 = 1;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;

const ACK: u32 = 1;
const ERR_POLICY: u32 = 1 << 31 | 2;
const ERR_UNKNOWN: u32 = 1 << 31 | 6;
const ERR_SHUTDOWN: u32 = 1 << 31 | 7;

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn named(number: u32, name: &str) -> Vec<u8> {
    match number {
        EXPORT_NAME => option(number, name.as_bytes()),
        _ => option(number, &[&(name.len() as u32).to_be_bytes(), name.as_bytes(), &[0, 0]].concat()),
    }
}

fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let header = [
        &0x2560_9513u32.to_be_bytes()[..],
        &[0, 0, 0, 1],
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &(data.len() as u32).to_be_bytes(),
    ];
    [&header.concat()[..], data].concat()
}

impl<S: Read + Write> Client<S> {
    fn greeted(mut stream: S) -> Client<S> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        Client(stream)
    }
    /// Sends an option and takes its replies up to the last one, whose kind it gives.
    fn ask(&mut self, bytes: &[u8]) -> (u32, Vec<u8>) {
        self.0.write_all(bytes).unwrap();
        self.option_end()
    }
    fn option_end(&mut self) -> (u32, Vec<u8>) {
        let mut all = Vec::new();
        loop {
            let mut header = [0; 20];
            self.0.read_exact(&mut header).unwrap();
            let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            let (kind, len) = (number(12), number(16));
            let mut data = vec![0; len as usize];
            self.0.read_exact(&mut data).unwrap();
            all.extend(data);
            if kind == ACK || kind >> 31 == 1 {
                return (kind, all);
            }
        }
    }
    fn go(&mut self, name: &str) {
        assert_eq!(self.ask(&named(GO, name)).0, ACK, "{name}");
    }
    fn export_name(&mut self, name: &str) {
        self.0.write_all(&named(EXPORT_NAME, name)).unwrap();
        self.0.read_exact(&mut [0; 10]).unwrap();
    }
    /// The cookie of the next simple reply, which must be a success.
    fn reply(&mut self) -> u64 {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        u64::from_be_bytes(reply[8..].try_into().unwrap())
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write_all(&write(offset, offset, data)).unwrap();
        assert_eq!(self.reply(), offset);
    }
    fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0]).unwrap_or(0) == 0
    }
}

#[test]
fn each_volume_is_served_by_its_shard_however_it_is_asked_for() {
    let process = Process::start(3, Config::default());
    let mut clients = Vec::new();
    let mut unix = Vec::new();
    for n in 0..6u64 {
        let name = format!("disk{n}");
        let mut client = process.tcp();
        if n % 2 == 0 {
            client.go(&name)
        } else {
            client.export_name(&name)
        }
        client.write(n * 4096, &[n as u8; 100]);
        clients.push(client);
        let mut client = process.unix();
        if n % 2 == 1 {
            client.go(&name)
        } else {
            client.export_name(&name)
        }
        client.write(n * 4096 + 1, &[n as u8; 5000]);
        unix.push(client);
    }
    for (n, client) in (0..).zip(&mut clients) {
        client.write(n * 4096 + 2, &[9; 10]);
    }
    let writes = process.writes();
    assert_eq!(writes.len(), 18, "each once");
    for (shard, name, offset, _) in writes {
        assert_eq!((name, shard), (format!("disk{}", offset / 4096), (offset / 4096) as usize % 3));
    }
    until("all are counted", || (0..3).map(|n| process.counters(n).connections).sum::<usize>() == 12);
    until("handed over", || process.counters(0).handed_over == 8);
    until("four each", || (0..3).all(|n| process.counters(n).connections == 4));
    drop((clients, unix));
    until("all have ended", || (0..3).all(|n| process.counters(n).connections == 0));
    until("no byte is held", || (0..3).all(|n| process.counters(n).bytes_held == 0));
    assert_eq!(process.seen.gone.lock().unwrap().len(), 12);
}

#[test]
fn what_was_read_ahead_goes_with_the_connection_and_is_done_once_and_in_order() {
    let process = Process::two();
    // EXPORT_NAME has no answer that a client must wait for, and may be split anywhere.
    let payload = |n: u64| vec![n as u8; 700 + n as usize];
    let requests: Vec<u8> = (0..200u64).flat_map(|n| write(n, n * 4096, &payload(n))).collect();
    let all = [option(STRUCTURED, &[]), named(EXPORT_NAME, "disk1"), requests].concat();
    for cut in [0, 1, 30, 40, 47, 60, 100, 5000, all.len()] {
        process.seen.writes.lock().unwrap().clear();
        let mut client = process.unix();
        let mut sender = client.0.try_clone().unwrap();
        let (first, second) = (all[..cut].to_vec(), all[cut..].to_vec());
        let sent = std::thread::spawn(move || {
            sender.write_all(&first).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            sender.write_all(&second).unwrap();
        });
        assert_eq!(client.option_end().0, ACK);
        client.0.read_exact(&mut [0; 10]).unwrap();
        // Structured replies were negotiated before it was handed over; writes are answered in simple ones or not, as
        // the server likes: what counts is the cookie.
        let mut cookies = Vec::new();
        for _ in 0..200 {
            let mut magic = [0; 4];
            client.0.read_exact(&mut magic).unwrap();
            let mut rest = vec![0; if magic == 0x6744_6698u32.to_be_bytes() { 12 } else { 16 }];
            client.0.read_exact(&mut rest).unwrap();
            cookies.push(u64::from_be_bytes(rest[4..12].try_into().unwrap()));
        }
        sent.join().unwrap();
        assert_eq!(cookies, (0..200).collect::<Vec<u64>>(), "cut at {cut}");
        let writes = process.writes();
        let expected: Vec<_> = (0..200u64).map(|n| (1, "disk1".to_owned(), n * 4096, payload(n))).collect();
        assert!(writes == expected, "cut at {cut}: {} writes", writes.len());
    }
}

#[test]
fn a_negotiation_goes_on_wherever_it_was_taken() {
    let process = Process::two();
    let mut client = process.tcp();
    assert_eq!(client.ask(&option(STRUCTURED, &[])).0, ACK);
    let (kind, names) = client.ask(&option(LIST, &[]));
    assert_eq!(kind, ACK);
    assert!(String::from_utf8_lossy(&names).contains("disk3"));
    // Looking moves nothing.
    for name in ["disk0", "disk1"] {
        let (kind, info) = client.ask(&named(INFO, name));
        assert_eq!((kind, &info[2..10]), (ACK, &(1u64 << 30).to_be_bytes()[..]));
    }
    assert_eq!(process.counters(0).handed_over, 0);
    // Refused by the other shard, which goes on with it; then by the first one, to which it comes back.
    assert_eq!(client.ask(&named(GO, "no-disk1")).0, ERR_UNKNOWN);
    until("it is there", || process.counters(1).connections == 1 && process.counters(0).connections == 0);
    assert_eq!(client.ask(&named(INFO, "disk0")).0, ACK);
    let (_, names) = client.ask(&option(LIST, &[]));
    assert!(String::from_utf8_lossy(&names).contains("disk2"));
    assert_eq!(client.ask(&named(GO, "no-disk0")).0, ERR_UNKNOWN);
    until("it is back", || process.counters(0).connections == 1 && process.counters(1).connections == 0);
    // One that no shard takes is passed on so often and no more.
    assert_eq!(client.ask(&named(GO, "lost")).0, ERR_POLICY);
    assert_eq!(client.ask(&named(GO, "lost")).0, ERR_POLICY, "and the next look-up begins to count anew");
    client.0.write_all(&[named(INFO, "disk0"), named(GO, "disk1"), write(7, 7, b"x")].concat()).unwrap();
    assert_eq!(client.option_end().0, ACK);
    assert_eq!(client.option_end().0, ACK);
    until("the write arrives", || process.writes().len() == 1);
    assert_eq!(process.writes(), [(1, "disk1".to_owned(), 7, b"x".to_vec())]);
}

#[test]
fn connections_are_limited_for_all_shards_together() {
    let process = Process::start(2, Config { connections_max: 3, ..Config::default() });
    let mut first = process.tcp();
    first.go("disk1");
    let mut second = process.tcp();
    second.go("disk1");
    let third = process.unix();
    let refused =
        |process: &Process| TcpStream::connect(process.tcp).unwrap().read(&mut [0; 18]).unwrap_or(0) == 0;
    assert!(refused(&process) && refused(&process));
    until("the other two are elsewhere", || process.counters(0).connections == 1);
    drop(first);
    until("there is room", || process.counters(1).connections == 1);
    let mut fourth = process.tcp();
    fourth.go("disk1");
    assert!(refused(&process));
    second.write(1, b"still served");
    drop((third, fourth));
    until("all are counted", || process.counters(0).refused == 3);
}

#[test]
fn bytes_are_limited_for_all_shards_together() {
    const MIB: usize = 1 << 20;
    let config = Config { bytes_max: 16 << 20, connection_share_bytes: 1 << 20, ..Config::default() };
    let process = Process::start(2, config);
    process.seen.answers.store(false, Ordering::Relaxed);
    let mut clients = Vec::new();
    let mut senders = Vec::new();
    for n in 0..4 {
        let mut client = process.unix();
        client.go(&format!("disk{n}"));
        let mut sender = client.0.try_clone().unwrap();
        senders.push(std::thread::spawn(move || {
            for at in 0..16 {
                sender.write_all(&write(at, at << 20, &vec![1; MIB])).unwrap();
            }
        }));
        clients.push(client);
    }
    until("much is held", || process.writes().len() >= 12);
    std::thread::sleep(Duration::from_millis(600));
    // Each connection may be a read beyond it, and holds a buffer for the next.
    let held = process.counters(0).bytes_held + process.counters(1).bytes_held;
    assert!(held <= (16 + 4 * 2) << 20, "{held} bytes are held");
    assert!(process.writes().len() <= 24, "{} MiB were taken", process.writes().len());
    // Modest clients are served on either shard.
    let before = process.writes().len();
    let mut modest = Vec::new();
    for n in 0..2 {
        let mut client = process.tcp();
        client.go(&format!("disk{n}"));
        client.0.write_all(&write(3, 3, b"modest")).unwrap();
        modest.push(client);
    }
    until("they are served", || process.writes().len() == before + 2);
    process.seen.answers.store(true, Ordering::Relaxed);
    for client in &mut clients {
        let mut cookies: Vec<u64> = (0..16).map(|_| client.reply()).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..16).collect::<Vec<u64>>());
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    until("nothing is held", || (0..2).all(|n| process.counters(n).bytes_held < MIB as u64));
}

#[test]
fn a_stop_lets_requests_of_all_shards_finish() {
    let mut process = Process::two();
    process.seen.answers.store(false, Ordering::Relaxed);
    let mut clients: Vec<_> = (0..4)
        .map(|n| {
            let mut client = process.unix();
            client.go(&format!("disk{n}"));
            client.0.write_all(&write(n, n * 4096, b"under way")).unwrap();
            client
        })
        .collect();
    let mut idle = process.tcp();
    idle.go("disk1");
    until("all are under way", || process.writes().len() == 4);
    (0..2).for_each(|shard| process.tell(shard));
    assert!(idle.is_closed());
    std::thread::sleep(Duration::from_millis(100));
    process.seen.answers.store(true, Ordering::Relaxed);
    for (n, client) in (0..).zip(&mut clients) {
        assert_eq!(client.reply(), n);
        assert!(client.is_closed());
    }
    process.stop();
    assert!(TcpStream::connect(process.tcp).is_err() && !process.unix.exists());
}

#[test]
fn a_shard_that_is_gone_is_told_in_words_and_the_others_serve() {
    let mut process = Process::two();
    let mut there = process.tcp();
    there.go("disk1");
    process.tell(1);
    assert!(there.is_closed());
    process.shards[1].thread.take().unwrap().join().unwrap();
    let mut client = process.tcp();
    assert_eq!(client.ask(&named(GO, "disk1")).0, ERR_SHUTDOWN);
    client.go("disk0");
    client.write(1, b"served");
}

#[test]
fn connections_wait_in_front_of_a_queue_that_is_full() {
    let process = Process::two();
    let mut holds = process.tcp();
    holds.0.write_all(&named(GO, "hold1")).unwrap();
    until("it is on its way", || process.counters(0).handed_over == 1);
    let mut clients: Vec<_> = (0..100)
        .map(|_| {
            let mut client = process.unix();
            client.0.write_all(&named(GO, "disk1")).unwrap();
            client
        })
        .collect();
    // The one that holds the thread up, and 64 in its queue; the others are still the first shard's.
    until("the queue is full, and the others wait", || {
        let it = process.counters(0);
        (it.handed_over, it.connections) == (65, 36)
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(process.counters(0).handed_over, 65);
    // Which sees one of them hang up, while it serves others.
    drop(clients.pop());
    until("it is let go", || process.counters(0).connections == 35);
    let mut other = process.unix();
    other.go("disk0");
    other.write(0, b"served meanwhile");
    assert_eq!(process.counters(1).connections, 0, "the thread is still held up");
    process.seen.goes_on.store(true, Ordering::Relaxed);
    assert_eq!(holds.option_end().0, ACK);
    for client in &mut clients {
        assert_eq!(client.option_end().0, ACK);
    }
    until("all are there", || process.counters(1).connections == 100);
}
