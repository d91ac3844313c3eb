//! Connections over loopback: what is sent comes, in order; what is wrong is told, and hurts nobody.

use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trefoil_core::limits::FRAME_MAX;
use trefoil_transport::*;

const CLUSTER: [u8; 16] = [7; 16];

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs");
    });
}

fn server_options() -> ServeOptions {
    let mut hello = Hello::new(Role::StorageNode, CLUSTER);
    (hello.id, hello.incarnation) = (3, 33);
    ServeOptions::new(Policy { hello, roles: &[Role::FrontEnd, Role::StorageNode], unknown_cluster: false })
}

/// A server that runs `handle` for each connection until the test's runtime ends.
async fn server<H, F>(options: ServeOptions, handle: H) -> SocketAddr
where
    H: Fn(Connected) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(serve(listener, options, handle));
    address
}

async fn echo(mut connected: Connected) {
    let mut frames = Vec::new();
    while connected.reader.read_batch(&mut frames).await.is_ok() {
        for frame in frames.drain(..) {
            let sent = connected.sender.push_slice(frame.kind, &frame.meta, Some(frame.payload));
            if sent.is_err() {
                return;
            }
        }
        connected.sender.flush();
    }
}

fn front_end() -> Hello {
    Hello::new(Role::FrontEnd, CLUSTER)
}

fn expect() -> Expect {
    Expect { role: Role::StorageNode, identity: Some((3, 33)) }
}

async fn client(address: SocketAddr) -> Connected {
    connect(address, front_end(), &expect(), Options::default()).await.unwrap()
}

#[test]
fn a_stream_of_frames_comes_back_whole_and_in_order() {
    run(async {
        let address = server(server_options(), echo).await;
        let Connected { mut reader, sender, hello } = client(address).await;
        assert_eq!((hello.id, hello.incarnation), (3, 33));
        // Sizes that make partial writes and reads certain (the sockets hold less than this), with and
        // without payload, so that runs and pieces alternate.
        let mut expected = Vec::new();
        for n in 0..6000u32 {
            let payload = match n % 5 {
                0 => Bytes::from(vec![n as u8; 4096]),
                1 if n % 50 == 1 => Bytes::from(vec![n as u8; 300_000]),
                _ => Bytes::new(),
            };
            expected.push((16 + (n % 9) as u16, n.to_le_bytes().to_vec(), payload));
        }
        let to_send = expected.clone();
        tokio::task::spawn_local(async move {
            for (n, (kind, meta, payload)) in to_send.into_iter().enumerate() {
                let cut = payload.len() / 3;
                let pieces = [payload.slice(..cut), payload.slice(cut..)];
                sender.push_parts(kind, |m| m.extend_from_slice(&meta), pieces).unwrap();
                if n % 7 == 0 {
                    sender.flush();
                }
                if sender.queued_bytes() > 8 << 20 {
                    sender.drained().await;
                    assert_eq!(sender.queued_bytes(), 0);
                    assert_eq!(sender.queued_frames(), 0);
                }
            }
            sender.drained().await;
        });
        let (mut got, mut frames, mut batches) = (0, Vec::new(), 0);
        while got < expected.len() {
            reader.read_batch(&mut frames).await.unwrap();
            batches += 1;
            for frame in frames.drain(..) {
                let (kind, meta, payload) = &expected[got];
                assert_eq!((frame.kind, &frame.meta[..]), (*kind, &meta[..]));
                assert!(frame.payload == payload, "payload of frame {got}");
                got += 1;
            }
        }
        assert!(batches < expected.len() / 2, "no batching: {batches} reads");
    });
}

#[test]
fn frames_that_dribble_in_are_put_together() {
    run(async {
        let address = server(server_options(), echo).await;
        // A peer by hand, one byte at a time, hello included.
        let mut hello = Vec::new();
        hello.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        hello.extend_from_slice(&CLUSTER);
        hello.push(3);
        hello.extend_from_slice(&[0; 16]);
        let mut bytes = trefoil_core::wire::frame::encode(1, &hello, 0).unwrap().to_vec();
        let frame = trefoil_core::wire::frame::encode(20, b"slow", 3).unwrap();
        bytes.extend_from_slice(&frame);
        bytes.extend_from_slice(b"abc");
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        for byte in bytes {
            socket.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = vec![0; 24 + 37 + frame.len() + 3];
        socket.read_exact(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"slowabc"));
    });
}

#[test]
fn who_asks_for_what_has_come_never_waits_for_more() {
    run(async {
        let senders = Rc::new(RefCell::new(Vec::new()));
        let kept = senders.clone();
        let address = server(server_options(), move |mut connected: Connected| {
            kept.borrow_mut().push(connected.sender.clone());
            async move { while connected.reader.read_batch(&mut Vec::new()).await.is_ok() {} }
        })
        .await;
        let mut client = client(address).await;
        let mut frames = Vec::new();
        client.reader.try_batch(&mut frames).unwrap();
        assert!(frames.is_empty());
        let sender = loop {
            if let Some(sender) = senders.borrow().first().cloned() {
                break sender;
            }
            tokio::task::yield_now().await;
        };
        // A large frame: half of its head, then half of its payload, then the rest with the next frame.
        let payload = Bytes::from((0..1 << 20).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        let head = trefoil_core::wire::frame::encode(20, &[9; 2048], payload.len()).unwrap();
        let halves = [head.slice(..1000), head.slice(1000..), payload.slice(..1 << 19)];
        for half in halves {
            sender.push_raw_for_tests(half);
            sender.drained().await;
            client.reader.ready().await.unwrap();
            client.reader.try_batch(&mut frames).unwrap();
            assert!(frames.is_empty());
        }
        sender.push_raw_for_tests(payload.slice(1 << 19..));
        sender.push_slice(21, b"next", None).unwrap();
        sender.flush();
        while frames.len() < 2 {
            client.reader.ready().await.unwrap();
            client.reader.try_batch(&mut frames).unwrap();
        }
        assert!(frames[0].payload == payload && frames[0].meta.len() == 2048);
        assert_eq!((frames[1].kind, &frames[1].meta[..]), (21, &b"next"[..]));
        // The other side goes: said once it is asked for, and again.
        sender.close("enough");
        client.reader.ready().await.unwrap();
        assert_eq!(client.reader.try_batch(&mut frames), Err(CloseReason::Peer));
        client.reader.ready().await.unwrap();
        assert_eq!(client.reader.try_batch(&mut frames), Err(CloseReason::Peer));
    });
}

#[test]
fn a_receive_buffer_whose_frames_are_gone_is_used_from_its_beginning() {
    run(async {
        let address = server(server_options(), echo).await;
        let Connected { mut reader, sender, .. } = client(address).await;
        let mut frames = Vec::new();
        let mut places = std::collections::BTreeSet::new();
        for round in 0..300u32 {
            sender.push_slice(20, &round.to_le_bytes(), Some(Bytes::from(vec![round as u8; 8192]))).unwrap();
            sender.flush();
            reader.read_batch(&mut frames).await.unwrap();
            for frame in frames.drain(..) {
                assert_eq!(&frame.meta[..], round.to_le_bytes());
                assert!(frame.payload.iter().all(|byte| *byte == round as u8));
                places.insert(frame.meta.as_ptr() as usize);
            }
        }
        // One beginning; another one for each frame of which a part had come before.
        assert!(places.len() < 30, "{} places", places.len());
        // A frame that is kept is not overwritten.
        sender.push_slice(20, b"kept", Some(Bytes::from_static(&[7; 8192]))).unwrap();
        sender.flush();
        reader.read_batch(&mut frames).await.unwrap();
        let kept = frames.remove(0);
        for _ in 0..100 {
            sender.push_slice(20, b"more", Some(Bytes::from_static(&[8; 8192]))).unwrap();
            sender.flush();
            reader.read_batch(&mut frames).await.unwrap();
            frames.clear();
        }
        assert!(&kept.meta[..] == b"kept" && kept.payload[..] == [7; 8192]);
    });
}

#[test]
fn garbage_behind_good_frames_ends_the_connection_after_them() {
    run(async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = seen.clone();
        let address = server(server_options(), move |mut connected: Connected| {
            let log = log.clone();
            async move {
                let mut frames = Vec::new();
                loop {
                    match connected.reader.read_batch(&mut frames).await {
                        Ok(()) => log.borrow_mut().extend(frames.drain(..).map(|f| Ok(f.kind))),
                        Err(error) => return log.borrow_mut().push(Err(error)),
                    }
                }
            }
        })
        .await;
        let good = client(address).await;
        let bad = client(address).await;
        bad.sender.push_slice(20, b"good", None).unwrap();
        // A frame whose payload is announced and never sent would hang; one with bytes that are no
        // frame must not.
        bad.sender.push_slice(21, b"", Some(Bytes::from_static(b"x"))).unwrap();
        bad.sender.drained().await;
        let mut reader = bad.reader;
        // By the back door: half a header of nonsense.
        drop(good);
        raw(&bad.sender, b"garbage garbage garbage");
        let error = reader.read_batch(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error, CloseReason::Peer);
        let seen = seen.borrow();
        assert!(seen.contains(&Ok(20)) && seen.contains(&Ok(21)));
        assert!(
            seen.iter().any(|s| matches!(
                s,
                Err(CloseReason::Frame(trefoil_core::wire::frame::FrameError::Magic { .. }))
            )),
            "{seen:?}"
        );
    });
}

/// Sends bytes that are no frame: as the payload of a frame whose header the peer has had before.
fn raw(sender: &Sender, bytes: &'static [u8]) {
    sender.push_raw_for_tests(Bytes::from_static(bytes));
    sender.flush();
}

#[test]
fn a_frame_over_the_limit_is_not_sent_and_not_taken() {
    run(async {
        let address = server(server_options(), echo).await;
        let Connected { mut reader, sender, .. } = client(address).await;
        let zeros = Bytes::from(vec![0; FRAME_MAX]);
        let error = sender.push_slice(20, b"x", Some(zeros.clone())).unwrap_err();
        assert!(matches!(error, SendError::TooLong(_)));
        // The connection goes on, and the greatest frame passes.
        sender.push_slice(20, b"", Some(zeros)).unwrap();
        sender.flush();
        let mut frames = Vec::new();
        reader.read_batch(&mut frames).await.unwrap();
        assert_eq!(frames[0].payload.len(), FRAME_MAX);
        // A header that announces more ends it.
        raw(&sender, b"TrF1\x14\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0");
        let error = reader.read_batch(&mut frames).await.unwrap_err();
        assert_eq!(error, CloseReason::Peer);
    });
}

#[test]
fn a_slow_peer_is_cut_off_at_the_limit_and_nobody_waits() {
    run(async {
        let options = server_options();
        let address = server(options, |connected: Connected| async move {
            // Never reads.
            tokio::time::sleep(Duration::from_secs(20)).await;
            drop(connected);
        })
        .await;
        let limits = Options { queue_bytes_max: 1 << 20, queue_frames_max: 1000, ..Options::default() };
        let mut slow = connect(address, front_end(), &expect(), limits).await.unwrap();
        let block = Bytes::from(vec![1; 64 << 10]);
        let error = loop {
            match slow.sender.push_slice(20, b"m", Some(block.clone())) {
                Ok(()) => slow.sender.flush(),
                Err(error) => break error,
            }
            assert!(slow.sender.queued_bytes() <= 1 << 20);
        };
        assert!(matches!(error, SendError::Laggard { .. }), "{error}");
        assert_eq!(slow.sender.queued_bytes(), 0, "memory is given back");
        let closed = slow.reader.read_batch(&mut Vec::new()).await.unwrap_err();
        assert!(matches!(closed, CloseReason::Laggard { .. }));
        let again = slow.sender.push_slice(20, b"m", None).unwrap_err();
        assert!(matches!(again, SendError::Closed(_)));

        // The limit on frames counts small ones, too.
        let slow = connect(address, front_end(), &expect(), limits).await.unwrap();
        for _ in 0..1000 {
            slow.sender.push_slice(20, b"m", None).unwrap();
        }
        assert_eq!(slow.sender.queued_frames(), 1000);
        slow.sender.push_slice(20, b"m", None).unwrap_err();
    });
}

#[test]
fn foreign_clients_are_told_in_words_and_others_are_not_disturbed() {
    run(async {
        let address = server(server_options(), echo).await;
        let mut http = TcpStream::connect(address).await.unwrap();
        http.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        http.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("Trefoil storage node"), "{answer:?}");
        assert!(answer.ends_with("\r\n"));

        // An NBD client waits for the server to speak; so does a port scanner.
        let mut silent = TcpStream::connect(address).await.unwrap();
        let started = std::time::Instant::now();
        let mut answer = String::new();
        silent.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("Trefoil"), "{answer:?}");
        assert!(started.elapsed() < HANDSHAKE_TIMEOUT + Duration::from_secs(2));

        // An endless hello.
        let mut long = TcpStream::connect(address).await.unwrap();
        let header = trefoil_core::wire::frame::encode(1, &[0; 5000], 0).unwrap();
        long.write_all(&header).await.unwrap();
        let mut answer = String::new();
        long.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("Trefoil"), "{answer:?}");

        let mut good = client(address).await;
        good.sender.push_slice(20, b"hi", None).unwrap();
        good.sender.flush();
        let mut frames = Vec::new();
        good.reader.read_batch(&mut frames).await.unwrap();
        assert_eq!(&frames[0].meta[..], b"hi");
    });
}

#[test]
fn handshakes_that_do_not_fit_fail_on_both_sides_with_a_reason() {
    run(async {
        let address = server(server_options(), echo).await;
        let refusal = |hello: Hello, expect: Expect| async move {
            match connect(address, hello, &expect, Options::default()).await {
                Ok(_) => panic!("connected"),
                Err(error) => error.to_string(),
            }
        };
        let mut version = front_end();
        version.protocol_version = 99;
        let text = refusal(version, expect()).await;
        assert!(text.contains("refuses: protocol version 1 here, 99 there"), "{text}");
        let cluster = Hello::new(Role::FrontEnd, [8; 16]);
        let text = refusal(cluster, expect()).await;
        assert!(text.contains("refuses: another cluster: 0707"), "{text}");
        let unknown = Hello::new(Role::FrontEnd, [0; 16]);
        let text = refusal(unknown, expect()).await;
        assert!(text.contains("refuses: another cluster"), "{text}");
        let client = Hello::new(Role::Client, CLUSTER);
        let text = refusal(client, expect()).await;
        assert!(text.contains("a client has no business with a storage node"), "{text}");

        let monitor = Expect { role: Role::Monitor, identity: None };
        let text = refusal(front_end(), monitor).await;
        assert!(text.contains("a storage node is there, a monitor was wanted"), "{text}");
        let other = Expect { role: Role::StorageNode, identity: Some((3, 34)) };
        let text = refusal(front_end(), other).await;
        assert!(text.contains("the map may be old"), "{text}");

        // Something else listens there.
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let foreign = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"SSH-2.0-x\r\n").await.unwrap();
            let _ = socket.read(&mut [0; 100]).await;
        });
        let result = connect(foreign, front_end(), &expect(), Options::default()).await;
        assert!(matches!(result, Err(ConnectError::Foreign { .. })));
    });
}

#[test]
fn a_connection_too_many_is_told_so_and_a_place_that_is_free_again_is_given() {
    run(async {
        let mut options = server_options();
        options.connections_max = 2;
        let address = server(options, echo).await;
        let first = client(address).await;
        let _second = client(address).await;
        let Err(third) = connect(address, front_end(), &expect(), Options::default()).await else {
            panic!("a third connection");
        };
        assert!(third.to_string().contains("all 2 connections are in use"), "{third}");
        drop(first);
        let tries = Cell::new(0);
        while connect(address, front_end(), &expect(), Options::default()).await.is_err() {
            tries.set(tries.get() + 1);
            assert!(tries.get() < 100);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

/// A name that no other test, and no other run of this one, has.
fn local_name(id: u64) -> LocalName {
    LocalName::new(CLUSTER, Role::StorageNode, id, u64::from(std::process::id()))
}

fn wants(id: u64) -> Expect {
    Expect { role: Role::StorageNode, identity: Some((id, u64::from(std::process::id()))) }
}

fn local_options(id: u64) -> ServeOptions {
    let mut options = server_options();
    (options.policy.hello.id, options.policy.hello.incarnation) = (id, u64::from(std::process::id()));
    options.local = Some(local_name(id));
    options
}

#[test]
fn daemons_of_one_host_meet_on_a_unix_socket_and_large_payloads_come_aligned() {
    run(async {
        let address = server(local_options(901), echo).await;
        // The listener is a task that has not run yet.
        tokio::task::yield_now().await;
        let connected = connect(address, front_end(), &wants(901), Options::default()).await.unwrap();
        let Connected { mut reader, sender, .. } = connected;
        assert_eq!(sender.peer(), Peer::Local(Some(std::process::id() as i32)));
        let sizes = [1 << 20, 40_000, 4096, 1 << 20, 65_536, 0, 32_768, 32_767, 3 << 19];
        for round in 0..20usize {
            let payload = |n: usize| Bytes::from(vec![(round * 31 + n) as u8; sizes[n]]);
            for n in 0..sizes.len() {
                sender.push_slice(16 + n as u16, &[n as u8; 100], Some(payload(n))).unwrap();
            }
            sender.flush();
            let mut frames = Vec::new();
            while frames.len() < sizes.len() {
                reader.read_batch(&mut frames).await.unwrap();
            }
            for (n, frame) in frames.iter().enumerate() {
                assert_eq!((frame.kind, frame.meta.len()), (16 + n as u16, 100));
                assert!(frame.payload == payload(n), "frame {n} of round {round}");
            }
            let aligned = |frame: &Frame| (frame.payload.as_ptr() as usize).is_multiple_of(4096);
            assert!(aligned(&frames[0]) && aligned(&frames[8]), "larger than any read");
        }
        // Who wants TCP gets it.
        let options = Options { local: false, ..Options::default() };
        let connected = connect(address, front_end(), &wants(901), options).await.unwrap();
        assert!(matches!(connected.sender.peer(), Peer::Tcp(_)));
    });
}

#[test]
fn where_nobody_answers_on_the_unix_socket_tcp_is_used() {
    run(async {
        use std::os::linux::net::SocketAddrExt;
        // Somebody has the name, and says nothing: a process that was stopped, say.
        let pid = u64::from(std::process::id());
        let cluster = u128::from_be_bytes(CLUSTER);
        let name = format!("trefoil/{cluster:032x}/{}/902/{pid:016x}", Role::StorageNode as u8);
        let taken = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let _silent = std::os::unix::net::UnixListener::bind_addr(&taken).unwrap();
        // The server cannot have the name, and serves TCP all the same.
        let address = server(local_options(902), echo).await;
        let begun = std::time::Instant::now();
        let connected = connect(address, front_end(), &wants(902), Options::default()).await.unwrap();
        assert!(matches!(connected.sender.peer(), Peer::Tcp(_)));
        assert!(begun.elapsed() >= LOCAL_TIMEOUT);
        // Nobody has this one: no time is lost.
        let mut options = local_options(903);
        options.local = None;
        let address = server(options, echo).await;
        let connected = connect(address, front_end(), &wants(903), Options::default()).await.unwrap();
        assert!(matches!(connected.sender.peer(), Peer::Tcp(_)));
    });
}
