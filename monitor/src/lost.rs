//! Nodes that have lost writes which they had reported as durable, and do not know it (5.9): told by the leaders that
//! found it, passed on to the node, until the node has taken note.
//!
//! An order goes out in the answers to the node's heartbeats, named by the volume and generation of a leader that has
//! told. The node marks its state as lost (N8), and names the order in its heartbeats when that is durable. That covers
//! everybody who had told before the order went out, so that many leaders that find the same at the same time cost the
//! node one mark, or two, and not one each. Who tells after that waits for the next order.
//!
//! Soft state of one reign: who tells does so again and again until it is answered that the node has taken note, and
//! so tells the next leader of the monitors, too. Nothing of the map is decided here; the node's own word is what
//! counts, there as in health.

use crate::rpc::*;
use crate::service::{Result, Service, known_node};
use std::collections::BTreeMap;
use trefoil_core::map::{Holder, MapError};
use trefoil_core::{Generation, Incarnation, NodeId, VolumeId};

/// Volumes whose leaders have told of one node, and have not heard yet that it has taken note. Further ones are
/// answered [`RpcError::Later`], and tell again; what they have found goes with the order of the others meanwhile.
pub(crate) const TOLD_MAX: usize = 1024;

/// What has become of what a leader told.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// The order that is under way went out before.
    Waits,
    /// The order that is under way is for this, too.
    Ordered,
    /// The node has taken note of that order; the leader has not heard so yet.
    Noted,
}

/// What a leader that tells is answered.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Heard for the first time.
    New,
    /// Known, and the node has not taken note.
    Pending,
    /// The node has taken note. That is forgotten now: told once more, it is new.
    Noted,
    /// There is no room for it.
    Full,
}

/// One node's.
#[derive(Debug, Default)]
struct Loss {
    /// Who has told, one leader per volume. At most [`TOLD_MAX`].
    told: BTreeMap<VolumeId, (Generation, Fate)>,
    /// Goes out with each answer until the node names it.
    order: Option<LostOrder>,
}

/// See the module. One entry per node of the map at most.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    nodes: BTreeMap<NodeId, Loss>,
}

impl Losses {
    /// The leader of a volume tells. The caller has made sure that it is, and that the node is known.
    pub fn tell(&mut self, node: NodeId, (volume, generation): LostOrder) -> Told {
        let loss = self.nodes.entry(node).or_default();
        match loss.told.get(&volume) {
            Some((known, Fate::Noted)) if *known == generation => {
                loss.told.remove(&volume);
                if loss.told.is_empty() && loss.order.is_none() {
                    self.nodes.remove(&node);
                }
                return Told::Noted;
            }
            Some((known, _)) if *known == generation => return Told::Pending,
            Some(_) => {} // an older leader's, which is over
            None if loss.told.len() >= TOLD_MAX => {
                // Those who have not asked since may be gone; if they are not, they tell again.
                loss.told.retain(|_, (_, fate)| *fate != Fate::Noted);
                if loss.told.len() >= TOLD_MAX {
                    return Told::Full;
                }
            }
            None => {}
        }
        loss.told.insert(volume, (generation, Fate::Waits));
        Told::New
    }

    /// True if the node has taken note of what this leader had told, and the leader has not heard so yet.
    pub fn is_noted(&self, node: NodeId, (volume, generation): LostOrder) -> bool {
        let told = self.nodes.get(&node).and_then(|loss| loss.told.get(&volume));
        told == Some(&(generation, Fate::Noted))
    }

    /// A heartbeat of the node: which order it has taken note of last in its life. What it is to take note of.
    pub fn heard(&mut self, node: NodeId, noted: Option<LostOrder>) -> Option<LostOrder> {
        let loss = self.nodes.get_mut(&node)?;
        if loss.order.is_some() && loss.order == noted {
            loss.order = None;
            let ordered = loss.told.values_mut().filter(|(_, fate)| *fate == Fate::Ordered);
            ordered.for_each(|(_, fate)| *fate = Fate::Noted);
        }
        if loss.order.is_none() {
            let mut waiting = loss.told.iter_mut().filter(|(_, (_, fate))| *fate == Fate::Waits);
            if let Some((volume, (generation, fate))) = waiting.next() {
                *fate = Fate::Ordered;
                loss.order = Some((*volume, *generation));
                waiting.for_each(|(_, (_, fate))| *fate = Fate::Ordered);
            }
        }
        loss.order
    }

    /// The node is one of the cluster no more.
    pub fn forget_node(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }
}

impl Service {
    /// See [`Request::LostData`].
    pub async fn lost_data(
        &self,
        holder: Holder,
        order: LostOrder,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Response> {
        // Who holds the volume must not be looked up behind a successor's back.
        let reign = self.confirmed_reign().await?;
        let map = self.map();
        known_node(&map, node, incarnation)?;
        let (volume, generation) = order;
        let Some(it) = map.volumes.get(&volume) else {
            return Err(MapError::Missing { what: "volume".to_owned(), name: volume.to_string() }.into());
        };
        if it.generation != generation || !it.holder.as_ref().is_some_and(|known| known.is(&holder)) {
            // Told while the volume was held, and released since. Nothing is forgotten for it: the answer may get
            // lost, and the entry makes room when there is none.
            if reign.soft.borrow().losses.is_noted(node, order) {
                return Ok(Response::LostData { noted: true });
            }
            return Err(RpcError::NotAllowed(format!(
                "{} does not hold volume {volume} with generation {generation} (any more), so what it has found of \
                 {node} is not taken from it; whoever holds the volume compares anew",
                holder.name
            )));
        }
        let told = reign.soft.borrow_mut().losses.tell(node, order);
        match told {
            Told::New => tracing::error!(
                %node, %volume, %generation, by = holder.name,
                "the node has less than it had reported as durable: it is told to mark its state as lost. Until it has \
                 taken note, leaders that have not found it themselves go on counting its copies; if it does not \
                 answer, leave it stopped until you know why it lost writes"
            ),
            Told::Pending | Told::Noted => {}
            Told::Full => {
                return Err(RpcError::Later(format!(
                    "the leaders of {TOLD_MAX} volumes have told of {node}, and it has not taken note yet: tell again"
                )));
            }
        }
        Ok(Response::LostData { noted: told == Told::Noted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(4);

    fn name(volume: u64, generation: u64) -> LostOrder {
        (VolumeId(volume), Generation(generation))
    }

    #[test]
    fn one_mark_is_for_all_that_was_told_before_it_and_for_nothing_that_was_told_later() {
        let mut losses = Losses::default();
        assert_eq!(losses.heard(NODE, None), None);
        assert_eq!(losses.tell(NODE, name(2, 7)), Told::New);
        assert_eq!(losses.tell(NODE, name(1, 5)), Told::New);
        let order = losses.heard(NODE, None);
        assert_eq!(order, Some(name(1, 5)));
        assert_eq!(losses.tell(NODE, name(3, 1)), Told::New);
        assert_eq!(losses.heard(NODE, None), order, "again and again");
        assert_eq!(losses.heard(NODE, Some(name(9, 9))), order, "it has taken note of another one");
        assert_eq!(losses.tell(NODE, name(2, 7)), Told::Pending);
        // Noted: what came later is ordered with the same answer.
        let next = losses.heard(NODE, order);
        assert_eq!(next, Some(name(3, 1)));
        assert_eq!(losses.tell(NODE, name(2, 7)), Told::Noted);
        assert_eq!(losses.tell(NODE, name(1, 5)), Told::Noted);
        assert_eq!(losses.tell(NODE, name(3, 1)), Told::Pending);
        assert_eq!(losses.heard(NODE, order), next, "the older one's name again");
        assert_eq!(losses.heard(NODE, next), None);
        assert_eq!(losses.tell(NODE, name(3, 1)), Told::Noted);
        assert!(losses.nodes.is_empty(), "forgotten");
    }

    #[test]
    fn who_tells_again_is_answered_by_what_the_node_says_after_that() {
        let mut losses = Losses::default();
        losses.tell(NODE, name(1, 5));
        let order = losses.heard(NODE, None);
        assert_eq!(losses.heard(NODE, order), None);
        assert_eq!(losses.tell(NODE, name(1, 5)), Told::Noted);
        // The answer did not arrive. The node still says that it has noted, or was started again.
        assert_eq!(losses.tell(NODE, name(1, 5)), Told::New);
        assert_eq!(losses.heard(NODE, None), order, "another life, which has noted nothing");
        assert_eq!(losses.tell(NODE, name(1, 5)), Told::Pending);
        assert_eq!(losses.heard(NODE, order), None);
        assert_eq!(losses.tell(NODE, name(1, 5)), Told::Noted);
        // A newer leader of the volume takes the older one's place, not its answer.
        losses.tell(NODE, name(1, 5));
        let order = losses.heard(NODE, None);
        assert_eq!(losses.tell(NODE, name(1, 6)), Told::New);
        assert_eq!(losses.heard(NODE, order), Some(name(1, 6)));
        assert_eq!(losses.tell(NODE, name(1, 6)), Told::Pending);
        losses.forget_node(NODE);
        assert_eq!(losses.heard(NODE, None), None);
    }

    #[test]
    fn what_is_told_of_a_node_is_bounded_and_what_is_done_makes_room() {
        let mut losses = Losses::default();
        let max = TOLD_MAX as u64;
        for volume in 0..max {
            assert_eq!(losses.tell(NODE, name(volume, 1)), Told::New);
        }
        assert_eq!(losses.tell(NODE, name(max, 1)), Told::Full);
        assert_eq!(losses.tell(NODE, name(0, 1)), Told::Pending, "those that are known are answered");
        assert_eq!(losses.tell(NodeId(5), name(max, 1)), Told::New, "another node's");
        let order = losses.heard(NODE, None);
        assert_eq!(losses.tell(NODE, name(max, 1)), Told::Full);
        losses.heard(NODE, order);
        assert_eq!(losses.tell(NODE, name(max, 1)), Told::New);
        assert_eq!(losses.nodes[&NODE].told.len(), 1);
    }
}
