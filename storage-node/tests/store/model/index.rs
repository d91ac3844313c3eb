//! An index in memory that survives the store, with commits that take a while and may be lost.
//!
//! All its versions are kept, so that a test can put the store before any older one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trefoil_storage_node::store::index::{Delta, Index, Meta};

/// Looks at a commit before it is done.
const COMMIT_LOOKS: u32 = 3;

/// One version: shared, so that keeping it costs nothing.
#[derive(Clone, Default)]
pub struct Saved {
    entries: Rc<BTreeMap<Vec<u8>, Vec<u8>>>,
    meta: Option<Meta>,
}

impl Saved {
    fn put(&mut self, delta: &Delta) {
        let entries = Rc::make_mut(&mut self.entries);
        for (key, value) in &delta.entries {
            match value {
                Some(value) => entries.insert(key.clone(), value.clone()),
                None => entries.remove(key),
            };
        }
        self.meta = Some(delta.meta);
    }
}

/// The index as it is at one moment.
#[derive(Clone, Default)]
pub struct IndexAt {
    /// What is there if a commit under way comes to nothing.
    pub durable: Saved,
    /// What is there if it does not.
    pub committed: Option<Saved>,
    /// How many versions there were before.
    pub versions: usize,
}

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub struct MemIndex(Rc<RefCell<Mem>>);

#[derive(Default)]
struct Mem {
    saved: Saved,
    running: Option<(Rc<Delta>, u32)>,
    refuse: u32,
    versions: Vec<Saved>,
}

impl MemIndex {
    /// One that holds this.
    pub fn of(saved: Saved) -> MemIndex {
        MemIndex(Rc::new(RefCell::new(Mem { saved, ..Mem::default() })))
    }
    /// Loses a commit under way, or not.
    pub fn power_cut(&self, committed: bool) {
        let mut mem = self.0.borrow_mut();
        if let Some((delta, _)) = mem.running.take()
            && committed
        {
            mem.saved.put(&delta);
        }
    }
    /// Becomes another version.
    pub fn restore(&self, saved: Saved) {
        let mut mem = self.0.borrow_mut();
        mem.saved = saved;
        mem.running = None;
    }
    /// As of now.
    pub fn at(&self) -> IndexAt {
        let mem = self.0.borrow();
        let committed = mem.running.as_ref().map(|(delta, _)| {
            let mut saved = mem.saved.clone();
            saved.put(delta);
            saved
        });
        IndexAt { durable: mem.saved.clone(), committed, versions: mem.versions.len() }
    }
    /// All that were there before the one that is there now.
    pub fn versions(&self) -> Vec<Saved> {
        self.0.borrow().versions.clone()
    }
    /// The commits that end next are refused, this many.
    pub fn refuse(&self, times: u32) {
        self.0.borrow_mut().refuse = times;
    }
    /// True while a commit is under way.
    pub fn busy(&self) -> bool {
        self.0.borrow().running.is_some()
    }
}

impl Index for MemIndex {
    fn load(&mut self, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String> {
        let mem = self.0.borrow();
        for (key, value) in mem.saved.entries.iter() {
            if !each(key, value) {
                return Err("cannot be understood".to_owned());
            }
        }
        Ok(mem.saved.meta)
    }
    fn discard(&mut self) -> Result<(), String> {
        let mut mem = self.0.borrow_mut();
        mem.saved = Saved::default();
        mem.running = None;
        Ok(())
    }
    fn commit(&mut self, delta: Delta) {
        let mut mem = self.0.borrow_mut();
        assert!(mem.running.is_none(), "one commit at a time");
        mem.running = Some((Rc::new(delta), COMMIT_LOOKS));
    }
    fn finished(&mut self) -> Option<Result<(), String>> {
        let mut mem = self.0.borrow_mut();
        let (delta, left) = mem.running.take()?;
        if left > 0 {
            mem.running = Some((delta, left - 1));
            return None;
        }
        if mem.refuse > 0 {
            mem.refuse -= 1;
            return Some(Err("told to refuse".to_owned()));
        }
        let before = mem.saved.clone();
        mem.versions.push(before);
        mem.saved.put(&delta);
        Some(Ok(()))
    }
}
