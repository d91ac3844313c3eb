//! The front end without its leader: NBD requests and replies, and the block layer.

use crate::block;
use crate::count::{case, measured};
use bytes::{BufMut, Bytes, BytesMut};
use std::io::IoSlice;
use trefoil_core::VolumeId;
use trefoil_core::checksum::block_checksum;
use trefoil_core::client::{ClientOp, OpDone, OpKind, OpOutput};
use trefoil_nbd::blocks::BlockLayer;
use trefoil_nbd::disk::{Chunk, Chunks, Completions, ConnId, DiskOp, DiskReply, DiskRequest, ExportInfo};
use trefoil_nbd::proto::wire::{self, cmd, opt};
use trefoil_nbd::proto::{Event, Limits, Session};

const SIZE: u64 = 1 << 30;
const OBJECT_SIZE: u64 = 4 << 20;

pub fn cases() {
    nbd("nbd: request and reply, write 4k", 256, cmd::WRITE, 4096);
    nbd("nbd: request and reply, read 4k", 256, cmd::READ, 4096);
    nbd("nbd: request and reply, write 1M", 32, cmd::WRITE, 1 << 20);
    layer("block layer: write 4k", 256, 1, true);
    layer("block layer: read 4k", 256, 1, false);
    layer("block layer: write 1M", 32, 256, true);
    layer("block layer: read 1M", 32, 256, false);
}

fn in_transmission() -> Session {
    let mut session = Session::new(Limits::default());
    let mut hello = BytesMut::new();
    hello.put_u32(u32::from(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES));
    hello.put_u64(wire::MAGIC_OPTION);
    hello.put_u32(opt::STRUCTURED_REPLY);
    hello.put_u32(0);
    hello.put_u64(wire::MAGIC_OPTION);
    hello.put_u32(opt::GO);
    hello.put_u32(6);
    hello.put_u32(0);
    hello.put_u16(0);
    assert!(matches!(session.feed(&mut hello), Some(Event::Lookup(..))));
    session.answer_lookup(Ok(ExportInfo { size_bytes: SIZE, ..ExportInfo::default() }));
    assert!(session.in_transmission());
    session.outbox().take();
    session
}

fn nbd(name: &str, operations: u32, command: u16, len: u32) {
    let mut session = in_transmission();
    let payload: Bytes = (0..len / 4096).flat_map(|n| block(n as u8)).collect();
    let mut buffer = BytesMut::new();
    case(name, operations, |n, counts| {
        buffer.reserve(256 << 10);
        buffer.put_u32(wire::MAGIC_REQUEST);
        buffer.put_u16(0);
        buffer.put_u16(command);
        buffer.put_u64(u64::from(n));
        buffer.put_u64(u64::from(n % 64) * 4096);
        buffer.put_u32(len);
        if command == cmd::WRITE {
            buffer.put_slice(&payload);
        }
        let event = measured(counts, || session.feed(&mut buffer));
        let Some(Event::Request(token, op)) = event else { panic!("a request, not {event:?}") };
        drop(op);
        let reply = match command {
            cmd::READ => DiskReply::Data(Chunks::from(Chunk::Data(payload.clone()))),
            _ => DiskReply::Done,
        };
        let sent = measured(counts, || {
            session.complete((token, Ok(reply)));
            let mut slices = [IoSlice::new(&[]); 16];
            let filled = session.outbox().fill(&mut slices);
            let bytes = slices[..filled].iter().map(|s| s.len()).sum();
            session.outbox().sent(bytes);
            bytes
        });
        assert!(sent >= 16 && session.outbox().is_empty());
    });
}

fn layer(name: &str, operations: u32, blocks: u32, write: bool) {
    let volume = VolumeId(7);
    let mut layer = BlockLayer::new(volume, SIZE, OBJECT_SIZE).expect("a possible shape");
    let reply_to = Completions::new(ConnId(1));
    let (mut batch, mut ops, mut done): (_, Vec<ClientOp<Bytes>>, _) = (Vec::new(), Vec::new(), Vec::new());
    let data: Bytes = (0..blocks).flat_map(|n| block(n as u8)).collect();
    case(name, operations, |n, counts| {
        let offset = u64::from(n % 4) * (1 << 20);
        let op = match write {
            true => DiskOp::Write { offset, data: data.clone(), fua: false },
            false => DiskOp::Read { offset, len: blocks * 4096 },
        };
        batch.push(DiskRequest { token: u64::from(n), reply_to: reply_to.clone(), op });
        measured(counts, || {
            layer.submit(&mut batch);
            layer.take_ops(&mut ops);
        });
        let op = ops.pop().expect("an operation");
        let output = match op.kind {
            OpKind::Write { .. } => OpOutput::Written,
            OpKind::Read { blocks } => OpOutput::Read {
                checksums: (blocks.first..)
                    .zip(data.chunks(4096))
                    .map(|(block, bytes)| block_checksum(volume, op.object, block, bytes))
                    .collect(),
                data: data.clone(),
            },
            other => panic!("{other:?}"),
        };
        measured(counts, || {
            layer.complete(OpDone { id: op.id, result: Ok(output) });
            reply_to.take(&mut done);
        });
        let (token, result) = done.pop().expect("an answer");
        assert!(token == u64::from(n) && result.is_ok());
    });
}
