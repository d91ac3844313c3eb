//! Nodes drained, undone, taken out and removed, and pools set, as an administrator does it on a running cluster. What a
//! drain moves is the mover's; here, what CRUSH wants then, and what is refused.

use crate::common::cluster::Cluster;
use crate::common::*;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;

impl Cluster {
    /// It fails with that code; what it said on standard error.
    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = run(&self.with(arguments));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        stderr(&output)
    }

    fn node(&self, id: u64) -> Option<Value> {
        let list = self.json(&["node", "list"]);
        list.as_array().unwrap().iter().find(|it| it["id"] == id).cloned()
    }

    fn weight(&self, device: &str) -> f64 {
        let tree = self.json(&["crush", "tree"]);
        let entry = tree["nodes"].as_array().unwrap().iter().find(|it| it["name"] == device).cloned();
        entry.unwrap_or_else(|| panic!("no {device} in {tree:#}"))["weight"].as_f64().unwrap()
    }

    /// A configuration for one more storage node, from that of the first.
    fn one_more(&self, name: &str) -> PathBuf {
        let text = std::fs::read_to_string(self.dir.join("etc/node-0.toml")).unwrap();
        let mut table: toml::Table = text.parse().unwrap();
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        for (key, value) in [
            ("device", dir.join("device").display().to_string()),
            ("state_dir", dir.display().to_string()),
            ("listen", format!("127.0.0.1:{}", free_port())),
            ("metrics_listen", "off".to_owned()),
        ] {
            assert!(table.contains_key(key) || key == "metrics_listen", "{text}");
            table.insert(key.into(), value.into());
        }
        table.insert("format_if_missing".into(), true.into());
        table.insert("size".into(), toml::Value::Integer(512 << 20));
        let path = self.dir.join("etc").join(format!("{name}.toml"));
        std::fs::write(&path, table.to_string()).unwrap();
        path
    }
}

fn moves_to(view: &Value, node: u64) -> usize {
    let moves = view["diff"]["moves"].as_array().unwrap();
    moves.iter().filter(|it| it["target"].as_array().unwrap().contains(&node.into())).count()
}

#[test]
fn a_node_is_drained_undone_and_removed_when_it_holds_nothing() {
    let mut cluster = Cluster::start(&["--processes", "--nodes", "4", "--volume", "a=64M"]);
    let before = cluster.weight("osd.3");
    let held = cluster.node(3).unwrap()["pgs"].as_u64().unwrap();
    assert!(before > 0.0 && held > 0);

    // What would happen, and that nothing does without a word.
    let planned = cluster.json(&["node", "drain", "node.3", "--dry-run"]);
    assert_eq!((&planned["changed"], &planned["diff"]["moved_pgs"]), (&false.into(), &held.into()));
    assert_eq!(moves_to(&planned, 3), 0, "nothing is wanted there");
    let told = cluster.fails(&["node", "drain", "3"], 1);
    assert!(told.contains("nobody is there to be asked: say --yes"), "{told}");
    assert!(cluster.fails(&["node", "drain", "9", "--yes"], 1).contains("no node node.9"));
    assert!(cluster.fails(&["node", "drain", "x"], 2).contains("is no node"));
    assert_eq!(cluster.weight("osd.3"), before);

    let told = cluster.good(&["node", "drain", "3", "--yes"]);
    assert!(told.contains("would move") && told.contains("node.3 is being drained"), "{told}");
    assert_eq!(cluster.weight("osd.3"), 0.0);
    assert_eq!(cluster.node(3).unwrap()["draining"], true);
    let list = cluster.good(&["node", "list"]);
    assert!(list.contains("up, drain"), "{list}");
    assert!(cluster.good(&["node", "drain", "3", "--yes"]).contains("it is so already"));
    let told = cluster.fails(&["node", "remove", "3"], 1);
    assert!(told.contains("node.3 is not removed: it takes part in"), "{told}");

    // A second one would leave two places for three copies.
    let told = cluster.fails(&["node", "drain", "2", "--yes"], 1);
    assert!(told.contains("would no longer find 3 places") && told.contains("--force"), "{told}");
    let told = cluster.fails(&["node", "out", "2", "--yes"], 1);
    assert!(told.contains("would no longer find 3 places"), "{told}");
    assert_eq!(cluster.node(2).unwrap()["out"], false);
    cluster.good(&["node", "drain", "3", "--undo", "--yes"]);
    assert_eq!(cluster.weight("osd.3"), before);
    assert_eq!(cluster.node(3).unwrap()["draining"], false);

    // One that came later holds nothing, as long as nothing is moved there: that begins at once.
    cluster.good(&["move", "pause"]);
    let config = cluster.one_more("late");
    let config = config.to_str().unwrap();
    let mut late = Up::run(trefoil(&["storage-node", "--config", config]));
    late.ready();
    assert_eq!(cluster.node(4).unwrap()["pgs"], 0);
    let told = cluster.fails(&["node", "remove", "4"], 1);
    assert!(told.contains("CRUSH may still give it data") && told.contains("node drain 4"), "{told}");
    let told = cluster.good(&["node", "drain", "osd.4", "--yes", "--wait"]);
    assert!(told.contains("node.4 holds nothing any more"), "{told}");
    assert!(cluster.good(&["node", "list"]).contains("up, drained"));
    cluster.good(&["node", "remove", "4"]);
    cluster.good(&["move", "resume"]);
    assert_eq!(cluster.node(4), None);
    assert!(!cluster.good(&["crush", "tree"]).contains("osd.4"));
    late.stop();
    // It is told what it was, and does not come in as somebody new.
    let output = trefoil(&["storage-node", "--config", config]).stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    let told = stderr(&output);
    assert!(told.contains("was node.4, which was removed") && told.contains("format it anew"), "{told}");
    let status = cluster.json(&["status"]);
    assert_eq!((&status["nodes"]["total"], &status["nodes"]["out"]), (&4.into(), &0.into()));
    cluster.up.stop();
}

#[test]
fn pools_are_set_and_two_copies_need_words() {
    let mut cluster = Cluster::start(&["--nodes", "5", "--volume", "a=64M"]);
    let words = "--yes-two-copies-cannot-outvote-each-other";
    let create = ["pool", "create", "two", "--copies", "2", "--pg-num", "8", "--domain", "osd"];
    let told = cluster.fails(&create, 2);
    assert!(told.contains("no majority can say which is right") && told.contains(words), "{told}");
    assert!(cluster.good(&[&create[..], &[words]].concat()).contains("2 copies, 8 placement groups"));
    let pool = |name: &str| {
        let pools = cluster.json(&["pool", "list"]);
        pools.as_array().unwrap().iter().find(|it| it["name"] == name).unwrap().clone()
    };
    assert_eq!(pool("two")["copies"], 2);
    let acting = |name: &str| {
        let pgs = cluster.json(&["pg", "list"]);
        let of = pgs.as_array().unwrap().iter().filter(|pg| pg["pool"] == name).cloned().collect::<Vec<_>>();
        of.iter().map(|pg| pg["acting"].as_array().unwrap().len()).collect::<Vec<_>>()
    };
    assert_eq!(acting("two"), [2; 8]);

    cluster.good(&["pool", "set", "two", "copies", "5", "--yes"]);
    assert_eq!((pool("two")["copies"].as_u64(), acting("two")), (Some(5), vec![5; 8]));
    assert!(cluster.fails(&["pool", "set", "two", "size", "2", "--yes"], 2).contains(words));
    cluster.good(&["pool", "set", "two", "size", "2", "--yes", words]);
    let told = cluster.fails(&["pool", "set", "two", "copies", "4", "--yes"], 1);
    assert!(told.contains("choose 3 or 5"), "{told}");
    let told = cluster.fails(&["pool", "set", "default", "copies", "5", "--yes"], 1);
    assert!(told.contains("has 1 volumes") && told.contains("another pool"), "{told}");

    // When writes are acknowledged, from the beginning and later.
    cluster.good(&["pool", "create", "all", "--ack", "all-in-sync", "--domain", "osd", "--pg-num", "8"]);
    assert_eq!(pool("all")["ack"], "all-in-sync");
    assert!(cluster.good(&["pool", "list"]).contains("all-in-sync"));
    let told = cluster.good(&["pool", "set", "default", "ack", "all-in-sync"]);
    assert!(told.contains("acknowledged by all-in-sync"), "{told}");
    assert_eq!(pool("default")["ack"], "all-in-sync", "no volume of it need be away");
    assert!(cluster.good(&["pool", "set", "all", "ack", "all-in-sync"]).contains("it is so already"));
    let told = cluster.fails(&["pool", "set", "all", "ack", "all"], 2);
    assert!(told.contains("majority or all-in-sync"), "{told}");
    cluster.good(&["pool", "set", "default", "ack", "majority"]);
    assert_eq!(pool("default")["ack"], "majority");

    // A volume with two copies works as any other.
    cluster.good(&["volume", "create", "b", "64M", "--pool", "two"]);
    assert_eq!(pool("two")["volumes"], 1);

    // A rule that finds no places is refused; one that does changes what is wanted, and moves nothing by itself.
    let told = cluster.fails(&["pool", "set", "default", "rule", "replicated_host", "--yes"], 1);
    assert!(told.contains("copies of 3"), "one host is not three: {told}");
    let told = cluster.fails(&["pool", "set", "default", "rule", "none", "--yes"], 1);
    assert!(told.contains("has no rule"), "{told}");
    cluster.good(&["crush", "rule", "create-replicated", "other", "default", "osd"]);
    let before = acting("default");
    let told = cluster.good(&["pool", "set", "default", "rule", "other", "--yes"]);
    assert!(told.contains("pool default: rule "), "{told}");
    assert_eq!(acting("default"), before);
    let list = cluster.good(&["pool", "list"]);
    assert!(list.contains("other (2)") && list.lines().next().unwrap().contains("PROVISIONED"), "{list}");
    assert!(cluster.good(&["pool", "set", "default", "rule", "other", "--yes"]).contains("it is so already"));
    cluster.up.stop();
}
