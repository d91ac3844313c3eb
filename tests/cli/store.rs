//! `trefoil store ...` as people and scripts use it: what it writes, what it refuses, and how it ends.

// The same stores as the library's own tests use.
#[path = "../../storage-node/tests/store/offline_common.rs"]
mod offline_common;

use crate::common::{bad, good, run, stderr, stdout};
use offline_common::*;
use serde_json::Value;
use trefoil_core::ids::*;

/// Objects 0 and 2 of volume 1, in 64 KiB each.
fn filled() -> TestStore {
    let store = TestStore::new();
    let (g, b) = (group(1, 0x1c), ballot(3, 1));
    let mut records = join(g, b, &[], &[]);
    records.push(write(object(g, 0), b, 1, 2, &[11, 12]));
    records.push(write(object(g, 2), b, 1, 0, &[13]));
    store.take(records, true);
    store
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&good(arguments)).expect("JSON")
}

/// Ends with that code; what it wrote to standard output and standard error.
fn ends(arguments: &[&str], code: i32) -> (String, String) {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    (stdout(&output), stderr(&output))
}

#[test]
fn people_see_what_a_store_holds() {
    let store = filled();
    let path = store.path();
    let path = path.to_str().expect("UTF-8");
    let info = good(&["store", "info", path]);
    for line in ["incarnation   ", "superblock    at byte 0: good", "root ", "log ends at   LSN ", "live "] {
        assert!(info.lines().any(|it| it.starts_with(line)), "{line}: {info}");
    }
    assert!(info.contains("1 PGs, 1 groups, 2 objects"), "{info}");
    let list = good(&["store", "list", path]);
    assert_eq!(
        list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect::<Vec<_>>(),
        [vec!["VOLUME", "FENCE", "GROUPS", "LOST", "OBJECTS", "BEHIND"], vec!["1", "-", "1", "0", "2", "0"]]
    );
    let objects = good(&["store", "list", path, "--volume", "vol1"]);
    let rows: Vec<Vec<&str>> =
        objects.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["0", "1.1c", "(3.1,1)", "-", "2", "0"], ["2", "1.1c", "(3.1,1)", "-", "1", "0"]]);
    for name in ["1/0", "vol1/0", "vol1/1.1c/0"] {
        let show = good(&["store", "show", path, name]);
        assert!(show.starts_with("object    vol1/1.1c/0\nhead      (3.1,1)\nline      3.1\n"), "{show}");
        assert!(show.contains("2 there, 0 bad") && show.contains("\n    2     3       2  "), "{show}");
    }
    let told = bad(&["store", "show", path, "1/7"], 2);
    assert!(told.contains("has no object 1/7"), "{told}");
    assert!(bad(&["store", "show", path, "seven"], 2).contains("is no object: give VOLUME/PG/INDEX"));
    let check = good(&["store", "check", path, "--index", store.index().to_str().expect("UTF-8")]);
    assert!(check.ends_with("nothing is wrong\n"), "{check}");
    assert!(check.contains("2 objects, ") && check.contains("3 good blocks (12 KiB)"), "{check}");
}

#[test]
fn scripts_get_json() {
    let store = filled();
    let path = store.path();
    let path = path.to_str().expect("UTF-8");
    let info = json(&["store", "info", path, "--json"]);
    assert_eq!(info["incarnation"], format!("{:016x}", store.incarnation.0));
    assert_eq!((&info["objects"], &info["lost"]), (&2.into(), &Value::Null));
    let list = json(&["store", "list", path, "--volume", "1", "--json"]);
    assert_eq!(list[1]["object"], "vol1/1.1c/2");
    assert_eq!(list[0]["head"], serde_json::json!({ "generation": 3, "round": 1, "seq": 1 }));
    assert_eq!(json(&["store", "list", path, "--volume", "9", "--json"]), serde_json::json!([]));
    let show = json(&["store", "show", path, "1/0", "--json"]);
    assert_eq!((&show["runs"][0]["first"], &show["runs"][0]["count"]), (&2.into(), &2.into()));
    assert_eq!(json(&["store", "check", path, "--json"])["wrong"], 0);
    let dump = good(&["store", "dump", path, "--json", "--records"]);
    let types: Vec<Value> =
        dump.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["type"].clone()).collect();
    for kind in ["store", "pg", "group", "object", "segment", "batch", "record"] {
        assert!(types.iter().any(|it| it == kind), "{kind}");
    }
    // Whoever reads half of it is no failure.
    let script = format!("{} store dump {path} --json --records | head -n 1", env!("CARGO_BIN_EXE_trefoil"));
    let head =
        std::process::Command::new("bash").args(["-c", &format!("set -o pipefail; {script}")]).output();
    assert!(head.expect("bash runs").status.success());
}

#[test]
fn damage_is_exit_code_1_and_what_cannot_be_done_is_2() {
    let store = filled();
    let path = store.path();
    let path = path.to_str().expect("UTF-8");
    let out = store.dir.path().join("object");
    let out = out.to_str().expect("UTF-8");
    assert!(good(&["store", "export", path, "1/0", "--out", out]).contains("2 blocks in "));
    assert_eq!(marks(out.as_ref()), [0, 0, 11, 12].map(Some));
    assert!(bad(&["store", "export", path, "1/0", "--out", out], 2).contains("overwrite it with --force"));
    let at = store.place(object(group(1, 0x1c), 0), 3);
    store.flip(at + 9);
    let (said, told) = ends(&["store", "export", path, "1/0", "--out", out, "--force"], 1);
    assert!(said.contains("1 block in ") && said.contains("1 bad"), "{said}");
    assert!(told.contains(&format!("block 3 of vol1/1.1c/0 (byte {at} of ")), "{told}");
    assert_eq!(marks(out.as_ref()), [0, 0, 11, 0].map(Some));
    let (said, _) = ends(&["store", "check", path], 1);
    assert!(
        said.contains("WRONG: ") && said.contains("vol1/1.1c/0") && said.contains(&at.to_string()),
        "{said}"
    );

    // The device itself is no place for an image, whatever is said.
    for command in
        [vec!["store", "export", path, "1/0"], vec!["store", "export-volume", "1", "--device", path]]
    {
        let more = match command[1] {
            "export" => vec![],
            _ => vec!["--size", "1M", "--believe-one"],
        };
        let told = bad(&[&command[..], &more, &["--out", path, "--force"]].concat(), 2);
        assert!(told.contains("in use"), "{told}");
    }
    ends(&["store", "check", path], 1);
    // Both superblocks gone: still an answer, and not a good one.
    store.flip(20);
    assert!(ends(&["store", "check", path], 1).0.contains("superblock"));
    store.flip((1 << 20) + 20);
    let (said, _) = ends(&["store", "check", path], 1);
    assert!(said.contains("both copies of the superblock") && said.contains("1 superblock"), "{said}");
    store.flip(20);
    store.flip((1 << 20) + 20);

    let (running, _) = store.start();
    for command in ["info", "check", "list"] {
        let told = bad(&["store", command, path], 2);
        assert!(told.ends_with("is in use: stop the storage node first\n"), "{told}");
    }
    drop(running);
    assert!(bad(&["store", "info", "/nonexistent"], 2).contains("cannot open /nonexistent for reading"));
    assert!(bad(&["store", "info", out], 2).contains("holds no Trefoil store"));
    assert!(bad(&["store", "info"], 2).contains("Usage: "));
    let photos = store.dir.path().join("photos");
    std::fs::create_dir(&photos).expect("made");
    std::fs::write(photos.join("cat.jpg"), b"miaow").expect("written");
    let photos = photos.to_str().expect("UTF-8");
    assert!(
        bad(&["store", "rebuild-index", path, "--index", photos], 2)
            .contains("holds something that is no index")
    );
    let index = store.index();
    let said = good(&["store", "rebuild-index", path, "--index", index.to_str().expect("UTF-8")]);
    assert!(said.contains("what was there is now ") && said.contains("a new index of "), "{said}");
}

#[test]
fn a_device_whose_log_cannot_be_followed_still_shows_what_is_on_it() {
    let store = filled();
    let path = store.path();
    let path = path.to_str().expect("UTF-8");
    let batches = |text: &str| text.lines().filter(|line| line.contains(r#""type":"batch""#)).count();
    let whole = batches(&good(&["store", "dump", path, "--json", "--records"]));
    assert!(whole > 2);
    assert_eq!(batches(&good(&["store", "dump", path, "--json", "--scan"])), whole);
    // Both roots, and the first batch: nothing says where to begin.
    for byte in [(64 << 10) + 30, (1 << 20) + (64 << 10) + 30, (2 << 20) + 100] {
        store.flip(byte);
    }
    let (said, _) = ends(&["store", "info", path], 1);
    assert!(said.contains("superblock    at byte 0: good") && said.contains("LOG DAMAGE"), "{said}");
    assert_eq!(said.matches("DAMAGED").count(), 2, "the roots: {said}");
    let (said, _) = ends(&["store", "info", path, "--json"], 1);
    let info: Value = serde_json::from_str(&said).expect("JSON");
    assert!(info["trouble"].as_str().is_some_and(|text| text.contains("no snapshot")), "{said}");
    let (said, _) = ends(&["store", "check", path], 1);
    assert!(said.contains("no snapshot in the log can be read whole"), "{said}");
    let scan = good(&["store", "dump", path, "--json", "--scan"]);
    assert_eq!(batches(&scan), whole - 1);
    assert!(scan.contains(r#""record":"write""#), "{scan}");
    bad(&["store", "list", path], 2);
}

#[test]
fn a_volume_comes_out_of_two_of_three_devices() {
    let stores = [filled(), filled()];
    let paths = stores.each_ref().map(|store| store.path().to_str().expect("UTF-8").to_owned());
    let out = stores[0].dir.path().join("image");
    let out = out.to_str().expect("UTF-8");
    let base =
        ["store", "export-volume", "1", "--size", "256K", "--object-size", "64K", "--out", out, "--force"];
    let with = |more: &[&'static str], devices: &[&str]| -> Vec<String> {
        let devices = devices.iter().flat_map(|device| ["--device", *device]);
        base.into_iter().chain(more.iter().copied()).chain(devices).map(str::to_owned).collect()
    };
    let run =
        |arguments: &[String], code| ends(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code);
    // A placement group is known, so what is not in it was never written... if there is one only.
    let (said, told) = run(&with(&[], &[&paths[0], &paths[1]]), 1);
    assert!(told.contains("2 objects are on none of these devices") && told.contains("--map"), "{told}");
    assert!(said.contains("4 objects: 2 decided, 2 empty, 0 undecided"), "{said}");
    let marks = marks(out.as_ref());
    assert_eq!((marks.len(), marks[2], marks[3], marks[32]), (64, Some(11), Some(12), Some(13)));
    let (_, told) = run(&with(&[], &[&paths[0]]), 2);
    assert!(told.contains("1 of 3 copies is no majority") && told.contains("--believe-one"), "{told}");
    let (said, told) = run(&with(&["--believe-one", "--json"], &[&paths[0]]), 1);
    let report: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&report["believed"], &report["decided"]), (&2.into(), &0.into()));
    assert!(told.contains("was believed, as it was asked for"), "{told}");
    let (_, told) = run(&with(&[], &[&paths[0], &paths[0]]), 2);
    assert!(told.contains("are the same store"), "{told}");
    let named = ["store", "export-volume", "disk0", "--size", "1M", "--out", out, "--device", &paths[0]];
    let told = bad(&named, 2);
    assert!(told.contains("only a cluster map knows names: give --map"), "{told}");
    assert!(bad(&["store", "export-volume", "1", "--out", out, "--device", &paths[0]], 2).contains("--size"));
    assert_eq!(ObjectId::default().to_string(), "vol0/0.0/0", "the form that the commands take");
}

#[test]
fn every_command_has_help_with_examples() {
    let commands = ["info", "check", "list", "show", "export", "dump", "export-volume", "rebuild-index"];
    for command in commands {
        let help = good(&["store", command, "--help"]);
        assert!(help.contains("Examples:\n  trefoil store "), "{command}: {help}");
    }
    let help = good(&["store", "--help"]);
    assert!(commands.iter().all(|command| help.contains(command)) && help.contains("Exit codes"), "{help}");
    assert!(good(&["completions", "bash"]).contains("export-volume"));
}
