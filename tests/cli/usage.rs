//! The command line without a cluster: helps, wrong usage, wrong configurations, exit codes, CRUSH.

use crate::common::*;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

const COMMANDS: [&[&str]; 19] = [
    &[],
    &["up"],
    &["init"],
    &["doctor"],
    &["status"],
    &["volume"],
    &["volume", "create"],
    &["volume", "list"],
    &["volume", "info"],
    &["volume", "remove"],
    &["node", "list"],
    &["pg", "list"],
    &["pool", "list"],
    &["monitor"],
    &["storage-node"],
    &["storage-node", "format"],
    &["nbd"],
    &["crush", "test"],
    &["completions"],
];

#[test]
fn every_command_has_a_help_with_examples() {
    for command in COMMANDS {
        let help = good(&[command, &["--help"]].concat());
        assert!(help.contains("Usage: trefoil"), "{command:?}: {help}");
        // A group's examples are those of its members.
        if command != ["volume"] {
            assert!(help.contains("Examples:\n  "), "{command:?}: {help}");
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{command:?}: {line}");
        }
    }
    let help = good(&["--help"]);
    assert!(help.contains("Exit codes:\n  0  done"), "{help}");
    assert_eq!(good(&["--version"]), format!("trefoil {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = good(&["completions", shell]);
        for word in ["storage-node", "node-size", "exit-code"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [&["bogus"][..], &["status", "--bogus"], &["volume", "create", "a"], &[]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let told = bad(&["status", "--monitor", "nowhere"], 2);
    assert!(told.contains("is no address of a monitor; give HOST:PORT"), "{told}");
    let told = bad(&["--log", "trefoil=loud", "status"], 2);
    assert!(told.contains("is no filter"), "{told}");
    let told = bad(&["storage-node", "--device", "/dev/a", "format", "/dev/b"], 2);
    assert!(told.contains("options of the daemon before `format`"), "{told}");
    let told = bad(&["up", "--restart"], 2);
    assert!(told.contains("--processes"), "{told}");
}

#[test]
fn impossible_sizes_are_refused_and_leave_no_trace() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let dir_text = dir.to_str().unwrap();
    let up = |option: &str, value: &str| bad(&["up", "--dir", dir_text, option, value], 2);
    for (option, value, told) in [
        ("--nodes", "2", "needs at least 3 storage nodes"),
        ("--nodes", "1000", "at most 64 nodes"),
        ("--shards", "0", "choose 1 to 64"),
        ("--shards", "65", "choose 1 to 64"),
        ("--node-size", "1M", "outside 512 MiB to 1 PiB"),
        ("--node-size", "8Gib5", "is no size"),
        ("--node-size", "1000000001", "not a multiple of 4096"),
        ("--volume", "disk0", "give NAME=SIZE"),
        ("--volume", "disk0=0", "a size of 0 is no disk"),
        ("--volume", "disk0=5000", "the next possible size is 8192"),
        ("--volume", "a b=1G", "is no name for a volume"),
        ("--volume", "a=300T", "the limit is 256 TiB"),
        ("--listen", "0.0.0.0:10809", "there is no encryption yet"),
        ("--listen", "localhost", "invalid value"),
    ] {
        let text = up(option, value);
        assert!(text.contains(told), "{option} {value}: {text}");
        assert!(!dir.exists(), "{option} {value}");
    }
    let told = bad(&["volume", "create", "a", "5000", "--monitor", "127.0.0.1:1"], 2);
    assert!(told.contains("the next possible size is 8192"), "{told}");
}

#[test]
fn unknown_keys_are_refused_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    let config = path.to_str().unwrap();
    for daemon in ["monitor", "storage-node", "nbd"] {
        std::fs::write(&path, "# a comment\n\nno_such_key = 1\n").unwrap();
        let told = bad(&[daemon, "--config", config], 2);
        assert!(told.contains("x.toml, line 3: unknown field `no_such_key`"), "{daemon}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        std::fs::write(&path, "listen = 7\n").unwrap();
        let told = bad(&[daemon, "--config", config], 2);
        assert!(told.contains("x.toml, line 1: invalid type"), "{daemon}: {told}");
        let told = bad(&[daemon, "--config", "/nonexistent/x.toml"], 2);
        assert!(told.contains("cannot open the configuration"), "{daemon}: {told}");
    }
}

#[test]
fn daemons_refuse_to_listen_beyond_loopback_without_encryption() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("monitor");
    let told = bad(&["monitor", "--listen", "0.0.0.0:0", "--data-dir", data.to_str().unwrap()], 2);
    assert!(told.contains("allow_plaintext"), "{told}");
    assert!(!data.exists());
    let told = bad(&["nbd", "--listen", "0.0.0.0:0", "--monitor", "127.0.0.1:1"], 2);
    assert!(told.contains("allow_plaintext"), "{told}");
}

#[test]
fn a_monitor_that_does_not_answer_is_never_healthy() {
    let address = format!("127.0.0.1:{}", free_port());
    for command in [&["status"][..], &["status", "--json"], &["volume", "list"], &["node", "list", "--json"]]
    {
        let told = bad(&[command, &["--monitor", &address]].concat(), 3);
        assert!(told.contains("no monitor answers") && told.contains(&address), "{told}");
    }
    // Nobody named, nothing running here.
    let dir = tempfile::tempdir().unwrap();
    let output = trefoil(&["status"]).current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("no `trefoil up` runs on ./trefoil-data here"));
    let output = trefoil(&["status"]).env("TREFOIL_MONITOR", &address).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn something_else_on_the_monitors_port_is_told() {
    // Accepts and says nothing that we know.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            use std::io::Write;
            let _ = (&stream).write_all(b"SSH-2.0-OpenSSH_9.9\r\n");
            let _ = (&stream).read(&mut [0; 64]);
        }
    });
    let told = bad(&["status", "--monitor", &address], 3);
    assert!(told.contains("no monitor answers"), "{told}");
}

/// The shared reference data; the test is about nothing without it.
fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/crush-vectors")
}

#[test]
fn crush_test_prints_what_crushtool_prints() {
    let cases = std::fs::read_to_string(vectors().join("cases.json")).expect("../shared/crush-vectors");
    let cases: serde_json::Value = serde_json::from_str(&cases).unwrap();
    let mut runs = 0;
    // Every run is a test in core; here one with and one without reweights of each case.
    for case in cases.as_array().expect("a list") {
        let of_case = case["runs"].as_array().expect("a list");
        let plain = of_case.iter().find(|run| run["reweight"].as_object().is_some_and(|it| it.is_empty()));
        let reweighted =
            of_case.iter().find(|run| run["reweight"].as_object().is_some_and(|it| !it.is_empty()));
        for run in plain.into_iter().chain(reweighted) {
            let (rule, copies) = (run["rule"].to_string(), run["num_rep"].to_string());
            let map = vectors().join(run["map"].as_str().expect("a file"));
            let map = map.to_str().unwrap();
            let mut arguments: Vec<String> =
                ["crush", "test", "--map", map, "--rule", &rule, "--num-rep", &copies, "--min-x", "0"]
                    .map(str::to_owned)
                    .to_vec();
            arguments.extend(["--max-x".to_owned(), "1023".to_owned()]);
            for (osd, weight) in run["reweight"].as_object().expect("an object") {
                arguments.extend(["--weight".to_owned(), format!("{osd}={weight}")]);
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let expected = vectors().join(run["file"].as_str().expect("a file"));
            let expected = std::fs::read_to_string(expected).unwrap();
            let expected: String =
                expected.lines().map(|line| format!("CRUSH rule {rule} x {line}\n")).collect();
            assert!(good(&arguments) == expected, "{arguments:?}");
            runs += 1;
        }
    }
    assert!(runs >= 12, "{runs} runs");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let map = dir.path().join("map.txt");
    std::fs::write(
        &map,
        "device 0 osd.0\ntype 0 osd\ntype 1 root\nroot default { id -1 alg straw2 item osd.0 }\n\
         rule all { id 0 type replicated step take default step choose firstn 0 type osd step emit }\n",
    )
    .unwrap();
    let map = map.to_str().unwrap();
    let mut child =
        trefoil(&["crush", "test", "--map", map, "--rule", "0", "--num-rep", "1", "--max-x", "4000000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut first = [0; 64];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"CRUSH rule 0 x 0 [0]\n"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(stderr(&output), "");
    let mut child = trefoil(&["--help"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
