//! By what tables are found, and where their objects are now: a split of placement groups gives objects other names.

use super::{NO_SLOT, PageRef, Tables};
use trefoil_core::{GroupId, ObjectId, ObjectIndex, PgId, VolumeId};

/// What an object's table is found by: not its placement group, which a split changes, while pages in the log, and
/// reads under way, have the name of before.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Name {
    volume: VolumeId,
    index: ObjectIndex,
}

impl From<ObjectId> for Name {
    fn from(object: ObjectId) -> Name {
        Name { volume: object.group.volume, index: object.index }
    }
}

/// An object's pages, and where it is now.
pub(super) struct Table {
    pub(super) pg: PgId,
    pub(super) pages: Vec<PageRef>,
}

impl Table {
    pub(super) fn new(pg: PgId) -> Table {
        Table { pg, pages: Vec::new() }
    }
}

fn table_id(name: &Name, table: &Table) -> ObjectId {
    ObjectId { group: GroupId { volume: name.volume, pg: table.pg }, index: name.index }
}

impl Tables {
    /// The object's id as it is now: of the placement group that it has come to.
    pub fn current(&self, object: ObjectId) -> ObjectId {
        match self.objects.get(&object.into()) {
            Some(table) => ObjectId { group: GroupId { pg: table.pg, ..object.group }, ..object },
            None => object,
        }
    }

    /// The object is in another placement group from now on.
    pub fn rename(&mut self, object: ObjectId, pg: PgId) {
        let Some(table) = self.objects.get_mut(&object.into()) else { return };
        if table.pg != object.group.pg {
            return;
        }
        table.pg = pg;
        for page in table.pages.iter().filter(|page| page.slot != NO_SLOT) {
            if let Some(slot) = self.slots.get_mut(page.slot as usize) {
                slot.owner.0.group.pg = pg;
            }
        }
    }

    pub(super) fn make(&mut self, object: ObjectId) -> &mut Table {
        self.objects.entry(object.into()).or_insert_with(|| Table::new(object.group.pg))
    }

    /// All objects that have a table.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.objects.iter().map(|(name, table)| table_id(name, table))
    }

    /// The objects of some groups: those of a volume, or of a placement group.
    pub fn of_groups(&self, wanted: impl Fn(GroupId) -> bool) -> Vec<ObjectId> {
        self.objects().filter(|object| wanted(object.group)).collect()
    }
}
