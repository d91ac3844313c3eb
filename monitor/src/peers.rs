//! Connections to the other monitors, one each, made when there is something to say.
//!
//! Both ends know whom they talk to: number and incarnation are in the handshake, and a monitor that has
//! another incarnation than the members say is not talked to. Nothing waits for a monitor that is away:
//! what cannot be sent fails, and Raft says it again when it is still worth saying.
//!
//! One thread, within a `LocalSet`.

use crate::raft::{Job, JobFailed, Member, PeerAnswer, PeerRequest, Who};
use crate::rpc::{self, KIND_PEER_REQUEST, KIND_PEER_RESPONSE};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use trefoil_transport::{Expect, Hello, Options, Reader, Role, Sender, connect};

/// Requests that wait for the routing of all monitors together.
pub(crate) const JOBS_MAX: usize = 256;
/// Requests that wait for one monitor's connection.
const LINK_JOBS_MAX: usize = 64;
/// Requests on one connection that are not answered yet. Raft has given most of them up by then.
const UNANSWERED_MAX: usize = 256;
/// Connections that are kept: more than there can be monitors, with some that were replaced.
const LINKS_MAX: usize = 16;
/// A connection on which nothing was answered for so long is made anew: its other end may be a stopped
/// process, or a host that is gone.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// How long [`ask_who`] waits for an answer.
const WHO_TIMEOUT: Duration = Duration::from_secs(3);

/// A monitor that has answered within this time counts as up.
pub(crate) const HEARD_MAX: Duration = Duration::from_secs(3);

pub(crate) fn options() -> Options {
    Options { queue_bytes_max: 2 * trefoil_core::limits::FRAME_MAX, local: false, ..Options::default() }
}

/// All connections of this monitor to others.
pub(crate) struct Peers {
    hello: Hello,
    /// Where the configuration says that they are: tried when the members' address does not answer.
    configured: BTreeMap<u64, SocketAddr>,
    links: RefCell<BTreeMap<(u64, u64), Link>>,
}

struct Link {
    jobs: mpsc::Sender<Job>,
    heard: Rc<Cell<Option<Instant>>>,
}

type Unanswered = Rc<RefCell<BTreeMap<u64, (oneshot::Sender<Result<PeerAnswer, JobFailed>>, Instant)>>>;

impl Peers {
    pub fn new(hello: Hello, configured: BTreeMap<u64, SocketAddr>) -> Rc<Peers> {
        Rc::new(Peers { hello, configured, links: RefCell::default() })
    }

    /// When the monitor last answered anything.
    pub fn heard(&self, id: u64, incarnation: u64) -> Option<Instant> {
        self.links.borrow().get(&(id, incarnation)).and_then(|link| link.heard.get())
    }

    /// Asks a monitor something that is not Raft's.
    pub async fn ask(
        &self,
        target: u64,
        member: Member,
        request: &PeerRequest,
    ) -> Result<PeerAnswer, JobFailed> {
        let request =
            postcard::to_stdvec(request).map_err(|error| JobFailed::Unreachable(error.to_string()))?;
        let (answer, receiver) = oneshot::channel();
        self.deliver(Job { target, member, request: request.into(), answer });
        let stopped = || JobFailed::Unreachable("the monitor is stopping".to_owned());
        match tokio::time::timeout(WHO_TIMEOUT, receiver).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err(stopped())),
            Err(_) => Err(JobFailed::Broken("no answer in time".to_owned())),
        }
    }

    /// Takes jobs to their connections until Raft ends.
    pub async fn route(self: Rc<Self>, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            self.deliver(job);
        }
    }

    fn deliver(&self, job: Job) {
        let key = (job.target, job.member.incarnation);
        let mut links = self.links.borrow_mut();
        if !links.contains_key(&key) && links.len() >= LINKS_MAX {
            // The one that was silent for longest. Dropping its end of the channel ends its task.
            let oldest = links.iter().min_by_key(|(_, link)| link.heard.get()).map(|(key, _)| *key);
            oldest.and_then(|key| links.remove(&key));
        }
        let link = links.entry(key).or_insert_with(|| self.link(&job));
        if let Err(error) = link.jobs.try_send(job) {
            let job = error.into_inner();
            let text = format!("too much waits to be said to monitor {}", job.target);
            // Who asked may have given up.
            let _ = job.answer.send(Err(JobFailed::Unreachable(text)));
        }
    }

    fn link(&self, job: &Job) -> Link {
        let (sender, receiver) = mpsc::channel(LINK_JOBS_MAX);
        let heard = Rc::new(Cell::new(None));
        let line = Line {
            hello: self.hello,
            target: job.target,
            configured: self.configured.get(&job.target).copied(),
            heard: heard.clone(),
        };
        tokio::task::spawn_local(line.run(receiver));
        Link { jobs: sender, heard }
    }
}

/// One monitor's connection, while there is one.
struct Line {
    hello: Hello,
    target: u64,
    configured: Option<SocketAddr>,
    heard: Rc<Cell<Option<Instant>>>,
}

struct Open {
    sender: Sender,
    unanswered: Unanswered,
    next: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.sender.close("another connection is made");
    }
}

impl Open {
    /// False if it should be made anew.
    fn is_well(&self, heard: Option<Instant>) -> bool {
        if self.sender.closed().is_some() {
            return false;
        }
        let unanswered = self.unanswered.borrow();
        let oldest = unanswered.first_key_value().map(|(_, (_, sent))| *sent);
        let silent = |since: Instant| since.elapsed() > SILENT_MAX;
        !(oldest.is_some_and(silent) && heard.is_none_or(silent))
    }
}

impl Line {
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut open: Option<Open> = None;
        while let Some(job) = jobs.recv().await {
            if job.answer.is_closed() {
                continue;
            }
            let well = open.take().filter(|open| open.is_well(self.heard.get()));
            let mut well = match well {
                Some(open) => open,
                None => match self.connect(job.member.address, job.member.incarnation).await {
                    Ok(open) => open,
                    Err(text) => {
                        // What has come meanwhile is no better off.
                        let _ = job.answer.send(Err(JobFailed::Unreachable(text.clone())));
                        while let Ok(job) = jobs.try_recv() {
                            let _ = job.answer.send(Err(JobFailed::Unreachable(text.clone())));
                        }
                        continue;
                    }
                },
            };
            Self::say(&mut well, job);
            open = Some(well);
        }
    }

    fn say(open: &mut Open, job: Job) {
        let mut unanswered = open.unanswered.borrow_mut();
        if unanswered.len() >= UNANSWERED_MAX {
            unanswered.retain(|_, (asker, _)| !asker.is_closed());
        }
        if unanswered.len() >= UNANSWERED_MAX {
            let text = format!("monitor {} leaves {UNANSWERED_MAX} requests unanswered", job.target);
            let _ = job.answer.send(Err(JobFailed::Unreachable(text)));
            return;
        }
        let id = open.next;
        open.next += 1;
        let push = |meta: &mut bytes::BytesMut| rpc::begin(meta, id);
        match open.sender.push(KIND_PEER_REQUEST, push, Some(job.request)) {
            Ok(()) => {
                unanswered.insert(id, (job.answer, Instant::now()));
                drop(unanswered);
                open.sender.flush();
            }
            Err(error) => {
                let _ = job.answer.send(Err(JobFailed::Unreachable(error.to_string())));
            }
        }
    }

    async fn connect(&self, member: SocketAddr, incarnation: u64) -> Result<Open, String> {
        let expect = Expect { role: Role::Monitor, identity: Some((self.target, incarnation)) };
        let other = self.configured.filter(|address| *address != member);
        let mut text = String::new();
        for address in [Some(member), other].into_iter().flatten() {
            match connect(address, self.hello, &expect, options()).await {
                Ok(connected) => {
                    let unanswered = Unanswered::default();
                    let listen = listen(connected.reader, unanswered.clone(), self.heard.clone());
                    tokio::task::spawn_local(listen);
                    return Ok(Open { sender: connected.sender, unanswered, next: 1 });
                }
                Err(error) => text = error.to_string(),
            }
        }
        tracing::debug!(target = self.target, text, "no connection to a monitor");
        Err(text)
    }
}

/// Hands answers to those who wait, until the connection ends.
async fn listen(mut reader: Reader, unanswered: Unanswered, heard: Rc<Cell<Option<Instant>>>) {
    let mut frames = Vec::new();
    let reason = loop {
        if let Err(reason) = reader.read_batch(&mut frames).await {
            break reason;
        }
        for frame in frames.drain(..) {
            let Some((_, id, _)) = rpc::split(&frame.meta) else { continue };
            if frame.kind != KIND_PEER_RESPONSE {
                continue;
            }
            heard.set(Some(Instant::now()));
            let Some((asker, _)) = unanswered.borrow_mut().remove(&id) else { continue };
            let answer = decode(&frame.payload).map_err(JobFailed::Broken);
            // An asker that has given up needs no answer.
            let _ = asker.send(answer);
        }
    };
    let left = std::mem::take(&mut *unanswered.borrow_mut());
    for (asker, _) in left.into_values() {
        let _ = asker.send(Err(JobFailed::Broken(reason.to_string())));
    }
}

/// A message between monitors, to its last byte.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok((_, left)) => Err(format!("{} bytes left over", left.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks whoever is at `address` who it is, on a connection of its own.
pub(crate) async fn ask_who(address: SocketAddr, hello: Hello) -> Result<Who, String> {
    let expect = Expect { role: Role::Monitor, identity: None };
    let ask = async {
        let mut connected =
            connect(address, hello, &expect, options()).await.map_err(|error| error.to_string())?;
        let request = postcard::to_stdvec(&PeerRequest::Who).map_err(|error| error.to_string())?;
        let sent =
            connected.sender.push(KIND_PEER_REQUEST, |meta| rpc::begin(meta, 1), Some(Bytes::from(request)));
        sent.map_err(|error| error.to_string())?;
        connected.sender.flush();
        let mut frames = Vec::new();
        loop {
            connected.reader.read_batch(&mut frames).await.map_err(|error| error.to_string())?;
            for frame in frames.drain(..) {
                if frame.kind != KIND_PEER_RESPONSE {
                    continue;
                }
                return match decode(&frame.payload)? {
                    PeerAnswer::Who(who) => Ok(who),
                    PeerAnswer::Refused(text) => Err(text),
                    _ => Err("an answer that fits no question".to_owned()),
                };
            }
        }
    };
    let asked = tokio::time::timeout(WHO_TIMEOUT, ask).await;
    asked.unwrap_or_else(|_| Err(format!("{address} does not answer")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_transport::{Policy, ServeOptions};

    const CLUSTER: [u8; 16] = [3; 16];

    /// A monitor that lets in and never answers; how many connections it has had.
    async fn silent(id: u64, incarnation: u64) -> (SocketAddr, Rc<Cell<usize>>) {
        let listener = trefoil_transport::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let hello = Hello { id, incarnation, ..Hello::new(Role::Monitor, CLUSTER) };
        let policy = Policy { hello, roles: &[Role::Monitor], unknown_cluster: false };
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        let serve = trefoil_transport::serve(listener, ServeOptions::new(policy), move |mut connected| {
            counted.set(counted.get() + 1);
            async move {
                let mut frames = Vec::new();
                while connected.reader.read_batch(&mut frames).await.is_ok() {
                    frames.clear();
                }
            }
        });
        tokio::task::spawn_local(serve);
        (address, count)
    }

    fn on_runtime(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            tokio::time::timeout(Duration::from_secs(40), test).await.expect("the test hangs");
        });
    }

    fn peers() -> Rc<Peers> {
        Peers::new(Hello { id: 1, incarnation: 1, ..Hello::new(Role::Monitor, CLUSTER) }, BTreeMap::new())
    }

    fn job(member: &Member) -> (Job, oneshot::Receiver<Result<PeerAnswer, JobFailed>>) {
        let (answer, receiver) = oneshot::channel();
        let request = postcard::to_stdvec(&PeerRequest::Who).unwrap().into();
        (Job { target: 2, member: member.clone(), request, answer }, receiver)
    }

    #[test]
    fn a_monitor_with_another_incarnation_or_cluster_is_not_talked_to() {
        on_runtime(async {
            let (address, _) = silent(2, 7).await;
            let told = peers().ask(2, Member { address, incarnation: 8 }, &PeerRequest::Who).await;
            let told = told.unwrap_err().to_string();
            assert!(told.contains("incarnation 0000000000000007) is there"), "{told}");
            let hello = Hello { id: 1, incarnation: 1, ..Hello::new(Role::Monitor, [4; 16]) };
            let other = Peers::new(hello, BTreeMap::new());
            let told = other.ask(2, Member { address, incarnation: 7 }, &PeerRequest::Who).await;
            let told = told.unwrap_err().to_string();
            assert!(told.contains("another cluster"), "{told}");
            assert_eq!(other.heard(2, 7), None);
        });
    }

    #[test]
    fn what_waits_for_a_silent_monitor_is_bounded_and_its_connection_is_made_anew() {
        on_runtime(async {
            let (address, connections) = silent(2, 7).await;
            let (peers, member) = (peers(), Member { address, incarnation: 7 });
            let mut waiting = Vec::new();
            // Faster than the connection is made: the channel is full.
            let (mut refused, mut sent) = (0, 0);
            for _ in 0..LINK_JOBS_MAX + 5 {
                let (job, mut receiver) = job(&member);
                peers.deliver(job);
                match receiver.try_recv() {
                    Ok(Err(JobFailed::Unreachable(text))) => {
                        assert!(text.contains("too much waits"), "{text}");
                        refused += 1;
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => waiting.push(receiver),
                }
            }
            assert_eq!(refused, 5);
            // The connection is made, and the channel emptied onto it.
            tokio::time::sleep(Duration::from_millis(300)).await;
            while sent < UNANSWERED_MAX {
                let (job, receiver) = job(&member);
                peers.deliver(job);
                waiting.push(receiver);
                sent += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let full = waiting.iter_mut().filter_map(|receiver| receiver.try_recv().ok());
            let full: Vec<_> = full.map(|answer| answer.unwrap_err().to_string()).collect();
            assert_eq!(full.len(), LINK_JOBS_MAX + sent - UNANSWERED_MAX, "{:?}", full.first());
            assert!(full.iter().all(|text| text.contains("unanswered")));
            assert_eq!(connections.get(), 1);
            tokio::time::sleep(SILENT_MAX + Duration::from_millis(200)).await;
            let (again, _receiver) = job(&member);
            peers.deliver(again);
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(connections.get(), 2);
            let broken = waiting.iter_mut().filter_map(|receiver| receiver.try_recv().ok()).count();
            assert_eq!(broken, UNANSWERED_MAX, "those who waited on the old one are told");
        });
    }
}
