//! [`Cluster`] on the monitors' client: the door from sessions to the monitors.

use crate::disk::LocalFuture;
use crate::session::cluster::*;
use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use trefoil_core::leader::report::NodeReport;
use trefoil_core::map::{ClusterMap, Holder, HolderKind, MapError};
use trefoil_core::{Generation, Incarnation, NodeId, VolumeId};
use trefoil_monitor::rpc::{Granted as RpcGranted, RpcError, VOLUMES_PER_REQUEST_MAX, VolumeKey};
use trefoil_monitor::{Attached, CallError, MonitorClient};

/// The longest wait for a new map in one question.
const MAP_WAIT: Duration = Duration::from_secs(20);
/// The pause after a question that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// A renewal that has not been answered by then is asked anew.
const RENEW_TIMEOUT: Duration = Duration::from_millis(1500);

/// See the module.
pub struct Monitors {
    client: MonitorClient,
    me: Holder,
    map: Rc<RefCell<Arc<ClusterMap>>>,
    changed: Rc<Notify>,
    refresh: Notify,
}

impl Monitors {
    /// Knows a map already.
    pub fn new(client: MonitorClient, me: Holder, map: Arc<ClusterMap>) -> Rc<Monitors> {
        let (changed, refresh) = (Rc::new(Notify::new()), Notify::new());
        let map = Rc::new(RefCell::new(map));
        Rc::new(Monitors { client, me, map, changed, refresh })
    }

    /// Follows the map, for ever.
    pub async fn follow(self: Rc<Self>) {
        loop {
            let have = self.map.borrow().layout;
            let mut wait = pin!(self.client.wait_map(have, MAP_WAIT));
            let asked = loop {
                tokio::select! {
                    asked = &mut wait => break asked,
                    () = self.refresh.notified() => match self.client.get_map(have).await {
                        // The wait goes on. Given up, it would still hold one of the places that this
                        // connection has at the monitor, and the leases could not be renewed for lack of one.
                        Ok(None) => {}
                        asked => break asked,
                    },
                }
            };
            match asked {
                Ok(Some(map)) => {
                    *self.map.borrow_mut() = map;
                    self.changed.notify_waiters();
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "no news of the map");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn unreachable(error: CallError) -> Unreachable {
    Unreachable(error.to_string())
}

fn granted(granted: &RpcGranted, sent: std::time::Instant) -> Granted {
    let lease = Duration::from_micros(granted.lease);
    Granted { generation: granted.generation, sent, lease }
}

impl Cluster for Monitors {
    fn map(&self) -> Arc<ClusterMap> {
        self.map.borrow().clone()
    }

    fn map_changed(&self, seen: u64) -> LocalFuture<()> {
        let changed = self.changed.clone();
        let known = self.map.borrow().layout != seen;
        Box::pin(async move {
            // On one thread no map can come between the look and the wait: the future is polled at once.
            if !known {
                changed.notified().await;
            }
        })
    }

    fn refresh(&self) {
        self.refresh.notify_one();
    }

    fn holder(&self, volume: VolumeId) -> LocalFuture<Result<Option<Holder>, Unreachable>> {
        let client = self.client.clone();
        Box::pin(async move {
            // Grants do not change the layout, so the map that is kept here does not show them.
            let found = client.volume(VolumeKey::Id(volume)).await.map_err(unreachable)?;
            Ok(found.and_then(|it| it.holder))
        })
    }

    fn attach(
        &self,
        volume: VolumeId,
        kind: HolderKind,
        above: Generation,
    ) -> LocalFuture<Result<Granted, AttachError>> {
        let client = self.client.clone();
        let holder = Holder { kind, ..self.me.clone() };
        let (kept, changed) = (self.map.clone(), self.changed.clone());
        Box::pin(async move {
            match client.attach(VolumeKey::Id(volume), holder, above).await {
                Ok((Attached::Granted(it), sent)) => {
                    // Who leads must not fence and open by a map from before its grant: where a placement
                    // group moves, the fences of List are those of the generations granted until then
                    // (`docs/protocol.md`, section 12, 13).
                    let have = kept.borrow().layout;
                    let newer = client.get_map(have).await.map_err(unreachable)?;
                    // Unless a later one has come meanwhile.
                    if let Some(map) = newer.filter(|map| map.layout > kept.borrow().layout) {
                        *kept.borrow_mut() = map;
                        changed.notify_waiters();
                    }
                    Ok(granted(&it, sent))
                }
                Ok((Attached::Busy { holder, retry_after }, _)) => {
                    Err(AttachError::Busy { holder, retry_after })
                }
                Err(CallError::Answered(RpcError::Refused(MapError::Missing { .. }))) => {
                    Err(AttachError::Missing)
                }
                Err(CallError::Answered(error @ (RpcError::Refused(_) | RpcError::NotAllowed(_)))) => {
                    Err(AttachError::Refused(error.to_string()))
                }
                Err(error) => Err(unreachable(error).into()),
            }
        })
    }

    fn renew(
        &self,
        volumes: Vec<(VolumeId, Generation)>,
        nodes: Vec<NodeReport>,
    ) -> LocalFuture<Result<Renewals, Unreachable>> {
        let (client, me) = (self.client.clone(), self.me.clone());
        Box::pin(async move {
            let mut all: Option<Renewals> = None;
            for part in volumes.chunks(VOLUMES_PER_REQUEST_MAX) {
                let renewed = client.renew(me.clone(), part.to_vec(), nodes.clone(), RENEW_TIMEOUT).await;
                let renewed = renewed.map_err(unreachable)?;
                let sent = renewed.sent;
                let all = all.get_or_insert(Renewals { sent, volumes: Vec::new(), differing: Vec::new() });
                // The earliest counts for all.
                all.sent = all.sent.min(sent);
                all.volumes.extend(renewed.volumes);
                all.differing.extend(renewed.differing);
            }
            all.ok_or_else(|| Unreachable("nothing was asked".to_owned()))
        })
    }

    fn release(&self, volumes: Vec<(VolumeId, Generation, bool)>) -> LocalFuture<Result<(), Unreachable>> {
        let client = self.client.clone();
        Box::pin(async move {
            for part in volumes.chunks(VOLUMES_PER_REQUEST_MAX) {
                match client.release(part.to_vec()).await {
                    // Somebody else has it by now: there is nothing left to release.
                    Ok(()) | Err(CallError::Answered(RpcError::Refused(_))) => {}
                    Err(error) => return Err(unreachable(error)),
                }
            }
            Ok(())
        })
    }

    fn lost_data(
        &self,
        volume: VolumeId,
        generation: Generation,
        node: NodeId,
        incarnation: Incarnation,
    ) -> LocalFuture<Result<bool, LostDataError>> {
        let (client, me) = (self.client.clone(), self.me.clone());
        Box::pin(async move {
            client.lost_data(me, (volume, generation), node, incarnation).await.map_err(|error| match error {
                CallError::Answered(error @ (RpcError::Refused(_) | RpcError::NotAllowed(_))) => {
                    LostDataError::Refused(error.to_string())
                }
                error => unreachable(error).into(),
            })
        })
    }

    fn heal(&self, max: usize) -> LocalFuture<Result<Vec<(VolumeId, Granted)>, Unreachable>> {
        let client = self.client.clone();
        let holder = Holder { kind: HolderKind::Healer, ..self.me.clone() };
        Box::pin(async move {
            let (work, sent) = client.heal_work(holder, max as u32).await.map_err(unreachable)?;
            Ok(work.iter().map(|it| (it.volume, granted(it, sent))).collect())
        })
    }

    fn me(&self) -> Holder {
        self.me.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_monitor::{Monitor, MonitorConfig};
    use trefoil_transport::{Hello, Role};

    #[test]
    fn questions_for_the_map_do_not_use_up_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(async {
            let listen = "127.0.0.1:0".parse().unwrap();
            let data_dir = dir.path().to_owned();
            let config = MonitorConfig { listen, data_dir, ..MonitorConfig::default() };
            let monitor = Monitor::start(config).await.unwrap();
            let client = MonitorClient::new(vec![monitor.address()], Hello::new(Role::FrontEnd, [0; 16]));
            tokio::task::spawn_local(monitor.run(std::future::pending()));
            let map = client.get_map(0).await.unwrap().unwrap();
            let me = Holder { name: "test".into(), boot: 1, kind: HolderKind::FrontEnd };
            let monitors = Monitors::new(client, me, map);
            tokio::task::spawn_local(monitors.clone().follow());
            // As clients do that ask for a volume which is not there.
            for _ in 0..2 * trefoil_monitor::rpc::REQUESTS_MAX {
                monitors.refresh();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let renewed = monitors.renew(vec![(VolumeId(1), Generation(1))], Vec::new()).await;
            assert!(renewed.is_ok(), "{renewed:?}");
        }));
    }
}
