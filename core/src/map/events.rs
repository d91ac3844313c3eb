//! What has happened to the cluster, for people: a log of bounded length, part of the map.
//!
//! Every change of the map that somebody may ask about at 3 a.m. leaves an event: nodes that came and went, data
//! that began to move, volumes that were made and removed. The log is agreed on like all of the map, so each monitor
//! shows the same, and a change of leader loses nothing. Nothing is decided by it.

use super::admin::PoolChange;
use super::mutes::MuteEnd;
use super::restore::RESTORED_HOLDER;
use super::{ClusterMap, Command, HolderKind, MapError, Out, Reply};
use crate::ids::*;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Events that are kept; the oldest go.
pub const EVENTS_MAX: usize = 4096;
/// Events of one command: of one that concerns more nodes, the first are named.
const PER_COMMAND_MAX: usize = 256;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Ascending by one, from 1.
    pub seq: u64,
    /// When: milliseconds since 1970, by the clock of the monitor that led then.
    pub at: u64,
    /// What.
    pub what: Happened,
}

/// Kinds of events. Append at the end only: they are in files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// The cluster was made.
    ClusterMade {
        /// Its name.
        name: String,
    },
    /// A node has introduced itself for the first time.
    NodeAdded {
        /// Its id.
        node: NodeId,
        /// Its host.
        host: String,
    },
    /// A node was not heard of for too long.
    NodeDown {
        /// Which one.
        node: NodeId,
        /// For how long it had been up (ms).
        after: u64,
    },
    /// A node is back.
    NodeUp {
        /// Which one.
        node: NodeId,
        /// For how long it had been down (ms).
        after: u64,
    },
    /// A node has lost acknowledged state (N8).
    NodeLost {
        /// Which one.
        node: NodeId,
    },
    /// A node that had lost state is healed.
    NodeHealed {
        /// Which one.
        node: NodeId,
    },
    /// A node's data is to live elsewhere.
    NodeOut {
        /// Which one.
        node: NodeId,
        /// Who said so.
        by: Out,
    },
    /// A node gets data again.
    NodeIn {
        /// Which one.
        node: NodeId,
    },
    /// A pool was made.
    PoolMade {
        /// Its name.
        name: String,
    },
    /// A volume was made.
    VolumeMade {
        /// Its name.
        name: String,
    },
    /// A volume was removed.
    VolumeRemoved {
        /// Its name.
        name: String,
    },
    /// Another CRUSH map is in use.
    CrushChanged,
    /// A daemon had ended without having been stopped.
    DaemonDied {
        /// Which one.
        daemon: String,
    },
    /// A health check is not to be heard of.
    Muted {
        /// Its code.
        code: String,
        /// For how long (ms).
        time: u64,
        /// What it counted.
        count: u64,
        /// In somebody's words.
        because: String,
    },
    /// A health check is heard of again.
    MuteEnded {
        /// Its code.
        code: String,
        /// Why.
        why: MuteEnd,
    },
    /// A node's data is to live elsewhere for good.
    NodeDrained {
        /// Which one.
        node: NodeId,
    },
    /// That was undone.
    DrainUndone {
        /// Which one.
        node: NodeId,
    },
    /// A node is one of the cluster no more.
    NodeRemoved {
        /// Which one.
        node: NodeId,
    },
    /// A setting of a pool was changed.
    PoolChanged {
        /// Its name.
        name: String,
        /// Which, and to what.
        change: PoolChange,
    },
    /// The placement groups of a pool were split.
    PoolSplit {
        /// Its name.
        name: String,
        /// How many there were.
        from: u32,
        /// How many there are.
        to: u32,
    },
}

impl Happened {
    /// True for what somebody should look at.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Happened::NodeDown { .. }
                | Happened::NodeLost { .. }
                | Happened::NodeOut { .. }
                | Happened::DaemonDied { .. }
        )
    }
}

/// A time in ms as people say it.
struct For(u64);

impl fmt::Display for For {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 / 1000 {
            s if s < 120 => write!(f, "{s} s"),
            s if s < 7200 => write!(f, "{} min", s / 60),
            s if s < 172_800 => write!(f, "{} h", s / 3600),
            s => write!(f, "{} d", s / 86_400),
        }
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Happened::ClusterMade { name } => write!(f, "cluster {name} made"),
            Happened::NodeAdded { node, host } => write!(f, "{node} added, on host {host}"),
            Happened::NodeDown { node, after } => write!(f, "{node} down, after {} up", For(*after)),
            Happened::NodeUp { node, after } => write!(f, "{node} up, after {} down", For(*after)),
            Happened::NodeLost { node } => write!(f, "{node} has lost acknowledged data"),
            Happened::NodeHealed { node } => write!(f, "{node} healed"),
            Happened::NodeOut { node, by: Out::Automatic } => {
                write!(f, "{node} out, because it is down for long: its data is re-homed")
            }
            Happened::NodeOut { node, by: Out::Administrator } => {
                write!(f, "{node} out, on command: its data is re-homed")
            }
            Happened::NodeIn { node } => write!(f, "{node} in"),
            Happened::PoolMade { name } => write!(f, "pool {name} made"),
            Happened::VolumeMade { name } => write!(f, "volume {name} made"),
            Happened::VolumeRemoved { name } => write!(f, "volume {name} removed"),
            Happened::CrushChanged => write!(f, "CRUSH map changed"),
            Happened::DaemonDied { daemon } => write!(f, "{daemon} had ended without having been stopped"),
            Happened::Muted { code, time, count, because } => {
                write!(f, "{code} muted for {}, at {count}", For(*time))?;
                if because.is_empty() { Ok(()) } else { write!(f, ": {because}") }
            }
            Happened::MuteEnded { code, why } => write!(f, "{code} not muted any more: {why}"),
            Happened::NodeDrained { node } => {
                write!(f, "{node} to be drained: its data is to live elsewhere")
            }
            Happened::DrainUndone { node } => write!(f, "{node} not to be drained any more"),
            Happened::NodeRemoved { node } => write!(f, "{node} removed"),
            Happened::PoolChanged { name, change: PoolChange::Rule(rule) } => {
                write!(f, "pool {name}: rule {rule}")
            }
            Happened::PoolChanged { name, change: PoolChange::Copies(copies) } => {
                write!(f, "pool {name}: {copies} copies")
            }
            Happened::PoolChanged { name, change: PoolChange::Ack(ack) } => {
                write!(f, "pool {name}: writes are acknowledged by {ack}")
            }
            Happened::PoolSplit { name, from, to } => {
                write!(f, "pool {name} split: {to} placement groups of {from}")
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLog {
    /// Those that have been. The last event has this number.
    last: u64,
    kept: VecDeque<Event>,
}

impl EventLog {
    /// The number of the last event; 0: none yet.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Those after a number, oldest first, at most `max`.
    pub fn after(&self, seq: u64, max: usize) -> impl Iterator<Item = &Event> {
        let first = self.kept.front().map_or(0, |event| event.seq);
        let skip = seq.saturating_add(1).saturating_sub(first);
        self.kept.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(max)
    }

    fn push(&mut self, at: u64, what: Happened) {
        self.last += 1;
        if self.kept.len() >= EVENTS_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Event { seq: self.last, at, what });
    }
}

impl ClusterMap {
    /// As [`ClusterMap::apply`], and notes what has happened. `at`: milliseconds since 1970, of the proposal.
    ///
    /// Errors: the command is refused, and the map is as it was.
    pub fn apply_at(&mut self, command: &Command, at: u64) -> Result<Reply, MapError> {
        let before = Before::of(self, command);
        let version = self.version;
        let reply = self.apply(command)?;
        if self.version != version {
            let died: Vec<_> = before.front_ends_gone(self, &reply);
            let mut events = before.happened(self, command, at);
            for (name, boot) in died {
                let daemon = format!("front end {name}");
                if self.note_death(&daemon, boot, at) {
                    events.push(Happened::DaemonDied { daemon });
                }
            }
            if !events.is_empty() {
                let log = Arc::make_mut(&mut self.events);
                events.into_iter().for_each(|what| log.push(at, what));
            }
        }
        Ok(reply)
    }
}

/// What a command may change, as it was.
#[derive(Default)]
struct Before {
    nodes: Vec<(NodeId, Option<super::Node>)>,
    next_node: NodeId,
    volume: Option<String>,
    /// Front ends that held volumes which are granted to somebody now: volume, name, life.
    holders: Vec<(VolumeId, String, u64)>,
    deaths: super::deaths::DeathLog,
    mutes: super::mutes::Mutes,
}

impl Before {
    fn of(map: &ClusterMap, command: &Command) -> Before {
        let (deaths, mutes) = (map.deaths.clone(), map.mutes.clone());
        let mut before = Before { next_node: map.next_node, deaths, mutes, ..Before::default() };
        let ids: Vec<NodeId> = match command {
            Command::SetNodesUp { nodes, .. } => nodes.iter().map(|(id, _)| *id).collect(),
            Command::SetNodesOut { nodes } => nodes.iter().map(|(id, _)| *id).collect(),
            Command::SetNodeLost { node, .. } => vec![*node],
            Command::DrainNode { node, .. } => vec![*node],
            Command::GrantGenerations { grants, holder } => {
                // The same process, or one that nobody is (a restored map's), has not died.
                let left = |volume: &VolumeId| {
                    let old = map.volumes.get(volume)?.holder.as_ref()?;
                    let died =
                        old.kind == HolderKind::FrontEnd && !old.is(holder) && old.name != RESTORED_HOLDER;
                    died.then(|| (*volume, old.name.clone(), old.boot))
                };
                let left = grants.iter().filter_map(|grant| left(&grant.volume));
                before.holders = left.take(PER_COMMAND_MAX).collect();
                Vec::new()
            }
            Command::RemoveVolume { volume, .. } => {
                before.volume = map.volumes.get(volume).map(|it| it.name.clone());
                Vec::new()
            }
            _ => Vec::new(),
        };
        let nodes = ids.into_iter().take(PER_COMMAND_MAX);
        before.nodes =
            nodes.map(|id| (id, map.nodes.get(&id).map(|node| super::Node::clone(node)))).collect();
        before
    }

    /// The front ends whose volume has been granted to somebody else although they had not released it.
    fn front_ends_gone(&self, map: &ClusterMap, reply: &Reply) -> Vec<(String, u64)> {
        if !matches!(reply, Reply::Granted(_)) {
            return Vec::new();
        }
        let holder = |volume: VolumeId| map.volumes.get(&volume).and_then(|it| it.holder.as_ref());
        let gone =
            |(volume, _, boot): &&(VolumeId, String, u64)| holder(*volume).is_some_and(|it| it.boot != *boot);
        self.holders.iter().filter(gone).map(|(_, name, boot)| (name.clone(), *boot)).collect()
    }

    fn happened(self, map: &ClusterMap, command: &Command, at: u64) -> Vec<Happened> {
        let mut events = Vec::new();
        for (node, before) in self.nodes {
            let (Some(before), Some(now)) = (before, map.nodes.get(&node)) else { continue };
            let after = at.saturating_sub(before.since);
            match (before.up, now.up) {
                (true, false) => events.push(Happened::NodeDown { node, after }),
                (false, true) => events.push(Happened::NodeUp { node, after }),
                _ => {}
            }
            match (before.lost, now.lost) {
                (false, true) => events.push(Happened::NodeLost { node }),
                (true, false) => events.push(Happened::NodeHealed { node }),
                _ => {}
            }
            match (before.out, now.out) {
                (before, Some(by)) if before != Some(by) => events.push(Happened::NodeOut { node, by }),
                (Some(_), None) => events.push(Happened::NodeIn { node }),
                _ => {}
            }
            match (before.drained, now.drained) {
                (None, Some(_)) => events.push(Happened::NodeDrained { node }),
                (Some(_), None) => events.push(Happened::DrainUndone { node }),
                _ => {}
            }
        }
        match command {
            Command::Init { name, .. } => events.push(Happened::ClusterMade { name: name.clone() }),
            Command::RegisterNode { host, .. } if map.next_node != self.next_node => {
                events.push(Happened::NodeAdded { node: self.next_node, host: host.clone() });
            }
            Command::CreatePool { name, .. } => events.push(Happened::PoolMade { name: name.clone() }),
            Command::CreateVolume { name, .. } => events.push(Happened::VolumeMade { name: name.clone() }),
            Command::RemoveVolume { .. } => {
                events.extend(self.volume.map(|name| Happened::VolumeRemoved { name }));
            }
            Command::SetPgNum { pool, seen, pg_num } => {
                let name = map.pools.get(pool).map(|it| it.name.clone());
                events.extend(name.map(|name| Happened::PoolSplit { name, from: *seen, to: *pg_num }));
            }
            Command::SetCrush { .. } | Command::ReplaceCrush { .. } => events.push(Happened::CrushChanged),
            Command::Died { daemon, .. } if map.deaths != self.deaths => {
                events.push(Happened::DaemonDied { daemon: daemon.clone() });
            }
            Command::Mute { code, mute, now } => {
                let (time, code) = (mute.until.saturating_sub(*now), code.clone());
                events.push(Happened::Muted { code, time, count: mute.count, because: mute.because.clone() });
            }
            Command::Unmute { codes } => {
                let ended = codes.iter().filter(|(code, _)| self.mutes.0.contains_key(code));
                events.extend(ended.map(|(code, why)| Happened::MuteEnded { code: code.clone(), why: *why }));
            }
            Command::RemoveNode { node } => events.push(Happened::NodeRemoved { node: *node }),
            Command::SetPool { pool, change } => {
                events.push(Happened::PoolChanged { name: pool.clone(), change: *change });
            }
            _ => {}
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cluster, register, volume};
    use super::*;

    fn texts(map: &ClusterMap, after: u64) -> Vec<String> {
        map.events().after(after, 100).map(|event| event.what.to_string()).collect()
    }

    #[test]
    fn what_happens_is_noted_once_and_in_words() {
        let mut map = cluster(3);
        assert_eq!(map.events().last(), 0, "apply notes nothing");
        map.apply_at(&register(3), 1_000).unwrap();
        map.apply_at(&register(3), 2_000).unwrap();
        let up = |up, now| Command::SetNodesUp { nodes: vec![(NodeId(3), up)], now };
        map.apply_at(&up(false, 3_000), 3_000).unwrap();
        map.apply_at(&up(false, 4_000), 4_000).unwrap();
        let out = |out| Command::SetNodesOut { nodes: vec![(NodeId(3), out)] };
        map.apply_at(&out(Some(Out::Automatic)), 600_000).unwrap();
        map.apply_at(&up(true, 603_000), 603_000).unwrap();
        map.apply_at(&Command::SetNodeLost { node: NodeId(0), lost: true }, 604_000).unwrap();
        assert_eq!(
            texts(&map, 0),
            [
                "node.3 added, on host host3",
                "node.3 down, after 2 s up",
                "node.3 out, because it is down for long: its data is re-homed",
                "node.3 up, after 10 min down",
                "node.3 in",
                "node.0 has lost acknowledged data",
            ]
        );
        assert_eq!(texts(&map, 4), texts(&map, 0)[4..]);
        assert!(map.without_positions().events().last() == 0, "daemons are not sent them");

        let id = volume(&mut map, "disk");
        map.apply_at(&Command::RemoveVolume { volume: id, expired: None }, 1).unwrap();
        assert!(map.apply_at(&Command::RemoveVolume { volume: id, expired: None }, 1).is_err());
        assert_eq!(texts(&map, 6), ["volume disk removed"]);
    }

    #[test]
    fn the_log_is_bounded_and_its_numbers_go_on() {
        let mut map = cluster(3);
        for n in 0..EVENTS_MAX as u64 + 100 {
            let up = Command::SetNodesUp { nodes: vec![(NodeId(1), n % 2 == 1)], now: n };
            map.apply_at(&up, n).unwrap();
        }
        let log = map.events();
        assert_eq!((log.last(), log.kept.len()), (EVENTS_MAX as u64 + 100, EVENTS_MAX));
        assert_eq!(log.after(0, 1).next().map(|event| event.seq), Some(101), "the oldest that is there");
        assert_eq!(log.after(log.last() - 2, 10).count(), 2);
        assert_eq!(log.after(log.last(), 10).count(), 0);
        assert_eq!(log.after(u64::MAX, 10).count(), 0);
    }
}
