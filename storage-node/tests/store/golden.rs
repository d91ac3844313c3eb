//! A device as this format's first release wrote it: every later one has to open it and find the same.
//!
//! `tests/golden/format-2.store` holds the blocks of a small device that are not zeros, after a history with every
//! kind of record, a snapshot, cleaning, a segment taken again, and the power gone in the middle of it. It is
//! written by `GOLDEN_WRITE=1 cargo test -p trefoil-storage-node --test store golden::`, and only
//! for a new version of the format.

use crate::model::{Model, data_op, head, object, write};
use serde::{Deserialize, Serialize};
use trefoil_core::message::{Line, WriteOp};
use trefoil_core::record::{Patch, Promise, Record};
use trefoil_core::*;
use trefoil_storage_node::device::sim::SimMedium;
use trefoil_storage_node::store::index::{Delta, Index, Meta};
use trefoil_storage_node::store::{
    IndexUse, ReadMode, Store, StoreEvent, StoreOptions, Superblock, format_device,
};

const SEGMENTS: u64 = 16;
const SIZE: u64 = (2 << 20) + SEGMENTS * (1 << 20);

/// There is none, and none can be kept: everything comes from the log.
struct NoIndex;

impl Index for NoIndex {
    fn load(&mut self, _: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String> {
        Ok(None)
    }
    fn discard(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn commit(&mut self, _: Delta) {}
    fn finished(&mut self) -> Option<Result<(), String>> {
        Some(Ok(()))
    }
}

#[derive(Serialize, Deserialize)]
enum Content {
    /// Eight bytes, again and again.
    Fill(u64),
    /// Bytes, and zeros behind them.
    Bytes(Vec<u8>),
}

fn path() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-2.store")
}

/// The records of the history, in order.
fn history() -> Vec<Record<bytes::Bytes>> {
    let mut records = Vec::new();
    let promise = |n: u64| Promise { ballot: Ballot(n << 20), epoch: Epoch(3) };
    let o = |index| object(1, index);
    let group = o(1).group;
    records.push(Record::Fence { volume: VolumeId(1), generation: Generation(7) });
    records.push(Record::Open { group, promised: promise(7), epoch: Epoch(3) });
    records.push(Record::Settle {
        group,
        settled: promise(7),
        add: vec![(4, Line::At(Ballot(5 << 20))), (900, Line::Lost)],
        remove: vec![2],
    });
    for n in 0..4u32 {
        records.push(write(object(2, n), u64::from(n) + 1, 10, &[77; 40]));
    }
    let mut seq = 10;
    // Over and over: what is overwritten is cleaned, and segments are taken again.
    for round in 0..30u64 {
        for index in 0..5u32 {
            seq += 1;
            let first = if round % 3 == 0 { 100 * index } else { 130 * (round as u32 % 7) };
            let fills: Vec<u64> =
                (0..60).map(|n| round << 32 | u64::from(index) << 16 | n | 1 << 60).collect();
            records.push(write(o(index), seq, first, &fills));
        }
        if round == 12 {
            records.push(Record::DeleteVolume { volume: VolumeId(2) });
        }
        if round == 20 {
            let blocks = BlockRange::new(100, 300);
            seq += 1;
            let op = WriteOp::Zero { blocks };
            records.push(Record::Write { object: o(1), head: head(seq), snap: 0, op });
        }
    }
    let (bytes, sum) = crate::model::block(o(3), 5, 55);
    let patch = Patch { blocks: vec![(5, sum), (6, 0)], data: bytes.into(), bad: vec![(7, 4242)] };
    let writes = vec![data_op(o(3), 8, &[88, 99])];
    records.push(Record::Install { object: o(3), head: head(seq + 1), patches: vec![patch], writes });
    let (bytes, checksum) = crate::model::block(o(3), 8, 88);
    records.push(Record::Heal { object: o(3), block: 8, checksum, data: bytes.into() });
    records.push(Record::LostState { fences: vec![(VolumeId(1), Generation(9))] });
    records
}

type Golden = Store<trefoil_storage_node::device::sim::SimDevice, NoIndex>;

fn open(medium: &SimMedium) -> (Golden, trefoil_storage_node::store::Recovered) {
    let options = StoreOptions { checkpoint_bytes: 1 << 20, ..StoreOptions::default() };
    let device = medium.device(1).expect("device");
    Store::open_on(device, NoIndex, options, &mut |_, _| ()).expect("opens")
}

fn make() -> Vec<(u64, Content)> {
    let medium = SimMedium::new(SIZE);
    let mut device = medium.device(1).expect("device");
    let sb =
        Superblock::new(SIZE, 1 << 20, Incarnation(0x601d), *b"golden format 2.", NodeId(3)).expect("large");
    format_device(&mut device, &sb).expect("formatted");
    drop(device);
    let (mut store, _) = open(&medium);
    let mut events = Vec::new();
    for (n, record) in (1..).zip(history()) {
        while !store.can_accept() {
            store.submit();
            store.poll(&mut events);
        }
        store.append(n, record);
        // One batch each, all of it durable before the next.
        for _ in 0..40 {
            store.submit();
            store.poll(&mut events);
        }
    }
    let stats = store.stats();
    assert!(stats.moved_blocks > 100 && stats.segments_freed > 5 && stats.snapshots > 1, "{stats:?}");
    assert_eq!(stats.pages_dead, 0);
    store.into_device().power_cut();
    let mut blocks = Vec::new();
    for n in 0..SIZE / 4096 {
        let bytes = medium.peek(n * 4096, 4096);
        let first = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let content = if bytes.chunks(8).all(|c| c == &bytes[..8]) {
            if first == 0 {
                continue;
            }
            Content::Fill(first)
        } else {
            let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
            Content::Bytes(bytes[..end].to_vec())
        };
        blocks.push((n, content));
    }
    blocks
}

#[test]
fn a_device_of_format_2_opens_and_holds_what_was_written() {
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        std::fs::write(path(), postcard::to_stdvec(&make()).expect("encodes")).expect("written");
    }
    let bytes = std::fs::read(path()).expect("the golden file is there");
    let blocks: Vec<(u64, Content)> = postcard::from_bytes(&bytes).expect("decodes");
    let medium = SimMedium::new(SIZE);
    for (n, content) in blocks {
        let mut block = match content {
            Content::Fill(fill) => fill.to_le_bytes().repeat(512),
            Content::Bytes(bytes) => bytes,
        };
        block.resize(4096, 0);
        medium.poke(n * 4096, &block);
    }
    let (mut store, recovered) = open(&medium);
    assert_eq!((recovered.lost, &recovered.how.index), (None, &IndexUse::Missing));
    assert!(recovered.how.damage.is_empty(), "{:?}", recovered.how);
    let mut expected = Model::default();
    history().iter().for_each(|record| expected.apply(record));
    assert_eq!(recovered.durable, expected.durable);
    let audit = store.audit();
    assert!(audit.is_clean(), "{audit:?}");
    for index in 0..5 {
        let (o, range) = (object(1, index), BlockRange::new(0, 1024));
        store.read(1, o, range, ReadMode::All);
        let mut events = Vec::new();
        while !matches!(events.last(), Some(StoreEvent::Read { .. })) {
            store.submit();
            store.poll(&mut events);
        }
        let Some(StoreEvent::Read { checksums, data, bad, .. }) = events.last() else {
            panic!("{events:?}");
        };
        let seen = crate::model::decode(o, range, checksums, data, bad).expect("good");
        assert_eq!(seen, expected.range(o, range), "{o}");
    }
}
