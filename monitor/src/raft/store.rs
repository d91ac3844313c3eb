//! Log, vote and snapshot in one `redb` file, each commit in two phases.
//!
//! Everything in the file is `postcard` behind a version byte. Commits block for as long as the disk
//! takes, so they run on tokio's blocking threads; they are awaited one after the other, because Raft
//! wants its writes in order.

use super::Types;
use super::machine::{Meta, Saved};
use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{Entry, LogId, OptionalSend, StorageError, StorageIOError, Vote};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file in the data directory.
const FILE: &str = "monitor.redb";

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const VOTE: &str = "vote";
const PURGED: &str = "purged";
const IDENTITY: &str = "identity";
pub(super) const SNAPSHOT: &str = "snapshot";

/// The format of everything in the file.
const FORMAT: u8 = 5;
/// Bytes of the file that redb keeps in memory.
const CACHE_BYTES: usize = 16 << 20;

/// Bytes of entries that are read at once for another monitor: far below what one message can carry. One entry
/// is always read, whatever its size.
const READ_BYTES_MAX: usize = 1 << 20;

/// Whose file it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// All zeros: the monitor has not joined (or founded) a cluster yet.
    pub cluster_id: [u8; 16],
    pub cluster_name: String,
    /// The monitor's number.
    pub id: u64,
    /// Drawn when the file was made; never 0.
    pub incarnation: u64,
    /// It has drawn the cluster's id, and has not begun the log yet.
    pub founding: bool,
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0} is in use by another monitor: stop it, or choose another data directory")]
    InUse(PathBuf),
    #[error("{path} belongs to cluster {theirs:?}, not {ours:?}: check data directory and cluster name")]
    OtherCluster { path: PathBuf, theirs: String, ours: String },
    #[error("{path} belongs to monitor {theirs}, not {ours}: check `data_dir` and `id`")]
    OtherMonitor { path: PathBuf, theirs: u64, ours: u64 },
    #[error(
        "{path} cannot be used: {error}; if the disk is sound, remove this monitor and add it again with an empty directory, \
         or see `trefoil monitor restore --help` if it is the only one"
    )]
    Damaged { path: PathBuf, error: Failure },
    #[error("cannot create {path}: {error}")]
    Create { path: PathBuf, error: std::io::Error },
}

/// A failure of the file or of what is in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Redb(#[from] redb::Error),
    #[error("undecodable content: {0}")]
    Content(#[from] postcard::Error),
    #[error(
        "content of format {0}, this release knows {FORMAT}: use the release that wrote it, or a newer one"
    )]
    Format(u8),
    #[error("{0} bytes left over behind the content")]
    LeftOver(usize),
    #[error(
        "the snapshot ends at {snapshot:?}, and the log begins behind {purged:?}: what lies between is missing"
    )]
    Hole { snapshot: Option<LogId<u64>>, purged: LogId<u64> },
    #[error("the writer was cut off: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    Ok(postcard::to_extend(value, vec![FORMAT])?)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest)? {
            (value, []) => Ok(value),
            // Bytes of another type may decode to something; what is left over gives them away.
            (_, left) => Err(Failure::LeftOver(left.len())),
        },
        Some((other, _)) => Err(Failure::Format(*other)),
        None => Err(Failure::Format(0)),
    }
}

/// The last entry in an encoded snapshot, without decoding its map.
fn snapshot_at(bytes: &[u8]) -> Result<Option<LogId<u64>>, Failure> {
    match bytes.split_first() {
        // The meta comes first.
        Some((&FORMAT, rest)) => Ok(postcard::take_from_bytes::<Meta>(rest)?.0.last_log_id),
        Some((other, _)) => Err(Failure::Format(*other)),
        None => Err(Failure::Format(0)),
    }
}

/// The file. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
}

type RaftResult<T> = Result<T, StorageError<u64>>;

impl Store {
    /// Opens the file in `dir`, or makes it with `fresh` as its identity.
    ///
    /// Blocks; for the start of the process only.
    pub fn open(dir: &Path, cluster_name: &str, fresh: Identity) -> Result<(Store, Identity), OpenError> {
        let path = dir.join(FILE);
        std::fs::create_dir_all(dir).map_err(|error| {
            let path = dir.to_owned();
            OpenError::Create { path, error }
        })?;
        let database = match Database::builder().set_cache_size(CACHE_BYTES).create(&path) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(OpenError::InUse(path)),
            Err(error) => {
                let error = Failure::Redb(error.into());
                return Err(OpenError::Damaged { path, error });
            }
        };
        // The file's name must outlive a power cut as surely as its content.
        let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| {
            let path = dir.to_owned();
            OpenError::Create { path, error }
        })?;
        let store = Store { database: Arc::new(database) };
        let id = fresh.id;
        let identity = match store.identify(fresh) {
            Ok(identity) => identity,
            Err(error) => return Err(OpenError::Damaged { path, error }),
        };
        if identity.cluster_name != cluster_name {
            return Err(OpenError::OtherCluster {
                path,
                theirs: identity.cluster_name,
                ours: cluster_name.to_owned(),
            });
        }
        if identity.id != id {
            return Err(OpenError::OtherMonitor { path, theirs: identity.id, ours: id });
        }
        Ok((store, identity))
    }

    /// Opens what is behind `backend`, or makes it with `fresh` as its identity: for tests with a disk of their own.
    #[cfg(test)]
    pub(super) fn on(backend: impl redb::StorageBackend, fresh: Identity) -> Result<Store, Failure> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
        let store = Store { database: Arc::new(database.map_err(redb::Error::from)?) };
        store.identify(fresh)?;
        Ok(store)
    }

    /// Opens the file of a monitor that does not run, whosever it is.
    pub fn open_existing(dir: &Path) -> Result<(Store, Identity), OpenError> {
        let path = dir.join(FILE);
        let database = match Database::builder().set_cache_size(CACHE_BYTES).open(&path) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(OpenError::InUse(path)),
            Err(error) => {
                let error = Failure::Redb(error.into());
                return Err(OpenError::Damaged { path, error });
            }
        };
        let store = Store { database: Arc::new(database) };
        match store.get(IDENTITY) {
            Ok(Some(identity)) => Ok((store, identity)),
            Ok(None) => Err(OpenError::Damaged { path, error: Failure::Format(0) }),
            Err(error) => Err(OpenError::Damaged { path, error }),
        }
    }

    /// The monitor has learned which cluster it is of.
    pub async fn set_identity(&self, identity: &Identity) -> Result<(), Failure> {
        self.put(IDENTITY, identity).await
    }

    /// Makes the file that of a cluster which begins with a snapshot. Blocks.
    pub(super) fn seed(&self, saved: &Saved, at: LogId<u64>) -> Result<(), Failure> {
        let (saved, purged) = (encode(saved)?, encode(&at)?);
        let vote = encode(&Vote::new(at.leader_id.term, at.leader_id.node_id))?;
        self.write(|_, meta| {
            meta.insert(SNAPSHOT, saved.as_slice())?;
            meta.insert(PURGED, purged.as_slice())?;
            meta.insert(VOTE, vote.as_slice())?;
            Ok(())
        })
    }

    fn identify(&self, fresh: Identity) -> Result<Identity, Failure> {
        let mut identity = fresh;
        // Makes both tables, too, so that reading finds them.
        self.write(|_, meta| {
            let known = meta.get(IDENTITY)?.map(|value| value.value().to_vec());
            match known {
                Some(bytes) => identity = decode(&bytes).map_err(Failed::Ours)?,
                None => {
                    let bytes = encode(&identity).map_err(Failed::Ours)?;
                    meta.insert(IDENTITY, bytes.as_slice())?;
                }
            }
            Ok(())
        })?;
        Ok(identity)
    }

    /// One durable change. Blocks.
    fn write(
        &self,
        change: impl FnOnce(
            &mut redb::Table<'_, u64, &'static [u8]>,
            &mut redb::Table<'_, &'static str, &'static [u8]>,
        ) -> Result<(), Failed>,
    ) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write().map_err(redb::Error::from)?;
        // A crash in the middle of a commit must be told from the commit before: checksums alone are
        // not trusted with that.
        transaction.set_two_phase_commit(true);
        {
            let mut log = transaction.open_table(LOG).map_err(redb::Error::from)?;
            let mut meta = transaction.open_table(META).map_err(redb::Error::from)?;
            change(&mut log, &mut meta).map_err(|failed| match failed {
                Failed::Redb(error) => Failure::Redb(error.into()),
                Failed::Ours(error) => error,
            })?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    /// As [`Store::write`], on a blocking thread.
    async fn change<F>(&self, change: F) -> Result<(), Failure>
    where
        F: FnOnce(
                &mut redb::Table<'_, u64, &'static [u8]>,
                &mut redb::Table<'_, &'static str, &'static [u8]>,
            ) -> Result<(), Failed>
            + Send
            + 'static,
    {
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.write(change)).await?
    }

    /// Puts one value into the table of single values, durably.
    pub(super) async fn put<T: Serialize>(&self, key: &'static str, value: &T) -> Result<(), Failure> {
        let bytes = encode(value)?;
        self.change(move |_, meta| {
            meta.insert(key, bytes.as_slice())?;
            Ok(())
        })
        .await
    }

    /// Puts a snapshot, durably, unless there is a later one. (One is built beside everything else, and a later one
    /// may come from the leader meanwhile, whose log is then purged up to there: with the earlier one in its place,
    /// what lies between would be lost.)
    pub(super) async fn put_snapshot(&self, saved: &Saved) -> Result<(), Failure> {
        let (bytes, at) = (encode(saved)?, saved.meta.last_log_id);
        self.change(move |_, meta| {
            let known = meta.get(SNAPSHOT)?.map(|value| snapshot_at(value.value()));
            if known.transpose().map_err(Failed::Ours)?.flatten() > at {
                return Ok(());
            }
            meta.insert(SNAPSHOT, bytes.as_slice())?;
            Ok(())
        })
        .await
    }

    /// The last entry that was purged from the log.
    pub(super) fn purged(&self) -> Result<Option<LogId<u64>>, Failure> {
        self.get(PURGED)
    }

    /// Reads such a value. From redb's cache or the page cache; not worth a thread.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Failure> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        read()?.map(|bytes| decode(&bytes)).transpose()
    }

    /// The entries of a range, or as many of its first ones as have `bytes_max` bytes, but one at least.
    pub(super) fn entries(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            let mut entries = Vec::new();
            let mut bytes = 0usize;
            for entry in table.range(range)? {
                let entry = entry?.1.value().to_vec();
                bytes = bytes.saturating_add(entry.len());
                if bytes > bytes_max && !entries.is_empty() {
                    break;
                }
                entries.push(entry);
            }
            Ok(entries)
        };
        read()?.iter().map(|bytes| decode(bytes)).collect()
    }

    fn last(&self) -> Result<Option<Entry<Types>>, Failure> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            Ok(table.last()?.map(|entry| entry.1.value().to_vec()))
        };
        read()?.map(|bytes| decode(&bytes)).transpose()
    }
}

/// Why a change was given up.
enum Failed {
    Redb(redb::StorageError),
    Ours(Failure),
}

impl From<redb::StorageError> for Failed {
    fn from(error: redb::StorageError) -> Failed {
        Failed::Redb(error)
    }
}

fn any(error: Failure) -> openraft::AnyError {
    openraft::AnyError::new(&error)
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> RaftResult<Vec<Entry<Types>>> {
        self.entries(range, usize::MAX).map_err(|error| StorageIOError::read_logs(any(error)).into())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> RaftResult<Vec<Entry<Types>>> {
        let read = self.entries(start..end, READ_BYTES_MAX);
        read.map_err(|error| StorageIOError::read_logs(any(error)).into())
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> RaftResult<LogState<Types>> {
        let read = |error| StorageIOError::read_logs(any(error));
        let purged: Option<LogId<u64>> = self.get(PURGED).map_err(read)?;
        let last = self.last().map_err(read)?.map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> RaftResult<()> {
        let saved = self.put(VOTE, vote).await;
        saved.map_err(|error| StorageIOError::write_vote(any(error)).into())
    }

    // Read once, at start. Whoever led when it ended does not go on: openraft would let it, in the same term, and it
    // would confirm reads of the map of its last snapshot, because how far the log was committed is not in the file.
    // Nor would its reign be without a gap. It stands for election instead, in a term of its own. (To remember less
    // of the own vote is safe: nobody else can have this term's leader id, and the term stays taken.)
    async fn read_vote(&mut self) -> RaftResult<Option<Vote<u64>>> {
        let read = || -> Result<Option<Vote<u64>>, Failure> {
            let mut vote: Option<Vote<u64>> = self.get(VOTE)?;
            let me = self.get::<Identity>(IDENTITY)?.map(|identity| identity.id);
            if let Some(vote) = vote.as_mut().filter(|vote| Some(vote.leader_id.node_id) == me) {
                vote.committed = false;
            }
            Ok(vote)
        };
        read().map_err(|error| StorageIOError::read_vote(any(error)).into())
    }

    // The commit index is not saved: it would cost a commit of the file for each command. A monitor that
    // starts applies the log when it has become leader, and serves nobody before that.
    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> RaftResult<()>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded: Result<Vec<(u64, Vec<u8>)>, Failure> =
            entries.into_iter().map(|entry| Ok((entry.log_id.index, encode(&entry)?))).collect();
        let append = async {
            let encoded = encoded?;
            self.change(move |log, _| {
                for (index, bytes) in &encoded {
                    log.insert(index, bytes.as_slice())?;
                }
                Ok(())
            })
            .await
        };
        match append.await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(StorageIOError::write_logs(any(error)).into())
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> RaftResult<()> {
        let truncated = self
            .change(move |log, _| {
                log.retain_in(log_id.index.., |_, _| false)?;
                Ok(())
            })
            .await;
        truncated.map_err(|error| StorageIOError::write_logs(any(error)).into())
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> RaftResult<()> {
        let purge = async {
            let purged = encode(&log_id)?;
            self.change(move |log, meta| {
                // Together: a log that begins behind what is said to be purged would have a hole.
                meta.insert(PURGED, purged.as_slice())?;
                log.retain_in(..=log_id.index, |_, _| false)?;
                Ok(())
            })
            .await
        };
        purge.await.map_err(|error| StorageIOError::write_logs(any(error)).into())
    }
}
