//! Frames, messages and checksums.

use crate::block;
use crate::count::{case, measured};
use bytes::{BufMut, Bytes, BytesMut};
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::{FromNode, ToNode, WriteOp};
use trefoil_core::wire::frame::{self, Decoder};
use trefoil_core::wire::messages::Message;
use trefoil_core::*;

const VOLUME: VolumeId = VolumeId(7);
/// Frames in one batch.
const BATCH: u32 = 32;

pub fn group() -> GroupId {
    GroupId { volume: VOLUME, pg: PgId { pool: PoolId(1), pg: 5 } }
}

fn object() -> ObjectId {
    ObjectId { group: group(), index: 3 }
}

fn blocks(count: u32) -> (Bytes, Box<[u64]>) {
    let data: Bytes = (0..count).flat_map(|n| block(n as u8)).collect();
    let sums = data.chunks(BLOCK_SIZE).zip(0..).map(|(bytes, n)| block_checksum(VOLUME, 3, n, bytes));
    let sums = sums.collect();
    (data, sums)
}

fn write(count: u32) -> ToNode<Bytes> {
    let (data, checksums) = blocks(count);
    let op = WriteOp::Data { blocks: BlockRange::new(0, count), checksums, data };
    ToNode::Write { object: object(), ballot: Ballot(1 << 20), seq: 9, snap: 0, op }
}

fn data(count: u32) -> FromNode<Bytes> {
    let (data, checksums) = blocks(count);
    FromNode::Data { group: group(), id: 77, checksums, data }
}

pub fn cases() {
    let read = ToNode::Read {
        object: object(),
        ballot: Ballot(1 << 20),
        id: 77,
        blocks: BlockRange::new(3, 1),
        data: true,
    };
    let have = FromNode::<Bytes>::Have { object: object(), ballot: Ballot(1 << 20), seq: 9, full: false };
    both("write 4k", 256, &write(1));
    both("write 1M", 32, &write(256));
    both("read 4k", 256, &read);
    both("have", 256, &have);
    both("data 4k", 256, &data(1));
    both("data 1M", 32, &data(256));
    let bytes = block(1);
    case("checksum: block of 4k", 256, |n, counts| {
        measured(counts, || block_checksum(VOLUME, 3, n, &bytes));
    });
}

fn both<M: Message + PartialEq + std::fmt::Debug>(name: &str, operations: u32, message: &M) {
    let mut arena = BytesMut::with_capacity(1 << 20);
    let encode = |arena: &mut BytesMut| {
        let start = frame::begin(arena);
        message.encode_meta(arena);
        let payload = message.payload();
        let len = payload.as_ref().map_or(0, Bytes::len);
        assert!(frame::finish(arena, start, message.kind(), len).is_ok());
        payload
    };
    case(&format!("wire: encode {name}"), operations, |_, counts| {
        arena.clear();
        measured(counts, || encode(&mut arena));
    });

    // As they come out of a socket: a batch in one buffer.
    let payload = encode({
        arena.clear();
        &mut arena
    });
    let mut one = arena.to_vec();
    one.put_slice(&payload.unwrap_or_default());
    let batch = if one.len() > 1 << 16 { 1 } else { BATCH };
    let mut left = 0;
    let mut buffer = BytesMut::new();
    let mut decoder = Decoder::new();
    case(&format!("wire: decode {name}"), operations, |_, counts| {
        if left == 0 {
            left = batch;
            buffer = BytesMut::with_capacity(one.len() * batch as usize);
            (0..batch).for_each(|_| buffer.put_slice(&one));
        }
        left -= 1;
        let found = measured(counts, || {
            let frame = decoder.decode(&mut buffer).ok().flatten()?;
            M::decode(frame.kind, &frame.meta, frame.payload).ok()
        });
        assert_eq!(found.as_ref(), Some(message));
    });
}
