//! A map of a few ten thousand entries of which there are many versions: clones share everything.
//!
//! A clone is one reference; a change copies the references to the entries (some 0.1 ms for ten thousand)
//! and the one entry that it is about. Two versions are compared by looking at references first.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

/// See the module. Reading is that of a `BTreeMap`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "K: Ord + Serialize, V: Serialize",
    deserialize = "K: Ord + Deserialize<'de>, V: Deserialize<'de>"
))]
pub struct CowMap<K, V>(Arc<BTreeMap<K, Arc<V>>>);

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        CowMap(Arc::new(BTreeMap::new()))
    }
}

impl<K, V> Deref for CowMap<K, V> {
    type Target = BTreeMap<K, Arc<V>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a, K, V> IntoIterator for &'a CowMap<K, V> {
    type Item = (&'a K, &'a Arc<V>);
    type IntoIter = std::collections::btree_map::Iter<'a, K, Arc<V>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K: Ord + Copy, V: Clone + PartialEq> CowMap<K, V> {
    /// Adds or replaces an entry.
    pub fn insert(&mut self, key: K, value: impl Into<Arc<V>>) {
        Arc::make_mut(&mut self.0).insert(key, value.into());
    }

    /// Takes an entry out. True if it was there.
    pub fn remove(&mut self, key: &K) -> bool {
        self.0.contains_key(key) && Arc::make_mut(&mut self.0).remove(key).is_some()
    }

    /// An entry, to be changed. Copies even if nothing is changed then: look first.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.0.contains_key(key) {
            return None;
        }
        Arc::make_mut(&mut self.0).get_mut(key).map(Arc::make_mut)
    }

    /// The entries that `older` does not have, or not so, and the keys that only `older` has.
    pub(super) fn changes(&self, older: &Self) -> Changes<K, V> {
        if Arc::ptr_eq(&self.0, &older.0) {
            return Changes::default();
        }
        let is_new = |key: &K, value: &Arc<V>| {
            older.0.get(key).is_none_or(|known| !Arc::ptr_eq(known, value) && known != value)
        };
        let put = self.0.iter().filter(|(key, value)| is_new(key, value));
        let gone = older.0.keys().filter(|key| !self.0.contains_key(key));
        Changes {
            put: put.map(|(key, value)| (*key, value.clone())).collect(),
            gone: gone.copied().collect(),
        }
    }

    /// Makes the newer map of the older one.
    pub(super) fn change(&mut self, changes: &Changes<K, V>) {
        if changes.put.is_empty() && changes.gone.is_empty() {
            return;
        }
        let entries = Arc::make_mut(&mut self.0);
        for key in &changes.gone {
            entries.remove(key);
        }
        for (key, value) in &changes.put {
            entries.insert(*key, value.clone());
        }
    }
}

/// What makes one [`CowMap`] of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes<K, V> {
    put: Vec<(K, Arc<V>)>,
    gone: Vec<K>,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Changes { put: Vec::new(), gone: Vec::new() }
    }
}
