//! Where CRUSH says that placement groups should live, now. Where they do is in the map's `pgs`.

use super::{ClusterMap, MapError, Pool};
use crate::crush::{Placement, Scratch, ceph_pg_to_x};
use crate::ids::*;

/// Asks CRUSH for one placement group after the other; what they have in common is worked out once.
pub struct Placer<'a> {
    map: &'a ClusterMap,
    reweights: Vec<u32>,
    scratch: Scratch,
    result: Vec<i32>,
}

impl ClusterMap {
    /// See [`Placer`]. Devices that no node has registered, and nodes that have lost their state, get
    /// nothing.
    pub fn placer(&self) -> Placer<'_> {
        let mut reweights = self.crush.full_reweights();
        for (device, reweight) in reweights.iter_mut().enumerate() {
            let node = u32::try_from(device).ok().and_then(|id| self.nodes.get(&NodeId(id)));
            if node.is_none_or(|node| node.lost) {
                *reweight = 0;
            }
        }
        Placer { map: self, reweights, scratch: Scratch::default(), result: Vec::new() }
    }
}

impl Placer<'_> {
    /// The nodes for a placement group of a pool.
    ///
    /// Errors: the rule finds too few, or does not work.
    pub fn place(&mut self, id: PoolId, pool: &Pool, pg: u32) -> Result<Vec<NodeId>, MapError> {
        let wanted = usize::from(pool.size);
        let placement = Placement {
            rule_id: pool.rule,
            x: ceph_pg_to_x(id.0, pg, pool.pg_num),
            num_rep: wanted,
            reweights: &self.reweights,
            choose_args_id: i64::from(id.0),
        };
        let crush = &self.map.crush;
        crush
            .do_rule_into(&placement, &mut self.scratch, &mut self.result)
            .map_err(|error| MapError::Crush(error.to_string()))?;
        let mut set: Vec<NodeId> = Vec::with_capacity(wanted);
        for item in &self.result {
            // Holes of `indep` rules and buckets are no nodes; a rule may give an item twice.
            let node = u32::try_from(*item).map(NodeId).ok();
            if let Some(node) = node.filter(|n| self.map.nodes.contains_key(n) && !set.contains(n)) {
                set.push(node);
            }
        }
        if set.len() != wanted {
            let found = set.len();
            return Err(MapError::TooFewNodes { pg, found, wanted });
        }
        Ok(set)
    }
}
