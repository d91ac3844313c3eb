//! The tests' own tools against a server that is known to be right: `qemu-nbd` on a raw file.
//!
//! A test harness that is wrong finds faults that are none, or none of those that are.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::blocks::{Ledger, Random};
use crate::nbd_client::{Client, Endpoint};
use crate::prober::Prober;
use crate::tools::{Running, lacks, wait_until};
use crate::writer;

fn serve(folder: &std::path::Path) -> (Running, Endpoint) {
    let (file, socket) = (folder.join("disk"), folder.join("nbd.sock"));
    if !file.exists() {
        std::fs::File::create(&file).and_then(|file| file.set_len(64 << 20)).expect("a sparse file");
    }
    // A killed server leaves its socket.
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=8", "--format=raw", "--export-name=disk0", "--discard=unmap"]);
    let server = Running::start(command.arg("--socket").arg(&socket).arg(&file));
    // The socket is there a moment before anybody listens on it.
    let listens = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
    assert!(wait_until(Duration::from_secs(10), listens), "qemu-nbd listens");
    (server, Endpoint::Unix(socket))
}

#[test]
fn the_client_is_right_with_a_server_that_is() {
    if lacks(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a directory");
    let (_server, endpoint) = serve(folder.path());
    let client = Client::connect(&endpoint, "disk0").expect("it connects");
    assert_eq!(client.size, 64 << 20);
    client.write(4096, &[7; 8192]).expect("it writes");
    client.flush().expect("it flushes");
    assert_eq!(client.read(4096, 8192).expect("it reads"), vec![7; 8192]);
    client.trim(4096, 4096).expect("it trims");
    client.write_zeroes(8192, 4096).expect("it zeroes");
    assert_eq!(client.read(8192, 4096).expect("it reads"), vec![0; 4096]);
    assert!(client.read(64 << 20, 4096).is_err(), "past the end");
    assert!(Client::connect(&endpoint, "other").is_err(), "no such export");
}

#[test]
fn writer_and_prober_find_a_killed_server_right_and_a_changed_disk_wrong() {
    if lacks(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a directory");
    let mut ledger = Ledger::new(5, 0, 4096);
    let mut random = Random::new(5);
    let (mut server, mut endpoint) = serve(folder.path());
    for _ in 0..3 {
        let client = Client::connect(&endpoint, "disk0").expect("it connects");
        let prober = Prober::start(&endpoint, "disk0", 8192, 64);
        let start = Instant::now();
        let mut alive = true;
        let outcome = writer::run(&client, &mut ledger, &mut random, writer::Mix::default(), || {
            if alive && start.elapsed() > Duration::from_millis(200) {
                alive = false;
                crate::tools::signal(server.pid(), nix::sys::signal::Signal::SIGKILL);
            }
            start.elapsed() > Duration::from_secs(10)
        });
        assert!(outcome.end.is_some() && outcome.acknowledged > 0, "{outcome:?}");
        let seen = prober.stop();
        assert!(seen.count > 0 && seen.faults.len() == 1, "the prober saw the server die: {seen:?}");
        (server, endpoint) = serve(folder.path());
        let client = Client::connect(&endpoint, "disk0").expect("it connects");
        let findings = writer::compare(&client, &mut ledger).expect("it reads");
        assert!(findings.wrong.is_empty(), "{findings}");
    }
    let client = Client::connect(&endpoint, "disk0").expect("it connects");
    client.write(100 * 4096 + 17, b"rot").expect("it writes");
    let findings = writer::compare(&client, &mut ledger).expect("it reads");
    assert_eq!(findings.wrong.len(), 1, "{findings}");
}
