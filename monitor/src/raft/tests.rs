//! The store against openraft's own suite, and a map that comes back from a snapshot and a purged log.

use super::network::is_possible;
use super::*;
use openraft::storage::RaftLogStorage;
use openraft::testing::{StoreBuilder, Suite};
use openraft::{StorageError, Vote};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use trefoil_core::map::Command;

/// The only monitor.
const VOTER: u64 = 1;

fn identity() -> Identity {
    Identity {
        cluster_id: [4; 16],
        cluster_name: "test".to_owned(),
        id: VOTER,
        incarnation: 7,
        founding: false,
    }
}

struct Builder;

impl StoreBuilder<Types, Store, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Store, Machine), StorageError<u64>> {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), "test", identity()).unwrap();
        let (machine, _) = Machine::load(store.clone()).unwrap();
        Ok((dir, store, machine))
    }
}

#[test]
fn the_store_does_what_raft_expects_of_it() {
    Suite::test_all(Builder).unwrap();
}

async fn start(dir: &Path) -> (Raft, SharedMap) {
    let (store, _) = Store::open(dir, "test", identity()).unwrap();
    let (machine, map) = Machine::load(store.clone()).unwrap();
    let config = openraft::Config {
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(50),
        max_in_snapshot_log_to_keep: 5,
        purge_batch_size: 1,
        ..openraft::Config::default()
    };
    let (jobs, _) = tokio::sync::mpsc::channel(1);
    let raft = Raft::new(VOTER, Arc::new(config), Network::new(jobs), store, machine);
    let raft = raft.await.unwrap();
    if raft.is_initialized().await.unwrap() {
        raft.trigger().elect().await.unwrap();
    } else {
        let voters = BTreeMap::from([(VOTER, Member::default())]);
        raft.initialize(voters).await.unwrap();
    }
    let wait = raft.wait(Some(std::time::Duration::from_secs(20)));
    wait.state(openraft::ServerState::Leader, "leads").await.unwrap();
    raft.ensure_linearizable().await.unwrap();
    (raft, map)
}

async fn write(raft: &Raft, command: Command) {
    let reign = reign_of(&raft.metrics().borrow().vote.leader_id);
    match raft.client_write(Proposal { reign, at: 1, command }).await.unwrap().data {
        Outcome::Done(result) => result.unwrap(),
        other => panic!("{other:?}"),
    };
}

fn register(n: u64) -> Command {
    Command::RegisterNode {
        id: None,
        incarnation: trefoil_core::Incarnation(n + 1),
        address: ([127, 0, 0, 1], 1).into(),
        host: format!("host{n}"),
        class: None,
        size: 1 << 40,
        now: 0,
    }
}

#[test]
fn the_map_comes_back_from_a_snapshot_and_what_is_left_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    // The runtimes are dropped in mid-air: nothing is stopped in order.
    let before = runtime().block_on(async {
        let (raft, map) = start(dir.path()).await;
        let identity = identity();
        let (cluster_id, name) = (identity.cluster_id, identity.cluster_name);
        write(&raft, Command::Init { cluster_id, name }).await;
        for n in 0..120 {
            write(&raft, register(n)).await;
        }
        let wait = raft.wait(Some(std::time::Duration::from_secs(20)));
        let purged =
            |metrics: &openraft::RaftMetrics<u64, Member>| metrics.purged.is_some_and(|id| id.index > 40);
        wait.metrics(purged, "the log is purged").await.unwrap();
        write(&raft, register(120)).await;
        map.borrow().clone()
    });
    assert_eq!(before.nodes.len(), 121);
    for _ in 0..2 {
        let after = runtime().block_on(async {
            let (_raft, map) = start(dir.path()).await;
            map.borrow().clone()
        });
        assert_eq!(after, before);
    }
}

#[test]
fn what_was_decided_in_another_reign_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let before = runtime.block_on(async {
        let (raft, map) = start(dir.path()).await;
        let identity = identity();
        write(&raft, Command::Init { cluster_id: identity.cluster_id, name: identity.cluster_name }).await;
        let reign = reign_of(&raft.metrics().borrow().vote.leader_id);
        // An earlier reign of the same monitor, and one of another in the same term.
        let earlier = ReignId { term: reign.term - 1, ..reign };
        let another = ReignId { monitor: VOTER + 1, ..reign };
        for reign in [earlier, another] {
            let written = raft.client_write(Proposal { reign, at: 1, command: register(1) }).await.unwrap();
            assert!(matches!(written.data, Outcome::Superseded), "{:?}", written.data);
        }
        write(&raft, register(2)).await;
        map.borrow().clone()
    });
    assert_eq!(before.nodes.len(), 1);
    drop(runtime);
    // Nor for a map that is made of the log without Raft.
    let (store, _) = Store::open_existing(dir.path()).unwrap();
    assert_eq!(map_of(&store).unwrap(), *before);
}

#[test]
fn a_snapshot_that_is_finished_late_does_not_replace_a_later_one() {
    let saved = |index: u64| {
        let last_log_id = Some(openraft::LogId::new(openraft::CommittedLeaderId::new(1, VOTER), index));
        let meta = machine::Meta { last_log_id, snapshot_id: index.to_string(), ..Default::default() };
        let mut map = trefoil_core::map::ClusterMap::new();
        map.version = index;
        machine::Saved { meta, map: store::encode(&map).unwrap() }
    };
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, _) = Store::open(dir.path(), "test", identity()).unwrap();
    runtime.block_on(async {
        for (index, kept) in [(7, 7), (5, 7), (9, 9)] {
            store.put_snapshot(&saved(index)).await.unwrap();
            assert_eq!(map_of(&store).unwrap().version, kept);
        }
        // A file in which it did, in an earlier release, is not used: what lies between is nowhere.
        let purged = openraft::LogId::new(openraft::CommittedLeaderId::new(1, VOTER), 12);
        openraft::storage::RaftLogStorage::purge(&mut store.clone(), purged).await.unwrap();
    });
    assert!(matches!(map_of(&store), Err(Failure::Hole { .. })));
    assert!(matches!(Machine::load(store), Err(Failure::Hole { .. })));
}

#[test]
fn entries_are_read_in_bounded_portions_and_never_none() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (raft, _map) = start(dir.path()).await;
        let identity = identity();
        write(&raft, Command::Init { cluster_id: identity.cluster_id, name: identity.cluster_name }).await;
        for n in 0..20 {
            write(&raft, register(n)).await;
        }
        raft.shutdown().await.unwrap();
    });
    drop(runtime);
    let (store, _) = Store::open_existing(dir.path()).unwrap();
    assert_eq!(store.entries(3..13, usize::MAX).unwrap().len(), 10);
    assert_eq!(store.entries(3..13, 0).unwrap().len(), 1, "one, whatever its size");
    let some = store.entries(3..13, 100).unwrap();
    assert!((2..10).contains(&some.len()), "{}", some.len());
    assert_eq!(some[0].log_id.index, 3);
}

#[test]
fn parts_of_a_snapshot_beyond_its_limit_are_refused() {
    let part = |offset: u64, bytes: usize| openraft::raft::InstallSnapshotRequest::<Types> {
        vote: openraft::Vote::new(1, 1),
        meta: openraft::SnapshotMeta::default(),
        offset,
        data: vec![0; bytes],
        done: false,
    };
    let most = SNAPSHOT_BYTES_MAX as u64;
    assert!(is_possible(&part(0, 10)) && is_possible(&part(most - 10, 10)));
    assert!(!is_possible(&part(most - 9, 10)) && !is_possible(&part(u64::MAX, 1)));
}

#[tokio::test]
async fn whoever_led_does_not_go_on_leading_in_another_life() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path(), "test", identity()).unwrap();
    store.save_vote(&Vote::new_committed(7, VOTER)).await.unwrap();
    assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new(7, VOTER)), "the term stays taken");
    let of_another = Vote::new_committed(8, VOTER + 1);
    store.save_vote(&of_another).await.unwrap();
    assert_eq!(store.read_vote().await.unwrap(), Some(of_another));
}
