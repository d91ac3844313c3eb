//! Talking to the monitors: one connection, made when it is needed, made again when it breaks.
//!
//! Any number of calls may be under way. A call waits for a connection, goes to the next address when one does
//! not answer, and backs off between rounds, all within its deadline. When the connection breaks under a
//! call, it is made again if that can do no harm; otherwise the caller is told that it does not know
//! ([`CallError::Unsure`]). One thread, within a `LocalSet`; clones share the connection.
//!
//! **Which monitor.** Any of the addresses that it was given will do: each monitor tells where the others are,
//! and one that does not lead says who does; then that one is connected to. Calls that wait on the old
//! connection (for a newer map) go on there. A monitor that hangs is found out in about
//! two seconds: while something is unanswered, it is asked whether it is there.

mod admin;
mod map;
mod moving;
mod scrubbing;

use crate::health::Status;
use crate::link::{Link, Ticket};
use crate::rpc::*;
use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;
use trefoil_core::leader::report::NodeReport;
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{ClusterMap, Event, Holder, Volume};
use trefoil_core::{Generation, GroupId, Incarnation, NodeId, VolumeId};
use trefoil_transport::{Connected, Expect, Hello, Options, Role, SendError, connect};

/// The first pause between two rounds of all addresses; it doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
pub const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long a call takes at most, where its method does not say otherwise.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause of a call whose monitor does not lead and does not know who does: an election takes a few
/// seconds.
const NO_LEADER_PAUSE_MAX: Duration = Duration::from_millis(400);
/// Addresses that are remembered, those that were given and those that were learned.
const ADDRESSES_MAX: usize = 16;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No monitor answered in time. The text is of the last attempt.
    #[error("no monitor answers: {0}")]
    Unavailable(String),
    /// The connection broke, or the time was over, when the request had been sent: it may have been done.
    #[error(
        "the connection to the monitor broke: it is not known whether the request was done; look, and try again"
    )]
    Unsure,
    /// The monitor's answer is an error.
    #[error("{0}")]
    Answered(#[from] RpcError),
    /// The monitor's answer makes no sense.
    #[error("the monitor's answer cannot be read: {0}")]
    Malformed(String),
}

/// What came of asking for a volume.
#[derive(Debug, Clone, PartialEq)]
pub enum Attached {
    /// It is the asker's.
    Granted(Granted),
    /// Somebody else has it, and was asked to release it.
    Busy {
        /// Who.
        holder: Holder,
        /// When its lease will have run out, if it is not renewed.
        retry_after: Duration,
    },
}

/// What came of a renewal.
#[derive(Debug, Clone, PartialEq)]
pub struct Renewed {
    /// Volume by volume.
    pub volumes: Vec<(VolumeId, Renewal)>,
    /// The latest layout of the map.
    pub layout: u64,
    /// Groups to open in the background.
    pub differing: Vec<GroupId>,
    /// When the request that was answered was sent: leases run from here. By the clock of
    /// [`std::time::Instant`], which stands still while the host is suspended: a holder whose host was
    /// suspended must not trust it.
    pub sent: std::time::Instant,
}

/// The answer to a heartbeat.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Alive {
    /// The latest layout of the map.
    pub layout: u64,
    /// The greatest log position that the monitors have been told by this node (N8).
    pub position_floor: u64,
    /// A leader has found that the node has less than it had reported as durable (5.9): to be taken note of.
    pub lost_order: Option<LostOrder>,
}

struct Inner {
    /// As they were given.
    given: Vec<SocketAddr>,
    /// These, and what monitors have told since.
    addresses: RefCell<Vec<SocketAddr>>,
    /// Who leads, as a monitor has said; to be tried next.
    hint: Cell<Option<SocketAddr>>,
    /// Where the connection goes.
    connected_to: Cell<Option<SocketAddr>>,
    hello: RefCell<Hello>,
    link: RefCell<Option<Rc<Link>>>,
    connecting: Mutex<Backoff>,
    next_id: Cell<u64>,
    address: Cell<usize>,
    /// Why the last attempt to connect failed, until one succeeds.
    last_error: RefCell<Option<String>>,
    /// The map that was got last: monitors send differences to it.
    last_map: RefCell<Option<(MapId, Arc<ClusterMap>)>>,
}

struct Backoff {
    pause: Duration,
    not_before: Instant,
}

/// A handle to the monitors.
#[derive(Clone)]
pub struct MonitorClient {
    inner: Rc<Inner>,
}

impl MonitorClient {
    /// Connects to nobody yet. `hello` says who asks; a cluster id of zeros is learned from the first
    /// monitor that answers, and insisted on from then on.
    pub fn new(addresses: Vec<SocketAddr>, hello: Hello) -> MonitorClient {
        let backoff = Backoff { pause: RETRY_MIN, not_before: Instant::now() };
        MonitorClient {
            inner: Rc::new(Inner {
                addresses: RefCell::new(addresses.clone()),
                given: addresses,
                hint: Cell::new(None),
                connected_to: Cell::new(None),
                hello: RefCell::new(hello),
                link: RefCell::new(None),
                connecting: Mutex::new(backoff),
                next_id: Cell::new(1),
                address: Cell::new(0),
                last_error: RefCell::new(None),
                last_map: RefCell::new(None),
            }),
        }
    }

    /// The cluster's id, once a monitor has answered.
    pub fn cluster_id(&self) -> Option<[u8; 16]> {
        let id = self.inner.hello.borrow().cluster_id;
        (id != [0; 16]).then_some(id)
    }

    /// From now on, connections say this: for a node that has got its id.
    pub fn set_identity(&self, id: u64, incarnation: u64) {
        let mut hello = self.inner.hello.borrow_mut();
        (hello.id, hello.incarnation) = (id, incarnation);
    }

    /// Where the monitor is that was talked to last.
    pub fn address(&self) -> Option<SocketAddr> {
        self.inner.connected_to.get()
    }

    /// Remembers where the monitors are: those that were given, and those that there are now.
    fn learn(&self, monitors: &MonitorsStatus) {
        let mut addresses = self.inner.given.clone();
        for monitor in &monitors.monitors {
            if !addresses.contains(&monitor.address) && !monitor.address.ip().is_unspecified() {
                addresses.push(monitor.address);
            }
        }
        addresses.truncate(ADDRESSES_MAX);
        *self.inner.addresses.borrow_mut() = addresses;
    }

    /// The monitor at the other end of `link` does not lead: the next connection goes to who does, or to the
    /// next address.
    fn turn_away(&self, link: &Rc<Link>, leader: Option<SocketAddr>) {
        let mut current = self.inner.link.borrow_mut();
        // Another call may have done so already.
        if current.as_ref().is_none_or(|current| !Rc::ptr_eq(current, link)) {
            return;
        }
        match leader {
            Some(leader) => self.inner.hint.set(Some(leader)),
            // It is as good as any other.
            None if self.inner.addresses.borrow().len() < 2 => return,
            None => self.inner.address.set(self.inner.address.get() + 1),
        }
        // Calls that wait on it keep it.
        *current = None;
    }

    fn live(&self) -> Option<Rc<Link>> {
        let link = self.inner.link.borrow();
        link.as_ref().filter(|link| link.sender.closed().is_none()).cloned()
    }

    /// The connection; makes it if there is none, one round of all addresses at a time.
    async fn link(&self, deadline: Instant) -> Result<Rc<Link>, CallError> {
        if self.inner.given.is_empty() {
            return Err(CallError::Unavailable("no address is configured".to_owned()));
        }
        let connected = async {
            let mut backoff = self.inner.connecting.lock().await;
            loop {
                if let Some(link) = self.live() {
                    return link;
                }
                // One that broke or hung: another monitor first.
                if self.inner.link.borrow_mut().take().is_some() {
                    self.inner.address.set(self.inner.address.get() + 1);
                }
                tokio::time::sleep_until(backoff.not_before).await;
                let addresses = self.inner.addresses.borrow().clone();
                let hint = self.inner.hint.take();
                for step in 0..addresses.len() + usize::from(hint.is_some()) {
                    let at = self.inner.address.get() % addresses.len();
                    let hinted = hint.filter(|_| step == 0);
                    let address = hinted.unwrap_or(addresses[at]);
                    let hello = *self.inner.hello.borrow();
                    let expect = Expect { role: Role::Monitor, identity: None };
                    match connect(address, hello, &expect, Options::default()).await {
                        Ok(connected) => {
                            backoff.pause = RETRY_MIN;
                            *self.inner.last_error.borrow_mut() = None;
                            self.inner.connected_to.set(Some(address));
                            return self.adopt(connected);
                        }
                        Err(error) => {
                            *self.inner.last_error.borrow_mut() = Some(error.to_string());
                            if hinted.is_none() {
                                self.inner.address.set(at + 1);
                            }
                        }
                    }
                }
                // A part of it is drawn: daemons that were started all at once do not come all at once.
                let draw = RandomState::new().build_hasher().finish() as u32 % 1024;
                backoff.not_before = Instant::now() + backoff.pause - backoff.pause / 2 * draw / 1024;
                backoff.pause = (2 * backoff.pause).min(RETRY_MAX);
            }
        };
        let link = tokio::time::timeout_at(deadline, connected).await;
        link.map_err(|_| {
            // The time may have passed in the pause behind an earlier attempt, or in the first one.
            let last = self.inner.last_error.borrow().clone();
            CallError::Unavailable(last.unwrap_or_else(|| {
                let addresses = self.inner.addresses.borrow();
                format!("no connection to {} in time", addresses[self.inner.address.get() % addresses.len()])
            }))
        })
    }

    fn adopt(&self, connected: Connected) -> Rc<Link> {
        let Connected { hello, reader, sender } = connected;
        self.inner.hello.borrow_mut().cluster_id = hello.cluster_id;
        let link = Link::new(reader, sender);
        *self.inner.link.borrow_mut() = Some(link.clone());
        let client = self.clone();
        tokio::task::spawn_local(async move {
            // Whoever is on the line by then; without an answer the addresses stay as they are.
            if let Ok(monitors) = client.monitors().await {
                client.learn(&monitors);
            }
        });
        link
    }

    /// Asks; the answer, its payload, and when the question was sent.
    async fn call(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> Result<(Response, bytes::Bytes, std::time::Instant), CallError> {
        let deadline = Instant::now() + timeout;
        let mut pause = RETRY_MIN;
        // What a monitor said that did not lead says more than that no time was left for another one.
        let mut last = None;
        loop {
            let link = self.link(deadline).await;
            let link = link.map_err(|error| last.clone().map_or(error, CallError::Answered))?;
            let id = self.inner.next_id.replace(self.inner.next_id.get() + 1);
            let (answer, receiver) = oneshot::channel();
            link.waiting.borrow_mut().insert(id, answer);
            let ticket = Ticket { waiting: link.waiting.clone(), id };
            let sent = std::time::Instant::now();
            match link.sender.push(KIND_REQUEST, |meta| encode(meta, id, request), None) {
                Ok(()) => link.sender.flush(),
                Err(SendError::TooLong(error)) => {
                    return Err(CallError::Malformed(error.to_string()));
                }
                // Not sent: the next connection, then.
                Err(_) => {
                    tokio::time::sleep(RETRY_MIN).await;
                    continue;
                }
            }
            let received = tokio::time::timeout_at(deadline, receiver).await;
            drop(ticket);
            let frame = match received {
                Ok(Ok(frame)) => frame,
                Ok(Err(_)) if request.is_idempotent() => {
                    // A monitor that takes connections and drops them is not asked without a pause.
                    tokio::time::sleep(RETRY_MIN).await;
                    continue;
                }
                Ok(Err(_)) => return Err(CallError::Unsure),
                Err(_) => {
                    // A monitor that hangs: let the next call try another connection.
                    link.sender.close("the monitor does not answer");
                    return Err(match (request.is_idempotent(), last) {
                        (true, Some(last)) => CallError::Answered(last),
                        (true, None) => CallError::Unavailable(format!("no answer within {timeout:?}")),
                        (false, _) => CallError::Unsure,
                    });
                }
            };
            let Some((version, _, rest)) = split(&frame.meta) else {
                return Err(CallError::Malformed("too short".to_owned()));
            };
            let response = decode(version, rest).map_err(CallError::Malformed)?;
            return match response {
                // Nothing was done: any request may be made again.
                Response::Error(error @ RpcError::NotLeading { leader, .. })
                    if Instant::now() + pause < deadline =>
                {
                    self.turn_away(&link, leader);
                    drop(link);
                    last = Some(error);
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(NO_LEADER_PAUSE_MAX);
                    continue;
                }
                Response::Error(RpcError::Unsure(_))
                    if request.is_idempotent() && Instant::now() + pause < deadline =>
                {
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(NO_LEADER_PAUSE_MAX);
                    continue;
                }
                Response::Error(error) => Err(error.into()),
                response => Ok((response, frame.payload, sent)),
            };
        }
    }

    async fn ask(&self, request: Request) -> Result<Response, CallError> {
        Ok(self.call(&request, CALL_TIMEOUT).await?.0)
    }

    /// What the map says now of a volume; none if there is none of that name.
    pub async fn volume(&self, volume: VolumeKey) -> Result<Option<Volume>, CallError> {
        match self.ask(Request::Volume { volume }).await? {
            Response::Info(info) => Ok(info.map(|info| *info)),
            other => Err(unexpected(&other)),
        }
    }

    /// Introduces a node; its id.
    pub async fn register_node(
        &self,
        id: Option<NodeId>,
        incarnation: Incarnation,
        address: SocketAddr,
        host: String,
        class: Option<String>,
        size: u64,
    ) -> Result<NodeId, CallError> {
        let request = Request::RegisterNode { id, incarnation, address, host, class, size };
        match self.ask(request).await? {
            Response::Node(id) => Ok(id),
            other => Err(unexpected(&other)),
        }
    }

    /// Says that a node lives.
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Alive, CallError> {
        match self.ask(Request::Heartbeat(heartbeat)).await? {
            Response::Alive { layout, position_floor, lost_order } => {
                Ok(Alive { layout, position_floor, lost_order })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for a volume. The lease of what is granted runs from the second value, when the question
    /// was sent.
    pub async fn attach(
        &self,
        volume: VolumeKey,
        holder: Holder,
        above: Generation,
    ) -> Result<(Attached, std::time::Instant), CallError> {
        let request = Request::Attach { volume, holder, above };
        let (response, _, sent) = self.call(&request, CALL_TIMEOUT).await?;
        match response {
            Response::Granted(granted) => Ok((Attached::Granted(*granted), sent)),
            Response::Busy { holder, retry_after } => {
                let retry_after = Duration::from_micros(retry_after);
                Ok((Attached::Busy { holder, retry_after }, sent))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Renews leases, within `timeout`, and tells what their leaders find of the nodes.
    pub async fn renew(
        &self,
        holder: Holder,
        volumes: Vec<(VolumeId, Generation)>,
        nodes: Vec<NodeReport>,
        timeout: Duration,
    ) -> Result<Renewed, CallError> {
        let request = Request::Renew { holder, volumes, nodes };
        let (response, _, sent) = self.call(&request, timeout).await?;
        match response {
            Response::Renewed { volumes, layout, differing } => {
                Ok(Renewed { volumes, layout, differing, sent })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// What has happened after the event of that number, oldest first, and the number of the last event that there
    /// is. Waits for news for `wait`.
    pub async fn events(&self, after: u64, wait: Duration) -> Result<(Vec<Event>, u64), CallError> {
        let request = Request::Events { after, timeout: wait.as_micros() as u64 };
        let (response, _, _) = self.call(&request, wait + CALL_TIMEOUT).await?;
        match response {
            Response::Events { events, last } => Ok((events, last)),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets volumes go: volume, generation, and whether every member holds every object whole.
    pub async fn release(&self, volumes: Vec<(VolumeId, Generation, bool)>) -> Result<(), CallError> {
        done(self.ask(Request::Release { volumes }).await?)
    }

    /// Tells that a node has less than it had reported as durable (5.9), as the leader of the volume with that
    /// generation has found. True when the node has taken note; until then this is to be told again.
    pub async fn lost_data(
        &self,
        holder: Holder,
        (volume, generation): LostOrder,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<bool, CallError> {
        match self.ask(Request::LostData { holder, volume, generation, node, incarnation }).await? {
            Response::LostData { noted } => Ok(noted),
            other => Err(unexpected(&other)),
        }
    }

    /// Volumes to heal, at most `max`, each with its generation; and from when their leases run.
    pub async fn heal_work(
        &self,
        holder: Holder,
        max: u32,
    ) -> Result<(Vec<Granted>, std::time::Instant), CallError> {
        let request = Request::HealWork { holder, max };
        let (response, _, sent) = self.call(&request, CALL_TIMEOUT).await?;
        match response {
            Response::Heal(work) => Ok((work, sent)),
            other => Err(unexpected(&other)),
        }
    }

    /// How everything is.
    pub async fn status(&self) -> Result<Status, CallError> {
        match self.ask(Request::Status).await? {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }
}

fn done(response: Response) -> Result<(), CallError> {
    match response {
        Response::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(response: &Response) -> CallError {
    let text = format!("{response:?}");
    CallError::Malformed(text.chars().take(80).collect())
}
