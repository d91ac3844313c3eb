//! A store on a simulated device without an index, and what tests of single cases do with it.

use bytes::Bytes;
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::device::Device;
use trefoil_storage_node::device::sim::{SimDevice, SimMedium};
use trefoil_storage_node::store::index::{Delta, Index, Meta};
use trefoil_storage_node::store::{
    ReadMode, Recovered, Store, StoreEvent, StoreOptions, Superblock, format_device,
};

/// No index at all: everything comes from the log.
pub struct NoIndex(pub Option<Result<(), String>>);

impl Index for NoIndex {
    fn load(&mut self, _: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String> {
        Ok(None)
    }
    fn discard(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn commit(&mut self, _: Delta) {
        self.0 = Some(Ok(()));
    }
    fn finished(&mut self) -> Option<Result<(), String>> {
        self.0.take()
    }
}

pub type Sim = Store<SimDevice, NoIndex>;
pub const SEGMENT: u64 = 1 << 20;
pub const DATA: u64 = 2 << 20;

pub fn medium(segments: u64) -> SimMedium {
    let medium = SimMedium::new(DATA + segments * SEGMENT);
    let mut device = medium.device(1).expect("device");
    let sb = Superblock::new(device.size(), SEGMENT, Incarnation(5), [3; 16], NodeId(1));
    format_device(&mut device, &sb.expect("large enough")).expect("formatted");
    medium
}

pub fn open_with(medium: &SimMedium, options: StoreOptions) -> (Sim, Recovered) {
    let device = medium.device(9).expect("device");
    Store::open_on(device, NoIndex(None), options, &mut |_, _| ()).expect("opens")
}

pub fn open(medium: &SimMedium) -> (Sim, Recovered) {
    open_with(medium, StoreOptions::default())
}

pub fn object(index: u32) -> ObjectId {
    ObjectId { group: GroupId { volume: VolumeId(1), pg: PgId::default() }, index }
}

pub fn bytes(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK_SIZE]
}

pub fn sum(o: ObjectId, block: u32, fill: u8) -> u64 {
    block_checksum(o.group.volume, o.index, block, &bytes(fill))
}

pub fn head(seq: u64) -> Head {
    Head { ballot: Ballot(1), seq }
}

pub fn write(o: ObjectId, seq: u64, first: u32, fills: &[u8]) -> Record<Bytes> {
    Record::Write {
        object: o,
        head: head(seq),
        snap: 0,
        op: WriteOp::Data {
            blocks: BlockRange::new(first, fills.len() as u32),
            checksums: (first..).zip(fills).map(|(n, fill)| sum(o, n, *fill)).collect(),
            data: fills.iter().flat_map(|f| bytes(*f)).collect(),
        },
    }
}

/// Runs until nothing is pending; what was told meanwhile.
pub fn settle(store: &mut Sim) -> Vec<StoreEvent> {
    let mut events = Vec::new();
    for _ in 0..2000 {
        store.submit();
        store.poll(&mut events);
        let stats = store.stats();
        if stats.pending_bytes == 0 && stats.reads == 0 {
            break;
        }
    }
    events
}

pub struct Answer {
    pub checksums: Box<[u64]>,
    pub data: Bytes,
    pub bad: Vec<u32>,
}

pub fn read_as(store: &mut Sim, o: ObjectId, first: u32, count: u32, mode: ReadMode) -> Answer {
    store.read(77, o, BlockRange::new(first, count), mode);
    settle(store)
        .into_iter()
        .find_map(|e| match e {
            StoreEvent::Read { token: 77, checksums, data, bad } => Some(Answer { checksums, data, bad }),
            _ => None,
        })
        .expect("answered")
}

pub fn read(store: &mut Sim, o: ObjectId, first: u32, count: u32) -> Answer {
    read_as(store, o, first, count, ReadMode::All)
}

/// The byte on the medium where a block of this fill lies.
pub fn find(medium: &SimMedium, fill: u8, segments: u64) -> u64 {
    (0..segments * SEGMENT / 4096)
        .map(|n| DATA + n * 4096)
        .find(|at| medium.peek(*at, BLOCK_SIZE) == bytes(fill))
        .expect("it is on the medium")
}

/// The places of all batch headers, in order of place.
pub fn headers(medium: &SimMedium, segments: u64) -> Vec<u64> {
    (0..segments * SEGMENT / 4096)
        .map(|n| DATA + n * 4096)
        .filter(|at| medium.peek(*at, 8) == b"TRFLBATC")
        .collect()
}
