//! Limits and order on a simulated device: a full store, a small cache, memory that is bounded, reads and
//! writes in the order of their calls.

use crate::common::{
    NoIndex, bytes, head, headers, medium, object, open, open_with, read, read_as, settle, sum, write,
};
use std::time::Duration;
use trefoil_core::checksum::HOLE;
use trefoil_core::message::WriteOp;
use trefoil_core::record::{Patch, Record};
use trefoil_core::*;
use trefoil_storage_node::device::faulty::{Faults, Faulty};
use trefoil_storage_node::store::{ReadMode, Store, StoreEvent, StoreOptions};

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

/// However small the batches are, and however far the bytes of the log are from their limit.
#[test]
fn a_checkpoint_is_taken_before_a_replay_would_take_too_long() {
    let m = medium(64);
    let bound = Duration::from_millis(4);
    let options = StoreOptions { replay_max: bound, ..StoreOptions::default() };
    let (mut store, _) = open_with(&m, options);
    let mut longest = 0;
    let mut written = 0;
    while store.stats().checkpoints < 3 {
        written += 1;
        assert!(written < 4000, "no checkpoint: {:?}", store.stats());
        store.append(written, write(object((written % 5) as u32), written, 0, &[7]));
        settle(&mut store);
        longest = longest.max(store.stats().replay_us);
    }
    assert!(written > 100, "not more often than it must be: {written} writes");
    assert!(longest >= bound.as_micros() as u64, "the estimate has reached the bound");
    // What is written while a checkpoint is under way is in it too.
    assert!(longest < 2 * bound.as_micros() as u64, "{longest} us");
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

/// What a repair brings is megabytes at once: the device gets it in parts, and what clients wrote before it does not
/// wait for it.
#[test]
fn a_repair_is_written_gently_and_behind_what_clients_wrote() {
    let m = medium(16);
    drop(open(&m));
    let faults = Faults::new();
    let device = Faulty::new(m.device(5).expect("device"), faults.clone());
    let (mut store, _) =
        Store::open_on(device, NoIndex(None), StoreOptions::default(), &mut |_, _| ()).expect("opens");
    faults.list_writes();
    const BLOCKS: u32 = 200;
    let (o, repaired) = (object(1), object(2));
    let patch = Patch {
        blocks: (0..BLOCKS).map(|block| (block, sum(repaired, block, 5))).collect(),
        data: bytes(5).repeat(BLOCKS as usize).into(),
        bad: Vec::new(),
    };
    store.append(1, write(o, 1, 0, &[1]));
    store.append(2, write(o, 2, 1, &[2]));
    let install =
        Record::Install { object: repaired, head: head(9), patches: vec![patch], writes: Vec::new() };
    store.append(3, install);
    let upto = |store: &mut Store<_, _>, wanted: u64| {
        let mut told = Vec::new();
        for _ in 0..10_000 {
            store.submit();
            let mut events = Vec::new();
            store.poll(&mut events);
            told.extend(events.iter().filter_map(|event| match event {
                StoreEvent::Durable { up_to_ticket } => Some(*up_to_ticket),
                _ => None,
            }));
            if told.last() == Some(&wanted) {
                return told;
            }
        }
        panic!("durable: {told:?}, not {wanted}");
    };
    assert_eq!(upto(&mut store, 3), [2, 3]);
    // A client waits for its large write.
    store.append(4, write(o, 3, 0, &[3; 200]));
    assert_eq!(upto(&mut store, 4), [4]);
    let writes = faults.writes();
    let batches: Vec<_> = writes
        .iter()
        .map(|w| (w.bufs.iter().map(|buf| buf.len() / BLOCK_SIZE).sum::<usize>(), w.gently))
        .filter(|(blocks, _)| *blocks > 1)
        .collect();
    assert!(matches!(batches[..], [(3, false), (200.., true), (200.., false)]), "{batches:?}");
}
