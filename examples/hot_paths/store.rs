//! A storage node's store on a device in memory, whose own work does not count.

use crate::count::{case, measured, paused};
use bytes::Bytes;
use std::io;
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::device::wake::Waker;
use trefoil_storage_node::device::{Completion, Device, Op};
use trefoil_storage_node::store::index::{Delta, Index, Meta};
use trefoil_storage_node::store::{ReadMode, Store, StoreEvent, StoreOptions, Superblock, format_device};

const SIZE: u64 = 512 << 20;
const SEGMENT: u64 = 32 << 20;
const OBJECTS: u32 = 16;
const VOLUME: VolumeId = VolumeId(7);

/// Every operation has ended when it is asked for.
struct Memory {
    bytes: Vec<u8>,
    started: Vec<(u64, Op)>,
    waker: Waker,
}

impl Device for Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn name(&self) -> &str {
        "memory"
    }
    fn start(&mut self, id: u64, op: Op) {
        paused(|| self.started.push((id, op)));
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completions(&mut self, out: &mut Vec<Completion>) {
        paused(|| {
            for (id, op) in self.started.drain(..) {
                let buf = match op {
                    Op::Read { offset, mut buf } => {
                        let len = buf.len();
                        buf.copy_from_slice(&self.bytes[offset as usize..][..len]);
                        Some(buf)
                    }
                    Op::Write { offset, bufs, .. } => {
                        let mut at = offset as usize;
                        for buf in bufs {
                            self.bytes[at..][..buf.len()].copy_from_slice(&buf);
                            at += buf.len();
                        }
                        None
                    }
                    Op::Discard { .. } | Op::Zero { .. } => None,
                };
                out.push(Completion { id, result: Ok(()), buf });
            }
        });
    }
    fn in_flight(&self) -> usize {
        self.started.len()
    }
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_now(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn waker(&self) -> &Waker {
        &self.waker
    }
}

/// No index: nothing here lives as long as a checkpoint.
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

struct Case {
    store: Store<Memory, NoIndex>,
    events: Vec<StoreEvent>,
    ticket: u64,
    data: Bytes,
}

impl Case {
    fn new() -> Case {
        let waker = Waker::new().expect("an eventfd");
        let mut device = Memory { bytes: vec![0; SIZE as usize], started: Vec::new(), waker };
        let sb = Superblock::new(SIZE, SEGMENT, Incarnation(5), [3; 16], NodeId(1)).expect("large enough");
        format_device(&mut device, &sb).expect("formatted");
        let (store, _) =
            Store::open_on(device, NoIndex, StoreOptions::default(), &mut |_, _| ()).expect("opens");
        let data = (0..256u32).flat_map(|n| crate::block(n as u8)).collect();
        let mut case = Case { store, events: Vec::new(), ticket: 0, data };
        for n in 0..OBJECTS {
            case.write(n, 1, 256, false);
        }
        case
    }

    fn object(n: u32) -> ObjectId {
        let group = GroupId { volume: VOLUME, pg: PgId { pool: PoolId(1), pg: n % 4 } };
        ObjectId { group, index: n % OBJECTS }
    }

    fn record(&mut self, n: u32, blocks: u32) -> Record<Bytes> {
        let object = Case::object(n);
        let blocks = BlockRange::new(if blocks == 1 { n % 256 } else { 0 }, blocks);
        let data = self.data.slice(..blocks.count as usize * BLOCK_SIZE);
        let sums = (blocks.first..).zip(data.chunks(BLOCK_SIZE));
        let checksums = sums.map(|(b, bytes)| block_checksum(VOLUME, object.index, b, bytes)).collect();
        self.ticket += 1;
        let head = Head { ballot: Ballot(1 << 20), seq: self.ticket };
        Record::Write { object, head, snap: 0, op: WriteOp::Data { blocks, checksums, data } }
    }

    /// Writes at once: appended, sealed, written, reported.
    fn write(&mut self, n: u32, depth: u32, blocks: u32, counts: bool) {
        let mut records = Vec::new();
        for k in 0..depth {
            let record = self.record(n + k, blocks);
            records.push((self.ticket, record));
        }
        measured(counts, || {
            for (ticket, record) in records.drain(..) {
                self.store.append(ticket, record);
            }
            self.store.submit();
        });
        // A segment's end may lie in between: then it takes two batches.
        while self.events.is_empty() {
            measured(counts, || {
                self.store.poll(&mut self.events);
                self.store.submit();
            });
        }
        match self.events.drain(..).last() {
            Some(StoreEvent::Durable { up_to_ticket }) => assert_eq!(up_to_ticket, self.ticket),
            other => panic!("not durable: {other:?}"),
        }
    }

    fn read(&mut self, n: u32, depth: u32, blocks: u32, counts: bool) {
        measured(counts, || {
            for k in 0..depth {
                let first = if blocks == 1 { (n + k) % 256 } else { 0 };
                let blocks = BlockRange::new(first, blocks);
                self.store.read(u64::from(n + k), Case::object(n + k), blocks, ReadMode::All);
            }
            self.store.submit();
        });
        measured(counts, || {
            self.store.poll(&mut self.events);
            self.store.submit();
        });
        let mut read = 0;
        for event in self.events.drain(..) {
            match event {
                StoreEvent::Read { data, bad, .. } => {
                    assert!(bad.is_empty() && data.len() == blocks as usize * BLOCK_SIZE);
                    read += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(read, depth);
    }
}

pub fn cases() {
    let mut it = Case::new();
    for (name, operations, depth, blocks) in
        [("4k, depth 1", 256, 1, 1), ("4k, depth 32", 256, 32, 1), ("1M", 32, 1, 256)]
    {
        let mut left = 0;
        case(&format!("store: write {name}"), operations, |n, counts| {
            if left == 0 {
                left = depth;
                it.write(n, depth, blocks, counts);
            }
            left -= 1;
        });
        let mut left = 0;
        case(&format!("store: read {name}"), operations, |n, counts| {
            if left == 0 {
                left = depth;
                it.read(n, depth, blocks, counts);
            }
            left -= 1;
        });
    }
}
