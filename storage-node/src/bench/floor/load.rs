//! The floor's client, and the device by itself for comparison.
//!
//! The client always runs on epoll, as most programs that use a disk over a socket do: it is the same for all
//! that is compared, and its processor time is counted apart. It sends each request by itself, as libnbd (hence
//! fio), QEMU and the kernel's nbd do: the front meets them in as small batches as Trefoil's front end does.

use super::engine::{Engine, Event};
use super::{Counters, DEPTH_MAX, HEADER, Header, NODES, kind, nonsense};
use crate::bench::histogram::Histogram;
use bytes::Bytes;
use std::io;
use std::time::{Duration, Instant};
use trefoil_core::BLOCK_SIZE;
use zerocopy::{FromBytes, IntoBytes};

/// Of the time: what is done first and not counted.
const WARM_UP_PART: u32 = 5;
/// How often it is looked whether the run is to stop, when nothing comes.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Or reads.
    pub write: bool,
    /// Bytes of each; whole blocks, at most [`super::PAYLOAD_MAX`].
    pub bytes: u32,
    /// Under way at once; at most [`DEPTH_MAX`].
    pub depth: u32,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The time of each.
    pub latency: Histogram,
    /// How long it took in all.
    pub elapsed: Duration,
    /// What the client has used; for the device by itself, the only process.
    pub client: Counters,
    /// What the front has used.
    pub front: Counters,
    /// What the nodes have used together.
    pub nodes: Counters,
}

impl Measured {
    /// The same again, at another time.
    pub fn merge(&mut self, other: &Measured) {
        self.latency.merge(&other.latency);
        self.elapsed += other.elapsed;
        self.client = self.client.and(&other.client);
        self.front = self.front.and(&other.front);
        self.nodes = self.nodes.and(&other.nodes);
    }
}

/// Where a device is read and written: reads anywhere, each run the same places; writes one after another and
/// round, as a node's do.
struct Offsets {
    write: bool,
    at: u64,
    state: u64,
    places: u64,
    bytes: u64,
}

impl Offsets {
    fn new(pattern: Pattern, size: u64) -> Offsets {
        let bytes = u64::from(pattern.bytes);
        let places = (size / bytes).max(1);
        Offsets { write: pattern.write, at: 0, state: 0x9e37_79b9_7f4a_7c15, places, bytes }
    }

    fn next(&mut self) -> u64 {
        if self.write {
            self.at += 1;
            return (self.at - 1) % self.places * self.bytes;
        }
        self.random() % self.places * self.bytes
    }

    /// xorshift64*; the remainder's bias is one in 2^40.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
}

/// Bytes that no device makes less of.
fn noise(len: usize) -> Vec<u8> {
    let mut offsets = Offsets { write: false, at: 0, state: 1, places: 256, bytes: 1 };
    std::iter::repeat_with(|| offsets.next() as u8).take(len).collect()
}

/// A client of a front: all connections of an engine, one for each disk that it plays.
pub struct Client {
    engine: Engine,
    connections: usize,
    size: u64,
    /// Running number of requests: no two under way have the same id, also not with late answers' ones.
    number: u32,
    /// Asked for between two turns, at least every [`LOOK_UP`]; true ends the run.
    stop: Box<dyn Fn() -> bool>,
}

impl Client {
    /// `engine` has so many connections, of which each request takes the next one; the nodes have `size` bytes each.
    pub fn new(mut engine: Engine, connections: usize, size: u64, stop: Box<dyn Fn() -> bool>) -> Client {
        engine.wait_at_most(LOOK_UP);
        Client { engine, connections, size, number: 0, stop }
    }

    /// Runs a pattern for a warm-up and then for so long.
    ///
    /// # Errors
    ///
    /// The front has gone or answers nonsense; `Interrupted` if it was to stop.
    pub fn run(&mut self, pattern: Pattern, time: Duration) -> io::Result<Measured> {
        let payload = Bytes::from(noise(pattern.bytes as usize));
        self.load(pattern, &payload, time / WARM_UP_PART, &mut Histogram::default())?;
        let before = self.counters()?;
        let begun = Instant::now();
        let mut latency = Histogram::default();
        self.load(pattern, &payload, time, &mut latency)?;
        let elapsed = begun.elapsed();
        let after = self.counters()?;
        let used = |n: usize| after[n].since(&before[n]);
        let nodes = (2..2 + NODES).map(used).reduce(|all, one| all.and(&one)).unwrap_or_default();
        Ok(Measured { latency, elapsed, client: used(0), front: used(1), nodes })
    }

    fn load(
        &mut self,
        pattern: Pattern,
        payload: &Bytes,
        time: Duration,
        latency: &mut Histogram,
    ) -> io::Result<()> {
        let mut offsets = Offsets::new(pattern, self.size);
        let mut slots = vec![None; pattern.depth as usize];
        let mut events = Vec::new();
        let begun = Instant::now();
        for (slot, asked) in slots.iter_mut().enumerate() {
            *asked = Some((self.ask(pattern, payload, slot, &mut offsets)?, begun));
        }
        let mut under_way = slots.len();
        while under_way > 0 {
            self.turn(under_way, &mut events)?;
            let now = Instant::now();
            let more = now.duration_since(begun) < time;
            for event in events.drain(..) {
                let frame = answer(event)?;
                let slot = frame.header.id as usize % DEPTH_MAX;
                let asked =
                    slots.get_mut(slot).and_then(|asked| asked.take_if(|(id, _)| *id == frame.header.id));
                let (_, since) = asked.ok_or_else(|| nonsense("an answer without a request"))?;
                if frame.payload().len() != if pattern.write { 0 } else { pattern.bytes as usize } {
                    return Err(nonsense("an answer of another size"));
                }
                latency.add(now.duration_since(since));
                under_way -= 1;
                if more {
                    slots[slot] = Some((self.ask(pattern, payload, slot, &mut offsets)?, now));
                    under_way += 1;
                }
            }
        }
        Ok(())
    }

    fn ask(
        &mut self,
        pattern: Pattern,
        payload: &Bytes,
        slot: usize,
        offsets: &mut Offsets,
    ) -> io::Result<u32> {
        self.number = self.number.wrapping_add(1);
        let id = self.number.wrapping_mul(DEPTH_MAX as u32) | slot as u32;
        let mut header = Header { id, ..Header::default() };
        if pattern.write {
            (header.kind, header.len) = (kind::WRITE, pattern.bytes);
        } else {
            (header.kind, header.want, header.offset) = (kind::READ, pattern.bytes, offsets.next());
        }
        let to = self.number as usize % self.connections.max(1);
        self.engine.send(to, Bytes::copy_from_slice(header.as_bytes()));
        if pattern.write {
            self.engine.send(to, payload.clone());
        }
        self.engine.send_now(to)?;
        Ok(id)
    }

    fn turn(&mut self, under_way: usize, events: &mut Vec<Event>) -> io::Result<()> {
        if (self.stop)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.engine.turn(under_way, events)
    }

    /// Of this process, the front and the nodes. Nothing is under way, and the front sees to it that no node
    /// is at work on a third copy.
    fn counters(&mut self) -> io::Result<Vec<Counters>> {
        let header = Header { kind: kind::COUNTERS, ..Header::default() };
        self.engine.send(0, Bytes::copy_from_slice(header.as_bytes()));
        let mut events = Vec::new();
        while events.is_empty() {
            self.turn(1, &mut events)?;
        }
        let mut all = vec![Counters::now(*self.engine.counters())];
        for event in events {
            let payload = answer(event)?.payload();
            let each = payload.chunks(size_of::<Counters>()).map(Counters::read_from_bytes);
            all.extend(
                each.collect::<Result<Vec<_>, _>>().map_err(|_| nonsense("counters of another size"))?,
            );
        }
        if all.len() != 2 + NODES {
            return Err(nonsense("counters of another number of processes"));
        }
        Ok(all)
    }
}

fn answer(event: Event) -> io::Result<super::conn::Frame> {
    match event {
        Event::Frame(_, frame) if frame.bytes.len() >= HEADER => Ok(frame),
        Event::Closed(..) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the front has gone")),
        _ => Err(nonsense("the front has sent less than a header")),
    }
}

/// Reads or durable writes of the engine's device alone, `size` bytes of it, in the places of a node's.
///
/// # Errors
///
/// Of the device; `Interrupted` if it was to stop.
pub fn raw(
    engine: &mut Engine,
    pattern: Pattern,
    size: u64,
    time: Duration,
    stop: &dyn Fn() -> bool,
) -> io::Result<Measured> {
    engine.wait_at_most(LOOK_UP);
    let mut payload = engine.buffer(pattern.bytes as usize)?;
    payload.copy_from_slice(&noise(pattern.bytes as usize));
    let payload = payload.freeze();
    debug_assert_eq!(payload.len() % BLOCK_SIZE, 0);
    let mut offsets = Offsets::new(pattern, size);
    let mut measured = Measured::default();
    for (time, counts) in [(time / WARM_UP_PART, false), (time, true)] {
        let before = Counters::now(*engine.counters());
        let begun = Instant::now();
        let mut since = vec![begun; pattern.depth as usize];
        for slot in 0..pattern.depth {
            start(engine, pattern, slot, &payload, offsets.next())?;
        }
        let (mut under_way, mut events) = (pattern.depth, Vec::new());
        while under_way > 0 {
            if stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            engine.turn(under_way as usize, &mut events)?;
            let now = Instant::now();
            for event in events.drain(..) {
                let (Event::Read(slot, _) | Event::Written(slot)) = event else {
                    return Err(nonsense("there are no connections"));
                };
                if counts {
                    measured.latency.add(now.duration_since(since[slot as usize]));
                }
                if now.duration_since(begun) < time {
                    since[slot as usize] = now;
                    start(engine, pattern, slot, &payload, offsets.next())?;
                } else {
                    under_way -= 1;
                }
            }
        }
        measured.elapsed = begun.elapsed();
        measured.client = Counters::now(*engine.counters()).since(&before);
    }
    Ok(measured)
}

fn start(engine: &mut Engine, pattern: Pattern, slot: u32, payload: &Bytes, offset: u64) -> io::Result<()> {
    if pattern.write {
        engine.write(slot, offset, vec![payload.clone()])
    } else {
        let buf = engine.buffer(pattern.bytes as usize)?;
        engine.read(slot, offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EventLoop, part};
    use super::*;
    use crate::device::file::RawDevice;
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn pair() -> (UnixStream, UnixStream) {
        let (a, b) = UnixStream::pair().expect("sockets");
        a.set_nonblocking(true).expect("non-blocking");
        b.set_nonblocking(true).expect("non-blocking");
        (a, b)
    }

    /// On threads instead of processes.
    #[test]
    fn every_event_loop_carries_small_and_large_requests_to_their_end() {
        const SIZE: u64 = 16 << 20;
        const CLIENTS: usize = 5;
        for how in EventLoop::ALL {
            if let Err(error) = Engine::new(how, None) {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{how}: {error}");
                continue;
            }
            let (clients, served): (Vec<_>, Vec<_>) = std::iter::repeat_with(pair).take(CLIENTS).unzip();
            let (mut to_nodes, mut threads) = (Vec::new(), Vec::new());
            for _ in 0..NODES {
                let (near, far) = pair();
                to_nodes.push(near);
                threads.push(thread::spawn(move || {
                    let file = tempfile::NamedTempFile::new().expect("file");
                    file.as_file().set_len(SIZE).expect("extended");
                    let device = RawDevice::open(file.path(), false).expect("opens");
                    let mut engine = Engine::new(how, Some(device))?;
                    engine.add(far.into())?;
                    part::node(engine, SIZE)
                }));
            }
            threads.push(thread::spawn(move || {
                let mut engine = Engine::new(how, None)?;
                for socket in served.into_iter().chain(to_nodes) {
                    engine.add(socket.into())?;
                }
                part::front(engine, CLIENTS)
            }));
            let mut engine = Engine::new(EventLoop::Epoll, None).expect("epoll");
            for client in clients {
                engine.add(client.into()).expect("added");
            }
            let mut client = Client::new(engine, CLIENTS, SIZE, Box::new(|| false));
            for (bytes, depth) in [(4096, 1), (4096, 32), (1 << 20, 8)] {
                for write in [true, false] {
                    let pattern = Pattern { write, bytes, depth };
                    let measured = client.run(pattern, Duration::from_millis(20)).expect("measured");
                    assert!(measured.latency.count() >= u64::from(depth), "{how}: {measured:?}");
                    assert!(
                        measured.nodes.device_ops > 0 && measured.front.syscalls > 0,
                        "{how}: {measured:?}"
                    );
                }
            }
            drop(client);
            for thread in threads {
                thread.join().expect("no panic").expect("ended with its client");
            }
        }
    }
}
