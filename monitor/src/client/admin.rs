//! What administrators ask, and daemons that tell of a death: muting, draining, making, removing, setting.

use super::{CallError, MonitorClient, done, unexpected};
use crate::rpc::*;
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_core::map::admin::PoolChange;
use trefoil_core::map::{Ack, FailureDomain, Out};
use trefoil_core::{NodeId, PoolId, VolumeId};

/// How long a change of the monitors may take.
const MONITORS_CALL_TIMEOUT: Duration = Duration::from_secs(90);

impl MonitorClient {
    /// Says that a daemon's life ended without a stop.
    pub async fn died(&self, daemon: Daemon, life: u64) -> Result<(), CallError> {
        done(self.ask(Request::Died { daemon, life }).await?)
    }

    /// Takes note that daemons have died: of these, or of all where none is named.
    pub async fn acknowledge_deaths(&self, daemons: Vec<String>) -> Result<(), CallError> {
        done(self.ask(Request::AcknowledgeDeaths { daemons }).await?)
    }

    /// Mutes a health check that applies.
    ///
    /// Errors: it does not apply, there is none of that code, or the time is too long.
    pub async fn mute(&self, code: String, time: Duration, because: String) -> Result<(), CallError> {
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        done(self.ask(Request::Mute { code, time_ms, because }).await?)
    }

    /// Ends a mute.
    pub async fn unmute(&self, code: String) -> Result<(), CallError> {
        done(self.ask(Request::Unmute { code }).await?)
    }

    /// Drains a node, or undoes it. `seen`: the version of the CRUSH map that was looked at.
    ///
    /// Errors: somebody has changed the CRUSH map since.
    pub async fn drain_node(&self, node: NodeId, drain: bool, seen: u64) -> Result<(), CallError> {
        done(self.ask(Request::DrainNode { node, drain, seen }).await?)
    }

    /// Removes a node that holds nothing.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), CallError> {
        done(self.ask(Request::RemoveNode { node }).await?)
    }

    /// Changes a setting of a pool.
    pub async fn set_pool(&self, pool: String, change: PoolChange) -> Result<(), CallError> {
        done(self.ask(Request::SetPool { pool, change }).await?)
    }

    /// Takes nodes out, or in (`None`).
    pub async fn set_nodes_out(&self, nodes: Vec<(NodeId, Option<Out>)>) -> Result<(), CallError> {
        done(self.ask(Request::SetNodesOut { nodes }).await?)
    }

    /// The monitors, as the one knows them that is talked to.
    pub async fn monitors(&self) -> Result<MonitorsStatus, CallError> {
        match self.ask(Request::Monitors).await? {
            Response::Monitors(monitors) => Ok(*monitors),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a monitor that waits to join one of the cluster, in the place of `replaces` if that is given.
    pub async fn add_monitor(
        &self,
        id: u64,
        address: SocketAddr,
        replaces: Option<u64>,
    ) -> Result<(), CallError> {
        let request = Request::AddMonitor { id, address, replaces };
        done(self.call(&request, MONITORS_CALL_TIMEOUT).await?.0)
    }

    /// Takes a monitor out of the cluster.
    pub async fn remove_monitor(&self, id: u64, force: bool) -> Result<(), CallError> {
        let request = Request::RemoveMonitor { id, force };
        done(self.call(&request, MONITORS_CALL_TIMEOUT).await?.0)
    }

    /// Makes a pool; its id.
    pub async fn create_pool(
        &self,
        name: String,
        size: u8,
        pg_num: u32,
        domain: FailureDomain,
        ack: Ack,
    ) -> Result<PoolId, CallError> {
        let request = Request::CreatePool { name, size, pg_num, domain, ack };
        match self.ask(request).await? {
            Response::Pool(id) => Ok(id),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a volume; its id.
    pub async fn create_volume(
        &self,
        name: String,
        pool: String,
        size: u64,
        object_size: u64,
        io_timeout: Option<u64>,
    ) -> Result<VolumeId, CallError> {
        let request = Request::CreateVolume { name, pool, size, object_size, io_timeout };
        match self.ask(request).await? {
            Response::Volume(id) => Ok(id),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a volume and its data.
    pub async fn remove_volume(&self, volume: VolumeKey) -> Result<(), CallError> {
        done(self.ask(Request::RemoveVolume { volume }).await?)
    }

    /// Replaces the CRUSH map. Moves nothing by itself.
    pub async fn set_crush(&self, crush: trefoil_core::crush::CrushMap) -> Result<(), CallError> {
        let crush = Box::new(crush);
        done(self.ask(Request::SetCrush { crush }).await?)
    }

    /// Replaces the CRUSH map that had version `seen` (`ClusterMap::crush_version`). Moves nothing by itself.
    ///
    /// Errors: it was changed since; it has no rule that a pool uses; or the answer was lost
    /// ([`CallError::Unsure`]), and the map has to be looked at.
    pub async fn replace_crush(
        &self,
        seen: u64,
        crush: trefoil_core::crush::CrushMap,
    ) -> Result<(), CallError> {
        let crush = Box::new(crush);
        done(self.ask(Request::ReplaceCrush { seen, crush }).await?)
    }

    /// Gives a pool that has `seen` placement groups more of them.
    ///
    /// Errors: it has another number by now, or some of them are on the move; or the answer was lost
    /// ([`CallError::Unsure`]), and the map has to be looked at.
    pub async fn set_pg_num(&self, pool: PoolId, seen: u32, pg_num: u32) -> Result<(), CallError> {
        done(self.ask(Request::SetPgNum { pool, seen, pg_num }).await?)
    }
}
