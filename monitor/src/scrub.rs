//! Scrub, as the monitors see it: what nodes say of theirs, and what administrators have them do.
//!
//! Soft state of the monitor that leads. Nodes scrub by their own schedules and mark what they find in their
//! own copies; nothing here decides anything. An order is handed to a node with the answer to its next
//! report, as soon as the node has room for it, a word on whom to believe a few times over, and is forgotten
//! then. Given while a node is away, or to a monitor that leads no more, it is to be given again: who gave it
//! can see here ([`CopyDoubts`]) whether it is done.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use trefoil_core::limits::NODE_SCRUBS_MAX;
use trefoil_core::map::ClusterMap;
use trefoil_core::node::ScrubOrder;
use trefoil_core::scrub::Doubt;
use trefoil_core::{BlockRange, Head, Incarnation, NodeId, ObjectId, PgId, Time, VolumeId};

/// Blocks in doubt that one report names. Of more, the first are named and all are counted.
pub const DOUBTS_PER_REPORT_MAX: usize = 256;
/// Orders that wait for one node. Beyond it new ones are refused.
pub const ORDERS_PER_NODE_MAX: usize = 4096;
/// Orders in one answer.
pub const ORDERS_PER_ANSWER_MAX: usize = 64;
/// Placement groups that wait for their scrub at a node while it is given more: half of what it can take, as its
/// calendar and others' orders come besides.
const OPEN_AT_NODE_MAX: u64 = NODE_SCRUBS_MAX as u64 / 2;
/// How often a node is told whose copy to believe: some reports apart, so that all copies hear of it at about
/// the same time and what one of them found meanwhile is put right.
const BELIEVE_TIMES: u32 = 4;
/// The orders of a node that was silent for so long (µs) are dropped.
const ORDER_FOR: u64 = 60_000_000;
/// A report is believed for so long (µs).
const REPORT_FOR: u64 = 10_000_000;

/// A block of a node's copy that is in doubt.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtReport {
    /// The object.
    pub object: ObjectId,
    /// The copy's head.
    pub head: Head,
    /// The block.
    pub block: u32,
    /// Why.
    pub doubt: Doubt,
    /// The checksum that the copy has recorded for it.
    pub checksum: u64,
}

/// What a node says of its scrub, every second or so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Its id.
    pub node: NodeId,
    /// Its store.
    pub incarnation: Incarnation,
    /// Placement groups that it has something of.
    pub pgs: u64,
    /// Those whose light or deep scrub is overdue by more than its interval.
    pub late: u64,
    /// Seconds since the light scrub that was longest ago; none: nothing to scrub, or light scrubs are off.
    pub oldest_light_s: Option<u64>,
    /// The same of deep scrubs.
    pub oldest_deep_s: Option<u64>,
    /// Placement groups that are being scrubbed or wait for it.
    pub open: u64,
    /// Blocks of its copies that are in doubt.
    pub in_doubt: u64,
    /// The first [`DOUBTS_PER_REPORT_MAX`] of them.
    pub doubts: Vec<DoubtReport>,
}

/// What a node says of the blocks of one placement group that are in doubt in its copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDoubts {
    /// The node, a member of the placement group or one that is coming to be.
    pub node: NodeId,
    /// It has reported lately; else nothing is known of it.
    pub reported: bool,
    /// Blocks that it has in doubt in any placement group, and that its report did not name: some may be of
    /// this one.
    pub unnamed: u64,
    /// The blocks of this placement group that it has named, in order.
    pub doubts: Vec<DoubtReport>,
}

/// Why an order was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No such placement group.
    #[error("there is no placement group {0}: see `trefoil pg list`")]
    NoPg(PgId),
    /// The object is beyond the volume's end.
    #[error("the volume has {objects} objects, from 0: there is no object {index}")]
    NoObject {
        /// What was asked for.
        index: u32,
        /// How many there are.
        objects: u64,
    },
    /// The node has no copy.
    #[error("{from} has no copy of object {index}: its copies are on {members}")]
    NotMember {
        /// Who was named.
        from: NodeId,
        /// The object.
        index: u32,
        /// Who has copies.
        members: String,
    },
    /// The copy to be believed cannot be had.
    #[error("{0} has not been heard of lately: bring it back first, its copy is the one to be believed")]
    Silent(NodeId),
    /// Nothing to settle.
    #[error(
        "no copy of object {0} has disputed blocks there: there is nothing to settle (see `trefoil health`)"
    )]
    NotDisputed(u32),
    /// The limit. It passes: nodes fetch their orders every second.
    #[error("{ORDERS_PER_NODE_MAX} orders wait for {0} already: try again later")]
    TooMany(NodeId),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scrubs {
    reports: BTreeMap<NodeId, (Time, ScrubReport)>,
    orders: BTreeMap<NodeId, Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    order: ScrubOrder,
    since: Time,
    times: u32,
}

impl Waiting {
    /// Whom to believe.
    fn is_word(&self) -> bool {
        matches!(self.order, ScrubOrder::Believe { .. })
    }

    /// Its node, which was heard of then, has been away for too long.
    fn is_over(&self, heard: Option<Time>, now: Time) -> bool {
        now.since(heard.map_or(self.since, |at| at.max(self.since))) >= ORDER_FOR
    }
}

impl Scrubs {
    /// A node has reported. What it is to do: words on whom to believe first, then scrubs, as far as it has room.
    pub fn heard(&mut self, report: ScrubReport, now: Time) -> Vec<ScrubOrder> {
        let node = report.node;
        let room = OPEN_AT_NODE_MAX.saturating_sub(report.open);
        let before = self.reports.insert(node, (now, report)).map(|(at, _)| at);
        let Some(waiting) = self.orders.get_mut(&node) else { return Vec::new() };
        waiting.retain(|it| !it.is_over(before, now));
        let mut orders = Vec::new();
        let (words, scrubs): (Vec<_>, Vec<_>) = waiting.iter_mut().partition(|it| it.is_word());
        let words = words.into_iter().take(ORDERS_PER_ANSWER_MAX);
        let left = ORDERS_PER_ANSWER_MAX.saturating_sub(words.len());
        for it in words.chain(scrubs.into_iter().take(left.min(room as usize))) {
            orders.push(it.order);
            it.times = it.times.saturating_sub(1);
        }
        waiting.retain(|it| it.times > 0);
        if waiting.is_empty() {
            self.orders.remove(&node);
        }
        orders
    }

    /// The reports that are fresh, by node.
    pub fn reports(&self, now: Time) -> impl Iterator<Item = &ScrubReport> {
        self.reports.values().filter(move |(at, _)| now.since(*at) <= REPORT_FOR).map(|(_, report)| report)
    }

    /// All of them get it, or none. One that waits already is not given twice.
    fn give(&mut self, nodes: &[NodeId], order: ScrubOrder, times: u32, now: Time) -> Result<(), OrderError> {
        for node in nodes {
            let Some(waiting) = self.orders.get_mut(node) else { continue };
            let heard = self.reports.get(node).map(|(at, _)| *at);
            if waiting.len() >= ORDERS_PER_NODE_MAX {
                waiting.retain(|it| !it.is_over(heard, now));
            }
            if waiting.len() >= ORDERS_PER_NODE_MAX && !waiting.iter().any(|it| it.order == order) {
                return Err(OrderError::TooMany(*node));
            }
        }
        for node in nodes {
            let waiting = self.orders.entry(*node).or_default();
            match waiting.iter_mut().find(|it| it.order == order) {
                Some(it) => (it.since, it.times) = (now, times),
                None => waiting.push(Waiting { order, since: now, times }),
            }
        }
        Ok(())
    }

    /// A placement group is to be scrubbed by each of its nodes.
    pub fn scrub(&mut self, map: &ClusterMap, pg: PgId, deep: bool, now: Time) -> Result<(), OrderError> {
        let config = map.pgs.get(&pg).ok_or(OrderError::NoPg(pg))?.config();
        self.give(&config.everyone(), ScrubOrder::Scrub { pg, deep }, 1, now)
    }

    /// An administrator has said whose copy of disputed blocks to believe.
    pub fn settle(
        &mut self,
        map: &ClusterMap,
        (volume, index): (VolumeId, u32),
        blocks: BlockRange,
        from: NodeId,
        now: Time,
    ) -> Result<(), OrderError> {
        let Some(info) = map.volumes.get(&volume) else { return Err(OrderError::NotDisputed(index)) };
        let objects = u64::from(info.objects());
        let group = map.group_of(volume, index).ok_or(OrderError::NoObject { index, objects })?;
        let pg = group.pg;
        let config = map.pgs.get(&pg).ok_or(OrderError::NoPg(pg))?.config();
        let members = config.everyone();
        if !members.contains(&from) {
            let names: Vec<String> = members.iter().map(NodeId::to_string).collect();
            return Err(OrderError::NotMember { from, index, members: names.join(", ") });
        }
        if !self.reports(now).any(|report| report.node == from) {
            return Err(OrderError::Silent(from));
        }
        let object = ObjectId { group, index };
        let disputed = |it: &DoubtReport| {
            it.object == object
                && it.doubt == Doubt::Disputed
                && blocks.contains(BlockRange::new(it.block, 1))
        };
        // Reports are cut short where there is much in doubt: then the nodes themselves know.
        let known = self
            .reports(now)
            .any(|report| report.doubts.iter().any(disputed) || report.in_doubt > report.doubts.len() as u64);
        if !known {
            return Err(OrderError::NotDisputed(index));
        }
        self.give(&members, ScrubOrder::Believe { object, blocks, from }, BELIEVE_TIMES, now)
    }

    /// What each node of a placement group says of the blocks there that are in doubt; none: no such group.
    pub fn of_pg(&self, map: &ClusterMap, pg: PgId, now: Time) -> Option<Vec<CopyDoubts>> {
        let members = map.pgs.get(&pg)?.config().everyone();
        let said = |node: NodeId| {
            let report = self.reports.get(&node).filter(|(at, _)| now.since(*at) <= REPORT_FOR);
            let report = report.map(|(_, report)| report);
            let doubts = report.map_or(&[][..], |report| &report.doubts);
            CopyDoubts {
                node,
                reported: report.is_some(),
                unnamed: report.map_or(0, |it| it.in_doubt.saturating_sub(it.doubts.len() as u64)),
                doubts: doubts.iter().filter(|it| it.object.group.pg == pg).copied().collect(),
            }
        };
        Some(members.into_iter().map(said).collect())
    }

    /// Blocks that are disputed, in words: the volume's name, object, block, and which copy holds what.
    pub fn disputed(&self, map: &ClusterMap, now: Time) -> Vec<String> {
        let mut blocks: BTreeMap<(VolumeId, u32, u32), Vec<(NodeId, DoubtReport)>> = BTreeMap::new();
        for report in self.reports(now) {
            for it in &report.doubts {
                let key = (it.object.group.volume, it.object.index, it.block);
                blocks.entry(key).or_default().push((report.node, *it));
            }
        }
        blocks.retain(|_, copies| copies.iter().any(|(_, it)| it.doubt == Doubt::Disputed));
        let copy = |(node, it): &(NodeId, DoubtReport)| {
            let outvoted = if it.doubt == Doubt::Outvoted { ", outvoted" } else { "" };
            format!("{node} has {:016x} at head {}{outvoted}", it.checksum, it.head)
        };
        let mut texts = Vec::new();
        for ((volume, index, block), copies) in &blocks {
            let name = map.volumes.get(volume).map_or_else(|| volume.to_string(), |it| it.name.clone());
            let copies: Vec<String> = copies.iter().map(copy).collect();
            texts.push(format!("{name} object {index} block {block}: {}", copies.join("; ")));
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::map::{Ack, Command, FailureDomain};

    fn map() -> ClusterMap {
        let mut map = ClusterMap::new();
        let mut apply = |command: Command| map.apply(&command).unwrap();
        apply(Command::Init { cluster_id: [5; 16], name: "test".to_owned() });
        for n in 0..3 {
            apply(Command::RegisterNode {
                id: None,
                incarnation: Incarnation(n + 1),
                address: ([127, 0, 0, 1], 1).into(),
                host: format!("host{n}"),
                class: None,
                size: 1 << 40,
                now: 0,
            });
        }
        let (name, domain) = ("p".to_owned(), FailureDomain::Host);
        apply(Command::CreatePool { name: name.clone(), size: 3, pg_num: 4, domain, ack: Ack::Majority });
        let (size, object_size) = (64 << 20, 4 << 20);
        apply(Command::CreateVolume {
            name: "disk0".to_owned(),
            pool: name,
            size,
            object_size,
            io_timeout: None,
        });
        map
    }

    fn report(map: &ClusterMap, node: NodeId, doubt: Option<Doubt>) -> ScrubReport {
        let (volume, info) = map.volume_named("disk0").unwrap();
        let pg = PgId { pool: info.pool, pg: trefoil_core::crush::object_pg(volume.0, 3, 4) };
        let object = ObjectId { group: trefoil_core::GroupId { volume, pg }, index: 3 };
        let it = |doubt| DoubtReport { object, head: Head::ZERO, block: 7, doubt, checksum: 9 };
        ScrubReport {
            node,
            doubts: doubt.map(it).into_iter().collect(),
            in_doubt: 1,
            ..ScrubReport::default()
        }
    }

    #[test]
    fn an_administrators_word_goes_to_every_copy_and_only_for_what_is_disputed() {
        let map = map();
        let nodes: Vec<NodeId> = map.nodes.keys().copied().collect();
        let volume = map.volume_named("disk0").unwrap().0;
        let mut scrubs = Scrubs::default();
        let (all, now) = (BlockRange::new(0, 1024), Time(1_000));
        let settle =
            |scrubs: &mut Scrubs, index, blocks| scrubs.settle(&map, (volume, index), blocks, nodes[0], now);
        assert_eq!(settle(&mut scrubs, 3, all), Err(OrderError::Silent(nodes[0])));
        for (node, doubt) in nodes.iter().zip([None, Some(Doubt::Disputed), Some(Doubt::Outvoted)]) {
            let mut said = report(&map, *node, doubt);
            said.in_doubt = said.doubts.len() as u64;
            assert!(scrubs.heard(said, now).is_empty());
        }
        assert_eq!(settle(&mut scrubs, 2, all), Err(OrderError::NotDisputed(2)));
        assert_eq!(settle(&mut scrubs, 3, BlockRange::new(8, 9)), Err(OrderError::NotDisputed(3)));
        assert_eq!(settle(&mut scrubs, 16, all), Err(OrderError::NoObject { index: 16, objects: 16 }));
        let stranger = scrubs.settle(&map, (volume, 3), all, NodeId(77), now);
        assert!(matches!(stranger, Err(OrderError::NotMember { .. })), "{stranger:?}");
        assert_eq!(settle(&mut scrubs, 3, all), Ok(()));
        for node in &nodes {
            for _ in 0..BELIEVE_TIMES {
                let orders = scrubs.heard(report(&map, *node, None), now);
                assert!(matches!(orders[..], [ScrubOrder::Believe { from, .. }] if from == nodes[0]));
            }
            assert!(scrubs.heard(report(&map, *node, None), now).is_empty());
        }
    }

    #[test]
    fn what_is_disputed_is_named_with_what_each_copy_holds() {
        let map = map();
        let mut scrubs = Scrubs::default();
        for (node, doubt) in map.nodes.keys().zip([Doubt::Disputed, Doubt::Outvoted]) {
            scrubs.heard(report(&map, *node, Some(doubt)), Time(5));
        }
        let said = scrubs.disputed(&map, Time(6));
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("disk0 object 3 block 7: ") && said[0].contains("outvoted"), "{said:?}");
        assert!(scrubs.disputed(&map, Time(REPORT_FOR + 6)).is_empty(), "too old to be known");
    }

    #[test]
    fn each_copy_of_a_group_says_what_it_has_in_doubt_or_that_nobody_knows() {
        let map = map();
        let nodes: Vec<NodeId> = map.nodes.keys().copied().collect();
        let mut scrubs = Scrubs::default();
        let mut first = report(&map, nodes[0], Some(Doubt::Disputed));
        first.in_doubt = 5;
        let pg = first.doubts[0].object.group.pg;
        scrubs.heard(first.clone(), Time(5));
        scrubs.heard(report(&map, nodes[1], None), Time(5));
        let said = scrubs.of_pg(&map, pg, Time(6)).unwrap();
        assert_eq!(said.len(), 3);
        let of = |node: NodeId| said.iter().find(|it| it.node == node).unwrap();
        assert_eq!((of(nodes[0]).reported, of(nodes[0]).unnamed), (true, 4));
        assert_eq!(of(nodes[0]).doubts, first.doubts);
        assert!(of(nodes[1]).reported && of(nodes[1]).doubts.is_empty());
        assert!(!of(nodes[2]).reported, "it has said nothing");
        assert!(scrubs.of_pg(&map, pg, Time(REPORT_FOR + 6)).unwrap().iter().all(|it| !it.reported));
        let other = PgId { pg: (pg.pg + 1) % 4, ..pg };
        assert!(scrubs.of_pg(&map, other, Time(6)).unwrap().iter().all(|it| it.doubts.is_empty()));
        assert_eq!(scrubs.of_pg(&map, PgId { pg: 99, ..pg }, Time(6)), None);
    }

    fn many(map: &ClusterMap) -> Vec<ScrubOrder> {
        let pg = map.pgs.iter().next().unwrap().0;
        (0..ORDERS_PER_NODE_MAX as u32)
            .map(|n| ScrubOrder::Scrub { pg: PgId { pg: n, ..pg }, deep: true })
            .collect()
    }

    #[test]
    fn orders_are_bounded_and_do_not_wait_for_ever() {
        let map = map();
        let mut scrubs = Scrubs::default();
        let pg = map.pgs.iter().next().unwrap().0;
        let node = *map.nodes.keys().next().unwrap();
        for order in many(&map) {
            scrubs.give(&[node], order, 1, Time(0)).unwrap();
        }
        assert_eq!(scrubs.scrub(&map, pg, true, Time(0)), Ok(()), "that one waits already");
        assert_eq!(scrubs.scrub(&map, pg, false, Time(0)), Err(OrderError::TooMany(node)));
        assert_eq!(scrubs.orders.len(), 3, "all or none");
        assert_eq!(scrubs.heard(report(&map, node, None), Time(1)).len(), ORDERS_PER_ANSWER_MAX);
        assert_eq!(scrubs.scrub(&map, pg, false, Time(1)), Ok(()));
        assert!(scrubs.heard(report(&map, node, None), Time(1 + ORDER_FOR)).is_empty());
        let none = PgId { pg: 99, ..pg };
        assert_eq!(scrubs.scrub(&map, none, false, Time(0)), Err(OrderError::NoPg(none)));
        // Of a node that has never come.
        let away = NodeId(77);
        for order in many(&map) {
            scrubs.give(&[away], order, 1, Time(0)).unwrap();
        }
        let next = ScrubOrder::Scrub { pg, deep: false };
        assert_eq!(scrubs.give(&[away], next, 1, Time(ORDER_FOR - 1)), Err(OrderError::TooMany(away)));
        assert_eq!(scrubs.give(&[away], next, 1, Time(ORDER_FOR)), Ok(()));
    }

    #[test]
    fn a_node_gets_as_many_as_it_can_take_and_loses_none_while_it_reports() {
        let map = map();
        let mut scrubs = Scrubs::default();
        let node = *map.nodes.keys().next().unwrap();
        let all = many(&map);
        for order in &all {
            scrubs.give(&[node], *order, 1, Time(0)).unwrap();
        }
        // It scrubs ten in a second: much longer than an order waits for a silent node.
        let (mut open, mut got, mut now) = (0u64, Vec::new(), Time(0));
        while got.len() < all.len() {
            now = Time(now.0 + 1_000_000);
            assert!(now.0 < 1000 * 1_000_000, "{} of {}", got.len(), all.len());
            let report = ScrubReport { open, ..report(&map, node, None) };
            let orders = scrubs.heard(report, now);
            assert!(open + orders.len() as u64 <= OPEN_AT_NODE_MAX);
            open = (open + orders.len() as u64).saturating_sub(10);
            got.extend(orders);
        }
        assert!(now.0 > ORDER_FOR && got == all);
    }

    #[test]
    fn a_word_on_whom_to_believe_does_not_wait_behind_scrubs() {
        let map = map();
        let mut scrubs = Scrubs::default();
        let node = *map.nodes.keys().next().unwrap();
        for order in many(&map).into_iter().skip(1) {
            scrubs.give(&[node], order, 1, Time(0)).unwrap();
        }
        let object = report(&map, node, Some(Doubt::Disputed)).doubts[0].object;
        let word = ScrubOrder::Believe { object, blocks: BlockRange::new(7, 1), from: node };
        scrubs.give(&[node], word, BELIEVE_TIMES, Time(0)).unwrap();
        let full = ScrubReport { open: OPEN_AT_NODE_MAX, ..report(&map, node, None) };
        assert_eq!(scrubs.heard(full, Time(1)), [word]);
        assert_eq!(scrubs.heard(report(&map, node, None), Time(2))[0], word);
    }
}
