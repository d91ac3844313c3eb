//! `check` on simulated devices: nothing is wrong with a store that has been written, cleaned, deleted from
//! and crashed; and whatever is damaged is found, with its place.

use crate::offline_common::{ballot, bytes, group, join, object, sum, write};
use bytes::Bytes;
use serde_json::Value;
use trefoil_core::message::WriteOp;
use trefoil_core::record::{Patch, Record};
use trefoil_core::*;
use trefoil_storage_node::device::Device;
use trefoil_storage_node::device::sim::{Rng, SimDevice, SimMedium};
use trefoil_storage_node::offline::{CheckReport, OfflineStore};
use trefoil_storage_node::store::index::{Delta, Index, Meta, SledIndex};
use trefoil_storage_node::store::{IndexUse, Store, StoreOptions, Superblock, format_device};

/// No index at all.
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

const SEGMENT: u64 = 4 << 20;
const SEGMENTS: u64 = 16;
const DATA: u64 = 2 << 20;

fn medium() -> SimMedium {
    let medium = SimMedium::new(DATA + SEGMENTS * SEGMENT);
    let mut device = medium.device(1).expect("device");
    let sb = Superblock::new(device.size(), SEGMENT, Incarnation(5), [3; 16], NodeId(1));
    format_device(&mut device, &sb.expect("large enough")).expect("formatted");
    medium
}

type Sim = Store<SimDevice, NoIndex>;

fn start(medium: &SimMedium) -> Sim {
    let device = medium.device(9).expect("device");
    let options =
        StoreOptions { table_cache_bytes: 8 << 12, checkpoint_bytes: 2 << 20, ..StoreOptions::default() };
    Store::open_on(device, NoIndex(None), options, &mut |_, _| ()).expect("opens").0
}

/// Appends records as the store takes them; what is behind the last one may not be durable.
fn give(store: &mut Sim, records: impl IntoIterator<Item = Record<Bytes>>) {
    let mut events = Vec::new();
    let mut turn = |store: &mut Sim| {
        store.submit();
        store.poll(&mut events);
        events.clear();
    };
    for (ticket, record) in (1..).zip(records) {
        let since = std::time::Instant::now();
        while !store.can_accept() || store.room_blocks() < u64::from(record.data_blocks()) {
            turn(store);
            assert!(since.elapsed().as_secs() < 10, "the store does not go on: {:?}", store.stats());
        }
        store.append(ticket, record);
        turn(store);
    }
    for _ in 0..50 {
        turn(store);
    }
}

fn offline(medium: &SimMedium) -> OfflineStore<SimDevice> {
    let device = medium.device(9).expect("device");
    OfflineStore::open_on(device, &mut |_, _| ()).expect("it can be looked at")
}

fn check(medium: &SimMedium) -> CheckReport {
    offline(medium).check(100, &mut |_, _, _| ())
}

fn lines(write: impl FnOnce(&mut Vec<u8>)) -> Vec<Value> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    serde_json::Deserializer::from_slice(&bytes).into_iter().collect::<Result<_, _>>().expect("JSON")
}

fn dump(medium: &SimMedium) -> Vec<Value> {
    lines(|out| offline(medium).dump(out).expect("dumped"))
}

fn log(medium: &SimMedium) -> Vec<Value> {
    lines(|out| offline(medium).dump_log(out).expect("dumped"))
}

fn x(volume: u64, index: u32) -> ObjectId {
    object(group(volume, 0), index)
}

const OBJECTS: u64 = 16;

/// Random writes and trims over half of the device, many times over.
fn churn(store: &mut Sim, random: &mut Rng, volume: u64, first_seq: u64, writes: u64) {
    let b = ballot(1, 0);
    let records = (first_seq..first_seq + writes).map(|seq| {
        let object = x(volume, random.below(OBJECTS) as u32);
        let first = random.below(300) as u32;
        if random.one_in(20) {
            let blocks = BlockRange::new(first, 1 + random.below(40) as u32);
            let head = Head { ballot: b, seq };
            return Record::Write { object, head, snap: 0, op: WriteOp::Zero { blocks } };
        }
        let marks: Vec<u64> = (0..1 + random.below(4)).map(|n| seq * 8 + n).collect();
        write(object, b, seq, first, &marks)
    });
    give(store, records);
}

/// Written over many times, a volume deleted, cleaned, and stopped in order.
fn used() -> SimMedium {
    let medium = medium();
    let mut random = Rng::new(7);
    let mut store = start(&medium);
    give(&mut store, join(group(1, 0), ballot(1, 0), &[], &[]));
    give(&mut store, join(group(2, 0), ballot(1, 0), &[], &[]));
    churn(&mut store, &mut random, 1, 1, 4000);
    churn(&mut store, &mut random, 2, 1, 1000);
    give(&mut store, [Record::DeleteVolume { volume: VolumeId(2) }]);
    churn(&mut store, &mut random, 1, 5000, 8000);
    let stats = store.stats();
    assert!(stats.moved_blocks > 0 && stats.snapshots > 1 && stats.segments_freed > 10, "{stats:?}");
    store.shutdown().expect("shut down");
    medium
}

#[test]
fn nothing_is_wrong_with_a_store_that_was_written_cleaned_and_crashed() {
    let medium = used();
    let report = check(&medium);
    assert!(report.is_good(), "{:#?}", report.findings);
    assert!(report.blocks > 2000 && report.pages > 10 && report.batches > 2, "{report:?}");
    let mut random = Rng::new(8);
    let mut seq = 20_000;
    for round in 0..8 {
        let mut store = start(&medium);
        churn(&mut store, &mut random, 1, seq, 700);
        // Stopped wherever it is, be it in a checkpoint or in cleaning.
        drop(store);
        let before = check(&medium);
        assert!(before.is_good(), "round {round}: {:#?}", before.findings);
        seq += 1000;
    }
}

#[test]
fn the_log_is_dumped_from_the_snapshot_on() {
    let medium = used();
    let mut store = start(&medium);
    churn(&mut store, &mut Rng::new(9), 1, 20_000, 300);
    drop(store);
    let log = log(&medium);
    let batches: Vec<&Value> = log.iter().filter(|line| line["type"] == "batch").collect();
    assert!(batches.iter().all(|batch| batch["whole"] == true && batch["behind_a_gap"] == false));
    let chained = batches.windows(2).all(|pair| pair[1]["previous_lsn"] == pair[0]["lsn"]);
    assert!(chained, "each follows the one before");
    let of = |kind: &str| log.iter().filter(|line| line["record"] == kind).count();
    assert!(
        of("write") > 10 && of("page") > 1 && of("snapshot-entry") > 10 && of("snapshot-end") >= 1,
        "{log:#?}"
    );
    let info = offline(&medium).info();
    let used = info.bare.roots.iter().find(|root| root.used).expect("a root");
    assert_eq!(batches[0]["lsn"].as_u64(), used.covers);
    assert!(info.space.live_blocks > 2000 && info.space.segments_free > 0, "{:?}", info.space);
    let live: u64 = dump(&medium)
        .iter()
        .filter(|line| line["type"] == "segment")
        .map(|line| line["live"].as_u64().expect("a number"))
        .sum();
    assert_eq!(live, info.space.live_blocks);
}

/// A page that is in the log and names something, and a block: `(object, page or block, byte)`.
fn places(medium: &SimMedium) -> ((String, u64, u64), (String, u64, u64)) {
    let lines = dump(medium);
    let object =
        lines.iter().find(|line| line["pages"][0]["byte"].is_u64() && line["runs"][0]["byte"].is_u64());
    let object = object.expect("an object in the log");
    let name = object["object"].as_str().expect("a name").to_owned();
    let number = |value: &Value| value.as_u64().expect("a number");
    let page = (name.clone(), 0, number(&object["pages"][0]["byte"]));
    let run = &object["runs"][0];
    (page, (name, number(&run["first"]), number(&run["byte"])))
}

/// The kinds of what is wrong, less those of the log: a damaged block may lie in a batch that is read too.
fn kinds(report: &CheckReport) -> Vec<&'static str> {
    report.by_kind.keys().copied().filter(|kind| *kind != "log").collect()
}

#[test]
fn damage_is_found_where_it_is() {
    let medium = used();
    let ((object, _, page_at), (_, block, block_at)) = places(&medium);
    let found = |report: &CheckReport, kind: &str| {
        report.findings.iter().find(|finding| finding.kind == kind).expect("found").clone()
    };

    medium.flip(20);
    let report = check(&medium);
    assert_eq!((kinds(&report), report.wrong, report.findings[0].byte), (vec!["superblock"], 1, Some(0)));
    medium.flip(20);

    let roots = offline(&medium).info().bare.roots;
    let idle = roots.iter().find(|root| !root.used).expect("two roots").byte;
    medium.flip(idle + 50);
    let report = check(&medium);
    assert_eq!((kinds(&report), report.wrong), (vec!["root"], 1));
    assert!(report.findings[0].what.contains(&format!("byte {idle}")), "{report:?}");
    medium.flip(idle + 50);

    medium.flip(block_at + 1000);
    let report = check(&medium);
    assert_eq!(kinds(&report), ["block"]);
    let finding = found(&report, "block");
    assert_eq!((finding.object.as_deref(), finding.byte), (Some(&object[..]), Some(block_at)));
    assert_eq!(
        (finding.block.map(u64::from), finding.segment),
        (Some(block), Some(((block_at - DATA) / SEGMENT) as u32))
    );
    medium.flip(block_at + 1000);

    medium.flip(page_at + 2000);
    let report = check(&medium);
    assert_eq!(kinds(&report), ["table-page"]);
    let finding = found(&report, "table-page");
    assert_eq!((finding.object.as_deref(), finding.byte), (Some(&object[..]), Some(page_at)));
    medium.flip(page_at + 2000);

    medium.fail_reads(Some(block_at), u32::MAX);
    let report = check(&medium);
    assert_eq!(report.by_kind.get("block"), Some(&1), "{report:?}");
    assert!(found(&report, "block").what.contains("cannot be read"), "{report:?}");
    medium.fail_reads(None, 0);
    assert!(check(&medium).is_good());
}

#[test]
fn a_hole_in_the_log_and_data_that_nobody_needs_any_more_are_found() {
    let medium = used();
    let log = log(&medium);
    let batches: Vec<&Value> = log.iter().filter(|line| line["type"] == "batch").collect();
    let middle = batches[batches.len() / 2];
    let at = middle["byte"].as_u64().expect("a place");
    // Data of a batch: a block of it that is live is named as such, and so is the batch.
    let with_data = batches.iter().rev().skip(3).find(|batch| batch["data_blocks"].as_u64() > Some(0));
    let with_data = with_data.expect("a batch with data");
    let data = with_data["byte"].as_u64().expect("a place")
        + 4096 * with_data["header_blocks"].as_u64().unwrap_or(1);
    medium.flip(data + 17);
    let report = check(&medium);
    assert_eq!(report.by_kind.get("log"), Some(&1), "{report:?}");
    assert_eq!(report.findings[0].byte, with_data["byte"].as_u64());
    assert!(report.findings[0].what.contains("does not match the batch's checksum"));
    medium.flip(data + 17);
    // A header: what was in it is lost, and that is said.
    medium.flip(at + 200);
    let report = check(&medium);
    assert!(report.by_kind.contains_key("log") && report.by_kind.contains_key("lost-state"), "{report:?}");
    let gap = report.findings.iter().find(|finding| finding.what.contains("are missing"));
    assert!(gap.is_some(), "{report:?}");
    assert!(offline(&medium).info().is_damaged());
}

#[test]
fn blocks_that_are_known_to_be_bad_are_named_and_findings_have_a_limit() {
    let medium = medium();
    let mut store = start(&medium);
    let b = ballot(1, 0);
    give(&mut store, join(group(1, 0), b, &[], &[]));
    let bad: Vec<(u32, u64)> = (0..20).map(|block| (block, sum(x(1, 0), block, 1))).collect();
    let patch = Patch { blocks: vec![(30, sum(x(1, 0), 30, 2))], data: bytes(2).into(), bad };
    let head = Head { ballot: b, seq: 1 };
    give(&mut store, [Record::Install { object: x(1, 0), head, patches: vec![patch], writes: Vec::new() }]);
    store.shutdown().expect("shut down");
    let report = offline(&medium).check(5, &mut |_, _, _| ());
    assert_eq!((report.wrong, report.findings.len(), report.blocks), (20, 5, 1));
    assert_eq!((report.by_kind["bad-block"], report.findings[4].block), (20, Some(4)));
}

#[test]
fn after_a_crash_an_index_is_made_of_the_snapshot() {
    let medium = used();
    let mut store = start(&medium);
    churn(&mut store, &mut Rng::new(10), 1, 20_000, 400);
    drop(store);
    let dir = tempfile::tempdir().expect("directory");
    let index = dir.path().join("index");
    let offline = offline(&medium);
    assert_eq!(offline.rebuild_index(&index, false).expect("made"), None);
    let mut report = offline.check(10, &mut |_, _, _| ());
    offline.check_index(&index, &mut report).expect("compared");
    assert!(report.is_good(), "{:#?}", report.findings);
    let device = medium.device(9).expect("device");
    let waker = device.waker().clone();
    let (store, recovered) =
        Store::open_on(device, SledIndex::open(&index, waker), StoreOptions::default(), &mut |_, _| ())
            .expect("opens");
    assert_eq!((recovered.how.index, recovered.lost), (IndexUse::Used, None));
    assert_eq!(&recovered.durable, offline.durable());
    store.shutdown().expect("shut down");
    assert!(check(&medium).is_good());
}
