//! Scrub, as the monitors see it: what nodes say of theirs, and what administrators have them do.
//!
//! Soft state of the monitor that leads. Nodes scrub by their own schedules and mark what they find in their
//! own copies; nothing here decides anything. An order is handed to a node with the answer to its next
//! report, a few times over, and is forgotten then: given while a node is away, it is to be given again.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use trefoil_core::map::ClusterMap;
use trefoil_core::scrub::Doubt;
use trefoil_core::{BlockRange, Head, Incarnation, NodeId, ObjectId, PgId, Time, VolumeId};

/// Blocks in doubt that one report names. Of more, the first are named and all are counted.
pub const DOUBTS_PER_REPORT_MAX: usize = 256;
/// Orders that wait for one node. Beyond it new ones are refused.
pub const ORDERS_PER_NODE_MAX: usize = 4096;
/// Orders in one answer.
pub const ORDERS_PER_ANSWER_MAX: usize = 64;
/// How often a node is told whose copy to believe: some reports apart, so that all copies hear of it at about
/// the same time and what one of them found meanwhile is put right.
const BELIEVE_TIMES: u32 = 4;
/// An order that was not fetched for so long (µs) is dropped.
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

/// What a node is to do.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScrubOrder {
    /// Scrub a placement group now.
    Scrub {
        /// Which one.
        pg: PgId,
        /// Read every block, too.
        deep: bool,
    },
    /// Of blocks that are disputed, believe the copy of `from`.
    Believe {
        /// The object.
        object: ObjectId,
        /// Which blocks.
        blocks: BlockRange,
        /// Whose copy.
        from: NodeId,
    },
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
    /// The limit.
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

impl Scrubs {
    /// A node has reported. What it is to do.
    pub fn heard(&mut self, report: ScrubReport, now: Time) -> Vec<ScrubOrder> {
        let node = report.node;
        self.reports.insert(node, (now, report));
        let Some(waiting) = self.orders.get_mut(&node) else { return Vec::new() };
        waiting.retain(|it| now.since(it.since) < ORDER_FOR);
        let mut orders = Vec::new();
        for it in waiting.iter_mut().take(ORDERS_PER_ANSWER_MAX) {
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

    fn give(&mut self, nodes: &[NodeId], order: ScrubOrder, times: u32, now: Time) -> Result<(), OrderError> {
        let full = |node: &&NodeId| self.orders.get(*node).is_some_and(|o| o.len() >= ORDERS_PER_NODE_MAX);
        if let Some(node) = nodes.iter().find(full) {
            return Err(OrderError::TooMany(*node));
        }
        for node in nodes {
            self.orders.entry(*node).or_default().push(Waiting { order, since: now, times });
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
        let objects = info.size.div_ceil(info.object_size);
        if u64::from(index) >= objects {
            return Err(OrderError::NoObject { index, objects });
        }
        let pg_num = map.pools.get(&info.pool).map_or(1, |pool| pool.pg_num);
        let pg = PgId { pool: info.pool, pg: trefoil_core::crush::object_pg(volume.0, index, pg_num) };
        let config = map.pgs.get(&pg).ok_or(OrderError::NoPg(pg))?.config();
        let members = config.everyone();
        if !members.contains(&from) {
            let names: Vec<String> = members.iter().map(NodeId::to_string).collect();
            return Err(OrderError::NotMember { from, index, members: names.join(", ") });
        }
        if !self.reports(now).any(|report| report.node == from) {
            return Err(OrderError::Silent(from));
        }
        let object = ObjectId { group: trefoil_core::GroupId { volume, pg }, index };
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
    fn orders_are_bounded_and_do_not_wait_for_ever() {
        let map = map();
        let mut scrubs = Scrubs::default();
        let pg = map.pgs.iter().next().unwrap().0;
        let node = *map.nodes.keys().next().unwrap();
        for _ in 0..ORDERS_PER_NODE_MAX {
            scrubs.scrub(&map, pg, true, Time(0)).unwrap();
        }
        assert!(matches!(scrubs.scrub(&map, pg, true, Time(0)), Err(OrderError::TooMany(_))));
        assert_eq!(scrubs.heard(report(&map, node, None), Time(1)).len(), ORDERS_PER_ANSWER_MAX);
        assert!(scrubs.heard(report(&map, node, None), Time(ORDER_FOR)).is_empty());
        let none = PgId { pg: 99, ..pg };
        assert_eq!(scrubs.scrub(&map, none, false, Time(0)), Err(OrderError::NoPg(none)));
    }
}
