//! Telling the monitors of a node that has lost writes which it had reported as durable (5.9).
//!
//! The leader that finds it does not count the node before the node says so itself, but others do, and so will the
//! next leader of the same volume, until the node itself knows: then it has no vote (N8), and is healed. The monitors
//! pass it on, and keep it no longer than one of them leads; so they are told again and again until they answer that
//! the node has taken note.
//!
//! Nothing here stands in the way of a request, and nothing here decides which nodes are counted.

use super::cluster::LostDataError;
use super::front::FrontEnd;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;
use trefoil_core::{Generation, Incarnation, NodeId, VolumeId};

/// How often the monitors are told: a node says once a second what it has taken note of.
pub const LOST_TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Losses that are being told, each one node's as one leader found it.
pub const LOST_TELLERS_MAX: usize = 1024;

/// Who found it, and whose it is.
pub(super) type Loss = (VolumeId, Generation, NodeId);

impl FrontEnd {
    /// A leader has found that a node lost writes. At most one task tells of the same.
    pub(super) fn tell_lost(self: &Rc<Self>, loss: Loss) {
        let (volume, generation, node) = loss;
        if self.telling.borrow().contains(&loss) {
            return; // said again, since its connection was made anew
        }
        tracing::error!(
            %node, %volume, %generation,
            "the node has lost writes that it had reported as durable; this volume's leader does not count it before \
             the node says so itself, and the monitors are told. Find out why it lost them (was its device replaced by \
             an older copy of itself? is there a volatile cache?) before you trust it again"
        );
        let Some(incarnation) = self.cluster().map().nodes.get(&node).map(|it| it.incarnation) else {
            tracing::warn!(%node, "the node is not in the map any more: the monitors need not be told");
            return;
        };
        let mut telling = self.telling.borrow_mut();
        if telling.len() >= LOST_TELLERS_MAX {
            tracing::error!(
                %node, %volume, %generation,
                "the monitors are not told that the node has lost writes: {LOST_TELLERS_MAX} such losses are being \
                 told already. Other leaders go on counting its copies of this volume: stop the node until the \
                 monitors answer"
            );
            return;
        }
        telling.insert(loss);
        self.task(self.clone().tell_until_noted(loss, incarnation));
    }

    async fn tell_until_noted(self: Rc<Self>, loss: Loss, incarnation: Incarnation) {
        let (volume, generation, node) = loss;
        let mut told = false;
        while !self.is_stopping() {
            if self.cluster().map().nodes.get(&node).is_none_or(|it| it.incarnation != incarnation) {
                tracing::info!(%node, "the node that has lost writes is one of the cluster no more");
                break;
            }
            match self.cluster().lost_data(volume, generation, node, incarnation).await {
                Ok(true) => {
                    tracing::info!(%node, %volume, %generation, "the node has taken note that it has lost writes");
                    break;
                }
                Ok(false) => {}
                Err(LostDataError::Refused(why)) => {
                    tracing::error!(
                        %node, %volume, %generation, why,
                        "the monitors do not take it that the node has lost writes; unless it has taken note, leaders \
                         count its copies: look for NODE_LOST_STATE in `trefoil status`, and stop the node if it is \
                         not there"
                    );
                    break;
                }
                Err(error @ LostDataError::Unreachable(_)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%node, %error, "cannot tell that the node has lost writes yet; trying again");
                    }
                }
            }
            sleep(LOST_TELL_INTERVAL).await;
        }
        self.telling.borrow_mut().remove(&loss);
    }
}
