//! Which leaders nodes hear: why a volume whose lease has run out is not given to a healer. Section 8 of
//! `docs/protocol.md`.
//!
//! A front end that cannot reach the monitors, and reaches its nodes, is well, and so are its clients; its lease
//! runs out all the same. A client that asks for the volume may have it then. A healer, whom nobody has asked for,
//! would end the clients' I/O to make copies whole which that front end keeps whole. So who has no lease *calls*
//! (`core/src/leader/call.rs`), nodes say in their heartbeats whose calls they hear
//! (`core/src/node/callers.rs`), and the leading monitor keeps that here, in memory, for as long as it is fresh.
//!
//! # The rule
//!
//! A healer is granted a volume that a front end holds only when the lease has run out *and* no node's word is
//! fresh that names a leader of the newest generation, *and* a majority of the nodes (those that are out not
//! counted) have said lately whom they hear. Silence is no evidence: a monitor that has just begun to lead, or that
//! many nodes could not reach, cannot say of anybody that it is dead.
//!
//! For safety nothing depends on it: a wrong word keeps copies from being healed, and no more. It keeps out no
//! front end. The health check VOLUME_NEEDS_HEAL shows the volume meanwhile, and why nothing is done.
//!
//! Pure: time and words come in.

use super::ClusterMap;
use crate::ids::*;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why no healer gets a volume whose lease has run out.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kept {
    /// This node hears its front end.
    HeardBy(NodeId),
    /// Too few nodes have said lately whom they hear.
    Unknown,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kept::HeardBy(node) => {
                write!(
                    f,
                    "{node} hears its front end, which does not reach the monitors; no healer takes it away"
                )
            }
            Kept::Unknown => write!(f, "too few nodes have said lately whether they hear its front end"),
        }
    }
}

/// What a node says of the leaders that it hears: those that call, and nobody else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// Volume and generation, at most [`CALLERS_MAX`](crate::limits::CALLERS_MAX).
    pub leaders: Vec<(VolumeId, Generation)>,
    /// There are more than it can name.
    pub more: bool,
}

/// When a node said something.
#[derive(Copy, Clone, Debug)]
struct Word {
    at: Time,
    /// See [`Callers::more`].
    more: bool,
}

/// A leader that a node hears.
#[derive(Copy, Clone, Debug)]
struct Caller {
    generation: Generation,
    by: NodeId,
    at: Time,
}

/// See the module. Has at most one entry per node and one per volume of the map.
#[derive(Clone, Debug)]
pub struct Heard {
    /// A word is believed for so long (µs).
    fresh: u64,
    words: BTreeMap<NodeId, Word>,
    /// The newest generation that is heard of, and who said so last.
    callers: FxHashMap<VolumeId, Caller>,
}

impl Heard {
    /// Nobody has said anything.
    pub fn new(fresh: u64) -> Heard {
        Heard { fresh, words: BTreeMap::new(), callers: FxHashMap::default() }
    }

    /// A node has said whom it hears. What the map does not have is not kept.
    pub fn said(&mut self, map: &ClusterMap, node: NodeId, callers: &Callers, now: Time) {
        if !map.nodes.contains_key(&node) {
            return;
        }
        self.words.insert(node, Word { at: now, more: callers.more });
        for (volume, generation) in &callers.leaders {
            if !map.volumes.contains_key(volume) {
                continue;
            }
            let new = Caller { generation: *generation, by: node, at: now };
            let known = self.callers.entry(*volume).or_insert(new);
            // An older leader that is heard, too, says nothing about the newer one.
            if known.generation <= new.generation || now.since(known.at) > self.fresh {
                *known = new;
            }
        }
    }

    /// A node is one of the cluster no more.
    pub fn forget_node(&mut self, node: NodeId) {
        self.words.remove(&node);
    }

    /// A volume was released, or removed.
    pub fn forget_volume(&mut self, volume: VolumeId) {
        self.callers.remove(&volume);
    }

    /// For so long, up to `now`, nodes could say nothing: it does not count.
    pub fn stood_still(&mut self, time: u64, now: Time) {
        let later = |at: Time| at.after(time).min(now).max(at);
        self.words.values_mut().for_each(|word| word.at = later(word.at));
        self.callers.values_mut().for_each(|caller| caller.at = later(caller.at));
    }

    /// Says of any volume, and the generation granted last, why no healer gets it; none: for all that nodes say, one
    /// may. What it costs grows with the nodes once, and not with each volume.
    pub fn keeper<'a>(
        &'a self,
        map: &ClusterMap,
        now: Time,
    ) -> impl Fn(VolumeId, Generation) -> Option<Kept> + use<'a> {
        let is_fresh = move |at: Time| now.since(at) <= self.fresh;
        // A node that cannot name all may hear anybody.
        let crowded =
            self.words.iter().find(|(_, word)| word.more && is_fresh(word.at)).map(|(node, _)| *node);
        let counted = map.nodes.iter().filter(|(_, node)| node.out.is_none());
        let (mut all, mut spoke) = (0_usize, 0_usize);
        for (id, _) in counted {
            all += 1;
            spoke += usize::from(self.words.get(id).is_some_and(|word| is_fresh(word.at)));
        }
        let unknown = spoke * 2 <= all;
        move |volume, generation| {
            let caller = self.callers.get(&volume);
            let caller = caller.filter(|it| it.generation >= generation && is_fresh(it.at)).map(|it| it.by);
            caller.or(crowded).map(Kept::HeardBy).or(unknown.then_some(Kept::Unknown))
        }
    }
}

#[cfg(test)]
mod tests;
