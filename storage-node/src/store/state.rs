//! What the records add up to: the node's durable state, the block tables, and which of it has changed
//! since the last checkpoint.
//!
//! The running store and its recovery both change the state through [`State::apply`], so that what a
//! replay gives cannot differ from what was there before. The index is made of entries of this state
//! that were read at different times *after* the position that the index covers; replaying the log
//! from that position makes them right, because every record sets what it touches without looking at
//! what was there (a Heal looks at a checksum that the same replay has set).

use super::bugs::{self, Bug};
use super::codec::Entry;
use super::segments::{Delta, SegState, Segments};
use super::superblock::Superblock;
use super::table::{DeadPage, OBJECT_BLOCKS_MAX, PAGE_BLOCKS, Tables};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use trefoil_core::checksum::HOLE;
use trefoil_core::crush::pg_split_children;
use trefoil_core::message::{Line, WriteOp};
use trefoil_core::record::{Durable, GroupState, PgState, Promise, Record};
use trefoil_core::scrub::Mark;
use trefoil_core::*;

/// A thing that the index has an entry for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A volume's fence.
    Fence(VolumeId),
    /// A placement group.
    Pg(PgId),
    /// A group.
    Group(GroupId),
    /// An object: its head and table, and its line if it is behind.
    Object(ObjectId),
    /// The blocks of an object that are in doubt.
    Doubt(ObjectId),
    /// A page of a deleted object's table that still counts.
    Dead(u64),
}

impl Key {
    /// It is the placement group's, or that of something in it.
    pub fn is_of(&self, pg: PgId) -> bool {
        match self {
            Key::Pg(it) => *it == pg,
            Key::Group(group) => group.pg == pg,
            Key::Object(object) | Key::Doubt(object) => object.group.pg == pg,
            Key::Fence(_) | Key::Dead(_) => false,
        }
    }
}

/// The index's entry for a group; what it knows of objects has entries of its own.
#[derive(Serialize, Deserialize)]
struct GroupEntry {
    promised: Promise,
    settled: Promise,
    lost: bool,
}

/// The index's entry for an object.
#[derive(Serialize, Deserialize, Default)]
struct ObjectEntry {
    head: Option<Head>,
    line: Option<Line>,
    pages: Vec<(u64, u64)>,
}

/// The index's entry for a page of a deleted object.
#[derive(Serialize, Deserialize)]
struct DeadEntry {
    object: ObjectId,
    page: u32,
    checksum: u64,
}

/// See the module.
pub struct State {
    /// The node's.
    pub durable: Durable,
    /// The blocks'.
    pub tables: Tables,
    /// What each segment holds.
    pub segments: Segments,
    /// Pages of deleted objects that have not been reaped, by their places.
    pub dead: FxHashMap<u64, (ObjectId, DeadPage)>,
    /// Those that came since this was emptied last. An index that lacks the object must have them, also
    /// when its checkpoint began before the object was deleted.
    pub newly_dead: Vec<u64>,
    /// Changed since the last checkpoint began.
    pub dirty: FxHashSet<Key>,
    /// State has been lost and no LostState has been appended since.
    pub lost: bool,
    /// The index or snapshot that this state was loaded from said so already.
    pub lost_before: bool,
    /// How often the store has been opened.
    pub session: u64,
}

impl State {
    /// Nothing yet.
    pub fn new(cache_bytes: u64, sb: &Superblock) -> State {
        State {
            durable: Durable::default(),
            tables: Tables::new(cache_bytes, *sb),
            segments: Segments::new(sb.segments),
            dead: FxHashMap::default(),
            newly_dead: Vec::new(),
            dirty: FxHashSet::default(),
            lost: false,
            lost_before: false,
            session: 0,
        }
    }

    /// Takes a step whose data blocks begin at `location`.
    pub fn apply<P>(&mut self, record: &Record<P>, location: u64) {
        self.mark(record);
        let objects = match record {
            Record::Split { pg, .. } => self.objects_of(*pg),
            _ => Vec::new(),
        };
        self.durable.apply(record);
        for object in objects {
            let now = self.durable.place(object);
            self.dirty.insert(Key::Object(now));
            self.mark_doubts(now);
            self.rename(object);
        }
        match record {
            Record::Write { object, op, .. } => {
                self.op(*object, op, location);
            }
            Record::Install { object, head, patches, writes } => {
                let mut at = location;
                for patch in patches {
                    for &(block, checksum) in &patch.blocks {
                        if checksum == HOLE {
                            self.tables.zero(*object, BlockRange::new(block, 1));
                        } else {
                            self.tables.set_run(*object, block, at, &[checksum]);
                            at += 1;
                        }
                    }
                    for &(block, checksum) in &patch.bad {
                        self.tables.set_bad(*object, block, checksum);
                    }
                }
                for op in writes {
                    at += self.op(*object, op, at);
                }
                if *head == Head::ZERO {
                    self.remove(*object);
                }
            }
            Record::Heal { object, block, checksum, .. } => {
                self.tables.heal(*object, *block, location, *checksum)
            }
            Record::DeleteVolume { volume } => {
                for object in self.tables.of_groups(|group| group.volume == *volume) {
                    self.dirty.insert(Key::Object(object));
                    self.remove(object);
                }
            }
            Record::Leave { pg, .. } => {
                for object in self.tables.of_groups(|group| group.pg == *pg) {
                    self.dirty.insert(Key::Object(object));
                    self.remove(object);
                }
            }
            Record::LostState { .. } => self.lost = false,
            Record::Split { pg, .. } if self.tables.replaying => {
                // Also tables that no group names: of objects whose deletion is still to come.
                for object in self.tables.of_groups(|group| group.pg == *pg) {
                    self.rename(object);
                }
            }
            Record::Split { .. } => {}
            _ => {}
        }
    }

    fn rename(&mut self, object: ObjectId) {
        let now = self.durable.place(object);
        if now != object {
            self.tables.rename(object, now.group.pg);
        }
    }

    fn remove(&mut self, object: ObjectId) {
        for page in self.tables.remove(object) {
            self.dirty.insert(Key::Dead(page.location));
            self.dead.insert(page.location, (object, page));
            self.newly_dead.push(page.location);
        }
    }

    /// Pages of deleted objects do not count any more.
    pub fn reap(&mut self, locations: &[u64], deltas: &[Delta]) {
        for location in locations {
            self.dead.remove(location);
            self.dirty.insert(Key::Dead(*location));
        }
        self.segments.add_all(deltas);
    }

    /// Nothing in these segments is needed.
    pub fn free(&mut self, segments: &[u32]) {
        for segment in segments {
            self.segments.free(*segment);
            self.tables.freed(*segment, self.segments.get(*segment).turn);
        }
    }

    /// Blocks have been copied to `location ..`: each counts if its checksum is still the table's.
    pub fn moved(&mut self, object: ObjectId, blocks: &[(u32, u64)], location: u64) {
        self.dirty.insert(Key::Object(self.tables.current(object)));
        for (n, &(block, checksum)) in blocks.iter().enumerate() {
            let location = location + n as u64;
            if bugs::on(Bug::MoveWithoutChecksum) {
                self.tables.set_run(object, block, location, &[checksum]);
            } else {
                self.tables.heal(object, block, location, checksum);
            }
        }
    }

    fn op<P>(&mut self, object: ObjectId, op: &WriteOp<P>, location: u64) -> u64 {
        match op {
            WriteOp::Data { blocks, checksums, .. } => {
                self.tables.set_run(object, blocks.first, location, checksums);
                checksums.len() as u64
            }
            WriteOp::Zero { blocks } => {
                self.tables.zero(object, *blocks);
                0
            }
        }
    }

    /// Takes an entry of a batch at replay.
    pub fn replay(&mut self, entry: &Entry, location: u64, sb: &Superblock) {
        match entry {
            Entry::Start { session, lost } => {
                self.session = self.session.max(*session);
                self.lost |= lost;
            }
            Entry::Node(record) => self.apply(record, location),
            Entry::Page { object, page, checksum, deltas } => {
                self.tables.replay_page(*object, *page, location, *checksum);
                self.dirty.insert(Key::Object(self.tables.current(*object)));
                self.segments.add_all(deltas);
                self.segments.add(sb.tag_of(location), 1);
                // What died here died in an earlier use of this place.
                if self.dead.remove(&location).is_some() {
                    self.dirty.insert(Key::Dead(location));
                }
            }
            Entry::Move { object, blocks, .. } => self.moved(*object, blocks, location),
            Entry::Reap { locations, deltas } => self.reap(locations, deltas),
            Entry::Free { segments } => self.free(segments),
            Entry::Snapshot { .. } | Entry::SnapshotEnd { .. } => {}
        }
    }

    fn mark<P>(&mut self, record: &Record<P>) {
        let mut group = |group: &GroupId| {
            self.dirty.insert(Key::Group(*group));
        };
        match record {
            Record::Fence { volume, .. } => {
                self.dirty.insert(Key::Fence(*volume));
            }
            Record::Open { group: g, .. } => {
                group(g);
                self.dirty.insert(Key::Pg(g.pg));
            }
            Record::Settle { group: g, add, remove, .. } => {
                group(g);
                for index in add.iter().map(|a| a.0).chain(remove.iter().copied()) {
                    let object = ObjectId { group: *g, index };
                    self.dirty.insert(Key::Object(object));
                }
            }
            Record::Write { object, .. } | Record::Install { object, .. } => {
                if !self.durable.groups.contains_key(&object.group) {
                    group(&object.group);
                }
                self.dirty.insert(Key::Object(*object));
                self.mark_doubts(*object);
            }
            Record::Doubt { object, .. } => {
                if !self.durable.groups.contains_key(&object.group) {
                    group(&object.group);
                }
                self.dirty.insert(Key::Doubt(*object));
            }
            Record::Heal { object, .. } => {
                self.dirty.insert(Key::Object(*object));
            }
            Record::DeleteVolume { volume } => {
                self.dirty.insert(Key::Fence(*volume));
                self.mark_groups(|group| group.volume == *volume);
            }
            Record::Epoch { pg, fences, .. } => {
                self.dirty.insert(Key::Pg(*pg));
                self.dirty.extend(fences.iter().map(|f| Key::Fence(f.0)));
            }
            Record::Leave { pg, .. } => {
                self.dirty.insert(Key::Pg(*pg));
                self.mark_groups(|group| group.pg == *pg);
            }
            Record::Split { pg, from, to } => {
                self.dirty.insert(Key::Pg(*pg));
                self.mark_groups(|group| group.pg == *pg);
                let groups: Vec<GroupId> =
                    self.durable.groups.keys().filter(|group| group.pg == *pg).copied().collect();
                for child in pg_split_children(pg.pg, *from, *to) {
                    let child = PgId { pg: child, ..*pg };
                    self.dirty.insert(Key::Pg(child));
                    self.dirty.extend(groups.iter().map(|g| Key::Group(GroupId { pg: child, ..*g })));
                }
            }
            Record::LostState { fences } => {
                self.dirty.extend(self.durable.groups.keys().map(|g| Key::Group(*g)));
                self.dirty.extend(fences.iter().map(|f| Key::Fence(f.0)));
            }
        }
    }

    /// A record that may end doubts of this object.
    fn mark_doubts(&mut self, object: ObjectId) {
        let marked = |g: &GroupState| !g.marks(object.index).is_empty();
        if self.durable.groups.get(&object.group).is_some_and(marked) {
            self.dirty.insert(Key::Doubt(object));
        }
    }

    /// All that the state knows of the objects of a placement group.
    fn objects_of(&self, pg: PgId) -> Vec<ObjectId> {
        let groups = self.durable.groups.iter().filter(|(group, _)| group.pg == pg);
        let of = |(group, state): (&GroupId, &GroupState)| {
            let group = *group;
            let indexes: Vec<ObjectIndex> =
                state.objects.keys().chain(state.behind.keys()).chain(state.doubts.keys()).copied().collect();
            indexes.into_iter().map(move |index| ObjectId { group, index })
        };
        groups.flat_map(of).collect()
    }

    /// Groups and all that the state knows of their objects.
    fn mark_groups(&mut self, which: impl Fn(&GroupId) -> bool) {
        for (g, state) in self.durable.groups.iter().filter(|(g, _)| which(g)) {
            self.dirty.insert(Key::Group(*g));
            for index in state.objects.keys().chain(state.behind.keys()) {
                self.dirty.insert(Key::Object(ObjectId { group: *g, index: *index }));
            }
            for index in state.doubts.keys() {
                self.dirty.insert(Key::Doubt(ObjectId { group: *g, index: *index }));
            }
        }
    }

    /// Every key that the state has an entry for, those last that have to be restored first: an object is
    /// restored into its group.
    pub fn all_keys(&self) -> Vec<Key> {
        let d = &self.durable;
        let mut keys: Vec<Key> = self.dead.keys().map(|l| Key::Dead(*l)).collect();
        keys.extend(self.tables.objects().map(Key::Object));
        for (group, state) in &d.groups {
            keys.extend(
                state.doubts.keys().map(|index| Key::Doubt(ObjectId { group: *group, index: *index })),
            );
            let behind = state.behind.keys().filter(|index| !state.objects.contains_key(index));
            for index in state.objects.keys().chain(behind) {
                let object = ObjectId { group: *group, index: *index };
                if self.tables.pages(object).is_none() || self.tables.current(object) != object {
                    keys.push(Key::Object(object));
                }
            }
        }
        keys.extend(d.groups.keys().map(|g| Key::Group(*g)));
        keys.extend(d.pgs.keys().map(|p| Key::Pg(*p)));
        keys.extend(d.fences.keys().map(|v| Key::Fence(*v)));
        keys
    }

    /// The index's key and entry (`None`: there is none any more) as of now.
    pub fn entry(&self, key: Key) -> (Vec<u8>, Option<Vec<u8>>) {
        let mut name = Vec::with_capacity(32);
        let value = match key {
            Key::Fence(volume) => {
                name.push(b'f');
                name.extend(volume.0.to_be_bytes());
                self.durable.fences.get(&volume).map(encode)
            }
            Key::Pg(pg) => {
                name.push(b'p');
                put_pg(&mut name, pg);
                self.durable.pgs.get(&pg).map(encode_pg)
            }
            Key::Group(group) => {
                name.push(b'g');
                put_group(&mut name, group);
                self.durable
                    .groups
                    .get(&group)
                    .map(|g| encode(&GroupEntry { promised: g.promised, settled: g.settled, lost: g.lost }))
            }
            Key::Object(object) => {
                name.push(b'o');
                put_group(&mut name, object.group);
                name.extend(object.index.to_be_bytes());
                let group = self.durable.groups.get(&object.group);
                // One that has gone to another group by a split has its entry there.
                let pages = self.tables.pages(object).filter(|_| self.tables.current(object) == object);
                let entry = ObjectEntry {
                    head: group.and_then(|g| g.objects.get(&object.index).copied()),
                    line: group.and_then(|g| g.behind.get(&object.index).copied()),
                    pages: pages.unwrap_or(&[]).iter().map(|p| (p.location, p.checksum)).collect(),
                };
                let any = entry.head.is_some() || entry.line.is_some() || pages.is_some();
                any.then(|| encode(&entry))
            }
            Key::Doubt(object) => {
                name.push(b'x');
                put_group(&mut name, object.group);
                name.extend(object.index.to_be_bytes());
                let group = self.durable.groups.get(&object.group);
                group.map(|g| g.marks(object.index)).filter(|marks| !marks.is_empty()).map(encode_marks)
            }
            Key::Dead(location) => {
                name.push(b'd');
                name.extend(location.to_be_bytes());
                self.dead.get(&location).map(|(object, dead)| {
                    encode(&DeadEntry { object: *object, page: dead.page, checksum: dead.checksum })
                })
            }
        };
        (name, value)
    }

    /// The entry of some segments, as of when `segments` was copied.
    pub fn segments_entry(segments: &Segments, chunk: u32) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut name = vec![b's'];
        name.extend(chunk.to_be_bytes());
        Some((name, encode(&segments.chunk(chunk)?)))
    }

    /// Takes an entry of the index; false if it cannot be understood.
    pub fn restore(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.try_restore(name, value).is_some()
    }

    fn try_restore(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        let (kind, mut rest) = name.split_first()?;
        match kind {
            b'f' => {
                let volume = VolumeId(take_u64(&mut rest)?);
                self.durable.fences.insert(volume, decode(value)?);
            }
            b'p' => {
                let pg = take_pg(&mut rest)?;
                self.durable.pgs.insert(pg, decode_pg(value)?);
            }
            b'g' => {
                let group = take_group(&mut rest)?;
                let entry: GroupEntry = decode(value)?;
                let state = self.durable.groups.entry(group).or_default();
                state.promised = entry.promised;
                state.settled = entry.settled;
                state.lost = entry.lost;
            }
            b'o' => {
                let group = take_group(&mut rest)?;
                let index = take_u32(&mut rest)?;
                let entry: ObjectEntry = decode(value)?;
                if entry.pages.len() > (OBJECT_BLOCKS_MAX / PAGE_BLOCKS) as usize {
                    return None;
                }
                // Groups sort before objects. An object whose group has no entry: one of the two has come
                // or gone after the position that the index covers, so the replay will make or delete
                // it; making the group here would hide from the replay that it was new (and, at a node
                // with amnesia, lost).
                let Some(state) = self.durable.groups.get_mut(&group) else {
                    return Some(());
                };
                if let Some(head) = entry.head {
                    state.objects.insert(index, head);
                    self.tables.restore(ObjectId { group, index }, &entry.pages);
                }
                if let Some(line) = entry.line {
                    state.behind.insert(index, line);
                }
            }
            b'x' => {
                let group = take_group(&mut rest)?;
                let index = take_u32(&mut rest)?;
                let marks: Vec<Mark> = decode(value)?;
                let sound = marks.len() <= OBJECT_BLOCKS_MAX as usize && !marks.is_empty();
                if !sound || !marks.is_sorted_by(|a, b| a.block < b.block) {
                    return None;
                }
                // As of an object: a group that is not there comes or goes in the replay.
                if let Some(state) = self.durable.groups.get_mut(&group) {
                    state.doubts.insert(index, marks);
                }
            }
            b'd' => {
                let location = take_u64(&mut rest)?;
                let DeadEntry { object, page, checksum } = decode(value)?;
                self.dead.insert(location, (object, DeadPage { location, checksum, page }));
            }
            b's' => {
                let chunk = take_u32(&mut rest)?;
                let states: Vec<SegState> = decode(value)?;
                if !self.segments.restore(chunk, &states) {
                    return None;
                }
            }
            _ => return None,
        }
        rest.is_empty().then_some(())
    }
}

fn encode_marks(marks: &[Mark]) -> Vec<u8> {
    encode(&marks)
}
fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising plain numbers into a Vec cannot fail; an empty entry would be refused at load.
    postcard::to_stdvec(value).unwrap_or_default()
}
fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}
/// What was never split is written as it was before there were splits.
fn encode_pg(pg: &PgState) -> Vec<u8> {
    match pg.pg_num {
        0 => encode(&(pg.epoch, pg.left)),
        pg_num => encode(&(pg.epoch, pg.left, pg_num)),
    }
}
fn decode_pg(bytes: &[u8]) -> Option<PgState> {
    let old = decode(bytes).map(|(epoch, left)| PgState { epoch, left, pg_num: 0 });
    old.or_else(|| decode(bytes).map(|(epoch, left, pg_num)| PgState { epoch, left, pg_num }))
}
fn put_pg(out: &mut Vec<u8>, pg: PgId) {
    out.extend(pg.pool.0.to_be_bytes());
    out.extend(pg.pg.to_be_bytes());
}
fn put_group(out: &mut Vec<u8>, group: GroupId) {
    out.extend(group.volume.0.to_be_bytes());
    put_pg(out, group.pg);
}
fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (n, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_be_bytes(*n))
}
fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (n, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*n))
}
fn take_pg(bytes: &mut &[u8]) -> Option<PgId> {
    Some(PgId { pool: PoolId(take_u32(bytes)?), pg: take_u32(bytes)? })
}
fn take_group(bytes: &mut &[u8]) -> Option<GroupId> {
    Some(GroupId { volume: VolumeId(take_u64(bytes)?), pg: take_pg(bytes)? })
}

/// True if every block that the entry names can exist.
pub fn in_bounds<P>(record: &Record<P>) -> bool {
    let op = |op: &WriteOp<P>| op.blocks().end() <= OBJECT_BLOCKS_MAX;
    match record {
        Record::Write { op: o, .. } => op(o),
        Record::Install { patches, writes, .. } => {
            patches.iter().all(|p| p.blocks.iter().chain(&p.bad).all(|b| b.0 < OBJECT_BLOCKS_MAX))
                && writes.iter().all(op)
        }
        Record::Heal { block, .. } => *block < OBJECT_BLOCKS_MAX,
        Record::Doubt { marks, .. } => {
            marks.iter().all(|mark| mark.block < OBJECT_BLOCKS_MAX)
                && marks.is_sorted_by(|a, b| a.block < b.block)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_without_its_group_is_left_to_the_replay() {
        let object = ObjectId::default();
        let write: Record<()> = Record::Write {
            object,
            head: Head { ballot: Ballot(1), seq: 1 },
            snap: 0,
            op: WriteOp::Zero { blocks: BlockRange::new(0, 1) },
        };
        let sb = Superblock::new(1 << 30, 1 << 24, Incarnation(1), [0; 16], NodeId(0)).expect("large enough");
        let mut now = State::new(0, &sb);
        now.durable.amnesia = true;
        now.apply(&write, 9);
        let mut then = State::new(0, &sb);
        then.durable.amnesia = true;
        let (name, value) = now.entry(Key::Object(object));
        assert!(then.restore(&name, &value.expect("there")));
        then.apply(&write, 9);
        assert!(now.durable.groups[&object.group].lost);
        assert_eq!(then.durable, now.durable);
    }
}
