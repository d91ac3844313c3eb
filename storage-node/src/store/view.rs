//! The store for those who only look: its state as of the end of the log, from the log alone.
//!
//! Recovery is the very code that a start runs, on an index that has nothing and takes nothing. Nothing
//! is written, neither to the device nor to an index. [`crate::offline`] is built on this.

pub use super::batch::{DataChecksum, Header};
pub use super::codec::Entry;
pub use super::log::BatchRef;
pub use super::recovery::Recovery;
pub use super::superblock::{COPIES, DATA_START, Superblock};
pub use super::table::view::{PageView, image_entries};
pub use super::table::{BlockEntry, OBJECT_BLOCKS_MAX, PAGE_BLOCKS, PageRef};

use super::index::{Delta, Index, Meta};
use super::recovery::recover;
use super::superblock::SuperblockError;
use crate::device::Device;

/// An index that has nothing and keeps nothing: everything comes from the log.
pub struct NoIndex;

impl Index for NoIndex {
    fn load(&mut self, _: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<Option<Meta>, String> {
        Ok(None)
    }
    fn discard(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn commit(&mut self, _: Delta) {}
    fn finished(&mut self) -> Option<Result<(), String>> {
        Some(Err("nothing is kept".to_owned()))
    }
}

/// A store, looked at.
pub struct View {
    /// What it is.
    pub sb: Superblock,
    /// What is wrong with one copy of the superblock.
    pub superblock_damage: Option<String>,
    /// Its state and the end of its log.
    pub recovery: Recovery,
}

/// Recovers the state of the store on `device`, from its log.
pub fn view<D: Device>(device: &D, progress: &mut dyn FnMut(u32, u32)) -> Result<View, SuperblockError> {
    let (sb, superblock_damage) = Superblock::read(device)?;
    let recovery = recover(device, &sb, &mut NoIndex, 0, progress);
    Ok(View { sb, superblock_damage, recovery })
}
