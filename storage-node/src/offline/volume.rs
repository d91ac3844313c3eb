//! A volume's image out of the stores of stopped nodes, by the majority rule of the live system.
//!
//! Which copy of an object counts is the leader's own decision ([`choose::base`], 5.2): the head of the
//! greatest `(line, head)` among the votes of a majority of the members. Each copy that has this head has
//! the same content. A store that has lost state has no vote (N8), as it would have none in a running
//! cluster. An object without a majority is a hole in the image and is named; nothing is guessed (P3),
//! unless the administrator says `believe_one`, and then the report says which objects were believed.
//!
//! The content of an object is settled block by block among the copies that count: where their tables
//! differ, which they should not, a majority of the members decides ([`trefoil_core::scrub::majority`], and what
//! scrub has marked counts), else the block is bad. The bytes
//! come from whichever device has them under the chosen checksum.

use super::export::{ExportError, SparseFile};
use super::map::{Layout, Place};
use super::{Block, ObjectTable, OfflineStore, Progress, ReadMany};
use rustc_hash::FxHashMap;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use trefoil_core::checksum::HOLE;
use trefoil_core::leader::choose::{self, Answer};
use trefoil_core::placement::PgConfig;
use trefoil_core::scrub::{self, Claim, Doubt, doubt_of};
use trefoil_core::*;

/// Objects, and blocks, that a report names; beyond it they are only counted.
pub const NAMED_MAX: usize = 10_000;
/// Devices that one export takes.
pub const DEVICES_MAX: usize = 64;

/// What is to be done where the devices do not suffice.
#[derive(Clone, Copy, Debug)]
pub struct VolumeOptions {
    /// Copies that each object has, where no map tells it.
    pub copies: usize,
    /// Where there is no majority, take the greatest vote that there is.
    pub believe_one: bool,
}

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The file.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// None, or more than [`DEVICES_MAX`].
    #[error("{0} devices were given: give each device of the volume once, at most {DEVICES_MAX}")]
    Devices(usize),
    /// The same store twice.
    #[error(
        "{first} and {second} are the same store (incarnation {incarnation}): a copy of a device has no vote of its own"
    )]
    Same {
        /// A path.
        first: String,
        /// Another one.
        second: String,
        /// The store.
        incarnation: String,
    },
    /// Another cluster.
    #[error("{device} belongs to another cluster ({found}) than {other} ({wanted})")]
    Cluster {
        /// The device.
        device: String,
        /// Its cluster.
        found: String,
        /// The first device, or the map.
        other: String,
        /// Its cluster.
        wanted: String,
    },
    /// Not a node of the map.
    #[error(
        "the store on {device} (incarnation {incarnation}) is no node of the cluster map (version {version}): \
         the map is older than the node, or the device is from before it was formatted again"
    )]
    Stranger {
        /// The device.
        device: String,
        /// Its store.
        incarnation: String,
        /// The map's version.
        version: u64,
    },
    /// Too few to decide anything.
    #[error(
        "{given} of {copies} copies is no majority: what is on one device may lack the newest writes, \
         acknowledged ones among them, or hold writes that were taken back. Give more devices, or say \
         --believe-one to take what is there all the same"
    )]
    NoMajority {
        /// Devices.
        given: usize,
        /// Copies.
        copies: usize,
    },
}

/// A device, as the report shows it.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// The path.
    pub device: String,
    /// The node's number in the map.
    pub node: Option<u32>,
    /// The store's name.
    pub incarnation: String,
    /// LSN of its last batch.
    pub log_position: u64,
    /// Why its votes do not count; none if they do.
    pub no_vote: Option<String>,
    /// Blocks taken from it.
    pub blocks: u64,
}

/// An object that is not in the image as it should be.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectProblem {
    /// Its number in the volume.
    pub object: u32,
    /// Where it begins in the image.
    pub image_byte: u64,
    /// What is wrong.
    pub why: String,
}

/// A block that is a hole in the image and should not be.
#[derive(Clone, Debug, Serialize)]
pub struct BlockProblem {
    /// The object.
    pub object: u32,
    /// The block in it.
    pub block: u32,
    /// Where it begins in the image.
    pub image_byte: u64,
    /// What is wrong.
    pub why: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VolumeReport {
    /// The volume's id.
    pub volume: u64,
    /// Its name, where a map told it.
    pub name: Option<String>,
    /// The version of the map.
    pub map_version: Option<u64>,
    /// Bytes of the image.
    pub size_bytes: u64,
    /// Bytes of an object.
    pub object_size_bytes: u64,
    /// Objects that the volume has.
    pub objects: u64,
    /// Of them, decided by a majority and not empty.
    pub decided: u64,
    /// Decided by a majority to be empty.
    pub empty: u64,
    /// Not decided: holes in the image.
    pub undecided: u64,
    /// Taken from the greatest vote without a majority, as it was asked for.
    pub believed: u64,
    /// Empty as far as the devices go; whether there is another device that has them is not known.
    pub unproven_holes: u64,
    /// Blocks written.
    pub blocks: u64,
    /// Blocks that the first copy that counts does not have, or has damaged, and another device has.
    pub mended: u64,
    /// Blocks without good bytes on any device, or on whose content the copies do not agree: holes.
    pub bad: u64,
    /// Blocks on whose content copies with the same head do not agree, decided by majority or not.
    pub conflicts: u64,
    /// The devices.
    pub devices: Vec<DeviceReport>,
    /// The first of the undecided and believed objects.
    pub object_problems: Vec<ObjectProblem>,
    /// The first of the bad blocks.
    pub block_problems: Vec<BlockProblem>,
}

impl VolumeReport {
    /// True if the image is what the running system would read, as far as is known.
    pub fn is_good(&self) -> bool {
        self.undecided + self.believed + self.unproven_holes + self.bad == 0
    }
}

struct Member<'a, D> {
    store: &'a OfflineStore<D>,
    node: NodeId,
    no_vote: Option<String>,
}

/// What is known of one group.
struct Decision {
    config: PgConfig,
    /// By member.
    answers: Vec<Option<Answer>>,
    /// Why it cannot be decided at all.
    why: Option<String>,
}

/// What became of an object.
enum Choice {
    /// The copies with this head count; `true`: decided by a majority.
    Head(Head, bool),
    Undecided(String),
}

struct Exporter<'a, D> {
    layout: &'a Layout,
    options: VolumeOptions,
    members: Vec<Member<'a, D>>,
    groups: BTreeMap<GroupId, Decision>,
    /// In which groups devices have the object.
    named: FxHashMap<ObjectIndex, Vec<GroupId>>,
    pools: BTreeSet<PoolId>,
    report: VolumeReport,
}

/// Writes the image. The order of the devices does not matter to what is written.
pub fn export_volume<D: ReadMany>(
    stores: &[OfflineStore<D>],
    layout: &Layout,
    options: VolumeOptions,
    out: &mut SparseFile,
    progress: Progress<'_>,
) -> Result<VolumeReport, VolumeError> {
    let members = members(stores, layout, options)?;
    let mut exporter = Exporter::new(layout, options, members);
    let objects = layout.objects();
    for index in 0..objects {
        exporter.object(index, out)?;
        progress(u64::from(index) + 1, u64::from(objects));
    }
    Ok(exporter.report)
}

/// Tells what cannot be exported before anything is written; [`export_volume`] asks the same.
pub fn refuses<D: ReadMany>(
    stores: &[OfflineStore<D>],
    layout: &Layout,
    options: VolumeOptions,
) -> Result<(), VolumeError> {
    members(stores, layout, options).map(|_| ())
}

fn members<'a, D: ReadMany>(
    stores: &'a [OfflineStore<D>],
    layout: &Layout,
    options: VolumeOptions,
) -> Result<Vec<Member<'a, D>>, VolumeError> {
    if stores.is_empty() || stores.len() > DEVICES_MAX {
        return Err(VolumeError::Devices(stores.len()));
    }
    let mut members: Vec<Member<'a, D>> = Vec::new();
    let cluster = |id: &[u8]| super::info::hex(id);
    for (n, store) in (0u32..).zip(stores) {
        let sb = store.superblock();
        let incarnation = format!("{:016x}", sb.incarnation.0);
        if let Some(other) = members.iter().find(|m| m.store.superblock().incarnation == sb.incarnation) {
            let (first, second) = (other.store.name().to_owned(), store.name().to_owned());
            return Err(VolumeError::Same { first, second, incarnation });
        }
        let (wanted, other) = match (layout.map(), members.first()) {
            (Some(map), _) => (map.cluster_id, "the cluster map".to_owned()),
            (None, Some(first)) => (first.store.superblock().cluster_id, first.store.name().to_owned()),
            (None, None) => (sb.cluster_id, String::new()),
        };
        if wanted != sb.cluster_id {
            return Err(VolumeError::Cluster {
                device: store.name().to_owned(),
                found: cluster(&sb.cluster_id),
                other,
                wanted: cluster(&wanted),
            });
        }
        let mut no_vote = store.lost().map(|why| format!("it has lost state: {why}"));
        let node = match layout.map() {
            None => NodeId(n),
            Some(map) => {
                let known = map.nodes.iter().find(|(_, node)| node.incarnation == sb.incarnation);
                let Some((id, _)) = known else {
                    return Err(VolumeError::Stranger {
                        device: store.name().to_owned(),
                        incarnation,
                        version: map.version,
                    });
                };
                let position = map.position(*id);
                if position > store.log_position() {
                    no_vote.get_or_insert(format!(
                        "its log ends at LSN {}, but the monitors remember LSN {position}: the device has lost \
                         writes that were durable, or is an older copy of itself",
                        store.log_position()
                    ));
                }
                *id
            }
        };
        members.push(Member { store, node, no_vote });
    }
    let copies = copies_in(layout).unwrap_or(options.copies);
    if !options.believe_one && stores.len() * 2 <= copies {
        return Err(VolumeError::NoMajority { given: stores.len(), copies });
    }
    Ok(members)
}

/// Copies that the volume's pool has, by the map.
fn copies_in(layout: &Layout) -> Option<usize> {
    let map = layout.map()?;
    let pool = map.volumes.get(&layout.id)?.pool;
    map.pools.get(&pool).map(|pool| usize::from(pool.size))
}

impl<'a, D: ReadMany> Exporter<'a, D> {
    fn new(layout: &'a Layout, options: VolumeOptions, members: Vec<Member<'a, D>>) -> Exporter<'a, D> {
        let mut named: FxHashMap<ObjectIndex, Vec<GroupId>> = FxHashMap::default();
        let mut pools = BTreeSet::new();
        for member in &members {
            for (group, state) in &member.store.durable().groups {
                if group.volume != layout.id {
                    continue;
                }
                pools.insert(group.pg.pool);
                for index in state.objects.keys().chain(state.behind.keys()) {
                    let groups = named.entry(*index).or_default();
                    if !groups.contains(group) {
                        groups.push(*group);
                    }
                }
            }
        }
        let device = |member: &Member<'_, D>| DeviceReport {
            device: member.store.name().to_owned(),
            node: layout.map().map(|_| member.node.0),
            incarnation: format!("{:016x}", member.store.superblock().incarnation.0),
            log_position: member.store.log_position(),
            no_vote: member.no_vote.clone(),
            blocks: 0,
        };
        let report = VolumeReport {
            volume: layout.id.0,
            name: layout.name.clone(),
            map_version: layout.map().map(|map| map.version),
            size_bytes: layout.size,
            object_size_bytes: layout.object_size,
            objects: layout.objects().into(),
            devices: members.iter().map(device).collect(),
            ..VolumeReport::default()
        };
        Exporter { layout, options, members, groups: BTreeMap::new(), named, pools, report }
    }

    fn object(&mut self, index: ObjectIndex, out: &mut SparseFile) -> Result<(), VolumeError> {
        let named = self.named.get(&index).map(Vec::as_slice).unwrap_or_default();
        let group = match (self.layout.group_of(index, &self.pools), named) {
            (Some(group), _) => group,
            (None, [group]) => *group,
            (None, []) if matches!(self.layout.place, Place::Unknown) => {
                self.report.unproven_holes += 1;
                return Ok(());
            }
            (None, []) => {
                self.undecided(index, "no device knows the volume".to_owned());
                return Ok(());
            }
            (None, several) => {
                let text = several.iter().map(|group| group.pg.to_string()).collect::<Vec<_>>().join(", ");
                self.undecided(
                    index,
                    format!("devices have it in several placement groups ({text}): give --map"),
                );
                return Ok(());
            }
        };
        let object = ObjectId { group, index };
        let decision = match self.groups.remove(&group) {
            Some(decision) => decision,
            None => self.decision(group),
        };
        let done = match self.choose(&decision, index) {
            Choice::Undecided(why) => {
                self.undecided(index, why);
                Ok(())
            }
            Choice::Head(Head::ZERO, true) => {
                self.report.empty += 1;
                Ok(())
            }
            Choice::Head(Head::ZERO, false) => {
                self.report.unproven_holes += 1;
                Ok(())
            }
            Choice::Head(head, sure) => {
                if sure {
                    self.report.decided += 1;
                } else {
                    self.report.believed += 1;
                    self.problem(
                        index,
                        format!("no majority: head {head} was believed, as it was asked for"),
                    );
                }
                self.copy(object, head, sure, &decision, out)
            }
        };
        self.groups.insert(group, decision);
        done
    }

    /// What the members say of a group.
    fn decision(&self, group: GroupId) -> Decision {
        let knows = |member: &Member<'_, D>| member.store.durable().groups.contains_key(&group);
        let config = match self.layout.map() {
            Some(_) => self.layout.config_of(group.pg),
            None => {
                // Members are those that know the group, and as many others as there must be.
                let mut set: Vec<NodeId> = self.members.iter().filter(|m| knows(m)).map(|m| m.node).collect();
                let away = (0..).map(|n| NodeId(u32::MAX - n));
                let missing = self.options.copies.saturating_sub(set.len());
                set.extend(away.take(missing));
                Some(PgConfig::simple(Epoch(0), set))
            }
        };
        let Some(config) = config else {
            let why = Some(format!("the map has no placement group {}", group.pg));
            return Decision { config: PgConfig::default(), answers: Vec::new(), why };
        };
        let mut why = None;
        for member in self.members.iter().filter(|_| self.layout.map().is_some()) {
            let epoch = member.store.durable().pgs.get(&group.pg).map_or(Epoch(0), |pg| pg.epoch);
            if epoch > config.epoch {
                why = Some(format!(
                    "{} has served placement group {} under epoch {}, the map knows {}: give a newer map",
                    member.store.name(),
                    group.pg,
                    epoch.0,
                    config.epoch.0
                ));
            }
        }
        let answer = |member: &Member<'_, D>| {
            config.is_member(member.node).then(|| {
                let answer = Answer::of(member.store.durable(), group);
                Answer { lost: answer.lost || member.no_vote.is_some(), ..answer }
            })
        };
        let answers = self.members.iter().map(answer).collect();
        Decision { config, answers, why }
    }

    fn choose(&self, decision: &Decision, index: ObjectIndex) -> Choice {
        if let Some(why) = &decision.why {
            return Choice::Undecided(why.clone());
        }
        let answer = |node: NodeId| {
            let at = self.members.iter().position(|member| member.node == node)?;
            decision.answers.get(at)?.as_ref()
        };
        if let Some(head) = choose::base(&decision.config, answer, index) {
            return Choice::Head(head, true);
        }
        let all = || decision.answers.iter().flatten();
        if self.options.believe_one {
            // Votes first; where all were lost, what is there has at least its head.
            let vote = all().filter_map(|answer| answer.vote(index)).max().map(|vote| vote.head);
            if let Some(head) = vote.or_else(|| all().map(|answer| answer.head(index)).max()) {
                return Choice::Head(head, false);
            }
        }
        let votes = all().filter(|answer| answer.vote(index).is_some()).count();
        let members = decision.config.everyone().len() - decision.config.learners.len();
        Choice::Undecided(format!("no majority: {votes} of {members} members have a vote"))
    }

    /// Copies the content that goes with the head.
    fn copy(
        &mut self,
        object: ObjectId,
        head: Head,
        sure: bool,
        decision: &Decision,
        out: &mut SparseFile,
    ) -> Result<(), VolumeError> {
        let start = u64::from(object.index) * self.layout.object_size;
        let bytes = self.layout.object_size.min(self.layout.size - start);
        let blocks = (bytes / BLOCK_SIZE as u64) as u32;
        let counts = |answer: &Answer| {
            let lost = answer.vote(object.index).is_none();
            answer.head(object.index) == head && (!lost || !sure)
        };
        // The copies that count first; the others may have a block under the same checksum.
        let counted: Vec<bool> =
            decision.answers.iter().map(|answer| answer.as_ref().is_some_and(counts)).collect();
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        order.sort_by_key(|n| !counted.get(*n).copied().unwrap_or(false));
        let sources = counted.iter().filter(|counts| **counts).count();
        let tables: Vec<ObjectTable> = order.iter().map(|n| self.members[*n].store.table(object)).collect();

        let mut sums = vec![HOLE; blocks as usize];
        let mut why: BTreeMap<u32, String> = BTreeMap::new();
        // By place in `order`: what is to be read there.
        let mut wanted: Vec<Vec<(u32, crate::store::BlockEntry)>> = vec![Vec::new(); order.len()];
        for block in 0..blocks {
            let sum = match self.settle(decision, &order[..sources], &tables[..sources], (object, block)) {
                Ok((sum, agreed)) => {
                    self.report.conflicts += u64::from(!agreed);
                    sum
                }
                Err(text) => {
                    self.report.conflicts += u64::from(text == CONFLICT);
                    why.insert(block, text.to_owned());
                    continue;
                }
            };
            sums[block as usize] = sum;
            if sum != HOLE {
                let first = next_with(&tables, 0, block, sum);
                match first {
                    Some((at, entry)) => wanted[at].push((block, entry)),
                    None => {
                        why.insert(block, "no device has its bytes".to_owned());
                    }
                }
            }
        }
        for at in 0..order.len() {
            let list = std::mem::take(&mut wanted[at]);
            let member = order[at];
            let store = self.members[member].store;
            let report = &mut self.report;
            store.read_blocks(object, &list, |block, _, bytes| {
                match bytes {
                    Ok(bytes) => {
                        report.blocks += 1;
                        report.devices[member].blocks += 1;
                        report.mended += u64::from(at > 0);
                        why.remove(&block);
                        out.put(start + u64::from(block) * BLOCK_SIZE as u64, bytes)?;
                    }
                    Err(fault) => {
                        let text = why.entry(block).or_default();
                        if !text.is_empty() {
                            *text += "; ";
                        }
                        *text += &format!("{}: {fault}", store.name());
                        if let Some((next, entry)) = next_with(&tables, at + 1, block, sums[block as usize]) {
                            wanted[next].push((block, entry));
                        }
                    }
                }
                Ok::<(), ExportError>(())
            })?;
            // Fallbacks come in the order of the lists that they fell out of.
            for list in &mut wanted {
                list.sort_unstable_by_key(|(block, _)| *block);
            }
        }
        for (block, why) in why {
            self.report.bad += 1;
            if self.report.block_problems.len() < NAMED_MAX {
                let image_byte = start + u64::from(block) * BLOCK_SIZE as u64;
                self.report.block_problems.push(BlockProblem {
                    object: object.index,
                    block,
                    image_byte,
                    why,
                });
            }
        }
        Ok(())
    }

    /// The checksum of a block among the copies that count, and whether all of them agree on it.
    fn settle(
        &self,
        decision: &Decision,
        order: &[usize],
        tables: &[ObjectTable],
        (object, block): (ObjectId, u32),
    ) -> Result<(u64, bool), &'static str> {
        let sum = |table: &ObjectTable| match table.block(block) {
            Block::Hole => Some(HOLE),
            Block::There(entry) => Some(entry.checksum),
            Block::Bad(sum) => sum,
        };
        let claim = |(n, table): (&usize, &ObjectTable)| {
            let (node, checksum) = (self.members[*n].node, sum(table)?);
            let state = self.members[*n].store.durable().groups.get(&object.group);
            let doubt = state.and_then(|state| doubt_of(state.marks(object.index), block));
            Some(Claim { node, checksum, doubt })
        };
        let claims: Vec<Claim> = order.iter().zip(tables).filter_map(claim).collect();
        let Some(first) = claims.first() else {
            return Err("the tables of all copies that count are damaged");
        };
        let agreed = claims.iter().all(|claim| claim.checksum == first.checksum);
        if agreed && claims.iter().all(|claim| claim.doubt.is_none()) {
            return Ok((first.checksum, true));
        }
        // What the live system has found, and its rule where it has not looked.
        if let Some(sum) = scrub::majority(&decision.config, &claims) {
            return Ok((sum, agreed));
        }
        let mut sound = claims.iter().filter(|claim| claim.doubt != Some(Doubt::Outvoted));
        match sound.next() {
            // One that nobody who has a say contradicts.
            Some(one)
                if one.doubt.is_none()
                    && sound.all(|it| it.checksum == one.checksum && it.doubt.is_none()) =>
            {
                Ok((one.checksum, agreed))
            }
            _ => Err(CONFLICT),
        }
    }

    fn undecided(&mut self, index: ObjectIndex, why: String) {
        self.report.undecided += 1;
        self.problem(index, why);
    }

    fn problem(&mut self, index: ObjectIndex, why: String) {
        if self.report.object_problems.len() < NAMED_MAX {
            let image_byte = u64::from(index) * self.layout.object_size;
            self.report.object_problems.push(ObjectProblem { object: index, image_byte, why });
        }
    }
}

/// Why a block is bad on whose content copies with one head do not agree.
const CONFLICT: &str = "copies with the same head differ, and no majority has one content";

/// The first table from `from` on that has a place for the block under this checksum.
fn next_with(
    tables: &[ObjectTable],
    from: usize,
    block: u32,
    sum: u64,
) -> Option<(usize, crate::store::BlockEntry)> {
    (from..tables.len()).find_map(|at| match tables[at].block(block) {
        Block::There(entry) if entry.checksum == sum => Some((at, entry)),
        _ => None,
    })
}
