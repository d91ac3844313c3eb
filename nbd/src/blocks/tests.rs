//! The layer against a flat array of bytes, with a leader that finishes operations in random order.

use super::*;
use crate::disk::{Chunk, Completions};
use proptest::prelude::*;
use std::collections::HashMap;
use std::rc::Rc;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::client::OpOutput;
use trefoil_core::ids::{BLOCK_SIZE, BlockRange};
use trefoil_core::limits::OP_BLOCKS_MAX;

const OBJECT: u64 = 64 << 10;
const VOLUME: VolumeId = VolumeId(7);

/// A leader that keeps the contract and nothing more: operations end in any order, but an operation
/// waits for the writes given before it that overlap it.
#[derive(Default)]
struct Leader {
    blocks: HashMap<(u32, u32), (u64, Vec<u8>)>,
    under_way: Vec<ClientOp<Bytes>>,
}

impl Leader {
    fn can_end(&self, at: usize) -> bool {
        let op = &self.under_way[at];
        let earlier = self.under_way[..at].iter();
        !earlier
            .filter(|e| e.object == op.object && e.kind.is_write())
            .any(|e| e.kind.blocks().overlaps(op.kind.blocks()))
    }
    /// Ends the operation that `pick` chooses among those that can end.
    fn end_one(&mut self, pick: usize) -> OpDone<Bytes> {
        let able: Vec<usize> = (0..self.under_way.len()).filter(|at| self.can_end(*at)).collect();
        let op = self.under_way.remove(able[pick % able.len()]);
        OpDone { id: op.id, result: Ok(self.apply(op)) }
    }
    fn apply(&mut self, op: ClientOp<Bytes>) -> OpOutput<Bytes> {
        let range = |blocks: BlockRange| (blocks.first..blocks.end()).map(|b| (op.object, b));
        let blocks = op.kind.blocks();
        assert!(blocks.count > 0 && u64::from(blocks.end()) * BLOCK <= OBJECT);
        match op.kind {
            OpKind::Write { blocks, checksums, data } => {
                assert!(blocks.count <= OP_BLOCKS_MAX);
                assert_eq!(checksums.len() * BLOCK_SIZE, data.len());
                assert_eq!(checksums.len(), blocks.count as usize);
                let parts = checksums.iter().zip(data.chunks(BLOCK_SIZE));
                for (place, (sum, bytes)) in range(blocks).zip(parts) {
                    assert_eq!(*sum, block_checksum(VOLUME, place.0, place.1, bytes));
                    self.blocks.insert(place, (*sum, bytes.to_vec()));
                }
                OpOutput::Written
            }
            OpKind::Zero { blocks } => {
                range(blocks).for_each(|place| drop(self.blocks.remove(&place)));
                OpOutput::Written
            }
            OpKind::Read { blocks } | OpKind::Status { blocks } => {
                let found: Vec<_> = range(blocks).map(|place| self.blocks.get(&place)).collect();
                let checksums = found.iter().map(|b| b.map_or(HOLE, |(sum, _)| *sum)).collect();
                let status = matches!(op.kind, OpKind::Status { .. });
                let found = found.iter().flatten().filter(|_| !status);
                let data = found.flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>();
                OpOutput::Read { checksums, data: data.into() }
            }
        }
    }
}

/// A write or zero, with the times between which it took effect.
struct Written {
    from: u64,
    to: u64,
    value: u8,
    started: u64,
    ended: u64,
}

/// A read must give, for each byte, the value of a write that was not overwritten for sure before the
/// read began.
fn check(history: &[Written], offset: u64, bytes: &[u8], started: u64, ended: u64) {
    let end = offset + bytes.len() as u64;
    let near: Vec<_> = history.iter().filter(|w| w.from < end && offset < w.to).collect();
    for (at, byte) in (offset..).zip(bytes) {
        let over = || near.iter().filter(|w| w.from <= at && at < w.to);
        // Everything that ended before this is gone if another write began after it and ended before
        // the read.
        let latest_start = over().filter(|w| w.ended < started).map(|w| w.started).max().unwrap_or(0);
        let allowed = over().any(|w| w.value == *byte && w.started <= ended && w.ended >= latest_start);
        assert!(allowed || (*byte == 0 && latest_start == 0), "byte {at}: {byte} is lost or stale");
    }
}

fn flatten(reply: &DiskReply) -> Vec<u8> {
    let DiskReply::Data(chunks) = reply else { panic!("data expected, not {reply:?}") };
    let bytes = |chunk: &Chunk| match chunk {
        Chunk::Data(data) => data.to_vec(),
        Chunk::Hole(len) => vec![0; *len as usize],
    };
    chunks.iter().flat_map(bytes).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, u64),
    Zero(u64, u64, bool),
    Trim(u64, u64),
    Status(u64, u64),
    End(usize),
}

fn range(size: u64) -> impl Strategy<Value = (u64, u64)> {
    // Few places, near the borders of blocks and objects, so that requests collide.
    let near = |base: u64| (0..40u64).prop_map(move |d| (base + d * 103).saturating_sub(2000));
    let start = prop_oneof![near(4096), near(OBJECT), near(2 * OBJECT), near(size - 9000), 0..size];
    let len = prop_oneof![4 => 1..600u64, 3 => 1..9000u64, 2 => Just(4096u64), 1 => 1..140_000u64];
    (start, len, any::<bool>()).prop_map(move |(start, len, align)| {
        let start = if align { start & !4095 } else { start }.min(size - 1);
        (start, len.min(size - start))
    })
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => range(size).prop_map(|(a, b)| Step::Read(a, b)),
        6 => range(size).prop_map(|(a, b)| Step::Write(a, b)),
        2 => (range(size), any::<bool>()).prop_map(|((a, b), no_hole)| Step::Zero(a, b, no_hole)),
        1 => range(size).prop_map(|(a, b)| Step::Trim(a, b)),
        1 => range(size).prop_map(|(a, b)| Step::Status(a, b)),
        12 => any::<usize>().prop_map(Step::End),
    ];
    proptest::collection::vec(step, 1..220)
}

struct World {
    layer: BlockLayer,
    leader: Leader,
    completions: Rc<Completions>,
    size: u64,
    now: u64,
    history: Vec<Written>,
    writes: HashMap<u64, usize>,
    reads: HashMap<u64, (u64, u64, u64)>,
    statuses: HashMap<u64, (u64, u64)>,
}

impl World {
    fn new(size: u64) -> World {
        World {
            layer: BlockLayer::new(VOLUME, size, OBJECT).unwrap(),
            leader: Leader::default(),
            completions: Completions::new(ConnId(1)),
            size,
            now: 1,
            history: Vec::new(),
            writes: HashMap::new(),
            reads: HashMap::new(),
            statuses: HashMap::new(),
        }
    }
    fn submit(&mut self, op: DiskOp) -> u64 {
        self.now += 1;
        let reply_to = self.completions.clone();
        self.layer.submit(&mut vec![DiskRequest { token: self.now, reply_to, op }]);
        self.layer.take_ops(&mut self.leader.under_way);
        self.now
    }
    fn written(&mut self, from: u64, to: u64, value: u8) {
        let started = self.now + 1;
        self.writes.insert(started, self.history.len());
        self.history.push(Written { from, to, value, started, ended: u64::MAX });
    }
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Read(offset, len) => {
                let token = self.submit(DiskOp::Read { offset, len: len as u32 });
                self.reads.insert(token, (offset, len, token));
            }
            Step::Write(offset, len) => {
                let value = (self.history.len() % 255) as u8 + 1;
                self.written(offset, offset + len, value);
                let data = Bytes::from(vec![value; len as usize]);
                self.submit(DiskOp::Write { offset, data, fua: false });
            }
            Step::Zero(offset, len, no_hole) => {
                self.written(offset, offset + len, 0);
                self.submit(DiskOp::Zero { offset, len: len as u32, no_hole, fua: false });
            }
            Step::Trim(offset, len) => {
                let end = if offset + len == self.size { u64::MAX - BLOCK } else { offset + len };
                self.written(offset.next_multiple_of(BLOCK), end - end % BLOCK, 0);
                self.submit(DiskOp::Trim { offset, len: len as u32, fua: false });
            }
            Step::Status(offset, len) => {
                let token = self.submit(DiskOp::Status { offset, len: len as u32 });
                self.statuses.insert(token, (offset, len));
            }
            Step::End(pick) => {
                if !self.leader.under_way.is_empty() {
                    let done = self.leader.end_one(pick);
                    self.layer.complete(done);
                    self.layer.take_ops(&mut self.leader.under_way);
                }
            }
        }
        self.collect();
    }
    fn collect(&mut self) {
        let mut done = Vec::new();
        self.completions.take(&mut done);
        for (token, result) in done {
            self.now += 1;
            let reply = result.expect("no operation fails here");
            if let Some(write) = self.writes.remove(&token) {
                assert_eq!(reply, DiskReply::Done);
                self.history[write].ended = self.now;
            } else if let Some((offset, len, started)) = self.reads.remove(&token) {
                let bytes = flatten(&reply);
                assert_eq!(bytes.len() as u64, len);
                check(&self.history, offset, &bytes, started, self.now);
            } else {
                let (_, len) = self.statuses.remove(&token).expect("answered once");
                let DiskReply::Extents(extents) = reply else { panic!("extents expected") };
                assert_eq!(extents.iter().map(|e| u64::from(e.len)).sum::<u64>(), len);
                assert!(extents.iter().all(|e| e.len > 0));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_lost_or_stale((size, steps) in (2 * OBJECT + 1..3 * OBJECT).prop_flat_map(|size| (Just(size), steps(size)))) {
        let mut world = World::new(size);
        steps.iter().for_each(|step| world.step(step));
        while !world.leader.under_way.is_empty() {
            world.step(&Step::End(steps.len()));
        }
        world.step(&Step::Read(0, size));
        while !world.leader.under_way.is_empty() {
            world.step(&Step::End(0));
        }
        prop_assert_eq!(world.layer.requests_pending(), 0);
        prop_assert_eq!(world.layer.ops_pending(), 0);
        prop_assert!(world.writes.is_empty() && world.reads.is_empty() && world.statuses.is_empty());
        prop_assert_eq!(world.layer.counters().checksum_mismatches, 0);
    }
}

fn request(conn: &Rc<Completions>, token: u64, op: DiskOp) -> Vec<DiskRequest> {
    vec![DiskRequest { token, reply_to: conn.clone(), op }]
}

fn write(offset: u64, bytes: &[u8]) -> DiskOp {
    DiskOp::Write { offset, data: Bytes::copy_from_slice(bytes), fua: false }
}

#[test]
fn zeroing_a_huge_disk_takes_turns_within_the_limits() {
    let mut layer = BlockLayer::new(VOLUME, 1 << 40, OBJECT).unwrap();
    let conn = Completions::new(ConnId(1));
    let (mut ops, mut done) = (Vec::new(), Vec::new());
    for n in 0..100 {
        let op = DiskOp::Zero { offset: n << 32, len: u32::MAX, no_hole: false, fua: false };
        layer.submit(&mut request(&conn, n, op));
    }
    assert_eq!(layer.ops_pending(), OPS_MAX);
    // A small request that comes last does not wait for all of them.
    layer.submit(&mut request(&conn, 1000, DiskOp::Read { offset: 0, len: 1 }));
    let mut given = 0u64;
    let mut small_after = None;
    loop {
        layer.take_ops(&mut ops);
        if ops.is_empty() {
            break;
        }
        for op in ops.drain(..) {
            given += 1;
            let read = matches!(op.kind, OpKind::Read { .. }).then(Bytes::new);
            let read = read.filter(|_| op.kind.blocks().first == 0 && op.object == 0);
            let output = match read {
                Some(data) => OpOutput::Read { checksums: [HOLE].into(), data },
                None if op.kind.is_write() => OpOutput::Written,
                None => OpOutput::Read { checksums: [HOLE].into(), data: Bytes::new() },
            };
            layer.complete(OpDone { id: op.id, result: Ok(output) });
            assert!(layer.ops_pending() <= OPS_MAX);
        }
        conn.take(&mut done);
        if small_after.is_none() && done.iter().any(|(token, _)| *token == 1000) {
            small_after = Some(given);
        }
    }
    assert_eq!(done.len(), 101);
    assert!(done.iter().all(|(_, result)| result.is_ok()));
    assert!(small_after.unwrap() < 4 * OPS_MAX as u64, "{small_after:?} of {given}");
}

#[test]
fn nothing_of_a_dead_connection_starts_any_more() {
    let mut layer = BlockLayer::new(VOLUME, 1 << 40, OBJECT).unwrap();
    let (dead, alive) = (Completions::new(ConnId(1)), Completions::new(ConnId(2)));
    let mut ops = Vec::new();
    let zero = DiskOp::Zero { offset: 1 << 30, len: 1 << 30, no_hole: false, fua: false };
    layer.submit(&mut request(&dead, 1, zero));
    layer.submit(&mut request(&dead, 2, write(0, b"old")));
    layer.submit(&mut request(&alive, 3, write(1, b"new")));
    layer.take_ops(&mut ops);
    assert_eq!(ops.len(), REQUEST_OPS_MAX as usize + 1);
    dead.close();
    layer.client_gone(ConnId(1));
    for op in std::mem::take(&mut ops) {
        let output = match op.kind {
            OpKind::Read { .. } => OpOutput::Read { checksums: [HOLE].into(), data: Bytes::new() },
            _ => OpOutput::Written,
        };
        layer.complete(OpDone { id: op.id, result: Ok(output) });
    }
    layer.take_ops(&mut ops);
    let [ClientOp { id, kind: OpKind::Write { data, .. }, .. }] = &ops[..] else {
        panic!("one write expected, not {ops:?}")
    };
    assert_eq!(&data[..5], b"\0new\0");
    layer.complete(OpDone { id: *id, result: Ok(OpOutput::Written) });
    let mut done = Vec::new();
    assert!(alive.take(&mut done) && !dead.take(&mut Vec::new()));
    assert_eq!((done, layer.requests_pending()), (vec![(3, Ok(DiskReply::Done))], 0));
}

#[test]
fn wrong_bytes_are_an_error_and_counted() {
    let mut layer = BlockLayer::new(VOLUME, 1 << 20, OBJECT).unwrap();
    let conn = Completions::new(ConnId(1));
    let (mut ops, mut done) = (Vec::new(), Vec::new());
    layer.submit(&mut request(&conn, 1, DiskOp::Read { offset: 0, len: 9000 }));
    layer.take_ops(&mut ops);
    let block = vec![1u8; BLOCK_SIZE];
    let good = block_checksum(VOLUME, 0, 1, &block);
    let checksums = [HOLE, good, good].into();
    let data = [block.clone(), block].concat().into();
    layer.complete(OpDone { id: ops[0].id, result: Ok(OpOutput::Read { checksums, data }) });
    conn.take(&mut done);
    assert_eq!(done, vec![(1, Err(DiskError::Io))]);
    assert_eq!(layer.counters().checksum_mismatches, 1);
}

#[test]
fn a_detached_volume_answers_everything_and_ignores_late_answers() {
    let mut layer = BlockLayer::new(VOLUME, 1 << 20, OBJECT).unwrap();
    let conn = Completions::new(ConnId(1));
    let (mut ops, mut done) = (Vec::new(), Vec::new());
    layer.submit(&mut request(&conn, 1, write(5, b"x")));
    layer.submit(&mut request(&conn, 2, write(0, &[0; 4096])));
    layer.take_ops(&mut ops);
    layer.fail_all(DiskError::Gone);
    conn.take(&mut done);
    assert_eq!(done.len(), 2);
    assert!(done.iter().all(|(_, result)| *result == Err(DiskError::Gone)));
    layer.complete(OpDone { id: ops[0].id, result: Err(OpError::Closing) });
    assert_eq!((layer.requests_pending(), layer.ops_pending()), (0, 0));
}
