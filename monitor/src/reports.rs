//! What leaders say of nodes: kept for as long as it is fresh, and put together node by node for the status.
//!
//! Soft state of the monitor that they renew their leases at; nothing is decided by it.

use std::collections::{BTreeMap, BTreeSet};
use trefoil_core::leader::report::{NodeReport, NodeTrouble};
use trefoil_core::map::Holder;
use trefoil_core::{NodeId, Time};

/// Processes whose reports are kept. Of more, the one that was heard of least recently is forgotten.
pub(crate) const REPORTERS_MAX: usize = 4096;

/// A process and its life.
type Reporter = (String, u64);

/// See the module.
#[derive(Debug)]
pub(crate) struct Reports {
    /// A report is believed for so long (µs): three renewals.
    fresh: u64,
    by: BTreeMap<Reporter, (Time, Vec<NodeReport>)>,
}

/// What all leaders together say of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// The worst.
    pub trouble: NodeTrouble,
    /// Who says that.
    pub by: String,
    /// How many processes say anything.
    pub processes: usize,
    /// Copies that are known not to be whole, at all of them.
    pub behind: u64,
    /// The longest that a write is under way (µs).
    pub lag: u64,
}

impl Reports {
    /// With the time between two renewals (µs).
    pub fn new(renew: u64) -> Reports {
        Reports { fresh: renew.saturating_mul(3), by: BTreeMap::new() }
    }

    /// A holder has renewed.
    pub fn heard(&mut self, holder: &Holder, nodes: Vec<NodeReport>, now: Time) {
        let key = (holder.name.clone(), holder.boot);
        if nodes.is_empty() {
            self.by.remove(&key);
            return;
        }
        if self.by.len() >= REPORTERS_MAX && !self.by.contains_key(&key) {
            self.forget_old(now);
            let oldest = self.by.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.filter(|_| self.by.len() >= REPORTERS_MAX) {
                self.by.remove(&oldest);
            }
        }
        self.by.insert(key, (now, nodes));
    }

    fn forget_old(&mut self, now: Time) {
        let fresh = self.fresh;
        self.by.retain(|_, (at, _)| now.since(*at) <= fresh);
    }

    /// Nodes that somebody cannot reach.
    pub fn unreached(&mut self, now: Time) -> BTreeSet<NodeId> {
        self.forget_old(now);
        let reports = self.by.values().flat_map(|(_, nodes)| nodes);
        reports.filter(|it| it.trouble == NodeTrouble::Away).map(|it| it.node).collect()
    }

    /// Node by node.
    pub fn said(&mut self, now: Time) -> BTreeMap<NodeId, Said> {
        self.forget_old(now);
        let mut all: BTreeMap<NodeId, Said> = BTreeMap::new();
        for ((name, _), (_, nodes)) in &self.by {
            for report in nodes {
                let new = Said { trouble: report.trouble, by: name.clone(), processes: 0, behind: 0, lag: 0 };
                let it = all.entry(report.node).or_insert(new);
                if report.trouble > it.trouble {
                    (it.trouble, it.by) = (report.trouble, name.clone());
                }
                it.processes += 1;
                it.behind += report.behind;
                it.lag = it.lag.max(report.lag);
            }
        }
        all
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.trouble)?;
        if self.lag > 0 {
            write!(f, ", writes up to {:.1} s late", self.lag as f64 / 1e6)?;
        }
        if self.behind > 0 {
            write!(f, ", {} copies to repair", self.behind)?;
        }
        write!(f, " (says {}", self.by)?;
        match self.processes {
            0 | 1 => write!(f, ")"),
            more => write!(f, " and {} more)", more - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::map::HolderKind;

    fn holder(boot: u64) -> Holder {
        Holder { name: format!("host{boot}"), boot, kind: HolderKind::FrontEnd }
    }

    fn node(node: u32, trouble: NodeTrouble) -> NodeReport {
        NodeReport { node: NodeId(node), trouble, behind: 2, lag: 0 }
    }

    #[test]
    fn reports_are_put_together_and_forgotten() {
        let mut reports = Reports::new(100);
        reports.heard(&holder(1), vec![node(1, NodeTrouble::Slow)], Time(1000));
        reports.heard(&holder(2), vec![node(1, NodeTrouble::Away), node(2, NodeTrouble::Behind)], Time(1200));
        let said = reports.said(Time(1200));
        assert_eq!(said[&NodeId(1)].to_string(), "not connected, 4 copies to repair (says host2 and 1 more)");
        assert_eq!(said[&NodeId(2)].processes, 1);
        assert_eq!(reports.said(Time(1301))[&NodeId(1)].processes, 1, "the first is too old");
        reports.heard(&holder(2), vec![], Time(1302));
        assert!(reports.said(Time(1302)).is_empty());
    }

    #[test]
    fn reporters_are_bounded() {
        let mut reports = Reports::new(1000);
        for n in 0..REPORTERS_MAX as u64 + 10 {
            reports.heard(&holder(n), vec![node(n as u32, NodeTrouble::Slow)], Time(n));
        }
        let said = reports.said(Time(REPORTERS_MAX as u64 - 1000));
        assert!(said.len() <= REPORTERS_MAX && said.contains_key(&NodeId(REPORTERS_MAX as u32 + 9)));
    }
}
