//! A volume's image out of three stores: the same choice as a leader makes, with copies that are stale,
//! behind, longer in a line that lost, lost, or rotten.

use crate::offline_common::*;
use bytes::Bytes;
use std::path::PathBuf;
use trefoil_core::limits::OBJECT_SIZE_MIN;
use trefoil_core::map::{Ack, ClusterMap, Command, FailureDomain};
use trefoil_core::message::Line;
use trefoil_core::record::{Patch, Record};
use trefoil_core::*;
use trefoil_storage_node::offline::{
    Layout, LayoutError, SparseFile, VolumeError, VolumeOptions, VolumeReport, export_volume, read_map,
};

const VOLUME: u64 = 1;
/// Blocks in an object of these tests' volume.
const BLOCKS: usize = (OBJECT_SIZE_MIN / 4096) as usize;
const OPTIONS: VolumeOptions = VolumeOptions { copies: 3, believe_one: false };
const BELIEVE: VolumeOptions = VolumeOptions { believe_one: true, ..OPTIONS };

fn g() -> GroupId {
    group(VOLUME, 0)
}

fn x(index: u32) -> ObjectId {
    object(g(), index)
}

/// Four objects; the last one is half as large.
fn layout(pg_num: Option<u32>) -> Layout {
    let size = 3 * OBJECT_SIZE_MIN + OBJECT_SIZE_MIN / 2;
    Layout::by_hand(VolumeId(VOLUME), size, OBJECT_SIZE_MIN, pg_num).expect("possible")
}

fn stores(records: [Vec<Record<Bytes>>; 3]) -> [TestStore; 3] {
    records.map(|records| {
        let store = TestStore::new();
        store.take(records, false);
        store
    })
}

struct Exported {
    report: VolumeReport,
    marks: Vec<Option<u64>>,
}

fn export(from: &[&TestStore], layout: &Layout, options: VolumeOptions) -> Result<Exported, VolumeError> {
    let stores: Vec<_> = from.iter().map(|store| store.offline()).collect();
    let out: PathBuf = from[0].dir.path().join("image");
    let mut file = SparseFile::create(&out, layout.size, true).expect("a new file");
    let report = export_volume(&stores, layout, options, &mut file, &mut |_, _| ())?;
    file.finish().expect("durable");
    Ok(Exported { report, marks: marks(&out) })
}

fn image(from: &[&TestStore]) -> Exported {
    export(from, &layout(Some(1)), OPTIONS).expect("exported")
}

fn at(done: &Exported, index: usize, block: usize) -> Option<u64> {
    done.marks[index * BLOCKS + block]
}

#[test]
fn equal_copies_give_the_image_whatever_the_order() {
    let b = ballot(3, 0);
    let records = || {
        let mut records = join(g(), b, &[], &[]);
        records.push(write(x(0), b, 1, 2, &[11, 12]));
        records.push(write(x(3), b, 1, 7, &[13]));
        records
    };
    let [a, b, c] = stores([records(), records(), records()]);
    let mut expected = vec![Some(0); 3 * BLOCKS + BLOCKS / 2];
    (expected[2], expected[3], expected[3 * BLOCKS + 7]) = (Some(11), Some(12), Some(13));
    for from in [vec![&a, &b, &c], vec![&c, &a], vec![&b, &c]] {
        let done = image(&from);
        assert!(done.report.is_good(), "{:?}", done.report);
        assert_eq!((done.report.objects, done.report.decided, done.report.empty), (4, 2, 2));
        assert_eq!((done.report.blocks, done.report.mended, done.report.conflicts), (3, 0, 0));
        assert_eq!(done.marks, expected);
    }
    // Without the number of placement groups nobody knows whether others have objects 1 and 2.
    let done = export(&[&a, &b, &c], &layout(None), OPTIONS).expect("exported");
    assert_eq!((done.report.unproven_holes, done.report.is_good()), (2, false));
    assert_eq!(done.marks, expected);
}

#[test]
fn the_greatest_vote_counts_and_not_the_longest_copy() {
    let (old, new) = (ballot(1, 0), ballot(2, 0));
    // Object 0: write 2 reached only A, which was away when the next leader settled B and C without it.
    // Object 1: C is behind, and keeps its old line although it has settled.
    // Object 2: B was behind and is empty; A's and C's line is greater.
    let begin = |more: &[Record<Bytes>]| {
        let mut records = join(g(), old, &[], &[]);
        records.push(write(x(0), old, 1, 0, &[1]));
        records.extend_from_slice(more);
        records
    };
    let mut a = begin(&[write(x(0), old, 2, 0, &[2]), write(x(0), old, 3, 1, &[3])]);
    let mut b = begin(&[write(x(1), old, 1, 0, &[5])]);
    let mut c = begin(&[]);
    b.extend(join(g(), new, &[], &[]));
    b.push(write(x(0), new, 2, 2, &[4]));
    c.extend(join(g(), new, &[(1, Line::At(old))], &[]));
    c.push(write(x(0), new, 2, 2, &[4]));
    a.push(write(x(2), old, 1, 0, &[6]));
    let [a, b, c] = stores([a, b, c]);
    for from in [vec![&a, &b, &c], vec![&a, &c], vec![&b, &a], vec![&c, &b]] {
        let done = image(&from);
        assert_eq!((0..3).map(|block| at(&done, 0, block)).collect::<Vec<_>>(), [Some(1), Some(0), Some(4)]);
        assert!(done.report.is_good(), "{:?}", done.report);
    }
    // With C's old line, A's empty copy of object 1 (line `old`) is level: the head decides.
    assert_eq!(at(&image(&[&b, &c]), 1, 0), Some(5));
    assert_eq!(at(&image(&[&a, &c]), 1, 0), Some(0), "w5 was on one copy only, and is not in this majority");
    // Object 2 was on A alone, in the line that lost.
    assert_eq!(at(&image(&[&a, &b]), 2, 0), Some(0));
}

#[test]
fn rot_is_mended_from_another_copy_and_what_is_rotten_everywhere_is_a_hole() {
    let b = ballot(1, 0);
    let records = || {
        let mut records = join(g(), b, &[], &[]);
        records.push(write(x(1), b, 1, 0, &(1..=10).collect::<Vec<u64>>()));
        records
    };
    let all = stores(core::array::from_fn(|_| records()));
    let [a, b, c] = [&all[0], &all[1], &all[2]];
    for store in [a, b, c] {
        // Rot in the last batch would look like a torn one.
        store.take(Vec::new(), true);
    }
    for (store, block) in [(a, 2), (a, 3), (b, 3), (a, 5), (b, 5), (c, 5)] {
        store.flip(store.place(x(1), block) + 99);
    }
    let done = image(&[a, b, c]);
    let report = &done.report;
    assert_eq!((report.decided, report.blocks, report.mended, report.bad), (1, 9, 2, 1), "{report:?}");
    let bad = &report.block_problems[0];
    assert_eq!((bad.object, bad.block, bad.image_byte), (1, 5, OBJECT_SIZE_MIN + 5 * 4096));
    for store in [a, b, c] {
        assert!(bad.why.contains(&store.path().display().to_string()), "{}", bad.why);
    }
    let expected = (0..10u64).map(|block| Some(if block == 5 { 0 } else { block + 1 }));
    assert_eq!(done.marks[BLOCKS..BLOCKS + 10], expected.collect::<Vec<_>>());
    assert!(!report.is_good());
    assert_eq!((report.devices[0].blocks, report.devices[1].blocks, report.devices[2].blocks), (7, 1, 1));
}

#[test]
fn copies_with_one_head_that_differ_are_settled_by_majority_or_not_at_all() {
    let b = ballot(1, 0);
    let records = |mark| {
        let mut records = join(g(), b, &[], &[]);
        records.push(write(x(0), b, 1, 4, &[mark]));
        records
    };
    let [a, b, c] = stores([records(1), records(2), records(2)]);
    let done = image(&[&a, &b, &c]);
    assert_eq!((at(&done, 0, 4), done.report.conflicts, done.report.bad), (Some(2), 1, 0));
    let done = image(&[&a, &b]);
    assert_eq!((at(&done, 0, 4), done.report.conflicts, done.report.bad), (Some(0), 1, 1));
    assert!(done.report.block_problems[0].why.contains("differ"), "{:?}", done.report);
    // A copy that marks the block as bad still says which content is right.
    let bad = Patch { blocks: Vec::new(), data: Bytes::new(), bad: vec![(4, sum(x(0), 4, 2))] };
    let head = Head { ballot: ballot(1, 0), seq: 1 };
    let mut damaged = join(g(), ballot(1, 0), &[], &[]);
    damaged.push(Record::Install { object: x(0), head, patches: vec![bad], writes: Vec::new() });
    let d = TestStore::new();
    d.take(damaged, false);
    let done = image(&[&d, &a, &c]);
    assert_eq!((at(&done, 0, 4), done.report.bad), (Some(2), 0));
}

#[test]
fn without_a_majority_nothing_is_believed_unless_it_is_said_so() {
    let b = ballot(1, 0);
    let records = || {
        let mut records = join(g(), b, &[], &[]);
        records.push(write(x(0), b, 1, 0, &[1]));
        records
    };
    let [a, b, c] = stores([records(), records(), records()]);
    let refused = export(&[&a], &layout(Some(1)), OPTIONS).err().expect("refused");
    assert!(matches!(refused, VolumeError::NoMajority { given: 1, copies: 3 }));
    assert!(refused.to_string().contains("--believe-one"), "{refused}");
    let done = export(&[&a], &layout(Some(1)), BELIEVE).expect("exported");
    assert_eq!((done.report.believed, done.report.unproven_holes, done.report.is_good()), (1, 3, false));
    assert_eq!(at(&done, 0, 0), Some(1));
    // Lost votes: the object in B, the whole group in C (the node has said so).
    let lost = ballot(1, 1);
    b.take(join(g(), lost, &[(0, Line::Lost)], &[]), false);
    c.take(vec![Record::LostState { fences: Vec::new() }], false);
    let done = image(&[&a, &b, &c]);
    assert_eq!((done.report.undecided, done.report.empty), (1, 3), "{:?}", done.report);
    assert_eq!(done.report.object_problems[0].why, "no majority: 1 of 3 members have a vote");
    assert_eq!(at(&done, 0, 0), Some(0));
    let done = export(&[&a, &b, &c], &layout(Some(1)), BELIEVE).expect("exported");
    assert_eq!((at(&done, 0, 0), done.report.believed), (Some(1), 1));
    // The same device twice, and one of another cluster.
    assert!(matches!(export(&[&a, &a], &layout(None), OPTIONS), Err(VolumeError::Same { .. })));
    let stranger = TestStore::of([8; 16]);
    assert!(matches!(export(&[&a, &stranger], &layout(None), OPTIONS), Err(VolumeError::Cluster { .. })));
}

/// A map with these stores as nodes, in their order, and a volume `disk` of four small objects.
fn map_of(stores: &[&TestStore]) -> ClusterMap {
    let mut map = ClusterMap::new();
    let mut apply = |command| map.apply(&command).expect("applied");
    apply(Command::Init { cluster_id: CLUSTER, name: "test".to_owned() });
    for (n, store) in stores.iter().enumerate() {
        apply(Command::RegisterNode {
            id: None,
            incarnation: store.incarnation,
            address: format!("127.0.0.1:{}", 7000 + n).parse().expect("an address"),
            host: format!("host{n}"),
            class: None,
            size: SIZE,
            now: 1,
        });
    }
    let (name, domain) = ("default".to_owned(), FailureDomain::Host);
    apply(Command::CreatePool { name, size: 3, pg_num: 1, domain, ack: Ack::Majority });
    apply(Command::CreateVolume {
        name: "disk".to_owned(),
        pool: "default".to_owned(),
        size: 4 * OBJECT_SIZE_MIN,
        object_size: OBJECT_SIZE_MIN,
        io_timeout: None,
    });
    map
}

#[test]
fn a_map_names_the_volume_and_who_has_a_vote() {
    let b = ballot(1, 0);
    let records = |mark| {
        let mut records = join(g(), b, &[], &[]);
        records.push(write(x(0), b, mark, 0, &[mark]));
        records
    };
    let [a, b, c] = stores([records(1), records(1), records(2)]);
    let map = map_of(&[&a, &b, &c]);
    let with = |map: &ClusterMap| Layout::from_map(map.clone(), "disk").expect("it is there");
    let done = export(&[&a, &b], &with(&map), OPTIONS).expect("exported");
    assert_eq!((at(&done, 0, 0), done.report.is_good()), (Some(1), true));
    assert_eq!((done.report.devices[1].node, done.report.empty), (Some(1), 3));
    let done = export(&[&a, &b, &c], &with(&map), OPTIONS).expect("exported");
    assert_eq!(at(&done, 0, 0), Some(2));
    // C's log ends before what it had reported: it has been rolled back, and has no vote (N8).
    let mut newer = map.clone();
    newer.apply(&Command::ReportPositions { positions: vec![(NodeId(2), 1 << 40)] }).expect("applied");
    let done = export(&[&a, &b, &c], &with(&newer), OPTIONS).expect("exported");
    assert_eq!(at(&done, 0, 0), Some(1));
    assert!(done.report.devices[2].no_vote.as_ref().is_some_and(|why| why.contains("older copy")));
    let done = export(&[&a, &c], &with(&newer), OPTIONS).expect("exported");
    assert_eq!((done.report.undecided, at(&done, 0, 0)), (4, Some(0)));
    // A device that has answered under a newer epoch shows that the map is too old.
    let promised = trefoil_core::record::Promise { ballot: ballot(9, 0), epoch: Epoch(9) };
    a.take(vec![Record::Open { group: g(), promised, epoch: Epoch(9) }], false);
    let done = export(&[&a, &b], &with(&map), OPTIONS).expect("exported");
    assert!(done.report.object_problems[0].why.contains("give a newer map"), "{:?}", done.report);
    let stranger = TestStore::new();
    let refused = export(&[&b, &stranger], &with(&map), OPTIONS);
    assert!(matches!(refused, Err(VolumeError::Stranger { .. })));
    assert!(matches!(Layout::from_map(map, "disc"), Err(LayoutError::NoVolume { .. })));
    let file = a.dir.path().join("map");
    std::fs::write(&file, b"nothing of the kind").expect("written");
    assert!(matches!(read_map(&file), Err(LayoutError::NoMap(_))));
}
