//! `trefoil doctor`: bad hosts made of files, and this one.

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn file(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A host with which nothing is wrong, as far as files tell.
fn good_host(root: &Path) {
    for (path, text) in [
        ("proc/sys/kernel/osrelease", "6.1.0-28-amd64\n"),
        ("proc/sys/kernel/io_uring_disabled", "0\n"),
        ("proc/sys/fs/file-max", "9223372036854775807\n"),
        ("proc/sys/fs/file-nr", "2048\t0\t9223372036854775807\n"),
        ("proc/meminfo", "MemTotal:       16303428 kB\n"),
        ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
        ("dev/nvme1n1", ""),
        ("sys/class/block/nvme1n1/queue/write_cache", "write back\n"),
        ("sys/class/block/nvme1n1/queue/fua", "1\n"),
        ("sys/class/block/nvme1n1/queue/rotational", "0\n"),
        ("sys/class/block/nvme1n1/queue/scheduler", "[none] mq-deadline\n"),
        ("usr/local/lib/systemd/system/trefoil-storage-node@.service", "[Service]\nLimitNOFILE=16384\n"),
        (
            "etc/trefoil/storage-node/0.toml",
            "device = \"/dev/nvme1n1\"\nstate_dir = \"/var/lib/trefoil/storage-node/0\"\n\
             monitors = [\"127.0.0.1:10800\"]\n",
        ),
    ] {
        file(root, path, text);
    }
}

fn examined(root: &Path) -> (i32, Value) {
    let output = run(&["doctor", "--json", "--root", root.to_str().unwrap()]);
    let text = stdout(&output);
    let value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", stderr(&output)));
    (output.status.code().unwrap(), value)
}

/// Codes of what is not OK.
fn codes(value: &Value) -> Vec<&str> {
    let findings = value["findings"].as_array().unwrap().iter();
    let bad = findings.filter(|it| it["level"] != "OK");
    bad.map(|it| {
        assert!(it["remedy"].as_str().is_some_and(|text| !text.is_empty()), "{it}");
        it["code"].as_str().unwrap()
    })
    .collect()
}

#[test]
fn a_good_host_is_said_to_be_one() {
    let root = tempfile::tempdir().unwrap();
    good_host(root.path());
    let (code, value) = examined(root.path());
    assert_eq!((code, codes(&value)), (0, vec![]), "{value:#}");
    assert_eq!((&value["level"], &value["daemons"]), (&"OK".into(), &1.into()));
    let screen = good(&["doctor", "--root", root.path().to_str().unwrap()]);
    assert!(screen.starts_with("LEVEL  CODE") && screen.ends_with("nothing to do\n"), "{screen}");
}

#[test]
fn each_ill_has_its_code_its_level_and_its_remedy() {
    const WARN: i32 = 1;
    const ERROR: i32 = 2;
    let sysfs = "sys/class/block/nvme1n1";
    let ills: [(&str, &str, &str, i32); 16] = [
        ("proc/sys/kernel/osrelease", "4.19.0\n", "KERNEL", WARN),
        ("proc/sys/kernel/io_uring_disabled", "2\n", "IO_URING", WARN),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n", "HUGE_PAGES", WARN),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n", "CLOCKSOURCE", WARN),
        ("proc/sys/fs/file-nr", "9223372036854775000\t0\t9223372036854775807\n", "FILE_MAX", ERROR),
        ("proc/meminfo", "MemTotal:       262144 kB\n", "MEMORY", ERROR),
        ("proc/meminfo", "MemTotal:       600000 kB\n", "MEMORY", WARN),
        ("proc/swaps", "Filename\n/swap.img file 1 0 -2\n", "SWAP", WARN),
        (&format!("{sysfs}/queue/scheduler"), "none mq-deadline [bfq]\n", "SCHEDULER", WARN),
        (
            "etc/systemd/system/trefoil-storage-node@0.service.d/x.conf",
            "LimitNOFILE=1024\n",
            "DESCRIPTORS",
            ERROR,
        ),
        ("etc/trefoil/storage-node/0.toml", "device = 7\n", "CONFIG", ERROR),
        (
            "usr/local/lib/systemd/system/trefoil-storage-node@.service.d/x.conf",
            "[Service]\nDevicePolicy=closed\n",
            "UNIT",
            ERROR,
        ),
        (
            "etc/trefoil/storage-node/1.toml",
            "device = \"/dev/nvme1n1\"\nstate_dir = \"/x\"\nmonitors = [\"127.0.0.1:10800\"]\n",
            "CONFLICT",
            ERROR,
        ),
        (
            "etc/trefoil/monitor/0.toml",
            "listen = \"192.0.2.1:1\"\nallow_plaintext = true\n",
            "PLAINTEXT",
            WARN,
        ),
        (
            "etc/trefoil/storage-node/0.toml",
            "device = \"/dev/gone\"\nstate_dir = \"/x\"\nmonitors = [\"127.0.0.1:10800\"]\n",
            "DEVICE",
            ERROR,
        ),
        (
            "proc/net/nf_conntrack",
            "ipv4 2 tcp 6 99 ESTABLISHED src=127.0.0.2 dst=127.0.0.1 sport=9 dport=10800\n",
            "CONNTRACK",
            WARN,
        ),
    ];
    for (path, text, code, exit) in ills {
        let root = tempfile::tempdir().unwrap();
        good_host(root.path());
        file(root.path(), "proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
        file(root.path(), "proc/sys/net/netfilter/nf_conntrack_count", "12\n");
        file(root.path(), path, text);
        // Two ills: where the cache is hidden from the kernel the exit code is that of the worse.
        let (got, value) = examined(root.path());
        assert_eq!((got, codes(&value)), (exit, vec![code]), "{path}: {value:#}");
        file(root.path(), &format!("{sysfs}/queue/write_cache"), "write through\n");
        file(root.path(), &format!("{sysfs}/device/scsi_disk/0:0:0:0/cache_type"), "write back\n");
        let (got, value) = examined(root.path());
        let unseen = ["CONFIG", "DEVICE"].contains(&code);
        assert_eq!(got, if unseen { exit } else { ERROR }, "{path}");
        assert_eq!(codes(&value).contains(&"WRITE_CACHE"), !unseen, "{path}: {value:#}");
        let screen = run(&["doctor", "--root", root.path().to_str().unwrap()]);
        assert!(stdout(&screen).contains("\nwhat to do:\n"));
    }
}

#[test]
fn this_host_is_looked_at_and_a_single_file_may_be_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("any.toml");
    fs::write(&path, "listen = \"127.0.0.1:10800\"\ncluster_name = \"x\"\n").unwrap();
    let output = run(&["doctor", "--json", "--config", path.to_str().unwrap()]);
    // What is wrong with the machine that runs this test is its own business.
    assert!([0, 1, 2].contains(&output.status.code().unwrap()));
    let value: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let all: Vec<&str> =
        value["findings"].as_array().unwrap().iter().map(|it| it["code"].as_str().unwrap()).collect();
    for code in ["CONFIG", "KERNEL", "DESCRIPTORS", "FILE_MAX", "MEMORY", "CONNTRACK"] {
        assert!(all.contains(&code), "{code} is not among {all:?}");
    }
    assert!(value["findings"][0]["found"].as_str().unwrap().starts_with("1 monitor,"), "{value:#}");

    let told = bad(&["doctor", "--root", "/nonexistent"], 2);
    assert!(told.contains("there is no such directory"), "{told}");
    let gone = run(&["doctor", "--json", "--config", "/nonexistent.toml"]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(stdout(&gone).contains("cannot open the configuration"));
}

#[test]
fn a_daemon_that_starts_on_a_poor_host_says_so_in_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("monitor");
    let config = dir.path().join("monitor.toml");
    let listen = format!("127.0.0.1:{}", free_port());
    // More connections than this shell will give it descriptors.
    let text = format!("listen = \"{listen}\"\ndata_dir = \"{}\"\nconnections_max = 65536\n", data.display());
    fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new("/bin/sh");
    let script = format!(
        "ulimit -n 4096; exec {} monitor --config {}",
        env!("CARGO_BIN_EXE_trefoil"),
        config.display()
    );
    command.args(["-c", &script]).stderr(std::process::Stdio::piped());
    let mut monitor = Up::run(command);
    monitor.ready();
    let mut stderr = monitor.stderr();
    monitor.stop();
    let mut log = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut log).unwrap();
    assert!(log.contains("WARN") && log.contains("DESCRIPTORS") && log.contains("LimitNOFILE="), "{log}");
}
