//! Section 8: no healer gets the volume of a front end while a monitor's nodes hear it.
//!
//! Each monitor's words are kept here by the world's time, for each reign, with nothing of what `core` makes of them: a
//! monitor that has been told by a node that it hears a leader of the newest generation gives the volume to no healer
//! for as long as words are believed.

use super::{Checked, Violation};
use rustc_hash::FxHashMap;
use trefoil_core::map::heard::Callers;
use trefoil_core::map::reign::ReignId;
use trefoil_core::{NodeId, VolumeId};

#[derive(Copy, Clone, Debug)]
struct Heard {
    generation: u64,
    by: NodeId,
    at: u64,
}

/// Whom monitors have been told of: at most one entry for each monitor and volume.
#[derive(Debug, Default)]
pub struct Kept {
    heard: FxHashMap<(usize, VolumeId), (ReignId, Heard)>,
}

impl Kept {
    /// A monitor has been told, in its reign.
    pub fn told(&mut self, (mi, reign): (usize, ReignId), by: NodeId, callers: &Callers, now: u64) {
        for (volume, generation) in &callers.leaders {
            let new = Heard { generation: generation.0, by, at: now };
            let known = self.heard.entry((mi, *volume)).or_insert((reign, new));
            if known.0 != reign || known.1.generation <= new.generation {
                *known = (reign, new);
            }
        }
    }

    /// A monitor gives a healer what a front end of that generation holds. `believed`: words are, for at least so long.
    pub fn given(
        &self,
        (mi, reign): (usize, ReignId),
        (volume, generation): (VolumeId, u64),
        now: u64,
        believed: u64,
    ) -> Checked {
        let known = self.heard.get(&(mi, volume)).filter(|it| it.0 == reign).map(|it| it.1);
        match known.filter(|it| it.generation >= generation && now < it.at + believed) {
            None => Ok(()),
            Some(it) => Err(Violation::of(
                "8",
                (volume, 0),
                format!(
                    "monitor {mi} gives a healer what generation {generation} leads, as {} said {} µs ago",
                    it.by,
                    now - it.at
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::Generation;

    #[test]
    fn what_nodes_hear_is_given_to_no_healer() {
        let mut kept = Kept::default();
        let (disk, reign) = (VolumeId(1), ReignId { term: 1, monitor: 1 });
        let callers = Callers { leaders: vec![(disk, Generation(5))], more: false };
        kept.told((0, reign), NodeId(1), &callers, 100);
        assert!(kept.given((0, reign), (disk, 5), 149, 50).is_err());
        assert!(kept.given((0, reign), (disk, 5), 150, 50).is_ok(), "too old");
        assert!(kept.given((0, reign), (disk, 6), 149, 50).is_ok(), "an older leader");
        assert!(kept.given((1, reign), (disk, 5), 149, 50).is_ok(), "another monitor");
        assert!(
            kept.given((0, ReignId { term: 2, monitor: 1 }), (disk, 5), 149, 50).is_ok(),
            "another reign"
        );
    }
}
