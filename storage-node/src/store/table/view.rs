//! Tables for those who only look: a page's entries as of the end of the log, without loading the page into
//! the cache and without taking what waits for it.
//!
//! The offline tool reads the tables of a whole device this way in bounded memory. Nothing here changes
//! anything.

use super::{BlockEntry, Counts, PAGE_BLOCKS, Page, PageOp, Pending, Tables, UNKNOWN, apply, page_checksum};
use trefoil_core::ObjectId;
use zerocopy::FromBytes;

/// A page as of now.
pub struct PageView {
    /// Its entries.
    pub entries: Vec<BlockEntry>,
    /// Its image in the log could not be read or does not match its checksum: entries that were not
    /// written since have the checksum [`UNKNOWN`].
    pub lost: bool,
}

impl Clone for PageOp {
    fn clone(&self) -> PageOp {
        match self {
            PageOp::One { block, location, checksum } => {
                PageOp::One { block: *block, location: *location, checksum: *checksum }
            }
            PageOp::Run { first, location, checksums } => {
                PageOp::Run { first: *first, location: *location, checksums: checksums.clone() }
            }
            PageOp::Zero { first, count } => PageOp::Zero { first: *first, count: *count },
            PageOp::Heal { block, location, checksum } => {
                PageOp::Heal { block: *block, location: *location, checksum: *checksum }
            }
            PageOp::Capture { read, at, first, count } => {
                PageOp::Capture { read: *read, at: *at, first: *first, count: *count }
            }
        }
    }
}

fn entries(page: &Page) -> Vec<BlockEntry> {
    (0..PAGE_BLOCKS as usize).map(|block| page.get(block)).collect()
}

impl Tables {
    /// A page of an object as of now. `image` is what the device has at the place that
    /// [`Tables::pages`] names, `None` where it has nothing or the page was never written.
    pub fn view(&self, object: ObjectId, page: u32, image: Option<&[u8]>) -> Option<PageView> {
        let at = self.pages(object)?.get(page as usize)?;
        let slot = self.slots.get(at.slot as usize);
        if let Some(page) = slot.and_then(|slot| slot.page.as_ref()) {
            return Some(PageView { entries: entries(page), lost: false });
        }
        let mut base = Page::empty();
        let mut lost = false;
        if at.location != 0 {
            let good = image.filter(|image| page_checksum(object, page, image) == at.checksum);
            match good.and_then(|image| Page::read_from_bytes(image).ok()) {
                Some(image) => *base = image,
                None => {
                    lost = true;
                    for block in 0..PAGE_BLOCKS as usize {
                        base.put(block, 0, UNKNOWN);
                    }
                }
            }
        }
        // What the changes would count is nobody's business here.
        let mut pending = Pending { sb: self.pending.sb, segments: Vec::new(), total: 0 };
        let mut counts = Counts::default();
        for op in slot.iter().flat_map(|slot| &slot.queue) {
            apply(&mut base, op.clone(), &mut counts, &mut pending);
        }
        Some(PageView { entries: entries(&base), lost })
    }
}
