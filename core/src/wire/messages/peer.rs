//! Node to node, on the wire.

use super::get::*;
use super::votes::{get_votes, put_votes};
use super::{DecodeError, Message, kind, payload_is, some_bytes};
use crate::checksum::HOLE;
use crate::ids::{BLOCK_SIZE, BlockRange, Epoch};
use crate::limits::{OBJECT_BLOCKS_MAX, PIECE_BLOCKS_MAX};
use crate::message::{PeerMsg, ScrubFound};
use crate::scrub::Doubt;
use bytes::{BufMut, Bytes, BytesMut};

/// How a ScrubTell says what was found.
const UNLIKE: u32 = 0;
/// See [`UNLIKE`].
const SAME: u32 = 1;
/// See [`UNLIKE`].
const SUMS: u32 = 2;

/// The blocks of each kind of doubt, one list behind the other.
fn put_doubts(out: &mut BytesMut, doubts: &[(u32, Doubt)]) {
    for kind in [Doubt::Outvoted, Doubt::Disputed] {
        let blocks: Vec<u32> = doubts.iter().filter(|d| d.1 == kind).map(|d| d.0).collect();
        put_u32s(out, &blocks);
    }
}

fn get_doubts(get: &mut Get<'_>, within: BlockRange) -> Result<Vec<(u32, Doubt)>, DecodeError> {
    let mut doubts = Vec::new();
    for kind in [Doubt::Outvoted, Doubt::Disputed] {
        doubts.extend(get.block_list(within)?.into_iter().map(|block| (block, kind)));
    }
    doubts.sort_unstable();
    match doubts.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(twice) => Err(get.range("doubtful block", u64::from(twice[0].0))),
        None => Ok(doubts),
    }
}

impl Message for PeerMsg<Bytes> {
    fn kind(&self) -> u16 {
        match self {
            PeerMsg::Fetch { .. } => kind::FETCH,
            // A source without doubts, which is nearly every one, says what it always said.
            PeerMsg::Piece { doubts, .. } if !doubts.is_empty() => kind::PIECE_IN_DOUBT,
            PeerMsg::Piece { .. } => kind::PIECE,
            PeerMsg::ScrubAsk { .. } => kind::SCRUB_ASK,
            PeerMsg::ScrubTell { .. } => kind::SCRUB_TELL,
            PeerMsg::NotYet { .. } => kind::NOT_YET,
            PeerMsg::FetchBlock { .. } => kind::FETCH_BLOCK,
            PeerMsg::Block { .. } => kind::BLOCK,
            PeerMsg::Digest { .. } => kind::DIGEST,
            PeerMsg::DigestDiffers { .. } => kind::DIGEST_DIFFERS,
            PeerMsg::Compare { .. } => kind::COMPARE,
            PeerMsg::AtLeast { .. } => kind::AT_LEAST,
        }
    }

    fn encode_meta(&self, out: &mut BytesMut) {
        match self {
            PeerMsg::Fetch { object, ballot, request, min, blocks, have } => {
                put_object(out, object);
                out.put_u64_le(ballot.0);
                out.put_u64_le(*request);
                out.put_u64_le(*min);
                put_blocks(out, *blocks);
                put_u64s(out, have);
            }
            PeerMsg::Piece { object, ballot, request, head, blocks, checksums, bad, doubts, .. } => {
                put_object(out, object);
                out.put_u64_le(ballot.0);
                out.put_u64_le(*request);
                put_head(out, head);
                put_blocks(out, *blocks);
                put_u64s(out, checksums);
                put_u32s(out, bad);
                if !doubts.is_empty() {
                    put_doubts(out, doubts);
                }
            }
            PeerMsg::ScrubAsk { object, request, head, sum } => {
                put_object(out, object);
                out.put_u64_le(*request);
                put_head(out, head);
                out.put_u64_le(*sum);
            }
            PeerMsg::ScrubTell { object, request, found } => {
                put_object(out, object);
                out.put_u64_le(*request);
                match found {
                    ScrubFound::Unlike => out.put_u32_le(UNLIKE),
                    ScrubFound::Same => out.put_u32_le(SAME),
                    ScrubFound::Sums { checksums, doubts } => {
                        out.put_u32_le(SUMS);
                        // At most OBJECT_BLOCKS_MAX.
                        out.put_u32_le(checksums.len() as u32);
                        put_u64s(out, checksums);
                        put_doubts(out, doubts);
                    }
                }
            }
            PeerMsg::NotYet { object, ballot, request } => {
                put_object(out, object);
                out.put_u64_le(ballot.0);
                out.put_u64_le(*request);
            }
            PeerMsg::FetchBlock { object, request, block, checksum } => {
                put_object(out, object);
                out.put_u64_le(*request);
                out.put_u32_le(*block);
                out.put_u64_le(*checksum);
            }
            PeerMsg::Block { object, request, block, checksum, data } => {
                put_object(out, object);
                out.put_u64_le(*request);
                out.put_u32_le(*block);
                out.put_u64_le(*checksum);
                out.put_u32_le(u32::from(data.is_some()));
            }
            PeerMsg::Digest { group, settled, digest } => {
                put_group(out, group);
                out.put_u64_le(settled.0);
                out.put_u64_le(*digest);
            }
            PeerMsg::DigestDiffers { group } => put_group(out, group),
            PeerMsg::Compare { group, epoch, request, settled, objects } => {
                put_group(out, group);
                out.put_u64_le(epoch.0);
                out.put_u64_le(*request);
                out.put_u64_le(settled.0);
                put_votes(out, objects);
            }
            PeerMsg::AtLeast { group, epoch, request, yes } => {
                put_group(out, group);
                out.put_u64_le(epoch.0);
                out.put_u64_le(*request);
                out.put_u32_le(u32::from(*yes));
            }
        }
    }

    fn payload(&self) -> Option<Bytes> {
        match self {
            PeerMsg::Piece { data, .. } => some_bytes(data),
            PeerMsg::Block { data, .. } => data.clone(),
            _ => None,
        }
    }

    fn decode(kind: u16, meta: &[u8], payload: Bytes) -> Result<Self, DecodeError> {
        let mut get = Get::new(kind, meta);
        if !matches!(kind, kind::PIECE | kind::PIECE_IN_DOUBT | kind::BLOCK) {
            payload_is(kind, &payload, 0)?;
        }
        let msg = match kind {
            kind::FETCH => {
                let (object, ballot, request, min) =
                    (get.object()?, get.ballot()?, get.u64("request")?, get.seq()?);
                let blocks = get.blocks(PIECE_BLOCKS_MAX)?;
                PeerMsg::Fetch {
                    object,
                    ballot,
                    request,
                    min,
                    blocks,
                    have: get.checksums(blocks.count as usize)?,
                }
            }
            kind::PIECE | kind::PIECE_IN_DOUBT => {
                let (object, ballot, request, head) =
                    (get.object()?, get.ballot()?, get.u64("request")?, get.head()?);
                let blocks = get.blocks(PIECE_BLOCKS_MAX)?;
                let checksums = get.checksums(blocks.count as usize)?;
                let bad = get.block_list(blocks)?;
                let sum_of = |block: &u32| checksums[(block - blocks.first) as usize];
                // A hole is never bad: it has no bytes that could be.
                if let Some(block) = bad.iter().find(|block| sum_of(block) == HOLE) {
                    return Err(get.range("bad block", u64::from(*block)));
                }
                // Which blocks differ, only the asker knows: it verifies the number and each checksum.
                let (found, most) = (payload.len(), not_holes(&checksums) - bad.len());
                if found % BLOCK_SIZE != 0 || found > most * BLOCK_SIZE {
                    return Err(DecodeError::Payload { kind, found, expected: most * BLOCK_SIZE });
                }
                let doubts = if kind == kind::PIECE { Vec::new() } else { get_doubts(&mut get, blocks)? };
                if kind == kind::PIECE_IN_DOUBT && doubts.is_empty() {
                    return Err(get.range("doubt count", 0));
                }
                let data = payload;
                PeerMsg::Piece { object, ballot, request, head, blocks, checksums, bad, doubts, data }
            }
            kind::SCRUB_ASK => PeerMsg::ScrubAsk {
                object: get.object()?,
                request: get.u64("request")?,
                head: get.head()?,
                sum: get.u64("sum")?,
            },
            kind::SCRUB_TELL => {
                let (object, request) = (get.object()?, get.u64("request")?);
                let found = match get.u32("comparison")? {
                    UNLIKE => ScrubFound::Unlike,
                    SAME => ScrubFound::Same,
                    SUMS => {
                        let count = get.count("block count", OBJECT_BLOCKS_MAX as usize)?;
                        let checksums = get.checksums(count)?;
                        let doubts = get_doubts(&mut get, BlockRange::new(0, OBJECT_BLOCKS_MAX))?;
                        ScrubFound::Sums { checksums, doubts }
                    }
                    other => return Err(get.range("comparison", u64::from(other))),
                };
                PeerMsg::ScrubTell { object, request, found }
            }
            kind::NOT_YET => {
                PeerMsg::NotYet { object: get.object()?, ballot: get.ballot()?, request: get.u64("request")? }
            }
            kind::FETCH_BLOCK => PeerMsg::FetchBlock {
                object: get.object()?,
                request: get.u64("request")?,
                block: get.block()?,
                checksum: get.u64("checksum")?,
            },
            kind::BLOCK => {
                let (object, request) = (get.object()?, get.u64("request")?);
                let (block, checksum) = (get.block()?, get.u64("checksum")?);
                let found = get.bool("found")?;
                payload_is(kind, &payload, usize::from(found))?;
                PeerMsg::Block { object, request, block, checksum, data: found.then_some(payload) }
            }
            kind::DIGEST => {
                PeerMsg::Digest { group: get.group()?, settled: get.ballot()?, digest: get.u64("digest")? }
            }
            kind::DIGEST_DIFFERS => PeerMsg::DigestDiffers { group: get.group()? },
            kind::COMPARE => PeerMsg::Compare {
                group: get.group()?,
                epoch: Epoch(get.u64("epoch")?),
                request: get.u64("request")?,
                settled: get.ballot()?,
                objects: get_votes(&mut get)?,
            },
            kind::AT_LEAST => PeerMsg::AtLeast {
                group: get.group()?,
                epoch: Epoch(get.u64("epoch")?),
                request: get.u64("request")?,
                yes: get.bool("yes")?,
            },
            kind => return Err(DecodeError::Kind { kind }),
        };
        get.end()?;
        Ok(msg)
    }
}
