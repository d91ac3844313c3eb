//! A client's request while its pieces are under way.

use super::geometry::BLOCK;
use super::meter::{Asked, Meter};
use crate::disk::{Chunk, Chunks, Completions, DiskError, DiskReply, Extent};
use bytes::Bytes;
use std::rc::Rc;
use trefoil_core::Time;
use trefoil_core::checksum::HOLE;
use trefoil_core::ids::BLOCK_SIZE;

/// Names a request within the layer, until it is answered and has no pieces under way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestKey(pub usize);

/// What is to be done, and what has come of it.
#[derive(Debug)]
pub(super) enum Kind {
    Read(Parts<Chunks>),
    Status(Parts<Vec<Extent>>),
    /// `data` starts at byte `start`.
    Write {
        data: Bytes,
        start: u64,
    },
    Zero {
        no_hole: bool,
    },
}

/// A request: the bytes from `cursor` to `end` have not been issued.
#[derive(Debug)]
pub(super) struct Request {
    pub token: u64,
    pub reply_to: Rc<Completions>,
    pub kind: Kind,
    pub cursor: u64,
    pub end: u64,
    /// Pieces under way.
    pub pending: u32,
    pub error: Option<DiskError>,
    /// In the queue of those that wait for room.
    pub queued: bool,
    pub asked: Asked,
}

impl Request {
    pub fn is_issued(&self) -> bool {
        self.cursor >= self.end || self.error.is_some()
    }
    pub fn is_finished(&self) -> bool {
        self.is_issued() && self.pending == 0
    }
    pub fn answer(self, meter: &mut Meter, now: Time) {
        let Asked { class, bytes, at } = self.asked;
        meter.answered(class, bytes, now.since(at), self.error.is_none());
        let result = match (self.error, self.kind) {
            (Some(error), _) => Err(error),
            (None, Kind::Read(parts)) => {
                let mut all = Chunks::new();
                parts.into_iter().for_each(|part| all.append(part));
                Ok(DiskReply::Data(all))
            }
            (None, Kind::Status(parts)) => Ok(DiskReply::Extents(parts.into_iter().flatten().collect())),
            (None, Kind::Write { .. } | Kind::Zero { .. }) => Ok(DiskReply::Done),
        };
        self.reply_to.push(self.token, result);
    }
}

/// Results of pieces, which come in any order. One piece, the common case, allocates nothing.
#[derive(Debug)]
pub(super) struct Parts<T> {
    first: Option<T>,
    rest: Vec<Option<T>>,
    issued: u32,
}

impl<T> Default for Parts<T> {
    fn default() -> Parts<T> {
        Parts { first: None, rest: Vec::new(), issued: 0 }
    }
}

impl<T> Parts<T> {
    /// The number of the next piece.
    pub fn issue(&mut self) -> u32 {
        let part = self.issued;
        self.issued += 1;
        if part > 0 {
            self.rest.push(None);
        }
        part
    }
    pub fn set(&mut self, part: u32, value: T) {
        match part {
            0 => self.first = Some(value),
            n => {
                if let Some(slot) = self.rest.get_mut(n as usize - 1) {
                    *slot = Some(value);
                }
            }
        }
    }
}

impl<T> IntoIterator for Parts<T> {
    type Item = T;
    type IntoIter =
        std::iter::Chain<std::option::IntoIter<T>, std::iter::Flatten<std::vec::IntoIter<Option<T>>>>;
    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.rest.into_iter().flatten())
    }
}

/// The chunks of `len` bytes from byte `skip` of the blocks that `checksums` and `data` describe: no
/// copy, holes as holes. The caller has checked that the two agree.
pub(super) fn chunks(checksums: &[u64], data: &Bytes, skip: u64, len: u64) -> Chunks {
    let end = skip + len;
    let mut out = Chunks::new();
    let mut taken = 0usize;
    let mut block = 0u64;
    for run in checksums.chunk_by(|a, b| (*a == HOLE) == (*b == HOLE)) {
        let start = block * BLOCK;
        block += run.len() as u64;
        let from = start.max(skip);
        let to = (block * BLOCK).min(end);
        let hole = run[0] == HOLE;
        if from < to {
            out.push(match hole {
                true => Chunk::Hole((to - from) as u32),
                false => {
                    let at = taken + (from - start) as usize;
                    Chunk::Data(data.slice(at..at + (to - from) as usize))
                }
            });
        }
        if !hole {
            taken += run.len() * BLOCK_SIZE;
        }
    }
    out
}

/// The extents of the same range.
pub(super) fn extents(checksums: &[u64], skip: u64, len: u64) -> Vec<Extent> {
    let end = skip + len;
    let mut out = Vec::new();
    let mut block = 0u64;
    for run in checksums.chunk_by(|a, b| (*a == HOLE) == (*b == HOLE)) {
        let from = (block * BLOCK).max(skip);
        block += run.len() as u64;
        let to = (block * BLOCK).min(end);
        if from < to {
            out.push(Extent { len: (to - from) as u32, hole: run[0] == HOLE });
        }
    }
    out
}
