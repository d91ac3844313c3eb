//! Aligned memory for direct I/O, and the pool that it comes from.
//!
//! A [`Buf`] is exclusive: it can be written, split into disjoint parts that different operations
//! fill at the same time, and joined again. [`Buf::freeze`] turns it into shared [`Bytes`] without a
//! copy; the memory returns to its pool when the last holder drops it, on whatever thread that is.
//! The pool bounds what is out at once ([`Pool::get`] refuses beyond it) and what it keeps for reuse.
//! This module does no I/O.

use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::wake::Waker;

/// Alignment of every buffer: enough for direct I/O on any device with sectors of up to 4 KiB.
pub const ALIGN: usize = 4096;
/// Smallest class: one block.
const CLASS_SHIFT_MIN: u32 = 12;
/// Classes of 4 KiB, 8 KiB ... 1 MiB; larger memory is allocated and freed each time.
const CLASSES: usize = 9;

struct Shared {
    classes: [Mutex<Vec<Memory>>; CLASSES],
    kept_bytes: AtomicU64,
    kept_bytes_max: u64,
    out_bytes: AtomicU64,
    out_bytes_max: u64,
    starved: AtomicBool,
    waker: Option<Waker>,
}

/// Aligned memory, owned.
struct Memory {
    ptr: NonNull<u8>,
    capacity: usize,
}

// SAFETY: `Memory` owns its allocation alone; nothing about it is tied to a thread.
#[allow(unsafe_code)]
unsafe impl Send for Memory {}

impl Memory {
    fn layout(capacity: usize) -> Option<Layout> {
        Layout::from_size_align(capacity, ALIGN).ok()
    }
    #[allow(unsafe_code)]
    fn new(capacity: usize) -> Option<Memory> {
        let layout = Memory::layout(capacity.max(ALIGN))?;
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        match NonNull::new(ptr) {
            Some(ptr) => Some(Memory { ptr, capacity: layout.size() }),
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for Memory {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if let Some(layout) = Memory::layout(self.capacity) {
            // SAFETY: allocated in `new` with this very layout, freed once.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

/// A pool of aligned buffers. Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

impl Pool {
    /// A pool that lets at most `out_bytes_max` out at once (plus one buffer when nothing is out, so
    /// that a request larger than the bound still makes progress), and keeps at most
    /// `kept_bytes_max` for reuse. `waker` is rung when a refused request may be tried again.
    pub fn new(out_bytes_max: u64, kept_bytes_max: u64, waker: Option<Waker>) -> Pool {
        Pool(Arc::new(Shared {
            classes: Default::default(),
            kept_bytes: AtomicU64::new(0),
            kept_bytes_max,
            out_bytes: AtomicU64::new(0),
            out_bytes_max,
            starved: AtomicBool::new(false),
            waker,
        }))
    }

    /// A buffer of `len` bytes with arbitrary content; `None` when the bound on bytes out is reached.
    pub fn get(&self, len: usize) -> Option<Buf> {
        let shared = &self.0;
        let class = class_of(len);
        let capacity = match class {
            Some(c) => 1usize << (CLASS_SHIFT_MIN + c as u32),
            None => len.next_multiple_of(ALIGN),
        };
        // Set before the look, so that a buffer that comes back in between rings.
        let others_wait = shared.starved.swap(true, Ordering::SeqCst);
        let out = shared.out_bytes.load(Ordering::SeqCst);
        if out > 0 && out + capacity as u64 > shared.out_bytes_max {
            return None;
        }
        if !others_wait {
            shared.starved.store(false, Ordering::SeqCst);
        }
        let kept = class.and_then(|c| lock(&shared.classes[c]).pop());
        let memory = match kept {
            Some(m) => {
                shared.kept_bytes.fetch_sub(m.capacity as u64, Ordering::Relaxed);
                m
            }
            None => Memory::new(capacity)?,
        };
        shared.out_bytes.fetch_add(memory.capacity as u64, Ordering::SeqCst);
        Some(Buf { start: 0, len, region: Arc::new(Region { memory: Some(memory), pool: self.clone() }) })
    }

    /// Bytes that are out now.
    pub fn out_bytes(&self) -> u64 {
        self.0.out_bytes.load(Ordering::Relaxed)
    }
}

fn class_of(len: usize) -> Option<usize> {
    let class = (len.max(1 << CLASS_SHIFT_MIN).next_power_of_two().ilog2() - CLASS_SHIFT_MIN) as usize;
    (class < CLASSES).then_some(class)
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that several disjoint `Buf`s share.
struct Region {
    memory: Option<Memory>,
    pool: Pool,
}

// SAFETY: a region hands out no reference by itself; its `Buf`s cover disjoint ranges (see `Buf`).
#[allow(unsafe_code)]
unsafe impl Sync for Region {}

impl Region {
    fn ptr(&self) -> NonNull<u8> {
        self.memory.as_ref().map_or(NonNull::dangling(), |m| m.ptr)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else {
            return;
        };
        let shared = &self.pool.0;
        let bytes = memory.capacity as u64;
        if let Some(class) = class_of(memory.capacity)
            && shared.kept_bytes.load(Ordering::Relaxed) + bytes <= shared.kept_bytes_max
        {
            shared.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
            lock(&shared.classes[class]).push(memory);
        }
        shared.out_bytes.fetch_sub(bytes, Ordering::SeqCst);
        if shared.starved.swap(false, Ordering::SeqCst)
            && let Some(waker) = &shared.waker
        {
            waker.ring();
        }
    }
}

/// An exclusive range of aligned memory.
///
/// Invariant: no two `Buf`s of one region overlap. `Pool::get` makes one that covers the region,
/// `split_off` cuts one in two, `join` is given both; nothing clones.
pub struct Buf {
    region: Arc<Region>,
    start: usize,
    len: usize,
}

impl Buf {
    /// Cuts at `at`: `self` keeps the first `at` bytes, the rest is returned.
    pub fn split_off(&mut self, at: usize) -> Buf {
        let at = at.min(self.len);
        let rest = Buf { region: self.region.clone(), start: self.start + at, len: self.len - at };
        self.len = at;
        rest
    }

    /// Undoes a [`Buf::split_off`]; gives `next` back where it does not follow in the same region.
    pub fn join(&mut self, next: Buf) -> Result<(), Buf> {
        if Arc::ptr_eq(&self.region, &next.region) && self.start + self.len == next.start {
            self.len += next.len;
            Ok(())
        } else {
            Err(next)
        }
    }

    /// Cuts the end off for good.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Shared and immutable from here on; the memory returns to the pool with the last clone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buf {
    type Target = [u8];
    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the region's initialised memory (zeroed at allocation), and no
        // other `Buf` covers it.
        unsafe { std::slice::from_raw_parts(self.region.ptr().as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for Buf {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` and the disjointness of `Buf`s make it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.region.ptr().as_ptr().add(self.start), self.len) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_round() {
        let pool = Pool::new(1 << 20, 1 << 20, None);
        let a = pool.get(5000).expect("room");
        assert_eq!(a.as_ptr() as usize % ALIGN, 0);
        assert_eq!(pool.out_bytes(), 8192);
        let at = a.as_ptr();
        let shared = a.freeze();
        let other = shared.slice(100..200);
        drop(shared);
        assert_eq!(pool.out_bytes(), 8192);
        drop(other);
        assert_eq!(pool.out_bytes(), 0);
        assert_eq!(pool.get(8192).expect("room").as_ptr(), at, "reused");
    }

    #[test]
    fn the_bound_refuses_and_rings_when_memory_returns() {
        let waker = Waker::new().expect("eventfd");
        let pool = Pool::new(12 << 10, 0, Some(waker.clone()));
        let a = pool.get(8 << 10).expect("room");
        assert!(pool.get(12 << 10).is_none());
        assert!(!waker.take());
        // A smaller request that fits does not make the pool forget the one that waits.
        let b = pool.get(1).expect("fits");
        drop(b);
        assert!(waker.take());
        assert!(pool.get(8192).is_none());
        drop(a);
        assert!(waker.take());
        assert!(pool.get(1 << 20).is_some(), "a large request alone is let through");
    }

    #[test]
    fn parts_are_disjoint_and_join_in_order_only() {
        let pool = Pool::new(1 << 20, 0, None);
        let mut a = pool.get(8192).expect("room");
        let mut b = a.split_off(4096);
        a.fill(1);
        b.fill(2);
        let b = match b.join(a) {
            Err(a) => (a, b),
            Ok(()) => panic!("joined backwards"),
        };
        let (mut a, b) = b;
        assert!(a.join(b).is_ok());
        assert_eq!((a.len(), a[4095], a[4096]), (8192, 1, 2));
    }
}
