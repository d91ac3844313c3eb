//! A CRUSH map in a file: text as `crushtool -d` prints it, with a comment that says what it was read from.
//!
//! The comment is how `trefoil crush set` knows whether somebody has changed the map since `trefoil crush get`;
//! Ceph's tools ignore it. Files come from outside: what is read is bounded, and errors name line and column.

use anyhow::{Context, bail, ensure};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use trefoil_core::crush::{CrushMap, MAP_TEXT_BYTES_MAX};

/// What the comment begins with.
const MARK: &str = "# trefoil: cluster ";
/// Between the cluster's id and the version.
const VERSION: &str = ", CRUSH map version ";

/// What a file holds.
pub struct MapFile {
    /// The map.
    pub map: CrushMap,
    /// The cluster that it was read from, in hexadecimal, and the CRUSH map's version then.
    pub origin: Option<(String, u64)>,
}

/// The text of a map with the comment.
pub fn text(map: &CrushMap, cluster: &str, version: u64) -> String {
    format!("{MARK}{cluster}{VERSION}{version}\n{}", map.to_text())
}

/// The comment, wherever it stands.
fn origin(text: &str) -> Option<(String, u64)> {
    let line = text.lines().find_map(|line| line.trim_end().strip_prefix(MARK))?;
    let (cluster, version) = line.split_once(VERSION)?;
    Some((cluster.to_owned(), version.parse().ok()?))
}

/// Reads a map.
///
/// # Errors
///
/// The file cannot be read, is too long, or is no map: the line and what to do.
pub fn read(path: &Path) -> anyhow::Result<MapFile> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the map {name}"))?;
    // One byte more than allowed tells a file that is too long from one that just fits.
    let mut bytes = Vec::new();
    let limit = MAP_TEXT_BYTES_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    ensure!(
        bytes.len() <= MAP_TEXT_BYTES_MAX,
        "{name} is longer than {MAP_TEXT_BYTES_MAX} bytes: it is not a CRUSH map"
    );
    let Ok(text) = String::from_utf8(bytes) else {
        bail!("{name} is not text; turn a compiled map into text with `crushtool -d {name}`");
    };
    let map = CrushMap::parse(&text).with_context(|| format!("{name} is not a valid CRUSH map"))?;
    Ok(MapFile { map, origin: origin(&text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_it_was_read_from() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map.txt");
        let map = CrushMap::with_root();
        std::fs::write(&path, text(&map, "00ff", 17)).unwrap();
        let read_back = read(&path).unwrap();
        assert_eq!((read_back.map, read_back.origin), (map.clone(), Some(("00ff".to_owned(), 17))));
        std::fs::write(&path, map.to_text()).unwrap();
        assert_eq!(read(&path).unwrap().origin, None);
        for odd in ["# trefoil: cluster ff", "# trefoil: cluster ff, CRUSH map version -1", "#"] {
            assert_eq!(origin(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_no_text_and_what_is_too_long_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map.bin");
        std::fs::write(&path, [0xff, 0xfe, 0]).unwrap();
        let told = read(&path).err().expect("no text").to_string();
        assert!(told.contains("crushtool -d"), "{told}");
        let file = File::create(&path).unwrap();
        file.set_len(MAP_TEXT_BYTES_MAX as u64 + 1).unwrap();
        let told = read(&path).err().expect("too long").to_string();
        assert!(told.contains("is longer than"), "{told}");
    }
}
