//! What administrators ask, and daemons that tell of a death: muting, draining, removing, setting.

use super::{CallError, MonitorClient, done};
use crate::rpc::{Daemon, Request};
use std::time::Duration;
use trefoil_core::map::admin::PoolChange;
use trefoil_core::{NodeId, PoolId};

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

    /// Gives a pool that has `seen` placement groups more of them.
    ///
    /// Errors: it has another number by now, or some of them are on the move; or the answer was lost
    /// ([`CallError::Unsure`]), and the map has to be looked at.
    pub async fn set_pg_num(&self, pool: PoolId, seen: u32, pg_num: u32) -> Result<(), CallError> {
        done(self.ask(Request::SetPgNum { pool, seen, pg_num }).await?)
    }
}
