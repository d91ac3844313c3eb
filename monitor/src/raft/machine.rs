//! The state machine: applies committed commands to the map that the rest of the monitor reads.

use super::store::{Failure, SNAPSHOT, Store, decode, encode};
use super::{Member, Outcome, SNAPSHOT_BYTES_MAX, Types, reign_of};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{
    AnyError, Entry, EntryPayload, LogId, OptionalSend, SnapshotMeta, StorageError, StorageIOError,
    StoredMembership,
};
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use trefoil_core::map::ClusterMap;

/// The map as it was applied last, for readers; they wait on it for changes. A snapshot of the `Arc` is
/// all that a reader needs.
pub(crate) type SharedMap = watch::Receiver<Arc<ClusterMap>>;

pub(super) type Meta = SnapshotMeta<u64, Member>;
type RaftResult<T> = Result<T, StorageError<u64>>;

/// What a snapshot is, in the file.
#[derive(Serialize, Deserialize)]
pub(super) struct Saved {
    pub meta: Meta,
    pub map: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct Machine {
    store: Store,
    shared: Arc<Mutex<State>>,
}

struct State {
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, Member>,
    map: watch::Sender<Arc<ClusterMap>>,
}

impl Machine {
    /// The map of the last snapshot, or the empty one. The log behind it is applied by Raft.
    ///
    /// Errors: something is missing between the snapshot and the log, so that the map would not be the others'.
    pub fn load(store: Store) -> Result<(Machine, SharedMap), Failure> {
        let saved: Option<Saved> = store.get(SNAPSHOT)?;
        let (applied, membership, map) = match saved {
            Some(saved) => (saved.meta.last_log_id, saved.meta.last_membership, decode(&saved.map)?),
            None => (None, StoredMembership::default(), ClusterMap::new()),
        };
        if let Some(purged) = store.purged()?.filter(|purged| applied < Some(*purged)) {
            return Err(Failure::Hole { snapshot: applied, purged });
        }
        let (map, reader) = watch::channel(Arc::new(map));
        let state = State { applied, membership, map };
        let machine = Machine { store, shared: Arc::new(Mutex::new(state)) };
        Ok((machine, reader))
    }

    /// Never held across an await, and nothing under it panics half way.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> RaftResult<Snapshot<Types>> {
        let (meta, map) = {
            let state = self.state();
            let snapshot_id = state.applied.map_or_else(|| "0".to_owned(), |id| id.to_string());
            let meta =
                Meta { last_log_id: state.applied, last_membership: state.membership.clone(), snapshot_id };
            (meta, state.map.borrow().clone())
        };
        let build = async {
            let saved = Saved { meta: meta.clone(), map: encode(&*map)? };
            self.store.put_snapshot(&saved).await?;
            Ok(saved.map)
        };
        let map = build.await.map_err(|error: Failure| {
            StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error))
        })?;
        let snapshot = Box::new(Cursor::new(map));
        Ok(Snapshot { meta, snapshot })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> RaftResult<(Option<LogId<u64>>, StoredMembership<u64, Member>)> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> RaftResult<Vec<Outcome>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = self.state();
        // One copy for a batch of entries, however many readers hold the old one.
        let mut map = ClusterMap::clone(&state.map.borrow());
        let version = map.version;
        let mut outcomes = Vec::new();
        for entry in entries {
            state.applied = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Nothing,
                EntryPayload::Normal(proposal) => {
                    map.apply_written(&proposal, reign_of(&entry.log_id.leader_id))
                }
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::Nothing
                }
            });
        }
        if map.version != version {
            state.map.send_replace(Arc::new(map));
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> RaftResult<Box<Cursor<Vec<u8>>>> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: Box<Cursor<Vec<u8>>>) -> RaftResult<()> {
        let install = async {
            let saved = Saved { meta: meta.clone(), map: snapshot.into_inner() };
            if saved.map.len() > SNAPSHOT_BYTES_MAX {
                return Err(Failure::LeftOver(saved.map.len() - SNAPSHOT_BYTES_MAX));
            }
            let map: ClusterMap = decode(&saved.map)?;
            self.store.put_snapshot(&saved).await?;
            Ok(map)
        };
        let map = install.await.map_err(|error: Failure| {
            StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error))
        })?;
        let mut state = self.state();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.map.send_replace(Arc::new(map));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> RaftResult<Option<Snapshot<Types>>> {
        let saved: Option<Saved> = self
            .store
            .get(SNAPSHOT)
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        Ok(saved.map(|saved| Snapshot { meta: saved.meta, snapshot: Box::new(Cursor::new(saved.map)) }))
    }
}
