//! What the tests on real devices share: loop devices that are detached whatever happens, mounts that are
//! unmounted, and a store that is written and read.

use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::device::buffer::{Buf, Pool};
use trefoil_storage_node::device::file::{Engine, FileDevice, RawDevice};
use trefoil_storage_node::device::{Completion, Device, Op};
use trefoil_storage_node::store::{FormatOptions, ReadMode, Store, StoreEvent, StoreOptions};

/// Large enough for a store, and sparse.
pub const SIZE: u64 = 600 << 20;

pub fn options(force: bool) -> FormatOptions {
    FormatOptions {
        size: None,
        cluster_id: [9; 16],
        node_id: NodeId(4),
        segment_bytes: None,
        preallocate: false,
        force,
    }
}

/// Runs a program; what it wrote to standard output, or nothing if it fails.
pub fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    if !output.status.success() {
        eprintln!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A loop device on a sparse file. Dropping it detaches it.
pub struct Loop {
    pub path: PathBuf,
    pub backing: PathBuf,
    dir: tempfile::TempDir,
}

impl Loop {
    /// `None`, and the reason on standard error, where loop devices cannot be had.
    pub fn new(size: u64, sector: u32) -> Option<Loop> {
        let dir = tempfile::tempdir().expect("directory");
        let backing = dir.path().join("backing");
        let file = File::create(&backing).expect("made");
        file.set_len(size).expect("extended");
        if File::options().read(true).write(true).open("/dev/loop-control").is_err() {
            eprintln!("skipped: loop devices need root and /dev/loop-control");
            return None;
        }
        let sector = sector.to_string();
        let arguments =
            ["--find", "--show", "--partscan", "--sector-size", &sector, backing.to_str().expect("UTF-8")];
        let Some(path) = run("losetup", &arguments) else {
            eprintln!("skipped: losetup makes no loop device with sectors of {sector} bytes here");
            return None;
        };
        Some(Loop { path: path.into(), backing, dir })
    }

    pub fn str(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    /// A directory beside the backing file.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).expect("made");
        dir
    }

    /// Makes a file system on it and mounts that.
    pub fn mounted(&self) -> Option<Mount<'_>> {
        self.mounted_from(&self.path)
    }

    /// The same on a partition of it.
    pub fn mounted_from(&self, device: &Path) -> Option<Mount<'_>> {
        let at = self.dir("mnt");
        run("mkfs.ext4", &["-q", "-F", "-L", "a name", device.to_str()?])?;
        run("mount", &[device.to_str()?, at.to_str()?])?;
        Some(Mount { at, _on: self })
    }

    /// Bytes that the backing file takes.
    pub fn allocated(&self) -> u64 {
        std::fs::metadata(&self.backing).expect("there").blocks() * 512
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.str()]);
    }
}

/// A mounted loop device. Dropping it unmounts it.
pub struct Mount<'a> {
    pub at: PathBuf,
    _on: &'a Loop,
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.at.to_str() {
            // Frozen or not.
            let _ = Command::new("fsfreeze").args(["--unfreeze", at]).output();
            run("umount", &[at]);
        }
    }
}

pub fn device(path: &Path, engine: Engine) -> FileDevice {
    let raw = RawDevice::open(path, false).expect("opens");
    FileDevice::new(raw, engine).expect("starts")
}

pub fn buffer(len: usize, fill: u8) -> Buf {
    let mut buf = Pool::new(u64::MAX, 0, None).get(len).expect("memory");
    buf.fill(fill);
    buf
}

pub fn data(len: usize, fill: u8) -> Vec<Bytes> {
    vec![buffer(len, fill).freeze()]
}

/// Starts an operation and waits for it.
pub fn one(device: &mut FileDevice, op: Op) -> Completion {
    device.start(77, op);
    device.submit().expect("submitted");
    let mut out = Vec::new();
    while out.is_empty() {
        device.completions(&mut out);
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    let completion = out.remove(0);
    assert_eq!(completion.id, 77);
    completion
}

fn place(n: u64) -> (ObjectId, u32) {
    let group = GroupId { volume: VolumeId(1), pg: PgId::default() };
    (ObjectId { group, index: (n % 5) as u32 }, (n * 7 % 1024) as u32)
}

fn write(n: u64) -> Record<Bytes> {
    let (object, block) = place(n);
    let bytes = n.to_le_bytes().repeat(BLOCK_SIZE / 8);
    let checksum = block_checksum(object.group.volume, object.index, block, &bytes);
    let blocks = BlockRange::new(block, 1);
    let op = WriteOp::Data { blocks, checksums: [checksum].into(), data: bytes.into() };
    Record::Write { object, head: Head { ballot: Ballot(1), seq: n }, snap: 0, op }
}

pub fn open(path: &Path, index: &Path, engine: Engine) -> Store {
    let options = StoreOptions { engine, ..StoreOptions::default() };
    Store::open(path, index, options, &mut |_, _| ()).expect("opens").0
}

/// Writes `1..=n` into a store that has just been opened, and waits until all of it is durable.
pub fn fill(store: &mut Store, n: u64) {
    let (mut next, mut acked) = (1, 0);
    let mut events = Vec::new();
    while acked < n {
        while next <= n && next < acked + 40 && store.can_accept() {
            store.append(next, write(next));
            next += 1;
        }
        store.submit();
        store.poll(&mut events);
        for event in events.drain(..) {
            match event {
                StoreEvent::Durable { up_to_ticket } => acked = up_to_ticket,
                other => panic!("{other:?}"),
            }
        }
        // Into the kernel, which hands over completions there.
        std::thread::yield_now();
    }
}

/// The last `count` of writes `1..=n` are there.
pub fn check(store: &mut Store, n: u64, count: u64) {
    for n in n - count + 1..=n {
        let (object, block) = place(n);
        store.read(n, object, BlockRange::new(block, 1), ReadMode::All);
        let mut events = Vec::new();
        while events.is_empty() {
            store.submit();
            store.poll(&mut events);
            std::thread::yield_now();
        }
        match &events[..] {
            [StoreEvent::Read { data, bad, .. }] if bad.is_empty() => {
                assert_eq!(data.first_chunk().map(|b| u64::from_le_bytes(*b)), Some(n));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Blocks in one write of [`overwrite`].
const RUN: u32 = 64;
/// Writes until [`overwrite`] comes to the same place again.
const ROUND: u64 = 5 * 1024 / RUN as u64;

fn run_place(n: u64) -> (ObjectId, u32) {
    let group = GroupId { volume: VolumeId(2), pg: PgId::default() };
    (ObjectId { group, index: (n % 5) as u32 }, (n % ROUND / 5) as u32 * RUN)
}

/// Overwrites the same 20 MiB again and again, `n` times 256 KiB in all, in a store that has just been made.
pub fn overwrite(store: &mut Store, n: u64) {
    let (mut next, mut acked) = (1, 0);
    let mut events = Vec::new();
    while acked < n {
        while next <= n && next < acked + 20 && store.can_accept() {
            let (object, first) = run_place(next);
            let bytes: Bytes = next.to_le_bytes().repeat(BLOCK_SIZE / 8).into();
            let checksum = |block| block_checksum(object.group.volume, object.index, block, &bytes);
            let checksums = (first..first + RUN).map(checksum).collect();
            let op = WriteOp::Data {
                blocks: BlockRange::new(first, RUN),
                checksums,
                data: bytes.repeat(RUN as usize).into(),
            };
            let head = Head { ballot: Ballot(1), seq: next };
            store.append(next, Record::Write { object, head, snap: 0, op });
            next += 1;
        }
        store.submit();
        store.poll(&mut events);
        for event in events.drain(..) {
            match event {
                StoreEvent::Durable { up_to_ticket } => acked = up_to_ticket,
                other => panic!("{other:?}"),
            }
        }
        std::thread::yield_now();
    }
}

/// Every block shows the last of `n` overwrites.
pub fn check_overwritten(store: &mut Store, n: u64) {
    for n in n - ROUND + 1..=n {
        let (object, first) = run_place(n);
        store.read(n, object, BlockRange::new(first, RUN), ReadMode::All);
        let mut events = Vec::new();
        while events.is_empty() {
            store.submit();
            store.poll(&mut events);
            std::thread::yield_now();
        }
        match &events[..] {
            [StoreEvent::Read { data, bad, .. }] if bad.is_empty() => {
                assert_eq!(data.len(), RUN as usize * BLOCK_SIZE);
                assert!(data.chunks(8).all(|word| word == n.to_le_bytes()), "write {n}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Format, open, write, shut down, open again, read: with one engine, then with the other.
pub fn use_as_store(path: &Path, index: &Path, engines: [Engine; 2]) {
    for (round, engine) in engines.into_iter().enumerate() {
        let index = index.join(format!("index-{round}"));
        Store::format(path, &options(round > 0)).expect("formatted");
        let mut store = open(path, &index, engine);
        fill(&mut store, 500);
        store.shutdown().expect("shut down");
        let mut store = open(path, &index, engine);
        check(&mut store, 500, 100);
        store.shutdown().expect("shut down");
    }
}

/// Writes more than fits, all to the same places, reads it, and again with the other engine after a restart.
/// Returns how many segments have been freed.
pub fn go_round(path: &Path, index: &Path) -> u64 {
    Store::format(path, &options(false)).expect("formatted");
    let mut store = open(path, index, Engine::Auto);
    let writes = SIZE / (256 << 10) * 3 / 2;
    overwrite(&mut store, writes);
    let freed = store.stats().segments_freed;
    check_overwritten(&mut store, writes);
    store.shutdown().expect("shut down");
    let mut store = open(path, index, Engine::Blocking);
    check_overwritten(&mut store, writes);
    store.shutdown().expect("shut down");
    freed
}
