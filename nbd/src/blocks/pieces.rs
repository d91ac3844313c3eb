//! Pieces of requests: cutting them, and what their answers mean.

use super::edges::{Content, Merged, Patch, Place, merge};
use super::geometry::BLOCK;
use super::requests::{self, Kind, RequestKey};
use super::{BlockLayer, disk_error};
use crate::disk::DiskError;
use bytes::Bytes;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::client::{OpError, OpKind, OpOutput};
use trefoil_core::ids::{BLOCK_SIZE, BlockRange, ObjectIndex};
use trefoil_core::limits::OP_BLOCKS_MAX;

/// What an operation at the leader is for.
#[derive(Debug)]
pub(super) enum Piece {
    /// Part `part` of a read: `len` bytes from byte `skip` of the blocks.
    Read { request: RequestKey, part: u32, object: ObjectIndex, blocks: BlockRange, skip: u64, len: u64 },
    /// The same of a status.
    Status { request: RequestKey, part: u32, blocks: BlockRange, skip: u64, len: u64 },
    /// Whole blocks of a write or zero.
    Whole { request: RequestKey },
    /// The old content of a block that is to be patched.
    EdgeRead(Place),
    /// The patched block; the requests whose patches are in it.
    EdgeWrite(Vec<RequestKey>),
}

static ZEROS: [u8; OP_BLOCKS_MAX as usize * BLOCK_SIZE] = [0; OP_BLOCKS_MAX as usize * BLOCK_SIZE];

impl BlockLayer {
    /// Issues the next piece of a request, which has one left.
    pub(super) fn issue(&mut self, key: RequestKey) {
        let geometry = self.geometry;
        let request = &mut self.requests[key.0];
        let (cursor, end) = (request.cursor, request.end);
        let (skip, no_hole) = (cursor % BLOCK, matches!(request.kind, Kind::Zero { no_hole: true }));
        match &mut request.kind {
            Kind::Read(parts) => {
                let part = parts.issue();
                let span = geometry.span(cursor, end, OP_BLOCKS_MAX);
                let (object, blocks, len) = (span.object, span.blocks, span.end - cursor);
                request.cursor = span.end;
                request.pending += 1;
                let piece = Piece::Read { request: key, part, object, blocks, skip, len };
                self.give(object, OpKind::Read { blocks }, piece);
            }
            Kind::Status(parts) => {
                let part = parts.issue();
                let span = geometry.span(cursor, end, u32::MAX);
                let (blocks, len) = (span.blocks, span.end - cursor);
                request.cursor = span.end;
                request.pending += 1;
                let piece = Piece::Status { request: key, part, blocks, skip, len };
                self.give(span.object, OpKind::Status { blocks }, piece);
            }
            Kind::Write { .. } | Kind::Zero { .. } if skip != 0 || end - cursor < BLOCK => {
                self.issue_patch(key, (cursor - skip + BLOCK).min(end));
            }
            Kind::Write { .. } => self.issue_whole(key, OP_BLOCKS_MAX),
            Kind::Zero { .. } if no_hole => self.issue_whole(key, OP_BLOCKS_MAX),
            Kind::Zero { .. } => self.issue_whole(key, u32::MAX),
        }
    }

    /// The bytes from the cursor to `to`, within one block, become a patch.
    fn issue_patch(&mut self, key: RequestKey, to: u64) {
        let request = &mut self.requests[key.0];
        let span = self.geometry.span(request.cursor, to, 1);
        let len = (to - request.cursor) as usize;
        let content = match &request.kind {
            Kind::Write { data, start } => {
                let at = (request.cursor - start) as usize;
                Content::Data(data.slice(at..at + len))
            }
            Kind::Zero { no_hole } => Content::Zeros { len, hole: !no_hole },
            Kind::Read(_) | Kind::Status(_) => return,
        };
        let patch = Patch { request: key, from: (request.cursor % BLOCK) as usize, content };
        request.cursor = to;
        request.pending += 1;
        let place = (span.object, span.blocks.first);
        if self.edges.add(place, || patch.clone()) {
            self.counters.edge_merges += 1;
            return;
        }
        self.counters.edge_reads += 1;
        self.edges.start(place, patch);
        self.give(span.object, OpKind::Read { blocks: span.blocks }, Piece::EdgeRead(place));
    }

    /// Whole blocks from the cursor on, up to the first one that has an edge; that one joins the edge.
    fn issue_whole(&mut self, key: RequestKey, blocks_max: u32) {
        let request = &mut self.requests[key.0];
        let whole_end = request.end - request.end % BLOCK;
        let span = self.geometry.span(request.cursor, whole_end, blocks_max);
        let (object, first) = (span.object, span.blocks.first);
        let count = match self.edges.first_in((object, first), span.blocks.end()) {
            Some(block) if block == first => {
                let to = request.cursor + BLOCK;
                return self.issue_patch(key, to);
            }
            Some(block) => block - first,
            None => span.blocks.count,
        };
        let blocks = BlockRange::new(first, count);
        let from = request.cursor;
        request.cursor += u64::from(count) * BLOCK;
        request.pending += 1;
        let bytes = count as usize * BLOCK_SIZE;
        let data = match &request.kind {
            Kind::Write { data, start } => {
                let at = (from - start) as usize;
                Some(data.slice(at..at + bytes))
            }
            Kind::Zero { no_hole: true } => Some(Bytes::from_static(&ZEROS[..bytes])),
            _ => None,
        };
        let kind = match data {
            Some(data) => self.write(object, blocks, data),
            None => OpKind::Zero { blocks },
        };
        self.give(object, kind, Piece::Whole { request: key });
    }

    fn write(&self, object: ObjectIndex, blocks: BlockRange, data: Bytes) -> OpKind<Bytes> {
        let volume = self.geometry.volume;
        let checksums: Box<[u64]> = match blocks.count {
            1 => Box::new([block_checksum(volume, object, blocks.first, &data)]),
            _ => (blocks.first..)
                .zip(data.chunks_exact(BLOCK_SIZE))
                .map(|(block, bytes)| block_checksum(volume, object, block, bytes))
                .collect(),
        };
        OpKind::Write { blocks, checksums, data }
    }

    /// An operation has been answered.
    pub(super) fn finish_piece(&mut self, piece: Piece, result: Result<OpOutput<Bytes>, OpError>) {
        match piece {
            Piece::Read { request, part, object, blocks, skip, len } => {
                let read = self.verify(object, blocks, result);
                let parts = self.requests.get_mut(request.0).map(|r| &mut r.kind);
                let outcome = read.map(|(checksums, data)| {
                    if let Some(Kind::Read(parts)) = parts {
                        parts.set(part, requests::chunks(&checksums, &data, skip, len));
                    }
                });
                self.settle(request, outcome);
            }
            Piece::Status { request, part, blocks, skip, len } => {
                let outcome = match result {
                    Ok(OpOutput::Read { checksums, .. }) if checksums.len() == blocks.count as usize => {
                        if let Some(Kind::Status(parts)) =
                            self.requests.get_mut(request.0).map(|r| &mut r.kind)
                        {
                            parts.set(part, requests::extents(&checksums, skip, len));
                        }
                        Ok(())
                    }
                    Ok(_) => Err(self.malformed()),
                    Err(error) => Err(disk_error(error)),
                };
                self.settle(request, outcome);
            }
            Piece::Whole { request } => {
                let outcome = self.written(result);
                self.settle(request, outcome);
            }
            Piece::EdgeRead(place) => self.finish_edge_read(place, result),
            Piece::EdgeWrite(waiting) => {
                let outcome = self.written(result);
                waiting.into_iter().for_each(|request| self.settle(request, outcome));
            }
        }
    }

    fn written(&mut self, result: Result<OpOutput<Bytes>, OpError>) -> Result<(), DiskError> {
        match result {
            Ok(OpOutput::Written) => Ok(()),
            Ok(OpOutput::Read { .. }) => Err(self.malformed()),
            Err(error) => Err(disk_error(error)),
        }
    }

    fn malformed(&mut self) -> DiskError {
        self.counters.malformed_answers += 1;
        DiskError::Io
    }

    /// A piece of a request is done.
    fn settle(&mut self, key: RequestKey, outcome: Result<(), DiskError>) {
        let Some(request) = self.requests.get_mut(key.0) else { return };
        request.pending -= 1;
        if let Err(error) = outcome {
            request.error.get_or_insert(error);
        }
        self.advance(key, false);
    }

    /// Checks a read's shape and every block's checksum.
    fn verify(
        &mut self,
        object: ObjectIndex,
        blocks: BlockRange,
        result: Result<OpOutput<Bytes>, OpError>,
    ) -> Result<(Box<[u64]>, Bytes), DiskError> {
        let (checksums, data) = match result {
            Ok(OpOutput::Read { checksums, data }) => (checksums, data),
            Ok(OpOutput::Written) => return Err(self.malformed()),
            Err(error) => return Err(disk_error(error)),
        };
        let present = checksums.iter().filter(|sum| **sum != HOLE).count();
        if checksums.len() != blocks.count as usize || data.len() != present * BLOCK_SIZE {
            return Err(self.malformed());
        }
        let volume = self.geometry.volume;
        let stored = (blocks.first..).zip(&checksums[..]).filter(|(_, sum)| **sum != HOLE);
        let bad = stored
            .zip(data.chunks_exact(BLOCK_SIZE))
            .filter(|((block, sum), bytes)| block_checksum(volume, object, *block, bytes) != **sum)
            .count();
        if bad > 0 {
            self.counters.checksum_mismatches += bad as u64;
            return Err(DiskError::Io);
        }
        Ok((checksums, data))
    }

    /// The old content of an edge is there, or cannot be had: apply what has come meanwhile.
    fn finish_edge_read(&mut self, place: Place, result: Result<OpOutput<Bytes>, OpError>) {
        let (object, block) = place;
        let blocks = BlockRange::new(block, 1);
        let old = self.verify(object, blocks, result);
        let old = old.map(|(_, data)| (!data.is_empty()).then_some(data));
        let patches = self.edges.end(place);
        if patches.is_empty() {
            return;
        }
        let waiting: Vec<RequestKey> = patches.iter().map(|patch| patch.request).collect();
        let kind = match merge(old, &patches) {
            Ok(Merged::Content(data)) => self.write(object, blocks, data),
            Ok(Merged::BecomesHole) => OpKind::Zero { blocks },
            Ok(Merged::StaysHole) => {
                return waiting.into_iter().for_each(|request| self.settle(request, Ok(())));
            }
            Err(error) => {
                return waiting.into_iter().for_each(|request| self.settle(request, Err(error)));
            }
        };
        self.give(object, kind, Piece::EdgeWrite(waiting));
    }
}
