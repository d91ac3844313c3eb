//! The server with a disk that remembers what it was told, and clients made of raw bytes: dead
//! clients, limits, timeouts, stops.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trefoil_nbd::disk::{
    Completions, ConnId, Disk, DiskError, DiskOp, DiskReply, DiskRequest, ExportInfo, Exports, LocalFuture,
    OpenError,
};
use trefoil_nbd::proto::Limits;
use trefoil_nbd::server::{Config, Server};

const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps requests until it is told to answer.
#[derive(Default)]
struct Stub {
    requests: RefCell<Vec<(u64, Rc<Completions>, DiskOp)>>,
    gone: RefCell<Vec<ConnId>>,
}

impl Stub {
    fn answer_all(&self, result: Result<DiskReply, DiskError>) {
        for (token, reply_to, _) in self.requests.take() {
            reply_to.push(token, result.clone());
        }
    }
    fn count(&self) -> usize {
        self.requests.borrow().len()
    }
}

impl Disk for Stub {
    fn info(&self) -> ExportInfo {
        ExportInfo { name: "disk0".into(), size_bytes: 1 << 30, ..ExportInfo::default() }
    }
    fn submit(&self, batch: &mut Vec<DiskRequest>) {
        let kept = batch.drain(..).map(|r| (r.token, r.reply_to, r.op));
        self.requests.borrow_mut().extend(kept);
    }
    fn client_gone(&self, conn: ConnId) {
        self.gone.borrow_mut().push(conn);
    }
}

struct One(Rc<Stub>);

impl Exports for One {
    fn list(&self) -> Vec<String> {
        vec!["disk0".into()]
    }
    fn describe(&self, _: &str) -> LocalFuture<Result<ExportInfo, OpenError>> {
        let info = self.0.info();
        Box::pin(async move { Ok(info) })
    }
    fn open(&self, name: &str) -> LocalFuture<Result<Rc<dyn Disk>, OpenError>> {
        let (disk, never) = (self.0.clone(), name == "never");
        Box::pin(async move {
            if never {
                std::future::pending::<()>().await;
            }
            Ok(disk as Rc<dyn Disk>)
        })
    }
}

/// Runs a test on the server's one thread.
fn run<F: Future<Output = ()>>(config: Config, test: impl FnOnce(Server, SocketAddr, Rc<Stub>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let stub = Rc::new(Stub::default());
        let server = Server::new(Rc::new(One(stub.clone())), config);
        let address = server.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        tokio::time::timeout(PATIENCE, test(server, address, stub)).await.expect("in time");
    });
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn greeted(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).await.unwrap();
    socket.write_all(&[0, 0, 0, 3]).await.unwrap();
    socket
}

fn export_name(name: &str) -> Vec<u8> {
    [&b"IHAVEOPT\0\0\0\x01\0\0\0"[..], &[name.len() as u8], name.as_bytes()].concat()
}

async fn connected(address: SocketAddr) -> TcpStream {
    let mut socket = greeted(address).await;
    socket.write_all(&export_name("disk0")).await.unwrap();
    socket.read_exact(&mut [0; 10]).await.unwrap();
    socket
}

fn request(command: u16, cookie: u64, len: u32) -> Vec<u8> {
    let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
    out.extend([0, 0]);
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend((cookie * 4096).to_be_bytes());
    out.extend(len.to_be_bytes());
    if command == 1 {
        out.extend(vec![1; len as usize]);
    }
    out
}

const WRITE: u16 = 1;
const DISC: u16 = 2;

#[test]
fn writes_of_a_client_that_is_gone_do_not_start() {
    run(Config::default(), |server, address, stub| async move {
        let _running = server;
        let socket = connected(address).await;
        // It sends and is gone before the server looks.
        let writes: Vec<u8> = (0..20).flat_map(|n| request(WRITE, n, 2000)).collect();
        let socket = {
            let std = socket.into_std().unwrap();
            std.set_nonblocking(false).unwrap();
            std
        };
        // A thread, so that the whole of it is in the kernel while the server's thread is busy here.
        std::thread::spawn(move || {
            use std::io::Write;
            let _ = (&socket).write_all(&writes[..writes.len() - 500]);
            let _ = socket.shutdown(std::net::Shutdown::Both);
        })
        .join()
        .unwrap();
        until("the disk is told", || !stub.gone.borrow().is_empty()).await;
        assert_eq!(stub.count(), 0, "not one of its writes may start");
        // Another client is served.
        socket_ok(&mut connected(address).await, &stub).await;
    });
}

async fn socket_ok(socket: &mut TcpStream, stub: &Stub) {
    socket.write_all(&request(WRITE, 9, 4)).await.unwrap();
    until("the write arrives", || stub.count() == 1).await;
    stub.answer_all(Ok(DiskReply::Done));
    let mut reply = [0; 16];
    socket.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

#[test]
fn a_blocked_client_that_goes_away_is_noticed_and_its_backlog_dropped() {
    let limits = Limits { requests_max: 4, ..Limits::default() };
    run(Config { limits, ..Config::default() }, |server, address, stub| async move {
        let _running = server;
        let mut socket = connected(address).await;
        for n in 0..10 {
            socket.write_all(&request(WRITE, n, 512)).await.unwrap();
        }
        until("the limit", || stub.count() == 4).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(stub.count(), 4, "back-pressure");
        drop(socket);
        until("the disk is told", || !stub.gone.borrow().is_empty()).await;
        stub.answer_all(Ok(DiskReply::Done));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(stub.count(), 0, "what was queued behind the limit may not start");
    });
}

/// Writes as much as the kernel takes: the end of the stream does not get through behind it.
async fn fill(socket: &TcpStream) {
    let writes: Vec<u8> = (0..1000).flat_map(|n| request(WRITE, n, 4096)).collect();
    let (mut sent, mut idle) = (0, 0);
    while idle < 50 {
        match socket.try_write(&writes[sent % writes.len()..]) {
            Ok(n) => (sent, idle) = (sent + n, 0),
            Err(_) => idle += 1,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn an_end_that_is_hidden_behind_data_is_found_before_more_is_served() {
    let limits = Limits { requests_max: 4, ..Limits::default() };
    run(Config { limits, ..Config::default() }, |server, address, stub| async move {
        let _running = server;
        let socket = connected(address).await;
        fill(&socket).await;
        assert_eq!(stub.count(), 4);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let socket = socket.into_std().unwrap();
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(stub.gone.borrow().is_empty(), "this test wants an end that is not seen");
        stub.answer_all(Ok(DiskReply::Done));
        until("the disk is told", || !stub.gone.borrow().is_empty()).await;
        assert_eq!(stub.count(), 0, "a late copy");
    });
}

/// A client gives up when one of its requests takes too long, not when all of them do: what it has in the sockets then
/// must not be carried out behind what it writes on its next connection, however short a while ago the server took
/// something from the old one.
#[test]
fn one_request_that_takes_long_is_enough_for_a_client_to_give_up() {
    let limits = Limits { requests_max: 4, ..Limits::default() };
    run(Config { limits, ..Config::default() }, |server, address, stub| async move {
        let _running = server;
        let socket = connected(address).await;
        fill(&socket).await;
        // The first one is not answered; others are, and make room for more.
        for _ in 0..5 {
            until("the limit", || stub.count() == 4).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let (token, reply_to, _) = stub.requests.borrow_mut().pop().expect("four");
            reply_to.push(token, Ok(DiskReply::Done));
        }
        until("the limit", || stub.count() == 4).await;
        // It gives up, and writes on another connection.
        let socket = socket.into_std().unwrap();
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        let mut next = connected(address).await;
        next.write_all(&request(WRITE, 9, 4)).await.unwrap();
        until("its write arrives", || stub.count() == 5).await;
        let (token, reply_to, _) = stub.requests.borrow_mut().pop().expect("five");
        reply_to.push(token, Ok(DiskReply::Done));
        next.read_exact(&mut [0; 16]).await.unwrap();
        assert!(stub.gone.borrow().is_empty(), "this test wants an end that is not seen");
        stub.answer_all(Ok(DiskReply::Done));
        until("the disk is told", || !stub.gone.borrow().is_empty()).await;
        assert_eq!(stub.count(), 0, "a late copy");
    });
}

#[test]
fn a_client_that_was_blocked_for_long_goes_on() {
    let limits = Limits { requests_max: 4, ..Limits::default() };
    run(Config { limits, ..Config::default() }, |server, address, stub| async move {
        let _running = server;
        let mut socket = connected(address).await;
        for n in 0..10 {
            socket.write_all(&request(WRITE, n, 512)).await.unwrap();
        }
        until("the limit", || stub.count() == 4).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for round in [4, 4, 2] {
            until("the next round", || stub.count() == round).await;
            stub.answer_all(Ok(DiskReply::Done));
        }
        socket.read_exact(&mut [0; 160]).await.unwrap();
    });
}

#[test]
fn a_goodbye_lets_requests_under_way_finish() {
    run(Config::default(), |server, address, stub| async move {
        let mut socket = connected(address).await;
        let bytes = [request(WRITE, 1, 4), request(DISC, 0, 0)].concat();
        socket.write_all(&bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        until("the write arrives", || stub.count() == 1).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert!(stub.gone.borrow().is_empty(), "it is waited for");
        stub.answer_all(Ok(DiskReply::Done));
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 16, "the reply, then the end");
        until("the end", || server.counters().connections == 0).await;
    });
}

#[test]
fn a_disk_that_is_gone_closes_the_connection() {
    run(Config::default(), |server, address, stub| async move {
        let _running = server;
        let mut socket = connected(address).await;
        socket.write_all(&request(WRITE, 1, 4)).await.unwrap();
        until("the write arrives", || stub.count() == 1).await;
        stub.answer_all(Err(DiskError::Gone));
        assert_eq!(socket.read(&mut [0; 16]).await.unwrap(), 0, "no answer, no error: the end");
    });
}

#[test]
fn too_many_connections_are_refused_and_slow_handshakes_cut_off() {
    let config =
        Config { connections_max: 2, handshake_timeout: Duration::from_millis(200), ..Config::default() };
    run(config, |server, address, stub| async move {
        let mut served = connected(address).await;
        let mut idle = greeted(address).await;
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(third.read(&mut [0; 18]).await.unwrap_or(0), 0);
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0, "cut off after its time");
        until("room", || server.counters().connections == 1).await;
        let counters = server.counters();
        assert_eq!((counters.refused, counters.protocol_errors), (1, 1));
        // The one that is through the handshake has all the time in the world.
        tokio::time::sleep(Duration::from_millis(300)).await;
        socket_ok(&mut served, &stub).await;
    });
}

#[test]
fn a_client_that_hangs_up_while_its_export_is_opened_is_let_go() {
    run(Config::default(), |server, address, _| async move {
        let mut socket = greeted(address).await;
        socket.write_all(&export_name("never")).await.unwrap();
        until("it is there", || server.counters().connections == 1).await;
        drop(socket);
        until("it is let go", || server.counters().connections == 0).await;
    });
}

#[test]
fn stopping_waits_for_requests_under_way_and_then_no_longer() {
    let config = Config { stop_drain: Duration::from_millis(300), ..Config::default() };
    run(config.clone(), |server, address, stub| async move {
        let mut socket = connected(address).await;
        socket.write_all(&request(WRITE, 1, 4)).await.unwrap();
        until("the write arrives", || stub.count() == 1).await;
        let stopped = tokio::task::spawn_local(server.stop());
        tokio::time::sleep(Duration::from_millis(50)).await;
        stub.answer_all(Ok(DiskReply::Done));
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 16);
        stopped.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    });
    run(config, |server, address, stub| async move {
        let mut stuck = connected(address).await;
        stuck.write_all(&request(WRITE, 1, 4)).await.unwrap();
        until("the write arrives", || stub.count() == 1).await;
        server.stop().await;
        assert_eq!(stub.gone.borrow().len(), 1);
        assert_eq!(stuck.read(&mut [0; 1]).await.unwrap_or(0), 0);
    });
}

#[test]
fn a_full_server_reads_no_more_from_those_who_hold_much() {
    let config = Config { bytes_max: 4 << 20, connection_share_bytes: 1 << 20, ..Config::default() };
    run(config, |server, address, stub| async move {
        let mut greedy = connected(address).await;
        let (mut reader, mut writer) = greedy.split();
        let send = async {
            for n in 0..64 {
                writer.write_all(&request(WRITE, n, 1 << 20)).await.unwrap();
            }
        };
        let check = async {
            until("it is full", || stub.count() >= 3).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(stub.count() <= 8, "{} MiB are held", stub.count());
            assert!(server.counters().bytes_held < 12 << 20);
            // A modest client is served meanwhile.
            let before = stub.count();
            let mut modest = connected(address).await;
            modest.write_all(&request(WRITE, 1, 4)).await.unwrap();
            until("the modest one is served", || stub.count() == before + 1).await;
            let mut replies = [0; 64 * 16];
            let answer = async {
                loop {
                    stub.answer_all(Ok(DiskReply::Done));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = answer => {}
                read = reader.read_exact(&mut replies) => { read.unwrap(); }
            }
        };
        tokio::join!(send, check);
    });
}

#[test]
fn half_requests_do_not_wait_for_one_another_when_the_server_is_full() {
    let config = Config { bytes_max: 4 << 20, connection_share_bytes: 1 << 20, ..Config::default() };
    run(config, |server, address, stub| async move {
        let whole = request(WRITE, 1, 2 << 20);
        let (half, rest) = whole.split_at(whole.len() - 1000);
        let mut sockets = Vec::new();
        for _ in 0..8 {
            let mut socket = connected(address).await;
            socket.write_all(half).await.unwrap();
            sockets.push(socket);
        }
        until("it is over its limit", || server.counters().bytes_held > 4 << 20).await;
        for socket in &mut sockets {
            socket.write_all(rest).await.unwrap();
        }
        until("all are served", || stub.count() == 8).await;
    });
}
