//! After a restore from a backup: where placement groups live by now, by what nodes say.
//!
//! Placement groups may have moved since the backup was taken. A leader that opened one on its old members would find
//! nobody, or copies that are not the last; and an epoch of before the disaster would be given to another
//! configuration. So nobody is granted a volume and nothing is moved until enough nodes have said what they know
//! ([`trefoil_core::map::restore::settle`]); then the map is what they say, and goes on in epochs that were never
//! used.

use crate::reign::Reign;
use crate::rpc::RpcError;
use crate::service::{Result, Service, known_node};
use std::collections::BTreeMap;
use trefoil_core::map::restore::settle;
use trefoil_core::map::{BATCH_MAX, ClusterMap, Command, LayoutReport, POOL_PGS_MAX, POOLS_MAX, Reply};
use trefoil_core::placement::PgConfig;
use trefoil_core::{Incarnation, NodeId, PgId, Time};

/// A node is asked again after so many microseconds: it may have heard more, or been restarted.
const ASK_AGAIN: u64 = 2_000_000;

/// What nodes have said. Part of the reign's soft state: a new leader asks again.
#[derive(Debug, Default)]
pub(crate) struct Layouts {
    reports: BTreeMap<NodeId, LayoutReport>,
    asked: BTreeMap<NodeId, Time>,
    /// Why it cannot be told yet, by the last look.
    unsettled: Vec<String>,
    /// A look has been taken.
    looked: bool,
}

impl Layouts {
    /// The node is to be asked now.
    pub fn wants(&mut self, map: &ClusterMap, node: NodeId, now: Time) -> bool {
        if !map.restored.unchecked {
            return false;
        }
        let due = self.asked.get(&node).is_none_or(|at| now.since(*at) >= ASK_AGAIN);
        if due {
            self.asked.insert(node, now);
        }
        due
    }

    /// For people.
    pub fn unsettled(&self, map: &ClusterMap) -> Vec<String> {
        match (map.restored.unchecked, self.looked) {
            (false, _) => Vec::new(),
            (true, true) => self.unsettled.clone(),
            (true, false) => vec!["all: no node has been heard of yet; start them".to_owned()],
        }
    }

    fn heard(
        &mut self,
        map: &ClusterMap,
        node: NodeId,
        report: LayoutReport,
    ) -> Option<Vec<(PgId, PgConfig)>> {
        self.reports.insert(node, report);
        self.looked = true;
        match settle(map, &self.reports) {
            Ok(configs) => Some(configs),
            Err(unsettled) => {
                self.unsettled = unsettled.iter().map(ToString::to_string).collect();
                None
            }
        }
    }
}

impl Service {
    /// A node says what it knows.
    pub async fn layout(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        report: LayoutReport,
    ) -> Result<Reply> {
        let reign = self.confirmed_reign().await?;
        let map = self.map();
        known_node(&map, node, incarnation)?;
        if report.pgs.len() > POOL_PGS_MAX as usize * POOLS_MAX {
            return Err(RpcError::Malformed(
                "a report of more placement groups than there may be".to_owned(),
            ));
        }
        if !map.restored.unchecked {
            return Ok(Reply::Done);
        }
        let settled = reign.soft.borrow_mut().layouts.heard(&map, node, report);
        match settled {
            Some(configs) => self.adopt(&reign, configs).await,
            None => Ok(Reply::Done),
        }
    }

    async fn adopt(&self, reign: &Reign, configs: Vec<(PgId, PgConfig)>) -> Result<Reply> {
        tracing::warn!(
            moved_since = configs.len(),
            "the restored map has been checked with the nodes: it is in use from now on"
        );
        let mut parts = configs.chunks(BATCH_MAX / 2).peekable();
        if parts.peek().is_none() {
            return self.propose(reign, Command::AdoptLayout { configs: Vec::new(), last: true }).await;
        }
        let mut reply = Reply::Done;
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            reply = self.propose(reign, Command::AdoptLayout { configs: part.to_vec(), last }).await?;
        }
        Ok(reply)
    }
}
