//! Decodes messages of one direction from any bytes. What decodes must encode to the same bytes: there
//! is one form of each message.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use trefoil_core::message::FromNode;
use trefoil_core::wire::messages::Message;

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk::<3>() else { return };
    let kind = u16::from_le_bytes([head[0], head[1]]);
    // Up to 3 blocks of payload, made here so that the fuzzer spends its bytes on the message.
    let payload = Bytes::from(vec![head[2]; usize::from(head[2] % 4) * 4096]);
    let Ok(msg) = FromNode::decode(kind, rest, payload.clone()) else { return };
    let mut meta = BytesMut::new();
    msg.encode_meta(&mut meta);
    assert_eq!((msg.kind(), &meta[..], msg.payload().unwrap_or_default()), (kind, rest, payload));
});
