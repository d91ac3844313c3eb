//! What tells where a volume's objects should be: a cluster map that a node has kept, or what is known
//! without one.
//!
//! The arithmetic is core's ([`ClusterMap::group_of`], [`object_pg`]); nothing is placed here.

use crate::daemon::kept_map;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use trefoil_core::crush::object_pg;
use trefoil_core::limits::{OBJECT_SIZE_MAX, OBJECT_SIZE_MIN};
use trefoil_core::map::{ClusterMap, VOLUME_SIZE_MAX};
use trefoil_core::placement::PgConfig;
use trefoil_core::{BLOCK_SIZE, GroupId, ObjectIndex, PgId, PoolId, VolumeId};

/// Bytes of a map file that are read at most; the limits of a map keep it well below.
const MAP_BYTES_MAX: u64 = 64 << 20;

/// Why a volume cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file.
    #[error("cannot read the cluster map {path}: {source}")]
    Read {
        /// The path.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// It is no map.
    #[error(
        "{0} is no cluster map, or it is damaged: give the file `map` of a storage node's state directory, \
         best that of the node which ran last"
    )]
    NoMap(String),
    /// The map does not have it.
    #[error("the cluster map (version {version}) has no volume {name}; it has: {has}")]
    NoVolume {
        /// The name or id.
        name: String,
        /// The map's version.
        version: u64,
        /// Names of some that it has.
        has: String,
    },
    /// No volume can be like that.
    #[error("a volume of {size} bytes in objects of {object_size} is not possible: {why}")]
    Sizes {
        /// Bytes.
        size: u64,
        /// Bytes.
        object_size: u64,
        /// What is wrong.
        why: &'static str,
    },
}

/// Reads a cluster map that a storage node has kept (`map` in its state directory).
pub fn read_map(path: &Path) -> Result<ClusterMap, LayoutError> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(MAP_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| LayoutError::Read { path: name.clone(), source })?;
    kept_map(&bytes).ok_or(LayoutError::NoMap(name))
}

/// How a volume is divided.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Which one.
    pub id: VolumeId,
    /// Its name, where the map tells it.
    pub name: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of an object.
    pub object_size: u64,
    /// Where its objects are.
    pub place: Place,
}

/// How well it is known where objects are.
#[derive(Clone, Debug)]
pub enum Place {
    /// By the map.
    Map(Box<ClusterMap>),
    /// There is no map, but the number of the pool's placement groups is known.
    PgNum(u32),
    /// Nothing is known but what the devices hold.
    Unknown,
}

impl Layout {
    /// From a map; `volume` is a name, or an id (`7`, `vol7`).
    pub fn from_map(map: ClusterMap, volume: &str) -> Result<Layout, LayoutError> {
        let by_id = || parse_volume(volume).and_then(|id| Some((id, &**map.volumes.get(&id)?)));
        let Some((id, it)) = map.volume_named(volume).or_else(by_id) else {
            let mut has: Vec<&str> = map.volumes.values().take(20).map(|it| it.name.as_str()).collect();
            has.sort_unstable();
            let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
            return Err(LayoutError::NoVolume { name: volume.to_owned(), version: map.version, has });
        };
        let (name, size, object_size) = (Some(it.name.clone()), it.size, it.object_size);
        Layout { id, name, size, object_size, place: Place::Map(Box::new(map)) }.checked()
    }

    /// Without a map.
    pub fn by_hand(
        id: VolumeId,
        size: u64,
        object_size: u64,
        pg_num: Option<u32>,
    ) -> Result<Layout, LayoutError> {
        let place = pg_num.map_or(Place::Unknown, Place::PgNum);
        Layout { id, name: None, size, object_size, place }.checked()
    }

    fn checked(self) -> Result<Layout, LayoutError> {
        let (size, object_size) = (self.size, self.object_size);
        let wrong = |why| Err(LayoutError::Sizes { size, object_size, why });
        if !object_size.is_power_of_two() || !(OBJECT_SIZE_MIN..=OBJECT_SIZE_MAX).contains(&object_size) {
            return wrong("an object's size is a power of two from 64 KiB to 8 MiB");
        }
        if size == 0 || !size.is_multiple_of(BLOCK_SIZE as u64) || size > VOLUME_SIZE_MAX {
            return wrong("a volume's size is a multiple of 4 KiB, at most 256 TiB");
        }
        if size.div_ceil(object_size) > u64::from(ObjectIndex::MAX) {
            return wrong("these are too many objects");
        }
        if matches!(self.place, Place::PgNum(0)) {
            return wrong("a pool has at least one placement group");
        }
        Ok(self)
    }

    /// Objects.
    pub fn objects(&self) -> u32 {
        self.size.div_ceil(self.object_size) as u32
    }

    /// The map, if there is one.
    pub fn map(&self) -> Option<&ClusterMap> {
        match &self.place {
            Place::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The group that an object belongs to, where that is known without looking at any device. `pools`:
    /// those in which devices have groups of the volume; a volume is in one.
    pub fn group_of(&self, index: ObjectIndex, pools: &BTreeSet<PoolId>) -> Option<GroupId> {
        match &self.place {
            Place::Map(map) => map.group_of(self.id, index),
            Place::PgNum(pg_num) => {
                let pool = (pools.len() == 1).then(|| pools.first().copied()).flatten()?;
                let pg = PgId { pool, pg: object_pg(self.id.0, index, *pg_num) };
                Some(GroupId { volume: self.id, pg })
            }
            Place::Unknown => None,
        }
    }

    /// Where the map says that a placement group lives.
    pub fn config_of(&self, pg: PgId) -> Option<PgConfig> {
        Some(self.map()?.members(pg)?.config())
    }
}

/// `7` or `vol7`.
pub fn parse_volume(text: &str) -> Option<VolumeId> {
    let digits = text.strip_prefix("vol").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok().map(VolumeId)).flatten()
}
