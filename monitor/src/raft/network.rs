//! What monitors say to each other, as openraft sees it: requests that become [`Job`]s for
//! [`crate::peers`], which has the sockets.
//!
//! openraft wants to move its network between threads; sockets of `transport` stay on one. So a request is
//! encoded here, handed over through a bounded channel, and answered through another. Nothing is retried
//! here: openraft does that, and knows better what is still worth saying.

use super::{Member, Raft, SNAPSHOT_BYTES_MAX, Types};
use bytes::Bytes;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, SnapshotSegmentId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Bytes of one log entry. A command that is larger is refused before it is written: no message could carry
/// it to the other monitors.
pub(crate) const ENTRY_BYTES_MAX: usize = 8 << 20;
/// The pause before openraft talks again to a monitor that could not be reached.
const RETRY: Duration = Duration::from_millis(200);

/// What a monitor says to another one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PeerRequest {
    /// Who are you?
    Who,
    Vote(VoteRequest<u64>),
    Append(AppendEntriesRequest<Types>),
    Snapshot(InstallSnapshotRequest<Types>),
    /// To the leader: I am reached here now.
    Moved(SocketAddr),
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PeerAnswer {
    Who(Who),
    Vote(VoteResponse<u64>),
    Append(AppendEntriesResponse<u64>),
    Snapshot(InstallSnapshotResponse<u64>),
    /// The part of a snapshot is not the one that comes next: id and offset that are expected, and that came.
    Mismatch {
        expected: (String, u64),
        got: (String, u64),
    },
    /// Not to this one, and why.
    Refused(String),
}

/// A monitor says who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Who {
    pub id: u64,
    pub incarnation: u64,
    /// All zeros: it is new.
    pub cluster_id: [u8; 16],
    pub cluster_name: String,
    /// It has a log.
    pub initialised: bool,
    /// The others, as far as it knows: for a new monitor that was given one address.
    pub members: Vec<(u64, SocketAddr, u64)>,
    /// The entry that made it so: the greatest knows best. `(term, index)`.
    pub members_at: (u64, u64),
}

/// Something to be said to a monitor.
pub(crate) struct Job {
    pub target: u64,
    pub member: Member,
    /// A [`PeerRequest`].
    pub request: Bytes,
    pub answer: oneshot::Sender<Result<PeerAnswer, JobFailed>>,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum JobFailed {
    /// It was not sent.
    #[error("{0}")]
    Unreachable(String),
    /// It was sent, and the connection broke.
    #[error("{0}")]
    Broken(String),
}

/// The way to all other monitors.
#[derive(Clone)]
pub(crate) struct Network {
    jobs: mpsc::Sender<Job>,
}

impl Network {
    pub fn new(jobs: mpsc::Sender<Job>) -> Network {
        Network { jobs }
    }
}

/// The way to one of them.
pub(crate) struct Way {
    jobs: mpsc::Sender<Job>,
    target: u64,
    member: Member,
}

type RpcFailure<E> = RPCError<u64, Member, E>;

fn unreachable<E: std::error::Error>(text: impl ToString) -> RpcFailure<E> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(text)))
}

fn network<E: std::error::Error>(text: impl ToString) -> RpcFailure<E> {
    RPCError::Network(NetworkError::new(&AnyError::error(text)))
}

fn strange<E: std::error::Error>(answer: &PeerAnswer) -> RpcFailure<E> {
    match answer {
        PeerAnswer::Refused(text) => unreachable(text),
        _ => network("an answer that fits no question"),
    }
}

impl Way {
    async fn ask<E: std::error::Error>(
        &self,
        request: &PeerRequest,
        limit: Duration,
    ) -> Result<PeerAnswer, RpcFailure<E>> {
        let request = postcard::to_stdvec(request).map_err(network)?.into();
        let (answer, receiver) = oneshot::channel();
        let job = Job { target: self.target, member: self.member.clone(), request, answer };
        self.jobs.try_send(job).map_err(|_| unreachable("too much waits to be said to other monitors"))?;
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(JobFailed::Unreachable(text)))) => Err(unreachable(text)),
            Ok(Ok(Err(JobFailed::Broken(text)))) => Err(network(text)),
            Ok(Err(_)) => Err(unreachable("the monitor is stopping")),
            Err(_) => Err(network(format!("no answer within {} ms", limit.as_millis()))),
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: u64, node: &Member) -> Way {
        Way { jobs: self.jobs.clone(), target, member: node.clone() }
    }
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcFailure<RaftError<u64>>> {
        match self.ask(&PeerRequest::Append(rpc), option.hard_ttl()).await? {
            PeerAnswer::Append(answer) => Ok(answer),
            other => Err(strange(&other)),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcFailure<RaftError<u64, InstallSnapshotError>>> {
        match self.ask(&PeerRequest::Snapshot(rpc), option.hard_ttl()).await? {
            PeerAnswer::Snapshot(answer) => Ok(answer),
            PeerAnswer::Mismatch { expected, got } => {
                let mismatch = SnapshotMismatch {
                    expect: SnapshotSegmentId { id: expected.0, offset: expected.1 },
                    got: SnapshotSegmentId { id: got.0, offset: got.1 },
                };
                let error = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
                Err(RPCError::RemoteError(RemoteError::new(self.target, error)))
            }
            other => Err(strange(&other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcFailure<RaftError<u64>>> {
        match self.ask(&PeerRequest::Vote(rpc), option.hard_ttl()).await? {
            PeerAnswer::Vote(answer) => Ok(answer),
            other => Err(strange(&other)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}

/// What this monitor's Raft answers to monitor `from`. What is no request to Raft, is said in somebody else's name,
/// or is beyond what can be, is refused.
pub(crate) async fn answer(raft: &Raft, from: u64, request: PeerRequest) -> PeerAnswer {
    let says = |vote: &openraft::Vote<u64>| vote.leader_id.node_id == from;
    let failed = |error: String| PeerAnswer::Refused(error);
    match request {
        PeerRequest::Vote(rpc) if says(&rpc.vote) => match raft.vote(rpc).await {
            Ok(answer) => PeerAnswer::Vote(answer),
            Err(error) => failed(error.to_string()),
        },
        PeerRequest::Append(rpc) if says(&rpc.vote) => match raft.append_entries(rpc).await {
            Ok(answer) => PeerAnswer::Append(answer),
            Err(error) => failed(error.to_string()),
        },
        PeerRequest::Snapshot(rpc) if says(&rpc.vote) && is_possible(&rpc) => {
            match raft.install_snapshot(rpc).await {
                Ok(answer) => PeerAnswer::Snapshot(answer),
                Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                    let (expected, got) = (mismatch.expect, mismatch.got);
                    PeerAnswer::Mismatch {
                        expected: (expected.id, expected.offset),
                        got: (got.id, got.offset),
                    }
                }
                Err(error) => failed(error.to_string()),
            }
        }
        _ => failed("a request in somebody else's name, or beyond what can be".to_owned()),
    }
}

/// True if a part of a snapshot stays within what a snapshot may have.
pub(crate) fn is_possible(part: &InstallSnapshotRequest<Types>) -> bool {
    usize::try_from(part.offset)
        .ok()
        .and_then(|offset| offset.checked_add(part.data.len()))
        .is_some_and(|end| end <= SNAPSHOT_BYTES_MAX)
}
