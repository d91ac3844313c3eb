//! A node that has lost writes without knowing it (5.9): what a leader tells reaches the node, and the leader hears
//! when it has taken note. A monitor on loopback; node and leader are their clients.

use crate::common::*;
use std::path::Path;
use trefoil_core::*;
use trefoil_monitor::rpc::*;
use trefoil_monitor::*;
use trefoil_transport::Role;

fn config(dir: &Path) -> MonitorConfig {
    MonitorConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: dir.to_owned(),
        bootstrap: Some(Bootstrap::default()),
        ..MonitorConfig::default()
    }
}

const NODE: NodeId = NodeId(1);
const STORE: Incarnation = Incarnation(101);

/// Three nodes and two volumes.
async fn cluster(running: &Running) -> [VolumeId; 2] {
    let nodes = running.client(Role::StorageNode);
    for n in 0..3 {
        register(&nodes, n).await;
    }
    let admin = running.client(Role::Client);
    pool(&admin).await;
    let create = async |name: &str| {
        let created = admin.create_volume(name.to_owned(), "default".to_owned(), 1 << 30, 4 << 20, None);
        created.await.unwrap()
    };
    [create("disk0").await, create("disk1").await]
}

async fn attach(client: &MonitorClient, volume: VolumeId, boot: u64) -> LostOrder {
    let asked = client.attach(VolumeKey::Id(volume), holder("a", boot), Generation(0)).await;
    let Attached::Granted(granted) = asked.unwrap().0 else { panic!("somebody has it") };
    (volume, granted.generation)
}

async fn beat(node: &MonitorClient, lost_noted: Option<LostOrder>) -> Option<LostOrder> {
    let beat = Heartbeat { node: NODE, incarnation: STORE, lost_noted, ..Heartbeat::default() };
    node.heartbeat(beat).await.unwrap().lost_order
}

#[test]
fn a_node_is_told_until_it_has_taken_note_and_then_its_leaders_hear_it() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let [first, second] = cluster(&running).await;
        let (node, front_end) = (running.client(Role::StorageNode), running.client(Role::FrontEnd));
        let (first, second) = (attach(&front_end, first, 1).await, attach(&front_end, second, 1).await);
        let tell = async |loss| front_end.lost_data(holder("a", 1), loss, NODE, STORE).await.unwrap();
        assert_eq!(beat(&node, None).await, None);
        assert!(!tell(first).await);
        assert!(!tell(first).await, "told again, nothing has happened");
        assert_eq!(beat(&node, None).await, Some(first));
        assert!(!tell(second).await);
        // The answer to it may not have arrived; nor is another order's name the right one.
        assert_eq!(beat(&node, None).await, Some(first));
        assert_eq!(beat(&node, Some((first.0, Generation(99)))).await, Some(first));
        assert!(!tell(first).await);
        // Others are told nothing.
        let other = Heartbeat { node: NodeId(0), incarnation: Incarnation(100), ..Heartbeat::default() };
        assert_eq!(node.heartbeat(other).await.unwrap().lost_order, None);
        assert_eq!(beat(&node, Some(first)).await, Some(second), "it was told after the first had gone out");
        assert!(tell(first).await);
        assert!(!tell(second).await);
        assert_eq!(beat(&node, Some(second)).await, None);
        assert!(tell(second).await);
        assert_eq!(beat(&node, Some(second)).await, None);
        // Its next life has noted nothing, and there is nothing to note.
        assert_eq!(beat(&node, None).await, None);
        running.stop().await;
    });
}

#[test]
fn who_does_not_hold_the_volume_now_and_who_means_another_node_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let [volume, other] = cluster(&running).await;
        let (node, front_end) = (running.client(Role::StorageNode), running.client(Role::FrontEnd));
        let old = attach(&front_end, volume, 1).await;
        let now = attach(&front_end, volume, 1).await;
        assert!(now.1 > old.1);
        let refused = async |who, loss, node, incarnation| {
            let told = front_end.lost_data(who, loss, node, incarnation).await;
            told.expect_err("refused").to_string()
        };
        let me = || holder("a", 1);
        let text = refused(me(), old, NODE, STORE).await;
        assert!(text.contains("does not hold volume"), "an older generation: {text}");
        let text = refused(me(), (volume, Generation(now.1.0 + 1)), NODE, STORE).await;
        assert!(text.contains("does not hold volume"), "a generation that nobody was granted: {text}");
        let text = refused(holder("b", 1), now, NODE, STORE).await;
        assert!(text.contains("b does not hold volume"), "another process: {text}");
        let text = refused(holder("a", 2), now, NODE, STORE).await;
        assert!(text.contains("does not hold volume"), "another life of the process: {text}");
        let text = refused(me(), (other, Generation(0)), NODE, STORE).await;
        assert!(text.contains("does not hold volume"), "a volume that nobody holds: {text}");
        let text = refused(me(), (VolumeId(77), now.1), NODE, STORE).await;
        assert!(text.contains("no volume"), "{text}");
        let text = refused(me(), now, NODE, Incarnation(7)).await;
        assert!(text.contains("is known with incarnation"), "{text}");
        let text = refused(me(), now, NodeId(9), STORE).await;
        assert!(text.contains("no node"), "{text}");
        let admin = running.client(Role::Client);
        let text = admin.lost_data(me(), now, NODE, STORE).await.expect_err("refused").to_string();
        assert!(text.contains("may not ask"), "{text}");
        assert_eq!(beat(&node, None).await, None, "nothing of it was taken");

        // Released, it is nobody's.
        front_end.release(vec![(now.0, now.1, true)]).await.unwrap();
        let text = refused(me(), now, NODE, STORE).await;
        assert!(text.contains("does not hold volume"), "{text}");
        assert_eq!(beat(&node, None).await, None);
        running.stop().await;
    });
}

#[test]
fn a_leader_that_has_released_its_volume_meanwhile_hears_that_the_node_has_taken_note() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let [volume, _] = cluster(&running).await;
        let (node, front_end) = (running.client(Role::StorageNode), running.client(Role::FrontEnd));
        let loss = attach(&front_end, volume, 1).await;
        let tell = async || front_end.lost_data(holder("a", 1), loss, NODE, STORE).await;
        assert!(!tell().await.unwrap());
        assert_eq!(beat(&node, None).await, Some(loss));
        front_end.release(vec![(loss.0, loss.1, true)]).await.unwrap();
        assert!(tell().await.is_err(), "not noted, and not his to tell any more");
        assert_eq!(beat(&node, None).await, Some(loss), "the node is told all the same");
        assert_eq!(beat(&node, Some(loss)).await, None);
        assert!(tell().await.unwrap());
        assert!(tell().await.unwrap(), "the first answer got lost");
        assert_eq!(beat(&node, None).await, None, "nothing new was told");
        // Whoever holds it next tells for himself.
        let next = attach(&front_end, volume, 1).await;
        assert!(!front_end.lost_data(holder("a", 1), next, NODE, STORE).await.unwrap());
        assert!(tell().await.is_err(), "an older leader's, which is over");
        assert_eq!(beat(&node, None).await, Some(next));
        running.stop().await;
    });
}

#[test]
fn what_a_monitor_forgets_when_it_leads_anew_is_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let loss = on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let [volume, _] = cluster(&running).await;
        let (node, front_end) = (running.client(Role::StorageNode), running.client(Role::FrontEnd));
        let loss = attach(&front_end, volume, 1).await;
        assert!(!front_end.lost_data(holder("a", 1), loss, NODE, STORE).await.unwrap());
        assert_eq!(beat(&node, None).await, Some(loss));
        running.stop().await;
        loss
    });
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let (node, front_end) = (running.client(Role::StorageNode), running.client(Role::FrontEnd));
        assert_eq!(beat(&node, None).await, None, "another reign knows of nothing");
        let tell = async || front_end.lost_data(holder("a", 1), loss, NODE, STORE).await.unwrap();
        assert!(!tell().await);
        // It had taken note before: it says so, and need not do it again.
        assert_eq!(beat(&node, Some(loss)).await, Some(loss));
        assert!(!tell().await);
        assert_eq!(beat(&node, Some(loss)).await, None);
        assert!(tell().await);
        running.stop().await;
    });
}
