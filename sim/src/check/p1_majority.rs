//! P1: what is acknowledged, a majority of the object's nodes has claimed to have durably, in that very
//! ballot. That the claims are true is [`super::durable_first`]'s business.

use super::i3_one_content::Issue;
use super::{Checked, SLOTS, Violation, object_of};
use crate::plan::NODES_MAX;
use trefoil_core::placement::PgConfig;
use trefoil_core::{Ballot, NodeId};

/// Ballots that claims are remembered of, per object.
const BALLOTS: usize = 6;

/// The greatest number that each node has claimed, for the newest ballots of each object.
#[derive(Debug)]
pub struct Majority {
    claims: Vec<Vec<(Ballot, [u64; NODES_MAX])>>,
}

impl Default for Majority {
    fn default() -> Majority {
        Majority { claims: vec![Vec::new(); SLOTS] }
    }
}

impl Majority {
    /// A node says `Have`.
    pub fn claimed(&mut self, slot: usize, node: NodeId, ballot: Ballot, seq: u64) {
        let claims = &mut self.claims[slot];
        let at = match claims.iter().position(|(b, _)| *b == ballot) {
            Some(at) => at,
            None => {
                if claims.len() >= BALLOTS {
                    let oldest = (0..claims.len()).min_by_key(|n| claims[*n].0).unwrap_or(0);
                    claims.swap_remove(oldest);
                }
                claims.push((ballot, [0; NODES_MAX]));
                claims.len() - 1
            }
        };
        let claim = &mut claims[at].1[node.0 as usize];
        *claim = (*claim).max(seq);
    }

    /// A write that went out under this number is acknowledged.
    pub fn acknowledged(&self, slot: usize, config: &PgConfig, (ballot, seq): Issue) -> Checked {
        let claims = self.claims[slot].iter().find(|(b, _)| *b == ballot).map(|c| c.1).unwrap_or_default();
        if !config.is_quorum(|node| claims[node.0 as usize] >= seq) {
            let what = format!(
                "write {seq} of ballot {ballot} is acknowledged; {:?} claim {claims:?} by node",
                config.everyone()
            );
            return Err(Violation::of("P1", object_of(slot), what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::Epoch;

    #[test]
    fn an_acknowledgement_needs_two_claims_of_its_ballot() {
        let config = PgConfig::simple(Epoch(1), vec![NodeId(0), NodeId(1), NodeId(2)]);
        let mut m = Majority::default();
        let issue = (Ballot(4), 3);
        m.claimed(0, NodeId(0), Ballot(4), 3);
        m.claimed(0, NodeId(1), Ballot(3), 9);
        m.claimed(0, NodeId(3), Ballot(4), 9);
        assert!(m.acknowledged(0, &config, issue).is_err());
        m.claimed(0, NodeId(1), Ballot(4), 2);
        assert!(m.acknowledged(0, &config, issue).is_err());
        m.claimed(0, NodeId(1), Ballot(4), 4);
        assert!(m.acknowledged(0, &config, issue).is_ok());
    }
}
