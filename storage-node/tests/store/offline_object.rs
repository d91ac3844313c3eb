//! One store, looked at offline: what is shown is what a running store has, nothing is written, and what
//! is damaged is named with its place.

use crate::offline_common::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use trefoil_core::message::{Line, WriteOp};
use trefoil_core::record::{Patch, Record};
use trefoil_core::*;
use trefoil_storage_node::offline::{Block, ExportError, OfflineError, ReadOnlyError, SparseFile};
use trefoil_storage_node::store::{ReadMode, StoreEvent, SuperblockError};

fn x() -> ObjectId {
    object(group(1, 3), 7)
}

/// Writes over page borders, a hole, a repair with a bad block, and more after a checkpoint, so that some
/// changes wait on pages and some pages are in the log.
fn filled() -> TestStore {
    let store = TestStore::new();
    let b = ballot(2, 0);
    let marks: Vec<u64> = (1..=20).collect();
    let mut records = join(x().group, b, &[], &[]);
    records.push(Record::Fence { volume: VolumeId(1), generation: Generation(2) });
    records.push(write(x(), b, 1, 250, &marks));
    records.push(write(object(x().group, 8), b, 1, 0, &[40]));
    records.extend(join(group(5, 1), b, &[(3, Line::At(ballot(1, 0))), (4, Line::Lost)], &[]));
    store.take(records, true);
    let zero = WriteOp::Zero { blocks: BlockRange::new(255, 2) };
    let head = |seq| Head { ballot: b, seq };
    let patch = Patch { blocks: vec![(9, sum(x(), 9, 77))], data: bytes(77).into(), bad: vec![(10, 0xabc)] };
    let again = vec![
        Record::Write { object: x(), head: head(2), snap: 0, op: zero },
        Record::Install { object: x(), head: head(3), patches: vec![patch], writes: Vec::new() },
        write(x(), b, 4, 260, &[99]),
    ];
    store.take(again, false);
    store
}

/// What the device holds at its front, where all of these tests write, as a number.
fn fingerprint(store: &TestStore) -> u64 {
    let mut bytes = vec![0; 130 << 20];
    std::fs::File::open(store.path()).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("read");
    trefoil_crc::crc64(&bytes)
}

/// Everything that a running store says of an object's blocks: bytes' first words, checksums, bad ones.
fn as_running(store: &TestStore, object: ObjectId, blocks: u32) -> (Vec<u64>, Vec<u32>) {
    let (mut store, _) = store.start();
    store.read(1, object, BlockRange::new(0, blocks), ReadMode::All);
    let mut events = Vec::new();
    loop {
        store.submit();
        store.poll(&mut events);
        for event in events.drain(..) {
            if let StoreEvent::Read { checksums, bad, .. } = event {
                return (checksums.to_vec(), bad);
            }
        }
    }
}

#[test]
fn it_shows_what_a_running_store_has_and_writes_nothing() {
    let store = filled();
    let before = fingerprint(&store);
    let offline = store.offline();
    let info = offline.info();
    assert!(!info.is_damaged(), "{info:?}");
    assert_eq!((info.volumes.len(), info.groups, info.objects), (2, 2, 2));
    assert_eq!((info.volumes[0].volume, info.volumes[0].fence, info.volumes[0].objects), (1, Some(2), 2));
    assert_eq!((info.volumes[1].volume, info.volumes[1].behind), (5, 2));
    assert_eq!(info.bare.node, None);
    let objects: Vec<String> = offline.objects().iter().map(ObjectId::to_string).collect();
    assert_eq!(objects, ["vol1/1.3/7", "vol1/1.3/8", "vol5/1.1/3", "vol5/1.1/4"]);
    let table = offline.table(x());
    let durable = offline.durable().clone();
    let runs = offline.runs(x());
    assert_eq!(
        runs.iter().map(|run| (run.first, run.count, run.byte.is_some())).collect::<Vec<_>>(),
        [(9, 1, true), (10, 1, false), (250, 5, true), (257, 3, true), (260, 1, true), (261, 9, true)]
    );
    assert!(matches!(offline.try_start(&store), Err(())), "a storage node cannot start meanwhile");
    drop(offline);
    assert_eq!(fingerprint(&store), before, "nothing was written");
    // The same as the running store says, which writes its Start record.
    let (checksums, bad) = as_running(&store, x(), 512);
    let sums: Vec<u64> = (0..512)
        .map(|block| match table.block(block) {
            Block::Hole => 0,
            Block::Bad(sum) => sum.unwrap_or(u64::MAX),
            Block::There(entry) => entry.checksum,
        })
        .collect();
    assert_eq!(sums, checksums);
    assert_eq!(bad, [10]);
    assert_eq!(store.start().1.durable, durable);
}

trait TryStart {
    fn try_start(&self, store: &TestStore) -> Result<(), ()>;
}

impl TryStart for trefoil_storage_node::offline::OfflineStore {
    fn try_start(&self, store: &TestStore) -> Result<(), ()> {
        let raw = trefoil_storage_node::device::file::RawDevice::open(&store.path(), false);
        raw.map(|_| ()).map_err(|_| ())
    }
}

#[test]
fn a_store_in_use_or_of_others_is_refused_in_clear_words() {
    let store = TestStore::new();
    let (running, _) = store.start();
    let refused = store.try_offline().err().expect("refused");
    assert!(matches!(refused, OfflineError::Device(ReadOnlyError::InUse { .. })));
    assert!(refused.to_string().ends_with("is in use: stop the storage node first"), "{refused}");
    drop(running);
    // One copy of the superblock is enough, and the other one is told.
    store.flip(20);
    let info = store.offline().info();
    assert!(info.is_damaged() && info.bare.superblocks[0].damage.is_some(), "{info:?}");
    assert!(info.bare.superblocks[1].damage.is_none());
    store.flip((1 << 20) + 20);
    let refused = store.try_offline().err().expect("refused");
    assert!(matches!(refused, OfflineError::Superblock(SuperblockError::Damaged { .. })), "{refused}");
}

#[test]
fn an_export_has_holes_for_what_is_bad_and_names_it() {
    let store = filled();
    let out = store.dir.path().join("object.raw");
    let report = store.offline().export(x(), &out, Some(4 << 20), false).expect("exported");
    assert_eq!((report.size_bytes, report.blocks, report.bad), (4 << 20, 19, 1));
    assert_eq!((report.bad_blocks[0].block, report.bad_blocks[0].byte), (10, None));
    let mut expected = vec![Some(0); 1024];
    expected[9] = Some(77);
    for block in (250..270).filter(|block| !(255..257).contains(block)) {
        expected[block] = Some(block as u64 - 249);
    }
    expected[260] = Some(99);
    assert_eq!(marks(&out), expected);
    let meta = out.metadata().expect("a file");
    assert!(meta.blocks() * 512 < 1 << 20, "sparse: {} bytes", meta.blocks() * 512);

    // Rot in one block, and the damaged page of a whole object.
    let rotten = store.place(x(), 252);
    store.flip(rotten + 5);
    let again = store.offline().export(x(), &out, None, false);
    assert!(matches!(again, Err(ExportError::Exists(_))), "{again:?}");
    let report = store.offline().export(x(), &out, None, true).expect("exported");
    assert_eq!((report.size_bytes, report.bad), (270 * 4096, 2));
    let bad: BTreeMap<u32, Option<u64>> = report.bad_blocks.iter().map(|bad| (bad.block, bad.byte)).collect();
    assert_eq!(bad, BTreeMap::from([(10, None), (252, Some(rotten))]));
    expected[252] = Some(0);
    assert_eq!(marks(&out), expected[..270]);
    let other_store = TestStore::new();
    let slip = store.offline().export(x(), &other_store.path(), None, true);
    assert!(matches!(slip, Err(ExportError::Store(_))), "{slip:?}");
    assert!(!other_store.offline().info().is_damaged());
    // Nor one that has lost its first signature: such a device is what is being looked at offline.
    let whole = fingerprint(&other_store);
    for at in [3, (1 << 20) + 3] {
        other_store.flip(at);
        let slip = store.offline().export(x(), &other_store.path(), None, true);
        assert!(matches!(slip, Err(ExportError::Store(_))), "{slip:?}");
    }
    [3, (1 << 20) + 3].into_iter().for_each(|at| other_store.flip(at));
    assert_eq!(fingerprint(&other_store), whole, "nothing was written");
    let other = object(group(1, 3), 99);
    let none = store.offline().export(other, &store.dir.path().join("none"), None, false);
    assert!(matches!(none, Err(ExportError::NoObject { .. })), "{none:?}");
    assert!(!store.dir.path().join("none").exists());
}

#[test]
fn a_damaged_page_loses_what_it_says_and_nothing_else() {
    let store = filled();
    let mut dump = Vec::new();
    store.offline().dump(&mut dump).expect("dumped");
    let lines: Vec<Value> = serde_json::Deserializer::from_slice(&dump)
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("lines of JSON");
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((of("store"), of("fence"), of("pg"), of("group"), of("object")), (1, 1, 2, 2, 4));
    let line = lines.iter().find(|line| line["object"] == "vol1/1.3/7").expect("the object");
    assert_eq!(line["head"], serde_json::json!({ "generation": 2, "round": 0, "seq": 4 }));
    // Blocks 256.. are in the second page, which the checkpoint has written.
    store.flip(line["pages"][1]["byte"].as_u64().expect("a place") + 100);
    let table = store.offline().table(x());
    assert_eq!(table.lost, [BlockRange::new(256, 256)]);
    assert_eq!(table.block(252), store.offline().table(x()).block(252));
    assert!(matches!(table.block(252), Block::There(_)));
    assert_eq!(table.block(256), Block::Hole, "zeroed after the checkpoint");
    assert_eq!(table.block(257), Block::Bad(None));
    assert_eq!(table.block(400), Block::Bad(None), "it may have been a hole; nobody knows");
    assert!(matches!(table.block(260), Block::There(_)), "written after the checkpoint");
    let out = store.dir.path().join("object.raw");
    let report = store.offline().export(x(), &out, None, false).expect("exported");
    assert_eq!(report.bad, 1 + 256 - 2);
    assert_eq!(marks(&out)[260], Some(99));
}

#[test]
fn half_an_image_is_not_left_to_be_taken_for_one() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image");
    let half = |force| {
        let mut file = SparseFile::create(&path, 1 << 20, force).expect("made");
        file.put(0, &bytes(5)).expect("written");
    };
    half(false);
    assert!(!path.exists(), "it was made here");
    std::fs::write(&path, bytes(7)).expect("written");
    half(true);
    assert_eq!(path.metadata().expect("it was there before").len(), 0);
}
