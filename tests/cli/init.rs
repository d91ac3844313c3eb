//! `trefoil init`: what it makes starts, and nothing that exists is touched.

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::path::Path;

const THREE: [&str; 6] = ["--host", "a=127.0.0.1", "--host", "b=127.0.0.2", "--host", "c=127.0.0.3"];

fn init(arguments: &[&str]) -> Vec<String> {
    [&["init"], arguments].concat().iter().map(|text| (*text).to_owned()).collect()
}

fn texts(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn three_hosts_get_their_files_and_a_second_call_changes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("prod");
    let dir_text = dir.to_str().unwrap();
    let more = [dir_text, "--cluster-name", "prod", "--device", "/dev/x", "--device", "b:/dev/y"];
    let arguments = init(&[&more[..], &THREE].concat());
    let told = good(&texts(&arguments));
    assert!(told.contains("next:") && told.contains("trefoil-storage-node@N"), "{told}");
    let there = |name: &str| dir.join(name).exists();
    assert!(there("a/monitor/0.toml") && there("c/monitor/0.toml") && there("c/nbd/0.toml"));
    assert!(
        there("a/storage-node/0.toml") && !there("a/storage-node/1.toml") && there("b/storage-node/1.toml")
    );
    let node = fs::read_to_string(dir.join("b/storage-node/1.toml")).unwrap();
    for line in [
        "device = \"/dev/y\"",
        "listen = \"127.0.0.2:10811\"",
        "monitors = [\"127.0.0.1:10800\", \"127.0.0.2:10800\", \"127.0.0.3:10800\"]",
        "host = \"b\"",
    ] {
        assert!(node.lines().any(|it| it == line), "{line} is not in\n{node}");
    }
    let monitor = fs::read_to_string(dir.join("a/monitor/0.toml")).unwrap();
    let second = fs::read_to_string(dir.join("b/monitor/0.toml")).unwrap();
    let own = |text: &str, id: u32| {
        text.lines().any(|line| line == format!("id = {id}"))
            && text.lines().any(|line| line == format!("listen = \"127.0.0.{id}:10800\""))
    };
    assert!(own(&monitor, 1) && own(&second, 2), "{second}");
    let peers =
        |text: &str| text.split_once("\npeers = [\n").unwrap().1.split_once(']').unwrap().0.to_owned();
    assert_eq!((peers(&monitor).lines().count(), peers(&monitor)), (3, peers(&second)), "the same list");
    assert!(monitor.contains("\nnodes = 4\n") && monitor.contains("failure_domain = \"host\""), "{monitor}");

    fs::remove_file(dir.join("c/nbd/0.toml")).unwrap();
    let told = bad(&texts(&arguments), 1);
    assert!(told.contains("nothing was written") && told.contains("a/monitor/0.toml"), "{told}");
    assert!(!there("c/nbd/0.toml"), "not even what is missing");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("prod");
    let dir_text = dir.to_str().unwrap();
    let told = |arguments: &[&str]| bad(&[&["init", dir_text], arguments].concat(), 2);
    let three = |more: &[&'static str]| -> Vec<&'static str> { [&THREE[..], more].concat() };
    let open =
        ["--host", "a=192.0.2.1", "--host", "b=192.0.2.2", "--host", "c=192.0.2.3", "--device", "/dev/x"];
    assert!(told(&open).contains("no encryption yet"));
    assert!(told(&["--device", "/dev/x"]).contains("at least 3 storage nodes"));
    assert!(told(&three(&["--device", "dev/x"])).contains("give the whole path"));
    assert!(told(&three(&["--device", "/dev/x", "--device", "a:/dev/x"])).contains("given twice for host a"));
    assert!(told(&three(&["--device", "d:/dev/x"])).contains("no --host is called d"));
    assert!(
        told(&three(&["--device", "/dev/x", "--monitors", "a,d,b"])).contains("d: no --host has that name")
    );
    assert!(told(&three(&["--device", "/dev/x", "--monitors", "a,b"])).contains("3 go on without one"));
    assert!(told(&three(&["--device", "/dev/x", "--monitors", "a,b,a"])).contains("named twice"));
    assert!(told(&three(&["--device", "/dev/x", "--cluster-name", "a b"])).contains("is no name"));
    assert!(told(&three(&["--device", "/dev/x", "--size", "1M"])).contains("--size"));
    assert!(told(&three(&["--device", "/dev/x", "--memory", "1M"])).contains("memory_bytes"));
    assert!(told(&["--host", "a=b", "--device", "/dev/x"]).contains("is no IP address"));
    assert!(told(&three(&["--host", "d=127.0.0.1", "--device", "/dev/x"])).contains("given twice"));
    assert!(!dir.exists());
    good(&[&["init", dir_text, "--allow-plaintext"], &open[..]].concat());
    let node = fs::read_to_string(dir.join("a/storage-node/0.toml")).unwrap();
    assert!(node.lines().any(|line| line == "allow_plaintext = true"), "{node}");
}

#[test]
fn one_hosts_files_go_where_the_units_look() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("etc");
    let dir_text = dir.to_str().unwrap();
    let all = ["init", "--config-dir", dir_text, "--device", "/dev/x", "--json"];
    assert!(bad(&[&all[..], &THREE].concat(), 2).contains("--for HOST"));
    assert!(bad(&[&all[..], &THREE, &["--for", "d"]].concat(), 2).contains("--for d"));
    let made: Value = serde_json::from_str(&good(&[&all[..], &THREE, &["--for", "b"]].concat())).unwrap();
    assert_eq!(made["monitors"][1], "127.0.0.2:10800");
    let paths: Vec<&str> =
        made["files"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    let expected = ["monitor", "storage-node", "nbd"].map(|role| format!("{dir_text}/{role}/0.toml"));
    assert_eq!(paths, expected);
    assert_eq!(made["hosts"].as_array().unwrap().len(), 3);
}

/// Replaces what would collide with another test on this machine, and paths that only root may write to.
fn moved(path: &Path, changes: &[(String, String)]) {
    let mut text = fs::read_to_string(path).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from.as_str()), "{from} is not in\n{text}");
        text = text.replace(from, to);
    }
    fs::write(path, text).unwrap();
}

#[test]
fn what_it_made_starts_and_serves() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("etc");
    let file = |name: &str| parent.path().join(name).display().to_string();
    let (monitor, nbd) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let devices: Vec<String> = (0..3).map(|i| file(&format!("device-{i}"))).collect();
    let mut arguments =
        vec!["init", "--config-dir", dir.to_str().unwrap(), "--size", "512M", "--memory", "128M"];
    for device in &devices {
        arguments.extend(["--device", device]);
    }
    good(&arguments);
    let state = |role: &str, n: usize| {
        let from = format!("/var/lib/trefoil/{role}/{n}");
        (from.clone(), file(&format!("{role}-{n}")))
    };
    let at = ("127.0.0.1:10800".to_owned(), monitor.clone());
    moved(&dir.join("monitor/0.toml"), &[at.clone(), state("monitor", 0)]);
    let mut daemons = Vec::new();
    let mut start = |role: &str, n: usize| {
        let config = dir.join(role).join(format!("{n}.toml"));
        daemons.push(Up::run(trefoil(&[role, "--config", config.to_str().unwrap()])));
        daemons.last_mut().unwrap().ready();
    };
    start("monitor", 0);
    for n in 0..3 {
        let listen = (format!("127.0.0.1:{}", 10810 + n), format!("127.0.0.1:{}", free_port()));
        moved(&dir.join(format!("storage-node/{n}.toml")), &[at.clone(), state("storage-node", n), listen]);
        start("storage-node", n);
    }
    let socket = ("/run/trefoil/nbd-0/nbd.sock".to_owned(), file("nbd.sock"));
    moved(&dir.join("nbd/0.toml"), &[at, socket, ("127.0.0.1:10809".to_owned(), nbd)]);
    start("nbd", 0);
    let ask = ["--monitor", &monitor];
    eventually("there is a pool", || {
        let status: Value = serde_json::from_str(&good(&["status", "--json", ask[0], ask[1]])).unwrap();
        status["pools"] == 1 && status["nodes"]["up"] == 3
    });
    good(&["volume", "create", "disk0", "64M", ask[0], ask[1]]);
    daemons.iter_mut().rev().for_each(Up::stop);
}
