//! What a node keeps beside its store so that it can start while the monitors are away: its id, and the
//! last map. Neither is a fact of its own: lost or damaged, they are asked for again.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use trefoil_core::map::ClusterMap;
use trefoil_core::{Incarnation, NodeId};

/// Who the node is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The store that this is about.
    pub incarnation: Incarnation,
    /// Its number in the map.
    pub node: NodeId,
    /// The least position at which a start has found the log that has not been compared with what the
    /// monitors remember (N8): each start writes to the log, and would hide from the next one that
    /// something is missing.
    #[serde(default)]
    pub unchecked: Option<u64>,
    /// The log is known to have been durable up to here: at the last clean stop, or the last start. The
    /// monitors know it to the last heartbeat; this tells without them, and of what came after that.
    #[serde(default)]
    pub position: Option<u64>,
}

/// The files.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Makes the directory if need be.
    pub fn open(path: &Path) -> io::Result<StateDir> {
        fs::create_dir_all(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: cannot make the directory: {error}", path.display()))
        })?;
        Ok(StateDir(path.to_owned()))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the index is.
    pub fn index(&self) -> PathBuf {
        self.0.join("index")
    }

    /// The file that says who the node is, if there is one: a store has been served from here before.
    pub fn known(&self) -> Option<PathBuf> {
        Some(self.0.join("node.json")).filter(|path| path.exists())
    }

    /// Who the node on this store is, if it is known here.
    pub fn identity(&self, incarnation: Incarnation) -> Option<Identity> {
        let text = fs::read(self.0.join("node.json")).ok()?;
        let identity: Identity = serde_json::from_slice(&text).ok()?;
        (identity.incarnation == incarnation).then_some(identity)
    }

    /// Keeps who the node is. Waits for the file system, which holds up the node's one thread: not for
    /// while it serves, but for starts, stops, and what happens once.
    pub fn keep_identity(&self, identity: Identity) {
        // Three numbers always serialise.
        let text = serde_json::to_vec_pretty(&identity).unwrap_or_default();
        self.put("node.json", &text, true);
    }

    /// The last map.
    pub fn map(&self) -> Option<ClusterMap> {
        let bytes = fs::read(self.0.join("map")).ok()?;
        let map = kept_map(&bytes);
        if map.is_none() {
            tracing::warn!("the map kept in {} is damaged: asking the monitors", self.0.display());
        }
        map
    }

    /// Keeps the map.
    pub fn keep_map(&self, map: &ClusterMap) {
        match postcard::to_stdvec(map) {
            Ok(bytes) => {
                let mut sealed = postcard::to_stdvec(&checksum(&bytes)).unwrap_or_default();
                sealed.extend_from_slice(&bytes);
                self.put("map", &sealed, false);
            }
            Err(error) => tracing::warn!(%error, "the map cannot be kept"),
        }
    }

    /// When each placement group was scrubbed last, as far as it was kept.
    pub fn scrubs<T: serde::de::DeserializeOwned + Default>(&self) -> T {
        let text = fs::read(self.0.join("scrub.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Keeps when each placement group was scrubbed last. Lost, they are all scrubbed again, in good time. Waits
    /// for the file system: not for the thread that serves I/O.
    pub fn keep_scrubs<T: Serialize>(&self, scrubs: &T) {
        match serde_json::to_vec(scrubs) {
            Ok(text) => self.put("scrub.json", &text, true),
            Err(error) => tracing::warn!(%error, "the times of scrubs cannot be kept"),
        }
    }

    /// A crash leaves the old file or the new one. One that is not `durable` may be torn, which is seen when
    /// it is read; a flush would hold up the node's one thread.
    fn put(&self, name: &str, bytes: &[u8], durable: bool) {
        let new = self.0.join(format!("{name}.new"));
        let put = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(bytes)?;
            if durable {
                file.sync_all()?;
            }
            fs::rename(&new, self.0.join(name))?;
            if durable {
                // The new name, too.
                fs::File::open(&self.0)?.sync_all()?;
            }
            io::Result::Ok(())
        };
        if let Err(error) = put() {
            tracing::warn!(%error, "cannot write {} in {}", name, self.0.display());
        }
    }
}

/// The map in the bytes of a `map` file; `None` if it is not whole.
pub fn kept_map(bytes: &[u8]) -> Option<ClusterMap> {
    let (sum, rest) = postcard::take_from_bytes::<u32>(bytes).ok()?;
    if sum != checksum(rest) {
        return None;
    }
    match postcard::take_from_bytes::<ClusterMap>(rest) {
        Ok((map, [])) => Some(map),
        _ => None,
    }
}

/// Seals a map: one that was torn by a crash must not be believed.
fn checksum(bytes: &[u8]) -> u32 {
    trefoil_crc::crc32c(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_and_what_is_damaged_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("a/b")).unwrap();
        assert_eq!(state.identity(Incarnation(5)), None);
        assert_eq!(state.map(), None);
        let (incarnation, node) = (Incarnation(5), NodeId(3));
        let identity = Identity { incarnation, node, unchecked: Some(9), position: Some(12) };
        state.keep_identity(identity);
        assert_eq!(state.identity(Incarnation(5)), Some(identity));
        assert_eq!(state.identity(Incarnation(6)), None, "another store");
        fs::write(dir.path().join("a/b/node.json"), r#"{"incarnation": 5, "node": 3}"#).unwrap();
        let old = Identity { unchecked: None, position: None, ..identity };
        assert_eq!(state.identity(incarnation), Some(old), "as versions before wrote it");
        let mut map = ClusterMap::new();
        map.layout = 7;
        state.keep_map(&map);
        assert_eq!(state.map(), Some(map));
        let file = dir.path().join("a/b/map");
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() / 2;
        bytes[last] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(state.map(), None);
    }
}
