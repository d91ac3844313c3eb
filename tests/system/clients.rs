//! Real clients: libnbd's tools, QEMU's, and file systems of the host's kernel.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, Shape};
use crate::tools::{find, lacks, random_file, run};

const MINUTE: Duration = Duration::from_secs(60);
const COPIED: u64 = 512 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}

fn json(program: &str, arguments: &[&str]) -> Value {
    let finished = run(program, arguments, MINUTE).ok(program);
    serde_json::from_str(&finished.out).unwrap_or_else(|error| panic!("{program}: {error}: {}", finished.out))
}

#[track_caller]
fn assert_same_start(left: &Path, right: &Path, bytes: u64) {
    let limit = bytes.to_string();
    run("cmp", &["--bytes", &limit, text(left), text(right)], MINUTE).ok("they are equal");
}

#[test]
fn nbdinfo_shows_the_exports_and_what_they_can_do() {
    if lacks(&["nbdinfo"]) {
        return;
    }
    let cluster = Cluster::start(Shape { volumes: &["disk0=1GiB", "disk1=100MiB"], ..Shape::default() });
    for uri in [cluster.uri("disk0"), cluster.tcp_uri("disk0")] {
        let info = json("nbdinfo", &["--json", &uri]);
        assert_eq!(info["protocol"], "newstyle-fixed", "{info:#}");
        assert_eq!(info["structured"], true, "{info:#}");
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], 1u64 << 30, "{export:#}");
        assert_eq!(export["is_read_only"], false, "{export:#}");
        for ability in [
            "can_cache",
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ] {
            assert_eq!(export[ability], true, "{ability}: {export:#}");
        }
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]), "{export:#}");
        assert_eq!(export["block_size_minimum"], 1, "{export:#}");
        assert_eq!(export["block_size_preferred"], 4096, "{export:#}");
        assert_eq!(export["block_size_maximum"], 32 << 20, "{export:#}");
    }
    let list = json("nbdinfo", &["--json", "--list", &cluster.uri("")]);
    let mut names: Vec<_> =
        list["exports"].as_array().expect("exports").iter().map(|it| it["export-name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["disk0", "disk1"], "{list:#}");
    let unknown = run("nbdinfo", &[&cluster.uri("disk7")], MINUTE);
    assert!(!unknown.status.success() && unknown.err.contains("disk7"), "{unknown:?}");
    cluster.stop();
}

#[test]
fn what_nbdcopy_and_qemu_img_copy_in_comes_out_equal() {
    if lacks(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let shape = Shape { volumes: &["disk0=600MiB", "disk1=600MiB"], limit: 5 * MINUTE, ..Shape::default() };
    let cluster = Cluster::start(shape);
    let folder = tempfile::tempdir().expect("a directory");
    let (source, back) = (folder.path().join("source"), folder.path().join("back"));
    random_file(&source, COPIED);
    let (disk0, disk1) = (cluster.uri("disk0"), cluster.tcp_uri("disk1"));

    let took = run("nbdcopy", &["--flush", text(&source), &disk0], MINUTE).ok("nbdcopy in").took;
    println!("nbdcopy in: {:.0} MB/s", COPIED as f64 / 1e6 / took.as_secs_f64());
    let took = run("nbdcopy", &[&disk0, text(&back)], MINUTE).ok("nbdcopy out").took;
    println!("nbdcopy out: {:.0} MB/s", COPIED as f64 / 1e6 / took.as_secs_f64());
    assert_same_start(&source, &back, COPIED);

    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W"];
    run("qemu-img", &[&convert[..], &[text(&source), &disk1]].concat(), 2 * MINUTE).ok("qemu-img convert in");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &disk1, text(&back)], 2 * MINUTE)
        .ok("convert out");
    assert_same_start(&source, &back, COPIED);
    // Two volumes with the same bytes, written by different clients.
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &disk0, &disk1], MINUTE).ok("qemu-img compare");
    cluster.stop();
}

/// Bytes of a map's extents that satisfy something.
fn bytes_of(map: &Value, is: impl Fn(&Value) -> bool) -> u64 {
    let extents = map.as_array().expect("a list of extents").iter();
    extents.filter(|extent| is(extent)).map(|extent| extent["length"].as_u64().expect("a length")).sum()
}

#[test]
fn trim_and_zero_read_as_zeroes_and_show_as_holes() {
    if lacks(&["nbdinfo", "qemu-img"]) {
        return;
    }
    const MIB: u64 = 1 << 20;
    let cluster = Cluster::start(Shape { volumes: &["disk0=64MiB"], ..Shape::default() });
    let (uri, client) = (cluster.uri("disk0"), cluster.connect("disk0"));
    let map = || json("nbdinfo", &["--json", "--map", &uri]);
    let qemu_map = || json("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let hole = |extent: &Value| extent["type"].as_u64().is_some_and(|bits| bits & 3 == 3);

    assert_eq!(bytes_of(&map(), hole), 64 * MIB, "a new volume is one hole");
    client.write(8 * MIB, &vec![0xa5; 8 << 20]).expect("it writes");
    assert_eq!(bytes_of(&map(), hole), 56 * MIB, "what was written is no hole");
    assert_eq!(bytes_of(&qemu_map(), |extent| extent["zero"] == false), 8 * MIB);

    client.trim(9 * MIB, MIB as usize).expect("it trims");
    client.write_zeroes(12 * MIB, MIB as usize).expect("it zeroes");
    // Not at a block's border: only whole blocks can become holes, the rest must still be zero.
    client.write_zeroes(14 * MIB + 100, 10_000).expect("it zeroes");
    let bytes = client.read(8 * MIB, 8 << 20).expect("it reads");
    let zeroed = [(MIB, 2 * MIB), (4 * MIB, 5 * MIB), (6 * MIB + 100, 6 * MIB + 10_100)];
    for (at, byte) in bytes.iter().enumerate() {
        let at = at as u64;
        let expected = if zeroed.iter().any(|(from, to)| (*from..*to).contains(&at)) { 0 } else { 0xa5 };
        assert_eq!(*byte, expected, "at {at} of the written part");
    }
    let holes = bytes_of(&map(), hole);
    assert!((58 * MIB..=58 * MIB + 2 * 4096).contains(&holes), "{holes} bytes of holes: {:#}", map());
    let not_zero = bytes_of(&qemu_map(), |extent| extent["zero"] == false);
    assert!((6 * MIB - 2 * 4096..=6 * MIB).contains(&not_zero), "{not_zero}");

    client.trim(0, (64 * MIB) as usize).expect("a trim far larger than a payload");
    assert_eq!(bytes_of(&map(), hole), 64 * MIB, "one hole again");
    assert!(client.read(0, 32 << 20).expect("it reads").iter().all(|byte| *byte == 0));
    cluster.stop();
}

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN. SEND_DF only where
/// structured replies were asked for, which this client does not.
const FLAGS_EXPECTED: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;

#[test]
fn any_offset_and_length_is_served() {
    let cluster = Cluster::start(Shape { volumes: &["disk0=64MiB"], ..Shape::default() });
    let client = cluster.connect("disk0");
    assert_eq!(client.flags & FLAGS_EXPECTED, FLAGS_EXPECTED, "{:#x}", client.flags);
    let mut model = vec![0u8; 16 << 20];
    let mut random = crate::blocks::Random::new(11);
    for round in 0..400u64 {
        // Around the border of an object as often as elsewhere.
        let near = if random.below(2) == 0 { 4 << 20 } else { random.below(12 << 20) };
        let offset = (near + random.below(9000)).saturating_sub(4500) as usize;
        let length = 1 + random.below(if round % 20 == 0 { 300_000 } else { 9000 }) as usize;
        match random.below(4) {
            0 => {
                client.write_zeroes(offset as u64, length).expect("it zeroes");
                model[offset..offset + length].fill(0);
            }
            1 => {
                let bytes = client.read(offset as u64, length).expect("it reads");
                assert_eq!(bytes, model[offset..offset + length], "{length} bytes at {offset}");
            }
            _ => {
                let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                client.write(offset as u64, &bytes).expect("it writes");
                model[offset..offset + length].copy_from_slice(&bytes);
            }
        }
    }
    assert!(client.read(0, model.len()).expect("it reads") == model, "the whole of it");
    cluster.stop();
}

/// The scripts that come from outside this repository, if they are there.
fn harness(script: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/harness").join(script);
    path.is_file().then_some(path)
}

#[test]
fn file_systems_of_the_hosts_kernel_live_on_it() {
    let Some(script) = harness("fuse-loop.sh") else {
        println!("SKIP: ../shared/harness/fuse-loop.sh is not there");
        return;
    };
    if !std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        println!("SKIP: fuse-loop.sh needs root");
        return;
    }
    if !Path::new("/dev/fuse").exists()
        || !Path::new("/dev/loop-control").exists()
        || find("nbdfuse").is_none()
    {
        println!("SKIP: no /dev/fuse, /dev/loop-control or nbdfuse on this machine");
        return;
    }
    let shape = Shape { limit: 6 * MINUTE, node_size: "16GiB", ..Shape::default() };
    let cluster = Cluster::start(shape);
    let socket = cluster.socket();
    let name = format!("trefoil{}", std::process::id());
    let arguments = ["test", "--unix", text(&socket), "--export", "disk0", "--name", &name];
    let finished = run(text(&script), &arguments, 5 * MINUTE);
    println!("{}", finished.out);
    // 2: it could not run here, and says why.
    if finished.status.code() == Some(2) {
        println!("SKIP: fuse-loop.sh cannot run here: {}", finished.err.trim());
        return;
    }
    finished.ok("ext4 and xfs");
    cluster.stop();
}
