//! The CRUSH map of a running cluster: shown, compared, edited by one administrator and by several at once.

use crate::common::cluster::Cluster;
use crate::common::*;
use serde_json::Value;
use std::path::Path;

/// A cluster of that many nodes.
fn start(nodes: &str) -> Cluster {
    Cluster::start(&["--nodes", nodes, "--volume", "disk0=64M"])
}

impl Cluster {
    /// It is refused; what it said on standard output and standard error.
    fn refused(&self, arguments: &[&str]) -> (String, String) {
        let output = run(&self.with(arguments));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        (stdout(&output), stderr(&output))
    }

    fn version(&self) -> u64 {
        self.json(&["crush", "tree"])["crush_version"].as_u64().unwrap()
    }

    fn get(&self, name: &str) -> String {
        let path = self.dir.with_file_name(name).to_str().unwrap().to_owned();
        let told = self.good(&["crush", "get", "-o", &path]);
        assert!(told.starts_with("wrote version "), "{told}");
        path
    }

    fn acting(&self) -> Value {
        self.json(&["pg", "list"]).as_array().unwrap().iter().map(|pg| pg["acting"].clone()).collect()
    }

    /// The entry of the tree.
    fn entry(&self, name: &str) -> Value {
        let tree = self.json(&["crush", "tree"]);
        let nodes = tree["nodes"].as_array().unwrap();
        nodes.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("{name}: {tree}")).clone()
    }
}

fn replace(path: &str, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn an_administrators_day() {
    let mut cluster = start("5");
    let host = cluster.json(&["node", "list"])[0]["host"].as_str().unwrap().to_owned();
    // What each change would move is compared with where data was at first.
    let told = cluster.good(&["move", "pause"]);
    assert!(told.starts_with("moves are paused"), "{told}");

    // As it is.
    let tree = cluster.good(&["crush", "tree"]);
    assert!(tree.starts_with("ID  CLASS") && tree.contains("root default"), "{tree}");
    assert!(tree.contains(&format!("    host {host}")) && tree.contains("        osd osd.4"), "{tree}");
    let device = cluster.entry("osd.3");
    assert_eq!((&device["state"], &device["host"]), (&"up".into(), &host.as_str().into()));
    assert_eq!(cluster.entry("default")["children"].as_array().unwrap().len(), 1);
    let dump = cluster.json(&["crush", "get"]);
    assert_eq!(dump["devices"].as_array().unwrap().len(), 5);
    assert_eq!(dump["rules"][0]["steps"][1]["op"], "chooseleaf_firstn");
    let rules = cluster.json(&["crush", "rule", "list"]);
    assert_eq!(
        (&rules[1]["rule_name"], &rules[1]["pools"][0]),
        (&"replicated_osd".into(), &"default".into())
    );
    let shown = cluster.good(&["crush", "rule", "show", "replicated_osd"]);
    assert!(
        shown.contains("step choose firstn 0 type osd") && shown.contains("used by pool default"),
        "{shown}"
    );

    // A map that goes out and comes back is the same one.
    let file = cluster.get("map.txt");
    let version = cluster.version();
    assert_eq!(cluster.good(&["crush", "set", &file]), "nothing to do: it is so already\n");
    assert!(cluster.good(&["crush", "diff", &file]).contains("the map is the cluster's own"));

    // A hierarchy: nothing moves, since the pool's rule does not look at it.
    let told = cluster.good(&["crush", "add-bucket", "r1", "rack", "root=default"]);
    assert!(told.starts_with("made rack r1\n") && told.contains("done: the CRUSH map has version"), "{told}");
    cluster.good(&["crush", "add-bucket", "h2", "host", "rack=r1"]);
    cluster.good(&["crush", "rename", "r1", "rack-one"]);
    let told = cluster.good(&["crush", "rule", "create-replicated", "by-rack", "default", "rack"]);
    assert!(told.starts_with("made rule by-rack (id 2)\n"), "{told}");
    cluster.good(&["crush", "class", "set", "ssd", "osd.0", "1", "node.2"]);
    assert_eq!(cluster.entry("osd.2")["class"], "ssd");
    cluster.good(&["crush", "class", "rm", "osd.2"]);
    assert_eq!(cluster.entry("osd.2")["class"], Value::Null);
    assert_eq!(cluster.entry("h2")["depth"], 2);

    // A file that was made of an older map would undo that: it is refused, and not by force.
    replace(&file, "choose_total_tries 50", "choose_total_tries 51");
    for more in [&[][..], &["--force", "--yes"]] {
        let (_, told) = cluster.refused(&[&["crush", "set", &file], more].concat());
        assert!(told.contains(&format!("was made of version {version}")), "{told}");
        assert!(told.contains("get it again") && told.contains("--expect"), "{told}");
    }
    let (_, told) = cluster.refused(&["crush", "set", &file, "--expect", "1"]);
    assert!(told.contains(", not 1: get it again"), "{told}");
    let file = cluster.get("map.txt");
    replace(&file, "choose_total_tries 50", "choose_total_tries 51");
    let done = cluster.json(&["crush", "set", &file]);
    assert_eq!((&done["changed"], &done["diff"]["moved_pgs"]), (&true.into(), &0.into()));
    assert_eq!(done["crush_version"], cluster.version());

    // What moves data is foretold, and asked for.
    let acting = cluster.acting();
    let foretold = cluster.json(&["crush", "reweight", "osd.4", "0", "--dry-run"]);
    let of_node_4 = acting.as_array().unwrap().iter().filter(|it| it.as_array().unwrap().contains(&4.into()));
    let moves = foretold["diff"]["moves"].as_array().unwrap();
    assert_eq!(moves.len(), of_node_4.count());
    assert!(!moves.is_empty() && moves.iter().all(|it| it["leaving"][0] == 4), "{moves:?}");
    let node = foretold["diff"]["nodes"].as_array().unwrap().iter().find(|it| it["id"] == 4).unwrap();
    assert_eq!((&node["pgs_out"], &node["pgs_after"]), (&moves.len().into(), &0.into()));
    let version = cluster.version();
    let (summary, told) = cluster.refused(&["crush", "reweight", "osd.4", "0"]);
    assert!(summary.contains("reweighted osd.4") && summary.contains("of 32 placement groups would move"));
    assert!(told.contains("nobody is there to be asked: say --yes"), "{told}");
    assert_eq!(cluster.version(), version);
    let screen = cluster.good(&["crush", "reweight", "osd.4", "0", "--dry-run", "--rate", "1KiB/s"]);
    assert!(screen.contains("WOULD BE ON") && screen.contains("at 1 KiB/s"), "{screen}");
    assert!(screen.ends_with("nothing was changed (--dry-run)\n"), "{screen}");
    cluster.good(&["crush", "reweight", "osd.4", "0", "--yes"]);
    assert_eq!(cluster.entry("osd.4")["weight"].as_f64(), Some(0.0));
    assert!(cluster.version() > version);
    // Volumes are what they were: they go on being served.
    assert_eq!(cluster.json(&["volume", "list"])[0]["name"], "disk0");

    // A map that breaks the pool is refused.
    cluster.good(&["crush", "reweight", "osd.3", "0", "--yes"]);
    let (summary, told) = cluster.refused(&["crush", "reweight", "osd.2", "0", "--yes"]);
    assert!(summary.contains("would stay where they are: the rule finds too few places"), "{summary}");
    assert!(told.contains("pool default (rule 1): 32 of 32") && told.contains("say --force"), "{told}");
    let (_, told) = cluster.refused(&["crush", "remove", "osd.2", "--yes"]);
    assert!(told.contains("would no longer find 3 places"), "{told}");
    let forced = cluster.json(&["crush", "reweight", "osd.2", "0", "--yes", "--force"]);
    assert_eq!(forced["diff"]["pools"][0]["short_pgs_after"], 32);
    cluster.good(&["crush", "reweight-subtree", &host, "1", "--yes"]);
    assert_eq!(cluster.entry("default")["weight"], 5.0);

    // What the pools need stays, whoever forces it.
    let (_, told) = cluster.refused(&["crush", "rule", "remove", "replicated_osd", "--force"]);
    assert!(told.contains("is that of pool default"), "{told}");
    let file = cluster.get("map.txt");
    replace(&file, "rule replicated_osd {\n\tid 1", "rule replicated_osd {\n\tid 7");
    let (_, told) = cluster.refused(&["crush", "set", &file, "--force", "--yes"]);
    assert!(told.contains("pool \"default\" needs rule 1"), "{told}");
    cluster.good(&["crush", "rule", "remove", "by-rack"]);

    // Devices before their nodes (with a weight, CRUSH would choose and give up what is not there, and
    // choose others), and pools by rule.
    let told = cluster.good(&["crush", "add", "osd.9", "0", "host=h9", "rack=rack-one", "root=default"]);
    assert!(told.contains("made host h9") && told.contains("no node has registered as osd.9"), "{told}");
    assert_eq!(cluster.entry("osd.9")["state"], Value::Null);
    let (_, told) = cluster.refused(&["crush", "remove", "h9"]);
    assert!(told.contains("`h9` is not empty"), "{told}");
    cluster.good(&["crush", "remove", "osd.9"]);
    cluster.good(&["crush", "remove", "h9"]);
    let told = cluster.good(&["pool", "create", "second", "--rule", "replicated_osd", "--pg-num", "8"]);
    assert!(told.ends_with("3 copies, 8 placement groups, rule 1\n"), "{told}");
    let (_, told) = cluster.refused(&["pool", "create", "third", "--rule", "none"]);
    assert!(told.contains("no rule \"none\""), "{told}");
    let (_, told) = cluster.refused(&["pool", "create", "third", "--domain", "host"]);
    assert!(told.contains("on more hosts"), "{told}");
    assert_eq!(cluster.json(&["pool", "list"]).as_array().unwrap().len(), 2);

    // What waits, is seen; and goes on when it may.
    let limits = cluster.json(&["move", "limits", "--cluster", "20", "--node", "10"]);
    assert_eq!((&limits["cluster"], &limits["node"]), (&20.into(), &10.into()));
    let status = cluster.json(&["move", "status"]);
    assert_eq!((&status["paused"], &status["moves"]), (&true.into(), &Value::Array(Vec::new())));
    cluster.good(&["crush", "reweight", "osd.4", "0", "--yes"]);
    let status = cluster.json(&["move", "status"]);
    assert!(status["misplaced"].as_u64() > Some(0), "{status}");
    let (_, told) = cluster.refused(&["move", "limits", "--node", "0"]);
    assert!(told.contains("choose 1 to 1024"), "{told}");
    let (_, told) = cluster.refused(&["move", "undo", "1.ff"]);
    assert!(told.contains("no placement group 1.ff"), "{told}");
    cluster.good(&["move", "resume"]);
    let followed = cluster.good(&["move", "status", "--follow"]);
    assert!(followed.contains("on the move, 0 more to be moved"), "{followed}");
    assert!(
        cluster.acting().as_array().unwrap().iter().all(|it| !it.as_array().unwrap().contains(&4.into()))
    );
    let shown = cluster.good(&["pg", "show", "1.0"]);
    assert!(shown.starts_with("1.0 of pool default: epoch ") && shown.contains("member"), "{shown}");
    let list = cluster.json(&["pg", "list", "--pool", "second", "--state", "active"]);
    assert_eq!(list.as_array().unwrap().len(), 8);
    cluster.up.stop();
}

#[test]
fn nobodys_edit_is_lost_where_several_edit_at_once() {
    let mut cluster = start("3");
    let version = cluster.version();
    let monitor = cluster.monitor.clone();
    let edit =
        |name: String| run(&["crush", "add-bucket", &name, "rack", "root=default", "--monitor", &monitor]);
    std::thread::scope(|scope| {
        for admin in 0..3 {
            let edit = &edit;
            scope.spawn(move || {
                for n in 0..3 {
                    // Whoever was slower too often is told so, and tries again.
                    eventually("the edit is made", || {
                        let output = edit(format!("rack-{admin}-{n}"));
                        let told = stderr(&output);
                        assert!(
                            output.status.success() || told.contains("try again when they are done"),
                            "{told}"
                        );
                        output.status.success()
                    });
                }
            });
        }
    });
    let tree = cluster.json(&["crush", "tree"]);
    let racks = tree["nodes"].as_array().unwrap().iter().filter(|it| it["type"] == "rack").count();
    assert_eq!(racks, 9);
    assert!(cluster.version() >= version + 9);
    cluster.up.stop();
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("map.txt");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    let file = path.to_str().unwrap();
    // Nobody is asked: there is no monitor.
    for command in ["diff", "set"] {
        write("device 0 osd.0\ntype 0 osd\ntype 1 host\nhost a { id -1 alg straw2\nitem osd.1 weight 1 }\n");
        let told = bad(&["crush", command, file, "--monitor", "127.0.0.1:1"], 1);
        assert!(told.contains("line 5, column 6: unknown device or bucket `osd.1`"), "{command}: {told}");
        assert!(!Path::new(&format!("{file}.new")).exists());
        write("root a { }\n");
        let told = bad(&["crush", command, file, "--monitor", "127.0.0.1:1"], 1);
        assert!(told.contains("line 1"), "{command}: {told}");
    }
    write("type 0 osd\n");
    assert!(bad(&["crush", "diff", file, "--monitor", "127.0.0.1:1"], 3).contains("no monitor answers"));
}

#[test]
fn every_command_has_a_help_with_examples_and_refuses_nonsense() {
    let commands: [&[&str]; 20] = [
        &["get"],
        &["set"],
        &["diff"],
        &["tree"],
        &["add"],
        &["add-bucket"],
        &["move"],
        &["reweight"],
        &["reweight-subtree"],
        &["remove"],
        &["rename"],
        &["class", "set"],
        &["class", "rm"],
        &["rule", "list"],
        &["rule", "show"],
        &["rule", "create-replicated"],
        &["rule", "create-simple"],
        &["rule", "remove"],
        &["test"],
        &["../pool"],
    ];
    for command in commands {
        let command = match command {
            ["../pool"] => vec!["pool", "create"],
            command => [&["crush"], command].concat(),
        };
        let help = good(&[&command[..], &["--help"]].concat());
        assert!(help.contains("Examples:\n  trefoil ") || help.contains("Examples:\n  crushtool"), "{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{command:?}: {line}");
        }
    }
    for (arguments, told) in [
        (&["add", "osd.1", "101", "host=a"][..], "from 0 to 100"),
        (&["add", "osd.1", "1"], "TYPE=NAME"),
        (&["move", "a", "host"], "give TYPE=NAME"),
        (&["reweight", "osd.1", "-1"], "unexpected argument"),
        (&["reweight", "osd.1", "1", "--rate", "0"], "nothing would ever be done"),
        (&["get", "--json", "--text"], "cannot be used with"),
    ] {
        let text = bad(&[&["crush"], arguments].concat(), 2);
        assert!(text.contains(told), "{arguments:?}: {text}");
    }
}
