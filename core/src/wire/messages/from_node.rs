//! Node to leader, on the wire.

use super::get::*;
use super::votes::{get_votes, put_votes};
use super::{DecodeError, Message, kind, payload_is, some_bytes};
use crate::ids::*;
use crate::limits::{OBJECT_BLOCKS_MAX, OP_BLOCKS_MAX};
use crate::message::{FromNode, Refusal};
use crate::wire::fixed::Fixed;
use bytes::{BufMut, Bytes, BytesMut};

fn refusal_code(why: Refusal) -> u32 {
    match why {
        Refusal::Promised => 0,
        Refusal::Epoch => 1,
        Refusal::NotMember => 2,
        Refusal::NotReady => 3,
    }
}

fn get_refusal(get: &mut Get<'_>) -> Result<Refusal, DecodeError> {
    Ok(match get.u32("refusal")? {
        0 => Refusal::Promised,
        1 => Refusal::Epoch,
        2 => Refusal::NotMember,
        3 => Refusal::NotReady,
        code => return Err(get.range("refusal", u64::from(code))),
    })
}

impl Message for FromNode<Bytes> {
    fn kind(&self) -> u16 {
        match self {
            FromNode::Fenced { .. } => kind::FENCED,
            FromNode::FenceRefused { .. } => kind::FENCE_REFUSED,
            FromNode::Opened { .. } => kind::OPENED,
            FromNode::OpenRefused { .. } => kind::OPEN_REFUSED,
            FromNode::Settled { .. } => kind::SETTLED,
            FromNode::Have { .. } => kind::HAVE,
            FromNode::Gap { .. } => kind::GAP,
            FromNode::NoSpace { .. } => kind::NO_SPACE,
            FromNode::Data { .. } => kind::DATA,
            FromNode::Bad { .. } => kind::BAD,
            FromNode::Doubts { .. } => kind::DOUBTS,
            FromNode::ReadRefused { .. } => kind::READ_REFUSED,
            FromNode::Confirmed { .. } => kind::CONFIRMED,
            FromNode::Differs { .. } => kind::DIFFERS,
        }
    }

    fn encode_meta(&self, out: &mut BytesMut) {
        match self {
            FromNode::Fenced { volume, generation } => {
                out.put_u64_le(volume.0);
                out.put_u64_le(generation.0);
            }
            FromNode::FenceRefused { volume, generation, fence } => {
                out.put_u64_le(volume.0);
                out.put_u64_le(generation.0);
                out.put_u64_le(fence.0);
            }
            FromNode::Opened { group, ballot, settled, lost, objects } => {
                put_group(out, group);
                out.put_u64_le(ballot.0);
                out.put_u64_le(settled.0);
                out.put_u32_le(u32::from(*lost));
                put_votes(out, objects);
            }
            FromNode::OpenRefused { group, ballot, promised, fence, epoch, why } => {
                put_group(out, group);
                out.put_u64_le(ballot.0);
                out.put_u64_le(promised.0);
                out.put_u64_le(fence.0);
                out.put_u64_le(epoch.0);
                out.put_u32_le(refusal_code(*why));
            }
            FromNode::Settled { group, ballot } => {
                put_group(out, group);
                out.put_u64_le(ballot.0);
            }
            FromNode::Have { object, ballot, seq, full } => {
                Fixed::<40>::new()
                    .object(object)
                    .u64(ballot.0)
                    .u64(*seq)
                    .u32(u32::from(*full))
                    .append_to(out);
            }
            FromNode::Gap { object, ballot, head, repair } => {
                put_object(out, object);
                out.put_u64_le(ballot.0);
                put_head(out, head);
                out.put_u32_le(u32::from(*repair));
            }
            FromNode::NoSpace { object, ballot, seq } => {
                put_object(out, object);
                out.put_u64_le(ballot.0);
                out.put_u64_le(*seq);
            }
            FromNode::Data { group, id, checksums, .. } => {
                // At most OBJECT_BLOCKS_MAX.
                let count = checksums.len() as u32;
                Fixed::<28>::new().group(group).u64(*id).u32(count).append_to(out);
                put_u64s(out, checksums);
            }
            FromNode::Bad { group, id, blocks } => {
                put_group(out, group);
                out.put_u64_le(*id);
                put_u32s(out, blocks);
            }
            FromNode::Doubts { object, ballot, outvoted, disputed } => {
                put_object(out, object);
                out.put_u64_le(ballot.0);
                out.put_u32_le(u32::from(*outvoted));
                put_u32s(out, disputed);
            }
            FromNode::ReadRefused { group, id } | FromNode::Confirmed { group, id } => {
                put_group(out, group);
                out.put_u64_le(*id);
            }
            FromNode::Differs { group } => put_group(out, group),
        }
    }

    fn payload(&self) -> Option<Bytes> {
        match self {
            FromNode::Data { data, .. } => some_bytes(data),
            _ => None,
        }
    }

    fn decode(kind: u16, meta: &[u8], payload: Bytes) -> Result<Self, DecodeError> {
        let mut get = Get::new(kind, meta);
        if kind != kind::DATA {
            payload_is(kind, &payload, 0)?;
        }
        let msg = match kind {
            kind::HAVE => FromNode::Have {
                object: get.object()?,
                ballot: get.ballot()?,
                seq: get.seq()?,
                full: get.bool("full")?,
            },
            kind::DATA => {
                let (group, id) = (get.group()?, get.u64("id")?);
                let count = get.count("block count", OBJECT_BLOCKS_MAX as usize)?;
                let checksums = get.checksums(count)?;
                // Without bytes it answers a Read that asked for checksums only; the leader knows which.
                if !payload.is_empty() {
                    if count > OP_BLOCKS_MAX as usize {
                        return Err(get.range("block count", count as u64));
                    }
                    payload_is(kind, &payload, not_holes(&checksums))?;
                }
                FromNode::Data { group, id, checksums, data: payload }
            }
            kind::CONFIRMED => FromNode::Confirmed { group: get.group()?, id: get.u64("id")? },
            kind::FENCED => {
                FromNode::Fenced { volume: VolumeId(get.u64("volume")?), generation: get.generation()? }
            }
            kind::FENCE_REFUSED => FromNode::FenceRefused {
                volume: VolumeId(get.u64("volume")?),
                generation: get.generation()?,
                fence: get.generation()?,
            },
            kind::OPENED => {
                let (group, ballot, settled) = (get.group()?, get.ballot()?, get.ballot()?);
                let lost = get.bool("lost")?;
                FromNode::Opened { group, ballot, settled, lost, objects: get_votes(&mut get)? }
            }
            kind::OPEN_REFUSED => FromNode::OpenRefused {
                group: get.group()?,
                ballot: get.ballot()?,
                promised: get.ballot()?,
                fence: get.generation()?,
                epoch: Epoch(get.u64("epoch")?),
                why: get_refusal(&mut get)?,
            },
            kind::SETTLED => FromNode::Settled { group: get.group()?, ballot: get.ballot()? },
            kind::GAP => FromNode::Gap {
                object: get.object()?,
                ballot: get.ballot()?,
                head: get.head()?,
                repair: get.bool("repair")?,
            },
            kind::NO_SPACE => {
                FromNode::NoSpace { object: get.object()?, ballot: get.ballot()?, seq: get.seq()? }
            }
            kind::BAD => FromNode::Bad {
                group: get.group()?,
                id: get.u64("id")?,
                blocks: get.block_list(BlockRange::new(0, OBJECT_BLOCKS_MAX))?,
            },
            kind::DOUBTS => FromNode::Doubts {
                object: get.object()?,
                ballot: get.ballot()?,
                outvoted: get.bool("outvoted")?,
                disputed: get.block_list(BlockRange::new(0, OBJECT_BLOCKS_MAX))?,
            },
            kind::READ_REFUSED => FromNode::ReadRefused { group: get.group()?, id: get.u64("id")? },
            kind::DIFFERS => FromNode::Differs { group: get.group()? },
            kind => return Err(DecodeError::Kind { kind }),
        };
        get.end()?;
        Ok(msg)
    }
}
