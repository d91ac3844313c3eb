//! Real clients against the server on memory (`examples/nbd-memory.rs`).
//!
//! A test whose program is missing says so and passes; `scripts/test` installs them. Each test starts
//! a server of its own on a unix socket and on loopback, and stops it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

const MIB: usize = 1 << 20;

struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
    tcp: String,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(example());
        command.args(["--tcp", "127.0.0.1:0", "--unix"]).arg(dir.path().join("nbd")).args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut lines = [String::new(), String::new()];
        for line in &mut lines {
            stdout.read_line(line).unwrap();
        }
        let tcp = lines[0].trim().strip_prefix("ready: tcp ").expect("an address").to_owned();
        Server { child, stdout, dir, tcp }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn unix_uri(&self) -> String {
        format!("nbd+unix:///disk0?socket={}", self.path("nbd").display())
    }
    fn tcp_uri(&self) -> String {
        format!("nbd://{}/disk0", self.tcp)
    }
    /// Ends its standard input, which stops it; gives its last words.
    fn stop(mut self) -> String {
        drop(self.child.stdin.take());
        let mut words = String::new();
        self.stdout.read_to_string(&mut words).unwrap();
        assert!(self.child.wait().unwrap().success());
        assert!(!self.path("nbd").exists(), "the socket is removed");
        words
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The example's binary, which cargo builds beside the tests.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/nbd-memory");
    assert!(path.exists(), "{}: build it with cargo build --example nbd-memory", path.display());
    path
}

/// True, with a line that says so, where a program is missing.
fn missing(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    if !found {
        println!("skipped: {program} is not installed (libnbd-bin, python3-libnbd, qemu-utils, fio)");
    }
    !found
}

fn run(program: &str, args: &[&str]) -> Output {
    // A client that hangs is a failure, not a hanging test.
    // nbdsh takes the first python3 of the path, which must be the system's: that one has the module.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("timeout");
    command.env("PATH", format!("/usr/bin:/bin:{path}")).args(["120", program]).args(args);
    command.output().unwrap()
}

fn ok(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {:.400?}: {}\n{out}\n{err}", args, output.status);
    out
}

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that do not repeat within a block or from block to block (xorshift64).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

#[test]
fn nbdinfo_shows_what_the_best_servers_show() {
    if missing("nbdinfo") {
        return;
    }
    let server = Server::start(&["--size", "10000001"]);
    let json = ok("nbdinfo", &["--json", &server.unix_uri()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let export = &json["exports"][0];
    assert_eq!((&json["protocol"], &json["structured"]), (&"newstyle-fixed".into(), &true.into()));
    for can in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert_eq!(export[format!("can_{can}")], true, "{can}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["contexts"][0], "base:allocation");
    let sizes = ["minimum", "preferred", "maximum"].map(|s| &export[format!("block_size_{s}")]);
    assert_eq!(sizes, [1, 4096, 32 << 20]);
    assert_eq!(export["export-size"], 10_000_001);
    let list = ok("nbdinfo", &["--list", "--json", &format!("nbd://{}", server.tcp)]);
    assert!(list.contains("\"export-name\": \"disk0\""), "{list}");
    assert!(ok("nbdinfo", &["--map", &server.unix_uri()]).contains("hole,zero"));
    let unknown = run("nbdinfo", &[&format!("nbd://{}/nope", server.tcp)]);
    assert!(!unknown.status.success());
    let read_only = Server::start(&["--read-only"]);
    ok("nbdinfo", &["--is", "read-only", &read_only.unix_uri()]);
    server.stop();
}

#[test]
fn nbdcopy_there_and_back() {
    if missing("nbdcopy") {
        return;
    }
    // Neither whole blocks nor whole objects.
    let size = 64 * MIB + 513;
    let server = Server::start(&["--size", &size.to_string()]);
    let (there, back) = (server.path("there"), server.path("back"));
    let mut bytes = noise(size);
    bytes[5 * MIB..20 * MIB].fill(0);
    fs::write(&there, &bytes).unwrap();
    ok("nbdcopy", &["--connections=4", "--requests=64", str(&there), &server.unix_uri()]);
    ok("nbdcopy", &["--flush", &server.tcp_uri(), str(&back)]);
    assert!(fs::read(&back).unwrap() == bytes, "the bytes differ");
    let map = ok("nbdinfo", &["--map", &server.unix_uri()]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    ok("nbdcopy", &["--allocated", str(&there), &server.unix_uri()]);
    ok("nbdcopy", &["--request-size=33554432", &server.unix_uri(), str(&back)]);
    assert!(fs::read(&back).unwrap() == bytes, "the bytes differ");
    let words = server.stop();
    assert!(words.contains("protocol_errors: 0") && words.contains("mismatches: 0"), "{words}");
}

#[test]
fn nbdsh_does_awkward_things() {
    if missing("nbdsh") {
        return;
    }
    let server = Server::start(&["--size", &(64 * MIB).to_string()]);
    let script = include_str!("awkward.py");
    let setup = format!("uri = {:?}\ntcp = {:?}\n", server.unix_uri(), server.tcp_uri());
    let file = server.path("awkward.py");
    fs::write(&file, setup + script).unwrap();
    let out = ok("nbdsh", &["-c", &format!("exec(open({file:?}).read())")]);
    assert!(out.contains("all done"), "{out}");
    server.stop();
}

#[test]
fn qemu_img_converts_maps_and_compares() {
    if missing("qemu-img") {
        return;
    }
    let server = Server::start(&["--size", &(32 * MIB).to_string()]);
    let raw = server.path("raw");
    let mut bytes = noise(32 * MIB);
    bytes[8 * MIB..24 * MIB].fill(0);
    fs::write(&raw, &bytes).unwrap();
    for uri in [server.unix_uri(), server.tcp_uri()] {
        ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", str(&raw), &uri]);
        ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", str(&raw), &uri]);
        let map = ok("qemu-img", &["map", "-f", "raw", "--output=json", &uri]);
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        let kinds: Vec<bool> = map.as_array().unwrap().iter().map(|e| e["zero"].as_bool().unwrap()).collect();
        assert_eq!(kinds, [false, true, false], "{map}");
        assert_eq!((&map[1]["start"], &map[1]["length"]), (&(8 * MIB).into(), &(16 * MIB).into()));
        let back = server.path("back");
        ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, str(&back)]);
        assert!(fs::read(&back).unwrap() == bytes, "the bytes differ");
    }
    server.stop();
}

#[test]
fn qemu_io_writes_zeroes_discards_and_verifies() {
    if missing("qemu-io") {
        return;
    }
    let server = Server::start(&["--size", &(16 * MIB).to_string()]);
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 1000 5000",
        "read -P 0x11 0 1000",
        "read -P 0x22 1000 5000",
        "read -P 0x11 6000 4000",
        "write -z 4096 65536",
        "read -P 0 4096 65536",
        "write -z -u 100001 77",
        "read -P 0 100001 77",
        "read -P 0x11 100078 100",
        "discard 512k 512k",
        "flush",
        "aio_write -P 0x33 2M 64k",
        "aio_write -P 0x44 4M 1M",
        "aio_flush",
        "read -P 0x33 2M 64k",
        "read -P 0x44 4M 1M",
    ];
    let uri = server.tcp_uri();
    let mut args = vec!["-f", "raw", "-t", "none"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    let out = ok("qemu-io", &args);
    assert!(!out.contains("verification failed") && !out.contains("failed:"), "{out}");
    server.stop();
}

#[test]
fn fio_verifies_what_it_wrote() {
    if missing("fio") {
        return;
    }
    let server = Server::start(&["--size", &(32 * MIB).to_string()]);
    let uri = format!("--uri={}", server.unix_uri());
    for (name, bs) in [("4k", "--bs=4k"), ("odd", "--bsrange=512-70k"), ("512", "--bs=512")] {
        let name = format!("--name={name}");
        let state = format!("--aux-path={}", server.dir.path().display());
        let output = run(
            "fio",
            &[
                &name,
                &state,
                "--ioengine=nbd",
                &uri,
                "--rw=randrw",
                bs,
                "--iodepth=16",
                "--size=8m",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--do_verify=1",
                "--bs_unaligned=1",
                "--verify_state_save=0",
                "--output-format=terse",
            ],
        );
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.contains("engine nbd not loadable") {
            println!("skipped: this fio has no nbd engine");
            return;
        }
        assert!(output.status.success(), "{text}");
    }
    let words = server.stop();
    assert!(words.contains("protocol_errors: 0"), "{words}");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let start = || {
        let mut command = Command::new(example());
        command.arg("--unix").arg(&path).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut first = start();
    let mut line = String::new();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready: unix"), "{line}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let second = start().wait_with_output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another server answers"));
    assert!(path.exists());
    drop(first.stdin.take());
    first.wait().unwrap();
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    let third = start().wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&third.stderr).contains("is no socket"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn garbage_does_not_stop_the_server() {
    let server = Server::start(&[]);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 5000], &[0, 0, 0, 3, 1]] {
        let mut socket = std::net::TcpStream::connect(&server.tcp).unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..8], b"NBDMAGIC");
        let _ = socket.write_all(garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read_to_end(&mut Vec::new());
    }
    let words = server.stop();
    assert!(words.contains("accepted: 4"), "{words}");
}
