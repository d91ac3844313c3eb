//! The layer between bytes and blocks: requests of any range, answers of any shape. No panic, every
//! request answered once, limits kept.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use trefoil_core::client::{OpDone, OpError, OpOutput};
use trefoil_core::ids::VolumeId;
use trefoil_nbd::blocks::{BlockLayer, OPS_MAX};
use trefoil_nbd::disk::{Completions, ConnId, DiskOp, DiskRequest};

fuzz_target!(|input: &[u8]| {
    let Ok(mut layer) = BlockLayer::new(VolumeId(1), 1_000_001, 64 << 10) else { return };
    let conn = Completions::new(ConnId(1));
    let (mut ops, mut asked, mut done) = (Vec::new(), 0u64, Vec::new());
    for step in input.chunks_exact(8) {
        let number = |at: usize| u32::from_le_bytes([step[at], step[at + 1], step[at + 2], 0]);
        let (offset, len) = (u64::from(number(1)), number(4) % 300_000);
        let (no_hole, fua) = (step[7] & 1 == 1, false);
        let op = match step[0] % 8 {
            0 => Some(DiskOp::Read { offset, len }),
            1 => Some(DiskOp::Write { offset, data: vec![step[7]; len as usize].into(), fua }),
            2 => Some(DiskOp::Zero { offset, len, no_hole, fua }),
            3 => Some(DiskOp::Trim { offset, len, fua }),
            4 => Some(DiskOp::Status { offset, len }),
            _ => None,
        };
        if let Some(op) = op {
            asked += 1;
            layer.submit(&mut vec![DiskRequest { token: asked, reply_to: conn.clone(), op }]);
        } else if !ops.is_empty() {
            let op: trefoil_core::client::ClientOp<Bytes> = ops.swap_remove(number(1) as usize % ops.len());
            let result = match step[7] % 4 {
                0 => Err(OpError::Bad),
                1 => Ok(OpOutput::Written),
                2 => {
                    let checksums = vec![0; op.kind.blocks().count as usize].into();
                    Ok(OpOutput::Read { checksums, data: Bytes::new() })
                }
                _ => Ok(OpOutput::Read {
                    checksums: vec![u64::from(number(4)); step[3] as usize].into(),
                    data: vec![1; number(4) as usize % 9000].into(),
                }),
            };
            layer.complete(OpDone { id: op.id, result });
        }
        layer.take_ops(&mut ops);
        assert!(layer.ops_pending() <= OPS_MAX);
    }
    while let Some(op) = ops.pop() {
        layer.complete(OpDone { id: op.id, result: Err(OpError::Bad) });
        layer.take_ops(&mut ops);
    }
    conn.take(&mut done);
    assert_eq!((done.len() as u64, layer.requests_pending(), layer.ops_pending()), (asked, 0, 0));
});
