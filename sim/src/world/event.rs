//! What can happen in the world: each of it is one step.

use crate::payload::Blocks;
use std::rc::Rc;
use trefoil_core::map::heard::Callers;
use trefoil_core::message::{FromNode, GroupList, ListRequest, PeerMsg, ToNode};
use trefoil_core::node::{ConnId, ReadResult, Ticket};
use trefoil_core::placement::{PgConfig, PgTable};
use trefoil_core::{GroupId, ObjectId, VolumeId};

/// Something that happens. `ni`: a node's number; `li`: a leader's.
#[allow(missing_docs)]
pub enum Event {
    ToNode {
        conn: ConnId,
        msg: ToNode<Blocks>,
    },
    ToLeader {
        conn: ConnId,
        msg: FromNode<Blocks>,
    },
    NodeLosesConn {
        conn: ConnId,
    },
    LeaderLosesConn {
        conn: ConnId,
    },
    LeaderGone {
        ni: usize,
        life: u32,
        conn: ConnId,
    },
    Connect {
        li: usize,
        ni: usize,
    },
    Peer {
        from: usize,
        to: usize,
        link_life: u32,
        life: u32,
        msg: Box<PeerMsg<Blocks>>,
    },
    PeerLost {
        ni: usize,
        life: u32,
        other: usize,
    },
    Flushed {
        ni: usize,
        life: u32,
    },
    SaidDurable {
        ni: usize,
        life: u32,
        ticket: Ticket,
    },
    ReadDone {
        ni: usize,
        life: u32,
        token: u64,
        object: ObjectId,
        found: ReadResult<Blocks>,
    },
    NodeTick {
        ni: usize,
        life: u32,
    },
    NodeStarts {
        ni: usize,
    },
    NodeResumes {
        ni: usize,
        life: u32,
    },
    SpeedRecovers {
        ni: usize,
    },
    RoomAgain {
        ni: usize,
    },
    GrowthKnown {
        ni: usize,
        life: u32,
        conn: ConnId,
    },
    LeaderTick {
        li: usize,
    },
    LeaderResumes {
        li: usize,
    },
    LeaderEnds {
        li: usize,
    },
    ReleaseLeader {
        li: usize,
    },
    Config {
        li: usize,
        pg: u32,
        config: PgConfig,
    },
    LeaderMap {
        li: usize,
        pgs: PgTable,
    },
    Differs {
        li: usize,
        group: GroupId,
    },
    Client {
        li: usize,
        client: u32,
    },
    Renew {
        li: usize,
    },
    RenewsAgain {
        li: usize,
    },
    Renewal {
        volume: VolumeId,
        generation: u64,
        li: usize,
        sent: u64,
    },
    Renewed {
        li: usize,
        until: u64,
    },
    Release {
        volume: VolumeId,
        generation: u64,
        clean: bool,
    },
    VolumeTimer {
        volume: VolumeId,
    },
    Ask {
        volume: VolumeId,
        healer: bool,
        host: usize,
        asked: u64,
    },
    Granted {
        volume: VolumeId,
        generation: u64,
        healer: bool,
        host: usize,
        asked: u64,
        asker: super::requests::Asker,
        pgs: Rc<[PgConfig]>,
    },
    Beat {
        ni: usize,
    },
    Word {
        ni: usize,
        callers: Callers,
    },
    AckChange,
    LeaderAck {
        li: usize,
    },
    MoverStep,
    MoveWish,
    SplitWish,
    NodeFails {
        ni: usize,
        life: u32,
    },
    NodeMap {
        ni: usize,
        life: u32,
        configs: Vec<PgConfig>,
    },
    List {
        ni: usize,
        life: u32,
        by: usize,
        request: ListRequest,
    },
    Listed {
        ni: usize,
        by: usize,
        list: GroupList,
    },
    Monitors(Box<super::replicas::MonitorEvent>),
    Fault,
    /// The node is told that it has lost data.
    LossOrdered {
        ni: usize,
        life: u32,
    },
    /// Nobody has noticed in time that a node has lost data: it finds out by itself.
    LossKnown,
    Lie,
    Believe {
        object: ObjectId,
        block: u32,
        times: u32,
    },
}
