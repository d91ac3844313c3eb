//! A simulated device: memory behind which the power can fail at any operation.
//!
//! Durability is as [`super::image`] has it: exact. Seeded: the same calls give the same faults. A
//! [`SimMedium`] is what survives a power cut; its clones are the same medium, so that a test can cut
//! the power, look, flip bits and open again. Copies of it are cheap.

pub use super::image::Rng;
use super::image::{BLOCK, Change, Content, Image, Observer, Power, Tear};
use super::wake::Waker;
use super::{Completion, Device, Op, Prepare};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

struct Medium {
    power: Power,
    fail_writes: bool,
    /// Reads that fail from now on, until they have: of which block (none: of any) and how many.
    fail_reads: (Option<u64>, u32),
}

impl Medium {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.power.image.durable.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (block, times) = self.fail_reads;
        let range = offset / BLOCK as u64..(offset + buf.len() as u64).div_ceil(BLOCK as u64);
        if times > 0 && block.is_none_or(|block| range.contains(&block)) {
            self.fail_reads.1 -= 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.power.image.durable.read(offset, buf);
        Ok(())
    }
}

/// See the module.
pub struct SimDevice {
    medium: Rc<RefCell<Medium>>,
    pending: Vec<Pending>,
    rng: Rng,
    waker: Waker,
    /// Completions come late and in any order: at each look, an operation has ended with this chance
    /// in 100.
    pub done_percent: u64,
    /// What [`Device::prepare`] says.
    pub prepare: Prepare,
    /// One read in six takes up to so many looks longer.
    pub slow_reads: u32,
    /// The same of writes of a single block (roots, small batches), one in three.
    pub slow_writes: u32,
}

/// Of so many reads one is slow: see [`SimDevice::slow_reads`].
const SLOW_ONE_IN: u64 = 6;

struct Pending {
    id: u64,
    op: Op,
    /// Its number in the model of durability.
    number: u64,
    /// Looks before it may end.
    wait: u32,
}

/// The medium alone, as it survives a power cut.
#[derive(Clone)]
pub struct SimMedium(Rc<RefCell<Medium>>);

impl SimMedium {
    /// An empty medium of `size` bytes.
    pub fn new(size: u64) -> SimMedium {
        SimMedium::of(Content::new(size))
    }
    /// A medium that holds this.
    pub fn of(content: Content) -> SimMedium {
        SimMedium(Rc::new(RefCell::new(Medium {
            power: Power::new(content, 1),
            fail_writes: false,
            fail_reads: (None, 0),
        })))
    }
    /// Powers it on.
    pub fn device(&self, seed: u64) -> io::Result<SimDevice> {
        Ok(SimDevice {
            medium: self.0.clone(),
            pending: Vec::new(),
            rng: Rng::new(seed),
            waker: Waker::new()?,
            done_percent: 60,
            prepare: Prepare::Nothing,
            slow_reads: 0,
            slow_writes: 0,
        })
    }
    /// Shows each start and each end of a change to `observer` from now on.
    pub fn observe(&self, observer: Option<Observer>) {
        self.0.borrow_mut().power.observe(observer);
    }
    /// The medium as it is now, with what is under way.
    pub fn image(&self) -> Image {
        self.0.borrow().power.image.clone()
    }
    /// Two operations under way on the same blocks are no mistake from now on: a device in between
    /// misdirects them.
    pub fn watch(&self, watch: bool) {
        self.0.borrow_mut().power.watch = watch;
    }
    /// True if an operation is under way.
    pub fn busy(&self) -> bool {
        self.0.borrow().power.busy()
    }
    /// Flips a bit of the byte at `offset`.
    pub fn flip(&self, offset: u64) {
        let mut byte = [0];
        let content = &mut self.0.borrow_mut().power.image.durable;
        content.read(offset, &mut byte);
        content.write(offset, &[byte[0] ^ 0x10]);
    }
    /// The bytes at `offset`.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        let _ = self.0.borrow_mut().read(offset, &mut buf);
        buf
    }
    /// Overwrites bytes.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        self.0.borrow_mut().power.image.durable.write(offset, data);
    }
    /// From now on every write ends in EIO.
    pub fn fail_writes(&self) {
        self.0.borrow_mut().fail_writes = true;
    }
    /// The next `times` reads that touch the block at `offset` (none: any) end in EIO.
    pub fn fail_reads(&self, offset: Option<u64>, times: u32) {
        self.0.borrow_mut().fail_reads = (offset.map(|o| o / BLOCK as u64), times);
    }
    /// A copy of what is on it, independent of this one, without what is under way and without faults.
    pub fn snapshot(&self) -> SimMedium {
        SimMedium::of(self.0.borrow().power.image.durable.clone())
    }
}

impl SimDevice {
    /// The power fails: of each write under way any subset of sectors is on the medium, also none,
    /// also all.
    pub fn power_cut(&mut self) {
        self.pending.clear();
        let rng = &mut self.rng;
        self.medium.borrow_mut().power.cut(|_, _| match rng.below(8) {
            0 | 1 => Tear::None,
            2 => Tear::All,
            _ => Tear::Random(rng.next()),
        });
    }
}

impl Drop for SimDevice {
    /// What was started and not ended never ends, as if the power had failed at once.
    fn drop(&mut self) {
        let reads: Vec<u64> = self.pending.iter().map(|p| p.number).collect();
        let mut medium = self.medium.borrow_mut();
        for number in reads {
            medium.power.read_end(number);
            medium.power.fail(number, Tear::None);
        }
    }
}

impl Device for SimDevice {
    fn size(&self) -> u64 {
        self.medium.borrow().power.image.durable.size()
    }
    fn name(&self) -> &str {
        "sim"
    }
    fn start(&mut self, id: u64, op: Op) {
        let power = &mut self.medium.borrow_mut().power;
        let number = match (Change::of(&op), &op) {
            (Some(change), _) => power.begin(change),
            (None, Op::Read { offset, buf }) => power.read_begin(*offset..offset + buf.len() as u64),
            (None, _) => 0,
        };
        let (one_in, most) = match &op {
            Op::Read { .. } => (SLOW_ONE_IN, self.slow_reads),
            Op::Write { bufs, .. } if bufs.iter().map(|b| b.len()).sum::<usize>() == BLOCK => {
                (SLOW_ONE_IN / 2, self.slow_writes)
            }
            _ => (SLOW_ONE_IN, 0),
        };
        let slow = most > 0 && self.rng.one_in(one_in);
        let wait = if slow { self.rng.below(u64::from(most)) as u32 } else { 0 };
        self.pending.push(Pending { id, op, number, wait });
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        let mut n = 0;
        while n < self.pending.len() {
            let waits = self.pending[n].wait > 0;
            if waits || self.rng.below(100) >= self.done_percent {
                self.pending[n].wait -= u32::from(waits);
                n += 1;
                continue;
            }
            let Pending { id, op, number, .. } = self.pending.swap_remove(n);
            let mut medium = self.medium.borrow_mut();
            out.push(match op {
                Op::Read { offset, mut buf } => {
                    medium.power.read_end(number);
                    Completion { id, result: medium.read(offset, &mut buf), buf: Some(buf) }
                }
                Op::Write { .. } if medium.fail_writes => {
                    medium.power.fail(number, Tear::None);
                    Completion { id, result: Err(io::Error::from_raw_os_error(libc::EIO)), buf: None }
                }
                Op::Write { .. } | Op::Discard { .. } | Op::Zero { .. } => {
                    medium.power.end(number);
                    Completion { id, result: Ok(()), buf: None }
                }
            });
        }
    }
    fn in_flight(&self) -> usize {
        self.pending.len()
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.medium.borrow_mut().read(offset, buf)
    }
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut medium = self.medium.borrow_mut();
        if medium.fail_writes {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let bufs = vec![bytes::Bytes::copy_from_slice(data)];
        let number = medium.power.begin(Change::Write { offset, bufs });
        medium.power.end(number);
        Ok(())
    }
    fn waker(&self) -> &Waker {
        &self.waker
    }
    fn prepare(&self) -> Prepare {
        self.prepare
    }
}
