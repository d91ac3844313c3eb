//! Volumes as NBD exports: names from the map, disks from sessions.
//!
//! Each shard of a process lists and describes all volumes, and opens its own ([`crate::shards::home`]).

use super::core::SessionKey;
use super::front::FrontEnd;
use crate::blocks::BlockLayer;
use crate::disk::{ConnId, Disk, DiskRequest, Elsewhere, ExportInfo, Exports, LocalFuture, OpenError};
use crate::shards::{self, Place};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trefoil_core::map::ClusterMap;
use trefoil_core::{PoolId, VolumeId};

/// How long a client waits for the last session of its volume to end, and how often it looks.
const CLOSING_WAIT_MAX: Duration = Duration::from_secs(5);
const CLOSING_PAUSE: Duration = Duration::from_millis(20);
/// How long a client that another shard has handed over waits for the map that this one saw, and how often it is
/// asked for.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(50);

/// The exports of a front end.
pub struct Volumes {
    front: Rc<FrontEnd>,
    /// Names that may be exported; none: all.
    allowed: Option<Vec<String>>,
    place: Place,
}

/// What is needed of a volume to open it.
struct Found {
    id: VolumeId,
    pool: PoolId,
    size: u64,
    object_size: u64,
    info: ExportInfo,
}

impl Volumes {
    /// All volumes, or those that are named.
    pub fn new(front: Rc<FrontEnd>, allowed: Option<Vec<String>>) -> Volumes {
        Volumes::of_shard(front, allowed, Place::ALONE)
    }

    /// The same, of which only those are opened here that belong to this shard.
    pub fn of_shard(front: Rc<FrontEnd>, allowed: Option<Vec<String>>, place: Place) -> Volumes {
        Volumes { front, allowed, place }
    }

    fn may(&self, name: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|a| a == name))
    }

    /// The volume of this name; for the empty name the only one there is.
    fn find(&self, name: &str) -> Result<Found, OpenError> {
        let map: Arc<ClusterMap> = self.front.cluster().map();
        let mut only = map.volumes.values().filter(|it| self.may(&it.name));
        let name = match (name, only.next(), only.next()) {
            ("", Some(volume), None) => volume.name.clone(),
            ("", None, _) => return Err(OpenError::Unknown("there is no volume yet".into())),
            ("", ..) => {
                return Err(OpenError::Unknown("several volumes: name one of them as the export".into()));
            }
            (name, ..) => name.to_owned(),
        };
        let found = map.volume_named(&name).filter(|_| self.may(&name));
        let Some((id, it)) = found else {
            // A volume may have been made a moment ago.
            self.front.cluster().refresh();
            return Err(OpenError::Unknown(format!("no volume named {name:?} is exported here")));
        };
        let info =
            ExportInfo { name, description: format!("Trefoil {id}"), size_bytes: it.size, read_only: false };
        Ok(Found { id, pool: it.pool, size: it.size, object_size: it.object_size, info })
    }
}

impl Exports for Volumes {
    fn list(&self) -> Vec<String> {
        let map = self.front.cluster().map();
        map.volumes.values().map(|it| it.name.clone()).filter(|name| self.may(name)).collect()
    }

    fn describe(&self, name: &str) -> LocalFuture<Result<ExportInfo, OpenError>> {
        let found = self.find(name).map(|found| found.info);
        Box::pin(async move { found })
    }

    fn open(&self, name: &str) -> LocalFuture<Result<Rc<dyn Disk>, OpenError>> {
        let (found, front) = (self.find(name), self.front.clone());
        Box::pin(async move {
            let found = found?;
            // A session that is finishing takes nothing new; it will not take long.
            let closing =
                || front.look(|core| core.session_of(found.id).is_some_and(|key| core.is_closing(key)));
            let begun = Instant::now();
            while closing() {
                if begun.elapsed() > CLOSING_WAIT_MAX {
                    return Err(OpenError::Refused("the volume is just being released: try again".into()));
                }
                tokio::time::sleep(CLOSING_PAUSE).await;
            }
            open_now(&front, found)
        })
    }

    fn elsewhere(&self, name: &str) -> Option<Elsewhere> {
        if self.place.of == 1 {
            return None;
        }
        let known = self.front.cluster().map().layout;
        // One that is not there is refused here.
        let shard = shards::home(self.find(name).ok()?.id, self.place.of);
        (shard != self.place.number).then_some(Elsewhere { shard, known })
    }

    fn catch_up(&self, known: u64) -> LocalFuture<()> {
        let cluster = self.front.cluster().clone();
        Box::pin(async move {
            let caught_up = async {
                loop {
                    let seen = cluster.map().layout;
                    if seen >= known {
                        return;
                    }
                    // The monitor that is asked here may lag behind the one that the other shard asked.
                    cluster.refresh();
                    let _ = tokio::time::timeout(CATCH_UP_PAUSE, cluster.map_changed(seen)).await;
                }
            };
            if tokio::time::timeout(CATCH_UP_MAX, caught_up).await.is_err() {
                tracing::warn!(known, "this shard does not get the map that another one has");
            }
        })
    }
}

fn open_now(front: &Rc<FrontEnd>, found: Found) -> Result<Rc<dyn Disk>, OpenError> {
    if front.is_stopping() {
        return Err(OpenError::ShuttingDown);
    }
    let mut session = front.look(|core| core.session_of(found.id));
    if let Some(key) = session.filter(|key| front.is_healer(*key)) {
        // The healer is this process's own: its generation ends with the next grant.
        front.batch(|core| core.abandon(key));
        session = None;
    }
    let key = match session {
        Some(key) => key,
        None => {
            let layer = BlockLayer::new(found.id, found.size, found.object_size)
                .map_err(|error| OpenError::Refused(error.to_string()))?;
            let key = front.batch(|core| core.open(found.id, found.pool, Some(layer)));
            front.task(front.clone().attach_if_free(key));
            key
        }
    };
    front.batch(|core| core.client_came(key));
    Ok(Rc::new(VolumeDisk { front: front.clone(), key, info: found.info }))
}

/// A client's view of a session. When the session ends, every request is answered with
/// [`crate::disk::DiskError::Gone`], which closes the client's connection.
struct VolumeDisk {
    front: Rc<FrontEnd>,
    key: SessionKey,
    info: ExportInfo,
}

impl Disk for VolumeDisk {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }
    fn submit(&self, batch: &mut Vec<DiskRequest>) {
        self.front.batch(|core| core.submit(self.key, batch));
    }
    fn client_gone(&self, conn: ConnId) {
        self.front.batch(|core| core.client_gone(self.key, conn));
    }
}

impl Drop for VolumeDisk {
    fn drop(&mut self) {
        self.front.client_left(self.key);
    }
}
