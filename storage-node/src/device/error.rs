//! What a failed operation says: what it was, where, on which device, and what to do.

use std::io;
use std::sync::Arc;

/// An I/O error with its place. Engines hand it out inside an [`io::Error`] of the same kind; see
/// [`errno`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} of {len} bytes at byte {offset} of {device} failed: {source}{advice}",
    advice = advice(what, *shrunk, source)
)]
pub struct DeviceError {
    /// The device's path.
    pub device: Arc<str>,
    /// "read", "write", ...
    pub what: &'static str,
    /// Bytes from the start of the device.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What the device has now, where that is fewer bytes than when it was opened.
    pub shrunk: Option<u64>,
    /// The system's word.
    pub source: io::Error,
}

impl DeviceError {
    /// As an [`io::Error`]. Those that ask to be tried again are left as they are: whoever tries again
    /// looks at the number.
    pub(super) fn wrap(
        device: &Arc<str>,
        what: &'static str,
        offset: u64,
        len: u64,
        shrunk: Option<u64>,
        source: io::Error,
    ) -> io::Error {
        if matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENOMEM)) {
            return source;
        }
        let kind = source.kind();
        io::Error::new(kind, DeviceError { device: device.clone(), what, offset, len, shrunk, source })
    }
}

/// The system's error number, also of an error that has been given its place.
pub fn errno(error: &io::Error) -> Option<i32> {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<DeviceError>());
    inner.map_or_else(|| error.raw_os_error(), |inner| inner.source.raw_os_error())
}

fn advice(what: &str, shrunk: Option<u64>, error: &io::Error) -> String {
    // A disk that has been pulled has no bytes; writing to it is then "no space", and reading "the end".
    match shrunk {
        Some(0) => return GONE.to_owned(),
        Some(now) => {
            return format!(
                ". The device has {now} bytes now, fewer than when it was opened: give it back its size and \
                 restart the node"
            );
        }
        None => {}
    }
    let advice = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            ". What is below has run out of space: a sparse file's file system (or its quota), or a thin \
             volume's pool. Free space there and restart the node; a file can be given all of its space with \
             `fallocate`, or at format with `--preallocate`"
        }
        Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => GONE,
        Some(libc::EROFS) => ". It has become read-only: the kernel's log (dmesg) says why",
        Some(libc::EIO) if what == "write" => {
            ". The device refused it, or has gone: the kernel's log (dmesg) says more"
        }
        _ => "",
    };
    advice.to_owned()
}

const GONE: &str = ". The device has gone: look at the kernel's log (dmesg), cables and power; restart the node \
                    when it is back";

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: i32) -> String {
        let source = io::Error::from_raw_os_error(errno);
        DeviceError::wrap(&"/dev/sdq".into(), "write", 8192, 4096, None, source).to_string()
    }

    #[test]
    fn a_failed_write_says_where_and_what_to_do() {
        assert!(
            text(libc::ENOSPC).starts_with("write of 4096 bytes at byte 8192 of /dev/sdq failed: No space")
        );
        assert!(text(libc::ENOSPC).contains("fallocate"));
        assert!(text(libc::ENODEV).contains("has gone"));
        assert!(text(libc::EIO).contains("dmesg"));
    }

    #[test]
    fn the_number_can_still_be_had() {
        let gone =
            DeviceError::wrap(&"d".into(), "read", 0, 1, None, io::Error::from_raw_os_error(libc::ENODEV));
        assert_eq!((errno(&gone), gone.raw_os_error()), (Some(libc::ENODEV), None));
        // What the store tries again looks the same as ever.
        let again =
            DeviceError::wrap(&"d".into(), "read", 0, 1, None, io::Error::from_raw_os_error(libc::EAGAIN));
        assert_eq!(again.raw_os_error(), Some(libc::EAGAIN));
    }
}
