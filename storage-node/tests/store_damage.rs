//! Damage, limits and order on a simulated device: torn tails, flipped bits in data, headers, table
//! pages and the superblock, a full store, a small cache, reads and writes in the order of their calls.

use bytes::Bytes;
use trefoil_core::checksum::{HOLE, block_checksum};
use trefoil_core::message::WriteOp;
use trefoil_core::record::{Patch, Record};
use trefoil_core::*;
use trefoil_storage_node::device::Device;
use trefoil_storage_node::device::sim::{SimDevice, SimMedium};
use trefoil_storage_node::store::index::{Delta, Index, Meta};
use trefoil_storage_node::store::{
    OpenError, ReadMode, Recovered, Store, StoreEvent, StoreOptions, Superblock, SuperblockError,
    UNKNOWN_CHECKSUM, format_device,
};

/// No index at all: everything comes from the log.
struct NoIndex(Option<Result<(), String>>);

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

type Sim = Store<SimDevice, NoIndex>;
const SEGMENT: u64 = 1 << 20;
const DATA: u64 = 2 << 20;

fn medium(segments: u64) -> SimMedium {
    let medium = SimMedium::new(DATA + segments * SEGMENT);
    let mut device = medium.device(1).expect("device");
    let sb = Superblock::new(device.size(), SEGMENT, Incarnation(5), [3; 16], NodeId(1));
    format_device(&mut device, &sb.expect("large enough")).expect("formatted");
    medium
}

fn open_with(medium: &SimMedium, options: StoreOptions) -> (Sim, Recovered) {
    let device = medium.device(9).expect("device");
    Store::open_on(device, NoIndex(None), options, &mut |_, _| ()).expect("opens")
}

fn open(medium: &SimMedium) -> (Sim, Recovered) {
    open_with(medium, StoreOptions::default())
}

fn object(index: u32) -> ObjectId {
    ObjectId { group: GroupId { volume: VolumeId(1), pg: PgId::default() }, index }
}

fn bytes(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK_SIZE]
}

fn sum(o: ObjectId, block: u32, fill: u8) -> u64 {
    block_checksum(o.group.volume, o.index, block, &bytes(fill))
}

fn head(seq: u64) -> Head {
    Head { ballot: Ballot(1), seq }
}

fn write(o: ObjectId, seq: u64, first: u32, fills: &[u8]) -> Record<Bytes> {
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
fn settle(store: &mut Sim) -> Vec<StoreEvent> {
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

struct Answer {
    checksums: Box<[u64]>,
    data: Bytes,
    bad: Vec<u32>,
}

fn read_as(store: &mut Sim, o: ObjectId, first: u32, count: u32, mode: ReadMode) -> Answer {
    store.read(77, o, BlockRange::new(first, count), mode);
    settle(store)
        .into_iter()
        .find_map(|e| match e {
            StoreEvent::Read { token: 77, checksums, data, bad } => Some(Answer { checksums, data, bad }),
            _ => None,
        })
        .expect("answered")
}

fn read(store: &mut Sim, o: ObjectId, first: u32, count: u32) -> Answer {
    read_as(store, o, first, count, ReadMode::All)
}

/// The byte on the medium where a block of this fill lies.
fn find(medium: &SimMedium, fill: u8, segments: u64) -> u64 {
    (0..segments * SEGMENT / 4096)
        .map(|n| DATA + n * 4096)
        .find(|at| medium.peek(*at, BLOCK_SIZE) == bytes(fill))
        .expect("it is on the medium")
}

/// The places of all batch headers, in order of place.
fn headers(medium: &SimMedium, segments: u64) -> Vec<u64> {
    (0..segments * SEGMENT / 4096)
        .map(|n| DATA + n * 4096)
        .filter(|at| medium.peek(*at, 8) == b"TRFLBATC")
        .collect()
}

#[test]
fn a_flipped_bit_is_bad_and_is_healed() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    store.append(1, write(object(1), 1, 10, &[1, 2, 3, 4]));
    settle(&mut store);
    m.flip(find(&m, 3, 8) + 100);
    let a = read(&mut store, object(1), 9, 6);
    assert_eq!(a.bad, [12]);
    assert_eq!(a.data, [bytes(1), bytes(2), bytes(4)].concat());
    assert_eq!(a.checksums[3], sum(object(1), 12, 3));
    assert_eq!((a.checksums[0], a.checksums[5]), (HOLE, HOLE));
    assert_eq!(store.stats().bad_blocks, 1);
    // Bytes for another content do not count; the right ones do.
    let heal = |checksum, fill| Record::Heal {
        object: object(1),
        block: 12,
        checksum,
        data: Bytes::from(bytes(fill)),
    };
    store.append(2, heal(sum(object(1), 12, 9), 9));
    settle(&mut store);
    assert_eq!(read(&mut store, object(1), 12, 1).bad, [12]);
    store.append(3, heal(sum(object(1), 12, 3), 3));
    let told = settle(&mut store);
    assert!(matches!(told[..], [StoreEvent::Durable { up_to_ticket: 3 }]));
    let a = read(&mut store, object(1), 12, 1);
    assert_eq!((a.bad.len(), &a.data[..]), (0, &bytes(3)[..]));
    // And it stays so.
    drop(store);
    let (mut store, recovered) = open(&m);
    assert_eq!(recovered.lost, None);
    assert_eq!(read(&mut store, object(1), 12, 1).data, bytes(3));
    // A heal of what is good costs nothing and is acknowledged.
    let before = store.stats().space.free;
    store.append(4, heal(sum(object(1), 12, 3), 3));
    let told = settle(&mut store);
    assert!(matches!(told[..], [StoreEvent::Durable { up_to_ticket: 4 }]));
    assert_eq!(store.stats().space.free, before);
}

#[test]
fn a_torn_tail_is_dropped_and_never_comes_back() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    store.append(1, write(object(1), 1, 0, &[1]));
    settle(&mut store);
    store.append(2, write(object(1), 2, 0, &[2, 3]));
    settle(&mut store);
    drop(store);
    // The last batch was, let us say, never acknowledged, and its last block did not arrive.
    let lost = find(&m, 3, 8);
    m.poke(lost, &[0; BLOCK_SIZE]);
    let (mut store, recovered) = open(&m);
    assert!(recovered.how.torn_tail.is_some());
    assert_eq!(recovered.lost, None);
    assert_eq!(read(&mut store, object(1), 0, 2).data, bytes(1));
    drop(store);
    // Even if the missing sector turns up later.
    m.poke(lost, &bytes(3));
    let (mut store, recovered) = open(&m);
    assert!(recovered.how.torn_tail.is_none());
    assert_eq!(read(&mut store, object(1), 0, 2).data, bytes(1));
    assert_eq!(recovered.durable.groups[&object(1).group].objects[&1], head(1));
}

#[test]
fn an_end_of_the_log_that_cannot_be_read_is_not_a_torn_tail() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    store.append(1, write(object(1), 1, 0, &[1]));
    settle(&mut store);
    store.append(2, write(object(1), 2, 0, &[2, 3]));
    settle(&mut store);
    drop(store);
    let last = *headers(&m, 8).last().expect("a batch");
    for unreadable in [last, find(&m, 3, 8)] {
        let m = m.snapshot();
        // It passes.
        m.fail_reads(Some(unreadable), 2);
        let (store, recovered) = open(&m);
        assert_eq!((recovered.lost, store.durable().groups[&object(1).group].objects[&1]), (None, head(2)));
        drop(store);
    }
    for unreadable in [last, find(&m, 3, 8)] {
        let m = m.snapshot();
        // It stays. The batch was acknowledged, so the node must not vote without it.
        m.fail_reads(Some(unreadable), u32::MAX);
        let (_, recovered) = open(&m);
        assert!(recovered.lost.is_some_and(|why| why.contains("cannot be read")));
    }
}

#[test]
fn damage_in_the_middle_is_not_a_torn_tail() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    for n in 1..=6u8 {
        store.append(n.into(), write(object(n.into()), n.into(), 0, &[n]));
        settle(&mut store);
    }
    drop(store);
    // Data: bad where it lies, nothing else.
    let with_bad_data = m.snapshot();
    with_bad_data.flip(find(&m, 4, 8));
    let (mut store, recovered) = open(&with_bad_data);
    assert_eq!(recovered.lost, None);
    assert_eq!(read(&mut store, object(4), 0, 1).bad, [0]);
    assert_eq!(read(&mut store, object(6), 0, 1).data, bytes(6));
    drop(store);
    // A header: state is lost, and it is said until the node has taken note.
    let headers = headers(&m, 8);
    assert_eq!(headers.len(), 7);
    for (n, at) in headers.iter().enumerate().take(6) {
        let m = m.snapshot();
        m.flip(at + 200 * u64::from(n > 100) + 40);
        let (mut store, recovered) = open(&m);
        assert!(recovered.lost.is_some(), "header {n} at {at}");
        assert!(!recovered.how.damage.is_empty());
        assert_eq!(read(&mut store, object(6), 0, 1).data, bytes(6));
        drop(store);
        let (mut store, recovered) = open(&m);
        assert!(recovered.lost.is_some(), "said again");
        store.append(9, Record::LostState { fences: Vec::new() });
        settle(&mut store);
        assert!(store.durable().amnesia);
        drop(store);
    }
    // The last header: that batch cannot be told from a torn one.
    m.flip(headers[6] + 40);
    let (_, recovered) = open(&m);
    assert_eq!(recovered.lost, None);
    assert!(!recovered.durable.groups[&object(1).group].objects.contains_key(&6));
}

#[test]
fn a_lost_table_page_is_bad_not_zeros() {
    let m = medium(16);
    let options = StoreOptions { table_cache_bytes: 4 * 4096, ..StoreOptions::default() };
    let (mut store, _) = open_with(&m, options.clone());
    for n in 1..=8u8 {
        store.append(n.into(), write(object(n.into()), 1, 0, &[n]));
        settle(&mut store);
    }
    assert!(store.stats().pages_resident <= 5, "{:?}", store.stats());
    // More pages than the cache holds: each comes back from the log.
    for n in (1..=8u8).chain(1..=8) {
        assert_eq!(read(&mut store, object(n.into()), 0, 1).data, bytes(n));
    }
    assert!(store.stats().cache_misses > 0);
    drop(store);
    // Flip every block that is neither header nor data of ours: the table pages.
    let heads = headers(&m, 8);
    for n in 0..600 {
        let at = DATA + n * 4096;
        let block = m.peek(at, BLOCK_SIZE);
        let data = block.iter().all(|b| *b == block[0]);
        if !heads.contains(&at) && !data {
            m.flip(at);
        }
    }
    let (mut store, _) = open_with(&m, options);
    let mut lost = 0;
    for n in 1..=8u8 {
        let a = read(&mut store, object(n.into()), 0, 2);
        if a.bad.is_empty() {
            assert_eq!(a.data, bytes(n));
        } else {
            lost += 1;
            assert_eq!((a.bad, a.checksums[0]), (vec![0, 1], UNKNOWN_CHECKSUM));
            // Written over, the block is good again; its neighbour is not.
            store.append(50, write(object(n.into()), 2, 0, &[n]));
            let a = read(&mut store, object(n.into()), 0, 2);
            assert_eq!((a.bad, a.data), (vec![1], Bytes::from(bytes(n))));
        }
    }
    assert!(lost > 0);
    assert_eq!(store.stats().lost_pages, lost);
}

#[test]
fn a_table_page_that_cannot_be_read_once_is_not_lost() {
    let m = medium(16);
    let options = StoreOptions { table_cache_bytes: 4 * 4096, ..StoreOptions::default() };
    let (mut store, _) = open_with(&m, options);
    for n in 1..=8u8 {
        store.append(n.into(), write(object(n.into()), 1, 0, &[n]));
        settle(&mut store);
    }
    for n in 1..=8u8 {
        read(&mut store, object(n.into()), 0, 1);
    }
    // What is neither a header nor data of ours is a page.
    let heads = headers(&m, 8);
    let uniform = |block: &[u8]| block.iter().all(|b| *b == block[0]);
    let places = (0..600).map(|n| DATA + n * 4096);
    let pages = places.filter(|at| !heads.contains(at) && !uniform(&m.peek(*at, BLOCK_SIZE)));
    let pages: Vec<u64> = pages.collect();
    assert!(!pages.is_empty());
    for page in pages {
        m.fail_reads(Some(page), 3);
        for n in 1..=8u8 {
            let a = read(&mut store, object(n.into()), 0, 1);
            assert_eq!((a.bad.len(), a.data), (0, Bytes::from(bytes(n))));
        }
    }
    assert!(store.stats().cache_misses > 0, "{:?}", store.stats());
    assert_eq!(store.stats().lost_pages, 0);
    // An error that stays is damage.
    m.fail_reads(None, u32::MAX);
    assert_eq!((1..=8).filter(|n| !read(&mut store, object(*n), 0, 1).bad.is_empty()).count(), 8);
    assert!(store.stats().lost_pages > 0);
}

#[test]
fn a_checkpoint_does_not_gather_faster_than_the_log_is_written() {
    let m = medium(32);
    let (mut store, _) = open(&m);
    for n in 1..=1500 {
        store.append(n, write(object(n as u32), 1, 0, &[7]));
    }
    settle(&mut store);
    drop(store);
    let mut device = m.device(9).expect("device");
    device.done_percent = 2; // a slow device
    let pending_bytes_max = 256 << 10;
    let options = StoreOptions {
        pending_bytes_max,
        batch_bytes_max: 64 << 10,
        checkpoint_bytes: 1,
        ..StoreOptions::default()
    };
    let (mut store, _) = Store::open_on(device, NoIndex(None), options, &mut |_, _| ()).expect("opens");
    let mut most = 0;
    for _ in 0..100_000 {
        store.submit();
        store.poll(&mut Vec::new());
        most = store.stats().pending_bytes.max(most);
        if store.stats().checkpoints > 0 {
            break;
        }
    }
    assert!(store.stats().checkpoints > 0, "it goes on");
    // One record with its header beyond the limit, and what was under way.
    assert!(most <= pending_bytes_max + (64 << 10), "{most} bytes were pending");
}

#[test]
fn the_second_superblock_serves_and_none_is_an_error() {
    let m = medium(12);
    m.flip(20);
    let (store, recovered) = open(&m);
    assert!(recovered.superblock_damage.is_some());
    drop(store);
    m.flip((1 << 20) + 20);
    let refused = |m: &SimMedium| {
        let device = m.device(1).expect("device");
        Store::open_on(device, NoIndex(None), StoreOptions::default(), &mut |_, _| ()).err().expect("refused")
    };
    assert!(matches!(refused(&m), OpenError::Superblock(SuperblockError::Damaged { .. })));
    assert!(matches!(
        refused(&SimMedium::new(8 << 20)),
        OpenError::Superblock(SuperblockError::Foreign { .. })
    ));
}

#[test]
fn a_full_store_keeps_a_reserve_and_loses_nothing() {
    let m = medium(16);
    let options =
        StoreOptions { table_cache_bytes: 4 * 4096, checkpoint_bytes: 256 << 10, ..StoreOptions::default() };
    let (mut store, _) = open_with(&m, options);
    let (mut ticket, mut acked) = (0, 0);
    let (mut written, mut events) = (Vec::new(), Vec::new());
    while store.room_blocks() >= 3 {
        ticket += 1;
        let (o, block) = (object((ticket % 7) as u32), (ticket * 37 % 900) as u32);
        let fill = (ticket % 250) as u8 + 1;
        store.append(ticket, write(o, ticket, block, &[fill, fill, fill]));
        written.retain(|(p, b, _)| *p != o || *b + 2 < block || block + 2 < *b);
        written.push((o, block, fill));
        store.submit();
        store.poll(&mut events);
    }
    events.extend(settle(&mut store));
    assert!(ticket > 150, "only {ticket} writes fit");
    // Records without data go on for long.
    for _ in 0..100 {
        ticket += 1;
        let volume = VolumeId(ticket);
        store.append(ticket, Record::Fence { volume, generation: Generation(1) });
        events.extend(settle(&mut store));
    }
    for e in &events {
        match e {
            StoreEvent::Durable { up_to_ticket } => acked = *up_to_ticket,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(acked, ticket);
    assert_eq!(store.durable().fences.len(), 100);
    // And on: the log is cleaned behind them.
    for _ in 0..6000 {
        ticket += 1;
        let volume = VolumeId(ticket % 500);
        store.append(ticket, Record::Fence { volume, generation: Generation(ticket) });
        for e in settle(&mut store) {
            match e {
                StoreEvent::Durable { up_to_ticket } => acked = up_to_ticket,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(acked, ticket);
    assert!(store.can_accept() && store.stats().segments_freed > 4);
    assert!(store.audit().is_clean());
    drop(store);
    let (mut store, recovered) = open(&m);
    assert_eq!(recovered.lost, None);
    assert_eq!(recovered.durable.fences[&VolumeId(acked % 500)], Generation(acked));
    for (o, block, fill) in written {
        let a = read(&mut store, o, block, 3);
        assert_eq!(a.data, bytes(fill).repeat(3));
    }
}

#[test]
fn a_write_error_ends_acknowledgement_and_not_reading() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    store.append(1, write(object(1), 1, 0, &[1]));
    settle(&mut store);
    m.fail_writes();
    store.append(2, write(object(1), 2, 1, &[2]));
    let told = settle(&mut store);
    assert!(told.iter().any(|e| matches!(e, StoreEvent::Failed { .. })));
    assert!(!told.iter().any(|e| matches!(e, StoreEvent::Durable { .. })));
    store.append(3, write(object(1), 3, 2, &[3]));
    assert!(settle(&mut store).is_empty());
    store.read(5, object(1), BlockRange::new(0, 1), ReadMode::All);
    let mut events = Vec::new();
    while events.is_empty() {
        store.submit();
        store.poll(&mut events);
    }
    assert!(matches!(&events[..], [StoreEvent::Read { data, .. }] if *data == bytes(1)));
}

#[test]
fn reads_take_effect_where_they_are_called() {
    let m = medium(16);
    let options = StoreOptions { table_cache_bytes: 4 * 4096, ..StoreOptions::default() };
    let (mut store, _) = open_with(&m, options.clone());
    for n in 1..=8u8 {
        store.append(n.into(), write(object(n.into()), 1, 0, &[n]));
        settle(&mut store);
    }
    for n in 1..=8u8 {
        read(&mut store, object(n.into()), 0, 1);
    }
    settle(&mut store);
    drop(store);
    // No page is in memory now, and those that the cache has dropped are in the log. For each object:
    // write, read, write, read, and at last delete, read, before any page has come.
    let (mut store, _) = open_with(&m, options);
    let objects: Vec<ObjectId> = (1..=8).map(object).collect();
    for (n, o) in objects.iter().enumerate() {
        let ticket = 20 + n as u64 * 2;
        store.append(ticket, write(*o, 2, 1, &[21]));
        store.read(n as u64, *o, BlockRange::new(0, 3), ReadMode::All);
        store.append(ticket + 1, write(*o, 3, 0, &[31, 32, 33]));
        store.read(100 + n as u64, *o, BlockRange::new(0, 3), ReadMode::All);
    }
    let volume = VolumeId(1);
    store.append(99, Record::DeleteVolume { volume });
    for (n, o) in objects.iter().enumerate() {
        store.read(200 + n as u64, *o, BlockRange::new(0, 3), ReadMode::All);
    }
    assert!(store.stats().cache_misses >= 4, "{:?}", store.stats());
    let mut seen = Vec::new();
    for e in settle(&mut store) {
        if let StoreEvent::Read { token, data, bad, .. } = e {
            assert!(bad.is_empty());
            seen.push((token, data));
        }
    }
    seen.sort();
    assert_eq!(seen.len(), 24);
    for n in 0..8 {
        let fill = n as u8 + 1;
        assert_eq!(seen[n].1, [bytes(fill), bytes(21)].concat());
        assert_eq!(seen[8 + n].1, [bytes(31), bytes(32), bytes(33)].concat());
        assert!(seen[16 + n].1.is_empty());
    }
    assert_eq!(store.stats().objects, 0);
}

#[test]
fn back_pressure_at_each_limit() {
    let m = medium(16);
    let (mut store, _) =
        open_with(&m, StoreOptions { pending_bytes_max: 64 << 10, reads_max: 2, ..StoreOptions::default() });
    assert!(store.can_accept());
    store.append(1, write(object(1), 1, 0, &[1; 20]));
    assert!(!store.can_accept(), "pending bytes");
    settle(&mut store);
    assert!(store.can_accept());
    store.read(1, object(1), BlockRange::new(0, 1), ReadMode::All);
    store.read(2, object(1), BlockRange::new(0, 1), ReadMode::All);
    assert!(!store.can_accept(), "reads");
    settle(&mut store);
    assert!(store.can_accept());
}

#[test]
fn changes_that_wait_for_pages_are_bounded_and_drain() {
    let m = medium(16);
    let options = StoreOptions { table_cache_bytes: 4 * 4096, ..StoreOptions::default() };
    let (mut store, _) = open_with(&m, options.clone());
    for n in 1..=12u8 {
        store.append(n.into(), write(object(n.into()), 1, 0, &[n]));
        settle(&mut store);
    }
    for n in 1..=12u8 {
        read(&mut store, object(n.into()), 0, 1);
    }
    drop(store);
    let (mut store, _) = open_with(&m, StoreOptions { queued_changes_max: 24, ..options });
    let mut ticket = 100;
    let mut refused = 0;
    for round in 0..40 {
        // Nothing is submitted meanwhile: the changes pile up on pages that are not in memory.
        while store.can_accept() && ticket < 200 + round * 20 {
            ticket += 1;
            let o = object((ticket % 12) as u32 + 1);
            store.append(ticket, write(o, ticket, 1, &[(ticket % 250) as u8]));
            assert!(store.stats().queued_changes <= 24);
        }
        refused += u32::from(!store.can_accept());
        for _ in 0..200 {
            store.submit();
            store.poll(&mut Vec::new());
        }
        assert!(store.can_accept(), "{:?}", store.stats());
    }
    assert!(refused > 0);
    assert!(store.stats().checkpoints > 0);
    settle(&mut store);
    for t in ticket - 11..=ticket {
        let o = object((t % 12) as u32 + 1);
        assert_eq!(read(&mut store, o, 1, 1).data, bytes((t % 250) as u8));
    }
}

#[test]
fn a_crash_while_the_first_record_of_a_session_is_written() {
    let before = medium(16);
    let (mut store, _) = open(&before);
    store.append(1, write(object(1), 1, 0, &[1]));
    settle(&mut store);
    store.append(2, write(object(1), 2, 0, &[2, 3]));
    settle(&mut store);
    drop(store);
    // The last batch is torn: Start goes where it began.
    before.poke(find(&before, 3, 8), &[0; BLOCK_SIZE]);
    let after = before.snapshot();
    let (store, _) = open(&after);
    drop(store);
    let at = *headers(&before, 8).last().expect("some");
    let start = after.peek(at, BLOCK_SIZE);
    assert_ne!(start, before.peek(at, BLOCK_SIZE));
    for sectors in 0..8 {
        for rest in [false, true] {
            let m = before.snapshot();
            let cut = sectors * 512;
            if rest {
                m.poke(at + cut as u64, &start[cut..]);
            } else {
                m.poke(at, &start[..cut]);
            }
            let (mut store, recovered) = open(&m);
            assert_eq!(recovered.lost, None, "{sectors} {rest}");
            assert_eq!(read(&mut store, object(1), 0, 2).data, bytes(1));
        }
    }
}

#[test]
fn reads_wait_for_memory_that_the_caller_still_holds() {
    let m = medium(16);
    let (mut store, _) = open_with(&m, StoreOptions { read_bytes_max: 8192, ..StoreOptions::default() });
    store.append(1, write(object(1), 1, 0, &[1, 2, 3, 4]));
    settle(&mut store);
    let held = read(&mut store, object(1), 0, 2).data;
    store.read(5, object(1), BlockRange::new(2, 1), ReadMode::All);
    store.read(6, object(1), BlockRange::new(3, 1), ReadMode::All);
    assert!(settle(&mut store).is_empty(), "no memory, no answer");
    assert_eq!(store.stats().reads, 2);
    drop(held);
    let told = settle(&mut store);
    assert_eq!(told.len(), 2);
    for event in told {
        match event {
            StoreEvent::Read { token, data, .. } => assert_eq!(data, bytes(token as u8 - 2)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn modes_of_reading() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    let o = object(1);
    store.append(1, write(o, 1, 0, &[1, 2, 3]));
    let have = [sum(o, 0, 1), sum(o, 1, 9), 0, 0];
    let a = read_as(&mut store, o, 0, 4, ReadMode::Differing(have.into()));
    assert_eq!(a.data, [bytes(2), bytes(3)].concat());
    assert_eq!(a.checksums[..], [sum(o, 0, 1), sum(o, 1, 2), sum(o, 2, 3), 0]);
    let a = read_as(&mut store, o, 0, 4, ReadMode::ChecksumsOnly);
    assert!(a.data.is_empty() && a.bad.is_empty());
    assert_eq!(a.checksums[2], sum(o, 2, 3));
}

#[test]
fn an_install_is_one_step_and_its_bad_blocks_stay_bad() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    let o = object(3);
    let before = headers(&m, 8).len();
    store.append(
        1,
        Record::Install {
            object: o,
            head: head(9),
            patches: vec![Patch {
                blocks: vec![(0, sum(o, 0, 5)), (1, HOLE), (300, sum(o, 300, 6))],
                data: [bytes(5), bytes(6)].concat().into(),
                bad: vec![(2, 1234)],
            }],
            writes: vec![WriteOp::Data {
                blocks: BlockRange::new(0, 1),
                checksums: [sum(o, 0, 7)].into(),
                data: bytes(7).into(),
            }],
        },
    );
    settle(&mut store);
    assert_eq!(headers(&m, 8).len(), before + 1, "one batch");
    drop(store);
    let (mut store, _) = open(&m);
    let a = read(&mut store, o, 0, 301);
    assert_eq!(a.data, [bytes(7), bytes(6)].concat());
    assert_eq!((a.bad, a.checksums[2]), (vec![2], 1234));
}
