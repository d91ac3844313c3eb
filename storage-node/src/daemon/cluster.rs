//! The node and its monitors: who am I, where is everybody, I am alive.
//!
//! Nothing here stands in the path of a read or write. A node that has been registered once starts and
//! serves without monitors, on the last map that it has seen.

use super::connections::Daemon;
use super::identity::{Identity, StateDir};
use super::peers::PeerAddress;
use super::storage::Storage;
use crate::device::latency::DeviceStats;
use crate::store::Store;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use trefoil_core::crush::pg_ancestors;
use trefoil_core::limits::CALL_FRESH;
use trefoil_core::map::{ClusterMap, LayoutReport, MapError};
use trefoil_core::node::{Input, Node, Ticket};
use trefoil_core::placement::{PgConfig, PoolPgs};
use trefoil_core::{Epoch, GroupId, Incarnation, NodeId, PgId, VolumeId};
use trefoil_monitor::life::Life;
use trefoil_monitor::rpc::{
    DIFFERING_MAX, Daemon as DaemonName, DeviceHealth, Heartbeat, LostOrder, RpcError,
};
use trefoil_monitor::{CallError, MonitorClient};

/// Time between heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// A heartbeat that takes longer is given up; the next one is as good.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest wait for a new map in one question.
const MAP_WAIT: Duration = Duration::from_secs(20);
/// The pause after a question that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest wait for something that the monitors want to know.
const WORK_WAIT: Duration = Duration::from_secs(20);
/// The pause before a death is told again that the monitors have not taken note of.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// A map with more placement groups is not written by the thread that serves I/O.
const KEEP_AT_ONCE_PGS: usize = 16 << 10;

/// The placement groups whose configuration is another one in `new`, as far as the node has to know: it
/// takes part in them, did so in the old map, or has something of them (`holds`). There may be a million
/// others.
pub fn changed_pgs(
    old: Option<&ClusterMap>,
    new: &ClusterMap,
    node: NodeId,
    holds: impl Fn(PgId) -> bool,
) -> Vec<(PgId, PgConfig)> {
    let known = |id: &PgId| old.and_then(|old| old.pgs.get(id));
    let changed = new.pgs.changed(old.map(|old| &old.pgs)).filter(|(id, pg)| {
        let before = known(id);
        before.is_none_or(|before| before.epoch < pg.epoch)
            && (pg.takes_part(node) || before.is_some_and(|it| it.takes_part(node)) || holds(*id))
    });
    changed.map(|(id, pg)| (id, pg.config())).collect()
}

/// What the node knows of where placement groups live: what it has answered under, and what it has heard.
fn layout_report(node: &Node<Bytes>) -> LayoutReport {
    let state = node.state();
    let lost = state.amnesia || node.has_lost();
    let known: BTreeSet<PgId> = state.pgs.keys().chain(node.configs().keys()).copied().collect();
    let pgs = known.iter().copied().map(|pg| {
        let epoch = state.pgs.get(&pg).map_or(Epoch(0), |it| it.epoch);
        (pg, epoch, node.configs().get(&pg).cloned())
    });
    // The last one of each pool, too: a map that does not have it is from before a split.
    let last = node.pools().filter_map(|(pool, pgs)| Some(PgId { pool, pg: pgs.now.checked_sub(1)? }));
    let last = last.filter(|pg| !known.contains(pg)).map(|pg| (pg, Epoch(0), None));
    LayoutReport { lost, pgs: pgs.chain(last).collect() }
}

/// What the monitors are told of the device.
fn device_health(stats: &DeviceStats) -> DeviceHealth {
    DeviceHealth {
        reads: stats.reads.recent,
        read_us: stats.reads.mean_us,
        read_max_us: stats.reads.max_us,
        writes: stats.writes.recent,
        write_us: stats.writes.mean_us,
        write_max_us: stats.writes.max_us,
        oldest_us: stats.oldest_in_flight_us,
        errors: stats.reads.errors + stats.writes.errors,
    }
}

/// What the node says of itself when it introduces itself.
#[derive(Clone, Debug)]
pub struct Registration {
    pub address: SocketAddr,
    pub host: String,
    pub class: Option<String>,
    pub size: u64,
}

/// What ties a running node to its monitors.
pub struct Membership {
    pub client: MonitorClient,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub state: StateDir,
    /// What the node says of itself when it introduces itself.
    pub registration: Registration,
    /// Where the log ended when this process started: to be compared with what the monitors remember
    /// (N8). None once that has been done.
    pub start_position: Cell<Option<u64>>,
    /// The record that says that state is lost, while it is not known to be durable.
    pub lost_ticket: Cell<Option<Ticket>>,
    /// What `lost_ticket` is for, where the monitors have said that state is lost (5.9), not the start.
    pub lost_order: Cell<Option<LostOrder>>,
    /// The last such order whose record is durable. Of this process: one that was started again is told anew where
    /// the monitors have not heard, and marks its state once more, which does no harm.
    pub lost_noted: Cell<Option<LostOrder>>,
    /// State was lost, and no heartbeat that says so has been answered. A leader that is there settles the groups
    /// within milliseconds, long before the next heartbeat: without this nobody would ever be told of the loss.
    pub lost_untold: Cell<bool>,
    /// The mark that this process runs.
    pub life: RefCell<Option<Life>>,
    /// Seconds since the light and the deep scrub that were longest ago.
    pub scrub_ages: Cell<(Option<u64>, Option<u64>)>,
    /// The last map that the machine was given.
    pub map: RefCell<Option<ClusterMap>>,
}

impl Membership {
    /// Gives the machine a map.
    pub fn adopt(&self, daemon: &Rc<Daemon<Store>>, old: Option<&ClusterMap>, map: &ClusterMap) {
        let book = map
            .nodes
            .iter()
            .map(|(id, node)| (*id, PeerAddress { address: node.address, incarnation: node.incarnation }));
        let book = book.collect();
        let mut pgs = Vec::new();
        if map.pgs.changed(old.map(|old| &old.pgs)).next().is_some() {
            let held: BTreeSet<PgId> = daemon.look(|engine| {
                let state = engine.node().state();
                state.groups.keys().map(|group| group.pg).chain(state.pgs.keys().copied()).collect()
            });
            // What is held may be of a placement group that others split off from since.
            let holds = |pg: PgId| {
                let mut all = std::iter::once(pg.pg).chain(pg_ancestors(pg.pg));
                all.any(|it| held.contains(&PgId { pg: it, ..pg }))
            };
            pgs = changed_pgs(old, map, self.node, holds);
        }
        let pools = map.pools.iter();
        let pools = pools.map(|(id, pool)| (*id, PoolPgs { first: pool.pg_num_first, now: pool.pg_num }));
        let pools = pools.collect();
        daemon.batch(|engine| {
            engine.peers().set_addresses(book);
            engine.feed(Input::Pools(pools));
            engine.feed(Input::Config(pgs));
        });
        // Its large parts are shared.
        *self.map.borrow_mut() = Some(map.clone());
        self.delete_removed(daemon, map);
    }

    /// Deletes what this node has of volumes that the map does not have any more. Also between maps: a front
    /// end that has not heard yet may have opened a group again.
    fn delete_removed(&self, daemon: &Rc<Daemon<Store>>, map: &ClusterMap) {
        let gone: BTreeSet<VolumeId> = daemon.look(|engine| {
            let state = engine.node().state();
            let known = state.groups.keys().map(|group| group.volume).chain(state.fences.keys().copied());
            known.filter(|volume| map.is_deleted(*volume)).collect()
        });
        if !gone.is_empty() {
            tracing::info!(?gone, "volumes were removed: deleting what this node has of them");
            daemon.batch(|engine| engine.feed(Input::VolumesDeleted(gone.into_iter().collect())));
        }
    }

    /// Keeps the map. Writing the largest takes a twentieth of a second, and all nodes get a map at the same
    /// time: then it is another thread's work, so that no volume waits on all of its copies.
    async fn keep_map(&self, map: &Arc<ClusterMap>) {
        if map.restored.unchecked {
            return; // the one before may know more
        }
        if map.pgs.len() <= KEEP_AT_ONCE_PGS {
            return self.state.keep_map(map);
        }
        let (state, map) = (self.state.clone(), map.clone());
        if let Err(error) = tokio::task::spawn_blocking(move || state.keep_map(&map)).await {
            tracing::warn!(%error, "the map was not kept");
        }
    }

    /// Follows the map, for ever. `seen`: what the machine has.
    pub async fn follow_map(self: Rc<Self>, daemon: Rc<Daemon<Store>>, seen: Option<Arc<ClusterMap>>) {
        let mut seen = seen;
        loop {
            let have = seen.as_ref().map_or(0, |map| map.layout);
            match self.client.wait_map(have, MAP_WAIT).await {
                Ok(Some(map)) => {
                    self.adopt(&daemon, seen.as_deref(), &map);
                    self.keep_map(&map).await;
                    seen = Some(map);
                }
                Ok(None) => {
                    if let Some(map) = &seen {
                        self.delete_removed(&daemon, map);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no news of the map");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Some group here has lost its votes, and may get them back: one that no leader can ever settle would keep the
    /// node lost for ever. Looks at all groups while there is one that has.
    pub fn has_lost(&self, node: &Node<Bytes>) -> bool {
        let map = self.map.borrow();
        let may_be_led = |id: &GroupId| map.as_ref().is_none_or(|map| map.may_be_led(id.volume, id.pg));
        node.has_lost() && node.state().groups.iter().any(|(id, group)| group.lost && may_be_led(id))
    }

    /// What the node says of itself.
    pub fn heartbeat(&self, daemon: &Rc<Daemon<Store>>) -> Heartbeat {
        daemon.change(|engine| {
            let differing = engine.differing(DIFFERING_MAX);
            let callers = engine.callers(CALL_FRESH);
            let (counters, machine) = (engine.counters(), engine.node().counters());
            let behind = engine.node().behind();
            let stats = engine.store().stats();
            let device = device_health(&engine.store().device());
            Heartbeat {
                node: self.node,
                incarnation: self.incarnation,
                // Before the check, what was found: the answer must not rest on what this start has written.
                position: self.start_position.get().unwrap_or(engine.store().log_position()),
                lost: self.has_lost(engine.node()) || self.lost_untold.get(),
                bytes_total: stats.space.total.saturating_sub(stats.space.reserve),
                bytes_used: stats.space.used,
                // What leaders are told: from here on clients get "no space".
                full: engine.store().nearly_full(),
                bad_blocks: stats.bad_now as u64 + counters.lost_blocks,
                checksum_errors: stats.bad_blocks,
                behind,
                reads: counters.reads,
                writes: counters.writes,
                read_bytes: counters.read_bytes,
                write_bytes: counters.write_bytes,
                recovery_bytes: counters.peer_bytes_received,
                repairs: machine.repairs_done,
                device,
                differing,
                lost_noted: self.lost_noted.get(),
                callers: callers.leaders,
                callers_more: callers.more,
            }
        })
    }

    /// N8: the monitors remember a later position than this store has come back with: what was in between
    /// is lost, and this node must not vote as before.
    pub fn check_position(&self, daemon: &Rc<Daemon<Store>>, floor: u64, map: &ClusterMap) {
        let Some(start) = self.start_position.get() else { return };
        if floor > start {
            tracing::error!(
                found = start,
                reported = floor,
                "the log ends before a position that this node had reported as durable: state is lost; its \
                 copies have no vote until they are repaired. Was the device replaced by an older copy of itself?"
            );
            self.state_lost(daemon, map);
        } else {
            self.checked(daemon.look(|engine| engine.store().log_position()));
        }
    }

    /// True if the monitors order what this process has not taken note of, nor is about to.
    pub fn is_new_order(&self, order: Option<LostOrder>) -> bool {
        // One at a time: an order stays until it has been noted.
        order.is_some() && order != self.lost_noted.get() && self.lost_ticket.get().is_none()
    }

    /// 5.9: a leader has found that this node has less than it had acknowledged to it. The start did not find that
    /// out: this node must not vote as before from now on.
    pub fn lose_by_order(&self, daemon: &Rc<Daemon<Store>>, order: LostOrder, map: &ClusterMap) {
        let (volume, generation) = order;
        tracing::error!(
            %volume, %generation,
            "a leader has found that this node lost writes which it had reported as durable: state is lost; its \
             copies have no vote until they are repaired. Was the device replaced by an older copy of itself, or \
             does it have a volatile cache?"
        );
        self.state_lost(daemon, map);
        self.lost_order.set(Some(order));
    }

    /// What the monitors remember has been taken into account, for good. The log is durable up to
    /// `position`.
    fn checked(&self, position: u64) {
        self.start_position.set(None);
        self.lost_ticket.set(None);
        if let Some(order) = self.lost_order.take() {
            self.lost_noted.set(Some(order));
        }
        let (incarnation, node) = (self.incarnation, self.node);
        let position = Some(position);
        self.state.keep_identity(Identity { incarnation, node, unchecked: None, position });
    }

    /// The node stops cleanly, with its log durable up to `position`. Nothing is noted while something is
    /// still to be found out about how it started.
    pub fn stopped(&self, position: u64) {
        if self.start_position.get().is_none() && self.lost_ticket.get().is_none() {
            self.checked(position);
        }
    }

    /// Leaves the mark that this process runs. The life before, if it ended without a stop.
    pub fn begin_life(&self) -> Option<u64> {
        match Life::begin(self.state.path()) {
            Ok(life) => {
                let died = life.died;
                *self.life.borrow_mut() = Some(life);
                died
            }
            Err(error) => {
                tracing::warn!(%error, "no mark in the state_dir: it will not be known how this node ends");
                None
            }
        }
    }

    /// The process ends because it was told to.
    pub fn end_life(&self) {
        if let Some(life) = self.life.take() {
            life.end();
        }
    }

    /// Tells the monitors, until they have taken note, that a life of this node ended without a stop.
    pub async fn tell_death(self: Rc<Self>, died: u64) {
        tracing::warn!(node = %self.node, "this node had ended without having been stopped");
        while let Err(error) = self.client.died(DaemonName::Node(self.node), died).await {
            tracing::debug!(%error, "nobody has taken note yet");
            sleep(TELL_AGAIN).await;
        }
    }

    /// Tells the machine that state is lost.
    pub fn state_lost(&self, daemon: &Rc<Daemon<Store>>, map: &ClusterMap) {
        let fences = map.generations().collect();
        daemon.batch(|engine| {
            engine.feed(Input::StateLost { fences });
            engine.close_leaders("state was lost: open the groups again");
        });
        self.lost_untold.set(true);
        self.start_position.set(None);
        // Forgotten by a crash before it is durable, it has to be found again by the next start.
        self.lost_ticket.set(Some(daemon.look(|engine| engine.tickets().0)));
    }

    /// Asks the monitors what they want to know of placement groups that move (M3), for ever.
    pub async fn lists(self: Rc<Self>, daemon: Rc<Daemon<Store>>) {
        let mut id = 0;
        loop {
            // A node that does not know yet whether its log is all there (N8) must not say what it has: a
            // group that it has forgotten would not be named.
            if self.start_position.get().is_some() {
                sleep(PAUSE).await;
                continue;
            }
            match self.client.node_work(self.node, self.incarnation, WORK_WAIT).await {
                Ok((lists, layout)) => {
                    daemon.batch(|engine| {
                        for request in lists {
                            id += 1;
                            engine.feed(Input::List { id, request });
                        }
                    });
                    if layout {
                        let report = daemon.look(|engine| layout_report(engine.node()));
                        if let Err(error) = self.client.layout(self.node, self.incarnation, report).await {
                            tracing::debug!(%error, "the monitors have not heard where placement groups live");
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the monitors do not say what they want to know");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Tells the monitors, for ever. An answer that does not reach them is asked for again.
    pub async fn tell_lists(self: Rc<Self>, daemon: Rc<Daemon<Store>>) {
        loop {
            for list in daemon.listed().await {
                let pg = list.pg;
                if let Err(error) = self.client.listed(self.node, self.incarnation, list).await {
                    tracing::debug!(%pg, %error, "the monitors have not heard what this node has");
                }
            }
        }
    }

    /// Heartbeats, for ever.
    pub async fn heartbeats(self: Rc<Self>, daemon: Rc<Daemon<Store>>) {
        let mut beats = interval(HEARTBEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            beats.tick().await;
            let durable = daemon.look(|engine| engine.tickets().1);
            if self.lost_ticket.get().is_some_and(|ticket| ticket <= durable) {
                self.checked(daemon.look(|engine| engine.store().log_position()));
            }
            let beat = self.heartbeat(&daemon);
            let says_lost = beat.lost;
            match timeout(HEARTBEAT_TIMEOUT, self.client.heartbeat(beat)).await {
                Ok(Ok(alive)) => {
                    // Answered when the map has it. What this answer orders is for the next one to say.
                    if says_lost {
                        self.lost_untold.set(false);
                    }
                    if std::mem::take(&mut told) {
                        tracing::info!("the monitors answer again");
                    }
                    let order = alive.lost_order.filter(|_| self.is_new_order(alive.lost_order));
                    // Or this node has started without monitors; now they can be asked.
                    if order.is_some() || self.start_position.get().is_some() {
                        // Where there is no answer, the next heartbeat brings the same again.
                        if let Ok(Some(map)) = self.client.get_map(0).await {
                            // First: with lost state goes what the node knew of epochs.
                            self.adopt(&daemon, None, &map);
                            match order {
                                // Whatever the log's end says.
                                Some(order) => self.lose_by_order(&daemon, order, &map),
                                None => self.check_position(&daemon, alive.position_floor, &map),
                            }
                        }
                    }
                }
                // The monitors were restored from a backup that was taken before this node was made.
                Ok(Err(CallError::Answered(RpcError::Refused(MapError::Missing { .. })))) => {
                    let Registration { address, host, class, size } = self.registration.clone();
                    let (node, incarnation) = (Some(self.node), self.incarnation);
                    match self.client.register_node(node, incarnation, address, host, class, size).await {
                        Ok(node) => {
                            tracing::warn!(%node, "the monitors had forgotten this node: introduced again")
                        }
                        Err(error) => tracing::warn!(%error, "the monitors do not know this node"),
                    }
                }
                Ok(Err(CallError::Answered(RpcError::Refused(error @ MapError::Removed { .. }))))
                    if !std::mem::replace(&mut told, true) =>
                {
                    tracing::error!(%error, "this node is one of the cluster no more; it holds nothing: stop it");
                }
                answer if !std::mem::replace(&mut told, true) => {
                    let why = answer.map_or_else(|_| "no answer".to_owned(), |answer| format!("{answer:?}"));
                    tracing::warn!(why, "the monitors do not answer; serving goes on");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::map::{Ack, Command, FailureDomain};
    use trefoil_core::{Epoch, PoolId};

    #[test]
    fn a_node_hears_of_the_placement_groups_that_concern_it() {
        let mut map = ClusterMap::new();
        let apply = |map: &mut ClusterMap, command: Command| map.apply(&command).unwrap();
        apply(&mut map, Command::Init { cluster_id: [5; 16], name: "test".to_owned() });
        for n in 0..20 {
            let register = Command::RegisterNode {
                id: None,
                incarnation: Incarnation(n + 1),
                address: ([127, 0, 0, 1], 1).into(),
                host: format!("host{n}"),
                class: None,
                size: 1 << 40,
                now: 0,
            };
            apply(&mut map, register);
        }
        let (name, domain) = ("p".to_owned(), FailureDomain::Host);
        apply(&mut map, Command::CreatePool { name, size: 3, pg_num: 512, domain, ack: Ack::Majority });
        let me = NodeId(3);
        let mine: Vec<PgId> = map.pgs.iter().filter(|(_, pg)| pg.takes_part(me)).map(|(id, _)| id).collect();
        let others: Vec<PgId> =
            map.pgs.iter().filter(|(_, pg)| !pg.takes_part(me)).map(|(id, _)| id).collect();
        assert!(!mine.is_empty() && others.len() > 300);
        let heard = |old: Option<&ClusterMap>, new: &ClusterMap, holds: Option<PgId>| -> Vec<PgId> {
            changed_pgs(old, new, me, |id| Some(id) == holds).into_iter().map(|(id, _)| id).collect()
        };
        assert_eq!(heard(None, &map, None), mine);
        assert_eq!(heard(Some(&map), &map, None), vec![]);
        let stranger = PgId { pool: PoolId(1), pg: others[7].pg };
        assert!(heard(None, &map, Some(stranger)).contains(&stranger), "it has something of it");

        // It leaves one, joins another; a third one, which is not its own, moves.
        let mut newer = map.clone();
        let (leaves, joins, moves) = (mine[0], others[0], others[1]);
        for (id, member) in [(leaves, NodeId(19)), (joins, me), (moves, NodeId(19))] {
            let mut config = newer.pgs.get(&id).unwrap().config();
            config.epoch = Epoch(2);
            config.new = vec![member, NodeId(0), NodeId(1)];
            config.old.clone_from(&config.new);
            assert!(newer.pgs.set(id, &config));
        }
        let mut expected = vec![leaves, joins];
        expected.sort_unstable();
        assert_eq!(heard(Some(&map), &newer, None), expected);
    }
}
