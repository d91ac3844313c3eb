//! The configurations of all placement groups of a pool, packed and shared.
//!
//! A cluster map has up to a million of them, in every daemon, and a front end leads many volumes of one
//! pool: so a group whose two sets are the same and that has no learners, which is all of them but those
//! that are being moved, takes 8 bytes and 4 per copy, and a clone of a table takes none. A change copies
//! the [`CHUNK_PGS`] groups around it and leaves the rest shared, which is also how two tables are
//! compared: what they share is not looked at.
//!
//! No rule of placement or of quorums lives here.

use super::PgConfig;
use crate::ids::*;
use crate::limits::SET_MEMBERS_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Placement groups that are copied when one of them changes.
pub const CHUNK_PGS: usize = 256;

/// One placement group's configuration, where it stands in a [`PgTable`]. The fields are those of
/// [`PgConfig`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Pg<'a> {
    /// Raised by each change.
    pub epoch: Epoch,
    /// A quorum needs a majority of these...
    pub old: &'a [NodeId],
    /// ...and of these. The same but in a joint epoch.
    pub new: &'a [NodeId],
    /// Get writes and repairs, have no vote.
    pub learners: &'a [NodeId],
}

impl<'a> Pg<'a> {
    /// Every node that has or gets a copy, each once.
    pub fn nodes(self) -> impl Iterator<Item = NodeId> + 'a {
        let Pg { old, new, learners, .. } = self;
        let added = new.iter().filter(|node| !old.contains(node));
        let learners = learners.iter().filter(|n| !old.contains(n) && !new.contains(n));
        old.iter().chain(added).chain(learners).copied()
    }

    /// True where the node has a vote.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.old.contains(&node) || self.new.contains(&node)
    }

    /// True for a member or a learner.
    pub fn takes_part(&self, node: NodeId) -> bool {
        self.is_member(node) || self.learners.contains(&node)
    }

    /// The same, to keep.
    pub fn config(&self) -> PgConfig {
        PgConfig {
            epoch: self.epoch,
            old: self.old.to_vec(),
            new: self.new.to_vec(),
            learners: self.learners.to_vec(),
        }
    }
}

/// A group that is being moved, or has another number of copies than its neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Special {
    old: Vec<NodeId>,
    new: Vec<NodeId>,
    learners: Vec<NodeId>,
}

/// Up to [`CHUNK_PGS`] neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    /// Members of each plain group.
    copies: u8,
    epochs: Vec<Epoch>,
    /// `copies` for each group, in order; zeros for a special one, so that equal tables are equal.
    members: Vec<NodeId>,
    /// By place in the chunk.
    special: BTreeMap<u16, Special>,
}

impl Chunk {
    fn get(&self, at: usize) -> Option<Pg<'_>> {
        let epoch = *self.epochs.get(at)?;
        if !self.special.is_empty()
            && let Some(it) = self.special.get(&(at as u16))
        {
            return Some(Pg { epoch, old: &it.old, new: &it.new, learners: &it.learners });
        }
        let copies = usize::from(self.copies);
        let set = self.members.get(at * copies..(at + 1) * copies)?;
        Some(Pg { epoch, old: set, new: set, learners: &[] })
    }

    /// `at` is a group of the chunk, or the first behind its last.
    fn set(&mut self, at: usize, config: &PgConfig) {
        let copies = usize::from(self.copies);
        if at == self.epochs.len() {
            self.epochs.push(Epoch(0));
            self.members.resize((at + 1) * copies, NodeId(0));
        }
        self.epochs[at] = config.epoch;
        let row = &mut self.members[at * copies..(at + 1) * copies];
        let plain = config.old == config.new && config.learners.is_empty() && config.old.len() == copies;
        if plain {
            row.copy_from_slice(&config.new);
            self.special.remove(&(at as u16));
        } else {
            row.fill(NodeId(0));
            let PgConfig { old, new, learners, .. } = config.clone();
            self.special.insert(at as u16, Special { old, new, learners });
        }
    }

    /// Why these bytes from outside are no chunk.
    fn problem(&self, last: bool) -> Option<&'static str> {
        let len = self.epochs.len();
        let sets = |it: &Special| [it.old.len(), it.new.len(), it.learners.len()];
        if len == 0 || len > CHUNK_PGS || (!last && len != CHUNK_PGS) {
            Some("a part of a table of placement groups has the wrong length")
        } else if self.members.len() != len * usize::from(self.copies) {
            Some("a table of placement groups has another number of members than of copies")
        } else if self.special.keys().any(|at| usize::from(*at) >= len) {
            Some("a placement group is beyond the end of its table")
        } else if self.special.values().flat_map(sets).any(|n| n > SET_MEMBERS_MAX) {
            Some("a placement group has too many members")
        } else {
            None
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Arc<Chunk>>", into = "Vec<Arc<Chunk>>")]
pub struct PgTable {
    chunks: Arc<Vec<Arc<Chunk>>>,
}

impl TryFrom<Vec<Arc<Chunk>>> for PgTable {
    type Error = &'static str;

    fn try_from(chunks: Vec<Arc<Chunk>>) -> Result<PgTable, &'static str> {
        let count = chunks.len();
        let problem = chunks.iter().enumerate().find_map(|(i, chunk)| chunk.problem(i + 1 == count));
        problem.map_or_else(|| Ok(PgTable { chunks: Arc::new(chunks) }), Err)
    }
}

impl From<PgTable> for Vec<Arc<Chunk>> {
    fn from(table: PgTable) -> Vec<Arc<Chunk>> {
        Arc::unwrap_or_clone(table.chunks)
    }
}

impl From<Vec<PgConfig>> for PgTable {
    fn from(configs: Vec<PgConfig>) -> PgTable {
        configs.iter().collect()
    }
}

impl<'a> FromIterator<&'a PgConfig> for PgTable {
    fn from_iter<I: IntoIterator<Item = &'a PgConfig>>(configs: I) -> PgTable {
        let mut table = PgTable::default();
        for config in configs {
            table.push(config);
        }
        table
    }
}

impl PgTable {
    /// How many groups there are.
    pub fn len(&self) -> u32 {
        let full = self.chunks.len().saturating_sub(1) * CHUNK_PGS;
        (full + self.chunks.last().map_or(0, |chunk| chunk.epochs.len())) as u32
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// A group by its number.
    pub fn get(&self, pg: u32) -> Option<Pg<'_>> {
        let pg = pg as usize;
        self.chunks.get(pg / CHUNK_PGS)?.get(pg % CHUNK_PGS)
    }

    /// All groups, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Pg<'_>)> {
        (0..self.len()).filter_map(|pg| Some((pg, self.get(pg)?)))
    }

    /// Adds a group behind the last.
    pub fn push(&mut self, config: &PgConfig) {
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.last().is_none_or(|chunk| chunk.epochs.len() == CHUNK_PGS) {
            // Sets have at most SET_MEMBERS_MAX members.
            let copies = config.new.len().min(SET_MEMBERS_MAX) as u8;
            chunks.push(Arc::new(Chunk { copies, ..Chunk::default() }));
        }
        if let Some(chunk) = chunks.last_mut() {
            let chunk = Arc::make_mut(chunk);
            chunk.set(chunk.epochs.len(), config);
        }
    }

    /// Replaces a group. False if there is none with that number.
    pub fn set(&mut self, pg: u32, config: &PgConfig) -> bool {
        if pg >= self.len() {
            return false;
        }
        let pg = pg as usize;
        let chunk = &mut Arc::make_mut(&mut self.chunks)[pg / CHUNK_PGS];
        Arc::make_mut(chunk).set(pg % CHUNK_PGS, config);
        true
    }

    /// The groups that `older` does not have, or not so. What the two share costs nothing.
    pub fn changed<'a>(&'a self, older: Option<&'a PgTable>) -> impl Iterator<Item = (u32, Pg<'a>)> {
        let parts = self.chunks.iter().enumerate();
        parts.flat_map(move |(i, chunk)| {
            let before = older.and_then(|older| older.chunks.get(i));
            let same = before.is_some_and(|before| Arc::ptr_eq(before, chunk));
            let groups = if same { 0 } else { chunk.epochs.len() };
            (0..groups).filter_map(move |at| {
                let now = chunk.get(at)?;
                let known = before.and_then(|before| before.get(at));
                (known != Some(now)).then_some(((i * CHUNK_PGS + at) as u32, now))
            })
        })
    }

    /// Takes over what is the same in another table.
    pub fn share(&mut self, other: &PgTable) {
        if self.chunks == other.chunks {
            self.chunks = other.chunks.clone();
            return;
        }
        for (ours, theirs) in Arc::make_mut(&mut self.chunks).iter_mut().zip(other.chunks.iter()) {
            if ours == theirs {
                *ours = theirs.clone();
            }
        }
    }

    /// Every node that has or gets a copy of any group.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        let mut nodes: Vec<NodeId> = Vec::new();
        for chunk in self.chunks.iter() {
            for at in 0..chunk.epochs.len() {
                nodes.extend(chunk.get(at).into_iter().flat_map(Pg::nodes));
            }
            nodes.sort_unstable();
            nodes.dedup();
        }
        nodes.into_iter().collect()
    }

    /// What it takes of the heap, in bytes, however many share it; without the groups that are moving.
    pub fn heap_bytes(&self) -> usize {
        let chunk = |it: &Arc<Chunk>| {
            size_of::<Chunk>()
                + 2 * size_of::<usize>()
                + it.epochs.capacity() * size_of::<Epoch>()
                + it.members.capacity() * size_of::<NodeId>()
        };
        self.chunks.iter().map(chunk).sum::<usize>() + self.chunks.capacity() * size_of::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_config() -> impl Strategy<Value = PgConfig> {
        let set = |max| prop::collection::vec((0u32..9).prop_map(NodeId), 0..max);
        let simple = prop::collection::vec((0u32..9).prop_map(NodeId), 3)
            .prop_map(|set| PgConfig::simple(Epoch(1), set));
        let any = (0u64..4, set(5), set(5), set(3)).prop_map(|(epoch, old, new, learners)| PgConfig {
            epoch: Epoch(epoch),
            old,
            new,
            learners,
        });
        prop_oneof![3 => simple, 1 => any]
    }

    fn contents(table: &PgTable) -> Vec<PgConfig> {
        table.iter().map(|(_, pg)| pg.config()).collect()
    }

    proptest! {
        #[test]
        fn a_table_is_what_was_put_in(
            configs in prop::collection::vec(any_config(), 0..700),
            changes in prop::collection::vec((0u32..800, any_config()), 0..20),
        ) {
            let mut plain = configs.clone();
            let before = PgTable::from(configs);
            prop_assert_eq!(&contents(&before), &plain);
            prop_assert_eq!(before.len() as usize, plain.len());
            let mut table = before.clone();
            for (pg, config) in &changes {
                let there = (*pg as usize) < plain.len();
                prop_assert_eq!(table.set(*pg, config), there);
                if there {
                    plain[*pg as usize] = config.clone();
                }
            }
            prop_assert_eq!(&contents(&table), &plain);
            let changed: Vec<u32> = table.changed(Some(&before)).map(|(pg, _)| pg).collect();
            let expected: Vec<u32> =
                (0..before.len()).filter(|pg| before.get(*pg) != table.get(*pg)).collect();
            prop_assert_eq!(changed, expected);
            prop_assert_eq!(table.changed(None).count(), plain.len());
            let all: BTreeSet<NodeId> = plain.iter().flat_map(PgConfig::everyone).collect();
            prop_assert_eq!(table.nodes(), all);
            let bytes = postcard::to_stdvec(&table).unwrap();
            prop_assert_eq!(postcard::from_bytes::<PgTable>(&bytes).unwrap(), table);
        }

        #[test]
        fn bytes_from_outside_are_a_table_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(table) = postcard::from_bytes::<PgTable>(&bytes) {
                prop_assert_eq!(table.iter().count(), table.len() as usize);
            }
        }
    }

    #[test]
    fn a_plain_group_is_small_and_a_change_is_local() {
        let config = |n: u32| PgConfig::simple(Epoch(1), vec![NodeId(n), NodeId(n + 1), NodeId(n + 2)]);
        let table: PgTable = (0..65_536).map(config).collect::<Vec<_>>().into();
        let per_group = table.heap_bytes() / 65_536;
        assert!(per_group <= 24, "{per_group} bytes for each group");
        let mut other = table.clone();
        assert!(other.set(300, &config(9)));
        let shared = table.chunks.iter().zip(other.chunks.iter()).filter(|(a, b)| Arc::ptr_eq(a, b));
        assert_eq!(shared.count(), 255);
        let shared = |a: &PgTable, b: &PgTable| {
            a.chunks.iter().zip(b.chunks.iter()).filter(|(a, b)| Arc::ptr_eq(a, b)).count()
        };
        let mut read: PgTable = postcard::from_bytes(&postcard::to_stdvec(&other).unwrap()).unwrap();
        assert_eq!(shared(&read, &table), 0);
        read.share(&table);
        assert_eq!((shared(&read, &table), &read), (255, &other));
        read.share(&other);
        assert!(Arc::ptr_eq(&read.chunks, &other.chunks));
    }
}
