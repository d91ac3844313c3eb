//! A device that lies and fails, over any other: the simulated one or a real file. For tests.
//!
//! [`Faults`] is the handle by which a test says what goes wrong, before or while the store runs. Each
//! [`Rule`] meets operations of one kind in one range; the first that fits an operation decides. What a
//! lying device acknowledges without doing is acknowledged here as a device would, through
//! [`Device::completions`].
//!
//! It also keeps the model of durability of [`super::image`] for what it passes on, if asked to
//! ([`Faults::record`]): so a power cut can be simulated on a real device, at any point, by writing
//! [`super::image::Image::cut`] to a second one and opening that.

use super::buffer::{Buf, Pool};
use super::image::{Change, Content, Image, Observer, Power, Tear};
use super::wake::Waker;
use super::{Completion, Device, DeviceInfo, DeviceStats, Op, Prepare};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Which operations a [`Rule`] meets. `read_now` is a read, `write_now` a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards and zeroings.
    Prepare,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ends with this error number. A write has not landed.
    Error(i32),
    /// A write of which only the first blocks land, this many; ends with this error number.
    Partial(u32, i32),
    /// A write that is acknowledged and never lands.
    Lost,
    /// A write that lands at this offset instead, and is acknowledged.
    Misdirected(u64),
    /// A read that fills only this many bytes and says so: an error, by the contract of [`Completion`].
    Short(usize),
    /// A read that fills only this many bytes and says that it has filled all: the rest is whatever the
    /// buffer had.
    ShortSilently(usize),
    /// A read that gives the bytes of this offset instead, and says nothing.
    ReadElsewhere(u64),
}

/// What goes wrong, with which operations.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of this kind.
    pub kind: Kind,
    /// That touch any of these bytes.
    pub range: Range<u64>,
    /// Not the first ones, this many.
    pub skip: u32,
    /// Then this many.
    pub times: u32,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// Every operation of a kind, everywhere, always.
    pub fn every(kind: Kind, fault: Fault) -> Rule {
        Rule { kind, range: 0..u64::MAX, skip: 0, times: u32::MAX, fault }
    }
    /// The next operation of a kind after `skip` others.
    pub fn nth(kind: Kind, skip: u32, fault: Fault) -> Rule {
        Rule { kind, range: 0..u64::MAX, skip, times: 1, fault }
    }
    /// Those that touch these bytes only.
    pub fn at(mut self, range: Range<u64>) -> Rule {
        self.range = range;
        self
    }
}

/// A write as the store asked for it.
#[derive(Clone)]
pub struct Written {
    /// Bytes from the start of the device.
    pub offset: u64,
    /// One behind the other.
    pub bufs: Vec<Bytes>,
    /// See [`Op::Write`].
    pub gently: bool,
    /// What happened to it.
    pub fault: Option<Fault>,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    vanished: bool,
    submit_fails: Option<i32>,
    slow_polls: u32,
    rot: BTreeSet<u64>,
    power: Option<Power>,
    written: Option<Vec<Written>>,
    met: u64,
    under_way: usize,
}

impl Plan {
    fn meet(&mut self, kind: Kind, range: &Range<u64>) -> Option<Fault> {
        if self.vanished {
            return Some(Fault::Error(libc::ENXIO));
        }
        for rule in &mut self.rules {
            let touches = rule.range.start < range.end && range.start < rule.range.end;
            if rule.kind != kind || !touches || rule.times == 0 {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            self.met += 1;
            return Some(rule.fault);
        }
        None
    }
    /// Bits that have rotted are flipped in what is read.
    fn decay(&self, offset: u64, buf: &mut [u8]) {
        for at in self.rot.range(offset..offset + buf.len() as u64) {
            buf[(at - offset) as usize] ^= 0x10;
        }
    }
    /// What is written over is fresh again.
    fn refresh(&mut self, range: &Range<u64>) {
        if !self.rot.is_empty() {
            self.rot.retain(|at| !range.contains(at));
        }
    }
}

/// The handle to a [`Faulty`] device's faults; clones are the same. It outlives the device: a test gives
/// it to the next device over the same medium.
#[derive(Clone, Default)]
pub struct Faults(Rc<RefCell<Plan>>);

impl Faults {
    /// No faults.
    pub fn new() -> Faults {
        Faults::default()
    }
    /// One more rule, behind the others.
    pub fn add(&self, rule: Rule) {
        let mut plan = self.0.borrow_mut();
        if let (Fault::Misdirected(_) | Fault::ReadElsewhere(_), Some(power)) = (rule.fault, &mut plan.power)
        {
            power.watch = false;
        }
        plan.rules.push(rule);
    }
    /// The device is well again, but for what has landed wrong or rotted.
    pub fn clear(&self) {
        let mut plan = self.0.borrow_mut();
        plan.rules.clear();
        (plan.vanished, plan.submit_fails, plan.slow_polls) = (false, None, 0);
    }
    /// Operations that a rule has met.
    pub fn met(&self) -> u64 {
        self.0.borrow().met
    }
    /// The device is gone: from now on every operation ends in ENXIO, also those under way.
    pub fn vanish(&self) {
        self.0.borrow_mut().vanished = true;
    }
    /// From now on [`Device::submit`] ends with this error number.
    pub fn fail_submit(&self, errno: i32) {
        self.0.borrow_mut().submit_fails = Some(errno);
    }
    /// From now on an operation's end is given out this many polls late.
    pub fn slow(&self, polls: u32) {
        self.0.borrow_mut().slow_polls = polls;
    }
    /// A bit of the byte at `offset` has flipped, and stays so until it is written again.
    pub fn rot(&self, offset: u64) {
        self.0.borrow_mut().rot.insert(offset);
    }
    /// Keeps the model of durability from now on, for a device that holds `content`.
    pub fn record(&self, content: Content) {
        self.0.borrow_mut().power = Some(Power::new(content, 1));
    }
    /// Shows each start and each end of a change; needs [`Faults::record`].
    pub fn observe(&self, observer: Option<Observer>) {
        if let Some(power) = &mut self.0.borrow_mut().power {
            power.observe(observer);
        }
    }
    /// The device as it is now by the model; needs [`Faults::record`].
    pub fn image(&self) -> Option<Image> {
        self.0.borrow().power.as_ref().map(|p| p.image.clone())
    }
    /// Keeps a list of all writes from now on.
    pub fn list_writes(&self) {
        self.0.borrow_mut().written.get_or_insert_default();
    }
    /// The writes so far, oldest first; needs [`Faults::list_writes`].
    pub fn writes(&self) -> Vec<Written> {
        self.0.borrow().written.clone().unwrap_or_default()
    }
    /// True if an operation is under way.
    pub fn busy(&self) -> bool {
        self.0.borrow().under_way > 0
    }
}

/// An operation that the inner device has.
struct Track {
    offset: u64,
    fault: Option<Fault>,
    /// Its number in the model, if that is kept.
    number: u64,
}

/// See the module.
pub struct Faulty<D: Device> {
    inner: D,
    faults: Faults,
    tracks: FxHashMap<u64, Track>,
    /// Ends that are to be given out after so many polls.
    ended: Vec<(u32, Completion)>,
    pool: Pool,
    scratch: Vec<Completion>,
}

impl<D: Device> Faulty<D> {
    /// A device that does what `faults` says.
    pub fn new(inner: D, faults: Faults) -> Faulty<D> {
        let pool = Pool::new(u64::MAX, 1 << 20, None);
        faults.0.borrow_mut().under_way = 0;
        Faulty { inner, faults, tracks: FxHashMap::default(), ended: Vec::new(), pool, scratch: Vec::new() }
    }
    /// The device below.
    pub fn inner(&mut self) -> &mut D {
        &mut self.inner
    }
    fn end(&mut self, id: u64, result: io::Result<()>, buf: Option<Buf>) {
        let polls = self.faults.0.borrow().slow_polls;
        self.ended.push((polls, Completion { id, result, buf }));
        self.inner.waker().ring();
    }
    fn pass(&mut self, id: u64, op: Op, offset: u64, fault: Option<Fault>) {
        let mut number = 0;
        if let Some(power) = &mut self.faults.0.borrow_mut().power {
            number = match (Change::of(&op), &op) {
                (Some(change), _) => power.begin(change),
                (None, Op::Read { offset, buf }) => power.read_begin(*offset..offset + buf.len() as u64),
                (None, _) => 0,
            };
        }
        self.tracks.insert(id, Track { offset, fault, number });
        self.inner.start(id, op);
    }
    /// What the inner device has ended with, as the store is to see it.
    fn take(&mut self, mut done: Completion) -> Completion {
        let Some(track) = self.tracks.remove(&done.id) else {
            return done;
        };
        let mut plan = self.faults.0.borrow_mut();
        if let Some(power) = &mut plan.power {
            power.read_end(track.number);
            match &done.result {
                Ok(()) => power.end(track.number),
                Err(_) => power.fail(track.number, Tear::Random(track.number)),
            }
        }
        if plan.vanished {
            done.result = Err(io::Error::from_raw_os_error(libc::ENXIO));
            return done;
        }
        if let Some(buf) = &mut done.buf {
            plan.decay(track.offset, buf);
        }
        match track.fault {
            Some(Fault::Partial(_, errno)) => done.result = Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short(len)) => {
                done.result = Err(io::Error::other(format!("short transfer: {len} bytes")));
            }
            Some(Fault::ShortSilently(len)) => {
                if let Some(rest) = done.buf.as_mut().and_then(|buf| buf.get_mut(len..)) {
                    rest.fill(0x5a);
                }
            }
            _ => {}
        }
        done
    }
}

/// The first `blocks` blocks of a write.
fn first_blocks(bufs: Vec<Bytes>, blocks: u32) -> Vec<Bytes> {
    let mut left = blocks as usize * super::image::BLOCK;
    let mut kept = Vec::new();
    for buf in bufs {
        let n = buf.len().min(left);
        left -= n;
        if n > 0 {
            kept.push(buf.slice(..n));
        }
    }
    kept
}

fn errno(number: i32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(number))
}

impl<D: Device> Device for Faulty<D> {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn start(&mut self, id: u64, op: Op) {
        let change = Change::of(&op);
        let range = match (&change, &op) {
            (Some(change), _) => change.range(),
            (None, Op::Read { offset, buf }) => *offset..offset + buf.len() as u64,
            (None, _) => 0..0,
        };
        let kind = match &op {
            Op::Read { .. } => Kind::Read,
            Op::Write { .. } => Kind::Write,
            Op::Discard { .. } | Op::Zero { .. } => Kind::Prepare,
        };
        let fault = {
            let mut plan = self.faults.0.borrow_mut();
            plan.under_way += 1;
            let fault = plan.meet(kind, &range);
            if let (Op::Write { offset, bufs, gently }, Some(written)) = (&op, &mut plan.written) {
                let (offset, bufs, gently) = (*offset, bufs.clone(), *gently);
                written.push(Written { offset, bufs, gently, fault });
            }
            match fault {
                Some(Fault::Error(_) | Fault::Lost) => {}
                Some(Fault::Misdirected(to)) => plan.refresh(&(to..to + range.end - range.start)),
                _ if kind != Kind::Read => plan.refresh(&range),
                _ => {}
            }
            fault
        };
        match (op, fault) {
            (Op::Read { buf, .. }, Some(Fault::Error(number))) => self.end(id, errno(number), Some(buf)),
            (_, Some(Fault::Error(number))) => self.end(id, errno(number), None),
            (Op::Read { buf, .. }, Some(Fault::ReadElsewhere(offset))) => {
                self.pass(id, Op::Read { offset, buf }, offset, fault);
            }
            (op @ Op::Read { .. }, _) => self.pass(id, op, range.start, fault),
            (_, Some(Fault::Lost) | Some(Fault::Partial(0, _))) => {
                let result = match fault {
                    Some(Fault::Partial(_, number)) => errno(number),
                    _ => Ok(()),
                };
                self.end(id, result, None);
            }
            (Op::Write { bufs, gently, .. }, Some(Fault::Misdirected(to))) => {
                self.pass(id, Op::Write { offset: to, bufs, gently }, to, fault);
            }
            (Op::Write { offset, bufs, gently }, Some(Fault::Partial(blocks, _))) => {
                let op = Op::Write { offset, bufs: first_blocks(bufs, blocks), gently };
                self.pass(id, op, offset, fault);
            }
            (op, _) => self.pass(id, op, range.start, fault),
        }
    }
    fn submit(&mut self) -> io::Result<()> {
        let plan = self.faults.0.borrow();
        if let Some(number) = plan.submit_fails {
            return errno(number);
        }
        drop(plan);
        self.inner.submit()
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        let mut done = std::mem::take(&mut self.scratch);
        self.inner.completions(&mut done);
        let polls = self.faults.0.borrow().slow_polls;
        for completion in done.drain(..) {
            let completion = self.take(completion);
            self.ended.push((polls, completion));
        }
        self.scratch = done;
        let mut n = 0;
        while n < self.ended.len() {
            if self.ended[n].0 > 0 {
                self.ended[n].0 -= 1;
                n += 1;
            } else {
                self.faults.0.borrow_mut().under_way -= 1;
                out.push(self.ended.remove(n).1);
            }
        }
        if !self.ended.is_empty() {
            // Somebody has to look again.
            self.inner.waker().ring();
        }
    }
    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.ended.len()
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut plan = self.faults.0.borrow_mut();
        let fault = plan.meet(Kind::Read, &(offset..offset + buf.len() as u64));
        let from = match fault {
            Some(Fault::Error(number)) => return errno(number),
            Some(Fault::ReadElsewhere(from)) => from,
            _ => offset,
        };
        self.inner.read_now(from, buf)?;
        plan.decay(from, buf);
        match fault {
            Some(Fault::Short(len)) => Err(io::Error::other(format!("short transfer: {len} bytes"))),
            Some(Fault::ShortSilently(len)) => {
                if let Some(rest) = buf.get_mut(len..) {
                    rest.fill(0x5a);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut plan = self.faults.0.borrow_mut();
        let fault = plan.meet(Kind::Write, &(offset..offset + data.len() as u64));
        let (mut to, mut len) = (offset, data.len());
        if let Some(written) = &mut plan.written {
            let bufs = vec![Bytes::copy_from_slice(data)];
            written.push(Written { offset, bufs, gently: false, fault });
        }
        match fault {
            Some(Fault::Error(number)) => return errno(number),
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Misdirected(elsewhere)) => to = elsewhere,
            Some(Fault::Partial(blocks, _)) => len = len.min(blocks as usize * super::image::BLOCK),
            _ => {}
        }
        plan.refresh(&(to..to + len as u64));
        let number = plan.power.as_mut().map(|power| {
            power.begin(Change::Write { offset: to, bufs: vec![Bytes::copy_from_slice(&data[..len])] })
        });
        if len > 0 {
            // A copy: whatever the caller's memory is, this one is aligned.
            let Some(mut buf) = self.pool.get(len) else { return errno(libc::ENOMEM) };
            buf.copy_from_slice(&data[..len]);
            self.inner.write_now(to, &buf)?;
        }
        if let (Some(power), Some(number)) = (&mut plan.power, number) {
            power.end(number);
        }
        match fault {
            Some(Fault::Partial(_, number)) => errno(number),
            _ => Ok(()),
        }
    }
    fn waker(&self) -> &Waker {
        self.inner.waker()
    }
    fn prepare(&self) -> Prepare {
        self.inner.prepare()
    }
    fn info(&self) -> Option<&DeviceInfo> {
        self.inner.info()
    }
    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }
    fn stalled(&self) -> Option<Duration> {
        self.inner.stalled()
    }
}

impl<D: Device> Drop for Faulty<D> {
    /// What was under way never ends, by the model: as if the power had failed at once.
    fn drop(&mut self) {
        let mut plan = self.faults.0.borrow_mut();
        plan.under_way = 0;
        if let Some(power) = &mut plan.power {
            for track in self.tracks.values() {
                power.read_end(track.number);
                power.fail(track.number, Tear::None);
            }
        }
    }
}
