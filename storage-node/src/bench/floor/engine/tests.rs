//! The event loops, where a socket does not take everything and where nothing comes.

use super::super::{Header, kind};
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use zerocopy::IntoBytes;

/// `abc de f`, of which that comes back from the kernel; what is to be sent then, and whether it has ended.
fn left(result: io::Result<usize>) -> (Vec<u8>, bool) {
    let (near, _far) = UnixStream::pair().expect("sockets");
    let mut engine = Engine::new(EventLoop::Ring, None).expect("io_uring");
    let at = engine.add(near.into()).expect("added");
    let pieces = [&b"abc"[..], b"de", b"f"];
    engine.lines[at].sending.extend(pieces.map(Bytes::from_static));
    engine.send(at, Bytes::from_static(b"next"));
    let mut events = Vec::new();
    engine.sent(at, result, &mut events);
    assert!(engine.lines[at].sending.is_empty());
    let ended = matches!(events[..], [Event::Closed(0, Some(_))]);
    assert!(ended || events.is_empty());
    (engine.lines[at].conn.out.iter().flatten().copied().collect(), ended)
}

#[test]
fn what_was_not_sent_is_sent_before_anything_else() {
    for (sent, rest) in [(6, "next"), (5, "fnext"), (4, "efnext"), (2, "cdefnext"), (0, "abcdefnext")] {
        assert_eq!(left(Ok(sent)), (rest.as_bytes().to_vec(), false), "{sent}");
    }
    assert_eq!(left(Err(io::ErrorKind::WouldBlock.into())).0, b"abcdefnext");
    assert_eq!(left(Err(io::Error::from_raw_os_error(libc::EIO))), (Vec::new(), true));
}

/// A peer that reads late and answers when it has everything, over a socket that takes a part at a time: each
/// turn in which the ring counts on the send must end nevertheless.
#[test]
fn a_send_that_the_socket_does_not_take_at_once_hangs_nobody() {
    const BYTES: usize = 60 << 10;
    for how in EventLoop::ALL {
        let Ok(mut engine) = Engine::new(how, None) else {
            continue;
        };
        let (near, mut far) = UnixStream::pair().expect("sockets");
        nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::SndBuf, &4096).expect("set");
        near.set_nonblocking(true).expect("non-blocking");
        let at = engine.add(near.into()).expect("added");
        let answer = Header { kind: kind::READ, ..Header::default() };
        let peer = std::thread::spawn(move || {
            let mut bytes = vec![0; BYTES];
            // Longer than the kernel tries to send without a worker of its own.
            for part in bytes.chunks_mut(1000) {
                std::thread::sleep(Duration::from_millis(1));
                far.read_exact(part).expect("read");
            }
            far.write_all(answer.as_bytes()).expect("written");
            far
        });
        engine.send(at, Bytes::from(vec![7; BYTES]));
        let (mut events, begun) = (Vec::new(), Instant::now());
        while events.is_empty() {
            engine.turn(1, &mut events).expect("a turn");
        }
        assert!(matches!(events[..], [Event::Frame(0, _)]), "{how}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{how}");
        peer.join().expect("no panic");
    }
}

#[test]
fn a_turn_comes_back_with_nothing_if_it_is_to() {
    for how in EventLoop::ALL {
        let Ok(mut engine) = Engine::new(how, None) else {
            continue;
        };
        let (near, _far) = UnixStream::pair().expect("sockets");
        near.set_nonblocking(true).expect("non-blocking");
        engine.add(near.into()).expect("added");
        engine.wait_at_most(Duration::from_millis(5));
        let mut events = Vec::new();
        engine.turn(8, &mut events).expect("a turn");
        assert!(events.is_empty(), "{how}");
    }
}
