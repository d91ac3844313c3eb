//! The reads that wait for a node, in the order in which they were sent: who is late is at the front.
//!
//! A doubly linked list in a slab. Everything is O(1), and after the first use of a place nothing is
//! allocated. All reads of a leader share one hedging delay at any moment (see [`super::hedge`]), so that
//! the order of sending is the order of becoming late, also when the delay changes.
//!
//! Limit: one entry for each read under way, so at most [`crate::limits::LEADER_OPS_MAX`].

use crate::ids::Time;

/// Names an entry. [`Ticket::NONE`]: none.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u32);

impl Ticket {
    pub const NONE: Ticket = Ticket(u32::MAX);
}

/// A read that waits.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// When it was sent to the node that it was sent to last.
    pub sent: Time,
    /// Its group's number in the pool.
    pub pg: u32,
    /// Its id.
    pub id: u64,
}

#[derive(Debug)]
struct Place {
    waiting: Waiting,
    before: u32,
    behind: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Due {
    places: Vec<Place>,
    /// Free places, joined by `behind`.
    free: u32,
    front: u32,
    back: u32,
}

const END: u32 = Ticket::NONE.0;

impl Default for Due {
    fn default() -> Due {
        Due { places: Vec::new(), free: END, front: END, back: END }
    }
}

impl Due {
    /// Adds one at the back: nothing in the list was sent later.
    pub fn push(&mut self, waiting: Waiting) -> Ticket {
        let place = Place { waiting, before: self.back, behind: END };
        let at = match self.free {
            END => {
                self.places.push(place);
                (self.places.len() - 1) as u32
            }
            at => {
                self.free = self.places[at as usize].behind;
                self.places[at as usize] = place;
                at
            }
        };
        match self.back {
            END => self.front = at,
            back => self.places[back as usize].behind = at,
        }
        self.back = at;
        Ticket(at)
    }

    /// Takes one out. Each ticket once; [`Ticket::NONE`] does nothing.
    pub fn remove(&mut self, ticket: Ticket) {
        let at = ticket.0;
        let Some(place) = self.places.get(at as usize) else { return };
        let (before, behind) = (place.before, place.behind);
        match before {
            END => self.front = behind,
            before => self.places[before as usize].behind = behind,
        }
        match behind {
            END => self.back = before,
            behind => self.places[behind as usize].before = before,
        }
        self.places[at as usize].behind = self.free;
        self.free = at;
    }

    /// Takes out the one at the front.
    pub fn remove_front(&mut self) {
        self.remove(Ticket(self.front));
    }

    /// The one that was sent first.
    pub fn front(&self) -> Option<Waiting> {
        self.places.get(self.front as usize).map(|place| place.waiting)
    }

    /// How many wait. Not O(1): for tests and for [`super::Leader::under_way`].
    pub fn len(&self) -> usize {
        let mut at = self.front;
        let mut count = 0;
        while let Some(place) = self.places.get(at as usize) {
            count += 1;
            at = place.behind;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Against the obvious thing.
    #[test]
    fn it_is_a_queue_from_whose_middle_things_can_be_taken() {
        let mut due = Due::default();
        let mut plain: VecDeque<(Ticket, u64)> = VecDeque::new();
        let mut state = 7u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let mut most = 0;
        for id in 0..20_000 {
            if plain.len() < 40 && draw(2) == 0 {
                plain.push_back((due.push(Waiting { sent: Time(id), pg: 0, id }), id));
            } else if !plain.is_empty() {
                let at = draw(plain.len() as u64) as usize;
                due.remove(plain.remove(at).unwrap().0);
            }
            most = most.max(plain.len());
            assert_eq!(due.front().map(|w| w.id), plain.front().map(|(_, id)| *id));
            assert_eq!(due.len(), plain.len());
        }
        assert_eq!(due.places.len(), most, "places are used again");
        due.remove(Ticket::NONE);
        assert_eq!(due.len(), plain.len());
    }
}
