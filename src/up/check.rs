//! What is looked at before `up` starts or writes anything: addresses, sockets, space.

use crate::size::Size;
use anyhow::{Context, bail, ensure};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use trefoil_storage_node::store::usable_bytes;

/// Longest path of a unix socket that the kernel takes.
pub const SOCKET_PATH_MAX: usize = 107;

/// Refuses an address where the NBD front end could not listen.
pub fn listen_address(address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "--listen {address}: another process listens there; stop it, or choose another port with --listen \
             127.0.0.1:PORT"
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("--listen {address}: ports below 1024 need privileges; choose a higher one")
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            bail!("--listen {address}: this host does not have that address")
        }
        Err(error) => Err(error).with_context(|| format!("--listen {address}: cannot listen")),
    }
}

/// Refuses a path where the NBD front end could not make its socket.
pub fn socket_path(path: &Path) -> anyhow::Result<()> {
    let name = path.display();
    let length = path.as_os_str().len();
    ensure!(
        length <= SOCKET_PATH_MAX,
        "the unix socket {name}: a path of {length} bytes is too long for a socket (at most \
         {SOCKET_PATH_MAX}); give a shorter one with --socket"
    );
    let parent = path.parent().unwrap_or(Path::new("."));
    ensure!(parent.is_dir(), "--socket {name}: the directory {} does not exist", parent.display());
    if let Ok(metadata) = path.symlink_metadata() {
        use std::os::unix::fs::FileTypeExt;
        ensure!(
            metadata.file_type().is_socket(),
            "--socket {name}: exists and is no socket; choose another path"
        );
        ensure!(
            UnixStream::connect(path).is_err(),
            "--socket {name}: another server answers there; stop it, or choose another path"
        );
    }
    Ok(())
}

/// A warning where the file system of `dir` has less room than the nodes' devices may come to need.
pub fn space(dir: &Path, devices: &[(&Path, Size)]) -> anyhow::Result<Option<String>> {
    let stat = nix::sys::statvfs::statvfs(dir).with_context(|| format!("statvfs {}", dir.display()))?;
    let free = Size(stat.blocks_available().saturating_mul(stat.fragment_size()));
    let missing = |(path, size): &(&Path, Size)| {
        let allocated = path.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        size.0.saturating_sub(allocated)
    };
    let needed = Size(devices.iter().map(missing).fold(0, u64::saturating_add));
    Ok((needed > free).then(|| {
        format!(
            "the nodes may come to need {needed} more in {}, which has {free} free: writes will fail when it \
             is full. Free some, or use smaller nodes (--node-size) in a fresh --dir",
            dir.display()
        )
    }))
}

/// A warning where volumes promise more than the nodes can hold.
pub fn capacity(volumes: u64, nodes: &[Size]) -> Option<String> {
    let total: u64 = nodes.iter().map(|size| usable_bytes(size.0)).fold(0, u64::saturating_add);
    let usable = Size(total / 3);
    (volumes > usable.0).then(|| {
        format!(
            "the volumes add up to {}, the nodes hold {usable} of three copies each: writes get \"no space\" \
             when that is used up",
            Size(volumes)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn addresses_and_sockets_in_use_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(listen_address(address).unwrap_err().to_string().contains("another process listens there"));
        drop(listener);
        listen_address(address).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        socket_path(&path).unwrap();
        let server = UnixListener::bind(&path).unwrap();
        assert!(socket_path(&path).unwrap_err().to_string().contains("another server answers"));
        drop(server);
        socket_path(&path).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let told = socket_path(&dir.path().join("file")).unwrap_err().to_string();
        assert!(told.contains("is no socket"), "{told}");
        let told = socket_path(&dir.path().join("x".repeat(110))).unwrap_err().to_string();
        assert!(told.contains("too long for a socket"), "{told}");
        let told = socket_path(&dir.path().join("no/a.sock")).unwrap_err().to_string();
        assert!(told.contains("does not exist"), "{told}");
    }

    #[test]
    fn too_little_space_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        assert_eq!(space(dir.path(), &[(&device, Size(0))]).unwrap(), None);
        let told = space(dir.path(), &[(&device, Size(1 << 60))]).unwrap().unwrap();
        assert!(told.contains("may come to need 1 EiB more"), "{told}");
        // A part of each node is kept for cleaning.
        assert_eq!(capacity(7 << 30, &[Size(8 << 30); 3]), None);
        assert!(capacity(8 << 30, &[Size(8 << 30); 3]).unwrap().contains("of three copies"));
    }
}
