//! A simulated device: memory behind which the power can fail at any operation.
//!
//! What is written is durable when its completion has been handed out; a write that is under way when
//! the power goes leaves any subset of its 512-byte sectors behind. Seeded: the same calls give the
//! same faults. Clones are the same medium, so that a test can cut the power, look, flip bits and
//! open again.

use super::wake::Waker;
use super::{Completion, Device, Op};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// A small seeded generator (xorshift64*, Vigna 2016); good enough for faults.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed; 0 is allowed.
    pub fn new(seed: u64) -> Rng {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1 | 1);
        for _ in 0..8 {
            rng.next();
        }
        rng
    }
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// Below `n`, which is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n.max(1)
    }
    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

struct Medium {
    blocks: FxHashMap<u64, Box<[u8; BLOCK]>>,
    size: u64,
    fail_writes: bool,
    /// Reads that fail from now on, until they have: of which block (none: of any) and how many.
    fail_reads: (Option<u64>, u32),
}

impl Medium {
    fn write(&mut self, offset: u64, data: &[u8]) {
        for (n, part) in data.chunks(SECTOR).enumerate() {
            let at = offset + (n * SECTOR) as u64;
            let block = self.blocks.entry(at / BLOCK as u64).or_insert_with(|| Box::new([0; BLOCK]));
            let inside = (at % BLOCK as u64) as usize;
            block[inside..inside + part.len()].copy_from_slice(part);
        }
    }
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (block, times) = self.fail_reads;
        let range = offset / BLOCK as u64..(offset + buf.len() as u64).div_ceil(BLOCK as u64);
        if times > 0 && block.is_none_or(|block| range.contains(&block)) {
            self.fail_reads.1 -= 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        for (n, part) in buf.chunks_mut(BLOCK).enumerate() {
            match self.blocks.get(&(offset / BLOCK as u64 + n as u64)) {
                Some(block) => part.copy_from_slice(&block[..part.len()]),
                None => part.fill(0),
            }
        }
        Ok(())
    }
}

/// See the module.
pub struct SimDevice {
    medium: Rc<RefCell<Medium>>,
    pending: Vec<(u64, Op)>,
    rng: Rng,
    waker: Waker,
    /// Completions come late and in any order: at each look, an operation has ended with this chance
    /// in 100.
    pub done_percent: u64,
}

/// The medium alone, as it survives a power cut.
#[derive(Clone)]
pub struct SimMedium(Rc<RefCell<Medium>>);

impl SimMedium {
    /// An empty medium of `size` bytes.
    pub fn new(size: u64) -> SimMedium {
        SimMedium(Rc::new(RefCell::new(Medium {
            blocks: FxHashMap::default(),
            size,
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
        })
    }
    /// Flips a bit of the byte at `offset`.
    pub fn flip(&self, offset: u64) {
        let mut medium = self.0.borrow_mut();
        if let Some(block) = medium.blocks.get_mut(&(offset / BLOCK as u64)) {
            block[(offset % BLOCK as u64) as usize] ^= 0x10;
        }
    }
    /// The bytes at `offset`.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        let _ = self.0.borrow_mut().read(offset, &mut buf);
        buf
    }
    /// Overwrites bytes (whole sectors).
    pub fn poke(&self, offset: u64, data: &[u8]) {
        self.0.borrow_mut().write(offset, data);
    }
    /// From now on every write ends in EIO.
    pub fn fail_writes(&self) {
        self.0.borrow_mut().fail_writes = true;
    }
    /// The next `times` reads that touch the block at `offset` (none: any) end in EIO.
    pub fn fail_reads(&self, offset: Option<u64>, times: u32) {
        self.0.borrow_mut().fail_reads = (offset.map(|o| o / BLOCK as u64), times);
    }
    /// A copy of what is on it, independent of this one.
    pub fn snapshot(&self) -> SimMedium {
        let m = self.0.borrow();
        SimMedium(Rc::new(RefCell::new(Medium {
            blocks: m.blocks.clone(),
            size: m.size,
            fail_writes: false,
            fail_reads: (None, 0),
        })))
    }
}

impl SimDevice {
    /// The power fails: of each write under way any subset of sectors is on the medium, also none,
    /// also all.
    pub fn power_cut(&mut self) {
        let mut medium = self.medium.borrow_mut();
        for (_, op) in self.pending.drain(..) {
            let Op::Write { offset, bufs } = op else {
                continue;
            };
            let kind = self.rng.below(4);
            let data: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
            let cut = self.rng.below(data.len() as u64 / SECTOR as u64 + 1) as usize;
            for (n, sector) in data.chunks(SECTOR).enumerate() {
                let kept = match kind {
                    0 => false,
                    1 => n < cut,
                    2 => n >= cut,
                    _ => !self.rng.one_in(8),
                };
                if kept {
                    medium.write(offset + (n * SECTOR) as u64, sector);
                }
            }
        }
    }
}

impl Device for SimDevice {
    fn size(&self) -> u64 {
        self.medium.borrow().size
    }
    fn name(&self) -> &str {
        "sim"
    }
    fn start(&mut self, id: u64, op: Op) {
        self.pending.push((id, op));
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        let mut n = 0;
        while n < self.pending.len() {
            if self.rng.below(100) >= self.done_percent {
                n += 1;
                continue;
            }
            let (id, op) = self.pending.swap_remove(n);
            let mut medium = self.medium.borrow_mut();
            out.push(match op {
                Op::Read { offset, mut buf } => {
                    Completion { id, result: medium.read(offset, &mut buf), buf: Some(buf) }
                }
                Op::Write { .. } if medium.fail_writes => {
                    Completion { id, result: Err(io::Error::from_raw_os_error(libc::EIO)), buf: None }
                }
                Op::Write { offset, bufs } => {
                    let mut at = offset;
                    for buf in &bufs {
                        medium.write(at, buf);
                        at += buf.len() as u64;
                    }
                    Completion { id, result: Ok(()), buf: None }
                }
                Op::Discard { offset, len } | Op::Zero { offset, len } => {
                    let zero = matches!(op, Op::Zero { .. });
                    for at in (offset..offset + len).step_by(BLOCK) {
                        let mut block = [0; BLOCK];
                        if !zero {
                            // What was there is gone, and anything is there instead.
                            block.fill_with(|| self.rng.next() as u8);
                        }
                        medium.write(at, &block);
                    }
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
        medium.write(offset, data);
        Ok(())
    }
    fn waker(&self) -> &Waker {
        &self.waker
    }
}
