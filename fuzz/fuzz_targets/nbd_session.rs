//! The NBD codec: arbitrary bytes in arbitrary pieces. No panic, nothing unbounded, and the pieces
//! change nothing.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use trefoil_nbd::disk::{Chunk, DiskError, DiskOp, DiskReply, ExportInfo, Extent, OpenError};
use trefoil_nbd::proto::{Event, Limits, Session};

fn run(limits: &Limits, pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
    let mut session = Session::new(limits.clone());
    let (mut buf, mut seen, mut sent) = (BytesMut::new(), Vec::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            while let Some(event) = session.feed(&mut buf) {
                seen.push(format!("{event:?}"));
                match event {
                    Event::List => session.answer_list(&["a".into(), String::new()]),
                    Event::Lookup(_, name) => {
                        let info = ExportInfo { size_bytes: 1 << 20, ..ExportInfo::default() };
                        let known = name.len() < 3;
                        session.answer_lookup(known.then_some(info).ok_or(OpenError::ShuttingDown));
                    }
                    Event::Request(token, op) => {
                        let reply = match op {
                            DiskOp::Read { offset, .. } if offset % 7 == 6 => Err(DiskError::Io),
                            DiskOp::Read { len, .. } => Ok(DiskReply::Data(Chunk::Hole(len).into())),
                            DiskOp::Status { len, .. } => {
                                Ok(DiskReply::Extents(vec![Extent { len, hole: true }]))
                            }
                            _ => Ok(DiskReply::Done),
                        };
                        session.complete((token, reply));
                    }
                    Event::Close(_) => {}
                }
                assert!(session.bytes_held() <= limits.bytes_max + (1 << 20));
            }
            let more = session.outbox().take();
            if more.is_empty() {
                break;
            }
            sent.extend(more);
        }
        assert!(session.bytes_missing() <= limits.payload_bytes_max as usize + 28);
    }
    (seen, sent)
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first().filter(|(_, bytes)| !bytes.is_empty()) else {
        return;
    };
    let limits = Limits {
        payload_bytes_max: 1 << 16,
        skipped_bytes_max: 1 << 17,
        bytes_max: 1 << 18,
        requests_max: 8,
        ..Limits::default()
    };
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(cut) + 1).collect();
    assert_eq!(run(&limits, &pieces), run(&limits, &[bytes]));
});
