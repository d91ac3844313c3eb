//! The layout is frozen, comes back as it went, and holds against bytes that nobody should send.

use super::*;
use crate::checksum::HOLE;
use crate::ids::*;
use crate::limits::*;
use crate::message::*;
use crate::scrub::Doubt;
use proptest::prelude::*;
use std::fmt::Debug;

fn encode<M: Message>(msg: &M) -> (u16, Vec<u8>, Bytes) {
    let mut meta = BytesMut::new();
    msg.encode_meta(&mut meta);
    let payload = msg.payload().unwrap_or_default();
    (msg.kind(), meta.to_vec(), payload)
}

fn comes_back<M: Message + PartialEq + Debug>(msg: &M) {
    let (kind, meta, payload) = encode(msg);
    assert!(meta.len() + payload.len() <= FRAME_MAX);
    assert_eq!(M::decode(kind, &meta, payload).as_ref(), Ok(msg));
}

fn group() -> impl Strategy<Value = GroupId> {
    any::<(u64, u32, u32)>().prop_map(|(volume, pool, pg)| GroupId {
        volume: VolumeId(volume),
        pg: PgId { pool: PoolId(pool), pg },
    })
}
fn object() -> impl Strategy<Value = ObjectId> {
    (group(), any::<u32>()).prop_map(|(group, index)| ObjectId { group, index })
}
fn generation() -> impl Strategy<Value = Generation> {
    (0..=Ballot::GENERATION_MAX).prop_map(Generation)
}
fn ballot() -> impl Strategy<Value = Ballot> {
    (generation(), 0..=Ballot::ROUND_MAX).prop_map(|(g, r)| Ballot::new(g, r).unwrap())
}
fn head() -> impl Strategy<Value = Head> {
    (ballot(), 0..=SEQ_MAX).prop_map(|(ballot, seq)| Head { ballot, seq })
}
fn blocks(max: u32) -> impl Strategy<Value = BlockRange> {
    (1..=max).prop_flat_map(|count| {
        (0..=OBJECT_BLOCKS_MAX - count).prop_map(move |first| BlockRange::new(first, count))
    })
}
fn sums(count: u32) -> impl Strategy<Value = Box<[u64]>> {
    prop::collection::vec(prop_oneof![Just(HOLE), 1u64..], count as usize).prop_map(Vec::into)
}
fn bytes(blocks: usize) -> Bytes {
    Bytes::from(vec![7u8; blocks * BLOCK_SIZE])
}
fn stored(sums: &[u64]) -> usize {
    sums.iter().filter(|s| **s != HOLE).count()
}

fn to_node() -> impl Strategy<Value = ToNode<Bytes>> {
    let write = blocks(6).prop_flat_map(|blocks| {
        prop::collection::vec(1u64.., blocks.count as usize).prop_map(move |sums| WriteOp::Data {
            blocks,
            checksums: sums.into(),
            data: bytes(blocks.count as usize),
        })
    });
    let zero = blocks(OBJECT_BLOCKS_MAX).prop_map(|blocks| WriteOp::Zero { blocks });
    prop_oneof![
        (any::<u64>(), generation())
            .prop_map(|(v, generation)| ToNode::Fence { volume: VolumeId(v), generation }),
        (group(), ballot(), any::<u64>()).prop_map(|(group, ballot, e)| ToNode::Open {
            group,
            ballot,
            epoch: Epoch(e)
        }),
        (group(), ballot(), prop::collection::vec(any::<u32>(), 0..9))
            .prop_map(|(group, ballot, except)| ToNode::Settle { group, ballot, except }),
        (object(), head(), any::<u64>(), prop_oneof![write, zero]).prop_map(|(object, head, snap, op)| {
            ToNode::Write { object, ballot: head.ballot, seq: head.seq, snap, op }
        }),
        (object(), head(), any::<u32>(), 1..=OBJECT_BLOCKS_MAX, any::<bool>()).prop_map(
            |(object, head, from, object_blocks, urgent)| ToNode::Repair {
                object,
                ballot: head.ballot,
                from: NodeId(from),
                upto: head.seq,
                object_blocks,
                urgent
            }
        ),
        (object(), ballot(), any::<u64>(), blocks(OP_BLOCKS_MAX), any::<bool>())
            .prop_map(|(object, ballot, id, blocks, data)| ToNode::Read { object, ballot, id, blocks, data }),
        (group(), ballot(), any::<u64>()).prop_map(|(group, ballot, id)| ToNode::Confirm {
            group,
            ballot,
            id
        }),
    ]
}

fn vote() -> impl Strategy<Value = ObjectVote> {
    let line = prop_oneof![Just(None), Just(Some(Line::Lost)), ballot().prop_map(|b| Some(Line::At(b)))];
    (any::<u32>(), head(), line).prop_map(|(index, head, behind)| ObjectVote { index, head, behind })
}

fn from_node() -> impl Strategy<Value = FromNode<Bytes>> {
    let why = prop_oneof![
        Just(Refusal::Promised),
        Just(Refusal::Epoch),
        Just(Refusal::NotMember),
        Just(Refusal::NotReady)
    ];
    let data = (1u32..6).prop_flat_map(sums);
    prop_oneof![
        (any::<u64>(), generation(), generation()).prop_map(|(v, generation, fence)| {
            FromNode::FenceRefused { volume: VolumeId(v), generation, fence }
        }),
        (any::<u64>(), generation())
            .prop_map(|(v, generation)| FromNode::Fenced { volume: VolumeId(v), generation }),
        (group(), ballot(), ballot(), any::<bool>(), prop::collection::vec(vote(), 0..6)).prop_map(
            |(group, ballot, settled, lost, objects)| FromNode::Opened {
                group,
                ballot,
                settled,
                lost,
                objects
            }
        ),
        (group(), ballot(), ballot(), generation(), any::<u64>(), why).prop_map(
            |(group, ballot, promised, fence, e, why)| FromNode::OpenRefused {
                group,
                ballot,
                promised,
                fence,
                epoch: Epoch(e),
                why
            }
        ),
        (group(), ballot()).prop_map(|(group, ballot)| FromNode::Settled { group, ballot }),
        (object(), head(), any::<bool>()).prop_map(|(object, head, full)| FromNode::Have {
            object,
            ballot: head.ballot,
            seq: head.seq,
            full
        }),
        (object(), ballot(), head(), any::<bool>())
            .prop_map(|(object, ballot, head, repair)| { FromNode::Gap { object, ballot, head, repair } }),
        (object(), head()).prop_map(|(object, head)| FromNode::NoSpace {
            object,
            ballot: head.ballot,
            seq: head.seq
        }),
        (group(), any::<u64>(), data, any::<bool>()).prop_map(|(group, id, checksums, with)| {
            let data = bytes(if with { stored(&checksums) } else { 0 });
            FromNode::Data { group, id, checksums, data }
        }),
        (group(), any::<u64>(), prop::collection::btree_set(0..OBJECT_BLOCKS_MAX, 0..5)).prop_map(
            |(group, id, blocks)| FromNode::Bad { group, id, blocks: blocks.into_iter().collect() }
        ),
        (group(), any::<u64>()).prop_map(|(group, id)| FromNode::ReadRefused { group, id }),
        (group(), any::<u64>()).prop_map(|(group, id)| FromNode::Confirmed { group, id }),
        group().prop_map(|group| FromNode::Differs { group }),
        (object(), ballot(), any::<bool>(), prop::collection::btree_set(0..OBJECT_BLOCKS_MAX, 0..5))
            .prop_map(|(object, ballot, outvoted, blocks)| {
                FromNode::Doubts { object, ballot, outvoted, disputed: blocks.into_iter().collect() }
            }),
    ]
}

/// Some blocks of a range, in doubt.
fn doubts(blocks: BlockRange, pick: u8) -> Vec<(u32, Doubt)> {
    let kind = |block: u32| if block.is_multiple_of(2) { Doubt::Outvoted } else { Doubt::Disputed };
    (blocks.first..blocks.end()).take(usize::from(pick % 4)).map(|block| (block, kind(block))).collect()
}

fn peer() -> impl Strategy<Value = PeerMsg<Bytes>> {
    let with_sums = || blocks(6).prop_flat_map(|b| (Just(b), sums(b.count)));
    prop_oneof![
        (object(), head(), any::<u64>(), with_sums()).prop_map(|(object, head, request, (blocks, have))| {
            PeerMsg::Fetch { object, ballot: head.ballot, request, min: head.seq, blocks, have }
        }),
        (object(), ballot(), any::<u64>(), head(), with_sums(), any::<u8>()).prop_map(
            |(object, ballot, request, head, (blocks, checksums), pick)| {
                let not_holes: Vec<u32> = (blocks.first..blocks.end())
                    .filter(|b| checksums[(b - blocks.first) as usize] != HOLE)
                    .collect();
                let bad: Vec<u32> = not_holes.iter().copied().take(usize::from(pick % 3)).collect();
                let most = not_holes.len() - bad.len();
                PeerMsg::Piece {
                    object,
                    ballot,
                    request,
                    head,
                    blocks,
                    checksums,
                    bad,
                    doubts: doubts(blocks, pick),
                    data: bytes(usize::from(pick / 3).min(most)),
                }
            }
        ),
        (object(), any::<u64>(), head(), any::<u64>())
            .prop_map(|(object, request, head, sum)| PeerMsg::ScrubAsk { object, request, head, sum }),
        (
            object(),
            any::<u64>(),
            prop_oneof![
                Just(ScrubFound::Unlike),
                Just(ScrubFound::Same),
                ((1u32..9).prop_flat_map(sums), any::<u8>()).prop_map(|(checksums, pick)| {
                    let doubts = doubts(BlockRange::new(0, checksums.len() as u32), pick);
                    ScrubFound::Sums { checksums, doubts }
                })
            ]
        )
            .prop_map(|(object, request, found)| PeerMsg::ScrubTell { object, request, found }),
        (object(), ballot(), any::<u64>()).prop_map(|(object, ballot, request)| PeerMsg::NotYet {
            object,
            ballot,
            request
        }),
        (object(), any::<u64>(), 0..OBJECT_BLOCKS_MAX, any::<u64>()).prop_map(
            |(object, request, block, checksum)| PeerMsg::FetchBlock { object, request, block, checksum }
        ),
        (object(), any::<u64>(), 0..OBJECT_BLOCKS_MAX, any::<u64>(), any::<bool>()).prop_map(
            |(object, request, block, checksum, found)| PeerMsg::Block {
                object,
                request,
                block,
                checksum,
                data: found.then(|| bytes(1))
            }
        ),
        (group(), ballot(), any::<u64>()).prop_map(|(group, settled, digest)| PeerMsg::Digest {
            group,
            settled,
            digest
        }),
        group().prop_map(|group| PeerMsg::DigestDiffers { group }),
        (group(), any::<u64>(), any::<u64>(), ballot(), prop::collection::vec(vote(), 0..6)).prop_map(
            |(group, epoch, request, settled, objects)| PeerMsg::Compare {
                group,
                epoch: Epoch(epoch),
                request,
                settled,
                objects
            }
        ),
        (group(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(group, epoch, request, yes)| {
            PeerMsg::AtLeast { group, epoch: Epoch(epoch), request, yes }
        }),
    ]
}

/// What decodes, encodes to the same bytes: there is one form of each message.
fn one_form<M: Message>(kind: u16, meta: &[u8], payload: Bytes) {
    if let Ok(msg) = M::decode(kind, meta, payload.clone()) {
        assert_eq!(encode(&msg), (kind, meta.to_vec(), payload));
    }
}

fn mutated<M: Message>(msg: &M, at: usize, value: u8, cut: usize, grow: bool) {
    let (kind, mut meta, payload) = encode(msg);
    for end in [meta.len().saturating_sub(1 + cut % 40), meta.len() / 2] {
        if end < meta.len() {
            assert!(M::decode(kind, &meta[..end], payload.clone()).is_err());
        }
    }
    let longer = [&meta[..], &[0]].concat();
    assert!(M::decode(kind, &longer, payload.clone()).is_err());
    if !payload.is_empty() {
        assert!(M::decode(kind, &meta, payload.slice(1..)).is_err());
    }
    if grow {
        let more = bytes(payload.len() / BLOCK_SIZE + OP_BLOCKS_MAX as usize);
        assert!(M::decode(kind, &meta, more).is_err());
    }
    let at = at % meta.len();
    meta[at] = value;
    one_form::<M>(kind, &meta, payload);
}

proptest! {
    #[test]
    fn to_node_comes_back(msg in to_node()) { comes_back(&msg); }
    #[test]
    fn from_node_comes_back(msg in from_node()) { comes_back(&msg); }
    #[test]
    fn peer_comes_back(msg in peer()) { comes_back(&msg); }

    #[test]
    fn a_changed_to_node_is_refused_or_another_message(
        msg in to_node(), at in any::<usize>(), value: u8, cut in any::<usize>(), grow: bool,
    ) { mutated(&msg, at, value, cut, grow); }
    #[test]
    fn a_changed_from_node_is_refused_or_another_message(
        msg in from_node(), at in any::<usize>(), value: u8, cut in any::<usize>(), grow: bool,
    ) { mutated(&msg, at, value, cut, grow); }
    #[test]
    fn a_changed_peer_message_is_refused_or_another_message(
        msg in peer(), at in any::<usize>(), value: u8, cut in any::<usize>(), grow: bool,
    ) { mutated(&msg, at, value, cut, grow); }

    #[test]
    fn garbage_never_panics(
        kind in prop_oneof![0x100u16..0x110, 0x200u16..0x210, 0x300u16..0x310, any::<u16>()],
        meta in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200),
        payload in 0usize..3,
    ) {
        one_form::<ToNode<Bytes>>(kind, &meta, bytes(payload));
        one_form::<FromNode<Bytes>>(kind, &meta, bytes(payload));
        one_form::<PeerMsg<Bytes>>(kind, &meta, bytes(payload));
    }
}

fn an_object() -> ObjectId {
    ObjectId {
        group: GroupId { volume: VolumeId(0x0102_0304_0506_0708), pg: PgId { pool: PoolId(0x11), pg: 0x22 } },
        index: 0x33,
    }
}
fn a_ballot() -> Ballot {
    Ballot::new(Generation(5), 6).unwrap()
}
fn a_head() -> Head {
    Head { ballot: a_ballot(), seq: 0x44 }
}

fn hex<M: Message + PartialEq + Debug>(msg: M) -> String {
    comes_back(&msg);
    let (kind, meta, payload) = encode(&msg);
    let meta: String = meta.iter().map(|b| format!("{b:02x}")).collect();
    format!("{kind:04x} {meta} +{}", payload.len())
}

/// The layout of every kind, frozen: nodes of different builds speak to each other. A line that changes
/// is a new kind or a new protocol version, never an edit of the file.
#[test]
fn golden_bytes() {
    let (object, ballot, head) = (an_object(), a_ballot(), a_head());
    let (group, volume) = (object.group, object.group.volume);
    let (generation, epoch) = (Generation(5), Epoch(9));
    let blocks = BlockRange::new(2, 3);
    let sums = || -> Box<[u64]> { [1, HOLE, 3].into() };
    let write = |op| ToNode::Write { object, ballot, seq: 0x44, snap: 0x55, op };
    let found = [
        hex(ToNode::<Bytes>::Fence { volume, generation }),
        hex(ToNode::<Bytes>::Open { group, ballot, epoch }),
        hex(ToNode::<Bytes>::Settle { group, ballot, except: vec![7, 8] }),
        hex(write(WriteOp::Data { blocks, checksums: [1, 2, 3].into(), data: bytes(3) })),
        hex(write(WriteOp::Zero { blocks })),
        hex(ToNode::<Bytes>::Repair {
            object,
            ballot,
            from: NodeId(2),
            upto: 0x44,
            object_blocks: 1024,
            urgent: true,
        }),
        hex(ToNode::<Bytes>::Read { object, ballot, id: 0x66, blocks, data: true }),
        hex(ToNode::<Bytes>::Confirm { group, ballot, id: 0x66 }),
        hex(FromNode::<Bytes>::Fenced { volume, generation }),
        hex(FromNode::<Bytes>::FenceRefused { volume, generation, fence: Generation(6) }),
        hex(FromNode::<Bytes>::Opened {
            group,
            ballot,
            settled: Ballot(3),
            lost: true,
            objects: vec![
                ObjectVote { index: 1, head, behind: None },
                ObjectVote { index: 2, head, behind: Some(Line::At(Ballot(4))) },
                ObjectVote { index: 3, head, behind: Some(Line::Lost) },
            ],
        }),
        hex(FromNode::<Bytes>::OpenRefused {
            group,
            ballot,
            promised: Ballot(3),
            fence: Generation(6),
            epoch,
            why: Refusal::NotReady,
        }),
        hex(FromNode::<Bytes>::Settled { group, ballot }),
        hex(FromNode::<Bytes>::Have { object, ballot, seq: 0x44, full: true }),
        hex(FromNode::<Bytes>::Gap { object, ballot, head, repair: true }),
        hex(FromNode::<Bytes>::NoSpace { object, ballot, seq: 0x44 }),
        hex(FromNode::Data { group, id: 0x66, checksums: sums(), data: bytes(2) }),
        hex(FromNode::<Bytes>::Bad { group, id: 0x66, blocks: vec![2, 4] }),
        hex(FromNode::<Bytes>::ReadRefused { group, id: 0x66 }),
        hex(FromNode::<Bytes>::Confirmed { group, id: 0x66 }),
        hex(FromNode::<Bytes>::Differs { group }),
        hex(PeerMsg::<Bytes>::Fetch { object, ballot, request: 0x77, min: 0x44, blocks, have: sums() }),
        hex(PeerMsg::Piece {
            object,
            ballot,
            request: 0x77,
            head,
            blocks,
            checksums: sums(),
            bad: vec![4],
            doubts: vec![],
            data: bytes(1),
        }),
        hex(PeerMsg::<Bytes>::NotYet { object, ballot, request: 0x77 }),
        hex(PeerMsg::<Bytes>::FetchBlock { object, request: 0x77, block: 2, checksum: 0x88 }),
        hex(PeerMsg::Block { object, request: 0x77, block: 2, checksum: 0x88, data: Some(bytes(1)) }),
        hex(PeerMsg::<Bytes>::Digest { group, settled: ballot, digest: 0x99 }),
        hex(PeerMsg::<Bytes>::DigestDiffers { group }),
        hex(PeerMsg::<Bytes>::Compare {
            group,
            epoch,
            request: 0x77,
            settled: ballot,
            objects: vec![
                ObjectVote { index: 1, head, behind: None },
                ObjectVote { index: 2, head, behind: Some(Line::At(Ballot(4))) },
            ],
        }),
        hex(PeerMsg::<Bytes>::AtLeast { group, epoch, request: 0x77, yes: true }),
        hex(FromNode::<Bytes>::Doubts { object, ballot, outvoted: true, disputed: vec![2, 4] }),
        hex(PeerMsg::Piece {
            object,
            ballot,
            request: 0x77,
            head,
            blocks,
            checksums: sums(),
            bad: vec![4],
            doubts: vec![(2, Doubt::Disputed), (3, Doubt::Outvoted)],
            data: bytes(1),
        }),
        hex(PeerMsg::<Bytes>::ScrubAsk { object, request: 0x77, head, sum: 0xaa }),
        hex(PeerMsg::<Bytes>::ScrubTell { object, request: 0x77, found: ScrubFound::Unlike }),
        hex(PeerMsg::<Bytes>::ScrubTell { object, request: 0x77, found: ScrubFound::Same }),
        hex(PeerMsg::<Bytes>::ScrubTell {
            object,
            request: 0x77,
            found: ScrubFound::Sums {
                checksums: sums(),
                doubts: vec![(0, Doubt::Outvoted), (9, Doubt::Disputed)],
            },
        }),
    ];
    let frozen: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert_eq!(found.to_vec(), frozen);
}

#[test]
fn the_answer_of_a_full_group_fits_into_a_frame() {
    let vote = ObjectVote { index: u32::MAX, head: a_head(), behind: Some(Line::At(a_ballot())) };
    comes_back(&FromNode::<Bytes>::Opened {
        group: an_object().group,
        ballot: a_ballot(),
        settled: a_ballot(),
        lost: false,
        objects: vec![vote; GROUP_OBJECTS_MAX],
    });
    let mut opened = BytesMut::new();
    FromNode::<Bytes>::Opened {
        group: an_object().group,
        ballot: a_ballot(),
        settled: a_ballot(),
        lost: false,
        objects: vec![vote; GROUP_OBJECTS_MAX + 1],
    }
    .encode_meta(&mut opened);
    let error = FromNode::decode(kind::OPENED, &opened, Bytes::new()).unwrap_err();
    assert!(matches!(error, DecodeError::Range { field: "object count", .. }), "{error}");
    // A node that leaves sends as much.
    comes_back(&PeerMsg::<Bytes>::Compare {
        group: an_object().group,
        epoch: Epoch(9),
        request: 1,
        settled: a_ballot(),
        objects: vec![vote; GROUP_OBJECTS_MAX],
    });
}

#[test]
fn what_breaks_a_limit_is_named() {
    let write = |blocks: BlockRange, sums: Vec<u64>, data: usize| {
        let (kind, meta, _) = encode(&ToNode::Write {
            object: an_object(),
            ballot: a_ballot(),
            seq: 1,
            snap: 0,
            op: WriteOp::Data { blocks, checksums: sums.into(), data: Bytes::new() },
        });
        ToNode::decode(kind, &meta, bytes(data)).map_err(|e| e.to_string())
    };
    let is = |result: Result<ToNode<Bytes>, String>, text: &str| {
        let error = result.unwrap_err();
        assert!(error.contains(text), "{error}");
    };
    assert!(write(BlockRange::new(0, 1), vec![1], 1).is_ok());
    is(write(BlockRange::new(0, 1), vec![HOLE], 1), "checksum is 0");
    is(write(BlockRange::new(0, 1), vec![1], 2), "bytes of payload");
    is(write(BlockRange::new(0, 2), vec![1], 2), "ends early, at checksums");
    is(write(BlockRange::new(0, 1), vec![1, 2], 1), "8 bytes too many");
    is(write(BlockRange::new(0, 0), vec![], 0), "block count is 0");
    let more = OP_BLOCKS_MAX + 1;
    is(write(BlockRange::new(0, more), vec![1; more as usize], more as usize), "block count is 257");
    is(write(BlockRange::new(OBJECT_BLOCKS_MAX, 1), vec![1], 1), "first block is");
    is(write(BlockRange::new(u32::MAX, 1), vec![1], 1), "first block is");
}
