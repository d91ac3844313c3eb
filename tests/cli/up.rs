//! `trefoil up` in one process: what it makes, what it keeps, what it refuses.

use crate::common::*;
use serde_json::Value;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

/// What `up` on `dir` has written down.
fn state(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("up.json")).unwrap()).unwrap()
}

fn monitor(dir: &Path) -> String {
    state(dir)["monitor"].as_str().unwrap().to_owned()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&good(arguments)).unwrap()
}

/// An NBD server greets.
fn greets(mut stream: impl Read) {
    let mut greeting = [0; 16];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT");
}

#[test]
fn from_nothing_to_a_disk_and_back_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &[]);
    let uri = up.ready();
    assert!(uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/disk0"), "{uri}");
    for said in ["new: a monitor and 3 storage nodes", "made volume disk0 of 1 GiB", "NBD  nbd://"] {
        assert!(up.said.iter().any(|line| line.contains(said)), "{said}: {:#?}", up.said);
    }
    let next = ["sudo nbd-client ", "qemu-system-x86_64 ", "fio "];
    for program in next {
        let line = up.said.iter().find(|line| line.trim_start().starts_with(program));
        assert!(line.is_some_and(|line| line.contains("disk0")), "{program}: {:#?}", up.said);
    }
    let address = uri.strip_prefix("nbd://").unwrap().strip_suffix("/disk0").unwrap();
    greets(TcpStream::connect(address).unwrap());
    greets(UnixStream::connect(dir.join("nbd.sock")).unwrap());

    let monitor = monitor(&dir);
    let at = ["--monitor", &monitor];
    eventually("the cluster is healthy", || {
        json(&["status", "--json", at[0], at[1]])["health"] == "HEALTH_OK"
    });
    let status = json(&["status", "--json", "--exit-code", at[0], at[1]]);
    assert_eq!((&status["nodes"]["up"], &status["nodes"]["total"]), (&3.into(), &3.into()));
    assert_eq!((&status["pgs"]["active"], &status["pgs"]["total"]), (&32.into(), &32.into()));
    assert_eq!(status["volumes"]["total"], 1);
    assert_eq!(status["checks"], Value::Array(vec![]));
    let screen = good(&["status", at[0], at[1]]);
    assert!(screen.starts_with("health    HEALTH_OK\n"), "{screen}");
    assert!(screen.contains("nodes     3 of 3 up\n"), "{screen}");
    assert!(screen.contains("pgs       32 of 32 active, in 1 pool\n"), "{screen}");

    let nodes = json(&["node", "list", "--json", at[0], at[1]]);
    let nodes = nodes.as_array().unwrap();
    let ids: Vec<u64> = nodes.iter().map(|node| node["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [0, 1, 2]);
    // node-0 is node 0, and so on.
    for (i, node) in nodes.iter().enumerate() {
        assert_eq!(node["address"], state(&dir)["nodes"][i]["address"]);
        assert_eq!(node["state"], "up");
        assert_eq!(node["bad_blocks"], 0);
    }
    let pgs = json(&["pg", "list", "--json", at[0], at[1]]);
    assert_eq!(pgs.as_array().unwrap().len(), 32);
    assert!(pgs.as_array().unwrap().iter().all(|pg| pg["state"] == "active"));
    assert!(pgs.as_array().unwrap().iter().all(|pg| pg["acting"].as_array().unwrap().len() == 3));
    let pools = json(&["pool", "list", "--json", at[0], at[1]]);
    assert_eq!((&pools[0]["name"], &pools[0]["copies"]), (&"default".into(), &3.into()));
    for list in ["node", "pg", "pool"] {
        let table = good(&[list, "list", at[0], at[1]]);
        assert!(table.lines().count() > 1, "{table}");
    }

    let made = good(&["volume", "create", "disk1", "2G", "--io-timeout", "30s", at[0], at[1]]);
    assert_eq!(made, "made volume disk1 (2 GiB, id 2) in pool default\n");
    let told = bad(&["volume", "create", "disk1", "2G", at[0], at[1]], 1);
    assert!(told.contains("\"disk1\" exists already"), "{told}");
    let told = bad(&["volume", "create", "disk2", "2G", "--pool", "none", at[0], at[1]], 1);
    assert!(told.contains("there is no pool none"), "{told}");
    assert_eq!(told.matches("there is no pool none").count(), 1, "{told}");
    let info = json(&["volume", "info", "disk1", "--json", at[0], at[1]]);
    assert_eq!((&info["size_bytes"], &info["io_timeout_ms"]), (&(2u64 << 30).into(), &30_000.into()));
    assert_eq!((&info["state"], &info["clean"]), (&"detached".into(), &true.into()));
    assert!(
        good(&["volume", "info", "disk1", at[0], at[1]]).contains("size         2 GiB (2147483648 bytes)\n")
    );
    good(&["volume", "create", "disk9", "4K", at[0], at[1]]);
    let told = bad(&["volume", "remove", "disk9", at[0], at[1]], 1);
    assert!(told.contains("say --yes"), "{told}");
    good(&["volume", "remove", "disk9", "--yes", at[0], at[1]]);
    assert!(bad(&["volume", "info", "disk9", at[0], at[1]], 1).contains("there is no volume"));

    up.stop();
    up.line("stopped");
    assert!(bad(&["status", at[0], at[1]], 3).contains("no monitor answers"));

    let mut up = Up::start(&dir, &[]);
    up.ready();
    for said in ["kept: 3 storage nodes", "found volume disk0 of 1 GiB", "found volume disk1 of 2 GiB"] {
        assert!(up.said.iter().any(|line| line.contains(said)), "{said}: {:#?}", up.said);
    }
    let volumes = json(&["volume", "list", "--json", "--monitor", &monitor]);
    let names: Vec<&str> =
        volumes.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk0", "disk1"]);
    up.stop();
}

#[test]
fn other_commands_find_the_up_that_runs_here() {
    let parent = tempfile::tempdir().unwrap();
    let mut up = Up::start(&parent.path().join("trefoil-data"), &["--volume", "a=64M"]);
    up.ready();
    let list = trefoil(&["volume", "list"]).current_dir(parent.path()).output().unwrap();
    assert!(
        list.status.success() && stdout(&list).contains("\na      1  64 MiB  default"),
        "{}",
        stdout(&list)
    );
    up.stop();
    let list = trefoil(&["volume", "list"]).current_dir(parent.path()).output().unwrap();
    assert_eq!(list.status.code(), Some(3));
}

#[test]
fn port_0_is_any_port_and_the_same_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let arguments = ["up", "--dir", dir.to_str().unwrap(), "--node-size", "512M", "--listen", "127.0.0.1:0"];
    let mut up = Up::run(trefoil(&arguments));
    let uri = up.ready();
    let address = uri.strip_prefix("nbd://").unwrap().strip_suffix("/disk0").unwrap();
    greets(TcpStream::connect(address).unwrap());
    up.stop();
    let mut up = Up::run(trefoil(&arguments));
    assert_eq!(up.ready(), uri);
    up.stop();
}

#[test]
fn a_directory_is_used_once_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--volume", "a=64M"]);
    up.ready();
    let listen = format!("127.0.0.1:{}", free_port());
    let told = bad(&["up", "--dir", dir.to_str().unwrap(), "--listen", &listen], 1);
    assert!(told.contains(&format!("is in use by `trefoil up` with pid {}", up.pid())), "{told}");
    up.stop();
}

#[test]
fn a_port_in_use_and_a_foreign_directory_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    let told = bad(&["up", "--dir", dir.to_str().unwrap(), "--listen", &listen], 1);
    assert!(told.contains(&format!("--listen {listen}: another process listens there")), "{told}");
    assert!(!dir.join("up.json").exists(), "nothing was started");

    let foreign = parent.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "x").unwrap();
    let told = bad(&["up", "--dir", foreign.to_str().unwrap()], 1);
    assert!(told.contains("holds files that are not Trefoil's"), "{told}");

    let deep = parent.path().join("d".repeat(120));
    let listen = format!("127.0.0.1:{}", free_port());
    let told = bad(&["up", "--dir", deep.to_str().unwrap(), "--listen", &listen], 1);
    assert!(told.contains("too long for a socket") && told.contains("--socket"), "{told}");
}

#[test]
fn a_device_that_is_not_ours_is_refused_and_not_written_to() {
    let parent = tempfile::tempdir().unwrap();
    let mut up = Up::start(&parent.path().join("data"), &["--volume", "a=64M"]);
    up.ready();
    let monitor = monitor(&parent.path().join("data"));
    let device = parent.path().join("device");
    let (device, state) = (device.to_str().unwrap(), parent.path().join("state"));
    let state = state.to_str().unwrap();
    let foreign = b"a letter to somebody\n".repeat(100_000);
    std::fs::write(device, &foreign).unwrap();

    let told = run(&["storage-node", "--monitor", &monitor, "--device", device, "--state-dir", state]);
    assert_eq!(told.status.code(), Some(1));
    let told = stderr(&told);
    assert!(told.contains("holds no Trefoil store") && told.contains("storage-node format"), "{told}");
    let format = ["storage-node", "--monitor", &monitor, "format", device, "--size", "512M"];
    let told = bad(&format, 1);
    assert!(told.contains("is not empty") && told.contains("Nothing was written"), "{told}");
    assert!(std::fs::read(device).unwrap() == foreign, "nothing was written");
    let ours = parent.path().join("data/node-0/device");
    let told = bad(&["storage-node", "--monitor", &monitor, "format", ours.to_str().unwrap(), "--force"], 1);
    assert!(told.contains("is in use by another process"), "{told}");

    // With the owner's word it becomes a store, and a node of the cluster.
    let made = good(&[&format[..], &["--force"]].concat());
    assert!(made.starts_with(&format!("formatted {device} for cluster trefoil: incarnation ")), "{made}");
    let mut node =
        Up::run(trefoil(&["storage-node", "--monitor", &monitor, "--device", device, "--state-dir", state]));
    node.ready();
    let nodes = json(&["node", "list", "--json", "--monitor", &monitor]);
    assert_eq!(nodes.as_array().unwrap().len(), 4);
    let incarnation = made.trim().rsplit(' ').next().unwrap();
    assert_eq!(nodes[3]["incarnation"], incarnation);
    node.stop();
    up.stop();
}

#[test]
fn other_wishes_than_before_are_added_or_refused() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let dir_text = dir.to_str().unwrap();
    let mut up = Up::start(&dir, &["--volume", "a=64M"]);
    up.ready();
    up.stop();

    let listen = format!("127.0.0.1:{}", free_port());
    let again = |more: [&'static str; 2]| ["up", "--dir", dir_text, "--listen", &listen, more[0], more[1]];
    let told = bad(&again(["--node-size", "1G"]), 2);
    assert!(told.contains("the nodes have 512 MiB"), "{told}");
    let output = run(&again(["--volume", "a=128M"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--volume a=128 MiB: it exists with 64 MiB"), "{}", stderr(&output));

    // What was refused is not owed; what is new is made.
    let mut up = Up::start(&dir, &["--nodes", "4", "--volume", "a=64M", "--volume", "b=4K"]);
    up.ready();
    for said in ["added: 1 storage nodes of 512 MiB", "kept volume a of 64 MiB", "made volume b of 4 KiB"] {
        assert!(up.said.iter().any(|line| line.contains(said)), "{said}: {:#?}", up.said);
    }
    let nodes = json(&["node", "list", "--json", "--monitor", &monitor(&dir)]);
    assert_eq!(nodes.as_array().unwrap().len(), 4);
    up.stop();
    let told = bad(&again(["--nodes", "3"]), 2);
    assert!(told.contains("there are 4 nodes"), "{told}");
}

#[test]
fn a_start_that_was_interrupted_is_completed_by_the_next() {
    for delay_ms in [0, 30, 100, 300, 700] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let mut up = Up::start(&dir, &["--volume", "a=64M", "--volume", "b=64M"]);
        up.line("directory ");
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        up.stop();
        let mut up = Up::start(&dir, &[]);
        up.ready();
        let volumes = json(&["volume", "list", "--json", "--monitor", &monitor(&dir)]);
        let names: Vec<&str> =
            volumes.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a", "b"], "stopped after {delay_ms} ms");
        let nodes = json(&["node", "list", "--json", "--monitor", &monitor(&dir)]);
        assert_eq!(nodes.as_array().unwrap().len(), 3, "stopped after {delay_ms} ms");
        up.stop();
    }
}

#[test]
fn a_device_that_is_gone_is_told_and_not_made_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mut up = Up::start(&dir, &["--volume", "a=64M"]);
    up.ready();
    up.stop();
    std::fs::remove_file(dir.join("node-1/device")).unwrap();

    let listen = format!("127.0.0.1:{}", free_port());
    let mut command = trefoil(&["up", "--dir", dir.to_str().unwrap(), "--listen", &listen]);
    command.stderr(Stdio::piped());
    let mut up = Up::run(command);
    let mut complaints = up.stderr();
    up.ready();
    let monitor = monitor(&dir);
    eventually("the node is down", || {
        let status = json(&["status", "--json", "--monitor", &monitor]);
        status["nodes"]["down"] == 1 && status["health"] == "HEALTH_WARN"
    });
    assert_eq!(run(&["status", "--exit-code", "--monitor", &monitor]).status.code(), Some(4));
    up.stop();
    let mut told = String::new();
    complaints.read_to_string(&mut told).unwrap();
    assert!(told.contains("trefoil: warning: node-1: ") && told.contains("node-1/device"), "{told}");
    assert!(!dir.join("node-1/device").exists());
}
