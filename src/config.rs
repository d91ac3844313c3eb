//! The daemons' TOML files: read with the line of what is wrong, written for children of `up`.

use crate::failure::{Failure, Outcome};
use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A configuration is a page of text. Anything longer is some other file.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Reads `path`. Unknown keys and wrong values are refused with file, line and what was expected.
pub fn load<T: DeserializeOwned>(path: &Path) -> Outcome<T> {
    let name = path.display();
    let text = read(path).map_err(Failure::usage)?;
    toml::from_str(&text).map_err(|error| {
        let at = match error.span() {
            Some(span) => format!("{name}, line {}", line_of(&text, span.start)),
            None => name.to_string(),
        };
        Failure::usage(anyhow!("{at}: {}", error.message()))
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the configuration {name}"))?;
    let mut bytes = Vec::new();
    let limit = CONFIG_BYTES_MAX + 1;
    file.take(limit).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(anyhow!("{name} is longer than {CONFIG_BYTES_MAX} bytes: it is no configuration"));
    }
    String::from_utf8(bytes).map_err(|_| anyhow!("{name} is not UTF-8 text: it is no configuration"))
}

/// The number of the line, from 1, that has the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        port: u16,
    }

    fn loaded(bytes: &[u8]) -> Result<u16, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.toml");
        std::fs::write(&path, bytes).unwrap();
        match load::<Sample>(&path) {
            Ok(sample) => Ok(sample.port),
            Err(failure) => {
                assert_eq!(failure.code, crate::failure::EXIT_USAGE);
                Err(failure.line().unwrap())
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert_eq!(loaded(b"port = 7"), Ok(7));
        assert_eq!(loaded(b""), Ok(0));
        let told = loaded(b"# a comment\nport = 7\nprot = 8\n").unwrap_err();
        assert!(told.contains("x.toml, line 3: unknown field `prot`"), "{told}");
        let told = loaded(b"\nport = \"seven\"\n").unwrap_err();
        assert!(told.contains("x.toml, line 2: invalid type"), "{told}");
        let told = loaded(b"port = = 7").unwrap_err();
        assert!(told.contains("x.toml, line 1: "), "{told}");
    }

    #[test]
    fn files_that_are_no_configuration_are_refused() {
        assert!(loaded(b"\xff\xfe").unwrap_err().contains("not UTF-8"));
        let long = vec![b'#'; CONFIG_BYTES_MAX as usize + 1];
        assert!(loaded(&long).unwrap_err().contains("is longer than"));
        let missing = load::<Sample>(Path::new("/nonexistent/x.toml")).unwrap_err();
        assert!(missing.line().unwrap().contains("cannot open the configuration"));
    }
}
