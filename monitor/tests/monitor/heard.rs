//! A front end that does not reach the monitors, and that nodes hear: no healer gets its volume (section 8).

use crate::common::*;
use std::path::Path;
use std::time::Duration;
use trefoil_core::limits::CALLERS_MAX;
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{Holder, HolderKind};
use trefoil_core::*;
use trefoil_monitor::rpc::*;
use trefoil_monitor::*;
use trefoil_transport::Role;

fn config(dir: &Path) -> MonitorConfig {
    crate::common::config(dir, 5000)
}

async fn attach(client: &MonitorClient, who: &Holder) -> Granted {
    let volume = VolumeKey::Name("disk0".to_owned());
    match client.attach(volume, who.clone(), Generation(0)).await.unwrap().0 {
        Attached::Granted(granted) => granted,
        other => panic!("{other:?}"),
    }
}

/// What the health check says of the volume.
async fn needs_heal(admin: &MonitorClient) -> Option<String> {
    let status = admin.status().await.unwrap();
    let check = status.checks.into_iter().find(|check| check.code == "VOLUME_NEEDS_HEAL")?;
    Some(check.details[0].clone())
}

/// Every node says whom it hears.
async fn beats(node: &MonitorClient, callers: [&[(VolumeId, Generation)]; 3]) {
    for (n, callers) in (0..).zip(callers) {
        let (id, incarnation) = (NodeId(n), Incarnation(100 + u64::from(n)));
        let callers = callers.to_vec();
        let beat = Heartbeat { node: id, incarnation, callers, ..Heartbeat::default() };
        node.heartbeat(beat).await.unwrap();
    }
}

#[test]
fn a_front_end_that_nodes_hear_keeps_its_volume_and_a_client_gets_it_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let disk = cluster(&running).await;
        let (front, node) = (running.client(Role::FrontEnd), running.client(Role::StorageNode));
        let admin = running.client(Role::Client);
        let a = holder("a", 1);
        let granted = attach(&front, &a).await;
        let led = [(disk, granted.generation)];
        let healer = Holder { kind: HolderKind::Healer, ..holder("node.0", 7) };
        let work = async || node.heal_work(healer.clone(), 100).await.unwrap().0;
        // Nobody has said anything.
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(50)).await;
        assert_eq!(work().await, vec![]);
        let told = needs_heal(&admin).await.unwrap();
        assert!(told.starts_with("disk0: too few nodes"), "{told}");
        // One node hears it: for as long as it says so.
        for _ in 0..10 {
            beats(&node, [&[], &led, &[]]).await;
            assert_eq!(work().await, vec![]);
            let told = needs_heal(&admin).await.unwrap();
            assert!(told.starts_with("disk0: node.1 hears its front end"), "{told}");
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        // It reaches the monitors again.
        assert_eq!(renew(&front, &a, &granted).await, Renewal::Renewed { release_please: false });
        assert_eq!(needs_heal(&admin).await, None);
        // A client that asks gets it when the lease has run out, whoever is heard.
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(50)).await;
        beats(&node, [&led, &led, &led]).await;
        let second = attach(&front, &holder("b", 2)).await;
        assert_eq!(second.generation, Generation(2));
        // The first one is still heard. That keeps nobody from healing what the second one leaves behind.
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(50)).await;
        beats(&node, [&led, &led, &led]).await;
        assert_eq!(work().await.len(), 1);
        assert_eq!(renew(&front, &holder("b", 2), &second).await, Renewal::Lost);
        running.stop().await;
    });
}

#[test]
fn a_monitor_that_has_just_begun_to_lead_gives_healers_nothing_before_nodes_have_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let disk = on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let disk = cluster(&running).await;
        attach(&running.client(Role::FrontEnd), &holder("a", 1)).await;
        beats(&running.client(Role::StorageNode), [&[], &[], &[]]).await;
        running.stop().await;
        disk
    });
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        let node = running.client(Role::StorageNode);
        let healer = Holder { kind: HolderKind::Healer, ..holder("node.0", 7) };
        let work = async || node.heal_work(healer.clone(), 100).await.unwrap().0;
        // Answered when it leads: from then on the lease counts.
        assert_eq!(work().await, vec![]);
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(300)).await;
        let told = needs_heal(&running.client(Role::Client)).await.unwrap();
        assert!(told.starts_with("disk0: too few nodes"), "{told}");
        assert_eq!(work().await, vec![]);
        beats(&node, [&[], &[], &[]]).await;
        assert_eq!(work().await.iter().map(|it| it.volume).collect::<Vec<_>>(), [disk]);
        running.stop().await;
    });
}

#[test]
fn a_heartbeat_names_so_many_leaders_and_says_that_there_are_more() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let running = Running::start(config(dir.path())).await;
        cluster(&running).await;
        let (front, node) = (running.client(Role::FrontEnd), running.client(Role::StorageNode));
        attach(&front, &holder("a", 1)).await;
        let beat = |node, callers: usize, callers_more| Heartbeat {
            node: NodeId(node),
            incarnation: Incarnation(100 + u64::from(node)),
            callers: (0..callers as u64).map(|n| (VolumeId(1000 + n), Generation(u64::MAX))).collect(),
            callers_more,
            ..Heartbeat::default()
        };
        let error = node.heartbeat(beat(0, CALLERS_MAX + 1, false)).await.unwrap_err().to_string();
        assert!(error.contains("leaders in a heartbeat"), "{error}");
        tokio::time::sleep(LEASE + MARGIN + Duration::from_millis(50)).await;
        let healer = Holder { kind: HolderKind::Healer, ..holder("node.0", 7) };
        for (more, given) in [(true, 0), (false, 1)] {
            for n in 0..3 {
                node.heartbeat(beat(n, CALLERS_MAX, more && n == 2)).await.unwrap();
            }
            assert_eq!(node.heal_work(healer.clone(), 100).await.unwrap().0.len(), given);
        }
        running.stop().await;
    });
}
