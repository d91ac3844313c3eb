//! What askers of the map are sent: as little as possible.
//!
//! The maps that were sent last are kept (they share nearly everything, so each costs little), and who has
//! one of them is sent the difference. All who ask after one change get the same map, the first that was
//! sent with its layout, whatever was granted or released meanwhile: so there are few differences, and
//! each is computed and encoded once, however many ask.
//!
//! Who has none of them (it starts, was away for long, or this monitor has been restarted) gets the whole
//! map, in parts. A map is named by a [`MapId`], which another process never gives to another map.

use crate::rpc::{MAP_PART_BYTES, MapId, Response, RpcError, VERSION};
use bytes::Bytes;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;
use trefoil_core::map::ClusterMap;

/// Changes of layout that somebody may have slept through without needing the whole map.
const LAYOUTS_KEPT: usize = 64;
/// Maps kept that were asked for as they are now: what daemons start with.
const FRESH_KEPT: usize = 64;
/// Encoded differences kept.
const DELTAS_KEPT: usize = 16;
/// Encoded whole maps kept, for those who fetch the parts of one.
const WHOLES_KEPT: usize = 2;

type Kept = (MapId, Arc<ClusterMap>);

/// See the module.
#[derive(Default)]
pub(crate) struct History {
    /// Drawn at random when the process starts.
    boot: u64,
    part_bytes: usize,
    layouts: VecDeque<Kept>,
    fresh: VecDeque<Kept>,
    deltas: VecDeque<((MapId, MapId), Bytes)>,
    wholes: VecDeque<(MapId, Bytes)>,
}

type Sent = (Response, Option<Bytes>);

fn encode<T: Serialize>(value: &T) -> Result<Bytes, RpcError> {
    let bytes = postcard::to_extend(value, vec![VERSION]);
    bytes.map(Bytes::from).map_err(|error| RpcError::Unsure(error.to_string()))
}

/// Adds behind the last, and forgets the first if there are too many.
fn keep<T>(queue: &mut VecDeque<T>, most: usize, it: T) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(it);
}

impl History {
    pub fn new(boot: u64) -> History {
        History { boot, part_bytes: MAP_PART_BYTES, ..History::default() }
    }

    /// For tests: as if the map were large.
    pub fn set_part_bytes(&mut self, bytes: usize) {
        self.part_bytes = bytes;
    }

    fn find(&self, id: MapId) -> Option<&Kept> {
        self.layouts.iter().chain(&self.fresh).find(|(known, _)| *known == id)
    }

    /// The answer for somebody who acts on layout `have` (0: who wants what is there now) and has the map
    /// `base`. `remember`: it will ask again.
    ///
    /// Errors: the map cannot be encoded.
    pub fn answer(
        &mut self,
        now: &Arc<ClusterMap>,
        have: u64,
        base: MapId,
        remember: bool,
    ) -> Result<Sent, RpcError> {
        let layout = now.layout;
        // A monitor that lags must not send the asker back in time.
        if have != 0 && have >= layout {
            return Ok((Response::MapUnchanged { layout }, None));
        }
        let base = self.find(base).cloned();
        let (id, target) = match &base {
            // It has what it needs, and may be ahead of what others are sent.
            Some(base) if have != 0 && base.1.layout == layout => base.clone(),
            _ if have == 0 => self.now(now, remember),
            _ => self.of_layout(now),
        };
        if let Some((base_id, base)) = base {
            let names = (base_id, id);
            let known = self.deltas.iter().find(|(known, _)| *known == names);
            let bytes = match known {
                Some((_, bytes)) => Some(bytes.clone()),
                None => target.diff(&base).map(|delta| encode(&delta)).transpose()?,
            };
            if let Some(bytes) = bytes.filter(|bytes| bytes.len() <= self.part_bytes) {
                if known.is_none() {
                    keep(&mut self.deltas, DELTAS_KEPT, (names, bytes.clone()));
                }
                return Ok((Response::MapDelta { layout, id }, Some(bytes)));
            }
        }
        let bytes = match self.wholes.iter().find(|(known, _)| *known == id) {
            Some((_, bytes)) => bytes.clone(),
            None => {
                let bytes = encode(&*target)?;
                keep(&mut self.wholes, WHOLES_KEPT, (id, bytes.clone()));
                bytes
            }
        };
        let total = bytes.len() as u64;
        Ok((Response::Map { layout, id, bytes: total }, Some(self.part_of(&bytes, 0))))
    }

    /// A further part of a whole map, from `offset` on.
    ///
    /// Errors: it is not kept any more; the asker begins again.
    pub fn part(&self, of: MapId, offset: u64) -> Result<Sent, RpcError> {
        let known = self.wholes.iter().find(|(id, _)| *id == of);
        let bytes = known.map(|(_, bytes)| self.part_of(bytes, offset)).filter(|part| !part.is_empty());
        let bytes = bytes.ok_or(RpcError::MapMoved)?;
        Ok((Response::MapPart, Some(bytes)))
    }

    fn part_of(&self, bytes: &Bytes, offset: u64) -> Bytes {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        bytes.slice(from..bytes.len().min(from.saturating_add(self.part_bytes)))
    }

    /// The map as it is, with all that the monitors know.
    fn now(&mut self, now: &Arc<ClusterMap>, remember: bool) -> Kept {
        let id = MapId { boot: self.boot, version: now.version, full: true };
        if remember && self.find(id).is_none() {
            keep(&mut self.fresh, FRESH_KEPT, (id, now.clone()));
        }
        (id, now.clone())
    }

    /// The map that everybody is sent who has an older layout.
    fn of_layout(&mut self, now: &Arc<ClusterMap>) -> Kept {
        if let Some(kept) = self.layouts.iter().rev().find(|(_, map)| map.layout == now.layout) {
            return kept.clone();
        }
        let id = MapId { boot: self.boot, version: now.version, full: false };
        let kept = (id, Arc::new(now.without_positions()));
        keep(&mut self.layouts, LAYOUTS_KEPT, kept.clone());
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::map::{Command, MapDelta};
    use trefoil_core::{Incarnation, NodeId};

    fn cluster() -> ClusterMap {
        let mut map = ClusterMap::new();
        let (cluster_id, name) = ([5; 16], "test".to_owned());
        map.apply(&Command::Init { cluster_id, name }).unwrap();
        for n in 0..3 {
            map.apply(&Command::RegisterNode {
                id: None,
                incarnation: Incarnation(n + 1),
                address: ([127, 0, 0, 1], 1).into(),
                host: format!("host{n}"),
                class: None,
                size: 1 << 40,
                now: 0,
            })
            .unwrap();
        }
        map
    }

    fn flip(map: &mut ClusterMap) {
        let up = !map.nodes[&NodeId(1)].up;
        map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(1), up)], now: 9 }).unwrap();
    }

    fn report(map: &mut ClusterMap, position: u64) {
        map.apply(&Command::ReportPositions { positions: vec![(NodeId(1), position)] }).unwrap();
    }

    /// An asker that keeps what it is sent. True if it was sent a difference.
    fn ask(history: &mut History, now: &ClusterMap, have: u64, asker: &mut Option<Kept>) -> bool {
        let base = asker.as_ref().map_or(MapId::default(), |it| it.0);
        let (response, payload) = history.answer(&Arc::new(now.clone()), have, base, true).unwrap();
        match response {
            Response::MapDelta { layout, id } => {
                let delta: MapDelta = postcard::from_bytes(&payload.unwrap()[1..]).unwrap();
                let (_, map) = asker.take().unwrap();
                let mut map = ClusterMap::clone(&map);
                map.apply_delta(&delta).unwrap();
                assert_eq!(map.layout, layout);
                *asker = Some((id, Arc::new(map)));
                true
            }
            Response::Map { layout, id, bytes } => {
                let payload = payload.unwrap();
                assert_eq!(payload.len() as u64, bytes);
                let map: ClusterMap = postcard::from_bytes(&payload[1..]).unwrap();
                assert_eq!(map.layout, layout);
                *asker = Some((id, Arc::new(map)));
                false
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_has_a_map_is_sent_the_difference() {
        let (mut history, mut map) = (History::new(1), cluster());
        report(&mut map, 5);
        let mut asker = None;
        assert!(!ask(&mut history, &map, 0, &mut asker));
        assert_eq!(*asker.as_ref().unwrap().1, map);
        for n in 0..10 {
            let have = map.layout;
            flip(&mut map);
            report(&mut map, 10 + n);
            assert!(ask(&mut history, &map, have, &mut asker));
            assert_eq!(*asker.as_ref().unwrap().1, map.without_positions());
            // Others who ask later are sent the same, whatever has changed inside.
            let sent = asker.as_ref().unwrap().0;
            report(&mut map, 1000 + n);
            let mut late = None;
            assert!(!ask(&mut history, &map, have, &mut late));
            assert_eq!(late.unwrap().0, sent);
        }
        assert!(ask(&mut history, &map, 0, &mut asker), "what is there now, as a difference");
        assert_eq!(*asker.unwrap().1, map);
    }

    #[test]
    fn whoever_is_ahead_is_not_sent_back() {
        let (mut history, mut map) = (History::new(1), cluster());
        let mut other = None;
        ask(&mut history, &map, 1, &mut other);
        report(&mut map, 5);
        let mut asker = None;
        ask(&mut history, &map, 0, &mut asker);
        assert!(ask(&mut history, &map, 1, &mut asker));
        assert_eq!(*asker.unwrap().1, map);
    }

    #[test]
    fn what_is_kept_is_bounded_and_who_was_away_gets_the_whole_map() {
        let (mut history, mut map) = (History::new(1), cluster());
        let (mut sleeper, mut asker) = (None, None);
        ask(&mut history, &map, 0, &mut sleeper);
        asker.clone_from(&sleeper);
        for n in 0..3 * LAYOUTS_KEPT as u64 {
            let have = map.layout;
            flip(&mut map);
            report(&mut map, n + 1);
            assert!(ask(&mut history, &map, have, &mut asker));
            ask(&mut history, &map, 0, &mut None);
        }
        assert!(history.layouts.len() <= LAYOUTS_KEPT && history.fresh.len() <= FRESH_KEPT);
        assert!(history.deltas.len() <= DELTAS_KEPT && history.wholes.len() <= WHOLES_KEPT);
        assert!(!ask(&mut history, &map, 1, &mut sleeper));
        assert_eq!(*sleeper.unwrap().1, map.without_positions());
    }

    #[test]
    fn another_process_does_not_know_the_map() {
        let (mut history, mut map) = (History::new(1), cluster());
        let mut asker = None;
        ask(&mut history, &map, 0, &mut asker);
        let mut restarted = History::new(2);
        ask(&mut restarted, &map, 0, &mut None);
        flip(&mut map);
        assert!(!ask(&mut restarted, &map, 1, &mut asker));
    }

    #[test]
    fn a_large_map_comes_in_parts() {
        let (mut history, map) = (History::new(1), cluster());
        let id = MapId { boot: 1, version: 7, full: false };
        let all: Vec<u8> = (0..2 * MAP_PART_BYTES + 10).map(|n| n as u8).collect();
        history.wholes.push_back((id, all.clone().into()));
        let mut read = Vec::new();
        while let Ok((Response::MapPart, Some(part))) = history.part(id, read.len() as u64) {
            read.extend_from_slice(&part);
        }
        assert_eq!(read, all);
        assert_eq!(history.part(MapId { version: 8, ..id }, 0), Err(RpcError::MapMoved));
        assert_eq!(history.part(id, u64::MAX), Err(RpcError::MapMoved));
        ask(&mut history, &map, 0, &mut None);
    }
}
