//! What users, disks and strangers get wrong: a clear error at the place where it matters, nothing
//! written, and daemons that live on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::blocks::{Ledger, Random};
use crate::cluster::{Cluster, Shape, run_trefoil};
use crate::nbd_client::{
    CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, ENOSPC, OPT_GO, go, go_payload, greet,
    option_bytes, request_header,
};
use crate::tools::{Finished, wait_until};
use crate::writer;

/// How long a refusal may take.
const REFUSAL: Duration = Duration::from_secs(30);

/// Fails unless a program has refused, in one paragraph that holds all of these words.
#[track_caller]
fn assert_refused(finished: &Finished, words: &[&str]) {
    assert!(!finished.status.success(), "it was not refused: {finished:?}");
    assert!(finished.status.code().is_some_and(|code| code < 100), "it crashed: {finished:?}");
    assert!(!finished.err.contains("panicked"), "it panicked: {finished:?}");
    for word in words {
        assert!(
            finished.err.to_lowercase().contains(&word.to_lowercase()),
            "no word of {word:?}: {finished:?}"
        );
    }
}

fn up(dir: &Path, arguments: &[&str]) -> Finished {
    let dir = dir.to_str().expect("a path of UTF-8");
    run_trefoil(&[&["up", "--dir", dir], arguments].concat(), REFUSAL)
}

#[test]
fn impossible_wishes_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a directory");
    let dir = folder.path().join("data");
    let wishes: &[(&[&str], &str)] = &[
        (&["--nodes", "2"], "at least 3"),
        (&["--nodes", "0"], "at least 3"),
        (&["--nodes", "1000"], "64"),
        (&["--node-size", "1K"], "512 MiB"),
        (&["--node-size", "minus"], "size"),
        (&["--node-size", "99999999999T"], "too large"),
        (&["--volume", "disk0"], "NAME=SIZE"),
        (&["--volume", "disk0=0"], "size of 0"),
        (&["--volume", "disk0=5000"], "4096"),
        (&["--volume", "a/b=1G"], "name"),
        (&["--volume", "disk0=99999T"], "limit"),
        (&["--volume", "a=1G", "--volume", "a=2G"], "twice"),
        (&["--listen", "nowhere"], "listen"),
        (&["--no-such-option"], "no-such-option"),
    ];
    for (arguments, word) in wishes {
        assert_refused(&up(&dir, arguments), &[word]);
        let written = std::fs::read_dir(&dir).map_or(0, Iterator::count);
        assert_eq!(
            written,
            0,
            "{arguments:?} wrote {:?}",
            std::fs::read_dir(&dir).map(Iterator::collect::<Vec<_>>)
        );
    }
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().expect("a directory");
    std::fs::write(folder.path().join("thesis.txt"), "x").expect("a file");
    assert_refused(&up(folder.path(), &[]), &["not Trefoil's", "--dir"]);
    assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 1);
}

#[test]
fn a_directory_or_a_port_in_use_is_refused_by_name() {
    let cluster = Cluster::start(Shape::default());
    assert_refused(&up(&cluster.dir, &["--processes"]), &["in use", "--dir"]);

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let folder = tempfile::tempdir().expect("a directory");
    assert_refused(
        &up(&folder.path().join("data"), &["--listen", &address]),
        &[&address, "another process", "--listen"],
    );
    // And the one that runs did not mind.
    cluster.connect("disk0").write(0, &[1; 4096]).expect("it writes");
    cluster.stop();
}

#[test]
fn unknown_keys_in_a_configuration_are_refused_with_file_and_line() {
    let mut cluster = Cluster::start(Shape::default());
    cluster.stop_processes();
    for process in cluster.processes().to_vec() {
        let path = cluster.config(&process.name);
        let good = std::fs::read_to_string(&path).expect("its configuration");
        let bad = cluster.dir.join("etc").join("bad.toml");
        let file = bad.to_str().expect("a path of UTF-8");
        for (text, word) in [
            (format!("lissten = \"127.0.0.1:1\"\n{good}"), "lissten"),
            (format!("listen = 7\n{}", without_key(&good, "listen")), "invalid type"),
            ("= broken".to_string(), "key"),
        ] {
            std::fs::write(&bad, text).expect("a file");
            let refused = run_trefoil(&[&process.role, "--config", file], REFUSAL);
            assert_refused(&refused, &["bad.toml", "line 1", word]);
        }
        std::fs::remove_file(&bad).expect("it was there");
        assert_refused(&run_trefoil(&[&process.role, "--config", file], REFUSAL), &["bad.toml"]);
    }
    cluster.start_again();
    cluster.stop();
}

fn without_key(text: &str, key: &str) -> String {
    let prefix = format!("{key} =");
    text.lines().filter(|line| !line.starts_with(&prefix)).map(|line| format!("{line}\n")).collect()
}

/// What a device file is, for telling whether anything was written to it.
fn fingerprint(path: &Path) -> (u64, Vec<u8>) {
    let finished = crate::tools::run("sha256sum", &[path.to_str().expect("UTF-8")], Duration::from_secs(60));
    (std::fs::metadata(path).expect("the device").len(), finished.ok("sha256sum").out.into_bytes())
}

#[test]
fn devices_that_are_foreign_damaged_or_cut_off_are_refused_and_not_touched() {
    use std::os::unix::fs::FileExt;
    let shape = Shape { node_size: "512MiB", volumes: &["disk0=64MiB"], ..Shape::default() };
    let mut cluster = Cluster::start(shape);
    let mut ledger = Ledger::new(81, 0, 4096);
    writer::write_through(&cluster.connect("disk0"), &mut ledger).expect("it writes");
    cluster.stop_processes();

    let node = cluster.names("storage-node").remove(1);
    let config = cluster.config(&node);
    let config = config.to_str().expect("a path of UTF-8");
    let device = cluster.device(&node);
    let good = device.with_extension("good");
    std::fs::copy(&device, &good).expect("room for a copy");
    let start_it = || run_trefoil(&["storage-node", "--config", config], REFUSAL);
    let device_name = device.file_name().and_then(|name| name.to_str()).expect("UTF-8").to_string();

    // A lost first copy of the superblock is no loss: it starts, and says so.
    let first_copy_lost = |file: &std::fs::File| file.write_all_at(&[7; 4096], 0).expect("it writes");
    let random = |length: usize| {
        let mut random = Random::new(81);
        (0..length).map(|_| random.next() as u8).collect::<Vec<u8>>()
    };
    type Damage = (&'static str, Box<dyn Fn(&std::fs::File)>);
    let length = std::fs::metadata(&device).expect("the device").len();
    let damages: Vec<Damage> = vec![
        // Somebody's file, or another program's disk.
        ("foreign bytes", Box::new(move |file| file.write_all_at(&random(4 << 20), 0).expect("it writes"))),
        ("a partition table", {
            let mut sector = vec![0; 512];
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            Box::new(move |file| {
                file.set_len(0).and_then(|()| file.set_len(length)).expect("an empty disk");
                file.write_all_at(&sector, 0).expect("it writes");
            })
        }),
        (
            "both superblocks damaged",
            Box::new(|file| {
                for at in [100, (1 << 20) + 100] {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).expect("it reads");
                    file.write_all_at(&[!byte[0]], at).expect("it writes");
                }
            }),
        ),
        ("half of it cut off", Box::new(move |file| file.set_len(length / 2).expect("it shrinks"))),
        ("all of it cut off", Box::new(|file| file.set_len(0).expect("it shrinks"))),
    ];
    for (what, damage) in &damages {
        std::fs::copy(&good, &device).expect("room for a copy");
        damage(&std::fs::File::options().read(true).write(true).open(&device).expect("the device"));
        let before = fingerprint(&device);
        let refused = start_it();
        println!("{what}: {}", refused.err.lines().last().unwrap_or_default());
        assert_refused(&refused, &[&device_name]);
        assert_eq!(fingerprint(&device), before, "{what}: nothing is written to a device that is refused");
    }
    std::fs::rename(&good, &device).expect("the good one");
    first_copy_lost(&std::fs::File::options().write(true).open(&device).expect("the device"));
    cluster.start_again();
    let findings = writer::compare(&cluster.connect("disk0"), &mut ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    cluster.stop();
}

#[test]
fn strangers_on_a_daemons_port_hurt_nobody() {
    let cluster = Cluster::start(Shape::default());
    let mut ledger = Ledger::new(82, 0, 1024);
    let client = cluster.connect("disk0");
    writer::write_through(&client, &mut ledger).expect("it writes");

    let mut random = Random::new(82);
    let mut noise = vec![0u8; 300_000];
    noise.iter_mut().for_each(|byte| *byte = random.next() as u8);
    let greetings: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![0; 100_000],
        vec![0xff; 100_000],
        noise,
        Vec::new(),
    ];
    for process in cluster.processes().to_vec() {
        for greeting in &greetings {
            let mut stranger =
                TcpStream::connect(&process.address).unwrap_or_else(|error| panic!("{process:?}: {error}"));
            stranger.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            // The daemon may hang up in the middle of it.
            let _ = stranger.write_all(greeting);
        }
        // Nor do those hurt that say nothing and stay.
        let idle: Vec<_> = (0..20).filter_map(|_| TcpStream::connect(&process.address).ok()).collect();
        assert!(cluster.is_running(&process.name), "{} lives\n{}", process.name, cluster.logs());
        drop(idle);
    }
    // What begins as our own protocol does and goes wrong later: a valid start cut off and changed.
    let findings = writer::compare(&client, &mut ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    client.write(1 << 20, &[3; 8192]).expect("it writes");
    let well = wait_until(Duration::from_secs(20), || cluster.status()["health"] == "HEALTH_OK");
    assert!(well, "{:#}", cluster.status());
    cluster.stop();
}

/// Sends bytes on a fresh connection after the greeting, and returns what comes until the server hangs
/// up or says nothing for a while.
fn say(cluster: &Cluster, bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut stream = cluster.endpoint().open().expect("it connects");
    greet(&mut stream).expect("it greets");
    answer(stream, bytes)
}

fn answer(mut stream: crate::nbd_client::Stream, bytes: &[u8]) -> (Vec<u8>, bool) {
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let _ = stream.write_all(bytes);
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, true),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return (all, true),
            Err(_) => return (all, false),
        }
    }
}

/// The error number of the one simple reply in an answer.
#[track_caller]
fn error_of(reply: &[u8]) -> u32 {
    assert_eq!(reply.len(), 16, "one simple reply: {reply:02x?}");
    u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]])
}

#[test]
fn malformed_nbd_is_answered_or_hung_up_on_and_changes_nothing() {
    let cluster = Cluster::start(Shape { volumes: &["disk0=64MiB"], ..Shape::default() });
    let mut ledger = Ledger::new(83, 0, 16 << 10);
    let client = cluster.connect("disk0");
    writer::write_through(&client, &mut ledger).expect("it writes");

    // While options are haggled over.
    const ERR_UNSUP: [u8; 4] = [0x80, 0, 0, 1];
    let (reply, closed) = say(&cluster, &option_bytes(0x7777, b"what"));
    assert!(
        reply.get(12..16) == Some(&ERR_UNSUP[..]) && !closed,
        "an unknown option is no reason to hang up: {reply:02x?}"
    );
    let mut huge = option_bytes(OPT_GO, &[]);
    huge[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    let hang_ups: Vec<(&str, Vec<u8>)> = vec![
        ("a wrong option magic", b"IHAVEOPTIONS....................".to_vec()),
        ("an option of 4 GiB, begun", [huge, vec![0; 70_000]].concat()),
    ];
    for (what, bytes) in &hang_ups {
        let (_, closed) = say(&cluster, bytes);
        assert!(closed, "{what}: the connection is of no more use");
    }
    // Lengths inside an option that do not fit it.
    let mut lying = go_payload("disk0");
    lying[..4].copy_from_slice(&1000u32.to_be_bytes());
    let (reply, _) = say(&cluster, &option_bytes(OPT_GO, &lying));
    assert!(reply.get(12).is_some_and(|byte| byte & 0x80 != 0), "an error reply: {reply:02x?}");
    let (reply, _) = say(&cluster, &option_bytes(OPT_GO, &go_payload(&"x".repeat(5000))));
    assert!(reply.get(12).is_some_and(|byte| byte & 0x80 != 0), "an error reply: {reply:02x?}");
    let (reply, _) = say(&cluster, &option_bytes(OPT_GO, &go_payload("no such export")));
    assert!(reply.get(12).is_some_and(|byte| byte & 0x80 != 0), "an error reply: {reply:02x?}");
    // Unknown client flags.
    let mut stream = cluster.endpoint().open().expect("it connects");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    let (_, closed) = answer(stream, &0x8000_0003u32.to_be_bytes());
    assert!(closed, "unknown client flags");

    // In transmission.
    let transmit = |bytes: &[u8]| {
        let mut stream = cluster.endpoint().open().expect("it connects");
        greet(&mut stream).and_then(|()| go(&mut stream, "disk0")).expect("it enters transmission");
        answer(stream, bytes)
    };
    let size = 64u64 << 20;
    /// What it is, its header, its payload, and the errors that are right.
    type Case = (&'static str, [u8; 28], Vec<u8>, &'static [u32]);
    let requests: Vec<Case> = vec![
        ("a read past the end", request_header(0, CMD_READ, 1, size - 4096, 8192), vec![], &[EINVAL]),
        (
            "a read at the end of all numbers",
            request_header(0, CMD_READ, 1, u64::MAX - 1, 4096),
            vec![],
            &[EINVAL],
        ),
        (
            "a write past the end",
            request_header(0, CMD_WRITE, 1, size, 4096),
            vec![9; 4096],
            &[ENOSPC, EINVAL],
        ),
        ("a trim past the end", request_header(0, CMD_TRIM, 1, size - 1, u32::MAX), vec![], &[EINVAL]),
        ("zeroes past the end", request_header(0, CMD_WRITE_ZEROES, 1, size, 1), vec![], &[ENOSPC, EINVAL]),
        ("an unknown command", request_header(0, 77, 1, 0, 4096), vec![], &[EINVAL]),
        ("unknown flags", request_header(0x8000, CMD_TRIM, 1, 0, 4096), vec![], &[EINVAL]),
    ];
    for (what, header, payload, errors) in &requests {
        let (reply, _) = transmit(&[&header[..], payload].concat());
        assert!(errors.contains(&error_of(&reply)), "{what}: error {}", error_of(&reply));
    }
    let (reply, closed) = transmit(&[0x41; 28]);
    assert!(closed && reply.is_empty(), "a wrong request magic: {reply:02x?}");
    let (reply, closed) =
        transmit(&[&request_header(0, CMD_WRITE, 1, 0, u32::MAX)[..], &[7; 100_000]].concat());
    assert!(closed || error_of(&reply) == EINVAL, "a write of 4 GiB: {reply:02x?}");
    let (_, _) = transmit(&request_header(0, CMD_WRITE, 1, 0, 4096)[..20]);
    // Half of a write's payload, then the connection ends: nothing of it may be written.
    {
        let mut stream = cluster.endpoint().open().expect("it connects");
        greet(&mut stream).and_then(|()| go(&mut stream, "disk0")).expect("it enters transmission");
        stream.write_all(&request_header(0, CMD_WRITE, 1, 0, 1 << 20)).expect("it sends");
        stream.write_all(&[7; 500_000]).expect("it sends");
    }

    let findings = writer::compare(&client, &mut ledger).expect("it reads");
    assert!(findings.wrong.is_empty(), "{findings}");
    assert!(cluster.processes().iter().all(|process| cluster.is_running(&process.name)));
    cluster.stop();
}
