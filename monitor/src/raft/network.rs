//! The way to other monitors: there are none yet.

use super::Types;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode};

/// Everybody is unreachable.
pub(crate) struct Nobody;

type Failure<E> = RPCError<u64, BasicNode, E>;

fn nobody<E: std::error::Error>() -> Failure<E> {
    let text = "there is one monitor: several voters come with a later release";
    RPCError::Unreachable(Unreachable::new(&AnyError::error(text)))
}

impl RaftNetworkFactory<Types> for Nobody {
    type Network = Nobody;
    async fn new_client(&mut self, _target: u64, _node: &BasicNode) -> Nobody {
        Nobody
    }
}

impl RaftNetwork<Types> for Nobody {
    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failure<RaftError<u64>>> {
        Err(nobody())
    }
    async fn install_snapshot(
        &mut self,
        _rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failure<RaftError<u64, InstallSnapshotError>>> {
        Err(nobody())
    }
    async fn vote(
        &mut self,
        _rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failure<RaftError<u64>>> {
        Err(nobody())
    }
}
