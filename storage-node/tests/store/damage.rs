//! Damage on a simulated device: torn tails, flipped bits in data, headers, table pages and the superblock,
//! devices that fail.

use crate::common::{
    DATA, NoIndex, Sim, bytes, find, head, headers, medium, object, open, open_with, read, settle, sum, write,
};
use bytes::Bytes;
use trefoil_core::checksum::HOLE;
use trefoil_core::record::{Patch, Record};
use trefoil_core::*;
use trefoil_storage_node::device::sim::SimMedium;
use trefoil_storage_node::store::{
    OpenError, ReadMode, Store, StoreEvent, StoreOptions, SuperblockError, UNKNOWN_CHECKSUM,
};

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

fn told_bad(events: &[StoreEvent]) -> Vec<(u32, u64)> {
    let bad = |event: &StoreEvent| match event {
        StoreEvent::BadBlock { block, checksum, .. } => Some((*block, *checksum)),
        _ => None,
    };
    events.iter().filter_map(bad).collect()
}

/// The node looks for so many at its peers at once, and not for ever: told once only, a block whose peers were
/// away for a moment would stay bad until somebody writes it.
#[test]
fn a_bad_block_is_told_at_each_read_until_it_is_healed() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    let o = object(1);
    store.append(1, write(o, 1, 10, &[1, 2, 3, 4]));
    settle(&mut store);
    m.flip(find(&m, 3, 8) + 100);
    let look = |store: &mut Sim, blocks| {
        store.read(1, o, blocks, ReadMode::All);
        told_bad(&settle(store))
    };
    for _ in 0..3 {
        assert_eq!(look(&mut store, BlockRange::new(9, 6)), [(12, sum(o, 12, 3))]);
    }
    let counts = |store: &Sim| (store.stats().bad_blocks, store.stats().bad_now);
    assert_eq!(counts(&store), (1, 1), "it is one block all the same");
    let heal = Record::Heal { object: o, block: 12, checksum: sum(o, 12, 3), data: Bytes::from(bytes(3)) };
    store.append(2, heal);
    settle(&mut store);
    assert_eq!(look(&mut store, BlockRange::new(9, 6)), []);
    assert_eq!(counts(&store), (1, 0));
    // What was written while it was being read is not what was read.
    m.flip(find(&m, 4, 8) + 100);
    store.read(1, o, BlockRange::new(13, 1), ReadMode::All);
    store.append(3, write(o, 2, 13, &[5]));
    assert_eq!(told_bad(&settle(&mut store)), []);
    assert_eq!(counts(&store), (1, 0));
    // Nor is one bad for ever that the device could not give for a moment.
    let at = find(&m, 2, 8);
    m.flip(at);
    assert_eq!(look(&mut store, BlockRange::new(9, 6)), [(11, sum(o, 11, 2))]);
    m.flip(at);
    assert_eq!(look(&mut store, BlockRange::new(9, 6)), []);
    assert_eq!(counts(&store), (2, 0));
}

/// A repair that could not get a block has marked it bad: it is looked for when it is read, as one that has
/// rotted is.
#[test]
fn a_block_that_a_repair_has_left_bad_is_told_and_healed() {
    let m = medium(16);
    let (mut store, _) = open(&m);
    let o = object(3);
    let patch = Patch {
        blocks: vec![(0, sum(o, 0, 5))],
        data: bytes(5).into(),
        bad: vec![(2, sum(o, 2, 6)), (3, sum(o, 3, 7))],
    };
    let writes = Vec::new();
    store.append(1, Record::Install { object: o, head: head(9), patches: vec![patch], writes });
    settle(&mut store);
    drop(store);
    let (mut store, _) = open(&m);
    let look = |store: &mut Sim, mode| {
        store.read(1, o, BlockRange::new(0, 5), mode);
        told_bad(&settle(store))
    };
    assert_eq!(look(&mut store, ReadMode::ChecksumsOnly), [], "nobody has asked for their bytes");
    for _ in 0..2 {
        assert_eq!(look(&mut store, ReadMode::All), [(2, sum(o, 2, 6)), (3, sum(o, 3, 7))]);
    }
    let have = [sum(o, 0, 5), 0, sum(o, 2, 6), 0, 0].into();
    assert_eq!(look(&mut store, ReadMode::Differing(have)), [(3, sum(o, 3, 7))]);
    assert_eq!((store.stats().bad_blocks, store.stats().bad_now), (0, 2));
    for (block, fill) in [(2, 6), (3, 7)] {
        let (checksum, data) = (sum(o, block, fill), Bytes::from(bytes(fill)));
        store.append(u64::from(block), Record::Heal { object: o, block, checksum, data });
    }
    settle(&mut store);
    assert_eq!(look(&mut store, ReadMode::All), []);
    assert_eq!(read(&mut store, o, 2, 2).data, [bytes(6), bytes(7)].concat());
    assert_eq!(store.stats().bad_now, 0);
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
