//! On which device each stream's segments are taken: the hook for stores on two devices.
//!
//! A store may span a fast device (the log's head and hot blocks) and a main one (the rest): what clients
//! write goes to the fast one, cleaning moves what has stayed alive to the main one. The format is ready
//! for that (`docs/on-disk-format.md`); this version opens one device only, so every segment is of the
//! main one and [`take`] takes the oldest that is free. Nothing but the choice of a free segment may ever
//! depend on this module: a store whose choice was made by other rules must open all the same.

use super::log::Stream;
use std::collections::VecDeque;

/// A device of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Holds the superblock's roots, and whatever is not on the other.
    Main,
    /// The smaller, faster one.
    Fast,
}

/// Which segments are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Segments from this one on are on the fast device; `None`: there is one device.
    pub fast_from: Option<u32>,
}

impl Layout {
    /// Where a segment is.
    pub fn tier_of(&self, segment: u32) -> Tier {
        if self.fast_from.is_some_and(|first| segment >= first) { Tier::Fast } else { Tier::Main }
    }
}

/// Where a stream's segments should be.
pub fn wanted(stream: Stream) -> Tier {
    match stream {
        Stream::Hot => Tier::Fast,
        Stream::Cold => Tier::Main,
    }
}

/// Takes a free segment `(number, turn)` for a stream: the oldest one where it should be; where there is
/// none, the oldest.
pub fn take(ready: &mut VecDeque<(u32, u16)>, stream: Stream, layout: Layout) -> Option<(u32, u16)> {
    let at = ready.iter().position(|(segment, _)| layout.tier_of(*segment) == wanted(stream)).unwrap_or(0);
    ready.remove(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_takes_from_its_device_and_from_the_other_rather_than_none() {
        let mut ready: VecDeque<(u32, u16)> = [(3, 0), (11, 0), (4, 1), (12, 0)].into();
        let two = Layout { fast_from: Some(10) };
        assert_eq!(take(&mut ready, Stream::Hot, two), Some((11, 0)));
        assert_eq!(take(&mut ready, Stream::Cold, two), Some((3, 0)));
        assert_eq!(take(&mut ready, Stream::Cold, two), Some((4, 1)));
        assert_eq!(take(&mut ready, Stream::Cold, two), Some((12, 0)));
        assert_eq!(take(&mut ready, Stream::Hot, two), None);
        let mut ready: VecDeque<(u32, u16)> = [(3, 0), (11, 0)].into();
        assert_eq!(take(&mut ready, Stream::Hot, Layout::default()), Some((3, 0)));
    }
}
