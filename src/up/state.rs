//! `DIR/up.json`: what `up` must remember from one start to the next.
//!
//! Only what nobody else knows: which nodes there are, how large, and on which ports. Volumes are the
//! monitor's; here stand only those which are still to be made, so that a first start that was
//! interrupted is completed by the second.

use super::dir;
use crate::size::Size;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use trefoil_metrics::Listen;

/// The version of the format. Another one is refused, not guessed at.
pub const VERSION: u32 = 1;
/// A state of the largest `up` is far smaller.
const STATE_BYTES_MAX: u64 = 1 << 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`VERSION`].
    pub version: u32,
    /// Where the monitor listens.
    pub monitor: SocketAddr,
    /// Where the others listen, if there are several.
    #[serde(default)]
    pub more_monitors: Vec<SocketAddr>,
    /// The storage nodes, in order: `node-0`, `node-1`, ...
    pub nodes: Vec<NodeState>,
    /// Volumes that were asked for and are not made yet.
    pub volumes_wanted: Vec<VolumeWanted>,
    /// Where the NBD front end of the last start listened.
    pub nbd_listen: SocketAddr,
    /// Its unix socket.
    pub nbd_socket: PathBuf,
    /// Where each daemon serves its metrics, by its name. Directories of earlier versions have none yet.
    #[serde(default)]
    pub metrics: BTreeMap<String, SocketAddr>,
}

/// One storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeState {
    /// `node-N`; also the name of its directory.
    pub name: String,
    /// Bytes of its device; never changes.
    pub size: Size,
    /// Where it listens.
    pub address: SocketAddr,
    /// It has served once: its device is formatted, and is never formatted again.
    pub made: bool,
}

/// A volume that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeWanted {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: Size,
}

impl State {
    /// Where the monitors listen, in order of their numbers.
    pub fn monitors(&self) -> Vec<SocketAddr> {
        [self.monitor].into_iter().chain(self.more_monitors.iter().copied()).collect()
    }

    /// Reads the state in `dir`; none where there is none yet.
    ///
    /// # Errors
    ///
    /// It cannot be read or is not ours.
    pub fn load(dir: &Path) -> anyhow::Result<Option<State>> {
        let path = dir.join(dir::STATE_FILE);
        let name = path.display();
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("cannot open {name}"))?,
        };
        let mut text = String::new();
        file.take(STATE_BYTES_MAX)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {name}"))?;
        let advice = "restore the file from a copy, or start afresh in another --dir (the daemons' own \
                      data is untouched)";
        // The version first: another one may have other fields.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match serde_json::from_str::<Versioned>(&text) {
            Ok(versioned) if versioned.version != VERSION => bail!(
                "{name} was written by another version of Trefoil (format {}, this one reads {VERSION}): use \
                 that version",
                versioned.version
            ),
            Ok(_) => {}
            Err(error) => bail!("{name} is damaged ({error}): {advice}"),
        }
        match serde_json::from_str(&text) {
            Ok(state) => Ok(Some(state)),
            Err(error) => bail!("{name} is damaged ({error}): {advice}"),
        }
    }

    /// Where the daemon of that name serves its metrics, as its configuration says it.
    pub fn metrics_listen(&self, name: &str) -> Listen {
        self.metrics.get(name).map_or(Listen::Off, |address| Listen::At(*address))
    }

    /// Writes the state to `dir`, durably and in one step.
    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        dir::write_atomically(&dir.join(dir::STATE_FILE), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_as_it_was_and_a_damaged_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), None);
        let address: SocketAddr = "127.0.0.1:20000".parse().unwrap();
        let state = State {
            version: VERSION,
            monitor: address,
            more_monitors: vec![],
            nodes: vec![NodeState { name: "node-0".into(), size: Size(1 << 30), address, made: true }],
            volumes_wanted: vec![VolumeWanted { name: "disk0".into(), size: Size(4096) }],
            nbd_listen: address,
            nbd_socket: "/x/nbd.sock".into(),
            metrics: [("nbd".to_owned(), address)].into(),
        };
        state.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), Some(state.clone()));
        assert_eq!(state.metrics_listen("nbd"), Listen::At(address));
        assert_eq!(state.metrics_listen("node-0"), Listen::Off);

        // As an earlier version wrote it.
        let mut older = serde_json::to_value(&state).unwrap();
        older.as_object_mut().unwrap().remove("metrics").unwrap();
        std::fs::write(dir.path().join(dir::STATE_FILE), older.to_string()).unwrap();
        let loaded = State::load(dir.path()).unwrap().unwrap();
        assert_eq!(loaded, State { metrics: BTreeMap::new(), ..state });

        let file = dir.path().join(dir::STATE_FILE);
        for (text, told) in [
            ("{\"version\": 2, \"new\": 1}", "another version of Trefoil (format 2"),
            ("{\"version\": 1}", "is damaged (missing field"),
            ("", "is damaged"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = format!("{:#}", State::load(dir.path()).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
