//! The daemons by hand: all that `up` does, file by file; and what systemd is told.

use crate::common::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

#[test]
fn a_cluster_can_be_made_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let monitor_at = format!("127.0.0.1:{}", free_port());
    let config = format!(
        "listen = \"127.0.0.1:1\"\ndata_dir = \"{}\"\n[bootstrap]\nfailure_domain = \"osd\"\n",
        path("monitor")
    );
    std::fs::write(path("monitor.toml"), config).unwrap();
    // The flag wins over the file.
    let mut monitor =
        Up::run(trefoil(&["monitor", "--config", &path("monitor.toml"), "--listen", &monitor_at]));
    assert_eq!(monitor.ready(), monitor_at);
    let at = ["--monitor", &monitor_at];
    let told = bad(&["volume", "create", "a", "64M", at[0], at[1]], 1);
    assert!(told.contains("there is no pool default"), "{told}");

    let mut nodes = Vec::new();
    for i in 0..3 {
        let (device, state) = (path(&format!("device-{i}")), path(&format!("state-{i}")));
        good(&["storage-node", at[0], at[1], "format", &device, "--size", "512M"]);
        let listen = format!("127.0.0.1:{}", free_port());
        let arguments =
            ["storage-node", at[0], at[1], "--device", &device, "--state-dir", &state, "--listen", &listen];
        let mut node = Up::run(trefoil(&arguments));
        assert_eq!(node.ready(), listen);
        nodes.push(node);
    }
    let status = || -> Value { serde_json::from_str(&good(&["status", "--json", at[0], at[1]])).unwrap() };
    eventually("there is a pool", || status()["pools"] == 1);
    good(&["volume", "create", "a", "64M", at[0], at[1]]);

    let listen = format!("127.0.0.1:{}", free_port());
    let socket = path("nbd.sock");
    let mut nbd = Up::run(trefoil(&["nbd", at[0], at[1], "--listen", &listen, "--socket", &socket]));
    assert_eq!(nbd.ready(), format!("{listen} {socket}"));
    let mut greeting = [0; 8];
    TcpStream::connect(&listen).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");

    nbd.stop();
    nodes.iter_mut().for_each(Up::stop);
    eventually("no majority is an error", || status()["health"] == "HEALTH_ERR");
    assert_eq!(run(&["status", "--exit-code", at[0], at[1]]).status.code(), Some(5));
    let screen = good(&["status", at[0], at[1]]);
    assert!(screen.contains("32 UNAVAILABLE (I/O waits)") && screen.contains("PG_UNAVAILABLE"), "{screen}");
    monitor.stop();
}

#[test]
fn systemd_is_told_and_signals_end_it_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let state = |manager: &UnixDatagram| {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap().trim().to_owned()
    };
    let listen = format!("127.0.0.1:{}", free_port());
    let data = dir.path().join("monitor");
    let mut command = trefoil(&["monitor", "--listen", &listen, "--data-dir", data.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &socket);
    let mut monitor = Up::run(command);
    assert!(state(&manager).starts_with("STATUS=starting"));
    assert_eq!(state(&manager), format!("READY=1\nSTATUS=serving on {listen}"));
    monitor.ready();
    monitor.signal(Signal::SIGINT);
    assert_eq!(state(&manager), "STOPPING=1\nSTATUS=stopping");
    assert!(monitor.wait().success());
}

#[test]
fn what_is_in_use_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("monitor");
    let data = data.to_str().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let told = bad(&["--log", "error", "monitor", "--listen", &taken, "--data-dir", data], 1);
    assert!(
        told.contains(&format!("cannot listen on {taken}")) && told.contains("choose another port"),
        "{told}"
    );

    let listen = format!("127.0.0.1:{}", free_port());
    let mut monitor = Up::run(trefoil(&["monitor", "--listen", &listen, "--data-dir", data]));
    monitor.ready();
    let other = format!("127.0.0.1:{}", free_port());
    let told = bad(&["--log", "error", "monitor", "--listen", &other, "--data-dir", data], 1);
    assert!(told.contains(data), "{told}");
    monitor.stop();
}

#[test]
fn a_daemon_of_an_up_that_has_ended_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("monitor");
    let arguments =
        ["--log", "error", "monitor", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    // No process has this pid: it is beyond the kernel's largest.
    let output = trefoil(&arguments).env("TREFOIL_UP_PID", "2000000000").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("has ended; unset it"), "{}", stderr(&output));
    // One that is there and is not the parent: copied by somebody who starts it by hand.
    let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let mut command = trefoil(&arguments);
    command.env("TREFOIL_UP_PID", sleeper.id().to_string());
    let mut monitor = Up::run(command);
    monitor.ready();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    monitor.stop();
}
