//! What a monitor knows beside the map while it leads: one *reign*, from when it was elected to when it
//! was not the leader any more.
//!
//! Leases, above all: who renewed when is known to the leader alone, and only for as long as it leads without a
//! gap. The rules are [`trefoil_core::map::reign`]'s; here is what feeds them. A monitor that comes to lead begins
//! a new reign, in which every held lease counts as renewed at that moment. Nothing of an earlier reign is looked at again: its monitor
//! may have led twice, with a reign of somebody else's in between that renewed leases.
//!
//! Two things hold a decision to its reign. Before a lease is judged, a majority confirms that this reign, by
//! its number, still lasts ([`crate::service::Service::confirm`]). And what is decided is written with that
//! number, and applied only if it was written in the same reign ([`trefoil_core::map::reign::Proposal`]).

use crate::layout::Layouts;
use crate::lost::Losses;
use crate::mover::Desk;
use crate::raft::reign_of;
use crate::rates::Rates;
use crate::reports::Reports;
use crate::rpc::Heartbeat;
use crate::scrub::Scrubs;
use crate::service::Service;
use openraft::ServerState;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use trefoil_core::map::lease::LeaseConfig;
use trefoil_core::map::liveness::Liveness;
use trefoil_core::map::reign::{self, Confirmed, ReignId};
use trefoil_core::map::{ClusterMap, Command};
use trefoil_core::{NodeId, Time, VolumeId};

/// The pause before a new leader asks again whether it leads.
const AGAIN: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Reign {
    /// No other reign, of whichever monitor, has the same.
    pub leader: ReignId,
    /// When it began, by the service's clock.
    pub started: Time,
    /// A borrow is never held across an await.
    pub soft: RefCell<Soft>,
    /// A healer's request is being decided.
    pub healing: Cell<bool>,
    /// Rung when nodes are to be asked something.
    pub work: Notify,
    /// Rung when a node has answered.
    pub answered: Notify,
    /// Rung when the mover should not wait for its next step.
    pub hurry: Notify,
}

/// What is known beside the map.
pub(crate) struct Soft {
    pub leases: reign::Reign,
    pub liveness: Liveness,
    /// The last of each node of the map.
    pub heartbeats: BTreeMap<NodeId, Heartbeat>,
    /// What leaders of groups say of nodes.
    pub reports: Reports,
    /// Nodes that leaders say have lost writes, and that have not taken note.
    pub losses: Losses,
    /// How nodes' scrubs are.
    pub scrubs: Scrubs,
    /// When a volume was last given to a healer: those come first that have waited longest.
    pub healed: BTreeMap<VolumeId, Time>,
    /// What is on the move.
    pub desk: Desk,
    /// What nodes know of the layout of a map that was restored.
    pub layouts: Layouts,
    /// What nodes do.
    pub rates: Rates,
    /// When mutes were last looked at.
    pub mutes_seen: Time,
}

impl Soft {
    /// A majority answers this monitor: see [`reign::Reign::heard`].
    pub fn majority_answers(&mut self, now: Time) {
        let pause = self.leases.heard(now);
        if pause > 0 {
            // Nor were heartbeats taken.
            self.liveness.stood_still(pause, now);
        }
    }

    /// A node is one of the cluster no more.
    pub fn forget_node(&mut self, node: NodeId) {
        self.heartbeats.remove(&node);
        self.leases.forget_node(node);
        self.liveness.forget(node);
        self.rates.forget(node);
        self.losses.forget_node(node);
    }
}

impl Reign {
    /// At a moment when this monitor leads, with a map that has everything which its predecessors committed.
    pub fn new(
        confirmed: Confirmed,
        map: &ClusterMap,
        lease: LeaseConfig,
        node_timeout: u64,
        renew: u64,
        now: Time,
    ) -> Reign {
        let leases = reign::Reign::begin(confirmed, lease, map, now);
        Reign {
            leader: leases.id(),
            started: leases.started(),
            soft: RefCell::new(Soft {
                leases,
                liveness: Liveness::new(node_timeout, now),
                heartbeats: BTreeMap::new(),
                reports: Reports::new(renew),
                losses: Losses::default(),
                scrubs: Scrubs::default(),
                healed: BTreeMap::new(),
                desk: Desk::default(),
                layouts: Layouts::default(),
                rates: Rates::default(),
                mutes_seen: now,
            }),
            healing: Cell::new(false),
            work: Notify::new(),
            answered: Notify::new(),
            hurry: Notify::new(),
        }
    }
}

/// Begins and ends reigns as Raft says, for ever; ends with an error that the daemon cannot live with.
pub(crate) async fn watch(service: Rc<Service>) -> anyhow::Error {
    let mut metrics = service.raft.metrics();
    loop {
        let (leads, vote) = {
            let seen = metrics.borrow_and_update();
            (seen.state == ServerState::Leader && !service.yielding.get(), reign_of(&seen.vote.leader_id))
        };
        let current = service.reign.borrow().as_ref().map(|reign| reign.leader);
        if !leads {
            if current.is_some() {
                tracing::warn!(term = vote.term, "this monitor does not lead any more");
                *service.reign.borrow_mut() = None;
            }
        } else if current != Some(vote) {
            *service.reign.borrow_mut() = None;
            match begin(&service).await {
                Ok(true) => {}
                Ok(false) => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                Err(error) => return error,
            }
        }
        if metrics.changed().await.is_err() {
            return anyhow::anyhow!("the monitor's Raft has ended; see the log above and start it again");
        }
    }
}

/// True if a reign has begun.
async fn begin(service: &Rc<Service>) -> anyhow::Result<bool> {
    // Everything that was committed before is in the map when this is answered.
    let asked = tokio::time::timeout(Duration::from_secs(2), service.raft.ensure_linearizable()).await;
    let Ok(Ok(Some(at))) = asked else { return Ok(false) };
    let map = service.map();
    let confirmed = Confirmed::by_majority(reign_of(&at.leader_id));
    let reign =
        Reign::new(confirmed, &map, service.lease, service.node_timeout, service.renew, service.now());
    let reign = Rc::new(reign);
    if map.version == 0 {
        let identity = &service.identity;
        let init = Command::Init { cluster_id: identity.cluster_id, name: identity.cluster_name.clone() };
        if let Err(error) = service.propose(&reign, init).await {
            tracing::warn!(%error, "the new cluster's first entry was not written; trying again");
            return Ok(false);
        }
    }
    let (map, ours) = (service.map(), service.identity.cluster_id);
    anyhow::ensure!(
        map.cluster_id == ours,
        "the map is of another cluster than the directory says: was a file copied here?"
    );
    tracing::info!(term = at.leader_id.term, version = map.version, "this monitor leads");
    *service.reign.borrow_mut() = Some(reign);
    Ok(true)
}
