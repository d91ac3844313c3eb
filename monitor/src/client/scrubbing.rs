//! Calls about scrub: of nodes, and of administrators who order scrubs and settle what is disputed.

use super::{CallError, MonitorClient, done, unexpected};
use crate::rpc::{Request, Response, VolumeKey};
use crate::scrub::{CopyDoubts, ScrubReport};
use trefoil_core::node::ScrubOrder;
use trefoil_core::{BlockRange, NodeId, PgId};

impl MonitorClient {
    /// Says how a node's scrub is; what it is to do.
    pub async fn scrub(&self, report: ScrubReport) -> Result<Vec<ScrubOrder>, CallError> {
        match self.ask(Request::Scrub(Box::new(report))).await? {
            Response::ScrubOrders(orders) => Ok(orders),
            other => Err(unexpected(&other)),
        }
    }

    /// Has each node of a placement group scrub it now.
    ///
    /// Errors: [`RpcError::Later`](crate::rpc::RpcError::Later) while too many wait at one of its nodes.
    pub async fn order_scrub(&self, pg: PgId, deep: bool) -> Result<(), CallError> {
        done(self.ask(Request::OrderScrub { pg, deep }).await?)
    }

    /// Of disputed blocks, the copy of `from` is to be believed. That the order is taken says nothing of when it
    /// is carried out: [`MonitorClient::doubts`] does.
    pub async fn settle_blocks(
        &self,
        volume: VolumeKey,
        index: u32,
        blocks: BlockRange,
        from: NodeId,
    ) -> Result<(), CallError> {
        done(self.ask(Request::SettleBlocks { volume, index, blocks, from }).await?)
    }

    /// What the nodes of a placement group have said of blocks there that are in doubt.
    pub async fn doubts(&self, pg: PgId) -> Result<Vec<CopyDoubts>, CallError> {
        match self.ask(Request::Doubts { pg }).await? {
            Response::Doubts(said) => Ok(said),
            other => Err(unexpected(&other)),
        }
    }
}
