//! Leader to node, on the wire.

use super::get::*;
use super::{DecodeError, Message, kind, payload_is, some_bytes};
use crate::checksum::HOLE;
use crate::ids::*;
use crate::limits::{GROUP_OBJECTS_MAX, OBJECT_BLOCKS_MAX, OP_BLOCKS_MAX};
use crate::message::{ToNode, WriteOp};
use crate::wire::fixed::Fixed;
use bytes::{BufMut, Bytes, BytesMut};

impl Message for ToNode<Bytes> {
    fn kind(&self) -> u16 {
        match self {
            ToNode::Fence { .. } => kind::FENCE,
            ToNode::Open { .. } => kind::OPEN,
            ToNode::Settle { .. } => kind::SETTLE,
            ToNode::Write { op: WriteOp::Data { .. }, .. } => kind::WRITE,
            ToNode::Write { op: WriteOp::Zero { .. }, .. } => kind::ZERO,
            ToNode::Repair { .. } => kind::REPAIR,
            ToNode::Read { .. } => kind::READ,
            ToNode::Confirm { .. } => kind::CONFIRM,
        }
    }

    fn encode_meta(&self, out: &mut BytesMut) {
        match self {
            ToNode::Fence { volume, generation } => {
                out.put_u64_le(volume.0);
                out.put_u64_le(generation.0);
            }
            ToNode::Open { group, ballot, epoch } => {
                put_group(out, group);
                out.put_u64_le(ballot.0);
                out.put_u64_le(epoch.0);
            }
            ToNode::Settle { group, ballot, except } => {
                put_group(out, group);
                out.put_u64_le(ballot.0);
                put_u32s(out, except);
            }
            ToNode::Write { object, ballot, seq, snap, op } => {
                Fixed::<52>::new()
                    .object(object)
                    .u64(ballot.0)
                    .u64(*seq)
                    .u64(*snap)
                    .blocks(op.blocks())
                    .append_to(out);
                if let WriteOp::Data { checksums, .. } = op {
                    put_u64s(out, checksums);
                }
            }
            ToNode::Repair { object, ballot, from, upto, object_blocks, urgent } => {
                put_object(out, object);
                out.put_u64_le(ballot.0);
                out.put_u32_le(from.0);
                out.put_u64_le(*upto);
                out.put_u32_le(*object_blocks);
                out.put_u32_le(u32::from(*urgent));
            }
            ToNode::Read { object, ballot, id, blocks, data } => {
                Fixed::<48>::new()
                    .object(object)
                    .u64(ballot.0)
                    .u64(*id)
                    .blocks(*blocks)
                    .u32(u32::from(*data))
                    .append_to(out);
            }
            ToNode::Confirm { group, ballot, id } => {
                put_group(out, group);
                out.put_u64_le(ballot.0);
                out.put_u64_le(*id);
            }
        }
    }

    fn payload(&self) -> Option<Bytes> {
        match self {
            ToNode::Write { op: WriteOp::Data { data, .. }, .. } => some_bytes(data),
            _ => None,
        }
    }

    fn decode(kind: u16, meta: &[u8], payload: Bytes) -> Result<Self, DecodeError> {
        let mut get = Get::new(kind, meta);
        if kind != kind::WRITE {
            payload_is(kind, &payload, 0)?;
        }
        let msg = match kind {
            kind::WRITE => {
                let (object, ballot, seq, snap) =
                    (get.object()?, get.ballot()?, get.seq()?, get.u64("snap")?);
                let blocks = get.blocks(OP_BLOCKS_MAX)?;
                let checksums = get.checksums(blocks.count as usize)?;
                if checksums.contains(&HOLE) {
                    return Err(get.range("checksum", HOLE));
                }
                payload_is(kind, &payload, checksums.len())?;
                ToNode::Write {
                    object,
                    ballot,
                    seq,
                    snap,
                    op: WriteOp::Data { blocks, checksums, data: payload },
                }
            }
            kind::ZERO => ToNode::Write {
                object: get.object()?,
                ballot: get.ballot()?,
                seq: get.seq()?,
                snap: get.u64("snap")?,
                op: WriteOp::Zero { blocks: get.blocks(OBJECT_BLOCKS_MAX)? },
            },
            kind::READ => {
                let (object, ballot, id) = (get.object()?, get.ballot()?, get.u64("id")?);
                let blocks = get.blocks(OBJECT_BLOCKS_MAX)?;
                let data = get.bool("data")?;
                if data && blocks.count > OP_BLOCKS_MAX {
                    return Err(get.range("block count", u64::from(blocks.count)));
                }
                ToNode::Read { object, ballot, id, blocks, data }
            }
            kind::CONFIRM => {
                ToNode::Confirm { group: get.group()?, ballot: get.ballot()?, id: get.u64("id")? }
            }
            kind::FENCE => {
                ToNode::Fence { volume: VolumeId(get.u64("volume")?), generation: get.generation()? }
            }
            kind::OPEN => {
                ToNode::Open { group: get.group()?, ballot: get.ballot()?, epoch: Epoch(get.u64("epoch")?) }
            }
            kind::SETTLE => {
                let (group, ballot) = (get.group()?, get.ballot()?);
                let count = get.count("except count", GROUP_OBJECTS_MAX)?;
                ToNode::Settle { group, ballot, except: get.u32s("except", count)? }
            }
            kind::REPAIR => {
                let (object, ballot) = (get.object()?, get.ballot()?);
                let (from, upto) = (NodeId(get.u32("from")?), get.seq()?);
                let object_blocks = get.u32("object blocks")?;
                if object_blocks == 0 || object_blocks > OBJECT_BLOCKS_MAX {
                    return Err(get.range("object blocks", u64::from(object_blocks)));
                }
                ToNode::Repair { object, ballot, from, upto, object_blocks, urgent: get.bool("urgent")? }
            }
            kind => return Err(DecodeError::Kind { kind }),
        };
        get.end()?;
        Ok(msg)
    }
}
