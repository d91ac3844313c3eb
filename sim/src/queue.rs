//! What is going to happen: a heap of times over a slab of events.
//!
//! Events of the same time happen in the order in which they were put in; the heap moves only 24 bytes
//! per entry, whatever an event weighs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events by time.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    order: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Queue<E> {
        Queue { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), order: 0 }
    }
}

impl<E> Queue<E> {
    /// `event` is to happen at `time`.
    pub fn push(&mut self, time: u64, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                (self.slots.len() - 1) as u32
            }
        };
        self.heap.push(Reverse((time, self.order, slot)));
        self.order += 1;
    }

    /// The next event, and when it happens.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        let Reverse((time, _, slot)) = self.heap.pop()?;
        let event = self.slots[slot as usize].take()?;
        self.free.push(slot);
        Some((time, event))
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// True if nothing is going to happen.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_time_then_in_order() {
        let mut q = Queue::default();
        for (t, e) in [(5, 'a'), (3, 'b'), (5, 'c'), (3, 'd')] {
            q.push(t, e);
        }
        assert_eq!(q.pop(), Some((3, 'b')));
        q.push(3, 'e');
        assert_eq!(q.len(), 4);
        let rest: String = std::iter::from_fn(|| q.pop()).map(|(_, e)| e).collect();
        assert_eq!(rest, "deac");
        assert!(q.is_empty());
    }
}
