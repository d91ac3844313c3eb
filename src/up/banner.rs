//! What `up` tells the user: where the volumes are, and what to type next.

use std::net::SocketAddr;
use std::path::Path;

/// The URI of a volume over TCP.
pub fn tcp_uri(listen: SocketAddr, volume: &str) -> String {
    format!("nbd://{}/{volume}", reachable(listen))
}

/// The URI of a volume over the unix socket.
pub fn unix_uri(socket: &Path, volume: &str) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = format!("nbd+unix:///{volume}?socket=");
    for byte in socket.as_os_str().as_bytes() {
        // What may stand in a query as it is (RFC 3986), less what separates parameters.
        if byte.is_ascii_alphanumeric() || b"/-._~:@".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

/// An address that a client on this host can connect to: "any" is no destination.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    listen
}

/// The three lines that a user types next: the kernel's client, QEMU and fio.
pub fn next_lines(listen: SocketAddr, socket: &Path, volume: &str) -> [String; 3] {
    let address = reachable(listen);
    [
        format!("sudo nbd-client {} {} /dev/nbd0 -N {volume} -b 4096", address.ip(), address.port()),
        // QEMU's own default is to give up at once when a connection breaks.
        format!(
            "qemu-system-x86_64 -m 1G -blockdev driver=nbd,node-name={volume},server.type=unix,server.path={},\
             export={volume},reconnect-delay=60 -device virtio-blk-pci,drive={volume}",
            quoted(&socket.to_string_lossy().replace(',', ",,"))
        ),
        format!(
            "fio --name=try --ioengine=nbd --uri={} --rw=randread --bs=4k --iodepth=16 --size=100% \
             --time_based --runtime=10",
            quoted(&unix_uri(socket, volume))
        ),
    ]
}

/// As one word of a shell.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~:@=,+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_what_clients_read() {
        assert_eq!(tcp_uri("127.0.0.1:10809".parse().unwrap(), "disk0"), "nbd://127.0.0.1:10809/disk0");
        assert_eq!(tcp_uri("[::]:10809".parse().unwrap(), "disk0"), "nbd://[::1]:10809/disk0");
        let uri = unix_uri(Path::new("/a b/é&?.sock"), "disk0");
        assert_eq!(uri, "nbd+unix:///disk0?socket=/a%20b/%C3%A9%26%3F.sock");
    }

    #[test]
    fn lines_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("/a/b.sock"), "/a/b.sock");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        let [nbd, qemu, fio] = next_lines("0.0.0.0:1".parse().unwrap(), Path::new("/a,b c"), "v");
        assert_eq!(nbd, "sudo nbd-client 127.0.0.1 1 /dev/nbd0 -N v -b 4096");
        assert!(qemu.contains("server.path='/a,,b c',export=v"), "{qemu}");
        assert!(fio.contains("--uri='nbd+unix:///v?socket=/a%2Cb%20c'"), "{fio}");
    }
}
