//! What people are told, and what they have said about it: mutes of health checks, and daemons that died.
//!
//! Both are in the map (`trefoil_core::map::mutes`, `deaths`). Here is what only the monitor that leads can know: what
//! a check counts at the moment of muting, and when a mute has ended.

use crate::client::MonitorClient;
use crate::health::CHECKS;
use crate::reign::Reign;
use crate::rpc::{Daemon, RpcError};
use crate::service::{Result, Service, wall_clock};
use std::rc::Rc;
use std::time::Duration;
use trefoil_core::map::mutes::{MUTE_MS_MAX, Mute, MuteEnd};
use trefoil_core::map::{Command, MapError, Reply};
use trefoil_transport::{Hello, Role};

/// Mutes are looked at this often (µs).
const MUTES_EVERY: u64 = 1_000_000;
/// The pause before a death is told again that nobody has taken note of.
const TELL_AGAIN: Duration = Duration::from_secs(2);

impl Service {
    /// Mutes a check that applies, for so many milliseconds.
    pub async fn mute(&self, code: String, time: u64, because: String) -> Result<Reply> {
        let invalid = |text: String| RpcError::Refused(MapError::Invalid(text));
        if !CHECKS.iter().any(|check| check.code == code) {
            let code: String = code.chars().take(40).collect();
            return Err(invalid(format!(
                "there is no health check {code:?}; `trefoil health --codes` lists all"
            )));
        }
        if time > MUTE_MS_MAX {
            let days = MUTE_MS_MAX / 86_400_000;
            return Err(invalid(format!("a check is muted for at most {days} days: no mute is for ever")));
        }
        let reign = self.confirmed_reign().await?;
        let status = self.status_now(&reign);
        let Some(check) = status.checks.iter().find(|check| check.code == code) else {
            return Err(invalid(format!("{code} does not apply now: there is nothing to mute")));
        };
        let now = wall_clock();
        let mute = Mute { until: now.saturating_add(time), count: check.count, because };
        self.propose(&reign, Command::Mute { code, mute, now }).await
    }

    /// Ends a mute.
    pub async fn unmute(&self, code: String) -> Result<Reply> {
        let codes = vec![(code, MuteEnd::Unmuted)];
        self.propose(&*self.reign()?, Command::Unmute { codes }).await
    }

    /// Ends the mutes that have come to their end. Part of the upkeep.
    pub(crate) async fn end_mutes(&self, reign: &Reign) -> Result<()> {
        let map = self.map();
        if map.mutes.0.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let certain = {
            let soft = &mut *reign.soft.borrow_mut();
            if now.since(soft.mutes_seen) < MUTES_EVERY {
                return Ok(());
            }
            soft.mutes_seen = now;
            // A monitor that has just come to lead does not see what it has not been told of yet.
            let settled = now.since(reign.started) > 2 * self.node_timeout;
            settled && map.nodes.iter().all(|(id, node)| !node.up || soft.liveness.known(*id))
        };
        let status = self.status_now(reign);
        let count =
            |code: &str| status.checks.iter().find(|check| check.code == code).map(|check| check.count);
        let codes = map.mutes.ended(wall_clock(), certain, count);
        if !codes.is_empty() {
            for (code, why) in &codes {
                tracing::warn!(code, "the check is not muted any more: {why}");
            }
            self.propose(reign, Command::Unmute { codes }).await?;
        }
        Ok(())
    }

    /// A daemon has found that its last life ended without a stop.
    pub async fn died(&self, daemon: Daemon, life: u64) -> Result<Reply> {
        let daemon = daemon.to_string();
        self.propose(&*self.reign()?, Command::Died { daemon, life, now: wall_clock() }).await
    }

    /// Tells, until somebody has taken note, that this monitor's life before ended without a stop.
    pub(crate) async fn tell_own_death(self: Rc<Self>, life: u64) {
        let daemon = Daemon::Monitor(self.identity.id);
        loop {
            let told = match self.reign() {
                Ok(_) => self.died(daemon, life).await.map(|_| ()).map_err(|error| error.to_string()),
                Err(RpcError::NotLeading { leader: Some(leader), .. }) => {
                    let mut hello = Hello::new(Role::Monitor, self.identity.cluster_id);
                    (hello.id, hello.incarnation) = (self.identity.id, self.identity.incarnation);
                    let client = MonitorClient::new(vec![leader], hello);
                    client.died(daemon, life).await.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match told {
                Ok(_) => return,
                Err(error) => tracing::info!(error, "nobody has taken note yet of how this monitor ended"),
            }
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }
}
