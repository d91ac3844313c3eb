//! The front and the node of the floor, on an [`Engine`].
//!
//! Each serves until its client has gone, and ends with an error when anything else happens: a measurement in
//! which something failed is none.

use super::conn::Frame;
use super::engine::{Engine, Event};
use super::{Counters, DEPTH_MAX, HEADER, Header, MAJORITY, NODES, kind, nonsense};
use crate::device::buffer::Buf;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::Instant;
use trefoil_core::BLOCK_SIZE;
use zerocopy::IntoBytes;

/// Bytes of one device write: the largest that can come of [`super::PAYLOAD_MAX`] and a few more.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Payloads of one device write (the kernel takes 1024).
const BATCH_MAX: usize = 512;
/// Third answers that may be missing before clients have to wait: what bounds the front's queue to a slow node.
const OWED_MAX: usize = 64;

/// Serves the only connection of `engine` with its device, of which `bytes` are used.
///
/// # Errors
///
/// Any.
pub fn node(mut engine: Engine, bytes: u64) -> io::Result<()> {
    let mut node = Node {
        bytes,
        at: 0,
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        writing: Vec::new(),
        reading: std::iter::repeat_with(|| None).take(DEPTH_MAX).collect(),
        requests: 0,
    };
    let mut events = Vec::new();
    loop {
        engine.turn(node.requests, &mut events)?;
        let now = Instant::now();
        for event in events.drain(..) {
            match event {
                Event::Frame(_, frame) => node.frame(&mut engine, frame, now)?,
                Event::Read(id, buf) => node.read(&mut engine, id, buf, now)?,
                Event::Written(_) => node.written(&mut engine, now),
                Event::Closed(_, why) => return why.map_or(Ok(()), Err),
            }
        }
        node.write(&mut engine)?;
    }
}

struct Node {
    bytes: u64,
    /// Where the next write goes.
    at: u64,
    waiting: VecDeque<(Frame, Instant)>,
    waiting_bytes: usize,
    /// In the write under way: the headers that are sent back.
    writing: Vec<(Bytes, Instant)>,
    reading: Vec<Option<(Frame, Instant)>>,
    requests: usize,
}

impl Node {
    fn frame(&mut self, engine: &mut Engine, frame: Frame, now: Instant) -> io::Result<()> {
        let header = frame.header;
        match header.kind {
            kind::WRITE => {
                self.waiting_bytes += frame.payload().len();
                self.waiting.push_back((frame, now));
            }
            kind::READ => {
                let want = u64::from(header.want);
                let aligned =
                    header.offset.is_multiple_of(BLOCK_SIZE as u64) && want.is_multiple_of(BLOCK_SIZE as u64);
                if !aligned || want == 0 || header.offset.checked_add(want).is_none_or(|end| end > self.bytes)
                {
                    return Err(nonsense("a read beyond the end"));
                }
                let buf = engine.buffer(want as usize)?;
                engine.read(header.id, header.offset, buf)?;
                self.reading[header.id as usize % DEPTH_MAX] = Some((frame, now));
            }
            kind::COUNTERS => {
                let counters = Counters::now(*engine.counters());
                let header = Header { counters, ..header };
                engine.send(0, Bytes::copy_from_slice(header.as_bytes()));
                return Ok(());
            }
            _ => return Err(nonsense("an unknown kind of request")),
        }
        self.requests += 1;
        Ok(())
    }

    /// Everything that has come, in one write, if none is under way.
    fn write(&mut self, engine: &mut Engine) -> io::Result<()> {
        if self.waiting.is_empty() || !self.writing.is_empty() {
            return Ok(());
        }
        let small = self.waiting.iter().all(|(frame, _)| frame.large.is_none());
        let mut copy =
            if small { Some(engine.buffer(self.waiting_bytes.min(BATCH_BYTES_MAX))?) } else { None };
        let (mut bytes, mut pieces) = (0, Vec::new());
        while let Some((frame, since)) = self.waiting.pop_front() {
            let payload = frame.payload();
            if payload.len() % BLOCK_SIZE != 0 || payload.is_empty() {
                return Err(nonsense("a write of no whole blocks"));
            }
            if !self.writing.is_empty()
                && (bytes + payload.len() > BATCH_BYTES_MAX || self.writing.len() == BATCH_MAX)
            {
                self.waiting.push_front((frame, since));
                break;
            }
            match &mut copy {
                // Next to its header it is not aligned.
                Some(copy) => copy[bytes..bytes + payload.len()].copy_from_slice(&payload),
                None => pieces.push(aligned(engine, payload.clone())?),
            }
            bytes += payload.len();
            self.writing.push((frame.bytes.slice(..HEADER), since));
        }
        self.waiting_bytes -= bytes;
        if let Some(mut copy) = copy {
            copy.truncate(bytes);
            pieces.push(copy.freeze());
        }
        if self.at + bytes as u64 > self.bytes {
            self.at = 0;
        }
        engine.write(0, self.at, pieces)?;
        self.at += bytes as u64;
        Ok(())
    }

    fn written(&mut self, engine: &mut Engine, now: Instant) {
        self.requests -= self.writing.len();
        for (header, since) in self.writing.drain(..) {
            let header = Header::of(&header).unwrap_or_default();
            // A write's comes back without its payload.
            engine.send(0, answer(Header { len: 0, ..header }, now, since));
        }
    }

    fn read(&mut self, engine: &mut Engine, id: u32, buf: Buf, now: Instant) -> io::Result<()> {
        let request = self.reading[id as usize % DEPTH_MAX].take();
        let (frame, since) = request.ok_or_else(|| nonsense("an answer without a request"))?;
        self.requests -= 1;
        let header = Header { len: buf.len() as u32, ..frame.header };
        engine.send(0, answer(header, now, since));
        engine.send(0, buf.freeze());
        Ok(())
    }
}

/// A small payload between large ones.
fn aligned(engine: &Engine, payload: Bytes) -> io::Result<Bytes> {
    if payload.as_ptr().addr().is_multiple_of(BLOCK_SIZE) {
        return Ok(payload);
    }
    let mut copy = engine.buffer(payload.len())?;
    copy.copy_from_slice(&payload);
    Ok(copy.freeze())
}

/// `header` with how long the node has had the request.
fn answer(mut header: Header, now: Instant, since: Instant) -> Bytes {
    header.counters.device_ns = nanos(now, since);
    Bytes::copy_from_slice(header.as_bytes())
}

fn nanos(now: Instant, since: Instant) -> u64 {
    now.saturating_duration_since(since).as_nanos() as u64
}

/// The first `clients` connections of `engine` are the clients', the next [`NODES`] the nodes'. It serves until one of
/// the clients has gone.
///
/// # Errors
///
/// Any.
pub fn front(mut engine: Engine, clients: usize) -> io::Result<()> {
    let mut front = Front {
        clients,
        slots: vec![Slot::default(); DEPTH_MAX],
        next: 0,
        requests: 0,
        owed: 0,
        held: VecDeque::new(),
        asked: None,
        counters: Vec::new(),
    };
    let mut events = Vec::new();
    loop {
        engine.turn(front.requests, &mut events)?;
        let now = Instant::now();
        for event in events.drain(..) {
            match event {
                Event::Frame(from, frame) if from < clients => {
                    front.request(&mut engine, from, frame, now)?
                }
                Event::Frame(_, frame) => front.answer(&mut engine, &frame, now)?,
                Event::Closed(from, why) if from < clients => return why.map_or(Ok(()), Err),
                Event::Closed(_, why) => {
                    let why = why.map_or_else(String::new, |why| format!(": {why}"));
                    return Err(io::Error::other(format!("a node has gone{why}")));
                }
                Event::Read(..) | Event::Written(_) => return Err(nonsense("a front has no device")),
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Slot {
    id: u32,
    /// The client whose request it is.
    from: usize,
    /// Answers that are missing until it counts; 0: nothing is under way here.
    missing: u8,
    since: Option<Instant>,
}

struct Front {
    clients: usize,
    slots: Vec<Slot>,
    /// The node that is read from next, counted from 0.
    next: usize,
    requests: usize,
    /// Answers to writes that counted already.
    owed: usize,
    /// Answers that wait until fewer are owed, and whose they are.
    held: VecDeque<(usize, Bytes)>,
    /// By the first client, for counters. It waits until nothing is owed: they are those of whole requests.
    asked: Option<Frame>,
    /// Of the nodes, while they are asked for.
    counters: Vec<Counters>,
}

impl Front {
    fn nodes(&self) -> Range<usize> {
        self.clients..self.clients + NODES
    }

    fn request(&mut self, engine: &mut Engine, from: usize, frame: Frame, now: Instant) -> io::Result<()> {
        let Header { kind, id, .. } = frame.header;
        let missing = match kind {
            kind::READ => {
                self.next = (self.next + 1) % NODES;
                engine.forward(self.clients + self.next, &frame);
                1
            }
            kind::WRITE => {
                for node in self.nodes() {
                    engine.forward(node, &frame);
                }
                MAJORITY
            }
            kind::COUNTERS => {
                self.asked = Some(frame);
                self.ask(engine);
                return Ok(());
            }
            _ => return Err(nonsense("an unknown kind of request")),
        };
        self.slots[id as usize % DEPTH_MAX] = Slot { id, from, missing, since: Some(now) };
        self.requests += 1;
        Ok(())
    }

    fn answer(&mut self, engine: &mut Engine, frame: &Frame, now: Instant) -> io::Result<()> {
        let Header { kind, id, counters, .. } = frame.header;
        if kind == kind::COUNTERS {
            return self.counted(engine, frame.header, counters);
        }
        let slot = &mut self.slots[id as usize % DEPTH_MAX];
        if slot.id != id || slot.missing == 0 {
            // The third. There may be a write to let go.
            self.owed = self.owed.checked_sub(1).ok_or_else(|| nonsense("an answer too many"))?;
            if let Some((to, held)) = self.held.pop_front() {
                engine.send(to, held);
            }
            self.ask(engine);
            return Ok(());
        }
        slot.missing -= 1;
        if slot.missing > 0 {
            return Ok(());
        }
        self.requests -= 1;
        let to = slot.from;
        if let Some(since) = slot.since {
            let sums = engine.counters();
            sums.nodes_ns += nanos(now, since);
            sums.device_ns += counters.device_ns;
            sums.decided += 1;
        }
        if kind == kind::WRITE {
            self.owed += NODES - usize::from(MAJORITY);
            if self.owed > OWED_MAX {
                self.held.push_back((to, frame.bytes.clone()));
                return Ok(());
            }
        }
        engine.forward(to, frame);
        Ok(())
    }

    /// Asks the nodes for their counters if that was asked for and nothing is owed.
    fn ask(&mut self, engine: &mut Engine) {
        if let Some(frame) = self.asked.take_if(|_| self.requests == 0 && self.owed == 0) {
            for node in self.nodes() {
                engine.forward(node, &frame);
            }
        }
    }

    fn counted(&mut self, engine: &mut Engine, header: Header, counters: Counters) -> io::Result<()> {
        self.counters.push(counters);
        if self.counters.len() < NODES {
            return Ok(());
        }
        let mut all = vec![Counters::now(*engine.counters())];
        all.append(&mut self.counters);
        let payload = all.as_bytes();
        let header = Header { len: payload.len() as u32, ..header };
        engine.send(0, Bytes::from([header.as_bytes(), payload].concat()));
        Ok(())
    }
}
