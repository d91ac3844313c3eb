//! What a message or record is about, for the trace.

use crate::payload::Blocks;
use crate::trace::About;
use trefoil_core::message::{FromNode, PeerMsg, ToNode};
use trefoil_core::record::Record;

/// Of a leader's message.
pub fn about_to_node(msg: &ToNode<Blocks>) -> About {
    match msg {
        ToNode::Fence { volume, .. } => Some((*volume, None)),
        ToNode::Open { group, .. } | ToNode::Settle { group, .. } | ToNode::Confirm { group, .. } => {
            Some((group.volume, None))
        }
        ToNode::Write { object, .. } | ToNode::Repair { object, .. } | ToNode::Read { object, .. } => {
            Some((object.group.volume, Some(object.index)))
        }
    }
}

/// Of a node's answer.
pub fn about_from_node(msg: &FromNode<Blocks>) -> About {
    match msg {
        FromNode::Fenced { volume, .. } | FromNode::FenceRefused { volume, .. } => Some((*volume, None)),
        FromNode::Opened { group, .. }
        | FromNode::OpenRefused { group, .. }
        | FromNode::Settled { group, .. }
        | FromNode::Data { group, .. }
        | FromNode::Bad { group, .. }
        | FromNode::ReadRefused { group, .. }
        | FromNode::Confirmed { group, .. }
        | FromNode::Differs { group } => Some((group.volume, None)),
        FromNode::Have { object, .. }
        | FromNode::Gap { object, .. }
        | FromNode::Doubts { object, .. }
        | FromNode::NoSpace { object, .. } => Some((object.group.volume, Some(object.index))),
    }
}

/// Of what nodes say to each other.
pub fn about_peer(msg: &PeerMsg<Blocks>) -> About {
    match msg {
        PeerMsg::Fetch { object, .. }
        | PeerMsg::Piece { object, .. }
        | PeerMsg::NotYet { object, .. }
        | PeerMsg::FetchBlock { object, .. }
        | PeerMsg::ScrubAsk { object, .. }
        | PeerMsg::ScrubTell { object, .. }
        | PeerMsg::Block { object, .. } => Some((object.group.volume, Some(object.index))),
        PeerMsg::Digest { group, .. }
        | PeerMsg::DigestDiffers { group }
        | PeerMsg::Compare { group, .. }
        | PeerMsg::AtLeast { group, .. } => Some((group.volume, None)),
    }
}

/// Of a record.
pub fn about_record(record: &Record<Blocks>) -> About {
    match record {
        Record::Fence { volume, .. } | Record::DeleteVolume { volume } => Some((*volume, None)),
        Record::Open { group, .. } | Record::Settle { group, .. } => Some((group.volume, None)),
        Record::Write { object, .. }
        | Record::Install { object, .. }
        | Record::Doubt { object, .. }
        | Record::Heal { object, .. } => Some((object.group.volume, Some(object.index))),
        Record::LostState { .. } | Record::Epoch { .. } | Record::Leave { .. } | Record::Split { .. } => None,
    }
}
