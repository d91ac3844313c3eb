//! The store for those who only look: its state as of the end of the log, from the log alone.
//!
//! Recovery is the very code that a start runs, on an index that has nothing and takes nothing. Nothing
//! is written, neither to the device nor to an index. [`crate::offline`] is built on this.

pub use super::batch::{NO_SEGMENT, page_checksum};
pub use super::codec::Entry;
pub use super::index::{Delta, Index, Meta, SledIndex, VERSION};
pub use super::log::StreamEnd;
pub use super::recovery::walk::{Step, scan, snapshot_state, walk};
pub use super::recovery::{IndexUse, RecoverError, Recovery, recover};
pub use super::root::{MAGIC as ROOT_MAGIC, Roots, SLOTS};
pub use super::segments::Delta as CountDelta;
pub use super::state::State;
pub use super::superblock::{COPIES, MAGIC, Superblock, byte_of, place_of};
#[cfg(test)]
pub use super::table::DeadPage;
pub use super::table::view::PageView;
pub use super::table::{PAGE_BLOCKS, PageRef, entries_of};

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

/// Recovers the state of the store on `device`, from its log.
pub fn view<D: Device>(
    device: &D,
    sb: &Superblock,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Recovery, RecoverError> {
    recover(device, sb, &mut NoIndex, 0, progress)
}
