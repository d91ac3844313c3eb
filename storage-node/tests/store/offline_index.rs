//! The index beside a store: compared with what the log says, and made anew so that a start takes it.

use crate::offline_common::*;
use std::path::Path;
use std::time::{Duration, Instant};
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::offline::{CheckReport, IndexError};
use trefoil_storage_node::store::IndexUse;

fn x(index: u32) -> ObjectId {
    object(group(1, 0), index)
}

fn filled() -> TestStore {
    let store = TestStore::new();
    let b = ballot(1, 0);
    let mut records = join(group(1, 0), b, &[], &[]);
    records.extend((0..40).map(|n| write(x(n % 8), b, u64::from(n) + 1, n * 5, &[u64::from(n) + 1, 7])));
    store.take(records, true);
    store
}

fn more(store: &TestStore, checkpoint: bool) {
    let b = ballot(1, 0);
    store.take((0..8).map(|n| write(x(n), b, 100, 300, &[99])).collect(), checkpoint);
}

fn compare(store: &TestStore, index: &Path) -> CheckReport {
    let offline = store.offline();
    let mut report = offline.check(100, &mut |_, _, _| ());
    offline.check_index(index, &mut report).expect("compared");
    report
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let (path, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("an entry");
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("copied");
        }
    }
}

/// Names and contents of all files of a directory.
fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(content(&path));
        } else {
            all.push((path.display().to_string(), std::fs::read(&path).expect("read")));
        }
    }
    all.sort();
    all
}

#[test]
fn an_index_that_leads_to_the_same_state_is_good_however_old_it_is() {
    let store = filled();
    let stale = store.dir.path().join("stale");
    copy(&store.index(), &stale);
    more(&store, true);
    let before = content(&store.index());
    for index in [store.index(), stale.clone()] {
        let report = compare(&store, &index);
        assert!(report.is_good(), "{:#?}", report.findings);
    }
    assert_eq!(content(&store.index()), before, "it was not touched");
    // Nothing is left of the copies. (Those of tests that run beside this one come and go.)
    let mark = format!("trefoil-index-{}-", std::process::id());
    let left = || {
        let entries = std::fs::read_dir(std::env::temp_dir()).expect("listed");
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(&mark)).count()
    };
    let begun = Instant::now();
    while left() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} are left", left());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_index_of_another_store_or_one_that_is_damaged_or_gone_is_found() {
    let store = filled();
    let other = filled();
    let report = compare(&store, &other.index());
    assert_eq!(report.by_kind.keys().copied().collect::<Vec<_>>(), ["index"]);
    assert!(report.findings[0].what.contains("another store"), "{report:?}");
    let empty = store.dir.path().join("empty");
    std::fs::create_dir(&empty).expect("made");
    let report = compare(&store, &empty);
    assert!(report.is_good() && report.notes[0].contains("is empty"), "so it is before the first checkpoint");
    let gone = store.dir.path().join("gone");
    let mut report = CheckReport::default();
    let refused = store.offline().check_index(&gone, &mut report);
    assert!(matches!(refused, Err(IndexError::Io { .. })), "{refused:?}");
    assert!(!gone.exists());
    // Another history that began as this one did: the device is a copy, the index goes on without it.
    let old = store.dir.path().join("old-device");
    std::fs::copy(store.path(), &old).expect("copied");
    more(&store, true);
    std::fs::copy(&old, store.path()).expect("copied back");
    let report = compare(&store, &store.index());
    assert!(report.findings[0].what.contains("not on the device"), "{report:?}");
}

#[test]
fn a_rebuilt_index_is_taken_at_the_next_start() {
    let store = filled();
    more(&store, true);
    let durable = store.offline().durable().clone();
    let aside = store.offline().rebuild_index(&store.index(), false).expect("made");
    assert_eq!(aside, Some(store.dir.path().join("index.old")), "the old one is kept");
    assert!(compare(&store, &store.index()).is_good());
    let (running, recovered) = store.start();
    assert_eq!((recovered.how.index, recovered.lost), (IndexUse::Used, None));
    assert_eq!(recovered.durable, durable);
    drop(running);
    let report = store.offline().check(10, &mut |_, _, _| ());
    assert!(report.is_good(), "{:#?}", report.findings);
    let again = store.offline().rebuild_index(&store.index(), false).expect("made");
    assert_eq!(again, Some(store.dir.path().join("index.old.1")));
}

#[test]
fn what_is_no_index_is_not_overwritten_and_what_cannot_be_made_is_not_begun() {
    let store = filled();
    let dir = store.dir.path().join("photos");
    std::fs::create_dir(&dir).expect("made");
    std::fs::write(dir.join("cat.jpg"), b"miaow").expect("written");
    let refused = store.offline().rebuild_index(&dir, false);
    assert!(matches!(refused, Err(IndexError::NotAnIndex(_))), "{refused:?}");
    assert_eq!(content(&dir).len(), 1);
    let aside = store.offline().rebuild_index(&dir, true).expect("made").expect("moved aside");
    assert_eq!(std::fs::read(aside.join("cat.jpg")).expect("still there"), b"miaow");
    // After a crash before the first snapshot, what is in memory is in no page.
    more(&store, false);
    let fresh = store.dir.path().join("fresh");
    let refused = store.offline().rebuild_index(&fresh, false);
    assert!(matches!(refused, Err(IndexError::NoSnapshot(_))), "{refused:?}");
    assert!(!fresh.exists());
    // A node that has lost state has not heard of it yet: that survives, too.
    store.take(vec![Record::LostState { fences: vec![(VolumeId(1), Generation(4))] }], true);
    store.offline().rebuild_index(&fresh, false).expect("made");
    let report = compare(&store, &fresh);
    assert!(report.is_good(), "{:#?}", report.findings);
}
