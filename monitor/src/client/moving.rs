//! Calls about placement groups on the move: of nodes that are asked, and of administrators.

use super::{CALL_TIMEOUT, CallError, MonitorClient, done, unexpected};
use crate::rpc::*;
use std::time::Duration;
use trefoil_core::map::{LayoutReport, MoveLimits};
use trefoil_core::message::{GroupList, ListRequest};
use trefoil_core::{Incarnation, NodeId, PgId};

impl MonitorClient {
    /// What the monitors want to know of this node: as soon as there is something, or nothing after
    /// `timeout` (which is cut to [`WAIT_MAX`]). True: where placement groups live, besides.
    pub async fn node_work(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        timeout: Duration,
    ) -> Result<(Vec<ListRequest>, bool), CallError> {
        let timeout = timeout.min(Duration::from_micros(WAIT_MAX));
        let request = Request::NodeWork { node, incarnation, timeout: timeout.as_micros() as u64 };
        match self.call(&request, timeout + CALL_TIMEOUT).await?.0 {
            Response::NodeWork { lists, layout } => Ok((lists, layout)),
            other => Err(unexpected(&other)),
        }
    }

    /// This node's answer to what it was asked by [`MonitorClient::node_work`].
    pub async fn listed(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        list: GroupList,
    ) -> Result<(), CallError> {
        done(self.ask(Request::Listed { node, incarnation, list }).await?)
    }

    /// Where placement groups live, as far as this node knows.
    pub async fn layout(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        report: LayoutReport,
    ) -> Result<(), CallError> {
        done(self.ask(Request::Layout { node, incarnation, report }).await?)
    }

    /// What is on the move.
    pub async fn moves(&self) -> Result<MovesStatus, CallError> {
        match self.ask(Request::Moves).await? {
            Response::Moves(moves) => Ok(*moves),
            other => Err(unexpected(&other)),
        }
    }

    /// Moves stop where they are, or go on.
    pub async fn pause_moves(&self, paused: bool) -> Result<(), CallError> {
        done(self.ask(Request::PauseMoves { paused }).await?)
    }

    /// Undoes a placement group's move, and lets none begin until moves are resumed.
    pub async fn undo_move(&self, pg: PgId) -> Result<(), CallError> {
        done(self.ask(Request::UndoMove { pg }).await?)
    }

    /// Says how much may be moved at once.
    pub async fn set_move_limits(&self, limits: MoveLimits) -> Result<(), CallError> {
        done(self.ask(Request::SetMoveLimits { limits }).await?)
    }

    /// What the nodes of a placement group say that they have of it.
    pub async fn pg(&self, pg: PgId) -> Result<PgStatus, CallError> {
        match self.ask(Request::Pg { pg }).await? {
            Response::Pg(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }
}
