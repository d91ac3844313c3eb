//! What the tests of the offline tool share: stores in temporary files, filled with records and damaged.

// The tests of the command line use a part of it, too (`tests/cli/store.rs`).
#![allow(dead_code)]

use bytes::Bytes;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::{Line, WriteOp};
use trefoil_core::record::{Promise, Record};
use trefoil_core::*;
use trefoil_storage_node::device::file::Engine;
use trefoil_storage_node::offline::{OfflineError, OfflineStore};
use trefoil_storage_node::store::{FormatOptions, Recovered, Store, StoreEvent, StoreOptions, format};

/// Bytes of a device: the least that a store can have, sparse.
pub const SIZE: u64 = (2 << 20) + (12 << 25);
/// The cluster.
pub const CLUSTER: [u8; 16] = [9; 16];

/// A store in a directory.
pub struct TestStore {
    pub dir: tempfile::TempDir,
    pub incarnation: Incarnation,
}

impl TestStore {
    /// A new one.
    pub fn new() -> TestStore {
        TestStore::of(CLUSTER)
    }

    /// A new one of a cluster.
    pub fn of(cluster_id: [u8; 16]) -> TestStore {
        let dir = tempfile::tempdir().expect("directory");
        let options = FormatOptions {
            size: Some(SIZE),
            cluster_id,
            node_id: NodeId(u32::MAX),
            segment_bytes: Some(32 << 20),
            preallocate: false,
            force: false,
        };
        let sb = format(&dir.path().join("device"), &options).expect("formatted");
        TestStore { dir, incarnation: sb.incarnation }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    pub fn index(&self) -> PathBuf {
        self.dir.path().join("index")
    }

    /// Opens it as a storage node does.
    pub fn start(&self) -> (Store, Recovered) {
        let options = StoreOptions { engine: Engine::Blocking, ..StoreOptions::default() };
        Store::open(&self.path(), &self.index(), options, &mut |_, _| ()).expect("opens")
    }

    /// Takes records, makes them durable, and ends; with a checkpoint, or as a crash does.
    pub fn take(&self, records: Vec<Record<Bytes>>, checkpoint: bool) {
        let (mut store, _) = self.start();
        append(&mut store, records);
        if checkpoint {
            store.shutdown().expect("shut down");
        }
    }

    pub fn offline(&self) -> OfflineStore {
        self.try_offline().expect("it can be looked at")
    }

    pub fn try_offline(&self) -> Result<OfflineStore, OfflineError> {
        OfflineStore::open(&self.path(), &mut |_, _| ())
    }

    /// Changes a byte.
    pub fn flip(&self, byte: u64) {
        let path = self.path();
        let file = std::fs::File::options().read(true).write(true).open(path).expect("opened");
        let mut it = [0];
        file.read_exact_at(&mut it, byte).expect("read");
        it[0] ^= 0x40;
        file.write_all_at(&it, byte).expect("written");
    }

    /// Where a block of an object is, in bytes.
    pub fn place(&self, object: ObjectId, block: u32) -> u64 {
        let runs = self.offline().runs(object);
        let inside =
            |run: &&trefoil_storage_node::offline::Run| (run.first..run.first + run.count).contains(&block);
        let run = runs.iter().find(inside).expect("the block is there");
        run.byte.expect("it has a place") + u64::from(block - run.first) * 4096
    }
}

/// Appends records and waits until they are durable.
pub fn append(store: &mut Store, records: Vec<Record<Bytes>>) {
    let last = records.len() as u64;
    let mut events = Vec::new();
    let mut next = (1..).zip(records).peekable();
    let mut durable = 0;
    while durable < last {
        while store.can_accept() {
            let Some((ticket, record)) = next.next() else { break };
            store.append(ticket, record);
        }
        store.submit();
        store.poll(&mut events);
        for event in events.drain(..) {
            match event {
                StoreEvent::Durable { up_to_ticket } => durable = up_to_ticket,
                other => panic!("{other:?}"),
            }
        }
        std::thread::yield_now();
    }
}

pub fn group(volume: u64, pg: u32) -> GroupId {
    GroupId { volume: VolumeId(volume), pg: PgId { pool: PoolId(1), pg } }
}

pub fn object(group: GroupId, index: u32) -> ObjectId {
    ObjectId { group, index }
}

pub fn ballot(generation: u64, round: u64) -> Ballot {
    Ballot::new(Generation(generation), round).expect("fits")
}

/// A node joins a ballot's line: Open and Settle.
pub fn join(group: GroupId, at: Ballot, add: &[(u32, Line)], remove: &[u32]) -> Vec<Record<Bytes>> {
    let promised = Promise { ballot: at, epoch: Epoch(1) };
    vec![
        Record::Open { group, promised, epoch: Epoch(1) },
        Record::Settle { group, settled: promised, add: add.to_vec(), remove: remove.to_vec() },
    ]
}

/// The bytes of a block that was written with this mark.
pub fn bytes(mark: u64) -> Vec<u8> {
    (mark | 1 << 63).to_le_bytes().repeat(BLOCK_SIZE / 8)
}

pub fn sum(object: ObjectId, block: u32, mark: u64) -> u64 {
    block_checksum(object.group.volume, object.index, block, &bytes(mark))
}

/// A write of consecutive blocks, each with its mark.
pub fn write(object: ObjectId, at: Ballot, seq: u64, first: u32, marks: &[u64]) -> Record<Bytes> {
    Record::Write {
        object,
        head: Head { ballot: at, seq },
        snap: 0,
        op: WriteOp::Data {
            blocks: BlockRange::new(first, marks.len() as u32),
            checksums: (first..).zip(marks).map(|(block, mark)| sum(object, block, *mark)).collect(),
            data: marks.iter().flat_map(|mark| bytes(*mark)).collect(),
        },
    }
}

/// The mark of each block of an image; 0 for zeros, `None` for anything else.
pub fn marks(image: &Path) -> Vec<Option<u64>> {
    let image = std::fs::read(image).expect("an image");
    let mark = |block: &[u8]| {
        let first = u64::from_le_bytes(*block.first_chunk().expect("a block"));
        let mark = first & !(1 << 63);
        if block.iter().all(|byte| *byte == 0) { Some(0) } else { (block == bytes(mark)).then_some(mark) }
    };
    image.chunks(BLOCK_SIZE).map(mark).collect()
}
