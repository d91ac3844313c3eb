//! The front end: [`Core`] and the tasks around it.
//!
//! | task | waits for |
//! |---|---|
//! | one per node | its connection, its frames |
//! | one per volume that is being attached | the monitors |
//! | renewals | every [`RENEW_INTERVAL`], one for all volumes |
//! | ticks | what the leaders ask for |
//! | flusher | batches that have queued something for nodes |
//! | map | a newer map |
//! | one per loss of a node ([`super::lost`]) | the monitors, and through them the node |
//! | healer | work from the monitors, every [`HEAL_INTERVAL`] |
//!
//! A task borrows the core for one batch and never over an await.
//!
//! A panic in one of them, or in a batch, whoever's, leaves a front end that is not whole: it is told
//! ([`FrontEnd::broken`]) and must not go on.

use super::cluster::{AttachError, Cluster, Granted};
use super::core::{Core, End, Notice, SessionKey};
use super::links::{Backoff, NodeAddress, RESET_PAUSE};
use super::lost::Loss;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use trefoil_core::leader::{Options, VolumeSpec};
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{ClusterMap, HolderKind};
use trefoil_core::{BLOCK_SIZE, Generation, NodeId, PoolId, VolumeId};
use trefoil_transport::{CloseReason, Connected, Expect, Hello, Poller, Role, connect};

/// Time between renewals of the leases: three tries in one lease.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// How often a volume that somebody else holds is asked for again.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// How often a volume is asked for while the monitors do not answer.
const UNREACHABLE_RETRY: Duration = Duration::from_millis(250);
/// After this front end has lost a volume to another one it does not drive that one out for so long.
/// Without it two clients of one disk would throw each other out in turn.
pub const HOLD_DOWN: Duration = Duration::from_secs(10);
/// A volume without clients for this long is released.
pub const IDLE_RELEASE: Duration = Duration::from_secs(10);
/// How often the monitors are asked for volumes to heal.
pub const HEAL_INTERVAL: Duration = Duration::from_secs(5);
/// Volumes that this process heals at once.
pub const HEALERS_MAX: usize = 2;
/// A healer that is not done by then (a node is away, say) gives its place to the next volume.
pub const HEAL_TIME_MAX: Duration = Duration::from_secs(120);
/// A healer that has had nothing to do for so long, and is not done (a node is away), gives its place away at
/// once: others may have something that can be done.
pub const HEAL_IDLE_MAX: Duration = Duration::from_secs(10);
/// Tries to give a generation back. After that its lease has to run out.
const RELEASE_TRIES: usize = 5;
/// After so many bytes from one node its clients are sent what they are owed before more is read: as long
/// as it is in the processor's cache, and while the node gets on with the next.
const SENT_ON_BYTES: usize = 256 << 10;
/// Longest sleep of the ticker, and the shortest.
const TICK_IDLE: Duration = Duration::from_millis(250);
const TICK_BUSY: Duration = Duration::from_millis(10);
const TICK_MIN: Duration = Duration::from_millis(1);

/// A session that heals.
#[derive(Copy, Clone, Debug)]
struct Healer {
    since: Instant,
    /// When it was last seen to have something to do.
    busy: Instant,
}

/// Tells the front end if it is dropped by a panic.
struct Whole(Rc<FrontEnd>);

/// The same for as long as a batch takes. One that is made on the way out of somebody else's panic, to tell that a
/// client is gone, has none of its own.
struct WholeBatch<'a> {
    front: &'a FrontEnd,
    others: bool,
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.0.look_at_panic();
    }
}

impl Drop for WholeBatch<'_> {
    fn drop(&mut self) {
        if !self.others {
            self.front.look_at_panic();
        }
    }
}

/// See the module.
pub struct FrontEnd {
    core: RefCell<Core>,
    cluster: Rc<dyn Cluster>,
    hello: Hello,
    /// Volumes that were lost to somebody else, and until when they are not taken back.
    held_down: RefCell<FxHashMap<VolumeId, Instant>>,
    /// Generations that nodes have promised to somebody (6.5).
    above: RefCell<FxHashMap<VolumeId, Generation>>,
    /// Sessions without clients, and since when.
    idle: RefCell<FxHashMap<SessionKey, Instant>>,
    /// Sessions of healers.
    healers: RefCell<FxHashMap<SessionKey, Healer>>,
    /// Losses that the monitors are being told of.
    pub(super) telling: RefCell<BTreeSet<Loss>>,
    /// Releases that are on their way to the monitors, and who waits for them.
    releasing: Cell<usize>,
    released: Notify,
    /// Wakes the ticker when operations begin.
    busy: Notify,
    ticker_sleeps: Cell<bool>,
    stopping: Cell<bool>,
    /// Something is queued for nodes.
    flush: Notify,
    /// There is a task that flushes.
    flusher: Cell<bool>,
    /// Of the thread that all of them share.
    poller: Poller,
    /// A task has panicked.
    broken: Cell<bool>,
    breaks: Notify,
    /// Held by a node's task while it receives, and, where that was much, until its clients have had their
    /// turn to send it on. Never while a node is waited for: a node that stops in the middle of an answer must
    /// not hold up the others.
    reading: Semaphore,
}

impl FrontEnd {
    /// Nothing runs yet; `busy_poll`: see [`Poller`]. Must be used within a `LocalSet`.
    pub fn new(cluster: Rc<dyn Cluster>, hello: Hello, busy_poll: Duration) -> Rc<FrontEnd> {
        let front = Rc::new(FrontEnd {
            core: RefCell::default(),
            cluster,
            hello,
            held_down: RefCell::default(),
            above: RefCell::default(),
            idle: RefCell::default(),
            healers: RefCell::default(),
            telling: RefCell::default(),
            releasing: Cell::new(0),
            released: Notify::new(),
            busy: Notify::new(),
            ticker_sleeps: Cell::new(false),
            stopping: Cell::new(false),
            flush: Notify::new(),
            flusher: Cell::new(false),
            poller: Poller::new(busy_poll),
            broken: Cell::new(false),
            breaks: Notify::new(),
            reading: Semaphore::new(1),
        });
        front.set_addresses(&front.cluster.map());
        front
    }

    fn look_at_panic(&self) {
        if std::thread::panicking() {
            self.broken.set(true);
            self.breaks.notify_waiters();
        }
    }

    /// The monitors.
    pub fn cluster(&self) -> &Rc<dyn Cluster> {
        &self.cluster
    }

    /// Looks at the core without giving it anything.
    pub fn look<R>(&self, at: impl FnOnce(&Core) -> R) -> R {
        at(&self.core.borrow())
    }

    /// Runs a task that the front end cannot do without.
    pub fn task(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let whole = Whole(self.clone());
        tokio::task::spawn_local(async move {
            let _whole = whole;
            task.await;
        });
    }

    /// Resolves when a task or a batch has panicked: the process has to be started again.
    pub async fn broken(&self) {
        loop {
            let breaks = self.breaks.notified();
            if self.broken.get() {
                return;
            }
            breaks.await;
        }
    }

    /// One batch: `inputs` gives the core something, then everything runs that can. Must not be called
    /// from within itself.
    pub fn batch<R>(self: &Rc<Self>, inputs: impl FnOnce(&mut Core) -> R) -> R {
        let _whole = WholeBatch { front: self, others: std::thread::panicking() };
        self.poller.begin();
        let mut notices = Vec::new();
        let (result, wanted, under_way, dirty) = {
            let mut core = self.core.borrow_mut();
            let result = inputs(&mut core);
            core.finish();
            core.take_notices(&mut notices);
            (result, core.links().take_wanted(), core.under_way(), core.links().is_dirty())
        };
        if dirty {
            self.flush_soon();
        }
        for node in wanted {
            self.task(self.clone().link(node));
        }
        for notice in notices {
            self.act(notice);
        }
        if self.ticker_sleeps.get() && self.core.borrow().is_busy() {
            self.ticker_sleeps.set(false);
            self.busy.notify_one();
        }
        self.poller.end(under_way);
        result
    }

    /// Keeps the thread awake while work comes at short intervals; for ever.
    pub async fn poll(self: Rc<Self>) {
        self.poller.run().await;
    }

    /// Nodes are written to when all that is ready now has had its batch: one write to each node for the
    /// requests of all clients that have come in the same turn. The task that does it is the last in the
    /// runtime's queue.
    fn flush_soon(self: &Rc<Self>) {
        if !self.flusher.replace(true) {
            let front = self.clone();
            self.task(async move {
                loop {
                    front.flush.notified().await;
                    front.core.borrow_mut().links().flush();
                }
            });
        }
        self.flush.notify_one();
    }

    fn act(self: &Rc<Self>, notice: Notice) {
        match notice {
            Notice::Wanted(key) => {
                self.task(self.clone().attach(key));
            }
            Notice::Attached(key) => tracing::info!(?key, "a volume is attached"),
            Notice::Ended(key, end) => self.ended(key, end),
            Notice::AllWhole(key) => {
                tracing::info!(?key, "healed: every copy is whole");
                tokio::task::spawn_local({
                    let front = self.clone();
                    async move { front.batch(|core| core.release(key)) }
                });
            }
            Notice::LostData { node, volume, generation } => self.tell_lost((volume, generation, node)),
            Notice::MapStale => self.cluster.refresh(),
        }
    }

    fn ended(self: &Rc<Self>, key: SessionKey, (volume, end): (VolumeId, End)) {
        self.idle.borrow_mut().remove(&key);
        let healer = self.healers.borrow_mut().remove(&key).is_some();
        match end {
            End::Released { generation, clean } => {
                tracing::info!(%volume, %generation, clean, "a volume is released");
                self.give_back(volume, generation, clean);
            }
            End::Deposed { by } => {
                if healer {
                    tracing::info!(%volume, "the healer has made way for another leader");
                    return;
                }
                tracing::warn!(%volume, %by, "another front end has taken the volume over");
                let mut above = self.above.borrow_mut();
                let known = above.entry(volume).or_default();
                *known = (*known).max(by);
                self.hold_down(volume);
            }
            End::Abandoned => {}
        }
    }

    fn hold_down(&self, volume: VolumeId) {
        let mut held_down = self.held_down.borrow_mut();
        let now = Instant::now();
        held_down.retain(|_, until| *until > now);
        held_down.insert(volume, now + HOLD_DOWN);
    }

    fn give_back(self: &Rc<Self>, volume: VolumeId, generation: Generation, clean: bool) {
        let front = self.clone();
        self.releasing.set(self.releasing.get() + 1);
        self.task(async move {
            for _ in 0..RELEASE_TRIES {
                match front.cluster.release(vec![(volume, generation, clean)]).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(%volume, %error, "could not give the volume back; trying again");
                        sleep(UNREACHABLE_RETRY).await;
                    }
                }
            }
            front.releasing.set(front.releasing.get() - 1);
            front.released.notify_waiters();
        });
    }

    /// What a leader has to know; none if the map does not have the volume (any more).
    pub fn spec(map: &ClusterMap, volume: VolumeId, generation: Generation) -> Option<VolumeSpec> {
        let it = map.volumes.get(&volume)?;
        Some(VolumeSpec {
            id: volume,
            generation,
            object_blocks: u32::try_from(it.object_size / BLOCK_SIZE as u64).ok()?,
            objects: it.objects(),
            pool: it.pool,
            pgs: map.pgs.pool(it.pool)?.clone(),
            pg_of: |volume, object, pg_num| trefoil_core::crush::object_pg(volume.0, object, pg_num),
            snap: it.snapshots.last().map_or(0, |snapshot| snapshot.id),
        })
    }

    /// Gets a generation for a session that a client waits for.
    async fn attach(self: Rc<Self>, key: SessionKey) {
        let Some(volume) = self.look(|core| core.volume(key)) else { return };
        let mut told = false;
        while self.look(|core| core.is_detached(key)) && !self.stopping.get() {
            if let Some(wait) = self.held_down_for(volume).await {
                sleep(wait).await;
                continue;
            }
            let above = self.above.borrow().get(&volume).copied().unwrap_or_default();
            match self.cluster.attach(volume, HolderKind::FrontEnd, above).await {
                Ok(granted) => return self.lead(key, volume, granted, false),
                Err(AttachError::Busy { holder, retry_after }) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(%volume, holder = holder.name, ?retry_after, "waiting for the volume's holder to let go");
                    }
                    sleep(retry_after.min(BUSY_RETRY)).await;
                }
                Err(AttachError::Unreachable(error)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%volume, %error, "cannot attach; requests wait");
                    }
                    sleep(UNREACHABLE_RETRY).await;
                }
                Err(error @ (AttachError::Missing | AttachError::Refused(_))) => {
                    tracing::warn!(%volume, %error, "cannot attach; its clients are disconnected");
                    self.batch(|core| core.release(key));
                    return;
                }
            }
        }
    }

    /// How long the volume must be left to whoever took it from here; none if it is free, or the time is
    /// over.
    async fn held_down_for(&self, volume: VolumeId) -> Option<Duration> {
        let until = self.held_down.borrow().get(&volume).copied()?;
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        match self.cluster.holder(volume).await {
            Ok(None) => None,
            Ok(Some(holder)) if holder.is(&self.cluster.me()) => None,
            _ => Some(left.min(UNREACHABLE_RETRY)),
        }
    }

    /// A generation has come for a session.
    fn lead(self: &Rc<Self>, key: SessionKey, volume: VolumeId, granted: Granted, healer: bool) {
        let map = self.cluster.map();
        let generation = granted.generation;
        let Some(spec) = Self::spec(&map, volume, generation) else {
            tracing::error!(%volume, "the map of this front end does not have the volume that was granted");
            self.give_back(volume, generation, false);
            self.cluster.refresh();
            self.batch(|core| core.release(key));
            return;
        };
        let io_timeout = map.volumes.get(&volume).and_then(|it| it.io_timeout);
        let io_timeout = io_timeout.map(|ms| ms.saturating_mul(1000));
        let ack = map.volumes.get(&volume).and_then(|it| map.pools.get(&it.pool)).map(|pool| pool.ack);
        let options = Options { healer, io_timeout, ack: ack.unwrap_or_default(), ..Options::default() };
        let led = self.batch(|core| core.lead(key, spec, options, granted.sent, granted.lease));
        if led {
            tracing::info!(%volume, %generation, healer, "leading a volume");
        } else {
            self.give_back(volume, generation, false);
        }
    }

    /// The client's side is open: if the volume is free, it is attached at once, so that the first
    /// request need not wait. A volume that somebody holds is not taken before a request comes.
    pub async fn attach_if_free(self: Rc<Self>, key: SessionKey) {
        let Some(volume) = self.look(|core| core.volume(key)) else { return };
        let free = match self.cluster.holder(volume).await {
            Ok(None) => true,
            Ok(Some(holder)) => holder.kind == HolderKind::Healer || holder.is(&self.cluster.me()),
            Err(_) => false,
        };
        if free {
            self.batch(|core| core.want(key));
        }
    }

    /// Makes a node's connection, reads from it, and makes it again, while the map has the node.
    async fn link(self: Rc<Self>, node: NodeId) {
        let mut backoff = Backoff::default();
        loop {
            // In a statement of its own: the borrow must end before the first await.
            let address = self.core.borrow_mut().links().address(node);
            let Some(address) = address else { break };
            let expect = Expect {
                role: Role::StorageNode,
                identity: Some((u64::from(node.0), address.incarnation.0)),
            };
            match connect(address.address, self.hello, &expect, Default::default()).await {
                Err(error) => tracing::debug!(%node, %error, "cannot reach a node"),
                Ok(connected) => {
                    backoff.succeeded();
                    if self.read_link(node, connected).await {
                        sleep(RESET_PAUSE).await;
                    }
                }
            }
            // A part of the clock is random enough to keep front ends apart.
            let draw = self.core.borrow().now().0 as u32;
            sleep(backoff.pause(draw)).await;
        }
        self.core.borrow_mut().links().forget(node);
    }

    /// Until the connection ends; true if a leader has given it up.
    async fn read_link(self: &Rc<Self>, node: NodeId, connected: Connected) -> bool {
        let Connected { mut reader, sender, .. } = connected;
        tracing::info!(%node, "connected to a node");
        self.batch(|core| core.link_up(node, sender.clone()));
        let mut frames = Vec::new();
        let why = loop {
            if let Err(why) = reader.ready().await {
                break why;
            }
            // One node after the other, in the order in which they had something to say: what is large is on its
            // way to the client before the next node's is received, so that the client begins with it early.
            // An error would say that the semaphore is closed, which it never is.
            let turn = self.reading.acquire().await;
            if let Err(why) = reader.try_batch(&mut frames) {
                break why;
            }
            if frames.is_empty() {
                continue;
            }
            let bytes: usize = frames.iter().map(|frame| frame.payload.len()).sum();
            if !self.batch(|core| core.node_frames(node, &mut frames)) {
                sender.close("a message that makes no sense");
                break CloseReason::Local("a message that makes no sense");
            }
            if bytes >= SENT_ON_BYTES {
                tokio::task::yield_now().await;
            }
            drop(turn);
        };
        if !self.stopping.get() {
            tracing::warn!(%node, ?why, "the connection to a node has ended");
        }
        self.batch(|core| core.link_down(node))
    }

    /// Ticks for the leaders, for ever.
    pub async fn ticks(self: Rc<Self>) {
        loop {
            if self.core.borrow().is_busy() {
                // A leader says to the microsecond when a read is late; this is as exact as the runtime's
                // clock, a millisecond.
                let wait = self.core.borrow().until_tick(TICK_BUSY).max(TICK_MIN);
                sleep(wait).await;
            } else {
                self.ticker_sleeps.set(true);
                // Either way it is time to look.
                let _ = timeout(TICK_IDLE, self.busy.notified()).await;
                self.ticker_sleeps.set(false);
            }
            self.batch(|core| core.tick());
        }
    }

    /// Renewals for all volumes, for ever; also releases volumes that have no clients.
    pub async fn renewals(self: Rc<Self>) {
        loop {
            let leading = self.look(Core::leading);
            let volumes: Vec<_> =
                leading.iter().map(|(_, volume, generation)| (*volume, *generation)).collect();
            if !volumes.is_empty() {
                match timeout(RENEW_INTERVAL, self.cluster.renew(volumes, self.look(Core::report))).await {
                    Ok(Ok(answers)) => {
                        for (volume, answer) in answers.volumes {
                            let key = leading.iter().find(|(_, v, _)| *v == volume);
                            if let Some((key, volume, _)) = key {
                                self.renewed(*key, *volume, answers.sent, answer);
                            }
                        }
                        self.batch(|core| answers.differing.iter().for_each(|group| core.differs(*group)));
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "leases are not renewed; reads go on by majority");
                    }
                    Err(_) => tracing::warn!("leases are not renewed in time; reads go on by majority"),
                }
            }
            self.release_idle();
            sleep(RENEW_INTERVAL).await;
        }
    }

    fn renewed(self: &Rc<Self>, key: SessionKey, volume: VolumeId, sent: Instant, answer: Renewal) {
        match answer {
            Renewal::Renewed { release_please } => self.batch(|core| {
                core.renewed(key, sent);
                if release_please {
                    tracing::info!(%volume, "another front end asks for the volume: releasing it");
                    self.hold_down(volume);
                    core.release(key);
                }
            }),
            Renewal::Lost => self.batch(|core| core.depose(key, Generation(0))),
            Renewal::Undecided => {}
        }
    }

    fn release_idle(self: &Rc<Self>) {
        let now = Instant::now();
        let without: BTreeSet<SessionKey> = self.look(Core::without_clients);
        let mut over = Vec::new();
        {
            let mut healers = self.healers.borrow_mut();
            for (key, healer) in healers.iter_mut() {
                let status = self.look(|core| core.status_of(*key));
                if status.is_some_and(|it| it.copies_behind > 0 || it.ops > 0) {
                    healer.busy = now;
                }
                if now.duration_since(healer.busy) >= HEAL_IDLE_MAX {
                    over.push(*key);
                }
            }
            let mut idle = self.idle.borrow_mut();
            idle.retain(|key, _| without.contains(key));
            for key in without {
                let (since, limit) = match healers.get(&key) {
                    Some(healer) => (healer.since, HEAL_TIME_MAX),
                    None => (*idle.entry(key).or_insert(now), IDLE_RELEASE),
                };
                if now.duration_since(since) >= limit && !over.contains(&key) {
                    over.push(key);
                }
            }
        }
        for key in over {
            self.batch(|core| core.release(key));
        }
    }

    /// Heals volumes that nobody has attached (section 8), for ever.
    pub async fn heal(self: Rc<Self>) {
        loop {
            sleep(HEAL_INTERVAL).await;
            let room = HEALERS_MAX.saturating_sub(self.healers.borrow().len());
            if room == 0 || self.stopping.get() {
                continue;
            }
            let work = match self.cluster.heal(room).await {
                Ok(work) => work,
                Err(error) => {
                    tracing::debug!(%error, "no work for healers");
                    continue;
                }
            };
            for (volume, granted) in work {
                let pool = self.cluster.map().volumes.get(&volume).map(|it| it.pool);
                let taken = self.look(|core| core.session_of(volume)).is_some();
                let Some(pool) = pool.filter(|_| !taken) else {
                    // A client has come meanwhile; or the volume has gone.
                    self.give_back(volume, granted.generation, false);
                    continue;
                };
                let key = self.batch(|core| core.open(volume, pool, None));
                let now = Instant::now();
                self.healers.borrow_mut().insert(key, Healer { since: now, busy: now });
                self.lead(key, volume, granted, true);
            }
        }
    }

    fn set_addresses(&self, map: &ClusterMap) {
        let address = |node: &trefoil_core::map::Node| NodeAddress {
            address: node.address,
            incarnation: node.incarnation,
        };
        let book = map.nodes.iter().map(|(id, node)| (*id, address(node))).collect();
        self.core.borrow_mut().links().set_addresses(book);
    }

    /// Follows the map, for ever.
    pub async fn follow_map(self: Rc<Self>) {
        let mut seen = self.cluster.map();
        loop {
            self.cluster.map_changed(seen.layout).await;
            let map = self.cluster.map();
            self.set_addresses(&map);
            let gone: Vec<SessionKey> = seen
                .volumes
                .keys()
                .filter(|volume| map.is_deleted(**volume))
                .filter_map(|volume| self.look(|core| core.session_of(*volume)))
                .collect();
            self.batch(|core| {
                let pgs = |map: &ClusterMap, pool| map.pools.get(&pool).map(|pool| pool.pg_num);
                let grown = map.pools.keys().filter(|id| pgs(&map, **id) != pgs(&seen, **id));
                let grown: Vec<PoolId> = grown.copied().collect();
                for pool in &grown {
                    // At one go: which objects a group has goes with its epoch.
                    if let Some(table) = map.pgs.pool(*pool) {
                        core.regroup(*pool, table);
                    }
                }
                let changed = map.pgs.changed(Some(&seen.pgs));
                for (id, pg) in changed.filter(|(id, _)| !grown.contains(&id.pool)) {
                    core.configure(id.pool, id.pg, &pg.config());
                }
                for (id, pool) in &map.pools {
                    if seen.pools.get(id).is_some_and(|before| before.ack != pool.ack) {
                        core.set_ack(*id, pool.ack);
                    }
                }
                for key in gone {
                    core.depose(key, Generation(0));
                }
                core.want_nodes();
            });
            seen = map;
        }
    }

    /// A client has closed its disk. Never in the middle of a batch.
    pub fn client_left(&self, key: SessionKey) {
        self.core.borrow_mut().client_left(key);
    }
    /// True when nothing new is taken any more.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }
    /// True for a session that heals.
    pub fn is_healer(&self, key: SessionKey) -> bool {
        self.healers.borrow().contains_key(&key)
    }

    /// Releases everything, and waits until the monitors know, at most `within`.
    pub async fn stop(self: Rc<Self>, within: Duration) {
        self.stopping.set(true);
        self.batch(|core| {
            for key in core.keys() {
                core.release(key);
            }
        });
        let done = async {
            loop {
                let released = self.released.notified();
                if self.releasing.get() == 0 && self.look(|core| core.keys().is_empty()) {
                    return;
                }
                // A session ends in a batch, which rings nobody.
                let _ = timeout(TICK_BUSY, released).await;
            }
        };
        if timeout(within, done).await.is_err() {
            tracing::warn!(?within, "not every volume could be released in time; their leases will run out");
        }
        self.core.borrow_mut().links().close_all("the front end is being stopped");
    }
}
