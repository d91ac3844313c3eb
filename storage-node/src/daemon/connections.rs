//! The tasks around an [`Engine`]: one per connection, one for the store, one for the clock.
//!
//! A task waits for something (frames, the store, a tick), then gives the engine one batch. The borrow
//! of the engine lasts for the batch and never over an await, so there is no lock and no queue between
//! a socket and the machine. Back-pressure: while the store is behind ([`Engine::can_accept`]), no
//! connection is read from; the kernel's socket buffers then stop the senders.

use super::engine::{Engine, Fed};
use super::peers::Attempt;
use super::storage::Storage;
use crate::device::wake::AsyncWaker;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use trefoil_core::message::GroupList;
use trefoil_core::node::Input;
use trefoil_core::{Incarnation, NodeId};
use trefoil_transport::{CloseReason, Connected, Expect, Frame, Hello, Options, Poller, Role, connect};

/// The machine's clock.
pub const TICK: Duration = Duration::from_millis(100);

/// An engine and those who wait for it.
pub struct Daemon<S> {
    engine: RefCell<Engine<S>>,
    /// Said on connections to other nodes.
    hello: Hello,
    /// Rung after each batch at the end of which the store takes more, or has failed.
    room: Notify,
    /// Rung when the store has failed.
    failed: Notify,
    /// Rung when there are answers for the monitors.
    listed: Notify,
    /// The node is being stopped: ends of connections are not news any more.
    ending: Cell<bool>,
    /// Of the thread that all of them share.
    poller: Poller,
}

impl<S: Storage + 'static> Daemon<S> {
    /// Nothing runs yet. `busy_poll`: see [`Poller`].
    pub fn new(mut engine: Engine<S>, hello: Hello, busy_poll: Duration) -> Rc<Daemon<S>> {
        engine.peers().set_seed(hello.incarnation);
        Rc::new(Daemon {
            engine: RefCell::new(engine),
            hello,
            room: Notify::new(),
            failed: Notify::new(),
            listed: Notify::new(),
            ending: Cell::new(false),
            poller: Poller::new(busy_poll),
        })
    }

    /// One batch: `inputs` feeds the engine. Must not be called from within itself.
    pub fn batch<R>(self: &Rc<Self>, inputs: impl FnOnce(&mut Engine<S>) -> R) -> R {
        self.poller.begin();
        let (result, wanted, room, failed, listed, under_way) = {
            let mut engine = self.engine.borrow_mut();
            engine.begin();
            let result = inputs(&mut engine);
            engine.finish();
            let wanted = engine.peers().take_wanted();
            let (failed, listed) = (engine.failed().is_some(), engine.has_listed());
            (result, wanted, engine.can_accept(), failed, listed, engine.under_way())
        };
        for (node, attempt) in wanted {
            tokio::task::spawn_local(self.clone().peer(node, attempt));
        }
        if room || failed {
            self.room.notify_waiters();
        }
        if failed {
            self.failed.notify_one();
        }
        if listed {
            self.listed.notify_one();
        }
        self.poller.end(under_way);
        result
    }

    /// Keeps the thread awake while work comes at short intervals; for ever.
    pub async fn poll(self: Rc<Self>) {
        self.poller.run().await;
    }

    /// Gives the engine back for its end, if nobody else has the daemon any more.
    pub fn into_engine(self: Rc<Self>) -> Option<Engine<S>> {
        Rc::into_inner(self).map(|daemon| daemon.engine.into_inner())
    }

    /// The node stops: nothing is fed any more, whatever ends from here on.
    pub fn end(&self) {
        self.ending.set(true);
    }

    /// Changes what is no input: book-keeping.
    pub fn change<R>(&self, with: impl FnOnce(&mut Engine<S>) -> R) -> R {
        with(&mut self.engine.borrow_mut())
    }

    /// Looks at the engine without giving it anything.
    pub fn look<R>(&self, at: impl FnOnce(&Engine<S>) -> R) -> R {
        at(&self.engine.borrow())
    }

    /// Waits until the store has failed, and says why.
    pub async fn failed(&self) -> String {
        loop {
            let failed = self.failed.notified();
            if let Some(error) = self.engine.borrow().failed() {
                return error.to_owned();
            }
            failed.await;
        }
    }

    /// Waits until there are answers for the monitors.
    pub async fn listed(&self) -> Vec<GroupList> {
        loop {
            let answers = self.change(Engine::take_listed);
            if !answers.is_empty() {
                return answers;
            }
            self.listed.notified().await;
        }
    }

    /// Waits while the store is behind.
    async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            if self.engine.borrow().can_accept() {
                return;
            }
            room.await;
        }
    }

    /// One incoming connection, from beginning to end.
    pub async fn serve(self: Rc<Self>, connected: Connected) {
        match connected.hello.role {
            Role::FrontEnd => self.leader(connected).await,
            Role::StorageNode => self.incoming_peer(connected).await,
            // The listener's policy lets nobody else in.
            role => tracing::warn!(%role, "closing a connection that no storage node can serve"),
        }
    }

    async fn leader(self: Rc<Self>, connected: Connected) {
        let Connected { mut reader, sender, .. } = connected;
        let peer = reader.peer();
        let conn = self.engine.borrow_mut().leader_came(sender.clone());
        tracing::info!(%peer, conn, "a front end has connected");
        // The engine must hear of the end however this task ends, also when it is dropped.
        let _gone = Gone { daemon: self.clone(), what: Some(Who::Leader(conn)) };
        let mut frames = Vec::new();
        let why = loop {
            self.wait_for_room().await;
            if let Err(why) = reader.read_batch(&mut frames).await {
                break why;
            }
            // Others may have filled it meanwhile.
            self.wait_for_room().await;
            if !self.feed_leader(conn, &mut frames).await {
                sender.close("a message that makes no sense");
                break CloseReason::Local("a message that makes no sense");
            }
        };
        tracing::info!(%peer, conn, ?why, "a front end's connection has ended");
    }

    /// All of them, however often the store has to read something first; meanwhile nothing more is read
    /// from this connection, and the others go on. False: the connection has to be closed.
    async fn feed_leader(self: &Rc<Self>, conn: u64, frames: &mut Vec<Frame>) -> bool {
        loop {
            match self.batch(|engine| engine.leader_frames(conn, frames)) {
                Fed::All => return true,
                Fed::Broken => return false,
                // It may have had it at hand by the end of that batch.
                Fed::Waits => tokio::task::yield_now().await,
            }
            match self.batch(|engine| engine.leader_frames(conn, frames)) {
                Fed::All => return true,
                Fed::Broken => return false,
                Fed::Waits => self.progress().await,
            }
        }
    }

    /// Waits for somebody else's batch, at the end of which the store takes more, or has failed.
    async fn progress(&self) {
        self.room.notified().await;
    }

    async fn incoming_peer(self: Rc<Self>, connected: Connected) {
        let Connected { hello, mut reader, sender } = connected;
        let peer = reader.peer();
        let known = u32::try_from(hello.id).ok().map(NodeId).filter(|node| {
            let address = self.engine.borrow_mut().peers().address(*node);
            address.is_some_and(|address| address.incarnation == Incarnation(hello.incarnation))
        });
        let Some(node) = known else {
            tracing::warn!(%peer, id = hello.id, "a node that the map does not know (yet) was turned away");
            sender.close("not in the map");
            return;
        };
        let attempt = self.engine.borrow_mut().peers().came(node);
        let _gone = Gone { daemon: self.clone(), what: Some(Who::Peer(node, attempt)) };
        let mut frames = Vec::new();
        let why = loop {
            self.wait_for_room().await;
            if let Err(why) = reader.read_batch(&mut frames).await {
                break why;
            }
            self.wait_for_room().await;
            if !self.batch(|engine| engine.peer_frames(node, &mut frames)) {
                break CloseReason::Local("a message that makes no sense");
            }
        };
        tracing::debug!(%node, ?why, "a node's connection has ended");
    }

    /// Makes a connection to another node and keeps it until it ends. Answers come on the connection
    /// that the other node makes.
    async fn peer(self: Rc<Self>, node: NodeId, attempt: Attempt) {
        let address = self.engine.borrow_mut().peers().address(node);
        let mut gone = Gone { daemon: self.clone(), what: Some(Who::PeerDown(node, attempt)) };
        let Some(address) = address else { return };
        let expect =
            Expect { role: Role::StorageNode, identity: Some((u64::from(node.0), address.incarnation.0)) };
        match connect(address.address, self.hello, &expect, Options::default()).await {
            Err(error) => {
                tracing::debug!(%node, %error, "cannot reach another node");
            }
            Ok(Connected { mut reader, sender, .. }) => {
                if !self.engine.borrow_mut().peers().connected(node, attempt, sender) {
                    return;
                }
                let mut frames = Vec::new();
                // Nothing comes this way; the read is there to see the end.
                let why = match reader.read_batch(&mut frames).await {
                    Ok(()) => CloseReason::Local("spoke on the wrong connection"),
                    Err(why) => why,
                };
                tracing::debug!(%node, ?why, "the connection to another node has ended");
            }
        }
        gone.end();
    }

    /// Waits for the store and takes what it has. An error is the operating system's.
    pub async fn disk(self: Rc<Self>, waker: AsyncWaker, has_work: fn(&S) -> bool) -> std::io::Result<()> {
        loop {
            if self.look(|engine| has_work(engine.store())) {
                // A checkpoint has many steps; connections get their turn between them.
                tokio::task::yield_now().await;
            } else {
                waker.rung().await?;
            }
            self.batch(|_| ());
        }
    }

    /// The clock. Ends with the runtime.
    pub async fn ticks(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.batch(|engine| engine.feed(Input::Tick));
        }
    }
}

enum Who {
    Leader(u64),
    Peer(NodeId, Attempt),
    PeerDown(NodeId, Attempt),
}

/// Tells the engine of the end of a connection, once.
struct Gone<S: Storage + 'static> {
    daemon: Rc<Daemon<S>>,
    what: Option<Who>,
}

impl<S: Storage + 'static> Gone<S> {
    fn end(&mut self) {
        let Some(what) = self.what.take() else { return };
        if self.daemon.ending.get() {
            return;
        }
        self.daemon.batch(|engine| match what {
            Who::Leader(conn) => engine.leader_left(conn),
            Who::Peer(node, attempt) => {
                if engine.peers().left(node, attempt) {
                    engine.peer_gone(node);
                }
            }
            Who::PeerDown(node, attempt) => {
                if engine.peers().down(node, attempt) {
                    engine.peer_gone(node);
                }
            }
        });
    }
}

impl<S: Storage + 'static> Drop for Gone<S> {
    fn drop(&mut self) {
        self.end();
    }
}
