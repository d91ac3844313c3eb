//! NBD URIs, as far as fio and we both understand them: `nbd://HOST:PORT/NAME` and
//! `nbd+unix:///NAME?socket=PATH`. Without encryption: fio has none.

use anyhow::{Context, bail, ensure};
use std::fmt::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

/// The port where none is given.
const PORT_DEFAULT: u16 = 10809;

/// Where a front end listens, and a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Where.
    pub at: At,
    /// The volume's name; may be empty.
    pub export: String,
}

/// Where a front end listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// A host's name or address, as a URI has it (IPv6 in brackets), and a port.
    Tcp(String, u16),
    /// A socket.
    Unix(PathBuf),
}

impl Uri {
    /// The same front end, another volume.
    pub fn with_export(&self, name: &str) -> Uri {
        Uri { at: self.at.clone(), export: name.to_owned() }
    }
}

impl FromStr for Uri {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Uri> {
        let usage = || {
            format!("{text:?} is no NBD URI: give nbd://HOST:PORT/VOLUME or nbd+unix:///VOLUME?socket=PATH")
        };
        let (scheme, rest) = text.split_once("://").with_context(usage)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decoded(path).with_context(usage)?;
        let at = match scheme {
            "nbd" => {
                ensure!(query.is_empty() && !authority.is_empty(), usage());
                // The colons of an IPv6 address stand before its bracket.
                let (host, port) = match authority.rsplit_once(':') {
                    Some((host, port)) if !port.contains(']') => {
                        (host, port.parse().ok().with_context(usage)?)
                    }
                    _ => (authority, PORT_DEFAULT),
                };
                ensure!(!host.is_empty(), usage());
                At::Tcp(host.to_owned(), port)
            }
            "nbd+unix" => {
                ensure!(authority.is_empty(), usage());
                let socket =
                    query.split('&').find_map(|part| part.strip_prefix("socket=")).with_context(usage)?;
                let socket = decoded(socket).filter(|path| !path.is_empty()).with_context(usage)?;
                At::Unix(socket.into())
            }
            "nbds" | "nbds+unix" => bail!("{text:?}: fio's NBD engine cannot encrypt; use the unix socket"),
            _ => bail!(usage()),
        };
        Ok(Uri { at, export })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encoded(self.export.as_bytes());
        match &self.at {
            At::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{export}"),
            At::Unix(path) => {
                use std::os::unix::ffi::OsStrExt;
                write!(f, "nbd+unix:///{export}?socket={}", encoded(path.as_os_str().as_bytes()))
            }
        }
    }
}

/// With `%XX` made bytes; none where that is no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// What may stand in a path or query as it is (RFC 3986), less what separates parameters.
fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"/-._~:@".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read_and_written() {
        for (text, at, export) in [
            ("nbd://127.0.0.1:10809/disk0", At::Tcp("127.0.0.1".into(), 10809), "disk0"),
            ("nbd://[::1]:1/", At::Tcp("[::1]".into(), 1), ""),
            ("nbd+unix:///disk0?socket=/a%20b/%C3%A9%26.sock", At::Unix("/a b/é&.sock".into()), "disk0"),
        ] {
            let uri: Uri = text.parse().unwrap();
            assert_eq!((&uri.at, uri.export.as_str()), (&at, export), "{text}");
            assert_eq!(uri.to_string(), text);
        }
        assert_eq!("nbd://host".parse::<Uri>().unwrap().at, At::Tcp("host".into(), 10809));
        assert_eq!("nbd://[::1]/x".parse::<Uri>().unwrap().at, At::Tcp("[::1]".into(), 10809));
        let other = "nbd+unix:///?socket=/s".parse::<Uri>().unwrap().with_export("b");
        assert_eq!(other.to_string(), "nbd+unix:///b?socket=/s");
    }

    #[test]
    fn what_is_no_uri_is_refused() {
        for text in [
            "",
            "disk0",
            "nbd://",
            "nbd://:1/x",
            "nbd://h:x/d",
            "nbd://h:1/d?socket=/s",
            "nbd+unix:///d",
            "nbd+unix:///d?socket=",
            "nbd+unix://h/d?socket=/s",
            "nbd+unix:///%zz?socket=/s",
            "nbd+unix:///%C3?socket=/s",
            "http://h/d",
        ] {
            let told = text.parse::<Uri>().unwrap_err().to_string();
            assert!(told.contains("is no NBD URI"), "{text}: {told}");
        }
        assert!("nbds://h/d".parse::<Uri>().unwrap_err().to_string().contains("cannot encrypt"));
    }
}
