//! A front end whose lease is about to run out, or has, *calls*: it sends each node its Fence again, at intervals
//! (section 8). Nodes tell the monitors whom they hear, and these give no healer the volume of one that cannot reach
//! them and is well. It is no message of its own, since a Fence says all there is to say, of which volume and
//! generation, costs a node nothing where it is durable already, and is answered with a refusal where there is a
//! newer leader.
//!
//! Who has a lease says nothing: the monitors know of it. A healer never calls: one that hangs, or has lost its
//! way, must not keep the volume from the next one.

use super::{Leader, NodeList, Output};
use crate::ids::*;
use crate::message::ToNode;

impl<P: Clone + Default> Leader<P> {
    /// When the next call is due; none: never.
    pub(super) fn next_call(&self) -> Option<Time> {
        let options = &self.shared.options;
        let (before, every) = options.call.filter(|_| !options.healer)?;
        let first = Time(self.shared.lease_until.0.saturating_sub(before));
        Some(first.max(self.called.after(every)))
    }

    /// Calls at every node that is spoken to, if it is time.
    pub(super) fn call_if_due(&mut self, now: Time, out: &mut Vec<Output<P>>) {
        if self.next_call().is_none_or(|at| now < at) {
            return;
        }
        self.called = now;
        let (volume, generation) = (self.shared.spec.id, self.shared.spec.generation);
        // No answer is awaited: a call changes nothing in how nodes are found to be.
        for (node, _) in self.shared.peers.iter().filter(|(_, peer)| peer.up) {
            self.shared.counters.calls += 1;
            out.push(Output::Send { to: NodeList::one(*node), msg: ToNode::Fence { volume, generation } });
        }
    }
}
