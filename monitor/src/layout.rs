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
use trefoil_core::map::{ClusterMap, Command, LayoutReport, PGS_MAX, Reply};
use trefoil_core::placement::PgConfig;
use trefoil_core::{Incarnation, NodeId, PgId, Time};

/// A node is asked again after so many microseconds: it may have heard more, or been restarted.
const ASK_AGAIN: u64 = 2_000_000;
/// Placement groups that are named of which it is not known where they live.
const NAMED_MAX: usize = 20;
/// Placement groups in one entry of the log: some hundred bytes each, in the worst case.
const ADOPTED_AT_ONCE: usize = 4096;

/// What nodes have said. Part of the reign's soft state: a new leader asks again.
#[derive(Debug, Default)]
pub(crate) struct Layouts {
    reports: BTreeMap<NodeId, LayoutReport>,
    asked: BTreeMap<NodeId, Time>,
    /// Something was said since the last look.
    news: bool,
    /// Of how many placement groups it cannot be told yet, and why for the first of them, by the last look.
    unsettled: Option<(usize, Vec<String>)>,
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

    /// For people: of how many placement groups it cannot be told, and why for the first of them.
    pub fn unsettled(&self, map: &ClusterMap) -> (usize, Vec<String>) {
        match (map.restored.unchecked, &self.unsettled) {
            (false, _) => (0, Vec::new()),
            (true, Some(unsettled)) => unsettled.clone(),
            (true, None) => {
                (map.pgs.len(), vec!["all: no node has been heard of yet; start them".to_owned()])
            }
        }
    }

    /// Keeps what a node knows otherwise than the map.
    fn heard(&mut self, map: &ClusterMap, node: NodeId, mut report: LayoutReport) {
        report.pgs.retain(|(pg, epoch, config)| {
            map.members(*pg).is_none_or(|known| {
                *epoch > known.epoch || config.as_ref().is_some_and(|config| *config != known.config())
            })
        });
        self.reports.insert(node, report);
        self.news = true;
    }

    /// Takes a look, if there is news; what is to be adopted, if it can be told.
    fn settle(&mut self, map: &ClusterMap) -> Option<Vec<(PgId, PgConfig)>> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        match settle(map, &self.reports) {
            Ok(configs) => Some(configs),
            Err(unsettled) => {
                let named = unsettled.iter().take(NAMED_MAX).map(ToString::to_string).collect();
                self.unsettled = Some((unsettled.len(), named));
                None
            }
        }
    }
}

impl Service {
    /// A node says what it knows.
    pub fn layout(&self, node: NodeId, incarnation: Incarnation, report: LayoutReport) -> Result<Reply> {
        let reign = self.reign()?;
        let map = self.map();
        known_node(&map, node, incarnation)?;
        if report.pgs.len() > PGS_MAX as usize {
            let text =
                format!("a report of {} placement groups: there are at most {PGS_MAX}", report.pgs.len());
            return Err(RpcError::Malformed(text));
        }
        if map.restored.unchecked {
            reign.soft.borrow_mut().layouts.heard(&map, node, report);
        }
        Ok(Reply::Done)
    }

    /// Looks whether the layout of a restored map can be told by now. It takes a look at each placement group:
    /// once in a second, however many nodes there are.
    pub async fn settle_layout(&self, reign: &Reign) -> Result<()> {
        let map = self.map();
        let settled = reign.soft.borrow_mut().layouts.settle(&map);
        let Some(configs) = settled else { return Ok(()) };
        // In parts, each of which fits into an entry of the log. Where this ends in the middle, the rest is found
        // again.
        let mut parts = configs.chunks(ADOPTED_AT_ONCE).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            self.propose(reign, Command::AdoptLayout { configs: part.to_vec(), last }).await?;
        }
        if configs.is_empty() {
            self.propose(reign, Command::AdoptLayout { configs: Vec::new(), last: true }).await?;
        }
        tracing::warn!(
            moved_since = configs.len(),
            "the restored map has been checked with the nodes: it is in use from now on"
        );
        Ok(())
    }
}
