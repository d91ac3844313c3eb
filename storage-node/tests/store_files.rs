//! The store on real files, with both engines and the real index: format and open errors, SIGKILL at
//! random points, an index that is gone, stale or damaged.

use bytes::Bytes;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::device::file::{Engine, OpenDeviceError};
use trefoil_storage_node::store::{
    FormatError, FormatOptions, IndexUse, OpenError, ReadMode, Recovered, Store, StoreEvent, StoreOptions,
    SuperblockError, format,
};

const SIZE: u64 = (2 << 20) + (12 << 24);

fn format_options(size: Option<u64>, force: bool) -> FormatOptions {
    FormatOptions {
        size,
        cluster_id: [9; 16],
        node_id: NodeId(4),
        segment_bytes: Some(16 << 20),
        preallocate: false,
        force,
    }
}

fn formatted() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    format(&dir.path().join("device"), &format_options(Some(SIZE), false)).expect("formatted");
    dir
}

fn open_as(dir: &Path, engine: Engine) -> Result<(Store, Recovered), OpenError> {
    let options = StoreOptions { engine, checkpoint_bytes: 1 << 20, ..StoreOptions::default() };
    Store::open(&dir.join("device"), &dir.join("index"), options, &mut |_, _| ())
}

fn open(dir: &Path) -> (Store, Recovered) {
    open_as(dir, Engine::Auto).expect("opens")
}

fn object(index: u32) -> ObjectId {
    ObjectId { group: GroupId { volume: VolumeId(1), pg: PgId::default() }, index }
}

fn bytes(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(BLOCK_SIZE / 8)
}

/// Write number `n` goes to a place that follows from `n`.
fn place(n: u64) -> (ObjectId, u32) {
    (object((n % 5) as u32), (n * 7 % 1024) as u32)
}

fn write(n: u64) -> Record<Bytes> {
    let (object, block) = place(n);
    let data = bytes(n);
    let checksum = block_checksum(object.group.volume, object.index, block, &data);
    Record::Write {
        object,
        head: Head { ballot: Ballot(1), seq: n },
        snap: 0,
        op: WriteOp::Data {
            blocks: BlockRange::new(block, 1),
            checksums: [checksum].into(),
            data: data.into(),
        },
    }
}

thread_local! {
    // A store keeps to the runtime that it first waited in.
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("runtime");
}

/// Appends writes `from..=to` and waits until all are durable.
fn fill(store: &mut Store, from: u64, to: u64) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let mut next = from;
            let mut acked = 0;
            let mut events = Vec::new();
            while acked < to {
                while next <= to && next < acked.max(from) + 40 && store.can_accept() {
                    store.append(next, write(next));
                    next += 1;
                }
                store.submit();
                store.ready().await.expect("eventfd");
                store.poll(&mut events);
                for e in events.drain(..) {
                    match e {
                        StoreEvent::Durable { up_to_ticket } => acked = up_to_ticket,
                        other => panic!("{other:?}"),
                    }
                }
            }
        })
    });
}

fn content(store: &mut Store, n: u64) -> u64 {
    let (object, block) = place(n);
    store.read(n, object, BlockRange::new(block, 1), ReadMode::All);
    let mut events = Vec::new();
    while events.is_empty() {
        store.submit();
        store.poll(&mut events);
    }
    match &events[..] {
        [StoreEvent::Read { data, bad, .. }] if bad.is_empty() => {
            data.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
        }
        other => panic!("{other:?}"),
    }
}

/// Every block shows its last write up to `acked`, or a later one.
fn check(store: &mut Store, acked: u64) {
    let mut last = std::collections::HashMap::new();
    for n in 1..=acked {
        last.insert(place(n), n);
    }
    for (at, n) in last {
        let seen = content(store, n);
        assert!(seen >= n && place(seen) == at, "block of write {n} shows {seen}");
    }
}

#[test]
fn both_engines_write_and_read_the_same_store() {
    let dir = formatted();
    for (n, engine) in [Engine::Auto, Engine::Blocking, Engine::Auto].into_iter().enumerate() {
        let (mut store, recovered) = open_as(dir.path(), engine).expect("opens");
        assert_eq!(recovered.lost, None);
        let from = n as u64 * 300;
        check(&mut store, from);
        fill(&mut store, from + 1, from + 300);
        check(&mut store, from + 300);
        store.shutdown().expect("shut down");
    }
    let (store, recovered) = open(dir.path());
    assert_eq!(recovered.how.index, IndexUse::Used);
    assert!(recovered.how.records < 50, "the final checkpoint covers nearly all");
    assert_eq!(store.superblock().node_id, NodeId(4));
}

#[test]
fn what_is_there_is_not_formatted_over() {
    let dir = formatted();
    let path = dir.path().join("device");
    let again = format(&path, &format_options(None, false)).expect_err("refused");
    assert!(again.to_string().contains("a Trefoil store"), "{again}");
    let old = open(dir.path()).1.incarnation;
    format(&path, &format_options(None, true)).expect("forced");
    let new = open(dir.path()).1;
    assert_ne!(old, new.incarnation);
    // The old store's index is not taken for the new one's, nor its log.
    assert!(new.durable.groups.is_empty());
    let other = dir.path().join("other");
    std::fs::write(&other, vec![0u8; SIZE as usize]).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(&other).expect("opened");
    file.write_all_at(&[0x53, 0xef], 0x438).expect("written");
    let refused = format(&other, &format_options(None, false)).expect_err("refused");
    assert!(matches!(&refused, FormatError::NotEmpty { what, .. } if what.contains("ext")), "{refused}");
    let small = format(&dir.path().join("new"), &format_options(Some(8 << 20), false));
    assert!(matches!(small, Err(FormatError::TooSmall { .. })));
    let mut odd = format_options(Some(SIZE), false);
    odd.segment_bytes = Some(33 << 20);
    assert!(matches!(format(&other, &odd), Err(FormatError::Segment(_))));
}

/// A slip in a device's name, or a disk that is away: a store there would be one in memory.
#[test]
fn a_device_that_is_not_there_is_not_made_as_a_file() {
    let dir = tempfile::tempdir().expect("directory");
    let node = Path::new("/dev").join(format!("trefoil-{}", std::process::id()));
    let link = dir.path().join("by-name");
    std::os::unix::fs::symlink(dir.path().join("away"), &link).expect("a link");
    for path in [&node, &link] {
        let refused = format(path, &format_options(Some(SIZE), false));
        let made = path.exists();
        let _ = std::fs::remove_file(path.canonicalize().unwrap_or_default());
        assert!(!made && matches!(refused, Err(FormatError::NoDevice(_))), "{refused:?}");
    }
    // Memory may be meant, too.
    let shm = Path::new("/dev/shm").join(format!("trefoil-{}", std::process::id()));
    if Path::new("/dev/shm").is_dir() {
        let made = format(&shm, &format_options(Some(SIZE), false));
        let _ = std::fs::remove_file(&shm);
        assert!(made.is_ok(), "{made:?}");
    }
}

#[test]
fn a_device_that_is_not_ours_is_refused_untouched() {
    let dir = formatted();
    let path = dir.path().join("device");
    let error = |dir: &Path| open_as(dir, Engine::Auto).err().expect("refused");
    // In use.
    let (store, _) = open(dir.path());
    assert!(matches!(error(dir.path()), OpenError::Device(OpenDeviceError::Locked { .. })));
    store.shutdown().expect("shut down");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    // Truncated.
    file.set_len(SIZE - 4096).expect("truncated");
    assert!(matches!(error(dir.path()), OpenError::Superblock(SuperblockError::Truncated { .. })));
    file.set_len(SIZE).expect("extended");
    // Another version: of one copy that may be rot, of both it is not.
    for (version, text) in [(99u32, "format version 99"), (1, "format version 1")] {
        let good = std::fs::read(&path).expect("read")[..4096].to_vec();
        let mut block = good.clone();
        block[8..12].copy_from_slice(&version.to_le_bytes());
        file.write_all_at(&block, 0).expect("written");
        drop(open(dir.path()).0);
        file.write_all_at(&block, 1 << 20).expect("written");
        let other = error(dir.path());
        assert!(other.to_string().contains(text), "{other}");
        for at in [0, 1 << 20] {
            file.write_all_at(&good, at).expect("written");
        }
    }
    // Foreign.
    file.write_all_at(&[0; 4096], 0).expect("written");
    file.write_all_at(&[0; 4096], 1 << 20).expect("written");
    assert!(matches!(error(dir.path()), OpenError::Superblock(SuperblockError::Foreign { .. })));
    std::fs::remove_file(&path).expect("removed");
    assert!(matches!(error(dir.path()), OpenError::Device(OpenDeviceError::Open { .. })));
    assert!(!path.exists(), "opening makes nothing");
}

#[test]
fn an_index_that_is_gone_stale_or_damaged_costs_nothing_but_time() {
    let dir = formatted();
    let index = dir.path().join("index");
    let (mut store, _) = open(dir.path());
    fill(&mut store, 1, 400);
    store.shutdown().expect("shut down");
    let stale = dir.path().join("stale");
    copy(&index, &stale);
    let (mut store, _) = open(dir.path());
    fill(&mut store, 401, 800);
    store.shutdown().expect("shut down");
    let whole = open(dir.path()).1.durable;
    // Stale: replays more.
    std::fs::remove_dir_all(&index).expect("removed");
    copy(&stale, &index);
    let (mut store, recovered) = open(dir.path());
    assert_eq!(recovered.how.index, IndexUse::Used);
    assert!(recovered.how.records >= 400);
    assert_eq!((recovered.lost, &recovered.durable), (None, &whole));
    check(&mut store, 800);
    drop(store);
    // Gone.
    std::fs::remove_dir_all(&index).expect("removed");
    let (mut store, recovered) = open(dir.path());
    assert_eq!(recovered.how.index, IndexUse::Missing);
    assert_eq!((recovered.lost, &recovered.durable), (None, &whole));
    check(&mut store, 800);
    store.shutdown().expect("shut down");
    assert_eq!(open(dir.path()).1.how.index, IndexUse::Used, "made again");
    // Damaged in every way that comes to mind; whatever sled says, the answer is the same.
    for round in 0..6u64 {
        for entry in std::fs::read_dir(&index).expect("listed") {
            let path = entry.expect("entry").path();
            if !path.is_file() {
                continue;
            }
            let len = std::fs::metadata(&path).expect("looked").len();
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
            match round {
                0 => file.set_len(len / 2).expect("cut"),
                1 => file.set_len(0).expect("cut"),
                n => file.write_all_at(&vec![0xa5; 512], len * (n - 2) / 4).expect("written"),
            }
        }
        std::fs::write(index.join("snap.000.generating"), b"half").expect("written");
        let (mut store, recovered) = open(dir.path());
        assert_eq!((recovered.lost, &recovered.durable), (None, &whole), "round {round}");
        check(&mut store, 800);
        store.shutdown().expect("shut down");
    }
    // Of another store.
    let other = formatted();
    let (store, _) = open(other.path());
    store.shutdown().expect("shut down");
    std::fs::remove_dir_all(&index).expect("removed");
    copy(&other.path().join("index"), &index);
    let (_, recovered) = open(dir.path());
    assert!(matches!(recovered.how.index, IndexUse::Discarded(why) if why.contains("another store")));
    assert_eq!((recovered.lost, recovered.durable), (None, whole));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn a_device_rolled_back_behind_its_index_is_lost_state() {
    let dir = formatted();
    let path = dir.path().join("device");
    let (mut store, _) = open(dir.path());
    fill(&mut store, 1, 50);
    store.shutdown().expect("shut down");
    let old = dir.path().join("old");
    std::fs::copy(&path, &old).expect("copied");
    let (mut store, _) = open(dir.path());
    fill(&mut store, 51, 100);
    let position = store.log_position();
    store.shutdown().expect("shut down");
    std::fs::copy(&old, &path).expect("copied");
    let (_, recovered) = open(dir.path());
    assert!(recovered.lost.is_some());
    assert!(recovered.log_position < position);
}

/// The child of the test below: writes as fast as it can and says what was acknowledged.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(dir) = std::env::var("STORE_KILL_DIR") else {
        return;
    };
    let from: u64 = std::env::var("STORE_KILL_FROM").ok().and_then(|s| s.parse().ok()).expect("a number");
    let (mut store, _) = open(Path::new(&dir));
    let mut acked = from;
    loop {
        fill(&mut store, acked + 1, acked + 10);
        acked += 10;
        println!("acked {acked}");
        std::io::stdout().flush().expect("written");
    }
}

#[test]
fn sigkill_at_random_points_loses_nothing_acknowledged() {
    let dir = formatted();
    let mut acked = 0u64;
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().expect("myself"))
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env("STORE_KILL_DIR", dir.path())
            .env("STORE_KILL_FROM", acked.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut seen = 0;
        for line in lines {
            let Ok(line) = line else { break };
            if let Some((_, n)) = line.rsplit_once("acked ") {
                acked = n.parse().expect("a number");
                seen += 1;
            }
            if seen > 5 + round * 3 {
                let _ = child.kill();
            }
        }
        let _ = child.wait();
        assert!(seen > 5, "the child worked");
        if round % 3 == 2 {
            std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
        }
        let (mut store, recovered) = open(dir.path());
        assert_eq!(recovered.lost, None);
        assert!(recovered.how.damage.is_empty());
        check(&mut store, acked);
        // The numbers of writes go on after what is there.
        let group = &recovered.durable.groups[&object(0).group];
        acked = acked.max(group.objects.values().map(|h| h.seq).max().unwrap_or(0));
    }
}
