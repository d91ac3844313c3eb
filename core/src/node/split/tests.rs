//! Splits at a node: what is asked about first, what is told to leaders, and what a restart knows.

use super::*;
use crate::message::{FromNode, ListRequest, PeerMsg, ToNode, WriteOp};
use crate::node::{Input, NodeConfig, ScrubOrder};
use crate::placement::PgConfig;
use crate::record::Durable;
use crate::scrub::{Doubt, Mark};

const P: PgId = PgId { pool: PoolId(1), pg: 0 };
const Q: PgId = PgId { pool: PoolId(1), pg: 1 };

fn group(pg: PgId) -> GroupId {
    GroupId { volume: VolumeId(1), pg }
}

fn ballot(round: u64) -> Ballot {
    Ballot::new(Generation(1), round).expect("a ballot")
}

/// Two objects of volume 1: one that stays in group 0 of 2, and one that goes to group 1.
fn objects() -> (u32, u32) {
    let of = |pg| (0..99).find(|index| object_pg(1, *index, 2) == pg).expect("one of many");
    (of(0), of(1))
}

struct Host(Node<u8>);

impl Host {
    /// Node 0 with one placement group of a pool of one, led by connection 1, and a write to both objects.
    fn new() -> Host {
        let mut host = Host(Node::new(NodeConfig { id: NodeId(0) }, Durable::default()));
        host.map(1, 1);
        host.open(1, P, 1, 1);
        host.lead(1, ToNode::Settle { group: group(P), ballot: ballot(1), except: vec![] });
        for index in [objects().0, objects().1] {
            assert!(persists(&host.write(1, P, index, 1, 1)));
        }
        host
    }
    fn tell(&mut self, input: Input<u8>) -> Vec<Output<u8>> {
        let mut out = Vec::new();
        self.0.handle(Time(0), input, &mut out);
        let ticket = self.0.given;
        self.0.handle(Time(0), Input::Durable { ticket }, &mut out);
        out
    }
    /// A map with so many placement groups, all in this epoch.
    fn map(&mut self, now: u32, epoch: u64) -> Vec<Output<u8>> {
        let mut out = self.tell(Input::Pools(vec![(PoolId(1), PoolPgs { first: 1, now })]));
        let config = PgConfig::simple(Epoch(epoch), [0, 1, 2].map(NodeId).to_vec());
        let all = (0..now).map(|pg| (PgId { pg, ..P }, config.clone()));
        out.extend(self.tell(Input::Config(all.collect())));
        out
    }
    fn lead(&mut self, conn: u64, msg: ToNode<u8>) -> Vec<Output<u8>> {
        self.tell(Input::Leader { conn, msg })
    }
    fn open(&mut self, conn: u64, pg: PgId, round: u64, epoch: u64) -> Vec<Output<u8>> {
        self.lead(conn, ToNode::Open { group: group(pg), ballot: ballot(round), epoch: Epoch(epoch) })
    }
    fn write(&mut self, conn: u64, pg: PgId, index: u32, round: u64, seq: u64) -> Vec<Output<u8>> {
        let op = WriteOp::Zero { blocks: BlockRange::new(0, 1) };
        let object = ObjectId { group: group(pg), index };
        self.lead(conn, ToNode::Write { object, ballot: ballot(round), seq, snap: 0, op })
    }
}

fn persists(out: &[Output<u8>]) -> bool {
    out.iter().any(|o| matches!(o, Output::Persist { .. }))
}
fn splits(out: &[Output<u8>]) -> bool {
    out.iter().any(|o| matches!(o, Output::Persist { record: Record::Split { pg: P, from: 1, to: 2 }, .. }))
}
fn refused(out: &[Output<u8>], wanted: Refusal) -> bool {
    out.iter().any(
        |o| matches!(o, Output::ToLeader { msg: FromNode::OpenRefused { why, .. }, .. } if *why == wanted),
    )
}

#[test]
fn an_open_under_the_new_epoch_splits_first_and_old_ballots_are_over() {
    let (stays, goes) = objects();
    let mut host = Host::new();
    assert!(!persists(&host.map(2, 2)), "not before somebody asks");
    assert!(persists(&host.write(1, P, stays, 1, 2)), "nor does the leader of before notice");
    let out = host.open(2, Q, 2, 2);
    assert!(splits(&out) && refused(&out, Refusal::Epoch), "its leader is told: {out:?}");
    let votes = out.iter().find_map(|o| match o {
        Output::ToLeader { msg: FromNode::Opened { objects, settled, .. }, .. } => Some((objects, *settled)),
        _ => None,
    });
    let (votes, settled) = votes.expect("opened");
    assert_eq!((votes.len(), votes[0].index, settled), (1, goes, ballot(1)));
    let state = host.0.state();
    assert_eq!(state.groups[&group(P)].objects.keys().copied().collect::<Vec<_>>(), [stays]);
    assert_eq!(state.groups[&group(P)].promised.ballot, ballot(1));
    // Nothing of the ballot of before counts: neither half may be changed or vouched for by it.
    assert!(!persists(&host.write(1, P, stays, 1, 3)) && !persists(&host.write(1, P, goes, 1, 2)));
    let confirm = host.lead(1, ToNode::Confirm { group: group(P), ballot: ballot(1), id: 7 });
    assert!(matches!(confirm[..], [Output::ToLeader { msg: FromNode::ReadRefused { .. }, .. }]));
    assert!(refused(&host.open(1, P, 1, 1), Refusal::Epoch));
    assert!(!splits(&host.open(1, P, 2, 2)), "once");
}

#[test]
fn an_object_of_another_group_is_refused() {
    let (stays, goes) = objects();
    let mut host = Host::new();
    host.map(2, 2);
    host.open(1, P, 2, 2);
    let closes = |out: &[Output<u8>]| matches!(out, [Output::CloseLeader { .. }]);
    assert!(closes(&host.lead(1, ToNode::Settle { group: group(P), ballot: ballot(2), except: vec![goes] })));
    host.lead(1, ToNode::Settle { group: group(P), ballot: ballot(2), except: vec![] });
    assert!(closes(&host.write(1, P, goes, 2, 1)));
    assert!(persists(&host.write(1, P, stays, 2, 2)));
}

#[test]
fn after_a_restart_a_map_from_before_the_split_is_no_map() {
    let mut host = Host::new();
    host.map(2, 2);
    assert!(splits(&host.tell(Input::Tick)), "nobody has asked");
    let mut host = Host(Node::new(NodeConfig { id: NodeId(0) }, host.0.state().clone()));
    host.map(1, 1);
    assert!(refused(&host.open(1, P, 9, 1), Refusal::NotReady), "it would show half of the group");
    let list =
        |epoch| Input::List { id: 1, request: ListRequest { pg: P, epoch: Epoch(epoch), fences: vec![] } };
    assert!(host.tell(list(2)).is_empty());
    host.map(2, 2);
    assert!(!host.tell(list(2)).is_empty());
    assert!(host.tell(list(3)).is_empty(), "what it is in that epoch the map does not say");
    assert!(!persists(&host.tell(Input::Tick)));
}

#[test]
fn who_was_away_for_several_splits_makes_one_of_them() {
    let mut host = Host::new();
    host.map(2, 2);
    host.map(8, 4);
    let out = host.open(2, PgId { pg: 5, ..P }, 2, 4);
    let all =
        |o: &Output<u8>| matches!(o, Output::Persist { record: Record::Split { pg: P, from: 1, to: 8 }, .. });
    assert!(out.iter().any(all), "{out:?}");
    let state = host.0.state();
    assert!((0..8).all(|pg| state.pgs[&PgId { pg, ..P }].pg_num == 8));
    assert!((0..8).all(|pg| state.groups[&group(PgId { pg, ..P })].promised.ballot >= ballot(1)));
    // A node that has nothing of the pool begins with it as it is.
    let mut other = Host(Node::new(NodeConfig { id: NodeId(0) }, Durable::default()));
    other.map(8, 4);
    let out = other.open(2, PgId { pg: 5, ..P }, 2, 4);
    let mark = |o: &Output<u8>| {
        matches!(o, Output::Persist { record: Record::Split { pg: PgId { pg: 5, .. }, from: 8, to: 8 }, .. })
    };
    assert!(out.iter().any(mark), "{out:?}");
}

#[test]
fn a_fetch_of_what_has_gone_elsewhere_is_refused() {
    let (stays, goes) = objects();
    let mut host = Host::new();
    let fetch = |host: &mut Host, index: u32| {
        let blocks = BlockRange::new(0, 1);
        let object = ObjectId { group: group(P), index };
        let msg = PeerMsg::Fetch { object, ballot: ballot(1), request: 5, min: 0, blocks, have: [0].into() };
        host.tell(Input::Peer { node: NodeId(1), msg })
    };
    let serves = |out: &[Output<u8>]| out.iter().any(|o| matches!(o, Output::Read { .. }));
    assert!(serves(&fetch(&mut host, goes)));
    host.map(2, 2);
    assert!(splits(&host.tell(Input::Tick)));
    // Group 0 has no head of it any more: that is not a copy which was never written.
    let out = fetch(&mut host, goes);
    assert!(matches!(out[..], [Output::ToPeer { msg: PeerMsg::NotYet { .. }, .. }]), "{out:?}");
    assert!(serves(&fetch(&mut host, stays)));
}

#[test]
fn what_is_in_doubt_goes_where_its_object_goes() {
    let (stays, goes) = objects();
    let mut host = Host::new();
    let mark = |block| vec![Mark { block, doubt: Doubt::Disputed, checksum: 9 }];
    let mut state = host.0.state().clone();
    for (index, block) in [(stays, 1), (goes, 2)] {
        let object = ObjectId { group: group(P), index };
        state.apply(&Record::<u8>::Doubt { object, marks: mark(block) });
    }
    host = Host(Node::new(NodeConfig { id: NodeId(0) }, state));
    host.map(2, 2);
    // An administrator's word about an object by its new name finds it, however late the node is.
    let (object, blocks) = (ObjectId { group: group(Q), index: goes }, BlockRange::new(0, 9));
    let out = host.tell(Input::Scrub(ScrubOrder::Believe { object, blocks, from: NodeId(1) }));
    assert!(splits(&out), "{out:?}");
    let state = host.0.state();
    assert_eq!(state.groups[&group(P)].marks(stays), mark(1));
    assert!(state.groups[&group(P)].marks(goes).is_empty());
    assert_eq!(state.groups[&group(Q)].marks(goes)[0].doubt, Doubt::Outvoted);
    assert_eq!(state.groups[&group(Q)].doubts.len(), 1);
}

#[test]
fn a_scrub_that_is_under_way_looks_at_both_halves() {
    let mut host = Host::new();
    let order = Input::Scrub(ScrubOrder::Scrub { pg: P, deep: false });
    let mut looked: Vec<ObjectId> = Vec::new();
    let mut note = |out: &[Output<u8>]| {
        looked.extend(out.iter().filter_map(|o| match o {
            Output::Read { object, .. } => Some(*object),
            _ => None,
        }));
    };
    note(&host.tell(order));
    // Both are due at the first tick; the split, for which an Open asks, comes while they are compared.
    note(&host.tell(Input::Tick));
    host.map(2, 2);
    note(&host.open(2, Q, 2, 2));
    for _ in 0..60 {
        note(&host.tell(Input::Tick));
    }
    let (stays, goes) = objects();
    for (pg, index) in [(P, stays), (Q, goes)] {
        let object = ObjectId { group: group(pg), index };
        assert!(looked.contains(&object), "{object} was not looked at: {looked:?}");
    }
}

/// Found by the store's tests: the group that an object has gone to may not be split as far as its parent.
#[test]
fn an_object_is_found_where_it_is_by_way_of_what_has_split_off() {
    let index = (0..999).find(|index| object_pg(1, *index, 16) == 14).expect("one of many");
    let at = |pg| PgId { pg, ..P };
    let object = |pg| ObjectId { group: group(at(pg)), index };
    let mut state = Durable::default();
    let split = |state: &mut Durable, pg, from, to| {
        state.apply(&Record::<()>::Split { pg: at(pg), from, to });
    };
    state.group_mut(group(at(2))).objects.insert(index, Head { ballot: ballot(1), seq: 1 });
    split(&mut state, 2, 3, 12);
    assert!(state.groups[&group(at(6))].objects.contains_key(&index));
    split(&mut state, 2, 12, 20);
    assert_eq!(state.place(object(2)), object(6));
    split(&mut state, 6, 12, 20);
    assert_eq!(state.place(object(2)), object(14));
    assert!(state.groups[&group(at(14))].objects.contains_key(&index));
}
