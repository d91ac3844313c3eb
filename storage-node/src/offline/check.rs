//! Everything on a device, read and verified: what is wrong, and where.
//!
//! In this order: both superblocks and roots; every batch from the snapshot on, header and data; every
//! table page's newest image, and from all of them the live count of every segment, which must be exactly
//! what the log says; then each live block, by its own checksum. Damage that can be healed from other
//! copies and damage that cannot look the same from here: both are reported.
//!
//! Not looked at: the content of segments that nothing refers to.

use super::{Block, Fault, IndexError, OfflineError, OfflineStore, ReadMany};
use crate::store::SuperblockError;
use crate::store::view::{PAGE_BLOCKS, PageRef, Roots, byte_of, entries_of, page_checksum, place_of, walk};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use trefoil_core::{BLOCK_SIZE, ObjectId};

/// Findings that a report names unless told otherwise; beyond it they are only counted.
pub const FINDINGS_MAX: usize = 1000;

/// What is being read, and how far it is: done and in all.
pub type CheckProgress<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

/// One thing that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which kind of thing: the same words as in [`CheckReport::by_kind`].
    pub kind: &'static str,
    /// The object.
    pub object: Option<String>,
    /// The block of the object.
    pub block: Option<u32>,
    /// The segment.
    pub segment: Option<u32>,
    /// Where on the device, in bytes.
    pub byte: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What a check has found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// The path.
    pub device: String,
    /// Batches of the log read.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of batches read.
    pub log_bytes: u64,
    /// Objects looked at.
    pub objects: u64,
    /// Table pages read.
    pub pages: u64,
    /// Blocks read and verified.
    pub blocks: u64,
    /// How many things are wrong.
    pub wrong: u64,
    /// How many of each kind.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// The first of them.
    pub findings: Vec<Finding>,
    /// What is not wrong and still worth knowing.
    pub notes: Vec<String>,
    #[serde(skip)]
    limit: usize,
}

impl CheckReport {
    pub(super) fn new(device: &str, limit: usize) -> CheckReport {
        CheckReport { device: device.to_owned(), limit, ..CheckReport::default() }
    }

    /// Everything is as it should be.
    pub fn is_good(&self) -> bool {
        self.wrong == 0
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.wrong += 1;
        *self.by_kind.entry(finding.kind).or_default() += 1;
        if self.findings.len() < self.limit {
            self.findings.push(finding);
        }
    }
}

/// One bit for each block of the device.
struct Seen(Vec<u64>);

impl Seen {
    fn new(blocks: u64) -> Seen {
        Seen(vec![0; (blocks / 64 + 1) as usize])
    }
    /// True if it was seen before.
    fn again(&mut self, block: u64) -> bool {
        let Some(word) = self.0.get_mut((block / 64) as usize) else { return false };
        let bit = 1 << (block % 64);
        let was = *word & bit != 0;
        *word |= bit;
        was
    }
}

/// Opens and checks a store. One that cannot be opened because it is damaged has a report, too: that it is.
/// An error: it cannot be looked at, or is none.
pub fn check(
    path: &Path,
    index: Option<&Path>,
    limit: usize,
    progress: CheckProgress<'_>,
) -> Result<CheckReport, CheckError> {
    let store = match OfflineStore::open(path, &mut |done, all| progress("log", done, all)) {
        Ok(store) => store,
        Err(error) => {
            let kind = match &error {
                OfflineError::Recover(_) => "log",
                OfflineError::Superblock(
                    SuperblockError::Damaged { .. } | SuperblockError::Nonsense { .. },
                ) => "superblock",
                _ => return Err(error.into()),
            };
            let mut report = CheckReport::new(&path.display().to_string(), limit);
            report.add(Finding { kind, what: error.to_string(), ..Finding::default() });
            return Ok(report);
        }
    };
    let mut report = store.check(limit, progress);
    if let Some(index) = index {
        store.check_index(index, &mut report)?;
    }
    Ok(report)
}

/// Why nothing was checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The store.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

struct Checker<'a, D> {
    store: &'a OfflineStore<D>,
    report: CheckReport,
    /// Live blocks of each segment, as the pages' images have them.
    live: Vec<u32>,
    /// Places that images name, images themselves included.
    counted: Seen,
    /// Places that entries name as of now.
    named: Seen,
    /// Images that cannot be read: what they count is not known.
    lost_pages: u64,
}

impl<D: ReadMany> OfflineStore<D> {
    /// Reads and verifies everything. `limit`: findings to name; all of them are counted.
    pub fn check(&self, limit: usize, progress: CheckProgress<'_>) -> CheckReport {
        let blocks = self.superblock().blocks();
        let mut checker = Checker {
            store: self,
            report: CheckReport::new(self.name(), limit),
            live: vec![0; self.superblock().segments as usize],
            counted: Seen::new(blocks),
            named: Seen::new(blocks),
            lost_pages: 0,
        };
        checker.fixed_places();
        checker.log(progress);
        checker.heads();
        let objects = self.objects();
        let all = objects.len() as u64;
        for (n, object) in (1..).zip(objects) {
            checker.object(object);
            progress("objects", n, all);
        }
        checker.dead_pages();
        checker.live_counts();
        checker.report
    }
}

impl<D: ReadMany> Checker<'_, D> {
    fn add(&mut self, kind: &'static str, what: String) {
        self.report.add(Finding { kind, what, ..Finding::default() });
    }

    /// Superblocks and roots.
    fn fixed_places(&mut self) {
        for copy in self.store.bare.superblock_copies() {
            if let Some(what) = copy.damage {
                self.report.add(Finding {
                    kind: "superblock",
                    byte: Some(copy.byte),
                    what,
                    ..Finding::default()
                });
            }
        }
        for what in Roots::read(&self.store.bare.device, self.store.bare.sb.incarnation).damage {
            self.add("root", what);
        }
    }

    /// Every batch from the snapshot on.
    fn log(&mut self, progress: CheckProgress<'_>) {
        let recovery = &self.store.recovery;
        let sb = &self.store.bare.sb;
        let (first, last) = (recovery.root.covers.lsn, recovery.last);
        if let Some(what) = recovery.lost.clone() {
            self.add("lost-state", what);
        }
        let mut reached = first;
        let report = &mut self.report;
        walk(&self.store.bare.device, sb, &recovery.root, last, &mut |step| {
            let h = step.header;
            report.batches += 1;
            report.records += step.entries.len() as u64;
            report.log_bytes += u64::from(h.blocks()) * BLOCK_SIZE as u64;
            let byte = sb.location(h.segment, h.block) * BLOCK_SIZE as u64;
            let mut wrong = |what| {
                let (segment, byte) = (Some(h.segment), Some(byte));
                report.add(Finding { kind: "log", segment, byte, what, ..Finding::default() });
            };
            if step.gap {
                wrong(format!(
                    "batches between LSN {reached} and LSN {} are missing: the log goes on at block {} of the segment",
                    h.lsn, h.block
                ));
            }
            if !step.whole {
                wrong(format!(
                    "data of the batch with LSN {} does not match the batch's checksum ({} blocks behind block {})",
                    h.lsn, h.data_blocks, h.block
                ));
            }
            reached = h.lsn;
            progress("log", h.lsn.saturating_sub(first), last.lsn.saturating_sub(first));
            true
        });
        if reached < last.lsn {
            self.add(
                "log",
                format!("the log cannot be followed from LSN {reached} to its end, LSN {}", last.lsn),
            );
        }
    }

    /// What the groups say against what there is.
    fn heads(&mut self) {
        let recovery = &self.store.recovery;
        for (group, state) in &recovery.state.durable.groups {
            if state.settled > state.promised {
                let what = format!("group {group} is settled above its promise");
                self.add("group", what);
            }
        }
        if recovery.state.segments.impossible > 0 {
            let n = recovery.state.segments.impossible;
            self.add("live-count", format!("the log takes more from live counts than there is, {n} times"));
        }
    }

    /// True if the segment has been freed since it had this place: nothing is there any more.
    fn is_stale(&self, location: u64) -> bool {
        let (segment, turn) = self.store.bare.sb.tag_of(location);
        self.store.recovery.state.segments.get(segment).turn != turn
    }

    /// Takes a place that an image names; complains if it cannot be.
    fn count(&mut self, object: ObjectId, block: Option<u32>, location: u64) {
        let sb = &self.store.bare.sb;
        if !self.store.bare.inside(location, 1) {
            return self.location(object, block, location, "is outside the device's segments");
        }
        if self.is_stale(location) {
            // A later record has replaced it, whose page is not written yet; else it is found bad as an entry.
            return;
        }
        let segment = sb.segment_of(location);
        let at = place_of(location) - sb.location(0, 0);
        if self.counted.again(at) {
            return self.location(object, block, location, "is named by another entry too");
        }
        if let Some(live) = self.live.get_mut(segment as usize) {
            *live += 1;
        }
        self.written(object, block, location);
    }

    /// Complains about a place behind the part of its segment that was written.
    fn written(&mut self, object: ObjectId, block: Option<u32>, location: u64) {
        let sb = &self.store.bare.sb;
        let segment = sb.segment_of(location);
        let end = self.store.recovery.state.segments.get(segment).end;
        if place_of(location) - sb.location(segment, 0) >= u64::from(end) {
            self.location(object, block, location, "is behind what was written to its segment");
        }
    }

    fn location(&mut self, object: ObjectId, block: Option<u32>, location: u64, why: &str) {
        let what = match block {
            Some(_) => format!("the block's place {why}"),
            None => format!("a table page's place {why}"),
        };
        self.at("location", object, block, location, what);
    }

    fn at(&mut self, kind: &'static str, object: ObjectId, block: Option<u32>, location: u64, what: String) {
        let sb = &self.store.bare.sb;
        let segment = self.store.bare.inside(location, 1).then(|| sb.segment_of(location));
        let byte = Some(byte_of(location));
        self.report.add(Finding { kind, object: Some(object.to_string()), block, segment, byte, what });
    }

    /// Counts what an image names, if it is what it should be.
    fn image(&mut self, object: ObjectId, page: u32, location: u64, checksum: u64, image: Option<&[u8]>) {
        if location == 0 {
            return;
        }
        self.report.pages += 1;
        if self.is_stale(location) && self.store.bare.inside(location, 1) {
            return self.location(object, None, location, "is in a segment that has been freed since");
        }
        self.count(object, None, location);
        let first = page * PAGE_BLOCKS;
        match image.filter(|image| page_checksum(object, page, image) == checksum) {
            Some(image) => {
                for (block, entry) in (first..).zip(entries_of(image)).filter(|(_, e)| e.location != 0) {
                    self.count(object, Some(block), entry.location);
                }
            }
            None => {
                self.lost_pages += 1;
                let what = match image {
                    Some(_) => "does not match its checksum",
                    None => "cannot be read",
                };
                let what = format!("page {page} of the block table (blocks {first}..) {what}");
                self.at("table-page", object, Some(first), location, what);
            }
        }
    }

    fn object(&mut self, object: ObjectId) {
        self.report.objects += 1;
        let group = self.store.durable().groups.get(&object.group);
        let head = group.is_some_and(|group| group.objects.contains_key(&object.index));
        let table = self.store.recovery.state.tables.pages(object).is_some();
        if head != table {
            let what =
                if head { "it has a head and no block table" } else { "it has a block table and no head" };
            let object = Some(object.to_string());
            self.report.add(Finding { kind: "object", object, what: what.to_owned(), ..Finding::default() });
        }
        let images = self.store.images(object);
        let pages: Vec<PageRef> = self.store.pages(object).to_vec();
        let mut wanted = Vec::new();
        for ((page, at), image) in (0u32..).zip(&pages).zip(&images) {
            self.image(object, page, at.location, at.checksum, image.as_deref());
            let Some(view) = self.store.page(object, page, image.as_deref()) else { continue };
            let first = page * PAGE_BLOCKS;
            for (block, entry) in (first..).zip(view.entries) {
                match Block::from(entry) {
                    Block::Hole => {}
                    // Told with its page, or it is one of a lost page's.
                    Block::Bad(None) if view.lost => {}
                    Block::Bad(sum) => {
                        let sum = sum.map_or("unknown".to_owned(), |sum| format!("{sum:016x}"));
                        let what = format!(
                            "has no good bytes here, and it is known (they should have checksum {sum})"
                        );
                        let object = Some(object.to_string());
                        self.report.add(Finding {
                            kind: "bad-block",
                            object,
                            block: Some(block),
                            what,
                            ..Finding::default()
                        });
                    }
                    Block::There(entry) => {
                        let first = self.store.bare.sb.location(0, 0);
                        if self.store.bare.inside(entry.location, 1) {
                            if self.is_stale(entry.location) {
                                let why = "is in a segment that has been freed since";
                                self.location(object, Some(block), entry.location, why);
                            } else if self.named.again(place_of(entry.location) - first) {
                                self.location(object, Some(block), entry.location, "is another block's too");
                            }
                            self.written(object, Some(block), entry.location);
                        }
                        wanted.push((block, entry));
                    }
                }
            }
        }
        let store = self.store;
        let read = store.read_blocks(object, &wanted, |block, entry, bytes| {
            match bytes {
                Ok(_) => self.report.blocks += 1,
                Err(Fault::Outside) => {
                    self.location(object, Some(block), entry.location, "is outside the device's segments");
                }
                Err(fault) => self.at("block", object, Some(block), entry.location, fault.to_string()),
            }
            Ok::<(), std::convert::Infallible>(())
        });
        match read {
            Ok(()) => {}
        }
    }

    /// Pages of deleted objects, which count until they are reaped.
    fn dead_pages(&mut self) {
        let mut dead: Vec<_> = self.store.recovery.state.dead.values().copied().collect();
        dead.sort_unstable_by_key(|(_, page)| page.location);
        for (object, page) in dead {
            if self.is_stale(page.location) {
                // It went with its segment.
                continue;
            }
            let image = self.store.bare.read(page.location, 1).ok();
            self.image(object, page.page, page.location, page.checksum, image.as_deref());
        }
    }

    /// The counts, which must be exact. What damaged pages counted is not known: as many blocks as they may
    /// have named may be recorded beyond what can be counted, and none less.
    fn live_counts(&mut self) {
        let sb = &self.store.bare.sb;
        let segments = &self.store.recovery.state.segments;
        if segments.leaked > 0 {
            let note = "blocks may be counted as live for good: table pages that named them were damaged";
            self.report.notes.push(format!("{} {note}", segments.leaked));
        }
        let mut excused = segments.leaked + self.lost_pages * u64::from(PAGE_BLOCKS);
        for (segment, state) in segments.iter() {
            let counted = self.live.get(segment as usize).copied().unwrap_or(0);
            let excess = u64::from(state.live.saturating_sub(counted));
            if counted == state.live || excess > 0 && excess <= excused {
                excused -= excess;
                continue;
            }
            let byte = Some(sb.location(segment, 0) * BLOCK_SIZE as u64);
            let what =
                format!("the log says that {} of its blocks are live, the tables name {counted}", state.live);
            self.report.add(Finding {
                kind: "live-count",
                segment: Some(segment),
                byte,
                what,
                ..Finding::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::device::sim::{SimDevice, SimMedium};
    use crate::store::view::NoIndex;
    use crate::store::{Store, StoreOptions, Superblock, format_device};
    use trefoil_core::checksum::block_checksum;
    use trefoil_core::message::WriteOp;
    use trefoil_core::record::Record;
    use trefoil_core::{Ballot, BlockRange, GroupId, Head, Incarnation, NodeId};

    const X: ObjectId = ObjectId {
        group: GroupId {
            volume: trefoil_core::VolumeId(1),
            pg: trefoil_core::PgId { pool: trefoil_core::PoolId(1), pg: 0 },
        },
        index: 3,
    };

    /// A store with one object of three blocks, whose table is in the log.
    fn store() -> OfflineStore<SimDevice> {
        let medium = SimMedium::new((2 << 20) + (12 << 20));
        let mut device = medium.device(1).expect("device");
        let sb = Superblock::new(device.size(), 1 << 20, Incarnation(5), [3; 16], NodeId(1));
        format_device(&mut device, &sb.expect("large enough")).expect("formatted");
        let mut store =
            Store::open_on(device, NoIndex, StoreOptions::default(), &mut |_, _| ()).expect("opens").0;
        let data = vec![7u8; 3 * BLOCK_SIZE];
        let sum = |block| block_checksum(X.group.volume, X.index, block, &data[..BLOCK_SIZE]);
        store.append(
            1,
            Record::Write {
                object: X,
                head: Head { ballot: Ballot(1), seq: 1 },
                snap: 0,
                op: WriteOp::Data {
                    blocks: BlockRange::new(0, 3),
                    checksums: (0..3).map(sum).collect(),
                    data: data.clone().into(),
                },
            },
        );
        // The pages are in the log; that there is no index is what it complains about.
        assert!(store.shutdown().is_err());
        OfflineStore::open_on(medium.device(1).expect("device"), &mut |_, _| ()).expect("opens")
    }

    fn kinds(store: &OfflineStore<SimDevice>) -> Vec<(&'static str, u64)> {
        store.check(10, &mut |_, _, _| ()).by_kind.into_iter().collect()
    }

    #[test]
    fn counts_and_places_that_cannot_be_are_found() {
        let good = store();
        assert_eq!(kinds(&good), []);
        let page = good.pages(X)[0];
        let segment = good.bare.sb.segment_of(page.location);
        assert_eq!(good.recovery.state.segments.get(segment).live, 4);

        for delta in [1, -1] {
            let mut wrong = store();
            wrong.recovery.state.segments.add((segment, 0), delta);
            let report = wrong.check(10, &mut |_, _, _| ());
            assert_eq!(report.by_kind, BTreeMap::from([("live-count", 1)]));
            assert_eq!(report.findings[0].segment, Some(segment));
        }
        // A page that is named twice names its blocks twice.
        let mut wrong = store();
        let dead = crate::store::view::DeadPage { location: page.location, checksum: page.checksum, page: 0 };
        wrong.recovery.state.dead.insert(page.location, (X, dead));
        assert_eq!(kinds(&wrong), [("location", 4)]);
        // The segment was not written that far.
        let mut wrong = store();
        wrong.recovery.state.segments.batch(segment, 0, 1, 9, 9);
        assert!(kinds(&wrong).iter().any(|(kind, n)| *kind == "location" && *n >= 4), "{:?}", kinds(&wrong));
        // A place that no device has: found, and no trouble to anything else.
        let mut wrong = store();
        wrong.recovery.state.tables.set_run(X, 1, (1 << 47) - 1, &[5]);
        assert_eq!(kinds(&wrong), [("location", 1)]);
        assert_eq!(wrong.runs(X).len(), 3);
        let dir = tempfile::tempdir().expect("directory");
        let report = wrong.export(X, &dir.path().join("x"), None, false).expect("exported");
        assert_eq!((report.bad, report.bad_blocks[0].byte), (1, None));
        // A head without a table, and a table without a head.
        let mut wrong = store();
        wrong.recovery.state.durable.groups.clear();
        assert_eq!(kinds(&wrong), [("object", 1)]);
        let mut wrong = store();
        wrong.recovery.state.tables.remove(X);
        assert!(kinds(&wrong).contains(&("object", 1)), "{:?}", kinds(&wrong));
    }
}
